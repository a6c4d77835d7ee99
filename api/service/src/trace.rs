//! Traces: what a request spends its time on, for its answer (`?trace=1`) and for a collector of OpenTelemetry (OTLP).
//!
//! [`metrics`](crate::metrics) measures operations, steps and calls, and tells this file of each. The context of
//! OpenTelemetry carries a trace from task to task.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures_util::future::join_all;
use opentelemetry::propagation::{Extractor, TextMapPropagator as _};
use opentelemetry::trace::{
    FutureExt as _, SpanKind, Status, TraceContextExt as _, Tracer as _, WithContext,
};
use opentelemetry::{Context, KeyValue, global};
use opentelemetry_http::{HeaderExtractor, HeaderInjector};
use opentelemetry_sdk::propagation::TraceContextPropagator;
use reqwest::header::HeaderMap;
use tokio::sync::oneshot;

/// The name under which spans are made.
const SCOPE: &str = "hotslot";

/// The most parts that one recording has. A detach that asks its guest for hours makes more calls.
const MOST: usize = 1000;

/// What a part of a trace is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// An attach or a detach.
    Operation,
    /// A step of an operation.
    Step,
    /// A call to a hypervisor.
    Call,
}

impl Kind {
    /// The word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Operation => "operation",
            Self::Step => "step",
            Self::Call => "call",
        }
    }
}

/// A part of a recorded trace.
#[derive(Debug, Clone)]
pub struct Part {
    /// What it is.
    pub kind: Kind,
    /// Its name.
    pub name: &'static str,
    /// In how many other parts it is.
    pub level: u32,
    /// When it began, counted from the beginning of the recording.
    pub began: Duration,
    /// How long it took, and the word for its result; `None` while it is going on.
    pub ended: Option<(Duration, &'static str)>,
}

/// The parts of one request, recorded for its answer.
#[derive(Debug, Clone)]
pub struct Recording(Arc<Recorded>);

#[derive(Debug)]
struct Recorded {
    begun: Instant,
    parts: Mutex<Vec<Part>>,
    /// Parts that tasks do after the request is done. Each ends when its sender is dropped.
    later: Mutex<Vec<oneshot::Receiver<()>>>,
}

/// The level of the parts that begin in a context.
struct Level(u32);

impl Recording {
    /// Records the parts of `work`. Returns its result, how long it took, and the parts.
    pub fn of<T>(work: impl Future<Output = T>) -> impl Future<Output = (T, Duration, Self)> {
        Self::of_boxed(Box::pin(work))
    }

    async fn of_boxed<T>(work: Pin<Box<impl Future<Output = T>>>) -> (T, Duration, Self) {
        let recorded = Recorded { begun: Instant::now(), parts: Mutex::default(), later: Mutex::default() };
        let recording = Self(Arc::new(recorded));
        let done = work.with_context(Context::current_with_value(recording.clone())).await;
        (done, recording.0.begun.elapsed(), recording)
    }

    /// Waits for the parts that are done after the request, at most for `limit`.
    pub async fn rest(&self, limit: Duration) {
        let later = std::mem::take(&mut *self.0.later.lock().unwrap_or_else(PoisonError::into_inner));
        let _ = tokio::time::timeout(limit, join_all(later)).await;
    }

    /// The parts in the order in which they began.
    pub fn parts(&self) -> Vec<Part> {
        self.0.parts.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Records that a part begins. Returns its index, or `None` when the recording is full.
    fn begin(&self, kind: Kind, name: &'static str, level: u32) -> Option<usize> {
        let began = self.0.begun.elapsed();
        let mut parts = self.0.parts.lock().unwrap_or_else(PoisonError::into_inner);
        let index = parts.len();
        if index == MOST {
            return None;
        }
        parts.push(Part { kind, name, level, began, ended: None });
        Some(index)
    }

    fn end(&self, index: usize, result: &'static str) {
        let now = self.0.begun.elapsed();
        let mut parts = self.0.parts.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(part) = parts.get_mut(index) {
            part.ended = Some((now.saturating_sub(part.began), result));
        }
    }
}

/// Has the request that is being recorded, if there is one, wait for a part that a task does later. The part has ended when
/// the sender of `done` is dropped.
pub(crate) fn follow(done: oneshot::Receiver<()>) {
    if let Some(Recording(recorded)) = Context::current().get::<Recording>() {
        recorded.later.lock().unwrap_or_else(PoisonError::into_inner).push(done);
    }
}

/// Runs a part of the work of a request, and has it in the trace with the word for its result.
///
/// The work is boxed: a future that is an argument of an asynchronous function has room in its future twice, and parts are
/// in parts.
pub(crate) async fn part<T>(
    kind: Kind,
    name: &'static str,
    work: Pin<Box<impl Future<Output = T>>>,
    word: impl FnOnce(&T) -> &'static str,
) -> (T, &'static str) {
    let mut context = Context::current();
    let recording = context.get::<Recording>().cloned();
    let index = recording.as_ref().and_then(|recording| {
        let level = context.get::<Level>().map_or(0, |level| level.0);
        context = context.with_value(Level(level + 1));
        recording.begin(kind, name, level)
    });
    // Steps and calls of tasks that belong to no request and no operation begin no trace.
    let has_span = kind == Kind::Operation || context.has_active_span();
    if has_span {
        let kind_of_span = if kind == Kind::Call { SpanKind::Client } else { SpanKind::Internal };
        let tracer = global::tracer(SCOPE);
        let name = if kind == Kind::Call { format!("hypervisor {name}") } else { name.to_owned() };
        let span = tracer.span_builder(name).with_kind(kind_of_span).start_with_context(&tracer, &context);
        context = context.with_span(span);
    }
    let done = work.with_context(context.clone()).await;
    let result = word(&done);
    if has_span {
        let span = context.span();
        span.set_attribute(KeyValue::new("hotslot.result", result));
        if !["done", "pending"].contains(&result) {
            span.set_status(Status::error(result));
        }
        span.end();
    }
    if let (Some(recording), Some(index)) = (recording, index) {
        recording.end(index, result);
    }
    (done, result)
}

/// A request, which may be traced.
#[derive(Default)]
pub struct Traced(Context);

impl Traced {
    /// Begins the trace of a request, or continues the one that its caller began: by `traceparent`, or in this process.
    /// `name` is its method and route.
    pub fn request(name: String, headers: &HeaderMap) -> Self {
        let caller = TraceContextPropagator::new()
            .extract_with_context(&Context::current(), &HeaderExtractor(headers));
        Self(with_span(name, SpanKind::Server, &caller))
    }

    /// Runs the work of the request. Tasks that it spawns by `actor::spawn_as_current` belong to it too.
    pub fn work<F: Future>(&self, work: F) -> WithContext<F> {
        work.with_context(self.0.clone())
    }

    /// The header `traceparent` for requests on behalf of this one; `None` when nobody traces it.
    pub fn parent(&self) -> Option<String> {
        let mut headers = HeaderMap::new();
        inject(&self.0, &mut headers);
        Some(headers.get(PARENT)?.to_str().ok()?.to_owned())
    }

    /// Ends the span of the request with the status code of its answer.
    pub fn answered(self, status: u16) {
        let span = self.0.span();
        span.set_attribute(KeyValue::new("http.response.status_code", i64::from(status)));
        if status >= 500 {
            span.set_status(Status::error(status.to_string()));
        }
        span.end();
    }
}

/// The header of W3C Trace Context.
const PARENT: &str = "traceparent";

fn with_span(name: String, kind: SpanKind, parent: &Context) -> Context {
    let tracer = global::tracer(SCOPE);
    let span = tracer.span_builder(name).with_kind(kind).start_with_context(&tracer, parent);
    parent.with_span(span)
}

fn inject(context: &Context, headers: &mut HeaderMap) {
    TraceContextPropagator::new().inject_context(context, &mut HeaderInjector(headers));
}

/// The headers that continue the trace of the current task at another service.
pub(crate) fn headers() -> HeaderMap {
    let mut headers = HeaderMap::new();
    inject(&Context::current(), &mut headers);
    headers
}

/// A recorded header `traceparent`.
struct Parent<'a>(&'a str);

impl Extractor for Parent<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        (key == PARENT).then_some(self.0)
    }

    fn keys(&self) -> Vec<&str> {
        vec![PARENT]
    }
}

/// Runs something that is done later on behalf of the request with this `traceparent`.
pub(crate) async fn later<T>(
    name: String,
    parent: Option<&str>,
    work: impl Future<Output = Result<T, String>>,
) -> Result<T, String> {
    let Some(parent) = parent else { return work.await };
    let parent = TraceContextPropagator::new().extract_with_context(&Context::new(), &Parent(parent));
    let context = with_span(name, SpanKind::Client, &parent);
    let done = work.with_context(context.clone()).await;
    if let Err(reason) = &done {
        context.span().set_status(Status::error(reason.clone()));
    }
    context.span().end();
    done
}
