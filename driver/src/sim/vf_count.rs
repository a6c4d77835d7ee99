//! The number of VFs of a PF, as the kernel changes it, and the restart of the host, which loses them.

use std::fs;

use tokio::time::Instant;
use uuid::Uuid;

use super::host::Host;
use super::refusal::{self, Refusal};
use crate::device::Role;
use crate::hypervisor::{ErrorKind, Lifecycle};
use crate::pci::PciAddress;
use crate::vf;

impl Host {
    /// Changes the number of VFs of a PF from one that it must have before, as the kernel does: to 0, or from 0.
    pub(super) fn set_vf_count(&mut self, pf: PciAddress, from: u32, to: u32) -> Result<(), Refusal> {
        let refused = |reason: String| Err(Refusal::new(ErrorKind::Refused, reason));
        let device = self.devices.get(pf).ok_or_else(|| refusal::no_node_device(pf))?;
        let Role::Physical { max_vfs, .. } = device.info.role else {
            return Err(Refusal::new(ErrorKind::NoDevice, "it is no PF, or sysfs does not show it"));
        };
        let there = self.devices.virtual_functions(&device.info);
        let now = u32::try_from(there.len()).unwrap_or(u32::MAX);
        match vf::check_count(now, from, to, max_vfs) {
            Ok(false) => return Ok(()),
            Ok(true) => {}
            Err(reason) => return refused(reason),
        }
        if now > 0 {
            // The kernel waits here for a guest that has one.
            let busy = to > 0 || there.iter().any(|vf| self.is_held(*vf));
            if busy {
                return refused("Device or resource busy (os error 16)".into());
            }
            there.into_iter().for_each(|vf| self.lose_vf(vf));
            return Ok(());
        }
        let all = self.devices.all_vfs(pf);
        if all.len() < to as usize {
            return refused(format!("the simulated host has documents of {} VFs only", all.len()));
        }
        for vf in all.into_iter().take(to as usize) {
            // A new VF is bound to the driver that the kernel has for it.
            if let Some(device) = self.devices.known(vf)
                && let Some(native) = device.native().cloned()
            {
                device.set_free_driver(Some(native));
            }
            self.appear(None, vf)?;
        }
        Ok(())
    }

    /// Changes the number of VFs of a PF whatever it was, as somebody on the host does.
    pub(super) fn echo_vf_count(&mut self, pf: PciAddress, to: u32) -> Result<(), Refusal> {
        let device = self.devices.get(pf).ok_or_else(|| refusal::no_node_device(pf))?;
        let now = self.devices.virtual_functions(&device.info).len();
        let now = u32::try_from(now).unwrap_or(u32::MAX);
        if now > 0 && to > 0 && now != to {
            self.set_vf_count(pf, now, 0)?;
            return self.set_vf_count(pf, 0, to);
        }
        self.set_vf_count(pf, now, to)
    }

    /// Restarts the host: its guests stop, and the VFs and mediated devices are gone.
    pub(super) fn restart(&mut self, now: Instant) -> Result<(), Refusal> {
        let running = self.domains.values().filter(|domain| domain.live.is_some());
        for uuid in running.map(|domain| domain.uuid).collect::<Vec<Uuid>>() {
            self.stop(uuid, &[Lifecycle::Stopped], now)?;
        }
        for mdev in self.mdevs() {
            self.destroy_mdev(mdev.uuid)?;
        }
        let is_vf = |role: &Role| matches!(role, Role::Virtual { .. });
        let vfs = self.devices.iter().filter(|device| is_vf(&device.info.role));
        for vf in vfs.map(|device| device.info.address).collect::<Vec<_>>() {
            self.lose_vf(vf);
        }
        Ok(())
    }

    /// Whether a running guest has a function or one of its mediated devices.
    fn is_held(&self, address: PciAddress) -> bool {
        self.devices.get(address).is_some_and(|device| {
            device.holder.is_some() || device.mdevs.values().any(|mdev| mdev.holder.is_some())
        })
    }

    /// Removes a VF with everything that was set for it.
    fn lose_vf(&mut self, vf: PciAddress) {
        // A file that is not there is as good as one that was removed.
        let _ = fs::remove_file(self.vf_file(vf));
        let _ = fs::remove_file(self.vgpu_file(vf));
        self.vanish(vf);
    }
}
