//! `device_spec` entries that conflict with the devices of a host. Nova's compute service does not start with such
//! entries. hotslot ignores them on that host and reports them.

use std::collections::BTreeMap;
use std::sync::Arc;

use hotslot_driver::device::Role;
use uuid::Uuid;

use super::inventory::Inventory;
use super::parse::{NULL, SpecError};
use super::placement;
use crate::device::{self, DeviceFacts, Functions, ONE_TIME_USE};

/// The entries that are ignored on a host, and why.
pub type Conflicts = BTreeMap<Uuid, SpecError>;

impl Inventory {
    /// Returns the inventory for a host with these functions, without the entries that conflict there, and the
    /// conflicts.
    pub fn on(self: &Arc<Self>, functions: &Functions) -> (Arc<Self>, Conflicts) {
        let mut conflicts = Conflicts::new();
        for (id, spec) in self.specs.iter().filter(|(_, spec)| spec.is("remote_managed")) {
            let absent = spec.absent(functions).map(|name| {
                let reason = format!(
                    "the host has no interface named {name}, and a remote_managed entry must name an existing one; \
                     correct the name, or name the VFs by address"
                );
                SpecError::key("devname", reason)
            });
            let of_devices = || functions.values().find_map(|device| spec.conflict(device, functions));
            if let Some(error) = absent.or_else(of_devices) {
                conflicts.insert(*id, error);
            }
        }
        let without = |conflicts: &Conflicts| {
            let kept = self.specs.iter().filter(|(id, _)| !conflicts.contains_key(id)).cloned();
            Self { specs: kept.collect(), ..Self::clone(self) }
        };
        if self.report_in_placement {
            // A later entry may name a device whose entry is ignored, so check again.
            while let Some((id, error)) = without(&conflicts).dependent(functions) {
                conflicts.insert(id, error);
            }
        }
        let inventory = if conflicts.is_empty() { self.clone() } else { Arc::new(without(&conflicts)) };
        (inventory, conflicts)
    }

    /// Whether an entry is ignored on a host only because another host has the interface that it names.
    pub fn is_for_another_host(&self, id: Uuid, on: &Functions, others: &[&Functions]) -> bool {
        let spec = self.specs.iter().find(|(other, _)| *other == id);
        spec.is_some_and(|(_, spec)| {
            let there = |other: &&Functions| !other.is_empty() && spec.absent(other).is_none();
            spec.absent(on).is_some() && others.iter().any(there)
        })
    }

    /// Returns the first entry that breaks a rule of `report_in_placement`, with the reason. An entry breaks a rule
    /// when it gives a VF the tag `one_time_use`, when a PF and its VFs are both listed, or when VFs of one PF differ
    /// in resource class or traits. When two entries conflict with each other, the later one is returned.
    ///
    /// These are the rules of Nova's `pci_placement_translator.py`. It leaves devices with a physical network to
    /// Neutron, so they are not checked.
    fn dependent(&self, functions: &Functions) -> Option<(Uuid, SpecError)> {
        let listed = |device| {
            let parent = device::parent(functions, device);
            let (id, _) = self.spec_of(device, parent)?;
            let facts = self.facts(device, parent)?;
            let of_neutron = facts.extra_info.get("physical_network").is_some_and(|name| name != NULL);
            (!of_neutron).then(|| (self.specs.iter().position(|(other, _)| other == id), facts))
        };
        let entry = |first: Option<usize>, second: Option<usize>| Some(self.specs.get(first.max(second)?)?.0);
        let mut siblings = BTreeMap::<_, (Option<usize>, DeviceFacts)>::new();
        for device in functions.values() {
            let Role::Virtual { parent } = device.role else { continue };
            let Some((at, facts)) = listed(device) else { continue };
            let vf = device.address;
            if facts.extra_info.contains_key(ONE_TIME_USE) {
                let reason = format!(
                    "only type-PCI and type-PF devices may have it, but {vf} is a VF; remove the tag"
                );
                return Some((entry(at, at)?, SpecError::key(ONE_TIME_USE, reason)));
            }
            if let Some((pf_at, _)) = functions.get(&parent).and_then(&listed) {
                let reason = format!(
                    "with report_in_placement a PF and its VFs cannot both be named, but {parent} and {vf} are; name \
                     one kind, by its product_id"
                );
                return Some((entry(at, pf_at)?, SpecError::whole(reason)));
            }
            let Some((first_at, first)) = siblings.get(&parent) else {
                siblings.insert(parent, (at, facts));
                continue;
            };
            let differs = [
                ("resource_class", placement::class_of(first), placement::class_of(&facts)),
                ("traits", tagged_traits(first), tagged_traits(&facts)),
            ];
            if let Some((key, one, other)) = differs.into_iter().find(|(_, one, other)| one != other) {
                let reason = format!(
                    "with report_in_placement all VFs of one PF must have the same, but of the VFs of {parent} {} has \
                     `{one}` and {vf} has `{other}`",
                    first.address
                );
                return Some((entry(at, *first_at)?, SpecError::key(key, reason)));
            }
        }
        None
    }
}

fn tagged_traits(facts: &DeviceFacts) -> String {
    facts.extra_info.get("traits").unwrap_or_default().to_owned()
}
