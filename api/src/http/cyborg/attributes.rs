//! `attributes`: attributes of deployables. Some are derived from the device; others are created by the administrator.

use std::sync::Arc;

use axum::Json;
use axum::body::Bytes;
use axum::extract::State;
use axum::extract::rejection::BytesRejection;
use axum::http::{HeaderMap, StatusCode};
use hotslot_driver::text;
use hotslot_model::cyborg::Attribute;
use hotslot_model::id::{AttributeId, DeviceId};
use hotslot_model::json;
use hotslot_service::cyborg::Cyborg;
use hotslot_service::cyborg::{Attribution, Card};
use hotslot_service::error::Error;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::{IntoParams, ToSchema};

use super::super::body::{Link, Pairs, Path, object, read};
use super::super::error::Fault;
use super::super::schema;
use super::{bad, links, time};

const CREATE: &str =
    r#"{"deployable_id": "<a deployable's uuid, or its number>", "key": "rack", "value": "r1"}"#;

/// The maximum length of a key and of a value in characters, as in Cyborg's database.
const LENGTH: usize = 255;

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Path)]
pub(super) struct AttributePath {
    /// The id of the attribute.
    id: String,
}

/// An attribute of a deployable.
#[derive(Serialize, ToSchema)]
#[schema(as = CyborgAttribute)]
pub(super) struct Shown {
    /// The id.
    #[schema(value_type = Uuid)]
    uuid: AttributeId,
    /// The number of the deployable.
    #[schema(value_type = i64, minimum = 1)]
    deployable_id: DeviceId,
    /// The key.
    key: String,
    /// The value.
    value: String,
    /// When it was created.
    #[schema(value_type = schema::CyborgTime)]
    created_at: String,
    /// Always null.
    #[schema(value_type = Option<schema::CyborgTime>)]
    updated_at: Option<String>,
    /// The link to it.
    links: [Link; 1],
}

/// A list of attributes.
#[derive(Serialize, ToSchema)]
#[schema(as = CyborgAttributeList)]
pub(super) struct List {
    /// The attributes.
    attributes: Vec<Shown>,
}

/// The filter of a list.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[allow(dead_code, reason = "the description of the API is made from it; `list` reads the keys")]
struct Filter {
    /// Only attributes of the deployable with this number or UUID.
    deployable_id: Option<String>,
    /// Only attributes with this key.
    key: Option<String>,
}

fn shown(attribute: &Attribute, headers: &HeaderMap) -> Shown {
    Shown {
        uuid: attribute.id,
        deployable_id: attribute.deployable,
        key: attribute.key.clone(),
        value: attribute.value.clone(),
        created_at: time(attribute.created_at),
        updated_at: None,
        links: links(headers, "attributes", attribute.id),
    }
}

/// Finds a card by the number of its deployable, which Cyborg expects, or by the UUID, which clients can look up.
fn deployable<'a>(cards: &'a [Card], named: &str) -> Option<&'a Card> {
    let is = |card: &&Card| {
        card.row.id.0.to_string() == named || card.deployable_id().to_string().eq_ignore_ascii_case(named)
    };
    cards.iter().find(is)
}

/// Lists the attributes of deployables: those that follow from the device, and those that administrators created.
#[utoipa::path(get, path = "/attributes", tag = "Cyborg attributes", params(Filter),
    responses((status = 200, description = "The attributes.", body = List)))]
pub(super) async fn list(
    State(cyborg): State<Arc<Cyborg>>,
    headers: HeaderMap,
    Pairs(pairs): Pairs,
) -> Result<Json<List>, Fault> {
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
    let attributes = attributions.iter().map(|attribution| shown(&attribution.attribute, &headers)).collect();
    Ok(Json(List { attributes }))
}

async fn find(cyborg: &Cyborg, path: &AttributePath) -> Result<Attribution, Error> {
    let id: Option<AttributeId> = path.id.parse().ok();
    let attributions = cyborg.attributions(&cyborg.cards().await?).await?;
    let shown = || path.id.chars().take(80).collect::<String>();
    let found = attributions.into_iter().find(|attribution| Some(attribution.attribute.id) == id);
    found.ok_or_else(|| Error::NotFound(format!("attribute {}", shown())))
}

/// Shows an attribute.
#[utoipa::path(get, path = "/attributes/{id}", tag = "Cyborg attributes", params(AttributePath),
    responses((status = 200, description = "The attribute.", body = Shown)))]
pub(super) async fn show(
    State(cyborg): State<Arc<Cyborg>>,
    Path(path): Path<AttributePath>,
    headers: HeaderMap,
) -> Result<Json<Shown>, Fault> {
    Ok(Json(shown(&find(&cyborg, &path).await?.attribute, &headers)))
}

/// A new attribute.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = NewCyborgAttribute)]
struct Body {
    /// The UUID of the deployable, or its number.
    #[schema(value_type = DeployableName)]
    deployable_id: Value,
    /// The key.
    #[schema(value_type = schema::AttributeKey)]
    key: String,
    /// The value.
    #[schema(value_type = schema::VisibleText)]
    value: String,
}

/// The UUID of a deployable, or its number.
#[derive(ToSchema)]
#[serde(untagged)]
#[allow(dead_code, reason = "the description of the API is made from it; `create` reads the value")]
enum DeployableName {
    /// The UUID.
    Uuid(String),
    /// The number.
    Number(u64),
}

/// Creates an attribute. The body may also be inside an `attribute`.
#[utoipa::path(post, path = "/attributes", tag = "Cyborg attributes",
    request_body(content = Body),
    responses(
        (status = 201, description = "The attribute.", body = Shown),
        (status = 404, description = "There is no such deployable."),
    ))]
pub(super) async fn create(
    State(cyborg): State<Arc<Cyborg>>,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<(StatusCode, Json<Shown>), Fault> {
    let mut body: Map<String, Value> = read(&headers, body, CREATE)?;
    // The OpenStack SDK wraps the body in an `attribute`.
    if let Some(attribute) = body.remove("attribute") {
        body = object(attribute, CREATE)?;
    }
    let body: Body = json::read(Value::Object(body)).map_err(|reason| bad(reason, CREATE))?;
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
    Ok((StatusCode::CREATED, Json(shown(&made, &headers))))
}

/// Removes an attribute that was created.
#[utoipa::path(delete, path = "/attributes/{id}", tag = "Cyborg attributes", params(AttributePath),
    responses((status = 204, description = "The attribute is removed.")))]
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
