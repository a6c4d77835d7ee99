//! The table `accelerator_requests`: Cyborg's accelerator requests, each for one device of a device profile.

use hotslot_model::assignment::Holder;
use hotslot_model::cyborg::{Arq, ArqState, ArqTarget};
use hotslot_model::id::{ArqId, DeviceProfileId};
use uuid::Uuid;

use crate::clock::now;
use crate::columns::{RowReader, bad_column};
use crate::device_profiles::number;
use crate::error::Error;
use crate::pool::Store;
use crate::sql::{Row, query};

const TABLE: &str = "accelerator_requests";

fn arq(row: &Row) -> Result<Arq, Error> {
    let columns = RowReader { table: TABLE, id: row.try_get("uuid")?, row };
    let hostname: Option<String> = columns.get("hostname")?;
    let (rp, server) = (columns.parse_opt("device_rp_uuid")?, columns.parse_opt("instance_uuid")?);
    let group: i64 = columns.get("profile_group")?;
    Ok(Arq {
        id: columns.parse("uuid")?,
        profile: columns.get("profile_name")?,
        group: usize::try_from(group)
            .map_err(|error| bad_column(TABLE, &columns.id, "profile_group")(&error))?,
        class: columns.get("resource_class")?,
        project: columns.get("project_id")?,
        state: columns.parse("state")?,
        reason: columns.get("state_reason")?,
        target: hostname.zip(rp).zip(server).map(|((hostname, rp), server)| ArqTarget {
            hostname,
            rp,
            server,
        }),
        created_at: columns.get("created_at")?,
        updated_at: columns.get("updated_at")?,
    })
}

impl Store {
    /// Creates accelerator requests, one for each pair of group and resource class in `units`. Returns their ids.
    ///
    /// # Errors
    /// Returns [`Error::NotFound`] when the profile does not exist, or the error of the database.
    pub async fn create_arqs(
        &self,
        profile: DeviceProfileId,
        units: &[(usize, &str)],
        project: Option<&str>,
    ) -> Result<Vec<ArqId>, Error> {
        let (_turn, mut tx) = self.begin().await?;
        let no_profile = || Error::NotFound(format!("device profile {profile}"));
        let profile = number(&mut tx, profile).await?.ok_or_else(no_profile)?;
        let mut made = Vec::new();
        for (group, class) in units {
            let id = ArqId(Uuid::new_v4());
            query(
                "INSERT INTO accelerator_requests (id, uuid, profile_id, profile_group, resource_class, project_id,
                     state, created_at)
                 SELECT COALESCE(MAX(id), 0) + 1, $1, $2, $3, $4, $5, 'Initial', $6 FROM accelerator_requests",
            )
            .bind(id.to_string())
            .bind(profile)
            .bind(i64::try_from(*group).unwrap_or(i64::MAX))
            .bind(*class)
            .bind(project)
            .bind(now())
            .execute(&mut tx)
            .await?;
            made.push(id);
        }
        tx.commit().await?;
        Ok(made)
    }

    /// Returns all accelerator requests, in the order in which they were created.
    ///
    /// # Errors
    /// Returns the error of the database, or [`Error::Row`] for a row that cannot be read.
    pub async fn arqs(&self) -> Result<Vec<Arq>, Error> {
        query(
            "SELECT accelerator_requests.*, device_profiles.name AS profile_name
             FROM accelerator_requests JOIN device_profiles ON device_profiles.id = profile_id
             ORDER BY accelerator_requests.id",
        )
        .all(&self.read, arq)
        .await
    }

    /// Returns one accelerator request.
    ///
    /// # Errors
    /// Returns the error of the database, or [`Error::Row`] for a row that cannot be read.
    pub async fn arq(&self, id: ArqId) -> Result<Option<Arq>, Error> {
        query(
            "SELECT accelerator_requests.*, device_profiles.name AS profile_name
             FROM accelerator_requests JOIN device_profiles ON device_profiles.id = profile_id
             WHERE accelerator_requests.uuid = $1",
        )
        .bind(id.to_string())
        .one(&self.read, arq)
        .await
    }

    /// Records that accelerator requests are being bound: all of them, or none on an error. A project in `binds`
    /// becomes the owner of the request.
    ///
    /// # Errors
    /// Returns [`Error::Conflict`] when a request holds a device, or the error of the database.
    pub async fn begin_bind(&self, binds: &[(ArqId, ArqTarget, Option<String>)]) -> Result<(), Error> {
        let mut draft = self.draft().await?;
        for (id, target, project) in binds {
            draft.holds_nothing(Holder::AcceleratorRequest(*id)).await?;
            // From now on the request is for this server, and not for one that comes back with an earlier device.
            draft.no_longer_wanted(Holder::AcceleratorRequest(*id)).await?;
            query(
                "UPDATE accelerator_requests SET state = 'BindStarted', state_reason = NULL, hostname = $2,
                     device_rp_uuid = $3, instance_uuid = $4, project_id = COALESCE($5, project_id), updated_at = $6
                 WHERE uuid = $1",
            )
            .bind(id.to_string())
            .bind(&target.hostname)
            .bind(target.rp.to_string())
            .bind(target.server.to_string())
            .bind(project)
            .bind(now())
            .execute(&mut draft.tx)
            .await?;
        }
        draft.commit().await
    }

    /// Records the state of an accelerator request.
    ///
    /// # Errors
    /// Returns the error of the database.
    pub async fn put_arq_state(&self, id: ArqId, state: ArqState, reason: Option<&str>) -> Result<(), Error> {
        let (_turn, mut tx) = self.begin().await?;
        query(
            "UPDATE accelerator_requests SET state = $2, state_reason = $3, updated_at = $4 WHERE uuid = $1",
        )
        .bind(id.to_string())
        .bind(state.as_str())
        .bind(reason)
        .bind(now())
        .execute(&mut tx)
        .await?;
        Ok(tx.commit().await?)
    }

    /// Records that an accelerator request is unbound.
    ///
    /// # Errors
    /// Returns [`Error::Conflict`] when the request holds a device, or the error of the database.
    pub async fn unbind_arq(&self, id: ArqId) -> Result<(), Error> {
        let mut draft = self.draft().await?;
        draft.holds_nothing(Holder::AcceleratorRequest(id)).await?;
        draft.no_longer_wanted(Holder::AcceleratorRequest(id)).await?;
        query(
            "UPDATE accelerator_requests SET state = 'Unbound', state_reason = NULL, hostname = NULL,
                 device_rp_uuid = NULL, instance_uuid = NULL, updated_at = $2
             WHERE uuid = $1",
        )
        .bind(id.to_string())
        .bind(now())
        .execute(&mut draft.tx)
        .await?;
        draft.commit().await
    }

    /// Deletes an accelerator request.
    ///
    /// # Errors
    /// Returns [`Error::Conflict`] when the request holds a device, or the error of the database.
    pub async fn delete_arq(&self, id: ArqId) -> Result<(), Error> {
        let mut draft = self.draft().await?;
        draft.holds_nothing(Holder::AcceleratorRequest(id)).await?;
        draft.no_longer_wanted(Holder::AcceleratorRequest(id)).await?;
        query("DELETE FROM accelerator_requests WHERE uuid = $1")
            .bind(id.to_string())
            .execute(&mut draft.tx)
            .await?;
        draft.commit().await
    }
}
