//! What has ended is forgotten after a while: rows of `attachments`, `bindings` and `mdevs`.

use hotslot_model::string_enum;
use hotslot_model::time::Millis;

use crate::error::Error;
use crate::pool::Store;
use crate::sql::query;

string_enum! {
    /// A table whose rows end.
    Ended {
        /// Devices in servers.
        Attachments = "attachments",
        /// Devices that hosts hold themselves.
        Bindings = "bindings",
        /// Parts of devices in servers.
        Mdevs = "mdevs",
    }
}

/// The statement that forgets rows of one table. How many devices a request was given is counted by its rows, so all of
/// them stay as long as one has not ended, and as long as an `Idempotency-Key` may ask for them. A row whose device is
/// owed its host driver stays until that has it.
macro_rules! forget {
    ($table:literal, $owed:literal) => {
        concat!(
            "DELETE FROM ",
            $table,
            " WHERE id IN (SELECT id FROM ",
            $table,
            " AS old WHERE ended_at < $1",
            $owed,
            " AND NOT EXISTS (SELECT 1 FROM attachments WHERE request_id = old.request_id AND ended_at IS NULL)
              AND NOT EXISTS (SELECT 1 FROM bindings WHERE request_id = old.request_id AND ended_at IS NULL)
              AND NOT EXISTS (SELECT 1 FROM mdevs WHERE request_id = old.request_id AND ended_at IS NULL)
              AND NOT EXISTS (SELECT 1 FROM idempotency_keys WHERE request_id = old.request_id)
              ORDER BY ended_at LIMIT $2)"
        )
    };
}

impl Store {
    /// Forgets at most `batch` rows of a table that ended before then, and answers how many.
    ///
    /// # Errors
    /// The database's; then nothing was changed.
    pub async fn prune_ended(&self, table: Ended, before: Millis, batch: i64) -> Result<u64, Error> {
        let (_turn, mut tx) = self.begin().await?;
        let forget = match table {
            Ended::Attachments => query(forget!("attachments", " AND taken = 0")),
            Ended::Bindings => query(forget!("bindings", "")),
            Ended::Mdevs => query(forget!("mdevs", "")),
        };
        let count = forget.bind(before).bind(batch).execute(&mut tx).await?;
        tx.commit().await?;
        Ok(count)
    }
}
