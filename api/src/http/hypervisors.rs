//! `os-hypervisors`: the configured hosts, and every PCI function that each has.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use hotslot_driver::device::{HostDevice, Role};
use serde::Deserialize;
use serde_json::{Value, json};

use super::body::Path;
use super::error::Fault;
use crate::error::Error;
use crate::host::Host;
use crate::service::Service;
use crate::store::Device;

fn brief(host: &Host) -> Value {
    let connection = host.hypervisor.connection();
    json!({
        "id": host.row.uuid,
        "hypervisor_hostname": host.name,
        "state": if connection.is_ok() { "up" } else { "down" },
        "state_reason": connection.err(),
        "status": "enabled",
        "simulated": host.uri.starts_with("sim://"),
    })
}

async fn full(host: &Host) -> Value {
    let info = host.hypervisor.host().await.ok();
    let mut wire = brief(host);
    for (key, value) in [
        ("compute_node_id", json!(host.row.id)),
        ("uri", json!(host.uri)),
        ("hypervisor_type", json!(info.as_ref().map(|info| &info.hypervisor_type))),
        ("hypervisor_version", json!(info.as_ref().map(|info| info.hypervisor_version))),
        ("libvirt_version", json!(info.as_ref().map(|info| info.libvirt_version))),
        ("hostname", json!(info.as_ref().map(|info| &info.hostname))),
        ("host_ip", Value::Null),
        ("servers", json!([])),
        ("service", json!({ "id": host.row.uuid, "host": host.name, "disabled_reason": null })),
        ("uptime", Value::Null),
    ] {
        wire[key] = value;
    }
    wire
}

pub(super) async fn list(State(service): State<Arc<Service>>) -> Json<Value> {
    Json(json!({ "hypervisors": service.hosts.iter().map(|host| brief(host)).collect::<Vec<_>>() }))
}

pub(super) async fn detail(State(service): State<Arc<Service>>) -> Json<Value> {
    let mut hypervisors = Vec::new();
    for host in &service.hosts {
        hypervisors.push(full(host).await);
    }
    Json(json!({ "hypervisors": hypervisors }))
}

#[derive(Deserialize)]
pub(super) struct HypervisorPath {
    hypervisor_id: String,
}

impl HypervisorPath {
    /// By UUID, by number, or by name.
    fn host<'a>(&self, service: &'a Service) -> Result<&'a Arc<Host>, Error> {
        let id = &self.hypervisor_id;
        let named = |host: &&Arc<Host>| {
            host.row.uuid.to_string() == *id || host.row.id.0.to_string() == *id || host.name == *id
        };
        service.hosts.iter().find(named).ok_or_else(|| Error::NotFound(format!("hypervisor {id}")))
    }
}

pub(super) async fn show(
    State(service): State<Arc<Service>>,
    Path(path): Path<HypervisorPath>,
) -> Result<Json<Value>, Fault> {
    let host = path.host(&service)?;
    Ok(Json(json!({ "hypervisor": full(host).await })))
}

/// Every PCI function of the host, whether it may be given away or not; not in the seeds.
pub(super) async fn functions(
    State(service): State<Arc<Service>>,
    Path(path): Path<HypervisorPath>,
) -> Result<Json<Value>, Fault> {
    let host = path.host(&service)?;
    let functions = host.hypervisor.devices().await.map_err(host.error("list the host's devices"))?;
    let rows = service.store.devices_of(host.row.id).into_iter();
    let rows: BTreeMap<_, _> = rows.map(|row| (row.facts.address, row)).collect();
    let functions: Vec<_> =
        functions.iter().map(|function| describe(host, function, rows.get(&function.address))).collect();
    Ok(Json(json!({ "pci_devices": functions })))
}

fn describe(host: &Host, device: &HostDevice, row: Option<&Arc<Device>>) -> Value {
    let (role, parent, max_vfs, vfs) = match &device.role {
        Role::Plain => ("type-PCI", None, None, None),
        Role::Physical { max_vfs, vfs } => ("type-PF", None, Some(max_vfs), Some(vfs)),
        Role::Virtual { parent } => ("type-VF", Some(parent), None, None),
    };
    json!({
        "host": host.name,
        "address": device.address,
        "dev_id": device.name,
        "parent": device.parent,
        "vendor_id": device.vendor_id,
        "product_id": device.product_id,
        "vendor_name": device.vendor_name,
        "product_name": device.product_name,
        "class": device.class,
        "class_name": device.class.map(|class| class.description()),
        "dev_type": role,
        "parent_addr": parent,
        "max_vfs": max_vfs,
        "vfs": vfs,
        "driver": device.driver,
        "bridge": device.bridge,
        "express": device.express,
        "link": device.link.as_ref().map(|link| json!({
            "speed": link.speed, "width": link.width,
            "max_speed": link.max_speed, "max_width": link.max_width,
        })),
        "iommu_group": device.iommu_group.as_ref().map(|group| json!({
            "number": group.number, "members": group.members,
        })),
        "numa_node": device.numa_node,
        "serial": device.serial,
        "net": device.net,
        "block": device.block,
        "id": row.map(|row| row.id),
        "status": row.map(|row| row.status),
        "instance_uuid": row.and_then(|row| row.server),
    })
}
