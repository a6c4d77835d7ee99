//! `webhooks`: the progress of the configured webhooks and their dead letters. An extension of hotslot.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use hotslot_service::error::Error;
use hotslot_service::records::Records;
use hotslot_service::webhook::{Webhook, Webhooks};
use hotslot_store::DeadLetter;
use serde::Deserialize;
use serde_json::{Value, json};

use super::body::{Path, time};
use super::error::Fault;

/// The maximum number of dead letters that are shown per webhook.
const LETTERS: u32 = 100;

/// Returns a webhook as JSON. Neither its secret nor the path of its URL is shown.
async fn wire(records: &Records, webhook: &Webhook) -> Result<Value, Error> {
    let (config, progress) = (&webhook.config, webhook.progress());
    // Another process may deliver the events of this webhook.
    let delivered = progress.delivered.max(Some(records.last_delivered(&config.name).await?));
    let last = records.event_bounds().await?.last;
    let (letters, count) = records.dead_letters(&config.name, LETTERS).await?;
    let letter = |letter: &DeadLetter| {
        json!({
            "event_id": letter.event,
            "attempts": letter.attempts,
            "reason": letter.reason,
            "died_at": time(letter.died_at),
            "due": letter.due,
        })
    };
    Ok(json!({
        "name": config.name,
        "url": webhook.origin(),
        "kinds": config.kinds,
        "told": delivered,
        "behind": delivered.map(|delivered| last.0 - delivered.0),
        "told_at": progress.delivered_at.map(time),
        "attempts": progress.attempts,
        "reason": progress.reason,
        "next_attempt_at": progress.next_at.map(time),
        "dead_letter_count": count,
        "dead_letters": letters.iter().map(letter).collect::<Vec<_>>(),
    }))
}

pub(super) async fn list(
    State(webhooks): State<Arc<Webhooks>>,
    State(records): State<Arc<Records>>,
) -> Result<Json<Value>, Fault> {
    let mut shown = Vec::new();
    for webhook in webhooks.iter() {
        shown.push(wire(&records, webhook).await?);
    }
    Ok(Json(json!({ "webhooks": shown })))
}

#[derive(Deserialize)]
pub(super) struct WebhookPath {
    name: String,
}

/// Queues the dead letters for delivery again, and retries a pending delivery at once.
pub(super) async fn redeliver(
    State(webhooks): State<Arc<Webhooks>>,
    State(records): State<Arc<Records>>,
    Path(path): Path<WebhookPath>,
) -> Result<(StatusCode, Json<Value>), Fault> {
    let webhook = webhooks.iter().find(|webhook| webhook.config.name == path.name);
    let webhook = webhook.ok_or_else(|| {
        let name: String = path.name.chars().take(80).collect();
        Error::NotFound(format!("webhook {name} (GET webhooks lists all)"))
    })?;
    webhooks.redeliver(webhook).await?;
    let body = json!({ "webhook": wire(&records, webhook).await? });
    webhook.try_again();
    Ok((StatusCode::ACCEPTED, Json(body)))
}
