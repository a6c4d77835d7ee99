//! `hotslot.toml`: one typed struct. Unknown keys are refused with the nearest known one.
//!
//! Every key is documented in `hotslot.example.toml`.

mod api;
mod read;
#[cfg(test)]
mod tests;
mod value;

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

pub use api::{
    Api, HostName, IDEMPOTENCY_KEYS, IdentityFrom, Listen, SOCKET, SOCKET_GROUP, SocketMode, unix_path,
};
use hotslot_model::hot_unplug::HotUnplug;
use hotslot_model::rules::Pci;
pub use read::ConfigError;
use serde::Deserialize;
pub use value::{Age, Seconds, Secret};

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
    /// What has ended.
    pub records: Records,
    /// Who is told what happens.
    pub webhook: Vec<Webhook>,
    /// Which accelerators there are by themselves.
    pub accelerators: Accelerators,
    /// Named sets of devices.
    pub flavor: Vec<Flavor>,
    /// The hosts; none means the local `qemu:///system`.
    pub hypervisor: Vec<Hypervisor>,
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
    /// A class in the words of [`PciClass::description`](hotslot_driver::pci::PciClass::description).
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

/// `[records]`
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Records {
    /// How long attachments, and what accelerators held, are kept after they have ended, from a second on.
    pub keep_ended: Age,
}

impl Default for Records {
    fn default() -> Self {
        Self { keep_ended: Age(Duration::from_secs(90 * 24 * 3600)) }
    }
}

/// `[accelerators]`
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Accelerators {
    /// Whether every device that may be given away is an accelerator too, under the device's UUID.
    pub discovered: bool,
    /// Who may make and change them, where callers have an identity.
    pub change: ChangedBy,
}

/// Who may make accelerators, and put their specs, attach and detach them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ChangedBy {
    /// The administrator.
    #[default]
    Admin,
    /// The members of the project that made one, too; the host's own use of it is the administrator's.
    Owner,
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

/// `[[hypervisor]]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hypervisor {
    /// The host's name in listings and records; it must stay the same.
    pub name: String,
    /// Any libvirt URI, or `sim:///path/to/dir`.
    pub uri: String,
}
