//! Adoption: a device that a domain has under an alias of hotslot, and for which no record is open, gets a record. The
//! opposite is here too: a device that is allocated to a server, and for which no assignment is open, becomes free.
//!
//! A domain that is saved or moved with its device is without the device for a while, so the assignment has ended by the
//! time the device is seen again. Then a new row takes the id in the alias, and the ended row gets another id. Clients and
//! the domain know the assignment by that id, so both find the new row.

use hotslot_model::assignment::{
    Adopted, Adoption, Assignment, AssignmentKey, AssignmentKind, Attachment, Holder, InnerAddress, Mdev,
    Network, State, Vgpu, VgpuOwner,
};
use hotslot_model::device::{AfterUse, Device, Owner};
use hotslot_model::id::{AttachmentId, DeviceId, RequestId};
use hotslot_model::{DeviceEvent, event};

use crate::assignments::{by_key, in_table};
use crate::clock::now;
use crate::draft::DeviceTransaction;
use crate::error::Error;
use crate::executor::Executor;
use crate::mdevs::open_states;
use crate::pool::Store;
use crate::sql::query;
use crate::{attachments, mdevs};

/// The reason of an adopted attachment. The documents do not tell by which alias it was requested.
const REASON: &str = "adopted: the domain had it under our alias, and there was no record of it; by which alias it was \
                      requested is not known";

/// The reason of an assignment whose domain has its device again.
const AGAIN: &str = "attached again: its domain was without the device for a while (saved, moved, shut off), and has it \
                     under the same alias";

/// An assignment that has ended, and whose domain has its device again.
struct Before {
    /// The request of the new row: the same, unless the new row does not speak for what that request was given.
    request: RequestId,
    /// The holder of the new row.
    holder: Option<Holder>,
    row: Assignment,
}

impl Before {
    /// Gives the ended row another id, so that the new row can have its id.
    async fn make_way(
        draft: &mut DeviceTransaction<'_>,
        row: Assignment,
        device: DeviceId,
    ) -> Result<Self, Error> {
        let new_request = RequestId(uuid::Uuid::new_v4());
        let is_again = may_have_again((&mut draft.tx).into(), &row, device).await?;
        let holder = row.holder().filter(|_| is_again);
        // A request counts each device that it was given once.
        let (ended, request) =
            if holder == row.holder() { (new_request, row.request()) } else { (row.request(), new_request) };
        query(in_table!(row.kind(), "UPDATE ", " SET id = $2, request_id = $3 WHERE id = $1"))
            .bind(row.id().to_string())
            .bind(AttachmentId(uuid::Uuid::new_v4()).to_string())
            .bind(ended.to_string())
            .execute(&mut draft.tx)
            .await?;
        Ok(Self { request, holder, row })
    }
}

/// The type of virtual GPU of an attachment that came back. One that hotslot had set is set again, if the VF lost it meanwhile.
fn vgpu_again(vgpu: Vgpu) -> Vgpu {
    let owner = match vgpu.owner {
        VgpuOwner::Others => VgpuOwner::Others,
        VgpuOwner::Ours | VgpuOwner::Taken => VgpuOwner::Ours,
    };
    Vgpu { owner, ..vgpu }
}

/// Whether the holder of an assignment that has ended may hold `device` for it.
async fn may_have_again(mut on: Executor<'_>, row: &Assignment, device: DeviceId) -> Result<bool, Error> {
    let Some(holder) = row.holder() else { return Ok(false) };
    Ok((row.device() == device || takes_any(on.again(), holder).await?)
        && is_free_for(on, holder, row).await?)
}

/// Whether a holder may have any device that matches its spec: an accelerator that does not stand for one device. An
/// accelerator request is bound to a deployable of one host.
async fn takes_any(on: Executor<'_>, holder: Holder) -> Result<bool, Error> {
    let Holder::Accelerator(id) = holder else { return Ok(false) };
    let row = query("SELECT uuid FROM accelerators WHERE uuid = $1 AND device_id IS NULL");
    Ok(row.bind(id.to_string()).fetch_optional(on).await?.is_some())
}

/// Whether a holder still exists, and holds nothing but devices of the same request.
async fn is_free_for(mut on: Executor<'_>, holder: Holder, row: &Assignment) -> Result<bool, Error> {
    let there = match holder {
        Holder::Accelerator(id) => {
            query("SELECT uuid FROM accelerators WHERE uuid = $1").bind(id.to_string())
        }
        // A request that was unbound meanwhile has no server.
        Holder::AcceleratorRequest(id) => {
            query("SELECT uuid FROM accelerator_requests WHERE uuid = $1 AND instance_uuid = $2")
                .bind(id.to_string())
                .bind(row.server().map(|server| server.to_string()))
        }
    };
    if there.fetch_optional(on.again()).await?.is_none() {
        return Ok(false);
    }
    let held = query(
        "SELECT id FROM attachments WHERE holder = $1 AND ended_at IS NULL AND request_id <> $2
         UNION ALL SELECT id FROM bindings WHERE holder = $1 AND ended_at IS NULL AND request_id <> $2
         UNION ALL SELECT id FROM mdevs WHERE holder = $1 AND ended_at IS NULL AND request_id <> $2",
    );
    let held = held.bind(holder.to_string()).bind(row.request().to_string());
    Ok(held.fetch_optional(on).await?.is_none())
}

impl Store {
    /// Takes a device from its owner when no open attachment, binding or mediated device holds it. `used` says what becomes
    /// of it.
    ///
    /// # Errors
    /// Returns the error of the database. Then nothing was changed.
    pub async fn forget(&self, id: DeviceId, used: AfterUse) -> Result<(), Error> {
        let mut draft = self.draft().await?;
        let open = query(
            "SELECT id FROM attachments WHERE device_id = $1 AND ended_at IS NULL
             UNION ALL SELECT id FROM bindings WHERE device_id = $1 AND ended_at IS NULL
             UNION ALL SELECT id FROM mdevs WHERE device_id = $1 AND ended_at IS NULL",
        )
        .bind(id.0)
        .fetch_optional(&mut draft.tx)
        .await?;
        if open.is_some() || draft.apply(id, DeviceEvent::Free).is_err() {
            return Ok(());
        }
        // It is not known whether it was used.
        draft.edit(id, |row| row.release(Some(used), now()));
        draft.commit().await
    }

    /// Whether [`adopt`](Self::adopt) would give `device` to the holder of a mediated device that has ended: the holder
    /// still exists, may have this device, and holds nothing of another request.
    ///
    /// # Errors
    /// Returns the error of the database.
    pub async fn may_have_again(&self, row: &Mdev, device: DeviceId) -> Result<bool, Error> {
        may_have_again((&self.read).into(), &Assignment::Mdev(row.clone()), device).await
    }

    /// Makes the record of an assignment, `attached`, and its device's status with it, in one transaction. Returns
    /// false when the device is not on record or is promised to another, or when another assignment has the MAC address
    /// or the id. A record that ended although nobody had requested that gives its id to the new one; a mediated device
    /// is adopted only in place of such a record, because nothing else tells its holder.
    ///
    /// # Errors
    /// Returns the error of the database. Then nothing was changed.
    pub async fn adopt(&self, found: &Adoption) -> Result<bool, Error> {
        let mut draft = self.draft().await?;
        let devices = draft.devices_of(found.hypervisor);
        let Some(device) = devices.iter().find(|device| device.facts.address == found.address) else {
            return Ok(false);
        };
        let kind = match found.what {
            Adopted::Function { .. } => AssignmentKind::Attachment,
            Adopted::Mdev { .. } => AssignmentKind::Mdev,
        };
        let before = match by_key(AssignmentKey { kind, id: found.id }, &mut draft.tx).await? {
            Some(row) if row.state().is_final() && row.unrequested() => {
                Some(Before::make_way(&mut draft, row, device.id).await?)
            }
            Some(_) => return Ok(false),
            None => None,
        };
        let request =
            before.as_ref().map_or_else(|| RequestId(uuid::Uuid::new_v4()), |before| before.request);
        let is_in_parts =
            kind == AssignmentKind::Mdev && !open_states(&mut draft, device.id).await?.is_empty();
        if !is_in_parts {
            if device.owner.is_some() || draft.apply(device.id, DeviceEvent::Allocate).is_err() {
                return Ok(false);
            }
            let owner = match kind {
                AssignmentKind::Attachment => Owner::Server(found.server),
                AssignmentKind::Binding | AssignmentKind::Mdev => Owner::Host,
            };
            draft.edit(device.id, |row| (row.owner, row.request) = (Some(owner), Some(request)));
        }
        let (holder, reason) = before.as_ref().map_or((None, REASON), |before| (before.holder, AGAIN));
        let project = before.as_ref().and_then(|before| before.row.project().map(str::to_owned));
        let new = New { found, device, request, holder, project, reason };
        let made = match &found.what {
            Adopted::Function { managed, network } => {
                let row = before.and_then(|before| match before.row {
                    Assignment::Attachment(row) => Some(row),
                    Assignment::Binding(_) | Assignment::Mdev(_) => None,
                });
                new.attachment(&mut draft, *managed, network.as_ref(), row.as_ref()).await
            }
            Adopted::Mdev { mdev_type } => match holder {
                Some(holder) => new.mdev(&mut draft, mdev_type, holder).await,
                None => return Ok(false),
            },
        };
        match made {
            Ok(()) => {}
            Err(sqlx::Error::Database(error)) if error.is_unique_violation() => return Ok(false),
            Err(error) => return Err(error.into()),
        }
        draft.commit_reservation().await
    }
}

/// The row of an adopted device that is to be written.
struct New<'a> {
    found: &'a Adoption,
    device: &'a Device,
    request: RequestId,
    holder: Option<Holder>,
    /// What comes back counts against the same project as before; it is not checked against a quota.
    project: Option<String>,
    reason: &'static str,
}

impl New<'_> {
    /// Writes the row of a whole function. `before` is the attachment that had its id.
    async fn attachment(
        &self,
        draft: &mut DeviceTransaction<'_>,
        managed: bool,
        network: Option<&Network>,
        before: Option<&Attachment>,
    ) -> sqlx::Result<()> {
        let Self { found, device, .. } = self;
        let now = now();
        // No document tells the physical network, or the settings of the VF.
        let requested = before.and_then(|before| before.network.as_ref());
        let network = network.map(|network| Network {
            physical_network: requested.and_then(|requested| requested.physical_network.clone()),
            trusted: requested.and_then(|requested| requested.trusted),
            vf: requested.map(|requested| requested.vf).unwrap_or_default(),
            ..network.clone()
        });
        let row = Attachment {
            id: found.id,
            request: self.request,
            hypervisor: found.hypervisor,
            server: found.server,
            device: device.id,
            alias: before.map(|before| before.alias.clone()).unwrap_or_default(),
            persistent: found.persistent,
            managed,
            network,
            vgpu: before.and_then(|before| before.vgpu.clone()).map(vgpu_again),
            before: before.map(|row| row.before).unwrap_or_default(),
            whole_group: before.is_some_and(|before| before.whole_group),
            forced: false,
            plug_requested: true,
            unrequested: false,
            state: State::Attached,
            reason: Some(self.reason.to_owned()),
            holder: self.holder,
            project: self.project.clone(),
            inner: found.inner.map(InnerAddress::computed),
            created_at: now,
            updated_at: None,
            attached_at: Some(now),
            ended_at: None,
        };
        let made = event::made(device, found.server, found.id, row.state);
        draft.emit([event::What { reason: row.reason.clone(), ..made }]);
        attachments::new_row(&row, row.whole_group, None).execute(&mut draft.tx).await.map(drop)
    }

    /// Writes the row of a mediated device.
    async fn mdev(
        &self,
        draft: &mut DeviceTransaction<'_>,
        mdev_type: &str,
        holder: Holder,
    ) -> sqlx::Result<()> {
        let Self { found, device, .. } = self;
        let now = now();
        let row = Mdev {
            id: found.id,
            request: self.request,
            hypervisor: found.hypervisor,
            parent: device.id,
            server: found.server,
            mdev_type: mdev_type.to_owned(),
            holder,
            project: self.project.clone(),
            persistent: found.persistent,
            forced: false,
            state: State::Attached,
            reason: Some(self.reason.to_owned()),
            inner: found.inner.map(InnerAddress::computed),
            unrequested: false,
            created_at: now,
            attached_at: Some(now),
        };
        draft.emit([event::mdev(device, found.server, found.id, None, row.state, Some(self.reason))]);
        mdevs::insert(&mut draft.tx, &row, None).await
    }
}
