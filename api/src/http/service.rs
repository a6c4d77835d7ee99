//! `service`: the service itself: its versions, its configuration, and the levels of its log. An extension of hotslot.

use std::sync::Arc;

use axum::Json;
use axum::body::Bytes;
use axum::extract::State;
use axum::extract::rejection::BytesRejection;
use axum::http::{HeaderMap, StatusCode};
use hotslot_service::config::{Levels, Reloaded};
use hotslot_service::error::Error;
use hotslot_service::hosts::Hosts;
use hotslot_service::log;
use hotslot_service::settings::Settings;
use hotslot_store::schema;
use serde::{Deserialize, Serialize};

use super::body;
use super::error::Fault;

/// The answer of `GET service`.
#[derive(Debug, Serialize)]
pub(super) struct ServiceAnswer {
    service: About,
}

/// The versions of the service and of what it uses.
#[derive(Debug, Serialize)]
struct About {
    /// The version of hotslot.
    version: &'static str,
    /// The version of the database's tables: the number of their last migration.
    schema: i64,
    /// The hosts, in the order of the configuration.
    hosts: Vec<HostVersions>,
}

/// The versions of a host. They are null while the host does not answer.
#[derive(Debug, Serialize)]
struct HostVersions {
    /// The configured name.
    name: String,
    /// The version of libvirt, such as `9.0.0`.
    libvirt: Option<String>,
    /// The name of the hypervisor, such as `QEMU`.
    hypervisor: Option<String>,
    /// The version of the hypervisor, such as `8.2.1`.
    hypervisor_version: Option<String>,
}

/// Answers with the versions.
pub(super) async fn show(State(hosts): State<Arc<Hosts>>) -> Json<ServiceAnswer> {
    let mut versions = Vec::new();
    for host in hosts.iter() {
        let info = match host.hypervisor.connection() {
            Ok(()) => host.soon(host.hypervisor.host()).await.ok(),
            Err(_) => None,
        };
        versions.push(HostVersions {
            name: host.name.clone(),
            libvirt: info.as_ref().map(|info| dotted(info.libvirt_version)),
            hypervisor_version: info.as_ref().map(|info| dotted(info.hypervisor_version)),
            hypervisor: info.map(|info| info.hypervisor_type),
        });
    }
    Json(ServiceAnswer {
        service: About { version: env!("CARGO_PKG_VERSION"), schema: schema(), hosts: versions },
    })
}

/// Returns a version of libvirt's form (major × 1,000,000 + minor × 1,000 + release) with dots.
fn dotted(version: u64) -> String {
    format!("{}.{}.{}", version / 1_000_000, version / 1000 % 1000, version % 1000)
}

/// The answer of `POST service/reload`.
#[derive(Debug, Serialize)]
pub(super) struct ReloadAnswer {
    /// What has changed. It names keys, never values.
    reload: Reloaded,
}

/// Reads the configuration again.
pub(super) async fn reload(State(settings): State<Arc<Settings>>) -> Result<Json<ReloadAnswer>, Fault> {
    Ok(Json(ReloadAnswer { reload: settings.reload().await? }))
}

/// The levels of the log, in an answer.
#[derive(Debug, Serialize)]
pub(super) struct LogAnswer {
    log: LogLevels,
}

/// The levels of the log.
#[derive(Debug, Serialize)]
struct LogLevels {
    /// The levels in force, such as `info,hotslot_driver=debug`.
    levels: String,
    /// The levels of the configuration.
    configured: String,
}

impl LogLevels {
    fn now(settings: &Settings) -> Result<Json<LogAnswer>, Fault> {
        let fixed = || Error::Conflict("the log of this program has fixed levels".into());
        let levels = log::levels().ok_or_else(fixed)?.to_string();
        let configured = settings.configured_levels().to_string();
        Ok(Json(LogAnswer { log: Self { levels, configured } }))
    }
}

/// Answers with the levels of the log.
pub(super) async fn log_level(State(settings): State<Arc<Settings>>) -> Result<Json<LogAnswer>, Fault> {
    LogLevels::now(&settings)
}

/// The body of `PUT service/log-level`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct NewLevels {
    /// The levels, such as `info,hotslot_driver=debug`; null for those of the configuration.
    levels: Option<String>,
}

/// Puts other levels in force until the next start.
pub(super) async fn set_log_level(
    State(settings): State<Arc<Settings>>,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<Json<LogAnswer>, Fault> {
    let example = r#"{"levels": "info,hotslot_driver=debug"}"#;
    let new: NewLevels = body::read(&headers, body, example)?;
    let levels = match new.levels {
        Some(text) => text.parse::<Levels>().map_err(|reason| {
            Fault::new(StatusCode::BAD_REQUEST, format!("bad levels: {reason}; send {example}"))
        })?,
        None => settings.configured_levels(),
    };
    log::set_levels(&levels).map_err(Error::Conflict)?;
    LogLevels::now(&settings)
}
