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
use hotslot_service::cyborg::Cyborg;
use hotslot_service::error::Error;
use hotslot_service::records::Records;
use serde::Deserialize;
use serde_json::{Value, json};
use uuid::Uuid;

use super::super::body::{Pairs, Path, value};
use super::super::error::Fault;
use super::{Microversion, bad, links, time};

const CREATE: &str = r#"[{"name": "fpga-1", "groups": [{"resources:FPGA": "1"}]}]"#;

/// The maximum length of a name and of a description in characters, as in Cyborg's database.
const LENGTH: usize = 255;

#[derive(Deserialize)]
pub(super) struct ProfilePath {
    id: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Body {
    name: String,
    groups: Value,
    description: Option<String>,
    uuid: Option<String>,
}

fn wire(profile: &DeviceProfile, headers: &HeaderMap) -> Value {
    json!({
        "uuid": profile.id,
        "name": profile.name,
        "description": profile.description,
        "groups": Group::shown_all(&profile.groups),
        "created_at": time(profile.created_at),
        "updated_at": null,
        "links": links(headers, "device_profiles", profile.id),
    })
}

pub(super) async fn create(
    State(cyborg): State<Arc<Cyborg>>,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<(StatusCode, Json<Value>), Fault> {
    let body = value(&headers, body, CREATE)?;
    let one = body.as_array().filter(|list| list.len() == 1).and_then(|list| list.first());
    let one = one.filter(|one| one.is_object());
    let one = one.ok_or_else(|| bad("the body must be a list with exactly one device profile", CREATE))?;
    let body = Body::deserialize(one).map_err(|error| bad(error, CREATE))?;
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
    Ok((StatusCode::CREATED, Json(wire(&profile, &headers))))
}

pub(super) async fn list(
    State(records): State<Arc<Records>>,
    headers: HeaderMap,
    Pairs(pairs): Pairs,
) -> Result<Json<Value>, Fault> {
    let mut profiles = records.device_profiles().await?;
    for (key, value) in pairs {
        if key != "name" {
            return Err(Error::Invalid(format!("unknown query key {key}; known: name")).into());
        }
        let names: Vec<_> = value.split(',').map(str::trim).collect();
        profiles.retain(|profile| names.contains(&profile.name.as_str()));
    }
    let listed: Vec<_> = profiles.iter().map(|profile| wire(profile, &headers)).collect();
    Ok(Json(json!({ "device_profiles": listed })))
}

/// Finds a profile by its id, or else by its name.
fn find<'a>(profiles: &'a [DeviceProfile], named: &str) -> Result<&'a DeviceProfile, Error> {
    let id = named.parse().ok();
    let by_id = profiles.iter().find(|profile| Some(profile.id) == id);
    by_id.or_else(|| profiles.iter().find(|profile| profile.name == named)).ok_or_else(|| {
        Error::NotFound(format!("device profile {}", named.chars().take(80).collect::<String>()))
    })
}

pub(super) async fn show(
    State(records): State<Arc<Records>>,
    Extension(version): Extension<Microversion>,
    Path(path): Path<ProfilePath>,
    headers: HeaderMap,
) -> Result<Json<Value>, Fault> {
    if path.id.parse::<Uuid>().is_err() {
        version.needs(Microversion::PROFILE_BY_NAME, "a device profile by its name")?;
    }
    let profiles = records.device_profiles().await?;
    Ok(Json(json!({ "device_profile": wire(find(&profiles, &path.id)?, &headers) })))
}

async fn remove(cyborg: &Cyborg, records: &Records, names: &[&str]) -> Result<StatusCode, Fault> {
    let profiles = records.device_profiles().await?;
    let found = names.iter().map(|name| find(&profiles, name).map(|profile| profile.id));
    let ids = found.collect::<Result<BTreeSet<_>, _>>()?;
    cyborg.delete_device_profiles(&Vec::from_iter(ids)).await?;
    Ok(StatusCode::NO_CONTENT)
}

pub(super) async fn delete_one(
    State(cyborg): State<Arc<Cyborg>>,
    State(records): State<Arc<Records>>,
    Path(path): Path<ProfilePath>,
) -> Result<StatusCode, Fault> {
    remove(&cyborg, &records, &[&path.id]).await
}

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
