//! `?trace=1`: the answer of an attach or a detach has the time that each of its steps and calls took.

use std::time::Duration;

use axum::http::HeaderMap;
use hotslot_service::error::Error;
use hotslot_service::trace::{Recording, Traced};
use serde::Serialize;
use utoipa::{IntoParams, ToSchema};

use super::error::Fault;
use super::permit::Permit;
use super::schema;

/// The rule for having the trace of a request in its answer. It tells which calls of the host are slow.
pub(super) const RULE: &str = "hotslot:attachment:trace";

/// How long an answer with a trace waits for the verification of the addresses.
const VERIFICATION: Duration = Duration::from_secs(5);

/// Whether the answer has a trace.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[allow(dead_code, reason = "the description of the API is made from it; `wanted` reads the key")]
pub(super) struct TraceQuery {
    /// Whether the answer has the time that each step and call took. It is for callers with the right
    /// `hotslot:attachment:trace`, which administrators have.
    #[param(value_type = Option<schema::Flag>, inline)]
    trace: Option<String>,
}

/// Removes the key `trace` from a query, and returns whether the caller wants a trace.
///
/// # Errors
/// The value is not a flag, or the caller has no right to traces.
pub(super) fn wanted(pairs: &mut Vec<(String, String)>, permit: &Permit) -> Result<bool, Fault> {
    let mut wanted = false;
    for (_, value) in pairs.extract_if(.., |(key, _)| key == "trace") {
        wanted = match value.as_str() {
            "1" | "true" => true,
            "0" | "false" => false,
            _ => return Err(Error::Invalid(format!("invalid trace {value}: expected 1 or 0")).into()),
        };
    }
    if wanted {
        permit.require_for_all(RULE)?;
    }
    Ok(wanted)
}

/// What a request spent its time on.
#[derive(Serialize, ToSchema)]
#[schema(as = Trace)]
pub(in crate::http) struct TraceReport {
    /// How long the operation took, in milliseconds. The verification of addresses, which goes on after an answer without
    /// a trace, is not contained.
    milliseconds: f64,
    /// The operation, its steps and its calls, in the order in which they began; 1000 at most.
    parts: Vec<TracePart>,
}

/// An operation, a step or a call.
#[derive(Serialize, ToSchema)]
struct TracePart {
    /// `operation`, `step`, or `call` for a call to the hypervisor.
    kind: &'static str,
    /// The name: `attach` or `detach`; a step such as `choose`; a call such as `attach`, which is libvirt's own call.
    name: &'static str,
    /// In how many other parts it is.
    level: u32,
    /// When it began, in milliseconds since the operation began.
    began: f64,
    /// How long it took, in milliseconds; null when it is still going on.
    milliseconds: Option<f64>,
    /// Its result, such as `done`; null when it is still going on.
    result: Option<&'static str>,
}

/// Does the work of a request, with a trace of it if one is `wanted`.
///
/// # Errors
/// Those of the work.
pub(super) async fn traced<T>(
    wanted: bool,
    work: impl Future<Output = Result<T, Error>>,
) -> Result<(T, Option<TraceReport>), Error> {
    if !wanted {
        return Ok((work.await?, None));
    }
    let (done, took, recording) = Recording::of(work).await;
    let done = done?;
    recording.rest(VERIFICATION).await;
    let parts = recording.parts().into_iter().map(|part| TracePart {
        kind: part.kind.as_str(),
        name: part.name,
        level: part.level,
        began: milliseconds(part.began),
        milliseconds: part.ended.map(|(took, _)| milliseconds(took)),
        result: part.ended.map(|(_, result)| result),
    });
    Ok((done, Some(TraceReport { milliseconds: milliseconds(took), parts: parts.collect() })))
}

/// Returns a time in milliseconds, with three decimal places.
fn milliseconds(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e6).round() / 1e3
}

/// Begins the trace of a request that may change something, and of any request whose caller has begun one. Other requests
/// are too many and too small.
pub(super) fn begin(is_safe: bool, name: impl FnOnce() -> String, headers: &HeaderMap) -> Traced {
    if is_safe && !headers.contains_key("traceparent") {
        return Traced::default();
    }
    Traced::request(name(), headers)
}
