//! An attach that is sent again with the same `Idempotency-Key`.

use std::sync::Arc;

use hotslot_model::assignment::{Attachment, State, Trigger};
use hotslot_model::device::Device;

use super::assignments::Assignments;
use super::request::AttachRequest;
use crate::error::Error;

impl Assignments {
    /// Returns the attachments that an earlier attempt of an attach has made, in the order of the request. Returns
    /// `None` when there was no earlier attempt, or nothing is left of it.
    ///
    /// # Errors
    /// [`Error::HostAway`] while the host is unreachable; [`Error::Busy`] while the earlier attempt is being
    /// undone; errors of the database.
    pub(super) async fn first_try(
        self: &Arc<Self>,
        request: &AttachRequest,
    ) -> Result<Option<Vec<(Attachment, Arc<Device>)>>, Error> {
        let Some(key) = &request.key else { return Ok(None) };
        let Some(earlier) = self.idempotency.kept(key).await?.and_then(|kept| kept.request) else {
            return Ok(None);
        };
        let of_request = async || self.store.attachments_of_request(earlier).await;
        let mut rows = of_request().await?;
        if let Some(host) = rows.first().and_then(|row| self.hosts.host(row.hypervisor)) {
            // The records that a killed service left are outdated until the host has been compared.
            host.ready().await?;
            rows = of_request().await?;
            // The same holds for the records of another process that has just ended.
            if let Some(row) = rows.iter().find(|row| row.state == State::Attaching) {
                self.reconcile(host, row.server, Trigger::Event).await?;
                rows = of_request().await?;
            }
        }
        if rows.iter().all(|row| row.attached_at.is_none() && row.state.is_final()) {
            return Ok(None);
        }
        if let Some(row) = rows.iter().find(|row| row.attached_at.is_none()) {
            return Err(Error::Busy(format!(
                "the first attempt with this Idempotency-Key was interrupted, and its attachment {} is still {}; \
                 try again when it is gone",
                row.id, row.state
            )));
        }
        rows.sort_by_key(|row| request.aliases.iter().position(|part| part.name == row.alias));
        let mut made = Vec::new();
        for row in rows {
            let device = self.store.known_device(row.device).await?.ok_or(Error::NoAttachment(row.id))?;
            made.push((row, device));
        }
        Ok(Some(made))
    }
}
