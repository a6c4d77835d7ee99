//! Which devices a request gets.
//!
//! What can be given is a *unit*: one device, or all functions of one IOMMU group. Each part of a request is
//! offered units in this order:
//!
//! 1. the NUMA rank of [`NumaPolicy::rank`];
//! 2. devices with fewer tags first, as Nova does: what is special is kept for those who ask for it;
//! 3. devices that need no other one first (see below);
//! 4. by address, the VFs of one PF together: they are packed, so that other PFs stay whole.
//!
//! A guest gets a device only when no other member of its IOMMU group is bound to a host driver. Such busy members
//! are taken from their drivers when they are part of the same request. So a device of a group with busy members
//! is offered only where the request can take all of them, and no choice takes a part of them.
//!
//! All parts are served together, or none. A part takes the first free unit; where none is left for a later part,
//! units that are taken change hands along an augmenting path (bipartite matching). That does not see units that
//! exclude each other (a PF and its VFs, a group and its members): such a pair in the outcome makes two cases, one
//! that has the one, one that does not, until a choice without such pairs is found. In the same way a group of which
//! not all busy members are taken makes two cases: one that takes all of them, one that takes none of the members
//! that need them. Choosing whole PFs is a hard problem (set packing), so the cases are limited to [`CASES`].
//!
//! [`NumaPolicy::rank`]: super::numa::NumaPolicy::rank

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::fmt;
use std::sync::Arc;

use hotslot_driver::pci::PciAddress;

use super::alias::{Alias, tag_differs};
use super::keys::is_grouping_key;
use super::numa::NumaPolicy;
use crate::device::{DevType, Device, DeviceStatus};
use crate::id::DeviceId;

/// How many cases of pairs that exclude each other, and of groups that are torn, are looked at: over 4,096 devices, about 0.2 s.
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
    /// Every busy member of an IOMMU group that keeps another one back.
    busy: BTreeSet<PciAddress>,
    /// What keeps the first of those back.
    siblings: Option<Siblings>,
    /// Whether the same request could be served with `whole_group`, or without it where it asks for that.
    other_way: bool,
}

/// The busy members of its IOMMU group that a device cannot be given without.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Siblings {
    /// Those that would have to be unbound; none where that does not help, for one is the PF of the device.
    unbind: Vec<PciAddress>,
    /// How many devices of the alias would have to be asked for at once; none where that does not help.
    at_once: Option<usize>,
}

impl Siblings {
    /// What helps, the least trouble first. `whole_group`: whether asking for the whole group would.
    fn remedies(&self, whole_group: bool) -> Vec<String> {
        let mut helps = Vec::new();
        helps.extend(whole_group.then(|| "ask with whole_group".to_owned()));
        helps.extend(self.at_once.map(|count| format!("ask for {count} of them at once")));
        if !self.unbind.is_empty() {
            let list = |name: fn(&PciAddress) -> String| self.unbind.iter().map(name).collect::<Vec<_>>();
            let (which, names) = (list(PciAddress::to_string), list(|address| address.node_name()));
            let commands =
                names.iter().map(|name| format!("virsh nodedev-detach {name}")).collect::<Vec<_>>();
            helps.push(format!("unbind {} first ({})", which.join(" and "), commands.join("; ")));
        }
        helps
    }
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

    /// Whether there would be enough, were none of them withheld or kept back by a busy IOMMU group.
    pub fn is_withheld(&self) -> bool {
        let busy = self.left_out.get(&Category::Busy).map_or(0, |left_out| left_out.count);
        let withheld = self.withheld() + busy;
        let torn = self.together.is_some() && self.siblings.is_some();
        (withheld > 0 || torn) && self.free + withheld >= self.wanted
    }

    /// The functions whose host drivers keep others of their IOMMU groups back.
    pub fn busy(&self) -> &BTreeSet<PciAddress> {
        &self.busy
    }

    /// What helps.
    pub fn advice(&self) -> String {
        let mut helps = self.siblings.as_ref().map(|busy| busy.remedies(self.other_way)).unwrap_or_default();
        if self.together.is_some() {
            let how = if self.siblings.is_some() { "another number" } else { "fewer" };
            helps.push(format!("ask for {how} of them at once"));
            return helps.join(", or ");
        }
        let other_way = self.other_way;
        helps.extend(
            self.left_out.keys().filter_map(|category| category.advice(other_way)).map(str::to_owned),
        );
        helps.dedup();
        match &helps[..] {
            [] => "GET os-pci/detail lists what there is".to_owned(),
            helps => helps.join(", or "),
        }
    }

    /// Whether it matters if the request is for whole IOMMU groups or not.
    fn is_of_groups(&self) -> bool {
        self.siblings.is_some() || self.left_out.contains_key(&Category::Group)
    }
}

impl fmt::Display for Shortage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { asker, wanted, free, whole_group, left_out, nearest, together, .. } = self;
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
pub fn choose<'a>(
    wanted: &[Wanted<'_>],
    scene: &CandidateSet<'a>,
) -> Result<Vec<Vec<&'a Arc<Device>>>, Box<Shortage>> {
    let table = Table::new(scene);
    table.choose(wanted).map_err(|mut shortage| {
        // No flag goes with what is only said by addresses, or is for VFs of NICs alone.
        let settable = wanted.iter().all(|wanted| wanted.alias.is_configured() && !wanted.vf);
        let other = wanted.iter().map(|wanted| Wanted { whole_group: !wanted.whole_group, ..wanted.clone() });
        let works = || table.choose(&other.collect::<Vec<_>>()).is_ok();
        shortage.other_way = settable && shortage.is_of_groups() && works();
        shortage
    })
}

/// Says of each device of a host what a request for as many of its kind as `wanted` says would find.
pub fn explain<'a>(wanted: &Wanted<'_>, scene: &CandidateSet<'a>) -> Explanation<'a> {
    let table = Table::new(scene);
    let mut told: Explanation<'a> = Vec::new();
    let part = table.parts(std::slice::from_ref(wanted)).into_iter().next();
    let candidates = part.map(|part| part.candidates).unwrap_or_default();
    for (place, unit) in candidates.iter().enumerate() {
        told.extend(table.units[*unit].iter().map(|device| (*device, Ok(place))));
    }
    let candidates: HashSet<usize> = candidates.into_iter().collect();
    for (unit, verdict) in table.offers(wanted).filter(|(unit, _)| !candidates.contains(unit)) {
        let devices = table.units[unit].iter();
        match verdict {
            Err(reason) => {
                told.extend(devices.map(|device| {
                    let why = reason.of(device, wanted);
                    // What withholds it names the guest that uses its vDPA device, or says how to take that away.
                    let of_vdpa = device.facts.dev_type == DevType::Vdpa && matches!(reason, Reason::Kind);
                    let held = scene.withheld.get(&device.id).filter(|_| of_vdpa);
                    (*device, Err(held.map_or(why.clone(), |held| format!("{why}; {held}"))))
                }));
            }
            Ok(_) => told.extend(devices.map(|device| {
                let whole = Wanted { whole_group: true, ..wanted.clone() };
                let works = wanted.alias.is_configured() && table.is_offered_whole(&whole, device);
                let remedies = table.siblings(wanted, device, true).remedies(works).join(", or ");
                let why = table.not_viable(device);
                (*device, Err(if remedies.is_empty() { why } else { format!("{why}; {remedies}") }))
            })),
        }
    }
    told
}

/// What a unit is taken by, the least first: NUMA rank, number of tags, whether it needs other devices, the PF's
/// address or its own, its address.
type Order = (u8, usize, bool, PciAddress, PciAddress);

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
    Busy,
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
            Self::Busy => "kept back by a host driver in their IOMMU group",
            Self::Numa => "ruled out by NUMA",
            Self::Group => "ruled out by the IOMMU group",
            Self::Gone => "gone from the host",
        }
    }

    /// What helps; none where nothing is known to. `other_way`: whether asking without `whole_group` would.
    fn advice(self, other_way: bool) -> Option<&'static str> {
        match self {
            Self::Besides => Some("ask for what a device_spec says of them"),
            Self::InUse | Self::Relative => Some("detach one"),
            Self::Withheld => Some("see to what withholds them (`hotslot explain DEVICE`)"),
            Self::Numa => Some("ask with another numa_policy"),
            Self::Group => other_way.then_some("ask without whole_group"),
            Self::Gone => Some("look where the host has them now"),
            // That depends on the group: see `Siblings`.
            Self::Busy => None,
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
            Self::Member(_, reason) => reason.category(),
            Self::NoGroup | Self::Stranger(_) | Self::Family(_) => Some(Category::Group),
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
    scene: &'s CandidateSet<'a>,
    /// Each device of its own, in the order of the scene; then the groups.
    units: Vec<Vec<&'a Arc<Device>>>,
    /// Where held devices are.
    held: HashSet<PciAddress>,
    /// A held VF of each PF that has one.
    held_vfs: HashMap<PciAddress, PciAddress>,
    /// A member of each group that has one which is no device of the scene.
    strangers: HashMap<u32, PciAddress>,
    /// The busy members of each group that has some.
    busy: HashMap<u32, Vec<PciAddress>>,
    /// The unit that each device of its own is.
    places: HashMap<PciAddress, usize>,
}

impl<'s, 'a> Table<'s, 'a> {
    fn new(scene: &'s CandidateSet<'a>) -> Self {
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
        let mut busy = HashMap::<u32, Vec<PciAddress>>::new();
        for address in scene.busy.keys() {
            if let Some(group) = scene.groups.get(address) {
                busy.entry(*group).or_default().push(*address);
            }
        }
        let devices = scene.devices.iter().enumerate();
        let places = devices.map(|(unit, device)| (device.facts.address, unit)).collect();
        let units = singles.chain(groups.into_values()).collect();
        Self { scene, units, held, held_vfs, strangers, busy, places }
    }

    fn choose(&self, wanted: &[Wanted<'_>]) -> Result<Vec<Vec<&'a Arc<Device>>>, Box<Shortage>> {
        let parts = self.parts(wanted);
        let alone = wanted.len() == 1;
        if let Some(part) = parts.iter().position(|part| part.candidates.len() < part.count) {
            return Err(Box::new(self.shortage(&wanted[part], &parts[part], alone)));
        }
        let mut search = Search { table: self, units: &self.units, parts: &parts, cases: CASES };
        let mut out = vec![false; self.units.len()];
        let taker = search.solve(&mut out, &mut Vec::new()).map_err(|part| {
            let (together, torn) = search.hindrance(&out);
            let mut shortage = self.shortage(&wanted[part], &parts[part], alone);
            shortage.together = Some(together);
            if let Some(device) = torn {
                shortage.busy.extend(self.needs(device));
                shortage.siblings = Some(self.siblings(&wanted[part], device, false));
            }
            Box::new(shortage)
        })?;
        let devices = |(index, part): (usize, &Part)| {
            let taken = part.candidates.iter().filter(|unit| taker[**unit] == Some(index));
            taken.flat_map(|unit| &self.units[*unit]).copied().collect()
        };
        Ok(parts.iter().enumerate().map(devices).collect())
    }

    /// The busy members of a device's IOMMU group without which it cannot be given.
    fn needs(&self, device: &Device) -> impl Iterator<Item = PciAddress> + '_ {
        let address = device.facts.address;
        let group = self.scene.groups.get(&address).and_then(|group| self.busy.get(group));
        group.into_iter().flatten().copied().filter(move |member| *member != address)
    }

    /// Whether all that a unit needs can be part of a request for so many devices of these candidates.
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

    /// Why a device is kept back by what it needs.
    fn not_viable(&self, device: &Device) -> String {
        let address = device.facts.address;
        let group = self.scene.groups.get(&address).map(u32::to_string).unwrap_or_default();
        let members = self.needs(device).map(|member| {
            let driver = self.scene.busy.get(&member).map_or("", String::as_str);
            format!("its member {member} is bound to the host driver {driver}")
        });
        let members = members.collect::<Vec<_>>().join(", ");
        format!("IOMMU group {group} of {address} is not viable: {members}")
    }

    /// What a device that is kept back needs. `alone`: whether nothing else is asked for.
    fn siblings(&self, wanted: &Wanted<'_>, device: &Device, alone: bool) -> Siblings {
        let needed: Vec<_> = self.needs(device).collect();
        let given = |member: &PciAddress| {
            let member = self.places.get(member).and_then(|place| self.scene.devices.get(*place));
            member.is_some_and(|member| self.single(wanted, member).is_ok())
        };
        let at_once = (alone && needed.iter().all(given)).then_some(needed.len() + 1);
        // A PF that loses its host driver loses its VFs, too.
        let of_its_pf = device.facts.parent_addr.is_some_and(|pf| needed.contains(&pf));
        Siblings { unbind: if of_its_pf { Vec::new() } else { needed }, at_once }
    }

    /// Whether a device would do with all others of its IOMMU group.
    fn is_offered_whole(&self, wanted: &Wanted<'_>, device: &Device) -> bool {
        let group = self.scene.groups.get(&device.facts.address);
        let of_it = |member: &&'a Arc<Device>| self.scene.groups.get(&member.facts.address) == group;
        let members: Vec<_> = self.scene.devices.iter().filter(of_it).collect();
        group.is_some() && self.group(wanted, &members).is_ok()
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

    /// The parts of a request, without the candidates whose busy siblings it cannot take.
    fn parts(&self, wanted: &[Wanted<'_>]) -> Vec<Part> {
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
        let offers = self.offers(wanted);
        let mut candidates: Vec<(Order, usize)> =
            offers.filter_map(|(unit, offer)| Some((offer.ok()?, unit))).collect();
        candidates.sort_unstable();
        Part { count: wanted.count, candidates: candidates.into_iter().map(|(_, unit)| unit).collect() }
    }

    /// Why a part is short. `alone`: whether it is the only one.
    fn shortage(&self, wanted: &Wanted<'_>, part: &Part, alone: bool) -> Shortage {
        let candidates: HashSet<usize> = part.candidates.iter().copied().collect();
        let (mut busy, mut siblings) = (BTreeSet::new(), None);
        let mut free = 0;
        let mut left_out = BTreeMap::new();
        let mut nearest: Option<(&Device, (bool, usize), Vec<String>)> = None;
        for (unit, offer) in self.offers(wanted) {
            let Some(device) = self.units[unit].first() else { continue };
            let reason = match offer {
                Ok(_) if candidates.contains(&unit) => {
                    free += 1;
                    continue;
                }
                Ok(_) => {
                    busy.extend(self.needs(device));
                    siblings.get_or_insert_with(|| self.siblings(wanted, device, alone));
                    let example = || format!("{}: {}", device.facts.address, self.not_viable(device));
                    let left_out = left_out.entry(Category::Busy);
                    left_out.or_insert_with(|| LeftOut { count: 0, example: example() }).count += 1;
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
            let example = || format!("{}: {}", device.facts.address, reason.of(device, wanted));
            left_out.entry(category).or_insert_with(|| LeftOut { count: 0, example: example() }).count += 1;
        }
        let Wanted { alias, count, whole_group, numa_policy: _, vf: _, tags: _ } = *wanted;
        let nearest =
            nearest.map(|(device, _, keys)| format!("{}: {}", device.facts.address, keys.join("; ")));
        Shortage {
            asker: alias.asker(),
            wanted: count,
            free,
            whole_group,
            left_out,
            nearest,
            together: None,
            busy,
            siblings,
            other_way: false,
        }
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
        let needs_others = !wanted.whole_group && self.needs(device).next().is_some();
        let pf = facts.parent_addr.unwrap_or(facts.address);
        Ok((rank.map_err(Reason::Numa)?, tags, needs_others, pf, facts.address))
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
    table: &'t Table<'t, 'a>,
    units: &'t [Vec<&'a Arc<Device>>],
    parts: &'t [Part],
    /// How many cases may still be looked at.
    cases: usize,
}

impl<'a> Search<'_, 'a> {
    /// Finds a choice without units that exclude each other, without torn groups, without those that are `out` and
    /// with those that `must` be taken.
    fn solve(&mut self, out: &mut [bool], must: &mut Vec<usize>) -> Taken {
        let taker = self.matching(out, must)?;
        let Some((unit, other)) = self.clash(&taker) else {
            return match self.torn(&taker) {
                Some(unit) => self.solve_whole(unit, taker[unit].unwrap_or_default(), out, must),
                None => Ok(taker),
            };
        };
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
            let taken = self.solve(out, must);
            left_out.iter().for_each(|unit| out[*unit] = false);
            if taken.is_ok() {
                return taken;
            }
        }
        Err(short)
    }

    /// Goes on from a choice that has `unit`, and not all that it needs: with all busy members of its group, else
    /// without the members that need others. `short` is the part that has the unit.
    fn solve_whole(&mut self, unit: usize, short: usize, out: &mut [bool], must: &mut Vec<usize>) -> Taken {
        if self.cases == 0 {
            return Err(short);
        }
        self.cases -= 1;
        let [device] = self.units[unit][..] else { return Err(short) };
        let group = self.table.scene.groups.get(&device.facts.address);
        let busy = group.and_then(|group| self.table.busy.get(group)).into_iter().flatten();
        let places: Vec<usize> = busy.filter_map(|member| self.table.places.get(member)).copied().collect();
        let known = must.len();
        must.extend(places.into_iter().filter(|place| !must[..known].contains(place)).collect::<Vec<_>>());
        let taken = self.solve(out, must);
        must.truncate(known);
        if taken.is_ok() {
            return taken;
        }
        let needy = |place: &usize| {
            let member = &self.table.scene.devices[*place];
            let of_group = self.table.scene.groups.get(&member.facts.address) == group;
            of_group && !out[*place] && self.table.needs(member).next().is_some()
        };
        let left_out: Vec<usize> = (0..self.table.scene.devices.len()).filter(needy).collect();
        left_out.iter().for_each(|place| out[*place] = true);
        let taken = self.solve(out, must);
        left_out.iter().for_each(|place| out[*place] = false);
        taken.map_err(|_| short)
    }

    /// A single device of a choice that lacks a busy member of its IOMMU group.
    fn torn(&self, taker: &[Option<usize>]) -> Option<usize> {
        if self.table.busy.is_empty() {
            return None;
        }
        let lacks = |unit: &usize| {
            let device = &self.table.scene.devices[*unit];
            let there =
                |address| self.table.places.get(&address).is_some_and(|place| taker[*place].is_some());
            taker[*unit].is_some() && !self.table.needs(device).all(there)
        };
        (0..self.table.scene.devices.len()).find(lacks)
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

    /// Why there is no choice for all parts, and the device that needs more than it gets where that is it.
    fn hindrance(&self, out: &[bool]) -> (String, Option<&'a Arc<Device>>) {
        let taker = self.matching(out, &[]).ok();
        let Some((unit, other)) = taker.as_ref().and_then(|taker| self.clash(taker)) else {
            let torn = taker.and_then(|taker| self.torn(&taker));
            let torn = torn.and_then(|unit| self.units[unit].first());
            let why = torn.map(|device| self.table.not_viable(device));
            return (why.unwrap_or_else(|| "they ask for the same devices".to_owned()), torn.copied());
        };
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
        (why.unwrap_or_else(|| "a PF and its VFs cannot both be given".to_owned()), None)
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

    /// Gives each part as many units as it wants, no unit twice, none that is `out`, and each that `must` be taken.
    fn matching(&self, out: &[bool], must: &[usize]) -> Taken {
        let mut taker = vec![None; self.units.len()];
        for unit in must {
            if out[*unit] || !self.place(*unit, &mut taker, &mut vec![false; self.parts.len()]) {
                return Err(0);
            }
        }
        for (part, Part { count, .. }) in self.parts.iter().enumerate() {
            // A unit that is taken stays so: it only changes hands.
            let has = taker.iter().filter(|taker| **taker == Some(part)).count();
            for _ in has..*count {
                if !self.augment(part, out, &mut taker) {
                    return Err(part);
                }
            }
        }
        Ok(taker)
    }

    /// Gives a unit to a part that has room for it, or that has room when another unit of it goes to another part.
    fn place(&self, unit: usize, taker: &mut [Option<usize>], seen: &mut [bool]) -> bool {
        for (part, Part { count, candidates }) in self.parts.iter().enumerate() {
            if seen[part] || !candidates.contains(&unit) {
                continue;
            }
            seen[part] = true;
            let has: Vec<usize> = (0..taker.len()).filter(|held| taker[*held] == Some(part)).collect();
            if has.len() < *count || has.into_iter().any(|held| self.place(held, taker, seen)) {
                taker[unit] = Some(part);
                return true;
            }
        }
        false
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
