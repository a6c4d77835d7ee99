//! The mediated devices of a host, as libvirt lists them.

use tracing::debug;
use virt::connect::Connect;
use virt::sys;

use super::error::Fault;
use crate::hypervisor::ErrorKind;
use crate::mdev::Mdev;
use crate::xml::nodedev;

/// Reads every mediated device. A device that vanished before it was read is left out.
pub(super) fn mdevs(connect: &Connect) -> Result<Vec<Mdev>, Fault> {
    let mut mdevs = Vec::new();
    for node in connect.list_all_node_devices(sys::VIR_CONNECT_LIST_NODE_DEVICES_CAP_MDEV)? {
        let document = match node.xml_desc(0).map_err(Fault::from) {
            Err(fault) if fault.kind == ErrorKind::NoDevice => continue,
            document => document?,
        };
        // A document that cannot be read describes a device of another architecture.
        match nodedev::parse(&document) {
            Ok(nodedev::NodeDevice::Mdev(mdev)) => mdevs.push(mdev),
            other => debug!("left out a mediated device: {other:?}"),
        }
    }
    Ok(mdevs)
}

/// Returns a mediated device that was created, as it was read back. When it could not be read, the result is `made`:
/// the device was created all the same.
pub(super) fn as_read(made: Mdev, read: Result<nodedev::NodeDevice, Fault>) -> Result<Mdev, Fault> {
    match read {
        Ok(nodedev::NodeDevice::Mdev(mdev)) if mdev.uuid == made.uuid => Ok(mdev),
        Ok(other) => {
            let message = format!("libvirt created a different device: {other:?}");
            Err(Fault { kind: ErrorKind::Refused, message })
        }
        Err(fault) => {
            debug!("created mediated device {}, and could not read it back: {}", made.uuid, fault.message);
            Ok(made)
        }
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::pci::PciAddress;

    #[test]
    fn a_created_mediated_device_that_cannot_be_read_back_is_reported_as_created() {
        let mdev = |uuid: u128, iommu_group| Mdev {
            uuid: Uuid::from_u128(uuid),
            name: format!("mdev_{uuid}"),
            mdev_type: "nvidia-232".to_owned(),
            parent: PciAddress::new(0, 0x41, 0, 0).ok(),
            iommu_group,
        };
        let read = |read| as_read(mdev(1, None), read).map_err(|fault| fault.kind);
        assert_eq!(read(Ok(nodedev::NodeDevice::Mdev(mdev(1, Some(60))))), Ok(mdev(1, Some(60))));
        for kind in [ErrorKind::Away, ErrorKind::NoDevice, ErrorKind::Document] {
            assert_eq!(read(Err(Fault { kind, message: String::new() })), Ok(mdev(1, None)));
        }
        assert_eq!(read(Ok(nodedev::NodeDevice::Mdev(mdev(2, None)))), Err(ErrorKind::Refused));
    }
}
