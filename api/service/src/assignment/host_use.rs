//! Bindings: devices for the host's own use, bound to their host drivers, or to vfio-pci for programs with drivers of
//! their own (DPDK, SPDK).
//!
//! The binding and the previous driver of the device are recorded before a driver is changed. All work on bindings is
//! done with the lock of the host's IOMMU groups held. So a row that is in transition when the lock is taken was left
//! by an interrupted task, and is released.

use std::collections::BTreeSet;
use std::path::PathBuf;

use hotslot_driver::binding::{self, HostDriver, Released, Reset};
use hotslot_driver::hotplug::{Facts, Policy};
use hotslot_driver::hypervisor::{self, ErrorKind};
use hotslot_driver::local::InUse;
use hotslot_driver::pci::PciAddress;
use hotslot_model::assignment::{
    AssignmentKey, AssignmentKind, Binding, Holder, NewBinding, Observation, State,
};
use hotslot_model::device::Device;
use hotslot_model::host_mode::HostChange;
use hotslot_model::id::{AttachmentId, RequestId};
use uuid::Uuid;

use super::assignments::Assignments;
use super::attach::RACES;
use super::engine::{self, Failed, Leftover, Release, ReleaseOutcome, Step as _};
use super::request::Attempt;
use crate::error::Error;
use crate::host::Host;
use crate::inventory::open_nodes;
use crate::metrics;

/// The recorded reason for the release of a binding whose attach was interrupted.
const CUT_OFF: &str = "the attach was interrupted";

/// A device that is to be bound.
pub(super) struct Step {
    pub(super) new: NewBinding,
    pub(super) facts: Facts,
}

impl engine::Step for Step {
    fn key(&self) -> AssignmentKey {
        key(self.new.id)
    }

    fn device(&self) -> &Device {
        &self.new.device
    }
}

/// A request for functions to be bound for the host's own use.
pub(crate) struct HostUseRequest {
    /// The accelerator that they are for.
    pub(crate) holder: Holder,
    /// The functions to choose from.
    pub(crate) candidates: BTreeSet<PciAddress>,
    /// The number of functions.
    pub(crate) num: usize,
    /// The kind of driver to bind.
    pub(crate) driver: HostDriver,
}

impl Assignments {
    /// Binds functions for the host's own use, all or none.
    ///
    /// # Errors
    /// [`Error::Conflict`] when too few can be bound; [`Error::Full`]; errors of the hypervisor and of the database.
    pub(crate) async fn bind(&self, host: &Host, request: &HostUseRequest) -> Result<(), Error> {
        metrics::attach(AssignmentKind::Binding, self.bind_now(host, request)).await
    }

    async fn bind_now(&self, host: &Host, request: &HostUseRequest) -> Result<(), Error> {
        self.hosts.expect_open(host, HostChange::Attach).await?;
        let _room = host.admit()?;
        host.ready().await?;
        let _turn = self.lock_groups(host).await?;
        let HostUseRequest { holder, driver, .. } = *request;
        for _ in 0..RACES {
            let steps = self.free_for_host(host, request).await?;
            let wanted: Vec<_> = steps.iter().map(|step| step.new.clone()).collect();
            let id = RequestId(Uuid::new_v4());
            if self.store.reserve_bindings(host.row.id, id, holder, driver, &wanted).await? {
                return self.bind_all(host, &steps, driver).await;
            }
        }
        Err(Error::Busy("other requests took the devices first; try again".into()))
    }

    async fn bind_all(&self, host: &Host, steps: &[Step], driver: HostDriver) -> Result<(), Error> {
        for (index, step) in steps.iter().enumerate() {
            let function = &step.facts.device;
            let to_drain = driver == HostDriver::Vfio;
            let bound = match self.drain(host, function, to_drain, AssignmentKind::Binding).await {
                Ok(()) => {
                    binding::bind(host.hypervisor.as_ref(), &step.facts, driver, self.binding_policy()).await
                }
                Err(refused) => Err(refused),
            };
            let address = step.facts.device.address;
            host.queue_device_scan(address);
            match bound {
                Ok(bound) => tracing::info!(
                    host = %host.name, pci.address = %address, driver = bound.driver, "bound {address} for the host"
                ),
                Err(error) => {
                    let failed = Failed::at(index, Leftover::Nothing, error);
                    return Err(self.undo(host, steps, failed, None).await.error);
                }
            }
        }
        // Record all in one transaction: after a crash either all of them are released, or none.
        let bound = Observation::Present { inner: None, only_in_definition: false, same_run: true };
        let seen: Vec<_> = steps.iter().map(|step| (step.key(), bound.clone())).collect();
        self.settle_all(&seen).await.inspect_err(|_| host.queue_rebind()).map(drop)
    }

    /// Rebinds the device of a binding to the driver that it had before. `first` says that no earlier try can have
    /// changed the device already.
    pub(super) async fn unbind(
        &self,
        host: &Host,
        row: &Binding,
        device: &Device,
        first: bool,
    ) -> ReleaseOutcome {
        let address = device.facts.address;
        let in_use = match self.in_use(host, row, device) {
            None => open_on_host(host, row, address).await,
            in_use => in_use,
        };
        let released = match in_use {
            Some(reason) => {
                Err(hypervisor::Error::new(ErrorKind::InUse, format!("release {address}"), reason))
            }
            None => binding::release(host.hypervisor.as_ref(), address, row.previous.as_deref()).await,
        };
        host.queue_device_scan(address);
        match released {
            Ok(released) => ReleaseOutcome::Gone { reason: left_changed(&released, row.previous.as_deref()) },
            Err(error) if error.kind == ErrorKind::NoDevice => {
                ReleaseOutcome::Gone { reason: Some("the device is gone from the host".into()) }
            }
            Err(error) => ReleaseOutcome::Failed { error, as_before: first },
        }
    }

    pub(super) fn binding_policy(&self) -> Policy {
        Policy { require_reset: self.config.get().attach.require_reset, whole_groups: false }
    }

    /// Releases bindings on one host. When one cannot be released, the others are released nevertheless.
    ///
    /// # Errors
    /// The first error of these: [`Error::Conflict`] while a device is in use; errors of the hypervisor and of the
    /// database.
    pub(crate) async fn release_bindings(&self, ids: &[AttachmentId]) -> Result<(), Error> {
        let Some(first) = ids.first().copied() else { return Ok(()) };
        let Some(row) = self.store.assignment(key(first)).await? else { return Ok(()) };
        let host = self.hosts.host(row.hypervisor()).cloned().ok_or_else(|| {
            Error::Conflict(format!("{} is on a host that is no longer configured", row.key()))
        })?;
        self.hosts.expect_open(&host, HostChange::Other).await?;
        let _room = host.admit()?;
        host.ready().await?;
        let _turn = self.lock_groups(&host).await?;
        // Record all before the first is released, so that after a crash all are released. Another request may have
        // released some while this one waited for the lock.
        let mut was = Vec::new();
        for id in ids {
            was.extend(self.store.assignment(key(*id)).await?.filter(|row| !row.state().is_final()));
        }
        let intents = was.iter().map(|row| match row.state() {
            // Its process ended during the attach.
            State::Attaching => (row.key(), Observation::GivenUp { reason: CUT_OFF.to_owned() }),
            State::Attached | State::Detaching | State::Detached | State::Failed => {
                (row.key(), Observation::DetachRequested)
            }
        });
        let intents: Vec<_> = intents.collect();
        let rows = self.settle_all(&intents).await?;
        let mut outcome = Ok(());
        for (row, was) in rows.iter().zip(&was) {
            let attempt = Attempt { until: None, first: was.state() == State::Attached };
            let released = self.release(&host, row, attempt).await.and_then(Release::into_result);
            outcome = outcome.and(released);
        }
        if outcome.is_err() {
            // The bindings that are left in transition are released later.
            host.queue_rebind();
        }
        outcome
    }

    /// Returns why a device cannot be rebound to its host driver: a server has a function of its IOMMU group.
    fn in_use(&self, host: &Host, row: &Binding, device: &Device) -> Option<String> {
        if row.driver == HostDriver::Native {
            return None;
        }
        let functions = host.functions();
        let group = functions.get(&device.facts.address)?.iommu_group.as_ref()?;
        let rows = self.store.devices_of(host.row.id);
        let other = rows.iter().find_map(|other| {
            let member = other.id != device.id && group.members.contains(&other.facts.address);
            member.then(|| other.server()).flatten().map(|server| (other.facts.address, server))
        });
        other.map(|(address, server)| {
            format!(
                "server {server} has {address} of the same IOMMU group, so no host driver may be bound in it; detach \
                 {address} first"
            )
        })
    }

    /// Releases the bindings of a host that were left in transition. No other task works on them, because all work on
    /// bindings is done with the lock of the host's IOMMU groups held.
    ///
    /// # Errors
    /// The first error after which the caller is to try again: of the database, or of the hypervisor when it is unknown
    /// whether a device was released. A refusal is only logged; the next full comparison tries again.
    pub(crate) async fn settle_bindings(&self, host: &Host) -> Result<(), Error> {
        let here = |row: &Binding| row.hypervisor == host.row.id && row.state != State::Attached;
        if !self.store.bindings().await?.iter().any(here) {
            return Ok(());
        }
        let _turn = self.lock_groups(host).await?;
        let mut open = self.store.bindings().await?;
        open.retain(here);
        // Record all before the first is released.
        let intents = open.iter().map(|row| {
            let reason = row.reason.clone().unwrap_or_else(|| CUT_OFF.to_owned());
            (key(row.id), Observation::GivenUp { reason })
        });
        let rows = self.settle_all(&intents.collect::<Vec<_>>()).await?;
        let mut outcome = Ok(());
        for row in &rows {
            // The return of an overdue call is an event, which starts this again.
            if self.call_out(host, None, row.device()).is_some() {
                continue;
            }
            let attempt = Attempt { until: None, first: false };
            let Err(error) = self.release(host, row, attempt).await.and_then(Release::into_result) else {
                continue;
            };
            tracing::error!(host = %host.name, %error, "a binding could not be released");
            let is_open = matches!(&error, Error::Hypervisor { error, .. } if error.kind.leaves_it_open());
            let to_repeat = is_open || matches!(error, Error::Store(_));
            if to_repeat && self.call_out(host, None, row.device()).is_none() && outcome.is_ok() {
                outcome = Err(error);
            }
        }
        outcome
    }
}

/// Returns which processes have the device of a binding open, and how to end that. While one has it open on VFIO, the
/// kernel lets the rebinding of its host driver wait.
async fn open_on_host(host: &Host, row: &Binding, address: PciAddress) -> Option<String> {
    if row.driver == HostDriver::Native {
        return None;
    }
    let device = host.hypervisor.device(address).await.ok()?;
    let found = open_nodes(host.hypervisor.sysroot().map(PathBuf::from), vec![device]).await.ok()?;
    let InUse { message, cure } = found.get(&address)?.in_use()?;
    Some(format!("{address} is in use on the host: {message}; {cure}"))
}

fn key(id: AttachmentId) -> AssignmentKey {
    AssignmentKey { kind: AssignmentKind::Binding, id }
}

/// Describes what a release did not restore; `None` when it restored the previous driver and reset the device.
fn left_changed(released: &Released, previous: Option<&str>) -> Option<String> {
    let name =
        |driver: Option<&str>| driver.map_or("no driver".to_owned(), |driver| format!("driver {driver}"));
    let mut changes = Vec::new();
    if !released.as_before {
        changes.push(format!(
            "the device had {} and has {} now",
            name(previous),
            name(released.driver.as_deref())
        ));
    }
    if let Reset::Unavailable { reason } = &released.reset {
        changes.push(format!("the device was not reset: {reason}"));
    }
    (!changes.is_empty()).then(|| changes.join("; "))
}
