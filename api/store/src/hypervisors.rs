//! The table `hypervisors`: a number and a UUID for each configured host, which stay the same across restarts.

use hotslot_model::id::HypervisorId;
use uuid::Uuid;

use crate::clock::now;
use crate::columns::RowReader;
use crate::error::Error;
use crate::pool::Store;
use crate::sql::query;
use crate::writer::Written;

/// A row of `hypervisors`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HypervisorRow {
    /// The number, Nova's `compute_node_id`.
    pub id: HypervisorId,
    /// The UUID, which clients of microversion 2.53 and later use.
    pub uuid: Uuid,
}

impl Store {
    /// Returns the row of the host with this name. Creates it if it does not exist.
    ///
    /// # Errors
    /// Returns the error of the database.
    pub async fn hypervisor(&self, name: &str, uri: &str) -> Result<HypervisorRow, Error> {
        let mut tx = self.begin().await?;
        let row = query(
            "INSERT INTO hypervisors (id, uuid, name, uri, created_at)
             SELECT COALESCE(MAX(id), 0) + 1, $1, $2, $3, $4 FROM hypervisors WHERE true
             ON CONFLICT (name) DO UPDATE SET uri = excluded.uri, updated_at = excluded.created_at
             RETURNING id, uuid",
        )
        .bind(Uuid::new_v4().hyphenated().to_string())
        .bind(name)
        .bind(uri)
        .bind(now())
        .fetch_one(&mut tx)
        .await?;
        self.commit(tx, Written::default()).await?;
        let columns = RowReader { table: "hypervisors", id: name.to_owned(), row: &row };
        Ok(HypervisorRow { id: HypervisorId(columns.get("id")?), uuid: columns.parse("uuid")? })
    }
}
