//! The table `pci_devices`: the assignable devices, with their status and owner.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;

use hotslot_model::device::{Device, DeviceFacts, is_for_one_use, wants_scrub};
use hotslot_model::id::{DeviceId, EventId, HypervisorId};
use hotslot_model::scan::{Comparison, ScanOutcome, ScanScope};
use hotslot_model::texts::Interner;
use hotslot_model::time::Millis;
use uuid::Uuid;

use crate::cache::{DeviceCache, HostDevices};
use crate::clock::now;
use crate::columns::{RowReader, bad_column};
use crate::error::Error;
use crate::executor::Executor;
use crate::notices;
use crate::pool::Store;
use crate::sql::{Row, query};

const TABLE: &str = "pci_devices";

/// The number of rows that are read at a time at start. A row of the database takes several times the memory of the
/// device made from it.
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
        scrub: columns.get::<i64>("scrub")? != 0,
        quarantine: columns.get("quarantine")?,
    })
}

/// Reads devices. Devices that are read together share equal `extra_info`.
pub(super) fn devices(rows: &[Row]) -> Result<Vec<Arc<Device>>, Error> {
    sharing_devices(rows, &mut Interner::default())
}

/// Reads devices as [`devices`] does. They also share `extra_info` with devices that were read before with `sharing`.
fn sharing_devices(rows: &[Row], sharing: &mut Interner) -> Result<Vec<Arc<Device>>, Error> {
    let shared = |row| {
        let mut device = device(row)?;
        device.facts.extra_info = sharing.share(device.facts.extra_info);
        Ok(Arc::new(device))
    };
    rows.iter().map(shared).collect()
}

impl Store {
    /// Returns all devices, in order of host and address.
    pub fn devices(&self) -> Vec<Arc<Device>> {
        self.rows().in_order.values().cloned().collect()
    }

    /// Returns the devices of a host, in order of address.
    pub fn devices_of(&self, host: HypervisorId) -> Vec<Arc<Device>> {
        self.rows().of(host)
    }

    /// Calls `look` with the devices of a host. Devices do not change meanwhile, so `look` must be quick and must not wait.
    pub fn with_devices_of<T>(&self, host: HypervisorId, look: impl FnOnce(&HostDevices<'_>) -> T) -> T {
        look(&self.rows().on(host))
    }

    /// Returns one device.
    pub fn device(&self, id: DeviceId) -> Option<Arc<Device>> {
        self.rows().device(id)
    }

    /// Returns one device, even when its row is marked as deleted.
    ///
    /// # Errors
    /// Returns the error of the database, or [`Error::Row`] for a row that cannot be read.
    pub async fn known_device(&self, id: DeviceId) -> Result<Option<Arc<Device>>, Error> {
        if let Some(found) = self.device(id) {
            return Ok(Some(found));
        }
        let row =
            query("SELECT * FROM pci_devices WHERE id = $1").bind(id.0).fetch_optional(&self.read).await?;
        row.as_ref().map(|row| device(row).map(Arc::new)).transpose()
    }

    /// Returns the devices after the id `after` for which `passes` is true, at most `limit`, in order of id.
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

    /// Returns the id of the device with this id or UUID, for the start of a page. The device may be deleted.
    ///
    /// # Errors
    /// Returns the error of the database.
    pub async fn marker(&self, text: &str) -> Result<Option<DeviceId>, Error> {
        let row = query("SELECT id FROM pci_devices WHERE id = $1 OR uuid = $2")
            .bind(text.parse::<i64>().unwrap_or(-1))
            .bind(text.to_ascii_lowercase())
            .fetch_optional(&self.read)
            .await?;
        Ok(row.map(|row| row.try_get("id").map(DeviceId)).transpose()?)
    }

    /// Records that a device did not work any more during or after a use, so that it is assigned to nobody until it is
    /// [`cleaned`](Self::cleaned), and neither before a scrub for which it waits.
    ///
    /// # Errors
    /// Returns the error of the database.
    pub async fn quarantine(&self, id: DeviceId, reason: &str) -> Result<(), Error> {
        let mut draft = self.draft().await?;
        draft.edit(id, |row| {
            row.used_at.get_or_insert_with(now);
            row.quarantine = Some(reason.to_owned());
        });
        draft.commit().await
    }

    /// Records that the scrub of a device failed, so that it is assigned to nobody until it is [`cleaned`](Self::cleaned), or
    /// another scrub succeeds. Has no effect on one that does not wait for its scrub any more.
    ///
    /// # Errors
    /// Returns the error of the database.
    pub async fn not_scrubbed(&self, id: DeviceId, reason: &str) -> Result<(), Error> {
        let mut draft = self.draft().await?;
        if draft.device(id).is_some_and(|device| device.waits_for_scrub() && device.owner.is_none()) {
            draft.edit(id, |row| (row.scrub, row.quarantine) = (false, Some(reason.to_owned())));
        }
        draft.commit().await
    }

    /// Records that a device which waits to be cleaned, or is in quarantine, is to be scrubbed.
    ///
    /// # Errors
    /// Returns [`Error::Conflict`] for a device that is in use, does not wait or is never scrubbed, or the error of the
    /// database.
    pub async fn scrub(&self, id: DeviceId) -> Result<(), Error> {
        let mut draft = self.draft().await?;
        if let Some(device) = draft.device(id) {
            let address = device.facts.address;
            if device.owner.is_some() {
                let status = device.status;
                return Err(Error::Conflict(format!("{address} is {status}; detach it, then scrub it")));
            }
            if device.used_at.is_none() {
                return Err(Error::Conflict(format!(
                    "{address} does not wait to be cleaned, and only a device that was used is scrubbed"
                )));
            }
            if wants_scrub(&device.facts) == Some(false) {
                return Err(Error::Conflict(format!(
                    "{address} is not scrubbed, as its device_spec says (\"scrub\": \"false\"); change that, or offer it as \
                     it is: `hotslot pci cleaned {address}`"
                )));
            }
        }
        draft.edit(id, |row| (row.scrub, row.quarantine) = (true, None));
        draft.commit().await
    }

    /// Records that a device was scrubbed that has waited since `used_at`. Has no effect on one that does not wait any more,
    /// or waits since a later use.
    ///
    /// # Errors
    /// Returns the error of the database.
    pub async fn scrubbed(&self, id: DeviceId, used_at: Option<Millis>) -> Result<(), Error> {
        let mut draft = self.draft().await?;
        let waits = |device: &Device| device.scrub && device.owner.is_none() && device.used_at == used_at;
        if draft.device(id).is_some_and(|device| waits(&device)) {
            draft.edit(id, Device::scrubbed);
        }
        draft.commit().await
    }

    /// Records that a `one_time_use` device has been cleaned, or that a device is released from quarantine, so that it is
    /// available again, or waits for the scrub that is due. Has no effect on a `one_time_use` device that was not used since.
    ///
    /// # Errors
    /// Returns [`Error::Conflict`] for a device that is in use or does not have `one_time_use`, or the error of the
    /// database.
    pub async fn cleaned(&self, id: DeviceId) -> Result<(), Error> {
        let mut draft = self.draft().await?;
        if let Some(device) = draft.device(id).filter(|device| device.used_at.is_none()) {
            let address = device.facts.address;
            if device.owner.is_some() {
                let status = device.status;
                return Err(Error::Conflict(format!("{address} is {status}; detach it, then clean it")));
            }
            if !is_for_one_use(&device.facts) {
                return Err(Error::Conflict(format!(
                    "{address} does not need cleaning: its device_spec does not have one_time_use, it does not wait for its \
                     scrub, and it is not in quarantine"
                )));
            }
        }
        draft.edit(id, |row| {
            row.cleaned();
            if row.gone_at.is_some() && row.used_at.is_none() {
                row.delete();
            }
        });
        draft.commit().await
    }

    /// Reads all rows that are not deleted into memory, as at start.
    pub(super) async fn read_devices(&self) -> Result<(), Error> {
        // Take the lock for writing, so that older rows do not replace what this process commits meanwhile.
        let _turn = self.own_turn().await;
        // Read the number first. Rows that are newer than this number are read again later.
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

    /// Reads the changes of other processes into memory.
    ///
    /// # Errors
    /// Returns the error of the database, or [`Error::Row`] for a row that cannot be read.
    pub async fn refresh(&self) -> Result<(), Error> {
        if self.is_shared() {
            // Take the lock for writing, so that older rows do not replace what this process commits meanwhile.
            let _turn = self.turn.lock().await;
            self.catch_up(Executor::Pool(&self.read)).await?;
        }
        Ok(())
    }

    /// Reads the rows that other processes have written since the last read, including deleted ones.
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
        // Notify only now, so that followers of events find the devices in the new state.
        self.heard_of(last);
        Ok(())
    }

    /// Updates the table from the devices `seen` on a host at the addresses of `scope`, in order of address. Writes only
    /// rows that differ ([`Comparison`]).
    ///
    /// # Errors
    /// Returns the error of the database. Then nothing was changed.
    pub async fn scan(
        &self,
        host: HypervisorId,
        scope: ScanScope<'_>,
        seen: Vec<DeviceFacts>,
    ) -> Result<ScanOutcome, Error> {
        self.refresh().await?;
        if let ScanScope::At(addresses) = scope
            && self.with_devices_of(host, |devices| devices.are_as(addresses, &seen))
        {
            return Ok(ScanOutcome::default());
        }
        let mut draft = self.draft().await?;
        let comparison = Comparison::new(draft.devices_of(host), scope, seen);
        // An accelerator may be fixed to the earlier row of a device that is back. Then that row is used again.
        let (former, first) = if comparison.has_new_devices() {
            (draft.pinned_before(host).await?, draft.next_id().await?)
        } else {
            (BTreeMap::new(), 0)
        };
        let mut next = first;
        let new_id = || {
            let id = DeviceId(next);
            next += 1;
            (id, Uuid::new_v4())
        };
        let plan = comparison.plan(host, former, new_id, now());
        plan.notices.iter().for_each(notices::log);
        draft.take(plan.rows, plan.revived);
        draft.commit().await?;
        Ok(plan.outcome)
    }
}
