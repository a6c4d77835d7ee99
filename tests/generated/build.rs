//! Generates the client. progenitor reads OpenAPI 3.0 and hotslot writes 3.1, so the description is converted first.

use std::error::Error;
use std::path::PathBuf;

use serde_json::{Value, json};

/// Writes a schema of OpenAPI 3.1, and those within it, in the notation of 3.0: null is not a type there, a schema has no
/// list of types, and names of properties have no schema.
fn convert(part: &mut Value) {
    match part {
        Value::Array(items) => items.iter_mut().for_each(convert),
        Value::Object(members) => {
            members.values_mut().for_each(convert);
            members.remove("propertyNames");
            if members.get("examples").is_some_and(Value::is_array) {
                members.remove("examples");
            }
            let null = json!("null");
            if members.get("type") == Some(&null) {
                members.remove("type");
                members.insert("nullable".into(), true.into());
            }
            if let Some(mut types) = members.get("type").and_then(Value::as_array).cloned() {
                if types.contains(&null) {
                    types.retain(|one| *one != null);
                    members.insert("nullable".into(), true.into());
                }
                match types.as_slice() {
                    [one] => members.insert("type".into(), one.clone()),
                    _ => members.remove("type"),
                };
            }
            // The null alternative was converted above.
            let is_null = |one: &Value| *one == json!({ "nullable": true });
            if let Some(mut parts) = members.get("oneOf").and_then(Value::as_array).cloned()
                && parts.iter().any(is_null)
            {
                parts.retain(|one| !is_null(one));
                let key = if parts.len() == 1 { "allOf" } else { "oneOf" };
                members.remove("oneOf");
                members.insert(key.into(), parts.into());
                members.insert("nullable".into(), true.into());
            }
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let file = PathBuf::from(std::env::var("CARGO_MANIFEST_DIR")?).join("../../docs/openapi.json");
    println!("cargo::rerun-if-changed={}", file.display());
    let mut document: Value = serde_json::from_slice(&std::fs::read(file)?)?;
    convert(&mut document);
    document["openapi"] = "3.0.3".into();
    // OpenAPI 3.0 knows no certificates of clients.
    document["components"]["securitySchemes"].as_object_mut().ok_or("no schemes")?.remove("certificate");
    for operation in document["paths"].as_object_mut().into_iter().flatten() {
        for (_, operation) in operation.1.as_object_mut().into_iter().flatten() {
            operation["security"] = json!([]);
        }
    }
    // progenitor supports one type of success and one of errors for each operation. Readiness has another body for errors
    // than all others, and a rule has another body when it was only tried.
    for (path, method, status) in [("/readyz", "get", "503"), ("/v2.1/os-pci-config/{kind}", "post", "200")] {
        let responses = document["paths"][path][method]["responses"].as_object_mut().ok_or(path)?;
        responses.remove(status).ok_or(path)?;
    }
    // With builders, a parameter that is added later changes nothing for callers.
    let mut settings = progenitor::GenerationSettings::default();
    settings.with_interface(progenitor::InterfaceStyle::Builder);
    let tokens = progenitor::Generator::new(&settings).generate_tokens(&serde_json::from_value(document)?)?;
    let client = PathBuf::from(std::env::var("OUT_DIR")?).join("client.rs");
    Ok(std::fs::write(client, tokens.to_string())?)
}
