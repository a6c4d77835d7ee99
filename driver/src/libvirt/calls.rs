//! Runs all blocking calls to libvirt: on blocking threads, with a time limit and with a limit of parallel calls.
//!
//! A call that does not return is given up at its time limit. Its thread stays blocked until libvirt returns, at the
//! latest when keepalive ends the connection. The number of such threads is limited: each keeps one of `parallel`
//! slots, and when calls past their limit hold all slots, further calls fail at once.
//!
//! There are few slots, because libvirtd stops reading a client's socket, including its keepalive answers, while
//! `max_client_requests` of its calls (5 by default) are running. Calls that change something leave one slot to calls
//! that read.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{Semaphore, broadcast, watch};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tracing::{debug, debug_span, warn};
use virt::connect::Connect;

use super::error::Fault;
use super::link::State;
use crate::calls_out::{Overdue, Subject};
use crate::hypervisor::{Error, ErrorKind, Event};

/// The kind of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verb {
    /// The call reads, which takes a few milliseconds.
    Read,
    /// The call changes something or waits for a guest, which takes seconds.
    Change,
}

/// The calls of one connection.
#[derive(Debug)]
pub(super) struct Calls {
    state: watch::Receiver<State>,
    slots: Arc<Semaphore>,
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
            slots: Arc::new(Semaphore::new(parallel)),
            changes: Arc::new(Semaphore::new(parallel - 1)),
            parallel,
            overdue: Overdue::default(),
        }
    }

    /// Runs `work` on the connection. It waits at most `limit` for a slot and the answer together. `operation`
    /// describes the call for people, and `subject` is the object that it may change. Work that has begun goes on when
    /// the caller stops waiting.
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
            let message = format!("{} earlier calls have not returned", self.parallel);
            return Err(Error::new(ErrorKind::TimedOut, operation, message));
        }
        let begun = Instant::now();
        let slot = async {
            let change = match verb {
                Verb::Change => Arc::clone(&self.changes).acquire_owned().await.ok(),
                Verb::Read => None,
            };
            (change, Arc::clone(&self.slots).acquire_owned().await.ok())
        };
        let Ok(slot) = timeout(limit, slot).await else {
            let message = format!("no earlier call returned within {limit:?}");
            return Err(Error::new(ErrorKind::TimedOut, operation, message));
        };

        let span = debug_span!("libvirt", operation);
        let call = tokio::task::spawn_blocking(move || {
            let _slot = slot;
            let _span = span.enter();
            let answer = work(link.connect());
            link.check(answer.as_ref().err());
            debug!(elapsed = ?begun.elapsed(), failed = answer.is_err(), "called");
            answer
        });
        self.answer(call, limit, begun, operation, subject).await
    }

    /// Waits for a call that began at `begun` at most until its `limit`. A call that has not returned then is listed as
    /// overdue until it does.
    pub(super) async fn answer<T: Send + 'static>(
        &self,
        mut call: JoinHandle<Result<T, Fault>>,
        limit: Duration,
        begun: Instant,
        operation: String,
        subject: Subject,
    ) -> Result<T, Error> {
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
                        _ = events.send(event); // an error means that there are no receivers
                    }
                    let answer = late.map(|answer| answer.map(drop).map_err(|fault| fault.message));
                    warn!(elapsed = ?begun.elapsed(), ?answer, "{operation}: the call returned after its time limit");
                });
                Err(error)
            }
        }
    }
}
