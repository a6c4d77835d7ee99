//! The units of a host, and which of them each part of a request may get.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use hotslot_driver::pci::PciAddress;
use hotslot_driver::vf::KEYS;

use super::candidates::{CandidateSet, Wanted};
use super::reason::{Category, Reason};
use super::shortage::{LeftOut, Shortage, Siblings};
use crate::device::{DevType, Device, DeviceFacts, DeviceStatus};
use crate::rules::alias::tag_differs;
use crate::rules::keys::is_grouping_key;

/// The sort key of a unit, the least first: NUMA rank, number of tags, whether it needs other devices, the address of
/// its PF (or its own if it has none), its own address.
pub(super) type Order = (u8, usize, bool, PciAddress, PciAddress);

/// One part of a request and its candidate units, in order of preference.
pub(super) struct Part {
    pub(super) count: usize,
    pub(super) candidates: Vec<usize>,
}

/// A candidate set with indexes for the lookups that the choice needs often.
pub(super) struct Table<'s, 'a> {
    pub(super) candidate_set: &'s CandidateSet<'a>,
    /// First each device as a unit, in the order of the candidate set; then the IOMMU groups.
    pub(super) units: Vec<Vec<&'a Arc<Device>>>,
    /// The addresses of the devices in use.
    held: HashSet<PciAddress>,
    /// For each PF that has a VF in use: the address of one such VF.
    held_vfs: HashMap<PciAddress, PciAddress>,
    /// For each IOMMU group with a member that is not a device of the candidate set: the address of one such member.
    strangers: HashMap<u32, PciAddress>,
    /// The busy members of each IOMMU group that has any.
    pub(super) busy: HashMap<u32, Vec<PciAddress>>,
    /// The index in `units` of each single device.
    pub(super) places: HashMap<PciAddress, usize>,
}

impl<'s, 'a> Table<'s, 'a> {
    pub(super) fn new(candidate_set: &'s CandidateSet<'a>) -> Self {
        let mut groups = BTreeMap::<u32, Vec<&'a Arc<Device>>>::new();
        let (mut held, mut held_vfs) = (HashSet::new(), HashMap::new());
        for device in candidate_set.devices {
            let address = device.facts.address;
            if let Some(group) = candidate_set.groups.get(&address) {
                groups.entry(*group).or_default().push(device);
            }
            if is_held(device) {
                held.insert(address);
                held_vfs.extend(device.facts.parent_addr.map(|pf| (pf, address)));
            }
        }
        let singles = candidate_set.devices.iter().map(|device| vec![device]);
        let listed: HashSet<_> = candidate_set.devices.iter().map(|device| device.facts.address).collect();
        let strangers = candidate_set.groups.iter().filter(|(address, _)| !listed.contains(address));
        let strangers = strangers.map(|(address, group)| (*group, *address)).collect();
        let mut busy = HashMap::<u32, Vec<PciAddress>>::new();
        for address in candidate_set.busy.keys() {
            if let Some(group) = candidate_set.groups.get(address) {
                busy.entry(*group).or_default().push(*address);
            }
        }
        let devices = candidate_set.devices.iter().enumerate();
        let places = devices.map(|(unit, device)| (device.facts.address, unit)).collect();
        let units = singles.chain(groups.into_values()).collect();
        Self { candidate_set, units, held, held_vfs, strangers, busy, places }
    }

    /// Returns the other busy members of a device's IOMMU group. A request can have the device only with all of them.
    pub(super) fn needs(&self, device: &Device) -> impl Iterator<Item = PciAddress> + '_ {
        let address = device.facts.address;
        let group = self.candidate_set.groups.get(&address).and_then(|group| self.busy.get(group));
        group.into_iter().flatten().copied().filter(move |member| *member != address)
    }

    /// Whether a request for `count` devices out of `candidates` can include every device that `unit` needs.
    fn is_whole(&self, unit: usize, count: usize, candidates: &HashSet<usize>) -> bool {
        let [device] = self.units[unit][..] else { return true };
        let needed = self.needs(device).map(|address| self.places.get(&address));
        let mut others = 0;
        for place in needed {
            others += 1;
            if place.is_none_or(|place| !candidates.contains(place)) {
                return false;
            }
        }
        others == 0 || others < count
    }

    /// Returns the message that names the busy members of a device's IOMMU group.
    pub(super) fn not_viable(&self, device: &Device) -> String {
        let address = device.facts.address;
        let group = self.candidate_set.groups.get(&address).map(u32::to_string).unwrap_or_default();
        let members = self.needs(device).map(|member| {
            let driver = self.candidate_set.busy.get(&member).map_or("", String::as_str);
            format!("its member {member} is bound to the host driver {driver}")
        });
        let members = members.collect::<Vec<_>>().join(", ");
        format!("IOMMU group {group} of {address} is not viable: {members}")
    }

    /// Returns what can be done about the busy members that a device needs. `alone` says whether the request has only
    /// this part.
    pub(super) fn siblings(&self, wanted: &Wanted<'_>, device: &Device, alone: bool) -> Siblings {
        let needed: Vec<_> = self.needs(device).collect();
        let given = |member: &PciAddress| {
            let member = self.places.get(member).and_then(|place| self.candidate_set.devices.get(*place));
            member.is_some_and(|member| self.single(wanted, member).is_ok())
        };
        let at_once = (alone && needed.iter().all(given)).then_some(needed.len() + 1);
        // Unbinding a PF from its host driver removes its VFs.
        let of_its_pf = device.facts.parent_addr.is_some_and(|pf| needed.contains(&pf));
        Siblings { unbind: if of_its_pf { Vec::new() } else { needed }, at_once }
    }

    /// Whether the whole IOMMU group of a device is offered to this part.
    pub(super) fn is_usable_whole(&self, wanted: &Wanted<'_>, device: &Device) -> bool {
        let group = self.candidate_set.groups.get(&device.facts.address);
        let of_it = |member: &&'a Arc<Device>| self.candidate_set.groups.get(&member.facts.address) == group;
        let members: Vec<_> = self.candidate_set.devices.iter().filter(of_it).collect();
        group.is_some() && self.group(wanted, &members).is_ok()
    }

    /// Returns the units that a part considers, each with its sort key or the reason why it is not offered.
    pub(super) fn verdicts(
        &self,
        wanted: &Wanted<'_>,
    ) -> impl Iterator<Item = (usize, Result<Order, Reason<'a>>)> {
        let (singles, groups) = self.units.split_at(self.candidate_set.devices.len());
        let groups = if wanted.whole_group { groups } else { &[] };
        let verdict = |device: &'a Arc<Device>| {
            if !wanted.whole_group {
                return Some(self.single(wanted, device));
            }
            let grouped = self.candidate_set.groups.contains_key(&device.facts.address);
            (!grouped).then(|| Err(wants(wanted, &device.facts).err().unwrap_or(Reason::NoGroup)))
        };
        let singles = singles.iter().flatten().map(move |device| verdict(device));
        let groups = groups.iter().map(|members| Some(self.group(wanted, members)));
        singles.chain(groups).enumerate().filter_map(|(unit, verdict)| Some((unit, verdict?)))
    }

    /// Returns the parts of a request, without the candidates whose busy group members the request cannot take.
    pub(super) fn parts(&self, wanted: &[Wanted<'_>]) -> Vec<Part> {
        let mut parts: Vec<Part> = wanted.iter().map(|wanted| self.part(wanted)).collect();
        if !self.busy.is_empty() {
            let all: HashSet<usize> = parts.iter().flat_map(|part| &part.candidates).copied().collect();
            let count = wanted.iter().fold(0usize, |sum, wanted| sum.saturating_add(wanted.count));
            for part in &mut parts {
                part.candidates.retain(|unit| self.is_whole(*unit, count, &all));
            }
        }
        parts
    }

    fn part(&self, wanted: &Wanted<'_>) -> Part {
        let verdicts = self.verdicts(wanted);
        let mut candidates: Vec<(Order, usize)> =
            verdicts.filter_map(|(unit, verdict)| Some((verdict.ok()?, unit))).collect();
        candidates.sort_unstable();
        Part { count: wanted.count, candidates: candidates.into_iter().map(|(_, unit)| unit).collect() }
    }

    /// Returns the error for a part that finds too few units. `alone` says whether the request has only this part.
    pub(super) fn shortage(&self, wanted: &Wanted<'_>, part: &Part, alone: bool) -> Shortage {
        let candidates: HashSet<usize> = part.candidates.iter().copied().collect();
        let (mut busy, mut siblings) = (BTreeSet::new(), None);
        let mut free = 0;
        let mut left_out = BTreeMap::new();
        let mut nearest: Option<(&Device, (bool, usize), Vec<String>)> = None;
        for (unit, verdict) in self.verdicts(wanted) {
            let Some(device) = self.units[unit].first() else { continue };
            let reason = match verdict {
                Ok(_) if candidates.contains(&unit) => {
                    free += 1;
                    continue;
                }
                Ok(_) => {
                    busy.extend(self.needs(device));
                    siblings.get_or_insert_with(|| self.siblings(wanted, device, alone));
                    let example = || about(device, self.not_viable(device));
                    let left_out = left_out.entry(Category::Busy);
                    let first = device.facts.address;
                    left_out.or_insert_with(|| LeftOut { count: 0, first, example: example() }).count += 1;
                    continue;
                }
                Err(reason) => reason,
            };
            let Some(category) = reason.category() else {
                let (distance, keys) = wanted.alias.distance(&device.facts);
                if nearest.as_ref().is_none_or(|(_, least, _)| distance < *least) {
                    nearest = Some((device, distance, keys));
                }
                continue;
            };
            let example = || about(device, reason.of(device, wanted));
            let first = reason.subject(device);
            let left_out = left_out.entry(category);
            left_out.or_insert_with(|| LeftOut { count: 0, first, example: example() }).count += 1;
        }
        let Wanted { alias, count, whole_group, numa_policy: _, vf: _, tags: _, vgpu: _ } = *wanted;
        let nearest = nearest.map(|(device, _, keys)| about(device, keys.join("; ")));
        Shortage {
            requester: alias.requester(),
            wanted: count,
            free,
            whole_group,
            left_out,
            nearest,
            together: None,
            busy,
            siblings,
            other_way: false,
            fewer: None,
        }
    }

    fn single(&self, wanted: &Wanted<'_>, device: &'a Arc<Device>) -> Result<Order, Reason<'a>> {
        wants(wanted, &device.facts)?;
        self.free(device)?;
        of_type(wanted, &device.facts)?;
        self.order(wanted, device)
    }

    /// Returns the sort key of a whole group: the best key of those members that match the alias.
    fn group(&self, wanted: &Wanted<'_>, members: &[&'a Arc<Device>]) -> Result<Order, Reason<'a>> {
        let requested = members.iter().map(|member| {
            wants(wanted, &member.facts)?;
            of_type(wanted, &member.facts)?;
            self.order(wanted, member)
        });
        let best = requested.reduce(|one, other| match (one, other) {
            (Ok(one), Ok(other)) => Ok(one.min(other)),
            (Ok(one), Err(_)) | (Err(_), Ok(one)) => Ok(one),
            // Prefer the reason of a member that matches the alias.
            (Err(Reason::Kind), Err(other)) => Err(other),
            (Err(one), Err(_)) => Err(one),
        });
        let best = best.unwrap_or(Err(Reason::Kind))?;
        let number = members.first().and_then(|member| self.candidate_set.groups.get(&member.facts.address));
        if let Some(member) = number.and_then(|number| self.strangers.get(number)) {
            return Err(Reason::Stranger(*member));
        }
        for member in members {
            self.free(member).map_err(|reason| Reason::Member(member, Box::new(reason)))?;
        }
        let pf = |member: &&Arc<Device>| member.facts.parent_addr;
        match members
            .iter()
            .filter_map(pf)
            .find(|pf| members.iter().any(|member| member.facts.address == *pf))
        {
            Some(pf) => Err(Reason::Family(pf)),
            None => Ok(best),
        }
    }

    fn free(&self, device: &'a Arc<Device>) -> Result<(), Reason<'a>> {
        if is_held(device) {
            return Err(Reason::InUse);
        }
        match device.status {
            DeviceStatus::Available | DeviceStatus::Claimed | DeviceStatus::Allocated => {}
            DeviceStatus::Unclaimable | DeviceStatus::Unavailable => return Err(Reason::Hidden),
            DeviceStatus::Removed | DeviceStatus::Deleted => return Err(Reason::Gone),
        }
        // The row's status may not show it yet: a PF in use makes its VFs unavailable, and a VF in use its PF.
        if let Some(pf) = device.facts.parent_addr.filter(|pf| self.held.contains(pf)) {
            return Err(Reason::PfHeld(pf));
        }
        if let Some(vf) = self.held_vfs.get(&device.facts.address) {
            return Err(Reason::VfHeld(*vf));
        }
        match self.candidate_set.unavailable.get(&device.id) {
            Some(reason) => Err(Reason::Unavailable(reason)),
            None => Ok(()),
        }
    }

    fn order(&self, wanted: &Wanted<'_>, device: &Device) -> Result<Order, Reason<'a>> {
        let facts = &device.facts;
        let rank = wanted.rank(facts, self.candidate_set.guest_nodes, self.candidate_set.sockets);
        let tags = number_of_tags(facts);
        let needs_others = !wanted.whole_group && self.needs(device).next().is_some();
        let pf = facts.parent_addr.unwrap_or(facts.address);
        Ok((rank.map_err(Reason::Numa)?, tags, needs_others, pf, facts.address))
    }
}

impl Wanted<'_> {
    /// Returns the NUMA rank of a device and its number of tags, the first parts of its place in the order of preference;
    /// `None` when this part does not want it, wherever it is on the bus.
    pub(in crate::rules) fn preference(
        &self,
        facts: &DeviceFacts,
        guest_nodes: &BTreeSet<u32>,
        sockets: Option<&BTreeMap<u32, u32>>,
    ) -> Option<(u8, usize)> {
        wants(self, facts).ok()?;
        Some((self.rank(facts, guest_nodes, sockets).ok()?, number_of_tags(facts)))
    }

    fn rank(
        &self,
        facts: &DeviceFacts,
        guest_nodes: &BTreeSet<u32>,
        sockets: Option<&BTreeMap<u32, u32>>,
    ) -> Result<u8, String> {
        self.numa_policy.unwrap_or(self.alias.numa_policy).rank(facts.numa_node, guest_nodes, sockets)
    }
}

/// Returns a reason with the address of its device, unless the reason names it itself.
fn about(device: &Device, reason: String) -> String {
    let address = device.facts.address.to_string();
    if reason.contains(&address) { reason } else { format!("{address}: {reason}") }
}

fn number_of_tags(facts: &DeviceFacts) -> usize {
    facts.extra_info.keys().filter(|key| is_grouping_key(key)).count()
}

/// Checks whether a device matches the alias and the further conditions of a part.
fn wants<'a>(wanted: &Wanted<'_>, facts: &DeviceFacts) -> Result<(), Reason<'a>> {
    if !wanted.alias.matches(facts) {
        return Err(Reason::Kind);
    }
    // A VF that carries a vDPA device is unavailable, with what to do about that.
    if wanted.vf && !matches!(facts.dev_type, DevType::Vf | DevType::Vdpa) {
        let kind = facts.dev_type;
        return Err(Reason::NotVf(format!("it is {kind}, and the request has settings of VFs ({KEYS})")));
    }
    let differs = |(key, value): (&String, &String)| tag_differs(facts, key, Some(value));
    wanted.tags.iter().find_map(differs).map_or(Ok(()), |differs| Err(Reason::Besides(differs)))
}

/// Checks whether a device can be of the type of virtual GPU that a part asks for.
fn of_type<'a>(wanted: &Wanted<'_>, facts: &DeviceFacts) -> Result<(), Reason<'a>> {
    wanted.vgpu.and_then(|choice| choice.why_not(facts.address)).map_or(Ok(()), |why| Err(Reason::Vgpu(why)))
}

fn is_held(device: &Device) -> bool {
    device.owner.is_some() || matches!(device.status, DeviceStatus::Claimed | DeviceStatus::Allocated)
}
