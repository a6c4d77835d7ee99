//! The engine of all three kinds of assignment: how an observation reaches the records, how an assignment is released,
//! and how a failed attach is undone.
//!
//! The file of each kind (`attach.rs`, `mdev.rs`, `host_use.rs`) assigns and releases its devices; this file decides
//! what the records say about it.

use std::cmp::Ordering;

use hotslot_driver::hotplug::{DetachLimits, Unplugged};
use hotslot_driver::hypervisor::{self, ErrorKind};
use hotslot_driver::pci::PciAddress;
use hotslot_model::assignment::{Assignment, AssignmentKey, AssignmentKind, Change, Observation};
use hotslot_model::device::Device;
use hotslot_model::id::DeviceId;
use tokio::time::Instant;

use super::assignments::Assignments;
use super::policy::GuestDevice;
use super::request::Attempt;
use crate::error::Error;
use crate::host::Host;
use crate::metrics;
use crate::under_way;

/// The outcome of one attempt to release a device.
#[derive(Debug)]
pub(crate) enum ReleaseOutcome {
    /// The device is in no document of its domain, or back with the host.
    Gone {
        /// Anything worth knowing about it, for people.
        reason: Option<String>,
    },
    /// The guest refused; it keeps the device.
    Refused {
        /// Why, for people.
        reason: String,
    },
    /// The device is still there and may go at any time.
    Pending {
        /// Why, for people.
        reason: String,
    },
    /// The guest no longer has the mediated device, and the host still has it, because a call that has not returned may
    /// still change it.
    LeftOnHost {
        /// The call, for people.
        reason: String,
    },
    /// The hypervisor failed. The kind of the error says whether the device may still be released.
    Failed {
        /// The hypervisor's error.
        error: hypervisor::Error,
        /// Whether the device is assigned as before, unless it may still be released.
        as_before: bool,
    },
}

impl ReleaseOutcome {
    /// The word of the outcome in the metrics.
    fn word(&self) -> &'static str {
        match self {
            Self::Gone { .. } => "done",
            Self::Refused { .. } => "refused",
            Self::Pending { .. } | Self::LeftOnHost { .. } => "pending",
            Self::Failed { .. } => "failed",
        }
    }
}

impl From<Result<Unplugged, hypervisor::Error>> for ReleaseOutcome {
    fn from(unplugged: Result<Unplugged, hypervisor::Error>) -> Self {
        match unplugged {
            Ok(Unplugged::Gone) => Self::Gone { reason: None },
            Ok(Unplugged::Refused { reason }) => Self::Refused { reason },
            Ok(Unplugged::Pending { reason }) => Self::Pending { reason },
            Err(error) => Self::Failed { error, as_before: true },
        }
    }
}

/// What became of an assignment that was to be released.
#[derive(Debug)]
#[must_use]
pub(crate) enum Release {
    /// It has ended: the device is gone from its guest, or back with the host.
    Ended,
    /// The device stays for now. The text says why, and what to do.
    Stays(String),
}

impl Release {
    /// The result for a caller who requested the release.
    ///
    /// # Errors
    /// [`Error::Conflict`] when the device stays.
    pub(crate) fn into_result(self) -> Result<(), Error> {
        match self {
            Self::Ended => Ok(()),
            Self::Stays(text) => Err(Error::Conflict(text)),
        }
    }
}

/// One step of an attach: a reserved assignment and its device.
pub(crate) trait Step {
    /// The assignment.
    fn key(&self) -> AssignmentKey;
    /// The function; for a mediated device, its parent.
    fn device(&self) -> &Device;
}

/// What a failed attach left of one of its assignments.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Leftover {
    /// Nothing: its device was never touched, or the refusal proves that it did not move.
    Nothing,
    /// Nothing any more: the guest had the device for a moment.
    Gone,
    /// The device is assigned, and is released at once.
    Assigned,
    /// It is not known whether the device is assigned; the next comparison of host and records releases it.
    Unknown,
}

/// How one step of an attach failed.
pub(crate) struct Failed {
    /// The index of the step, from 0.
    pub(crate) step: usize,
    /// What the step left.
    pub(crate) leftover: Leftover,
    /// What the steps before it left.
    pub(crate) before: Leftover,
    /// What the steps after it left.
    pub(crate) after: Leftover,
    /// The hypervisor's error.
    pub(crate) error: hypervisor::Error,
}

impl Failed {
    /// A step failed; the steps before it have assigned their devices, and those after it were not tried. `if_refused` is
    /// what the step left if the error is a refusal; after a lost connection or a time-out that is not known.
    pub(crate) fn at(step: usize, if_refused: Leftover, error: hypervisor::Error) -> Self {
        let leftover = if error.kind.leaves_it_open() { Leftover::Unknown } else { if_refused };
        Self { step, leftover, before: Leftover::Assigned, after: Leftover::Nothing, error }
    }
}

/// An attach that was undone.
pub(crate) struct Failure {
    /// The device of the step that failed.
    pub(crate) device: DeviceId,
    /// Whether somebody else has that device, and nothing is left of the attach: another device may do.
    pub(crate) in_use: bool,
    /// The error for the caller.
    pub(crate) error: Error,
}

impl Failure {
    /// The attach failed for a reason other than its device.
    pub(crate) fn of(device: DeviceId, error: impl Into<Error>) -> Self {
        Self { device, in_use: false, error: error.into() }
    }
}

/// Separates the reason of a failed attach from the reason why its device is still there.
const TAKEN_BACK: &str = "; the attach is not completed, and its device is not released yet: ";

/// Begins the reason why a mediated device that its guest has released is still on the host.
const LEFT_ON_HOST: &str =
    "the guest no longer has it, and it is removed from the host when a call returns: ";

/// Added to the reason of a forced detach whose device is still there.
const FORCED: &str = "forced: the device was removed from the domain's definition and the guest was requested to \
     release it, which is all that can be done to a running guest; the guest keeps the device until it releases it or is \
     powered off";

impl Assignments {
    /// Records one observation; returns the row as it is now.
    ///
    /// # Errors
    /// Errors of the database.
    pub(crate) async fn settle(
        &self,
        key: AssignmentKey,
        observation: Observation,
    ) -> Result<Option<Assignment>, Error> {
        Ok(self.settle_all(&[(key, observation)]).await?.pop())
    }

    /// Records several observations in their order and in one transaction. All records of assignments change here.
    /// Returns the rows as they are now.
    ///
    /// # Errors
    /// Errors of the database; then nothing was recorded.
    pub(crate) async fn settle_all(
        &self,
        seen: &[(AssignmentKey, Observation)],
    ) -> Result<Vec<Assignment>, Error> {
        Ok(self.changes(seen).await?.into_iter().map(|change| change.row).collect())
    }

    /// As [`settle_all`](Self::settle_all), with the states that the rows had before.
    ///
    /// # Errors
    /// As `settle_all`.
    pub(super) async fn changes(&self, seen: &[(AssignmentKey, Observation)]) -> Result<Vec<Change>, Error> {
        if seen.is_empty() {
            return Ok(Vec::new());
        }
        let after = |row: &Assignment, device: &Device| self.after_use(row, device);
        let changes = self.store.settle_and(seen, &after).await?;
        for Change { was, row, address } in changes.iter().filter(|change| change.was != change.row.state()) {
            tracing::info!(
                attachment.id = %row.id(), owner = %row.owner(), from = %was, to = %row.state(),
                reason = row.reason().unwrap_or_default(), "{} is {}", row.key(), row.state()
            );
            if row.state().is_final() {
                self.has_ended(row, *address);
                if let Err(error) = self.check_health(row).await {
                    tracing::error!(attachment.id = %row.id(), %error, "the device of {} was not checked", row.key());
                }
            }
        }
        Ok(changes)
    }

    /// Has the host read again after an assignment has ended: the device may have changed while it was in use, its IOMMU
    /// group may have to be rebound to its host drivers, and it may wait for its scrub.
    fn has_ended(&self, row: &Assignment, address: Option<PciAddress>) {
        let Some(host) = self.hosts.host(row.hypervisor()) else { return };
        address.into_iter().for_each(|address| host.queue_device_scan(address));
        if let Some(server) = row.server() {
            host.settled(server);
        }
        if row.kind() != AssignmentKind::Mdev {
            host.queue_rebind();
        }
    }

    /// Releases an assignment that is recorded as `detaching`: a guest is prepared first, then its device is released
    /// and the outcome recorded.
    ///
    /// # Errors
    /// Errors of the hypervisor and of the database; then it is not known whether the guest was requested to
    /// release the device.
    pub(crate) async fn release(
        &self,
        host: &Host,
        row: &Assignment,
        attempt: Attempt,
    ) -> Result<Release, Error> {
        let work = async {
            let _shown = under_way::shown_for([row.id()]);
            self.release_prepared(host, row, attempt).await
        };
        metrics::detach(row.kind(), work, |release| matches!(release, Release::Stays(_))).await
    }

    /// Prepares the guest, and does the rest of [`release`](Self::release).
    async fn release_prepared(
        &self,
        host: &Host,
        row: &Assignment,
        attempt: Attempt,
    ) -> Result<Release, Error> {
        // The overdue calls of other processes are known from their last commits.
        self.store.refresh().await?;
        let mut note = String::new();
        if let Some(device) = GuestDevice::of(row)
            && self.call_out(host, row.server(), row.device()).is_none()
            && let Err(not) = self.quiesce(host, device, attempt.until).await
        {
            tracing::warn!(attachment.id = %row.id(), server.id = %device.server, "{}", not.reason);
            if not.demanded {
                let reason = with_attach_failure(
                    row,
                    format!("the guest was not requested to release the device: {}", not.reason),
                );
                // An earlier unplug request may still be pending in the guest, so only the first one proves anything.
                let seen = if attempt.first {
                    Observation::DetachRefused { reason: reason.clone() }
                } else {
                    Observation::StillThere { reason: reason.clone() }
                };
                let now = self.settle(row.key(), seen).await?;
                let state = now.map_or(row.state(), |now| now.state());
                let advice = "correct that and detach again, or detach with force";
                return Ok(Release::Stays(format!("{} is {state}: {reason}; {advice}", row.key())));
            }
            note = format!("; {}", not.reason);
        }
        self.release_unprepared(host, row, attempt, &note).await
    }

    /// Releases an assignment that is recorded as `detaching`, without preparing its guest. `note` is added to the
    /// reason that is recorded.
    ///
    /// # Errors
    /// As [`release`](Self::release).
    pub(crate) async fn release_unprepared(
        &self,
        host: &Host,
        row: &Assignment,
        attempt: Attempt,
        note: &str,
    ) -> Result<Release, Error> {
        // The calls that other processes wait for are known from their last commits.
        self.store.refresh().await?;
        let key = row.key();
        let device = self.store.known_device(row.device()).await?;
        let device = device.ok_or_else(|| Error::Internal(format!("the device of {key} is lost")))?;
        let address = device.facts.address;
        if let Some(call) = self.call_out(host, row.server(), row.device()) {
            let reason = with_attach_failure(row, call.to_string());
            self.settle(key, Observation::StillThere { reason: reason.clone() }).await?;
            return Ok(Release::Stays(format!(
                "{key} stays detaching: {reason}; the detach continues when that call returns"
            )));
        }
        let total = attempt.until.map(|until| until.saturating_duration_since(Instant::now()));
        let limits = DetachLimits { total, ..self.detach_limits() };
        under_way::expect_end(total.or_else(|| limits.timeout.checked_mul(limits.attempts)));
        let releasing = async {
            match row {
                Assignment::Attachment(row) => {
                    (address.to_string(), self.unplug(host, row, &device, limits).await)
                }
                Assignment::Binding(row) => (
                    format!("{address} of host {}", host.name),
                    self.unbind(host, row, &device, attempt.first).await,
                ),
                Assignment::Mdev(row) => {
                    (key.to_string(), self.remove_mdev(host, row, address, limits).await)
                }
            }
        };
        let word = |(_, outcome): &(String, ReleaseOutcome)| outcome.word();
        let (name, outcome) = metrics::step_as(row.kind(), "release", releasing, word).await;
        let (seen, result) = settled_as(host, row, &name, outcome, note);
        // An event may have reported meanwhile that the device is gone.
        match self.settle(key, seen).await? {
            Some(now) if now.state().is_final() => {
                if let Assignment::Attachment(row) = row
                    && row.vgpu.is_some()
                    && let Err(error) = self.clear_vgpu_type_of(host, address).await
                {
                    // As the settings below.
                    host.queue_rebind();
                    tracing::warn!(pci.address = %address, %error, "VF {address} keeps its vGPU type");
                }
                if let Assignment::Attachment(row) = row
                    && row.network.is_some()
                    && let Err(error) = self.put_back_vf_settings(host, Some(address)).await
                {
                    // It is tried again with each comparison, and before the next attach of the VF.
                    tracing::warn!(pci.address = %address, %error, "the settings of VF {address} were not put back");
                }
                tracing::info!(
                    attachment.id = %key.id, pci.address = %address, "released {name} from {}", row.owner()
                );
                Ok(Release::Ended)
            }
            Some(_) | None => result,
        }
    }

    /// Undoes an attach of which one step failed: records the outcome of each of its assignments, all in one
    /// transaction, and then releases those that are assigned. The error says what is left. `what` names the operation
    /// that failed, if it was not the attach of the step's own device.
    pub(crate) async fn undo(
        &self,
        host: &Host,
        steps: &[impl Step],
        failed: Failed,
        what: Option<&str>,
    ) -> Failure {
        let Failed { step: index, leftover, before, after, error } = failed;
        let Some(culprit) = steps.get(index) else {
            return Failure::of(DeviceId(0), Error::Internal("an attach of nothing failed".into()));
        };
        let (device, address) = (culprit.device().id, culprit.device().facts.address);
        tracing::warn!(pci.address = %address, %error, "attach failed");
        let because = format!("undone, because attaching {address} of the same request failed");
        let mut undone = Vec::new();
        for (nth, step) in steps.iter().enumerate() {
            let (leftover, reason) = match nth.cmp(&index) {
                Ordering::Less => (before, because.clone()),
                Ordering::Equal => (leftover, error.to_string()),
                Ordering::Greater => (after, because.clone()),
            };
            // A call that is out may still change the device, whatever the error of this step says.
            let is_out = host.overdue_call_at(step.device().facts.address).is_some();
            let leftover = if leftover == Leftover::Nothing && is_out { Leftover::Unknown } else { leftover };
            let untouched = nth != index && leftover == Leftover::Nothing;
            let reason = if untouched { format!("not tried: {reason}") } else { reason };
            undone.push((step.key(), leftover, reason));
        }
        let undoing = self.undo_all(host, &undone);
        let left = match metrics::step(culprit.key().kind, "undo", undoing).await {
            Ok(left) => left,
            Err(error) => return Failure::of(device, error),
        };
        let nth = match steps.len() {
            1 => String::new(),
            all => format!(" (device {} of {all})", index + 1),
        };
        let what = what.map_or_else(|| format!("attaching {address}{nth}"), str::to_owned);
        let rest = if left.is_empty() { "nothing is left of it".to_owned() } else { left.join("; ") };
        let in_use = error.kind == ErrorKind::InUse && left.is_empty();
        Failure { device, in_use, error: host.error(format!("{what} failed, {rest}"))(error) }
    }

    /// Does the work of [`undo`](Self::undo), given what each assignment left and why it is undone. Returns a sentence
    /// for each that is left.
    async fn undo_all(
        &self,
        host: &Host,
        undone: &[(AssignmentKey, Leftover, String)],
    ) -> Result<Vec<String>, Error> {
        let intents = undone.iter().map(|(key, leftover, reason)| {
            let reason = reason.clone();
            let intent = match leftover {
                Leftover::Nothing => Observation::AttachRefused { reason },
                Leftover::Gone => Observation::Removed { reason: Some(reason) },
                Leftover::Assigned | Leftover::Unknown => Observation::GivenUp { reason },
            };
            (*key, intent)
        });
        let settled = self.settle_all(&intents.collect::<Vec<_>>()).await;
        // If nothing could be recorded, the next comparison of host and records releases what is left in transition.
        let rows = settled.inspect_err(|_| host.queue_rebind())?;
        let mut left = Vec::new();
        for (key, leftover, _) in undone {
            let Some(row) = rows.iter().find(|row| row.key() == *key) else { continue };
            let sentence = match leftover {
                Leftover::Nothing | Leftover::Gone => continue,
                Leftover::Unknown => format!("{key} is released when the host answers"),
                Leftover::Assigned => {
                    let attempt = Attempt { until: None, first: false };
                    let released = self.release_unprepared(host, row, attempt, "").await;
                    let Err(error) = released.and_then(Release::into_result) else { continue };
                    tracing::error!(attachment.id = %key.id, %error, "{key} is not released yet");
                    let now = self.store.assignment(*key).await.ok().flatten();
                    let reason = now.as_ref().and_then(|now| now.reason().map(str::to_owned));
                    format!("{key} stays detaching: {}", reason.unwrap_or(error.to_string()))
                }
            };
            left.push(sentence);
            match row.server() {
                Some(server) => host.queue_unplug_retry(server),
                None => host.queue_rebind(),
            }
        }
        Ok(left)
    }
}

/// Returns what the records are to say about the outcome of a release, and the result of the release. `name` names the
/// device for people, and `note` is added to the reason.
fn settled_as(
    host: &Host,
    row: &Assignment,
    name: &str,
    outcome: ReleaseOutcome,
    note: &str,
) -> (Observation, Result<Release, Error>) {
    let pending = |reason: String| {
        let text =
            format!("{name} is not gone yet and stays detaching: {reason}; detach again, or wait for it");
        (Observation::StillThere { reason }, Ok(Release::Stays(text)))
    };
    match outcome {
        ReleaseOutcome::Gone { reason } => {
            let note = Some(note.trim_start_matches("; ").to_owned()).filter(|note| !note.is_empty());
            let reason = reason.or(note).or_else(|| why_given_up(row).map(str::to_owned));
            (Observation::Removed { reason }, Ok(Release::Ended))
        }
        ReleaseOutcome::Refused { reason } | ReleaseOutcome::Pending { reason } if row.is_given_up() => {
            pending(with_attach_failure(row, reason + note))
        }
        ReleaseOutcome::Refused { reason } | ReleaseOutcome::Pending { reason } if row.forced() => {
            pending(format!("{reason}{note}; {FORCED}"))
        }
        ReleaseOutcome::Refused { reason } => {
            let reason = reason + note;
            let text = format!("{name} stays attached: {reason}; detach again when the guest can release it");
            (Observation::DetachRefused { reason }, Ok(Release::Stays(text)))
        }
        ReleaseOutcome::Pending { reason } => pending(reason + note),
        ReleaseOutcome::LeftOnHost { reason } => {
            let reason = with_attach_failure(row, format!("{LEFT_ON_HOST}{reason}{note}"));
            let text = format!("{name} stays detaching: {reason}");
            (Observation::StillThere { reason }, Ok(Release::Stays(text)))
        }
        ReleaseOutcome::Failed { error, as_before } => {
            let reason = with_attach_failure(row, error.to_string() + note);
            let seen = if error.kind.leaves_it_open() {
                Observation::HostAway { reason }
            } else if as_before {
                Observation::DetachRefused { reason }
            } else {
                Observation::StillThere { reason }
            };
            (seen, Err(host.error(format!("detaching {name} failed"))(error)))
        }
    }
}

/// Returns the reason for which an attach was given up; `None` for an assignment that was attached.
fn why_given_up(row: &Assignment) -> Option<&str> {
    let reason = row.reason().filter(|_| row.is_given_up())?;
    Some(reason.split(TAKEN_BACK).next().unwrap_or(reason))
}

/// Returns the reason to record for an assignment that was not released. If its attach was given up, that reason comes
/// first.
fn with_attach_failure(row: &Assignment, reason: String) -> String {
    if !row.is_given_up() {
        return reason;
    }
    format!("{}{TAKEN_BACK}{reason}", why_given_up(row).unwrap_or("its attach failed"))
}
