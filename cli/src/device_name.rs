//! The names that people use for a device.

use std::str::FromStr;

use clap::Args;
use clap_complete::ArgValueCompleter;
use hotslot_driver::pci::PciAddress;
use serde_json::Value;
use uuid::Uuid;

use crate::complete;
use crate::exit::{Exit, Failure};
use crate::value::at;

/// The name of a device: its PCI address, or the id or UUID of its record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum DeviceName {
    Address(PciAddress),
    /// The id of its record in `os-pci`.
    Id(u64),
    /// The UUID of its record in `os-pci`.
    Uuid(Uuid),
    /// The beginning of that UUID, in lower case.
    Beginning(String),
}

/// The minimum length of the beginning of an id that is taken for the id, as in git.
pub(crate) const BEGINNING: usize = 4;

/// From this length on, a number is taken for the beginning of a UUID: short UUIDs have this length.
const SHORT: usize = 8;

impl DeviceName {
    /// Parses a name where nothing but a device can be meant, so that the beginning of a UUID is one too.
    ///
    /// # Errors
    /// What a name of a device looks like.
    pub(crate) fn or_beginning(text: &str) -> Result<Self, String> {
        let is_digit = |letter: char| letter.is_ascii_hexdigit() || letter == '-';
        let is_beginning = text.len() >= BEGINNING && text.chars().all(is_digit);
        match text.parse() {
            Ok(Self::Id(_)) if text.len() >= SHORT => Ok(Self::Beginning(text.to_owned())),
            Err(_) if is_beginning => Ok(Self::Beginning(text.to_ascii_lowercase())),
            parsed => parsed,
        }
    }
}

impl FromStr for DeviceName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if let Ok(id) = text.parse() {
            return Ok(Self::Id(id));
        }
        if let Ok(uuid) = Uuid::try_parse(text) {
            return Ok(Self::Uuid(uuid));
        }
        let address = if text.starts_with("pci_") { PciAddress::from_node_name(text) } else { text.parse() };
        address.map(Self::Address).map_err(|error| error.to_string())
    }
}

impl std::fmt::Display for DeviceName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Address(address) => address.fmt(f),
            Self::Id(id) => id.fmt(f),
            Self::Uuid(uuid) => uuid.fmt(f),
            Self::Beginning(text) => f.write_str(text),
        }
    }
}

// The arguments that name one device. A doc comment here would replace the help text of the command.
#[derive(Debug, Args)]
pub(crate) struct OneDevice {
    /// The device: its address (0000:3b:00.1 or 3b:00.1), its node device name (pci_0000_3b_00_1), or the os-pci id or
    /// UUID of its record, or an unambiguous beginning of the UUID.
    #[arg(value_parser = DeviceName::or_beginning, add = ArgValueCompleter::new(complete::devices))]
    pub(crate) device: DeviceName,
    /// The host of the device. It is required when several hosts have a device at this address.
    #[arg(long, add = ArgValueCompleter::new(complete::hosts))]
    pub(crate) host: Option<String>,
}

/// The failure when several hosts have a device of this name.
pub(crate) fn ambiguous(name: &DeviceName, found: &[Value]) -> Failure {
    let hosts: Vec<_> = found.iter().map(|device| at(device, "/host")).collect();
    let message = format!("several hosts have a device {name}; choose one with --host: {}", hosts.join(", "));
    Failure::new(Exit::Usage, message)
}
