//! The table `accelerators`: named accelerators and their specs.

use hotslot_model::accelerator::{AccSpec, Accelerator};
use hotslot_model::assignment::{Assignment, AssignmentKind, Holder};
use hotslot_model::event::{self, EventKind};
use hotslot_model::id::{AcceleratorId, DeviceId, RequestId};
use hotslot_model::quota::Resource;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::assignments::{assignment, in_table};
use crate::clock::now;
use crate::columns::{RowReader, bad_column};
use crate::error::{Error, changed, not_found};
use crate::pool::Store;
use crate::sql::{Row, query};
use crate::writer::Transaction;

fn accelerator(row: &Row) -> Result<Accelerator, Error> {
    let columns = RowReader { table: "accelerators", id: row.try_get("uuid")?, row };
    let spec: Option<String> = columns.get("acc_specs")?;
    let bad = |error: &dyn std::fmt::Display| bad_column("accelerators", &columns.id, "acc_specs")(error);
    let spec = spec.map(|text| {
        let value: Value = serde_json::from_str(&text).map_err(|error| bad(&error))?;
        AccSpec::from_stored(&value).map_err(|error| bad(&error))
    });
    Ok(Accelerator {
        id: columns.parse("uuid")?,
        name: columns.get("name")?,
        spec: spec.transpose()?,
        generation: columns.get("generation")?,
        pinned: columns.get::<Option<i64>>("device_id")?.map(DeviceId),
        project: columns.get("project_id")?,
        created_at: columns.get("created_at")?,
        updated_at: columns.get("updated_at")?,
    })
}

impl Store {
    /// Returns all accelerators, in the order in which they were created.
    ///
    /// # Errors
    /// Returns the error of the database, or [`Error::Row`] for a row that cannot be read.
    pub async fn accelerators(&self) -> Result<Vec<Accelerator>, Error> {
        query("SELECT * FROM accelerators ORDER BY accelerator_id").all(&self.read, accelerator).await
    }

    /// Returns the accelerators of a project, in the order in which they were created.
    ///
    /// # Errors
    /// Returns the error of the database, or [`Error::Row`] for a row that cannot be read.
    pub async fn accelerators_of(&self, project: &str) -> Result<Vec<Accelerator>, Error> {
        query("SELECT * FROM accelerators WHERE project_id = $1 ORDER BY accelerator_id")
            .bind(project)
            .all(&self.read, accelerator)
            .await
    }

    /// Returns what the accelerators of a project hold.
    ///
    /// # Errors
    /// Returns the error of the database, or [`Error::Row`] for a row that cannot be read.
    pub async fn held_by_accelerators_of(&self, project: &str) -> Result<Vec<Assignment>, Error> {
        let mut held = Vec::new();
        for kind in [AssignmentKind::Attachment, AssignmentKind::Binding, AssignmentKind::Mdev] {
            let rows = query(in_table!(
                kind,
                "SELECT * FROM ",
                " WHERE ended_at IS NULL
                     AND holder IN (SELECT 'accelerator:' || uuid FROM accelerators WHERE project_id = $1)
                 ORDER BY created_at, device_id, id"
            ));
            held.extend(rows.bind(project).all(&self.read, assignment(kind)).await?);
        }
        Ok(held)
    }

    /// Returns one accelerator.
    ///
    /// # Errors
    /// Returns the error of the database, or [`Error::Row`] for a row that cannot be read.
    pub async fn accelerator(&self, id: AcceleratorId) -> Result<Option<Accelerator>, Error> {
        query("SELECT * FROM accelerators WHERE uuid = $1")
            .bind(id.to_string())
            .one(&self.read, accelerator)
            .await
    }

    /// Whether an accelerator has this name.
    ///
    /// # Errors
    /// Returns the error of the database.
    pub async fn has_accelerator_called(&self, name: &str) -> Result<bool, Error> {
        let row = query("SELECT uuid FROM accelerators WHERE name = $1").bind(name);
        Ok(row.fetch_optional(&self.read).await?.is_some())
    }

    /// Whether a UUID is, or was, the UUID of a device.
    ///
    /// # Errors
    /// Returns the error of the database.
    pub async fn is_device(&self, uuid: Uuid) -> Result<bool, Error> {
        let row = query("SELECT id FROM pci_devices WHERE uuid = $1").bind(uuid.hyphenated().to_string());
        Ok(row.fetch_optional(&self.read).await?.is_some())
    }

    /// Returns the accelerator or accelerator request that holds a device, or a mediated device of it. Returns `None`
    /// when there is none.
    ///
    /// # Errors
    /// Returns the error of the database, or [`Error::Row`] for a row that cannot be read.
    pub async fn holder_of(&self, device: DeviceId) -> Result<Option<Holder>, Error> {
        let row = query(
            "SELECT id, holder FROM attachments WHERE device_id = $1 AND ended_at IS NULL
             UNION ALL SELECT id, holder FROM bindings WHERE device_id = $1 AND ended_at IS NULL
             UNION ALL SELECT id, holder FROM mdevs WHERE device_id = $1 AND ended_at IS NULL",
        );
        let Some(row) = row.bind(device.0).fetch_optional(&self.read).await? else { return Ok(None) };
        let columns =
            RowReader { table: "attachments, bindings and mdevs", id: row.try_get("id")?, row: &row };
        columns.parse_opt("holder")
    }

    /// Returns the number of devices that one request reserved, including those that it no longer has.
    ///
    /// # Errors
    /// Returns the error of the database.
    pub async fn rows_of_request(&self, request: RequestId) -> Result<usize, Error> {
        let rows = query(
            "SELECT (SELECT COUNT(*) FROM attachments WHERE request_id = $1)
                 + (SELECT COUNT(*) FROM bindings WHERE request_id = $1)
                 + (SELECT COUNT(*) FROM mdevs WHERE request_id = $1) AS rows",
        );
        let rows: i64 = rows.bind(request.to_string()).fetch_one(&self.read).await?.try_get("rows")?;
        Ok(usize::try_from(rows).unwrap_or_default())
    }

    /// Creates an accelerator. If a device has or had the UUID `id`, the accelerator is fixed to that device.
    ///
    /// # Errors
    /// Returns [`Error::AlreadyExists`] when its name or id is in use, [`Error::OverQuota`], or the error of the database.
    pub async fn create_accelerator(
        &self,
        name: &str,
        id: AcceleratorId,
        project: Option<&str>,
    ) -> Result<Accelerator, Error> {
        let new = AccSpec::default();
        let mut draft = self.draft().await?;
        self.charge(&mut draft.tx, project, &[(Resource::Accelerators, 1)].into()).await?;
        let device = query("SELECT id FROM pci_devices WHERE uuid = $1").bind(id.to_string());
        let pinned = device
            .fetch_optional(&mut draft.tx)
            .await?
            .map(|row| row.try_get("id").map(DeviceId))
            .transpose()?;
        let last = query("SELECT COALESCE(MAX(accelerator_id), 0) AS last FROM accelerators")
            .fetch_one(&mut draft.tx)
            .await?;
        let number: i64 = last.try_get("last")?;
        expect_unused(&mut draft.tx, name, id).await?;
        let row = query(
            "INSERT INTO accelerators (accelerator_id, uuid, name, device_type, acc_type, acc_capability, remotable,
                 generation, device_id, project_id, created_at)
             VALUES ($1, $2, $3, $4, $5, $6, $7, 0, $8, $9, $10) RETURNING *",
        )
        .bind(number + 1)
        .bind(id.to_string())
        .bind(name)
        .bind(&new.device_type)
        .bind(&new.acc_type)
        .bind(Value::Object(new.capability).to_string())
        .bind(new.remotable)
        .bind(pinned.map(|device| device.0))
        .bind(project)
        .bind(now())
        .fetch_one(&mut draft.tx)
        .await?;
        let made = accelerator(&row)?;
        let shown = json!({ "name": name, "project_id": project });
        draft.emit([event::of_record(EventKind::AcceleratorCreated, id.0, None, Some(shown))]);
        draft.commit().await?;
        Ok(made)
    }

    /// Replaces the spec of an accelerator if its generation is still `expected`, or in any case when `expected` is
    /// `None`.
    ///
    /// # Errors
    /// Returns [`Error::OverQuota`], [`Error::Conflict`] when the generation is another one, [`Error::NoAccelerator`] when the accelerator
    /// does not exist, or the error of the database.
    pub async fn put_acc_spec(
        &self,
        id: AcceleratorId,
        spec: &AccSpec,
        expected: Option<i64>,
    ) -> Result<Accelerator, Error> {
        let mut draft = self.draft().await?;
        let was = query(
            "SELECT project_id, CAST(COALESCE(OCTET_LENGTH(acc_specs), 0) AS BIGINT) AS bytes FROM accelerators
             WHERE uuid = $1",
        );
        if let Some(was) = was.bind(id.to_string()).fetch_optional(&mut draft.tx).await? {
            let (project, bytes): (Option<String>, i64) = (was.try_get("project_id")?, was.try_get("bytes")?);
            let more = spec.stored().to_string().len() as i64 - bytes;
            self.charge(&mut draft.tx, project.as_deref(), &[(Resource::SpecBytes, more)].into()).await?;
        }
        let row = query(
            "UPDATE accelerators SET acc_specs = $2, device_type = $3, acc_type = $4, acc_capability = $5,
                 vendor_id = $6, product_id = $7, remotable = $8, generation = generation + 1, updated_at = $9
             WHERE uuid = $1 AND generation = COALESCE($10, generation) RETURNING *",
        )
        .bind(id.to_string())
        .bind(spec.stored().to_string())
        .bind(&spec.device_type)
        .bind(&spec.acc_type)
        .bind(Value::Object(spec.capability.clone()).to_string())
        .bind(spec.vendor_id.map(|id| id.to_string()))
        .bind(spec.product_id.map(|id| id.to_string()))
        .bind(spec.remotable)
        .bind(now())
        .bind(expected)
        .fetch_optional(&mut draft.tx)
        .await?;
        let Some(row) = row else {
            draft.give_way().await;
            return Err(match self.accelerator(id).await? {
                None => not_found(id),
                Some(now) => changed(id, now.generation),
            });
        };
        let put = accelerator(&row)?;
        let shown = json!({ "generation": put.generation, "acc_specs": spec.stored() });
        draft.emit([event::of_record(EventKind::AcceleratorChanged, id.0, None, Some(shown))]);
        draft.commit().await?;
        Ok(put)
    }

    /// Records that an accelerator was released. If a server comes back later with a device that the accelerator held,
    /// the device is not adopted.
    ///
    /// # Errors
    /// Returns the error of the database.
    pub async fn release_accelerator(&self, id: AcceleratorId) -> Result<(), Error> {
        let mut draft = self.draft().await?;
        if draft.no_longer_wanted(Holder::Accelerator(id)).await? {
            draft.emit([event::of_record(EventKind::AcceleratorReleased, id.0, None, None)]);
        }
        draft.commit().await
    }

    /// Deletes an accelerator. Returns false when it does not exist.
    ///
    /// # Errors
    /// Returns [`Error::Conflict`] when it holds devices, or the error of the database.
    pub async fn purge_accelerator(&self, id: AcceleratorId) -> Result<bool, Error> {
        let mut draft = self.draft().await?;
        draft.holds_nothing(Holder::Accelerator(id)).await?;
        draft.no_longer_wanted(Holder::Accelerator(id)).await?;
        let deleted = query("DELETE FROM accelerators WHERE uuid = $1 RETURNING name").bind(id.to_string());
        let deleted = deleted.fetch_optional(&mut draft.tx).await?;
        let name: Option<String> = deleted.map(|row| row.try_get("name")).transpose()?;
        let was_there = name.is_some();
        draft.emit(name.map(|name| {
            event::of_record(EventKind::AcceleratorRemoved, id.0, Some(json!({ "name": name })), None)
        }));
        draft.commit().await?;
        Ok(was_there)
    }
}

/// Checks that no accelerator has this name or id.
///
/// # Errors
/// [`Error::AlreadyExists`]; the error of the database.
async fn expect_unused(tx: &mut Transaction, name: &str, id: AcceleratorId) -> Result<(), Error> {
    for (key, value) in [("name", name.to_owned()), ("uuid", id.to_string())] {
        let in_use = match key {
            "name" => query("SELECT uuid FROM accelerators WHERE name = $1"),
            _ => query("SELECT uuid FROM accelerators WHERE uuid = $1"),
        };
        if let Some(row) = in_use.bind(&value).fetch_optional(&mut *tx).await? {
            let other: String = row.try_get("uuid")?;
            return Err(Error::AlreadyExists(format!(
                "accelerator {other} already has the {key} `{value}`; choose another {key}"
            )));
        }
    }
    Ok(())
}
