//! The names of devices in Placement: resource classes and traits, made as Nova makes them.
//!
//! hotslot does not use Placement. It needs the names for aliases that select devices by resource class and traits,
//! which Nova allows with `pci_in_placement`.

use std::collections::BTreeSet;

use crate::device::DeviceFacts;

/// The standard resource classes (os-resource-classes 1.1). All others begin with `CUSTOM_`.
const STANDARD_CLASSES: &[&str] = &[
    "VCPU",
    "MEMORY_MB",
    "DISK_GB",
    "PCI_DEVICE",
    "SRIOV_NET_VF",
    "NUMA_SOCKET",
    "NUMA_CORE",
    "NUMA_THREAD",
    "NUMA_MEMORY_MB",
    "IPV4_ADDRESS",
    "VGPU",
    "VGPU_DISPLAY_HEAD",
    "NET_BW_EGR_KILOBIT_PER_SEC",
    "NET_BW_IGR_KILOBIT_PER_SEC",
    "PCPU",
    "MEM_ENCRYPTION_CONTEXT",
    "FPGA",
    "PGPU",
    "NET_PACKET_RATE_KILOPACKET_PER_SEC",
    "NET_PACKET_RATE_EGR_KILOPACKET_PER_SEC",
    "NET_PACKET_RATE_IGR_KILOPACKET_PER_SEC",
];

/// The prefixes of the standard traits (os-traits), in upper case. All others begin with `CUSTOM_`.
const STANDARD_TRAITS: &[&str] = &["COMPUTE_", "HW_", "MISC_", "OWNER_", "STORAGE_"];

/// Makes a custom name: `nvidia-232` → `CUSTOM_NVIDIA_232`.
pub fn custom(name: &str) -> String {
    normalised(name)
}

/// Makes the name of a resource class: `gpu a100` → `CUSTOM_GPU_A100`.
pub(super) fn resource_class(name: &str) -> String {
    let upper = name.trim().to_uppercase();
    if STANDARD_CLASSES.contains(&upper.as_str()) { upper } else { normalised(name) }
}

/// Makes the names of traits from a list: `fast, HW_GPU_API_VULKAN` → `CUSTOM_FAST`, `HW_GPU_API_VULKAN`.
pub(super) fn traits(list: &str) -> BTreeSet<String> {
    let standard = |name: &str| STANDARD_TRAITS.iter().any(|space| name.starts_with(space));
    let names = list.split(',').map(str::trim).filter(|name| !name.is_empty());
    names.map(|name| if standard(name) { name.to_owned() } else { normalised(name) }).collect()
}

/// Normalises a name as Nova, os-traits and os-resource-classes do, except that spaces around the name are removed. A
/// name that begins with `CUSTOM_` in upper or lower case is only converted to upper case. In any other name each run
/// of characters that are neither ASCII letters nor digits becomes one `_`, and the name gets the prefix `CUSTOM_`.
fn normalised(name: &str) -> String {
    let name = name.trim().to_uppercase();
    if name.starts_with("CUSTOM_") {
        return name;
    }
    let mut custom = "CUSTOM_".to_owned();
    let mut in_run = false;
    for c in name.chars() {
        if c.is_ascii_alphanumeric() {
            custom.push(c);
        } else if !in_run {
            custom.push('_');
        }
        in_run = !c.is_ascii_alphanumeric();
    }
    custom
}

/// Returns the resource class of a device: the one of its `device_spec`, or else one made from its ids.
pub fn class_of(device: &DeviceFacts) -> String {
    match device.extra_info.get("resource_class") {
        Some(class) => class.to_owned(),
        None => format!("CUSTOM_PCI_{}_{}", device.vendor_id, device.product_id).to_ascii_uppercase(),
    }
}

/// Returns the traits from the `device_spec` of a device.
pub fn declared_traits(device: &DeviceFacts) -> BTreeSet<String> {
    device.extra_info.get("traits").map(traits).unwrap_or_default()
}

/// Returns all traits of a device: those of its `device_spec`, and those that Nova adds.
pub(super) fn traits_of(device: &DeviceFacts) -> BTreeSet<String> {
    let mut names = declared_traits(device);
    let is = |key: &str| device.extra_info.get(key).is_some_and(|value| value == "true");
    let given = [
        ("COMPUTE_MANAGED_PCI_DEVICE", true),
        ("OWNER_NOVA", true),
        ("HW_PCI_ONE_TIME_USE", is("one_time_use")),
        ("HW_PCI_LIVE_MIGRATABLE", is("live_migratable")),
    ];
    names.extend(given.into_iter().filter(|(_, holds)| *holds).map(|(name, _)| name.to_owned()));
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_normalised_as_in_nova() {
        for (given, class) in [
            ("gpu", "CUSTOM_GPU"),
            ("CUSTOM_GPU", "CUSTOM_GPU"),
            ("custom_gpu", "CUSTOM_GPU"),
            (" gpu a100-80g ", "CUSTOM_GPU_A100_80G"),
            ("a###b", "CUSTOM_A_B"),
            ("a__b", "CUSTOM_A_B"),
            ("_gpu", "CUSTOM__GPU"),
            ("custom-gpu", "CUSTOM_CUSTOM_GPU"),
            ("customgpu", "CUSTOM_CUSTOMGPU"),
            ("CUSTOM_a__b", "CUSTOM_A__B"),
            ("pgpu", "PGPU"),
            ("grün", "CUSTOM_GR_N"),
            ("straße", "CUSTOM_STRASSE"),
        ] {
            assert_eq!(resource_class(given), class);
        }
        let names: Vec<_> = traits("b,a-1,,HW_GPU_API_VULKAN,CUSTOM_A_1").into_iter().collect();
        assert_eq!(names, ["CUSTOM_A_1", "CUSTOM_B", "HW_GPU_API_VULKAN"]);
        let names: Vec<_> = traits("a###b, b,custom-b,hw_gpu").into_iter().collect();
        assert_eq!(names, ["CUSTOM_A_B", "CUSTOM_B", "CUSTOM_CUSTOM_B", "CUSTOM_HW_GPU"]);
    }
}
