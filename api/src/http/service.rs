//! `service`: the service itself: its versions, its configuration, and the levels of its log. An extension of hotslot.

use std::sync::Arc;

use axum::Json;
use axum::body::Bytes;
use axum::extract::State;
use axum::extract::rejection::BytesRejection;
use axum::http::{HeaderMap, StatusCode};
use hotslot_service::config::{Config, Levels, Reloaded};
use hotslot_service::error::Error;
use hotslot_service::log;
use hotslot_service::settings::Settings;
use hotslot_store::schema;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::body;
use super::error::Fault;

/// The answer of `GET service`.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct ServiceAnswer {
    /// The service.
    service: About,
}

/// The versions of the service. `GET os-hypervisors/detail` has those of the hosts.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = ServiceVersions)]
struct About {
    /// The version of hotslot.
    version: &'static str,
    /// The version of the database's tables: the number of their last migration.
    schema: i64,
    /// The keys of the configuration file that take effect at the next start, because the file was changed.
    needs_restart: Vec<String>,
}

/// Shows the versions of the service. An extension of hotslot.
#[utoipa::path(get, path = "/service", tag = "Service",
    responses((status = 200, description = "The versions.", body = ServiceAnswer)))]
pub(super) async fn show(State(config): State<Arc<Config>>) -> Json<ServiceAnswer> {
    let needs_restart = config.outdated.clone();
    Json(ServiceAnswer {
        service: About { version: env!("CARGO_PKG_VERSION"), schema: schema(), needs_restart },
    })
}

/// The answer of `POST service/reload`.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct ReloadAnswer {
    /// What has changed. It names keys, never values.
    #[schema(value_type = Described)]
    reload: Reloaded,
}

/// The changes that were found when the configuration was read again. The texts name keys, never values.
#[derive(ToSchema)]
#[schema(as = Reloaded)]
#[allow(dead_code, reason = "the description of the API is made from it; the service writes `Reloaded`")]
struct Described {
    /// The keys whose new values are in force, such as `[detach] attempts`.
    changed: Vec<String>,
    /// The keys whose new values take effect at the next start.
    needs_restart: Vec<String>,
}

/// Reads the configuration file, the policy, certificates and tokens again. An extension of hotslot.
#[utoipa::path(post, path = "/service/reload", tag = "Service",
    responses((status = 200, description = "What has changed.", body = ReloadAnswer)))]
pub(super) async fn reload(State(settings): State<Arc<Settings>>) -> Result<Json<ReloadAnswer>, Fault> {
    Ok(Json(ReloadAnswer { reload: settings.reload().await? }))
}

/// The levels of the log, in an answer.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct LogAnswer {
    /// The levels.
    log: LogLevels,
}

/// The levels of the log.
#[derive(Debug, Serialize, ToSchema)]
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

/// Shows the levels of the log. An extension of hotslot.
#[utoipa::path(get, path = "/service/log-level", tag = "Service",
    responses(
        (status = 200, description = "The levels.", body = LogAnswer),
        (status = 409, description = "The log of this program has fixed levels."),
    ))]
pub(super) async fn log_level(State(settings): State<Arc<Settings>>) -> Result<Json<LogAnswer>, Fault> {
    LogLevels::now(&settings)
}

/// The body of `PUT service/log-level`.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = NewLogLevels)]
struct NewLevels {
    /// The levels, such as `info,hotslot_driver=debug`; null for those of the configuration.
    levels: Option<String>,
}

/// Puts other levels of the log in force until the next start. An extension of hotslot.
#[utoipa::path(put, path = "/service/log-level", tag = "Service",
    request_body(content = NewLevels, example = json!({ "levels": "debug" })),
    responses((status = 200, description = "The levels.", body = LogAnswer)))]
pub(super) async fn set_log_level(
    State(settings): State<Arc<Settings>>,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<Json<LogAnswer>, Fault> {
    let example = r#"{"levels": "info,hotslot_driver=debug"}"#;
    let new: NewLevels = body::read(&headers, body, example)?;
    let levels = match new.levels {
        Some(text) => {
            let refuse =
                |reason| Fault::new(StatusCode::BAD_REQUEST, format!("bad levels: {reason}; send {example}"));
            let levels = text.parse::<Levels>().map_err(refuse)?;
            levels.unknown().into_iter().next().map_or(Ok(levels), |reason| Err(refuse(reason)))?
        }
        None => settings.configured_levels(),
    };
    log::set_levels(&levels).map_err(Error::Conflict)?;
    LogLevels::now(&settings)
}
