//! Transactions that change `pci_devices`. Changes are made on copies of the rows in memory, and only rows that differ
//! are written.
//!
//! Every change of a device goes through this file. So unchanged rows are never written, and one place enforces that a
//! PF and its VFs are not both in use. What a change makes of a row is decided in `hotslot_model`: the transaction finds
//! the rows for its functions, keeps what they return, and writes it.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::sync::Arc;

use hotslot_driver::pci::PciAddress;
use hotslot_model::assignment::{Holder, State};
use hotslot_model::device::{AfterUse, DevType, Device, DeviceFacts, DeviceStatus, Owner};
use hotslot_model::event::What;
use hotslot_model::id::{DeviceId, HypervisorId, RequestId};
use hotslot_model::identity::Actor;
use hotslot_model::scan::Notice;
use hotslot_model::time::Millis;
use hotslot_model::{DeviceEvent, InvalidTransition, event};

use crate::actor;
use crate::clock::now;
use crate::devices::devices;
use crate::error::Error;
use crate::events;
use crate::executor::Executor;
use crate::notices;
use crate::pool::Store;
use crate::processes::Notification;
use crate::sql::query;
use crate::writer::{Transaction, Written};

/// A transaction, with the device rows that it changes.
pub(super) struct DeviceTransaction<'s> {
    store: &'s Store,
    pub(super) tx: Transaction,
    /// The rows that this transaction may have changed.
    rows: BTreeMap<DeviceId, Arc<Device>>,
    /// The rows marked as deleted that become devices again, as they are in the table.
    revived: BTreeMap<DeviceId, Arc<Device>>,
    /// The events to write, in addition to those for the changes of the rows, and on whose behalf.
    events: Vec<(Arc<Actor>, What)>,
    /// The rows that were written before in the same transaction of the database, and the highest number of their commits.
    ahead: (Arc<BTreeMap<DeviceId, Arc<Device>>>, i64),
}

impl Store {
    /// Begins a transaction that changes devices. Reads the rows that other processes have written.
    pub(super) async fn draft(&self) -> Result<DeviceTransaction<'_>, Error> {
        let mut tx = self.begin().await?;
        if tx.has_to_catch_up() {
            // What those before this one have written is not committed yet, so it must not get into the memory.
            let is_first = tx.is_first();
            let on = if is_first { Executor::Transaction(&mut tx) } else { Executor::Pool(&self.read) };
            self.catch_up(on).await?;
            tx.caught_up();
        }
        let (ahead, (rows, revived)) = (tx.ahead(), Default::default());
        Ok(DeviceTransaction { store: self, tx, rows, revived, events: Vec::new(), ahead })
    }
}

impl DeviceTransaction<'_> {
    /// Returns a device as changed by this transaction.
    pub(super) fn device(&self, id: DeviceId) -> Option<Arc<Device>> {
        match self.rows.get(&id) {
            Some(row) => Some(Arc::clone(row)).filter(|row| row.status != DeviceStatus::Deleted),
            None => self.before(id),
        }
    }

    /// Returns the rows that this transaction or one before it has changed, also those that are deleted.
    fn drafted(&self) -> impl Iterator<Item = &Arc<Device>> {
        let ahead = self.ahead.0.iter().filter(|(id, _)| !self.rows.contains_key(id));
        self.rows.values().chain(ahead.map(|(_, row)| row))
    }

    fn is_drafted(&self, id: DeviceId) -> bool {
        self.rows.contains_key(&id) || self.ahead.0.contains_key(&id)
    }

    /// Returns the devices of a host as changed by this transaction.
    pub(super) fn devices_of(&self, host: HypervisorId) -> Vec<Arc<Device>> {
        let mut devices: Vec<_> = self.store.rows().of(host);
        devices.retain(|device| !self.is_drafted(device.id));
        let drafted = self.drafted().filter(|row| row.hypervisor == host);
        devices.extend(drafted.filter(|row| row.status != DeviceStatus::Deleted).cloned());
        devices
    }

    /// Changes a row.
    pub(super) fn edit(&mut self, id: DeviceId, change: impl FnOnce(&mut Device)) {
        let Some(row) = self.rows.remove(&id).or_else(|| self.before(id)) else { return };
        change(Arc::make_mut(self.rows.entry(id).or_insert(row)));
    }

    /// Adds events, in addition to those for the changes of device rows.
    pub(super) fn emit(&mut self, events: impl IntoIterator<Item = What>) {
        let actor = actor::current();
        self.events.extend(events.into_iter().map(|what| (Arc::clone(&actor), what)));
    }

    /// Adds events of other actors than the current one.
    pub(super) fn emit_of(&mut self, events: Vec<(Arc<Actor>, What)>) {
        self.events.extend(events);
    }

    /// Checks that a holder exists and holds no device. This stays true until the transaction ends.
    ///
    /// # Errors
    /// Returns [`Error::NoAccelerator`] or [`Error::NotFound`] when the holder does not exist, and the errors of
    /// [`Self::holds_nothing`].
    pub(super) async fn may_be_given(&mut self, holder: Holder) -> Result<(), Error> {
        let on_record = match holder {
            Holder::Accelerator(id) => {
                query("SELECT uuid FROM accelerators WHERE uuid = $1").bind(id.to_string())
            }
            Holder::AcceleratorRequest(id) => {
                query("SELECT uuid FROM accelerator_requests WHERE uuid = $1").bind(id.to_string())
            }
        };
        if on_record.fetch_optional(&mut self.tx).await?.is_none() {
            return Err(Error::no_holder(holder));
        }
        self.holds_nothing(holder).await
    }

    /// Checks that a holder holds no device. This stays true until the transaction ends.
    ///
    /// # Errors
    /// Returns [`Error::Conflict`] when the holder holds a device, or the error of the database.
    pub(super) async fn holds_nothing(&mut self, holder: Holder) -> Result<(), Error> {
        let held = query(
            "SELECT id FROM attachments WHERE holder = $1 AND ended_at IS NULL
             UNION ALL SELECT id FROM bindings WHERE holder = $1 AND ended_at IS NULL
             UNION ALL SELECT id FROM mdevs WHERE holder = $1 AND ended_at IS NULL",
        );
        match held.bind(holder.to_string()).fetch_optional(&mut self.tx).await? {
            None => Ok(()),
            Some(_) => Err(Error::Conflict(format!("{holder} is attached; detach it first"))),
        }
    }

    /// Records that the ended attachments of a holder must not be adopted again. Otherwise an attachment that ended
    /// only because its domain was without the device is adopted when the domain comes back with the device. Returns
    /// whether there were any such attachments.
    pub(crate) async fn no_longer_wanted(&mut self, holder: Holder) -> Result<bool, Error> {
        let mut changed = 0;
        for sql in [
            "UPDATE attachments SET unasked = 0 WHERE holder = $1 AND ended_at IS NOT NULL AND unasked <> 0",
            "UPDATE mdevs SET unasked = 0 WHERE holder = $1 AND ended_at IS NOT NULL AND unasked <> 0",
        ] {
            changed += query(sql).bind(holder.to_string()).execute(&mut self.tx).await?;
        }
        Ok(changed > 0)
    }

    /// Sets a device's status to what the state of its assignment demands. `what` names the assignment in an error. `used`
    /// says what becomes of the device once the assignment has ended, when it was used.
    pub(super) fn follow(
        &mut self,
        what: &dyn Display,
        device: DeviceId,
        request: RequestId,
        state: State,
        used: Option<AfterUse>,
    ) -> Result<(), Error> {
        let Some(device) = self.device(device) else { return Ok(()) };
        let Some(event) = state.device_event(&device, request) else { return Ok(()) };
        self.apply(device.id, event).map_err(|error| {
            Error::Internal(format!("{what} is {state}, but {}: {error}", device.facts.address))
        })?;
        if event == DeviceEvent::Free {
            self.edit(device.id, |row| {
                row.release(used, now());
                if row.gone_at.is_some() && row.used_at.is_none() {
                    row.delete();
                }
            });
        }
        Ok(())
    }

    /// Returns the rows marked as deleted to which accelerators are fixed, by address. When several rows have the same
    /// address, returns the latest one.
    pub(super) async fn pinned_before(
        &mut self,
        host: HypervisorId,
    ) -> Result<BTreeMap<PciAddress, Arc<Device>>, Error> {
        let rows = query(
            "SELECT * FROM pci_devices WHERE compute_node_id = $1 AND deleted <> 0
                 AND id IN (SELECT device_id FROM accelerators) ORDER BY id",
        );
        let rows = rows.bind(host.0).fetch_all(&mut self.tx).await?;
        Ok(devices(&rows)?.into_iter().map(|row| (row.facts.address, row)).collect())
    }

    /// Returns the id for the next new row.
    pub(super) async fn next_id(&mut self) -> Result<i64, Error> {
        let next = query("SELECT COALESCE(MAX(id), 0) + 1 AS id FROM pci_devices");
        Ok(next.fetch_one(&mut self.tx).await?.try_get("id")?)
    }

    /// Takes over rows as they are to be, also new ones. `revived` are the rows marked as deleted that become devices
    /// again, as they are in the table.
    pub(super) fn take(&mut self, rows: BTreeMap<DeviceId, Arc<Device>>, revived: Vec<Arc<Device>>) {
        self.rows.extend(rows);
        self.revived.extend(revived.into_iter().map(|row| (row.id, row)));
    }

    /// Applies an event to a device, and updates the status of its PF or VFs.
    ///
    /// # Errors
    /// Returns [`InvalidTransition`] when the status does not allow the event. The caller must then drop the
    /// transaction.
    pub(super) fn apply(&mut self, id: DeviceId, event: DeviceEvent) -> Result<(), InvalidTransition> {
        let Some(device) = self.device(id) else {
            return Err(InvalidTransition { status: DeviceStatus::Deleted, event });
        };
        let status = device.status.on(event)?;
        self.edit(id, |row| row.status = status);
        for relative in self.relatives(&device) {
            let statuses = self.relatives(&relative).into_iter().map(|device| device.status);
            match relative.status.on(DeviceEvent::of_relatives(statuses)) {
                Ok(status) if status == relative.status => {}
                Ok(status) => self.edit(relative.id, |row| row.status = status),
                Err(conflict) if event == DeviceEvent::Claim => return Err(conflict),
                // The other events report facts that already hold, so only log the conflict.
                Err(conflict) => {
                    notices::log(&Notice::BothInUse { address: relative.facts.address, conflict });
                }
            }
        }
        Ok(())
    }

    /// Claims a device for an owner and a request. Returns false when the device is not the one that was `chosen` any
    /// more, when it or its PF or a VF of it is not free, or when another owner has one of the `siblings`, the other
    /// members of its IOMMU group. The caller must then drop the transaction.
    pub(super) fn claim(
        &mut self,
        chosen: &Device,
        owner: Owner,
        request: RequestId,
        siblings: &[PciAddress],
    ) -> bool {
        let is_as_chosen = self.device(chosen.id).is_some_and(|device| device.is_as_chosen(chosen));
        let has_another_owner = |device: &Arc<Device>| {
            siblings.contains(&device.facts.address) && device.owner.is_some_and(|has| has != owner)
        };
        if !is_as_chosen
            || self.apply(chosen.id, DeviceEvent::Claim).is_err()
            || !siblings.is_empty() && self.devices_of(chosen.hypervisor).iter().any(has_another_owner)
        {
            return false;
        }
        self.edit(chosen.id, |row| (row.owner, row.request) = (Some(owner), Some(request)));
        true
    }

    /// Returns the PF of a VF, or the VFs of a PF, as changed by this transaction. A PF that is not assignable has no
    /// row and is not returned.
    fn relatives(&self, device: &Device) -> Vec<Arc<Device>> {
        let facts = &device.facts;
        if facts.parent_addr.is_none() && facts.dev_type != DevType::Pf {
            return Vec::new();
        }
        let is = |other: &&Arc<Device>| {
            other.id != device.id
                && other.hypervisor == device.hypervisor
                && other.status != DeviceStatus::Deleted
                && (facts.parent_addr == Some(other.facts.address)
                    || other.facts.parent_addr == Some(facts.address))
        };
        let mut relatives = self.store.rows().relatives(device);
        relatives.retain(|other| !self.is_drafted(other.id));
        relatives.extend(self.drafted().filter(is).cloned());
        relatives
    }

    /// [`commit`](Self::commit) for a reservation. Returns false when a row has changed since it was read: then nothing was
    /// changed, the rows in memory are read again, and the caller chooses again.
    ///
    /// # Errors
    /// Returns the error of the database.
    pub(super) async fn commit_reservation(self) -> Result<bool, Error> {
        let store = self.store;
        match self.commit().await {
            Ok(()) => Ok(true),
            Err(Error::Stale) => {
                store.read_devices().await?;
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    /// Drops the transaction. Returns when the transactions before it are committed, so that the caller then reads what they
    /// have written, for example which devices they have claimed.
    pub(super) async fn give_way(self) {
        let store = self.store;
        drop(self);
        store.end_soon().await;
    }

    /// Writes the rows that differ and the events, and commits.
    ///
    /// # Errors
    /// Returns the error of the database, or [`Error::Stale`] when a row has changed since it was read. Then nothing
    /// was changed. When the commit itself fails, its outcome is unknown ([`Store::was_in_doubt`]).
    pub(super) async fn commit(mut self) -> Result<(), Error> {
        let mut written = Vec::new();
        let (time, seq) = (now(), self.store.rows().seq.max(self.ahead.1) + 1);
        let rows = std::mem::take(&mut self.rows);
        // Devices may exchange addresses. So first write the deleted rows and give moved rows a temporary address.
        let mut rows: Vec<_> = rows.into_iter().collect();
        rows.sort_by_key(|(_, row)| row.status != DeviceStatus::Deleted);
        for (id, row) in &rows {
            if self.before(*id).is_some_and(|was| was.facts.address != row.facts.address) {
                let moves = query("UPDATE pci_devices SET address = 'moving ' || id WHERE id = $1");
                self.tx.put(moves.bind(id.0));
            }
        }
        for (id, mut row) in rows {
            let was = self.before(id);
            if was.as_deref() == Some(&*row) {
                continue;
            }
            if was.is_some() || row.status != DeviceStatus::Deleted {
                self.emit(event::of_device(was.as_deref(), &row));
            }
            match was.or_else(|| self.revived.get(&id).cloned()) {
                None if row.status == DeviceStatus::Deleted => continue,
                None => insert(&mut self.tx, &row, seq)?,
                Some(was) => {
                    Arc::make_mut(&mut row).updated_at = Some(time);
                    update(&mut self.tx, &was, &row, time, seq)?;
                }
            }
            written.push(row);
            if self.tx.is_full() {
                self.tx.flush().await?;
            }
        }
        if !written.is_empty() {
            self.tx.put(query("UPDATE commits SET seq = $1").bind(seq));
        }
        let last = events::write(&mut self.tx, time, &self.events).await?;
        // The commit may wait for others, and events of many new devices need much memory.
        drop(self.events);
        if last.is_some() {
            self.tx.tell(Notification::Records).await?;
        }
        self.tx.flush().await?;
        drop(self.ahead);
        self.store.commit(self.tx, Written { rows: written, seq, last }).await
    }

    /// Returns a device as it is in the table.
    fn before(&self, id: DeviceId) -> Option<Arc<Device>> {
        match self.ahead.0.get(&id) {
            Some(row) => Some(Arc::clone(row)).filter(|row| row.status != DeviceStatus::Deleted),
            None => self.store.rows().device(id),
        }
    }
}

fn extra_info(facts: &DeviceFacts) -> Result<String, Error> {
    serde_json::to_string(&facts.extra_info)
        .map_err(|error| Error::Internal(format!("extra_info of {}: {error}", facts.address)))
}

fn insert(tx: &mut Transaction, row: &Device, seq: i64) -> Result<(), Error> {
    let facts = &row.facts;
    let new = query(
        "INSERT INTO pci_devices (id, uuid, compute_node_id, address, vendor_id, product_id, dev_type, dev_id,
             label, status, extra_info, numa_node, parent_addr, created_at, seq, deleted)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, 0)",
    )
    .bind(row.id.0)
    .bind(row.uuid.hyphenated().to_string())
    .bind(row.hypervisor.0)
    .bind(facts.address.to_string())
    .bind(facts.vendor_id.to_string())
    .bind(facts.product_id.to_string())
    .bind(facts.dev_type.as_str())
    .bind(facts.dev_id())
    .bind(facts.label())
    .bind(row.status.as_str())
    .bind(extra_info(facts)?)
    .bind(facts.numa_node.map(i64::from))
    .bind(facts.parent_addr.map(|address| address.to_string()))
    .bind(row.created_at)
    .bind(seq);
    tx.put(new);
    Ok(())
}

fn update(tx: &mut Transaction, was: &Device, row: &Device, time: Millis, seq: i64) -> Result<(), Error> {
    let facts = &row.facts;
    let is_deleted = row.status == DeviceStatus::Deleted;
    // The row is the lock of the device. When another process has changed it, the caller must choose again.
    let change = query(
        "UPDATE pci_devices SET address = $3, vendor_id = $4, product_id = $5, dev_type = $6, dev_id = $7,
             label = $8, status = $9, extra_info = $10, numa_node = $11, parent_addr = $12, instance_uuid = $13,
             request_id = $14, gone_at = $15, updated_at = $16, deleted_at = $17, deleted = $18,
             used_at = $19, seq = $20, quarantine = $22, scrub = $23
         WHERE id = $1 AND status = $2 AND deleted = $21",
    )
    .bind(row.id.0)
    .bind(was.status.as_str())
    .bind(facts.address.to_string())
    .bind(facts.vendor_id.to_string())
    .bind(facts.product_id.to_string())
    .bind(facts.dev_type.as_str())
    .bind(facts.dev_id())
    .bind(facts.label())
    .bind(row.status.as_str())
    .bind(extra_info(facts)?)
    .bind(facts.numa_node.map(i64::from))
    .bind(facts.parent_addr.map(|address| address.to_string()))
    .bind(row.owner.map(Owner::column))
    .bind(row.request.map(|request| request.to_string()))
    .bind(row.gone_at)
    .bind(time)
    .bind(is_deleted.then_some(time))
    .bind(if is_deleted { row.id.0 } else { 0 })
    .bind(row.used_at)
    .bind(seq)
    .bind(if was.status == DeviceStatus::Deleted { was.id.0 } else { 0 })
    .bind(&row.quarantine)
    .bind(i64::from(row.scrub));
    tx.put_one(change);
    Ok(())
}
