//! A POST that is repeated with its `Idempotency-Key` is executed once, whatever happened to the first request.

use std::time::Duration;

use hotslot_tests::{Answer, Hotslot, Q35, attachments, host, path};
use serde_json::{Value, json};

const VF: &str = r#"{"pciAttachment": {"pci_passthrough:alias": "vf:1"}}"#;

async fn attach(service: &Hotslot, key: &str, body: &str) -> Answer {
    service.post_once(&attachments(Q35), key, body).await
}

/// Sends the request as a client that disconnects before the response.
fn attach_and_go(service: &Hotslot, key: &str, body: &str) -> tokio::task::JoinHandle<()> {
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let post = client
        .post(format!("{}{}", service.url(), attachments(Q35)))
        .header("idempotency-key", key)
        .header("content-type", "application/json")
        .body(body.to_owned());
    tokio::spawn(async move { drop(post.send().await) })
}

#[tokio::test]
async fn the_same_key_and_body_give_the_same_answer_and_one_device() {
    let mut service = Hotslot::on("small").await;
    let first = attach(&service, "k1", VF).await.expect(200).body;
    let spelled = r#"{ "pciAttachment":{"pci_passthrough:alias":"vf:1"} }"#;
    assert_eq!(attach(&service, "k1", spelled).await.expect(200).body, first);
    let other = attach(&service, "k1", &VF.replace("vf:1", "vf:2")).await.expect(422);
    assert!(other.message().contains("k1 was used with another body"), "{}", other.message());
    assert_eq!(other.body["unprocessableEntity"]["code"], 422);
    service.kill();
    service.start_again().await;
    assert_eq!(attach(&service, "k1", VF).await.expect(200).body, first);
    assert_eq!(service.attachments(Q35).await.len(), 1);
    // Another key or another path makes another request.
    let second = attach(&service, "k2", VF).await.expect(200).body;
    assert_ne!(first, second);
    let elsewhere = attachments(Q35).replace("/v2/t/", "/v3/");
    service.post_once(&elsewhere, "k1", VF).await.expect(400);
    // The stored response is returned, whatever has happened since.
    for one in [&first, &second] {
        service.delete(&path(&one["pci_devices"][0])).await.expect(200);
    }
    assert_eq!(attach(&service, "k1", VF).await.expect(200).body, first);
    service.expect_clean().await;
}

#[tokio::test]
async fn bad_keys_are_refused_with_advice() {
    let service = Hotslot::on("small").await;
    for bad in ["", "a b", &"x".repeat(256)] {
        let refused = attach(&service, bad, VF).await.expect(400);
        assert!(refused.message().contains("1 to 255 visible ASCII"), "{}", refused.message());
    }
    // A request whose body cannot be read is not stored under its key.
    attach(&service, "k1", "{").await.expect(400);
    attach(&service, "k1", VF).await.expect(200);
}

#[tokio::test]
async fn a_concurrent_retry_gets_the_response_of_the_first() {
    let service = Hotslot::on("small").await;
    service.sim("latency attach 300");
    let gone = attach_and_go(&service, "k1", VF);
    service.until("the request is running", async || !service.attachments(Q35).await.is_empty()).await;
    gone.abort();
    let tries = (0..4).map(|_| attach(&service, "k1", VF));
    let answers = futures_util::future::join_all(tries).await;
    for answer in &answers {
        assert_eq!((answer.status, &answer.body), (200, &answers[0].body));
    }
    let listed = service.attachments(Q35).await;
    assert_eq!(listed.len(), 1);
    assert_eq!(listed[0]["attachment_id"], answers[0].body["pci_devices"][0]["attachment_id"]);
}

#[tokio::test]
async fn a_retry_after_a_kill_finds_the_attached_devices() {
    let mut service = Hotslot::on("small").await;
    service.sim("latency attach 300");
    let body = VF.replace("vf:1", "e1000e:1,vf:1");
    let gone = attach_and_go(&service, "k1", &body);
    service.until("the host has both", async || service.plugged().len() == 4).await;
    service.kill();
    gone.await.unwrap();
    service.start_again().await;
    attach(&service, "k1", VF).await.expect(422);
    let found = attach(&service, "k1", &body).await.expect(200).body;
    let of = |key: &str| -> Vec<_> {
        found["pci_devices"].as_array().unwrap().iter().map(|device| device[key].clone()).collect()
    };
    assert_eq!(of("alias"), ["e1000e", "vf"]);
    assert_eq!(of("status"), ["attached", "attached"]);
    assert_eq!(service.plugged().len(), 4);
    assert_eq!(attach(&service, "k1", &body).await.expect(200).body, found);
    for one in found["pci_devices"].as_array().unwrap() {
        service.delete(&path(one)).await.expect(200);
    }
    service.expect_clean().await;
}

#[tokio::test]
async fn a_retry_after_a_kill_halfway_attaches_anew() {
    let mut service = Hotslot::on("small").await;
    service.sim("fault attach hang nth=2");
    let body = VF.replace("vf:1", "vf:2");
    let gone = attach_and_go(&service, "k1", &body);
    service.until("the host has the first", async || service.plugged().len() == 2).await;
    service.kill();
    gone.await.unwrap();
    service.start_again().await;
    let answer = loop {
        let answer = attach(&service, "k1", &body).await;
        if answer.status == 200 {
            break answer.body;
        }
        // Retries are refused with this message until the first attempt has been undone.
        assert_eq!(answer.status, 409, "{answer:?}");
        assert!(answer.message().contains("was interrupted"), "{}", answer.message());
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    assert_eq!(answer["pci_devices"].as_array().unwrap().len(), 2);
    assert_eq!(service.attachments(Q35).await.len(), 2);
    assert_eq!(service.plugged().len(), 4);
}

#[tokio::test]
async fn a_retry_after_a_clean_failure_attaches_anew() {
    let service = Hotslot::on("small").await;
    service.sim("fault attach fail nth=2 text=the-bus-is-on-fire");
    let body = VF.replace("vf:1", "vf:2");
    assert!(attach(&service, "k1", &body).await.status >= 400);
    let answer = attach(&service, "k1", &body).await.expect(200).body;
    assert_eq!(attach(&service, "k1", &body).await.expect(200).body, answer);
    assert_eq!(service.attachments(Q35).await.len(), 2);
}

#[tokio::test]
async fn retries_after_an_unknown_outcome_attach_one_device() {
    let service = Hotslot::on("small").await;
    service.sim("fault attach away at=after ms=300");
    attach(&service, "k1", VF).await.expect(503);
    service.until("a try is done", async || attach(&service, "k1", VF).await.status == 200).await;
    let listed = service.attachments(Q35).await;
    assert_eq!(listed.len(), 1, "{listed:?}");
    assert_eq!(service.plugged().len(), 2);
}

#[tokio::test]
async fn a_retry_does_not_attach_again_after_a_detach() {
    let service = Hotslot::on("small").await;
    let first = attach(&service, "k1", VF).await.expect(200).body["pci_devices"][0].clone();
    // As if the service had been killed before the response was stored.
    service.in_the_database("UPDATE idempotency_keys SET status = NULL, body = NULL").await;
    service.delete(&path(&first)).await.expect(200);
    let again = attach(&service, "k1", VF).await.expect(200).body["pci_devices"][0].clone();
    assert_eq!(again["attachment_id"], first["attachment_id"]);
    assert_eq!(again["status"], "detached");
    service.expect_clean().await;
}

#[tokio::test]
async fn events_of_a_request_with_a_key_name_the_request() {
    let service = Hotslot::on("small").await;
    attach(&service, "k1", VF).await.expect(200);
    let events = service.get("/events?kind=attachment.state").await.expect(200).body["events"].clone();
    let events = events.as_array().unwrap();
    assert!(
        events.len() == 2
            && events.iter().all(|event| event["who"].as_str().unwrap().starts_with("request ")),
        "{events:?}"
    );
    // A path may be longer than the longest key that a database index accepts.
    let long = format!("/v2/{}/servers/{Q35}/os-pci_attachments", "t".repeat(6000));
    for _ in 0..2 {
        service.post_once(&long, "k1", VF).await.expect(200);
    }
    assert_eq!(service.attachments(Q35).await.len(), 2);
}

#[tokio::test]
async fn an_idempotency_key_expires() {
    let service = Hotslot::on("small").await;
    let first = attach(&service, "k1", VF).await.expect(200).body;
    service.in_the_database("UPDATE idempotency_keys SET created_at = created_at - 86400000").await;
    let second = attach(&service, "k1", VF).await.expect(200).body;
    assert_ne!(first, second);
    assert_eq!(service.attachments(Q35).await.len(), 2);
}

#[tokio::test]
async fn a_rule_posted_twice_is_one_rule() {
    let service = Hotslot::on("small").await;
    let rules = "/v2.1/os-pci-config/alias";
    let rule = json!({ "alias": { "name": "a9", "vendor_id": "8086", "product_id": "10ca" } }).to_string();
    let count = async || service.get(rules).await.expect(200).body["alias"].as_array().unwrap().len();
    let before = count().await;
    let first = service.post_once(rules, "k1", &rule).await.expect(201).body;
    assert_eq!(service.post_once(rules, "k1", &rule).await.expect(201).body, first);
    assert_eq!(count().await, before + 1);
}

#[tokio::test]
async fn a_late_retry_does_not_clean_a_device_used_again() {
    let pci = "[pci]\nreport_in_placement = true\n\
               device_spec = ['{\"address\": \"0000:05:00.0\", \"one_time_use\": \"true\"}']\n\
               alias = ['{\"name\": \"once\", \"vendor_id\": \"8086\", \"product_id\": \"10d3\"}']\n";
    let service = Hotslot::bare(&host("small"), pci, |_| ()).await;
    let used = async || {
        let one = service.attach(Q35, "once:1").await.expect(200).body["pci_devices"][0].clone();
        service.delete(&path(&one)).await.expect(200);
    };
    used().await;
    let id = service.device("0000:05:00.0").await["id"].clone();
    let action = format!("/v2.1/os-pci/{id}/action");
    service.post_once(&action, "k1", r#"{"cleaned": null}"#).await.expect(200);
    used().await;
    service.post_once(&action, "k1", r#"{"cleaned": null}"#).await.expect(200);
    assert_ne!(service.device("0000:05:00.0").await["used_at"], Value::Null);
}
