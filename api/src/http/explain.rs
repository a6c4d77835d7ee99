//! Why a device is assignable or not, and which devices an alias would take. An extension of hotslot.

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU8;
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use hotslot_driver::device::HostDevice;
use hotslot_driver::local;
use hotslot_driver::pci::PciAddress;
use hotslot_model::device::{Device, DeviceStatus, Functions};
use hotslot_model::id::ServerId;
use hotslot_model::rules;
use hotslot_model::rules::{CandidateSet, Pool, RuleKind, Wanted};
use hotslot_service::assignment;
use hotslot_service::error::Error;
use hotslot_service::host::Host;
use hotslot_service::inventory::{Availability, HostDrivers};
use hotslot_service::service::Service;
use serde::Deserialize;
use serde_json::{Value, json};

use super::body::{Path, Query, id};
use super::error::Fault;
use super::hypervisors::{self, HypervisorPath};
use hotslot_service::inventory::Catalog;
use hotslot_service::records::Records;

#[derive(Deserialize)]
pub(super) struct FunctionPath {
    hypervisor_id: String,
    address: String,
}

/// Shows one PCI function, with everything that decides whether it is assignable.
pub(super) async fn device(
    State(service): State<Arc<Service>>,
    Path(path): Path<FunctionPath>,
) -> Result<Json<Value>, Fault> {
    let host = hypervisors::host(&service, &path.hypervisor_id)?;
    let unknown = || Error::NotFound(format!("PCI function {} on host {}", path.address, host.name));
    let address: PciAddress = path.address.parse().map_err(|_| unknown())?;
    host.ready().await?;
    // libvirt sends no event when a driver is bound or unbound, so the function is read again.
    let functions = service.catalog.look(host, Some(BTreeSet::from([address]))).await?;
    host.read_mdevs().await?;
    let availability = service.catalog.availability_of(host, functions).await?;
    let function = availability.functions.get(&address).ok_or_else(unknown)?;
    let rows = service.records.devices_of(host.row.id);
    let row = rows.iter().find(|row| row.facts.address == address);
    let mut wire = hypervisors::describe(host, function, row, availability.foreign.get(&address));
    let unavailable =
        row.and_then(|row| availability.unavailable(&rows, None, HostDrivers::Blocks).remove(&row.id));
    let free = row.is_some_and(|row| row.status == DeviceStatus::Available);
    let types = host.hypervisor.mdev_types(address).await;
    let types = types.map_err(host.error(format!("read the mediated device types of {address}")))?;
    let types = types.iter().map(
        |of| json!({ "id": of.id, "name": of.name, "device_api": of.device_api, "available": of.available }),
    );
    let sysroot = host.hypervisor.sysroot();
    let guards = availability.guards.get(&address).into_iter().flatten();
    let guards: Vec<_> =
        guards.map(|guard| json!({ "kind": guard.kind.as_str(), "reason": guard.reason })).collect();
    let bars = local::bars(sysroot, address).map(|bars| {
        let bar = |bar: &local::Bar| {
            let kind = match bar.kind {
                local::BarKind::Memory => "memory",
                local::BarKind::Io => "io",
            };
            json!({ "index": bar.index, "size": bar.size, "kind": kind, "prefetchable": bar.prefetchable })
        };
        bars.iter().map(bar).collect::<Vec<_>>()
    });
    for (key, value) in [
        (
            "guards",
            if availability.knows_guards() || !guards.is_empty() { json!(guards) } else { Value::Null },
        ),
        ("unguarded", json!(service.config.pci.is_unguarded(&host.name, address))),
        ("reset_methods", json!(local::reset_methods(sysroot, address))),
        ("bars", json!(bars)),
        ("whitelist", whitelist(&service.catalog, &availability.functions, function)),
        ("mdev_types", types.collect()),
        ("mdevs", mdevs(&service.records, host, &availability, address).await?),
        ("group_members", members(&availability, function, &rows)),
        ("pool", row.and_then(|row| pool(row, &rows)).map_or(Value::Null, |pool| shown(&pool))),
        ("offered", json!(free && unavailable.is_none())),
        ("withheld", json!(unavailable)),
    ] {
        wire[key] = value;
    }
    Ok(Json(json!({ "pci_device": wire })))
}

/// Returns the mediated devices of a function. Those that hotslot created have their holder and status; those of others
/// do not.
async fn mdevs(
    records: &Records,
    host: &Host,
    availability: &Availability,
    parent: PciAddress,
) -> Result<Value, Error> {
    let rows = records.mdevs().await?;
    let of_it = availability.mdevs.iter().filter(|mdev| mdev.parent == Some(parent));
    let described = of_it.map(|mdev| {
        let row = rows.iter().find(|row| row.id.0 == mdev.uuid);
        json!({
            "uuid": mdev.uuid,
            "type": mdev.mdev_type,
            "instance_uuid": row.map(|row| row.server).or_else(|| host.has_mdev(mdev.uuid)),
            "holder": row.map(|row| row.holder.to_string()),
            "status": row.map(|row| row.state),
        })
    });
    Ok(described.collect())
}

/// Returns every entry of the whitelist, and the reason why it does not match the function.
fn whitelist(catalog: &Catalog, functions: &Functions, function: &HostDevice) -> Value {
    let rules = catalog.rules();
    let (inventory, conflicts) = rules.inventory.on(functions);
    let mut reasons: BTreeMap<_, _> = inventory.mismatches(functions, function).into_iter().collect();
    let mut counted = false;
    let lines = rules.of(RuleKind::Whitelist).enumerate().map(|(index, rule)| {
        let problem = rules.problem(rule.id).or_else(|| conflicts.get(&rule.id).map(ToString::to_string));
        let why = match (problem, reasons.remove(&rule.id)) {
            (Some(problem), _) => Some(format!("the entry is ignored: {problem}")),
            (None, Some(why)) => why,
            (None, None) => None,
        };
        let counts = why.is_none() && !counted;
        counted |= counts;
        json!({
            "position": index + 1,
            "id": rule.id,
            "place": rule.name(),
            "entry": serde_json::from_str::<Value>(&rule.text).unwrap_or_else(|_| json!(rule.text)),
            "matches": why.is_none(),
            "counts": counts,
            "why": why,
        })
    });
    lines.collect()
}

fn members(availability: &Availability, function: &HostDevice, rows: &[Arc<Device>]) -> Value {
    let group = function.iommu_group.iter().flat_map(|group| &group.members);
    let member = |address: &PciAddress| {
        let row = rows.iter().find(|row| row.facts.address == *address);
        json!({
            "address": address,
            "driver": availability.functions.get(address).and_then(|member| member.driver.as_ref()),
            "status": row.map(|row| row.status),
            "instance_uuid": row.and_then(|row| row.server()),
        })
    };
    group.map(member).collect()
}

/// Returns the pool of a device.
fn pool(device: &Arc<Device>, devices: &[Arc<Device>]) -> Option<Pool> {
    let own = rules::pools(std::slice::from_ref(device), rules::is_grouping_key).pop()?;
    let mut all = rules::pools(devices, rules::is_grouping_key);
    all.retain(|pool| Pool { count: own.count, ..pool.clone() } == own);
    all.pop()
}

fn shown(pool: &Pool) -> Value {
    json!({
        "vendor_id": pool.vendor_id,
        "product_id": pool.product_id,
        "numa_node": pool.numa_node,
        "dev_type": pool.dev_type,
        "address": pool.address,
        "tags": pool.tags,
        "count": pool.count,
    })
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct CandidateQuery {
    alias: String,
    #[serde(default)]
    whole_group: bool,
    /// The number of devices that would be requested; 1 by default.
    count: Option<NonZeroU8>,
    server: Option<String>,
}

/// Lists the devices of a host in the order in which an alias would take them, and the reason why it would not take
/// each of the others.
pub(super) async fn candidates(
    State(service): State<Arc<Service>>,
    Path(path): Path<HypervisorPath>,
    Query(query): Query<CandidateQuery>,
) -> Result<Json<Value>, Fault> {
    let host: &Arc<Host> = path.host(&service)?;
    host.ready().await?;
    let rules = service.catalog.inventory();
    let alias = rules.alias(&query.alias).ok_or_else(|| {
        let known: Vec<_> = rules.alias_names().collect();
        let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
        Error::UnknownAlias { name: query.alias.clone(), known }
    })?;
    let server: Option<ServerId> = query.server.as_deref().map(|text| id(text, "server")).transpose()?;
    let view = match server {
        Some(server) => Some(host.server(server).await?.ok_or(Error::NoServer(server))?),
        None => None,
    };
    let sockets = host.hypervisor.node_sockets().await;
    let sockets = sockets.map_err(host.error("read the host's NUMA topology"))?;
    let functions = service.catalog.look(host, None).await?;
    let availability = service.catalog.availability_of(host, functions).await?;
    let devices = service.records.devices_of(host.row.id);
    // Whether a host driver blocks a device depends on the other requested devices, so `rules::explain` decides that.
    let mut unavailable = availability.unavailable(&devices, server, HostDrivers::DoNotBlock);
    if !query.whole_group {
        for device in &devices {
            if let Some(reason) = availability.unbound(device) {
                unavailable.entry(device.id).or_insert(reason);
            }
        }
    }
    let mut guest_nodes = BTreeSet::new();
    if let Some(view) = view {
        unavailable.extend(assignment::portless(&view, &availability, &devices));
        guest_nodes
            .extend(view.live.or(view.persistent).map(|document| document.numa_nodes).unwrap_or_default());
    }
    let candidate_set = CandidateSet {
        devices: &devices,
        unavailable: &unavailable,
        guest_nodes: &guest_nodes,
        sockets: sockets.as_ref(),
        groups: &availability.groups,
        busy: &availability.busy,
    };
    let wanted = Wanted {
        alias,
        count: query.count.map_or(1, |count| count.get().into()),
        numa_policy: None,
        whole_group: query.whole_group,
        vf: false,
        tags: &BTreeMap::new(),
    };
    let lines = rules::explain(&wanted, &candidate_set).into_iter().map(|(device, verdict)| {
        let facts = &device.facts;
        json!({
            "address": facts.address,
            "id": device.id,
            "vendor_id": facts.vendor_id,
            "product_id": facts.product_id,
            "dev_type": facts.dev_type,
            "status": device.status,
            "numa_node": facts.numa_node,
            "place": verdict.as_ref().ok(),
            "why": verdict.as_ref().err(),
        })
    });
    let mut lines: Vec<_> = lines.collect();
    let recorded: BTreeSet<_> = devices.iter().map(|device| device.facts.address).collect();
    let others = availability.functions.values().filter(|it| !it.bridge && !recorded.contains(&it.address));
    lines.extend(others.map(|function| {
        let mut line =
            hypervisors::describe(host, function, None, availability.foreign.get(&function.address));
        line["place"] = Value::Null;
        line["why"] = json!("no device_spec lists it");
        line
    }));
    Ok(Json(json!({ "alias": query.alias, "pci_candidates": lines })))
}
