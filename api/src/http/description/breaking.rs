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
    if !of_answer {
        found.extend(tightened(old, new).into_iter().map(|reason| format!("{place}: {reason}")));
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
    for key in ["items", "additionalProperties"] {
        if old[key].is_object() {
            schema(&format!("{place}: {key}"), (&old[key], &new[key]), of_answer, found);
        }
    }
    for key in ["oneOf", "anyOf"] {
        alternatives(&format!("{place}: {key}"), (&old[key], &new[key]), of_answer, found);
    }
    let parts = |of: &Value| of["allOf"].as_array().cloned().unwrap_or_default();
    let (before, after) = (parts(old), parts(new));
    let changed = if of_answer { after.len() < before.len() } else { after.len() > before.len() };
    if changed {
        found.push(format!("{place}: allOf had {} parts and has {}", before.len(), after.len()));
    }
    for (index, (part, now)) in before.iter().zip(&after).enumerate() {
        schema(&format!("{place}: allOf {index}"), (part, now), of_answer, found);
    }
}

/// Compares the alternatives of a schema: each that a request could have, and each that an answer can have now, must be
/// one of the other description too.
fn alternatives(place: &str, (old, new): (&Value, &Value), of_answer: bool, found: &mut Vec<String>) {
    let all = |of: &Value| of.as_array().cloned();
    let (Some(before), Some(after)) = (all(old), all(new)) else {
        let limits = if of_answer { (old, "were") } else { (new, "are") };
        if limits.0.is_array() {
            found.push(format!("{place}: alternatives {} given", limits.1));
        }
        return;
    };
    let fits = |part: &Value, now: &Value| {
        let mut reasons = Vec::new();
        schema(place, (part, now), of_answer, &mut reasons);
        reasons.is_empty()
    };
    if of_answer {
        let unknown = after.iter().filter(|now| !before.iter().any(|part| fits(part, now)));
        found.extend(unknown.map(|now| format!("{place}: an answer can be {now} now")));
    } else {
        let gone = before.iter().filter(|part| !after.iter().any(|now| fits(part, now)));
        found.extend(gone.map(|part| format!("{place}: {part} is not accepted any more")));
    }
}

/// Returns the keywords by which a schema of requests admits less than it did.
fn tightened(old: &Value, new: &Value) -> Vec<String> {
    let mut found = Vec::new();
    let (words, now) = (strings(&old["enum"]), strings(&new["enum"]));
    if !now.is_empty() && (words.is_empty() || !words.is_subset(&now)) {
        found.push("fewer words are accepted".to_owned());
    }
    let mut changed = |key: &str, less: bool| {
        if less {
            found.push(format!("{key} was {} and is {}", old[key], new[key]));
        }
    };
    let number = |of: &Value| of.as_f64();
    for key in ["maximum", "exclusiveMaximum", "maxLength", "maxItems", "maxProperties"] {
        let less = number(&new[key]).is_some_and(|now| number(&old[key]).is_none_or(|before| now < before));
        changed(key, less);
    }
    for key in ["minimum", "exclusiveMinimum", "minLength", "minItems", "minProperties"] {
        let more = number(&new[key]).is_some_and(|now| number(&old[key]).is_none_or(|before| now > before));
        changed(key, more);
    }
    // Whether one pattern admits all that another one does is not decided here: a changed one may admit less.
    for key in ["pattern", "format", "const", "multipleOf", "not"] {
        changed(key, !new[key].is_null() && old[key] != new[key]);
    }
    changed("uniqueItems", new["uniqueItems"] == true && old["uniqueItems"] != true);
    for key in ["additionalProperties", "unevaluatedProperties"] {
        let limited = new[key] == false || (new[key].is_object() && !old[key].is_object());
        changed(key, limited && old[key] != new[key] && old[key] != false);
    }
    found
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

    /// A schema of requests that has each keyword.
    fn keywords() -> Value {
        serde_json::json!({
            "type": "object", "additionalProperties": { "type": "string", "maxLength": 9 }, "maxProperties": 5,
            "properties": {
                "text": { "type": "string", "pattern": "^a*$", "minLength": 1, "maxLength": 8 },
                "number": { "type": "integer", "minimum": 1, "maximum": 4094 },
                "list": { "type": "array", "minItems": 1, "maxItems": 8, "items": { "type": "string" } },
                "word": { "type": "string", "enum": ["one", "two"] },
                "either": { "oneOf": [{ "type": "null" }, { "type": "string", "maxLength": 3 }, { "type": "integer" }] },
                "free": {},
            },
        })
    }

    #[test]
    fn a_request_that_is_limited_more_is_found_and_one_that_is_limited_less_is_not() {
        let null = Value::Null;
        // The place of a keyword, a value that admits less, and one that admits more. Null removes the keyword.
        for (pointer, less, more) in [
            ("/properties/text/pattern", "^b*$".into(), null.clone()),
            ("/properties/text/format", "uuid".into(), null.clone()),
            ("/properties/text/const", "a".into(), null.clone()),
            ("/properties/text/minLength", 2.into(), 0.into()),
            ("/properties/text/maxLength", 7.into(), 9.into()),
            ("/properties/number/minimum", 2.into(), null.clone()),
            ("/properties/number/maximum", 4093.into(), 4095.into()),
            ("/properties/number/exclusiveMaximum", 4094.into(), null.clone()),
            ("/properties/list/minItems", 2.into(), 0.into()),
            ("/properties/list/maxItems", 7.into(), null.clone()),
            ("/properties/list/uniqueItems", true.into(), false.into()),
            ("/properties/list/items/maxLength", 3.into(), null.clone()),
            ("/properties/word/enum", serde_json::json!(["one"]), serde_json::json!(["one", "two", "three"])),
            (
                "/properties/either/oneOf",
                serde_json::json!([{ "type": "null" }, { "type": "integer" }]),
                null.clone(),
            ),
            ("/properties/either/oneOf/1/maxLength", 2.into(), 4.into()),
            ("/properties/free/anyOf", serde_json::json!([{ "type": "string" }]), null.clone()),
            ("/properties/free/allOf", serde_json::json!([{ "type": "string" }]), null.clone()),
            ("/properties/free/type", "string".into(), null.clone()),
            ("/additionalProperties", false.into(), null.clone()),
            ("/additionalProperties/maxLength", 8.into(), 10.into()),
            ("/maxProperties", 4.into(), 6.into()),
            ("/minProperties", 1.into(), null.clone()),
            ("/required", serde_json::json!(["text"]), null.clone()),
        ] {
            for (value, breaks) in [(less, true), (more, false)] {
                let (old, mut new) = (keywords(), keywords());
                let (place, key) = pointer.rsplit_once('/').unwrap();
                let place = new.pointer_mut(place).unwrap().as_object_mut().unwrap();
                if value.is_null() {
                    place.remove(key);
                } else {
                    place.insert(key.to_owned(), value.clone());
                }
                let mut found = Vec::new();
                schema("body", (&old, &new), false, &mut found);
                assert_eq!(!found.is_empty(), breaks, "{pointer} {value}: {found:?}");
            }
        }
    }

    #[test]
    fn an_answer_that_can_have_another_form_is_found() {
        let add = |of: &mut Value| {
            of["oneOf"].as_array_mut().unwrap().push(serde_json::json!({ "type": "boolean" }))
        };
        let (old, mut new) = (keywords(), keywords());
        add(new.pointer_mut("/properties/either").unwrap());
        for (of_answer, breaks) in [(true, true), (false, false)] {
            let mut found = Vec::new();
            schema("form", (&old, &new), of_answer, &mut found);
            assert_eq!(!found.is_empty(), breaks, "{found:?}");
        }
    }

    #[test]
    fn what_is_added_breaks_nothing() {
        let add = |of: &mut Value| of["new"] = serde_json::json!({ "type": "string" });
        assert_eq!(after("/components/schemas/PciDevice/properties", add), Vec::<String>::new());
        let text = |of: &mut Value| of["description"] = "another text".into();
        assert_eq!(after("/components/schemas/PciDevice", text), Vec::<String>::new());
    }
}
