//! Which devices may be given away, by which names, and which of them a request gets.
//!
//! The rules are Nova's: a device that no `device_spec` matches does not exist for requests; an alias is a kind
//! of device, not a device; a PF is given only when it is asked for by type.

mod alias;
mod change;
mod choose;
mod conflict;
mod discover;
mod extra_info;
mod foreign;
pub(crate) mod identity;
mod numa;
mod offer;
mod placement;
mod pool;
mod request;
mod rules;
mod spec;
mod status;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, btree_map};
use std::sync::Arc;

use hotslot_driver::device::{HostDevice, Role};
use hotslot_driver::pci::PciAddress;
use uuid::Uuid;

pub use alias::{Alias, AliasGrammar, AliasSpec};
pub use change::Change;
pub use choose::{Explanation, Scene, Shortage, Wanted, choose, explain};
pub use conflict::Conflicts;
pub use extra_info::{ExtraInfo, is_grouping_key};
pub use foreign::Foreign;
pub use numa::NumaPolicy;
pub use offer::{HostDrivers, Offer};
pub(crate) use placement::{class_of, custom, declared_traits};
pub use pool::{Pool, Stat, pools, stats};
pub use request::{AliasRequest, AliasRequests, RequestError};
pub use rules::{Rule, RuleKind, Rules, Source};
pub use spec::{DeviceSpec, NULL, SpecError};
pub use status::{Deed, NotAllowed};

use crate::config::{self, ConfigError};
use crate::host::Functions;
use crate::store::{DevType, DeviceFacts};

/// The configured rules.
#[derive(Debug, Clone, Default)]
pub struct Inventory {
    specs: Vec<(Uuid, DeviceSpec)>,
    aliases: BTreeMap<String, Alias>,
    extra_info: Vec<(Uuid, ExtraInfo)>,
    report_in_placement: bool,
}

impl Inventory {
    /// Reads the rules of a configuration.
    ///
    /// # Errors
    /// [`ConfigError::Value`] naming the first entry that is refused, and what is wrong with it.
    pub fn new(pci: &config::Pci) -> Result<Arc<Self>, ConfigError> {
        let rules = Rules::read(Rule::of_file(pci), pci);
        match rules.problems().into_iter().next() {
            None => Ok(rules.inventory),
            Some(problem) => Err(problem),
        }
    }

    fn alias_grammar(&self, pci_in_placement: bool) -> AliasGrammar {
        let tags = self.specs.iter().flat_map(|(_, spec)| spec.tags().keys());
        let values = self.extra_info.iter().flat_map(|(_, entry)| entry.values().keys());
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

    /// Whether an entry says by its interface which device it means.
    pub(crate) fn names_interfaces(&self) -> bool {
        let outside = self.extra_info.iter().any(|(_, entry)| entry.names_interfaces());
        outside || self.specs.iter().any(|(_, spec)| spec.names_interface())
    }

    /// Whether an entry names this one address, without a pattern.
    pub(crate) fn names_address(&self, address: PciAddress) -> bool {
        self.specs.iter().any(|(_, spec)| spec.names_address(address))
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
        let (_, spec) = self.spec_of(device, parent)?;
        let (dev_type, parent_addr) = kind(device);
        let mut extra_info = spec.tags().clone();
        let outside = self.extra_info.iter().filter(|(_, entry)| entry.matches(device, parent));
        for (key, value) in outside.flat_map(|(_, entry)| entry.values()) {
            extra_info.entry(key.clone()).or_insert_with(|| value.clone());
        }
        let of_host = [
            (extra_info::CARD_SERIAL_NUMBER, extra_info::card_serial_number(device, parent).cloned()),
            (extra_info::PHYS_FUNCTION, parent_addr.map(|address| address.to_string())),
            (extra_info::PARENT_IFNAME, parent.and_then(|parent| Some(parent.net.first()?.name.clone()))),
            (extra_info::CAPABILITIES, extra_info::capabilities(device, parent, dev_type)),
            (extra_info::MAC_ADDRESS, extra_info::mac_address(device).filter(|_| dev_type == DevType::Pf)),
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

    /// The entries that say something of a device: the one of the whitelist that counts, and all of the facts from
    /// outside. `parent` is the PF of a VF.
    pub fn entries_of(&self, device: &HostDevice, parent: Option<&HostDevice>) -> BTreeSet<Uuid> {
        let outside = self.extra_info.iter().filter(|(_, entry)| entry.matches(device, parent));
        let ids = outside.map(|(id, _)| *id);
        ids.chain(self.spec_of(device, parent).map(|(id, _)| *id)).collect()
    }

    /// Of each entry of the whitelist the first thing in which it does not name a function; none when it does.
    pub(crate) fn mismatches(
        &self,
        functions: &Functions,
        device: &HostDevice,
    ) -> Vec<(Uuid, Option<String>)> {
        let parent = discover::parent(functions, device);
        let bridge = || device.bridge.then(|| "bridges and ports are never given away".to_owned());
        let mismatch = |spec: &DeviceSpec| bridge().or_else(|| spec.mismatch(device, parent));
        self.specs.iter().map(|(id, spec)| (*id, mismatch(spec))).collect()
    }

    fn spec_of(&self, device: &HostDevice, parent: Option<&HostDevice>) -> Option<&(Uuid, DeviceSpec)> {
        if device.bridge {
            return None;
        }
        self.specs.iter().find(|(_, spec)| spec.matches(device, parent))
    }
}

/// The type of a device to Nova, and its PF. Only a VF of which a vDPA device is made is a `vdpa`.
fn kind(device: &HostDevice) -> (DevType, Option<PciAddress>) {
    match sriov(&device.role) {
        (DevType::Vf, parent) if !device.vdpa.is_empty() => (DevType::Vdpa, parent),
        by_role => by_role,
    }
}

fn sriov(role: &Role) -> (DevType, Option<PciAddress>) {
    match role {
        Role::Plain => (DevType::Pci, None),
        Role::Physical { .. } => (DevType::Pf, None),
        Role::Virtual { parent } => (DevType::Vf, Some(*parent)),
    }
}

/// Whether the table's device is still the one that the host has there, for a device that was read alone: without
/// its interfaces and its vDPA device, and without its PF.
pub fn is_still(facts: &DeviceFacts, device: &HostDevice) -> bool {
    let serial = facts.extra_info.get(extra_info::CARD_SERIAL_NUMBER);
    let (dev_type, parent_addr) = kind(device);
    let alone = match facts.dev_type {
        DevType::Vdpa if device.vdpa.is_empty() => DevType::Vf,
        known @ (DevType::Pci | DevType::Pf | DevType::Vf | DevType::Vdpa) => known,
    };
    (facts.address, facts.vendor_id, facts.product_id)
        == (device.address, device.vendor_id, device.product_id)
        && (alone, facts.parent_addr) == (dev_type, parent_addr)
        && device.serial.as_deref().is_none_or(|now| Some(now) == serial)
        && !device.bridge
}

const MANAGED: &str = "managed";

const ONE_TIME_USE: &str = "one_time_use";

/// Whether the device is given once, until someone has cleaned it.
pub(crate) fn is_for_one_use(facts: &DeviceFacts) -> bool {
    facts.extra_info.get(ONE_TIME_USE).is_some_and(|once| once == "true")
}

/// Why a device that carries a vDPA device is given to nobody: libvirt would unbind the driver that makes it, and a
/// guest has it by `<interface type='vdpa'>`, which hotslot does not write.
const VDPA: &str = "it carries a vDPA device, which ends when the function is given away, and hotslot plugs no vDPA \
                    devices; take that away first (vdpa dev del) for the VF to be given";

/// Whether libvirt is to bind the device's drivers: yes, unless its `device_spec` says `"managed": "false"`.
pub fn is_managed(facts: &DeviceFacts) -> bool {
    facts.extra_info.get(MANAGED).is_none_or(|managed| managed != "false")
}
