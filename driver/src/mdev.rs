//! Mediated devices: parts of a function that its host driver makes, each for one guest (vGPU).
//!
//! ```text
//! types of a function ──create──▶ a device with a UUID ──hotplug::plug──▶ in a guest
//!                                     ▲ destroy │ ◀───hotplug::unplug───────┘
//! ```
//! They are there while the host driver is: with it, and when the host reboots, they are gone.

use uuid::Uuid;

use crate::pci::PciAddress;

/// The interface to the guest of those that are PCI devices there; others are s390's.
pub const VFIO_PCI: &str = "vfio-pci";

/// A type of mediated devices that a function's driver can make.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MdevType {
    /// The driver's id of it (`nvidia-558`).
    pub id: String,
    /// The driver's name of it (`NVIDIA A40-4Q`); not every driver has one.
    pub name: Option<String>,
    /// The interface that a guest gets it by (`vfio-pci`, `vfio-ap`, `vfio-ccw`).
    pub device_api: String,
    /// How many more can be made now. One made of another type may take several away.
    pub available: u32,
}

/// A mediated device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mdev {
    /// Its UUID: what a guest's document names it by.
    pub uuid: Uuid,
    /// libvirt's node device name (`mdev_…`).
    pub name: String,
    /// The id of its type.
    pub mdev_type: String,
    /// The function whose driver made it; none when it is not a PCI function's.
    pub parent: Option<PciAddress>,
    /// The kernel's number of its IOMMU group, where libvirt says it.
    pub iommu_group: Option<u32>,
}
