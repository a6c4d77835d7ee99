//! Runs the hooks of functions of this machine.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::guard::guards;
use super::open_nodes::{InUse, open_nodes};
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
    if when == When::Scrub {
        // udev reads a disk that has just appeared.
        let mut reason = None;
        wait(|| {
            reason = why_used(sysroot, &root, address, class, driver.clone());
            reason.is_none()
        });
        if let Some(reason) = reason {
            return Err(refused(format!("nothing was done, because {reason}")));
        }
    }
    step.run(address, &controllers()).map_err(|reason| refused(format!("{}: {reason}", step.name())))
}

/// Waits until a condition holds, or the patience is over.
fn wait(mut so: impl FnMut() -> bool) {
    let until = Instant::now() + PATIENCE;
    while !so() && Instant::now() < until {
        std::thread::sleep(LOOK);
    }
}

/// Returns what the host does with a function; `None` when nothing is known.
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
        name: address.node_name(),
        vendor_id: none,
        product_id: none,
        vendor_name: None,
        product_name: None,
        class,
        role: Role::Plain,
        iommu_group: group.map(|number| crate::device::IommuGroup { number, members: vec![address] }),
        numa_node: None,
        driver,
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
    let InUse { message, cure } = open_nodes(sysroot, &[device]).get(&address)?.in_use()?;
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
