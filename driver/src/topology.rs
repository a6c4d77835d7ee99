//! A domain's PCI tree: the bus numbers that its firmware assigns, and its free hot-plug ports.
//!
//! libvirt's `bus` is the index of a controller. The guest's bus numbers are those that firmware wrote into the
//! bridges; slot and function are the same as in libvirt. SeaBIOS and OVMF use the same rules:
//!
//! - They number depth first from bus 0, on each bus in order of (slot, function), whatever the controllers' indexes
//!   are. Each bridge takes the next number, and then the bridges behind it. Empty ports take a number too; endpoints
//!   do not.
//! - An expander is a root bus: a `pcie-expander-bus` is bus `busNr`. A `pci-expander-bus` has a hidden bridge at
//!   `busNr:00.0`, so that it is bus `busNr + 1`. The bridges on it follow. The numbers on bus 0 do not shift.
//! - A bridge with a `bus-reserve` of N reserves N numbers after its own, whether they are used or not.
//! - A function other than 0 is found only if its slot has a function 0.
//!
//! Where the two firmwares differ, or the numbers run out, no further numbers are computed. There are no computed
//! numbers either for an expander whose `busNr` is reached by the numbers of another root bus, because firmware and
//! Linux leave out the devices behind it. A guest kernel with `pci=assign-busses` renumbers the bridges, so that only
//! root buses keep their numbers. Every device has a [`Route`] nevertheless, with which its address can be read from
//! the guest.

use std::collections::{BTreeMap, BTreeSet};

use crate::domain::{ControllerModel, DomainXml, PciController};
use crate::pci::PciAddress;

/// The PCI tree of one domain document.
#[derive(Debug)]
pub struct Topology {
    /// The guest's bus of each controller that the guest can see, by libvirt's index.
    buses: BTreeMap<u8, Bus>,
    /// Every function of the guest, in libvirt's numbering.
    functions: BTreeSet<PciAddress>,
    free: FreePorts,
}

/// A bus of the guest.
#[derive(Debug, Clone)]
struct Bus {
    /// The computed number; `None` when it cannot be computed.
    number: Option<u8>,
    route: Route,
}

/// The path from a root bus to a bus, along which the bus numbers can be read from the guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// The number of the root bus. The machine fixes it; neither firmware nor guest changes it.
    pub root: u8,
    /// The bridges on the path, the outermost first. Only slot and function are valid. The bus is always 0, because the
    /// bus numbers have to be read from the guest.
    pub bridges: Vec<PciAddress>,
}

impl Route {
    /// Returns the path to the bus behind a bridge on this bus.
    fn through(&self, bridge: PciAddress) -> Self {
        let mut route = self.clone();
        route.bridges.push(bridge.on_bus(0));
        route
    }
}

/// The free hot-plug addresses of a guest, in libvirt's numbering and in the order in which libvirt uses them.
///
/// In a guest without PCI Express (i440fx) every device goes into a conventional slot. Then both lists are the same,
/// and a slot that is taken for one kind is not free for the other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FreePorts {
    /// Free addresses for PCI Express devices.
    pub express: Vec<PciAddress>,
    /// Free addresses for conventional PCI devices.
    pub conventional: Vec<PciAddress>,
}

impl FreePorts {
    /// The number of free addresses for a kind of device (PCI Express or conventional).
    pub fn count_for(&self, express: bool) -> usize {
        if express { self.express.len() } else { self.conventional.len() }
    }

    /// Takes the address that libvirt assigns to the next device of a kind; `None` when no address is free.
    pub fn take(&mut self, express: bool) -> Option<PciAddress> {
        let taken = *if express { &self.express } else { &self.conventional }.first()?;
        self.express.retain(|address| *address != taken);
        self.conventional.retain(|address| *address != taken);
        Some(taken)
    }
}

impl Topology {
    /// Computes the bus numbers of a domain as its firmware does.
    pub fn of(domain: &DomainXml) -> Self {
        let mut functions: BTreeSet<PciAddress> = domain.occupied.iter().copied().collect();
        functions.extend(implicit(domain));
        let controllers = by_index(domain);
        let mut buses = number(&controllers, &functions);
        if domain.renumbers_buses {
            let behind_a_bridge = |bus: &&mut Bus| !bus.route.bridges.is_empty();
            buses.values_mut().filter(behind_a_bridge).for_each(|bus| bus.number = None);
        }
        Self { buses, free: free(&controllers, &functions), functions }
    }

    /// Returns the guest's address of the device that is at `address` in libvirt's numbering. `None` when the guest
    /// cannot see it (there is no such bus, or firmware does not find a bridge on the way), or when it cannot be
    /// computed.
    pub fn guest_address(&self, address: PciAddress) -> Option<PciAddress> {
        let number = self.bus(address)?.number?;
        visible(address, &self.functions).then(|| address.on_bus(number))
    }

    /// Returns the path from the root bus to the bus of `address` (libvirt's numbering), also when the bus number
    /// cannot be computed. `None` when the guest cannot see the bus.
    pub fn route(&self, address: PciAddress) -> Option<&Route> {
        self.bus(address).map(|bus| &bus.route)
    }

    /// Whether the computed address of a function other than the one at `address` (libvirt's numbering) is
    /// `guest_address`.
    pub fn is_of_another(&self, address: PciAddress, guest_address: PciAddress) -> bool {
        let others = self.functions.iter().filter(|function| **function != address);
        others.into_iter().any(|function| self.guest_address(*function) == Some(guest_address))
    }

    fn bus(&self, address: PciAddress) -> Option<&Bus> {
        self.buses.get(&address.bus()).filter(|_| address.domain() == 0)
    }

    /// Returns the free hot-plug addresses.
    pub fn free_ports(&self) -> FreePorts {
        self.free.clone()
    }
}

/// Returns the controllers by index. If two have the same index, which libvirt does not allow, the first one counts.
fn by_index(domain: &DomainXml) -> BTreeMap<u8, &PciController> {
    let mut controllers = BTreeMap::new();
    for controller in &domain.controllers {
        controllers.entry(controller.index).or_insert(controller);
    }
    controllers
}

/// Returns the functions that a machine has although they are not in its document: the host bridge, and function 0 of
/// the south bridge (PIIX3 in slot 1 of i440fx, ICH9 in slot 0x1f of q35).
fn implicit(domain: &DomainXml) -> Vec<PciAddress> {
    if !matches!(domain.arch.as_str(), "x86_64" | "i686") {
        return Vec::new();
    }
    let q35 = domain.controllers.iter().any(|controller| controller.model == ControllerModel::PcieRoot);
    let south_bridge = if q35 { 0x1f } else { 1 };
    [(0, 0), (south_bridge, 0)]
        .into_iter()
        .filter_map(|(slot, function)| PciAddress::new(0, 0, slot, function).ok())
        .collect()
}

/// Whether firmware and guest find a function: they only find other functions of a slot that has a function 0.
fn visible(address: PciAddress, functions: &BTreeSet<PciAddress>) -> bool {
    address.function() == 0 || functions.contains(&address.function_zero())
}

/// Computes the guest's bus of each controller that it can see, by libvirt's index.
fn number(controllers: &BTreeMap<u8, &PciController>, functions: &BTreeSet<PciAddress>) -> BTreeMap<u8, Bus> {
    let mut bridges: BTreeMap<u8, Vec<(PciAddress, &PciController)>> = BTreeMap::new();
    for controller in controllers.values().filter(|controller| is_bridge(controller.model)) {
        if let Some(address) = controller.address.filter(|address| visible(*address, functions)) {
            bridges.entry(address.bus()).or_default().push((address, controller));
        }
    }
    for bus in bridges.values_mut() {
        bus.sort_by_key(|(address, _)| *address);
        // If two bridges have the same address, which libvirt does not allow, the first one counts.
        bus.dedup_by_key(|(address, _)| *address);
    }

    let mut roots: Vec<(u8, &PciController)> =
        controllers.values().filter_map(|controller| Some((root_bus(controller)?, *controller))).collect();
    roots.sort_by_key(|(bus, _)| *bus);

    let mut numbered = BTreeMap::new();
    let mut reach: Option<u8> = None;
    for (position, (bus, root)) in roots.iter().enumerate() {
        let mut tree = Tree { bridges: &bridges, last: Some(*bus), buses: BTreeMap::new() };
        tree.root(*bus, root);
        // Buses below bus 0 keep their numbers even if these reach an expander's. When the numbers of one expander
        // reach those of the next one, SeaBIOS and OVMF differ.
        let next = roots.get(position + 1).filter(|_| *bus != 0);
        let limit = next.map_or(u16::from(u8::MAX) + 1, |(next, _)| u16::from(*next));
        let overlapped = reach.is_some_and(|reach| reach >= *bus);
        for bus in tree.buses.values_mut() {
            bus.number = bus.number.filter(|number| !overlapped && u16::from(*number) < limit);
        }
        numbered.append(&mut tree.buses);
        reach = reach.max(Some(tree.last.unwrap_or(u8::MAX)));
    }
    numbered
}

/// The tree of one root bus while it is numbered.
struct Tree<'a> {
    /// The visible bridges on each bus (libvirt's index), in the order in which firmware finds them.
    bridges: &'a BTreeMap<u8, Vec<(PciAddress, &'a PciController)>>,
    /// The last number that was assigned; `None` when the next number is unknown.
    last: Option<u8>,
    buses: BTreeMap<u8, Bus>,
}

impl Tree<'_> {
    fn root(&mut self, bus: u8, root: &PciController) {
        let mut route = Route { root: bus, bridges: Vec::new() };
        let mut number = Some(bus);
        if root.model == ControllerModel::PciExpander {
            // The hidden bridge is at slot 0, function 0 of the expander's bus.
            route = route.through(PciAddress::MIN);
            number = self.next();
        }
        self.bus(root.index, Bus { number, route });
    }

    /// Numbers a bus and everything behind it. The recursion ends, because each controller is on one bus and a root bus
    /// is on none.
    fn bus(&mut self, index: u8, bus: Bus) {
        for (address, bridge) in self.bridges.get(&index).into_iter().flatten() {
            let secondary = self.next();
            self.bus(bridge.index, Bus { number: secondary, route: bus.route.through(*address) });
            if let (Some(secondary), Some(reserve)) = (secondary, bridge.bus_reserve) {
                self.reserve(secondary, reserve);
            }
        }
        self.buses.insert(index, bus);
    }

    fn next(&mut self) -> Option<u8> {
        self.last = self.last.and_then(|last| last.checked_add(1));
        self.last
    }

    /// Reserves `reserve` numbers after `bridge`. If they are not more than the bridges behind it use, SeaBIOS 1.16
    /// assigns numbers twice, but OVMF does not.
    fn reserve(&mut self, bridge: u8, reserve: u8) {
        let Some(last) = self.last else { return };
        self.last = bridge.checked_add(reserve).filter(|kept| *kept > last);
        if self.last.is_none() {
            for bus in self.buses.values_mut() {
                bus.number = bus.number.filter(|number| *number <= bridge);
            }
        }
    }
}

/// Returns the number of a controller's root bus, which is that of the hidden bridge for a `pci-expander-bus`.
fn root_bus(controller: &PciController) -> Option<u8> {
    match controller.model {
        ControllerModel::PciRoot | ControllerModel::PcieRoot => (controller.index == 0).then_some(0),
        ControllerModel::PciExpander | ControllerModel::PcieExpander => controller.bus_nr,
        ControllerModel::PciBridge
        | ControllerModel::DmiToPciBridge
        | ControllerModel::PcieToPciBridge
        | ControllerModel::RootPort
        | ControllerModel::SwitchUpstream
        | ControllerModel::SwitchDownstream => None,
    }
}

fn is_bridge(model: ControllerModel) -> bool {
    match model {
        ControllerModel::PciRoot
        | ControllerModel::PcieRoot
        | ControllerModel::PciExpander
        | ControllerModel::PcieExpander => false,
        ControllerModel::PciBridge
        | ControllerModel::DmiToPciBridge
        | ControllerModel::PcieToPciBridge
        | ControllerModel::RootPort
        | ControllerModel::SwitchUpstream
        | ControllerModel::SwitchDownstream => true,
    }
}

/// Finds the free hot-plug addresses. libvirt searches the controllers by index and takes the first slot without any
/// function (`domain_addr.c`).
fn free(controllers: &BTreeMap<u8, &PciController>, functions: &BTreeSet<PciAddress>) -> FreePorts {
    let taken: BTreeSet<PciAddress> = functions.iter().map(|address| address.function_zero()).collect();
    let mut free = FreePorts { express: Vec::new(), conventional: Vec::new() };
    for controller in controllers.values().filter(|controller| controller.hotplug) {
        let (kind, slots) = match controller.model {
            ControllerModel::RootPort | ControllerModel::SwitchDownstream => (&mut free.express, 0..=0),
            ControllerModel::PciRoot | ControllerModel::PciBridge | ControllerModel::PcieToPciBridge => {
                (&mut free.conventional, 1..=0x1f)
            }
            ControllerModel::PciExpander => (&mut free.conventional, 0..=0x1f),
            // libvirt does not hot-plug devices into these.
            ControllerModel::PcieRoot
            | ControllerModel::DmiToPciBridge
            | ControllerModel::SwitchUpstream
            | ControllerModel::PcieExpander => continue,
        };
        let addresses = slots.filter_map(|slot| PciAddress::new(0, controller.index.into(), slot, 0).ok());
        kind.extend(addresses.filter(|address| !taken.contains(address)));
    }
    if controllers.values().all(|controller| controller.model != ControllerModel::PcieRoot) {
        free.express.clone_from(&free.conventional);
    }
    free
}
