//! Repair: acts on the disagreements that [`drift`](hotslot_model::assignment::drift) finds, on events, with a full
//! comparison, or when a repair is requested.

use std::sync::Arc;

use hotslot_driver::device::HostDevice;
use hotslot_driver::domain::UserAlias;
use hotslot_driver::hotplug::{self, Policy};
use hotslot_driver::hypervisor::{DetachScope, DomainView, Scope};
use hotslot_driver::xml::hostdev::Pluggable;
use hotslot_model::assignment::drift::is_gone;
use hotslot_model::assignment::{
    Action, Assignment, AssignmentKind, Attachment, Finding, Mdev, Observation, State, Trigger,
};
use hotslot_model::device::{AfterUse, Device};
use hotslot_model::host_mode::HostChange;
use hotslot_model::id::AttachmentId;
use hotslot_store::actor;
use tokio::task::JoinHandle;

use super::assignments::{Assignments, hostdev_spec};
use super::engine::{Release, ReleaseOutcome};
use super::mdev::mdev_spec;
use super::request::Attempt;
use crate::error::Error;
use crate::host::Host;
use crate::locks::Guard;
use crate::task;

impl Assignments {
    /// Starts the removal of mediated devices whose records have ended and that no domain has.
    ///
    /// # Errors
    /// Errors of the hypervisor and of the database.
    pub(super) async fn take_strays_away(self: &Arc<Self>, host: &Arc<Host>) -> Result<(), Error> {
        let findings = self.stray_mdevs(host).await?;
        self.apply(host, findings, Trigger::Event).await.map(drop)
    }

    /// Takes the actions for disagreements that `trigger` permits. The records are corrected when it returns; calls to
    /// the host run in tasks of their own, which are returned with their findings.
    ///
    /// # Errors
    /// Errors of the database.
    pub(super) async fn apply(
        self: &Arc<Self>,
        host: &Arc<Host>,
        findings: Vec<Finding>,
        trigger: Trigger,
    ) -> Result<Vec<(Finding, JoinHandle<Result<(), Error>>)>, Error> {
        let (mut seen, mut given_up, mut tasks, mut pending_rebind) =
            (Vec::new(), Vec::new(), Vec::new(), false);
        for finding in findings {
            if finding.action.trigger().is_none_or(|when| when > trigger) {
                continue;
            }
            match (&finding.action, finding.attachment) {
                // A mediated device that no document has is removed from the host before its record ends.
                (Action::Settle(row, observation), _)
                    if row.kind() != AssignmentKind::Mdev || !is_gone(observation) =>
                {
                    seen.push((row.key(), observation.clone()));
                    if matches!(observation, Observation::GivenUp { .. }) {
                        given_up.push((row.key(), finding));
                    }
                }
                (Action::Adopt(adoption), _) => {
                    if self.store.adopt(adoption).await? {
                        tracing::warn!(
                            attachment.id = %adoption.id, server.id = %adoption.server,
                            pci.address = %adoption.address,
                            "adopted {}, which server {} has with a hotslot alias and without an open record",
                            adoption.address, adoption.server
                        );
                    }
                }
                (Action::Rebind(_) | Action::SetVgpuType(_) | Action::SetVfSettings(_), _) => {
                    pending_rebind = true;
                }
                (Action::Free(device), _) => {
                    // It is not known whether it was used.
                    let row = self.store.device(*device);
                    let used = row.map_or(AfterUse::Offered, |row| self.after_use_by(&row, None, false));
                    self.store.forget(*device, used).await?;
                }
                (Action::Profile(change), _) => {
                    let (service, host, change) = (Arc::clone(self), Arc::clone(host), change.clone());
                    let task = async move { service.change_to_profile(&host, &change).await };
                    tasks.push((finding, actor::spawn_as_current(task)));
                }
                (action, Some(id)) => {
                    let action = action.clone();
                    tasks.extend(self.apply_action(host, id, action).await?.map(|task| (finding, task)));
                }
                (_, None) => {}
            }
        }
        self.settle_all(&seen).await?;
        for (key, finding) in given_up {
            let Some(row) = self.store.assignment(key).await? else { continue };
            let task = self.apply_action(host, key.id, Action::RetryUnplug(Box::new(row))).await?;
            tasks.extend(task.map(|task| (finding, task)));
        }
        if pending_rebind
            && let Err(error) = self.rebind_host_drivers(host).await.and(self.settle_bindings(host).await)
        {
            tracing::error!(host = %host.name, %error, "rebinding host drivers failed; it will be tried again");
            host.queue_rebind();
        }
        Ok(tasks)
    }

    /// Starts a task that changes the host or the guest as `action` says. Returns `None` while another task works on
    /// the assignment.
    async fn apply_action(
        self: &Arc<Self>,
        host: &Arc<Host>,
        id: AttachmentId,
        action: Action,
    ) -> Result<Option<JoinHandle<Result<(), Error>>>, Error> {
        let Some(guard) = self.in_flight.try_enter(id).await? else { return Ok(None) };
        let (service, host) = (Arc::clone(self), Arc::clone(host));
        Ok(Some(actor::spawn_as_current(async move { service.apply_now(&host, action, guard).await })))
    }

    /// Does what `action` says, unless its assignment has changed since it was compared.
    async fn apply_now(self: &Arc<Self>, host: &Host, action: Action, guard: Guard) -> Result<(), Error> {
        let (row, supposed) = match &action {
            Action::RetryUnplug(row) => (row, State::Detaching),
            Action::Plug(row) | Action::Define(row) | Action::Undefine(row) => (row, State::Attached),
            // The records of the last two have ended.
            Action::Settle(row, _) | Action::TakeOut { row, .. } | Action::Destroy(row) => (row, row.state()),
            Action::Adopt(_)
            | Action::Rebind(_)
            | Action::SetVgpuType(_)
            | Action::SetVfSettings(_)
            | Action::Free(_)
            | Action::Profile(_)
            | Action::Manual(_) => return Ok(()),
        };
        let (key, Some(server)) = (row.key(), row.server()) else { return Ok(()) };
        // From here on no other task changes the row.
        let now = self.store.assignment(key).await?.filter(|now| now.state() == supposed);
        let Some(now) = now else { return Ok(()) };
        let outcome = match &action {
            Action::RetryUnplug(_) => {
                let attempt = Attempt { until: None, first: false };
                let released = self.detach_now(host, now, attempt, guard).await;
                return released.and_then(Release::into_result).inspect_err(|error| {
                    tracing::info!(attachment.id = %key.id, server.id = %server, %error, "a repeated detach failed");
                });
            }
            Action::TakeOut { row, .. } => self.take_out(host, row).await,
            Action::Settle(row, seen) => self.take_away(host, row, seen.clone()).await,
            Action::Destroy(row) => self.take_stray_away(host, row).await,
            Action::Plug(row) => self.plug_again(host, row).await.map(|()| Release::Ended),
            Action::Define(row) => self.write_definition(host, row, true).await.map(|()| Release::Ended),
            Action::Undefine(row) => self.write_definition(host, row, false).await.map(|()| Release::Ended),
            Action::Adopt(_)
            | Action::Rebind(_)
            | Action::SetVgpuType(_)
            | Action::SetVfSettings(_)
            | Action::Free(_)
            | Action::Profile(_)
            | Action::Manual(_) => Ok(Release::Ended),
        };
        // A device that stays was refused by the guest, or waits for an overdue call whose return is an event. Repeat
        // the work after an error.
        if matches!(action, Action::TakeOut { .. } | Action::Settle(..)) && outcome.is_err() {
            host.queue_unplug_retry(server);
        }
        drop(guard);
        let outcome = outcome.and_then(Release::into_result);
        // A record that could not be settled is tried again after a while, and not with the next event.
        if outcome.is_ok() || !matches!(action, Action::Settle(..)) {
            host.queue_server_check(server);
        }
        outcome.inspect_err(|error| {
            tracing::error!(attachment.id = %key.id, server.id = %server, %error, "a disagreement was not repaired");
        })
    }

    /// Detaches a device from a domain that must not have it.
    async fn take_out(&self, host: &Host, row: &Assignment) -> Result<Release, Error> {
        let (key, owner, limits) = (row.key(), row.owner(), self.detach_limits());
        tracing::warn!(attachment.id = %key.id, %owner, "detaching a device that {owner} must not have");
        let outcome = match row {
            Assignment::Attachment(row) => {
                // The server may be on another host than the one on record, where the device has another address. So do
                // not add it to the definition again when the guest refuses.
                let row = Attachment { persistent: false, ..row.clone() };
                self.unplug(host, &row, &*self.device_of(&row)?, limits).await
            }
            Assignment::Mdev(row) => {
                let row = Mdev { persistent: false, ..row.clone() };
                self.unplug_mdev(host, &row, limits).await
            }
            Assignment::Binding(_) => return Ok(Release::Ended),
        };
        match outcome {
            ReleaseOutcome::Gone { .. } if key.kind == AssignmentKind::Mdev => {
                self.take_stray_away(host, row).await
            }
            ReleaseOutcome::Gone { .. } => Ok(Release::Ended),
            ReleaseOutcome::Refused { reason }
            | ReleaseOutcome::Pending { reason }
            | ReleaseOutcome::LeftOnHost { reason } => Ok(Release::Stays(format!(
                "the device of {key} is still in {owner} on host {}: {reason}",
                host.name
            ))),
            ReleaseOutcome::Failed { error, .. } => {
                Err(host.error(format!("taking the device of {key} out of {owner}"))(error))
            }
        }
    }

    /// Plugs a device into a running guest whose definition has it already.
    ///
    /// # Errors
    /// [`Error::NoServer`]; [`Error::Restricted`]; the refusal of a check; errors of the hypervisor and of the database.
    async fn plug_again(&self, host: &Host, row: &Assignment) -> Result<(), Error> {
        let Some(server) = row.server() else { return Ok(()) };
        let _turn = self.turn_at(host, server, HostChange::Other).await?;
        let view = host.server(server).await?.ok_or(Error::NoServer(server))?;
        // Only the running guest is checked, because the definition has the device already.
        let view = DomainView { persistent: None, ..view };
        match row {
            Assignment::Attachment(row) => {
                let found = self.may_be_plugged(host, &view, row).await?;
                let drained = self.drain(host, &found, row.managed, AssignmentKind::Attachment).await;
                drained.map_err(host.error(format!("plugging {} into server {server}", found.address)))?;
            }
            Assignment::Mdev(row) => {
                self.has_room(host, &view, 1).await?;
                self.make_again(host, row).await?;
            }
            Assignment::Binding(_) => return Ok(()),
        }
        let spec = self.spec_of(row)?;
        let plugged =
            hotplug::complete(host.hypervisor.as_ref(), &self.templates, server.0, &*spec, Scope::Live);
        plugged.await.map_err(host.error(format!("plugging {} into server {server}", spec.source())))
    }

    /// Checks whether a function can be plugged into a guest, and returns it as it is on the host.
    ///
    /// # Errors
    /// The first check that failed; errors of the hypervisor.
    async fn may_be_plugged(
        &self,
        host: &Host,
        view: &DomainView,
        row: &Attachment,
    ) -> Result<HostDevice, Error> {
        let device = self.device_of(row)?;
        let address = device.facts.address;
        let context = || format!("plugging {address} into server {}", row.server);
        let found = host.hypervisor.device(address).await.map_err(host.error(context()))?;
        let availability = self.catalog.availability(host).await?;
        let mut facts = [availability.facts(found, &device)];
        availability.add_open_nodes(&mut facts).await?;
        let policy = Policy { require_reset: self.config.get().attach.require_reset, whole_groups: false };
        let verdict = hotplug::preflight(host.hypervisor.as_ref(), view, &facts, policy).await;
        let verdict = verdict.map_err(host.error(context()))?;
        match verdict.refusal() {
            Some(refusal) => Err(host.error(context())(refusal.error.clone())),
            None => {
                let [facts] = facts;
                Ok(facts.device)
            }
        }
    }

    /// Adds a device to a domain's definition, or removes it from there.
    async fn write_definition(&self, host: &Host, row: &Assignment, defined: bool) -> Result<(), Error> {
        let Some(server) = row.server() else { return Ok(()) };
        let hypervisor = host.hypervisor.as_ref();
        let written = if defined {
            let spec = self.spec_of(row)?;
            hotplug::complete(hypervisor, &self.templates, server.0, &*spec, Scope::Config).await
        } else {
            let alias = UserAlias(row.id().0).to_string();
            hypervisor.detach(server.0, &alias, DetachScope::Config).await
        };
        written.map_err(host.error(format!("changing the definition of server {server}")))
    }

    /// Returns the hostdev document of an attachment or mediated device.
    fn spec_of(&self, row: &Assignment) -> Result<Box<dyn Pluggable + Send>, Error> {
        Ok(match row {
            Assignment::Attachment(row) => Box::new(hostdev_spec(row, &*self.device_of(row)?)),
            Assignment::Binding(row) => {
                return Err(Error::Internal(format!("binding {} is in no domain", row.id)));
            }
            Assignment::Mdev(row) => Box::new(mdev_spec(row.id)),
        })
    }

    fn device_of(&self, row: &Attachment) -> Result<Arc<Device>, Error> {
        let device = self.store.device(row.device);
        device.ok_or_else(|| Error::Internal(format!("the device of attachment {} is lost", row.id)))
    }

    /// Repairs all disagreements on a host as far as possible. Returns each with its outcome; the error text says why
    /// it remains.
    ///
    /// The work continues when the caller's future is dropped.
    ///
    /// # Errors
    /// As [`drift`](Self::drift); [`Error::Restricted`].
    pub async fn repair(
        self: &Arc<Self>,
        host: &Arc<Host>,
    ) -> Result<Vec<(Finding, Result<(), String>)>, Error> {
        self.hosts.expect_open(host, HostChange::Other).await?;
        let (service, host) = (Arc::clone(self), Arc::clone(host));
        task::join(actor::spawn_as_current(async move { service.repair_now(&host).await })).await
    }

    async fn repair_now(
        self: &Arc<Self>,
        host: &Arc<Host>,
    ) -> Result<Vec<(Finding, Result<(), String>)>, Error> {
        let found = self.drift(host).await?;
        // Reading the host may have taken long.
        self.hosts.expect_open(host, HostChange::Other).await?;
        let mut failed = Vec::new();
        for (finding, task) in self.apply(host, found.clone(), Trigger::Repair).await? {
            let outcome = task.await.unwrap_or_else(|error| Err(Error::Internal(error.to_string())));
            failed.extend(outcome.err().map(|error| (finding, error.to_string())));
        }
        // Correct the records after these changes.
        let seen = self.drift(host).await?;
        drop(self.apply(host, seen, Trigger::Event).await?);
        let left = self.drift(host).await?;
        let outcome = |finding: &Finding| {
            if !left.iter().any(|left| left.is_of(finding)) {
                return Ok(());
            }
            let why = failed.iter().find(|(other, _)| other.is_of(finding)).map(|(_, why)| why.clone());
            let nothing = || {
                if let Action::Manual(advice) = &finding.action {
                    advice.clone()
                } else {
                    "not repaired: see the reason in its record, or another request is working on it"
                        .to_owned()
                }
            };
            Err(why.unwrap_or_else(nothing))
        };
        let mut outcomes: Vec<_> = found.iter().map(|finding| (finding.clone(), outcome(finding))).collect();
        // Disagreements that appeared during the repair.
        for finding in left.iter().filter(|left| !found.iter().any(|before| before.is_of(left))) {
            outcomes.push((finding.clone(), Err("it appeared during the repair; repair once more".into())));
        }
        Ok(outcomes)
    }
}
