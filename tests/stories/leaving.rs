//! Without hotslot the guests go on: what is theirs stays when the service and its records are taken away.

use std::time::Duration;

use hotslot_driver::hypervisor::{DetachScope, Hypervisor as _};
use hotslot_driver::sim::Sim;
use hotslot_tests::{Hotslot, Q35};
use serde_json::json;

#[tokio::test]
async fn a_guest_keeps_its_device_without_hotslot_and_releases_it_by_libvirt_alone() {
    let mut service = Hotslot::on("small").await;
    let attached = service.attach(Q35, "vf:1").await.expect(200).body["pci_devices"][0].clone();
    let alias = format!("ua-{}", attached["attachment_id"].as_str().unwrap());
    let owner = json!({ "pci_owner": { "project_id": "p1" } });
    service.put(&format!("/v2.1/servers/{Q35}/pci_owner"), owner).await.expect(200);
    let before = service.documents();
    assert!(before.contains(&alias) && before.contains("urn:hotslot:domain:1.0"), "{before}");

    service.signal("TERM");
    assert!(service.ended(Duration::from_secs(60)).await);
    std::fs::remove_file(service.database()).unwrap();
    assert_eq!(service.documents(), before, "the documents of the guests are as before");

    // What libvirt does without hotslot: the guest is powered off and on, and then asked to release the device.
    let host = Sim::open(&service.host_dir()).unwrap();
    let server = Q35.parse().unwrap();
    let address = attached["address"].as_str().unwrap().parse().unwrap();
    let has_it = async || {
        let domain = host.domain(server).await.unwrap();
        [domain.live, domain.persistent].map(|document| {
            document.is_some_and(|document| {
                document.hostdevs.iter().any(|device| device.alias.as_deref() == Some(alias.as_str()))
            })
        })
    };
    let driver = async || host.device(address).await.unwrap().driver;
    host.control("shutdown q35").unwrap();
    assert_eq!(has_it().await, [false, true]);
    until(async || driver().await.as_deref() == Some("igbvf")).await;
    host.control("start q35").unwrap();
    assert_eq!(has_it().await, [true, true]);
    assert_eq!(driver().await.as_deref(), Some("vfio-pci"));
    host.detach(server, &alias, DetachScope::Live).await.unwrap();
    host.detach(server, &alias, DetachScope::Config).await.unwrap();
    until(async || has_it().await == [false, false] && driver().await.as_deref() == Some("igbvf")).await;
}

/// Waits until a condition is met.
async fn until(condition: impl AsyncFn() -> bool) {
    while !condition().await {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
