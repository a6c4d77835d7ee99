//! `attributes`: attributes of deployables. Some are derived from the device; others are created by the administrator.

use std::sync::Arc;

use axum::Json;
use axum::body::Bytes;
use axum::extract::State;
use axum::extract::rejection::BytesRejection;
use axum::http::{HeaderMap, StatusCode};
use hotslot_driver::text;
use hotslot_model::cyborg::Attribute;
use hotslot_model::id::AttributeId;
use hotslot_service::cyborg::Cyborg;
use hotslot_service::cyborg::{Attribution, Card};
use hotslot_service::error::Error;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::super::body::{Pairs, Path, object, read};
use super::super::error::Fault;
use super::{bad, links, time};

const CREATE: &str =
    r#"{"deployable_id": "<a deployable's uuid, or its number>", "key": "rack", "value": "r1"}"#;

/// The maximum length of a key and of a value in characters, as in Cyborg's database.
const LENGTH: usize = 255;

#[derive(Deserialize)]
pub(super) struct AttributePath {
    id: String,
}

fn wire(attribute: &Attribute, headers: &HeaderMap) -> Value {
    json!({
        "uuid": attribute.id,
        "deployable_id": attribute.deployable,
        "key": attribute.key,
        "value": attribute.value,
        "created_at": time(attribute.created_at),
        "updated_at": null,
        "links": links(headers, "attributes", attribute.id),
    })
}

/// Finds a card by the number of its deployable, which Cyborg expects, or by the UUID, which clients can look up.
fn deployable<'a>(cards: &'a [Card], named: &str) -> Option<&'a Card> {
    let is = |card: &&Card| {
        card.row.id.0.to_string() == named || card.deployable_id().to_string().eq_ignore_ascii_case(named)
    };
    cards.iter().find(is)
}

pub(super) async fn list(
    State(cyborg): State<Arc<Cyborg>>,
    headers: HeaderMap,
    Pairs(pairs): Pairs,
) -> Result<Json<Value>, Fault> {
    let cards = cyborg.cards().await?;
    let mut attributions = cyborg.attributions(&cards).await?;
    for (key, value) in pairs {
        match key.as_str() {
            "deployable_id" => {
                let of = deployable(&cards, &value).map(|card| card.row.id);
                attributions.retain(|attribution| Some(attribution.attribute.deployable) == of);
            }
            "key" => attributions.retain(|attribution| attribution.attribute.key == value),
            _ => {
                let message = format!("unknown query key {key}; known: deployable_id, key");
                return Err(Error::Invalid(message).into());
            }
        }
    }
    let listed: Vec<_> =
        attributions.iter().map(|attribution| wire(&attribution.attribute, &headers)).collect();
    Ok(Json(json!({ "attributes": listed })))
}

async fn find(cyborg: &Cyborg, path: &AttributePath) -> Result<Attribution, Error> {
    let id: Option<AttributeId> = path.id.parse().ok();
    let attributions = cyborg.attributions(&cyborg.cards().await?).await?;
    let shown = || path.id.chars().take(80).collect::<String>();
    let found = attributions.into_iter().find(|attribution| Some(attribution.attribute.id) == id);
    found.ok_or_else(|| Error::NotFound(format!("attribute {}", shown())))
}

pub(super) async fn show(
    State(cyborg): State<Arc<Cyborg>>,
    Path(path): Path<AttributePath>,
    headers: HeaderMap,
) -> Result<Json<Value>, Fault> {
    Ok(Json(wire(&find(&cyborg, &path).await?.attribute, &headers)))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Body {
    deployable_id: Value,
    key: String,
    value: String,
}

pub(super) async fn create(
    State(cyborg): State<Arc<Cyborg>>,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<(StatusCode, Json<Value>), Fault> {
    let mut body: Map<String, Value> = read(&headers, body, CREATE)?;
    // The OpenStack SDK wraps the body in an `attribute`.
    if let Some(attribute) = body.remove("attribute") {
        body = object(attribute, CREATE)?;
    }
    let body = Body::deserialize(Value::Object(body)).map_err(|error| bad(error, CREATE))?;
    if body.key.is_empty() || body.key.chars().count() > LENGTH || body.value.chars().count() > LENGTH {
        let reason = format!("the key must have 1 to {LENGTH} characters, and the value at most {LENGTH}");
        return Err(bad(reason, CREATE).into());
    }
    text::visible(&body.key).map_err(|reason| bad(format!("key: {reason}"), CREATE))?;
    text::visible(&body.value).map_err(|reason| bad(format!("value: {reason}"), CREATE))?;
    let cards = cyborg.cards().await?;
    let named = match &body.deployable_id {
        Value::String(id) => id.clone(),
        Value::Number(number) if number.is_u64() => number.to_string(),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_) => {
            return Err(bad("deployable_id must be a uuid or a number", CREATE).into());
        }
    };
    let card = deployable(&cards, &named).ok_or_else(|| {
        let shown: String = named.chars().take(80).collect();
        Error::NotFound(format!("deployable {shown}"))
    })?;
    if card.derived().iter().any(|attribution| attribution.attribute.key == body.key) {
        let message = format!("{} is derived from the device; change its device_spec", body.key);
        return Err(Error::Conflict(message).into());
    }
    let made = cyborg.create_attribute(card.row.id, &body.key, &body.value).await?;
    Ok((StatusCode::CREATED, Json(wire(&made, &headers))))
}

pub(super) async fn delete(
    State(cyborg): State<Arc<Cyborg>>,
    Path(path): Path<AttributePath>,
) -> Result<StatusCode, Fault> {
    let found = find(&cyborg, &path).await?;
    if found.derived {
        let message = format!("{} is derived from the device; change its device_spec", found.attribute.key);
        return Err(Error::Conflict(message).into());
    }
    cyborg.delete_attribute(found.attribute.id).await?;
    Ok(StatusCode::NO_CONTENT)
}
