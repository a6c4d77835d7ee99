//! What several fuzz targets need.

use std::sync::LazyLock;

use hotslot_driver::device::HostDevice;
use hotslot_driver::xml::nodedev::{self, attach_children};

/// A host with an igb card, its VF and an NVMe.
pub static DEVICES: LazyLock<Vec<HostDevice>> = LazyLock::new(|| {
    let documents = [
        include_str!("../../driver/tests/data/libvirt-11.3/nodedev/pf-igb.xml"),
        include_str!("../../driver/tests/data/libvirt-11.3/nodedev/pf-nvme-sriov-off.xml"),
        include_str!("../../driver/tests/data/libvirt-11.3/nodedev/vf-igb.xml"),
    ];
    attach_children(documents.iter().filter_map(|xml| nodedev::parse(xml).ok()).collect())
});
