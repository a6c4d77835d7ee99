//! `servers/{server_id}/os-pci_attachments`: attach devices to a server, list its attachments, detach them.
//!
//! The bodies follow the wiki page "Nova/pci hotplug". hotslot adds further keys to the seven of that page, such as the
//! state of an attachment.

mod request;
mod wire;

use std::sync::Arc;
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{OriginalUri, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use hotslot_model::assignment::Attachment;
use hotslot_model::id::{AttachmentId, ServerId};
use hotslot_model::idempotency::IdempotencyKey;
use hotslot_service::assignment::Assignments;
use hotslot_service::assignment::{AttachRequest, DetachRequest, NetworkRequest};
use hotslot_service::config::duration;
use hotslot_service::error::Error;
use hotslot_service::hosts::Hosts;
use hotslot_service::task;
use serde::{Deserialize, Serialize};
use utoipa::IntoParams;

use self::request::{CreateBody, EXAMPLE};
use self::wire::{Created, PciAttachmentAnswer, PciAttachmentList, shown, with_device};
pub(super) use self::wire::{DryRunReport, described};

use super::Version;
use super::body::{Page, PageParams, Pairs, Path, boolean, id, not_listed, read};
use super::error::Fault;
use super::permit::Permit;
use super::schema;
use super::servers::ServerPath;
use super::state::{AttachParts, DeviceParts};
use super::trace::{self, TraceQuery, TraceReport, traced};

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Path)]
pub(super) struct AttachmentPath {
    /// The id of the server: the UUID of its domain.
    server_id: String,
    /// The id of the attachment.
    attachment_id: String,
}

impl AttachmentPath {
    fn ids(&self) -> Result<(ServerId, AttachmentId), Error> {
        let server = id(&self.server_id).ok_or_else(|| not_listed("server", &self.server_id, "servers"))?;
        let attachment = id(&self.attachment_id);
        let missing = || not_listed("PCI attachment", &self.attachment_id, "os-pci_attachments");
        Ok((server, attachment.ok_or_else(missing)?))
    }
}

/// The rule for attaching a device by its address.
pub(super) const BY_ADDRESS: &str = "hotslot:attachment:create_by_address";

/// Attaches devices to a server: all of them, or none.
///
/// With an `Idempotency-Key`, a request that is sent again is executed once.
#[utoipa::path(post, path = "/servers/{server_id}/os-pci_attachments", tag = "Attachments",
    params(ServerPath, TraceQuery),
    request_body(content = CreateBody, example = json!({ "pciAttachment": { "pci_passthrough:alias": "vf:1" } })),
    responses(
        (status = 200, description = "The attachments, or what an attach would do.", body = Created),
    ))]
pub(super) async fn create(
    State(AttachParts { assignments, hosts, config }): State<AttachParts>,
    permit: Permit,
    Path(path): Path<ServerPath>,
    key: Option<Extension<IdempotencyKey>>,
    Pairs(mut pairs): Pairs,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<Json<Created>, Fault> {
    let body: CreateBody = read(&headers, body, EXAMPLE)?;
    let wants_trace = trace::wanted(&mut pairs, &permit)?;
    let dry_run = body.attachment.dry_run || body.dry_run;
    if !body.attachment.addresses.is_empty() {
        permit.require_for_all(BY_ADDRESS)?;
    }
    let request = body.attachment.request(&config.flavor, path.id()?, key.map(|Extension(key)| key))?;
    let owner = permit.check(&hosts, request.server).await?;
    let request = AttachRequest { owner, ..request };
    let isolates = |network: &NetworkRequest| {
        let vf = network.trusted == Some(true) || !network.vf.is_empty();
        network.vlan.is_some() || network.mac.is_some() || vf
    };
    if request.network.as_ref().is_some_and(isolates) && !permit.chooses_networks() {
        let message = "vlan, mac_address, trusted, spoof_check, link_state, min_tx_rate and max_tx_rate are for \
                       administrators and services, because they separate the networks of projects; attach without \
                       them";
        return Err(Fault::new(StatusCode::FORBIDDEN, message));
    }
    if dry_run {
        let (run, trace) = traced(wants_trace, assignments.dry_run(&request)).await?;
        return Ok(Json(Created::DryRun { dry_run: described(&run, permit.sees_hosts()), trace }));
    }
    let (attached, trace) = traced(wants_trace, assignments.attach(request)).await?;
    let devices =
        attached.into_iter().map(|(attachment, device)| shown(&hosts, &permit, attachment, &device));
    Ok(Json(Created::Attached { pci_devices: devices.collect(), trace }))
}

/// The maximum number of ended attachments that are listed.
const ENDED: u32 = 1000;

/// Parses `?ended=true`, which lists ended attachments instead of current ones.
fn wants_ended(pairs: Vec<(String, String)>) -> Result<bool, Error> {
    let mut ended = false;
    for (key, value) in pairs {
        ended = match key.as_str() {
            "ended" => boolean(&key, &value)?,
            _ => return Err(Error::Invalid(format!("unknown query key {key}; known: ended, limit, marker"))),
        };
    }
    Ok(ended)
}

/// The filter of a list.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[allow(dead_code, reason = "the description of the API is made from it; `wants_ended` reads the key")]
struct EndedQuery {
    /// Whether to list the last 1000 attachments that have ended instead of those that have not.
    ended: Option<bool>,
}

/// Lists the attachments of a server.
#[utoipa::path(get, path = "/servers/{server_id}/os-pci_attachments", tag = "Attachments",
    params(ServerPath, PageParams, EndedQuery),
    responses((status = 200, description = "A page of the list.", body = PciAttachmentList)))]
pub(super) async fn list(
    State(parts): State<DeviceParts>,
    permit: Permit,
    Path(path): Path<ServerPath>,
    uri: OriginalUri,
    headers: HeaderMap,
    pairs: Pairs,
) -> Result<Json<PciAttachmentList>, Fault> {
    let server = path.id()?;
    let (page, rest) = Page::read(pairs)?;
    let ended = wants_ended(rest)?;
    permit.check(&parts.hosts, server).await?;
    let mut rows = if ended {
        parts.records.ended_attachments(Some(server), ENDED).await?
    } else {
        let rows = parts.records.attachments_of(server).await?;
        if rows.is_empty() {
            // Distinguish a server without attachments from a server that does not exist.
            parts.hosts.find(server).await?;
        }
        rows
    };
    page.skip(&mut rows, |row, marker| row.id.to_string().eq_ignore_ascii_case(marker))?;
    listed(&parts, &permit, &page, rows, &uri, &headers).await
}

/// Lists the attachments of all servers that the caller may use. An extension of hotslot.
#[utoipa::path(get, path = "/os-pci_attachments", tag = "Attachments", params(PageParams, EndedQuery),
    responses((status = 200, description = "A page of the list.", body = PciAttachmentList)))]
pub(super) async fn list_all(
    State(parts): State<DeviceParts>,
    permit: Permit,
    uri: OriginalUri,
    headers: HeaderMap,
    pairs: Pairs,
) -> Result<Json<PciAttachmentList>, Fault> {
    let (page, rest) = Page::read(pairs)?;
    let ended = wants_ended(rest)?;
    if !ended && permit.covers_all() {
        let marker = page.marker.as_deref();
        let unknown =
            || Error::Invalid("invalid marker: no item of the list has this id; begin without marker".into());
        let after = marker.map(str::parse).transpose().map_err(|_| unknown())?;
        let rows = parts.records.attachments_after(None, after, page.limit + 1).await?;
        return listed(&parts, &permit, &page, rows.ok_or_else(unknown)?, &uri, &headers).await;
    }
    let rows = if ended {
        parts.records.ended_attachments(None, ENDED).await?
    } else {
        parts.records.attachments().await?
    };
    let mut rows = permit.keep(&parts.hosts, rows, |row| (row.hypervisor, row.server)).await;
    page.skip(&mut rows, |row, marker| row.id.to_string().eq_ignore_ascii_case(marker))?;
    listed(&parts, &permit, &page, rows, &uri, &headers).await
}

async fn listed(
    parts: &DeviceParts,
    permit: &Permit,
    page: &Page,
    rows: Vec<Attachment>,
    uri: &OriginalUri,
    headers: &HeaderMap,
) -> Result<Json<PciAttachmentList>, Fault> {
    let (rows, links) = page.cut(rows, uri, headers, |row| row.id.to_string());
    let mut attachments = Vec::new();
    for row in rows {
        attachments.push(with_device(parts, permit, row).await?);
    }
    Ok(Json(PciAttachmentList { attachments, links }))
}

/// Shows an attachment of a server that has not ended.
#[utoipa::path(get, path = "/servers/{server_id}/os-pci_attachments/{attachment_id}", tag = "Attachments",
    params(AttachmentPath),
    responses((status = 200, description = "The attachment.", body = PciAttachmentAnswer)))]
pub(super) async fn show(
    State(assignments): State<Arc<Assignments>>,
    State(parts): State<DeviceParts>,
    permit: Permit,
    Path(path): Path<AttachmentPath>,
) -> Result<Json<PciAttachmentAnswer>, Fault> {
    let (server, id) = path.ids()?;
    permit.check(&parts.hosts, server).await?;
    let attachment = assignments.attachment_of(server, id).await?;
    if attachment.state.is_final() {
        return Err(Error::NoAttachment(id).into());
    }
    let attachment = with_device(&parts, &permit, attachment).await?;
    Ok(Json(PciAttachmentAnswer { attachment }))
}

/// The longest time for which a project's caller may wait for a detach.
const LONGEST_WAIT: Duration = Duration::from_secs(600);

/// The query of a detach.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[allow(dead_code, reason = "the description of the API is made from it; `detach_request` reads the keys")]
pub(super) struct DetachQuery {
    /// How long to wait for the guest, above 0 and at most a day: `30s`, `500ms`, `2m` or `1h`; a number without a unit is in
    /// seconds. Callers with a role in a project may wait 600 seconds at most.
    #[param(value_type = Option<schema::WaitTime>, inline)]
    timeout: Option<String>,
    /// Whether to detach a device that must not be taken from a running guest.
    force: Option<bool>,
}

/// Parses `?timeout=30s&force=true`.
pub(super) fn detach_request(Pairs(pairs): Pairs) -> Result<DetachRequest, Error> {
    let mut request = DetachRequest::default();
    for (key, value) in pairs {
        match key.as_str() {
            "timeout" => request.timeout = Some(time_limit(&value)?),
            "force" => request.force = boolean(&key, &value)?,
            _ => return Err(Error::Invalid(format!("unknown query key {key}; known: timeout, force"))),
        }
    }
    Ok(request)
}

/// Parses `30s`, `500ms`, `2m` or `1h`; a number without a unit is in seconds. The time must be above 0 and at most a
/// day.
fn time_limit(text: &str) -> Result<Duration, Error> {
    const DAY: Duration = Duration::from_secs(86_400);
    // Other forms, such as `1h30m`, are not in the description.
    let unit = text.trim_start_matches(|letter: char| letter.is_ascii_digit());
    let time = match unit {
        "" => text.parse().map(Duration::from_secs).ok(),
        "ms" | "s" | "m" | "h" => duration(text),
        _ => None,
    };
    time.filter(|time| !time.is_zero() && *time <= DAY).ok_or_else(|| {
        Error::Invalid(format!(
            "invalid timeout {text}: expected a time up to a day; write 30s, 500ms, 2m or 1h"
        ))
    })
}

/// What a detach with a trace returns.
#[derive(Serialize)]
struct Detached {
    trace: TraceReport,
}

/// Detaches a device. v2 returns 200 when the device is gone; v2.1 and v3 return 202 at once, and the detach continues.
#[utoipa::path(delete, path = "/servers/{server_id}/os-pci_attachments/{attachment_id}", tag = "Attachments",
    params(AttachmentPath, DetachQuery, TraceQuery),
    responses(
        (status = 200, description = "The device is gone from the guest. Only under `/v2`. With `trace=1` the body is an \
            object with the key `trace`, as in the answer of an attach; otherwise it is empty."),
        (status = 202, description = "The detach has begun. Only under `/v2.1` and `/v3`."),
    ))]
pub(super) async fn delete(
    State(assignments): State<Arc<Assignments>>,
    State(hosts): State<Arc<Hosts>>,
    permit: Permit,
    Extension(version): Extension<Version>,
    Path(path): Path<AttachmentPath>,
    Pairs(mut pairs): Pairs,
) -> Result<Response, Fault> {
    let (server, id) = path.ids()?;
    let wants_trace = trace::wanted(&mut pairs, &permit)?;
    if wants_trace && !matches!(version, Version::V2) {
        let reason = "trace: this answer comes before the detach is done; send the request under /v2, which waits for it";
        return Err(Error::Invalid(reason.into()).into());
    }
    let request = detach_request(Pairs(pairs))?;
    if request.timeout.is_some_and(|timeout| timeout > LONGEST_WAIT) && !permit.covers_all() {
        let most = LONGEST_WAIT.as_secs();
        let message =
            format!("invalid timeout: administrators may wait longer, you at most {most}s; write {most}s");
        return Err(Fault::new(StatusCode::BAD_REQUEST, message));
    }
    permit.check(&hosts, server).await?;
    match version {
        Version::V2 => {
            let work = async {
                match assignments.begin_detach(server, id, request).await? {
                    Some(work) => task::join(work).await,
                    None => Ok(()),
                }
            };
            Ok(match traced(wants_trace, work).await?.1 {
                Some(trace) => Json(Detached { trace }).into_response(),
                None => StatusCode::OK.into_response(),
            })
        }
        Version::V21 | Version::V3 => {
            let work = assignments.begin_detach(server, id, request).await?;
            if let Some(work) = work {
                tokio::spawn(async move {
                    if let Ok(Err(error)) = work.await {
                        tracing::warn!(attachment.id = %id, %error, "the detach of attachment {id} failed");
                    }
                });
            }
            Ok(StatusCode::ACCEPTED.into_response())
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_timeout_is_a_number_with_an_optional_unit() {
        for (text, millis) in
            [("30", 30_000), ("30s", 30_000), ("500ms", 500), ("2m", 120_000), ("24h", 86_400_000)]
        {
            assert_eq!(time_limit(text).unwrap().as_millis(), millis, "{text}");
        }
        for bad in
            ["", "0", "0s", "s", "-1", "-1s", "1x", "1mo", "1m30s", "25h", "86401", "18446744073709551615m"]
        {
            assert!(time_limit(bad).unwrap_err().to_string().contains("write 30s"), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn every_accepted_timeout_is_above_zero_and_at_most_a_day(text in "[0-9]{0,22}(|ms|s|m|h|\\PC{0,3})") {
            if let Ok(time) = time_limit(&text) {
                prop_assert!(!time.is_zero() && time <= Duration::from_secs(86_400));
            }
        }
    }
}
