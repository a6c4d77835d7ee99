//! The devices of a simulated host: the domain that has each, and the driver that is bound to it.
//!
//! ```text
//! free (host driver, vfio-pci or none) ──attach──▶ held by a domain (vfio-pci)
//!        ▲                                                     │ detached, or the guest stopped
//!        └─────────── release_ms ──────────── releasing ◀──────┘
//! ```

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use uuid::Uuid;

use crate::device::{HostDevice, Interface, Role};
use crate::hypervisor::NodeChange;
use crate::mdev::{Mdev, MdevType};
use crate::pci::PciAddress;
use crate::vfio::{OnVfio, of_driver};
use crate::xml::nodedev::NodeDevice;

pub(super) const VFIO: &str = "vfio-pci";

/// One PCI function of the host.
#[derive(Debug)]
pub(super) struct Device {
    /// The description of the device, as it is listed now.
    pub(super) info: HostDevice,
    /// The driver that is bound while no guest has the device.
    free_driver: Option<Arc<str>>,
    /// The host driver, under which the device has its children.
    native: Option<Arc<str>>,
    /// What the captured sysfs says of the native driver: whether it is a VFIO driver. `None` when there is no sysfs.
    native_on_vfio: Option<bool>,
    children: Vec<Child>,
    /// The serial number that the device itself has. Children may have another one.
    serial: Option<String>,
    /// The running domain that has the device.
    pub(super) holder: Option<Uuid>,
    /// Whether its last guest has stopped and the host driver is not rebound yet.
    pub(super) releasing: bool,
    /// Whether the host has the device.
    pub(super) present: bool,
    /// Whether the device vanishes as soon as its guest releases it.
    pub(super) leaving: bool,
    /// The document of a device that was added through the control socket.
    pub(super) xml: Option<String>,
    /// The mediated device types of its host driver, each with the total number of instances.
    pub(super) mdev_types: Vec<MdevType>,
    /// The mediated devices on it.
    pub(super) mdevs: BTreeMap<Uuid, HeldMdev>,
}

/// A mediated device, and the running domain that has it.
#[derive(Debug)]
pub(super) struct HeldMdev {
    pub(super) info: Mdev,
    pub(super) holder: Option<Uuid>,
}

impl From<Mdev> for HeldMdev {
    fn from(info: Mdev) -> Self {
        Self { info, holder: None }
    }
}

/// A network interface, a vDPA or a block device on a function. It is a separate node device, which exists while the
/// host driver is bound.
#[derive(Debug)]
struct Child {
    name: String,
    kind: ChildKind,
}

#[derive(Debug)]
enum ChildKind {
    Net(Interface),
    Vdpa(String),
    Block { name: String, serial: Option<String> },
}

impl Device {
    /// Makes a device from its document. `host_driver` overrides the host driver, for a device that a guest has.
    pub(super) fn new(mut info: HostDevice, host_driver: Option<Arc<str>>) -> Self {
        let written = info.driver.clone();
        let native = host_driver.clone().or(written.clone().filter(|driver| **driver != *VFIO));
        let free_driver = host_driver.or(written);
        info.driver.clone_from(&free_driver);
        Self {
            serial: info.serial.clone(),
            info,
            free_driver,
            native,
            native_on_vfio: None,
            children: Vec::new(),
            holder: None,
            releasing: false,
            present: true,
            leaving: false,
            xml: None,
            mdev_types: Vec::new(),
            mdevs: BTreeMap::new(),
        }
    }

    /// Adds a network interface, a vDPA or a block device as a child.
    pub(super) fn add_child(&mut self, name: String, node: NodeDevice) {
        let kind = match node {
            NodeDevice::Net { interface, .. } => ChildKind::Net(interface),
            NodeDevice::Vdpa { path, .. } => ChildKind::Vdpa(path),
            NodeDevice::Block { path, serial, .. } => {
                let name = Path::new(&path).file_name().map(|name| name.to_string_lossy().into_owned());
                ChildKind::Block { name: name.unwrap_or(path), serial }
            }
            NodeDevice::Pci(_) | NodeDevice::Mdev(_) | NodeDevice::Other => return,
        };
        self.children.push(Child { name, kind });
    }

    /// Takes its block devices away, as when a disk is pulled. Returns their names.
    pub(super) fn pull_disks(&mut self) -> Vec<String> {
        let is_disk = |child: &mut Child| matches!(child.kind, ChildKind::Block { .. });
        self.children.extract_if(.., is_disk).map(|child| child.name).collect()
    }

    /// The device as libvirt describes it alone, without its children.
    pub(super) fn without_children(&self) -> HostDevice {
        HostDevice {
            net: Vec::new(),
            vdpa: Vec::new(),
            block: Vec::new(),
            serial: self.serial.clone(),
            ..self.info.clone()
        }
    }

    /// The driver that is bound while no guest has the device.
    pub(super) fn free_driver(&self) -> Option<&Arc<str>> {
        self.free_driver.as_ref()
    }

    /// Sets the driver that is bound while no guest has the device.
    pub(super) fn set_free_driver(&mut self, driver: Option<Arc<str>>) {
        self.free_driver = driver;
    }

    /// The host driver to which libvirt returns the device, and under which the device has its children.
    pub(super) fn native(&self) -> Option<&Arc<str>> {
        self.native.as_ref()
    }

    /// Notes what the captured sysfs says of the driver in the document: whether it is a VFIO driver.
    pub(super) fn set_native_on_vfio(&mut self, vfio_dev: Option<bool>) {
        self.native_on_vfio = vfio_dev;
    }

    /// Whether the device is bound to VFIO while no guest has it, so that it can be attached with `managed='no'`.
    pub(super) fn is_on_vfio_when_free(&self) -> bool {
        self.is_vfio(self.free_driver.as_deref())
    }

    /// Whether a driver is a VFIO driver for this device. The captured sysfs decides for the native driver, and the name
    /// for others.
    fn is_vfio(&self, driver: Option<&str>) -> bool {
        let Some(driver) = driver else { return false };
        let by_name = || of_driver(driver, matches!(self.info.role, Role::Virtual { .. })) == OnVfio::Yes;
        let captured = self.native_on_vfio.filter(|_| self.native.as_deref() == Some(driver));
        captured.unwrap_or_else(by_name)
    }

    /// Whether the device is bound to a host driver while no guest has it, so that libvirt returns it to that driver.
    pub(super) fn is_on_host_driver_when_free(&self) -> bool {
        self.free_driver.is_some() && !self.is_on_vfio_when_free()
    }

    /// Whether its children exist now.
    pub(super) fn has_children(&self) -> bool {
        self.is_native()
    }

    /// Whether its host driver is bound, which provides its children and its mediated devices.
    pub(super) fn is_native(&self) -> bool {
        self.present && self.info.driver.is_some() && self.info.driver == self.native
    }

    /// The names of the children.
    pub(super) fn children(&self) -> impl Iterator<Item = String> + use<> {
        self.children.iter().map(|child| child.name.clone()).collect::<Vec<_>>().into_iter()
    }

    /// Updates the description of the device after a change of its holder or driver. Returns the change of its
    /// children.
    pub(super) fn refresh(&mut self) -> Option<NodeChange> {
        let info = &self.info;
        let before = !info.net.is_empty() || !info.vdpa.is_empty() || !info.block.is_empty();
        let with_guest = self.holder.is_some() || self.releasing;
        let stays = !with_guest || self.is_on_vfio_when_free();
        self.info.driver = if stays { self.free_driver.clone() } else { Some(VFIO.into()) };
        let kernel_tells = self.native_on_vfio.is_some();
        self.info.vfio_dev = kernel_tells.then(|| self.is_vfio(self.info.driver.as_deref()));
        let now = self.has_children();
        self.info.net.clear();
        self.info.vdpa.clear();
        self.info.block.clear();
        self.info.serial.clone_from(&self.serial);
        for child in self.children.iter().filter(|_| now) {
            match &child.kind {
                ChildKind::Net(interface) => self.info.net.push(interface.clone()),
                ChildKind::Vdpa(path) => self.info.vdpa.push(path.clone()),
                ChildKind::Block { name, serial } => {
                    self.info.block.push(name.clone());
                    self.info.learn_serial(serial.clone());
                }
            }
        }
        match (before, now && !self.children.is_empty()) {
            (false, true) => Some(NodeChange::Created),
            (true, false) => Some(NodeChange::Deleted),
            (true, true) | (false, false) => None,
        }
    }
}

/// The devices of one host, by address. They are in memory of their own, because the nodes of such a map are half empty
/// when it was filled in order.
#[derive(Debug, Default)]
pub(super) struct Devices(BTreeMap<PciAddress, Box<Device>>);

impl Devices {
    /// Returns the device at an address if the host has it.
    pub(super) fn get(&self, address: PciAddress) -> Option<&Device> {
        self.0.get(&address).map(AsRef::as_ref).filter(|device| device.present)
    }

    /// As [`get`](Self::get), mutable.
    pub(super) fn get_mut(&mut self, address: PciAddress) -> Option<&mut Device> {
        self.known(address).filter(|device| device.present)
    }

    /// Returns the device at an address, also when it has vanished.
    pub(super) fn known(&mut self, address: PciAddress) -> Option<&mut Device> {
        self.0.get_mut(&address).map(AsMut::as_mut)
    }

    /// Iterates over the devices that the host has, in order of address.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Device> {
        self.0.values().map(AsRef::as_ref).filter(|device| device.present)
    }

    /// Returns the mediated device with this UUID.
    pub(super) fn mdev(&self, uuid: Uuid) -> Option<&HeldMdev> {
        self.iter().find_map(|device| device.mdevs.get(&uuid))
    }

    /// As [`mdev`](Self::mdev), mutable.
    pub(super) fn mdev_mut(&mut self, uuid: Uuid) -> Option<&mut HeldMdev> {
        self.0.values_mut().find_map(|device| device.mdevs.get_mut(&uuid))
    }

    pub(super) fn insert(&mut self, device: Device) {
        self.0.insert(device.info.address, Box::new(device));
    }

    /// Returns the other members of the device's IOMMU group that the host has.
    pub(super) fn siblings(&self, device: &HostDevice) -> impl Iterator<Item = &Device> {
        let own = device.address;
        let members = device.iommu_group.as_ref().map(|group| group.members.clone()).unwrap_or_default();
        members.into_iter().filter(move |member| *member != own).filter_map(|member| self.get(member))
    }

    /// Returns the VFs of a PF; the list is empty for any other function.
    pub(super) fn virtual_functions(&self, device: &HostDevice) -> Vec<PciAddress> {
        match &device.role {
            Role::Physical { vfs, .. } => vfs.iter().copied().filter(|vf| self.get(*vf).is_some()).collect(),
            Role::Plain | Role::Virtual { .. } => Vec::new(),
        }
    }

    /// Returns the VFs of a PF, also those that have vanished, in order of address.
    pub(super) fn all_vfs(&self, pf: PciAddress) -> Vec<PciAddress> {
        let is_of = |device: &&Device| device.info.role == Role::Virtual { parent: pf };
        self.0.values().map(AsRef::as_ref).filter(is_of).map(|device| device.info.address).collect()
    }

    /// Updates the lists of the device's PF and IOMMU group after the device appeared or vanished.
    pub(super) fn update_relatives(&mut self, address: PciAddress) {
        let Some(device) = self.0.get(&address) else { return };
        let (present, role) = (device.present, device.info.role.clone());
        let members = device.info.iommu_group.as_ref().map(|group| group.members.clone()).unwrap_or_default();
        let update = |list: &mut Vec<PciAddress>| {
            list.retain(|member| *member != address);
            if present {
                list.push(address);
                list.sort();
            }
        };
        if let Role::Virtual { parent } = role
            && let Some(Device { info: HostDevice { role: Role::Physical { vfs, .. }, .. }, .. }) =
                self.known(parent)
        {
            update(vfs);
        }
        for member in members.into_iter().filter(|member| *member != address) {
            if let Some(group) = self.0.get_mut(&member).and_then(|device| device.info.iommu_group.as_mut()) {
                update(&mut group.members);
            }
        }
    }
}
