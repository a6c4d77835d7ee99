//! Whether a running guest is asked to let a device go.

use std::str::FromStr as _;

use serde::{Deserialize, Deserializer};

use crate::string_enum;

string_enum! {
    /// Whether a running guest is asked to let a device go.
    HotUnplug {
        /// It is asked; a command that is to quiesce the device is run before, and may fail.
        Yes = "yes",
        /// It is asked once the command has ended well.
        Quiesce = "quiesce",
        /// It is not asked.
        Refuse = "refuse",
    }
}

impl<'de> Deserialize<'de> for HotUnplug {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::from_str(&String::deserialize(deserializer)?).map_err(serde::de::Error::custom)
    }
}

/// The tag of devices with a policy of their own.
pub const HOT_UNPLUG: &str = "hot_unplug";
