//! `Idempotency-Key`: a POST that is repeated with the same key is done once, and gets the same response.
//!
//! The response of a successful request is kept. An attach records its request id in the transaction that reserves its
//! devices, so that a repetition after an interrupted attempt finds the attachments of that attempt. An attach that
//! failed and left nothing is done again.

use std::sync::Arc;
use std::time::Duration;

use hotslot_model::idempotency::{Answer, IdempotencyKey, StoredResponse};
use hotslot_model::quota::Resource;
use hotslot_model::time::Millis;
use hotslot_store::{Store, now};

use crate::config;
use crate::error::Error;
use crate::locks::{KeyedGuard, KeyedMutex};

/// The answers that are kept by their keys.
pub struct Idempotency {
    store: Store,
    /// How long answers are kept.
    time: Duration,
    turns: Arc<KeyedMutex>,
}

impl Idempotency {
    pub(crate) fn new(store: Store, time: Duration, turns: Arc<KeyedMutex>) -> Self {
        Self { store, time, turns }
    }

    /// Waits until no other request with this key is being answered.
    ///
    /// # Errors
    /// The database's.
    pub async fn turn(&self, key: &IdempotencyKey) -> Result<KeyedGuard, Error> {
        self.turns.of(format!("key {} {}", key.key, key.route)).await
    }

    /// Returns the time before which kept responses no longer count.
    fn kept_since(&self) -> Millis {
        now() - self.time.as_millis() as Millis
    }

    /// Returns the kept response of a key.
    ///
    /// # Errors
    /// Errors of the database.
    pub async fn kept(&self, key: &IdempotencyKey) -> Result<Option<StoredResponse>, Error> {
        Ok(self.store.kept(key, self.kept_since()).await?)
    }

    /// Checks that the project of a key may have one more key.
    ///
    /// # Errors
    /// [`Error::OverQuota`]; errors of the database.
    pub async fn may_keep(&self, key: &IdempotencyKey) -> Result<(), Error> {
        let Some(project) = &key.project else { return Ok(()) };
        let one = [(Resource::IdempotencyKeys, 1)].into();
        if self.store.would_exceed(project, &one).await?.is_none() {
            return Ok(());
        }
        // Some may be too old to count.
        self.store.prune_keys(self.kept_since()).await?;
        match self.store.would_exceed(project, &one).await? {
            None => Ok(()),
            Some(exceeded) => Err(Error::OverQuota(Box::new(exceeded))),
        }
    }

    /// Keeps the response of a key.
    ///
    /// # Errors
    /// Errors of the database.
    pub async fn keep(&self, key: &IdempotencyKey, answer: &Answer) -> Result<(), Error> {
        Ok(self.store.keep(key, answer, self.kept_since(), config::IDEMPOTENCY_KEYS).await?)
    }
}
