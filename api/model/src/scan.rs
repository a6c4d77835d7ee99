//! Scans: what the devices that a host has now make of its rows of `pci_devices`.
//!
//! [`Comparison::new`] finds the row of each device, and [`Comparison::plan`] decides what becomes of each row. The
//! events follow from the rows that the plan has ([`of_device`](crate::event::of_device)).

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;

use hotslot_driver::pci::PciAddress;
use uuid::Uuid;

use crate::device::{Device, DeviceFacts, DeviceStatus, Owner};
use crate::device_status::{DeviceEvent, InvalidTransition};
use crate::id::{DeviceId, HypervisorId};
use crate::rules::identity;
use crate::time::Millis;

/// The addresses that a scan covered.
#[derive(Debug, Clone, Copy)]
pub enum ScanScope<'a> {
    /// All addresses of the host.
    Everywhere,
    /// Only these addresses.
    At(&'a BTreeSet<PciAddress>),
}

/// The changes of one scan.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ScanOutcome {
    /// The number of devices that were seen for the first time.
    pub added: usize,
    /// The number of devices whose facts changed.
    pub changed: usize,
    /// The number of devices that are gone.
    pub removed: usize,
    /// The addresses of the devices that are gone while they are in use or wait to be cleaned. Their rows are kept.
    pub gone_in_use: Vec<PciAddress>,
    /// The number of devices whose facts changed while they are in use. The new facts are recorded when they are free.
    pub changed_in_use: usize,
    /// The number of rows that are written.
    pub written: usize,
}

/// Something about a scan that an administrator should read in the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Notice {
    /// A device is at another address now.
    Moved {
        /// The address before.
        from: PciAddress,
        /// The address now.
        to: PciAddress,
    },
    /// A device is gone, and it cannot be determined whether it is one of the new devices of the same kind.
    Unclear {
        /// The address of the device that is gone.
        address: PciAddress,
    },
    /// Another device is now at the address of a device that is in use or waits to be cleaned. It is not recorded until
    /// that device is available.
    Occupied {
        /// The address.
        address: PciAddress,
        /// The owner of the device in use; `None` when it waits to be cleaned.
        owner: Option<Owner>,
    },
    /// A device in use has moved, so the definition of its server has the wrong address.
    MovedInUse {
        /// The address before.
        from: PciAddress,
        /// The address now.
        to: PciAddress,
        /// The owner of the device.
        owner: Option<Owner>,
    },
    /// A PF and a VF of it are both in use.
    BothInUse {
        /// The address of one of them.
        address: PciAddress,
        /// The change of its status that is not possible.
        conflict: InvalidTransition,
    },
}

/// The rows of a host beside its devices as they are now.
#[derive(Debug)]
pub struct Comparison {
    /// All rows of the host, also those that the scan did not cover.
    rows: Vec<Arc<Device>>,
    /// The devices that the host has, each with its row. A device without a row is new.
    present: Vec<(Option<Arc<Device>>, DeviceFacts)>,
    /// The rows of the devices that the host does not have any more.
    missing: Vec<Arc<Device>>,
    notices: Vec<Notice>,
}

/// What a scan writes.
#[derive(Debug, Default)]
pub struct ScanPlan {
    /// The rows that differ from before, as they are to be. The row of a removed device has the status
    /// [`DeviceStatus::Deleted`].
    pub rows: BTreeMap<DeviceId, Arc<Device>>,
    /// The rows marked as deleted that become devices again, as they were.
    pub revived: Vec<Arc<Device>>,
    /// The counts.
    pub outcome: ScanOutcome,
    /// What is to be logged, in this order.
    pub notices: Vec<Notice>,
}

impl Comparison {
    /// Finds the row of each device. `rows` are all rows of the host that are not deleted, and `seen` are the devices
    /// that the host has at the addresses of `scope`; both are in order of address.
    pub fn new(rows: Vec<Arc<Device>>, scope: ScanScope<'_>, mut seen: Vec<DeviceFacts>) -> Self {
        let mut covered = rows.clone();
        if let ScanScope::At(addresses) = scope {
            covered.retain(|device| addresses.contains(&device.facts.address));
        }
        let moves = identity::follow(
            &covered.iter().map(|device| &device.facts).collect::<Vec<_>>(),
            &seen.iter().collect::<Vec<_>>(),
        );
        let moved = moves.moved.iter().map(|(from, to)| Notice::Moved { from: *from, to: *to });
        let unclear = moves.unclear.iter().map(|address| Notice::Unclear { address: *address });
        let mut notices: Vec<_> = moved.chain(unclear).collect();
        // The row for each address. A device that moved to an address has priority over one that was there.
        let mut by_address = BTreeMap::new();
        let (mut displaced, mut postponed) = (Vec::new(), Vec::new());
        for device in covered {
            let address = device.facts.address;
            let place = moves.moved.get(&address).copied().unwrap_or(address);
            let moved = place != address;
            // The row of a device that waits after its use, for example for its scrub, does not pass to another device that
            // has taken its place.
            let waits = device.used_at.is_some() && !device.status.is_held();
            if waits
                && !moved
                && let Ok(there) = seen.binary_search_by_key(&address, |facts| facts.address)
                && identity::is_another(&device.facts, &seen[there])
            {
                displaced.push(device);
                continue;
            }
            match by_address.entry(place) {
                Entry::Vacant(vacant) => drop(vacant.insert((moved, device))),
                Entry::Occupied(mut there) if moved => displaced.push(there.insert((moved, device)).1),
                Entry::Occupied(_) => displaced.push(device),
            }
        }
        // A row that stays keeps its address, even when its device is gone. The device that is there now is not recorded
        // yet. If the row of that one stays too, it keeps its own address, and so on.
        let mut staying: VecDeque<_> = displaced.iter().filter(|device| stays(device)).cloned().collect();
        while let Some(device) = staying.pop_front() {
            let (address, owner) = (device.facts.address, device.owner);
            if seen.iter().any(|facts| facts.address == address) {
                seen.retain(|facts| facts.address != address);
                notices.push(Notice::Occupied { address, owner });
            }
            if let Some((_, newcomer)) = by_address.remove(&address) {
                staying.extend(stays(&newcomer).then(|| Arc::clone(&newcomer)));
                postponed.push(newcomer);
            }
        }
        let present: Vec<_> = seen
            .into_iter()
            .map(|facts| (by_address.remove(&facts.address).map(|(_, device)| device), facts))
            .collect();
        let unseen = by_address.into_values().map(|(_, device)| device);
        let missing = unseen.chain(displaced).chain(postponed).collect();
        Self { rows, present, missing, notices }
    }

    /// Whether the host has a device without a row.
    pub fn has_new_devices(&self) -> bool {
        self.present.iter().any(|(row, _)| row.is_none())
    }

    /// Decides what becomes of each row of the host. A new device becomes the row of `former` at its address again when
    /// it can be that device; any other gets an id from `new_id`. `former` are rows marked as deleted that something
    /// still refers to.
    pub fn plan(
        self,
        host: HypervisorId,
        mut former: BTreeMap<PciAddress, Arc<Device>>,
        mut new_id: impl FnMut() -> (DeviceId, Uuid),
        now: Millis,
    ) -> ScanPlan {
        let Self { rows, present, missing, notices } = self;
        let mut plan = ScanPlan { notices, ..ScanPlan::default() };
        for (row, facts) in present {
            match row {
                Some(row) => plan.see(&row, facts),
                None => {
                    plan.outcome.added += 1;
                    match former.remove(&facts.address).filter(|row| identity::is_same(&row.facts, &facts)) {
                        Some(row) => plan.revive(row, facts),
                        None => {
                            let (id, uuid) = new_id();
                            plan.rows.insert(id, Arc::new(Device::new(id, uuid, host, facts, now)));
                        }
                    }
                }
            }
        }
        for row in missing {
            plan.miss(&row, now);
        }
        plan.follow_relatives(&rows);
        plan.outcome.written = plan.rows.len();
        plan
    }
}

impl ScanPlan {
    /// Changes a row. `row` is the row as the plan has it so far.
    fn change(&mut self, row: &Arc<Device>, change: impl FnOnce(&mut Device)) {
        let mut changed = Device::clone(row);
        change(&mut changed);
        if changed != **row {
            self.rows.insert(changed.id, Arc::new(changed));
        }
    }

    /// Plans the row of a device that the host has.
    fn see(&mut self, row: &Arc<Device>, facts: DeviceFacts) {
        let (from, to) = (row.facts.address, facts.address);
        let is_held = row.status.is_held();
        if row.facts == facts {
            if row.gone_at.is_some() {
                self.change(row, |row| row.gone_at = None);
            }
        } else if is_held && from == to {
            self.outcome.changed_in_use += 1;
            self.change(row, |row| row.gone_at = None);
        } else {
            // The address and the facts of a device that moved while in use are recorded at once.
            if is_held {
                self.notices.push(Notice::MovedInUse { from, to, owner: row.owner });
            }
            self.outcome.changed += 1;
            self.change(row, |row| (row.facts, row.gone_at) = (facts, None));
        }
    }

    /// Plans the row of a device that the host does not have any more.
    fn miss(&mut self, row: &Arc<Device>, now: Millis) {
        if stays(row) {
            self.outcome.gone_in_use.push(row.facts.address);
            self.change(row, |row| row.gone_at = row.gone_at.or(Some(now)));
        } else {
            self.outcome.removed += 1;
            self.change(row, Device::delete);
        }
    }

    /// Makes a device of a row that is marked as deleted.
    fn revive(&mut self, was: Arc<Device>, facts: DeviceFacts) {
        let row = Device { status: DeviceStatus::Available, facts, gone_at: None, ..Device::clone(&was) };
        self.rows.insert(row.id, Arc::new(row));
        self.revived.push(was);
    }

    /// Updates the status of every free device from the status of its PF or VFs. `rows` are all rows of the host before
    /// the scan.
    fn follow_relatives(&mut self, rows: &[Arc<Device>]) {
        let unchanged = rows.iter().filter(|row| !self.rows.contains_key(&row.id));
        let planned = self.rows.values().filter(|row| row.status != DeviceStatus::Deleted);
        let devices: Vec<_> = unchanged.chain(planned).collect();
        let mut of_vfs = HashMap::<PciAddress, DeviceEvent>::new();
        let mut statuses = HashMap::<PciAddress, DeviceStatus>::new();
        for device in &devices {
            statuses.insert(device.facts.address, device.status);
            if let Some(pf) = device.facts.parent_addr {
                let event = of_vfs.entry(pf).or_insert(DeviceEvent::RelativesFree);
                *event = event.and(device.status);
            }
        }
        let mut changes = Vec::new();
        for device in devices {
            let address = device.facts.address;
            let event = match device.facts.parent_addr {
                Some(pf) => DeviceEvent::of_relatives(statuses.get(&pf).copied()),
                None => of_vfs.get(&address).copied().unwrap_or(DeviceEvent::RelativesFree),
            };
            match device.status.on(event) {
                Ok(status) if status == device.status => {}
                Ok(status) => changes.push((Arc::clone(device), status)),
                Err(conflict) => self.notices.push(Notice::BothInUse { address, conflict }),
            }
        }
        for (device, status) in changes {
            self.change(&device, |row| row.status = status);
        }
    }
}

/// Whether the row of a device stays when the device is gone. It does for a device in use, and for one that waits to be
/// cleaned, which would otherwise come back as a new, available device.
fn stays(row: &Device) -> bool {
    row.status.is_held() || row.used_at.is_some()
}

#[cfg(test)]
mod tests;
