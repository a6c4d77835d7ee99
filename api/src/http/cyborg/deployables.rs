//! `deployables`: the requestable part of each card. Each deployable is one resource provider.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use hotslot_model::id::DeviceId;
use hotslot_model::identity::Caller;
use hotslot_service::cyborg::Cyborg;
use hotslot_service::cyborg::{Attribution, Card};
use hotslot_service::error::Error;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use super::super::body::{Link, Pairs, Path};
use super::super::error::Fault;
use super::super::schema;
use super::{FilterQuery, filters, links, time};

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Path)]
pub(super) struct DeployablePath {
    /// The UUID of the deployable.
    id: String,
}

/// A deployable: the requestable part of a card.
#[derive(Serialize, ToSchema)]
#[schema(as = Deployable)]
pub(super) struct Shown {
    /// The UUID.
    uuid: Uuid,
    /// The name, which is made of the host and the address; null for callers who may not see hosts.
    name: Option<String>,
    /// Always null.
    parent_id: Option<i64>,
    /// Always null.
    root_id: Option<i64>,
    /// The number of devices that requests can get of it.
    num_accelerators: usize,
    /// The number of the card.
    #[schema(value_type = i64, minimum = 1)]
    device_id: DeviceId,
    /// The UUID of its resource provider.
    rp_uuid: Uuid,
    /// Its attributes: a JSON document inside a string, a list of objects with one key each.
    attributes_list: String,
    /// Always `hotslot`.
    driver_name: &'static str,
    /// Always null.
    bitstream_id: Option<String>,
    /// When the card was first seen.
    #[schema(value_type = schema::CyborgTime)]
    created_at: String,
    /// When its record last changed.
    #[schema(value_type = Option<schema::CyborgTime>)]
    updated_at: Option<String>,
    /// The link to it.
    links: [Link; 1],
}

/// A list of deployables.
#[derive(Serialize, ToSchema)]
#[schema(as = DeployableList)]
pub(super) struct List {
    /// The deployables.
    deployables: Vec<Shown>,
}

fn shown(card: &Card, attributions: &[Attribution], identity: &Caller, headers: &HeaderMap) -> Shown {
    let of_it = attributions
        .iter()
        .map(|attribution| &attribution.attribute)
        .filter(|attribution| attribution.deployable == card.row.id);
    let attributes: Vec<_> = of_it
        .map(|attribution| {
            Value::Object(Map::from_iter([(attribution.key.clone(), json!(attribution.value))]))
        })
        .collect();
    Shown {
        uuid: card.deployable_id(),
        name: identity.sees_host_details().then(|| card.name()),
        parent_id: None,
        root_id: None,
        num_accelerators: card.handles.len(),
        device_id: card.row.id,
        rp_uuid: card.rp_uuid(),
        attributes_list: Value::Array(attributes).to_string(),
        driver_name: "hotslot",
        bitstream_id: None,
        created_at: time(card.row.created_at),
        updated_at: card.row.updated_at.map(time),
        links: links(headers, "deployables", card.deployable_id()),
    }
}

/// Lists the deployables. `filters.field` can be `limit`, `name`, `device_id` or `rp_uuid`.
#[utoipa::path(get, path = "/deployables", tag = "Cyborg deployables", params(FilterQuery),
    responses((status = 200, description = "The deployables.", body = List)))]
pub(super) async fn list(
    State(cyborg): State<Arc<Cyborg>>,
    identity: Caller,
    headers: HeaderMap,
    pairs: Pairs,
) -> Result<Json<List>, Fault> {
    let cards = cyborg.cards().await?;
    let attributions = cyborg.attributions(&cards).await?;
    let mut listed: Vec<_> =
        cards.iter().map(|card| shown(card, &attributions, &identity, &headers)).collect();
    let mut limit = usize::MAX;
    for (key, value) in filters(pairs, &[], &["limit", "name", "device_id", "rp_uuid"])? {
        if key == "limit" {
            let wrong = |_| Error::Invalid(format!("invalid limit {value}: expected a number from 0 up"));
            limit = value.parse().map_err(wrong)?;
        } else {
            listed.retain(|deployable| {
                let has = match key.as_str() {
                    "name" => deployable.name.clone().unwrap_or_else(|| "null".to_owned()),
                    "device_id" => deployable.device_id.0.to_string(),
                    _ => deployable.rp_uuid.to_string(),
                };
                has.eq_ignore_ascii_case(&value)
            });
        }
    }
    listed.truncate(limit);
    Ok(Json(List { deployables: listed }))
}

/// Returns the card of a deployable.
async fn find(cyborg: &Cyborg, path: &DeployablePath) -> Result<Card, Error> {
    let id: Option<Uuid> = path.id.parse().ok();
    let card = cyborg.cards().await?.into_iter().find(|card| Some(card.deployable_id()) == id);
    let shown = || path.id.chars().take(80).collect::<String>();
    card.ok_or_else(|| Error::NotFound(format!("deployable {}", shown())))
}

/// Shows a deployable.
#[utoipa::path(get, path = "/deployables/{id}", tag = "Cyborg deployables", params(DeployablePath),
    responses((status = 200, description = "The deployable.", body = Shown)))]
pub(super) async fn show(
    State(cyborg): State<Arc<Cyborg>>,
    identity: Caller,
    Path(path): Path<DeployablePath>,
    headers: HeaderMap,
) -> Result<Json<Shown>, Fault> {
    let card = find(&cyborg, &path).await?;
    let attributions = cyborg.attributions(std::slice::from_ref(&card)).await?;
    Ok(Json(shown(&card, &attributions, &identity, &headers)))
}

/// Returns 501: hotslot has no agent that loads bitstreams into FPGAs, as Cyborg has.
#[utoipa::path(patch, path = "/deployables/{id}/program", tag = "Cyborg deployables", params(DeployablePath),
    responses((status = 501, description = "hotslot cannot program FPGAs.")))]
pub(super) async fn program(
    State(cyborg): State<Arc<Cyborg>>,
    Path(path): Path<DeployablePath>,
) -> Result<StatusCode, Fault> {
    let card = find(&cyborg, &path).await?;
    let message =
        format!("hotslot cannot program FPGAs; program {} on its host with the vendor's tools", card.name());
    Err(Fault::new(StatusCode::NOT_IMPLEMENTED, message))
}
