//! How often a guest was asked to release a device, while it is being asked.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use hotslot_model::id::AttachmentId;

/// The detaches for which a guest is being asked now, each with the number of the latest request.
#[derive(Debug, Clone, Default)]
pub(crate) struct Asking(Arc<Mutex<HashMap<AttachmentId, Arc<AtomicU32>>>>);

impl Asking {
    /// Begins to count the requests for one device. They are counted until the value is dropped.
    pub(super) fn begin(&self, id: AttachmentId) -> Counted {
        let count = Arc::new(AtomicU32::new(0));
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(id, Arc::clone(&count));
        Counted { asking: self.clone(), id, count }
    }

    /// Returns the number of the latest request, from 1; `None` when the guest is not being asked.
    pub(crate) fn attempt(&self, id: AttachmentId) -> Option<u32> {
        let asking = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        asking.get(&id).map(|count| count.load(Ordering::Relaxed)).filter(|attempt| *attempt > 0)
    }
}

/// The count of the requests for one device.
pub(super) struct Counted {
    asking: Asking,
    id: AttachmentId,
    pub(super) count: Arc<AtomicU32>,
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.asking.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.id);
    }
}
