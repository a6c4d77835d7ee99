//! The service as one value: what handlers are given.

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
    /// Its configuration.
    pub config: Config,
    /// Its records.
    pub store: Store,
    /// Its hosts.
    pub hosts: Vec<Arc<Host>>,
    /// Which devices may be given away, and by which names: [`Self::rules`].
    pub(crate) rules: RwLock<Arc<Rules>>,
    /// Changes of the rules go in turn.
    pub(crate) changing: Mutex<()>,
    /// The hostdev documents.
    pub templates: Templates,
    /// Attachments that someone is working on: reconciliation leaves them to it.
    pub(crate) in_flight: Arc<InFlight>,
    /// Attachments whose address is being verified.
    pub(crate) verifying: Arc<InFlight>,
    /// Accelerator requests that someone works on.
    pub(crate) binding: Arc<InFlight<ArqId>>,
    /// Attaches to one server go in turn, and requests of one idempotency key and path.
    pub turns: KeyedMutex,
    /// On which host a server was found the last time.
    pub(crate) homes: std::sync::Mutex<HashMap<ServerId, HypervisorId>>,
    /// Who is told what happens.
    pub webhooks: Vec<Arc<Webhook>>,
    /// What those are given who follow the events.
    pub feed: Feed,
    /// Whether the service is about to end.
    pub(crate) stopping: watch::Sender<bool>,
    /// Held by each request that may change something until it is done.
    pub(crate) requests: Arc<tokio::sync::RwLock<()>>,
}

impl Service {
    /// The host that has a server, and the server.
    ///
    /// # Errors
    /// [`Error::NoServer`]; [`Error::HostAway`] when a host that might have it cannot be asked.
    pub async fn find(&self, server: ServerId) -> Result<(Arc<Host>, DomainView), Error> {
        // A host that is slow holds up its own servers only.
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

    /// Tells those who would follow what happens for ever that the service is about to end.
    pub fn stop(&self) {
        self.stopping.send_replace(true);
    }

    /// Does something as a process of this id: once others have taken that one for dead, it changes nothing any more.
    pub async fn as_process<F: Future>(&self, worker: Option<Arc<str>>, work: F) -> F::Output {
        actor::as_process(worker, work).await
    }

    /// A request that may change something begins; it is done when this is dropped.
    pub async fn begin_request(&self) -> OwnedRwLockReadGuard<()> {
        Arc::clone(&self.requests).read_owned().await
    }

    /// Waits until all requests that may change something are done, also those whose clients have gone.
    pub async fn requests_done(&self) {
        drop(self.requests.write().await);
    }

    /// Whether the service is about to end, as it changes.
    pub fn stopping(&self) -> watch::Receiver<bool> {
        self.stopping.subscribe()
    }

    /// Waits until the service is about to end.
    pub async fn ending(&self) {
        // The sender is the service's own.
        let _ = self.stopping().wait_for(|stop| *stop).await;
    }

    /// The host of a row.
    pub fn host(&self, id: HypervisorId) -> Option<&Arc<Host>> {
        self.hosts.iter().find(|host| host.row.id == id)
    }

    /// The flavor of an id or a name.
    pub fn flavor(&self, id: &str) -> Option<&Flavor> {
        self.config.flavor.iter().find(|flavor| flavor.id() == id || flavor.name == id)
    }

    /// How often and how long guests are asked to let a device go.
    pub fn detach_limits(&self) -> DetachLimits {
        DetachLimits {
            attempts: self.config.detach.attempts,
            timeout: self.config.detach.timeout.0,
            total: None,
        }
    }
}

/// What the domain's document says of an attachment.
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
