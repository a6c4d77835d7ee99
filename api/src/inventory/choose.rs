//! Which devices a request gets.
//!
//! What can be given is a *unit*: one device, or all functions of one IOMMU group. Each part of a request is
//! offered units in this order:
//!
//! 1. the NUMA rank of [`NumaPolicy::rank`];
//! 2. devices with fewer tags first, as Nova does: what is special is kept for those who ask for it;
//! 3. by address, the VFs of one PF together: they are packed, so that other PFs stay whole.
//!
//! All parts are served together, or none. A part takes the first free unit; where none is left for a later part,
//! units that are taken change hands along an augmenting path (bipartite matching). That does not see units that
//! exclude each other (a PF and its VFs, a group and its members): such a pair in the outcome makes two cases, one
//! that has the one, one that does not, until a choice without such pairs is found. Choosing whole PFs is a hard
//! problem (set packing), so the cases are limited to [`CASES`].
//!
//! [`NumaPolicy::rank`]: super::numa::NumaPolicy::rank

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::fmt;
use std::sync::Arc;

use hotslot_driver::pci::PciAddress;

use super::alias::{Alias, tag_differs};
use super::extra_info::is_grouping_key;
use super::numa::NumaPolicy;
use crate::id::DeviceId;
use crate::store::{DevType, Device, DeviceStatus};

/// How many cases of pairs that exclude each other are looked at: over 4,096 devices, about 0.2 s.
const CASES: usize = 500;

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
pub struct Scene<'a> {
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
}

/// A part of a request that cannot be met.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shortage {
    /// Who asks: an alias, or what a device is held on behalf of.
    pub asker: String,
    /// How many devices or groups were wanted.
    pub wanted: usize,
    /// How many would do, were it the only part.
    pub free: usize,
    whole_group: bool,
    left_out: BTreeMap<Category, LeftOut>,
    /// The device that comes nearest to the alias, and in what it differs.
    nearest: Option<String>,
    /// Why the parts cannot be served together, where each could be alone.
    together: Option<String>,
}

/// Units of the wanted kind that are left out for one reason.
#[derive(Debug, Clone, PartialEq, Eq)]
struct LeftOut {
    count: usize,
    /// The first of them, with its reason.
    example: String,
}

impl std::error::Error for Shortage {}

impl Shortage {
    /// How many of the kind are withheld.
    pub fn withheld(&self) -> usize {
        self.left_out.get(&Category::Withheld).map_or(0, |left_out| left_out.count)
    }

    /// Whether there would be enough, were none of them withheld.
    pub fn is_withheld(&self) -> bool {
        let withheld = self.withheld();
        withheld > 0 && self.free + withheld >= self.wanted
    }

    /// What helps.
    pub fn advice(&self) -> String {
        if self.together.is_some() {
            return "ask for fewer of them at once".to_owned();
        }
        let mut helps: Vec<_> = self.left_out.keys().map(|category| category.advice()).collect();
        helps.dedup();
        match &helps[..] {
            [] => "GET os-pci/detail lists what there is".to_owned(),
            helps => helps.join(", or "),
        }
    }
}

impl fmt::Display for Shortage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { asker, wanted, free, whole_group, left_out, nearest, together } = self;
        let what = if *whole_group { "IOMMU group(s)" } else { "device(s)" };
        write!(f, "{asker} asks for {wanted} {what}, {free} free")?;
        if let Some(together) = together {
            write!(f, ", but no choice was found that serves all parts of the request together: {together}")?;
        }
        if *free == 0 && left_out.is_empty() {
            write!(f, ": no assignable device is of this kind")?;
            if let Some(nearest) = nearest {
                write!(f, " (the nearest is {nearest})")?;
            }
        }
        for (nth, (category, LeftOut { count, example })) in left_out.iter().enumerate() {
            let mark = if nth == 0 { ":" } else { "," };
            write!(f, "{mark} {count} {} ({example})", category.words())?;
        }
        Ok(())
    }
}

/// The devices of a host, candidates first, with each one's place in the order in which they would be taken (from
/// 0; all members of a group have the same), or why it is none.
pub type Explanation<'a> = Vec<(&'a Arc<Device>, Result<usize, String>)>;

/// Chooses devices for all parts of a request: for each its devices, in order of preference. No device is given
/// twice, and no PF beside its own VF.
///
/// # Errors
/// [`Shortage`] of the first part that is short.
pub fn choose<'a>(wanted: &[Wanted<'_>], scene: &Scene<'a>) -> Result<Vec<Vec<&'a Arc<Device>>>, Shortage> {
    let table = Table::new(scene);
    let parts: Vec<Part> = wanted.iter().map(|wanted| table.part(wanted)).collect();
    let short = parts.iter().position(|part| part.candidates.len() < part.count);
    let mut search = Search { units: &table.units, parts: &parts, cases: CASES };
    let mut out = vec![false; table.units.len()];
    let taker = match short {
        Some(part) => return Err(table.shortage(&wanted[part], None)),
        None => search.solve(&mut out),
    };
    let taker = taker.map_err(|part| table.shortage(&wanted[part], Some(search.hindrance(&out))))?;
    let devices = |(index, part): (usize, &Part)| {
        let taken = part.candidates.iter().filter(|unit| taker[**unit] == Some(index));
        taken.flat_map(|unit| &table.units[*unit]).copied().collect()
    };
    Ok(parts.iter().enumerate().map(devices).collect())
}

/// Says of each device of a host what a request for it alone would find.
pub fn explain<'a>(wanted: &Wanted<'_>, scene: &Scene<'a>) -> Explanation<'a> {
    let table = Table::new(scene);
    let mut told: Explanation<'a> = Vec::new();
    for (place, unit) in table.part(wanted).candidates.into_iter().enumerate() {
        told.extend(table.units[unit].iter().map(|device| (*device, Ok(place))));
    }
    for (unit, verdict) in table.offers(wanted) {
        if let Err(reason) = verdict {
            told.extend(table.units[unit].iter().map(|device| (*device, Err(reason.of(device, wanted)))));
        }
    }
    told
}

/// What a unit is taken by, the least first: NUMA rank, number of tags, the PF's address or its own, its address.
type Order = (u8, usize, PciAddress, PciAddress);

/// Why a unit is not offered.
enum Reason<'a> {
    /// Not what the alias asks for.
    Kind,
    /// Not what the request asks for besides.
    Besides(String),
    InUse,
    /// Its row says that a relative is held.
    Hidden,
    /// Its row says that the host does not have it any more.
    Gone,
    PfHeld(PciAddress),
    VfHeld(PciAddress),
    Withheld(&'a str),
    Numa(String),
    NoGroup,
    /// A member of its group is no device of the table.
    Stranger(PciAddress),
    /// A member of its group cannot be given.
    Member(&'a Arc<Device>, Box<Self>),
    /// Its group has a PF and a VF of it.
    Family(PciAddress),
}

/// Reasons that are counted together, in the order in which they are told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Category {
    Besides,
    InUse,
    Relative,
    Withheld,
    Numa,
    Group,
    Gone,
}

impl Category {
    fn words(self) -> &'static str {
        match self {
            Self::Besides => "ruled out by what the request asks for besides",
            Self::InUse => "in use",
            Self::Relative => "kept back by a PF or VF in use",
            Self::Withheld => "withheld",
            Self::Numa => "ruled out by NUMA",
            Self::Group => "ruled out by the IOMMU group",
            Self::Gone => "gone from the host",
        }
    }

    /// What helps.
    fn advice(self) -> &'static str {
        match self {
            Self::Besides => "ask for what a device_spec says of them",
            Self::InUse | Self::Relative => "detach one",
            Self::Withheld => "see to what withholds them (`hotslot explain DEVICE`)",
            Self::Numa => "ask with another numa_policy",
            Self::Group => "ask without whole_group",
            Self::Gone => "look where the host has them now",
        }
    }
}

impl Reason<'_> {
    /// None for what was not asked for.
    fn category(&self) -> Option<Category> {
        match self {
            Self::Kind => None,
            Self::Besides(_) => Some(Category::Besides),
            Self::InUse => Some(Category::InUse),
            Self::Hidden | Self::PfHeld(_) | Self::VfHeld(_) => Some(Category::Relative),
            Self::Withheld(_) => Some(Category::Withheld),
            Self::Numa(_) => Some(Category::Numa),
            Self::Member(_, reason) if matches!(**reason, Self::Withheld(_)) => Some(Category::Withheld),
            Self::NoGroup | Self::Stranger(_) | Self::Member(..) | Self::Family(_) => Some(Category::Group),
            Self::Gone => Some(Category::Gone),
        }
    }

    /// The reason as it is told of a device.
    fn of(&self, device: &Device, wanted: &Wanted<'_>) -> String {
        match self {
            // A group has members of other kinds, too.
            Self::Kind => match &wanted.alias.mismatch(&device.facts)[..] {
                [] => "the alias does not ask for it".to_owned(),
                keys => format!("the alias does not ask for it: {}", keys.join("; ")),
            },
            // Not for whom: a refusal is read by others than the owner.
            Self::InUse | Self::Hidden | Self::Gone => format!("it is {}", device.status),
            Self::PfHeld(pf) => format!("its PF {pf} is in use"),
            Self::VfHeld(vf) => format!("its VF {vf} is in use"),
            Self::Withheld(reason) => (*reason).to_owned(),
            Self::Besides(reason) | Self::Numa(reason) => reason.clone(),
            Self::NoGroup => "its IOMMU group is not known".to_owned(),
            Self::Stranger(member) => {
                format!("{member} of its IOMMU group cannot be given: no device_spec lists it")
            }
            Self::Member(member, reason) => {
                format!(
                    "{} of its IOMMU group cannot be given: {}",
                    member.facts.address,
                    reason.of(member, wanted)
                )
            }
            Self::Family(pf) => format!("its IOMMU group has PF {pf} and a VF of it; only one can be given"),
        }
    }
}

/// A part with the units that would do for it, in order of preference.
struct Part {
    count: usize,
    candidates: Vec<usize>,
}

/// A scene with what has to be looked up often.
struct Table<'s, 'a> {
    scene: &'s Scene<'a>,
    /// Each device of its own, in the order of the scene; then the groups.
    units: Vec<Vec<&'a Arc<Device>>>,
    /// Where held devices are.
    held: HashSet<PciAddress>,
    /// A held VF of each PF that has one.
    held_vfs: HashMap<PciAddress, PciAddress>,
    /// A member of each group that has one which is no device of the scene.
    strangers: HashMap<u32, PciAddress>,
}

impl<'s, 'a> Table<'s, 'a> {
    fn new(scene: &'s Scene<'a>) -> Self {
        let mut groups = BTreeMap::<u32, Vec<&'a Arc<Device>>>::new();
        let (mut held, mut held_vfs) = (HashSet::new(), HashMap::new());
        for device in scene.devices {
            let address = device.facts.address;
            if let Some(group) = scene.groups.get(&address) {
                groups.entry(*group).or_default().push(device);
            }
            if is_held(device) {
                held.insert(address);
                held_vfs.extend(device.facts.parent_addr.map(|pf| (pf, address)));
            }
        }
        let singles = scene.devices.iter().map(|device| vec![device]);
        let listed: HashSet<_> = scene.devices.iter().map(|device| device.facts.address).collect();
        let strangers = scene.groups.iter().filter(|(address, _)| !listed.contains(address));
        let strangers = strangers.map(|(address, group)| (*group, *address)).collect();
        Self { scene, units: singles.chain(groups.into_values()).collect(), held, held_vfs, strangers }
    }

    /// The units that a part may ask for, and whether each would do.
    fn offers(&self, wanted: &Wanted<'_>) -> impl Iterator<Item = (usize, Result<Order, Reason<'a>>)> {
        let (singles, groups) = self.units.split_at(self.scene.devices.len());
        let groups = if wanted.whole_group { groups } else { &[] };
        let offer = |device: &'a Arc<Device>| {
            if !wanted.whole_group {
                return Some(self.single(wanted, device));
            }
            let grouped = self.scene.groups.contains_key(&device.facts.address);
            (!grouped).then(|| Err(wants(wanted, device).err().unwrap_or(Reason::NoGroup)))
        };
        let singles = singles.iter().flatten().map(move |device| offer(device));
        let groups = groups.iter().map(|members| Some(self.group(wanted, members)));
        singles.chain(groups).enumerate().filter_map(|(unit, offer)| Some((unit, offer?)))
    }

    fn part(&self, wanted: &Wanted<'_>) -> Part {
        let offers = self.offers(wanted);
        let mut candidates: Vec<(Order, usize)> =
            offers.filter_map(|(unit, offer)| Some((offer.ok()?, unit))).collect();
        candidates.sort_unstable();
        Part { count: wanted.count, candidates: candidates.into_iter().map(|(_, unit)| unit).collect() }
    }

    fn shortage(&self, wanted: &Wanted<'_>, together: Option<String>) -> Shortage {
        let mut free = 0;
        let mut left_out = BTreeMap::new();
        let mut nearest: Option<(&Device, ((bool, usize), Vec<String>))> = None;
        for (unit, offer) in self.offers(wanted) {
            let Err(reason) = offer else {
                free += 1;
                continue;
            };
            let Some(device) = self.units[unit].first() else { continue };
            let Some(category) = reason.category() else {
                let differs = wanted.alias.distance(&device.facts);
                if nearest.as_ref().is_none_or(|(_, least)| differs.0 < least.0) {
                    nearest = Some((device, differs));
                }
                continue;
            };
            let example = || format!("{}: {}", device.facts.address, reason.of(device, wanted));
            left_out.entry(category).or_insert_with(|| LeftOut { count: 0, example: example() }).count += 1;
        }
        let Wanted { alias, count, whole_group, numa_policy: _, vf: _, tags: _ } = *wanted;
        let nearest =
            nearest.map(|(device, (_, keys))| format!("{}: {}", device.facts.address, keys.join("; ")));
        Shortage { asker: alias.asker(), wanted: count, free, whole_group, left_out, nearest, together }
    }

    fn single(&self, wanted: &Wanted<'_>, device: &'a Arc<Device>) -> Result<Order, Reason<'a>> {
        wants(wanted, device)?;
        self.free(device)?;
        self.order(wanted, device)
    }

    /// The whole group is as near, and as plain, as the best of its members that the alias asks for.
    fn group(&self, wanted: &Wanted<'_>, members: &[&'a Arc<Device>]) -> Result<Order, Reason<'a>> {
        let asked_for = members.iter().map(|member| {
            wants(wanted, member)?;
            self.order(wanted, member)
        });
        let best = asked_for.reduce(|one, other| match (one, other) {
            (Ok(one), Ok(other)) => Ok(one.min(other)),
            (Ok(one), Err(_)) | (Err(_), Ok(one)) => Ok(one),
            // What is told is of a member that the alias asks for.
            (Err(Reason::Kind), Err(other)) => Err(other),
            (Err(one), Err(_)) => Err(one),
        });
        let best = best.unwrap_or(Err(Reason::Kind))?;
        let number = members.first().and_then(|member| self.scene.groups.get(&member.facts.address));
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
        // The rows may not say it yet: a PF takes its VFs with it, a VF keeps its PF.
        if let Some(pf) = device.facts.parent_addr.filter(|pf| self.held.contains(pf)) {
            return Err(Reason::PfHeld(pf));
        }
        if let Some(vf) = self.held_vfs.get(&device.facts.address) {
            return Err(Reason::VfHeld(*vf));
        }
        match self.scene.withheld.get(&device.id) {
            Some(reason) => Err(Reason::Withheld(reason)),
            None => Ok(()),
        }
    }

    fn order(&self, wanted: &Wanted<'_>, device: &Device) -> Result<Order, Reason<'a>> {
        let facts = &device.facts;
        let policy = wanted.numa_policy.unwrap_or(wanted.alias.numa_policy);
        let rank = policy.rank(facts.numa_node, self.scene.guest_nodes, self.scene.sockets);
        let tags = facts.extra_info.keys().filter(|key| is_grouping_key(key)).count();
        Ok((rank.map_err(Reason::Numa)?, tags, facts.parent_addr.unwrap_or(facts.address), facts.address))
    }
}

/// Whether a device is what a part of a request asks for.
fn wants<'a>(wanted: &Wanted<'_>, device: &Device) -> Result<(), Reason<'a>> {
    let facts = &device.facts;
    if !wanted.alias.matches(facts) {
        return Err(Reason::Kind);
    }
    if wanted.vf && facts.dev_type != DevType::Vf {
        let kind = facts.dev_type;
        return Err(Reason::Besides(format!(
            "it is {kind}, and mac_address, vlan, physical_network and trusted are for VFs"
        )));
    }
    let differs = |(key, value): (&String, &String)| tag_differs(facts, key, Some(value));
    wanted.tags.iter().find_map(differs).map_or(Ok(()), |differs| Err(Reason::Besides(differs)))
}

fn is_held(device: &Device) -> bool {
    device.owner.is_some() || matches!(device.status, DeviceStatus::Claimed | DeviceStatus::Allocated)
}

/// Who gets what: of each unit, the part that takes it. `Err` is the first part that is short.
type Taken = Result<Vec<Option<usize>>, usize>;

struct Search<'t, 'a> {
    units: &'t [Vec<&'a Arc<Device>>],
    parts: &'t [Part],
    /// How many cases may still be looked at.
    cases: usize,
}

impl Search<'_, '_> {
    /// Finds a choice without units that exclude each other, and without those that are `out`.
    fn solve(&mut self, out: &mut [bool]) -> Taken {
        let taker = self.matching(out)?;
        let Some((unit, other)) = self.clash(&taker) else { return Ok(taker) };
        let short = taker[unit].max(taker[other]).unwrap_or_default();
        if self.cases == 0 {
            return Err(short);
        }
        self.cases -= 1;
        let excluded = |rival: &usize| !out[*rival] && *rival != unit && self.exclude(unit, *rival);
        let with: Vec<usize> = (0..self.units.len()).filter(excluded).collect();
        let without = vec![unit];
        // What the earlier part prefers is tried first.
        let cases = if taker[unit] <= taker[other] { [with, without] } else { [without, with] };
        for left_out in cases {
            left_out.iter().for_each(|unit| out[*unit] = true);
            let taken = self.solve(out);
            left_out.iter().for_each(|unit| out[*unit] = false);
            if taken.is_ok() {
                return taken;
            }
        }
        Err(short)
    }

    /// Two units of a choice that exclude each other; the first is the one that excludes more.
    fn clash(&self, taker: &[Option<usize>]) -> Option<(usize, usize)> {
        let taken = || self.units.iter().enumerate().filter(|(unit, _)| taker[*unit].is_some());
        let mut holder = HashMap::new();
        for (unit, device) in taken().flat_map(|(unit, members)| members.iter().map(move |m| (unit, m))) {
            // Groups come after single devices, and do not overlap among themselves.
            if let Some(single) = holder.insert(device.facts.address, unit) {
                return Some((unit, single));
            }
        }
        let mut pairs = taken().flat_map(|(unit, members)| members.iter().map(move |m| (unit, m)));
        pairs.find_map(|(unit, device)| {
            let pf = holder.get(&device.facts.parent_addr?)?;
            (*pf != unit).then_some((*pf, unit))
        })
    }

    /// Why there is no choice for all parts.
    fn hindrance(&self, out: &[bool]) -> String {
        let clash = self.matching(out).ok().and_then(|taker| self.clash(&taker));
        let Some((unit, other)) = clash else { return "they ask for the same devices".to_owned() };
        let mut pairs =
            self.units[unit].iter().flat_map(|one| self.units[other].iter().map(move |it| (one, it)));
        let why = pairs.find_map(|(one, other)| {
            let (address, vf) = (one.facts.address, other.facts.address);
            if one.id == other.id {
                return Some(format!("{address} cannot be given alone and with its IOMMU group"));
            }
            let of_pf = other.facts.parent_addr == Some(address);
            of_pf.then(|| format!("PF {address} and its VF {vf} cannot both be given"))
        });
        why.unwrap_or_else(|| "a PF and its VFs cannot both be given".to_owned())
    }

    /// Whether two units cannot both be given.
    fn exclude(&self, one: usize, other: usize) -> bool {
        self.units[one].iter().any(|one| {
            self.units[other].iter().any(|other| {
                one.id == other.id
                    || one.facts.parent_addr == Some(other.facts.address)
                    || other.facts.parent_addr == Some(one.facts.address)
            })
        })
    }

    /// Gives each part as many units as it wants, no unit twice, none that is `out`.
    fn matching(&self, out: &[bool]) -> Taken {
        let mut taker = vec![None; self.units.len()];
        for (part, Part { count, .. }) in self.parts.iter().enumerate() {
            for _ in 0..*count {
                if !self.augment(part, out, &mut taker) {
                    return Err(part);
                }
            }
        }
        Ok(taker)
    }

    /// Gives a part one more unit: a free one, or one of another part that takes a free one in its place, and so
    /// on (breadth first, so that as few as possible change hands).
    fn augment(&self, part: usize, out: &[bool], taker: &mut [Option<usize>]) -> bool {
        // How a part was come to: the unit that it would give, and to which part.
        let mut gives = vec![None; self.parts.len()];
        let mut queue = VecDeque::from([part]);
        while let Some(asks) = queue.pop_front() {
            for unit in self.parts[asks].candidates.iter().copied().filter(|unit| !out[*unit]) {
                match taker[unit] {
                    None => {
                        taker[unit] = Some(asks);
                        let mut giver = asks;
                        while let Some((given, to)) = gives[giver] {
                            taker[given] = Some(to);
                            giver = to;
                        }
                        return true;
                    }
                    Some(holder) if holder != part && gives[holder].is_none() => {
                        gives[holder] = Some((unit, asks));
                        queue.push_back(holder);
                    }
                    Some(_) => {}
                }
            }
        }
        false
    }
}

#[cfg(test)]
pub(super) mod tests;
