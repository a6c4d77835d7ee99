//! Mediated devices: parts of a device (vGPU) that its host driver makes, each for the server that is to have it.
//!
//! ```text
//! attach   parents chosen → rows `attaching`, parents claimed → made → plugged → `attached`
//! detach   `detaching` → unplugged → taken away from the host → `detached`, the parent free with its last
//! ```
//! What is to be done is on record before it is done, and a row ends only when its mediated device is gone from the
//! host. One works on a row at a time (`locks.rs`, by its id), so one that is in transition while nobody does is what
//! somebody left so: it is gone on with. Those that others made are not ours to touch.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use hotslot_driver::domain::UserAlias;
use hotslot_driver::hotplug::{self, DetachLimits, Policy, Presence, Unplugged};
use hotslot_driver::hypervisor::{self, DomainView, ErrorKind, OverdueCall, Scope};
use hotslot_driver::mdev::{self, VFIO_PCI};
use hotslot_driver::pci::PciAddress;
use hotslot_driver::topology::Topology;
use hotslot_driver::xml::hostdev::MdevSpec;
use hotslot_model::accelerator::taken;
use hotslot_model::assignment::{Holder, Mdev, MdevReservation, Observation, State};
use hotslot_model::device::{Device, DeviceStatus};
use hotslot_model::id::{AttachmentId, RequestId, ServerId};
use hotslot_model::rules::NumaPolicy;
use hotslot_store::actor;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use uuid::Uuid;

use crate::attachment::attach::{self, RACES};
use crate::attachment::{DetachRequest, GuestDevice, request};
use crate::error::Error;
use crate::host::Host;
use crate::inventory::HostDrivers;
use crate::service::Service;
use crate::{locks, task};

/// Mediated devices that are to be made for a server.
pub(crate) struct MdevRequest {
    /// Who is to have them.
    pub holder: Holder,
    /// What that is called where people read it.
    pub name: String,
    /// The devices that may make them, and of which types each.
    pub makers: BTreeMap<PciAddress, BTreeSet<String>>,
    /// How many.
    pub num: usize,
    /// How near to the guest's memory.
    pub numa_policy: NumaPolicy,
}

/// A mediated device that is to be made and plugged.
struct Step {
    id: AttachmentId,
    parent: Arc<Device>,
    mdev_type: String,
}

/// Which step of several failed.
struct Failed {
    /// Its index.
    step: usize,
    /// How many were made, from the first on.
    made: usize,
    /// Whether it may still be done.
    is_open: bool,
}

/// A device that can make some.
struct Parent {
    device: Arc<Device>,
    /// How near to the guest's memory it is: 0 is best.
    rank: u8,
    /// Whether it is in parts already: one that is not stays whole while others will do.
    in_parts: bool,
    /// What it is to make.
    mdev_type: String,
    /// How many more of that it can make.
    available: u32,
}

impl Service {
    /// Makes mediated devices and plugs them into a server, all or none.
    ///
    /// The work goes on when the caller goes away.
    ///
    /// # Errors
    /// [`Error::NoServer`]; [`Error::Conflict`] when the server has no room for them, or too few can be made; what the
    /// host answers.
    pub(crate) async fn attach_parts(
        self: &Arc<Self>,
        server: ServerId,
        parts: MdevRequest,
    ) -> Result<(), Error> {
        let service = Arc::clone(self);
        task::join(actor::spawn_as_current(async move { service.attach_parts_now(server, &parts).await }))
            .await
    }

    async fn attach_parts_now(self: &Arc<Self>, server: ServerId, parts: &MdevRequest) -> Result<(), Error> {
        let (host, _) = self.find(server).await?;
        let _room = host.admit()?;
        host.ready().await?;
        // On one server in turn: two requests must not count on the same free port.
        let _turn = self.turns.of(format!("server {server}")).await?;
        attach::expect_nothing_out(&host, server)?;
        let domain = host.server(server).await?.ok_or(Error::NoServer(server))?;
        let scope = request::scope(&domain, true)?;
        self.has_room(&host, &domain, parts.num).await?;
        // Nobody of ours makes one of which another has counted on.
        let making = self.turns.of(format!("mediated devices of host {}", host.row.id.0)).await?;
        let (steps, in_flight) = self.reserve_mdevs(parts, &host, &domain, scope).await?;
        let outcome = self.make_and_plug(&host, server, scope, &steps, making).await;
        drop(in_flight);
        host.look_again(server);
        if outcome.is_err() {
            host.ask_again(server);
        }
        // Read the host's mediated devices again, since availability depends on them.
        drop(host.look_at_mdevs().await);
        outcome
    }

    /// Whether a server is in a state to be given devices, and has ports for them.
    pub(crate) async fn has_room(&self, host: &Host, domain: &DomainView, num: usize) -> Result<(), Error> {
        let context = format!("nothing was attached to server {}", domain.info.uuid);
        let verdict = hotplug::preflight(host.hypervisor.as_ref(), domain, &[], Policy::default()).await;
        let verdict = match verdict {
            Ok(verdict) => verdict,
            Err(error) => return Err(host.error(context)(error)),
        };
        if let Some(refusal) = verdict.refusal() {
            return Err(host.error(context)(refusal.error.clone()));
        }
        // To a definition that has no port libvirt adds one.
        let Some(live) = &domain.live else { return Ok(()) };
        let mut ports = Topology::of(live).free_ports();
        let free = (0..num).take_while(|_| ports.take(true).is_some()).count();
        if free == num {
            return Ok(());
        }
        Err(Error::Conflict(format!(
            "{context}: it has {free} free hot-plug ports, and {num} are asked for; detach something, or add \
             pcie-root-port controllers to its definition and restart it"
        )))
    }

    /// Chooses parents and puts down what is to be made of them, all or none.
    async fn reserve_mdevs(
        self: &Arc<Self>,
        parts: &MdevRequest,
        host: &Host,
        domain: &DomainView,
        scope: Scope,
    ) -> Result<(Vec<Step>, locks::Guard), Error> {
        for _ in 0..RACES {
            let steps = self.choose_parents(parts, host, domain).await?;
            // In flight before it can be seen, so that reconciliation never takes it for a left-over.
            let in_flight = self.in_flight.enter(steps.iter().map(|step| step.id)).await?;
            let reservation = MdevReservation {
                hypervisor: host.row.id,
                server: ServerId(domain.info.uuid),
                request: RequestId(Uuid::new_v4()),
                holder: parts.holder,
                persistent: scope != Scope::Live,
            };
            let wanted =
                steps.iter().map(|step| (step.id, Arc::clone(&step.parent), step.mdev_type.as_str()));
            if self.store.reserve_mdevs(reservation, &wanted.collect::<Vec<_>>()).await? {
                return Ok((steps, in_flight));
            }
        }
        Err(Error::Conflict("other requests took the devices first; try again".into()))
    }

    /// Chooses parents: near to the guest's memory, then those that are in parts already, then by address.
    async fn choose_parents(
        &self,
        parts: &MdevRequest,
        host: &Host,
        domain: &DomainView,
    ) -> Result<Vec<Step>, Error> {
        host.look_at_mdevs().await?;
        let offer = self.offer(host).await?;
        let rows = self.store.devices_of(host.row.id);
        let withheld = offer.withheld(&rows, None, HostDrivers::Keep);
        let made = self.store.mdevs().await?;
        let guest = domain.live.as_ref().or(domain.persistent.as_ref());
        let guest_nodes = guest.map(|document| document.numa_nodes.clone()).unwrap_or_default();
        let sockets = host.hypervisor.node_sockets().await.map_err(host.error("read the host's sockets"))?;
        let (mut parents, mut others, mut short) = (Vec::new(), Vec::new(), None);
        for row in &rows {
            let address = row.facts.address;
            let Some(wanted) = parts.makers.get(&address) else { continue };
            let types = match host.hypervisor.mdev_types(address).await {
                Err(error) if error.kind == ErrorKind::NoDevice => continue,
                types => types.map_err(host.error(format!("read the types of {address}")))?,
            };
            // Of several types the one that it makes already: many cards make one type at a time.
            let of_it = || made.iter().filter(|made| made.parent == row.id);
            let best = types.iter().filter(|of| wanted.contains(&of.id)).min_by_key(|of| {
                let is_made = of_it().any(|made| made.mdev_type == of.id);
                (of.device_api != VFIO_PCI, of.available == 0, !is_made)
            });
            let Some(of) = best else {
                others.extend(types.iter().map(|of| format!("{} of {address}", of.id)));
                continue;
            };
            let in_parts = of_it().next().is_some();
            let rank = parts.numa_policy.rank(row.facts.numa_node, &guest_nodes, sockets.as_ref());
            let reason = if row.status != DeviceStatus::Available && !in_parts {
                Some(taken(row, &rows))
            } else if let Some(reason) = withheld.get(&row.id) {
                Some(reason.clone())
            } else if of.device_api != VFIO_PCI {
                Some(format!("guests get it by {}, and only {VFIO_PCI} can be plugged", of.device_api))
            } else if of.available == 0 {
                Some(format!("no more of it can be made on {address}"))
            } else {
                rank.as_ref().err().map(|reason| format!("{address}: {reason}"))
            };
            match (reason, rank) {
                (None, Ok(rank)) => {
                    let (device, mdev_type) = (Arc::clone(row), of.id.clone());
                    parents.push(Parent { device, rank, in_parts, mdev_type, available: of.available });
                }
                (reason, _) => short = short.or(reason),
            }
        }
        parents.sort_by_key(|parent| (parent.rank, !parent.in_parts, parent.device.facts.address));
        let each = parents.iter().flat_map(|parent| (0..parent.available).map(move |_| parent));
        let step = |parent: &Parent| Step {
            id: AttachmentId(Uuid::new_v4()),
            parent: Arc::clone(&parent.device),
            mdev_type: parent.mdev_type.clone(),
        };
        let steps: Vec<_> = each.take(parts.num).map(step).collect();
        if steps.len() == parts.num {
            return Ok(steps);
        }
        let why = short.unwrap_or_else(|| {
            let there_are = if others.is_empty() { "none".to_owned() } else { others.join(", ") };
            format!("its devices have no such type; those that they have: {there_are}")
        });
        let types: BTreeSet<_> = parts.makers.values().flatten().map(String::as_str).collect();
        Err(Error::Conflict(format!(
            "{} is {} of {}, and {} can be made on host {}: {why}",
            parts.name,
            parts.num,
            Vec::from_iter(types).join(" or "),
            steps.len(),
            host.name
        )))
    }

    /// Makes all, then plugs all; the turn of making ends in between.
    async fn make_and_plug(
        self: &Arc<Self>,
        host: &Arc<Host>,
        server: ServerId,
        scope: Scope,
        steps: &[Step],
        making: locks::KeyedGuard,
    ) -> Result<(), Error> {
        let hypervisor = host.hypervisor.as_ref();
        for (done, step) in steps.iter().enumerate() {
            let address = step.parent.facts.address;
            let made = hotplug::create_mdev(hypervisor, address, &step.mdev_type, step.id.0).await;
            if let Err(error) = made {
                // Whatever it says, it may have been made: the host tells.
                let there = host.look_at_mdevs().await;
                let is_open = error.kind.leaves_it_open() || there.is_err();
                let is_made = there.is_ok_and(|there| there.iter().any(|mdev| mdev.uuid == step.id.0));
                let failed = Failed { step: done, made: done + usize::from(is_made), is_open };
                return Err(self.undo_mdevs(host, server, steps, failed, error).await);
            }
        }
        drop(making);
        let mut seen = Vec::new();
        for (done, step) in steps.iter().enumerate() {
            let (spec, limits) = (mdev_spec(step.id), self.detach_limits());
            match hotplug::plug(hypervisor, &self.templates, server.0, &spec, scope, limits).await {
                Ok(presence) => {
                    let inner = presence.inner_address;
                    seen.push((
                        step.id,
                        Observation::Present { inner, only_in_definition: false, same_run: true },
                    ));
                }
                Err(error) => {
                    let is_open = error.kind.leaves_it_open();
                    let failed = Failed { step: done, made: steps.len(), is_open };
                    return Err(self.undo_mdevs(host, server, steps, failed, error).await);
                }
            }
        }
        self.settle_mdev_rows(&seen).await
    }

    /// Takes back what was made and plugged until a step failed: what is to become of all is on record before the first
    /// is touched.
    async fn undo_mdevs(
        self: &Arc<Self>,
        host: &Host,
        server: ServerId,
        steps: &[Step],
        failed: Failed,
        error: hypervisor::Error,
    ) -> Error {
        let reason = error.to_string();
        let is_open = |index: usize| index == failed.step && failed.is_open;
        let is_there = |index: usize| index < failed.made || is_open(index);
        let intents = steps.iter().enumerate().map(|(index, step)| {
            let reason = reason.clone();
            let intent = if is_there(index) {
                Observation::GivenUp { reason }
            } else {
                Observation::AttachRefused { reason }
            };
            (step.id, intent)
        });
        let intents: Vec<_> = intents.collect();
        if let Err(error) = self.settle_mdev_rows(&intents).await {
            return error;
        }
        let mut left = Vec::new();
        for (index, step) in steps.iter().enumerate().filter(|(index, _)| is_there(*index)) {
            // After a lost connection or a time-out it may come yet: the next comparison takes it back.
            let taken = if is_open(index) {
                Err(Error::Conflict("it is taken back when the host answers".into()))
            } else {
                self.release_mdev(host, step.id, self.detach_limits(), "").await
            };
            left.extend(taken.err().map(|error| format!("{}: {error}", step.id)));
        }
        let rest = if left.is_empty() { "nothing is left of it".to_owned() } else { left.join("; ") };
        host.error(format!("attaching mediated devices to server {server} failed, {rest}"))(error)
    }

    /// Records what was seen of mediated devices.
    pub(crate) async fn settle_mdev_rows(&self, seen: &[(AttachmentId, Observation)]) -> Result<(), Error> {
        if seen.is_empty() {
            return Ok(());
        }
        for row in self.store.settle_mdevs(seen).await? {
            tracing::info!(
                mdev.uuid = %row.id, server.id = %row.server, to = %row.state,
                reason = row.reason.as_deref().unwrap_or_default(), "mediated device {} is {}", row.id, row.state
            );
            if row.state.is_final()
                && let (Some(host), Some(parent)) = (self.host(row.hypervisor), self.store.device(row.parent))
            {
                // It may have changed while it was in use.
                host.look_at(parent.facts.address);
                host.settled(row.server);
            }
        }
        Ok(())
    }

    /// Records that a mediated device is to go, and answers the work of making it go; none when it is gone already.
    pub(super) async fn begin_detach_mdev(
        self: &Arc<Self>,
        id: AttachmentId,
        request: DetachRequest,
    ) -> Result<Option<JoinHandle<Result<(), Error>>>, Error> {
        let until = request.timeout.map(|timeout| Instant::now() + timeout);
        let (host, row, guard) = loop {
            let Some(row) = self.store.mdev(id).await?.filter(|row| !row.state.is_final()) else {
                return Ok(None);
            };
            let host = self.host(row.hypervisor).cloned().ok_or_else(|| {
                Error::Conflict(format!("mediated device {id} is on a host that is no longer configured"))
            })?;
            host.ready().await?;
            if let Some(guard) = self.in_flight.try_enter(id).await? {
                // It may have ended or begun to go meanwhile.
                let Some(now) = self.store.mdev(id).await?.filter(|now| !now.state.is_final()) else {
                    return Ok(None);
                };
                if now.state == State::Attached && !request.force {
                    self.may_be_asked(&host, GuestDevice::from(&now)).await?;
                }
                break (host, now, guard);
            }
            // Somebody asks the guest already: what it is by then is what there is to say, or it is asked again.
            let idle = self.in_flight.idle(id);
            match until {
                None => idle.await?,
                Some(until) => tokio::time::timeout_at(until, idle).await.map_err(|_| {
                    Error::Conflict(format!(
                        "mediated device {id} is {}; the guest is asked already",
                        row.state
                    ))
                })??,
            }
        };
        let room = host.admit()?;
        let was = row.state;
        self.settle_mdev_rows(&[(id, Observation::AskedToDetach)]).await?;
        if request.force {
            self.store.force_mdev(id).await?;
        }
        let service = Arc::clone(self);
        Ok(Some(actor::spawn_as_current(async move {
            let _room = room;
            let outcome = service.quiesce_and_release(&host, &row, was, until, request.force).await;
            drop(guard);
            look_afterwards(&host, row.server, &outcome);
            drop(host.look_at_mdevs().await);
            outcome
        })))
    }

    async fn quiesce_and_release(
        &self,
        host: &Host,
        row: &Mdev,
        was: State,
        until: Option<Instant>,
        force: bool,
    ) -> Result<(), Error> {
        let mut note = String::new();
        let asked = GuestDevice { forced: force, ..GuestDevice::from(row) };
        if let Err(not) = self.quiesce(host, asked, until).await {
            if not.demanded {
                let reason = format!("the guest was not asked: {}", not.reason);
                // Of an earlier ask the guest may still make something.
                let seen = if was == State::Attached {
                    Observation::DetachRefused { reason: reason.clone() }
                } else {
                    Observation::StillThere { reason: reason.clone() }
                };
                self.settle_mdev_rows(&[(row.id, seen)]).await?;
                return Err(Error::Conflict(format!(
                    "mediated device {} stays: {reason}; mend that and ask again, or ask all the same with force",
                    row.id
                )));
            }
            note = format!("; {}", not.reason);
        }
        let total = until.map(|until| until.saturating_duration_since(Instant::now()));
        let limits = DetachLimits { total, ..self.detach_limits() };
        self.release_mdev(host, row.id, limits, &note).await
    }

    /// Takes one that is `detaching` out of its server and away from the host, and settles it.
    async fn release_mdev(
        &self,
        host: &Host,
        id: AttachmentId,
        limits: DetachLimits,
        note: &str,
    ) -> Result<(), Error> {
        let Some(row) = self.store.mdev(id).await?.filter(|row| !row.state.is_final()) else { return Ok(()) };
        // What other processes wait for is known from their last commits.
        self.store.refresh().await?;
        if let Some(call) = host.stuck(row.server) {
            return Err(self.waits_for(&row, &call).await);
        }
        let (hypervisor, spec, keep) =
            (host.hypervisor.as_ref(), mdev_spec(id), row.persistent && !row.forced);
        let unplugged = hotplug::unplug(hypervisor, &self.templates, row.server.0, &spec, keep, limits).await;
        let (seen, error) = match unplugged {
            Ok(Unplugged::Gone) => {
                // Of a given-up one it is said why.
                let reason = row.reason.clone();
                return self.take_away(host, &row, Observation::Removed { reason }).await;
            }
            Ok(Unplugged::Refused { reason }) if !row.forced => {
                let reason = reason + note;
                let text = format!("it stays attached: {reason}; ask again when the guest can let go");
                (Observation::DetachRefused { reason }, Error::Conflict(text))
            }
            Ok(Unplugged::Refused { reason } | Unplugged::Pending { reason }) => {
                let reason = reason + note;
                let text =
                    format!("it is not gone yet and stays detaching: {reason}; ask again, or wait for it");
                (Observation::StillThere { reason }, Error::Conflict(text))
            }
            Err(error) => {
                // What was refused is as it was; what is unknown is settled when the host answers again.
                let reason = error.to_string() + note;
                let seen = match (error.kind.leaves_it_open(), row.forced) {
                    (true, _) => Observation::HostAway { reason },
                    (false, true) => Observation::StillThere { reason },
                    (false, false) => Observation::DetachRefused { reason },
                };
                (seen, host.error(format!("detaching mediated device {id} failed"))(error))
            }
        };
        self.settle_mdev_rows(&[(id, seen)]).await?;
        Err(error)
    }

    /// Records that one has not gone, for a call is out after which it may be there; answers so.
    async fn waits_for(&self, row: &Mdev, call: &OverdueCall) -> Error {
        let reason = call.to_string();
        if let Err(error) = self.mdev_stays(row, reason.clone()).await {
            return error;
        }
        Error::Conflict(format!(
            "mediated device {} stays detaching: {reason}; it goes on when that comes back",
            row.id
        ))
    }

    /// Records that one which is to go has not gone.
    async fn mdev_stays(&self, row: &Mdev, reason: String) -> Result<(), Error> {
        let asked = (row.state == State::Attached).then_some((row.id, Observation::AskedToDetach));
        let seen: Vec<_> = asked.into_iter().chain([(row.id, Observation::StillThere { reason })]).collect();
        self.settle_mdev_rows(&seen).await
    }

    /// Takes one that no domain has away from the host, and settles it as it was seen.
    pub(crate) async fn take_away(&self, host: &Host, row: &Mdev, seen: Observation) -> Result<(), Error> {
        if let Some(call) = self.call_out(host, None, row.parent) {
            return Err(self.waits_for(row, &call).await);
        }
        match host.hypervisor.destroy_mdev(row.id.0).await {
            Ok(()) => self.settle_mdev_rows(&[(row.id, seen)]).await,
            Err(error) if error.kind == ErrorKind::NoDevice => self.settle_mdev_rows(&[(row.id, seen)]).await,
            Err(error) => {
                self.mdev_stays(row, error.to_string()).await?;
                Err(host.error(format!("taking mediated device {} away failed", row.id))(error))
            }
        }
    }

    /// Goes on with one that is `detaching`, and that nobody else works on.
    pub(crate) async fn release_mdev_again(
        &self,
        host: &Host,
        row: &Mdev,
        guard: locks::Guard,
    ) -> Result<(), Error> {
        let released = self.release_mdev(host, row.id, self.detach_limits(), "").await;
        drop(guard);
        look_afterwards(host, row.server, &released);
        released
    }

    /// Takes one away from the host whose record has ended, unless a domain has it: whoever gave it that may want it.
    pub(crate) async fn take_stray_away(&self, host: &Host, row: &Mdev) -> Result<(), Error> {
        // Its server may have moved: on this host another function made it than on record.
        let here = host.mdevs().iter().find(|mdev| mdev.uuid == row.id.0).and_then(|mdev| mdev.parent);
        let on_record = || self.store.device(row.parent).filter(|parent| parent.hypervisor == host.row.id);
        let parent = here.or_else(|| on_record().map(|parent| parent.facts.address));
        if let Some(call) = parent.and_then(|parent| host.stuck_at(parent)) {
            return Err(Error::Conflict(format!("{call}; it goes on when that comes back")));
        }
        let domains = host.hypervisor.domains().await.map_err(host.error("list the host's domains"))?;
        for info in domains {
            let view = host.server(ServerId(info.uuid)).await?;
            let documents = view.iter().flat_map(|view| [&view.live, &view.persistent]).flatten();
            if documents.flat_map(|document| &document.mdevs).any(|mdev| mdev.uuid == row.id.0) {
                return Ok(());
            }
        }
        let taken = match host.hypervisor.destroy_mdev(row.id.0).await {
            Err(error) if error.kind == ErrorKind::NoDevice => Ok(()),
            taken => taken,
        };
        if taken.is_ok() {
            tracing::warn!(
                host = %host.name, mdev.uuid = %row.id,
                "took mediated device {} away, whose record had ended", row.id
            );
        } else {
            host.look_at_mdevs_again();
        }
        // Read the host's mediated devices again, since availability depends on them.
        drop(host.look_at_mdevs().await);
        parent.into_iter().for_each(|parent| host.look_at(parent));
        taken.map_err(host.error(format!("taking mediated device {} away failed", row.id)))
    }

    /// Makes those again that a shut-off server is to start with: they are gone with their host's reboot.
    ///
    /// # Errors
    /// The database's, or what the host answers.
    pub(crate) async fn make_mdevs_again(
        self: &Arc<Self>,
        host: &Arc<Host>,
        server: ServerId,
    ) -> Result<(), Error> {
        let mut missing = self.store.mdevs_of(server).await?;
        let is_missing = |row: &Mdev| !host.mdevs().iter().any(|mdev| mdev.uuid == row.id.0);
        missing
            .retain(|row| row.hypervisor == host.row.id && row.state == State::Attached && is_missing(row));
        if missing.is_empty() {
            return Ok(());
        }
        host.look_at_mdevs().await?;
        let view = host.server(server).await?.filter(|view| view.live.is_none());
        let is_to_start =
            |row: &Mdev| view.as_ref().is_some_and(|view| Presence::of(view, UserAlias(row.id.0)).config);
        missing.retain(|row| is_missing(row) && is_to_start(row));
        for row in missing {
            let Some(guard) = self.in_flight.try_enter(row.id).await? else { continue };
            let (service, host) = (Arc::clone(self), Arc::clone(host));
            actor::spawn_as_current(async move {
                let row = service.store.mdev(row.id).await?;
                if let Some(row) = row.filter(|row| row.state == State::Attached)
                    && let Err(error) = service.make_again(&host, &row).await
                {
                    tracing::error!(
                        host = %host.name, mdev.uuid = %row.id, %error,
                        "server {server} cannot start without it; detach its accelerator"
                    );
                }
                drop(guard);
                Ok::<_, Error>(())
            });
        }
        Ok(())
    }

    /// Makes one again, unless it is there.
    pub(crate) async fn make_again(&self, host: &Host, row: &Mdev) -> Result<(), Error> {
        let is_there = |mdevs: &[mdev::Mdev]| mdevs.iter().any(|mdev| mdev.uuid == row.id.0);
        if is_there(&host.mdevs()) || is_there(&host.look_at_mdevs().await?) {
            return Ok(());
        }
        let Some(parent) = self.store.device(row.parent) else { return Ok(()) };
        let address = parent.facts.address;
        if let Some(call) = host.stuck_at(address) {
            return Err(Error::Conflict(format!("{call}; it goes on when that comes back")));
        }
        let made = hotplug::create_mdev(host.hypervisor.as_ref(), address, &row.mdev_type, row.id.0).await;
        drop(host.look_at_mdevs().await);
        made.map_err(host.error(format!("making mediated device {} again on {address} failed", row.id)))?;
        tracing::warn!(host = %host.name, mdev.uuid = %row.id, "made again on {address}");
        Ok(())
    }
}

/// The hostdev document of a mediated device.
pub(crate) fn mdev_spec(id: AttachmentId) -> MdevSpec {
    MdevSpec { source: id.0, alias: UserAlias(id.0), guest: None }
}

/// Has a server looked at when nobody works on the mediated device any more that was to leave it.
fn look_afterwards(host: &Host, server: ServerId, outcome: &Result<(), Error>) {
    // What was heard while it was worked on was left to the worker.
    host.look_again(server);
    // What a guest says is its word; anything else leaves it open whether it was asked.
    if !matches!(outcome, Ok(()) | Err(Error::Conflict(_))) {
        host.ask_again(server);
    }
}
