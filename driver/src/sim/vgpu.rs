//! Virtual GPUs on VFs, as NVIDIA's driver has them: a file in the directory of the host for each VF that has a type, and
//! memory that the VFs of a PF share.

use std::fs;
use std::io;
use std::path::PathBuf;

use super::config::VgpuCard;
use super::host::Host;
use super::refusal::Refusal;
use crate::device::Role;
use crate::hypervisor::ErrorKind;
use crate::pci::PciAddress;
use crate::vgpu::{VgpuChange, VgpuType, VgpuVf};

impl Host {
    pub(super) fn vgpu_file(&self, vf: PciAddress) -> PathBuf {
        self.dir.join("vgpu").join(format!("{vf}.type"))
    }

    /// Returns the type that a VF has.
    fn vgpu_type(&self, vf: PciAddress) -> Option<String> {
        let text = fs::read_to_string(self.vgpu_file(vf)).ok()?;
        Some(text.trim().to_owned()).filter(|id| !id.is_empty())
    }

    /// Returns the card of a VF whose driver makes a virtual GPU of it.
    fn vgpu_card(&self, vf: PciAddress) -> Option<(PciAddress, &VgpuCard)> {
        let device = self.devices.get(vf)?;
        let Role::Virtual { parent } = device.info.role else { return None };
        let is_bound = device.is_native() && device.is_on_vfio_when_free();
        Some((parent, self.config.vgpu.get(&parent)?)).filter(|_| is_bound)
    }

    /// Whether a VF cannot be opened, because it has no type.
    pub(super) fn is_vgpu_without_type(&self, vf: PciAddress) -> bool {
        self.vgpu_card(vf).is_some() && self.vgpu_type(vf).is_none()
    }

    /// Lists the VFs that are virtual GPUs, or one of them.
    pub(super) fn vgpu_vfs(&self, only: Option<PciAddress>) -> Vec<VgpuVf> {
        let all = self.devices.iter().map(|device| device.info.address);
        let asked = all.filter(|address| only.is_none_or(|only| only == *address));
        asked.filter_map(|address| self.vgpu_vf(address)).collect()
    }

    fn vgpu_vf(&self, address: PciAddress) -> Option<VgpuVf> {
        let (parent, card) = self.vgpu_card(address)?;
        let current = self.vgpu_type(address);
        let id = |number: &u32| format!("nvidia-{number}");
        let memory =
            |of: &String| card.types.iter().find(|(number, _)| id(number) == *of).map(|(_, of)| of.memory);
        let vfs =
            self.devices.get(parent).map(|pf| self.devices.virtual_functions(&pf.info)).unwrap_or_default();
        let used: u64 = vfs.iter().filter_map(|vf| memory(&self.vgpu_type(*vf)?)).sum();
        let left = card.memory.saturating_sub(used);
        let fitting = card.types.iter().filter(|(_, of)| current.is_none() && of.memory <= left);
        let creatable = fitting.map(|(number, of)| VgpuType { id: id(number), name: of.name.clone() });
        Some(VgpuVf { address, parent: Some(parent), creatable: creatable.collect(), current })
    }

    /// Changes the type of a VF that no guest has open.
    pub(super) fn set_vgpu_type(&self, change: &VgpuChange) -> Result<(), Refusal> {
        let vf = change.address;
        let refused = |reason: String| Refusal::new(ErrorKind::Refused, reason);
        let found = self.vgpu_vf(vf);
        let found = found.ok_or_else(|| Refusal::new(ErrorKind::NoDevice, "it has no vGPU types"))?;
        if !change.check(&found).map_err(refused)? {
            return Ok(());
        }
        if self.devices.get(vf).is_some_and(|device| device.holder.is_some()) {
            return Err(refused("Device or resource busy (os error 16)".into()));
        }
        let file = self.vgpu_file(vf);
        let changed = match &change.to {
            None => fs::remove_file(file),
            // Another process may read the file at any time.
            Some(to) => fs::create_dir_all(self.dir.join("vgpu")).and_then(|()| {
                let new = file.with_extension("new");
                fs::write(&new, to).and_then(|()| fs::rename(new, file))
            }),
        };
        changed.map_err(|error: io::Error| refused(error.to_string()))
    }
}
