//! Plug and unplug: each function combines several calls of the [`Hypervisor`] trait into one operation with a definite
//! outcome.
//!
//! ```text
//! plug     preflight → render → attach → read back            │ undo: detach what a failed attach left
//! group    free_group → plug each member                      │ undo: rebind_host_drivers
//! unplug   subscribe → detach from the definition → request the unplug → wait → read back; repeat until it is gone
//! ```
//! libvirt's live detach returns when the unplug has been *requested*. The device is *gone* when the live document no
//! longer has it.

mod mdev;
mod ports;
mod preflight;

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

pub use mdev::create_mdev;
pub use ports::{MOST_PORTS, add_root_ports, has_express_root, root_ports};
pub use preflight::{
    Bar, Check, CheckResult, Facts, Guarded, Policy, Refusal, Verdict, add_ports, preflight,
    preflight_on_host,
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

/// How often the unplug of a device is requested, and how long each request waits for the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DetachLimits {
    /// The number of unplug requests, at least 1. It does not limit them when `total` is set.
    pub attempts: u32,
    /// How long each attempt waits for the guest.
    pub timeout: Duration,
    /// The time for all attempts together. When it is set, the request is repeated until this time is over. When it is
    /// `None`, there are `attempts` requests.
    pub total: Option<Duration>,
}

impl DetachLimits {
    /// How long to wait after a request that libvirt could not pass on to the guest, so that the remaining requests are
    /// spread over `total`.
    fn pace(self) -> Duration {
        let shares = self.total.map(|total| total / self.attempts.max(1));
        shares.map_or(self.timeout, |share| share.min(self.timeout))
    }
}

impl Default for DetachLimits {
    /// Nova's defaults: `device_detach_attempts` 8, `device_detach_timeout` 20 s.
    fn default() -> Self {
        Self { attempts: 8, timeout: Duration::from_secs(20), total: None }
    }
}

/// Which of a domain's documents contain an attachment's device. The default is none of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Presence {
    /// Whether the live document has it.
    pub live: bool,
    /// Whether the persistent definition has it.
    pub config: bool,
    /// The address at which the guest sees the device, or will see it after its next start. It is computed from the
    /// document.
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

    /// Whether neither document has it.
    pub fn is_absent(self) -> bool {
        !self.live && !self.config
    }
}

/// Finds hotslot's device in a document and returns its guest address, which may be missing. Returns `None` when the
/// document does not have the device.
fn guest(document: &DomainXml, alias: UserAlias) -> Option<Option<PciAddress>> {
    let function = document.hostdev(alias).map(|hostdev| hostdev.guest);
    function.or_else(|| document.mdev(alias).map(|mdev| mdev.guest))
}

/// The outcome of an unplug.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Unplugged {
    /// No document of the domain has the device.
    Gone,
    /// The guest refused, and still has the device.
    Refused {
        /// The reason, for people.
        reason: String,
    },
    /// The unplug was requested, and the guest has not answered. It may release the device at any time.
    Pending {
        /// The likely reason, for people.
        reason: String,
    },
}

/// Unbinds the host drivers of all `members` of an IOMMU group that are to be plugged together. libvirt unbinds only
/// the device of one attach call, so that without this the group is not viable at the first attach. libvirt leaves
/// these functions on VFIO after the guest released them; [`rebind_host_drivers`] rebinds their host drivers.
///
/// # Errors
/// The error of the first call that failed. The functions that were unbound before it have been rebound, or the message
/// says that this failed. A call that was given up and has not returned may still unbind its function; the caller
/// rebinds that one afterwards.
pub async fn free_group(hypervisor: &dyn Hypervisor, members: &[HostDevice]) -> Result<(), Error> {
    let mut taken = Vec::new();
    for member in members.iter().filter(|member| member.may_block_its_group()) {
        let Err(mut error) = hypervisor.node_detach(member.address).await else {
            taken.push(member.address);
            continue;
        };
        // After a time-out the function may be unbound. While the call has not returned, it may still be unbound later,
        // so that rebinding it now would be too early.
        let is_out = hypervisor.overdue().iter().any(|call| call.address == Some(member.address));
        if error.kind.leaves_it_open() && !is_out {
            taken.push(member.address);
        }
        if let Err(lost) = rebind_host_drivers(hypervisor, &taken).await {
            error.message = format!("{}; and rebinding the host drivers failed: {lost}", error.message);
        }
        return Err(error);
    }
    Ok(())
}

/// Rebinds functions to their host drivers. It goes on with the others after one failed.
///
/// # Errors
/// The error of the first call that failed.
pub async fn rebind_host_drivers(hypervisor: &dyn Hypervisor, members: &[PciAddress]) -> Result<(), Error> {
    let mut given = Ok(());
    for member in members {
        given = given.and(hypervisor.node_reattach(*member).await);
    }
    given
}

/// A plug that failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlugFailure {
    /// The error of the step that failed.
    pub error: Error,
    /// True when the guest certainly never had the device.
    pub untouched: bool,
}

impl PlugFailure {
    /// A failure after which the guest may have had the device.
    fn touched(error: Error) -> Self {
        Self { error, untouched: false }
    }
}

/// Whether libvirt reports errors of this kind before it adds the device to QEMU.
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

/// Plugs one device and reads the domain back.
///
/// # Errors
/// The `error` of [`try_plug`].
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

/// Plugs one device and reads the domain back. A failure also reports whether the guest may have had the device.
///
/// # Errors
/// After an error of any other kind than these two, the domain does not have the device. After [`ErrorKind::Away`] and
/// [`ErrorKind::TimedOut`] the domain may have it, so that the caller has to read the domain again; the message says
/// what could not be undone.
pub async fn try_plug(
    hypervisor: &dyn Hypervisor,
    templates: &Templates,
    domain: Uuid,
    spec: &dyn Pluggable,
    scope: Scope,
    limits: DetachLimits,
) -> Result<Presence, PlugFailure> {
    let xml = render(templates, spec).map_err(|error| PlugFailure { error, untouched: true })?;
    plug_rendered(hypervisor, templates, domain, (spec, &xml), scope, limits).await
}

/// Does the same as [`try_plug`] with a document that was [rendered](render) for `spec` before.
///
/// # Errors
/// As [`try_plug`].
pub async fn plug_rendered(
    hypervisor: &dyn Hypervisor,
    templates: &Templates,
    domain: Uuid,
    (spec, xml): (&dyn Pluggable, &str),
    scope: Scope,
    limits: DetachLimits,
) -> Result<Presence, PlugFailure> {
    let attached = hypervisor.attach(domain, xml, scope).await;
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
        // Without the document the outcome is unknown, even if the attach returned an error.
        Err(error) => return Err(PlugFailure::touched(Error { kind: ErrorKind::TimedOut, ..error })),
    };
    let presence = Presence::of(&view, spec.alias());
    let complete = match scope {
        Scope::Live => presence.live,
        Scope::Config => presence.config,
        Scope::LiveAndConfig => presence.live && presence.config,
    };
    // After a refused attach, a guest that still runs and whose document has no such device never had it.
    let guest_runs = scope == Scope::Config || view.live.is_some();
    let untouched = presence.is_absent() && (early || attached.is_err() && guest_runs);
    let error = match attached {
        Ok(()) if complete => return Ok(presence),
        Ok(()) => Error::new(
            ErrorKind::Refused,
            format!("attach {} to domain {domain}", spec.source()),
            "libvirt reported success, but the domain's document does not have the device",
        ),
        Err(error) => error,
    };
    if presence.is_absent() {
        return Err(PlugFailure { error, untouched });
    }
    // Only one of the two documents has the device: remove it there.
    let left = match unplug(hypervisor, templates, domain, spec, false, limits).await {
        Ok(Unplugged::Gone) => return Err(PlugFailure::touched(error)),
        Ok(Unplugged::Refused { reason } | Unplugged::Pending { reason }) => {
            format!("{}; and it could not be removed again: {reason}", error.message)
        }
        Err(undo) => format!("{}; and removing it again failed: {undo}", error.message),
    };
    Err(PlugFailure::touched(Error::new(ErrorKind::TimedOut, error.operation, left)))
}

/// Unplugs one device: first from the definition, then from the running guest. It ends when the device is gone, when
/// the guest refused, or at the limits. When the guest keeps a `persistent` device after a refusal, the device is added
/// to the definition again.
///
/// # Errors
/// The error of the hypervisor. After [`ErrorKind::Away`] and [`ErrorKind::TimedOut`] the outcome is unknown; after any
/// other error the guest still has the device.
pub async fn unplug(
    hypervisor: &dyn Hypervisor,
    templates: &Templates,
    domain: Uuid,
    spec: &dyn Pluggable,
    persistent: bool,
    limits: DetachLimits,
) -> Result<Unplugged, Error> {
    unplug_counted(hypervisor, templates, domain, spec, persistent, limits, &AtomicU32::new(0)).await
}

/// Does the same as [`unplug`], and counts the unplug requests in `asked`.
///
/// # Errors
/// As [`unplug`].
pub async fn unplug_counted(
    hypervisor: &dyn Hypervisor,
    templates: &Templates,
    domain: Uuid,
    spec: &dyn Pluggable,
    persistent: bool,
    limits: DetachLimits,
    asked: &AtomicU32,
) -> Result<Unplugged, Error> {
    let outcome = take_out(hypervisor, domain, spec.alias(), limits, asked).await;
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

/// Removes one device from the definition and from the running guest, as [`unplug`] does. A persistent device that the
/// guest keeps is then only in the live document.
async fn take_out(
    hypervisor: &dyn Hypervisor,
    domain: Uuid,
    alias: UserAlias,
    limits: DetachLimits,
    asked: &AtomicU32,
) -> Result<Unplugged, Error> {
    let device = Attached { hypervisor, domain, alias };
    // Subscribe before the first call, so that the removal event cannot be missed.
    let mut events = hypervisor.events();
    let (mut presence, mut state) = device.read().await?;
    if presence.config && presence.live {
        // The domain is read again after the guest was asked.
        ignore_missing(device.detach(DetachScope::Config).await)?;
        presence.config = false;
    } else if presence.config {
        // The domain may have been started meanwhile.
        (presence, state) = device.remove_from_definition().await?;
    }
    let until = limits.total.map(|total| Instant::now() + total);
    let mut attempt = 0;
    while presence.live {
        attempt += 1;
        asked.store(attempt, Ordering::Relaxed);
        let begun = Instant::now();
        let (mut refused, time) = device.request_unplug(attempt, limits).await?;
        let next = until.map_or(begun + time, |until| until.min(begun + time));
        loop {
            refused = refused || wait(&mut events, domain, &alias.to_string(), next).await;
            (presence, state) = device.read().await?;
            if refused && presence.live {
                return Ok(Unplugged::Refused { reason: "the guest refused to release the device".into() });
            }
            // The event may belong to something else: go on waiting until this attempt's time is over.
            if !presence.live || Instant::now() >= next {
                break;
            }
        }
        if until.map_or(attempt >= limits.attempts, |until| Instant::now() >= until) {
            break;
        }
    }
    if !presence.live && presence.config {
        // libvirt changes the definition after the guest, so that a concurrent attach may have added the device to the
        // definition in the meantime.
        (presence, state) = device.remove_from_definition().await?;
    }
    if presence.is_absent() {
        return Ok(Unplugged::Gone);
    }
    Ok(Unplugged::Pending { reason: why_pending(state).into() })
}

/// A device that is to be unplugged.
struct Attached<'a> {
    hypervisor: &'a dyn Hypervisor,
    domain: Uuid,
    alias: UserAlias,
}

impl Attached<'_> {
    /// Reads in which documents the device is, and the state of the domain. A domain that does not exist has no
    /// device.
    async fn read(&self) -> Result<(Presence, DomainState), Error> {
        match self.hypervisor.domain(self.domain).await {
            Ok(view) => Ok((Presence::of(&view, self.alias), view.info.state)),
            Err(error) if error.kind == ErrorKind::NoDomain => {
                Ok((Presence::default(), DomainState::ShutOff))
            }
            Err(error) => Err(error),
        }
    }

    async fn detach(&self, scope: DetachScope) -> Result<(), Error> {
        self.hypervisor.detach(self.domain, &self.alias.to_string(), scope).await
    }

    /// Removes the device from the definition and reads the domain again.
    async fn remove_from_definition(&self) -> Result<(Presence, DomainState), Error> {
        ignore_missing(self.detach(DetachScope::Config).await)?;
        self.read().await
    }

    /// Requests the unplug. Returns whether the guest has refused it already, and how long this attempt waits for the
    /// guest.
    async fn request_unplug(&self, attempt: u32, limits: DetachLimits) -> Result<(bool, Duration), Error> {
        let answer = self.detach(DetachScope::Live).await;
        tracing::debug!(domain = %self.domain, alias = %self.alias, attempt, ?answer, "requested the unplug");
        match answer {
            Ok(()) => Ok((false, limits.timeout)),
            Err(error) if error.kind == ErrorKind::UnplugRefused => Ok((true, Duration::ZERO)),
            // The guest did not get the request: an earlier removal is under way, or QEMU is not ready for one. Try
            // again later.
            Err(error) if error.kind == ErrorKind::UnplugPending => Ok((false, limits.pace())),
            // The next read of the document shows whether the device is still there.
            Err(error) => ignore_missing(Err(error)).map(|()| (false, limits.pace())),
        }
    }
}

/// Returns the likely reason why a guest in this state has not released a device.
fn why_pending(state: DomainState) -> &'static str {
    match state {
        DomainState::Paused => "the guest is paused and cannot answer; resume it, and it releases the device",
        DomainState::Suspended => {
            "the guest is suspended and cannot answer; wake it up, and it releases the device"
        }
        DomainState::Running
        | DomainState::Blocked
        | DomainState::ShuttingDown
        | DomainState::ShutOff
        | DomainState::Crashed
        | DomainState::Unknown => {
            "the unplug was requested, and the guest has not released the device (it may still be booting, or have no \
             hot-plug driver); it may do so later, and a reboot of the guest completes the detach"
        }
    }
}

/// Adds a device that the running guest keeps to the definition again, so that the guest also has it after a power
/// cycle.
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

/// Adds a device that one of a domain's documents has to the other document, named by `scope`.
///
/// # Errors
/// The error of the hypervisor, or [`ErrorKind::Document`] when the template cannot be rendered. A refused attach
/// changes nothing.
pub async fn complete(
    hypervisor: &dyn Hypervisor,
    templates: &Templates,
    domain: Uuid,
    spec: &dyn Pluggable,
    scope: Scope,
) -> Result<(), Error> {
    hypervisor.attach(domain, &render(templates, spec)?, scope).await
}

/// Renders the hostdev document of a device.
///
/// # Errors
/// [`ErrorKind::Document`] when the template cannot be rendered.
pub fn render(templates: &Templates, spec: &dyn Pluggable) -> Result<String, Error> {
    let operation = || format!("render the hostdev document of {}", spec.source());
    spec.render(templates).map_err(|error| Error::new(ErrorKind::Document, operation(), error))
}

/// Turns the errors that say that the device or the running domain is already gone into success. The caller reads the
/// document afterwards in any case.
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

/// Waits for an event after which the document has to be read again, or for the deadline. Returns true when the guest
/// refused.
async fn wait(
    events: &mut tokio::sync::broadcast::Receiver<Event>,
    domain: Uuid,
    name: &str,
    deadline: Instant,
) -> bool {
    loop {
        match tokio::time::timeout_at(deadline, events.recv()).await {
            Err(_) | Ok(Err(RecvError::Lagged(_))) => return false,
            // No more events can arrive.
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
