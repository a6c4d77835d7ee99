//! Tests of the rules. The cases are in `api/model/tests/data/`. Each case has a configuration, and either its effect
//! on the devices of `devices.json` or a text that the refusal contains. `null` means that a key is absent.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use hotslot_driver::device::{HostDevice, Interface, IommuGroup, Role};
use hotslot_driver::pci::{PciAddress, PciId};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::identity::sriov;
use super::*;
use crate::device::{DeviceFacts, Functions};

fn data(text: &str) -> Vec<Value> {
    serde_json::from_str(text).unwrap()
}

/// Reads an interface: its name, or an object with `name`, `mac` and `features`.
fn interface(case: &Value) -> Interface {
    let Some(name) = case["name"].as_str() else { return Interface::from(string(case)) };
    Interface {
        name: name.to_owned(),
        mac: case["mac"].as_str().map(|mac| mac.parse().unwrap()),
        features: case["features"].as_array().into_iter().flatten().map(string).collect(),
    }
}

/// The devices of the cases and their PFs, each with its name.
struct Host(Vec<(String, HostDevice)>);

impl Host {
    fn read() -> Self {
        let device = |case: &Value| {
            let text = |key: &str| case[key].as_str().unwrap();
            let parent = case["parent"].as_str().map(|parent| parent.parse().unwrap());
            let role = match (parent, case["max_vfs"].as_u64()) {
                (Some(parent), _) => Role::Virtual { parent },
                (None, Some(max_vfs)) => Role::Physical { max_vfs: max_vfs as u32, vfs: Vec::new() },
                (None, None) => Role::Plain,
            };
            let address: PciAddress = text("address").parse().unwrap();
            HostDevice {
                address,
                vendor_id: text("vendor_id").parse().unwrap(),
                product_id: text("product_id").parse().unwrap(),
                vendor_name: None,
                product_name: None,
                class: None,
                role,
                iommu_group: Some(IommuGroup { number: 1, members: vec![address] }),
                numa_node: None,
                driver: None,
                vfio_dev: None,
                parent: None,
                bridge: case["bridge"] == true,
                express: true,
                link: None,
                serial: case["serial"].as_str().map(str::to_owned),
                net: case["net"].as_array().into_iter().flatten().map(interface).collect(),
                vdpa: case["vdpa"].as_array().into_iter().flatten().map(string).collect(),
                block: Vec::new(),
            }
        };
        let cases = data(include_str!("../../tests/data/devices.json"));
        Self(cases.iter().map(|case| (string(&case["name"]), device(case))).collect())
    }

    fn facts(&self, inventory: &Inventory) -> BTreeMap<String, DeviceFacts> {
        let at = |address| self.0.iter().map(|(_, device)| device).find(|device| device.address == address);
        let facts = |(name, device): &(String, HostDevice)| {
            let parent = match device.role {
                Role::Virtual { parent } => at(parent),
                Role::Plain | Role::Physical { .. } => None,
            };
            inventory.facts(device, parent).map(|facts| (name.clone(), facts))
        };
        self.0.iter().filter_map(facts).collect()
    }
}

fn string(value: &Value) -> String {
    value.as_str().unwrap().to_owned()
}

/// A string as it is, any other value as JSON.
fn entry(value: &Value) -> config::Entry {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned).into()
}

/// Returns the values of a configuration key: the one under `one`, those under `several`, or the default. A string is
/// returned as it is, any other value as JSON.
fn configured(case: &Value, one: &str, several: &str, default: Vec<Value>) -> Vec<config::Entry> {
    let values = match (case.get(one), case.get(several)) {
        (Some(value), _) => vec![value.clone()],
        (None, Some(values)) => values.as_array().unwrap().clone(),
        (None, None) => default,
    };
    values.iter().map(entry).collect()
}

/// Returns the configuration of a case. By default every device is assignable.
fn pci(case: &Value) -> config::Pci {
    let entry = |entry: &Value| config::ExtraInfo {
        devices: self::entry(&entry["match"]),
        values: serde_json::from_value(entry["values"].clone()).unwrap(),
    };
    config::Pci {
        device_spec: configured(case, "device_spec", "device_specs", vec![json!({ "address": "*" })]),
        alias: configured(case, "alias", "aliases", Vec::new()),
        report_in_placement: case["report_in_placement"] == true,
        pci_in_placement: case["pci_in_placement"] == true,
        extra_info: case["extra_info"].as_array().into_iter().flatten().map(entry).collect(),
        ..config::Pci::default()
    }
}

/// Reads the configuration of each case. Checks the text of a refusal, or calls `check` with the inventory.
fn each(cases: &str, check: impl Fn(&Value, &Inventory)) {
    for case in data(cases) {
        match (Inventory::new(&pci(&case)), case["refused"].as_str()) {
            (Ok(inventory), None) => check(&case, &inventory),
            (Err(error), Some(says)) => assert!(error.to_string().contains(says), "{case}: {error}"),
            (outcome, _) => panic!("{case}: {outcome:?}"),
        }
    }
}

fn names(case: &Value, key: &str) -> Vec<String> {
    let mut names: Vec<String> = case[key].as_array().unwrap().iter().map(string).collect();
    names.sort();
    names
}

/// Checks the keys of `extra_info` that a case lists under `shows`.
fn check_extra_info(case: &Value, facts: &BTreeMap<String, DeviceFacts>) {
    for (device, wanted) in case["shows"].as_object().into_iter().flatten() {
        for (key, value) in wanted.as_object().unwrap() {
            let shown = facts[device].extra_info.get(key);
            assert_eq!(shown, value.as_str(), "{key} of {device}: {case}");
        }
    }
}

#[test]
fn a_device_spec_matches_the_same_devices_as_in_nova() {
    let host = Host::read();
    each(include_str!("../../tests/data/device_spec.json"), |case, inventory| {
        let facts = host.facts(inventory);
        assert_eq!(facts.keys().cloned().collect::<Vec<_>>(), names(case, "matches"), "{case}");
        check_extra_info(case, &facts);
    });
}

#[test]
fn entries_that_conflict_with_the_devices_of_a_host_are_ignored_there_and_reported() {
    let mut functions: Functions = Host::read().0.into_iter().map(|(_, device)| device).collect();
    let mut second = functions.get(&"0000:04:10.0".parse().unwrap()).unwrap().clone();
    second.address = "0000:04:10.2".parse().unwrap();
    functions.insert(second);
    let parents: Vec<_> =
        functions.values().filter_map(|device| Some((sriov(&device.role).1?, device.address))).collect();
    for (parent, vf) in parents {
        let mut parent = functions.get(&parent).unwrap().clone();
        if let Role::Physical { vfs, .. } = &mut parent.role {
            vfs.push(vf);
        }
        functions.insert(parent);
    }
    each(include_str!("../../tests/data/conflict.json"), |case, inventory| {
        let inventory = Arc::new(inventory.clone());
        let (on_host, conflicts) = inventory.on(&functions);
        let wanted = case["left_out"].as_object().unwrap();
        let kept: Vec<_> = on_host.specs.iter().map(|(id, _)| *id).collect();
        for (index, (id, _)) in inventory.specs.iter().enumerate() {
            let says = conflicts.get(id).map(ToString::to_string);
            match wanted.get(&index.to_string()) {
                Some(text) => {
                    assert!(says.as_ref().unwrap().contains(text.as_str().unwrap()), "{case}: {says:?}")
                }
                None => assert_eq!(says, None, "{case}"),
            }
            assert_eq!(kept.contains(id), says.is_none(), "{case}");
        }
    });
}

#[test]
fn an_alias_matches_the_same_devices_as_in_nova() {
    let host = Host::read();
    each(include_str!("../../tests/data/alias.json"), |case, inventory| {
        let alias = inventory.alias("a").unwrap();
        let facts = host.facts(inventory);
        let named: Vec<_> =
            facts.iter().filter(|(_, facts)| alias.matches(facts)).map(|(name, _)| name.clone()).collect();
        assert_eq!(named, names(case, "matches"), "{case}");
        if let Some(policy) = case["numa_policy"].as_str() {
            assert_eq!(alias.numa_policy.as_str(), policy, "{case}");
        }
        for (name, facts) in &facts {
            assert_eq!(alias.mismatch(facts).is_empty(), named.contains(name), "{name}: {case}");
        }
        for (name, keys) in case["differs"].as_object().into_iter().flatten() {
            assert_eq!(alias.mismatch(&facts[name]).join(", "), string(keys), "{name}: {case}");
        }
    });
}

#[test]
fn extra_info_entries_apply_to_the_devices_that_they_match() {
    let host = Host::read();
    each(include_str!("../../tests/data/extra_info.json"), |case, inventory| {
        check_extra_info(case, &host.facts(inventory));
    });
}

#[test]
fn every_invalid_entry_is_reported_with_its_place() {
    let pci = config::Pci {
        device_spec: vec![
            r#"{"address": "*"}"#.into(),
            r#"[{"vendor_id": "x"}, {"vendor_id": "*"}, {"product_id": 7}, {"rack": "r1"}]"#.into(),
            r#"{"managed": "maybe"}"#.into(),
            "{}".into(),
        ],
        alias: vec![r#"{"name": "a"}"#.into(), "[]".into()],
        extra_info: vec![config::ExtraInfo {
            devices: r#"[{}, {"address": 7}]"#.into(),
            values: [("status".to_owned(), "x".to_owned())].into(),
        }],
        ..config::Pci::default()
    };
    let rules = Rules::read(Rule::of_file(&pci), &pci);
    let problems: Vec<_> = rules.problems().iter().map(ToString::to_string).collect();
    let places = [
        "[pci] device_spec[1], entry 1 of its list: vendor_id: ",
        "[pci] device_spec[1], entry 3 of its list: product_id: ",
        "[pci] device_spec[1], entry 4 of its list: it has none of vendor_id, product_id, address, devname",
        "[pci] device_spec[2]: managed: ",
        "[pci] device_spec[3]: it has none of ",
        "[[pci.extra_info]][0]: match: entry 2 of its list: address: ",
        "[[pci.extra_info]][0]: values: ",
        "[pci] alias[0]: vendor_id: ",
        "[pci] alias[1]: not a JSON object",
    ];
    assert_eq!(problems.len(), places.len(), "{problems:#?}");
    for (problem, place) in problems.iter().zip(places) {
        assert!(problem.starts_with(place), "{problem}");
    }
    assert_eq!(Inventory::new(&pci).unwrap_err().to_string(), problems[0]);
}

#[test]
fn a_list_makes_several_entries_and_each_keeps_its_id() {
    let pci = |specs: &[&str]| config::Pci {
        device_spec: specs.iter().map(|&spec| spec.into()).collect(),
        alias: vec!["{}".into()],
        ..config::Pci::default()
    };
    let rules = Rule::of_file(&pci(&["{}", r#"[{}, {"vendor_id": "8086"}, {}]"#, "[]"]));
    let texts: Vec<_> = rules.iter().map(|rule| (rule.kind, rule.text.as_str())).collect();
    let intel = r#"{"vendor_id":"8086"}"#;
    let whitelist = ["{}", "{}", intel, "{}"].map(|text| (RuleKind::Whitelist, text));
    assert_eq!(texts, [&whitelist[..], &[(RuleKind::Alias, "{}")]].concat());
    let ids = |rules: &[Rule]| rules.iter().map(|rule| rule.id).collect::<BTreeSet<_>>();
    assert_eq!(ids(&rules).len(), rules.len());
    let other = Rule::of_file(&pci(&["{}", r#"[{}, {"vendor_id": "8086"}]"#]));
    assert!(ids(&other).is_subset(&ids(&rules)));
}

#[test]
fn entries_of_the_api_come_after_the_file_and_invalid_ones_are_ignored() {
    let pci = pci(&json!({"device_spec": {"address": "0000:04:00.0", "rack": "file"}}));
    let api = |kind, text: Value| {
        let text = text.to_string();
        let id = uuid::Uuid::new_v5(&uuid::Uuid::NAMESPACE_OID, text.as_bytes());
        Rule { id, kind, text, source: Source::Api { created_at: 0, updated_at: None } }
    };
    let mut entries = Rule::of_file(&pci);
    let file = entries[0].id;
    let added = [
        api(RuleKind::Whitelist, json!({"address": "*", "rack": "api", "zone": "z"})),
        api(RuleKind::Whitelist, json!({"status": "x"})),
        api(RuleKind::ExtraInfo, json!({"match": {"vendor_id": "10de"}, "values": {"switch": "s"}})),
        api(RuleKind::Alias, json!({"name": "a", "vendor_id": "10de", "product_id": "20b0", "zone": "z"})),
        api(RuleKind::Alias, json!({"name": "b", "vendor_id": "10de", "product_id": "20b0", "nowhere": "z"})),
    ];
    entries.extend(added.iter().cloned());
    let rules = Rules::read(entries, &pci);
    let wrong: Vec<_> = added.iter().map(|rule| rules.problem(rule.id).is_some()).collect();
    assert_eq!(wrong, [false, true, false, false, true]);
    let host = Host::read();
    let facts = host.facts(&rules.inventory);
    assert_eq!(facts["pf"].extra_info.get("rack"), Some("file"));
    assert_eq!(facts["vf"].extra_info.get("rack"), Some("file"), "a PF's entry covers its VFs");
    assert_eq!(facts["gpu"].extra_info.get("rack"), Some("api"));
    let of = |name: &str| {
        let device = host.0.iter().find(|(known, _)| known == name).unwrap();
        rules.inventory.entries_of(&device.1, None)
    };
    assert_eq!(of("pf"), [file].into());
    assert_eq!(of("gpu"), [added[0].id, added[2].id].into());
}

#[test]
fn a_device_that_is_read_alone_is_recognised() {
    let host = Host::read();
    let inventory = Inventory::new(&pci(&json!({}))).unwrap();
    let facts = host.facts(&inventory);
    for (name, device) in host.0.iter().filter(|(_, device)| !device.bridge) {
        let alone = HostDevice { net: Vec::new(), ..device.clone() };
        assert!(is_still(&facts[name], &alone), "{name}");
        for other in [
            HostDevice { product_id: PciId::new(0xffff), ..alone.clone() },
            HostDevice { role: Role::Virtual { parent: device.address }, ..alone.clone() },
            HostDevice { serial: Some("another".into()), ..alone.clone() },
        ] {
            assert!(!is_still(&facts[name], &other), "{name}");
        }
    }
}

#[test]
fn pools_are_not_separated_by_keys_that_differ_from_card_to_card() {
    for key in [
        "card_serial_number",
        "phys_function",
        "resource_class",
        "traits",
        "rp_uuid",
        "mac_address",
        "capabilities",
    ] {
        assert!(!is_grouping_key(key), "{key}");
    }
    for key in ["parent_ifname", "physical_network", "remote_managed", "switch"] {
        assert!(is_grouping_key(key), "{key}");
    }
}

/// JSON of any shape, often with the keys and words that entries use.
fn any_json() -> impl Strategy<Value = Value> {
    let word = prop_oneof![
        proptest::sample::select(&[
            "name",
            "vendor_id",
            "product_id",
            "address",
            "devname",
            "device_type",
            "numa_policy",
            "traits",
            "bus",
            "managed",
            "remote_managed",
            "physical_network",
            "resource_class",
            "live_migratable",
            "8086",
            "type-VF",
            "*",
            "0000:04:00.0",
            "true",
            "null",
            "(a|",
            "switch",
        ])
        .prop_map(str::to_owned),
        "\\PC{0,12}",
    ];
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        word.clone().prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 24, 6, move |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            proptest::collection::btree_map(word.clone(), inner, 0..6)
                .prop_map(|map| map.into_iter().collect::<Value>()),
        ]
    })
}

proptest! {
    #[test]
    fn reading_a_configuration_never_panics(
        spec in any_json(), devices in any_json(), alias in any_json(),
        report_in_placement: bool, pci_in_placement: bool,
    ) {
        let pci = config::Pci {
            device_spec: vec![r#"{"address": "*"}"#.into(), spec.to_string().into()],
            alias: vec![alias.to_string().into()],
            extra_info: vec![config::ExtraInfo {
                devices: devices.to_string().into(),
                values: [("switch".to_owned(), "tor-3".to_owned())].into(),
            }],
            report_in_placement,
            pci_in_placement,
            ..config::Pci::default()
        };
        let rules = Rules::read(Rule::of_file(&pci), &pci);
        let inventory = &rules.inventory;
        let facts = Host::read().facts(inventory).into_values().collect::<Vec<_>>();
        for alias in inventory.aliases.values() {
            let _ = facts.iter().filter(|facts| alias.matches(facts)).count();
        }
        prop_assert_eq!(Inventory::new(&pci).is_ok(), rules.problems().is_empty());
    }

    #[test]
    fn parsing_an_entry_never_panics(text in "\\PC*") {
        let _ = DeviceSpec::parse(&text, false);
        let _ = ExtraInfo::parse(&text);
        let _ = Alias::parse(&text, &AliasGrammar::default());
    }

    #[test]
    fn a_full_address_matches_its_vfs_and_a_glob_does_not(
        domain: u16, bus: u8, slot in 0u8..=0x1f, function in 0u8..=7, open in 0usize..4,
    ) {
        let address = PciAddress::new(domain.into(), bus.into(), slot.into(), function.into()).unwrap();
        let mut fields =
            [format!("{domain:x}"), format!(" {bus:02X} "), format!("0x{slot:x}"), function.to_string()];
        let matches = |fields: &[String; 4], vf: &HostDevice| {
            let text = format!("{}:{}:{}.{}", fields[0], fields[1], fields[2], fields[3]);
            let spec = DeviceSpec::parse(&json!({ "address": text }).to_string(), false);
            spec.unwrap().matches(vf, None)
        };
        let (_, template) = Host::read().0.remove(0);
        let itself = HostDevice { address, ..template };
        // No field of the VF's address equals that of its PF.
        let other = PciAddress::new((domain ^ 1).into(), (bus ^ 1).into(), (slot ^ 1).into(), (function ^ 1).into());
        let vf = HostDevice {
            address: other.unwrap(),
            role: Role::Virtual { parent: address },
            ..itself.clone()
        };
        prop_assert!(matches(&fields, &itself) && matches(&fields, &vf));
        fields[open] = "*".to_owned();
        prop_assert!(matches(&fields, &itself));
        prop_assert!(!matches(&fields, &vf));
    }
}
