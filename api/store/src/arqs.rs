//! The table `accelerator_requests`: Cyborg's accelerator requests, each for one device of a device profile.

use hotslot_model::assignment::{Assignment, AssignmentKind, Holder};
use hotslot_model::cyborg::{Arq, ArqState, ArqTarget};
use hotslot_model::event::{self, EventKind, What};
use hotslot_model::id::{ArqId, DeviceProfileId, ServerId};
use hotslot_model::quota::Resource;
use serde_json::json;
use uuid::Uuid;

use crate::assignments::{assignment, in_table};
use crate::clock::now;
use crate::columns::{RowReader, bad_column};
use crate::device_profiles::number;
use crate::error::Error;
use crate::pool::Store;
use crate::sql::{Row, query};
use crate::writer::Transaction;

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

/// Which accelerator requests are listed.
#[derive(Debug, Clone, Copy, Default)]
pub struct ArqFilter<'a> {
    /// Only those of this project.
    pub project: Option<&'a str>,
    /// Only those whose target is this server.
    pub server: Option<ServerId>,
    /// Only those that have been bound, or are on the way: neither Initial nor Unbound.
    pub begun: bool,
}

/// The statement that lists accelerator requests on a condition: `$1` is the place after which they begin, `$2` the largest
/// number of them, and `$3` is 1 for those that have begun.
macro_rules! listed {
    ($condition:literal) => {
        concat!(
            "SELECT accelerator_requests.*, device_profiles.name AS profile_name
             FROM accelerator_requests JOIN device_profiles ON device_profiles.id = profile_id
             WHERE ",
            $condition,
            " AND accelerator_requests.id > $1 AND ($3 = 0 OR state NOT IN ('Initial', 'Unbound'))
             ORDER BY accelerator_requests.id LIMIT $2"
        )
    };
}

/// Returns the state that a request has on record; `None` for no such request.
async fn state(tx: &mut Transaction, id: ArqId) -> Result<Option<String>, Error> {
    let row = query("SELECT state FROM accelerator_requests WHERE uuid = $1").bind(id.to_string());
    Ok(row.fetch_optional(tx).await?.map(|row| row.try_get("state")).transpose()?)
}

/// Returns the event for the state of a request; `None` when it stays as it is, or there is no such request.
fn of_state(id: ArqId, was: Option<String>, next: ArqState, reason: Option<&str>) -> Option<What> {
    let was = was.filter(|was| was != next.as_str())?;
    let (from, to) = (Some(was.into()), Some(next.as_str().into()));
    Some(What { reason: reason.map(str::to_owned), ..event::of_record(EventKind::ArqState, id.0, from, to) })
}

impl Store {
    /// Creates accelerator requests, one for each pair of group and resource class in `units`. Returns their ids.
    ///
    /// # Errors
    /// Returns [`Error::NotFound`] when the profile does not exist, [`Error::OverQuota`], or the error of the database.
    pub async fn create_arqs(
        &self,
        profile: DeviceProfileId,
        units: &[(usize, &str)],
        project: Option<&str>,
    ) -> Result<Vec<ArqId>, Error> {
        let mut draft = self.draft().await?;
        let no_profile = || Error::NotFound(format!("device profile {profile}"));
        let row = number(&mut draft.tx, profile).await?.ok_or_else(no_profile)?;
        let units_wanted = [(Resource::AcceleratorRequests, units.len() as i64)].into();
        self.charge(&mut draft.tx, project, &units_wanted).await?;
        let mut made = Vec::new();
        for (group, class) in units {
            let id = ArqId(Uuid::new_v4());
            query(
                "INSERT INTO accelerator_requests (id, uuid, profile_id, profile_group, resource_class, project_id,
                     state, created_at)
                 SELECT COALESCE(MAX(id), 0) + 1, $1, $2, $3, $4, $5, 'Initial', $6 FROM accelerator_requests",
            )
            .bind(id.to_string())
            .bind(row)
            .bind(i64::try_from(*group).unwrap_or(i64::MAX))
            .bind(*class)
            .bind(project)
            .bind(now())
            .execute(&mut draft.tx)
            .await?;
            let shown = json!({ "device_profile": profile, "resource_class": class, "project_id": project });
            draft.emit([event::of_record(EventKind::ArqCreated, id.0, None, Some(shown))]);
            made.push(id);
        }
        draft.commit().await?;
        Ok(made)
    }

    /// Returns at most `most` accelerator requests with their places in the order of creation, after a place.
    ///
    /// # Errors
    /// Returns the error of the database, or [`Error::Row`] for a row that cannot be read.
    pub async fn arqs(
        &self,
        filter: ArqFilter<'_>,
        after: i64,
        most: usize,
    ) -> Result<Vec<(i64, Arq)>, Error> {
        let server = filter.server.map(|server| server.to_string());
        let listed = |text: &'static str| {
            let query = query(text).bind(after).bind(i64::try_from(most).unwrap_or(i64::MAX));
            query.bind(i64::from(filter.begun))
        };
        // A condition that may be absent would keep the databases from using an index.
        let listed = match (filter.project, server) {
            (None, None) => listed(listed!("1 = 1")),
            (Some(project), None) => listed(listed!("project_id = $4")).bind(project),
            (None, Some(server)) => listed(listed!("instance_uuid = $4")).bind(server),
            // A server has few requests, and a project may have many: COALESCE leaves the index of the server.
            (Some(project), Some(server)) => {
                listed(listed!("instance_uuid = $4 AND COALESCE(project_id, '') = $5"))
                    .bind(server)
                    .bind(project)
            }
        };
        listed.all(&self.read, |row| Ok((row.try_get("id")?, arq(row)?))).await
    }

    /// Returns the place of an accelerator request in the order of creation; `None` when the project or server of the
    /// filter does not have it.
    ///
    /// # Errors
    /// Returns the error of the database.
    pub async fn place_of_arq(&self, filter: ArqFilter<'_>, id: ArqId) -> Result<Option<i64>, Error> {
        query(
            "SELECT id FROM accelerator_requests WHERE uuid = $1 AND COALESCE(project_id, '') = COALESCE($2, project_id, '')
                 AND COALESCE(instance_uuid, '') = COALESCE($3, instance_uuid, '')",
        )
        .bind(id.to_string())
        .bind(filter.project)
        .bind(filter.server.map(|server| server.to_string()))
        .one(&self.read, |row| Ok(row.try_get("id")?))
        .await
    }

    /// Returns the attachments and mediated devices that the accelerator requests in a range of places hold, of one
    /// project or of all. The range begins after `after` and ends with `last`.
    ///
    /// # Errors
    /// Returns the error of the database, or [`Error::Row`] for a row that cannot be read.
    pub async fn held_by_arqs(
        &self,
        project: Option<&str>,
        after: i64,
        last: i64,
    ) -> Result<Vec<Assignment>, Error> {
        let mut held = Vec::new();
        for kind in [AssignmentKind::Attachment, AssignmentKind::Mdev] {
            let rows = match project {
                None => query(in_table!(
                    kind,
                    "SELECT * FROM ",
                    " WHERE ended_at IS NULL AND holder IN (SELECT 'accelerator-request:' || uuid
                         FROM accelerator_requests WHERE id > $1 AND id <= $2 AND state NOT IN ('Initial', 'Unbound'))"
                )),
                Some(_) => query(in_table!(
                    kind,
                    "SELECT * FROM ",
                    " WHERE ended_at IS NULL AND holder IN (SELECT 'accelerator-request:' || uuid
                         FROM accelerator_requests WHERE id > $1 AND id <= $2 AND state NOT IN ('Initial', 'Unbound')
                             AND project_id = $3)"
                )),
            };
            let rows = rows.bind(after).bind(last);
            let rows = if let Some(project) = project { rows.bind(project) } else { rows };
            held.extend(rows.all(&self.read, assignment(kind)).await?);
        }
        Ok(held)
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
    /// Returns [`Error::Conflict`] when a request holds a device, [`Error::OverQuota`] when that project has too many
    /// already, or the error of the database.
    pub async fn begin_bind(&self, binds: &[(ArqId, ArqTarget, Option<String>)]) -> Result<(), Error> {
        let mut draft = self.draft().await?;
        for (id, target, project) in binds {
            draft.holds_nothing(Holder::AcceleratorRequest(*id)).await?;
            // From now on the request is for this server, and not for one that comes back with an earlier device.
            draft.no_longer_wanted(Holder::AcceleratorRequest(*id)).await?;
            let moves = query(
                "SELECT uuid FROM accelerator_requests WHERE uuid = $1 AND COALESCE(project_id, '') <> $2",
            );
            if let Some(project) = project
                && moves.bind(id.to_string()).bind(project).fetch_optional(&mut draft.tx).await?.is_some()
            {
                let one = [(Resource::AcceleratorRequests, 1)].into();
                self.charge(&mut draft.tx, Some(project), &one).await?;
            }
            let was = state(&mut draft.tx, *id).await?;
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
            let what = of_state(*id, was, ArqState::BindStarted, None);
            draft.emit(what.map(|what| What { server: Some(target.server), ..what }));
        }
        draft.commit().await
    }

    /// Records the state of an accelerator request.
    ///
    /// # Errors
    /// Returns the error of the database.
    pub async fn put_arq_state(&self, id: ArqId, next: ArqState, reason: Option<&str>) -> Result<(), Error> {
        let mut draft = self.draft().await?;
        let was = state(&mut draft.tx, id).await?;
        query(
            "UPDATE accelerator_requests SET state = $2, state_reason = $3, updated_at = $4 WHERE uuid = $1",
        )
        .bind(id.to_string())
        .bind(next.as_str())
        .bind(reason)
        .bind(now())
        .execute(&mut draft.tx)
        .await?;
        draft.emit(of_state(id, was, next, reason));
        draft.commit().await
    }

    /// Records that an accelerator request is unbound.
    ///
    /// # Errors
    /// Returns [`Error::Conflict`] when the request holds a device, or the error of the database.
    pub async fn unbind_arq(&self, id: ArqId) -> Result<(), Error> {
        let mut draft = self.draft().await?;
        draft.holds_nothing(Holder::AcceleratorRequest(id)).await?;
        draft.no_longer_wanted(Holder::AcceleratorRequest(id)).await?;
        let was = state(&mut draft.tx, id).await?;
        query(
            "UPDATE accelerator_requests SET state = 'Unbound', state_reason = NULL, hostname = NULL,
                 device_rp_uuid = NULL, instance_uuid = NULL, updated_at = $2
             WHERE uuid = $1",
        )
        .bind(id.to_string())
        .bind(now())
        .execute(&mut draft.tx)
        .await?;
        draft.emit(of_state(id, was, ArqState::Unbound, None));
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
        let was = state(&mut draft.tx, id).await?;
        query("DELETE FROM accelerator_requests WHERE uuid = $1")
            .bind(id.to_string())
            .execute(&mut draft.tx)
            .await?;
        draft.emit(was.map(|was| event::of_record(EventKind::ArqRemoved, id.0, Some(was.into()), None)));
        draft.commit().await
    }
}
