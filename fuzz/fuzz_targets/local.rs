//! What the kernel of a host tells in procfs and sysfs: the files of [`FILES`], separated by lines of `%%`.

#![no_main]

use std::fs;
use std::path::Path;
use std::sync::{Arc, LazyLock};

use hotslot_driver::local::{bars, guards, reset_methods};
use hotslot_fuzz::DEVICES;
use libfuzzer_sys::fuzz_target;
use tempfile::TempDir;

const FILES: [&str; 8] = [
    "proc/1/mountinfo",
    "proc/swaps",
    "proc/1/net/if_inet6",
    "proc/1/net/route",
    "proc/1/net/ipv6_route",
    "sys/bus/pci/devices/0000:01:00.0/resource",
    "sys/bus/pci/devices/0000:01:00.0/reset_method",
    "sys/devices/pci0000:00/0000:03:00.0/block/sda/dev",
];

/// A host with a NIC and a disk.
static HOST: LazyLock<TempDir> = LazyLock::new(|| {
    let host = tempfile::tempdir().expect("a directory");
    for file in FILES {
        let folder = host.path().join(file);
        fs::create_dir_all(folder.parent().unwrap_or(&folder)).expect("a folder");
    }
    for (folder, name, target) in [
        ("sys/class/block", "sda", "sys/devices/pci0000:00/0000:03:00.0/block/sda"),
        ("sys/dev/block", "8:0", "sys/devices/pci0000:00/0000:03:00.0/block/sda"),
        ("sys/class/net", "eth0", "sys/devices/pci0000:00/0000:01:00.0/net/eth0"),
    ] {
        let (folder, target) = (host.path().join(folder), host.path().join(target));
        fs::create_dir_all(&folder).and(fs::create_dir_all(&target)).expect("a folder");
        std::os::unix::fs::symlink(target, folder.join(name)).expect("a link");
    }
    host
});

fuzz_target!(|bytes: &[u8]| {
    let root: &Path = HOST.path();
    let text = String::from_utf8_lossy(bytes);
    let mut contents = text.split("\n%%\n");
    for file in FILES {
        fs::write(root.join(file), contents.next().unwrap_or_default()).expect("a file");
    }
    let devices = DEVICES.iter().map(|device| (device.address, Arc::new(device.clone()))).collect();
    for (address, guards) in guards(&devices, Some(root)) {
        assert!(devices.contains_key(&address), "{address} is not the host's");
        assert!(guards.iter().all(|guard| !guard.reason.is_empty()));
    }
    for device in DEVICES.iter() {
        let bars = bars(Some(root), device.address).unwrap_or_default();
        assert!(bars.len() <= 7 && bars.iter().all(|bar| bar.size > 0));
        reset_methods(Some(root), device.address);
    }
});
