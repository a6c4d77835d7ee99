//! The fields of a request that apply to a VF of a network card, by the keys of the API.

use crate::field::{Choice, Field, Input};

/// A setting of a VF.
pub(crate) struct Setting {
    pub(crate) field: Field,
    /// Whether it separates the networks of projects, so that it is for administrators and services.
    separates: bool,
}

const fn setting(key: &'static str, label: &'static str, input: Input, separates: bool) -> Setting {
    Setting { field: Field { key, label, input }, separates }
}

/// All settings, in the order of the form.
pub(crate) const SETTINGS: [Setting; 8] = [
    setting("mac_address", "MAC address", Input::Text("52:54:00:12:34:56"), true),
    setting("vlan", "VLAN", Input::Number(Some(1..=4094), "1 to 4094"), true),
    setting("physical_network", "Physical network", Input::Text(""), false),
    setting("trusted", "Trust", Input::Choice(TRUST), true),
    setting("spoof_check", "Spoof check", Input::Choice(SPOOF_CHECK), true),
    setting("link_state", "Link state", Input::Choice(LINK_STATE), true),
    setting("min_tx_rate", "Minimum rate, in Mbit/s", Input::Number(None, "0 is no guarantee"), true),
    setting("max_tx_rate", "Maximum rate, in Mbit/s", Input::Number(None, "0 is no limit"), true),
];

const TRUST: &[Choice] = &[
    ("", "any VF; its trust is not changed"),
    ("true", "trusted: the guest may change what the VF filters, if its device_spec says so too"),
    ("false", "not trusted: only a VF whose device_spec does not say trusted"),
];

const SPOOF_CHECK: &[Choice] = &[
    ("", "not changed"),
    ("true", "on: frames with another source address are dropped"),
    ("false", "off: the guest may send with any source address"),
];

const LINK_STATE: &[Choice] = &[
    ("", "not changed"),
    ("auto", "auto: the link of the port of the card"),
    ("enable", "enable: always up"),
    ("disable", "disable: always down"),
];

/// Returns the fields of all settings.
pub(crate) fn all() -> impl Iterator<Item = &'static Field> {
    SETTINGS.iter().map(|setting| &setting.field)
}

/// Returns the fields that a caller is offered.
pub(crate) fn offered(separates_networks: bool) -> impl Iterator<Item = &'static Field> {
    SETTINGS
        .iter()
        .filter(move |setting| separates_networks || !setting.separates)
        .map(|setting| &setting.field)
}
