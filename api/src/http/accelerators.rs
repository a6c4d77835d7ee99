//! `accelerators`: seed 002's API, as `../accelerator` understands it. `/accelerator` is the same, and both are under
//! `/v1` too, where the list has its old key.

use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{OriginalUri, State};
use axum::http::{HeaderMap, HeaderName, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, put};
use axum::{Json, Router};
use hotslot_driver::binding::HostDriver;
use hotslot_driver::device_type::device_type;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::attachments::detach_request;
use super::body::{Page, Pairs, Path, base, id, links, read, time};
use super::error::Fault;
use super::identity::{Identity, Role};
use crate::accelerator::{AccSpec, Held, HeldBy, Target, View};
use crate::config::ChangedBy;
use crate::error::Error;
use crate::id::{AcceleratorId, ServerId};
use crate::service::Service;

const CREATE: &str = r#"{"name": "IPSec Card"}"#;
const SPEC: &str = r#"{"acc_specs": {"remote": 0, "num": 1, "device_type": "CRYPTO", "acc_capability": {}}}"#;
const ATTACH: &str =
    r#"{"instance_uuid": "<a server's id>"} or {"host": "<a host's name>", "driver": "vfio-pci"}"#;

/// The name has at most so many characters, as in Cyborg's table.
const NAME: usize = 255;

/// The routes, under both nouns.
pub(super) fn routes() -> Router<Arc<Service>> {
    let of = |noun: &str| {
        Router::new()
            .route(&format!("/{noun}"), get(list).post(create))
            .route(
                &format!("/{noun}/{{accelerator_id}}"),
                get(show).post(create_as).put(update).delete(detach),
            )
            .route(&format!("/{noun}/{{accelerator_id}}/acc_spec"), put(put_spec))
            .route(&format!("/{noun}/{{accelerator_id}}/acc_specs"), put(put_spec))
    };
    of("accelerators").merge(of("accelerator"))
}

#[derive(Deserialize)]
pub(super) struct AcceleratorPath {
    accelerator_id: String,
}

impl AcceleratorPath {
    fn id(&self) -> Result<AcceleratorId, Error> {
        id(&self.accelerator_id, "accelerator")
    }
}

/// An accelerator on the wire: the seed's two keys, and more.
fn wire(service: &Service, view: &View, uri: &OriginalUri, headers: &HeaderMap) -> Value {
    let (row, spec) = (&view.row, view.spec());
    let (status, reason) = view.status();
    let first = view.held.first();
    let device = first.map(|held| &held.device).or(view.pinned.as_ref());
    let host = device.and_then(|device| service.host(device.hypervisor));
    let known = || host?.functions().get(&device?.facts.address).cloned();
    let function = first.and_then(|held| held.found.clone()).or_else(known);
    // Without a spec it is what its device is.
    let of_device = function.as_ref().filter(|_| row.spec.is_none());
    let kind = of_device.map_or_else(|| spec.device_type.clone(), |device| device_type(device).to_string());
    let mut acc_specs = spec.shown();
    acc_specs["device_type"] = json!(kind);
    let devices: Vec<_> = view.held.iter().map(|held| described(service, held)).collect();
    json!({
        "uuid": row.id,
        "acc_specs": acc_specs,
        "name": row.name,
        "status": status,
        "status_reason": reason,
        "instance_uuid": view.server(),
        "host": host.map(|host| &host.name),
        "address": device.map(|device| device.facts.address),
        "inner_address": devices.first().map(|device| &device["inner_address"]),
        "driver": function.and_then(|function| function.driver),
        "devices": devices,
        "device_type": kind,
        "acc_type": spec.acc_type,
        "acc_capability": Value::Object(spec.capability.clone()).to_string(),
        "vendor_id": spec.vendor_id.or(device.map(|device| device.facts.vendor_id)).map(|id| id.to_string()),
        "product_id": spec.product_id.or(device.map(|device| device.facts.product_id)).map(|id| id.to_string()),
        "remotable": spec.remotable,
        "pinned": row.pinned.is_some(),
        "project_id": row.project,
        "links": links(headers, uri, "accelerators", &row.id.to_string()),
        "created_at": (row.created_at != 0).then(|| time(row.created_at)),
        "updated_at": row.updated_at.map(time),
    })
}

fn described(service: &Service, held: &Held) -> Value {
    let device = &held.device;
    let host = service.host(device.hypervisor);
    let mut shown = json!({
        "address": device.facts.address,
        "vendor_id": device.facts.vendor_id.to_string(),
        "product_id": device.facts.product_id.to_string(),
        "host": host.map(|host| &host.name),
        "driver": held.found.as_ref().and_then(|found| found.driver.as_ref()),
        "inner_address": null,
    });
    match &held.by {
        HeldBy::Attachment(row) => {
            shown["attachment_id"] = json!(row.id);
            shown["status"] = json!(row.state);
            shown["instance_uuid"] = json!(row.server);
            shown["inner_address"] = json!(row.inner.map(|inner| inner.address));
            shown["inner_address_source"] = json!(row.inner.map(|inner| inner.source));
        }
        HeldBy::Mdev(row) => {
            shown["mdev_uuid"] = json!(row.id);
            shown["mdev_type"] = json!(row.mdev_type);
            shown["status"] = json!(row.state);
            shown["instance_uuid"] = json!(row.server);
            shown["inner_address"] = json!(row.inner.map(|inner| inner.address));
            shown["inner_address_source"] = json!(row.inner.map(|inner| inner.source));
        }
        HeldBy::Binding(row) => {
            shown["status"] = json!(row.state);
            shown["previous_driver"] = json!(row.previous);
        }
    }
    shown
}

/// One accelerator, with the tag of its spec.
fn one(service: &Service, view: &View, uri: &OriginalUri, headers: &HeaderMap) -> Response {
    let tag = format!("\"{}\"", view.row.generation);
    ([(header::ETAG, tag)], Json(wire(service, view, uri, headers))).into_response()
}

async fn list(
    State(service): State<Arc<Service>>,
    _: Identity,
    uri: OriginalUri,
    headers: HeaderMap,
    pairs: Pairs,
) -> Result<Json<Value>, Fault> {
    let page = Page::alone(pairs)?;
    let mut views = service.accelerators().await?;
    page.skip(&mut views, |view, marker| view.row.id.to_string().eq_ignore_ascii_case(marker))?;
    let (views, next) = page.cut(views, &uri, &headers, |view| view.row.id.to_string());
    let key = if uri.path().starts_with("/v1") { "accelerators" } else { "accelerator" };
    let listed: Vec<_> = views.iter().map(|view| wire(&service, view, &uri, &headers)).collect();
    let mut body = json!({ key: listed });
    if let Some(next) = next {
        body[format!("{key}_links")] = next;
    }
    Ok(Json(body))
}

async fn show(
    State(service): State<Arc<Service>>,
    _: Identity,
    Path(path): Path<AcceleratorPath>,
    uri: OriginalUri,
    headers: HeaderMap,
) -> Result<Response, Fault> {
    let view = service.accelerator(path.id()?).await?;
    Ok(one(&service, &view, &uri, &headers))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CreateBody {
    name: String,
    uuid: Option<String>,
}

fn bad(reason: impl std::fmt::Display, example: &str) -> Error {
    Error::Invalid(format!("bad body: {reason}; send {example}"))
}

/// A UUID in a body or in the path of what is to be made.
fn uuid(text: &str, example: &str) -> Result<AcceleratorId, Error> {
    let shown: String = text.chars().take(80).collect();
    text.parse().map_err(|_| bad(format!("`{shown}` is no UUID"), example))
}

/// The accelerator of a path, for who may change it.
async fn changed(
    service: &Service,
    identity: &Identity,
    path: &AcceleratorPath,
) -> Result<AcceleratorId, Fault> {
    if service.config.accelerators.change == ChangedBy::Admin {
        identity.needs(Role::Admin)?;
        return Ok(path.id()?);
    }
    identity.needs(Role::Member)?;
    let id = path.id()?;
    if identity.sees(service.accelerator(id).await?.row.project.as_deref()) {
        return Ok(id);
    }
    let message =
        format!("accelerator {id} is not your project's; its members and the administrator change it");
    Err(Fault::new(StatusCode::FORBIDDEN, message))
}

async fn make(
    service: &Service,
    identity: &Identity,
    path: Option<&AcceleratorPath>,
    uri: &OriginalUri,
    headers: &HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, Fault> {
    identity.needs(match service.config.accelerators.change {
        ChangedBy::Admin => Role::Admin,
        ChangedBy::Owner => Role::Member,
    })?;
    let path = path.map(|path| uuid(&path.accelerator_id, CREATE)).transpose()?;
    let body: CreateBody = read(headers, body, CREATE)?;
    if body.name.trim().is_empty() || body.name.chars().count() > NAME {
        return Err(bad(format!("a name has 1 to {NAME} characters"), CREATE).into());
    }
    let named = body.uuid.as_deref().map(|text| uuid(text, CREATE)).transpose()?;
    if let (Some(path), Some(named)) = (path, named)
        && path != named
    {
        return Err(bad(format!("the path says {path}, and the body {named}"), CREATE).into());
    }
    let view = service.create_accelerator(&body.name, named.or(path), identity.project.as_deref()).await?;
    let prefix = if uri.path().starts_with("/v1") { "/v1" } else { "" };
    let place = format!("{}{prefix}/accelerators/{}", base(headers), view.row.id);
    Ok((StatusCode::CREATED, [(header::LOCATION, place)]).into_response())
}

async fn create(
    State(service): State<Arc<Service>>,
    identity: Identity,
    uri: OriginalUri,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, Fault> {
    make(&service, &identity, None, &uri, &headers, body).await
}

async fn create_as(
    State(service): State<Arc<Service>>,
    identity: Identity,
    Path(path): Path<AcceleratorPath>,
    uri: OriginalUri,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, Fault> {
    make(&service, &identity, Some(&path), &uri, &headers, body).await
}

/// The generation that `If-Match` asks for; none for any.
///
/// # Errors
/// [`Error::Conflict`] for a tag that no spec has: it is none of ours.
fn expected(headers: &HeaderMap) -> Result<Option<i64>, Error> {
    let Some(tag) = headers.get(HeaderName::from_static("if-match")) else { return Ok(None) };
    let text = tag.to_str().unwrap_or_default().trim();
    let digits = text.strip_prefix("W/").unwrap_or(text).trim_matches('"');
    if digits == "*" {
        return Ok(None);
    }
    let stale =
        |_| Error::Conflict("If-Match names no spec that there is; GET the accelerator for its ETag".into());
    digits.parse().map(Some).map_err(stale)
}

async fn replace(
    service: &Service,
    id: AcceleratorId,
    spec: &Value,
    uri: &OriginalUri,
    headers: &HeaderMap,
) -> Result<Response, Fault> {
    let spec = AccSpec::read(spec).map_err(|reason| bad(reason, SPEC))?;
    let view = service.put_acc_spec(id, &spec, expected(headers)?).await?;
    Ok(one(service, &view, uri, headers))
}

async fn put_spec(
    State(service): State<Arc<Service>>,
    identity: Identity,
    Path(path): Path<AcceleratorPath>,
    uri: OriginalUri,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, Fault> {
    let id = changed(&service, &identity, &path).await?;
    let body: Map<String, Value> = read(&headers, body, SPEC)?;
    match (body.get("acc_specs"), body.keys().find(|key| *key != "acc_specs")) {
        (Some(spec), None) => replace(&service, id, spec, &uri, &headers).await,
        (_, Some(key)) => Err(bad(format!("unknown field `{key}`"), SPEC).into()),
        (None, None) => Err(bad("missing field `acc_specs`", SPEC).into()),
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct AttachBody {
    name: Option<String>,
    uuid: Option<String>,
    instance_uuid: Option<String>,
    server_id: Option<String>,
    host: Option<String>,
    hostname: Option<String>,
    driver: Option<String>,
}

impl AttachBody {
    fn target(&self, view: &View) -> Result<Target, Error> {
        let other =
            |key: &str, has: &str| bad(format!("{key} is not the accelerator's, which is `{has}`"), ATTACH);
        if self.name.as_ref().is_some_and(|name| *name != view.row.name) {
            return Err(other("name", &view.row.name));
        }
        let named = self.uuid.as_deref().map(|text| uuid(text, ATTACH)).transpose()?;
        if named.is_some_and(|named| named != view.row.id) {
            return Err(other("uuid", &view.row.id.to_string()));
        }
        let server = one_of("instance_uuid", &self.instance_uuid, "server_id", &self.server_id)?;
        let host = one_of("host", &self.host, "hostname", &self.hostname)?;
        match (server, host) {
            (Some(_), Some(_)) => Err(bad("a server and a host are named; name one of them", ATTACH)),
            (Some(_), None) if self.driver.is_some() => Err(bad("driver is for a host", ATTACH)),
            (Some(server), None) => {
                let id: Result<ServerId, _> = server.parse();
                let shown: String = server.chars().take(80).collect();
                id.map(Target::Server)
                    .map_err(|_| bad(format!("`{shown}` is no server's id, a UUID"), ATTACH))
            }
            (None, name) => {
                let driver = self.driver.as_deref().map_or(Ok(HostDriver::Native), str::parse);
                let driver = driver.map_err(|error| bad(error, ATTACH))?;
                Ok(Target::Host { name: name.map(str::to_owned), driver })
            }
        }
    }
}

fn one_of<'a>(
    key: &str,
    value: &'a Option<String>,
    alias: &str,
    other: &'a Option<String>,
) -> Result<Option<&'a str>, Error> {
    match (value, other) {
        (Some(one), Some(other)) if one != other => {
            Err(bad(format!("{key} and {alias} are the same, and say different things"), ATTACH))
        }
        (one, other) => Ok(one.as_deref().or(other.as_deref())),
    }
}

/// A body with `acc_specs` puts a spec, any other attaches.
async fn update(
    State(service): State<Arc<Service>>,
    identity: Identity,
    Path(path): Path<AcceleratorPath>,
    uri: OriginalUri,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, Fault> {
    let id = changed(&service, &identity, &path).await?;
    let mut body: Map<String, Value> = read(&headers, body, ATTACH)?;
    if let Some(spec) = body.remove("acc_specs") {
        return match body.keys().next() {
            None => replace(&service, id, &spec, &uri, &headers).await,
            Some(key) => {
                Err(bad(format!("`{key}` beside acc_specs: a spec is put, or it is attached"), SPEC).into())
            }
        };
    }
    let body: AttachBody = serde_json::from_value(body.into()).map_err(|error| bad(error, ATTACH))?;
    let view = service.accelerator(id).await?;
    let target = body.target(&view)?;
    if let Target::Host { .. } = target {
        identity.needs(Role::Admin)?;
    }
    let view = service.attach_accelerator(id, target).await?;
    Ok(one(&service, &view, &uri, &headers))
}

async fn detach(
    State(service): State<Arc<Service>>,
    identity: Identity,
    Path(path): Path<AcceleratorPath>,
    Pairs(mut pairs): Pairs,
) -> Result<StatusCode, Fault> {
    let id = changed(&service, &identity, &path).await?;
    let asked = pairs.len();
    pairs.retain(|(key, value)| key != "purge" || value != "true");
    let purge = pairs.len() < asked;
    if purge {
        identity.needs(Role::Admin)?;
    }
    service.detach_accelerator(id, detach_request(Pairs(pairs))?).await?;
    if purge {
        service.purge_accelerator(id).await?;
    }
    Ok(StatusCode::NO_CONTENT)
}
