//! Guards, reset methods and BARs, read from directories that imitate a host's sysfs and procfs. `tests/data/README.md`
//! says how to add a host to `tests/data/guards`.

#![expect(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::collections::BTreeMap;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use hotslot_driver::device::{HostDevice, IommuGroup, Role};
use hotslot_driver::hypervisor::Hypervisor;
use hotslot_driver::local::{
    Bar, BarKind, Condition, Guard, GuardKind, PortLink, VfPort, bars, condition, guards, new_fatal_errors,
    open_nodes, reset_methods, vf_port, vfio_dev, why_unhealthy,
};
use hotslot_driver::pci::{PciAddress, PciClass, PciId};
use hotslot_driver::sim::Sim;
use proptest::prelude::*;
use serde::Deserialize;
use tempfile::TempDir;

fn at(address: &str) -> PciAddress {
    address.parse().unwrap()
}

/// One host, and the guards that are expected for it.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    about: String,
    devices: BTreeMap<PciAddress, Device>,
    #[serde(default)]
    files: BTreeMap<String, Option<Text>>,
    #[serde(default)]
    links: BTreeMap<String, String>,
    #[serde(default)]
    dangling: BTreeMap<String, String>,
    guards: BTreeMap<PciAddress, Vec<String>>,
    #[serde(default)]
    reasons: BTreeMap<PciAddress, Vec<String>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Device {
    class: Option<PciClass>,
    driver: Option<String>,
    group: Option<u32>,
    vf_of: Option<PciAddress>,
    #[serde(default)]
    bridge: bool,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Text {
    Line(String),
    Lines(Vec<String>),
}

impl Text {
    fn whole(&self) -> String {
        match self {
            Self::Line(line) => format!("{line}\n"),
            Self::Lines(lines) => lines.iter().map(|line| format!("{line}\n")).collect(),
        }
    }
}

impl Case {
    fn devices(&self) -> BTreeMap<PciAddress, Arc<HostDevice>> {
        let device = |(&address, device): (&PciAddress, &Device)| {
            let members = self.devices.iter().filter(|(_, other)| other.group == device.group);
            let members = members.map(|(address, _)| *address).collect();
            let vfs = self.devices.iter().filter(|(_, other)| other.vf_of == Some(address));
            let vfs: Vec<PciAddress> = vfs.map(|(address, _)| *address).collect();
            HostDevice {
                address,
                vendor_id: PciId::new(0x8086),
                product_id: PciId::new(1),
                vendor_name: None,
                product_name: None,
                class: device.class,
                role: match device.vf_of {
                    Some(parent) => Role::Virtual { parent },
                    None if vfs.is_empty() => Role::Plain,
                    None => Role::Physical { max_vfs: 8, vfs },
                },
                iommu_group: device.group.map(|number| IommuGroup { number, members }),
                numa_node: None,
                driver: device.driver.clone().map(Into::into),
                vfio_dev: None,
                parent: None,
                bridge: device.bridge,
                express: true,
                link: None,
                serial: None,
                net: Vec::new(),
                vdpa: Vec::new(),
                block: Vec::new(),
            }
        };
        self.devices.iter().map(device).map(|device| (device.address, Arc::new(device))).collect()
    }

    /// The files of the tree. The defaults describe a host without guards; the case may replace or remove them.
    fn texts(&self) -> BTreeMap<&str, String> {
        let plain = [
            ("proc/1/mountinfo", "1 0 0:2 / / rw - rootfs rootfs rw\n"),
            ("proc/1/net/route", "Iface\tDestination\tGateway\n"),
        ];
        let mut texts: BTreeMap<&str, String> = plain.map(|(path, text)| (path, text.to_owned())).into();
        for (path, text) in &self.files {
            match text {
                Some(text) => drop(texts.insert(path, text.whole())),
                None => drop(texts.remove(path.as_str())),
            }
        }
        texts
    }

    fn tree(&self) -> TempDir {
        let dir = tempfile::tempdir().unwrap();
        for target in self.links.values() {
            std::fs::create_dir_all(dir.path().join(target)).unwrap();
        }
        for (path, text) in self.texts() {
            write(&dir.path().join(path), text.as_bytes());
        }
        for (path, target) in self.links.iter().chain(&self.dangling) {
            let link = dir.path().join(path);
            std::fs::create_dir_all(link.parent().unwrap()).unwrap();
            let up = "../".repeat(Path::new(path).components().count() - 1);
            symlink(up + target, &link).unwrap_or_else(|error| panic!("{path}: {error}"));
        }
        dir
    }
}

fn write(path: &Path, bytes: &[u8]) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, bytes).unwrap();
}

fn cases() -> Vec<(String, Case)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/guards");
    let mut files: Vec<PathBuf> =
        std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    let read = |path: &PathBuf| {
        let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
        let text = std::fs::read_to_string(path).unwrap();
        let case = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{name}: {error}"));
        (name, case)
    };
    files.iter().map(read).collect()
}

fn words(guards: &BTreeMap<PciAddress, Vec<Guard>>) -> BTreeMap<PciAddress, Vec<String>> {
    let words = |guards: &Vec<Guard>| guards.iter().map(|guard| guard.kind.to_string()).collect();
    guards.iter().map(|(address, guards)| (*address, words(guards))).collect()
}

#[test]
fn every_host_has_the_guards_that_its_file_expects() {
    let cases = cases();
    assert!(cases.len() > 30);
    for (name, case) in cases {
        let tree = case.tree();
        let found = guards(&case.devices(), Some(tree.path()));
        assert_eq!(words(&found), case.guards, "{name}: {}\n{found:#?}", case.about);
        for (address, parts) in &case.reasons {
            for part in parts {
                let reported = found[address].iter().any(|guard| guard.reason.contains(part));
                assert!(reported, "{name}: {address}: {part}\n{found:#?}");
            }
        }
    }
}

#[test]
fn without_a_sysroot_only_bridges_are_guarded() {
    for (name, case) in cases() {
        let found = guards(&case.devices(), None);
        let devices = case.devices();
        let bridges = devices.values().filter(|device| device.bridge).map(|device| device.address);
        assert!(found.keys().copied().eq(bridges), "{name}");
        assert!(found.values().flatten().all(|guard| guard.kind == GuardKind::Bridge), "{name}");
    }
}

/// Arbitrary bytes, and lines of words that occur in the files.
fn any_contents() -> impl Strategy<Value = Vec<u8>> {
    let word = prop::sample::select(vec![
        "8:0",
        "0:30",
        "/",
        "/boot",
        "-",
        " - ",
        "ext4",
        "btrfs",
        "zfs",
        "/dev/sda",
        "/dev/",
        "/dev/mapper/x",
        "\\040",
        "\\9",
        "eno1",
        "br0",
        "00000000",
        "FFFFFFFF",
        "0x",
        "1",
        "DEVTYPE=",
        "é",
        "..",
        "\n",
        "\0",
        ":/dev/",
        "none",
    ]);
    let words = prop::collection::vec(word, 0..40).prop_map(|words| words.join(" ").into_bytes());
    prop_oneof![prop::collection::vec(any::<u8>(), 0..200), words]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn arbitrary_file_contents_are_accepted(
        which in any::<prop::sample::Index>(),
        contents in prop::collection::vec(any_contents(), 8),
    ) {
        let mut cases = cases();
        let (_, case) = cases.swap_remove(which.index(cases.len()));
        let tree = case.tree();
        let texts = case.texts();
        let paths = texts.keys().copied().chain(["proc/swaps", "proc/1/net/if_inet6"]);
        for (path, contents) in paths.zip(&contents) {
            write(&tree.path().join(path), contents);
        }
        let devices = case.devices();
        let found = guards(&devices, Some(tree.path()));
        let mut bridges = devices.values().filter(|device| device.bridge);
        prop_assert!(bridges.all(|device| found.contains_key(&device.address)));
    }

    #[test]
    fn a_mount_that_cannot_be_read_leaves_every_disk_guarded(line in "[a-z0-9: /]{1,40}") {
        for (name, case) in cases().into_iter().filter(|(name, _)| name == "partition" || name == "btrfs") {
            let tree = case.tree();
            write(&tree.path().join("proc/1/mountinfo"), line.as_bytes());
            let found = guards(&case.devices(), Some(tree.path()));
            for address in case.devices.keys() {
                prop_assert!(found.contains_key(address), "{name}: {address}");
            }
        }
    }

    #[test]
    fn any_resource_file_is_parsed_or_unknown(contents in any_contents()) {
        let tree = tempfile::tempdir().unwrap();
        write(&tree.path().join("sys/bus/pci/devices/0000:01:00.0/resource"), &contents);
        write(&tree.path().join("sys/bus/pci/devices/0000:01:00.0/reset_method"), &contents);
        let _ = bars(Some(tree.path()), at("0000:01:00.0"));
        let _ = reset_methods(Some(tree.path()), at("0000:01:00.0"));
    }
}

#[test]
fn reset_methods_are_listed_empty_or_unknown() {
    let tree = tempfile::tempdir().unwrap();
    let device = |name: &str| tree.path().join("sys/bus/pci/devices").join(name);
    write(&device("0000:01:00.0/reset_method"), b"flr bus\n");
    write(&device("0000:02:00.0/reset_method"), b"\n");
    write(&device("0000:03:00.0/vendor"), b"0x8086\n");
    write(&device("0000:04:00.0/reset"), b"");
    let methods = |address| reset_methods(Some(tree.path()), at(address));
    assert_eq!(methods("0000:01:00.0"), Some(vec!["flr".to_owned(), "bus".to_owned()]));
    assert_eq!(methods("0000:02:00.0"), Some(Vec::new()), "disabled");
    assert_eq!(methods("0000:03:00.0"), Some(Vec::new()), "cannot be reset");
    assert_eq!(methods("0000:04:00.0"), None, "an older kernel");
    assert_eq!(methods("0000:05:00.0"), None, "no such device");
    assert_eq!(reset_methods(None, at("0000:01:00.0")), None, "a remote host");
}

#[test]
fn the_kernel_shows_which_functions_are_on_vfio() {
    let tree = tempfile::tempdir().unwrap();
    let folder = |name: &str| std::fs::create_dir_all(tree.path().join("sys").join(name)).unwrap();
    let known = |address| vfio_dev(Some(tree.path()), at(address));
    folder("bus/pci/devices/0000:01:00.0");
    assert_eq!(known("0000:01:00.0"), None, "VFIO is not loaded, or the kernel is older than 6.1");
    folder("bus/pci/devices/0000:02:00.0/vfio-dev/vfio0");
    folder("class/vfio-dev");
    // A mediated device is on VFIO, and its parent is not.
    folder("bus/pci/devices/0000:01:00.0/b4a1f2c0-0a3b-4b0e-9d0c-3f1d2f7c5a11/vfio-dev/vfio1");
    assert_eq!(known("0000:01:00.0"), Some(false));
    assert_eq!(known("0000:02:00.0"), Some(true));
    assert_eq!(known("0000:03:00.0"), None, "no such device");
    assert_eq!(vfio_dev(None, at("0000:02:00.0")), None, "a remote host");
}

/// A host with a GPU, an NVMe in a subsystem, a PF with a VF, and a function on VFIO. Its device numbers are those of
/// nodes that every machine has: 1:3 is `/dev/null`, 1:5 `/dev/zero`, 1:7 `/dev/full`, 1:8 `/dev/random`.
fn host_with_nodes() -> (TempDir, Vec<HostDevice>) {
    let text = r#"{"about": "", "guards": {}, "devices": {
        "0000:17:00.0": {"class": "030200", "driver": "nvidia", "group": 5},
        "0000:03:00.0": {"class": "010802", "driver": "nvme", "group": 6},
        "0000:04:00.0": {"class": "020000", "driver": "mlx5_core", "group": 7},
        "0000:04:00.1": {"class": "020000", "driver": "mlx5_core", "group": 8, "vf_of": "0000:04:00.0"},
        "0000:05:00.0": {"class": "020000", "driver": "vfio-pci", "group": 12},
        "0000:06:00.0": {"class": "020000", "driver": "e1000e", "group": 13}
      }, "files": {
        "proc/1/stat": "1 (init) S",
        "proc/driver/nvidia/gpus/0000:17:00.0/information": ["Model: \t\t NVIDIA H100", "Device Minor: \t 4"],
        "sys/devices/pci0000:00/0000:04:00.1/infiniband_verbs/uverbs0/uevent": ["MAJOR=1", "DEVNAME=infiniband/uverbs0"],
        "sys/devices/virtual/vfio/12/uevent": "DEVNAME=vfio/12",
        "proc/21/status": ["Name:\tmetrics\u0007d", "Uid:\t0\t0\t0\t0"], "proc/21/cgroup": "0::/system.slice/gpu.service/sub",
        "proc/22/status": ["Name:\tibv_rc", "Uid:\t4242424\t0\t0\t0"], "proc/22/cgroup": "0::/user.slice/session-1.scope",
        "proc/23/status": ["Name:\tnot-a-process-any-more"]
      }, "links": {
        "sys/dev/char/1:3": "sys/devices/pci0000:00/0000:17:00.0/drm/renderD128",
        "sys/dev/char/1:5": "sys/devices/virtual/nvme-subsystem/nvme-subsys0/ng0n1",
        "sys/devices/virtual/nvme-subsystem/nvme-subsys0/nvme0": "sys/devices/pci0000:00/0000:03:00.0/nvme/nvme0",
        "sys/dev/char/1:7": "sys/devices/pci0000:00/0000:04:00.1/infiniband_verbs/uverbs0",
        "sys/dev/char/1:8": "sys/devices/virtual/vfio/12",
        "sys/dev/char/1:9": "sys/devices/virtual/mem/urandom"
      }}"#;
    let case: Case = serde_json::from_str(text).unwrap();
    let tree = case.tree();
    for (file, node) in [("21/fd/3", "/dev/null"), ("21/fd/4", "/dev/urandom"), ("22/fd/9", "/dev/full")] {
        let link = tree.path().join("proc").join(file);
        std::fs::create_dir_all(link.parent().unwrap()).unwrap();
        symlink(node, link).unwrap();
    }
    let devices = case.devices().into_values().map(Arc::unwrap_or_clone).collect();
    (tree, devices)
}

#[test]
fn device_nodes_lead_to_their_functions_and_to_the_processes_that_have_them_open() {
    let (tree, devices) = host_with_nodes();
    let found = open_nodes(tree.path(), &devices);
    let nodes: Vec<_> = found.values().map(|open| open.nodes.join(" ")).collect();
    let verbs = "/dev/infiniband/uverbs0";
    assert_eq!(nodes, ["/dev/ng0n1", verbs, verbs, "/dev/vfio/12", "", "/dev/nvidia4 /dev/renderD128"]);
    assert!(found.values().all(|open| open.hidden.is_none()));
    let users =
        |address| -> Vec<String> { found[&at(address)].processes.iter().map(ToString::to_string).collect() };
    let says = ["process 21 (metrics\\u{7}d of gpu.service, user root) has /dev/renderD128 open"];
    assert_eq!(users("0000:17:00.0"), says);
    let says = ["process 22 (ibv_rc, user 4242424) has /dev/infiniband/uverbs0 open"];
    assert_eq!(
        (users("0000:04:00.0"), users("0000:04:00.1")),
        (says.map(str::to_owned).into(), says.map(str::to_owned).into())
    );
    let cure = found[&at("0000:17:00.0")].in_use().unwrap().cure;
    assert_eq!(cure, "end that use first (systemctl stop gpu.service)");
    assert_eq!(found[&at("0000:03:00.0")].in_use(), None);

    // A process with a root directory of its own.
    let chroot = tree.path().join("srv/dev");
    std::fs::create_dir_all(&chroot).unwrap();
    symlink("/dev/zero", chroot.join("ng0n1")).unwrap();
    // One with nodes under names of its own.
    symlink("/dev/zero", chroot.join("data")).unwrap();
    write(&tree.path().join("proc/25/status"), b"Name:\tdb\nUid:\t0\t0\t0\t0\n");
    std::fs::create_dir_all(tree.path().join("proc/25/fd")).unwrap();
    symlink(chroot.join("data"), tree.path().join("proc/25/fd/5")).unwrap();
    write(&tree.path().join("proc/24/status"), b"Name:\tfio\nUid:\t0\t0\t0\t0\n");
    std::fs::create_dir_all(tree.path().join("proc/24/fd")).unwrap();
    symlink(chroot.join("ng0n1"), tree.path().join("proc/24/fd/5")).unwrap();
    let found = open_nodes(tree.path(), &devices);
    assert_eq!(found[&at("0000:03:00.0")].in_use().unwrap().cure, "end that use first (kill 24 25)");
}

#[test]
fn processes_that_cannot_be_looked_at_are_told() {
    let (tree, devices) = host_with_nodes();
    std::fs::remove_dir_all(tree.path().join("proc/1")).unwrap();
    let found = open_nodes(tree.path(), &devices);
    let hidden = found[&at("0000:03:00.0")].hidden.clone().unwrap();
    assert!(hidden.contains("/proc hides the processes of other users"), "{hidden}");
    assert_eq!(found[&at("0000:06:00.0")].hidden, None, "it has no device node");

    write(&tree.path().join("proc/1/stat"), b"");
    std::fs::create_dir_all(tree.path().join("proc/self/ns")).unwrap();
    symlink("pid:[4026532200]", tree.path().join("proc/self/ns/pid")).unwrap();
    let hidden = open_nodes(tree.path(), &devices)[&at("0000:17:00.0")].hidden.clone().unwrap();
    assert!(hidden.contains("hotslot runs in a container"), "{hidden}");
}

/// The process of this test has a node open that the files of a host give to a function.
#[test]
fn the_open_files_of_this_machine_are_read() {
    let (tree, devices) = host_with_nodes();
    let open = std::fs::File::open("/dev/full").unwrap();
    std::fs::remove_dir_all(tree.path().join("proc")).unwrap();
    symlink("/proc", tree.path().join("proc")).unwrap();
    let found = open_nodes(tree.path(), &devices);
    let vf = &found[&at("0000:04:00.1")];
    let own = vf.processes.iter().find(|process| process.id == std::process::id());
    // In a container the process numbers of the host are hidden.
    assert!(
        own.is_some() || vf.hidden.as_ref().is_some_and(|hidden| hidden.contains("container")),
        "{vf:#?}"
    );
    drop(open);
}

#[test]
fn the_port_of_a_vf_is_on_its_pf() {
    let tree = tempfile::tempdir().unwrap();
    let pf = tree.path().join("sys/devices/pci0000:00/0000:04:00.0");
    write(&pf.join("net/enp4s0f0/ifindex"), b"7\n");
    let bus = tree.path().join("sys/bus/pci/devices");
    std::fs::create_dir_all(&bus).unwrap();
    for (number, vf) in [(0, "0000:04:10.0"), (10, "0000:04:12.4"), (2, "0000:04:10.4")] {
        let folder = pf.with_file_name(vf);
        std::fs::create_dir_all(&folder).unwrap();
        symlink("../0000:04:00.0", folder.join("physfn")).unwrap();
        symlink(format!("../{vf}"), pf.join(format!("virtfn{number}"))).unwrap();
        symlink(&folder, bus.join(vf)).unwrap();
    }
    symlink(&pf, bus.join("0000:04:00.0")).unwrap();
    let port = |vf| vf_port(tree.path(), at(vf));
    assert_eq!(port("0000:04:10.4"), Ok(VfPort { interface: 7, number: 2 }));
    assert_eq!(port("0000:04:12.4"), Ok(VfPort { interface: 7, number: 10 }));
    assert!(port("0000:04:00.0").unwrap_err().contains("is no VF"));
    std::fs::remove_dir_all(pf.join("net")).unwrap();
    assert!(port("0000:04:10.0").unwrap_err().contains("has no network interface"));
    std::fs::remove_file(pf.join("virtfn0")).unwrap();
    assert!(port("0000:04:10.0").unwrap_err().contains("does not list it"));
}

#[test]
fn a_function_is_compared_with_what_it_was_before() {
    let tree = tempfile::tempdir().unwrap();
    let address = at("0000:03:00.0");
    let file = |name: &str, bytes: &[u8]| {
        write(&tree.path().join("sys/bus/pci/devices/0000:03:00.0").join(name), bytes);
    };
    let now = || condition(Some(tree.path()), address, address).link;
    let unknown = Condition::default();
    assert_eq!(condition(Some(tree.path()), address, address), unknown, "no such function");
    assert_eq!(condition(None, address, address), unknown, "a remote host");
    file("current_link_width", b"16\n");
    for (speed, expected) in [("2.5 GT/s PCIe", 2500), ("16.0 GT/s PCIe", 16000), ("8.0 GT/s", 8000)] {
        file("current_link_speed", speed.as_bytes());
        assert_eq!(now(), Some(PortLink { width: 16, speed: expected }), "{speed}");
    }
    for speed in ["Unknown", "", "16 GT/s", "4294968.0 GT/s", "1.25 GT/s"] {
        file("current_link_speed", speed.as_bytes());
        assert_eq!(now(), None, "{speed}");
    }

    file("current_link_speed", b"16.0 GT/s PCIe\n");
    let before = now();
    assert!(before.is_some());
    let why = |link, slows_down| {
        let before = Condition { link, ..Condition::default() };
        why_unhealthy(tree.path(), address, (address, before), slows_down)
    };
    assert_eq!(why(before, false), None, "no configuration space is known");
    file("config", &[0; 64]);
    assert_eq!(why(before, false), None);
    // A GPU that is idle lowers the speed of its link, but not the number of lanes.
    file("current_link_speed", b"2.5 GT/s PCIe\n");
    assert!(why(before, false).unwrap().contains("runs at 2.5 GT/s, and ran at 16 GT/s"));
    assert_eq!((why(before, true), why(None, false)), (None, None));
    file("current_link_width", b"8\n");
    assert!(why(before, true).unwrap().contains("has 8 lanes, and had 16"));
    file("current_link_width", b"0\n");
    file("current_link_speed", b"Unknown\n");
    assert!(why(before, true).unwrap().contains("is down"));
    file("config", &[0xff; 256]);
    assert!(why(None, true).unwrap().contains("does not answer"));
    // A method to reset it, of which there is none now.
    file("config", &[0; 64]);
    let before = Condition { had_reset: Some(true), ..Condition::default() };
    let why_not_reset = || why_unhealthy(tree.path(), address, (address, before), true);
    assert!(why_not_reset().unwrap().contains("cannot reset 0000:03:00.0 any more"));
    file("reset_method", b"flr\n");
    assert_eq!(why_not_reset(), None);
    // A file that is cut off tells nothing.
    file("config", &[0xff; 8]);
    assert_eq!(why(None, true), None);

    let counted = || condition(Some(tree.path()), address, address).fatal_errors;
    for (counters, expected) in [
        ("Undefined 0\nMalformed TLP 3\nTOTAL_ERR_FATAL 3\n", Some(3)),
        ("TOTAL_ERR_FATAL 0", Some(0)),
        ("TOTAL_ERR_FATAL", None),
        ("TOTAL_ERR_FATAL -1\n", None),
        ("TOTAL_ERR_NONFATAL 7\n", None),
    ] {
        file("aer_dev_fatal", counters.as_bytes());
        assert_eq!(counted(), expected, "{counters}");
    }
}

#[test]
fn fatal_errors_at_the_root_port_are_found_whatever_is_between() {
    let tree = tempfile::tempdir().unwrap();
    let (bus, devices) = ("sys/devices/pci0000:00/0000:00:1c.0", tree.path().join("sys/bus/pci/devices"));
    std::fs::create_dir_all(&devices).unwrap();
    for path in
        [bus, &format!("{bus}/0000:02:00.0/0000:03:00.0/0000:04:00.0"), &format!("{bus}/0000:05:00.0")]
    {
        let (folder, link) = (tree.path().join(path), devices.join(path.rsplit('/').next().unwrap()));
        std::fs::create_dir_all(&folder).unwrap();
        std::os::unix::fs::symlink(folder, link).unwrap();
    }
    let count =
        |total: &str| write(&tree.path().join(bus).join("aer_rootport_total_err_fatal"), total.as_bytes());
    for address in [at("0000:04:00.0"), at("0000:05:00.0")] {
        let now = || condition(Some(tree.path()), address, address);
        count("2\n");
        let before = now();
        assert_eq!((before.fatal_errors, before.port_errors), (None, Some(2)));
        let new = |before| new_fatal_errors(tree.path(), address, before);
        assert_eq!(new(before), None);
        count("3\n");
        let expected = format!(
            "the kernel has counted fatal PCI Express errors at 0000:00:1c.0, the root port above {address}, while {address} \
             was used (AER): 1"
        );
        assert_eq!(new(before), Some(expected));
        // A value that was not known before the use is no reason, nor is a counter that began again.
        assert_eq!(
            (new(Condition::default()), new(Condition { port_errors: Some(9), ..before })),
            (None, None)
        );
        count("many\n");
        assert_eq!(now().port_errors, None);
    }
}

#[test]
fn bars_are_read_with_size_and_kind() {
    let tree = tempfile::tempdir().unwrap();
    let none = "0x0000000000000000 0x0000000000000000 0x0000000000000000\n";
    let bars_of = |lines: &str| {
        write(&tree.path().join("sys/bus/pci/devices/0000:01:00.0/resource"), lines.as_bytes());
        bars(Some(tree.path()), at("0000:01:00.0"))
    };
    let igb = [
        "0x00000000fe000000 0x00000000fe01ffff 0x0000000000040200\n",
        none,
        "0x000000000000c000 0x000000000000c01f 0x0000000000040101\n",
        "0x0000004000000000 0x00000040000fffff 0x000000000014220c\n",
        none,
        none,
        "0x0000000000000000 0x000000000007ffff 0x0000000020046200\n",
        "0x00000000fe040000 0x00000000fe05ffff 0x0000000000140204\n",
    ];
    let memory =
        |index, size| Bar { index, size, kind: BarKind::Memory, prefetchable: false, is_64bit: false };
    let expected = vec![
        memory(0, 0x2_0000),
        Bar { kind: BarKind::Io, ..memory(2, 32) },
        Bar { prefetchable: true, is_64bit: true, ..memory(3, 0x10_0000) },
        Bar { prefetchable: true, ..memory(Bar::ROM, 0x8_0000) },
    ];
    assert_eq!(bars_of(&igb.concat()), Some(expected), "the line after the ROM belongs to the VFs");
    assert_eq!(bars_of(&none.repeat(13)), Some(Vec::new()));
    assert_eq!(bars_of(&none.repeat(6)), None, "a truncated file");
    for wrong in [
        "0x0 0x1",
        "0 1 0x200",
        "0x2 0x0 0x200",
        "0x0 0xffffffffffffffff 0x200",
        "0x0 0xf 0x300",
        "0x+1 0x2 0x200",
    ] {
        assert_eq!(bars_of(&format!("{wrong}\n{}", none.repeat(6))), None, "{wrong}");
    }
    assert_eq!(bars(Some(tree.path()), at("0000:02:00.0")), None, "no such device");
    assert_eq!(bars(None, at("0000:01:00.0")), None, "a remote host");
}

#[tokio::test]
async fn a_simulated_host_has_a_sysroot_when_its_directory_has_a_root() {
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(Sim::open(dir.path()).unwrap().sysroot(), None);
    let root = dir.path().canonicalize().unwrap().join("root");
    std::fs::create_dir(&root).unwrap();
    assert_eq!(Sim::open(dir.path()).unwrap().sysroot(), Some(root.as_path()));
}
