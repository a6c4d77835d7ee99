//! Metrics of this process: histograms of how long something took, and those of the statements on the database.
//!
//! Prometheus observes processes, so the metrics belong to the process and not to a [`Store`](crate::Store).

use std::borrow::Cow;
use std::sync::LazyLock;
use std::time::Instant;

use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;

/// Histograms of durations in seconds, by their labels. The values of labels are from small fixed sets, or names of the
/// configuration.
pub type Durations<const LABELS: usize> =
    Family<[(&'static str, Cow<'static, str>); LABELS], Histogram, fn() -> Histogram>;

/// The upper bounds of the buckets, in seconds: from a statement on a local database to a guest that is asked for minutes.
const BUCKETS: [f64; 16] =
    [0.0005, 0.001, 0.005, 0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0];

/// Makes histograms without observations.
pub fn durations<const LABELS: usize>() -> Durations<LABELS> {
    Family::new_with_constructor(|| Histogram::new(BUCKETS))
}

/// How long the database took, by `call` (`read`, `write`, `begin`, `commit`) and `result` (`done`, `failed`).
pub static DATABASE_CALLS: LazyLock<Durations<2>> = LazyLock::new(durations);

/// A call to the database that has begun.
pub(crate) struct Call(&'static str, Instant);

impl Call {
    pub(crate) fn begin(call: &'static str) -> Self {
        Self(call, Instant::now())
    }

    /// Counts the call with its result, and returns the result.
    pub(crate) fn ended<T, E>(self, result: Result<T, E>) -> Result<T, E> {
        let word = if result.is_ok() { "done" } else { "failed" };
        let labels = [("call", Cow::Borrowed(self.0)), ("result", Cow::Borrowed(word))];
        DATABASE_CALLS.get_or_create(&labels).observe(self.1.elapsed().as_secs_f64());
        result
    }
}
