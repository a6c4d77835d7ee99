//! Guards: devices that the host itself needs are not offered.

use std::path::Path;

use hotslot_tests::{Hotslot, Q35, host};

use super::explain::dry_run;

/// Writes the files of a host whose root file system is on the NVMe 0000:07:00.0 and whose default route uses
/// 0000:05:00.0.
pub(crate) fn live_on(host: &Path) {
    let root = host.join("root");
    let file = |path: &str, text: &str| {
        let path = root.join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    };
    let link = |path: &str, to: &str| {
        let path = root.join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::os::unix::fs::symlink(to, path).unwrap();
    };
    let disk = "sys/devices/pci0000:00/0000:00:14.0/0000:07:00.0/nvme/nvme0/nvme0n1";
    file("proc/1/mountinfo", "20 1 259:1 / / rw shared:1 - ext4 /dev/nvme0n1p1 rw\n");
    file("proc/swaps", "Filename Type Size Used Priority\n");
    file(
        "proc/1/net/route",
        "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\tWindow\tIRTT\n\
         eth0\t00000000\t0102A8C0\t0003\t0\t0\t0\t00000000\t0\t0\t0\n",
    );
    file("proc/1/net/ipv6_route", "");
    file("proc/1/net/if_inet6", "");
    file(&format!("{disk}/nvme0n1p1/partition"), "1");
    link("sys/dev/block/259:1", &format!("../../../{disk}/nvme0n1p1"));
    link("sys/class/block/nvme0n1", &format!("../../../{disk}"));
    link("sys/class/block/nvme0n1p1", &format!("../../../{disk}/nvme0n1p1"));
    let nic = "sys/devices/pci0000:00/0000:00:12.0/0000:05:00.0";
    file(&format!("{nic}/net/eth0/type"), "1");
    link(&format!("{nic}/net/eth0/device"), "../..");
    link("sys/class/net/eth0", &format!("../../../{nic}/net/eth0"));
    for address in ["0000:04:10.0", "0000:04:10.2"] {
        file(&format!("sys/bus/pci/devices/{address}/reset_method"), "flr bus\n");
    }
}

pub(super) const EVERYTHING: &str = r#"
[pci]
device_spec = ['{"address": "*"}']
alias = [
  '{"name": "nvme", "vendor_id": "1b36", "product_id": "0010"}',
  '{"name": "spare", "vendor_id": "1b36", "product_id": "0010", "device_type": "type-PF"}',
  '{"name": "nic", "vendor_id": "8086", "product_id": "10d3"}',
  '{"name": "vf", "vendor_id": "8086", "product_id": "10ca"}',
]
"#;

#[tokio::test]
async fn guarded_devices_are_refused_although_a_device_spec_matches() {
    let service = Hotslot::bare(&host("small"), EVERYTHING, live_on).await;
    // An NVMe that the host does not need can be attached.
    service.attach(Q35, "spare:1").await.expect(200);
    let refused = service.attach(Q35, "nvme:1").await.expect(409);
    assert!(refused.message().contains("0000:07:00.0"), "{}", refused.message());
    assert!(refused.message().contains("root-filesystem"), "{}", refused.message());

    let refused = service.attach(Q35, "nic:1").await.expect(409);
    for says in ["0000:05:00.0", "network-route"] {
        assert!(refused.message().contains(says), "{says}: {}", refused.message());
    }
    assert_eq!(service.attachments(Q35).await.len(), 1);
}

#[tokio::test]
async fn a_guard_is_overridden_by_name_with_a_warning() {
    let config = EVERYTHING.replace("alias =", "unguarded = ['node1/0000:07:00.0']\nalias =");
    let service = Hotslot::bare(&host("small"), &config, live_on).await;
    assert!(
        service.log().contains("0000:07:00.0 is assignable even if the host needs it"),
        "{}",
        service.log()
    );
    service.attach(Q35, "nvme:1").await.expect(200);
}

/// The root file system and the default route would be lost.
#[tokio::test]
async fn nobody_is_told_to_unbind_what_the_host_needs() {
    let unmanaged = EVERYTHING.replace(
        r#"['{"address": "*"}']"#,
        r#"['{"address": "0000:05:00.0", "managed": "false"}', '{"address": "0000:07:00.0", "managed": "false"}', '{"address": "*"}']"#,
    );
    let overridden =
        unmanaged.replace("alias =", "unguarded = ['node1/0000:05:00.0', 'node1/0000:07:00.0']\nalias =");
    for (config, says) in [(&unmanaged, "the host needs"), (&overridden, "for the host needs it")] {
        let service = Hotslot::bare(&host("small"), config, live_on).await;
        for (address, alias, guard) in
            [("0000:07:00.0", "nvme", "root-filesystem"), ("0000:05:00.0", "nic", "network-route")]
        {
            let path = "/v2.1/os-hypervisors/node1";
            let shown = service.get(&format!("{path}/pci_devices/{address}")).await.expect(200).body;
            let listed = service.get(&format!("{path}/pci_candidates?alias={alias}")).await.expect(200).body;
            let run = dry_run(&service, Q35, &format!("{alias}:1")).await;
            let refused = service.attach(Q35, &format!("{alias}:1")).await.expect(409);
            let withheld = shown["pci_device"]["withheld"].as_str().unwrap();
            for text in [withheld, &listed.to_string(), &run.to_string(), refused.message()] {
                assert!(text.contains(says) && text.contains(guard), "{says}: {text}");
                let command = format!("nodedev-detach {}", address.replace([':', '.'], "_"));
                assert!(!text.contains(&command.replace("detach ", "detach pci_")), "{text}");
            }
        }
    }
}

/// Marks the host as a remote machine.
fn far_away(host: &Path) {
    let file = host.join("host.toml");
    let text = std::fs::read_to_string(&file).unwrap();
    std::fs::write(file, text.replace("# remote = true", "remote = true")).unwrap();
}

#[tokio::test]
async fn storage_and_nics_of_a_remote_host_are_offered_only_by_address() {
    let service = Hotslot::bare(&host("small"), EVERYTHING, far_away).await;
    for (alias, address) in [("nvme", "0000:07:00.0"), ("nic", "0000:05:00.0"), ("spare", "0000:08:00.0")] {
        let refused = service.attach(Q35, &format!("{alias}:1")).await.expect(409);
        for says in [
            address,
            "may need",
            "cannot be evaluated for a remote host",
            "name its address in a device_spec",
        ] {
            assert!(refused.message().contains(says), "{says}: {}", refused.message());
        }
    }
    // VFs are not guarded on a remote host.
    service.attach(Q35, "vf:1").await.expect(200);
    let explained = service.get("/v2.1/os-hypervisors/node1/pci_devices/0000:07:00.0").await.expect(200).body
        ["pci_device"]
        .clone();
    assert_eq!(explained["offered"], false);
    assert_eq!(explained["guards"][0]["kind"], "unseen", "{explained}");
    assert!(explained["withheld"].as_str().unwrap().contains("0000:07:00.0"), "{explained}");

    let named = EVERYTHING
        .replace(
            r#"['{"address": "*"}']"#,
            r#"['{"address": "0000:07:00.0"}', '{"address": "*:05:00.*"}', '{"address": "*"}']"#,
        )
        .replace("alias =", "unguarded = ['node1/0000:08:00.0']\nalias =");
    let service = Hotslot::bare(&host("small"), &named, far_away).await;
    service.attach(Q35, "nvme:1").await.expect(200);
    service.attach(Q35, "spare:1").await.expect(200);
    // A pattern does not count as an address.
    let refused = service.attach(Q35, "nic:1").await.expect(409);
    assert!(refused.message().contains("0000:05:00.0"), "{}", refused.message());
}
