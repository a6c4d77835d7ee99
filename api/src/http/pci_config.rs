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
use hotslot_service::inventory::{Catalog, Change, Preview, PreviewedFunction};
use hotslot_service::records::Records;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use super::body::{Link, Page, PageParams, Pairs, Path, id, links, not_listed, read, time};
use super::error::Fault;
use super::host_function::{self, HostFunction};
use super::schema;

/// The name of the read-only object that lists the keys by which devices are grouped into pools.
const GROUP: &str = "group";

/// The configuration objects.
#[derive(Serialize, ToSchema)]
pub(super) struct ObjectList {
    /// The objects, by name.
    pci_config: Vec<ConfigObject>,
}

/// A configuration object: a list of rules, or the read-only `group`.
#[derive(Serialize, ToSchema)]
struct ConfigObject {
    /// The name.
    name: String,
    /// The links to the object.
    links: Vec<Link>,
}

/// The keys of `extra_info` by which devices are grouped into pools.
#[derive(Serialize, ToSchema)]
pub(super) struct GroupList {
    /// The keys, in alphabetical order.
    group: Vec<GroupingKey>,
}

/// A key by which devices are grouped into pools.
#[derive(Serialize, ToSchema)]
struct GroupingKey {
    /// The key.
    key: String,
    /// Its values.
    values: Vec<GroupingValue>,
}

/// A value of a key by which devices are grouped into pools.
#[derive(Serialize, ToSchema)]
struct GroupingValue {
    /// The value.
    value: String,
    /// The number of devices that have it.
    devices: usize,
}

/// An entry of a list of rules.
#[derive(Serialize, ToSchema)]
#[schema(as = RuleEntry)]
pub(super) struct Entry {
    /// The id. A rule of the configuration file keeps it as long as its place and its text stay the same.
    id: Uuid,
    /// `file` for the configuration file, or `api`.
    source: &'static str,
    /// The place in the configuration file; null for a rule of the API.
    place: Option<String>,
    /// Whether the API cannot change it.
    read_only: bool,
    /// The position among the entries of its kind, from 1.
    #[schema(minimum = 1)]
    position: usize,
    /// The entry, as it was written.
    entry: Value,
    /// Why the entry is ignored; null when it counts.
    problem: Option<String>,
    /// When it was created; null for a rule of the configuration file.
    #[schema(value_type = Option<schema::Time>)]
    created_at: Option<String>,
    /// When it was replaced.
    #[schema(value_type = Option<schema::Time>)]
    updated_at: Option<String>,
}

/// One rule, under the name of its kind.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum RuleAnswer {
    /// An entry of the whitelist.
    Whitelist(Entry),
    /// An alias.
    Alias(Entry),
    /// An entry of `extra_info`.
    ExtraInfo(Entry),
}

impl RuleAnswer {
    fn new(kind: RuleKind, entry: Entry) -> Self {
        match kind {
            RuleKind::Whitelist => Self::Whitelist(entry),
            RuleKind::Alias => Self::Alias(entry),
            RuleKind::ExtraInfo => Self::ExtraInfo(entry),
        }
    }
}

/// A page of a list of rules, under the name of their kind.
#[derive(Serialize, ToSchema)]
#[serde(untagged)]
pub(super) enum RuleList {
    /// Entries of the whitelist.
    Whitelist {
        /// The entries, in the order in which they count.
        whitelist: Vec<Entry>,
        /// The link to the next page; missing on the last page.
        #[serde(skip_serializing_if = "Option::is_none")]
        #[schema(value_type = Vec<Link>)]
        whitelist_links: Option<Vec<Link>>,
    },
    /// Aliases.
    Alias {
        /// The aliases, in the order in which they count.
        alias: Vec<Entry>,
        /// The link to the next page; missing on the last page.
        #[serde(skip_serializing_if = "Option::is_none")]
        #[schema(value_type = Vec<Link>)]
        alias_links: Option<Vec<Link>>,
    },
    /// Entries of `extra_info`.
    ExtraInfo {
        /// The entries, in the order in which they count.
        extra_info: Vec<Entry>,
        /// The link to the next page; missing on the last page.
        #[serde(skip_serializing_if = "Option::is_none")]
        #[schema(value_type = Vec<Link>)]
        extra_info_links: Option<Vec<Link>>,
    },
}

impl RuleList {
    fn new(kind: RuleKind, entries: Vec<Entry>, links: Option<Vec<Link>>) -> Self {
        match kind {
            RuleKind::Whitelist => Self::Whitelist { whitelist: entries, whitelist_links: links },
            RuleKind::Alias => Self::Alias { alias: entries, alias_links: links },
            RuleKind::ExtraInfo => Self::ExtraInfo { extra_info: entries, extra_info_links: links },
        }
    }
}

/// A new rule, under the name of its kind. hotslot.example.toml explains the keys of each kind.
#[derive(ToSchema)]
#[schema(rename_all = "snake_case")]
#[allow(dead_code, reason = "the description of the API is made from it; `entry` reads the body")]
enum NewRule {
    /// An entry of the whitelist: Nova's `device_spec`.
    Whitelist(RuleKeys),
    /// An alias, as Nova's `alias`.
    Alias(RuleKeys),
    /// An entry of `extra_info`: which devices get which values.
    ExtraInfo(RuleKeys),
}

/// The keys of a new rule.
#[derive(ToSchema)]
#[allow(dead_code, reason = "as `NewRule`")]
struct RuleKeys(BTreeMap<String, Value>);

/// Lists the names of the configuration objects. An extension of hotslot.
#[utoipa::path(get, path = "/os-pci-config", tag = "Rules",
    operation_id = "list_objects",
    responses((status = 200, description = "The names.", body = ObjectList)))]
pub(super) async fn names(uri: OriginalUri, headers: HeaderMap) -> Json<ObjectList> {
    let mut names: Vec<_> = RuleKind::ALL.iter().map(|kind| kind.as_str()).chain([GROUP]).collect();
    names.sort_unstable();
    let object = |name: &str| ConfigObject {
        name: name.to_owned(),
        links: links(&headers, &uri, "os-pci-config", name),
    };
    Json(ObjectList { pci_config: names.into_iter().map(object).collect() })
}

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Path)]
pub(super) struct KindPath {
    /// The kind of the rules.
    #[param(value_type = schema::RuleKindName, inline)]
    kind: String,
}

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Path)]
pub(super) struct EntryPath {
    /// The kind of the rule.
    #[param(value_type = schema::RuleKindName, inline)]
    kind: String,
    /// The id of the rule.
    entry_id: String,
}

/// The query of a new rule.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[allow(dead_code, reason = "the description of the API is made from it; `Options` reads the keys")]
struct PreviewQuery {
    /// Whether to check the entry only, and to return the functions that it matches.
    dry_run: Option<bool>,
}

/// The query of a change.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
#[allow(dead_code, reason = "as `PreviewQuery`")]
struct ForceQuery {
    /// Whether an entry may change on which devices in use depend.
    force: Option<bool>,
}

/// What a change of the rules would do.
#[derive(Serialize, ToSchema)]
pub(super) struct PreviewAnswer {
    /// What it would do.
    preview: RulePreview,
}

/// What a change of the rules would do.
#[derive(Serialize, ToSchema)]
struct RulePreview {
    /// The number of functions that the entry matches.
    #[schema(minimum = 0)]
    count: usize,
    /// The functions that the entry matches, by host and address, at most 1000.
    #[schema(max_items = 1000)]
    pci_devices: Vec<PreviewedDevice>,
    /// The devices in use that would no longer be listed, in words. Such a change needs `force=true`.
    withdrawn: Vec<String>,
}

/// A function that an entry matches.
#[derive(Serialize, ToSchema)]
struct PreviewedDevice {
    /// What the list of functions has.
    #[serde(flatten)]
    function: HostFunction,
    /// Whether the entry has an effect on it: for the whitelist, that no earlier entry decides; for the others, that the
    /// function is assignable.
    counts: bool,
}

/// The rule, or what a change would do.
#[derive(Serialize, ToSchema)]
#[serde(untagged)]
pub(super) enum ChangeAnswer {
    /// The rule.
    Rule(RuleAnswer),
    /// What the change would do, for `dry_run=true`.
    Preview(PreviewAnswer),
}

/// The maximum number of functions in a preview.
const PREVIEWED: usize = 1000;

async fn preview(catalog: &Catalog, records: &Records, change: &Change) -> Result<Json<ChangeAnswer>, Error> {
    let Preview { functions, withdrawn } = catalog.preview_rules(change)?;
    let mut shown = Vec::new();
    let first = &functions[..functions.len().min(PREVIEWED)];
    for of_host in first.chunk_by(|one, next| one.host.row.id == next.host.row.id) {
        let host = &of_host[0].host;
        let availability = catalog.availability(host).await?;
        let rows = records.devices_of(host.row.id);
        for PreviewedFunction { address, counts, .. } in of_host {
            // A function that has gone in between is left out.
            let Some(function) = availability.functions.get(address) else { continue };
            let row = rows.binary_search_by_key(address, |row| row.facts.address).ok().map(|at| &rows[at]);
            let (foreign, guard) = (availability.foreign.get(address), availability.guard(*address));
            let function = host_function::describe(host, function, row, foreign, guard);
            shown.push(PreviewedDevice { function, counts: *counts });
        }
    }
    let preview = RulePreview { count: functions.len(), pci_devices: shown, withdrawn };
    Ok(Json(ChangeAnswer::Preview(PreviewAnswer { preview })))
}

impl EntryPath {
    fn parts(&self) -> Result<(RuleKind, Uuid), Error> {
        let kind = kind(&self.kind)?;
        Ok((kind, id(&self.entry_id).ok_or_else(|| no_entry(kind, &self.entry_id))?))
    }
}

fn no_entry(kind: RuleKind, id: &str) -> Error {
    let list = match kind {
        RuleKind::Whitelist => "os-pci-config/whitelist",
        RuleKind::Alias => "os-pci-config/alias",
        RuleKind::ExtraInfo => "os-pci-config/extra_info",
    };
    not_listed(&format!("{} entry", kind.option()), id, list)
}

fn kind(name: &str) -> Result<RuleKind, Error> {
    name.parse().map_err(|_| {
        let name: String = name.chars().take(80).collect();
        Error::NotFound(format!("configuration object {name} (known: whitelist, alias, extra_info, group)"))
    })
}

/// Returns an entry. `position` is its position among the entries of its kind, from 1.
fn shown(problems: &BTreeMap<Uuid, String>, rule: &Rule, position: usize) -> Entry {
    let (source, place, created_at, updated_at) = match &rule.source {
        Source::File { place } => ("file", Some(place.clone()), None, None),
        Source::Api { created_at, updated_at } => {
            ("api", None, Some(time(*created_at)), updated_at.map(time))
        }
    };
    Entry {
        id: rule.id,
        source,
        place,
        read_only: rule.is_of_file(),
        position,
        entry: serde_json::from_str(&rule.text).unwrap_or_else(|_| Value::from(rule.text.as_str())),
        problem: problems.get(&rule.id).cloned(),
        created_at,
        updated_at,
    }
}

fn one(catalog: &Catalog, kind: RuleKind, id: Uuid) -> Result<RuleAnswer, Error> {
    let rules = catalog.rules();
    let found = rules.of(kind).zip(1..).find(|(rule, _)| rule.id == id);
    let (rule, position) = found.ok_or_else(|| no_entry(kind, &id.to_string()))?;
    Ok(RuleAnswer::new(kind, shown(&catalog.problems_of(&rules), rule, position)))
}

/// Lists the keys of `extra_info` by which devices are grouped into pools, with their values and the number of devices
/// per value. An extension of hotslot.
#[utoipa::path(get, path = "/os-pci-config/group", tag = "Rules",
    operation_id = "list_groups",
    responses((status = 200, description = "The keys.", body = GroupList)))]
pub(super) async fn groups(State(records): State<Arc<Records>>) -> Json<GroupList> {
    let devices = records.devices();
    let mut keys = BTreeMap::<&str, BTreeMap<&str, usize>>::new();
    for (key, value) in devices.iter().flat_map(|device| device.facts.extra_info.iter()) {
        if is_grouping_key(key) {
            *keys.entry(key).or_default().entry(value).or_default() += 1;
        }
    }
    let value = |(value, devices): (&str, usize)| GroupingValue { value: value.to_owned(), devices };
    let key = |(key, values): (&str, BTreeMap<&str, usize>)| GroupingKey {
        key: key.to_owned(),
        values: values.into_iter().map(value).collect(),
    };
    Json(GroupList { group: keys.into_iter().map(key).collect() })
}

/// Lists the rules of a kind, in the order in which they count. An extension of hotslot.
#[utoipa::path(get, path = "/os-pci-config/{kind}", tag = "Rules", params(KindPath, PageParams),
    responses((status = 200, description = "A page of the list.", body = RuleList)))]
pub(super) async fn list(
    State(catalog): State<Arc<Catalog>>,
    Path(path): Path<KindPath>,
    uri: OriginalUri,
    headers: HeaderMap,
    pairs: Pairs,
) -> Result<Json<RuleList>, Fault> {
    let (kind, rules, page) = (kind(&path.kind)?, catalog.rules(), Page::alone(pairs)?);
    let mut entries: Vec<_> = rules.of(kind).zip(1..).collect();
    page.skip(&mut entries, |(rule, _), marker| rule.id.to_string().eq_ignore_ascii_case(marker))?;
    let (entries, links) = page.cut(entries, &uri, &headers, |(rule, _)| rule.id.to_string());
    let problems = catalog.problems_of(&rules);
    let entries = entries.into_iter().map(|(rule, position)| shown(&problems, rule, position)).collect();
    Ok(Json(RuleList::new(kind, entries, links)))
}

/// Shows a rule. An extension of hotslot.
#[utoipa::path(get, path = "/os-pci-config/{kind}/{entry_id}", tag = "Rules", params(EntryPath),
    responses((status = 200, description = "The rule.", body = RuleAnswer)))]
pub(super) async fn show(
    State(catalog): State<Arc<Catalog>>,
    Path(path): Path<EntryPath>,
) -> Result<Json<RuleAnswer>, Fault> {
    let (kind, id) = path.parts()?;
    Ok(Json(one(&catalog, kind, id)?))
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
            Err(Error::Invalid(format!("bad body: unknown key `{key}`; known: {kind}; send {example}"))
                .into())
        }
        (None, None) => {
            Err(Error::Invalid(format!("bad body: the key `{kind}` is missing; send {example}")).into())
        }
    }
}

/// The options of a change, which the query has.
#[derive(Default)]
struct Options {
    /// Whether an entry may change that devices in use depend on.
    force: bool,
    /// Whether nothing is to be changed.
    dry_run: bool,
}

impl Options {
    /// Reads those that a route has.
    fn read(Pairs(pairs): Pairs, known: &[&str]) -> Result<Self, Error> {
        let mut options = Self::default();
        for (key, value) in pairs {
            let value = match value.as_str() {
                "true" => true,
                "false" => false,
                other => {
                    return Err(Error::Invalid(format!("invalid {key} {other}: expected true or false")));
                }
            };
            match key.as_str() {
                "force" if known.contains(&"force") => options.force = value,
                "dry_run" if known.contains(&"dry_run") => options.dry_run = value,
                key => {
                    let known = known.join(", ");
                    return Err(Error::Invalid(format!("unknown query key {key}; known: {known}")));
                }
            }
        }
        Ok(options)
    }
}

/// Adds a rule after those that there are. An extension of hotslot.
#[utoipa::path(post, path = "/os-pci-config/{kind}", tag = "Rules", params(KindPath, PreviewQuery),
    request_body(content = NewRule, example = json!({ "alias": { "name": "one", "vendor_id": "8086", "product_id": "10ca" } })),
    responses(
        (status = 200, description = "What the rule would do, for `dry_run=true`.", body = PreviewAnswer),
        (status = 201, description = "The rule.", body = RuleAnswer),
    ))]
pub(super) async fn create(
    State(catalog): State<Arc<Catalog>>,
    State(records): State<Arc<Records>>,
    Path(path): Path<KindPath>,
    pairs: Pairs,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<(StatusCode, Json<ChangeAnswer>), Fault> {
    let kind = kind(&path.kind)?;
    let Options { dry_run, .. } = Options::read(pairs, &["dry_run"])?;
    let change = Change::Add { kind, text: entry(kind, &headers, body)? };
    if dry_run {
        return Ok((StatusCode::OK, preview(&catalog, &records, &change).await?));
    }
    let id = catalog.change_rules(change, false).await?;
    Ok((StatusCode::CREATED, Json(ChangeAnswer::Rule(one(&catalog, kind, id)?))))
}

/// Replaces the text of a rule of the API. An extension of hotslot.
#[utoipa::path(put, path = "/os-pci-config/{kind}/{entry_id}", tag = "Rules",
    params(EntryPath, ForceQuery, PreviewQuery),
    request_body(content = NewRule, example = json!({ "alias": { "name": "one", "vendor_id": "8086", "product_id": "10d3" } })),
    responses((status = 200, description = "The rule, or what it would do, for `dry_run=true`.", body = ChangeAnswer)))]
pub(super) async fn replace(
    State(catalog): State<Arc<Catalog>>,
    State(records): State<Arc<Records>>,
    Path(path): Path<EntryPath>,
    pairs: Pairs,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<Json<ChangeAnswer>, Fault> {
    let (kind, id) = path.parts()?;
    let Options { force, dry_run } = Options::read(pairs, &["force", "dry_run"])?;
    let change = Change::Replace { kind, id, text: entry(kind, &headers, body)? };
    if dry_run {
        return Ok(preview(&catalog, &records, &change).await?);
    }
    let id = catalog.change_rules(change, force).await?;
    Ok(Json(ChangeAnswer::Rule(one(&catalog, kind, id)?)))
}

/// Removes a rule of the API. An extension of hotslot.
#[utoipa::path(delete, path = "/os-pci-config/{kind}/{entry_id}", tag = "Rules", params(EntryPath, ForceQuery),
    responses((status = 204, description = "The rule is removed.")))]
pub(super) async fn delete(
    State(catalog): State<Arc<Catalog>>,
    Path(path): Path<EntryPath>,
    pairs: Pairs,
) -> Result<StatusCode, Fault> {
    let (kind, id) = path.parts()?;
    let Options { force, .. } = Options::read(pairs, &["force"])?;
    catalog.change_rules(Change::Remove { kind, id }, force).await?;
    Ok(StatusCode::NO_CONTENT)
}
