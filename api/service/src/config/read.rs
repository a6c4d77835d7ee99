//! Reads and checks the configuration file. Each error names the place and says what would be right.

use std::collections::HashSet;
use std::path::Path;
use std::time::Duration;

use hotslot_driver::pci::PciClass;
use hotslot_driver::text;
use hotslot_model::event::EventKind;
use hotslot_model::hot_unplug::HotUnplug;
use hotslot_model::json;
use hotslot_store::check_url;
use serde::Deserialize;
use toml::Spanned;
use toml::de::{DeString, DeTable, DeValue};

use super::place::{NAMES, key_at, line};
use super::{Config, Hypervisor, HypervisorMode, Source, access, collector_url, is_plain_name};
use crate::webhook;

/// A configuration that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read {path}")]
    Read {
        /// The path of the file.
        path: String,
        /// The error of the operating system.
        source: std::io::Error,
    },
    /// The file is not valid TOML, or its keys or types are wrong.
    #[error("{path}: {}{reason}", .line.map(|line| format!("line {line}: ")).unwrap_or_default())]
    Syntax {
        /// The path of the file.
        path: String,
        /// The line number, from 1; `None` when the error concerns the file as a whole.
        line: Option<usize>,
        /// What is wrong and what would be right, in one line. It never repeats the line, nor a text in the wrong
        /// place, which may be a password.
        reason: String,
    },
    /// A value cannot be used.
    #[error("{key}: {reason}")]
    Value {
        /// The key with its place, such as `[pci] device_spec[2]`.
        key: String,
        /// What is wrong and what would be right.
        reason: String,
    },
}

impl Config {
    /// Reads and checks a file.
    ///
    /// # Errors
    /// The first [`ConfigError`], which names the file and the place.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let name = path.display().to_string();
        let text = std::fs::read_to_string(path)
            .map_err(|source| ConfigError::Read { path: name.clone(), source })?;
        let source = Some(Source::of(path, &text));
        let config = Self::parse(&text).map_err(|error| match error {
            ConfigError::Syntax { line, reason, .. } => ConfigError::Syntax { path: name, line, reason },
            ConfigError::Value { key, reason } => {
                ConfigError::Value { key: format!("{name}: {key}"), reason }
            }
            other @ ConfigError::Read { .. } => other,
        })?;
        Ok(Self { source, ..config })
    }

    /// Reads and checks the text of a configuration file.
    ///
    /// # Errors
    /// The first [`ConfigError`], which names the place.
    pub fn parse(text: &str) -> Result<Self, ConfigError> {
        let config: Self =
            toml::from_str(text).map_err(|error| match renamed(&mut DeTable::parse_recoverable(text).0) {
                names if names.is_empty() => ConfigError::syntax("configuration", text, &error),
                mut names => names.remove(0).error("configuration", text),
            })?;
        config.problems().into_iter().next().map_or(Ok(config), Err)
    }

    /// Reads a file as far as possible and returns all its errors, where [`load`](Self::load) returns only the first.
    /// It does not check the entries of `[pci]`, which are checked as rules.
    pub fn examine(path: &Path) -> (Self, Vec<ConfigError>) {
        let name = path.display().to_string();
        let bytes = match std::fs::read(path) {
            Ok(bytes) => bytes,
            Err(source) => return (Self::default(), vec![ConfigError::Read { path: name, source }]),
        };
        match String::from_utf8(bytes) {
            Ok(text) => Self::examine_text(&name, &text),
            Err(error) => {
                let good = error.utf8_error().valid_up_to();
                let line = error.as_bytes()[..good].iter().filter(|byte| **byte == b'\n').count() + 1;
                let reason = "it is not UTF-8 text; save the file with this encoding".to_owned();
                (Self::default(), vec![ConfigError::Syntax { path: name, line: Some(line), reason }])
            }
        }
    }

    pub(super) fn examine_text(name: &str, text: &str) -> (Self, Vec<ConfigError>) {
        let problem = |error: &toml::de::Error| ConfigError::syntax(name, text, error);
        let (table, broken) = DeTable::parse_recoverable(text);
        if !broken.is_empty() {
            // After a syntax error the parser guesses, so report only the first error of each line, and use no values.
            let mut lines = HashSet::new();
            let first =
                |error: &&toml::de::Error| lines.insert(error.span().map(|span| line(text, span.start)));
            return (Self::default(), broken.iter().filter(first).map(problem).collect());
        }
        let span = table.span();
        let mut table = table;
        let renamed = renamed(&mut table);
        let (readable, mut errors) = readable(table.into_inner());
        let config = Self::of_table(Spanned::new(span, readable)).unwrap_or_else(|error| {
            errors.push(error);
            Self::default()
        });
        errors.sort_by_key(|error| error.span().map(|span| span.start));
        let mut problems: Vec<_> = errors.iter().map(problem).collect();
        problems.extend(renamed.iter().map(|key| key.error(name, text)));
        problems.extend(config.problems());
        (config, problems)
    }

    fn of_table(table: Spanned<DeTable<'_>>) -> Result<Self, toml::de::Error> {
        Self::deserialize(toml::Deserializer::from(table))
    }

    /// Returns all values that cannot be used, except entries of `[pci]`, which are checked as rules.
    pub(super) fn problems(&self) -> Vec<ConfigError> {
        let mut problems = Problems::default();
        for (key, reason) in self.api.tls_problems() {
            problems.add(key, reason);
        }
        if self.detach.attempts == 0 {
            problems.add("[detach] attempts", "a guest must be asked at least once".into());
        }
        self.check_webhooks(&mut problems);
        if let Some(Err(reason)) = self.trace.endpoint.as_deref().map(collector_url) {
            problems.add("[trace] endpoint", reason);
        }
        if self.trace.ca.as_ref().is_some_and(|file| !file.is_absolute()) {
            problems.add("[trace] ca", "it is not an absolute path".into());
        }
        if self.events.most == 0 {
            problems.add("[events] most", "at least one event must be kept".into());
        }
        self.check_detach_classes(&mut problems);
        for (key, reason) in access::problems(self).into_iter().chain(self.given_twice()) {
            problems.add(&key, reason);
        }
        for (key, time) in [
            ("[libvirt] keepalive_interval", self.libvirt.keepalive_interval),
            ("[reconcile] interval", self.reconcile.interval),
        ] {
            if time.0 < Duration::from_secs(1) {
                problems.add(key, "it is shorter than a second; write 1 or more".into());
            }
        }
        if let Err(reason) = check_url(&self.database.url) {
            problems.add("[database] url", reason);
        }
        self.check_hypervisors(&mut problems);
        let hosts: Vec<_> = self.hypervisors().into_iter().map(|hypervisor| hypervisor.name).collect();
        for (index, entry) in self.pci.unguarded.iter().enumerate() {
            if let Some(host) = entry.host.as_ref().filter(|host| !hosts.contains(host)) {
                let reason = format!("no host is called `{host}`; write one of {}", hosts.join(", "));
                problems.add(&format!("[pci] unguarded[{index}]"), reason);
            }
        }
        for (index, entry) in self.profile.iter().enumerate() {
            let host = entry.host.as_ref().filter(|host| !hosts.contains(host));
            let host = host.map(|host| {
                let host = text::escape(host);
                ("host".to_owned(), format!("no host is called `{host}`; write one of {}", hosts.join(", ")))
            });
            for (key, reason) in host.into_iter().chain(entry.problems()) {
                problems.add(&format!("[[profile]][{index}] {key}"), reason);
            }
        }
        problems.0
    }

    fn check_webhooks(&self, problems: &mut Problems) {
        let mut names = HashSet::new();
        for webhook in &self.webhook {
            let mut bad =
                |key: &str, reason| problems.add(&format!("[[webhook]] {}: {key}", webhook.name), reason);
            if !is_plain_name(&webhook.name) {
                bad("name", "write 1 to 64 letters, digits, `-`, `_` or `.`".into());
            }
            if !names.insert(&webhook.name) {
                bad("name", "another webhook has this name".into());
            }
            let in_file = webhook.url_file.is_some() && webhook.url.0.is_empty();
            if let Err(reason) = webhook::url(&webhook.url.0)
                && !in_file
            {
                bad("url", reason);
            }
            if webhook.ca.as_ref().is_some_and(|file| !file.is_absolute()) {
                bad("ca", "it is not an absolute path".into());
            }
            let in_file = webhook.secret_file.is_some() && webhook.secret.0.is_empty();
            if webhook.secret.0.len() < 16 && !in_file {
                bad("secret", "it has fewer than 16 bytes; `openssl rand -hex 32` generates one".into());
            }
            for kind in &webhook.kinds {
                if let Err(reason) = EventKind::known(kind) {
                    bad("kinds", reason);
                }
            }
            if webhook.attempts == 0 {
                bad("attempts", "an event must be posted at least once".into());
            }
        }
    }

    fn check_detach_classes(&self, problems: &mut Problems) {
        let classes = PciClass::descriptions();
        for (index, entry) in self.detach.class.iter().enumerate() {
            let mut bad =
                |key: &str, reason| problems.add(&format!("[[detach.class]][{index}] {key}"), reason);
            if !classes.contains(entry.class.as_str()) {
                let known: Vec<_> = classes.iter().copied().collect();
                let reason = format!("`{}` is not a class; write one of {}", entry.class, known.join(", "));
                bad("class", reason);
            }
            match entry.quiesce.first() {
                None if entry.hot_unplug == Some(HotUnplug::Quiesce) => {
                    let reason =
                        format!("hot_unplug = \"quiesce\" of class `{}` needs a command", entry.class);
                    bad("quiesce", reason);
                }
                Some(path) if !path.starts_with('/') => {
                    let reason =
                        format!("`{path}` is not an absolute path in the guest; write [\"/sbin/ip\", …]");
                    bad("quiesce", reason);
                }
                None | Some(_) => {}
            }
        }
    }

    fn check_hypervisors(&self, problems: &mut Problems) {
        let (mut names, mut uris) = (HashSet::new(), HashSet::new());
        for (index, hypervisor) in self.hypervisor.iter().enumerate() {
            let mut bad = |key: &str, reason| problems.add(&format!("[[hypervisor]][{index}] {key}"), reason);
            if hypervisor.name.trim().is_empty() {
                bad("name", "a host needs a name".into());
            }
            if let Err(reason) = text::visible(&hypervisor.name) {
                bad("name", reason);
            }
            if !names.insert(&hypervisor.name) {
                bad("name", format!("two hosts are called `{}`", hypervisor.name));
            }
            if !uris.insert(&hypervisor.uri) {
                let reason = format!("two hosts have the URI `{}`; configure each host once", hypervisor.uri);
                bad("uri", reason);
            }
            if !hypervisor.uri.contains("://") {
                let reason = format!(
                    "`{}` is not a URI; write a libvirt URI such as qemu:///system, or sim:///path/to/dir",
                    hypervisor.uri
                );
                bad("uri", reason);
            }
        }
    }

    /// Returns the configured hosts, or the local one when none is configured.
    pub fn hypervisors(&self) -> Vec<Hypervisor> {
        if self.hypervisor.is_empty() {
            vec![Hypervisor {
                name: "localhost".into(),
                uri: "qemu:///system".into(),
                mode: HypervisorMode::Normal,
            }]
        } else {
            self.hypervisor.clone()
        }
    }
}

/// The values of a configuration that cannot be used.
#[derive(Default)]
struct Problems(Vec<ConfigError>);

impl Problems {
    fn add(&mut self, key: &str, reason: String) {
        self.0.push(ConfigError::Value { key: key.into(), reason });
    }
}

impl ConfigError {
    fn syntax(path: &str, text: &str, error: &toml::de::Error) -> Self {
        let hint = nearest(error.message()).map(|known| format!("; did you mean `{known}`?"));
        let message = json::plain(&without_values(error.message().trim_end())).replace('\n', ", ");
        let message = message.replace("an object", "a table");
        // The parser calls a date a map, but only a date begins with a digit.
        let value = error.span().and_then(|span| text.get(span));
        let message = match message.strip_suffix("found a table") {
            Some(expected)
                if value.is_some_and(|value| value.starts_with(|first: char| first.is_ascii_digit())) =>
            {
                format!("{expected}found a date or time")
            }
            _ => message,
        };
        // An integer that is out of range is left out like every value.
        let of_range =
            message.strip_suffix(", found an integer").filter(|it| it.starts_with("expected an integer"));
        let message = of_range.map_or(message.clone(), str::to_owned);
        // The parser names an unknown key itself, and of a wrong value only what would be right.
        let is_of_value = !message.starts_with("unknown key") && DeTable::parse(text).is_ok();
        let key = error.span().filter(|_| is_of_value);
        let key = key.and_then(|span| key_at(text, span.start)).map(|key| format!("{key}: "));
        let several = key.as_deref().filter(|_| message == "expected a list, found a table");
        let several = several.map(|key| {
            let name = key.trim_end_matches(": ").replace("] ", ".").replace('[', "");
            format!("; write [[{name}]] for each entry")
        });
        let twice = error.span().filter(|_| message == "duplicate key").and_then(|span| text.get(span));
        let message = twice.map_or(message.clone(), |key| format!("duplicate key `{}`", text::escape(key)));
        Self::Syntax {
            path: path.to_owned(),
            line: error.span().map(|span| line(text, span.start)),
            reason: [several.as_deref(), hint.as_deref()]
                .into_iter()
                .flatten()
                .fold(key.unwrap_or_default() + &message, |reason, advice| reason + advice),
        }
    }
}

/// Removes from a message of serde the value that it quotes (`invalid type: string "…", expected …`), and from URLs the
/// user name and password.
fn without_values(message: &str) -> String {
    let quoted = message.starts_with("invalid ").then(|| message.rsplit_once(", expected")).flatten();
    let message = match quoted.and_then(|(found, right)| Some((found.split_once(['"', '`'])?.0, right))) {
        Some((found, right)) => format!("{}, expected{right}", found.trim_end()),
        None => message.to_owned(),
    };
    let mut shown = String::new();
    let mut rest = message.as_str();
    while let Some((before, after)) = rest.split_once("://") {
        shown += before;
        shown += "://";
        let end = after.find(|letter: char| letter == '/' || letter.is_whitespace()).unwrap_or(after.len());
        rest = match after[..end].rfind('@') {
            Some(at) => {
                shown += "…";
                &after[at..]
            }
            None => after,
        };
    }
    shown + rest
}

/// A key that the file also has under another name.
struct Renamed {
    /// The byte offset of the key.
    start: usize,
    key: String,
    /// The name that comes first in the file.
    first: String,
}

impl Renamed {
    fn error(&self, path: &str, text: &str) -> ConfigError {
        let line = line(text, self.start);
        let reason = format!(
            "`{}` is another name of `{}`, which is given too; write all entries under one of them",
            self.key, self.first
        );
        ConfigError::Syntax { path: path.into(), line: Some(line), reason }
    }
}

/// Returns a warning for each key of a file that has an earlier name of Nova's, which a later version may not read.
pub fn earlier_names(source: &str) -> Vec<String> {
    let (table, _) = DeTable::parse_recoverable(source);
    let Some(DeValue::Table(pci)) = table.get_ref().get("pci").map(Spanned::get_ref) else {
        return Vec::new();
    };
    let of = |names: &[&str]| {
        let (current, earlier) = names.split_first()?;
        let (key, _) = pci.iter().find(|(key, _)| earlier.contains(&&**key.get_ref()))?;
        let line = line(source, key.span().start);
        Some(format!("line {line}: [pci] {} is an earlier name; write {current}", key.get_ref()))
    };
    NAMES.iter().filter_map(|names| of(names)).collect()
}

/// Removes from `[pci]` the keys that are other names of keys before them, and returns the removed ones.
fn renamed(table: &mut Spanned<DeTable<'_>>) -> Vec<Renamed> {
    let Some(DeValue::Table(pci)) = table.get_mut().get_mut("pci").map(Spanned::get_mut) else {
        return Vec::new();
    };
    let mut renamed = Vec::new();
    for names in NAMES {
        let given = pci.keys().filter(|key| names.contains(&&**key.get_ref()));
        let mut given: Vec<_> = given.map(|key| (key.span().start, key.get_ref().to_string())).collect();
        given.sort();
        if let Some(((_, first), others)) = given.split_first() {
            for (start, key) in others {
                pci.remove(key.as_str());
                renamed.push(Renamed { start: *start, key: key.clone(), first: first.clone() });
            }
        }
    }
    renamed
}

/// Separates a table into the keys whose values can be read, each on its own, and the errors of the others.
fn readable(table: DeTable<'_>) -> (DeTable<'_>, Vec<toml::de::Error>) {
    let (mut good, mut errors) = (DeTable::new(), Vec::new());
    for (section, value) in table {
        let error = match alone(&section, value.clone()) {
            Ok(_) => {
                good.insert(section, value);
                continue;
            }
            Err(error) => error,
        };
        let span = value.span();
        let of_keys = |keys| Spanned::new(span.clone(), DeValue::Table(keys));
        let known = alone(&section, of_keys(DeTable::new())).is_ok();
        let (DeValue::Table(keys), true) = (value.into_inner(), known) else {
            errors.push(error);
            continue;
        };
        let mut kept = DeTable::new();
        for (key, value) in keys {
            let one = DeTable::from_iter([(key.clone(), value.clone())]);
            match alone(&section, of_keys(one)) {
                Ok(_) => drop(kept.insert(key, value)),
                Err(error) => errors.push(error),
            }
        }
        let kept = of_keys(kept);
        good.insert(section, kept);
    }
    (good, errors)
}

/// Reads a configuration that has only one key.
fn alone<'i>(key: &Spanned<DeString<'i>>, value: Spanned<DeValue<'i>>) -> Result<Config, toml::de::Error> {
    let table = DeTable::from_iter([(key.clone(), value)]);
    Config::of_table(Spanned::new(key.span(), table))
}

/// Returns the key that was probably meant, from serde's "unknown field `a`, expected one of `b`, `c`".
fn nearest(message: &str) -> Option<String> {
    if !message.starts_with("unknown field") {
        return None;
    }
    let mut words = message.split('`').skip(1).step_by(2);
    let unknown = words.next()?;
    let like = |known: &&str| strsim::jaro_winkler(unknown, known);
    words.max_by(|a, b| like(a).total_cmp(&like(b))).map(str::to_owned)
}

impl From<hotslot_model::rules::Problem> for ConfigError {
    fn from(problem: hotslot_model::rules::Problem) -> Self {
        Self::Value { key: problem.place, reason: problem.error.to_string() }
    }
}
