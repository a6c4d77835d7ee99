//! `healthz`: whether the service runs. `readyz`: whether its database and its hosts are usable.

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

/// Without identity the answer tells only whether the service is ready, and whether it can identify callers.
pub(super) async fn ready(
    State(records): State<Arc<Records>>,
    State(hosts): State<Arc<Hosts>>,
    State(callers): State<Arc<Callers>>,
    State(config): State<Arc<Config>>,
    caller: Option<Extension<Caller>>,
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
    let identity = match callers.keystone() {
        Some(keystone) => Some(keystone.check().await),
        None => None,
    };
    ok &= identity.as_ref().is_none_or(Result::is_ok);
    let status = if ok { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let word = if ok { "ready" } else { "not ready" };
    let mut answer = json!({ "status": word });
    let details = caller.is_some_and(|Extension(caller)| caller.sees_host_details());
    if let Some(identity) = identity {
        answer["identity"] = match identity {
            Ok(()) => "ok".into(),
            Err(reason) if details => format!("Keystone cannot be asked about tokens: {reason}").into(),
            Err(_) => "Keystone cannot be asked about tokens; the log of the service has the reason".into(),
        };
    }
    if details {
        answer["database"] = database.into();
        answer["hypervisors"] = hypervisors.into();
        answer["warnings"] = config.is_open().then_some(OPEN).into_iter().collect();
    }
    (status, Json(answer))
}
