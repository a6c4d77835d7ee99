//! `accelerators`: Cyborg's first API, which was specified but never built. `/accelerator` is the same, and both are
//! also served under `/v1`, where the key of the list is `accelerators`.

mod list;
mod wire;

use std::collections::BTreeMap;

use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{OriginalUri, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, put};
use hotslot_driver::binding::HostDriver;
use hotslot_model::accelerator::{AccSpec, MAX_BYTES, Target, View, check_name};
use hotslot_model::assignment::Assignment;
use hotslot_model::id::{AcceleratorId, ServerId};
use hotslot_model::identity::{Caller, Role};
use hotslot_model::json;
use hotslot_service::error::Error;
use hotslot_store::error::not_found;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;
use wire::{Accelerator, is_theirs, one};

use super::attachments::{DetachQuery, described, detach_request};
use super::body::{Pairs, Path, base, id, read};
use super::error::Fault;
use super::schema;
use super::state::{AcceleratorParts, App};

const CREATE: &str = r#"{"name": "IPSec Card"}"#;
const SPEC: &str = r#"{"acc_specs": {"remote": 0, "num": 1, "device_type": "CRYPTO", "acc_capability": {}}}"#;
const ATTACH: &str =
    r#"{"instance_uuid": "<a server's id>"} or {"host": "<a host's name>", "driver": "vfio-pci"}"#;

/// Returns the routes, under `/accelerators`.
pub(super) fn routes() -> OpenApiRouter<App> {
    OpenApiRouter::default()
        .routes(routes!(list::list, create))
        .routes(routes!(show, create_as, update, detach))
        .routes(routes!(put_spec))
}

/// Returns the routes under other names: `/accelerator`, and `acc_spec` for `acc_specs`.
pub(super) fn aliases() -> OpenApiRouter<App> {
    OpenApiRouter::default()
        .route("/accelerator", get(list::list).post(create))
        .route("/accelerator/{accelerator_id}", get(show).post(create_as).put(update).delete(detach))
        .route("/accelerator/{accelerator_id}/acc_specs", put(put_spec))
        .route("/accelerator/{accelerator_id}/acc_spec", put(put_spec))
        .route("/accelerators/{accelerator_id}/acc_spec", put(put_spec))
}

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Path)]
pub(super) struct AcceleratorPath {
    /// The id of the accelerator.
    #[param(value_type = Uuid)]
    accelerator_id: String,
}

impl AcceleratorPath {
    fn id(&self) -> Result<AcceleratorId, Error> {
        let shown = || self.accelerator_id.chars().take(80).collect::<String>();
        id(&self.accelerator_id).ok_or_else(|| not_found(shown()).into())
    }
}

/// Shows an accelerator.
#[utoipa::path(get, path = "/accelerators/{accelerator_id}", tag = "Accelerators", params(AcceleratorPath),
    responses((status = 200, description = "The accelerator. `ETag` has the generation of its spec.", body = Accelerator)))]
async fn show(
    State(parts): State<AcceleratorParts>,
    identity: Caller,
    Path(path): Path<AcceleratorPath>,
    uri: OriginalUri,
    headers: HeaderMap,
) -> Result<Response, Fault> {
    let view = parts.accelerators.accelerator(path.id()?).await?;
    if !identity.sees(view.row.project.as_deref()) {
        return Err(not_found(view.row.id).into());
    }
    Ok(one(&parts, &identity, view, &uri, &headers, None).await)
}

/// A new accelerator.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = NewAccelerator)]
struct CreateBody {
    /// The name.
    #[schema(value_type = schema::AcceleratorName)]
    name: String,
    /// The id; that of a device makes an accelerator that stands for this device, which only administrators may do.
    #[schema(value_type = Uuid, required = false)]
    uuid: Option<String>,
}

/// Parses the members of a body. A null member is refused, because serde would treat it as missing.
fn members<T: DeserializeOwned>(body: Map<String, Value>, example: &str) -> Result<T, Error> {
    if let Some((key, _)) = body.iter().find(|(_, value)| value.is_null()) {
        return Err(bad(format!("`{key}` is null; omit it or give it a value"), example));
    }
    json::read(Value::Object(body)).map_err(|reason| bad(reason, example))
}

fn bad(reason: impl std::fmt::Display, example: &str) -> Error {
    Error::Invalid(format!("bad body: {reason}; send {example}"))
}

/// Parses a UUID of a body, or of the path of an accelerator that is to be created.
fn uuid(text: &str, example: &str) -> Result<AcceleratorId, Error> {
    let shown: String = text.chars().take(80).collect();
    text.parse().map_err(|_| bad(format!("`{shown}` is not a UUID"), example))
}

/// Returns the id of a path's accelerator, after checking that the caller may change it.
async fn changed(
    parts: &AcceleratorParts,
    identity: &Caller,
    path: &AcceleratorPath,
) -> Result<AcceleratorId, Fault> {
    let id = path.id()?;
    if identity.is_admin() || identity.sees(parts.accelerators.accelerator(id).await?.row.project.as_deref())
    {
        return Ok(id);
    }
    Err(not_found(id).into())
}

async fn make(
    parts: &AcceleratorParts,
    identity: &Caller,
    path: Option<&AcceleratorPath>,
    uri: &OriginalUri,
    headers: &HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, Fault> {
    let path = path.map(|path| uuid(&path.accelerator_id, CREATE)).transpose()?;
    let body: CreateBody = members(read(headers, body, CREATE)?, CREATE)?;
    check_name(&body.name).map_err(|reason| bad(reason, CREATE))?;
    let named = body.uuid.as_deref().map(|text| uuid(text, CREATE)).transpose()?;
    if let (Some(path), Some(named)) = (path, named)
        && path != named
    {
        return Err(bad(format!("the path names {path}, and the body names {named}"), CREATE).into());
    }
    let id = named.or(path);
    if let Some(id) = id
        && parts.records.is_device(id.0).await?
    {
        // An accelerator that stands for one device belongs to no project.
        identity.needs(Role::Admin)?;
    }
    let made = parts.accelerators.create_accelerator(&body.name, id, identity.project.as_deref()).await;
    let own = identity.project.as_deref().unwrap_or_default();
    if let Err(Error::AlreadyExists(_)) = made
        && !identity.is_admin()
        && !parts.accelerators.accelerators_of(own).await?.iter().any(|view| view.row.name == body.name)
    {
        // The caller may not know which accelerator has the name.
        let uuid = if id.is_some() { " or the uuid" } else { "" };
        return Err(
            Error::AlreadyExists(format!("the name `{}`{uuid} is taken; take another", body.name)).into()
        );
    }
    let view = made?;
    let prefix = if uri.path().starts_with("/v1") { "/v1" } else { "" };
    let place = format!("{}{prefix}/accelerators/{}", base(headers), view.row.id);
    Ok((StatusCode::CREATED, [(header::LOCATION, place)]).into_response())
}

/// Creates an accelerator. `Location` of the answer has its URL.
#[utoipa::path(post, path = "/accelerators", tag = "Accelerators",
    request_body(content = CreateBody, example = json!({
        "name": "first-accelerators", "uuid": "00000000-0000-4000-8000-000000000001"
    })),
    responses((status = 201, description = "The accelerator is created. The answer has no body.")))]
async fn create(
    State(parts): State<AcceleratorParts>,
    identity: Caller,
    uri: OriginalUri,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, Fault> {
    make(&parts, &identity, None, &uri, &headers, body).await
}

/// Creates an accelerator with the id of the path. `Location` of the answer has its URL.
#[utoipa::path(post, path = "/accelerators/{accelerator_id}", tag = "Accelerators", params(AcceleratorPath),
    request_body(content = CreateBody, example = json!({ "name": "again" })),
    responses((status = 201, description = "The accelerator is created. The answer has no body.")))]
async fn create_as(
    State(parts): State<AcceleratorParts>,
    identity: Caller,
    Path(path): Path<AcceleratorPath>,
    uri: OriginalUri,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, Fault> {
    make(&parts, &identity, Some(&path), &uri, &headers, body).await
}

/// Returns the generations of the spec that `If-Match` names; `None` when any generation matches. Tags that hotslot did
/// not issue match no generation.
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
    parts: &AcceleratorParts,
    identity: &Caller,
    id: AcceleratorId,
    spec: &Value,
    uri: &OriginalUri,
    headers: &HeaderMap,
) -> Result<Response, Fault> {
    let spec = AccSpec::read(spec).map_err(|reason| bad(reason, SPEC))?;
    let bytes = spec.stored().to_string().len();
    if bytes > MAX_BYTES {
        let message = format!("the spec has {bytes} bytes; send at most {MAX_BYTES}");
        return Err(Fault::new(StatusCode::PAYLOAD_TOO_LARGE, message));
    }
    let view = parts.accelerators.put_acc_spec(id, &spec, expected(headers).as_deref()).await?;
    Ok(one(parts, identity, view, uri, headers, None).await)
}

/// A new spec.
#[derive(ToSchema)]
#[schema(as = AcceleratorSpecChange)]
#[serde(deny_unknown_fields)]
#[allow(dead_code, reason = "the description of the API is made from it; `AccSpec::read` reads the spec")]
struct SpecBody {
    /// The spec.
    acc_specs: NewSpec,
}

/// A spec: which devices an accelerator takes. Keys that are not described are kept, and have no effect, as
/// `ignored_keys` of the accelerator says; one that is nearly the name of a described key is refused.
#[derive(ToSchema)]
#[schema(as = NewAcceleratorSpec)]
#[allow(dead_code, reason = "as `SpecBody`")]
struct NewSpec {
    /// Whether it may be used over a network: 0 or 1. The service only shows it, and accepts other integers.
    #[schema(required = false)]
    remote: i64,
    /// How many devices.
    #[schema(required = false, maximum = 256)]
    num: u64,
    /// The type of the devices.
    #[schema(value_type = schema::AcceleratorType, required = false)]
    device_type: String,
    /// The intended use, such as `Crypto`.
    #[schema(value_type = schema::VisibleText, required = false)]
    acc_type: String,
    /// The required capabilities.
    #[schema(required = false)]
    acc_capability: BTreeMap<String, Value>,
    /// The vendor id of the devices.
    #[schema(value_type = schema::PciIdText, required = false)]
    vendor_id: String,
    /// The product id of the devices.
    #[schema(value_type = schema::PciIdText, required = false)]
    product_id: String,
    /// The NUMA node of the host.
    #[schema(value_type = schema::NumaNode, required = false)]
    numa_node: u32,
    /// How strictly `numa_node` is meant.
    #[schema(value_type = schema::NumaPolicyName, required = false)]
    numa_policy: String,
    /// A type of mediated devices, which are then taken instead of whole devices, or of virtual GPUs, which VFs then are: its
    /// id, its name (which may also have spaces) or the vendor's number. `vgpu_type` is the same key.
    #[schema(required = false, min_length = 1, max_length = 255, pattern = "^[!-.0-~]+$")]
    mdev_type: String,
}

/// Replaces the spec of an accelerator. `If-Match` may have the `ETag` of the spec that is to be replaced.
#[utoipa::path(put, path = "/accelerators/{accelerator_id}/acc_specs", tag = "Accelerators",
    params(AcceleratorPath),
    request_body(content = SpecBody, example = json!({
        "acc_specs": { "remote": 0, "num": 1, "device_type": "NIC" }
    })),
    responses((status = 200, description = "The accelerator.", body = Accelerator)))]
async fn put_spec(
    State(parts): State<AcceleratorParts>,
    identity: Caller,
    Path(path): Path<AcceleratorPath>,
    uri: OriginalUri,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, Fault> {
    let id = changed(&parts, &identity, &path).await?;
    let body: Map<String, Value> = read(&headers, body, SPEC)?;
    match (body.get("acc_specs"), body.keys().find(|key| *key != "acc_specs")) {
        (Some(spec), None) => replace(&parts, &identity, id, spec, &uri, &headers).await,
        (_, Some(key)) => Err(bad(format!("unknown key `{key}`; known: acc_specs"), SPEC).into()),
        (None, None) => Err(bad("the key `acc_specs` is missing", SPEC).into()),
    }
}

/// To what an accelerator is to be attached: a server, or a host, which uses the devices itself. One of `instance_uuid`,
/// `server_id`, `host`, `hostname` and `driver` is required.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = AcceleratorAttach)]
struct AttachBody {
    /// The name of the accelerator, which it must have.
    #[schema(value_type = schema::AcceleratorName, required = false)]
    name: Option<String>,
    /// The id of the accelerator, which it must have.
    #[schema(value_type = Uuid, required = false)]
    uuid: Option<String>,
    /// The server.
    #[schema(value_type = Uuid, required = false)]
    instance_uuid: Option<String>,
    /// The same as `instance_uuid`.
    #[schema(value_type = Uuid, required = false)]
    server_id: Option<String>,
    /// The name of the host. With `driver` alone, the host that has the device is meant, and of several the one with the
    /// most free devices.
    #[schema(value_type = String, required = false)]
    host: Option<String>,
    /// The same as `host`.
    #[schema(value_type = String, required = false)]
    hostname: Option<String>,
    /// The driver to which the host binds the devices; by default the one that it has for them.
    #[schema(value_type = String, required = false)]
    driver: Option<String>,
    /// Whether an accelerator whose spec does not say which devices it takes may be given any device, not only an FPGA,
    /// QAT, CRYPTO or AICHIP device.
    #[serde(default)]
    #[schema(required = false)]
    any_device: bool,
    /// Whether to report only what an attach to a server would do: in the key `dry_run` of the accelerator, which stays as it
    /// is. What an attach of mediated devices would do is not known before.
    #[serde(default)]
    #[schema(required = false)]
    dry_run: bool,
}

/// A change of an accelerator: a new spec, or an attach.
#[derive(ToSchema)]
#[schema(as = AcceleratorChange)]
#[serde(untagged)]
#[allow(dead_code, reason = "the description of the API is made from it; `update` reads the body")]
enum UpdateBody {
    /// A new spec.
    Spec(SpecBody),
    /// An attach.
    Attach(AttachBody),
}

impl AttachBody {
    fn target(&self, view: &View) -> Result<Target, Error> {
        let other = |key: &str, has: &str| {
            bad(format!("{key} differs from the accelerator's, which is `{has}`"), ATTACH)
        };
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
            (Some(_), Some(_)) => Err(bad("both a server and a host are named; name one of them", ATTACH)),
            (Some(_), None) if self.driver.is_some() => {
                Err(bad("driver applies to a host only; omit it for a server", ATTACH))
            }
            (Some(server), None) => {
                let id: Result<ServerId, _> = server.parse();
                let shown: String = server.chars().take(80).collect();
                id.map(Target::Server)
                    .map_err(|_| bad(format!("`{shown}` is not a server id; expected a UUID"), ATTACH))
            }
            (None, None) if self.driver.is_none() && self.name.is_none() && self.uuid.is_none() => {
                // An attach to a host takes a device from the host's own work, so it must be asked for. The specification
                // of Cyborg's first API does so by the name and the UUID of the accelerator.
                let reason = "it names neither a server nor a host nor the driver that a host is to use";
                Err(bad(reason, ATTACH))
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
            Err(bad(format!("{key} and {alias} are synonyms but have different values"), ATTACH))
        }
        (one, other) => Ok(one.as_deref().or(other.as_deref())),
    }
}

/// Replaces the spec when the body has `acc_specs`; otherwise attaches the accelerator, or reports what an attach would do.
#[utoipa::path(put, path = "/accelerators/{accelerator_id}", tag = "Accelerators", params(AcceleratorPath),
    request_body(content = UpdateBody),
    responses(
        (status = 200, description = "The accelerator.", body = Accelerator),
    ))]
async fn update(
    State(parts): State<AcceleratorParts>,
    identity: Caller,
    Path(path): Path<AcceleratorPath>,
    uri: OriginalUri,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, Fault> {
    let id = changed(&parts, &identity, &path).await?;
    let mut body: Map<String, Value> = read(&headers, body, ATTACH)?;
    if let Some(spec) = body.remove("acc_specs") {
        return match body.keys().next() {
            None => replace(&parts, &identity, id, &spec, &uri, &headers).await,
            Some(key) => {
                let reason = format!("`{key}` cannot be combined with acc_specs; send acc_specs alone");
                Err(bad(reason, SPEC).into())
            }
        };
    }
    let body: AttachBody = members(body, ATTACH)?;
    let view = parts.accelerators.accelerator(id).await?;
    let target = body.target(&view)?;
    match target {
        Target::Host { .. } => identity.needs(Role::Admin)?,
        Target::Server(server) if is_theirs(&parts.hosts, &identity, server).await? => {}
        // The caller may not know whether the server exists.
        Target::Server(server) => return Err(Error::NoServer(server).into()),
    }
    let (generations, any_device) = (expected(&headers), body.any_device);
    if body.dry_run {
        let Target::Server(server) = target else {
            return Err(bad("dry_run applies to a server only; omit it for a host", ATTACH).into());
        };
        let run = parts.accelerators.dry_run(id, server, generations.as_deref(), any_device).await?;
        let run = described(&run, identity.sees_host_details());
        return Ok(one(&parts, &identity, view, &uri, &headers, Some(run)).await);
    }
    let view = parts.accelerators.attach_accelerator(id, target, generations.as_deref(), any_device).await?;
    Ok(one(&parts, &identity, view, &uri, &headers, None).await)
}

/// The query of a detach.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[allow(dead_code, reason = "the description of the API is made from it; `detach` reads the key")]
struct PurgeQuery {
    /// Whether to remove the accelerator after the detach, which only administrators may do. Only `true` is allowed.
    #[param(value_type = Option<schema::OnlyTrue>, inline)]
    purge: Option<bool>,
}

/// Detaches an accelerator from its server or host.
#[utoipa::path(delete, path = "/accelerators/{accelerator_id}", tag = "Accelerators",
    params(AcceleratorPath, DetachQuery, PurgeQuery),
    responses((status = 204, description = "The accelerator holds no device.")))]
async fn detach(
    State(parts): State<AcceleratorParts>,
    identity: Caller,
    Path(path): Path<AcceleratorPath>,
    headers: HeaderMap,
    Pairs(mut pairs): Pairs,
) -> Result<StatusCode, Fault> {
    let id = changed(&parts, &identity, &path).await?;
    let purge = pairs.iter().position(|(key, _)| key == "purge").map(|at| pairs.remove(at).1);
    match purge.as_deref() {
        None => {}
        Some("true") => identity.needs(Role::Admin)?,
        Some(other) => {
            return Err(Error::Invalid(format!("invalid purge {other}: write purge=true or omit it")).into());
        }
    }
    let request = detach_request(Pairs(pairs))?;
    // A caller who may not attach the accelerator to a host or server may not detach it from there either.
    let admin = identity.is_admin();
    let theirs = match parts.accelerators.accelerator(id).await?.server() {
        Some(server) if !admin && is_theirs(&parts.hosts, &identity, server).await? => Some(server),
        Some(_) | None => None,
    };
    let may = |view: &View| {
        if admin {
            return Ok(());
        }
        if view.held.iter().any(|held| matches!(held.by, Assignment::Binding(_))) {
            return Err(Error::NeedsAdmin);
        }
        // The accelerator may have moved to another server in the meantime.
        if view.server().is_some_and(|server| Some(server) != theirs) {
            Err(Error::NotTheirs)
        } else {
            Ok(())
        }
    };
    parts.accelerators.detach_accelerator(id, request, expected(&headers).as_deref(), may).await?;
    if purge.is_some() {
        parts.accelerators.purge_accelerator(id).await?;
    }
    Ok(StatusCode::NO_CONTENT)
}
