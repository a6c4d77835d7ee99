//! `Idempotency-Key`: a POST that is sent again with the same key is done once, and answered alike.
//!
//! What succeeded is kept with its answer. An attach says in the transaction that reserves its devices which
//! request it makes, so that a try after one that was cut off finds what that one has left. An attach that failed
//! and left nothing is tried anew.

use std::sync::Arc;

use uuid::Uuid;

use crate::attachment::attach::AttachRequest;
use crate::attachment::{Occasion, State};
use crate::config;
use crate::error::Error;
use crate::id::RequestId;
use crate::service::Service;
use crate::store::{Attachment, Device, Millis, now};

/// The longest route that is kept as it is, in bytes.
const ROUTE: usize = 1024;

/// A POST that may be sent again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdempotencyKey {
    /// What its client calls it, 1 to 255 visible ASCII characters.
    pub key: String,
    /// The path that it was sent to, and by whom, or a name of these.
    pub route: String,
    /// A name of its body, the same for each spelling of the same JSON.
    pub fingerprint: Uuid,
}

/// What is known of a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kept {
    /// A name of the body that it came with.
    pub fingerprint: Uuid,
    /// The request that an attach has made.
    pub request: Option<RequestId>,
    /// What was answered; none when it was not done, or cut off.
    pub answer: Option<Answer>,
}

/// What was answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// The HTTP status code.
    pub status: u16,
    /// A JSON text; may be empty.
    pub body: String,
    /// Where what was made is, when that was answered.
    pub location: Option<String>,
}

impl IdempotencyKey {
    /// Names a POST.
    ///
    /// # Errors
    /// [`Error::Invalid`] when the key is not 1 to 255 visible ASCII characters.
    pub fn new(key: &[u8], route: &str, body: &[u8]) -> Result<Self, Error> {
        let wrong =
            || Error::Invalid("Idempotency-Key is not 1 to 255 visible ASCII characters; send a UUID".into());
        if key.is_empty() || key.len() > 255 || !key.iter().all(u8::is_ascii_graphic) {
            return Err(wrong());
        }
        let key = std::str::from_utf8(key).map_err(|_| wrong())?;
        // The keys of an object have no order.
        let json = serde_json::from_slice::<serde_json::Value>(body).map(|json| json.to_string());
        let text = json.as_ref().map_or(body, |json| json.as_bytes());
        let fingerprint = Uuid::new_v5(&Uuid::NAMESPACE_OID, text);
        Ok(Self { key: key.to_owned(), route: route.to_owned(), fingerprint })
    }

    /// As somebody sends it: each caller has keys of their own.
    #[must_use]
    pub fn of(self, caller: &str) -> Self {
        let route = if caller.is_empty() { self.route } else { format!("{} by {caller}", self.route) };
        // PostgreSQL keeps no longer ones in an index.
        let route = if route.len() <= ROUTE {
            route
        } else {
            Uuid::new_v5(&Uuid::NAMESPACE_URL, route.as_bytes()).to_string()
        };
        Self { route, ..self }
    }
}

impl Service {
    /// Answers of before then are forgotten.
    fn kept_since(&self) -> Millis {
        now() - self.config.api.idempotency_time.0.as_millis() as Millis
    }

    /// What is known of a key.
    ///
    /// # Errors
    /// The database's.
    pub async fn kept(&self, key: &IdempotencyKey) -> Result<Option<Kept>, Error> {
        self.store.kept(key, self.kept_since()).await
    }

    /// Keeps an answer.
    ///
    /// # Errors
    /// The database's.
    pub async fn keep(&self, key: &IdempotencyKey, answer: &Answer) -> Result<(), Error> {
        self.store.keep(key, answer, self.kept_since(), config::IDEMPOTENCY_KEYS).await
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
                self.reconcile(host, row.server, Occasion::Event).await?;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_has_one_name_in_every_spelling_and_no_other_body_has_it() {
        let named = |body: &str| IdempotencyKey::new(b"k", "/x", body.as_bytes()).unwrap().fingerprint;
        assert_eq!(named(r#"{"a": 1, "b": {"c": null}}"#), named(r#"{"b":{"c":null},"a":1}"#));
        let others = ["", "{", "{}", "[]", r#"{"a": 1}"#, r#"{"a": "1"}"#, r#"{"a": 2}"#, r#"{"b": 1}"#];
        let names: std::collections::HashSet<_> = others.map(named).into();
        assert_eq!(names.len(), others.len());
    }

    #[test]
    fn a_key_is_short_and_can_be_seen() {
        for good in ["k", "\"8e03978e-40d5\"", &"x".repeat(255)] {
            IdempotencyKey::new(good.as_bytes(), "/x", b"").unwrap();
        }
        for bad in ["", "a b", "a\tb", "b\u{fc}ro", &"x".repeat(256)] {
            IdempotencyKey::new(bad.as_bytes(), "/x", b"").unwrap_err();
        }
    }
}
