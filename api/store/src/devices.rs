//! The table `pci_devices`: the devices that may be given away, and whom they are promised to.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::sync::Arc;

use hotslot_driver::pci::PciAddress;
use hotslot_model::device::{Device, DeviceFacts, is_for_one_use};
use hotslot_model::id::{DeviceId, EventId, HypervisorId};
use hotslot_model::rules::identity;
use hotslot_model::texts::Interner;

use crate::cache::DeviceCache;
use crate::clock::now;
use crate::columns::{RowReader, bad_column};
use crate::error::Error;
use crate::pool::Store;
use crate::sql::{Executor, Row, query};

/// What one scan changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ScanOutcome {
    /// Devices seen for the first time.
    pub added: usize,
    /// Devices whose facts changed.
    pub changed: usize,
    /// Devices that are gone.
    pub removed: usize,
    /// Devices that are gone while a server has them: their rows stay with their owners.
    pub gone_in_use: usize,
    /// Devices that changed while a server has them: what is new waits until they are free.
    pub changed_in_use: usize,
    /// DeviceCache that were written.
    pub written: usize,
}

/// What a scan looked at.
#[derive(Debug, Clone, Copy)]
pub enum ScanScope<'a> {
    /// At all that the host has.
    Everywhere,
    /// At these addresses.
    At(&'a BTreeSet<PciAddress>),
}

const TABLE: &str = "pci_devices";

/// How many rows are read at a time at the start. A row as the database gives it takes several times the memory of the
/// device that is made of it.
const PAGE: usize = 1000;

fn device(row: &Row) -> Result<Device, Error> {
    let id: i64 = row.try_get("id")?;
    let columns = RowReader { table: TABLE, id: id.to_string(), row };
    let extra_info: String = columns.get("extra_info")?;
    Ok(Device {
        id: DeviceId(id),
        uuid: columns.parse("uuid")?,
        hypervisor: HypervisorId(columns.get("compute_node_id")?),
        facts: DeviceFacts {
            address: columns.parse("address")?,
            vendor_id: columns.parse("vendor_id")?,
            product_id: columns.parse("product_id")?,
            dev_type: columns.parse("dev_type")?,
            numa_node: columns
                .get::<Option<i64>>("numa_node")?
                .map(u32::try_from)
                .transpose()
                .map_err(|error| bad_column(TABLE, id, "numa_node")(&error))?,
            parent_addr: columns.parse_opt("parent_addr")?,
            extra_info: serde_json::from_str(&extra_info)
                .map_err(|error| bad_column(TABLE, id, "extra_info")(&error))?,
        },
        status: columns.parse("status")?,
        request: columns.parse_opt("request_id")?,
        owner: columns.parse_opt("instance_uuid")?,
        created_at: columns.get("created_at")?,
        updated_at: columns.get("updated_at")?,
        gone_at: columns.get("gone_at")?,
        used_at: columns.get("used_at")?,
    })
}

/// Devices that are read together share what is said of them alike.
pub(super) fn devices(rows: &[Row]) -> Result<Vec<Arc<Device>>, Error> {
    sharing_devices(rows, &mut Interner::default())
}

/// As [`devices`], also with those that were read before by the same `sharing`.
fn sharing_devices(rows: &[Row], sharing: &mut Interner) -> Result<Vec<Arc<Device>>, Error> {
    let shared = |row| {
        let mut device = device(row)?;
        device.facts.extra_info = sharing.share(device.facts.extra_info);
        Ok(Arc::new(device))
    };
    rows.iter().map(shared).collect()
}

impl Store {
    /// Every device, in order of host and address.
    pub fn devices(&self) -> Vec<Arc<Device>> {
        self.rows().in_order.values().cloned().collect()
    }

    /// A host's devices, in order of address.
    pub fn devices_of(&self, host: HypervisorId) -> Vec<Arc<Device>> {
        self.rows().of(host)
    }

    /// One device.
    pub fn device(&self, id: DeviceId) -> Option<Arc<Device>> {
        self.rows().device(id)
    }

    /// One device, also when its row has been put aside.
    ///
    /// # Errors
    /// The database's, or a row that cannot be read.
    pub async fn known_device(&self, id: DeviceId) -> Result<Option<Arc<Device>>, Error> {
        if let Some(found) = self.device(id) {
            return Ok(Some(found));
        }
        let row =
            query("SELECT * FROM pci_devices WHERE id = $1").bind(id.0).fetch_optional(&self.read).await?;
        row.as_ref().map(|row| device(row).map(Arc::new)).transpose()
    }

    /// The devices after one, at most `limit` of those that `pass`, in order of id.
    pub fn devices_after(
        &self,
        after: Option<DeviceId>,
        limit: usize,
        passes: impl Fn(&Device) -> bool,
    ) -> Vec<Arc<Device>> {
        let rows = self.rows();
        let start = after.map_or(Bound::Unbounded, Bound::Excluded);
        let places = rows.places.range((start, Bound::Unbounded));
        let devices = places.filter_map(|(_, place)| rows.in_order.get(place));
        devices.filter(|device| passes(device)).take(limit).cloned().collect()
    }

    /// The id of a device by the text of its id or UUID, one that is gone too: a page may begin after it.
    ///
    /// # Errors
    /// The database's.
    pub async fn marker(&self, text: &str) -> Result<Option<DeviceId>, Error> {
        let row = query("SELECT id FROM pci_devices WHERE id = $1 OR uuid = $2")
            .bind(text.parse::<i64>().unwrap_or(-1))
            .bind(text.to_ascii_lowercase())
            .fetch_optional(&self.read)
            .await?;
        Ok(row.map(|row| row.try_get("id").map(DeviceId)).transpose()?)
    }

    /// Says that a device which was used once has been cleaned, and may be given again. One that was not used
    /// since may be cleaned all the same.
    ///
    /// # Errors
    /// [`Error::Conflict`] for a device that is in use, or is not for one use; the database's.
    pub async fn cleaned(&self, id: DeviceId) -> Result<(), Error> {
        let mut draft = self.draft().await?;
        if let Some(device) = draft.device(id).filter(|device| device.used_at.is_none()) {
            let address = device.facts.address;
            if device.owner.is_some() {
                let status = device.status;
                return Err(Error::Conflict(format!("{address} is {status}: detach it, then clean it")));
            }
            if !is_for_one_use(&device.facts) {
                return Err(Error::Conflict(format!(
                    "{address} is not for one use and may be given again as it is: its device_spec does not say \
                     one_time_use"
                )));
            }
        }
        draft.edit(id, |row| row.used_at = None);
        if draft.device(id).is_some_and(|device| device.gone_at.is_some()) {
            draft.remove(id);
        }
        draft.commit().await.map(drop)
    }

    /// Reads all rows that are not deleted, as the service does when it starts.
    pub(super) async fn read_devices(&self) -> Result<(), Error> {
        // In turn, so that what this process commits meanwhile is not covered by what was before.
        let _turn = self.turn.lock().await;
        // The number first: rows that are newer than it are read once more.
        let seq = query("SELECT seq FROM commits").fetch_one(&self.read).await?.try_get("seq")?;
        let (mut fresh, mut sharing) = (DeviceCache::default(), Interner::default());
        let mut after = i64::MIN;
        loop {
            let rows = query("SELECT * FROM pci_devices WHERE deleted = 0 AND id > $1 ORDER BY id LIMIT $2")
                .bind(after)
                .bind(PAGE as i64)
                .fetch_all(&self.read)
                .await?;
            let page = sharing_devices(&rows, &mut sharing)?;
            let Some(last) = page.last() else { break };
            after = last.id.0;
            fresh.put(page, seq);
        }
        *self.rows_mut() = fresh;
        Ok(())
    }

    /// Brings what is in memory up to what other processes have committed.
    ///
    /// # Errors
    /// The database's, or a row that cannot be read.
    pub async fn refresh(&self) -> Result<(), Error> {
        if self.is_shared() {
            // In turn, so that what this process commits meanwhile is not covered by what was before.
            let _turn = self.turn.lock().await;
            self.catch_up(Executor::Pool(&self.read)).await?;
        }
        Ok(())
    }

    /// Reads the rows that other processes have written since, deleted ones too.
    pub(super) async fn catch_up(&self, mut on: Executor<'_>) -> Result<(), Error> {
        let new = query("SELECT seq, last FROM commits, event_ids").fetch_one(on.again()).await?;
        let (seq, last): (i64, _) = (new.try_get("seq")?, EventId(new.try_get("last")?));
        let known = self.rows().seq;
        if seq > known {
            let rows =
                query("SELECT * FROM pci_devices WHERE seq > $1").bind(known).fetch_all(on.again()).await?;
            self.read_overdue(on).await?;
            self.rows_mut().put(devices(&rows)?, seq);
        }
        // Whoever follows the events finds the devices as they say.
        self.heard_of(last);
        Ok(())
    }

    /// Brings the table in line with what a host has now, where it was looked. Only what differs is written.
    ///
    /// # Errors
    /// The database's; then nothing was changed.
    pub async fn scan(
        &self,
        host: HypervisorId,
        looked: ScanScope<'_>,
        mut seen: Vec<DeviceFacts>,
    ) -> Result<ScanOutcome, Error> {
        let mut outcome = ScanOutcome::default();
        let mut draft = self.draft().await?;
        let mut devices = draft.devices_of(host);
        if let ScanScope::At(addresses) = looked {
            devices.retain(|device| addresses.contains(&device.facts.address));
        }
        let moves = identity::follow(
            &devices.iter().map(|device| &device.facts).collect::<Vec<_>>(),
            &seen.iter().collect::<Vec<_>>(),
        );
        for (from, to) in &moves.moved {
            tracing::warn!(pci.address = %to, from = %from, "the device that was at {from} is at {to} now");
        }
        for address in &moves.unclear {
            tracing::warn!(
                pci.address = %address,
                "the device that was at {address} is gone, and others of its kind have come: \
                 nothing tells whether it is one of them"
            );
        }
        // Who is known at an address: one that moved there before one that was there.
        let mut known = BTreeMap::new();
        let (mut displaced, mut displaced_by) = (Vec::new(), Vec::new());
        for device in devices {
            let address = device.facts.address;
            let place = moves.moved.get(&address).copied().unwrap_or(address);
            let moved = place != address;
            match known.entry(place) {
                Entry::Vacant(vacant) => drop(vacant.insert((moved, device))),
                Entry::Occupied(mut there) if moved => displaced.push(there.insert((moved, device)).1),
                Entry::Occupied(_) => displaced.push(device),
            }
        }
        // A device that a server has keeps its address, also when it is gone: whoever is there now waits.
        for device in displaced.iter().filter(|device| device.status.is_held()) {
            if let Some((true, waits)) = known.remove(&device.facts.address) {
                let address = device.facts.address;
                tracing::error!(
                    pci.address = %address, owner = ?device.owner,
                    "another device is at {address}, which a server was promised: detach it there first"
                );
                seen.retain(|facts| facts.address != address);
                displaced_by.push(waits);
            }
        }
        let mut pinned_before = None;
        for facts in seen {
            match known.remove(&facts.address).map(|(_, device)| device) {
                Some(device) if device.facts == facts => {
                    if device.gone_at.is_some() {
                        draft.edit(device.id, |row| row.gone_at = None);
                    }
                }
                // Whoever has it was promised what it was; where it is now is another matter.
                Some(device) if device.status.is_held() && device.facts.address != facts.address => {
                    tracing::error!(
                        pci.address = %facts.address, owner = ?device.owner,
                        "the device is in the definition of its server under its old address {}: detach and \
                         attach it again before the server starts", device.facts.address
                    );
                    draft.edit(device.id, |row| (row.facts, row.gone_at) = (facts, None));
                    outcome.changed += 1;
                }
                Some(device) if device.status.is_held() => {
                    draft.edit(device.id, |row| row.gone_at = None);
                    outcome.changed_in_use += 1;
                }
                Some(device) => {
                    draft.edit(device.id, |row| (row.facts, row.gone_at) = (facts, None));
                    outcome.changed += 1;
                }
                None => {
                    let before = match &mut pinned_before {
                        Some(before) => before,
                        none => none.insert(draft.pinned_before(host).await?),
                    };
                    // An accelerator that is a device stays that device: it gets its row again.
                    match before.remove(&facts.address).filter(|was| identity::is_same(&was.facts, &facts)) {
                        Some(was) => draft.bring_back(was, facts),
                        None => drop(draft.add(host, facts).await?),
                    }
                    outcome.added += 1;
                }
            }
        }
        let gone = known.into_values().map(|(_, device)| device).chain(displaced).chain(displaced_by);
        for device in gone {
            // One that waits to be cleaned must not come back as a new one.
            if device.status.is_held() || device.used_at.is_some() {
                draft.edit(device.id, |row| row.gone_at = row.gone_at.or(Some(now())));
                outcome.gone_in_use += 1;
            } else {
                draft.remove(device.id);
                outcome.removed += 1;
            }
        }
        draft.tell_everyone(host);
        outcome.written = draft.commit().await?;
        Ok(outcome)
    }
}
