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
use serde::Deserialize;
use serde_json::{Value, json};

use super::body::{Path, read};
use super::error::Fault;
use super::permit::Permit;
use super::servers::ServerPath;

const EXAMPLE: &str = r#"{"pci_owner": {"project_id": "<a project's id>"}}, or null for no project"#;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Body {
    pci_owner: NewOwner,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NewOwner {
    /// The id of the project; null for no project. A body without it is refused, so that no owner is removed by mistake.
    #[serde(deserialize_with = "Option::deserialize")]
    project_id: Option<String>,
}

fn wire(server: ServerId, ownership: &Ownership) -> Json<Value> {
    let source = match (&ownership.nova, &ownership.hotslot) {
        (Claim::Absent, Claim::Absent) => Value::Null,
        (Claim::Absent, _) => json!("hotslot"),
        (_, Claim::Absent) => json!("nova"),
        (_, _) => json!("nova and hotslot"),
    };
    Json(json!({ "pci_owner": {
        "server_id": server,
        "project_id": ownership.project(),
        "source": source,
        "problem": ownership.problem(),
    } }))
}

pub(super) async fn show(
    State(hosts): State<Arc<Hosts>>,
    permit: Permit,
    Path(path): Path<ServerPath>,
) -> Result<Json<Value>, Fault> {
    let server = path.id()?;
    let (_, view) = permit.server(&hosts, server).await?;
    Ok(wire(server, &view.ownership()))
}

pub(super) async fn update(
    State(assignments): State<Arc<Assignments>>,
    State(hosts): State<Arc<Hosts>>,
    permit: Permit,
    Path(path): Path<ServerPath>,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<Json<Value>, Fault> {
    let server = path.id()?;
    let body: Body = read(&headers, body, EXAMPLE)?;
    permit.server(&hosts, server).await?;
    let ownership = assignments.set_owner(server, body.pci_owner.project_id.as_deref()).await?;
    Ok(wire(server, &ownership))
}
