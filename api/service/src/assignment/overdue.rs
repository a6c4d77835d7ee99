//! What calls that were given up at their limit, and have not come back, may still change: it stays in transition until
//! then, and the drift shows it.

use std::collections::BTreeSet;

use hotslot_driver::hypervisor::OverdueCall;
use hotslot_driver::pci::PciAddress;
use hotslot_model::assignment::{Action, Assignment, Finding, Kind, Source, State};
use hotslot_model::id::{DeviceId, ServerId};

use super::assignments::Assignments;
use crate::error::Error;
use crate::host::Host;

impl Assignments {
    /// The oldest call that is out and may change what becomes of something: by its server, or by the function that it is,
    /// or that makes it.
    pub(crate) fn call_out(
        &self,
        host: &Host,
        server: Option<ServerId>,
        device: DeviceId,
    ) -> Option<OverdueCall> {
        let of_server = server.and_then(|server| host.stuck(server));
        of_server.or_else(|| host.stuck_at(self.store.device(device)?.facts.address))
    }

    /// What is in transition on a host while a call is out that may change it.
    ///
    /// # Errors
    /// The database's.
    pub(super) async fn under_calls(&self, host: &Host) -> Result<Vec<Finding>, Error> {
        if host.hypervisor.overdue().is_empty() {
            return Ok(Vec::new());
        }
        let mut rows = self.store.assignments().await?;
        rows.retain(|row| row.hypervisor() == host.row.id && row.state() != State::Attached);
        let under_call = |row: &Assignment| {
            let call = self.call_out(host, row.server(), row.device())?;
            let address = self.store.device(row.device()).map(|device| device.facts.address);
            Some(finding(&call, row, address))
        };
        Ok(rows.iter().filter_map(under_call).collect())
    }

    /// The servers of a host whose attachments and mediated devices are of some of its functions.
    ///
    /// # Errors
    /// The database's.
    pub(super) async fn servers_with(
        &self,
        host: &Host,
        functions: &BTreeSet<PciAddress>,
    ) -> Result<BTreeSet<ServerId>, Error> {
        let is_one = |id: DeviceId| {
            self.store.device(id).is_some_and(|device| {
                device.hypervisor == host.row.id && functions.contains(&device.facts.address)
            })
        };
        let rows = self.store.assignments().await?;
        Ok(rows.iter().filter(|row| is_one(row.device())).filter_map(Assignment::server).collect())
    }
}

fn finding(call: &OverdueCall, row: &Assignment, address: Option<PciAddress>) -> Finding {
    let record = match row.server() {
        Some(_) => row.state().to_string(),
        None => format!("{}: for the host", row.state()),
    };
    Finding {
        kind: Kind::Unfinished,
        server: row.server().map(|server| (server, None)),
        attachment: row.server().map(|_| row.id()),
        address,
        said: vec![(Source::Record, record), (Source::Host, call.to_string())],
        action: Action::Manual("nothing while that call is out; it is settled when it comes back".into()),
    }
}
