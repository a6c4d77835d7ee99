//! Calls that were given up at their limit and have not come back: a device that does not let its driver go keeps
//! libvirt's thread, and there is nothing to be done about it from outside but to know it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use uuid::Uuid;

/// A call that has not come back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OverdueCall {
    /// What it is for, for people.
    pub operation: String,
    /// The domain that it may change, if it is one that changes a domain.
    pub domain: Option<Uuid>,
    /// How long it is out.
    pub elapsed: Duration,
}

/// The overdue calls of one host.
#[derive(Debug, Clone, Default)]
pub(crate) struct Overdue(Arc<Mutex<Vec<Arc<Call>>>>);

#[derive(Debug)]
struct Call {
    operation: String,
    domain: Option<Uuid>,
    begun: Instant,
}

impl Overdue {
    fn calls(&self) -> MutexGuard<'_, Vec<Arc<Call>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes a call that began at `begun`, until the guard is dropped.
    pub(crate) fn note(&self, operation: String, domain: Option<Uuid>, begun: Instant) -> Guard {
        let call = Arc::new(Call { operation, domain, begun });
        self.calls().push(Arc::clone(&call));
        Guard { of: self.clone(), call }
    }

    pub(crate) fn count(&self) -> usize {
        self.calls().len()
    }

    /// The calls, the oldest first.
    pub(crate) fn list(&self) -> Vec<OverdueCall> {
        let mut calls: Vec<_> = self
            .calls()
            .iter()
            .map(|call| OverdueCall {
                operation: call.operation.clone(),
                domain: call.domain,
                elapsed: call.begun.elapsed(),
            })
            .collect();
        calls.sort_by_key(|call| std::cmp::Reverse(call.elapsed));
        calls
    }
}

/// Forgets its call when it is dropped.
#[must_use]
pub(crate) struct Guard {
    of: Overdue,
    call: Arc<Call>,
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.of.calls().retain(|call| !Arc::ptr_eq(call, &self.call));
    }
}
