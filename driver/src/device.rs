//! A PCI function of a host, as libvirt's node device document describes it.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::net::MacAddress;
use crate::pci::{PciAddress, PciClass, PciId};
use crate::vfio::{self, OnVfio};

/// One PCI function of a host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostDevice {
    /// The address on the host.
    pub address: PciAddress,
    /// The vendor id.
    pub vendor_id: PciId,
    /// The product id.
    pub product_id: PciId,
    /// The vendor's name from libvirt's id table.
    pub vendor_name: Option<Arc<str>>,
    /// The product's name from libvirt's id table.
    pub product_name: Option<Arc<str>>,
    /// The class code. libvirt before 5.3 does not report it.
    pub class: Option<PciClass>,
    /// The role in SR-IOV.
    pub role: Role,
    /// The IOMMU group; `None` without an IOMMU.
    pub iommu_group: Option<IommuGroup>,
    /// The NUMA node of the slot, if the platform reports it.
    pub numa_node: Option<u32>,
    /// The driver that is bound (`igbvf`, `vfio-pci`); `None` when no driver is bound.
    pub driver: Option<Arc<str>>,
    /// Whether the host's kernel shows a VFIO device for it ([`local::vfio_dev`](crate::local::vfio_dev)); `None` when
    /// that cannot be read.
    pub vfio_dev: Option<bool>,
    /// libvirt's node device name of the parent (`computer` on the root bus).
    pub parent: Option<Arc<str>>,
    /// Whether it is a bridge or a port (`<capability type='pci-bridge'/>` or class 0x06), which is never assignable.
    pub bridge: bool,
    /// Whether it has a PCI Express capability. A device without one needs a conventional PCI slot.
    pub express: bool,
    /// The PCI Express link, if libvirt reports it.
    pub link: Option<Arc<Link>>,
    /// The card's serial number from its vital product data. For an NVMe controller without one it is that of a
    /// namespace.
    pub serial: Option<String>,
    /// The network interfaces on it, in order of their names. Empty when the children were not read.
    pub net: Vec<Interface>,
    /// The vDPA devices on it, by their character devices (`/dev/vhost-vdpa-0`; an empty text for a vDPA device without
    /// one), in order. Empty when the children were not read.
    pub vdpa: Vec<String>,
    /// The block devices on it, by name. Empty when the children were not read.
    pub block: Vec<String>,
}

/// A network interface of the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interface {
    /// The name.
    pub name: String,
    /// The MAC address, if the interface has a valid one.
    pub mac: Option<MacAddress>,
    /// The features (`rx`, `tso`), as libvirt names them. Interfaces with the same features share the list.
    pub features: Arc<[String]>,
}

impl From<String> for Interface {
    /// Makes an interface of which only the name is known.
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

/// The role of a function in SR-IOV (PCI Express Base Specification, chapter 9).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Role {
    /// Neither PF nor VF.
    Plain,
    /// A PF, with or without VFs.
    Physical {
        /// The maximum number of VFs (`sriov_totalvfs`).
        max_vfs: u32,
        /// The current VFs, in order of address.
        vfs: Vec<PciAddress>,
    },
    /// A VF.
    Virtual {
        /// The PF.
        parent: PciAddress,
    },
}

/// The smallest set of functions that the IOMMU can isolate. Only one guest can have functions of a group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IommuGroup {
    /// The kernel's number of the group. It may change at a reboot and when VFs are created or removed.
    pub number: u32,
    /// All members including the device itself, in order of address.
    pub members: Vec<PciAddress>,
}

/// A PCI Express link: its maximum and its current speed and width.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Link {
    /// The maximum speed of the device in GT/s, as libvirt writes it (`2.5`, `16`).
    pub max_speed: Option<String>,
    /// The maximum width of the device in lanes.
    pub max_width: Option<u32>,
    /// The current speed in GT/s.
    pub speed: Option<String>,
    /// The current width in lanes.
    pub width: Option<u32>,
}

/// The names of vendors, products, parents and drivers, and the links. Functions that are read together share equal
/// values to save memory.
#[derive(Debug, Default)]
pub(crate) struct Shared {
    names: BTreeSet<Arc<str>>,
    links: BTreeSet<Arc<Link>>,
}

impl Shared {
    /// Replaces the names and the link of a function by equal values of earlier functions.
    pub(crate) fn share(&mut self, device: &mut HostDevice) {
        let names =
            [&mut device.vendor_name, &mut device.product_name, &mut device.parent, &mut device.driver];
        for name in names.into_iter().flatten() {
            share(&mut self.names, name);
        }
        if let Some(link) = &mut device.link {
            share(&mut self.links, link);
        }
    }
}

/// Replaces a value by an equal known one, or adds it to the known values.
fn share<T: Ord + ?Sized>(known: &mut BTreeSet<Arc<T>>, value: &mut Arc<T>) {
    match known.get(value) {
        Some(same) => *value = Arc::clone(same),
        None => drop(known.insert(Arc::clone(value))),
    }
}

impl HostDevice {
    /// Returns a copy of the name of the driver.
    pub fn driver_name(&self) -> Option<String> {
        self.driver.as_deref().map(str::to_owned)
    }

    /// Sets the serial number of an NVMe controller without one to that of its disk.
    pub(crate) fn learn_serial(&mut self, of_disk: Option<String>) {
        if self.class.is_some_and(PciClass::is_nvme) {
            self.serial = self.serial.take().or(of_disk);
        }
    }

    /// Whether it has a network interface of this name.
    pub fn has_interface(&self, name: &str) -> bool {
        self.net.iter().any(|interface| interface.name == name)
    }

    /// Whether it is bound to a VFIO driver: what the kernel says, or else what the driver's name tells.
    pub fn vfio(&self) -> OnVfio {
        match (self.driver.as_deref(), self.vfio_dev) {
            (None, _) | (Some(_), Some(false)) => OnVfio::No,
            (Some(_), Some(true)) => OnVfio::Yes,
            (Some(driver), None) => vfio::of_driver(driver, matches!(self.role, Role::Virtual { .. })),
        }
    }

    /// Whether it certainly is bound to a VFIO driver.
    pub fn is_on_vfio(&self) -> bool {
        self.vfio() == OnVfio::Yes
    }

    /// The VFIO driver that it is bound to and that libvirt must not replace, because the driver also makes what the
    /// function is: the manager of virtual GPUs.
    pub fn vfio_manager(&self) -> Option<&str> {
        self.driver.as_deref().filter(|driver| self.is_on_vfio() && vfio::is_manager(driver))
    }

    /// Why libvirt must not bind the driver of this function, and what to do instead; `None` when it may.
    pub fn why_not_managed(&self) -> Option<String> {
        self.vfio_manager().map(|driver| {
            format!(
                "{} is bound to the VFIO driver {driver}, which makes the function what it is (as the manager of virtual \
                 GPUs does), and libvirt would bind vfio-pci in its place; give its device_spec \"managed\": \"false\"",
                self.address
            )
        })
    }

    /// How an operator binds this function to VFIO. The VFs of a PF disappear with its driver, so that no command is named for
    /// a PF that has some.
    pub fn how_to_bind(&self) -> String {
        match &self.role {
            Role::Physical { vfs, .. } if !vfs.is_empty() => format!(
                "take a VF of it, or remove its {} VF(s), which disappear with its driver, before you bind it to vfio-pci",
                vfs.len()
            ),
            Role::Physical { .. } | Role::Virtual { .. } | Role::Plain => {
                format!("bind it to vfio-pci first (virsh nodedev-detach {})", self.address.node_name())
            }
        }
    }

    /// Whether this function makes its IOMMU group unusable for guests, because it is bound to a host driver, which may
    /// do DMA. Functions without a driver, those on VFIO or pci-stub, and bridges do not.
    pub fn blocks_its_group(&self) -> bool {
        self.vfio() == OnVfio::No && self.may_block_its_group()
    }

    /// As [`blocks_its_group`](Self::blocks_its_group), also when it is unknown whether its driver is a VFIO driver.
    pub fn may_block_its_group(&self) -> bool {
        let harmless = |driver: &str| matches!(driver, "pci-stub" | "pcieport") || self.is_on_vfio();
        !self.bridge && self.driver.as_deref().is_some_and(|driver| !harmless(driver))
    }
}
