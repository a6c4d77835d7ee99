//! Detach: the guest is asked to release a device. The device is gone only when no document of the domain has it.

use std::sync::Arc;

use hotslot_driver::domain::UserAlias;
use hotslot_driver::hotplug::Presence;
use hotslot_model::assignment::{
    Assignment, AssignmentKey, AssignmentKind, Attachment, Change, Holder, Observation, State, Trigger,
};
use hotslot_model::host_mode::HostChange;
use hotslot_model::id::{AttachmentId, ServerId};
use hotslot_store::actor;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::assignments::Assignments;
use super::engine::Release;
use super::policy::GuestDevice;
use super::request::{Attempt, DetachRequest};
use crate::error::Error;
use crate::host::Host;
use crate::{locks, task};

/// The work of a detach that has begun.
pub(crate) type Work = JoinHandle<Result<(), Error>>;

/// Added to the error of a forced detach that joined another one and could not begin its own.
const NOT_FORCED: &str =
    "not forced, because another detach was waiting for the guest; detach again with force";

impl Assignments {
    /// Returns a server's attachment, whether it has ended or not.
    ///
    /// # Errors
    /// [`Error::NoAttachment`] when there is no such attachment, or it belongs to another server; errors of the
    /// database.
    pub async fn attachment_of(&self, server: ServerId, id: AttachmentId) -> Result<Attachment, Error> {
        let found = self.store.attachment(id).await?.filter(|attachment| attachment.server == server);
        found.ok_or(Error::NoAttachment(id))
    }

    /// Records that an attachment is to be detached, and returns the work of detaching it; `None` when it is gone
    /// already.
    ///
    /// # Errors
    /// [`Error::NoAttachment`]; as `begin_detach_of`.
    pub async fn begin_detach(
        self: &Arc<Self>,
        server: ServerId,
        id: AttachmentId,
        request: DetachRequest,
    ) -> Result<Option<Work>, Error> {
        let row = Assignment::Attachment(self.attachment_of(server, id).await?);
        self.begin_detach_from(row, request).await
    }

    /// Records that the device of a server is to be detached, and returns the work of detaching it; `None` when it is
    /// gone already.
    ///
    /// # Errors
    /// [`Error::Busy`] while it is still being attached; [`Error::Conflict`] when it belongs to another holder, or when a policy
    /// forbids it; [`Error::HostAway`].
    pub(crate) async fn begin_detach_of(
        self: &Arc<Self>,
        key: AssignmentKey,
        request: DetachRequest,
    ) -> Result<Option<Work>, Error> {
        let row = self.store.assignment(key).await?.ok_or(Error::NoAttachment(key.id))?;
        self.begin_detach_from(row, request).await
    }

    /// Does the work of [`begin_detach_of`](Self::begin_detach_of), from the row as it was just read.
    async fn begin_detach_from(
        self: &Arc<Self>,
        row: Assignment,
        request: DetachRequest,
    ) -> Result<Option<Work>, Error> {
        let (key, id) = (row.key(), row.id());
        let until = request.timeout.map(|timeout| Instant::now() + timeout);
        let service = Arc::clone(self);
        let mut read = Some(row);
        let (host, guard) = loop {
            let row = match read.take() {
                Some(row) => row,
                None => self.store.assignment(key).await?.ok_or(Error::NoAttachment(id))?,
            };
            match row.state() {
                State::Detached if row.unrequested() => {
                    expect_holder(&row, request.holder)?;
                    if self.is_back(&row).await? {
                        continue;
                    }
                    self.store.forgo_return(key).await?;
                    return self.begin_take_out(&row, request.holder, until).await;
                }
                // The detach was requested before, or the device never plugged: nothing is left to do, unless its
                // server has the device.
                State::Detached | State::Failed => {
                    return self.begin_take_out(&row, request.holder, until).await;
                }
                // Refuse while the attach runs; reconciliation settles one that was interrupted.
                State::Attaching => {
                    return Err(Error::Busy(format!(
                        "{key} is still attaching; try again when it is attached"
                    )));
                }
                State::Attached | State::Detaching => {}
            }
            let host = self.may_begin(&row, request).await?;
            let late = until.is_some_and(|until| until <= Instant::now());
            match self.in_flight.try_enter(id).await? {
                Some(guard) => break (host, guard),
                // Another request is detaching the device already. Share its outcome, unless this one is forced.
                None if late || row.state() == State::Detaching => {
                    let work = async move {
                        service.join_detach(&host, key, request.force, until).await?.into_result()
                    };
                    return Ok(Some(actor::spawn_as_current(work)));
                }
                // The attach has not returned yet, or another detach is about to begin: wait, then read the row again.
                None => self.idle_until(id, until).await?,
            }
        };
        let room = host.admit()?;
        let (row, first) = self.intend(key, request.force).await?;
        let attempt = Attempt { until, first };
        Ok(Some(actor::spawn_as_current(async move {
            let _room = room;
            service.detach_now(&host, row, attempt, guard).await?.into_result()
        })))
    }

    /// Checks whether a detach of an open assignment may begin, and returns its host.
    ///
    /// # Errors
    /// [`Error::Conflict`] when it belongs to another holder, or a policy forbids it; [`Error::HostAway`].
    async fn may_begin(&self, row: &Assignment, request: DetachRequest) -> Result<Arc<Host>, Error> {
        expect_holder(row, request.holder)?;
        let host = self.hosts.host(row.hypervisor()).cloned().ok_or_else(|| {
            Error::Conflict(format!("{} is on a host that is no longer configured", row.key()))
        })?;
        self.hosts.expect_open(&host, HostChange::Other).await?;
        host.ready().await?;
        if row.state() == State::Attached
            && !request.force
            && let Some(device) = GuestDevice::of(row)
        {
            self.check_detach_policy(&host, device).await?;
        }
        Ok(host)
    }

    /// Compares a server whose assignment ended without a request, as after a save or a move to another host. Returns
    /// whether the server came back with the device, so that the assignment is open again.
    async fn is_back(self: &Arc<Self>, row: &Assignment) -> Result<bool, Error> {
        // If no host that answers has the server, the device is detached when the domain is read again.
        let Some(server) = row.server() else { return Ok(false) };
        let Ok((host, _)) = self.hosts.find(server).await else { return Ok(false) };
        self.reconcile(&host, server, Trigger::Event).await?;
        let now = self.store.assignment(row.key()).await?;
        Ok(now.is_some_and(|now| !now.state().is_final()))
    }

    /// Starts to detach a device from a server that has it although its assignment has ended: the server came back with
    /// it, here or on another host, after its detach was requested. Returns `None` when the server does not have the
    /// device, or cannot be read; then the next comparison of the server detaches it.
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
        self.hosts.expect_open(&host, HostChange::Other).await?;
        expect_holder(row, holder)?;
        let (mut findings, _) = self.compare(&host, server).await?;
        findings.retain(|finding| finding.attachment == Some(key.id));
        let tasks = self.apply(&host, findings, Trigger::Arrival).await?;
        let service = Arc::clone(self);
        Ok(Some(actor::spawn_as_current(async move {
            for (_, task) in tasks {
                let answer = task::join(task);
                match until {
                    None => answer.await?,
                    // The task continues after the time-out; the server is read as it is then.
                    Some(until) => tokio::time::timeout_at(until, answer).await.unwrap_or(Ok(()))?,
                }
            }
            let (host, view) = service.hosts.find(server).await?;
            if Presence::of(&view, UserAlias(key.id.0)).is_absent() {
                return Ok(());
            }
            Err(Error::Conflict(format!(
                "{key} is {state}, but server {server} on host {} still has its device; detach again, or see GET drift \
                 for the reason",
                host.name
            )))
        })))
    }

    /// Records that a device is to be detached. Returns the row as it is now, and whether that is new.
    async fn intend(&self, key: AssignmentKey, force: bool) -> Result<(Assignment, bool), Error> {
        let change = self.changes(&[(key, Observation::DetachRequested)]).await?.pop();
        let Change { was, row, .. } = change.ok_or(Error::NoAttachment(key.id))?;
        let first = was == State::Attached;
        if !force {
            return Ok((row, first));
        }
        self.store.force(key).await?;
        let row = self.store.assignment(key).await?.ok_or(Error::NoAttachment(key.id))?;
        Ok((row, first))
    }

    /// Waits until no task works on an assignment, or until `until`.
    async fn idle_until(&self, id: AttachmentId, until: Option<Instant>) -> Result<(), Error> {
        let idle = self.in_flight.idle(id);
        match until {
            Some(until) => tokio::time::timeout_at(until, idle).await.unwrap_or(Ok(())),
            None => idle.await,
        }
    }

    /// Waits for a detach that another request began and shares its outcome. When that one failed and this one is
    /// forced, it begins a detach of its own.
    async fn join_detach(
        self: &Arc<Self>,
        host: &Host,
        key: AssignmentKey,
        force: bool,
        until: Option<Instant>,
    ) -> Result<Release, Error> {
        let shared = self.outcome_of_others(key, until).await?;
        if !force || matches!(shared, Release::Ended) {
            return Ok(shared);
        }
        let Some(guard) = self.in_flight.try_enter(key.id).await? else {
            // Yet another detach has begun; it does not see that this one is forced.
            return Ok(match self.outcome_of_others(key, until).await? {
                Release::Stays(why) => Release::Stays(format!("{why}; {NOT_FORCED}")),
                Release::Ended => Release::Ended,
            });
        };
        let _room = host.admit()?;
        let (row, first) = self.intend(key, force).await?;
        self.detach_now(host, row, Attempt { until, first }, guard).await
    }

    /// Waits for the detach that another request began, and returns its outcome.
    async fn outcome_of_others(&self, key: AssignmentKey, until: Option<Instant>) -> Result<Release, Error> {
        // After a time-out the current state is the outcome.
        self.idle_until(key.id, until).await?;
        let row = self.store.assignment(key).await?.ok_or(Error::NoAttachment(key.id))?;
        if row.state().is_final() {
            return Ok(Release::Ended);
        }
        let reason = row.reason().unwrap_or("the guest has not released the device");
        Ok(Release::Stays(format!("{key} is {}: {reason}", row.state())))
    }

    /// Releases an assignment that is recorded as `detaching`, and has its server compared afterwards. `row` is the
    /// record as it was just read or written.
    ///
    /// # Errors
    /// As [`release`](Self::release).
    pub(crate) async fn detach_now(
        self: &Arc<Self>,
        host: &Host,
        row: Assignment,
        attempt: Attempt,
        guard: locks::Guard,
    ) -> Result<Release, Error> {
        if row.state().is_final() {
            return Ok(Release::Ended);
        }
        let outcome = self.release(host, &row, attempt).await;
        drop(guard);
        if let Some(server) = row.server() {
            // Comparisons skipped this assignment while it was worked on, so compare the server again.
            host.queue_server_check(server);
            // After an error it is unknown whether the guest was requested to release the device.
            if outcome.is_err() {
                host.queue_unplug_retry(server);
            }
        }
        if row.kind() == AssignmentKind::Mdev {
            // Read the host's mediated devices again, since availability depends on them.
            drop(host.read_mdevs().await);
        }
        outcome
    }
}

/// Checks that a detach is requested for the holder of the assignment.
///
/// # Errors
/// [`Error::Conflict`] with the request that detaches it.
fn expect_holder(row: &Assignment, holder: Option<Holder>) -> Result<(), Error> {
    if row.holder() == holder {
        return Ok(());
    }
    let key = row.key();
    Err(Error::Conflict(match row.holder() {
        Some(holder) => format!("{key} was made for {holder}; to release it, DELETE {}", holder.path()),
        None => format!("{key} was not made for an accelerator; detach it under os-pci_attachments"),
    }))
}
