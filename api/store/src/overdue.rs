//! The table `overdue_calls`: calls to hypervisors that were given up by one of several processes and have not returned.

use std::sync::PoisonError;

use hotslot_model::id::HypervisorId;
use hotslot_model::overdue::OverdueElsewhere;

use crate::columns::RowReader;
use crate::error::Error;
use crate::pool::Store;
use crate::processes::Notification;
use crate::sql::{Executor, Row, query};

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
    /// The calls of other processes that have not returned, as they were last read; empty when there are no others.
    pub fn overdue_elsewhere(&self) -> Vec<OverdueElsewhere> {
        self.overdue.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Tells the other processes which calls of this one to a host have not returned, in place of what it told before.
    /// They know it before this returns, or look before they next decide anything.
    ///
    /// # Errors
    /// The database's; then the others know what they knew.
    pub async fn tell_overdue(&self, host: HypervisorId, calls: &[OverdueElsewhere]) -> Result<(), Error> {
        let Some(process) = self.new_worker() else { return Ok(()) };
        let (_turn, mut tx) = self.begin().await?;
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
        // Whoever begins a change reads what is new by this number.
        query("UPDATE commits SET seq = seq + 1").execute(&mut tx).await?;
        tx.tell(Notification::Records).await?;
        Ok(tx.commit().await?)
    }

    /// Reads the calls of other processes that are on record.
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
