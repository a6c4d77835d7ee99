//! The table `attachments`: the functions that servers have or are to have.
//!
//! The status of a device changes in the same transaction as the state of its attachment.

use hotslot_driver::local::{Condition, PortLink};
use hotslot_driver::net::VlanTag;
use hotslot_driver::pci::PciAddress;
use hotslot_model::assignment::{Attachment, InnerAddress, InnerSource, Network, NewAttachment, Reservation};
use hotslot_model::device::Owner;
use hotslot_model::event;
use hotslot_model::host_mode::HostChange;
use hotslot_model::id::{AttachmentId, DeviceId, HypervisorId, RequestId, ServerId};
use hotslot_model::quota::of_aliases;
use hotslot_model::time::Millis;

use crate::clock::now;
use crate::columns::{RowReader, bad_column};
use crate::error::Error;
use crate::idempotency::remember;
use crate::pool::Store;
use crate::sql::{Query, Row, query};
use crate::vf_settings;
use crate::vgpu;
use crate::writer::Written;

fn network(columns: &RowReader<'_>) -> Result<Option<Network>, Error> {
    let Some(mac) = columns.parse_opt("mac_address")? else { return Ok(None) };
    let vlan: Option<i64> = columns.get("vlan")?;
    let vlan = vlan
        .map(|tag| VlanTag::new(u32::try_from(tag).unwrap_or(u32::MAX)))
        .transpose()
        .map_err(|error| bad_column("attachments", &columns.id, "vlan")(&error))?;
    let trusted: Option<i64> = columns.get("trusted")?;
    let physical_network = columns.get("physical_network")?;
    let trusted = trusted.map(|trusted| trusted != 0);
    Ok(Some(Network { mac, vlan, physical_network, trusted, vf: vf_settings::read(columns, "vf_settings")? }))
}

fn before(columns: &RowReader<'_>) -> Result<Condition, Error> {
    let number = |column| {
        Ok::<_, Error>(columns.get::<Option<i64>>(column)?.and_then(|number| u32::try_from(number).ok()))
    };
    let both = number("link_width")?.zip(number("link_speed")?);
    let link = both.map(|(width, speed)| PortLink { width, speed });
    let had_reset = columns.get::<Option<i64>>("had_reset")?.map(|had| had != 0);
    let class = columns.parse_opt("class")?;
    let (fatal_errors, port_errors) = (number("fatal_errors")?, number("port_errors")?);
    Ok(Condition { link, fatal_errors, port_errors, had_reset, class })
}

pub(super) fn attachment(row: &Row) -> Result<Attachment, Error> {
    let columns = RowReader { table: "attachments", id: row.try_get("id")?, row };
    let address: Option<PciAddress> = columns.parse_opt("inner_address")?;
    let source: Option<InnerSource> = columns.parse_opt("inner_source")?;
    let run: Option<i64> = columns.get("inner_run")?;
    let run = run.and_then(|run| u32::try_from(run).ok());
    Ok(Attachment {
        id: columns.parse("id")?,
        request: columns.parse("request_id")?,
        hypervisor: HypervisorId(columns.get("hypervisor_id")?),
        server: columns.parse("server_uuid")?,
        device: DeviceId(columns.get("device_id")?),
        alias: columns.get("alias_name")?,
        persistent: columns.get::<i64>("persistent")? != 0,
        managed: columns.get::<i64>("managed")? != 0,
        network: network(&columns)?,
        vgpu: vgpu::read(&columns)?,
        before: before(&columns)?,
        whole_group: columns.get::<i64>("whole_group")? != 0,
        forced: columns.get::<i64>("forced")? != 0,
        plug_requested: columns.get::<i64>("asked")? != 0,
        unrequested: columns.get::<i64>("unasked")? != 0,
        state: columns.parse("state")?,
        reason: columns.get("state_reason")?,
        holder: columns.parse_opt("holder")?,
        project: columns.get("project_id")?,
        inner: address.zip(source).map(|(address, source)| InnerAddress { address, source, run }),
        created_at: columns.get("created_at")?,
        updated_at: columns.get("updated_at")?,
        attached_at: columns.get("attached_at")?,
        ended_at: columns.get("ended_at")?,
    })
}

/// Returns the statement that writes a new row. `to_rebind` says whether the function is taken from a host driver, to which
/// it must be bound again afterwards. `worker` is the process that attaches it.
pub(super) fn new_row(row: &Attachment, to_rebind: bool, worker: Option<&str>) -> Query {
    let network = row.network.as_ref();
    query(
        "INSERT INTO attachments (id, request_id, hypervisor_id, server_uuid, device_id, alias_name, persistent,
             managed, state, state_reason, inner_address, inner_source, created_at, attached_at, mac_address, vlan,
             physical_network, trusted, whole_group, taken, worker, holder, asked, project_id, vf_settings, link_width,
             link_speed, fatal_errors, vgpu_type, vgpu_owner, class, had_reset, port_errors)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20, $21, $22,
             $23, $24, $25, $26, $27, $28, $29, $30, $31, $32, $33)",
    )
    .bind(row.id.to_string())
    .bind(row.request.to_string())
    .bind(row.hypervisor.0)
    .bind(row.server.to_string())
    .bind(row.device.0)
    .bind(&row.alias)
    .bind(i64::from(row.persistent))
    .bind(i64::from(row.managed))
    .bind(row.state.as_str())
    .bind(&row.reason)
    .bind(row.inner.map(|inner| inner.address.to_string()))
    .bind(row.inner.map(|inner| inner.source.as_str()))
    .bind(row.created_at)
    .bind(row.attached_at)
    .bind(network.map(|network| network.mac.to_string()))
    .bind(network.and_then(|network| network.vlan).map(|vlan| i64::from(vlan.get())))
    .bind(network.and_then(|network| network.physical_network.clone()))
    .bind(network.and_then(|network| network.trusted).map(i64::from))
    .bind(i64::from(row.whole_group))
    .bind(i64::from(to_rebind))
    .bind(worker)
    .bind(row.holder.map(|holder| holder.to_string()))
    .bind(i64::from(row.plug_requested))
    .bind(&row.project)
    .bind(network.and_then(|network| vf_settings::text(&network.vf)))
    .bind(row.before.link.map(|link| i64::from(link.width)))
    .bind(row.before.link.map(|link| i64::from(link.speed)))
    .bind(row.before.fatal_errors.map(i64::from))
    .bind(row.vgpu.as_ref().map(|vgpu| vgpu.id.clone()))
    .bind(row.vgpu.as_ref().map(|vgpu| vgpu.owner.as_str()))
    .bind(row.before.class.map(|class| class.to_string()))
    .bind(row.before.had_reset.map(i64::from))
    .bind(row.before.port_errors.map(i64::from))
}

fn mac_address_is_taken(error: sqlx::Error) -> Error {
    match error.as_database_error() {
        Some(known) if known.is_unique_violation() => {
            Error::Conflict("the mac_address was given to another attachment meanwhile; take another".into())
        }
        _ => error.into(),
    }
}

impl Store {
    /// Returns the server that has lost a device since a time although nobody had requested that.
    ///
    /// # Errors
    /// Returns the error of the database.
    pub async fn lost_by(&self, device: DeviceId, since: Millis) -> Result<Option<ServerId>, Error> {
        let row = query(
            "SELECT id, server_uuid FROM attachments WHERE device_id = $1 AND unasked = 1 AND ended_at >= $2
             ORDER BY ended_at DESC LIMIT 1",
        );
        let read =
            |row: &Row| RowReader { table: "attachments", id: row.try_get("id")?, row }.parse("server_uuid");
        row.bind(device.0).bind(since).one(&self.read, read).await
    }

    /// Claims every device for a server and writes its attachments as `attaching`, in one transaction: all or none.
    /// Returns the rows in the order of `wanted`; `None` when one of the devices, or a PF or VF of it, is not free any
    /// more. With a key, the request that was made with that key is recorded as well.
    ///
    /// # Errors
    /// Returns [`Error::NoAccelerator`] or [`Error::NotFound`] when the holder does not exist any more, [`Error::Conflict`]
    /// when it holds a device, [`Error::Restricted`], [`Error::OverQuota`], or the error of the database. Then nothing was
    /// claimed.
    pub async fn reserve(
        &self,
        reservation: Reservation<'_>,
        wanted: &[NewAttachment],
    ) -> Result<Option<Vec<Attachment>>, Error> {
        let Reservation { hypervisor, server, request, key, holder, project, .. } = reservation;
        let mut draft = self.draft().await?;
        draft.expect_open(hypervisor, HostChange::Attach).await?;
        if let Some(holder) = holder {
            draft.may_be_given(holder).await?;
        }
        let aliases = wanted.iter().map(|new| new.alias.as_str());
        self.charge(&mut draft.tx, project, &of_aliases(aliases)).await?;
        let takes_groups = wanted.iter().any(|new| new.whole_group);
        let worker = self.worker();
        let mut rows = Vec::new();
        for (index, new) in wanted.iter().enumerate() {
            if !draft.claim(&new.device, Owner::Server(server), request, &new.siblings) {
                draft.give_way().await;
                return Ok(None);
            }
            // The first device is plugged right after this transaction, unless an IOMMU group is taken from its host
            // drivers first.
            let row = new.reserved(reservation, index == 0 && !takes_groups, now());
            draft.emit([event::made(&new.device, server, new.id, row.state)]);
            let insert = new_row(&row, new.to_rebind, worker.as_deref());
            if row.network.is_some() {
                insert.execute(&mut draft.tx).await.map_err(mac_address_is_taken)?;
            } else {
                draft.tx.put(insert);
            }
            rows.push(row);
        }
        if let Some(key) = key {
            self.charge_key(&mut draft.tx, key).await?;
            remember(&mut draft, key, request).await?;
        }
        Ok(draft.commit_reservation().await?.then_some(rows))
    }

    /// Records that libvirt is about to be requested to plug the device of an attachment. The reservation records it for
    /// the first attachment of a request.
    ///
    /// # Errors
    /// Returns the error of the database. Then libvirt must not be called to plug it.
    pub async fn mark_plug_requested(&self, id: AttachmentId) -> Result<(), Error> {
        let mut tx = self.begin().await?;
        query("UPDATE attachments SET asked = 1 WHERE id = $1").bind(id.to_string()).execute(&mut tx).await?;
        self.commit(tx, Written::default()).await
    }

    /// Returns an attachment, whether it has ended or not.
    ///
    /// # Errors
    /// Returns the error of the database, or an error for a row that cannot be read.
    pub async fn attachment(&self, id: AttachmentId) -> Result<Option<Attachment>, Error> {
        query("SELECT * FROM attachments WHERE id = $1")
            .bind(id.to_string())
            .one(&self.read, attachment)
            .await
    }

    /// Returns the functions of a host that were taken from their host drivers for attachments that have ended, and that
    /// are not known to be bound to a host driver again: the ids of the attachments, and the addresses.
    ///
    /// # Errors
    /// Returns the error of the database, or an error for a row that cannot be read.
    pub async fn unbound_from_host(
        &self,
        host: HypervisorId,
    ) -> Result<Vec<(AttachmentId, PciAddress)>, Error> {
        let rows = query(
            "SELECT attachments.id AS id, pci_devices.address AS address
             FROM attachments JOIN pci_devices ON pci_devices.id = attachments.device_id
             WHERE taken = 1 AND ended_at IS NOT NULL AND hypervisor_id = $1 ORDER BY address",
        )
        .bind(host.0)
        .fetch_all(&self.read)
        .await?;
        let read = |row: &Row| {
            let columns = RowReader { table: "attachments", id: row.try_get("id")?, row };
            Ok((columns.parse("id")?, columns.parse("address")?))
        };
        rows.iter().map(read).collect()
    }

    /// Records that the functions taken for these attachments are bound to host drivers again.
    ///
    /// # Errors
    /// Returns the error of the database.
    pub async fn rebound(&self, ids: &[AttachmentId]) -> Result<(), Error> {
        let mut draft = self.draft().await?;
        for id in ids {
            let row = query("UPDATE attachments SET taken = 0 WHERE id = $1 AND taken = 1 RETURNING *")
                .bind(id.to_string())
                .fetch_optional(&mut draft.tx)
                .await?;
            let Some(row) = row.as_ref().map(attachment).transpose()? else { continue };
            let address = draft.device(row.device).map(|device| device.facts.address);
            // libvirt rebinds the driver itself for a device that was attached alone.
            draft.emit(row.whole_group.then(|| event::given_back(&row, address)));
        }
        draft.commit().await
    }

    /// Returns the attachments that have not ended, the oldest first.
    ///
    /// # Errors
    /// Returns the error of the database, or an error for a row that cannot be read.
    pub async fn attachments(&self) -> Result<Vec<Attachment>, Error> {
        query("SELECT * FROM attachments WHERE ended_at IS NULL ORDER BY created_at, device_id")
            .all(&self.read, attachment)
            .await
    }

    /// Returns the attachments of a host that have not ended and for which hotslot has set the types of their VFs.
    ///
    /// # Errors
    /// Returns the error of the database, or an error for a row that cannot be read.
    pub async fn own_vgpu_types(&self, host: HypervisorId) -> Result<Vec<Attachment>, Error> {
        let open = query(
            "SELECT * FROM attachments WHERE vgpu_owner = 'ours' AND ended_at IS NULL AND hypervisor_id = $1
             ORDER BY created_at, device_id",
        );
        open.bind(host.0).all(&self.read, attachment).await
    }

    /// Returns the attachments that have not ended, the oldest first: at most `most`, of one project or of all, and those
    /// that come after `after`, where it is given.
    ///
    /// # Errors
    /// Returns the error of the database, or an error for a row that cannot be read.
    pub async fn attachments_after(
        &self,
        project: Option<&str>,
        after: Option<&Attachment>,
        most: usize,
    ) -> Result<Vec<Attachment>, Error> {
        let (time, device) = after.map_or((i64::MIN, 0), |row| (row.created_at, row.device.0));
        let rows = match project {
            None => query(
                "SELECT * FROM attachments WHERE ended_at IS NULL AND (created_at, device_id) > ($1, $2)
                 ORDER BY created_at, device_id LIMIT $3",
            ),
            Some(_) => query(
                "SELECT * FROM attachments
                 WHERE ended_at IS NULL AND project_id = $4 AND (created_at, device_id) > ($1, $2)
                 ORDER BY created_at, device_id LIMIT $3",
            ),
        };
        let rows = rows.bind(time).bind(device).bind(i64::try_from(most).unwrap_or(i64::MAX));
        let rows = if let Some(project) = project { rows.bind(project) } else { rows };
        rows.all(&self.read, attachment).await
    }

    /// Returns the attachments of a server that have not ended, the oldest first.
    ///
    /// # Errors
    /// Returns the error of the database, or an error for a row that cannot be read.
    pub async fn attachments_of(&self, server: ServerId) -> Result<Vec<Attachment>, Error> {
        query(
            "SELECT * FROM attachments WHERE server_uuid = $1 AND ended_at IS NULL
             ORDER BY created_at, device_id",
        )
        .bind(server.to_string())
        .all(&self.read, attachment)
        .await
    }

    /// Returns the attachments that ended last, of one server or of all, the last one first.
    ///
    /// # Errors
    /// Returns the error of the database, or an error for a row that cannot be read.
    pub async fn ended_attachments(
        &self,
        server: Option<ServerId>,
        limit: u32,
    ) -> Result<Vec<Attachment>, Error> {
        let ended = match server {
            Some(server) => query(
                "SELECT * FROM attachments WHERE ended_at IS NOT NULL AND server_uuid = $2
                 ORDER BY ended_at DESC, id LIMIT $1",
            )
            .bind(i64::from(limit))
            .bind(server.to_string()),
            None => query(
                "SELECT * FROM attachments WHERE ended_at IS NOT NULL ORDER BY ended_at DESC, id LIMIT $1",
            )
            .bind(i64::from(limit)),
        };
        ended.all(&self.read, attachment).await
    }

    /// Returns the attachments of a request, whether they have ended or not, the oldest first.
    ///
    /// # Errors
    /// Returns the error of the database, or an error for a row that cannot be read.
    pub async fn attachments_of_request(&self, request: RequestId) -> Result<Vec<Attachment>, Error> {
        query("SELECT * FROM attachments WHERE request_id = $1 ORDER BY created_at, device_id")
            .bind(request.to_string())
            .all(&self.read, attachment)
            .await
    }
}
