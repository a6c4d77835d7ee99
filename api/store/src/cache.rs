//! The rows of `pci_devices` in memory, as they were last committed.

use std::collections::BTreeMap;
use std::sync::Arc;

use hotslot_driver::pci::PciAddress;
use hotslot_model::device::{Device, DeviceStatus};
use hotslot_model::id::{DeviceId, HypervisorId};

/// The rows that are not deleted, as they were last committed.
///
/// Requests choose from them and lists show them without asking the database; what is promised is decided by the
/// database's row alone ([`DeviceTransaction::commit`](crate::draft::DeviceTransaction::commit)).
#[derive(Debug, Default)]
pub(crate) struct DeviceCache {
    /// The number of the commit that last wrote one of them.
    pub(crate) seq: i64,
    pub(crate) in_order: BTreeMap<(HypervisorId, PciAddress), Arc<Device>>,
    pub(crate) places: BTreeMap<DeviceId, (HypervisorId, PciAddress)>,
}

impl DeviceCache {
    pub(crate) fn device(&self, id: DeviceId) -> Option<Arc<Device>> {
        self.in_order.get(self.places.get(&id)?).cloned()
    }

    /// A host's devices, in order of address.
    pub(crate) fn of(&self, host: HypervisorId) -> Vec<Arc<Device>> {
        let all = self.in_order.range((host, PciAddress::MIN)..);
        all.take_while(|((of, _), _)| *of == host).map(|(_, device)| Arc::clone(device)).collect()
    }

    /// The PF of a VF, or the VFs of a PF.
    pub(crate) fn relatives(&self, device: &Device) -> Vec<Arc<Device>> {
        let host = device.hypervisor;
        if let Some(pf) = device.facts.parent_addr {
            return self.in_order.get(&(host, pf)).cloned().into_iter().collect();
        }
        let all = self.in_order.range((host, PciAddress::MIN)..).take_while(|((of, _), _)| *of == host);
        let of_it = |other: &&Arc<Device>| other.facts.parent_addr == Some(device.facts.address);
        all.map(|(_, other)| other).filter(of_it).cloned().collect()
    }

    /// Takes in what a commit has written.
    pub(crate) fn put(&mut self, rows: Vec<Arc<Device>>, seq: i64) {
        self.seq = self.seq.max(seq);
        // Addresses may have been exchanged: all old places are left before a new one is taken.
        for row in &rows {
            if let Some(place) = self.places.remove(&row.id) {
                self.in_order.remove(&place);
            }
        }
        for row in rows.into_iter().filter(|row| row.status != DeviceStatus::Deleted) {
            let place = (row.hypervisor, row.facts.address);
            self.places.insert(row.id, place);
            self.in_order.insert(place, row);
        }
    }
}
