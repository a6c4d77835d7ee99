//! Drift: compares a host and its servers with the records, and finds the disagreements.
//! [`hotslot_model::assignment::drift`] decides what each means; `repair.rs` acts on it.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;

use hotslot_driver::hypervisor::{DomainView, ErrorKind};
use hotslot_driver::pci::PciAddress;
use hotslot_model::assignment::drift::{
    Comparison, aliases, of_binding, of_devices, of_mdev, of_stray_mdev, of_unfinished_binding,
};
use hotslot_model::assignment::{
    Action, Assignment, AssignmentKey, AssignmentKind, Binding, Finding, Kind, Mdev, Source, State, Trigger,
};
use hotslot_model::device::Device;
use hotslot_model::id::{AttachmentId, DeviceId, EventId, ServerId};

use super::assignments::Assignments;
use crate::error::Error;
use crate::host::Host;

/// Returns the kinds of those findings that hotslot does not act on until somebody requests a repair.
pub(super) fn unresolved(findings: &[Finding]) -> impl Iterator<Item = Kind> {
    let waits = |finding: &&Finding| match finding.action.trigger() {
        None | Some(Trigger::Repair) => true,
        Some(Trigger::Event | Trigger::Arrival | Trigger::Round) => false,
    };
    findings.iter().filter(waits).map(|finding| finding.kind)
}

impl Assignments {
    /// Reads a server and compares it with its records. Returns the disagreements and, when this host has only records
    /// of the server, another host that has the server.
    ///
    /// # Errors
    /// Errors of the hypervisor and of the database.
    pub(super) async fn compare(
        &self,
        host: &Host,
        server: ServerId,
    ) -> Result<(Vec<Finding>, Option<&Arc<Host>>), Error> {
        // Skip assignments that are worked on before or after the documents are read, and those that end meanwhile:
        // for these the record and the documents may be of different moments.
        self.store.refresh().await?;
        let began = self.store.event_bounds().await?.last;
        let mut rows = self.store.assignments_of(server).await?;
        let mut busy = self.in_flight.of(rows.iter().map(Assignment::id)).await?;
        // A process that lost its locks with a connection takes them again soon, so its attach continues.
        busy.extend(self.store.attaching_elsewhere(server).await?);
        rows.retain(|row| row.hypervisor() == host.row.id && !busy.contains(&row.id()));
        // An overdue call may change the domain after it was read, or create a mediated device. Its return is an event,
        // which has the server compared again.
        rows.retain(|row| {
            let call = || self.call_out(host, row.server(), row.device());
            row.state() == State::Attached || call().is_none()
        });
        let view = host.server(server).await?;
        let busy = self.in_flight.of(rows.iter().map(Assignment::id)).await?;
        rows.retain(|row| !busy.contains(&row.id()));
        host.set_held(server, view.as_ref());
        let named = self.named_in(view.as_ref(), began).await?;
        let elsewhere =
            if view.is_none() && !rows.is_empty() { self.elsewhere(host, server).await } else { None };
        let (replaced, parents) = self.returned_mdevs(host, &named).await?;
        let comparison = Comparison {
            hypervisor: host.row.id,
            server,
            rows: &rows,
            named: &named,
            view: view.as_ref(),
            device: &|id| self.store.device(id),
            device_at: &|address| self.device_at(host, address),
            elsewhere: elsewhere.map(|other| other.name.as_str()),
            replaced: &replaced,
            mdevs: &host.mdevs(),
            is_in_parts: &|device| parents.contains(&device),
        };
        Ok((comparison.findings(), elsewhere))
    }

    /// Returns the records that the aliases of a server's documents name; `None` for an alias without a record. Those
    /// that are worked on, or have ended since the event `began`, are left out.
    async fn named_in(
        &self,
        view: Option<&DomainView>,
        began: EventId,
    ) -> Result<BTreeMap<AttachmentId, Option<Assignment>>, Error> {
        let aliases = view.map(aliases).unwrap_or_default();
        let (mut named, busy) = (BTreeMap::new(), self.in_flight.of(aliases.iter().copied()).await?);
        for id in aliases {
            let row = self.named(id).await?;
            let ended = row.as_ref().is_some_and(|row| row.state().is_final());
            // Use event ids, not the clock, which may have been set back.
            let just_ended = ended && self.store.has_events_after(began, id).await?;
            if !just_ended && !busy.contains(&id) {
                named.insert(id, row);
            }
        }
        Ok(named)
    }

    /// Checks mediated devices that came back with their domain: they are attached again if their holders can have them
    /// again. Returns those whose holders cannot, and the devices that have mediated devices.
    async fn returned_mdevs(
        &self,
        host: &Host,
        named: &BTreeMap<AttachmentId, Option<Assignment>>,
    ) -> Result<(BTreeSet<AttachmentId>, BTreeSet<DeviceId>), Error> {
        let returned: Vec<_> = named
            .values()
            .flatten()
            .filter_map(|row| match row {
                Assignment::Mdev(row) if row.unrequested => Some(row),
                Assignment::Attachment(_) | Assignment::Binding(_) | Assignment::Mdev(_) => None,
            })
            .collect();
        if returned.is_empty() {
            return Ok((BTreeSet::new(), BTreeSet::new()));
        }
        let (mdevs, mut replaced) = (host.mdevs(), BTreeSet::new());
        for row in returned {
            // On another host, or after a change by others, it may be of another parent than the one on record.
            let found = mdevs.iter().find(|mdev| mdev.uuid == row.id.0).and_then(|mdev| mdev.parent);
            let parent = found.and_then(|address| self.device_at(host, address));
            let parent = parent.map_or(row.parent, |parent| parent.id);
            if !self.store.may_have_again(row, parent).await? {
                replaced.insert(row.id);
            }
        }
        let parents = self.store.mdevs().await?.iter().map(|made| made.parent).collect();
        Ok((replaced, parents))
    }

    /// Returns the kinds of the disagreements between a host and the open assignments that hotslot does not resolve by
    /// itself: those about its servers as of their last comparisons, and those about its devices as of now. It asks
    /// neither the host nor the database.
    pub(crate) fn unresolved(&self, host: &Host, open: &[Assignment]) -> Vec<Kind> {
        let attachments = open.iter().filter_map(|row| match row {
            Assignment::Attachment(row) => Some(row.clone()),
            Assignment::Binding(_) | Assignment::Mdev(_) => None,
        });
        let attachments: Vec<_> = attachments.collect();
        let mut devices = self.store.devices_of(host.row.id);
        // The attachments were read a moment ago. What changed meanwhile is no disagreement.
        let requests: HashSet<_> = open.iter().map(Assignment::request).collect();
        let assigned: HashSet<_> = open.iter().map(Assignment::device).collect();
        let is_known = |device: &Device| match device.request {
            Some(request) => requests.contains(&request),
            None => !assigned.contains(&device.id),
        };
        devices.retain(|device| device.gone_at.is_some() || is_known(device));
        let found = match host.is_synced() {
            true => of_devices(&attachments, &devices, &host.functions(), &host.foreign()),
            false => Vec::new(),
        };
        let mut kinds = host.unresolved();
        kinds.extend(unresolved(&found));
        kinds.extend(unresolved(&self.seen_off_profile(host)));
        kinds
    }

    fn device_at(&self, host: &Host, address: PciAddress) -> Option<Arc<Device>> {
        self.store.with_devices_of(host.row.id, |devices| devices.at(address).cloned())
    }

    /// Returns the record whose id is in a hotslot alias, whether it has ended or not.
    async fn named(&self, id: AttachmentId) -> Result<Option<Assignment>, Error> {
        for kind in [AssignmentKind::Attachment, AssignmentKind::Mdev] {
            if let Some(row) = self.store.assignment(AssignmentKey { kind, id }).await? {
                return Ok(Some(row));
            }
        }
        Ok(None)
    }

    /// Returns another host that has a server, if it answers in time.
    async fn elsewhere(&self, host: &Host, server: ServerId) -> Option<&Arc<Host>> {
        let others = self.hosts.iter().filter(|other| other.row.id != host.row.id);
        for other in others.filter(|other| other.hypervisor.connection().is_ok()) {
            if other.soon(other.hypervisor.domain(server.0)).await.is_ok() {
                return Some(other);
            }
        }
        None
    }

    /// Returns all disagreements between a host and the records. A domain that cannot be read is one of them.
    ///
    /// # Errors
    /// [`Error::HostAway`] when the host is unreachable; other errors of the hypervisor and of the database.
    pub async fn drift(&self, host: &Host) -> Result<Vec<Finding>, Error> {
        host.ready().await?;
        let mut findings = Vec::new();
        for server in self.servers_of(host).await? {
            match self.compare(host, server).await {
                Ok((found, _)) => findings.extend(found),
                Err(error @ Error::HostAway { .. }) => return Err(error),
                Err(error) => findings.push(Finding {
                    kind: Kind::Unread,
                    server: Some((server, None)),
                    attachment: None,
                    address: None,
                    observations: vec![(Source::Host, error.to_string())],
                    action: Action::Manual("nothing, until the server can be read".into()),
                }),
            }
        }
        let mut devices = self.store.devices_of(host.row.id);
        let rows = self.store.attachments().await?;
        // A device that was claimed or freed meanwhile is no disagreement.
        devices
            .retain(|device| self.store.device(device.id).is_some_and(|now| now.request == device.request));
        findings.extend(of_devices(&rows, &devices, &host.functions(), &host.foreign()));
        findings.extend(self.pending_rebind(host).await?.findings);
        findings.extend(self.of_vgpu_types(host).await?);
        findings.extend(self.of_vf_settings(host).await?);
        findings.extend(self.of_accelerators(host).await?);
        findings.extend(self.under_calls(host).await?);
        findings.extend(self.off_profile(host).await?);
        Ok(findings)
    }

    /// Returns the disagreements about bindings and mediated devices.
    async fn of_accelerators(&self, host: &Host) -> Result<Vec<Finding>, Error> {
        let mut findings = Vec::new();
        let mut bindings = self.store.bindings().await?;
        bindings.retain(|row| row.hypervisor == host.row.id);
        let is_left =
            |row: &Binding| row.state != State::Attached && self.call_out(host, None, row.device).is_none();
        if bindings.iter().any(is_left) && self.groups_are_idle(host).await? {
            // A binding whose record changed meanwhile was worked on; it is not left over.
            let now = self.store.bindings().await?;
            for row in bindings.iter().filter(|row| is_left(row) && now.contains(row)) {
                let device = self.store.known_device(row.device).await?;
                findings.extend(device.map(|device| of_unfinished_binding(row, &device)));
            }
        }
        for row in bindings.iter().filter(|row| row.state == State::Attached) {
            let Some(device) = self.store.known_device(row.device).await? else { continue };
            let address = device.facts.address;
            // Read the driver now, because no event reports that a driver was bound or unbound.
            let found = match host.hypervisor.device(address).await {
                Err(error) if error.kind == ErrorKind::NoDevice => None,
                found => Some(found.map_err(host.error(format!("read {address}")))?),
            };
            // It may have been released meanwhile.
            if self.store.bindings().await?.iter().any(|now| now.id == row.id && now.state == State::Attached)
            {
                findings.extend(of_binding(row, &device, found.as_ref()));
            }
        }
        let mdevs = self.store.mdevs().await?;
        host.read_mdevs().await?;
        findings.extend(self.stray_mdevs(host).await?);
        let mut mdevs = mdevs
            .into_iter()
            .filter(|row| row.hypervisor == host.row.id && row.state == State::Attached)
            .peekable();
        if mdevs.peek().is_none() {
            return Ok(findings);
        }
        let there = host.mdevs();
        for row in mdevs.filter(|row| !there.iter().any(|mdev| mdev.uuid == row.id.0)) {
            let now = self.store.mdev(row.id).await?;
            if now.is_some_and(|now| now.state == State::Attached)
                && let Some(parent) = self.store.known_device(row.parent).await?
            {
                findings.push(of_mdev(&row, &parent));
            }
        }
        Ok(findings)
    }

    /// Returns the mediated devices that a host has although their records have ended: a create call that failed or was
    /// given up may have created them. Devices that others created have no record. A device that the last read of the
    /// host did not find is not considered.
    pub(super) async fn stray_mdevs(&self, host: &Host) -> Result<Vec<Finding>, Error> {
        let mut ended = Vec::new();
        for found in host.mdevs().iter() {
            let row = self.store.mdev(AttachmentId(found.uuid)).await?;
            // One that ended although nobody had requested that was created again for its server, which comes back.
            let is_stray =
                |row: &Mdev| row.hypervisor == host.row.id && row.state.is_final() && !row.unrequested;
            ended.extend(row.filter(is_stray));
        }
        if ended.is_empty() {
            return Ok(Vec::new());
        }
        // A record ends only after its mediated device was removed, so a device that exists now is a stray one.
        let (there, mut findings) = (host.read_mdevs().await?, Vec::new());
        for row in ended {
            let Some(found) = there.iter().find(|found| found.uuid == row.id.0) else { continue };
            let used_by = host.has_mdev(found.uuid);
            if let Some(server) = used_by
                && host.server(server).await?.is_some_and(|view| aliases(&view).contains(&row.id))
            {
                // The comparison of that server reports it.
                continue;
            }
            findings.push(of_stray_mdev(&row, found, used_by));
        }
        Ok(findings)
    }
}
