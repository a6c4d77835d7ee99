//! The list of accelerators and its order.

use axum::Json;
use axum::extract::{OriginalUri, State};
use axum::http::HeaderMap;
use hotslot_model::accelerator::View;
use hotslot_model::identity::Caller;
use hotslot_service::error::Error;
use serde::Serialize;
use serde_json::Value;
use utoipa::{IntoParams, ToSchema};

use super::wire::{Accelerator, hide, is_v1, wire};
use crate::http::body::{Link, Page, PageParams, Pairs};
use crate::http::error::Fault;
use crate::http::schema;
use crate::http::state::AcceleratorParts;

/// The requested order of the list. Without a key, the list is in order of creation.
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
                ("sort_key", name) if schema::SORT_KEYS.contains(&name) => order.key = Some(value),
                ("sort_key", _) => {
                    let known = schema::SORT_KEYS.join(", ");
                    return Err(Error::Invalid(format!("invalid sort_key {value}: expected one of {known}")));
                }
                ("sort_dir", "asc") => order.descending = false,
                ("sort_dir", "desc") => order.descending = true,
                ("sort_dir", _) => {
                    return Err(Error::Invalid(format!("invalid sort_dir {value}: expected asc or desc")));
                }
                // The key has no effect: the administrator always sees all projects, and other users never do.
                ("all_tenants", "true" | "false" | "True" | "False") => {}
                ("all_tenants", _) => {
                    return Err(Error::Invalid(format!(
                        "invalid all_tenants {value}: expected true or false"
                    )));
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

    /// Whether the order does not depend on what accelerators show.
    fn is_by_creation(&self) -> bool {
        self.key.is_none()
    }

    fn sort_views(&self, views: &mut [View]) {
        if self.descending {
            views.reverse();
        }
    }

    fn sort(&self, items: &mut [Accelerator]) {
        if let Some(key) = &self.key {
            let value = |item: &Accelerator| {
                serde_json::to_value(item).ok().and_then(|mut item| item.get_mut(key).map(Value::take))
            };
            items.sort_by_cached_key(|item| match value(item) {
                Some(Value::String(text)) => (0, Some(text), None),
                Some(Value::Number(number)) => (0, None, number.as_i64()),
                Some(Value::Bool(_) | Value::Array(_) | Value::Object(_)) => (0, None, None),
                Some(Value::Null) | None => (1, None, None),
            });
        }
        if self.descending {
            items.reverse();
        }
    }
}

/// The order of a list, only under `/v1`.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[allow(dead_code, reason = "the description of the API is made from it; `Order` reads the keys")]
pub(super) struct OrderQuery {
    /// The key by which the list is sorted. Only under `/v1`.
    #[param(value_type = Option<schema::SortKey>, inline)]
    sort_key: Option<String>,
    /// `asc` or `desc`. Only under `/v1`.
    #[param(value_type = Option<schema::SortDirection>, inline)]
    sort_dir: Option<String>,
    /// It has no effect: administrators see all projects, and others never do. Only under `/v1`.
    all_tenants: Option<bool>,
}

/// A page of a list of accelerators. Under `/v1` its key is `accelerators`.
#[derive(Serialize, ToSchema)]
#[serde(untagged)]
pub(in crate::http) enum AcceleratorList {
    /// Without `/v1`.
    Plain {
        /// The accelerators.
        accelerator: Vec<Accelerator>,
        /// The link to the next page; missing on the last page.
        #[serde(skip_serializing_if = "Option::is_none")]
        #[schema(value_type = Vec<Link>)]
        accelerator_links: Option<Vec<Link>>,
    },
    /// Under `/v1`.
    V1 {
        /// The accelerators.
        accelerators: Vec<Accelerator>,
        /// The link to the next page; missing on the last page.
        #[serde(skip_serializing_if = "Option::is_none")]
        #[schema(value_type = Vec<Link>)]
        accelerators_links: Option<Vec<Link>>,
    },
}

/// Lists the accelerators that the caller may see.
#[utoipa::path(get, path = "/accelerators", tag = "Accelerators", params(PageParams, OrderQuery),
    responses((status = 200, description = "A page of the list.", body = AcceleratorList)))]
pub(super) async fn list(
    State(parts): State<AcceleratorParts>,
    identity: Caller,
    uri: OriginalUri,
    headers: HeaderMap,
    pairs: Pairs,
) -> Result<Json<AcceleratorList>, Fault> {
    let (page, order) = if is_v1(&uri) {
        let (page, rest) = Page::read(pairs)?;
        (page, Order::read(rest)?)
    } else {
        (Page::alone(pairs)?, Order::default())
    };
    // A caller without a project sees nothing. Only the administrator sees what belongs to no project.
    let mut views = match &identity.project {
        _ if identity.is_admin() => parts.accelerators.accelerators().await?,
        Some(project) => parts.accelerators.accelerators_of(project).await?,
        None => Vec::new(),
    };
    let uuid = |view: &View| view.row.id.to_string();
    let is = |view: &View, marker: &str| uuid(view).eq_ignore_ascii_case(marker);
    let (mut views, next) = if order.is_by_creation() {
        // Only the hosts of this page are asked.
        order.sort_views(&mut views);
        page.skip(&mut views, is)?;
        page.cut(views, &uri, &headers, uuid)
    } else {
        (views, None)
    };
    parts.accelerators.read_functions(&mut views).await;
    let mut items = Vec::new();
    for view in &views {
        let mut item = wire(&parts, view, &uri, &headers);
        hide(&parts.hosts, &identity, view, &mut item).await;
        items.push(item);
    }
    let (listed, next) = if order.is_by_creation() {
        (items, next)
    } else {
        order.sort(&mut items);
        let uuid = |item: &Accelerator| item.uuid.to_string();
        page.skip(&mut items, |item, marker| uuid(item).eq_ignore_ascii_case(marker))?;
        page.cut(items, &uri, &headers, uuid)
    };
    Ok(Json(if is_v1(&uri) {
        AcceleratorList::V1 { accelerators: listed, accelerators_links: next }
    } else {
        AcceleratorList::Plain { accelerator: listed, accelerator_links: next }
    }))
}
