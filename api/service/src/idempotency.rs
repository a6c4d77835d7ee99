//! `Idempotency-Key`: a POST that is sent again with the same key is done once, and answered alike.
//!
//! What succeeded is kept with its answer. An attach says in the transaction that reserves its devices which
//! request it makes, so that a try after one that was cut off finds what that one has left. An attach that failed
//! and left nothing is tried anew.

use std::sync::Arc;
use std::time::Duration;

use hotslot_model::idempotency::{Answer, IdempotencyKey, StoredResponse};
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

    /// Answers of before then are forgotten.
    fn kept_since(&self) -> Millis {
        now() - self.time.as_millis() as Millis
    }

    /// What is known of a key.
    ///
    /// # Errors
    /// The database's.
    pub async fn kept(&self, key: &IdempotencyKey) -> Result<Option<StoredResponse>, Error> {
        Ok(self.store.kept(key, self.kept_since()).await?)
    }

    /// Keeps an answer.
    ///
    /// # Errors
    /// The database's.
    pub async fn keep(&self, key: &IdempotencyKey, answer: &Answer) -> Result<(), Error> {
        Ok(self.store.keep(key, answer, self.kept_since(), config::IDEMPOTENCY_KEYS).await?)
    }
}
