//! The choice between several hosts.

use std::time::Duration;

use hotslot_driver::sim::control;
use hotslot_driver::sim::generate::Size;
use hotslot_tests::Hotslot;
use serde_json::{Value, json};

use super::{PCI, shown};

#[tokio::test]
async fn without_a_host_name_a_reachable_host_is_chosen() {
    let size = |number| Size { pfs: 1, vfs: if number == 0 { 4 } else { 2 }, guests: 1, ports: 1 };
    let service = Hotslot::many(2, PCI, |number, dir| size(number).write(dir).unwrap()).await;
    let path = service.accelerator("any", json!({ "device_type": "NIC" })).await;
    // host0 has the most free devices.
    assert_eq!(service.put(&path, json!({ "driver": "native" })).await.expect(200).body["host"], "host0");
    service.delete(&path).await.expect(204);
    let host0 = service.database().with_file_name("host0");
    assert_eq!(control(&host0, "disconnect").unwrap(), "ok");
    let is_down = async || {
        let hosts = service.get("/v2.1/os-hypervisors").await.expect(200).body["hypervisors"].clone();
        hosts.as_array().unwrap().iter().any(|host| host["state"] == "down")
    };
    service.until("the host is unreachable", is_down).await;
    assert_eq!(service.put(&path, json!({ "driver": "native" })).await.expect(200).body["host"], "host1");
    service.delete(&path).await.expect(204);
    service.put(&path, json!({ "host": "host0" })).await.expect(503);
    let nowhere = service.put(&path, json!({ "host": "host2" })).await.expect(404);
    assert!(nowhere.message().contains("GET os-hypervisors lists all"), "{}", nowhere.message());
}

#[tokio::test]
async fn an_unresponsive_or_removed_host_affects_only_its_own_accelerators() {
    let size = Size { pfs: 1, vfs: 4, guests: 1, ports: 1 };
    let config = format!("{PCI}[accelerators]\ndiscovered = true\n");
    let mut service = Hotslot::many(2, &config, |_, dir| size.write(dir).unwrap()).await;
    let three = service.accelerator("three", json!({ "product_id": "10ca", "num": 3 })).await;
    let one = service.accelerator("one", json!({ "product_id": "10ca" })).await;
    service.put(&three, json!({ "host": "host1" })).await.expect(200);
    service.put(&one, json!({ "host": "host0" })).await.expect(200);
    let host1 = service.database().with_file_name("host1");
    assert_eq!(control(&host1, "fault device hang times=100000").unwrap(), "ok");
    // The list waits for the host once, and not once per device.
    let list = tokio::time::timeout(Duration::from_secs(9), service.get("/accelerators"));
    let list = list.await.expect("an answer").expect(200).body["accelerator"].clone();
    let named = |name: &str| list.as_array().unwrap().iter().find(|other| other["name"] == name).unwrap();
    assert!(named("one")["driver"].is_string(), "{list}");
    assert_eq!((&named("three")["driver"], &named("three")["status"]), (&Value::Null, &json!("attached")));
    assert_eq!(control(&host1, "fault clear").unwrap(), "ok");
    for path in [&three, &one] {
        service.delete(path).await.expect(204);
    }

    let mine =
        list.as_array().unwrap().iter().find(|other| other["host"] == "host1" && other["pinned"] == true);
    let mine = format!("/accelerators/{}", mine.unwrap()["uuid"].as_str().unwrap());
    service.put(&format!("{mine}/acc_spec"), json!({ "acc_specs": {} })).await.expect(200);
    let host1 = format!("[[hypervisor]]\nname = \"host1\"\nuri = \"sim://{}\"\n", host1.display());
    service.reconfigure(&host1, "");
    service.kill();
    service.start_again().await;
    let list = service.get("/accelerators").await.expect(200).body["accelerator"].clone();
    let without: Vec<_> = list.as_array().unwrap().iter().filter(|one| one["host"] == Value::Null).collect();
    let names: Vec<_> = without.iter().filter(|one| one["pinned"] == true).map(|one| &one["uuid"]).collect();
    assert_eq!(names, [&shown(&service, &mine).await["uuid"]]);
    let gone = shown(&service, &mine).await;
    assert_eq!(gone["status"], "error");
    assert!(gone["status_reason"].as_str().unwrap().contains("no longer configured"), "{gone}");
}

#[tokio::test]
async fn a_refusal_names_the_hosts_with_matching_devices() {
    let size = |number| Size { pfs: 1, vfs: if number == 1 { 2 } else { 0 }, guests: 1, ports: 1 };
    let service = Hotslot::many(3, PCI, |number, dir| size(number).write(dir).unwrap()).await;
    let path = service.accelerator("vf", json!({ "product_id": "10ca" })).await;
    for target in [json!({ "host": "host0" }), json!({ "host": "host2", "driver": "vfio-pci" })] {
        let refused = service.put(&path, target).await.expect(409);
        assert!(refused.message().ends_with("; hosts with such devices: host1"), "{}", refused.message());
    }
    assert_eq!(service.put(&path, json!({ "driver": "native" })).await.expect(200).body["host"], "host1");
    service.delete(&path).await.expect(204);
}
