//! The rules in force: which devices are assignable, which aliases match them, and which `extra_info` they have.

use std::collections::{BTreeMap, BTreeSet, btree_map};

use hotslot_driver::device::HostDevice;
use hotslot_driver::pci::PciAddress;
use uuid::Uuid;

use super::alias::{Alias, AliasGrammar};
use super::extra_info::ExtraInfo;
use super::identity::kind;
use super::keys::FROM_HOST;
use super::parse::{SpecError, TAGS};
use super::spec::DeviceSpec;
use super::{host_facts, keys};
use crate::device::{self, DevType, DeviceFacts, Functions};

/// The rules in force: entries of `device_spec`, `alias` and `extra_info` that are valid.
#[derive(Debug, Clone, Default)]
pub struct Inventory {
    pub(super) specs: Vec<(Uuid, DeviceSpec)>,
    pub(super) aliases: BTreeMap<String, Alias>,
    pub(super) extra_info: Vec<(Uuid, ExtraInfo)>,
    pub(super) report_in_placement: bool,
}

impl Inventory {
    /// Returns every key that `extra_info` of a device can have by these entries: tags with a meaning of their own, the facts
    /// from its host, and the keys that entries define.
    pub fn extra_info_keys(&self) -> BTreeSet<String> {
        let defined = self.alias_grammar(false).extra_info;
        TAGS.iter().chain(FROM_HOST).map(|key| (*key).to_owned()).chain(defined).collect()
    }

    pub(super) fn alias_grammar(&self, pci_in_placement: bool) -> AliasGrammar {
        let tags = self.specs.iter().flat_map(|(_, spec)| spec.tags().keys());
        let values = self.extra_info.iter().flat_map(|(_, entry)| entry.values().keys());
        AliasGrammar { extra_info: tags.chain(values).cloned().collect(), pci_in_placement }
    }

    pub(super) fn add_alias(&mut self, alias: Alias, grammar: &AliasGrammar) -> Result<(), SpecError> {
        match self.aliases.entry(alias.name.clone()) {
            btree_map::Entry::Vacant(entry) => drop(entry.insert(alias)),
            btree_map::Entry::Occupied(mut entry) => entry.get_mut().add_alternative(alias, grammar)?,
        }
        Ok(())
    }

    /// Whether there is no `device_spec`, so that no device is assignable.
    pub fn is_empty(&self) -> bool {
        self.specs.is_empty()
    }

    /// Whether an entry selects devices by their network interface.
    pub fn names_interfaces(&self) -> bool {
        let outside = self.extra_info.iter().any(|(_, entry)| entry.names_interfaces());
        outside || self.specs.iter().any(|(_, spec)| spec.names_interface())
    }

    /// Whether a `device_spec` selects exactly this address, without a pattern.
    pub fn names_address(&self, address: PciAddress) -> bool {
        self.specs.iter().any(|(_, spec)| spec.names_address(address))
    }

    /// Returns the alias with this name.
    pub fn alias(&self, name: &str) -> Option<&Alias> {
        self.aliases.get(name)
    }

    /// Returns the names of the configured aliases, sorted.
    pub fn alias_names(&self) -> impl Iterator<Item = &str> {
        self.aliases.keys().map(String::as_str)
    }

    /// Returns the facts to record about a device of a host, or `None` when no `device_spec` matches it or it is a
    /// bridge, which cannot be assigned. `parent` is the PF if the device is a VF. Both must be complete, with their
    /// network interfaces.
    pub fn facts(&self, device: &HostDevice, parent: Option<&HostDevice>) -> Option<DeviceFacts> {
        let (_, spec) = self.spec_of(device, parent)?;
        let (dev_type, parent_addr) = kind(device);
        let mut extra_info = spec.tags().clone();
        let outside = self.extra_info.iter().filter(|(_, entry)| entry.matches(device, parent));
        for (key, value) in outside.flat_map(|(_, entry)| entry.values()) {
            extra_info.entry(key.clone()).or_insert_with(|| value.clone());
        }
        let of_host = [
            (keys::CARD_SERIAL_NUMBER, host_facts::card_serial_number(device, parent).cloned()),
            (keys::PHYS_FUNCTION, parent_addr.map(|address| address.to_string())),
            (keys::PARENT_IFNAME, parent.and_then(|parent| Some(parent.net.first()?.name.clone()))),
            (keys::CAPABILITIES, host_facts::capabilities(device, parent, dev_type)),
            (keys::MAC_ADDRESS, host_facts::mac_address(device).filter(|_| dev_type == DevType::Pf)),
        ];
        extra_info.extend(of_host.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value?))));
        Some(DeviceFacts {
            address: device.address,
            vendor_id: device.vendor_id,
            product_id: device.product_id,
            dev_type,
            numa_node: device.numa_node,
            parent_addr,
            extra_info: extra_info.into_iter().collect(),
        })
    }

    /// Returns the entries that apply to a device: the first `device_spec` that matches, and every matching
    /// `extra_info` entry. `parent` is the PF if the device is a VF.
    pub fn entries_of(&self, device: &HostDevice, parent: Option<&HostDevice>) -> BTreeSet<Uuid> {
        let outside = self.extra_info.iter().filter(|(_, entry)| entry.matches(device, parent));
        let ids = outside.map(|(id, _)| *id);
        ids.chain(self.spec_of(device, parent).map(|(id, _)| *id)).collect()
    }

    /// Whether an entry of `device_spec` or `extra_info` matches a function, also where another `device_spec` decides.
    pub fn entry_matches(&self, id: Uuid, device: &HostDevice, parent: Option<&HostDevice>) -> bool {
        let is_spec = |(own, spec): &(Uuid, DeviceSpec)| *own == id && spec.matches(device, parent);
        let is_outside = |(own, entry): &(Uuid, ExtraInfo)| *own == id && entry.matches(device, parent);
        let by_spec = !device.bridge && self.specs.iter().any(is_spec);
        by_spec || self.extra_info.iter().any(is_outside)
    }

    /// Returns for each `device_spec` the first reason why it does not match a function, or `None` when it matches.
    pub fn mismatches(&self, functions: &Functions, device: &HostDevice) -> Vec<(Uuid, Option<String>)> {
        let parent = device::parent(functions, device);
        let bridge = || device.bridge.then(|| "bridges and ports are never assignable".to_owned());
        let mismatch = |spec: &DeviceSpec| bridge().or_else(|| spec.mismatch(device, parent));
        self.specs.iter().map(|(id, spec)| (*id, mismatch(spec))).collect()
    }

    pub(super) fn spec_of(
        &self,
        device: &HostDevice,
        parent: Option<&HostDevice>,
    ) -> Option<&(Uuid, DeviceSpec)> {
        if device.bridge {
            return None;
        }
        self.specs.iter().find(|(_, spec)| spec.matches(device, parent))
    }
}
