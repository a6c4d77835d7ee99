//! The number of VFs of a PF, for which libvirt has no call: the file of the machine is changed by the helper, or by this
//! process when it is root's.

use std::time::Instant;

use super::Libvirt;
use super::error::Fault;
use crate::calls_out::Subject;
use crate::helper;
use crate::hypervisor::{Error, ErrorKind};
use crate::local::OF_ANOTHER_MACHINE;
use crate::pci::PciAddress;

impl Libvirt {
    /// Changes the number of VFs of a PF. A driver may take long, so that a change that has not ended at the time limit is
    /// listed as overdue.
    pub(super) async fn change_vf_count(&self, pf: PciAddress, from: u32, to: u32) -> Result<(), Error> {
        let request = helper::Request::SetVfCount { address: pf, from, to };
        let operation = request.operation();
        if !self.local {
            return Err(Error::new(ErrorKind::Unsupported, operation, OF_ANOTHER_MACHINE));
        }
        let changing = tokio::task::spawn_blocking(move || {
            helper::change(&request).map_err(|error| Fault { kind: error.kind, message: error.message })
        });
        let subject = Subject::Function(pf);
        self.calls.answer(changing, self.options.change_limit, Instant::now(), operation, subject).await
    }
}
