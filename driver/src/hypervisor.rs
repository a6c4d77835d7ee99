//! The port: what hotslot asks of a hypervisor, and the events it hears from it.
//!
//! It speaks libvirt's verbs and keeps libvirt's meanings: [`Hypervisor::attach`] returning means that the
//! device is in the domain; [`Hypervisor::detach`] on a live domain returning means that the guest was
//! asked. What makes an answer out of these is [`crate::hotplug`].

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::broadcast;
use uuid::Uuid;

use crate::device::HostDevice;
use crate::domain::DomainXml;
use crate::mdev::{Mdev, MdevType};
pub use crate::overdue::OverdueCall;
use crate::pci::PciAddress;
use crate::text;

/// One host's hypervisor.
#[async_trait]
pub trait Hypervisor: Send + Sync + 'static {
    /// Who answers at the other end.
    async fn host(&self) -> Result<HostInfo, Error>;

    /// The CPU socket of each NUMA node of the host; none when it is not told, or a node spans several
    /// sockets.
    async fn node_sockets(&self) -> Result<Option<BTreeMap<u32, u32>>, Error>;

    /// Every PCI function of the host, in order of address.
    async fn devices(&self) -> Result<Vec<HostDevice>, Error>;

    /// One PCI function; [`ErrorKind::NoDevice`] when the host has none there.
    async fn device(&self, address: PciAddress) -> Result<HostDevice, Error>;

    /// Takes a function from its host driver and binds it to the VFIO driver that libvirt chooses
    /// (`virsh nodedev-detach`). One that is bound so already stays.
    /// [`ErrorKind::InUse`] when a domain has it.
    async fn node_detach(&self, address: PciAddress) -> Result<(), Error>;

    /// Gives a function back to its host driver (`virsh nodedev-reattach`), if it has one.
    /// [`ErrorKind::InUse`] when a domain has it.
    async fn node_reattach(&self, address: PciAddress) -> Result<(), Error>;

    /// Resets a function (`virsh nodedev-reset`). libvirt leaves one that is bound to VFIO to the kernel, and
    /// resets one that is bound to a host driver from under it.
    /// [`ErrorKind::InUse`] when a domain has it, [`ErrorKind::Refused`] when it has no reset method.
    async fn node_reset(&self, address: PciAddress) -> Result<(), Error>;

    /// The types of mediated devices that a function's host driver can make; none when it makes none.
    /// [`ErrorKind::NoDevice`] when the host has no function there.
    async fn mdev_types(&self, parent: PciAddress) -> Result<Vec<MdevType>, Error>;

    /// Every mediated device of the host, in order of UUID.
    async fn mdevs(&self) -> Result<Vec<Mdev>, Error>;

    /// Makes a mediated device (`virsh nodedev-create`), which lasts until it is destroyed, its parent loses
    /// its driver, or the host reboots. [`crate::hotplug::create_mdev`] looks before whether it can.
    async fn create_mdev(&self, parent: PciAddress, mdev_type: &str, uuid: Uuid) -> Result<Mdev, Error>;

    /// Takes a mediated device away (`virsh nodedev-destroy`).
    /// [`ErrorKind::InUse`] when a domain has it, [`ErrorKind::NoDevice`] when there is none.
    async fn destroy_mdev(&self, mdev: Uuid) -> Result<(), Error>;

    /// Every domain, running or not.
    async fn domains(&self) -> Result<Vec<DomainInfo>, Error>;

    /// One domain with its documents; [`ErrorKind::NoDomain`] when there is none of that UUID.
    async fn domain(&self, domain: Uuid) -> Result<DomainView, Error>;

    /// Attaches the device that `xml` describes. When it returns, the device is in the documents of `scope`.
    async fn attach(&self, domain: Uuid, xml: &str, scope: Scope) -> Result<(), Error>;

    /// Detaches by alias. In the persistent document it is gone when this returns; in a live domain the
    /// guest has been asked, and [`Event::DeviceRemoved`] tells when it let go.
    /// [`ErrorKind::DeviceMissing`] when the document has no such alias.
    async fn detach(&self, domain: Uuid, alias: &str, scope: DetachScope) -> Result<(), Error>;

    /// Sends one command to the guest's agent and returns its answer, both JSON as QEMU's guest agent
    /// protocol has them. [`ErrorKind::AgentAway`] when no agent answers within `timeout`.
    async fn agent(&self, domain: Uuid, command: &str, timeout: Duration) -> Result<String, Error>;

    /// Sends one command to QEMU's monitor (QMP) and returns its answer. libvirt marks the domain as tainted.
    async fn monitor(&self, domain: Uuid, command: &str) -> Result<String, Error>;

    /// Everything that happens from now on. A receiver that lags has lost events and must compare afresh.
    fn events(&self) -> broadcast::Receiver<Event>;

    /// Whether the hypervisor can be reached now. `Err` says why not, for people.
    fn connection(&self) -> Result<(), String>;

    /// The calls that were given up at their limit and have not come back, the oldest first.
    fn overdue(&self) -> Vec<OverdueCall>;

    /// The directory below which the host's own `sys` and `proc` can be read; none when the host is another
    /// machine than this one, or may be. What is read there is [`crate::local`]'s.
    fn sysroot(&self) -> Option<&Path>;

    /// Whether the host is another machine, or may be one: what it lives on cannot be seen from here.
    fn is_remote(&self) -> bool;
}

/// Who answers at the other end of a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostInfo {
    /// The host's own name.
    pub hostname: String,
    /// libvirt's name of the driver: `QEMU`.
    pub hypervisor_type: String,
    /// The hypervisor's version as libvirt counts: major × 1,000,000 + minor × 1,000 + release.
    pub hypervisor_version: u64,
    /// libvirt's version, counted alike.
    pub libvirt_version: u64,
    /// Whether all that it answers is simulated.
    pub simulated: bool,
}

/// A domain in a listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DomainInfo {
    /// The domain's UUID.
    pub uuid: Uuid,
    /// The domain's name.
    pub name: String,
    /// What it is doing.
    pub state: DomainState,
    /// Whether it has a definition that outlives its run.
    pub persistent: bool,
    /// The number of its run, another with each start; none when it is shut off.
    pub run: Option<u32>,
}

/// A domain with its documents.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DomainView {
    /// What a listing says of it.
    pub info: DomainInfo,
    /// The running guest's document; none when it is shut off.
    pub live: Option<DomainXml>,
    /// The definition it will start from next; none when it is transient.
    pub persistent: Option<DomainXml>,
}

/// What a domain is doing (`virDomainState`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DomainState {
    /// It runs.
    Running,
    /// It runs but is blocked on a resource.
    Blocked,
    /// It is paused.
    Paused,
    /// It is shutting down.
    ShuttingDown,
    /// It is off.
    ShutOff,
    /// It crashed.
    Crashed,
    /// Its guest suspended itself to memory.
    Suspended,
    /// libvirt does not say.
    Unknown,
}

impl DomainState {
    /// Whether there is a QEMU process that devices can be plugged into.
    pub fn is_active(self) -> bool {
        match self {
            Self::Running | Self::Blocked | Self::Paused | Self::ShuttingDown | Self::Suspended => true,
            Self::ShutOff | Self::Crashed | Self::Unknown => false,
        }
    }
}

/// Where an attach takes effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Scope {
    /// In the running guest only.
    Live,
    /// In the persistent definition only.
    Config,
    /// In both, in one call.
    LiveAndConfig,
}

/// Where a detach takes effect: never in both at once, for the definition is done first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DetachScope {
    /// In the running guest.
    Live,
    /// In the persistent definition.
    Config,
}

/// Something that happened on a host, as it was heard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The connection is up, for the first time or again: events were missed, compare afresh.
    Connected,
    /// The connection is gone.
    Disconnected {
        /// Why, for people.
        reason: String,
    },
    /// A domain's life went on.
    Lifecycle {
        /// Which domain.
        domain: Uuid,
        /// What happened.
        change: Lifecycle,
    },
    /// A device was added to a running domain.
    DeviceAdded {
        /// Which domain.
        domain: Uuid,
        /// The device's alias.
        alias: String,
    },
    /// A device is gone from a running domain.
    DeviceRemoved {
        /// Which domain.
        domain: Uuid,
        /// The alias it had.
        alias: String,
    },
    /// The guest refused to let a device go.
    DeviceRemovalFailed {
        /// Which domain.
        domain: Uuid,
        /// The device's alias.
        alias: String,
    },
    /// The guest's agent connected or went.
    Agent {
        /// Which domain.
        domain: Uuid,
        /// Whether it is there now.
        connected: bool,
    },
    /// A call that was given up at its limit has come back: what it did to the domain is to be looked at.
    CameBack {
        /// Which domain.
        domain: Uuid,
    },
    /// A call on a PCI function of the host that was given up at its limit has come back: what it did to the
    /// function, or to the mediated devices that are made of it, is to be looked at.
    NodeCallCameBack {
        /// Which function.
        address: PciAddress,
    },
    /// A node device came, went or changed.
    NodeDevice {
        /// libvirt's name of it; a child's name (`net_…`) too.
        name: String,
        /// What happened.
        change: NodeChange,
    },
}

/// What happened to a domain (`virDomainEventType`, and the reboot event).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Lifecycle {
    /// A definition was made or changed.
    Defined,
    /// Its definition is gone.
    Undefined,
    /// It started.
    Started,
    /// It was paused.
    Suspended,
    /// It goes on.
    Resumed,
    /// It stopped: shut down, destroyed, crashed, migrated away, or saved.
    Stopped,
    /// Its guest has shut down; `Stopped` follows.
    Shutdown,
    /// Its guest suspended itself.
    PmSuspended,
    /// It crashed.
    Crashed,
    /// Its guest rebooted.
    Rebooted,
}

/// What happened to a node device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum NodeChange {
    /// It came.
    Created,
    /// It went.
    Deleted,
    /// Its description changed.
    Updated,
}

/// A call to a hypervisor that did not do what it was asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{operation}: {message}")]
pub struct Error {
    /// What kind of failure it is: what callers decide on.
    pub kind: ErrorKind,
    /// What was asked, with its subject: `attach to domain g1`.
    pub operation: String,
    /// The hypervisor's own words.
    pub message: String,
}

impl Error {
    /// Makes an error. Its texts may quote a guest or the host; they go into logs, events and terminals, so they are made
    /// safe to show here.
    pub fn new(kind: ErrorKind, operation: impl Into<String>, message: impl fmt::Display) -> Self {
        let safe = |said: String| text::escape(&said).into_owned();
        Self { kind, operation: safe(operation.into()), message: safe(message.to_string()) }
    }
}

/// What kind of failure a hypervisor's error is.
///
/// All but those of [`leaves_it_open`](Self::leaves_it_open) are refusals: nothing was done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// No connection to the hypervisor, or it broke while the call was out.
    Away,
    /// The call did not come back in time.
    TimedOut,
    /// No domain of that UUID.
    NoDomain,
    /// The host has no such PCI function.
    NoDevice,
    /// The domain's document has no such device.
    DeviceMissing,
    /// The device is held by a domain already (libvirt's text names it).
    InUse,
    /// A sibling in the IOMMU group is bound to a host driver, or the group is open elsewhere.
    GroupNotViable,
    /// No free PCI slot of the right kind in the guest.
    NoFreePort,
    /// The guest address asked for is taken, does not exist or cannot be hot-plugged.
    BadGuestAddress,
    /// Not an endpoint, or not to be assigned for another reason.
    NotAssignable,
    /// The domain is not running.
    NotRunning,
    /// The persistent definition has the device already.
    AlreadyDefined,
    /// The host cannot pass devices through: no IOMMU, no vfio-pci, or QEMU may lock too little memory.
    NoPassthrough,
    /// An earlier removal of this device is still under way.
    UnplugPending,
    /// The guest refused to let the device go while libvirt waited for it.
    UnplugRefused,
    /// The guest's agent does not answer.
    AgentAway,
    /// The hypervisor does not know this call.
    Unsupported,
    /// A document could not be understood.
    Document,
    /// Anything else that was refused.
    Refused,
}

impl ErrorKind {
    /// Whether it is open if the call took effect: only reading the domain again can tell.
    pub fn leaves_it_open(self) -> bool {
        matches!(self, Self::Away | Self::TimedOut)
    }
}
