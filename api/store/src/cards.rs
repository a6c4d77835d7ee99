//! The table `disabled_cards`: cards whose devices are unavailable.

use std::collections::BTreeSet;

use hotslot_driver::pci::PciAddress;
use hotslot_model::event::{self, EventKind, What};
use hotslot_model::id::HypervisorId;

use crate::clock::now;
use crate::columns::RowReader;
use crate::error::Error;
use crate::pool::Store;
use crate::sql::{Row, query};

impl Store {
    /// Returns the disabled cards of a host. A card is named by the address of its PF, or of its only function.
    ///
    /// # Errors
    /// Returns the error of the database, or [`Error::Row`] for a row that cannot be read.
    pub async fn disabled_cards(&self, host: HypervisorId) -> Result<BTreeSet<PciAddress>, Error> {
        let rows = query("SELECT address FROM disabled_cards WHERE hypervisor_id = $1");
        let rows = rows.bind(host.0).fetch_all(&self.read).await?;
        let read = |row: &Row| {
            RowReader { table: "disabled_cards", id: row.try_get("address")?, row }.parse("address")
        };
        rows.iter().map(read).collect()
    }

    /// Disables or enables a card.
    ///
    /// # Errors
    /// Returns the error of the database.
    pub async fn disable_card(
        &self,
        host: HypervisorId,
        card: PciAddress,
        disabled: bool,
    ) -> Result<(), Error> {
        let mut draft = self.draft().await?;
        let change = if disabled {
            query(
                "INSERT INTO disabled_cards (hypervisor_id, address, created_at) VALUES ($1, $2, $3)
                 ON CONFLICT DO NOTHING",
            )
        } else {
            query("DELETE FROM disabled_cards WHERE hypervisor_id = $1 AND address = $2 AND created_at <= $3")
        };
        let changed = change.bind(host.0).bind(card.to_string()).bind(now()).execute(&mut draft.tx).await?;
        if changed > 0 {
            let kind = if disabled { EventKind::CardDisabled } else { EventKind::CardEnabled };
            let what = event::of_kind(kind, None, None);
            draft.emit([What { hypervisor: Some(host), address: Some(card), ..what }]);
        }
        draft.commit().await
    }
}
