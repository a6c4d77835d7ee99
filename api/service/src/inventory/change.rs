//! Changes of the rules by the API. A change is checked like the configuration file, recorded, put in force and applied
//! to the device table before the request is answered.

use std::collections::BTreeMap;
use std::sync::Arc;

use hotslot_driver::pci::PciAddress;
use hotslot_model::device::{Functions, parent};
use hotslot_model::rules::{Inventory, Rule, RuleKind, Rules, Source};
use hotslot_store::{Store, actor, now};
use tokio::sync::MutexGuard;
use tokio::task::JoinSet;
use uuid::Uuid;

use super::catalog::Catalog;
use crate::config::Config;
use crate::error::Error;
use crate::host::Host;
use crate::task;

/// The maximum number of entries that the API may add to those of the configuration file. All entries are in memory,
/// and every scan matches each device against each entry.
const ENTRIES: usize = 500;

/// A change of the rules.
#[derive(Debug, Clone)]
pub enum Change {
    /// Adds an entry after the others of its kind.
    Add {
        /// The kind of the entry.
        kind: RuleKind,
        /// The entry as a JSON object.
        text: String,
    },
    /// Replaces the text of an entry, which keeps its position.
    Replace {
        /// The kind of the entry.
        kind: RuleKind,
        /// The id of the entry.
        id: Uuid,
        /// The entry as a JSON object.
        text: String,
    },
    /// Removes an entry.
    Remove {
        /// The kind of the entry.
        kind: RuleKind,
        /// The id of the entry.
        id: Uuid,
    },
}

/// What a change of the rules would do.
#[derive(Clone, Default)]
pub struct Preview {
    /// The functions that the entry matches, by host and address.
    pub functions: Vec<PreviewedFunction>,
    /// The devices in use that would no longer be listed, in words. Such a change needs `force`.
    pub withdrawn: Vec<String>,
}

/// A function that an entry would match.
#[derive(Clone)]
pub struct PreviewedFunction {
    /// The host.
    pub host: Arc<Host>,
    /// The address.
    pub address: PciAddress,
    /// Whether the entry would have an effect on it: for a `device_spec`, that no earlier one decides; for the others, that
    /// the function is assignable.
    pub counts: bool,
}

impl Catalog {
    /// Returns what a change of the rules would do, after the checks of a change. Nothing is changed.
    ///
    /// # Errors
    /// Those of [`change_rules`](Self::change_rules), but for devices in use.
    pub fn preview_rules(&self, change: &Change) -> Result<Preview, Error> {
        let before = self.rules();
        let mut entries = before.entries().to_vec();
        let rule = changed(change, &mut entries)?;
        let after = Rules::read(entries, &self.config.get().pci);
        self.check_change(&before, &after, &rule)?;
        let withdrawn = self.withdrawn_devices(&before, &after, &rule);
        let rules = if matches!(change, Change::Remove { .. }) { &*before } else { &after };
        let mut functions = Vec::new();
        for host in self.hosts.iter() {
            let here = host.functions();
            let inventory = rules.inventory.on(&here).0;
            let alias = alias_name(&rule).and_then(|name| inventory.alias(&name));
            for function in here.values() {
                let parent = parent(&here, function);
                let facts = inventory.facts(function, parent);
                let matches = match alias {
                    Some(alias) => facts.as_ref().is_some_and(|facts| alias.matches(facts)),
                    None => inventory.entry_matches(rule.id, function, parent),
                };
                let counts = match rule.kind {
                    RuleKind::Whitelist => inventory.entries_of(function, parent).contains(&rule.id),
                    RuleKind::Alias | RuleKind::ExtraInfo => facts.is_some(),
                };
                if matches {
                    let host = Arc::clone(host);
                    functions.push(PreviewedFunction { host, address: function.address, counts });
                }
            }
        }
        Ok(Preview { functions, withdrawn })
    }

    /// Changes the rules and returns the id of the entry. Without `force`, a change is refused when a device in use
    /// would lose an entry that lists it. With `force`, such a device stays with its server.
    ///
    /// The work continues when the caller's future is dropped.
    ///
    /// # Errors
    /// [`Error::Invalid`] when the entry is wrong; [`Error::NotFound`] when there is no such entry; [`Error::Conflict`]
    /// when the entry is in the configuration file, devices in use need it, other entries would become wrong, or there
    /// are too many entries; errors of the database. After an error nothing was changed.
    pub async fn change_rules(self: &Arc<Self>, change: Change, force: bool) -> Result<Uuid, Error> {
        let service = Arc::clone(self);
        task::join(actor::spawn_as_current(async move { service.change_rules_now(change, force).await }))
            .await
    }

    async fn change_rules_now(self: Arc<Self>, change: Change, force: bool) -> Result<Uuid, Error> {
        let _turn = self.changing.lock().await;
        let _between = self.store.locks().lock("rules".into()).await?;
        self.read_rules_again().await?;
        let before = self.rules();
        let mut entries = before.entries().to_vec();
        let rule = changed(&change, &mut entries)?;
        let after = Rules::read(entries, &self.config.get().pci);
        self.check_change(&before, &after, &rule)?;
        let withdrawn = self.withdrawn_devices(&before, &after, &rule);
        if !withdrawn.is_empty() && !force {
            return Err(Error::Conflict(format!(
                "nothing was changed, because {} lists devices in use: {}; detach them first, or add ?force=true: \
                 they then stay with their servers and are no longer assignable when they are free",
                rule.name(),
                withdrawn.join(", ")
            )));
        }
        match &change {
            Change::Add { .. } | Change::Replace { .. } => self.store.put_rule(&rule).await?,
            Change::Remove { .. } => self.store.remove_rule(&rule).await?,
        }
        tracing::info!(id = %rule.id, kind = %rule.kind, ?change, ?withdrawn, "the rules were changed");
        self.set_rules(after);
        // An alias does not change which devices are assignable.
        if rule.kind != RuleKind::Alias {
            self.discover_everywhere().await;
        }
        Ok(rule.id)
    }

    /// Checks that neither the changed entry nor one that depends on it is wrong after a change.
    ///
    /// # Errors
    /// [`Error::Invalid`] with what is wrong with the entry; [`Error::Conflict`] with another entry that would become
    /// wrong.
    fn check_change(&self, before: &Rules, after: &Rules, rule: &Rule) -> Result<(), Error> {
        let (problems_before, problems) = (self.problems_of(before), self.problems_of(after));
        if let Some(problem) = problems.get(&rule.id) {
            return Err(Error::Invalid(format!("bad {} entry: {problem}", rule.kind.option())));
        }
        let was_right = |other: &&Rule| !problems_before.contains_key(&other.id);
        let mut broken = after.entries().iter().filter(was_right);
        match broken.find_map(|other| Some((other, problems.get(&other.id)?))) {
            None => Ok(()),
            Some((other, problem)) => Err(Error::Conflict(format!(
                "nothing was changed, because {} would become wrong: {problem}; change that entry first",
                other.name()
            ))),
        }
    }

    /// Returns the entries that are left out, each with the reason. An entry may be wrong everywhere, or only on a host
    /// because of its devices.
    pub fn problems_of(&self, rules: &Rules) -> BTreeMap<Uuid, String> {
        let everywhere = rules.entries().iter().filter_map(|rule| Some((rule.id, rules.problem(rule.id)?)));
        let mut problems: BTreeMap<_, _> = everywhere.collect();
        let functions: Vec<_> = self.hosts.iter().map(|host| host.functions()).collect();
        let all: Vec<&Functions> = functions.iter().map(AsRef::as_ref).collect();
        for (host, here) in self.hosts.iter().zip(&functions) {
            for (id, error) in rules.inventory.on(here).1 {
                if rules.inventory.is_for_another_host(id, here, &all) {
                    continue;
                }
                problems.entry(id).or_insert_with(|| format!("on host {}: {error}", host.name));
            }
        }
        problems
    }

    /// Applies changes of the rules that other processes have made.
    ///
    /// # Errors
    /// Errors of the database.
    pub(crate) async fn follow_rules(self: &Arc<Self>) -> Result<(), Error> {
        let _turn = self.changing.lock().await;
        if self.read_rules_again().await? {
            tracing::info!("another process has changed the rules");
            self.discover_everywhere().await;
        }
        Ok(())
    }

    /// Reads the rules from the database. Returns whether they have changed.
    async fn read_rules_again(&self) -> Result<bool, Error> {
        if !self.store.is_shared() {
            return Ok(false);
        }
        let in_order = |rules: &Rules| {
            let mut entries = rules.entries().to_vec();
            entries.sort_by_key(|entry| entry.kind);
            entries
        };
        let fresh = read_rules(&self.config.get(), &self.store).await?;
        if in_order(&fresh) == in_order(&self.rules()) {
            return Ok(false);
        }
        self.set_rules(fresh);
        Ok(true)
    }

    /// Returns the devices in use that an entry listed before a change and does not list after it.
    fn withdrawn_devices(&self, before: &Rules, after: &Rules, rule: &Rule) -> Vec<String> {
        let in_force =
            before.entries().iter().any(|entry| entry.id == rule.id) && before.problem(rule.id).is_none();
        if rule.kind == RuleKind::Alias || !in_force {
            return Vec::new();
        }
        let mut withdrawn = Vec::new();
        for host in self.hosts.iter() {
            let functions = host.functions();
            let (before, after) = (before.inventory.on(&functions).0, after.inventory.on(&functions).0);
            for device in self.store.devices_of(host.row.id) {
                let Some(owner) = device.owner else { continue };
                let speaks = |rules: &Inventory| {
                    let function = functions.get(&device.facts.address)?;
                    Some(rules.entries_of(function, parent(&functions, function)).contains(&rule.id))
                };
                // On a host that was not reached yet this is unknown; count every device that the record has there.
                let is_withdrawn = match (speaks(&before), speaks(&after)) {
                    (Some(before), Some(after)) => before && !after,
                    (None, _) | (_, None) => device.gone_at.is_none(),
                };
                if is_withdrawn {
                    withdrawn.push(format!("{} of host {} ({owner})", device.facts.address, host.name));
                }
            }
        }
        withdrawn
    }

    /// Puts rules in force that were read from a changed configuration file while [`changing`](Self::changing) was locked.
    pub(crate) async fn put_in_force(self: &Arc<Self>, rules: Rules, _turn: MutexGuard<'_, ()>) {
        if rules.entries() != self.rules().entries() {
            self.set_rules(rules);
        }
        // Keys besides the entries, such as `unguarded`, matter to devices too.
        self.discover_everywhere().await;
    }

    /// Reads the devices of every reachable host again. An unreachable host is read with the new rules when it is back.
    async fn discover_everywhere(self: &Arc<Self>) {
        let mut scans = JoinSet::new();
        for host in self.hosts.iter().filter(|host| host.hypervisor.connection().is_ok()) {
            let (service, host) = (Arc::clone(self), Arc::clone(host));
            scans.spawn(actor::scope_as(actor::current(), async move {
                if let Err(error) = service.discover(&host, None).await {
                    tracing::warn!(
                        host = %host.name, %error,
                        "reading the devices failed; the new rules take effect with the next scan"
                    );
                }
            }));
        }
        while scans.join_next().await.is_some() {}
    }
}

/// Reads the rules of the configuration file and the database. An entry of the database that is no longer valid
/// together with the file is left out.
///
/// # Errors
/// Errors of the database, or a wrong entry in the file.
pub(crate) async fn read_rules(config: &Config, store: &Store) -> Result<Rules, Error> {
    let mut entries = Rule::of_file(&config.pci);
    entries.extend(store.rules().await?);
    let rules = Rules::read(entries, &config.pci);
    for problem in rules.problems() {
        tracing::error!("{problem}; the entry is left out: change or remove it under os-pci-config");
    }
    Ok(rules)
}

/// Returns the name of an alias; `None` for a rule of another kind.
fn alias_name(rule: &Rule) -> Option<String> {
    let entry: serde_json::Value = serde_json::from_str(&rule.text).ok()?;
    entry["name"].as_str().filter(|_| rule.kind == RuleKind::Alias).map(str::to_owned)
}

/// Applies a change to the entries of the rules, and returns the entry as it is after the change, or was before it was
/// removed.
///
/// # Errors
/// [`Error::NotFound`]; [`Error::Conflict`] when there are too many entries, or the entry is in the configuration file.
fn changed(change: &Change, entries: &mut Vec<Rule>) -> Result<Rule, Error> {
    Ok(match change {
        Change::Add { kind, text } => {
            if entries.iter().filter(|rule| !rule.is_of_file()).count() >= ENTRIES {
                return Err(Error::Conflict(format!(
                    "there are {ENTRIES} entries in addition to those of the configuration file, which is the \
                     maximum; remove one, or add the entry to the file"
                )));
            }
            let source = Source::Api { created_at: now(), updated_at: None };
            let rule = Rule { id: Uuid::new_v4(), kind: *kind, text: text.clone(), source };
            entries.push(rule.clone());
            rule
        }
        Change::Replace { kind, id, text } => {
            let index = changeable(entries, *kind, *id)?;
            let rule = &mut entries[index];
            rule.text.clone_from(text);
            if let Source::Api { updated_at, .. } = &mut rule.source {
                *updated_at = Some(now());
            }
            rule.clone()
        }
        Change::Remove { kind, id } => {
            let index = changeable(entries, *kind, *id)?;
            entries.remove(index)
        }
    })
}

/// Returns the index of an entry that the API may change.
///
/// # Errors
/// [`Error::NotFound`]; [`Error::Conflict`] when the entry is in the configuration file.
fn changeable(entries: &[Rule], kind: RuleKind, id: Uuid) -> Result<usize, Error> {
    let index = entries.iter().position(|rule| rule.kind == kind && rule.id == id);
    let index = index.ok_or_else(|| Error::NotFound(format!("entry {id} of {kind}")))?;
    match &entries[index].source {
        Source::Api { .. } => Ok(index),
        Source::File { place } => Err(Error::Conflict(format!(
            "entry {id} of {kind} is in the configuration file, at {place}; change it there, and run `hotslot config reload`"
        ))),
    }
}
