//! What the host itself tells of a device, beside the columns of its row, as Nova records it.

use hotslot_driver::device::{HostDevice, Role};
use hotslot_driver::pci::PciClass;
use serde_json::{Map, Value, json};

use crate::device::DevType;

/// The serial number of the card that a function is on. A VF has the vital product data of its PF.
pub(super) fn card_serial_number<'a>(
    device: &'a HostDevice,
    parent: Option<&'a HostDevice>,
) -> Option<&'a String> {
    device.serial.as_ref().or_else(|| parent.and_then(|parent| parent.serial.as_ref()))
}

/// The MAC address of the first network interface on a function.
pub(super) fn mac_address(device: &HostDevice) -> Option<String> {
    device.net.first()?.mac.map(|mac| mac.to_string())
}

/// Nova's `capabilities`, a JSON object as text; none where there is nothing to say.
///
/// * `network`, of a VF: the features of its network interface, while the host has that;
/// * `sriov`, of a VF whose PF has a network interface: `pf_mac_address` and `vf_num`;
/// * `vpd`: `card_serial_number` from the vital product data, of a VF also from its PF's.
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
    // That of an NVMe controller may be its disk's, and not from vital product data.
    let has_vpd = !device.class.is_some_and(PciClass::is_nvme);
    if let Some(serial) = card_serial_number(device, parent).filter(|_| has_vpd) {
        all.insert("vpd".to_owned(), json!({ "card_serial_number": serial }));
    }
    (!all.is_empty()).then(|| Value::Object(all).to_string())
}
