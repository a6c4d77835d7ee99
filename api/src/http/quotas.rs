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
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::openapi::schema::{ObjectBuilder, OneOfBuilder, Type};
use utoipa::openapi::{RefOr, Schema};
use utoipa::{IntoParams, PartialSchema, ToSchema};

use super::body::{Path, read};
use super::error::Fault;
use super::permit::Permit;
use super::schema;

const EXAMPLE: &str = r#"{"quota_set": {"pci_attachments": 8, "pci_attachments:a1": 2}}"#;

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Path)]
pub(super) struct QuotaPath {
    /// The id of the project.
    #[param(value_type = schema::ProjectId, inline)]
    quota_id: String,
}

/// A quota set.
#[derive(Serialize, ToSchema)]
pub(super) struct QuotaSetAnswer {
    /// The quota set.
    quota_set: QuotaSet,
}

/// The limits of a project, by resource: -1 for no limit, otherwise 0 to 2147483647. The keys are
/// `pci_attachments` for all attachments, `pci_attachments:<alias>` for those of an alias, and the other resources that
/// docs/identity.md lists.
#[derive(Serialize, ToSchema)]
pub(super) struct QuotaSet {
    /// The id of the project. The answer to a change has no such key, as in Nova.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = String)]
    id: Option<String>,
    /// The limits, by resource.
    #[serde(flatten)]
    #[schema(value_type = BTreeMap<String, Value>)]
    limits: BTreeMap<String, Limit>,
}

/// A quota set with what is used.
#[derive(Serialize, ToSchema)]
pub(super) struct QuotaSetDetailAnswer {
    /// The quota set.
    quota_set: QuotaSetDetail,
}

/// The limits of a project and what it uses, by resource.
#[derive(Serialize, ToSchema)]
pub(super) struct QuotaSetDetail {
    /// The id of the project.
    id: String,
    /// The limits and what is used, by resource.
    #[serde(flatten)]
    #[schema(value_type = BTreeMap<String, Value>)]
    usage: BTreeMap<String, QuotaUsage>,
}

/// The limit of a resource, and how much of it a project uses.
#[derive(Serialize, ToSchema)]
pub(super) struct QuotaUsage {
    /// The limit; -1 for none.
    #[schema(value_type = i64, minimum = -1, maximum = 2147483647)]
    limit: Limit,
    /// What the project has.
    #[schema(minimum = 0)]
    in_use: i64,
    /// What is being attached for it. It counts as used.
    #[schema(minimum = 0)]
    reserved: i64,
}

fn set(project: Option<&str>, limits: BTreeMap<Resource, Limit>) -> Json<QuotaSetAnswer> {
    let limits = limits.into_iter().map(|(resource, limit)| (resource.to_string(), limit)).collect();
    Json(QuotaSetAnswer { quota_set: QuotaSet { id: project.map(str::to_owned), limits } })
}

/// Shows the limits of a project.
#[utoipa::path(get, path = "/os-quota-sets/{quota_id}", tag = "Quotas", params(QuotaPath),
    responses((status = 200, description = "The limits.", body = QuotaSetAnswer)))]
pub(super) async fn show(
    State(quotas): State<Arc<Quotas>>,
    permit: Permit,
    Path(path): Path<QuotaPath>,
) -> Result<Json<QuotaSetAnswer>, Fault> {
    permit.require(&path.quota_id)?;
    Ok(set(Some(&path.quota_id), quotas.limits(&path.quota_id).await?))
}

/// Shows the limits of a project, and what it uses.
#[utoipa::path(get, path = "/os-quota-sets/{quota_id}/detail", tag = "Quotas", params(QuotaPath),
    responses((status = 200, description = "The limits and what is used.", body = QuotaSetDetailAnswer)))]
pub(super) async fn detail(
    State(quotas): State<Arc<Quotas>>,
    permit: Permit,
    Path(path): Path<QuotaPath>,
) -> Result<Json<QuotaSetDetailAnswer>, Fault> {
    permit.require(&path.quota_id)?;
    let usage = quotas.usage(&path.quota_id).await?.into_iter().map(|(resource, (limit, usage))| {
        let usage = QuotaUsage { limit, in_use: usage.in_use, reserved: usage.reserved };
        (resource.to_string(), usage)
    });
    let quota_set = QuotaSetDetail { usage: usage.collect(), id: path.quota_id };
    Ok(Json(QuotaSetDetailAnswer { quota_set }))
}

/// Shows the limits of projects for which none were set.
#[utoipa::path(get, path = "/os-quota-sets/{quota_id}/defaults", tag = "Quotas", params(QuotaPath),
    responses((status = 200, description = "The limits.", body = QuotaSetAnswer)))]
pub(super) async fn defaults(
    State(quotas): State<Arc<Quotas>>,
    Path(path): Path<QuotaPath>,
) -> Result<Json<QuotaSetAnswer>, Fault> {
    Ok(set(Some(&path.quota_id), quotas.defaults(&path.quota_id)?))
}

/// New limits of a project.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct QuotaSetChange {
    /// The new limits, by resource: numbers from 0 up, or -1 for no limit. Like Nova, this accepts numbers in strings, and
    /// `force`, which has no effect.
    #[schema(value_type = NewLimits)]
    quota_set: Map<String, Value>,
}

/// The limits by resource, as the schema describes them.
struct NewLimits;

impl PartialSchema for NewLimits {
    fn schema() -> RefOr<Schema> {
        let number =
            ObjectBuilder::new().schema_type(Type::Integer).minimum(Some(-1)).maximum(Some(Limit::MAX));
        let text = ObjectBuilder::new().schema_type(Type::String).pattern(Some("^(-1|[0-9]{1,9})$"));
        let limit = OneOfBuilder::new()
            .item(number)
            .item(text)
            .description(Some("A number from 0 up, or -1 for no limit; also as a string."));
        let fixed = Resource::FIXED.map(|resource| resource.to_string()).join("|");
        let name = ObjectBuilder::new()
            .schema_type(Type::String)
            .pattern(Some(format!("^({fixed}|force|{}:.+)$", Resource::Attachments)));
        ObjectBuilder::new()
            .schema_type(Type::Object)
            .property(
                "force",
                ObjectBuilder::new().schema_type(Type::Boolean).description(Some("It has no effect.")),
            )
            .property_names(Some(name))
            .additional_properties(Some(Schema::OneOf(limit.build())))
            .description(Some("Limits by resource."))
            .into()
    }
}

impl ToSchema for NewLimits {}

/// Reads the limits of a body. Like Nova, this accepts numbers in strings, and `force`, which hotslot does not need:
/// a limit may always be lower than what is used.
fn limits(body: QuotaSetChange) -> Result<Limits, Error> {
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

/// Sets limits of a project. Limits that the body does not name stay as they are.
#[utoipa::path(put, path = "/os-quota-sets/{quota_id}", tag = "Quotas", params(QuotaPath),
    request_body(content = QuotaSetChange, example = json!({ "quota_set": { "accelerators": 5 } })),
    responses((status = 200, description = "The limits.", body = QuotaSetAnswer)))]
pub(super) async fn update(
    State(quotas): State<Arc<Quotas>>,
    Path(path): Path<QuotaPath>,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<Json<QuotaSetAnswer>, Fault> {
    let limits = limits(read(&headers, body, EXAMPLE)?)?;
    Ok(set(None, quotas.set(&path.quota_id, &limits).await?))
}

/// Makes the limits of a project the defaults again.
#[utoipa::path(delete, path = "/os-quota-sets/{quota_id}", tag = "Quotas", params(QuotaPath),
    responses((status = 202, description = "The limits are the defaults.")))]
pub(super) async fn delete(
    State(quotas): State<Arc<Quotas>>,
    Path(path): Path<QuotaPath>,
) -> Result<StatusCode, Fault> {
    quotas.reset(&path.quota_id).await?;
    Ok(StatusCode::ACCEPTED)
}
