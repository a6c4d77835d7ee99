//! Creation of mediated devices.

use uuid::Uuid;

use crate::hypervisor::{Error, ErrorKind, Hypervisor};
use crate::mdev::{Mdev, MdevType, VFIO_PCI};
use crate::pci::PciAddress;

/// Creates a mediated device of a type that its parent offers and that a guest can have as a PCI device.
///
/// # Errors
/// [`ErrorKind::NotAssignable`] when the parent has no such type or the type is not for PCI guests, and
/// [`ErrorKind::InUse`] when no more devices of the type can be created; then nothing was created. After any other
/// error
/// the device may exist, so that the caller has to check [`Hypervisor::mdevs`]; after [`ErrorKind::Away`] and
/// [`ErrorKind::TimedOut`] it may also appear later.
pub async fn create_mdev(
    hypervisor: &dyn Hypervisor,
    parent: PciAddress,
    mdev_type: &str,
    uuid: Uuid,
) -> Result<Mdev, Error> {
    let refuse = |kind, message: String| {
        Err(Error::new(kind, format!("create a mediated device of type {mdev_type} on {parent}"), message))
    };
    let types = hypervisor.mdev_types(parent).await?;
    let ids = |types: &mut dyn Iterator<Item = &MdevType>| {
        let ids: Vec<&str> = types.map(|of| of.id.as_str()).collect();
        if ids.is_empty() { "none".to_owned() } else { ids.join(", ") }
    };
    let Some(found) = types.iter().find(|of| of.id == mdev_type) else {
        let text = if types.is_empty() {
            "it offers no mediated device types; bind it to the host driver that provides them".to_owned()
        } else {
            format!("it has no such type; choose one of {}", ids(&mut types.iter()))
        };
        return refuse(ErrorKind::NotAssignable, text);
    };
    if found.device_api != VFIO_PCI {
        let text = format!(
            "its device API is {}, and hotslot only attaches {VFIO_PCI}; choose another type",
            found.device_api
        );
        return refuse(ErrorKind::NotAssignable, text);
    }
    if found.available == 0 {
        let left = ids(&mut types.iter().filter(|of| of.available > 0));
        let text = format!("no instance of it is available; types with available instances: {left}");
        return refuse(ErrorKind::InUse, text);
    }
    hypervisor.create_mdev(parent, mdev_type, uuid).await
}
