//! Drain hooks, and devices that fail while a guest has them.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use hotslot_tests::oracle::{NVME, PCI};
use hotslot_tests::{Hotslot, Q35, attachments, host, path};
use serde_json::{Value, json};

use crate::scrub::hooks;

const ADDRESS: &str = "0000:08:00.0";

#[tokio::test]
async fn a_drain_hook_runs_before_a_function_is_taken_from_its_driver() {
    let service = Hotslot::bare(&host("small"), NVME, |host| {
        let log = host.join("log");
        let script = format!("echo \"$1\" >>{}; echo persistenced is busy >&2; exit 3", log.display());
        hooks(host, &[("NVMe controller", "drain", &script, "")]);
    })
    .await;
    let refused = service.attach(Q35, "nvme:1").await.expect(409);
    for says in [
        "the drain hook of class `NVMe controller` (/bin/sh)",
        "exit status: 3; the end of its output: persistenced is busy",
        "nothing is left of it",
    ] {
        assert!(refused.message().contains(says), "{says}: {}", refused.message());
    }
    assert!(service.attachments(Q35).await.is_empty());
    assert_eq!(service.functions().await[ADDRESS]["driver"], "nvme");
    let row = service.device(ADDRESS).await;
    assert_eq!((&row["status"], &row["used_at"]), (&json!("available"), &Value::Null), "it was not used");

    // For the host's own use by VFIO too.
    let spdk = service.accelerator("spdk", json!({ "vendor_id": "1b36", "address": ADDRESS })).await;
    let refused = service.put(&spdk, json!({ "driver": "vfio-pci" })).await.expect(409);
    assert!(refused.message().contains("persistenced is busy"), "{}", refused.message());

    let log = service.host_dir().join("log");
    assert_eq!(fs::read_to_string(&log).unwrap(), format!("{ADDRESS}\n{ADDRESS}\n"));
    hooks(&service.host_dir(), &[("NVMe controller", "drain", "true", "")]);
    let attached = service.attach(Q35, "nvme:1").await.expect(200).body["pci_devices"][0].clone();
    service.delete(&path(&attached)).await.expect(200);
    service.expect_clean().await;
}

#[tokio::test]
async fn a_request_of_which_one_device_cannot_be_drained_takes_none() {
    let service = Hotslot::bare(&host("small"), PCI, |host| {
        // The second of the two.
        let script = "case $1 in *06:00.1) echo no; exit 1;; esac";
        hooks(host, &[("network controller", "drain", script, "")]);
    })
    .await;
    let body = json!({ "pci_passthrough:alias": "pair:1", "whole_group": true });
    let refused = service.post(&attachments(Q35), json!({ "pciAttachment": body.clone() })).await.expect(409);
    assert!(refused.message().contains("0000:06:00.1 (device 2 of 2) failed"), "{}", refused.message());
    assert!(service.attachments(Q35).await.is_empty() && service.plugged().is_empty());
    let functions = service.functions().await;
    for member in ["0000:06:00.0", "0000:06:00.1"] {
        assert_eq!(functions[member]["driver"], "e1000e", "nothing was unbound");
    }
    hooks(&service.host_dir(), &[]);
    let attached = service.post(&attachments(Q35), json!({ "pciAttachment": body })).await.expect(200).body["pci_devices"].clone();
    for device in attached.as_array().unwrap() {
        service.delete(&path(device)).await.expect(200);
    }
    // The drivers of the group are bound again in the background, when no guest has a member of it.
    service
        .until("both are back", async || {
            let functions = service.functions().await;
            ["0000:06:00.0", "0000:06:00.1"].iter().all(|member| functions[*member]["driver"] == "e1000e")
        })
        .await;
    service.expect_clean().await;
}

#[tokio::test]
async fn hooks_that_cannot_be_used_refuse_what_would_run_them() {
    let service = Hotslot::bare(&host("small"), NVME, |_| ()).await;
    let file = service.host_dir().join("hooks.toml");
    let hook = "[[hook]]\nclass = \"NVMe controller\"\nwhen = \"drain\"\ncommand = [\"/bin/true\"]\n";
    let refused = async |text: &str, mode: u32, says: &str| {
        fs::write(&file, text).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(mode)).unwrap();
        let refused = service.attach(Q35, "nvme:1").await.expect(409);
        assert!(refused.message().contains(says), "{says}: {}", refused.message());
    };
    refused(&hook.replace("drain", "first"), 0o644, "hooks.toml: line 3: unknown variant `first`").await;
    refused(hook, 0o666, "hooks.toml: others than its owner can write it").await;
    refused(&hook.replace("/bin/true", "/no/such/file"), 0o644, "/no/such/file: No such file").await;
    // A file that breaks while a guest has the device does not give it to the next.
    fs::write(&file, hook).unwrap();
    let attached = service.attach(Q35, "nvme:1").await.expect(200).body["pci_devices"][0].clone();
    fs::write(&file, "[[hook]]").unwrap();
    service.delete(&path(&attached)).await.expect(200);
    let quarantine = async || service.device(ADDRESS).await["quarantine"].clone();
    service.until("it is in quarantine", async || quarantine().await.is_string()).await;
    assert!(quarantine().await.to_string().contains("missing field `class`"), "{}", quarantine().await);
    service.expect_clean().await;
}

#[tokio::test]
async fn a_device_that_disappears_while_a_guest_has_it_is_quarantined() {
    let unscrubbed = NVME.replace("0000:08:00.0\"", "0000:08:00.0\", \"scrub\": \"false\"");
    let mut service = Hotslot::bare(&host("small"), &unscrubbed, |_| ()).await;
    let attached = service.attach(Q35, "nvme:1").await.expect(200).body["pci_devices"][0].clone();
    service.sim("device remove 0000:08:00.0");
    let quarantine = async |service: &Hotslot| service.device(ADDRESS).await["quarantine"].clone();
    service.until("it is in quarantine", async || quarantine(&service).await.is_string()).await;
    let reason = quarantine(&service).await;
    assert_eq!(reason, format!("it disappeared from the host while server {Q35} had it"));
    service.until("it is gone", async || service.device(ADDRESS).await["gone_at"].is_string()).await;
    // The definition of the server has it until somebody detaches it.
    assert_eq!(service.attachments(Q35).await[0]["quarantine"], reason);
    service.delete(&path(&attached)).await.expect(200);
    // It is still so after a restart, and when it is back.
    service.kill();
    service.start_again().await;
    service.sim("device add 0000:08:00.0");
    service.until("it is back", async || service.device(ADDRESS).await["gone_at"].is_null()).await;
    assert_eq!(quarantine(&service).await, reason);
    let refused = service.attach(Q35, "nvme:1").await.expect(409);
    assert!(refused.message().contains("disappeared from the host"), "{}", refused.message());
    let id = &service.device(ADDRESS).await["id"];
    let refused = service.post(&format!("/v2.1/os-pci/{id}/scrub"), json!({})).await.expect(409);
    assert!(refused.message().contains("is not scrubbed, as its device_spec says"), "{}", refused.message());
    service.post(&format!("/v2.1/os-pci/{id}/action"), json!({ "cleaned": null })).await.expect(200);
    let attached = service.attach(Q35, "nvme:1").await.expect(200).body["pci_devices"][0].clone();
    // One that a person takes away when nobody has it is only gone.
    service.delete(&path(&attached)).await.expect(200);
    service.sim("device remove 0000:08:00.0");
    service
        .until("it is gone", async || {
            let devices = service.get("/v2/t/os-pci").await.expect(200).body["pci_devices"].clone();
            devices.as_array().unwrap().is_empty()
        })
        .await;
    service.expect_clean().await;
}

/// Writes a file of the second NVMe in the sysfs of a simulated host.
fn write(host: &Path, name: &str, text: &str) {
    let folder = host.join("root/sys/bus/pci/devices").join(ADDRESS);
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join(name), text).unwrap();
}

#[tokio::test]
async fn a_device_that_fails_in_a_guest_or_loses_its_reset_is_quarantined() {
    let config = NVME.replace("0000:08:00.0\"", "0000:08:00.0\", \"scrub\": \"false\"");
    let service = Hotslot::bare(&host("small"), &config, |host| {
        crate::inventory::guards::live_on(host);
        write(host, "aer_dev_fatal", "TOTAL_ERR_FATAL 0\n");
        write(host, "reset_method", "flr bus\n");
    })
    .await;
    let attached = service.attach(Q35, "nvme:1").await.expect(200).body["pci_devices"][0].clone();
    assert_eq!(attached["quarantine"], Value::Null);
    write(&service.host_dir(), "aer_dev_fatal", "TOTAL_ERR_FATAL 2\n");
    // QEMU stops the guest when it is told of the error.
    service.sim("pause q35");
    let shown =
        async || service.get(&path(&attached)).await.expect(200).body["pciAttachment"]["quarantine"].clone();
    service.until("it is in quarantine", async || shown().await.is_string()).await;
    let reason = "the kernel has counted fatal PCI Express errors of 0000:08:00.0 while it was used (AER): 2";
    assert_eq!(shown().await, reason);
    assert_eq!(service.attachments(Q35).await[0]["status"], "attached", "the guest keeps it");
    let row = service.device(ADDRESS).await;
    assert_eq!((&row["status"], &row["quarantine"]), (&json!("allocated"), &json!(reason)));
    service.sim("resume q35");
    service.delete(&path(&attached)).await.expect(200);
    assert_eq!(service.device(ADDRESS).await["quarantine"], reason);
    let id = &row["id"];
    service.post(&format!("/v2.1/os-pci/{id}/action"), json!({ "cleaned": null })).await.expect(200);

    let attached = service.attach(Q35, "nvme:1").await.expect(200).body["pci_devices"][0].clone();
    write(&service.host_dir(), "reset_method", "\n");
    service.delete(&path(&attached)).await.expect(200);
    let quarantine = async || service.device(ADDRESS).await["quarantine"].clone();
    service.until("it is in quarantine", async || quarantine().await.is_string()).await;
    let reason = "the host cannot reset 0000:08:00.0 any more (its reset_method is empty), and could before it was used";
    assert_eq!(quarantine().await, reason);
    service.expect_clean().await;
}
