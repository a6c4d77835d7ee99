//! The version documents that Nova's clients read.

use axum::Json;
use axum::http::HeaderMap;
use serde_json::{Value, json};

use super::body::base;

fn version(headers: &HeaderMap, id: &str, status: &str, path: &str) -> Value {
    // Only v2.1 has microversions, and 2.1 is the only one that is supported.
    let micro = if id == "v2.1" { "2.1" } else { "" };
    json!({
        "id": id,
        "status": status,
        "version": micro,
        "min_version": micro,
        "updated": "2026-11-21T00:00:00Z",
        "links": [{ "rel": "self", "href": format!("{}/{path}/", base(headers)) }],
        "media-types": [{ "base": "application/json", "type": "application/json" }],
    })
}

fn every(headers: &HeaderMap) -> [Value; 3] {
    [
        version(headers, "v2.0", "SUPPORTED", "v2"),
        version(headers, "v2.1", "CURRENT", "v2.1"),
        version(headers, "v3.0", "EXPERIMENTAL", "v3"),
    ]
}

pub(super) async fn all(headers: HeaderMap) -> Json<Value> {
    Json(json!({ "versions": every(&headers) }))
}

fn one(headers: &HeaderMap, index: usize) -> Json<Value> {
    Json(json!({ "version": every(headers)[index] }))
}

pub(super) async fn v2(headers: HeaderMap) -> Json<Value> {
    one(&headers, 0)
}

pub(super) async fn v21(headers: HeaderMap) -> Json<Value> {
    one(&headers, 1)
}

pub(super) async fn v3(headers: HeaderMap) -> Json<Value> {
    one(&headers, 2)
}
