//! Whether responses are as `docs/openapi.json` describes them.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::LazyLock;

use serde_json::Value;

/// The description of the API.
static DESCRIPTION: LazyLock<Value> = LazyLock::new(|| {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/openapi.json");
    let text = std::fs::read_to_string(&file).expect("docs/openapi.json");
    serde_json::from_str(&text).expect("docs/openapi.json is JSON")
});

/// Returns the path under the prefix that the description has.
fn described(path: &str) -> String {
    let path = path.split('?').next().unwrap_or(path);
    let below = |prefix: &str| path.strip_prefix(prefix).filter(|rest| rest.starts_with('/'));
    let of_cyborg = ["device_profiles", "accelerator_requests", "devices", "deployables", "attributes"];
    let path = if let Some(rest) = below("/v3") {
        format!("/v2.1{rest}")
    } else if let Some((_, rest)) = below("/v2").and_then(|rest| rest[1..].split_once('/')) {
        format!("/v2.1/{rest}")
    } else if ["/drift", "/events", "/service", "/webhooks"]
        .iter()
        .any(|noun| path == *noun || path.starts_with(&format!("{noun}/")))
    {
        format!("/v2.1{path}")
    } else if below("/accelerator")
        .is_some_and(|rest| of_cyborg.iter().any(|noun| rest[1..].starts_with(noun)))
    {
        format!("/accelerator/v2{}", &path["/accelerator".len()..])
    } else if path.starts_with("/accelerator/v2") || path == "/accelerator/" || path.contains("/accelerators")
    {
        path.to_owned()
    } else {
        path.replacen("/accelerator", "/accelerators", 1)
    };
    let path = if path.ends_with("/acc_spec") { path + "s" } else { path };
    let path =
        path.split_once("/program/").map_or(path.clone(), |(deployable, _)| format!("{deployable}/program"));
    let bare = path.trim_end_matches('/');
    if bare.is_empty() || path == "/accelerator/" || bare == "/accelerator/v2" {
        return if bare == "/accelerator/v2" { "/accelerator/v2/".to_owned() } else { path };
    }
    bare.to_owned()
}

/// Returns the description of an operation.
fn operation(method: &str, path: &str) -> Option<&'static Value> {
    let path = described(path);
    let matches = |template: &str| {
        let (parts, segments): (Vec<_>, Vec<_>) = (template.split('/').collect(), path.split('/').collect());
        parts.len() == segments.len()
            && parts.iter().zip(segments).all(|(part, segment)| part.starts_with('{') || *part == segment)
    };
    let paths = DESCRIPTION["paths"].as_object()?;
    // A path without parameters counts before one with them, as in the router.
    let exact = paths.get(&path);
    let items =
        exact.into_iter().chain(paths.iter().filter(|(template, _)| matches(template)).map(|(_, item)| item));
    items.filter_map(|item| item.get(method.to_lowercase())).next()
}

fn resolved(schema: &'static Value) -> &'static Value {
    let name = schema["$ref"].as_str().and_then(|name| name.strip_prefix('#'));
    name.map_or(schema, |name| DESCRIPTION.pointer(name).unwrap_or_else(|| panic!("no component {name}")))
}

fn is_of(kind: &str, value: &Value) -> bool {
    match kind {
        "null" => value.is_null(),
        "boolean" => value.is_boolean(),
        "integer" => value.is_i64() || value.is_u64(),
        "number" => value.is_number(),
        "string" => value.is_string(),
        "array" => value.is_array(),
        "object" => value.is_object(),
        other => panic!("the description has the type {other}"),
    }
}

/// Collects the keys that a schema describes; `false` when it admits others too.
fn keys(schema: &'static Value, known: &mut BTreeSet<&'static str>) -> bool {
    let schema = resolved(schema);
    known.extend(schema["properties"].as_object().into_iter().flatten().map(|(key, _)| key.as_str()));
    let parts = ["allOf", "oneOf", "anyOf"].iter().filter_map(|key| schema[key].as_array()).flatten();
    let closed: Vec<_> = parts.map(|part| keys(part, known)).collect();
    closed.into_iter().all(|closed| closed) && schema.get("additionalProperties").is_none()
}

/// Collects where a value is not as its schema says, and which keys it has that the schema does not describe.
fn check(place: &str, schema: &'static Value, value: &Value, found: &mut Vec<String>) {
    check_part(place, schema, value, found);
    let mut known = BTreeSet::new();
    if keys(schema, &mut known) && !known.is_empty() {
        for key in value.as_object().into_iter().flatten().map(|(key, _)| key) {
            if !known.contains(key.as_str()) {
                found.push(format!("{place}: {key} is not described"));
            }
        }
    }
}

/// Collects where a value is not as a part of its schema says. It reads the keywords that the description uses for answers.
fn check_part(place: &str, schema: &'static Value, value: &Value, found: &mut Vec<String>) {
    let schema = resolved(schema);
    let kinds: Vec<_> = match schema["type"].as_array() {
        Some(kinds) => kinds.iter().filter_map(Value::as_str).collect(),
        None => schema["type"].as_str().into_iter().collect(),
    };
    if !kinds.is_empty() && !kinds.iter().any(|kind| is_of(kind, value)) {
        found.push(format!("{place}: {value} is not of type {}", kinds.join(" or ")));
        return;
    }
    if let Some(words) = schema["enum"].as_array().filter(|words| !words.contains(value)) {
        found.push(format!("{place}: {value} is none of {words:?}"));
    }
    for part in schema["allOf"].as_array().into_iter().flatten() {
        check_part(place, part, value, found);
    }
    for key in ["oneOf", "anyOf"] {
        let Some(parts) = schema[key].as_array() else { continue };
        let outcomes = parts.iter().map(|part| {
            let mut wrong = Vec::new();
            check_part(place, part, value, &mut wrong);
            wrong
        });
        let outcomes: Vec<_> = outcomes.collect();
        let fitting = outcomes.iter().filter(|wrong| wrong.is_empty()).count();
        if fitting == 0 {
            found.push(format!("{place}: none of {key} fits: {outcomes:?}"));
        } else if key == "oneOf" && fitting > 1 {
            found.push(format!("{place}: {fitting} of oneOf fit"));
        }
    }
    if let Value::Object(members) = value {
        for key in schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str) {
            if !members.contains_key(key) {
                found.push(format!("{place}: {key} is missing"));
            }
        }
        for (key, value) in members {
            let of = schema["properties"].get(key).or_else(|| schema.get("additionalProperties"));
            if let Some(of) = of.filter(|of| of.is_object()) {
                check(&format!("{place}.{key}"), of, value, found);
            }
        }
    }
    if let (Value::Array(items), Some(of)) = (value, schema.get("items").filter(|of| of.is_object())) {
        for (index, item) in items.iter().enumerate() {
            check(&format!("{place}[{index}]"), of, item, found);
        }
    }
}

/// Returns in what a response is not as the description says.
pub fn problems(method: &str, path: &str, status: u16, body: &Value) -> Vec<String> {
    let Some(operation) = operation(method, path) else {
        return vec![format!("{method} {path} is not described")];
    };
    let Some(response) = operation["responses"].get(status.to_string()) else {
        return vec![format!("{method} {path}: the status {status} is not described: {body}")];
    };
    let response = resolved(response);
    let schema = &response["content"]["application/json"]["schema"];
    let mut found = Vec::new();
    match (schema.is_object(), body) {
        (true, body) => check(&format!("{method} {path} {status}"), schema, body, &mut found),
        (false, Value::Null) => {}
        (false, _) if response["content"].is_object() => {}
        (false, body) => {
            found.push(format!("{method} {path}: {status} has the body {body}, and none is described"))
        }
    }
    found
}
