//! `Idempotency-Key`: a POST that is sent again with the same key is done once, and answered alike.
//!
//! What succeeded is kept with its answer. An attach says in the transaction that reserves its devices which
//! request it makes, so that a try after one that was cut off finds what that one has left. An attach that failed
//! and left nothing is tried anew.

use std::sync::Arc;

use hotslot_model::assignment::{Attachment, State, Trigger};
use hotslot_model::device::Device;
use hotslot_model::idempotency::{Answer, IdempotencyKey, StoredResponse};
use hotslot_model::time::Millis;
use hotslot_store::now;

use crate::assignment::AttachRequest;
use crate::config;
use crate::error::Error;
use crate::service::Service;

impl Service {
    /// Answers of before then are forgotten.
    fn kept_since(&self) -> Millis {
        now() - self.config.api.idempotency_time.0.as_millis() as Millis
    }

    /// What is known of a key.
    ///
    /// # Errors
    /// The database's.
    pub async fn kept(&self, key: &IdempotencyKey) -> Result<Option<StoredResponse>, Error> {
        Ok(self.store.kept(key, self.kept_since()).await?)
    }

    /// Keeps an answer.
    ///
    /// # Errors
    /// The database's.
    pub async fn keep(&self, key: &IdempotencyKey, answer: &Answer) -> Result<(), Error> {
        Ok(self.store.keep(key, answer, self.kept_since(), config::IDEMPOTENCY_KEYS).await?)
    }

    /// What the first try of an attach has made, in the order asked; none when there was none, or nothing is left
    /// of it.
    ///
    /// # Errors
    /// [`Error::HostAway`] while that cannot be told, [`Error::Conflict`] while the first try is being taken back.
    pub(crate) async fn first_try(
        self: &Arc<Self>,
        asked: &AttachRequest,
    ) -> Result<Option<Vec<(Attachment, Arc<Device>)>>, Error> {
        let Some(key) = &asked.key else { return Ok(None) };
        let Some(request) = self.kept(key).await?.and_then(|kept| kept.request) else { return Ok(None) };
        let of_request = async || self.store.attachments_of_request(request).await;
        let mut rows = of_request().await?;
        if let Some(host) = rows.first().and_then(|row| self.host(row.hypervisor)) {
            // What a killed service left is as it was until it has been compared.
            host.ready().await?;
            rows = of_request().await?;
            // And what a process left that has just died.
            if let Some(row) = rows.iter().find(|row| row.state == State::Attaching) {
                self.reconcile(host, row.server, Trigger::Event).await?;
                rows = of_request().await?;
            }
        }
        if rows.iter().all(|row| row.attached_at.is_none() && row.state.is_final()) {
            return Ok(None);
        }
        if let Some(row) = rows.iter().find(|row| row.attached_at.is_none()) {
            return Err(Error::Conflict(format!(
                "the first try with this Idempotency-Key was cut off, and attachment {} of it is {} still; \
                 try again when it is gone",
                row.id, row.state
            )));
        }
        rows.sort_by_key(|row| asked.aliases.iter().position(|part| part.name == row.alias));
        let mut made = Vec::new();
        for row in rows {
            let device = self.store.known_device(row.device).await?.ok_or(Error::NoAttachment(row.id))?;
            made.push((row, device));
        }
        Ok(Some(made))
    }
}
