//! A PCI function of the host, as libvirt's node device describes it.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::net::MacAddress;
use crate::pci::{PciAddress, PciClass, PciId};

/// One PCI function of a host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostDevice {
    /// Where the host sees it.
    pub address: PciAddress,
    /// libvirt's node device name (`pci_0000_3b_00_1`).
    pub name: String,
    /// Vendor id.
    pub vendor_id: PciId,
    /// Product id.
    pub product_id: PciId,
    /// Vendor's name from libvirt's id table.
    pub vendor_name: Option<Arc<str>>,
    /// Product's name from libvirt's id table.
    pub product_name: Option<Arc<str>>,
    /// Class code. libvirt before 5.3 does not say it.
    pub class: Option<PciClass>,
    /// What it is to SR-IOV.
    pub role: Role,
    /// The IOMMU group; none without an IOMMU.
    pub iommu_group: Option<IommuGroup>,
    /// The NUMA node of the slot, where the platform says it.
    pub numa_node: Option<u32>,
    /// The host driver bound to it (`igbvf`, `vfio-pci`); none when unbound.
    pub driver: Option<String>,
    /// libvirt's node device name of the parent (`computer` on the root bus).
    pub parent: Option<Arc<str>>,
    /// Whether it is a bridge or a port (`<capability type='pci-bridge'/>` or class 0x06): never assignable.
    pub bridge: bool,
    /// Whether it has a PCI Express capability; a conventional device needs a conventional slot.
    pub express: bool,
    /// The PCI Express link, where libvirt says it.
    pub link: Option<Arc<Link>>,
    /// Serial number of the card from its vital product data; of an NVMe controller, its first namespace's.
    pub serial: Option<String>,
    /// Network interfaces on it, in order of their host names. Known only where children were read.
    pub net: Vec<Interface>,
    /// The vDPA devices that are made of it, by their character devices (`/dev/vhost-vdpa-0`; empty where one has
    /// none), in order. Known only where children were read.
    pub vdpa: Vec<String>,
    /// Block devices on it, by their host names. Known only where children were read.
    pub block: Vec<String>,
}

/// A network interface of the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interface {
    /// Its name.
    pub name: String,
    /// Its MAC address, where it is one.
    pub mac: Option<MacAddress>,
    /// What it can do (`rx`, `tso`), as libvirt names it: the interfaces of one kind share the list.
    pub features: Arc<[String]>,
}

impl From<String> for Interface {
    /// An interface of which only the name is known.
    fn from(name: String) -> Self {
        Self { name, mac: None, features: Arc::default() }
    }
}

impl PartialEq<&str> for Interface {
    /// Compares the name.
    fn eq(&self, name: &&str) -> bool {
        self.name == *name
    }
}

impl PartialEq<String> for Interface {
    /// Compares the name.
    fn eq(&self, name: &String) -> bool {
        self.name == *name
    }
}

/// What a function is to SR-IOV (PCI Express Base Specification, chapter 9).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Role {
    /// Neither PF nor VF.
    Plain,
    /// A physical function, with or without virtual functions enabled.
    Physical {
        /// How many VFs it can have (`sriov_totalvfs`).
        max_vfs: u32,
        /// The VFs it has now, in order of address.
        vfs: Vec<PciAddress>,
    },
    /// A virtual function.
    Virtual {
        /// Its physical function.
        parent: PciAddress,
    },
}

/// The smallest set of functions that the IOMMU can isolate: all of one group, or none, go to a guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IommuGroup {
    /// The kernel's number of the group; it may change from boot to boot, and when VFs come and go.
    pub number: u32,
    /// All members, the device itself among them, in order of address.
    pub members: Vec<PciAddress>,
}

/// A PCI Express link: what the port could do, and what it does.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Link {
    /// The fastest speed the device can do, in GT/s, as libvirt writes it (`2.5`, `16`).
    pub max_speed: Option<String>,
    /// The widest the device can do, in lanes.
    pub max_width: Option<u32>,
    /// The speed now, in GT/s.
    pub speed: Option<String>,
    /// The width now, in lanes.
    pub width: Option<u32>,
}

/// The names of vendors, products and parents, and the links: functions that are read together share what they have
/// alike.
#[derive(Debug, Default)]
pub(crate) struct Shared {
    names: BTreeSet<Arc<str>>,
    links: BTreeSet<Arc<Link>>,
}

impl Shared {
    /// Makes a function share its names and its link with those that came before it.
    pub(crate) fn share(&mut self, device: &mut HostDevice) {
        let names = [&mut device.vendor_name, &mut device.product_name, &mut device.parent];
        for name in names.into_iter().flatten() {
            share(&mut self.names, name);
        }
        if let Some(link) = &mut device.link {
            share(&mut self.links, link);
        }
    }
}

/// Replaces a value by the equal one that is known; one that is new becomes known.
fn share<T: Ord + ?Sized>(known: &mut BTreeSet<Arc<T>>, value: &mut Arc<T>) {
    match known.get(value) {
        Some(same) => *value = Arc::clone(same),
        None => drop(known.insert(Arc::clone(value))),
    }
}

impl HostDevice {
    /// Takes the serial number of a disk for that of the controller, where the controller is the disk.
    pub(crate) fn learn_serial(&mut self, of_disk: Option<String>) {
        if self.class.is_some_and(PciClass::is_nvme) {
            self.serial = self.serial.take().or(of_disk);
        }
    }

    /// Whether it has a network interface of this name.
    pub fn has_interface(&self, name: &str) -> bool {
        self.net.iter().any(|interface| interface.name == name)
    }

    /// Whether it is bound to a driver that gives it to guests.
    pub fn is_on_vfio(&self) -> bool {
        self.driver
            .as_deref()
            .is_some_and(|driver| driver.starts_with("vfio") || driver.ends_with("vfio_pci"))
    }

    /// Whether a sibling in this state keeps its IOMMU group from being given to a guest: it is bound to a
    /// host driver that does its own DMA. Unbound functions, VFIO drivers and bridges' port driver do not.
    pub fn blocks_its_group(&self) -> bool {
        let harmless = |driver: &str| matches!(driver, "pci-stub" | "pcieport") || self.is_on_vfio();
        !self.bridge && self.driver.as_deref().is_some_and(|driver| !harmless(driver))
    }
}
