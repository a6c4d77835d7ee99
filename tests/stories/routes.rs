//! `data/routes.json` names every route of the router, with a request, the status of its response, and the shape of the
//! body: its keys and the types of their values. `HOTSLOT_RECORD=1` records the current responses.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use hotslot_tests::recorded::{Names, is_recording, record, rows};
use hotslot_tests::{Hotslot, I440FX, Q35, host};
use reqwest::Method;
use serde_json::{Map, Value};

const CONFIG: &str = r#"
[attach]
verify = "off"
[[flavor]]
name = "fast"
extra_specs = { "pci_passthrough:alias" = "vf:1" }
[[webhook]]
name = "billing"
url = "http://127.0.0.1:9/"
secret = "a secret that is long enough for a test"
"#;

fn root(place: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(place)
}

/// Returns the shape of a value: the keys of objects, the shapes of the items of lists, and the types of all other
/// values.
fn shape(value: &Value) -> Value {
    match value {
        Value::Null => "null".into(),
        Value::Bool(_) => "bool".into(),
        Value::Number(_) => "number".into(),
        Value::String(_) => "string".into(),
        Value::Array(items) => {
            let mut shapes: Vec<Value> = Vec::new();
            for item in items.iter().map(shape) {
                if !shapes.contains(&item) {
                    shapes.push(item);
                }
            }
            shapes.sort_by_key(ToString::to_string);
            Value::Array(shapes)
        }
        Value::Object(members) => {
            let members = members.iter().map(|(key, value)| (key.clone(), shape(value)));
            Value::Object(members.collect::<Map<_, _>>())
        }
    }
}

/// Returns the routes in the sources of the router, such as `GET /servers/{server_id}`.
fn routes() -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for file in ["mod.rs", "accelerators.rs", "cyborg/mod.rs"] {
        let text = std::fs::read_to_string(root("api/src/http").join(file)).unwrap();
        for rest in text.split(".route(").skip(1) {
            let (before, rest) = rest.split_once('"').unwrap();
            let (path, rest) = rest.split_once('"').unwrap();
            let mut depth = 1 + before.matches('(').count();
            let end = rest.find(|letter| {
                match letter {
                    '(' => depth += 1,
                    ')' => depth -= 1,
                    _ => {}
                }
                depth == 0
            });
            let methods = rest[..end.unwrap()].trim_start_matches([',', ' ', ')']);
            // Two routes with the same handlers share them through a variable.
            let methods = match methods.split('.').next() {
                Some("profiles") => "get( post( delete(",
                Some("arqs") => "get( post( patch( delete(",
                _ => methods,
            };
            for method in ["get", "post", "put", "patch", "delete"] {
                if methods.contains(&format!("{method}(")) {
                    let path = path.replace("{{", "{").replace("}}", "}");
                    for noun in ["accelerators", "accelerator"] {
                        found.insert(format!("{} {}", method.to_uppercase(), path.replace("{noun}", noun)));
                    }
                }
            }
        }
    }
    found
}

#[tokio::test]
async fn every_route_answers_with_its_status_and_shape() {
    let mut rows = rows("routes.json");
    let named: BTreeSet<String> = rows.iter().map(|row| row["route"].as_str().unwrap().to_owned()).collect();
    assert_eq!(named, routes(), "tests/data/routes.json names every route of the router and no other");

    let service = Hotslot::with(&host("small"), CONFIG).await;
    let mut names = Names::default();
    let mut wrong = Vec::new();
    for row in &mut rows {
        let (method, path) = row["request"].as_str().unwrap().split_once(' ').unwrap();
        let (method, path) = (Method::from_bytes(method.as_bytes()).unwrap(), names.fill(path));
        let kind = row["content_type"].as_str().unwrap_or("application/json").to_owned();
        let body = row.get("body").map(|body| names.fill(&body.to_string()));
        let body = body.as_ref().map(|body| (kind.as_str(), body.clone()));
        let answer = service.send(method, &path, body).await;
        names.keep(row, &answer.body);
        let (status, shape) = (Value::from(answer.status), shape(&answer.body));
        if is_recording() {
            (row["status"], row["shape"]) = (status, shape);
        } else if (&row["status"], &row["shape"]) != (&status, &shape) {
            wrong.push(format!(
                "{}: {status} {shape}\n  instead of {} {}",
                row["request"], row["status"], row["shape"]
            ));
        }
    }
    record("routes.json", &rows);
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[tokio::test]
async fn no_get_changes_a_record() {
    let service = Hotslot::with(&host("small"), CONFIG).await;
    service.attach(Q35, "vf:1").await.expect(200);
    let mut reads = BTreeSet::new();
    let rows: Vec<Value> =
        serde_json::from_str(&std::fs::read_to_string(root("tests/data/routes.json")).unwrap()).unwrap();
    let gets: BTreeSet<_> = rows
        .iter()
        .filter_map(|row| row["request"].as_str()?.strip_prefix("GET "))
        .map(|path| path.replace("<q35>", Q35).replace("<i440fx>", I440FX))
        .filter(|path| !path.contains('<'))
        .collect();
    assert!(gets.len() > 30, "{gets:?}");
    // The host changes while it is read, so that there is something to record.
    for change in ["remove", "add"] {
        service.sim(&format!("device {change} pci_0000_05_00_0"));
        for path in &gets {
            let answer = service.get(path).await;
            reads.insert(answer.headers["x-openstack-request-id"].to_str().unwrap().to_owned());
        }
    }
    let events = service.get("/v2.1/events?limit=1000").await.expect(200).body;
    let events = events["events"].as_array().unwrap();
    assert!(events.iter().any(|event| event["kind"] == "device.removed"), "{events:#?}");
    for event in events {
        let who = event["who"].as_str().unwrap();
        assert!(!reads.iter().any(|id| who.contains(id)), "a GET wrote {event}");
    }
}
