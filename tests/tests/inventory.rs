//! What hotslot knows of a host's devices, and how that follows the host.

use std::time::{Duration, Instant};

use hotslot_tests::{Hotslot, Q35, path};
use serde_json::Value;

/// How soon a device that came or went on the host is seen.
const SOON: Duration = Duration::from_secs(1);

async fn statuses(service: &Hotslot, addresses: &[&str]) -> Vec<Value> {
    let mut found = Vec::new();
    for address in addresses {
        found.push(service.device(address).await["status"].clone());
    }
    found
}

#[tokio::test]
async fn a_pf_is_unavailable_while_a_vf_of_it_is_in_use_and_the_other_way_round() {
    const FAMILY: [&str; 3] = ["0000:04:00.0", "0000:04:10.0", "0000:04:10.2"];
    let service = Hotslot::on("small").await;
    let answer = service.attach(Q35, "vf:1").await.expect(200);
    assert_eq!(statuses(&service, &FAMILY).await, ["unavailable", "allocated", "available"]);
    let refused = service.attach(Q35, "pf:1").await.expect(400);
    assert!(refused.message().contains("pf"), "{}", refused.message());
    service.delete(&path(&answer.body["pci_devices"][0])).await.expect(200);
    assert_eq!(statuses(&service, &FAMILY).await, ["available"; 3]);

    // A PF that leaves its driver takes its VFs with it, on a real host too.
    let answer = service.attach(Q35, "pf:1").await.expect(200);
    service.attach(Q35, "vf:1").await.expect(400);
    service.delete(&path(&answer.body["pci_devices"][0])).await.expect(200);
    assert_eq!(statuses(&service, &FAMILY[..1]).await, ["available"]);
}

#[tokio::test]
async fn a_vf_that_comes_or_goes_is_seen_within_a_second_without_a_restart() {
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
