//! Which devices may be given away, by which names, and which of them a request gets.
//!
//! The rules are Nova's: a device that no `device_spec` matches does not exist for requests; an alias is a kind
//! of device, not a device; a PF is given only when it is asked for by type.

mod alias;
mod choose;
mod discover;
mod extra_info;
pub(crate) mod identity;
mod numa;
mod offer;
mod placement;
mod pool;
mod request;
mod spec;
mod status;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, btree_map};

use hotslot_driver::device::{HostDevice, Role};
use hotslot_driver::pci::PciAddress;

pub use alias::{Alias, AliasGrammar, AliasSpec};
pub use choose::{Explanation, Scene, Shortage, Wanted, choose, explain};
pub use extra_info::{ExtraInfo, is_grouping_key};
pub use numa::NumaPolicy;
pub use offer::Offer;
pub use pool::{Pool, Stat, pools, stats};
pub(crate) use request::AliasRequests;
pub use request::{AliasRequest, RequestError};
pub use spec::{DeviceSpec, SpecError};
pub use status::{Deed, NotAllowed};

use crate::config::{self, ConfigError};
use crate::store::{DevType, DeviceFacts};

/// The configured rules.
#[derive(Debug, Default)]
pub struct Inventory {
    specs: Vec<DeviceSpec>,
    aliases: BTreeMap<String, Alias>,
    extra_info: Vec<ExtraInfo>,
}

impl Inventory {
    /// Reads the rules of a configuration.
    ///
    /// # Errors
    /// [`ConfigError::Value`] naming the first entry that is refused, and what is wrong with it.
    pub fn new(pci: &config::Pci) -> Result<Self, ConfigError> {
        let (inventory, problems) = Self::read(pci);
        match problems.into_iter().next() {
            None => Ok(inventory),
            Some(problem) => Err(problem),
        }
    }

    /// Every entry of a configuration that is refused, with its place.
    pub fn problems(pci: &config::Pci) -> Vec<ConfigError> {
        Self::read(pci).1
    }

    /// What can be read of a configuration, and what cannot.
    fn read(pci: &config::Pci) -> (Self, Vec<ConfigError>) {
        let (mut inventory, mut problems) = (Self::default(), Vec::new());
        for (index, text) in pci.device_spec.iter().enumerate() {
            for entry in DeviceSpec::parse(text, pci.report_in_placement) {
                match entry {
                    Ok(spec) => inventory.specs.push(spec),
                    Err(error) => problems.push(refused(format!("[pci] device_spec[{index}]"), error)),
                }
            }
        }
        for (index, entry) in pci.extra_info.iter().enumerate() {
            match ExtraInfo::parse(entry) {
                Ok(entry) => inventory.extra_info.push(entry),
                Err(errors) => problems.extend(
                    errors.into_iter().map(|error| refused(format!("[[pci.extra_info]][{index}]"), error)),
                ),
            }
        }
        let grammar = inventory.alias_grammar(pci.pci_in_placement);
        for (index, text) in pci.alias.iter().enumerate() {
            let added = Alias::parse(text, &grammar).and_then(|alias| inventory.add_alias(alias, &grammar));
            if let Err(error) = added {
                problems.push(refused(format!("[pci] alias[{index}]"), error));
            }
        }
        (inventory, problems)
    }

    fn alias_grammar(&self, pci_in_placement: bool) -> AliasGrammar {
        let tags = self.specs.iter().flat_map(|spec| spec.tags().keys());
        let values = self.extra_info.iter().flat_map(|entry| entry.values().keys());
        AliasGrammar { extra_info: tags.chain(values).cloned().collect(), pci_in_placement }
    }

    fn add_alias(&mut self, alias: Alias, grammar: &AliasGrammar) -> Result<(), SpecError> {
        match self.aliases.entry(alias.name.clone()) {
            btree_map::Entry::Vacant(entry) => drop(entry.insert(alias)),
            btree_map::Entry::Occupied(mut entry) => entry.get_mut().add_alternative(alias, grammar)?,
        }
        Ok(())
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
    /// that cannot be assigned (a bridge). `parent` is the PF of a VF. Both as a listing has them, with their
    /// network interfaces.
    pub fn facts(&self, device: &HostDevice, parent: Option<&HostDevice>) -> Option<DeviceFacts> {
        let spec = self.spec_of(device, parent)?;
        let (dev_type, parent_addr) = sriov(&device.role);
        let mut extra_info = spec.tags().clone();
        for (key, value) in
            self.extra_info.iter().filter(|entry| entry.matches(device, parent)).flat_map(ExtraInfo::values)
        {
            extra_info.entry(key.clone()).or_insert_with(|| value.clone());
        }
        let of_host = [
            (extra_info::CARD_SERIAL_NUMBER, extra_info::card_serial_number(device, parent).cloned()),
            (extra_info::PHYS_FUNCTION, parent_addr.map(|address| address.to_string())),
            (extra_info::PARENT_IFNAME, parent.and_then(|parent| parent.net.first().cloned())),
        ];
        extra_info.extend(of_host.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value?))));
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

    fn spec_of(&self, device: &HostDevice, parent: Option<&HostDevice>) -> Option<&DeviceSpec> {
        if device.bridge {
            return None;
        }
        self.specs.iter().find(|spec| spec.matches(device, parent))
    }
}

fn refused(place: String, error: SpecError) -> ConfigError {
    let key = match error.entry {
        Some(entry) => format!("{place}, entry {entry} of its list"),
        None => place,
    };
    ConfigError::Value { key, reason: SpecError { entry: None, ..error }.to_string() }
}

fn sriov(role: &Role) -> (DevType, Option<PciAddress>) {
    match role {
        Role::Plain => (DevType::Pci, None),
        Role::Physical { .. } => (DevType::Pf, None),
        Role::Virtual { parent } => (DevType::Vf, Some(*parent)),
    }
}

/// Whether the table's device is still the one that the host has there, for a device that was read alone: without
/// its interfaces, and without its PF.
pub fn is_still(facts: &DeviceFacts, device: &HostDevice) -> bool {
    let serial = facts.extra_info.get(extra_info::CARD_SERIAL_NUMBER);
    (facts.address, facts.vendor_id, facts.product_id)
        == (device.address, device.vendor_id, device.product_id)
        && (facts.dev_type, facts.parent_addr) == sriov(&device.role)
        && device.serial.as_ref().is_none_or(|now| Some(now) == serial)
        && !device.bridge
}

const MANAGED: &str = "managed";

/// The tag of devices that are given once, until someone has cleaned them.
pub(crate) const ONE_TIME_USE: &str = "one_time_use";

/// Whether libvirt is to bind the device's drivers: yes, unless its `device_spec` says `"managed": "false"`.
pub fn is_managed(facts: &DeviceFacts) -> bool {
    facts.extra_info.get(MANAGED).is_none_or(|managed| managed != "false")
}
