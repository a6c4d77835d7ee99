//! Adoption: a device that a domain has under our alias, and of which there is no open record, gets one. And the other
//! way round: a device that is promised to a server, and of which there is no attachment, is free again.
//!
//! A domain that is saved or moved with its device is without it for a while, and its attachment has ended by the time
//! it is seen again. Then a new row takes the id that the alias in the domain names, and the row that has ended goes on
//! under another: an attachment's id is what its client and its domain know it by, so both find it.

use hotslot_model::assignment::{Adoption, Attachment, Holder, InnerSource, State};
use hotslot_model::device::{Owner, is_for_one_use};
use hotslot_model::id::{AttachmentId, DeviceId, RequestId};
use hotslot_model::{DeviceEvent, event};

use crate::attachments::attachment;
use crate::clock::now;
use crate::draft::DeviceTransaction;
use crate::error::Error;
use crate::pool::Store;
use crate::sql::query;

/// What is said of an adopted attachment: what a document cannot tell.
const REASON: &str = "adopted: the domain had it under our alias, and there was no record of it; by which alias it was \
                      asked for is not known";

/// What is said of an attachment whose device its domain has again.
const AGAIN: &str = "attached again: its domain was without the device for a while (saved, moved, shut off), and has it \
                     under the same alias";

/// What is known of an attachment that has ended, and whose domain has its device again.
struct Before {
    /// The request that it came with; another one when it no longer speaks for what that holds.
    request: RequestId,
    holder: Option<Holder>,
    row: Attachment,
}

impl Before {
    /// Makes room for a row of the same id.
    async fn make_way(
        draft: &mut DeviceTransaction<'_>,
        row: Attachment,
        device: DeviceId,
    ) -> Result<Self, Error> {
        let other = RequestId(uuid::Uuid::new_v4());
        let holder = match row.holder {
            Some(holder)
                if (row.device == device || takes_any(draft, holder).await?)
                    && is_free_for(draft, holder, &row).await? =>
            {
                Some(holder)
            }
            Some(_) | None => None,
        };
        // What is counted of a request is what it was given: this device once.
        let (ended, request) = if holder == row.holder { (other, row.request) } else { (row.request, other) };
        query("UPDATE attachments SET id = $2, request_id = $3 WHERE id = $1")
            .bind(row.id.to_string())
            .bind(AttachmentId(uuid::Uuid::new_v4()).to_string())
            .bind(ended.to_string())
            .execute(&mut draft.tx)
            .await?;
        Ok(Self { request, holder, row })
    }
}

/// Whether a holder takes any device that its spec asks for: an accelerator that is not one device by itself. An
/// accelerator request is bound to a deployable of one host.
async fn takes_any(draft: &mut DeviceTransaction<'_>, holder: Holder) -> Result<bool, Error> {
    let Holder::Accelerator(id) = holder else { return Ok(false) };
    let row = query("SELECT uuid FROM accelerators WHERE uuid = $1 AND device_id IS NULL");
    Ok(row.bind(id.to_string()).fetch_optional(&mut draft.tx).await?.is_some())
}

/// Whether a holder is still there, and holds nothing but what came with the same request.
async fn is_free_for(
    draft: &mut DeviceTransaction<'_>,
    holder: Holder,
    row: &Attachment,
) -> Result<bool, Error> {
    let there = match holder {
        Holder::Accelerator(id) => {
            query("SELECT uuid FROM accelerators WHERE uuid = $1").bind(id.to_string())
        }
        // One that was unbound meanwhile has no server.
        Holder::AcceleratorRequest(id) => {
            query("SELECT uuid FROM accelerator_requests WHERE uuid = $1 AND instance_uuid = $2")
                .bind(id.to_string())
                .bind(row.server.to_string())
        }
    };
    if there.fetch_optional(&mut draft.tx).await?.is_none() {
        return Ok(false);
    }
    let other = query(
        "SELECT id FROM attachments WHERE holder = $1 AND ended_at IS NULL AND request_id <> $2
         UNION ALL SELECT id FROM bindings WHERE holder = $1 AND ended_at IS NULL AND request_id <> $2
         UNION ALL SELECT id FROM mdevs WHERE holder = $1 AND ended_at IS NULL AND request_id <> $2",
    );
    let other = other.bind(holder.to_string()).bind(row.request.to_string());
    Ok(other.fetch_optional(&mut draft.tx).await?.is_none())
}

impl Store {
    /// Forgets to whom a device was promised, when no open attachment, binding or mediated device says so.
    ///
    /// # Errors
    /// The database's; then nothing was changed.
    pub async fn forget(&self, id: DeviceId) -> Result<(), Error> {
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
        draft.edit(id, |row| {
            (row.owner, row.request) = (None, None);
            // Nobody knows what was done with it.
            row.used_at = is_for_one_use(&row.facts).then(now);
        });
        draft.commit().await.map(drop)
    }

    /// Makes an attachment's record, `attached`, and its device's `allocated`, in one transaction. False when the
    /// device is not on record or is promised to another, or another attachment has the MAC address or the id: one that
    /// has ended because its domain was without the device leaves it.
    ///
    /// # Errors
    /// The database's; then nothing was changed.
    pub async fn adopt(&self, found: &Adoption) -> Result<bool, Error> {
        let mut draft = self.draft().await?;
        let devices = draft.devices_of(found.hypervisor);
        let Some(device) = devices.iter().find(|device| device.facts.address == found.address) else {
            return Ok(false);
        };
        if device.owner.is_some() || draft.apply(device.id, DeviceEvent::Allocate).is_err() {
            return Ok(false);
        }
        let named = query("SELECT * FROM attachments WHERE id = $1").bind(found.id.to_string());
        let named = named.fetch_optional(&mut draft.tx).await?;
        let before = match named.as_ref().map(attachment).transpose()? {
            Some(row) if row.state.is_final() && row.unasked => {
                Some(Before::make_way(&mut draft, row, device.id).await?)
            }
            Some(_) => return Ok(false),
            None => None,
        };
        let request =
            before.as_ref().map_or_else(|| RequestId(uuid::Uuid::new_v4()), |before| before.request);
        let (holder, reason) = before.as_ref().map_or((None, REASON), |before| (before.holder, AGAIN));
        let row = before.map(|before| before.row);
        draft.edit(device.id, |row| {
            (row.owner, row.request) = (Some(Owner::Server(found.server)), Some(request))
        });
        let told = event::made(device, found.server, found.id, State::Attached);
        draft.emit([event::What { reason: Some(reason.into()), ..told }]);
        let network = found.network.as_ref();
        // What no document tells of its network.
        let asked_for = row.as_ref().and_then(|row| row.network.as_ref()).filter(|_| network.is_some());
        let whole_group = row.as_ref().is_some_and(|row| row.whole_group);
        let made = query(
            "INSERT INTO attachments (id, request_id, hypervisor_id, server_uuid, device_id, alias_name, persistent,
                 managed, state, state_reason, inner_address, inner_source, created_at, attached_at, mac_address, vlan,
                 holder, physical_network, trusted, whole_group, taken, asked)
             VALUES ($1, $2, $3, $4, $5, $15, $6, $7, $8, $9, $10, $11, $12, $12, $13, $14, $16, $17, $18, $19, $19, 1)",
        )
        .bind(found.id.to_string())
        .bind(request.to_string())
        .bind(found.hypervisor.0)
        .bind(found.server.to_string())
        .bind(device.id.0)
        .bind(i64::from(found.persistent))
        .bind(i64::from(found.managed))
        .bind(State::Attached.as_str())
        .bind(reason)
        .bind(found.inner.map(|address| address.to_string()))
        .bind(found.inner.map(|_| InnerSource::Computed.as_str()))
        .bind(now())
        .bind(network.map(|network| network.mac.to_string()))
        .bind(network.and_then(|network| network.vlan).map(|vlan| i64::from(vlan.get())))
        .bind(row.as_ref().map_or("", |row| row.alias.as_str()))
        .bind(holder.map(|holder| holder.to_string()))
        .bind(asked_for.and_then(|network| network.physical_network.clone()))
        .bind(asked_for.and_then(|network| network.trusted).map(i64::from))
        .bind(i64::from(whole_group))
        .execute(&mut draft.tx)
        .await;
        match made {
            Ok(_) => {}
            Err(sqlx::Error::Database(error)) if error.is_unique_violation() => return Ok(false),
            Err(error) => return Err(error.into()),
        }
        match draft.commit().await {
            Ok(_) => Ok(true),
            Err(Error::Stale) => {
                self.read_devices().await?;
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }
}
