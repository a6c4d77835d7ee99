//! What calls that were given up at their limit, and have not come back, may still change: it stays in transition until
//! then, and the drift shows it.

use std::collections::BTreeSet;

use hotslot_driver::hypervisor::OverdueCall;
use hotslot_driver::pci::PciAddress;
use hotslot_model::assignment::{Action, Finding, Kind, Source, State};
use hotslot_model::id::{AttachmentId, DeviceId, ServerId};

use crate::error::Error;
use crate::host::Host;
use crate::service::Service;

impl Service {
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
        let mut findings = Vec::new();
        let mut look =
            |state: State, server: Option<ServerId>, id: Option<AttachmentId>, device: DeviceId| {
                if state != State::Attached
                    && let Some(call) = self.call_out(host, server, device)
                {
                    let address = self.store.device(device).map(|device| device.facts.address);
                    findings.push(finding(&call, state, server, id, address));
                }
            };
        for row in self.store.attachments().await?.iter().filter(|row| row.hypervisor == host.row.id) {
            look(row.state, Some(row.server), Some(row.id), row.device);
        }
        for row in self.store.mdevs().await?.iter().filter(|row| row.hypervisor == host.row.id) {
            look(row.state, Some(row.server), Some(row.id), row.parent);
        }
        for row in self.store.bindings().await?.iter().filter(|row| row.hypervisor == host.row.id) {
            look(row.state, None, None, row.device);
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
        said: vec![(Source::Record, record), (Source::Host, call.to_string())],
        action: Action::Manual("nothing while that call is out; it is settled when it comes back".into()),
    }
}
