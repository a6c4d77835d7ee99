//! `host.toml`: the properties of a simulated host that its documents do not contain.

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
    /// The duration of each call, in milliseconds.
    pub(super) latency: BTreeMap<Operation, u64>,
    /// The time in milliseconds after which the host drivers are rebound when a guest has stopped.
    pub(super) release_ms: u64,
    /// The host driver of a function whose document has `vfio-pci` because a guest has the function.
    pub(super) driver: BTreeMap<PciAddress, String>,
    /// The functions that cannot be reset.
    pub(super) no_reset: BTreeSet<PciAddress>,
    /// Whether the host acts as a remote one, whose sysfs cannot be read.
    pub(super) remote: bool,
    /// The behaviour of guests, by the domain's name.
    pub(super) guest: BTreeMap<String, Guest>,
    pub(super) fault: Vec<Fault>,
    /// What the PFs have for the virtual GPUs on their VFs.
    pub(super) vgpu: BTreeMap<PciAddress, VgpuCard>,
}

/// What a PF has for the virtual GPUs on its VFs.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct VgpuCard {
    /// The memory that all of them share.
    pub(super) memory: u64,
    /// The types, by their numbers.
    pub(super) types: BTreeMap<u32, VgpuKind>,
}

/// A type of virtual GPUs.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct VgpuKind {
    /// The vendor's name.
    pub(super) name: String,
    /// The memory of one.
    pub(super) memory: u64,
}

/// The calls of the `Hypervisor` trait.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Operation {
    Host,
    Devices,
    Device,
    NodeDetach,
    NodeReattach,
    NodeReset,
    VfSettings,
    SetVfSettings,
    VgpuVfs,
    MaySetVgpuTypes,
    SetVgpuType,
    SetVfCount,
    RunHook,
    MdevTypes,
    Mdevs,
    CreateMdev,
    DestroyMdev,
    Domains,
    Domain,
    Attach,
    Detach,
    SetOwner,
    Agent,
    Monitor,
}

impl Operation {
    /// Whether the call changes something or waits for a guest.
    pub(super) fn changes(self) -> bool {
        match self {
            Self::Attach
            | Self::Detach
            | Self::SetOwner
            | Self::NodeDetach
            | Self::NodeReattach
            | Self::NodeReset
            | Self::SetVfSettings
            | Self::SetVgpuType
            | Self::SetVfCount
            | Self::RunHook
            | Self::CreateMdev
            | Self::DestroyMdev
            | Self::Agent
            | Self::Monitor => true,
            Self::Host
            | Self::Devices
            | Self::Device
            | Self::VfSettings
            | Self::VgpuVfs
            | Self::MaySetVgpuTypes
            | Self::MdevTypes
            | Self::Mdevs
            | Self::Domains
            | Self::Domain => false,
        }
    }

    /// Whether the call is a job in libvirt, so that it has the domain to itself while it runs.
    pub(super) fn is_job(self) -> bool {
        match self {
            Self::Attach | Self::Detach | Self::SetOwner => true,
            Self::Host
            | Self::Devices
            | Self::Device
            | Self::NodeDetach
            | Self::NodeReattach
            | Self::NodeReset
            | Self::VfSettings
            | Self::SetVfSettings
            | Self::VgpuVfs
            | Self::MaySetVgpuTypes
            | Self::SetVgpuType
            | Self::SetVfCount
            | Self::RunHook
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

/// The behaviour of a guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Guest {
    /// The answer to an unplug request.
    pub(super) unplug: Unplug,
    /// The time until the answer, in milliseconds.
    pub(super) unplug_ms: u64,
    /// The duration of the boot in milliseconds. A booting guest loses unplug requests.
    pub(super) boot_ms: u64,
    /// Whether the guest agent connects after the boot.
    pub(super) agent: bool,
    /// The answers of the guest agent, by command. A command without an answer here fails as if no agent were
    /// connected.
    pub(super) agent_answers: BTreeMap<String, String>,
    /// The files that can be read through the guest agent, by path.
    pub(super) agent_files: BTreeMap<String, String>,
    /// Whether the domain is transient: it has no persistent definition.
    pub(super) transient: bool,
    /// Whether a guest with host devices can be saved and migrated.
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

/// A guest's answer to an unplug request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Unplug {
    /// The guest releases the device.
    Normal,
    /// The guest refuses.
    Refuse,
    /// The guest never answers, as one without a hot-plug driver. A reboot completes the removal.
    Ignore,
}

/// A scripted fault.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Fault {
    /// The operation that it applies to; `None` (`any` in the file) stands for all operations.
    #[serde(deserialize_with = "operation_or_any")]
    operation: Option<Operation>,
    pub(super) action: Action,
    #[serde(default)]
    pub(super) at: At,
    /// The first call that it applies to, counted from 1 when the fault is set.
    #[serde(default = "one")]
    nth: u32,
    /// How many calls it applies to.
    #[serde(default = "one")]
    times: u32,
    /// The name of the domain that it applies to; `None` stands for all domains.
    domain: Option<String>,
    /// The duration of `hang` and `away` in milliseconds. A hang without it lasts until `fault clear`.
    ms: Option<u64>,
    #[serde(default = "refused")]
    pub(super) kind: ErrorKind,
    pub(super) text: Option<String>,
    /// The number of matching calls so far.
    #[serde(skip)]
    seen: u32,
}

/// The effect of a fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Action {
    /// The call fails.
    Fail,
    /// The call hangs. With a text, it fails afterwards.
    Hang,
    /// The connection breaks.
    Away,
    /// The call's event is not sent.
    LoseEvent,
    /// The guest's QEMU process ends.
    Crash,
    /// This process is killed, as by `kill -9`.
    Kill,
}

/// The moment at which a fault takes effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum At {
    /// Before the call changes anything.
    #[default]
    Before,
    /// After an attach to both documents has changed only the live one.
    Between,
    /// After the call has changed everything.
    After,
}

impl Fault {
    pub(super) fn duration(&self) -> Option<Duration> {
        self.ms.map(Duration::from_millis)
    }

    /// Counts a call and returns whether the fault applies to it.
    fn applies_to(&mut self, operation: Operation, domain: Option<&str>) -> bool {
        let other = self.operation.is_some_and(|named| named != operation);
        if other || (self.domain.is_some() && self.domain.as_deref() != domain) {
            return false;
        }
        self.seen = self.seen.saturating_add(1);
        self.seen >= self.nth && self.seen - self.nth < self.times
    }
}

/// Counts a call in every fault and returns the first fault that applies to it.
pub(super) fn take_fault(faults: &mut [Fault], operation: Operation, domain: Option<&str>) -> Option<Fault> {
    let mut taken = None;
    for fault in faults {
        if fault.applies_to(operation, domain) && taken.is_none() {
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
