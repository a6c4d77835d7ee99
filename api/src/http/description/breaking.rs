//! What a change of the description breaks for clients of an earlier one.

use std::collections::BTreeSet;

use serde_json::Value;

use super::{operations, referred};

fn strings(value: &Value) -> BTreeSet<&str> {
    value.as_array().into_iter().flatten().filter_map(Value::as_str).collect()
}

/// Returns the types that a schema admits; empty when it admits all.
fn types(schema: &Value) -> BTreeSet<&str> {
    schema["type"].as_str().map_or_else(|| strings(&schema["type"]), |one| BTreeSet::from([one]))
}

/// Compares a schema of answers or of requests. In an answer nothing may be missing that was there, and nothing may be new
/// that a client does not expect; in a request it is the other way round.
fn schema(place: &str, (old, new): (&Value, &Value), of_answer: bool, found: &mut Vec<String>) {
    if old.get("$ref") != new.get("$ref") {
        found.push(format!("{place}: refers to another schema"));
        return;
    }
    let (before, after) = (types(old), types(new));
    let (few, many) = if of_answer { (&after, &before) } else { (&before, &after) };
    if !many.is_empty() && (few.is_empty() || !few.is_subset(many)) {
        found.push(format!("{place}: the type was {before:?} and is {after:?}"));
    }
    let (words, now) = (strings(&old["enum"]), strings(&new["enum"]));
    if !of_answer && !now.is_empty() && (words.is_empty() || !words.is_subset(&now)) {
        found.push(format!("{place}: fewer words are accepted"));
    }
    let (required, now) = (strings(&old["required"]), strings(&new["required"]));
    for key in if of_answer { required.difference(&now) } else { now.difference(&required) } {
        let change = if of_answer { "may be missing now" } else { "is required now" };
        found.push(format!("{place}: {key} {change}"));
    }
    for (key, of) in old["properties"].as_object().into_iter().flatten() {
        match new["properties"].get(key) {
            Some(now) => schema(&format!("{place}: {key}"), (of, now), of_answer, found),
            None => found.push(format!("{place}: {key} is gone")),
        }
    }
    if old.get("items").is_some() {
        schema(&format!("{place}: items"), (&old["items"], &new["items"]), of_answer, found);
    }
    for key in ["oneOf", "anyOf", "allOf"] {
        let parts = old[key].as_array().into_iter().flatten();
        for (index, part) in parts.enumerate() {
            schema(&format!("{place}: {key} {index}"), (part, &new[key][index]), of_answer, found);
        }
    }
}

/// Compares what an operation takes and answers.
fn operation(place: &str, old: &Value, new: &Value, found: &mut Vec<String>) {
    let parameters = |of: &Value| of["parameters"].as_array().cloned().unwrap_or_default();
    let same = |a: &Value, b: &Value| a["name"] == b["name"] && a["in"] == b["in"];
    for parameter in parameters(old) {
        match parameters(new).iter().find(|one| same(one, &parameter)) {
            Some(now) => {
                let place = format!("{place}: parameter {}", parameter["name"]);
                schema(&place, (&parameter["schema"], &now["schema"]), false, found);
            }
            None => found.push(format!("{place}: parameter {} is gone", parameter["name"])),
        }
    }
    for parameter in parameters(new).iter().filter(|one| one["required"] == true) {
        if !parameters(old).iter().any(|one| same(one, parameter) && one["required"] == true) {
            found.push(format!("{place}: parameter {} is required now", parameter["name"]));
        }
    }
    let body = |of: &Value| of["requestBody"]["content"]["application/json"]["schema"].clone();
    schema(&format!("{place}: body"), (&body(old), &body(new)), false, found);
    for (status, response) in old["responses"].as_object().into_iter().flatten() {
        let now = &new["responses"][status];
        if status.starts_with('2') && now.is_null() {
            found.push(format!("{place}: {status} is gone"));
        }
        for (kind, of) in response["content"].as_object().into_iter().flatten() {
            let place = format!("{place}: {status} {kind}");
            schema(&place, (&of["schema"], &now["content"][kind]["schema"]), true, found);
        }
    }
    if old["x-hotslot-rule"] != new["x-hotslot-rule"] {
        found.push(format!("{place}: another rule admits callers"));
    }
}

/// Returns what a client that was made for the description `old` cannot use under `new`.
pub(super) fn changes(old: &Value, new: &Value) -> Vec<String> {
    let mut found = Vec::new();
    for (method, path, of) in operations(old) {
        let place = format!("{} {path}", method.to_uppercase());
        match new["paths"][path].get(method) {
            Some(now) => operation(&place, of, now, &mut found),
            None => found.push(format!("{place} is gone")),
        }
    }
    let (mut requests, mut answers) = (BTreeSet::new(), BTreeSet::new());
    for (_, _, of) in operations(old) {
        referred(old, &of["requestBody"], &mut requests);
        referred(old, &of["parameters"], &mut requests);
        referred(old, &of["responses"], &mut answers);
    }
    for (names, of_answer) in [(requests, false), (answers, true)] {
        for name in names {
            let of = |document: &Value| document["components"]["schemas"][&name].clone();
            schema(&format!("schema {name}"), (&of(old), &of(new)), of_answer, &mut found);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::super::document;
    use super::*;

    /// Changes the description at a place, and returns what that breaks.
    fn after(pointer: &str, change: impl FnOnce(&mut Value)) -> Vec<String> {
        let old = document();
        let mut new = old.clone();
        change(new.pointer_mut(pointer).unwrap());
        changes(&old, &new)
    }

    fn without(key: &str) -> impl FnOnce(&mut Value) {
        move |of| drop(of.as_object_mut().unwrap().remove(key).unwrap())
    }

    #[test]
    fn nothing_that_the_last_release_described_is_broken() {
        let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/released/openapi.json");
        let released = std::fs::read_to_string(file).unwrap();
        let broken = changes(&serde_json::from_str(&released).unwrap(), &document());
        assert!(broken.is_empty(), "docs/compatibility.md promises otherwise:\n{}", broken.join("\n"));
    }

    #[test]
    fn what_breaks_a_client_is_found() {
        for (pointer, key) in [
            ("/paths", "/v2.1/os-pci"),
            ("/paths/~1v2.1~1os-pci~1{device_id}", "get"),
            ("/paths/~1v2.1~1os-pci~1{device_id}/get/responses", "200"),
            ("/components/schemas/PciDevice/properties", "address"),
            ("/components/schemas/PciDevice", "required"),
        ] {
            assert!(!after(pointer, without(key)).is_empty(), "{pointer} {key}");
        }
        let of_type = |kind: &'static str| move |of: &mut Value| of["type"] = kind.into();
        assert!(!after("/components/schemas/PciDevice/properties/label", of_type("integer")).is_empty());
        let of_request = |of: &mut Value| of["required"] = serde_json::json!(["pciAttachment", "dry_run"]);
        assert!(!after("/components/schemas/NewPciAttachments", of_request).is_empty());
        let of_query = |of: &mut Value| of["required"] = true.into();
        assert!(!after("/paths/~1v2.1~1os-pci/get/parameters/0", of_query).is_empty());
    }

    #[test]
    fn what_is_added_breaks_nothing() {
        let add = |of: &mut Value| of["new"] = serde_json::json!({ "type": "string" });
        assert_eq!(after("/components/schemas/PciDevice/properties", add), Vec::<String>::new());
        let text = |of: &mut Value| of["description"] = "another text".into();
        assert_eq!(after("/components/schemas/PciDevice", text), Vec::<String>::new());
    }
}
