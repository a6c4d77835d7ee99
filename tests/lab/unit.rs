//! The service under its unit: its user, its sandbox and its watchdog. It sees what the host needs, although it is not
//! root and has a view of the file systems of its own.

use hotslot_tests::lab::{CONFIG, Lab, id};
use serde_json::Value;

/// The disk of the root file system and the management NIC of the VM are assignable by these entries, if nothing guards
/// them.
const NEEDED: &str = r#"
[pci]
device_spec = ['{"vendor_id": "1af4"}', '{"vendor_id": "1b36", "product_id": "0010"}']
[[hypervisor]]
name = "lab"
uri = "qemu:///system"
"#;

/// Prints the function of a block device or a network interface.
fn function(class: &str, name: &str) -> String {
    format!("realpath /sys/class/{class}/{name} | grep -o '0000:[^/]*' | tail -1")
}

async fn guards(lab: &Lab, address: &str) -> Vec<Value> {
    let path = format!("/v2.1/os-hypervisors/1/pci_devices/{address}");
    let guards = lab.get(&path).await.expect(200).body["pci_device"]["guards"].clone();
    guards.as_array().unwrap_or_else(|| panic!("{address}: {guards}")).clone()
}

#[tokio::test]
async fn the_service_runs_as_its_own_user_and_sees_what_the_host_needs() {
    let lab = Lab::with(NEEDED).await;
    let pid = lab.sh("systemctl show hotslot -p MainPID --value");
    assert_eq!(lab.sh(&format!("ps -o user= -p {pid}")), "hotslot");
    assert_eq!(
        lab.sh(&format!("grep -E 'CapEff|CapBnd' /proc/{pid}/status | grep -vc '0000000000000000$' || true")),
        "0"
    );
    let modes = "stat -c '%a %U %G %n' /run/hotslot /run/hotslot/api.sock /var/lib/hotslot /var/lib/hotslot/hotslot.db";
    assert_eq!(
        lab.sh(modes),
        "755 hotslot hotslot /run/hotslot\n660 hotslot hotslot /run/hotslot/api.sock\n\
         700 hotslot hotslot /var/lib/hotslot\n600 hotslot hotslot /var/lib/hotslot/hotslot.db"
    );
    let own = lab.sh(&format!("readlink /proc/{pid}/ns/mnt /proc/1/ns/mnt | uniq | wc -l"));
    assert_eq!(own, "2", "the service has mounts of its own");

    let disk = lab.sh(&function("block", "vda"));
    let found = guards(&lab, &disk).await;
    assert_eq!(found[0]["kind"], "root-filesystem", "{found:#?}");
    let nic = lab.sh("ip -o -4 addr show scope global | awk '{ print $2; exit }'");
    let nic = lab.sh(&function("net", &nic));
    let found = guards(&lab, &nic).await;
    assert_eq!(found[0]["kind"], "network-address", "{found:#?}");
    // A disk that nothing uses is not guarded: nothing is unknown only because it could not be read.
    let nvme = lab.sh("lab-devices nvme");
    assert_eq!(guards(&lab, &nvme).await, Vec::<Value>::new());
}

#[tokio::test]
#[ignore = "takes more than a minute: make long-lab-test"]
async fn systemd_starts_a_service_again_that_hangs() {
    let lab = Lab::with(CONFIG).await;
    let vf = lab.attach_one("q35", "vf").await;
    let status =
        "systemctl show hotslot -p StatusText --value | grep -c '1 of 1 hosts are connected' || true";
    lab.until_sh("the status shows the host", status, "1").await;
    lab.sh(
        "systemctl stop hotslot; mkdir -p /run/systemd/system/hotslot.service.d; \
         printf '[Service]\\nWatchdogSec=15s\\nRestartSec=1s\\n' >/run/systemd/system/hotslot.service.d/lab.conf; \
         systemctl daemon-reload",
    );
    lab.serve().await;
    let pid = lab.sh("systemctl show hotslot -p MainPID --value");
    lab.sh("systemctl kill -s STOP hotslot");
    lab.until_sh("systemd has started it again", "systemctl show hotslot -p NRestarts --value", "1").await;
    lab.until("it answers", async || lab.try_get("/readyz").await.is_some_and(|answer| answer.status == 200))
        .await;
    assert_ne!(lab.sh("systemctl show hotslot -p MainPID --value"), pid);
    assert_eq!(lab.attachments(id("q35")).await[0]["status"], "attached");
    lab.detach(&vf).await.expect(200);
    lab.expect_nothing_left().await;
    let doctor = lab.sh("hotslot doctor -o json | jq -r '.[] | select(.check == \"unit\" or .check == \"user\") | .level + \" \" + .says'");
    assert_eq!(doctor, "ok the service runs as hotslot\nok hotslot.service, with a watchdog of 15s");
}
