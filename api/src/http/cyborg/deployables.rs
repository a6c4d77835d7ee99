//! `deployables`: the requestable part of each card. Each deployable is one resource provider.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use hotslot_model::identity::Caller;
use hotslot_service::cyborg::Cyborg;
use hotslot_service::cyborg::{Attribution, Card};
use hotslot_service::error::Error;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use uuid::Uuid;

use super::super::body::{Pairs, Path};
use super::super::error::Fault;
use super::{filters, links, time};

#[derive(Deserialize)]
pub(super) struct DeployablePath {
    id: String,
}

fn wire(card: &Card, attributions: &[Attribution], identity: &Caller, headers: &HeaderMap) -> Value {
    let of_it = attributions
        .iter()
        .map(|attribution| &attribution.attribute)
        .filter(|attribution| attribution.deployable == card.row.id);
    let attributes: Vec<_> = of_it
        .map(|attribution| {
            Value::Object(Map::from_iter([(attribution.key.clone(), json!(attribution.value))]))
        })
        .collect();
    json!({
        "uuid": card.deployable_id(),
        // The name is made of the host and the address.
        "name": identity.sees_host_details().then(|| card.name()),
        "parent_id": null,
        "root_id": null,
        "num_accelerators": card.handles.len(),
        "device_id": card.row.id,
        "rp_uuid": card.rp_uuid(),
        "attributes_list": Value::Array(attributes).to_string(),
        "driver_name": "hotslot",
        "bitstream_id": null,
        "created_at": time(card.row.created_at),
        "updated_at": card.row.updated_at.map(time),
        "links": links(headers, "deployables", card.deployable_id()),
    })
}

pub(super) async fn list(
    State(cyborg): State<Arc<Cyborg>>,
    identity: Caller,
    headers: HeaderMap,
    pairs: Pairs,
) -> Result<Json<Value>, Fault> {
    let cards = cyborg.cards().await?;
    let attributions = cyborg.attributions(&cards).await?;
    let mut listed: Vec<_> =
        cards.iter().map(|card| wire(card, &attributions, &identity, &headers)).collect();
    let mut limit = usize::MAX;
    for (key, value) in filters(pairs, &[], &["limit", "name", "device_id", "rp_uuid"])? {
        if key == "limit" {
            let wrong = |_| Error::Invalid(format!("invalid limit {value}: expected a number from 0 up"));
            limit = value.parse().map_err(wrong)?;
        } else {
            let is = |shown: &Value| shown.to_string().trim_matches('"').eq_ignore_ascii_case(&value);
            listed.retain(|deployable| is(&deployable[&key]));
        }
    }
    listed.truncate(limit);
    Ok(Json(json!({ "deployables": listed })))
}

/// Returns the card of a deployable.
async fn find(cyborg: &Cyborg, path: &DeployablePath) -> Result<Card, Error> {
    let id: Option<Uuid> = path.id.parse().ok();
    let card = cyborg.cards().await?.into_iter().find(|card| Some(card.deployable_id()) == id);
    let shown = || path.id.chars().take(80).collect::<String>();
    card.ok_or_else(|| Error::NotFound(format!("deployable {}", shown())))
}

pub(super) async fn show(
    State(cyborg): State<Arc<Cyborg>>,
    identity: Caller,
    Path(path): Path<DeployablePath>,
    headers: HeaderMap,
) -> Result<Json<Value>, Fault> {
    let card = find(&cyborg, &path).await?;
    let attributions = cyborg.attributions(std::slice::from_ref(&card)).await?;
    Ok(Json(wire(&card, &attributions, &identity, &headers)))
}

/// Returns 501: hotslot has no agent that loads bitstreams into FPGAs, as Cyborg has.
pub(super) async fn program(
    State(cyborg): State<Arc<Cyborg>>,
    Path(path): Path<DeployablePath>,
) -> Result<StatusCode, Fault> {
    let card = find(&cyborg, &path).await?;
    let message =
        format!("hotslot cannot program FPGAs; program {} on its host with the vendor's tools", card.name());
    Err(Fault::new(StatusCode::NOT_IMPLEMENTED, message))
}
