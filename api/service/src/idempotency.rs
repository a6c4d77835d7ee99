//! `Idempotency-Key`: a POST that is repeated with the same key is done once, and gets the same response.
//!
//! The response of a successful request is kept. An attach records its request id in the transaction that reserves its
//! devices, so that a repetition after an interrupted attempt finds the attachments of that attempt. An attach that
//! failed and left nothing is done again.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
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
    promised: Arc<Promised>,
}

/// How many responses of each project will be kept when the requests that run now have succeeded.
#[derive(Default)]
struct Promised(Mutex<HashMap<String, i64>>);

impl Promised {
    fn all(&self) -> MutexGuard<'_, HashMap<String, i64>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Room for the response of a request that runs. Dropping it ends the promise.
#[must_use]
pub struct Promise {
    all: Arc<Promised>,
    project: String,
}

impl Promise {
    /// Counts one more response of a project. Returns how many are promised now.
    fn new(all: &Arc<Promised>, project: &str) -> (Self, i64) {
        let promise = Self { all: Arc::clone(all), project: project.to_owned() };
        let mut counts = all.all();
        let count = counts.entry(project.to_owned()).or_default();
        *count += 1;
        (promise, *count)
    }
}

impl Drop for Promise {
    fn drop(&mut self) {
        let mut counts = self.all.all();
        if let Some(count) = counts.get_mut(&self.project) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.project);
            }
        }
    }
}

impl Idempotency {
    pub(crate) fn new(store: Store, time: Duration, turns: Arc<KeyedMutex>) -> Self {
        Self { store, time, turns, promised: Arc::default() }
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

    /// Checks that the project of a key may have one more key, beside those of the requests that run now. The returned
    /// promise is to be kept until the response is stored. It does not count the requests of other processes.
    ///
    /// # Errors
    /// [`Error::OverQuota`]; errors of the database.
    pub async fn may_keep(&self, key: &IdempotencyKey) -> Result<Option<Promise>, Error> {
        let Some(project) = &key.project else { return Ok(None) };
        let (promise, count) = Promise::new(&self.promised, project);
        let wanted = [(Resource::IdempotencyKeys, count)].into();
        if self.store.would_exceed(project, &wanted).await?.is_none() {
            return Ok(Some(promise));
        }
        // Some may be too old to count.
        self.store.prune_keys(self.kept_since()).await?;
        match self.store.would_exceed(project, &wanted).await? {
            None => Ok(Some(promise)),
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
