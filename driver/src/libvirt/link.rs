//! The connection to one libvirtd: kept up, and opened again when it breaks.
//!
//! ```text
//!            ┌────────────── wait (back-off) ◄───────────┐
//!            ▼                                           │
//!        connecting ── open, keepalive, events ──► up ── broken: closed by the daemon, no keepalive
//!            │                                           ▲   answer, or a call that found it dead
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
use super::ffi::{Ears, Listening, listen};
use super::options::Options;
use crate::hypervisor::{ErrorKind, Event};

/// The connection that is up, or why there is none.
pub(super) type State = Result<Arc<Link>, String>;

/// One connection that is up, listened to.
#[derive(Debug)]
pub(super) struct Link {
    listening: Listening,
    ears: Arc<Ears>,
}

impl Link {
    pub(super) fn connect(&self) -> &Connect {
        self.listening.connect()
    }

    /// After a call: when it failed because the connection is dead, has it opened again. libvirt knows
    /// whether it is without asking the daemon.
    pub(super) fn check(&self, fault: Option<&Fault>) {
        let Some(fault) = fault else { return };
        if fault.kind == ErrorKind::Away || !self.connect().is_alive().unwrap_or(false) {
            _ = self.ears.closed.try_send(fault.message.clone()); // full: it is known already
        }
    }
}

/// Keeps a connection to `uri` in `state` for as long as it runs. Each end is told to `ears`' events.
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
        let ears = Arc::new(Ears { events: events.clone(), closed });
        let begun = Instant::now();
        match open(uri.clone(), options.clone(), ears, limit).await {
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
                    debug!(hypervisor.uri = %uri, "still no connection to {uri}: {reason}");
                } else {
                    warn!(hypervisor.uri = %uri, "no connection to {uri}: {reason}");
                    drop(state.send_replace(Err(reason)));
                }
            }
        }
        tokio::time::sleep(wait.next()).await;
    }
}

/// The longest that a try to connect is waited for.
const LONGEST_OPEN: Duration = Duration::from_secs(3600);

/// Opens one connection. It may take long (a daemon that does not answer, a host that is gone), and for ever where the
/// other end is gone without a word. One that is given up keeps its thread until it ends; that they are waited for
/// longer and longer keeps those few. The thread is not the runtime's, which would wait for it when the program ends.
async fn open(uri: String, options: Options, ears: Arc<Ears>, limit: Duration) -> Result<Link, String> {
    let (done, opened) = oneshot::channel();
    let thread = std::thread::Builder::new().name("libvirt-open".to_owned());
    thread
        .spawn(move || drop(done.send(open_here(&uri, &options, ears))))
        .map_err(|error| format!("no thread to connect on: {error}"))?;
    match timeout(limit, opened).await {
        Ok(opened) => opened.unwrap_or_else(|_| Err("connecting panicked".to_owned())),
        Err(_) => Err("no answer to a try to connect; the next one is made".to_owned()),
    }
}

fn open_here(uri: &str, options: &Options, ears: Arc<Ears>) -> Result<Link, String> {
    event_loop::start()?;
    let told = |error: virt::error::Error| error.message().to_owned();
    let connect = Connect::open(Some(uri)).map_err(told)?;
    let seconds = i32::try_from(options.keepalive.as_secs()).unwrap_or(i32::MAX);
    match connect.set_keep_alive(seconds, options.keepalive_count) {
        Err(error) if !error.code().is(ErrorNumber::NoSupport) => return Err(told(error)),
        _ => {} // a driver without a wire has no keepalive and needs none
    }
    Ok(Link { listening: listen(connect, &ears).map_err(told)?, ears })
}

/// How long to wait before the next try: twice as long each time, up to a limit, and a random part of it
/// so that many clients of one host do not come back in step.
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
    fn waits_twice_as_long_each_time_up_to_the_limit() {
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
