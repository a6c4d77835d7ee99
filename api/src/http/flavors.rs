//! `flavors`: the configured flavors, which name sets of devices, in Nova's format.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Json;
use axum::extract::{OriginalUri, State};
use axum::http::HeaderMap;
use hotslot_service::config::Config;
use hotslot_service::config::Flavor;
use hotslot_service::error::Error;
use hotslot_service::flavor;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::body::{Link, Page, PageParams, Pairs, Path, links, not_listed};
use super::error::Fault;

/// A flavor in the brief list.
#[derive(Serialize, ToSchema)]
pub(super) struct FlavorBrief {
    /// The id.
    id: String,
    /// The name.
    name: String,
    /// Always null.
    description: Option<String>,
    /// The links to the flavor.
    links: Vec<Link>,
}

/// A flavor with all of Nova's keys. A flavor of hotslot describes devices only, so its sizes are 0.
#[derive(Serialize, ToSchema)]
#[schema(as = Flavor)]
pub(super) struct FlavorDetail {
    /// The id.
    id: String,
    /// The name.
    name: String,
    /// Always null.
    description: Option<String>,
    /// The links to the flavor.
    links: Vec<Link>,
    /// Always 0.
    ram: u64,
    /// Always 0.
    disk: u64,
    /// Always 0.
    vcpus: u64,
    /// Always empty.
    swap: &'static str,
    /// Always 1.
    rxtx_factor: f64,
    /// Always 0.
    #[serde(rename = "OS-FLV-EXT-DATA:ephemeral")]
    ephemeral: u64,
    /// Always false.
    #[serde(rename = "OS-FLV-DISABLED:disabled")]
    disabled: bool,
    /// Always true.
    #[serde(rename = "os-flavor-access:is_public")]
    is_public: bool,
    /// The extra specs, such as `pci_passthrough:alias`.
    extra_specs: BTreeMap<String, String>,
}

/// A page of the brief list.
#[derive(Serialize, ToSchema)]
pub(super) struct FlavorList {
    /// The flavors, in the order of the configuration.
    flavors: Vec<FlavorBrief>,
    /// The link to the next page; missing on the last page.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Vec<Link>)]
    flavors_links: Option<Vec<Link>>,
}

/// A page of the detailed list.
#[derive(Serialize, ToSchema)]
pub(super) struct FlavorDetailList {
    /// The flavors, in the order of the configuration.
    flavors: Vec<FlavorDetail>,
    /// The link to the next page; missing on the last page.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Vec<Link>)]
    flavors_links: Option<Vec<Link>>,
}

/// One flavor.
#[derive(Serialize, ToSchema)]
pub(super) struct FlavorAnswer {
    /// The flavor.
    flavor: FlavorDetail,
}

/// The extra specs of a flavor.
#[derive(Serialize, ToSchema)]
pub(super) struct ExtraSpecs {
    /// The extra specs.
    extra_specs: BTreeMap<String, String>,
}

fn brief(uri: &OriginalUri, headers: &HeaderMap, flavor: &Flavor) -> FlavorBrief {
    FlavorBrief {
        id: flavor.id().to_owned(),
        name: flavor.name.clone(),
        description: None,
        links: links(headers, uri, "flavors", flavor.id()),
    }
}

fn full(uri: &OriginalUri, headers: &HeaderMap, flavor: &Flavor) -> FlavorDetail {
    let FlavorBrief { id, name, description, links } = brief(uri, headers, flavor);
    FlavorDetail {
        id,
        name,
        description,
        links,
        ram: 0,
        disk: 0,
        vcpus: 0,
        swap: "",
        rxtx_factor: 1.0,
        ephemeral: 0,
        disabled: false,
        is_public: true,
        extra_specs: flavor.extra_specs.clone(),
    }
}

/// Returns the flavors of a page, and the link to the next page.
fn listed<T>(
    config: &Config,
    uri: &OriginalUri,
    headers: &HeaderMap,
    pairs: Pairs,
    shown: impl Fn(&OriginalUri, &HeaderMap, &Flavor) -> T,
) -> Result<(Vec<T>, Option<Vec<Link>>), Error> {
    let (page, _) = Page::read(pairs)?;
    let mut flavors: Vec<_> = config.flavor.iter().collect();
    page.skip(&mut flavors, |flavor, marker| flavor.id() == marker)?;
    let (flavors, links) = page.cut(flavors, uri, headers, |flavor| flavor.id().to_owned());
    Ok((flavors.into_iter().map(|flavor| shown(uri, headers, flavor)).collect(), links))
}

/// Lists the configured flavors.
#[utoipa::path(get, path = "/flavors", tag = "Flavors", params(PageParams),
    responses((status = 200, description = "A page of the list.", body = FlavorList)))]
pub(super) async fn list(
    State(config): State<Arc<Config>>,
    uri: OriginalUri,
    headers: HeaderMap,
    pairs: Pairs,
) -> Result<Json<FlavorList>, Fault> {
    let (flavors, flavors_links) = listed(&config, &uri, &headers, pairs, brief)?;
    Ok(Json(FlavorList { flavors, flavors_links }))
}

/// Lists the configured flavors with all of Nova's keys.
#[utoipa::path(get, path = "/flavors/detail", tag = "Flavors", params(PageParams),
    responses((status = 200, description = "A page of the list.", body = FlavorDetailList)))]
pub(super) async fn detail(
    State(config): State<Arc<Config>>,
    uri: OriginalUri,
    headers: HeaderMap,
    pairs: Pairs,
) -> Result<Json<FlavorDetailList>, Fault> {
    let (flavors, flavors_links) = listed(&config, &uri, &headers, pairs, full)?;
    Ok(Json(FlavorDetailList { flavors, flavors_links }))
}

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Path)]
pub(super) struct FlavorPath {
    /// The id or name of the flavor.
    flavor_id: String,
}

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Path)]
pub(super) struct ExtraSpecPath {
    /// The id or name of the flavor.
    flavor_id: String,
    /// The key of the extra spec.
    key: String,
}

fn find<'a>(config: &'a Config, id: &str) -> Result<&'a Flavor, Error> {
    flavor::called(&config.flavor, id).ok_or_else(|| not_listed("flavor", id, "flavors"))
}

/// Shows the flavor with this id or name.
#[utoipa::path(get, path = "/flavors/{flavor_id}", tag = "Flavors", params(FlavorPath),
    responses((status = 200, description = "The flavor.", body = FlavorAnswer)))]
pub(super) async fn show(
    State(config): State<Arc<Config>>,
    Path(path): Path<FlavorPath>,
    uri: OriginalUri,
    headers: HeaderMap,
) -> Result<Json<FlavorAnswer>, Fault> {
    let flavor = find(&config, &path.flavor_id)?;
    Ok(Json(FlavorAnswer { flavor: full(&uri, &headers, flavor) }))
}

/// Shows the extra specs of a flavor.
#[utoipa::path(get, path = "/flavors/{flavor_id}/os-extra_specs", tag = "Flavors", params(FlavorPath),
    responses((status = 200, description = "The extra specs.", body = ExtraSpecs)))]
pub(super) async fn extra_specs(
    State(config): State<Arc<Config>>,
    Path(path): Path<FlavorPath>,
) -> Result<Json<ExtraSpecs>, Fault> {
    let flavor = find(&config, &path.flavor_id)?;
    Ok(Json(ExtraSpecs { extra_specs: flavor.extra_specs.clone() }))
}

/// Shows one extra spec of a flavor.
#[utoipa::path(get, path = "/flavors/{flavor_id}/os-extra_specs/{key}", tag = "Flavors", params(ExtraSpecPath),
    responses((status = 200, description = "The value, by its key.", body = BTreeMap<String, String>)))]
pub(super) async fn extra_spec(
    State(config): State<Arc<Config>>,
    Path(path): Path<ExtraSpecPath>,
) -> Result<Json<BTreeMap<String, String>>, Fault> {
    let flavor = find(&config, &path.flavor_id)?;
    let value = flavor.extra_specs.get(&path.key);
    let value = value
        .ok_or_else(|| Error::NotFound(format!("extra spec {} of flavor {}", path.key, path.flavor_id)))?;
    Ok(Json(BTreeMap::from([(path.key, value.clone())])))
}
