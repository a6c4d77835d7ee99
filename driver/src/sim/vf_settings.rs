//! The settings of VFs: a file in the directory of the host for each VF whose settings were changed.

use std::fs;
use std::path::PathBuf;

use super::host::Host;
use super::refusal::{self, Refusal};
use crate::device::Role;
use crate::hypervisor::ErrorKind;
use crate::pci::PciAddress;
use crate::vf::{VfLink, VfSettings};

/// The settings of a VF that was just created.
const NEW: VfSettings = VfSettings {
    trust: Some(false),
    spoof_check: Some(true),
    link_state: Some(VfLink::Auto),
    min_tx_rate: Some(0),
    max_tx_rate: Some(0),
};

impl Host {
    pub(super) fn vf_file(&self, vf: PciAddress) -> PathBuf {
        self.dir.join("vf").join(format!("{vf}.json"))
    }

    /// Returns the settings of a VF.
    pub(super) fn vf_settings(&self, vf: PciAddress) -> Result<VfSettings, Refusal> {
        let device = self.devices.get(vf).ok_or_else(|| refusal::no_node_device(vf))?;
        if !matches!(device.info.role, Role::Virtual { .. }) {
            return Err(Refusal::new(
                ErrorKind::NoDevice,
                format_args!("{vf} is no VF, or sysfs does not show it"),
            ));
        }
        let failed = |error: &dyn std::fmt::Display| Refusal::new(ErrorKind::Refused, error);
        match fs::read_to_string(self.vf_file(vf)) {
            Ok(text) => serde_json::from_str(&text).map_err(|error| failed(&error)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(NEW),
            Err(error) => Err(failed(&error)),
        }
    }

    /// Changes settings of a VF.
    pub(super) fn set_vf_settings(&self, vf: PciAddress, wanted: &VfSettings) -> Result<(), Refusal> {
        let settings = wanted.or(&self.vf_settings(vf)?);
        let file = self.vf_file(vf);
        let failed = |error: std::io::Error| Refusal::new(ErrorKind::Refused, error);
        fs::create_dir_all(self.dir.join("vf")).map_err(failed)?;
        let text = serde_json::to_string(&settings).map_err(|error| failed(error.into()))?;
        // Another process may read the file at any time.
        let new = file.with_extension("new");
        fs::write(&new, text).and_then(|()| fs::rename(new, file)).map_err(failed)
    }
}
