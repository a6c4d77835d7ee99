//! Hypervisor calls of other processes that passed their time limit and have not returned.

use hotslot_driver::pci::PciAddress;

use crate::id::{HypervisorId, ServerId};
use crate::time::Millis;

/// A hypervisor call of another process that has not returned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OverdueElsewhere {
    /// The host.
    pub hypervisor: HypervisorId,
    /// The operation, as text for messages.
    pub operation: String,
    /// The server that the call may change.
    pub server: Option<ServerId>,
    /// The PCI function that the call may change.
    pub address: Option<PciAddress>,
    /// When the call began.
    pub since: Millis,
}

impl OverdueElsewhere {
    /// Whether two records are of the same call. Ignores the start time.
    pub fn is_same(&self, other: &Self) -> bool {
        Self { since: other.since, ..self.clone() } == *other
    }
}
