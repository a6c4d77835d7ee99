//! `servers`: libvirt's domains in Nova's format.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Json;
use axum::extract::{OriginalUri, State};
use axum::http::HeaderMap;
use futures_util::future::join_all;
use hotslot_driver::hypervisor::{DomainInfo, DomainState, DomainView};
use hotslot_model::device::DeviceStatus;
use hotslot_model::id::ServerId;
use hotslot_service::error::Error;
use hotslot_service::host::Host;
use hotslot_service::hosts::Hosts;
use hotslot_service::records::Records;
use serde::Deserialize;
use serde_json::{Value, json};

use super::body::{Page, Pairs, Path, Query, base, id};
use super::error::Fault;
use super::permit::Permit;

#[derive(Deserialize)]
pub(super) struct ServerPath {
    server_id: String,
}

impl ServerPath {
    pub(super) fn id(&self) -> Result<ServerId, Error> {
        id(&self.server_id, "server")
    }
}

#[derive(Deserialize)]
pub(super) struct Filter {
    name: Option<String>,
    host: Option<String>,
    status: Option<String>,
}

impl Filter {
    /// Returns the filter as Nova applies it for this caller: who may not see hosts cannot filter by them either.
    fn of(self, permit: &Permit) -> Self {
        Self { host: self.host.filter(|_| permit.sees_hosts()), ..self }
    }

    fn passes(&self, host: &Host, info: &DomainInfo) -> bool {
        self.name.as_deref().is_none_or(|name| info.name.contains(name))
            && self.host.as_deref().is_none_or(|name| host.name == name)
            && self.status.as_deref().is_none_or(|word| word.eq_ignore_ascii_case(status(info.state)))
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

fn brief(base: &str, prefix: &str, host: Option<&str>, info: &DomainInfo) -> Value {
    let href = format!("{base}{prefix}/servers/{}", info.uuid);
    json!({
        "id": info.uuid,
        "name": info.name,
        "status": status(info.state),
        "host": host,
        "links": [
            { "rel": "self", "href": href },
            { "rel": "bookmark", "href": format!("{base}/servers/{}", info.uuid) },
        ],
    })
}

/// Returns the part of a path before the resource, such as `/v2/tenant` or `/v2.1`.
fn prefix(uri: &OriginalUri) -> String {
    uri.path().rsplit_once("/servers").map_or("", |(prefix, _)| prefix).to_owned()
}

/// Returns the allocated devices of each server, by their ids in `os-pci`.
fn devices(records: &Records) -> BTreeMap<ServerId, Vec<Value>> {
    let mut owned = BTreeMap::<ServerId, Vec<Value>>::new();
    for device in records.devices() {
        if let (Some(server), DeviceStatus::Allocated) = (device.server(), device.status) {
            owned.entry(server).or_default().push(json!({ "id": device.id }));
        }
    }
    owned
}

/// Returns a server with all of Nova's keys. `created` is set only for domains that Nova created, because libvirt does
/// not record the time of creation.
fn full(brief: Value, host: Option<&str>, view: DomainView, devices: Option<Vec<Value>>) -> Value {
    let (vm_state, power_state) = power(view.info.state);
    let mut server = brief;
    let owner = view.ownership();
    let created = view.live.or(view.persistent).and_then(|document| document.created);
    for (key, value) in [
        ("tenant_id", json!(owner.project())),
        ("user_id", Value::Null),
        ("created", json!(created)),
        ("updated", Value::Null),
        ("metadata", json!({})),
        // An empty string is Nova's value for a server without an image. libvirt has no flavors either.
        ("image", json!("")),
        ("flavor", json!({ "id": "", "links": [] })),
        ("addresses", json!({})),
        ("OS-EXT-SRV-ATTR:host", json!(host)),
        ("OS-EXT-SRV-ATTR:hypervisor_hostname", json!(host)),
        ("OS-EXT-SRV-ATTR:instance_name", json!(view.info.name)),
        ("OS-EXT-STS:vm_state", json!(vm_state)),
        ("OS-EXT-STS:power_state", json!(power_state)),
        ("OS-EXT-STS:task_state", Value::Null),
        ("os-pci:pci_devices", json!(devices.unwrap_or_default())),
    ] {
        server[key] = value;
    }
    server
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
    permit.keep(hosts, found, |(host, info)| (host.row.id, ServerId(info.uuid))).await
}

/// Returns the servers of one page, and the link to the next page. Unknown query keys are ignored, because Nova's
/// clients send keys that have no meaning here.
async fn page(
    hosts: &Hosts,
    filter: Filter,
    permit: &Permit,
    pairs: Vec<(String, String)>,
    uri: &OriginalUri,
    headers: &HeaderMap,
) -> Result<(Vec<(Arc<Host>, DomainInfo)>, Option<Value>), Error> {
    let (page, _) = Page::read(Pairs(pairs))?;
    let mut found = everywhere(hosts, &filter.of(permit), permit).await;
    page.skip(&mut found, |(_, info), marker| info.uuid.to_string().eq_ignore_ascii_case(marker))?;
    Ok(page.cut(found, uri, headers, |(_, info)| info.uuid.to_string()))
}

fn answer(servers: Vec<Value>, links: Option<Value>) -> Json<Value> {
    let mut body = json!({ "servers": servers });
    if let Some(links) = links {
        body["servers_links"] = links;
    }
    Json(body)
}

pub(super) async fn list(
    State(hosts): State<Arc<Hosts>>,
    permit: Permit,
    uri: OriginalUri,
    headers: HeaderMap,
    Query(filter): Query<Filter>,
    Query(pairs): Query<Vec<(String, String)>>,
) -> Result<Json<Value>, Fault> {
    let (found, links) = page(&hosts, filter, &permit, pairs, &uri, &headers).await?;
    let (base, prefix) = (base(&headers), prefix(&uri));
    let servers = found.iter().map(|(host, info)| brief(&base, &prefix, shown(&permit, host), info));
    Ok(answer(servers.collect(), links))
}

pub(super) async fn detail(
    State(hosts): State<Arc<Hosts>>,
    State(records): State<Arc<Records>>,
    permit: Permit,
    uri: OriginalUri,
    headers: HeaderMap,
    Query(filter): Query<Filter>,
    Query(pairs): Query<Vec<(String, String)>>,
) -> Result<Json<Value>, Fault> {
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
        servers.push(full(brief(&base, &prefix, host, info), host, view, devices));
    }
    Ok(answer(servers, links))
}

pub(super) async fn show(
    State(hosts): State<Arc<Hosts>>,
    State(records): State<Arc<Records>>,
    permit: Permit,
    uri: OriginalUri,
    headers: HeaderMap,
    Path(path): Path<ServerPath>,
) -> Result<Json<Value>, Fault> {
    let server = path.id()?;
    let (host, view) = permit.server(&hosts, server).await?;
    let devices = devices(&records).remove(&server);
    let host = shown(&permit, &host);
    let brief = brief(&base(&headers), &prefix(&uri), host, &view.info);
    Ok(Json(json!({ "server": full(brief, host, view, devices) })))
}

/// Returns the name of a host, for callers who may see it.
fn shown<'a>(permit: &Permit, host: &'a Host) -> Option<&'a str> {
    permit.sees_hosts().then_some(host.name.as_str())
}
