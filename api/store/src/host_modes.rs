//! The table `host_modes`: the hosts on which not everything may be changed.

use std::collections::BTreeMap;

use hotslot_model::event::{self, EventKind, What};
use hotslot_model::host_mode::{HostChange, HostMode, Restriction};
use hotslot_model::id::HypervisorId;
use serde_json::{Value, json};

use crate::actor;
use crate::clock::now;
use crate::columns::RowReader;
use crate::draft::DeviceTransaction;
use crate::error::Error;
use crate::executor::Executor;
use crate::pool::Store;
use crate::sql::{Row, query};

fn restriction(row: &Row) -> Result<(HypervisorId, Restriction), Error> {
    let id: i64 = row.try_get("hypervisor_id")?;
    let columns = RowReader { table: "host_modes", id: id.to_string(), row };
    let (by, since) = (Some(columns.get("set_by")?), Some(columns.get("since")?));
    Ok((
        HypervisorId(id),
        Restriction { mode: columns.parse("mode")?, by, reason: columns.get("reason")?, since },
    ))
}

async fn restriction_of(on: Executor<'_>, host: HypervisorId) -> Result<Option<Restriction>, Error> {
    let rows = query("SELECT * FROM host_modes WHERE hypervisor_id = $1").bind(host.0).all(on, restriction);
    Ok(rows.await?.pop().map(|(_, restriction)| restriction))
}

/// Returns the value of an event: what may be changed on a host, and the reason.
fn shown(restriction: Option<&Restriction>) -> Option<Value> {
    let mode = restriction.map_or(HostMode::Open, |restriction| restriction.mode);
    Some(json!({ "mode": mode, "reason": restriction.and_then(|restriction| restriction.reason.as_deref()) }))
}

impl DeviceTransaction<'_> {
    /// Checks that a change of a host may begin with this transaction. Modes are set in transactions too, so that nothing
    /// begins after a change of the mode was committed.
    ///
    /// # Errors
    /// Returns [`Error::Restricted`], or the error of the database.
    pub(super) async fn expect_open(&mut self, host: HypervisorId, change: HostChange) -> Result<(), Error> {
        let Some(restriction) = restriction_of((&mut self.tx).into(), host).await? else { return Ok(()) };
        let row = query("SELECT name FROM hypervisors WHERE id = $1").bind(host.0);
        let name: String = row.fetch_one(&mut self.tx).await?.try_get("name")?;
        match restriction.refusal(&name, change) {
            None => Ok(()),
            Some(reason) => Err(Error::Restricted { mode: restriction.mode, reason }),
        }
    }
}

impl Store {
    /// Returns what may be changed on a host; `None` for everything. It is read from the database, because another
    /// process may have changed it.
    ///
    /// # Errors
    /// Returns the error of the database, or [`Error::Row`] for a row that cannot be read.
    pub async fn restriction(&self, host: HypervisorId) -> Result<Option<Restriction>, Error> {
        restriction_of((&self.read).into(), host).await
    }

    /// Returns the hosts on which not everything may be changed.
    ///
    /// # Errors
    /// As [`restriction`](Self::restriction).
    pub async fn restrictions(&self) -> Result<BTreeMap<HypervisorId, Restriction>, Error> {
        let rows = query("SELECT * FROM host_modes").all(&self.read, restriction).await?;
        Ok(rows.into_iter().collect())
    }

    /// Sets what may be changed on a host. The current actor is recorded as who decided it. Setting what is set already
    /// changes nothing.
    ///
    /// # Errors
    /// Returns the error of the database. Then nothing was changed.
    pub async fn set_host_mode(
        &self,
        host: HypervisorId,
        mode: HostMode,
        reason: Option<&str>,
    ) -> Result<Option<Restriction>, Error> {
        let mut draft = self.draft().await?;
        let before = restriction_of((&mut draft.tx).into(), host).await?;
        let was = before.as_ref().map(|before| (before.mode, before.reason.as_deref()));
        if was == (mode != HostMode::Open).then_some((mode, reason)) {
            return Ok(before);
        }
        query("DELETE FROM host_modes WHERE hypervisor_id = $1").bind(host.0).execute(&mut draft.tx).await?;
        if mode != HostMode::Open {
            let actor = actor::current();
            let user = actor.user.as_ref().map(|user| format!("user {} ({})", user.name, user.id));
            query(
                "INSERT INTO host_modes (hypervisor_id, mode, set_by, reason, since) VALUES ($1, $2, $3, $4, $5)",
            )
            .bind(host.0)
            .bind(mode.as_str())
            .bind(user.unwrap_or_else(|| actor.who.clone()))
            .bind(reason)
            .bind(now())
            .execute(&mut draft.tx)
            .await?;
        }
        let after = restriction_of((&mut draft.tx).into(), host).await?;
        let changed = event::of_kind(EventKind::HostMode, shown(before.as_ref()), shown(after.as_ref()));
        draft.emit(Some(What { hypervisor: Some(host), ..changed }));
        draft.commit().await?;
        Ok(after)
    }
}
