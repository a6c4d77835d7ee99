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

use hotslot_driver::pci::PciAddress;

use super::alias::Alias;
use super::numa::NumaPolicy;
use super::pool::is_grouping_key;
use crate::id::DeviceId;
use crate::store::{Device, DeviceStatus};

/// How many cases of pairs that exclude each other are looked at. A matching of 256 units out of 4,096 takes about
/// a millisecond.
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
}

/// What is known of one host, and of the guest.
#[derive(Debug, Clone)]
pub struct Scene<'a> {
    /// All rows of the host.
    pub devices: &'a [Device],
    /// Devices that are not offered, and why, as in "it is …".
    pub withheld: &'a HashMap<DeviceId, String>,
    /// The host's NUMA nodes that the guest's cells are on; empty: the guest has no NUMA cells.
    pub guest_nodes: &'a BTreeSet<u32>,
    /// The socket of each NUMA node, where the host tells.
    pub sockets: Option<&'a BTreeMap<u32, u32>>,
    /// The IOMMU group of each function, where it is known.
    pub groups: &'a HashMap<PciAddress, u32>,
}

/// A part of a request that cannot be met.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shortage {
    /// The alias.
    pub alias: String,
    /// How many devices or groups were wanted.
    pub wanted: usize,
    /// How many would do, were it the only part.
    pub free: usize,
    whole_group: bool,
    left_out: BTreeMap<Category, LeftOut>,
}

/// Units of the wanted kind that are left out for one reason.
#[derive(Debug, Clone, PartialEq, Eq)]
struct LeftOut {
    count: usize,
    /// The first of them, with its reason.
    example: String,
}

impl std::error::Error for Shortage {}

impl fmt::Display for Shortage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { alias, wanted, free, whole_group, left_out } = self;
        let what = if *whole_group { "IOMMU group(s)" } else { "device(s)" };
        write!(f, "alias `{alias}` asks for {wanted} {what}, {free} free")?;
        if free >= wanted {
            write!(f, ", but no choice was found that serves all parts of the request together")?;
        }
        if *free == 0 && left_out.is_empty() {
            write!(f, ": no assignable device is of this kind")?;
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
pub type Explanation<'a> = Vec<(&'a Device, Result<usize, String>)>;

/// Chooses devices for all parts of a request: for each its devices, in order of preference. No device is given
/// twice, and no PF beside its own VF.
///
/// # Errors
/// [`Shortage`] of the first part that is short.
pub fn choose<'a>(wanted: &[Wanted<'_>], scene: &Scene<'a>) -> Result<Vec<Vec<&'a Device>>, Shortage> {
    let table = Table::new(scene);
    let parts: Vec<Part> = wanted.iter().map(|wanted| table.part(wanted)).collect();
    let short = parts.iter().position(|part| part.candidates.len() < part.count);
    let taker = match short {
        Some(part) => Err(part),
        None => Search { units: &table.units, parts: &parts, cases: CASES }
            .solve(&mut vec![false; table.units.len()]),
    };
    let taker = taker.map_err(|part| table.shortage(&wanted[part]))?;
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
            told.extend(table.units[unit].iter().map(|device| (*device, Err(reason.of(device)))));
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
    /// A member of its group cannot be given.
    Member(&'a Device, Box<Self>),
    /// Its group has a PF and a VF of it.
    Family(PciAddress),
}

/// Reasons that are counted together, in the order in which they are told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Category {
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
            Self::InUse => "in use",
            Self::Relative => "kept back by a PF or VF in use",
            Self::Withheld => "withheld",
            Self::Numa => "ruled out by NUMA",
            Self::Group => "ruled out by the IOMMU group",
            Self::Gone => "gone from the host",
        }
    }
}

impl Reason<'_> {
    /// None for what was not asked for.
    fn category(&self) -> Option<Category> {
        match self {
            Self::Kind => None,
            Self::InUse => Some(Category::InUse),
            Self::Hidden | Self::PfHeld(_) | Self::VfHeld(_) => Some(Category::Relative),
            Self::Withheld(_) => Some(Category::Withheld),
            Self::Numa(_) => Some(Category::Numa),
            Self::NoGroup | Self::Member(..) | Self::Family(_) => Some(Category::Group),
            Self::Gone => Some(Category::Gone),
        }
    }

    /// The reason as it is told of a device.
    fn of(&self, device: &Device) -> String {
        match self {
            Self::Kind => {
                let facts = &device.facts;
                let (vendor, product, kind) = (facts.vendor_id, facts.product_id, facts.dev_type);
                format!("the alias does not ask for it: {vendor}:{product}, {kind}")
            }
            // Not for whom: a refusal is read by others than the owner.
            Self::InUse | Self::Hidden | Self::Gone => format!("it is {}", device.status),
            Self::PfHeld(pf) => format!("its PF {pf} is in use"),
            Self::VfHeld(vf) => format!("its VF {vf} is in use"),
            Self::Withheld(reason) => (*reason).to_owned(),
            Self::Numa(reason) => reason.clone(),
            Self::NoGroup => "its IOMMU group is not known".to_owned(),
            Self::Member(member, reason) => {
                format!("{} of its IOMMU group cannot be given: {}", member.facts.address, reason.of(member))
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
    units: Vec<Vec<&'a Device>>,
    /// Where held devices are.
    held: HashSet<PciAddress>,
    /// A held VF of each PF that has one.
    held_vfs: HashMap<PciAddress, PciAddress>,
}

impl<'s, 'a> Table<'s, 'a> {
    fn new(scene: &'s Scene<'a>) -> Self {
        let mut groups = BTreeMap::<u32, Vec<&'a Device>>::new();
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
        Self { scene, units: singles.chain(groups.into_values()).collect(), held, held_vfs }
    }

    /// The units that a part may ask for, and whether each would do.
    fn offers(&self, wanted: &Wanted<'_>) -> impl Iterator<Item = (usize, Result<Order, Reason<'a>>)> {
        let (singles, groups) = self.units.split_at(self.scene.devices.len());
        let groups = if wanted.whole_group { groups } else { &[] };
        let offer = |device: &'a Device| {
            if !wanted.whole_group {
                return Some(self.single(wanted, device));
            }
            let grouped = self.scene.groups.contains_key(&device.facts.address);
            (!grouped).then(|| Err(if wants(wanted, device) { Reason::NoGroup } else { Reason::Kind }))
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

    fn shortage(&self, wanted: &Wanted<'_>) -> Shortage {
        let mut free = 0;
        let mut left_out = BTreeMap::new();
        for (unit, offer) in self.offers(wanted) {
            let Err(reason) = offer else {
                free += 1;
                continue;
            };
            let (Some(category), Some(device)) = (reason.category(), self.units[unit].first()) else {
                continue;
            };
            let example = || format!("{}: {}", device.facts.address, reason.of(device));
            left_out.entry(category).or_insert_with(|| LeftOut { count: 0, example: example() }).count += 1;
        }
        let Wanted { alias, count, numa_policy: _, whole_group } = *wanted;
        Shortage { alias: alias.name.clone(), wanted: count, free, whole_group, left_out }
    }

    fn single(&self, wanted: &Wanted<'_>, device: &'a Device) -> Result<Order, Reason<'a>> {
        if !wants(wanted, device) {
            return Err(Reason::Kind);
        }
        self.free(device)?;
        self.order(wanted, device)
    }

    /// The whole group is as near, and as plain, as the best of its members that the alias asks for.
    fn group(&self, wanted: &Wanted<'_>, members: &[&'a Device]) -> Result<Order, Reason<'a>> {
        let asked_for = members.iter().filter(|member| wants(wanted, member));
        let best =
            asked_for.map(|member| self.order(wanted, member)).reduce(|one, other| match (one, other) {
                (Ok(one), Ok(other)) => Ok(one.min(other)),
                (Ok(one), Err(_)) | (Err(_), Ok(one)) => Ok(one),
                (Err(one), Err(_)) => Err(one),
            });
        let best = best.unwrap_or(Err(Reason::Kind))?;
        for member in members {
            self.free(member).map_err(|reason| Reason::Member(member, Box::new(reason)))?;
        }
        let pf = |member: &&Device| member.facts.parent_addr;
        match members
            .iter()
            .filter_map(pf)
            .find(|pf| members.iter().any(|member| member.facts.address == *pf))
        {
            Some(pf) => Err(Reason::Family(pf)),
            None => Ok(best),
        }
    }

    fn free(&self, device: &'a Device) -> Result<(), Reason<'a>> {
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

fn wants(wanted: &Wanted<'_>, device: &Device) -> bool {
    wanted.alias.matches(&device.facts)
}

fn is_held(device: &Device) -> bool {
    device.server.is_some() || matches!(device.status, DeviceStatus::Claimed | DeviceStatus::Allocated)
}

/// Who gets what: of each unit, the part that takes it. `Err` is the first part that is short.
type Taken = Result<Vec<Option<usize>>, usize>;

struct Search<'t, 'a> {
    units: &'t [Vec<&'a Device>],
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
pub(super) mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};
    use uuid::Uuid;

    use super::*;
    use crate::config;
    use crate::id::{HypervisorId, ServerId};
    use crate::inventory::Inventory;
    use crate::store::{DevType, DeviceFacts};

    /// A row as the data files write it.
    pub(in crate::inventory) fn device(id: i64, row: &Value) -> Device {
        let (dev_type, product) = match row["is"].as_str().unwrap() {
            "pf" => (DevType::Pf, "10c9"),
            "vf" => (DevType::Vf, "10ca"),
            "nic" => (DevType::Pci, "8168"),
            other => panic!("{other} is none of pf, vf, nic"),
        };
        let status = row["status"].as_str().unwrap_or("available").parse().unwrap();
        Device {
            id: DeviceId(id),
            uuid: Uuid::nil(),
            hypervisor: HypervisorId(1),
            facts: DeviceFacts {
                address: row["at"].as_str().unwrap().parse().unwrap(),
                vendor_id: "8086".parse().unwrap(),
                product_id: row["product"].as_str().unwrap_or(product).parse().unwrap(),
                dev_type,
                numa_node: row["node"].as_u64().map(|node| node as u32),
                parent_addr: row["of"].as_str().map(|pf| pf.parse().unwrap()),
                extra_info: serde_json::from_value::<Option<_>>(row["extra_info"].clone())
                    .unwrap()
                    .unwrap_or_default(),
            },
            status,
            request: None,
            server: matches!(status, DeviceStatus::Claimed | DeviceStatus::Allocated)
                .then_some(ServerId(Uuid::nil())),
            created_at: 0,
            updated_at: None,
        }
    }

    /// A host with a guest, as the data file writes them.
    #[derive(Debug, Clone, Default)]
    struct Case {
        devices: Vec<Device>,
        withheld: HashMap<DeviceId, String>,
        guest_nodes: BTreeSet<u32>,
        sockets: Option<BTreeMap<u32, u32>>,
        groups: HashMap<PciAddress, u32>,
    }

    impl Case {
        fn new(rows: &[Value]) -> Self {
            let mut case = Self::default();
            for (id, row) in (1..).zip(rows) {
                let device = device(id, row);
                case.withheld.extend(row["withheld"].as_str().map(|reason| (device.id, reason.to_owned())));
                case.groups.extend(row["group"].as_u64().map(|group| (device.facts.address, group as u32)));
                case.devices.push(device);
            }
            case
        }

        fn scene(&self) -> Scene<'_> {
            Scene {
                devices: &self.devices,
                withheld: &self.withheld,
                guest_nodes: &self.guest_nodes,
                sockets: self.sockets.as_ref(),
                groups: &self.groups,
            }
        }
    }

    fn data() -> Value {
        serde_json::from_str(include_str!("../../tests/data/choose.json")).unwrap()
    }

    fn aliases() -> Inventory {
        let entries: Vec<String> =
            data()["aliases"].as_array().unwrap().iter().map(Value::to_string).collect();
        Inventory::new(&config::Pci { alias: entries, ..config::Pci::default() }).unwrap()
    }

    fn wanted<'a>(aliases: &'a Inventory, part: &Value) -> Wanted<'a> {
        let (name, count) = part["part"].as_str().or(part.as_str()).unwrap().split_once(':').unwrap();
        Wanted {
            alias: aliases.alias(name).unwrap(),
            count: count.parse().unwrap(),
            numa_policy: part["numa_policy"].as_str().map(|policy| policy.parse().unwrap()),
            whole_group: part["whole_group"].as_bool().unwrap_or(false),
        }
    }

    /// An address as the data file writes it, without its domain.
    fn short(device: &Device) -> String {
        device.facts.address.to_string().trim_start_matches("0000:").to_owned()
    }

    #[test]
    fn each_request_gets_what_the_data_file_says() {
        let (data, aliases) = (data(), aliases());
        for case in data["cases"].as_array().unwrap() {
            let mut host = Case::new(case["devices"].as_array().unwrap());
            host.guest_nodes =
                serde_json::from_value::<Option<_>>(case["guest_nodes"].clone()).unwrap().unwrap_or_default();
            let parts: Vec<_> =
                case["wanted"].as_array().unwrap().iter().map(|part| wanted(&aliases, part)).collect();
            if let Some(lines) = case["explained"].as_array() {
                let told = explain(&parts[0], &host.scene());
                assert_eq!(told.len(), lines.len(), "{case}: {told:?}");
                for (line, (device, verdict)) in lines.iter().zip(told) {
                    assert_eq!(line[0], short(device), "{case}");
                    match (verdict, line[1].as_str()) {
                        (Ok(place), None) => assert_eq!(line[1], place, "{case}"),
                        (Err(reason), Some(says)) => assert!(reason.contains(says), "{line}: {reason}"),
                        (verdict, _) => panic!("{line}: {verdict:?}"),
                    }
                }
                continue;
            }
            match (choose(&parts, &host.scene()), case["refused"].as_array()) {
                (Ok(chosen), None) => {
                    let short = |devices: Vec<&Device>| devices.into_iter().map(short).collect::<Vec<_>>();
                    let chosen: Vec<_> = chosen.into_iter().map(short).collect();
                    assert_eq!(json!(chosen), case["chosen"], "{case}");
                }
                (Err(shortage), Some(words)) => {
                    let shortage = shortage.to_string();
                    for says in words {
                        assert!(shortage.contains(says.as_str().unwrap()), "{says}: {shortage}");
                    }
                }
                (outcome, _) => panic!("{case}: {outcome:?}"),
            }
        }
    }

    /// Whether a distribution of devices to parts keeps every rule, found without any of the code above.
    fn is_right(parts: &[Wanted<'_>], case: &Case, given: &[Option<usize>]) -> bool {
        let holder = |at: PciAddress| {
            case.devices
                .iter()
                .zip(given)
                .find_map(|(device, part)| (device.facts.address == at).then_some((device, *part)))
        };
        let asked_for = |wanted: &Wanted<'_>, device: &Device| {
            let policy = wanted.numa_policy.unwrap_or_default();
            wanted.alias.matches(&device.facts)
                && policy.rank(device.facts.numa_node, &case.guest_nodes, case.sockets.as_ref()).is_ok()
        };
        let each_is_free = case.devices.iter().zip(given).all(|(device, part)| {
            let Some(part) = part else { return true };
            let pf = device.facts.parent_addr.and_then(holder);
            let group = case.groups.get(&device.facts.address);
            device.status == DeviceStatus::Available
                && !case.withheld.contains_key(&device.id)
                && pf.is_none_or(|(pf, taker)| taker.is_none() && pf.server.is_none())
                && case
                    .devices
                    .iter()
                    .all(|vf| vf.facts.parent_addr != Some(device.facts.address) || vf.server.is_none())
                && if parts[*part].whole_group {
                    let members = || {
                        let all = case.devices.iter().zip(given);
                        all.filter(|(member, _)| case.groups.get(&member.facts.address) == group)
                    };
                    group.is_some()
                        && members().all(|(_, taker)| *taker == Some(*part))
                        && members().any(|(member, _)| asked_for(&parts[*part], member))
                } else {
                    asked_for(&parts[*part], device)
                }
        });
        each_is_free
            && parts.iter().enumerate().all(|(part, wanted)| {
                let has = case.devices.iter().zip(given).filter(|(_, taker)| **taker == Some(part));
                if wanted.whole_group {
                    let groups: BTreeSet<_> =
                        has.map(|(device, _)| case.groups.get(&device.facts.address)).collect();
                    groups.len() == wanted.count
                } else {
                    has.count() == wanted.count
                }
            })
    }

    /// Whether any distribution does: all of them are tried.
    fn can_be_done(parts: &[Wanted<'_>], case: &Case, given: &mut Vec<Option<usize>>) -> bool {
        if given.len() == case.devices.len() {
            return is_right(parts, case, given);
        }
        [None].into_iter().chain((0..parts.len()).map(Some)).any(|part| {
            given.push(part);
            let done = can_be_done(parts, case, given);
            given.pop();
            done
        })
    }

    fn row() -> impl Strategy<Value = Value> {
        let status = prop_oneof![8 => Just("available"), 1 => Just("allocated"), 1 => Just("unavailable")];
        let node = prop_oneof![3 => Just(json!(0)), 1 => Just(json!(1)), 1 => Just(json!(2)), 1 => Just(Value::Null)];
        let group = prop_oneof![1 => Just(Value::Null), 4 => (0..3).prop_map(|group| json!(group))];
        let withheld = prop_oneof![8 => Just(Value::Null), 1 => Just(json!("it is guarded"))];
        let tags = prop_oneof![Just(json!({})), Just(json!({"switch": "tor-3"}))];
        (status, node, group, withheld, tags).prop_map(|(status, node, group, withheld, extra_info)| {
            json!({"status": status, "node": node, "group": group, "withheld": withheld, "extra_info": extra_info})
        })
    }

    /// Up to six devices of two PFs with their VFs and a card of two functions, and a guest.
    fn case() -> impl Strategy<Value = Case> {
        let places = vec![
            json!({"at": "04:00.0", "is": "pf"}),
            json!({"at": "04:10.0", "is": "vf", "of": "04:00.0"}),
            json!({"at": "04:10.2", "is": "vf", "of": "04:00.0"}),
            json!({"at": "05:00.0", "is": "pf"}),
            json!({"at": "05:10.0", "is": "vf", "of": "05:00.0"}),
            json!({"at": "05:10.2", "is": "vf", "of": "05:00.0", "product": "1520"}),
            json!({"at": "06:00.0", "is": "nic"}),
            json!({"at": "06:00.1", "is": "nic"}),
        ];
        let places = prop::sample::subsequence(places, 1..=6).prop_shuffle();
        let guest_nodes = prop::collection::btree_set(0u32..3, 0..=2);
        let sockets = prop::option::of(Just(BTreeMap::from([(0, 0), (1, 0), (2, 1)])));
        (places, prop::collection::vec(row(), 6), guest_nodes, sockets).prop_map(
            |(mut places, rows, guest_nodes, sockets)| {
                for (place, row) in places.iter_mut().zip(rows) {
                    place.as_object_mut().unwrap().extend(row.as_object().unwrap().clone());
                }
                Case { guest_nodes, sockets, ..Case::new(&places) }
            },
        )
    }

    fn part() -> impl Strategy<Value = Value> {
        let name = prop::sample::select(vec!["pf", "vf", "vf2", "any", "nic"]);
        let policy = prop_oneof![
            2 => Just(Value::Null),
            1 => prop::sample::select(NumaPolicy::ALL).prop_map(|policy| json!(policy)),
        ];
        (name, 0usize..=2, policy, prop::bool::weighted(0.25)).prop_map(|(name, count, policy, whole_group)| {
            json!({"part": format!("{name}:{count}"), "numa_policy": policy, "whole_group": whole_group})
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 1000, ..ProptestConfig::default() })]

        #[test]
        fn a_choice_keeps_every_rule_and_is_found_where_there_is_one(
            case in case(),
            parts in prop::collection::vec(part(), 1..=3),
        ) {
            let aliases = aliases();
            let parts: Vec<_> = parts.iter().map(|part| wanted(&aliases, part)).collect();
            match choose(&parts, &case.scene()) {
                Ok(chosen) => {
                    let mut given = vec![None; case.devices.len()];
                    for (part, devices) in chosen.iter().enumerate() {
                        for device in devices {
                            let index = case.devices.iter().position(|known| known.id == device.id).unwrap();
                            prop_assert_eq!(given[index].replace(part), None, "given twice");
                        }
                    }
                    prop_assert!(is_right(&parts, &case, &given), "{:?}", chosen);
                }
                Err(shortage) => {
                    prop_assert!(!can_be_done(&parts, &case, &mut Vec::new()), "{}", shortage);
                }
            }
        }

        #[test]
        fn a_single_part_gets_what_was_explained(case in case(), part in part()) {
            let aliases = aliases();
            let part = Wanted { whole_group: false, ..wanted(&aliases, &part) };
            let told = explain(&part, &case.scene());
            let ids: BTreeSet<_> = told.iter().map(|(device, _)| device.id).collect();
            prop_assert_eq!((ids.len(), told.len()), (case.devices.len(), case.devices.len()));
            let places: Vec<_> = told.iter().filter_map(|(_, verdict)| verdict.clone().ok()).collect();
            prop_assert_eq!(&places, &(0..places.len()).collect::<Vec<_>>());
            let first: Vec<_> = told.iter().take(part.count).map(|(device, _)| *device).collect();
            match choose(std::slice::from_ref(&part), &case.scene()) {
                Ok(chosen) => prop_assert_eq!(&chosen[0], &first),
                Err(shortage) => prop_assert_eq!(shortage.free, places.len()),
            }
        }
    }
}
