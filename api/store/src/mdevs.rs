//! The table `mdevs`: the mediated devices that servers have or are to have.
//!
//! The row of the parent in `pci_devices` changes in the same transaction: its host holds it while it has any.

use std::collections::BTreeMap;
use std::sync::Arc;

use hotslot_model::assignment::{InnerAddress, Mdev, MdevReservation, State};
use hotslot_model::device::{AfterUse, Device, DeviceStatus, Owner};
use hotslot_model::event;
use hotslot_model::host_mode::HostChange;
use hotslot_model::id::{AttachmentId, DeviceId, HypervisorId, ServerId};
use hotslot_model::quota::Resource;

use crate::clock::now;
use crate::columns::RowReader;
use crate::draft::DeviceTransaction;
use crate::error::Error;
use crate::pool::Store;
use crate::sql::{Row, query};
use crate::writer::Transaction;

pub(crate) fn mdev(row: &Row) -> Result<Mdev, Error> {
    let columns = RowReader { table: "mdevs", id: row.try_get("id")?, row };
    let (address, source) = (columns.parse_opt("inner_address")?, columns.parse_opt("inner_source")?);
    let run: Option<i64> = columns.get("inner_run")?;
    let run = run.and_then(|run| u32::try_from(run).ok());
    Ok(Mdev {
        id: columns.parse("id")?,
        request: columns.parse("request_id")?,
        hypervisor: HypervisorId(columns.get("hypervisor_id")?),
        parent: DeviceId(columns.get("device_id")?),
        server: columns.parse("server_uuid")?,
        mdev_type: columns.get("mdev_type")?,
        holder: columns.parse("holder")?,
        project: columns.get("project_id")?,
        persistent: columns.get::<i64>("persistent")? != 0,
        forced: columns.get::<i64>("forced")? != 0,
        state: columns.parse("state")?,
        reason: columns.get("state_reason")?,
        inner: address.zip(source).map(|(address, source)| InnerAddress { address, source, run }),
        unrequested: columns.get::<i64>("unasked")? != 0,
        created_at: columns.get("created_at")?,
        attached_at: columns.get("attached_at")?,
    })
}

/// Returns the states of the mediated devices of a parent that have not ended.
pub(crate) async fn open_states(
    draft: &mut DeviceTransaction<'_>,
    parent: DeviceId,
) -> Result<Vec<State>, Error> {
    let rows = query("SELECT * FROM mdevs WHERE device_id = $1 AND ended_at IS NULL").bind(parent.0);
    rows.fetch_all(&mut draft.tx).await?.iter().map(|row| Ok(mdev(row)?.state)).collect()
}

/// Sets the status of a parent to what the states of its mediated devices together demand ([`State::together`]).
pub(crate) async fn follow_all(draft: &mut DeviceTransaction<'_>, parent: DeviceId) -> Result<(), Error> {
    let states = open_states(draft, parent).await?;
    let Some(device) = draft.device(parent) else { return Ok(()) };
    let Some(request) = device.request else { return Ok(()) };
    let what = format!("the last of the mediated devices of {}", device.facts.address);
    // The driver of the parent keeps the guests of its mediated devices apart.
    let used = (device.status == DeviceStatus::Allocated).then_some(AfterUse::Offered);
    draft.follow(&what, parent, request, State::together(&states), used)
}

/// Writes a new row. `worker` is the process that attaches it.
pub(super) async fn insert(tx: &mut Transaction, row: &Mdev, worker: Option<&str>) -> sqlx::Result<()> {
    query(
        "INSERT INTO mdevs (id, request_id, hypervisor_id, device_id, server_uuid, mdev_type, holder, persistent,
             state, state_reason, inner_address, inner_source, created_at, attached_at, worker, project_id)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16)",
    )
    .bind(row.id.to_string())
    .bind(row.request.to_string())
    .bind(row.hypervisor.0)
    .bind(row.parent.0)
    .bind(row.server.to_string())
    .bind(&row.mdev_type)
    .bind(row.holder.to_string())
    .bind(i64::from(row.persistent))
    .bind(row.state.as_str())
    .bind(&row.reason)
    .bind(row.inner.map(|inner| inner.address.to_string()))
    .bind(row.inner.map(|inner| inner.source.as_str()))
    .bind(row.created_at)
    .bind(row.attached_at)
    .bind(worker)
    .bind(&row.project)
    .execute(tx)
    .await
    .map(drop)
}

impl Store {
    /// Claims the parents for their host, unless they are held for mediated devices already, and writes the rows of new
    /// mediated devices (id, parent and type) as `attaching`, in one transaction: all or none. Returns false when a parent,
    /// or a PF or VF of it, is not free any more.
    ///
    /// # Errors
    /// Returns [`Error::NoAccelerator`] or [`Error::NotFound`] when the holder does not exist any more, [`Error::Conflict`]
    /// when it holds a device, [`Error::Restricted`], [`Error::OverQuota`], or the error of the database. Then nothing was
    /// claimed.
    pub async fn reserve_mdevs(
        &self,
        reservation: MdevReservation<'_>,
        wanted: &[(AttachmentId, Arc<Device>, &str)],
    ) -> Result<bool, Error> {
        let MdevReservation { hypervisor, server, request, holder, persistent, project } = reservation;
        let mut draft = self.draft().await?;
        draft.expect_open(hypervisor, HostChange::Attach).await?;
        draft.may_be_given(holder).await?;
        let requested = BTreeMap::from([(Resource::Attachments, wanted.len() as i64)]);
        self.charge(&mut draft.tx, project, &requested).await?;
        let worker = self.worker();
        for (id, parent, mdev_type) in wanted {
            let Some(device) = draft.device(parent.id).filter(|row| row.is_as_chosen(parent)) else {
                draft.give_way().await;
                return Ok(false);
            };
            // Another new mediated device of this transaction may have claimed it already.
            let is_held = device.status != DeviceStatus::Available
                && !open_states(&mut draft, parent.id).await?.is_empty();
            if !is_held && !draft.claim(parent, Owner::Host, request, &[]) {
                draft.give_way().await;
                return Ok(false);
            }
            let row = Mdev {
                id: *id,
                request,
                hypervisor,
                parent: parent.id,
                server,
                mdev_type: (*mdev_type).to_owned(),
                holder,
                project: project.map(str::to_owned),
                persistent,
                forced: false,
                state: State::Attaching,
                reason: None,
                inner: None,
                unrequested: false,
                created_at: now(),
                attached_at: None,
            };
            insert(&mut draft.tx, &row, worker.as_deref()).await?;
            draft.emit([event::mdev(parent, server, *id, None, row.state, None)]);
        }
        draft.commit_reservation().await
    }

    /// Returns a mediated device, whether it has ended or not.
    ///
    /// # Errors
    /// Returns the error of the database, or an error for a row that cannot be read.
    pub async fn mdev(&self, id: AttachmentId) -> Result<Option<Mdev>, Error> {
        let row = query("SELECT * FROM mdevs WHERE id = $1").bind(id.to_string());
        row.one(&self.read, mdev).await
    }

    /// Returns the mediated devices that have not ended, the oldest first.
    ///
    /// # Errors
    /// Returns the error of the database, or an error for a row that cannot be read.
    pub async fn mdevs(&self) -> Result<Vec<Mdev>, Error> {
        let rows = query("SELECT * FROM mdevs WHERE ended_at IS NULL ORDER BY created_at, id");
        rows.all(&self.read, mdev).await
    }

    /// Returns the mediated devices of a server that have not ended, the oldest first.
    ///
    /// # Errors
    /// Returns the error of the database, or an error for a row that cannot be read.
    pub async fn mdevs_of(&self, server: ServerId) -> Result<Vec<Mdev>, Error> {
        let rows =
            query("SELECT * FROM mdevs WHERE server_uuid = $1 AND ended_at IS NULL ORDER BY created_at, id");
        rows.bind(server.to_string()).all(&self.read, mdev).await
    }
}
