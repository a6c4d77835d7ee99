//! Sessions of the page: where they are valid, how they end, and links of other sites to the page.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::process::Command;
use std::time::Duration;

use hotslot_tests::{Api, Hotslot, Q35, attachments};
use reqwest::Method;
use serde_json::json;

use super::person::{Person, form_token, html, place};
use crate::door::with_tokens;
use crate::socket::at_socket;
use crate::users::as_nobody;

/// Returns a command of bash that sends a request with these headers to a service, and prints the answer.
pub(super) fn request_line(url: &str, path: &str, headers: &str) -> String {
    let at = url.trim_start_matches("http://");
    let (host, port) = at.split_once(':').unwrap();
    format!(
        "exec bash -c 'exec 3<>/dev/tcp/{host}/{port}; printf \"GET {path} HTTP/1.1\\r\\nHost: {at}\\r\\n{headers}\
         Connection: close\\r\\n\\r\\n\" >&3; timeout 20 cat <&3'"
    )
}

fn text(output: &std::process::Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[tokio::test]
async fn a_cookie_is_worth_nothing_to_another_user_of_the_machine() {
    let (service, _, _, [admin, ..]) = with_tokens().await;
    let mut person = Person::at(&service);
    person.sign_in(&admin).await.expect(303);
    let line = request_line(service.url(), "/ui/hosts", &format!("Cookie: {}\\r\\n", person.cookie));
    let stolen = text(&as_nobody(&line));
    assert!(stolen.starts_with("HTTP/1.1 303") && !stolen.contains("node1"), "{stolen}");
    let own = text(&Command::new("sh").args(["-c", &line]).output().unwrap());
    assert!(own.starts_with("HTTP/1.1 200") && own.contains("node1"), "{own}");
    // The name of the cookie has the port, so that other services of the host do not overwrite it.
    let port = service.url().rsplit(':').next().unwrap();
    assert!(person.cookie.starts_with(&format!("hotslot_page_{port}=")), "{}", person.cookie);
}

#[tokio::test]
async fn a_planted_cookie_keeps_nobody_out_and_a_new_sign_in_ends_the_session_before() {
    let (service, _, _, [admin, reader, _]) = with_tokens().await;
    let mut person = Person::at(&service);
    person.sign_in(&admin).await.expect(303);
    let own = person.cookie.clone();
    let name = own.split('=').next().unwrap();
    person.cookie = format!("{name}={}; {own}", "a".repeat(64));
    person.get("hosts").await.expect(200);
    person.cookie = own.clone();
    person.sign_in(&admin).await.expect(303);
    assert_ne!(person.cookie, own);
    let mut before = Person::at(&service);
    before.cookie = own;
    before.get("hosts").await.expect(303);
    // Somebody who signs in often ends only sessions of their own.
    let mut first = Person::at(&service);
    first.sign_in(&reader).await.expect(303);
    for _ in 0..16 {
        Person::at(&service).sign_in(&reader).await.expect(303);
    }
    first.get("hosts").await.expect(303);
    person.get("hosts").await.expect(200);
    // Both the beginning and the end of a session are in the log, with the user.
    let token = form_token(html(&person.get("account").await.expect(200)));
    person.send_as("sign-out", &[], &token).await.expect(303);
    let log = service.log();
    let line = |text: &str| log.lines().any(|line| line.contains(text) && line.contains("ops"));
    assert!(line("answered POST /ui/sign-in") && line("answered POST /ui/sign-out"), "{log}");
    // To end a session that has ended is no error.
    let again = person.send_as("sign-out", &[], &token).await.expect(303);
    assert_eq!(place(&again), "sign-in");
}

#[tokio::test]
async fn only_a_token_that_the_service_takes_signs_in() {
    let (service, _, _, _) = with_tokens().await;
    let refused = Person::at(&service).sign_in(&"x".repeat(9000)).await.expect(401);
    assert!(html(&refused).contains("too long"), "{}", html(&refused));
    let (service, _, _dir) = at_socket("022", "").await;
    let mut person = Person::at(&service);
    let shown = person.get("account").await.expect(200);
    let token = form_token(html(&person.get("rule?kind=alias").await.expect(200)));
    assert!(!html(&shown).contains("Sign out"));
    person.send_as("sign-in", &[("token", "anything")], &token).await.expect(403);
}

/// A connection that follows the events.
fn follow(service: &Api, path: &str, header: &str) -> TcpStream {
    let at = service.url().trim_start_matches("http://").to_owned();
    let mut stream = TcpStream::connect(&at).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nHost: {at}\r\n{header}\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).unwrap();
    let mut bytes = [0; 4096];
    let length = stream.read(&mut bytes).unwrap();
    let begun = String::from_utf8_lossy(&bytes[..length]).into_owned();
    assert!(begun.starts_with("HTTP/1.1 200"), "{begun}");
    stream
}

/// Reads what comes until the service ends the stream.
fn rest(mut stream: TcpStream) -> String {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).unwrap();
    String::from_utf8_lossy(&bytes).into_owned()
}

#[tokio::test]
async fn a_stream_of_events_ends_with_the_session_and_with_the_token() {
    let (service, _, config, [admin, reader, _]) = with_tokens().await;
    let mut person = Person::at(&service);
    person.sign_in(&admin).await.expect(303);
    let page = follow(&service, "/ui/live?", &format!("Cookie: {}", person.cookie));
    let token = format!("X-Auth-Token: {reader}");
    let program = follow(&service, "/v2.1/events?follow=true&last=0", &token);
    let still = follow(&service, "/v2.1/events?follow=true&last=0", &format!("X-Auth-Token: {admin}"));
    let form = form_token(html(&person.get("account").await.expect(200)));
    person.send_as("sign-out", &[], &form).await.expect(303);
    let mut revoke = Command::new(hotslot_tests::binary());
    assert!(revoke.args(["token", "revoke", "watch", "--config", &config]).status().unwrap().success());
    let with = |token: &str| vec![("x-auth-token".to_owned(), token.to_owned())];
    service
        .until("the token is revoked", async || {
            service.send_with(Method::GET, "/v2.1/os-pci", with(&reader), None).await.status == 401
        })
        .await;
    let body = json!({ "pciAttachment": { "pci_passthrough:alias": "vf:1" } }).to_string();
    service.send_with(Method::POST, &attachments(Q35), with(&admin), Some(body)).await.expect(200);
    for ended in [page, program] {
        let read = rest(ended);
        assert!(!read.contains("attachment."), "{read}");
    }
    service.signal("TERM");
    let read = rest(still);
    assert!(read.contains("attachment."), "{read}");
}

#[tokio::test]
async fn the_service_stops_after_the_answer_to_a_form() {
    let mut service = Hotslot::on("small").await;
    let mut person = Person::at(&service);
    let token = form_token(html(&person.get(&format!("attach?id={Q35}")).await.expect(200)));
    service.sim("latency device 1000");
    let fields = [("id", Q35), ("alias0", "vf"), ("count0", "1"), ("step", "attach")];
    let url = service.url().to_owned();
    let (sent, log) = (person.send_as("attach", &fields, &token), service.log_length());
    let stop = async {
        Api::at(url)
            .until("the attach is under way", async || !service.attachments(Q35).await.is_empty())
            .await;
        service.signal("TERM");
    };
    let (_, ()) = tokio::join!(sent, stop);
    assert!(service.ended(Duration::from_secs(60)).await);
    assert!(!service.log_from(log).contains("ERROR"), "{}", service.log());
    service.start_again().await;
    assert_eq!(service.attachments(Q35).await[0]["status"], "attached");
}

#[tokio::test]
async fn a_page_counts_as_one_request_of_its_project() {
    let (service, _, _, [_, _, member]) = with_tokens().await;
    let mut person = Person::at(&service);
    person.sign_in(&member).await.expect(303);
    service.until("the host is read", async || service.try_get("/readyz").await.is_some()).await;
    let headers = vec![("cookie".to_owned(), person.cookie.clone())];
    let pages = (0..48).map(|_| service.send_with(Method::GET, "/ui/servers", headers.clone(), None));
    for answer in futures_util::future::join_all(pages).await {
        assert!(answer.status == 200 && !html(&answer).contains("cannot be read"), "{}", answer.body);
    }
}

#[tokio::test]
async fn a_link_of_another_site_arrives_and_does_nothing_else() {
    let (service, _, _, [admin, ..]) = with_tokens().await;
    let link = |site: &str, mode: &str| {
        [("sec-fetch-site", site), ("sec-fetch-mode", mode), ("sec-fetch-dest", "document")]
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
    };
    let follow = async |path: &str, headers: Vec<(String, String)>| {
        service.send_with(Method::GET, path, headers, None).await
    };
    // The browser sends no cookie, and must not get another one in its place.
    let bounced = follow("/ui/host?host=node1", link("cross-site", "navigate").to_vec()).await.expect(200);
    let next = "home?next=host%3Fhost%3Dnode1";
    assert!(html(&bounced).contains(&format!("content=\"0; url={next}\"")), "{}", html(&bounced));
    assert!(!bounced.headers.contains_key("set-cookie") && !html(&bounced).contains("node1<"));
    follow("/ui/hosts", link("cross-site", "no-cors").to_vec()).await.expect(403);
    follow("/v2.1/servers", link("cross-site", "navigate").to_vec()).await.expect(403);

    let mut person = Person::at(&service);
    let sent = person.get(next).await.expect(303);
    assert_eq!(place(&sent), "sign-in?next=home%3Fnext%3Dhost%253Fhost%253Dnode1");
    person.sign_in(&admin).await.expect(303);
    let sent = person.get(next).await.expect(303);
    assert_eq!(place(&sent), "host?host=node1");
    for other in ["home?next=home", "home?next=sign-out", "home?next=//evil.example", "home"] {
        assert_eq!(place(&person.get(other).await.expect(303)), "hosts", "{other}");
    }
    // An address that is too long for another one is left out.
    let long = format!("/ui/events?user={}", "%22".repeat(1000));
    let bounced = follow(&long, link("same-site", "navigate").to_vec()).await.expect(200);
    assert!(html(&bounced).contains("url=home?next=\""), "{}", html(&bounced));
}

#[tokio::test]
async fn an_entry_is_removed_whatever_else_the_form_has() {
    let service = Hotslot::on("small").await;
    let mut person = Person::at(&service);
    let entry = r#"{"vendor_id": "8086", "product_id": "10d3", "tag": "mine"}"#;
    let fields = [("kind", "whitelist"), ("entry", entry), ("step", "save")];
    person.send("rule?kind=whitelist", "rule", &fields).await.expect(303);
    let rules = person.get("rules").await.expect(200);
    let (_, rest) = html(&rules).split_once("rule?kind=whitelist&amp;id=").unwrap();
    let id = rest.split('"').next().unwrap().to_owned();
    let form = format!("rule?kind=whitelist&id={id}");
    let fields = [("kind", "whitelist"), ("id", &id), ("entry", "no JSON"), ("step", "remove")];
    person.send(&form, "rule", &fields).await.expect(303);
    assert!(!html(&person.get("rules").await.expect(200)).contains("mine"));
}

#[tokio::test]
async fn a_host_that_is_away_is_named_where_its_servers_are_missing() {
    let service = Hotslot::on("small").await;
    let mut person = Person::at(&service);
    service.sim("disconnect");
    service
        .until("the pages say so", async || {
            let headers = Vec::new();
            let page = service.send_with(Method::GET, "/ui/servers", headers, None).await;
            html(&page).contains("Host <strong>node1</strong> is away")
        })
        .await;
    let hosts = person.get("hosts").await.expect(200);
    assert!(html(&hosts).contains("away"));
}
