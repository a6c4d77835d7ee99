//! The events for the clients that follow them: one task reads the committed events and sends them to all followers.
//!
//! Event ids have no gaps, so a follower that has the event before the next one has missed nothing. A follower that is
//! new, or was slower than the others, reads the table itself until it has caught up.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use hotslot_model::event::{Event, EventFilter};
use hotslot_model::id::EventId;
use hotslot_store::Store;
use moka::future::Cache;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, broadcast};
use tokio::time::sleep;

use crate::error::Error;
use crate::events::wire;
use crate::records::Records;

/// How many events are read from the table at a time.
pub const PAGE: usize = 100;

/// The pause after a page for each follower. To wake a follower and to write to its connection costs about as much of a
/// processor; events that are committed meanwhile are in the next page. So many followers do not slow other requests, and
/// a few get each event at once.
const PAUSE: Duration = Duration::from_micros(100);

/// The minimum time for a page of past events while several followers read them.
const PACE: Duration = Duration::from_millis(1);

/// How many pages are kept for the slowest follower. A follower that is slower reads the table.
const PAGES: usize = 256;

/// One caller has at most one of so many parts of all places.
const SHARE: u32 = 4;

/// How many pages of past events are kept, and how long. New followers read the same ones, one after the other. Events
/// are deleted some day, so a page is not kept for ever.
const PAST: u64 = 16;
const PAST_FOR: Duration = Duration::from_secs(60);

/// How many followers may read the table at a time, because requests use the same few connections.
const CATCHING_UP: usize = 2;

/// An event with its message, which is made once for all followers.
#[derive(Debug)]
pub struct PublishedEvent {
    /// The event.
    pub event: Event,
    /// The message as followers receive it: the fields `id`, `event` and `data` of Server-Sent Events (WHATWG HTML, 9.2).
    pub message: Bytes,
}

impl From<Event> for PublishedEvent {
    fn from(event: Event) -> Self {
        // JSON contains no line break, which would end the data.
        let message = format!("id: {}\nevent: {}\ndata: {}\n\n", event.id, event.what.kind, wire(&event));
        Self { message: message.into(), event }
    }
}

/// Consecutive events.
#[derive(Debug)]
pub struct Published {
    /// The events.
    pub events: Vec<PublishedEvent>,
    /// The messages of all of them, for the followers who want every event: each gets the same bytes, in one piece.
    pub messages: Bytes,
}

impl From<Vec<Event>> for Published {
    fn from(events: Vec<Event>) -> Self {
        let events: Vec<_> = events.into_iter().map(PublishedEvent::from).collect();
        let mut messages = Vec::new();
        events.iter().for_each(|event| messages.extend_from_slice(&event.message));
        Self { events, messages: messages.into() }
    }
}

/// A message of the feed to all followers; `None` when the events could not be read.
type Page = Option<Arc<Published>>;

/// The events for followers.
#[derive(Debug)]
pub struct Feed {
    pages: broadcast::Sender<Page>,
    /// The maximum number of followers.
    pub(crate) limit: u32,
    /// One permit for each further follower.
    pub(crate) places: Arc<Semaphore>,
    /// How many followers each caller has.
    callers: Mutex<HashMap<String, u32>>,
    /// One permit for each further follower that may read the table.
    catching_up: Semaphore,
    /// Full pages of all events, by the id after which they were read.
    past: Cache<EventId, Arc<Published>>,
}

impl Feed {
    /// Makes a feed for at most so many followers.
    pub(crate) fn new(followers: u32) -> Self {
        let places = usize::try_from(followers).unwrap_or(usize::MAX).min(Semaphore::MAX_PERMITS);
        Self {
            pages: broadcast::Sender::new(PAGES),
            limit: followers,
            places: Arc::new(Semaphore::new(places)),
            callers: Mutex::default(),
            catching_up: Semaphore::new(CATCHING_UP),
            past: Cache::builder().max_capacity(PAST).time_to_live(PAST_FOR).build(),
        }
    }

    /// Takes a place for a follower. `caller` is [`Caller::key`](hotslot_model::identity::Caller::key).
    ///
    /// # Errors
    /// [`Full`].
    pub fn place(self: &Arc<Self>, caller: &str) -> Result<Place, Full> {
        let permit = Arc::clone(&self.places).try_acquire_owned().map_err(|_| Full::All(self.limit))?;
        let most = (self.limit / SHARE).max(1);
        if !caller.is_empty() {
            let mut callers = self.callers.lock().unwrap_or_else(PoisonError::into_inner);
            let own = callers.entry(caller.to_owned()).or_default();
            if *own >= most {
                return Err(Full::OfCaller(most));
            }
            *own += 1;
        }
        Ok(Place { feed: Arc::clone(self), caller: caller.to_owned(), _permit: permit })
    }

    /// Returns the next events after an id that pass a filter, at most [`PAGE`], for a follower that has not read them.
    ///
    /// # Errors
    /// When the table cannot be read.
    pub async fn missed(
        &self,
        records: &Records,
        read: EventId,
        filter: &EventFilter,
    ) -> Result<Arc<Published>, Error> {
        let _turn = self.catching_up.acquire().await.map_err(|closed| Error::Internal(closed.to_string()))?;
        let wants_all = filter.is_empty();
        // With many new followers, to send them the past would leave little of the processors for requests.
        if self.catching_up.available_permits() == 0 {
            sleep(PACE).await;
        }
        if wants_all && let Some(page) = self.past.get(&read).await {
            return Ok(page);
        }
        let page = Arc::new(Published::from(records.events(read, filter, PAGE).await?));
        if wants_all && page.events.len() == PAGE {
            self.past.insert(read, Arc::clone(&page)).await;
        }
        Ok(page)
    }

    /// Returns a receiver of the events that are read from now on.
    pub fn subscribe(&self) -> broadcast::Receiver<Page> {
        self.pages.subscribe()
    }
}

/// The place of a follower, until it is dropped.
#[derive(Debug)]
pub struct Place {
    feed: Arc<Feed>,
    /// Empty for a caller who was not identified.
    caller: String,
    _permit: OwnedSemaphorePermit,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut callers = self.feed.callers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(own) = callers.get_mut(&self.caller) {
            *own -= 1;
            if *own == 0 {
                callers.remove(&self.caller);
            }
        }
    }
}

/// No place for a further follower is left.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Full {
    /// Not for anybody.
    #[error("{0} clients already follow the events (limit: [api] followers)")]
    All(u32),
    /// Not for this caller, who has a quarter of all.
    #[error("{0} clients of the same user already follow the events (limit: a quarter of [api] followers)")]
    OfCaller(u32),
}

/// Reads committed events for as long as the service runs, while there are followers.
pub(crate) async fn read(feed: &Feed, store: &Store) {
    let pages = &feed.pages;
    let mut committed = store.event_ids();
    let mut read = *committed.borrow_and_update();
    while committed.changed().await.is_ok() {
        let last = *committed.borrow_and_update();
        while read < last && pages.receiver_count() > 0 {
            let events = match store.events(read, &EventFilter::default(), PAGE).await {
                Ok(events) => events,
                Err(error) => {
                    tracing::warn!(%error, "the events cannot be read; their followers are disconnected");
                    let _ = pages.send(None);
                    break;
                }
            };
            let Some(newest) = events.last().map(|event| event.id) else { break };
            read = newest;
            let is_full = events.len() == PAGE;
            // An error means that no follower is left.
            let followers = pages.send(Some(Arc::new(events.into())));
            if !is_full {
                let followers = u32::try_from(followers.unwrap_or_default()).unwrap_or(u32::MAX);
                sleep(PAUSE.saturating_mul(followers)).await;
            }
        }
        read = read.max(last);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_caller_has_a_quarter_of_the_places_and_gives_them_back() {
        let feed = Arc::new(Feed::new(8));
        let mut own: Vec<_> = (0..2).map(|_| feed.place("a").unwrap()).collect();
        assert_eq!(feed.place("a").unwrap_err(), Full::OfCaller(2));
        let others: Vec<_> = (0..6).map(|_| feed.place("").unwrap()).collect();
        assert_eq!(feed.place("b").unwrap_err(), Full::All(8));
        own.pop();
        own.push(feed.place("a").unwrap());
        drop((own, others));
        assert!(feed.callers.lock().unwrap().is_empty());
        assert_eq!(feed.places.available_permits(), 8);
    }
}
