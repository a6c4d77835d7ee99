//! Locks on the things that tasks work on, within this process and between processes: ids in progress (`InFlight`)
//! and mutexes by name ([`KeyedMutex`]).

use std::collections::{HashMap, HashSet};
use std::fmt::Display;
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hotslot_model::id::AttachmentId;
use hotslot_store::{Held, Locks};
use tokio::sync::{Notify, OwnedMutexGuard};

use crate::error::Error;

/// How often this process checks whether another process has finished.
const LOOK: Duration = Duration::from_millis(50);

/// The ids of attachments, or of other things, that tasks work on. An id is in the set as long as its guard lives.
#[derive(Debug)]
pub(crate) struct InFlight<Id: Copy + Eq + Hash = AttachmentId> {
    ids: Mutex<HashSet<Id>>,
    left: Notify,
    /// The first part of the names of the locks between processes.
    work: &'static str,
    locks: Locks,
}

/// Removes its ids from the set when it is dropped.
#[must_use]
pub(crate) struct Guard<Id: Copy + Eq + Hash = AttachmentId> {
    busy: Arc<InFlight<Id>>,
    ids: Vec<Id>,
    held: Vec<Held>,
}

impl<Id: Copy + Eq + Hash> InFlight<Id> {
    fn set(&self) -> MutexGuard<'_, HashSet<Id>> {
        // A panic while the lock was held cannot leave a set of ids in an invalid state.
        self.ids.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<Id: Copy + Eq + Hash + Display> InFlight<Id> {
    /// Makes an empty set.
    pub(crate) fn new(work: &'static str, locks: Locks) -> Arc<Self> {
        Arc::new(Self { ids: Mutex::default(), left: Notify::new(), work, locks })
    }

    fn name(&self, id: Id) -> String {
        format!("{} {id}", self.work)
    }

    /// Returns those of some ids that a task of this or another process works on.
    ///
    /// # Errors
    /// Errors of the database.
    pub(crate) async fn of(&self, ids: impl IntoIterator<Item = Id>) -> Result<HashSet<Id>, Error> {
        let ids: Vec<_> = ids.into_iter().collect();
        let mut busy: HashSet<_> = ids.iter().copied().filter(|id| self.set().contains(id)).collect();
        let elsewhere = self.locks.elsewhere(ids.iter().map(|id| self.name(*id)).collect()).await?;
        busy.extend(ids.into_iter().filter(|id| elsewhere.contains(&self.name(*id))));
        Ok(busy)
    }

    /// Waits until no task of any process works on an id.
    ///
    /// # Errors
    /// Errors of the database.
    pub(crate) async fn idle(&self, id: Id) -> Result<(), Error> {
        loop {
            let left = self.left.notified();
            if !self.set().contains(&id) {
                break;
            }
            left.await;
        }
        while !self.locks.elsewhere(vec![self.name(id)]).await?.is_empty() || !self.locks.settled().await? {
            tokio::time::sleep(LOOK).await;
        }
        Ok(())
    }

    /// Adds new ids, which nobody else knows yet, to the set.
    ///
    /// # Errors
    /// Errors of the database.
    pub(crate) async fn enter(
        self: &Arc<Self>,
        ids: impl IntoIterator<Item = Id>,
    ) -> Result<Guard<Id>, Error> {
        let mut guard = Guard { busy: Arc::clone(self), ids: ids.into_iter().collect(), held: Vec::new() };
        self.set().extend(guard.ids.iter().copied());
        for id in &guard.ids {
            guard.held.push(self.locks.lock(self.name(*id)).await?);
        }
        Ok(guard)
    }

    /// Adds one id to the set. Returns `None` when a task of this or another process works on it.
    ///
    /// # Errors
    /// Errors of the database.
    pub(crate) async fn try_enter(self: &Arc<Self>, id: Id) -> Result<Option<Guard<Id>>, Error> {
        if !self.set().insert(id) {
            return Ok(None);
        }
        let mut guard = Guard { busy: Arc::clone(self), ids: vec![id], held: Vec::new() };
        let held = self.locks.try_lock(self.name(id)).await?;
        Ok(held.map(|held| {
            guard.held.push(held);
            guard
        }))
    }
}

impl<Id: Copy + Eq + Hash> Drop for Guard<Id> {
    fn drop(&mut self) {
        // Release the locks between processes first, so that the next task of this process requests a free lock.
        self.held.clear();
        let mut set = self.busy.set();
        for id in &self.ids {
            set.remove(id);
        }
        drop(set);
        self.busy.left.notify_waiters();
    }
}

/// One mutex for each name, within this process and between processes.
#[derive(Debug, Default)]
pub struct KeyedMutex {
    turns: Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>,
    locks: Locks,
}

/// A locked name. Dropping it releases the lock between processes first.
#[must_use]
pub struct KeyedGuard {
    _between: Held,
    _within: OwnedMutexGuard<()>,
}

impl KeyedMutex {
    /// Makes a set of mutexes, all unlocked.
    pub(crate) fn new(locks: Locks) -> Self {
        Self { locks, ..Self::default() }
    }

    /// Locks a name, such as `server <id>`, waiting until it is free.
    ///
    /// # Errors
    /// Errors of the database.
    pub async fn of(&self, thing: String) -> Result<KeyedGuard, Error> {
        let within = self.turn(&thing).lock_owned().await;
        let between = self.locks.lock(thing).await?;
        Ok(KeyedGuard { _between: between, _within: within })
    }

    /// Locks a name that is free. Returns `None` when a task of this or another process has it.
    ///
    /// # Errors
    /// Errors of the database.
    pub(crate) async fn try_of(&self, thing: String) -> Result<Option<KeyedGuard>, Error> {
        let Ok(within) = self.turn(&thing).try_lock_owned() else { return Ok(None) };
        let between = self.locks.try_lock(thing).await?;
        Ok(between.map(|between| KeyedGuard { _between: between, _within: within }))
    }

    fn turn(&self, thing: &str) -> Arc<tokio::sync::Mutex<()>> {
        let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
        // Remove the mutexes that no task holds or waits for.
        turns.retain(|_, turn| Arc::strong_count(turn) > 1);
        Arc::clone(turns.entry(thing.to_owned()).or_default())
    }
}
