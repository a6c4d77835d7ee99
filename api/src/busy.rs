//! Which attachments a task of this process is working on.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::id::AttachmentId;

/// A set of attachments, each in it for as long as its guard lives.
#[derive(Debug, Default)]
pub(crate) struct Busy(Mutex<HashSet<AttachmentId>>);

/// Takes its attachments out of the set when it is dropped.
#[must_use]
pub(crate) struct Guard {
    busy: Arc<Busy>,
    ids: Vec<AttachmentId>,
}

impl Busy {
    fn set(&self) -> MutexGuard<'_, HashSet<AttachmentId>> {
        // A set of ids is whole at every instruction, so a panic elsewhere does not spoil it.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether someone works on it.
    pub(crate) fn contains(&self, id: AttachmentId) -> bool {
        self.set().contains(&id)
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
    }
}
