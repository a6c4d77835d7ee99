//! Runs the hooks of functions of this machine.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::libc::O_EXCL;
use nix::sys::stat::{major, minor};

use super::guard::guards;
use super::open_nodes::{InUse, open_nodes_also_by_guests};
use super::root::Root;
use crate::device::{HostDevice, Role};
use crate::hook::{self, Hooks, When};
use crate::hypervisor::{Error, ErrorKind};
use crate::pci::{PciAddress, PciClass, PciId};

/// How long a function that has just got its driver may take to be ready, and how often it is looked.
const PATIENCE: Duration = if cfg!(test) { Duration::from_millis(300) } else { Duration::from_secs(20) };
const LOOK: Duration = Duration::from_millis(100);

/// Runs the hook of the class of a function, as the file below `sysroot` says; nothing when its class has none for draining.
/// It waits until the command has ended, however long the kernel takes to kill one that has reached its time limit.
///
/// # Errors
/// [`ErrorKind::NoDevice`] when there is no such function; [`ErrorKind::Refused`] when the function has nothing to scrub it
/// with, when the host or one of its processes uses a function that is to be scrubbed, and when the command does not
/// succeed. The message says what to do.
pub fn run_hook(sysroot: &Path, address: PciAddress, when: When) -> Result<(), Error> {
    let root = Root::new(sysroot);
    let operation = format!("{when} {address}");
    let failed = |kind, message: String| Error::new(kind, operation.as_str(), message);
    let refused = |message: String| failed(ErrorKind::Refused, message);
    let folder = format!("sys/bus/pci/devices/{address}");
    if !root.at(&folder).is_dir() {
        return Err(failed(ErrorKind::NoDevice, "the host has no such function".into()));
    }
    let class = root.word(format!("{folder}/class")).and_then(|class| class.parse::<PciClass>().ok());
    let hooks = Hooks::read(&root.at(hook::FILE)).map_err(refused)?;
    let Some(step) = hooks.step(when, class) else {
        return match when {
            When::Drain => Ok(()),
            When::Scrub => Err(refused(format!("its class has no scrub hook in /{}", hook::FILE))),
        };
    };
    let driver = root.resolve(format!("{folder}/driver"));
    let driver = driver.and_then(|path| Some(path.file_name()?.to_string_lossy().into_owned()));
    if let Some(reason) = step.unsuited(address, driver.as_deref()) {
        return Err(refused(reason));
    }
    let controllers = || root.list(format!("{folder}/nvme"));
    if step.needs_driver() {
        // The driver may have been bound in this moment.
        let is_live = |controller: &String| {
            root.word(format!("{folder}/nvme/{controller}/state")).is_none_or(|state| state == "live")
        };
        wait(|| controllers().first().is_some_and(is_live));
    }
    let (mut found, mut held) = (Vec::new(), Vec::new());
    if when == When::Scrub {
        // udev reads a disk that has just appeared.
        let mut reason = None;
        wait(|| {
            (found, held) = (controllers(), Vec::new());
            reason = why_used(sysroot, &root, address, class, driver.clone());
            if reason.is_none() && step.needs_driver() {
                match hold(&root, &folder, &found) {
                    Ok(files) => held = files,
                    Err(why) => reason = Some(why),
                }
            }
            reason.is_none()
        });
        if let Some(reason) = reason {
            return Err(refused(format!("nothing was done, because {reason}")));
        }
    }
    let done = step.run(address, &found);
    drop(held);
    done.map_err(|reason| refused(format!("{}: {reason}", step.name())))
}

/// Opens the NVMe controllers of a function and their disks. As long as they are open, the kernel gives the number of a
/// controller to no other one, and its disks to no file system, array or map, and no swap.
///
/// # Errors
/// Why that is not possible, for people: a name belongs to another function by now, or something has a disk.
fn hold(root: &Root, folder: &str, controllers: &[String]) -> Result<Vec<File>, String> {
    let mut held = Vec::new();
    for controller in controllers {
        let not = |error: io::Error| format!("/dev/{controller} cannot be opened: {error}");
        let node = File::open(root.at(format!("dev/{controller}"))).map_err(not)?;
        let is = node.metadata().map_err(not)?;
        let number = format!("{}:{}", major(is.rdev()), minor(is.rdev()));
        let inside = format!("{folder}/nvme/{controller}");
        if !is.file_type().is_char_device() || root.word(format!("{inside}/dev")) != Some(number) {
            return Err(format!("/dev/{controller} is not its controller any more"));
        }
        held.push(node);
        let is_disk =
            |name: &String| name.strip_prefix(controller.as_str()).is_some_and(|end| end.starts_with('n'));
        for disk in root.list(&inside).into_iter().filter(is_disk) {
            match OpenOptions::new().read(true).custom_flags(O_EXCL).open(root.at(format!("dev/{disk}"))) {
                Ok(file) => held.push(file),
                // A namespace without a size has no node.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(format!("the host uses /dev/{disk}: {error}")),
            }
        }
    }
    Ok(held)
}

/// Waits until a condition holds, or the patience is over.
fn wait(mut so: impl FnMut() -> bool) {
    let until = Instant::now() + PATIENCE;
    while !so() && Instant::now() < until {
        std::thread::sleep(LOOK);
    }
}

/// Returns what the host or a guest does with a function; `None` when nothing is known.
fn why_used(
    sysroot: &Path,
    root: &Root,
    address: PciAddress,
    class: Option<PciClass>,
    driver: Option<String>,
) -> Option<String> {
    let none = PciId::new(0);
    let group = root.resolve(format!("sys/bus/pci/devices/{address}/iommu_group"));
    let group = group.and_then(|path| path.file_name()?.to_string_lossy().parse().ok());
    let device = HostDevice {
        address,
        vendor_id: none,
        product_id: none,
        vendor_name: None,
        product_name: None,
        class,
        role: Role::Plain,
        iommu_group: group.map(|number| crate::device::IommuGroup { number, members: vec![address] }),
        numa_node: None,
        driver: driver.map(Arc::from),
        vfio_dev: None,
        parent: None,
        bridge: class.is_some_and(PciClass::is_bridge),
        express: true,
        link: None,
        serial: None,
        net: Vec::new(),
        vdpa: Vec::new(),
        block: Vec::new(),
    };
    let found = guards(&[(address, Arc::new(device.clone()))].into_iter().collect(), Some(sysroot));
    if let Some(guard) = found.get(&address).and_then(|guards| guards.first()) {
        return Some(format!("the host needs {address}: {}: {}", guard.kind, guard.reason));
    }
    let open = open_nodes_also_by_guests(sysroot, &[device]);
    let InUse { message, cure } = open.get(&address)?.in_use()?;
    Some(format!("{address} is in use on the host: {message}; {cure}"))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    const NVME: &str = "0000:08:00.0";
    const GPU: &str = "0000:17:00.0";

    /// A made-up host with an NVMe and a GPU.
    fn host() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (address, class, driver) in [(NVME, "0x010802", "nvme"), (GPU, "0x030200", "nvidia")] {
            let folder = dir.path().join("sys/bus/pci/devices").join(address);
            let drivers = dir.path().join("sys/bus/pci/drivers").join(driver);
            fs::create_dir_all(&folder).unwrap();
            fs::create_dir_all(&drivers).unwrap();
            fs::write(folder.join("class"), format!("{class}\n")).unwrap();
            symlink(format!("../../drivers/{driver}"), folder.join("driver")).unwrap();
        }
        let proc = dir.path().join("proc");
        fs::create_dir_all(proc.join("1")).unwrap();
        fs::write(proc.join("1/mountinfo"), "20 1 0:30 / / rw - tmpfs tmpfs rw\n").unwrap();
        fs::write(proc.join("swaps"), "Filename Type Size Used Priority\n").unwrap();
        dir
    }

    #[test]
    fn a_hook_runs_for_functions_of_its_class() {
        let dir = host();
        let (nvme, gpu) = (NVME.parse().unwrap(), GPU.parse().unwrap());
        assert_eq!(run_hook(dir.path(), gpu, When::Drain), Ok(()), "there is nothing to run");
        let error = run_hook(dir.path(), gpu, When::Scrub).unwrap_err();
        assert!(error.message.contains("no scrub hook in /etc/hotslot/hooks.toml"), "{error}");
        let error = run_hook(dir.path(), "0000:99:00.0".parse().unwrap(), When::Drain).unwrap_err();
        assert_eq!(error.kind, ErrorKind::NoDevice);
        let file = dir.path().join(hook::FILE);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        let hook = |class: &str, when, script: &str| {
            format!(
                "[[hook]]\nclass = \"{class}\"\nwhen = \"{when}\"\ncommand = [\"/bin/sh\", \"-c\", \"{script}\"]\n"
            )
        };
        let log = dir.path().join("log");
        let both = hook("NVMe controller", When::Scrub, &format!("echo {{address}} >{}", log.display()))
            + &hook("display controller", When::Drain, "echo persistenced is busy; exit 1");
        fs::write(&file, both).unwrap();
        assert_eq!(run_hook(dir.path(), nvme, When::Scrub), Ok(()));
        assert_eq!(fs::read_to_string(&log).unwrap(), format!("{NVME}\n"));
        let error = run_hook(dir.path(), gpu, When::Drain).unwrap_err();
        assert_eq!(
            error.message,
            "the drain hook of class `display controller` (/bin/sh): it ended with exit status: 1; the end of its output: \
             persistenced is busy"
        );
        fs::write(&file, "[[hook]]\n").unwrap();
        let error = run_hook(dir.path(), gpu, When::Drain).unwrap_err();
        assert!(error.message.contains("hooks.toml: line 1: missing field"), "{error}");
    }

    #[test]
    fn a_hook_does_not_scrub_what_a_guest_has() {
        let dir = host();
        let at = |path: &str| dir.path().join(path);
        let hook = "[[hook]]\nclass = \"display controller\"\nwhen = \"scrub\"\ncommand = [\"/bin/true\"]\n";
        fs::create_dir_all(at("etc/hotslot")).unwrap();
        fs::write(at(hook::FILE), hook).unwrap();
        assert_eq!(run_hook(dir.path(), GPU.parse().unwrap(), When::Scrub), Ok(()));
        // Another tool has given it to a guest: QEMU has the node of its IOMMU group open.
        let folders = [
            "sys/kernel/iommu_groups/12",
            "sys/devices/virtual/vfio/12",
            "sys/dev/char",
            "dev/vfio",
            "proc/77/fd",
        ];
        folders.iter().for_each(|folder| fs::create_dir_all(at(folder)).unwrap());
        let group = at("sys/bus/pci/devices").join(GPU).join("iommu_group");
        symlink("../../../../kernel/iommu_groups/12", group).unwrap();
        symlink("../../devices/virtual/vfio/12", at("sys/dev/char/1:3")).unwrap();
        fs::write(at("sys/devices/virtual/vfio/12/uevent"), "DEVNAME=vfio/12\n").unwrap();
        symlink("/dev/null", at("dev/vfio/12")).unwrap();
        symlink(at("dev/vfio/12"), at("proc/77/fd/9")).unwrap();
        fs::write(at("proc/77/status"), "Name:\tqemu-system-x86\nUid:\t0\t0\t0\t0\n").unwrap();
        fs::write(
            at("proc/77/cgroup"),
            "0::/machine.slice/machine-qemu\\x2d1\\x2dweb.scope/libvirt/emulator\n",
        )
        .unwrap();
        fs::write(at("proc/1/stat"), "1 (init) S\n").unwrap();
        let error = run_hook(dir.path(), GPU.parse().unwrap(), When::Scrub).unwrap_err();
        let says = "has /dev/vfio/12 open; end that use first (detach it from the guest)";
        assert!(error.message.contains(says) && !error.message.contains("kill"), "{error}");
    }

    #[test]
    fn the_node_of_a_controller_is_held_while_it_is_the_one_of_the_function() {
        let dir = host();
        let root = Root::new(dir.path());
        let folder = format!("sys/bus/pci/devices/{NVME}");
        let at = |path: &str| dir.path().join(path);
        fs::create_dir_all(at(&folder).join("nvme/nvme3/nvme3n1")).unwrap();
        fs::create_dir_all(at(&folder).join("nvme/nvme3/power")).unwrap();
        fs::create_dir_all(at("dev")).unwrap();
        let held = || hold(&root, &folder, &["nvme3".into()]).map(|files| files.len());
        assert!(held().unwrap_err().contains("/dev/nvme3 cannot be opened: No such file"));
        // A device number that every machine has.
        symlink("/dev/null", at("dev/nvme3")).unwrap();
        let number = at(&folder).join("nvme/nvme3/dev");
        for other in [None, Some("1:5\n")] {
            other.iter().for_each(|text| fs::write(&number, text).unwrap());
            assert_eq!(held(), Err("/dev/nvme3 is not its controller any more".into()));
        }
        fs::write(&number, "1:3\n").unwrap();
        assert_eq!(held(), Ok(1), "a namespace without a node");
        fs::write(at("dev/nvme3n1"), "").unwrap();
        assert_eq!(held(), Ok(2));
    }

    #[test]
    fn nothing_is_scrubbed_that_the_host_uses() {
        let dir = host();
        let nvme = NVME.parse().unwrap();
        // A root file system that cannot be followed to its disks may be on any of them.
        fs::write(dir.path().join("proc/1/mountinfo"), "20 1 259:1 / / rw - ext4 /dev/nvme0n1p1 rw\n")
            .unwrap();
        let error = run_hook(dir.path(), nvme, When::Scrub).unwrap_err();
        assert!(error.message.contains("nothing was done, because the host needs 0000:08:00.0"), "{error}");
        // One that VFIO drives has no file system of the host, and nvme format does not reach it.
        let driver = dir.path().join("sys/bus/pci/devices").join(NVME).join("driver");
        fs::remove_file(&driver).unwrap();
        fs::create_dir_all(dir.path().join("sys/bus/pci/drivers/vfio-pci")).unwrap();
        symlink("../../drivers/vfio-pci", &driver).unwrap();
        let error = run_hook(dir.path(), nvme, When::Scrub).unwrap_err();
        assert!(error.message.contains("needs the driver nvme"), "{error}");
    }
}
