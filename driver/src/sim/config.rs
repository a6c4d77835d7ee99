//! `host.toml`: what a directory of documents cannot say of a simulated host.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::de::IntoDeserializer as _;
use serde::{Deserialize, Deserializer, Serialize};

use crate::hypervisor::ErrorKind;
use crate::pci::PciAddress;

/// The file. `tests/data/hosts/small/host.toml` explains every key.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct HostConfig {
    pub(super) hostname: Option<String>,
    pub(super) hypervisor_version: Option<u64>,
    pub(super) libvirt_version: Option<u64>,
    /// The CPU socket of each NUMA node, from node 0.
    pub(super) node_sockets: Option<Vec<u32>>,
    /// Milliseconds that each call takes.
    pub(super) latency: BTreeMap<Operation, u64>,
    /// Milliseconds until the host drivers are back after a guest has stopped.
    pub(super) release_ms: u64,
    /// The host driver of a function whose document says `vfio-pci` because a guest has it.
    pub(super) driver: BTreeMap<PciAddress, String>,
    /// The functions that cannot be reset.
    pub(super) no_reset: BTreeSet<PciAddress>,
    /// Whether the host is another machine, whose files cannot be read from here.
    pub(super) remote: bool,
    /// How guests behave, by the domain's name.
    pub(super) guest: BTreeMap<String, Guest>,
    pub(super) fault: Vec<Fault>,
}

/// The port's calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Operation {
    Host,
    Devices,
    Device,
    NodeDetach,
    NodeReattach,
    NodeReset,
    MdevTypes,
    Mdevs,
    CreateMdev,
    DestroyMdev,
    Domains,
    Domain,
    Attach,
    Detach,
    Agent,
    Monitor,
}

impl Operation {
    /// Whether it changes something, or waits for a guest.
    pub(super) fn changes(self) -> bool {
        match self {
            Self::Attach
            | Self::Detach
            | Self::NodeDetach
            | Self::NodeReattach
            | Self::NodeReset
            | Self::CreateMdev
            | Self::DestroyMdev
            | Self::Agent
            | Self::Monitor => true,
            Self::Host
            | Self::Devices
            | Self::Device
            | Self::MdevTypes
            | Self::Mdevs
            | Self::Domains
            | Self::Domain => false,
        }
    }

    /// Whether libvirt gives it the domain for itself while it lasts.
    pub(super) fn is_job(self) -> bool {
        match self {
            Self::Attach | Self::Detach => true,
            Self::Host
            | Self::Devices
            | Self::Device
            | Self::NodeDetach
            | Self::NodeReattach
            | Self::NodeReset
            | Self::MdevTypes
            | Self::Mdevs
            | Self::CreateMdev
            | Self::DestroyMdev
            | Self::Domains
            | Self::Domain
            | Self::Agent
            | Self::Monitor => false,
        }
    }
}

/// How a guest behaves.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Guest {
    /// What it does when it is asked to let a device go.
    pub(super) unplug: Unplug,
    /// Milliseconds until it does so.
    pub(super) unplug_ms: u64,
    /// Milliseconds of boot in which it loses such requests.
    pub(super) boot_ms: u64,
    /// Whether its agent connects once it has booted.
    pub(super) agent: bool,
    /// What its agent answers, by command. Without an answer here the agent is away.
    pub(super) agent_answers: BTreeMap<String, String>,
    /// The files that its agent reads for the host, by their paths. Any other is not there.
    pub(super) agent_files: BTreeMap<String, String>,
    /// It has no definition that outlives its run.
    pub(super) transient: bool,
    /// The drivers of its host devices can save and migrate them.
    pub(super) migratable: bool,
}

impl Default for Guest {
    fn default() -> Self {
        Self {
            unplug: Unplug::Normal,
            unplug_ms: 0,
            boot_ms: 0,
            agent: true,
            agent_answers: BTreeMap::new(),
            agent_files: BTreeMap::new(),
            transient: false,
            migratable: false,
        }
    }
}

/// What a guest does when it is asked to let a device go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Unplug {
    /// It lets go.
    Normal,
    /// It says no.
    Refuse,
    /// It never answers: no hot-plug driver. A reboot completes the removal.
    Ignore,
}

/// A scripted fault.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Fault {
    /// The calls that count; all of them when none.
    #[serde(deserialize_with = "operation_or_any")]
    operation: Option<Operation>,
    pub(super) action: Action,
    #[serde(default)]
    pub(super) at: At,
    /// The first call that it befalls, counted from 1 when the fault is set.
    #[serde(default = "one")]
    nth: u32,
    /// How many calls it befalls.
    #[serde(default = "one")]
    times: u32,
    /// The domain's name; any when absent.
    domain: Option<String>,
    /// `hang` and `away`: how long. A hang without it lasts until `fault clear`.
    ms: Option<u64>,
    #[serde(default = "refused", with = "KindName")]
    pub(super) kind: ErrorKind,
    pub(super) text: Option<String>,
    /// The calls that it has seen.
    #[serde(skip)]
    seen: u32,
}

/// What a fault does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Action {
    /// The call fails.
    Fail,
    /// The call hangs.
    Hang,
    /// The connection breaks.
    Away,
    /// The call's event is not heard.
    LoseEvent,
    /// The guest's QEMU is gone.
    Crash,
    /// This process is killed, as by `kill -9`.
    Kill,
}

/// When a fault strikes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum At {
    /// Nothing has been done.
    #[default]
    Before,
    /// An attach to both documents has done the live one.
    Between,
    /// All has been done.
    After,
}

impl Fault {
    pub(super) fn duration(&self) -> Option<Duration> {
        self.ms.map(Duration::from_millis)
    }

    /// Counts a call, and says whether the fault befalls it.
    fn befalls(&mut self, operation: Operation, domain: Option<&str>) -> bool {
        let other = self.operation.is_some_and(|named| named != operation);
        if other || (self.domain.is_some() && self.domain.as_deref() != domain) {
            return false;
        }
        self.seen = self.seen.saturating_add(1);
        self.seen >= self.nth && self.seen - self.nth < self.times
    }
}

/// Counts a call in every fault, and returns the first that befalls it.
pub(super) fn take_fault(faults: &mut [Fault], operation: Operation, domain: Option<&str>) -> Option<Fault> {
    let mut taken = None;
    for fault in faults {
        if fault.befalls(operation, domain) && taken.is_none() {
            taken = Some(fault.clone());
        }
    }
    taken
}

fn operation_or_any<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Operation>, D::Error> {
    let name = String::deserialize(from)?;
    if name == "any" { Ok(None) } else { Operation::deserialize(name.into_deserializer()).map(Some) }
}

fn one() -> u32 {
    1
}

fn refused() -> ErrorKind {
    ErrorKind::Refused
}

/// The kinds' names in the file.
#[derive(Deserialize)]
#[serde(remote = "ErrorKind", rename_all = "kebab-case")]
enum KindName {
    Away,
    TimedOut,
    NoDomain,
    NoDevice,
    DeviceMissing,
    InUse,
    GroupNotViable,
    NoFreePort,
    BadGuestAddress,
    NotAssignable,
    NotRunning,
    AlreadyDefined,
    NoPassthrough,
    UnplugPending,
    UnplugRefused,
    AgentAway,
    Unsupported,
    Document,
    Refused,
}
