//! What the caller of a request may do under the rule of its route, for handlers that read what belongs to projects.

use std::sync::Arc;

use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use futures_util::future::join_all;
use hotslot_driver::hypervisor::DomainView;
use hotslot_model::id::{HypervisorId, ServerId};
use hotslot_model::identity::{Caller, Policy, Refusal, Target};
use hotslot_service::error::Error;
use hotslot_service::host::Host;
use hotslot_service::hosts::Hosts;

use super::error::Fault;
use super::state::App;

/// The caller of a request, and the rule of its route. `policy.rs` puts it into the request.
#[derive(Debug, Clone)]
pub(super) struct Permit {
    caller: Caller,
    policy: Arc<Policy>,
    rule: &'static str,
}

impl Permit {
    pub(super) fn new(caller: Caller, policy: Arc<Policy>, rule: &'static str) -> Self {
        Self { caller, policy, rule }
    }

    /// Whether the caller may do it for every project, and for what belongs to no project.
    pub(super) fn covers_all(&self) -> bool {
        self.policy.allows_all(&self.caller, self.rule)
    }

    /// Whether the caller may do it to a server.
    pub(super) fn covers(&self, server: &DomainView) -> bool {
        self.policy.allows(&self.caller, self.rule, server.ownership().project())
    }

    /// Checks that the caller may do it to what belongs to a project.
    ///
    /// # Errors
    /// [`Refusal`] when the rule does not admit the caller.
    pub(super) fn require(&self, project: &str) -> Result<(), Refusal> {
        self.policy.require(&self.caller, self.rule, Target::Of(Some(project)))
    }

    /// Checks that another rule admits the caller too, for what belongs to no project.
    ///
    /// # Errors
    /// [`Refusal`] when the rule does not admit the caller.
    pub(super) fn require_for_all(&self, rule: &'static str) -> Result<(), Refusal> {
        self.policy.require(&self.caller, rule, Target::Of(None))
    }

    /// Whether the caller may see names and addresses of hosts, and who else holds devices.
    pub(super) fn sees_hosts(&self) -> bool {
        self.caller.sees_host_details()
    }

    /// Whether the caller may choose what separates the networks of projects: VLANs and MAC addresses. In OpenStack,
    /// Neutron chooses them and Nova passes them on.
    pub(super) fn chooses_networks(&self) -> bool {
        self.caller.is_service_or_admin()
    }

    /// Finds a server that the caller may use. A server of another project is not found, as if it did not exist.
    ///
    /// # Errors
    /// As [`Hosts::find`].
    pub(super) async fn server(
        &self,
        hosts: &Hosts,
        server: ServerId,
    ) -> Result<(Arc<Host>, DomainView), Error> {
        hosts.find_where(server, |view| self.covers(view)).await
    }

    /// Checks that the caller may use a server. A caller who may use all servers may name one that no host has, because
    /// there may be records of it. Returns the project that owns the server, where the permission depends on it.
    ///
    /// # Errors
    /// As [`Hosts::find`].
    pub(super) async fn check(&self, hosts: &Hosts, server: ServerId) -> Result<Option<String>, Error> {
        if self.covers_all() {
            return Ok(None);
        }
        let (_, view) = self.server(hosts, server).await?;
        Ok(view.ownership().project().map(str::to_owned))
    }

    /// Keeps the servers that the caller may use. A server is left out when its host does not tell in time whose it is.
    pub(super) async fn keep<T>(
        &self,
        hosts: &Hosts,
        all: Vec<T>,
        place: impl Fn(&T) -> (HypervisorId, ServerId),
    ) -> Vec<T> {
        if self.covers_all() {
            return all;
        }
        let mut places: Vec<_> = all.iter().map(&place).collect();
        places.sort_unstable();
        places.dedup();
        let owned = places.iter().map(async |(host, server)| {
            let host = hosts.host(*host)?;
            let view = host.soon(host.hypervisor.domain(server.0)).await.ok()?;
            self.covers(&view).then_some((host.row.id, *server))
        });
        let mut owned: Vec<_> = join_all(owned).await.into_iter().flatten().collect();
        owned.sort_unstable();
        all.into_iter().filter(|one| owned.binary_search(&place(one)).is_ok()).collect()
    }
}

impl FromRequestParts<App> for Permit {
    type Rejection = Fault;

    async fn from_request_parts(parts: &mut Parts, _: &App) -> Result<Self, Fault> {
        let permit = parts.extensions.get::<Self>().cloned();
        permit.ok_or_else(|| Error::Internal("the route has no rule".to_owned()).into())
    }
}
