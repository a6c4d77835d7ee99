//! Deletes old rows of `attachments`, `bindings` and `mdevs` whose assignments have ended.

use hotslot_model::string_enum;
use hotslot_model::time::Millis;

use crate::error::Error;
use crate::pool::Store;
use crate::sql::query;
use crate::writer::Written;

string_enum! {
    /// A table of assignments.
    Ended {
        /// Devices that are attached to servers.
        Attachments = "attachments",
        /// Devices that are bound for use by their hosts.
        Bindings = "bindings",
        /// Mediated devices that are attached to servers.
        Mdevs = "mdevs",
    }
}

/// The statement that deletes old rows of one table. The rows of a request are counted to know how many devices it got.
/// So all of them are kept while one of them has not ended, and while an `Idempotency-Key` refers to the request. A row
/// whose device still has to be rebound to its host driver is kept until that is done.
macro_rules! prune {
    ($table:literal, $condition:literal) => {
        concat!(
            "DELETE FROM ",
            $table,
            " WHERE id IN (SELECT id FROM ",
            $table,
            " AS old WHERE ended_at < $1",
            $condition,
            " AND NOT EXISTS (SELECT 1 FROM attachments WHERE request_id = old.request_id AND ended_at IS NULL)
              AND NOT EXISTS (SELECT 1 FROM bindings WHERE request_id = old.request_id AND ended_at IS NULL)
              AND NOT EXISTS (SELECT 1 FROM mdevs WHERE request_id = old.request_id AND ended_at IS NULL)
              AND NOT EXISTS (SELECT 1 FROM idempotency_keys WHERE request_id = old.request_id)
              ORDER BY ended_at LIMIT $2)"
        )
    };
}

impl Store {
    /// Deletes at most `batch` rows of a table that ended before a time. Returns the number of deleted rows.
    ///
    /// # Errors
    /// Returns the error of the database. Then nothing was changed.
    pub async fn prune_ended(&self, table: Ended, before: Millis, batch: i64) -> Result<u64, Error> {
        let mut tx = self.begin().await?;
        let prune = match table {
            Ended::Attachments => query(prune!("attachments", " AND taken = 0")),
            Ended::Bindings => query(prune!("bindings", "")),
            Ended::Mdevs => query(prune!("mdevs", "")),
        };
        let count = prune.bind(before).bind(batch).execute(&mut tx).await?;
        self.commit(tx, Written::default()).await?;
        Ok(count)
    }
}
