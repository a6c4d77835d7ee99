//! `healthz`: whether the service runs. `readyz`: whether its database can be written and its hosts are usable.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::extract::State;
use axum::http::StatusCode;
use axum::{Extension, Json};
use hotslot_model::identity::Caller;
use hotslot_service::config::Config;
use hotslot_service::hosts::Hosts;
use hotslot_service::identity::Callers;
use hotslot_service::records::Records;
use serde::Serialize;
use utoipa::ToSchema;

/// The warning about `[api] insecure_tcp`.
const OPEN: &str = "[api] insecure_tcp: every client that can connect to the TCP port is the administrator; listen on a \
                    unix socket instead";

/// That the service runs.
#[derive(Serialize, ToSchema)]
pub(super) struct Alive {
    /// Always `ok`.
    status: &'static str,
}

/// Whether the service is ready.
#[derive(Serialize, ToSchema)]
pub(super) struct Readiness {
    /// `ready`, `not ready`, or, for callers who may not see details, `not ready` with the names of the parts that are not.
    status: String,
    /// `ok`, or why tokens cannot be validated. Missing when neither `[identity] tokens` nor `[identity.keystone]` is
    /// configured.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = String)]
    identity: Option<String>,
    /// `ok`, or why the database cannot be written. Only callers who may see hosts get this key.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = String)]
    database: Option<String>,
    /// `ok` for each host, or why it is not usable. Only callers who may see hosts get this key.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = BTreeMap<String, String>)]
    hypervisors: Option<BTreeMap<String, String>>,
    /// What is dangerous about the configuration, and why a changed file of tokens is not used. Only callers who may see
    /// hosts get this key.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Vec<String>)]
    warnings: Option<Vec<String>>,
}

/// Says that the service runs.
#[utoipa::path(get, path = "/healthz", tag = "Health",
    responses((status = 200, description = "The service runs.", body = Alive)))]
pub(super) async fn alive() -> Json<Alive> {
    Json(Alive { status: "ok" })
}

/// Says whether the database can be written and the hosts are usable.
///
/// Without identity the answer tells only whether the service is ready, and which of its parts are not.
#[utoipa::path(get, path = "/readyz", tag = "Health",
    responses(
        (status = 200, description = "The service is ready.", body = Readiness),
        (status = 503, description = "The service is not ready.", body = Readiness),
    ))]
pub(super) async fn ready(
    State(records): State<Arc<Records>>,
    State(hosts): State<Arc<Hosts>>,
    State(callers): State<Arc<Callers>>,
    State(config): State<Arc<Config>>,
    caller: Option<Extension<Caller>>,
) -> (StatusCode, Json<Readiness>) {
    let word = |outcome: Result<(), String>| outcome.map_or_else(|reason| reason, |()| "ok".to_owned());
    let database = word(records.try_to_write().await.map_err(|error| format!("{error:?}")));
    let mut missing = Vec::new();
    if database != "ok" {
        missing.push("database");
    }
    let mut hypervisors = BTreeMap::new();
    for host in hosts.iter() {
        let state = word(match host.hypervisor.connection() {
            Ok(()) if !host.is_synced() => Err("its devices are still being read".to_owned()),
            other => other,
        });
        if state != "ok" && !missing.contains(&"hypervisors") {
            missing.push("hypervisors");
        }
        hypervisors.insert(host.name.clone(), state);
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
    let identity = identity.map(|identity| match identity {
        Ok(()) => "ok".to_owned(),
        Err((what, reason)) if details => format!("{what}: {reason}"),
        Err((what, _)) => format!("{what}; the log of the service has the reason"),
    });
    let open = config.is_open().then(|| OPEN.to_owned());
    let outdated = callers.outdated_tokens();
    let outdated = outdated.map(|reason| format!("the tokens that were read before stay valid: {reason}"));
    let answer = Readiness {
        status: word,
        identity,
        database: details.then_some(database),
        hypervisors: details.then_some(hypervisors),
        warnings: details.then(|| open.into_iter().chain(outdated).collect()),
    };
    (status, Json(answer))
}
