//! Processes of the host that have a device node of a function open.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use hotslot_tests::{Hotslot, Q35, host, path};
use serde_json::json;

use super::explain::{dry_run, result};
use super::guards::{EVERYTHING, live_on};

/// The IOMMU group of the VF 0000:04:10.0.
const GROUP: u32 = 22;

/// Adds a process that has a device node open. `file` is a node of the machine that runs the tests, whose number the
/// files of the simulated host give to another device.
pub(super) fn process(host: &Path, id: u32, command: &str, cgroup: &str, file: &str) {
    let folder = host.join(format!("root/proc/{id}"));
    fs::create_dir_all(folder.join("fd")).unwrap();
    fs::write(folder.join("status"), format!("Name:\t{command}\nPid:\t{id}\nUid:\t0\t0\t0\t0\n")).unwrap();
    fs::write(folder.join("cgroup"), format!("0::{cgroup}\n")).unwrap();
    symlink("socket:[1234]", folder.join("fd/3")).unwrap();
    symlink(file, folder.join("fd/4")).unwrap();
}

/// Gives a device number (`1:3` is `/dev/null`) to a device of the simulated host.
fn number(host: &Path, number: &str, device: &str, name: &str) {
    let folder = host.join("root/sys/devices").join(device);
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join("uevent"), format!("DEVNAME={name}\n")).unwrap();
    let links = host.join("root/sys/dev/char");
    fs::create_dir_all(&links).unwrap();
    symlink(format!("../../devices/{device}"), links.join(number)).unwrap();
}

/// A host whose second NVMe has a controller node, and whose VF has that of its IOMMU group when it is on VFIO.
fn with_nodes(host: &Path) {
    live_on(host);
    fs::write(host.join("root/proc/1/stat"), "1 (systemd) S").unwrap();
    number(host, "1:3", "pci0000:00/0000:00:15.0/0000:08:00.0/nvme/nvme1", "nvme1");
    number(host, "1:7", "pci0000:00/0000:04:10.0/infiniband_verbs/uverbs0", "infiniband/uverbs0");
    number(host, "1:5", &format!("virtual/vfio/{GROUP}"), &format!("vfio/{GROUP}"));
}

#[tokio::test]
async fn a_device_that_a_process_has_open_is_refused_and_the_process_is_named() {
    let service = Hotslot::bare(&host("small"), EVERYTHING, |host| {
        with_nodes(host);
        process(host, 4242, "smartd", "/system.slice/smartmontools.service", "/dev/null");
        process(host, 4243, "dd", "/user.slice/user-0.slice/session-3.scope", "/dev/null");
    })
    .await;
    let run = dry_run(&service, Q35, "spare:1").await;
    assert_eq!(run["would_attach"], false, "{run:#}");
    assert_eq!(result(&run, "not-open", Some("0000:08:00.0")), "fail", "{run:#}");
    let refused = service.attach(Q35, "spare:1").await.expect(409);
    for says in [
        "process 4242 (smartd of smartmontools.service, user root) has /dev/nvme1 open",
        "process 4243 (dd, user root) has /dev/nvme1 open",
        "systemctl stop smartmontools.service; kill 4243",
    ] {
        assert!(refused.message().contains(says), "{says}: {}", refused.message());
    }
    assert_eq!(service.functions().await["0000:08:00.0"]["driver"], "nvme", "nothing was unbound");
    assert!(service.attachments(Q35).await.is_empty());

    // A request that leaves the choice open gets another device.
    process(&service.host_dir(), 4244, "ibv_rc_pingpong", "/user.slice/session-3.scope", "/dev/full");
    let run = dry_run(&service, Q35, "vf:1").await;
    assert_eq!(run["pci_devices"][0]["address"], "0000:04:10.2", "{run:#}");
    assert_eq!(run["would_attach"], true, "{run:#}");
    assert!(service.attach(Q35, "vf:2").await.expect(409).message().contains("kill 4244"));

    // A container may have a node of its own for the same number, under any name.
    let node = service.host_dir().join("data-block");
    symlink("/dev/null", &node).unwrap();
    process(&service.host_dir(), 4245, "postgres", "/kubepods.slice/db", node.to_str().unwrap());
    let refused = service.attach(Q35, "spare:1").await.expect(409);
    let says = "process 4245 (postgres, user root) has /dev/nvme1 open";
    assert!(refused.message().contains(says), "{}", refused.message());

    // The processes end, as the message advised.
    for id in [4242, 4243, 4244, 4245] {
        fs::remove_dir_all(service.host_dir().join(format!("root/proc/{id}"))).unwrap();
    }
    let run = dry_run(&service, Q35, "spare:1,vf:1").await;
    assert_eq!(result(&run, "not-open", Some("0000:08:00.0")), "pass", "{run:#}");
    let spare = service.attach(Q35, "spare:1").await.expect(200).body["pci_devices"][0].clone();
    service.delete(&path(&spare)).await.expect(200);
    service.expect_clean().await;
}

#[tokio::test]
async fn a_binding_is_not_released_while_a_program_has_it_open() {
    let service = Hotslot::bare(&host("small"), EVERYTHING, with_nodes).await;
    let vf = service.accelerator("dpdk", json!({ "product_id": "10ca", "address": "0000:04:10.0" })).await;
    service.put(&vf, json!({ "driver": "vfio-pci" })).await.expect(200);
    process(&service.host_dir(), 4242, "dpdk-testpmd", "/user.slice/session-3.scope", "/dev/zero");
    let refused = service.delete(&vf).await.expect(409);
    for says in [
        &format!("process 4242 (dpdk-testpmd, user root) has /dev/vfio/{GROUP} open"),
        "end that use first (kill 4242)",
    ] {
        assert!(refused.message().contains(says), "{says}: {}", refused.message());
    }
    assert_eq!(service.functions().await["0000:04:10.0"]["driver"], "vfio-pci");
    fs::remove_dir_all(service.host_dir().join("root/proc/4242")).unwrap();
    service.delete(&vf).await.expect(204);
    assert_eq!(service.functions().await["0000:04:10.0"]["driver"], "igbvf");
    service.expect_clean().await;
}

#[tokio::test]
async fn a_guest_of_libvirt_that_has_a_function_is_no_process_of_the_host() {
    let service = Hotslot::bare(&host("small"), EVERYTHING, with_nodes).await;
    let vf = service.attach(Q35, "vf:1").await.expect(200).body["pci_devices"][0].clone();
    assert_eq!(vf["address"], "0000:04:10.0");
    let guest = "/machine.slice/machine-qemu\\x2d1\\x2dq35.scope/libvirt/emulator";
    process(&service.host_dir(), 4242, "qemu-system-x86", guest, "/dev/zero");
    service.delete(&path(&vf)).await.expect(200);
    let devices = service.attach(Q35, "vf:2").await.expect(200).body["pci_devices"].clone();
    for device in devices.as_array().unwrap() {
        service.delete(&path(device)).await.expect(200);
    }
    service.expect_clean().await;
}

/// hotslot never says that nobody has a device open when it could not look.
#[tokio::test]
async fn what_cannot_be_looked_at_is_unknown() {
    let config = EVERYTHING.replace("alias =", "unguarded = ['node1/0000:08:00.0']\nalias =");
    let service = Hotslot::bare(&host("small"), &config, |host| {
        with_nodes(host);
        fs::remove_dir_all(host.join("root/proc/1")).unwrap();
    })
    .await;
    let run = dry_run(&service, Q35, "spare:1").await;
    assert_eq!(result(&run, "not-open", Some("0000:08:00.0")), "unknown", "{run:#}");
    let text = run.to_string();
    assert!(text.contains("whether a process has /dev/nvme1 open is not known"), "{run:#}");
    assert!(text.contains("`fuser -v /dev/nvme1` shows it to root"), "{run:#}");
    service.attach(Q35, "spare:1").await.expect(200);
    // Without the files of the host nothing is known either.
    let service = Hotslot::bare(&host("small"), EVERYTHING, |_| ()).await;
    let run = dry_run(&service, Q35, "vf:1").await;
    assert_eq!(result(&run, "not-open", Some("0000:04:10.0")), "unknown", "{run:#}");
}
