//! Mediated devices: parts of a device (vGPUs) that its host driver creates, each for one server.
//!
//! ```text
//! attach   choose parents → rows `attaching`, parents claimed → create → plug → `attached`
//! detach   `detaching` → unplug → remove from the host → `detached`; the last one of a parent frees the parent
//! ```
//! A step is recorded before it is taken, and a row ends only when its mediated device is gone from the host. One task
//! at a time works on a row (`locks.rs`, by its id). So a row that is in transition while no task works on it was left
//! by an interrupted task, and its work is continued. Mediated devices that others created are never changed.

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
use hotslot_model::host_mode::HostChange;
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
use crate::metrics;
use crate::quota::owner_of;
use crate::{locks, task};

/// A request for mediated devices.
pub(crate) struct MdevRequest {
    /// The accelerator or accelerator request that they are for.
    pub holder: Holder,
    /// The name of the holder, for messages.
    pub name: String,
    /// The possible parents, each with the types of mediated devices that may be created on it.
    pub parents: BTreeMap<PciAddress, BTreeSet<String>>,
    /// The number of mediated devices.
    pub num: usize,
    /// How near the parents have to be to the guest's memory.
    pub numa_policy: NumaPolicy,
}

/// A mediated device that is to be created and plugged.
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
    /// Creates mediated devices and plugs them into a server, all or none.
    ///
    /// The work continues when the caller's future is dropped.
    ///
    /// # Errors
    /// [`Error::NoServer`]; [`Error::Conflict`] when the server has too few free ports, or too few devices can be
    /// created; errors of the hypervisor and of the database.
    pub(crate) async fn attach_parts(
        self: &Arc<Self>,
        server: ServerId,
        parts: MdevRequest,
    ) -> Result<(), Error> {
        let service = Arc::clone(self);
        let work =
            metrics::attach(
                AssignmentKind::Mdev,
                async move { service.attach_parts_now(server, &parts).await },
            );
        task::join(actor::spawn_as_current(work)).await
    }

    async fn attach_parts_now(self: &Arc<Self>, server: ServerId, parts: &MdevRequest) -> Result<(), Error> {
        let (host, _) = self.hosts.find(server).await?;
        self.hosts.expect_open(&host, HostChange::Attach).await?;
        let _room = host.admit()?;
        host.ready().await?;
        // Attaches to one server go one after another, so that two requests never count on the same free port.
        let _turn = self.turn_at(&host, server, HostChange::Attach).await?;
        attach::expect_nothing_out(&host, server)?;
        let domain = host.server(server).await?.ok_or(Error::NoServer(server))?;
        let scope = request::scope(&domain, true)?;
        self.has_room(&host, &domain, parts.num).await?;
        // Mediated devices of a host are created one after another, so that two requests never count on the same
        // instance.
        let making = self.turns.of(format!("mediated devices of host {}", host.row.id.0)).await?;
        let (steps, in_flight) = self.reserve_mdevs(parts, &host, &domain, scope).await?;
        let outcome = self.make_and_plug(&host, server, scope, &steps, making).await;
        drop(in_flight);
        host.queue_server_check(server);
        match &outcome {
            Ok(rows) => rows.iter().for_each(|row| self.verify_soon(&host, row)),
            Err(_) => host.queue_unplug_retry(server),
        }
        // Read the host's mediated devices again, since availability depends on them.
        drop(host.read_mdevs().await);
        outcome.map(drop)
    }

    /// Checks that a server is in a state in which devices can be attached, and has `num` free ports.
    ///
    /// # Errors
    /// The refusal of the preflight; [`Error::Conflict`] when too few ports are free; errors of the hypervisor.
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
        // For a shut-off server libvirt adds missing ports to the definition.
        let Some(live) = &domain.live else { return Ok(()) };
        let mut ports = Topology::of(live).free_ports();
        let free = (0..num).take_while(|_| ports.take(true).is_some()).count();
        if free == num {
            return Ok(());
        }
        Err(Error::Conflict(format!(
            "{context}: it has {free} free hot-plug ports, and {num} are needed; detach something, or {}",
            hotplug::add_ports(domain, num)
        )))
    }

    /// Chooses parents and records the mediated devices to create on them, all or none.
    async fn reserve_mdevs(
        self: &Arc<Self>,
        parts: &MdevRequest,
        host: &Host,
        domain: &DomainView,
        scope: Scope,
    ) -> Result<(Vec<Step>, locks::Guard), Error> {
        let owner = owner_of(domain);
        for _ in 0..RACES {
            let steps = self.choose_parents(parts, host, domain).await?;
            // Enter before the row exists, so that reconciliation never mistakes it for a left-over.
            let in_flight = self.in_flight.enter(steps.iter().map(|step| step.id)).await?;
            let reservation = MdevReservation {
                hypervisor: host.row.id,
                server: ServerId(domain.info.uuid),
                request: RequestId(Uuid::new_v4()),
                holder: parts.holder,
                persistent: scope != Scope::Live,
                project: owner.as_deref(),
            };
            let wanted =
                steps.iter().map(|step| (step.id, Arc::clone(&step.parent), step.mdev_type.as_str()));
            if self.store.reserve_mdevs(reservation, &wanted.collect::<Vec<_>>()).await? {
                return Ok((steps, in_flight));
            }
        }
        Err(Error::Busy("other requests took the devices first; try again".into()))
    }

    /// Creates all mediated devices, drops the lock `making`, and then plugs them all.
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
                // The device may exist in spite of the error, so read the host's mediated devices.
                let leftover = match host.read_mdevs().await {
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
                    // The devices of this step and of those after it are created, but not plugged.
                    let after = Leftover::Assigned;
                    let failed = Failed { after, ..Failed::at(seen.len(), Leftover::Assigned, error) };
                    return Err(self.undo(host, steps, failed, None).await.error);
                }
            }
        }
        self.settle_all(&seen).await
    }

    /// Unplugs a mediated device from its domain and then removes it from the host. A persistent device that stays in
    /// the guest stays in the definition as well, unless its detach is forced.
    pub(super) async fn remove_mdev(
        &self,
        host: &Host,
        row: &Mdev,
        parent: PciAddress,
        limits: DetachLimits,
    ) -> ReleaseOutcome {
        match self.unplug_mdev(host, row, limits).await {
            ReleaseOutcome::Gone { .. } => self.destroy(host, row.id, parent).await,
            outcome @ (ReleaseOutcome::Refused { .. }
            | ReleaseOutcome::Pending { .. }
            | ReleaseOutcome::LeftOnHost { .. }
            | ReleaseOutcome::Failed { .. }) => outcome,
        }
    }

    /// Unplugs a mediated device from its domain, and leaves it on the host.
    pub(super) async fn unplug_mdev(&self, host: &Host, row: &Mdev, limits: DetachLimits) -> ReleaseOutcome {
        let (spec, keep) = (mdev_spec(row.id), row.persistent && !row.forced);
        let hypervisor = host.hypervisor.as_ref();
        hotplug::unplug(hypervisor, &self.templates, row.server.0, &spec, keep, limits).await.into()
    }

    /// Removes a mediated device that no domain has from the host.
    pub(super) async fn destroy(&self, host: &Host, id: AttachmentId, parent: PciAddress) -> ReleaseOutcome {
        if let Some(call) = host.overdue_call_at(parent) {
            return ReleaseOutcome::LeftOnHost { reason: call.to_string() };
        }
        match host.hypervisor.destroy_mdev(id.0).await {
            Ok(()) => ReleaseOutcome::Gone { reason: None },
            Err(error) if error.kind == ErrorKind::NoDevice => ReleaseOutcome::Gone { reason: None },
            Err(error) => ReleaseOutcome::Failed { error, as_before: false },
        }
    }
}

/// Returns the hostdev document of a mediated device.
pub(crate) fn mdev_spec(id: AttachmentId) -> MdevSpec {
    MdevSpec { source: id.0, alias: UserAlias(id.0), guest: None }
}
