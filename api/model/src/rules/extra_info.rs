//! `extra_info`: properties of a device that have no column of their own, as a map of strings to strings.
//!
//! They have three sources: the tags of its `device_spec`, `[[pci.extra_info]]` of the configuration (facts that no
//! hypervisor knows, such as the switch that a port is cabled to), and the host.

use std::collections::BTreeMap;

use hotslot_driver::device::HostDevice;
use serde::Deserialize;
use serde_json::Value;

use super::keys::is_own;
use super::parse::{SpecError, TAGS, json, object};
use super::spec::DeviceSpec;

/// An entry in its configured form.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    #[serde(rename = "match")]
    devices: Value,
    values: BTreeMap<String, String>,
}

/// One `[[pci.extra_info]]` entry.
#[derive(Debug, Clone)]
pub struct ExtraInfo {
    devices: Vec<DeviceSpec>,
    values: BTreeMap<String, String>,
}

impl ExtraInfo {
    /// Reads one entry, `{"match": {…}, "values": {…}}`.
    ///
    /// # Errors
    /// Returns every problem of the entry.
    pub fn parse(text: &str) -> Result<Self, Vec<SpecError>> {
        let entry = Self::entry(text).map_err(|error| vec![error])?;
        let mut errors = Vec::new();
        let mut devices = Vec::new();
        for device in DeviceSpec::parse_identity(&entry.devices) {
            match device {
                Ok(device) => devices.push(device),
                // `entry` is for the position of the table, so put the position in the list into the reason.
                Err(error) => errors.push(SpecError::key("match", error.to_string())),
            }
        }
        if entry.values.is_empty() {
            errors.push(SpecError::key("values", "is empty; write values = { switch = \"tor-3\" }"));
        }
        for key in entry.values.keys() {
            if is_own(key) {
                let reason = format!("`{key}` is a key that hotslot itself sets; choose another name");
                errors.push(SpecError::key("values", reason));
            } else if TAGS.contains(&key.as_str()) {
                errors.push(SpecError::key(
                    "values",
                    format!("`{key}` is a tag of device_spec; write it there"),
                ));
            }
        }
        if errors.is_empty() { Ok(Self { devices, values: entry.values }) } else { Err(errors) }
    }

    /// Whether the entry selects devices by their network interface.
    pub(super) fn names_interfaces(&self) -> bool {
        self.devices.iter().any(DeviceSpec::names_interface)
    }

    fn entry(text: &str) -> Result<Entry, SpecError> {
        let value = json(text)?;
        object(&value)?;
        crate::json::read(value).map_err(|reason| {
            let example = r#"{"match": {"address": "0000:3b:00.1"}, "values": {"switch": "tor-3"}}"#;
            SpecError::whole(format!("{reason}; write {example}"))
        })
    }

    /// Returns the values that the entry gives each of its devices.
    pub fn values(&self) -> &BTreeMap<String, String> {
        &self.values
    }

    /// Whether the entry names this device. `parent` is the PF of the device if the device is a VF.
    pub fn matches(&self, device: &HostDevice, parent: Option<&HostDevice>) -> bool {
        self.devices.iter().any(|spec| spec.matches(device, parent))
    }
}
