//! `flavors`: the configured flavors, which name sets of devices, in Nova's format.

use std::sync::Arc;

use axum::Json;
use axum::extract::{OriginalUri, State};
use axum::http::HeaderMap;
use hotslot_service::config::Config;
use hotslot_service::config::Flavor;
use hotslot_service::error::Error;
use hotslot_service::flavor;
use serde::Deserialize;
use serde_json::{Value, json};

use super::body::{Page, Pairs, Path, links};
use super::error::Fault;

fn brief(uri: &OriginalUri, headers: &HeaderMap, flavor: &Flavor) -> Value {
    json!({
        "id": flavor.id(),
        "name": flavor.name,
        "description": null,
        "links": links(headers, uri, "flavors", flavor.id()),
    })
}

/// Returns a flavor with all of Nova's keys. A flavor describes devices only, so its sizes are 0.
fn full(uri: &OriginalUri, headers: &HeaderMap, flavor: &Flavor) -> Value {
    let mut wire = brief(uri, headers, flavor);
    for (key, value) in [
        ("ram", json!(0)),
        ("disk", json!(0)),
        ("vcpus", json!(0)),
        ("swap", json!("")),
        ("rxtx_factor", json!(1.0)),
        ("OS-FLV-EXT-DATA:ephemeral", json!(0)),
        ("OS-FLV-DISABLED:disabled", json!(false)),
        ("os-flavor-access:is_public", json!(true)),
        ("extra_specs", json!(flavor.extra_specs)),
    ] {
        wire[key] = value;
    }
    wire
}

fn listed(
    config: &Config,
    uri: &OriginalUri,
    headers: &HeaderMap,
    pairs: Pairs,
    wire: impl Fn(&OriginalUri, &HeaderMap, &Flavor) -> Value,
) -> Result<Json<Value>, Error> {
    let (page, _) = Page::read(pairs)?;
    let mut flavors: Vec<_> = config.flavor.iter().collect();
    page.skip(&mut flavors, |flavor, marker| flavor.id() == marker)?;
    let (flavors, links) = page.cut(flavors, uri, headers, |flavor| flavor.id().to_owned());
    let flavors: Vec<_> = flavors.into_iter().map(|flavor| wire(uri, headers, flavor)).collect();
    let mut body = json!({ "flavors": flavors });
    if let Some(links) = links {
        body["flavors_links"] = links;
    }
    Ok(Json(body))
}

pub(super) async fn list(
    State(config): State<Arc<Config>>,
    uri: OriginalUri,
    headers: HeaderMap,
    pairs: Pairs,
) -> Result<Json<Value>, Fault> {
    Ok(listed(&config, &uri, &headers, pairs, brief)?)
}

pub(super) async fn detail(
    State(config): State<Arc<Config>>,
    uri: OriginalUri,
    headers: HeaderMap,
    pairs: Pairs,
) -> Result<Json<Value>, Fault> {
    Ok(listed(&config, &uri, &headers, pairs, full)?)
}

#[derive(Deserialize)]
pub(super) struct FlavorPath {
    flavor_id: String,
}

#[derive(Deserialize)]
pub(super) struct ExtraSpecPath {
    flavor_id: String,
    key: String,
}

fn find<'a>(config: &'a Config, id: &str) -> Result<&'a Flavor, Error> {
    flavor::called(&config.flavor, id)
        .ok_or_else(|| Error::NotFound(format!("flavor {}", id.chars().take(255).collect::<String>())))
}

/// Shows the flavor with this id or name.
pub(super) async fn show(
    State(config): State<Arc<Config>>,
    Path(path): Path<FlavorPath>,
    uri: OriginalUri,
    headers: HeaderMap,
) -> Result<Json<Value>, Fault> {
    let flavor = find(&config, &path.flavor_id)?;
    Ok(Json(json!({ "flavor": full(&uri, &headers, flavor) })))
}

pub(super) async fn extra_specs(
    State(config): State<Arc<Config>>,
    Path(path): Path<FlavorPath>,
) -> Result<Json<Value>, Fault> {
    let flavor = find(&config, &path.flavor_id)?;
    Ok(Json(json!({ "extra_specs": flavor.extra_specs })))
}

pub(super) async fn extra_spec(
    State(config): State<Arc<Config>>,
    Path(path): Path<ExtraSpecPath>,
) -> Result<Json<Value>, Fault> {
    let flavor = find(&config, &path.flavor_id)?;
    let value = flavor.extra_specs.get(&path.key);
    let value = value
        .ok_or_else(|| Error::NotFound(format!("extra spec {} of flavor {}", path.key, path.flavor_id)))?;
    Ok(Json(json!({ path.key.clone(): value })))
}
