//! The devices that attaches have chosen and are about to claim. Other attaches prefer other devices, so that many attaches
//! at once do not all choose the same one. Whether a device can be claimed, the store alone decides.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use hotslot_model::id::DeviceId;

/// The chosen devices.
#[derive(Debug, Default)]
pub(crate) struct Choosing(Mutex<HashSet<DeviceId>>);

/// Some chosen devices. Others may choose them again when this is dropped.
#[derive(Debug)]
#[must_use]
pub(super) struct Choice {
    all: Arc<Choosing>,
    own: Vec<DeviceId>,
}

impl Choosing {
    fn all(&self) -> MutexGuard<'_, HashSet<DeviceId>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Chooses devices with `choose`, which gets those that others have chosen. `ids` returns the devices of its result.
    pub(super) fn choose<T>(
        self: &Arc<Self>,
        choose: impl FnOnce(&HashSet<DeviceId>) -> Option<T>,
        ids: impl FnOnce(&T) -> Vec<DeviceId>,
    ) -> Option<(T, Choice)> {
        let mut all = self.all();
        let chosen = choose(&all)?;
        let own = ids(&chosen);
        all.extend(own.iter().copied());
        Some((chosen, Choice { all: Arc::clone(self), own }))
    }
}

impl Drop for Choice {
    fn drop(&mut self) {
        let mut all = self.all.all();
        for id in &self.own {
            all.remove(id);
        }
    }
}
