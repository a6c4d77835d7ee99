//! The service as one value, which the handlers of requests get.

use std::collections::HashMap;
use std::sync::{Arc, MutexGuard, PoisonError, RwLock};

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use hotslot_driver::domain::UserAlias;
use hotslot_driver::hotplug::DetachLimits;
use hotslot_driver::hypervisor::DomainView;
use hotslot_driver::xml::hostdev::{HostdevSpec, InterfaceSpec, Templates};
use hotslot_model::assignment::Attachment;
use hotslot_model::device::Device;
use hotslot_model::id::{ArqId, HypervisorId, ServerId};
use hotslot_model::rules::Rules;
use hotslot_store::{self, Store, actor};
use tokio::sync::{Mutex, OwnedRwLockReadGuard, watch};

use crate::config::{Config, Flavor};
use crate::error::Error;
use crate::feed::Feed;
use crate::host::Host;
use crate::locks::{InFlight, KeyedMutex};
use crate::webhook::Webhook;

/// The running service.
pub struct Service {
    /// The configuration.
    pub config: Config,
    /// The records.
    pub store: Store,
    /// The configured hosts.
    pub hosts: Vec<Arc<Host>>,
    /// The rules in force, see [`Self::rules`].
    pub(crate) rules: RwLock<Arc<Rules>>,
    /// Held during a change of the rules.
    pub(crate) changing: Mutex<()>,
    /// The templates of the hostdev documents.
    pub templates: Templates,
    /// The attachments and mediated devices that a task works on; reconciliation skips them.
    pub(crate) in_flight: Arc<InFlight>,
    /// The assignments whose addresses are being verified.
    pub(crate) verifying: Arc<InFlight>,
    /// The accelerator requests that a task works on.
    pub(crate) binding: Arc<InFlight<ArqId>>,
    /// Locks by name: attaches to one server, and requests with the same idempotency key and path, go one after
    /// another.
    pub turns: KeyedMutex,
    /// The host on which each server was last found.
    pub(crate) homes: std::sync::Mutex<HashMap<ServerId, HypervisorId>>,
    /// The configured webhooks.
    pub webhooks: Vec<Arc<Webhook>>,
    /// The events for clients that follow them.
    pub feed: Feed,
    /// Whether the service is about to end.
    pub(crate) stopping: watch::Sender<bool>,
    /// Read-locked by each request that may change something, until it is done.
    pub(crate) requests: Arc<tokio::sync::RwLock<()>>,
}

impl Service {
    /// Finds a server and the host that has it.
    ///
    /// # Errors
    /// [`Error::NoServer`] when no host has it; the error of a host that might have it but cannot be read, such as
    /// [`Error::HostAway`].
    pub async fn find(&self, server: ServerId) -> Result<(Arc<Host>, DomainView), Error> {
        // Ask the last known host first, so that a slow host only delays requests for its own servers.
        let home = self.homes().get(&server).and_then(|id| self.host(*id));
        let mut away = None;
        if let Some(host) = home {
            match host.server(server).await {
                Ok(Some(view)) => return Ok((Arc::clone(host), view)),
                Ok(None) => drop(self.homes().remove(&server)),
                Err(error) => away = Some(error),
            }
        }
        let others = self.hosts.iter().filter(|host| home.is_none_or(|home| !Arc::ptr_eq(home, host)));
        let mut asked: FuturesUnordered<_> =
            others.map(|host| async move { (host, host.server(server).await) }).collect();
        while let Some((host, answer)) = asked.next().await {
            match answer {
                Ok(Some(view)) => {
                    self.homes().insert(server, host.row.id);
                    return Ok((Arc::clone(host), view));
                }
                Ok(None) => {}
                Err(error) => away = Some(error),
            }
        }
        Err(away.unwrap_or(Error::NoServer(server)))
    }

    fn homes(&self) -> MutexGuard<'_, HashMap<ServerId, HypervisorId>> {
        self.homes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Announces that the service is about to end, so that background tasks and clients that follow events stop.
    pub fn stop(&self) {
        self.stopping.send_replace(true);
    }

    /// Does work under a process id. Once another process has taken over the work of that id, it can change nothing
    /// more.
    pub async fn as_process<F: Future>(&self, worker: Option<Arc<str>>, work: F) -> F::Output {
        actor::as_process(worker, work).await
    }

    /// Registers a request that may change something. The request is done when the returned guard is dropped.
    pub async fn begin_request(&self) -> OwnedRwLockReadGuard<()> {
        Arc::clone(&self.requests).read_owned().await
    }

    /// Waits until all requests that may change something are done, including those whose clients have disconnected.
    pub async fn requests_done(&self) {
        drop(self.requests.write().await);
    }

    /// Returns a receiver that becomes true when the service is about to end.
    pub fn stopping(&self) -> watch::Receiver<bool> {
        self.stopping.subscribe()
    }

    /// Waits until the service is about to end.
    pub async fn ending(&self) {
        // The sender belongs to the service, so it is not dropped before.
        let _ = self.stopping().wait_for(|stop| *stop).await;
    }

    /// Returns the configured host of a record.
    pub fn host(&self, id: HypervisorId) -> Option<&Arc<Host>> {
        self.hosts.iter().find(|host| host.row.id == id)
    }

    /// Finds a flavor by its id or name.
    pub fn flavor(&self, id: &str) -> Option<&Flavor> {
        self.config.flavor.iter().find(|flavor| flavor.id() == id || flavor.name == id)
    }

    /// Returns the configured limits of unplugging a device.
    pub fn detach_limits(&self) -> DetachLimits {
        DetachLimits {
            attempts: self.config.detach.attempts,
            timeout: self.config.detach.timeout.0,
            total: None,
        }
    }
}

/// Returns the hostdev document of an attachment.
pub(crate) fn hostdev_spec(attachment: &Attachment, device: &Device) -> HostdevSpec {
    HostdevSpec {
        source: device.facts.address,
        alias: UserAlias(attachment.id.0),
        managed: attachment.managed,
        rom_bar: None,
        guest: None,
        interface: attachment
            .network
            .as_ref()
            .map(|network| InterfaceSpec { mac: network.mac, vlan: network.vlan }),
    }
}
