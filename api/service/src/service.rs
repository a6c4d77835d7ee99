//! The service as one value: its parts, each of which does one kind of work.
//!
//! ```text
//! hosts ← catalog ← assignments ← accelerators ← cyborg      a part uses those before it
//! ```

use std::sync::Arc;

use hotslot_model::identity::Policy;
use hotslot_store::Store;

use crate::accelerator::Accelerators;
use crate::assignment::Assignments;
use crate::config::Config;
use crate::cyborg::Cyborg;
use crate::error::Error;
use crate::feed::Feed;
use crate::hosts::Hosts;
use crate::idempotency::Idempotency;
use crate::identity::Callers;
use crate::inventory::Catalog;
use crate::lifecycle::Lifecycle;
use crate::records::Records;
use crate::webhook::Webhook;

/// The running service.
pub struct Service {
    /// The configuration.
    pub config: Arc<Config>,
    /// Who calls.
    pub callers: Arc<Callers>,
    /// Who may do what.
    pub policy: Arc<Policy>,
    /// The database; only the parts change it.
    pub(crate) store: Store,
    /// The records, to be read.
    pub records: Arc<Records>,
    /// The hosts.
    pub hosts: Arc<Hosts>,
    /// Which devices are assignable, and by which names.
    pub catalog: Arc<Catalog>,
    /// Devices in servers, and in the use of their hosts.
    pub assignments: Arc<Assignments>,
    /// Accelerators.
    pub accelerators: Arc<Accelerators>,
    /// Cyborg's nouns.
    pub cyborg: Arc<Cyborg>,
    /// Answers that are kept for requests that are sent again.
    pub idempotency: Arc<Idempotency>,
    /// Who is sent events.
    pub webhooks: Vec<Arc<Webhook>>,
    /// The events for those who follow them.
    pub feed: Feed,
    /// The end of the service.
    pub lifecycle: Arc<Lifecycle>,
}

impl Service {
    /// Sends a webhook the events again that it did not accept. Returns how many there are.
    ///
    /// # Errors
    /// The database's.
    pub async fn redeliver(&self, webhook: &str) -> Result<u64, Error> {
        Ok(self.store.redeliver(webhook).await?)
    }

    /// Closes the database.
    pub async fn close(&self) {
        self.store.close().await;
    }
}
