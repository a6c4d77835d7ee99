//! The list of accelerators and its order.

use axum::Json;
use axum::extract::{OriginalUri, State};
use axum::http::HeaderMap;
use hotslot_model::accelerator::View;
use hotslot_model::identity::Caller;
use hotslot_service::error::Error;
use serde_json::{Value, json};

use super::wire::{hide, is_v1, wire};
use crate::http::body::{Page, Pairs};
use crate::http::error::Fault;
use crate::http::state::AcceleratorParts;

/// The keys by which the list can be sorted.
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
                ("sort_key", name) if SORT_KEYS.contains(&name) => order.key = Some(value),
                ("sort_key", _) => {
                    let known = SORT_KEYS.join(", ");
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

pub(super) async fn list(
    State(parts): State<AcceleratorParts>,
    identity: Caller,
    uri: OriginalUri,
    headers: HeaderMap,
    pairs: Pairs,
) -> Result<Json<Value>, Fault> {
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
        let uuid = |item: &Value| item["uuid"].as_str().unwrap_or_default().to_owned();
        page.skip(&mut items, |item, marker| uuid(item).eq_ignore_ascii_case(marker))?;
        page.cut(items, &uri, &headers, uuid)
    };
    let key = if is_v1(&uri) { "accelerators" } else { "accelerator" };
    let mut body = json!({ key: listed });
    if let Some(next) = next {
        body[format!("{key}_links")] = next;
    }
    Ok(Json(body))
}
