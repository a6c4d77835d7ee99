//! The JSON schema of `hotslot.toml`, by which editors complete keys and check values.

use std::borrow::Cow;

use hotslot_model::rules::MAX_VFS;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde_json::{Value, json};

use super::place::NAMES;
use super::{Account, Age, Config, HostName, Levels, Listen, Seconds, Secret, SecretFile, SocketMode};

/// Gives a schema to types that are read from a text or a number.
macro_rules! schemas {
    ($($Type:ident: $schema:tt)*) => {$(
        impl JsonSchema for $Type {
            fn schema_name() -> Cow<'static, str> {
                stringify!($Type).into()
            }

            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!($schema)
            }
        }
    )*};
}

schemas! {
    Seconds: {
        "type": "number", "exclusiveMinimum": 0, "maximum": 86400,
        "description": "A time in seconds, such as 20 or 0.5, above 0 and at most a day.",
    }
    Age: {
        "type": "string", "pattern": "[0-9]", "examples": ["90d", "12h", "30m", "45s"],
        "description": "A time with its unit, at least 1 second and at most 100 years.",
    }
    Secret: { "type": "string", "description": "A secret text. A file may have it instead." }
    SecretFile: {
        "type": "string", "pattern": "^(/.*|[^/]+)$",
        "description": "The file of a secret: an absolute path, or the name of a credential that systemd passes \
                        (LoadCredential=).",
    }
    Listen: {
        "type": "string", "pattern": "^(unix:/.+|.+:[0-9]+)$",
        "examples": ["unix:/run/hotslot/api.sock", "127.0.0.1:9774"],
        "description": "A unix socket (unix:/path), or an address with port.",
    }
    SocketMode: {
        "type": "string", "pattern": "^0*[0-7]{1,3}$", "examples": ["0660"],
        "description": "An access mode in octal digits.",
    }
    HostName: {
        "type": "string", "pattern": "^([A-Za-z0-9._-]{1,253}|\\[[0-9A-Fa-f:.]+\\])$",
        "examples": ["hotslot.example.org", "[2001:db8::1]"],
        "description": "The name of a host, or its address, without a port.",
    }
    Levels: {
        "type": "string",
        "pattern": "^ *([A-Za-z0-9_:]+=)?(off|error|warn|info|debug|trace) *(, *([A-Za-z0-9_:]+=)?(off|error|warn|info|debug|trace) *)*$",
        "examples": ["info", "info,hotslot_driver=debug"],
        "description": "The lowest level that is written, and those of modules: off, error, warn, info, debug or trace.",
    }
    Account: { "type": ["string", "integer"], "description": "A user or group, by name or number." }
}

/// What the check of the values refuses, as far as a schema of one value can say it: the table, the key, and keywords.
fn limits() -> Vec<(&'static str, &'static str, Value)> {
    vec![
        ("Detach", "attempts", json!({ "minimum": 1 })),
        ("Webhook", "attempts", json!({ "minimum": 1 })),
        ("Webhook", "name", json!({ "pattern": "^[A-Za-z0-9_.-]{1,64}$" })),
        ("Events", "most", json!({ "minimum": 1 })),
        ("Local", "role", json!({ "enum": ["reader", "member", "manager", "admin", "service"] })),
        ("Hypervisor", "name", json!({ "pattern": "[^ ]" })),
        ("Hypervisor", "uri", json!({ "pattern": "://" })),
        ("Database", "url", json!({ "pattern": "^(sqlite|postgres|postgresql):" })),
        ("Profile", "vfs", json!({ "maximum": MAX_VFS })),
        ("Flavor", "name", json!({ "minLength": 1, "maxLength": 255 })),
    ]
}

/// Returns the JSON schema (draft 2020-12) of the configuration file.
pub fn schema() -> Value {
    let mut schema = schemars::schema_for!(Config).to_value();
    schema["title"] = "hotslot.toml".into();
    for (table, key, keywords) in limits() {
        let of = &mut schema["$defs"][table]["properties"][key];
        for (keyword, value) in keywords.as_object().into_iter().flatten() {
            of[keyword.as_str()] = value.clone();
        }
    }
    // Keys of `[pci]` may also have the names that Nova gave them earlier.
    if let Some(keys) = schema["$defs"]["Pci"]["properties"].as_object_mut() {
        for names in NAMES {
            for (first, other) in
                names.iter().take(1).flat_map(|first| names.iter().skip(1).map(move |other| (first, other)))
            {
                let mut same = keys.get(*first).cloned().unwrap_or_default();
                same["deprecated"] = true.into();
                same["description"] = format!("An earlier name of `{first}`.").into();
                keys.insert((*other).to_owned(), same);
            }
        }
    }
    schema
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the schema to which a schema refers.
    fn resolved<'a>(root: &'a Value, schema: &'a Value) -> &'a Value {
        let parts = ["anyOf", "allOf"].iter().filter_map(|key| schema[key].as_array()).flatten();
        let reference = parts.chain([schema]).find_map(|part| part["$ref"].as_str());
        reference.and_then(|name| root.pointer(name.strip_prefix('#')?)).unwrap_or(schema)
    }

    /// Checks that a schema knows every key of a value.
    fn check(root: &Value, place: &str, schema: &Value, value: &toml::Value) {
        let schema = resolved(root, schema);
        match value {
            toml::Value::Table(keys) => {
                for (key, value) in keys {
                    let known = schema["properties"].get(key).or_else(|| schema.get("additionalProperties"));
                    let known = known.unwrap_or_else(|| panic!("{place}: {key} is not in the schema"));
                    assert_ne!(*known, Value::Bool(false), "{place}: {key} is not in the schema");
                    check(root, &format!("{place} {key}"), known, value);
                }
            }
            toml::Value::Array(items) => {
                items.iter().for_each(|item| check(root, place, &schema["items"], item))
            }
            toml::Value::String(_) | toml::Value::Integer(_) | toml::Value::Float(_) => {}
            toml::Value::Boolean(_) | toml::Value::Datetime(_) => {}
        }
    }

    #[test]
    fn every_limit_is_of_a_key_that_there_is() {
        let plain = schemars::schema_for!(Config).to_value();
        for (table, key, _) in limits() {
            assert!(plain["$defs"][table]["properties"][key].is_object(), "{table} {key}");
        }
        let text = schema().to_string();
        for word in ["`None`", "[`"] {
            assert!(!text.contains(word), "{word} is of Rust");
        }
    }

    #[test]
    fn the_schema_knows_every_key_of_the_example() {
        let example = include_str!("../../../../hotslot.example.toml");
        check(&schema(), "", &schema(), &toml::from_str(example).unwrap());
    }

    #[test]
    fn every_key_is_described_and_unknown_keys_are_refused() {
        let schema = schema();
        let tables = schema["$defs"].as_object().unwrap().iter().map(|(name, of)| (name.as_str(), of));
        for (name, table) in tables.chain([("", &schema)]) {
            for (key, of) in table["properties"].as_object().into_iter().flatten() {
                let described =
                    of["description"].is_string() || resolved(&schema, of)["description"].is_string();
                assert!(described, "{name}: {key}");
            }
            if table["type"] == "object" {
                assert_eq!(table["additionalProperties"], false, "{name}");
            }
        }
        for key in ["passthrough_whitelist", "pci_passthrough_whitelist", "pci_alias"] {
            assert_eq!(schema["$defs"]["Pci"]["properties"][key]["deprecated"], true, "{key}");
        }
    }
}
