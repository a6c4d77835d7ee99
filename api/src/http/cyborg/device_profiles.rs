//! `device_profiles`: named groups of resources that accelerator requests ask for.

use std::collections::BTreeSet;
use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::State;
use axum::extract::rejection::BytesRejection;
use axum::http::{HeaderMap, StatusCode};
use axum::{Extension, Json};
use hotslot_driver::text;
use hotslot_model::cyborg::{DeviceProfile, Group};
use hotslot_model::id::DeviceProfileId;
use hotslot_model::json;
use hotslot_service::cyborg::Cyborg;
use hotslot_service::error::Error;
use hotslot_service::records::Records;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::openapi::schema::{ObjectBuilder, OneOfBuilder, Type};
use utoipa::openapi::{RefOr, Schema};
use utoipa::{IntoParams, PartialSchema, ToSchema};
use uuid::Uuid;

use super::super::body::{Link, Pairs, Path, value};
use super::super::error::Fault;
use super::super::schema;
use super::{Microversion, bad, links, time};

const CREATE: &str = r#"[{"name": "fpga-1", "groups": [{"resources:FPGA": "1"}]}]"#;

/// The maximum length of a name and of a description in characters, as in Cyborg's database.
const LENGTH: usize = 255;

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Path)]
pub(super) struct ProfilePath {
    /// The UUID of the device profile, or, from microversion 2.2 on and for a removal, its name.
    id: String,
}

/// A new device profile.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = NewDeviceProfile)]
struct Body {
    /// The name: 1 to 255 letters, digits, `-` and `_`.
    #[schema(min_length = 1, max_length = 255, pattern = "^[A-Za-z0-9_-]+$")]
    name: String,
    /// The groups. Each requests resources (`resources:FPGA`) with traits (`trait:…`) and further keys.
    #[schema(value_type = Vec<NewGroup>, min_items = 1)]
    groups: Value,
    /// A description.
    #[schema(value_type = Option<schema::VisibleText>)]
    description: Option<String>,
    /// The UUID; by default a new one.
    #[schema(value_type = Option<Uuid>)]
    uuid: Option<String>,
}

/// A list with exactly one new device profile.
#[derive(ToSchema)]
#[schema(as = NewDeviceProfiles, min_items = 1, max_items = 1)]
#[allow(dead_code, reason = "the description of the API is made from it; `create` reads the list")]
struct OneProfile(Vec<Body>);

/// A group of a new device profile.
struct NewGroup;

impl PartialSchema for NewGroup {
    fn schema() -> RefOr<Schema> {
        let text = |pattern| ObjectBuilder::new().schema_type(Type::String).pattern(Some(pattern));
        let name =
            "^(resources:(FPGA|GPU|VGPU|PGPU|CUSTOM_[A-Z0-9_]+)|trait:CUSTOM_[A-Z0-9_]+|accel:.*[^ ].*)$";
        let number = ObjectBuilder::new().schema_type(Type::Integer).minimum(Some(0));
        let value = OneOfBuilder::new().item(ObjectBuilder::new().schema_type(Type::String)).item(number);
        ObjectBuilder::new()
            .schema_type(Type::Object)
            .property_names(Some(text(name)))
            .additional_properties(Some(Schema::OneOf(value.build())))
            .description(Some(
                "A group of a new device profile: `resources:<class>` has a number of devices, 0 to 256, as a number or a \
                 string; `trait:<trait>` is `required` or `forbidden`; `accel:<name>` is a string or a number.",
            ))
            .into()
    }
}

impl ToSchema for NewGroup {}

/// A device profile: named groups of resources that accelerator requests ask for.
#[derive(Serialize, ToSchema)]
#[schema(as = DeviceProfile)]
pub(super) struct Shown {
    /// The UUID.
    #[schema(value_type = Uuid)]
    uuid: DeviceProfileId,
    /// The name.
    name: String,
    /// The description.
    description: Option<String>,
    /// The groups.
    #[schema(value_type = Vec<BTreeMap<String, String>>)]
    groups: Value,
    /// When it was created.
    #[schema(value_type = schema::CyborgTime)]
    created_at: String,
    /// Always null.
    #[schema(value_type = Option<schema::CyborgTime>)]
    updated_at: Option<String>,
    /// The link to it.
    links: [Link; 1],
}

/// A list of device profiles.
#[derive(Serialize, ToSchema)]
#[schema(as = DeviceProfileList)]
pub(super) struct List {
    /// The device profiles.
    device_profiles: Vec<Shown>,
}

/// One device profile.
#[derive(Serialize, ToSchema)]
#[schema(as = DeviceProfileAnswer)]
pub(super) struct Answer {
    /// The device profile.
    device_profile: Shown,
}

/// The filter of a list.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[allow(dead_code, reason = "the description of the API is made from it; `list` reads the key")]
struct Filter {
    /// Only device profiles with one of these names, separated by commas.
    name: Option<String>,
}

/// Which device profiles are to be removed.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[allow(dead_code, reason = "the description of the API is made from it; `delete` reads the key")]
struct RemoveQuery {
    /// The names of the device profiles, separated by commas.
    #[param(min_length = 1)]
    value: String,
}

fn shown(profile: &DeviceProfile, headers: &HeaderMap) -> Shown {
    Shown {
        uuid: profile.id,
        name: profile.name.clone(),
        description: profile.description.clone(),
        groups: Group::shown_all(&profile.groups),
        created_at: time(profile.created_at),
        updated_at: None,
        links: links(headers, "device_profiles", profile.id),
    }
}

/// Creates a device profile. The body is a list with exactly one.
#[utoipa::path(post, path = "/device_profiles", tag = "Cyborg device profiles",
    request_body(content = OneProfile, example = json!([{ "name": "p1", "groups": [{ "resources:CUSTOM_NIC": "1" }] }])),
    responses((status = 201, description = "The device profile.", body = Shown)))]
pub(super) async fn create(
    State(cyborg): State<Arc<Cyborg>>,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<(StatusCode, Json<Shown>), Fault> {
    let body = value(&headers, body, CREATE)?;
    let one = body.as_array().filter(|list| list.len() == 1).and_then(|list| list.first());
    let one = one.filter(|one| one.is_object());
    let one = one.ok_or_else(|| bad("the body must be a list with exactly one device profile", CREATE))?;
    let body: Body = json::read(one).map_err(|reason| bad(reason, CREATE))?;
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    if body.name.is_empty() || body.name.len() > LENGTH || !body.name.chars().all(plain) {
        let reason = format!("the name must have 1 to {LENGTH} letters, digits, - and _");
        return Err(bad(reason, CREATE).into());
    }
    if body.description.as_ref().is_some_and(|text| text.chars().count() > LENGTH) {
        return Err(bad(format!("the description must have at most {LENGTH} characters"), CREATE).into());
    }
    let description = body.description.as_deref().unwrap_or_default();
    text::visible(description).map_err(|reason| bad(format!("description: {reason}"), CREATE))?;
    let groups = Group::read_all(&body.groups).map_err(|reason| bad(reason, CREATE))?;
    let id = match body.uuid.as_deref().map(str::parse) {
        None => DeviceProfileId(Uuid::new_v4()),
        Some(Ok(id)) => id,
        Some(Err(_)) => return Err(bad("uuid must be a UUID", CREATE).into()),
    };
    let (name, description) = (body.name, body.description);
    let profile = DeviceProfile { id, name, description, groups, created_at: hotslot_store::now() };
    cyborg.create_device_profile(&profile).await?;
    Ok((StatusCode::CREATED, Json(shown(&profile, &headers))))
}

/// Lists the device profiles.
#[utoipa::path(get, path = "/device_profiles", tag = "Cyborg device profiles", params(Filter),
    responses((status = 200, description = "The device profiles.", body = List)))]
pub(super) async fn list(
    State(records): State<Arc<Records>>,
    headers: HeaderMap,
    Pairs(pairs): Pairs,
) -> Result<Json<List>, Fault> {
    let mut profiles = records.device_profiles().await?;
    for (key, value) in pairs {
        if key != "name" {
            return Err(Error::Invalid(format!("unknown query key {key}; known: name")).into());
        }
        let names: Vec<_> = value.split(',').map(str::trim).collect();
        profiles.retain(|profile| names.contains(&profile.name.as_str()));
    }
    let device_profiles = profiles.iter().map(|profile| shown(profile, &headers)).collect();
    Ok(Json(List { device_profiles }))
}

/// Finds a profile by its id, or else by its name.
fn find<'a>(profiles: &'a [DeviceProfile], named: &str) -> Result<&'a DeviceProfile, Error> {
    let id = named.parse().ok();
    let by_id = profiles.iter().find(|profile| Some(profile.id) == id);
    by_id.or_else(|| profiles.iter().find(|profile| profile.name == named)).ok_or_else(|| {
        Error::NotFound(format!("device profile {}", named.chars().take(80).collect::<String>()))
    })
}

/// Shows a device profile.
#[utoipa::path(get, path = "/device_profiles/{id}", tag = "Cyborg device profiles", params(ProfilePath),
    responses((status = 200, description = "The device profile.", body = Answer)))]
pub(super) async fn show(
    State(records): State<Arc<Records>>,
    Extension(version): Extension<Microversion>,
    Path(path): Path<ProfilePath>,
    headers: HeaderMap,
) -> Result<Json<Answer>, Fault> {
    if path.id.parse::<Uuid>().is_err() {
        version.needs(Microversion::PROFILE_BY_NAME, "a device profile by its name")?;
    }
    let profiles = records.device_profiles().await?;
    Ok(Json(Answer { device_profile: shown(find(&profiles, &path.id)?, &headers) }))
}

async fn remove(cyborg: &Cyborg, records: &Records, names: &[&str]) -> Result<StatusCode, Fault> {
    let profiles = records.device_profiles().await?;
    let found = names.iter().map(|name| find(&profiles, name).map(|profile| profile.id));
    let ids = found.collect::<Result<BTreeSet<_>, _>>()?;
    cyborg.delete_device_profiles(&Vec::from_iter(ids)).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Removes a device profile.
#[utoipa::path(delete, path = "/device_profiles/{id}", tag = "Cyborg device profiles", params(ProfilePath),
    responses((status = 204, description = "The device profile is removed.")))]
pub(super) async fn delete_one(
    State(cyborg): State<Arc<Cyborg>>,
    State(records): State<Arc<Records>>,
    Path(path): Path<ProfilePath>,
) -> Result<StatusCode, Fault> {
    remove(&cyborg, &records, &[&path.id]).await
}

/// Removes device profiles: all that are named, or none.
#[utoipa::path(delete, path = "/device_profiles", tag = "Cyborg device profiles", params(RemoveQuery),
    responses(
        (status = 204, description = "The device profiles are removed."),
        (status = 404, description = "There is no device profile with one of these names."),
    ))]
pub(super) async fn delete(
    State(cyborg): State<Arc<Cyborg>>,
    State(records): State<Arc<Records>>,
    Pairs(pairs): Pairs,
) -> Result<StatusCode, Fault> {
    let names: Vec<_> = match &pairs[..] {
        [(key, value)] if key == "value" => value.split(',').map(str::trim).collect(),
        _ => Vec::new(),
    };
    match &names[..] {
        [_, ..] if names.iter().all(|name| !name.is_empty()) => remove(&cyborg, &records, &names).await,
        _ => Err(Error::Invalid(
            "no device profile is named; DELETE device_profiles/<uuid or name>, or ?value=<name>,<name>"
                .into(),
        )
        .into()),
    }
}
