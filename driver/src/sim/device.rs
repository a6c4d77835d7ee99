//! The devices of a simulated host: who has each, and so which driver is bound to it.
//!
//! ```text
//! resting (host driver, vfio-pci or none) ──attach──▶ held by a domain (vfio-pci)
//!        ▲                                                     │ let go, or the guest stopped
//!        └─────────── release_ms ──────────── releasing ◀──────┘
//! ```

use std::collections::BTreeMap;
use std::path::Path;

use uuid::Uuid;

use crate::device::{HostDevice, Interface, Role};
use crate::hypervisor::NodeChange;
use crate::mdev::{Mdev, MdevType};
use crate::pci::PciAddress;
use crate::xml::nodedev::NodeDevice;

pub(super) const VFIO: &str = "vfio-pci";

/// One PCI function of the host.
#[derive(Debug)]
pub(super) struct Device {
    /// What a listing says of it now.
    pub(super) info: HostDevice,
    /// The driver that it has while no guest has it.
    resting: Option<String>,
    /// The driver under which it has its children.
    native: Option<String>,
    children: Vec<Child>,
    /// The running domain that has it.
    pub(super) holder: Option<Uuid>,
    /// Its last guest has stopped; the host driver is not back yet.
    pub(super) releasing: bool,
    /// Whether the host has it.
    pub(super) present: bool,
    /// It is to vanish once its guest lets go.
    pub(super) leaving: bool,
    /// Its document, when it came later.
    pub(super) xml: Option<String>,
    /// The types of mediated devices that its host driver makes, each with how many can be made in all.
    pub(super) mdev_types: Vec<MdevType>,
    /// The mediated devices made of it.
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

/// A network interface, a vDPA or a block device on a function: a node device of its own, there while its host
/// driver is.
#[derive(Debug)]
struct Child {
    name: String,
    shows: Shows,
}

#[derive(Debug)]
enum Shows {
    Net(Interface),
    Vdpa(String),
    Block(String),
}

impl Device {
    /// A device as its document describes it; `host_driver` is the one that a guest's device returns to.
    pub(super) fn new(mut info: HostDevice, host_driver: Option<&String>) -> Self {
        let written = info.driver.clone();
        let native = host_driver.or(written.as_ref().filter(|driver| *driver != VFIO)).cloned();
        let resting = host_driver.cloned().or(written);
        info.driver.clone_from(&resting);
        Self {
            info,
            resting,
            native,
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

    /// Adds a network interface, a vDPA or a block device that is on it.
    pub(super) fn adopt(&mut self, name: String, node: NodeDevice) {
        let shows = match node {
            NodeDevice::Net { interface, .. } => Shows::Net(interface),
            NodeDevice::Vdpa { path, .. } => Shows::Vdpa(path),
            NodeDevice::Block { path, serial, .. } => {
                self.info.learn_serial(serial);
                let name = Path::new(&path).file_name().map(|name| name.to_string_lossy().into_owned());
                Shows::Block(name.unwrap_or(path))
            }
            NodeDevice::Pci(_) | NodeDevice::Mdev(_) | NodeDevice::Other => return,
        };
        self.children.push(Child { name, shows });
    }

    /// The driver that it has while no guest has it.
    pub(super) fn resting(&self) -> Option<&String> {
        self.resting.as_ref()
    }

    /// Binds another driver, or none, for as long as no guest has it.
    pub(super) fn rest_on(&mut self, driver: Option<String>) {
        self.resting = driver;
    }

    /// The host driver that libvirt gives it back to: the one under which it has its children.
    pub(super) fn native(&self) -> Option<&String> {
        self.native.as_ref()
    }

    /// Whether a guest may have it with `managed='no'`: somebody bound it to VFIO.
    pub(super) fn rests_on_vfio(&self) -> bool {
        self.resting.as_deref() == Some(VFIO)
    }

    /// Whether it rests on a host driver, to which libvirt returns it.
    pub(super) fn rests_on_host_driver(&self) -> bool {
        self.resting.is_some() && !self.rests_on_vfio()
    }

    /// Whether its children are there.
    pub(super) fn has_children(&self) -> bool {
        self.is_native()
    }

    /// Whether its host driver is bound, which makes its children and its mediated devices.
    pub(super) fn is_native(&self) -> bool {
        self.present && self.info.driver.is_some() && self.info.driver == self.native
    }

    /// The children's names.
    pub(super) fn children(&self) -> impl Iterator<Item = String> + use<> {
        self.children.iter().map(|child| child.name.clone()).collect::<Vec<_>>().into_iter()
    }

    /// Brings what a listing says in line with who has it. Says what happened to its children.
    pub(super) fn refresh(&mut self) -> Option<NodeChange> {
        let info = &self.info;
        let before = !info.net.is_empty() || !info.vdpa.is_empty() || !info.block.is_empty();
        let with_guest = self.holder.is_some() || self.releasing;
        self.info.driver = if with_guest { Some(VFIO.to_owned()) } else { self.resting.clone() };
        let now = self.has_children();
        self.info.net.clear();
        self.info.vdpa.clear();
        self.info.block.clear();
        for child in self.children.iter().filter(|_| now) {
            match &child.shows {
                Shows::Net(interface) => self.info.net.push(interface.clone()),
                Shows::Vdpa(path) => self.info.vdpa.push(path.clone()),
                Shows::Block(name) => self.info.block.push(name.clone()),
            }
        }
        match (before, now && !self.children.is_empty()) {
            (false, true) => Some(NodeChange::Created),
            (true, false) => Some(NodeChange::Deleted),
            (true, true) | (false, false) => None,
        }
    }
}

/// The devices of one host, by address.
#[derive(Debug, Default)]
pub(super) struct Devices(BTreeMap<PciAddress, Device>);

impl Devices {
    /// The device there, when the host has it.
    pub(super) fn get(&self, address: PciAddress) -> Option<&Device> {
        self.0.get(&address).filter(|device| device.present)
    }

    /// The same, to be changed.
    pub(super) fn get_mut(&mut self, address: PciAddress) -> Option<&mut Device> {
        self.0.get_mut(&address).filter(|device| device.present)
    }

    /// The device there, also when it has vanished.
    pub(super) fn known(&mut self, address: PciAddress) -> Option<&mut Device> {
        self.0.get_mut(&address)
    }

    /// Everything that the host has, in order of address.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Device> {
        self.0.values().filter(|device| device.present)
    }

    /// The mediated device of this UUID.
    pub(super) fn mdev(&self, uuid: Uuid) -> Option<&HeldMdev> {
        self.iter().find_map(|device| device.mdevs.get(&uuid))
    }

    /// The same, to be changed.
    pub(super) fn mdev_mut(&mut self, uuid: Uuid) -> Option<&mut HeldMdev> {
        self.0.values_mut().find_map(|device| device.mdevs.get_mut(&uuid))
    }

    pub(super) fn insert(&mut self, device: Device) -> Option<Device> {
        self.0.insert(device.info.address, device)
    }

    /// The other members of its IOMMU group that the host has.
    pub(super) fn siblings(&self, device: &HostDevice) -> impl Iterator<Item = &Device> {
        let own = device.address;
        let members = device.iommu_group.as_ref().map(|group| group.members.clone()).unwrap_or_default();
        members.into_iter().filter(move |member| *member != own).filter_map(|member| self.get(member))
    }

    /// The virtual functions of a physical one; none for another.
    pub(super) fn virtual_functions(&self, device: &HostDevice) -> Vec<PciAddress> {
        match &device.role {
            Role::Physical { vfs, .. } => vfs.iter().copied().filter(|vf| self.get(*vf).is_some()).collect(),
            Role::Plain | Role::Virtual { .. } => Vec::new(),
        }
    }

    /// Writes into its parent and its group that a device has come or gone.
    pub(super) fn tell_relatives(&mut self, address: PciAddress) {
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
                self.0.get_mut(&parent)
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
