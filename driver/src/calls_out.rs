//! The calls of one host that were given up at their limit, for as long as they are out.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use uuid::Uuid;

use crate::hypervisor::Event;
use crate::overdue::OverdueCall;
use crate::pci::PciAddress;
use crate::text;

/// What a call may change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Subject {
    /// Nothing that is on record, or it only reads.
    Nothing,
    /// A domain.
    Domain(Uuid),
    /// A PCI function of the host, or the mediated devices that are made of it.
    Function(PciAddress),
}

impl Subject {
    /// What is told when a call that was given up has come back.
    pub(crate) fn came_back(self) -> Option<Event> {
        match self {
            Self::Nothing => None,
            Self::Domain(domain) => Some(Event::CameBack { domain }),
            Self::Function(address) => Some(Event::NodeCallCameBack { address }),
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

    /// Notes a call that began at `begun`, until the guard is dropped. What it is for may quote the name of a guest.
    pub(crate) fn note(&self, operation: String, subject: Subject, begun: Instant) -> Guard {
        let operation = text::escape(&operation).into_owned();
        let call = Arc::new(Call { operation, subject, begun });
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
                domain: call.subject.domain(),
                address: call.subject.address(),
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
