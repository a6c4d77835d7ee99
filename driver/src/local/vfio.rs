//! Whether the kernel shows a VFIO device for a function.

use std::path::Path;

use super::root::Root;
use crate::pci::PciAddress;

/// Returns whether a function is bound to a VFIO driver, whatever the driver's name: it then has the directory
/// `vfio-dev` in sysfs (Linux, Documentation/ABI/testing/sysfs-devices-vfio-dev; Linux 6.1 or later).
///
/// Returns `None` when that is unknown: the host is remote, its sysfs does not have the function, or its kernel has not
/// loaded VFIO or is older.
pub fn vfio_dev(sysroot: Option<&Path>, address: PciAddress) -> Option<bool> {
    let root = Root::new(sysroot?);
    let device = root.at(format!("sys/bus/pci/devices/{address}"));
    if device.join("vfio-dev").is_dir() {
        return Some(true);
    }
    (device.is_dir() && root.at("sys/class/vfio-dev").is_dir()).then_some(false)
}
