//! The rules in force: the entries of the configuration file, then those that came by the API. The file's come
//! first, and of the whitelist the first entry that matches counts.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::{Value, json};
use uuid::Uuid;

use super::alias::Alias;
use super::config::Pci;
use super::extra_info::ExtraInfo;
use super::inventory::Inventory;
use super::parse::SpecError;
use super::spec::DeviceSpec;
use crate::string_enum;
use crate::time::Millis;

string_enum! {
    /// What an entry is.
    RuleKind {
        /// A `device_spec`: which devices may be given away.
        Whitelist = "whitelist",
        /// An alias: a name to ask for devices by.
        Alias = "alias",
        /// Facts of devices that no hypervisor knows.
        ExtraInfo = "extra_info",
    }
}

/// One entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// Its id: of an entry of the file it is the same for as long as place and text are.
    pub id: Uuid,
    /// What it is.
    pub kind: RuleKind,
    /// A JSON object, when it is right.
    pub text: String,
    /// Where it comes from.
    pub source: Source,
}

/// Where an entry comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// The configuration file.
    File {
        /// `[pci] device_spec[0]`
        place: String,
    },
    /// The API; it is a row of `pci_config`.
    Api {
        /// When it came.
        created_at: Millis,
        /// When it was last replaced.
        updated_at: Option<Millis>,
    },
}

impl Rule {
    /// The entries of a configuration file, each kind in order.
    pub fn of_file(pci: &Pci) -> Vec<Self> {
        let mut rules = Vec::new();
        for (index, text) in pci.device_spec.iter().enumerate() {
            let place = format!("[pci] device_spec[{index}]");
            match serde_json::from_str(text) {
                Ok(Value::Array(entries)) => rules.extend(entries.iter().zip(1..).map(|(entry, number)| {
                    let place = format!("{place}, entry {number} of its list");
                    Self::at(RuleKind::Whitelist, place, entry.to_string())
                })),
                Ok(_) | Err(_) => rules.push(Self::at(RuleKind::Whitelist, place, text.clone())),
            }
        }
        for (index, entry) in pci.extra_info.iter().enumerate() {
            let devices = serde_json::from_str(&entry.devices);
            let devices = devices.unwrap_or_else(|_| Value::from(entry.devices.as_str()));
            let text = json!({ "match": devices, "values": entry.values }).to_string();
            rules.push(Self::at(RuleKind::ExtraInfo, format!("[[pci.extra_info]][{index}]"), text));
        }
        for (index, text) in pci.alias.iter().enumerate() {
            rules.push(Self::at(RuleKind::Alias, format!("[pci] alias[{index}]"), text.clone()));
        }
        rules
    }

    fn at(kind: RuleKind, place: String, text: String) -> Self {
        let id = Uuid::new_v5(&Uuid::NAMESPACE_OID, format!("hotslot {kind} {place} {text}").as_bytes());
        Self { id, kind, text, source: Source::File { place } }
    }

    /// Whether it stands in the configuration file, and cannot be changed by the API.
    pub fn is_of_file(&self) -> bool {
        matches!(self.source, Source::File { .. })
    }

    /// What it is called where it is refused.
    pub fn name(&self) -> String {
        match &self.source {
            Source::File { place } => place.clone(),
            Source::Api { .. } => format!("entry {} of {}", self.id, self.kind),
        }
    }
}

/// All entries, and what they come to.
#[derive(Debug, Default)]
pub struct Rules {
    entries: Vec<Rule>,
    problems: BTreeMap<Uuid, Vec<SpecError>>,
    /// What the entries say that are right.
    pub inventory: Arc<Inventory>,
}

/// An entry that is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{place}: {error}")]
pub struct Problem {
    /// Where the entry stands: `[pci] device_spec[0]`.
    pub place: String,
    /// What is wrong with it.
    pub error: SpecError,
}

impl Rules {
    /// Reads entries, those of a kind in the order in which they count. What is wrong with one leaves it out.
    /// `pci` gives the options that the grammar depends on.
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

    /// The entries of all kinds.
    pub fn entries(&self) -> &[Rule] {
        &self.entries
    }

    /// The entries of a kind, in the order in which they count.
    pub fn of(&self, kind: RuleKind) -> impl Iterator<Item = &Rule> {
        self.entries.iter().filter(move |rule| rule.kind == kind)
    }

    /// What an entry is called.
    pub fn name_of(&self, id: Uuid) -> String {
        self.entries.iter().find(|rule| rule.id == id).map_or_else(|| id.to_string(), Rule::name)
    }

    /// Why an entry is left out on every host; none when it is in force.
    pub fn problem(&self, id: Uuid) -> Option<String> {
        let errors = self.problems.get(&id)?;
        Some(errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))
    }

    /// Everything that is wrong, entry by entry, with its place.
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
    /// Reads the rules of a configuration.
    ///
    /// # Errors
    /// [`Problem`] naming the first entry that is refused, and what is wrong with it.
    pub fn new(pci: &Pci) -> Result<Arc<Self>, Problem> {
        let rules = Rules::read(Rule::of_file(pci), pci);
        match rules.problems().into_iter().next() {
            None => Ok(rules.inventory),
            Some(problem) => Err(problem),
        }
    }
}
