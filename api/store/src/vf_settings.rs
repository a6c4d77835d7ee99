//! The columns of `attachments` about the settings of VFs: those that a VF had before an attachment changed them.

use hotslot_driver::pci::PciAddress;
use hotslot_driver::vf::VfSettings;
use hotslot_model::id::{AttachmentId, HypervisorId};

use crate::columns::{RowReader, bad_column};
use crate::error::Error;
use crate::pool::Store;
use crate::sql::{Row, query};
use crate::writer::Written;

/// Writes settings as the text of a column; `None` when there are none.
pub(super) fn text(settings: &VfSettings) -> Option<String> {
    (!settings.is_empty()).then(|| serde_json::json!(settings).to_string())
}

/// Reads settings from a column.
pub(super) fn read(columns: &RowReader<'_>, column: &'static str) -> Result<VfSettings, Error> {
    let Some(text) = columns.get::<Option<String>>(column)? else { return Ok(VfSettings::default()) };
    serde_json::from_str(&text).map_err(|error| bad_column("attachments", &columns.id, column)(&error))
}

impl Store {
    /// Records which settings the VF of an attachment has before they are changed, so that they are put back after its
    /// end.
    ///
    /// # Errors
    /// Returns the error of the database. Then the settings must not be changed.
    pub async fn keep_vf_settings(&self, id: AttachmentId, before: &VfSettings) -> Result<(), Error> {
        let before = text(before);
        let mut tx = self.begin().await?;
        let change = query("UPDATE attachments SET vf_before = $2 WHERE id = $1");
        change.bind(id.to_string()).bind(before).execute(&mut tx).await?;
        self.commit(tx, Written::default()).await
    }

    /// Returns the VFs of a host whose settings are to be put back, because the attachments that changed them have
    /// ended: the ids of the attachments, the addresses, and the settings that they had before.
    ///
    /// # Errors
    /// Returns the error of the database, or an error for a row that cannot be read.
    pub async fn changed_vf_settings(
        &self,
        host: HypervisorId,
    ) -> Result<Vec<(AttachmentId, PciAddress, VfSettings)>, Error> {
        let rows = query(
            "SELECT attachments.id AS id, pci_devices.address AS address, vf_before
             FROM attachments JOIN pci_devices ON pci_devices.id = attachments.device_id
             WHERE vf_before IS NOT NULL AND ended_at IS NOT NULL AND hypervisor_id = $1 ORDER BY ended_at DESC",
        );
        let of_row = |row: &Row| {
            let columns = RowReader { table: "attachments", id: row.try_get("id")?, row };
            Ok((columns.parse("id")?, columns.parse("address")?, read(&columns, "vf_before")?))
        };
        rows.bind(host.0).all(&self.read, of_row).await
    }

    /// Records that the settings of the VF of an attachment were put back.
    ///
    /// # Errors
    /// Returns the error of the database.
    pub async fn vf_settings_put_back(&self, id: AttachmentId) -> Result<(), Error> {
        self.keep_vf_settings(id, &VfSettings::default()).await
    }
}
