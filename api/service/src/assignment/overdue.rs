//! Assignments that overdue calls may still change. A call is overdue when it was given up at its time limit and has
//! not returned. Until it returns, the assignments stay in transition, and drift reports them.

use std::collections::BTreeSet;

use hotslot_driver::hypervisor::OverdueCall;
use hotslot_driver::pci::PciAddress;
use hotslot_model::assignment::{Action, Assignment, Finding, Kind, Source, State};
use hotslot_model::id::{DeviceId, ServerId};

use super::assignments::Assignments;
use crate::error::Error;
use crate::host::Host;

impl Assignments {
    /// Returns the oldest overdue call that may still change an assignment: a call for its server, or for its function
    /// or parent.
    pub(crate) fn call_out(
        &self,
        host: &Host,
        server: Option<ServerId>,
        device: DeviceId,
    ) -> Option<OverdueCall> {
        let of_server = server.and_then(|server| host.overdue_call(server));
        of_server.or_else(|| host.overdue_call_at(self.store.device(device)?.facts.address))
    }

    /// Returns a finding for each assignment in transition that an overdue call may still change.
    ///
    /// # Errors
    /// Errors of the database.
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

    /// Returns the servers with attachments or mediated devices of some functions of a host.
    ///
    /// # Errors
    /// Errors of the database.
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
        None => format!("{}: for the host itself", row.state()),
    };
    Finding {
        kind: Kind::Unfinished,
        server: row.server().map(|server| (server, None)),
        attachment: row.server().map(|_| row.id()),
        address,
        observations: vec![(Source::Record, record), (Source::Host, call.to_string())],
        action: Action::Manual("nothing until that call returns; then the record is updated".into()),
    }
}
