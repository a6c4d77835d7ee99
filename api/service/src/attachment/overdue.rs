//! What calls that were given up at their limit, and have not come back, may still change: it stays in transition until
//! then, and the drift shows it.

use std::collections::BTreeSet;

use hotslot_driver::hypervisor::OverdueCall;
use hotslot_driver::pci::PciAddress;
use hotslot_model::assignment::{Action, Attachment, Finding, Kind, State, Witness};
use hotslot_model::id::{AttachmentId, DeviceId, ServerId};

use crate::error::Error;
use crate::host::Host;
use crate::service::Service;

impl Service {
    /// The oldest call that is out and may change what becomes of an attachment: its server, or its device on the host.
    pub(super) fn stuck_on(&self, host: &Host, row: &Attachment) -> Option<OverdueCall> {
        let at_device = || host.stuck_at(self.store.device(row.device)?.facts.address);
        host.stuck(row.server).or_else(at_device)
    }

    /// What is in transition on a host while a call is out that may change it.
    ///
    /// # Errors
    /// The database's.
    pub(super) async fn under_calls(&self, host: &Host) -> Result<Vec<Finding>, Error> {
        let out = host.hypervisor.overdue();
        if out.is_empty() {
            return Ok(Vec::new());
        }
        let address_of = |id: DeviceId| self.store.device(id).map(|device| device.facts.address);
        let call_on = |server: Option<ServerId>, address: Option<PciAddress>| {
            let is_on = |call: &&OverdueCall| {
                call.domain.is_some() && call.domain == server.map(|server| server.0)
                    || call.address.is_some() && call.address == address
            };
            out.iter().find(is_on)
        };
        let mut findings = Vec::new();
        for row in self.store.attachments().await?.iter().filter(|row| row.hypervisor == host.row.id) {
            let address = address_of(row.device);
            if row.state != State::Attached
                && let Some(call) = call_on(Some(row.server), address)
            {
                findings.push(finding(call, row.state, Some(row.server), Some(row.id), address));
            }
        }
        for row in self.store.mdevs().await?.iter().filter(|row| row.hypervisor == host.row.id) {
            let address = address_of(row.parent);
            if row.state != State::Attached
                && let Some(call) = call_on(Some(row.server), address)
            {
                findings.push(finding(call, row.state, Some(row.server), Some(row.id), address));
            }
        }
        for row in self.store.bindings().await?.iter().filter(|row| row.hypervisor == host.row.id) {
            let address = address_of(row.device);
            if row.state != State::Attached
                && let Some(call) = call_on(None, address)
            {
                findings.push(finding(call, row.state, None, None, address));
            }
        }
        Ok(findings)
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
        let attachments = self.store.attachments().await?;
        let mdevs = self.store.mdevs().await?;
        let attached = attachments.iter().filter(|row| is_one(row.device)).map(|row| row.server);
        let in_parts = mdevs.iter().filter(|row| is_one(row.parent)).map(|row| row.server);
        Ok(attached.chain(in_parts).collect())
    }
}

fn finding(
    call: &OverdueCall,
    state: State,
    server: Option<ServerId>,
    attachment: Option<AttachmentId>,
    address: Option<PciAddress>,
) -> Finding {
    let record = match server {
        Some(_) => state.to_string(),
        None => format!("{state}: for the host"),
    };
    Finding {
        kind: Kind::Unfinished,
        server: server.map(|server| (server, None)),
        attachment,
        address,
        said: vec![(Witness::Record, record), (Witness::Host, call.to_string())],
        action: Action::Tell("nothing while that call is out; it is settled when it comes back".into()),
    }
}
