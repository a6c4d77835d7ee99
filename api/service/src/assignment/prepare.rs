//! Root ports that a server gets with its next start, so that devices can be attached to it later.

use hotslot_driver::domain::DomainXml;
use hotslot_driver::hotplug::{MOST_PORTS, add_root_ports, has_express_root, root_ports};
use hotslot_driver::topology::Topology;
use hotslot_model::event::{self, EventKind, What};
use hotslot_model::host_mode::HostChange;
use hotslot_model::id::ServerId;
use hotslot_store::actor;
use serde_json::json;

use super::assignments::Assignments;
use crate::error::Error;

/// What a request for root ports does, or would do.
#[derive(Debug)]
pub struct Prepared {
    /// The lines that are added to the domain's definition.
    pub lines: Vec<String>,
    /// The number of free hot-plug ports in the definition before the request.
    pub free_before: usize,
    /// The number of free hot-plug ports in the definition now.
    pub free: usize,
    /// Whether the server runs, so that it has the ports only after it was shut off and started.
    pub is_running: bool,
    /// Why the host admits no such change now; only a dry run is answered then.
    pub refused: Option<Error>,
}

impl Assignments {
    /// Adds root ports to the definition of a server. With `dry_run` it only says what it would add.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a number that is out of range; [`Error::NoServer`]; [`Error::Conflict`] when the server has
    /// no definition or no PCI Express root; [`Error::Restricted`], but for a dry run; errors of the hypervisor.
    pub async fn add_ports(&self, server: ServerId, count: u8, dry_run: bool) -> Result<Prepared, Error> {
        if !(1..=MOST_PORTS).contains(&count) {
            return Err(Error::Invalid(format!("invalid count {count}: expected 1 to {MOST_PORTS} ports")));
        }
        let (host, _) = self.hosts.find(server).await?;
        let refused = match self.hosts.expect_open(&host, HostChange::Other).await {
            // A dry run changes nothing, so that it is answered.
            Err(refused @ Error::Restricted { .. }) if dry_run => Some(refused),
            open => open.map(|()| None)?,
        };
        let _turn = match dry_run {
            true => None,
            false => Some(self.turn_at(&host, server, HostChange::Other).await?),
        };
        if let Some(call) = host.overdue_call(server) {
            return Err(Error::Conflict(format!(
                "no port was added to server {server}: {call}; try again when that call has returned"
            )));
        }
        let view = host.server(server).await?.ok_or(Error::NoServer(server))?;
        let definition = view.persistent.as_ref().ok_or_else(|| {
            Error::Conflict(format!(
                "server {server} has no definition (it is transient), so it can have no ports at its next start; define \
                 it first (virsh define)"
            ))
        })?;
        if !has_express_root(definition) {
            return Err(Error::Conflict(format!(
                "server {server} has a conventional PCI root bus, on which root ports cannot be; its {} free slots are \
                 hot-pluggable themselves",
                free_ports(definition)
            )));
        }
        let (free_before, is_running) = (free_ports(definition), view.live.is_some());
        let lines = root_ports(definition, count);
        if lines.len() < usize::from(count) {
            return Err(Error::Conflict(format!(
                "server {server} has room for {} more PCI controllers, which libvirt numbers up to 255; add fewer ports",
                lines.len()
            )));
        }
        if dry_run {
            let free = free_before + lines.len();
            return Ok(Prepared { lines, free_before, free, is_running, refused });
        }
        let added = add_root_ports(host.hypervisor.as_ref(), server.0, &lines).await;
        let number = added.as_ref().map_or_else(|(added, _)| *added, |()| lines.len());
        if number > 0 {
            tracing::info!(host = %host.name, server.id = %server, "added {number} root ports to server {server}");
            let changed = event::of_kind(EventKind::ServerPorts, None, Some(json!({ "added": number })));
            let what = What { server: Some(server), hypervisor: Some(host.row.id), ..changed };
            self.store.record(vec![(actor::current(), what)]).await?;
        }
        if let Err((added, error)) = added {
            let context = format!(
                "{added} of {count} ports were added to the definition of server {server}; look at its definition before \
                 you try again"
            );
            return Err(host.error(context)(error));
        }
        let view = host.server(server).await?.ok_or(Error::NoServer(server))?;
        let free = view.persistent.as_ref().map_or(free_before, free_ports);
        Ok(Prepared { lines, free_before, free, is_running, refused })
    }
}

/// Returns the number of free hot-plug ports for PCI Express devices.
fn free_ports(document: &DomainXml) -> usize {
    Topology::of(document).free_ports().count_for(true)
}
