//! Reads the JSON of entries, and defines the error for entries that are refused.

use std::fmt;

use serde_json::{Map, Value};

use super::placement;
use crate::device::SCRUB;
use crate::hot_unplug::{HOT_UNPLUG, HotUnplug};

/// The reason why an entry is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct SpecError {
    /// The position in a list, from 1. `None` when the value is not a list.
    pub entry: Option<usize>,
    /// The key that is wrong. `None` when the entry as a whole is wrong.
    pub key: Option<String>,
    /// What is wrong, and what to write instead.
    pub reason: String,
}

impl fmt::Display for SpecError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(entry) = self.entry {
            write!(f, "entry {entry} of its list: ")?;
        }
        if let Some(key) = &self.key {
            write!(f, "{key}: ")?;
        }
        f.write_str(&self.reason)
    }
}

impl SpecError {
    pub(super) fn whole(reason: impl Into<String>) -> Self {
        Self { entry: None, key: None, reason: reason.into() }
    }

    pub(super) fn key(key: &str, reason: impl Into<String>) -> Self {
        Self { entry: None, key: Some(key.to_owned()), reason: reason.into() }
    }
}

/// The string that represents `"physical_network": null` in a map of strings.
pub const NULL: &str = "null";

/// The tags that have a meaning of their own. Any other tag is recorded, so that aliases can request it.
pub(super) const TAGS: &[&str] = &[
    "physical_network",
    "trusted",
    "remote_managed",
    "managed",
    "live_migratable",
    "one_time_use",
    SCRUB,
    HOT_UNPLUG,
    "resource_class",
    "traits",
];

/// Parses an entry as JSON.
pub(super) fn json(text: &str) -> Result<Value, SpecError> {
    let value = crate::json::parse(text.as_bytes())
        .map_err(|error| SpecError::whole(format!("not a JSON object: {}", crate::json::reason(&error))))?;
    visible(&value)?;
    Ok(value)
}

/// Checks that all strings of an entry, keys included, consist of visible characters.
fn visible(value: &Value) -> Result<(), SpecError> {
    match value {
        Value::String(text) => hotslot_driver::text::visible(text).map_err(SpecError::whole),
        Value::Array(items) => items.iter().try_for_each(visible),
        Value::Object(members) => members.iter().try_for_each(|(key, value)| {
            hotslot_driver::text::visible(key).map_err(SpecError::whole)?;
            visible(value)
        }),
        Value::Null | Value::Bool(_) | Value::Number(_) => Ok(()),
    }
}

/// Returns an entry as a JSON object, or an error for any other JSON value.
pub(super) fn object(value: &Value) -> Result<&Map<String, Value>, SpecError> {
    value.as_object().ok_or_else(|| SpecError::whole(format!("not a JSON object: `{value}`")))
}

pub(super) fn string<'a>(key: &str, value: &'a Value) -> Result<&'a str, SpecError> {
    value.as_str().ok_or_else(|| {
        let advice = if value.is_number() || value.is_boolean() { "; put it in quotes" } else { "" };
        SpecError::key(key, format!("`{value}` is not a string{advice}"))
    })
}

/// Returns a member that must be a string if it is there.
pub(super) fn text<'a>(entry: &'a Map<String, Value>, key: &str) -> Result<Option<&'a str>, SpecError> {
    entry.get(key).map(|value| string(key, value)).transpose()
}

/// Reads a boolean: a word that Nova accepts (`strutils.bool_from_string` in strict mode), or a JSON value of that
/// form.
pub(super) fn strict_bool(key: &str, value: &Value) -> Result<bool, SpecError> {
    let word = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    match word.trim().to_ascii_lowercase().as_str() {
        "1" | "t" | "true" | "on" | "y" | "yes" => Ok(true),
        "0" | "f" | "false" | "off" | "n" | "no" => Ok(false),
        _ => Err(SpecError::key(key, format!("`{word}` is neither \"true\" nor \"false\""))),
    }
}

/// Returns the string that is recorded for a tag's value. For `physical_network`, null is a value of its own: it means
/// a tunnelled network, whereas an absent key means no network.
pub(super) fn tag(key: &str, value: &Value) -> Result<String, SpecError> {
    match (key, value) {
        ("physical_network", Value::Null) => Ok(NULL.to_owned()),
        ("physical_network", Value::String(name)) if name.eq_ignore_ascii_case(NULL) => Err(SpecError::key(
            key,
            "a network of that name cannot be distinguished from null; for a tunnelled network write null \
             without quotes",
        )),
        ("managed" | "live_migratable" | "one_time_use" | SCRUB, value) => {
            Ok(strict_bool(key, value)?.to_string())
        }
        (HOT_UNPLUG, value) => {
            let policy = string(key, value)?.parse::<HotUnplug>();
            Ok(policy.map_err(|error| SpecError::key(key, error))?.to_string())
        }
        // Like Nova, treat any value that is not a word for true as false.
        ("remote_managed", value) => Ok(strict_bool(key, value).unwrap_or(false).to_string()),
        ("trusted", Value::Bool(trusted)) => Ok(trusted.to_string()),
        ("resource_class", value) => match string(key, value)? {
            blank if blank.trim().is_empty() => {
                Err(SpecError::key(key, "is blank; name a class such as CUSTOM_GPU, or leave the key out"))
            }
            name => Ok(placement::resource_class(name)),
        },
        ("traits", value) => {
            Ok(placement::traits(string(key, value)?).into_iter().collect::<Vec<_>>().join(","))
        }
        (_, value) => string(key, value).map(str::to_owned),
    }
}
