//! `accelerator_requests` (ARQs): each requests one device by a device profile, and can be bound to a server.

use std::collections::BTreeSet;
use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{OriginalUri, State};
use axum::http::{HeaderMap, StatusCode};
use axum::{Extension, Json};
use hotslot_model::assignment::Assignment;
use hotslot_model::cyborg::{ArqState, ArqTarget, ArqView};
use hotslot_model::device::Device;
use hotslot_model::id::{ArqId, AttachmentId, ServerId};
use hotslot_model::identity::Caller;
use hotslot_model::json;
use hotslot_service::cyborg::Cyborg;
use hotslot_service::cyborg::{AccessScope, ArqFilter, Bind};
use hotslot_service::error::Error;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use super::super::body::{Link, Page, PageParams, Pairs, Path, object, read, value};
use super::super::error::Fault;
use super::super::schema;
use super::{Microversion, bad, links, time};

const CREATE: &str = r#"{"device_profile_name": "<a device profile's name>"}"#;
const BIND: &str = r#"{"<request>": [{"op": "add", "path": "/hostname", "value": "<a host's name>"}, {"op": "add", "path": "/device_rp_uuid", "value": "<a deployable's rp_uuid>"}, {"op": "add", "path": "/instance_uuid", "value": "<a server's id>"}]}, or the same paths with "op": "remove""#;

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Path)]
pub(super) struct ArqPath {
    /// The UUID of the accelerator request.
    #[param(value_type = Uuid)]
    id: String,
}

fn id(text: &str) -> Result<ArqId, Error> {
    text.trim().parse().map_err(|_| {
        let shown: String = text.chars().take(80).collect();
        Error::Invalid(format!("`{shown}` is not the UUID of an accelerator request"))
    })
}

/// The address of a device as Nova reads it, and what else Nova needs to attach it. Empty while there is no device, and for
/// callers who may not see hosts.
#[derive(Default, Serialize, ToSchema)]
#[schema(as = AttachHandleInfo)]
struct HandleInfo {
    /// The domain of the address, four hexadecimal digits.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = String)]
    domain: Option<String>,
    /// The bus of the address, two hexadecimal digits.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = String)]
    bus: Option<String>,
    /// The slot of the address, two hexadecimal digits.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = String)]
    device: Option<String>,
    /// The function of the address, one digit.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = String)]
    function: Option<String>,
    /// The id of the type of a mediated device.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = String)]
    asked_type: Option<String>,
    /// The physical network of a NIC.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = String)]
    physical_network: Option<String>,
}

/// An accelerator request.
#[derive(Serialize, ToSchema)]
#[schema(as = AcceleratorRequest)]
pub(super) struct Shown {
    /// The UUID.
    #[schema(value_type = Uuid)]
    uuid: ArqId,
    /// The state.
    #[schema(value_type = schema::AcceleratorRequestState)]
    state: ArqState,
    /// The name of the device profile.
    device_profile_name: String,
    /// The number of the group in the device profile, from 0.
    device_profile_group_id: usize,
    /// The host to which it is bound; null for callers who may not see hosts.
    hostname: Option<String>,
    /// The resource provider to which it is bound; null for callers who may not see hosts.
    device_rp_uuid: Option<Uuid>,
    /// The server to which it is bound.
    #[schema(value_type = Option<Uuid>)]
    instance_uuid: Option<ServerId>,
    /// The project that owns it.
    project_id: Option<String>,
    /// `PCI` for a device, `MDEV` for a mediated device; empty while there is none.
    attach_handle_type: &'static str,
    /// The attachment, or the UUID of the mediated device.
    #[schema(value_type = Option<Uuid>)]
    attach_handle_uuid: Option<AttachmentId>,
    /// The address of the device.
    attach_handle_info: HandleInfo,
    /// When it was created.
    #[schema(value_type = schema::CyborgTime)]
    created_at: String,
    /// When it last changed.
    #[schema(value_type = Option<schema::CyborgTime>)]
    updated_at: Option<String>,
    /// The link to it.
    links: [Link; 1],
    /// Why it could not be bound or unbound. Only services and administrators get this key, which Cyborg does not have.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = String)]
    state_reason: Option<String>,
}

/// A page of a list of accelerator requests.
#[derive(Serialize, ToSchema)]
#[schema(as = AcceleratorRequestList)]
pub(super) struct List {
    /// The accelerator requests.
    arqs: Vec<Shown>,
    /// The link to the next page; missing on the last page.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Vec<Link>)]
    arqs_links: Option<Vec<Link>>,
}

fn handle_info(by: &Assignment, device: &Device) -> HandleInfo {
    let at = device.facts.address;
    let asked_type = match by {
        Assignment::Mdev(row) => Some(row.mdev_type.clone()),
        Assignment::Attachment(_) | Assignment::Binding(_) => None,
    };
    HandleInfo {
        domain: Some(format!("{:04x}", at.domain())),
        bus: Some(format!("{:02x}", at.bus())),
        device: Some(format!("{:02x}", at.slot())),
        function: Some(format!("{:x}", at.function())),
        asked_type,
        physical_network: device.facts.extra_info.get("physical_network").map(str::to_owned),
    }
}

fn shown(view: &ArqView, identity: &Caller, headers: &HeaderMap) -> Shown {
    // Nova, which needs the address, sends a service token.
    let sees_host = identity.sees_host_details();
    let (row, target) = (&view.row, view.row.target.as_ref());
    let handle = view.handle();
    let info = handle.filter(|_| sees_host).map(|(by, device)| handle_info(by, device));
    let (kind, uuid) = match handle.map(|(by, _)| by) {
        Some(Assignment::Attachment(row)) => ("PCI", Some(row.id)),
        Some(Assignment::Mdev(row)) => ("MDEV", Some(row.id)),
        // Requests are bound to servers only, so their handle is never a binding.
        Some(Assignment::Binding(_)) | None => ("", None),
    };
    let state = view.state();
    let failed = matches!(state, ArqState::BindFailed | ArqState::UnbindFailed);
    Shown {
        uuid: row.id,
        state,
        device_profile_name: row.profile.clone(),
        device_profile_group_id: row.group,
        hostname: target.filter(|_| sees_host).map(|target| target.hostname.clone()),
        device_rp_uuid: target.filter(|_| sees_host).map(|target| target.rp),
        instance_uuid: target.map(|target| target.server),
        project_id: row.project.clone(),
        attach_handle_type: kind,
        attach_handle_uuid: uuid,
        attach_handle_info: info.unwrap_or_default(),
        created_at: time(row.created_at),
        updated_at: row.updated_at.map(time),
        links: links(headers, "accelerator_requests", row.id),
        // The reason names devices, so only services and the administrator see it.
        state_reason: row.reason.clone().filter(|_| failed && identity.is_service_or_admin()),
    }
}

fn listed(views: &[ArqView], identity: &Caller, headers: &HeaderMap, next: Option<Vec<Link>>) -> Json<List> {
    let arqs = views.iter().map(|view| shown(view, identity, headers)).collect();
    Json(List { arqs, arqs_links: next })
}

/// Returns an accelerator request; one that the caller may not see is not found.
async fn visible(cyborg: &Cyborg, identity: &Caller, id: ArqId) -> Result<ArqView, Error> {
    let view = cyborg.arq(id).await?;
    AccessScope::of(identity).sees(&view)?;
    Ok(view)
}

/// New accelerator requests.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = NewAcceleratorRequests)]
struct CreateBody {
    /// The name of the device profile. Each device that its groups request gets an accelerator request.
    device_profile_name: String,
    /// It is ignored, as by Cyborg. Cyborg's clients send it.
    #[serde(rename = "device_profile_group_id", default)]
    #[schema(value_type = schema::Ignored)]
    _group: Value,
    /// It is ignored, as by Cyborg. Cyborg's clients send it.
    #[serde(rename = "image_uuid", default)]
    #[schema(value_type = schema::Ignored)]
    _image: Value,
}

/// Creates accelerator requests, one for each device that a device profile requests.
#[utoipa::path(post, path = "/accelerator_requests", tag = "Cyborg accelerator requests",
    request_body(content = CreateBody, example = json!({ "device_profile_name": "p3" })),
    responses(
        (status = 201, description = "The accelerator requests.", body = List),
        (status = 404, description = "There is no such device profile."),
    ))]
pub(super) async fn create(
    State(cyborg): State<Arc<Cyborg>>,
    identity: Caller,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<(StatusCode, Json<List>), Fault> {
    let body: CreateBody = read(&headers, body, CREATE)?;
    let views = cyborg.create_arqs(&body.device_profile_name, identity.project.as_deref()).await?;
    Ok((StatusCode::CREATED, listed(&views, &identity, &headers, None)))
}

fn server(text: &str) -> Result<ServerId, Error> {
    let shown = || text.chars().take(80).collect::<String>();
    text.parse().map_err(|_| Error::Invalid(format!("`{}` is not a server id; expected a UUID", shown())))
}

/// The filter of a list.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[allow(dead_code, reason = "the description of the API is made from it; `list` reads the keys")]
struct Filter {
    /// Only requests that are bound to this server.
    instance: Option<Uuid>,
    /// `resolved` for requests that are not being bound any more. With `instance`, the answer is 423 while one is.
    #[param(value_type = Option<schema::Resolved>, inline)]
    bind_state: Option<String>,
}

/// Lists the accelerator requests that the caller may see.
#[utoipa::path(get, path = "/accelerator_requests", tag = "Cyborg accelerator requests",
    params(PageParams, Filter),
    responses(
        (status = 200, description = "A page of the list.", body = List),
        (status = 423, description = "A request of the server is still being bound."),
    ))]
pub(super) async fn list(
    State(cyborg): State<Arc<Cyborg>>,
    identity: Caller,
    uri: OriginalUri,
    headers: HeaderMap,
    pairs: Pairs,
) -> Result<Json<List>, Fault> {
    let (page, pairs) = Page::read(pairs)?;
    let (mut of, mut resolved) = (None, false);
    for (key, value) in &pairs {
        match (key.as_str(), value.as_str()) {
            ("instance", value) => of = Some(server(value)?),
            ("bind_state", "resolved") => resolved = true,
            ("bind_state", other) => {
                let shown: String = other.chars().take(80).collect();
                return Err(Error::Invalid(format!("invalid bind_state `{shown}`: expected resolved")).into());
            }
            (key, _) => {
                let message = format!("unknown query key {key}; known: instance, bind_state, limit, marker");
                return Err(Error::Invalid(message).into());
            }
        }
    }
    let reach = AccessScope::of(&identity);
    let begun = resolved && of.is_none();
    let filter = ArqFilter { project: reach.project.as_deref(), server: of, begun };
    let settled =
        |view: &ArqView| matches!(view.state(), ArqState::Bound | ArqState::BindFailed | ArqState::Deleting);
    let passes = |view: &ArqView| {
        reach.sees(view).is_ok() && of.is_none_or(|of| view.is_of(of)) && (!begun || settled(view))
    };
    let marker = page.marker.as_deref().map(id).transpose()?;
    let views = cyborg.arqs(filter, marker, page.limit + 1, passes).await?;
    if let Some(view) = views.iter().find(|view| resolved && !settled(view)) {
        let message = format!("accelerator request {} is still {}", view.row.id, view.state());
        return Err(Fault::new(StatusCode::LOCKED, message));
    }
    let (views, next) = page.cut(views, &uri, &headers, |view| view.row.id.to_string());
    Ok(listed(&views, &identity, &headers, next))
}

/// Shows an accelerator request.
#[utoipa::path(get, path = "/accelerator_requests/{id}", tag = "Cyborg accelerator requests", params(ArqPath),
    responses((status = 200, description = "The accelerator request.", body = Shown)))]
pub(super) async fn show(
    State(cyborg): State<Arc<Cyborg>>,
    identity: Caller,
    Path(path): Path<ArqPath>,
    headers: HeaderMap,
) -> Result<Json<Shown>, Fault> {
    let view = visible(&cyborg, &identity, id(&path.id)?).await?;
    Ok(Json(shown(&view, &identity, &headers)))
}

/// One step of a JSON patch.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = PatchStep)]
struct Step {
    /// `add` to bind the request, or `remove` to unbind it. All steps must have the same.
    #[schema(value_type = schema::PatchOperation)]
    op: String,
    /// `/hostname`, `/device_rp_uuid` and `/instance_uuid`, all of which a patch must have, or, from microversion 2.1 on,
    /// `/project_id`.
    #[schema(value_type = schema::PatchPath)]
    path: String,
    /// The value of an `add`: the name of the host, the `rp_uuid` of a deployable, the server, or the project.
    #[serde(default)]
    value: Value,
}

/// The paths that name the target of a bind. A patch must have all of them.
const PLACE: [&str; 3] = ["hostname", "device_rp_uuid", "instance_uuid"];

/// Returns the target of a bind and the new project of the request; `None` when the patch unbinds the request.
fn target(patch: &Value, version: Microversion) -> Result<Option<(ArqTarget, Option<String>)>, Fault> {
    let patch = patch.as_array().filter(|patch| !patch.is_empty());
    let patch = patch.ok_or_else(|| bad("a patch must be a list of operations, and not empty", BIND))?;
    let mut fields = Map::new();
    let mut ops = BTreeSet::new();
    for step in patch {
        let step = Value::Object(object(step.clone(), BIND)?);
        let step: Step = json::read(step).map_err(|reason| bad(reason, BIND))?;
        let name = step.path.trim_start_matches('/');
        match name {
            name if PLACE.contains(&name) => {}
            "project_id" => version.needs(Microversion::PROJECT_ID, "/project_id")?,
            _ => {
                let shown: String = name.chars().take(80).collect();
                return Err(bad(format!("there is no path /{shown}"), BIND).into());
            }
        }
        if !matches!(step.op.as_str(), "add" | "remove") {
            return Err(bad("an op must be add or remove", BIND).into());
        }
        ops.insert(step.op);
        if fields.insert(name.to_owned(), step.value).is_some() {
            return Err(bad(format!("the path /{name} occurs twice"), BIND).into());
        }
    }
    if ops.len() > 1 {
        return Err(bad("the ops of a patch must all be add or all be remove", BIND).into());
    }
    if let Some(missing) = PLACE.iter().find(|name| !fields.contains_key(**name)) {
        return Err(bad(format!("the path /{missing} is missing"), BIND).into());
    }
    if ops.contains("remove") {
        return Ok(None);
    }
    let text = |key: &str| {
        let text = fields.get(key).and_then(Value::as_str).filter(|text| !text.is_empty());
        text.ok_or_else(|| bad(format!("/{key} must be a string, and not empty"), BIND))
    };
    let rp = text("device_rp_uuid")?.parse();
    let target = ArqTarget {
        hostname: text("hostname")?.to_owned(),
        rp: rp.map_err(|_| bad("/device_rp_uuid must be a UUID", BIND))?,
        server: server(text("instance_uuid")?)?,
    };
    let project = fields.contains_key("project_id").then(|| text("project_id")).transpose()?;
    Ok(Some((target, project.map(str::to_owned))))
}

async fn apply(
    cyborg: &Arc<Cyborg>,
    identity: &Caller,
    version: Microversion,
    body: &Map<String, Value>,
) -> Result<StatusCode, Fault> {
    if body.is_empty() {
        return Err(bad("no accelerator request is named", BIND).into());
    }
    let (mut named, mut binds, mut unbinds) = (BTreeSet::new(), Vec::new(), Vec::new());
    for (text, patch) in body {
        let id = id(text)?;
        if !named.insert(id) {
            return Err(bad(format!("accelerator request {id} is named twice"), BIND).into());
        }
        match target(patch, version)? {
            Some((target, project)) => binds.push(Bind { id, target, project }),
            None => unbinds.push(id),
        }
    }
    if !binds.is_empty() && !unbinds.is_empty() {
        let reason = "one PATCH cannot both bind and unbind; unbind first, and bind in another PATCH";
        return Err(bad(reason, BIND).into());
    }
    for id in named {
        visible(cyborg, identity, id).await?;
    }
    let reach = AccessScope::of(identity);
    if !binds.is_empty() {
        cyborg.bind_arqs(binds, &reach).await?;
    }
    for id in unbinds {
        cyborg.unbind_arq(id, &reach).await?;
    }
    Ok(StatusCode::ACCEPTED)
}

fn patches(headers: &HeaderMap, body: Result<Bytes, BytesRejection>) -> Result<Map<String, Value>, Fault> {
    object(value(headers, body, BIND)?, BIND)
}

/// Binds accelerator requests to servers, or unbinds them. The keys of the body are the requests.
#[utoipa::path(patch, path = "/accelerator_requests", tag = "Cyborg accelerator requests",
    request_body(content = BTreeMap<Uuid, Vec<Step>>),
    responses(
        (status = 202, description = "The bind or unbind has begun."),
        (status = 404, description = "There is no such accelerator request."),
    ))]
pub(super) async fn update(
    State(cyborg): State<Arc<Cyborg>>,
    identity: Caller,
    Extension(version): Extension<Microversion>,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<StatusCode, Fault> {
    apply(&cyborg, &identity, version, &patches(&headers, body)?).await
}

/// Changes one request, as the OpenStack SDK does: both the path and the body name it.
#[utoipa::path(patch, path = "/accelerator_requests/{id}", tag = "Cyborg accelerator requests", params(ArqPath),
    request_body(content = BTreeMap<Uuid, Vec<Step>>),
    responses((status = 202, description = "The bind or unbind has begun.")))]
pub(super) async fn update_one(
    State(cyborg): State<Arc<Cyborg>>,
    identity: Caller,
    Extension(version): Extension<Microversion>,
    Path(path): Path<ArqPath>,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<StatusCode, Fault> {
    let (of, body) = (id(&path.id)?, patches(&headers, body)?);
    if let Some(other) = body.keys().find(|key| key.parse() != Ok(of)) {
        let shown: String = other.chars().take(80).collect();
        return Err(bad(format!("the path names {of}, and the body names {shown}"), BIND).into());
    }
    apply(&cyborg, &identity, version, &body).await
}

async fn remove(cyborg: &Arc<Cyborg>, identity: &Caller, ids: &[ArqId]) -> Result<StatusCode, Fault> {
    let reach = AccessScope::of(identity);
    for id in ids {
        reach.may_delete(&cyborg.arq(*id).await?)?;
    }
    for id in ids {
        cyborg.delete_arq(*id, &reach).await?;
    }
    Ok(StatusCode::NO_CONTENT)
}

/// Deletes an accelerator request.
#[utoipa::path(delete, path = "/accelerator_requests/{id}", tag = "Cyborg accelerator requests", params(ArqPath),
    responses((status = 204, description = "The accelerator request is deleted.")))]
pub(super) async fn delete_one(
    State(cyborg): State<Arc<Cyborg>>,
    identity: Caller,
    Path(path): Path<ArqPath>,
) -> Result<StatusCode, Fault> {
    remove(&cyborg, &identity, &[id(&path.id)?]).await
}

/// Which accelerator requests are to be deleted. One of the keys must be given.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[allow(dead_code, reason = "the description of the API is made from it; `delete` reads the keys")]
struct RemoveQuery {
    /// The UUIDs of the requests, separated by commas.
    #[param(value_type = Option<schema::UuidList>, inline)]
    arqs: Option<String>,
    /// The server whose requests are to be deleted. Only services may give it.
    instance: Option<Uuid>,
}

/// Deletes accelerator requests.
#[utoipa::path(delete, path = "/accelerator_requests", tag = "Cyborg accelerator requests", params(RemoveQuery),
    responses(
        (status = 204, description = "The accelerator requests are deleted."),
        (status = 404, description = "There is no such accelerator request."),
    ))]
pub(super) async fn delete(
    State(cyborg): State<Arc<Cyborg>>,
    identity: Caller,
    Pairs(pairs): Pairs,
) -> Result<StatusCode, Fault> {
    match &pairs[..] {
        [(key, list)] if key == "arqs" && !list.is_empty() => {
            let ids: BTreeSet<_> = list.split(',').map(id).collect::<Result<_, _>>()?;
            remove(&cyborg, &identity, &ids.into_iter().collect::<Vec<_>>()).await
        }
        [(key, of)] if key == "instance" => {
            let reach = AccessScope::of(&identity);
            if !reach.service {
                return Err(Error::NeedsService.into());
            }
            cyborg.delete_arqs_of(server(of)?, &reach).await?;
            Ok(StatusCode::NO_CONTENT)
        }
        _ => Err(Error::Invalid(
            "no accelerator request is named; add ?arqs=<uuid>,<uuid> or ?instance=<a server's id>".into(),
        )
        .into()),
    }
}
