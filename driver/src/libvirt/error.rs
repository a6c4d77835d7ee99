//! Maps libvirt's errors to [`ErrorKind`].
//!
//! The kind follows from libvirt's error code (`virErrorNumber`) and error domain (`virErrorDomain`). The message
//! decides only where libvirt uses one code for many errors, mainly 1 (internal error), 9 (operation failed), 27 (XML
//! error), 38 (system error) and 55 (operation invalid). It is compared with the English messages of libvirt and QEMU.
//! A libvirtd that runs in another locale translates its own messages; most of its errors are then
//! [`ErrorKind::Refused`].
//!
//! `tests/data/libvirt-errors.tsv` tests the mapping.

use virt::sys;

use crate::hypervisor::ErrorKind;
use crate::xml::XmlError;

/// The failure of a libvirt call, without the name of the operation.
#[derive(Debug)]
pub(super) struct Fault {
    pub(super) kind: ErrorKind,
    pub(super) message: String,
}

impl From<virt::error::Error> for Fault {
    fn from(error: virt::error::Error) -> Self {
        let kind = kind(error.code().to_raw(), error.domain().to_raw(), error.message());
        Self { kind, message: error.message().to_owned() }
    }
}

impl From<XmlError> for Fault {
    fn from(error: XmlError) -> Self {
        Self { kind: ErrorKind::Document, message: error.to_string() }
    }
}

/// Returns the kind of a libvirt error with this code, error domain and message.
///
/// Codes and domains: <https://libvirt.org/html/libvirt-virterror.html>.
fn kind(code: u32, domain: u32, text: &str) -> ErrorKind {
    let says = |part: &str| text.contains(part);
    let any = |parts: &[&str]| parts.iter().any(|part| text.contains(part));
    match code {
        sys::VIR_ERR_INVALID_CONN | sys::VIR_ERR_NO_CONNECT => ErrorKind::Away,
        sys::VIR_ERR_INTERNAL_ERROR | sys::VIR_ERR_SYSTEM_ERROR if domain == sys::VIR_FROM_RPC => {
            ErrorKind::Away
        }
        sys::VIR_ERR_RPC if says("unknown procedure") => ErrorKind::Unsupported,
        sys::VIR_ERR_NO_SUPPORT | sys::VIR_ERR_OPERATION_UNSUPPORTED => ErrorKind::Unsupported,
        sys::VIR_ERR_OPERATION_TIMEOUT => ErrorKind::TimedOut,

        sys::VIR_ERR_NO_DOMAIN => ErrorKind::NoDomain,
        sys::VIR_ERR_NO_NODE_DEVICE => ErrorKind::NoDevice,
        // This code is for a device that the host does not have and for one that a domain does not have. The message
        // names the mediated device in the first case, and the alias in the second.
        sys::VIR_ERR_DEVICE_MISSING if says("mediated device") => ErrorKind::NoDevice,
        sys::VIR_ERR_DEVICE_MISSING => ErrorKind::DeviceMissing,
        sys::VIR_ERR_AGENT_UNRESPONSIVE
        | sys::VIR_ERR_AGENT_UNSYNCED
        | sys::VIR_ERR_AGENT_COMMAND_TIMEOUT => ErrorKind::AgentAway,

        sys::VIR_ERR_CONFIG_UNSUPPORTED | sys::VIR_ERR_ARGUMENT_UNSUPPORTED => {
            if any(&["passthrough", "device assignment is"]) {
                ErrorKind::NoPassthrough
            } else if says("non unique alias") {
                ErrorKind::AlreadyDefined
            } else if says("guest agent is not configured") {
                ErrorKind::AgentAway
            } else {
                ErrorKind::Refused
            }
        }
        // libvirt's `virDomainPCIAddress…` functions check guest addresses; each of their messages contains "PCI".
        sys::VIR_ERR_XML_ERROR if domain == sys::VIR_FROM_DOMAIN && says("PCI") => ErrorKind::BadGuestAddress,
        sys::VIR_ERR_XML_ERROR | sys::VIR_ERR_XML_DETAIL | sys::VIR_ERR_XML_INVALID_SCHEMA => {
            ErrorKind::Document
        }
        sys::VIR_ERR_SYSTEM_ERROR if says("not found: could not access") => ErrorKind::NoDevice,
        sys::VIR_ERR_OPERATION_FAILED if says("not found") => ErrorKind::DeviceMissing,
        sys::VIR_ERR_OPERATION_FAILED if says("rejected by the guest") => ErrorKind::UnplugRefused,

        sys::VIR_ERR_OPERATION_INVALID => {
            if says("is in use") {
                ErrorKind::InUse
            } else if says("already in the domain configuration") {
                ErrorKind::AlreadyDefined
            } else if says("is not running") {
                ErrorKind::NotRunning
            } else if any(&["must be manually detached", "is not assignable"]) {
                ErrorKind::NotAssignable
            } else {
                ErrorKind::Refused
            }
        }
        // libvirt's own internal errors, and the errors of QEMU's monitor.
        sys::VIR_ERR_INTERNAL_ERROR => {
            if any(&["already in the process of unplug", "power indicator blinking"]) {
                ErrorKind::UnplugPending
            } else if says("no device found with alias") {
                ErrorKind::DeviceMissing
            } else if says("No more available PCI slots") {
                ErrorKind::NoFreePort
            } else if says("is not viable") || says("/dev/vfio/") && says("busy") {
                ErrorKind::GroupNotViable
            } else if any(&["resetting active device", "taching active device", ": device in use"]) {
                ErrorKind::InUse
            } else if any(&["Non-endpoint PCI devices", "PF is not online", "Only PCI endpoint devices"]) {
                ErrorKind::NotAssignable
            } else if any(&["with function=0 are supported", "does not support hotplugging"]) {
                ErrorKind::BadGuestAddress
            } else {
                ErrorKind::Refused
            }
        }
        _ => ErrorKind::Refused,
    }
}

#[cfg(test)]
mod tests {
    use super::kind;

    #[test]
    fn every_row_of_the_table() {
        let table = include_str!("../../tests/data/libvirt-errors.tsv");
        let rows = table.lines().filter(|line| !line.starts_with('#'));
        let mut wrong = Vec::new();
        for row in rows {
            let [code, domain, expected, text] = row.splitn(4, '\t').collect::<Vec<_>>()[..] else {
                panic!("not four columns: {row}");
            };
            let got = format!("{:?}", kind(code.parse().unwrap(), domain.parse().unwrap(), text));
            if got != expected {
                wrong.push(format!("{got} instead of {row}"));
            }
        }
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    }
}
