//! Accelerators: devices that are given away under names of their own, to a server or to the host itself.
//!
//! An accelerator is a name and a spec; which device it is, is decided when it is attached. What it holds is told by
//! the attachments, bindings and mediated devices that were made on its behalf ([`Holder`]): it has no state of its own
//! that a crash could leave behind.

mod attach;
mod binding;
mod mdev;
mod spec;

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use hotslot_driver::binding::HostDriver;
use hotslot_driver::device::HostDevice;
use uuid::Uuid;

pub(crate) use self::mdev::Parts;
pub use self::spec::AccSpec;
use crate::attachment::State;
use crate::error::Error;
use crate::host::Host;
use crate::id::{AcceleratorId, ArqId, DeviceId, ServerId};
use crate::service::Service;
use crate::store::{Accelerator, Attachment, Binding, Device, Mdev, words};

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
        /// The one device that it is is gone from the host.
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
    /// As the host has it now; none when that cannot be read.
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
    /// The one device that it is, while that is on record.
    pub pinned: Option<Arc<Device>>,
}

impl View {
    /// What it is doing, and what there is to say of it.
    pub fn status(&self) -> (Status, Option<String>) {
        let states = || self.held.iter().map(|held| held.by.state());
        let in_state = |wanted: State| states().find(|(state, _)| *state == wanted);
        for (state, status) in [
            (State::Detaching, Status::Detaching),
            (State::Attaching, Status::Attaching),
            (State::Attached, Status::Attached),
        ] {
            if let Some((_, reason)) = in_state(state) {
                return (status, reason.cloned());
            }
        }
        match (self.row.pinned, &self.pinned) {
            (Some(_), None) => (Status::Error, Some("its device is no longer on record".into())),
            (_, Some(device)) if device.gone_at.is_some() => {
                (Status::Error, Some(format!("its device {} is gone", device.facts.address)))
            }
            (None | Some(_), _) => (Status::Available, None),
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

impl Service {
    /// Makes an accelerator, of a project. No device has to be free.
    ///
    /// # Errors
    /// [`Error::Conflict`] when there is one of its name or id.
    pub async fn create_accelerator(
        &self,
        name: &str,
        id: Option<AcceleratorId>,
        project: Option<&str>,
    ) -> Result<View, Error> {
        let id = id.unwrap_or_else(|| AcceleratorId(Uuid::new_v4()));
        let row = self.store.create_accelerator(name, id, project).await?;
        tracing::info!(accelerator.id = %id, "made accelerator `{name}`");
        self.view(row).await
    }

    /// Every accelerator; with `[accelerators] discovered`, the devices that may be given away too.
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
            for device in self.store.devices() {
                if !views.iter().any(|view| view.row.id.0 == device.uuid) {
                    views.push(self.discovered(&device));
                }
            }
        }
        Ok(views)
    }

    /// One accelerator.
    ///
    /// # Errors
    /// [`Error::NotFound`]; the database's.
    pub async fn accelerator(&self, id: AcceleratorId) -> Result<View, Error> {
        if let Some(row) = self.store.accelerator(id).await? {
            return self.view(row).await;
        }
        let device = self.store.devices().into_iter().find(|device| device.uuid == id.0);
        let device = device.filter(|_| self.config.accelerators.discovered);
        device
            .map(|device| self.discovered(&device))
            .ok_or_else(|| Error::NotFound(format!("accelerator {id}")))
    }

    /// Puts a spec in the place of the one before; with `expected`, only of that generation.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Conflict`]; the database's.
    pub async fn put_acc_spec(
        &self,
        id: AcceleratorId,
        spec: &AccSpec,
        expected: Option<i64>,
    ) -> Result<View, Error> {
        self.on_record(id).await?;
        let row = self.store.put_acc_spec(id, spec, expected).await?;
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
            // Nothing tells of drivers that come and go.
            let found = match self.host(device.hypervisor) {
                Some(host) => host.soon(host.hypervisor.device(device.facts.address)).await.ok(),
                None => None,
            };
            held.push(Held { by, device, found });
        }
        let pinned = row.pinned.and_then(|id| self.store.device(id));
        Ok(View { row, held, pinned })
    }

    pub(crate) async fn device_held(&self, by: &HeldBy) -> Result<Arc<Device>, Error> {
        let id = by.device();
        let lost = || Error::Internal(format!("device {}, which is held, is lost", id.0));
        self.store.known_device(id).await?.ok_or_else(lost)
    }

    /// A device that may be given away, as the accelerator that it would be.
    fn discovered(&self, device: &Arc<Device>) -> View {
        let host = self.host(device.hypervisor).map_or("", |host| host.name.as_str());
        let row = Accelerator {
            id: AcceleratorId(device.uuid),
            name: format!("{host}_{}", device.facts.address),
            spec: None,
            generation: 0,
            pinned: Some(device.id),
            project: None,
            created_at: 0,
            updated_at: None,
        };
        View { row, held: Vec::new(), pinned: Some(Arc::clone(device)) }
    }

    /// The host of a name, UUID or number.
    ///
    /// # Errors
    /// [`Error::NotFound`], naming those that there are.
    fn host_called(&self, name: &str) -> Result<&Arc<Host>, Error> {
        let called = |host: &&Arc<Host>| host.name == name || host.row.uuid.to_string() == name;
        self.hosts.iter().find(called).ok_or_else(|| {
            let known: Vec<_> = self.hosts.iter().map(|host| host.name.as_str()).collect();
            Error::NotFound(format!("host {name}, which is none of {},", known.join(", ")))
        })
    }
}
