//! Facts about this machine that explain what a guest gets: IOMMUFD, BARs that can be resized, the isolation between PCI
//! functions, and huge pages.

use std::path::Path;

use hotslot_driver::hook::{self, Hooks};
use hotslot_driver::pci::PciClass;

use super::machine::Machine;
use super::{Finding, Level};

/// The maximum number of BARs that a finding names.
const NAMED: usize = 4;

/// Reports every fact of the machine whose root file system is at `root`.
pub(super) fn check(root: &Path) -> Vec<Finding> {
    let machine = Machine { root };
    let mut findings = vec![iommufd(&machine)];
    findings.extend(resizable_bars(&machine));
    findings.extend(acs(&machine));
    findings.extend(huge_pages(&machine));
    findings.extend(hooks(&machine));
    findings.extend(scrub(&machine));
    findings
}

/// Reports whether the hooks of the machine can be used. Returns `None` when it has no file of hooks.
fn hooks(machine: &Machine<'_>) -> Option<Finding> {
    if !machine.has(hook::FILE) {
        return None;
    }
    Some(match Hooks::read(&machine.root.join(hook::FILE)) {
        Ok(_) => Finding::ok("hooks", format!("/{} can be used", hook::FILE)),
        Err(reason) => {
            let fix = "correct it; until then no hook runs, and what would run one is refused";
            Finding::bad("hooks", Level::Warn, reason, fix)
        }
    })
}

/// Reports whether the NVMe controllers of the machine can be erased after they were in a guest. Returns `None` when it has
/// none.
fn scrub(machine: &Machine<'_>) -> Option<Finding> {
    const DEVICES: &str = "/sys/bus/pci/devices";
    let is_nvme = |address: &String| {
        let class = machine.read(format!("{DEVICES}/{address}/class"));
        class.parse::<PciClass>().is_ok_and(PciClass::is_nvme)
    };
    machine.names(DEVICES).iter().find(|address| is_nvme(address))?;
    if ["sbin", "bin"].iter().any(|folder| machine.has(&format!("/usr/{folder}/nvme"))) {
        return Some(Finding::ok("scrub", "nvme-cli erases NVMe controllers after they were in a guest"));
    }
    let says = "nvme-cli is not installed, and an NVMe controller that was in a guest stays in quarantine";
    let fix = "install the package nvme-cli, or write \"scrub\": \"false\" into the device_spec: docs/devices.md, \"Scrub\"";
    Some(Finding::bad("scrub", Level::Info, says, fix))
}

fn iommufd(machine: &Machine<'_>) -> Finding {
    let says = if machine.has("/dev/iommu") {
        "there (/dev/iommu); hotslot leaves it to libvirt whether a guest's devices use it"
    } else {
        "not there (no /dev/iommu); devices are passed through by IOMMU groups (/dev/vfio), which is enough"
    };
    Finding::ok("iommufd", says)
}

/// Reports the BARs whose size can be changed. A guest gets a BAR with the size that it has on the host. Returns `None`
/// when there are none.
fn resizable_bars(machine: &Machine<'_>) -> Option<Finding> {
    const DEVICES: &str = "/sys/bus/pci/devices";
    let mut found = Vec::new();
    for address in machine.names(DEVICES) {
        for file in machine.names(&format!("{DEVICES}/{address}")) {
            let bar = file.strip_prefix("resource").and_then(|rest| rest.strip_suffix("_resize"));
            let Some(bar) = bar else { continue };
            let largest = largest(&machine.read(format!("{DEVICES}/{address}/{file}")));
            found.extend(largest.map(|largest| format!("{address} BAR {bar} (up to {largest} MiB)")));
        }
    }
    let more = if found.len() > NAMED { ", …" } else { "" };
    let named = found.get(..NAMED.min(found.len()))?.join(", ");
    if named.is_empty() {
        return None;
    }
    let says = format!(
        "{named}{more}: a guest gets a BAR with the size that it has on the host when it is attached"
    );
    let fix = format!(
        "to change one, unbind its driver and write the power of two of the size in MiB to \
         {DEVICES}/ADDRESS/resourceN_resize"
    );
    Some(Finding::bad("resizable BARs", Level::Info, says, fix))
}

/// Returns the largest size in MiB of a file `resourceN_resize`: a number in hexadecimal digits, whose bit n stands for
/// 2^n MiB (Linux, Documentation/ABI/testing/sysfs-bus-pci).
fn largest(sizes: &str) -> Option<u64> {
    let bits = u64::from_str_radix(sizes, 16).ok()?;
    (bits != 0).then(|| 1 << bits.ilog2())
}

/// Warns of kernels that were told to believe in an isolation that the hardware does not have. Returns `None` for others.
fn acs(machine: &Machine<'_>) -> Option<Finding> {
    let line = machine.read("/proc/cmdline");
    let word = line.split_whitespace().find(|word| word.starts_with("pcie_acs_override="))?;
    let says = format!(
        "the kernel was started with `{word}`: IOMMU groups are smaller than what the hardware isolates, so that a guest \
         can reach devices of other guests and of the host"
    );
    let fix = "remove it from the kernel command line and reboot, unless you trust all guests";
    Some(Finding::bad("acs", Level::Warn, says, fix))
}

/// Reports that huge pages count against the limit of locked memory. Returns `None` for a machine without any.
fn huge_pages(machine: &Machine<'_>) -> Option<Finding> {
    let memory = machine.read("/proc/meminfo");
    let number = |key: &str| -> u64 {
        let line = memory.lines().find_map(|line| line.strip_prefix(key));
        line.and_then(|rest| rest.split_whitespace().next()?.parse().ok()).unwrap_or(0)
    };
    let (pages, size) = (number("HugePages_Total:"), number("Hugepagesize:"));
    (pages > 0).then(|| {
        let says = format!(
            "{pages} of {size} kB; VFIO locks a guest's memory in huge pages too, so a <hard_limit> of <memtune> must be \
             larger than all of the guest's memory"
        );
        Finding::ok("huge pages", says)
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::doctor::machine::tests::machine;

    fn found(files: &[(&str, &str)], check: &str) -> Option<(Level, String)> {
        let root = machine(files);
        let finding = super::check(root.path()).into_iter().find(|finding| finding.check == check)?;
        Some((finding.level, format!("{} / {}", finding.says, finding.fix.unwrap_or_default())))
    }

    #[test]
    fn hooks_that_cannot_be_used_and_a_missing_nvme_cli_are_told() {
        let nvme = ("/sys/bus/pci/devices/0000:01:00.0/class", "0x010802");
        assert_eq!((found(&[], "hooks"), found(&[], "scrub")), (None, None));
        let (level, says) = found(&[nvme], "scrub").unwrap();
        assert!(level == Level::Info && says.contains("install the package nvme-cli"), "{says}");
        assert_eq!(found(&[nvme, ("/usr/sbin/nvme", "")], "scrub").unwrap().0, Level::Ok);
        assert_eq!(found(&[("/etc/hotslot/hooks.toml", "")], "hooks").unwrap().0, Level::Ok);
        let (level, says) = found(&[("/etc/hotslot/hooks.toml", "[[hook]]")], "hooks").unwrap();
        assert!(level == Level::Warn && says.contains("missing field `class`"), "{says}");
    }

    #[test]
    fn each_fact_is_told_where_it_is_one() {
        let bar = ("/sys/bus/pci/devices/0000:03:00.0/resource0_resize", "0000000000007f00\n");
        let other = ("/sys/bus/pci/devices/0000:03:00.0/resource2", "");
        let garbage = ("/sys/bus/pci/devices/0000:04:00.0/resource0_resize", "x\n");
        let acs = ("/proc/cmdline", "quiet pcie_acs_override=downstream,multifunction ro\n");
        let pages =
            ("/proc/meminfo", "MemTotal: 1 kB\nHugePages_Total:      512\nHugepagesize:       2048 kB\n");
        for (files, check, level, words) in [
            (&[][..], "iommufd", Level::Ok, "not there"),
            (&[("/dev/iommu", "")][..], "iommufd", Level::Ok, "there (/dev/iommu)"),
            (&[bar, other][..], "resizable BARs", Level::Info, "0000:03:00.0 BAR 0 (up to 16384 MiB)"),
            (&[acs][..], "acs", Level::Warn, "`pcie_acs_override=downstream,multifunction`"),
            (&[pages][..], "huge pages", Level::Ok, "512 of 2048 kB"),
        ] {
            let (found, text) = found(files, check).unwrap();
            assert_eq!(found, level, "{text}");
            assert!(text.contains(words), "{words} in: {text}");
        }
        for check in ["resizable BARs", "acs", "huge pages"] {
            assert_eq!(
                found(&[garbage, ("/proc/cmdline", "quiet"), ("/proc/meminfo", "HugePages_Total: 0")], check),
                None
            );
        }
    }

    proptest! {
        #[test]
        fn any_file_of_sizes_is_read(text in "\\PC{0,20}", bits in any::<u64>()) {
            let _ = largest(&text);
            let read = largest(&format!("{bits:016x}"));
            prop_assert_eq!(read.is_some(), bits != 0);
            prop_assert!(read.is_none_or(|largest| bits & largest == largest && bits <= largest | (largest - 1)));
        }
    }
}
