//! The project that owns a server, which is kept in the metadata of its domain.

use hotslot_driver::ownership::{self, Claim, Ownership};
use hotslot_model::event::{self, EventKind, What};
use hotslot_model::host_mode::HostChange;
use hotslot_model::id::ServerId;
use hotslot_store::actor;
use serde_json::json;

use super::assignments::Assignments;
use crate::error::Error;

impl Assignments {
    /// Makes a project the owner of a server, or removes the owner that hotslot has set. Returns whose the server is then.
    /// Attaches that wait for the server are checked against the new owner. What is attached stays attached.
    ///
    /// # Errors
    /// [`Error::Invalid`] for an id that no project can have; [`Error::NoServer`]; [`Error::Conflict`] when Nova says
    /// whose the server is; [`Error::Restricted`]; errors of the hypervisor.
    pub async fn set_owner(&self, server: ServerId, project: Option<&str>) -> Result<Ownership, Error> {
        if let Some(Err(reason)) = project.map(ownership::check) {
            return Err(Error::Invalid(format!(
                "project_id: {reason}; send the id of a project, as `openstack project list` shows it"
            )));
        }
        let (host, _) = self.hosts.find(server).await?;
        self.hosts.expect_open(&host, HostChange::Other).await?;
        let _turn = self.turn_at(&host, server, HostChange::Other).await?;
        if let Some(call) = host.overdue_call(server) {
            return Err(Error::Conflict(format!(
                "the owner of server {server} was not set: {call}; try again when that call has returned"
            )));
        }
        let view = host.server(server).await?.ok_or(Error::NoServer(server))?;
        let was = view.ownership();
        // Removing hotslot's metadata is permitted, because it may contradict Nova's.
        if project.is_some() && was.nova != Claim::Absent {
            return Err(Error::Conflict(format!(
                "server {server} was created by Nova, whose metadata says whose it is ({was}); hotslot does not override \
                 it: change the project in Nova"
            )));
        }
        let context =
            format!("setting the owner of server {server} failed; GET its pci_owner before you try again");
        host.hypervisor.set_owner(server.0, project).await.map_err(host.error(context))?;
        let view = host.server(server).await?.ok_or(Error::NoServer(server))?;
        let now = view.ownership();
        if project.is_some() && now.project() != project {
            return Err(Error::Conflict(format!(
                "server {server} belongs to {now} although the owner was set; another program changes its metadata"
            )));
        }
        tracing::info!(server.id = %server, "server {server} belongs to {now} now; before: {was}");
        if now != was {
            let project = |ownership: &Ownership| Some(json!(ownership.project()));
            let changed = event::of_kind(EventKind::ServerOwner, project(&was), project(&now));
            let what = What { server: Some(server), hypervisor: Some(host.row.id), ..changed };
            self.store.record(vec![(actor::current(), what)]).await?;
        }
        Ok(now)
    }
}
