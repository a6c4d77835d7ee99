//! `os-quota-sets`: the limits of projects, as in Nova. The keys of a quota set are hotslot's own resources.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Json;
use axum::body::Bytes;
use axum::extract::State;
use axum::extract::rejection::BytesRejection;
use axum::http::{HeaderMap, StatusCode};
use hotslot_model::quota::{Limit, Limits, Resource};
use hotslot_service::error::Error;
use hotslot_service::quota::Quotas;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::body::{Path, read};
use super::error::Fault;
use super::permit::Permit;

const EXAMPLE: &str = r#"{"quota_set": {"pci_attachments": 8, "pci_attachments:a1": 2}}"#;

#[derive(Deserialize)]
pub(super) struct QuotaPath {
    quota_id: String,
}

fn set(project: Option<&str>, limits: impl IntoIterator<Item = (Resource, Value)>) -> Json<Value> {
    let id = project.map(|project| ("id".to_owned(), json!(project)));
    let limits = limits.into_iter().map(|(resource, value)| (resource.to_string(), value));
    Json(json!({ "quota_set": Map::from_iter(id.into_iter().chain(limits)) }))
}

fn values(limits: BTreeMap<Resource, Limit>) -> impl Iterator<Item = (Resource, Value)> {
    limits.into_iter().map(|(resource, limit)| (resource, json!(limit)))
}

pub(super) async fn show(
    State(quotas): State<Arc<Quotas>>,
    permit: Permit,
    Path(path): Path<QuotaPath>,
) -> Result<Json<Value>, Fault> {
    permit.require(&path.quota_id)?;
    Ok(set(Some(&path.quota_id), values(quotas.limits(&path.quota_id).await?)))
}

pub(super) async fn detail(
    State(quotas): State<Arc<Quotas>>,
    permit: Permit,
    Path(path): Path<QuotaPath>,
) -> Result<Json<Value>, Fault> {
    permit.require(&path.quota_id)?;
    let usage = quotas.usage(&path.quota_id).await?.into_iter().map(|(resource, (limit, usage))| {
        (resource, json!({ "limit": limit, "in_use": usage.in_use, "reserved": usage.reserved }))
    });
    Ok(set(Some(&path.quota_id), usage))
}

pub(super) async fn defaults(
    State(quotas): State<Arc<Quotas>>,
    Path(path): Path<QuotaPath>,
) -> Result<Json<Value>, Fault> {
    Ok(set(Some(&path.quota_id), values(quotas.defaults(&path.quota_id)?)))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct UpdateBody {
    quota_set: Map<String, Value>,
}

/// Reads the limits of a body. Like Nova, this accepts numbers in strings, and `force`, which hotslot does not need:
/// a limit may always be lower than what is used.
fn limits(body: UpdateBody) -> Result<Limits, Error> {
    let bad = |reason: String| Error::Invalid(format!("bad body: {reason}; send {EXAMPLE}"));
    let mut limits = BTreeMap::new();
    for (key, value) in body.quota_set {
        if key == "force" && value.is_boolean() {
            continue;
        }
        let resource: Resource = key.parse().map_err(bad)?;
        let number = value.as_i64().or_else(|| value.as_str()?.parse().ok());
        let wrong = || bad(format!("{key}: expected a number from 0 up, or -1 for no limit"));
        let limit =
            Limit::new(number.ok_or_else(wrong)?).map_err(|reason| bad(format!("{key}: {reason}")))?;
        limits.insert(resource, limit);
    }
    Ok(Limits(limits))
}

pub(super) async fn update(
    State(quotas): State<Arc<Quotas>>,
    Path(path): Path<QuotaPath>,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<Json<Value>, Fault> {
    let limits = limits(read(&headers, body, EXAMPLE)?)?;
    Ok(set(None, values(quotas.set(&path.quota_id, &limits).await?)))
}

pub(super) async fn delete(
    State(quotas): State<Arc<Quotas>>,
    Path(path): Path<QuotaPath>,
) -> Result<StatusCode, Fault> {
    quotas.reset(&path.quota_id).await?;
    Ok(StatusCode::ACCEPTED)
}
