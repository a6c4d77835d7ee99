//! Changes for which libvirt has no call: the files of the machine are changed by the helper, or by this process when it is
//! root's.

use std::path::Path;
use std::time::{Duration, Instant};

use super::Libvirt;
use super::error::Fault;
use crate::calls_out::Subject;
use crate::helper::{self, Request};
use crate::hook::{self, Hooks, When};
use crate::hypervisor::{Error, ErrorKind};
use crate::local::OF_ANOTHER_MACHINE;
use crate::pci::PciAddress;

impl Libvirt {
    /// Makes a change of this machine. A driver may take long, as libvirt may, so that a change that has not ended at the
    /// time limit is listed as overdue.
    pub(super) async fn change(&self, request: Request) -> Result<(), Error> {
        self.change_within(request, self.options.change_limit).await
    }

    async fn change_within(&self, request: Request, limit: Duration) -> Result<(), Error> {
        let (operation, subject) = (request.operation(), Subject::Function(request.address()));
        let changing = tokio::task::spawn_blocking(move || {
            helper::change(&request).map_err(|error| Fault { kind: error.kind, message: error.message })
        });
        self.calls.answer(changing, limit, Instant::now(), operation, subject).await
    }

    /// Changes the number of VFs of a PF.
    pub(super) async fn change_vf_count(&self, pf: PciAddress, from: u32, to: u32) -> Result<(), Error> {
        let request = Request::SetVfCount { address: pf, from, to };
        if !self.local {
            return Err(Error::new(ErrorKind::Unsupported, request.operation(), OF_ANOTHER_MACHINE));
        }
        self.change(request).await
    }

    /// Reads the hooks of this machine.
    pub(super) fn read_hooks(&self) -> Result<Hooks, Error> {
        if !self.local {
            return Ok(Hooks::default());
        }
        let read = Hooks::read(&Path::new("/").join(hook::FILE));
        read.map_err(|reason| Error::new(ErrorKind::Document, "read the hooks", reason))
    }

    /// Runs a hook of this machine.
    pub(super) async fn run_own_hook(
        &self,
        address: PciAddress,
        when: When,
        limit: Duration,
    ) -> Result<(), Error> {
        let request = Request::RunHook { address, when };
        if !self.local {
            return Err(Error::new(ErrorKind::Unsupported, request.operation(), hook::OF_ANOTHER_MACHINE));
        }
        self.change_within(request, limit).await
    }
}
