//! `servers/{server_id}/pci_owner`: the project that owns a server. An extension of hotslot.

use std::sync::Arc;

use axum::Json;
use axum::body::Bytes;
use axum::extract::State;
use axum::extract::rejection::BytesRejection;
use axum::http::HeaderMap;
use hotslot_driver::ownership::{Claim, Ownership};
use hotslot_model::id::ServerId;
use hotslot_service::assignment::Assignments;
use hotslot_service::hosts::Hosts;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::body::{Path, read};
use super::error::Fault;
use super::permit::Permit;
use super::servers::ServerPath;

const EXAMPLE: &str = r#"{"pci_owner": {"project_id": "<a project's id>"}}, or null for no project"#;

/// A change of a server's owner.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct OwnerChange {
    /// The new owner.
    pci_owner: NewOwner,
}

/// The new owner of a server.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct NewOwner {
    /// The id of the project; null for no project. A body without it is refused, so that no owner is removed by mistake.
    #[serde(deserialize_with = "Option::deserialize")]
    #[schema(required = true, min_length = 1, max_length = 255, pattern = "^[!-~]+$")]
    project_id: Option<String>,
}

/// The owner of a server.
#[derive(Serialize, ToSchema)]
pub(super) struct OwnerAnswer {
    /// The owner.
    pci_owner: Owner,
}

/// Which project owns a server, by the metadata of its domain.
#[derive(Serialize, ToSchema)]
#[schema(as = ServerOwner)]
pub(super) struct Owner {
    /// The server.
    #[schema(value_type = Uuid)]
    server_id: ServerId,
    /// The id of the project; null when none owns the server.
    project_id: Option<String>,
    /// Whose metadata names the project: `nova`, `hotslot` or `nova and hotslot`; null when neither does.
    source: Option<&'static str>,
    /// Why the metadata cannot be used, so that no project owns the server; null when it can.
    problem: Option<String>,
}

fn shown(server: ServerId, ownership: &Ownership) -> Json<OwnerAnswer> {
    let source = match (&ownership.nova, &ownership.hotslot) {
        (Claim::Absent, Claim::Absent) => None,
        (Claim::Absent, _) => Some("hotslot"),
        (_, Claim::Absent) => Some("nova"),
        (_, _) => Some("nova and hotslot"),
    };
    Json(OwnerAnswer {
        pci_owner: Owner {
            server_id: server,
            project_id: ownership.project().map(Into::into),
            source,
            problem: ownership.problem(),
        },
    })
}

/// Shows which project owns a server. An extension of hotslot.
#[utoipa::path(get, path = "/servers/{server_id}/pci_owner", tag = "Servers", params(ServerPath),
    operation_id = "show_owner",
    responses((status = 200, description = "The owner.", body = OwnerAnswer)))]
pub(super) async fn show(
    State(hosts): State<Arc<Hosts>>,
    permit: Permit,
    Path(path): Path<ServerPath>,
) -> Result<Json<OwnerAnswer>, Fault> {
    let server = path.id()?;
    let (_, view) = permit.server(&hosts, server).await?;
    Ok(shown(server, &view.ownership()))
}

/// Changes which project owns a server, in the metadata of its domain. An extension of hotslot.
#[utoipa::path(put, path = "/servers/{server_id}/pci_owner", tag = "Servers", params(ServerPath),
    operation_id = "update_owner",
    request_body(content = OwnerChange, example = json!({ "pci_owner": { "project_id": "p" } })),
    responses((status = 200, description = "The owner.", body = OwnerAnswer)))]
pub(super) async fn update(
    State(assignments): State<Arc<Assignments>>,
    State(hosts): State<Arc<Hosts>>,
    permit: Permit,
    Path(path): Path<ServerPath>,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<Json<OwnerAnswer>, Fault> {
    let server = path.id()?;
    let body: OwnerChange = read(&headers, body, EXAMPLE)?;
    permit.server(&hosts, server).await?;
    let ownership = assignments.set_owner(server, body.pci_owner.project_id.as_deref()).await?;
    Ok(shown(server, &ownership))
}
