//! Detach: asked, and gone only when no document of the domain has the device.

use std::sync::Arc;

use hotslot_driver::domain::UserAlias;
use hotslot_driver::hotplug::{self, DetachLimits, Presence, Unplugged};
use hotslot_driver::hypervisor;
use hotslot_driver::pci::PciAddress;
use hotslot_model::assignment::{Attachment, Holder, Observation, State, Trigger};
use hotslot_model::id::{AttachmentId, ServerId};
use hotslot_store::actor;
use tokio::time::Instant;

use super::policy::GuestDevice;
use crate::attachment::DetachRequest;
use crate::attachment::request::Ask;
use crate::error::Error;
use crate::host::Host;
use crate::service::{Service, hostdev_spec};
use crate::{locks, task};

/// Why an attachment does not go: who asks is not on whose behalf it was made.
fn held_by(attachment: &Attachment) -> Error {
    let id = attachment.id;
    Error::Conflict(match attachment.holder {
        Some(holder) => {
            format!("attachment {id} was made for {holder}: DELETE {} gives it back", holder.path())
        }
        None => format!("attachment {id} was made by itself; detach it under os-pci_attachments"),
    })
}

impl Service {
    /// A server's attachment, ended or not.
    ///
    /// # Errors
    /// [`Error::NoAttachment`].
    pub async fn attachment_of(&self, server: ServerId, id: AttachmentId) -> Result<Attachment, Error> {
        let found = self.store.attachment(id).await?.filter(|attachment| attachment.server == server);
        found.ok_or(Error::NoAttachment(id))
    }

    /// Records that an attachment is to go, and answers the work of making it go; none when it is gone already.
    ///
    /// # Errors
    /// [`Error::NoAttachment`]; [`Error::Conflict`] while it is still being attached, or when a policy is against
    /// it; [`Error::HostAway`].
    pub async fn begin_detach(
        self: &Arc<Self>,
        server: ServerId,
        id: AttachmentId,
        request: DetachRequest,
    ) -> Result<Option<tokio::task::JoinHandle<Result<(), Error>>>, Error> {
        let until = request.timeout.map(|timeout| Instant::now() + timeout);
        let service = Arc::clone(self);
        let (host, guard) = loop {
            let attachment = self.attachment_of(server, id).await?;
            match attachment.state {
                State::Detached if attachment.unasked => {
                    if attachment.holder != request.holder {
                        return Err(held_by(&attachment));
                    }
                    if self.is_back(&attachment).await? {
                        continue;
                    }
                    self.store.asked_to_go(id).await?;
                    return self.begin_take_out(&attachment, request.holder, until).await;
                }
                // Asked again, or never plugged: the same outcome, unless its server has the device all the same.
                State::Detached | State::Failed => {
                    return self.begin_take_out(&attachment, request.holder, until).await;
                }
                State::Attaching => {
                    return Err(Error::Conflict(format!(
                        "attachment {id} is still attaching; try again when it is attached"
                    )));
                }
                State::Attached | State::Detaching => {}
            }
            if attachment.holder != request.holder {
                return Err(held_by(&attachment));
            }
            let host = self.host(attachment.hypervisor).cloned().ok_or_else(|| {
                Error::Conflict(format!("attachment {id} is on a host that is no longer configured"))
            })?;
            host.ready().await?;
            if attachment.state == State::Attached && !request.force {
                self.may_be_asked(&host, GuestDevice::from(&attachment)).await?;
            }
            let late = until.is_some_and(|until| until <= Instant::now());
            match self.in_flight.try_enter(id).await? {
                Some(guard) => break (host, guard),
                // Someone asks the guest already: the outcome is the same, unless more is asked for now.
                None if late || attachment.state == State::Detaching => {
                    return Ok(Some(actor::spawn_as_current(async move {
                        match service.outcome_of_others(id, until).await {
                            Err(Error::Conflict(_)) if request.force => {
                                let Some(guard) = service.in_flight.try_enter(id).await? else {
                                    // Who asks goes by what was on record when it began.
                                    let outcome = service.outcome_of_others(id, until).await;
                                    let Err(Error::Conflict(why)) = outcome else { return outcome };
                                    return Err(Error::Conflict(format!("{why}; {NOT_FORCED}")));
                                };
                                let first = service.intend(id, request.force).await?;
                                service.detach_now(&host, id, Ask { until, first }, guard).await
                            }
                            outcome => outcome,
                        }
                    })));
                }
                // Whoever attached it has not left it yet, or someone begins to ask: then it is looked again.
                None => self.idle_until(id, until).await?,
            }
        };
        let room = host.admit()?;
        let first = self.intend(id, request.force).await?;
        let ask = Ask { until, first };
        Ok(Some(actor::spawn_as_current(async move {
            let _room = room;
            service.detach_now(&host, id, ask, guard).await
        })))
    }

    /// Looks whether a server has come back with the device of an attachment that ended without having been asked to
    /// go: saved and restored, or moved to another host. Then it is attached again.
    async fn is_back(self: &Arc<Self>, attachment: &Attachment) -> Result<bool, Error> {
        // Where nobody can be asked it is taken out when it is seen.
        let Ok((host, _)) = self.find(attachment.server).await else { return Ok(false) };
        self.reconcile(&host, attachment.server, Trigger::Event).await?;
        let now = self.store.attachment(attachment.id).await?;
        Ok(now.is_some_and(|now| !now.state.is_final()))
    }

    /// Has a device taken out of a server that has it although its attachment has ended: the server came back with it,
    /// here or on another host, after the attachment was asked to go. None when the server does not have it, or cannot
    /// be asked: then it is taken out when it is seen.
    async fn begin_take_out(
        self: &Arc<Self>,
        attachment: &Attachment,
        holder: Option<Holder>,
        until: Option<Instant>,
    ) -> Result<Option<tokio::task::JoinHandle<Result<(), Error>>>, Error> {
        let (id, server) = (attachment.id, attachment.server);
        let Ok((host, view)) = self.find(server).await else { return Ok(None) };
        if Presence::of(&view, UserAlias(id.0)).is_absent() {
            return Ok(None);
        }
        if attachment.holder != holder {
            return Err(held_by(attachment));
        }
        let (mut findings, _) = self.compare(&host, server).await?;
        findings.retain(|finding| finding.attachment == Some(id));
        let (service, attachment) = (Arc::clone(self), attachment.clone());
        let tasks = self.put_right(&host, findings, Trigger::Arrival).await?;
        Ok(Some(actor::spawn_as_current(async move {
            for (_, task) in tasks {
                let answer = task::join(task);
                match until {
                    None => answer.await?,
                    // What is not done by then goes on; the guest is looked at as it is.
                    Some(until) => tokio::time::timeout_at(until, answer).await.unwrap_or(Ok(()))?,
                }
            }
            let (host, view) = service.find(server).await?;
            if Presence::of(&view, UserAlias(id.0)).is_absent() {
                return Ok(());
            }
            Err(Error::Conflict(format!(
                "attachment {id} is {}, and server {server} on host {} has its device still; ask again, or look at \
                 GET drift for what keeps it there",
                attachment.state, host.name
            )))
        })))
    }

    /// Records that an attachment is to go. Whether that was not so before.
    async fn intend(&self, id: AttachmentId, force: bool) -> Result<bool, Error> {
        let first = self.store.attachment(id).await?.is_some_and(|row| row.state == State::Attached);
        self.settle(id, &Observation::AskedToDetach).await?;
        if force {
            self.store.force(id).await?;
        }
        Ok(first)
    }

    /// Waits until nobody works on an attachment, or no longer.
    async fn idle_until(&self, id: AttachmentId, until: Option<Instant>) -> Result<(), Error> {
        let idle = self.in_flight.idle(id);
        match until {
            Some(until) => tokio::time::timeout_at(until, idle).await.unwrap_or(Ok(())),
            None => idle.await,
        }
    }

    /// Waits for the detach that another request began.
    async fn outcome_of_others(&self, id: AttachmentId, until: Option<Instant>) -> Result<(), Error> {
        // What it is by then is what there is to say.
        self.idle_until(id, until).await?;
        let row = self.store.attachment(id).await?.ok_or(Error::NoAttachment(id))?;
        if row.state.is_final() {
            return Ok(());
        }
        let reason = row.reason.unwrap_or_else(|| "the guest has not let go".into());
        Err(Error::Conflict(format!("attachment {id} is {}: {reason}", row.state)))
    }

    /// Makes an attachment that is recorded as detaching go.
    pub(crate) async fn detach_now(
        self: &Arc<Self>,
        host: &Host,
        id: AttachmentId,
        ask: Ask,
        guard: locks::Guard,
    ) -> Result<(), Error> {
        let Some(attachment) = self.store.attachment(id).await?.filter(|row| !row.state.is_final()) else {
            return Ok(());
        };
        let outcome = self.ask_and_settle(host, &attachment, ask).await;
        drop(guard);
        // What was heard while it was worked on was left to the worker.
        host.look_again(attachment.server);
        // What a guest says is its word; anything else leaves it open whether it was asked.
        if !matches!(outcome, Ok(()) | Err(Error::Conflict(_))) {
            host.ask_again(attachment.server);
        }
        outcome
    }

    async fn ask_and_settle(&self, host: &Host, attachment: &Attachment, ask: Ask) -> Result<(), Error> {
        let id = attachment.id;
        // What other processes wait for is known from their last commits.
        self.store.refresh().await?;
        if let Some(call) = self.call_out(host, Some(attachment.server), attachment.device) {
            let reason = said(attachment, call.to_string());
            self.settle(id, &Observation::StillThere { reason: reason.clone() }).await?;
            return Err(Error::Conflict(format!(
                "attachment {id} stays detaching: {reason}; it goes on when that comes back"
            )));
        }
        let mut note = String::new();
        if let Err(not) = self.quiesce(host, GuestDevice::from(attachment), ask.until).await {
            tracing::warn!(attachment.id = %id, server.id = %attachment.server, "{}", not.reason);
            if not.demanded {
                let reason = said(attachment, format!("the guest was not asked: {}", not.reason));
                let advice = "mend that and ask again, or ask all the same with force";
                // Of an earlier ask the guest may still make something.
                let seen = if ask.first {
                    Observation::DetachRefused { reason: reason.clone() }
                } else {
                    Observation::StillThere { reason: reason.clone() }
                };
                let row = self.settle(id, &seen).await?;
                let state = row.map_or(attachment.state, |row| row.state);
                return Err(Error::Conflict(format!("attachment {id} is {state}: {reason}; {advice}")));
            }
            note = format!("; {}", not.reason);
        }
        let total = ask.until.map(|until| until.saturating_duration_since(Instant::now()));
        let limits = DetachLimits { total, ..self.detach_limits() };
        let keep = attachment.persistent && !attachment.forced;
        let (address, unplugged) = self.unplug(host, attachment, keep, limits).await?;
        match unplugged {
            Ok(Unplugged::Gone) => {
                let reason = Some(note.trim_start_matches("; ").to_owned()).filter(|note| !note.is_empty());
                self.settle(id, &Observation::Removed { reason }).await?;
                tracing::info!(
                    server.id = %attachment.server, attachment.id = %id, pci.address = %address,
                    "detached {address} from server {}", attachment.server
                );
                Ok(())
            }
            Ok(Unplugged::Refused { reason } | Unplugged::Pending { reason }) if attachment.is_given_up() => {
                self.stays(attachment, address, said(attachment, reason + &note)).await
            }
            Ok(Unplugged::Refused { reason } | Unplugged::Pending { reason }) if attachment.forced => {
                self.stays(attachment, address, format!("{reason}{note}; {FORCED}")).await
            }
            Ok(Unplugged::Refused { reason }) => {
                let reason = reason + &note;
                self.settle(id, &Observation::DetachRefused { reason: reason.clone() }).await?;
                Err(Error::Conflict(format!(
                    "{address} stays attached: {reason}; ask again when the guest can let go"
                )))
            }
            Ok(Unplugged::Pending { reason }) => self.stays(attachment, address, reason + &note).await,
            Err(error) => {
                // What was refused is as it was; what is unknown is settled when the host answers again.
                let reason = said(attachment, error.to_string() + &note);
                let seen = if error.kind.leaves_it_open() {
                    Observation::HostAway { reason }
                } else {
                    Observation::DetachRefused { reason }
                };
                self.settle(id, &seen).await?;
                Err(host.error(format!("detaching {address} failed"))(error))
            }
        }
    }

    /// Records that an attachment has not gone, and says so.
    async fn stays(&self, attachment: &Attachment, address: PciAddress, reason: String) -> Result<(), Error> {
        let row = self.settle(attachment.id, &Observation::StillThere { reason: reason.clone() }).await?;
        if row.is_some_and(|row| row.state == State::Detached) {
            return Ok(());
        }
        Err(Error::Conflict(format!(
            "{address} is not gone yet and stays detaching: {reason}; ask again, or wait for it"
        )))
    }

    /// Makes the device of an attachment leave its domain; answers its address on the host, and what became of it.
    /// With `keep`, one that the guest does not let go stays in the definition too.
    pub(super) async fn unplug(
        &self,
        host: &Host,
        attachment: &Attachment,
        keep: bool,
        limits: DetachLimits,
    ) -> Result<(PciAddress, Result<Unplugged, hypervisor::Error>), Error> {
        let device = self.store.device(attachment.device);
        let device = device
            .ok_or_else(|| Error::Internal(format!("the device of attachment {} is lost", attachment.id)))?;
        let spec = hostdev_spec(attachment, &device);
        let (hypervisor, server) = (host.hypervisor.as_ref(), attachment.server.0);
        let unplugged = hotplug::unplug(hypervisor, &self.templates, server, &spec, keep, limits).await;
        Ok((device.facts.address, unplugged))
    }
}

/// What stands between why an attach was given up and what came of taking its device back.
const TAKEN_BACK: &str =
    "; the attach is not completed, and its device goes when the guest lets go or is powered off: ";

/// What there is to say of an attachment that has not gone for this reason. Of one that was given up it is not
/// forgotten why.
fn said(attachment: &Attachment, reason: String) -> String {
    if !attachment.is_given_up() {
        return reason;
    }
    let before = attachment.reason.as_deref().unwrap_or("its attach failed");
    let why = before.split(TAKEN_BACK).next().unwrap_or(before);
    format!("{why}{TAKEN_BACK}{reason}")
}

/// What a forced detach has not done whose time was over before its turn.
const NOT_FORCED: &str = "not forced, for the guest was being asked already; ask again with force";

/// What a forced detach has done, and what remains.
const FORCED: &str = "forced: it was taken out of the domain's definition and the guest was asked, which is all \
     that can be done to a running guest; the guest has it still, until it lets go or is powered off";
