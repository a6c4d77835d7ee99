//! What runs for a function of a simulated host, by its class and the driver that it has.

use std::time::Duration;

use super::Sim;
use super::config::Operation;
use super::host::Host;
use super::refusal::{self, Refusal};
use crate::calls_out::Subject;
use crate::hook::{Hooks, OF_ANOTHER_MACHINE, Step, When};
use crate::hypervisor::{Error, ErrorKind};
use crate::pci::PciAddress;

/// The file of the hooks, in the directory of the host. Their commands run as the user of this process.
const HOOKS: &str = "hooks.toml";

impl Sim {
    /// Reads the hooks of the host.
    pub(super) fn read_hooks(&self) -> Result<Hooks, Error> {
        let dir = self.inner.lock().dir.clone();
        if self.remote {
            return Ok(Hooks::default());
        }
        let read = Hooks::read(&dir.join(HOOKS));
        read.map_err(|reason| Error::new(ErrorKind::Document, "read the hooks", reason))
    }

    /// Runs the hook of a function.
    pub(super) async fn run_own_hook(
        &self,
        address: PciAddress,
        when: When,
        limit: Duration,
    ) -> Result<(), Error> {
        let what = format!("{when} {address}");
        if self.remote {
            return Err(Error::new(ErrorKind::Unsupported, what, OF_ANOTHER_MACHINE));
        }
        let hooks = self.read_hooks()?;
        let find = move |host: &mut Host, _, _| host.hook(&hooks, address, when);
        let found = self.call(Operation::RunHook, Subject::Function(address), &what, find).await?;
        // A simulated disk has nothing that the built-in step could erase.
        let Some(step) = found.filter(Step::is_configured) else { return Ok(()) };
        let run = tokio::task::spawn_blocking(move || {
            step.run(address, &[]).map_err(|reason| format!("{}: {reason}", step.name()))
        });
        match tokio::time::timeout(limit, run).await {
            Ok(Ok(Ok(()))) => Ok(()),
            Ok(Ok(Err(reason))) => Err(Error::new(ErrorKind::Refused, what, reason)),
            Ok(Err(panic)) => Err(Error::new(ErrorKind::Refused, what, panic)),
            Err(_) => Err(refusal::late(limit).of(what)),
        }
    }
}

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
