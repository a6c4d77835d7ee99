//! Quotas: how much of each resource a project may use.
//!
//! What belongs to no project is counted against nobody. A limit that is lower than what a project already uses takes
//! nothing away; it only refuses what is new.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A resource that is limited for each project.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Resource {
    /// The devices and mediated devices that the servers of the project have, or are to have.
    Attachments,
    /// Of those, the devices that were requested by this alias.
    AttachmentsOf(String),
    /// The accelerators that the project has created.
    Accelerators,
    /// Cyborg's accelerator requests of the project.
    AcceleratorRequests,
    /// The bytes of the specs of the project's accelerators together.
    SpecBytes,
    /// The `Idempotency-Key`s of the project's requests whose answers are kept.
    IdempotencyKeys,
}

impl Resource {
    /// All resources but those of aliases.
    pub const FIXED: [Self; 5] = [
        Self::Attachments,
        Self::Accelerators,
        Self::AcceleratorRequests,
        Self::SpecBytes,
        Self::IdempotencyKeys,
    ];

    /// Says what a project can do by itself that uses `used` of it and may use no more, as the beginning of a choice;
    /// nothing helps a project that uses none.
    fn relief(&self, used: i64) -> &'static str {
        match self {
            Self::IdempotencyKeys => "send the request without Idempotency-Key, or later, or ",
            _ if used == 0 => "",
            Self::Attachments | Self::AttachmentsOf(_) => "detach something, or ",
            Self::Accelerators | Self::AcceleratorRequests => "delete some, or ",
            Self::SpecBytes => "shorten some specs, or ",
        }
    }
}

/// The separator between `pci_attachments` and the name of an alias.
const OF_ALIAS: &str = "pci_attachments:";

impl fmt::Display for Resource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Attachments => f.write_str("pci_attachments"),
            Self::AttachmentsOf(alias) => write!(f, "{OF_ALIAS}{alias}"),
            Self::Accelerators => f.write_str("accelerators"),
            Self::AcceleratorRequests => f.write_str("accelerator_requests"),
            Self::SpecBytes => f.write_str("accelerator_spec_bytes"),
            Self::IdempotencyKeys => f.write_str("idempotency_keys"),
        }
    }
}

impl FromStr for Resource {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if let Some(alias) = text.strip_prefix(OF_ALIAS).filter(|alias| !alias.is_empty()) {
            return Ok(Self::AttachmentsOf(alias.to_owned()));
        }
        Self::FIXED.into_iter().find(|resource| resource.to_string() == text).ok_or_else(|| {
            let known: Vec<_> = Self::FIXED.iter().map(Self::to_string).collect();
            let shown: String = text.chars().take(80).collect();
            format!("there is no quota `{shown}`; known: {}, {OF_ALIAS}<name of an alias>", known.join(", "))
        })
    }
}

/// The largest amount of a resource that a project may use: a number from 0 up, or -1 for no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limit(i64);

impl Limit {
    /// No limit.
    pub const UNLIMITED: Self = Self(-1);
    /// The largest limit, as in Nova.
    pub const MAX: i64 = 0x7fff_ffff;

    /// Makes a limit.
    ///
    /// # Errors
    /// The number is less than -1 or greater than [`MAX`](Self::MAX).
    pub fn new(limit: i64) -> Result<Self, String> {
        if (-1..=Self::MAX).contains(&limit) {
            Ok(Self(limit))
        } else {
            let most = Self::MAX;
            Err(format!("invalid limit {limit}: expected a number from 0 to {most}, or -1 for no limit"))
        }
    }

    /// The number; -1 for no limit.
    pub fn get(self) -> i64 {
        self.0
    }

    /// Whether a project that uses `used` may use `more` in addition.
    pub fn admits(self, used: i64, more: i64) -> bool {
        self == Self::UNLIMITED || more <= 0 || used.saturating_add(more) <= self.0
    }
}

impl<'de> Deserialize<'de> for Limit {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::new(i64::deserialize(deserializer)?).map_err(serde::de::Error::custom)
    }
}

impl Serialize for Limit {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_i64(self.0)
    }
}

impl JsonSchema for Limit {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Limit".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "integer",
            "minimum": -1,
            "maximum": Self::MAX,
            "description": "The limit of a resource: a number from 0 up, or -1 for no limit.",
        })
    }
}

/// Limits by resource: the defaults, or those that were set for one project.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Limits(pub BTreeMap<Resource, Limit>);

impl Limits {
    /// The limit of a resource, when there is one here.
    pub fn get(&self, resource: &Resource) -> Option<Limit> {
        self.0.get(resource).copied()
    }
}

/// How much of a resource a project uses.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// What it has.
    pub in_use: i64,
    /// What is being attached. It counts as used.
    pub reserved: i64,
}

/// Returns what an attach of devices uses: one of each attachment, in total and of its alias.
pub fn of_aliases<'a>(aliases: impl IntoIterator<Item = &'a str>) -> BTreeMap<Resource, i64> {
    let mut wanted = BTreeMap::new();
    for alias in aliases {
        for resource in [Resource::Attachments, Resource::AttachmentsOf(alias.to_owned())] {
            *wanted.entry(resource).or_default() += 1;
        }
    }
    wanted
}

/// A request that would exceed a quota.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "Quota exceeded for {resource}: requested {requested}, but project {project} already uses {used} of {}; {}have \
     an administrator raise the limit: PUT os-quota-sets/{project}",
    .limit.get(), .resource.relief(*.used)
)]
pub struct Exceeded {
    /// The project.
    pub project: String,
    /// The resource.
    pub resource: Resource,
    /// How much was requested.
    pub requested: i64,
    /// How much is used already.
    pub used: i64,
    /// The limit.
    pub limit: Limit,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resources_are_parsed_as_they_are_written() {
        let of_alias = Resource::AttachmentsOf("a:b c".to_owned());
        for resource in Resource::FIXED.into_iter().chain([of_alias]) {
            assert_eq!(resource.to_string().parse(), Ok(resource));
        }
        for wrong in ["", "instances", "pci_attachments:", "Accelerators"] {
            assert!(wrong.parse::<Resource>().unwrap_err().contains("accelerator_requests"), "{wrong}");
        }
    }

    #[test]
    fn a_limit_admits_what_it_leaves() {
        for (limit, used, more, admitted) in [
            (-1, i64::MAX, i64::MAX, true),
            (0, 0, 0, true),
            (0, 0, 1, false),
            (5, 4, 1, true),
            (5, 4, 2, false),
            // A limit may be lower than what is used.
            (5, 9, 0, true),
            (5, 9, 1, false),
            (5, i64::MAX, 1, false),
        ] {
            assert_eq!(Limit::new(limit).unwrap().admits(used, more), admitted, "{limit} {used} {more}");
        }
        assert!(Limit::new(-2).is_err() && Limit::new(Limit::MAX + 1).is_err());
    }

    #[test]
    fn a_refusal_names_the_limit_the_use_and_the_remedy() {
        let refused = Exceeded {
            project: "p".into(),
            resource: Resource::AttachmentsOf("gpu".into()),
            requested: 2,
            used: 4,
            limit: Limit::new(5).unwrap(),
        };
        assert_eq!(
            refused.to_string(),
            "Quota exceeded for pci_attachments:gpu: requested 2, but project p already uses 4 of 5; detach something, \
             or have an administrator raise the limit: PUT os-quota-sets/p"
        );
        let none = Exceeded { used: 0, limit: Limit::new(0).unwrap(), ..refused };
        let says = "already uses 0 of 0; have an administrator raise the limit: PUT os-quota-sets/p";
        assert!(none.to_string().ends_with(says), "{none}");
    }
}
