//! The keys of `extra_info`, and which of them mean what.

use crate::hot_unplug::HOT_UNPLUG;

/// The card's serial number from its vital product data.
pub(super) const CARD_SERIAL_NUMBER: &str = "card_serial_number";
/// The address of a VF's PF.
pub(super) const PHYS_FUNCTION: &str = "phys_function";
/// The slots from the root down to it.
pub const SLOT_PATH: &str = "slot_path";
/// The first network interface of a VF's PF.
pub(super) const PARENT_IFNAME: &str = "parent_ifname";
/// What the device can do, as Nova records it: see [`capabilities`](super::host_facts::capabilities).
pub(super) const CAPABILITIES: &str = "capabilities";
/// The MAC address of a PF's first network interface.
pub(super) const MAC_ADDRESS: &str = "mac_address";

/// Why a device that carries a vDPA device is given to nobody: libvirt would unbind the driver that makes it, and a
/// guest has it by `<interface type='vdpa'>`, which hotslot does not write.
pub const VDPA: &str = "it carries a vDPA device, which ends when the function is given away, and hotslot plugs no vDPA \
                    devices; take that away first (vdpa dev del) for the VF to be given";

/// What hotslot itself says: the columns of a device, what its host gives, the own keys of pools and aliases, and what
/// a list of devices can be asked for.
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

/// Whether devices that differ in this key of `extra_info` are of different pools.
pub fn is_grouping_key(key: &str) -> bool {
    !NOT_GROUPED.contains(&key)
}

/// What differs from card to card, or is Placement's: devices that differ only in it are one pool.
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
