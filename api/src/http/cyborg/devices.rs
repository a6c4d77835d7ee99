//! `devices`: the cards, and whether their devices are assignable.

use std::sync::Arc;

use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::{Extension, Json};
use hotslot_driver::device_type::names;
use hotslot_model::identity::Caller;
use hotslot_service::cyborg::Card;
use hotslot_service::cyborg::Cyborg;
use hotslot_service::error::Error;
use serde::{Deserialize, Serialize};
use serde_json::json;
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use super::super::body::{Link, Pairs, Path};
use super::super::error::Fault;
use super::super::schema;
use super::{FilterQuery, Microversion, filters, links, time};

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Path)]
pub(super) struct DevicePath {
    /// The UUID of the card.
    id: String,
}

impl DevicePath {
    fn id(&self) -> Result<Uuid, Error> {
        let shown = || self.id.chars().take(80).collect::<String>();
        self.id.parse().map_err(|_| Error::NotFound(format!("device {}", shown())))
    }
}

/// A card.
#[derive(Serialize, ToSchema)]
#[schema(as = CyborgDevice)]
pub(super) struct Shown {
    /// The UUID.
    uuid: Uuid,
    /// The type, such as `GPU`.
    #[serde(rename = "type")]
    kind: String,
    /// The vendor id.
    #[schema(value_type = schema::PciId)]
    vendor: String,
    /// The name of the product, or its id.
    model: String,
    /// The name of the host; null for callers who may not see hosts.
    hostname: Option<String>,
    /// A JSON document inside a string, with the keys `product_id`, `controller` and `address`.
    std_board_info: String,
    /// A JSON document inside a string, with the key `vendor_name`.
    vendor_board_info: String,
    /// When the card was first seen.
    #[schema(value_type = schema::CyborgTime)]
    created_at: String,
    /// When its record last changed.
    #[schema(value_type = Option<schema::CyborgTime>)]
    updated_at: Option<String>,
    /// The link to it.
    links: [Link; 1],
    /// `enabled`, or `maintaining` for a card that was disabled. From microversion 2.3 on.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = String)]
    status: Option<&'static str>,
}

/// A list of cards.
#[derive(Serialize, ToSchema)]
#[schema(as = CyborgDeviceList)]
pub(super) struct List {
    /// The cards.
    devices: Vec<Shown>,
}

/// The filter of a list.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[allow(dead_code, reason = "the description of the API is made from it; `filters` reads the keys")]
struct DeviceFilter {
    /// Only cards of this type.
    #[param(rename = "type")]
    kind: Option<String>,
    /// Only cards of this vendor.
    vendor: Option<String>,
    /// Only cards of the host with this name.
    hostname: Option<String>,
}

/// Managers of a project see which kinds of cards there are, but neither hosts nor addresses.
fn shown(card: &Card, version: Microversion, identity: &Caller, headers: &HeaderMap) -> Shown {
    let sees_host = identity.sees_host_details();
    let function = card.function.as_ref();
    let facts = &card.row.facts;
    let (vendor, product) = function
        .map_or((facts.vendor_id, facts.product_id), |function| (function.vendor_id, function.product_id));
    let class = function.and_then(|function| function.class).map(|class| class.description());
    let address = sees_host.then_some(card.address);
    let board = json!({ "product_id": product.to_string(), "controller": class, "address": address });
    let names = function.map(names);
    let maker = json!({ "vendor_name": names.and_then(|names| names.vendor) });
    let id = card.device_id();
    Shown {
        uuid: id,
        kind: card.type_word().to_string(),
        vendor: vendor.to_string(),
        model: names.and_then(|names| names.product).map_or_else(|| product.to_string(), str::to_owned),
        hostname: sees_host.then(|| card.host.name.clone()),
        std_board_info: board.to_string(),
        vendor_board_info: maker.to_string(),
        created_at: time(card.row.created_at),
        updated_at: card.row.updated_at.map(time),
        links: links(headers, "devices", id),
        status: (version >= Microversion::DEVICE_STATUS).then_some(if card.disabled {
            "maintaining"
        } else {
            "enabled"
        }),
    }
}

/// Lists the cards. `filters.field` can also be `limit` or `marker`.
#[utoipa::path(get, path = "/devices", tag = "Cyborg devices", params(DeviceFilter, FilterQuery),
    responses((status = 200, description = "The cards.", body = List)))]
pub(super) async fn list(
    State(cyborg): State<Arc<Cyborg>>,
    Extension(version): Extension<Microversion>,
    identity: Caller,
    headers: HeaderMap,
    pairs: Pairs,
) -> Result<Json<List>, Fault> {
    let cards = cyborg.cards().await?;
    let mut cards: Vec<_> = cards.iter().map(|card| shown(card, version, &identity, &headers)).collect();
    let mut limit = None;
    for (key, value) in filters(pairs, &["type", "vendor", "hostname"], &["limit", "marker"])? {
        match key.as_str() {
            "limit" => {
                let wrong = |_| Error::Invalid(format!("invalid limit {value}: expected a number from 0 up"));
                limit = Some(value.parse().map_err(wrong)?);
            }
            "marker" => {
                let last = cards.iter().position(|card| card.uuid.to_string() == value.to_ascii_lowercase());
                let last = last.ok_or_else(|| {
                    Error::Invalid(format!("invalid marker {value}: no device has this uuid"))
                })?;
                cards.drain(..=last);
            }
            // Cyborg's fake driver writes vendor ids with the prefix 0x, so clients may filter by such an id.
            key => cards.retain(|card| {
                let has = match key {
                    "type" => card.kind.as_str(),
                    "vendor" => card.vendor.as_str(),
                    _ => card.hostname.as_deref().unwrap_or_default(),
                };
                has.eq_ignore_ascii_case(&value)
                    || (key == "vendor"
                        && value.strip_prefix("0x").is_some_and(|id| has.eq_ignore_ascii_case(id)))
            }),
        }
    }
    cards.truncate(limit.unwrap_or(usize::MAX));
    Ok(Json(List { devices: cards }))
}

/// Shows a card.
#[utoipa::path(get, path = "/devices/{id}", tag = "Cyborg devices", params(DevicePath),
    responses((status = 200, description = "The card.", body = Shown)))]
pub(super) async fn show(
    State(cyborg): State<Arc<Cyborg>>,
    Extension(version): Extension<Microversion>,
    identity: Caller,
    Path(path): Path<DevicePath>,
    headers: HeaderMap,
) -> Result<Json<Shown>, Fault> {
    let id = path.id()?;
    let cards = cyborg.cards().await?;
    let card = cards.iter().find(|card| card.device_id() == id);
    let card = card.ok_or_else(|| Error::NotFound(format!("device {id}")))?;
    Ok(Json(shown(card, version, &identity, &headers)))
}

/// Disables a card, so that its devices are not assigned any more.
#[utoipa::path(post, path = "/devices/{id}/disable", tag = "Cyborg devices", params(DevicePath),
    responses((status = 204, description = "The card is disabled.")))]
pub(super) async fn disable(
    State(cyborg): State<Arc<Cyborg>>,
    Path(path): Path<DevicePath>,
) -> Result<StatusCode, Fault> {
    cyborg.disable_card(path.id()?, true).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Enables a card again.
#[utoipa::path(post, path = "/devices/{id}/enable", tag = "Cyborg devices", params(DevicePath),
    responses((status = 204, description = "The card is enabled.")))]
pub(super) async fn enable(
    State(cyborg): State<Arc<Cyborg>>,
    Path(path): Path<DevicePath>,
) -> Result<StatusCode, Fault> {
    cyborg.disable_card(path.id()?, false).await?;
    Ok(StatusCode::NO_CONTENT)
}
