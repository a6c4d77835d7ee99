//! `healthz`: whether the service runs. `readyz`: whether its database can be written and its hosts are usable.

use std::sync::Arc;

use axum::extract::State;
use axum::http::StatusCode;
use axum::{Extension, Json};
use hotslot_model::identity::Caller;
use hotslot_service::config::Config;
use hotslot_service::hosts::Hosts;
use hotslot_service::identity::Callers;
use hotslot_service::records::Records;
use serde_json::{Value, json};

/// The warning about `[api] insecure_tcp`.
const OPEN: &str = "[api] insecure_tcp: every client that can connect to the TCP port is the administrator; listen on a \
                    unix socket instead";

pub(super) async fn alive() -> Json<Value> {
    Json(json!({ "status": "ok" }))
}

/// Without identity the answer tells only whether the service is ready, and which of its parts are not.
pub(super) async fn ready(
    State(records): State<Arc<Records>>,
    State(hosts): State<Arc<Hosts>>,
    State(callers): State<Arc<Callers>>,
    State(config): State<Arc<Config>>,
    caller: Option<Extension<Caller>>,
) -> (StatusCode, Json<Value>) {
    let word = |outcome: Result<(), String>| outcome.map_or_else(|reason| reason, |()| "ok".to_owned());
    let database = word(records.try_to_write().await.map_err(|error| format!("{error:?}")));
    let mut missing = Vec::new();
    if database != "ok" {
        missing.push("database");
    }
    let mut hypervisors = serde_json::Map::new();
    for host in hosts.iter() {
        let state = word(match host.hypervisor.connection() {
            Ok(()) if !host.is_synced() => Err("its devices are still being read".to_owned()),
            other => other,
        });
        if state != "ok" && !missing.contains(&"hypervisors") {
            missing.push("hypervisors");
        }
        hypervisors.insert(host.name.clone(), state.into());
    }
    let identity = callers.check().await;
    if identity.as_ref().is_some_and(Result::is_err) {
        missing.push("identity");
    }
    let status = if missing.is_empty() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let details = caller.is_some_and(|Extension(caller)| caller.sees_host_details());
    let word = match (missing.is_empty(), details) {
        (true, _) => "ready".to_owned(),
        (false, true) => "not ready".to_owned(),
        (false, false) => format!("not ready: {}", missing.join(", ")),
    };
    let mut answer = json!({ "status": word });
    if let Some(identity) = identity {
        answer["identity"] = match identity {
            Ok(()) => "ok".into(),
            Err((what, reason)) if details => format!("{what}: {reason}").into(),
            Err((what, _)) => format!("{what}; the log of the service has the reason").into(),
        };
    }
    if details {
        answer["database"] = database.into();
        answer["hypervisors"] = hypervisors.into();
        answer["warnings"] = config.is_open().then_some(OPEN).into_iter().collect();
    }
    (status, Json(answer))
}
