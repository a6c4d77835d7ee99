//! Counts what this process does, for Prometheus. [`Monitor`](crate::monitor::Monitor) shows the counts, together with the
//! state of the hosts and the records at that time.
//!
//! The values of labels are from small fixed sets, or names of the configuration. No label names a device, a server, a
//! project or a caller: their number has no limit, and Prometheus keeps a series for each.

use std::borrow::Cow;
use std::pin::Pin;
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use hotslot_driver::hypervisor::{self, ErrorKind};
use hotslot_model::assignment::AssignmentKind;
pub use hotslot_store::metrics::DATABASE_CALLS;
use hotslot_store::metrics::{Durations, durations};
use prometheus_client::metrics::gauge::Gauge;

use crate::error::Error;
use crate::trace;
use crate::under_way::{self, UnderWay};

/// Attaches and detaches, by `operation`, `kind` (of the assignment) and `result`.
pub static OPERATIONS: LazyLock<Durations<3>> = LazyLock::new(durations);

/// The steps of attaches and detaches, by `kind` (of the assignment), `step` and `result`.
pub static STEPS: LazyLock<Durations<3>> = LazyLock::new(durations);

/// Calls to hypervisors, by `call` and `result`.
pub static HYPERVISOR_CALLS: LazyLock<Durations<2>> = LazyLock::new(durations);

/// Attempts to post an event, by `webhook` and `result`.
pub static WEBHOOK_POSTS: LazyLock<Durations<2>> = LazyLock::new(durations);

/// Requests, by `method` and `code`. A request that follows events counts when its answer begins.
pub static REQUESTS: LazyLock<Durations<2>> = LazyLock::new(durations);

/// The open connections of clients.
pub static CONNECTIONS: LazyLock<Gauge> = LazyLock::new(Gauge::default);

/// The word for an outcome without an error.
const DONE: &str = "done";

/// A duration that is being measured.
#[must_use]
pub struct Timer<const LABELS: usize> {
    of: &'static Durations<LABELS>,
    begun: Instant,
}

impl<const LABELS: usize> Timer<LABELS> {
    /// Begins to measure.
    pub fn begin(of: &'static Durations<LABELS>) -> Self {
        Self { of, begun: Instant::now() }
    }

    /// Ends the measurement. `labels` are the names and the values of the labels.
    pub fn end(self, labels: [(&'static str, Cow<'static, str>); LABELS]) {
        self.of.get_or_create(&labels).observe(self.begun.elapsed().as_secs_f64());
    }
}

/// Runs an attach, and counts it with its result.
pub(crate) fn attach<T>(
    kind: AssignmentKind,
    work: impl Future<Output = Result<T, Error>>,
) -> impl Future<Output = Result<T, Error>> {
    operation("attach", kind, Box::pin(work), |result| result.as_ref().err().map_or(DONE, outcome))
}

/// Runs a detach, and counts it. `stays` is whether the device stays in its guest for now.
pub(crate) fn detach<T>(
    kind: AssignmentKind,
    work: impl Future<Output = Result<T, Error>>,
    stays: impl FnOnce(&T) -> bool,
) -> impl Future<Output = Result<T, Error>> {
    let word = |result: &Result<T, Error>| match result {
        Ok(release) if stays(release) => "pending",
        Ok(_) => DONE,
        Err(error) => outcome(error),
    };
    operation("detach", kind, Box::pin(work), word)
}

async fn operation<T>(
    name: &'static str,
    kind: AssignmentKind,
    work: Pin<Box<impl Future<Output = T>>>,
    word: impl FnOnce(&T) -> &'static str,
) -> T {
    let timer = Timer::begin(&OPERATIONS);
    let (done, result) = {
        // The operation is noted in the context that `part` makes.
        let work = Box::pin(async { UnderWay::new(name).of(work).await });
        trace::part(trace::Kind::Operation, name, work, word).await
    };
    timer.end([("operation", name.into()), ("kind", kind_word(kind).into()), ("result", result.into())]);
    done
}

/// Runs a step of an attach or a detach, and counts it with its result.
pub(crate) fn step<T, E>(
    kind: AssignmentKind,
    name: &'static str,
    work: impl Future<Output = Result<T, E>>,
) -> impl Future<Output = Result<T, E>> {
    step_as(kind, name, work, |result| if result.is_ok() { DONE } else { "failed" })
}

/// Runs a step, and counts it. `word` says whether its result is `done`, `pending`, `refused`, `agent-away` or `failed`.
pub(crate) fn step_as<T>(
    kind: AssignmentKind,
    name: &'static str,
    work: impl Future<Output = T>,
    word: impl FnOnce(&T) -> &'static str,
) -> impl Future<Output = T> {
    let work = Box::pin(work);
    async move {
        let timer = Timer::begin(&STEPS);
        under_way::begin_step(name);
        let (done, result) = trace::part(trace::Kind::Step, name, work, word).await;
        timer.end([("kind", kind_word(kind).into()), ("step", name.into()), ("result", result.into())]);
        done
    }
}

/// Calls a hypervisor, and counts the call.
pub(crate) fn call<T>(
    name: &'static str,
    call: impl Future<Output = Result<T, hypervisor::Error>>,
) -> impl Future<Output = Result<T, hypervisor::Error>> {
    let call = Box::pin(call);
    async move {
        let timer = Timer::begin(&HYPERVISOR_CALLS);
        let word = |answer: &Result<T, hypervisor::Error>| match answer.as_ref().err().map(|error| error.kind)
        {
            None => DONE,
            Some(ErrorKind::Away) => "away",
            Some(ErrorKind::TimedOut) => "timed-out",
            Some(ErrorKind::AgentAway) => "agent-away",
            Some(_) => "refused",
        };
        let (answer, result) = trace::part(trace::Kind::Call, name, call, word).await;
        timer.end([("call", name.into()), ("result", result.into())]);
        answer
    }
}

/// The word for a kind of assignment.
pub(crate) fn kind_word(kind: AssignmentKind) -> &'static str {
    match kind {
        AssignmentKind::Attachment => "attachment",
        AssignmentKind::Binding => "binding",
        AssignmentKind::Mdev => "mdev",
    }
}

/// Counts an attempt to post an event.
pub(crate) fn posted(webhook: &str, took: Timer<2>, succeeded: bool) {
    let result = if succeeded { DONE } else { "failed" };
    took.end([("webhook", webhook.to_owned().into()), ("result", result.into())]);
}

/// Counts a request with the status code of its answer. A method that is none of HTTP's usual ones counts as `other`.
pub fn answered(method: &str, code: u16, took: Timer<2>) {
    let usual = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"];
    let method = usual.into_iter().find(|usual| *usual == method).unwrap_or("other");
    took.end([("method", method.into()), ("code", code.to_string().into())]);
}

/// The longest time since `began` in seconds, by the clock of the records, in milliseconds since 1970. It is never
/// negative, also after the clock was set back.
pub(crate) fn age(began: i64) -> f64 {
    let milliseconds = hotslot_store::now().saturating_sub(began).max(0);
    Duration::from_millis(milliseconds.unsigned_abs()).as_secs_f64()
}

/// The word for an error: `refused` when the request or the state of things is the reason, `unavailable` when another try
/// may succeed later, and `failed` otherwise.
fn outcome(error: &Error) -> &'static str {
    match error {
        Error::Invalid(_)
        | Error::UnknownAlias { .. }
        | Error::TooFewFree { .. }
        | Error::NeedsService
        | Error::NeedsAdmin
        | Error::OverQuota(_)
        | Error::NotTheirs
        | Error::NoServer(_)
        | Error::NoAttachment(_)
        | Error::NoAccelerator(_)
        | Error::NotFound(_)
        | Error::NotListed { .. }
        | Error::Gone(_)
        | Error::Conflict(_)
        | Error::Busy(_)
        | Error::Restricted { .. }
        | Error::AlreadyExists(_)
        | Error::Stale => "refused",
        Error::HostAway { .. } | Error::Full { .. } | Error::TakenOver => "unavailable",
        Error::Hypervisor { .. } | Error::Store(_) | Error::Internal(_) => "failed",
    }
}
