//! The table `attributes`: attributes of Cyborg deployables that were created through the API.

use hotslot_model::cyborg::Attribute;
use hotslot_model::event::{self, EventKind, What};
use hotslot_model::id::{AttributeId, DeviceId};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::clock::now;
use crate::columns::RowReader;
use crate::error::Error;
use crate::pool::Store;
use crate::sql::{Row, query};

fn attribute(row: &Row) -> Result<Attribute, Error> {
    let columns = RowReader { table: "attributes", id: row.try_get("uuid")?, row };
    Ok(Attribute {
        id: columns.parse("uuid")?,
        deployable: DeviceId(columns.get("deployable_id")?),
        key: columns.get("attribute_key")?,
        value: columns.get("value")?,
        created_at: columns.get("created_at")?,
    })
}

fn of_attribute(kind: EventKind, row: &Attribute, from: Option<Value>, to: Option<Value>) -> What {
    What { device: Some(row.deployable), ..event::of_record(kind, row.id.0, from, to) }
}

impl Store {
    /// Returns all attributes, oldest first.
    ///
    /// # Errors
    /// Returns the error of the database, or [`Error::Row`] for a row that cannot be read.
    pub async fn attributes(&self) -> Result<Vec<Attribute>, Error> {
        query("SELECT * FROM attributes ORDER BY created_at, uuid").all(&self.read, attribute).await
    }

    /// Creates an attribute of a deployable.
    ///
    /// # Errors
    /// Returns the error of the database.
    pub async fn create_attribute(
        &self,
        deployable: DeviceId,
        key: &str,
        value: &str,
    ) -> Result<Attribute, Error> {
        let mut draft = self.draft().await?;
        let row = query(
            "INSERT INTO attributes (uuid, deployable_id, attribute_key, value, created_at)
             VALUES ($1, $2, $3, $4, $5) RETURNING *",
        )
        .bind(Uuid::new_v4().to_string())
        .bind(deployable.0)
        .bind(key)
        .bind(value)
        .bind(now())
        .fetch_one(&mut draft.tx)
        .await?;
        let made = attribute(&row)?;
        let what = of_attribute(
            EventKind::AttributeCreated,
            &made,
            None,
            Some(json!({ "key": key, "value": value })),
        );
        draft.emit([what]);
        draft.commit().await?;
        Ok(made)
    }

    /// Deletes an attribute. Returns false when it does not exist.
    ///
    /// # Errors
    /// Returns the error of the database.
    pub async fn delete_attribute(&self, id: AttributeId) -> Result<bool, Error> {
        let mut draft = self.draft().await?;
        let deleted = query("DELETE FROM attributes WHERE uuid = $1 RETURNING *").bind(id.to_string());
        let deleted = deleted.one(&mut draft.tx, attribute).await?;
        draft.emit(deleted.as_ref().map(|was| {
            let shown = json!({ "key": was.key, "value": was.value });
            of_attribute(EventKind::AttributeRemoved, was, Some(shown), None)
        }));
        draft.commit().await?;
        Ok(deleted.is_some())
    }
}
