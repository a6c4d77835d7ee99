//! The interface to a hypervisor: the calls that hotslot makes, and the events that it receives.
//!
//! The calls have the semantics of libvirt: when [`Hypervisor::attach`] returns, the domain has the device; when
//! [`Hypervisor::detach`] from a live domain returns, the unplug has only been requested. [`crate::hotplug`] builds
//! complete operations from these calls.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::broadcast;
use uuid::Uuid;

use crate::device::HostDevice;
use crate::domain::DomainXml;
use crate::hook::{Hooks, When};
use crate::mdev::{Mdev, MdevType};
pub use crate::overdue::OverdueCall;
use crate::ownership::Ownership;
use crate::pci::PciAddress;
use crate::text;
use crate::vf::VfSettings;
use crate::vgpu::{VgpuChange, VgpuVf};

/// One host's hypervisor.
#[async_trait]
pub trait Hypervisor: Send + Sync + 'static {
    /// Reads the host's name and versions.
    async fn host(&self) -> Result<HostInfo, Error>;

    /// Reads the CPU socket of each NUMA node of the host. `None` when the host does not report sockets, or when a node
    /// spans several sockets.
    async fn node_sockets(&self) -> Result<Option<BTreeMap<u32, u32>>, Error>;

    /// Lists every PCI function of the host, in order of address.
    async fn devices(&self) -> Result<Vec<HostDevice>, Error>;

    /// Reads one PCI function. [`ErrorKind::NoDevice`] when the host has none at this address.
    async fn device(&self, address: PciAddress) -> Result<HostDevice, Error>;

    /// Unbinds the host driver of a function and binds the VFIO driver that libvirt chooses (`virsh nodedev-detach`). A
    /// function that is already on VFIO stays there. [`ErrorKind::InUse`] when a domain has the function.
    async fn node_detach(&self, address: PciAddress) -> Result<(), Error>;

    /// Rebinds the host driver of a function, if there is one (`virsh nodedev-reattach`). [`ErrorKind::InUse`] when a
    /// domain has the function.
    async fn node_reattach(&self, address: PciAddress) -> Result<(), Error>;

    /// Resets a function (`virsh nodedev-reset`). For a function on VFIO libvirt leaves the reset to the kernel. A
    /// function with a host driver is reset while the driver is bound. [`ErrorKind::InUse`] when a domain has the
    /// function, and [`ErrorKind::Refused`] when it has no reset method.
    async fn node_reset(&self, address: PciAddress) -> Result<(), Error>;

    /// Reads the settings of a VF of a NIC. It is read before a change, so that it fails where they cannot be changed:
    /// [`ErrorKind::Unsupported`] on another machine, or when the service has not the right to.
    async fn vf_settings(&self, vf: PciAddress) -> Result<VfSettings, Error>;

    /// Changes settings of a VF of a NIC; those that are `None` stay as they are. [`ErrorKind::NotAssignable`] when the driver
    /// of the PF does not have such a setting or does not accept the value.
    async fn set_vf_settings(&self, vf: PciAddress, wanted: &VfSettings) -> Result<(), Error>;

    /// Lists the VFs of which their drivers make virtual GPUs, in order of address; with `only`, this function if it is
    /// such a VF. Empty when the host has none. [`ErrorKind::Unsupported`] on another machine.
    async fn vgpu_vfs(&self, only: Option<PciAddress>) -> Result<Vec<VgpuVf>, Error>;

    /// Checks that this process can change the types of VFs: [`ErrorKind::Unsupported`] with what to do when it cannot.
    async fn may_set_vgpu_types(&self) -> Result<(), Error>;

    /// Gives a VF a type or takes its type away, if it has the type that it must have before. [`ErrorKind::Refused`] when
    /// it has another, and [`ErrorKind::NoDevice`] when the host has no such VF.
    async fn set_vgpu_type(&self, change: &VgpuChange) -> Result<(), Error>;

    /// Changes the number of VFs of a PF from one that it must have before: to 0, so that all of them vanish, or from 0.
    /// [`ErrorKind::Refused`] when it has another number or does not support so many, [`ErrorKind::NoDevice`] when it is
    /// no PF, and [`ErrorKind::Unsupported`] on another machine or when the service has not the right to.
    async fn set_vf_count(&self, pf: PciAddress, from: u32, to: u32) -> Result<(), Error>;

    /// Reads the hooks of the host ([`crate::hook`]); another machine has none. [`ErrorKind::Document`] when the file cannot
    /// be used.
    fn hooks(&self) -> Result<Hooks, Error>;

    /// Runs the hook of the class of a function, and waits until it has ended, at most for `limit`; the hook has a limit of
    /// its own, at which it is killed. [`ErrorKind::Refused`] with the end of its output when it does not succeed,
    /// [`ErrorKind::InUse`] while an earlier one of the function has not ended, and [`ErrorKind::Unsupported`] on another
    /// machine or when the service has not the right to.
    async fn run_hook(&self, address: PciAddress, when: When, limit: Duration) -> Result<(), Error>;

    /// Lists the mediated device types that a function's host driver provides; the list is empty when it provides none.
    /// [`ErrorKind::NoDevice`] when the host has no function at this address.
    async fn mdev_types(&self, parent: PciAddress) -> Result<Vec<MdevType>, Error>;

    /// Lists every mediated device of the host, in order of UUID.
    async fn mdevs(&self) -> Result<Vec<Mdev>, Error>;

    /// Creates a mediated device (`virsh nodedev-create`). It exists until it is destroyed, its parent loses its
    /// driver, or the host reboots. Use [`crate::hotplug::create_mdev`], which first checks the type.
    async fn create_mdev(&self, parent: PciAddress, mdev_type: &str, uuid: Uuid) -> Result<Mdev, Error>;

    /// Removes a mediated device (`virsh nodedev-destroy`). [`ErrorKind::InUse`] when a domain has it, and
    /// [`ErrorKind::NoDevice`] when it does not exist.
    async fn destroy_mdev(&self, mdev: Uuid) -> Result<(), Error>;

    /// Lists every domain, running or not.
    async fn domains(&self) -> Result<Vec<DomainInfo>, Error>;

    /// Reads one domain with its documents. [`ErrorKind::NoDomain`] when no domain has this UUID.
    async fn domain(&self, domain: Uuid) -> Result<DomainView, Error>;

    /// Attaches the device that `xml` describes. When it returns, the documents of `scope` have the device.
    async fn attach(&self, domain: Uuid, xml: &str, scope: Scope) -> Result<(), Error>;

    /// Detaches the device with this alias. When it returns, the persistent document does not have the device any more;
    /// for a live domain the unplug has only been requested, and [`Event::DeviceRemoved`] follows when the guest has
    /// released the device.
    /// [`ErrorKind::DeviceMissing`] when the document has no such alias.
    async fn detach(&self, domain: Uuid, alias: &str, scope: DetachScope) -> Result<(), Error>;

    /// Writes the project that owns a domain into hotslot's own metadata ([`crate::ownership`]), in the live document and
    /// in the definition, as far as the domain has them. `None` removes that metadata.
    async fn set_owner(&self, domain: Uuid, project: Option<&str>) -> Result<(), Error>;

    /// Sends one command to the guest agent and returns its answer, both as JSON of QEMU's guest agent protocol.
    /// [`ErrorKind::AgentAway`] when no agent answers within `timeout`.
    async fn agent(&self, domain: Uuid, command: &str, timeout: Duration) -> Result<String, Error>;

    /// Sends one command to QEMU's monitor (QMP) and returns its answer. libvirt marks the domain as tainted.
    async fn monitor(&self, domain: Uuid, command: &str) -> Result<String, Error>;

    /// Subscribes to all events from now on. A receiver that lags has lost events and must read the host again.
    fn events(&self) -> broadcast::Receiver<Event>;

    /// Whether the hypervisor is reachable now. `Err` contains the reason when it is not, for people.
    fn connection(&self) -> Result<(), String>;

    /// Lists the calls that were given up at their time limit and have not returned, the oldest first.
    fn overdue(&self) -> Vec<OverdueCall>;

    /// The directory that contains the host's `sys` and `proc`, for [`crate::local`]. `None` when they cannot be read,
    /// because the host is or may be another machine.
    fn sysroot(&self) -> Option<&Path>;

    /// Whether the host is or may be another machine. Guards need the host's sysfs; they cannot be evaluated for a
    /// remote host.
    fn is_remote(&self) -> bool;
}

/// The name and the versions of a host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostInfo {
    /// The host name.
    pub hostname: String,
    /// libvirt's name of the driver: `QEMU`.
    pub hypervisor_type: String,
    /// The hypervisor's version in libvirt's form: major × 1,000,000 + minor × 1,000 + release.
    pub hypervisor_version: u64,
    /// libvirt's version in the same form.
    pub libvirt_version: u64,
    /// Whether the host is simulated.
    pub simulated: bool,
}

/// A domain, as it is listed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DomainInfo {
    /// The domain's UUID.
    pub uuid: Uuid,
    /// The domain's name.
    pub name: String,
    /// The domain's state.
    pub state: DomainState,
    /// Whether the domain has a persistent definition.
    pub persistent: bool,
    /// libvirt's id of the run, which changes with each start; `None` when the domain is shut off.
    pub run: Option<u32>,
}

/// A domain with its documents.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DomainView {
    /// The domain, as it is listed.
    pub info: DomainInfo,
    /// The live document; `None` when the domain is shut off.
    pub live: Option<DomainXml>,
    /// The definition for the next start; `None` when the domain is transient.
    pub persistent: Option<DomainXml>,
}

impl DomainView {
    /// Whose the domain is. When its documents disagree, no project owns it.
    pub fn ownership(&self) -> Ownership {
        match (&self.live, &self.persistent) {
            (Some(live), Some(persistent)) => live.ownership.and(&persistent.ownership),
            (Some(one), None) | (None, Some(one)) => one.ownership.clone(),
            (None, None) => Ownership::default(),
        }
    }
}

/// The state of a domain (`virDomainState`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DomainState {
    /// It is running.
    Running,
    /// It is running but blocked on a resource.
    Blocked,
    /// It is paused.
    Paused,
    /// It is shutting down.
    ShuttingDown,
    /// It is shut off.
    ShutOff,
    /// It crashed.
    Crashed,
    /// Its guest suspended itself to memory.
    Suspended,
    /// libvirt reports no state, or one that hotslot does not know.
    Unknown,
}

impl DomainState {
    /// Whether there is a QEMU process.
    pub fn is_active(self) -> bool {
        match self {
            Self::Running | Self::Blocked | Self::Paused | Self::ShuttingDown | Self::Suspended => true,
            Self::ShutOff | Self::Crashed | Self::Unknown => false,
        }
    }
}

/// The documents that an attach changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Scope {
    /// The live document only.
    Live,
    /// The persistent definition only.
    Config,
    /// Both, in one call.
    LiveAndConfig,
}

/// The document that a detach changes. The two documents are changed by separate calls, first the definition.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DetachScope {
    /// The live document.
    Live,
    /// The persistent definition.
    Config,
}

/// How many events a slow receiver may lag behind before it loses events. The channel allocates room for all
/// of them when it is made.
pub(crate) const EVENTS: usize = 1024;

/// An event of a host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The connection is open, for the first time or again. Events may have been missed; read the host again.
    Connected,
    /// The connection is broken.
    Disconnected {
        /// The reason, for people.
        reason: String,
    },
    /// The lifecycle of a domain changed.
    Lifecycle {
        /// The domain.
        domain: Uuid,
        /// The change.
        change: Lifecycle,
    },
    /// A device was added to a running domain.
    DeviceAdded {
        /// The domain.
        domain: Uuid,
        /// The device's alias.
        alias: String,
    },
    /// A device was removed from a running domain.
    DeviceRemoved {
        /// The domain.
        domain: Uuid,
        /// The device's alias.
        alias: String,
    },
    /// The guest refused to release a device.
    DeviceRemovalFailed {
        /// The domain.
        domain: Uuid,
        /// The device's alias.
        alias: String,
    },
    /// The guest agent connected or disconnected.
    Agent {
        /// The domain.
        domain: Uuid,
        /// Whether the agent is connected now.
        connected: bool,
    },
    /// A call that was given up at its time limit has returned. Read the domain again, because the call may have
    /// changed it.
    CallReturned {
        /// The domain.
        domain: Uuid,
    },
    /// A call on a PCI function that was given up at its time limit has returned. Read the function and its mediated
    /// devices again, because the call may have changed them.
    NodeCallReturned {
        /// The function.
        address: PciAddress,
    },
    /// A node device was created, deleted or changed.
    NodeDevice {
        /// libvirt's name of the node device, which may also be a child (`net_…`).
        name: String,
        /// The change.
        change: NodeChange,
    },
}

/// A change of a domain's lifecycle (`virDomainEventType`, and the reboot event).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Lifecycle {
    /// Its definition was added or changed.
    Defined,
    /// Its definition was removed.
    Undefined,
    /// It started.
    Started,
    /// It was paused.
    Suspended,
    /// It was resumed.
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

/// A change of a node device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum NodeChange {
    /// It was created.
    Created,
    /// It was deleted.
    Deleted,
    /// Its description changed.
    Updated,
}

/// The error of a call to a hypervisor.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{operation}: {message}")]
pub struct Error {
    /// The kind of failure, on which callers decide.
    pub kind: ErrorKind,
    /// The operation with its object: `attach to domain g1`.
    pub operation: String,
    /// The hypervisor's message.
    pub message: String,
}

impl Error {
    /// Makes an error. Its texts may quote a guest or the host. They are escaped here, because they go into logs,
    /// events and terminals.
    pub fn new(kind: ErrorKind, operation: impl Into<String>, message: impl fmt::Display) -> Self {
        let safe = |text: String| text::escape(&text).into_owned();
        Self { kind, operation: safe(operation.into()), message: safe(message.to_string()) }
    }
}

/// The kind of a hypervisor's error.
///
/// After an error of a kind for which [`leaves_it_open`](Self::leaves_it_open) is true, the outcome is unknown. All
/// other kinds mean that the hypervisor refused the call. The scripted faults of [`crate::sim`] name the kinds in
/// kebab-case.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Deserialize, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum ErrorKind {
    /// The hypervisor is unreachable, or the connection broke during the call.
    Away,
    /// The call did not return within its time limit.
    TimedOut,
    /// No domain has this UUID.
    NoDomain,
    /// The host has no such PCI function.
    NoDevice,
    /// The domain's document has no such device.
    DeviceMissing,
    /// A domain already has the device (libvirt's message names the domain).
    InUse,
    /// A sibling in the IOMMU group is bound to a host driver, or another process has the group open.
    GroupNotViable,
    /// The guest has no free PCI slot of the right kind.
    NoFreePort,
    /// The requested guest address is taken, does not exist or does not support hot-plug.
    BadGuestAddress,
    /// The device is not an endpoint, or cannot be assigned for another reason.
    NotAssignable,
    /// The domain is not running.
    NotRunning,
    /// The domain already has the device or its alias.
    AlreadyDefined,
    /// The host cannot pass devices through: it has no IOMMU or no vfio-pci, or QEMU's limit of locked memory is too
    /// low.
    NoPassthrough,
    /// An earlier unplug request for this device is still pending.
    UnplugPending,
    /// The guest refused to release the device while libvirt waited for it.
    UnplugRefused,
    /// The guest agent does not answer.
    AgentAway,
    /// The hypervisor does not support the call.
    Unsupported,
    /// A document could not be read.
    Document,
    /// Any other refusal.
    Refused,
}

impl ErrorKind {
    /// Whether it is unknown if the call took effect, so that the domain or device has to be read again.
    pub fn leaves_it_open(self) -> bool {
        matches!(self, Self::Away | Self::TimedOut)
    }
}
