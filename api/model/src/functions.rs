//! The PCI functions of a host, and their IOMMU groups.

use std::collections::{BTreeMap, HashMap, btree_map};
use std::ops::{Deref, DerefMut};
use std::sync::OnceLock;

use hotslot_driver::device::HostDevice;
use hotslot_driver::pci::PciAddress;

/// The PCI functions of a host, by address.
#[derive(Debug, Clone, Default)]
pub struct Functions {
    by_address: BTreeMap<PciAddress, HostDevice>,
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

    /// Returns the IOMMU groups. They are put together at the first call after a change.
    pub fn groups(&self) -> &IommuGroups {
        self.groups.get_or_init(|| IommuGroups::of(&self.by_address))
    }
}

impl IommuGroups {
    fn of(functions: &BTreeMap<PciAddress, HostDevice>) -> Self {
        let mut groups = Self::default();
        for (address, device) in functions {
            let Some(group) = &device.iommu_group else { continue };
            let is_shared = group.members.len() > 1;
            if !device.bridge {
                groups.number.insert(*address, group.number);
                groups.are_shared |= is_shared;
            }
            if is_shared && device.blocks_its_group() {
                groups.busy.extend(device.driver.clone().map(|driver| (*address, driver)));
            }
        }
        groups
    }
}

impl Deref for Functions {
    type Target = BTreeMap<PciAddress, HostDevice>;

    fn deref(&self) -> &Self::Target {
        &self.by_address
    }
}

impl DerefMut for Functions {
    fn deref_mut(&mut self) -> &mut Self::Target {
        self.groups.take();
        &mut self.by_address
    }
}

impl PartialEq for Functions {
    fn eq(&self, other: &Self) -> bool {
        self.by_address == other.by_address
    }
}

impl FromIterator<(PciAddress, HostDevice)> for Functions {
    fn from_iter<T: IntoIterator<Item = (PciAddress, HostDevice)>>(functions: T) -> Self {
        Self { by_address: functions.into_iter().collect(), groups: OnceLock::new() }
    }
}

impl<'a> IntoIterator for &'a Functions {
    type Item = (&'a PciAddress, &'a HostDevice);
    type IntoIter = btree_map::Iter<'a, PciAddress, HostDevice>;

    fn into_iter(self) -> Self::IntoIter {
        self.by_address.iter()
    }
}
