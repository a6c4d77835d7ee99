//! `os-hypervisors`: the configured hosts, the number of free devices of each, and all of its PCI functions.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Json;
use axum::extract::{OriginalUri, State};
use axum::http::{HeaderMap, StatusCode};
use futures_util::future::join_all;
use hotslot_driver::device::{HostDevice, Role};
use hotslot_driver::hypervisor::{DomainInfo, DomainState};
use hotslot_model::device::Device;
use hotslot_model::rules;
use hotslot_model::rules::{Foreign, Stat};
use hotslot_service::error::Error;
use hotslot_service::host::Host;
use hotslot_service::hosts::Hosts;
use hotslot_service::records::Records;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::body::{Page, Pairs, Path};
use super::error::Fault;

fn brief(host: &Host) -> Value {
    let connection = host.hypervisor.connection();
    let overdue = host.hypervisor.overdue();
    let overdue_call = overdue.first().map(|call| {
        format!(
            "{} call(s) have not returned; the oldest has taken {} s: {}",
            overdue.len(),
            call.elapsed.as_secs(),
            call.operation
        )
    });
    let stuck_calls =
        overdue.iter().map(|call| json!({ "operation": call.operation, "seconds": call.elapsed.as_secs() }));
    json!({
        "id": host.row.uuid,
        "hypervisor_hostname": host.name,
        "state": if connection.is_ok() { "up" } else { "down" },
        "state_reason": connection.err().or(overdue_call),
        "stuck_calls": stuck_calls.collect::<Vec<_>>(),
        "status": "enabled",
        "simulated": host.uri.starts_with("sim://"),
    })
}

/// Returns the servers of a host; an empty list when the host is unreachable.
async fn servers(host: &Host) -> Vec<DomainInfo> {
    let mut domains = host.soon(host.hypervisor.domains()).await.unwrap_or_default();
    domains.sort_by(|a, b| a.name.cmp(&b.name));
    domains
}

fn named(servers: &[DomainInfo]) -> Value {
    servers.iter().map(|server| json!({ "name": server.name, "uuid": server.uuid })).collect()
}

fn is_up(server: &&DomainInfo) -> bool {
    match server.state {
        DomainState::Running
        | DomainState::Blocked
        | DomainState::Paused
        | DomainState::ShuttingDown
        | DomainState::Suspended => true,
        DomainState::ShutOff | DomainState::Crashed | DomainState::Unknown => false,
    }
}

/// Returns the number of free devices per kind. The tags are shown twice: as keys of their own, as in Nova, and as
/// `extra_info`.
fn pci_stats(records: &Records, host: &Host) -> Vec<Value> {
    let wire = |stat: Stat| {
        let mut pool: Map<String, Value> =
            stat.tags.iter().map(|(key, value)| (key.clone(), or_null(value))).collect();
        for (key, value) in [
            ("count", json!(stat.count)),
            ("vendor_id", json!(stat.vendor_id)),
            ("product_id", json!(stat.product_id)),
            ("numa_node", json!(stat.numa_node)),
            ("extra_info", json!(stat.tags)),
        ] {
            pool.insert(key.to_owned(), value);
        }
        Value::from(pool)
    };
    let devices = records.devices_of(host.row.id);
    rules::stats(&devices, rules::is_grouping_key).into_iter().map(wire).collect()
}

/// Returns the value of a tag as JSON. `extra_info` stores null as the string `null`, which no tag can have otherwise.
fn or_null(value: &str) -> Value {
    if value == rules::NULL { Value::Null } else { json!(value) }
}

/// Returns a host with Nova's keys of microversion 2.88 and of those before. Values that hotslot does not know are 0 or
/// null.
async fn full(records: &Records, host: &Host) -> Value {
    let info = host.soon(host.hypervisor.host()).await.ok();
    let servers = servers(host).await;
    let stats = pci_stats(records, host);
    let mut wire = brief(host);
    for (key, value) in [
        ("compute_node_id", json!(host.row.id)),
        ("uri", json!(host.uri)),
        ("hypervisor_type", json!(info.as_ref().map(|info| &info.hypervisor_type))),
        ("hypervisor_version", json!(info.as_ref().map(|info| info.hypervisor_version))),
        ("libvirt_version", json!(info.as_ref().map(|info| info.libvirt_version))),
        ("hostname", json!(info.as_ref().map(|info| &info.hostname))),
        ("host_ip", Value::Null),
        ("servers", named(&servers)),
        ("service", json!({ "id": host.row.uuid, "host": host.name, "disabled_reason": null })),
        ("uptime", Value::Null),
        ("running_vms", json!(servers.iter().filter(is_up).count())),
        // Clients parse this string as JSON.
        ("cpu_info", json!("{}")),
        ("pci_stats", json!(stats)),
        ("os-pci:pci_stats", json!(stats)),
    ] {
        wire[key] = value;
    }
    for key in [
        "current_workload",
        "disk_available_least",
        "free_disk_gb",
        "free_ram_mb",
        "local_gb",
        "local_gb_used",
        "memory_mb",
        "memory_mb_used",
        "vcpus",
        "vcpus_used",
    ] {
        wire[key] = json!(0);
    }
    wire
}

/// The page of hosts that a query requests.
struct Found<'a> {
    hosts: Vec<&'a Arc<Host>>,
    links: Option<Value>,
    with_servers: bool,
}

impl<'a> Found<'a> {
    fn by(all: &'a Hosts, uri: &OriginalUri, headers: &HeaderMap, pairs: Pairs) -> Result<Self, Error> {
        let paged = pairs.0.iter().any(|(key, _)| key == "limit" || key == "marker");
        let (page, pairs) = Page::read(pairs)?;
        let mut hosts: Vec<_> = all.iter().collect();
        let mut with_servers = false;
        for (key, value) in pairs {
            match key.as_str() {
                "hypervisor_hostname_pattern" if paged => {
                    let reason =
                        "hypervisor_hostname_pattern cannot be combined with limit or marker; omit them";
                    return Err(Error::Invalid(reason.into()));
                }
                "hypervisor_hostname_pattern" => hosts = like(all, &value)?,
                "with_servers" => {
                    with_servers = value.to_ascii_lowercase().parse().map_err(|_| {
                        Error::Invalid(format!("invalid with_servers {value}: expected true or false"))
                    })?;
                }
                _ => {}
            }
        }
        if let Some(marker) = &page.marker {
            let last = hosts.iter().position(|host| is(host, marker)).ok_or_else(|| {
                let message =
                    format!("invalid marker {marker}: no such hypervisor; GET os-hypervisors lists all");
                Error::Invalid(message)
            })?;
            hosts.drain(..=last);
        }
        let (hosts, links) = page.cut(hosts, uri, headers, |host| host.row.uuid.to_string());
        Ok(Self { hosts, links, with_servers })
    }

    fn answer(self, hypervisors: Vec<Value>) -> Json<Value> {
        let mut body = json!({ "hypervisors": hypervisors });
        if let Some(links) = self.links {
            body["hypervisors_links"] = links;
        }
        Json(body)
    }
}

/// Returns the hosts whose name contains `pattern`.
///
/// # Errors
/// [`Error::NotFound`] when there is no such host.
fn like<'a>(hosts: &'a Hosts, pattern: &str) -> Result<Vec<&'a Arc<Host>>, Error> {
    let hosts: Vec<_> = hosts.iter().filter(|host| host.name.contains(pattern)).collect();
    if hosts.is_empty() {
        return Err(Error::NotFound(format!("a hypervisor whose hostname contains `{pattern}`")));
    }
    Ok(hosts)
}

pub(super) async fn list(
    State(hosts): State<Arc<Hosts>>,
    uri: OriginalUri,
    headers: HeaderMap,
    pairs: Pairs,
) -> Result<Json<Value>, Fault> {
    let found = Found::by(&hosts, &uri, &headers, pairs)?;
    let hypervisors = join_all(found.hosts.iter().map(async |host| {
        let mut wire = brief(host);
        if found.with_servers {
            wire["servers"] = named(&servers(host).await);
        }
        wire
    }));
    let hypervisors = hypervisors.await;
    Ok(found.answer(hypervisors))
}

pub(super) async fn detail(
    State(hosts): State<Arc<Hosts>>,
    State(records): State<Arc<Records>>,
    uri: OriginalUri,
    headers: HeaderMap,
    pairs: Pairs,
) -> Result<Json<Value>, Fault> {
    let found = Found::by(&hosts, &uri, &headers, pairs)?;
    let hypervisors = join_all(found.hosts.iter().map(|host| full(&records, host))).await;
    Ok(found.answer(hypervisors))
}

/// Lists the hosts whose name contains a string, for clients before microversion 2.53.
pub(super) async fn search(
    State(hosts): State<Arc<Hosts>>,
    Path(path): Path<HypervisorPath>,
) -> Result<Json<Value>, Fault> {
    let named = like(&hosts, &path.hypervisor_id)?;
    Ok(Json(json!({ "hypervisors": named.into_iter().map(|host| brief(host)).collect::<Vec<_>>() })))
}

/// Returns 501, as Nova does when the hypervisor does not report its uptime. Clients accept that.
pub(super) async fn uptime(
    State(hosts): State<Arc<Hosts>>,
    Path(path): Path<HypervisorPath>,
) -> Result<Json<Value>, Fault> {
    let host = path.host(&hosts)?;
    let message = format!("libvirt does not report the uptime of host {}", host.name);
    Err(Fault::new(StatusCode::NOT_IMPLEMENTED, message))
}

/// Lists no aggregates. Clients request this list when they show a hypervisor.
pub(super) async fn aggregates() -> Json<Value> {
    Json(json!({ "aggregates": [] }))
}

/// Whether `id` is the UUID, the number or the name of the host.
fn is(host: &Host, id: &str) -> bool {
    host.row.uuid.to_string() == *id || host.row.id.0.to_string() == *id || host.name == *id
}

#[derive(Deserialize)]
pub(super) struct HypervisorPath {
    hypervisor_id: String,
}

impl HypervisorPath {
    pub(super) fn host<'a>(&self, hosts: &'a Hosts) -> Result<&'a Arc<Host>, Error> {
        host(hosts, &self.hypervisor_id)
    }
}

pub(super) fn host<'a>(hosts: &'a Hosts, id: &str) -> Result<&'a Arc<Host>, Error> {
    let host = hosts.iter().find(|host| is(host, id));
    host.ok_or_else(|| Error::NotFound(format!("hypervisor {id}")))
}

pub(super) async fn show(
    State(hosts): State<Arc<Hosts>>,
    State(records): State<Arc<Records>>,
    Path(path): Path<HypervisorPath>,
) -> Result<Json<Value>, Fault> {
    let host = path.host(&hosts)?;
    Ok(Json(json!({ "hypervisor": full(&records, host).await })))
}

/// Lists every PCI function of the host, assignable or not. An extension of hotslot.
pub(super) async fn functions(
    State(hosts): State<Arc<Hosts>>,
    State(records): State<Arc<Records>>,
    Path(path): Path<HypervisorPath>,
) -> Result<Json<Value>, Fault> {
    let host = path.host(&hosts)?;
    let functions = host.hypervisor.devices().await.map_err(host.error("list the host's devices"))?;
    let rows = records.devices_of(host.row.id).into_iter();
    let rows: BTreeMap<_, _> = rows.map(|row| (row.facts.address, row)).collect();
    let foreign = host.foreign();
    let describe = |function: &HostDevice| {
        describe(host, function, rows.get(&function.address), foreign.get(&function.address))
    };
    let functions: Vec<_> = functions.iter().map(describe).collect();
    Ok(Json(json!({ "pci_devices": functions })))
}

/// Returns a human-readable owner of a device: the server or host to which hotslot assigned it, or the domain into
/// which somebody else put it.
pub(super) fn owner(row: Option<&Device>, foreign: Option<&Foreign>) -> Option<String> {
    let owner = row.and_then(|row| row.owner).map(|owner| owner.to_string());
    owner.or_else(|| foreign.map(Foreign::to_string))
}

pub(super) fn describe(
    host: &Host,
    device: &HostDevice,
    row: Option<&Arc<Device>>,
    foreign: Option<&Foreign>,
) -> Value {
    let (role, parent, max_vfs, vfs) = match &device.role {
        Role::Plain => ("type-PCI", None, None, None),
        Role::Physical { max_vfs, vfs } => ("type-PF", None, Some(max_vfs), Some(vfs)),
        Role::Virtual { parent } if !device.vdpa.is_empty() => ("vdpa", Some(parent), None, None),
        Role::Virtual { parent } => ("type-VF", Some(parent), None, None),
    };
    json!({
        "host": host.name,
        "address": device.address,
        "dev_id": device.name,
        "parent": device.parent.as_deref(),
        "vendor_id": device.vendor_id,
        "product_id": device.product_id,
        "vendor_name": device.vendor_name.as_deref(),
        "product_name": device.product_name.as_deref(),
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
        "net": device.net.iter().map(|interface| interface.name.as_str()).collect::<Vec<_>>(),
        "vdpa": device.vdpa,
        "block": device.block,
        "id": row.map(|row| row.id),
        "status": row.map(|row| row.status),
        "instance_uuid": row.and_then(|row| row.server()),
        "owner": owner(row.map(Arc::as_ref), foreign),
        "foreign": foreign.map(|foreign| json!({
            "domain": foreign.domain, "uuid": foreign.server,
            "live": foreign.live, "persistent": foreign.persistent,
        })),
    })
}
