//! Adoption: a device that a domain has under our alias, and of which there is no record, gets one. And the other way
//! round: a device that is promised to a server, and of which there is no attachment, is free again.

use hotslot_driver::pci::PciAddress;

use super::sql::query;
use super::{InnerSource, Network, Owner, Store, events, now};
use crate::attachment::State;
use crate::error::Error;
use crate::id::{AttachmentId, DeviceId, HypervisorId, RequestId, ServerId};
use crate::inventory::Deed;

/// An attachment that a domain's documents tell of, and no record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Adoption {
    /// Its id, as the alias in the domain says.
    pub id: AttachmentId,
    /// The host.
    pub hypervisor: HypervisorId,
    /// The server that has it.
    pub server: ServerId,
    /// Where the host has the device.
    pub address: PciAddress,
    /// Whether the definition has it.
    pub persistent: bool,
    /// Whether libvirt binds the drivers.
    pub managed: bool,
    /// What a network VF is in the guest.
    pub network: Option<Network>,
    /// Where the guest sees it, worked out from the document.
    pub inner: Option<PciAddress>,
}

/// What is said of an adopted attachment: what a document cannot tell.
const REASON: &str = "adopted: the domain had it under our alias, and there was no record of it; by which alias it was \
                      asked for is not known";

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
        if open.is_some() || draft.apply(id, Deed::Free).is_err() {
            return Ok(());
        }
        draft.edit(id, |row| (row.owner, row.request) = (None, None));
        draft.commit().await.map(drop)
    }

    /// Makes an attachment's record, `attached`, and its device's `allocated`, in one transaction. False when the
    /// device is not on record or is promised to another, or another attachment has the MAC address or the id.
    ///
    /// # Errors
    /// The database's; then nothing was changed.
    pub async fn adopt(&self, found: &Adoption) -> Result<bool, Error> {
        let mut draft = self.draft().await?;
        let devices = draft.devices_of(found.hypervisor);
        let Some(device) = devices.iter().find(|device| device.facts.address == found.address) else {
            return Ok(false);
        };
        if device.owner.is_some() || draft.apply(device.id, Deed::Allocate).is_err() {
            return Ok(false);
        }
        let request = RequestId(uuid::Uuid::new_v4());
        draft.edit(device.id, |row| {
            (row.owner, row.request) = (Some(Owner::Server(found.server)), Some(request))
        });
        let told = events::made(device, found.server, found.id, State::Attached);
        draft.tell_of([events::What { reason: Some(REASON.into()), ..told }]);
        let network = found.network.as_ref();
        let made = query(
            "INSERT INTO attachments (id, request_id, hypervisor_id, server_uuid, device_id, alias_name, persistent,
                 managed, state, state_reason, inner_address, inner_source, created_at, attached_at, mac_address, vlan)
             VALUES ($1, $2, $3, $4, $5, '', $6, $7, $8, $9, $10, $11, $12, $12, $13, $14)",
        )
        .bind(found.id.to_string())
        .bind(request.to_string())
        .bind(found.hypervisor.0)
        .bind(found.server.to_string())
        .bind(device.id.0)
        .bind(i64::from(found.persistent))
        .bind(i64::from(found.managed))
        .bind(State::Attached.as_str())
        .bind(REASON)
        .bind(found.inner.map(|address| address.to_string()))
        .bind(found.inner.map(|_| InnerSource::Computed.as_str()))
        .bind(now())
        .bind(network.map(|network| network.mac.to_string()))
        .bind(network.and_then(|network| network.vlan).map(|vlan| i64::from(vlan.get())))
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
