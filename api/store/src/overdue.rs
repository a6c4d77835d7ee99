//! The table `overdue_calls`: hypervisor calls that passed their time limit and have not returned, for each of several
//! processes.

use std::sync::PoisonError;

use hotslot_model::id::HypervisorId;
use hotslot_model::overdue::OverdueElsewhere;

use crate::columns::RowReader;
use crate::error::Error;
use crate::executor::Executor;
use crate::pool::Store;
use crate::processes::Notification;
use crate::sql::{Row, query};
use crate::writer::Written;

fn overdue(row: &Row) -> Result<OverdueElsewhere, Error> {
    let columns = RowReader { table: "overdue_calls", id: row.try_get("process")?, row };
    Ok(OverdueElsewhere {
        hypervisor: HypervisorId(columns.get("hypervisor_id")?),
        operation: columns.get("operation")?,
        server: columns.parse_opt("server_uuid")?,
        address: columns.parse_opt("address")?,
        since: columns.get("since")?,
    })
}

impl Store {
    /// Returns the overdue calls of other processes, as they were last read. Empty when no other process exists.
    pub fn overdue_elsewhere(&self) -> Vec<OverdueElsewhere> {
        self.overdue.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Records the overdue calls of this process to a host. They replace the ones recorded before. Other processes read
    /// them when they are notified, and at the latest before they next change a device.
    ///
    /// # Errors
    /// Returns the error of the database. Then the record is unchanged.
    pub async fn tell_overdue(&self, host: HypervisorId, calls: &[OverdueElsewhere]) -> Result<(), Error> {
        let Some(process) = self.new_worker() else { return Ok(()) };
        let mut tx = self.begin().await?;
        query("DELETE FROM overdue_calls WHERE process = $1 AND hypervisor_id = $2")
            .bind(&*process)
            .bind(host.0)
            .execute(&mut tx)
            .await?;
        for call in calls {
            query(
                "INSERT INTO overdue_calls (process, hypervisor_id, operation, server_uuid, address, since)
                 VALUES ($1, $2, $3, $4, $5, $6)",
            )
            .bind(&*process)
            .bind(host.0)
            .bind(&call.operation)
            .bind(call.server.map(|server| server.to_string()))
            .bind(call.address.map(|address| address.to_string()))
            .bind(call.since)
            .execute(&mut tx)
            .await?;
        }
        // A transaction that begins later sees the new number and reads the calls.
        query("UPDATE commits SET seq = seq + 1").execute(&mut tx).await?;
        tx.tell(Notification::Records).await?;
        self.commit(tx, Written::default()).await
    }

    /// Reads the overdue calls of other processes from the table.
    pub(crate) async fn read_overdue(&self, on: Executor<'_>) -> Result<(), Error> {
        let Some(this) = self.new_worker() else { return Ok(()) };
        let rows = query(
            "SELECT overdue_calls.* FROM overdue_calls JOIN processes ON processes.id = overdue_calls.process
             WHERE overdue_calls.process <> $1 ORDER BY since",
        );
        let rows = rows.bind(&*this).fetch_all(on).await?;
        let calls: Vec<_> = rows.iter().map(overdue).collect::<Result<_, _>>()?;
        *self.overdue.write().unwrap_or_else(PoisonError::into_inner) = calls;
        Ok(())
    }
}
