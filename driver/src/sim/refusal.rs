//! The errors of libvirt 11.3, with libvirt's messages and the error kind of each.

use std::fmt;

use crate::hypervisor::{Error, ErrorKind};
use crate::pci::PciAddress;

/// An error of a call, without the name of the operation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Refusal {
    pub(super) kind: ErrorKind,
    pub(super) message: String,
}

impl Refusal {
    pub(super) fn new(kind: ErrorKind, message: impl fmt::Display) -> Self {
        Self { kind, message: message.to_string() }
    }

    /// Makes the error of the operation.
    pub(super) fn of(self, operation: impl Into<String>) -> Error {
        Error::new(self.kind, operation, self.message)
    }
}

/// Code 55, OPERATION_INVALID.
fn invalid(kind: ErrorKind, text: impl fmt::Display) -> Refusal {
    Refusal::new(kind, format_args!("Requested operation is not valid: {text}"))
}

/// Code 1, INTERNAL_ERROR.
fn internal(kind: ErrorKind, text: impl fmt::Display) -> Refusal {
    Refusal::new(kind, format_args!("internal error: {text}"))
}

/// Code 67, CONFIG_UNSUPPORTED.
fn unsupported(kind: ErrorKind, text: impl fmt::Display) -> Refusal {
    Refusal::new(kind, format_args!("unsupported configuration: {text}"))
}

/// Code 27, XML_ERROR, for a document.
pub(super) fn document(text: impl fmt::Display) -> Refusal {
    Refusal::new(ErrorKind::Document, format_args!("XML error: {text}"))
}

/// Code 27, XML_ERROR, for a guest address.
pub(super) fn guest_address(text: impl fmt::Display) -> Refusal {
    Refusal::new(ErrorKind::BadGuestAddress, format_args!("XML error: {text}"))
}

/// The error of the adapter to real hosts for a call that does not return within its time limit.
pub(super) fn late(limit: std::time::Duration) -> Refusal {
    Refusal::new(ErrorKind::TimedOut, format!("no answer within {limit:?}"))
}

pub(super) fn away() -> Refusal {
    internal(ErrorKind::Away, "client socket is closed")
}

pub(super) fn job_is_held() -> Refusal {
    let text = "Timed out during operation: cannot acquire state change lock (held by monitor=remoteDispatchDomainAttachDeviceFlags)";
    Refusal::new(ErrorKind::TimedOut, text)
}

/// Another process keeps the lock of the simulated host, and the call changed nothing.
pub(super) fn locked(locked: super::open_error::Locked) -> Refusal {
    Refusal::new(ErrorKind::TimedOut, locked)
}

pub(super) fn no_domain(uuid: uuid::Uuid) -> Refusal {
    let text = format_args!("Domain not found: no domain with matching uuid '{uuid}'");
    Refusal::new(ErrorKind::NoDomain, text)
}

pub(super) fn no_node_device(address: PciAddress) -> Refusal {
    let name = address.node_name();
    let text = format_args!("Node device not found: no node device with matching name '{name}'");
    Refusal::new(ErrorKind::NoDevice, text)
}

pub(super) fn no_such_function(address: PciAddress) -> Refusal {
    let text = format_args!(
        "Device {address} not found: could not access /sys/bus/pci/devices/{address}/config: No such file or directory"
    );
    Refusal::new(ErrorKind::NoDevice, text)
}

/// What QEMU says of a VF that its VFIO driver does not open, because it has no type of virtual GPU.
pub(super) fn no_vgpu_type(address: PciAddress, group: u32) -> Refusal {
    let text = format_args!(
        "unable to execute QEMU command 'device_add': vfio {address}: error getting device from group {group}: No such \
         device"
    );
    internal(ErrorKind::Refused, text)
}

pub(super) fn not_running() -> Refusal {
    invalid(ErrorKind::NotRunning, "domain is not running")
}

pub(super) fn already_running() -> Refusal {
    invalid(ErrorKind::Refused, "domain is already running")
}

pub(super) fn not_migratable(device: impl fmt::Display) -> Refusal {
    let text = format_args!("cannot migrate domain: {device}: VFIO migration is not supported in kernel");
    invalid(ErrorKind::Refused, text)
}

pub(super) fn rename_running() -> Refusal {
    invalid(ErrorKind::Refused, "cannot rename active domain")
}

pub(super) fn rename_saved() -> Refusal {
    invalid(ErrorKind::Refused, "domain with a managed saved state can't be renamed")
}

pub(super) fn nothing_saved() -> Refusal {
    invalid(ErrorKind::Refused, "the domain has no saved state")
}

pub(super) fn name_in_use(name: &str) -> Refusal {
    let text = format_args!("operation failed: domain '{name}' already exists");
    Refusal::new(ErrorKind::Refused, text)
}

pub(super) fn no_hotplug_of_controllers() -> Refusal {
    let text = "Operation not supported: 'pci' controller cannot be hot plugged.";
    Refusal::new(ErrorKind::Unsupported, text)
}

pub(super) fn controller_lacks(option: &str, index: Option<u8>, model: &str, name: Option<&str>) -> Refusal {
    let (index, name) = (index.map_or(-1, i16::from), name.unwrap_or("none"));
    let text = format_args!(
        "internal error: Required option '{option}' is not set for PCI controller with index '{index}', model '{model}' and modelName '{name}'"
    );
    Refusal::new(ErrorKind::Refused, text)
}

pub(super) fn controller_exists(index: u8) -> Refusal {
    invalid(ErrorKind::Refused, format_args!("controller index='{index}' already exists"))
}

pub(super) fn only_root_ports() -> Refusal {
    Refusal::new(ErrorKind::Unsupported, "the simulated host adds pcie-root-port controllers only")
}

pub(super) fn transient() -> Refusal {
    invalid(ErrorKind::Refused, "transient domains do not have any persistent config")
}

pub(super) fn in_use(address: PciAddress, domain: &str) -> Refusal {
    let text = format_args!("PCI device {address} is in use by driver QEMU, domain {domain}");
    invalid(ErrorKind::InUse, text)
}

pub(super) fn unmanaged(address: PciAddress) -> Refusal {
    let text = format_args!("Unmanaged PCI device {address} must be manually detached from the host");
    invalid(ErrorKind::NotAssignable, text)
}

pub(super) fn already_defined() -> Refusal {
    invalid(ErrorKind::AlreadyDefined, "device is already in the domain configuration")
}

pub(super) fn duplicate_alias(alias: &str) -> Refusal {
    unsupported(ErrorKind::AlreadyDefined, format_args!("non unique alias detected: {alias}"))
}

pub(super) fn no_passthrough() -> Refusal {
    unsupported(ErrorKind::NoPassthrough, "host doesn't support passthrough of host PCI devices")
}

pub(super) fn not_a_virtual_function() -> Refusal {
    let text = "Interface type hostdev is currently supported on SR-IOV Virtual Functions only";
    unsupported(ErrorKind::NotAssignable, text)
}

pub(super) fn not_an_endpoint() -> Refusal {
    internal(ErrorKind::NotAssignable, "Non-endpoint PCI devices cannot be assigned to guests")
}

pub(super) fn reset_in_use(address: PciAddress) -> Refusal {
    internal(ErrorKind::InUse, format_args!("Not resetting active device {address}"))
}

pub(super) fn reset_of_a_bridge(address: PciAddress) -> Refusal {
    let text =
        format_args!("Invalid attempt to reset PCI device {address}. Only PCI endpoint devices can be reset");
    internal(ErrorKind::NotAssignable, text)
}

pub(super) fn no_reset(address: PciAddress) -> Refusal {
    let text = format_args!("Unable to reset PCI device {address}: no FLR, PM reset or bus reset available");
    internal(ErrorKind::Refused, text)
}

pub(super) fn no_mdev(mdev: uuid::Uuid) -> Refusal {
    let text = format_args!("device not found: mediated device '{mdev}' not found");
    Refusal::new(ErrorKind::NoDevice, text)
}

pub(super) fn mdev_in_use(mdev: uuid::Uuid, domain: &str) -> Refusal {
    let path = format_args!("/sys/bus/mdev/devices/{mdev}");
    let text = format_args!("mediated device {path} is in use by driver QEMU, domain {domain}");
    invalid(ErrorKind::InUse, text)
}

pub(super) fn mdev_not_made(reason: impl fmt::Display) -> Refusal {
    internal(ErrorKind::Refused, format_args!("Unable to create mediated device: {reason}"))
}

pub(super) fn mdev_not_destroyed(name: &str) -> Refusal {
    internal(ErrorKind::InUse, format_args!("Unable to destroy '{name}': device in use"))
}

pub(super) fn not_viable(address: PciAddress, group: u32) -> Refusal {
    let text = format_args!(
        "unable to execute QEMU command 'device_add': vfio {address}: group {group} is not viable\n\
         Please ensure all devices within the iommu_group are bound to their vfio bus driver."
    );
    internal(ErrorKind::GroupNotViable, text)
}

pub(super) fn no_free_port() -> Refusal {
    internal(ErrorKind::NoFreePort, "No more available PCI slots")
}

pub(super) fn function_not_zero() -> Refusal {
    internal(ErrorKind::BadGuestAddress, "Only PCI device addresses with function=0 are supported")
}

pub(super) fn no_alias(alias: &str) -> Refusal {
    internal(ErrorKind::DeviceMissing, format_args!("no device found with alias {alias}"))
}

pub(super) fn no_hostdev(source: PciAddress) -> Refusal {
    let text = format_args!("host pci device {source} not found");
    Refusal::new(ErrorKind::DeviceMissing, format_args!("operation failed: {text}"))
}

pub(super) fn unplug_pending(alias: &str) -> Refusal {
    let text = format_args!(
        "unable to execute QEMU command 'device_del': Device {alias} is already in the process of unplug"
    );
    internal(ErrorKind::UnplugPending, text)
}

pub(super) fn agent_away() -> Refusal {
    let text = "Guest agent is not responding: QEMU guest agent is not connected";
    Refusal::new(ErrorKind::AgentAway, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Replaces the names and numbers in a message.
    fn pattern(text: &str) -> String {
        let text = text.replace("\\n", "\n");
        let mut words: Vec<String> = text.split_whitespace().map(str::to_owned).collect();
        for word in &mut words {
            if word.contains(|c: char| c.is_ascii_digit()) || word.starts_with("ua-") || word.contains("g1") {
                *word = "…".into();
            }
        }
        words.join(" ")
    }

    /// The adapter to libvirt maps the messages of the simulated host to the same kinds.
    #[test]
    fn messages_and_kinds_are_those_of_libvirt() {
        let table = include_str!("../../tests/data/libvirt-errors.tsv");
        let known: Vec<(String, String)> = table
            .lines()
            .filter(|line| !line.starts_with('#'))
            .map(|line| {
                let [_, _, kind, text] = line.splitn(4, '\t').collect::<Vec<_>>()[..] else {
                    panic!("{line}")
                };
                (kind.to_owned(), pattern(text.trim_end_matches(" (g1)")))
            })
            .collect();
        let at: PciAddress = "0000:0a:00.0".parse().unwrap();
        let refusals = [
            away(),
            job_is_held(),
            no_domain(uuid::Uuid::nil()),
            no_node_device(at),
            no_such_function(at),
            not_running(),
            in_use(at, "g1"),
            unmanaged(at),
            already_defined(),
            duplicate_alias("ua-1"),
            no_passthrough(),
            not_an_endpoint(),
            reset_in_use(at),
            reset_of_a_bridge(at),
            no_reset(at),
            no_mdev(uuid::Uuid::nil()),
            mdev_in_use(uuid::Uuid::nil(), "g1"),
            mdev_not_destroyed("mdev_0"),
            not_viable(at, 18),
            no_free_port(),
            function_not_zero(),
            no_alias("ua-1"),
            unplug_pending("ua-1"),
            agent_away(),
            document("Missing <source> element in hostdev device"),
        ];
        for refusal in refusals {
            let (kind, text) = (format!("{:?}", refusal.kind), pattern(&refusal.message));
            assert!(known.contains(&(kind, text.clone())), "{:?}: {text}", refusal.kind);
        }
    }
}
