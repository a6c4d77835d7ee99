//! The state of a simulated host: its devices, its domains and the connection.
//!
//! This code uses no clock, no tasks and no sockets: each call passes the time, and [`Host::advance`] performs the
//! changes that are due. The behaviour of libvirt is in `attach`, `detach`, `mdev` and `power`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;

use serde::Serialize;
use tokio::sync::{broadcast, watch};
use tokio::time::Instant;
use uuid::Uuid;

use crate::device::HostDevice;
use crate::hypervisor::{DomainInfo, DomainState, DomainView, Event, HostInfo, NodeChange};
use crate::pci::PciAddress;

use super::config::{Fault, Guest, HostConfig, Operation};
use super::device::{Device, Devices};
use super::document::Document;
use super::refusal::{self, Refusal};
use super::store::{Kind, SavedDevice, SavedDomain, SavedImage, Store};

/// The state of the connection to the simulated libvirtd.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Link {
    Up,
    /// libvirtd is unreachable, and the guests go on running.
    Away,
    /// The simulated host was closed.
    Closed,
}

/// One host.
#[derive(Debug)]
pub(super) struct Host {
    pub(super) dir: PathBuf,
    pub(super) config: HostConfig,
    pub(super) devices: Devices,
    pub(super) domains: BTreeMap<Uuid, Domain>,
    /// The scripted faults.
    pub(super) faults: Vec<Fault>,
    /// Increased to let hung calls go on.
    pub(super) unhang: watch::Sender<u64>,
    pub(super) link: watch::Sender<Link>,
    /// When the connection is restored automatically.
    pub(super) back_at: Option<Instant>,
    /// Removal events during an outage. They are sent when the connection is restored.
    pub(super) missed: Vec<Event>,
    /// The devices whose host drivers will be rebound, with the time.
    pub(super) releasing: Vec<(Instant, PciAddress)>,
    pub(super) next_id: u32,
    /// Whether the event of the current call is dropped.
    pub(super) lose_event: bool,
    pub(super) events: broadcast::Sender<Event>,
    pub(super) store: Store,
    pub(super) statistics: Statistics,
}

/// What the calls of this process have cost.
#[derive(Debug, Default, Serialize)]
pub(super) struct Statistics {
    /// The number of calls of each kind.
    pub(super) calls: BTreeMap<Operation, u64>,
    /// The processor time of the simulation itself in nanoseconds: documents, state files and events. A real host spends it
    /// in libvirtd.
    pub(super) cpu_ns: u64,
}

/// One domain.
#[derive(Debug)]
pub(super) struct Domain {
    pub(super) uuid: Uuid,
    pub(super) name: String,
    pub(super) state: DomainState,
    pub(super) live: Option<Document>,
    pub(super) persistent: Option<Document>,
    /// The saved state of a run.
    pub(super) image: Option<SavedImage>,
    /// The pending unplug requests, by alias.
    pub(super) pending: BTreeMap<String, Pending>,
    /// The end of the boot. Until then the guest loses unplug requests.
    pub(super) booting: Option<Instant>,
    pub(super) guest: Guest,
    /// Whether the guest's behaviour was changed from that in `host.toml`.
    pub(super) guest_changed: bool,
    /// Locked by the call that changes the domain.
    pub(super) job: Arc<tokio::sync::Mutex<()>>,
}

/// A pending unplug request.
#[derive(Debug, Clone, Copy)]
pub(super) struct Pending {
    /// When the guest answers; `None` while it is paused or when it ignores such requests.
    pub(super) due: Option<Instant>,
    /// When it was made, or read from the records of another process.
    pub(super) made: Option<Instant>,
    /// Whether the event of the answer is dropped.
    pub(super) lose_event: bool,
}

impl Domain {
    /// Makes a domain without documents.
    pub(super) fn new(uuid: Uuid, name: String, guest: Guest) -> Self {
        Self {
            uuid,
            name,
            state: DomainState::ShutOff,
            live: None,
            persistent: None,
            image: None,
            pending: BTreeMap::new(),
            booting: None,
            guest,
            guest_changed: false,
            job: Arc::default(),
        }
    }

    pub(super) fn info(&self) -> DomainInfo {
        DomainInfo {
            uuid: self.uuid,
            name: self.name.clone(),
            state: self.state,
            persistent: self.persistent.is_some(),
            run: self.live.as_ref().and_then(Document::id),
        }
    }

    /// The aliases of the running guest's host devices.
    pub(super) fn aliases(&self) -> BTreeSet<String> {
        let live = self.live.iter().map(Document::parsed);
        live.flat_map(|live| live.hostdevs.iter().filter_map(|held| held.alias.clone())).collect()
    }

    fn saved(&self) -> SavedDomain {
        SavedDomain {
            name: self.name.clone(),
            paused: self.state == DomainState::Paused,
            live: self.live.as_ref().map(|document| document.text().to_owned()),
            persistent: self.persistent.as_ref().map(|document| document.text().to_owned()),
            image: self.image.clone(),
            pending: self.pending.keys().cloned().collect(),
            guest: self.guest_changed.then(|| self.guest.clone()),
        }
    }
}

impl Host {
    pub(super) fn info(&self) -> HostInfo {
        let named = || self.dir.file_name().unwrap_or_default().to_string_lossy().into_owned();
        HostInfo {
            hostname: self.config.hostname.clone().unwrap_or_else(named),
            hypervisor_type: "QEMU".into(),
            hypervisor_version: self.config.hypervisor_version.unwrap_or(10_000_002),
            libvirt_version: self.config.libvirt_version.unwrap_or(11_003_000),
            simulated: true,
        }
    }

    pub(super) fn device(&self, address: PciAddress) -> Result<HostDevice, Refusal> {
        let device = self.devices.get(address).ok_or_else(|| refusal::no_node_device(address))?;
        Ok(device.without_children())
    }

    pub(super) fn domain(&self, uuid: Uuid) -> Result<&Domain, Refusal> {
        self.domains.get(&uuid).ok_or_else(|| refusal::no_domain(uuid))
    }

    pub(super) fn domain_mut(&mut self, uuid: Uuid) -> Result<&mut Domain, Refusal> {
        self.domains.get_mut(&uuid).ok_or_else(|| refusal::no_domain(uuid))
    }

    pub(super) fn view(&self, uuid: Uuid) -> Result<DomainView, Refusal> {
        let domain = self.domain(uuid)?;
        let parsed =
            |document: &Option<Document>| document.as_ref().map(|document| document.parsed().clone());
        Ok(DomainView {
            info: domain.info(),
            live: parsed(&domain.live),
            persistent: parsed(&domain.persistent),
        })
    }

    /// Sends an event. During an outage events are dropped, except removals, which are sent afterwards.
    pub(super) fn emit(&mut self, event: Event) {
        if *self.link.borrow() == Link::Up {
            // An error means that there are no receivers.
            let _ = self.events.send(event);
        } else if matches!(event, Event::DeviceRemoved { .. }) {
            self.missed.push(event);
        }
    }

    /// Breaks the connection until `back_at`, or until [`reconnect`](Self::reconnect) when that is `None`.
    pub(super) fn disconnect(&mut self, reason: &str, back_at: Option<Instant>) {
        self.back_at = back_at;
        if *self.link.borrow() == Link::Up {
            self.emit(Event::Disconnected { reason: reason.to_owned() });
            self.link.send_replace(Link::Away);
        }
    }

    /// Restores the connection and sends the removal events of the outage.
    pub(super) fn reconnect(&mut self) {
        self.back_at = None;
        if *self.link.borrow() == Link::Away {
            self.link.send_replace(Link::Up);
            self.emit(Event::Connected);
            for event in std::mem::take(&mut self.missed) {
                self.emit(event);
            }
        }
    }

    /// Returns an error during an outage.
    pub(super) fn check_link(&self) -> Result<(), Refusal> {
        if *self.link.borrow() == Link::Up { Ok(()) } else { Err(refusal::away()) }
    }

    /// Performs the changes that are due at `now`.
    pub(super) fn advance(&mut self, now: Instant) {
        if self.next_due().is_none_or(|due| due > now) {
            return;
        }
        if self.back_at.is_some_and(|at| at <= now) {
            self.reconnect();
        }
        let (due, rest) = std::mem::take(&mut self.releasing).into_iter().partition(|(at, _)| *at <= now);
        self.releasing = rest;
        let due: Vec<(Instant, PciAddress)> = due;
        for (_, address) in due {
            if let Some(device) = self.devices.get_mut(address) {
                device.releasing = false;
            }
            self.refresh(address);
        }
        let domains: Vec<Uuid> = self.domains.keys().copied().collect();
        for uuid in domains {
            self.end_of_boot(uuid, now);
            self.answer_removals(uuid, now);
        }
    }

    /// When the next change is due.
    pub(super) fn next_due(&self) -> Option<Instant> {
        let guests = self.domains.values().flat_map(|domain| {
            domain.booting.into_iter().chain(domain.pending.values().filter_map(|pending| pending.due))
        });
        let drivers = self.releasing.iter().map(|(at, _)| *at);
        guests.chain(drivers).chain(self.back_at).min()
    }

    /// Updates a device's driver and children after a change of its holder or driver.
    pub(super) fn refresh(&mut self, address: PciAddress) {
        let Some(device) = self.devices.known(address) else { return };
        if let Some(change) = device.refresh() {
            for name in device.children() {
                self.emit(Event::NodeDevice { name, change });
            }
        }
        self.lose_mdevs(address);
    }

    /// Sends the events of a failed attach: libvirt unbinds the host driver before it notices that it cannot attach,
    /// and then rebinds it, so that the device's children vanish and reappear.
    pub(super) fn bounce(&mut self, address: PciAddress) {
        let Some(device) = self.devices.get(address).filter(|device| device.has_children()) else { return };
        for name in device.children() {
            self.emit(Event::NodeDevice { name: name.clone(), change: NodeChange::Deleted });
            self.emit(Event::NodeDevice { name, change: NodeChange::Created });
        }
    }

    /// Removes a device from the host. If a guest has the device, its unplug is requested first, and the device
    /// vanishes after the guest has released it.
    pub(super) fn remove_device(&mut self, address: PciAddress, now: Instant) -> Result<(), Refusal> {
        let device = self.devices.get_mut(address).ok_or_else(|| refusal::no_node_device(address))?;
        if let Some(holder) = device.holder {
            device.leaving = true;
            let live = self.domains.get(&holder).and_then(|domain| domain.live.as_ref());
            let held =
                live.and_then(|live| live.parsed().hostdevs.iter().find(|held| held.source == address));
            if let Some(alias) = held.and_then(|held| held.alias.clone()) {
                self.request_unplug(holder, alias, now);
            }
            return Ok(());
        }
        let Some(device) = self.devices.get(address) else { return Ok(()) };
        if let Some((held, domain)) = self.held_part(device) {
            return Err(refusal::in_use(held, domain));
        }
        self.vanish(address);
        Ok(())
    }

    /// Returns a VF that a domain has, or the function itself when a domain has one of its mediated devices, with the
    /// domain's name.
    pub(super) fn held_part(&self, device: &Device) -> Option<(PciAddress, &str)> {
        let vfs = self.devices.virtual_functions(&device.info);
        let vf = vfs.into_iter().find_map(|vf| Some((vf, self.name_of(self.devices.get(vf)?.holder?))));
        let holder = || device.mdevs.values().find_map(|mdev| mdev.holder);
        vf.or_else(|| Some((device.info.address, self.name_of(holder()?))))
    }

    pub(super) fn name_of(&self, domain: Uuid) -> &str {
        self.domains.get(&domain).map_or("?", |domain| domain.name.as_str())
    }

    /// Removes a device from the host after its VFs.
    pub(super) fn vanish(&mut self, address: PciAddress) {
        let Some(device) = self.devices.get(address) else { return };
        for vf in self.devices.virtual_functions(&device.info.clone()) {
            self.vanish(vf);
        }
        let Some(device) = self.devices.get_mut(address) else { return };
        (device.present, device.leaving, device.releasing) = (false, false, false);
        self.refresh(address);
        self.devices.update_relatives(address);
        self.save_device(address);
        self.emit(Event::NodeDevice { name: address.node_name(), change: NodeChange::Deleted });
    }

    /// Adds a device to the host: a new one, or one that was removed.
    pub(super) fn appear(&mut self, device: Option<Device>, address: PciAddress) -> Result<(), Refusal> {
        if let Some(device) = device {
            self.devices.insert(device);
        }
        let device = self.devices.known(address).ok_or_else(|| refusal::no_node_device(address))?;
        device.present = true;
        self.devices.update_relatives(address);
        self.save_device(address);
        self.emit(Event::NodeDevice { name: address.node_name(), change: NodeChange::Created });
        self.refresh(address);
        Ok(())
    }

    /// Writes a domain's state to the store. A domain without documents is then removed from memory.
    pub(super) fn save(&mut self, uuid: Uuid) {
        let Some(domain) = self.domains.get(&uuid) else { return };
        self.store.write(Kind::Domain, &uuid.to_string(), &domain.saved());
        if domain.live.is_none() && domain.persistent.is_none() {
            self.domains.remove(&uuid);
        }
    }

    /// Writes the state of a device that its document does not contain to the store.
    pub(super) fn save_device(&mut self, address: PciAddress) {
        let Some(device) = self.devices.known(address) else { return };
        let saved = SavedDevice {
            present: device.present,
            driver: device.free_driver().map(|driver| driver.as_ref().to_owned()),
            xml: device.xml.clone(),
            mdevs: Some(device.mdevs.values().map(|mdev| mdev.info.clone().into()).collect()),
        };
        self.store.write(Kind::Device, &address.node_name(), &saved);
    }
}
