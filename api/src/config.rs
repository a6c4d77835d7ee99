//! `hotslot.toml`: one typed struct. Unknown keys are refused with the nearest known one.
//!
//! Every key is documented in `hotslot.example.toml`.

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use hotslot_driver::pci::{PciAddress, PciClass};
use serde::{Deserialize, Deserializer};
use toml::Spanned;
use toml::de::{DeString, DeTable, DeValue};

use crate::attachment::HotUnplug;
use crate::store::EventKind;
use crate::store::is_postgres;
use crate::webhook;

/// The whole configuration.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The REST API.
    pub api: Api,
    /// The database.
    pub database: Database,
    /// Which devices may be given away, and by which names.
    pub pci: Pci,
    /// How devices are plugged.
    pub attach: Attach,
    /// How guests are asked to let devices go.
    pub detach: Detach,
    /// How records and hypervisors are kept in agreement.
    pub reconcile: Reconcile,
    /// How libvirt is talked to.
    pub libvirt: Libvirt,
    /// How long it is kept what happened.
    pub events: Events,
    /// Who is told what happens.
    pub webhook: Vec<Webhook>,
    /// Which accelerators there are by themselves.
    pub accelerators: Accelerators,
    /// Named sets of devices.
    pub flavor: Vec<Flavor>,
    /// The hosts; none means the local `qemu:///system`.
    pub hypervisor: Vec<Hypervisor>,
}

/// `[api]`
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Api {
    /// Where to listen: a loopback address with port, or `unix:/path`.
    pub listen: Listen,
    /// How many attaches and detaches may be under way or waiting on one host, at least 1; more are refused.
    pub queue: NonZeroU32,
    /// Who says who calls.
    pub identity: IdentityFrom,
    /// How long a POST with an `Idempotency-Key` is known when it is sent again, in seconds.
    pub idempotency_time: Seconds,
}

impl Api {
    const QUEUE: NonZeroU32 = NonZeroU32::new(100).unwrap();
}

/// How many `Idempotency-Key`s are known at most; of more, the oldest are forgotten.
pub const IDEMPOTENCY_KEYS: i64 = 100_000;

impl Default for Api {
    fn default() -> Self {
        Self {
            listen: Listen::Tcp(SocketAddr::from(([127, 0, 0, 1], 9774))),
            queue: Self::QUEUE,
            identity: IdentityFrom::None,
            idempotency_time: Seconds(Duration::from_secs(86_400)),
        }
    }
}

/// Who says who calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum IdentityFrom {
    /// Nobody: whoever reaches the socket is the administrator.
    None,
    /// A proxy in front, in the headers of keystonemiddleware.
    Headers,
}

/// Where the API listens. Nothing but this machine can reach it until there is identity.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Listen {
    /// A loopback address and port.
    Tcp(SocketAddr),
    /// A unix socket's path.
    Unix(PathBuf),
}

impl FromStr for Listen {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if let Some(path) = text.strip_prefix("unix:") {
            return if Path::new(path).is_absolute() {
                Ok(Self::Unix(path.into()))
            } else {
                Err(format!("`{text}` names no absolute path; write unix:/run/hotslot/api.sock"))
            };
        }
        let address: SocketAddr = text.parse().map_err(|_| {
            format!("`{text}` is neither an address with port (127.0.0.1:9774) nor a socket (unix:/path)")
        })?;
        if address.ip().is_loopback() {
            Ok(Self::Tcp(address))
        } else {
            Err(format!(
                "{address} can be reached from other machines, and hotslot asks nobody who they are yet; \
                 listen on 127.0.0.1, [::1] or unix:/path, and put what authenticates in front"
            ))
        }
    }
}

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => write!(f, "http://{address}"),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

impl<'de> Deserialize<'de> for Listen {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// `[database]`
#[derive(Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Database {
    /// `sqlite:///path` or `postgres://user:password@host/database`.
    pub url: String,
}

impl Default for Database {
    /// In systemd's state directory when it gives one, else in `/var/lib/hotslot`.
    fn default() -> Self {
        let directories = std::env::var("STATE_DIRECTORY").unwrap_or_default();
        let directory = directories.split(':').next().filter(|first| !first.is_empty());
        let directory = directory.unwrap_or("/var/lib/hotslot");
        Self { url: format!("sqlite://{directory}/hotslot.db") }
    }
}

impl fmt::Debug for Database {
    /// A database URL may carry a password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = self.url.split(':').next().unwrap_or_default();
        f.debug_struct("Database").field("url", &format_args!("\"{scheme}:…\"")).finish()
    }
}

/// `[pci]`
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Pci {
    /// Nova's `[pci] device_spec`, each a JSON object or a list of them. Empty: nothing is assignable.
    #[serde(alias = "passthrough_whitelist", alias = "pci_passthrough_whitelist")]
    pub device_spec: Vec<String>,
    /// Nova's `[pci] alias`, each a JSON object.
    #[serde(alias = "pci_alias")]
    pub alias: Vec<String>,
    /// Nova's option of this name: turns on the rules of `device_spec` that depend on it, and nothing else.
    pub report_in_placement: bool,
    /// Nova's option of this name: turns on the rules of `alias` that depend on it, and nothing else.
    pub pci_in_placement: bool,
    /// Facts of devices that no hypervisor knows.
    pub extra_info: Vec<ExtraInfo>,
    /// Functions that are offered although a guard says that the host needs them.
    pub unguarded: Vec<Unguarded>,
    /// A directory whose files replace the embedded templates of the same name.
    pub templates: Option<PathBuf>,
}

/// `[[pci.extra_info]]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExtraInfo {
    /// Which devices: `device_spec`'s ids, address and devname, a JSON object or a list of them.
    #[serde(rename = "match")]
    pub devices: String,
    /// What is to be said of them. All entries that match a device apply; the first one to say a key wins.
    pub values: BTreeMap<String, String>,
}

/// A function whose guards are overridden: `0000:3b:00.0` on every host, or `node1/0000:3b:00.0`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unguarded {
    /// The host; none is every host.
    pub host: Option<String>,
    /// The function.
    pub address: PciAddress,
}

impl<'de> Deserialize<'de> for Unguarded {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let (host, address) = match text.rsplit_once('/') {
            Some((host, address)) => (Some(host.to_owned()), address),
            None => (None, text.as_str()),
        };
        let address = address.parse().map_err(|error| {
            serde::de::Error::custom(format!(
                "{error}; write 0000:3b:00.0, or HOST/0000:3b:00.0 for one host"
            ))
        })?;
        Ok(Self { host, address })
    }
}

impl Pci {
    /// Whether the guards of a function are overridden.
    pub fn is_unguarded(&self, host: &str, address: PciAddress) -> bool {
        let names = |entry: &Unguarded| {
            entry.address == address && entry.host.as_deref().is_none_or(|name| name == host)
        };
        self.unguarded.iter().any(names)
    }
}

/// `[[flavor]]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Flavor {
    /// Its name, 1 to 255 characters, of no other flavor.
    pub name: String,
    /// What the API calls it; the name when absent.
    pub id: Option<String>,
    /// Nova's extra specs; `pci_passthrough:alias` and `hw:pci_numa_affinity_policy` have a meaning here.
    #[serde(default)]
    pub extra_specs: BTreeMap<String, String>,
}

/// `[attach]`
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Attach {
    /// Who is asked to confirm the guest's address.
    pub verify: Verify,
    /// Whether a device that the host cannot reset is refused: what one guest left in it, the next would find.
    pub require_reset: bool,
}

/// Who confirms where the guest sees a device.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verify {
    /// The guest's agent, where there is one.
    #[default]
    Agent,
    /// QEMU's monitor. libvirt marks the domain as tainted (custom-monitor).
    Monitor,
    /// Nobody: addresses stay `computed`.
    Off,
}

/// `[detach]`
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Detach {
    /// How often a guest is asked, at least 1.
    pub attempts: u32,
    /// How long each attempt waits, and a quiesce command may take, in seconds.
    pub timeout: Seconds,
    /// Whether running guests are asked for devices.
    pub hot_unplug: HotUnplug,
    /// What holds for devices of a class; the first entry of a class counts.
    pub class: Vec<DetachClass>,
}

/// `[[detach.class]]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DetachClass {
    /// A class in the words of [`PciClass::description`].
    pub class: String,
    /// In place of what holds for all.
    pub hot_unplug: Option<HotUnplug>,
    /// A command that the guest's agent runs before the guest is asked: an absolute path and its arguments, in which
    /// `{address}` is the device's address in the guest. Empty: none.
    #[serde(default)]
    pub quiesce: Vec<String>,
}

impl Default for Detach {
    fn default() -> Self {
        Self {
            attempts: 8,
            timeout: Seconds(Duration::from_secs(20)),
            hot_unplug: HotUnplug::Yes,
            class: Vec::new(),
        }
    }
}

/// `[reconcile]`
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Reconcile {
    /// Seconds between two comparisons of everything; events are followed at once in any case.
    pub interval: Seconds,
}

impl Default for Reconcile {
    fn default() -> Self {
        Self { interval: Seconds(Duration::from_secs(300)) }
    }
}

/// `[libvirt]`
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Libvirt {
    /// Seconds between two keepalive messages.
    pub keepalive_interval: Seconds,
    /// How many of them may stay unanswered.
    pub keepalive_count: u32,
    /// Seconds that a call which only reads may take.
    pub call_timeout: Seconds,
    /// Seconds that an attach or detach call may take.
    pub attach_timeout: Seconds,
}

impl Default for Libvirt {
    fn default() -> Self {
        Self {
            keepalive_interval: Seconds(Duration::from_secs(5)),
            keepalive_count: 3,
            call_timeout: Seconds(Duration::from_secs(30)),
            attach_timeout: Seconds(Duration::from_secs(120)),
        }
    }
}

/// `[events]`
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Events {
    /// How long an event is kept, from a second on.
    pub keep: Age,
    /// How many events are kept at most, whatever their age; from 1 on.
    pub most: u32,
}

impl Default for Events {
    fn default() -> Self {
        Self { keep: Age(Duration::from_secs(90 * 24 * 3600)), most: 1_000_000 }
    }
}

/// `[accelerators]`
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Accelerators {
    /// Whether every device that may be given away is an accelerator too, under the device's UUID.
    pub discovered: bool,
}

/// `[[webhook]]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Webhook {
    /// Its name in records and paths: 1 to 64 letters, digits, `-`, `_` or `.`.
    pub name: String,
    /// Where events are posted: `http://host:port/path`.
    pub url: Secret,
    /// What events are signed with, 16 bytes or more.
    pub secret: Secret,
    /// The kinds of events that it is told, or the nouns that they begin with; none is all.
    #[serde(default)]
    pub kinds: Vec<String>,
    /// How often an event is tried before it is a dead letter, at least 1.
    #[serde(default = "Webhook::attempts")]
    pub attempts: u32,
    /// How long each attempt may take, in seconds.
    #[serde(default = "Webhook::timeout")]
    pub timeout: Seconds,
}

impl Webhook {
    fn attempts() -> u32 {
        16
    }

    fn timeout() -> Seconds {
        Seconds(Duration::from_secs(10))
    }
}

/// A text that is not printed.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct Secret(pub String);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("…")
    }
}

/// `[[hypervisor]]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hypervisor {
    /// The host's name in listings and records; it must stay the same.
    pub name: String,
    /// Any libvirt URI, or `sim:///path/to/dir`.
    pub uri: String,
}

/// A length of time, written as seconds: 20, or 0.5.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seconds(pub Duration);

impl<'de> Deserialize<'de> for Seconds {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged, expecting = "a number of seconds, such as 20 or 0.5")]
        enum Number {
            Whole(u64),
            Fraction(f64),
        }
        let seconds = match Number::deserialize(deserializer)? {
            Number::Whole(seconds) => seconds as f64,
            Number::Fraction(seconds) => seconds,
        };
        const DAY: f64 = 86_400.0;
        if seconds > 0.0 && seconds <= DAY {
            Ok(Self(Duration::from_secs_f64(seconds)))
        } else {
            Err(serde::de::Error::custom(format!("{seconds} is not above 0 and at most {DAY} seconds")))
        }
    }
}

/// A length of time with its unit: `90d`, `12h`, `30m` or `45s`; at most 100 years.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Age(pub Duration);

impl FromStr for Age {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const MOST: u64 = 36_500 * 24 * 3600;
        let seconds = text.char_indices().last().and_then(|(unit, letter)| {
            let number: u64 = text[..unit].parse().ok()?;
            number.checked_mul(match letter {
                's' => 1,
                'm' => 60,
                'h' => 3600,
                'd' => 24 * 3600,
                _ => return None,
            })
        });
        let seconds = seconds.filter(|seconds| (1..=MOST).contains(seconds));
        seconds
            .map(|seconds| Self(Duration::from_secs(seconds)))
            .ok_or_else(|| format!("`{text}` is no length of time; write 90d, 12h, 30m or 45s"))
    }
}

impl<'de> Deserialize<'de> for Age {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// A configuration that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read {path}")]
    Read {
        /// The file.
        path: String,
        /// Why.
        source: std::io::Error,
    },
    /// The file is not what it should be.
    #[error("{path}: {report}")]
    Syntax {
        /// The file.
        path: String,
        /// The line in it, from 1; none when the file as a whole lacks something.
        line: Option<usize>,
        /// What is wrong and what would be right, in one line.
        reason: String,
        /// TOML's own report of it, with the line itself.
        report: String,
    },
    /// A value cannot be used.
    #[error("{key}: {reason}")]
    Value {
        /// The key, with its place: `[pci] device_spec[2]`.
        key: String,
        /// What is wrong and what would be right.
        reason: String,
    },
}

impl Config {
    /// Reads and checks a file.
    ///
    /// # Errors
    /// [`ConfigError`] with the file, the place, and what would be right.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let name = path.display().to_string();
        let text = std::fs::read_to_string(path)
            .map_err(|source| ConfigError::Read { path: name.clone(), source })?;
        Self::parse(&text).map_err(|error| match error {
            ConfigError::Syntax { line, reason, report, .. } => {
                ConfigError::Syntax { path: name, line, reason, report }
            }
            ConfigError::Value { key, reason } => {
                ConfigError::Value { key: format!("{name}: {key}"), reason }
            }
            other @ ConfigError::Read { .. } => other,
        })
    }

    /// Reads and checks a text.
    ///
    /// # Errors
    /// [`ConfigError`] with the place, and what would be right.
    pub fn parse(text: &str) -> Result<Self, ConfigError> {
        let config: Self =
            toml::from_str(text).map_err(|error| match renamed(&mut DeTable::parse_recoverable(text).0) {
                names if names.is_empty() => ConfigError::syntax("configuration", text, &error),
                mut names => names.remove(0).error("configuration", text),
            })?;
        config.problems().into_iter().next().map_or(Ok(config), Err)
    }

    /// What can be read of a file, and everything that is wrong with it: not only the first, as
    /// [`load`](Self::load) says it. What is wrong with the entries of `[pci]` is the inventory's to say.
    pub fn examine(path: &Path) -> (Self, Vec<ConfigError>) {
        let name = path.display().to_string();
        match std::fs::read_to_string(path) {
            Ok(text) => Self::examine_text(&name, &text),
            Err(source) => (Self::default(), vec![ConfigError::Read { path: name, source }]),
        }
    }

    fn examine_text(name: &str, text: &str) -> (Self, Vec<ConfigError>) {
        let told = |error: &toml::de::Error| ConfigError::syntax(name, text, error);
        let (table, broken) = DeTable::parse_recoverable(text);
        if !broken.is_empty() {
            // What follows the first mistake on a line, and the values, are guesses from here on.
            let mut lines = HashSet::new();
            let first =
                |error: &&toml::de::Error| lines.insert(error.span().map(|span| line(text, span.start)));
            return (Self::default(), broken.iter().filter(first).map(told).collect());
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
        let mut problems: Vec<_> = errors.iter().map(told).collect();
        problems.extend(renamed.iter().map(|key| key.error(name, text)));
        problems.extend(config.problems());
        (config, problems)
    }

    fn of_table(table: Spanned<DeTable<'_>>) -> Result<Self, toml::de::Error> {
        Self::deserialize(toml::Deserializer::from(table))
    }

    /// Every value that cannot be used, but for the entries of `[pci]`, which the inventory reads.
    fn problems(&self) -> Vec<ConfigError> {
        let mut problems = Vec::new();
        let mut bad =
            |key: &str, reason: String| problems.push(ConfigError::Value { key: key.into(), reason });
        if self.detach.attempts == 0 {
            bad("[detach] attempts", "a guest must be asked at least once".into());
        }
        let mut webhooks = HashSet::new();
        for webhook in &self.webhook {
            let mut bad = |key: &str, reason| bad(&format!("[[webhook]] {}: {key}", webhook.name), reason);
            let plain = |letter: char| letter.is_ascii_alphanumeric() || "-_.".contains(letter);
            if !(1..=64).contains(&webhook.name.len()) || !webhook.name.chars().all(plain) {
                bad("name", "write 1 to 64 letters, digits, `-`, `_` or `.`".into());
            }
            if !webhooks.insert(&webhook.name) {
                bad("name", "two webhooks are called so".into());
            }
            if let Err(reason) = webhook::url(&webhook.url.0) {
                bad("url", reason);
            }
            if webhook.secret.0.len() < 16 {
                bad("secret", "less than 16 bytes can be guessed; `openssl rand -hex 32` makes one".into());
            }
            for kind in &webhook.kinds {
                if let Err(reason) = EventKind::known(kind) {
                    bad("kinds", reason);
                }
            }
            if webhook.attempts == 0 {
                bad("attempts", "an event must be tried at least once".into());
            }
        }
        if self.events.most == 0 {
            bad("[events] most", "at least one event must be kept".into());
        }
        let classes = PciClass::descriptions();
        for entry in &self.detach.class {
            if !classes.contains(entry.class.as_str()) {
                let known: Vec<_> = classes.iter().copied().collect();
                let reason = format!("`{}` is no class; write one of {}", entry.class, known.join(", "));
                bad("[[detach.class]] class", reason);
            }
            match entry.quiesce.first() {
                None if entry.hot_unplug == Some(HotUnplug::Quiesce) => {
                    let reason =
                        format!("hot_unplug = \"quiesce\" of class `{}` needs a command", entry.class);
                    bad("[[detach.class]] quiesce", reason);
                }
                Some(path) if !path.starts_with('/') => {
                    let reason =
                        format!("`{path}` is no absolute path in the guest; write [\"/sbin/ip\", …]");
                    bad("[[detach.class]] quiesce", reason);
                }
                None | Some(_) => {}
            }
        }
        let second = Duration::from_secs(1);
        for (key, time) in [
            ("[libvirt] keepalive_interval", self.libvirt.keepalive_interval),
            ("[reconcile] interval", self.reconcile.interval),
        ] {
            if time.0 < second {
                bad(key, "less than a second is too often; write 1 or more".into());
            }
        }
        if !self.database.url.starts_with("sqlite://") && !is_postgres(&self.database.url) {
            let right =
                "write sqlite:///var/lib/hotslot/hotslot.db or postgres://USER:PASSWORD@HOST/DATABASE";
            bad("[database] url", format!("it names neither SQLite nor PostgreSQL; {right}"));
        }
        let (mut names, mut uris) = (HashSet::new(), HashSet::new());
        for (index, hypervisor) in self.hypervisor.iter().enumerate() {
            let mut bad = |key: &str, reason| bad(&format!("[[hypervisor]][{index}] {key}"), reason);
            if hypervisor.name.trim().is_empty() {
                bad("name", "a host needs a name".into());
            }
            if !names.insert(&hypervisor.name) {
                bad("name", format!("two hosts are called `{}`", hypervisor.name));
            }
            if !uris.insert(&hypervisor.uri) {
                let reason =
                    format!("two hosts are at `{}`; its devices would be given twice", hypervisor.uri);
                bad("uri", reason);
            }
            if !hypervisor.uri.contains("://") {
                let reason = format!(
                    "`{}` is no URI; write a libvirt URI such as qemu:///system, or sim:///path/to/dir",
                    hypervisor.uri
                );
                bad("uri", reason);
            }
        }
        let hosts: Vec<_> = self.hypervisors().into_iter().map(|hypervisor| hypervisor.name).collect();
        for (index, entry) in self.pci.unguarded.iter().enumerate() {
            if let Some(host) = entry.host.as_ref().filter(|host| !hosts.contains(host)) {
                let reason = format!("no host is called `{host}`; write one of {}", hosts.join(", "));
                bad(&format!("[pci] unguarded[{index}]"), reason);
            }
        }
        problems
    }

    /// The configured hosts, or the local one when none is.
    pub fn hypervisors(&self) -> Vec<Hypervisor> {
        if self.hypervisor.is_empty() {
            vec![Hypervisor { name: "localhost".into(), uri: "qemu:///system".into() }]
        } else {
            self.hypervisor.clone()
        }
    }
}

impl ConfigError {
    fn syntax(path: &str, text: &str, error: &toml::de::Error) -> Self {
        let hint = nearest(error.message()).map(|known| format!("did you mean `{known}`?"));
        let with_hint = |said: String, between: &str| match &hint {
            Some(hint) => format!("{said}{between}{hint}"),
            None => said,
        };
        Self::Syntax {
            path: path.to_owned(),
            line: error.span().map(|span| line(text, span.start)),
            reason: with_hint(error.message().trim_end().replace('\n', ", "), "; "),
            report: with_hint(error.to_string().trim_end().to_owned(), "\n"),
        }
    }
}

/// The keys of `[pci]` that have several names, Nova's own first.
const NAMES: [&[&str]; 2] =
    [&["device_spec", "passthrough_whitelist", "pci_passthrough_whitelist"], &["alias", "pci_alias"]];

/// A key that stands beside one that is only another name of it.
struct Renamed {
    /// The byte at which it begins.
    start: usize,
    key: String,
    /// The one that comes before it.
    first: String,
}

impl Renamed {
    fn error(&self, path: &str, text: &str) -> ConfigError {
        let line = line(text, self.start);
        let reason = format!(
            "`{}` is another name of `{}`, which is given too; put all entries under one of them",
            self.key, self.first
        );
        ConfigError::Syntax {
            path: path.into(),
            line: Some(line),
            report: format!("line {line}: {reason}"),
            reason,
        }
    }
}

/// Takes out of `[pci]` the keys that are other names of ones that stand before them.
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

/// The line, from 1, that a byte of a text is on.
fn line(text: &str, byte: usize) -> usize {
    1 + text.bytes().take(byte).filter(|byte| *byte == b'\n').count()
}

/// The keys of a table whose values can be read, each looked at alone, and what is wrong with the others.
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

/// A configuration of one key.
fn alone<'i>(key: &Spanned<DeString<'i>>, value: Spanned<DeValue<'i>>) -> Result<Config, toml::de::Error> {
    let table = DeTable::from_iter([(key.clone(), value)]);
    Config::of_table(Spanned::new(key.span(), table))
}

/// serde's "unknown field `a`, expected one of `b`, `c`" → which of them was probably meant.
fn nearest(message: &str) -> Option<String> {
    if !message.starts_with("unknown field") {
        return None;
    }
    let mut words = message.split('`').skip(1).step_by(2);
    let unknown = words.next()?;
    let like = |known: &&str| strsim::jaro_winkler(unknown, known);
    words.max_by(|a, b| like(a).total_cmp(&like(b))).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(text: &str) -> String {
        Config::parse(text).unwrap_err().to_string()
    }

    #[test]
    fn an_empty_file_is_the_default() {
        let config = Config::parse("").unwrap();
        assert_eq!(config.api.listen.to_string(), "http://127.0.0.1:9774");
        assert_eq!(config.hypervisors()[0].uri, "qemu:///system");
        assert!(config.pci.device_spec.is_empty());
        assert_eq!((config.detach.attempts, config.detach.timeout.0.as_secs()), (8, 20));
    }

    #[test]
    fn an_unknown_key_is_refused_with_the_nearest_known_one() {
        let report = error("[api]\nlisen = '127.0.0.1:1'");
        assert!(report.contains("line 2"), "{report}");
        assert!(report.contains("did you mean `listen`?"), "{report}");
        assert!(error("[hypervisors]").contains("did you mean `hypervisor`?"));
        assert!(error("[pci]\ndevice_specs = []").contains("did you mean `device_spec`?"));
    }

    #[test]
    fn novas_old_names_of_the_lists_are_known() {
        for key in ["device_spec", "passthrough_whitelist", "pci_passthrough_whitelist"] {
            assert_eq!(Config::parse(&format!("[pci]\n{key} = ['{{}}']")).unwrap().pci.device_spec, ["{}"]);
        }
        for key in ["alias", "pci_alias"] {
            assert_eq!(Config::parse(&format!("[pci]\n{key} = ['{{}}']")).unwrap().pci.alias, ["{}"]);
        }
    }

    #[test]
    fn extra_info_is_a_map_of_strings() {
        let entry = "[[pci.extra_info]]\nmatch = '{}'\nvalues = ";
        let config = Config::parse(&format!("{entry}{{ switch = 'tor-3' }}")).unwrap();
        assert_eq!(config.pci.extra_info[0].values["switch"], "tor-3");
        assert!(error(&format!("{entry}{{ unit = 3 }}")).contains("expected a string"));
        assert!(error("[[pci.extra_info]]\nvalues = {}").contains("match"));
    }

    #[test]
    fn only_this_machine_can_be_served() {
        for good in ["127.0.0.1:9774", "[::1]:9774", "unix:/run/hotslot/api.sock"] {
            Config::parse(&format!("[api]\nlisten = '{good}'")).unwrap();
        }
        assert!(error("[api]\nlisten = '0.0.0.0:9774'").contains("other machines"));
        assert!(error("[api]\nlisten = 'unix:api.sock'").contains("absolute"));
        assert!(error("[api]\nlisten = 'localhost'").contains("127.0.0.1:9774"));
    }

    #[test]
    fn values_out_of_range_say_what_would_be_right() {
        for bad in ["90", "d", "0d", "1.5h", "-1d", "9w", "99999999999999999d", "1é", ""] {
            assert!(error(&format!("[events]\nkeep = '{bad}'")).contains("write 90d"), "{bad}");
        }
        assert_eq!(Config::parse("[events]\nkeep = '36h'").unwrap().events.keep.0.as_secs(), 129_600);
        assert!(error("[events]\nmost = 0").contains("at least one"));
        assert!(error("[detach]\nattempts = 0").contains("at least once"));
        assert!(error("[detach]\ntimeout = -1").contains("seconds"));
        assert!(error("[detach]\ntimeout = 'long'").contains("seconds"));
        assert!(error("[detach]\nhot_unplug = 'no'").contains("yes, quiesce, refuse"));
        let class = |more: &str| error(&format!("[[detach.class]]\n{more}"));
        assert!(class("class = 'gpu'").contains("display controller"));
        assert!(class("class = 'bridge'\nhot_unplug = 'quiesce'").contains("needs a command"));
        assert!(class("class = 'bridge'\nquiesce = ['ip']").contains("absolute path"));
        assert!(error("[database]\nurl = 'mysql://x'").contains("sqlite:///"));
        assert!(error("[[hypervisor]]\nname='a'\nuri='qemu'").contains("qemu:///system"));
        let unguarded =
            error("[pci]\nunguarded = ['nope/3b:00.0']\n[[hypervisor]]\nname='a'\nuri='sim:///x'");
        assert!(unguarded.ends_with("no host is called `nope`; write one of a"), "{unguarded}");
        let twice = error("[pci]\npassthrough_whitelist = []\ndevice_spec = []");
        assert!(
            twice.contains("line 3: `device_spec` is another name of `passthrough_whitelist`"),
            "{twice}"
        );
        assert!(
            error(
                "[[hypervisor]]\nname='a'\nuri='test:///default'\n[[hypervisor]]\nname='a'\nuri='sim:///x'"
            )
            .contains("two hosts")
        );
    }

    /// The line of each problem of a text, or its key.
    fn places(text: &str) -> Vec<String> {
        let (_, problems) = Config::examine_text("x.toml", text);
        let place = |problem| match problem {
            ConfigError::Syntax { line: Some(line), reason, .. } => {
                assert!(!reason.is_empty() && !reason.contains('\n'), "{reason}");
                line.to_string()
            }
            ConfigError::Value { key, .. } => key,
            other @ (ConfigError::Syntax { .. } | ConfigError::Read { .. }) => panic!("{other}"),
        };
        problems.into_iter().map(place).collect()
    }

    #[test]
    fn everything_that_is_wrong_is_told_and_the_rest_is_read() {
        for (text, expected) in [
            ("", &[][..]),
            (
                "[detach]\nattempts = 0\n[reconcile]\ninterval = 0.5",
                &["[detach] attempts", "[reconcile] interval"],
            ),
            ("[[hypervisor]]\nname = ''\nuri = 'x'", &["[[hypervisor]][0] name", "[[hypervisor]][0] uri"]),
            (
                "[detach]\ntimeout = -1\nattempt = 0\nattempts = 0\n[apis]\n[pci]\nalias = 3",
                &["2", "3", "5", "7", "[detach] attempts"],
            ),
            ("hypervisor = 3\nx = 4", &["1", "2"]),
            ("[pci]\nalias = []\npci_alias = []", &["3"]),
            ("[pci]\npassthrough_whitelist = []\ndevice_spec = []\nx = 1", &["4", "3"]),
            ("[pci]\nunguarded = ['3b:00.0', 'nope/3b:00.0']", &["[pci] unguarded[1]"]),
            ("[pci]\nunguarded = ['localhost/3b:00.0']", &[]),
            ("[api\n[detach]\nattempts = 0\nx = = 1", &["1", "4"]),
        ] {
            assert_eq!(places(text), expected, "{text}");
        }
        let (config, _) = Config::examine_text("x", "[pci]\ndevice_spec = ['{}']\nalias = 3\n[api]\nx = 1");
        assert_eq!(config.pci.device_spec, ["{}"]);
    }

    proptest::proptest! {
        #[test]
        fn whatever_is_loaded_has_no_problems_and_the_other_way_round(
            lines in proptest::collection::vec(
                proptest::sample::select(vec![
                    "[pci]", "[detach]", "[[hypervisor]]", "alias = []", "alias = 3", "attempts = 0",
                    "attempts = 2", "name = 'a'", "uri = 'test:///default'", "[", "= 1", "x = { y = [ 1",
                    "detach.timeout = 1", "\u{e9} = '\u{e9}'",
                ]),
                0..8,
            ),
        ) {
            let text = lines.join("\n");
            let (_, problems) = Config::examine_text("x", &text);
            proptest::prop_assert_eq!(Config::parse(&text).is_ok(), problems.is_empty(), "{:?}", problems);
        }
    }

    #[test]
    fn a_webhook_has_a_name_an_url_and_a_secret_that_is_not_printed() {
        let hook = |lines: &str| {
            format!(
                "[[webhook]]\nname = 'a'\nurl = 'http://127.0.0.1/t0ken'\nsecret = '0123456789abcdef'\n{lines}"
            )
        };
        let config = Config::parse(&hook("kinds = ['attachment', 'device.gone']")).unwrap();
        let printed = format!("{config:?}");
        assert!(!printed.contains("t0ken") && !printed.contains("0123456789abcdef"), "{printed}");
        for (text, why) in [
            (hook("kinds = ['attachments']"), "attachment.state"),
            (hook("attempts = 0"), "at least once"),
            (hook("").replace("'a'", "'a/b'"), "1 to 64"),
            (hook("").replace("http:", "https:"), "not spoken yet"),
            (hook("").replace("0123456789", "0"), "openssl rand"),
            (format!("{}{}", hook(""), hook("")), "called so"),
        ] {
            let said = error(&text);
            assert!(said.contains(why) && !said.contains("t0ken"), "{said}");
        }
    }

    #[test]
    fn a_password_is_not_printed() {
        let database = Database { url: "postgres://hotslot:secret@db/hotslot".into() };
        assert!(!format!("{database:?}").contains("secret"));
    }

    #[test]
    fn the_example_file_is_the_default_configuration() {
        let example = include_str!("../../hotslot.example.toml");
        Config::parse(example).unwrap();
        // Every commented key is a real one.
        let uncommented: String = example
            .lines()
            .map(|line| line.strip_prefix("#: ").unwrap_or(line))
            .collect::<Vec<_>>()
            .join("\n");
        Config::parse(&uncommented).unwrap();
    }
}
