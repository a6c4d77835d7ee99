//! The table `bindings`: the functions that hosts have or are to have for their own use, bound to a driver.
//!
//! The status of a device changes in the same transaction as the state of its binding.

use hotslot_driver::binding::HostDriver;
use hotslot_model::assignment::{Binding, Holder, NewBinding, State};
use hotslot_model::device::Owner;
use hotslot_model::event;
use hotslot_model::host_mode::HostChange;
use hotslot_model::id::{DeviceId, HypervisorId, RequestId};

use crate::clock::now;
use crate::columns::RowReader;
use crate::error::Error;
use crate::pool::Store;
use crate::sql::{Row, query};

pub(crate) fn binding(row: &Row) -> Result<Binding, Error> {
    let columns = RowReader { table: "bindings", id: row.try_get("id")?, row };
    Ok(Binding {
        id: columns.parse("id")?,
        request: columns.parse("request_id")?,
        hypervisor: HypervisorId(columns.get("hypervisor_id")?),
        device: DeviceId(columns.get("device_id")?),
        holder: columns.parse("holder")?,
        driver: columns.parse("driver")?,
        previous: columns.get("previous_driver")?,
        forced: columns.get::<i64>("forced")? != 0,
        state: columns.parse("state")?,
        reason: columns.get("state_reason")?,
        created_at: columns.get("created_at")?,
        attached_at: columns.get("attached_at")?,
    })
}

impl Store {
    /// Claims every device for its host and writes its bindings as `attaching`, in one transaction: all or none.
    /// Returns false when one of the devices, or a PF or VF of it, is not free any more, or when a server has a function
    /// of its IOMMU group.
    ///
    /// # Errors
    /// Returns [`Error::NoAccelerator`] or [`Error::NotFound`] when the holder does not exist any more, [`Error::Conflict`]
    /// when it holds a device, [`Error::Restricted`], or the error of the database. Then nothing was claimed.
    pub async fn reserve_bindings(
        &self,
        hypervisor: HypervisorId,
        request: RequestId,
        holder: Holder,
        driver: HostDriver,
        wanted: &[NewBinding],
    ) -> Result<bool, Error> {
        let mut draft = self.draft().await?;
        draft.expect_open(hypervisor, HostChange::Attach).await?;
        draft.may_be_given(holder).await?;
        for new in wanted {
            if !draft.claim(&new.device, Owner::Host, request, &new.siblings) {
                draft.give_way().await;
                return Ok(false);
            }
            draft.emit([event::binding(&new.device, None, State::Attaching, None)]);
            query(
                "INSERT INTO bindings (id, request_id, hypervisor_id, device_id, holder, driver, previous_driver,
                     state, created_at)
                 VALUES ($1, $2, $3, $4, $5, $6, $7, 'attaching', $8)",
            )
            .bind(new.id.to_string())
            .bind(request.to_string())
            .bind(hypervisor.0)
            .bind(new.device.id.0)
            .bind(holder.to_string())
            .bind(driver.to_string())
            .bind(&new.previous)
            .bind(now())
            .execute(&mut draft.tx)
            .await?;
        }
        draft.commit_reservation().await
    }

    /// Returns the bindings that have not ended, the oldest first.
    ///
    /// # Errors
    /// Returns the error of the database, or an error for a row that cannot be read.
    pub async fn bindings(&self) -> Result<Vec<Binding>, Error> {
        query("SELECT * FROM bindings WHERE ended_at IS NULL ORDER BY created_at, device_id")
            .all(&self.read, binding)
            .await
    }
}
