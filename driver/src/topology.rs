//! A domain's PCI tree: the bus numbers that its firmware gives, and its free hot-plug ports.
//!
//! libvirt's `bus` is a controller's index. The guest's bus numbers are those that firmware wrote into the
//! bridges.

use crate::domain::DomainXml;
use crate::pci::PciAddress;

/// The PCI tree of one domain document.
#[derive(Debug)]
pub struct Topology {}

/// One bridge on the way from the root bus to a device, as the guest sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hop {
    /// The bridge's own address in the guest, by the computed numbering.
    pub bridge: PciAddress,
    /// The bus behind it, by the computed numbering.
    pub secondary: u8,
}

/// What room a guest has for hot-plugging.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FreePorts {
    /// Free addresses for PCI Express devices, in the order in which libvirt takes them, in libvirt's numbering.
    pub express: Vec<PciAddress>,
    /// Free addresses for conventional PCI devices, in the order in which libvirt takes them.
    pub conventional: Vec<PciAddress>,
}

impl FreePorts {
    /// How many devices of a kind (PCI Express or conventional) there is room for.
    pub fn count_for(&self, express: bool) -> usize {
        if express { self.express.len() } else { self.conventional.len() }
    }
}

impl Topology {
    /// Numbers the buses of a domain as its firmware does.
    pub fn of(_domain: &DomainXml) -> Self {
        Self {}
    }

    /// The address at which the guest sees what libvirt has at `address`; none when the guest cannot see it
    /// (no such bus, or behind a bridge that firmware does not find).
    pub fn guest_address(&self, _address: PciAddress) -> Option<PciAddress> {
        None
    }

    /// The bridges from the root bus down to the bus of `address` (libvirt's numbering), outermost first;
    /// with them a guest can be asked for its own numbers. None when there is no such bus.
    pub fn path(&self, _address: PciAddress) -> Option<Vec<Hop>> {
        None
    }

    /// The free hot-plug addresses.
    pub fn free_ports(&self) -> FreePorts {
        FreePorts { express: Vec::new(), conventional: Vec::new() }
    }
}
