//! The shared state of a simulated host.

use std::sync::{Arc, Mutex};

use tokio::sync::{Notify, broadcast, watch};

use super::host::{Host, Link};
use crate::hypervisor::Event;

#[derive(Debug)]
pub(super) struct Inner {
    pub(super) host: Mutex<Host>,
    pub(super) link: watch::Receiver<Link>,
    pub(super) events: broadcast::Sender<Event>,
    /// Wakes the clock task when a change may be due earlier than it knows.
    pub(super) wake: Notify,
}

/// Runs a task until it ends or the simulated host is closed.
pub(super) async fn until_closed<T>(inner: Arc<Inner>, task: impl Future<Output = T>) -> Option<T> {
    let mut link = inner.link.clone();
    tokio::select! {
        done = task => Some(done),
        _ = link.wait_for(|link| *link == Link::Closed) => None,
    }
}
