//! Health and quarantine: a device that does not work after a use as it did before is offered to nobody until somebody has
//! looked at it.

use std::fs;
use std::path::Path;

use hotslot_tests::{Hotslot, Q35, host, path};
use serde_json::{Value, json};

use super::guards::{EVERYTHING, live_on};

/// Nothing is scrubbed in these stories.
fn unscrubbed() -> String {
    EVERYTHING.replace(r#"{"address": "*"}"#, r#"{"address": "*", "scrub": "false"}"#)
}

const NVME: &str = "0000:08:00.0";

/// Writes files of a function in the sysfs of a simulated host.
fn write(host: &Path, address: &str, files: &[(&str, &[u8])]) {
    let folder = host.join("root/sys/bus/pci/devices").join(address);
    fs::create_dir_all(&folder).unwrap();
    for (name, bytes) in files {
        fs::write(folder.join(name), bytes).unwrap();
    }
}

/// A host whose second NVMe and whose PF have a link of 8 lanes at 16 GT/s.
fn with_links(host: &Path) {
    live_on(host);
    let config: Vec<u8> = (0..=255).collect();
    for address in [NVME, "0000:04:00.0", "0000:04:10.0"] {
        write(
            host,
            address,
            &[
                ("config", &config),
                ("current_link_width", b"8\n"),
                ("current_link_speed", b"16.0 GT/s PCIe\n"),
            ],
        );
    }
}

async fn withheld(service: &Hotslot, address: &str) -> Value {
    let shown = service.get(&format!("/v2/t/os-hypervisors/1/pci_devices/{address}")).await.expect(200).body;
    shown["pci_device"]["withheld"].clone()
}

async fn quarantined(service: &Hotslot) -> String {
    let text = reqwest::get(format!("{}/metrics", service.url())).await.unwrap().text().await.unwrap();
    let line = text.lines().find(|line| line.starts_with("hotslot_devices_quarantined{"));
    line.unwrap_or_else(|| panic!("{text}")).rsplit(' ').next().unwrap().to_owned()
}

#[tokio::test]
async fn a_device_that_does_not_work_after_its_use_is_quarantined() {
    let mut service = Hotslot::bare(&host("small"), &unscrubbed(), with_links).await;
    let spare = async |service: &Hotslot| {
        service.attach(Q35, "spare:1").await.expect(200).body["pci_devices"][0].clone()
    };
    // Nothing is wrong after the first use.
    let device = spare(&service).await;
    service.delete(&path(&device)).await.expect(200);
    assert_eq!(
        (withheld(&service, NVME).await, quarantined(&service).await),
        (Value::Null, "0.0".to_owned())
    );

    // What the link was before is on record, also after a restart.
    let device = spare(&service).await;
    service.kill();
    service.start_again().await;
    write(&service.host_dir(), NVME, &[("current_link_width", b"4\n")]);
    service.delete(&path(&device)).await.expect(200);
    service.until("it is in quarantine", async || withheld(&service, NVME).await != Value::Null).await;
    let reason = "the PCI Express link of 0000:08:00.0 has 4 lanes, and had 8 before it was used";
    let why = withheld(&service, NVME).await.to_string();
    assert!(why.contains(&format!("is in quarantine: {reason}")), "{why}");
    assert!(why.contains("hotslot pci cleaned 0000:08:00.0"), "{why}");
    let row = service.device(NVME).await;
    assert_eq!((&row["quarantine"], &row["status"]), (&json!(reason), &json!("available")));
    assert_eq!(quarantined(&service).await, "1.0");
    let refused = service.attach(Q35, "spare:1").await.expect(409);
    assert!(refused.message().contains(reason), "{}", refused.message());
    let events = service.get("/events?kind=device.quarantined").await.expect(200).body["events"].clone();
    assert_eq!(
        (events.as_array().unwrap().len(), &events[0]["to"], &events[0]["address"]),
        (1, &json!(reason), &json!(NVME))
    );

    // It stays so over a restart, until somebody has looked at it.
    service.kill();
    service.start_again().await;
    assert_eq!(service.device(NVME).await["quarantine"], reason);
    let action = format!("/v2.1/os-pci/{}/action", row["id"]);
    let released = service.post(&action, json!({ "cleaned": null })).await.expect(200).body;
    assert_eq!(
        (&released["pci_device"]["quarantine"], &released["pci_device"]["used_at"]),
        (&Value::Null, &Value::Null)
    );
    let device = spare(&service).await;
    service.delete(&path(&device)).await.expect(200);
    assert_eq!(service.device(NVME).await["quarantine"], Value::Null, "4 lanes are what it had this time");
    assert_eq!(quarantined(&service).await, "0.0");
    service.expect_clean().await;
}

#[tokio::test]
async fn a_device_that_does_not_answer_is_quarantined_after_any_use() {
    let service = Hotslot::bare(&host("small"), &unscrubbed(), with_links).await;
    let vf = "0000:04:10.0";
    let dead = [0xff; 256];
    let bound = service.accelerator("vf", json!({ "product_id": "10ca", "address": vf })).await;
    service.put(&bound, json!({ "driver": "vfio-pci" })).await.expect(200);
    write(&service.host_dir(), vf, &[("config", &dead)]);
    service.delete(&bound).await.expect(204);
    let reason = service.device(vf).await["quarantine"].clone();
    assert!(reason.as_str().unwrap().contains("0000:04:10.0 does not answer"), "{reason}");
    // The other VF of the PF is still offered.
    let other = service.attach(Q35, "vf:1").await.expect(200).body["pci_devices"][0].clone();
    assert_eq!(other["address"], "0000:04:10.2");
    // The link of a VF is that of its PF.
    write(&service.host_dir(), "0000:04:00.0", &[("current_link_speed", b"2.5 GT/s PCIe\n")]);
    service.delete(&path(&other)).await.expect(200);
    let reason = service.device("0000:04:10.2").await["quarantine"].clone();
    assert_eq!(
        reason,
        "the PCI Express link of 0000:04:00.0 runs at 2.5 GT/s, and ran at 16 GT/s before it was used"
    );
    service.expect_clean().await;
}

#[tokio::test]
async fn fatal_errors_that_the_kernel_counts_during_a_use_are_a_reason() {
    let service = Hotslot::bare(&host("small"), &unscrubbed(), with_links).await;
    let count = |total: u32| {
        let counters = format!("Undefined 0\nMalformed TLP {total}\nTOTAL_ERR_FATAL {total}\n");
        write(&service.host_dir(), NVME, &[("aer_dev_fatal", counters.as_bytes())]);
    };
    let use_it = async |after: u32| {
        let device = service.attach(Q35, "spare:1").await.expect(200).body["pci_devices"][0].clone();
        count(after);
        service.delete(&path(&device)).await.expect(200);
    };
    // Older errors are no reason, and neither is a counter that began again.
    for (before, after) in [(2, 2), (2, 0)] {
        count(before);
        use_it(after).await;
        assert_eq!(service.device(NVME).await["quarantine"], Value::Null);
    }
    use_it(3).await;
    service.until("it is in quarantine", async || withheld(&service, NVME).await != Value::Null).await;
    assert_eq!(
        service.device(NVME).await["quarantine"],
        "the kernel has counted fatal PCI Express errors of 0000:08:00.0 while it was used (AER): 3"
    );
    service.expect_clean().await;
}
