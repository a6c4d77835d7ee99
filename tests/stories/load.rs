//! Load: servers in parallel, a full queue, hanging calls, a slow host, and shutdown.

use std::process::Command;
use std::time::Duration;

use hotslot_tests::{Answer, Hotslot, I440FX, Q35, attachments, host};
use serde_json::{Value, json};
use tokio::task::JoinHandle;

/// Sends an attach in the background.
fn attaching(service: &Hotslot, server: &str, aliases: &str) -> JoinHandle<Answer> {
    let (api, server, aliases) = ((**service).clone(), server.to_owned(), aliases.to_owned());
    tokio::spawn(async move { api.attach(&server, &aliases).await })
}

async fn under_way(service: &Hotslot) -> usize {
    let listed = service.get("/v2.1/os-pci_attachments").await.expect(200).body;
    listed["pciAttachment"].as_array().unwrap().iter().filter(|row| row["status"] == "attaching").count()
}

async fn node(service: &Hotslot, name: &str) -> Value {
    service.get(&format!("/v2.1/os-hypervisors/{name}")).await.expect(200).body["hypervisor"].clone()
}

#[tokio::test]
async fn servers_are_processed_in_parallel_and_one_server_sequentially() {
    let service = Hotslot::on("small").await;
    service.sim("fault attach hang times=9");
    let (one, other) = (attaching(&service, Q35, "vf:1"), attaching(&service, I440FX, "e1000:1"));
    service.until("both servers are worked on", async || under_way(&service).await == 2).await;
    let next = attaching(&service, Q35, "vf:1");
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(under_way(&service).await, 2, "the second of one server has to wait");
    service.sim("fault clear");
    for answer in [one, other, next] {
        answer.await.unwrap().expect(200);
    }
}

#[tokio::test]
async fn a_full_queue_of_a_host_is_reported() {
    let service = Hotslot::with(&host("small"), "[attach]\nverify = \"off\"").await;
    let mut service = service;
    service.kill();
    service.reconfigure("[api]\n", "[api]\nqueue = 2\n");
    service.start_again().await;
    let attached = service.attach(I440FX, "e1000:1").await.expect(200).body["pci_devices"][0].clone();
    service.sim("fault attach hang times=9");
    let running = [attaching(&service, Q35, "vf:1"), attaching(&service, Q35, "vf:1")];
    service.until("the first attach is running", async || under_way(&service).await == 1).await;
    let refused = async || service.attach(Q35, "e1000e:1").await;
    service.until("the queue is full", async || refused().await.status == 503).await;
    let refused = refused().await.expect(503);
    assert!(
        refused.message().contains("node1 has 2 attaches and detaches that run or wait"),
        "{}",
        refused.message()
    );
    assert!(refused.retry_after.is_some());
    let path = format!("{}/{}", attachments(I440FX), attached["attachment_id"].as_str().unwrap());
    service.delete(&path).await.expect(503);
    assert_eq!(service.get(&path).await.expect(200).body["pciAttachment"]["status"], "attached");
    service.sim("fault clear");
    for answer in running {
        answer.await.unwrap().expect(200);
    }
    service.delete(&path).await.expect(200);
}

#[tokio::test]
async fn a_hanging_call_times_out_and_is_settled_when_it_returns() {
    let service = Hotslot::with(&host("small"), "[libvirt]\nattach_timeout = 0.5").await;
    service.sim("fault attach hang");
    let late = service.attach(Q35, "vf:1").await.expect(503);
    assert!(late.message().contains("no answer within"), "{}", late.message());
    let stuck = node(&service, "node1").await;
    assert_eq!(stuck["state"], "up");
    assert!(stuck["stuck_calls"][0]["operation"].as_str().unwrap().contains("attach"), "{stuck}");
    assert!(stuck["state_reason"].as_str().unwrap().contains("have not returned"), "{stuck}");
    // Other requests are served meanwhile. The device is not free, because the outcome of the call is unknown.
    service.attach(I440FX, "e1000:1").await.expect(200);
    let row = service.attachments(Q35).await[0].clone();
    assert_eq!(row["status"], "detaching");
    let path = format!("{}/{}", attachments(Q35), row["attachment_id"].as_str().unwrap());
    let refused = service.delete(&path).await.expect(409);
    assert!(refused.message().contains("has not returned"), "{}", refused.message());
    assert_eq!(service.device("0000:04:10.0").await["status"], "allocated");

    // libvirt completes the call late. The device is then removed, because the client received the answer that the attach failed.
    service.sim("fault clear");
    service
        .until("no call is overdue", async || node(&service, "node1").await["stuck_calls"] == json!([]))
        .await;
    service
        .until("the attach was undone", async || {
            service.attachments(Q35).await.is_empty() && service.plugged().len() == 2
        })
        .await;
}

/// A service with a second host that has guests of its own.
async fn two_hosts() -> Hotslot {
    let mut service = Hotslot::on("small").await;
    service.kill();
    let second = service.host_dir().with_file_name("host2");
    for (folder, entry) in ["devices", "domains"].into_iter().flat_map(|folder| {
        std::fs::read_dir(host("small").join(folder)).unwrap().map(move |entry| (folder, entry.unwrap()))
    }) {
        std::fs::create_dir_all(second.join(folder)).unwrap();
        let text = std::fs::read_to_string(entry.path()).unwrap();
        let text = text.replace("<uuid>10000000-", "<uuid>20000000-");
        std::fs::write(second.join(folder).join(entry.file_name()), text).unwrap();
    }
    let node2 = format!("[[hypervisor]]\nname = \"node2\"\nuri = \"sim://{}\"\n", second.display());
    service
        .reconfigure("[[hypervisor]]\nname = \"node1\"", &format!("{node2}[[hypervisor]]\nname = \"node1\""));
    service.start_again().await;
    service
}

#[tokio::test]
async fn a_slow_host_delays_only_its_own_servers() {
    let service = two_hosts().await;
    let on_two = Q35.replacen('1', "2", 1);
    let both = service.get("/v2.1/servers").await.expect(200).body["servers"].as_array().unwrap().len();
    service.sim("fault domain hang times=99");
    service.sim("fault domains hang times=99");
    let slow = attaching(&service, Q35, "vf:1");
    // The server on the other host is found, attached to and detached from while the first host hangs.
    let attached = service.attach(&on_two, "vf:1").await.expect(200).body["pci_devices"][0].clone();
    assert_eq!(service.attachments(&on_two).await.len(), 1);
    let path = format!("{}/{}", attachments(&on_two), attached["attachment_id"].as_str().unwrap());
    service.delete(&path).await.expect(200);
    let left = service.get("/v2.1/servers").await.expect(200).body["servers"].as_array().unwrap().len();
    assert_eq!(left * 2, both, "the list leaves the servers of the slow host out");
    assert!(!slow.is_finished());
    service.sim("fault clear");
    slow.await.unwrap().expect(200);
}

#[tokio::test]
async fn a_shutdown_completes_running_requests() {
    let mut service = Hotslot::on("small").await;
    service.sim("latency attach 1500");
    let answer = attaching(&service, Q35, "vf:1");
    service.until("the request is running", async || under_way(&service).await == 1).await;
    let sent = Command::new("kill").args(["-TERM", &service.pid().to_string()]).status().unwrap();
    assert!(sent.success());
    answer.await.unwrap().expect(200);
    assert!(service.ended(Duration::from_secs(20)).await);
    assert_eq!(service.exit_code(), Some(0));
    service.start_again().await;
    assert_eq!(service.attachments(Q35).await[0]["status"], "attached");
}
