//! The reset methods of a function.

use std::path::Path;

use super::root::Root;
use crate::pci::PciAddress;

/// Returns the methods with which the kernel can reset a function, in the order in which it tries them:
/// `device_specific`, `acpi`, `flr`, `af_flr`, `pm`, `bus`, `cxl_bus` (Linux, Documentation/ABI/testing/sysfs-bus-pci,
/// `reset_method`; Linux 5.15 or later). The list is empty when the function cannot be reset or its reset was disabled.
///
/// Returns `None` when the methods are unknown: the host is remote, its sysfs does not have the device, or its kernel
/// is older and only reports that the function can be reset.
pub fn reset_methods(sysroot: Option<&Path>, address: PciAddress) -> Option<Vec<String>> {
    let root = Root::new(sysroot?);
    let device = format!("sys/bus/pci/devices/{address}");
    match root.read(format!("{device}/reset_method")) {
        Ok(methods) => Some(methods.split_whitespace().map(str::to_owned).collect()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let none = root.at(&device).is_dir() && !root.at(format!("{device}/reset")).exists();
            none.then(Vec::new)
        }
        Err(_) => None,
    }
}
