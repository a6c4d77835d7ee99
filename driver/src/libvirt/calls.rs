//! The one door to blocking calls: off the async threads, bounded in time and in number.
//!
//! A call that does not come back is given up at its limit; the thread it is on is left behind until libvirt
//! lets go of it (at the latest when keepalive ends the connection). Such threads cannot pile up: each holds
//! one of `parallel` lanes, and when all lanes are held by calls past their limit the next ones fail at once.
//!
//! There are few lanes because libvirtd stops reading a client's socket, keepalive included, while
//! `max_client_requests` of its calls are under way (5 by default); calls that change something leave one
//! lane to those that read.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{Semaphore, broadcast, watch};
use tokio::time::timeout;
use tracing::{debug, debug_span, warn};
use virt::connect::Connect;

use super::error::Fault;
use super::link::State;
use crate::calls_out::{Overdue, Subject};
use crate::hypervisor::{Error, ErrorKind, Event};

/// What a call is to the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verb {
    /// It reads; a few milliseconds.
    Read,
    /// It changes something or asks a guest; seconds.
    Change,
}

/// The calls of one connection.
#[derive(Debug)]
pub(super) struct Calls {
    state: watch::Receiver<State>,
    lanes: Arc<Semaphore>,
    changes: Arc<Semaphore>,
    events: broadcast::Sender<Event>,
    parallel: usize,
    pub(super) overdue: Overdue,
}

impl Calls {
    pub(super) fn new(
        state: watch::Receiver<State>,
        events: broadcast::Sender<Event>,
        parallel: usize,
    ) -> Self {
        let parallel = parallel.max(2);
        Self {
            state,
            events,
            lanes: Arc::new(Semaphore::new(parallel)),
            changes: Arc::new(Semaphore::new(parallel - 1)),
            parallel,
            overdue: Overdue::default(),
        }
    }

    /// Runs `work` on the connection, waiting for a lane and an answer for at most `limit`. `operation` says
    /// what for, `subject` what it may change. Work that was begun goes on when the caller stops waiting.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        verb: Verb,
        limit: Duration,
        operation: String,
        subject: Subject,
        work: impl FnOnce(&Connect) -> Result<T, Fault> + Send + 'static,
    ) -> Result<T, Error> {
        let link = match &*self.state.borrow() {
            Ok(link) => Arc::clone(link),
            Err(reason) => return Err(Error::new(ErrorKind::Away, operation, reason)),
        };
        if self.overdue.count() >= self.parallel {
            let message = format!("{} earlier calls have not come back", self.parallel);
            return Err(Error::new(ErrorKind::TimedOut, operation, message));
        }
        let begun = Instant::now();
        let lane = async {
            let change = match verb {
                Verb::Change => Arc::clone(&self.changes).acquire_owned().await.ok(),
                Verb::Read => None,
            };
            (change, Arc::clone(&self.lanes).acquire_owned().await.ok())
        };
        let Ok(lane) = timeout(limit, lane).await else {
            let message = format!("no call came back to make room for it within {limit:?}");
            return Err(Error::new(ErrorKind::TimedOut, operation, message));
        };

        let span = debug_span!("libvirt", operation);
        let mut call = tokio::task::spawn_blocking(move || {
            let _lane = lane;
            let _span = span.enter();
            let answer = work(link.connect());
            link.check(answer.as_ref().err());
            debug!(elapsed = ?begun.elapsed(), failed = answer.is_err(), "called");
            answer
        });
        match timeout(limit.saturating_sub(begun.elapsed()), &mut call).await {
            Ok(Ok(answer)) => answer.map_err(|fault| Error::new(fault.kind, operation, fault.message)),
            Ok(Err(panic)) => Err(Error::new(ErrorKind::Refused, operation, panic)),
            Err(_) => {
                let overdue = self.overdue.note(operation.clone(), subject, begun);
                let error =
                    Error::new(ErrorKind::TimedOut, operation.clone(), format!("no answer within {limit:?}"));
                let events = self.events.clone();
                tokio::spawn(async move {
                    let late = call.await;
                    drop(overdue);
                    if let Some(event) = subject.came_back() {
                        _ = events.send(event); // nobody listens: nobody to tell
                    }
                    let answer = late.map(|answer| answer.map(drop).map_err(|fault| fault.message));
                    warn!(elapsed = ?begun.elapsed(), ?answer, "{operation}: the answer came after its limit");
                });
                Err(error)
            }
        }
    }
}
