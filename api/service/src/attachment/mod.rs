//! Attachments: a device in a server, from the request until it is gone.
//!
//! ```text
//! attach      reserve → plug each → settle all        │ a failure: unplug those before, settle all
//! detach      settle detaching → unplug → settle
//! reconcile   look for drift → put right, at start, on events, after a reconnect, every few minutes
//! repair      does what `hotslot_model::assignment::drift` found to be done
//! verify      the guest's own view of the address → settle
//! request     what is asked for
//! ports       which devices the guest has no port for
//! select      which devices, and whether they could be plugged: also on its own, as a dry run
//! policy      what a running guest is asked for, and what is done in it before
//! group       whole IOMMU groups: taken from their host drivers together; what is owed a host driver gets it back
//! overdue     what calls that have not come back may still change
//! ```

pub(crate) mod attach;
mod detach;
mod group;
mod overdue;
mod policy;
mod ports;
pub mod reconcile;
mod repair;
pub(crate) mod request;
mod select;
mod verify;

pub(crate) use policy::GuestDevice;
pub use ports::portless;
pub use request::{AttachRequest, DetachRequest, NetworkRequest};
pub use select::DryRun;

use hotslot_model::assignment::{Attachment, Change, Observation};
use hotslot_model::id::AttachmentId;

use crate::error::Error;
use crate::service::Service;

impl Service {
    /// The one place through which an observation reaches the records. Answers what the record is now.
    pub(crate) async fn settle(
        &self,
        id: AttachmentId,
        observation: &Observation,
    ) -> Result<Option<Attachment>, Error> {
        self.settle_all(&[(id, observation.clone())]).await?;
        Ok(self.store.attachment(id).await?)
    }

    /// [`settle`](Self::settle) for several observations, in their order and in one transaction.
    pub(crate) async fn settle_all(&self, seen: &[(AttachmentId, Observation)]) -> Result<(), Error> {
        if seen.is_empty() {
            return Ok(());
        }
        for Change { was, row, address } in self.store.settle(seen).await? {
            tracing::info!(
                attachment.id = %row.id, server.id = %row.server, from = %was, to = %row.state,
                reason = row.reason.as_deref().unwrap_or_default(),
                "attachment {} is {}", row.id, row.state
            );
            if row.state.is_final()
                && let Some(host) = self.host(row.hypervisor)
            {
                // It may have changed while it was in use, and its group may be owed its host drivers.
                address.into_iter().for_each(|address| host.look_at(address));
                host.give_back();
                host.settled(row.server);
            }
        }
        Ok(())
    }
}
