//! Calls on functions of the host that exceed their time limit. While such a call is overdue, whatever it may still
//! change stays in transition and is not offered. It is settled when the call returns. The task that follows the host
//! does not wait for such calls.

use std::time::{Duration, Instant};

use hotslot_tests::{
    Answer, Hotslot, I440FX, Q35, attachments, host, oracle, path as path_of, postgres, without_mdevs,
};
use serde_json::{Value, json};
use tokio::task::JoinHandle;

const VF: &str = "0000:04:10.0";
const PAIR: [&str; 2] = ["0000:06:00.0", "0000:06:00.1"];
/// Configuration with a short time limit for calls that change something, and without periodic comparison during a
/// test.
const SOON: &str = "[libvirt]\nattach_timeout = 0.5\n[reconcile]\ninterval = 3600\n";
/// The time within which an effect must be noticed and settled on a busy machine. It usually takes milliseconds;
/// waiting for a hanging call or for the next comparison takes much longer.
const AT_ONCE: Duration = Duration::from_secs(5);

async fn service(config: &str) -> Hotslot {
    Hotslot::bare(&host("small"), &format!("{config}{}", oracle::PCI), |_| ()).await
}

async fn status(service: &Hotslot, path: &str) -> String {
    service.get(path).await.expect(200).body["status"].as_str().unwrap().to_owned()
}

async fn drift(service: &Hotslot) -> Vec<Value> {
    service.get("/drift").await.expect(200).body["drift"].as_array().unwrap().clone()
}

/// Waits until a condition holds, and fails the test when that takes longer than `limit`.
async fn within(limit: Duration, what: &str, so: impl AsyncFn() -> bool) {
    let begun = Instant::now();
    while !so().await {
        assert!(begun.elapsed() < limit, "not within {limit:?}: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    println!("after {:?}: {what}", begun.elapsed());
}

/// Fails the test unless a device stays in transition while a call that may change it is overdue, on record and in the
/// drift.
async fn stays_in_transition(service: &Hotslot, address: &str) {
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(2) {
        let device = service.device(address).await;
        assert_ne!(device["status"], "available", "{device}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let found = drift(service).await;
    let of_it: Vec<_> = found.iter().filter(|finding| finding["address"] == address).collect();
    assert_eq!(of_it.len(), 1, "{found:#?}");
    assert_eq!((&of_it[0]["kind"], &of_it[0]["done"]), (&json!("unfinished"), &Value::Null), "{found:#?}");
    assert!(of_it[0]["said"]["host"].as_str().unwrap().contains("has not returned"), "{found:#?}");
}

#[tokio::test]
async fn an_overdue_bind_is_settled_when_it_returns() {
    for at in ["before", "after"] {
        let service = service(SOON).await;
        let path = service.accelerator("vf", json!({ "product_id": "10ca" })).await;
        service.sim(&format!("fault node-detach hang at={at}"));
        let late = service.put(&path, json!({ "driver": "vfio-pci" })).await.expect(503);
        assert!(late.message().contains("no answer within"), "{}", late.message());
        stays_in_transition(&service, VF).await;
        assert_eq!(status(&service, &path).await, "detaching");
        // The device is neither attached again nor rebound.
        let refused = service.put(&path, json!({ "driver": "vfio-pci" })).await.expect(409);
        assert!(refused.message().contains("is being detached"), "{}", refused.message());
        let refused = service.delete(&path).await.expect(409);
        assert!(refused.message().contains("has not returned"), "{}", refused.message());

        service.sim("fault clear");
        within(AT_ONCE, "the device is free", async || {
            service.device(VF).await["status"] == "available" && status(&service, &path).await == "available"
        })
        .await;
        within(AT_ONCE, "the host driver is rebound", async || {
            service.functions().await[VF]["driver"] == "igbvf"
        })
        .await;
        assert_eq!(drift(&service).await, Vec::<Value>::new());
        service.put(&path, json!({ "driver": "vfio-pci" })).await.expect(200);
        service.delete(&path).await.expect(204);
        service.expect_clean().await;
    }
}

/// libvirt unbinds the host driver within the attach. A driver that does not let go of the device never lets it return.
#[tokio::test]
async fn a_host_driver_that_does_not_let_go_is_shown_and_the_api_goes_on() {
    let service = service(SOON).await;
    service.sim("fault attach hang");
    let late = service.attach(Q35, "vf:1").await.expect(503);
    assert!(late.message().contains("no answer within"), "{}", late.message());
    let shown = service.get("/v2.1/os-hypervisors/1").await.expect(200).body["hypervisor"].clone();
    let stuck = shown["stuck_calls"].as_array().unwrap();
    assert_eq!(stuck.len(), 1, "{shown}");
    assert!(shown["state_reason"].as_str().unwrap().contains("have not returned"), "{shown}");
    // Another server gets another device, and gives it back.
    let other = service.attach(I440FX, "vf:1").await.expect(200).body["pci_devices"][0].clone();
    assert_eq!(other["address"], "0000:04:10.2", "the first VF is not offered");
    service.delete(&path_of(&other)).await.expect(200);
    service.sim("fault clear");
    within(AT_ONCE, "the attach is undone", async || service.attachments(Q35).await.is_empty()).await;
    within(AT_ONCE, "nothing disagrees", async || drift(&service).await.is_empty()).await;
    service.expect_clean().await;
}

#[tokio::test]
async fn a_function_with_an_overdue_call_is_not_offered() {
    let service = service(SOON).await;
    // The overdue call is the service's own attempt to release the function.
    let path = service.accelerator("vf", json!({ "product_id": "10ca" })).await;
    service.put(&path, json!({ "driver": "vfio-pci" })).await.expect(200);
    service.sim("fault node-reset hang times=9");
    service.delete(&path).await.expect(503);
    let unavailable = async || {
        let path = format!("/v2/t/os-hypervisors/1/pci_devices/{VF}");
        service.get(&path).await.expect(200).body["pci_device"]["withheld"].to_string()
    };
    assert!(unavailable().await.contains("has not returned"), "{}", unavailable().await);
    service.sim("fault clear");
    within(AT_ONCE, "it is offered again", async || unavailable().await == "null").await;
    within(AT_ONCE, "the device is released", async || status(&service, &path).await == "available").await;
    service.expect_clean().await;
}

#[tokio::test]
async fn an_overdue_attach_of_a_group_is_settled_when_it_returns() {
    for (nth, at) in [(1, "before"), (2, "after")] {
        let service = service(SOON).await;
        let oracle = oracle::Oracle::of(&service).await;
        service.sim(&format!("fault node-detach hang nth={nth} at={at}"));
        let body = json!({ "pciAttachment": { "pci_passthrough:alias": "pair:1", "whole_group": true } });
        let late = service.post(&attachments(Q35), body.clone()).await.expect(503);
        assert!(late.message().contains("no answer within"), "{}", late.message());
        let stuck = PAIR[nth - 1];
        stays_in_transition(&service, stuck).await;
        let rows = service.attachments(Q35).await;
        let row = rows.iter().find(|row| row["address"] == stuck).unwrap();
        assert_eq!(row["status"], "detaching", "{row}");
        let refused = service.delete(&path_of(row)).await.expect(409);
        assert!(refused.message().contains("has not returned"), "{}", refused.message());

        service.sim("fault clear");
        within(AT_ONCE, "the attachment has ended", async || service.attachments(Q35).await.is_empty()).await;
        oracle.settled(&service, AT_ONCE).await.unwrap();
        service.post(&attachments(Q35), body).await.expect(200);
    }
}

/// Unbinding the second function of a group is overdue, and so is rebinding the first one after that.
#[tokio::test]
async fn each_function_with_an_overdue_call_stays_in_transition() {
    let service = service(SOON).await;
    let oracle = oracle::Oracle::of(&service).await;
    service.sim("fault node-detach hang nth=2");
    service.sim("fault node-reattach hang");
    let body = json!({ "pciAttachment": { "pci_passthrough:alias": "pair:1", "whole_group": true } });
    service.post(&attachments(Q35), body.clone()).await.expect(503);
    for address in PAIR {
        stays_in_transition(&service, address).await;
    }
    let rows = service.attachments(Q35).await;
    assert!(rows.len() == 2 && rows.iter().all(|row| row["status"] == "detaching"), "{rows:#?}");
    service.sim("fault clear");
    within(AT_ONCE, "the attachments have ended", async || service.attachments(Q35).await.is_empty()).await;
    oracle.settled(&service, AT_ONCE).await.unwrap();
    service.post(&attachments(Q35), body).await.expect(200);
}

#[tokio::test]
async fn an_overdue_release_is_settled_when_it_returns() {
    for operation in ["node-reset", "node-reattach"] {
        for at in ["before", "after"] {
            let service = service(SOON).await;
            let path = service.accelerator("vf", json!({ "product_id": "10ca" })).await;
            service.put(&path, json!({ "driver": "vfio-pci" })).await.expect(200);
            service.sim(&format!("fault {operation} hang at={at}"));
            service.delete(&path).await.expect(503);
            stays_in_transition(&service, VF).await;
            service.sim("fault clear");
            within(AT_ONCE, &format!("{operation} {at}"), async || {
                status(&service, &path).await == "available"
            })
            .await;
            service.expect_clean().await;
        }
    }
}

#[tokio::test]
async fn an_overdue_create_or_destroy_of_an_mdev_is_settled_when_it_returns() {
    const GPU: &str = "0000:41:00.0";
    const G1: &str = "20000000-0000-4000-8000-000000000001";
    let pci = format!("{SOON}[pci]\ndevice_spec = ['{{\"vendor_id\": \"10de\"}}']\n");
    for (operation, at) in [("create-mdev", "before"), ("create-mdev", "after"), ("destroy-mdev", "before")] {
        let service = Hotslot::bare(&host("accelerators"), &pci, without_mdevs).await;
        let path = service.accelerator("part", json!({ "mdev_type": "nvidia-233" })).await;
        service.sim(&format!("fault {operation} hang at={at}"));
        let given = service.put(&path, json!({ "instance_uuid": G1 })).await;
        if operation == "create-mdev" {
            given.expect(503);
        } else {
            given.expect(200);
            service.delete(&path).await.expect(503);
        }
        stays_in_transition(&service, GPU).await;
        service.sim("fault clear");
        within(AT_ONCE, &format!("{operation} {at}"), async || status(&service, &path).await == "available")
            .await;
        let card = service.get(&format!("/v2/t/os-hypervisors/1/pci_devices/{GPU}")).await.expect(200);
        assert_eq!(card.body["pci_device"]["mdevs"], json!([]), "{operation} {at}");
        service.expect_clean().await;
    }
}

/// Sends a request in the background.
fn asked(service: &Hotslot, path: &str, body: Value) -> JoinHandle<Answer> {
    let (api, path) = ((**service).clone(), path.to_owned());
    tokio::spawn(async move { api.put(&path, body).await })
}

/// Two processes on one PostgreSQL. The simulated host belongs to the first one.
async fn two(hosts: &std::path::Path, config: &str) -> (Hotslot, Hotslot) {
    let one = Hotslot::bare(hosts, &format!("{SOON}{config}"), |_| ()).await;
    let one = one.moved_to(&postgres::database().await).await;
    let other = one.beside().await;
    (one, other)
}

#[tokio::test]
async fn an_overdue_bind_is_not_touched_by_other_processes() {
    let (one, other) = two(&host("small"), oracle::PCI).await;
    let path = one.accelerator("vf", json!({ "product_id": "10ca" })).await;
    one.sim("fault node-detach hang at=after");
    one.put(&path, json!({ "driver": "vfio-pci" })).await.expect(503);
    stays_in_transition(&other, VF).await;
    let refused = other.delete(&path).await.expect(409);
    assert!(refused.message().contains("has not returned"), "{}", refused.message());
    let explained = format!("/v2/t/os-hypervisors/1/pci_devices/{VF}");
    let unavailable = other.get(&explained).await.expect(200).body["pci_device"]["withheld"].to_string();
    assert!(unavailable.contains("has not returned"), "{unavailable}");
    one.sim("fault clear");
    for service in [&one, &other] {
        within(AT_ONCE, "the device is free", async || service.device(VF).await["status"] == "available")
            .await;
        within(AT_ONCE, "nothing disagrees", async || drift(service).await.is_empty()).await;
    }
    other.put(&path, json!({ "driver": "vfio-pci" })).await.expect(200);
    one.delete(&path).await.expect(204);
    one.expect_clean().await;
}

#[tokio::test]
async fn an_overdue_create_of_an_mdev_is_not_touched_by_other_processes() {
    const GPU: &str = "0000:41:00.0";
    const G1: &str = "20000000-0000-4000-8000-000000000001";
    let pci = "[pci]\ndevice_spec = ['{\"vendor_id\": \"10de\"}']\n";
    let one = Hotslot::bare(&host("accelerators"), &format!("{SOON}{pci}"), without_mdevs).await;
    let one = one.moved_to(&postgres::database().await).await;
    let other = one.beside().await;
    let path = one.accelerator("part", json!({ "mdev_type": "nvidia-233" })).await;
    one.sim("fault create-mdev hang at=before");
    one.put(&path, json!({ "instance_uuid": G1 })).await.expect(503);
    stays_in_transition(&other, GPU).await;
    let refused = other.delete(&path).await.expect(409);
    assert!(refused.message().contains("has not returned"), "{}", refused.message());
    one.sim("fault clear");
    within(AT_ONCE, "the mediated device is removed", async || status(&other, &path).await == "available")
        .await;
    let card = other.get(&format!("/v2/t/os-hypervisors/1/pci_devices/{GPU}")).await.expect(200);
    assert_eq!(card.body["pci_device"]["mdevs"], json!([]));
    other.delete(&path).await.expect(204);
    one.expect_clean().await;
}

#[tokio::test]
async fn an_overdue_attach_stays_in_transition_at_other_processes() {
    for at in ["before", "after"] {
        let (one, other) = two(&host("small"), oracle::PCI).await;
        one.sim(&format!("fault attach hang at={at}"));
        let body = json!({ "pciAttachment": { "pci_passthrough:alias": "vf:1" } });
        one.post(&attachments(Q35), body).await.expect(503);
        let vf = other.attachments(Q35).await[0].clone();
        stays_in_transition(&other, VF).await;
        let refused = other.delete(&path_of(&vf)).await.expect(409);
        assert!(refused.message().contains("has not returned"), "{}", refused.message());
        one.sim("fault clear");
        within(AT_ONCE, "the attach is undone", async || other.attachments(Q35).await.is_empty()).await;
        within(AT_ONCE, "nothing disagrees", async || drift(&other).await.is_empty()).await;
        other.delete(&path_of(&vf)).await.expect(200);
        one.expect_clean().await;
    }
}

#[tokio::test]
async fn an_overdue_release_of_any_kind_is_not_touched_by_other_processes() {
    const G1: &str = "20000000-0000-4000-8000-000000000001";
    let pci = "[pci]\ndevice_spec = ['{\"vendor_id\": \"10de\"}', '{\"vendor_id\": \"8086\"}']\n";
    let vf = json!({ "product_id": "37c9" });
    for (operation, spec, target) in [
        ("detach", vf.clone(), json!({ "instance_uuid": G1 })),
        ("destroy-mdev", json!({ "mdev_type": "nvidia-233" }), json!({ "instance_uuid": G1 })),
        ("node-reattach", vf, json!({ "driver": "vfio-pci" })),
    ] {
        let one = Hotslot::bare(&host("accelerators"), &format!("{SOON}{pci}"), without_mdevs).await;
        let one = one.moved_to(&postgres::database().await).await;
        let other = one.beside().await;
        let path = one.accelerator("one", spec).await;
        one.put(&path, target).await.expect(200);
        one.sim(&format!("fault {operation} hang at=before"));
        one.delete(&path).await.expect(503);
        let refused = other.delete(&path).await.expect(409);
        assert!(refused.message().contains("has not returned"), "{operation}: {}", refused.message());
        assert_eq!(status(&other, &path).await, "detaching", "{operation}");
        one.sim("fault clear");
        within(AT_ONCE, operation, async || status(&other, &path).await == "available").await;
        within(AT_ONCE, "nothing disagrees", async || drift(&other).await.is_empty()).await;
        one.expect_clean().await;
    }
}

#[tokio::test]
async fn an_overdue_call_ends_with_its_process() {
    let (mut one, other) = two(&host("small"), oracle::PCI).await;
    let path = one.accelerator("vf", json!({ "product_id": "10ca" })).await;
    one.sim("fault node-detach hang at=before");
    one.put(&path, json!({ "driver": "vfio-pci" })).await.expect(503);
    stays_in_transition(&other, VF).await;
    one.kill();
    // The call has ended with its process, so another process takes over its work.
    let free = async || other.device(VF).await["status"] == "available";
    within(Duration::from_secs(20), "the device is free", free).await;
    assert_eq!(drift(&other).await, Vec::<Value>::new());
}

#[tokio::test]
async fn host_changes_are_noticed_during_a_hanging_bind() {
    let service = service("[reconcile]\ninterval = 3600\n").await;
    let path = service.accelerator("nic", json!({ "product_id": "10d3" })).await;
    let attached = service.attach(Q35, "vf:2").await.expect(200).body["pci_devices"].clone();
    service.sim("fault node-detach hang");
    let bind = asked(&service, &path, json!({ "driver": "vfio-pci" }));
    service.until("it is bound", async || status(&service, &path).await == "attaching").await;
    for device in attached.as_array().unwrap() {
        let (address, path) = (device["address"].as_str().unwrap(), path_of(device));
        service.sim(&format!("unplug q35 {address} config"));
        service.sim(&format!("unplug q35 {address} live"));
        within(AT_ONCE, "the removal is seen", async || service.get(&path).await.status == 404).await;
        // This removal makes the service search for functions to rebind to their host drivers.
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    assert_eq!(status(&service, &path).await, "attaching");
    service.sim("fault clear");
    bind.await.unwrap().expect(200);
    service.delete(&path).await.expect(204);
    service
        .until("every function is with its driver", async || {
            service.functions().await.values().all(|function| function["driver"] != "vfio-pci")
        })
        .await;
    service.expect_clean().await;
}
