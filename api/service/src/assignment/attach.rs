//! Attach: attaches all devices of a request, or none.

use std::sync::Arc;
use std::sync::atomic::AtomicU32;

use hotslot_driver::device::HostDevice;
use hotslot_driver::hotplug::{self, DetachLimits, PlugFailure, Presence};
use hotslot_driver::hypervisor::{self, DomainView, ErrorKind, Scope};
use hotslot_driver::local::{self, Condition};
use hotslot_driver::xml::hostdev::HostdevSpec;
use hotslot_model::assignment::{
    Assignment, AssignmentKey, AssignmentKind, Attachment, NewAttachment, Observation, Reservation,
};
use hotslot_model::device;
use hotslot_model::device::Device;
use hotslot_model::host_mode::HostChange;
use hotslot_model::id::{AttachmentId, DeviceId, RequestId, ServerId};
use hotslot_store::actor;
use uuid::Uuid;

use super::assignments::{Assignments, hostdev_spec};
use super::choosing::Choice;
use super::engine::{self, Failed, Failure, Leftover, ReleaseOutcome, Step as _};
use super::request::{AttachRequest, NetworkRequest, scope};
use super::select::{Chosen, Exclusions};
use crate::error::Error;
use crate::host::Host;
use crate::metrics;
use crate::quota::owner_of;
use crate::{locks, task, under_way};

/// How often a request chooses devices again after another request claimed one first.
pub(crate) const RACES: usize = 16;

/// The kind of the assignments of this file.
const KIND: AssignmentKind = AssignmentKind::Attachment;

/// One attachment that is to be plugged, with its device.
struct Step {
    attachment: Attachment,
    device: Arc<Device>,
    /// The function as it was read from the host.
    found: HostDevice,
}

impl engine::Step for Step {
    fn key(&self) -> AssignmentKey {
        AssignmentKey { kind: AssignmentKind::Attachment, id: self.attachment.id }
    }

    fn device(&self) -> &Device {
        &self.device
    }
}

impl Assignments {
    /// Attaches the devices of a request. Returns the attachments in the order in which they were requested.
    ///
    /// The work continues when the caller's future is dropped.
    ///
    /// # Errors
    /// The reason why nothing was attached. If attachments are left in transition, the error text lists them.
    pub async fn attach(
        self: &Arc<Self>,
        request: AttachRequest,
    ) -> Result<Vec<(Attachment, Arc<Device>)>, Error> {
        let service = Arc::clone(self);
        let work = metrics::attach(KIND, async move { service.attach_now(request).await });
        task::join(actor::spawn_as_current(work)).await
    }

    async fn attach_now(
        self: Arc<Self>,
        request: AttachRequest,
    ) -> Result<Vec<(Attachment, Arc<Device>)>, Error> {
        if let Some(made) = self.first_try(&request).await? {
            return Ok(made);
        }
        self.known_aliases(&request)?;
        // Attaches to one server go one after another, so that two requests never count on the same free port. When
        // its turn comes at once, as mostly, the server is read once.
        let early = self.turns.try_of(format!("server {}", request.server)).await?;
        let is_quiet = self.hosts.iter().all(|host| host.overdue_call(request.server).is_none());
        let (host, view) = self.hosts.find(request.server).await?;
        self.hosts.expect_open(&host, HostChange::Attach).await?;
        let _room = host.admit()?;
        let is_current = is_quiet && early.is_some() && host.is_synced();
        host.ready().await?;
        let wait = async {
            match early {
                Some(early) => Ok(early),
                None => self.turn_at(&host, request.server, HostChange::Attach).await,
            }
        };
        let _turn = metrics::step(KIND, "wait", wait).await?;
        expect_nothing_out(&host, request.server)?;
        let view = if is_current {
            view
        } else {
            host.server(request.server).await?.ok_or(Error::NoServer(request.server))?
        };
        // libvirt sends no event when another program changes a definition.
        host.set_held(request.server, Some(&view));
        request.expect_owner(&view)?;
        let scope = scope(&view, request.persistent)?;
        if let Some(in_use) = self.mac_in_use(&request).await? {
            return Err(Error::Conflict(in_use));
        }
        // A device that is added to no definition is not recorded as persistent.
        let request = AttachRequest { persistent: scope != Scope::Live, ..request };
        let mut choice = Exclusions::default();
        loop {
            let (takes_groups, chosen) = self.takes_groups(&host, &view, &request, &mut choice).await?;
            // The lock prevents that a group is rebound to its host drivers between its reservation and its unbinding.
            let groups = if takes_groups { Some(self.lock_groups(&host).await?) } else { None };
            let (steps, in_flight) = self.reserve(&host, &view, &request, &mut choice, chosen).await?;
            let _shown = under_way::shown_for(steps.iter().map(|step| step.attachment.id));
            let unbound = match self.drain_all(&host, scope, &steps).await {
                Ok(()) => {
                    let unbinding = self.take_groups(&host, scope, &steps);
                    metrics::step(KIND, "unbind-group", unbinding).await
                }
                Err(failure) => Err(failure),
            };
            drop(groups);
            let plugged = match unbound {
                Ok(()) => self.plug_all(&host, &view, scope, steps).await,
                Err(failure) => Err(failure),
            };
            drop(in_flight);
            host.queue_server_check(request.server);
            match plugged {
                Ok(answer) => return Ok(answer),
                // Something else uses the device, which only libvirt knew. Try another device.
                Err(Failure { device, in_use: true, error }) => choice.exclude(device, error),
                Err(failure) => return Err(failure.error),
            }
        }
    }

    /// Returns which open attachment has the requested MAC address, as an error text; `None` when none has it.
    ///
    /// # Errors
    /// Errors of the database.
    pub(super) async fn mac_in_use(&self, request: &AttachRequest) -> Result<Option<String>, Error> {
        let Some(mac) = request.network.as_ref().and_then(|network| network.mac) else { return Ok(None) };
        let open = self.store.attachments().await?;
        let has_it = open.iter().find(|row| row.network.as_ref().is_some_and(|network| network.mac == mac));
        Ok(has_it.map(|row| {
            format!(
                "mac_address {mac} is already used by attachment {} of server {}; choose another",
                row.id, row.server
            )
        }))
    }

    /// Claims all devices in `chosen`, or none. Without `chosen`, or when another request claimed one first, it chooses
    /// devices itself.
    ///
    /// # Errors
    /// [`Error::OverQuota`]; [`Error::Busy`] when other requests always came first; as [`select`](Self::select).
    async fn reserve(
        self: &Arc<Self>,
        host: &Host,
        view: &DomainView,
        request: &AttachRequest,
        choice: &mut Exclusions,
        mut chosen: Option<(Vec<Chosen>, Option<Choice>)>,
    ) -> Result<(Vec<Step>, locks::Guard), Error> {
        let owner = owner_of(view);
        for _ in 0..RACES {
            // Others choose other devices until these are claimed.
            let (chosen, _choice) = match chosen.take() {
                Some(chosen) => chosen,
                None => self.select(host, view, request, choice).await?,
            };
            let wanted: Vec<NewAttachment> = chosen
                .iter()
                .map(|one| new_attachment(host, request, one, goes_with_others(one, &chosen)))
                .collect();
            // Enter before the row exists, so that reconciliation never mistakes it for a left-over.
            let in_flight = self.in_flight.enter(wanted.iter().map(|new| new.id)).await?;
            let reservation = Reservation {
                hypervisor: host.row.id,
                server: request.server,
                request: RequestId(Uuid::new_v4()),
                persistent: request.persistent,
                key: request.key.as_ref(),
                holder: request.holder,
                project: owner.as_deref(),
            };
            let reserving = self.store.reserve(reservation, &wanted);
            if let Some(rows) = metrics::step(KIND, "reserve", reserving).await? {
                let step = |(attachment, Chosen { device, found, .. })| Step { attachment, device, found };
                return Ok((rows.into_iter().zip(chosen).map(step).collect(), in_flight));
            }
        }
        Err(Error::Busy("other requests took the devices first; try again".into()))
    }

    /// Runs the drain hooks of the devices that are about to be taken from their host drivers, before the first is. A
    /// device that is only added to a definition is taken by libvirt, at the start of the server.
    async fn drain_all(self: &Arc<Self>, host: &Host, scope: Scope, steps: &[Step]) -> Result<(), Failure> {
        if scope == Scope::Config {
            return Ok(());
        }
        for (index, step) in steps.iter().enumerate() {
            if let Err(error) = self.drain(host, &step.found, step.attachment.managed, KIND).await {
                let leftover = Leftover::Nothing;
                let failed = Failed { step: index, leftover, before: leftover, after: leftover, error };
                return Err(self.undo(host, steps, failed, None).await);
            }
        }
        Ok(())
    }

    /// Unbinds the devices that share an IOMMU group from their host drivers, unless they are only added to a
    /// definition.
    async fn take_groups(self: &Arc<Self>, host: &Host, scope: Scope, steps: &[Step]) -> Result<(), Failure> {
        if scope == Scope::Config {
            return Ok(());
        }
        let members = steps.iter().filter(|step| step.attachment.whole_group);
        let members: Vec<_> = members.map(|step| step.found.clone()).collect();
        let Err(error) = hotplug::free_group(host.hypervisor.as_ref(), &members).await else { return Ok(()) };
        // libvirt was not requested to plug any of them. Those with a call out stay in transition until it returns.
        let out = steps.iter().position(|step| host.overdue_call_at(step.device.facts.address).is_some());
        let (step, leftover) = (out.unwrap_or_default(), Leftover::Nothing);
        let failed = Failed { step, leftover, before: leftover, after: leftover, error };
        Err(self.undo(host, steps, failed, Some("unbinding the IOMMU group from its host drivers")).await)
    }

    /// Whether a request takes functions from their host drivers together: it asks for whole groups, or its devices
    /// share one. Devices that were chosen to find out are returned if they do not; otherwise they have to be chosen
    /// under the lock of the groups.
    async fn takes_groups(
        self: &Arc<Self>,
        host: &Host,
        view: &DomainView,
        request: &AttachRequest,
        choice: &mut Exclusions,
    ) -> Result<(bool, Option<(Vec<Chosen>, Option<Choice>)>), Error> {
        if request.whole_group || !may_take_groups(host, request) {
            return Ok((request.whole_group, None));
        }
        let (chosen, kept) = self.select(host, view, request, choice).await?;
        match chosen.iter().any(|one| goes_with_others(one, &chosen)) {
            true => Ok((true, None)),
            false => Ok((false, Some((chosen, kept)))),
        }
    }

    async fn plug_all(
        self: &Arc<Self>,
        host: &Arc<Host>,
        view: &DomainView,
        scope: Scope,
        steps: Vec<Step>,
    ) -> Result<Vec<(Attachment, Arc<Device>)>, Failure> {
        let mut present: Vec<Presence> = Vec::new();
        for step in &steps {
            // The host may need the device since it was chosen.
            if let Err(refusal) = self.check_still_available(host, step).await {
                let failed = Failed::at(present.len(), Leftover::Nothing, refusal);
                return Err(self.undo(host, &steps, failed, None).await);
            }
            if !step.attachment.plug_requested
                && let Err(error) = self.store.mark_plug_requested(step.attachment.id).await
            {
                let address = step.device.facts.address;
                let why = hypervisor::Error::new(ErrorKind::Refused, format!("attach {address}"), &error);
                let failed = Failed::at(present.len(), Leftover::Nothing, why);
                return Err(Failure::of(self.undo(host, &steps, failed, None).await.device, error));
            }
            let address = step.device.facts.address;
            if let Err(refusal) = self.set_vf_settings(host, &step.attachment, address).await {
                let failed = Failed::at(present.len(), Leftover::Nothing, refusal);
                return Err(self.undo(host, &steps, failed, None).await);
            }
            if let Err(refusal) = self.set_vgpu_type(host, &step.attachment, address).await {
                let failed = Failed::at(present.len(), Leftover::Nothing, refusal);
                return Err(self.undo(host, &steps, failed, None).await);
            }
            let spec = hostdev_spec(&step.attachment, &step.device);
            match self.plug(host, view, scope, &spec).await {
                Ok(presence) => present.push(presence),
                Err(PlugFailure { error, untouched }) => {
                    let leftover = if untouched { Leftover::Nothing } else { Leftover::Gone };
                    let failed = Failed::at(present.len(), leftover, error);
                    return Err(self.undo(host, &steps, failed, None).await);
                }
            }
        }
        let seen = steps.iter().zip(&present).map(|(step, presence)| (step.key(), plugged(presence)));
        let seen: Vec<_> = seen.collect();
        let settled = metrics::step(KIND, "settle", self.settle_all(&seen)).await;
        let first = steps.first().map_or(DeviceId(0), |step| step.device.id);
        let rows = settled.map_err(|error| Failure::of(first, error))?;
        let mut answer = Vec::new();
        for (row, step) in rows.into_iter().zip(steps) {
            tracing::info!(
                server.id = %step.attachment.server, attachment.id = %step.attachment.id,
                pci.address = %step.device.facts.address,
                "attached {} to server {}", step.device.facts.address, step.attachment.server
            );
            self.verify_soon(host, &row);
            if let Assignment::Attachment(attachment) = row {
                answer.push((attachment, step.device));
            }
        }
        Ok(answer)
    }

    /// Renders the document of a device, and plugs it.
    async fn plug(
        &self,
        host: &Host,
        view: &DomainView,
        scope: Scope,
        spec: &HostdevSpec,
    ) -> Result<Presence, PlugFailure> {
        let (hypervisor, limits) = (host.hypervisor.as_ref(), self.detach_limits());
        let rendering = async { hotplug::render(&self.templates, spec) };
        let xml = metrics::step(KIND, "render", rendering).await;
        let xml = xml.map_err(|error| PlugFailure { error, untouched: true })?;
        under_way::expect_end(Some(self.config.get().libvirt.attach_timeout.0));
        let (templates, domain) = (&self.templates, view.info.uuid);
        let plugging = hotplug::plug_rendered(hypervisor, templates, domain, (spec, &xml), scope, limits);
        let plugged = metrics::step(KIND, "plug", plugging).await;
        under_way::expect_end(None);
        plugged
    }

    /// Takes the device of an attachment out of its domain. A device that stays in the guest stays in the definition as
    /// well, unless its attachment is forced.
    pub(super) async fn unplug(
        &self,
        host: &Host,
        row: &Attachment,
        device: &Device,
        limits: DetachLimits,
    ) -> ReleaseOutcome {
        let (spec, keep) = (hostdev_spec(row, device), row.persistent && !row.forced);
        let hypervisor = host.hypervisor.as_ref();
        let current = under_way::current();
        // Nobody waits for a device that a task of hotslot itself takes out.
        let uncounted = AtomicU32::new(0);
        let count = current.as_ref().map_or(&uncounted, |current| &current.attempt);
        hotplug::unplug_counted(hypervisor, &self.templates, row.server.0, &spec, keep, limits, count)
            .await
            .into()
    }

    /// Checks that no guard holds a device that was chosen.
    async fn check_still_available(&self, host: &Host, step: &Step) -> Result<(), hypervisor::Error> {
        // Guards need the host's sysfs, so they cannot be evaluated for a remote host.
        if host.hypervisor.sysroot().is_none() {
            return Ok(());
        }
        let address = step.device.facts.address;
        let operation = || format!("attach {address}");
        let availability = self.catalog.availability(host).await;
        let availability = availability
            .map_err(|error| hypervisor::Error::new(ErrorKind::Refused, operation(), error.to_string()))?;
        match availability.guard(address) {
            None => Ok(()),
            Some(guard) => Err(hypervisor::Error::new(
                ErrorKind::NotAssignable,
                operation(),
                format!("the host needs {address} now: {guard}; take another device"),
            )),
        }
    }
}

/// The observation that a device was plugged.
pub(super) fn plugged(presence: &Presence) -> Observation {
    Observation::Present { inner: presence.inner_address, only_in_definition: false, same_run: true }
}

/// Checks that no overdue call may still change a server. Until such a call returns, the devices of the server are
/// unknown.
///
/// # Errors
/// [`Error::Conflict`] with the call.
pub(crate) fn expect_nothing_out(host: &Host, server: ServerId) -> Result<(), Error> {
    match host.overdue_call(server) {
        None => Ok(()),
        Some(call) => Err(Error::Conflict(format!(
            "nothing was attached to server {server}: {call}; attach again when that call has returned"
        ))),
    }
}

/// Whether a request may take functions of a host from their drivers together: it asks for whole groups, or for several
/// devices where some share a group.
fn may_take_groups(host: &Host, request: &AttachRequest) -> bool {
    let several = || request.aliases.iter().map(|part| part.count).sum::<usize>() > 1;
    request.whole_group || several() && host.functions().groups().are_shared
}

/// Whether a device is one of several of its IOMMU group in a request, of which some are bound to host drivers.
fn goes_with_others(one: &Chosen, all: &[Chosen]) -> bool {
    let Some(group) = &one.found.iommu_group else { return false };
    let of_group = || all.iter().filter(|other| group.members.contains(&other.found.address));
    of_group().count() > 1 && of_group().any(|other| other.found.blocks_its_group())
}

fn new_attachment(
    host: &Host,
    request: &AttachRequest,
    chosen: &Chosen,
    goes_with_others: bool,
) -> NewAttachment {
    let Chosen { alias, device, found, vgpu } = chosen;
    let managed = device::is_managed(&device.facts);
    let mut siblings = found.iommu_group.as_ref().map(|group| group.members.clone()).unwrap_or_default();
    siblings.retain(|member| *member != found.address);
    NewAttachment {
        id: AttachmentId(Uuid::new_v4()),
        device: Arc::clone(device),
        alias: alias.clone(),
        managed,
        network: request.network.as_ref().map(NetworkRequest::settled),
        vgpu: vgpu.clone(),
        before: Condition {
            class: found.class,
            ..local::condition(
                host.hypervisor.sysroot(),
                found.address,
                device.facts.parent_addr.unwrap_or(found.address),
            )
        },
        whole_group: request.whole_group || goes_with_others,
        to_rebind: (managed || request.whole_group) && found.blocks_its_group(),
        siblings,
    }
}
