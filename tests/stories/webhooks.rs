//! Webhooks with receivers that fail, are slow, and recover.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use hmac::{Hmac, KeyInit as _, Mac as _};
use hotslot_tests::{Hotslot, Q35, host, path};
use serde_json::{Value, json};
use sha2::Sha256;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

const SECRET: &str = "a secret of the test";

#[derive(Debug, Clone, Copy, PartialEq)]
enum Mode {
    Well,
    Fails,
    Hangs,
}

/// A receiver of webhooks.
struct Receiver {
    url: String,
    mode: Arc<Mutex<Mode>>,
    heard: Arc<Mutex<Vec<Value>>>,
    tried: Arc<Mutex<u32>>,
}

impl Receiver {
    async fn new(mode: Mode) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/hooks/t0ken", listener.local_addr().unwrap());
        let (mode, heard, tried) = (Arc::new(Mutex::new(mode)), Arc::default(), Arc::default());
        let receiver = Self { url, mode, heard, tried };
        let (mode, heard, tried) =
            (Arc::clone(&receiver.mode), Arc::clone(&receiver.heard), Arc::clone(&receiver.tried));
        tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let (mode, heard, tried) = (Arc::clone(&mode), Arc::clone(&heard), Arc::clone(&tried));
                tokio::spawn(async move {
                    let Some((headers, body)) = request(&mut stream).await else { return };
                    *tried.lock().unwrap() += 1;
                    let mode = *mode.lock().unwrap();
                    let status = match mode {
                        Mode::Well => "204 No Content",
                        Mode::Fails => "500 Internal Server Error",
                        Mode::Hangs => return tokio::time::sleep(Duration::from_secs(60)).await,
                    };
                    if mode == Mode::Well {
                        heard.lock().unwrap().push(checked(&headers, &body));
                    }
                    let answer =
                        format!("HTTP/1.1 {status}\r\nconnection: close\r\ncontent-length: 0\r\n\r\n");
                    let _ = stream.write_all(answer.as_bytes()).await;
                });
            }
        });
        receiver
    }

    fn is(&self, mode: Mode) {
        *self.mode.lock().unwrap() = mode;
    }

    fn heard(&self) -> Vec<Value> {
        self.heard.lock().unwrap().clone()
    }

    fn tried(&self) -> u32 {
        *self.tried.lock().unwrap()
    }

    fn config(&self, more: &str) -> String {
        format!("[[webhook]]\nname = \"w\"\nurl = \"{}\"\nsecret = \"{SECRET}\"\n{more}\n", self.url)
    }
}

/// Returns the head and the body of a request.
pub(crate) async fn request(stream: &mut (impl AsyncRead + Unpin)) -> Option<(String, Vec<u8>)> {
    let mut bytes = Vec::new();
    loop {
        if let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") {
            let head = String::from_utf8(bytes[..end].to_vec()).unwrap();
            let length = head
                .lines()
                .find_map(|line| line.to_lowercase().strip_prefix("content-length: ")?.parse().ok());
            let length: usize = length.unwrap_or_default();
            if bytes.len() >= end + 4 + length {
                return Some((head, bytes.split_off(end + 4)));
            }
        }
        if stream.read_buf(&mut bytes).await.ok()? == 0 {
            return None;
        }
    }
}

fn header(head: &str, name: &str) -> String {
    let mut lines = head.lines().filter_map(|line| line.split_once(": "));
    let found = lines.find(|(key, _)| key.eq_ignore_ascii_case(name));
    found.unwrap_or_else(|| panic!("no {name} in {head}")).1.to_owned()
}

/// Returns the event of a request after checking its signature.
fn checked(head: &str, body: &[u8]) -> Value {
    let signature = header(head, "x-hotslot-signature");
    let (time, digits) = signature.strip_prefix("t=").and_then(|rest| rest.split_once(",v1=")).unwrap();
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    assert!(now.abs_diff(time.parse().unwrap()) < 60, "{signature}");
    let mut mac = Hmac::<Sha256>::new_from_slice(SECRET.as_bytes()).unwrap();
    mac.update(format!("{time}.").as_bytes());
    mac.update(body);
    let expected: String = mac.finalize().into_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(digits, expected);
    assert_eq!(header(head, "content-type"), "application/json");
    let event: Value = serde_json::from_slice(body).unwrap();
    assert_eq!(header(head, "x-hotslot-event-id"), event["id"].to_string());
    event
}

/// Returns the webhook as the service shows it.
async fn shown(service: &Hotslot) -> Value {
    service.get("/v2.1/webhooks").await.expect(200).body["webhooks"][0].clone()
}

async fn events_of(service: &Hotslot, query: &str) -> Vec<Value> {
    service.get(&format!("/v2.1/events{query}")).await.expect(200).body["events"].as_array().unwrap().clone()
}

async fn attach_and_detach(service: &Hotslot) {
    let vf = service.attach(Q35, "vf:1").await.expect(200).body["pci_devices"][0].clone();
    service.delete(&path(&vf)).await.expect(200);
}

#[tokio::test]
async fn every_event_is_delivered_in_order_and_signed() {
    let receiver = Receiver::new(Mode::Well).await;
    let service = Hotslot::with(&host("small"), &receiver.config("")).await;
    attach_and_detach(&service).await;
    let all = events_of(&service, "").await;
    service.until("all events are delivered", async || receiver.heard().len() == all.len()).await;
    assert_eq!(receiver.heard(), all);
    service.until("it is on record", async || shown(&service).await["behind"] == 0).await;
    let shown = shown(&service).await;
    assert_eq!((&shown["dead_letter_count"], &shown["attempts"]), (&json!(0), &json!(0)));
    assert!(!shown["told_at"].is_null());
    assert!(receiver.url.starts_with(shown["url"].as_str().unwrap()));
    for secret in [SECRET, "t0ken"] {
        assert!(!shown.to_string().contains(secret) && !service.log().contains(secret), "{secret} is shown");
    }
}

#[tokio::test]
async fn a_failing_receiver_gets_all_matching_events_in_order_later() {
    let receiver = Receiver::new(Mode::Fails).await;
    let service = Hotslot::with(&host("small"), &receiver.config("kinds = [\"attachment.state\"]")).await;
    attach_and_detach(&service).await;
    service.until("delivery was tried twice", async || receiver.tried() >= 2).await;
    let shown = shown(&service).await;
    assert!(shown["reason"].as_str().unwrap().contains("500"), "{shown}");
    assert!(!shown["next_attempt_at"].is_null() && shown["behind"].as_i64().unwrap() > 0, "{shown}");
    receiver.is(Mode::Well);
    service.until("all events are delivered", async || receiver.heard().len() == 4).await;
    assert_eq!(receiver.heard(), events_of(&service, "?kind=attachment.state").await);
}

#[tokio::test]
async fn undeliverable_events_become_dead_letters_until_redelivered() {
    let receiver = Receiver::new(Mode::Hangs).await;
    let more = "kinds = [\"attachment.state\"]\nattempts = 1\ntimeout = 1";
    let service = Hotslot::with(&host("small"), &receiver.config(more)).await;
    attach_and_detach(&service).await;
    service.until("all four died", async || shown(&service).await["dead_letter_count"] == 4).await;
    let letter = shown(&service).await["dead_letters"][0].clone();
    assert_eq!((&letter["attempts"], &letter["due"]), (&json!(1), &json!(false)));
    assert!(letter["reason"].as_str().unwrap().contains("no answer within 1 s"), "{letter}");

    receiver.is(Mode::Fails);
    service.post("/v2.1/webhooks/w/redeliver", json!({})).await.expect(202);
    let tried = async |count| {
        let letters = shown(&service).await["dead_letters"].as_array().unwrap().clone();
        letters.iter().all(|letter| letter["attempts"] == count && letter["due"] == false)
    };
    service.until("delivery was retried and failed", async || tried(2).await).await;

    // New events are delivered, and dead letters after a redeliver request.
    receiver.is(Mode::Well);
    attach_and_detach(&service).await;
    service.until("the new ones are delivered", async || receiver.heard().len() == 4).await;
    assert_eq!(shown(&service).await["dead_letter_count"], 4);
    let answer = service.post("/v2.1/webhooks/w/redeliver", json!({})).await.expect(202);
    assert_eq!(answer.body["webhook"]["name"], "w");
    service
        .until("there are no dead letters", async || shown(&service).await["dead_letter_count"] == 0)
        .await;
    let all = events_of(&service, "?kind=attachment.state").await;
    let heard = receiver.heard();
    assert_eq!((&heard[..4], &heard[4..]), (&all[4..], &all[..4]));
    let answer = service.post("/v2.1/webhooks/x/redeliver", json!({})).await.expect(404);
    assert!(answer.message().contains("webhook x"), "{}", answer.message());
}

#[tokio::test]
async fn delivery_resumes_after_a_kill() {
    let receiver = Receiver::new(Mode::Fails).await;
    let mut service = Hotslot::with(&host("small"), &receiver.config("")).await;
    attach_and_detach(&service).await;
    service.kill();
    receiver.is(Mode::Well);
    service.start_again().await;
    attach_and_detach(&service).await;
    let all = events_of(&service, "").await;
    service.until("all events are delivered", async || shown(&service).await["behind"] == 0).await;
    service.kill();
    let mut heard = receiver.heard();
    heard.dedup();
    assert_eq!(heard, all);
}

#[tokio::test]
async fn a_hanging_receiver_does_not_delay_the_shutdown() {
    let receiver = Receiver::new(Mode::Hangs).await;
    let service = Hotslot::with(&host("small"), &receiver.config("")).await;
    service.until("the receiver was called", async || receiver.tried() > 0).await;
    let start = std::time::Instant::now();
    std::process::Command::new("kill").arg(service.pid().to_string()).status().unwrap();
    service.until("it ended", async || service.try_get("/healthz").await.is_none()).await;
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
}
