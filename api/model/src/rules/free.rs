//! The free devices of a host by kind. From them most requests are served without a look at every device of the host.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use hotslot_driver::pci::{PciAddress, PciId};
use itertools::Itertools as _;

use super::choose::{CandidateSet, Wanted, choose_simply};
use super::keys::{is_grouping_key, is_own};
use crate::device::{DevType, Device, DeviceFacts, DeviceStatus};
use crate::texts::Texts;

/// The largest number of devices that a request asks for and that are looked at, before all devices of the host are.
const LOOKED_AT: usize = 64;

/// What free devices have in common: whether a part of a request wants them, and their rank, depend on nothing else.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Kind {
    vendor_id: PciId,
    product_id: PciId,
    dev_type: DevType,
    numa_node: Option<u32>,
    /// The tags, and what an alias can ask for.
    extra_info: Texts,
}

/// The address of the PF, or the device's own if it has none, and its own address: the order within one kind.
type Place = (PciAddress, PciAddress);

/// The free devices of one host: those that are available and have no owner.
#[derive(Debug, Default)]
pub struct FreeDevices {
    kinds: HashMap<Kind, BTreeMap<Place, Arc<Device>>>,
}

/// What a choice has to know about the host and the guest, besides the free devices.
pub struct Surroundings<'a, F> {
    /// The host NUMA nodes that the guest's NUMA cells are placed on. Empty when the guest has no NUMA cells.
    pub guest_nodes: &'a BTreeSet<u32>,
    /// The CPU socket of each NUMA node, when the host reports it.
    pub sockets: Option<&'a BTreeMap<u32, u32>>,
    /// Whether a device is unavailable to the request.
    pub is_unavailable: F,
}

impl FreeDevices {
    /// Adds a device if it is free.
    pub fn insert(&mut self, device: &Arc<Device>) {
        if device.status == DeviceStatus::Available && device.owner.is_none() {
            self.kinds
                .entry(kind(&device.facts))
                .or_default()
                .insert(place(&device.facts), Arc::clone(device));
        }
    }

    /// Removes a device.
    pub fn remove(&mut self, device: &Device) {
        let kind = kind(&device.facts);
        if let Some(devices) = self.kinds.get_mut(&kind) {
            devices.remove(&place(&device.facts));
            if devices.is_empty() {
                self.kinds.remove(&kind);
            }
        }
    }

    /// Chooses devices for all parts of a request as [`choose`](super::choose()) does among all devices of the host,
    /// for requests where the devices that are preferred depend on no other device of the host. `None` says that this
    /// is no such request, or that it cannot be met.
    ///
    /// A part of a request for `n` devices in total never gets a device after its `n` most preferred available ones,
    /// because the other parts leave it at least one of these. So only these are looked at.
    pub fn choose(
        &self,
        wanted: &[Wanted<'_>],
        around: &Surroundings<'_, impl Fn(&Device) -> Unavailable>,
    ) -> Option<Vec<Vec<Arc<Device>>>> {
        let total: usize = wanted.iter().map(|part| part.count).sum();
        if total > LOOKED_AT || wanted.iter().any(|part| part.whole_group) {
            return None;
        }
        let mut preferred = BTreeMap::new();
        for part in wanted {
            let (mut left, mut found) = (LOOKED_AT, 0);
            for device in self.in_order(part, around.guest_nodes, around.sockets) {
                if found == total {
                    break;
                }
                left = left.checked_sub(1)?;
                if part.vgpu.is_some_and(|choice| choice.why_not(device.facts.address).is_some()) {
                    continue;
                }
                match (around.is_unavailable)(device) {
                    Unavailable::No => {
                        found += 1;
                        preferred.insert(device.facts.address, Arc::clone(device));
                    }
                    Unavailable::Yes => {}
                    Unavailable::DependsOnOthers => return None,
                }
            }
        }
        let devices: Vec<_> = preferred.into_values().collect();
        let candidate_set = CandidateSet {
            devices: &devices,
            unavailable: &HashMap::new(),
            guest_nodes: around.guest_nodes,
            sockets: around.sockets,
            groups: &HashMap::new(),
            busy: &BTreeMap::new(),
        };
        let chosen = choose_simply(wanted, &candidate_set)?;
        Some(chosen.into_iter().map(|part| part.into_iter().cloned().collect()).collect())
    }

    /// Returns the free devices that a part wants, the most preferred first.
    fn in_order<'s>(
        &'s self,
        wanted: &Wanted<'_>,
        guest_nodes: &BTreeSet<u32>,
        sockets: Option<&BTreeMap<u32, u32>>,
    ) -> impl Iterator<Item = &'s Arc<Device>> {
        let kinds = self.kinds.values().filter_map(|devices| {
            let any = devices.values().next()?;
            let (rank, tags) = wanted.preference(&any.facts, guest_nodes, sockets)?;
            Some(devices.iter().map(move |(place, device)| ((rank, tags, *place), device)))
        });
        kinds.kmerge_by(|(one, _), (other, _)| one < other).map(|(_, device)| device)
    }
}

/// Whether a device is unavailable to a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unavailable {
    /// It is available.
    No,
    /// It is unavailable, whatever else the request gets.
    Yes,
    /// It depends on what else the request gets: another member of its IOMMU group is bound to a host driver.
    DependsOnOthers,
}

fn kind(facts: &DeviceFacts) -> Kind {
    // The other keys differ from device to device. No alias can ask for them, and they are no tags.
    let matters = |(key, _): &(&str, &str)| !is_own(key) || is_grouping_key(key);
    Kind {
        vendor_id: facts.vendor_id,
        product_id: facts.product_id,
        dev_type: facts.dev_type,
        numa_node: facts.numa_node,
        extra_info: facts.extra_info.iter().filter(matters).collect(),
    }
}

fn place(facts: &DeviceFacts) -> Place {
    (facts.parent_addr.unwrap_or(facts.address), facts.address)
}
