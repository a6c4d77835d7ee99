//! The policy for unplugging devices from a running guest.

use std::str::FromStr as _;

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

/// The tag with which a `device_spec` sets the policy of its devices.
pub const HOT_UNPLUG: &str = "hot_unplug";
