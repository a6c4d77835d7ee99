//! A change of the rules by the API: checked as the file is, on record, in force, and seen in the device table
//! before it is answered.

use std::collections::BTreeMap;
use std::sync::Arc;

use hotslot_model::device::{Functions, parent};
use hotslot_model::rules::{Inventory, Rule, RuleKind, Rules, Source};
use hotslot_store::{Store, actor, now};
use tokio::task::JoinSet;
use uuid::Uuid;

use super::catalog::Catalog;
use crate::config::Config;
use crate::error::Error;
use crate::task;

/// The most entries that the API may add to those of the configuration file: all are in memory, and every scan asks
/// each of them of every device.
const ENTRIES: usize = 500;

/// What is to become of the rules.
#[derive(Debug, Clone)]
pub enum Change {
    /// A new entry, behind the others of its kind.
    Add {
        /// What it is.
        kind: RuleKind,
        /// A JSON object.
        text: String,
    },
    /// Another text for an entry, in its place.
    Replace {
        /// What it is.
        kind: RuleKind,
        /// Its id.
        id: Uuid,
        /// A JSON object.
        text: String,
    },
    /// One entry less.
    Remove {
        /// What it is.
        kind: RuleKind,
        /// Its id.
        id: Uuid,
    },
}

impl Catalog {
    /// Changes the rules, and answers the entry's id. Unless it is `force`d, no device in use loses an entry that
    /// speaks of it; when it is, the device stays with its server.
    ///
    /// The work goes on when the caller goes away.
    ///
    /// # Errors
    /// [`Error::Invalid`] when the entry is wrong, [`Error::NotFound`], and [`Error::Conflict`] when it stands in the
    /// configuration file, devices in use need it, or other entries would be wrong without it. Then nothing was
    /// changed.
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
        let rule = match &change {
            Change::Add { kind, text } => {
                if entries.iter().filter(|rule| !rule.is_of_file()).count() >= ENTRIES {
                    return Err(Error::Conflict(format!(
                        "there are {ENTRIES} entries beside those of the configuration file, the most there may be; \
                         remove one, or write it into the file"
                    )));
                }
                let source = Source::Api { created_at: now(), updated_at: None };
                let rule = Rule { id: Uuid::new_v4(), kind: *kind, text: text.clone(), source };
                entries.push(rule.clone());
                rule
            }
            Change::Replace { kind, id, text } => {
                let index = changeable(&entries, *kind, *id)?;
                let rule = &mut entries[index];
                rule.text.clone_from(text);
                if let Source::Api { updated_at, .. } = &mut rule.source {
                    *updated_at = Some(now());
                }
                rule.clone()
            }
            Change::Remove { kind, id } => {
                let index = changeable(&entries, *kind, *id)?;
                entries.remove(index)
            }
        };
        let after = Rules::read(entries, &self.config.pci);
        let (problems_before, problems) = (self.problems_of(&before), self.problems_of(&after));
        if let Some(problem) = problems.get(&rule.id) {
            return Err(Error::Invalid(format!("bad {} entry: {problem}", rule.kind)));
        }
        let broken = |other: &&Rule| !problems_before.contains_key(&other.id);
        let broken = after.entries().iter().filter(broken);
        if let Some((other, problem)) =
            broken.filter_map(|other| Some((other, problems.get(&other.id)?))).next()
        {
            return Err(Error::Conflict(format!(
                "nothing was changed, for {} would be wrong then: {problem}; change that one first",
                other.name()
            )));
        }
        let taken = self.taken_from(&before, &after, &rule);
        if !taken.is_empty() && !force {
            return Err(Error::Conflict(format!(
                "nothing was changed, for {} speaks of devices in use: {}; detach them first, or add ?force=true: \
                 they then stay with their servers, and are offered no more when they are free",
                rule.name(),
                taken.join(", ")
            )));
        }
        match &change {
            Change::Add { .. } | Change::Replace { .. } => self.store.put_rule(&rule).await?,
            Change::Remove { .. } => self.store.remove_rule(&rule).await?,
        }
        tracing::info!(id = %rule.id, kind = %rule.kind, ?change, ?taken, "the rules were changed");
        self.set_rules(after);
        // An alias says nothing of devices.
        if rule.kind != RuleKind::Alias {
            self.discover_everywhere().await;
        }
        Ok(rule.id)
    }

    /// Why entries are left out: everywhere, or on a host for what it has.
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

    /// Follows what other processes have changed of the rules.
    ///
    /// # Errors
    /// The database's.
    pub(crate) async fn follow_rules(self: &Arc<Self>) -> Result<(), Error> {
        let _turn = self.changing.lock().await;
        if self.read_rules_again().await? {
            tracing::info!("another process has changed the rules");
            self.discover_everywhere().await;
        }
        Ok(())
    }

    /// Reads the rules as they are on record; false when they were so already.
    async fn read_rules_again(&self) -> Result<bool, Error> {
        if !self.store.is_shared() {
            return Ok(false);
        }
        let in_order = |rules: &Rules| {
            let mut entries = rules.entries().to_vec();
            entries.sort_by_key(|entry| entry.kind);
            entries
        };
        let fresh = read_rules(&self.config, &self.store).await?;
        if in_order(&fresh) == in_order(&self.rules()) {
            return Ok(false);
        }
        self.set_rules(fresh);
        Ok(true)
    }

    /// The devices in use of which an entry spoke, and speaks no more after a change.
    fn taken_from(&self, before: &Rules, after: &Rules, rule: &Rule) -> Vec<String> {
        let in_force =
            before.entries().iter().any(|entry| entry.id == rule.id) && before.problem(rule.id).is_none();
        if rule.kind == RuleKind::Alias || !in_force {
            return Vec::new();
        }
        let mut taken = Vec::new();
        for host in self.hosts.iter() {
            let functions = host.functions();
            let (before, after) = (before.inventory.on(&functions).0, after.inventory.on(&functions).0);
            for device in self.store.devices_of(host.row.id) {
                let Some(owner) = device.owner else { continue };
                let speaks = |rules: &Inventory| {
                    let function = functions.get(&device.facts.address)?;
                    Some(rules.entries_of(function, parent(&functions, function)).contains(&rule.id))
                };
                // Of a device on a host that was not reached yet it cannot be told.
                let taken_away = match (speaks(&before), speaks(&after)) {
                    (Some(before), Some(after)) => before && !after,
                    (None, _) | (_, None) => device.gone_at.is_none(),
                };
                if taken_away {
                    taken.push(format!("{} of host {} ({owner})", device.facts.address, host.name));
                }
            }
        }
        taken
    }

    /// Reads every host that can be reached anew. One that is away is read by these rules when it is back.
    async fn discover_everywhere(self: &Arc<Self>) {
        let mut scans = JoinSet::new();
        for host in self.hosts.iter().filter(|host| host.hypervisor.connection().is_ok()) {
            let (service, host) = (Arc::clone(self), Arc::clone(host));
            scans.spawn(actor::scope(actor::current(), async move {
                if let Err(error) = service.discover(&host, None).await {
                    tracing::warn!(host = %host.name, %error, "the new rules are seen there with the next scan");
                }
            }));
        }
        while scans.join_next().await.is_some() {}
    }
}

/// The rules of file and database. One of the database that the file no longer goes with is left out.
pub(crate) async fn read_rules(config: &Config, store: &Store) -> Result<Rules, Error> {
    let mut entries = Rule::of_file(&config.pci);
    entries.extend(store.rules().await?);
    let rules = Rules::read(entries, &config.pci);
    for problem in rules.problems() {
        tracing::error!("{problem}; it is left out: change or remove it under os-pci-config");
    }
    Ok(rules)
}

/// Where an entry is that the API may change.
fn changeable(entries: &[Rule], kind: RuleKind, id: Uuid) -> Result<usize, Error> {
    let index = entries.iter().position(|rule| rule.kind == kind && rule.id == id);
    let index = index.ok_or_else(|| Error::NotFound(format!("entry {id} of {kind}")))?;
    match &entries[index].source {
        Source::Api { .. } => Ok(index),
        Source::File { place } => Err(Error::Conflict(format!(
            "entry {id} of {kind} stands in the configuration file, at {place}; change it there and restart hotslot"
        ))),
    }
}
