//! `GET /metrics`: the metrics of the service, for Prometheus.

use std::sync::Arc;

use axum::extract::State;
use axum::http::{HeaderMap, header};
use axum::response::IntoResponse;
use hotslot_service::error::Error;
use hotslot_service::monitor::{Monitor, TextFormat};

use super::error::Fault;

/// The media type of the text format of OpenMetrics.
const OPEN_METRICS: &str = "application/openmetrics-text";

/// Shows all metrics: in the text format of OpenMetrics when `Accept` prefers it, else in the one of Prometheus.
#[utoipa::path(get, path = "/metrics", tag = "Service", operation_id = "show_metrics",
    responses((status = 200, description = "The metrics.",
        content((String = "text/plain"), (String = "application/openmetrics-text")))))]
pub(super) async fn show(
    State(monitor): State<Arc<Monitor>>,
    headers: HeaderMap,
) -> Result<impl IntoResponse, Fault> {
    let (format, kind) = if prefers_open_metrics(&headers) {
        (TextFormat::OpenMetrics, "application/openmetrics-text; version=1.0.0; charset=utf-8")
    } else {
        (TextFormat::Prometheus, "text/plain; version=0.0.4; charset=utf-8")
    };
    let text = monitor.text(format).await;
    let text = text.map_err(|error| Error::Internal(format!("the metrics cannot be written: {error}")))?;
    Ok(([(header::CONTENT_TYPE, kind)], text))
}

/// Whether `Accept` names OpenMetrics, and gives no other media type a higher quality.
fn prefers_open_metrics(headers: &HeaderMap) -> bool {
    let (mut open, mut other) = (0.0_f32, 0.0_f32);
    let lists = headers.get_all(header::ACCEPT).iter().filter_map(|list| list.to_str().ok());
    for range in lists.flat_map(|list| list.split(',')) {
        let mut parts = range.split(';').map(str::trim);
        let kind = parts.next().unwrap_or_default();
        let quality = parts.find_map(|part| part.strip_prefix("q=")?.parse().ok()).unwrap_or(1.0);
        let best = if kind.eq_ignore_ascii_case(OPEN_METRICS) { &mut open } else { &mut other };
        *best = best.max(quality);
    }
    open > 0.0 && open >= other
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_format_is_the_one_that_accept_prefers() {
        let prometheus =
            "application/openmetrics-text;version=1.0.0;q=0.6,text/plain;version=0.0.4;q=0.5,*/*;q=0.1";
        for (accept, open) in [
            (None, false),
            (Some("*/*"), false),
            (Some("text/plain"), false),
            (Some("application/openmetrics-text"), true),
            (Some(prometheus), true),
            (Some("text/plain;version=0.0.4;q=0.6,application/openmetrics-text; q=0.5"), false),
            (Some("application/openmetrics-text;q=0"), false),
        ] {
            let accept = accept.map(|accept| (header::ACCEPT, accept.parse().unwrap()));
            let headers = HeaderMap::from_iter(accept);
            assert_eq!(prefers_open_metrics(&headers), open, "{headers:?}");
        }
    }
}
