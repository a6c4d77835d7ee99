//! Bindings: devices for the host itself, at rest with their host drivers, or on vfio-pci for programs that drive them
//! (DPDK, SPDK).
//!
//! That a device is to be bound, and what it was bound to, is on record before a driver is touched. All work on a
//! host's bindings goes in turn with that on its IOMMU groups, so a row that is in transition when the turn comes is
//! one that somebody left so: it is taken back, or released to the end.

use std::collections::BTreeSet;

use hotslot_driver::binding::{self, HostDriver, Released, Reset};
use hotslot_driver::hotplug::{Facts, Policy};
use hotslot_driver::hypervisor::{self, ErrorKind};
use hotslot_driver::pci::PciAddress;
use hotslot_model::assignment::{
    AssignmentKey, AssignmentKind, Binding, Holder, NewBinding, Observation, State,
};
use hotslot_model::device::Device;
use hotslot_model::id::{AttachmentId, RequestId};
use uuid::Uuid;

use super::assignments::Assignments;
use super::attach::RACES;
use super::engine::{self, Failed, Leftover, ReleaseOutcome, Step as _};
use super::request::Ask;
use crate::error::Error;
use crate::host::Host;

/// The reason for the release of a binding whose attach did not end.
const CUT_OFF: &str = "the attach was cut off";

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

/// Functions that are to be bound for the use of their host.
pub(crate) struct HostUseRequest {
    /// The accelerator that is to have them.
    pub(crate) holder: Holder,
    /// The functions that will do.
    pub(crate) candidates: BTreeSet<PciAddress>,
    /// How many.
    pub(crate) num: usize,
    /// How the host is to have them.
    pub(crate) driver: HostDriver,
}

impl Assignments {
    /// Binds functions for the use of their host, all or none.
    ///
    /// # Errors
    /// [`Error::Conflict`] when too few can be bound; what the host answers.
    pub(crate) async fn bind(&self, host: &Host, request: &HostUseRequest) -> Result<(), Error> {
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
        Err(Error::Conflict("other requests took the devices first; try again".into()))
    }

    async fn bind_all(&self, host: &Host, steps: &[Step], driver: HostDriver) -> Result<(), Error> {
        for (index, step) in steps.iter().enumerate() {
            let bound =
                binding::bind(host.hypervisor.as_ref(), &step.facts, driver, self.binding_policy()).await;
            let address = step.facts.device.address;
            host.look_at(address);
            match bound {
                Ok(bound) => tracing::info!(
                    host = %host.name, pci.address = %address, driver = bound.driver, "bound {address} for the host"
                ),
                Err(error) => {
                    // After a time-out, or a refusal that was not undone in time, it may be bound now or later.
                    let is_open = error.kind.leaves_it_open() || host.stuck_at(address).is_some();
                    let leftover = if is_open { Leftover::Unknown } else { Leftover::Nothing };
                    let failed = Failed::at(index, leftover, error);
                    return Err(self.undo(host, steps, failed, None).await.error);
                }
            }
        }
        // All in one transaction: after a crash in between all of them are released, or none.
        let bound = Observation::Present { inner: None, only_in_definition: false, same_run: true };
        let seen: Vec<_> = steps.iter().map(|step| (step.key(), bound.clone())).collect();
        self.settle_all(&seen).await.inspect_err(|_| host.give_back()).map(drop)
    }

    /// Gives the device of a binding back to the host with the driver that it had. `first` says that no earlier try may
    /// have begun to do so.
    pub(super) async fn unbind(
        &self,
        host: &Host,
        row: &Binding,
        device: &Device,
        first: bool,
    ) -> ReleaseOutcome {
        let address = device.facts.address;
        let released = match self.in_use(host, row, device) {
            Some(reason) => {
                Err(hypervisor::Error::new(ErrorKind::InUse, format!("release {address}"), reason))
            }
            None => binding::release(host.hypervisor.as_ref(), address, row.previous.as_deref()).await,
        };
        host.look_at(address);
        match released {
            Ok(released) => ReleaseOutcome::Gone { reason: told(&released, row.previous.as_deref()) },
            Err(error) if error.kind == ErrorKind::NoDevice => {
                ReleaseOutcome::Gone { reason: Some("it is gone from the host".into()) }
            }
            Err(error) => ReleaseOutcome::Failed { error, as_before: first },
        }
    }

    pub(super) fn binding_policy(&self) -> Policy {
        Policy { require_reset: self.config.attach.require_reset, whole_groups: false }
    }

    /// Releases bindings on one host. One that stays does not keep the others from going.
    ///
    /// # Errors
    /// [`Error::Conflict`] while something uses one; what the host answers. The first of them.
    pub(crate) async fn release_bindings(&self, ids: &[AttachmentId]) -> Result<(), Error> {
        let Some(first) = ids.first().copied() else { return Ok(()) };
        let Some(row) = self.store.assignment(key(first)).await? else { return Ok(()) };
        let host = self.hosts.host(row.hypervisor()).cloned().ok_or_else(|| {
            Error::Conflict(format!("{} is on a host that is no longer configured", row.key()))
        })?;
        let _room = host.admit()?;
        host.ready().await?;
        let _turn = self.lock_groups(&host).await?;
        // All are recorded before the first is released, so a crash in between leaves none behind. Another request may
        // have released some before it was the turn of this one.
        let mut was = Vec::new();
        for id in ids {
            was.extend(self.store.assignment(key(*id)).await?.filter(|row| !row.state().is_final()));
        }
        let intents: Vec<_> = was.iter().map(|row| (row.key(), Observation::AskedToDetach)).collect();
        let rows = self.settle_all(&intents).await?;
        let mut outcome = Ok(());
        for (row, was) in rows.iter().zip(&was) {
            let ask = Ask { until: None, first: was.state() == State::Attached };
            outcome = outcome.and(self.release(&host, row, ask).await);
        }
        if outcome.is_err() {
            // Those that stay in transition are released later.
            host.give_back();
        }
        outcome
    }

    /// Why a device cannot go back to its host driver: a server has a function of its IOMMU group.
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
                "server {server} has {address} of its IOMMU group, which must not share it with a host driver; detach \
                 that first"
            )
        })
    }

    /// Releases the bindings of a host that were left in transition: nobody works on them, because all that work on
    /// bindings hold the lock of the host's groups.
    ///
    /// # Errors
    /// The database's, or the first error after which it is not known whether a device was released: that is to be tried
    /// again. A refusal is logged, and tried again with the next comparison of everything.
    pub(crate) async fn settle_bindings(&self, host: &Host) -> Result<(), Error> {
        let here = |row: &Binding| row.hypervisor == host.row.id && row.state != State::Attached;
        if !self.store.bindings().await?.iter().any(here) {
            return Ok(());
        }
        let _turn = self.lock_groups(host).await?;
        let mut open = self.store.bindings().await?;
        open.retain(here);
        // All are recorded before the first is released.
        let intents = open.iter().map(|row| {
            let reason = row.reason.clone().unwrap_or_else(|| CUT_OFF.to_owned());
            (key(row.id), Observation::GivenUp { reason })
        });
        let rows = self.settle_all(&intents.collect::<Vec<_>>()).await?;
        let mut outcome = Ok(());
        for row in &rows {
            // The return of an overdue call is an event of its own.
            if self.call_out(host, None, row.device()).is_some() {
                continue;
            }
            let ask = Ask { until: None, first: false };
            let Err(error) = self.release(host, row, ask).await else { continue };
            tracing::error!(host = %host.name, %error, "a binding is not settled");
            let is_open = matches!(&error, Error::Hypervisor { source, .. } if source.kind.leaves_it_open());
            if is_open && self.call_out(host, None, row.device()).is_none() && outcome.is_ok() {
                outcome = Err(error);
            }
        }
        outcome
    }
}

fn key(id: AttachmentId) -> AssignmentKey {
    AssignmentKey { kind: AssignmentKind::Binding, id }
}

/// What there is to say of a release that did not go as a whole.
fn told(released: &Released, previous: Option<&str>) -> Option<String> {
    let name =
        |driver: Option<&str>| driver.map_or("no driver".to_owned(), |driver| format!("driver {driver}"));
    let mut said = Vec::new();
    if !released.as_before {
        said.push(format!("it had {} and has {} now", name(previous), name(released.driver.as_deref())));
    }
    if let Reset::Unavailable { reason } = &released.reset {
        said.push(format!("it was not reset: {reason}"));
    }
    (!said.is_empty()).then(|| said.join("; "))
}
