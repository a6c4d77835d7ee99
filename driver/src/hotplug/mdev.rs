//! Making a mediated device.

use uuid::Uuid;

use crate::hypervisor::{Error, ErrorKind, Hypervisor};
use crate::mdev::{Mdev, MdevType, VFIO_PCI};
use crate::pci::PciAddress;

/// Makes a mediated device, of a type that its parent has and that a PCI guest can use.
///
/// # Errors
/// [`ErrorKind::NotAssignable`] when the parent has no such type, [`ErrorKind::InUse`] when no more can be made
/// of it: then nothing was made. Whatever else the hypervisor answers, it may have been made: [`Hypervisor::mdevs`]
/// tells, and after [`ErrorKind::Away`] and [`ErrorKind::TimedOut`] it may also come later.
pub async fn create_mdev(
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
