use std::collections::{BTreeMap, BTreeSet, HashMap};

use hotslot_driver::pci::PciAddress;
use proptest::prelude::*;
use serde_json::{Value, json};
use uuid::Uuid;

use super::*;
use crate::device::{DevType, DeviceFacts, DeviceStatus, Owner};
use crate::id::{DeviceId, HypervisorId, ServerId};
use crate::rules::{FreeDevices, Inventory, NumaPolicy, Surroundings, Unavailable, config};

/// Makes a device from a row of the data files.
pub(in crate::rules) fn device(id: i64, row: &Value) -> Device {
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
        owner: matches!(status, DeviceStatus::Claimed | DeviceStatus::Allocated)
            .then_some(Owner::Server(ServerId(Uuid::nil()))),
        created_at: 0,
        updated_at: None,
        gone_at: None,
        used_at: None,
        scrub: false,
        quarantine: None,
    }
}

/// The devices of a host and the NUMA nodes of a guest, as the data file describes them.
#[derive(Debug, Clone, Default)]
struct Case {
    devices: Vec<Arc<Device>>,
    unavailable: HashMap<DeviceId, String>,
    guest_nodes: BTreeSet<u32>,
    sockets: Option<BTreeMap<u32, u32>>,
    groups: HashMap<PciAddress, u32>,
    busy: BTreeMap<PciAddress, String>,
}

impl Case {
    fn new(rows: &[Value]) -> Self {
        let mut case = Self::default();
        for (id, row) in (1..).zip(rows) {
            let address = || row["at"].as_str().unwrap().parse().unwrap();
            case.busy.extend(row["busy"].as_str().map(|driver| (address(), driver.to_owned())));
            if row["is"] == "unlisted" {
                let address = row["at"].as_str().unwrap().parse().unwrap();
                case.groups.insert(address, row["group"].as_u64().unwrap() as u32);
                continue;
            }
            let device = device(id, row);
            case.unavailable.extend(row["unavailable"].as_str().map(|reason| (device.id, reason.to_owned())));
            case.groups.extend(row["group"].as_u64().map(|group| (device.facts.address, group as u32)));
            case.devices.push(Arc::new(device));
        }
        case
    }

    fn candidate_set(&self) -> CandidateSet<'_> {
        CandidateSet {
            devices: &self.devices,
            unavailable: &self.unavailable,
            guest_nodes: &self.guest_nodes,
            sockets: self.sockets.as_ref(),
            groups: &self.groups,
            busy: &self.busy,
        }
    }
}

static NO_TAGS: BTreeMap<String, String> = BTreeMap::new();

fn data() -> Value {
    serde_json::from_str(include_str!("../../../tests/data/choose.json")).unwrap()
}

fn aliases() -> Arc<Inventory> {
    let data = data();
    let entries = |key: &str| data[key].as_array().unwrap().iter().map(|it| it.to_string().into()).collect();
    let (device_spec, alias) = (entries("device_spec"), entries("aliases"));
    Inventory::new(&config::Pci { device_spec, alias, ..config::Pci::default() }).unwrap()
}

fn wanted<'a>(aliases: &'a Inventory, part: &Value) -> Wanted<'a> {
    let (name, count) = part["part"].as_str().or(part.as_str()).unwrap().split_once(':').unwrap();
    Wanted {
        alias: aliases.alias(name).unwrap(),
        count: count.parse().unwrap(),
        numa_policy: part["numa_policy"].as_str().map(|policy| policy.parse().unwrap()),
        whole_group: part["whole_group"].as_bool().unwrap_or(false),
        vf: part["vf"].as_bool().unwrap_or(false),
        tags: match serde_json::from_value(part["tags"].clone()).unwrap() {
            None => &NO_TAGS,
            Some(tags) => Box::leak(Box::new(tags)),
        },
        vgpu: None,
    }
}

/// Returns the address of a device in the form of the data file: without the PCI domain.
fn short(device: &Device) -> String {
    device.facts.address.to_string().trim_start_matches("0000:").to_owned()
}

#[test]
fn tags_are_compared_ignoring_case() {
    let (data, aliases) =
        (json!([{"at": "04:10.0", "is": "vf", "extra_info": {"physical_network": "Physnet1"}}]), aliases());
    let case = Case::new(data.as_array().unwrap());
    for (name, found) in [("physnet1", true), ("physnet2", false)] {
        let tags = BTreeMap::from([("physical_network".to_owned(), name.to_owned())]);
        let wanted = Wanted { tags: &tags, ..wanted(&aliases, &json!("vf:1")) };
        assert_eq!(choose(&[wanted], &case.candidate_set()).is_ok(), found, "{name}");
    }
}

#[test]
fn each_case_of_the_data_file_has_the_expected_result() {
    let (data, aliases) = (data(), aliases());
    for case in data["cases"].as_array().unwrap() {
        let mut host = Case::new(case["devices"].as_array().unwrap());
        host.guest_nodes =
            serde_json::from_value::<Option<_>>(case["guest_nodes"].clone()).unwrap().unwrap_or_default();
        let parts: Vec<_> =
            case["wanted"].as_array().unwrap().iter().map(|part| wanted(&aliases, part)).collect();
        if let Some(lines) = case["explained"].as_array() {
            let explained = explain(&parts[0], &host.candidate_set());
            assert_eq!(explained.len(), lines.len(), "{case}: {explained:?}");
            for (line, (device, verdict)) in lines.iter().zip(explained) {
                assert_eq!(line[0], short(device), "{case}");
                match (verdict, line[1].as_str()) {
                    (Ok(place), None) => assert_eq!(line[1], place, "{case}"),
                    (Err(reason), Some(says)) => assert!(reason.contains(says), "{line}: {reason}"),
                    (verdict, _) => panic!("{line}: {verdict:?}"),
                }
            }
            continue;
        }
        match (choose(&parts, &host.candidate_set()), case["refused"].as_array()) {
            (Ok(chosen), None) => {
                let short = |devices: Vec<&Arc<Device>>| {
                    devices.into_iter().map(|device| short(device)).collect::<Vec<_>>()
                };
                let chosen: Vec<_> = chosen.into_iter().map(short).collect();
                assert_eq!(json!(chosen), case["chosen"], "{case}");
            }
            (Err(shortage), Some(words)) => {
                if let Some(advice) = case["advice"].as_str() {
                    assert_eq!(shortage.advice(), advice, "{case}");
                }
                let shortage = shortage.to_string();
                for says in words {
                    assert!(shortage.contains(says.as_str().unwrap()), "{says}: {shortage}");
                }
            }
            (outcome, _) => panic!("{case}: {outcome:?}"),
        }
    }
}

/// Whether an assignment of devices to parts keeps every rule. Does not use the code under test.
fn is_right(parts: &[Wanted<'_>], case: &Case, given: &[Option<usize>]) -> bool {
    let holder = |at: PciAddress| {
        case.devices
            .iter()
            .zip(given)
            .find_map(|(device, part)| (device.facts.address == at).then_some((device, *part)))
    };
    let requested = |wanted: &Wanted<'_>, device: &Device| {
        let policy = wanted.numa_policy.unwrap_or_default();
        wanted.alias.matches(&device.facts)
            && policy.rank(device.facts.numa_node, &case.guest_nodes, case.sockets.as_ref()).is_ok()
    };
    let each_is_free = case.devices.iter().zip(given).all(|(device, part)| {
        let Some(part) = part else { return true };
        let pf = device.facts.parent_addr.and_then(holder);
        let group = case.groups.get(&device.facts.address);
        device.status == DeviceStatus::Available
            && !case.unavailable.contains_key(&device.id)
            && pf.is_none_or(|(pf, taker)| taker.is_none() && pf.owner.is_none())
            && case
                .devices
                .iter()
                .all(|vf| vf.facts.parent_addr != Some(device.facts.address) || vf.owner.is_none())
            && if parts[*part].whole_group {
                let members = || {
                    let all = case.devices.iter().zip(given);
                    all.filter(|(member, _)| case.groups.get(&member.facts.address) == group)
                };
                group.is_some()
                    && members().all(|(_, taker)| *taker == Some(*part))
                    && members().any(|(member, _)| requested(&parts[*part], member))
            } else {
                let is_chosen = |at: &PciAddress| {
                    *at == device.facts.address || holder(*at).is_some_and(|(_, taker)| taker.is_some())
                };
                let of_group = |at: &&PciAddress| group.is_some() && case.groups.get(*at) == group;
                requested(&parts[*part], device) && case.busy.keys().filter(of_group).all(is_chosen)
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

/// Whether any assignment of devices to parts keeps every rule. Tries all of them.
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
    let status = prop_oneof![18 => Just("available"), 1 => Just("allocated"), 1 => Just("unavailable")];
    let node =
        prop_oneof![3 => Just(json!(0)), 1 => Just(json!(1)), 1 => Just(json!(2)), 1 => Just(Value::Null)];
    let group = prop_oneof![1 => Just(Value::Null), 4 => (0..3).prop_map(|group| json!(group))];
    let unavailable = prop_oneof![18 => Just(Value::Null), 1 => Just(json!("it is guarded"))];
    let tags = prop_oneof![Just(json!({})), Just(json!({"switch": "tor-3"}))];
    let busy = prop_oneof![2 => Just(Value::Null), 1 => Just(json!("igb"))];
    (status, node, group, unavailable, tags, busy).prop_map(|(status, node, group, unavailable, extra_info, busy)| {
        json!({"status": status, "node": node, "group": group, "unavailable": unavailable, "extra_info": extra_info,
               "busy": busy})
    })
}

/// Up to six devices out of two PFs, their VFs and a card with two functions, and a guest.
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
    let places = prop::sample::subsequence(places, 3..=6).prop_shuffle();
    let guest_nodes = prop::collection::btree_set(0u32..3, 0..=1);
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
        3 => Just(Value::Null),
        1 => prop::sample::select(NumaPolicy::ALL).prop_map(|policy| json!(policy)),
    ];
    (name, 0usize..=2, policy, prop::bool::weighted(0.25)).prop_map(|(name, count, policy, whole_group)| {
        json!({"part": format!("{name}:{count}"), "numa_policy": policy, "whole_group": whole_group})
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, ..ProptestConfig::default() })]

    #[test]
    fn a_valid_choice_is_found_whenever_one_exists(
        case in case(),
        parts in prop::collection::vec(part(), 1..=3),
    ) {
        let aliases = aliases();
        let parts: Vec<_> = parts.iter().map(|part| wanted(&aliases, part)).collect();
        match choose(&parts, &case.candidate_set()) {
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
    fn the_choice_among_the_preferred_free_devices_is_that_among_all(
        case in case(),
        parts in prop::collection::vec(part(), 1..=3),
        are_busy in any::<bool>(),
    ) {
        let aliases = aliases();
        let case = if are_busy { case } else { Case { busy: BTreeMap::new(), ..case } };
        let parts: Vec<_> = parts.iter().map(|part| wanted(&aliases, part)).collect();
        let mut free = FreeDevices::default();
        case.devices.iter().for_each(|device| free.insert(device));
        let is_held = |address: PciAddress| {
            case.devices.iter().any(|device| device.facts.address == address && device.owner.is_some())
        };
        let is_unavailable = |device: &Device| {
            let address = device.facts.address;
            let mut vfs = case.devices.iter().filter(|vf| vf.facts.parent_addr == Some(address));
            let relative_is_held = device.facts.parent_addr.is_some_and(is_held) || vfs.any(|vf| is_held(vf.facts.address));
            let group = case.groups.get(&address);
            let mut others = case.busy.keys().filter(|other| **other != address);
            if case.unavailable.contains_key(&device.id) || relative_is_held {
                Unavailable::Yes
            } else if group.is_some() && others.any(|other| case.groups.get(other) == group) {
                Unavailable::DependsOnOthers
            } else {
                Unavailable::No
            }
        };
        let around = Surroundings { guest_nodes: &case.guest_nodes, sockets: case.sockets.as_ref(), is_unavailable };
        let ids = |parts: Vec<Vec<&Arc<Device>>>| -> Vec<Vec<DeviceId>> {
            parts.into_iter().map(|part| part.into_iter().map(|device| device.id).collect()).collect()
        };
        let among_all = choose(&parts, &case.candidate_set()).ok().map(ids);
        let among_free = free.choose(&parts, &around);
        let among_free = among_free.as_ref().map(|parts| ids(parts.iter().map(|part| part.iter().collect()).collect()));
        if among_free.is_some() {
            prop_assert_eq!(&among_free, &among_all);
        }
        let is_simple = |part: &Wanted<'_>| !part.whole_group && part.alias.name != "pf" && part.alias.name != "any";
        if case.busy.is_empty() && parts.iter().all(is_simple) {
            prop_assert_eq!(among_free, among_all, "no look at all devices was necessary");
        }
    }

    #[test]
    fn a_request_with_one_part_gets_the_devices_that_explain_lists_first(case in case(), part in part()) {
        let aliases = aliases();
        // No busy functions: otherwise a device that needs others may be passed over in favour of a complete group.
        let case = Case { busy: BTreeMap::new(), ..case };
        let part = Wanted { whole_group: false, ..wanted(&aliases, &part) };
        let explained = explain(&part, &case.candidate_set());
        let ids: BTreeSet<_> = explained.iter().map(|(device, _)| device.id).collect();
        prop_assert_eq!((ids.len(), explained.len()), (case.devices.len(), case.devices.len()));
        let places: Vec<_> = explained.iter().filter_map(|(_, verdict)| verdict.clone().ok()).collect();
        prop_assert_eq!(&places, &(0..places.len()).collect::<Vec<_>>());
        let first: Vec<_> = explained.iter().take(part.count).map(|(device, _)| *device).collect();
        match choose(std::slice::from_ref(&part), &case.candidate_set()) {
            Ok(chosen) => prop_assert_eq!(&chosen[0], &first),
            Err(shortage) => prop_assert_eq!(shortage.free, places.len()),
        }
    }
}
