//! Attaches, detaches and locks when a connection to PostgreSQL, or PostgreSQL itself, fails.

use std::sync::Arc;
use std::time::Instant;

use hotslot_model::assignment::State;
use hotslot_model::device::DeviceStatus;
use hotslot_service::error::Error;
use hotslot_store::Store;
use sqlx::{Connection as _, PgConnection};

use crate::cluster::{Cluster, Process, attach_once, client, request, until};
use crate::lossy::Lossy;
use crate::postgres;

#[tokio::test(flavor = "multi_thread")]
async fn an_attach_continues_after_a_short_loss_of_its_locks() {
    let cluster = Cluster::new().await;
    let server = cluster.servers().await[0];
    let (one, other) = (cluster.process().await, cluster.process().await);
    cluster.sim.control("latency attach 1000").unwrap();
    let service = Arc::clone(&one.service);
    let attach = one.runtime.as_ref().unwrap();
    let attach = attach.spawn(async move { service.assignments.attach(request(server, "any", 3)).await });
    let mut database = PgConnection::connect(&cluster.database).await.unwrap();
    until("the second is being plugged", async || cluster.plugged().await == 1).await;
    // The connection with the locks breaks while the other process learns of the plugged device.
    let broken = sqlx::query(
        "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory' AND
             ((classid::bigint << 32) | objid::bigint) =
             hashtextextended('attachment ' || (SELECT MIN(id) FROM attachments WHERE state = 'attaching'), 0)",
    )
    .fetch_all(&mut database)
    .await
    .unwrap();
    assert_eq!(broken.len(), 1);
    let attached = attach.await.unwrap().unwrap();
    assert!(attached.iter().all(|(row, _)| row.state == State::Attached) && attached.len() == 3);
    assert_eq!(other.attachments().await.len(), 3);
    cluster.sim.control("latency attach 1").unwrap();
    for (row, _) in attached {
        other.detach(server, row.id).await.unwrap();
    }
    one.all_free().await;
    assert_eq!(cluster.plugged().await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_of_postgresql_executes_nothing_twice() {
    let mut database = postgres::Server::start();
    let cluster = Cluster::with("", database.database().await);
    let server = cluster.servers().await[0];
    let (one, other) = (cluster.process().await, cluster.process().await);
    let (first, urls) =
        (one.attach(server, 1).await.unwrap().remove(0), [one.serve().await, other.serve().await]);
    cluster.sim.control("latency attach 500").unwrap();
    let attach = tokio::spawn(attach_once(urls[0].clone(), server, "a"));
    until("the first is plugged", async || cluster.plugged().await == 2).await;
    database.tell("stop");
    let (status, body) = attach_once(urls[1].clone(), server, "b").await;
    assert_eq!(status, 503, "{body}");
    assert!(body.to_string().contains("PostgreSQL"), "{body}");
    let list = client().get(format!("{}/os-pci_attachments", urls[1])).send().await.unwrap();
    // A response that asks the client to check the state first has no Retry-After.
    assert_eq!((list.status().as_u16(), list.headers().contains_key("retry-after")), (503, false));
    database.tell("start");
    let back = Instant::now();
    let (status, body) = attach.await.unwrap();
    assert!([200, 503].contains(&status), "{status}: {body}");
    // Whatever the response was: the rows match the devices in the memory of both processes, and nothing is in
    // transition.
    let settled = async || {
        let rows = other.attachments().await;
        let allocated = |process: &Process| {
            process.statuses().iter().filter(|status| **status == DeviceStatus::Allocated).count()
        };
        rows.iter().all(|row| row.state == State::Attached)
            && [allocated(&one), allocated(&other), cluster.plugged().await] == [rows.len(); 3]
    };
    until("everything agrees", settled).await;
    println!("everything agreed {:?} after PostgreSQL was back", back.elapsed());
    let rows = other.attachments().await;
    assert!(rows.iter().any(|row| row.id == first.id) && [1, 3].contains(&rows.len()), "{rows:#?}");
    // The same key again returns the devices of the first request, or attaches them now.
    let (status, body) = attach_once(urls[1].clone(), server, "a").await;
    assert_eq!(status, 200, "{body}");
    until("everything agrees", settled).await;
    let rows = one.attachments().await;
    assert_eq!(rows.len(), 3);
    cluster.sim.control("latency attach 1").unwrap();
    for (process, row) in [&one, &other].into_iter().cycle().zip(rows) {
        process.detach(server, row.id).await.unwrap();
    }
    other.all_free().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_whose_answer_is_lost_is_settled() {
    let lossy = Lossy::to(&postgres::database().await);
    let cluster = Cluster::with("", lossy.url.clone());
    let one = cluster.process().await;
    let server = cluster.servers().await[0];
    for commits in 0..3 {
        *lossy.commits.lock().unwrap() = Some(commits);
        let attached = one.attach(server, 1).await;
        let lost = lossy.commits.lock().unwrap().is_none();
        println!("commit {commits} lost: {lost}; attached: {}", attached.is_ok());
        assert!(lost || attached.is_ok(), "{attached:?}");
        let agrees = async || {
            let rows = one.attachments().await;
            let count = |wanted| one.statuses().into_iter().filter(|status| *status == wanted).count();
            let [held, free] = [DeviceStatus::Allocated, DeviceStatus::Available].map(count);
            rows.iter().all(|row| row.state == State::Attached)
                && [held, 5 - free, cluster.plugged().await] == [rows.len(); 3]
        };
        until("everything agrees", agrees).await;
        *lossy.commits.lock().unwrap() = None;
        for row in one.attachments().await {
            one.detach(server, row.id).await.unwrap();
        }
        one.all_free().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_regains_locks_of_its_own_lingering_session() {
    let database = postgres::database().await;
    let lossy = Lossy::to(&database);
    let one = Store::open(&lossy.url, None).await.unwrap();
    let other = Store::open(&database, None).await.unwrap();
    let held = one.locks().lock("a".into()).await.unwrap();
    let worker = one.worker();
    for _ in 0..3 {
        lossy.broken.send_replace(());
        let has = async || one.locks().has(&held).await;
        until("the lock is regained", async || has().await.is_ok()).await;
        assert!(has().await.unwrap(), "no other process had the lock");
        assert!(other.locks().try_lock("a".into()).await.unwrap().is_none());
    }
    assert_eq!(one.worker(), worker, "the process id is unchanged");
    drop(held);
    drop(other.locks().lock("a".into()).await.unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_attach_stops_when_its_process_is_declared_dead() {
    let cluster = Cluster::new().await;
    let server = cluster.servers().await[0];
    let (one, other) = (cluster.process().await, cluster.process().await);
    cluster.sim.control("latency attach 700").unwrap();
    let service = Arc::clone(&one.service);
    let attach = one.runtime.as_ref().unwrap();
    let attach = attach.spawn(async move {
        let worker = service.records.worker();
        hotslot_store::actor::as_process(worker, service.assignments.attach(request(server, "any", 4))).await
    });
    // Several devices are left, so that a busy machine has time to remove the process before the last one is plugged.
    until("the second is being plugged", async || cluster.plugged().await == 1).await;
    let mut database = PgConnection::connect(&cluster.database).await.unwrap();
    let worker = one.service.records.worker().unwrap();
    sqlx::query("DELETE FROM processes WHERE id = $1").bind(&*worker).execute(&mut database).await.unwrap();
    let refused = attach.await.unwrap().unwrap_err();
    assert!(matches!(refused, Error::TakenOver), "{refused}");
    // The last device was not plugged, and the plugged ones are removed by whichever process notices first.
    cluster.sim.control("latency attach 1").unwrap();
    until("nothing is plugged", async || cluster.plugged().await == 0).await;
    for process in [&one, &other] {
        process.all_free().await;
    }
    until("the process has a new id", async || one.service.records.worker().as_ref() != Some(&worker)).await;
    let row = one.attach(server, 1).await.unwrap().remove(0);
    other.detach(server, row.id).await.unwrap();
}
