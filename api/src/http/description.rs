//! `openapi.json`: the description of the API in OpenAPI 3.1. It is made from the handlers, which say what they take and
//! return (`#[utoipa::path]`), and from the rules of the routes. `docs/openapi.json` is a copy.
//!
//! This file adds what all routes have in common: errors, identity, and that an answer has every key that may be null.

#[cfg(test)]
mod breaking;
mod links;

use std::collections::BTreeSet;
use std::sync::LazyLock;

use axum::http::header;
use axum::response::{IntoResponse as _, Response};
use serde::Serialize;
use serde_json::{Map, Value, json};
use utoipa::{OpenApi, ToSchema};

use super::policy::{self, Access};

/// The header of the description, and what all routes have in common.
const ABOUT: &str = include_str!("description.md");

#[derive(OpenApi)]
#[openapi(components(schemas(Fault, FaultReason, CyborgFault)))]
struct Header;

/// An error in Nova's form. The key is the name of the status, such as `badRequest` or `itemNotFound`.
#[derive(Serialize, ToSchema)]
#[allow(dead_code, reason = "`error.rs` writes this form with the key that the status has")]
struct Fault(std::collections::BTreeMap<String, FaultReason>);

/// What was wrong.
#[derive(Serialize, ToSchema)]
#[allow(dead_code, reason = "as `Fault`")]
struct FaultReason {
    /// The status code of the response.
    #[schema(minimum = 400, maximum = 599)]
    code: u16,
    /// What was wrong, and what to do next.
    message: String,
}

/// An error in Cyborg's form.
#[derive(Serialize, ToSchema)]
#[allow(dead_code, reason = "`cyborg` writes this form")]
struct CyborgFault {
    /// A JSON document inside a string, with the keys `faultcode` (`Client` or `Server`), `faultstring` (what was wrong,
    /// and what to do next) and `debuginfo` (null).
    error_message: String,
}

/// The errors that every route may answer with, or every one of a kind: their status, the name that refers to them, and
/// what they mean.
const ERRORS: [(u16, &str, &str); 18] = [
    (400, "BadRequest", "The request is not valid. The message says what is wrong and what to send instead."),
    (
        401,
        "Unauthorized",
        "The request does not show who calls, or what it shows is not valid. `WWW-Authenticate` says what the service \
         accepts.",
    ),
    (
        403,
        "Forbidden",
        "The rule of the route does not admit the caller, a quota is used up, or the request comes from a web page of \
         another origin.",
    ),
    (
        404,
        "NotFound",
        "What the path names does not exist, or belongs to a project that the caller may not see.",
    ),
    (406, "NotAcceptable", "The request asks for a microversion that is not supported."),
    (408, "RequestTimeout", "The body did not arrive in time."),
    (
        409,
        "Conflict",
        "The state of the server, the device or the record does not allow the request at present.",
    ),
    (413, "BodyTooLarge", "The body is larger than 64 KiB."),
    (414, "PathTooLong", "Path and query are longer than 8 KiB."),
    (415, "MediaType", "The body is not `application/json`."),
    (421, "Misdirected", "The `Host` header has a name that is not one of the service."),
    (422, "KeyReused", "The `Idempotency-Key` was used with another body before."),
    (
        429,
        "TooManyRequests",
        "The caller sends requests too fast. `Retry-After` says how many seconds to wait.",
    ),
    (431, "HeadersTooLarge", "The request has more than 64 headers, or more than 16 KiB of them."),
    (500, "Unexpected", "An error of the service. Its log has the cause, under the id of the request."),
    (501, "NotSupported", "libvirt or the host does not support what is needed."),
    (502, "Refused", "The hypervisor refused the request, or answered with a document that cannot be read."),
    (
        503,
        "Unavailable",
        "A host, the database or Keystone is away, or the service does too much already. When the request may be \
         repeated as it is, `Retry-After` says after how many seconds.",
    ),
];

/// Which of [`ERRORS`] an operation may answer with.
fn errors(method: &str, path: &str, open: bool, has_body: bool) -> Vec<u16> {
    let mut statuses = vec![400, 403, 414, 421, 431, 500];
    let mut add = |when: bool, more: &[u16]| statuses.extend(more.iter().filter(|_| when));
    add(!open, &[401, 429, 502, 503]);
    add(path.contains('{'), &[404]);
    add(path.starts_with("/v2") || path.starts_with("/accelerator/"), &[406]);
    let asks_hosts = ["/servers", "/os-hypervisors", "/os-pci", "/drift", "/accelerator"];
    add(method != "get" || asks_hosts.iter().any(|noun| path.contains(noun)), &[409, 501]);
    // A body of an operation without one is received as well, and then ignored.
    add(has_body || method != "get", &[408, 413, 415]);
    add(method == "post", &[422]);
    statuses.sort_unstable();
    statuses
}

/// The parameters of the list of accelerators that only its path under `/v1` has.
const OF_V1: [&str; 3] = ["sort_key", "sort_dir", "all_tenants"];

fn is_cyborg(path: &str) -> bool {
    path.starts_with("/accelerator/")
}

/// Returns the name of an operation that no other has: the noun of its tag, and the name of its handler.
fn operation_id(path: &str, operation: &Value) -> String {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let noun = text(&operation["tags"][0]).to_lowercase().replace(' ', "_").replace('\'', "");
    let version = if path.starts_with("/v1/") { "v1_" } else { "" };
    format!("{version}{noun}_{}", text(&operation["operationId"]))
}

/// Completes the description of an operation.
fn complete(method: &str, path: &str, operation: &mut Value) {
    let access = policy::access(method, path);
    let open = matches!(access, Some(Access::Open | Access::Details));
    operation["operationId"] = operation_id(path, operation).into();
    if let Some(Access::Rule(rule) | Access::InHandler(rule)) = access {
        operation["x-hotslot-rule"] = rule.into();
    }
    let shown = json!([{ "token": [] }, { "keystone": [] }, { "certificate": [] }, {}]);
    operation["security"] = if open { json!([{}]) } else { shown };
    if path == "/accelerators"
        && let Some(parameters) = operation.get_mut("parameters").and_then(Value::as_array_mut)
    {
        parameters.retain(|parameter| !OF_V1.iter().any(|name| parameter["name"] == *name));
    }
    let has_body = operation.get("requestBody").is_some();
    let (form, suffix) = if is_cyborg(path) { ("CyborgFault", "OfCyborg") } else { ("Fault", "") };
    let Some(responses) = operation["responses"].as_object_mut() else { return };
    for (status, response) in &mut *responses {
        if status.as_str() >= "400" && response.get("content").is_none() {
            response["content"] = fault_content(form);
        }
        response["headers"] =
            json!({ "X-OpenStack-Request-Id": { "$ref": "#/components/headers/RequestId" } });
    }
    let common = errors(method, path, open, has_body);
    for (status, name, _) in ERRORS.iter().filter(|(status, _, _)| common.contains(status)) {
        let reference = json!({ "$ref": format!("#/components/responses/{name}{suffix}") });
        responses.entry(status.to_string()).or_insert(reference);
    }
}

fn fault_content(form: &str) -> Value {
    json!({ "application/json": { "schema": { "$ref": format!("#/components/schemas/{form}") } } })
}

/// Returns the components that all operations refer to.
fn common_components() -> (Value, Value, Value) {
    let mut responses = Map::new();
    for (_, name, description) in ERRORS {
        for (form, suffix) in [("Fault", ""), ("CyborgFault", "OfCyborg")] {
            let response = json!({ "description": description, "content": fault_content(form) });
            responses.insert(format!("{name}{suffix}"), response);
        }
    }
    let headers = json!({ "RequestId": {
        "description": "The id of the request, by which the log of the service names it.",
        "schema": { "type": "string", "pattern": "^req-[0-9a-f-]{36}$" },
    } });
    let security = json!({
        "token": {
            "type": "http", "scheme": "bearer",
            "description": "A token of hotslot's own, where `[identity] tokens` names the file that has them.",
        },
        "keystone": {
            "type": "apiKey", "in": "header", "name": "X-Auth-Token",
            "description": "A token of Keystone, where `[identity.keystone]` is configured, or one of hotslot's own.",
        },
        "certificate": {
            "type": "mutualTLS",
            "description": "A client's certificate, where `[api] tls` has the authorities of clients.",
        },
    });
    (responses.into(), headers, security)
}

/// Adds to `found` the names of the schemas to which a part of the document refers, directly or by others.
fn referred(document: &Value, part: &Value, found: &mut BTreeSet<String>) {
    match part {
        Value::Object(members) => {
            if let Some(name) = members.get("$ref").and_then(Value::as_str)
                && let Some(name) = name.strip_prefix("#/components/schemas/")
                && found.insert(name.to_owned())
            {
                referred(document, &document["components"]["schemas"][name], found);
            }
            members.values().for_each(|member| referred(document, member, found));
        }
        Value::Array(items) => items.iter().for_each(|item| referred(document, item, found)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

/// The operations of a document, by method and path.
pub(super) fn operations(document: &Value) -> impl Iterator<Item = (&str, &str, &Value)> {
    let paths = document["paths"].as_object().into_iter().flatten();
    paths.flat_map(|(path, item)| {
        let operations = item.as_object().into_iter().flatten();
        operations.map(move |(method, operation)| (method.as_str(), path.as_str(), operation))
    })
}

/// Returns the description of a schema, or of the part of it that is not null.
pub(super) fn words(schema: &Value) -> &Value {
    let parts = ["oneOf", "anyOf"].iter().filter_map(|key| schema[key].as_array()).flatten();
    let of_part = parts.map(|part| &part["description"]).find(|words| words.is_string());
    if schema["description"].is_string() { &schema["description"] } else { of_part.unwrap_or(&Value::Null) }
}

fn may_be_null(schema: &Value) -> bool {
    let null = json!("null");
    schema["type"] == null
        || schema["type"].as_array().is_some_and(|types| types.contains(&null))
        || ["oneOf", "anyOf"].iter().any(|key| schema[key].as_array().into_iter().flatten().any(may_be_null))
}

/// Says of each object of an answer that it has the keys that may be null: they are written as null, and a key that may
/// be missing is never null.
fn require_nullable(schema: &mut Value) {
    let names = schema["properties"].as_object().into_iter().flatten();
    let names: Vec<_> = names.filter(|(_, of)| may_be_null(of)).map(|(name, _)| json!(name)).collect();
    if !names.is_empty() {
        let mut required = schema["required"].as_array().cloned().unwrap_or_default();
        required.extend(names);
        required.sort_by_key(Value::to_string);
        required.dedup();
        schema["required"] = required.into();
    }
    for key in ["oneOf", "anyOf", "allOf"] {
        schema.get_mut(key).and_then(Value::as_array_mut).into_iter().flatten().for_each(require_nullable);
    }
    if let Some(items) = schema.get_mut("items") {
        require_nullable(items);
    }
}

/// Writes the keys that one of several forms adds to an object as one form of the whole object. Generators of clients do
/// not read the other notation, an `allOf` of an object and a `oneOf`.
fn join_forms(schemas: &mut Map<String, Value>) {
    let joined = schemas.iter().filter_map(|(name, schema)| {
        let [choice, common] = schema["allOf"].as_array()?.as_slice() else { return None };
        let choice = choice["$ref"].as_str()?.strip_prefix("#/components/schemas/")?;
        let forms = schemas.get(choice)?.get("oneOf")?.as_array()?.iter().map(|form| {
            let mut form = form.clone();
            for (key, property) in common["properties"].as_object().into_iter().flatten() {
                form["properties"][key] = property.clone();
            }
            let required = common["required"].as_array().into_iter().flatten().cloned();
            let required: Vec<_> =
                form["required"].as_array().into_iter().flatten().cloned().chain(required).collect();
            form["required"] = required.into();
            form
        });
        let whole = json!({ "description": schema["description"], "oneOf": forms.collect::<Vec<_>>() });
        Some((name.clone(), choice.to_owned(), whole))
    });
    for (name, choice, schema) in joined.collect::<Vec<_>>() {
        schemas.insert(name, schema);
        schemas.remove(&choice);
    }
}

/// Returns the description of the API.
pub fn document() -> Value {
    let mut api = Header::openapi();
    api.merge(super::described().into_openapi());
    let mut document = serde_json::to_value(api).unwrap_or_default();
    document["info"] = json!({
        "title": "hotslot", "version": env!("CARGO_PKG_VERSION"), "description": ABOUT,
        "license": { "name": "Apache-2.0", "identifier": "Apache-2.0" },
    });
    document["servers"] = json!([{ "url": "/" }]);
    document["components"]["schemas"].as_object_mut().map(join_forms);
    for (path, item) in document["paths"].as_object_mut().into_iter().flatten() {
        for (method, operation) in item.as_object_mut().into_iter().flatten() {
            complete(method, path, operation);
        }
    }
    let (responses, headers, security) = common_components();
    for (key, value) in [("responses", responses), ("headers", headers), ("securitySchemes", security)] {
        document["components"][key] = value;
    }
    let mut answers = BTreeSet::new();
    for (_, _, operation) in operations(&document) {
        referred(&document, &operation["responses"], &mut answers);
    }
    links::add(&mut document);
    for (name, schema) in document["components"]["schemas"].as_object_mut().into_iter().flatten() {
        if answers.contains(name) {
            require_nullable(schema);
        }
    }
    document
}

/// The description as text.
static TEXT: LazyLock<String> = LazyLock::new(|| format!("{:#}\n", document()));

/// Returns this description.
#[utoipa::path(get, path = "/openapi.json", tag = "Description",
    responses((status = 200, description = "The description, in OpenAPI 3.1.", body = Object)))]
pub(super) async fn show() -> Response {
    ([(header::CONTENT_TYPE, "application/json")], TEXT.as_str()).into_response()
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    use super::*;

    /// Other names of described paths, each with the path whose description it shares.
    const ALIASES: [(&str, &str); 8] = [
        (" /accelerator", " /accelerators"),
        (" /device_profiles/", " /device_profiles"),
        (" /accelerator_requests/", " /accelerator_requests"),
        ("/acc_spec", "/acc_specs"),
        ("/program/{same}", "/program"),
        ("GET /v2/", "GET /v2"),
        ("GET /v2.1/", "GET /v2.1"),
        ("GET /v3/", "GET /v3"),
    ];

    fn docs() -> PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs")
    }

    /// Whether a summary is a sentence.
    fn is_sentence(text: &Value) -> bool {
        text.as_str().is_some_and(|text| text.len() > 5 && text.trim_end().ends_with('.'))
    }

    #[test]
    fn the_copy_of_the_description_is_true() {
        let file = docs().join("openapi.json");
        if std::env::var_os("HOTSLOT_RECORD").is_some() {
            std::fs::write(&file, &*TEXT).unwrap();
        }
        assert!(
            std::fs::read_to_string(&file).unwrap() == *TEXT,
            "docs/openapi.json differs from the description that the service gives; HOTSLOT_RECORD=1 writes it anew"
        );
    }

    #[test]
    fn every_route_is_described() {
        let document = document();
        let described: BTreeSet<_> = operations(&document)
            .map(|(method, path, _)| policy::named(method, path).expect("every described path has a rule"))
            .collect();
        let mut missing: Vec<_> =
            policy::routes().filter(|route| !described.contains(*route) && !route.contains(" /ui")).collect();
        missing.retain(|route| !ALIASES.iter().any(|(alias, _)| route.contains(alias)));
        assert!(missing.is_empty(), "not described: {missing:#?}");
    }

    #[test]
    fn everything_is_described_in_words() {
        let document = document();
        let mut wrong = Vec::new();
        let mut names = BTreeSet::new();
        for (method, path, operation) in operations(&document) {
            let what = format!("{method} {path}");
            if !is_sentence(&operation["summary"]) {
                wrong.push(format!("{what}: summary {}", operation["summary"]));
            }
            if !names.insert(operation["operationId"].to_string()) {
                wrong.push(format!("{what}: operationId {}", operation["operationId"]));
            }
            for parameter in operation["parameters"].as_array().into_iter().flatten() {
                if !is_sentence(&parameter["description"]) {
                    wrong.push(format!("{what}: parameter {parameter}"));
                }
            }
            for (status, response) in operation["responses"].as_object().unwrap() {
                if response.get("$ref").is_none() && !is_sentence(&response["description"]) {
                    wrong.push(format!("{what}: response {status}"));
                }
            }
            let named = path.split('{').skip(1).map(|rest| rest.split('}').next().unwrap());
            for name in named {
                let mut parameters = operation["parameters"].as_array().into_iter().flatten();
                if !parameters.any(|one| one["in"] == "path" && one["name"] == name) {
                    wrong.push(format!("{what}: no parameter {name}"));
                }
            }
        }
        for (name, schema) in document["components"]["schemas"].as_object().unwrap() {
            if !is_sentence(&schema["description"]) {
                wrong.push(format!("schema {name}"));
            }
            let alternatives = ["oneOf", "anyOf", "allOf"].iter().filter_map(|key| schema[key].as_array());
            for part in alternatives.flatten().chain([schema]) {
                for (key, property) in part["properties"].as_object().into_iter().flatten() {
                    if !is_sentence(words(property)) {
                        wrong.push(format!("schema {name}: {key}"));
                    }
                }
            }
        }
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    }

    #[test]
    fn requests_and_answers_share_no_type() {
        let document = document();
        let (mut requests, mut answers) = (BTreeSet::new(), BTreeSet::new());
        for (_, _, operation) in operations(&document) {
            referred(&document, &operation["requestBody"], &mut requests);
            referred(&document, &operation["responses"], &mut answers);
        }
        let shared = requests.intersection(&answers);
        let shared: Vec<_> = shared
            .filter(|name| {
                let schema = &document["components"]["schemas"][name.as_str()];
                let mut properties = schema["properties"].as_object().into_iter().flatten();
                properties.any(|(_, of)| may_be_null(of))
            })
            .collect();
        assert!(shared.is_empty(), "{shared:?}");
    }

    #[test]
    fn every_reference_leads_to_a_component() {
        fn check(document: &Value, part: &Value) {
            if let Some(name) = part["$ref"].as_str() {
                assert!(document.pointer(&name[1..]).is_some(), "{name}");
            }
            let members = part.as_object().into_iter().flat_map(|members| members.values());
            members.chain(part.as_array().into_iter().flatten()).for_each(|part| check(document, part));
        }
        let document = document();
        check(&document, &document);
    }
}
