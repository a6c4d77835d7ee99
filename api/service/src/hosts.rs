//! The configured hosts, and on which of them a server is.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use hotslot_driver::hypervisor::DomainView;
use hotslot_model::id::{HypervisorId, ServerId};
use hotslot_store::Store;

use crate::error::Error;
use crate::host::Host;

/// The configured hosts, in the order of the configuration.
pub struct Hosts {
    all: Vec<Arc<Host>>,
    /// The host on which each server was found last.
    homes: Mutex<HashMap<ServerId, HypervisorId>>,
    /// What may be changed on each host.
    pub(crate) store: Store,
}

impl Hosts {
    pub(crate) fn new(all: Vec<Arc<Host>>, store: Store) -> Self {
        Self { all, homes: Mutex::default(), store }
    }

    /// All hosts.
    pub fn iter(&self) -> std::slice::Iter<'_, Arc<Host>> {
        self.all.iter()
    }

    /// The host of a row; `None` when it is no longer configured.
    pub fn host(&self, id: HypervisorId) -> Option<&Arc<Host>> {
        self.all.iter().find(|host| host.row.id == id)
    }

    /// Finds a server and the host that has it.
    ///
    /// # Errors
    /// [`Error::NoServer`] when no host has it; the error of a host that might have it but cannot be read, such as
    /// [`Error::HostAway`].
    pub async fn find(&self, server: ServerId) -> Result<(Arc<Host>, DomainView), Error> {
        self.find_where(server, |_| true).await
    }

    /// Finds a server that the caller may see. Whether `seen` is false or no host has the server makes no difference to
    /// the result, so that nobody learns which servers there are: the same hosts are asked.
    ///
    /// # Errors
    /// As [`find`](Self::find).
    pub async fn find_where(
        &self,
        server: ServerId,
        seen: impl Fn(&DomainView) -> bool,
    ) -> Result<(Arc<Host>, DomainView), Error> {
        // Attempt the last known host first, so that a slow host only delays requests for its own servers.
        let home = self.homes().get(&server).and_then(|id| self.host(*id));
        let mut unreachable = None;
        if let Some(host) = home {
            match host.server(server).await {
                Ok(Some(view)) if seen(&view) => return Ok((Arc::clone(host), view)),
                Ok(Some(_)) => {}
                Ok(None) => drop(self.homes().remove(&server)),
                Err(error) => unreachable = Some(error),
            }
        }
        let others = self.all.iter().filter(|host| home.is_none_or(|home| !Arc::ptr_eq(home, host)));
        let mut queries: FuturesUnordered<_> =
            others.map(|host| async move { (host, host.server(server).await) }).collect();
        while let Some((host, answer)) = queries.next().await {
            match answer {
                Ok(Some(view)) if seen(&view) => {
                    self.homes().insert(server, host.row.id);
                    return Ok((Arc::clone(host), view));
                }
                Ok(Some(_) | None) => {}
                Err(error) => unreachable = Some(error),
            }
        }
        Err(unreachable.unwrap_or(Error::NoServer(server)))
    }

    fn homes(&self) -> MutexGuard<'_, HashMap<ServerId, HypervisorId>> {
        self.homes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Finds a host by its configured name, its UUID, or the host name that it reports.
    ///
    /// # Errors
    /// [`Error::NotListed`] when none matches, and [`Error::Conflict`] with the names of the hosts when several do.
    pub(crate) async fn host_called(&self, name: &str) -> Result<&Arc<Host>, Error> {
        let called = |host: &&Arc<Host>| host.name == name || host.row.uuid.to_string() == name;
        if let Some(host) = self.all.iter().find(called) {
            return Ok(host);
        }
        let mut called = Vec::new();
        for host in self.all.iter().filter(|host| host.hypervisor.connection().is_ok()) {
            let info = host.soon(host.hypervisor.host()).await;
            called.extend(info.is_ok_and(|info| info.hostname == name).then_some(host));
        }
        let names =
            |hosts: &[&Arc<Host>]| hosts.iter().map(|host| host.name.as_str()).collect::<Vec<_>>().join(", ");
        match called[..] {
            [host] => Ok(host),
            [] => Err(Error::NotListed {
                what: format!("host {}", name.chars().take(80).collect::<String>()),
                list: "os-hypervisors",
            }),
            _ => Err(Error::Conflict(format!(
                "{} have the host name {name}; use one of these names instead",
                names(&called)
            ))),
        }
    }
}
