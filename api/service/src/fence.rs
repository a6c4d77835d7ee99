//! A wrapper around a host's hypervisor, which permits changes only to work under a process id that is on record. Once
//! other processes have taken over the work of an id, that work stops here before its next change of the host.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Weak};
use std::time::Duration;

use async_trait::async_trait;
use hotslot_driver::device::HostDevice;
use hotslot_driver::hook::{Hooks, When};
use hotslot_driver::hypervisor::{
    DetachScope, DomainInfo, DomainView, Error, ErrorKind, Event, HostInfo, Hypervisor, OverdueCall, Scope,
};
use hotslot_driver::mdev::{Mdev, MdevType};
use hotslot_driver::pci::PciAddress;
use hotslot_driver::vf::VfSettings;
use hotslot_driver::vgpu::{VgpuChange, VgpuVf};
use hotslot_model::id::{HypervisorId, ServerId};
use hotslot_model::overdue::OverdueElsewhere;
use hotslot_store::{Store, actor};
use tokio::sync::{Mutex, broadcast};
use tokio::time::Instant;
use uuid::Uuid;

use crate::error;

/// How long a call waits for an unreachable database before it is refused, and the pause between two attempts.
const PATIENCE: Duration = Duration::from_secs(10);
const AGAIN: Duration = Duration::from_millis(100);

/// The hypervisor of a host on which several processes work.
///
/// It also shares overdue calls between the processes, so that none of them touches what such a call may still change.
/// A call that is given up is recorded for the other processes before its caller continues, and the overdue calls of
/// the others count as this one's.
pub(crate) struct Fenced {
    /// The wrapped hypervisor.
    hypervisor: Arc<dyn Hypervisor>,
    /// The records, with the processes and the overdue calls.
    store: Store,
    /// The id of the host's record.
    host: HypervisorId,
    /// The process id and the overdue calls that were last recorded for the other processes.
    reported: Mutex<(Option<Arc<str>>, Vec<Overdue>)>,
}

/// The identity of an overdue call: its operation, domain and function.
type Overdue = (String, Option<Uuid>, Option<PciAddress>);

impl Fenced {
    /// Wraps the hypervisor of a host, and starts a task that shares its overdue calls.
    pub(crate) fn new(hypervisor: Arc<dyn Hypervisor>, store: Store, host: HypervisorId) -> Arc<Self> {
        let fenced = Arc::new(Self { hypervisor, store, host, reported: Mutex::default() });
        tokio::spawn(tell(Arc::downgrade(&fenced)));
        fenced
    }

    /// Records the overdue calls for the other processes, if they changed.
    async fn tell(&self) -> Result<(), hotslot_store::Error> {
        let mut reported = self.reported.lock().await;
        let calls = self.hypervisor.overdue();
        let now = (
            self.store.new_worker(),
            calls.iter().map(|call| (call.operation.clone(), call.domain, call.address)).collect(),
        );
        if *reported == now || reported.1.is_empty() && calls.is_empty() {
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
        // Record it under the current process id, whichever task gave the call up.
        actor::as_process(None, self.store.tell_overdue(self.host, &rows)).await?;
        *reported = now;
        Ok(())
    }

    /// Returns the result of a call that changes something. If the call was given up, it is recorded for the other
    /// processes first.
    async fn returned<T>(&self, answer: Result<T, Error>) -> Result<T, Error> {
        if answer.as_ref().is_err_and(|error| error.kind.leaves_it_open())
            && let Err(error) = self.tell().await
        {
            tracing::error!(%error, "an overdue call could not be recorded for the other processes yet");
        }
        answer
    }

    /// Checks that the process id of the running task is still on record.
    ///
    /// # Errors
    /// [`ErrorKind::Refused`] when it is not, or the database does not answer in time.
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
                        "not done, because the database did not confirm that this process may do it: {error}"
                    ));
                }
                Err(_) => tokio::time::sleep(AGAIN).await,
            }
        }
    }
}

/// Keeps the record of a host's overdue calls current.
async fn tell(fenced: Weak<Fenced>) {
    loop {
        tokio::time::sleep(AGAIN).await;
        let Some(fenced) = fenced.upgrade() else { return };
        if let Err(error) = fenced.tell().await {
            tracing::debug!(%error, "overdue calls cannot be recorded for other processes yet");
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
        self.pass("unbind a function from its host driver").await?;
        self.returned(self.hypervisor.node_detach(address).await).await
    }

    async fn node_reattach(&self, address: PciAddress) -> Result<(), Error> {
        self.pass("rebind a function to its host driver").await?;
        self.returned(self.hypervisor.node_reattach(address).await).await
    }

    async fn node_reset(&self, address: PciAddress) -> Result<(), Error> {
        self.pass("reset a function").await?;
        self.returned(self.hypervisor.node_reset(address).await).await
    }

    async fn vf_settings(&self, vf: PciAddress) -> Result<VfSettings, Error> {
        self.hypervisor.vf_settings(vf).await
    }

    async fn set_vf_settings(&self, vf: PciAddress, wanted: &VfSettings) -> Result<(), Error> {
        self.pass("change the settings of a VF").await?;
        self.returned(self.hypervisor.set_vf_settings(vf, wanted).await).await
    }

    async fn vgpu_vfs(&self, only: Option<PciAddress>) -> Result<Vec<VgpuVf>, Error> {
        self.hypervisor.vgpu_vfs(only).await
    }

    async fn may_set_vgpu_types(&self) -> Result<(), Error> {
        self.hypervisor.may_set_vgpu_types().await
    }

    async fn set_vgpu_type(&self, change: &VgpuChange) -> Result<(), Error> {
        self.pass("change the vGPU type of a VF").await?;
        self.returned(self.hypervisor.set_vgpu_type(change).await).await
    }

    async fn set_vf_count(&self, pf: PciAddress, from: u32, to: u32) -> Result<(), Error> {
        self.pass("change the number of VFs of a PF").await?;
        self.returned(self.hypervisor.set_vf_count(pf, from, to).await).await
    }

    fn hooks(&self) -> Result<Hooks, Error> {
        self.hypervisor.hooks()
    }

    async fn run_hook(&self, address: PciAddress, when: When, limit: Duration) -> Result<(), Error> {
        self.pass("run a hook").await?;
        self.returned(self.hypervisor.run_hook(address, when, limit).await).await
    }

    async fn mdev_types(&self, parent: PciAddress) -> Result<Vec<MdevType>, Error> {
        self.hypervisor.mdev_types(parent).await
    }

    async fn mdevs(&self) -> Result<Vec<Mdev>, Error> {
        self.hypervisor.mdevs().await
    }

    async fn create_mdev(&self, parent: PciAddress, mdev_type: &str, uuid: Uuid) -> Result<Mdev, Error> {
        self.pass("create a mediated device").await?;
        self.returned(self.hypervisor.create_mdev(parent, mdev_type, uuid).await).await
    }

    async fn destroy_mdev(&self, mdev: Uuid) -> Result<(), Error> {
        self.pass("remove a mediated device").await?;
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

    async fn set_owner(&self, domain: Uuid, project: Option<&str>) -> Result<(), Error> {
        self.pass("set the owner of a server").await?;
        self.returned(self.hypervisor.set_owner(domain, project).await).await
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
