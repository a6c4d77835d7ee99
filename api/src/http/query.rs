//! Refuses query keys that a route does not have, for all routes in one place.
//!
//! Which keys a route has is what the description of the API says. A misspelt filter would otherwise be ignored, and
//! the caller would take the whole list for what was asked for.

use std::collections::HashMap;
use std::sync::LazyLock;

use axum::extract::{MatchedPath, Query, Request};
use axum::http::StatusCode;
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};

use super::description::{document, operations};
use super::error::Fault;
use super::policy::named;

/// The query keys of each route, which is named as `METHOD PATH` without the prefix of a version.
static KNOWN: LazyLock<HashMap<String, Vec<String>>> = LazyLock::new(|| {
    let document = document();
    let keys = operations(&document).filter_map(|(method, path, operation)| {
        let parameters = operation["parameters"].as_array().into_iter().flatten();
        let of_query = parameters.filter(|parameter| parameter["in"] == "query");
        let keys = of_query.filter_map(|parameter| parameter["name"].as_str().map(str::to_owned));
        Some((named(method, path)?, keys.collect()))
    });
    keys.collect()
});

/// Routes that check their keys themselves, because they also have keys that the description cannot list.
const CHECKED_THERE: [&str; 2] = ["GET /os-pci", "GET /os-pci/detail"];

/// Keys of Nova 2.1 that have no meaning here. Nova's clients send them, so they are ignored.
const OF_NOVA: [(&str, &[&str]); 3] = [
    ("GET /servers", SERVER_KEYS),
    ("GET /servers/detail", SERVER_KEYS),
    ("GET /flavors/detail", &["is_public", "minRam", "minDisk", "sort_key", "sort_dir"]),
];

/// The query keys of `GET /servers` in `nova/api/openstack/compute/schemas/servers.py` that select nothing else from guests
/// that exist: which projects, from when on, and in which order. A filter by what libvirt does not know, such as an image,
/// is refused: without it the answer would have all servers.
const SERVER_KEYS: &[&str] =
    &["all_tenants", "changes-before", "changes-since", "deleted", "soft_deleted", "sort_dir", "sort_key"];

/// Refuses a request with a query key that its route does not have.
pub(super) async fn refuse_unknown(request: Request, next: Next) -> Response {
    match unknown(&request) {
        Some(message) => Fault::new(StatusCode::BAD_REQUEST, message).into_response(),
        None => next.run(request).await,
    }
}

/// Returns what is wrong with the keys of a query.
fn unknown(request: &Request) -> Option<String> {
    request.uri().query()?;
    let route = named(request.method().as_str(), request.extensions().get::<MatchedPath>()?.as_str())?;
    if CHECKED_THERE.contains(&route.as_str()) {
        return None;
    }
    let known = KNOWN.get(&route)?;
    let ignored = OF_NOVA.iter().find(|(of, _)| *of == route).map_or(&[][..], |(_, keys)| *keys);
    let Query(pairs) = Query::<Vec<(String, String)>>::try_from_uri(request.uri()).ok()?;
    let (key, _) =
        pairs.into_iter().find(|(key, _)| !known.contains(key) && !ignored.contains(&key.as_str()))?;
    let shown: String = key.chars().take(80).collect();
    Some(if known.is_empty() {
        format!("unknown query key {shown}; this request has none")
    } else {
        format!("unknown query key {shown}; known: {}", known.join(", "))
    })
}
