//! Accelerators: devices that are given away under names of their own, to a server or to the host itself.
//!
//! An accelerator is a name and a spec; which device it is, is decided when it is attached. What it holds is told by
//! the attachments, bindings and mediated devices that were made on its behalf ([`Holder`]): it has no state of its own
//! that a crash could leave behind.

mod attach;
mod binding;
mod mdev;
mod spec;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use futures_util::future::join_all;
use hotslot_driver::binding::HostDriver;
use hotslot_driver::device::HostDevice;
use hotslot_driver::pci::PciAddress;
use uuid::Uuid;

pub(crate) use self::mdev::{Parts, mdev_spec};
pub use self::spec::AccSpec;
use crate::attachment::State;
use crate::error::Error;
use crate::host::Host;
use crate::id::{AcceleratorId, ArqId, DeviceId, HypervisorId, RequestId, ServerId};
use crate::service::Service;
use crate::store::{Accelerator, Attachment, Binding, Device, DeviceStatus, Mdev, words};

/// On whose behalf a device is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Holder {
    /// An accelerator.
    Accelerator(AcceleratorId),
    /// An accelerator request.
    AcceleratorRequest(ArqId),
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Accelerator(id) => write!(f, "accelerator:{id}"),
            Self::AcceleratorRequest(id) => write!(f, "accelerator-request:{id}"),
        }
    }
}

impl Holder {
    /// There is no such holder.
    pub(crate) fn not_found(self) -> Error {
        match self {
            Self::Accelerator(id) => not_found(id),
            Self::AcceleratorRequest(id) => Error::NotFound(format!("accelerator request {id}")),
        }
    }

    /// Where it is given back: the path of a DELETE.
    pub(crate) fn path(self) -> String {
        match self {
            Self::Accelerator(id) => format!("/accelerators/{id}"),
            Self::AcceleratorRequest(id) => format!("/accelerator/v2/accelerator_requests/{id}"),
        }
    }
}

impl FromStr for Holder {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.split_once(':').map(|(noun, id)| (noun, id.parse::<Uuid>())) {
            Some(("accelerator", Ok(id))) => Ok(Self::Accelerator(AcceleratorId(id))),
            Some(("accelerator-request", Ok(id))) => Ok(Self::AcceleratorRequest(ArqId(id))),
            _ => Err(format!("`{text}` is no holder")),
        }
    }
}

words! {
    /// What an accelerator is doing.
    Status {
        /// It holds nothing, and may be attached.
        Available = "available",
        /// It is being attached.
        Attaching = "attaching",
        /// All its devices are where they were asked for.
        Attached = "attached",
        /// It is being detached, or waits for a guest to let go.
        Detaching = "detaching",
        /// The one device that it is is gone, or it holds fewer than it was attached with.
        Error = "error",
    }
}

/// Where an accelerator is to go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// Into a server.
    Server(ServerId),
    /// To a host, of a name or where its device is.
    Host {
        /// The host's name or UUID; none is the device's own.
        name: Option<String>,
        /// How the host is to have it.
        driver: HostDriver,
    },
}

/// One device that an accelerator holds.
#[derive(Debug, Clone)]
pub struct Held {
    /// The promise.
    pub by: HeldBy,
    /// The device; of a mediated device its parent.
    pub device: Arc<Device>,
    /// As the host has it now; none when that was not asked ([`Service::look_at`]), or cannot be read.
    pub found: Option<HostDevice>,
}

/// By what a device is held.
#[derive(Debug, Clone)]
pub enum HeldBy {
    /// It is for a server.
    Attachment(Attachment),
    /// It is for the host.
    Binding(Binding),
    /// A part of it is for a server.
    Mdev(Mdev),
}

impl HeldBy {
    /// Where it is on its way, and what there is to say about that.
    pub fn state(&self) -> (State, Option<&String>) {
        match self {
            Self::Attachment(row) => (row.state, row.reason.as_ref()),
            Self::Binding(row) => (row.state, row.reason.as_ref()),
            Self::Mdev(row) => (row.state, row.reason.as_ref()),
        }
    }

    /// The request that it came with.
    fn request(&self) -> RequestId {
        match self {
            Self::Attachment(row) => row.request,
            Self::Binding(row) => row.request,
            Self::Mdev(row) => row.request,
        }
    }

    /// The device; of a mediated device its parent.
    fn device(&self) -> DeviceId {
        match self {
            Self::Attachment(row) => row.device,
            Self::Binding(row) => row.device,
            Self::Mdev(row) => row.parent,
        }
    }
}

/// An accelerator with what it holds.
#[derive(Debug, Clone)]
pub struct View {
    /// Its row.
    pub row: Accelerator,
    /// Its devices, oldest first; none while it is not attached.
    pub held: Vec<Held>,
    /// How many devices the request asked for that `held` are of: those that it has lost since count too.
    pub asked: usize,
    /// The one device that it is, also while it is gone.
    pub pinned: Option<Arc<Device>>,
    /// Whether the host of that device is configured.
    pub reachable: bool,
}

impl View {
    /// What it is doing, and what there is to say of it.
    pub fn status(&self) -> (Status, Option<String>) {
        let states = || self.held.iter().map(|held| held.by.state());
        let in_state = |wanted: State| states().find(|(state, _)| *state == wanted);
        for (state, status) in [(State::Detaching, Status::Detaching), (State::Attaching, Status::Attaching)]
        {
            if let Some((_, reason)) = in_state(state) {
                return (status, reason.cloned());
            }
        }
        if let Some((_, reason)) = in_state(State::Attached) {
            let gone = |held: &&Held| held.device.gone_at.is_some() && held.found.is_none();
            if let Some(gone) = self.held.iter().find(gone) {
                let address = gone.device.facts.address;
                let reason = format!("its device {address} is gone from the host; DELETE it to give it back");
                return (Status::Error, Some(reason));
            }
            let has = self.held.len();
            if has < self.asked {
                let reason = format!("holds {has} of {} devices; DELETE it again", self.asked);
                return (Status::Error, Some(reason));
            }
            return (Status::Attached, reason.cloned());
        }
        let Some(device) = &self.pinned else {
            return match self.row.pinned {
                Some(_) => (Status::Error, Some("its device is no longer on record".into())),
                None => (Status::Available, None),
            };
        };
        let address = device.facts.address;
        if !self.reachable {
            let reason = format!("its device {address} is on a host that is no longer configured");
            return (Status::Error, Some(reason));
        }
        if device.gone_at.is_some() || device.status == DeviceStatus::Deleted {
            let reason =
                format!("its device {address} is gone from the host, or from what may be given away");
            return (Status::Error, Some(reason));
        }
        // It may be attached all the same: they may have let go by then.
        let reason = match (device.owner, device.status) {
            (Some(owner), _) => Some(format!("its device {address} is held by {owner}; detach it there")),
            (None, DeviceStatus::Unclaimable | DeviceStatus::Unavailable) => {
                Some(format!("the PF or a VF of its device {address} is held; detach that first"))
            }
            (None, _) => None,
        };
        (Status::Available, reason)
    }

    /// # Errors
    /// [`Error::Conflict`] when its spec is none of those that a request goes with; none goes with any.
    fn is_of(&self, generations: Option<&[i64]>) -> Result<(), Error> {
        match generations {
            Some(expected) if !expected.contains(&self.row.generation) => {
                Err(changed(self.row.id, self.row.generation))
            }
            Some(_) | None => Ok(()),
        }
    }

    /// The server that it is in, or on its way to.
    pub fn server(&self) -> Option<ServerId> {
        self.held.iter().find_map(|held| match &held.by {
            HeldBy::Attachment(row) => Some(row.server),
            HeldBy::Mdev(row) => Some(row.server),
            HeldBy::Binding(_) => None,
        })
    }

    /// The spec by which its devices are chosen.
    pub fn spec(&self) -> AccSpec {
        self.row.spec.clone().unwrap_or_default()
    }
}

/// A device that may be given away, as the accelerator that it would be. Another may have its name: one that was made
/// before devices were listed, or that is the device which was there before.
fn discovered(device: &Arc<Device>, name: String, taken: bool) -> View {
    let row = Accelerator {
        id: AcceleratorId(device.uuid),
        name: if taken { told_apart(&name, device) } else { name },
        spec: None,
        generation: 0,
        pinned: Some(device.id),
        project: None,
        created_at: 0,
        updated_at: None,
    };
    View { row, held: Vec::new(), asked: 0, pinned: Some(Arc::clone(device)), reachable: true }
}

/// What a discovered accelerator is called while another has its name.
fn told_apart(name: &str, device: &Device) -> String {
    format!("{name}_{}", device.uuid)
}

/// There is no such accelerator.
pub(crate) fn not_found(id: impl fmt::Display) -> Error {
    Error::NoAccelerator(id.to_string())
}

/// The spec of an accelerator is not the one that a request goes with.
pub(crate) fn changed(id: AcceleratorId, generation: i64) -> Error {
    Error::Conflict(format!(
        "the spec of accelerator {id} was changed meanwhile: its ETag is \"{generation}\" now; read it, and ask again"
    ))
}

/// Who has a device that is not free, or its PF or a VF of it.
fn taken(row: &Device, rows: &[Arc<Device>]) -> String {
    let (address, status) = (row.facts.address, row.status);
    if let Some(owner) = row.owner {
        return format!("{address} is held by {owner}; detach it there");
    }
    let relative = |other: &Arc<Device>| {
        let what = if row.facts.parent_addr == Some(other.facts.address) {
            "its PF"
        } else if other.facts.parent_addr == Some(address) {
            "a VF of it"
        } else {
            return None;
        };
        Some(format!("{what}, {}, is held by {}; detach that first", other.facts.address, other.owner?))
    };
    let why = rows.iter().find_map(relative);
    why.map_or_else(|| format!("{address} is {status}"), |why| format!("{address} is {status}: {why}"))
}

impl Service {
    /// Makes an accelerator, of a project. No device has to be free.
    ///
    /// # Errors
    /// [`Error::Conflict`] when there is one of its name or id, or one that was discovered shows that name.
    pub async fn create_accelerator(
        &self,
        name: &str,
        id: Option<AcceleratorId>,
        project: Option<&str>,
    ) -> Result<View, Error> {
        let id = id.unwrap_or_else(|| AcceleratorId(Uuid::new_v4()));
        if self.config.accelerators.discovered {
            let devices = self.discoverable();
            let shows = |device: &&Arc<Device>| {
                let shown = self.discovered_name(device);
                device.uuid != id.0 && (shown == name || told_apart(&shown, device) == name)
            };
            if let Some(device) = devices.iter().find(shows)
                && self.store.accelerator(AcceleratorId(device.uuid)).await?.is_none()
            {
                return Err(Error::Conflict(format!(
                    "the discovered accelerator {} is called `{name}`; take another name, or its uuid",
                    device.uuid
                )));
            }
        }
        let row = self.store.create_accelerator(name, id, project).await?;
        tracing::info!(accelerator.id = %id, "made accelerator `{name}`");
        self.view(row).await
    }

    /// Every accelerator, as the records say; with `[accelerators] discovered`, the devices that may be given away too.
    ///
    /// # Errors
    /// The database's.
    pub async fn accelerators(&self) -> Result<Vec<View>, Error> {
        let (attachments, bindings) = (self.store.attachments().await?, self.store.bindings().await?);
        let mdevs = self.store.mdevs().await?;
        let mut views = Vec::new();
        for row in self.store.accelerators().await? {
            let holder = Some(Holder::Accelerator(row.id));
            let attachments = attachments.iter().filter(|other| other.holder == holder).cloned().collect();
            let bindings = bindings.iter().filter(|other| Some(other.holder) == holder).cloned().collect();
            let mdevs = mdevs.iter().filter(|other| Some(other.holder) == holder).cloned().collect();
            views.push(self.seen(row, attachments, bindings, mdevs).await?);
        }
        if self.config.accelerators.discovered {
            let names: HashSet<_> = views.iter().map(|view| view.row.name.clone()).collect();
            let on_record: HashSet<_> = views.iter().map(|view| view.row.id.0).collect();
            for device in self.discoverable().iter().filter(|device| !on_record.contains(&device.uuid)) {
                let name = self.discovered_name(device);
                let taken = names.contains(&name);
                views.push(discovered(device, name, taken));
            }
        }
        Ok(views)
    }

    /// One accelerator, as the records say.
    ///
    /// # Errors
    /// [`Error::NoAccelerator`]; the database's.
    pub async fn accelerator(&self, id: AcceleratorId) -> Result<View, Error> {
        if let Some(row) = self.store.accelerator(id).await? {
            return self.view(row).await;
        }
        let device = self.discoverable().into_iter().find(|device| device.uuid == id.0);
        let device = device.filter(|_| self.config.accelerators.discovered).ok_or_else(|| not_found(id))?;
        let name = self.discovered_name(&device);
        let taken = self.store.has_accelerator_called(&name).await?;
        Ok(discovered(&device, name, taken))
    }

    /// Puts a spec in the place of the one before; with `generations`, only of one of these.
    ///
    /// # Errors
    /// [`Error::NoAccelerator`], [`Error::Conflict`]; the database's.
    pub async fn put_acc_spec(
        &self,
        id: AcceleratorId,
        spec: &AccSpec,
        generations: Option<&[i64]>,
    ) -> Result<View, Error> {
        let was = self.on_record(id).await?;
        was.is_of(generations)?;
        let row = self.store.put_acc_spec(id, spec, generations.map(|_| was.row.generation)).await?;
        self.view(row).await
    }

    /// Removes the record of an accelerator that holds nothing.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Conflict`]; the database's.
    pub async fn purge_accelerator(&self, id: AcceleratorId) -> Result<(), Error> {
        if self.store.purge_accelerator(id).await? {
            return Ok(());
        }
        Err(Error::NotFound(format!("accelerator {id} on record")))
    }

    /// An accelerator that has a row: a discovered one gets it now.
    async fn on_record(&self, id: AcceleratorId) -> Result<View, Error> {
        let view = self.accelerator(id).await?;
        if view.row.created_at == 0 {
            return match self.store.create_accelerator(&view.row.name, id, None).await {
                Ok(row) => self.view(row).await,
                // Somebody else was quicker, or has an accelerator of that name.
                Err(error) => match self.store.accelerator(id).await? {
                    Some(row) => self.view(row).await,
                    None => Err(error),
                },
            };
        }
        Ok(view)
    }

    async fn view(&self, row: Accelerator) -> Result<View, Error> {
        let holder = Holder::Accelerator(row.id);
        let attachments = self.store.attachments_held_by(holder).await?;
        let bindings = self.store.bindings_held_by(holder).await?;
        let mdevs = self.store.mdevs_held_by(holder).await?;
        self.seen(row, attachments, bindings, mdevs).await
    }

    async fn seen(
        &self,
        row: Accelerator,
        attachments: Vec<Attachment>,
        bindings: Vec<Binding>,
        mdevs: Vec<Mdev>,
    ) -> Result<View, Error> {
        let bindings = bindings.into_iter().map(HeldBy::Binding);
        let mdevs = mdevs.into_iter().map(HeldBy::Mdev);
        let mut held = Vec::new();
        for by in attachments.into_iter().map(HeldBy::Attachment).chain(bindings).chain(mdevs) {
            let device = self.device_held(&by).await?;
            held.push(Held { by, device, found: None });
        }
        let pinned = match row.pinned {
            Some(id) => self.store.known_device(id).await?,
            None => None,
        };
        let asked = match held.first() {
            Some(first) => self.store.rows_of_request(first.by.request()).await?,
            None => 0,
        };
        let reachable = pinned.as_ref().is_none_or(|device| self.host(device.hypervisor).is_some());
        Ok(View { row, held, asked, pinned, reachable })
    }

    /// Asks the hosts what the devices that are held are now, for nothing tells of drivers that come and go. A host that
    /// does not answer in time keeps nobody waiting for another.
    pub async fn look_at(&self, views: &mut [View]) {
        let mut places = BTreeMap::<HypervisorId, BTreeSet<PciAddress>>::new();
        for held in views.iter().flat_map(|view| &view.held) {
            places.entry(held.device.hypervisor).or_default().insert(held.device.facts.address);
        }
        let of_host = async |(id, addresses): (HypervisorId, BTreeSet<PciAddress>)| {
            let mut found = Vec::new();
            if let Some(host) = self.host(id) {
                let read = async {
                    for address in addresses {
                        let device = host.hypervisor.device(address).await;
                        found.extend(device.ok().map(|device| ((id, address), device)));
                    }
                    Ok(())
                };
                // What was read by then is so.
                drop(host.soon(read).await);
            }
            found
        };
        let found = join_all(places.into_iter().map(of_host)).await;
        let found: HashMap<_, _> = found.into_iter().flatten().collect();
        for held in views.iter_mut().flat_map(|view| &mut view.held) {
            held.found = found.get(&(held.device.hypervisor, held.device.facts.address)).cloned();
        }
    }

    /// The devices that are accelerators by themselves: those of the hosts that are configured.
    fn discoverable(&self) -> Vec<Arc<Device>> {
        let mut devices = self.store.devices();
        devices.retain(|device| self.host(device.hypervisor).is_some());
        devices
    }

    pub(crate) async fn device_held(&self, by: &HeldBy) -> Result<Arc<Device>, Error> {
        let id = by.device();
        let lost = || Error::Internal(format!("device {}, which is held, is lost", id.0));
        self.store.known_device(id).await?.ok_or_else(lost)
    }

    fn discovered_name(&self, device: &Device) -> String {
        let host = self.host(device.hypervisor).map_or("", |host| host.name.as_str());
        format!("{host}_{}", device.facts.address)
    }

    /// The host of a name or UUID, or that calls itself so.
    ///
    /// # Errors
    /// [`Error::Conflict`], naming those that there are.
    async fn host_called(&self, name: &str) -> Result<&Arc<Host>, Error> {
        let called = |host: &&Arc<Host>| host.name == name || host.row.uuid.to_string() == name;
        if let Some(host) = self.hosts.iter().find(called) {
            return Ok(host);
        }
        let mut called = Vec::new();
        for host in self.hosts.iter().filter(|host| host.hypervisor.connection().is_ok()) {
            let info = host.soon(host.hypervisor.host()).await;
            called.extend(info.is_ok_and(|info| info.hostname == name).then_some(host));
        }
        let names =
            |hosts: &[&Arc<Host>]| hosts.iter().map(|host| host.name.as_str()).collect::<Vec<_>>().join(", ");
        match called[..] {
            [host] => Ok(host),
            [] => Err(Error::Conflict(format!(
                "the device is on no host {}; name one of {}, or none for where the device is",
                name.chars().take(80).collect::<String>(),
                names(&self.hosts.iter().collect::<Vec<_>>())
            ))),
            _ => Err(Error::Conflict(format!("{} call themselves {name}; name one of them", names(&called)))),
        }
    }
}
