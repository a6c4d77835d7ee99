//! Attachments: a device in a server, from the request until it is gone.
//!
//! ```text
//! attach      reserve → plug each → settle all        │ a failure: unplug those before, settle all
//! detach      settle detaching → unplug → settle
//! reconcile   what libvirt has → settle, at start, on events, after a reconnect, every few minutes
//! verify      the guest's own view of the address → settle
//! ```

pub mod attach;
pub mod detach;
pub mod reconcile;
mod state;
mod verify;

pub use state::{Observation, State};

use std::collections::BTreeMap;

use crate::error::Error;
use crate::id::AttachmentId;
use crate::service::Service;
use crate::store::{Attachment, Settled};

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
        let mut rows: BTreeMap<AttachmentId, (Attachment, bool)> = BTreeMap::new();
        for (id, observation) in seen {
            if !rows.contains_key(id)
                && let Some(row) = self.store.attachment(*id).await?
            {
                rows.insert(*id, (row, false));
            }
            let Some((row, changed)) = rows.get_mut(id) else { continue };
            if let Some(next) = row.state.on(row.inner, row.reason.as_deref(), observation) {
                if next.state != row.state {
                    tracing::info!(
                        attachment.id = %id, server.id = %row.server, from = %row.state, to = %next.state,
                        reason = next.reason.as_deref().unwrap_or_default(),
                        "attachment {id} is {}", next.state
                    );
                }
                (row.state, row.reason, row.inner, *changed) = (next.state, next.reason, next.inner, true);
            }
        }
        let outcomes: Vec<(AttachmentId, Settled)> = rows
            .into_values()
            .filter(|(_, changed)| *changed)
            .map(|(row, _)| (row.id, Settled { state: row.state, reason: row.reason, inner: row.inner }))
            .collect();
        if outcomes.is_empty() { Ok(()) } else { self.store.settle(&outcomes).await }
    }
}
