//! The input of a choice: the parts of a request, and the state of the host and the guest.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use hotslot_driver::pci::PciAddress;

use crate::device::Device;
use crate::id::DeviceId;
use crate::rules::alias::Alias;
use crate::rules::numa::NumaPolicy;
use crate::rules::vgpu_choice::VgpuChoice;

/// One part of a request, such as `vf:2`.
#[derive(Debug, Clone)]
pub struct Wanted<'a> {
    /// The alias that the devices must match.
    pub alias: &'a Alias,
    /// The number of devices, or of IOMMU groups when `whole_group` is set.
    pub count: usize,
    /// The NUMA policy of the request. It replaces the policy of the alias.
    pub numa_policy: Option<NumaPolicy>,
    /// Whether the request is for whole IOMMU groups. At least one member of each group must match the alias.
    pub whole_group: bool,
    /// Whether only VFs are allowed.
    pub vf: bool,
    /// Further tags that the `extra_info` of each device must have.
    pub tags: &'a BTreeMap<String, String>,
    /// Which VFs can be of the type of virtual GPU that this part asks for; `None` when it asks for none.
    pub vgpu: Option<&'a VgpuChoice>,
}

/// The devices of one host, and what the choice has to know about the host and the guest.
#[derive(Debug, Clone)]
pub struct CandidateSet<'a> {
    /// All device rows of the host.
    pub devices: &'a [Arc<Device>],
    /// The devices that are unavailable, each with the reason. A reason is a clause such as "it is …".
    pub unavailable: &'a HashMap<DeviceId, String>,
    /// The host NUMA nodes that the guest's NUMA cells are placed on. Empty when the guest has no NUMA cells.
    pub guest_nodes: &'a BTreeSet<u32>,
    /// The CPU socket of each NUMA node, when the host reports it.
    pub sockets: Option<&'a BTreeMap<u32, u32>>,
    /// The IOMMU group of each function, where it is known. Bridges are left out, because they need not be attached
    /// with their group.
    pub groups: &'a HashMap<PciAddress, u32>,
    /// The host driver of each busy function. While such a function is bound to its host driver, the other members
    /// of its IOMMU group cannot be attached to a guest.
    pub busy: &'a BTreeMap<PciAddress, String>,
}
