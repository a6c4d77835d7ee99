//! The types of virtual GPUs of VFs, for which libvirt has no call: the files of the machine are read, and changed by the
//! helper, or by this process when it is root's.

use std::path::Path;
use std::time::Instant;

use super::Libvirt;
use super::error::Fault;
use crate::calls_out::Subject;
use crate::helper;
use crate::hypervisor::{Error, ErrorKind};
use crate::local;
use crate::vgpu::{VgpuChange, VgpuVf};

impl Libvirt {
    pub(super) async fn list_vgpu_vfs(&self) -> Result<Vec<VgpuVf>, Error> {
        if !self.local {
            return Err(local::vgpus_on_another_machine());
        }
        let reading = tokio::task::spawn_blocking(|| local::vgpu_vfs(Path::new("/")));
        reading.await.map_err(|error| Error::new(ErrorKind::Refused, "read the vGPU types of VFs", error))
    }

    /// Changes the type of a VF. The vendor's driver may take long, as libvirt may, so that a change that has not ended at
    /// the time limit is listed as overdue.
    pub(super) async fn change_vgpu_type(&self, change: &VgpuChange) -> Result<(), Error> {
        if !self.local {
            return Err(local::vgpus_on_another_machine());
        }
        let (operation, subject) = (change.operation(), Subject::Function(change.address));
        let change = change.clone();
        let changing = tokio::task::spawn_blocking(move || {
            let fault = |error: Error| Fault { kind: error.kind, message: error.message };
            helper::change(&helper::Request::SetVgpuType(change)).map_err(fault)
        });
        self.calls.answer(changing, self.options.change_limit, Instant::now(), operation, subject).await
    }
}
