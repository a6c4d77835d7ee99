//! Verification: the guest's own view of where a device is turns a computed address into a verified one.

use std::sync::Arc;
use std::time::Duration;

use hotslot_driver::domain::UserAlias;
use hotslot_driver::guest;
use hotslot_driver::hypervisor::{Error as HypervisorError, ErrorKind};
use hotslot_driver::pci::PciAddress;
use hotslot_driver::topology::Topology;

use super::{Observation, State};
use crate::config::Verify;
use crate::error::Error;
use crate::host::Host;
use crate::id::AttachmentId;
use crate::service::Service;
use crate::store::{Attachment, InnerSource};
use crate::who;

/// When the guest is asked after an attach: it needs a second or three to notice a new device.
const ASK_AFTER: [Duration; 7] = [
    Duration::from_millis(500),
    Duration::from_secs(1),
    Duration::from_secs(2),
    Duration::from_secs(4),
    Duration::from_secs(8),
    Duration::from_secs(16),
    Duration::from_secs(32),
];

impl Service {
    /// Verifies an attachment's address in the background.
    pub(super) fn verify_soon(self: &Arc<Self>, host: &Arc<Host>, attachment: &Attachment) {
        let computed = attachment.inner.filter(|inner| inner.source == InnerSource::Computed);
        if computed.is_none()
            || attachment.state != State::Attached
            || self.config.attach.verify == Verify::Off
        {
            return;
        }
        let (service, host, id) = (Arc::clone(self), Arc::clone(host), attachment.id);
        who::spawn(who::by(who::itself::VERIFICATION, async move {
            let Ok(Some(_busy)) = service.verifying.try_enter(id).await else { return };
            for pause in ASK_AFTER {
                tokio::time::sleep(pause).await;
                match service.verify(&host, id).await {
                    Ok(true) => return,
                    Ok(false) => {}
                    // No agent, or none that may read files: it may be there later, and until then the address
                    // stays computed.
                    Err(error) => tracing::debug!(attachment.id = %id, %error, "not verified"),
                }
            }
        }));
    }

    /// Asks once. False when the guest does not show the device yet.
    async fn verify(&self, host: &Host, id: AttachmentId) -> Result<bool, Error> {
        let Some(row) = self.store.attachment(id).await?.filter(|row| row.state == State::Attached) else {
            return Ok(true);
        };
        let Some(device) = self.store.device(row.device) else { return Ok(true) };
        let ids = (device.facts.vendor_id, device.facts.product_id);
        let seen = match self.ask(host, &row, ids).await {
            Ok(seen) => seen,
            Err(error) => return Err(host.error(format!("verify the address of attachment {id}"))(error)),
        };
        match seen {
            Some(address) => {
                self.settle(id, &Observation::Verified { address }).await?;
                Ok(true)
            }
            None => Ok(false),
        }
    }

    async fn ask(
        &self,
        host: &Host,
        row: &Attachment,
        ids: (hotslot_driver::pci::PciId, hotslot_driver::pci::PciId),
    ) -> Result<Option<PciAddress>, HypervisorError> {
        let hypervisor = host.hypervisor.as_ref();
        let alias = UserAlias(row.id.0);
        let view = hypervisor.domain(row.server.0).await?;
        let Some(live) = view.live else { return Ok(None) };
        let topology = Topology::of(&live);
        let place = live.hostdev(alias).and_then(|hostdev| hostdev.guest);
        let Some((path, computed)) =
            place.and_then(|place| Some((topology.path(place)?, topology.guest_address(place)?)))
        else {
            return Ok(None);
        };
        match self.config.attach.verify {
            Verify::Off => Ok(None),
            Verify::Monitor => guest::ask_monitor(hypervisor, row.server.0, &alias.to_string()).await,
            Verify::Agent if !live.agent_connected => Err(HypervisorError::new(
                ErrorKind::AgentAway,
                "ask the guest's agent",
                "it is not connected",
            )),
            Verify::Agent => guest::ask_agent(hypervisor, row.server.0, &path, computed, ids).await,
        }
    }
}
