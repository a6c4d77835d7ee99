//! The page of one person (`hotslot ui`), and the made-up host (`hotslot serve --simulate`).

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};

use hotslot_tests::{Api, Hotslot, binary};
use reqwest::Method;

use super::sessions::request_line;
use crate::socket::at_socket;
use crate::users::as_nobody;

/// A program that runs until it is dropped.
pub(super) struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // As Ctrl-C does, so that the program removes what it made.
        let _ = Command::new("kill").args(["-INT", &self.0.id().to_string()]).status();
        let _ = self.0.wait();
    }
}

/// Runs hotslot until it has printed a link.
fn link_of(arguments: &[&str]) -> (Running, String) {
    let mut command = Command::new(binary());
    command
        .args(arguments)
        .env_remove("HOTSLOT_CONFIG")
        .env_remove("HOTSLOT_URL")
        .env_remove("HOTSLOT_TOKEN");
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
    let link = lines.find(|line| line.trim().starts_with("http://")).expect("a link");
    std::thread::spawn(move || lines.for_each(drop));
    (Running(child), link.trim().to_owned())
}

/// Serves the made-up host. Returns the program, the service, and the token of its administrator.
pub(super) fn made_up_host() -> (Running, Api, String) {
    let (running, link) = link_of(&["serve", "--simulate"]);
    let (url, token) = link.split_once("/ui/sign-in#token=").expect("the link of the page");
    (running, Api::at(url.to_owned()), token.to_owned())
}

#[tokio::test]
async fn only_the_browser_that_opened_the_link_acts_as_the_user() {
    let (service, socket, _dir) = at_socket("022", "").await;
    let (_running, link) = link_of(&["ui", "--url", &format!("unix:{}", socket.display())]);
    let at = link.find("/open").unwrap();
    let (base, open) = link.split_at(at);
    let api = Api::at(base.to_owned());
    let send = async |path: &str, headers: Vec<(String, String)>| {
        api.send_with(Method::GET, path, headers, None).await
    };
    for path in ["/ui/hosts", "/v2.1/servers", "/open?key=0", "/open"] {
        send(path, Vec::new()).await.expect(403);
    }
    // A program that looks at the link does not use it up, and another user of the machine cannot open it.
    api.send_with(Method::HEAD, open, Vec::new(), None).await.expect(405);
    let refused = String::from_utf8_lossy(&as_nobody(&request_line(base, open, "")).stdout).into_owned();
    assert!(refused.starts_with("HTTP/1.1 403") && refused.contains("uid 65534"), "{refused}");
    let opened = send(open, Vec::new()).await.expect(303);
    assert_eq!(opened.headers["location"], "/ui/home");
    let cookie = opened.headers["set-cookie"].to_str().unwrap();
    assert!(cookie.contains("HttpOnly") && cookie.contains("SameSite=Strict"), "{cookie}");
    let cookie = vec![("cookie".to_owned(), cookie.split(';').next().unwrap().to_owned())];
    send(open, Vec::new()).await.expect(403);
    // Also with the cookie, which a browser sends to other ports of the host, nobody else gets through.
    let stolen = format!("Cookie: {}\\r\\n", cookie[0].1);
    let refused = as_nobody(&request_line(base, "/ui/hosts", &stolen)).stdout;
    let refused = String::from_utf8_lossy(&refused).into_owned();
    assert!(refused.starts_with("HTTP/1.1 403") && !refused.contains("node1"), "{refused}");
    let page = send("/ui/hosts", cookie.clone()).await.expect(200);
    assert!(page.body.as_str().unwrap().contains("node1"));
    // The page is passed on, and nothing else.
    send("/v2.1/servers", cookie.clone()).await.expect(403);
    // A page of another site does not get through, also with the cookie.
    let mut evil = cookie;
    evil.push(("origin".to_owned(), "http://evil.example".to_owned()));
    send("/ui/hosts", evil).await.expect(403);
    service.expect_clean().await;
}

/// Runs `hotslot ui` until it ends by itself.
fn ui_at(url: &str) -> (Option<i32>, String) {
    let mut command = Command::new(binary());
    command.args(["ui", "--url", url]).env_remove("HOTSLOT_CONFIG").env_remove("HOTSLOT_TOKEN");
    let output = command.output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8_lossy(&text).into_owned())
}

#[tokio::test]
async fn a_link_is_printed_only_to_a_page_that_is_there() {
    let service = Hotslot::on("small").await;
    let (code, text) = ui_at(service.url());
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains(&format!("The page is at {}/ui.", service.url())), "{text}");
    // Nobody answers.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let closed = format!("http://{}", port.local_addr().unwrap());
    drop(port);
    let (code, text) = ui_at(&closed);
    assert_eq!(code, Some(5), "{text}");
    assert!(text.contains("is `hotslot serve` running?") && !text.contains("The page is at"), "{text}");
    let (code, text) = ui_at("unix:/nowhere/api.sock");
    assert!(code == Some(5) && text.contains("is `hotslot serve` running?"), "{text}");
    // Something else answers.
    for (answer, says) in [
        (
            "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello",
            "status 200 OK, and that is not the page of hotslot",
        ),
        ("HTTP/1.1 302 Found\r\nlocation: /login\r\ncontent-length: 0\r\n\r\n", "asks who you are first"),
        ("SSH-2.0-OpenSSH_9.2\r\n", "invalid HTTP"),
    ] {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let other = format!("http://{}", listener.local_addr().unwrap());
        let served = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let _ = std::io::Read::read(&mut stream, &mut [0; 1024]);
            std::io::Write::write_all(&mut stream, answer.as_bytes()).unwrap();
        });
        let (code, text) = ui_at(&other);
        served.join().unwrap();
        assert_eq!(code, Some(1), "{text}");
        assert!(text.contains("the page of hotslot is not at") && text.contains(says), "{text}");
        assert!(text.contains("--url") && !text.contains("The page is at"), "{text}");
    }
}

#[tokio::test]
async fn the_made_up_host_is_served_with_a_link_that_signs_in() {
    let (running, api, token) = made_up_host();
    api.until("the host is read", async || {
        let headers = vec![("x-auth-token".to_owned(), token.clone())];
        let page = api.send_with(Method::GET, "/ui/host?host=demo", headers, None).await;
        let text = page.body.as_str().unwrap_or_default().to_owned();
        page.status == 200
            && text.contains("NUMA node 1")
            && text.contains("Tesla T4")
            && text.contains("16 VFs, 16 free")
    })
    .await;
    let headers = || vec![("x-auth-token".to_owned(), token.clone())];
    // The host needs its disk and the interface of its default route, and says so.
    for (address, reason) in [("0000:4b:00.0", "root-filesystem"), ("0000:01:00.0", "network-route")] {
        let path = format!("/ui/function?host=demo&address={address}");
        let page = api.send_with(Method::GET, &path, headers(), None).await.expect(200);
        assert!(page.body.as_str().unwrap().contains(reason), "{address}: {}", page.body);
    }
    api.send_with(Method::GET, "/ui/hosts", Vec::new(), None).await.expect(303);
    drop(running);
}
