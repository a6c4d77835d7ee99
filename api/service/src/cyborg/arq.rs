//! Accelerator requests: created from a device profile, bound to a server and a deployable, unbound, deleted.
//!
//! The intended state of a request is recorded before its device is touched; its actual state follows from its
//! attachment or mediated device ([`seen`](hotslot_model::cyborg::seen)). So a request that a crash interrupted is
//! settled with its assignment. A request without one is settled when it is read next and no task works on it
//! ([`Cyborg::arq`]).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use hotslot_driver::hypervisor::ErrorKind;
use hotslot_driver::mdev::{MdevType, VFIO_PCI};
use hotslot_driver::pci::PciAddress;
use hotslot_model::assignment::{Assignment, Holder, State};
use hotslot_model::cyborg::{Arq, ArqState, ArqTarget, ArqView, Group, MAX_UNITS};
use hotslot_model::device::Device;
use hotslot_model::host_mode::HostChange;
use hotslot_model::id::{ArqId, ServerId};
use hotslot_model::identity::Caller;
use hotslot_model::rules::{Alias, AliasRequest, NumaPolicy};
use hotslot_store::{ArqFilter, actor};

use super::Card;
use super::cyborg::Cyborg;
use crate::assignment::{AttachRequest, DetachRequest, MdevRequest};
use crate::error::Error;
use crate::{locks, task};

/// The properties for which Cyborg's agents program an FPGA before it is attached, which hotslot does not do.
const PROGRAMMING: [&str; 2] = ["bitstream_id", "function_id"];

/// The reason of a bind that was interrupted before a device was attached.
const CUT_OFF: &str =
    "the service ended before a device was attached; unbind the request, then bind it again";

/// The reason of an interrupted deletion whose guest still has the device.
const KEPT: &str = "the request was to be deleted, but its guest still has the device; delete it again";

/// The candidates for binding a request.
enum Handles {
    /// One of these functions, which are VFs and get this vGPU type if there is one.
    Whole(BTreeSet<PciAddress>, Option<String>),
    /// A mediated device of one of these parents, each with the possible types.
    Part(BTreeMap<PciAddress, BTreeSet<String>>),
}

/// The permissions of a caller on accelerator requests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AccessScope {
    /// The project whose requests the caller may see; `None` for those of all projects.
    pub project: Option<String>,
    /// Whether the caller may bind and unbind, and delete a request that holds a device: a service or the
    /// administrator.
    pub service: bool,
}

impl AccessScope {
    /// Returns the permissions of a caller. A caller who is not an administrator and has no project may see nothing.
    pub fn of(caller: &Caller) -> Self {
        let own = caller.project.clone().unwrap_or_default();
        Self { project: (!caller.is_admin()).then_some(own), service: caller.is_service_or_admin() }
    }

    /// Checks that the caller may see a request.
    ///
    /// # Errors
    /// [`Error::NotFound`] when it belongs to another project.
    pub fn sees(&self, view: &ArqView) -> Result<(), Error> {
        if self.project.is_none() || self.project == view.row.project {
            return Ok(());
        }
        Err(no_arq(view.row.id))
    }

    /// Checks that the caller may delete a request.
    ///
    /// # Errors
    /// [`Error::NotFound`] when it belongs to another project; [`Error::NeedsService`] when it holds a device or is
    /// being bound.
    pub fn may_delete(&self, view: &ArqView) -> Result<(), Error> {
        self.sees(view)?;
        if self.service || (view.held.is_none() && view.state() != ArqState::BindStarted) {
            return Ok(());
        }
        Err(Error::NeedsService)
    }
}

/// How a request is released.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Release {
    /// The request is unbound and may be bound again.
    Unbind,
    /// The request is deleted.
    Delete,
    /// The request is deleted if it is bound to this server. While it is being bound, this waits for the end of the
    /// bind.
    DeleteOf(ServerId),
}

/// A request to bind an accelerator request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bind {
    /// The accelerator request.
    pub id: ArqId,
    /// The host, deployable and server.
    pub target: ArqTarget,
    /// The project that owns the accelerator request from now on; `None` leaves it unchanged.
    pub project: Option<String>,
}

fn no_arq(id: ArqId) -> Error {
    hotslot_store::Error::no_holder(Holder::AcceleratorRequest(id)).into()
}

fn may_be_bound(view: &ArqView) -> Result<(), Error> {
    match view.state() {
        ArqState::Initial | ArqState::Unbound => Ok(()),
        state @ (ArqState::BindStarted
        | ArqState::Bound
        | ArqState::BindFailed
        | ArqState::UnbindFailed
        | ArqState::Deleting) => Err(Error::Invalid(format!(
            "accelerator request {} is {state}; it can be bound when it is Initial or Unbound",
            view.row.id
        ))),
    }
}

impl Cyborg {
    /// Creates the accelerator requests of a device profile, one for each requested device.
    ///
    /// # Errors
    /// [`Error::NotFound`] when there is no such profile; [`Error::Invalid`] when it requests no device; errors of the
    /// database.
    pub async fn create_arqs(&self, profile: &str, project: Option<&str>) -> Result<Vec<ArqView>, Error> {
        let missing = || Error::NotFound(format!("device profile {profile}"));
        let found = self.store.device_profile_called(profile).await?.ok_or_else(missing)?;
        let mut units = Vec::new();
        for (number, group) in found.groups.iter().enumerate() {
            for (class, amount) in group.resources() {
                units.extend(std::iter::repeat_n((number, class), amount.min(MAX_UNITS) as usize));
            }
        }
        if units.is_empty() {
            return Err(Error::Invalid(format!(
                "device profile {profile} requests no device; use one whose groups have resources:… of 1 or more"
            )));
        }
        let made = self.store.create_arqs(found.id, &units, project).await?;
        let mut views = Vec::new();
        for id in made {
            views.push(self.arq(id).await?);
        }
        Ok(views)
    }

    /// Returns one accelerator request.
    ///
    /// # Errors
    /// [`Error::NotFound`]; errors of the database.
    pub async fn arq(&self, id: ArqId) -> Result<ArqView, Error> {
        let view = self.arq_now(id).await?.ok_or_else(|| no_arq(id))?;
        self.shown(view).await?.ok_or_else(|| no_arq(id))
    }

    async fn arq_now(&self, id: ArqId) -> Result<Option<ArqView>, Error> {
        let Some(row) = self.store.arq(id).await? else { return Ok(None) };
        let holder = Holder::AcceleratorRequest(id);
        let by = self.store.held_by(holder).await?.into_iter().next();
        self.with_device(row, by).await.map(Some)
    }

    pub(super) async fn with_device(&self, row: Arq, by: Option<Assignment>) -> Result<ArqView, Error> {
        let held = match by {
            None => None,
            Some(by) => {
                let device = self.accelerators.device_held(&by).await?;
                Some((by, device))
            }
        };
        Ok(ArqView { row, held })
    }

    /// The request as it is shown: one that was left in the middle, or whose device is gone, is shown as it will be
    /// settled. `None` when it will be deleted.
    pub(super) async fn shown(&self, view: ArqView) -> Result<Option<ArqView>, Error> {
        let id = view.row.id;
        let is_busy = async || Ok::<_, Error>(self.binding.of([id]).await?.contains(&id));
        if !is_left(&view) || is_busy().await? {
            return Ok(Some(view));
        }
        // Somebody may have finished the work on it, or begun, since it was read.
        let Some(view) = self.arq_now(id).await? else { return Ok(None) };
        if !is_left(&view) || is_busy().await? {
            return Ok(Some(view));
        }
        Ok(settled(view))
    }

    pub(super) async fn settle_arq(&self, id: ArqId) -> Result<(), Error> {
        let Some(_guard) = self.binding.try_enter(id).await? else { return Ok(()) };
        // Somebody may have finished the work on it since it was read.
        let Some(view) = self.arq_now(id).await?.filter(is_left) else { return Ok(()) };
        match settled(view) {
            None => self.store.delete_arq(id).await?,
            // Its server may come back with the device (saved, moved); then the request has it again.
            Some(ArqView { row, .. }) if row.state == ArqState::Unbound => {}
            Some(ArqView { row, .. }) => {
                self.store.put_arq_state(id, row.state, row.reason.as_deref()).await?;
            }
        }
        Ok(())
    }

    /// Locks a request if `may` permits the intended work, and returns it as it is then. While another task has the
    /// lock, this waits as long as `waits` permits.
    ///
    /// # Errors
    /// The error of `may`; [`Error::Conflict`] when `waits` does not permit to wait; errors of the database.
    async fn work_on(
        &self,
        id: ArqId,
        may: impl Fn(&ArqView) -> Result<(), Error>,
        waits: impl Fn(&ArqView) -> bool,
    ) -> Result<(locks::Guard<ArqId>, ArqView), Error> {
        may(&self.arq(id).await?)?;
        loop {
            if let Some(guard) = self.binding.try_enter(id).await? {
                // The project or the state of the request may have changed.
                let view = self.arq_now(id).await?.ok_or_else(|| no_arq(id))?;
                // Nobody else works on it now, so an interrupted request counts as it will be settled.
                let view = if is_left(&view) { settled(view).ok_or_else(|| no_arq(id))? } else { view };
                may(&view)?;
                return Ok((guard, view));
            }
            let view = self.arq(id).await?;
            may(&view)?;
            if !waits(&view) {
                return Err(Error::Busy(format!(
                    "accelerator request {id} is being bound; try again when it is bound"
                )));
            }
            self.binding.idle(id).await?;
        }
    }

    /// Begins to bind accelerator requests, all or none. Their states report the outcome.
    ///
    /// # Errors
    /// [`Error::NeedsService`]; [`Error::NotFound`]; [`Error::NoServer`]; [`Error::Invalid`] when the state of a
    /// request, or its target, does not permit the bind; errors of the hypervisor and of the database. Then no bind has
    /// begun.
    pub async fn bind_arqs(self: &Arc<Self>, mut binds: Vec<Bind>, reach: &AccessScope) -> Result<(), Error> {
        if !reach.service {
            return Err(Error::NeedsService);
        }
        // Lock in id order to avoid deadlock.
        binds.sort_by_key(|bind| bind.id);
        let mut work = Vec::new();
        for bind in &binds {
            let may = |view: &ArqView| reach.sees(view).and_then(|()| may_be_bound(view));
            let (guard, view) = self.work_on(bind.id, may, |_| true).await?;
            let handles = self.bindable(&view.row, &bind.target).await?;
            work.push((bind.clone(), handles, guard));
        }
        let rows: Vec<_> = binds.into_iter().map(|bind| (bind.id, bind.target, bind.project)).collect();
        let service = Arc::clone(self);
        // A recorded bind is done even when the caller's future is dropped.
        let begun = actor::spawn_as_current(async move {
            service.store.begin_bind(&rows).await?;
            actor::spawn_as_current(async move {
                for (bind, handles, guard) in work {
                    service.bind_now(&bind, handles, guard).await;
                }
            });
            Ok(())
        });
        task::join(begun).await
    }

    /// Returns the devices of the target's deployable that match a request, free or not.
    ///
    /// # Errors
    /// [`Error::Invalid`] when there is none, or the target is wrong; [`Error::NotFound`] when the device profile is
    /// gone; [`Error::NoServer`]; errors of the hypervisor and of the database.
    async fn bindable(&self, row: &Arq, target: &ArqTarget) -> Result<Handles, Error> {
        let ArqTarget { hostname, rp, server } = target;
        let cards = self.cards().await?;
        let card = cards.iter().find(|card| card.rp_uuid() == *rp).ok_or_else(|| {
            Error::Invalid(format!("no deployable has the device_rp_uuid {rp}; GET deployables lists them"))
        })?;
        if card.host.name != *hostname {
            return Err(Error::Invalid(format!(
                "deployable {} is on host {}, not on {hostname}",
                card.name(),
                card.host.name
            )));
        }
        let (host, _) = self.hosts.find(*server).await?;
        if !Arc::ptr_eq(&host, &card.host) {
            return Err(Error::Invalid(format!(
                "server {server} is on host {}, and deployable {} is not",
                host.name,
                card.name()
            )));
        }
        self.hosts.expect_open(&host, HostChange::Attach).await?;
        let profile = self.store.device_profile_called(&row.profile).await?;
        let group = profile.as_ref().and_then(|profile| profile.groups.get(row.group));
        let group = group.ok_or_else(|| Error::NotFound(format!("device profile {}", row.profile)))?;
        if let Some(name) = group.properties().find(|name| PROGRAMMING.contains(name)) {
            return Err(Error::Invalid(format!(
                "device profile {} requires its device to be programmed (accel:{name}), which hotslot does not do; \
                 program it on the host, and request it by a trait",
                row.profile
            )));
        }
        let handles = if card.is_for_parts(&row.class) {
            match vgpus(card, group).await? {
                Some(handles) => handles,
                None => parts(card, group).await?.map(Handles::Part),
            }
        } else {
            card.matching(group, &row.class).map(|candidates| Handles::Whole(candidates, None))
        };
        handles.map_err(|reason| {
            Error::Invalid(format!(
                "deployable {} does not match device profile {}: {reason}",
                card.name(),
                row.profile
            ))
        })
    }

    async fn bind_now(self: &Arc<Self>, bind: &Bind, handles: Handles, guard: locks::Guard<ArqId>) {
        let (id, server) = (bind.id, bind.target.server);
        let name = format!("accelerator request {id}");
        let (holder, numa_policy) = (Holder::AcceleratorRequest(id), NumaPolicy::Preferred);
        let attached = match handles {
            Handles::Part(parents) => {
                self.assignments
                    .attach_parts(server, MdevRequest { holder, name, parents, num: 1, numa_policy })
                    .await
            }
            Handles::Whole(candidates, vgpu_type) => {
                let request = AttachRequest {
                    server,
                    own: vec![Alias::among(name.clone(), &candidates, numa_policy)],
                    aliases: vec![AliasRequest { name, count: 1 }],
                    persistent: true,
                    whole_group: false,
                    numa_policy: None,
                    network: None,
                    vgpu_type,
                    key: None,
                    owner: None,
                    holder: Some(holder),
                };
                self.assignments.attach(request).await.map(drop)
            }
        };
        let (state, reason) = match attached {
            Ok(()) => (ArqState::Bound, None),
            Err(error) => {
                tracing::warn!(accelerator_request.id = %id, server.id = %server, %error, "bind failed");
                (ArqState::BindFailed, Some(error.to_string()))
            }
        };
        if let Err(error) = self.store.put_arq_state(id, state, reason.as_deref()).await {
            // The state of the request follows from its attachment, or from having none, as well.
            tracing::error!(accelerator_request.id = %id, %error, "cannot record the outcome of a bind");
        }
        drop(guard);
    }

    /// Unbinds an accelerator request. Its device is available when this returns `Ok`.
    ///
    /// The work continues when the caller's future is dropped.
    ///
    /// # Errors
    /// [`Error::NotFound`]; [`Error::NeedsService`]; [`Error::Conflict`] while it is being bound, or when its guest
    /// keeps the device; errors of the hypervisor and of the database.
    pub async fn unbind_arq(self: &Arc<Self>, id: ArqId, reach: &AccessScope) -> Result<(), Error> {
        self.release_arq(id, Release::Unbind, reach).await
    }

    /// Deletes an accelerator request after its device was detached.
    ///
    /// The work continues when the caller's future is dropped.
    ///
    /// # Errors
    /// As [`unbind_arq`](Self::unbind_arq).
    pub async fn delete_arq(self: &Arc<Self>, id: ArqId, reach: &AccessScope) -> Result<(), Error> {
        self.release_arq(id, Release::Delete, reach).await
    }

    /// Deletes the accelerator requests of a server that the caller may see. When one cannot be deleted, the others are
    /// deleted nevertheless. Those that are being bound are deleted after that.
    ///
    /// # Errors
    /// The first error of these: [`Error::NeedsService`]; [`Error::Conflict`] when a guest keeps a device; errors of
    /// the hypervisor and of the database.
    pub async fn delete_arqs_of(
        self: &Arc<Self>,
        server: ServerId,
        reach: &AccessScope,
    ) -> Result<(), Error> {
        if !reach.service {
            return Err(Error::NeedsService);
        }
        let mut outcome = Ok(());
        let filter = ArqFilter { server: Some(server), ..ArqFilter::default() };
        for view in self.arqs(filter, None, usize::MAX, |view| view.is_of(server)).await? {
            match self.release_arq(view.row.id, Release::DeleteOf(server), reach).await {
                // Another request has deleted it, or bound it to another server.
                Err(Error::NotFound(_)) => {}
                done => outcome = outcome.and(done),
            }
        }
        outcome
    }

    async fn release_arq(
        self: &Arc<Self>,
        id: ArqId,
        release: Release,
        reach: &AccessScope,
    ) -> Result<(), Error> {
        let may = |view: &ArqView| match release {
            Release::Unbind if !reach.service => Err(Error::NeedsService),
            Release::Unbind => reach.sees(view),
            Release::DeleteOf(server) if !view.is_of(server) => Err(no_arq(id)),
            Release::Delete | Release::DeleteOf(_) => reach.may_delete(view),
        };
        // Wait for an unbind that another request began, because its outcome is the same.
        let waits =
            |view: &ArqView| matches!(release, Release::DeleteOf(_)) || view.state() != ArqState::BindStarted;
        let (guard, _) = self.work_on(id, may, waits).await?;
        let service = Arc::clone(self);
        let work = actor::spawn_as_current(async move {
            let released = service.release_now(id, release != Release::Unbind).await;
            drop(guard);
            released
        });
        task::join(work).await
    }

    async fn release_now(self: &Arc<Self>, id: ArqId, delete: bool) -> Result<(), Error> {
        let Some(view) = self.arq_now(id).await? else { return Ok(()) };
        if let Some((by, _)) = &view.held {
            // A refusal leaves the request as it is.
            if let Some(host) = self.hosts.host(by.hypervisor()) {
                self.hosts.expect_open(host, HostChange::Other).await?;
            }
            if delete {
                self.store.put_arq_state(id, ArqState::Deleting, None).await?;
            }
            if let Err(error) = self.release_device(id, by).await {
                if matches!(error, Error::Restricted { .. }) {
                    // The host was frozen meanwhile, and nothing has begun.
                    self.store.put_arq_state(id, view.row.state, view.row.reason.as_deref()).await?;
                    return Err(error);
                }
                let now = self.arq_now(id).await?.and_then(|now| now.held);
                let waits = now.is_none_or(|(by, _)| by.state() == State::Detaching);
                // A guest that was asked may still release the device; then the deletion is completed.
                if !(delete && waits) {
                    let reason = error.to_string();
                    self.store.put_arq_state(id, ArqState::UnbindFailed, Some(&reason)).await?;
                }
                return Err(error);
            }
        }
        let done = if delete { self.store.delete_arq(id).await } else { self.store.unbind_arq(id).await };
        Ok(done?)
    }

    async fn release_device(self: &Arc<Self>, id: ArqId, by: &Assignment) -> Result<(), Error> {
        let holder = Some(Holder::AcceleratorRequest(id));
        let request = DetachRequest { holder, ..DetachRequest::default() };
        match self.accelerators.begin_release(by, request).await? {
            None => Ok(()),
            Some(work) => task::join(work).await,
        }
    }
}

/// Whether a request is in a state that does not last while nobody works on it: it was left in the middle, or its device
/// is gone.
pub(super) fn is_left(view: &ArqView) -> bool {
    let is_attached = |(by, _): &(Assignment, _)| by.state() == State::Attached;
    match view.row.state {
        ArqState::Initial | ArqState::Unbound => false,
        ArqState::Bound | ArqState::UnbindFailed => view.held.is_none(),
        ArqState::BindStarted | ArqState::Deleting => view.held.as_ref().is_none_or(is_attached),
        ArqState::BindFailed => view.held.as_ref().is_some_and(is_attached),
    }
}

/// What becomes of a request that [`is_left`]; `None` when it is deleted.
fn settled(mut view: ArqView) -> Option<ArqView> {
    let (state, reason) = match (view.row.state, &view.held) {
        (ArqState::Deleting, None) => return None,
        (ArqState::Deleting, Some(_)) => (ArqState::UnbindFailed, Some(KEPT)),
        (ArqState::BindStarted, None) => (ArqState::BindFailed, Some(CUT_OFF)),
        (_, Some(_)) => (ArqState::Bound, None),
        // Its guest has released the device at last, or its server or device is gone.
        (_, None) => {
            view.row.target = None;
            (ArqState::Unbound, None)
        }
    };
    (view.row.state, view.row.reason) = (state, reason.map(str::to_owned));
    Some(view)
}

/// Returns the VFs of a card that can be given a vGPU type that matches a group, with the type; the inner error is why there
/// is none. `None` when the VFs of the card are no virtual GPUs, so that mediated devices are to be looked for.
async fn vgpus(card: &Card, group: &Group) -> Result<Option<Result<Handles, String>>, Error> {
    let vfs = match card.host.hypervisor.vgpu_vfs(None).await {
        Err(error) if error.kind == ErrorKind::Unsupported => return Ok(None),
        vfs => vfs.map_err(card.host.error("read the vGPU types of VFs"))?,
    };
    let vf_of = |handle: &Arc<Device>| vfs.iter().find(|vf| vf.address == handle.facts.address);
    if card.handles.iter().all(|handle| vf_of(handle).is_none()) {
        return Ok(None);
    }
    let (mut found, mut refusal) = (BTreeMap::<_, BTreeSet<_>>::new(), None);
    for (handle, vf) in card.handles.iter().filter_map(|handle| Some((handle, vf_of(handle)?))) {
        for of in vf.creatable.iter().filter(|_| vf.current.is_none()) {
            // Its traits are those of a mediated device of that type.
            let (id, name) = (of.id.clone(), Some(of.name.clone()));
            let like = MdevType { id, name, device_api: VFIO_PCI.to_owned(), available: 1 };
            match card.mdev_mismatch(handle, &like, group) {
                None => drop(found.entry(of.id.clone()).or_default().insert(vf.address)),
                Some(reason) => drop(refusal.get_or_insert(format!("{of} of {}: {reason}", vf.address))),
            }
        }
    }
    let none = || "nothing is left of the card for another vGPU".to_owned();
    let first = found.into_iter().next().map(|(id, vfs)| Handles::Whole(vfs, Some(id)));
    Ok(Some(first.ok_or_else(|| refusal.unwrap_or_else(none))))
}

/// Returns the parents on a card whose mediated devices match a group, each with the ids of the matching types. The
/// inner error is the reason why the first type does not match, when none does.
async fn parts(
    card: &Card,
    group: &Group,
) -> Result<Result<BTreeMap<PciAddress, BTreeSet<String>>, String>, Error> {
    let (mut found, mut refusal) = (BTreeMap::<_, BTreeSet<_>>::new(), None);
    for maker in card.parents() {
        let address = maker.facts.address;
        let types = match card.host.hypervisor.mdev_types(address).await {
            Err(error) if error.kind == ErrorKind::NoDevice => continue,
            types => types.map_err(card.host.error(format!("read the types of {address}")))?,
        };
        for of in types {
            match card.mdev_mismatch(maker, &of, group) {
                None => drop(found.entry(address).or_default().insert(of.id)),
                Some(reason) => drop(refusal.get_or_insert(format!("{} of {address}: {reason}", of.id))),
            }
        }
    }
    if !found.is_empty() {
        return Ok(Ok(found));
    }
    let none = || "its driver has no types of mediated devices; bind the vGPU driver on its host".into();
    Ok(Err(refusal.unwrap_or_else(none)))
}
