//! Mediated devices about which host and records disagree: removes stray ones from the host, and creates missing ones
//! again.

use std::collections::BTreeSet;
use std::sync::Arc;

use hotslot_driver::domain::UserAlias;
use hotslot_driver::hotplug::{self, Presence};
use hotslot_driver::hypervisor::ErrorKind;
use hotslot_driver::mdev;
use hotslot_model::assignment::{Assignment, Mdev, NOT_IN_SERVER, Observation, State};
use hotslot_model::host_mode::HostChange;
use hotslot_model::id::ServerId;
use hotslot_store::actor;

use super::assignments::Assignments;
use super::engine::{Release, ReleaseOutcome};
use crate::error::Error;
use crate::host::Host;

impl Assignments {
    /// Removes a mediated device that no domain has from the host, and records `seen`. When the device was not removed,
    /// the row keeps its state and gets the reason: nobody has requested a detach, and a server that comes back keeps
    /// the device.
    ///
    /// # Errors
    /// Errors of the hypervisor and of the database.
    pub(super) async fn take_away(
        &self,
        host: &Host,
        row: &Assignment,
        seen: Observation,
    ) -> Result<Release, Error> {
        let (key, parent) = (row.key(), self.store.device(row.device()));
        let parent = parent.ok_or_else(|| Error::Internal(format!("the parent of {key} is lost")))?;
        match self.destroy(host, key.id, parent.facts.address).await {
            ReleaseOutcome::Gone { .. } => self.settle(key, seen).await.map(|_| Release::Ended),
            ReleaseOutcome::Refused { reason }
            | ReleaseOutcome::Pending { reason }
            | ReleaseOutcome::LeftOnHost { reason } => {
                let reason = format!("{NOT_IN_SERVER}{reason}");
                self.settle(key, Observation::StillThere { reason: reason.clone() }).await?;
                Ok(Release::Stays(format!("{key}: {reason}")))
            }
            ReleaseOutcome::Failed { error, .. } => {
                let reason = format!("{NOT_IN_SERVER}{error}");
                self.settle(key, Observation::StillThere { reason }).await?;
                Err(host.error(format!("removing {key} failed"))(error))
            }
        }
    }

    /// Removes a mediated device whose record has ended from the host, unless a domain has it.
    ///
    /// It stays while an overdue call may still change it.
    ///
    /// # Errors
    /// Errors of the hypervisor and of the database.
    pub(super) async fn take_stray_away(&self, host: &Host, row: &Assignment) -> Result<Release, Error> {
        // If its server moved, its parent on this host differs from the one on record.
        let here = host.mdevs().iter().find(|mdev| mdev.uuid == row.id().0).and_then(|mdev| mdev.parent);
        let on_record = || self.store.device(row.device()).filter(|parent| parent.hypervisor == host.row.id);
        let parent = here.or_else(|| on_record().map(|parent| parent.facts.address));
        if let Some(call) = parent.and_then(|parent| host.overdue_call_at(parent)) {
            return Ok(Release::Stays(format!("{call}; the work continues when that call returns")));
        }
        let domains = host.hypervisor.domains().await.map_err(host.error("list the host's domains"))?;
        for info in domains {
            let view = host.server(ServerId(info.uuid)).await?;
            let documents = view.iter().flat_map(|view| [&view.live, &view.persistent]).flatten();
            if documents.flat_map(|document| &document.mdevs).any(|mdev| mdev.uuid == row.id().0) {
                return Ok(Release::Ended);
            }
        }
        let removed = match host.hypervisor.destroy_mdev(row.id().0).await {
            Err(error) if error.kind == ErrorKind::NoDevice => Ok(()),
            removed => removed,
        };
        if removed.is_ok() {
            tracing::warn!(
                host = %host.name, mdev.uuid = %row.id(),
                "removed mediated device {}, whose record had ended", row.id()
            );
        } else {
            host.queue_mdev_check();
        }
        // Read the host's mediated devices again, since availability depends on them.
        drop(host.read_mdevs().await);
        parent.into_iter().for_each(|parent| host.queue_device_scan(parent));
        removed.map_err(host.error(format!("removing mediated device {} failed", row.id())))?;
        Ok(Release::Ended)
    }

    /// Returns the servers that have mediated devices by their records which this host does not have.
    ///
    /// # Errors
    /// Errors of the database.
    pub(super) async fn servers_without_mdevs(&self, host: &Host) -> Result<BTreeSet<ServerId>, Error> {
        let mut missing = self.store.mdevs().await?;
        missing.retain(|row| is_missing(host, row));
        Ok(missing.iter().map(|row| row.server).collect())
    }

    /// Creates the mediated devices again that a shut-off server needs to start: a reboot of the host removes them. The
    /// work runs in tasks of its own. On a host that is frozen or read-only nothing is created. What fails is tried again
    /// after a pause, because nothing tells when the driver of the parent is loaded.
    ///
    /// # Errors
    /// Errors of the database and of the hypervisor while the missing devices are determined.
    pub(crate) async fn make_mdevs_again(
        self: &Arc<Self>,
        host: &Arc<Host>,
        server: ServerId,
    ) -> Result<(), Error> {
        let mut missing = self.store.mdevs_of(server).await?;
        missing.retain(|row| is_missing(host, row));
        if missing.is_empty() {
            return Ok(());
        }
        // Nobody requested this just now, so it waits until the host is thawed.
        match self.hosts.expect_open(host, HostChange::Other).await {
            Err(Error::Restricted { .. }) => return Ok(()),
            open => open?,
        }
        host.read_mdevs().await?;
        let view = host.server(server).await?.filter(|view| view.live.is_none());
        let is_to_start =
            |row: &Mdev| view.as_ref().is_some_and(|view| Presence::of(view, UserAlias(row.id.0)).config);
        missing.retain(|row| is_missing(host, row) && is_to_start(row));
        for row in missing {
            let Some(guard) = self.in_flight.try_enter(row.id).await? else { continue };
            let (service, host) = (Arc::clone(self), Arc::clone(host));
            actor::spawn_as_current(async move {
                let row = service.store.mdev(row.id).await?;
                if let Some(row) = row.filter(|row| row.state == State::Attached) {
                    let made = service.make_again(&host, &row).await;
                    let is_news = host.note_unmade(row.id.0, made.is_err());
                    if let Err(error) = made {
                        if is_news {
                            tracing::error!(
                                host = %host.name, mdev.uuid = %row.id, %error,
                                "a mediated device could not be created again, and server {server} cannot start \
                                 without it; this is tried again until it succeeds, or its accelerator is detached"
                            );
                        }
                        host.queue_unplug_retry(server);
                    }
                }
                drop(guard);
                Ok::<_, Error>(())
            });
        }
        Ok(())
    }

    /// Creates a mediated device again, unless it exists.
    ///
    /// # Errors
    /// [`Error::Conflict`] while an overdue call may still change its parent; errors of the hypervisor.
    pub(crate) async fn make_again(&self, host: &Host, row: &Mdev) -> Result<(), Error> {
        let is_there = |mdevs: &[mdev::Mdev]| mdevs.iter().any(|mdev| mdev.uuid == row.id.0);
        if is_there(&host.mdevs()) || is_there(&host.read_mdevs().await?) {
            return Ok(());
        }
        let Some(parent) = self.store.device(row.parent) else { return Ok(()) };
        let address = parent.facts.address;
        if let Some(call) = host.overdue_call_at(address) {
            return Err(Error::Conflict(format!("{call}; the work continues when that call returns")));
        }
        let made = hotplug::create_mdev(host.hypervisor.as_ref(), address, &row.mdev_type, row.id.0).await;
        drop(host.read_mdevs().await);
        made.map_err(host.error(format!("creating mediated device {} again on {address} failed", row.id)))?;
        tracing::warn!(host = %host.name, mdev.uuid = %row.id, "created again on {address}");
        Ok(())
    }
}

/// Whether a server has a mediated device by its record which the host does not have.
fn is_missing(host: &Host, row: &Mdev) -> bool {
    row.hypervisor == host.row.id
        && row.state == State::Attached
        && !host.mdevs().iter().any(|mdev| mdev.uuid == row.id.0)
}
