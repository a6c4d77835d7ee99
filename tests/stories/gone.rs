//! Clients that disconnect at any moment: their requests are executed completely or not at all.

use std::time::{Duration, Instant};

use futures_util::future::join_all;
use hotslot_tests::{Hotslot, I440FX, Q35, attachments, host, path};
use serde_json::{Value, json};
use sqlx::{Connection as _, Row as _, SqliteConnection};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;

/// The time within which all work without a waiting client must have settled.
const SOON: Duration = Duration::from_secs(3);

/// The longest delay before a client disconnects, and the number of different delays.
const LONGEST: Duration = Duration::from_millis(12);
const MOMENTS: u32 = 60;

/// Sends a request, and disconnects after a delay without reading the response.
async fn ask_and_go(service: &Hotslot, method: &str, path: &str, body: &str, after: Duration) {
    let address = service.url().trim_start_matches("http://").to_owned();
    let length = body.len();
    let head = format!(
        "{method} {path} HTTP/1.1\r\nhost: {address}\r\ncontent-type: application/json\r\n\
         content-length: {length}\r\n\r\n"
    );
    let mut connection = TcpStream::connect(&address).await.unwrap();
    connection.write_all((head + body).as_bytes()).await.unwrap();
    tokio::time::sleep(after).await;
}

/// Returns the delays after which clients disconnect, in ascending order.
fn moments() -> impl Iterator<Item = Duration> {
    (0..MOMENTS).map(|number| LONGEST * number / MOMENTS)
}

/// Waits until a condition holds; returns false when it does not hold in time.
async fn soon(so: impl AsyncFn() -> bool) -> bool {
    let start = Instant::now();
    while !so().await {
        if start.elapsed() > SOON {
            return false;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    true
}

/// Returns the devices in the database, as a service that starts now would read them.
async fn on_disk(service: &Hotslot) -> Vec<(i64, String, bool)> {
    let url = format!("sqlite://{}", service.database().display());
    let mut database = SqliteConnection::connect(&url).await.unwrap();
    let rows = sqlx::query("SELECT id, status, used_at FROM pci_devices WHERE deleted = 0 ORDER BY id");
    let rows = rows.fetch_all(&mut database).await.unwrap();
    rows.iter().map(|row| (row.get(0), row.get(1), row.get::<Option<i64>, _>(2).is_some())).collect()
}

/// Returns the same from the API, which answers from memory.
async fn in_memory(service: &Hotslot) -> Vec<(i64, String, bool)> {
    let devices = service.get("/v2/t/os-pci/detail").await.expect(200).body["pci_devices"].clone();
    let of = |device: &Value| {
        let status = device["status"].as_str().unwrap().to_owned();
        (device["id"].as_i64().unwrap(), status, device["used_at"].is_string())
    };
    devices.as_array().unwrap().iter().map(of).collect()
}

/// Returns the id of the last event in the database.
async fn last_event(service: &Hotslot) -> i64 {
    let url = format!("sqlite://{}", service.database().display());
    let mut database = SqliteConnection::connect(&url).await.unwrap();
    sqlx::query_scalar("SELECT last FROM event_ids").fetch_one(&mut database).await.unwrap()
}

/// Whether the follower has received all events of the database.
async fn is_delivered(service: &Hotslot, heard: &tokio::sync::watch::Receiver<i64>) -> bool {
    let last = last_event(service).await;
    *heard.borrow() == last
}

/// Follows the events in the background, and returns a receiver of the last id.
async fn followed(service: &Hotslot) -> tokio::sync::watch::Receiver<i64> {
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let url = format!("{}/v2/t/events?follow&last=0", service.url());
    let mut stream = client.get(url).send().await.unwrap();
    let (heard, last) = tokio::sync::watch::channel(0);
    tokio::spawn(async move {
        let mut text = String::new();
        while let Ok(Some(chunk)) = stream.chunk().await {
            text += std::str::from_utf8(&chunk).unwrap();
            while let Some((line, rest)) = text.split_once('\n') {
                if let Some(id) = line.strip_prefix("id:") {
                    heard.send_replace(id.trim().parse().unwrap());
                }
                text = rest.to_owned();
            }
        }
    });
    last
}

#[tokio::test]
async fn a_detach_completes_when_its_client_disconnects() {
    let mut service = Hotslot::with(&host("small"), "[attach]\nverify = \"off\"").await;
    let heard = followed(&service).await;
    let (mut stuck, mut missed) = (0, 0);
    for after in moments() {
        let row = service.attach(Q35, "vf:1").await.expect(200).body["pci_devices"][0].clone();
        ask_and_go(&service, "DELETE", &path(&row), "", after).await;
        let settled = async || {
            let rows = service.attachments(Q35).await;
            rows.iter().all(|row| row["status"] == "attached")
        };
        stuck += u32::from(!soon(settled).await);
        missed += u32::from(!soon(async || is_delivered(&service, &heard).await).await);
        // The detach may not have begun. Detach what is left, so that the next round starts clean.
        for row in service.attachments(Q35).await {
            service.delete(&path(&row)).await.expect(200);
        }
    }
    assert_eq!(
        (stuck, missed),
        (0, 0),
        "of {MOMENTS}: rows that nobody settles, and events that nobody hears"
    );
    service.expect_clean().await;
    service.kill();
    service.start_again().await;
    service.expect_clean().await;
}

#[tokio::test]
async fn a_multi_device_detach_is_atomic_when_its_client_disconnects() {
    let pci = "[pci]\ndevice_spec = ['{\"vendor_id\": \"8086\"}']\n[attach]\nverify = \"off\"\n";
    let service = Hotslot::bare(&host("small"), pci, |_| ()).await;
    let accelerator = service.accelerator("two", json!({ "num": 2, "product_id": "10ca" })).await;
    let mut halves = 0;
    for after in moments() {
        service.put(&accelerator, json!({ "instance_uuid": I440FX })).await.expect(200);
        ask_and_go(&service, "DELETE", &accelerator, "", after).await;
        let whole = async || {
            let rows = service.attachments(I440FX).await;
            [0, 2].contains(&rows.len()) && rows.iter().all(|row| row["status"] == "attached")
        };
        // A request that had not begun when the client disconnected must not begin later.
        let steady = soon(whole).await && {
            tokio::time::sleep(Duration::from_millis(30)).await;
            soon(whole).await
        };
        halves += u32::from(!steady);
        service.delete(&accelerator).await.expect(204);
    }
    assert_eq!(halves, 0, "of {MOMENTS}: one device is given back, and one is not");
    service.expect_clean().await;
}

#[tokio::test]
async fn memory_and_disk_agree_when_clients_disconnect() {
    let pci = "[pci]\nreport_in_placement = true\ndevice_spec = ['{\"vendor_id\": \"1234\", \"one_time_use\": \"true\"}', \
               '{\"vendor_id\": \"8086\"}']\n\
               alias = ['{\"name\": \"edu\", \"vendor_id\": \"1234\", \"product_id\": \"11e8\"}']\n\
               [attach]\nverify = \"off\"\n";
    let service = Hotslot::bare(&host("small"), pci, |_| ()).await;
    let heard = followed(&service).await;
    let (mut differ, mut missed) = (0, 0);
    for after in moments() {
        let row = service.attach(I440FX, "edu:1").await.expect(200).body["pci_devices"][0].clone();
        service.delete(&path(&row)).await.expect(200);
        let device = service.device(row["address"].as_str().unwrap()).await;
        let action = format!("/v2/t/os-pci/{}/action", device["id"]);
        // Wait until the commits of the attach and detach are over, because they would refresh the memory.
        tokio::time::sleep(Duration::from_millis(150)).await;
        ask_and_go(&service, "POST", &action, r#"{"cleaned": null}"#, after).await;
        let same = async || in_memory(&service).await == on_disk(&service).await;
        differ += u32::from(!soon(same).await);
        missed += u32::from(!soon(async || is_delivered(&service, &heard).await).await);
        // The work after the end of an attachment may not be done yet.
        let cleaned = async || service.post(&action, json!({ "cleaned": null })).await.status == 200;
        service.until("it is cleaned", cleaned).await;
    }
    assert_eq!((differ, missed), (0, 0), "of {MOMENTS}: memory and disk, and events that nobody hears");
}

#[tokio::test]
async fn all_kinds_of_requests_settle_when_their_clients_disconnect() {
    let mut service = Hotslot::with(&host("small"), "[attach]\nverify = \"off\"").await;
    let heard = followed(&service).await;
    service.sim("latency attach 5");
    service.sim("latency detach 5");
    let oracle = hotslot_tests::oracle::Oracle::of(&service).await;
    for (number, after) in moments().enumerate() {
        let attach = json!({ "pciAttachment": { "pci_passthrough:alias": "nic:1" } }).to_string();
        let alias = r#"{"name": "x", "vendor_id": "8086"}"#.to_owned();
        let (server, other) = if number % 2 == 0 { (Q35, I440FX) } else { (I440FX, Q35) };
        let mut asked = vec![
            ("POST", attachments(server), attach),
            ("POST", "/v2/t/os-pci-config/alias".to_owned(), alias),
            ("POST", "/accelerators".to_owned(), json!({ "name": format!("n{number}") }).to_string()),
            ("POST", "/v2/t/drift".to_owned(), String::new()),
        ];
        for row in service.attachments(other).await {
            asked.push(("DELETE", path(&row), String::new()));
        }
        let asked = asked.iter().map(|(method, path, body)| ask_and_go(&service, method, path, body, after));
        join_all(asked).await;
    }
    oracle.settled(&service, Duration::from_secs(10)).await.unwrap();
    service.until("all events are delivered", async || is_delivered(&service, &heard).await).await;
    assert_eq!(in_memory(&service).await, on_disk(&service).await);
    let rows = service.attachments(Q35).await;
    service.kill();
    service.start_again().await;
    assert_eq!(service.attachments(Q35).await, rows);
    oracle.settled(&service, Duration::from_secs(10)).await.unwrap();
}

#[tokio::test]
async fn a_client_that_disconnects_within_its_body_blocks_nothing() {
    let mut service = Hotslot::on("small").await;
    let address = service.url().trim_start_matches("http://").to_owned();
    for _ in 0..20 {
        let mut connection = TcpStream::connect(&address).await.unwrap();
        let head = format!(
            "POST {} HTTP/1.1\r\nhost: {address}\r\ncontent-type: application/json\r\ncontent-length: 70\r\n\
             idempotency-key: half\r\n\r\n{{\"pciAtt",
            attachments(Q35)
        );
        connection.write_all(head.as_bytes()).await.unwrap();
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    // Its idempotency key is free, and no work of it is waiting.
    let body = json!({ "pciAttachment": { "pci_passthrough:alias": "vf:1" } }).to_string();
    let row =
        service.post_once(&attachments(Q35), "half", &body).await.expect(200).body["pci_devices"][0].clone();
    service.delete(&path(&row)).await.expect(200);
    service.expect_clean().await;
    let stop =
        std::process::Command::new("kill").args(["-TERM", &service.pid().to_string()]).status().unwrap();
    assert!(stop.success());
    assert!(service.ended(SOON).await, "some of its work is still running");
}

#[tokio::test]
async fn requests_of_disconnected_clients_complete_before_shutdown() {
    let mut service = Hotslot::with(&host("small"), "[attach]\nverify = \"off\"").await;
    service.sim("latency attach 600");
    let body = json!({ "pciAttachment": { "pci_passthrough:alias": "vf:2" } }).to_string();
    ask_and_go(&service, "POST", &attachments(Q35), &body, Duration::from_millis(100)).await;
    service.until("the request is running", async || !service.attachments(Q35).await.is_empty()).await;
    let stop =
        std::process::Command::new("kill").args(["-TERM", &service.pid().to_string()]).status().unwrap();
    assert!(stop.success());
    assert!(service.ended(Duration::from_secs(8)).await, "it does not end");
    // Both devices are plugged, live and in the definition.
    assert_eq!(service.plugged().len(), 4);
    service.start_again().await;
    let rows = service.attachments(Q35).await;
    assert!(rows.len() == 2 && rows.iter().all(|row| row["status"] == "attached"), "{rows:?}");
}
