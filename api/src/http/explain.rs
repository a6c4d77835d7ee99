//! Why a device is assignable or not, and which devices an alias would take. An extension of hotslot.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use hotslot_driver::device::HostDevice;
use hotslot_driver::hypervisor::ErrorKind;
use hotslot_driver::local::{self, Bar, BarKind, Guard};
use hotslot_driver::pci::{PciAddress, PciId};
use hotslot_model::assignment::State as AssignmentState;
use hotslot_model::device::{DevType, Device, DeviceStatus, Functions};
use hotslot_model::host_mode::HostChange;
use hotslot_model::id::{DeviceId, ServerId};
use hotslot_model::rules::{self, MAX_DEVICES, Pool, RuleKind};
use hotslot_service::assignment::{Assignments, CandidatesRequest};
use hotslot_service::config::Config;
use hotslot_service::error::Error;
use hotslot_service::host::Host;
use hotslot_service::hosts::Hosts;
use hotslot_service::inventory::{Availability, Catalog, HostDrivers};
use hotslot_service::records::Records;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use super::body::{Path, Query, boolean, id, not_listed};
use super::error::Fault;
use super::host_function::{self, HostFunction};
use super::hypervisors::{self, HypervisorPath};
use super::schema;
use super::state::DeviceParts;

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Path)]
pub(super) struct FunctionPath {
    /// The UUID, the number or the name of the host.
    hypervisor_id: String,
    /// The address of the function, such as `0000:3b:00.1`.
    address: String,
}

/// A PCI function, and why it is assignable or not.
#[derive(Serialize, ToSchema)]
pub(super) struct ExplainedAnswer {
    /// The function.
    pci_device: Explained,
}

/// A PCI function with everything that decides whether it is assignable.
#[derive(Serialize, ToSchema)]
#[schema(as = ExplainedFunction)]
pub(super) struct Explained {
    /// What the list of functions has.
    #[serde(flatten)]
    function: HostFunction,
    /// Why the host needs the function; null when that cannot be read.
    guards: Option<Vec<ShownGuard>>,
    /// Whether the configuration says that guards do not count for it.
    unguarded: bool,
    /// How the kernel can reset it, the preferred method first; null when that cannot be read.
    reset_methods: Option<Vec<String>>,
    /// Its BARs; null when they cannot be read.
    bars: Option<Vec<ShownBar>>,
    /// Every entry of the whitelist, and why it does not match.
    whitelist: Vec<WhitelistLine>,
    /// The types of mediated devices that it can have.
    mdev_types: Vec<ShownMdevType>,
    /// The mediated devices that it has.
    mdevs: Vec<ShownMdev>,
    /// The id of the vGPU type that it has, for a VF of which its driver makes a virtual GPU; null when it has none.
    vgpu_type: Option<String>,
    /// The vGPU types that it can be given now; for a PF, those that its VFs can be given.
    vgpu_types: Vec<ShownVgpuType>,
    /// The functions of its IOMMU group.
    group_members: Vec<GroupMember>,
    /// The pool to which it belongs; null when no `device_spec` lists it.
    pool: Option<ShownPool>,
    /// Whether it is offered now.
    offered: bool,
    /// Why it is not offered although it is free: what makes it unavailable, or the host that is frozen, being drained or
    /// read-only.
    withheld: Option<String>,
}

/// A reason why the host needs a function.
#[derive(Serialize, ToSchema)]
#[schema(as = Guard)]
struct ShownGuard {
    /// The kind of the reason.
    kind: &'static str,
    /// The reason in words.
    reason: String,
}

/// A base address register of a function.
#[derive(Serialize, ToSchema)]
#[schema(as = Bar)]
struct ShownBar {
    /// The number of the register, 0 to 5; 6 for the expansion ROM.
    index: u8,
    /// The size in bytes.
    size: u64,
    /// `memory` or `io`.
    kind: &'static str,
    /// Whether it may be in a bridge's prefetchable window.
    prefetchable: bool,
}

/// An entry of the whitelist, and whether it matches a function.
#[derive(Serialize, ToSchema)]
struct WhitelistLine {
    /// The position in the whitelist, from 1.
    #[schema(minimum = 1)]
    position: usize,
    /// The id of the entry.
    id: Uuid,
    /// Where the entry is: a place in the configuration file, or the API.
    place: String,
    /// The entry, as it was written.
    entry: Value,
    /// Whether it matches.
    matches: bool,
    /// Whether it is the first that matches, which decides.
    counts: bool,
    /// Why it does not match; null when it does.
    why: Option<String>,
}

/// A type of mediated devices.
#[derive(Serialize, ToSchema)]
#[schema(as = MdevType)]
struct ShownMdevType {
    /// The driver's id of the type.
    id: String,
    /// The driver's name of the type.
    name: Option<String>,
    /// The device API, such as `vfio-pci`.
    device_api: String,
    /// How many more devices of the type can be created now.
    available: u32,
}

/// A type of the virtual GPUs that VFs are.
#[derive(Serialize, ToSchema)]
#[schema(as = VgpuType)]
struct ShownVgpuType {
    /// The id: the vendor and the vendor's number.
    id: String,
    /// The vendor's name of the type.
    name: String,
    /// How many VFs without a type can be given it now. Each VF that gets a type may reduce the numbers of the others.
    available: u32,
}

/// A mediated device.
#[derive(Serialize, ToSchema)]
#[schema(as = Mdev)]
struct ShownMdev {
    /// The UUID.
    uuid: Uuid,
    /// The id of the type.
    #[serde(rename = "type")]
    mdev_type: String,
    /// The server that has it.
    #[schema(value_type = Option<Uuid>)]
    instance_uuid: Option<ServerId>,
    /// For what hotslot made it; null when somebody else did.
    holder: Option<String>,
    /// The state of the assignment; null when somebody else made it.
    #[schema(value_type = Option<schema::AssignmentState>)]
    status: Option<AssignmentState>,
}

/// A function of an IOMMU group.
#[derive(Serialize, ToSchema)]
struct GroupMember {
    /// The address.
    #[schema(value_type = schema::PciAddress)]
    address: PciAddress,
    /// The driver that is bound.
    driver: Option<String>,
    /// Whether it is free; null when no `device_spec` lists it.
    #[schema(value_type = Option<schema::PciDeviceStatus>)]
    status: Option<DeviceStatus>,
    /// The server that has it.
    #[schema(value_type = Option<Uuid>)]
    instance_uuid: Option<ServerId>,
}

/// A pool: devices that are the same to a request.
#[derive(Serialize, ToSchema)]
#[schema(as = Pool)]
struct ShownPool {
    /// The vendor id.
    #[schema(value_type = schema::PciId)]
    vendor_id: PciId,
    /// The product id.
    #[schema(value_type = schema::PciId)]
    product_id: PciId,
    /// The NUMA node; null when it is not known.
    numa_node: Option<u32>,
    /// What kind of functions they are.
    #[schema(value_type = schema::PciDeviceType)]
    dev_type: DevType,
    /// The address of the PF for VFs, or of the device itself.
    #[schema(value_type = schema::PciAddress)]
    address: PciAddress,
    /// The tags by which devices are grouped.
    tags: BTreeMap<String, String>,
    /// The number of free devices; 0 when all are in use.
    count: usize,
}

/// Which devices an alias would take.
#[derive(Serialize, ToSchema)]
pub(super) struct CandidateList {
    /// The alias.
    alias: String,
    /// The devices: first those that the alias would take, in that order, then the others.
    pci_candidates: Vec<Candidate>,
}

/// A device, and whether an alias would take it.
#[derive(Serialize, ToSchema)]
#[serde(untagged)]
enum Candidate {
    /// A device of `os-pci`.
    Listed(ListedCandidate),
    /// A function that no `device_spec` lists.
    Unlisted(Box<UnlistedCandidate>),
}

/// A device of `os-pci`, and whether an alias would take it.
#[derive(Serialize, ToSchema)]
struct ListedCandidate {
    /// The address.
    #[schema(value_type = schema::PciAddress)]
    address: PciAddress,
    /// The number of the device.
    #[schema(value_type = i64, minimum = 1)]
    id: DeviceId,
    /// The vendor id.
    #[schema(value_type = schema::PciId)]
    vendor_id: PciId,
    /// The product id.
    #[schema(value_type = schema::PciId)]
    product_id: PciId,
    /// What kind of function it is.
    #[schema(value_type = schema::PciDeviceType)]
    dev_type: DevType,
    /// Whether it is free.
    #[schema(value_type = schema::PciDeviceStatus)]
    status: DeviceStatus,
    /// The NUMA node; null when it is not known.
    numa_node: Option<u32>,
    /// The place in the order, from 0; null when the alias would not take it.
    place: Option<usize>,
    /// Why the alias would not take it; null when it would.
    why: Option<String>,
}

/// A function that no `device_spec` lists.
#[derive(Serialize, ToSchema)]
struct UnlistedCandidate {
    /// What the list of functions has.
    #[serde(flatten)]
    function: HostFunction,
    /// Always null.
    place: Option<usize>,
    /// Why the alias would not take it.
    why: &'static str,
}

/// Shows one PCI function, with everything that decides whether it is assignable. An extension of hotslot.
#[utoipa::path(get, path = "/os-hypervisors/{hypervisor_id}/pci_devices/{address}", tag = "Hypervisors",
    params(FunctionPath), operation_id = "show_function",
    responses((status = 200, description = "The function.", body = ExplainedAnswer)))]
pub(super) async fn device(
    State(parts): State<DeviceParts>,
    State(config): State<Arc<Config>>,
    Path(path): Path<FunctionPath>,
) -> Result<Json<ExplainedAnswer>, Fault> {
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
    let unavailable = row.and_then(|row| availability.why_unavailable(row, &at, None, HostDrivers::Blocks));
    let free = row.is_some_and(|row| row.status == DeviceStatus::Available);
    let refusal = parts.hosts.refusal(host, HostChange::Attach).await?.filter(|_| free);
    let withheld: Vec<_> = unavailable.into_iter().chain(refusal).collect();
    let sysroot = host.hypervisor.sysroot();
    let (vgpu_type, vgpu_types) = vgpu_types(host, address).await?;
    let pci_device = Explained {
        function: host_function::describe(
            host,
            function,
            row,
            availability.foreign.get(&address),
            availability.guard(address),
        ),
        guards: guards(&availability, address),
        unguarded: config.pci.is_unguarded(&host.name, address),
        reset_methods: local::reset_methods(sysroot, address),
        bars: bars(sysroot, address),
        whitelist: whitelist(&parts.catalog, &availability.functions, function),
        mdev_types: mdev_types(host, address).await?,
        mdevs: mdevs(&parts.records, host, &availability, address).await?,
        vgpu_type,
        vgpu_types,
        group_members: members(&availability, function, &rows),
        pool: row.and_then(|row| pool(row, &rows)).map(shown),
        offered: free && withheld.is_empty(),
        withheld: (!withheld.is_empty()).then(|| withheld.join("; ")),
    };
    Ok(Json(ExplainedAnswer { pci_device }))
}

/// Returns the reasons why the host needs a function; null when they cannot be read.
fn guards(availability: &Availability, address: PciAddress) -> Option<Vec<ShownGuard>> {
    let guards = availability.guards.get(&address).map(Vec::as_slice).unwrap_or_default();
    if guards.is_empty() && !availability.knows_guards() {
        return None;
    }
    let shown = |guard: &Guard| ShownGuard { kind: guard.kind.as_str(), reason: guard.reason.clone() };
    Some(guards.iter().map(shown).collect())
}

/// Returns the BARs of a function; null when they cannot be read.
fn bars(sysroot: Option<&std::path::Path>, address: PciAddress) -> Option<Vec<ShownBar>> {
    let shown = |bar: &Bar| {
        let kind = match bar.kind {
            BarKind::Memory => "memory",
            BarKind::Io => "io",
        };
        ShownBar { index: bar.index, size: bar.size, kind, prefetchable: bar.prefetchable }
    };
    Some(local::bars(sysroot, address)?.iter().map(shown).collect())
}

/// Returns the types of mediated devices that a function can have.
async fn mdev_types(host: &Host, address: PciAddress) -> Result<Vec<ShownMdevType>, Error> {
    let types = host.hypervisor.mdev_types(address).await;
    let types = types.map_err(host.error(format!("read the mediated device types of {address}")))?;
    let shown = types.into_iter().map(|of| ShownMdevType {
        id: of.id,
        name: of.name,
        device_api: of.device_api,
        available: of.available,
    });
    Ok(shown.collect())
}

/// Returns the type of virtual GPU that a VF has, and those that it, or a VF of a PF, can be given now.
async fn vgpu_types(host: &Host, address: PciAddress) -> Result<(Option<String>, Vec<ShownVgpuType>), Error> {
    let vfs = match host.hypervisor.vgpu_vfs(None).await {
        // On another machine nothing is known.
        Err(error) if error.kind == ErrorKind::Unsupported => return Ok((None, Vec::new())),
        vfs => vfs.map_err(host.error(format!("read the vGPU types of {address}")))?,
    };
    let (mut current, mut types) = (None, BTreeMap::<_, ShownVgpuType>::new());
    for vf in vfs {
        if vf.address == address {
            current = vf.current;
        } else if vf.parent != Some(address) {
            continue;
        }
        for of in vf.creatable {
            let none = || ShownVgpuType { id: of.id.clone(), name: of.name, available: 0 };
            types.entry(of.id.clone()).or_insert_with(none).available += 1;
        }
    }
    Ok((current, types.into_values().collect()))
}

/// Returns the mediated devices of a function. Those that hotslot created have their holder and status; those of others
/// do not.
async fn mdevs(
    records: &Records,
    host: &Host,
    availability: &Availability,
    parent: PciAddress,
) -> Result<Vec<ShownMdev>, Error> {
    let rows = records.mdevs().await?;
    let of_it = availability.mdevs.iter().filter(|mdev| mdev.parent == Some(parent));
    let described = of_it.map(|mdev| {
        let row = rows.iter().find(|row| row.id.0 == mdev.uuid);
        ShownMdev {
            uuid: mdev.uuid,
            mdev_type: mdev.mdev_type.clone(),
            instance_uuid: row.map(|row| row.server).or_else(|| host.has_mdev(mdev.uuid)),
            holder: row.map(|row| row.holder.to_string()),
            status: row.map(|row| row.state),
        }
    });
    Ok(described.collect())
}

/// Returns every entry of the whitelist, and the reason why it does not match the function.
fn whitelist(catalog: &Catalog, functions: &Functions, function: &HostDevice) -> Vec<WhitelistLine> {
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
        WhitelistLine {
            position: index + 1,
            id: rule.id,
            place: rule.name().to_string(),
            entry: serde_json::from_str(&rule.text).unwrap_or_else(|_| Value::from(rule.text.as_str())),
            matches: why.is_none(),
            counts,
            why,
        }
    });
    lines.collect()
}

fn members(availability: &Availability, function: &HostDevice, rows: &[Arc<Device>]) -> Vec<GroupMember> {
    let group = function.iommu_group.iter().flat_map(|group| &group.members);
    let member = |address: &PciAddress| {
        let row = rows.iter().find(|row| row.facts.address == *address);
        GroupMember {
            address: *address,
            driver: availability.functions.get(address).and_then(HostDevice::driver_name),
            status: row.map(|row| row.status),
            instance_uuid: row.and_then(|row| row.server()),
        }
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

fn shown(pool: Pool) -> ShownPool {
    ShownPool {
        vendor_id: pool.vendor_id,
        product_id: pool.product_id,
        numa_node: pool.numa_node,
        dev_type: pool.dev_type,
        address: pool.address,
        tags: pool.tags,
        count: pool.count,
    }
}

#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct CandidateQuery {
    /// The name of the alias.
    alias: String,
    /// Whether the request would take whole IOMMU groups.
    #[param(value_type = Option<bool>)]
    whole_group: Option<String>,
    /// The number of devices that would be requested; 1 by default.
    #[param(value_type = Option<u16>, minimum = 1, maximum = 256)]
    count: Option<String>,
    /// The id of the server to which the devices would be attached.
    server: Option<String>,
}

/// Parses `?count=2`.
fn count(text: &str) -> Result<usize, Error> {
    text.parse().ok().filter(|count| (1..=MAX_DEVICES).contains(count)).ok_or_else(|| {
        Error::Invalid(format!("invalid count {text}: expected a number from 1 to {MAX_DEVICES}"))
    })
}

/// Lists the devices of a host in the order in which an alias would take them, and the reason why it would not take
/// each of the others. An extension of hotslot.
#[utoipa::path(get, path = "/os-hypervisors/{hypervisor_id}/pci_candidates", tag = "Hypervisors",
    params(HypervisorPath, CandidateQuery), operation_id = "list_candidates",
    responses((status = 200, description = "The devices.", body = CandidateList)))]
pub(super) async fn candidates(
    State(assignments): State<Arc<Assignments>>,
    State(hosts): State<Arc<Hosts>>,
    Path(path): Path<HypervisorPath>,
    Query(query): Query<CandidateQuery>,
) -> Result<Json<CandidateList>, Fault> {
    let host = path.host(&hosts)?;
    host.ready().await?;
    let request = CandidatesRequest {
        alias: &query.alias,
        count: query.count.as_deref().map_or(Ok(1), count)?,
        whole_group: query.whole_group.as_deref().map_or(Ok(false), |word| boolean("whole_group", word))?,
        server: query
            .server
            .as_deref()
            .map(|text| id(text).ok_or_else(|| not_listed("server", text, "servers")))
            .transpose()?,
    };
    let candidates = assignments.candidates(host, &request).await?;
    let listed = candidates.devices.into_iter().map(|(device, verdict)| {
        let facts = &device.facts;
        let (place, why) = match verdict {
            Ok(place) => (Some(place), None),
            Err(why) => (None, Some(why)),
        };
        Candidate::Listed(ListedCandidate {
            address: facts.address,
            id: device.id,
            vendor_id: facts.vendor_id,
            product_id: facts.product_id,
            dev_type: facts.dev_type,
            status: device.status,
            numa_node: facts.numa_node,
            place,
            why,
        })
    });
    let unlisted = candidates.unlisted.iter().map(|(function, foreign)| {
        let function = host_function::describe(host, function, None, foreign.as_ref(), None);
        let unlisted = UnlistedCandidate { function, place: None, why: "no device_spec lists it" };
        Candidate::Unlisted(Box::new(unlisted))
    });
    let pci_candidates = listed.chain(unlisted).collect();
    Ok(Json(CandidateList { alias: query.alias, pci_candidates }))
}
