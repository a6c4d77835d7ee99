//! The file of the configuration. A running service follows some of its keys when the file is read again; the others keep
//! the values of the start.

use std::fmt;
use std::path::{Path, PathBuf};

use serde::Serialize;
use toml::{Table, Value};

use super::{Config, ConfigError};

/// The file of a configuration, with its keys and values as it had them.
#[derive(Clone)]
pub struct Source {
    /// The path of the file.
    pub path: PathBuf,
    table: Table,
    /// The keys and values at the start of the service.
    started: Table,
}

impl fmt::Debug for Source {
    /// Prints the path only, because values may be secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Source").field("path", &self.path).finish_non_exhaustive()
    }
}

impl Source {
    /// Reads the keys and values of a text that was read as a configuration already.
    pub(super) fn of(path: &Path, text: &str) -> Self {
        let table: Table = text.parse().unwrap_or_default();
        Self { path: path.to_owned(), started: table.clone(), table }
    }

    /// Returns the keys and values as TOML, with `…` in the place of secrets.
    pub fn without_secrets(&self) -> String {
        let mut table = self.table.clone();
        let hide = |section: &mut Value, key: &str| {
            if let Some(value) = section.as_table_mut().and_then(|section| section.get_mut(key)) {
                *value = Value::String("…".into());
            }
        };
        if let Some(database) = table.get_mut("database") {
            hide(database, "url");
        }
        for webhook in table.get_mut("webhook").and_then(Value::as_array_mut).into_iter().flatten() {
            hide(webhook, "url");
            hide(webhook, "secret");
        }
        table.to_string()
    }
}

/// The changes that were found when the configuration was read again. The texts name keys, never values.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Reloaded {
    /// The keys whose new values are in force, such as `[detach] attempts`.
    pub changed: Vec<String>,
    /// The keys whose new values take effect at the next start.
    pub needs_restart: Vec<String>,
}

/// The sections that a running service follows as a whole.
const FOLLOWED: [&str; 8] =
    ["accelerators", "attach", "detach", "events", "flavor", "profile", "reconcile", "records"];

/// Whether a running service follows a key of a section.
fn is_followed(section: &str, key: Option<&str>) -> bool {
    FOLLOWED.contains(&section)
        || match (section, key) {
            ("pci", Some(key)) => key != "templates",
            ("identity", Some(key)) => key == "policy",
            ("log", Some(key)) => key == "levels",
            (_, _) => false,
        }
}

impl Reloaded {
    /// Compares two versions of a file.
    fn between(old: &Table, new: &Table) -> Self {
        let mut found = Self::default();
        let sections = old.keys().chain(new.keys().filter(|name| !old.contains_key(*name)));
        for section in sections {
            let (was, is) = (old.get(section), new.get(section));
            if was == is {
                continue;
            }
            let as_table = |value: Option<&Value>| {
                value.map_or_else(|| Some(Table::new()), |value| value.as_table().cloned())
            };
            match (as_table(was), as_table(is)) {
                (Some(was), Some(is)) => {
                    let keys = was.keys().chain(is.keys().filter(|key| !was.contains_key(*key)));
                    for key in keys.filter(|key| was.get(*key) != is.get(*key)) {
                        found.add(format!("[{section}] {key}"), is_followed(section, Some(key)));
                    }
                }
                (None, _) | (_, None) => found.add(format!("[[{section}]]"), is_followed(section, None)),
            }
        }
        found
    }

    fn add(&mut self, key: String, followed: bool) {
        if followed { self.changed.push(key) } else { self.needs_restart.push(key) }
    }
}

impl Config {
    /// Reads the file of this configuration again. Returns the configuration with the new values of the keys that a running
    /// service follows, and what has changed.
    ///
    /// # Errors
    /// Returns what is wrong with the new file, or says that there is no file.
    pub(crate) fn read_again(&self) -> Result<(Self, Reloaded), ConfigError> {
        let Some(source) = &self.source else {
            return Err(ConfigError::Value {
                key: "--config".into(),
                reason:
                    "the service was started without a configuration file, so there is none to read again"
                        .into(),
            });
        };
        let mut new = Self::load(&source.path)?;
        let mut found = Reloaded::default();
        if let Some(now) = &mut new.source {
            found.changed = Reloaded::between(&source.table, &now.table).changed;
            found.needs_restart = Reloaded::between(&source.started, &now.table).needs_restart;
            now.started.clone_from(&source.started);
        }
        // The secrets in files of their own are read at the start; this only checks them.
        let checked = new.clone().with_secrets()?;
        drop(checked);
        let pci = hotslot_model::rules::Pci { templates: self.pci.templates.clone(), ..new.pci };
        let identity = super::Identity { policy: new.identity.policy, ..self.identity.clone() };
        let log = super::Log { levels: new.log.levels, ..self.log.clone() };
        let followed = Self {
            pci,
            identity,
            log,
            attach: new.attach,
            detach: new.detach,
            reconcile: new.reconcile,
            events: new.events,
            records: new.records,
            accelerators: new.accelerators,
            flavor: new.flavor,
            profile: new.profile,
            source: new.source,
            outdated: found.needs_restart.clone(),
            ..self.clone()
        };
        Ok((followed, found))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_name_their_keys_and_never_their_values() {
        let old = "[api]\nqueue = 1\n[detach]\nattempts = 2\n[[webhook]]\nname = \"w\"\nsecret = \"s3cret\"\n[pci]\nalias = []\n";
        let new = "[api]\nqueue = 2\nrate = 3\n[detach]\nattempts = 3\n[[webhook]]\nname = \"w\"\nsecret = \"an0ther\"\n[pci]\n\
                   templates = \"/x\"\nalias = [\"{}\"]\n[[flavor]]\nname = \"f\"\n";
        let found = Reloaded::between(&old.parse().unwrap(), &new.parse().unwrap());
        assert_eq!(found.changed, ["[detach] attempts", "[pci] alias", "[[flavor]]"]);
        assert_eq!(found.needs_restart, ["[api] queue", "[api] rate", "[pci] templates", "[[webhook]]"]);
        let source = Source::of(Path::new("/x.toml"), old);
        assert!(!format!("{source:?}").contains("s3cret"));
        let shown = source.without_secrets();
        assert!(shown.contains("name = \"w\"") && !shown.contains("s3cret"), "{shown}");
        assert_eq!(Reloaded::between(&source.table, &source.table), Reloaded::default());
    }
}
