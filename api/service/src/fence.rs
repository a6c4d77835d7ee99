//! A hypervisor that is asked for changes only by a process that is on record: work that began before other processes
//! took this one for dead stops before its next call, for they have gone on with it.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Weak};
use std::time::Duration;

use async_trait::async_trait;
use hotslot_driver::device::HostDevice;
use hotslot_driver::hypervisor::{
    DetachScope, DomainInfo, DomainView, Error, ErrorKind, Event, HostInfo, Hypervisor, OverdueCall, Scope,
};
use hotslot_driver::mdev::{Mdev, MdevType};
use hotslot_driver::pci::PciAddress;
use hotslot_model::id::{HypervisorId, ServerId};
use hotslot_model::overdue::OverdueElsewhere;
use hotslot_store::{Store, actor};
use tokio::sync::{Mutex, broadcast};
use tokio::time::Instant;
use uuid::Uuid;

use crate::error;

/// How long a call waits for a database that does not answer before it is refused, and how often that is asked.
const PATIENCE: Duration = Duration::from_secs(10);
const AGAIN: Duration = Duration::from_millis(100);

/// The hypervisor of a host that several processes work on.
///
/// The other processes are told which calls of this one have not returned, before whoever gave one up goes on; and its
/// own overdue calls are those of the others too: what such a call may still change is left alone by all of them.
pub(crate) struct Fenced {
    /// The hypervisor itself.
    hypervisor: Arc<dyn Hypervisor>,
    /// Where it is on record which processes there are.
    store: Store,
    /// The host's row.
    host: HypervisorId,
    /// What the others were last told of calls that have not returned, and as which process.
    told: Mutex<(Option<Arc<str>>, Vec<Overdue>)>,
}

/// What makes a call the same from one look to the next.
type Overdue = (String, Option<Uuid>, Option<PciAddress>);

impl Fenced {
    /// The hypervisor of a host, for as long as the service runs.
    pub(crate) fn new(hypervisor: Arc<dyn Hypervisor>, store: Store, host: HypervisorId) -> Arc<Self> {
        let fenced = Arc::new(Self { hypervisor, store, host, told: Mutex::default() });
        tokio::spawn(tell(Arc::downgrade(&fenced)));
        fenced
    }

    /// Tells the other processes which calls have not returned, when that is not what they were told.
    async fn tell(&self) -> Result<(), hotslot_store::Error> {
        let mut told = self.told.lock().await;
        let calls = self.hypervisor.overdue();
        let now = (
            self.store.new_worker(),
            calls.iter().map(|call| (call.operation.clone(), call.domain, call.address)).collect(),
        );
        if *told == now || told.1.is_empty() && calls.is_empty() {
            return Ok(());
        }
        let row = |call: &OverdueCall| OverdueElsewhere {
            hypervisor: self.host,
            operation: call.operation.clone(),
            server: call.domain.map(ServerId),
            address: call.address,
            since: hotslot_store::now() - call.elapsed.as_millis() as i64,
        };
        let rows: Vec<_> = calls.iter().map(row).collect();
        // As the process that this one is now: it is told whoever gave the call up.
        actor::as_process(None, self.store.tell_overdue(self.host, &rows)).await?;
        *told = now;
        Ok(())
    }

    /// Passes on what a call that changes something answered. One that was given up is known to the other processes by
    /// then, and so is what it may still change.
    async fn returned<T>(&self, answer: Result<T, Error>) -> Result<T, Error> {
        if answer.as_ref().is_err_and(|error| error.kind.leaves_it_open())
            && let Err(error) = self.tell().await
        {
            tracing::error!(%error, "other processes do not know yet of a call that has not returned");
        }
        answer
    }

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

/// Keeps what the other processes are told of a host's calls as it is.
async fn tell(fenced: Weak<Fenced>) {
    loop {
        tokio::time::sleep(AGAIN).await;
        let Some(fenced) = fenced.upgrade() else { return };
        if let Err(error) = fenced.tell().await {
            tracing::debug!(%error, "what has not returned is told to other processes later");
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
        self.returned(self.hypervisor.node_detach(address).await).await
    }

    async fn node_reattach(&self, address: PciAddress) -> Result<(), Error> {
        self.pass("give a function back to its host driver").await?;
        self.returned(self.hypervisor.node_reattach(address).await).await
    }

    async fn node_reset(&self, address: PciAddress) -> Result<(), Error> {
        self.pass("reset a function").await?;
        self.returned(self.hypervisor.node_reset(address).await).await
    }

    async fn mdev_types(&self, parent: PciAddress) -> Result<Vec<MdevType>, Error> {
        self.hypervisor.mdev_types(parent).await
    }

    async fn mdevs(&self) -> Result<Vec<Mdev>, Error> {
        self.hypervisor.mdevs().await
    }

    async fn create_mdev(&self, parent: PciAddress, mdev_type: &str, uuid: Uuid) -> Result<Mdev, Error> {
        self.pass("make a mediated device").await?;
        self.returned(self.hypervisor.create_mdev(parent, mdev_type, uuid).await).await
    }

    async fn destroy_mdev(&self, mdev: Uuid) -> Result<(), Error> {
        self.pass("take a mediated device away").await?;
        self.returned(self.hypervisor.destroy_mdev(mdev).await).await
    }

    async fn domains(&self) -> Result<Vec<DomainInfo>, Error> {
        self.hypervisor.domains().await
    }

    async fn domain(&self, domain: Uuid) -> Result<DomainView, Error> {
        self.hypervisor.domain(domain).await
    }

    async fn attach(&self, domain: Uuid, xml: &str, scope: Scope) -> Result<(), Error> {
        self.pass("attach a device").await?;
        self.returned(self.hypervisor.attach(domain, xml, scope).await).await
    }

    async fn detach(&self, domain: Uuid, alias: &str, scope: DetachScope) -> Result<(), Error> {
        self.pass("detach a device").await?;
        self.returned(self.hypervisor.detach(domain, alias, scope).await).await
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
        let mut calls = self.hypervisor.overdue();
        let elsewhere =
            self.store.overdue_elsewhere().into_iter().filter(|call| call.hypervisor == self.host);
        calls.extend(elsewhere.map(|call| OverdueCall {
            operation: call.operation,
            domain: call.server.map(|server| server.0),
            address: call.address,
            elapsed: Duration::from_millis((hotslot_store::now() - call.since).unsigned_abs()),
        }));
        calls
    }

    fn sysroot(&self) -> Option<&Path> {
        self.hypervisor.sysroot()
    }

    fn is_remote(&self) -> bool {
        self.hypervisor.is_remote()
    }
}
