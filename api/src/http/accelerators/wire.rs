//! An accelerator as callers see it.

use axum::Json;
use axum::extract::OriginalUri;
use axum::http::{HeaderMap, header};
use axum::response::{IntoResponse as _, Response};
use hotslot_driver::device::HostDevice;
use hotslot_driver::device_type::device_type;
use hotslot_driver::pci::PciAddress;
use hotslot_model::accelerator::{Held, Status, View};
use hotslot_model::assignment::{Assignment, InnerSource, State as AssignmentState};
use hotslot_model::device::Device;
use hotslot_model::id::{AcceleratorId, AttachmentId, ServerId};
use hotslot_model::identity::Caller;
use hotslot_service::error::Error;
use hotslot_service::hosts::Hosts;
use serde::Serialize;
use serde_json::Value;
use utoipa::ToSchema;

use crate::http::attachments::DryRunReport;
use crate::http::body::{Link, links, time};
use crate::http::schema;
use crate::http::state::AcceleratorParts;

/// An accelerator: the keys of Cyborg's first API, and those that hotslot adds.
#[derive(Serialize, ToSchema)]
pub(in crate::http) struct Accelerator {
    /// The id.
    #[schema(value_type = Uuid)]
    pub(super) uuid: AcceleratorId,
    /// The spec: `remote` (0 or 1), `num` (how many devices), `device_type`, `acc_capability`, and the other keys that were
    /// put.
    #[schema(value_type = BTreeMap<String, Value>)]
    acc_specs: Value,
    /// The name.
    name: String,
    /// What it is doing.
    #[schema(value_type = schema::AcceleratorStatus)]
    status: Status,
    /// Why it is in this state; null when there is nothing to say, or when the caller may not see it.
    status_reason: Option<String>,
    /// The server that has its devices; null when none has, or when that server is of another project.
    #[schema(value_type = Option<Uuid>)]
    instance_uuid: Option<ServerId>,
    /// The name of the host of its first device.
    host: Option<String>,
    /// The address of its first device on the host.
    #[schema(value_type = Option<schema::PciAddress>)]
    address: Option<PciAddress>,
    /// The address of its first device in the guest.
    #[schema(value_type = Option<schema::PciAddress>)]
    inner_address: Option<PciAddress>,
    /// The driver on the host that its first device is bound to.
    driver: Option<String>,
    /// Its devices.
    devices: Vec<HeldDevice>,
    /// The type of its device, such as `GPU`; `UNKNOWN` for any.
    device_type: String,
    /// Which devices an attach takes by the spec, in words, such as `any assignable device of type GPU`.
    takes: String,
    /// The keys of the spec that have no effect.
    ignored_keys: Vec<String>,
    /// The intended use, such as `Crypto`; empty for any.
    acc_type: String,
    /// The required capabilities: a JSON document inside a string.
    acc_capability: String,
    /// The vendor id of its device, or the one that is required.
    #[schema(value_type = Option<schema::PciId>)]
    vendor_id: Option<String>,
    /// The product id of its device, or the one that is required.
    #[schema(value_type = Option<schema::PciId>)]
    product_id: Option<String>,
    /// Whether it may be used over a network: 0 or 1.
    remotable: i64,
    /// Whether it stands for one device only.
    pinned: bool,
    /// The project that owns it.
    project_id: Option<String>,
    /// The links to it.
    links: Vec<Link>,
    /// When it was created; null for one that was discovered.
    #[schema(value_type = Option<schema::Time>)]
    created_at: Option<String>,
    /// When its spec was last set.
    #[schema(value_type = Option<schema::Time>)]
    updated_at: Option<String>,
    /// Always null. Only answers under `/v1` have this key.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Value)]
    description: Option<()>,
    /// Always null. Only answers under `/v1` have this key.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Value)]
    user_id: Option<()>,
    /// What an attach would do. Only the answer to an attach with `dry_run` has this key.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = DryRunReport)]
    dry_run: Option<DryRunReport>,
}

/// A device that an accelerator holds.
#[derive(Serialize, ToSchema)]
pub(in crate::http) struct HeldDevice {
    /// The address on the host.
    #[schema(value_type = Option<schema::PciAddress>)]
    address: Option<PciAddress>,
    /// The type of the device, such as `GPU`; null when the host was not read.
    device_type: Option<String>,
    /// The vendor id.
    #[schema(value_type = schema::PciId)]
    vendor_id: String,
    /// The product id.
    #[schema(value_type = schema::PciId)]
    product_id: String,
    /// The name of the host.
    host: Option<String>,
    /// The driver on the host that the device is bound to, as the host was just read.
    driver: Option<String>,
    /// The address in the guest.
    #[schema(value_type = Option<schema::PciAddress>)]
    inner_address: Option<PciAddress>,
    /// The state of the assignment.
    #[schema(value_type = schema::AssignmentState)]
    status: AssignmentState,
    /// How the accelerator holds the device.
    #[serde(flatten)]
    by: HeldBy,
}

/// How an accelerator holds a device.
#[derive(Serialize, ToSchema)]
#[serde(untagged)]
enum HeldBy {
    /// By an attachment to a server.
    Attachment {
        /// The attachment.
        #[schema(value_type = Uuid)]
        attachment_id: AttachmentId,
        /// The server.
        #[schema(value_type = Uuid)]
        instance_uuid: ServerId,
        /// Where `inner_address` comes from.
        #[schema(value_type = Option<schema::InnerAddressSource>)]
        inner_address_source: Option<InnerSource>,
    },
    /// By a mediated device of the function.
    Mdev {
        /// The UUID of the mediated device.
        #[schema(value_type = Uuid)]
        mdev_uuid: AttachmentId,
        /// The id of its type.
        mdev_type: String,
        /// The server.
        #[schema(value_type = Uuid)]
        instance_uuid: ServerId,
        /// Where `inner_address` comes from.
        #[schema(value_type = Option<schema::InnerAddressSource>)]
        inner_address_source: Option<InnerSource>,
    },
    /// By a binding to a driver of the host.
    Binding {
        /// The driver that the device was bound to before.
        previous_driver: Option<String>,
    },
}

/// Returns what is known of an accelerator.
pub(super) fn wire(
    parts: &AcceleratorParts,
    view: &View,
    uri: &OriginalUri,
    headers: &HeaderMap,
) -> Accelerator {
    let (row, spec) = (&view.row, view.spec());
    let (status, status_reason) = view.status();
    let first = view.held.first();
    let device = first.map(|held| &held.device).or(view.pinned.as_ref());
    let host = device.and_then(|device| parts.hosts.host(device.hypervisor));
    let function = first
        .and_then(|held| held.found.clone())
        .or_else(|| device.and_then(|device| known_function(&parts.hosts, device)));
    // Report the driver of a held device only from a fresh host read, never from the cache.
    let driver = match first {
        Some(held) => held.found.as_ref(),
        None => function.as_ref(),
    };
    let driver = driver.and_then(HostDevice::driver_name);
    // Without a spec, the device determines the device type.
    let of_device = function.as_ref().filter(|_| row.spec.is_none());
    let kind = of_device.map_or_else(|| spec.device_type.clone(), |device| device_type(device).to_string());
    let mut acc_specs = spec.shown();
    acc_specs["device_type"] = kind.as_str().into();
    let devices: Vec<_> = view.held.iter().map(|held| described(parts, held)).collect();
    let (vendor_id, product_id) = match device {
        Some(device) => (Some(device.facts.vendor_id), Some(device.facts.product_id)),
        None => (spec.vendor_id, spec.product_id),
    };
    let of_v1 = is_v1(uri).then_some(());
    Accelerator {
        uuid: row.id,
        acc_specs,
        name: row.name.clone(),
        status,
        status_reason,
        instance_uuid: view.server(),
        host: host.map(|host| host.name.clone()),
        address: device.map(|device| device.facts.address),
        inner_address: devices.first().and_then(|device| device.inner_address),
        driver,
        devices,
        device_type: kind,
        takes: match &view.pinned {
            Some(device) => format!("its own device {}", device.facts.address),
            None if row.pinned.is_some() => "its own device".to_owned(),
            None => spec.takes(),
        },
        ignored_keys: spec.ignored_keys().into_iter().map(str::to_owned).collect(),
        acc_type: spec.acc_type.clone(),
        acc_capability: Value::Object(spec.capability.clone()).to_string(),
        vendor_id: vendor_id.map(|id| id.to_string()),
        product_id: product_id.map(|id| id.to_string()),
        remotable: spec.remotable,
        pinned: row.pinned.is_some(),
        project_id: row.project.clone(),
        links: links(headers, uri, "accelerators", &row.id.to_string()),
        created_at: (row.created_at != 0).then(|| time(row.created_at)),
        updated_at: row.updated_at.map(time),
        description: of_v1,
        user_id: of_v1,
        dry_run: None,
    }
}

/// Whether the request uses the prefix `/v1`.
pub(super) fn is_v1(uri: &OriginalUri) -> bool {
    uri.path().starts_with("/v1")
}

/// Returns a device as it was at the last read of its host.
fn known_function(hosts: &Hosts, device: &Device) -> Option<HostDevice> {
    hosts.host(device.hypervisor)?.functions().get(&device.facts.address).cloned()
}

fn described(parts: &AcceleratorParts, held: &Held) -> HeldDevice {
    let device = &held.device;
    let host = parts.hosts.host(device.hypervisor);
    let function = held.found.clone().or_else(|| known_function(&parts.hosts, device));
    let (status, inner, by) = match &held.by {
        Assignment::Attachment(row) => {
            let by = HeldBy::Attachment {
                attachment_id: row.id,
                instance_uuid: row.server,
                inner_address_source: row.inner.map(|inner| inner.source),
            };
            (row.state, row.inner, by)
        }
        Assignment::Mdev(row) => {
            let by = HeldBy::Mdev {
                mdev_uuid: row.id,
                mdev_type: row.mdev_type.clone(),
                instance_uuid: row.server,
                inner_address_source: row.inner.map(|inner| inner.source),
            };
            (row.state, row.inner, by)
        }
        Assignment::Binding(row) => {
            (row.state, None, HeldBy::Binding { previous_driver: row.previous.clone() })
        }
    };
    HeldDevice {
        address: Some(device.facts.address),
        device_type: function.as_ref().map(|function| device_type(function).to_string()),
        vendor_id: device.facts.vendor_id.to_string(),
        product_id: device.facts.product_id.to_string(),
        host: host.map(|host| host.name.clone()),
        driver: held.found.as_ref().and_then(HostDevice::driver_name),
        inner_address: inner.map(|inner| inner.address),
        status,
        by,
    }
}

/// Returns the response for one accelerator, with the `ETag` of its spec, and what an attach would do where that was
/// requested.
pub(super) async fn one(
    parts: &AcceleratorParts,
    identity: &Caller,
    mut view: View,
    uri: &OriginalUri,
    headers: &HeaderMap,
    dry_run: Option<DryRunReport>,
) -> Response {
    parts.accelerators.read_functions(std::slice::from_mut(&mut view)).await;
    let tag = format!("\"{}\"", view.row.generation);
    let mut shown = wire(parts, &view, uri, headers);
    hide(&parts.hosts, identity, &view, &mut shown).await;
    shown.dry_run = dry_run;
    ([(header::ETAG, tag)], Json(shown)).into_response()
}

/// Whether the caller may change a server. The administrator may change every server, and the members of a project
/// those that belong to the project.
pub(super) async fn is_theirs(hosts: &Hosts, identity: &Caller, server: ServerId) -> Result<bool, Error> {
    if identity.is_admin() {
        return Ok(true);
    }
    match hosts.find_where(server, |view| identity.sees(view.ownership().project())).await {
        Ok(_) => Ok(true),
        Err(Error::NoServer(_)) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Removes from an accelerator what the caller may not see: names and addresses of hosts, and the reason of the
/// status, which may name them; when the accelerator is in a server of another project, also where it is.
pub(super) async fn hide(hosts: &Hosts, identity: &Caller, view: &View, shown: &mut Accelerator) {
    if !identity.sees_host_details() {
        (shown.host, shown.address, shown.driver) = (None, None, None);
        if shown.pinned {
            shown.takes = "its own device".to_owned();
        }
        if shown.status_reason.is_some() {
            shown.status_reason = Some("an administrator sees the reason".to_owned());
        }
        for device in &mut shown.devices {
            (device.host, device.address, device.driver) = (None, None, None);
            if let HeldBy::Binding { previous_driver } = &mut device.by {
                *previous_driver = None;
            }
        }
    }
    let Some(server) = view.server() else { return };
    // Services may see every server.
    if identity.is_service_or_admin() || is_theirs(hosts, identity, server).await.unwrap_or(false) {
        return;
    }
    (shown.instance_uuid, shown.status_reason, shown.host) = (None, None, None);
    (shown.address, shown.inner_address, shown.driver) = (None, None, None);
    shown.devices.clear();
}
