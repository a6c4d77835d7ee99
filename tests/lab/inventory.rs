//! The inventory on real devices: SR-IOV, guards, IOMMU groups.

use std::time::Instant;

use hotslot_tests::lab::{CONFIG, Lab, id, sh};
use hotslot_tests::{attachments, path};
use serde_json::{Value, json};

use crate::failures::INTERFACES;

/// Waits until q35 shows a device. The guest's agent may not answer while a driver probes the device.
async fn shown(lab: &Lab, device: &Value, as_what: &str) {
    let wanted = format!("{} {as_what}", device["inner_address"].as_str().unwrap());
    let line = format!("guest lspci q35 2>/dev/null | grep -c '^{wanted}' || true");
    lab.until_sh(&format!("q35 shows {wanted}"), &line, "1").await;
}

#[tokio::test]
#[ignore = "takes a minute or more: make long-lab-test"]
async fn two_vfs_go_to_two_guests_then_their_pf_and_new_vfs_are_discovered() {
    const PF: &str =
        r#"'{"name": "pf", "vendor_id": "8086", "product_id": "10c9", "device_type": "type-PF"}',"#;
    const MAC: &str = "52:54:00:12:34:42";
    let lab = Lab::with(&CONFIG.replace("alias = [", &format!("alias = [\n{PF}"))).await;
    lab.sh("guest boot q35b");
    let pf = lab.sh("lab-devices igb-pf");
    let links = || lab.sh(&format!("ip link show dev $(ls /sys/bus/pci/devices/{pf}/net)"));

    // One VF as a network interface, and one as a plain device.
    let body = json!({ "pci_passthrough:alias": "vf:1", "mac_address": MAC, "vlan": 42 });
    let answer = lab.post(&attachments(id("q35")), json!({ "pciAttachment": body })).await.expect(200);
    let vf = answer.body["pci_devices"][0].clone();
    let other = lab.attach_one("q35b", "vf").await;
    let with_it = links();
    let line = with_it.lines().find(|line| line.contains("vf 0 ")).expect("the PF's VF 0");
    assert!(line.contains(MAC) && line.contains("vlan 42"), "{with_it}");
    // The guest's driver requests the address from the PF by mailbox. QEMU's igb answers too late for the driver.
    shown(&lab, &vf, "8086:10ca igbvf").await;
    let refused = lab.attach(id("q35"), "pf:1").await.expect(400);
    assert!(refused.message().contains("blocked by a PF or VF in use"), "{}", refused.message());
    for vf in [&vf, &other] {
        lab.detach(vf).await.expect(200);
        assert_eq!(lab.driver(&vf["address"]), "igbvf");
    }
    assert!(!links().contains("vlan 42"), "{}", links());

    // Unbinding the PF removes its VFs, and they do not come back with it.
    let attached = lab.attach_one("q35", "pf").await;
    assert_eq!(
        (attached["address"].as_str(), lab.driver(&attached["address"]).as_str()),
        (Some(&*pf), "vfio-pci")
    );
    shown(&lab, &attached, "8086:10c9").await;
    let vfs_listed = async || {
        let devices = lab.get("/v2.1/os-pci?product_id=10ca").await.expect(200).body;
        devices["pci_devices"].as_array().unwrap().len()
    };
    lab.until("the VFs are gone", async || vfs_listed().await == 0).await;
    lab.detach(&attached).await.expect(200);
    assert_eq!(lab.driver(&attached["address"]), "igb");

    for wanted in [3, 0] {
        lab.sh(&format!("echo {wanted} >/sys/bus/pci/devices/{pf}/sriov_numvfs"));
        let start = Instant::now();
        lab.until("os-pci has the VFs of the host", async || vfs_listed().await == wanted).await;
        println!("{wanted} VFs seen after {:?}", start.elapsed());
    }
    lab.expect_nothing_left().await;
}

#[tokio::test]
async fn guarded_devices_are_refused_and_a_whole_group_is_attached() {
    let pair = sh("lab-devices pair0").replace(".0", ".*");
    let config = format!(
        r#"
[pci]
device_spec = ['{{"address": "{pair}", "card": "pair"}}', '{{"address": "*"}}']
alias = [
  '{{"name": "disk", "vendor_id": "1af4", "product_id": "1042"}}',
  '{{"name": "nic", "vendor_id": "1af4", "product_id": "1000"}}',
  '{{"name": "pair", "vendor_id": "8086", "product_id": "10d3", "card": "pair"}}',
  '{{"name": "vf", "vendor_id": "8086", "product_id": "10ca"}}',
]
[[hypervisor]]
name = "lab"
uri = "qemu:///system"
"#
    );
    let lab = Lab::with(&config).await;
    let before = lab.sh(INTERFACES);
    let ask = async |alias: &str, key: &str| {
        let body = json!({ "pci_passthrough:alias": alias, key: true });
        lab.post(&attachments(id("q35")), json!({ "pciAttachment": body })).await
    };
    let message = |run: &Value, check: &str, result: &str| {
        let checks = run["checks"].as_array().unwrap();
        let found = checks.iter().find(|line| line["check"] == check && line["result"] == result);
        found.unwrap_or_else(|| panic!("no {check} that is {result}: {run:#}"))["message"].to_string()
    };

    // The disk of the VM, and the NIC by which it is reached.
    for (alias, guard) in [("disk:1", "root-filesystem"), ("nic:1", "network-address")] {
        let refused = lab.attach(id("q35"), alias).await.expect(409);
        assert!(refused.message().contains(guard), "{}", refused.message());
        let run = ask(alias, "dry_run").await.expect(200).body["dry_run"].clone();
        assert_eq!(run["would_attach"], false, "{run:#}");
        assert!(message(&run, "guard", "fail").contains(guard), "{run:#}");
    }
    let run = ask("vf:1", "dry_run").await.expect(200).body["dry_run"].clone();
    assert_eq!(run["would_attach"], true, "{run:#}");
    assert!(message(&run, "reset", "pass").contains("flr"), "{run:#}");
    // Each function of the pair makes the group of the other not viable.
    let refused = lab.attach(id("q35"), "pair:1").await.expect(409);
    assert!(refused.message().contains("not viable"), "{}", refused.message());
    assert_eq!(lab.sh(INTERFACES), before, "a host driver was bounced");

    let answer = ask("pair:1", "whole_group").await.expect(200);
    let functions = answer.body["pci_devices"].as_array().unwrap().clone();
    assert_eq!(functions.len(), 2, "{functions:?}");
    for function in &functions {
        shown(&lab, function, "8086:10d3").await;
    }
    lab.delete(&path(&functions[0])).await.expect(200);
    // The other function is still in the guest, so this one must not be bound to a host driver.
    assert_eq!(lab.driver(&functions[0]["address"]), "vfio-pci");
    lab.delete(&path(&functions[1])).await.expect(200);
    for function in &functions {
        lab.until("its host driver is back", async || lab.driver(&function["address"]) == "e1000e").await;
    }
    lab.expect_nothing_left().await;
}
