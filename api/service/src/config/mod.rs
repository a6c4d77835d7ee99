//! `hotslot.toml` as one typed struct. An unknown key is refused; the error names the known key nearest to it.
//!
//! Every key is documented in `hotslot.example.toml`.

mod access;
mod api;
mod identity;
mod keystone;
mod log;
mod place;
mod policy_file;
mod quota;
mod read;
mod schema;
mod secret_file;
mod secrets;
mod source;
#[cfg(test)]
mod tests;
mod trace;
mod value;
mod warnings;

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

pub use api::{
    Api, ClientCertificates, HostName, IDEMPOTENCY_KEYS, IdentityFrom, Listen, SOCKET, SOCKET_GROUP,
    SocketMode, Tls, unix_path,
};
use hotslot_model::hot_unplug::HotUnplug;
use hotslot_model::rules::{Pci, Profile};
pub use identity::{Account, Identity, Local, known_role};
pub use keystone::{Credential, Keystone, expect_private, is_of_this_machine, keystone_url};
pub use log::{Levels, Log, LogFormat};
pub use place::line_of;
pub use policy_file::PolicyFile;
pub use quota::Quota;
pub use read::{ConfigError, earlier_names};
pub use schema::schema;
use schemars::JsonSchema;
pub use secret_file::SecretFile;
use serde::Deserialize;
pub use source::{Reloaded, Source};
pub use trace::Trace;
pub(crate) use trace::collector_url;
pub use value::{Age, Seconds, Secret, duration, is_plain_name};

/// The whole configuration.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The REST API.
    pub api: Api,
    /// Who may use the API.
    pub identity: Identity,
    /// The database.
    pub database: Database,
    /// Which devices are assignable, and the aliases by which they are requested.
    pub pci: Pci,
    /// How devices are plugged.
    pub attach: Attach,
    /// How devices are unplugged.
    pub detach: Detach,
    /// How often the records are compared with the hosts.
    pub reconcile: Reconcile,
    /// The time limits and keepalive of libvirt connections.
    pub libvirt: Libvirt,
    /// How long and how many events are kept.
    pub events: Events,
    /// How long ended assignments are kept.
    pub records: Records,
    /// The webhooks to which events are posted.
    pub webhook: Vec<Webhook>,
    /// Which devices are accelerators, and which callers may change accelerators.
    pub accelerators: Accelerators,
    /// How much of each resource a project may use.
    pub quota: Quota,
    /// Named sets of devices.
    pub flavor: Vec<Flavor>,
    /// How many VFs the PFs of the hosts have, and of which vGPU types and on which drivers.
    pub profile: Vec<Profile>,
    /// The hosts. An empty list means the local `qemu:///system`.
    pub hypervisor: Vec<Hypervisor>,
    /// How the log is written.
    pub log: Log,
    /// Where traces are sent.
    pub trace: Trace,
    /// The file; `None` for a configuration that was not read from a file.
    #[serde(skip)]
    pub source: Option<Source>,
    /// The keys that the file has with values for the next start.
    #[serde(skip)]
    pub outdated: Vec<String>,
}

/// `[database]`
#[derive(Clone, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Database {
    /// `sqlite:///path` or `postgres://user:password@host/database`.
    pub url: String,
    /// A file that has the URL, instead of `url`.
    pub url_file: Option<SecretFile>,
}

impl Default for Database {
    /// A SQLite file in systemd's `$STATE_DIRECTORY`, or in `/var/lib/hotslot` when that is not set.
    fn default() -> Self {
        let directories = std::env::var("STATE_DIRECTORY").unwrap_or_default();
        let directory = directories.split(':').next().filter(|first| !first.is_empty());
        let directory = directory.unwrap_or("/var/lib/hotslot");
        Self { url: format!("sqlite://{directory}/hotslot.db"), url_file: None }
    }
}

impl fmt::Debug for Database {
    /// Prints only the scheme, because a database URL may contain a password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = self.url.split(':').next().unwrap_or_default();
        let url = format_args!("\"{scheme}:…\"");
        f.debug_struct("Database").field("url", &url).field("url_file", &self.url_file).finish()
    }
}

/// `[[flavor]]`
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Flavor {
    /// The name, 1 to 255 characters, unique among the flavors.
    pub name: String,
    /// The id in the API; without it, the name.
    pub id: Option<String>,
    /// Nova's extra specs. Only `pci_passthrough:alias` and `hw:pci_numa_affinity_policy` are used.
    #[serde(default)]
    pub extra_specs: BTreeMap<String, String>,
}

/// `[attach]`
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Attach {
    /// How the address of a device in the guest is verified.
    pub verify: Verify,
    /// Whether a device that the host cannot reset is refused. Such a device may show data of one guest to the next.
    pub require_reset: bool,
}

/// How the address of a device in the guest is verified.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Verify {
    /// By the guest's agent, if the guest has one.
    #[default]
    Agent,
    /// By QEMU's monitor. libvirt then marks the domain as tainted (custom-monitor).
    Monitor,
    /// Not at all: addresses stay `computed`.
    Off,
}

/// `[detach]`
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Detach {
    /// How often a guest is asked to release a device, at least 1.
    pub attempts: u32,
    /// How long each attempt waits, in seconds. It is also the time limit of a quiesce command.
    pub timeout: Seconds,
    /// Whether running guests are asked to release devices.
    pub hot_unplug: HotUnplug,
    /// Settings for the devices of a class; the first entry of a class counts.
    pub class: Vec<DetachClass>,
}

/// `[[detach.class]]`
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DetachClass {
    /// A class of PCI functions, such as `network controller`.
    pub class: String,
    /// Replaces `hot_unplug` of `[detach]`.
    pub hot_unplug: Option<HotUnplug>,
    /// A command that the guest's agent runs before the guest is asked to release a device: an absolute path and
    /// arguments, in which `{address}` stands for the device's address in the guest. Empty for no command.
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
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Reconcile {
    /// The time between two full comparisons, at least 1 second. Events are processed at once in any case.
    pub interval: Seconds,
}

impl Default for Reconcile {
    fn default() -> Self {
        Self { interval: Seconds(Duration::from_secs(300)) }
    }
}

/// `[libvirt]`
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Libvirt {
    /// The time between two keepalive messages, at least 1 second.
    pub keepalive_interval: Seconds,
    /// How many keepalive messages may stay unanswered before the connection counts as lost.
    pub keepalive_count: u32,
    /// The time limit of a call that only reads.
    pub call_timeout: Seconds,
    /// The time limit of a call that changes something, such as an attach or detach.
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
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Events {
    /// How long an event is kept, at least 1 second.
    pub keep: Age,
    /// The maximum number of events that are kept, whatever their age; at least 1.
    pub most: u32,
}

impl Default for Events {
    fn default() -> Self {
        Self { keep: Age(Duration::from_secs(90 * 24 * 3600)), most: 1_000_000 }
    }
}

/// `[records]`
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Records {
    /// How long attachments, bindings and mediated devices are kept after they have ended, at least 1 second.
    pub keep_ended: Age,
}

impl Default for Records {
    fn default() -> Self {
        Self { keep_ended: Age(Duration::from_secs(90 * 24 * 3600)) }
    }
}

/// `[accelerators]`
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Accelerators {
    /// Whether every assignable device is also an accelerator, with the UUID of the device.
    pub discovered: bool,
    /// Which callers may create and change accelerators, if callers have an identity.
    pub change: ChangedBy,
}

/// Which callers may create accelerators, change their specs, and attach and detach them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ChangedBy {
    /// Only the administrator.
    #[default]
    Admin,
    /// Also members of the project that owns an accelerator. Only the administrator may bind it for the host itself.
    Owner,
}

/// `[[webhook]]`
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Webhook {
    /// The name in records and paths: 1 to 64 letters, digits, `-`, `_` or `.`; unique among the webhooks.
    pub name: String,
    /// The URL to which events are posted: `https://host:port/path`, or `http://host:port/path` without encryption.
    #[serde(default)]
    pub url: Secret,
    /// A file that has the URL, instead of `url`.
    pub url_file: Option<SecretFile>,
    /// The PEM file of the authorities of the receiver's certificate. Without it, the authorities that the system trusts.
    pub ca: Option<PathBuf>,
    /// The key with which events are signed, at least 16 bytes.
    #[serde(default)]
    pub secret: Secret,
    /// A file that has the key, instead of `secret`.
    pub secret_file: Option<SecretFile>,
    /// The kinds of events that are posted, or the nouns that the kinds begin with. Empty for all events.
    #[serde(default)]
    pub kinds: Vec<String>,
    /// How many attempts are made to deliver an event before it becomes a dead letter, at least 1.
    #[serde(default = "Webhook::attempts")]
    pub attempts: u32,
    /// The time limit of each attempt, in seconds.
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

/// `[[hypervisor]]`
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Hypervisor {
    /// The host's name in lists and records. It must not change, because the records refer to it.
    pub name: String,
    /// Any libvirt URI, or `sim:///path/to/dir` for a simulated host.
    pub uri: String,
    /// Whether anything may be changed on the host.
    #[serde(default)]
    pub mode: HypervisorMode,
}

/// Whether anything may be changed on a host.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum HypervisorMode {
    /// Everything, as long as no administrator freezes or drains the host.
    #[default]
    Normal,
    /// Nothing: hotslot shows the host and follows it, but attaches and detaches nothing there.
    ReadOnly,
}
