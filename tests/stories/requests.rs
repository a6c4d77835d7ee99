//! Bad requests are refused with a clear message in Nova's fault form and change nothing. Responses have Nova's format.

use hotslot_tests::{Hotslot, Q35};
use reqwest::Method;
use serde_json::{Value, json};

/// Expands placeholders of the data file: `{q35}` is the guest's id, and `<300*x>` is 300 times x.
fn written_out(text: &str) -> String {
    let text = text.replace("{q35}", Q35);
    let mut parts = text.split('<');
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |whole, part| {
        let repeated = part.split_once('*').and_then(|(times, rest)| {
            let (piece, rest) = rest.split_once('>')?;
            Some(piece.repeat(times.parse().ok()?) + rest)
        });
        whole + &repeated.unwrap_or_else(|| format!("<{part}"))
    })
}

#[tokio::test]
async fn bad_requests_are_answered_in_novas_fault_form() {
    let service = Hotslot::on("small").await;
    let cases: Vec<Value> = serde_json::from_str(include_str!("../data/bad-requests.json")).unwrap();
    let mut others = Vec::new();
    for case in cases {
        let text = |key: &str| case[key].as_str().map(written_out);
        let method: Method = text("method").unwrap().parse().unwrap();
        let body = match &case["body"] {
            Value::Null => None,
            Value::String(raw) => Some(written_out(raw)),
            other => Some(written_out(&other.to_string())),
        };
        let kind = text("content_type").unwrap_or_else(|| "application/json".into());
        let mut headers: Vec<_> = body.iter().map(|_| ("content-type".to_owned(), kind.clone())).collect();
        for header in case["headers"].as_array().into_iter().flatten() {
            let times = header[2].as_u64().unwrap_or(1);
            let [name, value] = [0, 1].map(|part| written_out(header[part].as_str().unwrap()));
            headers.extend((0..times).map(|_| (name.clone(), value.clone())));
        }
        let answer = service.send_with(method, &text("path").unwrap(), headers, body).await;
        let (status, fault) = (case["status"].as_u64().unwrap(), text("fault").unwrap());
        assert_eq!(u64::from(answer.status), status, "{case}: {}", answer.body);
        assert_eq!(answer.body[&fault]["code"], status, "{case}: {}", answer.body);
        let says = text("says").unwrap();
        if !answer.message().contains(&says) {
            others.push(format!("{case}: {}", answer.message()));
        }
    }
    assert!(others.is_empty(), "these say something else:\n{}", others.join("\n"));
    service.expect_clean().await;
}

#[tokio::test]
async fn every_prefix_serves_the_servers() {
    let service = Hotslot::on("small").await;
    for prefix in ["/v2/demo", "/v2.1", "/v2.1/demo", "/v3"] {
        let list = service.get(&format!("{prefix}/servers")).await.expect(200);
        assert_eq!(list.body["servers"].as_array().unwrap().len(), 4, "{prefix}");
        let detail = service.get(&format!("{prefix}/servers/detail?name=q35")).await.expect(200);
        let server = &detail.body["servers"][0];
        assert_eq!((&server["id"], &server["name"]), (&json!(Q35), &json!("q35")));
        assert_eq!((&server["status"], &server["host"]), (&json!("ACTIVE"), &json!("node1")));
        assert_eq!(server["links"][0]["href"], format!("{}{prefix}/servers/{Q35}", service.url()));
        let one = service.get(&format!("{prefix}/servers/{Q35}")).await.expect(200);
        assert_eq!(one.body["server"]["id"], Q35);
        let attachments =
            service.get(&format!("{prefix}/servers/{Q35}/os-pci_attachments")).await.expect(200);
        assert_eq!(attachments.body, json!({ "pciAttachment": [] }));
    }
    let all = service.get("/v2.1/servers/detail").await.expect(200).body["servers"].clone();
    let (mut next, mut paged) = ("/v2.1/servers/detail?all_tenants=1&limit=3".to_owned(), Vec::new());
    while !next.is_empty() {
        let page = service.get(&next).await.expect(200).body;
        paged.extend(page["servers"].as_array().unwrap().clone());
        let href = page["servers_links"][0]["href"].as_str().unwrap_or_default();
        next = href.strip_prefix(service.url()).unwrap_or_default().to_owned();
    }
    assert_eq!(json!(paged), all);
    let off = service.get("/v2.1/servers?status=SHUTOFF").await.expect(200);
    assert_eq!(off.body["servers"][0]["name"], "switch");
    // Nova has this status, and no guest does.
    let building = service.get("/v2.1/servers?status=build").await.expect(200);
    assert_eq!(building.body["servers"], json!([]));
}

#[tokio::test]
async fn version_and_health_documents_are_served() {
    let service = Hotslot::on("small").await;
    let ids: Vec<Value> = service.get("/").await.expect(200).body["versions"]
        .as_array()
        .unwrap()
        .iter()
        .map(|version| version["id"].clone())
        .collect();
    assert_eq!(ids, ["v2.0", "v2.1", "v3.0"]);
    for (path, id) in [("/v2", "v2.0"), ("/v2.1", "v2.1"), ("/v2.1/", "v2.1"), ("/v3/", "v3.0")] {
        assert_eq!(service.get(path).await.expect(200).body["version"]["id"], id);
    }
    assert_eq!(service.get("/healthz").await.expect(200).body["status"], "ok");
    let ready = service.get("/readyz").await.expect(200).body;
    assert_eq!((&ready["status"], &ready["database"]), (&json!("ready"), &json!("ok")));
    assert_eq!(ready["hypervisors"], json!({ "node1": "ok" }));
}

#[tokio::test]
async fn a_simulated_host_is_marked_as_simulated() {
    let service = Hotslot::on("small").await;
    let hosts = service.get("/v2.1/os-hypervisors/detail").await.expect(200);
    assert_eq!(hosts.body["hypervisors"][0]["simulated"], true);
    assert_eq!(hosts.body["hypervisors"][0]["hypervisor_hostname"], "node1");
    assert_eq!(hosts.body["hypervisors"][0]["state"], "up");
}

/// The test client must not reuse a connection that the service closed while the test blocked its thread.
#[tokio::test]
async fn a_request_after_the_idle_time_is_sent_on_a_new_connection() {
    let mut service = Hotslot::on("small").await;
    service.kill();
    service.reconfigure("listen = \"127.0.0.1:0\"\n", "listen = \"127.0.0.1:0\"\nidle_timeout = 4\n");
    service.start_again().await;
    service.get("/healthz").await.expect(200);
    std::thread::sleep(std::time::Duration::from_secs(6));
    service.get("/healthz").await.expect(200);
}

#[tokio::test]
async fn names_with_invisible_characters_are_refused() {
    let service = Hotslot::on("small").await;
    for hidden in ['\u{200b}', '\u{ad}', '\u{202e}', '\u{2028}', '\u{feff}', '\u{e0041}', '\u{7}'] {
        let name = format!("a{hidden}1");
        for (path, body) in [
            ("/accelerators", json!({ "name": name })),
            (
                "/v2.1/os-pci-config/alias",
                json!({ "alias": { "name": name, "vendor_id": "8086", "product_id": "10ca" } }),
            ),
            ("/v2.1/os-pci-config/whitelist", json!({ "whitelist": { "vendor_id": "8086", "rack": name } })),
            (
                "/v2.1/os-pci-config/whitelist",
                json!({ "whitelist": { "vendor_id": "8086", (name.clone()): "r1" } }),
            ),
            (
                "/v2.1/os-pci-config/extra_info",
                json!({ "extra_info": { "match": { "vendor_id": "8086" }, "values": { "switch": name } } }),
            ),
            (
                "/accelerator/v2/device_profiles",
                json!([{ "name": "p1", "description": name, "groups": [{ "resources:PGPU": "1" }] }]),
            ),
        ] {
            let answer = service.post(path, body.clone()).await;
            assert_eq!(answer.status, 400, "{path} {body}: {}", answer.body);
            let body_text = answer.body.to_string();
            assert!(
                body_text.contains(&format!("U+{:04X}", u32::from(hidden))),
                "{path} {body}: {body_text}"
            );
            assert!(!body_text.contains(hidden), "{body_text}");
        }
    }
}
