//! The adapter to real hosts: it implements [`Hypervisor`] with a libvirt connection.
//!
//! ```text
//! mod          the methods of Hypervisor, as libvirt calls
//! link         the connection: connect, keepalive, reconnect
//! calls        runs all blocking calls: threads, limits, spans
//! error        libvirt's error → ErrorKind
//! event_loop   libvirt's event loop, one thread per process
//! vgpu         the types of virtual GPUs of VFs, which libvirt does not know
//! helper       changes of the machine for which libvirt has no call
//! mdev         the mediated devices of a host
//! ffi          libvirt's callbacks → events; the only unsafe code
//! ```
//!
//! Four safe calls of `virt` 0.5 drop errors (`attach_device`, `state`, `set_memory`, `block_info`); clippy refuses
//! them here.

mod calls;
mod error;
mod event_loop;
mod ffi;
mod helper;
mod link;
mod mdev;
mod options;
mod vgpu;

pub use options::Options;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::{broadcast, watch};
use tokio::task::JoinHandle;
use tracing::debug;
use uuid::Uuid;
use virt::connect::Connect;
use virt::domain::Domain;
use virt::nodedev::NodeDevice;
use virt::sys;

use self::calls::{Calls, Verb};
use self::error::Fault;
use self::link::State;
use self::mdev::{as_read, mdevs};
use crate::calls_out::Subject;
use crate::capture::Documents;
use crate::device::HostDevice;
use crate::hook::{Hooks, When};
use crate::hypervisor::{
    DetachScope, DomainInfo, DomainState, DomainView, EVENTS, Error, ErrorKind, Event, HostInfo, Hypervisor,
    OverdueCall, Scope,
};
use crate::local;
use crate::mdev::{Mdev, MdevType};
use crate::netlink;
use crate::ownership;
use crate::pci::PciAddress;
use crate::vf::VfSettings;
use crate::vgpu::{VgpuChange, VgpuVf};
use crate::xml::{self, nodedev};

/// A host that is reached through libvirt.
///
/// A call that libvirt never answers keeps its thread. A program that must end nevertheless ends its runtime with
/// `shutdown_timeout` or `shutdown_background`.
#[derive(Debug)]
pub struct Libvirt {
    calls: Calls,
    events: broadcast::Sender<Event>,
    state: Arc<watch::Sender<State>>,
    keeper: JoinHandle<()>,
    options: Options,
    local: bool,
}

/// The reason in the state before the first attempt to connect has ended.
const NOT_YET: &str = "not connected yet";

impl Libvirt {
    /// Starts a task that keeps a connection to `uri` (<https://libvirt.org/uri.html>) open, and returns at once,
    /// whether or not a libvirtd answers there. It must be called in a tokio runtime.
    pub fn connect(uri: impl Into<String>, options: Options) -> Arc<Self> {
        let uri = uri.into();
        let local = is_local(&uri);
        let state = Arc::new(watch::Sender::new(Err(NOT_YET.to_owned())));
        let events = broadcast::Sender::new(EVENTS);
        let keeper = link::keep(uri, options.clone(), Arc::clone(&state), events.clone());
        Arc::new(Self {
            calls: Calls::new(state.subscribe(), events.clone(), options.parallel_calls),
            keeper: tokio::spawn(keeper),
            events,
            state,
            options,
            local,
        })
    }

    /// Waits until the first attempt to connect has ended. After that it returns the same as
    /// [`Hypervisor::connection`]. It is for programs that have nothing to do without the host.
    ///
    /// # Errors
    /// The reason why there is no connection, for people.
    pub async fn tried(&self) -> Result<(), String> {
        let mut state = self.state.subscribe();
        let tried = state.wait_for(|state| state.as_ref().err().is_none_or(|why| why != NOT_YET)).await;
        tried.map_err(|error| error.to_string())?.as_ref().map(|_| ()).map_err(Clone::clone)
    }

    /// Reads all documents that describe the host to hotslot, exactly as libvirt prints them.
    ///
    /// # Errors
    /// As for the methods of [`Hypervisor`].
    pub async fn documents(&self) -> Result<Documents, Error> {
        let limit = self.options.change_limit;
        let work = |connect: &Connect| {
            let devices = node_documents(connect)?;
            let mut domains = Vec::new();
            for domain in connect.list_all_domains(0)? {
                let document = || Ok::<_, Fault>((domain.name()?, domain.xml_desc(0)?));
                domains.extend(unless_gone(document())?);
            }
            Ok(Documents { devices, domains })
        };
        self.calls.run(Verb::Read, limit, "read every document".to_owned(), Subject::Nothing, work).await
    }

    async fn read<T: Send + 'static>(
        &self,
        operation: impl Into<String>,
        work: impl FnOnce(&Connect) -> Result<T, Fault> + Send + 'static,
    ) -> Result<T, Error> {
        self.calls.run(Verb::Read, self.options.read_limit, operation.into(), Subject::Nothing, work).await
    }

    async fn change_device(
        &self,
        operation: String,
        address: PciAddress,
        work: impl FnOnce(&NodeDevice) -> Result<(), virt::error::Error> + Send + 'static,
    ) -> Result<(), Error> {
        let work =
            move |connect: &Connect| Ok(work(&connect.lookup_node_device_by_name(&address.node_name())?)?);
        let subject = Subject::Function(address);
        self.calls.run(Verb::Change, self.options.change_limit, operation, subject, work).await
    }

    /// Runs a change, or a call that may take as long, on a domain. `subject` is what the call may change: while a call
    /// with the subject [`Subject::Nothing`] is overdue, the domain's documents can be relied on.
    async fn on_domain<T: Send + 'static>(
        &self,
        limit: Duration,
        operation: String,
        domain: Uuid,
        subject: Subject,
        work: impl FnOnce(&Domain) -> Result<T, virt::error::Error> + Send + 'static,
    ) -> Result<T, Error> {
        let work = move |connect: &Connect| Ok(work(&connect.lookup_domain_by_uuid(domain)?)?);
        self.calls.run(Verb::Change, limit, operation, subject, work).await
    }
}

impl Drop for Libvirt {
    fn drop(&mut self) {
        self.keeper.abort();
        drop(self.state.send_replace(Err("closed".to_owned())));
    }
}

#[async_trait]
impl Hypervisor for Libvirt {
    async fn host(&self) -> Result<HostInfo, Error> {
        self.read("read the host's name and versions", |connect| {
            Ok(HostInfo {
                hostname: connect.hostname()?,
                hypervisor_type: connect.driver_type()?,
                hypervisor_version: connect.hyp_version()?.into(),
                libvirt_version: connect.lib_version()?.into(),
                simulated: false,
            })
        })
        .await
    }

    async fn node_sockets(&self) -> Result<Option<BTreeMap<u32, u32>>, Error> {
        self.read("read the host's capabilities", |connect| {
            Ok(xml::capabilities::node_sockets(&connect.capabilities()?)?)
        })
        .await
    }

    async fn devices(&self) -> Result<Vec<HostDevice>, Error> {
        let local = self.local;
        self.read("list the host's devices", move |connect| {
            // A document that cannot be read is left out: libvirt cannot assign its device either (32-bit PCI domain).
            let understood = |(name, document): (String, String)| {
                nodedev::parse(&document).map_err(|error| debug!("left out node device {name}: {error}")).ok()
            };
            let nodes = node_documents(connect)?.into_iter().filter_map(understood).collect();
            let mut devices = nodedev::attach_children(nodes);
            devices.iter_mut().filter(|_| local).for_each(read_vfio);
            Ok(devices)
        })
        .await
    }

    /// The result does not contain what child devices tell. libvirt cannot list node devices by parent, and reading all
    /// of them takes half as long as an attach.
    async fn device(&self, address: PciAddress) -> Result<HostDevice, Error> {
        let local = self.local;
        self.read(format!("read device {address}"), move |connect| {
            let document = connect.lookup_node_device_by_name(&address.node_name())?.xml_desc(0)?;
            let mut devices = nodedev::attach_children(vec![nodedev::parse(&document)?]);
            devices.iter_mut().filter(|_| local).for_each(read_vfio);
            devices.pop().ok_or_else(|| Fault {
                kind: ErrorKind::NoDevice,
                message: format!("{} is not a PCI device", address.node_name()),
            })
        })
        .await
    }

    async fn node_detach(&self, address: PciAddress) -> Result<(), Error> {
        let operation = format!("unbind the host driver of {address}");
        self.change_device(operation, address, |device| device.detach_flags(None, 0)).await
    }

    async fn node_reattach(&self, address: PciAddress) -> Result<(), Error> {
        let operation = format!("rebind the host driver of {address}");
        self.change_device(operation, address, NodeDevice::reattach).await
    }

    async fn node_reset(&self, address: PciAddress) -> Result<(), Error> {
        self.change_device(format!("reset {address}"), address, NodeDevice::reset).await
    }

    async fn vf_settings(&self, vf: PciAddress) -> Result<VfSettings, Error> {
        if !self.local {
            return Err(netlink::on_another_machine(vf));
        }
        netlink::read(vf).await
    }

    async fn set_vf_settings(&self, vf: PciAddress, wanted: &VfSettings) -> Result<(), Error> {
        let now = self.vf_settings(vf).await?;
        netlink::set(vf, *wanted, now).await
    }

    async fn vgpu_vfs(&self, only: Option<PciAddress>) -> Result<Vec<VgpuVf>, Error> {
        self.list_vgpu_vfs(only).await
    }

    async fn may_set_vgpu_types(&self) -> Result<(), Error> {
        crate::helper::available()
    }

    async fn set_vgpu_type(&self, change: &VgpuChange) -> Result<(), Error> {
        self.change_vgpu_type(change).await
    }

    async fn set_vf_count(&self, pf: PciAddress, from: u32, to: u32) -> Result<(), Error> {
        self.change_vf_count(pf, from, to).await
    }

    fn hooks(&self) -> Result<Hooks, Error> {
        self.read_hooks()
    }

    async fn run_hook(&self, address: PciAddress, when: When, limit: Duration) -> Result<(), Error> {
        self.run_own_hook(address, when, limit).await
    }

    async fn mdev_types(&self, parent: PciAddress) -> Result<Vec<MdevType>, Error> {
        self.read(format!("read the mediated device types of {parent}"), move |connect| {
            Ok(xml::mdev::types(&connect.lookup_node_device_by_name(&parent.node_name())?.xml_desc(0)?)?)
        })
        .await
    }

    async fn mdevs(&self) -> Result<Vec<Mdev>, Error> {
        self.read("list the mediated devices", |connect| {
            let mut mdevs = mdevs(connect)?;
            mdevs.sort_by_key(|mdev| mdev.uuid);
            Ok(mdevs)
        })
        .await
    }

    async fn create_mdev(&self, parent: PciAddress, mdev_type: &str, uuid: Uuid) -> Result<Mdev, Error> {
        let operation = format!("create mediated device {uuid} on {parent}");
        let document = xml::mdev::new(parent, mdev_type, uuid)
            .map_err(|error| Error::new(ErrorKind::Document, operation.as_str(), error))?;
        let mdev_type = mdev_type.to_owned();
        let work = move |connect: &Connect| {
            let node = connect.create_node_device_xml(&document, 0)?;
            let name = node.name().unwrap_or_default();
            let made = Mdev { uuid, name, mdev_type, parent: Some(parent), iommu_group: None };
            let read = node.xml_desc(0).map_err(Fault::from);
            let known = as_read(made, read.and_then(|document| Ok(nodedev::parse(&document)?)));
            if known.is_err() {
                // The caller gets an error and does not know the device, so remove it.
                node.destroy()?;
            }
            known
        };
        let subject = Subject::Function(parent);
        self.calls.run(Verb::Change, self.options.change_limit, operation, subject, work).await
    }

    async fn destroy_mdev(&self, mdev: Uuid) -> Result<(), Error> {
        let operation = format!("remove mediated device {mdev}");
        // Look the device up before the call that may hang, because an overdue call is listed with the parent function.
        let Some(found) = self.mdevs().await?.into_iter().find(|found| found.uuid == mdev) else {
            return Err(Error::new(ErrorKind::NoDevice, operation, "the host has no such mediated device"));
        };
        let subject = found.parent.map_or(Subject::Nothing, Subject::Function);
        let work = move |connect: &Connect| Ok(connect.lookup_node_device_by_name(&found.name)?.destroy()?);
        self.calls.run(Verb::Change, self.options.change_limit, operation, subject, work).await
    }

    async fn domains(&self) -> Result<Vec<DomainInfo>, Error> {
        self.read("list the domains", |connect| {
            let mut infos = Vec::new();
            for domain in connect.list_all_domains(0)? {
                let read = || domain_info(&domain, domain.is_persistent()?);
                infos.extend(unless_gone(read())?);
            }
            Ok(infos)
        })
        .await
    }

    async fn domain(&self, domain: Uuid) -> Result<DomainView, Error> {
        self.read(format!("read domain {domain}"), move |connect| {
            // Read again when the domain started or stopped in the meantime.
            for _ in 0..3 {
                let domain = connect.lookup_domain_by_uuid(domain)?;
                // Known from the lookup, without another call.
                let active = domain.id().is_some();
                let document = |wanted: bool, flags| -> Result<_, Fault> {
                    Ok(if wanted { Some(xml::domain::parse(&domain.xml_desc(flags)?)?) } else { None })
                };
                let live = document(active, 0)?;
                let persistent = document(domain.is_persistent()?, sys::VIR_DOMAIN_XML_INACTIVE)?;
                let info = domain_info(&domain, persistent.is_some())?;
                // A domain that is about to run or to stop may have an id in the state of one that is shut off, and so may a
                // crashed domain that is kept.
                if info.state.is_active() == active || domain.is_active()? == active {
                    return Ok(DomainView { info, live, persistent });
                }
            }
            let message = "the domain started or stopped during each of three reads; try again".to_owned();
            Err(Fault { kind: ErrorKind::TimedOut, message })
        })
        .await
    }

    async fn attach(&self, domain: Uuid, xml: &str, scope: Scope) -> Result<(), Error> {
        let xml = xml.to_owned();
        let flags = match scope {
            Scope::Live => sys::VIR_DOMAIN_AFFECT_LIVE,
            Scope::Config => sys::VIR_DOMAIN_AFFECT_CONFIG,
            Scope::LiveAndConfig => sys::VIR_DOMAIN_AFFECT_LIVE | sys::VIR_DOMAIN_AFFECT_CONFIG,
        };
        let operation = format!("attach to domain {domain}");
        self.on_domain(self.options.change_limit, operation, domain, Subject::Domain(domain), move |domain| {
            domain.attach_device_flags(&xml, flags)
        })
        .await
    }

    async fn detach(&self, domain: Uuid, alias: &str, scope: DetachScope) -> Result<(), Error> {
        let operation = format!("detach {alias} from domain {domain}");
        let alias = alias.to_owned();
        let flags = match scope {
            DetachScope::Live => sys::VIR_DOMAIN_AFFECT_LIVE,
            DetachScope::Config => sys::VIR_DOMAIN_AFFECT_CONFIG,
        };
        self.on_domain(self.options.change_limit, operation, domain, Subject::Domain(domain), move |domain| {
            ffi::detach_device_alias(domain, &alias, flags)
        })
        .await
    }

    async fn set_owner(&self, domain: Uuid, project: Option<&str>) -> Result<(), Error> {
        let operation = format!("set the owner of domain {domain}");
        let element = project.map(xml::ownership::element);
        self.on_domain(self.options.change_limit, operation, domain, Subject::Domain(domain), move |domain| {
            let mut flags = 0;
            for (wanted, flag) in [
                (domain.is_active()?, sys::VIR_DOMAIN_AFFECT_LIVE),
                (domain.is_persistent()?, sys::VIR_DOMAIN_AFFECT_CONFIG),
            ] {
                flags |= if wanted { flag } else { 0 };
            }
            let kind = sys::VIR_DOMAIN_METADATA_ELEMENT as i32;
            domain.set_metadata(
                kind,
                element.as_deref(),
                Some(ownership::PREFIX),
                Some(ownership::NAMESPACE),
                flags,
            )
        })
        .await
    }

    async fn agent(&self, domain: Uuid, command: &str, timeout: Duration) -> Result<String, Error> {
        let operation = format!("send a command to the guest agent of domain {domain}");
        let command = command.to_owned();
        // libvirt's time limit is in whole seconds, and 0 means that it does not wait at all.
        let seconds = i32::try_from(timeout.as_secs().max(1)).unwrap_or(i32::MAX);
        let answer = self.on_domain(timeout, operation, domain, Subject::Nothing, move |domain| {
            domain.qemu_agent_command(&command, seconds, 0)
        });
        answer.await.map_err(|mut error| {
            // With any time limit libvirt first waits 5 s for the agent to synchronize.
            if error.kind == ErrorKind::TimedOut {
                error.kind = ErrorKind::AgentAway;
            }
            error
        })
    }

    async fn monitor(&self, domain: Uuid, command: &str) -> Result<String, Error> {
        let operation = format!("send a command to the QEMU monitor of domain {domain}");
        let command = command.to_owned();
        self.on_domain(self.options.read_limit, operation, domain, Subject::Nothing, move |domain| {
            domain.qemu_monitor_command(&command, 0)
        })
        .await
    }

    fn events(&self) -> broadcast::Receiver<Event> {
        self.events.subscribe()
    }

    fn connection(&self) -> Result<(), String> {
        self.state.borrow().as_ref().map(|_| ()).map_err(Clone::clone)
    }

    fn overdue(&self) -> Vec<OverdueCall> {
        self.calls.overdue.list()
    }

    fn sysroot(&self) -> Option<&Path> {
        self.local.then_some(Path::new(ROOT))
    }

    fn is_remote(&self) -> bool {
        !self.local
    }
}

/// The directory that contains this machine's `sys` and `proc`.
const ROOT: &str = "/";

/// Reads from this machine's sysfs what libvirt does not report: whether a function is bound to a VFIO driver.
fn read_vfio(device: &mut HostDevice) {
    device.vfio_dev = local::vfio_dev(Some(Path::new(ROOT)), device.address);
}

/// Returns true when a URI certainly leads to this machine (<https://libvirt.org/uri.html>): it names no host, and its
/// transport is the default or a Unix socket. A socket outside libvirt's own directories may be forwarded from another
/// machine, and then this machine's sysfs must not be used for the guards of that machine's devices.
fn is_local(uri: &str) -> bool {
    let Some((scheme, rest)) = uri.split_once("://") else { return false };
    let (driver, transport) = scheme.split_once('+').unwrap_or((scheme, "unix"));
    let (path, parameters) = rest.split_once('?').unwrap_or((rest, ""));
    let own = ["/run/libvirt/", "/var/run/libvirt/"];
    let forwarded = |parameter: &str| {
        let socket = parameter.strip_prefix("socket=");
        socket.is_some_and(|socket| socket.contains("..") || !own.iter().any(|at| socket.starts_with(at)))
    };
    path.starts_with('/')
        && driver != "test"
        && transport == "unix"
        && !parameters.split(['&', ';']).any(forwarded)
}

/// The kinds of node devices to read: PCI functions, and the network interfaces, vDPA, block and mediated devices that
/// may be their children.
const KINDS: sys::virConnectListAllNodeDeviceFlags = sys::VIR_CONNECT_LIST_NODE_DEVICES_CAP_PCI_DEV
    | sys::VIR_CONNECT_LIST_NODE_DEVICES_CAP_MDEV
    | sys::VIR_CONNECT_LIST_NODE_DEVICES_CAP_NET
    | sys::VIR_CONNECT_LIST_NODE_DEVICES_CAP_VDPA
    | sys::VIR_CONNECT_LIST_NODE_DEVICES_CAP_STORAGE;

/// Reads the name and document of every node device of [`KINDS`]. A device that vanished before it was read, or that
/// libvirt cannot describe, is left out.
fn node_documents(connect: &Connect) -> Result<Vec<(String, String)>, Fault> {
    let mut documents = Vec::new();
    for node in connect.list_all_node_devices(KINDS)? {
        let name = node.name()?;
        match node.xml_desc(0).map_err(Fault::from) {
            Ok(document) => documents.push((name, document)),
            Err(fault) if fault.kind == ErrorKind::Away => return Err(fault),
            Err(fault) => debug!("left out node device {name}: {}", fault.message),
        }
    }
    Ok(documents)
}

fn domain_info(domain: &Domain, persistent: bool) -> Result<DomainInfo, Fault> {
    let state = match domain.info()?.state.to_raw() {
        sys::VIR_DOMAIN_RUNNING => DomainState::Running,
        sys::VIR_DOMAIN_BLOCKED => DomainState::Blocked,
        sys::VIR_DOMAIN_PAUSED => DomainState::Paused,
        sys::VIR_DOMAIN_SHUTDOWN => DomainState::ShuttingDown,
        sys::VIR_DOMAIN_SHUTOFF => DomainState::ShutOff,
        sys::VIR_DOMAIN_CRASHED => DomainState::Crashed,
        sys::VIR_DOMAIN_PMSUSPENDED => DomainState::Suspended,
        _ => DomainState::Unknown,
    };
    Ok(DomainInfo { uuid: domain.uuid()?, name: domain.name()?, state, persistent, run: domain.id() })
}

/// Returns `None` for a domain that vanished after it was listed.
fn unless_gone<T>(read: Result<T, Fault>) -> Result<Option<T>, Fault> {
    match read {
        Ok(value) => Ok(Some(value)),
        Err(fault) if fault.kind == ErrorKind::NoDomain => Ok(None),
        Err(fault) => Err(fault),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_uri_that_certainly_names_this_machine_is_local() {
        for local in [
            "qemu:///system",
            "qemu:///session",
            "qemu+unix:///system",
            "qemu+unix:///system?socket=/var/run/libvirt/libvirt-sock&mode=legacy",
        ] {
            assert!(is_local(local), "{local}");
        }
        for other in [
            "",
            "an-alias",
            "test:///default",
            "test+unix:///default",
            "qemu://127.0.0.1/system",
            "qemu+ssh://root@node2/system",
            "qemu+unix://root@/system",
            "qemu+tls://[::1]/system",
            "qemu+tcp:///system",
            "qemu+ext:///system?command=/usr/bin/elsewhere",
            "qemu+unix:///system?socket=/tmp/forwarded",
            "qemu+unix:///system?mode=auto&socket=/run/libvirt/../forwarded",
            "qemu+unix:///system?socket=%2Ftmp%2Fforwarded",
        ] {
            assert!(!is_local(other), "{other}");
        }
    }
}
