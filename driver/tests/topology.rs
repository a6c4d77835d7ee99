//! Compares the computed bus numbers with QEMU's own view, the guest's own view, and expectation files.
//! `tests/data/README.md` says how to add a topology.

#![expect(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::collections::{BTreeSet, HashMap, HashSet};
use std::path::{Path, PathBuf};

use hotslot_driver::domain::{ControllerModel, DomainXml, PciController};
use hotslot_driver::ownership::Ownership;
use hotslot_driver::pci::PciAddress;
use hotslot_driver::topology::{FreePorts, Topology};
use hotslot_driver::xml::domain;
use proptest::prelude::*;
use uuid::Uuid;

fn at(address: &str) -> PciAddress {
    address.parse().unwrap_or_else(|error| panic!("{error}"))
}

/// The folders with domain documents, and what QEMU and the guest showed of them.
const FOLDERS: [&str; 3] = ["libvirt-11.3/domain", "libvirt-12.9/domain", "topology"];

/// Returns the documents in [`FOLDERS`], with the files of the same folder and name that end with `suffix`.
fn with_companions(suffix: &str) -> Vec<(String, DomainXml, Vec<String>)> {
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data");
    let files = |folder: &str| -> Vec<PathBuf> {
        std::fs::read_dir(data.join(folder)).unwrap().map(|entry| entry.unwrap().path()).collect()
    };
    let name = |path: &Path| path.file_name().unwrap().to_str().unwrap().to_owned();
    let mut found = Vec::new();
    let documents = FOLDERS.iter().flat_map(|folder| files(folder));
    for document in documents.filter(|path| path.extension().is_some_and(|extension| extension == "xml")) {
        let stem = format!("{}.", document.file_stem().unwrap().to_str().unwrap());
        let beside = |path: &&PathBuf| path.parent() == document.parent();
        let all: Vec<_> = FOLDERS.iter().flat_map(|folder| files(folder)).collect();
        let companions = all
            .iter()
            .filter(beside)
            .filter(|path| name(path).starts_with(&stem) && name(path).ends_with(suffix));
        let companions: Vec<String> = companions.map(|path| std::fs::read_to_string(path).unwrap()).collect();
        if !companions.is_empty() {
            let guest = domain::parse(&std::fs::read_to_string(&document).unwrap()).unwrap();
            found.push((name(&document), guest, companions));
        }
    }
    found
}

fn guest(name: &str) -> DomainXml {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/libvirt-11.3/domain").join(name);
    domain::parse(&std::fs::read_to_string(path).unwrap()).unwrap()
}

/// The output of `info pci`: the addresses of each id (that of an i440fx expander belongs to two devices), and the bus
/// behind each bridge.
#[derive(Default)]
struct InfoPci {
    ids: HashMap<String, Vec<PciAddress>>,
    behind: HashMap<PciAddress, u8>,
}

impl InfoPci {
    fn read(text: &str) -> Self {
        let mut info = Self::default();
        let mut address = None;
        for line in text.lines().map(str::trim) {
            if let Some(rest) = line.strip_prefix("Bus ") {
                let numbers: Vec<u32> = rest
                    .split(|c: char| !c.is_ascii_digit())
                    .filter_map(|number| number.parse().ok())
                    .collect();
                address = Some(PciAddress::new(0, numbers[0], numbers[1], numbers[2]).unwrap());
            } else if let Some(bus) = line.strip_prefix("secondary bus ") {
                info.behind.insert(address.unwrap(), bus.trim_end_matches('.').parse().unwrap());
            } else if let Some(id) = line.strip_prefix("id \"") {
                info.ids.entry(id.trim_end_matches('"').to_owned()).or_default().push(address.unwrap());
            }
        }
        info
    }
}

#[test]
fn every_computed_address_matches_qemu() {
    let mut proven = 0;
    for (name, guest, views) in with_companions("info-pci.txt") {
        let topology = Topology::of(&guest);
        let devices = guest.controllers.iter().map(|controller| (&controller.alias, controller.address));
        let devices = devices.chain(guest.hostdevs.iter().map(|hostdev| (&hostdev.alias, hostdev.guest)));
        let devices: Vec<_> =
            devices.filter_map(|(alias, address)| Some((alias.as_ref()?, address?))).collect();
        for view in views.iter().map(|text| InfoPci::read(text)) {
            for (alias, address) in &devices {
                let computed = topology.guest_address(*address).unwrap();
                let seen = view.ids.get(*alias).unwrap_or_else(|| panic!("{name}: QEMU has no {alias}"));
                assert!(
                    seen.contains(&computed),
                    "{name}: {alias} is computed at {computed}, seen at {seen:?}"
                );
                // Follow the route: the bus behind each bridge is the one of the next bridge.
                let route = topology.route(*address).unwrap();
                let end = route.bridges.iter().fold(route.root, |bus, bridge| {
                    let bridge = bridge.on_bus(bus);
                    *view.behind.get(&bridge).unwrap_or_else(|| panic!("{name}: no bridge at {bridge}"))
                });
                assert_eq!(end, computed.bus(), "{name}: {alias} by {route:?}");
                proven += 1;
            }
        }
    }
    assert!(proven >= 130, "only {proven} devices were compared");
}

#[test]
fn every_computed_address_matches_the_guest() {
    let views = with_companions("lspci.txt");
    assert!(views.len() >= 5);
    for (name, guest, views) in views {
        let topology = Topology::of(&guest);
        let seen: HashSet<PciAddress> =
            views[0].lines().map(|line| at(line.split_whitespace().next().unwrap())).collect();
        for address in &guest.occupied {
            let computed = topology.guest_address(*address).unwrap();
            assert!(seen.contains(&computed), "{name}: {address} is computed at {computed}, not seen there");
        }
    }
}

#[test]
fn every_expectation_file_matches() {
    let expectations = with_companions("expected");
    assert!(expectations.len() >= 11);
    for (name, guest, files) in expectations {
        let topology = Topology::of(&guest);
        let free = topology.free_ports();
        for line in files[0].lines().filter(|line| !line.starts_with('#') && !line.trim().is_empty()) {
            let words: Vec<&str> = line.split_whitespace().collect();
            match words[..] {
                ["express", ..] => assert_free(&name, &free.express, &words[1..]),
                ["conventional", ..] => assert_free(&name, &free.conventional, &words[1..]),
                [libvirt, "-"] => assert_eq!(topology.guest_address(at(libvirt)), None, "{name}: {line}"),
                [libvirt, expected] => {
                    assert_eq!(topology.guest_address(at(libvirt)), Some(at(expected)), "{name}: {line}");
                }
                _ => panic!("{name}: invalid expectation `{line}`"),
            }
        }
    }
}

fn assert_free(name: &str, free: &[PciAddress], expected: &[&str]) {
    let more = expected.last() == Some(&"...");
    let expected: Vec<PciAddress> =
        expected.iter().filter(|word| !matches!(**word, "-" | "...")).map(|word| at(word)).collect();
    let compared = if more { &free[..expected.len().min(free.len())] } else { free };
    assert_eq!(compared, expected, "{name}");
    assert!(!more || free.len() > expected.len(), "{name}: expected more free ports than these");
}

#[test]
fn ports_are_taken_in_libvirts_order() {
    // The kinds of the devices that were attached between the two documents, in order; `None` is a device whose address
    // was chosen by hand.
    for (before, after, kinds) in [
        ("q35-before.xml", "q35-after.xml", vec![Some(true); 4]),
        ("q35b-before.xml", "q35b-after.xml", vec![Some(true)]),
        ("i440fx-before.xml", "i440fx-after.xml", vec![Some(true), None, Some(false), Some(true)]),
    ] {
        let mut free = Topology::of(&guest(before)).free_ports();
        let attached = guest(after).hostdevs;
        assert_eq!(attached.len(), kinds.len());
        for (hostdev, express) in attached.iter().zip(kinds) {
            if let Some(express) = express {
                assert_eq!(free.take(express), hostdev.guest, "{after}: {}", hostdev.source);
            }
        }
        for express in [true, false] {
            let left = free.count_for(express);
            assert_eq!(std::iter::from_fn(|| free.take(express)).count(), left);
        }
        assert_eq!(free, FreePorts { express: Vec::new(), conventional: Vec::new() });
    }
}

#[test]
fn a_definition_has_the_same_bus_numbers_as_the_running_guest() {
    let (live, definition) = (guest("switch-after.xml"), guest("switch-after-inactive.xml"));
    for address in &live.occupied {
        assert_eq!(
            Topology::of(&live).guest_address(*address),
            Topology::of(&definition).guest_address(*address)
        );
    }
}

const MODELS: [ControllerModel; 10] = [
    ControllerModel::PciRoot,
    ControllerModel::PcieRoot,
    ControllerModel::PciBridge,
    ControllerModel::DmiToPciBridge,
    ControllerModel::PcieToPciBridge,
    ControllerModel::RootPort,
    ControllerModel::SwitchUpstream,
    ControllerModel::SwitchDownstream,
    ControllerModel::PciExpander,
    ControllerModel::PcieExpander,
];

/// Arbitrary guests, also with buses that do not exist, cycles, two controllers of one index, or several roots.
fn any_guest() -> impl Strategy<Value = DomainXml> {
    let address =
        (0u32..8, 0u32..4, 0u32..3).prop_map(|(bus, slot, f)| PciAddress::new(0, bus, slot, f).unwrap());
    let controller = (
        (0u8..12, prop::sample::select(&MODELS[..])),
        (prop::option::weighted(0.9, address.clone()), prop::option::of(any::<u8>())),
        (any::<bool>(), prop::option::weighted(0.1, any::<u8>())),
    )
        .prop_map(|((index, model), (address, bus_nr), (hotplug, bus_reserve))| PciController {
            index,
            model,
            address,
            alias: None,
            bus_nr,
            hotplug,
            bus_reserve,
            mem_reserve: None,
            pref64_reserve: None,
        });
    (prop::collection::vec(controller, 0..14), prop::collection::vec(address, 0..6), any::<bool>()).prop_map(
        |(mut controllers, mut occupied, root)| {
            if root {
                controllers[..].iter_mut().take(1).for_each(|first| {
                    (first.index, first.model, first.address) = (0, ControllerModel::PcieRoot, None);
                });
            }
            occupied.extend(controllers.iter().filter_map(|controller| controller.address));
            DomainXml {
                uuid: Uuid::nil(),
                name: "any".into(),
                arch: "x86_64".into(),
                machine: "pc-q35-10.0".into(),
                created: None,
                ownership: Ownership::default(),
                controllers,
                hostdevs: Vec::new(),
                mdevs: Vec::new(),
                vdpas: Vec::new(),
                occupied,
                agent_connected: false,
                user_network: false,
                renumbers_buses: false,
                numa_nodes: BTreeSet::new(),
                memory: 0,
                hard_limit: None,
            }
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1024))]

    #[test]
    fn bus_numbers_are_unique_and_grow_with_the_depth(guest in any_guest()) {
        let topology = Topology::of(&guest);
        let bus = |index| PciAddress::new(0, index, 0, 0).unwrap();
        let mut numbers = HashMap::new();
        for index in 0..=255 {
            let Some(route) = topology.route(bus(index)) else {
                prop_assert_eq!(topology.guest_address(bus(index)), None);
                continue;
            };
            prop_assert!(route.bridges.len() <= guest.controllers.len());
            let Some(number) = topology.guest_address(bus(index)).map(PciAddress::bus) else { continue };
            prop_assert!(number >= route.root && (number == route.root) == route.bridges.is_empty(), "{route:?}");
            prop_assert_eq!(numbers.insert(number, route.clone()), None, "bus {} twice", number);
        }
        // A bus has a higher number than each bus on its route.
        for (number, route) in &numbers {
            for (above, other) in &numbers {
                if other.root == route.root && route.bridges.starts_with(&other.bridges) && other != route {
                    prop_assert!(above < number, "{other:?} is {above}, {route:?} is {number}");
                }
            }
        }
    }

    #[test]
    fn free_ports_are_free_and_hot_pluggable(guest in any_guest()) {
        let free = Topology::of(&guest).free_ports();
        for address in free.express.iter().chain(&free.conventional) {
            prop_assert_eq!(address.function(), 0);
            prop_assert!(guest.occupied.iter().all(|taken| taken.function_zero() != *address));
            let controller = guest.controllers.iter().find(|controller| controller.index == address.bus());
            prop_assert!(controller.is_some_and(|controller| controller.hotplug));
        }
        prop_assert!(free.express.is_sorted() && free.conventional.is_sorted());
    }
}

#[test]
fn two_bridges_at_one_address_do_not_share_a_number() {
    let mut guest = guest("q35-before.xml");
    let bridge = |index| controller(index, ControllerModel::PciBridge, PciAddress::new(0, 0, 2, 0).ok());
    guest.controllers = vec![controller(0, ControllerModel::PcieRoot, None), bridge(6), bridge(7)];
    guest.occupied = guest.controllers.iter().filter_map(|controller| controller.address).collect();
    let topology = Topology::of(&guest);
    assert_eq!(topology.guest_address(at("06:01.0")), Some(at("01:01.0")));
    assert_eq!(topology.guest_address(at("07:01.0")), None);
}

#[test]
fn buses_beyond_255_have_no_number() {
    // 30 slots of pcie.0 with eight ports each use 240 buses. A switch in the first port uses the rest.
    let mut controllers = vec![controller(0, ControllerModel::PcieRoot, None)];
    for port in 1..=240u32 {
        let address = PciAddress::new(0, 0, 1 + (port - 1) / 8, (port - 1) % 8).ok();
        controllers.push(controller(port as u8, ControllerModel::RootPort, address));
    }
    controllers.push(controller(241, ControllerModel::SwitchUpstream, PciAddress::new(0, 1, 0, 0).ok()));
    for port in 242..=255u32 {
        let address = PciAddress::new(0, 241, port - 242, 0).ok();
        controllers.push(controller(port as u8, ControllerModel::SwitchDownstream, address));
    }
    let mut guest = guest("q35-before.xml");
    guest.occupied = controllers.iter().filter_map(|controller| controller.address).collect();
    guest.controllers = controllers;
    let topology = Topology::of(&guest);
    assert_eq!(topology.guest_address(at("f0:00.0")), Some(at("ff:00.0")), "the last number, 255");

    guest.controllers[240].bus_reserve = Some(1);
    let topology = Topology::of(&guest);
    assert_eq!(topology.guest_address(at("ef:00.0")), Some(at("fe:00.0")));
    guest.controllers[1].bus_reserve = Some(16);
    let topology = Topology::of(&guest);
    assert_eq!(topology.guest_address(at("ef:00.0")), Some(at("ff:00.0")));
    assert_eq!(topology.guest_address(at("f0:00.0")), None);
}

fn controller(index: u8, model: ControllerModel, address: Option<PciAddress>) -> PciController {
    PciController {
        index,
        model,
        address,
        alias: None,
        bus_nr: None,
        hotplug: true,
        bus_reserve: None,
        mem_reserve: None,
        pref64_reserve: None,
    }
}

/// When the guest kernel renumbers the buses, only addresses on a root bus can be computed.
#[test]
fn addresses_behind_a_bridge_are_unknown_when_the_guest_kernel_renumbers() {
    let document = std::fs::read_to_string(
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/libvirt-11.3/domain/q35-after.xml"),
    )
    .unwrap();
    for (line, renumbers) in [
        ("quiet pci=assign-busses,hpbussize=4", true),
        ("pci=nocrs,assign-busses", true),
        ("quiet pci=nocrs", false),
        ("assign-busses", false),
    ] {
        let (before, after) = document.split_once("</os>").unwrap();
        let before = match before.split_once("<cmdline>") {
            Some((before, rest)) => format!("{before}{}", rest.split_once("</cmdline>").unwrap().1),
            None => before.to_owned(),
        };
        let guest = domain::parse(&format!("{before}<cmdline>{line}</cmdline></os>{after}")).unwrap();
        let topology = Topology::of(&guest);
        let behind = guest.hostdevs[0].guest.unwrap();
        assert_eq!(topology.guest_address(behind).is_none(), renumbers, "{line}");
        assert_eq!(topology.route(behind).unwrap().bridges.len(), 1, "{line}");
        assert!(topology.guest_address(at("00:01.0")).is_some(), "{line}");
    }
}

#[test]
fn a_device_behind_an_overlapped_expander_has_a_route() {
    let overlapped = std::fs::read_to_string(
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/topology/expander-overlapped.xml"),
    )
    .unwrap();
    let topology = Topology::of(&domain::parse(&overlapped).unwrap());
    assert_eq!(topology.guest_address(at("02:00.0")), None);
    let route = topology.route(at("02:00.0")).unwrap();
    assert_eq!((route.root, &route.bridges[..]), (3, &[at("00:00.0")][..]));
    // The device on pcie.0 with the same bus number is another one.
    assert!(topology.is_of_another(at("02:00.0"), at("02:00.0")));
    assert!(!topology.is_of_another(at("04:00.0"), at("02:00.0")), "the device's own address");
}
