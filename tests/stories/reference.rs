//! docs/reference/configuration.md: the keys of each table, by the schema, and the explanations of hotslot.example.toml.
//! `HOTSLOT_RECORD=1 cargo test -p hotslot-tests --test stories reference::` writes it. The page of the commands is made in
//! `cli/src/reference.rs`.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;

use hotslot_tests::binary;
use hotslot_tests::recorded::is_recording;
use serde_json::Value;

const EXAMPLE: &str = include_str!("../../hotslot.example.toml");

const HEAD: &str = "\
# Configuration

Every key of `hotslot.toml`. For each table of the file, its keys with their types come first, and then the part of
[hotslot.example.toml](../../hotslot.example.toml) that explains them. Lines of the example that begin with `#: ` are settings with
their default value, or an example where there is no default. A file with an unknown key is refused; the error names the known key
nearest to it.

The file is `/etc/hotslot/hotslot.toml`, or the one that `--config` or `HOTSLOT_CONFIG` names. `hotslot config check FILE` reports every
mistake with its line, and `hotslot config schema` prints a JSON schema for editors.

<!-- Made from the schema and the example by `HOTSLOT_RECORD=1 cargo test -p hotslot-tests --test stories reference::`. -->
";

/// Returns what `$ref` of a schema names, or the schema itself.
fn resolved<'a>(root: &'a Value, schema: &'a Value) -> &'a Value {
    let parts = ["anyOf", "allOf"].iter().filter_map(|key| schema[key].as_array()).flatten();
    let name = parts.chain([schema]).find_map(|part| part["$ref"].as_str());
    name.and_then(|name| root.pointer(name.strip_prefix('#')?)).unwrap_or(schema)
}

/// Returns the type of a key: its JSON types, or the values that it can have.
fn kind(root: &Value, schema: &Value) -> String {
    let schema = resolved(root, schema);
    let words: Vec<_> =
        ["oneOf", "anyOf"].iter().filter_map(|key| schema[key].as_array()).flatten().collect();
    let values: Vec<_> = words
        .iter()
        .filter_map(|word| word["const"].as_str())
        .chain(schema["enum"].as_array().into_iter().flatten().filter_map(Value::as_str))
        .map(|word| format!("`{word}`"))
        .collect();
    if !values.is_empty() {
        return values.join(", ");
    }
    let types = match &schema["type"] {
        Value::String(one) => vec![one.as_str()],
        all => all
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .filter(|one| *one != "null")
            .collect(),
    };
    if types.is_empty() && !words.is_empty() {
        // Forms that differ in their types, such as a table or a text.
        let mut forms: Vec<_> =
            words.into_iter().map(|form| kind(root, form)).filter(|form| form != "null").collect();
        forms.dedup();
        return forms.join(" or ");
    }
    match types.as_slice() {
        ["array"] => format!("list of {}", kind(root, &schema["items"])),
        ["object"] => "table".into(),
        _ => types.join(" or "),
    }
}

/// Appends the keys of a table of the file, and of the tables in it.
fn keys(text: &mut String, root: &Value, table: &Value, place: &str) {
    let _ = write!(text, "\n| key of `{place}` | type | |\n|---|---|---|\n");
    let mut inner = Vec::new();
    for (key, of) in table["properties"].as_object().into_iter().flatten() {
        let target = resolved(root, of);
        let item = if target["type"] == "array" { resolved(root, &target["items"]) } else { target };
        if item["properties"].is_object() {
            let brackets = if target["type"] == "array" { ("[[", "]]") } else { ("[", "]") };
            let parent = place.trim_matches(['[', ']']);
            inner.push((format!("{}{parent}.{key}{}", brackets.0, brackets.1), item));
        }
        let description = of["description"].as_str().or(target["description"].as_str()).unwrap_or_default();
        let _ = writeln!(text, "| `{key}` | {} | {} |", kind(root, of), description.replace('\n', " "));
    }
    inner.into_iter().for_each(|(place, table)| keys(text, root, table, &place));
}

/// Returns the lines of the example about a table of the file: from its heading, with the comment before it, to the next table.
fn explained(table: &str) -> String {
    let heads = [format!("[{table}]"), format!("#: [{table}]"), format!("#: [[{table}]]")];
    let is_head = |line: &str| heads.iter().any(|head| line == head);
    let paragraphs: Vec<_> = EXAMPLE.split("\n\n").collect();
    // A paragraph belongs to the last table that was named before it or in it.
    let mut now = String::new();
    let mut found = Vec::new();
    for paragraph in paragraphs {
        let named = paragraph
            .lines()
            .map(|line| line.strip_prefix("#: ").unwrap_or(line))
            .find(|line| line.starts_with('['));
        if let Some(named) = named {
            now = named.trim_matches(['[', ']']).split('.').next().unwrap_or_default().to_owned();
        }
        if now == table {
            found.push(paragraph.trim());
        }
    }
    assert!(found.iter().any(|part| part.lines().any(is_head)), "[{table}] is not in hotslot.example.toml");
    found.join("\n\n")
}

/// The kinds of events in rest.md are those of the description. `.changed` there stands for the noun before it.
#[test]
fn the_reference_of_the_api_has_all_kinds_of_events() {
    let read = |name: &str| {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs").join(name);
        std::fs::read_to_string(path).unwrap()
    };
    let description: Value = serde_json::from_str(&read("openapi.json")).unwrap();
    let kinds = description["components"]["schemas"]["EventKindName"]["enum"].as_array().unwrap().iter();
    let kinds: BTreeSet<_> = kinds.map(|kind| kind.as_str().unwrap().to_owned()).collect();
    let page = read("reference/rest.md");
    let paragraph = page.split("\n\n").find(|part| part.starts_with("The kinds are")).expect("the paragraph");
    let mut noun = "";
    let mut named = BTreeSet::new();
    for word in paragraph.split('`').skip(1).step_by(2) {
        match word.split_once('.') {
            Some(("", rest)) => drop(named.insert(format!("{noun}.{rest}"))),
            Some((first, _)) => {
                noun = first;
                named.insert(word.to_owned());
            }
            None => {}
        }
    }
    assert_eq!(named, kinds);
}

#[test]
fn the_reference_of_the_configuration_is_true() {
    let printed = Command::new(binary()).args(["config", "schema"]).output().unwrap();
    let root: Value = serde_json::from_slice(&printed.stdout).unwrap();
    let mut text = HEAD.to_owned();
    for (name, of) in root["properties"].as_object().unwrap() {
        let target = resolved(&root, of);
        let is_list = target["type"] == "array";
        let table = if is_list { resolved(&root, &target["items"]) } else { target };
        let place = if is_list { format!("[[{name}]]") } else { format!("[{name}]") };
        let _ = write!(
            text,
            "\n## {name}\n\n`{place}`: {}\n",
            of["description"].as_str().unwrap_or_default().replace('\n', " ")
        );
        keys(&mut text, &root, table, &place);
        let _ = write!(text, "\n```toml\n{}\n```\n", explained(name));
    }
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/reference/configuration.md");
    if is_recording() {
        std::fs::write(&file, &text).unwrap();
    }
    let written = std::fs::read_to_string(&file).unwrap();
    assert!(
        written == text,
        "docs/reference/configuration.md is not true any more; HOTSLOT_RECORD=1 writes it anew"
    );
}
