//! Detach: a device is requested from its guest, and is gone only when no document of the domain has it.

use std::sync::Arc;

use hotslot_driver::domain::UserAlias;
use hotslot_driver::hotplug::Presence;
use hotslot_model::assignment::{
    Assignment, AssignmentKey, AssignmentKind, Attachment, Holder, Observation, State, Trigger,
};
use hotslot_model::id::{AttachmentId, ServerId};
use hotslot_store::actor;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::assignments::Assignments;
use super::policy::GuestDevice;
use super::request::{Ask, DetachRequest};
use crate::error::Error;
use crate::host::Host;
use crate::{locks, task};

/// The work of a detach that has begun.
pub(crate) type Work = JoinHandle<Result<(), Error>>;

/// Added to the outcome of a forced detach that joined another one and whose time was over before its turn.
const NOT_FORCED: &str = "not forced, for the guest was being asked already; ask again with force";

impl Assignments {
    /// A server's attachment, whether it has ended or not.
    ///
    /// # Errors
    /// [`Error::NoAttachment`].
    pub async fn attachment_of(&self, server: ServerId, id: AttachmentId) -> Result<Attachment, Error> {
        let found = self.store.attachment(id).await?.filter(|attachment| attachment.server == server);
        found.ok_or(Error::NoAttachment(id))
    }

    /// Records that an attachment is to be detached, and returns the work of detaching it; `None` when it is gone
    /// already.
    ///
    /// # Errors
    /// [`Error::NoAttachment`]; as [`begin_detach_of`](Self::begin_detach_of).
    pub async fn begin_detach(
        self: &Arc<Self>,
        server: ServerId,
        id: AttachmentId,
        request: DetachRequest,
    ) -> Result<Option<Work>, Error> {
        let row = self.attachment_of(server, id).await?;
        self.begin_detach_of(Assignment::Attachment(row).key(), request).await
    }

    /// Records that the device of a server is to be detached, and returns the work of detaching it; `None` when it is
    /// gone already.
    ///
    /// # Errors
    /// [`Error::Conflict`] while it is still being attached, when it belongs to another holder, or when a policy forbids
    /// it; [`Error::HostAway`].
    pub(crate) async fn begin_detach_of(
        self: &Arc<Self>,
        key: AssignmentKey,
        request: DetachRequest,
    ) -> Result<Option<Work>, Error> {
        let id = key.id;
        let until = request.timeout.map(|timeout| Instant::now() + timeout);
        let service = Arc::clone(self);
        let (host, guard) = loop {
            let row = self.store.assignment(key).await?.ok_or(Error::NoAttachment(id))?;
            match row.state() {
                State::Detached if row.unasked() => {
                    expect_holder(&row, request.holder)?;
                    if self.is_back(&row).await? {
                        continue;
                    }
                    self.store.asked_to_go(key).await?;
                    return self.begin_take_out(&row, request.holder, until).await;
                }
                // Requested before, or never plugged: the outcome is the same, unless its server has the device.
                State::Detached | State::Failed => {
                    return self.begin_take_out(&row, request.holder, until).await;
                }
                // Nobody may request that while the attach is out; one that was cut off is settled by itself.
                State::Attaching => {
                    return Err(Error::Conflict(format!(
                        "{key} is still attaching; try again when it is attached"
                    )));
                }
                State::Attached | State::Detaching => {}
            }
            expect_holder(&row, request.holder)?;
            let host =
                self.hosts.host(row.hypervisor()).cloned().ok_or_else(|| {
                    Error::Conflict(format!("{key} is on a host that is no longer configured"))
                })?;
            host.ready().await?;
            if row.state() == State::Attached
                && !request.force
                && let Some(device) = GuestDevice::of(&row)
            {
                self.may_be_asked(&host, device).await?;
            }
            let late = until.is_some_and(|until| until <= Instant::now());
            match self.in_flight.try_enter(id).await? {
                Some(guard) => break (host, guard),
                // Another request asks the guest already: the outcome is the same, unless this one forces it.
                None if late || row.state() == State::Detaching => {
                    let work = async move { service.join_detach(&host, key, request.force, until).await };
                    return Ok(Some(actor::spawn_as_current(work)));
                }
                // The attach has not returned yet, or another detach is about to begin: read the row again then.
                None => self.idle_until(id, until).await?,
            }
        };
        let room = host.admit()?;
        let first = self.intend(key, request.force).await?;
        let ask = Ask { until, first };
        Ok(Some(actor::spawn_as_current(async move {
            let _room = room;
            service.detach_now(&host, key, ask, guard).await
        })))
    }

    /// Whether a server has come back with a device that ended although nobody had requested that: saved and restored,
    /// or moved to another host. Then it is attached again.
    async fn is_back(self: &Arc<Self>, row: &Assignment) -> Result<bool, Error> {
        // A device of a host that does not answer is taken out when its domain is read again.
        let Some(server) = row.server() else { return Ok(false) };
        let Ok((host, _)) = self.hosts.find(server).await else { return Ok(false) };
        self.reconcile(&host, server, Trigger::Event).await?;
        let now = self.store.assignment(row.key()).await?;
        Ok(now.is_some_and(|now| !now.state().is_final()))
    }

    /// Has a device taken out of a server that has it although its assignment has ended: the server came back with it,
    /// here or on another host, after its detach was requested. `None` when the server does not have it, or does not
    /// answer: then it is taken out when the server is compared next.
    async fn begin_take_out(
        self: &Arc<Self>,
        row: &Assignment,
        holder: Option<Holder>,
        until: Option<Instant>,
    ) -> Result<Option<Work>, Error> {
        let (key, state) = (row.key(), row.state());
        let Some(server) = row.server() else { return Ok(None) };
        let Ok((host, view)) = self.hosts.find(server).await else { return Ok(None) };
        if Presence::of(&view, UserAlias(key.id.0)).is_absent() {
            return Ok(None);
        }
        expect_holder(row, holder)?;
        let (mut findings, _) = self.compare(&host, server).await?;
        findings.retain(|finding| finding.attachment == Some(key.id));
        let tasks = self.put_right(&host, findings, Trigger::Arrival).await?;
        let service = Arc::clone(self);
        Ok(Some(actor::spawn_as_current(async move {
            for (_, task) in tasks {
                let answer = task::join(task);
                match until {
                    None => answer.await?,
                    // The task goes on after the time-out; the server is read as it is then.
                    Some(until) => tokio::time::timeout_at(until, answer).await.unwrap_or(Ok(()))?,
                }
            }
            let (host, view) = service.hosts.find(server).await?;
            if Presence::of(&view, UserAlias(key.id.0)).is_absent() {
                return Ok(());
            }
            Err(Error::Conflict(format!(
                "{key} is {state}, and server {server} on host {} has its device still; ask again, or look at GET drift \
                 for what keeps it there",
                host.name
            )))
        })))
    }

    /// Records that a device is to be detached. Returns whether that is new.
    async fn intend(&self, key: AssignmentKey, force: bool) -> Result<bool, Error> {
        let first = self.store.assignment(key).await?.is_some_and(|row| row.state() == State::Attached);
        self.settle(key, Observation::AskedToDetach).await?;
        if force {
            self.store.force(key).await?;
        }
        Ok(first)
    }

    /// Waits until nobody works on an assignment, or until the time is over.
    async fn idle_until(&self, id: AttachmentId, until: Option<Instant>) -> Result<(), Error> {
        let idle = self.in_flight.idle(id);
        match until {
            Some(until) => tokio::time::timeout_at(until, idle).await.unwrap_or(Ok(())),
            None => idle.await,
        }
    }

    /// Shares the outcome of a detach that another request began; one that is forced goes on where that one failed.
    async fn join_detach(
        self: &Arc<Self>,
        host: &Host,
        key: AssignmentKey,
        force: bool,
        until: Option<Instant>,
    ) -> Result<(), Error> {
        match self.outcome_of_others(key, until).await {
            Err(Error::Conflict(_)) if force => {}
            outcome => return outcome,
        }
        let Some(guard) = self.in_flight.try_enter(key.id).await? else {
            // The other request goes by what was on record when it began.
            return match self.outcome_of_others(key, until).await {
                Err(Error::Conflict(why)) => Err(Error::Conflict(format!("{why}; {NOT_FORCED}"))),
                outcome => outcome,
            };
        };
        let _room = host.admit()?;
        let first = self.intend(key, force).await?;
        self.detach_now(host, key, Ask { until, first }, guard).await
    }

    /// Waits for the detach that another request began, and returns its outcome.
    async fn outcome_of_others(&self, key: AssignmentKey, until: Option<Instant>) -> Result<(), Error> {
        // After a time-out the state of that moment is the outcome.
        self.idle_until(key.id, until).await?;
        let row = self.store.assignment(key).await?.ok_or(Error::NoAttachment(key.id))?;
        if row.state().is_final() {
            return Ok(());
        }
        let reason = row.reason().unwrap_or("the guest has not let go");
        Err(Error::Conflict(format!("{key} is {}: {reason}", row.state())))
    }

    /// Releases an assignment that is recorded as `detaching`, and has its server compared afterwards.
    ///
    /// # Errors
    /// As [`release`](Self::release).
    pub(crate) async fn detach_now(
        self: &Arc<Self>,
        host: &Host,
        key: AssignmentKey,
        ask: Ask,
        guard: locks::Guard,
    ) -> Result<(), Error> {
        let Some(row) = self.store.assignment(key).await?.filter(|row| !row.state().is_final()) else {
            return Ok(());
        };
        let outcome = self.release(host, &row, ask).await;
        drop(guard);
        if let Some(server) = row.server() {
            // Events that came while it was worked on were left to the worker.
            host.look_again(server);
            // A refusal is the guest's answer; after any other error it is not known whether the guest was asked.
            if !matches!(outcome, Ok(()) | Err(Error::Conflict(_))) {
                host.ask_again(server);
            }
        }
        if row.kind() == AssignmentKind::Mdev {
            // The availability of mediated devices depends on those that there are.
            drop(host.look_at_mdevs().await);
        }
        outcome
    }
}

/// Refuses the detach of an assignment for another holder than the one that it was made for.
fn expect_holder(row: &Assignment, holder: Option<Holder>) -> Result<(), Error> {
    if row.holder() == holder {
        return Ok(());
    }
    let key = row.key();
    Err(Error::Conflict(match row.holder() {
        Some(holder) => format!("{key} was made for {holder}: DELETE {} gives it back", holder.path()),
        None => format!("{key} was made by itself; detach it under os-pci_attachments"),
    }))
}
