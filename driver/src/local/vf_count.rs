//! The number of VFs of a PF, in its file in sysfs.

use std::path::Path;

use super::root::Root;
use crate::hypervisor::{Error, ErrorKind};
use crate::pci::PciAddress;
use crate::vf;

/// Why the number of VFs of a host that is or may be another machine cannot be changed.
pub const OF_ANOTHER_MACHINE: &str = "the host is another machine, and its files can be changed only there; run a service \
                                      of hotslot on it, or write the number into sriov_numvfs there as root";

/// Changes the number of VFs of a PF (Linux, Documentation/ABI/testing/sysfs-bus-pci, `sriov_numvfs`) from one that it must
/// have before, and reads it back. The kernel changes a number that is not 0 only to 0.
///
/// # Errors
/// [`ErrorKind::NoDevice`] when it is no PF; [`ErrorKind::Refused`] when it has another number, does not support so many,
/// or the kernel refuses.
pub fn set_vf_count(sysroot: &Path, pf: PciAddress, from: u32, to: u32) -> Result<(), Error> {
    let failed =
        |kind, message: String| Error::new(kind, format!("set the number of VFs of {pf} to {to}"), message);
    let root = Root::new(sysroot);
    let device = Path::new("sys/bus/pci/devices").join(pf.to_string());
    let number = |name: &str| root.word(device.join(name))?.parse::<u32>().ok();
    let (Some(most), Some(now)) = (number("sriov_totalvfs"), number("sriov_numvfs")) else {
        return Err(failed(ErrorKind::NoDevice, "it is no PF, or sysfs does not show it".into()));
    };
    if !vf::check_count(now, from, to, most).map_err(|reason| failed(ErrorKind::Refused, reason))? {
        return Ok(());
    }
    let file = device.join("sriov_numvfs");
    let written = root.overwrite(&file, &to.to_string());
    written.map_err(|error| failed(ErrorKind::Refused, format!("{}: {error}", root.at(&file).display())))?;
    let now = root.read(&file).unwrap_or_default();
    if now.trim() == to.to_string() {
        return Ok(());
    }
    Err(failed(ErrorKind::Refused, format!("the driver accepted it, and it has {} VFs", now.trim())))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_number_that_fits_is_written() {
        let dir = tempfile::tempdir().unwrap();
        let pf = dir.path().join("sys/bus/pci/devices/0000:41:00.0");
        fs::create_dir_all(&pf).unwrap();
        fs::write(pf.join("sriov_totalvfs"), "4\n").unwrap();
        fs::write(pf.join("sriov_numvfs"), "0\n").unwrap();
        let set = |pf: &str, from, to| set_vf_count(dir.path(), pf.parse().unwrap(), from, to);
        set("0000:41:00.0", 0, 4).unwrap();
        set("0000:41:00.0", 0, 4).unwrap();
        assert_eq!(fs::read_to_string(pf.join("sriov_numvfs")).unwrap(), "4");
        for (address, from, to, says) in [
            ("0000:41:00.0", 2, 0, "it has 4 VFs, and 2 were expected"),
            ("0000:41:00.0", 4, 5, "it supports at most 4 VFs"),
            ("0000:42:00.0", 0, 1, "it is no PF"),
        ] {
            let refused = set(address, from, to).unwrap_err();
            assert!(refused.message.contains(says), "{refused}");
        }
        set("0000:41:00.0", 4, 0).unwrap();
    }
}
