//! `events`: the recorded events after an id, as pages or as a stream (Server-Sent Events). A client that remembers the
//! last id that it read misses no event and reads none twice.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::body::{Body, Bytes};
use axum::extract::{OriginalUri, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use futures_util::stream;
use hotslot_driver::pci::PciAddress;
use hotslot_driver::text::escape;
use hotslot_model::event::{Event, EventFilter, EventKind};
use hotslot_model::id::{DeviceId, EventId};
use hotslot_model::identity::Caller;
use hotslot_service::error::Error;
use hotslot_service::events::wire;
use hotslot_service::feed::{Feed, PAGE, Place, Published};
use hotslot_service::lifecycle::Lifecycle;
use hotslot_service::records::Records;
use serde::Serialize;
use serde_json::Value;
use tokio::sync::{broadcast, watch};
use tokio::time::Instant;
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use super::body::{Link, Page, Pairs};
use super::error::Fault;
use super::schema;
use super::standing::{LaterIdentity, Standing};

/// The maximum time between two messages to a follower.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// The events that a query requests.
struct Wanted {
    since: EventId,
    filter: EventFilter,
    page: Page,
    follow: bool,
}

impl Wanted {
    async fn read(records: &Records, headers: &HeaderMap, pairs: Pairs) -> Result<Self, Error> {
        fn value<T: std::str::FromStr>(key: &str, text: &str) -> Result<T, Error> {
            text.parse().map_err(|_| {
                Error::Invalid(format!(
                    "query key {key}: invalid id {text}: expected a UUID; write all of it"
                ))
            })
        }
        let (page, pairs) = Page::after("since", pairs)?;
        let accept = headers.get(header::ACCEPT).and_then(|accept| accept.to_str().ok());
        let mut follow = accept.is_some_and(|accept| accept.contains("text/event-stream"));
        let (mut filter, mut last) = (EventFilter::default(), None);
        for (key, text) in pairs {
            match key.as_str() {
                "last" => last = Some(count(&text)?),
                "follow" => follow = follows(&text)?,
                "host" => filter.host = Some(text),
                "server" => filter.server = Some(value(&key, &text)?),
                "user" => filter.user = Some(escape(&text).into_owned()),
                "user_id" => filter.user_id = Some(escape(&text).into_owned()),
                "project" => filter.project = Some(escape(&text).into_owned()),
                "attachment" => filter.attachment = Some(value(&key, &text)?),
                "device" => match text.parse::<PciAddress>() {
                    Ok(address) => filter.address = Some(address),
                    Err(_) => filter.device = Some(device(records, &text).await?),
                },
                "kind" => {
                    EventKind::known(&text)
                        .map_err(|reason| Error::Invalid(format!("query key kind: {reason}")))?;
                    filter.kind = Some(text);
                }
                _ => {
                    return Err(Error::Invalid(format!(
                        "unknown query key {key}; known: since, last, limit, follow, host, server, device, \
                         attachment, kind, user, user_id, project"
                    )));
                }
            }
        }
        // A follower that reconnects repeats its query, and sends the last id that it read in `Last-Event-ID`.
        let resumed = headers.get("last-event-id").filter(|_| follow);
        let since = match (resumed, &page.marker, last) {
            (Some(id), _, _) => since("Last-Event-ID", id.to_str().unwrap_or_default())?,
            // The link to the next page has both `since` and `last`; `since` counts.
            (None, Some(text), _) => since("since", text)?,
            (None, None, Some(count)) => records.before_newest(&filter, count.into()).await?,
            (None, None, None) => EventId(0),
        };
        Ok(Self { since, filter, page, follow })
    }
}

/// Parses `?last=10`, which requests the newest events.
fn count(text: &str) -> Result<u16, Error> {
    text.parse()
        .map_err(|_| Error::Invalid(format!("invalid last {text}: expected a number from 0 to {}", u16::MAX)))
}

/// Parses `?follow` and `?follow=true`, which request a stream.
fn follows(text: &str) -> Result<bool, Error> {
    match text {
        "" | "true" => Ok(true),
        "false" => Ok(false),
        other => Err(Error::Invalid(format!("invalid follow {other}: expected true or false"))),
    }
}

/// Parses an event id. `key` is the query key or header that it comes from.
fn since(key: &str, text: &str) -> Result<EventId, Error> {
    let id = text.parse().ok().filter(|id| *id >= 0).map(EventId);
    id.ok_or_else(|| {
        Error::Invalid(format!("invalid {key} {text}: expected an event id, or 0 for all recorded events"))
    })
}

/// Returns the id of the device with this id or UUID, including devices that are gone.
async fn device(records: &Records, text: &str) -> Result<DeviceId, Error> {
    records.marker(text).await?.ok_or_else(|| {
        Error::Invalid(format!(
            "query key device: no PCI device has the id, uuid or address {text}; GET os-pci lists them"
        ))
    })
}

/// The query of the events.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[allow(dead_code, reason = "the description of the API is made from it; `Wanted` reads the keys")]
struct EventQuery {
    /// The number of events of a page. 0 and numbers above 1000 mean 1000.
    limit: Option<u64>,
    /// The id of the last event that the client has read; 0, which is the default, for all recorded events.
    #[param(minimum = 0)]
    since: Option<i64>,
    /// Begins with so many of the newest events, when `since` is not given.
    last: Option<u16>,
    /// Whether to follow the events as a stream. `Accept: text/event-stream` requests it too.
    follow: Option<bool>,
    /// Only events of the host with this name.
    host: Option<String>,
    /// Only events of this server.
    server: Option<Uuid>,
    /// Only events of the device with this address, id or UUID.
    device: Option<String>,
    /// Only events of this assignment.
    attachment: Option<Uuid>,
    /// Only events of this kind, or of all kinds of a noun, such as `device`.
    kind: Option<String>,
    /// Only events on behalf of the user with this name.
    user: Option<String>,
    /// Only events on behalf of the user with this id.
    user_id: Option<String>,
    /// Only events on behalf of callers with a role in this project.
    project: Option<String>,
}

/// An event: a change of a record.
#[derive(ToSchema)]
#[schema(as = Event)]
#[allow(
    dead_code,
    reason = "the description of the API is made from it; `wire` of the service writes it, for webhooks too"
)]
struct Described {
    /// The id. Ids increase by one in the order of the changes.
    #[schema(minimum = 1)]
    id: i64,
    /// When the event was written, with milliseconds.
    #[schema(value_type = Option<schema::Time>)]
    time: Option<String>,
    /// On whose behalf: `request` and its id, or the task of the service.
    who: String,
    /// The name of the user.
    user: Option<String>,
    /// The id of the user.
    user_id: Option<String>,
    /// The project in which the user acted.
    project: Option<String>,
    /// The roles that the user had.
    roles: Vec<String>,
    /// How the caller was identified, and the connection.
    via: Option<String>,
    /// The id of the request that another service made on behalf of its caller.
    global_request_id: Option<String>,
    /// What changed.
    #[schema(value_type = schema::EventKindName)]
    kind: String,
    /// The name of the host.
    host: Option<String>,
    /// The server.
    server_id: Option<Uuid>,
    /// The number of the device.
    device_id: Option<i64>,
    /// The address of the device at that time.
    #[schema(value_type = Option<schema::PciAddress>)]
    address: Option<String>,
    /// The assignment.
    attachment_id: Option<Uuid>,
    /// The rule.
    rule_id: Option<Uuid>,
    /// The record of another kind, such as an accelerator.
    resource_id: Option<Uuid>,
    /// The value before: any JSON value, by the kind; null for none.
    from: Option<Value>,
    /// The value after: any JSON value, by the kind; null for none.
    to: Option<Value>,
    /// The reason, when one is known.
    reason: Option<String>,
}

/// A page of the events.
#[derive(Serialize, ToSchema)]
pub(super) struct EventList {
    /// The events, in the order of their ids.
    #[schema(value_type = Vec<Described>)]
    events: Vec<Value>,
    /// The link to the next page; missing on the last page.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Vec<Link>)]
    events_links: Option<Vec<Link>>,
}

/// Lists recorded events as a page, or follows them as a stream. An extension of hotslot.
///
/// A client that remembers the last id that it read misses no event and reads none twice. Each message of the stream has
/// the id and the kind of an event, and the event as its data. A client that connects again sends `Last-Event-ID`.
#[utoipa::path(get, path = "/events", tag = "Events", params(EventQuery),
    responses(
        (status = 200, description = "A page of the events, or the stream.",
            content((EventList = "application/json"), (String = "text/event-stream"))),
        (status = 410, description = "Events after `since` are no longer kept."),
    ))]
pub(super) async fn list(
    State(records): State<Arc<Records>>,
    State(feed): State<Arc<Feed>>,
    State(lifecycle): State<Arc<Lifecycle>>,
    uri: OriginalUri,
    State(later): State<LaterIdentity>,
    parts: Parts,
    pairs: Pairs,
) -> Result<Response, Fault> {
    let headers = parts.headers.clone();
    let Wanted { since, filter, page, follow } = Wanted::read(&records, &headers, pairs).await?;
    if follow {
        let place = place(&feed, &parts)?;
        let standing = Standing::of(later, parts, "hotslot:event:list");
        let stopping = lifecycle.stopping();
        let follower = Follower::new((Arc::clone(&records), feed), place, standing, stopping, since, filter);
        records.event_bounds().await?.reach(since)?;
        let stream = stream::unfold(follower, async |mut follower| {
            let messages = follower.next().await?;
            Some((Ok::<_, Infallible>(messages), follower))
        });
        let kind = [(header::CONTENT_TYPE, "text/event-stream"), (header::CACHE_CONTROL, "no-cache")];
        return Ok((kind, Body::from_stream(stream)).into_response());
    }
    let events = records.events(since, &filter, page.limit + 1).await?;
    let (events, links) = page.cut(events, &uri, &headers, |event: &Event| event.id.to_string());
    let list = EventList { events: events.iter().map(wire).collect(), events_links: links };
    Ok(Json(list).into_response())
}

/// A client that follows the events. It receives committed events from the [`feed`](hotslot_service::feed), and reads
/// those that it missed from the table.
struct Follower {
    records: Arc<Records>,
    feed: Arc<Feed>,
    filter: EventFilter,
    /// The id up to which events have been read.
    read: EventId,
    /// Whether the table may have events that the client has not read and the feed will not deliver.
    behind: bool,
    /// Messages that are read and not yet sent.
    ready: Bytes,
    /// When the last message was sent; `None` before the first message, which gives the starting position.
    last_sent: Option<Instant>,
    pages: broadcast::Receiver<Option<Arc<Published>>>,
    stopping: watch::Receiver<bool>,
    /// Whether the client may still see the events.
    standing: Standing,
    _place: Place,
}

/// Takes a place among those who follow the events.
///
/// # Errors
/// 503 when all places are taken, or all of one caller.
fn place(feed: &Arc<Feed>, parts: &Parts) -> Result<Place, Fault> {
    let caller = parts.extensions.get::<Caller>().map(Caller::key).unwrap_or_default();
    feed.place(&caller).map_err(|full| {
        let message = format!("{full}; try again later, or read pages: GET events?since=ID");
        Fault::new(StatusCode::SERVICE_UNAVAILABLE, message)
    })
}

impl Follower {
    fn new(
        (records, feed): (Arc<Records>, Arc<Feed>),
        place: Place,
        standing: Standing,
        stopping: watch::Receiver<bool>,
        since: EventId,
        filter: EventFilter,
    ) -> Self {
        Self {
            pages: feed.subscribe(),
            records,
            feed,
            filter,
            read: since,
            behind: true,
            ready: Bytes::new(),
            last_sent: None,
            stopping,
            standing,
            _place: place,
        }
    }

    /// Returns the next messages, or `None` when the stream ends. The client can then reconnect with the last id that it
    /// received.
    async fn next(&mut self) -> Option<Bytes> {
        let messages = if self.last_sent.is_none() { self.position() } else { self.news().await? };
        self.last_sent = Some(Instant::now());
        // The right to see them may have ended since the last ones.
        self.standing.holds().await.then_some(messages)
    }

    async fn news(&mut self) -> Option<Bytes> {
        loop {
            if *self.stopping.borrow() {
                return None;
            }
            if !self.ready.is_empty() {
                return Some(std::mem::take(&mut self.ready));
            }
            if self.behind {
                if let Err(error) = self.catch_up().await {
                    tracing::warn!(%error, "closing the stream of a client that follows the events");
                    return None;
                }
                continue;
            }
            let silent = self.last_sent.unwrap_or_else(Instant::now) + KEEP_ALIVE;
            tokio::select! {
                page = self.pages.recv() => match page {
                    Ok(Some(page)) => self.receive(&page),
                    Err(broadcast::error::RecvError::Lagged(_)) => self.behind = true,
                    Ok(None) | Err(broadcast::error::RecvError::Closed) => return None,
                },
                changed = self.stopping.changed() => changed.ok()?,
                () = tokio::time::sleep_until(silent) => return Some(self.position()),
            }
        }
    }

    /// Queues the events of a page that pass the filter. When events before the page are missing, they are read from
    /// the table first.
    fn receive(&mut self, page: &Published) {
        let (Some(first), Some(last)) = (page.events.first(), page.events.last()) else { return };
        if first.event.id.0 > self.read.0 + 1 {
            self.behind = true;
            return;
        }
        self.ready = if self.filter.is_empty() && first.event.id > self.read {
            page.messages.clone()
        } else {
            let passes = |event: &Event| event.id > self.read && self.filter.passes(event);
            let wanted = page.events.iter().filter(|published| passes(&published.event));
            wanted.flat_map(|published| &published.message).copied().collect()
        };
        self.read = self.read.max(last.event.id);
    }

    /// Reads the next page of missed events from the table.
    async fn catch_up(&mut self) -> Result<(), Error> {
        let committed = *self.records.event_ids().borrow();
        let page = self.feed.missed(&self.records, self.read, &self.filter).await?;
        self.behind = page.events.len() == PAGE;
        // When the page is not full, all events that were committed before the read have been read.
        let all = (!self.behind).then_some(committed);
        let last = page.events.last().map(|last| last.event.id);
        self.read = last.max(all).map_or(self.read, |read| read.max(self.read));
        self.ready = page.messages.clone();
        Ok(())
    }

    /// Returns an empty comment with the current position, from which the client can resume although no matching event
    /// occurred.
    fn position(&self) -> Bytes {
        format!(": \nid: {}\n\n", self.read).into()
    }
}
