//! The configuration section `[pci]`: which devices are assignable, and under which aliases.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use hotslot_driver::pci::PciAddress;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::value::MapAccessDeserializer;
use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value};

/// The configuration section `[pci]`.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Pci {
    /// Nova's `[pci] device_spec`: tables (`[[pci.device_spec]]`), or texts that are each a JSON object or a list of
    /// objects. When empty, no device is assignable.
    #[serde(alias = "passthrough_whitelist", alias = "pci_passthrough_whitelist")]
    #[schemars(with = "Vec<DeviceSpecEntry>")]
    pub device_spec: Vec<Entry>,
    /// Nova's `[pci] alias`: tables (`[[pci.alias]]`), or texts that are each a JSON object.
    #[serde(alias = "pci_alias")]
    #[schemars(with = "Vec<AliasEntry>")]
    pub alias: Vec<Entry>,
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
    /// The devices that it applies to: a table with the ids, address and devname of a `device_spec`, or a text that is a
    /// JSON object or a list of objects.
    #[serde(rename = "match")]
    #[schemars(with = "DeviceSpecEntry")]
    pub devices: Entry,
    /// The keys and values for these devices. All entries that match a device apply; the first entry with a key wins.
    pub values: BTreeMap<String, String>,
}

/// Makes the text of a date of TOML, which its parser passes on as a map with this key.
fn undated(value: &mut Value) {
    if let Some(date) = value.get_mut("$__toml_private_datetime") {
        *value = date.take();
    }
}

/// An entry in the syntax of nova.conf: the JSON text that the file has, or that of a table in the file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry(pub String);

impl<T: Into<String>> From<T> for Entry {
    fn from(text: T) -> Self {
        Self(text.into())
    }
}

impl<'de> Deserialize<'de> for Entry {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct EntryVisitor;

        impl<'de> Visitor<'de> for EntryVisitor {
            type Value = Entry;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a table, or a text with a JSON object")
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Entry, E> {
                Ok(text.into())
            }

            fn visit_map<A: MapAccess<'de>>(self, table: A) -> Result<Entry, A::Error> {
                let mut object = Map::deserialize(MapAccessDeserializer::new(table))?;
                object.values_mut().for_each(undated);
                Ok(Entry(Value::Object(object).to_string()))
            }
        }

        deserializer.deserialize_any(EntryVisitor)
    }
}

/// Defines the schema of an entry: a table with these keys and others, or a JSON text.
macro_rules! entry_schema {
    ($Name:ident, $description:literal, $others:literal, $example:literal, $alternatives:tt, $properties:tt) => {
        /// Stands for [`Entry`] in the schema.
        struct $Name;

        impl JsonSchema for $Name {
            fn schema_name() -> std::borrow::Cow<'static, str> {
                stringify!($Name).into()
            }

            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!({
                    "description": $description,
                    "anyOf": [
                        { "type": "string", "description": "The same as a JSON text.", "examples": [$example] },
                        {
                            "type": "object",
                            "properties": $properties,
                            "anyOf": $alternatives,
                            "additionalProperties": { "type": ["string", "boolean"], "description": $others },
                        },
                    ],
                })
            }
        }
    };
}

entry_schema!(
    DeviceSpecEntry,
    "Which devices are assignable, with tags for them.",
    "A tag: aliases can require it.",
    r#"{"vendor_id": "8086", "product_id": "10ca"}"#,
    [{}],
    {
        "vendor_id": { "type": "string", "description": "The vendor id in hexadecimal digits; * is any." },
        "product_id": { "type": "string", "description": "The product id in hexadecimal digits; * is any." },
        "address": {
            "type": ["string", "object"],
            "description": "An address such as 0000:3b:00.1, whose fields may be *; or a table of regular expressions \
                            for domain, bus, slot and function.",
        },
        "devname": { "type": "string", "description": "The network interface, instead of address." },
        "managed": { "type": ["string", "boolean"], "description": "false: you bind the device to vfio-pci." },
        "live_migratable": { "type": ["string", "boolean"], "description": "Whether it can be migrated live." },
        "one_time_use": { "type": ["string", "boolean"], "description": "Whether it is cleaned after each use." },
        "scrub": { "type": ["string", "boolean"], "description": "Whether it is scrubbed after each use." },
        "trusted": { "type": ["string", "boolean"], "description": "Whether a guest may change its filters." },
        "remote_managed": { "type": ["string", "boolean"], "description": "Such a device is never assigned." },
        "physical_network": { "type": "string", "description": "The network of a NIC." },
        "resource_class": { "type": "string", "description": "Its resource class in Placement." },
        "traits": { "type": "string", "description": "Its traits in Placement, separated by commas." },
        "hot_unplug": {
            "enum": ["yes", "quiesce", "refuse"],
            "description": "Whether it may be taken from a running guest.",
        },
    }
);

entry_schema!(
    AliasEntry,
    "A name by which devices are requested.",
    "A tag that the devices must have.",
    r#"{"name": "a1", "vendor_id": "8086", "product_id": "10ca"}"#,
    [{ "required": ["name", "vendor_id", "product_id"] }, { "required": ["name", "resource_class"] }],
    {
        "name": { "type": "string", "description": "The name, 1 to 256 characters without : and comma." },
        "vendor_id": { "type": "string", "description": "The vendor id in hexadecimal digits." },
        "product_id": { "type": "string", "description": "The product id in hexadecimal digits." },
        "device_type": {
            "enum": ["type-PCI", "type-PF", "type-VF"],
            "description": "The type of the devices; by default every type but a PF.",
        },
        "numa_policy": {
            "enum": ["required", "preferred", "legacy", "socket"],
            "description": "The NUMA policy; by default legacy.",
        },
        "live_migratable": { "type": ["string", "boolean"], "description": "Whether they can be migrated live." },
        "resource_class": { "type": "string", "description": "Their resource class in Placement." },
        "traits": { "type": "string", "description": "Their traits in Placement, separated by commas." },
        "capability_type": { "const": "pci", "description": "Nova's key of this name." },
    }
);

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
