//! What is said of a device beside the columns of its row: a map of strings to strings.
//!
//! It comes from three sides: the tags of its `device_spec`, `[[pci.extra_info]]` of the configuration (facts that
//! no hypervisor knows, such as the switch that a port is cabled to), and the host.

use std::collections::BTreeMap;

use hotslot_driver::device::HostDevice;
use serde::Deserialize;
use serde_json::Value;

use super::keys::is_own;
use super::parse::{SpecError, TAGS, json, object};
use super::spec::DeviceSpec;

/// An entry as it is written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    #[serde(rename = "match")]
    devices: Value,
    values: BTreeMap<String, String>,
}

/// One `[[pci.extra_info]]`.
#[derive(Debug, Clone)]
pub struct ExtraInfo {
    devices: Vec<DeviceSpec>,
    values: BTreeMap<String, String>,
}

impl ExtraInfo {
    /// Reads one entry, `{"match": {…}, "values": {…}}`.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub fn parse(text: &str) -> Result<Self, Vec<SpecError>> {
        let entry = Self::entry(text).map_err(|error| vec![error])?;
        let mut errors = Vec::new();
        let mut devices = Vec::new();
        for device in DeviceSpec::parse_identity(&entry.devices) {
            match device {
                Ok(device) => devices.push(device),
                // Said as part of the key, for the entry's place is that of the table.
                Err(error) => errors.push(SpecError::key("match", error.to_string())),
            }
        }
        if entry.values.is_empty() {
            errors.push(SpecError::key("values", "is empty; write values = { switch = \"tor-3\" }"));
        }
        for key in entry.values.keys() {
            if is_own(key) {
                let reason = format!("`{key}` is what hotslot itself says of a device; take another name");
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

    /// Whether it names its devices by their interface.
    pub(super) fn names_interfaces(&self) -> bool {
        self.devices.iter().any(DeviceSpec::names_interface)
    }

    fn entry(text: &str) -> Result<Entry, SpecError> {
        let value = json(text)?;
        object(&value)?;
        serde_json::from_value(value).map_err(|error| {
            let example = r#"{"match": {"address": "0000:3b:00.1"}, "values": {"switch": "tor-3"}}"#;
            SpecError::whole(format!("{error}; write {example}"))
        })
    }

    /// What is said of each of its devices.
    pub fn values(&self) -> &BTreeMap<String, String> {
        &self.values
    }

    /// Whether it says it of this device. `parent` is the PF of a VF.
    pub fn matches(&self, device: &HostDevice, parent: Option<&HostDevice>) -> bool {
        self.devices.iter().any(|spec| spec.matches(device, parent))
    }
}
