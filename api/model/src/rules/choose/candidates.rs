//! What a choice is made from: the parts of a request, and what is known of the host.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use hotslot_driver::pci::PciAddress;

use crate::device::Device;
use crate::id::DeviceId;
use crate::rules::alias::Alias;
use crate::rules::numa::NumaPolicy;

/// One part of a request: `vf:2`.
#[derive(Debug, Clone)]
pub struct Wanted<'a> {
    /// What kind of device.
    pub alias: &'a Alias,
    /// How many devices, or groups.
    pub count: usize,
    /// In place of the alias' own policy.
    pub numa_policy: Option<NumaPolicy>,
    /// Whether whole IOMMU groups are wanted, of which one member at least is of the alias.
    pub whole_group: bool,
    /// Whether only VFs will do.
    pub vf: bool,
    /// What their `extra_info` has to say besides.
    pub tags: &'a BTreeMap<String, String>,
}

/// What is known of one host, and of the guest.
#[derive(Debug, Clone)]
pub struct CandidateSet<'a> {
    /// All rows of the host.
    pub devices: &'a [Arc<Device>],
    /// Devices that are not offered, and why, as in "it is …".
    pub withheld: &'a HashMap<DeviceId, String>,
    /// The host's NUMA nodes that the guest's cells are on; empty: the guest has no NUMA cells.
    pub guest_nodes: &'a BTreeSet<u32>,
    /// The socket of each NUMA node, where the host tells.
    pub sockets: Option<&'a BTreeMap<u32, u32>>,
    /// The IOMMU group of each function that would go with it, where it is known.
    pub groups: &'a HashMap<PciAddress, u32>,
    /// The host driver of each function that keeps the others of its IOMMU group from a guest: these go together.
    pub busy: &'a BTreeMap<PciAddress, String>,
}
