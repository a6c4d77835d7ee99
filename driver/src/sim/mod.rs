//! The simulated host: it implements [`Hypervisor`] on a directory of libvirt documents and follows libvirt's rules.
//!
//! ```text
//! DIR/devices/*.xml   output of `virsh nodedev-dumpxml`: PCI functions, their net, block and mdev children
//! DIR/domains/*.xml   output of `virsh dumpxml`: `<domain id='…'>` is running, a domain without an id is shut off
//! DIR/root/           optional: the files of the host's sys and proc that hotslot reads
//! DIR/host.toml       optional: latencies, faults, the behaviour of guests
//! DIR/state/          the changes since then; delete it to start again from the documents
//! DIR/control         a socket: one line in, one line out, see [`control`]; `control.PID` of a second process
//! DIR/lock            locked by a process while it reads or changes something; contains the number of changes
//! ```
//! Several processes may open the same directory, as several processes may use one libvirtd: each sees the changes of
//! the others and gets their events. Latencies, faults and the connection belong to each process alone. When a process
//! stops or dies in the middle of a call, the call is not completed, whereas libvirtd would complete it.
//!
//! It is made for tests, demonstrations and load tests, and marks itself as simulated ([`HostInfo::simulated`]). There
//! is no QEMU and therefore no monitor, and the guest agent is scripted.
//!
//! ```text
//! mod, inner       Sim: the Hypervisor trait, and the tasks
//! host, device     the state: devices, domains and the connection
//! attach, detach, power, mdev   what libvirt does with them
//! refusal          libvirt's errors, with libvirt's messages
//! document, plug   the documents and their changes
//! open, store, config, open_error   the directory
//! control          the control socket
//! hook             what runs for a function at a moment
//! generate         large hosts for tests and benchmarks
//! demo             the made-up host of `hotslot serve --simulate`
//! ```

mod attach;
mod config;
mod control;
pub mod demo;
mod detach;
mod device;
mod document;
pub mod generate;
mod hook;
mod host;
mod inner;
mod mdev;
mod open;
mod open_error;
mod plug;
mod power;
mod refusal;
mod store;
mod vf_count;
mod vf_settings;
mod vgpu;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use config::{Action, At, Fault, Operation};
pub use control::{control, control_of};
use host::{Host, Link};
use inner::{Inner, until_closed};
use nix::time::{ClockId, clock_gettime};
use open_error::Locked;
pub use open_error::OpenError;
use refusal::Refusal;
use tokio::sync::{Notify, broadcast};
use tokio::time::Instant;
use uuid::Uuid;

use crate::calls_out::{Overdue, Subject};
use crate::device::HostDevice;
use crate::hook::{Hooks, When};
use crate::hypervisor::{
    DetachScope, DomainInfo, DomainView, Error, ErrorKind, Event, HostInfo, Hypervisor, Lifecycle, Scope,
};
use crate::local;
use crate::mdev::{Mdev, MdevType};
use crate::netlink;
use crate::overdue::OverdueCall;
use crate::pci::PciAddress;
use crate::vf::VfSettings;
use crate::vgpu::{VgpuChange, VgpuVf};

/// The interval of the checks whether another process has changed something.
const OTHERS: Duration = Duration::from_millis(50);

/// The interval of the checks whether a stopped process has released the lock.
const LOCKED_LOOK: Duration = Duration::from_secs(1);

/// How long a call waits for a domain that another call is changing, as in libvirt.
const JOB_WAIT: Duration = Duration::from_secs(30);

/// A simulated host. Dropping it closes the directory and ends its tasks.
#[derive(Debug)]
pub struct Sim {
    inner: Arc<Inner>,
    sysroot: Option<PathBuf>,
    remote: bool,
    limits: Limits,
    overdue: Overdue,
    /// The path of the control socket.
    socket: Option<PathBuf>,
}

/// The time limits after which a caller stops waiting for a call, as in the adapter to real hosts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// The limit of a call that reads.
    pub read: Duration,
    /// The limit of a call that changes something.
    pub change: Duration,
}

impl Default for Limits {
    /// 30 s and 120 s.
    fn default() -> Self {
        Self { read: Duration::from_secs(30), change: Duration::from_secs(120) }
    }
}

impl Sim {
    /// Opens a directory. It must be called in a tokio runtime.
    ///
    /// # Errors
    /// [`OpenError`] when a file cannot be read or does not fit the others, when another process keeps the lock, or
    /// outside of a tokio runtime.
    pub fn open(dir: &Path) -> Result<Arc<Self>, OpenError> {
        Self::open_with(dir, Limits::default())
    }

    /// As [`open`](Self::open), with other time limits.
    ///
    /// # Errors
    /// As for `open`.
    pub fn open_with(dir: &Path, limits: Limits) -> Result<Arc<Self>, OpenError> {
        let runtime = tokio::runtime::Handle::try_current().map_err(|_| OpenError::NoRuntime)?;
        let host = Host::open(dir, Instant::now())?;
        let remote = host.config.remote;
        let sysroot = Some(host.dir.join(open::ROOT)).filter(|root| root.is_dir() && !remote);
        let durable = host.store.is_durable().then(|| host.dir.clone());
        let (link, events) = (host.link.subscribe(), host.events.clone());
        let inner = Arc::new(Inner { host: Mutex::new(host), link, events, wake: Notify::new() });
        runtime.spawn(until_closed(inner.clone(), clock(inner.clone())));
        let mut at = None;
        if let Some(dir) = durable {
            watch_others(&inner);
            match control::listen(&dir) {
                Ok((socket, path)) => {
                    at = Some(path);
                    runtime.spawn(until_closed(inner.clone(), control::serve(socket, inner.clone())));
                }
                Err(error) => {
                    tracing::warn!(dir = %dir.display(), %error, "simulated host: cannot create the control socket")
                }
            }
        }
        Ok(Arc::new(Self { inner, sysroot, remote, limits, overdue: Overdue::default(), socket: at }))
    }

    /// Executes a line as if it came from the control socket.
    ///
    /// # Errors
    /// The reason why it failed, for people.
    pub fn control(&self, line: &str) -> Result<(), String> {
        self.inner.with(|host, now| host.command(line, now)).unwrap_or_else(|locked| Err(locked.to_string()))
    }

    /// Makes one call, with its latency and faults. As with libvirtd, the call is completed even when the caller no
    /// longer waits for it.
    async fn call<T: Send + 'static>(
        &self,
        operation: Operation,
        subject: Subject,
        what: &str,
        work: impl FnOnce(&mut Host, Instant, bool) -> Result<T, Refusal> + Send + 'static,
    ) -> Result<T, Error> {
        let inner = self.inner.clone();
        let domain = match subject {
            Subject::Domain(domain) => Some(domain),
            Subject::Nothing | Subject::Function(_) => None,
        };
        let begun = std::time::Instant::now();
        let name = || domain.map(|domain| format!("{what} domain {}", self.inner.name_of(domain)));
        let limit = if operation.changes() { self.limits.change } else { self.limits.read };
        let mut done = tokio::spawn(until_closed(inner.clone(), inner.perform(operation, domain, work)));
        let mut link = self.inner.link.clone();
        let result = tokio::select! {
            biased;
            done = &mut done => done.ok().flatten().unwrap_or_else(|| Err(refusal::away())),
            _ = link.wait_for(|link| *link != Link::Up) => Err(refusal::away()),
            () = tokio::time::sleep(limit) => {
                // A command to the agent or the monitor does not change the domain.
                let subject = match subject {
                    Subject::Domain(_) if operation.is_job() => subject,
                    Subject::Function(_) if operation.changes() => subject,
                    Subject::Nothing | Subject::Domain(_) | Subject::Function(_) => Subject::Nothing,
                };
                let overdue = self.overdue.note(name().unwrap_or_else(|| what.to_owned()), subject, begun);
                let events = self.inner.events.clone();
                tokio::spawn(async move {
                    let _ = done.await;
                    drop(overdue);
                    if let Some(event) = subject.came_back() {
                        let _ = events.send(event);
                    }
                });
                Err(refusal::late(limit))
            }
        };
        result.map_err(|refused| refused.of(name().unwrap_or_else(|| what.to_owned())))
    }
}

impl Drop for Sim {
    fn drop(&mut self) {
        let mut host = self.inner.lock();
        if let Some(socket) = &self.socket {
            // The next process to open the directory creates its own socket.
            let _ = std::fs::remove_file(socket);
        }
        host.store.close();
        host.link.send_replace(Link::Closed);
    }
}

#[async_trait]
impl Hypervisor for Sim {
    async fn host(&self) -> Result<HostInfo, Error> {
        self.call(Operation::Host, Subject::Nothing, "read the host", |host, _, _| Ok(host.info())).await
    }

    async fn node_sockets(&self) -> Result<Option<BTreeMap<u32, u32>>, Error> {
        self.call(Operation::Host, Subject::Nothing, "read the host's capabilities", |host, _, _| {
            Ok(host.config.node_sockets.clone().map(|sockets| (0..).zip(sockets).collect()))
        })
        .await
    }

    async fn devices(&self) -> Result<Vec<HostDevice>, Error> {
        self.call(Operation::Devices, Subject::Nothing, "list node devices", |host, _, _| {
            Ok(host.devices.iter().map(|device| device.info.clone()).collect())
        })
        .await
    }

    async fn device(&self, address: PciAddress) -> Result<HostDevice, Error> {
        let what = format!("read node device {}", address.node_name());
        self.call(Operation::Device, Subject::Nothing, &what, move |host, _, _| host.device(address)).await
    }

    async fn node_detach(&self, address: PciAddress) -> Result<(), Error> {
        let what = format!("unbind the host driver of {address}");
        self.call(Operation::NodeDetach, Subject::Function(address), &what, move |host, _, _| {
            host.node_detach(address)
        })
        .await
    }

    async fn node_reattach(&self, address: PciAddress) -> Result<(), Error> {
        let what = format!("rebind the host driver of {address}");
        self.call(Operation::NodeReattach, Subject::Function(address), &what, move |host, _, _| {
            host.node_reattach(address)
        })
        .await
    }

    async fn node_reset(&self, address: PciAddress) -> Result<(), Error> {
        let what = format!("reset {address}");
        self.call(Operation::NodeReset, Subject::Function(address), &what, move |host, _, _| {
            host.node_reset(address)
        })
        .await
    }

    async fn vf_settings(&self, vf: PciAddress) -> Result<VfSettings, Error> {
        if self.remote {
            return Err(netlink::on_another_machine(vf));
        }
        let what = format!("read the settings of VF {vf}");
        self.call(Operation::VfSettings, Subject::Nothing, &what, move |host, _, _| host.vf_settings(vf))
            .await
    }

    async fn set_vf_settings(&self, vf: PciAddress, wanted: &VfSettings) -> Result<(), Error> {
        let (what, wanted) = (format!("change the settings of VF {vf}"), *wanted);
        self.call(Operation::SetVfSettings, Subject::Function(vf), &what, move |host, _, _| {
            host.set_vf_settings(vf, &wanted)
        })
        .await
    }

    async fn vgpu_vfs(&self, only: Option<PciAddress>) -> Result<Vec<VgpuVf>, Error> {
        if self.remote {
            return Err(local::vgpus_on_another_machine());
        }
        let what = "read the vGPU types of VFs";
        let subject = only.map_or(Subject::Nothing, Subject::Function);
        self.call(Operation::VgpuVfs, subject, what, move |host, _, _| Ok(host.vgpu_vfs(only))).await
    }

    async fn may_set_vgpu_types(&self) -> Result<(), Error> {
        let what = "see whether vGPU types can be set";
        self.call(Operation::MaySetVgpuTypes, Subject::Nothing, what, |_, _, _| Ok(())).await
    }

    async fn set_vgpu_type(&self, change: &VgpuChange) -> Result<(), Error> {
        let (subject, change) = (Subject::Function(change.address), change.clone());
        let what = change.operation();
        self.call(Operation::SetVgpuType, subject, &what, move |host, _, _| host.set_vgpu_type(&change)).await
    }

    async fn set_vf_count(&self, pf: PciAddress, from: u32, to: u32) -> Result<(), Error> {
        let what = format!("set the number of VFs of {pf} to {to}");
        if self.remote {
            return Err(Error::new(ErrorKind::Unsupported, what, local::OF_ANOTHER_MACHINE));
        }
        self.call(Operation::SetVfCount, Subject::Function(pf), &what, move |host, _, _| {
            host.set_vf_count(pf, from, to)
        })
        .await
    }

    fn hooks(&self) -> Result<Hooks, Error> {
        self.read_hooks()
    }

    async fn run_hook(&self, address: PciAddress, when: When, limit: Duration) -> Result<(), Error> {
        self.run_own_hook(address, when, limit).await
    }

    async fn mdev_types(&self, parent: PciAddress) -> Result<Vec<MdevType>, Error> {
        let what = format!("read node device {}", parent.node_name());
        self.call(Operation::MdevTypes, Subject::Nothing, &what, move |host, _, _| host.mdev_types(parent))
            .await
    }

    async fn mdevs(&self) -> Result<Vec<Mdev>, Error> {
        self.call(Operation::Mdevs, Subject::Nothing, "list mediated devices", |host, _, _| Ok(host.mdevs()))
            .await
    }

    async fn create_mdev(&self, parent: PciAddress, mdev_type: &str, uuid: Uuid) -> Result<Mdev, Error> {
        let what = format!("create mediated device {uuid} on {parent}");
        let mdev_type = mdev_type.to_owned();
        let work = move |host: &mut Host, _, _| host.create_mdev(parent, &mdev_type, uuid);
        self.call(Operation::CreateMdev, Subject::Function(parent), &what, work).await
    }

    async fn destroy_mdev(&self, mdev: Uuid) -> Result<(), Error> {
        let what = format!("remove mediated device {mdev}");
        let made = self.inner.lock().mdevs().into_iter().find(|made| made.uuid == mdev);
        let subject = made.and_then(|made| made.parent).map_or(Subject::Nothing, Subject::Function);
        self.call(Operation::DestroyMdev, subject, &what, move |host, _, _| host.destroy_mdev(mdev)).await
    }

    async fn domains(&self) -> Result<Vec<DomainInfo>, Error> {
        self.call(Operation::Domains, Subject::Nothing, "list domains", |host, _, _| {
            Ok(host.domains.values().map(host::Domain::info).collect())
        })
        .await
    }

    async fn domain(&self, domain: Uuid) -> Result<DomainView, Error> {
        self.call(Operation::Domain, Subject::Domain(domain), "read", move |host, _, _| host.view(domain))
            .await
    }

    async fn attach(&self, domain: Uuid, xml: &str, scope: Scope) -> Result<(), Error> {
        let xml = xml.to_owned();
        self.call(Operation::Attach, Subject::Domain(domain), "attach to", move |host, _, halfway| {
            let scope = if halfway && scope == Scope::LiveAndConfig { Scope::Live } else { scope };
            host.attach(domain, &xml, scope)
        })
        .await
    }

    async fn detach(&self, domain: Uuid, alias: &str, scope: DetachScope) -> Result<(), Error> {
        let alias = alias.to_owned();
        let what = format!("detach {alias} from");
        self.call(Operation::Detach, Subject::Domain(domain), &what, move |host, now, _| {
            host.detach(domain, &alias, scope, now)
        })
        .await
    }

    async fn set_owner(&self, domain: Uuid, project: Option<&str>) -> Result<(), Error> {
        let project = project.map(str::to_owned);
        self.call(Operation::SetOwner, Subject::Domain(domain), "set the owner of", move |host, _, _| {
            host.set_owner(domain, project.as_deref())
        })
        .await
    }

    async fn agent(&self, domain: Uuid, command: &str, timeout: Duration) -> Result<String, Error> {
        let command = command.to_owned();
        let what = "send a command to the guest agent of";
        let answer = self.call(Operation::Agent, Subject::Domain(domain), what, move |host, _, _| {
            host.ask_agent(domain, &command)
        });
        let late = |_| Err(refusal::agent_away().of(format!("{what} domain {}", self.inner.name_of(domain))));
        tokio::time::timeout(timeout, answer).await.unwrap_or_else(late)
    }

    async fn monitor(&self, domain: Uuid, _command: &str) -> Result<String, Error> {
        let none = || Refusal::new(ErrorKind::Unsupported, "a simulated host has no QEMU monitor");
        self.call(
            Operation::Monitor,
            Subject::Domain(domain),
            "send a command to the QEMU monitor of",
            move |host, _, _| host.domain(domain).and_then(|_| Err(none())),
        )
        .await
    }

    fn events(&self) -> broadcast::Receiver<Event> {
        self.inner.events.subscribe()
    }

    fn connection(&self) -> Result<(), String> {
        match *self.inner.link.borrow() {
            Link::Up => Ok(()),
            Link::Away => Err("the simulated libvirtd is unreachable".into()),
            Link::Closed => Err("the simulated host was closed".into()),
        }
    }

    fn overdue(&self) -> Vec<OverdueCall> {
        self.overdue.list()
    }

    fn sysroot(&self) -> Option<&Path> {
        self.sysroot.as_deref()
    }

    fn is_remote(&self) -> bool {
        self.remote
    }
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, Host> {
        self.host.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs `work` on the host, after the changes that are due and before those that follow at once.
    fn with<T>(&self, work: impl FnOnce(&mut Host, Instant) -> T) -> Result<T, Locked> {
        let (result, due) = self.at_once(work)?;
        if due.is_some() {
            self.wake.notify_one();
        }
        Ok(result)
    }

    /// As `with`, but without waking the clock task. It also returns when the next change is due.
    fn at_once<T>(&self, work: impl FnOnce(&mut Host, Instant) -> T) -> Result<(T, Option<Instant>), Locked> {
        let mut host = self.lock();
        let (now, begun) = (Instant::now(), processor_time());
        host.enter(now)?;
        host.advance(now);
        let result = work(&mut host, now);
        host.advance(now);
        host.store.leave();
        host.statistics.cpu_ns += processor_time().saturating_sub(begun).as_nanos() as u64;
        Ok((result, host.next_due()))
    }

    fn name_of(&self, domain: Uuid) -> String {
        self.lock().domains.get(&domain).map_or_else(|| domain.to_string(), |domain| domain.name.clone())
    }

    async fn perform<T>(
        self: Arc<Self>,
        operation: Operation,
        domain: Option<Uuid>,
        work: impl FnOnce(&mut Host, Instant, bool) -> Result<T, Refusal>,
    ) -> Result<T, Refusal> {
        let job = domain.filter(|_| operation.is_job());
        let job = job.and_then(|uuid| self.lock().domains.get(&uuid).map(|domain| domain.job.clone()));
        let _job = match job {
            Some(job) => Some(
                tokio::time::timeout(JOB_WAIT, job.lock_owned()).await.map_err(|_| refusal::job_is_held())?,
            ),
            None => None,
        };
        let (latency, fault) =
            self.with(|host, _| host.begin(operation, domain)).map_err(refusal::locked)??;
        if !latency.is_zero() {
            tokio::time::sleep(latency).await;
        }
        if let Some(fault) = fault.as_ref().filter(|fault| fault.at == At::Before) {
            self.apply_fault(operation, domain, fault).await?;
        }
        let halfway = fault.as_ref().is_some_and(|fault| fault.at == At::Between);
        let lost = fault.as_ref().is_some_and(|fault| fault.action == Action::LoseEvent);
        let done = self.with(|host, now| {
            host.check_link()?;
            host.lose_event = lost;
            let done = work(host, now, halfway);
            host.lose_event = false;
            done
        });
        let done = done.map_err(refusal::locked)?;
        if let Some(fault) = fault.as_ref().filter(|fault| fault.at != At::Before) {
            self.apply_fault(operation, domain, fault).await?;
        }
        done
    }

    /// Applies a fault.
    async fn apply_fault(
        &self,
        operation: Operation,
        domain: Option<Uuid>,
        fault: &Fault,
    ) -> Result<(), Refusal> {
        tracing::debug!(action = ?fault.action, at = ?fault.at, "simulated host: a fault applies to {operation:?}");
        match fault.action {
            Action::LoseEvent => Ok(()),
            Action::Fail => {
                let text = fault.text.as_deref().unwrap_or("a simulated fault");
                Err(Refusal::new(fault.kind, text))
            }
            Action::Away => {
                let back_in = fault.duration().unwrap_or_default();
                self.with(|host, now| host.disconnect("a simulated fault", Some(now + back_in)))
                    .map_err(refusal::locked)?;
                Err(refusal::away())
            }
            Action::Hang => {
                let mut unhang = self.lock().unhang.subscribe();
                let forever = Duration::from_secs(u64::from(u32::MAX));
                let _ = tokio::time::timeout(fault.duration().unwrap_or(forever), unhang.changed()).await;
                fault.text.as_deref().map_or(Ok(()), |text| Err(Refusal::new(fault.kind, text)))
            }
            Action::Crash => {
                // The error is ignored: a guest that does not run cannot crash.
                let crash = |domain| self.with(|host, now| host.stop(domain, &[Lifecycle::Stopped], now));
                let _ = domain.map(crash);
                Ok(())
            }
            Action::Kill => {
                let own = std::process::id().to_string();
                match Command::new("kill").args(["-KILL", &own]).status() {
                    Ok(_) => std::future::pending().await,
                    Err(error) => Err(Refusal::new(ErrorKind::Unsupported, format_args!("kill: {error}"))),
                }
            }
        }
    }
}

/// The processor time that this thread has used.
fn processor_time() -> Duration {
    // Linux has this clock since version 2.6.12.
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).map_or(Duration::ZERO, Duration::from)
}

/// Checks whether other processes change something, until the simulated host is closed. It uses its own thread,
/// because tests may pause the clock of the tasks.
fn watch_others(inner: &Arc<Inner>) {
    let inner = Arc::downgrade(inner);
    let watch = move || {
        while let Some(inner) = inner.upgrade() {
            if inner.lock().store.is_behind() {
                inner.wake.notify_one();
            }
            drop(inner);
            std::thread::sleep(OTHERS);
        }
    };
    let thread = std::thread::Builder::new().name("sim".into()).stack_size(64 << 10).spawn(watch);
    if let Err(error) = thread {
        tracing::warn!(%error, "simulated host: cannot start the thread that watches other processes");
    }
}

/// Performs changes when they are due.
async fn clock(inner: Arc<Inner>) {
    loop {
        match inner.at_once(|_, _| ()) {
            Ok(((), Some(due))) => {
                let _ = tokio::time::timeout_at(due, inner.wake.notified()).await;
            }
            Ok(((), None)) => inner.wake.notified().await,
            Err(error) => {
                tracing::error!(%error, "simulated host: cannot perform the changes that are due");
                tokio::time::sleep(LOCKED_LOOK).await;
            }
        }
    }
}
