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
use serde::Deserialize;
use serde_json::{Value, json};
use uuid::Uuid;

use super::super::body::{Pairs, Path};
use super::super::error::Fault;
use super::{Microversion, filters, links, time};

#[derive(Deserialize)]
pub(super) struct DevicePath {
    id: String,
}

impl DevicePath {
    fn id(&self) -> Result<Uuid, Error> {
        let shown = || self.id.chars().take(80).collect::<String>();
        self.id.parse().map_err(|_| Error::NotFound(format!("device {}", shown())))
    }
}

/// Managers of a project see which kinds of cards there are, but neither hosts nor addresses.
fn wire(card: &Card, version: Microversion, identity: &Caller, headers: &HeaderMap) -> Value {
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
    let mut shown = json!({
        "uuid": id,
        "type": card.type_word(),
        "vendor": vendor.to_string(),
        "model": names.and_then(|names| names.product).map_or_else(|| product.to_string(), str::to_owned),
        "hostname": sees_host.then_some(&card.host.name),
        "std_board_info": board.to_string(),
        "vendor_board_info": maker.to_string(),
        "created_at": time(card.row.created_at),
        "updated_at": card.row.updated_at.map(time),
        "links": links(headers, "devices", id),
    });
    if version >= Microversion::DEVICE_STATUS {
        shown["status"] = json!(if card.disabled { "maintaining" } else { "enabled" });
    }
    shown
}

pub(super) async fn list(
    State(cyborg): State<Arc<Cyborg>>,
    Extension(version): Extension<Microversion>,
    identity: Caller,
    headers: HeaderMap,
    pairs: Pairs,
) -> Result<Json<Value>, Fault> {
    let cards = cyborg.cards().await?;
    let mut cards: Vec<_> = cards.iter().map(|card| wire(card, version, &identity, &headers)).collect();
    let mut limit = None;
    for (key, value) in filters(pairs, &["type", "vendor", "hostname"], &["limit", "marker"])? {
        match key.as_str() {
            "limit" => {
                let wrong = |_| Error::Invalid(format!("invalid limit {value}: expected a number from 0 up"));
                limit = Some(value.parse().map_err(wrong)?);
            }
            "marker" => {
                let last = cards.iter().position(|card| card["uuid"] == value.to_ascii_lowercase());
                let last = last.ok_or_else(|| {
                    Error::Invalid(format!("invalid marker {value}: no device has this uuid"))
                })?;
                cards.drain(..=last);
            }
            // Cyborg's fake driver writes vendor ids with the prefix 0x, so clients may filter by such an id.
            key => cards.retain(|card| {
                let has = card[key].as_str().unwrap_or_default();
                has.eq_ignore_ascii_case(&value)
                    || (key == "vendor"
                        && value.strip_prefix("0x").is_some_and(|id| has.eq_ignore_ascii_case(id)))
            }),
        }
    }
    cards.truncate(limit.unwrap_or(usize::MAX));
    Ok(Json(json!({ "devices": cards })))
}

pub(super) async fn show(
    State(cyborg): State<Arc<Cyborg>>,
    Extension(version): Extension<Microversion>,
    identity: Caller,
    Path(path): Path<DevicePath>,
    headers: HeaderMap,
) -> Result<Json<Value>, Fault> {
    let id = path.id()?;
    let cards = cyborg.cards().await?;
    let card = cards.iter().find(|card| card.device_id() == id);
    let card = card.ok_or_else(|| Error::NotFound(format!("device {id}")))?;
    Ok(Json(wire(card, version, &identity, &headers)))
}

pub(super) async fn disable(
    State(cyborg): State<Arc<Cyborg>>,
    Path(path): Path<DevicePath>,
) -> Result<StatusCode, Fault> {
    cyborg.disable_card(path.id()?, true).await?;
    Ok(StatusCode::NO_CONTENT)
}

pub(super) async fn enable(
    State(cyborg): State<Arc<Cyborg>>,
    Path(path): Path<DevicePath>,
) -> Result<StatusCode, Fault> {
    cyborg.disable_card(path.id()?, false).await?;
    Ok(StatusCode::NO_CONTENT)
}
