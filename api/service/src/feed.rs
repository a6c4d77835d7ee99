//! The events, for those who follow them: one task reads what was committed and hands it to all.
//!
//! Ids have no gaps, so that whoever was given the event before the next one knows that it missed nothing. Whoever did
//! (it came new, or it was slower than the others) reads the table by itself until it has caught up.

use std::sync::Arc;

use hotslot_model::event::{Event, EventFilter};
use hotslot_store::Store;
use tokio::sync::{Semaphore, broadcast};

use crate::events::wire;

/// How many events are read from the table at a time.
pub const PAGE: usize = 100;

/// How many pages wait for the slowest follower; who is slower reads the table.
const PAGES: usize = 256;

/// How many followers read the table at a time: requests read it too, by the same few connections.
const CATCHING_UP: usize = 2;

/// An event, and its JSON text, which is made once for all followers.
#[derive(Debug)]
pub struct Told {
    /// The event.
    pub event: Event,
    /// Its JSON text.
    pub text: String,
}

impl From<Event> for Told {
    fn from(event: Event) -> Self {
        Self { text: wire(&event).to_string(), event }
    }
}

/// Events that follow on each other; none when they could not be read.
type Page = Option<Arc<[Told]>>;

/// What followers are given.
#[derive(Debug)]
pub struct Feed {
    pages: broadcast::Sender<Page>,
    /// How many more followers there may be.
    pub places: Arc<Semaphore>,
    /// Whose turn it is to read the table.
    pub catching_up: Semaphore,
}

impl Feed {
    /// For so many followers at most.
    pub(crate) fn new(followers: u32) -> Self {
        let places = usize::try_from(followers).unwrap_or(usize::MAX).min(Semaphore::MAX_PERMITS);
        Self {
            pages: broadcast::Sender::new(PAGES),
            places: Arc::new(Semaphore::new(places)),
            catching_up: Semaphore::new(CATCHING_UP),
        }
    }

    /// What is read from now on.
    pub fn subscribe(&self) -> broadcast::Receiver<Page> {
        self.pages.subscribe()
    }
}

/// Reads what is committed for as long as the service runs, while anybody follows.
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
                    tracing::warn!(%error, "the events cannot be read; those who follow them are sent away");
                    let _ = pages.send(None);
                    break;
                }
            };
            let Some(newest) = events.last().map(|event| event.id) else { break };
            read = newest;
            // Nobody may be left.
            let _ = pages.send(Some(events.into_iter().map(Told::from).collect()));
        }
        read = read.max(last);
    }
}
