//! Why a device is assignable or not, and which devices an alias would take. An extension of hotslot.

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU8;
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use hotslot_driver::device::HostDevice;
use hotslot_driver::local::{self, Bar, BarKind, Guard};
use hotslot_driver::pci::PciAddress;
use hotslot_model::device::{Device, DeviceStatus, Functions};
use hotslot_model::rules::{self, Pool, RuleKind};
use hotslot_service::assignment::{Assignments, CandidatesRequest};
use hotslot_service::config::Config;
use hotslot_service::error::Error;
use hotslot_service::host::Host;
use hotslot_service::hosts::Hosts;
use hotslot_service::inventory::{Availability, Catalog, HostDrivers};
use hotslot_service::records::Records;
use serde::Deserialize;
use serde_json::{Value, json};

use super::body::{Path, Query, id};
use super::error::Fault;
use super::hypervisors::{self, HypervisorPath};
use super::state::DeviceParts;

#[derive(Deserialize)]
pub(super) struct FunctionPath {
    hypervisor_id: String,
    address: String,
}

/// Shows one PCI function, with everything that decides whether it is assignable.
pub(super) async fn device(
    State(parts): State<DeviceParts>,
    State(config): State<Arc<Config>>,
    Path(path): Path<FunctionPath>,
) -> Result<Json<Value>, Fault> {
    let host = hypervisors::host(&parts.hosts, &path.hypervisor_id)?;
    let unknown = || Error::NotFound(format!("PCI function {} on host {}", path.address, host.name));
    let address: PciAddress = path.address.parse().map_err(|_| unknown())?;
    host.ready().await?;
    // libvirt sends no event when a driver is bound or unbound, so the function is read again.
    let functions = parts.catalog.read_now(host, Some(BTreeSet::from([address]))).await?;
    host.read_mdevs().await?;
    let availability = parts.catalog.availability_of(host, functions).await?;
    let function = availability.functions.get(&address).ok_or_else(unknown)?;
    let rows = parts.records.devices_of(host.row.id);
    let find = |address| rows.get(rows.binary_search_by_key(&address, |row| row.facts.address).ok()?);
    let (row, at) = (find(address), |address| find(address).map(AsRef::as_ref));
    let mut wire = hypervisors::describe(host, function, row, availability.foreign.get(&address));
    let unavailable = row.and_then(|row| availability.why_unavailable(row, &at, None, HostDrivers::Blocks));
    let free = row.is_some_and(|row| row.status == DeviceStatus::Available);
    let sysroot = host.hypervisor.sysroot();
    for (key, value) in [
        ("guards", guards(&availability, address)),
        ("unguarded", json!(config.pci.is_unguarded(&host.name, address))),
        ("reset_methods", json!(local::reset_methods(sysroot, address))),
        ("bars", bars(sysroot, address)),
        ("whitelist", whitelist(&parts.catalog, &availability.functions, function)),
        ("mdev_types", mdev_types(host, address).await?),
        ("mdevs", mdevs(&parts.records, host, &availability, address).await?),
        ("group_members", members(&availability, function, &rows)),
        ("pool", row.and_then(|row| pool(row, &rows)).map_or(Value::Null, |pool| shown(&pool))),
        ("offered", json!(free && unavailable.is_none())),
        ("withheld", json!(unavailable)),
    ] {
        wire[key] = value;
    }
    Ok(Json(json!({ "pci_device": wire })))
}

/// Returns the reasons why the host needs a function; null when they cannot be read.
fn guards(availability: &Availability, address: PciAddress) -> Value {
    let guards = availability.guards.get(&address).map(Vec::as_slice).unwrap_or_default();
    if guards.is_empty() && !availability.knows_guards() {
        return Value::Null;
    }
    let shown = |guard: &Guard| json!({ "kind": guard.kind.as_str(), "reason": guard.reason });
    guards.iter().map(shown).collect()
}

/// Returns the BARs of a function; null when they cannot be read.
fn bars(sysroot: Option<&std::path::Path>, address: PciAddress) -> Value {
    let shown = |bar: &Bar| {
        let kind = match bar.kind {
            BarKind::Memory => "memory",
            BarKind::Io => "io",
        };
        json!({ "index": bar.index, "size": bar.size, "kind": kind, "prefetchable": bar.prefetchable })
    };
    local::bars(sysroot, address).map_or(Value::Null, |bars| bars.iter().map(shown).collect())
}

/// Returns the types of mediated devices that a function can have.
async fn mdev_types(host: &Host, address: PciAddress) -> Result<Value, Error> {
    let types = host.hypervisor.mdev_types(address).await;
    let types = types.map_err(host.error(format!("read the mediated device types of {address}")))?;
    let shown = types.iter().map(
        |of| json!({ "id": of.id, "name": of.name, "device_api": of.device_api, "available": of.available }),
    );
    Ok(shown.collect())
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
    State(assignments): State<Arc<Assignments>>,
    State(hosts): State<Arc<Hosts>>,
    Path(path): Path<HypervisorPath>,
    Query(query): Query<CandidateQuery>,
) -> Result<Json<Value>, Fault> {
    let host = path.host(&hosts)?;
    host.ready().await?;
    let request = CandidatesRequest {
        alias: &query.alias,
        count: query.count.map_or(1, |count| count.get().into()),
        whole_group: query.whole_group,
        server: query.server.as_deref().map(|text| id(text, "server")).transpose()?,
    };
    let candidates = assignments.candidates(host, &request).await?;
    let listed = candidates.devices.iter().map(|(device, verdict)| {
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
    let unlisted = candidates.unlisted.iter().map(|(function, foreign)| {
        let mut line = hypervisors::describe(host, function, None, foreign.as_ref());
        line["place"] = Value::Null;
        line["why"] = json!("no device_spec lists it");
        line
    });
    Ok(Json(json!({ "alias": query.alias, "pci_candidates": listed.chain(unlisted).collect::<Vec<_>>() })))
}
