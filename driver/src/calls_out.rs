//! The list of a host's calls that were given up at their time limit and have not returned yet.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use uuid::Uuid;

use crate::hypervisor::Event;
use crate::overdue::OverdueCall;
use crate::pci::PciAddress;
use crate::text;

/// The object that a call may change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Subject {
    /// The call only reads, or it changes an object that hotslot has no record of.
    Nothing,
    /// A domain.
    Domain(Uuid),
    /// A PCI function of the host, or the mediated devices on it.
    Function(PciAddress),
}

impl Subject {
    /// The event to send when the call returns after it was given up.
    pub(crate) fn came_back(self) -> Option<Event> {
        match self {
            Self::Nothing => None,
            Self::Domain(domain) => Some(Event::CallReturned { domain }),
            Self::Function(address) => Some(Event::NodeCallReturned { address }),
        }
    }

    fn domain(self) -> Option<Uuid> {
        match self {
            Self::Domain(domain) => Some(domain),
            Self::Nothing | Self::Function(_) => None,
        }
    }

    fn address(self) -> Option<PciAddress> {
        match self {
            Self::Function(address) => Some(address),
            Self::Nothing | Self::Domain(_) => None,
        }
    }
}

/// The overdue calls of one host.
#[derive(Debug, Clone, Default)]
pub(crate) struct Overdue(Arc<Mutex<Vec<Arc<Call>>>>);

#[derive(Debug)]
struct Call {
    operation: String,
    subject: Subject,
    begun: Instant,
}

impl Overdue {
    fn calls(&self) -> MutexGuard<'_, Vec<Arc<Call>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lists a call that began at `begun` until the returned guard is dropped. `operation` is escaped, because it may
    /// contain the name of a guest.
    pub(crate) fn note(&self, operation: String, subject: Subject, begun: Instant) -> Guard {
        let operation = text::escape(&operation).into_owned();
        let call = Arc::new(Call { operation, subject, begun });
        self.calls().push(Arc::clone(&call));
        Guard { of: self.clone(), call }
    }

    pub(crate) fn count(&self) -> usize {
        self.calls().len()
    }

    /// Returns the calls, the oldest first.
    pub(crate) fn list(&self) -> Vec<OverdueCall> {
        let mut calls: Vec<_> = self
            .calls()
            .iter()
            .map(|call| OverdueCall {
                operation: call.operation.clone(),
                domain: call.subject.domain(),
                address: call.subject.address(),
                elapsed: call.begun.elapsed(),
            })
            .collect();
        calls.sort_by_key(|call| std::cmp::Reverse(call.elapsed));
        calls
    }
}

/// Removes its call from the list when it is dropped.
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
