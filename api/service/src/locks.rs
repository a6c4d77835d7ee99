//! Who works on which attachment, and whose turn it is, on a server or with a key: tasks of this process, and other
//! processes.

use std::collections::{HashMap, HashSet};
use std::fmt::Display;
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hotslot_model::id::AttachmentId;
use hotslot_store::{Held, Locks};
use tokio::sync::{Notify, OwnedMutexGuard};

use crate::error::Error;

/// How often it is looked whether another process has finished.
const LOOK: Duration = Duration::from_millis(50);

/// A set of attachments, or of other things with ids, each in it for as long as its guard lives.
#[derive(Debug)]
pub(crate) struct InFlight<Id: Copy + Eq + Hash = AttachmentId> {
    ids: Mutex<HashSet<Id>>,
    left: Notify,
    /// What the work is called between processes.
    work: &'static str,
    locks: Locks,
}

/// Takes its ids out of the set when it is dropped.
#[must_use]
pub(crate) struct Guard<Id: Copy + Eq + Hash = AttachmentId> {
    busy: Arc<InFlight<Id>>,
    ids: Vec<Id>,
    held: Vec<Held>,
}

impl<Id: Copy + Eq + Hash> InFlight<Id> {
    fn set(&self) -> MutexGuard<'_, HashSet<Id>> {
        // A set of ids is whole at every instruction, so a panic elsewhere does not spoil it.
        self.ids.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<Id: Copy + Eq + Hash + Display> InFlight<Id> {
    /// Nobody works yet.
    pub(crate) fn new(work: &'static str, locks: Locks) -> Arc<Self> {
        Arc::new(Self { ids: Mutex::default(), left: Notify::new(), work, locks })
    }

    fn name(&self, id: Id) -> String {
        format!("{} {id}", self.work)
    }

    /// Those of some attachments that someone works on.
    ///
    /// # Errors
    /// The database's.
    pub(crate) async fn of(&self, ids: impl IntoIterator<Item = Id>) -> Result<HashSet<Id>, Error> {
        let ids: Vec<_> = ids.into_iter().collect();
        let mut busy: HashSet<_> = ids.iter().copied().filter(|id| self.set().contains(id)).collect();
        let elsewhere = self.locks.elsewhere(ids.iter().map(|id| self.name(*id)).collect()).await?;
        busy.extend(ids.into_iter().filter(|id| elsewhere.contains(&self.name(*id))));
        Ok(busy)
    }

    /// Waits until nobody works on it.
    ///
    /// # Errors
    /// The database's.
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

    /// Puts new attachments into the set.
    ///
    /// # Errors
    /// The database's.
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

    /// Puts one attachment into the set, unless it is in it.
    ///
    /// # Errors
    /// The database's.
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
        // First, so that whoever enters next in this process asks for the lock after it was given back.
        self.held.clear();
        let mut set = self.busy.set();
        for id in &self.ids {
            set.remove(id);
        }
        drop(set);
        self.busy.left.notify_waiters();
    }
}

/// One lock for each thing that is worked on in turn.
#[derive(Debug, Default)]
pub struct KeyedMutex {
    turns: Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>,
    locks: Locks,
}

/// The turn on a thing, which ends when this is dropped: between processes first.
#[must_use]
pub struct KeyedGuard {
    _between: Held,
    _within: OwnedMutexGuard<()>,
}

impl KeyedMutex {
    /// It is everyone's turn.
    pub(crate) fn new(locks: Locks) -> Self {
        Self { locks, ..Self::default() }
    }

    /// Waits for the turn on a thing, which is named by its noun first.
    ///
    /// # Errors
    /// The database's.
    pub async fn of(&self, thing: String) -> Result<KeyedGuard, Error> {
        let turn = {
            let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
            // Those that nobody holds or waits for are of no more use.
            turns.retain(|_, turn| Arc::strong_count(turn) > 1);
            Arc::clone(turns.entry(thing.clone()).or_default())
        };
        let within = turn.lock_owned().await;
        let between = self.locks.lock(thing).await?;
        Ok(KeyedGuard { _between: between, _within: within })
    }
}
