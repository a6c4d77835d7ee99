//! `events`: what happened, from an id on: a page of it, or followed for as long as the client likes (Server-Sent
//! Events). A client that keeps the last id it read misses nothing and reads nothing twice.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::{OriginalUri, State};
use axum::http::{HeaderMap, header};
use axum::response::sse::{self, Sse};
use axum::response::{IntoResponse as _, Response};
use futures_util::stream;
use hotslot_driver::pci::PciAddress;
use serde_json::{Value, json};
use tokio::sync::watch;

use super::body::{Page, Pairs};
use super::error::Fault;
use crate::error::Error;
use crate::id::{DeviceId, EventId};
use crate::service::Service;
use crate::store::{Event, EventFilter, EventKind};

/// How many events a follower holds in memory at most.
const AHEAD: usize = 100;

/// How long a follower hears nothing at most.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

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
    follow: bool,
}

impl Wanted {
    async fn read(service: &Service, headers: &HeaderMap, pairs: Pairs) -> Result<Self, Error> {
        fn value<T: std::str::FromStr<Err: std::fmt::Display>>(key: &str, text: &str) -> Result<T, Error> {
            text.parse().map_err(|error| {
                Error::Invalid(format!("query key {key}: {text} is no id, write the whole UUID: {error}"))
            })
        }
        let (page, pairs) = Page::after("since", pairs)?;
        let accept = headers.get(header::ACCEPT).and_then(|accept| accept.to_str().ok());
        let mut follow = accept.is_some_and(|accept| accept.contains("text/event-stream"));
        let (mut filter, mut last) = (EventFilter::default(), None);
        for (key, text) in pairs {
            match key.as_str() {
                "last" => {
                    last = Some(text.parse::<u16>().map_err(|_| {
                        Error::Invalid(format!("last {text} is no number of events; write 0 to {}", u16::MAX))
                    })?);
                }
                "follow" => {
                    follow = match text.as_str() {
                        "" | "true" => true,
                        "false" => false,
                        other => {
                            return Err(Error::Invalid(format!("follow {other} is neither true nor false")));
                        }
                    };
                }
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
                        "unknown query key {key}; known: since, last, limit, follow, host, server, device, \
                         attachment, kind"
                    )));
                }
            }
        }
        // A follower that comes back asks the same again, and says where it was.
        let resumed = headers.get("last-event-id").filter(|_| follow);
        let resumed =
            resumed.map(|id| since("Last-Event-ID", id.to_str().unwrap_or_default())).transpose()?;
        let since = match (resumed, &page.marker, last) {
            (Some(id), _, _) => id,
            // The link to a next page has both.
            (None, Some(text), _) => since("since", text)?,
            (None, None, Some(count)) => service.store.before_newest(&filter, count.into()).await?,
            (None, None, None) => EventId(0),
        };
        Ok(Self { since, filter, page, follow })
    }
}

/// An event's id.
fn since(key: &str, text: &str) -> Result<EventId, Error> {
    let id = text.parse().ok().filter(|id| *id >= 0).map(EventId);
    id.ok_or_else(|| Error::Invalid(format!("{key} {text} is no event's id; write 0 for all that are kept")))
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
    let Wanted { since, filter, page, follow } = Wanted::read(&service, &headers, pairs).await?;
    if follow {
        service.store.event_bounds().await?.reach(since)?;
        let follower = Follower::new(service, since, filter);
        let stream = stream::unfold(follower, async |mut follower| {
            let message = follower.next().await?;
            Some((Ok::<_, Infallible>(message), follower))
        });
        return Ok(Sse::new(stream).into_response());
    }
    let events = service.store.events(since, &filter, page.limit + 1).await?;
    let (events, links) = page.cut(events, &uri, &headers, |event: &Event| event.id.to_string());
    let mut body = json!({ "events": events.iter().map(wire).collect::<Vec<_>>() });
    if let Some(links) = links {
        body["events_links"] = links;
    }
    Ok(Json(body).into_response())
}

/// A client that follows what happens. It reads the table at its own pace: what it has not asked for yet waits there.
struct Follower {
    service: Arc<Service>,
    filter: EventFilter,
    /// Up to where the table was read.
    read: EventId,
    ready: VecDeque<Event>,
    /// Whether it was told where it begins.
    greeted: bool,
    committed: watch::Receiver<EventId>,
    stopping: watch::Receiver<bool>,
}

impl Follower {
    fn new(service: Arc<Service>, since: EventId, filter: EventFilter) -> Self {
        let (committed, stopping) = (service.store.event_ids(), service.stopping());
        let (ready, greeted) = Default::default();
        Self { service, filter, read: since, ready, greeted, committed, stopping }
    }

    /// The next message; none when the stream ends. The client then comes back with the last id that it heard.
    async fn next(&mut self) -> Option<sse::Event> {
        if !std::mem::replace(&mut self.greeted, true) {
            return Some(self.position());
        }
        loop {
            if *self.stopping.borrow() {
                return None;
            }
            if let Some(event) = self.ready.pop_front() {
                let message = sse::Event::default().id(event.id.to_string()).event(event.what.kind.as_str());
                return Some(message.data(wire(&event).to_string()));
            }
            let committed = *self.committed.borrow_and_update();
            match self.service.store.events(self.read, &self.filter, AHEAD).await {
                Ok(events) => {
                    let last = events.last().map(|event| event.id);
                    // Not a full page: nothing that was committed before it was read is left.
                    let all = (events.len() < AHEAD).then_some(committed);
                    self.read = last.max(all).map_or(self.read, |read| read.max(self.read));
                    self.ready = events.into();
                }
                Err(error) => {
                    tracing::warn!(%error, "a client that follows the events is sent away");
                    return None;
                }
            }
            if !self.ready.is_empty() {
                continue;
            }
            tokio::select! {
                changed = self.committed.changed() => changed.ok()?,
                changed = self.stopping.changed() => changed.ok()?,
                () = tokio::time::sleep(KEEP_ALIVE) => return Some(self.position()),
            }
        }
    }

    /// A comment with where the client is: it comes back there, though nothing that it asked for happened.
    fn position(&self) -> sse::Event {
        sse::Event::default().comment("").id(self.read.to_string())
    }
}
