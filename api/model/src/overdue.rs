//! Calls to hypervisors that one of several processes has given up and that have not returned.

use hotslot_driver::pci::PciAddress;

use crate::id::{HypervisorId, ServerId};
use crate::time::Millis;

/// A call that has not returned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OverdueElsewhere {
    /// The host.
    pub hypervisor: HypervisorId,
    /// What it is for, for people.
    pub operation: String,
    /// The server that it may change.
    pub server: Option<ServerId>,
    /// The PCI function that it may change.
    pub address: Option<PciAddress>,
    /// When it began.
    pub since: Millis,
}

impl OverdueElsewhere {
    /// Whether this is the same call, whenever it is said to have begun.
    pub fn is_same(&self, other: &Self) -> bool {
        Self { since: other.since, ..self.clone() } == *other
    }
}
