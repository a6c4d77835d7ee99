//! `os-pci-config`: the rules that decide which devices are assignable. The rules of the configuration file are
//! read-only; rules of the API can be created, replaced and removed.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Json;
use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{OriginalUri, State};
use axum::http::{HeaderMap, StatusCode};
use hotslot_model::rules::{Rule, RuleKind, Source, is_grouping_key};
use hotslot_service::error::Error;
use hotslot_service::inventory::Catalog;
use hotslot_service::inventory::Change;
use hotslot_service::records::Records;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use uuid::Uuid;

use super::body::{Page, Pairs, Path, id, links, read, time};
use super::error::Fault;

/// The name of the read-only object that lists the keys by which devices are grouped into pools.
const GROUP: &str = "group";

/// Lists the names of the configuration objects.
pub(super) async fn names(uri: OriginalUri, headers: HeaderMap) -> Json<Value> {
    let mut names: Vec<_> = RuleKind::ALL.iter().map(|kind| kind.as_str()).chain([GROUP]).collect();
    names.sort_unstable();
    let name = |name: &str| json!({ "name": name, "links": links(&headers, &uri, "os-pci-config", name) });
    Json(json!({ "pci_config": names.into_iter().map(name).collect::<Vec<_>>() }))
}

#[derive(Deserialize)]
pub(super) struct KindPath {
    kind: String,
}

#[derive(Deserialize)]
pub(super) struct EntryPath {
    kind: String,
    entry_id: String,
}

impl EntryPath {
    fn parts(&self) -> Result<(RuleKind, Uuid), Error> {
        let kind = kind(&self.kind)?;
        Ok((kind, id(&self.entry_id, &format!("{kind} entry"))?))
    }
}

fn kind(name: &str) -> Result<RuleKind, Error> {
    name.parse().map_err(|_| {
        let name: String = name.chars().take(80).collect();
        Error::NotFound(format!("configuration object {name} (known: whitelist, alias, extra_info, group)"))
    })
}

/// Returns an entry as JSON. `position` is its position among the entries of its kind, from 1.
fn wire(problems: &BTreeMap<Uuid, String>, rule: &Rule, position: usize) -> Value {
    let (source, place, created_at, updated_at) = match &rule.source {
        Source::File { place } => ("file", Some(place), None, None),
        Source::Api { created_at, updated_at } => {
            ("api", None, Some(time(*created_at)), updated_at.map(time))
        }
    };
    json!({
        "id": rule.id,
        "source": source,
        "place": place,
        "read_only": rule.is_of_file(),
        "position": position,
        "entry": serde_json::from_str(&rule.text).unwrap_or_else(|_| Value::from(rule.text.as_str())),
        "problem": problems.get(&rule.id),
        "created_at": created_at,
        "updated_at": updated_at,
    })
}

fn one(catalog: &Catalog, kind: RuleKind, id: Uuid) -> Result<Json<Value>, Error> {
    let rules = catalog.rules();
    let found = rules.of(kind).zip(1..).find(|(rule, _)| rule.id == id);
    let (rule, position) = found.ok_or_else(|| Error::NotFound(format!("{kind} entry {id}")))?;
    Ok(Json(json!({ kind.as_str(): wire(&catalog.problems_of(&rules), rule, position) })))
}

/// Lists the keys of `extra_info` by which devices are grouped into pools, with their values and the number of devices
/// per value.
pub(super) async fn groups(State(records): State<Arc<Records>>) -> Json<Value> {
    let devices = records.devices();
    let mut keys = BTreeMap::<&str, BTreeMap<&str, usize>>::new();
    for (key, value) in devices.iter().flat_map(|device| device.facts.extra_info.iter()) {
        if is_grouping_key(key) {
            *keys.entry(key).or_default().entry(value).or_default() += 1;
        }
    }
    let value = |(value, count)| json!({ "value": value, "devices": count });
    let groups = keys.into_iter().map(
        |(key, values)| json!({ "key": key, "values": values.into_iter().map(value).collect::<Vec<_>>() }),
    );
    Json(json!({ GROUP: groups.collect::<Vec<_>>() }))
}

pub(super) async fn list(
    State(catalog): State<Arc<Catalog>>,
    Path(path): Path<KindPath>,
    uri: OriginalUri,
    headers: HeaderMap,
    pairs: Pairs,
) -> Result<Json<Value>, Fault> {
    let (kind, rules, page) = (kind(&path.kind)?, catalog.rules(), Page::alone(pairs)?);
    let mut entries: Vec<_> = rules.of(kind).zip(1..).collect();
    page.skip(&mut entries, |(rule, _), marker| rule.id.to_string().eq_ignore_ascii_case(marker))?;
    let (entries, links) = page.cut(entries, &uri, &headers, |(rule, _)| rule.id.to_string());
    let problems = catalog.problems_of(&rules);
    let entries: Vec<_> =
        entries.into_iter().map(|(rule, position)| wire(&problems, rule, position)).collect();
    let mut body = json!({ kind.as_str(): entries });
    if let Some(links) = links {
        body[format!("{kind}_links")] = links;
    }
    Ok(Json(body))
}

pub(super) async fn show(
    State(catalog): State<Arc<Catalog>>,
    Path(path): Path<EntryPath>,
) -> Result<Json<Value>, Fault> {
    let (kind, id) = path.parts()?;
    Ok(one(&catalog, kind, id)?)
}

/// Parses `{"<kind>": {…}}`, and returns the entry as JSON text.
fn entry(kind: RuleKind, headers: &HeaderMap, body: Result<Bytes, BytesRejection>) -> Result<String, Fault> {
    let example = match kind {
        RuleKind::Whitelist => r#"{"whitelist": {"vendor_id": "8086", "product_id": "10ca"}}"#,
        RuleKind::Alias => r#"{"alias": {"name": "a1", "vendor_id": "8086", "product_id": "10ca"}}"#,
        RuleKind::ExtraInfo => {
            r#"{"extra_info": {"match": {"address": "0000:3b:00.1"}, "values": {"switch": "tor-3"}}}"#
        }
    };
    let mut body: Map<String, Value> = read(headers, body, example)?;
    match (body.remove(kind.as_str()), body.keys().next()) {
        (Some(entry @ Value::Object(_)), None) => Ok(entry.to_string()),
        (Some(_), None) => {
            Err(Error::Invalid(format!("bad body: {kind} is not an object; send {example}")).into())
        }
        (_, Some(key)) => {
            Err(Error::Invalid(format!("bad body: unknown field `{key}`; send {example}")).into())
        }
        (None, None) => {
            Err(Error::Invalid(format!("bad body: missing field `{kind}`; send {example}")).into())
        }
    }
}

/// Parses `?force=true`, which allows a change of an entry that devices in use depend on.
fn force(Pairs(pairs): Pairs) -> Result<bool, Error> {
    let mut force = false;
    for (key, value) in pairs {
        force = match (key.as_str(), value.as_str()) {
            ("force", "true") => true,
            ("force", "false") => false,
            ("force", other) => {
                return Err(Error::Invalid(format!("invalid force {other}: expected true or false")));
            }
            (key, _) => return Err(Error::Invalid(format!("unknown query key {key}; known: force"))),
        };
    }
    Ok(force)
}

pub(super) async fn create(
    State(catalog): State<Arc<Catalog>>,
    Path(path): Path<KindPath>,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<(StatusCode, Json<Value>), Fault> {
    let kind = kind(&path.kind)?;
    let text = entry(kind, &headers, body)?;
    let id = catalog.change_rules(Change::Add { kind, text }, false).await?;
    Ok((StatusCode::CREATED, one(&catalog, kind, id)?))
}

pub(super) async fn replace(
    State(catalog): State<Arc<Catalog>>,
    Path(path): Path<EntryPath>,
    pairs: Pairs,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<Json<Value>, Fault> {
    let (kind, id) = path.parts()?;
    let force = force(pairs)?;
    let text = entry(kind, &headers, body)?;
    let id = catalog.change_rules(Change::Replace { kind, id, text }, force).await?;
    Ok(one(&catalog, kind, id)?)
}

pub(super) async fn delete(
    State(catalog): State<Arc<Catalog>>,
    Path(path): Path<EntryPath>,
    pairs: Pairs,
) -> Result<StatusCode, Fault> {
    let (kind, id) = path.parts()?;
    catalog.change_rules(Change::Remove { kind, id }, force(pairs)?).await?;
    Ok(StatusCode::NO_CONTENT)
}
