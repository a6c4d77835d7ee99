//! `servers/{server_id}/os-pci_attachments`: attach devices to a server, list its attachments, detach them.
//!
//! The bodies follow the wiki page "Nova/pci hotplug". hotslot adds further keys to the seven of that page, such as the
//! state of an attachment.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{OriginalUri, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use hotslot_driver::hotplug::CheckResult;
use hotslot_driver::net::VlanTag;
use hotslot_model::assignment::{Attachment, InnerSource, State as AttachmentState};
use hotslot_model::device::Device;
use hotslot_model::id::{AttachmentId, RequestId, ServerId};
use hotslot_model::idempotency::IdempotencyKey;
use hotslot_model::rules;
use hotslot_model::rules::AliasRequests;
use hotslot_service::assignment::Assignments;
use hotslot_service::assignment::{AttachRequest, DetachRequest, DryRun, NetworkRequest};
use hotslot_service::config::Flavor;
use hotslot_service::error::Error;
use hotslot_service::flavor;
use hotslot_service::hosts::Hosts;
use hotslot_service::task;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::Version;
use super::body::{Page, Pairs, Path, id, read, time};
use super::error::Fault;
use super::permit::Permit;
use super::servers::ServerPath;
use super::state::{AttachParts, DeviceParts};

const EXAMPLE: &str = r#"{"pciAttachment": {"pci_passthrough:alias": "a1:1"}}"#;

/// The maximum length of the name of a physical network, in characters.
const PHYSICAL_NETWORK: usize = 255;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CreateBody {
    #[serde(rename = "pciAttachment")]
    attachment: CreateAttachment,
    /// `dry_run` is accepted here and in `pciAttachment`.
    #[serde(default)]
    dry_run: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CreateAttachment {
    #[serde(rename = "pci_passthrough:alias")]
    alias: Option<String>,
    /// The id or name of a flavor whose extra specs name the aliases; an alternative to `alias`.
    flavor: Option<String>,
    /// Whether the device is also added to the persistent definition, so that it survives a power cycle.
    #[serde(default = "yes")]
    persistent: bool,
    /// Whether to report only what an attach would do.
    #[serde(default)]
    dry_run: bool,
    /// Whether each part of the request takes whole IOMMU groups.
    #[serde(default)]
    whole_group: bool,
    /// Overrides the NUMA policies of the aliases.
    numa_policy: Option<String>,
    /// This key and the following ones apply to a VF of a NIC, which is then attached as `<interface type='hostdev'>`.
    mac_address: Option<String>,
    vlan: Option<u32>,
    physical_network: Option<String>,
    trusted: Option<bool>,
}

impl CreateAttachment {
    fn request(
        self,
        flavors: &[Flavor],
        server: ServerId,
        key: Option<IdempotencyKey>,
    ) -> Result<AttachRequest, Error> {
        let bad = |key: &str, error: &dyn std::fmt::Display| Error::Invalid(format!("{key}: {error}"));
        let (alias, own_policy) = match (self.alias, self.flavor) {
            (Some(alias), None) => (alias, None),
            (None, Some(name)) => {
                let flavor = flavor::called(flavors, &name).ok_or_else(|| {
                    bad("flavor", &format!("there is no flavor `{name}`; GET flavors lists them"))
                })?;
                let alias = flavor.extra_specs.get(flavor::PCI_ALIAS).ok_or_else(|| {
                    bad("flavor", &format!("`{name}` has no extra spec {}", flavor::PCI_ALIAS))
                })?;
                (alias.clone(), flavor.extra_specs.get(flavor::NUMA_POLICY).cloned())
            }
            (None, None) | (Some(_), Some(_)) => {
                return Err(Error::Invalid(format!(
                    "bad body: give either pci_passthrough:alias or flavor; send {EXAMPLE}"
                )));
            }
        };
        let aliases: AliasRequests = alias.parse().map_err(|error| bad("pci_passthrough:alias", &error))?;
        let mac = self.mac_address.as_deref().map(str::parse).transpose();
        let network = NetworkRequest {
            mac: mac.map_err(|error| bad("mac_address", &error))?,
            vlan: self.vlan.map(VlanTag::new).transpose().map_err(|error| bad("vlan", &error))?,
            physical_network: self.physical_network,
            trusted: self.trusted,
        };
        if network.physical_network.as_deref().is_some_and(|name| name.eq_ignore_ascii_case(rules::NULL)) {
            return Err(bad("physical_network", &"`null` is not a valid name; omit the key"));
        }
        if network.physical_network.as_ref().is_some_and(|name| name.chars().count() > PHYSICAL_NETWORK) {
            return Err(bad(
                "physical_network",
                &format_args!("a name has at most {PHYSICAL_NETWORK} characters"),
            ));
        }
        let count: usize = aliases.0.iter().map(|part| part.count).sum();
        if network.mac.is_some() && count != 1 {
            return Err(bad("mac_address", &format!("it applies to one device, and {count} are requested")));
        }
        let numa_policy = self.numa_policy.or(own_policy).as_deref().map(str::parse).transpose();
        Ok(AttachRequest {
            server,
            aliases: aliases.0,
            own: Vec::new(),
            persistent: self.persistent,
            whole_group: self.whole_group,
            numa_policy: numa_policy.map_err(|error: String| bad("numa_policy", &error))?,
            network: (network != NetworkRequest::default()).then_some(network),
            key,
            holder: None,
            owner: None,
        })
    }
}

fn yes() -> bool {
    true
}

/// An attachment as JSON: the seven keys of the wiki page "Nova/pci hotplug", and then the keys that hotslot adds.
#[derive(Serialize)]
struct Wire {
    attachment_id: AttachmentId,
    #[serde(rename = "serverId")]
    server_id: ServerId,
    dev_id: Option<String>,
    address: Option<String>,
    inner_address: Option<String>,
    vendor_id: String,
    product_id: String,

    inner_address_source: Option<InnerSource>,
    status: AttachmentState,
    status_reason: Option<String>,
    alias: Option<String>,
    persistent: bool,
    forced: bool,
    request_id: RequestId,
    holder: Option<String>,
    whole_group: bool,
    mac_address: Option<String>,
    vlan: Option<u16>,
    physical_network: Option<String>,
    trusted: Option<bool>,
    host: Option<String>,
    created_at: String,
    updated_at: Option<String>,
    attached_at: Option<String>,
    ended_at: Option<String>,
}

fn wire(hosts: &Hosts, attachment: Attachment, device: &Device) -> Wire {
    let network = attachment.network;
    Wire {
        request_id: attachment.request,
        holder: attachment.holder.map(|holder| holder.to_string()),
        whole_group: attachment.whole_group,
        mac_address: network.as_ref().map(|network| network.mac.to_string()),
        vlan: network.as_ref().and_then(|network| network.vlan).map(VlanTag::get),
        trusted: network.as_ref().and_then(|network| network.trusted),
        physical_network: network.and_then(|network| network.physical_network),
        attachment_id: attachment.id,
        server_id: attachment.server,
        dev_id: Some(device.facts.dev_id()),
        address: Some(device.facts.address.to_string()),
        inner_address: attachment.inner.map(|inner| inner.address.to_string()),
        vendor_id: device.facts.vendor_id.to_string(),
        product_id: device.facts.product_id.to_string(),
        inner_address_source: attachment.inner.map(|inner| inner.source),
        status: attachment.state,
        status_reason: attachment.reason,
        alias: Some(attachment.alias).filter(|alias| !alias.is_empty()),
        persistent: attachment.persistent,
        // An attach that was given up is also removed by force, but no caller requested that, so it is not shown.
        forced: attachment.forced && attachment.attached_at.is_some(),
        host: hosts.host(attachment.hypervisor).map(|host| host.name.clone()),
        created_at: time(attachment.created_at),
        updated_at: attachment.updated_at.map(time),
        attached_at: attachment.attached_at.map(time),
        ended_at: attachment.ended_at.map(time),
    }
}

impl Wire {
    /// Returns the attachment for callers who may not see the host: without its name, its addresses, the holder, which may
    /// be of another project, and the reason of the state, which may name any of these.
    fn without_host(self) -> Self {
        let status_reason = self.status_reason.map(|_| {
            match self.status {
                AttachmentState::Attaching => "the device is being attached",
                AttachmentState::Attached => "an earlier detach failed; detach again",
                AttachmentState::Detaching => "the guest has not released the device yet",
                AttachmentState::Detached => "the guest does not have the device any more",
                AttachmentState::Failed => "the attach failed",
            }
            .to_owned()
        });
        let holder = self.holder.and_then(|holder| holder.split(':').next().map(str::to_owned));
        Self { dev_id: None, address: None, host: None, holder, status_reason, ..self }
    }
}

async fn with_device(parts: &DeviceParts, permit: &Permit, attachment: Attachment) -> Result<Wire, Error> {
    let device = parts.records.known_device(attachment.device).await?;
    let device = device.ok_or_else(|| {
        Error::Internal(format!("the device of attachment {} has no record", attachment.id))
    })?;
    Ok(shown(&parts.hosts, permit, attachment, &device))
}

/// Returns what the caller may see of an attachment.
fn shown(hosts: &Hosts, permit: &Permit, attachment: Attachment, device: &Device) -> Wire {
    let all = wire(hosts, attachment, device);
    if permit.sees_hosts() { all } else { all.without_host() }
}

#[derive(Deserialize)]
pub(super) struct AttachmentPath {
    server_id: String,
    attachment_id: String,
}

impl AttachmentPath {
    fn ids(&self) -> Result<(ServerId, AttachmentId), Error> {
        Ok((id(&self.server_id, "server")?, id(&self.attachment_id, "PCI attachment")?))
    }
}

pub(super) async fn create(
    State(AttachParts { assignments, hosts, config }): State<AttachParts>,
    permit: Permit,
    Path(path): Path<ServerPath>,
    key: Option<Extension<IdempotencyKey>>,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<Json<Value>, Fault> {
    let body: CreateBody = read(&headers, body, EXAMPLE)?;
    let dry_run = body.attachment.dry_run || body.dry_run;
    let request = body.attachment.request(&config.flavor, path.id()?, key.map(|Extension(key)| key))?;
    let owner = permit.check(&hosts, request.server).await?;
    let request = AttachRequest { owner, ..request };
    let isolates = |network: &NetworkRequest| network.vlan.is_some() || network.mac.is_some();
    if request.network.as_ref().is_some_and(isolates) && !permit.chooses_networks() {
        let message = "vlan and mac_address are for administrators and services, because they separate the networks of \
                       projects; attach without them";
        return Err(Fault::new(StatusCode::FORBIDDEN, message));
    }
    if dry_run {
        let run = assignments.dry_run(&request).await?;
        return Ok(Json(json!({ "dry_run": described(&run, permit.sees_hosts()) })));
    }
    let attached = assignments.attach(request).await?;
    let devices =
        attached.into_iter().map(|(attachment, device)| shown(&hosts, &permit, attachment, &device));
    let devices: Vec<_> = devices.collect();
    Ok(Json(json!({ "pci_devices": devices })))
}

/// Describes a dry run. A caller who may not see the host gets neither addresses nor the checks of single devices, because
/// these tell which devices there are and who has them.
fn described(run: &DryRun, sees_host: bool) -> Value {
    let shown = |text: String| sees_host.then_some(text);
    let devices = run.devices.iter().map(|(alias, device)| {
        json!({
            "dev_id": shown(device.facts.dev_id()),
            "address": shown(device.facts.address.to_string()),
            "vendor_id": device.facts.vendor_id,
            "product_id": device.facts.product_id,
            "alias": alias,
        })
    });
    let checks = run.checks.iter().filter(|check| sees_host || check.device.is_none()).map(|check| {
        let result = match check.result {
            CheckResult::Pass => "pass",
            CheckResult::Fail => "fail",
            CheckResult::Unknown => "unknown",
        };
        json!({
            "check": check.name,
            "device": check.device,
            "result": result,
            "message": sees_host.then_some(&check.message),
            "cure": check.cure.as_ref().filter(|_| sees_host),
        })
    });
    json!({
        "would_attach": run.would_attach(),
        "pci_devices": devices.collect::<Vec<_>>(),
        "checks": checks.collect::<Vec<_>>(),
    })
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

fn boolean(key: &str, word: &str) -> Result<bool, Error> {
    word.parse().map_err(|_| Error::Invalid(format!("invalid {key} {word}: expected true or false")))
}

pub(super) async fn list(
    State(parts): State<DeviceParts>,
    permit: Permit,
    Path(path): Path<ServerPath>,
    uri: OriginalUri,
    headers: HeaderMap,
    pairs: Pairs,
) -> Result<Json<Value>, Fault> {
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
pub(super) async fn list_all(
    State(parts): State<DeviceParts>,
    permit: Permit,
    uri: OriginalUri,
    headers: HeaderMap,
    pairs: Pairs,
) -> Result<Json<Value>, Fault> {
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
) -> Result<Json<Value>, Fault> {
    let (rows, next) = page.cut(rows, uri, headers, |row| row.id.to_string());
    let mut attachments = Vec::new();
    for row in rows {
        attachments.push(with_device(parts, permit, row).await?);
    }
    let mut body = json!({ "pciAttachment": attachments });
    if let Some(next) = next {
        body["pciAttachment_links"] = next;
    }
    Ok(Json(body))
}

pub(super) async fn show(
    State(assignments): State<Arc<Assignments>>,
    State(parts): State<DeviceParts>,
    permit: Permit,
    Path(path): Path<AttachmentPath>,
) -> Result<Json<Value>, Fault> {
    let (server, id) = path.ids()?;
    permit.check(&parts.hosts, server).await?;
    let attachment = assignments.attachment_of(server, id).await?;
    if attachment.state.is_final() {
        return Err(Error::NoAttachment(id).into());
    }
    Ok(Json(json!({ "pciAttachment": with_device(&parts, &permit, attachment).await? })))
}

/// The longest time for which a project's caller may wait for a detach.
const LONGEST_WAIT: Duration = Duration::from_secs(600);

/// Parses `?timeout=30s&force=true`.
pub(super) fn detach_request(Pairs(pairs): Pairs) -> Result<DetachRequest, Error> {
    let mut request = DetachRequest::default();
    for (key, value) in pairs {
        match key.as_str() {
            "timeout" => request.timeout = Some(duration(&value)?),
            "force" => request.force = boolean(&key, &value)?,
            _ => return Err(Error::Invalid(format!("unknown query key {key}; known: timeout, force"))),
        }
    }
    Ok(request)
}

/// Parses `30s`, `500ms`, `2m` or `1h`; a number without a unit is in seconds. The time must be above 0 and at most a
/// day.
fn duration(text: &str) -> Result<Duration, Error> {
    const DAY: Duration = Duration::from_secs(86_400);
    let (number, unit) =
        text.split_at(text.find(|digit: char| !digit.is_ascii_digit()).unwrap_or(text.len()));
    let millis = match unit {
        "ms" => Some(1),
        "" | "s" => Some(1000),
        "m" => Some(60_000),
        "h" => Some(3_600_000),
        _ => None,
    };
    let millis = millis.zip(number.parse::<u64>().ok()).and_then(|(unit, number)| number.checked_mul(unit));
    let time = millis.map(Duration::from_millis).filter(|time| !time.is_zero() && *time <= DAY);
    time.ok_or_else(|| {
        Error::Invalid(format!(
            "invalid timeout {text}: expected a time up to a day; write 30s, 500ms, 2m or 1h"
        ))
    })
}

/// Detaches a device. v2 returns 200 when the device is gone; v2.1 and v3 return 202 at once, and the detach continues.
pub(super) async fn delete(
    State(assignments): State<Arc<Assignments>>,
    State(hosts): State<Arc<Hosts>>,
    permit: Permit,
    Extension(version): Extension<Version>,
    Path(path): Path<AttachmentPath>,
    pairs: Pairs,
) -> Result<Response, Fault> {
    let (server, id) = path.ids()?;
    let request = detach_request(pairs)?;
    if request.timeout.is_some_and(|timeout| timeout > LONGEST_WAIT) && !permit.covers_all() {
        let most = LONGEST_WAIT.as_secs();
        let message =
            format!("invalid timeout: administrators may wait longer, you at most {most}s; write {most}s");
        return Err(Fault::new(StatusCode::BAD_REQUEST, message));
    }
    permit.check(&hosts, server).await?;
    let work = assignments.begin_detach(server, id, request).await?;
    match version {
        Version::V2 => {
            if let Some(work) = work {
                task::join(work).await?;
            }
            Ok(StatusCode::OK.into_response())
        }
        Version::V21 | Version::V3 => {
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
        for (text, millis) in [
            ("30", 30_000),
            ("30s", 30_000),
            ("500ms", 500),
            ("2m", 120_000),
            ("24h", 86_400_000),
            ("007s", 7000),
        ] {
            assert_eq!(duration(text).unwrap().as_millis(), millis, "{text}");
        }
        for bad in
            ["", "0", "0s", "s", "-1", "+1", "1.5s", "1 s", "1S", "25h", "86401", "18446744073709551615m"]
        {
            assert!(duration(bad).unwrap_err().to_string().contains("write 30s"), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn every_accepted_timeout_is_above_zero_and_at_most_a_day(text in "[0-9]{0,22}(|ms|s|m|h|\\PC{0,3})") {
            if let Ok(time) = duration(&text) {
                prop_assert!(!time.is_zero() && time <= Duration::from_secs(86_400));
            }
        }
    }
}
