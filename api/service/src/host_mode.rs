//! What may be changed on a host: the configuration can make it read-only, and an administrator can freeze or drain it.
//!
//! Only requests are refused. Whatever has begun is completed or undone, and what guests and other programs do is
//! followed as always.

use std::collections::BTreeMap;

use hotslot_model::host_mode::{HostChange, HostMode, Restriction};
use hotslot_model::id::HypervisorId;

use crate::config::HypervisorMode;
use crate::error::Error;
use crate::host::Host;
use crate::hosts::Hosts;

impl Hosts {
    /// Returns why not everything may be changed on a host; `None` when it may.
    ///
    /// # Errors
    /// Errors of the database.
    pub async fn restriction(&self, host: &Host) -> Result<Option<Restriction>, Error> {
        match host.mode {
            HypervisorMode::ReadOnly => Ok(Some(Restriction::by_configuration())),
            HypervisorMode::Normal => Ok(self.store.restriction(host.row.id).await?),
        }
    }

    /// Returns the hosts on which not everything may be changed.
    ///
    /// # Errors
    /// Errors of the database.
    pub async fn restrictions(&self) -> Result<BTreeMap<HypervisorId, Restriction>, Error> {
        let mut all = self.store.restrictions().await?;
        let read_only = self.iter().filter(|host| host.mode == HypervisorMode::ReadOnly);
        all.extend(read_only.map(|host| (host.row.id, Restriction::by_configuration())));
        Ok(all)
    }

    /// Checks that a change of a host may be made for a request, before the request waits for anything. Whatever is
    /// recorded when it begins is checked again in the transaction of the record; what is not, after the wait
    /// ([`turn_at`](crate::assignment::Assignments::turn_at)).
    ///
    /// # Errors
    /// [`Error::Restricted`] with who decided that it may not, and what to do; errors of the database.
    pub(crate) async fn expect_open(&self, host: &Host, change: HostChange) -> Result<(), Error> {
        let restriction = self.restriction(host).await?;
        let refusal = restriction.and_then(|restriction| {
            Some(Error::Restricted {
                mode: restriction.mode,
                reason: restriction.refusal(&host.name, change)?,
            })
        });
        refusal.map_or(Ok(()), Err)
    }

    /// Returns why a change of a host is refused now; `None` when it may be made.
    ///
    /// # Errors
    /// Errors of the database.
    pub async fn refusal(&self, host: &Host, change: HostChange) -> Result<Option<String>, Error> {
        match self.expect_open(host, change).await {
            Ok(()) => Ok(None),
            Err(Error::Restricted { reason, .. }) => Ok(Some(reason)),
            Err(error) => Err(error),
        }
    }

    /// Sets what may be changed on a host, from now on and also after a restart.
    ///
    /// # Errors
    /// [`Error::Restricted`] when the configuration decides it; errors of the database.
    pub async fn set_mode(
        &self,
        host: &Host,
        mode: HostMode,
        reason: Option<&str>,
    ) -> Result<Option<Restriction>, Error> {
        if host.mode == HypervisorMode::ReadOnly {
            let reason = Restriction::by_configuration().refusal(&host.name, HostChange::Other);
            return Err(Error::Restricted { mode: HostMode::ReadOnly, reason: reason.unwrap_or_default() });
        }
        let now = self.store.set_host_mode(host.row.id, mode, reason).await?;
        // What waited for that, such as a scrub.
        host.queue_rebind();
        tracing::warn!(host = %host.name, "host {} is {mode} now", host.name);
        Ok(now)
    }
}
