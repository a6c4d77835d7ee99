//! The audit: each change and each refusal is an event and a line of the log that name the caller.
//!
//! `data/audit.json` has requests for every route that changes something: their status, and the kinds of the events that
//! each leaves. `HOTSLOT_RECORD=1` records the current ones.

use std::collections::BTreeSet;
use std::process::Command;
use std::time::{Duration, Instant};

use hotslot_tests::recorded::{Names, is_recording, record, rows};
use hotslot_tests::{Hotslot, Q35, attachments, binary, host};
use reqwest::Method;
use serde_json::{Value, json};

const PCI: &str = r#"
[[webhook]]
name = "billing"
url = "http://127.0.0.1:9/"
kinds = ["device.added"]
secret = "a secret that is long enough for a test"
attempts = 1
[pci]
report_in_placement = true
device_spec = ['{"vendor_id": "8086", "product_id": "10ca"}', '{"vendor_id": "1234", "one_time_use": "true"}']
alias = ['{"name": "edu", "vendor_id": "1234", "product_id": "11e8"}']
"#;

const GLOBAL: &str = "req-0a1b2c3d-0000-4000-8000-00000000beef";

/// The routes whose requests here change no record: the host has not drifted, the configuration is the same, the levels of
/// the log are no record, and hotslot does not program devices.
const UNCHANGING: [&str; 6] = [
    "POST /v2.1/service/reload",
    "PUT /v2.1/service/log-level",
    "POST /drift",
    "POST /v2.1/os-hypervisors/<host>/drift",
    "PATCH /accelerator/v2/deployables/<deployable>/program",
    "PATCH /accelerator/v2/deployables/<deployable>/program/<deployable>",
];

/// The headers of a caller, as a proxy sends them.
fn caller(name: &str, role: &str) -> Vec<(String, String)> {
    let id = format!("id-of-{name}");
    [
        ("x-user-id", id.as_str()),
        ("x-user-name", name),
        ("x-project-id", "p1"),
        ("x-roles", role),
        ("x-openstack-request-id", GLOBAL),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_owned()))
    .to_vec()
}

/// Starts a service whose callers are identified by headers.
async fn by_headers(pci: &str) -> Hotslot {
    let mut service = Hotslot::bare(&host("small"), pci, |_| ()).await;
    service.reconfigure("[api]\n", "[api]\nidentity = \"headers\"\n");
    service.kill();
    service.start_again().await;
    service
}

/// Returns all events that a query selects, as an administrator sees them.
async fn events(service: &Hotslot, query: &str) -> Vec<Value> {
    let (mut all, mut path) = (Vec::new(), format!("/events?limit=1000&{query}"));
    loop {
        let answer =
            service.send_with(Method::GET, &path, caller("auditor", "admin"), None).await.expect(200);
        all.extend(answer.body["events"].as_array().unwrap().clone());
        let Some(next) = answer.body["events_links"][0]["href"].as_str() else { return all };
        path = next[next.find("/events").unwrap()..].to_owned();
    }
}

fn is_by(event: &Value, name: &str, role: &str) -> bool {
    let expected = json!({
        "user": name, "user_id": format!("id-of-{name}"), "project": "p1", "roles": [role],
        "via": "proxy, TCP 127.0.0.1", "global_request_id": GLOBAL,
    });
    expected.as_object().unwrap().iter().all(|(key, value)| event[key] == *value)
}

/// Waits until an event could not be delivered.
async fn until_not_delivered(service: &Hotslot) {
    let letters = async || {
        let sent = service.send_with(Method::GET, "/webhooks", caller("alice", "admin"), None).await;
        sent.body["webhooks"][0]["dead_letter_count"].as_u64() > Some(0)
    };
    service.until("an event could not be delivered", letters).await;
}

/// Waits until the accelerator request is bound or unbound, which continues after the answer.
async fn until_bound(service: &Hotslot) {
    let path = "/accelerator/v2/accelerator_requests";
    let settled = async || {
        let sent = service.send_with(Method::GET, path, caller("alice", "admin"), None).await;
        ["Bound", "Unbound"].contains(&sent.body["arqs"][0]["state"].as_str().unwrap())
    };
    service.until("the request is bound", settled).await;
}

#[tokio::test]
async fn every_change_leaves_events_that_name_the_caller() {
    let service = by_headers(PCI).await;
    let mut names = Names::default();
    let (mut rows, mut wrong) = (rows("audit.json"), Vec::new());
    for row in &mut rows {
        let (method, path) = row["request"].as_str().unwrap().split_once(' ').unwrap();
        let (method, path) = (method.parse::<Method>().unwrap(), names.fill(path));
        if path.ends_with("/redeliver") {
            until_not_delivered(&service).await;
        }
        let body = row.get("body").map(|body| names.fill(&body.to_string()));
        let send =
            async || service.send_with(method.clone(), &path, caller("alice", "admin"), body.clone()).await;
        let mut answer = send().await;
        // The scrub of the row before goes on after its answer.
        while answer.status == 409 && answer.message().contains("is being scrubbed now") {
            tokio::time::sleep(Duration::from_millis(20)).await;
            answer = send().await;
        }
        names.keep(row, &answer.body);
        if method == Method::GET {
            continue;
        }
        let id = answer.headers["x-openstack-request-id"].to_str().unwrap().to_owned();
        if path.contains("accelerator_requests") && method == Method::PATCH {
            until_bound(&service).await;
        }
        let left: Vec<Value> = events(&service, "user=alice").await;
        let left: Vec<_> = left.iter().filter(|event| event["who"].as_str().unwrap().contains(&id)).collect();
        assert!(left.iter().all(|event| is_by(event, "alice", "admin")), "{path}: {left:#?}");
        let log = service.log();
        let line = log.lines().find(|line| line.contains("hotslot::audit") && line.contains(&id));
        let line = line.unwrap_or_else(|| panic!("{path}: no line of the log"));
        for part in ["alice", "p1", "admin", "127.0.0.1", GLOBAL] {
            assert!(line.contains(part), "{part}: {line}");
        }
        let kinds: BTreeSet<_> = left.iter().map(|event| event["kind"].as_str().unwrap()).collect();
        let (status, kinds) = (Value::from(answer.status), json!(kinds));
        if is_recording() {
            (row["status"], row["kinds"]) = (status, kinds);
        } else if (&row["status"], &row["kinds"]) != (&status, &kinds) {
            wrong.push(format!("{}: {status} {kinds}: {}", row["request"], answer.body));
        }
    }
    record("audit.json", &rows);
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    for row in rows.iter().filter(|row| !row["request"].as_str().unwrap().starts_with("GET")) {
        let request = row["request"].as_str().unwrap();
        assert_eq!(row["kinds"].as_array().unwrap().is_empty(), UNCHANGING.contains(&request), "{row}");
        assert!(request.contains("/program") || row["status"].as_u64().unwrap() < 300, "{row}");
    }
}

/// Returns a path without the values of its parameters, so that a request can be compared with a route.
fn of_route(request: &str) -> String {
    let (method, path) = request.split_once(' ').unwrap();
    let path = path.split('?').next().unwrap();
    let prefixes = ["/v2/demo", "/v2.1", "/accelerator/v2"];
    let path = prefixes.iter().find_map(|prefix| path.strip_prefix(prefix)).unwrap_or(path);
    let is_value = |part: &str| {
        part.starts_with('<')
            || part.starts_with('{')
            || part.starts_with("00000000-")
            || ["alias", "billing", "p"].contains(&part)
    };
    let parts: Vec<_> = path.split('/').map(|part| if is_value(part) { "*" } else { part }).collect();
    format!("{method} {}", parts.join("/"))
}

#[tokio::test]
async fn every_refusal_leaves_an_event_that_names_the_caller() {
    let changing: BTreeSet<_> = rows("audit.json")
        .iter()
        .map(|row| row["request"].as_str().unwrap().to_owned())
        .filter(|request| !request.starts_with("GET"))
        .collect();
    let routes: BTreeSet<_> = rows("routes.json")
        .iter()
        .map(|row| row["route"].as_str().unwrap().to_owned())
        // The page sends what it does to the other routes; `page::http` has its own refusals.
        .filter(|route| !route.starts_with("GET") && !route.contains("/ui/"))
        .collect();
    assert_eq!(
        changing.iter().map(|request| of_route(request)).collect::<BTreeSet<_>>(),
        routes.iter().map(|route| of_route(route)).collect::<BTreeSet<_>>(),
        "audit.json has a request for every route that changes something"
    );
    let service = by_headers(PCI).await;
    // Each request is of another caller, because the refusals of one caller in a minute are one event.
    for (number, request) in changing.iter().enumerate() {
        let (method, path) = request.split_once(' ').unwrap();
        let path: String = path
            .split('<')
            .map(|part| part.split_once('>').map_or(part, |(_, rest)| rest))
            .collect::<Vec<_>>()
            .join("1")
            .replace("/v2/demo/", "/v2/p1/");
        let name = format!("eve{number}");
        let sent = service
            .send_with(method.parse().unwrap(), &path, caller(&name, "netops"), Some("{}".into()))
            .await
            .expect(403);
        let id = sent.headers["x-openstack-request-id"].to_str().unwrap();
        let query = format!("user={name}");
        service.until("the refusal is recorded", async || !events(&service, &query).await.is_empty()).await;
        let left = events(&service, &query).await;
        assert_eq!(left.len(), 1, "{left:#?}");
        let event = &left[0];
        assert!(is_by(event, &name, "netops"), "{event}");
        assert_eq!(event["kind"], "request.refused");
        assert!(event["who"].as_str().unwrap().contains(id), "{event}");
        let bare = path.split('?').next().unwrap();
        let to =
            json!({ "method": method, "path": bare, "status": 403, "count": 1, "rule": event["to"]["rule"] });
        assert_eq!(event["to"], to);
        assert!(event["to"]["rule"].as_str().unwrap().contains(':'), "{event}");
        let log = service.log();
        let line = log.lines().find(|line| line.contains("refused") && line.contains(id)).expect("a line");
        assert!(line.contains(&name) && line.contains("netops") && line.contains(GLOBAL), "{line}");
    }
}

#[tokio::test]
async fn a_refusal_under_one_rule_does_not_hide_that_under_another() {
    let service = by_headers(PCI).await;
    let owner = format!("/v2.1/servers/{Q35}/pci_owner");
    let requests =
        [(Method::GET, "/v2.1/os-hypervisors"), (Method::PUT, &owner), (Method::POST, "/v2.1/drift")];
    for (method, path) in requests.iter().chain(&requests[..1]) {
        let answer = service.send_with(method.clone(), path, caller("mallory", "member"), None).await;
        assert_eq!(answer.status, 403, "{method} {path}: {}", answer.body);
    }
    let all = async || {
        let events = events(&service, "user=mallory").await;
        let has = |path: &str| events.iter().any(|event| event["to"]["path"] == path);
        requests.iter().all(|(_, path)| has(path))
    };
    service.until("each refusal is recorded", all).await;
    // A method that a route does not have is not served, and the log names the caller.
    service.send_with(Method::POST, "/v2.1/events", caller("mallory", "member"), None).await.expect(405);
    let line =
        service.log().lines().rfind(|line| line.contains("answered POST /v2.1/events")).unwrap().to_owned();
    assert!(line.contains("mallory"), "{line}");
}

#[tokio::test]
async fn refusals_of_unidentified_clients_and_web_pages_are_recorded() {
    let service = by_headers(PCI).await;
    let unknown = service.send_with(Method::GET, "/v2.1/servers", [], None).await.expect(401);
    let of = |name: &str, value: &str| {
        let mut headers = caller("alice", "admin");
        headers.push((name.to_owned(), value.to_owned()));
        headers
    };
    let page = service
        .send_with(Method::GET, "/v2.1/servers", of("origin", "http://evil.example"), None)
        .await
        .expect(403);
    let rebound =
        service.send_with(Method::GET, "/v2.1/servers", of("host", "evil.example"), None).await.expect(421);
    for answer in [unknown, page, rebound] {
        let id = answer.headers["x-openstack-request-id"].to_str().unwrap().to_owned();
        let found = async || {
            let refused = events(&service, "kind=request.refused").await;
            refused.into_iter().find(|event| event["who"] == format!("request {id}"))
        };
        service.until("the refusal is recorded", async || found().await.is_some()).await;
        let event = found().await.unwrap();
        assert_eq!(event["to"]["status"], answer.status, "{event}");
        assert_eq!((&event["user"], &event["via"]), (&Value::Null, &json!("TCP 127.0.0.1")));
    }
    // A global request id of another form is ignored.
    for id in ["req-1", "req-0A1B2C3D-0000-4000-8000-00000000BEEF", "x\tinjected"] {
        let mut headers = caller("mallory", "netops");
        headers.last_mut().unwrap().1 = id.to_owned();
        headers[0].1 = format!("id-{}", id.len());
        service.send_with(Method::GET, "/v2.1/servers", headers, None).await.expect(403);
        let query = format!("user=mallory&user_id=id-{}", id.len());
        service.until("the refusal is recorded", async || !events(&service, &query).await.is_empty()).await;
        assert_eq!(events(&service, &query).await[0]["global_request_id"], Value::Null);
    }
    for query in ["users=alice", "user=a&user=b", "roles=admin"] {
        service
            .send_with(Method::GET, &format!("/events?{query}"), caller("auditor", "admin"), None)
            .await
            .expect(400);
    }
}

/// How many requests of the flood are sent, a third each by nobody, by one caller, and by different callers.
const SENT: u64 = 390;

#[tokio::test]
async fn a_flood_of_refusals_leaves_few_events() {
    let service = by_headers(PCI).await;
    let begun = Instant::now();
    for number in 0..SENT {
        let headers = match number % 3 {
            0 => Vec::new(),
            1 => caller("eve", "netops"),
            _ => caller(&format!("bot{number}"), "netops"),
        };
        let status = if number % 3 == 0 { 401 } else { 403 };
        service.send_with(Method::POST, "/drift", headers, Some("{}".into())).await.expect(status);
    }
    // What was counted is recorded when the service stops.
    let mut service = service;
    service.signal("TERM");
    assert!(service.ended(Duration::from_secs(20)).await);
    service.start_again().await;
    let refused = events(&service, "kind=request.refused").await;
    let counts = refused.iter().map(|event| event["to"]["count"].as_u64().unwrap());
    assert_eq!(counts.sum::<u64>(), SENT, "{refused:#?}");
    let of_eve: Vec<_> = refused.iter().filter(|event| event["user"] == "eve").collect();
    let counts = of_eve.iter().map(|event| event["to"]["count"].as_u64().unwrap());
    assert_eq!(counts.sum::<u64>(), SENT / 3, "{of_eve:#?}");
    // A slow machine needs several minutes, each of which has its own events.
    let minutes = 2 + usize::try_from(begun.elapsed().as_secs() / 60).unwrap();
    assert!((2..=1 + minutes).contains(&of_eve.len()), "{} events of one caller", of_eve.len());
    assert!(refused.len() <= 112 * minutes, "{} events for {SENT} refusals", refused.len());
    assert!(refused.iter().any(|event| event["who"] == "several users"), "{refused:#?}");
    let lines = service.log().lines().filter(|line| line.contains("hotslot::audit")).count();
    assert!(lines <= 112 * minutes, "{lines} lines");
}

fn cli(arguments: &[&str]) -> (Option<i32>, String, String) {
    let said = Command::new(binary()).args(arguments).env_remove("HOTSLOT_CONFIG").output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (said.status.code(), text(said.stdout), text(said.stderr))
}

#[tokio::test]
async fn changes_of_the_tokens_are_recorded_and_events_are_filtered_by_user() {
    let mut service = Hotslot::on("small").await;
    let file = service.database().with_file_name("tokens");
    let config = service.database().with_file_name("hotslot.toml").display().to_string();
    service
        .reconfigure("[database]\n", &format!("[identity]\ntokens = \"{}\"\n[database]\n", file.display()));
    service.kill();
    service.start_again().await;
    let make = |name: &str| {
        let said = cli(&["token", "create", name, "--role", "admin", "--config", &config]);
        assert_eq!(said.0, Some(0), "{said:?}");
        said.1.trim().to_owned()
    };
    let token = make("ops");
    let all = async || service.get("/events?kind=token.changed").await.expect(200).body["events"].clone();
    service.until("the new token is recorded", async || all().await[0].is_object()).await;
    let event = &all().await[0];
    assert_eq!((&event["user"], &event["user_id"]), (&json!("root"), &json!("0")), "{event}");
    assert_eq!(event["to"]["tokens"]["ops"]["roles"], json!(["admin"]), "{event}");
    assert_eq!((&event["to"]["owner"], &event["to"]["count"]), (&json!("root"), &json!(1)));
    assert!(!event.to_string().contains("hst_") && !event.to_string().contains("hash"), "{event}");

    // A change while no service runs is recorded at the next start.
    service.kill();
    cli(&["token", "revoke", "ops", "--config", &config]);
    let token_2 = make("spare");
    service.start_again().await;
    service
        .until("the change is recorded", async || {
            service.get("/events?kind=token.changed").await.body["events"][1].is_object()
        })
        .await;
    let event = service.get("/events?kind=token.changed").await.body["events"][1].clone();
    assert!(event["to"]["tokens"]["spare"].is_object() && event["to"]["tokens"]["ops"].is_null(), "{event}");

    let bearer = [("authorization".to_owned(), format!("Bearer {token_2}"))];
    let body = json!({ "pciAttachment": { "pci_passthrough:alias": "vf:1" } }).to_string();
    service.send_with(Method::POST, &attachments(Q35), bearer, Some(body)).await.expect(200);
    for (filter, some) in
        [("--user=spare", true), ("--user-id=spare", true), ("--user=ops", false), ("--project=p", false)]
    {
        let (code, out, err) = cli(&["events", filter, "--url", service.url()]);
        assert_eq!((code, out.contains("attachment.state")), (Some(0), some), "{filter}: {out}{err}");
    }
    assert!(!service.log().contains(&token) && !service.log().contains(&token_2));
}
