//! The columns of `attachments` about the types of virtual GPUs that VFs have for them.

use hotslot_driver::pci::PciAddress;
use hotslot_model::assignment::{Vgpu, VgpuOwner};
use hotslot_model::id::{AttachmentId, HypervisorId};

use crate::columns::RowReader;
use crate::error::Error;
use crate::pool::Store;
use crate::sql::{Row, query};
use crate::writer::Written;

/// Reads the columns.
pub(super) fn read(columns: &RowReader<'_>) -> Result<Option<Vgpu>, Error> {
    let Some(id) = columns.get::<Option<String>>("vgpu_type")? else { return Ok(None) };
    let owner = columns.parse_opt("vgpu_owner")?.unwrap_or(VgpuOwner::Others);
    Ok(Some(Vgpu { id, owner }))
}

impl Store {
    /// Records that the type of the VF of an attachment is hotslot's, before it is set.
    ///
    /// # Errors
    /// Returns the error of the database. Then the type must not be set.
    pub async fn own_vgpu_type(&self, id: AttachmentId) -> Result<(), Error> {
        self.set_vgpu_owner(id, VgpuOwner::Ours).await
    }

    /// Records that the VF of an attachment that has ended does not have hotslot's type any more.
    ///
    /// # Errors
    /// Returns the error of the database.
    pub async fn vgpu_type_taken(&self, id: AttachmentId) -> Result<(), Error> {
        self.set_vgpu_owner(id, VgpuOwner::Taken).await
    }

    async fn set_vgpu_owner(&self, id: AttachmentId, owner: VgpuOwner) -> Result<(), Error> {
        let mut tx = self.begin().await?;
        let change = query("UPDATE attachments SET vgpu_owner = $2 WHERE id = $1");
        change.bind(id.to_string()).bind(owner.as_str()).execute(&mut tx).await?;
        self.commit(tx, Written::default()).await
    }

    /// Returns the VFs of a host whose types are to be taken away, because the attachments for which hotslot has set them
    /// have ended: the ids of the attachments, the addresses, and the ids of the types. The last one that ended comes
    /// first.
    ///
    /// # Errors
    /// Returns the error of the database, or an error for a row that cannot be read.
    pub async fn left_vgpu_types(
        &self,
        host: HypervisorId,
    ) -> Result<Vec<(AttachmentId, PciAddress, String)>, Error> {
        let rows = query(
            "SELECT attachments.id AS id, pci_devices.address AS address, vgpu_type
             FROM attachments JOIN pci_devices ON pci_devices.id = attachments.device_id
             WHERE vgpu_owner = 'ours' AND ended_at IS NOT NULL AND hypervisor_id = $1 ORDER BY ended_at DESC",
        );
        let of_row = |row: &Row| {
            let columns = RowReader { table: "attachments", id: row.try_get("id")?, row };
            Ok((columns.parse("id")?, columns.parse("address")?, columns.get("vgpu_type")?))
        };
        rows.bind(host.0).all(&self.read, of_row).await
    }
}
