//! Device profiles and their groups, and attributes of deployables.

use std::sync::LazyLock;

use regex::Regex;
use serde_json::{Map, Value};

use crate::id::{AttributeId, DeviceId, DeviceProfileId};
use crate::time::Millis;

/// The largest number of devices in one device profile.
pub const MAX_UNITS: u32 = 256;

/// The resource classes that Cyborg accepts, apart from `CUSTOM_…`.
const CLASSES: &[&str] = &["FPGA", "GPU", "VGPU", "PGPU"];

/// A group of a device profile, which describes the devices that it requests. It is stored as the client sent it,
/// without blanks around the names.
#[derive(Debug, Clone, PartialEq)]
pub struct Group(Map<String, Value>);

/// Whether a name is a custom resource class or trait.
fn is_custom(name: &str) -> bool {
    #[expect(clippy::unwrap_used, reason = "the pattern is constant")]
    static CUSTOM: LazyLock<Regex> = LazyLock::new(|| Regex::new("^CUSTOM_[A-Z0-9_]+$").unwrap());
    name.len() <= 255 && CUSTOM.is_match(name)
}

fn amount(value: &Value) -> Option<u32> {
    let number = match value.as_str() {
        Some(text) => text.trim().parse().ok()?,
        None => u32::try_from(value.as_u64()?).ok()?,
    };
    (number <= MAX_UNITS).then_some(number)
}

impl Group {
    /// Reads the value of `groups`: a list of at least one group.
    ///
    /// # Errors
    /// Returns a message that says what is wrong and what to write instead.
    pub fn read_all(value: &Value) -> Result<Vec<Self>, String> {
        let list = value.as_array().filter(|list| !list.is_empty());
        let list = list.ok_or(r#"groups is not a list of groups; write [{"resources:FPGA": "1"}]"#)?;
        let groups = list.iter().map(Self::read).collect::<Result<Vec<_>, _>>()?;
        let units = groups.iter().flat_map(Self::resources).map(|(_, amount)| u64::from(amount)).sum::<u64>();
        if units > u64::from(MAX_UNITS) {
            return Err(format!(
                "the groups request {units} devices; a profile can request at most {MAX_UNITS}"
            ));
        }
        Ok(groups)
    }

    fn read(value: &Value) -> Result<Self, String> {
        let put = value.as_object().ok_or("a group is not an object")?;
        let mut group = Map::new();
        for (key, value) in put {
            let shown: String = format!("{key}: {value}").chars().take(80).collect();
            let (kind, name) = key.split_once(':').unwrap_or(("", key));
            let name = name.trim();
            match kind {
                "resources" if !CLASSES.contains(&name) && !is_custom(name) => {
                    let classes = CLASSES.join(", ");
                    return Err(format!("`{shown}` names no resource class; write {classes} or CUSTOM_…"));
                }
                "resources" if amount(value).is_none() => {
                    return Err(format!("`{shown}` is not a number of devices from 0 to {MAX_UNITS}"));
                }
                "trait" if !is_custom(name) => {
                    return Err(format!(
                        "`{shown}` names no trait; write CUSTOM_…, in capitals, digits and _"
                    ));
                }
                "trait" if !matches!(value.as_str(), Some("required" | "forbidden")) => {
                    return Err(format!("`{shown}` is neither required nor forbidden"));
                }
                "accel" if name.is_empty() || !(value.is_string() || value.is_number()) => {
                    return Err(format!(
                        "`{shown}` has no name, or a value that is neither a string nor a number"
                    ));
                }
                "resources" | "trait" | "accel" => {
                    if group.insert(format!("{kind}:{name}"), value.clone()).is_some() {
                        return Err(format!("`{kind}:{name}` occurs twice"));
                    }
                }
                _ => return Err(format!("`{shown}` begins with none of resources:, trait:, accel:")),
            }
        }
        Ok(Self(group))
    }

    /// Returns the group as JSON.
    pub fn shown(&self) -> Value {
        Value::Object(self.0.clone())
    }

    /// Returns several groups as JSON.
    pub fn shown_all(groups: &[Self]) -> Value {
        groups.iter().map(Self::shown).collect()
    }

    fn of_kind(&self, kind: &str) -> impl Iterator<Item = (&str, &Value)> {
        self.0.iter().filter_map(move |(key, value)| {
            let (of, name) = key.split_once(':')?;
            (of == kind).then_some((name, value))
        })
    }

    /// Returns the resource classes that the group requests, each with the number of devices.
    pub fn resources(&self) -> impl Iterator<Item = (&str, u32)> {
        self.of_kind("resources").filter_map(|(class, value)| Some((class, amount(value)?)))
    }

    /// Returns the traits that a device must have (true) or must not have (false).
    pub fn traits(&self) -> impl Iterator<Item = (&str, bool)> {
        self.of_kind("trait").map(|(name, value)| (name, value == "required"))
    }

    /// Returns the names of the `accel:` properties, which ask for preparation of a device such as programming.
    pub fn properties(&self) -> impl Iterator<Item = &str> {
        self.of_kind("accel").map(|(name, _)| name)
    }
}

/// A row of `device_profiles`.
#[derive(Debug, Clone, PartialEq)]
pub struct DeviceProfile {
    /// The id.
    pub id: DeviceProfileId,
    /// The name, which is unique.
    pub name: String,
    /// The description from the client.
    pub description: Option<String>,
    /// The groups, at least one.
    pub groups: Vec<Group>,
    /// When the profile was created.
    pub created_at: Millis,
}

/// A row of `attributes`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attribute {
    /// The id.
    pub id: AttributeId,
    /// The device row of the deployable.
    pub deployable: DeviceId,
    /// The key.
    pub key: String,
    /// The value.
    pub value: String,
    /// When the attribute was created.
    pub created_at: Millis,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn groups_are_read_or_refused_as_in_the_data_file() {
        let cases: Vec<Value> =
            serde_json::from_str(include_str!("../../tests/data/device_profile_groups.json")).unwrap();
        for case in &cases {
            let read = Group::read_all(&case["groups"]);
            match case["refused"].as_str() {
                Some(words) => {
                    assert!(read.as_ref().is_err_and(|error| error.contains(words)), "{case}: {read:?}")
                }
                None => {
                    let groups = read.unwrap_or_else(|error| panic!("{case}: {error}"));
                    let units: Vec<_> = groups
                        .iter()
                        .flat_map(Group::resources)
                        .map(|(class, n)| format!("{class}={n}"))
                        .collect();
                    assert_eq!(serde_json::json!(units), case["units"], "{case}");
                    // Reading the output gives the same groups.
                    assert_eq!(Group::read_all(&Group::shown_all(&groups)), Ok(groups), "{case}");
                }
            }
        }
        assert!(cases.iter().any(|case| case["refused"].is_string()));
    }

    proptest! {
        #[test]
        fn reading_a_group_never_panics(key in "(resources|trait|accel|x)?:? ?[A-Z_]{0,9}", value in ".{0,6}") {
            let _ = Group::read_all(&serde_json::json!([{ key: value }]));
        }
    }
}
