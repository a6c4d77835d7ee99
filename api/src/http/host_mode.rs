//! `os-hypervisors/{hypervisor_id}/mode`: what may be changed on a host. An extension of hotslot.

use std::sync::Arc;

use axum::Json;
use axum::body::Bytes;
use axum::extract::State;
use axum::extract::rejection::BytesRejection;
use axum::http::HeaderMap;
use hotslot_model::host_mode::HostMode;
use hotslot_service::error::Error;
use hotslot_service::hosts::Hosts;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::body::{Path, read};
use super::error::Fault;
use super::hypervisors::{HypervisorPath, RestrictionView};
use super::schema;

const EXAMPLE: &str =
    r#"{"hypervisor_mode": {"mode": "frozen", "reason": "new firmware"}}, with open, draining or frozen"#;

/// The maximum number of characters of a reason.
const LONGEST: usize = 255;

/// A change of what may be changed on a host.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = HypervisorModeChange)]
struct ModeChange {
    /// The new mode.
    hypervisor_mode: NewMode,
}

/// The new mode of a host.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = NewHypervisorMode)]
struct NewMode {
    /// What may be changed from now on.
    mode: Settable,
    /// Why, for people.
    #[serde(default)]
    #[schema(min_length = 1, max_length = 255)]
    reason: Option<String>,
}

/// What may be changed on a host, as far as an administrator decides it.
#[derive(Clone, Copy, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
#[schema(as = SettableHypervisorMode)]
enum Settable {
    /// Everything.
    Open,
    /// Nothing new is attached; what is attached can be detached.
    Draining,
    /// Nothing.
    Frozen,
}

/// What may be changed on a host now.
#[derive(Serialize, ToSchema)]
#[schema(as = HypervisorModeAnswer)]
pub(super) struct ModeAnswer {
    /// The mode of the host.
    hypervisor_mode: ModeView,
}

/// What may be changed on a host.
#[derive(Serialize, ToSchema)]
#[schema(as = HypervisorMode)]
struct ModeView {
    /// What may be changed.
    #[schema(value_type = schema::HypervisorModeName)]
    mode: HostMode,
    /// Who decided it; null when the host is open.
    restriction: Option<RestrictionView>,
}

/// Freezes, drains or opens a host. An extension of hotslot.
#[utoipa::path(put, path = "/os-hypervisors/{hypervisor_id}/mode", tag = "Hypervisors", params(HypervisorPath),
    operation_id = "set_mode",
    request_body(content = ModeChange,
        example = json!({ "hypervisor_mode": { "mode": "open" } })),
    responses(
        (status = 200, description = "What may be changed on the host now.", body = ModeAnswer),
        (status = 409, description = "The configuration makes the host read-only."),
    ))]
pub(super) async fn set(
    State(hosts): State<Arc<Hosts>>,
    Path(path): Path<HypervisorPath>,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<Json<ModeAnswer>, Fault> {
    let host = path.host(&hosts)?;
    let ModeChange { hypervisor_mode: NewMode { mode, reason } } = read(&headers, body, EXAMPLE)?;
    let length = reason.as_ref().map(|reason| reason.chars().count());
    if let Some(length) = length.filter(|length| !(1..=LONGEST).contains(length)) {
        let message =
            format!("invalid reason: it has {length} characters; expected 1 to {LONGEST}, or no reason");
        return Err(Error::Invalid(message).into());
    }
    let mode = match mode {
        Settable::Open => HostMode::Open,
        Settable::Draining => HostMode::Draining,
        Settable::Frozen => HostMode::Frozen,
    };
    let now = hosts.set_mode(host, mode, reason.as_deref()).await?;
    let mode = now.as_ref().map_or(HostMode::Open, |restriction| restriction.mode);
    let restriction = now.as_ref().map(RestrictionView::from);
    Ok(Json(ModeAnswer { hypervisor_mode: ModeView { mode, restriction } }))
}
