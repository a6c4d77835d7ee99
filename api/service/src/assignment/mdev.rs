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
use hotslot_driver::hotplug::{self, DetachLimits, Policy, Presence};
use hotslot_driver::hypervisor::{self, DomainView, ErrorKind, Scope};
use hotslot_driver::mdev::{self, VFIO_PCI};
use hotslot_driver::pci::PciAddress;
use hotslot_driver::topology::Topology;
use hotslot_driver::xml::hostdev::MdevSpec;
use hotslot_model::accelerator::taken;
use hotslot_model::assignment::{
    Assignment, AssignmentKey, AssignmentKind, Holder, Mdev, MdevReservation, Observation, State,
};
use hotslot_model::device::{Device, DeviceStatus};
use hotslot_model::id::{AttachmentId, RequestId, ServerId};
use hotslot_model::rules::NumaPolicy;
use hotslot_store::actor;
use uuid::Uuid;

use super::attach::{self, RACES};
use super::engine::{Leftover, ReleaseOutcome, what_is_left};
use super::request;
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
        match &outcome {
            Ok(rows) => rows.iter().for_each(|row| self.verify_soon(&host, row)),
            Err(_) => host.ask_again(server),
        }
        // Read the host's mediated devices again, since availability depends on them.
        drop(host.look_at_mdevs().await);
        outcome.map(drop)
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
        &self,
        host: &Host,
        server: ServerId,
        scope: Scope,
        steps: &[Step],
        making: locks::KeyedGuard,
    ) -> Result<Vec<Assignment>, Error> {
        let hypervisor = host.hypervisor.as_ref();
        for (index, step) in steps.iter().enumerate() {
            let address = step.parent.facts.address;
            let made = hotplug::create_mdev(hypervisor, address, &step.mdev_type, step.id.0).await;
            if let Err(error) = made {
                // Whatever the error says, it may have been made: the host tells.
                let fate = match host.look_at_mdevs().await {
                    _ if error.kind.leaves_it_open() => Leftover::Unknown,
                    Err(_) => Leftover::Unknown,
                    Ok(there) if there.iter().any(|mdev| mdev.uuid == step.id.0) => Leftover::Assigned,
                    Ok(_) => Leftover::Nothing,
                };
                return Err(self.undo_made(host, server, steps, (index, fate), index, error).await);
            }
        }
        drop(making);
        let mut seen = Vec::new();
        for (index, step) in steps.iter().enumerate() {
            let (spec, limits) = (mdev_spec(step.id), self.detach_limits());
            match hotplug::plug(hypervisor, &self.templates, server.0, &spec, scope, limits).await {
                Ok(presence) => seen.push((key(step.id), attach::plugged(&presence))),
                Err(error) => {
                    let open = error.kind.leaves_it_open();
                    let fate = if open { Leftover::Unknown } else { Leftover::Assigned };
                    return Err(self.undo_made(host, server, steps, (index, fate), steps.len(), error).await);
                }
            }
        }
        self.settle_all(&seen).await
    }

    /// Undoes an attach of which one step failed, and left this; the first `made` steps have made their mediated
    /// devices.
    async fn undo_made(
        &self,
        host: &Host,
        server: ServerId,
        steps: &[Step],
        (failed, fate): (usize, Leftover),
        made: usize,
        error: hypervisor::Error,
    ) -> Error {
        let mut fate = Some(fate);
        let undone = steps.iter().enumerate().map(|(index, step)| {
            let of_failed = fate.take_if(|_| index == failed);
            let otherwise = if index < made { Leftover::Assigned } else { Leftover::Nothing };
            (key(step.id), of_failed.unwrap_or(otherwise), error.to_string())
        });
        match self.undo(host, undone.collect()).await {
            Err(error) => error,
            Ok(left) => host.error(format!(
                "attaching mediated devices to server {server} failed, {}",
                what_is_left(&left)
            ))(error),
        }
    }

    /// Takes a mediated device out of its domain, and then away from the host. A device that stays in the guest stays in
    /// the definition as well, unless its assignment is forced.
    pub(super) async fn remove_mdev(
        &self,
        host: &Host,
        row: &Mdev,
        parent: PciAddress,
        limits: DetachLimits,
    ) -> ReleaseOutcome {
        let (hypervisor, spec, keep) =
            (host.hypervisor.as_ref(), mdev_spec(row.id), row.persistent && !row.forced);
        let unplugged = hotplug::unplug(hypervisor, &self.templates, row.server.0, &spec, keep, limits).await;
        match ReleaseOutcome::from(unplugged) {
            ReleaseOutcome::Gone { .. } => self.destroy(host, row.id, parent).await,
            stays => stays,
        }
    }

    /// Takes a mediated device that no domain has away from the host.
    async fn destroy(&self, host: &Host, id: AttachmentId, parent: PciAddress) -> ReleaseOutcome {
        if let Some(call) = host.stuck_at(parent) {
            return ReleaseOutcome::Pending { reason: call.to_string() };
        }
        match host.hypervisor.destroy_mdev(id.0).await {
            Ok(()) => ReleaseOutcome::Gone { reason: None },
            Err(error) if error.kind == ErrorKind::NoDevice => ReleaseOutcome::Gone { reason: None },
            Err(error) => ReleaseOutcome::Failed { error, as_before: false },
        }
    }

    /// Takes a mediated device that no domain has away from the host, and records that as `seen`.
    ///
    /// # Errors
    /// [`Error::Conflict`] when it is still there; it stays `detaching` then.
    pub(super) async fn take_away(
        &self,
        host: &Host,
        row: &Assignment,
        seen: Observation,
    ) -> Result<(), Error> {
        let (key, parent) = (row.key(), self.store.device(row.device()));
        let parent = parent.ok_or_else(|| Error::Internal(format!("the parent of {key} is lost")))?;
        match self.destroy(host, key.id, parent.facts.address).await {
            ReleaseOutcome::Gone { .. } => self.settle(key, seen).await.map(drop),
            ReleaseOutcome::Refused { reason } | ReleaseOutcome::Pending { reason } => {
                let stays = Observation::StillThere { reason: reason.clone() };
                self.settle_all(&[(key, Observation::AskedToDetach), (key, stays)]).await?;
                Err(Error::Conflict(format!("{key} stays detaching: {reason}")))
            }
            ReleaseOutcome::Failed { error, .. } => {
                let stays = Observation::StillThere { reason: error.to_string() };
                self.settle_all(&[(key, Observation::AskedToDetach), (key, stays)]).await?;
                Err(host.error(format!("taking {key} away failed"))(error))
            }
        }
    }

    /// Takes one away from the host whose record has ended, unless a domain has it: whoever gave it that may want it.
    pub(super) async fn take_stray_away(&self, host: &Host, row: &Assignment) -> Result<(), Error> {
        // Its server may have moved: on this host another function made it than on record.
        let here = host.mdevs().iter().find(|mdev| mdev.uuid == row.id().0).and_then(|mdev| mdev.parent);
        let on_record = || self.store.device(row.device()).filter(|parent| parent.hypervisor == host.row.id);
        let parent = here.or_else(|| on_record().map(|parent| parent.facts.address));
        if let Some(call) = parent.and_then(|parent| host.stuck_at(parent)) {
            return Err(Error::Conflict(format!("{call}; it goes on when that comes back")));
        }
        let domains = host.hypervisor.domains().await.map_err(host.error("list the host's domains"))?;
        for info in domains {
            let view = host.server(ServerId(info.uuid)).await?;
            let documents = view.iter().flat_map(|view| [&view.live, &view.persistent]).flatten();
            if documents.flat_map(|document| &document.mdevs).any(|mdev| mdev.uuid == row.id().0) {
                return Ok(());
            }
        }
        let taken = match host.hypervisor.destroy_mdev(row.id().0).await {
            Err(error) if error.kind == ErrorKind::NoDevice => Ok(()),
            taken => taken,
        };
        if taken.is_ok() {
            tracing::warn!(
                host = %host.name, mdev.uuid = %row.id(),
                "took mediated device {} away, whose record had ended", row.id()
            );
        } else {
            host.look_at_mdevs_again();
        }
        // Read the host's mediated devices again, since availability depends on them.
        drop(host.look_at_mdevs().await);
        parent.into_iter().for_each(|parent| host.look_at(parent));
        taken.map_err(host.error(format!("taking mediated device {} away failed", row.id())))
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

fn key(id: AttachmentId) -> AssignmentKey {
    AssignmentKey { kind: AssignmentKind::Mdev, id }
}

/// The hostdev document of a mediated device.
pub(crate) fn mdev_spec(id: AttachmentId) -> MdevSpec {
    MdevSpec { source: id.0, alias: UserAlias(id.0), guest: None }
}
