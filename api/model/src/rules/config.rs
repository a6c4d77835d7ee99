//! The configuration section `[pci]`: which devices are assignable, and under which aliases.

use std::collections::BTreeMap;
use std::path::PathBuf;

use hotslot_driver::pci::PciAddress;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer};

/// The configuration section `[pci]`.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Pci {
    /// Nova's `[pci] device_spec`, each a JSON object or a list of objects. When empty, no device is assignable.
    #[serde(alias = "passthrough_whitelist", alias = "pci_passthrough_whitelist")]
    pub device_spec: Vec<String>,
    /// Nova's `[pci] alias`, each a JSON object.
    #[serde(alias = "pci_alias")]
    pub alias: Vec<String>,
    /// Nova's option of this name. It enables the rules of `device_spec` that depend on it, and nothing else.
    pub report_in_placement: bool,
    /// Nova's option of this name. It enables the rules of `alias` that depend on it, and nothing else.
    pub pci_in_placement: bool,
    /// Facts of devices that no hypervisor knows.
    pub extra_info: Vec<ExtraInfo>,
    /// Functions that are assignable although a guard reports that the host needs them.
    pub unguarded: Vec<Unguarded>,
    /// A directory whose files replace the embedded XML templates of the same name.
    pub templates: Option<PathBuf>,
}

/// One `[[pci.extra_info]]` table.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ExtraInfo {
    /// The devices that it applies to: a JSON object, or a list of objects, with the ids, address and devname of a
    /// `device_spec`.
    #[serde(rename = "match")]
    pub devices: String,
    /// The keys and values for these devices. All entries that match a device apply; the first entry with a key wins.
    pub values: BTreeMap<String, String>,
}

/// A function whose guards are overridden: `0000:3b:00.0` on every host, or `node1/0000:3b:00.0` on one host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unguarded {
    /// The name of the host, or `None` for every host.
    pub host: Option<String>,
    /// The address of the function.
    pub address: PciAddress,
}

impl<'de> Deserialize<'de> for Unguarded {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let (host, address) = match text.rsplit_once('/') {
            Some((host, address)) => (Some(host.to_owned()), address),
            None => (None, text.as_str()),
        };
        let address = address.parse().map_err(|error| {
            serde::de::Error::custom(format!(
                "{error}; write 0000:3b:00.0, or HOST/0000:3b:00.0 for one host"
            ))
        })?;
        Ok(Self { host, address })
    }
}

impl JsonSchema for Unguarded {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Unguarded".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "description": "The address of a function, or HOST/ADDRESS for one host.",
            "examples": ["0000:3b:00.0", "node1/0000:3b:00.0"],
        })
    }
}

impl Pci {
    /// Whether the guards of a function on this host are overridden.
    pub fn is_unguarded(&self, host: &str, address: PciAddress) -> bool {
        let names = |entry: &Unguarded| {
            entry.address == address && entry.host.as_deref().is_none_or(|name| name == host)
        };
        self.unguarded.iter().any(names)
    }
}
