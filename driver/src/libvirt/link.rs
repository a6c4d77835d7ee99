//! The connection to one libvirtd, which is opened again when it breaks.
//!
//! ```text
//!            ┌────────────── wait (back-off) ◄───────────┐
//!            ▼                                           │
//!        connecting ── open, keepalive, events ──► up ── broken: closed by the daemon, no keepalive
//!            │                                           ▲   answer, or a call found it dead
//!            └── refused ──► wait                        └ Event::Connected; later Event::Disconnected
//! ```

use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{broadcast, mpsc, oneshot, watch};
use tokio::time::timeout;
use tracing::{debug, info, warn};
use virt::connect::Connect;
use virt::error::ErrorNumber;

use super::error::Fault;
use super::event_loop;
use super::ffi::{EventSink, Subscription, subscribe};
use super::options::Options;
use crate::hypervisor::{ErrorKind, Event};

/// The open connection, or the reason why there is none.
pub(super) type State = Result<Arc<Link>, String>;

/// An open connection with its event subscriptions.
#[derive(Debug)]
pub(super) struct Link {
    subscription: Subscription,
    sink: Arc<EventSink>,
}

impl Link {
    pub(super) fn connect(&self) -> &Connect {
        self.subscription.connect()
    }

    /// Handles the result of a call: when it failed because the connection is dead, the connection is opened again.
    /// `is_alive` does not call the daemon.
    pub(super) fn check(&self, fault: Option<&Fault>) {
        let Some(fault) = fault else { return };
        if fault.kind == ErrorKind::Away || !self.connect().is_alive().unwrap_or(false) {
            _ = self.sink.closed.try_send(fault.message.clone()); // an error means that a reason has been sent already
        }
    }
}

/// Keeps a connection to `uri` open for as long as the future runs. It updates `state` and sends an event whenever the
/// connection opens or breaks.
pub(super) async fn keep(
    uri: String,
    options: Options,
    state: Arc<watch::Sender<State>>,
    events: broadcast::Sender<Event>,
) {
    let mut wait = Backoff::new(options.reconnect_first, options.reconnect_longest);
    let mut limit = options.open_limit;
    loop {
        let (closed, mut broken) = mpsc::channel(1);
        let sink = Arc::new(EventSink { events: events.clone(), closed });
        let begun = Instant::now();
        match open(uri.clone(), options.clone(), sink, limit).await {
            Ok(link) => {
                limit = options.open_limit;
                let since = Instant::now();
                info!(hypervisor.uri = %uri, "connected to {uri}");
                drop(state.send_replace(Ok(Arc::new(link))));
                _ = events.send(Event::Connected);
                let reason = broken.recv().await.unwrap_or_else(|| "the connection broke".to_owned());
                warn!(hypervisor.uri = %uri, "lost the connection to {uri}: {reason}");
                drop(state.send_replace(Err(reason.clone())));
                _ = events.send(Event::Disconnected { reason });
                if since.elapsed() > options.reconnect_longest {
                    wait.reset();
                }
            }
            Err(reason) => {
                if begun.elapsed() >= limit {
                    limit = (limit * 2).min(LONGEST_OPEN);
                }
                let known = state.borrow().as_ref().err() == Some(&reason);
                if known {
                    debug!(hypervisor.uri = %uri, "still cannot connect to {uri}: {reason}");
                } else {
                    warn!(hypervisor.uri = %uri, "cannot connect to {uri}: {reason}");
                    drop(state.send_replace(Err(reason)));
                }
            }
        }
        tokio::time::sleep(wait.next()).await;
    }
}

/// The longest time limit of an attempt to connect.
const LONGEST_OPEN: Duration = Duration::from_secs(3600);

/// Opens one connection. libvirt may take long (the daemon does not answer, or the host is down), and may never return
/// when the host vanished without closing the connection. An attempt that is given up keeps its thread until libvirt
/// returns; the growing time limit keeps the number of such threads small. The thread does not belong to the runtime,
/// which would wait for it at the end of the program.
async fn open(uri: String, options: Options, sink: Arc<EventSink>, limit: Duration) -> Result<Link, String> {
    let (done, opened) = oneshot::channel();
    let thread = std::thread::Builder::new().name("libvirt-open".to_owned());
    thread
        .spawn(move || drop(done.send(open_here(&uri, &options, sink))))
        .map_err(|error| format!("cannot start the thread that connects: {error}"))?;
    match timeout(limit, opened).await {
        Ok(opened) => opened.unwrap_or_else(|_| Err("connecting panicked".to_owned())),
        Err(_) => Err("no answer to the attempt to connect; hotslot tries again".to_owned()),
    }
}

fn open_here(uri: &str, options: &Options, sink: Arc<EventSink>) -> Result<Link, String> {
    event_loop::start()?;
    let message = |error: virt::error::Error| error.message().to_owned();
    let connect = Connect::open(Some(uri)).map_err(message)?;
    let seconds = i32::try_from(options.keepalive.as_secs()).unwrap_or(i32::MAX);
    match connect.set_keep_alive(seconds, options.keepalive_count) {
        Err(error) if !error.code().is(ErrorNumber::NoSupport) => return Err(message(error)),
        _ => {} // a driver without a network connection has no keepalive and needs none
    }
    Ok(Link { subscription: subscribe(connect, &sink).map_err(message)?, sink })
}

/// The wait before the next attempt. It doubles each time, up to a limit. A random part is subtracted, so that many
/// clients of one host do not reconnect at the same moment.
#[derive(Debug)]
struct Backoff {
    first: Duration,
    longest: Duration,
    next: Duration,
}

impl Backoff {
    fn new(first: Duration, longest: Duration) -> Self {
        Self { first, longest, next: first }
    }

    fn reset(&mut self) {
        self.next = self.first;
    }

    fn next(&mut self) -> Duration {
        let whole = self.next;
        self.next = (whole * 2).min(self.longest);
        let random = RandomState::new().hash_one(()) as f64 / u64::MAX as f64;
        whole.mul_f64(0.75 + random / 4.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wait_doubles_each_time_up_to_the_limit() {
        let (first, longest) = (Duration::from_millis(250), Duration::from_secs(30));
        let mut backoff = Backoff::new(first, longest);
        for power in 0..12 {
            let whole = (first * 2_u32.pow(power)).min(longest);
            let wait = backoff.next();
            assert!(whole * 3 / 4 <= wait && wait <= whole, "{power}: {wait:?} of {whole:?}");
        }
        backoff.reset();
        assert!(backoff.next() <= first);
    }
}
