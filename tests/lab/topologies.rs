//! `inner_address` equals the address in the guest's own lspci, for every kind of device in every topology.

use hotslot_tests::lab::{Lab, id};
use serde_json::Value;

#[tokio::test]
async fn a_vf_binds_its_driver_in_the_guest_and_comes_back_to_the_host() {
    let lab = Lab::fresh().await;
    let vf = lab.attach_one("q35", "vf").await;
    assert_eq!(lab.driver(&vf["address"]), "vfio-pci");
    let wanted = format!("{} 8086:10ca igbvf", vf["inner_address"].as_str().unwrap());
    lab.until("the driver binds in the guest", async || lab.lspci("q35").contains(&wanted)).await;
    lab.until("the guest's agent confirms the address", async || {
        lab.attachments(id("q35")).await[0]["inner_address_source"] == "verified"
    })
    .await;
    lab.detach(&vf).await.expect(200);
    assert_eq!(lab.driver(&vf["address"]), "igbvf");
    assert!(!lab.lspci("q35").contains(&wanted));
    lab.expect_nothing_left().await;
}

#[tokio::test]
#[ignore = "takes a minute or more: make long-lab-test"]
async fn two_vfs_at_once() {
    let lab = Lab::fresh().await;
    let answer = lab.attach(id("q35"), "vf:2").await.expect(200);
    let vfs = answer.body["pci_devices"].as_array().unwrap();
    for vf in vfs {
        let wanted = format!("{} 8086:10ca igbvf", vf["inner_address"].as_str().unwrap());
        lab.until("the driver binds in the guest", async || lab.lspci("q35").contains(&wanted)).await;
    }
    for vf in vfs {
        lab.detach(vf).await.expect(200);
        assert_eq!(lab.driver(&vf["address"]), "igbvf");
    }
    lab.expect_nothing_left().await;
}

#[tokio::test]
#[ignore = "takes a minute or more: make long-lab-test"]
async fn plain_q35() {
    agrees("q35", &["vf", "e1000e", "nvme", "vf"]).await;
}

#[tokio::test]
async fn switch_and_conventional_bridge() {
    agrees("switch", &["vf", "vf", "e1000e", "edu"]).await;
}

#[tokio::test]
#[ignore = "takes a minute or more: make long-lab-test"]
async fn expander_bus() {
    agrees("pxb", &["vf", "e1000e", "vf"]).await;
}

#[tokio::test]
#[ignore = "takes a minute or more: make long-lab-test"]
async fn i440fx() {
    agrees("i440fx", &["vf", "edu", "e1000e"]).await;
}

/// Attaches devices one by one. Each must have the address of the response in the guest, in QEMU, and finally in the
/// record, as verified.
async fn agrees(guest: &str, aliases: &[&str]) {
    let lab = Lab::fresh().await;
    lab.sh(&format!("guest boot {guest}"));
    let mut plugged: Vec<Value> = Vec::new();
    for alias in aliases {
        let before = lab.lspci(guest);
        let device = lab.attach_one(guest, alias).await;
        let inner = device["inner_address"].as_str().expect("an inner address").to_owned();
        let ids =
            format!("{}:{}", device["vendor_id"].as_str().unwrap(), device["product_id"].as_str().unwrap());
        lab.until(&format!("{guest} shows the {alias}"), async || lab.lspci(guest).len() > before.len())
            .await;
        let new: Vec<String> = lab.lspci(guest).into_iter().filter(|line| !known(&before, line)).collect();
        assert_eq!(new.len(), 1, "{new:?}");
        assert!(
            new[0].starts_with(&format!("{inner} {ids} ")),
            "{alias} at {inner}, but the guest says {}",
            new[0]
        );
        assert_eq!(qemu(&lab, guest, &device).as_deref(), Some(inner.as_str()), "QEMU's view of the {alias}");
        plugged.push(device);
    }
    lab.until("every address is verified", async || {
        lab.attachments(id(guest)).await.iter().all(|one| one["inner_address_source"] == "verified")
    })
    .await;
    for (device, row) in plugged.iter().zip(lab.attachments(id(guest)).await) {
        assert_eq!(device["inner_address"], row["inner_address"]);
    }
    for device in &plugged {
        lab.detach(device).await.expect(200);
    }
    lab.expect_nothing_left().await;
}

/// Whether the guest had this function before, with any driver.
fn known(before: &[String], line: &str) -> bool {
    before.iter().any(|old| old.split(' ').next() == line.split(' ').next())
}

/// Returns the address of the device in QEMU (`query-pci`), without hotslot.
fn qemu(lab: &Lab, guest: &str, device: &Value) -> Option<String> {
    let command = format!("virsh qemu-monitor-command {guest} '{{\"execute\":\"query-pci\"}}'");
    let answer: Value = serde_json::from_str(&lab.sh(&command)).unwrap();
    let alias = format!("ua-{}", device["attachment_id"].as_str().unwrap());
    let mut rest: Vec<&Value> = vec![&answer];
    while let Some(value) = rest.pop() {
        if value["qdev_id"] == alias.as_str() {
            let number = |key: &str| value[key].as_u64().unwrap();
            return Some(format!(
                "0000:{:02x}:{:02x}.{:x}",
                number("bus"),
                number("slot"),
                number("function")
            ));
        }
        rest.extend(value.as_object().into_iter().flat_map(|object| object.values()));
        rest.extend(value.as_array().into_iter().flatten());
    }
    None
}
