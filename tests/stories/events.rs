//! Events: their order, a killed service, followers, and pruning.

use std::collections::BTreeMap;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use hotslot_tests::{Api, Hotslot, I440FX, Q35, attachments, binary, host, path};
use serde_json::{Value, json};

const STATES: &str = "/v2/t/events?kind=attachment.state";

impl Events for Api {}

/// Helpers for requests of events.
trait Events {
    /// Returns the events of a path, from all pages.
    async fn events(&self, path: &str) -> Vec<Value>
    where
        Self: std::borrow::Borrow<Api>,
    {
        let (mut all, mut path) = (Vec::new(), path.to_owned());
        loop {
            let answer = self.borrow().get(&path).await.expect(200);
            all.extend(answer.body["events"].as_array().expect("a list").clone());
            let Some(next) = answer.body["events_links"][0]["href"].as_str() else { return all };
            path = next.split_once("/v2/").map(|(_, rest)| format!("/v2/{rest}")).expect("a path");
        }
    }
}

fn changes(events: &[Value]) -> Vec<(Option<&str>, Option<&str>)> {
    events.iter().map(|event| (event["from"].as_str(), event["to"].as_str())).collect()
}

#[tokio::test]
async fn events_of_attach_and_detach_are_in_order_and_name_the_request() {
    let service = Hotslot::on("small").await;
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let body = json!({ "pciAttachment": { "pci_passthrough:alias": "vf:1" } });
    let answer =
        client.post(format!("{}{}", service.url(), attachments(Q35))).json(&body).send().await.unwrap();
    let request = answer.headers()["x-openstack-request-id"].to_str().unwrap().to_owned();
    let answer: Value = answer.json().await.unwrap();
    let vf = &answer["pci_devices"][0];
    let id = vf["attachment_id"].as_str().unwrap();
    service.delete(&path(vf)).await.expect(200);

    let events = service.events(&format!("{STATES}&attachment={id}")).await;
    assert_eq!(
        changes(&events),
        [
            (None, Some("attaching")),
            (Some("attaching"), Some("attached")),
            (Some("attached"), Some("detaching")),
            (Some("detaching"), Some("detached")),
        ]
    );
    for event in &events {
        assert_eq!(event["host"], "node1");
        assert_eq!(event["server_id"], Q35);
        assert_eq!(event["address"], vf["address"]);
    }
    assert_eq!(events[0]["who"], format!("request {request}"));
    assert_eq!(events[1]["who"], events[0]["who"]);
    assert_ne!(events[2]["who"], events[0]["who"]);
    assert_eq!(events[3]["who"], events[2]["who"]);

    let all = service.events("/v2/t/events").await;
    let ids: Vec<_> = all.iter().map(|event| event["id"].as_i64().unwrap()).collect();
    assert_eq!(ids, (1..=ids.len() as i64).collect::<Vec<_>>(), "no gaps");
    assert!(all.iter().any(|event| event["who"] == "discovery" && event["kind"] == "device.added"));
    for version in ["/v2.1", "/v2.1/t", "/v3"] {
        assert_eq!(service.get(&format!("{version}/events")).await.expect(200).body["events"], json!(all));
    }
    assert_eq!(service.events("/v2/t/events?limit=3").await, all, "in pages");
    assert_eq!(service.events(&format!("/v2/t/events?since={}", ids[4])).await, all[5..]);
    assert_eq!(service.events("/v2/t/events?last=3&limit=2").await, all[all.len() - 3..]);
    assert_eq!(service.events(&format!("{STATES}&last=2&attachment={id}")).await, events[2..]);
    assert_eq!(service.events("/v2/t/events?host=elsewhere").await, [Value::Null; 0]);
    let of_device = format!("/v2/t/events?device={}", vf["address"].as_str().unwrap());
    let device = service.device(vf["address"].as_str().unwrap()).await;
    let by_id = format!("/v2/t/events?device={}", device["uuid"].as_str().unwrap());
    assert_eq!(service.events(&of_device).await, service.events(&by_id).await);
    assert!(service.events(&format!("/v2/t/events?server={Q35}&kind=device")).await.len() >= 3);
}

#[tokio::test]
async fn events_without_a_request_name_their_cause() {
    let service = Hotslot::on("small").await;
    let vf = service.attach(Q35, "vf:1").await.expect(200).body["pci_devices"][0].clone();
    let of_it = format!("{STATES}&attachment={}", vf["attachment_id"].as_str().unwrap());
    service.sim("guest q35 unplug=ignore");
    service.delete(&path(&vf)).await.expect(409);
    service.sim("reboot q35");
    service.until("the guest let go", async || service.events(&of_it).await.len() == 4).await;
    let events = service.events(&of_it).await;
    assert!(events[2]["who"].as_str().unwrap().starts_with("request req-"), "{events:#?}");
    assert_eq!((&events[3]["to"], &events[3]["who"]), (&json!("detached"), &json!("event")));

    let body = json!({ "whitelist": { "vendor_id": "10de" } });
    let rule = service.post("/v2/t/os-pci-config/whitelist", body).await.expect(201).body;
    let path = format!("/v2/t/os-pci-config/whitelist/{}", rule["whitelist"]["id"].as_str().unwrap());
    service.delete(&path).await.expect(204);
    let rules = service.events("/v2/t/events?kind=rule").await;
    assert_eq!((&rules[0]["kind"], &rules[1]["kind"]), (&json!("rule.added"), &json!("rule.removed")));
    assert_eq!(rules[0]["rule_id"], rule["whitelist"]["id"]);
    assert_eq!(rules[0]["to"], json!({ "kind": "whitelist", "entry": { "vendor_id": "10de" } }));
    assert_eq!(rules[1]["from"], rules[0]["to"]);
    assert_ne!(rules[1]["who"], rules[0]["who"]);
}

#[tokio::test]
async fn a_bad_query_is_refused_with_advice() {
    let service = Hotslot::on("small").await;
    for path in ["/events", "/drift", "/webhooks"] {
        assert_eq!(
            service.get(path).await.expect(200).body,
            service.get(&format!("/v2.1{path}")).await.expect(200).body
        );
    }
    for (query, why) in [
        ("since=x", "expected an event id"),
        ("since=-1", "expected an event id"),
        ("since=99999", "the last event is"),
        ("kind=attachments", "attachment.state"),
        ("device=99999", "GET os-pci lists them"),
        ("server=q35", "write all of it"),
        ("attachment=1", "write all of it"),
        ("last=-1", "0 to 65535"),
        ("limit=many", "at most 1000"),
        ("follow=yes", "expected true or false"),
        ("until=3", "unknown query key until; known: limit, since"),
        ("host=a&host=b", "twice"),
        ("follow=true&since=99999", "the last event is"),
    ] {
        let answer = service.get(&format!("/v2/t/events?{query}")).await.expect(400);
        assert!(answer.message().contains(why), "{query}: {}", answer.message());
    }
    service.post("/v2/t/events", json!({})).await.expect(405);
}

/// Fails the test unless each event of an attachment starts from the state of the previous one, and the last state is
/// the one on record.
async fn expect_chains(service: &Hotslot) -> usize {
    let mut chains = BTreeMap::<String, Option<String>>::new();
    for event in service.events(STATES).await {
        let id = event["attachment_id"].as_str().unwrap().to_owned();
        let before = chains.insert(id, event["to"].as_str().map(str::to_owned)).flatten();
        assert_eq!(before.as_deref(), event["from"].as_str(), "{event}");
    }
    let all = service.get("/v2/t/os-pci_attachments").await.expect(200).body;
    for row in all["pciAttachment"].as_array().unwrap() {
        let events = chains.remove(row["attachment_id"].as_str().unwrap());
        assert_eq!(events.flatten().as_deref(), row["status"].as_str(), "{row}");
    }
    let ended =
        |state: &Option<String>| state.as_deref().is_some_and(|it| it == "detached" || it == "failed");
    assert!(chains.values().all(ended), "{chains:?}");
    chains.len()
}

#[tokio::test]
async fn a_kill_loses_or_repeats_no_event() {
    let mut service = Hotslot::on("small").await;
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let body = json!({ "pciAttachment": { "pci_passthrough:alias": "vf:2" } });
    for round in 0..8u64 {
        service.sim("latency attach 40");
        service.sim("latency detach 40");
        let url = format!("{}{}", service.url(), attachments(Q35));
        let (poster, posted) = (client.clone(), body.clone());
        let deed = tokio::spawn(async move {
            let answer = poster.post(&url).json(&posted).send().await.ok()?;
            let answer: Value = answer.json().await.ok()?;
            for one in answer["pci_devices"].as_array()? {
                poster.delete(format!("{url}/{}", one["attachment_id"].as_str()?)).send().await.ok()?;
            }
            Some(())
        });
        tokio::time::sleep(Duration::from_millis(5 + 40 * round)).await;
        service.kill();
        let _ = deed.await.unwrap();
        service.start_again().await;
        let settled = async || {
            let rows = service.attachments(Q35).await;
            rows.iter().all(|row| row["status"] == "attached")
        };
        service.until("nothing is in transition", settled).await;
        expect_chains(&service).await;
        for row in service.attachments(Q35).await {
            service.delete(&path(&row)).await.expect(200);
        }
    }
    service.expect_clean().await;
    assert!(expect_chains(&service).await >= 8);
    let all = service.events("/v2/t/events").await;
    assert!(all.iter().zip(1..).all(|(event, id)| event["id"] == id), "no gaps over all the kills");
}

/// A client that follows the events.
struct Follower {
    response: reqwest::Response,
    text: String,
}

impl Follower {
    async fn new(service: &Api, query: &str, last: Option<i64>) -> Self {
        let client = reqwest::Client::builder().no_proxy().build().unwrap();
        let request = client.get(format!("{}/v2.1/events{query}", service.url()));
        let mut request = request.header("accept", "text/event-stream");
        if let Some(id) = last {
            request = request.header("last-event-id", id.to_string());
        }
        let response = request.send().await.unwrap();
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["content-type"], "text/event-stream");
        Self { response, text: String::new() }
    }

    /// Returns the fields of the next message by name.
    async fn message(&mut self) -> Option<BTreeMap<String, String>> {
        loop {
            if let Some((message, rest)) = self.text.split_once("\n\n") {
                let fields = message.lines().filter_map(|line| line.split_once(": "));
                let fields = fields
                    .filter(|(name, _)| !name.is_empty())
                    .map(|(name, value)| (name.into(), value.into()));
                let fields = fields.collect();
                self.text = rest.to_owned();
                return Some(fields);
            }
            let chunk = tokio::time::timeout(Duration::from_secs(20), self.response.chunk()).await;
            match chunk.expect("a message") {
                Ok(Some(chunk)) => self.text += std::str::from_utf8(&chunk).unwrap(),
                Ok(None) | Err(_) => return None,
            }
        }
    }

    /// Returns the next event.
    async fn event(&mut self) -> Option<Value> {
        loop {
            let message = self.message().await?;
            if let Some(data) = message.get("data") {
                let event: Value = serde_json::from_str(data).unwrap();
                assert_eq!(message["id"], event["id"].to_string());
                assert_eq!(message["event"], event["kind"]);
                return Some(event);
            }
        }
    }
}

#[tokio::test]
async fn a_follower_resumes_after_a_restart() {
    let mut service = Hotslot::on("small").await;
    let mut follower = Follower::new(&service, "?kind=attachment.state", None).await;
    let mut other = Follower::new(&service, &format!("?last=0&server={I440FX}"), None).await;
    let vf = service.attach(Q35, "vf:1").await.expect(200).body["pci_devices"][0].clone();
    let first = follower.event().await.unwrap();
    assert_eq!((&first["to"], &first["attachment_id"]), (&json!("attaching"), &vf["attachment_id"]));
    assert_eq!(follower.event().await.unwrap()["to"], "attached");

    // The follower reconnects after a restart, and receives the missed events and the new ones.
    service.kill();
    assert_eq!(follower.event().await, None);
    service.start_again().await;
    let mut follower = Follower::new(&service, "?kind=attachment.state&last=1", first["id"].as_i64()).await;
    assert_eq!(follower.event().await.unwrap()["to"], "attached");
    service.delete(&path(&vf)).await.expect(200);
    assert_eq!(follower.event().await.unwrap()["to"], "detaching");
    assert_eq!(follower.event().await.unwrap()["to"], "detached");

    // Resume by the query instead of the header.
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let url = format!("{}/v2.1/events?follow&last=0", service.url());
    assert_eq!(client.get(url).send().await.unwrap().headers()["content-type"], "text/event-stream");

    // Although no event matches the filter, the first message gives the current position.
    let position = other.message().await.unwrap();
    assert!(position["id"].parse::<i64>().unwrap() > 0 && !position.contains_key("data"), "{position:?}");
    assert_eq!(other.event().await, None);
}

#[tokio::test]
async fn a_follower_that_does_not_read_delays_nobody() {
    let service = Hotslot::on("small").await;
    let mut slow = Follower::new(&service, "", None).await;
    for _ in 0..20 {
        let vf = service.attach(Q35, "vf:1").await.expect(200).body["pci_devices"][0].clone();
        service.delete(&path(&vf)).await.expect(200);
    }
    let all = service.events("/v2/t/events").await;
    for event in all {
        assert_eq!(slow.event().await.unwrap(), event);
    }
}

#[tokio::test]
async fn followers_do_not_delay_the_shutdown() {
    let service = Hotslot::on("small").await;
    let mut follower = Follower::new(&service, "?last=1", None).await;
    follower.event().await.unwrap();
    let start = Instant::now();
    Command::new("kill").arg(service.pid().to_string()).status().unwrap();
    assert_eq!(follower.event().await, None);
    service.until("it ended", async || service.try_get("/healthz").await.is_none()).await;
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
}

#[tokio::test]
async fn old_events_are_pruned_and_late_readers_get_410() {
    let service = Hotslot::with(&host("small"), "[events]\nkeep = \"1s\"\n").await;
    let gone = async || service.get("/v2/t/events?since=1").await.status == 410;
    service.until("the first events are pruned", gone).await;
    let answer = service.get("/v2/t/events?since=1").await.expect(410);
    assert!(answer.message().contains("oldest available event"), "{}", answer.message());
    assert!(answer.body["gone"].is_object());
    assert!(service.events("/v2/t/events").await.iter().all(|event| event["id"] != 1), "0 is what is left");
}

#[tokio::test]
async fn the_events_command_lists_and_follows_events() {
    let mut service = Hotslot::on("small").await;
    let vf = service.attach(Q35, "vf:1").await.expect(200).body["pci_devices"][0].clone();
    let id = vf["attachment_id"].as_str().unwrap();
    let run = |url: &str, arguments: &str| {
        let mut command = Command::new(binary());
        command
            .args(arguments.split(' '))
            .env("HOTSLOT_URL", url)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    };
    let output = run(service.url(), &format!("events --server q35 --attachment {id}")).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.lines().next().unwrap().starts_with("ID "), "{text}");
    assert!(text.contains("attaching -> attached"), "{text}");
    let none = run(service.url(), "events --host elsewhere").output().unwrap();
    assert_eq!((none.stdout.len(), String::from_utf8(none.stderr).unwrap().as_str()), (0, "no events\n"));

    // The command follows the events across a kill of the service, on the same port.
    let url = service.url().to_owned();
    service.reconfigure("127.0.0.1:0", url.trim_start_matches("http://"));
    let mut followed = run(&url, "events -f --since 0 --kind attachment.state -o json").spawn().unwrap();
    let lines = std::io::BufRead::lines(std::io::BufReader::new(followed.stdout.take().unwrap()));
    let (heard, mut hears) = tokio::sync::mpsc::unbounded_channel::<Value>();
    std::thread::spawn(move || {
        for line in lines.map_while(Result::ok) {
            let _ = heard.send(serde_json::from_str(&line).unwrap());
        }
    });
    let mut next = async || {
        let event = tokio::time::timeout(Duration::from_secs(20), hears.recv()).await;
        event.expect("an event").expect("an event")["to"].as_str().unwrap().to_owned()
    };
    assert_eq!((next().await.as_str(), next().await.as_str()), ("attaching", "attached"));
    service.kill();
    service.start_again().await;
    service.delete(&path(&vf)).await.expect(200);
    assert_eq!((next().await.as_str(), next().await.as_str()), ("detaching", "detached"));
    followed.kill().unwrap();
    followed.wait().unwrap();
}

#[tokio::test]
async fn ended_attachments_are_kept_for_as_long_as_configured() {
    let service = Hotslot::with(&host("small"), "[records]\nkeep_ended = \"1s\"\n").await;
    let two = service.attach(Q35, "vf:2").await.expect(200).body["pci_devices"].clone();
    let ended = async || {
        let answer = service.get("/v2/t/os-pci_attachments?ended=true").await.expect(200).body;
        answer["pciAttachment"].as_array().unwrap().len()
    };
    service.delete(&path(&two[0])).await.expect(200);
    assert_eq!(ended().await, 1);
    // As long as one attachment of a request is kept, so are the others, because they show how many devices it was
    // given.
    tokio::time::sleep(Duration::from_millis(2500)).await;
    assert_eq!(ended().await, 1);
    service.delete(&path(&two[1])).await.expect(200);
    service.until("both are forgotten", async || ended().await == 0).await;
    service.get(&path(&two[0])).await.expect(404);
    assert!(!service.events("/v2/t/events?since=0").await.is_empty(), "events are kept independently");
}
