//! Which attachments a task of this process is working on, and whose turn it is: on a server, with a key.

use std::collections::{HashMap, HashSet};
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use crate::id::AttachmentId;

/// A set of attachments, each in it for as long as its guard lives.
#[derive(Debug, Default)]
pub(crate) struct Busy {
    ids: Mutex<HashSet<AttachmentId>>,
    left: Notify,
}

/// Takes its attachments out of the set when it is dropped.
#[must_use]
pub(crate) struct Guard {
    busy: Arc<Busy>,
    ids: Vec<AttachmentId>,
}

impl Busy {
    fn set(&self) -> MutexGuard<'_, HashSet<AttachmentId>> {
        // A set of ids is whole at every instruction, so a panic elsewhere does not spoil it.
        self.ids.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether someone works on it.
    pub(crate) fn contains(&self, id: AttachmentId) -> bool {
        self.set().contains(&id)
    }

    /// Waits until nobody works on it.
    pub(crate) async fn idle(&self, id: AttachmentId) {
        loop {
            let left = self.left.notified();
            if !self.contains(id) {
                return;
            }
            left.await;
        }
    }

    /// Puts attachments into the set.
    pub(crate) fn enter(self: &Arc<Self>, ids: impl IntoIterator<Item = AttachmentId>) -> Guard {
        let ids: Vec<_> = ids.into_iter().collect();
        self.set().extend(ids.iter().copied());
        Guard { busy: Arc::clone(self), ids }
    }

    /// Puts one attachment into the set, unless it is in it.
    pub(crate) fn try_enter(self: &Arc<Self>, id: AttachmentId) -> Option<Guard> {
        self.set().insert(id).then(|| Guard { busy: Arc::clone(self), ids: vec![id] })
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        let mut set = self.busy.set();
        for id in &self.ids {
            set.remove(id);
        }
        drop(set);
        self.busy.left.notify_waiters();
    }
}

/// One lock for each thing that is worked on in turn.
#[derive(Debug)]
pub(crate) struct Turns<T>(Mutex<HashMap<T, Arc<tokio::sync::Mutex<()>>>>);

impl<T> Default for Turns<T> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<T: Eq + Hash> Turns<T> {
    /// Waits for the turn on a thing, which ends when the guard is dropped.
    pub(crate) async fn of(&self, thing: T) -> tokio::sync::OwnedMutexGuard<()> {
        let turn = {
            let mut turns = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            // Those that nobody holds or waits for are of no more use.
            turns.retain(|_, turn| Arc::strong_count(turn) > 1);
            Arc::clone(turns.entry(thing).or_default())
        };
        turn.lock_owned().await
    }
}
