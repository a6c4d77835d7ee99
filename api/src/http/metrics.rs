//! `GET /metrics`: the metrics of the service, for Prometheus.

use std::sync::Arc;

use axum::extract::State;
use axum::http::header;
use axum::response::IntoResponse;
use hotslot_service::error::Error;
use hotslot_service::monitor::Monitor;

use super::error::Fault;

/// The type of the text format of OpenMetrics.
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Shows all metrics, in the text format of OpenMetrics.
#[utoipa::path(get, path = "/metrics", tag = "Service", operation_id = "show_metrics",
    responses((status = 200, description = "The metrics.", body = String, content_type = "application/openmetrics-text")))]
pub(super) async fn show(State(monitor): State<Arc<Monitor>>) -> Result<impl IntoResponse, Fault> {
    let text = monitor.text().await;
    let text = text.map_err(|error| Error::Internal(format!("the metrics cannot be written: {error}")))?;
    Ok(([(header::CONTENT_TYPE, OPEN_METRICS)], text))
}
