//! `events`: what happened, from an id on. A client that keeps the last id it read misses nothing and reads nothing
//! twice.

use std::sync::Arc;

use axum::Json;
use axum::extract::{OriginalUri, State};
use axum::http::HeaderMap;
use axum::response::{IntoResponse as _, Response};
use hotslot_driver::pci::PciAddress;
use serde_json::{Value, json};

use super::body::{Page, Pairs};
use super::error::Fault;
use crate::error::Error;
use crate::id::{DeviceId, EventId};
use crate::service::Service;
use crate::store::{Event, EventFilter, EventKind};

/// An event on the wire. What does not concern it is null.
pub(crate) fn wire(event: &Event) -> Value {
    let what = &event.what;
    json!({
        "id": event.id,
        "time": jiff::Timestamp::from_millisecond(event.time).map(|time| format!("{time:.3}")).ok(),
        "who": event.who,
        "kind": what.kind,
        "host": event.host,
        "server_id": what.server,
        "device_id": what.device,
        "address": what.address.map(|address| address.to_string()),
        "attachment_id": what.attachment,
        "rule_id": what.rule,
        "from": what.from,
        "to": what.to,
        "reason": what.reason,
    })
}

/// Which events a query asks for.
struct Wanted {
    since: EventId,
    filter: EventFilter,
    page: Page,
}

impl Wanted {
    async fn read(service: &Service, pairs: Pairs) -> Result<Self, Error> {
        fn value<T: std::str::FromStr<Err: std::fmt::Display>>(key: &str, text: &str) -> Result<T, Error> {
            text.parse().map_err(|error| Error::Invalid(format!("query key {key}: {error}")))
        }
        let (page, pairs) = Page::after("since", pairs)?;
        let since = page.marker.as_deref().map_or(Ok(EventId(0)), since)?;
        let mut filter = EventFilter::default();
        for (key, text) in pairs {
            match key.as_str() {
                "host" => filter.host = Some(text),
                "server" => filter.server = Some(value(&key, &text)?),
                "attachment" => filter.attachment = Some(value(&key, &text)?),
                "device" => match text.parse::<PciAddress>() {
                    Ok(address) => filter.address = Some(address),
                    Err(_) => filter.device = Some(device(service, &text).await?),
                },
                "kind" => {
                    EventKind::known(&text)
                        .map_err(|reason| Error::Invalid(format!("query key kind: {reason}")))?;
                    filter.kind = Some(text);
                }
                _ => {
                    return Err(Error::Invalid(format!(
                        "unknown query key {key}; known: since, limit, host, server, device, attachment, kind"
                    )));
                }
            }
        }
        Ok(Self { since, filter, page })
    }
}

/// An event's id.
fn since(text: &str) -> Result<EventId, Error> {
    let id = text.parse().ok().filter(|id| *id >= 0).map(EventId);
    id.ok_or_else(|| Error::Invalid(format!("since {text} is no event's id; write 0 for all that are kept")))
}

/// A device by its id or UUID, one that is gone too.
async fn device(service: &Service, text: &str) -> Result<DeviceId, Error> {
    service.store.marker(text).await?.ok_or_else(|| {
        Error::Invalid(format!(
            "query key device: {text} is no id, uuid or address of a PCI device; GET os-pci lists them"
        ))
    })
}

pub(super) async fn list(
    State(service): State<Arc<Service>>,
    uri: OriginalUri,
    headers: HeaderMap,
    pairs: Pairs,
) -> Result<Response, Fault> {
    let Wanted { since, filter, page } = Wanted::read(&service, pairs).await?;
    let events = service.store.events(since, &filter, page.limit + 1).await?;
    let (events, links) = page.cut(events, &uri, &headers, |event: &Event| event.id.to_string());
    let mut body = json!({ "events": events.iter().map(wire).collect::<Vec<_>>() });
    if let Some(links) = links {
        body["events_links"] = links;
    }
    Ok(Json(body).into_response())
}
