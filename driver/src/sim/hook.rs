//! What runs for a function of a simulated host, by its class and the driver that it has.

use super::host::Host;
use super::refusal::{self, Refusal};
use crate::hook::{Hooks, Step, When};
use crate::hypervisor::ErrorKind;
use crate::pci::PciAddress;

impl Host {
    /// Returns what is to be run for a function; `None` when it has nothing to drain it with.
    pub(super) fn hook(
        &mut self,
        hooks: &Hooks,
        address: PciAddress,
        when: When,
    ) -> Result<Option<Step>, Refusal> {
        let info = &self.devices.get(address).ok_or_else(|| refusal::no_node_device(address))?.info;
        let Some(step) = hooks.step(when, info.class) else {
            return match when {
                When::Drain => Ok(None),
                When::Scrub => Err(Refusal::new(ErrorKind::Refused, "its class has no scrub hook")),
            };
        };
        match step.unsuited(address, info.driver.as_deref()) {
            None => Ok(Some(step)),
            Some(reason) => Err(Refusal::new(ErrorKind::Refused, reason)),
        }
    }
}
