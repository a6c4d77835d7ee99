//! The events for the clients that follow them: one task reads the committed events and sends them to all followers.
//!
//! Event ids have no gaps, so a follower that has the event before the next one has missed nothing. A follower that is
//! new, or was slower than the others, reads the table itself until it has caught up.

use std::sync::Arc;
use std::time::Duration;

use hotslot_model::event::{Event, EventFilter};
use hotslot_store::Store;
use tokio::sync::{Semaphore, broadcast};
use tokio::time::sleep;

use crate::events::wire;

/// How many events are read from the table at a time.
pub const PAGE: usize = 100;

/// The pause after a page for each follower. To wake a follower and to write to its connection costs about as much of a
/// processor; events that are committed meanwhile are in the next page. So many followers do not slow other requests, and
/// a few get each event at once.
const PAUSE: Duration = Duration::from_micros(100);

/// How many pages are kept for the slowest follower. A follower that is slower reads the table.
const PAGES: usize = 256;

/// How many followers may read the table at a time, because requests use the same few connections.
const CATCHING_UP: usize = 2;

/// An event with its JSON text, which is made once for all followers.
#[derive(Debug)]
pub struct PublishedEvent {
    /// The event.
    pub event: Event,
    /// The JSON text of the event.
    pub text: String,
}

impl From<Event> for PublishedEvent {
    fn from(event: Event) -> Self {
        Self { text: wire(&event).to_string(), event }
    }
}

/// Consecutive events; `None` when they could not be read.
type Page = Option<Arc<[PublishedEvent]>>;

/// The events for followers.
#[derive(Debug)]
pub struct Feed {
    pages: broadcast::Sender<Page>,
    /// The maximum number of followers.
    pub limit: u32,
    /// One permit for each further follower.
    pub places: Arc<Semaphore>,
    /// One permit for each further follower that may read the table.
    pub catching_up: Semaphore,
}

impl Feed {
    /// Makes a feed for at most so many followers.
    pub(crate) fn new(followers: u32) -> Self {
        let places = usize::try_from(followers).unwrap_or(usize::MAX).min(Semaphore::MAX_PERMITS);
        Self {
            pages: broadcast::Sender::new(PAGES),
            limit: followers,
            places: Arc::new(Semaphore::new(places)),
            catching_up: Semaphore::new(CATCHING_UP),
        }
    }

    /// Returns a receiver of the events that are read from now on.
    pub fn subscribe(&self) -> broadcast::Receiver<Page> {
        self.pages.subscribe()
    }
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
            let followers = pages.send(Some(events.into_iter().map(PublishedEvent::from).collect()));
            if !is_full {
                let followers = u32::try_from(followers.unwrap_or_default()).unwrap_or(u32::MAX);
                sleep(PAUSE.saturating_mul(followers)).await;
            }
        }
        read = read.max(last);
    }
}
