//! The PCI functions of a host, and their IOMMU groups.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, OnceLock};

use hotslot_driver::device::HostDevice;
use hotslot_driver::pci::PciAddress;

/// The PCI functions of a host, by address. A clone shares the functions with the original.
#[derive(Debug, Clone, Default)]
pub struct Functions {
    by_address: BTreeMap<PciAddress, Arc<HostDevice>>,
    groups: OnceLock<IommuGroups>,
}

/// The IOMMU groups of the functions of a host.
#[derive(Debug, Clone, Default)]
pub struct IommuGroups {
    /// The group of each function that has one, except bridges, which need not be assigned with their group.
    pub number: HashMap<PciAddress, u32>,
    /// The functions whose host drivers keep the other functions of their group from a guest, with the driver.
    pub busy: BTreeMap<PciAddress, String>,
    /// Whether a group has several members.
    pub are_shared: bool,
}

impl Functions {
    /// Returns no functions.
    pub fn new() -> Self {
        Self::default()
    }

    /// Returns the functions, sorted by address.
    pub fn by_address(&self) -> &BTreeMap<PciAddress, Arc<HostDevice>> {
        &self.by_address
    }

    /// Returns the function at an address.
    pub fn get(&self, address: &PciAddress) -> Option<&HostDevice> {
        self.by_address.get(address).map(AsRef::as_ref)
    }

    /// Whether there is a function at an address.
    pub fn contains_key(&self, address: &PciAddress) -> bool {
        self.by_address.contains_key(address)
    }

    /// Returns the addresses, sorted.
    pub fn keys(&self) -> impl Iterator<Item = &PciAddress> {
        self.by_address.keys()
    }

    /// Returns the functions, sorted by address.
    pub fn values(&self) -> impl Iterator<Item = &HostDevice> {
        self.by_address.values().map(AsRef::as_ref)
    }

    /// Returns the functions with their addresses, sorted by address.
    pub fn iter(&self) -> impl Iterator<Item = (&PciAddress, &HostDevice)> {
        self.by_address.iter().map(|(address, device)| (address, device.as_ref()))
    }

    /// The number of functions.
    pub fn len(&self) -> usize {
        self.by_address.len()
    }

    /// Whether there are no functions.
    pub fn is_empty(&self) -> bool {
        self.by_address.is_empty()
    }

    /// Adds a function, or replaces the one at its address.
    pub fn insert(&mut self, device: HostDevice) {
        self.groups.take();
        self.by_address.insert(device.address, Arc::new(device));
    }

    /// Removes the function at an address.
    pub fn remove(&mut self, address: &PciAddress) {
        self.groups.take();
        self.by_address.remove(address);
    }

    /// Returns the IOMMU groups. They are put together at the first call after a change.
    pub fn groups(&self) -> &IommuGroups {
        self.groups.get_or_init(|| IommuGroups::of(&self.by_address))
    }
}

impl IommuGroups {
    fn of(functions: &BTreeMap<PciAddress, Arc<HostDevice>>) -> Self {
        let mut groups = Self::default();
        for (address, device) in functions {
            let Some(group) = &device.iommu_group else { continue };
            let is_shared = group.members.len() > 1;
            if !device.bridge {
                groups.number.insert(*address, group.number);
                groups.are_shared |= is_shared;
            }
            if is_shared && device.blocks_its_group() {
                groups.busy.extend(device.driver.as_deref().map(|driver| (*address, driver.to_owned())));
            }
        }
        groups
    }
}

impl PartialEq for Functions {
    fn eq(&self, other: &Self) -> bool {
        self.by_address == other.by_address
    }
}

impl FromIterator<HostDevice> for Functions {
    fn from_iter<T: IntoIterator<Item = HostDevice>>(functions: T) -> Self {
        let by_address = functions.into_iter().map(|device| (device.address, Arc::new(device)));
        Self { by_address: by_address.collect(), groups: OnceLock::new() }
    }
}
