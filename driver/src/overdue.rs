//! Calls that were given up at their limit and have not come back: a device that does not let its driver go keeps
//! libvirt's thread, and there is nothing to be done about it from outside but to know it.

use std::fmt;
use std::time::Duration;

use uuid::Uuid;

use crate::pci::PciAddress;

/// A call that has not come back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OverdueCall {
    /// What it is for, for people.
    pub operation: String,
    /// The domain that it may change, if it is one that changes a domain.
    pub domain: Option<Uuid>,
    /// The PCI function that it may change, if it is one that changes a function; of a mediated device its parent.
    pub address: Option<PciAddress>,
    /// How long it is out.
    pub elapsed: Duration,
}

/// For people.
impl fmt::Display for OverdueCall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.elapsed.as_secs();
        write!(f, "a call to the hypervisor did not come back for {seconds} s: {}", self.operation)
    }
}
