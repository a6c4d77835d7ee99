//! The types of virtual GPUs of VFs, for which libvirt has no call: the files of the machine are read.

use std::io;
use std::path::Path;

use super::Libvirt;
use crate::helper::Request;
use crate::hypervisor::{Error, ErrorKind};
use crate::local;
use crate::pci::PciAddress;
use crate::vgpu::{VgpuChange, VgpuVf};

impl Libvirt {
    pub(super) async fn list_vgpu_vfs(&self, only: Option<PciAddress>) -> Result<Vec<VgpuVf>, Error> {
        if !self.local {
            return Err(local::vgpus_on_another_machine());
        }
        let reading = tokio::task::spawn_blocking(move || local::vgpu_vfs(Path::new("/"), only));
        let failed = |error: io::Error| Error::new(ErrorKind::Refused, "read the vGPU types of VFs", error);
        reading.await.map_err(io::Error::from).flatten().map_err(failed)
    }

    /// Changes the type of a VF.
    pub(super) async fn change_vgpu_type(&self, change: &VgpuChange) -> Result<(), Error> {
        if !self.local {
            return Err(local::vgpus_on_another_machine());
        }
        self.change(Request::SetVgpuType(change.clone())).await
    }
}
