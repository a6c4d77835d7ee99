//! Traces: in the answer of an attach or detach, at a collector of OpenTelemetry, and from the caller on to Keystone and
//! webhooks.

use std::sync::{Arc, Mutex};

use hotslot_tests::{Answer, Hotslot, Q35, host, path};
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message as _;
use reqwest::Method;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpListener;

use crate::webhooks::request;

const ATTACH: &str = r#"{"pciAttachment": {"pci_passthrough:alias": "vf:1"}}"#;

/// The names of the parts of a trace, each with the kind and with how deep it is.
fn parts(trace: &Value) -> Vec<String> {
    let parts = trace["parts"].as_array().unwrap();
    let word = |part: &Value, key: &str| part[key].as_str().unwrap().to_owned();
    parts
        .iter()
        .map(|part| format!("{} {} {}", part["level"], word(part, "kind"), word(part, "name")))
        .collect()
}

/// Checks that these lines are among others, in this order.
#[track_caller]
fn expect_in_order(found: &[String], expected: &[&str]) {
    let mut rest = found.iter();
    for line in expected {
        assert!(rest.any(|other| other == line), "{line} is not there, or not in its place: {found:#?}");
    }
}

#[tokio::test]
async fn the_answer_of_an_attach_and_a_detach_has_their_steps() {
    let service = Hotslot::with(&host("small"), "").await;
    let place = hotslot_tests::attachments(Q35);
    let ask = async |method: Method, path: &str, body: Option<&str>| {
        service.send_with(method, path, Vec::new(), body.map(str::to_owned)).await
    };
    let plain = ask(Method::POST, &place, Some(ATTACH)).await.expect(200);
    assert!(plain.body.get("trace").is_none(), "{}", plain.body);
    let attached = ask(Method::POST, &format!("{place}?trace=1"), Some(ATTACH)).await.expect(200).body;
    let trace = &attached["trace"];
    let expected = [
        "0 operation attach",
        "1 step wait",
        "1 step choose",
        "1 step reserve",
        "1 step render",
        "1 step plug",
        "2 call attach",
        "2 call domain",
        "1 step settle",
        "1 step verify",
    ];
    expect_in_order(&parts(trace), &expected);
    for part in trace["parts"].as_array().unwrap() {
        assert!(part["milliseconds"].is_number() && part["result"].is_string(), "{part}");
    }
    let dry = r#"{"pciAttachment": {"pci_passthrough:alias": "e1000e:1"}, "dry_run": true}"#;
    let dry = ask(Method::POST, &format!("{place}?trace=1"), Some(dry)).await.expect(200).body;
    assert!(dry["trace"]["parts"].is_array() && dry["dry_run"]["would_attach"] == true, "{dry}");

    let attachment = path(&attached["pci_devices"][0]);
    let later = attachment.replacen("/v2/t/", "/v2.1/", 1);
    let refused = ask(Method::DELETE, &format!("{later}?trace=1"), None).await.expect(400);
    assert!(refused.message().contains("under /v2"), "{}", refused.message());
    let detached = ask(Method::DELETE, &format!("{attachment}?trace=1"), None).await.expect(200).body;
    let expected = ["0 operation detach", "1 step release", "2 call detach"];
    expect_in_order(&parts(&detached["trace"]), &expected);
    for bad in ["trace=yes", "trace="] {
        let refused = ask(Method::POST, &format!("{place}?{bad}"), Some(ATTACH)).await.expect(400);
        assert!(refused.message().contains("expected 1 or 0"), "{}", refused.message());
    }
}

#[tokio::test]
async fn a_trace_is_for_administrators() {
    let mut service = Hotslot::on("small").await;
    service.reconfigure("[api]\n", "[api]\nidentity = \"headers\"\n");
    service.kill();
    service.start_again().await;
    let attach = async |role: &str, query: &str| -> Answer {
        let headers = [("x-user-id", "u"), ("x-project-id", "p"), ("x-roles", role)];
        let headers = headers.map(|(name, value)| (name.to_owned(), value.to_owned()));
        let path = format!("/v2.1/servers/{Q35}/os-pci_attachments{query}");
        service.send_with(Method::POST, &path, headers, Some(ATTACH.to_owned())).await
    };
    let refused = attach("member", "?trace=1").await.expect(403);
    assert!(refused.message().contains("hotslot:attachment:trace"), "{}", refused.message());
    assert!(attach("admin", "?trace=1").await.expect(200).body["trace"].is_object());
}

/// A collector of traces, a Keystone and a receiver of webhooks in one.
#[derive(Clone, Default)]
struct Receiver {
    /// The heads of the requests to Keystone and to the webhook.
    heads: Arc<Mutex<Vec<String>>>,
    spans: Arc<Mutex<Vec<Span>>>,
}

impl Receiver {
    /// Serves, and returns the address.
    async fn serve(&self) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let receiver = self.clone();
        tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let receiver = receiver.clone();
                tokio::spawn(async move {
                    let Some((head, body)) = request(&mut stream).await else { return };
                    let answer = receiver.answer(&head, &body);
                    let _ = stream.write_all(answer.as_bytes()).await;
                    let _ = stream.shutdown().await;
                });
            }
        });
        url
    }

    fn answer(&self, head: &str, body: &[u8]) -> String {
        let (status, body) = if head.starts_with("POST /v1/traces ") {
            let sent = ExportTraceServiceRequest::decode(body).unwrap();
            let scopes = sent.resource_spans.into_iter().flat_map(|resource| resource.scope_spans);
            self.spans.lock().unwrap().extend(scopes.flat_map(|scope| scope.spans));
            ("200 OK", String::new())
        } else {
            self.heads.lock().unwrap().push(head.to_owned());
            let token = json!({ "token": {
                "user": { "id": "u1", "name": "alice" }, "roles": [{ "name": "admin" }],
                "project": { "id": "p1", "name": "demo" }, "expires_at": "2099-01-01T00:00:00.000000Z",
            }});
            let status = if head.starts_with("POST /v3/auth/tokens ") { "201 Created" } else { "200 OK" };
            (status, token.to_string())
        };
        format!(
            "HTTP/1.1 {status}\r\nx-subject-token: t0ken\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        )
    }

    /// The values of `traceparent` in the requests that begin so.
    fn parents(&self, begins: &str) -> Vec<String> {
        let heads = self.heads.lock().unwrap();
        let of = |head: &String| {
            let lines = head.lines().filter_map(|line| line.split_once(": "));
            let mut found = lines.filter(|(name, _)| name.eq_ignore_ascii_case("traceparent"));
            found.next().map(|(_, value)| value.to_owned())
        };
        heads.iter().filter(|head| head.starts_with(begins)).filter_map(of).collect()
    }

    fn span(&self, name: &str) -> Option<Span> {
        self.spans.lock().unwrap().iter().find(|span| span.name == name).cloned()
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_callers_trace_goes_on_to_the_collector_to_keystone_and_to_webhooks() {
    const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
    const CALLER: &str = "b7ad6b7169203331";
    let receiver = Receiver::default();
    let url = receiver.serve().await;
    let dir = tempfile::tempdir().unwrap();
    let password = dir.path().join("password");
    std::fs::write(&password, "s3cret\n").unwrap();
    let config = format!(
        "[trace]\nendpoint = \"{url}\"\n[identity.keystone]\nurl = \"{url}/v3\"\nusername = \"hotslot\"\n\
         password_file = \"{}\"\n[[webhook]]\nname = \"w\"\nurl = \"{url}/hook\"\nsecret = \"0123456789abcdef\"\n",
        password.display()
    );
    let service = Hotslot::with(&host("small"), &config).await;
    let headers = [("x-auth-token", "anything"), ("traceparent", &format!("00-{TRACE}-{CALLER}-01"))];
    let headers = headers.map(|(name, value)| (name.to_owned(), value.to_owned()));
    let place = hotslot_tests::attachments(Q35);
    service.send_with(Method::POST, &place, headers, Some(ATTACH.to_owned())).await.expect(200);

    let names =
        ["attach", "choose", "reserve", "render", "plug", "hypervisor attach", "settle", "post to webhook w"];
    service.until("the spans arrive", async || names.iter().all(|name| receiver.span(name).is_some())).await;
    let root = "POST /v2/{tenant_id}/servers/{server_id}/os-pci_attachments";
    service.until("the request's own span arrives", async || receiver.span(root).is_some()).await;
    let span = |name: &str| receiver.span(name).unwrap();
    assert_eq!(hex(&span(root).parent_span_id), CALLER);
    for (child, parent) in [
        ("attach", root),
        ("choose", "attach"),
        ("settle", "attach"),
        ("plug", "attach"),
        ("hypervisor attach", "plug"),
        ("post to webhook w", root),
    ] {
        assert_eq!(hex(&span(child).parent_span_id), hex(&span(parent).span_id), "{child} in {parent}");
        assert_eq!(hex(&span(child).trace_id), TRACE, "{child}");
    }
    let ours = format!("00-{TRACE}-{}-01", hex(&span(root).span_id));
    // The service got its own token at its start.
    let asked = receiver.parents("GET /v3/auth/tokens");
    assert!(asked.contains(&ours), "{asked:?}");
    let posted = receiver.parents("POST /hook");
    assert!(!posted.is_empty() && posted.iter().all(|parent| parent.contains(TRACE)), "{posted:?}");
    assert!(!service.log().contains("spans are lost"), "{}", service.log());
}

#[tokio::test]
async fn a_collector_that_is_away_costs_a_line_of_the_log_and_nothing_else() {
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let service = Hotslot::with(&host("small"), &format!("[trace]\nendpoint = \"http://{free}\"\n")).await;
    service.attach(Q35, "vf:1").await.expect(200);
    service.until("the outage is logged", async || service.log().contains("spans are lost")).await;
}

#[tokio::test]
async fn without_a_collector_a_callers_trace_goes_on_all_the_same() {
    let receiver = Receiver::default();
    let url = receiver.serve().await;
    let config = format!("[[webhook]]\nname = \"w\"\nurl = \"{url}/hook\"\nsecret = \"0123456789abcdef\"\n");
    let service = Hotslot::with(&host("small"), &config).await;
    let parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let headers = vec![("traceparent".to_owned(), parent.to_owned())];
    let place = hotslot_tests::attachments(Q35);
    service.send_with(Method::POST, &place, headers, Some(ATTACH.to_owned())).await.expect(200);
    service.until("an event arrives", async || !receiver.parents("POST /hook").is_empty()).await;
    assert_eq!(receiver.parents("POST /hook")[0], parent);
    // A header that is no trace context is ignored.
    let headers = vec![("traceparent".to_owned(), "00-zz-1\u{e9}".to_owned())];
    service.send_with(Method::POST, &place, headers, Some(ATTACH.to_owned())).await.expect(200);
}
