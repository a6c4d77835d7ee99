//! `servers/{server_id}/pci_ports`: root ports that a server gets with its next start. An extension of hotslot.

use std::sync::Arc;

use axum::Json;
use axum::body::Bytes;
use axum::extract::State;
use axum::extract::rejection::BytesRejection;
use axum::http::HeaderMap;
use hotslot_model::id::ServerId;
use hotslot_service::assignment::Assignments;
use hotslot_service::hosts::Hosts;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::body::{Path, read};
use super::error::Fault;
use super::permit::Permit;
use super::servers::ServerPath;

const EXAMPLE: &str = r#"{"pci_ports": {"count": 4}}, and "dry_run": true to see what would be added"#;

/// A request for root ports.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct PortsRequest {
    /// The ports.
    pci_ports: NewPorts,
}

/// The ports that a server is to get with its next start.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = NewPciPorts)]
struct NewPorts {
    /// The number of ports to add.
    #[schema(minimum = 1, maximum = 30)]
    count: u8,
    /// Whether to show only what would be added.
    #[serde(default)]
    dry_run: bool,
}

/// What was added, or would be.
#[derive(Serialize, ToSchema)]
pub(super) struct PortsAnswer {
    /// The ports.
    pci_ports: PortsView,
}

/// The root ports that were added to the definition of a server, or would be.
#[derive(Serialize, ToSchema)]
#[schema(as = PciPorts)]
struct PortsView {
    /// The server.
    #[schema(value_type = Uuid)]
    server_id: ServerId,
    /// Whether nothing was changed, because the request was a dry run.
    dry_run: bool,
    /// The lines that are added to `<devices>` of the domain's definition. libvirt adds an index and an address to each.
    diff: Vec<String>,
    /// The number of free hot-plug ports in the definition before the request.
    free_before: usize,
    /// The number of free hot-plug ports in the definition after the request.
    free: usize,
    /// Whether the server has to be shut off and started before it has the ports.
    needs_restart: bool,
    /// Why the same request without `dry_run` is refused now: the host is frozen or read-only. Null when it is not.
    refused: Option<String>,
}

/// Adds root ports to the definition of a server, which it has from its next start on. An extension of hotslot.
#[utoipa::path(post, path = "/servers/{server_id}/pci_ports", tag = "Servers", params(ServerPath),
    operation_id = "add_ports",
    request_body(content = PortsRequest, example = json!({ "pci_ports": { "count": 4, "dry_run": true } })),
    responses(
        (status = 200, description = "What was added, or would be.", body = PortsAnswer),
        (status = 409, description = "The server has no definition, or no PCI Express root bus, or its host is frozen or read-only."),
    ))]
pub(super) async fn add(
    State(assignments): State<Arc<Assignments>>,
    State(hosts): State<Arc<Hosts>>,
    permit: Permit,
    Path(path): Path<ServerPath>,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<Json<PortsAnswer>, Fault> {
    let server = path.id()?;
    let PortsRequest { pci_ports: NewPorts { count, dry_run } } = read(&headers, body, EXAMPLE)?;
    permit.server(&hosts, server).await?;
    let prepared = assignments.add_ports(server, count, dry_run).await?;
    let refused = prepared.refused.map(Fault::from).map(|fault| match permit.sees_hosts() {
        true => fault.message,
        false => fault.without_hosts().unwrap_or(fault).message,
    });
    Ok(Json(PortsAnswer {
        pci_ports: PortsView {
            server_id: server,
            dry_run,
            diff: prepared.lines.iter().map(|line| format!("+    {line}")).collect(),
            free_before: prepared.free_before,
            free: prepared.free,
            needs_restart: prepared.is_running,
            refused,
        },
    }))
}
