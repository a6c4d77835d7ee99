//! Sends the spans of traces to a collector of OpenTelemetry: OTLP over HTTP.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use opentelemetry::{KeyValue, global};
use opentelemetry_http::{Bytes, HttpClient, HttpError, Request, Response};
use opentelemetry_otlp::{Protocol, SpanExporter, WithExportConfig as _, WithHttpConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::SdkTracerProvider;
use reqwest::redirect::Policy;
use tokio::runtime::Handle;

use crate::config::{ConfigError, Trace, collector_url};
use crate::tls;

/// How long the collector may take to answer.
const TIMEOUT: Duration = Duration::from_secs(10);

/// How long the last spans may take when the service stops.
const LAST: Duration = Duration::from_secs(2);

/// Sends spans while it exists.
pub struct Exporter(SdkTracerProvider);

impl Exporter {
    /// Begins to send the spans of this process to the configured collector. Returns `None` when none is configured.
    ///
    /// # Errors
    /// [`ConfigError::Value`] when the URL or the file of the authority cannot be used.
    pub fn start(config: &Trace) -> Result<Option<Self>, ConfigError> {
        let Some(endpoint) = &config.endpoint else { return Ok(None) };
        let bad = |key: &str, reason: String| ConfigError::Value { key: format!("[trace] {key}"), reason };
        let url = collector_url(endpoint).map_err(|reason| bad("endpoint", reason))?;
        let tls = tls::authorities_for(&url, config.ca.as_deref())
            .and_then(|authorities| tls::client(authorities, None))
            .map_err(|reason| bad("ca", reason))?;
        let http = reqwest::Client::builder()
            .no_proxy()
            .tls_backend_preconfigured(tls)
            .redirect(Policy::none())
            .timeout(TIMEOUT)
            .user_agent(concat!("hotslot/", env!("CARGO_PKG_VERSION")))
            .build()
            .map_err(|error| bad("endpoint", error.to_string()))?;
        let sender = Sender { http, runtime: Handle::current(), failing: Arc::default() };
        let exporter = SpanExporter::builder()
            .with_http()
            .with_http_client(sender)
            .with_protocol(Protocol::HttpBinary)
            .with_endpoint(url.as_str())
            .with_timeout(TIMEOUT)
            .build()
            .map_err(|error| bad("endpoint", error.to_string()))?;
        let version = KeyValue::new("service.version", env!("CARGO_PKG_VERSION"));
        let resource = Resource::builder().with_service_name("hotslot").with_attribute(version).build();
        let provider =
            SdkTracerProvider::builder().with_resource(resource).with_batch_exporter(exporter).build();
        global::set_tracer_provider(provider.clone());
        Ok(Some(Self(provider)))
    }

    /// Sends the spans that are left.
    pub async fn stop(self) {
        // It waits for a thread, so it must not run on a thread of the runtime.
        let stopped = tokio::task::spawn_blocking(move || self.0.shutdown_with_timeout(LAST)).await;
        if let Ok(Err(error)) = stopped {
            tracing::warn!(%error, "the last spans were not sent to the collector of traces");
        }
    }
}

/// Posts spans. The exporter calls it from a thread without a runtime.
#[derive(Debug)]
struct Sender {
    http: reqwest::Client,
    runtime: Handle,
    /// Whether the last attempt failed, so that the log has each outage once.
    failing: Arc<AtomicBool>,
}

#[async_trait]
impl HttpClient for Sender {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let http = self.http.clone();
        let sent = self.runtime.spawn(async move {
            let response = http.execute(request.try_into()?).await?;
            let (status, headers) = (response.status(), response.headers().clone());
            let mut answer = Response::builder().status(status).body(response.bytes().await?)?;
            *answer.headers_mut() = headers;
            Ok::<_, HttpError>(answer)
        });
        let answer = sent.await?;
        let problem = match &answer {
            Ok(answer) if answer.status().is_success() => None,
            Ok(answer) => Some(format!("it answered {}", answer.status())),
            Err(error) => Some(cause(error.as_ref())),
        };
        let failed_before = self.failing.swap(problem.is_some(), Ordering::Relaxed);
        match problem {
            Some(reason) if !failed_before => {
                tracing::warn!(
                    reason,
                    "spans are lost, because the collector of [trace] endpoint does not take them"
                );
            }
            None if failed_before => tracing::info!("the collector of [trace] endpoint takes spans again"),
            Some(_) | None => {}
        }
        answer
    }
}

/// Returns the innermost cause of an error.
fn cause(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(deeper) = cause.source() {
        cause = deeper;
    }
    cause.to_string()
}
