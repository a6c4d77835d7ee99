//! The device nodes of functions, and the processes that have one open.
//!
//! The kernel links each device number to its device in sysfs (`/sys/dev/char`, `/sys/dev/block`), and the path of that
//! device contains the function that it is on. Three kinds of nodes are not in the folder of a function: the namespaces
//! of an NVMe subsystem, which belong to its controllers; the node of an IOMMU group (`/dev/vfio/GROUP`); and
//! `/dev/nvidiaN`, which NVIDIA's driver lists in procfs alone.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use nix::unistd::{Uid, User};
use rustix::fs::{AtFlags, CWD, FileType, Statx, StatxFlags, statx};

use super::block::nvme_controllers;
use super::root::{Root, functions};
use crate::device::{HostDevice, Role};
use crate::pci::PciAddress;
use crate::text;

/// The major number of `/dev/nvidiaN` (Linux, Documentation/admin-guide/devices.txt).
const NVIDIA: u32 = 195;

/// The number of processes and of device nodes that a message names.
const NAMED: usize = 6;

/// The device nodes of one function and, if it is a PF, of its VFs.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct OpenNodes {
    /// The paths of the nodes, in order: `/dev/nvme0n1`.
    pub nodes: Vec<String>,
    /// The processes that have one of them open.
    pub processes: Vec<NodeProcess>,
    /// Why there may be further processes: the open files of some cannot be read.
    pub hidden: Option<String>,
}

/// A process that has a device node open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeProcess {
    /// The number of the process.
    pub id: u32,
    /// The name of its program, as the process or the kernel wrote it, without control characters.
    pub command: String,
    /// The name of its user, or its number.
    pub user: String,
    /// The system service that it belongs to: `nvidia-persistenced.service`.
    pub unit: Option<String>,
    /// The node that it has open.
    pub node: String,
    /// Whether it is a guest of libvirt that has the function on VFIO.
    pub guest: bool,
}

/// The use of a function by processes of the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InUse {
    /// The processes, for people.
    pub message: String,
    /// How to end that use.
    pub cure: String,
}

impl OpenNodes {
    /// Returns the use by processes; `None` when no process is known to have a node open.
    pub fn in_use(&self) -> Option<InUse> {
        let more = self.processes.len().saturating_sub(NAMED);
        let more = if more > 0 { format!(", and {more} more") } else { String::new() };
        let named: Vec<_> = self.processes.iter().take(NAMED).map(NodeProcess::to_string).collect();
        let of_host = self.processes.iter().filter(|process| !process.guest);
        let (units, alone): (Vec<_>, Vec<_>) = of_host.partition(|process| process.unit.is_some());
        let units: BTreeSet<_> = units.iter().filter_map(|process| process.unit.as_deref()).collect();
        let alone: BTreeSet<_> = alone.iter().map(|process| process.id.to_string()).collect();
        let stop = (!units.is_empty()).then(|| format!("systemctl stop {}", join(units)));
        let kill = (!alone.is_empty()).then(|| format!("kill {}", join(alone)));
        let guest = self.processes.iter().any(|process| process.guest);
        let detach = guest.then(|| "detach it from the guest".to_owned());
        let ways: Vec<_> = stop.into_iter().chain(kill).chain(detach).collect();
        let cure = format!("end that use first ({})", ways.join("; "));
        (!named.is_empty()).then(|| InUse { message: named.join(", ") + &more, cure })
    }

    /// Returns the names of the nodes, or of the first of many.
    pub fn names(&self, between: &str) -> String {
        self.nodes.iter().take(NAMED).map(String::as_str).collect::<Vec<_>>().join(between)
    }
}

fn join(words: BTreeSet<impl Into<String>>) -> String {
    words.into_iter().map(Into::into).collect::<Vec<String>>().join(" ")
}

impl fmt::Display for NodeProcess {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { id, command, user, unit, node, guest: _ } = self;
        let of_unit = unit.as_ref().map(|unit| format!(" of {unit}")).unwrap_or_default();
        write!(f, "process {id} ({command}{of_unit}, user {user}) has {node} open")
    }
}

/// A device number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Number {
    block: bool,
    major: u32,
    minor: u32,
}

impl Number {
    /// Reads the name of a link in `/sys/dev/char` or `/sys/dev/block`.
    fn read(block: bool, name: &str) -> Option<Self> {
        let (major, minor) = name.split_once(':')?;
        Some(Self { block, major: major.parse().ok()?, minor: minor.parse().ok()? })
    }

    /// Returns the number of a device node; `None` for another file.
    fn of(node: &Statx) -> Option<Self> {
        let kind = FileType::from_raw_mode(node.stx_mode.into());
        let of = |block| Self { block, major: node.stx_rdev_major, minor: node.stx_rdev_minor };
        matches!(kind, FileType::BlockDevice | FileType::CharacterDevice)
            .then(|| of(kind == FileType::BlockDevice))
    }
}

/// A device node of one or more of the functions that are asked for.
struct Node {
    path: String,
    owners: Vec<PciAddress>,
}

/// Returns the device nodes of each function, and which processes have them open. A guest of libvirt that has a function
/// on VFIO is not reported, because its document tells which functions it has.
pub fn open_nodes(sysroot: &Path, devices: &[HostDevice]) -> BTreeMap<PciAddress, OpenNodes> {
    let mut found = open_nodes_also_by_guests(sysroot, devices);
    found.values_mut().for_each(|open| open.processes.retain(|process| !process.guest));
    found
}

/// As [`open_nodes`], and also reports the guests of libvirt.
pub(super) fn open_nodes_also_by_guests(
    sysroot: &Path,
    devices: &[HostDevice],
) -> BTreeMap<PciAddress, OpenNodes> {
    let root = Root::new(sysroot);
    let mut found: BTreeMap<_, OpenNodes> =
        devices.iter().map(|device| (device.address, OpenNodes::default())).collect();
    let nodes = nodes(&root, devices);
    for node in nodes.values() {
        for owner in &node.owners {
            found.entry(*owner).or_default().nodes.push(node.path.clone());
        }
    }
    if nodes.is_empty() {
        return found;
    }
    let hidden = scan(&root, &nodes, &mut found);
    for open in found.values_mut().filter(|open| !open.nodes.is_empty()) {
        open.nodes.sort();
        open.hidden.clone_from(&hidden);
    }
    found
}

/// Finds the device nodes of functions.
fn nodes(root: &Root, devices: &[HostDevice]) -> BTreeMap<Number, Node> {
    let owners = |functions: &[PciAddress], group: Option<u32>| -> Vec<PciAddress> {
        let is_on = |device: &&HostDevice| {
            let vfs = if let Role::Physical { vfs, .. } = &device.role { vfs.as_slice() } else { &[] };
            let of_group = device.iommu_group.as_ref().is_some_and(|known| Some(known.number) == group);
            of_group || functions.iter().any(|at| *at == device.address || vfs.contains(at))
        };
        devices.iter().filter(is_on).map(|device| device.address).collect()
    };
    let mut nodes = BTreeMap::new();
    for (block, folder) in [(false, "sys/dev/char"), (true, "sys/dev/block")] {
        for name in root.list(folder) {
            let link = Path::new(folder).join(&name);
            let (Some(number), Ok(target)) = (Number::read(block, &name), fs::read_link(root.at(&link)))
            else {
                continue;
            };
            let last = functions(&target).last();
            let at = match last {
                Some(function) => vec![function],
                None => {
                    let controllers = nvme_controllers(root, &target);
                    controllers.iter().filter_map(|path| functions(path).last()).collect()
                }
            };
            let owners = owners(&at, group_of(&target));
            if !owners.is_empty() {
                nodes.insert(number, Node { path: path_of(root, &link, &target), owners });
            }
        }
    }
    for device in devices {
        if let Some(number) = nvidia_minor(root, device.address) {
            let node = Node { path: format!("/dev/nvidia{number}"), owners: vec![device.address] };
            nodes.insert(Number { block: false, major: NVIDIA, minor: number }, node);
        }
    }
    nodes
}

/// Returns the IOMMU group whose node a sysfs path is: `…/virtual/vfio/12`.
fn group_of(target: &Path) -> Option<u32> {
    let group = target.file_name()?.to_str()?.parse().ok()?;
    target.parent()?.ends_with("virtual/vfio").then_some(group)
}

/// Returns the path of a device node, which the kernel tells by `DEVNAME`.
fn path_of(root: &Root, link: &Path, target: &Path) -> String {
    let uevent = root.read(link.join("uevent")).unwrap_or_default();
    let name = uevent.lines().find_map(|line| line.strip_prefix("DEVNAME=")).map(str::to_owned);
    let name =
        name.unwrap_or_else(|| target.file_name().unwrap_or_default().to_string_lossy().replace('!', "/"));
    format!("/dev/{}", text::escape(&name))
}

/// Returns the number N of `/dev/nvidiaN`, as NVIDIA's driver tells it.
fn nvidia_minor(root: &Root, address: PciAddress) -> Option<u32> {
    let information = root.read(format!("proc/driver/nvidia/gpus/{address}/information")).ok()?;
    information.lines().find_map(|line| line.strip_prefix("Device Minor:"))?.trim().parse().ok()
}

/// Adds the processes that have one of the nodes open. Returns why there may be others.
fn scan(
    root: &Root,
    nodes: &BTreeMap<Number, Node>,
    found: &mut BTreeMap<PciAddress, OpenNodes>,
) -> Option<String> {
    if let Err(hidden) = root.of_init("stat")
        && !hidden.absent
    {
        return Some(hidden.to_string());
    }
    let mut refused = 0;
    for id in root.list("proc").iter().filter_map(|name| name.parse::<u32>().ok()) {
        let files = match open_files(root, id) {
            Ok(files) => files,
            Err(error) => {
                // A process that has ended meanwhile has no open files.
                refused += usize::from(error == ErrorKind::PermissionDenied);
                continue;
            }
        };
        for number in files {
            let Some(node) = nodes.get(&number) else { continue };
            let Some(process) = process(root, id, &node.path) else { continue };
            for owner in &node.owners {
                found.entry(*owner).or_default().processes.push(process.clone());
            }
        }
    }
    (refused > 0).then(|| format!("the open files of {refused} processes of other users cannot be read"))
}

/// Returns which device nodes a process has open, by whatever name it has opened them. Each open file is asked for its kind
/// and number alone, which the kernel has in memory: a file system over a network is not asked, since it may never answer.
fn open_files(root: &Root, id: u32) -> Result<BTreeSet<Number>, ErrorKind> {
    let mut open = BTreeSet::new();
    for entry in fs::read_dir(root.at(format!("proc/{id}/fd"))).map_err(|error| error.kind())?.flatten() {
        let flags = AtFlags::STATX_DONT_SYNC | AtFlags::NO_AUTOMOUNT;
        match statx(CWD, entry.path(), flags, StatxFlags::empty()) {
            Ok(file) => open.extend(Number::of(&file)),
            Err(error) if error.kind() == ErrorKind::PermissionDenied => return Err(error.kind()),
            Err(_) => {} // closed meanwhile
        }
    }
    Ok(open)
}

/// Describes a process. Returns `None` when it has ended.
fn process(root: &Root, id: u32, node: &str) -> Option<NodeProcess> {
    let status = root.read(format!("proc/{id}/status")).ok()?;
    let field = |name: &str| Some(status.lines().find_map(|line| line.strip_prefix(name))?.trim().to_owned());
    let cgroup = root.read(format!("proc/{id}/cgroup")).unwrap_or_default();
    let is_guest = cgroup.contains("/machine-qemu") || cgroup.contains(".libvirt-qemu");
    let unit = cgroup.lines().find_map(|line| line.rsplit_once(':')?.1.strip_prefix("/system.slice/"));
    let unit = unit.and_then(|path| path.split('/').find(|part| part.ends_with(".service")));
    let uid: u32 = field("Uid:")?.split_whitespace().next()?.parse().ok()?;
    let user = User::from_uid(Uid::from_raw(uid)).ok().flatten();
    Some(NodeProcess {
        id,
        command: text::escape(&field("Name:")?).into_owned(),
        user: user.map_or_else(|| uid.to_string(), |user| user.name),
        unit: unit.map(|unit| text::escape(unit).into_owned()),
        node: node.to_owned(),
        guest: is_guest && node.starts_with("/dev/vfio/"),
    })
}
