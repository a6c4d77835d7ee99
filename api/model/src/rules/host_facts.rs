//! Facts of a device that come from its host and have no column of their own, in Nova's format.

use hotslot_driver::device::{HostDevice, Role};
use hotslot_driver::pci::PciClass;
use serde_json::{Map, Value, json};

use crate::device::DevType;

/// Returns the serial number of the card that a function is on. A VF has that of its PF.
pub(super) fn card_serial_number<'a>(
    device: &'a HostDevice,
    parent: Option<&'a HostDevice>,
) -> Option<&'a String> {
    device.serial.as_ref().or_else(|| parent.and_then(|parent| parent.serial.as_ref()))
}

/// Returns the MAC address of the first network interface of a function.
pub(super) fn mac_address(device: &HostDevice) -> Option<String> {
    device.net.first()?.mac.map(|mac| mac.to_string())
}

/// Returns Nova's `capabilities`, a JSON object as text, or `None` when the object would be empty.
///
/// * `network`, for a VF: the features of its network interface, while the host has that interface;
/// * `sriov`, for a VF whose PF has a network interface: `pf_mac_address` and `vf_num`;
/// * `vpd`: `card_serial_number` from the vital product data (VPD), for a VF also from that of its PF.
pub(super) fn capabilities(
    device: &HostDevice,
    parent: Option<&HostDevice>,
    dev_type: DevType,
) -> Option<String> {
    let mut all = Map::new();
    let parent = parent.filter(|_| dev_type == DevType::Vf);
    if dev_type == DevType::Vf
        && let Some(interface) = device.net.first().filter(|interface| !interface.features.is_empty())
    {
        all.insert("network".to_owned(), json!(&interface.features[..]));
    }
    if let Some(parent) = parent
        && let Some(mac) = mac_address(parent)
        && let Role::Physical { vfs, .. } = &parent.role
        && let Some(number) = vfs.iter().position(|vf| *vf == device.address)
    {
        all.insert("sriov".to_owned(), json!({ "pf_mac_address": mac, "vf_num": number }));
    }
    // The serial number of an NVMe controller may be that of its disk, which is not in the VPD.
    let has_vpd = !device.class.is_some_and(PciClass::is_nvme);
    if let Some(serial) = card_serial_number(device, parent).filter(|_| has_vpd) {
        all.insert("vpd".to_owned(), json!({ "card_serial_number": serial }));
    }
    (!all.is_empty()).then(|| Value::Object(all).to_string())
}
