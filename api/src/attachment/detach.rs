//! Detach: asked, and gone only when no document of the domain has the device.

use std::sync::Arc;

use hotslot_driver::hotplug::{self, Unplugged};
use hotslot_driver::hypervisor;
use hotslot_driver::pci::PciAddress;

use super::{Observation, State};
use crate::busy;
use crate::error::Error;
use crate::host::Host;
use crate::id::{AttachmentId, ServerId};
use crate::service::{Service, hostdev_spec};
use crate::store::Attachment;

impl Service {
    /// A server's attachment, ended or not.
    ///
    /// # Errors
    /// [`Error::NoAttachment`].
    pub async fn attachment_of(&self, server: ServerId, id: AttachmentId) -> Result<Attachment, Error> {
        let found = self.store.attachment(id).await?.filter(|attachment| attachment.server == server);
        found.ok_or(Error::NoAttachment(id))
    }

    /// Records that an attachment is to go, and answers the work of making it go; none when it is gone already.
    ///
    /// # Errors
    /// [`Error::NoAttachment`]; [`Error::Conflict`] while it is still being attached; [`Error::HostAway`].
    pub async fn begin_detach(
        self: &Arc<Self>,
        server: ServerId,
        id: AttachmentId,
    ) -> Result<Option<tokio::task::JoinHandle<Result<(), Error>>>, Error> {
        let (host, guard) = loop {
            let attachment = self.attachment_of(server, id).await?;
            match attachment.state {
                // Asked again: the same outcome.
                State::Detached => return Ok(None),
                State::Failed => return Err(Error::NoAttachment(id)),
                State::Attaching => {
                    return Err(Error::Conflict(format!(
                        "attachment {id} is still attaching; try again when it is attached"
                    )));
                }
                State::Attached | State::Detaching => {}
            }
            let host = self.host(attachment.hypervisor).cloned().ok_or_else(|| {
                Error::Conflict(format!("attachment {id} is on a host that is no longer configured"))
            })?;
            host.ready().await?;
            match self.in_flight.try_enter(id).await? {
                Some(guard) => break (host, guard),
                // Someone asks the guest already: the outcome is the same.
                None if attachment.state == State::Detaching => {
                    let service = Arc::clone(self);
                    return Ok(Some(tokio::spawn(async move { service.outcome_of_others(id).await })));
                }
                // Whoever attached it has not left it yet, or someone begins to ask: then it is looked again.
                None => self.in_flight.idle(id).await?,
            }
        };
        let service = Arc::clone(self);
        self.settle(id, &Observation::AskedToDetach).await?;
        Ok(Some(tokio::spawn(async move { service.detach_now(&host, id, guard).await })))
    }

    /// Waits for the detach that another request began.
    async fn outcome_of_others(&self, id: AttachmentId) -> Result<(), Error> {
        self.in_flight.idle(id).await?;
        let row = self.store.attachment(id).await?.ok_or(Error::NoAttachment(id))?;
        if row.state.is_final() {
            return Ok(());
        }
        let reason = row.reason.unwrap_or_else(|| "the guest has not let go".into());
        Err(Error::Conflict(format!("attachment {id} is {}: {reason}", row.state)))
    }

    /// Makes an attachment that is recorded as detaching go.
    pub(crate) async fn detach_now(
        self: &Arc<Self>,
        host: &Host,
        id: AttachmentId,
        guard: busy::Guard,
    ) -> Result<(), Error> {
        let Some(attachment) = self.store.attachment(id).await?.filter(|row| !row.state.is_final()) else {
            return Ok(());
        };
        let outcome = self.ask_and_settle(host, &attachment).await;
        drop(guard);
        // What was heard while it was worked on was left to the worker.
        host.look_again(attachment.server);
        outcome
    }

    async fn ask_and_settle(&self, host: &Host, attachment: &Attachment) -> Result<(), Error> {
        let id = attachment.id;
        let (address, unplugged) = self.unplug(host, attachment, attachment.persistent).await?;
        match unplugged {
            Ok(Unplugged::Gone) => {
                self.settle(id, &Observation::Gone { reason: None }).await?;
                tracing::info!(
                    server.id = %attachment.server, attachment.id = %id, pci.address = %address,
                    "detached {address} from server {}", attachment.server
                );
                Ok(())
            }
            Ok(Unplugged::Refused { reason }) => {
                self.settle(id, &Observation::DetachRefused { reason: reason.clone() }).await?;
                Err(Error::Conflict(format!(
                    "{address} stays attached: {reason}; ask again when the guest can let go"
                )))
            }
            Ok(Unplugged::Pending { reason }) => {
                let row = self.settle(id, &Observation::StillThere { reason: reason.clone() }).await?;
                if row.is_some_and(|row| row.state == State::Detached) {
                    return Ok(());
                }
                Err(Error::Conflict(format!(
                    "{address} is not gone yet and stays detaching: {reason}; ask again, or wait for it"
                )))
            }
            Err(error) => {
                // What was refused is as it was; what is unknown is settled when the host answers again.
                let reason = error.to_string();
                let seen = if error.kind.leaves_it_open() {
                    Observation::StillThere { reason }
                } else {
                    Observation::DetachRefused { reason }
                };
                self.settle(id, &seen).await?;
                Err(host.error(format!("detaching {address} failed"))(error))
            }
        }
    }
    /// Makes the device of an attachment leave its domain; answers its address on the host, and what became of it.
    /// With `keep`, one that the guest does not let go stays in the definition too.
    pub(super) async fn unplug(
        &self,
        host: &Host,
        attachment: &Attachment,
        keep: bool,
    ) -> Result<(PciAddress, Result<Unplugged, hypervisor::Error>), Error> {
        let device = self.store.device(attachment.device);
        let device = device
            .ok_or_else(|| Error::Internal(format!("the device of attachment {} is lost", attachment.id)))?;
        let spec = hostdev_spec(attachment, &device);
        let (hypervisor, server, limits) =
            (host.hypervisor.as_ref(), attachment.server.0, self.detach_limits());
        let unplugged = hotplug::unplug(hypervisor, &self.templates, server, &spec, keep, limits).await;
        Ok((device.facts.address, unplugged))
    }
}
