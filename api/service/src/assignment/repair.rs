//! Repair: acts on the disagreements that [`drift`](hotslot_model::assignment::drift) finds, on events, with a full
//! comparison, or when a repair is requested.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use hotslot_driver::domain::UserAlias;
use hotslot_driver::hotplug::{self, Policy};
use hotslot_driver::hypervisor::{DetachScope, DomainView, ErrorKind, Scope};
use hotslot_driver::pci::PciAddress;
use hotslot_driver::xml::hostdev::Pluggable;
use hotslot_model::assignment::drift::{
    Comparison, aliases, is_gone, of_binding, of_devices, of_mdev, of_stray_mdev, of_unfinished_binding,
};
use hotslot_model::assignment::{
    Action, Assignment, AssignmentKey, AssignmentKind, Attachment, Binding, Finding, Kind, Mdev, Observation,
    Source, State, Trigger,
};
use hotslot_model::device::Device;
use hotslot_model::id::{AttachmentId, DeviceId, EventId, ServerId};
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
    /// Reads a server and compares it with its records. Returns the disagreements and, when this host has only records
    /// of the server, another host that has the server.
    ///
    /// # Errors
    /// Errors of the hypervisor and of the database.
    pub(super) async fn compare(
        &self,
        host: &Host,
        server: ServerId,
    ) -> Result<(Vec<Finding>, Option<&Arc<Host>>), Error> {
        // Skip assignments that are worked on before or after the documents are read, and those that end meanwhile:
        // for these the record and the documents may be of different moments.
        self.store.refresh().await?;
        let began = self.store.event_bounds().await?.last;
        let mut rows = self.store.assignments_of(server).await?;
        let mut busy = self.in_flight.of(rows.iter().map(Assignment::id)).await?;
        // A process that lost its locks with a connection takes them again soon, so its attach continues.
        busy.extend(self.store.attaching_elsewhere(server).await?);
        rows.retain(|row| row.hypervisor() == host.row.id && !busy.contains(&row.id()));
        // An overdue call may change the domain after it was read, or create a mediated device. Its return is an event,
        // which has the server compared again.
        rows.retain(|row| {
            let call = || self.call_out(host, row.server(), row.device());
            row.state() == State::Attached || call().is_none()
        });
        let view = host.server(server).await?;
        let busy = self.in_flight.of(rows.iter().map(Assignment::id)).await?;
        rows.retain(|row| !busy.contains(&row.id()));
        host.set_held(server, view.as_ref());
        let named = self.named_in(view.as_ref(), began).await?;
        let elsewhere =
            if view.is_none() && !rows.is_empty() { self.elsewhere(host, server).await } else { None };
        let (replaced, parents) = self.returned_mdevs(host, &named).await?;
        let comparison = Comparison {
            hypervisor: host.row.id,
            server,
            rows: &rows,
            named: &named,
            view: view.as_ref(),
            device: &|id| self.store.device(id),
            device_at: &|address| self.device_at(host, address),
            elsewhere: elsewhere.map(|other| other.name.as_str()),
            replaced: &replaced,
            mdevs: &host.mdevs(),
            is_in_parts: &|device| parents.contains(&device),
        };
        Ok((comparison.findings(), elsewhere))
    }

    /// Returns the records that the aliases of a server's documents name; `None` for an alias without a record. Those
    /// that are worked on, or have ended since the event `began`, are left out.
    async fn named_in(
        &self,
        view: Option<&DomainView>,
        began: EventId,
    ) -> Result<BTreeMap<AttachmentId, Option<Assignment>>, Error> {
        let aliases = view.map(aliases).unwrap_or_default();
        let (mut named, busy) = (BTreeMap::new(), self.in_flight.of(aliases.iter().copied()).await?);
        for id in aliases {
            let row = self.named(id).await?;
            let ended = row.as_ref().is_some_and(|row| row.state().is_final());
            // Use event ids, not the clock, which may have been set back.
            let just_ended = ended && self.store.has_events_after(began, id).await?;
            if !just_ended && !busy.contains(&id) {
                named.insert(id, row);
            }
        }
        Ok(named)
    }

    /// Checks mediated devices that came back with their domain: they are attached again if their holders can have them
    /// again. Returns those whose holders cannot, and the devices that have mediated devices.
    async fn returned_mdevs(
        &self,
        host: &Host,
        named: &BTreeMap<AttachmentId, Option<Assignment>>,
    ) -> Result<(BTreeSet<AttachmentId>, BTreeSet<DeviceId>), Error> {
        let (mut replaced, mut parents) = (BTreeSet::new(), BTreeSet::new());
        for row in named.values().flatten() {
            if let Assignment::Mdev(row) = row
                && row.unrequested
            {
                // On another host, or after a change by others, it may be of another parent than the one on record.
                let found =
                    host.mdevs().iter().find(|mdev| mdev.uuid == row.id.0).and_then(|mdev| mdev.parent);
                let parent = found.and_then(|address| self.device_at(host, address));
                let parent = parent.map_or(row.parent, |parent| parent.id);
                let is_refused = !self.store.may_have_again(row, parent).await?;
                replaced.extend(is_refused.then_some(row.id));
                parents.extend(self.store.mdevs().await?.iter().map(|made| made.parent));
            }
        }
        Ok((replaced, parents))
    }

    fn device_at(&self, host: &Host, address: PciAddress) -> Option<Arc<Device>> {
        let devices = self.store.devices_of(host.row.id);
        devices.into_iter().find(|device| device.facts.address == address)
    }

    /// Returns the record whose id is in a hotslot alias, whether it has ended or not.
    async fn named(&self, id: AttachmentId) -> Result<Option<Assignment>, Error> {
        for kind in [AssignmentKind::Attachment, AssignmentKind::Mdev] {
            if let Some(row) = self.store.assignment(AssignmentKey { kind, id }).await? {
                return Ok(Some(row));
            }
        }
        Ok(None)
    }

    /// Returns another host that has a server, if it answers in time.
    async fn elsewhere(&self, host: &Host, server: ServerId) -> Option<&Arc<Host>> {
        let others = self.hosts.iter().filter(|other| other.row.id != host.row.id);
        for other in others.filter(|other| other.hypervisor.connection().is_ok()) {
            if other.soon(other.hypervisor.domain(server.0)).await.is_ok() {
                return Some(other);
            }
        }
        None
    }

    /// Returns all disagreements between a host and the records. A domain that cannot be read is one of them.
    ///
    /// # Errors
    /// [`Error::HostAway`] when the host is unreachable; other errors of the hypervisor and of the database.
    pub async fn drift(&self, host: &Host) -> Result<Vec<Finding>, Error> {
        host.ready().await?;
        let mut findings = Vec::new();
        for server in self.servers_of(host).await? {
            match self.compare(host, server).await {
                Ok((found, _)) => findings.extend(found),
                Err(error @ Error::HostAway { .. }) => return Err(error),
                Err(error) => findings.push(Finding {
                    kind: Kind::Unread,
                    server: Some((server, None)),
                    attachment: None,
                    address: None,
                    observations: vec![(Source::Host, error.to_string())],
                    action: Action::Manual("nothing, until the server can be read".into()),
                }),
            }
        }
        let mut devices = self.store.devices_of(host.row.id);
        let rows = self.store.attachments().await?;
        // A device that was claimed or freed meanwhile is no disagreement.
        devices
            .retain(|device| self.store.device(device.id).is_some_and(|now| now.request == device.request));
        findings.extend(of_devices(&rows, &devices, &host.functions(), &host.foreign()));
        findings.extend(self.pending_rebind(host).await?.findings);
        findings.extend(self.of_accelerators(host).await?);
        findings.extend(self.under_calls(host).await?);
        Ok(findings)
    }

    /// Returns the disagreements about bindings and mediated devices.
    async fn of_accelerators(&self, host: &Host) -> Result<Vec<Finding>, Error> {
        let mut findings = Vec::new();
        let mut bindings = self.store.bindings().await?;
        bindings.retain(|row| row.hypervisor == host.row.id);
        let is_left =
            |row: &Binding| row.state != State::Attached && self.call_out(host, None, row.device).is_none();
        if bindings.iter().any(is_left) && self.groups_are_idle(host).await? {
            // A binding whose record changed meanwhile was worked on; it is not left over.
            let now = self.store.bindings().await?;
            for row in bindings.iter().filter(|row| is_left(row) && now.contains(row)) {
                let device = self.store.known_device(row.device).await?;
                findings.extend(device.map(|device| of_unfinished_binding(row, &device)));
            }
        }
        for row in bindings.iter().filter(|row| row.state == State::Attached) {
            let Some(device) = self.store.known_device(row.device).await? else { continue };
            let address = device.facts.address;
            // Read the driver now, because no event reports that a driver was bound or unbound.
            let found = match host.hypervisor.device(address).await {
                Err(error) if error.kind == ErrorKind::NoDevice => None,
                found => Some(found.map_err(host.error(format!("read {address}")))?),
            };
            // It may have been released meanwhile.
            if self.store.bindings().await?.iter().any(|now| now.id == row.id && now.state == State::Attached)
            {
                findings.extend(of_binding(row, &device, found.as_ref()));
            }
        }
        let mdevs = self.store.mdevs().await?;
        host.read_mdevs().await?;
        findings.extend(self.stray_mdevs(host).await?);
        let mut mdevs = mdevs
            .into_iter()
            .filter(|row| row.hypervisor == host.row.id && row.state == State::Attached)
            .peekable();
        if mdevs.peek().is_none() {
            return Ok(findings);
        }
        let there = host.mdevs();
        for row in mdevs.filter(|row| !there.iter().any(|mdev| mdev.uuid == row.id.0)) {
            let now = self.store.mdev(row.id).await?;
            if now.is_some_and(|now| now.state == State::Attached)
                && let Some(parent) = self.store.known_device(row.parent).await?
            {
                findings.push(of_mdev(&row, &parent));
            }
        }
        Ok(findings)
    }

    /// Returns the mediated devices that a host has although their records have ended: a create call that failed or was
    /// given up may have created them. Devices that others created have no record. A device that the last read of the
    /// host did not find is not considered.
    async fn stray_mdevs(&self, host: &Host) -> Result<Vec<Finding>, Error> {
        let mut ended = Vec::new();
        for found in host.mdevs().iter() {
            let row = self.store.mdev(AttachmentId(found.uuid)).await?;
            // One that ended although nobody had requested that was created again for its server, which comes back.
            let is_stray =
                |row: &Mdev| row.hypervisor == host.row.id && row.state.is_final() && !row.unrequested;
            ended.extend(row.filter(is_stray));
        }
        if ended.is_empty() {
            return Ok(Vec::new());
        }
        // A record ends only after its mediated device was removed, so a device that exists now is a stray one.
        let (there, mut findings) = (host.read_mdevs().await?, Vec::new());
        for row in ended {
            let Some(found) = there.iter().find(|found| found.uuid == row.id.0) else { continue };
            let used_by = host.has_mdev(found.uuid);
            if let Some(server) = used_by
                && host.server(server).await?.is_some_and(|view| aliases(&view).contains(&row.id))
            {
                // The comparison of that server reports it.
                continue;
            }
            findings.push(of_stray_mdev(&row, found, used_by));
        }
        Ok(findings)
    }

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
                (Action::Rebind(_), _) => pending_rebind = true,
                (Action::Free(device), _) => self.store.forget(*device).await?,
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
            Action::Adopt(_) | Action::Rebind(_) | Action::Free(_) | Action::Manual(_) => return Ok(()),
        };
        let (key, Some(server)) = (row.key(), row.server()) else { return Ok(()) };
        // From here on no other task changes the row.
        if self.store.assignment(key).await?.is_none_or(|now| now.state() != supposed) {
            return Ok(());
        }
        let outcome = match &action {
            Action::RetryUnplug(_) => {
                let attempt = Attempt { until: None, first: false };
                let released = self.detach_now(host, key, attempt, guard).await;
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
            Action::Adopt(_) | Action::Rebind(_) | Action::Free(_) | Action::Manual(_) => Ok(Release::Ended),
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
    /// [`Error::NoServer`]; the refusal of a check; errors of the hypervisor and of the database.
    async fn plug_again(&self, host: &Host, row: &Assignment) -> Result<(), Error> {
        let Some(server) = row.server() else { return Ok(()) };
        let _turn = self.turns.of(format!("server {server}")).await?;
        let view = host.server(server).await?.ok_or(Error::NoServer(server))?;
        // Only the running guest is checked, because the definition has the device already.
        let view = DomainView { persistent: None, ..view };
        match row {
            Assignment::Attachment(row) => self.may_be_plugged(host, &view, row).await?,
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

    /// Checks whether a function can be plugged into a guest.
    ///
    /// # Errors
    /// The first check that failed; errors of the hypervisor.
    async fn may_be_plugged(&self, host: &Host, view: &DomainView, row: &Attachment) -> Result<(), Error> {
        let device = self.device_of(row)?;
        let address = device.facts.address;
        let context = || format!("plugging {address} into server {}", row.server);
        let found = host.hypervisor.device(address).await.map_err(host.error(context()))?;
        let facts = self.catalog.availability(host).await?.facts(found, &device);
        let policy = Policy { require_reset: self.config.attach.require_reset, whole_groups: false };
        let verdict = hotplug::preflight(host.hypervisor.as_ref(), view, &[facts], policy).await;
        let verdict = verdict.map_err(host.error(context()))?;
        match verdict.refusal() {
            Some(refusal) => Err(host.error(context())(refusal.error.clone())),
            None => Ok(()),
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
    /// As [`drift`](Self::drift).
    pub async fn repair(
        self: &Arc<Self>,
        host: &Arc<Host>,
    ) -> Result<Vec<(Finding, Result<(), String>)>, Error> {
        let (service, host) = (Arc::clone(self), Arc::clone(host));
        task::join(actor::spawn_as_current(async move { service.repair_now(&host).await })).await
    }

    async fn repair_now(
        self: &Arc<Self>,
        host: &Arc<Host>,
    ) -> Result<Vec<(Finding, Result<(), String>)>, Error> {
        let found = self.drift(host).await?;
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
