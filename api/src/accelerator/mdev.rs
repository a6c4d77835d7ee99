//! Mediated devices: parts of a device (vGPU) that its host driver makes, each for the server that is to have it.
//!
//! ```text
//! attach   parents chosen → rows `attaching`, parents claimed → made → plugged → `attached`
//! detach   `detaching` → unplugged → taken away from the host → `detached`, the parent free with its last
//! ```
//! What is to be done is on record before it is done, and a row ends only when its mediated device is gone from the
//! host. One works on a row at a time (`busy.rs`, by its id), so one that is in transition while nobody does is what
//! somebody left so: it is gone on with. Those that others made are not ours to touch.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use hotslot_driver::domain::UserAlias;
use hotslot_driver::hotplug::{self, DetachLimits, Policy, Presence, Unplugged};
use hotslot_driver::hypervisor::{self, DomainView, ErrorKind, Scope};
use hotslot_driver::mdev::{self, VFIO_PCI};
use hotslot_driver::pci::PciAddress;
use hotslot_driver::topology::Topology;
use hotslot_driver::xml::hostdev::MdevSpec;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use uuid::Uuid;

use super::{Holder, taken};
use crate::attachment::attach::{self, RACES};
use crate::attachment::detach::DetachRequest;
use crate::attachment::{Observation, Plugged, State};
use crate::busy;
use crate::error::Error;
use crate::host::Host;
use crate::id::{AttachmentId, RequestId, ServerId};
use crate::inventory::{HostDrivers, NumaPolicy};
use crate::service::Service;
use crate::store::{Device, DeviceStatus, Mdev, MdevReservation};
use crate::who;

/// Mediated devices that are to be made for a server.
pub(crate) struct Parts {
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
    pub(crate) async fn attach_parts(self: &Arc<Self>, server: ServerId, parts: Parts) -> Result<(), Error> {
        let service = Arc::clone(self);
        who::answer(who::spawn(async move { service.attach_parts_now(server, &parts).await })).await
    }

    async fn attach_parts_now(self: &Arc<Self>, server: ServerId, parts: &Parts) -> Result<(), Error> {
        let (host, _) = self.find(server).await?;
        let _room = host.admit()?;
        host.ready().await?;
        // On one server in turn: two requests must not count on the same free port.
        let _turn = self.turns.of(format!("server {server}")).await?;
        let domain = host.server(server).await?.ok_or(Error::NoServer(server))?;
        let scope = attach::scope(&domain, true)?;
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
        // What is offered is known afresh.
        drop(host.look_at_mdevs().await);
        outcome
    }

    /// Whether a server is in a state to be given devices, and has ports for them.
    async fn has_room(&self, host: &Host, domain: &DomainView, num: usize) -> Result<(), Error> {
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
        parts: &Parts,
        host: &Host,
        domain: &DomainView,
        scope: Scope,
    ) -> Result<(Vec<Step>, busy::Guard), Error> {
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
        parts: &Parts,
        host: &Host,
        domain: &DomainView,
    ) -> Result<Vec<Step>, Error> {
        host.look_at_mdevs().await?;
        let offer = self.offer(host).await?;
        let rows = self.store.devices_of(host.row.id);
        let withheld = offer.withheld(&rows, None, HostDrivers::Stay);
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
        making: busy::Turn,
    ) -> Result<(), Error> {
        let hypervisor = host.hypervisor.as_ref();
        for (done, step) in steps.iter().enumerate() {
            let address = step.parent.facts.address;
            let made = mdev::create(hypervisor, address, &step.mdev_type, step.id.0).await;
            if let Err(error) = made {
                return Err(self.undo_mdevs(host, server, steps, done, done, error).await);
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
                    return Err(self.undo_mdevs(host, server, steps, steps.len(), done, error).await);
                }
            }
        }
        self.settle_mdev_rows(&seen).await
    }

    /// Takes back what was made and plugged before the `failed`th step failed: what is to become of all is on record
    /// before the first is touched.
    async fn undo_mdevs(
        self: &Arc<Self>,
        host: &Host,
        server: ServerId,
        steps: &[Step],
        made: usize,
        failed: usize,
        error: hypervisor::Error,
    ) -> Error {
        let (reason, open) = (error.to_string(), error.kind.leaves_it_open());
        let is_there = |index: usize| index < made || index == failed && open;
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
            let taken = if index == failed && open {
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
    async fn settle_mdev_rows(&self, seen: &[(AttachmentId, Observation)]) -> Result<(), Error> {
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
                    self.may_be_asked(&host, Plugged::from(&now)).await?;
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
        Ok(Some(who::spawn(async move {
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
        let asked = Plugged { forced: force, ..Plugged::from(row) };
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

    /// Takes one that no domain has away from the host, and settles it as it was seen.
    async fn take_away(&self, host: &Host, row: &Mdev, seen: Observation) -> Result<(), Error> {
        match host.hypervisor.destroy_mdev(row.id.0).await {
            Ok(()) => self.settle_mdev_rows(&[(row.id, seen)]).await,
            Err(error) if error.kind == ErrorKind::NoDevice => self.settle_mdev_rows(&[(row.id, seen)]).await,
            Err(error) => {
                let mut seen = Vec::new();
                if row.state == State::Attached {
                    seen.push((row.id, Observation::AskedToDetach));
                }
                seen.push((row.id, Observation::StillThere { reason: error.to_string() }));
                self.settle_mdev_rows(&seen).await?;
                Err(host.error(format!("taking mediated device {} away failed", row.id))(error))
            }
        }
    }

    /// Brings the mediated devices of a server in line with its domain's documents; with `again`, its guest is asked
    /// again to let go of what is to leave it.
    ///
    /// # Errors
    /// The database's, or what the host answers; what could not be settled is tried again.
    pub(crate) async fn settle_mdevs(
        self: &Arc<Self>,
        host: &Arc<Host>,
        server: ServerId,
        again: bool,
    ) -> Result<(), Error> {
        // A call that is still out may make or plug one after it was looked.
        let out = host.hypervisor.overdue();
        let is_out = |row: &Mdev| {
            let uuid = row.id.to_string();
            out.iter().any(|call| call.domain == Some(server.0) || call.operation.contains(&uuid))
        };
        let mut mine = Vec::new();
        for row in self.store.mdevs_of(server).await? {
            if row.hypervisor != host.row.id {
                continue;
            }
            let Some(guard) = self.in_flight.try_enter(row.id).await? else { continue };
            // It may have gone on before nobody worked on it; from here on nobody else does.
            let row = self.store.mdev(row.id).await?.filter(|row| !row.state.is_final());
            mine.extend(
                row.filter(|row| row.state == State::Attached || !is_out(row)).map(|row| (row, guard)),
            );
        }
        if mine.is_empty() {
            return Ok(());
        }
        let view = host.server(server).await?;
        let presence = |row: &Mdev| view.as_ref().map(|view| Presence::of(view, UserAlias(row.id.0)));
        let runs = view.as_ref().is_some_and(|view| view.live.is_some());
        let is_plugged = |row: &Mdev| {
            let presence = presence(row);
            presence.is_some_and(|found| !found.is_absent() && (found.live || !runs))
        };
        // As with attachments: what was plugged as a whole stays, and what was not is taken back.
        let cut_off: BTreeSet<_> = mine
            .iter()
            .filter(|(row, _)| row.state == State::Attaching && !is_plugged(row))
            .map(|(row, _)| row.request.0)
            .collect();
        let gone = match &view {
            None => Observation::DomainGone,
            Some(view) if view.live.is_some() => Observation::Absent,
            Some(_) => Observation::DomainStopped,
        };
        let mut outcome = Ok(());
        for (row, guard) in mine {
            let present = presence(&row).filter(|found| !found.is_absent());
            let seen = present.map(|found| Observation::Present {
                inner: found.inner_address,
                only_in_definition: runs && !found.live,
                same_run: runs,
            });
            let done = match (row.state, seen) {
                (State::Attaching, _) if cut_off.contains(&row.request.0) => {
                    let reason = "the attach was cut off before all was plugged".to_owned();
                    self.settle_mdev_rows(&[(row.id, Observation::GivenUp { reason })]).await?;
                    self.release_soon(host, &row, guard);
                    Ok(())
                }
                (State::Detaching, Some(_)) if again => {
                    self.release_soon(host, &row, guard);
                    Ok(())
                }
                (state, Some(seen)) => {
                    if state == State::Attached && !runs {
                        self.make_again(host, &row).await;
                    }
                    // Mostly nothing has changed, and then nothing is written.
                    match row.state.on(row.record(), &seen) {
                        Some(_) => self.settle_mdev_rows(&[(row.id, seen)]).await,
                        None => Ok(()),
                    }
                }
                (_, None) => self.take_away(host, &row, gone.clone()).await,
            };
            outcome = outcome.and(done);
        }
        outcome
    }

    /// Has a guest asked to let go of one; the guest takes its time.
    fn release_soon(self: &Arc<Self>, host: &Arc<Host>, row: &Mdev, guard: busy::Guard) {
        let (service, host, row) = (Arc::clone(self), Arc::clone(host), row.clone());
        who::spawn(async move {
            let released = service.release_mdev(&host, row.id, service.detach_limits(), "").await;
            drop(guard);
            look_afterwards(&host, row.server, &released);
            if let Err(error) = released {
                tracing::info!(mdev.uuid = %row.id, server.id = %row.server, %error, "a detach goes on");
            }
        });
    }

    /// Makes one again that a shut-off server is to start with: they are gone with their host's reboot.
    async fn make_again(&self, host: &Host, row: &Mdev) {
        let is_there = |mdevs: &[mdev::Mdev]| mdevs.iter().any(|mdev| mdev.uuid == row.id.0);
        if is_there(&host.mdevs()) || host.look_at_mdevs().await.is_ok_and(|mdevs| is_there(&mdevs)) {
            return;
        }
        let Some(parent) = self.store.device(row.parent) else { return };
        let address = parent.facts.address;
        match mdev::create(host.hypervisor.as_ref(), address, &row.mdev_type, row.id.0).await {
            Ok(_) => tracing::warn!(host = %host.name, mdev.uuid = %row.id, "made again on {address}"),
            Err(error) => {
                tracing::error!(
                    host = %host.name, mdev.uuid = %row.id, %error,
                    "server {} cannot start without it; detach its accelerator", row.server
                );
            }
        }
    }
}

fn mdev_spec(id: AttachmentId) -> MdevSpec {
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
