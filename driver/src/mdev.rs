//! Mediated devices: parts of a function that its host driver makes, each for one guest (vGPU).
//!
//! ```text
//! types of a function ──create──▶ a device with a UUID ──hotplug::plug──▶ in a guest
//!                                     ▲ destroy │ ◀───hotplug::unplug───────┘
//! ```
//! They are there while the host driver is: with it, and when the host reboots, they are gone.

use uuid::Uuid;

use crate::hypervisor::{Error, ErrorKind, Hypervisor};
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

/// Makes a mediated device, of a type that its parent has and that a PCI guest can use.
///
/// # Errors
/// [`ErrorKind::NotAssignable`] when the parent has no such type, [`ErrorKind::InUse`] when no more can be made
/// of it: then nothing was made. Whatever else the hypervisor answers, it may have been made: [`Hypervisor::mdevs`]
/// tells, and after [`ErrorKind::Away`] and [`ErrorKind::TimedOut`] it may also come later.
pub async fn create(
    hypervisor: &dyn Hypervisor,
    parent: PciAddress,
    mdev_type: &str,
    uuid: Uuid,
) -> Result<Mdev, Error> {
    let refuse = |kind, message: String| {
        Err(Error::new(kind, format!("make a mediated device of type {mdev_type} on {parent}"), message))
    };
    let types = hypervisor.mdev_types(parent).await?;
    let ids = |types: &mut dyn Iterator<Item = &MdevType>| {
        let ids: Vec<&str> = types.map(|of| of.id.as_str()).collect();
        if ids.is_empty() { "none".to_owned() } else { ids.join(", ") }
    };
    let Some(found) = types.iter().find(|of| of.id == mdev_type) else {
        let text = if types.is_empty() {
            "it has no mediated devices; the driver that makes them has to be bound to it".to_owned()
        } else {
            format!("there is no such type; it has {}", ids(&mut types.iter()))
        };
        return refuse(ErrorKind::NotAssignable, text);
    };
    if found.device_api != VFIO_PCI {
        let text = format!("guests get it by {}, and only {VFIO_PCI} can be plugged", found.device_api);
        return refuse(ErrorKind::NotAssignable, text);
    }
    if found.available == 0 {
        let left = ids(&mut types.iter().filter(|of| of.available > 0));
        let text = format!("no more can be made of it; types of which more can be made: {left}");
        return refuse(ErrorKind::InUse, text);
    }
    hypervisor.create_mdev(parent, mdev_type, uuid).await
}
