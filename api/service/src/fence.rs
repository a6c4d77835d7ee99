//! A hypervisor that is asked for changes only by a process that is on record: work that began before other processes
//! took this one for dead stops before its next call, for they have gone on with it.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use hotslot_driver::device::HostDevice;
use hotslot_driver::hypervisor::{
    DetachScope, DomainInfo, DomainView, Error, ErrorKind, Event, HostInfo, Hypervisor, OverdueCall, Scope,
};
use hotslot_driver::mdev::{Mdev, MdevType};
use hotslot_driver::pci::PciAddress;
use hotslot_store::Store;
use tokio::sync::broadcast;
use tokio::time::Instant;
use uuid::Uuid;

use crate::error;

/// How long a call waits for a database that does not answer before it is refused, and how often that is asked.
const PATIENCE: Duration = Duration::from_secs(10);
const AGAIN: Duration = Duration::from_millis(100);

/// The hypervisor of a host that several processes work on.
pub(crate) struct Fenced {
    /// The hypervisor itself.
    pub(crate) hypervisor: Arc<dyn Hypervisor>,
    /// Where it is on record which processes there are.
    pub(crate) store: Store,
}

impl Fenced {
    /// Makes sure that the running task may change something.
    async fn pass(&self, what: &str) -> Result<(), Error> {
        let Some(worker) = self.store.worker() else { return Ok(()) };
        let refused = |reason: String| Err(Error::new(ErrorKind::Refused, what, reason));
        let until = Instant::now() + PATIENCE;
        loop {
            match self.store.locks().is(Arc::clone(&worker)).await {
                Ok(true) => return Ok(()),
                Ok(false) => return refused(error::Error::TakenOver.to_string()),
                Err(error) if Instant::now() > until => {
                    return refused(format!(
                        "it was not asked for, for the database does not say whether this process may: {error}"
                    ));
                }
                Err(_) => tokio::time::sleep(AGAIN).await,
            }
        }
    }
}

#[async_trait]
impl Hypervisor for Fenced {
    async fn host(&self) -> Result<HostInfo, Error> {
        self.hypervisor.host().await
    }

    async fn node_sockets(&self) -> Result<Option<BTreeMap<u32, u32>>, Error> {
        self.hypervisor.node_sockets().await
    }

    async fn devices(&self) -> Result<Vec<HostDevice>, Error> {
        self.hypervisor.devices().await
    }

    async fn device(&self, address: PciAddress) -> Result<HostDevice, Error> {
        self.hypervisor.device(address).await
    }

    async fn node_detach(&self, address: PciAddress) -> Result<(), Error> {
        self.pass("take a function from its host driver").await?;
        self.hypervisor.node_detach(address).await
    }

    async fn node_reattach(&self, address: PciAddress) -> Result<(), Error> {
        self.pass("give a function back to its host driver").await?;
        self.hypervisor.node_reattach(address).await
    }

    async fn node_reset(&self, address: PciAddress) -> Result<(), Error> {
        self.pass("reset a function").await?;
        self.hypervisor.node_reset(address).await
    }

    async fn mdev_types(&self, parent: PciAddress) -> Result<Vec<MdevType>, Error> {
        self.hypervisor.mdev_types(parent).await
    }

    async fn mdevs(&self) -> Result<Vec<Mdev>, Error> {
        self.hypervisor.mdevs().await
    }

    async fn create_mdev(&self, parent: PciAddress, mdev_type: &str, uuid: Uuid) -> Result<Mdev, Error> {
        self.pass("make a mediated device").await?;
        self.hypervisor.create_mdev(parent, mdev_type, uuid).await
    }

    async fn destroy_mdev(&self, mdev: Uuid) -> Result<(), Error> {
        self.pass("take a mediated device away").await?;
        self.hypervisor.destroy_mdev(mdev).await
    }

    async fn domains(&self) -> Result<Vec<DomainInfo>, Error> {
        self.hypervisor.domains().await
    }

    async fn domain(&self, domain: Uuid) -> Result<DomainView, Error> {
        self.hypervisor.domain(domain).await
    }

    async fn attach(&self, domain: Uuid, xml: &str, scope: Scope) -> Result<(), Error> {
        self.pass("attach a device").await?;
        self.hypervisor.attach(domain, xml, scope).await
    }

    async fn detach(&self, domain: Uuid, alias: &str, scope: DetachScope) -> Result<(), Error> {
        self.pass("detach a device").await?;
        self.hypervisor.detach(domain, alias, scope).await
    }

    async fn agent(&self, domain: Uuid, command: &str, timeout: Duration) -> Result<String, Error> {
        self.pass("ask the agent of a guest").await?;
        self.hypervisor.agent(domain, command, timeout).await
    }

    async fn monitor(&self, domain: Uuid, command: &str) -> Result<String, Error> {
        self.hypervisor.monitor(domain, command).await
    }

    fn events(&self) -> broadcast::Receiver<Event> {
        self.hypervisor.events()
    }

    fn connection(&self) -> Result<(), String> {
        self.hypervisor.connection()
    }

    fn overdue(&self) -> Vec<OverdueCall> {
        self.hypervisor.overdue()
    }

    fn sysroot(&self) -> Option<&Path> {
        self.hypervisor.sysroot()
    }

    fn is_remote(&self) -> bool {
        self.hypervisor.is_remote()
    }
}
