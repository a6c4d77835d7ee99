//! Text of hosts, guests and callers must not control a terminal, forge a line of the log, or hide in an event.
//! `detach.rs` has the same for the answers of a guest's agent.

use std::path::Path;
use std::process::Command;

use hotslot_driver::text::is_unsafe;
use hotslot_tests::{Hotslot, I440FX, Q35, attachments, binary, host, path};
use reqwest::Method;
use serde_json::{Value, json};

/// What a host writes into its documents: a control sequence of C1, an override of the direction, and a line break.
const HOSTILE: &str = "&#x9b;2J&#x202e;&#x200b;&#10;2026-01-01T00:00:00Z  INFO hotslot: forged";

fn change(place: &Path, tags: &[&str]) {
    for entry in std::fs::read_dir(place).unwrap() {
        let file = entry.unwrap().path();
        let mut text = std::fs::read_to_string(&file).unwrap();
        for tag in tags {
            text = text.replace(&format!("</{tag}>"), &format!("{HOSTILE}</{tag}>"));
        }
        std::fs::write(&file, text).unwrap();
    }
}

/// Fails the test when a text has an unsafe character other than the line breaks of hotslot itself.
fn expect_safe(place: &str, text: &str) {
    let found = text.chars().find(|letter| *letter != '\n' && is_unsafe(*letter));
    assert_eq!(found, None, "{place}: {text:?}");
    assert!(!text.lines().any(|line| line.trim_start().starts_with("2026-01-01")), "{place}: {text}");
}

#[tokio::test]
async fn text_of_a_host_is_escaped_on_terminals_in_the_log_and_in_events() {
    const PCI: &str = r#"
[pci]
device_spec = ['{"vendor_id": "8086"}']
alias = ['{"name": "vf", "vendor_id": "8086", "product_id": "10ca", "device_type": "type-VF"}']
"#;
    let hostile = |place: &Path| {
        change(&place.join("devices"), &["product", "vendor", "serial", "serial_number"]);
        let guest = place.join("domains/full.xml");
        let text = std::fs::read_to_string(&guest).unwrap();
        let named = text.replacen("<name>full<", &format!("<name>full{HOSTILE}<"), 1);
        assert_ne!(named, text);
        std::fs::write(guest, named).unwrap();
    };
    let service = Hotslot::bare(&host("small"), PCI, hostile).await;
    let vf = service.attach(Q35, "vf:1").await.expect(200).body["pci_devices"][0].clone();
    service.sim("device remove pci_0000_05_00_0");
    let removed = async || {
        !service.get("/events?kind=device.removed").await.body["events"].as_array().unwrap().is_empty()
    };
    service.until("the device is removed", removed).await;
    service.delete(&path(&vf)).await.expect(200);
    let mut shown = 0;
    for command in [
        "server list",
        "device list --all",
        "topology node1",
        "host list",
        "host show node1",
        "pci list -l",
        "events",
        "attachment list --ended",
        "drift",
        "explain vf",
        "explain 04:10.0",
    ] {
        for format in ["table", "json"] {
            let mut program = Command::new(binary());
            let said = program
                .args(command.split(' '))
                .args(["-o", format, "--url", service.url()])
                .output()
                .unwrap();
            let text = |bytes: &[u8]| std::str::from_utf8(bytes).unwrap().to_owned();
            let (out, err) = (text(&said.stdout), text(&said.stderr));
            shown += usize::from(out.contains("forged"));
            expect_safe(command, &out);
            expect_safe(command, &err);
        }
    }
    assert!(shown >= 4, "the text of the host is shown by {shown} commands only");
    expect_safe("log", &service.log());
    let events = service.get("/events?limit=1000").await.expect(200).body;
    for event in events["events"].as_array().unwrap() {
        expect_safe("event", &texts(event));
    }
}

/// Returns all texts in a value, one after the other.
fn texts(value: &Value) -> String {
    match value {
        Value::String(text) => format!("{text} "),
        Value::Array(items) => items.iter().map(texts).collect(),
        Value::Object(members) => members.values().map(texts).collect(),
        Value::Null | Value::Bool(_) | Value::Number(_) => String::new(),
    }
}

/// The headers of a caller with this name, some of them replaced.
fn caller(name: &str, more: &[(&str, String)]) -> Vec<(String, String)> {
    let usual = [("x-user-id", "u"), ("x-user-name", name), ("x-project-id", "t"), ("x-roles", "admin")];
    let mut headers: Vec<_> = usual.map(|(key, value)| (key.to_owned(), value.to_owned())).to_vec();
    for (key, value) in more {
        headers.retain(|(name, _)| name != key);
        headers.push(((*key).to_owned(), value.clone()));
    }
    headers
}

/// Sends a name with hidden characters in bodies and headers, where it is refused.
async fn names_are_refused(service: &Hotslot, name: &str) {
    for (path, body) in [
        ("/accelerators", json!({ "name": name })),
        ("/accelerators", json!({ "name": "a", "acc_specs": { "device_type": name } })),
        ("/v2.1/os-pci-config/alias", json!({ "alias": { "name": name, "vendor_id": "8086" } })),
        ("/v2.1/os-pci-config/whitelist", json!({ "whitelist": { "vendor_id": "8086", "rack": name } })),
        (
            "/accelerator/v2/device_profiles",
            json!([{ "name": name, "groups": [{ "resources:CUSTOM_NIC": "1" }] }]),
        ),
        (
            "/accelerator/v2/device_profiles",
            json!([{ "name": "a", "description": name, "groups": [{ "resources:CUSTOM_NIC": "1" }] }]),
        ),
    ] {
        let headers = caller("alice", &[]);
        let answer = service.send_with(Method::POST, path, headers, Some(body.to_string())).await;
        assert_eq!(answer.status, 400, "{body}: {}", answer.body);
        expect_safe(path, &texts(&answer.body));
    }
    for (key, status) in [("x-user-id", 401), ("x-project-id", 401), ("idempotency-key", 400)] {
        let headers = caller("alice", &[(key, name.to_owned())]);
        let body = json!({ "name": "never" }).to_string();
        let answer = service.send_with(Method::POST, "/accelerators", headers, Some(body)).await;
        expect_safe(key, &texts(&answer.expect(status).body));
    }
}

/// A person with hidden characters in the name attaches a device, and is refused to detach it without a role.
async fn a_person_with_this_name_attaches(service: &Hotslot, name: &str) {
    let body = json!({ "pciAttachment": { "pci_passthrough:alias": "vf:1" } }).to_string();
    let headers = caller(name, &[("x-roles", format!("admin,{name}"))]);
    let made = service.send_with(Method::POST, &attachments(I440FX), headers, Some(body)).await.expect(200);
    let made = path(&made.body["pci_devices"][0]);
    let headers = caller(name, &[("x-roles", name.to_owned())]);
    service.send_with(Method::DELETE, &made, headers, None).await.expect(403);
    service.send_with(Method::DELETE, &made, caller("alice", &[]), None).await.expect(200);
}

#[tokio::test]
async fn text_of_a_caller_is_refused_at_the_door_or_escaped() {
    const HIDDEN: [&str; 4] = ["\u{9b}2J", "\u{202e}", "\u{200b}", "\u{2028}"];
    let mut service = Hotslot::on("small").await;
    service.reconfigure("[api]\n", "[api]\nidentity = \"headers\"\n");
    service.kill();
    service.start_again().await;
    for hidden in HIDDEN {
        let name = format!("a{hidden}b");
        names_are_refused(&service, &name).await;
        // Names of people may have such characters, for some languages need them. They are escaped.
        a_person_with_this_name_attaches(&service, &name).await;
        let path = format!("/v2.1/{}/os-pci", "%C2%9B2J%E2%80%AE%0A2026-01-01");
        service.send_with(Method::GET, &path, caller("alice", &[]), None).await.expect(200);
    }
    let refused = async || {
        let answer =
            service.send_with(Method::GET, "/events?kind=request.refused", caller("a", &[]), None).await;
        answer.body["events"].as_array().unwrap().len() >= 4
    };
    service.until("the refusals are recorded", refused).await;
    let events =
        service.send_with(Method::GET, "/events?limit=1000", caller("a", &[]), None).await.expect(200).body;
    let mut by_them = 0;
    for event in events["events"].as_array().unwrap() {
        by_them += usize::from(event["user"].as_str().is_some_and(|user| user.starts_with("a\\u{")));
        expect_safe("event", &texts(event));
    }
    assert!(by_them >= 8, "{by_them} events of callers with such names");
    expect_safe("log", &service.log());
}
