//! Mediated devices: the host driver of a function provides them, and only one guest can have each.

use uuid::Uuid;

use crate::hypervisor::{Event, NodeChange};
use crate::mdev::{Mdev, MdevType};
use crate::pci::PciAddress;

use super::host::Host;
use super::refusal::{self, Refusal};

impl Host {
    /// Returns the types that a function offers while its host driver is bound. Types do not share capacity: drivers
    /// that allow only one type at a time are not simulated.
    pub(super) fn mdev_types(&self, parent: PciAddress) -> Result<Vec<MdevType>, Refusal> {
        let device = self.devices.get(parent).ok_or_else(|| refusal::no_node_device(parent))?;
        let left = |of: &MdevType| {
            let made = device.mdevs.values().filter(|mdev| mdev.info.mdev_type == of.id).count();
            MdevType { available: of.available.saturating_sub(made as u32), ..of.clone() }
        };
        Ok(device.mdev_types.iter().filter(|_| device.is_native()).map(left).collect())
    }

    /// Returns every mediated device, in order of UUID.
    pub(super) fn mdevs(&self) -> Vec<Mdev> {
        let all = self.devices.iter().flat_map(|device| device.mdevs.values());
        let mut mdevs: Vec<Mdev> = all.map(|mdev| mdev.info.clone()).collect();
        mdevs.sort_by_key(|mdev| mdev.uuid);
        mdevs
    }

    /// Creates a mediated device. libvirt passes on the messages of its helper mdevctl, so that the messages here are
    /// not libvirt's.
    pub(super) fn create_mdev(
        &mut self,
        parent: PciAddress,
        mdev_type: &str,
        uuid: Uuid,
    ) -> Result<Mdev, Refusal> {
        match self.mdev_types(parent)?.iter().find(|of| of.id == mdev_type) {
            None => {
                return Err(refusal::mdev_not_made(format_args!(
                    "{parent} does not have the type {mdev_type}"
                )));
            }
            Some(of) if of.available == 0 => {
                return Err(refusal::mdev_not_made(format_args!(
                    "{parent} has no available instance of {mdev_type}"
                )));
            }
            Some(_) if self.devices.mdev(uuid).is_some() => {
                return Err(refusal::mdev_not_made(format_args!("{uuid} already exists")));
            }
            Some(_) => {}
        }
        let of_functions =
            self.devices.iter().filter_map(|device| Some(device.info.iommu_group.as_ref()?.number));
        let of_mdevs = self.mdevs().into_iter().filter_map(|mdev| mdev.iommu_group);
        let group = of_functions.chain(of_mdevs).max().map_or(0, |last| last + 1);
        let name = format!("mdev_{uuid}_{parent}").replace(['-', ':', '.'], "_");
        let mdev = Mdev {
            uuid,
            name,
            mdev_type: mdev_type.to_owned(),
            parent: Some(parent),
            iommu_group: Some(group),
        };
        if let Some(device) = self.devices.get_mut(parent) {
            device.mdevs.insert(uuid, mdev.clone().into());
        }
        self.mdev_changed(&mdev, NodeChange::Created);
        Ok(mdev)
    }

    /// Removes a mediated device that no guest has.
    pub(super) fn destroy_mdev(&mut self, uuid: Uuid) -> Result<(), Refusal> {
        let held = self.devices.mdev(uuid).ok_or_else(|| refusal::no_mdev(uuid))?;
        if held.holder.is_some() {
            return Err(refusal::mdev_not_destroyed(&held.info.name));
        }
        let mdev = held.info.clone();
        if let Some(device) = mdev.parent.and_then(|parent| self.devices.get_mut(parent)) {
            device.mdevs.remove(&uuid);
        }
        self.mdev_changed(&mdev, NodeChange::Deleted);
        Ok(())
    }

    /// Checks that a mediated device exists and that no domain has it.
    pub(super) fn check_mdev(&self, uuid: Uuid) -> Result<(), Refusal> {
        let mdev = self.devices.mdev(uuid).ok_or_else(|| refusal::no_mdev(uuid))?;
        mdev.holder.map_or(Ok(()), |holder| Err(refusal::mdev_in_use(uuid, self.name_of(holder))))
    }

    /// Assigns a mediated device to a domain.
    pub(super) fn hold_mdev(&mut self, domain: Uuid, uuid: Uuid) {
        if let Some(mdev) = self.devices.mdev_mut(uuid) {
            mdev.holder = Some(domain);
        }
    }

    /// Releases a mediated device from its guest. The device vanishes if its parent has lost the host driver.
    pub(super) fn release_mdev(&mut self, uuid: Uuid) {
        let Some(mdev) = self.devices.mdev_mut(uuid) else { return };
        mdev.holder = None;
        if let Some(parent) = mdev.info.parent {
            self.lose_mdevs(parent);
        }
    }

    /// Removes the mediated devices of a function whose host driver is not bound, except those that a guest has.
    pub(super) fn lose_mdevs(&mut self, address: PciAddress) {
        let Some(device) = self.devices.known(address).filter(|device| !device.is_native()) else { return };
        let lost: Vec<_> = device.mdevs.extract_if(.., |_, mdev| mdev.holder.is_none()).collect();
        for (_, mdev) in lost {
            self.mdev_changed(&mdev.info, NodeChange::Deleted);
        }
    }

    fn mdev_changed(&mut self, mdev: &Mdev, change: NodeChange) {
        if let Some(parent) = mdev.parent {
            self.save_device(parent);
        }
        self.emit(Event::NodeDevice { name: mdev.name.clone(), change });
    }
}
