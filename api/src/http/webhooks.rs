//! `webhooks`: the progress of the configured webhooks and their dead letters. An extension of hotslot.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use hotslot_model::id::EventId;
use hotslot_service::error::Error;
use hotslot_service::records::Records;
use hotslot_service::webhook::{Webhook, Webhooks};
use hotslot_store::DeadLetter;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::body::{Path, not_listed, time};
use super::error::Fault;
use super::schema;

/// The maximum number of dead letters that are shown per webhook.
const LETTERS: u32 = 100;

/// A configured webhook, and how far it has come. Neither its secret nor the path of its URL is shown.
#[derive(Serialize, ToSchema)]
#[schema(as = Webhook)]
pub(super) struct Shown {
    /// The name in the configuration.
    name: String,
    /// The scheme, host and port of its URL.
    url: String,
    /// The kinds of events that are posted, or the nouns that kinds begin with. Empty for all events.
    kinds: Vec<String>,
    /// The id of the last event that was delivered; null before the first.
    #[schema(value_type = Option<i64>)]
    told: Option<EventId>,
    /// The number of events recorded since then.
    behind: Option<i64>,
    /// When an event was last delivered by this process.
    #[schema(value_type = Option<schema::Time>)]
    told_at: Option<String>,
    /// How often the event that is pending has been posted without success.
    attempts: u32,
    /// Why the last attempt failed; null when it succeeded.
    reason: Option<String>,
    /// When the next attempt is made; null when nothing is pending.
    #[schema(value_type = Option<schema::Time>)]
    next_attempt_at: Option<String>,
    /// The number of dead letters.
    #[schema(minimum = 0)]
    dead_letter_count: i64,
    /// The dead letters, at most 100.
    #[schema(max_items = 100)]
    dead_letters: Vec<Letter>,
}

/// An event that was posted as often as configured, without success.
#[derive(Serialize, ToSchema)]
#[schema(as = DeadLetter)]
pub(super) struct Letter {
    /// The id of the event.
    #[schema(value_type = i64)]
    event_id: EventId,
    /// How often it was posted.
    #[schema(minimum = 1)]
    attempts: i64,
    /// Why the last attempt failed.
    reason: String,
    /// When it was given up.
    #[schema(value_type = schema::Time)]
    died_at: String,
    /// Whether it is to be delivered again.
    due: bool,
}

/// All webhooks.
#[derive(Serialize, ToSchema)]
pub(super) struct WebhookList {
    /// The webhooks, in the order of the configuration.
    webhooks: Vec<Shown>,
}

/// One webhook.
#[derive(Serialize, ToSchema)]
pub(super) struct WebhookAnswer {
    /// The webhook.
    webhook: Shown,
}

async fn shown(webhooks: &Webhooks, records: &Records, webhook: &Webhook) -> Result<Shown, Error> {
    let (config, progress) = (&webhook.config, webhook.progress());
    let delivered = webhooks.delivered(webhook).await?;
    let last = records.event_bounds().await?.last;
    let (letters, count) = records.dead_letters(&config.name, LETTERS).await?;
    let letter = |letter: DeadLetter| Letter {
        event_id: letter.event,
        attempts: letter.attempts,
        reason: letter.reason,
        died_at: time(letter.died_at),
        due: letter.due,
    };
    Ok(Shown {
        name: config.name.clone(),
        url: webhook.origin(),
        kinds: config.kinds.clone(),
        told: Some(delivered),
        behind: Some(last.0 - delivered.0),
        told_at: progress.delivered_at.map(time),
        attempts: progress.attempts,
        reason: progress.reason,
        next_attempt_at: progress.next_at.map(time),
        dead_letter_count: count,
        dead_letters: letters.into_iter().map(letter).collect(),
    })
}

/// Lists the configured webhooks. An extension of hotslot.
#[utoipa::path(get, path = "/webhooks", tag = "Webhooks",
    responses((status = 200, description = "The webhooks.", body = WebhookList)))]
pub(super) async fn list(
    State(webhooks): State<Arc<Webhooks>>,
    State(records): State<Arc<Records>>,
) -> Result<Json<WebhookList>, Fault> {
    let mut list = Vec::new();
    for webhook in webhooks.iter() {
        list.push(shown(&webhooks, &records, webhook).await?);
    }
    Ok(Json(WebhookList { webhooks: list }))
}

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Path)]
pub(super) struct WebhookPath {
    /// The name of the webhook.
    name: String,
}

/// Queues the dead letters for delivery again, and retries a pending delivery at once. An extension of hotslot.
#[utoipa::path(post, path = "/webhooks/{name}/redeliver", tag = "Webhooks", params(WebhookPath),
    responses((status = 202, description = "The webhook, whose deliveries go on.", body = WebhookAnswer)))]
pub(super) async fn redeliver(
    State(webhooks): State<Arc<Webhooks>>,
    State(records): State<Arc<Records>>,
    Path(path): Path<WebhookPath>,
) -> Result<(StatusCode, Json<WebhookAnswer>), Fault> {
    let webhook = webhooks.iter().find(|webhook| webhook.config.name == path.name);
    let webhook = webhook.ok_or_else(|| not_listed("webhook", &path.name, "webhooks"))?;
    webhooks.redeliver(webhook).await?;
    let body = WebhookAnswer { webhook: shown(&webhooks, &records, webhook).await? };
    webhook.try_again();
    Ok((StatusCode::ACCEPTED, Json(body)))
}
