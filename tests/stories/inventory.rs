//! The inventory: what hotslot knows of a host's devices, and how that follows the host.

mod explain;
mod groups;
pub(crate) mod guards;
mod nics;
mod open_nodes;
mod quarantine;
mod vfio;

use std::time::{Duration, Instant};

use hotslot_tests::{Hotslot, I440FX, Q35, SWITCH, attachments, host, path};
use serde_json::{Value, json};

/// The time within which an added or removed device must be noticed.
const SOON: Duration = Duration::from_secs(1);

async fn statuses(service: &Hotslot, addresses: &[&str]) -> Vec<Value> {
    let mut found = Vec::new();
    for address in addresses {
        found.push(service.device(address).await["status"].clone());
    }
    found
}

#[tokio::test]
async fn a_pf_and_its_vfs_exclude_each_other() {
    const FAMILY: [&str; 3] = ["0000:04:00.0", "0000:04:10.0", "0000:04:10.2"];
    let service = Hotslot::on("small").await;
    let answer = service.attach(Q35, "vf:1").await.expect(200);
    assert_eq!(statuses(&service, &FAMILY).await, ["unavailable", "allocated", "available"]);
    let refused = service.attach(Q35, "pf:1").await.expect(400);
    assert!(refused.message().contains("pf"), "{}", refused.message());
    service.delete(&path(&answer.body["pci_devices"][0])).await.expect(200);
    assert_eq!(statuses(&service, &FAMILY).await, ["available"; 3]);

    // Unbinding the driver of a PF removes its VFs, as on a real host.
    let answer = service.attach(Q35, "pf:1").await.expect(200);
    service.attach(Q35, "vf:1").await.expect(400);
    service.delete(&path(&answer.body["pci_devices"][0])).await.expect(200);
    assert_eq!(statuses(&service, &FAMILY[..1]).await, ["available"]);
}

#[tokio::test]
async fn added_and_removed_vfs_are_noticed_within_a_second() {
    let service = Hotslot::on("small").await;
    let listed = async || {
        let devices = service.get("/v2.1/os-pci").await.expect(200).body;
        devices["pci_devices"].as_array().unwrap().iter().any(|device| device["address"] == "0000:04:10.2")
    };
    assert!(listed().await);
    for (line, there) in [("device remove pci_0000_04_10_2", false), ("device add pci_0000_04_10_2", true)] {
        service.sim(line);
        let start = Instant::now();
        while listed().await != there {
            assert!(start.elapsed() < SOON, "{line}: not seen");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

#[tokio::test]
async fn os_pci_is_filtered_and_paged() {
    let service = Hotslot::on("small").await;
    let ids = async |query: &str| -> Vec<i64> {
        let body = service.get(&format!("/v2.1/os-pci?{query}")).await.expect(200).body;
        body["pci_devices"].as_array().unwrap().iter().map(|device| device["id"].as_i64().unwrap()).collect()
    };
    let all = ids("").await;
    assert!(all.is_sorted() && all.len() > 4);
    let mut paged = Vec::new();
    let mut url = Some("/v2.1/os-pci/detail?limit=3&vendor_id=8086".to_owned());
    while let Some(path) = url {
        let body = service.get(&path).await.expect(200).body;
        let page = body["pci_devices"].as_array().unwrap();
        assert!(page.len() <= 3);
        paged.extend(page.iter().map(|device| device["id"].as_i64().unwrap()));
        let link = &body["pci_devices_links"][0];
        assert!(link.is_null() || link["rel"] == "next");
        url = link["href"].as_str().map(|href| href.replace(service.url(), ""));
    }
    assert_eq!(paged, ids("vendor_id=8086").await);

    service.attach(SWITCH, "vf:1").await.expect(200);
    let vf = service.device("0000:04:10.0").await;
    for query in [
        format!("instance_uuid={SWITCH}"),
        format!("server_uuid={SWITCH}"),
        "status=allocated".into(),
        "address=0000:04:10.0".into(),
        "dev_type=type-VF&status=allocated&host=node1&product_id=10ca".into(),
        "phys_function=0000:04:00.0&status=allocated".into(),
    ] {
        assert_eq!(ids(&query).await, [vf["id"].as_i64().unwrap()], "{query}");
    }
    assert_eq!(ids("host=node2").await, [0i64; 0]);
    let unknown = service.get("/v3/os-pci?rack=7").await.expect(400);
    assert!(
        unknown.message().starts_with("unknown query key rack; known: limit, marker"),
        "{}",
        unknown.message()
    );
    let uuid = vf["uuid"].as_str().unwrap();
    assert_eq!(service.get(&format!("/v3/os-pci/{uuid}")).await.expect(200).body["pci_device"], vf);
    assert_eq!(ids(&format!("marker={uuid}&limit=1")).await.len(), 1);
}

/// Starts a service with a device that must be cleaned after each use.
pub(crate) async fn one_time_use() -> Hotslot {
    Hotslot::bare(
        &host("small"),
        "[pci]\nreport_in_placement = true\n\
         device_spec = ['{\"vendor_id\": \"1234\", \"one_time_use\": \"true\"}']\n\
         alias = ['{\"name\": \"edu\", \"vendor_id\": \"1234\", \"product_id\": \"11e8\"}']\n",
        |_| (),
    )
    .await
}

#[tokio::test]
async fn a_one_time_use_device_is_unavailable_until_cleaned() {
    let service = one_time_use().await;
    let all = service.get("/v2.1/os-pci?status=available").await.expect(200).body["pci_devices"].clone();
    let edu = &all[0];
    let answer = service.attach(I440FX, "edu:1").await.expect(200).body;
    let held = service.device(edu["address"].as_str().unwrap()).await;
    let refused =
        service.post(&format!("/v2.1/os-pci/{}/action", held["id"]), json!({ "cleaned": null })).await;
    assert!(refused.expect(409).message().contains("is allocated; detach it"));
    service.delete(&path(&answer["pci_devices"][0])).await.expect(200);
    let used = service.device(edu["address"].as_str().unwrap()).await;
    assert!(used["used_at"].is_string(), "{used}");
    let cleaned = format!("/v2.1/os-pci/{}/action", used["id"]);
    if all.as_array().unwrap().len() == 1 {
        let refused = service.attach(I440FX, "edu:1").await.expect(409);
        assert!(refused.message().contains("one_time_use"), "{}", refused.message());
    }
    service.post(&cleaned, json!({ "clean": null })).await.expect(400);
    let answer = service.post(&cleaned, json!({ "cleaned": null })).await.expect(200).body;
    assert_eq!(answer["pci_device"]["used_at"], Value::Null);
    service.post(&cleaned, json!({ "cleaned": null })).await.expect(200);
    service.attach(I440FX, "edu:1").await.expect(200);
}

#[tokio::test]
async fn a_one_time_use_device_that_a_guest_may_have_had_is_marked_used() {
    const EDU: &str = "0000:00:1d.0";
    let pci = "[pci]\nreport_in_placement = true\n\
               device_spec = ['{\"vendor_id\": \"1234\", \"one_time_use\": \"true\", \"address\": \"0000:00:1d.0\"}']\n\
               alias = ['{\"name\": \"edu\", \"vendor_id\": \"1234\", \"product_id\": \"11e8\"}']\n";
    // The fault that hits the attach, and whether the guest may have had the device.
    for (fault, used) in [
        ("fail text=refused", false),
        ("fail kind=no-free-port text=full", false),
        ("fail at=between text=the-definition-cannot-be-written", true),
        ("fail at=after text=refused-after-all", true),
        ("crash at=before", false),
        ("crash at=after", true),
        ("kill at=before", true),
        ("kill at=after", true),
    ] {
        let mut service = Hotslot::bare(&host("small"), pci, |_| ()).await;
        service.sim(&format!("fault attach {fault}"));
        let body = json!({ "pciAttachment": { "pci_passthrough:alias": "edu:1" } }).to_string();
        let body = Some(("application/json", body));
        let answer = service.try_send(reqwest::Method::POST, &attachments(I440FX), body).await;
        assert!(answer.as_ref().is_none_or(|answer| answer.status != 200), "{fault}: {answer:?}");
        if answer.is_none() {
            assert!(service.ended(std::time::Duration::from_secs(10)).await);
            service.start_again().await;
            // Detach the devices that were attached in spite of the fault.
            for row in service.attachments(I440FX).await {
                service.delete(&path(&row)).await.expect(200);
            }
        }
        let is_free = async || service.device(EDU).await["status"] == "available";
        service.until("it is free", is_free).await;
        let device = service.device(EDU).await;
        assert_eq!(device["used_at"].is_string(), used, "{fault}: {device:#}");
        let ended = service.get("/v2/t/os-pci_attachments?ended=true").await.expect(200).body;
        let reason = ended["pciAttachment"][0]["status_reason"].as_str().unwrap_or_default().to_owned();
        assert!(!reason.contains("before the device was plugged"), "{fault}: {reason}");
    }
}
