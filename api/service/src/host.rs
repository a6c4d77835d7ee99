//! The configured hosts: for each its record, its hypervisor, and whether the records agree with the hypervisor yet.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use hotslot_driver::device::HostDevice;
use hotslot_driver::hypervisor::{self, DomainView, ErrorKind, Hypervisor, OverdueCall};
use hotslot_driver::libvirt::{Libvirt, Options};
use hotslot_driver::mdev::Mdev;
use hotslot_driver::pci::PciAddress;
use hotslot_driver::sim::{self, Sim};
use hotslot_model::assignment::Kind;
use hotslot_model::device::Functions;
use hotslot_model::id::ServerId;
use hotslot_model::rules::{Conflicts, Foreign, Inventory};
use hotslot_store::HypervisorRow;
use tokio::sync::{Mutex, Notify, OwnedSemaphorePermit, Semaphore, mpsc, watch};
use uuid::Uuid;

use crate::config;
use crate::config::HypervisorMode;
use crate::error::Error;

/// How long a request waits until a host that was just connected has been compared with the records.
const SYNC_PATIENCE: Duration = Duration::from_secs(10);

/// How long a request that reads several hosts waits for one of them.
const LIST_PATIENCE: Duration = Duration::from_secs(5);

/// One configured host.
pub struct Host {
    /// The host's record.
    pub row: HypervisorRow,
    /// The configured name.
    pub name: String,
    /// The configured URI.
    pub uri: String,
    /// Whether anything may be changed on the host, as the configuration says.
    pub mode: HypervisorMode,
    /// The hypervisor of the host.
    pub hypervisor: Arc<dyn Hypervisor>,
    /// Whether everything has been compared with the records since the connection came up.
    synced: watch::Sender<bool>,
    /// The permits for attaches and detaches, and their number.
    queue: (Arc<Semaphore>, u32),
    /// Notified when functions may be rebound to their host drivers, or bindings released.
    pending_rebind: Notify,
    /// The lock of the host's IOMMU groups: held while functions are unbound from host drivers or rebound to them.
    pub(crate) groups: Mutex<()>,
    /// All PCI functions as they were last read.
    functions: RwLock<Arc<Functions>>,
    /// All mediated devices as they were last read.
    mdevs: RwLock<Arc<Vec<Mdev>>>,
    /// The devices of each domain that has any, as it was last read.
    held: RwLock<BTreeMap<ServerId, Held>>,
    /// The kinds of the disagreements about each server that hotslot does not resolve by itself, as of the server's last
    /// comparison.
    unresolved: RwLock<BTreeMap<ServerId, Vec<Kind>>>,
    /// The mediated devices that could not be created again when that was last tried.
    unmade: RwLock<BTreeSet<Uuid>>,
    /// The rules of the last scan, with the entries that were left out; `None` when the next scan has to compare all
    /// devices. Locked during a scan.
    pub(crate) recorded_by: Mutex<Option<(Arc<Inventory>, Conflicts)>>,
    /// Requests to compare something with its records again.
    again: mpsc::UnboundedSender<Recheck>,
    /// The PFs whose number of VFs is being changed.
    changing: RwLock<BTreeSet<PciAddress>>,
    /// Whether what the profile says was made, or failed, since the service started.
    profiled: watch::Sender<bool>,
    /// The receiver of `again`, until the task that follows the host takes it.
    pub(crate) rechecks: Mutex<Option<mpsc::UnboundedReceiver<Recheck>>>,
}

/// The devices of one domain.
#[derive(Debug, Default, PartialEq, Eq)]
struct Held {
    /// The functions in the running guest.
    live: BTreeSet<PciAddress>,
    /// The functions that hotslot did not put there.
    foreign: BTreeMap<PciAddress, Foreign>,
    /// The vDPA devices, by the paths of their character devices.
    vdpas: BTreeMap<String, Foreign>,
    /// The mediated devices in the running guest or in the definition.
    mdevs: BTreeSet<Uuid>,
}

impl Held {
    fn of(view: &DomainView) -> Self {
        let live = view.live.iter().flat_map(|live| &live.hostdevs).map(|hostdev| hostdev.source);
        let documents = [&view.live, &view.persistent].into_iter().flatten();
        let mdevs = documents.flat_map(|document| &document.mdevs).map(|mdev| mdev.uuid).collect();
        Self { live: live.collect(), foreign: Foreign::of(view), vdpas: Foreign::vdpas(view), mdevs }
    }
}

/// A request to the task that follows a host.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Recheck {
    /// Compare everything now.
    Everything,
    /// Compare a server now.
    Server(ServerId),
    /// Compare a server after a pause, because it is unknown whether its guest was requested to release a device.
    Open(ServerId),
    /// Compare nothing, but reset the pause of a server, because one of its assignments has ended.
    Settled(ServerId),
    /// Read a PCI function now.
    Function(PciAddress),
    /// Compare the host's mediated devices after a pause.
    Mdevs,
    /// Compare a PCI function and its mediated devices now, because an overdue call of another process returned.
    CameBack(PciAddress),
}

impl Host {
    pub(crate) fn new(
        row: HypervisorRow,
        configured: &config::Hypervisor,
        hypervisor: Arc<dyn Hypervisor>,
        queue: u32,
    ) -> Self {
        let synced = watch::Sender::new(false);
        let (again, rechecks) = mpsc::unbounded_channel();
        Self {
            row,
            name: configured.name.clone(),
            uri: configured.uri.clone(),
            mode: configured.mode,
            hypervisor,
            synced,
            queue: (Arc::new(Semaphore::new(queue as usize)), queue),
            pending_rebind: Notify::new(),
            groups: Mutex::default(),
            functions: RwLock::default(),
            mdevs: RwLock::default(),
            held: RwLock::default(),
            unresolved: RwLock::default(),
            unmade: RwLock::default(),
            recorded_by: Mutex::default(),
            again,
            changing: RwLock::default(),
            profiled: watch::Sender::new(false),
            rechecks: Mutex::new(Some(rechecks)),
        }
    }

    /// Requests a comparison of everything with the records.
    pub(crate) fn queue_full_check(&self) {
        // The receiver is only gone while the service ends.
        let _ = self.again.send(Recheck::Everything);
    }

    /// Requests a comparison of a server with its records.
    pub(crate) fn queue_server_check(&self, server: ServerId) {
        // The receiver is only gone while the service ends.
        let _ = self.again.send(Recheck::Server(server));
    }

    /// Requests a comparison of a server after a pause, which asks its guest again to release devices, and creates its
    /// missing mediated devices again.
    pub(crate) fn queue_unplug_retry(&self, server: ServerId) {
        let _ = self.again.send(Recheck::Open(server));
    }

    /// Reports that an assignment of a server has ended, so that the next failure there is repeated after a short
    /// pause.
    pub(crate) fn settled(&self, server: ServerId) {
        let _ = self.again.send(Recheck::Settled(server));
    }

    /// Requests that a function is read again and compared with its record.
    pub(crate) fn queue_device_scan(&self, address: PciAddress) {
        let _ = self.again.send(Recheck::Function(address));
    }

    /// Reports that an overdue call of another process has returned, or is no longer recorded.
    pub(crate) fn call_returned(&self, server: Option<ServerId>, address: Option<PciAddress>) {
        if let Some(server) = server {
            self.queue_server_check(server);
            self.queue_unplug_retry(server);
        }
        if let Some(address) = address {
            let _ = self.again.send(Recheck::CameBack(address));
        }
    }

    /// Requests that functions are rebound to their host drivers, if no server has any function of their IOMMU group,
    /// and that unfinished bindings are released.
    pub(crate) fn queue_rebind(&self) {
        self.pending_rebind.notify_one();
    }

    /// Waits for a request of [`queue_rebind`](Self::queue_rebind). Requests that arrive before this is called count as one.
    pub(crate) async fn rebind_queued(&self) {
        self.pending_rebind.notified().await;
    }

    /// Requests a comparison of the host's mediated devices after a pause.
    pub fn queue_mdev_check(&self) {
        let _ = self.again.send(Recheck::Mdevs);
    }

    /// Returns all PCI functions as they were last read; empty before the host was first connected.
    pub fn functions(&self) -> Arc<Functions> {
        Arc::clone(&self.functions.read().unwrap_or_else(PoisonError::into_inner))
    }

    pub(crate) fn set_functions(&self, functions: Arc<Functions>) {
        *self.functions.write().unwrap_or_else(PoisonError::into_inner) = functions;
    }

    /// Returns all mediated devices as they were last read.
    pub fn mdevs(&self) -> Arc<Vec<Mdev>> {
        Arc::clone(&self.mdevs.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Reads the mediated devices of the host. A hypervisor that does not support them has none.
    ///
    /// # Errors
    /// Errors of the hypervisor.
    pub async fn read_mdevs(&self) -> Result<Arc<Vec<Mdev>>, Error> {
        let mdevs = match self.hypervisor.mdevs().await {
            Err(error) if error.kind == ErrorKind::Unsupported => Vec::new(),
            answer => answer.map_err(self.error("list the host's mediated devices"))?,
        };
        let mdevs = Arc::new(mdevs);
        *self.mdevs.write().unwrap_or_else(PoisonError::into_inner) = Arc::clone(&mdevs);
        Ok(mdevs)
    }

    /// Notes whether a mediated device could not be created again. Returns whether that was not known.
    pub(crate) fn note_unmade(&self, uuid: Uuid, failed: bool) -> bool {
        let mut all = self.unmade.write().unwrap_or_else(PoisonError::into_inner);
        if failed { all.insert(uuid) } else { all.remove(&uuid) }
    }

    /// Returns the domain that has a mediated device, whether hotslot attached it or not.
    pub fn has_mdev(&self, uuid: Uuid) -> Option<ServerId> {
        let held = self.held.read().unwrap_or_else(PoisonError::into_inner);
        held.iter().find(|(_, held)| held.mdevs.contains(&uuid)).map(|(server, _)| *server)
    }

    /// Returns the functions in domains that hotslot did not put there, also those used as vDPA devices, as of the last
    /// reads. If two domains have the same function, the one that runs with it counts.
    pub fn foreign(&self) -> BTreeMap<PciAddress, Foreign> {
        let mut all = BTreeMap::<PciAddress, Foreign>::new();
        let functions = self.functions();
        let held = self.held.read().unwrap_or_else(PoisonError::into_inner);
        let vdpas = held.values().flat_map(|held| &held.vdpas).filter_map(|(path, foreign)| {
            let made_of_it = |function: &&HostDevice| function.vdpa.contains(path);
            Some((functions.values().find(made_of_it)?.address, foreign))
        });
        let foreign = held.values().flat_map(|held| &held.foreign);
        for (address, foreign) in foreign.map(|(address, foreign)| (*address, foreign)).chain(vdpas) {
            if foreign.live || !all.contains_key(&address) {
                all.insert(address, foreign.clone());
            }
        }
        all
    }

    /// Returns the functions in running guests, whether hotslot attached them or not.
    pub(crate) fn in_guests(&self) -> BTreeSet<PciAddress> {
        let held = self.held.read().unwrap_or_else(PoisonError::into_inner);
        held.values().flat_map(|held| &held.live).copied().collect()
    }

    /// Returns the domains that had devices when they were last read.
    pub(crate) fn holders(&self) -> BTreeSet<ServerId> {
        self.held.read().unwrap_or_else(PoisonError::into_inner).keys().copied().collect()
    }

    /// Stores the devices of a domain that was just read; `None` when the domain is gone.
    pub(crate) fn set_held(&self, server: ServerId, view: Option<&DomainView>) {
        let found = view.map(Held::of).unwrap_or_default();
        let mut all = self.held.write().unwrap_or_else(PoisonError::into_inner);
        let was = all.remove(&server).unwrap_or_default();
        let has_less = !was.live.is_subset(&found.live);
        let has_fewer_mdevs = !was.mdevs.is_subset(&found.mdevs);
        if found != Held::default() {
            all.insert(server, found);
        }
        drop(all);
        // A group that this domain kept busy may be rebound now.
        if has_less {
            self.queue_rebind();
        }
        if has_fewer_mdevs {
            self.queue_mdev_check();
        }
    }

    /// Stores the kinds of the disagreements about a server that hotslot does not resolve by itself.
    pub(crate) fn set_unresolved(&self, server: ServerId, kinds: Vec<Kind>) {
        let mut all = self.unresolved.write().unwrap_or_else(PoisonError::into_inner);
        match kinds.is_empty() {
            true => drop(all.remove(&server)),
            false => drop(all.insert(server, kinds)),
        }
    }

    /// Forgets the disagreements about servers that are not compared any more.
    pub(crate) fn keep_unresolved(&self, compared: &BTreeSet<ServerId>) {
        let mut all = self.unresolved.write().unwrap_or_else(PoisonError::into_inner);
        all.retain(|server, _| compared.contains(server));
    }

    /// Returns the kinds of the disagreements about servers that hotslot does not resolve by itself.
    pub(crate) fn unresolved(&self) -> Vec<Kind> {
        let all = self.unresolved.read().unwrap_or_else(PoisonError::into_inner);
        all.values().flatten().copied().collect()
    }

    /// Returns the PFs whose number of VFs is being changed.
    pub(crate) fn changing_vfs(&self) -> BTreeSet<PciAddress> {
        self.changing.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Offers no VF of a PF to anybody until the result is dropped, because they are about to vanish.
    pub(crate) fn change_vfs(&self, pf: PciAddress) -> ChangingVfs<'_> {
        self.changing.write().unwrap_or_else(PoisonError::into_inner).insert(pf);
        ChangingVfs { host: self, pf }
    }

    /// Notes that what the profile says was made, or failed.
    pub(crate) fn set_profiled(&self) {
        self.profiled.send_replace(true);
    }

    /// Waits until what the profile says was made, or failed.
    pub(crate) async fn profiled(&self) {
        // The sender is part of this host, so that it cannot be gone.
        let _ = self.profiled.subscribe().wait_for(|profiled| *profiled).await;
    }

    /// Returns how many attaches and detaches run or wait, and the largest number.
    pub(crate) fn queued(&self) -> (u32, u32) {
        let (room, limit) = &self.queue;
        let free = u32::try_from(room.available_permits()).unwrap_or(*limit);
        (limit.saturating_sub(free), *limit)
    }

    pub(crate) fn set_synced(&self, synced: bool) {
        self.synced.send_replace(synced);
    }

    /// Returns whether the records agree with the hypervisor: everything was compared since the connection came up.
    pub fn is_synced(&self) -> bool {
        *self.synced.borrow()
    }

    /// Waits until the host can serve requests: its hypervisor is connected and the records agree with it.
    ///
    /// # Errors
    /// [`Error::HostAway`] when it is unreachable, or is not compared in time.
    pub async fn ready(&self) -> Result<(), Error> {
        let unreachable = |reason: String| Error::HostAway { host: self.name.clone(), reason };
        self.hypervisor.connection().map_err(unreachable)?;
        let mut synced = self.synced.subscribe();
        match tokio::time::timeout(SYNC_PATIENCE, synced.wait_for(|synced| *synced)).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) | Err(_) => {
                Err(unreachable("it is connected, but its devices are still being read".into()))
            }
        }
    }

    /// Admits one more attach or detach, which ends when the permit is dropped.
    ///
    /// # Errors
    /// [`Error::Full`] when `[api] queue` of them run or wait already.
    pub(crate) fn admit(&self) -> Result<OwnedSemaphorePermit, Error> {
        let (room, limit) = &self.queue;
        let full = |_| Error::Full { host: self.name.clone(), limit: *limit };
        Arc::clone(room).try_acquire_owned().map_err(full)
    }

    /// Makes a call with a short time limit, for requests that read several hosts.
    ///
    /// # Errors
    /// The error of the call; [`ErrorKind::TimedOut`].
    pub async fn soon<T>(
        &self,
        call: impl Future<Output = Result<T, hypervisor::Error>>,
    ) -> Result<T, hypervisor::Error> {
        let late = |_| {
            let message = format!("no answer within {LIST_PATIENCE:?}");
            Err(hypervisor::Error::new(ErrorKind::TimedOut, "read the host", message))
        };
        tokio::time::timeout(LIST_PATIENCE, call).await.unwrap_or_else(late)
    }

    /// Returns the oldest overdue call that may still change a server.
    pub(crate) fn overdue_call(&self, server: ServerId) -> Option<OverdueCall> {
        self.hypervisor.overdue().into_iter().find(|call| call.domain == Some(server.0))
    }

    /// Returns the oldest overdue call that may still change a PCI function or its mediated devices.
    pub(crate) fn overdue_call_at(&self, address: PciAddress) -> Option<OverdueCall> {
        self.hypervisor.overdue().into_iter().find(|call| call.address == Some(address))
    }

    /// Reads a server of this host; `None` when the host has no such server.
    ///
    /// # Errors
    /// [`Error::HostAway`]; other errors of the hypervisor.
    pub async fn server(&self, server: ServerId) -> Result<Option<DomainView>, Error> {
        match self.hypervisor.domain(server.0).await {
            Ok(view) => Ok(Some(view)),
            Err(error) if error.kind == ErrorKind::NoDomain => Ok(None),
            Err(error) => Err(self.error(format!("look up server {server}"))(error)),
        }
    }

    /// Returns a function that converts an error of this host's hypervisor into an [`Error`] with `context`.
    pub fn error(&self, context: impl Into<String>) -> impl FnOnce(hypervisor::Error) -> Error {
        let context = context.into();
        move |error| {
            if error.kind == ErrorKind::Away {
                Error::HostAway { host: self.name.clone(), reason: format!("{context}: {}", error.message) }
            } else {
                Error::Hypervisor { context, error }
            }
        }
    }
}

/// The VFs of a PF, while their number is changed.
pub(crate) struct ChangingVfs<'h> {
    host: &'h Host,
    pf: PciAddress,
}

impl Drop for ChangingVfs<'_> {
    fn drop(&mut self) {
        self.host.changing.write().unwrap_or_else(PoisonError::into_inner).remove(&self.pf);
    }
}

/// Opens the hypervisor of a configured URI. An unreachable libvirt host is connected to later.
///
/// # Errors
/// [`config::ConfigError::Value`] when the directory of a simulated host cannot be used.
pub fn open(
    configured: &config::Hypervisor,
    options: &config::Libvirt,
) -> Result<Arc<dyn Hypervisor>, config::ConfigError> {
    if let Some(path) = configured.uri.strip_prefix("sim://") {
        let limits = sim::Limits { read: options.call_timeout.0, change: options.attach_timeout.0 };
        let sim = Sim::open_with(Path::new(path), limits).map_err(|error| config::ConfigError::Value {
            key: format!("[[hypervisor]] {}", configured.name),
            reason: error.to_string(),
        })?;
        return Ok(sim);
    }
    Ok(Libvirt::connect(
        &configured.uri,
        Options {
            keepalive: options.keepalive_interval.0,
            keepalive_count: options.keepalive_count,
            read_limit: options.call_timeout.0,
            change_limit: options.attach_timeout.0,
            ..Options::default()
        },
    ))
}
