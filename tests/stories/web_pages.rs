//! Requests of web pages: those of another origin or for another host name are refused.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener};
use std::process::Command;

use hotslot_tests::{Hotslot, Q35, attachments, host};
use serde_json::json;

use crate::socket::at_socket;

/// Returns the headers of a request from a web page.
fn page(headers: &[(&str, &str)]) -> Vec<(String, String)> {
    headers.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

#[tokio::test]
async fn a_web_page_of_another_origin_cannot_attach() {
    let service = Hotslot::on("small").await;
    let port = service.url().rsplit(':').next().unwrap().to_owned();
    let body = json!({ "pciAttachment": { "pci_passthrough:alias": "vf:1" } }).to_string();
    let evil = format!("evil.example:{port}");
    let rebound = format!("http://{evil}");
    for (headers, status) in [
        // fetch() of a page, without a preflight.
        (
            page(&[
                ("origin", "http://evil.example"),
                ("sec-fetch-site", "cross-site"),
                ("content-type", "text/plain"),
            ]),
            403,
        ),
        // From another port of this machine, from a sandboxed frame, and from another site.
        (page(&[("origin", "http://localhost:3000"), ("content-type", "application/json")]), 403),
        (page(&[("origin", "null"), ("content-type", "application/json")]), 403),
        (page(&[("sec-fetch-site", "same-site"), ("content-type", "application/json")]), 403),
        // DNS rebinding: for the browser the request has the same origin.
        (page(&[("host", &evil), ("origin", &rebound), ("sec-fetch-site", "same-origin")]), 421),
        (page(&[("host", &evil)]), 421),
        // Not from a page, but with a media type that a page could send without a preflight.
        (page(&[("content-type", "text/plain")]), 415),
        (page(&[("content-type", "application/x-www-form-urlencoded")]), 415),
    ] {
        let (post, path) = (reqwest::Method::POST, attachments(Q35));
        let answer = service.send_with(post, &path, headers.clone(), Some(body.clone())).await;
        assert_eq!(answer.status, status, "{headers:?}: {}", answer.body);
        assert!(!answer.message().is_empty());
        if status == 421 {
            assert!(answer.message().contains("[api]"), "{}", answer.message());
        }
    }
    // A preflight and a GET of a page are refused, too.
    let headers = page(&[("origin", "http://evil.example"), ("access-control-request-method", "POST")]);
    let preflight =
        service.send_with(reqwest::Method::OPTIONS, &attachments(Q35), headers, None).await.expect(403);
    assert!(!preflight.headers.contains_key("access-control-allow-origin"));
    let headers = page(&[("sec-fetch-site", "cross-site"), ("sec-fetch-mode", "no-cors")]);
    service.send_with(reqwest::Method::GET, "/v2/t/servers", headers, None).await.expect(403);
    let cyborg = service.send_with(
        reqwest::Method::POST,
        "/accelerator/v2/device_profiles",
        page(&[("origin", "http://evil.example")]),
        Some("[]".into()),
    );
    let fault = cyborg.await.expect(403).fault_string();
    assert!(fault.contains("web page"), "{fault}");
    service.expect_clean().await;
}

#[tokio::test]
async fn programs_and_pages_of_the_services_own_origin_are_admitted() {
    let service = Hotslot::on("small").await;
    let body = json!({ "pciAttachment": { "pci_passthrough:alias": "vf:1" } }).to_string();
    let headers = page(&[
        ("origin", service.url()),
        ("sec-fetch-site", "same-origin"),
        ("content-type", "application/json"),
    ]);
    let answer =
        service.send_with(reqwest::Method::POST, &attachments(Q35), headers, Some(body)).await.expect(200);
    for (name, value) in [("cache-control", "no-store"), ("x-content-type-options", "nosniff")] {
        assert_eq!(answer.headers[name], value);
        assert_eq!(service.get("/v2/t/nowhere").await.expect(404).headers[name], value);
    }
}

/// The malicious page: it sends requests in every way that needs no permission, and then changes its title.
const PAGE: &str = r#"<!doctype html><title>evil</title><body><iframe name="frame"></iframe>
<form method="post" target="frame" enctype="text/plain" action="URL"><input name='BODY' value=''></form><script>
const send = (more) => fetch("URL", { method: "POST", ...more }).then(() => "sent", (error) => "kept back: " + error);
document.forms[0].submit();
Promise.all([
  send({ mode: "no-cors", body: new Blob(['BODY']) }),
  send({ mode: "no-cors", body: 'BODY' }),
  send({ mode: "cors", headers: { "content-type": "application/json" }, body: 'BODY' }),
]).then((answers) => { document.title = "over"; document.body.append(answers.join("; ")); });
</script>"#;

/// Serves a page on a port of its own, and returns the address.
fn serve_page(page: String) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("an address");
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let _ = stream.read(&mut [0; 4096]);
            let head =
                format!("HTTP/1.1 200 OK\r\ncontent-type: text/html\r\ncontent-length: {}\r\n", page.len());
            let _ = stream.write_all(format!("{head}connection: close\r\n\r\n{page}").as_bytes());
        }
    });
    address
}

#[tokio::test]
#[ignore = "needs Chromium: apt-get install chromium; cargo test -p hotslot-tests --test stories web_pages:: -- --ignored"]
async fn a_web_page_in_chromium_on_the_host_cannot_attach() {
    let service = Hotslot::on("small").await;
    let body = json!({ "pciAttachment": { "pci_passthrough:alias": "vf:1" } }).to_string();
    let page = PAGE.replace("URL", &format!("{}{}", service.url(), attachments(Q35))).replace("BODY", &body);
    let evil = format!("http://evil.example:{}", serve_page(page).port());
    let profile = tempfile::tempdir().unwrap();
    let browse = |url: &str| {
        let mut browser = Command::new("chromium");
        browser.args([
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--virtual-time-budget=10000",
            "--dump-dom",
        ]);
        browser.arg("--host-resolver-rules=MAP evil.example 127.0.0.1");
        browser.arg(format!("--user-data-dir={}", profile.path().display())).arg(url);
        String::from_utf8_lossy(&browser.output().expect("chromium").stdout).into_owned()
    };
    let seen = browse(&evil);
    assert!(seen.contains("<title>over</title>"), "{seen}");
    let log = service.log();
    let asked = log.matches(&format!("path=\"{}\"", attachments(Q35))).count();
    assert!(asked >= 3 && log.contains("status=403"), "{seen}\n{log}");
    service.expect_clean().await;

    // DNS rebinding: the page has the service's own origin then.
    let rebound = service.url().replace("127.0.0.1", "evil.example");
    let seen = browse(&format!("{rebound}/v2/t/servers"));
    assert!(seen.contains("misdirectedRequest") && !seen.contains(Q35), "{seen}");
}

#[tokio::test]
async fn bodies_must_be_json_and_host_names_can_be_configured() {
    let service = Hotslot::with(&host("small"), "").await;
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    for method in
        [reqwest::Method::POST, reqwest::Method::PUT, reqwest::Method::DELETE, reqwest::Method::PATCH]
    {
        let url = format!("{}/accelerator/v2/accelerator_requests", service.url());
        let status = client.request(method.clone(), url).body("{}").send().await.unwrap().status();
        assert_eq!(status, 415, "{method}");
    }
    // A request without a body needs no media type.
    let url = format!("{}/v2.1/drift", service.url());
    assert_eq!(client.post(url).send().await.unwrap().status(), 200);

    let mut service = service;
    let named = page(&[("host", "hotslot.example")]);
    service.send_with(reqwest::Method::GET, "/healthz", named.clone(), None).await.expect(421);
    service.kill();
    service.reconfigure("[api]\n", "[api]\nhosts = [\"hotslot.example\"]\n");
    service.start_again().await;
    service.send_with(reqwest::Method::GET, "/healthz", named, None).await.expect(200);
}

#[tokio::test]
async fn web_pages_are_refused_behind_a_proxy_too() {
    let (service, _, _dir) = at_socket("022", "").await;
    for (headers, status) in [
        (page(&[]), 200),
        (page(&[("host", "anything.example")]), 200),
        (page(&[("host", "localhost"), ("origin", "http://evil.example")]), 403),
        (page(&[("host", "evil.example"), ("origin", "http://evil.example")]), 421),
        (page(&[("host", "evil.example"), ("sec-fetch-site", "same-origin")]), 421),
    ] {
        let answer = service.send_with(reqwest::Method::GET, "/v2/t/servers", headers.clone(), None).await;
        assert_eq!(answer.status, status, "{headers:?}");
    }
}
