//! Which devices may be given away, by which names, and which of them a request gets.
//!
//! The rules are Nova's: a device that no `device_spec` matches does not exist for requests; an alias is a kind
//! of device, not a device; a PF is given only when it is asked for by type.

mod alias;
mod choose;
mod numa;
mod pool;
mod request;
mod spec;

use std::collections::BTreeMap;

use hotslot_driver::device::{HostDevice, Role};

pub use alias::{Alias, AliasSpec};
pub use choose::{Explanation, Scene, Shortage, Wanted, choose, explain};
pub use numa::NumaPolicy;
pub use pool::{Pool, Stat, is_grouping_key, pools, stats};
pub(crate) use request::AliasRequests;
pub use request::{AliasRequest, RequestError};
pub use spec::{DeviceSpec, SpecError};

use crate::config::{self, ConfigError};
use crate::store::{DevType, DeviceFacts};

/// The configured rules.
#[derive(Debug, Default)]
pub struct Inventory {
    specs: Vec<DeviceSpec>,
    aliases: BTreeMap<String, Alias>,
}

impl Inventory {
    /// Reads the rules of a configuration.
    ///
    /// # Errors
    /// [`ConfigError::Value`] naming the entry and what is wrong with it.
    pub fn new(pci: &config::Pci) -> Result<Self, ConfigError> {
        let mut specs = Vec::new();
        for (index, text) in pci.device_spec.iter().enumerate() {
            specs.extend(DeviceSpec::parse(text).map_err(|reason| ConfigError::Value {
                key: format!("[pci] device_spec[{index}]"),
                reason: reason.to_string(),
            })?);
        }
        let mut aliases = BTreeMap::<String, Alias>::new();
        for (index, text) in pci.alias.iter().enumerate() {
            let refused = |reason: SpecError| ConfigError::Value {
                key: format!("[pci] alias[{index}]"),
                reason: reason.to_string(),
            };
            let alias = Alias::parse(text).map_err(refused)?;
            match aliases.entry(alias.name.clone()) {
                std::collections::btree_map::Entry::Vacant(entry) => {
                    entry.insert(alias);
                }
                std::collections::btree_map::Entry::Occupied(mut entry) => {
                    entry.get_mut().add_alternative(alias).map_err(refused)?;
                }
            }
        }
        Ok(Self { specs, aliases })
    }

    /// Whether anything can be given away at all.
    pub fn is_empty(&self) -> bool {
        self.specs.is_empty()
    }

    /// The alias of a name.
    pub fn alias(&self, name: &str) -> Option<&Alias> {
        self.aliases.get(name)
    }

    /// The configured alias names, in order.
    pub fn alias_names(&self) -> impl Iterator<Item = &str> {
        self.aliases.keys().map(String::as_str)
    }

    /// What the table is to say of a host's device; none when no `device_spec` matches it, or when it is one
    /// that cannot be assigned (a bridge).
    pub fn facts(&self, device: &HostDevice) -> Option<DeviceFacts> {
        let spec = self.spec_of(device)?;
        let (dev_type, parent_addr) = match &device.role {
            Role::Plain => (DevType::Pci, None),
            Role::Physical { .. } => (DevType::Pf, None),
            Role::Virtual { parent } => (DevType::Vf, Some(*parent)),
        };
        let mut extra_info = BTreeMap::new();
        if let Some(managed) = spec.managed {
            extra_info.insert(MANAGED.to_owned(), managed.to_string());
        }
        if let Some(serial) = &device.serial {
            extra_info.insert("card_serial_number".to_owned(), serial.clone());
        }
        Some(DeviceFacts {
            address: device.address,
            vendor_id: device.vendor_id,
            product_id: device.product_id,
            dev_type,
            numa_node: device.numa_node,
            parent_addr,
            extra_info,
        })
    }

    fn spec_of(&self, device: &HostDevice) -> Option<&DeviceSpec> {
        if device.bridge {
            return None;
        }
        self.specs.iter().find(|spec| spec.matches(device))
    }
}

const MANAGED: &str = "managed";

/// Whether libvirt is to bind the device's drivers: yes, unless its `device_spec` says `"managed": "false"`.
pub fn is_managed(facts: &DeviceFacts) -> bool {
    facts.extra_info.get(MANAGED).is_none_or(|managed| managed != "false")
}

#[cfg(test)]
mod tests {
    use hotslot_driver::device::IommuGroup;
    use serde_json::Value;

    use super::*;

    /// The devices that the data files speak of.
    fn devices() -> Vec<(&'static str, HostDevice)> {
        let device = |address: &str, vendor: &str, product: &str, role| HostDevice {
            address: address.parse().unwrap(),
            name: String::new(),
            vendor_id: vendor.parse().unwrap(),
            product_id: product.parse().unwrap(),
            vendor_name: None,
            product_name: None,
            class: None,
            role,
            iommu_group: Some(IommuGroup { number: 1, members: vec![address.parse().unwrap()] }),
            numa_node: None,
            driver: None,
            parent: None,
            bridge: false,
            express: true,
            link: None,
            serial: None,
            net: Vec::new(),
            block: Vec::new(),
        };
        let vf = "0000:04:10.0".parse().unwrap();
        let pf = Role::Physical { max_vfs: 7, vfs: vec![vf] };
        vec![
            ("pf", device("0000:04:00.0", "8086", "10c9", pf)),
            (
                "vf",
                device(
                    "0000:04:10.0",
                    "8086",
                    "10ca",
                    Role::Virtual { parent: "0000:04:00.0".parse().unwrap() },
                ),
            ),
            ("other", device("0000:05:00.0", "10ec", "8168", Role::Plain)),
        ]
    }

    fn inventory(device_spec: &Value, alias: Option<&Value>) -> Result<Inventory, ConfigError> {
        Inventory::new(&config::Pci {
            device_spec: vec![device_spec.to_string()],
            alias: alias.map(Value::to_string).into_iter().collect(),
            templates: None,
        })
    }

    fn check(case: &Value, outcome: Result<Vec<&str>, ConfigError>) {
        match (outcome, case["refused"].as_str()) {
            (Ok(matched), None) => {
                let wanted: Vec<&str> =
                    case["matches"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
                assert_eq!(matched, wanted, "{case}");
            }
            (Err(error), Some(says)) => assert!(error.to_string().contains(says), "{case}: {error}"),
            (outcome, _) => panic!("{case}: {outcome:?}"),
        }
    }

    #[test]
    fn a_device_spec_names_the_devices_that_it_names_in_nova() {
        let cases: Vec<Value> =
            serde_json::from_str(include_str!("../../tests/data/device_spec.json")).unwrap();
        for case in cases {
            let outcome = inventory(&case["spec"], None).map(|inventory| {
                let listed = |(_, device): &(&str, HostDevice)| inventory.facts(device).is_some();
                devices().into_iter().filter(listed).map(|(name, _)| name).collect()
            });
            check(&case, outcome);
        }
    }

    #[test]
    fn an_alias_names_the_devices_that_it_names_in_nova() {
        let cases: Vec<Value> = serde_json::from_str(include_str!("../../tests/data/alias.json")).unwrap();
        for case in cases {
            let outcome = inventory(&serde_json::json!({}), Some(&case["alias"])).map(|inventory| {
                let named = |(_, device): &(&str, HostDevice)| {
                    inventory.facts(device).is_some_and(|facts| inventory.alias("a").unwrap().matches(&facts))
                };
                devices().into_iter().filter(named).map(|(name, _)| name).collect()
            });
            check(&case, outcome);
        }
    }

    #[test]
    fn a_bridge_is_never_offered() {
        let (_, mut bridge) = devices().remove(2);
        bridge.bridge = true;
        assert_eq!(inventory(&serde_json::json!({}), None).unwrap().facts(&bridge), None);
    }

    #[test]
    fn entries_of_one_alias_are_alternatives_and_agree_in_type() {
        let entry = |product: &str, kind: &str| {
            format!(
                r#"{{"name": "a", "vendor_id": "8086", "product_id": "{product}", "device_type": "{kind}"}}"#
            )
        };
        let with = |alias: Vec<String>| {
            Inventory::new(&config::Pci { device_spec: vec!["{}".into()], alias, templates: None })
        };
        let both = with(vec![entry("10ca", "type-VF"), entry("1520", "type-VF")]).unwrap();
        assert_eq!(both.alias("a").unwrap().specs.len(), 2);
        let error = with(vec![entry("10ca", "type-VF"), entry("10c9", "type-PF")]).unwrap_err().to_string();
        assert!(error.contains("alias[1]") && error.contains("must agree"), "{error}");
    }
}
