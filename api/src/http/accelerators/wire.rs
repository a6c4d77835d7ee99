//! An accelerator as JSON.

use axum::Json;
use axum::extract::OriginalUri;
use axum::http::{HeaderMap, header};
use axum::response::{IntoResponse as _, Response};
use hotslot_driver::device::HostDevice;
use hotslot_driver::device_type::device_type;
use hotslot_model::accelerator::{Held, View};
use hotslot_model::assignment::Assignment;
use hotslot_model::device::Device;
use hotslot_model::id::ServerId;
use hotslot_model::identity::Caller;
use hotslot_service::error::Error;
use hotslot_service::hosts::Hosts;
use serde_json::{Value, json};

use crate::http::body::{links, time};
use crate::http::state::AcceleratorParts;

/// Returns an accelerator as JSON: the keys of Cyborg's first API, and those that hotslot adds.
pub(super) fn wire(parts: &AcceleratorParts, view: &View, uri: &OriginalUri, headers: &HeaderMap) -> Value {
    let (row, spec) = (&view.row, view.spec());
    let (status, reason) = view.status();
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
    let driver = driver.and_then(|function| function.driver.clone());
    // Without a spec, the device determines the device type.
    let of_device = function.as_ref().filter(|_| row.spec.is_none());
    let kind = of_device.map_or_else(|| spec.device_type.clone(), |device| device_type(device).to_string());
    let mut acc_specs = spec.shown();
    acc_specs["device_type"] = json!(kind);
    let devices: Vec<_> = view.held.iter().map(|held| described(parts, held)).collect();
    let (vendor_id, product_id) = match device {
        Some(device) => (Some(device.facts.vendor_id), Some(device.facts.product_id)),
        None => (spec.vendor_id, spec.product_id),
    };
    let mut shown = json!({
        "uuid": row.id,
        "acc_specs": acc_specs,
        "name": row.name,
        "status": status,
        "status_reason": reason,
        "instance_uuid": view.server(),
        "host": host.map(|host| &host.name),
        "address": device.map(|device| device.facts.address),
        "inner_address": devices.first().map(|device| &device["inner_address"]),
        "driver": driver,
        "devices": devices,
        "device_type": kind,
        "acc_type": spec.acc_type,
        "acc_capability": Value::Object(spec.capability.clone()).to_string(),
        "vendor_id": vendor_id.map(|id| id.to_string()),
        "product_id": product_id.map(|id| id.to_string()),
        "remotable": spec.remotable,
        "pinned": row.pinned.is_some(),
        "project_id": row.project,
        "links": links(headers, uri, "accelerators", &row.id.to_string()),
        "created_at": (row.created_at != 0).then(|| time(row.created_at)),
        "updated_at": row.updated_at.map(time),
    });
    if is_v1(uri) {
        for key in ["description", "user_id"] {
            shown[key] = Value::Null;
        }
    }
    shown
}

/// Whether the request uses the prefix `/v1`.
pub(super) fn is_v1(uri: &OriginalUri) -> bool {
    uri.path().starts_with("/v1")
}

/// Returns a device as it was at the last read of its host.
fn known_function(hosts: &Hosts, device: &Device) -> Option<HostDevice> {
    hosts.host(device.hypervisor)?.functions().get(&device.facts.address).cloned()
}

fn described(parts: &AcceleratorParts, held: &Held) -> Value {
    let device = &held.device;
    let host = parts.hosts.host(device.hypervisor);
    let function = held.found.clone().or_else(|| known_function(&parts.hosts, device));
    let mut shown = json!({
        "address": device.facts.address,
        "device_type": function.as_ref().map(|function| device_type(function).to_string()),
        "vendor_id": device.facts.vendor_id.to_string(),
        "product_id": device.facts.product_id.to_string(),
        "host": host.map(|host| &host.name),
        "driver": held.found.as_ref().and_then(|found| found.driver.as_ref()),
        "inner_address": null,
    });
    match &held.by {
        Assignment::Attachment(row) => {
            shown["attachment_id"] = json!(row.id);
            shown["status"] = json!(row.state);
            shown["instance_uuid"] = json!(row.server);
            shown["inner_address"] = json!(row.inner.map(|inner| inner.address));
            shown["inner_address_source"] = json!(row.inner.map(|inner| inner.source));
        }
        Assignment::Mdev(row) => {
            shown["mdev_uuid"] = json!(row.id);
            shown["mdev_type"] = json!(row.mdev_type);
            shown["status"] = json!(row.state);
            shown["instance_uuid"] = json!(row.server);
            shown["inner_address"] = json!(row.inner.map(|inner| inner.address));
            shown["inner_address_source"] = json!(row.inner.map(|inner| inner.source));
        }
        Assignment::Binding(row) => {
            shown["status"] = json!(row.state);
            shown["previous_driver"] = json!(row.previous);
        }
    }
    shown
}

/// Returns the response for one accelerator, with the `ETag` of its spec.
pub(super) async fn one(
    parts: &AcceleratorParts,
    identity: &Caller,
    mut view: View,
    uri: &OriginalUri,
    headers: &HeaderMap,
) -> Response {
    parts.accelerators.read_functions(std::slice::from_mut(&mut view)).await;
    let tag = format!("\"{}\"", view.row.generation);
    let mut shown = wire(parts, &view, uri, headers);
    hide(&parts.hosts, identity, &view, &mut shown).await;
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

/// Removes from the JSON of an accelerator what the caller may not see: names and addresses of hosts, and the reason of the
/// status, which may name them; when the accelerator is in a server of another project, also where it is.
pub(super) async fn hide(hosts: &Hosts, identity: &Caller, view: &View, shown: &mut Value) {
    if !identity.sees_host_details() {
        for key in ["host", "address", "driver"] {
            shown[key] = Value::Null;
        }
        if shown["status_reason"].is_string() {
            shown["status_reason"] = json!("an administrator sees the reason");
        }
        for device in shown["devices"].as_array_mut().into_iter().flatten() {
            for key in ["host", "address", "driver", "previous_driver"] {
                device.get_mut(key).into_iter().for_each(|value| *value = Value::Null);
            }
        }
    }
    let Some(server) = view.server() else { return };
    // Services may see every server.
    if identity.is_service_or_admin() || is_theirs(hosts, identity, server).await.unwrap_or(false) {
        return;
    }
    for key in ["instance_uuid", "host", "address", "inner_address", "driver", "status_reason"] {
        shown[key] = Value::Null;
    }
    shown["devices"] = json!([]);
}
