//! Which devices may be given away, by which names, and which of them a request gets.
//!
//! The rules are Nova's: a device that no `device_spec` matches does not exist for requests; an alias is a kind
//! of device, not a device; a PF is given only when it is asked for by type.

mod alias;
mod request;
mod spec;

use std::collections::{BTreeMap, HashSet};

use hotslot_driver::device::{HostDevice, Role};

pub use alias::{Alias, AliasSpec};
pub(crate) use request::AliasRequests;
pub use request::{AliasRequest, RequestError};
pub use spec::{DeviceSpec, SpecError};

use crate::config::{self, ConfigError};
use crate::id::DeviceId;
use crate::store::{DevType, Device, DeviceFacts, DeviceStatus};

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

/// Chooses `count` free devices of a host for an alias, in order of address. `Err` tells how many are free when
/// that is too few. `taken` are those that an earlier part of the same request has.
///
/// # Errors
/// The number that is free.
pub fn choose<'a>(
    alias: &Alias,
    count: usize,
    devices: &'a [Device],
    taken: &HashSet<DeviceId>,
) -> Result<Vec<&'a Device>, usize> {
    let held = |relative: &Device| relative.server.is_some() || taken.contains(&relative.id);
    let free = |device: &&Device| {
        device.status == DeviceStatus::Available
            && !taken.contains(&device.id)
            && alias.matches(&device.facts)
            // A PF takes its VFs with it, a VF keeps its PF.
            && !devices.iter().any(|relative| {
                held(relative)
                    && (relative.facts.parent_addr == Some(device.facts.address)
                        || device.facts.parent_addr == Some(relative.facts.address))
            })
    };
    let candidates: Vec<&Device> = devices.iter().filter(free).collect();
    // A PF and its own VF do not go together in one request either.
    let mut chosen: Vec<&Device> = Vec::new();
    for device in candidates {
        let related = chosen.iter().any(|other| {
            other.facts.parent_addr == Some(device.facts.address)
                || device.facts.parent_addr == Some(other.facts.address)
        });
        if !related {
            chosen.push(device);
        }
    }
    if chosen.len() < count {
        return Err(chosen.len());
    }
    chosen.truncate(count);
    Ok(chosen)
}
