//! The entries from the configuration file and from the API, in the order in which they count. Entries of the file come
//! first. The first `device_spec` that matches a device applies to it.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::{Value, json};
use uuid::Uuid;

use super::alias::Alias;
use super::config::{Entry, Pci};
use super::extra_info::ExtraInfo;
use super::inventory::Inventory;
use super::parse::SpecError;
use super::spec::DeviceSpec;
use crate::time::Millis;
use crate::{json, string_enum};

string_enum! {
    /// The kind of an entry.
    RuleKind {
        /// A `device_spec`: which devices are assignable.
        Whitelist = "whitelist",
        /// An alias: a name under which requests ask for devices.
        Alias = "alias",
        /// Facts of devices that no hypervisor knows.
        ExtraInfo = "extra_info",
    }
}

impl RuleKind {
    /// The option of `[pci]` that has entries of this kind.
    pub fn option(self) -> &'static str {
        match self {
            Self::Whitelist => "device_spec",
            Self::Alias => "alias",
            Self::ExtraInfo => "extra_info",
        }
    }
}

/// One entry of any kind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// The id. An entry of the file keeps its id as long as its place and its text stay the same.
    pub id: Uuid,
    /// The kind.
    pub kind: RuleKind,
    /// The entry as text. It is a JSON object if the entry is valid.
    pub text: String,
    /// Where the entry comes from.
    pub source: Source,
}

/// The origin of an entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// The configuration file.
    File {
        /// The place in the file, such as `[pci] device_spec[0]`.
        place: String,
    },
    /// The API. The entry is a row of the table `pci_config`.
    Api {
        /// When it was created.
        created_at: Millis,
        /// When it was last replaced.
        updated_at: Option<Millis>,
    },
}

impl Rule {
    /// Returns the entries of a configuration file, each kind in the order of the file.
    pub fn of_file(pci: &Pci) -> Vec<Self> {
        let mut rules = Vec::new();
        for (index, Entry(text)) in pci.device_spec.iter().enumerate() {
            let place = format!("[pci] device_spec[{index}]");
            match json::parse(text.as_bytes()) {
                Ok(Value::Array(entries)) => rules.extend(entries.iter().zip(1..).map(|(entry, number)| {
                    let place = format!("{place}, entry {number} of its list");
                    Self::at(RuleKind::Whitelist, place, entry.to_string())
                })),
                Ok(_) | Err(_) => rules.push(Self::at(RuleKind::Whitelist, place, text.clone())),
            }
        }
        for (index, entry) in pci.extra_info.iter().enumerate() {
            let devices = serde_json::from_str(&entry.devices.0);
            let devices = devices.unwrap_or_else(|_| Value::from(entry.devices.0.as_str()));
            let text = json!({ "match": devices, "values": entry.values }).to_string();
            rules.push(Self::at(RuleKind::ExtraInfo, format!("[[pci.extra_info]][{index}]"), text));
        }
        for (index, Entry(text)) in pci.alias.iter().enumerate() {
            rules.push(Self::at(RuleKind::Alias, format!("[pci] alias[{index}]"), text.clone()));
        }
        rules
    }

    fn at(kind: RuleKind, place: String, text: String) -> Self {
        let id = Uuid::new_v5(&Uuid::NAMESPACE_OID, format!("hotslot {kind} {place} {text}").as_bytes());
        Self { id, kind, text, source: Source::File { place } }
    }

    /// Whether the entry is from the configuration file, so that the API cannot change it.
    pub fn is_of_file(&self) -> bool {
        matches!(self.source, Source::File { .. })
    }

    /// Returns the name of the entry for error messages.
    pub fn name(&self) -> String {
        match &self.source {
            Source::File { place } => place.clone(),
            Source::Api { .. } => format!("entry {} of {}", self.id, self.kind),
        }
    }
}

/// All entries, their problems, and the inventory made from the valid ones.
#[derive(Debug, Default)]
pub struct Rules {
    entries: Vec<Rule>,
    problems: BTreeMap<Uuid, Vec<SpecError>>,
    /// The inventory made from the valid entries.
    pub inventory: Arc<Inventory>,
}

/// A problem of one entry.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{place}: {error}")]
pub struct Problem {
    /// The place of the entry, such as `[pci] device_spec[0]`.
    pub place: String,
    /// What is wrong with the entry.
    pub error: SpecError,
}

impl Rules {
    /// Reads entries, those of each kind in the order in which they count. An invalid entry is ignored and its problems
    /// are recorded. `pci` has the options that the syntax depends on.
    pub fn read(entries: Vec<Rule>, pci: &Pci) -> Self {
        let mut inventory =
            Inventory { report_in_placement: pci.report_in_placement, ..Inventory::default() };
        let mut problems = BTreeMap::<Uuid, Vec<SpecError>>::new();
        for rule in entries.iter().filter(|rule| rule.kind == RuleKind::Whitelist) {
            match DeviceSpec::parse(&rule.text, pci.report_in_placement) {
                Ok(spec) => inventory.specs.push((rule.id, spec)),
                Err(error) => drop(problems.insert(rule.id, vec![error])),
            }
        }
        for rule in entries.iter().filter(|rule| rule.kind == RuleKind::ExtraInfo) {
            match ExtraInfo::parse(&rule.text) {
                Ok(entry) => inventory.extra_info.push((rule.id, entry)),
                Err(errors) => drop(problems.insert(rule.id, errors)),
            }
        }
        let grammar = inventory.alias_grammar(pci.pci_in_placement);
        for rule in entries.iter().filter(|rule| rule.kind == RuleKind::Alias) {
            let added =
                Alias::parse(&rule.text, &grammar).and_then(|alias| inventory.add_alias(alias, &grammar));
            if let Err(error) = added {
                problems.insert(rule.id, vec![error]);
            }
        }
        Self { entries, problems, inventory: inventory.into() }
    }

    /// Returns the entries of all kinds.
    pub fn entries(&self) -> &[Rule] {
        &self.entries
    }

    /// Returns the entries of one kind, in the order in which they count.
    pub fn of(&self, kind: RuleKind) -> impl Iterator<Item = &Rule> {
        self.entries.iter().filter(move |rule| rule.kind == kind)
    }

    /// Returns the name of an entry for error messages.
    pub fn name_of(&self, id: Uuid) -> String {
        self.entries.iter().find(|rule| rule.id == id).map_or_else(|| id.to_string(), Rule::name)
    }

    /// Returns the reason why an entry is ignored on every host, or `None` when it is in force.
    pub fn problem(&self, id: Uuid) -> Option<String> {
        let errors = self.problems.get(&id)?;
        Some(errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))
    }

    /// Returns all problems, entry by entry.
    pub fn problems(&self) -> Vec<Problem> {
        let of = |rule: &Rule| {
            let errors = self.problems.get(&rule.id).into_iter().flatten();
            let problem = |error: &SpecError| Problem { place: rule.name(), error: error.clone() };
            errors.map(problem).collect::<Vec<_>>()
        };
        self.entries.iter().flat_map(of).collect()
    }
}

impl Inventory {
    /// Reads the entries of a configuration.
    ///
    /// # Errors
    /// Returns the first [`Problem`] when any entry is invalid.
    pub fn new(pci: &Pci) -> Result<Arc<Self>, Problem> {
        let rules = Rules::read(Rule::of_file(pci), pci);
        match rules.problems().into_iter().next() {
            None => Ok(rules.inventory),
            Some(problem) => Err(problem),
        }
    }
}
