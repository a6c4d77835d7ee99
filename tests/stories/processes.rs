//! Two processes on one PostgreSQL and one simulated host: they work in parallel, one is killed, and one is paused
//! while the other takes over its work.

use std::time::Duration;

use futures_util::future::join_all;
use hotslot_tests::{Answer, Hotslot, I440FX, Q35, host, path, postgres};
use serde_json::Value;
use tokio::task::JoinHandle;

/// Two processes. The simulated host, and so its latencies, belong to the first one.
async fn two() -> (Hotslot, Hotslot) {
    let one = Hotslot::with(&host("small"), "[attach]\nverify = \"off\"").await;
    let one = one.moved_to(&postgres::database().await).await;
    let other = one.beside().await;
    (one, other)
}

/// Sends an attach in the background.
fn attaching(service: &Hotslot, server: &'static str, aliases: &'static str) -> JoinHandle<Answer> {
    let api = (**service).clone();
    tokio::spawn(async move { api.attach(server, aliases).await })
}

/// Waits until a process knows that the other one has freed all devices.
async fn heard(service: &Hotslot) {
    let free = async || {
        let devices = service.get("/v2/t/os-pci/detail").await.expect(200).body["pci_devices"].clone();
        devices.as_array().unwrap().iter().all(|device| device["status"] == "available")
    };
    service.until("the process knows that all devices are free", free).await;
}

fn devices(answer: &Answer) -> Vec<Value> {
    answer.body["pci_devices"].as_array().unwrap().clone()
}

/// Pauses a process, and waits until the other one has settled its work on a server.
async fn stands_still(one: &Hotslot, other: &Hotslot, server: &str) {
    // Do not pause it while it holds the lock of the directory; the call itself takes longer.
    tokio::time::sleep(Duration::from_millis(400)).await;
    one.signal("STOP");
    other.until("it is taken over", async || other.log().contains("its work is taken over")).await;
    other
        .until("its work is settled", async || {
            other.attachments(server).await.iter().all(|row| row["status"] == "attached")
        })
        .await;
}

#[tokio::test]
async fn two_processes_on_one_host_work_in_parallel_and_one_is_killed() {
    let (mut one, other) = two().await;
    let work = async |by: &Hotslot, next: &Hotslot, server: &'static str, alias: &'static str| {
        let mut done = 0;
        for _ in 0..10 {
            for row in devices(&by.attach(server, alias).await.expect(200)) {
                next.delete(&path(&row)).await.expect(200);
                done += 1;
            }
        }
        done
    };
    let (some, others) = tokio::join!(work(&one, &other, Q35, "vf:2"), work(&other, &one, I440FX, "e1000:1"));
    assert_eq!((some, others), (20, 10));
    let all = [attaching(&one, Q35, "vf:1"), attaching(&other, Q35, "vf:1"), attaching(&one, I440FX, "vf:1")];
    let answers = join_all(all).await.into_iter().map(Result::unwrap);
    let (given, refused): (Vec<_>, Vec<_>) = answers.partition(|answer| answer.status == 200);
    assert_eq!((given.len(), refused.len()), (2, 1), "there are two, and neither is given twice");
    for row in given.iter().flat_map(devices) {
        other.delete(&path(&row)).await.expect(200);
    }

    one.sim("fault attach hang nth=2");
    let cut_off = attaching(&one, Q35, "vf:2");
    other.until("the first is plugged", async || one.plugged().len() == 2).await;
    one.kill();
    cut_off.await.unwrap_err();
    other.until("the attach is undone", async || other.attachments(Q35).await.is_empty()).await;
    heard(&other).await;
    assert_eq!(one.plugged(), Vec::<String>::new());
}

#[tokio::test]
async fn a_process_paused_in_an_attach_does_not_overwrite_the_other() {
    let (one, other) = two().await;
    one.sim("fault attach hang nth=2");
    let stopped = attaching(&one, Q35, "vf:2");
    other.until("the first is plugged", async || one.plugged().len() == 2).await;
    stands_still(&one, &other, Q35).await;
    assert!(other.attachments(Q35).await.is_empty(), "the attach is undone");
    // Other attachments have the devices by the time that the process resumes.
    let given = devices(&other.attach(I440FX, "vf:2").await.expect(200));
    one.signal("CONT");
    one.sim("fault clear");
    let answer = stopped.await.unwrap().expect(503);
    assert!(answer.message().contains("another process took over its work"), "{}", answer.message());
    one.until("it is ready", async || one.get("/readyz").await.status == 200).await;
    for service in [&one, &other] {
        service.until("both know it", async || service.attachments(Q35).await.is_empty()).await;
        let rows = service.attachments(I440FX).await;
        assert!(rows.len() == 2 && rows.iter().all(|row| row["status"] == "attached"), "{rows:#?}");
    }
    assert_eq!(one.plugged().len(), 4, "live and in the definition, twice");
    // The process continues to work under a new id.
    let again = devices(&one.attach(Q35, "e1000e:1").await.expect(200));
    for row in given.iter().chain(&again) {
        other.delete(&path(row)).await.expect(200);
    }
    heard(&one).await;
    one.expect_clean().await;
}

#[tokio::test]
async fn a_late_call_of_a_paused_process_is_undone() {
    let (one, other) = two().await;
    one.sim("fault attach hang");
    let stopped = attaching(&one, Q35, "e1000e:1");
    other.until("it is reserved", async || !other.attachments(Q35).await.is_empty()).await;
    stands_still(&one, &other, Q35).await;
    assert!(other.attachments(Q35).await.is_empty() && one.plugged().is_empty());
    // Its call completes and plugs a device that is free by now.
    one.signal("CONT");
    one.sim("fault clear");
    stopped.await.unwrap().expect(503);
    one.until("nothing is left of the attach", async || one.plugged().is_empty()).await;
    for service in [&one, &other] {
        service
            .until("it is free", async || service.device("0000:05:00.0").await["status"] == "available")
            .await;
        assert!(service.attachments(Q35).await.is_empty());
    }
    one.expect_clean().await;
}

#[tokio::test]
async fn a_process_paused_in_a_detach_does_not_overwrite_the_other() {
    let (one, other) = two().await;
    let row = devices(&one.attach(Q35, "vf:1").await.expect(200)).remove(0);
    one.sim("fault detach hang");
    let (api, path_of) = ((*one).clone(), path(&row));
    let stopped = tokio::spawn(async move { api.delete(&path_of).await });
    other
        .until("the detach is on record", async || {
            other.attachments(Q35).await.iter().all(|row| row["status"] == "detaching")
        })
        .await;
    stands_still(&one, &other, Q35).await;
    assert!(other.attachments(Q35).await.is_empty(), "the other one has done it");
    let given = devices(&other.attach(Q35, "vf:2").await.expect(200));
    one.signal("CONT");
    one.sim("fault clear");
    let answer = stopped.await.unwrap();
    assert!([200, 503].contains(&answer.status), "{}", answer.body);
    one.until("it is ready", async || one.get("/readyz").await.status == 200).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    for service in [&one, &other] {
        let rows = service.attachments(Q35).await;
        assert!(rows.len() == 2 && rows.iter().all(|row| row["status"] == "attached"), "{rows:#?}");
    }
    assert_eq!(one.plugged().len(), 4);
    for row in &given {
        other.delete(&path(row)).await.expect(200);
    }
    other.expect_clean().await;
}
