//! Opens a directory as a simulated host: reads `host.toml`, the documents and the changes in `state/`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::{fs, io};

use tokio::sync::{broadcast, watch};
use tokio::time::Instant;
use uuid::Uuid;

use super::config::HostConfig;
use super::device::{Device, Devices};
use super::document::Document;
use super::host::{Domain, Host, Link, Pending, Statistics};
use super::open_error::{Locked, OpenError};
use super::store::{self, Kind, SavedDevice, SavedDomain, Store};
use crate::device::{HostDevice, Shared};
use crate::hypervisor::{DomainState, EVENTS, Event, Lifecycle, NodeChange};
use crate::local;
use crate::mdev::Mdev;
use crate::pci::PciAddress;
use crate::xml::mdev;
use crate::xml::nodedev::{self, NodeDevice};
use crate::xml::tree::Element;

/// The folder with the captured files of the host's sys and proc.
pub(super) const ROOT: &str = "root";

impl Host {
    pub(super) fn open(dir: &Path, now: Instant) -> Result<Self, OpenError> {
        let dir = dir.canonicalize().map_err(|error| OpenError::Io { path: dir.to_owned(), error })?;
        let config = read_config(&dir.join("host.toml"))?;
        let mut host = Self {
            devices: Devices::default(),
            domains: BTreeMap::new(),
            faults: config.fault.clone(),
            config,
            unhang: watch::Sender::new(0),
            link: watch::Sender::new(Link::Up),
            back_at: None,
            missed: Vec::new(),
            releasing: Vec::new(),
            next_id: 1,
            lose_event: false,
            events: broadcast::Sender::new(EVENTS),
            store: Store::open(&dir),
            statistics: Statistics::default(),
            dir,
        };
        host.store.enter()?;
        let read = host.read(now);
        host.store.leave();
        read.map(|()| host)
    }

    /// Reads devices and domains.
    fn read(&mut self, now: Instant) -> Result<(), OpenError> {
        let devices = read_devices(&self.dir, &self.config)?;
        let domains = read_domains(&self.dir, &self.config)?;
        (self.devices, self.domains) = (devices, BTreeMap::new());
        for (path, domain) in domains {
            self.admit(&path, domain, now)?;
        }
        for address in self.devices.iter().map(|device| device.info.address).collect::<Vec<_>>() {
            if let Some(device) = self.devices.get_mut(address) {
                // Ignore the change: the state at the opening needs no events.
                let _ = device.refresh();
            }
        }
        Ok(())
    }

    /// Takes the lock, and reloads the host if another process has changed it.
    ///
    /// # Errors
    /// [`Locked`] when another process keeps the lock.
    pub(super) fn enter(&mut self, now: Instant) -> Result<(), Locked> {
        if self.store.enter()? {
            self.reload(now);
        }
        Ok(())
    }

    /// Reads the host again and sends the events of the changes that other processes have made.
    fn reload(&mut self, now: Instant) {
        let devices: BTreeMap<_, _> =
            self.devices.iter().map(|of| (of.info.address, of.info.clone())).collect();
        let (releasing, leaving): (Vec<_>, Vec<_>) = self
            .devices
            .iter()
            .map(|of| (of.releasing.then_some(of.info.address), of.leaving.then_some(of.info.address)))
            .unzip();
        let domains = std::mem::take(&mut self.domains);
        if let Err(error) = self.read(now) {
            tracing::error!(%error, "simulated host: cannot read the changes of another process");
            self.domains = domains;
            return;
        }
        // Keep the state that no file contains.
        for domain in self.domains.values_mut() {
            let Some(was) = domains.get(&domain.uuid) else { continue };
            (domain.job, domain.booting) = (was.job.clone(), was.booting);
            for (alias, pending) in &mut domain.pending {
                *pending = was.pending.get(alias).copied().unwrap_or(*pending);
            }
        }
        for address in releasing.into_iter().flatten() {
            if let Some(device) = self.devices.get_mut(address) {
                device.releasing = device.holder.is_none();
                let _ = device.refresh();
            }
        }
        for address in leaving.into_iter().flatten() {
            if let Some(device) = self.devices.get_mut(address) {
                device.leaving = true;
            }
        }
        for event in self.since(&devices, &domains) {
            self.emit(event);
        }
    }

    /// Returns the events of the changes since devices and domains had this state.
    fn since(
        &self,
        devices: &BTreeMap<PciAddress, HostDevice>,
        domains: &BTreeMap<Uuid, Domain>,
    ) -> Vec<Event> {
        let mut events = Vec::new();
        let present: BTreeMap<_, _> = self.devices.iter().map(|of| (of.info.address, &of.info)).collect();
        let addresses: BTreeSet<_> = devices.keys().chain(present.keys()).copied().collect();
        for address in addresses {
            let change = match (devices.get(&address), present.get(&address)) {
                (None, Some(_)) => NodeChange::Created,
                (Some(_), None) => NodeChange::Deleted,
                (Some(was), Some(is)) if was != *is => NodeChange::Updated,
                (Some(_), Some(_)) | (None, None) => continue,
            };
            events.push(Event::NodeDevice { name: address.node_name(), change });
        }
        let uuids: BTreeSet<_> = domains.keys().chain(self.domains.keys()).copied().collect();
        for domain in uuids {
            let (was, is) = (domains.get(&domain), self.domains.get(&domain));
            let (before, after) =
                (was.map(Domain::aliases).unwrap_or_default(), is.map(Domain::aliases).unwrap_or_default());
            let change = match (was.map(|was| was.state), is.map(|is| is.state)) {
                (_, None) => Some(Lifecycle::Undefined),
                (None, Some(_)) => Some(Lifecycle::Defined),
                (Some(was), Some(is)) if was == is => None,
                (Some(_), Some(DomainState::Running)) => Some(Lifecycle::Started),
                (Some(_), Some(DomainState::Paused)) => Some(Lifecycle::Suspended),
                (Some(_), Some(_)) => Some(Lifecycle::Stopped),
            };
            events.extend(change.map(|change| Event::Lifecycle { domain, change }));
            // There are no removal events for a guest that has stopped.
            if is.is_some_and(|is| is.live.is_some()) {
                let removed = before.difference(&after).cloned();
                events.extend(removed.map(|alias| Event::DeviceRemoved { domain, alias }));
            }
            let added = after.difference(&before).cloned();
            events.extend(added.map(|alias| Event::DeviceAdded { domain, alias }));
        }
        events
    }

    /// Adds a domain that was read, and marks its devices as held.
    fn admit(&mut self, path: &Path, domain: Domain, now: Instant) -> Result<(), OpenError> {
        let mut domain = domain;
        if let Some(live) = &domain.live {
            self.next_id = self.next_id.max(live.id().unwrap_or_default() + 1);
            for held in &live.parsed().hostdevs {
                let source = held.source;
                let device = self.devices.get_mut(source).ok_or_else(|| {
                    OpenError::text(path, format_args!("<hostdev>: no file in devices/ describes {source}"))
                })?;
                if device.holder.replace(domain.uuid).is_some() {
                    let reason = format_args!("<hostdev>: another running domain also has {source}");
                    return Err(OpenError::text(path, reason));
                }
            }
            for held in &live.parsed().mdevs {
                let mdev = held.uuid;
                let Some(device) = self.devices.mdev_mut(mdev) else {
                    let reason =
                        format_args!("<hostdev>: no file in devices/ describes mediated device {mdev}");
                    return Err(OpenError::text(path, reason));
                };
                if device.holder.replace(domain.uuid).is_some() {
                    let reason = format_args!("<hostdev>: another running domain also has {mdev}");
                    return Err(OpenError::text(path, reason));
                }
            }
        }
        // The guest answers an unplug request from before the restart as if it had just been made.
        let due = domain.answers_at(now);
        domain.pending.values_mut().for_each(|pending| (pending.due, pending.made) = (due, Some(now)));
        match self.domains.insert(domain.uuid, domain) {
            Some(other) => {
                let reason = format_args!("<uuid>: {} is also the UUID of {}", other.uuid, other.name);
                Err(OpenError::text(path, reason))
            }
            None => Ok(()),
        }
    }
}

/// Reads a PCI function from a node device document; `None` when it describes something else.
pub(super) fn read_device(
    dir: &Path,
    path: &Path,
    xml: &str,
    config: &HostConfig,
) -> Result<Option<Device>, OpenError> {
    let fail = |error| OpenError::Document { path: path.to_owned(), error };
    let NodeDevice::Pci(info) = nodedev::parse(xml).map_err(fail)? else { return Ok(None) };
    make_device(dir, path, xml, *info, config).map(Some)
}

/// Makes the device that a document describes as `info`.
fn make_device(
    dir: &Path,
    path: &Path,
    xml: &str,
    info: HostDevice,
    config: &HostConfig,
) -> Result<Device, OpenError> {
    let host_driver = config.driver.get(&info.address).map(|driver| Arc::from(driver.as_str()));
    let mut device = Device::new(info, host_driver);
    // Few functions have types, and reading a document takes most of the time of opening a host.
    if xml.contains("mdev_types") {
        let types = mdev::types(xml);
        device.mdev_types = types.map_err(|error| OpenError::Document { path: path.to_owned(), error })?;
    }
    let sysroot = Some(dir.join(ROOT)).filter(|_| !config.remote);
    device.set_native_on_vfio(local::vfio_dev(sysroot.as_deref(), device.info.address));
    Ok(device)
}

fn read_config(path: &Path) -> Result<HostConfig, OpenError> {
    match fs::read_to_string(path) {
        Ok(text) => toml::from_str(&text).map_err(|error| OpenError::text(path, error)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(HostConfig::default()),
        Err(error) => Err(OpenError::Io { path: path.to_owned(), error }),
    }
}

fn read_devices(dir: &Path, config: &HostConfig) -> Result<Devices, OpenError> {
    let mut devices = Devices::default();
    let Children { of_functions, mdevs } = read_node_devices(dir, config, &mut devices)?;
    for mdev in mdevs {
        if let Some(device) = mdev.parent.and_then(|parent| devices.known(parent)) {
            // The document has the number of instances that are still available, without this device.
            let of_its_type = device.mdev_types.iter_mut().filter(|of| of.id == mdev.mdev_type);
            of_its_type.for_each(|of| of.available += 1);
            device.mdevs.insert(mdev.uuid, mdev.into());
        }
    }
    let changed = read_saved_devices(dir, config, &mut devices)?;
    for (function, name, node) in of_functions {
        if let Some(device) = devices.known(function) {
            device.add_child(name, node);
        }
    }
    for address in changed {
        devices.update_relatives(address);
    }
    Ok(devices)
}

/// The node devices on PCI functions, which are added when all functions are known.
#[derive(Default)]
struct Children {
    /// Network interfaces, vDPA and block devices: each with its function and its name.
    of_functions: Vec<(PciAddress, String, NodeDevice)>,
    mdevs: Vec<Mdev>,
}

/// Reads the documents in `devices/`. Adds the PCI functions to `devices`, and returns the other node devices.
fn read_node_devices(dir: &Path, config: &HostConfig, devices: &mut Devices) -> Result<Children, OpenError> {
    let mut children = Children::default();
    let mut shared = Shared::default();
    for (path, xml) in store::read_folder(&dir.join("devices"), "xml")? {
        let node = nodedev::parse(&xml).map_err(|error| OpenError::Document { path: path.clone(), error })?;
        match node {
            NodeDevice::Pci(mut info) => {
                let address = info.address;
                if devices.known(address).is_some() {
                    return Err(OpenError::text(&path, format_args!("<name>: two files describe {address}")));
                }
                shared.share(&mut info);
                devices.insert(make_device(dir, &path, &xml, *info, config)?);
            }
            NodeDevice::Net { function: Some(function), .. }
            | NodeDevice::Vdpa { function: Some(function), .. }
            | NodeDevice::Block { function: Some(function), .. } => {
                children.of_functions.push((function, node_name(&path, &xml), node));
            }
            NodeDevice::Mdev(mdev) => children.mdevs.push(mdev),
            NodeDevice::Net { .. }
            | NodeDevice::Vdpa { .. }
            | NodeDevice::Block { .. }
            | NodeDevice::Other => {}
        }
    }
    Ok(children)
}

/// Applies the changes in `state/devices/`. Returns the addresses of the functions that they are about.
fn read_saved_devices(
    dir: &Path,
    config: &HostConfig,
    devices: &mut Devices,
) -> Result<Vec<PciAddress>, OpenError> {
    let saved: BTreeMap<String, SavedDevice> = Store::read(dir, Kind::Device)?;
    let mut changed = Vec::new();
    for (name, saved) in saved {
        let path = dir.join("state/devices").join(&name).with_extension("json");
        let address = PciAddress::from_node_name(&name).map_err(|error| OpenError::text(&path, error))?;
        if let Some(xml) = saved.xml {
            let device = read_device(dir, &path, &xml, config)?;
            let mut device = device
                .ok_or_else(|| OpenError::text(&path, "xml: the document describes no PCI function"))?;
            device.xml = Some(xml);
            devices.insert(device);
            changed.push(address);
        }
        if let Some(device) = devices.known(address) {
            device.set_free_driver(saved.driver.map(Arc::from));
            device.present = saved.present;
            if let Some(mdevs) = saved.mdevs {
                let mdevs = mdevs.into_iter().map(|mdev| (mdev.uuid, mdev.of(address).into()));
                device.mdevs = mdevs.collect();
            }
            changed.push(address);
        }
    }
    Ok(changed)
}

/// Reads a node device's name from its document.
pub(super) fn node_name(path: &Path, xml: &str) -> String {
    let name = Element::parse(xml).ok().and_then(|tree| Some(tree.child("name")?.text().to_owned()));
    name.unwrap_or_else(|| store::stem(path))
}

/// Reads the domains. If two files have the same UUID, the one with an `id` is the live document and the other one the
/// definition. A live document alone also gives the definition, unless the guest is transient.
fn read_domains(dir: &Path, config: &HostConfig) -> Result<Vec<(PathBuf, Domain)>, OpenError> {
    let mut saved: BTreeMap<String, SavedDomain> = Store::read(dir, Kind::Domain)?;
    let mut domains: BTreeMap<Uuid, (PathBuf, SavedDomain)> = BTreeMap::new();
    for (path, xml) in store::read_folder(&dir.join("domains"), "xml")? {
        let document =
            Document::read(xml).map_err(|error| OpenError::Document { path: path.clone(), error })?;
        let parsed = document.parsed();
        let (uuid, name) = (parsed.uuid, parsed.name.clone());
        if saved.contains_key(&uuid.to_string()) {
            continue;
        }
        let entry =
            domains.entry(uuid).or_insert_with(|| (path.clone(), SavedDomain { name, ..Default::default() }));
        let slot = if document.id().is_some() { &mut entry.1.live } else { &mut entry.1.persistent };
        if slot.replace(document.text().to_owned()).is_some() {
            return Err(OpenError::text(
                &path,
                format_args!("<uuid>: {} has the same UUID {uuid}", entry.0.display()),
            ));
        }
    }
    for (path, domain) in domains.values_mut() {
        let transient = config.guest.get(&domain.name).is_some_and(|guest| guest.transient);
        if let (Some(live), None, false) = (&domain.live, &domain.persistent, transient) {
            let live = Document::read(live.clone())
                .map_err(|error| OpenError::Document { path: path.clone(), error })?;
            let definition = live.stopped().map_err(|refused| OpenError::text(path, refused.message))?;
            domain.persistent = Some(definition.text().to_owned());
        }
    }
    while let Some((name, domain)) = saved.pop_first() {
        let path = dir.join("state/domains").join(&name).with_extension("json");
        let uuid = name.parse().map_err(|error| OpenError::text(&path, error))?;
        domains.insert(uuid, (path, domain));
    }
    let mut made = Vec::new();
    for (uuid, (path, saved)) in domains {
        if saved.live.is_some() || saved.persistent.is_some() {
            let domain = make_domain(uuid, &path, saved, config)?;
            made.push((path, domain));
        }
    }
    Ok(made)
}

fn make_domain(
    uuid: Uuid,
    path: &Path,
    saved: SavedDomain,
    config: &HostConfig,
) -> Result<Domain, OpenError> {
    let read = |text: Option<String>| {
        text.map(Document::read)
            .transpose()
            .map_err(|error| OpenError::Document { path: path.to_owned(), error })
    };
    let (live, persistent) = (read(saved.live)?, read(saved.persistent)?);
    let state = match (&live, saved.paused) {
        (None, _) => DomainState::ShutOff,
        (Some(_), true) => DomainState::Paused,
        (Some(_), false) => DomainState::Running,
    };
    let pending =
        saved.pending.into_iter().map(|alias| (alias, Pending { due: None, made: None, lose_event: false }));
    let (guest_changed, guest) = match saved.guest {
        Some(guest) => (true, guest),
        None => (false, config.guest.get(&saved.name).cloned().unwrap_or_default()),
    };
    let pending = pending.collect();
    let image = saved.image;
    Ok(Domain {
        state,
        live,
        persistent,
        image,
        pending,
        guest_changed,
        ..Domain::new(uuid, saved.name, guest)
    })
}
