//! Bindings: devices for the host itself, at rest with their host drivers, or on vfio-pci for programs that drive them
//! (DPDK, SPDK).
//!
//! That a device is to be bound, and what it was bound to, is on record before a driver is touched. All work on a
//! host's bindings goes in turn with that on its IOMMU groups, so a row that is in transition when the turn comes is
//! one that somebody left so: it is taken back, or released to the end.

use std::collections::HashMap;
use std::sync::Arc;

use hotslot_driver::binding::{self, HostDriver, Released, Reset};
use hotslot_driver::hotplug::{self, Facts, Policy};
use hotslot_driver::hypervisor::{self, ErrorKind};
use hotslot_model::accelerator::{View, taken};
use hotslot_model::assignment::{Binding, Holder, NewBinding, State};
use hotslot_model::device::{DevType, Device, DeviceStatus};
use hotslot_model::id::{BindingId, DeviceId, RequestId};
use hotslot_model::rules;
use uuid::Uuid;

use crate::attachment::attach::RACES;
use crate::error::Error;
use crate::host::Host;
use crate::inventory::HostDrivers;
use crate::service::Service;

/// A device that is to be bound.
struct Step {
    new: NewBinding,
    facts: Facts,
}

impl Service {
    /// Binds the devices of an accelerator for the use of their host, all or none.
    pub(super) async fn bind(&self, view: &View, host: &Host, driver: HostDriver) -> Result<(), Error> {
        let _room = host.admit()?;
        host.ready().await?;
        let _turn = self.lock_groups(host).await?;
        let holder = Holder::Accelerator(view.row.id);
        for _ in 0..RACES {
            let steps = self.free_for_host(view, host, driver).await?;
            let wanted: Vec<_> = steps.iter().map(|step| step.new.clone()).collect();
            let request = RequestId(Uuid::new_v4());
            if !self.store.reserve_bindings(host.row.id, request, holder, driver, &wanted).await? {
                continue;
            }
            for (done, step) in steps.iter().enumerate() {
                let bound =
                    binding::bind(host.hypervisor.as_ref(), &step.facts, driver, self.binding_policy()).await;
                let address = step.facts.device.address;
                host.look_at(address);
                match bound {
                    Ok(bound) => {
                        tracing::info!(
                            host = %host.name, pci.address = %address, driver = bound.driver, holder = %holder,
                            "bound {address} for the host"
                        );
                    }
                    Err(error) => return Err(self.take_back(host, &steps, done, error).await),
                }
            }
            // All at once: a kill in between leaves all of them to be taken back, or none.
            let attached: Vec<_> = steps.iter().map(|step| (step.new.id, State::Attached, None)).collect();
            return Ok(self.store.settle_bindings(&attached).await.inspect_err(|_| host.give_back())?);
        }
        Err(Error::Conflict("other requests took the devices first; try again".into()))
    }

    fn binding_policy(&self) -> Policy {
        Policy { require_reset: self.config.attach.require_reset, whole_groups: false }
    }

    /// Chooses devices that could be bound, as far as it can be seen.
    async fn free_for_host(&self, view: &View, host: &Host, driver: HostDriver) -> Result<Vec<Step>, Error> {
        let candidates = self.candidates(view, host)?;
        // Nothing tells of drivers that come and go.
        self.discover(host, Some(candidates.clone())).await?;
        let offer = self.offer(host).await?;
        let rows = self.store.devices_of(host.row.id);
        let withheld = offer.withheld(&rows, None, HostDrivers::DoNotBlock);
        let (mut steps, mut refusal) = (Vec::<Step>::new(), None);
        let mut refuse = |error: Error| {
            refusal.get_or_insert(error);
        };
        // A PF takes its VFs with it: it comes when they do not do.
        let mut chosen_from: Vec<_> =
            rows.iter().filter(|row| candidates.contains(&row.facts.address)).collect();
        chosen_from.sort_by_key(|row| row.facts.dev_type == DevType::Pf);
        let num = view.spec().count();
        for row in chosen_from {
            if steps.len() == num {
                break;
            }
            let address = row.facts.address;
            let goes_with = |step: &&Step| {
                let chosen = &step.new.device.facts;
                chosen.parent_addr == Some(address) || row.facts.parent_addr == Some(chosen.address)
            };
            if let Some(step) = steps.iter().find(goes_with) {
                let chosen = step.new.device.facts.address;
                refuse(Error::Conflict(format!(
                    "{address} cannot go beside {chosen}: one is the PF of the other"
                )));
                continue;
            }
            if let Some(reason) = not_free(row, &rows, &withheld) {
                refuse(Error::Conflict(reason));
                continue;
            }
            let found = match host.hypervisor.device(address).await {
                Ok(found) if rules::is_still(&row.facts, &found) => found,
                Ok(_) => {
                    host.look_at(address);
                    refuse(Error::Conflict(format!("{address} has changed on the host; try again")));
                    continue;
                }
                Err(error) => {
                    refuse(host.error(format!("nothing was bound on host {}", host.name))(error));
                    continue;
                }
            };
            let group = found.iommu_group.as_ref();
            let siblings = group.map(|group| group.members.clone()).unwrap_or_default();
            let new = NewBinding {
                id: BindingId(Uuid::new_v4()),
                device: Arc::clone(row),
                previous: found.driver.clone(),
                siblings: siblings.into_iter().filter(|member| *member != address).collect(),
            };
            let facts = offer.facts(found, row);
            let context = || format!("nothing was bound on host {}", host.name);
            let policy = self.binding_policy();
            let verdict = hotplug::preflight_on_host(host.hypervisor.as_ref(), &facts, driver, policy).await;
            match verdict.map_err(host.error(context()))?.refusal() {
                Some(refused) => refuse(host.error(context())(refused.error.clone())),
                None => steps.push(Step { new, facts }),
            }
        }
        if steps.len() < num {
            return Err(match refusal {
                Some(refusal) if num == 1 => refusal,
                refusal => Error::Conflict(format!(
                    "accelerator {} is {num} devices, and {} on host {} could be bound{}",
                    view.row.id,
                    steps.len(),
                    host.name,
                    refusal.map(|refusal| format!(": {refusal}")).unwrap_or_default()
                )),
            });
        }
        Ok(steps)
    }

    /// Takes back what was bound before the `failed`th step failed, and says what became of everything.
    async fn take_back(&self, host: &Host, steps: &[Step], failed: usize, error: hypervisor::Error) -> Error {
        let reason = error.to_string();
        let address = |step: &Step| step.facts.device.address;
        // It may be bound by now, or later: of a time-out, and of a refusal that could not be undone in time.
        let is_open = steps
            .get(failed)
            .is_some_and(|step| error.kind.leaves_it_open() || host.stuck_at(address(step)).is_some());
        // The outcome of every row is recorded before the first device is touched.
        let intents = steps.iter().enumerate().map(|(index, step)| {
            let goes = index < failed || index == failed && is_open;
            let state = if goes { State::Detaching } else { State::Failed };
            (step.new.id, state, Some(reason.as_str()))
        });
        let intents: Vec<_> = intents.collect();
        if let Err(error) = self.store.settle_bindings(&intents).await {
            host.give_back();
            return error.into();
        }
        let mut left = Vec::new();
        if is_open && let Some(step) = steps.get(failed) {
            left.push(format!("{} is taken back when the host answers", address(step)));
        }
        for step in &steps[..failed.min(steps.len())] {
            let released = match self.store.binding(step.new.id).await {
                Ok(Some(row)) => self.release(host, &row, &step.new.device, State::Detaching).await,
                Ok(None) => Ok(()),
                Err(error) => Err(error.into()),
            };
            if let Err(error) = released {
                tracing::error!(pci.address = %step.facts.device.address, %error, "a binding is not taken back yet");
                left.push(format!("{}: {error}", step.facts.device.address));
            }
        }
        if !left.is_empty() {
            host.give_back();
        }
        let rest = if left.is_empty() { "nothing is left of it".to_owned() } else { left.join("; ") };
        host.error(format!("binding failed on host {}, {rest}", host.name))(error)
    }

    /// Gives the devices of bindings on one host back to the pool, with the drivers that they had. That one stays is no
    /// reason for the others to.
    ///
    /// # Errors
    /// [`Error::Conflict`] while something uses one; what the host answers. The first of them.
    pub(super) async fn unbind(&self, ids: &[BindingId]) -> Result<(), Error> {
        let Some(first) = ids.first().copied() else { return Ok(()) };
        let Some(row) = self.store.binding(first).await? else { return Ok(()) };
        let host = self.host(row.hypervisor).cloned().ok_or_else(|| {
            Error::Conflict(format!("binding {first} is on a host that is no longer configured"))
        })?;
        let _room = host.admit()?;
        host.ready().await?;
        let _turn = self.lock_groups(&host).await?;
        let mut rows = Vec::new();
        for id in ids {
            // Somebody else may have done it while it was not our turn.
            rows.extend(self.store.binding(*id).await?.filter(|row| !row.state.is_final()));
        }
        // Every row is marked for release before the first is touched, so a kill in between leaves none behind.
        let intents: Vec<_> = rows.iter().map(|row| (row.id, State::Detaching, None)).collect();
        self.store.settle_bindings(&intents).await?;
        let mut outcome = Ok(());
        for row in rows {
            let released = match self.store.known_device(row.device).await {
                Ok(Some(device)) => self.release(&host, &row, &device, State::Attached).await,
                Ok(None) => Err(Error::Internal(format!("the device of binding {} is lost", row.id))),
                Err(error) => Err(error.into()),
            };
            outcome = outcome.and(released);
        }
        if outcome.is_err() {
            // Rows that stay in transition are released later.
            host.give_back();
        }
        outcome
    }

    /// Releases the device of a row, and settles it: with what it is when the host refuses.
    async fn release(
        &self,
        host: &Host,
        row: &Binding,
        device: &Device,
        if_refused: State,
    ) -> Result<(), Error> {
        let address = device.facts.address;
        // The function's state is unknown until that call returns; the function is released then.
        if let Some(call) = host.stuck_at(address) {
            let reason = call.to_string();
            self.store.settle_binding(row.id, State::Detaching, Some(&reason)).await?;
            return Err(Error::Conflict(format!(
                "{address} of host {} stays detaching: {reason}; it is released when that comes back",
                host.name
            )));
        }
        let released = match self.in_use(host, row, device) {
            Some(reason) => {
                Err(hypervisor::Error::new(ErrorKind::InUse, format!("release {address}"), reason))
            }
            None => binding::release(host.hypervisor.as_ref(), address, row.previous.as_deref()).await,
        };
        host.look_at(address);
        match released {
            Ok(released) => {
                let reason = told(&released, row.previous.as_deref());
                tracing::info!(host = %host.name, pci.address = %address, ?released, "released {address}");
                Ok(self.store.settle_binding(row.id, State::Detached, reason.as_deref()).await?)
            }
            Err(error) if error.kind == ErrorKind::NoDevice => Ok(self
                .store
                .settle_binding(row.id, State::Detached, Some("it is gone from the host"))
                .await?),
            Err(error) => {
                let state = if error.kind.leaves_it_open() { State::Detaching } else { if_refused };
                self.store.settle_binding(row.id, state, Some(&error.to_string())).await?;
                Err(host.error(format!("releasing {address} of host {} failed", host.name))(error))
            }
        }
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

    /// Goes on with what was left in transition on a host.
    ///
    /// # Errors
    /// The database's, or the first that it is not known of whether it was released: it is to be tried again. One that
    /// the host refused is logged, and tried again with the next comparison of everything.
    pub(crate) async fn settle_bindings(&self, host: &Host) -> Result<(), Error> {
        let open = self.store.bindings().await?;
        let here = |row: &&Binding| row.hypervisor == host.row.id && row.state != State::Attached;
        if !open.iter().any(|row| here(&row)) {
            return Ok(());
        }
        let _turn = self.lock_groups(host).await?;
        let open = self.store.bindings().await?;
        let open: Vec<_> = open.iter().filter(here).collect();
        // Every row is marked for release before the first is touched.
        let intents: Vec<_> =
            open.iter().map(|row| (row.id, State::Detaching, row.reason.as_deref())).collect();
        self.store.settle_bindings(&intents).await?;
        let mut outcome = Ok(());
        for row in open {
            let Some(device) = self.store.known_device(row.device).await? else { continue };
            let address = device.facts.address;
            // It is heard of when that call comes back.
            if host.stuck_at(address).is_some() {
                continue;
            }
            let Err(error) = self.release(host, row, &device, State::Detaching).await else { continue };
            tracing::error!(host = %host.name, pci.address = %address, %error, "a binding is not settled");
            let is_open = matches!(&error, Error::Hypervisor { source, .. } if source.kind.leaves_it_open());
            // One that is out now is heard of, too.
            if is_open && host.stuck_at(address).is_none() && outcome.is_ok() {
                outcome = Err(error);
            }
        }
        outcome
    }
}

fn not_free(row: &Device, rows: &[Arc<Device>], withheld: &HashMap<DeviceId, String>) -> Option<String> {
    if row.status == DeviceStatus::Available {
        return withheld.get(&row.id).cloned();
    }
    Some(taken(row, rows))
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
