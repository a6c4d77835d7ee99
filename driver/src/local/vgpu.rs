//! The types of virtual GPUs of VFs, in the files of their drivers.

use std::io;
use std::path::Path;

use super::root::{Root, is_absent};
use crate::hypervisor::{Error, ErrorKind};
use crate::pci::PciAddress;
use crate::vgpu::{Vendor, VgpuChange, VgpuVf, vendors};

const DEVICES: &str = "sys/bus/pci/devices";

/// The error for the VFs of another machine, for which libvirt has no call.
pub(crate) fn vgpus_on_another_machine() -> Error {
    Error::new(
        ErrorKind::Unsupported,
        "read the vGPU types of VFs",
        "the host is another machine, and libvirt has no call for the vGPU types of VFs; run hotslot on that host, or \
         set the type there and attach without vgpu_type",
    )
}

/// Lists the VFs of which their drivers make virtual GPUs, in order of address; with `only`, this function if it is such a
/// VF. One whose type cannot be read is left out of the list of all, with a warning in the log.
///
/// # Errors
/// The error, with the file, when the type of `only` cannot be read.
pub fn vgpu_vfs(sysroot: &Path, only: Option<PciAddress>) -> io::Result<Vec<VgpuVf>> {
    let root = Root::new(sysroot);
    if let Some(address) = only {
        return Ok(find(&root, address)?.map(|(_, vf)| vf).into_iter().collect());
    }
    let addresses = root.list(DEVICES).into_iter().filter_map(|name| name.parse().ok());
    let readable = |address| {
        let found = find(&root, address);
        found.inspect_err(|error| tracing::warn!("a vGPU type cannot be read: {error}")).ok()?
    };
    let mut vfs: Vec<_> = addresses.filter_map(readable).map(|(_, vf)| vf).collect();
    vfs.sort_by_key(|vf| vf.address);
    Ok(vfs)
}

/// Changes the type of a VF, if it has the type that it must have before, and reads it back.
///
/// # Errors
/// [`ErrorKind::NoDevice`] when there is no such VF; [`ErrorKind::Refused`] when it has another type or one that cannot be
/// read, cannot have the new one, or the kernel refuses.
pub fn set_vgpu_type(sysroot: &Path, change: &VgpuChange) -> Result<(), Error> {
    let failed = |kind, message: String| Error::new(kind, change.operation(), message);
    let root = Root::new(sysroot);
    let found = find(&root, change.address);
    let Some((vendor, vf)) = found.map_err(|error| failed(ErrorKind::Refused, error.to_string()))? else {
        let text = "the driver that is bound to it has no vGPU types; load the vGPU driver of the host, and make the VFs";
        return Err(failed(ErrorKind::NoDevice, text.to_owned()));
    };
    if !change.check(&vf).map_err(|reason| failed(ErrorKind::Refused, reason))? {
        return Ok(());
    }
    let number = vendor.number(change.to.as_deref());
    let number = number.ok_or_else(|| failed(ErrorKind::Refused, "there is no such type".to_owned()))?;
    let file = Path::new(DEVICES).join(change.address.to_string()).join(&vendor.current);
    let written = root.overwrite(&file, &format!("{number}\n"));
    let now = root.read(&file).map(|text| vendor.read_current(&text));
    match (written, now) {
        // Some drivers have taken the type away themselves when the guest stopped, and then refuse to do so.
        (_, Ok(now)) if now == change.to => Ok(()),
        (Err(error), _) | (Ok(()), Err(error)) => {
            Err(failed(ErrorKind::Refused, format!("{}: {error}", root.at(&file).display())))
        }
        (Ok(()), Ok(now)) => {
            let now = now.unwrap_or_else(|| "none".to_owned());
            Err(failed(ErrorKind::Refused, format!("the driver accepted it, and the type is {now}")))
        }
    }
}

/// Finds the vendor of a VF, and reads its types. `None` says that there is no such VF.
///
/// # Errors
/// The error, with the file, when the VF has a type and it cannot be read.
fn find(root: &Root, address: PciAddress) -> io::Result<Option<(&'static Vendor, VgpuVf)>> {
    let device = Path::new(DEVICES).join(address.to_string());
    for vendor in vendors() {
        let file = device.join(&vendor.current);
        let current = match root.read(&file) {
            Ok(current) => current,
            // The driver may have gone since the file was opened.
            Err(error) if is_absent(&error) || error.raw_os_error() == Some(nix::Error::ENODEV as i32) => {
                continue;
            }
            Err(error) => {
                let text = format!("{}: {error}", root.at(&file).display());
                return Err(io::Error::new(error.kind(), text));
            }
        };
        let parent = root.resolve(device.join("physfn"));
        let parent = parent.and_then(|parent| parent.file_name()?.to_str()?.parse().ok());
        let creatable = root.read(device.join(&vendor.creatable)).unwrap_or_default();
        let vf = VgpuVf {
            address,
            parent,
            current: vendor.read_current(&current),
            creatable: vendor.read_creatable(&creatable),
        };
        return Ok(Some((vendor, vf)));
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_type_is_written_and_read_back_and_nothing_else_is() {
        let dir = tempfile::tempdir().unwrap();
        let devices = dir.path().join(DEVICES);
        for (vf, current) in [("0000:41:00.4", "0\n"), ("0000:41:00.5", "1156\n")] {
            let nvidia = devices.join(vf).join("nvidia");
            fs::create_dir_all(&nvidia).unwrap();
            fs::write(nvidia.join("current_vgpu_type"), current).unwrap();
            fs::write(nvidia.join("creatable_vgpu_types"), "ID : vGPU Name\n1155 : NVIDIA L40S-24Q\n")
                .unwrap();
            std::os::unix::fs::symlink("../0000:41:00.0", devices.join(vf).join("physfn")).unwrap();
        }
        fs::create_dir_all(devices.join("0000:41:00.0")).unwrap();
        // A file that cannot be read, as when the driver fails.
        fs::create_dir_all(devices.join("0000:41:00.6/nvidia/current_vgpu_type")).unwrap();
        let change = |vf: &str, from: Option<&str>, to: Option<&str>| {
            let (from, to) = (from.map(str::to_owned), to.map(str::to_owned));
            set_vgpu_type(dir.path(), &VgpuChange { address: vf.parse().unwrap(), from, to })
        };
        let file = |vf: &str| fs::read_to_string(devices.join(vf).join("nvidia/current_vgpu_type")).unwrap();
        let of = Some("nvidia-1155");

        let only = |address: &str| vgpu_vfs(dir.path(), Some(address.parse().unwrap()));
        let vfs = vgpu_vfs(dir.path(), None).unwrap();
        assert_eq!(only("0000:41:00.5").unwrap(), vfs[1..]);
        assert_eq!(only("0000:41:00.0").unwrap(), []);
        assert!(only("0000:41:00.6").is_err(), "a type that cannot be read is not none");
        let parents: Vec<_> = vfs.iter().map(|vf| vf.parent.map(|parent| parent.to_string())).collect();
        assert_eq!(parents, [Some("0000:41:00.0".to_owned()), Some("0000:41:00.0".to_owned())]);
        assert_eq!(vfs[1].current.as_deref(), Some("nvidia-1156"));
        change("0000:41:00.4", None, of).unwrap();
        assert_eq!(file("0000:41:00.4"), "1155\n");
        change("0000:41:00.4", of, None).unwrap();
        assert_eq!(file("0000:41:00.4"), "0\n");
        for (vf, from, to, kind, says) in [
            ("0000:41:00.5", of, None, ErrorKind::Refused, "somebody else has set"),
            ("0000:41:00.4", None, Some("nvidia-7"), ErrorKind::Refused, "it can be: nvidia-1155"),
            ("0000:41:00.0", None, of, ErrorKind::NoDevice, "has no vGPU types"),
            ("0000:ff:00.0", None, of, ErrorKind::NoDevice, "has no vGPU types"),
            ("0000:41:00.6", of, None, ErrorKind::Refused, "nvidia/current_vgpu_type: "),
        ] {
            let refused = change(vf, from, to).unwrap_err();
            assert_eq!(refused.kind, kind, "{refused}");
            assert!(refused.to_string().contains(says), "{refused}");
        }
        assert_eq!(file("0000:41:00.5"), "1156\n");
        assert!(!devices.join("0000:41:00.0/nvidia").exists());
    }
}
