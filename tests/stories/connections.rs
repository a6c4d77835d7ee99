//! Connections: their number and the number of followers are limited, and idle ones are closed.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::process::Command;
use std::time::{Duration, Instant};

use hotslot_tests::{Api, Hotslot, Q35};

const GET: &[u8] = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n";

fn address(service: &Api) -> SocketAddr {
    service.url().trim_start_matches("http://").parse().expect("an address")
}

fn connect(service: &Api) -> TcpStream {
    let stream = TcpStream::connect(address(service)).expect("a connection");
    stream.set_read_timeout(Some(Duration::from_secs(20))).expect("a time-out");
    stream
}

/// Reads the next data; empty when the service has closed the connection.
fn next(stream: &mut TcpStream) -> String {
    let mut bytes = [0; 4096];
    let length = match stream.read(&mut bytes) {
        Ok(length) => length,
        Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => 0,
        Err(error) => panic!("{error}"),
    };
    String::from_utf8_lossy(&bytes[..length]).into_owned()
}

/// Returns an idle connection on which one request has been answered.
fn kept(service: &Api) -> TcpStream {
    let mut stream = connect(service);
    stream.write_all(GET).expect("a request");
    assert!(next(&mut stream).starts_with("HTTP/1.1 200"));
    stream
}

#[tokio::test]
async fn inactive_connections_are_closed() {
    let limits = "listen = \"127.0.0.1:0\"\nheader_timeout = 1\nbody_timeout = 2\nidle_timeout = 4\n";
    let mut service = Hotslot::on("small").await;
    service.kill();
    service.reconfigure("listen = \"127.0.0.1:0\"\n", limits);
    service.start_again().await;
    let start = Instant::now();
    let mut silent = connect(&service);
    let mut idle = kept(&service);
    let mut header = connect(&service);
    header.write_all(b"GET /healthz HTTP/1.1\r\nHost: local").unwrap();
    let mut body = connect(&service);
    let post = b"POST /v2.1/drift HTTP/1.1\r\nHost: localhost\r\ncontent-type: application/json\r\ncontent-length: 9\r\n\r\n{";
    body.write_all(post).unwrap();
    // The body of a request for no route is not waited for.
    let mut nowhere = connect(&service);
    let post = b"POST /nothing HTTP/1.1\r\nHost: localhost\r\ncontent-type: application/json\r\ncontent-length: 9\r\n\r\n{";
    nowhere.write_all(post).unwrap();
    let response = next(&mut nowhere);
    assert!(response.starts_with("HTTP/1.1 404"), "{response}");
    assert_eq!(next(&mut header), "");
    assert!((1..4).contains(&start.elapsed().as_secs()), "{:?}", start.elapsed());
    let response = next(&mut body);
    assert!(response.starts_with("HTTP/1.1 408"), "{response}");
    assert!(start.elapsed() < Duration::from_secs(6), "{:?}", start.elapsed());
    assert_eq!((next(&mut silent), next(&mut idle)), (String::new(), String::new()));
    assert!((3..12).contains(&start.elapsed().as_secs()), "{:?}", start.elapsed());
}

/// Starts following the events, and returns the connection and the beginning of the response.
fn follow(service: &Api) -> (TcpStream, String) {
    let mut stream = connect(service);
    stream.write_all(b"GET /v2.1/events?follow&last=0 HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
    let answer = next(&mut stream);
    (stream, answer)
}

#[tokio::test]
async fn followers_and_connections_are_limited_and_idle_ones_make_room() {
    let mut service = Hotslot::on("small").await;
    service.kill();
    service.reconfigure(
        "listen = \"127.0.0.1:0\"\n",
        "listen = \"127.0.0.1:0\"\nconnections = 8\nfollowers = 4\n",
    );
    service.start_again().await;
    let mut following = Vec::new();
    for _ in 0..4 {
        let (stream, answer) = follow(&service);
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        following.push(stream);
    }
    let (_, answer) = follow(&service);
    assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
    assert!(answer.contains("retry-after: 5") && answer.contains("[api] followers"), "{answer}");

    // Any number of new connections can replace idle ones.
    for _ in 0..12 {
        following.push(kept(&service));
    }
    // Connections with a running request are not closed.
    let mut busy = Vec::new();
    for _ in 0..4 {
        let mut stream = connect(&service);
        let post = b"POST /v2.1/drift HTTP/1.1\r\nHost: localhost\r\ncontent-type: application/json\r\ncontent-length: 9\r\n\r\n";
        stream.write_all(post).unwrap();
        busy.push(stream);
        std::thread::sleep(Duration::from_millis(400));
    }
    let mut refused = connect(&service);
    refused.write_all(GET).unwrap();
    let answer = next(&mut refused);
    assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
    assert!(answer.contains("retry-after: 5") && answer.contains("[api] connections"), "{answer}");
    drop(busy);
    service
        .until("there is room again", async || {
            service.try_get("/healthz").await.is_some_and(|it| it.status == 200)
        })
        .await;
}

#[tokio::test]
async fn a_new_client_is_served_when_idle_ones_use_all_descriptors() {
    let service = Hotslot::on("small").await;
    let open = fs::read_dir(format!("/proc/{}/fd", service.pid())).unwrap().count();
    let limit = format!("--nofile={0}:{0}", open + 30);
    let limited =
        Command::new("prlimit").args(["--pid", &service.pid().to_string(), &limit]).status().unwrap();
    assert!(limited.success());
    let mut idle = Vec::new();
    for _ in 0..100 {
        idle.push(connect(&service));
    }
    let start = Instant::now();
    kept(&service);
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    // In the meantime, the client of the test also notices that its idle connection was closed.
    tokio::time::sleep(Duration::from_millis(500)).await;
    service.attach(Q35, "vf:1").await.expect(200);
    assert!(service.log().contains("no connection can be accepted"), "{}", service.log());
}

#[tokio::test]
async fn every_follower_receives_every_event_once() {
    let service = Hotslot::on("small").await;
    let mut all = Vec::new();
    for _ in 0..50 {
        all.push(follow(&service));
    }
    for _ in 0..3 {
        let vf = service.attach(Q35, "vf:1").await.expect(200).body["pci_devices"][0].clone();
        service.delete(&hotslot_tests::path(&vf)).await.expect(200);
    }
    let events = service.get("/v2.1/events?kind=attachment.state").await.expect(200).body["events"].clone();
    let events: Vec<_> = events.as_array().unwrap().iter().map(|event| event["id"].to_string()).collect();
    for (mut stream, mut text) in all {
        while !events.last().is_some_and(|last| text.contains(&format!("id: {last}\n"))) {
            let more = next(&mut stream);
            assert!(!more.is_empty(), "{text}");
            text += &more;
        }
        let heard: Vec<_> = text.split("id: ").skip(1).map(|rest| rest.split('\n').next().unwrap()).collect();
        for id in &events {
            assert_eq!(heard.iter().filter(|heard| **heard == id.as_str()).count(), 1, "{id}: {text}");
        }
    }
}
