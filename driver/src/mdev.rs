//! Mediated devices: parts of a function that its host driver provides, each for one guest (vGPU).
//!
//! ```text
//! types of a function ──create──▶ a device with a UUID ──hotplug::plug──▶ in a guest
//!                                     ▲ destroy │ ◀───hotplug::unplug───────┘
//! ```
//! They exist while the host driver is bound, and are lost when the host reboots.

use uuid::Uuid;

use crate::pci::PciAddress;

/// The device API of types that are PCI devices in the guest. The other device APIs are for s390.
pub const VFIO_PCI: &str = "vfio-pci";

/// A type of mediated devices that a function's driver provides.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MdevType {
    /// The driver's id of the type (`nvidia-558`).
    pub id: String,
    /// The driver's name of the type (`NVIDIA A40-4Q`); some drivers have none.
    pub name: Option<String>,
    /// The device API (`vfio-pci`, `vfio-ap`, `vfio-ccw`).
    pub device_api: String,
    /// How many more devices of this type can be created now. Creating a device of another type may reduce it too.
    pub available: u32,
}

/// A mediated device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mdev {
    /// The UUID, by which a guest's document refers to it.
    pub uuid: Uuid,
    /// libvirt's node device name (`mdev_…`).
    pub name: String,
    /// The id of its type.
    pub mdev_type: String,
    /// The function that provides it; `None` when the parent is not a PCI function.
    pub parent: Option<PciAddress>,
    /// The number of its IOMMU group, if libvirt reports it.
    pub iommu_group: Option<u32>,
}
