//! Plug and unplug, over the port: what makes an answer out of libvirt's verbs.
//!
//! ```text
//! plug     preflight → render → attach → read back            │ undo: detach what a failed attach left
//! group    free_group → plug each member                      │ undo: give_back
//! unplug   subscribe → definition → ask the guest → wait → read back, again until it is gone
//! ```
//! libvirt's detach returning means *asked*; *gone* means that the device is not in the live document.

mod mdev;
mod preflight;

use std::time::Duration;

pub use mdev::create_mdev;
pub use preflight::{
    Bar, Check, CheckResult, Facts, Guarded, Policy, Refusal, Verdict, preflight, preflight_on_host,
};
use tokio::sync::broadcast::error::RecvError;
use tokio::time::Instant;
use uuid::Uuid;

use crate::device::HostDevice;
use crate::domain::{DomainXml, UserAlias};
use crate::hypervisor::{
    DetachScope, DomainState, DomainView, Error, ErrorKind, Event, Hypervisor, Lifecycle, Scope,
};
use crate::pci::PciAddress;
use crate::topology::Topology;
use crate::xml::hostdev::{Pluggable, Templates};

/// How long and how often a guest is asked to let a device go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DetachLimits {
    /// How often it is asked, at least 1.
    pub attempts: u32,
    /// How long each attempt waits for the guest.
    pub timeout: Duration,
    /// How long all attempts may take, and then as many as it takes; none: `attempts` of them. An attempt that is
    /// refused at once ends no earlier for that.
    pub total: Option<Duration>,
}

impl DetachLimits {
    /// How long it is waited after an ask that was refused at once, and may be asked again: the asks are spread over
    /// the time that there is.
    fn pace(self) -> Duration {
        let shares = self.total.map(|total| total / self.attempts.max(1));
        shares.map_or(self.timeout, |share| share.min(self.timeout))
    }
}

impl Default for DetachLimits {
    /// Nova's: `device_detach_attempts` 8, `device_detach_timeout` 20 s.
    fn default() -> Self {
        Self { attempts: 8, timeout: Duration::from_secs(20), total: None }
    }
}

/// Where a domain's documents have an attachment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Presence {
    /// In the running guest.
    pub live: bool,
    /// In the persistent definition.
    pub config: bool,
    /// The address at which the guest sees it, or will when it starts; worked out from the document.
    pub inner_address: Option<PciAddress>,
}

impl Presence {
    /// Looks for an attachment in a domain's documents.
    pub fn of(view: &DomainView, alias: UserAlias) -> Self {
        let live = view.live.as_ref().and_then(|document| Some((document, guest(document, alias)?)));
        let config = view.persistent.as_ref().and_then(|document| Some((document, guest(document, alias)?)));
        let seen = if view.live.is_some() { live } else { config };
        Self {
            live: live.is_some(),
            config: config.is_some(),
            inner_address: seen.and_then(|(document, guest)| Topology::of(document).guest_address(guest?)),
        }
    }

    /// Whether no document has it.
    pub fn is_absent(self) -> bool {
        !self.live && !self.config
    }
}

/// Where a document has a device of ours, which may be at no PCI address; none when it does not have it.
fn guest(document: &DomainXml, alias: UserAlias) -> Option<Option<PciAddress>> {
    let function = document.hostdev(alias).map(|hostdev| hostdev.guest);
    function.or_else(|| document.mdev(alias).map(|mdev| mdev.guest))
}

/// How an unplug ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Unplugged {
    /// The device is in no document of the domain.
    Gone,
    /// The guest refused; the device is where it was.
    Refused {
        /// Why, for people.
        reason: String,
    },
    /// The guest was asked and has not answered; it may let go at any time.
    Pending {
        /// Why, as far as it can be seen.
        reason: String,
    },
}

/// Takes the members of an IOMMU group that are to be plugged together from their host drivers, so that the
/// first one to be attached does not find the others still on theirs: libvirt unbinds one call's device only.
/// libvirt leaves them on VFIO when the guest lets them go: [`give_back`] is for that.
///
/// # Errors
/// What the hypervisor refused; those taken before it have been given back, or the text says which were not.
/// Of a call that has not come back it is open whether it takes its function: that is to be given back afterwards.
pub async fn free_group(hypervisor: &dyn Hypervisor, members: &[HostDevice]) -> Result<(), Error> {
    let mut taken = Vec::new();
    for member in members.iter().filter(|member| member.blocks_its_group()) {
        let Err(mut error) = hypervisor.node_detach(member.address).await else {
            taken.push(member.address);
            continue;
        };
        // After a time-out it may have been taken; while the call is out, it may be taken yet.
        let is_out = hypervisor.overdue().iter().any(|call| call.address == Some(member.address));
        if error.kind.leaves_it_open() && !is_out {
            taken.push(member.address);
        }
        if let Err(lost) = give_back(hypervisor, &taken).await {
            error.message = format!("{}; and giving back what was taken failed: {lost}", error.message);
        }
        return Err(error);
    }
    Ok(())
}

/// Gives functions back to their host drivers: all of them, also after one failed.
///
/// # Errors
/// The first that was refused.
pub async fn give_back(hypervisor: &dyn Hypervisor, members: &[PciAddress]) -> Result<(), Error> {
    let mut given = Ok(());
    for member in members {
        given = given.and(hypervisor.node_reattach(*member).await);
    }
    given
}

/// A plug that failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlugFailure {
    /// What failed.
    pub error: Error,
    /// Whether it is known that the guest never had the device.
    pub untouched: bool,
}

impl PlugFailure {
    /// A failure after which the guest may have had the device.
    fn touched(error: Error) -> Self {
        Self { error, untouched: false }
    }
}

/// Whether a refusal of this kind comes before libvirt gives the device to QEMU.
fn never_reached_the_guest(kind: ErrorKind) -> bool {
    match kind {
        ErrorKind::NoDomain
        | ErrorKind::NoDevice
        | ErrorKind::InUse
        | ErrorKind::GroupNotViable
        | ErrorKind::NoFreePort
        | ErrorKind::BadGuestAddress
        | ErrorKind::NotAssignable
        | ErrorKind::NotRunning
        | ErrorKind::AlreadyDefined
        | ErrorKind::NoPassthrough
        | ErrorKind::Unsupported
        | ErrorKind::Document => true,
        ErrorKind::Away
        | ErrorKind::TimedOut
        | ErrorKind::DeviceMissing
        | ErrorKind::UnplugPending
        | ErrorKind::UnplugRefused
        | ErrorKind::AgentAway
        | ErrorKind::Refused => false,
    }
}

/// Plugs one device and reads it back.
///
/// # Errors
/// As [`try_plug`], without what is known of the guest.
pub async fn plug(
    hypervisor: &dyn Hypervisor,
    templates: &Templates,
    domain: Uuid,
    spec: &dyn Pluggable,
    scope: Scope,
    limits: DetachLimits,
) -> Result<Presence, Error> {
    let plugged = try_plug(hypervisor, templates, domain, spec, scope, limits).await;
    plugged.map_err(|failure| failure.error)
}

/// Plugs one device, reads it back, and tells of a failure whether the guest may have had the device.
///
/// # Errors
/// A refusal has left nothing behind, or its text says what could not be undone.
/// [`ErrorKind::Away`] and [`ErrorKind::TimedOut`] leave it open until the domain is read again.
pub async fn try_plug(
    hypervisor: &dyn Hypervisor,
    templates: &Templates,
    domain: Uuid,
    spec: &dyn Pluggable,
    scope: Scope,
    limits: DetachLimits,
) -> Result<Presence, PlugFailure> {
    let xml = render(templates, spec).map_err(|error| PlugFailure { error, untouched: true })?;
    let attached = hypervisor.attach(domain, &xml, scope).await;
    if let Err(error) = &attached
        && error.kind.leaves_it_open()
    {
        return Err(PlugFailure::touched(error.clone()));
    }
    let early = attached.as_ref().is_err_and(|error| never_reached_the_guest(error.kind));
    let view = match hypervisor.domain(domain).await {
        Ok(view) => view,
        Err(error) if error.kind == ErrorKind::NoDomain => {
            return Err(PlugFailure { error: attached.err().unwrap_or(error), untouched: early });
        }
        // Without a look at the document nothing is known, whatever the attach answered.
        Err(error) => return Err(PlugFailure::touched(Error { kind: ErrorKind::TimedOut, ..error })),
    };
    let presence = Presence::of(&view, spec.alias());
    let complete = match scope {
        Scope::Live => presence.live,
        Scope::Config => presence.config,
        Scope::LiveAndConfig => presence.live && presence.config,
    };
    // A guest that still runs, and whose document has no such device after a refusal, never had it.
    let guest_lives = scope == Scope::Config || view.live.is_some();
    let untouched = presence.is_absent() && (early || attached.is_err() && guest_lives);
    let error = match attached {
        Ok(()) if complete => return Ok(presence),
        Ok(()) => Error::new(
            ErrorKind::Refused,
            format!("attach {} to domain {domain}", spec.source()),
            "the hypervisor said yes, but the device is not in the domain's document",
        ),
        Err(error) => error,
    };
    if presence.is_absent() {
        return Err(PlugFailure { error, untouched });
    }
    // One side took it and the other did not: take it back.
    let left = match unplug(hypervisor, templates, domain, spec, false, limits).await {
        Ok(Unplugged::Gone) => return Err(PlugFailure::touched(error)),
        Ok(Unplugged::Refused { reason } | Unplugged::Pending { reason }) => {
            format!("{}; and taking it back: {reason}", error.message)
        }
        Err(undo) => format!("{}; and taking it back failed: {undo}", error.message),
    };
    Err(PlugFailure::touched(Error::new(ErrorKind::TimedOut, error.operation, left)))
}

/// Unplugs one device: out of the definition first, then out of the running guest, until it is gone, refused
/// or the limits are used up. A `persistent` device that stays in the guest is put back into the definition.
///
/// # Errors
/// What the hypervisor refused; the guest then has the device still.
pub async fn unplug(
    hypervisor: &dyn Hypervisor,
    templates: &Templates,
    domain: Uuid,
    spec: &dyn Pluggable,
    persistent: bool,
    limits: DetachLimits,
) -> Result<Unplugged, Error> {
    let outcome = take_out(hypervisor, domain, spec.alias(), limits).await;
    let stays = match &outcome {
        Ok(Unplugged::Refused { .. }) => true,
        Ok(Unplugged::Gone | Unplugged::Pending { .. }) => false,
        Err(error) => !error.kind.leaves_it_open(),
    };
    if !(persistent && stays) {
        return outcome;
    }
    let Err(lost) = keep_in_definition(hypervisor, templates, domain, spec).await else { return outcome };
    let lost = format!("; and it is no longer in the domain's definition: {lost}");
    match outcome {
        Ok(Unplugged::Refused { reason }) => Ok(Unplugged::Refused { reason: reason + &lost }),
        Ok(other) => Ok(other),
        Err(error) => Err(Error { message: error.message + &lost, ..error }),
    }
}

async fn take_out(
    hypervisor: &dyn Hypervisor,
    domain: Uuid,
    alias: UserAlias,
    limits: DetachLimits,
) -> Result<Unplugged, Error> {
    // Before the first call: a removal must not happen unheard.
    let mut events = hypervisor.events();
    let name = alias.to_string();
    let Some((mut presence, mut state)) = read(hypervisor, domain, alias).await? else {
        return Ok(Unplugged::Gone);
    };
    if presence.config {
        ignore_missing(hypervisor.detach(domain, &name, DetachScope::Config).await)?;
        let Some(now) = read(hypervisor, domain, alias).await? else { return Ok(Unplugged::Gone) };
        (presence, state) = now;
    }
    let until = limits.total.map(|total| Instant::now() + total);
    let pace = limits.pace();
    let mut attempt = 0;
    while presence.live {
        attempt += 1;
        let begun = Instant::now();
        let asked = hypervisor.detach(domain, &name, DetachScope::Live).await;
        tracing::debug!(domain = %domain, alias = %name, attempt, ?asked, "asked the guest to let go");
        let (mut refused, time) = match asked {
            Ok(()) => (false, limits.timeout),
            Err(error) if error.kind == ErrorKind::UnplugRefused => (true, Duration::ZERO),
            // The guest was not asked: an earlier removal is under way, or QEMU is not ready for one. That passes.
            Err(error) if error.kind == ErrorKind::UnplugPending => (false, pace),
            // The document says whether there is anything left to ask for.
            asked => ignore_missing(asked).map(|()| (false, pace))?,
        };
        let next = begun + time;
        let next = until.map_or(next, |until| next.min(until));
        loop {
            refused = refused || wait(&mut events, domain, &name, next).await;
            let Some(now) = read(hypervisor, domain, alias).await? else { return Ok(Unplugged::Gone) };
            (presence, state) = now;
            if refused && presence.live {
                return Ok(Unplugged::Refused { reason: "the guest refused to let the device go".into() });
            }
            // What was heard may be of something else; the time of this ask is not over because of it.
            if !presence.live || Instant::now() >= next {
                break;
            }
        }
        let more = match until {
            Some(until) => Instant::now() < until,
            None => attempt < limits.attempts,
        };
        if !more {
            break;
        }
    }
    if !presence.live && presence.config {
        // libvirt writes the definition after the guest; it may have got the device back meanwhile.
        ignore_missing(hypervisor.detach(domain, &name, DetachScope::Config).await)?;
        let Some(now) = read(hypervisor, domain, alias).await? else { return Ok(Unplugged::Gone) };
        (presence, state) = now;
    }
    if presence.is_absent() {
        return Ok(Unplugged::Gone);
    }
    let reason = match state {
        DomainState::Paused => "the guest is paused and cannot answer; it lets go when it is resumed",
        DomainState::Suspended => "the guest is suspended and cannot answer; it lets go when it is woken",
        DomainState::Running
        | DomainState::Blocked
        | DomainState::ShuttingDown
        | DomainState::ShutOff
        | DomainState::Crashed
        | DomainState::Unknown => {
            "the guest was asked and has not let go (still booting, or without a hot-plug driver?); \
             it may do so later, a reboot of the guest completes it"
        }
    };
    Ok(Unplugged::Pending { reason: reason.into() })
}

/// A device that stays in the guest stays after its power cycle too: puts it back into the definition.
async fn keep_in_definition(
    hypervisor: &dyn Hypervisor,
    templates: &Templates,
    domain: Uuid,
    spec: &dyn Pluggable,
) -> Result<(), Error> {
    let view = hypervisor.domain(domain).await?;
    let presence = Presence::of(&view, spec.alias());
    if !presence.live || presence.config || view.persistent.is_none() {
        return Ok(());
    }
    complete(hypervisor, templates, domain, spec, Scope::Config).await
}

/// Puts a device that a domain has in one of its documents into the other one too.
///
/// # Errors
/// What the hypervisor refused; then that document is as it was.
pub async fn complete(
    hypervisor: &dyn Hypervisor,
    templates: &Templates,
    domain: Uuid,
    spec: &dyn Pluggable,
    scope: Scope,
) -> Result<(), Error> {
    hypervisor.attach(domain, &render(templates, spec)?, scope).await
}

fn render(templates: &Templates, spec: &dyn Pluggable) -> Result<String, Error> {
    let operation = || format!("render the document of {}", spec.source());
    spec.render(templates).map_err(|error| Error::new(ErrorKind::Document, operation(), error))
}

async fn read(
    hypervisor: &dyn Hypervisor,
    domain: Uuid,
    alias: UserAlias,
) -> Result<Option<(Presence, DomainState)>, Error> {
    match hypervisor.domain(domain).await {
        Ok(view) => Ok(Some((Presence::of(&view, alias), view.info.state))),
        Err(error) if error.kind == ErrorKind::NoDomain => Ok(None),
        Err(error) => Err(error),
    }
}

/// A detach of what is not there has nothing left to do; the document is read afterwards in any case.
fn ignore_missing(result: Result<(), Error>) -> Result<(), Error> {
    match result {
        Err(error)
            if matches!(
                error.kind,
                ErrorKind::DeviceMissing | ErrorKind::NoDomain | ErrorKind::NotRunning
            ) =>
        {
            Ok(())
        }
        other => other,
    }
}

/// Waits until something is heard that is worth another look at the document. True when the guest refused.
async fn wait(
    events: &mut tokio::sync::broadcast::Receiver<Event>,
    domain: Uuid,
    name: &str,
    deadline: Instant,
) -> bool {
    loop {
        match tokio::time::timeout_at(deadline, events.recv()).await {
            Err(_) | Ok(Err(RecvError::Lagged(_))) => return false,
            // Nothing more is heard.
            Ok(Err(RecvError::Closed)) => tokio::time::sleep_until(deadline).await,
            Ok(Ok(Event::DeviceRemoved { domain: d, alias })) if d == domain && alias == name => {
                return false;
            }
            Ok(Ok(Event::DeviceRemovalFailed { domain: d, alias })) if d == domain && alias == name => {
                return true;
            }
            Ok(Ok(Event::Lifecycle { domain: d, change: Lifecycle::Stopped | Lifecycle::Crashed }))
                if d == domain =>
            {
                return false;
            }
            Ok(Ok(Event::Disconnected { .. })) => return false,
            Ok(Ok(_)) => {}
        }
    }
}
