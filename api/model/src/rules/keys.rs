//! The keys of `extra_info` that have a meaning of their own.

use crate::hot_unplug::HOT_UNPLUG;

/// The serial number of the card, from its vital product data (VPD).
pub(super) const CARD_SERIAL_NUMBER: &str = "card_serial_number";
/// The address of a VF's PF.
pub(super) const PHYS_FUNCTION: &str = "phys_function";
/// The slot and function numbers of the bridges from the PCI root to the device, and of the device itself.
pub const SLOT_PATH: &str = "slot_path";
/// The first network interface of a VF's PF.
pub(super) const PARENT_IFNAME: &str = "parent_ifname";
/// The capabilities of the device in Nova's format; see [`capabilities`](super::host_facts::capabilities).
pub(super) const CAPABILITIES: &str = "capabilities";
/// The MAC address of a PF's first network interface.
pub(super) const MAC_ADDRESS: &str = "mac_address";

/// The keys that a host gives.
pub(super) const FROM_HOST: &[&str] =
    &[CARD_SERIAL_NUMBER, PHYS_FUNCTION, SLOT_PATH, PARENT_IFNAME, CAPABILITIES, MAC_ADDRESS];

/// The reason why a function with a vDPA device is not assignable. To attach the function, libvirt would unbind the
/// driver that provides the vDPA device. A guest uses a vDPA device through `<interface type='vdpa'>`, which hotslot
/// does not support.
pub const VDPA: &str = "it carries a vDPA device, which would disappear when the function is attached, and hotslot \
                        does not attach vDPA devices; remove the vDPA device first (vdpa dev del)";

/// The reserved keys: the columns of a device, the facts from its host, the keys of pools and aliases, and the query
/// parameters of device lists. No tag may have one of these names.
const OWN: &[&str] = &[
    "id",
    "uuid",
    "name",
    "compute_node_id",
    "address",
    "vendor_id",
    "product_id",
    "dev_type",
    "device_type",
    "capability_type",
    "numa_policy",
    "vgpu_type",
    "mdev_type",
    "dev_id",
    "label",
    "status",
    "request_id",
    "instance_uuid",
    "server_uuid",
    "numa_node",
    "parent_addr",
    "extra_info",
    "created_at",
    "updated_at",
    "deleted_at",
    "deleted",
    "count",
    CAPABILITIES,
    MAC_ADDRESS,
    "rp_uuid",
    "host",
    "hypervisor_hostname",
    "limit",
    "marker",
    CARD_SERIAL_NUMBER,
    PHYS_FUNCTION,
    PARENT_IFNAME,
    SLOT_PATH,
];

pub(super) fn is_own(key: &str) -> bool {
    OWN.contains(&key)
}

/// Whether devices that differ in this key of `extra_info` belong to different pools.
pub fn is_grouping_key(key: &str) -> bool {
    !NOT_GROUPED.contains(&key)
}

/// The keys that do not separate pools, because they differ from card to card or belong to Placement.
const NOT_GROUPED: &[&str] = &[
    CARD_SERIAL_NUMBER,
    PHYS_FUNCTION,
    SLOT_PATH,
    "resource_class",
    "traits",
    "rp_uuid",
    MAC_ADDRESS,
    CAPABILITIES,
    HOT_UNPLUG,
];
