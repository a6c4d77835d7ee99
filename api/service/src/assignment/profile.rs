//! The host profile: makes the VFs and vGPU types that the configuration says, and compares a host with it.
//!
//! VFs and types that are absent are made at the start of the service and after a reconnect, before the records are compared
//! with the host. Every other difference is only shown, and changed when somebody requests a repair.
//! Nothing about it is on record: what the host has is the truth, so that a change that was cut short is found again.

use std::collections::BTreeSet;
use std::sync::Arc;

use hotslot_driver::binding::{self, HostDriver};
use hotslot_driver::device::{HostDevice, Role};
use hotslot_driver::hotplug::Policy;
use hotslot_driver::hypervisor::ErrorKind;
use hotslot_driver::local::GuardKind;
use hotslot_driver::pci::PciAddress;
use hotslot_driver::vgpu::{VgpuChange, VgpuVf};
use hotslot_model::assignment::drift::ProfileComparison;
use hotslot_model::assignment::{Action, Finding};
use hotslot_model::device::Functions;
use hotslot_model::event::{self, EventKind, What};
use hotslot_model::host_mode::HostChange;
use hotslot_model::id::ServerId;
use hotslot_model::rules::{ProfileChange, ProfileEntry, Profiles};
use hotslot_store::actor;
use serde_json::Value;

use super::assignments::Assignments;
use crate::error::Error;
use crate::host::Host;
use crate::inventory::open_nodes;

/// A function that an entry of the profile names.
pub struct Profiled {
    /// The place of the entry among all, from 0.
    pub entry: usize,
    /// The function as the host has it now.
    pub function: HostDevice,
    /// Where it or its VFs differ from what the entry says.
    pub differences: Vec<Finding>,
}

/// The state of a host that is compared with its profile.
struct Seen {
    profiles: Profiles,
    functions: Functions,
    /// `None` when no entry has a type, and when the types of the host cannot be read.
    vgpus: Option<Vec<VgpuVf>>,
    used: BTreeSet<PciAddress>,
    is_remote: bool,
}

impl Seen {
    fn compare<T>(&self, with: impl FnOnce(&ProfileComparison<'_>) -> T) -> T {
        with(&ProfileComparison {
            profiles: &self.profiles,
            functions: &self.functions,
            vgpus: self.vgpus.as_deref(),
            is_used: &|address| self.used.contains(&address),
            is_remote: self.is_remote,
        })
    }

    fn findings(&self) -> Vec<Finding> {
        self.compare(|comparison| comparison.findings())
    }
}

impl Assignments {
    fn profiles(&self, host: &Host) -> Profiles {
        Profiles::of_host(&self.config.get().profile, &host.name)
    }

    /// Returns the functions that a server or the host itself has, also those that hotslot did not give to them.
    fn functions_in_use(&self, host: &Host) -> BTreeSet<PciAddress> {
        let devices = self.store.devices_of(host.row.id);
        let owned = devices.iter().filter(|device| device.owner.is_some());
        let mut used: BTreeSet<_> = owned.map(|device| device.facts.address).collect();
        used.extend(host.in_guests());
        used.extend(host.foreign().into_keys());
        used
    }

    /// Reads what a host has now; `None` when it has no profile.
    async fn see(&self, host: &Host) -> Result<Option<Seen>, Error> {
        let profiles = self.profiles(host);
        if profiles.is_empty() {
            return Ok(None);
        }
        let devices = host.hypervisor.devices().await.map_err(host.error("list the host's devices"))?;
        let mut functions = Functions::new();
        devices.into_iter().for_each(|device| functions.insert(device));
        let vgpus = if profiles.have_types() {
            match host.hypervisor.vgpu_vfs(None).await {
                Err(error) if error.kind == ErrorKind::Unsupported => None,
                answer => Some(answer.map_err(host.error("read the vGPU types of VFs"))?),
            }
        } else {
            None
        };
        let (used, is_remote) = (self.functions_in_use(host), host.hypervisor.is_remote());
        Ok(Some(Seen { profiles, functions, vgpus, used, is_remote }))
    }

    /// Returns where a host differs from its profile.
    ///
    /// # Errors
    /// Errors of the hypervisor.
    pub(super) async fn off_profile(&self, host: &Host) -> Result<Vec<Finding>, Error> {
        Ok(self.see(host).await?.map(|seen| seen.findings()).unwrap_or_default())
    }

    /// As [`off_profile`](Self::off_profile), by the functions that were last read, and without the vGPU types. It asks
    /// neither the host nor the database.
    pub(super) fn seen_off_profile(&self, host: &Host) -> Vec<Finding> {
        let profiles = self.profiles(host);
        if profiles.is_empty() || !host.is_synced() {
            return Vec::new();
        }
        let (functions, used) = (host.functions(), self.functions_in_use(host));
        let comparison = ProfileComparison {
            profiles: &profiles,
            functions: &functions,
            vgpus: None,
            is_used: &|address| used.contains(&address),
            is_remote: host.hypervisor.is_remote(),
        };
        comparison.findings()
    }

    /// Returns the entries for a host, and the functions that they name, as the host has them now.
    ///
    /// # Errors
    /// Errors of the hypervisor.
    pub async fn profile(&self, host: &Host) -> Result<(Vec<ProfileEntry>, Vec<Profiled>), Error> {
        let Some(seen) = self.see(host).await? else { return Ok((Vec::new(), Vec::new())) };
        let entries = seen.profiles.iter().cloned().collect();
        let profiled = seen.compare(|comparison| {
            let functions = seen.profiles.functions(&seen.functions);
            let profiled = |(entry, function): (&ProfileEntry, &HostDevice)| Profiled {
                entry: entry.index,
                function: function.clone(),
                differences: comparison.of(entry, function),
            };
            functions.map(profiled).collect()
        });
        Ok((entries, profiled))
    }

    /// Makes what the profile of a host says and the host lacks. What fails is logged and recorded as an event, and is
    /// shown as drift until it is made. On a host that is frozen or read-only nothing is made.
    pub(crate) async fn make_profile(&self, host: &Host) {
        if !self.profiles(host).is_empty()
            && let Err(error) = self.make_absent(host, None).await
        {
            tracing::error!(host = %host.name, %error, "what [[profile]] says of host {} could not be made", host.name);
        }
        host.set_profiled();
    }

    /// Makes what the host lacks, of all or for the VFs of one PF.
    ///
    /// # Errors
    /// Errors of the database; [`Error::HostAway`]. What the host refuses is no error, but recorded.
    async fn make_absent(&self, host: &Host, only: Option<PciAddress>) -> Result<(), Error> {
        // Several processes follow the host.
        let _turn = self.turns.of(format!("profile of host {}", host.name)).await?;
        if let Some(reason) = self.hosts.refusal(host, HostChange::Other).await? {
            tracing::info!(host = %host.name, reason, "nothing that [[profile]] says is made");
            return Ok(());
        }
        let mut tried = BTreeSet::new();
        // VFs that were just made have no type yet, so that the host is compared again.
        while let Some(seen) = self.see(host).await? {
            let of_pf = |change: &ProfileChange| match (only, change) {
                (None, _) => true,
                (Some(pf), ProfileChange::VgpuType(change)) => seen
                    .functions
                    .get(&change.address)
                    .is_some_and(|vf| vf.role == Role::Virtual { parent: pf }),
                (Some(_), ProfileChange::Vfs { .. } | ProfileChange::Driver { .. }) => false,
            };
            let absent = seen.findings().into_iter().find_map(|finding| {
                let Action::Profile(change) = finding.action else { return None };
                let is_new = !tried.contains(&(change.address(), change.to_string()));
                (change.makes_what_is_absent() && of_pf(&change) && is_new).then_some(change)
            });
            let Some(change) = absent else { break };
            tried.insert((change.address(), change.to_string()));
            let made = match &change {
                ProfileChange::Vfs { pf, from, to } => self.write_vf_count(host, *pf, *from, *to).await,
                ProfileChange::VgpuType(change) => self.write_vgpu_type(host, change).await,
                // It replaces what is there.
                ProfileChange::Driver { .. } => Ok(()),
            };
            match made {
                Err(error @ Error::HostAway { .. }) => return Err(error),
                Err(error) => self.note_failure(host, &change, &error).await?,
                Ok(()) => {}
            }
        }
        if !tried.is_empty() {
            host.queue_full_check();
        }
        Ok(())
    }

    async fn note_failure(&self, host: &Host, change: &ProfileChange, error: &Error) -> Result<(), Error> {
        let address = change.address();
        tracing::error!(
            host = %host.name, pci.address = %address, %error,
            "[[profile]]: {address}: {change}: failed; `hotslot drift --repair` tries it again"
        );
        let to = Some(Value::from(change.to_string()));
        let what = event::of_kind(EventKind::HostProfileFailed, None, to);
        self.note(host, address, What { reason: Some(error.to_string()), ..what }).await
    }

    async fn note(&self, host: &Host, address: PciAddress, what: What) -> Result<(), Error> {
        let what = What { hypervisor: Some(host.row.id), address: Some(address), ..what };
        self.store.record(vec![(actor::current(), what)]).await?;
        Ok(())
    }

    /// Changes a host to what its profile says, unless what would vanish or be replaced is in use.
    ///
    /// # Errors
    /// [`Error::Conflict`] with who uses it, or when the host has something else than was compared; [`Error::Restricted`];
    /// errors of the hypervisor and of the database.
    pub(super) async fn change_to_profile(&self, host: &Host, change: &ProfileChange) -> Result<(), Error> {
        let turn = self.turns.of(format!("profile of host {}", host.name)).await?;
        self.hosts.expect_open(host, HostChange::Other).await?;
        match change {
            ProfileChange::Vfs { pf, from, to } => self.change_vf_count(host, *pf, *from, *to).await?,
            ProfileChange::VgpuType(change) => {
                self.expect_unused(host, &[change.address], &format!("the type of {}", change.address))
                    .await?;
                if change.from.is_some() {
                    // A driver gives a new type only to a VF that has none.
                    self.write_vgpu_type(host, &VgpuChange { to: None, ..change.clone() }).await?;
                }
                self.write_vgpu_type(host, &VgpuChange { from: None, ..change.clone() }).await?;
            }
            ProfileChange::Driver { address, from, to } => {
                self.change_driver(host, *address, from.as_deref(), to).await?;
            }
        }
        drop(turn);
        if let ProfileChange::Vfs { pf, .. } = change {
            self.make_absent(host, Some(*pf)).await?;
        }
        host.queue_full_check();
        Ok(())
    }

    async fn change_vf_count(&self, host: &Host, pf: PciAddress, from: u32, to: u32) -> Result<(), Error> {
        let found = host.hypervisor.device(pf).await.map_err(host.error(format!("read {pf}")))?;
        let vfs = match found.role {
            Role::Physical { vfs, .. } => vfs,
            Role::Plain | Role::Virtual { .. } => Vec::new(),
        };
        let now = u32::try_from(vfs.len()).unwrap_or(u32::MAX);
        if now == to {
            return Ok(());
        }
        if now != from {
            return Err(Error::Conflict(format!(
                "{pf} has {now} VFs now, and {from} were found; repair once more"
            )));
        }
        if from > 0 {
            // An attach that chose one before this is on record by now, and one that chooses later is refused.
            let _vanishing = host.change_vfs(pf);
            self.expect_unused(host, &vfs, &format!("the number of VFs of {pf}")).await?;
            self.write_vf_count(host, pf, from, 0).await?;
        }
        if to > 0 {
            self.write_vf_count(host, pf, 0, to).await?;
        }
        Ok(())
    }

    async fn write_vf_count(&self, host: &Host, pf: PciAddress, from: u32, to: u32) -> Result<(), Error> {
        let changed = host.hypervisor.set_vf_count(pf, from, to).await;
        changed.map_err(host.error("making what [[profile]] says"))?;
        tracing::warn!(
            host = %host.name, pci.address = %pf,
            "[[profile]]: the number of VFs of {pf} was {from}, and is {to} now"
        );
        let what = event::of_kind(EventKind::HostVfs, Some(from.into()), Some(to.into()));
        self.note(host, pf, what).await
    }

    async fn write_vgpu_type(&self, host: &Host, change: &VgpuChange) -> Result<(), Error> {
        let changed = host.hypervisor.set_vgpu_type(change).await;
        changed.map_err(host.error("making what [[profile]] says"))?;
        tracing::warn!(
            host = %host.name, pci.address = %change.address,
            "[[profile]]: the vGPU type of {} was {}, and is {} now",
            change.address,
            change.from.as_deref().unwrap_or("none"),
            change.to.as_deref().unwrap_or("none")
        );
        let value = |of: &Option<String>| of.clone().map(Value::from);
        let what = event::of_kind(EventKind::HostVgpuType, value(&change.from), value(&change.to));
        self.note(host, change.address, what).await
    }

    /// Binds a function to another driver, unless somebody uses it. libvirt does it, which refuses a function that a guest
    /// has; what fails is undone.
    async fn change_driver(
        &self,
        host: &Host,
        address: PciAddress,
        from: Option<&str>,
        to: &str,
    ) -> Result<(), Error> {
        let found = host.hypervisor.device(address).await.map_err(host.error(format!("read {address}")))?;
        let now = found.driver.clone();
        if now.as_deref() == Some(to) {
            return Ok(());
        }
        if now.as_deref() != from {
            let name = |driver: Option<&str>| driver.unwrap_or("no driver").to_owned();
            return Err(Error::Conflict(format!(
                "{address} is bound to {} now, and to {} before; repair once more",
                name(now.as_deref()),
                name(from)
            )));
        }
        self.expect_unused(host, &[address], &format!("the driver of {address}")).await?;
        let availability = self.catalog.availability(host).await?;
        let mut facts = [availability.facts_of(found, true)];
        availability.add_open_nodes(&mut facts).await?;
        let kind = to.parse().unwrap_or(HostDriver::Native);
        let policy = Policy { require_reset: false, whole_groups: false };
        let [facts] = facts;
        let bound = binding::bind(host.hypervisor.as_ref(), &facts, kind, policy).await;
        let bound = bound.map_err(host.error("making what [[profile]] says"))?.driver;
        tracing::warn!(
            host = %host.name, pci.address = %address,
            "[[profile]]: the driver of {address} was {}, and is {bound} now", from.unwrap_or("none")
        );
        let was = from.map(Value::from);
        let what = event::of_kind(EventKind::HostDriver, was, Some(bound.clone().into()));
        self.note(host, address, what).await?;
        if bound == to {
            return Ok(());
        }
        Err(Error::Conflict(format!(
            "{address} is bound to {bound} now, which is the driver that its host has for it, and not {to}; correct the entry"
        )))
    }

    /// Checks that nobody uses any of these functions.
    ///
    /// # Errors
    /// [`Error::Conflict`] with who uses which; errors of the hypervisor and of the database.
    async fn expect_unused(&self, host: &Host, vfs: &[PciAddress], what: &str) -> Result<(), Error> {
        let uses = self.uses_of(host, vfs).await?;
        if uses.is_empty() {
            return Ok(());
        }
        let uses = uses.join("; ");
        Err(Error::Conflict(format!("{what} stays as it is: {uses}; end that first, and repair once more")))
    }

    /// Returns who uses any of these functions, in words: servers by their documents and by the records, the host itself, and
    /// programs of the host. It reads everything anew.
    async fn uses_of(&self, host: &Host, vfs: &[PciAddress]) -> Result<Vec<String>, Error> {
        let (mut uses, mut named) = (Vec::new(), BTreeSet::new());
        let domains = host.hypervisor.domains().await.map_err(host.error("list the host's domains"))?;
        for info in domains {
            let Some(view) = host.server(ServerId(info.uuid)).await? else { continue };
            for (document, place) in [(&view.live, "running"), (&view.persistent, "in its definition")] {
                let sources = document.iter().flat_map(|document| &document.hostdevs).map(|held| held.source);
                for vf in sources.filter(|vf| vfs.contains(vf)) {
                    if named.insert(vf) {
                        uses.push(format!("server {} has {vf} ({place})", info.name));
                    }
                }
            }
        }
        self.store.refresh().await?;
        for device in self.store.devices_of(host.row.id) {
            let vf = device.facts.address;
            if let Some(owner) = device.owner.filter(|_| vfs.contains(&vf))
                && named.insert(vf)
            {
                uses.push(format!("{vf} is {} to {owner}", device.status));
            }
        }
        for mdev in host.read_mdevs().await?.iter() {
            if let Some(vf) = mdev.parent.filter(|parent| vfs.contains(parent)) {
                uses.push(format!("{vf} has mediated device {}", mdev.uuid));
            }
        }
        let devices = host.hypervisor.devices().await.map_err(host.error("list the host's devices"))?;
        let mut functions = Functions::new();
        devices.iter().for_each(|device| functions.insert(device.clone()));
        let availability = self.catalog.availability_of(host, Arc::new(functions)).await?;
        let of_these = devices.into_iter().filter(|device| vfs.contains(&device.address));
        let of_these: Vec<_> = of_these.collect();
        for device in &of_these {
            let vf = device.address;
            let guards = availability.guards.get(&vf).into_iter().flatten();
            // A neighbour in the IOMMU group does not vanish.
            let guard = guards.into_iter().find(|guard| guard.kind != GuardKind::GroupSibling);
            uses.extend(guard.map(|guard| format!("the host needs {vf}: {}: {}", guard.kind, guard.reason)));
            uses.extend(host.overdue_call_at(vf).map(|call| format!("{vf}: {call}")));
            uses.extend((!device.vdpa.is_empty()).then(|| format!("{vf} carries a vDPA device")));
        }
        let sysroot = host.hypervisor.sysroot().map(std::path::PathBuf::from);
        for (vf, nodes) in open_nodes(sysroot, of_these).await? {
            uses.extend(nodes.in_use().map(|used| format!("{vf}: {}; {}", used.message, used.cure)));
        }
        Ok(uses)
    }
}
