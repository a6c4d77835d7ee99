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
use hotslot_driver::hotplug::{self, DetachLimits, Policy};
use hotslot_driver::hypervisor::{DomainView, ErrorKind, Scope};
use hotslot_driver::pci::PciAddress;
use hotslot_driver::topology::Topology;
use hotslot_driver::xml::hostdev::MdevSpec;
use hotslot_model::assignment::{Assignment, AssignmentKey, AssignmentKind, Holder, Mdev, MdevReservation};
use hotslot_model::device::Device;
use hotslot_model::id::{AttachmentId, RequestId, ServerId};
use hotslot_model::rules::NumaPolicy;
use hotslot_store::actor;
use uuid::Uuid;

use super::assignments::Assignments;
use super::attach::{self, RACES};
use super::engine::{self, Failed, Leftover, ReleaseOutcome, Step as _};
use super::request;
use crate::error::Error;
use crate::host::Host;
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
pub(super) struct Step {
    pub(super) id: AttachmentId,
    pub(super) parent: Arc<Device>,
    pub(super) mdev_type: String,
}

impl engine::Step for Step {
    fn key(&self) -> AssignmentKey {
        AssignmentKey { kind: AssignmentKind::Mdev, id: self.id }
    }

    fn device(&self) -> &Device {
        &self.parent
    }
}

impl Assignments {
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
        let (host, _) = self.hosts.find(server).await?;
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
                let leftover = match host.look_at_mdevs().await {
                    _ if error.kind.leaves_it_open() => Leftover::Unknown,
                    Err(_) => Leftover::Unknown,
                    Ok(there) if there.iter().any(|mdev| mdev.uuid == step.id.0) => Leftover::Assigned,
                    Ok(_) => Leftover::Nothing,
                };
                let failed = Failed::at(index, leftover, error);
                return Err(self.undo(host, steps, failed, None).await.error);
            }
        }
        drop(making);
        let mut seen = Vec::new();
        for (step, limits) in steps.iter().map(|step| (step, self.detach_limits())) {
            let spec = mdev_spec(step.id);
            match hotplug::plug(hypervisor, &self.templates, server.0, &spec, scope, limits).await {
                Ok(presence) => seen.push((step.key(), attach::plugged(&presence))),
                Err(error) => {
                    let is_open = error.kind.leaves_it_open();
                    let leftover = if is_open { Leftover::Unknown } else { Leftover::Assigned };
                    // Those after it are made.
                    let after = Leftover::Assigned;
                    let failed = Failed { after, ..Failed::at(seen.len(), leftover, error) };
                    return Err(self.undo(host, steps, failed, None).await.error);
                }
            }
        }
        self.settle_all(&seen).await
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
            outcome @ (ReleaseOutcome::Refused { .. }
            | ReleaseOutcome::Pending { .. }
            | ReleaseOutcome::Failed { .. }) => outcome,
        }
    }

    /// Takes a mediated device that no domain has away from the host.
    pub(super) async fn destroy(&self, host: &Host, id: AttachmentId, parent: PciAddress) -> ReleaseOutcome {
        if let Some(call) = host.stuck_at(parent) {
            return ReleaseOutcome::Pending { reason: call.to_string() };
        }
        match host.hypervisor.destroy_mdev(id.0).await {
            Ok(()) => ReleaseOutcome::Gone { reason: None },
            Err(error) if error.kind == ErrorKind::NoDevice => ReleaseOutcome::Gone { reason: None },
            Err(error) => ReleaseOutcome::Failed { error, as_before: false },
        }
    }
}

/// The hostdev document of a mediated device.
pub(crate) fn mdev_spec(id: AttachmentId) -> MdevSpec {
    MdevSpec { source: id.0, alias: UserAlias(id.0), guest: None }
}
