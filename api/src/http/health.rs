//! `healthz`: whether the service runs. `readyz`: whether its database and its hosts are usable.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use hotslot_service::hosts::Hosts;
use hotslot_service::records::Records;
use serde_json::{Value, json};

pub(super) async fn alive() -> Json<Value> {
    Json(json!({ "status": "ok" }))
}

pub(super) async fn ready(
    State(records): State<Arc<Records>>,
    State(hosts): State<Arc<Hosts>>,
) -> (StatusCode, Json<Value>) {
    let word = |outcome: Result<(), String>| outcome.map_or_else(|reason| reason, |()| "ok".to_owned());
    let database = word(records.ping().await.map_err(|error| format!("{error:?}")));
    let mut ok = database == "ok";
    let mut hypervisors = serde_json::Map::new();
    for host in hosts.iter() {
        let state = word(match host.hypervisor.connection() {
            Ok(()) if !host.is_synced() => Err("its devices are still being read".to_owned()),
            other => other,
        });
        ok &= state == "ok";
        hypervisors.insert(host.name.clone(), state.into());
    }
    let status = if ok { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let word = if ok { "ready" } else { "not ready" };
    (status, Json(json!({ "status": word, "database": database, "hypervisors": hypervisors })))
}
