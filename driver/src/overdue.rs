//! Calls that were given up at their time limit and have not returned yet. A device whose driver cannot be unbound
//! blocks libvirt's thread. No other process can end such a call, so hotslot only records and reports it.

use std::fmt;
use std::time::Duration;

use uuid::Uuid;

use crate::pci::PciAddress;

/// A call that was given up and has not returned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OverdueCall {
    /// The operation, for people: `attach to domain g1`.
    pub operation: String,
    /// The domain that the call may change, if it changes a domain.
    pub domain: Option<Uuid>,
    /// The PCI function that the call may change, if it changes one. For a call on a mediated device it is the parent
    /// function.
    pub address: Option<PciAddress>,
    /// The time since the call began.
    pub elapsed: Duration,
}

impl fmt::Display for OverdueCall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.elapsed.as_secs();
        write!(f, "a call to the hypervisor has not returned for {seconds} s: {}", self.operation)
    }
}
