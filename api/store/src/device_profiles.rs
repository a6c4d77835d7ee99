//! The table `device_profiles`: Cyborg's device profiles.

use hotslot_model::cyborg::{DeviceProfile, Group};
use hotslot_model::event::{self, EventKind};
use hotslot_model::id::DeviceProfileId;
use serde_json::{Value, json};

use crate::columns::{RowReader, bad_column};
use crate::error::Error;
use crate::pool::Store;
use crate::sql::{Row, query};
use crate::writer::Transaction;

const TABLE: &str = "device_profiles";

fn device_profile(row: &Row) -> Result<DeviceProfile, Error> {
    let columns = RowReader { table: TABLE, id: row.try_get("uuid")?, row };
    let groups: String = columns.get("profile_groups")?;
    let bad = |error: &dyn std::fmt::Display| bad_column(TABLE, &columns.id, "profile_groups")(error);
    let groups: Value = serde_json::from_str(&groups).map_err(|error| bad(&error))?;
    Ok(DeviceProfile {
        id: columns.parse("uuid")?,
        name: columns.get("name")?,
        description: columns.get("description")?,
        groups: Group::read_all(&groups).map_err(|error| bad(&error))?,
        created_at: columns.get("created_at")?,
    })
}

/// Returns the row id of a profile, or `None` when the profile does not exist.
pub(super) async fn number(tx: &mut Transaction, id: DeviceProfileId) -> Result<Option<i64>, Error> {
    let row = query("SELECT id FROM device_profiles WHERE uuid = $1");
    let row = row.bind(id.to_string()).fetch_optional(tx).await?;
    Ok(row.map(|row| row.try_get("id")).transpose()?)
}

impl Store {
    /// Returns all device profiles, in the order in which they were created.
    ///
    /// # Errors
    /// Returns the error of the database, or [`Error::Row`] for a row that cannot be read.
    pub async fn device_profiles(&self) -> Result<Vec<DeviceProfile>, Error> {
        query("SELECT * FROM device_profiles ORDER BY id").all(&self.read, device_profile).await
    }

    /// Returns the device profile with a name.
    ///
    /// # Errors
    /// Returns the error of the database, or [`Error::Row`] for a row that cannot be read.
    pub async fn device_profile_called(&self, name: &str) -> Result<Option<DeviceProfile>, Error> {
        let row = query("SELECT * FROM device_profiles WHERE name = $1");
        row.bind(name).one(&self.read, device_profile).await
    }

    /// Creates a device profile.
    ///
    /// # Errors
    /// Returns [`Error::AlreadyExists`] when its name or id is in use, or the error of the database.
    pub async fn create_device_profile(&self, new: &DeviceProfile) -> Result<(), Error> {
        let mut draft = self.draft().await?;
        for (key, value) in [("name", new.name.clone()), ("uuid", new.id.to_string())] {
            let in_use = match key {
                "name" => query("SELECT uuid FROM device_profiles WHERE name = $1"),
                _ => query("SELECT uuid FROM device_profiles WHERE uuid = $1"),
            };
            if in_use.bind(&value).fetch_optional(&mut draft.tx).await?.is_some() {
                return Err(Error::AlreadyExists(format!(
                    "a device profile with the {key} `{value}` already exists; choose another {key}"
                )));
            }
        }
        query(
            "INSERT INTO device_profiles (id, uuid, name, description, profile_groups, created_at)
             SELECT COALESCE(MAX(id), 0) + 1, $1, $2, $3, $4, $5 FROM device_profiles",
        )
        .bind(new.id.to_string())
        .bind(&new.name)
        .bind(&new.description)
        .bind(Group::shown_all(&new.groups).to_string())
        .bind(new.created_at)
        .execute(&mut draft.tx)
        .await?;
        let shown = json!({ "name": new.name, "groups": Group::shown_all(&new.groups) });
        draft.emit([event::of_record(EventKind::ProfileCreated, new.id.0, None, Some(shown))]);
        draft.commit().await
    }

    /// Deletes device profiles: all of them, or none on an error.
    ///
    /// # Errors
    /// Returns [`Error::NotFound`] when one does not exist, [`Error::Conflict`] when an accelerator request uses one,
    /// or the error of the database.
    pub async fn delete_device_profiles(&self, ids: &[DeviceProfileId]) -> Result<(), Error> {
        let mut draft = self.draft().await?;
        for id in ids {
            let missing = || Error::NotFound(format!("device profile {id}"));
            let number = number(&mut draft.tx, *id).await?.ok_or_else(missing)?;
            let requests = query("SELECT uuid FROM accelerator_requests WHERE profile_id = $1 ORDER BY id");
            if let Some(row) = requests.bind(number).fetch_optional(&mut draft.tx).await? {
                let request: String = row.try_get("uuid")?;
                return Err(Error::Conflict(format!(
                    "device profile {id} is used by accelerator request {request}; delete the request first"
                )));
            }
            let deleted = query("DELETE FROM device_profiles WHERE id = $1 RETURNING name").bind(number);
            let name: String = deleted.fetch_one(&mut draft.tx).await?.try_get("name")?;
            let shown = Some(json!({ "name": name }));
            draft.emit([event::of_record(EventKind::ProfileRemoved, id.0, shown, None)]);
        }
        draft.commit().await
    }
}
