//! Which VFs of a host can be of the type of virtual GPU that a request asks for.

use std::collections::HashMap;

use hotslot_driver::hotplug::{Check, CheckResult};
use hotslot_driver::pci::PciAddress;
use hotslot_driver::vgpu::VgpuType;
use hotslot_model::assignment::{Vgpu, VgpuOwner};

/// The name of the check of a dry run.
pub(super) const CHECK: &str = "vgpu-type";

/// Which VFs of a host can be of the type that a request asks for.
pub(super) struct VgpuChoice {
    /// The requested type, as the request names it.
    pub(super) wanted: String,
    /// For each VF that is a virtual GPU: the type that it would be of, and whether it is already; or why it cannot be.
    pub(super) vfs: HashMap<PciAddress, Result<(VgpuType, bool), String>>,
    /// Why no VF of the host can be given a type.
    pub(super) refused: Option<String>,
}

impl VgpuChoice {
    /// Returns why a device cannot be of the type; `None` when it can.
    pub(super) fn why_not(&self, address: PciAddress) -> Option<String> {
        match self.vfs.get(&address) {
            Some(Ok(_)) => None,
            Some(Err(reason)) => Some(reason.clone()),
            None => Some(format!("{address} has no vGPU types, and vgpu_type {} is requested", self.wanted)),
        }
    }

    /// The type that a device is to be of.
    pub(super) fn of(&self, address: PciAddress) -> Option<Vgpu> {
        let (of, _) = self.vfs.get(&address)?.as_ref().ok()?;
        Some(Vgpu { id: of.id.clone(), owner: VgpuOwner::Others })
    }

    /// The check of a device, for a dry run.
    pub(super) fn check(&self, address: PciAddress) -> Check {
        let (result, message) = match self.vfs.get(&address) {
            Some(Ok((of, true))) => (CheckResult::Pass, format!("{address} is of the type {of}")),
            Some(Ok((of, false))) => {
                (CheckResult::Pass, format!("{address} gets the type {of} before it is plugged"))
            }
            Some(Err(_)) | None => (CheckResult::Fail, self.why_not(address).unwrap_or_default()),
        };
        Check { name: CHECK, device: Some(address), result, message, cure: None }
    }
}
