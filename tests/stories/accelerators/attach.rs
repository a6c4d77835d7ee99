//! Accelerators attached to servers and hosts, and detached. No device is assigned twice, whichever API requested it.

use std::time::Duration;

use futures_util::future::join_all;
use hotslot_tests::{Answer, Hotslot, I440FX, Q35, host, path as path_of, without_mdevs};
use reqwest::Method;
use serde_json::{Value, json};

use super::{UUID, driver, pinned, service, shown};

#[tokio::test]
async fn an_accelerator_is_attached_by_its_spec_and_detached() {
    let service = service("").await;
    let path = service
        .accelerator("vf", json!({ "vendor_id": "8086", "product_id": "10ca", "device_type": "nic" }))
        .await;
    // A dry run tells what an attach would take, and changes nothing.
    let before = shown(&service, &path).await;
    let mut dry = service.put(&path, json!({ "instance_uuid": Q35, "dry_run": true })).await.expect(200).body;
    let run = dry.as_object_mut().unwrap().remove("dry_run").unwrap();
    assert_eq!(
        (&run["would_attach"], &run["pci_devices"][0]["address"]),
        (&json!(true), &json!("0000:04:10.0"))
    );
    assert_eq!((dry, shown(&service, &path).await), (before.clone(), before));
    assert!(service.attachments(Q35).await.is_empty());
    let host = service.put(&path, json!({ "host": "node1", "dry_run": true })).await.expect(400);
    assert!(host.message().contains("dry_run applies to a server only"), "{}", host.message());
    let attached = service.put(&path, json!({ "instance_uuid": Q35 })).await.expect(200).body;
    assert_eq!((&attached["status"], &attached["instance_uuid"]), (&json!("attached"), &json!(Q35)));
    assert_eq!((&attached["address"], &attached["host"]), (&json!("0000:04:10.0"), &json!("node1")));
    assert_eq!(attached["driver"], "vfio-pci");
    assert!(attached["inner_address"].is_string());
    // Other APIs show the device, but only the accelerator API can detach it.
    let attachments = service.attachments(Q35).await;
    assert_eq!(attachments[0]["inner_address"], attached["inner_address"]);
    let refused = service.delete(&path_of(&attachments[0])).await.expect(409);
    assert!(refused.message().contains("accelerator"), "{}", refused.message());
    assert_eq!(service.device("0000:04:10.0").await["instance_uuid"], Q35);
    // An attached accelerator cannot be attached again, whatever the target.
    for target in
        [json!({ "instance_uuid": Q35 }), json!({ "server_id": I440FX }), json!({ "host": "node1" })]
    {
        service.put(&path, target).await.expect(409);
    }
    service.put(&path, json!({ "instance_uuid": Q35, "dry_run": true })).await.expect(409);
    service.delete(&path).await.expect(204);
    service.delete(&path).await.expect(204);
    assert_eq!(driver(&service, "0000:04:10.0").await, "igbvf");
    let after = shown(&service, &path).await;
    assert_eq!((&after["status"], &after["name"]), (&json!("available"), &json!("vf")));
    service.put(&path, json!({ "server_id": I440FX })).await.expect(200);
    service.delete(&format!("{path}?purge=true")).await.expect(204);
    service.get(&path).await.expect(404);
    service.expect_clean().await;
}

#[tokio::test]
async fn an_accelerator_is_bound_for_the_host_to_vfio_or_its_native_driver() {
    let service = service("").await;
    let vf = service.accelerator("vf", json!({ "product_id": "10ca" })).await;
    let bound = service.put(&vf, json!({ "hostname": "node1", "driver": "vfio-pci" })).await.expect(200).body;
    let address = bound["address"].as_str().unwrap().to_owned();
    assert_eq!(
        (&bound["status"], &bound["driver"], &bound["instance_uuid"]),
        (&json!("attached"), &json!("vfio-pci"), &Value::Null)
    );
    assert_eq!(bound["devices"][0]["previous_driver"], "igbvf");
    let row = service.device(&address).await;
    assert_eq!((&row["status"], &row["instance_uuid"]), (&json!("allocated"), &Value::Null));
    assert_eq!(service.functions().await[&address]["owner"], "its host");
    // Other APIs do not assign the device.
    let both = service.attach(Q35, "vf:2").await;
    assert_eq!(both.status, 400, "{}", both.body);
    service.delete(&vf).await.expect(204);
    assert_eq!(driver(&service, &address).await, "igbvf");

    let native = service.put(&vf, json!({ "driver": "native" })).await.expect(200).body;
    assert_eq!((&native["driver"], &native["host"]), (&json!("igbvf"), &json!("node1")));
    service.delete(&vf).await.expect(204);
    let nowhere = service.put(&vf, json!({ "host": "node2" })).await.expect(404);
    assert!(nowhere.message().contains("host node2 not found"), "{}", nowhere.message());
    service.put(&vf, json!({ "host": "node1", "instance_uuid": Q35 })).await.expect(400);
    service.put(&vf, json!({ "host": "node1", "driver": "igb" })).await.expect(400);
    service.put(&vf, json!({ "instance_uuid": Q35, "driver": "native" })).await.expect(400);
    service.put(&vf, json!({ "instance_uuid": UUID })).await.expect(404);
    service.put(&vf, json!({ "name": "other" })).await.expect(400);
    service.expect_clean().await;
}

#[tokio::test]
async fn several_devices_are_attached_all_or_none() {
    let service = service("").await;
    let two = service.accelerator("two", json!({ "num": 2, "product_id": "10ca" })).await;
    for target in [json!({ "instance_uuid": Q35 }), json!({ "driver": "vfio-pci" })] {
        let attached = service.put(&two, target.clone()).await.expect(200).body;
        assert_eq!(attached["devices"].as_array().unwrap().len(), 2);
        service.delete(&two).await.expect(204);
        let other = service.attach(I440FX, "vf:1").await.expect(200).body["pci_devices"][0].clone();
        service.put(&two, target).await.expect(409);
        assert_eq!(shown(&service, &two).await["status"], "available");
        service.delete(&path_of(&other)).await.expect(200);
    }
    let none = service.accelerator("none", json!({ "num": 0 })).await;
    service.put(&none, json!({ "driver": "native" })).await.expect(409);
    service.expect_clean().await;
}

#[tokio::test]
async fn a_discovered_device_is_attached_by_its_own_uuid() {
    let service = service("[accelerators]\ndiscovered = true\n").await;
    let all = service.get("/accelerators").await.expect(200).body["accelerator"].clone();
    let nvme = all.as_array().unwrap().iter().find(|one| one["device_type"] == "NVMe").unwrap();
    let (uuid, address) = (nvme["uuid"].as_str().unwrap(), nvme["address"].as_str().unwrap());
    assert_eq!(service.device(address).await["uuid"], uuid);
    let path = format!("/accelerators/{uuid}");
    let attached = service.put(&path, json!({ "instance_uuid": Q35 })).await.expect(200).body;
    assert_eq!((&attached["address"], &attached["pinned"]), (&json!(address), &json!(true)));
    service.delete(&path).await.expect(204);
    // When another attachment holds the device, the accelerator can neither be attached nor detached here.
    let vf = all.as_array().unwrap().iter().find(|one| one["product_id"] == "10ca").unwrap();
    let vf = format!("/accelerators/{}", vf["uuid"].as_str().unwrap());
    let other = service.attach(I440FX, "vf:1").await.expect(200).body["pci_devices"][0].clone();
    service.put(&vf, json!({ "instance_uuid": Q35 })).await.expect(409);
    let held = service.delete(&vf).await.expect(409);
    assert!(held.message().contains(I440FX), "{}", held.message());
    service.delete(&path_of(&other)).await.expect(200);
    service.delete(&vf).await.expect(204);
}

#[tokio::test]
async fn devices_held_by_others_are_reported_and_not_detached() {
    let service = service("").await;
    let (pf, vf) = (pinned(&service, "0000:04:00.0").await, pinned(&service, "0000:04:10.2").await);
    let (half, whole) = (pinned(&service, "0000:06:00.0").await, pinned(&service, "0000:06:00.1").await);
    let other = service.attach(I440FX, "vf:1").await.expect(200).body["pci_devices"][0].clone();
    for (path, says) in [(&pf, "0000:04:10.0, a VF of its device 0000:04:00.0"), (&pf, I440FX)] {
        let refused = service.delete(path).await.expect(409);
        assert!(refused.message().contains(says), "{}", refused.message());
    }
    let reason = shown(&service, &pf).await["status_reason"].clone();
    assert!(reason.as_str().unwrap().contains("a VF of its device"), "{reason}");
    let refused = service.put(&pf, json!({ "driver": "native" })).await.expect(409);
    assert!(refused.message().contains("a VF of it, 0000:04:10.0, is held by"), "{}", refused.message());
    // VFs of one PF do not affect each other.
    service.delete(&vf).await.expect(204);
    service.delete(&path_of(&other)).await.expect(200);
    service.delete(&pf).await.expect(204);

    service.put(&pf, json!({ "driver": "native" })).await.expect(200);
    let refused = service.delete(&vf).await.expect(409);
    assert!(refused.message().contains("the PF of its device"), "{}", refused.message());
    service.delete(&pf).await.expect(204);
    service.put(&half, json!({ "driver": "native" })).await.expect(200);
    let refused = service.delete(&whole).await.expect(409);
    assert!(refused.message().contains("0000:06:00.0, a member of the IOMMU group"), "{}", refused.message());
    let refused = service.put(&whole, json!({ "instance_uuid": Q35 })).await.expect(409);
    assert!(refused.message().contains("is held by its host"), "{}", refused.message());
    service.delete(&half).await.expect(204);
    // Another accelerator holds the device.
    let any = service.accelerator("any", json!({ "product_id": "10c9" })).await;
    service.put(&any, json!({ "driver": "native" })).await.expect(200);
    let reason = shown(&service, &pf).await["status_reason"].clone();
    assert_eq!(reason, "its device 0000:04:00.0 is held by its host; detach it there");
    let refused = service.delete(&pf).await.expect(409);
    let holder = any.replace("/accelerators/", "for accelerator:");
    assert!(refused.message().contains(&holder), "{}", refused.message());
    service.delete(&any).await.expect(204);
    assert_eq!(shown(&service, &pf).await["status_reason"], Value::Null);
}

#[tokio::test]
async fn a_half_detached_accelerator_is_in_error_until_detached_again() {
    let service = service("").await;
    let two = service.accelerator("two", json!({ "num": 2, "product_id": "10ca" })).await;
    for (target, fault) in [
        (json!({ "instance_uuid": Q35 }), "fault detach fail nth=4 kind=unplug-refused text=no"),
        (json!({ "driver": "vfio-pci" }), "fault node-reattach fail nth=2 text=stuck"),
    ] {
        service.put(&two, target).await.expect(200);
        service.sim(fault);
        assert_ne!(service.delete(&two).await.status, 204, "{fault}");
        service.sim("fault clear");
        let half = shown(&service, &two).await;
        assert_eq!(half["devices"].as_array().unwrap().len(), 1, "{half}");
        assert_eq!(
            (&half["status"], half["status_reason"].as_str()),
            (&json!("error"), Some("holds 1 of 2 devices; DELETE it again"))
        );
        let refused = service.put(&two, json!({ "driver": "native" })).await.expect(409);
        assert!(refused.message().contains("holds 1 of 2"), "{}", refused.message());
        service.delete(&two).await.expect(204);
        assert_eq!(shown(&service, &two).await["status"], "available");
    }
    service.expect_clean().await;
}

#[tokio::test]
async fn a_device_that_must_not_be_unplugged_does_not_hold_the_others() {
    let pci = "[pci]\ndevice_spec = ['{\"address\": \"0000:04:10.0\", \"hot_unplug\": \"refuse\"}', \
               '{\"address\": \"0000:04:10.2\"}']\n";
    let service = Hotslot::bare(&host("small"), pci, |_| ()).await;
    let two = service.accelerator("two", json!({ "num": 2, "product_id": "10ca" })).await;
    service.put(&two, json!({ "instance_uuid": Q35 })).await.expect(200);
    let refused = service.delete(&two).await.expect(409);
    assert!(refused.message().contains("hot_unplug"), "{}", refused.message());
    let half = shown(&service, &two).await;
    assert_eq!((&half["status"], &half["devices"][0]["address"]), (&json!("error"), &json!("0000:04:10.0")));
    assert_eq!(service.device("0000:04:10.2").await["status"], "available");
    service.delete(&format!("{two}?force=true")).await.expect(204);
    service.expect_clean().await;
}

#[tokio::test]
async fn a_release_interrupted_by_a_kill_is_completed() {
    let mut service = service("").await;
    let two = service.accelerator("two", json!({ "num": 2, "product_id": "10ca" })).await;
    service.put(&two, json!({ "driver": "vfio-pci" })).await.expect(200);
    service.sim("latency node-reattach 60000");
    let waited = tokio::time::timeout(Duration::from_secs(1), service.send(Method::DELETE, &two, None)).await;
    assert!(waited.is_err(), "the request returned early");
    service.kill();
    service.start_again().await;
    // The release of both devices was recorded before the first was released.
    service.until("both are given back", async || shown(&service, &two).await["status"] == "available").await;
    service.until("both have their driver", async || driver(&service, "0000:04:10.2").await == "igbvf").await;
    service.expect_clean().await;
}

#[tokio::test]
async fn a_pf_and_its_vfs_are_not_counted_together() {
    let service = Hotslot::bare(
        &host("small"),
        "[pci]\ndevice_spec = ['{\"product_id\": \"10c9\"}', '{\"product_id\": \"10ca\"}']\n",
        |_| (),
    )
    .await;
    let three = service.accelerator("three", json!({ "num": 3, "device_type": "NIC" })).await;
    let refused = service.put(&three, json!({ "driver": "native" })).await.expect(409);
    assert!(
        refused.message().contains("3 devices, and 2 on host node1 can be bound"),
        "{}",
        refused.message()
    );
    assert!(
        refused.message().contains("0000:04:00.0 cannot be bound together with 0000:04:10.0"),
        "{}",
        refused.message()
    );
    let refused = service.put(&three, json!({ "instance_uuid": Q35 })).await.expect(409);
    assert!(!refused.message().contains("took the devices first"), "{}", refused.message());
    service.expect_clean().await;
}

#[tokio::test]
async fn concurrent_requests_through_all_apis_assign_a_device_once() {
    let service = service("").await;
    let one = json!({ "product_id": "10d3", "num": 1 });
    let (first, second) = (service.accelerator("a", one.clone()).await, service.accelerator("b", one).await);
    let alias = json!({ "alias": { "name": "e1000e", "vendor_id": "8086", "product_id": "10d3" } });
    service.post("/v2.1/os-pci-config/alias", alias).await.expect(201);
    let free = service.get("/v2.1/os-pci/detail?product_id=10d3&status=available").await.expect(200).body;
    let free = free["pci_devices"].as_array().unwrap().len();
    for round in 0..5 {
        let targets = [
            (&first, json!({ "instance_uuid": Q35 })),
            (&first, json!({ "host": "node1" })),
            (&second, json!({ "driver": "vfio-pci" })),
            (&second, json!({ "instance_uuid": I440FX })),
        ];
        let all = format!("e1000e:{free}");
        let doors = targets.iter().map(|(path, body)| service.put(path, body.clone()));
        let (accelerators, attach) = tokio::join!(join_all(doors), service.attach(I440FX, &all));
        let good = |answer: &&Answer| answer.status == 200;
        let won = accelerators.iter().filter(good).count();
        for answer in &accelerators {
            assert!([200, 409].contains(&answer.status), "{round}: {}", answer.body);
        }
        // Either one server got all devices, or each accelerator got at most one.
        match attach.status {
            200 => assert_eq!(won, 0, "{round}"),
            _ => assert!(won <= free.min(2), "{round}: {won} of {free}"),
        }
        let held = service.get("/v2.1/os-pci/detail?product_id=10d3&status=allocated").await.expect(200).body;
        let held = held["pci_devices"].as_array().unwrap().len();
        assert_eq!(held, if attach.status == 200 { free } else { won }, "{round}");
        service.delete(&first).await.expect(204);
        service.delete(&second).await.expect(204);
        for attachment in service.attachments(I440FX).await {
            service.delete(&path_of(&attachment)).await.expect(200);
        }
    }
    // The functions of a shared IOMMU group are rebound to the host driver when the last of them has been released.
    service
        .until("the host drivers are back", async || {
            service.functions().await.values().all(|function| function["driver"] != "vfio-pci")
        })
        .await;
    service.expect_clean().await;
}

#[tokio::test]
async fn a_bind_interrupted_by_a_kill_is_undone() {
    let mut service = service("").await;
    let path = service.accelerator("vf", json!({ "product_id": "10ca" })).await;
    service.sim("latency node-detach 60000");
    let asked = service.send(
        Method::PUT,
        &path,
        Some(("application/json", json!({ "driver": "vfio-pci" }).to_string())),
    );
    let waited = tokio::time::timeout(Duration::from_secs(1), asked).await;
    assert!(waited.is_err(), "the request returned early");
    assert_eq!(shown(&service, &path).await["status"], "attaching");
    service.kill();
    service.start_again().await;
    service
        .until("the binding is settled", async || shown(&service, &path).await["status"] == "available")
        .await;
    assert_eq!(driver(&service, "0000:04:10.0").await, "igbvf");
    service.put(&path, json!({ "driver": "vfio-pci" })).await.expect(200);
    // A binding to vfio-pci survives a restart.
    service.kill();
    service.start_again().await;
    assert_eq!(shown(&service, &path).await["driver"], "vfio-pci");
    service.delete(&path).await.expect(204);
    service.expect_clean().await;
}

/// An attach that waits for its turn while its accelerator is purged assigns nothing.
#[tokio::test]
async fn an_accelerator_purged_while_its_attach_waits_gets_nothing() {
    let (vf, card) = (json!({ "device_type": "NIC" }), json!({ "mdev_type": "nvidia-232" }));
    let spec = "[pci]\ndevice_spec = ['{\"vendor_id\": \"10de\"}']\n";
    const G1: &str = "20000000-0000-4000-8000-000000000001";
    for (kind, call, spec_of_both, target) in [
        ("attachment", "attach", vf.clone(), json!({ "instance_uuid": Q35 })),
        ("binding", "node-detach", vf, json!({ "driver": "vfio-pci" })),
        ("mediated device", "attach", card, json!({ "instance_uuid": G1 })),
    ] {
        let service = if kind == "mediated device" {
            Hotslot::bare(&host("accelerators"), spec, without_mdevs).await
        } else {
            service("").await
        };
        let first = service.accelerator("first", spec_of_both.clone()).await;
        let purged = service.accelerator("purged", spec_of_both).await;
        let asked = |path: &str| {
            let (api, path, target) = ((*service).clone(), path.to_owned(), target.clone());
            tokio::spawn(async move { api.put(&path, target).await })
        };
        service.sim(&format!("fault {call} hang"));
        let has_turn = asked(&first);
        service
            .until("the first attach is running", async || service.log().contains("a fault applies to "))
            .await;
        let waits = asked(&purged);
        tokio::time::sleep(Duration::from_millis(300)).await;
        service.delete(&format!("{purged}?purge=true")).await.expect(204);
        service.sim("fault clear");
        has_turn.await.unwrap().expect(200);
        let refused = waits.await.unwrap();
        assert_eq!(refused.status, 404, "{kind}: {}", refused.body);
        service.delete(&first).await.expect(204);
        service.expect_clean().await;
    }
}
