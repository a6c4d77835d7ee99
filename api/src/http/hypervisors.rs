//! `os-hypervisors`: the configured hosts, the number of free devices of each, and all of its PCI functions.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Json;
use axum::extract::{OriginalUri, State};
use axum::http::{HeaderMap, StatusCode};
use futures_util::future::join_all;
use hotslot_driver::hypervisor::{DomainInfo, DomainState};
use hotslot_driver::pci::PciId;
use hotslot_model::host_mode::{HostChange, HostMode, Restriction};
use hotslot_model::id::HypervisorId;
use hotslot_model::rules;
use hotslot_model::rules::Stat;
use hotslot_service::error::Error;
use hotslot_service::host::Host;
use hotslot_service::hosts::Hosts;
use hotslot_service::records::Records;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use super::body::{Link, Page, PageParams, Pairs, Path, not_listed, time};
use super::error::Fault;
use super::schema;

/// A host in the brief list.
#[derive(Serialize, ToSchema)]
pub(super) struct HypervisorBrief {
    /// The UUID of the host.
    id: Uuid,
    /// The name in the configuration.
    hypervisor_hostname: String,
    /// `up`, or `down` when libvirt cannot be reached.
    state: &'static str,
    /// Why the host is down, or which calls have not returned; null when all is well.
    state_reason: Option<String>,
    /// The calls of libvirt that were given up at their time limit and have not returned, the oldest first.
    stuck_calls: Vec<StuckCall>,
    /// `enabled`, or `disabled` when not everything may be changed on the host.
    status: &'static str,
    /// What may be changed on the host.
    #[schema(value_type = schema::HypervisorModeName)]
    mode: HostMode,
    /// Who decided that not everything may be changed; null when the host is open.
    restriction: Option<RestrictionView>,
    /// Whether the host is a simulated one.
    simulated: bool,
    /// The servers of the host, when `with_servers=true` requests them.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Vec<HypervisorServer>)]
    servers: Option<Vec<HypervisorServer>>,
}

/// Who decided that not everything may be changed on a host.
#[derive(Serialize, ToSchema)]
#[schema(as = HypervisorRestriction)]
pub(super) struct RestrictionView {
    /// Who decided it; null for the configuration.
    by: Option<String>,
    /// The reason that was given; null when none was given.
    reason: Option<String>,
    /// When it was decided; null for the configuration.
    #[schema(value_type = Option<schema::Time>)]
    since: Option<String>,
}

impl From<&Restriction> for RestrictionView {
    fn from(restriction: &Restriction) -> Self {
        Self {
            by: restriction.by.clone(),
            reason: restriction.reason.clone(),
            since: restriction.since.map(time),
        }
    }
}

/// A call of libvirt that has not returned.
#[derive(Serialize, ToSchema)]
pub(super) struct StuckCall {
    /// What the call does.
    operation: String,
    /// The time since it began, in seconds.
    seconds: u64,
}

/// A server of a host.
#[derive(Serialize, ToSchema)]
pub(super) struct HypervisorServer {
    /// The name of the domain.
    name: String,
    /// The UUID of the domain.
    uuid: Uuid,
}

/// A host with Nova's keys of microversion 2.88 and of those before. Values that hotslot does not know are 0 or null.
#[derive(Serialize, ToSchema)]
#[schema(as = Hypervisor)]
pub(super) struct HypervisorDetail {
    /// What the brief list has, and the servers of the host.
    #[serde(flatten)]
    brief: HypervisorBrief,
    /// The number of the host, as `os-pci` shows it.
    #[schema(value_type = i64, minimum = 1)]
    compute_node_id: HypervisorId,
    /// libvirt's URI of the host.
    uri: String,
    /// libvirt's name of the hypervisor, such as `QEMU`; null while the host is unreachable.
    hypervisor_type: Option<String>,
    /// The hypervisor's version: major × 1,000,000 + minor × 1,000 + release.
    hypervisor_version: Option<u64>,
    /// libvirt's version in the same form.
    libvirt_version: Option<u64>,
    /// The host name that the host itself has.
    hostname: Option<String>,
    /// Always null.
    host_ip: Option<String>,
    /// The host as a service of Nova.
    service: HypervisorService,
    /// Always null.
    uptime: Option<String>,
    /// The number of servers that are not shut off.
    running_vms: usize,
    /// A JSON document inside a string, as Nova's clients expect it. Always `{}`.
    cpu_info: &'static str,
    /// The numbers of free devices, by kind.
    pci_stats: Vec<PciStat>,
    /// The same as `pci_stats`.
    #[serde(rename = "os-pci:pci_stats")]
    os_pci_stats: Vec<PciStat>,
    /// What hotslot does not know.
    #[serde(flatten)]
    unknown: Unknown,
}

/// Keys of Nova that hotslot knows no values of.
#[derive(Default, Serialize, ToSchema)]
#[schema(as = HypervisorUnknown)]
struct Unknown {
    /// Always 0.
    current_workload: u8,
    /// Always 0.
    disk_available_least: u8,
    /// Always 0.
    free_disk_gb: u8,
    /// Always 0.
    free_ram_mb: u8,
    /// Always 0.
    local_gb: u8,
    /// Always 0.
    local_gb_used: u8,
    /// Always 0.
    memory_mb: u8,
    /// Always 0.
    memory_mb_used: u8,
    /// Always 0.
    vcpus: u8,
    /// Always 0.
    vcpus_used: u8,
}

/// A host as a service of Nova.
#[derive(Serialize, ToSchema)]
pub(super) struct HypervisorService {
    /// The UUID of the host.
    id: Uuid,
    /// The name of the host.
    host: String,
    /// Why not everything may be changed on the host; null when it may.
    disabled_reason: Option<String>,
}

/// The number of free devices of a kind. The tags are shown twice: as keys of their own, as in Nova, and as `extra_info`.
#[derive(Clone, Serialize, ToSchema)]
pub(super) struct PciStat {
    /// The number of free devices; 0 when all are in use.
    count: usize,
    /// The vendor id.
    #[schema(value_type = schema::PciId)]
    vendor_id: PciId,
    /// The product id.
    #[schema(value_type = schema::PciId)]
    product_id: PciId,
    /// The NUMA node; null when it is not known.
    numa_node: Option<u32>,
    /// The tags by which devices are grouped.
    extra_info: BTreeMap<String, String>,
    /// The same tags, as keys of their own.
    #[serde(flatten)]
    #[schema(value_type = BTreeMap<String, serde_json::Value>)]
    tags: BTreeMap<String, Option<String>>,
}

/// A page of the brief list.
#[derive(Serialize, ToSchema)]
pub(super) struct HypervisorList {
    /// The hosts, in the order of the configuration.
    hypervisors: Vec<HypervisorBrief>,
    /// The link to the next page; missing on the last page.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Vec<Link>)]
    hypervisors_links: Option<Vec<Link>>,
}

/// A page of the detailed list.
#[derive(Serialize, ToSchema)]
pub(super) struct HypervisorDetailList {
    /// The hosts, in the order of the configuration.
    hypervisors: Vec<HypervisorDetail>,
    /// The link to the next page; missing on the last page.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Vec<Link>)]
    hypervisors_links: Option<Vec<Link>>,
}

/// One host.
#[derive(Serialize, ToSchema)]
pub(super) struct HypervisorAnswer {
    /// The host.
    hypervisor: HypervisorDetail,
}

/// The aggregates of hosts.
#[derive(Serialize, ToSchema)]
pub(super) struct AggregateList {
    /// Always empty.
    aggregates: [String; 0],
}

/// What may be changed on each host that is not open.
type Restrictions = BTreeMap<HypervisorId, Restriction>;

fn brief(host: &Host, restrictions: &Restrictions, servers: Option<&[DomainInfo]>) -> HypervisorBrief {
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
    let stuck_calls = overdue
        .iter()
        .map(|call| StuckCall { operation: call.operation.clone(), seconds: call.elapsed.as_secs() });
    let named = |server: &DomainInfo| HypervisorServer { name: server.name.clone(), uuid: server.uuid };
    let restriction = restrictions.get(&host.row.id);
    HypervisorBrief {
        id: host.row.uuid,
        hypervisor_hostname: host.name.clone(),
        state: if connection.is_ok() { "up" } else { "down" },
        state_reason: connection.err().or(overdue_call),
        stuck_calls: stuck_calls.collect(),
        status: if restriction.is_none() { "enabled" } else { "disabled" },
        mode: restriction.map_or(HostMode::Open, |restriction| restriction.mode),
        restriction: restriction.map(RestrictionView::from),
        simulated: host.uri.starts_with("sim://"),
        servers: servers.map(|servers| servers.iter().map(named).collect()),
    }
}

/// Returns the servers of a host; an empty list when the host is unreachable.
async fn servers(host: &Host) -> Vec<DomainInfo> {
    let mut domains = host.soon(host.hypervisor.domains()).await.unwrap_or_default();
    domains.sort_by(|a, b| a.name.cmp(&b.name));
    domains
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

/// Returns the number of free devices per kind.
fn pci_stats(records: &Records, host: &Host) -> Vec<PciStat> {
    let shown = |stat: Stat| PciStat {
        count: stat.count,
        vendor_id: stat.vendor_id,
        product_id: stat.product_id,
        numa_node: stat.numa_node,
        tags: stat.tags.iter().map(|(key, value)| (key.clone(), or_null(value))).collect(),
        extra_info: stat.tags,
    };
    let devices = records.devices_of(host.row.id);
    rules::stats(&devices, rules::is_grouping_key).into_iter().map(shown).collect()
}

/// Returns the value of a tag. `extra_info` stores null as the string `null`, which no tag can have otherwise.
fn or_null(value: &str) -> Option<String> {
    (value != rules::NULL).then(|| value.to_owned())
}

async fn full(records: &Records, restrictions: &Restrictions, host: &Host) -> HypervisorDetail {
    let info = host.soon(host.hypervisor.host()).await.ok();
    let servers = servers(host).await;
    let stats = pci_stats(records, host);
    HypervisorDetail {
        brief: brief(host, restrictions, Some(&servers)),
        compute_node_id: host.row.id,
        uri: host.uri.clone(),
        hypervisor_type: info.as_ref().map(|info| info.hypervisor_type.clone()),
        hypervisor_version: info.as_ref().map(|info| info.hypervisor_version),
        libvirt_version: info.as_ref().map(|info| info.libvirt_version),
        hostname: info.map(|info| info.hostname),
        host_ip: None,
        service: HypervisorService {
            id: host.row.uuid,
            host: host.name.clone(),
            disabled_reason: disabled_reason(restrictions, host),
        },
        uptime: None,
        running_vms: servers.iter().filter(is_up).count(),
        cpu_info: "{}",
        pci_stats: stats.clone(),
        os_pci_stats: stats,
        unknown: Unknown::default(),
    }
}

/// Returns why nothing new may be attached on a host; `None` when it may.
fn disabled_reason(restrictions: &Restrictions, host: &Host) -> Option<String> {
    restrictions.get(&host.row.id)?.refusal(&host.name, HostChange::Attach)
}

/// The page of hosts that a query requests.
struct Found<'a> {
    hosts: Vec<&'a Arc<Host>>,
    links: Option<Vec<Link>>,
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
}

/// Returns the hosts whose name contains `pattern`.
///
/// # Errors
/// [`Error::NotFound`] when there is no such host.
fn like<'a>(hosts: &'a Hosts, pattern: &str) -> Result<Vec<&'a Arc<Host>>, Error> {
    let hosts: Vec<_> = hosts.iter().filter(|host| host.name.contains(pattern)).collect();
    if hosts.is_empty() {
        return Err(not_listed("a host whose name contains", pattern, "os-hypervisors"));
    }
    Ok(hosts)
}

/// The filter of a list.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[allow(dead_code, reason = "the description of the API is made from it; `Found` reads the keys")]
struct HypervisorQuery {
    /// Only hosts whose name contains this. It cannot be combined with `limit` or `marker`.
    hypervisor_hostname_pattern: Option<String>,
    /// Whether the brief list has the servers of each host.
    with_servers: Option<bool>,
}

/// Lists the configured hosts.
#[utoipa::path(get, path = "/os-hypervisors", tag = "Hypervisors", params(PageParams, HypervisorQuery),
    responses(
        (status = 200, description = "A page of the list.", body = HypervisorList),
        (status = 404, description = "No name of a host contains the pattern."),
    ))]
pub(super) async fn list(
    State(hosts): State<Arc<Hosts>>,
    uri: OriginalUri,
    headers: HeaderMap,
    pairs: Pairs,
) -> Result<Json<HypervisorList>, Fault> {
    let found = Found::by(&hosts, &uri, &headers, pairs)?;
    let restrictions = hosts.restrictions().await?;
    let hypervisors = join_all(found.hosts.iter().map(async |host| {
        let servers = if found.with_servers { Some(servers(host).await) } else { None };
        brief(host, &restrictions, servers.as_deref())
    }));
    let hypervisors = hypervisors.await;
    Ok(Json(HypervisorList { hypervisors, hypervisors_links: found.links }))
}

/// Lists the configured hosts, with all that is known of each.
#[utoipa::path(get, path = "/os-hypervisors/detail", tag = "Hypervisors", params(PageParams, HypervisorQuery),
    responses(
        (status = 200, description = "A page of the list.", body = HypervisorDetailList),
        (status = 404, description = "No name of a host contains the pattern."),
    ))]
pub(super) async fn detail(
    State(hosts): State<Arc<Hosts>>,
    State(records): State<Arc<Records>>,
    uri: OriginalUri,
    headers: HeaderMap,
    pairs: Pairs,
) -> Result<Json<HypervisorDetailList>, Fault> {
    let found = Found::by(&hosts, &uri, &headers, pairs)?;
    let restrictions = hosts.restrictions().await?;
    let hypervisors = join_all(found.hosts.iter().map(|host| full(&records, &restrictions, host))).await;
    Ok(Json(HypervisorDetailList { hypervisors, hypervisors_links: found.links }))
}

/// Lists the hosts whose name contains a string, for clients before microversion 2.53.
#[utoipa::path(get, path = "/os-hypervisors/{hypervisor_id}/search", tag = "Hypervisors", params(HypervisorPath),
    responses((status = 200, description = "The hosts.", body = HypervisorList)))]
pub(super) async fn search(
    State(hosts): State<Arc<Hosts>>,
    Path(path): Path<HypervisorPath>,
) -> Result<Json<HypervisorList>, Fault> {
    let named = like(&hosts, &path.hypervisor_id)?;
    let restrictions = hosts.restrictions().await?;
    let hypervisors = named.into_iter().map(|host| brief(host, &restrictions, None)).collect();
    Ok(Json(HypervisorList { hypervisors, hypervisors_links: None }))
}

/// Returns 501, as Nova does when the hypervisor does not report its uptime. Clients accept that.
#[utoipa::path(get, path = "/os-hypervisors/{hypervisor_id}/uptime", tag = "Hypervisors", params(HypervisorPath),
    responses((status = 501, description = "libvirt does not report the uptime of a host.")))]
pub(super) async fn uptime(
    State(hosts): State<Arc<Hosts>>,
    Path(path): Path<HypervisorPath>,
) -> Result<StatusCode, Fault> {
    let host = path.host(&hosts)?;
    let message = format!("libvirt does not report the uptime of host {}", host.name);
    Err(Fault::new(StatusCode::NOT_IMPLEMENTED, message))
}

/// Lists no aggregates. Clients request this list when they show a hypervisor.
#[utoipa::path(get, path = "/os-aggregates", tag = "Hypervisors",
    responses((status = 200, description = "An empty list.", body = AggregateList)))]
pub(super) async fn aggregates() -> Json<AggregateList> {
    Json(AggregateList { aggregates: [] })
}

/// Whether `id` is the UUID, the number or the name of the host.
fn is(host: &Host, id: &str) -> bool {
    host.row.uuid.to_string() == *id || host.row.id.0.to_string() == *id || host.name == *id
}

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Path)]
pub(super) struct HypervisorPath {
    /// The UUID, the number or the name of the host. For `search` it is a part of the name.
    hypervisor_id: String,
}

impl HypervisorPath {
    pub(super) fn host<'a>(&self, hosts: &'a Hosts) -> Result<&'a Arc<Host>, Error> {
        host(hosts, &self.hypervisor_id)
    }
}

pub(super) fn host<'a>(hosts: &'a Hosts, id: &str) -> Result<&'a Arc<Host>, Error> {
    let host = hosts.iter().find(|host| is(host, id));
    host.ok_or_else(|| not_listed("host", id, "os-hypervisors"))
}

/// Shows a host.
#[utoipa::path(get, path = "/os-hypervisors/{hypervisor_id}", tag = "Hypervisors", params(HypervisorPath),
    responses((status = 200, description = "The host.", body = HypervisorAnswer)))]
pub(super) async fn show(
    State(hosts): State<Arc<Hosts>>,
    State(records): State<Arc<Records>>,
    Path(path): Path<HypervisorPath>,
) -> Result<Json<HypervisorAnswer>, Fault> {
    let host = path.host(&hosts)?;
    let restrictions = hosts.restrictions().await?;
    Ok(Json(HypervisorAnswer { hypervisor: full(&records, &restrictions, host).await }))
}
