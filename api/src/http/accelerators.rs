//! `accelerators`: seed 002's API, as `../accelerator` understands it. `/accelerator` is the same, and both are under
//! `/v1` too, where the list has its old key.

use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{OriginalUri, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, put};
use axum::{Json, Router};
use hotslot_driver::binding::HostDriver;
use hotslot_driver::device::HostDevice;
use hotslot_driver::device_type::device_type;
use hotslot_driver::text;
use hotslot_model::accelerator::{AccSpec, Held, Target, View};
use hotslot_model::assignment::Assignment;
use hotslot_model::device::Device;
use hotslot_model::id::{AcceleratorId, ServerId};
use hotslot_service::config::ChangedBy;
use hotslot_service::error::Error;
use hotslot_service::service::Service;
use hotslot_store::error::not_found;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};

use super::attachments::detach_request;
use super::body::{Page, Pairs, Path, base, id, links, read, time};
use super::error::Fault;
use super::identity::{Identity, Role};

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
        let shown = || self.accelerator_id.chars().take(80).collect::<String>();
        id(&self.accelerator_id, "accelerator").map_err(|_| not_found(shown()).into())
    }
}

/// An accelerator on the wire: the seed's two keys, and more.
fn wire(service: &Service, view: &View, uri: &OriginalUri, headers: &HeaderMap) -> Value {
    let (row, spec) = (&view.row, view.spec());
    let (status, reason) = view.status();
    let first = view.held.first();
    let device = first.map(|held| &held.device).or(view.pinned.as_ref());
    let host = device.and_then(|device| service.host(device.hypervisor));
    let function = first
        .and_then(|held| held.found.clone())
        .or_else(|| device.and_then(|device| known_function(service, device)));
    // Of one that is held, what was not heard from its host now is not said.
    let driver = match first {
        Some(held) => held.found.as_ref(),
        None => function.as_ref(),
    };
    let driver = driver.and_then(|function| function.driver.clone());
    // Without a spec it is what its device is.
    let of_device = function.as_ref().filter(|_| row.spec.is_none());
    let kind = of_device.map_or_else(|| spec.device_type.clone(), |device| device_type(device).to_string());
    let mut acc_specs = spec.shown();
    acc_specs["device_type"] = json!(kind);
    let devices: Vec<_> = view.held.iter().map(|held| described(service, held)).collect();
    let (vendor_id, product_id) = match device {
        Some(device) => (Some(device.facts.vendor_id), Some(device.facts.product_id)),
        None => (spec.vendor_id, spec.product_id),
    };
    let mut shown = json!({
        "uuid": row.id,
        "acc_specs": acc_specs,
        "name": row.name,
        "status": status,
        "status_reason": reason,
        "instance_uuid": view.server(),
        "host": host.map(|host| &host.name),
        "address": device.map(|device| device.facts.address),
        "inner_address": devices.first().map(|device| &device["inner_address"]),
        "driver": driver,
        "devices": devices,
        "device_type": kind,
        "acc_type": spec.acc_type,
        "acc_capability": Value::Object(spec.capability.clone()).to_string(),
        "vendor_id": vendor_id.map(|id| id.to_string()),
        "product_id": product_id.map(|id| id.to_string()),
        "remotable": spec.remotable,
        "pinned": row.pinned.is_some(),
        "project_id": row.project,
        "links": links(headers, uri, "accelerators", &row.id.to_string()),
        "created_at": (row.created_at != 0).then(|| time(row.created_at)),
        "updated_at": row.updated_at.map(time),
    });
    if is_v1(uri) {
        for key in ["description", "user_id"] {
            shown[key] = Value::Null;
        }
    }
    shown
}

/// Whether a client speaks to Cyborg's first version.
fn is_v1(uri: &OriginalUri) -> bool {
    uri.path().starts_with("/v1")
}

/// A device as its host had it when it was last read.
fn known_function(service: &Service, device: &Device) -> Option<HostDevice> {
    service.host(device.hypervisor)?.functions().get(&device.facts.address).cloned()
}

fn described(service: &Service, held: &Held) -> Value {
    let device = &held.device;
    let host = service.host(device.hypervisor);
    let function = held.found.clone().or_else(|| known_function(service, device));
    let mut shown = json!({
        "address": device.facts.address,
        "device_type": function.as_ref().map(|function| device_type(function).to_string()),
        "vendor_id": device.facts.vendor_id.to_string(),
        "product_id": device.facts.product_id.to_string(),
        "host": host.map(|host| &host.name),
        "driver": held.found.as_ref().and_then(|found| found.driver.as_ref()),
        "inner_address": null,
    });
    match &held.by {
        Assignment::Attachment(row) => {
            shown["attachment_id"] = json!(row.id);
            shown["status"] = json!(row.state);
            shown["instance_uuid"] = json!(row.server);
            shown["inner_address"] = json!(row.inner.map(|inner| inner.address));
            shown["inner_address_source"] = json!(row.inner.map(|inner| inner.source));
        }
        Assignment::Mdev(row) => {
            shown["mdev_uuid"] = json!(row.id);
            shown["mdev_type"] = json!(row.mdev_type);
            shown["status"] = json!(row.state);
            shown["instance_uuid"] = json!(row.server);
            shown["inner_address"] = json!(row.inner.map(|inner| inner.address));
            shown["inner_address_source"] = json!(row.inner.map(|inner| inner.source));
        }
        Assignment::Binding(row) => {
            shown["status"] = json!(row.state);
            shown["previous_driver"] = json!(row.previous);
        }
    }
    shown
}

/// One accelerator, with the tag of its spec.
async fn one(
    service: &Service,
    identity: &Identity,
    mut view: View,
    uri: &OriginalUri,
    headers: &HeaderMap,
) -> Response {
    service.look_at(std::slice::from_mut(&mut view)).await;
    let tag = format!("\"{}\"", view.row.generation);
    let mut shown = wire(service, &view, uri, headers);
    hide(service, identity, &view, &mut shown).await;
    ([(header::ETAG, tag)], Json(shown)).into_response()
}

/// The members of an accelerator by which Cyborg's clients may have them sorted.
const SORT_KEYS: [&str; 18] = [
    "uuid",
    "name",
    "description",
    "status",
    "status_reason",
    "instance_uuid",
    "host",
    "address",
    "inner_address",
    "driver",
    "device_type",
    "acc_type",
    "acc_capability",
    "vendor_id",
    "product_id",
    "remotable",
    "created_at",
    "updated_at",
];

/// The order that Cyborg's clients ask for; without a key that in which they were made.
#[derive(Default)]
struct Order {
    key: Option<String>,
    descending: bool,
}

impl Order {
    fn read(pairs: Vec<(String, String)>) -> Result<Self, Error> {
        let mut order = Self::default();
        for (key, value) in pairs {
            match (key.as_str(), value.as_str()) {
                ("sort_key", name) if SORT_KEYS.contains(&name) => order.key = Some(value),
                ("sort_key", _) => {
                    let known = SORT_KEYS.join(", ");
                    return Err(Error::Invalid(format!("sort_key {value}: name one of {known}")));
                }
                ("sort_dir", "asc") => order.descending = false,
                ("sort_dir", "desc") => order.descending = true,
                ("sort_dir", _) => {
                    return Err(Error::Invalid(format!("sort_dir {value}: write asc or desc")));
                }
                // The administrator is shown those of all projects in any case, and nobody else is.
                ("all_tenants", "true" | "false" | "True" | "False") => {}
                ("all_tenants", _) => {
                    return Err(Error::Invalid(format!("all_tenants {value}: write true or false")));
                }
                _ => {
                    return Err(Error::Invalid(format!(
                        "unknown query key {key}; known: limit, marker, sort_key, sort_dir, all_tenants"
                    )));
                }
            }
        }
        Ok(order)
    }

    fn sort(&self, items: &mut [Value]) {
        if let Some(key) = &self.key {
            items.sort_by(|a, b| match (&a[key], &b[key]) {
                (Value::String(a), Value::String(b)) => a.cmp(b),
                (Value::Number(a), Value::Number(b)) => a.as_i64().cmp(&b.as_i64()),
                (a, b) => a.is_null().cmp(&b.is_null()),
            });
        }
        if self.descending {
            items.reverse();
        }
    }
}

async fn list(
    State(service): State<Arc<Service>>,
    identity: Identity,
    uri: OriginalUri,
    headers: HeaderMap,
    pairs: Pairs,
) -> Result<Json<Value>, Fault> {
    identity.needs_service_or(Role::Reader)?;
    let (page, order) = if is_v1(&uri) {
        let (page, rest) = Page::read(pairs)?;
        (page, Order::read(rest)?)
    } else {
        (Page::alone(pairs)?, Order::default())
    };
    let mut views = service.accelerators().await?;
    views.retain(|view| identity.sees(view.row.project.as_deref()));
    service.look_at(&mut views).await;
    let mut items = Vec::new();
    for view in &views {
        let mut item = wire(&service, view, &uri, &headers);
        hide(&service, &identity, view, &mut item).await;
        items.push(item);
    }
    order.sort(&mut items);
    let uuid = |item: &Value| item["uuid"].as_str().unwrap_or_default().to_owned();
    page.skip(&mut items, |item, marker| uuid(item).eq_ignore_ascii_case(marker))?;
    let (listed, next) = page.cut(items, &uri, &headers, uuid);
    let key = if is_v1(&uri) { "accelerators" } else { "accelerator" };
    let mut body = json!({ key: listed });
    if let Some(next) = next {
        body[format!("{key}_links")] = next;
    }
    Ok(Json(body))
}

async fn show(
    State(service): State<Arc<Service>>,
    identity: Identity,
    Path(path): Path<AcceleratorPath>,
    uri: OriginalUri,
    headers: HeaderMap,
) -> Result<Response, Fault> {
    identity.needs_service_or(Role::Reader)?;
    let view = service.accelerator(path.id()?).await?;
    if !identity.sees(view.row.project.as_deref()) {
        return Err(not_found(view.row.id).into());
    }
    Ok(one(&service, &identity, view, &uri, &headers).await)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CreateBody {
    name: String,
    uuid: Option<String>,
}

/// The members of a body. One that is there says something: null would be taken for nothing said.
fn members<T: DeserializeOwned>(body: Map<String, Value>, example: &str) -> Result<T, Error> {
    if let Some((key, _)) = body.iter().find(|(_, value)| value.is_null()) {
        return Err(bad(format!("`{key}` is null; leave it out, or say what it is"), example));
    }
    serde_json::from_value(body.into()).map_err(|error| bad(error, example))
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
    Err(not_found(id).into())
}

/// Whether a server is a caller's to change: any is the administrator's, and those that Nova made for a project are its
/// members'.
async fn is_theirs(service: &Service, identity: &Identity, server: ServerId) -> Result<bool, Error> {
    if identity.is_admin() {
        return Ok(true);
    }
    let view = match service.find(server).await {
        Ok((_, view)) => view,
        Err(Error::NoServer(_)) => return Ok(false),
        Err(error) => return Err(error),
    };
    let project = view.persistent.or(view.live).and_then(|document| document.project);
    Ok(project.is_some_and(|project| identity.sees(Some(&project))))
}

/// Leaves out of what is shown where an accelerator is, when that is a server of which the caller is not to know.
async fn hide(service: &Service, identity: &Identity, view: &View, shown: &mut Value) {
    let Some(server) = view.server() else { return };
    // Services may ask for any server.
    if identity.needs_service().is_ok() || is_theirs(service, identity, server).await.unwrap_or(false) {
        return;
    }
    for key in ["instance_uuid", "host", "address", "inner_address", "driver", "status_reason"] {
        shown[key] = Value::Null;
    }
    shown["devices"] = json!([]);
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
    let body: CreateBody = members(read(headers, body, CREATE)?, CREATE)?;
    if body.name.trim().is_empty() || body.name.chars().count() > NAME {
        return Err(bad(format!("a name has 1 to {NAME} characters"), CREATE).into());
    }
    text::visible(&body.name).map_err(|reason| bad(format!("name: {reason}"), CREATE))?;
    let named = body.uuid.as_deref().map(|text| uuid(text, CREATE)).transpose()?;
    if let (Some(path), Some(named)) = (path, named)
        && path != named
    {
        return Err(bad(format!("the path says {path}, and the body {named}"), CREATE).into());
    }
    let id = named.or(path);
    if let Some(id) = id
        && service.store.is_device(id.0).await?
    {
        // The accelerator that a device is is nobody's project's.
        identity.needs(Role::Admin)?;
    }
    let made = service.create_accelerator(&body.name, id, identity.project.as_deref()).await;
    if let Err(Error::Conflict(_)) = made
        && !service
            .accelerators()
            .await?
            .iter()
            .any(|view| view.row.name == body.name && identity.sees(view.row.project.as_deref()))
        && !identity.is_admin()
    {
        // Which one has it is not theirs to know.
        let uuid = if id.is_some() { " or the uuid" } else { "" };
        return Err(Error::Conflict(format!("the name `{}`{uuid} is taken; take another", body.name)).into());
    }
    let view = made?;
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

/// The generations of a spec that `If-Match` names; none for any. A tag that is none of ours names no spec.
fn expected(headers: &HeaderMap) -> Option<Vec<i64>> {
    let mut named = headers.get_all(header::IF_MATCH).iter().peekable();
    named.peek()?;
    let lists: Vec<_> = named.map(|list| list.to_str().unwrap_or_default()).collect();
    let tags = lists.iter().flat_map(|list| list.split(',')).map(str::trim);
    let mut generations = Vec::new();
    for tag in tags {
        let tag = tag.strip_prefix("W/").unwrap_or(tag).trim_matches('"');
        if tag == "*" {
            return None;
        }
        generations.extend(tag.parse::<i64>());
    }
    Some(generations)
}

async fn replace(
    service: &Service,
    identity: &Identity,
    id: AcceleratorId,
    spec: &Value,
    uri: &OriginalUri,
    headers: &HeaderMap,
) -> Result<Response, Fault> {
    let spec = AccSpec::read(spec).map_err(|reason| bad(reason, SPEC))?;
    let view = service.put_acc_spec(id, &spec, expected(headers).as_deref()).await?;
    Ok(one(service, identity, view, uri, headers).await)
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
        (Some(spec), None) => replace(&service, &identity, id, spec, &uri, &headers).await,
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
            None => replace(&service, &identity, id, &spec, &uri, &headers).await,
            Some(key) => {
                Err(bad(format!("`{key}` beside acc_specs: a spec is put, or it is attached"), SPEC).into())
            }
        };
    }
    let body: AttachBody = members(body, ATTACH)?;
    let view = service.accelerator(id).await?;
    let target = body.target(&view)?;
    match target {
        Target::Host { .. } => identity.needs(Role::Admin)?,
        Target::Server(server) if is_theirs(&service, &identity, server).await? => {}
        // They are not told that it exists.
        Target::Server(server) => return Err(Error::NoServer(server).into()),
    }
    let view = service.attach_accelerator(id, target, expected(&headers).as_deref()).await?;
    Ok(one(&service, &identity, view, &uri, &headers).await)
}

async fn detach(
    State(service): State<Arc<Service>>,
    identity: Identity,
    Path(path): Path<AcceleratorPath>,
    headers: HeaderMap,
    Pairs(mut pairs): Pairs,
) -> Result<StatusCode, Fault> {
    let id = changed(&service, &identity, &path).await?;
    let purge = pairs.iter().position(|(key, _)| key == "purge").map(|at| pairs.remove(at).1);
    match purge.as_deref() {
        None => {}
        Some("true") => identity.needs(Role::Admin)?,
        Some(other) => {
            return Err(Error::Invalid(format!("purge {other}: write purge=true, or leave it out")).into());
        }
    }
    let request = detach_request(Pairs(pairs))?;
    // Who may not give it to a host or server may not take it from there.
    let admin = identity.is_admin();
    let theirs = match service.accelerator(id).await?.server() {
        Some(server) if !admin && is_theirs(&service, &identity, server).await? => Some(server),
        Some(_) | None => None,
    };
    let may = |view: &View| {
        if admin {
            return Ok(());
        }
        if view.held.iter().any(|held| matches!(held.by, Assignment::Binding(_))) {
            return Err(Error::NeedsAdmin);
        }
        // By now it may be in another one.
        if view.server().is_some_and(|server| Some(server) != theirs) {
            Err(Error::NotTheirs)
        } else {
            Ok(())
        }
    };
    service.detach_accelerator(id, request, expected(&headers).as_deref(), may).await?;
    if purge.is_some() {
        service.purge_accelerator(id).await?;
    }
    Ok(StatusCode::NO_CONTENT)
}
