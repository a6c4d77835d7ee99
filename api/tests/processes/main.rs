//! Several services on one PostgreSQL database and one host. Each service runs in a runtime of its own. When that
//! runtime is shut down, the work of the service ends wherever it is, and its connections break.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on")]

mod cluster;
mod lossy;
mod outages;
#[expect(unreachable_pub, dead_code, reason = "the black-box tests use it too, and all of it")]
#[path = "../../../tests/src/postgres.rs"]
mod postgres;

use std::collections::HashSet;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use hotslot_driver::hypervisor::ErrorKind;
use hotslot_model::assignment::State;
use hotslot_model::device::DeviceStatus;
use hotslot_model::event::EventFilter;
use hotslot_model::id::EventId;
use hotslot_model::rules::RuleKind;
use hotslot_service::assignment::DetachRequest;
use hotslot_service::error::Error;
use hotslot_service::inventory::Change;
use hotslot_service::service::Service;
use serde_json::Value;
use tokio::net::TcpListener;

use cluster::{Cluster, PATIENCE, Process, attach_once, client, request, until};

#[tokio::test(flavor = "multi_thread")]
async fn processes_see_each_others_changes() {
    let cluster = Cluster::new().await;
    let (one, other) = (cluster.process().await, cluster.process().await);
    let server = cluster.servers().await[0];
    let attached = one.attach(server, 1).await.unwrap().remove(0);
    assert_eq!(other.attachments().await.len(), 1);
    until("the allocation is known", async || other.statuses().contains(&DeviceStatus::Allocated)).await;
    other.detach(server, attached.id).await.unwrap();
    one.all_free().await;

    let text = r#"{"name": "new", "vendor_id": "8086", "product_id": "10d3"}"#.to_owned();
    let add = Change::Add { kind: RuleKind::Alias, text };
    let id = one.run(|service| async move { service.catalog.change_rules(add, false).await }).await.unwrap();
    until("the rule is in force", async || other.service.catalog.inventory().alias("new").is_some()).await;
    let remove = Change::Remove { kind: RuleKind::Alias, id };
    other.run(|service| async move { service.catalog.change_rules(remove, false).await }).await.unwrap();
    until("the rule is not", async || one.service.catalog.inventory().alias("new").is_none()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn four_processes_on_one_host_assign_no_device_twice() {
    const TURNS: usize = 20;
    let cluster = Cluster::new().await;
    let servers = cluster.servers().await;
    let mut processes = Vec::new();
    for _ in 0..4 {
        processes.push(Arc::new(cluster.process().await));
    }
    let given: Arc<Mutex<HashSet<_>>> = Arc::default();
    let mut clients = Vec::new();
    for client in 0..8 {
        let (processes, servers, given) = (processes.clone(), servers.clone(), Arc::clone(&given));
        clients.push(tokio::spawn(async move {
            let (mut attached, mut refusals) = (0, HashSet::new());
            for turn in 0..TURNS {
                // One process attaches, and the next one detaches.
                let (by, next) = (&processes[(client + turn) % 4], &processes[(client + turn + 1) % 4]);
                let server = servers[(client * 7 + turn) % servers.len()];
                let rows = match by.attach(server, 1 + turn % 2).await {
                    Ok(rows) => rows,
                    Err(refusal @ (Error::TooFewFree { .. } | Error::Conflict(_) | Error::Busy(_))) => {
                        refusals.insert(refusal.to_string());
                        continue;
                    }
                    // The guest was read before the detach of another client was complete.
                    Err(Error::Hypervisor { error, .. }) if error.kind == ErrorKind::AlreadyDefined => {
                        continue;
                    }
                    Err(error) => panic!("{error}"),
                };
                for row in &rows {
                    assert!(given.lock().unwrap().insert(row.device), "{row:?} was given twice");
                }
                for row in &rows {
                    assert!(given.lock().unwrap().remove(&row.device));
                    next.detach(server, row.id).await.unwrap();
                }
                attached += 1;
            }
            (attached, refusals)
        }));
    }
    let start = Instant::now();
    let (mut attached, mut refusals) = (0, HashSet::new());
    for client in clients {
        let (some, refused) = client.await.unwrap();
        attached += some;
        refusals.extend(refused);
    }
    println!("{attached} of {} attaches in {:?}", 8 * TURNS, start.elapsed());
    assert!(attached > 2 * TURNS, "{attached}: {refusals:?}");
    for process in &processes {
        process.all_free().await;
    }
    assert_eq!(cluster.plugged().await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn another_process_undoes_the_attach_of_a_dead_process() {
    let cluster = Cluster::new().await;
    let server = cluster.servers().await[0];
    let (one, other) = (cluster.process().await, cluster.process().await);
    cluster.sim.control("latency attach 300").unwrap();
    let service = Arc::clone(&one.service);
    one.runtime
        .as_ref()
        .unwrap()
        .spawn(async move { service.assignments.attach(request(server, "any", 3)).await });
    until("the second is being plugged", async || cluster.plugged().await == 1).await;
    // The other process knows the rows, and leaves them to the process that is working on them.
    let left = other.attachments().await;
    assert!(left.iter().all(|row| row.state == State::Attaching) && left.len() == 3, "{left:?}");
    one.die();
    let took = until("nothing is left", async || other.attachments().await.is_empty()).await;
    println!("3 attaching rows of a dead process were settled after {took:?}");
    other.all_free().await;
    until("nothing is plugged", async || cluster.plugged().await == 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn another_process_completes_the_detach_of_a_dead_process() {
    let cluster = Cluster::new().await;
    let server = cluster.servers().await[0];
    let (one, other) = (cluster.process().await, cluster.process().await);
    let row = one.attach(server, 1).await.unwrap().remove(0);
    // The process dies before it requests the unplug, so the guest does nothing by itself.
    cluster.sim.control("latency detach 600000").unwrap();
    let service = Arc::clone(&one.service);
    one.runtime.as_ref().unwrap().spawn(async move {
        service.assignments.begin_detach(server, row.id, DetachRequest::default()).await
    });
    until("the detach is on record", async || other.attachments().await[0].state == State::Detaching).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(other.attachments().await[0].state, State::Detaching, "the row is left to its process");
    one.die();
    cluster.sim.control("latency detach 1").unwrap();
    let took = until("it is gone", async || other.attachments().await.is_empty()).await;
    println!("a detaching row of a dead process was settled after {took:?}");
    other.all_free().await;
    assert_eq!(cluster.plugged().await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn followers_of_one_process_receive_events_of_another() {
    let cluster = Cluster::new().await;
    let (one, other) = (cluster.process().await, cluster.process().await);
    let server = cluster.servers().await[0];
    let url = format!("{}/events?follow&last=0&kind=attachment.state", other.serve().await);
    let mut followed = client().get(url).send().await.unwrap();
    let row = one.attach(server, 1).await.unwrap().remove(0);
    let done = Instant::now();
    let mut heard = String::new();
    while !heard.contains(r#""to":"attached""#) {
        let chunk = tokio::time::timeout(PATIENCE, followed.chunk()).await.expect("it is not heard");
        heard += std::str::from_utf8(&chunk.unwrap().unwrap()).unwrap();
    }
    println!("heard {:?} after it was done", done.elapsed());
    assert!(heard.contains(r#""to":"attaching""#) && heard.contains(&row.id.to_string()), "{heard}");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_idempotency_key_at_two_processes_is_executed_once() {
    let cluster = Cluster::new().await;
    let server = cluster.servers().await[0];
    let (one, other) = (cluster.process().await, cluster.process().await);
    let urls = [one.serve().await, other.serve().await];
    cluster.sim.control("latency attach 100").unwrap();
    let tries: Vec<_> = (0..6).map(|n| tokio::spawn(attach_once(urls[n % 2].clone(), server, "a"))).collect();
    let mut answers = Vec::new();
    for attempt in tries {
        answers.push(attempt.await.unwrap());
    }
    assert_eq!(answers[0].0, 200, "{}", answers[0].1);
    assert!(answers.iter().all(|answer| *answer == answers[0]), "{answers:#?}");
    assert_eq!((other.attachments().await.len(), cluster.plugged().await), (2, 2));

    // The process that executes the request dies, and another one executes it once.
    cluster.sim.control("latency attach 400").unwrap();
    let lost = tokio::spawn(attach_once(urls[0].clone(), server, "b"));
    until("the first is plugged", async || cluster.plugged().await == 3).await;
    let again = tokio::spawn(attach_once(urls[1].clone(), server, "b"));
    one.die();
    assert!(lost.await.is_err());
    let (status, body) = again.await.unwrap();
    // The first attempt is undone first, which depends on the guest.
    let answer = if status == 409 {
        assert!(body.to_string().contains("was interrupted"), "{body}");
        until("it is gone", async || other.attachments().await.len() == 2).await;
        attach_once(urls[1].clone(), server, "b").await
    } else {
        (status, body)
    };
    assert_eq!(answer.0, 200, "{}", answer.1);
    assert_eq!(attach_once(urls[1].clone(), server, "b").await, answer);
    until("both are there, once", async || {
        (other.attachments().await.len(), cluster.plugged().await) == (4, 4)
    })
    .await;
}

/// Receives webhooks, and returns its URL.
async fn receiver(heard: Arc<Mutex<Vec<i64>>>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    let hear = async move |axum::Json(event): axum::Json<Value>| {
        heard.lock().unwrap().push(event["id"].as_i64().unwrap());
    };
    let router = axum::Router::new().route("/", axum::routing::post(hear));
    tokio::spawn(axum::serve(listener, router).into_future());
    url
}

#[tokio::test(flavor = "multi_thread")]
async fn another_process_takes_over_the_webhook_of_a_dead_process() {
    let heard = Arc::<Mutex<Vec<i64>>>::default();
    let url = receiver(Arc::clone(&heard)).await;
    let webhook = format!("[[webhook]]\nname = \"w\"\nurl = \"{url}\"\nsecret = \"0123456789abcdef\"\n");
    let cluster = Cluster::with(&webhook, postgres::database().await);
    let server = cluster.servers().await[0];
    let (one, other) = (cluster.process().await, cluster.process().await);
    let tells =
        |process: &Process| process.service.webhooks.iter().next().unwrap().progress().delivered.is_some();
    until("one of them tells", async || tells(&one) || tells(&other)).await;
    for _ in 0..3 {
        for process in [&one, &other] {
            let row = process.attach(server, 1).await.unwrap().remove(0);
            process.detach(server, row.id).await.unwrap();
        }
    }
    let ids = async |process: &Process| {
        let all = async |service: Arc<Service>| {
            let all = service.records.events(EventId(0), &EventFilter::default(), 10_000).await.unwrap();
            all.iter().map(|event| event.id.0).collect::<Vec<_>>()
        };
        process.run(all).await
    };
    let complete = async |process: &Process| {
        let all = ids(process).await;
        heard.lock().unwrap().last() == all.last()
    };
    until("all events are delivered", async || complete(&one).await).await;
    // Events of the other process are delivered too, each once and in order.
    let all = ids(&one).await;
    let delivered = heard.lock().unwrap().clone();
    assert_eq!(delivered, all[all.len() - delivered.len()..]);
    assert!(tells(&one) != tells(&other), "one of them");

    let (dies, lives) = if tells(&one) { (one, other) } else { (other, one) };
    dies.die();
    let died = Instant::now();
    lives.attach(server, 1).await.unwrap();
    until("another goes on", async || complete(&lives).await).await;
    println!("delivered {:?} after the death of the process that delivered before", died.elapsed());
    let first = delivered[0];
    let delivered: HashSet<_> = heard.lock().unwrap().iter().copied().collect();
    assert!(ids(&lives).await.into_iter().filter(|id| *id >= first).all(|id| delivered.contains(&id)));
}
