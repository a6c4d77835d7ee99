//! Verification: reads the address of a device from the guest itself and records it as `verified` in place of the
//! computed one.

use std::sync::Arc;
use std::time::Duration;

use hotslot_driver::domain::UserAlias;
use hotslot_driver::guest;
use hotslot_driver::hypervisor::{Error as HypervisorError, ErrorKind};
use hotslot_driver::pci::{PciAddress, PciId};
use hotslot_driver::topology::Topology;
use hotslot_model::assignment::{Assignment, AssignmentKey, AssignmentKind, InnerSource, Observation, State};
use hotslot_model::id::{AttachmentId, ServerId};
use hotslot_store::actor;
use tokio::sync::oneshot;

use super::assignments::Assignments;
use crate::config::Verify;
use crate::error::Error;
use crate::host::Host;
use crate::{metrics, trace};

/// The pauses before each query of the guest after an attach. A guest needs one to three seconds to notice a new
/// device.
static ASK_AFTER: [Duration; 7] = [
    Duration::from_millis(500),
    Duration::from_secs(1),
    Duration::from_secs(2),
    Duration::from_secs(4),
    Duration::from_secs(8),
    Duration::from_secs(16),
    Duration::from_secs(32),
];

impl Assignments {
    /// Verifies the address of a device in its guest in the background.
    pub(super) fn verify_soon(self: &Arc<Self>, host: &Arc<Host>, row: &Assignment) {
        // Query the guest also when no address could be computed.
        if row.inner().is_none_or(|inner| inner.source == InnerSource::Computed) {
            self.verify_after(host, row, &ASK_AFTER);
        }
    }

    /// Verifies the verified addresses of a server once more, because the event of a reboot may have been missed.
    ///
    /// # Errors
    /// Errors of the database.
    pub(super) async fn verify_again(
        self: &Arc<Self>,
        host: &Arc<Host>,
        server: ServerId,
    ) -> Result<(), Error> {
        for row in self.store.assignments_of(server).await? {
            let verified = row.inner().is_some_and(|inner| inner.source == InnerSource::Verified);
            if verified && row.hypervisor() == host.row.id {
                // One query is enough: the address stays verified when the guest does not answer.
                self.verify_after(host, &row, &ASK_AFTER[..1]);
            }
        }
        Ok(())
    }

    /// Records that a guest was started or rebooted, so that its verified addresses have to be verified again.
    ///
    /// # Errors
    /// Errors of the database.
    pub(super) async fn guest_restarted(&self, host: &Host, server: ServerId) -> Result<(), Error> {
        let rows = self.store.assignments_of(server).await?;
        let rows = rows.iter().filter(|row| row.hypervisor() == host.row.id);
        let seen: Vec<_> = rows
            .filter(|row| row.state().on(row.record(), &Observation::Restarted).is_some())
            .map(|row| (row.key(), Observation::Restarted))
            .collect();
        self.settle_all(&seen).await.map(drop)
    }

    fn verify_after(self: &Arc<Self>, host: &Arc<Host>, row: &Assignment, pauses: &'static [Duration]) {
        if row.state() != State::Attached || self.config.get().attach.verify == Verify::Off {
            return;
        }
        let (service, host, key) = (Arc::clone(self), Arc::clone(host), row.key());
        let (first, first_done) = oneshot::channel();
        trace::follow(first_done);
        actor::spawn_as_current(actor::scope(actor::system::VERIFICATION, async move {
            let mut first = Some(first);
            let Ok(Some(_busy)) = service.verifying.try_enter(key.id).await else { return };
            for &pause in pauses {
                tokio::time::sleep(pause).await;
                let word = |verified: &Result<bool, Error>| match verified {
                    Ok(true) => "done",
                    Ok(false) => "pending",
                    Err(Error::Hypervisor { error, .. }) if error.kind == ErrorKind::AgentAway => {
                        "agent-away"
                    }
                    Err(_) => "failed",
                };
                let verified = metrics::step_as(key.kind, "verify", service.verify(&host, key), word).await;
                first.take();
                match verified {
                    Ok(true) => return,
                    Ok(false) => {}
                    // The agent is missing or must not read files. That may change later; until then the address stays
                    // computed.
                    Err(error) => tracing::debug!(attachment.id = %key.id, %error, "not verified"),
                }
            }
        }));
    }

    /// Queries the guest once. Returns false when the guest does not show the device yet.
    async fn verify(&self, host: &Host, key: AssignmentKey) -> Result<bool, Error> {
        let Some(row) = self.store.assignment(key).await?.filter(|row| row.state() == State::Attached) else {
            return Ok(true);
        };
        let Some(server) = row.server() else { return Ok(true) };
        let Some(device) = self.store.device(row.device()) else { return Ok(true) };
        // The PCI ids of a mediated device are chosen by its driver, so they are not compared.
        let ids = (key.kind == AssignmentKind::Attachment)
            .then_some((device.facts.vendor_id, device.facts.product_id));
        let seen = match self.ask(host, server, key.id, ids).await {
            Ok(seen) => seen,
            Err(error) => return Err(host.error(format!("verify the address of {key}"))(error)),
        };
        match seen {
            Some((address, run)) => {
                self.settle(key, Observation::Verified { address, run }).await?;
                Ok(true)
            }
            None => Ok(false),
        }
    }

    /// Returns the address at which the guest shows a device, and the run of the guest; `None` when it does not show
    /// it.
    async fn ask(
        &self,
        host: &Host,
        server: ServerId,
        id: AttachmentId,
        ids: Option<(PciId, PciId)>,
    ) -> Result<Option<(PciAddress, Option<u32>)>, HypervisorError> {
        let hypervisor = host.hypervisor.as_ref();
        let alias = UserAlias(id.0);
        let view = hypervisor.domain(server.0).await?;
        let run = view.info.run;
        let Some(live) = view.live else { return Ok(None) };
        let hostdev = live.hostdev(alias).and_then(|hostdev| hostdev.guest);
        let Some(place) = hostdev.or_else(|| live.mdev(alias)?.guest) else { return Ok(None) };
        let topology = Topology::of(&live);
        let seen = match self.config.get().attach.verify {
            Verify::Off => None,
            Verify::Monitor => guest::ask_monitor(hypervisor, server.0, &alias.to_string()).await?,
            Verify::Agent if !live.agent_connected => {
                return Err(HypervisorError::new(
                    ErrorKind::AgentAway,
                    "ask the guest's agent",
                    "it is not connected",
                ));
            }
            Verify::Agent => {
                let Some(route) = topology.route(place) else { return Ok(None) };
                guest::ask_agent(hypervisor, server.0, route, place, ids).await?
            }
        };
        // If root buses claim the same bus numbers, the address may belong to another device of the same kind.
        let seen = seen.filter(|seen| !topology.is_of_another(place, *seen));
        Ok(seen.map(|address| (address, run)))
    }
}
