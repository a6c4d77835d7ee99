//! What the tables `attachments`, `bindings` and `mdevs` have in common: how a row is read by its key, and how an
//! observation settles it.
//!
//! The status of the device follows the state of its assignment in the same transaction.

use hotslot_model::assignment::{
    Assignment, AssignmentKey, AssignmentKind, Change, Holder, Observation, Settled, State,
};
use hotslot_model::device::{AfterUse, Device, DeviceStatus};
use hotslot_model::event;
use hotslot_model::host_mode::HostChange;
use hotslot_model::id::{AttachmentId, ServerId};
use hotslot_model::time::Millis;

use crate::attachments::attachment;
use crate::bindings::binding;
use crate::clock::now;
use crate::columns::RowReader;
use crate::draft::DeviceTransaction;
use crate::error::Error;
use crate::executor::Executor;
use crate::mdevs::{follow_all, mdev};
use crate::pool::Store;
use crate::sql::{Row, query};
use crate::writer::Written;

/// The same statement for the table of each kind; `$table` stands for its name.
macro_rules! in_table {
    ($kind:expr, $before:literal, $after:literal) => {
        match $kind {
            AssignmentKind::Attachment => concat!($before, "attachments", $after),
            AssignmentKind::Binding => concat!($before, "bindings", $after),
            AssignmentKind::Mdev => concat!($before, "mdevs", $after),
        }
    };
}
pub(crate) use in_table;

/// Sets the columns that all three tables have.
macro_rules! settle {
    ($table:literal, $more:literal) => {
        concat!(
            "UPDATE ",
            $table,
            " SET state = $2, state_reason = $3, forced = $4, updated_at = $5,
                 attached_at = CASE WHEN $2 = 'attached' THEN COALESCE(attached_at, $5) ELSE attached_at END,
                 ended_at = CASE WHEN $2 IN ('detached', 'failed') THEN $5 END",
            $more,
            " WHERE id = $1"
        )
    };
}

/// Sets the columns that only assignments to servers have.
macro_rules! settle_in_server {
    ($table:literal) => {
        settle!($table, ", inner_address = $6, inner_source = $7, inner_run = $8, unasked = $9")
    };
}

pub(crate) fn assignment(kind: AssignmentKind) -> impl FnMut(&Row) -> Result<Assignment, Error> {
    move |row| {
        Ok(match kind {
            AssignmentKind::Attachment => Assignment::Attachment(attachment(row)?),
            AssignmentKind::Binding => Assignment::Binding(binding(row)?),
            AssignmentKind::Mdev => Assignment::Mdev(mdev(row)?),
        })
    }
}

/// Reads one row, whether it has ended or not.
pub(crate) async fn by_key(
    key: AssignmentKey,
    on: impl Into<Executor<'_>>,
) -> Result<Option<Assignment>, Error> {
    let row = query(in_table!(key.kind, "SELECT * FROM ", " WHERE id = $1")).bind(key.id.to_string());
    row.one(on, assignment(key.kind)).await
}

/// Whether a device may have been used by the time its assignment ends: a guest may have had it since libvirt was
/// requested to plug it, unless that was refused before the device reached the guest.
fn is_used(draft: &DeviceTransaction<'_>, row: &Assignment, observation: &Observation) -> bool {
    match row {
        Assignment::Attachment(row) => {
            row.attached_at.is_some()
                || row.plug_requested && !matches!(observation, Observation::AttachRefused { .. })
        }
        Assignment::Binding(_) | Assignment::Mdev(_) => {
            draft.device(row.device()).is_some_and(|device| device.status == DeviceStatus::Allocated)
        }
    }
}

impl Store {
    /// Writes what observations make of some assignments ([`State::on`]), and the status of their devices with it. The
    /// rows are read and written in one transaction. Returns each row as it is now, also those that did not change;
    /// rows that do not exist are left out.
    ///
    /// # Errors
    /// Returns [`Error::Restricted`] when a detach is requested on a host that admits none, or the error of the database. Then
    /// nothing was changed.
    pub async fn settle(&self, seen: &[(AssignmentKey, Observation)]) -> Result<Vec<Change>, Error> {
        self.settle_and(seen, &|_, _| AfterUse::Offered).await
    }

    /// As [`settle`](Self::settle). `after` says what becomes of the device of an assignment that ends, when the device may
    /// have been used.
    ///
    /// # Errors
    /// As `settle`.
    pub async fn settle_and(
        &self,
        seen: &[(AssignmentKey, Observation)],
        after: &(dyn Fn(&Assignment, &Device) -> AfterUse + Sync),
    ) -> Result<Vec<Change>, Error> {
        let mut draft = self.draft().await?;
        let mut changes = Vec::new();
        for (key, observation) in seen {
            let Some(mut row) = by_key(*key, &mut draft.tx).await? else { continue };
            if *observation == Observation::DetachRequested {
                draft.expect_open(row.hypervisor(), HostChange::Other).await?;
            }
            let device = draft.device(row.device());
            let address = device.as_ref().map(|device| device.facts.address);
            let was = row.state();
            if let Some(next) = was.on(row.record(), observation) {
                // A requested detach passes through `detaching`.
                let unrequested = was == State::Attached && next.state == State::Detached;
                let now = now();
                write(&mut draft, &row, &next, unrequested, now);
                draft.emit(event::of_assignment(&row, &next, device.as_deref()));
                let ends_use = next.state.is_final() && is_used(&draft, &row, observation);
                let used = device.as_deref().filter(|_| ends_use).map(|device| after(&row, device));
                match &row {
                    Assignment::Mdev(row) => follow_all(&mut draft, row.parent).await?,
                    Assignment::Attachment(_) | Assignment::Binding(_) => {
                        draft.follow(key, row.device(), row.request(), next.state, used)?;
                    }
                }
                row.settle(next, unrequested, now);
            }
            changes.push(Change { was, row, address });
        }
        draft.commit().await?;
        Ok(changes)
    }

    /// Records that the device of an assignment has to go even if its guest refuses.
    ///
    /// # Errors
    /// Returns the error of the database.
    pub async fn force(&self, key: AssignmentKey) -> Result<(), Error> {
        let sql = in_table!(key.kind, "UPDATE ", " SET forced = 1 WHERE id = $1 AND state = 'detaching'");
        let mut tx = self.begin().await?;
        query(sql).bind(key.id.to_string()).execute(&mut tx).await?;
        self.commit(tx, Written::default()).await
    }

    /// Records that an assignment which ended although nobody had requested that is not wanted any more, should its
    /// domain come back with the device. A binding is in no domain.
    ///
    /// # Errors
    /// Returns the error of the database.
    pub async fn forgo_return(&self, key: AssignmentKey) -> Result<(), Error> {
        let sql = match key.kind {
            AssignmentKind::Attachment => {
                "UPDATE attachments SET unasked = 0 WHERE id = $1 AND ended_at IS NOT NULL"
            }
            AssignmentKind::Mdev => "UPDATE mdevs SET unasked = 0 WHERE id = $1 AND ended_at IS NOT NULL",
            AssignmentKind::Binding => return Ok(()),
        };
        let mut tx = self.begin().await?;
        query(sql).bind(key.id.to_string()).execute(&mut tx).await?;
        self.commit(tx, Written::default()).await
    }

    /// Returns one assignment, whether it has ended or not.
    ///
    /// # Errors
    /// Returns the error of the database, or [`Error::Row`] for a row that cannot be read.
    pub async fn assignment(&self, key: AssignmentKey) -> Result<Option<Assignment>, Error> {
        by_key(key, &self.read).await
    }

    /// Returns the assignments that have not ended, by kind and then the oldest first.
    ///
    /// # Errors
    /// Returns the error of the database, or [`Error::Row`] for a row that cannot be read.
    pub async fn assignments(&self) -> Result<Vec<Assignment>, Error> {
        let attachments = self.attachments().await?.into_iter().map(Assignment::Attachment);
        let bindings = self.bindings().await?.into_iter().map(Assignment::Binding);
        let mdevs = self.mdevs().await?.into_iter().map(Assignment::Mdev);
        Ok(attachments.chain(bindings).chain(mdevs).collect())
    }

    /// Returns the assignments of a server that have not ended, by kind and then the oldest first.
    ///
    /// # Errors
    /// Returns the error of the database, or [`Error::Row`] for a row that cannot be read.
    pub async fn assignments_of(&self, server: ServerId) -> Result<Vec<Assignment>, Error> {
        let attachments = self.attachments_of(server).await?.into_iter().map(Assignment::Attachment);
        let mdevs = self.mdevs_of(server).await?.into_iter().map(Assignment::Mdev);
        Ok(attachments.chain(mdevs).collect())
    }

    /// Returns the assignments of a holder that have not ended, by kind and then the oldest first.
    ///
    /// # Errors
    /// Returns the error of the database, or [`Error::Row`] for a row that cannot be read.
    pub async fn held_by(&self, holder: Holder) -> Result<Vec<Assignment>, Error> {
        let mut held = Vec::new();
        for kind in [AssignmentKind::Attachment, AssignmentKind::Binding, AssignmentKind::Mdev] {
            let sql = in_table!(
                kind,
                "SELECT * FROM ",
                " WHERE holder = $1 AND ended_at IS NULL ORDER BY created_at, device_id, id"
            );
            held.extend(query(sql).bind(holder.to_string()).all(&self.read, assignment(kind)).await?);
        }
        Ok(held)
    }

    /// Returns the assignments of a server that another process is attaching now, unless that process is known to have ended.
    ///
    /// # Errors
    /// Returns the error of the database, or [`Error::Row`] for a row that cannot be read.
    pub async fn attaching_elsewhere(&self, server: ServerId) -> Result<Vec<AttachmentId>, Error> {
        let Some(worker) = self.worker() else { return Ok(Vec::new()) };
        let rows = query(
            "SELECT id FROM attachments WHERE server_uuid = $1 AND ended_at IS NULL AND state = 'attaching'
                 AND worker IN (SELECT id FROM processes WHERE id <> $2)
             UNION ALL SELECT id FROM mdevs WHERE server_uuid = $1 AND ended_at IS NULL AND state = 'attaching'
                 AND worker IN (SELECT id FROM processes WHERE id <> $2)",
        );
        let read =
            |row: &Row| RowReader { table: "attachments and mdevs", id: row.try_get("id")?, row }.parse("id");
        rows.bind(server.to_string()).bind(&*worker).all(&self.read, read).await
    }
}

fn write(
    draft: &mut DeviceTransaction<'_>,
    row: &Assignment,
    next: &Settled,
    unrequested: bool,
    now: Millis,
) {
    let sql = match row.kind() {
        AssignmentKind::Attachment => settle_in_server!("attachments"),
        AssignmentKind::Binding => settle!("bindings", ""),
        AssignmentKind::Mdev => settle_in_server!("mdevs"),
    };
    let common = query(sql)
        .bind(row.id().to_string())
        .bind(next.state.as_str())
        .bind(&next.reason)
        .bind(i64::from(next.forced))
        .bind(now);
    let all = match row.kind() {
        AssignmentKind::Binding => common,
        AssignmentKind::Attachment | AssignmentKind::Mdev => common
            .bind(next.inner.map(|inner| inner.address.to_string()))
            .bind(next.inner.map(|inner| inner.source.as_str()))
            .bind(next.inner.and_then(|inner| inner.run).map(i64::from))
            .bind(i64::from(unrequested)),
    };
    draft.tx.put(all);
}
