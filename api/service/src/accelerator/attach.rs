//! Attach and detach of accelerators: to a server as attachments or mediated devices, to a host as bindings.

use std::collections::BTreeSet;
use std::sync::Arc;

use hotslot_driver::hypervisor::ErrorKind;
use hotslot_driver::pci::PciAddress;
use hotslot_model::accelerator::{MAX_NUM, Status, Target, View, is_accelerator};
use hotslot_model::assignment::{Assignment, Holder};
use hotslot_model::device::{DevType, Device, DeviceStatus, Owner};
use hotslot_model::id::{AcceleratorId, AttachmentId, DeviceId, ServerId};
use hotslot_model::rules::{Alias, AliasRequest, NumaPolicy};
use hotslot_store::actor;

use super::accelerators::Accelerators;
use super::records::expect_generation;
use crate::assignment::{AttachRequest, DetachRequest, DryRun, HostUseRequest, MdevRequest, Work};
use crate::error::Error;
use crate::host::Host;
use crate::task;

/// Returns whether a host is reachable and its records agree with it.
fn answers(host: &Host) -> bool {
    host.hypervisor.connection().is_ok() && host.is_synced()
}

/// Checks that an accelerator holds nothing, and that its spec asks for a number of devices that a server can have.
///
/// # Errors
/// [`Error::Conflict`] and [`Error::Busy`] with the reason.
fn expect_available(view: &View) -> Result<(), Error> {
    let id = view.row.id;
    let (status, reason) = view.status();
    let refusal = match status {
        Status::Available => None,
        Status::Attaching => {
            Some("is being attached already; GET it until it is attached or available".to_owned())
        }
        Status::Attached => Some("is attached already; detach it first".to_owned()),
        Status::Detaching => Some("is being detached; attach it when it is available again".to_owned()),
        Status::Error => Some(format!("cannot be attached: {}", reason.unwrap_or_default())),
    };
    if let Some(refusal) = refusal {
        return Err(Error::Conflict(format!("accelerator {id} {refusal}")));
    }
    let num = view.spec().num;
    if num == 0 || num > MAX_NUM {
        return Err(Error::Busy(format!(
            "the spec of accelerator {id} has num {num}; PUT a spec with a num of 1 to {MAX_NUM}"
        )));
    }
    Ok(())
}

impl Accelerators {
    /// Attaches an accelerator, all its devices or none. With `generations`, its spec must be of one of these
    /// generations. With `any_device`, a spec that does not say which devices it takes may be given any.
    ///
    /// The work continues when the caller's future is dropped.
    ///
    /// # Errors
    /// [`Error::NoAccelerator`]; [`Error::NoServer`]; [`Error::Conflict`] when the accelerator is not available, too
    /// few devices are free, or its generation is another; [`Error::Invalid`] when it has an `mdev_type` and the target
    /// is a host; errors of the hypervisor and of the database.
    pub async fn attach_accelerator(
        self: &Arc<Self>,
        id: AcceleratorId,
        target: Target,
        generations: Option<&[i64]>,
        any_device: bool,
    ) -> Result<View, Error> {
        let view = self.on_record(id).await?;
        expect_generation(&view, generations)?;
        expect_available(&view)?;
        match (target, view.spec().mdev_type) {
            (Target::Server(server), None) => self.into_server(&view, server, any_device).await?,
            // A VF that is a virtual GPU is a whole function for libvirt.
            (Target::Server(server), Some(_)) if self.is_of_vgpus(&view, server).await? => {
                self.into_server(&view, server, any_device).await?;
            }
            (Target::Server(server), Some(mdev_type)) => {
                self.parts_into_server(&view, &mdev_type, server).await?
            }
            (Target::Host { .. }, Some(mdev_type)) => {
                return Err(Error::Invalid(format!(
                    "accelerator {id} is a mediated device (of the type {mdev_type}), which only a server can have; \
                     name a server, {{\"instance_uuid\": \"<its id>\"}}, or PUT a spec without a type"
                )));
            }
            (Target::Host { name, driver }, None) => {
                let host = match &name {
                    Some(name) => Arc::clone(self.hosts.host_called(name).await?),
                    None => self.own_host(&view, any_device).await?,
                };
                self.on_that_host(&view, &host, any_device)?;
                let request = HostUseRequest {
                    holder: Holder::Accelerator(view.row.id),
                    candidates: self.candidates(&view, &host, any_device).map_err(Error::Conflict)?,
                    num: view.spec().count(),
                    driver,
                };
                let service = Arc::clone(self);
                task::join(actor::spawn_as_current(async move {
                    service.assignments.bind(&host, &request).await
                }))
                .await?;
            }
        }
        self.accelerator(id).await
    }

    /// Reports what an attach of an accelerator to a server would do. The arguments are those of
    /// [`attach_accelerator`](Self::attach_accelerator).
    ///
    /// # Errors
    /// As those of an attach, except that a failed check is part of the result; [`Error::Invalid`] for an accelerator of
    /// mediated devices.
    pub async fn dry_run(
        &self,
        id: AcceleratorId,
        server: ServerId,
        generations: Option<&[i64]>,
        any_device: bool,
    ) -> Result<DryRun, Error> {
        let view = self.accelerator(id).await?;
        expect_generation(&view, generations)?;
        expect_available(&view)?;
        if let Some(mdev_type) = view.spec().mdev_type
            && !self.is_of_vgpus(&view, server).await?
        {
            return Err(Error::Invalid(format!(
                "dry_run: what an attach of mediated devices (of the type {mdev_type}) would do is not known before; attach \
                 the accelerator without dry_run, which takes all its devices or none"
            )));
        }
        self.assignments.dry_run(&self.request(&view, server, any_device).await?).await
    }

    /// Whether the devices of an accelerator on the host of a server are VFs of which their driver makes virtual GPUs,
    /// rather than parents of mediated devices.
    async fn is_of_vgpus(&self, view: &View, server: ServerId) -> Result<bool, Error> {
        let (host, _) = self.hosts.find(server).await?;
        self.on_that_host(view, &host, false)?;
        host.ready().await?;
        let candidates = self.candidates(view, &host, false).map_err(Error::Conflict)?;
        match host.hypervisor.vgpu_vfs(None).await {
            Err(error) if error.kind == ErrorKind::Unsupported => Ok(false),
            vfs => {
                let vfs = vfs.map_err(host.error("read the vGPU types of VFs"))?;
                Ok(vfs.iter().any(|vf| candidates.contains(&vf.address)))
            }
        }
    }

    async fn into_server(
        self: &Arc<Self>,
        view: &View,
        server: ServerId,
        any_device: bool,
    ) -> Result<(), Error> {
        let request = self.request(view, server, any_device).await?;
        match self.assignments.attach(request).await {
            Ok(_) => Ok(()),
            Err(short @ Error::TooFewFree { .. }) => Err(Error::Conflict(short.to_string())),
            Err(error) => Err(error),
        }
    }

    /// Returns the request for the devices of an accelerator that is no mediated device.
    async fn request(&self, view: &View, server: ServerId, any_device: bool) -> Result<AttachRequest, Error> {
        let (host, _) = self.hosts.find(server).await?;
        self.on_that_host(view, &host, any_device)?;
        host.ready().await?;
        let spec = view.spec();
        let candidates = self.candidates(view, &host, any_device).map_err(Error::Conflict)?;
        let name = format!("accelerator {}", view.row.name);
        let numa_policy = spec.numa_policy.unwrap_or(NumaPolicy::Preferred);
        let alias = Alias::among(name.clone(), &candidates, numa_policy);
        Ok(AttachRequest {
            server,
            aliases: vec![AliasRequest { name, count: spec.count() }],
            own: vec![alias],
            persistent: true,
            whole_group: false,
            numa_policy: None,
            network: None,
            vgpu_type: spec.mdev_type,
            key: None,
            owner: None,
            holder: Some(Holder::Accelerator(view.row.id)),
        })
    }

    async fn parts_into_server(
        self: &Arc<Self>,
        view: &View,
        mdev_type: &str,
        server: ServerId,
    ) -> Result<(), Error> {
        let (host, _) = self.hosts.find(server).await?;
        self.on_that_host(view, &host, false)?;
        host.ready().await?;
        let (spec, candidates) = (view.spec(), self.candidates(view, &host, false).map_err(Error::Conflict)?);
        let parts = MdevRequest {
            holder: Holder::Accelerator(view.row.id),
            name: format!("accelerator {}", view.row.id),
            parents: candidates.into_iter().map(|address| (address, [mdev_type.to_owned()].into())).collect(),
            num: spec.count(),
            numa_policy: spec.numa_policy.unwrap_or(NumaPolicy::Preferred),
        };
        self.assignments.attach_parts(server, parts).await
    }

    /// Returns the host of an accelerator: the one that has its pinned device, else the one with the most free
    /// candidates. Hosts that are unreachable or admit no attach come last.
    ///
    /// # Errors
    /// [`Error::Conflict`] when there is none; errors of the database.
    async fn own_host(&self, view: &View, any_device: bool) -> Result<Arc<Host>, Error> {
        if let Some(pinned) = &view.pinned {
            let lost = || Error::Conflict("its device is on a host that is no longer configured".into());
            return self.hosts.host(pinned.hypervisor).cloned().ok_or_else(lost);
        }
        let restrictions = self.hosts.restrictions().await?;
        let mut refusal = None;
        let mut best: Option<((bool, usize), &Arc<Host>)> = None;
        for host in self.hosts.iter() {
            match self.candidates(view, host, any_device) {
                Ok(found) => {
                    let rows = self.store.devices_of(host.row.id);
                    let free = rows.iter().filter(|row| {
                        row.status == DeviceStatus::Available && found.contains(&row.facts.address)
                    });
                    let is_open = !restrictions.contains_key(&host.row.id);
                    let this = (answers(host) && is_open, free.count());
                    if best.is_none_or(|(best, _)| this > best) {
                        best = Some((this, host));
                    }
                }
                Err(reason) => refusal = refusal.or(Some(reason)),
            }
        }
        if let Some((_, host)) = best {
            return Ok(Arc::clone(host));
        }
        Err(Error::Conflict(refusal.unwrap_or_else(|| "no host is configured".into())))
    }

    /// Checks that an accelerator can be attached on a host: its pinned device, or a candidate, is there.
    ///
    /// # Errors
    /// [`Error::Conflict`], with the hosts where it could be attached.
    fn on_that_host(&self, view: &View, host: &Host, any_device: bool) -> Result<(), Error> {
        match &view.pinned {
            Some(pinned) if pinned.hypervisor != host.row.id => {
                let its = self.hosts.host(pinned.hypervisor).map_or("another", |host| host.name.as_str());
                Err(Error::Conflict(format!(
                    "accelerator {} is device {} of host {its}, and cannot go to host {}",
                    view.row.id, pinned.facts.address, host.name
                )))
            }
            Some(_) => Ok(()),
            None if !answers(host) => Ok(()),
            None => {
                let Err(reason) = self.candidates(view, host, any_device) else { return Ok(()) };
                let others =
                    self.hosts.iter().filter(|other| self.candidates(view, other, any_device).is_ok());
                let others: Vec<_> = others.map(|other| other.name.as_str()).collect();
                let instead = match others[..] {
                    [] => String::new(),
                    _ => format!("; hosts with such devices: {}", others.join(", ")),
                };
                Err(Error::Conflict(reason + &instead))
            }
        }
    }

    /// Returns the devices of a host that match an accelerator, free or not. PFs are only included when too few other
    /// devices are free, or when mediated devices are requested. A pinned device is the only candidate. When the
    /// spec does not say which devices it takes, only those are included that are accelerators and nothing else, unless
    /// `any_device` is set: otherwise a guest would get the data or the network of somebody else by a forgotten spec.
    ///
    /// # Errors
    /// When no device matches: the reason of the one that came nearest.
    pub(super) fn candidates(
        &self,
        view: &View,
        host: &Host,
        any_device: bool,
    ) -> Result<BTreeSet<PciAddress>, String> {
        let (spec, functions) = (view.spec(), host.functions());
        let rows = self.store.devices_of(host.row.id);
        if let Some(pinned) = &view.pinned {
            return Ok([pinned.facts.address].into());
        }
        let answered: BTreeSet<_> = rows.iter().flat_map(|row| row.facts.extra_info.keys()).collect();
        let unnamed = !any_device && !spec.names_devices(&answered);
        let mut left_out = false;
        let (mut found, mut free, mut pfs) = (BTreeSet::new(), 0, BTreeSet::new());
        let mut nearest: Option<(usize, String)> = None;
        for row in &rows {
            let Some(function) = functions.get(&row.facts.address) else { continue };
            if unnamed && !is_accelerator(function) {
                left_out = true;
                continue;
            }
            match spec.mismatch(function, &row.facts, &answered) {
                Some((passed, reason)) => {
                    if nearest.as_ref().is_none_or(|(most, _)| passed > *most) {
                        nearest = Some((passed, format!("{}: {reason}", row.facts.address)));
                    }
                }
                None if row.facts.dev_type == DevType::Pf => drop(pfs.insert(row.facts.address)),
                None => {
                    found.insert(row.facts.address);
                    free += usize::from(row.status == DeviceStatus::Available);
                }
            }
        }
        if free < spec.count() || spec.mdev_type.is_some() {
            found.extend(pfs);
        }
        if left_out && found.is_empty() {
            return Err(format!(
                "the spec of accelerator {id} does not say which devices it takes, and then an attach takes only an FPGA, \
                 QAT, CRYPTO or AICHIP device, which host {} does not have; name the devices with PUT \
                 accelerators/{id}/acc_specs, or attach it with \"any_device\": true",
                host.name,
                id = view.row.id
            ));
        }
        if found.is_empty() {
            let nearest = nearest.map(|(_, nearest)| format!(" ({nearest})")).unwrap_or_default();
            return Err(format!(
                "no device of host {} matches the spec of accelerator {}{nearest}; GET os-pci/detail lists the devices",
                host.name, view.row.id
            ));
        }
        Ok(found)
    }

    /// Detaches an accelerator. All its devices are available when it returns `Ok`. With `generations`, its spec must
    /// be of one of these generations. `may` decides whether the caller may detach it.
    ///
    /// # Errors
    /// [`Error::NoAccelerator`]; the error of `may`; [`Error::Conflict`] while it is being attached, when a guest keeps
    /// a device, or when it holds nothing but its pinned device, or one that must be assigned with it, has another
    /// holder; errors of the hypervisor and of the database.
    pub async fn detach_accelerator(
        self: &Arc<Self>,
        id: AcceleratorId,
        request: DetachRequest,
        generations: Option<&[i64]>,
        may: impl Fn(&View) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let request = DetachRequest { holder: Some(Holder::Accelerator(id)), ..request };
        let view = self.accelerator(id).await?;
        may(&view)?;
        expect_generation(&view, generations)?;
        if let (Status::Attaching, _) = view.status() {
            return Err(Error::Busy(format!(
                "accelerator {id} is being attached; try again when it is attached"
            )));
        }
        // Ended assignments are no longer wanted either: otherwise they would be adopted again when their server comes
        // back. Read the accelerator after that, so that those adopted meanwhile are released as well.
        self.store.release_accelerator(id).await?;
        let view = self.accelerator(id).await?;
        if view.held.is_empty() {
            let others = view.pinned.as_ref().and_then(|device| self.held_with(device));
            let Some((other, what, owner)) = others else { return Ok(()) };
            let holder = self.store.holder_of(other).await?.map(|holder| format!(" for {holder}"));
            return Err(Error::Conflict(format!(
                "accelerator {id} is not attached, but {what} is held by {owner}{}; detach it there",
                holder.unwrap_or_default()
            )));
        }
        // Release the other devices even when one cannot be released.
        let (mut work, mut outcome) = (Vec::new(), Ok(()));
        let bindings = view.held.iter().filter_map(|held| match &held.by {
            Assignment::Binding(row) => Some(row.id),
            Assignment::Attachment(_) | Assignment::Mdev(_) => None,
        });
        work.extend(self.begin_release_bindings(bindings.collect()));
        for held in view.held.iter().filter(|held| !matches!(held.by, Assignment::Binding(_))) {
            match self.begin_release(&held.by, request).await {
                Ok(begun) => work.extend(begun),
                Err(error) => outcome = outcome.and(Err(error)),
            }
        }
        for work in work {
            outcome = outcome.and(task::join(work).await);
        }
        outcome
    }

    /// Finds which is in use of a device, its PF or VFs, and the members of its IOMMU group. Returns its id, a
    /// description and its owner; `None` when none is in use.
    fn held_with(&self, device: &Device) -> Option<(DeviceId, String, Owner)> {
        let address = device.facts.address;
        if let Some(owner) = device.owner {
            return Some((device.id, format!("its device {address}"), owner));
        }
        let functions = self.hosts.host(device.hypervisor)?.functions();
        let group = functions.get(&address).and_then(|function| function.iommu_group.as_ref());
        self.store.devices_of(device.hypervisor).iter().find_map(|other| {
            let (owner, place) = (other.owner?, other.facts.address);
            let what = if device.facts.parent_addr == Some(place) {
                "the PF"
            } else if other.facts.parent_addr == Some(address) {
                "a VF"
            } else if group.is_some_and(|group| group.members.contains(&place)) {
                "a member of the IOMMU group"
            } else {
                return None;
            };
            Some((other.id, format!("{place}, {what} of its device {address},"), owner))
        })
    }

    /// Records that an assignment is to be released for its holder and returns the work of releasing it; `None` when it
    /// is released already.
    pub(crate) async fn begin_release(
        self: &Arc<Self>,
        held: &Assignment,
        request: DetachRequest,
    ) -> Result<Option<Work>, Error> {
        match held {
            Assignment::Attachment(_) | Assignment::Mdev(_) => {
                self.assignments.begin_detach_of(held.key(), request).await
            }
            Assignment::Binding(row) => Ok(self.begin_release_bindings(vec![row.id])),
        }
    }

    /// Returns the work of releasing bindings; `None` without any.
    fn begin_release_bindings(self: &Arc<Self>, ids: Vec<AttachmentId>) -> Option<Work> {
        let service = Arc::clone(self);
        (!ids.is_empty())
            .then(|| actor::spawn_as_current(async move { service.assignments.release_bindings(&ids).await }))
    }
}
