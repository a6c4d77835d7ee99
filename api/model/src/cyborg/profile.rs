//! What the groups of a device profile ask for.

use std::sync::LazyLock;

use regex::Regex;
use serde_json::{Map, Value};

use crate::id::{AttributeId, DeviceId, DeviceProfileId};
use crate::time::Millis;

/// The most devices that one device profile asks for.
pub const MAX_UNITS: u32 = 256;

/// The resource classes beside `CUSTOM_…` that Cyborg knows.
const CLASSES: &[&str] = &["FPGA", "GPU", "VGPU", "PGPU"];

/// A group as it was put, with the blanks around its names taken away: one kind of device.
#[derive(Debug, Clone, PartialEq)]
pub struct Group(Map<String, Value>);

/// The name of a custom resource class or trait.
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
    /// What is wrong, and what would be right, for people.
    pub fn read_all(value: &Value) -> Result<Vec<Self>, String> {
        let list = value.as_array().filter(|list| !list.is_empty());
        let list = list.ok_or(r#"groups is no list of groups; write [{"resources:FPGA": "1"}]"#)?;
        let groups = list.iter().map(Self::read).collect::<Result<Vec<_>, _>>()?;
        let units = groups.iter().flat_map(Self::resources).map(|(_, amount)| u64::from(amount)).sum::<u64>();
        if units > u64::from(MAX_UNITS) {
            return Err(format!(
                "the groups ask for {units} devices; one profile asks for {MAX_UNITS} at most"
            ));
        }
        Ok(groups)
    }

    fn read(value: &Value) -> Result<Self, String> {
        let put = value.as_object().ok_or("a group is no object")?;
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
                    return Err(format!("`{shown}` is no number of devices from 0 to {MAX_UNITS}"));
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
                    return Err(format!("`{shown}` is no name with a text"));
                }
                "resources" | "trait" | "accel" => {
                    if group.insert(format!("{kind}:{name}"), value.clone()).is_some() {
                        return Err(format!("`{kind}:{name}` is there twice"));
                    }
                }
                _ => return Err(format!("`{shown}` begins with none of resources:, trait:, accel:")),
            }
        }
        Ok(Self(group))
    }

    /// The group as JSON.
    pub fn shown(&self) -> Value {
        Value::Object(self.0.clone())
    }

    /// Groups as JSON.
    pub fn shown_all(groups: &[Self]) -> Value {
        groups.iter().map(Self::shown).collect()
    }

    fn of_kind(&self, kind: &str) -> impl Iterator<Item = (&str, &Value)> {
        self.0.iter().filter_map(move |(key, value)| {
            let (of, name) = key.split_once(':')?;
            (of == kind).then_some((name, value))
        })
    }

    /// The resource classes that it asks for, and how many devices of each.
    pub fn resources(&self) -> impl Iterator<Item = (&str, u32)> {
        self.of_kind("resources").filter_map(|(class, value)| Some((class, amount(value)?)))
    }

    /// The traits that a device must have (true), or must not have.
    pub fn traits(&self) -> impl Iterator<Item = (&str, bool)> {
        self.of_kind("trait").map(|(name, value)| (name, value == "required"))
    }

    /// What it asks to be done to a device before it is given.
    pub fn properties(&self) -> impl Iterator<Item = &str> {
        self.of_kind("accel").map(|(name, _)| name)
    }
}

/// A row of `device_profiles`.
#[derive(Debug, Clone, PartialEq)]
pub struct DeviceProfile {
    /// Its id.
    pub id: DeviceProfileId,
    /// Its name, of which there is one.
    pub name: String,
    /// What people say of it.
    pub description: Option<String>,
    /// What it asks for, at least one group.
    pub groups: Vec<Group>,
    /// When it was made.
    pub created_at: Millis,
}

/// A row of `attributes`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attribute {
    /// Its id.
    pub id: AttributeId,
    /// The row of the deployable.
    pub deployable: DeviceId,
    /// What of it is said.
    pub key: String,
    /// What is said.
    pub value: String,
    /// When.
    pub created_at: Millis,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn groups_are_read_as_the_list_says() {
        let cases: Vec<Value> =
            serde_json::from_str(include_str!("../../tests/data/device_profile_groups.json")).unwrap();
        for case in &cases {
            let read = Group::read_all(&case["groups"]);
            match case["refused"].as_str() {
                Some(words) => {
                    assert!(read.as_ref().is_err_and(|said| said.contains(words)), "{case}: {read:?}")
                }
                None => {
                    let groups = read.unwrap_or_else(|said| panic!("{case}: {said}"));
                    let units: Vec<_> = groups
                        .iter()
                        .flat_map(Group::resources)
                        .map(|(class, n)| format!("{class}={n}"))
                        .collect();
                    assert_eq!(serde_json::json!(units), case["units"], "{case}");
                    // What is shown is read as the same.
                    assert_eq!(Group::read_all(&Group::shown_all(&groups)), Ok(groups), "{case}");
                }
            }
        }
        assert!(cases.iter().any(|case| case["refused"].is_string()));
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(key in "(resources|trait|accel|x)?:? ?[A-Z_]{0,9}", value in ".{0,6}") {
            let _ = Group::read_all(&serde_json::json!([{ key: value }]));
        }
    }
}
