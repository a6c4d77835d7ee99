//! `servers`: libvirt's domains in Nova's format.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Json;
use axum::extract::{OriginalUri, State};
use axum::http::HeaderMap;
use futures_util::future::join_all;
use hotslot_driver::hypervisor::{DomainInfo, DomainState, DomainView};
use hotslot_model::device::DeviceStatus;
use hotslot_model::id::{DeviceId, ServerId};
use hotslot_service::error::Error;
use hotslot_service::host::Host;
use hotslot_service::hosts::Hosts;
use hotslot_service::records::Records;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use super::body::{Link, Page, PageParams, Pairs, Path, Query, base, id, not_listed};
use super::error::Fault;
use super::permit::Permit;
use super::schema;

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Path)]
pub(super) struct ServerPath {
    /// The id of the server: the UUID of its domain.
    server_id: String,
}

impl ServerPath {
    pub(super) fn id(&self) -> Result<ServerId, Error> {
        id(&self.server_id).ok_or_else(|| not_listed("server", &self.server_id, "servers"))
    }
}

/// The filter of a list.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct Filter {
    /// Only servers whose name contains this.
    name: Option<String>,
    /// Only servers of the host with this name. Callers who may not see hosts cannot filter by it.
    host: Option<String>,
    /// Only servers with this status, in upper or lower case.
    #[param(value_type = Option<schema::ServerStatusName>, inline)]
    status: Option<String>,
    /// Only the server with this id.
    uuid: Option<String>,
    /// Only servers that this project owns.
    project_id: Option<String>,
    /// The same as `project_id`.
    tenant_id: Option<String>,
}

impl Filter {
    /// Returns the filter as Nova applies it for this caller: who may not see hosts cannot filter by them either.
    fn of(self, permit: &Permit) -> Self {
        Self { host: self.host.filter(|_| permit.sees_hosts()), ..self }
    }

    /// Checks the values that would otherwise select nothing although they are mistyped.
    fn check(&self) -> Result<(), Error> {
        let Some(status) = &self.status else { return Ok(()) };
        if schema::SERVER_STATUSES.iter().any(|known| known.eq_ignore_ascii_case(status)) {
            return Ok(());
        }
        Err(Error::Invalid(format!(
            "invalid status {}: expected one of {}",
            status.chars().take(80).collect::<String>(),
            schema::SERVER_STATUSES.join(", ")
        )))
    }

    fn passes(&self, host: &Host, info: &DomainInfo) -> bool {
        self.name.as_deref().is_none_or(|name| info.name.contains(name))
            && self.host.as_deref().is_none_or(|name| host.name == name)
            && self.status.as_deref().is_none_or(|word| word.eq_ignore_ascii_case(status(info.state)))
            && self.uuid.as_deref().is_none_or(|id| id.eq_ignore_ascii_case(&info.uuid.to_string()))
    }

    /// Keeps the servers of the project. A server is left out when its host does not tell in time whose it is.
    async fn keep_of_project(&self, found: Vec<(Arc<Host>, DomainInfo)>) -> Vec<(Arc<Host>, DomainInfo)> {
        let projects: Vec<_> = self.project_id.iter().chain(&self.tenant_id).collect();
        if projects.is_empty() {
            return found;
        }
        let views = found.iter().map(|(host, info)| host.soon(host.hypervisor.domain(info.uuid)));
        let views = join_all(views).await;
        let is_of = |view: &DomainView| projects.iter().all(|id| view.ownership().project() == Some(id));
        let kept = found.into_iter().zip(views).filter(|(_, view)| view.as_ref().is_ok_and(is_of));
        kept.map(|(one, _)| one).collect()
    }
}

/// Returns Nova's server status of a domain state.
pub(super) fn status(state: DomainState) -> &'static str {
    match state {
        DomainState::Running | DomainState::Blocked | DomainState::ShuttingDown => "ACTIVE",
        DomainState::Paused => "PAUSED",
        DomainState::Suspended => "SUSPENDED",
        DomainState::ShutOff | DomainState::Crashed => "SHUTOFF",
        DomainState::Unknown => "UNKNOWN",
    }
}

/// Returns Nova's `vm_state` and `power_state` of a domain state (`nova/compute/power_state.py`).
fn power(state: DomainState) -> (&'static str, u8) {
    match state {
        DomainState::Running | DomainState::Blocked | DomainState::ShuttingDown => ("active", 1),
        DomainState::Paused => ("paused", 3),
        DomainState::Suspended => ("suspended", 7),
        DomainState::ShutOff => ("stopped", 4),
        DomainState::Crashed => ("stopped", 6),
        DomainState::Unknown => ("error", 0),
    }
}

/// A server in the brief list.
#[derive(Serialize, ToSchema)]
pub(super) struct ServerBrief {
    /// The id: the UUID of the domain.
    id: Uuid,
    /// The name of the domain.
    name: String,
    /// Nova's status: `ACTIVE`, `PAUSED`, `SUSPENDED`, `SHUTOFF` or `UNKNOWN`.
    status: &'static str,
    /// The name of the host; null for callers who may not see hosts.
    host: Option<String>,
    /// The links to the server.
    links: [Link; 2],
}

/// A server with all of Nova's keys. Those that libvirt does not know are null or empty.
#[derive(Serialize, ToSchema)]
#[schema(as = Server)]
pub(super) struct ServerDetail {
    /// The id: the UUID of the domain.
    id: Uuid,
    /// The name of the domain.
    name: String,
    /// Nova's status: `ACTIVE`, `PAUSED`, `SUSPENDED`, `SHUTOFF` or `UNKNOWN`.
    status: &'static str,
    /// The name of the host; null for callers who may not see hosts.
    host: Option<String>,
    /// The links to the server.
    links: [Link; 2],
    /// The project that owns the server, by the metadata of its domain.
    tenant_id: Option<String>,
    /// Always null.
    user_id: Option<String>,
    /// When Nova created the server; null for a domain that Nova did not create.
    created: Option<String>,
    /// Always null.
    updated: Option<String>,
    /// Always empty.
    metadata: BTreeMap<String, String>,
    /// Always empty, which is Nova's value for a server without an image.
    image: &'static str,
    /// A flavor without an id: libvirt has no flavors.
    flavor: NoFlavor,
    /// Always empty.
    addresses: BTreeMap<String, String>,
    /// The name of the host; null for callers who may not see hosts.
    #[serde(rename = "OS-EXT-SRV-ATTR:host")]
    ext_host: Option<String>,
    /// The name of the host; null for callers who may not see hosts.
    #[serde(rename = "OS-EXT-SRV-ATTR:hypervisor_hostname")]
    hypervisor_hostname: Option<String>,
    /// The name of the domain.
    #[serde(rename = "OS-EXT-SRV-ATTR:instance_name")]
    instance_name: String,
    /// Nova's state of the server: `active`, `paused`, `suspended`, `stopped` or `error`.
    #[serde(rename = "OS-EXT-STS:vm_state")]
    vm_state: &'static str,
    /// Nova's power state: 0 unknown, 1 running, 3 paused, 4 shut down, 6 crashed, 7 suspended.
    #[serde(rename = "OS-EXT-STS:power_state")]
    power_state: u8,
    /// Always null.
    #[serde(rename = "OS-EXT-STS:task_state")]
    task_state: Option<String>,
    /// The devices of `os-pci` that are allocated to the server.
    #[serde(rename = "os-pci:pci_devices")]
    pci_devices: Vec<ServerDevice>,
}

/// A flavor without an id.
#[derive(Default, Serialize, ToSchema)]
pub(super) struct NoFlavor {
    /// Always empty.
    id: &'static str,
    /// Always empty.
    links: Vec<Link>,
}

/// A device that is allocated to a server.
#[derive(Serialize, ToSchema)]
pub(super) struct ServerDevice {
    /// The number of the device in `os-pci`.
    #[schema(value_type = i64, minimum = 1)]
    id: DeviceId,
}

/// A page of the brief list.
#[derive(Serialize, ToSchema)]
pub(super) struct ServerList {
    /// The servers, by host and name.
    servers: Vec<ServerBrief>,
    /// The link to the next page; missing on the last page.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Vec<Link>)]
    servers_links: Option<Vec<Link>>,
}

/// A page of the detailed list.
#[derive(Serialize, ToSchema)]
pub(super) struct ServerDetailList {
    /// The servers, by host and name.
    servers: Vec<ServerDetail>,
    /// The link to the next page; missing on the last page.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Vec<Link>)]
    servers_links: Option<Vec<Link>>,
}

/// One server.
#[derive(Serialize, ToSchema)]
pub(super) struct ServerAnswer {
    /// The server.
    server: ServerDetail,
}

fn brief(base: &str, prefix: &str, host: Option<&str>, info: &DomainInfo) -> ServerBrief {
    let link = |rel, prefix| Link { rel, href: format!("{base}{prefix}/servers/{}", info.uuid) };
    ServerBrief {
        id: info.uuid,
        name: info.name.clone(),
        status: status(info.state),
        host: host.map(str::to_owned),
        links: [link("self", prefix), link("bookmark", "")],
    }
}

/// Returns the part of a path before the resource, such as `/v2/tenant` or `/v2.1`.
fn prefix(uri: &OriginalUri) -> String {
    uri.path().rsplit_once("/servers").map_or("", |(prefix, _)| prefix).to_owned()
}

/// Returns the allocated devices of each server, by their ids in `os-pci`.
fn devices(records: &Records) -> BTreeMap<ServerId, Vec<ServerDevice>> {
    let mut owned = BTreeMap::<ServerId, Vec<ServerDevice>>::new();
    for device in records.devices() {
        if let (Some(server), DeviceStatus::Allocated) = (device.server(), device.status) {
            owned.entry(server).or_default().push(ServerDevice { id: device.id });
        }
    }
    owned
}

/// Returns a server with all of Nova's keys. `created` is set only for domains that Nova created, because libvirt does
/// not record the time of creation.
fn full(brief: ServerBrief, view: DomainView, devices: Option<Vec<ServerDevice>>) -> ServerDetail {
    let (vm_state, power_state) = power(view.info.state);
    let owner = view.ownership();
    let created = view.live.or(view.persistent).and_then(|document| document.created);
    let ServerBrief { id, name, status, host, links } = brief;
    ServerDetail {
        id,
        name,
        status,
        links,
        tenant_id: owner.project().map(Into::into),
        user_id: None,
        created,
        updated: None,
        metadata: BTreeMap::new(),
        image: "",
        flavor: NoFlavor::default(),
        addresses: BTreeMap::new(),
        ext_host: host.clone(),
        hypervisor_hostname: host.clone(),
        host,
        instance_name: view.info.name,
        vm_state,
        power_state,
        task_state: None,
        pci_devices: devices.unwrap_or_default(),
    }
}

/// Returns the servers of all reachable hosts that the caller may use, ordered by host and name.
async fn everywhere(hosts: &Hosts, filter: &Filter, permit: &Permit) -> Vec<(Arc<Host>, DomainInfo)> {
    let lists = hosts.iter().map(|host| host.soon(host.hypervisor.domains()));
    let mut found = Vec::new();
    for (host, domains) in hosts.iter().zip(join_all(lists).await) {
        match domains {
            Ok(mut domains) => {
                domains.sort_by(|a, b| a.name.cmp(&b.name));
                found.extend(domains.into_iter().map(|info| (Arc::clone(host), info)));
            }
            // The servers of an unreachable host are missing from the list; the other hosts are still shown.
            Err(error) => {
                tracing::warn!(host = %host.name, %error, "the list of servers omits an unreachable host");
            }
        }
    }
    found.retain(|(host, info)| filter.passes(host, info));
    let found = permit.keep(hosts, found, |(host, info)| (host.row.id, ServerId(info.uuid))).await;
    filter.keep_of_project(found).await
}

/// Returns the servers of one page, and the link to the next page. The keys of `pairs` that neither page nor filter have
/// are those of Nova that have no meaning here.
async fn page(
    hosts: &Hosts,
    filter: Filter,
    permit: &Permit,
    pairs: Pairs,
    uri: &OriginalUri,
    headers: &HeaderMap,
) -> Result<(Vec<(Arc<Host>, DomainInfo)>, Option<Vec<Link>>), Error> {
    let (page, _) = Page::read(pairs)?;
    filter.check()?;
    let mut found = everywhere(hosts, &filter.of(permit), permit).await;
    page.skip(&mut found, |(_, info), marker| info.uuid.to_string().eq_ignore_ascii_case(marker))?;
    Ok(page.cut(found, uri, headers, |(_, info)| info.uuid.to_string()))
}

/// Lists the servers that the caller may use.
#[utoipa::path(get, path = "/servers", tag = "Servers", params(PageParams, Filter),
    responses((status = 200, description = "A page of the list. Servers of an unreachable host are missing.", body = ServerList)))]
pub(super) async fn list(
    State(hosts): State<Arc<Hosts>>,
    permit: Permit,
    uri: OriginalUri,
    headers: HeaderMap,
    pairs: Pairs,
    Query(filter): Query<Filter>,
) -> Result<Json<ServerList>, Fault> {
    let (found, links) = page(&hosts, filter, &permit, pairs, &uri, &headers).await?;
    let (base, prefix) = (base(&headers), prefix(&uri));
    let servers = found.iter().map(|(host, info)| brief(&base, &prefix, shown(&permit, host), info));
    Ok(Json(ServerList { servers: servers.collect(), servers_links: links }))
}

/// Lists the servers that the caller may use, with all of Nova's keys.
#[utoipa::path(get, path = "/servers/detail", tag = "Servers", params(PageParams, Filter),
    responses((status = 200, description = "A page of the list. Servers of an unreachable host are missing.", body = ServerDetailList)))]
pub(super) async fn detail(
    State(hosts): State<Arc<Hosts>>,
    State(records): State<Arc<Records>>,
    permit: Permit,
    uri: OriginalUri,
    headers: HeaderMap,
    pairs: Pairs,
    Query(filter): Query<Filter>,
) -> Result<Json<ServerDetailList>, Fault> {
    let (found, links) = page(&hosts, filter, &permit, pairs, &uri, &headers).await?;
    let (base, prefix) = (base(&headers), prefix(&uri));
    let mut owned = devices(&records);
    let mut servers = Vec::new();
    let views = found.iter().map(|(host, info)| host.soon(host.hypervisor.domain(info.uuid)));
    for ((host, info), view) in found.iter().zip(join_all(views).await) {
        // A domain that has vanished in the meantime, or belongs to another project now, is left out.
        let Some(view) = view.ok().filter(|view| permit.covers_all() || permit.covers(view)) else {
            continue;
        };
        let devices = owned.remove(&ServerId(info.uuid));
        let host = shown(&permit, host);
        servers.push(full(brief(&base, &prefix, host, info), view, devices));
    }
    Ok(Json(ServerDetailList { servers, servers_links: links }))
}

/// Shows a server.
#[utoipa::path(get, path = "/servers/{server_id}", tag = "Servers", params(ServerPath),
    responses((status = 200, description = "The server.", body = ServerAnswer)))]
pub(super) async fn show(
    State(hosts): State<Arc<Hosts>>,
    State(records): State<Arc<Records>>,
    permit: Permit,
    uri: OriginalUri,
    headers: HeaderMap,
    Path(path): Path<ServerPath>,
) -> Result<Json<ServerAnswer>, Fault> {
    let server = path.id()?;
    let (host, view) = permit.server(&hosts, server).await?;
    let devices = devices(&records).remove(&server);
    let host = shown(&permit, &host);
    let brief = brief(&base(&headers), &prefix(&uri), host, &view.info);
    Ok(Json(ServerAnswer { server: full(brief, view, devices) }))
}

/// Returns the name of a host, for callers who may see it.
fn shown<'a>(permit: &Permit, host: &'a Host) -> Option<&'a str> {
    permit.sees_hosts().then_some(host.name.as_str())
}
