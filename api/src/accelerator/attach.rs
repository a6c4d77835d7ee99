//! Attach and detach: into a server on the road that every device goes, to a host by a binding.

use std::collections::BTreeSet;
use std::sync::Arc;

use hotslot_driver::pci::PciAddress;
use tokio::task::JoinHandle;

use super::{HeldBy, Holder, Parts, Status, Target, View};
use crate::attachment::attach::AttachRequest;
use crate::attachment::detach::DetachRequest;
use crate::error::Error;
use crate::host::Host;
use crate::id::{AcceleratorId, ServerId};
use crate::inventory::{Alias, AliasRequest, NumaPolicy};
use crate::service::Service;
use crate::store::{DevType, DeviceStatus};
use crate::who;

/// The most devices that one accelerator is made of, as of one request for devices.
const MAX_NUM: u32 = 256;

impl Service {
    /// Attaches an accelerator, all its devices or none.
    ///
    /// The work goes on when the caller goes away.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::NoServer`]; [`Error::Conflict`] when it is not available, or no device is; what
    /// the host answers.
    pub async fn attach_accelerator(
        self: &Arc<Self>,
        id: AcceleratorId,
        target: Target,
    ) -> Result<View, Error> {
        let view = self.on_record(id).await?;
        match view.status() {
            (Status::Available, _) => {}
            (Status::Error, reason) => {
                return Err(Error::Conflict(format!("accelerator {id}: {}", reason.unwrap_or_default())));
            }
            (status @ (Status::Attaching | Status::Attached | Status::Detaching), _) => {
                return Err(Error::Conflict(format!(
                    "accelerator {id} is {status} already; detach it first"
                )));
            }
        }
        let num = view.spec().num;
        if num == 0 || num > MAX_NUM {
            return Err(Error::Conflict(format!(
                "accelerator {id} is {num} devices by its spec; put one with a num of 1 to {MAX_NUM}"
            )));
        }
        match (target, view.spec().mdev_type) {
            (Target::Server(server), None) => self.into_server(&view, server).await?,
            (Target::Server(server), Some(mdev_type)) => {
                self.parts_into_server(&view, &mdev_type, server).await?
            }
            (Target::Host { .. }, Some(mdev_type)) => {
                return Err(Error::Invalid(format!(
                    "accelerator {id} is a mediated device by its spec (mdev_type {mdev_type}), and those are for \
                     servers; name a server, {{\"instance_uuid\": \"<its id>\"}}, or put a spec without mdev_type"
                )));
            }
            (Target::Host { name, driver }, None) => {
                let host = match &name {
                    Some(name) => Arc::clone(self.host_called(name)?),
                    None => self.own_host(&view)?,
                };
                self.on_that_host(&view, &host)?;
                let service = Arc::clone(self);
                who::answer(who::spawn(async move { service.bind(&view, &host, driver).await })).await?;
            }
        }
        self.accelerator(id).await
    }

    async fn into_server(self: &Arc<Self>, view: &View, server: ServerId) -> Result<(), Error> {
        let (host, _) = self.find(server).await?;
        self.on_that_host(view, &host)?;
        host.ready().await?;
        let spec = view.spec();
        let candidates = self.candidates(view, &host)?;
        let name = format!("accelerator {}", view.row.name);
        let numa_policy = spec.numa_policy.unwrap_or(NumaPolicy::Preferred);
        let alias = Alias::among(name.clone(), &candidates, numa_policy);
        let attached = self.attach(AttachRequest {
            server,
            aliases: vec![AliasRequest { name, count: spec.num as usize }],
            own: vec![alias],
            persistent: true,
            whole_group: false,
            numa_policy: None,
            network: None,
            key: None,
            holder: Some(Holder::Accelerator(view.row.id)),
        });
        match attached.await {
            Ok(_) => Ok(()),
            Err(short @ Error::TooFewFree { .. }) => Err(Error::Conflict(short.to_string())),
            Err(error) => Err(error),
        }
    }

    async fn parts_into_server(
        self: &Arc<Self>,
        view: &View,
        mdev_type: &str,
        server: ServerId,
    ) -> Result<(), Error> {
        let (host, _) = self.find(server).await?;
        self.on_that_host(view, &host)?;
        host.ready().await?;
        let (spec, candidates) = (view.spec(), self.candidates(view, &host)?);
        let parts = Parts {
            holder: Holder::Accelerator(view.row.id),
            name: format!("accelerator {}", view.row.id),
            makers: candidates.into_iter().map(|address| (address, [mdev_type.to_owned()].into())).collect(),
            num: spec.num as usize,
            numa_policy: spec.numa_policy.unwrap_or(NumaPolicy::Preferred),
        };
        self.attach_parts(server, parts).await
    }

    /// Where the device of an accelerator is, or most that it could be are free.
    fn own_host(&self, view: &View) -> Result<Arc<Host>, Error> {
        if let Some(pinned) = &view.pinned {
            let lost = || Error::Conflict("its device is on a host that is no longer configured".into());
            return self.host(pinned.hypervisor).cloned().ok_or_else(lost);
        }
        let mut refusal = None;
        let mut best: Option<(usize, &Arc<Host>)> = None;
        for host in &self.hosts {
            match self.candidates(view, host) {
                Ok(found) => {
                    let rows = self.store.devices_of(host.row.id);
                    let free = rows.iter().filter(|row| {
                        row.status == DeviceStatus::Available && found.contains(&row.facts.address)
                    });
                    let free = free.count();
                    if best.is_none_or(|(most, _)| free > most) {
                        best = Some((free, host));
                    }
                }
                Err(error) => refusal = refusal.or(Some(error)),
            }
        }
        if let Some((_, host)) = best {
            return Ok(Arc::clone(host));
        }
        Err(refusal.unwrap_or_else(|| Error::Conflict("no host is configured".into())))
    }

    fn on_that_host(&self, view: &View, host: &Host) -> Result<(), Error> {
        match &view.pinned {
            Some(pinned) if pinned.hypervisor != host.row.id => {
                let its = self.host(pinned.hypervisor).map_or("another", |host| host.name.as_str());
                Err(Error::Conflict(format!(
                    "accelerator {} is device {} of host {its}, and cannot go to host {}",
                    view.row.id, pinned.facts.address, host.name
                )))
            }
            Some(_) | None => Ok(()),
        }
    }

    /// The devices of a host that an accelerator could be, free or not. A PF only when it is one by name, when
    /// without PFs too few are free, or when parts of it may do.
    ///
    /// # Errors
    /// [`Error::Conflict`] when there is none.
    pub(super) fn candidates(&self, view: &View, host: &Host) -> Result<BTreeSet<PciAddress>, Error> {
        let (spec, functions) = (view.spec(), host.functions());
        let rows = self.store.devices_of(host.row.id);
        if let Some(pinned) = &view.pinned {
            return Ok([pinned.facts.address].into());
        }
        let answered: BTreeSet<_> =
            rows.iter().flat_map(|row| row.facts.extra_info.keys()).map(String::as_str).collect();
        let (mut found, mut free, mut pfs, mut nearest) = (BTreeSet::new(), 0, BTreeSet::new(), None);
        for row in &rows {
            let Some(function) = functions.get(&row.facts.address) else { continue };
            match spec.mismatch(function, &row.facts, &answered) {
                Some(reason) => drop(nearest.get_or_insert(format!("{}: {reason}", row.facts.address))),
                None if row.facts.dev_type == DevType::Pf => drop(pfs.insert(row.facts.address)),
                None => {
                    found.insert(row.facts.address);
                    free += u32::from(row.status == DeviceStatus::Available);
                }
            }
        }
        if free < spec.num || spec.mdev_type.is_some() {
            found.extend(pfs);
        }
        if found.is_empty() {
            let nearest = nearest.map(|nearest| format!(" ({nearest})")).unwrap_or_default();
            return Err(Error::Conflict(format!(
                "no device of host {} is what accelerator {} asks for by its spec{nearest}; GET os-pci/detail lists \
                 what there is",
                host.name, view.row.id
            )));
        }
        Ok(found)
    }

    /// Detaches an accelerator: all its devices are back in the pool when it returns.
    ///
    /// # Errors
    /// [`Error::NotFound`]; [`Error::Conflict`] while it is being attached, when a guest does not let go, or, of one
    /// that holds nothing, when others hold the device that it is.
    pub async fn detach_accelerator(
        self: &Arc<Self>,
        id: AcceleratorId,
        request: DetachRequest,
    ) -> Result<(), Error> {
        let request = DetachRequest { holder: Some(Holder::Accelerator(id)), ..request };
        let view = self.accelerator(id).await?;
        if let (Status::Attaching, _) = view.status() {
            return Err(Error::Conflict(format!("accelerator {id} is being attached; try again when it is")));
        }
        if view.held.is_empty() {
            return match view.pinned.as_ref().and_then(|device| Some((device, device.owner?))) {
                None => Ok(()),
                Some((device, owner)) => Err(Error::Conflict(format!(
                    "accelerator {id} is not attached, but its device {} is held by {owner}; detach it there",
                    device.facts.address
                ))),
            };
        }
        let mut work = Vec::new();
        for held in &view.held {
            work.extend(self.begin_release(&held.by, request).await?);
        }
        let mut outcome = Ok(());
        for work in work {
            outcome = outcome.and(who::answer(work).await);
        }
        outcome
    }

    /// Has what a holder holds given back, and answers the work of doing it; none when it is given back already.
    pub(crate) async fn begin_release(
        self: &Arc<Self>,
        held: &HeldBy,
        request: DetachRequest,
    ) -> Result<Option<JoinHandle<Result<(), Error>>>, Error> {
        match held {
            HeldBy::Attachment(row) => self.begin_detach(row.server, row.id, request).await,
            HeldBy::Mdev(row) => self.begin_detach_mdev(row.id, request).await,
            HeldBy::Binding(row) => {
                let (service, id) = (Arc::clone(self), row.id);
                Ok(Some(who::spawn(async move { service.unbind(id).await })))
            }
        }
    }
}
