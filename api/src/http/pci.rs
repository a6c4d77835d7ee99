//! `os-pci`: the devices that may be given away, with Nova's keys and the seed's.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use serde::Deserialize;
use serde_json::{Value, json};

use super::body::{Path, id, time};
use super::error::Fault;
use crate::error::Error;
use crate::id::DeviceId;
use crate::service::Service;
use crate::store::Device;

fn brief(device: &Device) -> Value {
    json!({
        "id": device.id,
        "address": device.facts.address,
        "compute_node_id": device.hypervisor,
        "product_id": device.facts.product_id,
        "vendor_id": device.facts.vendor_id,
        "status": device.status,
    })
}

fn full(service: &Service, device: &Device) -> Value {
    let mut wire = brief(device);
    for (key, value) in [
        ("dev_id", json!(device.facts.dev_id())),
        ("dev_type", json!(device.facts.dev_type)),
        ("label", json!(device.facts.label())),
        ("extra_info", json!(device.facts.extra_info)),
        ("instance_uuid", json!(device.server)),
        ("server_uuid", json!(device.server)),
        ("created_at", json!(time(device.created_at))),
        ("updated_at", json!(device.updated_at.map(time))),
        ("deleted", json!(false)),
        ("deleted_at", Value::Null),
        ("uuid", json!(device.uuid)),
        ("numa_node", json!(device.facts.numa_node)),
        ("parent_addr", json!(device.facts.parent_addr)),
        ("request_id", json!(device.request)),
        ("host", json!(service.host(device.hypervisor).map(|host| &host.name))),
    ] {
        wire[key] = value;
    }
    wire
}

pub(super) async fn list(State(service): State<Arc<Service>>) -> Result<Json<Value>, Fault> {
    let devices = service.store.devices();
    Ok(Json(json!({ "pci_devices": devices.iter().map(|device| brief(device)).collect::<Vec<_>>() })))
}

pub(super) async fn detail(State(service): State<Arc<Service>>) -> Result<Json<Value>, Fault> {
    let devices = service.store.devices();
    let devices: Vec<_> = devices.iter().map(|device| full(&service, device)).collect();
    Ok(Json(json!({ "pci_devices": devices })))
}

#[derive(Deserialize)]
pub(super) struct DevicePath {
    device_id: String,
}

pub(super) async fn show(
    State(service): State<Arc<Service>>,
    Path(path): Path<DevicePath>,
) -> Result<Json<Value>, Fault> {
    let id: i64 = id(&path.device_id, "PCI device")?;
    let device = service.store.device(DeviceId(id));
    let device = device.ok_or_else(|| Error::NotFound(format!("PCI device {id}")))?;
    Ok(Json(json!({ "pci_device": full(&service, &device) })))
}
