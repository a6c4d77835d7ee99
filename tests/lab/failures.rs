//! Each failure returns the right status and leaves nothing behind: no record, no binding, no alias, and the host's
//! devices on their original drivers.

use hotslot_tests::lab::{CONFIG, Lab, id};
use hotslot_tests::{attachments, path};
use serde_json::json;

/// Prints the interface indexes of the lab's devices: a driver that was rebound gives its interface another index.
pub const INTERFACES: &str = "cat /sys/bus/pci/devices/*/net/*/ifindex | sort -n | tr '\\n' ' '";

#[tokio::test]
#[ignore = "takes a minute or more: make long-lab-test"]
async fn refusals_change_nothing() {
    let lab = Lab::fresh().await;
    let before = lab.sh(INTERFACES);

    // A conventional device, when only PCI Express ports are free.
    let answer = lab.attach(id("q35"), "edu:1").await.expect(409);
    assert!(answer.message().contains("no free hot-plug port"), "{}", answer.message());
    // No free port at all.
    lab.sh("guest boot full");
    let answer = lab.attach(id("full"), "vf:1").await.expect(409);
    assert!(answer.message().contains("no free hot-plug port"), "{}", answer.message());
    lab.sh("guest off full");
    // Too few devices, an unknown alias, and an unknown server.
    let answer = lab.attach(id("q35"), "vf:3").await.expect(400);
    assert!(answer.message().contains("2 free"), "{}", answer.message());
    lab.attach(id("q35"), "gpu:1").await.expect(400);
    lab.attach("10000000-0000-4000-8000-00000000dead", "vf:1").await.expect(404);
    // A live attach to a server that is shut off.
    let body = json!({ "pciAttachment": { "pci_passthrough:alias": "vf:1", "persistent": false } });
    lab.post(&attachments(id("q35b")), body).await.expect(409);

    assert_eq!(lab.sh(INTERFACES), before, "a host driver was bounced");
    lab.expect_nothing_left().await;
}

#[tokio::test]
#[ignore = "takes a minute or more: make long-lab-test"]
async fn both_functions_of_an_iommu_group_are_attached_without_a_flag() {
    let lab = Lab::fresh().await;
    // The second and third e1000e share a group and are bound to host drivers.
    let answer = lab.attach(id("q35"), "e1000e:2").await.expect(200);
    let devices = answer.body["pci_devices"].as_array().expect("devices").clone();
    let pair: Vec<_> = ["pair0", "pair1"].iter().map(|name| lab.sh(&format!("lab-devices {name}"))).collect();
    for (device, address) in devices.iter().zip(&pair) {
        assert_eq!(device["address"], address.trim(), "{device}");
    }
    lab.until("the guest's driver has both", async || {
        lab.lspci("q35").iter().filter(|line| line.contains("8086:10d3")).count() >= 2
    })
    .await;
    for device in &devices {
        lab.detach(device).await.expect(200);
    }
    for device in &devices {
        lab.until("it is with its host driver", async || lab.driver(&device["address"]) == "e1000e").await;
    }
    lab.expect_nothing_left().await;
}

#[tokio::test]
#[ignore = "takes minutes: make long-lab-test"]
async fn devices_attached_by_others_are_not_taken() {
    let lab = Lab::fresh().await;
    lab.sh("guest boot q35b");
    let vf = lab.sh("lab-devices igb-vf0");
    let (bus, slot) = (&vf[5..7], &vf[8..10]);
    let xml = format!(
        "<hostdev mode=\"subsystem\" type=\"pci\" managed=\"yes\"><source><address domain=\"0x0000\" \
         bus=\"0x{bus}\" slot=\"0x{slot}\" function=\"0x0\"/></source></hostdev>"
    );
    lab.sh(&format!("echo '{xml}' >/tmp/vf.xml"));
    // The device is in another running guest. Attaches to a running and to a shut-off guest are refused when there is
    // no other device.
    lab.sh("virsh -q attach-device q35b /tmp/vf.xml --live");
    for guest in ["q35", "i440fx"] {
        let answer = lab.attach(id(guest), "vf:2").await.expect(409);
        assert!(answer.message().contains("is in domain q35b (running"), "{}", answer.message());
    }
    lab.sh("guest off q35b");
    lab.until_sh(
        "the host driver is back",
        &format!("basename $(readlink /sys/bus/pci/devices/{vf}/driver)"),
        "igbvf",
    )
    .await;
    // The device is in the definition of the same server.
    lab.sh("virsh -q attach-device q35 /tmp/vf.xml --config");
    let answer = lab.attach(id("q35"), "vf:2").await.expect(409);
    assert!(answer.message().contains("definition"), "{}", answer.message());
    lab.sh("virsh -q detach-device q35 /tmp/vf.xml --config");
    // The device is free at once, although libvirt sends no event when a definition changes.
    lab.attach_one("q35", "vf").await;
    let other = lab.attach_one("q35", "vf").await;
    assert_ne!(other["address"], vf);
    for attached in
        lab.get(&attachments(id("q35"))).await.expect(200).body["pciAttachment"].as_array().unwrap()
    {
        lab.detach(attached).await.expect(200);
    }
    lab.expect_nothing_left().await;
}

#[tokio::test]
async fn a_vf_that_was_disabled_is_not_offered() {
    let lab = Lab::fresh().await;
    lab.sh("echo 0 >/sys/bus/pci/devices/$(lab-devices igb-pf)/sriov_numvfs");
    lab.until("the devices are gone", async || {
        let answer = lab.attach(id("q35"), "vf:1").await;
        [400, 409].contains(&answer.status) && answer.message().contains("0 free")
    })
    .await;
    lab.expect_nothing_left().await;
}

#[tokio::test]
async fn a_group_opened_by_another_process_is_409() {
    let lab = Lab::fresh().await;
    let vf = lab.sh("lab-devices igb-vf0");
    let group = lab.sh(&format!("basename $(readlink /sys/bus/pci/devices/{vf}/iommu_group)"));
    // Another process has opened the group. The device is on vfio-pci, but hotslot did not bind it.
    let node = vf.replace([':', '.'], "_");
    lab.sh(&format!("virsh -q nodedev-detach pci_{node}"));
    lab.sh(&format!("setsid sleep 60 3<>/dev/vfio/{group} >/dev/null 2>&1 & echo $! >/run/holder.pid"));
    let answer = lab.attach(id("q35"), "vf:1").await.expect(409);
    assert!(answer.message().contains("busy"), "{}", answer.message());
    lab.sh("kill $(cat /run/holder.pid)");
    lab.sh(&format!("virsh -q nodedev-reattach pci_{node}"));
    lab.expect_nothing_left().await;
}

#[tokio::test]
#[ignore = "takes a minute or more: make long-lab-test"]
async fn an_unmanaged_device_must_be_bound_by_the_operator() {
    let spec = r#"'{"vendor_id": "8086", "product_id": "10ca"}'"#;
    let unmanaged = r#"'{"vendor_id": "8086", "product_id": "10ca", "managed": "false"}'"#;
    let lab = Lab::with(&CONFIG.replace(spec, unmanaged)).await;
    let answer = lab.attach(id("q35"), "vf:1").await.expect(409);
    assert!(answer.message().contains("bind it to vfio-pci first"), "{}", answer.message());
    // The device that the operator has bound is attached, and has the same binding after the detach.
    let bound = lab.sh("lab-devices igb-vf1");
    let node = bound.replace([':', '.'], "_");
    lab.sh(&format!("virsh -q nodedev-detach pci_{node}"));
    let attached = lab.attach_one("q35", "vf").await;
    assert_eq!(attached["address"], bound);
    lab.detach(&attached).await.expect(200);
    assert_eq!(lab.driver(&attached["address"]), "vfio-pci");
    lab.sh(&format!("virsh -q nodedev-reattach pci_{node}"));
    lab.expect_nothing_left().await;
}

#[tokio::test]
async fn a_paused_guest_keeps_the_device_until_it_is_resumed() {
    let lab = Lab::with(&CONFIG.replace("attempts = 8\ntimeout = 12", "attempts = 1\ntimeout = 3")).await;
    let vf = lab.attach_one("q35", "vf").await;
    // The guest must have probed the device, or it would not release it.
    let wanted = format!("{} 8086:10ca igbvf", vf["inner_address"].as_str().unwrap());
    lab.until("the driver binds in the guest", async || lab.lspci("q35").contains(&wanted)).await;
    lab.sh("virsh -q suspend q35");
    let answer = lab.detach(&vf).await.expect(409);
    assert!(answer.message().contains("paused"), "{}", answer.message());
    assert_eq!(lab.get(&path(&vf)).await.expect(200).body["pciAttachment"]["status"], "detaching");
    assert_eq!(lab.driver(&vf["address"]), "vfio-pci");
    lab.sh("virsh -q resume q35");
    lab.until("the removal completes by itself", async || lab.get(&path(&vf)).await.status == 404).await;
    assert_eq!(lab.driver(&vf["address"]), "igbvf");
    lab.expect_nothing_left().await;
}
