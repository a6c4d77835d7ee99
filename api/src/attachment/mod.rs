//! Attachments: a device in a server, from the request until it is gone.
//!
//! ```text
//! attach      reserve → plug each → settle all        │ a failure: unplug those before, settle all
//! detach      settle detaching → unplug → settle
//! reconcile   look for drift → put right, at start, on events, after a reconnect, every few minutes
//! drift       where records, documents and devices disagree, and what is to be done → repair does it
//! verify      the guest's own view of the address → settle
//! promise     what an alias names: an attachment, or a mediated device
//! ports       which devices the guest has no port for
//! select      which devices, and whether they could be plugged: also on its own, as a dry run
//! policy      what a running guest is asked for, and what is done in it before
//! group       whole IOMMU groups: taken from their host drivers together; what is owed a host driver gets it back
//! overdue     what calls that have not come back may still change
//! ```

pub mod attach;
pub mod detach;
mod drift;
mod group;
mod overdue;
mod policy;
mod ports;
mod promise;
pub mod reconcile;
mod repair;
mod select;
mod state;
mod verify;

pub use drift::{Action, Finding, Kind, Occasion, Witness};
pub(crate) use policy::HOT_UNPLUG;
pub use policy::HotUnplug;
pub(crate) use policy::Plugged;
pub(crate) use ports::portless;
pub use promise::Promise;
pub use select::{DryRun, NetworkRequest};
#[cfg(test)]
pub(crate) use state::tests::observations;
pub use state::{Observation, Record, State};

use crate::error::Error;
use crate::id::AttachmentId;
use crate::service::Service;
use crate::store::{Attachment, Change};

impl Service {
    /// The one place through which an observation reaches the records. Answers what the record is now.
    pub(crate) async fn settle(
        &self,
        id: AttachmentId,
        observation: &Observation,
    ) -> Result<Option<Attachment>, Error> {
        self.settle_all(&[(id, observation.clone())]).await?;
        self.store.attachment(id).await
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
