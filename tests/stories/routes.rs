//! `data/routes.json` names every route of the router (a test of `policy.rs` compares them), with a request, the status of its response, and the shape of the
//! body: its keys and the types of their values. `HOTSLOT_RECORD=1` records the current responses.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use hotslot_tests::recorded::{Names, is_recording, record, rows};
use hotslot_tests::{Hotslot, I440FX, Q35, description, host};
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

/// Returns the parts of the sources of the router that add routes without a description: each is to be in a function whose
/// name says that it has other names of described paths.
fn undescribed() -> Vec<String> {
    let mut found = Vec::new();
    for file in ["mod.rs", "accelerators.rs", "cyborg/mod.rs"] {
        let text = std::fs::read_to_string(root("api/src/http").join(file)).unwrap();
        for function in text.split("fn ").skip(1) {
            let name = function.split('(').next().unwrap_or_default();
            if function.contains(".route(") && !["aliases", "collections"].contains(&name) {
                found.push(format!("{file}: {name}"));
            }
        }
    }
    found
}

#[tokio::test]
async fn every_route_answers_with_its_status_and_shape() {
    let mut rows = rows("routes.json");
    assert_eq!(undescribed(), Vec::<String>::new(), "a route is added with `.routes(routes!(…))`");

    let service = Hotslot::with(&host("small"), CONFIG).await;
    let mut names = Names::default();
    let mut wrong = Vec::new();
    for row in &mut rows {
        let (method, path) = row["request"].as_str().unwrap().split_once(' ').unwrap();
        let (method, path) = (Method::from_bytes(method.as_bytes()).unwrap(), names.fill(path));
        let kind = row["content_type"].as_str().unwrap_or("application/json").to_owned();
        let body = row.get("body").map(|body| names.fill(&body.to_string()));
        let body = body.as_ref().map(|body| (kind.as_str(), body.clone()));
        let answer = service.send(method.clone(), &path, body).await;
        names.keep(row, &answer.body);
        // The description is that of the API.
        if !path.starts_with("/ui") {
            wrong.extend(description::problems(method.as_str(), &path, answer.status, &answer.body));
        }
        // The description itself is in docs/openapi.json.
        let body = if row["opaque"] == true { &Value::Null } else { &answer.body };
        let (status, shape) = (Value::from(answer.status), shape(body));
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
async fn a_microversion_that_is_not_supported_is_refused_as_by_nova() {
    let service = Hotslot::with(&host("small"), CONFIG).await;
    let ask = async |path: &str, name: &str, version: &str| {
        let headers = [(name.to_owned(), version.to_owned())];
        service.send_with(Method::GET, path, headers, None).await
    };
    for (name, version, status, fault) in [
        ("OpenStack-API-Version", "compute 2.1", 200, ""),
        ("OpenStack-API-Version", "compute latest", 200, ""),
        ("OpenStack-API-Version", "compute 2.90", 406, "computeFault"),
        ("OpenStack-API-Version", "compute two", 400, "badRequest"),
        ("X-OpenStack-Nova-API-Version", "2.90", 406, "computeFault"),
        ("X-OpenStack-Nova-API-Version", "two", 400, "badRequest"),
    ] {
        let answer = ask("/v2.1/os-pci", name, version).await.expect(status);
        assert_eq!(answer.headers["openstack-api-version"], "compute 2.1");
        assert_eq!(answer.headers["x-openstack-nova-api-version"], "2.1");
        if !fault.is_empty() {
            let message = answer.body[fault]["message"].as_str().unwrap();
            assert!(message.contains(version.trim_start_matches("compute ")), "{message}");
        }
        // The other versions have no microversions.
        ask("/v2/demo/os-pci", name, version).await.expect(200);
        ask("/v3/os-pci", name, version).await.expect(200);
    }
    let cyborg = service.get("/accelerator/v2/devices").await.expect(200);
    assert_eq!(cyborg.headers["openstack-api-version"], "accelerator 2.0");
    assert_eq!(cyborg.headers["openstack-api-minimum-version"], "2.0");
    assert_eq!(cyborg.headers["openstack-api-maximum-version"], "accelerator 2.3");
}

#[tokio::test]
async fn the_description_and_its_page_are_for_everybody() {
    let service = Hotslot::with(&host("small"), CONFIG).await;
    let description = service.get("/openapi.json").await.expect(200);
    let copy = std::fs::read_to_string(root("docs/openapi.json")).unwrap();
    assert_eq!(description.body, serde_json::from_str::<Value>(&copy).unwrap());
    assert_eq!(description.body["openapi"], "3.1.0");
    let page = service.get("/docs").await.expect(200);
    assert!(page.headers["content-security-policy"].to_str().unwrap().starts_with("default-src 'none'"));
    let html = page.body.as_str().unwrap();
    assert!(html.contains("/v2.1/servers/{server_id}/os-pci_attachments") && !html.contains("<script"));
}

/// The examples of the description are requests of `data/routes.json`, which the story above sends.
#[test]
fn every_example_of_the_description_is_sent() {
    let read = |place: &str| -> Value {
        serde_json::from_str(&std::fs::read_to_string(root(place)).unwrap()).unwrap()
    };
    let (description, rows) = (read("docs/openapi.json"), read("tests/data/routes.json"));
    let mut examples = 0;
    for (path, item) in description["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            let Some(example) = operation["requestBody"]["content"]["application/json"].get("example") else {
                continue;
            };
            examples += 1;
            let sent = |row: &&Value| {
                let (of, route) = row["route"].as_str().unwrap().split_once(' ').unwrap();
                of.eq_ignore_ascii_case(method) && path.ends_with(route) && row["body"] == *example
            };
            assert!(rows.as_array().unwrap().iter().any(|row| sent(&row)), "{method} {path}: {example}");
        }
    }
    assert!(examples > 10, "{examples}");
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
