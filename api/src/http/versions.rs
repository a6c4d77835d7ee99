//! The version documents that Nova's clients read.

use axum::Json;
use axum::http::HeaderMap;
use serde::Serialize;
use utoipa::ToSchema;

use super::body::{Link, base};

/// The only microversion of Nova's API that is supported.
pub(super) const MICROVERSION: &str = "2.1";

/// A version of the API.
#[derive(Serialize, ToSchema)]
pub(super) struct Version {
    /// The name of the version: `v2.0`, `v2.1` or `v3.0`.
    id: &'static str,
    /// `CURRENT` for the version that clients should use; `SUPPORTED` and `EXPERIMENTAL` for the others.
    status: &'static str,
    /// The highest microversion; empty for a version without microversions.
    version: &'static str,
    /// The lowest microversion; empty for a version without microversions.
    min_version: &'static str,
    /// When the version last changed.
    #[schema(value_type = super::schema::Time)]
    updated: &'static str,
    /// The link to this document.
    links: [Link; 1],
    /// The media types of bodies.
    #[serde(rename = "media-types")]
    media_types: [MediaType; 1],
}

/// A media type of bodies.
#[derive(Serialize, ToSchema)]
pub(super) struct MediaType {
    /// The media type.
    base: &'static str,
    /// The same media type: there is no other form of it.
    #[serde(rename = "type")]
    kind: &'static str,
}

/// All versions.
#[derive(Serialize, ToSchema)]
pub(super) struct VersionList {
    /// The versions, the oldest first.
    versions: [Version; 3],
}

/// One version.
#[derive(Serialize, ToSchema)]
pub(super) struct VersionAnswer {
    /// The version.
    version: Version,
}

fn version(headers: &HeaderMap, id: &'static str, status: &'static str, path: &str) -> Version {
    // Only v2.1 has microversions.
    let micro = if id == "v2.1" { MICROVERSION } else { "" };
    Version {
        id,
        status,
        version: micro,
        min_version: micro,
        updated: "2026-11-21T00:00:00Z",
        links: [Link { rel: "self", href: format!("{}/{path}/", base(headers)) }],
        media_types: [MediaType { base: "application/json", kind: "application/json" }],
    }
}

fn of_v2(headers: &HeaderMap) -> Version {
    version(headers, "v2.0", "SUPPORTED", "v2")
}

fn of_v21(headers: &HeaderMap) -> Version {
    version(headers, "v2.1", "CURRENT", "v2.1")
}

fn of_v3(headers: &HeaderMap) -> Version {
    version(headers, "v3.0", "EXPERIMENTAL", "v3")
}

/// Lists the versions of the API.
#[utoipa::path(get, path = "/", tag = "Versions",
    responses((status = 200, description = "The versions.", body = VersionList)))]
pub(super) async fn all(headers: HeaderMap) -> Json<VersionList> {
    Json(VersionList { versions: [of_v2(&headers), of_v21(&headers), of_v3(&headers)] })
}

/// Shows version 2, the first API of the wiki page "Nova/pci hotplug".
#[utoipa::path(get, path = "/v2", tag = "Versions",
    responses((status = 200, description = "The version.", body = VersionAnswer)))]
pub(super) async fn v2(headers: HeaderMap) -> Json<VersionAnswer> {
    Json(VersionAnswer { version: of_v2(&headers) })
}

/// Shows version 2.1, which is Nova's current one.
#[utoipa::path(get, path = "/v2.1", tag = "Versions",
    responses((status = 200, description = "The version.", body = VersionAnswer)))]
pub(super) async fn v21(headers: HeaderMap) -> Json<VersionAnswer> {
    Json(VersionAnswer { version: of_v21(&headers) })
}

/// Shows version 3, the second API of the wiki page "Nova/pci hotplug".
#[utoipa::path(get, path = "/v3", tag = "Versions",
    responses((status = 200, description = "The version.", body = VersionAnswer)))]
pub(super) async fn v3(headers: HeaderMap) -> Json<VersionAnswer> {
    Json(VersionAnswer { version: of_v3(&headers) })
}
