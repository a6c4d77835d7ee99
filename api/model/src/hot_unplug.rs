//! The policy for unplugging devices from a running guest.

use std::str::FromStr as _;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer};

use crate::string_enum;

string_enum! {
    /// Whether hotslot requests a running guest to unplug a device.
    HotUnplug {
        /// Yes. A configured quiesce command runs before; the unplug is requested even when the command fails.
        Yes = "yes",
        /// Only after the quiesce command has succeeded.
        Quiesce = "quiesce",
        /// No.
        Refuse = "refuse",
    }
}

impl<'de> Deserialize<'de> for HotUnplug {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::from_str(&String::deserialize(deserializer)?).map_err(serde::de::Error::custom)
    }
}

impl JsonSchema for HotUnplug {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "HotUnplug".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "enum": Self::ALL,
            "description": "Whether a running guest is asked to release a device: yes, only after the quiesce command has \
                            succeeded (quiesce), or no (refuse).",
        })
    }
}

/// The tag with which a `device_spec` sets the policy of its devices.
pub const HOT_UNPLUG: &str = "hot_unplug";
