//! Follows the host's mounts, swap and open block devices down to the PCI functions below them.
//!
//! A block device is on other block devices (`slaves/`: LVM, dm-crypt, multipath, md, bcache), on the disk of its
//! partition, on a file (loop, zram with a backing device), or on controllers: those of its NVMe subsystem, or those in
//! its own sysfs path. When a device cannot be followed to its end, the findings report it as unknown.
//!
//! Disks that are used raw are not detected: by a program, by a guest's `<disk type='block'>`, by DRBD or by an iSCSI
//! target.

use std::collections::BTreeSet;
use std::path::{Component, Path, PathBuf};

use super::finding::{Findings, Guard, GuardKind};
use super::mount::{self, Mount};
use super::root::{Root, functions};
use crate::pci::PciAddress;

/// Where the kernel lists block devices by name.
const BLOCK: &str = "sys/class/block";

/// The types of file systems in memory and on the network.
const NO_DISK: [&str; 9] = ["rootfs", "tmpfs", "ramfs", "nfs", "nfs4", "cifs", "ceph", "9p", "virtiofs"];

/// How many symbolic links in `/dev` are followed one after the other.
const LINKS: usize = 8;

/// A use of storage by the host: its description, and the block devices that it is on or the reason why they are
/// unknown.
struct Use {
    kind: GuardKind,
    what: String,
    on: Result<Vec<PathBuf>, String>,
}

/// The result of a walk down from a block device.
#[derive(Default)]
struct Below {
    seen: BTreeSet<PathBuf>,
    /// Each function, with the devices that lead to it.
    functions: Vec<(PciAddress, String)>,
    /// The reason why a part of the devices below is unknown.
    unknown: Option<String>,
}

struct Storage<'a> {
    root: &'a Root,
    mounts: Vec<Mount>,
}

/// Finds the functions below the host's file systems, swap and stacked block devices.
pub(super) fn find(root: &Root) -> Findings {
    let mut findings = Findings::default();
    let mut storage = Storage { root, mounts: Vec::new() };
    let text = root.of_init("mountinfo").unwrap_or_else(|hidden| {
        findings.mark_unknown(format!("the host's mounts cannot be read: {hidden}"));
        // The service's own mounts may not be all, but they give better reasons.
        root.read("proc/self/mountinfo").unwrap_or_default()
    });
    for line in text.lines() {
        match Mount::read(line) {
            Some(mount) => storage.mounts.push(mount),
            None => findings.mark_unknown(format!("cannot parse a line of mountinfo: {}", clip(line))),
        }
    }
    if !storage.mounts.iter().any(|mount| mount.point == Path::new("/")) {
        findings.mark_unknown("mountinfo has no root file system".to_owned());
    }
    let mut uses: Vec<Use> = storage.mounts.iter().map(|mount| storage.mounted(mount)).collect();
    match root.read("proc/swaps") {
        Ok(text) => {
            for line in text.lines().filter(|line| !line.starts_with("Filename") && !line.trim().is_empty()) {
                let on =
                    mount::swap(line).ok_or_else(|| format!("cannot parse a line of swaps: {}", clip(line)));
                let on = on.and_then(|path| storage.behind(&path));
                uses.push(Use { kind: GuardKind::Swap, what: "swap".to_owned(), on });
            }
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {} // a kernel without swap
        Err(error) => findings.mark_unknown(format!("the host's swap cannot be read: {error}")),
    }
    uses.extend(storage.mounted_anywhere());
    // The most important use of a device comes first. An ordinary mount is reported only for a device without another
    // use, because a disk may be mounted in a hundred places.
    uses.sort_by_key(|one| one.kind);
    let mut reported = BTreeSet::new();
    for Use { kind, what, on } in uses {
        match on {
            Err(unknown) => findings.mark_unknown(unknown),
            Ok(blocks) => {
                for block in blocks {
                    if reported.insert(block.clone()) || kind != GuardKind::Mounted {
                        storage.guard(&mut findings, kind, &what, &block);
                    }
                }
            }
        }
    }
    storage.held(&mut findings);
    if let Some(refused) = root.take_refused() {
        findings.mark_unknown(refused);
    }
    findings
}

impl Storage<'_> {
    fn mounted(&self, mount: &Mount) -> Use {
        let kind = if mount.point == Path::new("/") {
            GuardKind::RootFilesystem
        } else if mount.point.starts_with("/boot") || mount.point.starts_with("/efi") {
            GuardKind::BootFilesystem
        } else {
            GuardKind::Mounted
        };
        Use { kind, what: mount.point.display().to_string(), on: self.blocks(mount) }
    }

    /// Finds file systems that are mounted in any mount namespace or were unmounted lazily: sysfs lists them, and
    /// procfs lists ext4's journals.
    fn mounted_anywhere(&self) -> Vec<Use> {
        let mut uses = Vec::new();
        let mut add = |what: &str, name: &str| {
            if let Some(block) = self.named(name) {
                uses.push(Use { kind: GuardKind::Mounted, what: what.to_owned(), on: Ok(vec![block]) });
            }
        };
        // Other file systems are mounted on some of these names, such as bpf, which only root may list.
        let is_other = |name: &String| {
            let point = Path::new("/sys/fs").join(name);
            self.mounts.iter().any(|mount| mount.point == point)
        };
        for fstype in self.root.list("sys/fs").into_iter().filter(|name| !is_other(name)) {
            for name in self.root.list(format!("sys/fs/{fstype}")) {
                add(&format!("a mounted {fstype}"), &name);
            }
        }
        for name in self.root.list("sys/fs/btrfs").iter().flat_map(|id| self.root.list(btrfs_devices(id))) {
            add("a mounted btrfs", &name);
        }
        for name in self.root.list("proc/fs/jbd2") {
            // `sdb1` is a journal that has its own device. `sda1-8` (inode 8 of sda1) is not the name of a device.
            add("an ext4 journal", &name);
        }
        uses
    }

    /// Returns the block devices of a file system; the list is empty for one in memory or on the network.
    fn blocks(&self, mount: &Mount) -> Result<Vec<PathBuf>, String> {
        let (what, fstype) = (mount.point.display(), &mount.fstype);
        if fstype == "zfs" {
            return Err(format!("{what} is ZFS, and sysfs does not list a pool's disks"));
        }
        let device = mount.has_device().then(|| self.root.resolve(format!("sys/dev/block/{}", mount.device)));
        let mut blocks: Vec<PathBuf> = device.flatten().into_iter().collect();
        // The device number identifies the device, also when the source has a name such as `/dev/root`.
        let numbered = !blocks.is_empty();
        for node in mount.nodes().into_iter().filter(|node| !numbered || *node != mount.source) {
            match self.node(Path::new(node)) {
                Some(block) => blocks.push(block),
                None if fstype.starts_with("fuse") => {} // the program chooses the source, often `/dev/fuse`
                None => return Err(format!("{what} is on {node}, which sysfs does not show")),
            }
        }
        if blocks.is_empty() && mount.has_device() {
            return Err(format!("{what} is on block device {}, which sysfs does not show", mount.device));
        }
        if blocks.is_empty() && mount.point == Path::new("/") && !NO_DISK.contains(&fstype.as_str()) {
            // The mounts of an overlay's layers may be hidden, as in a live system.
            return Err(format!("{what} is {fstype}, and the disks below it are unknown"));
        }
        if fstype == "btrfs" {
            let names: Vec<String> = blocks.iter().map(|block| name(block)).collect();
            for id in self.root.list("sys/fs/btrfs") {
                let members = self.root.list(btrfs_devices(&id));
                if members.iter().any(|member| names.contains(member)) {
                    for member in members.iter().filter(|member| !names.contains(member)) {
                        let block = self.named(member).ok_or_else(|| {
                            format!("{what} is on {}, which sysfs does not show", clip(member))
                        })?;
                        blocks.push(block);
                    }
                }
            }
        }
        blocks.dedup();
        Ok(blocks)
    }

    /// Returns the block devices of a path: the device itself for a path in `/dev`, otherwise those of the file system
    /// that contains the file.
    fn behind(&self, path: &Path) -> Result<Vec<PathBuf>, String> {
        let unknown = || format!("the file system of {} is unknown", path.display());
        if path.starts_with("/dev") {
            return self.node(path).map(|block| vec![block]).ok_or_else(unknown);
        }
        // The later one of two mounts at the same point is visible.
        let holds = |mount: &&Mount| path.starts_with(&mount.point);
        let mounts = self.mounts.iter().filter(holds);
        let mount = mounts.max_by_key(|mount| mount.point.components().count()).ok_or_else(unknown)?;
        let blocks = self.blocks(mount)?;
        let known = !blocks.is_empty() || NO_DISK.contains(&mount.fstype.as_str());
        known.then_some(blocks).ok_or_else(unknown)
    }

    fn named(&self, name: &str) -> Option<PathBuf> {
        let name =
            Some(name).filter(|name| !name.is_empty() && !name.contains('/') && !name.starts_with('.'));
        self.root.resolve(Path::new(BLOCK).join(name?))
    }

    /// Finds the block device of a path in `/dev`: by its own name, by its device mapper name, or by following symbolic
    /// links.
    fn node(&self, path: &Path) -> Option<PathBuf> {
        let mut path = path.to_owned();
        for _ in 0..LINKS {
            let name = path.strip_prefix("/dev").ok()?.to_str()?;
            if let Some(block) = self.named(&name.replace('/', "!")) {
                return Some(block);
            }
            if let Some(mapped) = name.strip_prefix("mapper/") {
                let is_it =
                    |dm: &&String| self.root.word(format!("{BLOCK}/{dm}/dm/name")).as_deref() == Some(mapped);
                if let Some(dm) = self.root.list(BLOCK).iter().filter(|dm| dm.starts_with("dm-")).find(is_it)
                {
                    return self.named(dm);
                }
            }
            let target = std::fs::read_link(self.root.at(path.strip_prefix("/").ok()?)).ok()?;
            path = joined(path.parent()?, &target);
        }
        None
    }

    /// Guards the functions below a block device.
    fn guard(&self, findings: &mut Findings, kind: GuardKind, what: &str, block: &Path) {
        let mut below = Below::default();
        self.walk(block, what, &mut below);
        for (device, way) in below.functions {
            findings.guard(Guard { device, kind, reason: way });
        }
        if let Some(unknown) = below.unknown {
            findings.mark_unknown(unknown);
        }
    }

    fn walk(&self, block: &Path, way: &str, below: &mut Below) {
        if !below.seen.insert(block.to_owned()) {
            return;
        }
        let way = format!("{way} on {}", name(block));
        self.down(block, &way, below);
    }

    fn down(&self, block: &Path, way: &str, below: &mut Below) {
        if self.root.at(block.join("partition")).exists() {
            if let Some(disk) = block.parent() {
                self.down(disk, way, below);
            }
            return;
        }
        let mut ends_here = true;
        let slaves = block.join("slaves");
        for slave in self.root.list(&slaves) {
            ends_here = false;
            match self.root.resolve(slaves.join(&slave)) {
                Some(slave) => self.walk(&slave, way, below),
                None => below.mark_unknown(format!("{way} on {}, which sysfs does not show", clip(&slave))),
            }
        }
        for file in ["loop/backing_file", "backing_dev"] {
            let Some(path) = self.root.word(block.join(file)).filter(|path| path != "none") else { continue };
            ends_here = false;
            match self.behind(Path::new(path.strip_suffix(" (deleted)").unwrap_or(&path))) {
                Ok(blocks) => blocks.iter().for_each(|block| self.walk(block, way, below)),
                Err(unknown) => below.mark_unknown(format!("{way}; {unknown}")),
            }
        }
        for path in nvme_controllers(self.root, block) {
            ends_here = false;
            below.add(&path, way);
        }
        below.add(block, way);
        if ends_here && functions(block).next().is_none() && !has_no_pci_disk(block) {
            below.mark_unknown(format!("{way}, and sysfs does not show the device below it"));
        }
    }

    /// Guards disks without a mounted file system that an array, a volume or a map has open. It also collects every
    /// function with a block device, because an unknown use may be on any of them.
    fn held(&self, findings: &mut Findings) {
        for device in self.root.list(BLOCK) {
            let Some(block) = self.named(&device) else { continue };
            findings.carriers.extend(functions(&block));
            let holders = self.root.list(block.join("holders"));
            let Some(holder) = holders.first() else { continue };
            let mut below = Below::default();
            self.walk(&block, &format!("{} (open)", clip(holder)), &mut below);
            for (device, way) in below.functions {
                if findings.guards.iter().all(|guard| guard.device != device) {
                    findings.guard(Guard { device, kind: GuardKind::InUse, reason: way });
                }
            }
        }
    }
}

impl Below {
    fn add(&mut self, path: &Path, way: &str) {
        for function in functions(path) {
            if self.functions.iter().all(|(known, _)| *known != function) {
                self.functions.push((function, way.to_owned()));
            }
        }
    }

    fn mark_unknown(&mut self, why: String) {
        self.unknown.get_or_insert(why);
    }
}

/// Whether a block device without a PCI function in its path certainly has no PCI disk of this host below it: it is in
/// memory, on the network, or on a controller that is not on PCI.
fn has_no_pci_disk(block: &Path) -> bool {
    let Ok(device) = block.strip_prefix("sys/devices") else { return false };
    let virtual_disk = ["zram", "ram", "nbd", "nullb"].iter().any(|kind| name(block).starts_with(kind));
    !device.starts_with("virtual") || device.starts_with("virtual/nvme-fabrics") || virtual_disk
}

/// Returns the controllers of the NVMe subsystem that a device with this sysfs path is in: all of them can reach its
/// namespaces. The path may be relative to any folder.
pub(super) fn nvme_controllers(root: &Root, device: &Path) -> Vec<PathBuf> {
    let mut names = device.iter().filter_map(|name| name.to_str());
    let Some(subsystem) = names.find(|name| is_numbered(name, "nvme-subsys")) else { return Vec::new() };
    let subsystem = Path::new("sys/devices/virtual/nvme-subsystem").join(subsystem);
    let names = root.list(&subsystem).into_iter().filter(|name| is_numbered(name, "nvme"));
    names.filter_map(|name| root.resolve(subsystem.join(name))).collect()
}

/// Whether a name is a prefix and a number: `nvme0`.
fn is_numbered(name: &str, prefix: &str) -> bool {
    let number = name.strip_prefix(prefix).unwrap_or_default();
    !number.is_empty() && number.bytes().all(|digit| digit.is_ascii_digit())
}

fn btrfs_devices(id: &str) -> String {
    format!("sys/fs/btrfs/{id}/devices")
}

fn name(block: &Path) -> String {
    block.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// Resolves a link's target relative to the folder that contains the link. The target does not have to exist.
fn joined(folder: &Path, target: &Path) -> PathBuf {
    let mut path = folder.to_owned();
    for part in target.components() {
        match part {
            Component::RootDir | Component::Prefix(_) => path = PathBuf::from("/"),
            Component::ParentDir => drop(path.pop()),
            Component::CurDir => {}
            Component::Normal(name) => path.push(name),
        }
    }
    path
}

/// Shortens a text to 80 characters for a message.
fn clip(text: &str) -> String {
    text.chars().take(80).collect()
}
