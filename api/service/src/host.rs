//! The configured hosts: each with its row, its hypervisor, and whether records and hypervisor agree yet.

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
use hotslot_model::device::Functions;
use hotslot_model::id::ServerId;
use hotslot_model::rules::{Conflicts, Foreign, Inventory};
use hotslot_store::HypervisorRow;
use tokio::sync::{Mutex, Notify, OwnedSemaphorePermit, Semaphore, mpsc, watch};
use uuid::Uuid;

use crate::config;
use crate::error::Error;

/// How long a request waits for a host that was just reached to be compared with the records.
const SYNC_PATIENCE: Duration = Duration::from_secs(10);

/// How long a list of all hosts waits for one of them.
const LIST_PATIENCE: Duration = Duration::from_secs(5);

/// One configured host.
pub struct Host {
    /// Its row.
    pub row: HypervisorRow,
    /// Its configured name.
    pub name: String,
    /// Its configured URI.
    pub uri: String,
    /// The hypervisor on it.
    pub hypervisor: Arc<dyn Hypervisor>,
    /// Whether records and hypervisor have been brought together since the connection came up.
    synced: watch::Sender<bool>,
    /// Room for attaches and detaches, and how much there is.
    queue: (Arc<Semaphore>, u32),
    /// Told when something may be given back to the host's drivers.
    owed: Notify,
    /// Who takes functions from their host drivers for a whole group, or gives them back.
    pub(crate) groups: Mutex<()>,
    /// Every PCI function, as it was last read.
    functions: RwLock<Arc<Functions>>,
    /// Every mediated device, as they were last read.
    mdevs: RwLock<Arc<Vec<Mdev>>>,
    /// The host's functions in each domain that has any, as it was last read.
    held: RwLock<BTreeMap<ServerId, Held>>,
    /// By which rules they were last recorded, and which of these were left out. Held while they are read and
    /// recorded.
    pub(crate) recorded_by: Mutex<Option<(Arc<Inventory>, Conflicts)>>,
    /// What is to be compared with its records once more.
    again: mpsc::UnboundedSender<Recheck>,
    /// The other end of `again`, until someone follows the host.
    pub(crate) asked_again: Mutex<Option<mpsc::UnboundedReceiver<Recheck>>>,
}

/// The functions that one domain has.
#[derive(Debug, Default, PartialEq, Eq)]
struct Held {
    /// Those that the running guest has.
    live: BTreeSet<PciAddress>,
    /// Those that others gave it.
    foreign: BTreeMap<PciAddress, Foreign>,
    /// The character devices of the vDPA devices that it uses.
    vdpas: BTreeMap<String, Foreign>,
    /// The mediated devices that it has, running or by its definition.
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

/// Something that is to be compared with its records once more.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Recheck {
    /// Everything.
    Everything,
    /// A server.
    Server(ServerId),
    /// A server with a device of which it is not known whether its guest was asked to let it go.
    Open(ServerId),
    /// None: something of a server has ended, so what failed there before says nothing of what fails next.
    Settled(ServerId),
    /// A PCI function.
    Function(PciAddress),
    /// The host's mediated devices.
    Mdevs,
    /// A PCI function that a call of another process was out for, which has returned.
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
        let (again, asked_again) = mpsc::unbounded_channel();
        Self {
            row,
            name: configured.name.clone(),
            uri: configured.uri.clone(),
            hypervisor,
            synced,
            queue: (Arc::new(Semaphore::new(queue as usize)), queue),
            owed: Notify::new(),
            groups: Mutex::default(),
            functions: RwLock::default(),
            mdevs: RwLock::default(),
            held: RwLock::default(),
            recorded_by: Mutex::default(),
            again,
            asked_again: Mutex::new(Some(asked_again)),
        }
    }

    /// Asks for everything to be compared with the records once more.
    pub(crate) fn look_everywhere(&self) {
        // Nobody listens only while the service ends.
        let _ = self.again.send(Recheck::Everything);
    }

    /// Asks for a server to be compared with its records once more.
    pub(crate) fn look_again(&self, server: ServerId) {
        // Nobody listens only while the service ends.
        let _ = self.again.send(Recheck::Server(server));
    }

    /// Asks for a server's guest to be asked once more, a while from now, to let go of what is to leave it.
    pub(crate) fn ask_again(&self, server: ServerId) {
        let _ = self.again.send(Recheck::Open(server));
    }

    /// Tells that something of a server has ended: what fails there next is soon tried again.
    pub(crate) fn settled(&self, server: ServerId) {
        let _ = self.again.send(Recheck::Settled(server));
    }

    /// Asks for a function to be compared with its record once more.
    pub(crate) fn look_at(&self, address: PciAddress) {
        let _ = self.again.send(Recheck::Function(address));
    }

    /// Tells that a call of another process has returned, or that nobody waits for it any more.
    pub(crate) fn came_back(&self, server: Option<ServerId>, address: Option<PciAddress>) {
        if let Some(server) = server {
            self.look_again(server);
            self.ask_again(server);
        }
        if let Some(address) = address {
            let _ = self.again.send(Recheck::CameBack(address));
        }
    }

    /// Asks for what was taken for whole groups to be given back, where nobody has any of the group, and for what the
    /// host itself was to hold to be settled.
    pub(crate) fn give_back(&self) {
        self.owed.notify_one();
    }

    /// Waits until that is asked for. What was asked while nobody waited counts once.
    pub(crate) async fn asked_to_give_back(&self) {
        self.owed.notified().await;
    }

    /// Asks for the mediated devices of the host to be looked at once more, a while from now.
    pub fn look_at_mdevs_again(&self) {
        let _ = self.again.send(Recheck::Mdevs);
    }

    /// Every PCI function, as it was last read: none before the host was first reached.
    pub fn functions(&self) -> Arc<Functions> {
        Arc::clone(&self.functions.read().unwrap_or_else(PoisonError::into_inner))
    }

    pub(crate) fn set_functions(&self, functions: Arc<Functions>) {
        *self.functions.write().unwrap_or_else(PoisonError::into_inner) = functions;
    }

    /// Every mediated device, as they were last read.
    pub fn mdevs(&self) -> Arc<Vec<Mdev>> {
        Arc::clone(&self.mdevs.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Reads the mediated devices that the host has; a hypervisor that does not know of any has none.
    ///
    /// # Errors
    /// What the hypervisor answers.
    pub async fn look_at_mdevs(&self) -> Result<Arc<Vec<Mdev>>, Error> {
        let mdevs = match self.hypervisor.mdevs().await {
            Err(error) if error.kind == ErrorKind::Unsupported => Vec::new(),
            answer => answer.map_err(self.error("list the host's mediated devices"))?,
        };
        let mdevs = Arc::new(mdevs);
        *self.mdevs.write().unwrap_or_else(PoisonError::into_inner) = Arc::clone(&mdevs);
        Ok(mdevs)
    }

    /// The domain that has a mediated device, by whomever it was given it.
    pub fn has_mdev(&self, uuid: Uuid) -> Option<ServerId> {
        let held = self.held.read().unwrap_or_else(PoisonError::into_inner);
        held.iter().find(|(_, held)| held.mdevs.contains(&uuid)).map(|(server, _)| *server)
    }

    /// The functions that domains have and hotslot did not give them, by themselves or by the vDPA devices that are
    /// made of them, as they were last read. Of two domains with one function the running one counts.
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

    /// The functions that running guests have, by whomever they were given them.
    pub(crate) fn in_guests(&self) -> BTreeSet<PciAddress> {
        let held = self.held.read().unwrap_or_else(PoisonError::into_inner);
        held.values().flat_map(|held| &held.live).copied().collect()
    }

    /// The domains that have functions.
    pub(crate) fn holders(&self) -> BTreeSet<ServerId> {
        self.held.read().unwrap_or_else(PoisonError::into_inner).keys().copied().collect()
    }

    /// Says what a domain has, now that it was read; none when it is gone.
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
        // What waited for it may be given back now.
        if has_less {
            self.give_back();
        }
        if has_fewer_mdevs {
            self.look_at_mdevs_again();
        }
    }

    pub(crate) fn set_synced(&self, synced: bool) {
        self.synced.send_replace(synced);
    }

    /// Whether the records agree with the hypervisor, as far as events tell.
    pub fn is_synced(&self) -> bool {
        *self.synced.borrow()
    }

    /// Waits until requests may be answered: the hypervisor is reached and the records agree with it.
    ///
    /// # Errors
    /// [`Error::HostAway`].
    pub async fn ready(&self) -> Result<(), Error> {
        let away = |reason: String| Error::HostAway { host: self.name.clone(), reason };
        self.hypervisor.connection().map_err(away)?;
        let mut synced = self.synced.subscribe();
        match tokio::time::timeout(SYNC_PATIENCE, synced.wait_for(|synced| *synced)).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) | Err(_) => Err(away("it was reached, but its devices are still being read".into())),
        }
    }

    /// Room for one more attach or detach, until the permit is dropped.
    ///
    /// # Errors
    /// [`Error::Full`].
    pub(crate) fn admit(&self) -> Result<OwnedSemaphorePermit, Error> {
        let (room, limit) = &self.queue;
        let full = |_| Error::Full { host: self.name.clone(), limit: *limit };
        Arc::clone(room).try_acquire_owned().map_err(full)
    }

    /// A call for a list of several hosts, which does not wait long for one of them.
    ///
    /// # Errors
    /// The call's; [`ErrorKind::TimedOut`].
    pub async fn soon<T>(
        &self,
        call: impl Future<Output = Result<T, hypervisor::Error>>,
    ) -> Result<T, hypervisor::Error> {
        let late = |_| {
            let message = format!("no answer within {LIST_PATIENCE:?}");
            Err(hypervisor::Error::new(ErrorKind::TimedOut, "ask for a list", message))
        };
        tokio::time::timeout(LIST_PATIENCE, call).await.unwrap_or_else(late)
    }

    /// The oldest call that may change a server, was given up and has not come back.
    pub(crate) fn stuck(&self, server: ServerId) -> Option<OverdueCall> {
        self.hypervisor.overdue().into_iter().find(|call| call.domain == Some(server.0))
    }

    /// The oldest call that may change a PCI function, or the mediated devices that are made of it, was given up and
    /// has not come back.
    pub(crate) fn stuck_at(&self, address: PciAddress) -> Option<OverdueCall> {
        self.hypervisor.overdue().into_iter().find(|call| call.address == Some(address))
    }

    /// A server of this host; none when it has no such server.
    ///
    /// # Errors
    /// [`Error::HostAway`] and what the hypervisor answers.
    pub async fn server(&self, server: ServerId) -> Result<Option<DomainView>, Error> {
        match self.hypervisor.domain(server.0).await {
            Ok(view) => Ok(Some(view)),
            Err(error) if error.kind == ErrorKind::NoDomain => Ok(None),
            Err(error) => Err(self.error(format!("look up server {server}"))(error)),
        }
    }

    /// Puts a failure of this host's hypervisor into the service's words.
    pub fn error(&self, context: impl Into<String>) -> impl FnOnce(hypervisor::Error) -> Error {
        let context = context.into();
        move |error| {
            if error.kind == ErrorKind::Away {
                Error::HostAway { host: self.name.clone(), reason: format!("{context}: {}", error.message) }
            } else {
                Error::Hypervisor { context, source: error }
            }
        }
    }
}

/// Opens the hypervisor that a URI names. A libvirt host that is away now is connected to later.
///
/// # Errors
/// [`config::ConfigError::Value`] for a simulated host whose directory cannot be used.
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
