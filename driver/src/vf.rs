//! The settings of a VF of a NIC that its PF enforces, and for which libvirt has no word; and what a change of the number of
//! VFs needs.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The largest rate of a VF that can be requested, in Mbit/s.
pub const MAX_TX_RATE: u32 = 1_000_000;

/// The keys of a request that are for VFs of NICs, in the order of the documentation, as a message lists them.
pub const KEYS: &str =
    "mac_address, vlan, physical_network, trusted, spoof_check, link_state, min_tx_rate and max_tx_rate";

/// Settings of a VF. A setting that is `None` is not changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VfSettings {
    /// Whether the guest may change what the VF filters: its MAC address, multicast and promiscuous mode.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trust: Option<bool>,
    /// Whether frames with another source address than the VF's are dropped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spoof_check: Option<bool>,
    /// The link that the guest sees.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub link_state: Option<VfLink>,
    /// The bandwidth that is guaranteed to the VF, in Mbit/s; 0 is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_tx_rate: Option<u32>,
    /// The bandwidth that the VF cannot exceed, in Mbit/s; 0 is no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_tx_rate: Option<u32>,
}

/// The link of a VF, as its guest sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum VfLink {
    /// That of the PF's port.
    Auto,
    /// Always up, so that VFs of one PF reach each other while the port has no link.
    Enable,
    /// Always down.
    Disable,
}

impl VfLink {
    /// The word for it, as in `ip link`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Enable => "enable",
            Self::Disable => "disable",
        }
    }
}

impl FromStr for VfLink {
    type Err = String;

    fn from_str(word: &str) -> Result<Self, String> {
        let all = [Self::Auto, Self::Enable, Self::Disable];
        let found = all.into_iter().find(|link| link.as_str() == word);
        found.ok_or_else(|| format!("`{word}` is none of auto, enable, disable"))
    }
}

impl fmt::Display for VfLink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Checks a change of the number of VFs of a PF that has `now` VFs and supports at most `most`. Returns false when it has the
/// new number already.
///
/// # Errors
/// Why the number cannot be changed.
pub(crate) fn check_count(now: u32, from: u32, to: u32, most: u32) -> Result<bool, String> {
    if now == to {
        return Ok(false);
    }
    if now != from {
        return Err(format!("it has {now} VFs, and {from} were expected"));
    }
    if to > most {
        return Err(format!("it supports at most {most} VFs"));
    }
    Ok(true)
}

/// The settings in the words of a request.
impl fmt::Display for VfSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let settings = [
            ("trusted", self.trust.map(|trust| trust.to_string())),
            ("spoof_check", self.spoof_check.map(|check| check.to_string())),
            ("link_state", self.link_state.map(|link| link.to_string())),
            ("min_tx_rate", self.min_tx_rate.map(|rate| rate.to_string())),
            ("max_tx_rate", self.max_tx_rate.map(|rate| rate.to_string())),
        ];
        let set = settings.into_iter().filter_map(|(name, value)| Some(format!("{name} {}", value?)));
        f.write_str(&set.collect::<Vec<_>>().join(", "))
    }
}

impl VfSettings {
    /// Whether it sets nothing.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// The settings that differ from those that the VF has `now`.
    #[must_use]
    pub fn changes(&self, now: &Self) -> Self {
        let Self { trust, spoof_check, link_state, min_tx_rate, max_tx_rate } = *self;
        Self {
            trust: trust.filter(|_| trust != now.trust),
            spoof_check: spoof_check.filter(|_| spoof_check != now.spoof_check),
            link_state: link_state.filter(|_| link_state != now.link_state),
            min_tx_rate: min_tx_rate.filter(|_| min_tx_rate != now.min_tx_rate),
            max_tx_rate: max_tx_rate.filter(|_| max_tx_rate != now.max_tx_rate),
        }
    }

    /// The values that `now` has of the settings that this sets.
    #[must_use]
    pub fn replaced(&self, now: &Self) -> Self {
        Self {
            trust: self.trust.and(now.trust),
            spoof_check: self.spoof_check.and(now.spoof_check),
            link_state: self.link_state.and(now.link_state),
            min_tx_rate: self.min_tx_rate.and(now.min_tx_rate),
            max_tx_rate: self.max_tx_rate.and(now.max_tx_rate),
        }
    }

    /// These settings, and those of `other` where this sets none.
    #[must_use]
    pub fn or(&self, other: &Self) -> Self {
        Self {
            trust: self.trust.or(other.trust),
            spoof_check: self.spoof_check.or(other.spoof_check),
            link_state: self.link_state.or(other.link_state),
            min_tx_rate: self.min_tx_rate.or(other.min_tx_rate),
            max_tx_rate: self.max_tx_rate.or(other.max_tx_rate),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_differs_is_changed_and_only_that_is_put_back() {
        let now = VfSettings {
            trust: Some(false),
            spoof_check: Some(true),
            link_state: Some(VfLink::Auto),
            min_tx_rate: Some(0),
            max_tx_rate: Some(0),
        };
        let wanted = VfSettings {
            trust: Some(true),
            spoof_check: Some(true),
            max_tx_rate: Some(100),
            ..VfSettings::default()
        };
        let changes = wanted.changes(&now);
        assert_eq!(changes, VfSettings { spoof_check: None, ..wanted });
        let before = changes.replaced(&now);
        assert_eq!(before, VfSettings { trust: Some(false), max_tx_rate: Some(0), ..VfSettings::default() });
        assert_eq!(before.or(&now), now);
        assert!(now.changes(&now).is_empty());
        let text = serde_json::to_string(&VfSettings { link_state: Some(VfLink::Enable), ..before }).unwrap();
        assert_eq!(text, r#"{"trust":false,"link_state":"enable","max_tx_rate":0}"#);
        assert!(serde_json::from_str::<VfSettings>(r#"{"trus":true}"#).is_err());
    }
}
