//! Checks of this machine, as the kernel describes it in `/proc` and `/sys`.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use hotslot_service::config::Database;

use super::{Finding, Level};

/// Runs every check of the machine whose root file system is at `root`.
pub(super) fn check(root: &Path) -> Vec<Finding> {
    let machine = Machine { root };
    let url = Database::default().url;
    let state = Path::new(url.trim_start_matches("sqlite://")).parent().unwrap_or(Path::new("/")).to_owned();
    let mut findings = vec![machine.kvm(), machine.iommu()];
    findings.extend(machine.interrupt_remapping());
    findings.push(machine.vfio());
    findings.extend(machine.sriov());
    findings.push(machine.state_directory(&state));
    findings
}

pub(super) struct Machine<'a> {
    pub(super) root: &'a Path,
}

/// The vendor of the CPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cpu {
    Intel,
    Amd,
    Other,
}

impl Machine<'_> {
    fn path(&self, path: impl AsRef<Path>) -> PathBuf {
        let path = path.as_ref();
        self.root.join(path.strip_prefix("/").unwrap_or(path))
    }

    pub(super) fn has(&self, path: &str) -> bool {
        self.path(path).exists()
    }

    /// Returns the trimmed text of a file, or an empty text when it cannot be read.
    pub(super) fn read(&self, path: impl AsRef<Path>) -> String {
        fs::read_to_string(self.path(path)).unwrap_or_default().trim().to_owned()
    }

    /// Returns the sorted names in a directory. A missing directory has none.
    pub(super) fn names(&self, path: &str) -> Vec<String> {
        let entries = fs::read_dir(self.path(path)).into_iter().flatten().flatten();
        let mut names: Vec<_> =
            entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }

    fn cpu(&self) -> Cpu {
        let info = self.read("/proc/cpuinfo");
        if info.contains("GenuineIntel") {
            Cpu::Intel
        } else if info.contains("AuthenticAMD") || info.contains("HygonGenuine") {
            Cpu::Amd
        } else {
            Cpu::Other
        }
    }

    fn has_kvm_module(&self) -> bool {
        self.cpu() == Cpu::Other || self.has("/sys/module/kvm_intel") || self.has("/sys/module/kvm_amd")
    }

    fn kvm(&self) -> Finding {
        let check = "kvm";
        let slow = "guests run in slow software emulation";
        match fs::OpenOptions::new().read(true).write(true).open(self.path("/dev/kvm")) {
            // Some virtual machines have a /dev/kvm that cannot run ordinary guests.
            Ok(_) if !self.has_kvm_module() => {
                let says = format!(
                    "/dev/kvm exists, but neither kvm_intel nor kvm_amd is loaded; without them {slow}"
                );
                Finding::bad(check, Level::Warn, says, "see `virt-host-validate qemu` and `lsmod | grep kvm`")
            }
            Ok(_) => Finding::ok(check, "/dev/kvm is usable"),
            Err(error) if error.kind() == ErrorKind::PermissionDenied => {
                Finding::ok(check, "/dev/kvm exists (accessible to QEMU's user, not to this user)")
            }
            Err(error) if error.kind() == ErrorKind::NotFound => {
                let flags = self.read("/proc/cpuinfo");
                let able = flags.split_whitespace().any(|flag| flag == "vmx" || flag == "svm");
                let (module, feature) = match self.cpu() {
                    Cpu::Intel => ("kvm_intel", "VT-x"),
                    Cpu::Amd => ("kvm_amd", "SVM"),
                    Cpu::Other => ("kvm", "virtualisation"),
                };
                if able {
                    let fix =
                        format!("run `modprobe {module}`; if it fails, enable {feature} in the firmware");
                    Finding::bad(check, Level::Warn, format!("no /dev/kvm: {slow}"), fix)
                } else {
                    let fix = format!(
                        "enable {feature} in the firmware; for a virtual machine, enable nested virtualisation on its \
                         host"
                    );
                    Finding::bad(
                        check,
                        Level::Warn,
                        format!("the CPU does not report {feature}: {slow}"),
                        fix,
                    )
                }
            }
            Err(error) => {
                let fix = "see `dmesg | grep -i kvm`";
                Finding::bad(check, Level::Warn, format!("/dev/kvm cannot be opened ({error}): {slow}"), fix)
            }
        }
    }

    fn iommu(&self) -> Finding {
        let check = "iommu";
        let units = self.names("/sys/class/iommu");
        let groups = self.names("/sys/kernel/iommu_groups").len();
        if !units.is_empty() && groups > 0 {
            return Finding::ok(check, format!("on ({}), groups: {groups}", units.join(", ")));
        }
        let line = self.read("/proc/cmdline");
        let off = |name: &str| line.split_whitespace().any(|word| word == name);
        if let Some(word) =
            ["iommu=off", "intel_iommu=off", "amd_iommu=off"].into_iter().find(|word| off(word))
        {
            let says = format!("off: the kernel was started with `{word}`");
            return Finding::bad(
                check,
                Level::Fail,
                says,
                "remove it from the kernel command line, and reboot",
            );
        }
        // The ACPI tables tell whether the firmware has enabled an IOMMU, independent of the CPU vendor.
        let intel = self.has("/sys/firmware/acpi/tables/DMAR");
        let amd = self.has("/sys/firmware/acpi/tables/IVRS");
        let kernel = "add `intel_iommu=on iommu=pt` to the kernel command line";
        let (says, fix) = match self.cpu() {
            _ if intel => ("off, but the firmware offers VT-d", format!("{kernel}, and reboot")),
            _ if amd => ("off, but the firmware offers AMD-Vi", "see `dmesg | grep -i AMD-Vi`".to_owned()),
            Cpu::Intel => ("off", format!("enable VT-d in the firmware, {kernel}, and reboot")),
            Cpu::Amd => (
                "off",
                "enable AMD-Vi (also called IOMMU) in the firmware, add `iommu=pt` to the kernel command line, and \
                 reboot"
                    .to_owned(),
            ),
            Cpu::Other => ("off", "enable the IOMMU (SMMU) in the firmware, and reboot".to_owned()),
        };
        Finding::bad(check, Level::Fail, format!("{says}: no device can be passed through"), fix)
    }

    /// Checks interrupt remapping on x86 with an IOMMU, where the names of remapped interrupt chips begin with `IR-`.
    /// Returns `None` on other machines.
    fn interrupt_remapping(&self) -> Option<Finding> {
        let check = "interrupts";
        let interrupts = self.read("/proc/interrupts");
        if self.names("/sys/class/iommu").is_empty() || !interrupts.contains("IO-APIC") {
            return None;
        }
        if interrupts.contains(" IR-") {
            return Some(Finding::ok(check, "remapped"));
        }
        let fix = "enable interrupt remapping (x2APIC) in the firmware, and remove `intremap=off` and `nointremap` \
                   from the kernel command line";
        let unsafe_allowed =
            self.read("/sys/module/vfio_iommu_type1/parameters/allow_unsafe_interrupts") == "Y";
        Some(if unsafe_allowed {
            let says = "not remapped, and VFIO is allowed to work without it: a guest can forge interrupts of the host";
            Finding::bad(check, Level::Warn, says, fix)
        } else {
            Finding::bad(check, Level::Fail, "not remapped: VFIO refuses every device", fix)
        })
    }

    fn vfio(&self) -> Finding {
        let check = "vfio";
        let load = "run `modprobe vfio-pci`, and `echo vfio-pci > /etc/modules-load.d/vfio-pci.conf` for the next boot";
        let (driver, device) = (self.has("/sys/bus/pci/drivers/vfio-pci"), self.has("/dev/vfio/vfio"));
        if driver && device {
            return Finding::ok(check, "vfio-pci is loaded");
        }
        let modules = format!("/lib/modules/{}", self.read("/proc/sys/kernel/osrelease"));
        let known = ["modules.dep", "modules.builtin"]
            .into_iter()
            .any(|list| self.read(format!("{modules}/{list}")).contains("/vfio-pci.ko"));
        if driver || !known {
            let (says, fix) = if driver {
                (
                    "vfio-pci is loaded, but there is no /dev/vfio/vfio",
                    "run `udevadm trigger`, or `modprobe -r vfio-pci` and `modprobe vfio-pci`",
                )
            } else {
                (
                    "this kernel has no vfio-pci",
                    "install all modules of this kernel (linux-image, linux-modules-extra), and reboot into it",
                )
            };
            return Finding::bad(check, Level::Fail, says, fix);
        }
        if device {
            return Finding::bad(
                check,
                Level::Info,
                "vfio-pci is not loaded yet; libvirt loads it when it is needed",
                load,
            );
        }
        Finding::bad(check, Level::Fail, "vfio-pci is not loaded", load)
    }

    /// Reports the PFs that have no VFs enabled. Returns `None` when there are none.
    fn sriov(&self) -> Option<Finding> {
        const DEVICES: &str = "/sys/bus/pci/devices";
        let number = |address: &str, file: &str| -> u32 {
            self.read(format!("{DEVICES}/{address}/{file}")).parse().unwrap_or(0)
        };
        let idle: Vec<_> = self
            .names(DEVICES)
            .into_iter()
            .filter(|address| number(address, "sriov_totalvfs") > 0 && number(address, "sriov_numvfs") == 0)
            .map(|address| format!("{address} (up to {})", number(&address, "sriov_totalvfs")))
            .collect();
        let first = idle.first()?.split(' ').next()?.to_owned();
        let says = format!("no VFs are enabled on {}", idle.join(", "));
        Some(Finding::bad(
            "sr-iov",
            Level::Info,
            says,
            format!("to create two VFs, run `echo 2 > {DEVICES}/{first}/sriov_numvfs`"),
        ))
    }

    /// Checks whether this user can write to the directory of the default database.
    fn state_directory(&self, directory: &Path) -> Finding {
        let check = "state";
        let shown = directory.display();
        // The service creates a missing directory, so test its nearest existing parent.
        let there = directory.ancestors().map(|path| self.path(path)).find(|path| path.exists());
        match there.map_or_else(|| Err(ErrorKind::NotFound.into()), tempfile::tempfile_in) {
            Ok(_) => Finding::ok(check, format!("{shown} is writable")),
            Err(error) => {
                let fix =
                    "run the service as a user who can write to it, or set [database] url to another path";
                Finding::bad(
                    check,
                    Level::Warn,
                    format!("{shown} is not writable by this user: {error}"),
                    fix,
                )
            }
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Creates a file system with these files. A name that ends in `/` is a directory.
    pub(in crate::doctor) fn machine(files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = root.path().join(name.trim_start_matches('/'));
            if name.ends_with('/') {
                fs::create_dir_all(&path).unwrap();
            } else {
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(&path, text).unwrap();
            }
        }
        root
    }

    fn found(files: &[(&str, &str)], check: &str) -> Option<(Level, String)> {
        let root = machine(files);
        let finding = super::check(root.path()).into_iter().find(|finding| finding.check == check)?;
        Some((finding.level, format!("{} / {}", finding.says, finding.fix.unwrap_or_default())))
    }

    #[track_caller]
    fn expect(files: &[(&str, &str)], check: &str, level: Level, words: &[&str]) {
        let (found, text) = found(files, check).unwrap();
        assert_eq!(found, level, "{text}");
        for word in words {
            assert!(text.contains(word), "`{word}` in: {text}");
        }
    }

    const INTEL: (&str, &str) = ("/proc/cpuinfo", "vendor_id : GenuineIntel\nflags : fpu vmx sse");
    const AMD: (&str, &str) = ("/proc/cpuinfo", "vendor_id : AuthenticAMD\nflags : fpu svm sse");
    const PLAIN: (&str, &str) = ("/proc/cpuinfo", "vendor_id : GenuineIntel\nflags : fpu sse");
    const UNIT: (&str, &str) = ("/sys/class/iommu/dmar0/", "");
    const GROUP: (&str, &str) = ("/sys/kernel/iommu_groups/0/", "");
    const KERNEL: (&str, &str) = ("/proc/sys/kernel/osrelease", "6.12.0\n");
    const MODULES: (&str, &str) =
        ("/lib/modules/6.12.0/modules.dep", "kernel/drivers/vfio/pci/vfio-pci.ko.xz: kernel/…");
    const DRIVER: (&str, &str) = ("/sys/bus/pci/drivers/vfio-pci/", "");
    const VFIO: (&str, &str) = ("/dev/vfio/vfio", "");

    #[test]
    fn kvm() {
        let there = ("/dev/kvm", "");
        expect(&[there, AMD, ("/sys/module/kvm_amd/", "")], "kvm", Level::Ok, &[]);
        expect(&[there, AMD], "kvm", Level::Warn, &["neither kvm_intel nor kvm_amd"]);
        expect(&[AMD], "kvm", Level::Warn, &["modprobe kvm_amd", "SVM"]);
        expect(&[INTEL], "kvm", Level::Warn, &["modprobe kvm_intel", "VT-x"]);
        expect(&[PLAIN], "kvm", Level::Warn, &["does not report VT-x", "nested"]);
        expect(&[], "kvm", Level::Warn, &["software emulation"]);
    }

    #[test]
    fn iommu() {
        expect(&[UNIT, GROUP, INTEL], "iommu", Level::Ok, &["dmar0", "groups: 1"]);
        expect(&[INTEL], "iommu", Level::Fail, &["VT-d in the firmware", "intel_iommu=on iommu=pt"]);
        expect(&[AMD], "iommu", Level::Fail, &["AMD-Vi", "iommu=pt"]);
        expect(&[UNIT, AMD], "iommu", Level::Fail, &["AMD-Vi"]);
        expect(&[], "iommu", Level::Fail, &["SMMU"]);
        let dmar = ("/sys/firmware/acpi/tables/DMAR", "");
        expect(&[AMD, dmar], "iommu", Level::Fail, &["the firmware offers VT-d", "intel_iommu=on"]);
        let line = ("/proc/cmdline", "root=/dev/vda intel_iommu=off quiet\n");
        expect(&[INTEL, dmar, line], "iommu", Level::Fail, &["`intel_iommu=off`"]);
    }

    #[test]
    fn interrupt_remapping() {
        let remapped = ("/proc/interrupts", "  0: 118 0 IR-IO-APIC 2-edge timer");
        let direct = ("/proc/interrupts", "  0: 118 0 IO-APIC 2-edge timer");
        let allowed = ("/sys/module/vfio_iommu_type1/parameters/allow_unsafe_interrupts", "Y\n");
        expect(&[UNIT, remapped], "interrupts", Level::Ok, &[]);
        expect(&[UNIT, direct], "interrupts", Level::Fail, &["VFIO refuses", "intremap=off"]);
        expect(&[UNIT, direct, allowed], "interrupts", Level::Warn, &["forge"]);
        assert_eq!(found(&[direct], "interrupts"), None, "without an IOMMU there is no finding");
        assert_eq!(found(&[UNIT, ("/proc/interrupts", "GICv3")], "interrupts"), None);
    }

    #[test]
    fn vfio() {
        expect(&[DRIVER, VFIO], "vfio", Level::Ok, &[]);
        expect(&[KERNEL, MODULES], "vfio", Level::Fail, &["modprobe vfio-pci", "modules-load.d"]);
        expect(&[KERNEL, MODULES, VFIO], "vfio", Level::Info, &["libvirt loads it"]);
        expect(&[KERNEL], "vfio", Level::Fail, &["this kernel has no vfio-pci"]);
        expect(&[DRIVER], "vfio", Level::Fail, &["/dev/vfio/vfio"]);
    }

    #[test]
    fn a_pf_without_vfs_is_reported() {
        let pf = "/sys/bus/pci/devices/0000:04:00.0";
        let total = (&*format!("{pf}/sriov_totalvfs"), "7\n");
        let numbered = |number| (format!("{pf}/sriov_numvfs"), number);
        let (none, two) = (numbered("0\n"), numbered("2\n"));
        expect(
            &[total, (&none.0, none.1)],
            "sr-iov",
            Level::Info,
            &["0000:04:00.0 (up to 7)", "sriov_numvfs`"],
        );
        assert_eq!(found(&[total, (&two.0, two.1)], "sr-iov"), None);
        assert_eq!(found(&[], "sr-iov"), None);
    }

    #[test]
    fn the_state_directory() {
        expect(&[("/var/", "")], "state", Level::Ok, &["/var/lib/hotslot is writable"]);
        expect(&[("/var/lib/hotslot", "a file")], "state", Level::Warn, &["[database] url"]);
    }
}
