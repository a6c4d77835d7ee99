//! `servers/{server_id}/os-pci_attachments`: plug a device into a server, list what is plugged, unplug it.
//!
//! The bodies are seed 001's (the wiki page "Nova/pci hotplug"); the keys beyond the seed's seven say what state
//! an attachment is in.

use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::State;
use axum::extract::rejection::BytesRejection;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use hotslot_driver::hotplug::CheckResult;
use hotslot_driver::net::VlanTag;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::Version;
use super::body::{Path, id, read, time};
use super::error::Fault;
use super::servers::ServerPath;
use crate::attachment::attach::AttachRequest;
use crate::attachment::{DryRun, NetworkRequest, State as AttachmentState};
use crate::error::Error;
use crate::flavor;
use crate::id::{AttachmentId, RequestId, ServerId};
use crate::inventory::AliasRequests;
use crate::service::Service;
use crate::store::{Attachment, Device, InnerSource};

const EXAMPLE: &str = r#"{"pciAttachment": {"pci_passthrough:alias": "a1:1"}}"#;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CreateBody {
    #[serde(rename = "pciAttachment")]
    attachment: CreateAttachment,
    /// Here too.
    #[serde(default)]
    dry_run: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CreateAttachment {
    #[serde(rename = "pci_passthrough:alias")]
    alias: Option<String>,
    /// In place of an alias: the id or name of a flavor that names some.
    flavor: Option<String>,
    /// Whether the device goes into the persistent definition too, to be there after a power cycle.
    #[serde(default = "yes")]
    persistent: bool,
    /// Whether it is only to be said what would be done.
    #[serde(default)]
    dry_run: bool,
    /// Whether each part asks for whole IOMMU groups.
    #[serde(default)]
    whole_group: bool,
    /// In place of the aliases' own policies.
    numa_policy: Option<String>,
    /// For a VF of a NIC, which is then given as `<interface type='hostdev'>`.
    mac_address: Option<String>,
    vlan: Option<u32>,
    physical_network: Option<String>,
    trusted: Option<bool>,
}

impl CreateAttachment {
    fn request(self, service: &Service, server: ServerId) -> Result<AttachRequest, Error> {
        let bad = |key: &str, error: &dyn std::fmt::Display| Error::Invalid(format!("{key}: {error}"));
        let (alias, own_policy) = match (self.alias, self.flavor) {
            (Some(alias), None) => (alias, None),
            (None, Some(name)) => {
                let flavor = service.flavor(&name).ok_or_else(|| {
                    bad("flavor", &format!("no flavor is called `{name}`; GET flavors lists them"))
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
        let count: usize = aliases.0.iter().map(|part| part.count).sum();
        if network.mac.is_some() && count != 1 {
            return Err(bad("mac_address", &format!("it is of one device, and {count} are asked for")));
        }
        let numa_policy = self.numa_policy.or(own_policy).as_deref().map(str::parse).transpose();
        Ok(AttachRequest {
            server,
            aliases: aliases.0,
            persistent: self.persistent,
            whole_group: self.whole_group,
            numa_policy: numa_policy.map_err(|error: String| bad("numa_policy", &error))?,
            network: (network != NetworkRequest::default()).then_some(network),
        })
    }
}

fn yes() -> bool {
    true
}

/// An attachment on the wire: the seed's seven keys, and its state.
#[derive(Serialize)]
struct Wire {
    attachment_id: AttachmentId,
    #[serde(rename = "serverId")]
    server_id: ServerId,
    dev_id: String,
    address: String,
    inner_address: Option<String>,
    vendor_id: String,
    product_id: String,

    inner_address_source: Option<InnerSource>,
    status: AttachmentState,
    status_reason: Option<String>,
    alias: String,
    persistent: bool,
    request_id: RequestId,
    whole_group: bool,
    mac_address: Option<String>,
    vlan: Option<u16>,
    physical_network: Option<String>,
    trusted: Option<bool>,
    host: Option<String>,
    created_at: String,
    updated_at: Option<String>,
    attached_at: Option<String>,
}

fn wire(service: &Service, attachment: Attachment, device: &Device) -> Wire {
    let network = attachment.network;
    Wire {
        request_id: attachment.request,
        whole_group: attachment.whole_group,
        mac_address: network.as_ref().map(|network| network.mac.to_string()),
        vlan: network.as_ref().and_then(|network| network.vlan).map(VlanTag::get),
        trusted: network.as_ref().and_then(|network| network.trusted),
        physical_network: network.and_then(|network| network.physical_network),
        attachment_id: attachment.id,
        server_id: attachment.server,
        dev_id: device.facts.dev_id(),
        address: device.facts.address.to_string(),
        inner_address: attachment.inner.map(|inner| inner.address.to_string()),
        vendor_id: device.facts.vendor_id.to_string(),
        product_id: device.facts.product_id.to_string(),
        inner_address_source: attachment.inner.map(|inner| inner.source),
        status: attachment.state,
        status_reason: attachment.reason,
        alias: attachment.alias,
        persistent: attachment.persistent,
        host: service.host(attachment.hypervisor).map(|host| host.name.clone()),
        created_at: time(attachment.created_at),
        updated_at: attachment.updated_at.map(time),
        attached_at: attachment.attached_at.map(time),
    }
}

/// None when it has ended since its row was read, and its device has left the host.
async fn with_device(service: &Service, attachment: Attachment) -> Result<Option<Wire>, Error> {
    if let Some(device) = service.store.device(attachment.device) {
        return Ok(Some(wire(service, attachment, &device)));
    }
    match service.store.attachment(attachment.id).await? {
        Some(row) if !row.state.is_final() => {
            Err(Error::Internal(format!("the device of attachment {} is lost", row.id)))
        }
        Some(_) | None => Ok(None),
    }
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
    State(service): State<Arc<Service>>,
    Path(path): Path<ServerPath>,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<Json<Value>, Fault> {
    let body: CreateBody = read(&headers, body, EXAMPLE)?;
    let dry_run = body.attachment.dry_run || body.dry_run;
    let request = body.attachment.request(&service, path.id()?)?;
    if dry_run {
        return Ok(Json(json!({ "dry_run": described(&service.dry_run(&request).await?) })));
    }
    let attached = service.attach(request).await?;
    let devices: Vec<_> =
        attached.into_iter().map(|(attachment, device)| wire(&service, attachment, &device)).collect();
    Ok(Json(json!({ "pci_devices": devices })))
}

fn described(run: &DryRun) -> Value {
    let devices = run.devices.iter().map(|(alias, device)| {
        json!({
            "dev_id": device.facts.dev_id(),
            "address": device.facts.address,
            "vendor_id": device.facts.vendor_id,
            "product_id": device.facts.product_id,
            "alias": alias,
        })
    });
    let checks = run.checks.iter().map(|check| {
        let result = match check.result {
            CheckResult::Pass => "pass",
            CheckResult::Fail => "fail",
            CheckResult::Unknown => "unknown",
        };
        json!({
            "check": check.name,
            "device": check.device,
            "result": result,
            "message": check.message,
            "cure": check.cure,
        })
    });
    json!({
        "would_attach": run.would_attach(),
        "pci_devices": devices.collect::<Vec<_>>(),
        "checks": checks.collect::<Vec<_>>(),
    })
}

pub(super) async fn list(
    State(service): State<Arc<Service>>,
    Path(path): Path<ServerPath>,
) -> Result<Json<Value>, Fault> {
    let server = path.id()?;
    let rows = service.store.attachments_of(server).await?;
    if rows.is_empty() {
        // A server without attachments is not the same as no server.
        service.find(server).await?;
    }
    listed(&service, rows).await
}

/// All servers' attachments; not in the seed.
pub(super) async fn list_all(State(service): State<Arc<Service>>) -> Result<Json<Value>, Fault> {
    let rows = service.store.attachments().await?;
    listed(&service, rows).await
}

async fn listed(service: &Service, rows: Vec<Attachment>) -> Result<Json<Value>, Fault> {
    let mut attachments = Vec::new();
    for row in rows {
        attachments.extend(with_device(service, row).await?);
    }
    Ok(Json(json!({ "pciAttachment": attachments })))
}

pub(super) async fn show(
    State(service): State<Arc<Service>>,
    Path(path): Path<AttachmentPath>,
) -> Result<Json<Value>, Fault> {
    let (server, id) = path.ids()?;
    let attachment = service.attachment_of(server, id).await?;
    if attachment.state.is_final() {
        return Err(Error::NoAttachment(id).into());
    }
    let attachment = with_device(&service, attachment).await?.ok_or(Error::NoAttachment(id))?;
    Ok(Json(json!({ "pciAttachment": attachment })))
}

/// v2 answers 200 once the device is gone; v2.1 and v3 answer 202 at once, and the detach goes on.
pub(super) async fn delete(
    State(service): State<Arc<Service>>,
    Extension(version): Extension<Version>,
    Path(path): Path<AttachmentPath>,
) -> Result<Response, Fault> {
    let (server, id) = path.ids()?;
    let work = service.begin_detach(server, id).await?;
    match version {
        Version::V2 => {
            if let Some(work) = work {
                work.await.map_err(|error| {
                    Error::Internal(format!("the detach ended without an answer: {error}"))
                })??;
            }
            Ok(StatusCode::OK.into_response())
        }
        Version::V21 | Version::V3 => {
            if let Some(work) = work {
                tokio::spawn(async move {
                    if let Ok(Err(error)) = work.await {
                        tracing::warn!(attachment.id = %id, %error, "detach of attachment {id} is not done");
                    }
                });
            }
            Ok(StatusCode::ACCEPTED.into_response())
        }
    }
}
