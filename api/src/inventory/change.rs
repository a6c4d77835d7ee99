//! A change of the rules by the API: checked as the file is, on record, in force, and seen in the device table
//! before it is answered.

use std::sync::{Arc, PoisonError};

use tokio::task::JoinSet;
use uuid::Uuid;

use super::discover::parent;
use super::{Inventory, Rule, RuleKind, Rules, Source};
use crate::error::Error;
use crate::service::Service;
use crate::store::now;
use crate::who;

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

impl Service {
    /// The rules in force.
    pub fn rules(&self) -> Arc<Rules> {
        Arc::clone(&self.rules.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Which devices may be given away, and by which names.
    pub fn inventory(&self) -> Arc<Inventory> {
        Arc::clone(&self.rules().inventory)
    }

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
        who::spawn(async move { service.change_rules_now(change, force).await })
            .await
            .map_err(|error| Error::Internal(format!("the change ended without an answer: {error}")))?
    }

    async fn change_rules_now(self: Arc<Self>, change: Change, force: bool) -> Result<Uuid, Error> {
        let _turn = self.changing.lock().await;
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
        if let Some(problem) = after.problem(rule.id) {
            return Err(Error::Invalid(format!("bad {} entry: {problem}", rule.kind)));
        }
        let broken = |other: &&Rule| before.problem(other.id).is_none() && after.problem(other.id).is_some();
        if let Some(other) = after.entries().iter().find(broken) {
            let problem = after.problem(other.id).unwrap_or_default();
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
        *self.rules.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(after);
        // An alias says nothing of devices.
        if rule.kind != RuleKind::Alias {
            self.discover_everywhere().await;
        }
        Ok(rule.id)
    }

    /// The devices in use of which an entry spoke, and speaks no more after a change.
    fn taken_from(&self, before: &Rules, after: &Rules, rule: &Rule) -> Vec<String> {
        let in_force =
            before.entries().iter().any(|entry| entry.id == rule.id) && before.problem(rule.id).is_none();
        if rule.kind == RuleKind::Alias || !in_force {
            return Vec::new();
        }
        let mut taken = Vec::new();
        for host in &self.hosts {
            let functions = host.functions();
            for device in self.store.devices_of(host.row.id) {
                let Some(server) = device.server else { continue };
                let speaks = |rules: &Rules| match functions.get(&device.facts.address) {
                    Some(function) => {
                        let parent = parent(&functions, function);
                        Some(rules.inventory.entries_of(function, parent).contains(&rule.id))
                    }
                    None => None,
                };
                // Of a device on a host that was not reached yet it cannot be told.
                let taken_away = match (speaks(before), speaks(after)) {
                    (Some(before), Some(after)) => before && !after,
                    (None, _) | (_, None) => device.gone_at.is_none(),
                };
                if taken_away {
                    taken.push(format!("{} of host {} (server {server})", device.facts.address, host.name));
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
            scans.spawn(who::by(who::current(), async move {
                if let Err(error) = service.discover(&host, None).await {
                    tracing::warn!(host = %host.name, %error, "the new rules are seen there with the next scan");
                }
            }));
        }
        while scans.join_next().await.is_some() {}
    }
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
