//! Recognises devices after their addresses have changed. PCI buses get new numbers when hardware is added or moved.
//!
//! A device is recognised by its serial number, or else by its slot path, each together with its ids. A VF is
//! recognised by the serial number of its PF and its position among the VFs of that PF. When two devices have the same
//! description, neither is recognised.

use std::collections::{BTreeMap, HashMap, HashSet};

use hotslot_driver::device::{HostDevice, Role};
use hotslot_driver::pci::{PciAddress, PciId};

use super::keys::{CARD_SERIAL_NUMBER, SLOT_PATH};
use crate::device::{DevType, DeviceFacts, Functions};

/// The properties of a device that do not depend on its address.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Kind {
    vendor_id: PciId,
    product_id: PciId,
    dev_type: DevType,
}

/// A property that distinguishes one device from others of the same kind.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Mark {
    /// The serial number of the card, and the position of the function on the card. The position is the function
    /// number, or for a VF the distance between its requester id and that of its PF (SR-IOV: First VF Offset, VF
    /// Stride).
    Serial(String, i64),
    /// The path from [`slot_path`].
    Slot(String),
}

fn kind_of(facts: &DeviceFacts) -> Kind {
    Kind { vendor_id: facts.vendor_id, product_id: facts.product_id, dev_type: facts.dev_type }
}

fn requester_id(address: PciAddress) -> i64 {
    i64::from(address.bus()) << 8 | i64::from(address.slot()) << 3 | i64::from(address.function())
}

fn serial(facts: &DeviceFacts) -> Option<Mark> {
    let number = facts.extra_info.get(CARD_SERIAL_NUMBER)?;
    let place = match facts.parent_addr {
        Some(pf) => requester_id(facts.address) - requester_id(pf),
        None => i64::from(facts.address.function()),
    };
    Some(Mark::Serial(number.to_owned(), place))
}

fn slot(facts: &DeviceFacts) -> Option<Mark> {
    facts.extra_info.get(SLOT_PATH).map(str::to_owned).map(Mark::Slot)
}

/// Whether the device that is at an address now can be the device that was there before.
pub fn is_same(was: &DeviceFacts, now: &DeviceFacts) -> bool {
    let differ = |mark: fn(&DeviceFacts) -> Option<Mark>| match (mark(was), mark(now)) {
        (Some(was), Some(now)) => was != now,
        (None, _) | (_, None) => false,
    };
    let both_have_serials = serial(was).is_some() && serial(now).is_some();
    kind_of(was) == kind_of(now) && !differ(serial) && (both_have_serials || !differ(slot))
}

/// Whether the device that is at an address now is certainly another one than the device that was there before. Whether a VF
/// carries a vDPA device does not matter.
pub fn is_another(was: &DeviceFacts, now: &DeviceFacts) -> bool {
    let alone = |facts: &DeviceFacts| match facts.dev_type {
        DevType::Vdpa => DevType::Vf,
        known @ (DevType::Pci | DevType::Pf | DevType::Vf) => known,
    };
    let ids = |facts: &DeviceFacts| (facts.vendor_id, facts.product_id, alone(facts));
    let now_serial = now.extra_info.get(CARD_SERIAL_NUMBER);
    let other_slot = || slot(was).zip(slot(now)).is_some_and(|(was, now)| was != now);
    let no_serials = now_serial.is_none() || was.extra_info.get(CARD_SERIAL_NUMBER).is_none();
    ids(was) != ids(now) || has_another_serial(was, now_serial) || no_serials && other_slot()
}

/// Whether a serial number is certainly not that of a device. The number of a namespace at the end of the serial number of an
/// NVMe disk (`…_1`) does not count, because a guest may have changed the namespaces.
pub fn has_another_serial(facts: &DeviceFacts, now: Option<&str>) -> bool {
    let of_card = |serial: &str| match serial.rsplit_once('_') {
        Some((card, namespace)) if namespace.len() <= 3 && namespace.parse::<u16>().is_ok() => {
            card.to_owned()
        }
        Some(_) | None => serial.to_owned(),
    };
    let was = facts.extra_info.get(CARD_SERIAL_NUMBER);
    was.zip(now).is_some_and(|(was, now)| of_card(was) != of_card(now))
}

/// The devices that have changed their addresses.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Moves {
    /// The new address for each old address.
    pub moved: BTreeMap<PciAddress, PciAddress>,
    /// Devices that are gone while new devices appeared that cannot be distinguished from them.
    pub unclear: Vec<PciAddress>,
}

/// Finds the devices that are now at another address. `before` and `now` are in order of address.
pub fn follow(before: &[&DeviceFacts], now: &[&DeviceFacts]) -> Moves {
    let seen: HashMap<PciAddress, &DeviceFacts> = now.iter().map(|facts| (facts.address, *facts)).collect();
    let known: HashMap<PciAddress, &DeviceFacts> =
        before.iter().map(|facts| (facts.address, *facts)).collect();
    let settled = |was: &DeviceFacts| seen.get(&was.address).is_some_and(|now| is_same(was, now));
    let mut lost: Vec<&DeviceFacts> = before.iter().copied().filter(|was| !settled(was)).collect();
    let mut found: Vec<&DeviceFacts> = now
        .iter()
        .copied()
        .filter(|now| known.get(&now.address).is_none_or(|was| !is_same(was, now)))
        .collect();
    let mut moves = Moves::default();
    for mark in [serial as fn(&DeviceFacts) -> Option<Mark>, slot] {
        let (by_lost, by_found) = (single(&lost, mark), single(&found, mark));
        let (mut was_found, mut is_found) = (HashSet::new(), HashSet::new());
        for (key, was) in by_lost {
            if let Some(now) = by_found.get(&key)
                && (mark(was) == serial(was) || serial(was).is_none() || serial(now).is_none())
            {
                if was.address != now.address {
                    moves.moved.insert(was.address, now.address);
                }
                was_found.insert(was.address);
                is_found.insert(now.address);
            }
        }
        lost.retain(|was| !was_found.contains(&was.address));
        found.retain(|now| !is_found.contains(&now.address));
    }
    // A remaining device may be the same as before or another one, when it has no serial number.
    let nameless = |facts: &DeviceFacts| serial(facts).is_none();
    let came: HashSet<Kind> = found
        .iter()
        .filter(|now| nameless(now) && !known.contains_key(&now.address))
        .map(|now| kind_of(now))
        .collect();
    let unclear = lost
        .iter()
        .filter(|was| nameless(was) && !seen.contains_key(&was.address) && came.contains(&kind_of(was)));
    moves.unclear = unclear.map(|was| was.address).collect();
    moves
}

/// Returns the devices whose mark no other device of the same kind has.
fn single<'a>(
    devices: &[&'a DeviceFacts],
    mark: fn(&DeviceFacts) -> Option<Mark>,
) -> HashMap<(Kind, Mark), &'a DeviceFacts> {
    let mut marked = HashMap::<_, Option<&DeviceFacts>>::new();
    for facts in devices {
        let Some(mark) = mark(facts) else { continue };
        marked.entry((kind_of(facts), mark)).and_modify(|seen| *seen = None).or_insert(Some(facts));
    }
    marked.into_iter().filter_map(|(key, facts)| Some((key, facts?))).collect()
}

/// Returns the PCI domain and the slot and function numbers on the path from the root to a function, such as
/// `0000:1c.4/00.0`. They stay the same when buses get new numbers. Returns `None` when a bridge on the path is not
/// known.
pub fn slot_path(functions: &Functions, device: &HostDevice) -> Option<String> {
    let own = |device: &HostDevice| {
        let address = device.address;
        format!("{:02x}.{}", address.slot(), address.function())
    };
    let mut path = own(device);
    let mut above = device.parent.as_deref();
    // A PCI tree is at most as deep as the number of buses in a domain.
    for _ in 0..=u8::MAX {
        let Some(bridge) = above.and_then(|name| PciAddress::from_node_name(name).ok()) else {
            return Some(format!("{:04x}:{path}", device.address.domain()));
        };
        let bridge = functions.get(&bridge)?;
        path = format!("{}/{path}", own(bridge));
        above = bridge.parent.as_deref();
    }
    None
}

/// Returns the Nova type of a device, and its PF. The type `vdpa` is for a VF that carries a vDPA device.
pub(super) fn kind(device: &HostDevice) -> (DevType, Option<PciAddress>) {
    match sriov(&device.role) {
        (DevType::Vf, parent) if !device.vdpa.is_empty() => (DevType::Vdpa, parent),
        by_role => by_role,
    }
}

pub(super) fn sriov(role: &Role) -> (DevType, Option<PciAddress>) {
    match role {
        Role::Plain => (DevType::Pci, None),
        Role::Physical { .. } => (DevType::Pf, None),
        Role::Virtual { parent } => (DevType::Vf, Some(*parent)),
    }
}

/// Whether a device that was read alone (without its interfaces, its vDPA device and its PF) is still the one that is
/// recorded.
pub fn is_still(facts: &DeviceFacts, device: &HostDevice) -> bool {
    let serial = facts.extra_info.get(CARD_SERIAL_NUMBER);
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

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    fn facts(line: &Value) -> DeviceFacts {
        let text = |key: &str| line[key].as_str();
        let dev_type = text("type").unwrap_or("type-PCI").parse().unwrap();
        let marks = [(CARD_SERIAL_NUMBER, "serial"), (SLOT_PATH, "slot")];
        DeviceFacts {
            address: text("at").unwrap().parse().unwrap(),
            vendor_id: "8086".parse().unwrap(),
            product_id: text("product").unwrap_or("1533").parse().unwrap(),
            dev_type,
            numa_node: None,
            parent_addr: text("pf").map(|pf| pf.parse().unwrap()),
            extra_info: marks.into_iter().filter_map(|(name, key)| Some((name, text(key)?))).collect(),
        }
    }

    #[test]
    fn moved_devices_are_recognised() {
        let cases: Vec<Value> = serde_json::from_str(include_str!("../../tests/data/identity.json")).unwrap();
        for case in cases {
            let read = |key: &str| case[key].as_array().unwrap().iter().map(facts).collect::<Vec<_>>();
            let (before, now) = (read("before"), read("now"));
            let moves = follow(&before.iter().collect::<Vec<_>>(), &now.iter().collect::<Vec<_>>());
            let moved: Value = moves
                .moved
                .iter()
                .map(|(from, to)| (from.to_string(), Value::from(to.to_string())))
                .collect();
            assert_eq!(moved, case["moved"], "{case}");
            let unclear: Value =
                moves.unclear.iter().map(|address| Value::from(address.to_string())).collect();
            assert_eq!(unclear, case["unclear"], "{case}");
        }
    }
}
