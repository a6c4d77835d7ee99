//! The cost of connections: the memory of idle ones with and without TLS, the wait of a new client while idle ones hold
//! every file descriptor, and what 1,000 followers of the events add to an attach.
//!
//! The floors are measured in the same run: the service without connections, and an attach without followers.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use hotslot_service::tls;
use hotslot_tests::measure::{quantile, report, resident};
use hotslot_tests::{Hotslot, Q35, binary, path};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

const IDLE: usize = 4000;
const FOLLOWERS: usize = 1000;
const ROUNDS: usize = 300;
const GET: &str = "GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n";
/// Follows the events from now on.
const FOLLOW: &str = "GET /v2.1/events?follow&last=0 HTTP/1.1\r\nhost: localhost\r\n\r\n";
/// Reads all recorded events first.
const FOLLOW_ALL: &str = "GET /v2.1/events?follow HTTP/1.1\r\nhost: localhost\r\n\r\n";

trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<S: AsyncRead + AsyncWrite + Unpin + Send> Stream for S {}

/// Returns the service on a port with TLS, and the settings of its clients.
async fn over_tls(dir: &Path) -> (Hotslot, ClientConfig) {
    let made =
        rcgen::generate_simple_self_signed(["localhost".into(), "127.0.0.1".into()]).expect("a certificate");
    let (certificate, key) = (dir.join("server.pem"), dir.join("server.key"));
    fs::write(&certificate, made.cert.pem()).expect("write the certificate");
    fs::write(&key, made.signing_key.serialize_pem()).expect("write the key");
    let client =
        tls::client(tls::authorities(&certificate).expect("the certificate"), None).expect("a client");
    let mut service = Hotslot::on("small").await;
    service.kill();
    let listen = "listen = \"127.0.0.1:0\"\ninsecure_tcp = true\n";
    let files = format!("certificate = \"{}\"\nkey = \"{}\"\n", certificate.display(), key.display());
    service.reconfigure(listen, &format!("{listen}[api.tls]\n{files}"));
    service.connect_with(client.clone());
    service.start_again().await;
    (service, client)
}

/// Connects, sends a request, and returns the connection with the beginning of the response.
async fn ask(service: &Hotslot, tls: Option<&TlsConnector>, request: &str) -> (Box<dyn Stream>, String) {
    let address = service.url().split_once("://").expect("a URL").1;
    let stream = TcpStream::connect(address).await.expect("a connection");
    // As curl and browsers do. Otherwise the request waits for the acknowledgement of the end of the handshake.
    stream.set_nodelay(true).expect("a socket option");
    let mut stream: Box<dyn Stream> = match tls {
        Some(tls) => {
            let name = ServerName::try_from("localhost").expect("a name");
            Box::new(tls.connect(name, stream).await.expect("a handshake"))
        }
        None => Box::new(stream),
    };
    stream.write_all(request.as_bytes()).await.expect("send the request");
    let mut bytes = [0; 2048];
    let length = stream.read(&mut bytes).await.expect("a response");
    (stream, String::from_utf8_lossy(&bytes[..length]).into_owned())
}

/// Measures the memory of idle connections that were used once, and the time of a handshake and request.
async fn idle(what: &str, service: &Hotslot, client: Option<ClientConfig>) {
    let tls = client.map(|client| TlsConnector::from(Arc::new(client)));
    let before = resident(service.pid());
    let (mut open, mut times) = (Vec::new(), Vec::new());
    for _ in 0..IDLE {
        let start = Instant::now();
        let (stream, answer) = ask(service, tls.as_ref(), GET).await;
        times.push(start.elapsed());
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        open.push(stream);
    }
    tokio::time::sleep(Duration::from_secs(2)).await;
    let cost = resident(service.pid()) - before;
    let each = cost * 1024.0 / IDLE as f64;
    println!("{IDLE} idle connections, {what:20} {cost:8.1} MiB   {each:.1} KiB each");
    report(&format!("connect and request, {what}"), &mut times);
}

/// Measures how long a new client waits while idle clients hold every file descriptor of the service.
async fn exhausted() {
    let service = Hotslot::on("small").await;
    let open = fs::read_dir(format!("/proc/{}/fd", service.pid())).expect("its descriptors").count();
    let limit = format!("--nofile={0}:{0}", open + 200);
    let limited = Command::new("prlimit").args(["--pid", &service.pid().to_string(), &limit]).status();
    assert!(limited.expect("prlimit").success());
    let address = service.url().split_once("://").expect("a URL").1;
    let mut idle = Vec::new();
    for _ in 0..1000 {
        idle.push(TcpStream::connect(address).await.expect("a connection"));
    }
    let mut times = Vec::new();
    for _ in 0..10 {
        let start = Instant::now();
        let (_, answer) = ask(&service, None, GET).await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        times.push(start.elapsed());
        for _ in 0..200 {
            idle.push(TcpStream::connect(address).await.expect("a connection"));
        }
    }
    report("a new client without free descriptors", &mut times);
    println!("the longest wait                             {:.0} ms", quantile(&mut times, 1.0));
}

async fn attaches(service: &Hotslot) -> Vec<Duration> {
    let mut times = Vec::new();
    for _ in 0..ROUNDS {
        let start = Instant::now();
        let answer = service.attach(Q35, "vf:1").await.expect(200);
        times.push(start.elapsed());
        service.delete(&path(&answer.body["pci_devices"][0])).await.expect(200);
    }
    times
}

/// Measures attaches while clients follow the events, and before.
async fn followed(what: &str, request: &str) {
    let service = Hotslot::on("small").await;
    attaches(&service).await;
    let alone = report("attach, no followers", &mut attaches(&service).await);
    let heard = Arc::new(AtomicU64::new(0));
    for _ in 0..FOLLOWERS {
        let (mut stream, answer) = ask(&service, None, request).await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        let heard = Arc::clone(&heard);
        tokio::spawn(async move {
            let mut bytes = [0; 16 << 10];
            while let Ok(length) = stream.read(&mut bytes).await {
                if length == 0 {
                    return;
                }
                heard.fetch_add(length as u64, Ordering::Relaxed);
            }
        });
    }
    let with = report(&format!("attach, {FOLLOWERS} followers {what}"), &mut attaches(&service).await);
    println!("   over without                              {:.2}", with / alone);
    println!("the followers received                       {} MiB", heard.load(Ordering::Relaxed) >> 20);
}

#[tokio::main]
async fn main() {
    assert!(binary().display().to_string().contains("release"), "measure the release build: cargo bench");
    let service = Hotslot::on("small").await;
    idle("without TLS", &service, None).await;
    drop(service);
    let dir = tempfile::tempdir().expect("a directory");
    let (service, client) = over_tls(dir.path()).await;
    idle("with TLS", &service, Some(client)).await;
    drop(service);
    exhausted().await;
    followed("from now on", FOLLOW).await;
    followed("from the first event on", FOLLOW_ALL).await;
}
