//! The rows of `pci_devices` in memory, as of the last commit.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use hotslot_driver::pci::PciAddress;
use hotslot_model::device::{Device, DeviceFacts, DeviceStatus};
use hotslot_model::id::{DeviceId, HypervisorId};
use hotslot_model::rules::FreeDevices;

/// The rows that are not deleted, as of the last commit.
///
/// Requests choose devices from them, and lists show them, without a query. Only the row in the database decides
/// whether a device can be claimed ([`DeviceTransaction::commit`](crate::draft::DeviceTransaction::commit)).
#[derive(Debug, Default)]
pub(crate) struct DeviceCache {
    /// The number of the last commit that wrote a device row.
    pub(crate) seq: i64,
    pub(crate) in_order: BTreeMap<(HypervisorId, PciAddress), Arc<Device>>,
    pub(crate) places: BTreeMap<DeviceId, (HypervisorId, PciAddress)>,
    /// The addresses of the VFs of each PF.
    vfs: HashMap<(HypervisorId, PciAddress), BTreeSet<PciAddress>>,
    /// The free devices of each host, prepared for the choice.
    free: HashMap<HypervisorId, FreeDevices>,
}

/// The devices of one host, as of the last commit.
pub struct HostDevices<'c> {
    cache: &'c DeviceCache,
    host: HypervisorId,
}

impl<'c> HostDevices<'c> {
    /// Returns the device at an address.
    pub fn at(&self, address: PciAddress) -> Option<&'c Arc<Device>> {
        self.cache.in_order.get(&(self.host, address))
    }

    /// Whether the devices at these addresses are exactly those `seen` there.
    pub(crate) fn are_as(&self, addresses: &BTreeSet<PciAddress>, seen: &[DeviceFacts]) -> bool {
        let known = addresses.iter().filter_map(|address| self.at(*address));
        let is_there = |facts: &DeviceFacts| {
            self.at(facts.address).is_some_and(|device| device.facts == *facts && device.gone_at.is_none())
        };
        known.count() == seen.len() && seen.iter().all(is_there)
    }

    /// Returns the free devices; `None` when there are none.
    pub fn free(&self) -> Option<&'c FreeDevices> {
        self.cache.free.get(&self.host)
    }
}

impl DeviceCache {
    pub(crate) fn device(&self, id: DeviceId) -> Option<Arc<Device>> {
        self.in_order.get(self.places.get(&id)?).cloned()
    }

    pub(crate) fn on(&self, host: HypervisorId) -> HostDevices<'_> {
        HostDevices { cache: self, host }
    }

    /// Returns the devices of a host, in order of address.
    pub(crate) fn of(&self, host: HypervisorId) -> Vec<Arc<Device>> {
        let all = self.in_order.range((host, PciAddress::MIN)..);
        all.take_while(|((of, _), _)| *of == host).map(|(_, device)| Arc::clone(device)).collect()
    }

    /// Returns the PF of a VF, or the VFs of a PF.
    pub(crate) fn relatives(&self, device: &Device) -> Vec<Arc<Device>> {
        let host = device.hypervisor;
        if let Some(pf) = device.facts.parent_addr {
            return self.in_order.get(&(host, pf)).cloned().into_iter().collect();
        }
        let vfs = self.vfs.get(&(host, device.facts.address)).into_iter().flatten();
        vfs.filter_map(|vf| self.in_order.get(&(host, *vf)).cloned()).collect()
    }

    fn forget(&mut self, old: &Device) {
        if let Some(free) = self.free.get_mut(&old.hypervisor) {
            free.remove(old);
        }
        if let Some(pf) = old.facts.parent_addr
            && let Some(vfs) = self.vfs.get_mut(&(old.hypervisor, pf))
        {
            vfs.remove(&old.facts.address);
        }
    }

    /// Applies the rows that a commit has written.
    pub(crate) fn put(&mut self, rows: Vec<Arc<Device>>, seq: i64) {
        self.seq = self.seq.max(seq);
        // Devices may have exchanged addresses, so remove all old places before adding new ones.
        for row in &rows {
            if let Some(place) = self.places.remove(&row.id)
                && let Some(old) = self.in_order.remove(&place)
            {
                self.forget(&old);
            }
        }
        for row in rows.into_iter().filter(|row| row.status != DeviceStatus::Deleted) {
            let place = (row.hypervisor, row.facts.address);
            self.places.insert(row.id, place);
            self.free.entry(row.hypervisor).or_default().insert(&row);
            if let Some(pf) = row.facts.parent_addr {
                self.vfs.entry((row.hypervisor, pf)).or_default().insert(row.facts.address);
            }
            self.in_order.insert(place, row);
        }
    }
}
