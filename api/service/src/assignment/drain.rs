//! Drains: the hook that runs on the host before a function is taken from its host driver, so that what uses it there ends.

use std::path::PathBuf;

use hotslot_driver::device::HostDevice;
use hotslot_driver::hook::When;
use hotslot_driver::hypervisor::{self, ErrorKind};
use hotslot_driver::local::InUse;
use hotslot_model::assignment::AssignmentKind;

use super::assignments::Assignments;
use super::scrub::GRACE;
use crate::host::Host;
use crate::inventory::open_nodes;
use crate::metrics;

impl Assignments {
    /// Runs the drain hook of a function that is about to be taken from its host driver, if its class has one, and checks
    /// that no process has a device node of it open after that.
    ///
    /// # Errors
    /// [`ErrorKind::NotAssignable`] with the hook and the end of its output, or with the processes.
    pub(super) async fn drain(
        &self,
        host: &Host,
        function: &HostDevice,
        managed: bool,
        kind: AssignmentKind,
    ) -> Result<(), hypervisor::Error> {
        if !managed || !function.may_block_its_group() {
            return Ok(());
        }
        let address = function.address;
        let refused =
            |error: hypervisor::Error| hypervisor::Error { kind: ErrorKind::NotAssignable, ..error };
        let hooks = host.hypervisor.hooks().map_err(refused)?;
        let Some(step) = hooks.step(When::Drain, function.class) else { return Ok(()) };
        let running = host.hypervisor.run_hook(address, When::Drain, step.limit() + GRACE);
        metrics::step(kind, "drain", running).await.map_err(refused)?;
        let sysroot = host.hypervisor.sysroot().map(PathBuf::from);
        let in_use = |message: String| {
            hypervisor::Error::new(ErrorKind::NotAssignable, format!("{} {address}", When::Drain), message)
        };
        let found = open_nodes(sysroot, vec![function.clone()]).await;
        let mut found = found.map_err(|error| in_use(error.to_string()))?;
        match found.remove(&address).and_then(|nodes| nodes.in_use()) {
            None => Ok(()),
            Some(InUse { message, cure }) => {
                Err(in_use(format!("{} has run, and {message}; {cure}", step.name())))
            }
        }
    }
}
