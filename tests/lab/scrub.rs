//! The next guest does not find what the one before has written, and a device that dies while a guest has it is offered to nobody.

use std::process::Command;

use hotslot_tests::lab::{CONFIG, Lab, id};
use serde_json::{Value, json};

/// A file of this machine in which the VM's NVMe disk keeps what is written. The lab's own disk keeps nothing.
const DISK: &str = "/var/tmp/hotslot-lab-nvme.raw";

/// How much of the disk the guests write and read, in KiB.
const WRITTEN: u32 = 512;

/// Puts a disk that keeps what is written in the place of the NVMe device of the lab.
async fn with_disk(lab: &Lab) {
    let made = Command::new("sh")
        .args(["-c", &format!("rm -f {DISK}; truncate -s 64M {DISK}; chmod 666 {DISK}")])
        .status();
    assert!(made.expect("sh").success());
    let block = json!({ "execute": "blockdev-add", "arguments":
        { "driver": "file", "node-name": "kept", "filename": DISK, "discard": "unmap" } });
    let device = json!({ "execute": "device_add", "arguments":
        { "driver": "nvme", "id": "nvme0", "serial": "KEPT", "bus": "lab13", "drive": "kept" } });
    let nvme = lab.replace_nvme(&[block, device], "nvme").await;
    let serial = async || lab.device(&nvme).await["extra_info"]["card_serial_number"].to_string();
    lab.until("hotslot knows it", async || serial().await.contains("KEPT")).await;
}

/// Returns how many bytes at the start of the disk are not zero, as a guest reads them.
async fn found(lab: &Lab, guest: &str) -> u32 {
    let disk = format!("guest exec {guest} sh -c 'test -b /dev/nvme0n1 && echo yes || echo no'");
    lab.until_sh("the guest has the disk", &disk, "yes").await;
    let count = format!(
        "guest exec {guest} sh -c 'echo 3 >/proc/sys/vm/drop_caches; dd if=/dev/nvme0n1 bs=1024 count={WRITTEN} 2>/dev/null \
         | tr -d \"\\\\000\" | wc -c'"
    );
    lab.sh(&count).trim().parse().expect("a number")
}

async fn row(lab: &Lab, address: &Value) -> Value {
    lab.device(address.as_str().expect("an address")).await
}

async fn act(lab: &Lab, address: &Value, action: &str) {
    let id = &row(lab, address).await["id"];
    match action {
        "scrub" => lab.post(&format!("/v2.1/os-pci/{id}/scrub"), json!({})).await.expect(202),
        action => lab.post(&format!("/v2.1/os-pci/{id}/action"), json!({ action: null })).await.expect(200),
    };
}

async fn until_offered(lab: &Lab, address: &Value) {
    lab.until("it is offered", async || row(lab, address).await["used_at"].is_null()).await;
}

async fn until_quarantined(lab: &Lab, address: &Value) -> String {
    lab.until("it is in quarantine", async || row(lab, address).await["quarantine"].is_string()).await;
    row(lab, address).await["quarantine"].as_str().unwrap().to_owned()
}

#[tokio::test]
#[ignore = "takes minutes: make long-lab-test"]
async fn an_nvme_disk_that_one_guest_has_written_is_empty_for_the_next() {
    let lab = Lab::fresh().await;
    with_disk(&lab).await;
    lab.sh("guest boot q35b");
    let first = lab.attach_one("q35", "nvme").await;
    assert_eq!(found(&lab, "q35").await, 0);
    let write = format!(
        "guest exec q35 sh -c 'yes tenant-a | dd of=/dev/nvme0n1 bs=1024 count={WRITTEN} iflag=fullblock conv=fsync 2>/dev/null'"
    );
    lab.sh(&write);
    assert_eq!(found(&lab, "q35").await, WRITTEN * 1024, "the disk keeps what is written");
    lab.detach(&first).await.expect(200);
    until_offered(&lab, &first["address"]).await;
    let done = lab.sh("journalctl -u hotslot-hooks --no-pager -o cat | grep -c 'scrub .*: done'");
    assert_eq!(done, "1");
    let second = lab.attach_one("q35b", "nvme").await;
    assert_eq!(second["address"], first["address"]);
    assert_eq!(found(&lab, "q35b").await, 0, "the second guest finds what the first has written");

    // Without nvme-cli nobody gets it; and the service, killed meanwhile, knows that after its restart.
    lab.sh(
        "guest exec q35b sh -c 'yes tenant-b | dd of=/dev/nvme0n1 bs=1024 count=8 conv=fsync 2>/dev/null'",
    );
    lab.sh("mv /usr/sbin/nvme /usr/sbin/nvme.away");
    lab.detach(&second).await.expect(200);
    lab.stop();
    lab.serve().await;
    let reason = until_quarantined(&lab, &first["address"]).await;
    lab.sh("mv /usr/sbin/nvme.away /usr/sbin/nvme");
    assert!(reason.contains("install nvme-cli on the host"), "{reason}");
    assert!(lab.attach(id("q35"), "nvme:1").await.expect(409).message().contains("install nvme-cli"));
    act(&lab, &first["address"], "scrub").await;
    until_offered(&lab, &first["address"]).await;
    let third = lab.attach_one("q35", "nvme").await;
    assert_eq!(found(&lab, "q35").await, 0);
    lab.detach(&third).await.expect(200);
    until_offered(&lab, &first["address"]).await;
    lab.expect_nothing_left().await;
    let _ = std::fs::remove_file(DISK);
}

#[tokio::test]
#[ignore = "takes minutes: make long-lab-test"]
async fn hooks_of_the_administrator_run_in_the_sandbox_of_the_unit() {
    let lab = Lab::fresh().await;
    let e1000e = json!(lab.sh("lab-devices e1000e"));
    lab.sh(
        "cat >/usr/local/sbin/lab-hook <<'END'\n#!/bin/sh\necho \"$1 $2\"; test -e /run/hook-fails && exit 1\n\
         echo \"$1 $2 $(basename $(readlink /sys/bus/pci/devices/$2/driver))\" >/dev/kmsg || true\nEND\n\
         chmod 755 /usr/local/sbin/lab-hook\n\
         for when in drain scrub; do printf '[[hook]]\\nclass = \"network controller\"\\nwhen = \"%s\"\\n\
         command = [\"/usr/local/sbin/lab-hook\", \"%s\", \"{address}\"]\\n' $when $when; done >/etc/hotslot/hooks.toml; \
         touch /run/hook-fails",
    );
    let refused = lab.attach(id("q35"), "e1000e:1").await.expect(409);
    assert!(
        refused.message().contains("the drain hook of class `network controller`"),
        "{}",
        refused.message()
    );
    assert_eq!(lab.driver(&e1000e), "e1000e", "nothing was unbound");
    lab.sh("rm /run/hook-fails");
    let attached = lab.attach_one("q35", "e1000e").await;
    lab.detach(&attached).await.expect(200);
    until_offered(&lab, &attached["address"]).await;
    let address = attached["address"].as_str().unwrap();
    let ran = lab.sh(
        "journalctl -u hotslot-hooks --no-pager -o cat | grep ': done' | sed 's/.*: \\(.*\\): done/\\1/'",
    );
    assert_eq!(ran, format!("drain {address}\nscrub {address}"));
    lab.sh("chmod o+w /etc/hotslot/hooks.toml");
    let refused = lab.attach(id("q35"), "e1000e:1").await.expect(409);
    assert!(refused.message().contains("others than its owner can write it"), "{}", refused.message());
    lab.sh("rm /etc/hotslot/hooks.toml /usr/local/sbin/lab-hook");
    lab.expect_nothing_left().await;
}

#[tokio::test]
#[ignore = "takes minutes: make long-lab-test"]
async fn a_device_that_is_removed_in_sysfs_while_a_guest_has_it_is_quarantined() {
    let lab = Lab::fresh().await;
    let attached = lab.attach_one("q35", "e1000e").await;
    let address = attached["address"].as_str().unwrap().to_owned();
    // The kernel waits until QEMU has released it.
    lab.sh(&format!(
        "setsid sh -c 'echo 1 >/sys/bus/pci/devices/{address}/remove' >/dev/null 2>&1 </dev/null & true"
    ));
    let reason = until_quarantined(&lab, &attached["address"]).await;
    assert_eq!(reason, format!("it disappeared from the host while server {} had it", id("q35")));
    lab.detach(&attached).await.expect(200);
    lab.sh("echo 1 >/sys/bus/pci/rescan");
    lab.until("it is back", async || row(&lab, &attached["address"]).await["gone_at"].is_null()).await;
    assert_eq!(until_quarantined(&lab, &attached["address"]).await, reason);
    act(&lab, &attached["address"], "cleaned").await;
    let again = lab.attach_one("q35", "e1000e").await;
    lab.detach(&again).await.expect(200);
    lab.expect_nothing_left().await;
}

#[tokio::test]
#[ignore = "takes minutes: make long-lab-test"]
async fn a_device_whose_reset_was_taken_away_is_quarantined_after_its_use() {
    let lab = Lab::fresh().await;
    let attached = lab.attach_one("q35", "e1000e").await;
    let address = attached["address"].as_str().unwrap().to_owned();
    let file = format!("/sys/bus/pci/devices/{address}/reset_method");
    assert_ne!(lab.sh(&format!("cat {file}")), "");
    lab.sh(&format!("echo >{file}"));
    assert_eq!(lab.sh(&format!("cat {file}")), "");
    lab.detach(&attached).await.expect(200);
    let reason = until_quarantined(&lab, &attached["address"]).await;
    assert!(reason.contains(&format!("the host cannot reset {address} any more")), "{reason}");
    lab.sh(&format!("echo default >{file}"));
    act(&lab, &attached["address"], "cleaned").await;
    lab.expect_nothing_left().await;
}

/// Puts a device that reports its errors in the place of the NVMe device of the lab; QEMU's network cards report none.
async fn with_reporter(lab: &Lab) -> String {
    let source =
        json!({ "execute": "object-add", "arguments": { "qom-type": "rng-builtin", "id": "source" } });
    let device = json!({ "execute": "device_add", "arguments": { "driver": "virtio-rng-pci", "id": "reporter",
        "rng": "source", "bus": "lab13", "aer": true, "iommu_platform": true } });
    let address = lab.replace_nvme(&[source, device], "virtio-pci").await;
    lab.until("hotslot knows it", async || lab.device(&address).await["product_id"] == "1044").await;
    address
}

#[tokio::test]
#[ignore = "takes minutes: make long-lab-test"]
async fn a_fatal_error_of_a_device_in_a_guest_is_a_quarantine_while_the_guest_has_it() {
    let config = CONFIG
        .replace(
            "device_spec = [",
            "device_spec = [\n  '{\"vendor_id\": \"1af4\", \"product_id\": \"1044\"}',",
        )
        .replace(
            "alias = [",
            "alias = [\n  '{\"name\": \"rng\", \"vendor_id\": \"1af4\", \"product_id\": \"1044\"}',",
        );
    let lab = Lab::with(&config).await;
    let address = with_reporter(&lab).await;
    let attached = lab.attach_one("q35", "rng").await;
    assert_eq!(attached["address"], address);
    lab.monitor("pcie_aer_inject_error reporter DLP");
    let shown = async || {
        let shown = lab.get(&hotslot_tests::path(&attached)).await.expect(200).body;
        shown["pciAttachment"]["quarantine"].clone()
    };
    lab.until("the attachment tells it", async || shown().await.is_string()).await;
    assert!(shown().await.to_string().contains("fatal PCI Express errors"), "{}", shown().await);
    let metrics = lab.sh("curl -s --unix-socket /run/hotslot/api.sock http://hotslot/metrics | grep ^hotslot_devices_quarantined");
    assert!(metrics.ends_with(" 1.0"), "{metrics}");
    // QEMU stops a guest whose device has failed, so that it cannot release the device.
    lab.sh("guest off q35; guest boot q35");
    lab.until("it is settled", async || {
        let rows = lab.attachments(id("q35")).await;
        rows.iter().all(|row| row["status"] == "attached")
    })
    .await;
    lab.detach_all("q35").await;
    until_quarantined(&lab, &attached["address"]).await;
    act(&lab, &attached["address"], "cleaned").await;
    lab.expect_nothing_left().await;
}
