//! Cyborg's v2 API, under `/accelerator/v2`, and under `/accelerator` where the path does not belong to `accelerators`.
//! This file has the microversions, the version documents and Cyborg's form of errors.

mod arqs;
mod attributes;
mod deployables;
mod device_profiles;
mod devices;

use axum::Json;
use axum::extract::Request;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use axum::routing::{get, patch};
use hotslot_model::time::Millis;
use hotslot_service::error::Error;
use serde::Serialize;
use serde_json::{Value, json};
use std::fmt;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::body::{Link, Pairs, base};
use super::error::{self, Fault};
use super::state::App;

/// A microversion, as its minor number: `Microversion(3)` is 2.3.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Microversion(u8);

impl Microversion {
    const MIN: Self = Self(0);
    /// From this version on, a bind may set the project of the request.
    const PROJECT_ID: Self = Self(1);
    /// From this version on, a device profile can be read by its name.
    const PROFILE_BY_NAME: Self = Self(2);
    /// From this version on, a device shows its status.
    const DEVICE_STATUS: Self = Self(3);
    const MAX: Self = Self::DEVICE_STATUS;

    /// Returns the microversion that a request asks for; the lowest one by default.
    ///
    /// # Errors
    /// 406 when the version is not supported.
    fn requested(headers: &HeaderMap) -> Result<Self, Fault> {
        let lines = headers.get_all("openstack-api-version").iter();
        let lines = lines.map(|line| line.to_str().unwrap_or("?"));
        for part in lines.flat_map(|line| line.split(',').map(str::trim)) {
            // The header may also name microversions of other services. Without a service name it is Cyborg's.
            let version = match part.split_once(' ') {
                Some(("accelerator", version)) => version.trim(),
                Some(_) => continue,
                None => part,
            };
            if version == "latest" {
                return Ok(Self::MAX);
            }
            let mut all = (Self::MIN.0..=Self::MAX.0).map(Self);
            return all.find(|one| one.to_string() == version).ok_or_else(|| {
                let shown: String = part.chars().take(80).collect();
                let message = format!("unknown version `{shown}`; supported: {} to {}", Self::MIN, Self::MAX);
                Fault::new(StatusCode::NOT_ACCEPTABLE, message)
            });
        }
        Ok(Self::MIN)
    }

    /// Requires a microversion for `what`.
    ///
    /// # Errors
    /// 406 when the request uses a lower version.
    fn needs(self, least: Self, what: &str) -> Result<(), Fault> {
        if self >= least {
            return Ok(());
        }
        let message =
            format!("{what} needs OpenStack-API-Version: accelerator {least}, and the request uses {self}");
        Err(Fault::new(StatusCode::NOT_ACCEPTABLE, message))
    }
}

impl fmt::Display for Microversion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "2.{}", self.0)
    }
}

/// Returns the routes of Cyborg's API, under `/accelerator/v2`.
pub(super) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::default()
        .routes(routes!(versions))
        .routes(routes!(version))
        .nest("/accelerator/v2", resources().fallback(error::not_found))
}

/// Returns the routes of Cyborg's API under other names: without its version, and collections that end with a slash.
pub(super) fn aliases() -> OpenApiRouter<App> {
    // A nested route `/` would also match `/accelerator`, which belongs to `accelerators`.
    OpenApiRouter::default()
        .route("/accelerator/v2", get(version))
        .nest("/accelerator", resources().merge(collections()))
        .nest("/accelerator/v2", collections())
}

/// Returns the collections whose paths end with a slash.
fn collections() -> OpenApiRouter<App> {
    let profiles = get(device_profiles::list).post(device_profiles::create).delete(device_profiles::delete);
    let arqs = get(arqs::list).post(arqs::create).patch(arqs::update).delete(arqs::delete);
    OpenApiRouter::default()
        .route("/device_profiles/", profiles)
        .route("/accelerator_requests/", arqs)
        // The OpenStack SDK sends the id twice.
        .route("/deployables/{id}/program/{same}", patch(deployables::program))
}

/// Whether a path belongs to Cyborg's API and not to `accelerators`.
fn is_ours(path: &str) -> bool {
    let Some(below) = path.strip_prefix("/accelerator/") else { return false };
    let first = below.split('/').next().unwrap_or_default();
    matches!(
        first,
        "" | "v2" | "device_profiles" | "accelerator_requests" | "devices" | "deployables" | "attributes"
    )
}

fn resources() -> OpenApiRouter<App> {
    let routes = OpenApiRouter::default()
        .routes(routes!(device_profiles::list, device_profiles::create, device_profiles::delete))
        .routes(routes!(device_profiles::show, device_profiles::delete_one))
        .routes(routes!(arqs::list, arqs::create, arqs::update, arqs::delete))
        .routes(routes!(arqs::show, arqs::update_one, arqs::delete_one))
        .routes(routes!(devices::list))
        .routes(routes!(devices::show))
        .routes(routes!(devices::disable))
        .routes(routes!(devices::enable))
        .routes(routes!(deployables::list))
        .routes(routes!(deployables::show))
        .routes(routes!(deployables::program))
        .routes(routes!(attributes::list, attributes::create))
        .routes(routes!(attributes::show, attributes::delete));
    super::with_no_method(routes)
}

/// Reads the microversion of a request to Cyborg's API, writes errors in Cyborg's form, and sets the version headers.
pub(super) async fn microversion(mut request: Request, next: Next) -> Response {
    if !is_ours(request.uri().path()) {
        return next.run(request).await;
    }
    let requested = Microversion::requested(request.headers());
    let version = *requested.as_ref().unwrap_or(&Microversion::MIN);
    let mut response = match requested {
        Ok(version) => {
            request.extensions_mut().insert(version);
            next.run(request).await
        }
        Err(fault) => fault.into_response(),
    };
    if let Some(fault) = response.extensions_mut().remove::<Fault>() {
        let extensions = std::mem::take(response.extensions_mut());
        let kept = [header::RETRY_AFTER, header::WWW_AUTHENTICATE];
        let kept = kept.map(|name| response.headers_mut().remove(&name).map(|value| (name, value)));
        response = (fault.status, Json(error_message(&fault))).into_response();
        response.headers_mut().extend(kept.into_iter().flatten());
        *response.extensions_mut() = extensions;
        response.extensions_mut().insert(fault);
    }
    // Like Cyborg, name the service in the current and the maximum version, but not in the minimum version.
    for (name, version) in [
        ("openstack-api-version", format!("accelerator {version}")),
        ("openstack-api-minimum-version", Microversion::MIN.to_string()),
        ("openstack-api-maximum-version", format!("accelerator {}", Microversion::MAX)),
    ] {
        if let Ok(value) = HeaderValue::from_str(&version) {
            response.headers_mut().insert(HeaderName::from_static(name), value);
        }
    }
    response.headers_mut().insert(header::VARY, HeaderValue::from_static("OpenStack-API-Version"));
    response
}

/// Returns a fault in Cyborg's form: a JSON document inside a string.
fn error_message(fault: &Fault) -> Value {
    let code = if fault.status.is_server_error() { "Server" } else { "Client" };
    let inner = json!({ "faultcode": code, "faultstring": fault.message, "debuginfo": null });
    json!({ "error_message": inner.to_string() })
}

/// A version of Cyborg's API.
#[derive(Clone, Serialize, ToSchema)]
#[schema(as = CyborgVersion)]
struct Document {
    /// The name of the version: `v2.0`, or `v2` in the list.
    id: &'static str,
    /// Always `CURRENT`.
    status: &'static str,
    /// The lowest microversion.
    min_version: String,
    /// The highest microversion.
    max_version: String,
    /// The link to the version.
    links: [Link; 1],
}

/// Cyborg's API and its versions.
#[derive(Serialize, ToSchema)]
#[schema(as = CyborgVersions)]
struct Documents {
    /// The name of the API.
    name: &'static str,
    /// What the service is.
    description: &'static str,
    /// The versions.
    versions: [Document; 1],
    /// The version that clients should use.
    default_version: Document,
}

fn document(headers: &HeaderMap, id: &'static str) -> Document {
    Document {
        id,
        status: "CURRENT",
        min_version: Microversion::MIN.to_string(),
        max_version: Microversion::MAX.to_string(),
        links: [Link { rel: "self", href: format!("{}/accelerator/v2", base(headers)) }],
    }
}

/// Shows version 2 of Cyborg's API.
#[utoipa::path(get, path = "/accelerator/v2/", tag = "Versions", operation_id = "cyborg_v2",
    responses((status = 200, description = "The version.", body = Document)))]
async fn version(headers: HeaderMap) -> Json<Document> {
    Json(document(&headers, "v2.0"))
}

/// Lists the versions of Cyborg's API.
#[utoipa::path(get, path = "/accelerator/", tag = "Versions", operation_id = "cyborg_all",
    responses((status = 200, description = "The versions.", body = Documents)))]
async fn versions(headers: HeaderMap) -> Json<Documents> {
    let v2 = document(&headers, "v2");
    Json(Documents {
        name: "OpenStack Cyborg API",
        description: "hotslot: Cyborg's API over libvirt; a request that is bound to a running server is hot-plugged",
        versions: [v2.clone()],
        default_version: v2,
    })
}

/// Returns Cyborg's link to an item.
fn links(headers: &HeaderMap, collection: &str, id: impl fmt::Display) -> [Link; 1] {
    [Link { rel: "self", href: format!("{}/accelerator/v2/{collection}/{id}", base(headers)) }]
}

/// Formats a time as Cyborg does: ISO 8601 with microseconds and an offset.
fn time(millis: Millis) -> String {
    jiff::Timestamp::from_millisecond(millis)
        .map_or_else(|_| millis.to_string(), |time| time.strftime("%Y-%m-%dT%H:%M:%S%.6f+00:00").to_string())
}

fn bad(reason: impl fmt::Display, example: &str) -> Error {
    Error::Invalid(format!("bad body: {reason}; send {example}"))
}

/// Cyborg's way to filter a list by one more field.
#[derive(utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[allow(dead_code, reason = "the description of the API is made from it; `filters` reads the keys")]
struct FilterQuery {
    /// The name of a field. `filters.value` must be given too.
    #[param(rename = "filters.field")]
    field: Option<String>,
    /// The value that the field must have.
    #[param(rename = "filters.value")]
    value: Option<String>,
}

/// Returns the filters of a query. `known` lists the keys that a query may use directly. Those and `only_as_filter` can
/// also be given as Cyborg's `filters.field` and `filters.value`.
fn filters(
    Pairs(pairs): Pairs,
    known: &[&str],
    only_as_filter: &[&str],
) -> Result<Vec<(String, String)>, Error> {
    let (mut field, mut value, mut found) = (None, None, Vec::new());
    let unknown = |key: &str| {
        let all: Vec<_> = known.iter().chain(only_as_filter).copied().collect();
        let plain = if known.is_empty() { String::new() } else { format!("known: {}; ", known.join(", ")) };
        let all = all.join(", ");
        Err(Error::Invalid(format!(
            "unknown query key {key}; {plain}as filters.field with filters.value: {all}"
        )))
    };
    for (key, text) in pairs {
        match key.as_str() {
            "filters.field" => field = Some(text),
            "filters.value" => value = Some(text),
            key if known.contains(&key) => found.push((key.to_owned(), text)),
            key => return unknown(key),
        }
    }
    match (field, value) {
        (Some(field), Some(value)) => {
            if !known.contains(&field.as_str()) && !only_as_filter.contains(&field.as_str()) {
                return unknown(&field);
            }
            found.push((field, value));
        }
        (None, None) => {}
        _ => return Err(Error::Invalid("filters.field and filters.value must be given together".into())),
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn microversions_are_parsed_as_clients_write_them() {
        for (header, version) in [
            ("accelerator 2.1", Some(1)),
            ("accelerator latest", Some(3)),
            ("latest", Some(3)),
            ("2.2", Some(2)),
            ("compute 2.90, accelerator 2.3", Some(3)),
            ("compute 2.90", Some(0)),
            ("accelerator 2.4", None),
            ("accelerator 1.0", None),
            ("accelerator 2", None),
            ("accelerator two", None),
            ("2.-1", None),
            ("2.+1", None),
            ("accelerator 2.03", None),
            ("", None),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert("openstack-api-version", header.parse().unwrap());
            assert_eq!(Microversion::requested(&headers).ok(), version.map(Microversion), "{header}");
        }
        assert_eq!(Microversion::requested(&HeaderMap::new()).unwrap(), Microversion(0));
    }
}
