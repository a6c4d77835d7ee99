//! Whether the driver of a function is a VFIO driver, so that the function can be passed through without another one.
//!
//! ```text
//! the kernel    the directory `vfio-dev` in the function's sysfs directory: local::vfio_dev
//! the name      for a remote host, and for kernels before 6.1: of_driver
//! ```
//! Everybody asks [`HostDevice::vfio`](crate::device::HostDevice::vfio), which uses the first of the two that is known.

/// Whether a function is bound to a VFIO driver.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum OnVfio {
    /// It is: QEMU can open it.
    Yes,
    /// It is bound to a host driver, or to none.
    No,
    /// The name of its driver does not tell, and the kernel's answer cannot be read.
    Unknown,
}

/// The names of drivers that are no VFIO drivers, for functions that are often passed through. A driver that is missing
/// here is unknown as long as only its name is known.
const HOST_DRIVERS: &str = "\
    8139cp 8139too ahci amdgpu ast atlantic be2net bnx2 bnx2x bnxt_en cxgb4 cxgb4vf e100 e1000 e1000e ehci-pci ena \
    fm10k gve hpsa hinic i40e iavf ice idpf idxd igb igb_uio igbvf igc ionic i915 ixgb ixgbe ixgbevf lpfc megaraid_sas \
    mgag200 mlx4_core mlx5_core mpi3mr mpt3sas mxser netxen_nic nfp nouveau nvme ohci-pci pcieport pci-stub qat_4xxx \
    qat_4xxxvf qat_420xx qat_6xxx qat_6xxxvf qat_c3xxx qat_c3xxxvf qat_c62x qat_c62xvf qat_dh895xcc qat_dh895xccvf qede \
    qla2xxx qxl r8169 radeon serial sfc sky2 smartpqi snd_hda_intel tg3 thunderbolt uhci_hcd uio_pci_generic virtio-pci \
    vmxnet3 vmwgfx xe xhci_hcd xilinx_emaclite xocl xclmgmt xuser";

/// Returns what the name of a driver tells. `is_vf` is for drivers that are VFIO drivers for VFs only.
pub fn of_driver(driver: &str, is_vf: bool) -> OnVfio {
    // The kernel shows a driver by the name that its author chose: `mlx5_vfio_pci`, `xe-vfio-pci`.
    let name = driver.replace('-', "_");
    if name.starts_with("vfio") || name.ends_with("_vfio_pci") || name.ends_with("_vfio") {
        return OnVfio::Yes;
    }
    match driver {
        // NVIDIA's driver is a VFIO driver for the VFs that are virtual GPUs, and a host driver for whole GPUs.
        "nvidia" if is_vf => OnVfio::Yes,
        "nvidia" => OnVfio::No,
        _ if HOST_DRIVERS.split_ascii_whitespace().any(|known| known == driver) => OnVfio::No,
        _ => OnVfio::Unknown,
    }
}

/// Whether a VFIO driver also makes what the function is, such as a virtual GPU, so that it must not be replaced by
/// `vfio-pci`. The drivers whose names only say that they are VFIO drivers do not.
pub(crate) fn is_manager(driver: &str) -> bool {
    let name = driver.replace('-', "_");
    name == "xe_vfio_pci" || name == "nvidia_vgpu_vfio" || of_driver(driver, false) != OnVfio::Yes
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn names_of_drivers_tell_whether_they_are_vfio_drivers() {
        use OnVfio::{No, Unknown, Yes};
        // The driver, for a VF, for a whole device, and whether libvirt must leave it bound when the kernel says that it
        // is a VFIO driver.
        let table = [
            ("vfio-pci", Yes, Yes, false),
            ("mlx5_vfio_pci", Yes, Yes, false),
            ("nvgrace_gpu_vfio_pci", Yes, Yes, false),
            ("hisi_acc_vfio_pci", Yes, Yes, false),
            ("xe-vfio-pci", Yes, Yes, true),
            ("xe_vfio_pci", Yes, Yes, true),
            ("nvidia-vgpu-vfio", Yes, Yes, true),
            ("nvidia", Yes, No, true),
            ("igbvf", No, No, true),
            ("pci-stub", No, No, true),
            ("xe", No, No, true),
            ("acme_gpu", Unknown, Unknown, true),
            ("", Unknown, Unknown, true),
        ];
        for (driver, vf, whole, manager) in table {
            assert_eq!((of_driver(driver, true), of_driver(driver, false)), (vf, whole), "{driver}");
            assert_eq!(is_manager(driver), manager, "{driver}");
        }
    }

    proptest! {
        #[test]
        fn a_name_means_the_same_with_dashes_and_underscores(name in "[a-z0-9]{0,8}([-_][a-z]{1,5}){0,3}", vf in any::<bool>()) {
            let yes = |name: &str| of_driver(name, vf) == OnVfio::Yes;
            prop_assert_eq!(yes(&name), yes(&name.replace('-', "_")));
        }

        #[test]
        fn any_name_is_understood(name in "\\PC{0,40}", vf in any::<bool>()) {
            let known = of_driver(&name, vf);
            prop_assert!(known != OnVfio::Yes || name.contains("vfio") || name == "nvidia");
        }
    }
}
