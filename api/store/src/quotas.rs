//! The table `quotas`: the limits that were set for projects, and how much of each resource a project uses.
//!
//! A limit is checked in the transaction that writes what it limits. Only one transaction writes at a time, on PostgreSQL
//! across all processes too, so concurrent requests cannot exceed it together.

use std::collections::BTreeMap;

use hotslot_model::event::{self, EventKind, What};
use hotslot_model::quota::{Exceeded, Limit, Limits, Resource, Usage};
use serde_json::json;

use crate::clock::now;
use crate::columns::{RowReader, bad_column};
use crate::error::Error;
use crate::executor::Executor;
use crate::pool::Store;
use crate::sql::{Query, Row, query};
use crate::writer::Transaction;

const TABLE: &str = "quotas";

fn limit(row: &Row) -> Result<Option<(Resource, Limit)>, Error> {
    let columns = RowReader { table: TABLE, id: row.try_get("project_id")?, row };
    // A later version of hotslot may have written a resource that this one does not know.
    let Ok(resource) = columns.get::<String>("resource")?.parse() else { return Ok(None) };
    let limit = Limit::new(columns.get("hard_limit")?);
    Ok(Some((resource, limit.map_err(|error| bad_column(TABLE, &columns.id, "hard_limit")(&error))?)))
}

/// Returns the statement that counts a resource of a project: its first value.
fn counted(resource: &Resource) -> Query {
    match resource {
        Resource::Attachments => query(
            "SELECT COUNT(*) AS used, COALESCE(SUM(CASE WHEN state = 'attaching' THEN 1 ELSE 0 END), 0) AS reserved
             FROM (SELECT state FROM attachments WHERE project_id = $1 AND ended_at IS NULL
                   UNION ALL SELECT state FROM mdevs WHERE project_id = $1 AND ended_at IS NULL) AS open",
        ),
        Resource::AttachmentsOf(_) => query(
            "SELECT COUNT(*) AS used, COALESCE(SUM(CASE WHEN state = 'attaching' THEN 1 ELSE 0 END), 0) AS reserved
             FROM attachments WHERE project_id = $1 AND ended_at IS NULL AND alias_name = $2",
        ),
        Resource::Accelerators => query(
            "SELECT COUNT(*) AS used, CAST(0 AS BIGINT) AS reserved FROM accelerators WHERE project_id = $1",
        ),
        Resource::AcceleratorRequests => query(
            "SELECT COUNT(*) AS used, CAST(0 AS BIGINT) AS reserved
             FROM accelerator_requests WHERE project_id = $1",
        ),
        Resource::SpecBytes => query(
            "SELECT CAST(COALESCE(SUM(OCTET_LENGTH(acc_specs)), 0) AS BIGINT) AS used, CAST(0 AS BIGINT) AS reserved
             FROM accelerators WHERE project_id = $1",
        ),
        Resource::IdempotencyKeys => query(
            "SELECT COUNT(*) AS used, CAST(0 AS BIGINT) AS reserved FROM idempotency_keys WHERE project_id = $1",
        ),
    }
}

async fn usage(on: Executor<'_>, project: &str, resource: &Resource) -> Result<Usage, Error> {
    let counted = counted(resource).bind(project);
    let row = match resource {
        Resource::AttachmentsOf(alias) => counted.bind(alias),
        Resource::Attachments
        | Resource::Accelerators
        | Resource::AcceleratorRequests
        | Resource::SpecBytes
        | Resource::IdempotencyKeys => counted,
    };
    let row = row.fetch_one(on).await?;
    let (used, reserved): (i64, i64) = (row.try_get("used")?, row.try_get("reserved")?);
    Ok(Usage { in_use: used - reserved, reserved })
}

async fn limits_of(on: Executor<'_>, project: &str) -> Result<Limits, Error> {
    let rows = query("SELECT * FROM quotas WHERE project_id = $1").bind(project).all(on, limit).await?;
    Ok(Limits(rows.into_iter().flatten().collect()))
}

/// Returns the first of the wanted resources of which a project would use more than its limit.
async fn exceeded(
    mut on: Executor<'_>,
    defaults: &Limits,
    project: &str,
    wanted: &BTreeMap<Resource, i64>,
) -> Result<Option<Exceeded>, Error> {
    let own = limits_of(on.again(), project).await?;
    for (resource, requested) in wanted {
        let limit = own.get(resource).or(defaults.get(resource)).unwrap_or(Limit::UNLIMITED);
        if limit == Limit::UNLIMITED {
            continue;
        }
        let Usage { in_use, reserved } = usage(on.again(), project, resource).await?;
        if !limit.admits(in_use + reserved, *requested) {
            let (project, resource) = (project.to_owned(), resource.clone());
            let (requested, used) = (*requested, in_use + reserved);
            return Ok(Some(Exceeded { project, resource, requested, used, limit }));
        }
    }
    Ok(None)
}

/// Returns the event for the limits of a project; `None` when they are as before.
fn changed(project: &str, before: &Limits, after: &Limits) -> Option<What> {
    let shown = |limits: &Limits| {
        let limits: BTreeMap<_, _> =
            limits.0.iter().map(|(resource, limit)| (resource.to_string(), limit.get())).collect();
        Some(json!({ "project": project, "limits": limits }))
    };
    (before != after).then(|| event::of_kind(EventKind::QuotaChanged, shown(before), shown(after)))
}

impl Store {
    /// Checks in a transaction that a project may use more of some resources. What belongs to no project is not limited.
    ///
    /// # Errors
    /// [`Error::OverQuota`], or the error of the database. The caller must then drop the transaction.
    pub(crate) async fn charge(
        &self,
        tx: &mut Transaction,
        project: Option<&str>,
        wanted: &BTreeMap<Resource, i64>,
    ) -> Result<(), Error> {
        let Some(project) = project else { return Ok(()) };
        match exceeded(tx.into(), &self.default_limits, project, wanted).await? {
            Some(exceeded) => Err(Error::OverQuota(Box::new(exceeded))),
            None => Ok(()),
        }
    }

    /// Returns which quota a request would exceed now; `None` when it would exceed none.
    ///
    /// # Errors
    /// Returns the error of the database, or [`Error::Row`] for a row that cannot be read.
    pub async fn would_exceed(
        &self,
        project: &str,
        wanted: &BTreeMap<Resource, i64>,
    ) -> Result<Option<Exceeded>, Error> {
        exceeded((&self.read).into(), &self.default_limits, project, wanted).await
    }

    /// The limits of projects for which none were set.
    pub fn default_limits(&self) -> &Limits {
        &self.default_limits
    }

    /// Returns the limits that were set for a project.
    ///
    /// # Errors
    /// Returns the error of the database, or [`Error::Row`] for a row that cannot be read.
    pub async fn limits_of(&self, project: &str) -> Result<Limits, Error> {
        limits_of((&self.read).into(), project).await
    }

    /// Returns how much of a resource a project uses.
    ///
    /// # Errors
    /// Returns the error of the database.
    pub async fn usage(&self, project: &str, resource: &Resource) -> Result<Usage, Error> {
        usage((&self.read).into(), project, resource).await
    }

    /// Sets limits of a project. The limits of the other resources stay as they are.
    ///
    /// # Errors
    /// Returns the error of the database. Then nothing was changed.
    pub async fn set_limits(&self, project: &str, limits: &Limits) -> Result<(), Error> {
        let mut draft = self.draft().await?;
        let before = limits_of((&mut draft.tx).into(), project).await?;
        for (resource, limit) in &limits.0 {
            query(
                "INSERT INTO quotas (project_id, resource, hard_limit, updated_at) VALUES ($1, $2, $3, $4)
                 ON CONFLICT (project_id, resource) DO UPDATE SET hard_limit = excluded.hard_limit,
                     updated_at = excluded.updated_at",
            )
            .bind(project)
            .bind(resource.to_string())
            .bind(limit.get())
            .bind(now())
            .execute(&mut draft.tx)
            .await?;
        }
        let after = limits_of((&mut draft.tx).into(), project).await?;
        draft.emit(changed(project, &before, &after));
        draft.commit().await
    }

    /// Removes the limits that were set for a project, so that the defaults apply again.
    ///
    /// # Errors
    /// Returns the error of the database. Then nothing was changed.
    pub async fn reset_limits(&self, project: &str) -> Result<(), Error> {
        let mut draft = self.draft().await?;
        let before = limits_of((&mut draft.tx).into(), project).await?;
        query("DELETE FROM quotas WHERE project_id = $1").bind(project).execute(&mut draft.tx).await?;
        draft.emit(changed(project, &before, &Limits::default()));
        draft.commit().await
    }
}
