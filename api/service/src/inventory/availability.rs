//! The availability of a host's devices: guards, IOMMU groups, foreign domains, overdue calls and disabled cards make
//! devices unavailable.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::PathBuf;
use std::sync::Arc;

use hotslot_driver::device::{HostDevice, Role};
use hotslot_driver::hook::{Hooks, When};
use hotslot_driver::hotplug;
use hotslot_driver::hypervisor::OverdueCall;
use hotslot_driver::local::{self, BarKind, Guard, GuardKind, OpenNodes};
use hotslot_driver::mdev::Mdev;
use hotslot_driver::pci::PciAddress;
use hotslot_driver::vfio::OnVfio;
use hotslot_model::device::{
    DevType, Device, Functions, Owner, card_of, is_managed, is_scrubbed, wants_scrub,
};
use hotslot_model::id::{DeviceId, ServerId};
use hotslot_model::rules::{Foreign, VDPA};

use super::catalog::Catalog;
use crate::error::Error;
use crate::host::Host;

/// A snapshot of a host from which the availability of its devices is determined.
#[derive(Debug)]
pub struct Availability {
    /// All PCI functions.
    pub functions: Arc<Functions>,
    /// The reasons why the host needs a function. The most telling guard of a function comes first.
    pub guards: BTreeMap<PciAddress, Vec<Guard>>,
    /// The functions whose guards the configuration overrides.
    unguarded: BTreeSet<PciAddress>,
    /// The root directory of the host's own files; `None` when they cannot be read, as on another machine.
    sysroot: Option<PathBuf>,
    /// The functions in domains that hotslot did not put there.
    pub foreign: BTreeMap<PciAddress, Foreign>,
    /// All mediated devices, including those that hotslot did not create.
    pub mdevs: Arc<Vec<Mdev>>,
    /// The disabled cards, by the addresses of their PFs or only functions.
    disabled: BTreeSet<PciAddress>,
    /// The PFs whose number of VFs is being changed.
    changing: BTreeSet<PciAddress>,
    /// The functions that an overdue call may still change.
    overdue: BTreeMap<PciAddress, OverdueCall>,
    /// The hooks of the host; none when they cannot be read.
    hooks: Hooks,
}

/// How host drivers count when the availability of a device is determined.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HostDrivers {
    /// The host drivers in the last scan make the other functions of their IOMMU groups unavailable.
    Blocks,
    /// Host drivers do not count: the preflight reads them later, or the whole group is unbound.
    DoNotBlock,
    /// No driver is unbound, because mediated devices are requested, which the device's host driver creates.
    Keep,
}

/// Finds the device at an address of a host.
pub type DevicesByAddress<'d> = &'d dyn Fn(PciAddress) -> Option<&'d Device>;

impl Catalog {
    /// Takes a snapshot of a host: its functions as of the last scan, its guards as they are now.
    ///
    /// # Errors
    /// [`Error::Internal`] when reading the guards panicked; errors of the database.
    pub async fn availability(&self, host: &Host) -> Result<Availability, Error> {
        self.availability_of(host, host.functions()).await
    }

    /// [`availability`](Self::availability) for functions as they were just read.
    ///
    /// # Errors
    /// As [`availability`](Self::availability).
    pub async fn availability_of(
        &self,
        host: &Host,
        functions: Arc<Functions>,
    ) -> Result<Availability, Error> {
        let (sysroot, config) = (host.hypervisor.sysroot().map(PathBuf::from), self.config.get());
        let guards = if let Some(root) = sysroot.clone() {
            let functions = Arc::clone(&functions);
            tokio::task::spawn_blocking(move || local::guards(functions.by_address(), Some(&root)))
                .await
                .map_err(|error| Error::Internal(format!("reading the guards failed: {error}")))?
        } else if host.hypervisor.is_remote() {
            let inventory = self.inventory();
            let named = functions.keys().copied().filter(|address| {
                inventory.names_address(*address) || config.pci.is_unguarded(&host.name, *address)
            });
            local::guards_of_remote(functions.by_address(), &named.collect())
        } else {
            // A simulated host without files has no guards except for bridges, which are never assignable.
            BTreeMap::new()
        };
        let unguarded = guards.keys().copied().filter(|at| config.pci.is_unguarded(&host.name, *at));
        let (foreign, mdevs) = (host.foreign(), host.mdevs());
        let changing = host.changing_vfs();
        let (unguarded, disabled) = (unguarded.collect(), self.store.disabled_cards(host.row.id).await?);
        let overdue = host.hypervisor.overdue().into_iter().rev();
        let overdue = overdue.filter_map(|call| Some((call.address?, call))).collect();
        Ok(Availability {
            functions,
            guards,
            unguarded,
            sysroot,
            foreign,
            mdevs,
            disabled,
            changing,
            overdue,
            hooks: host.hypervisor.hooks().unwrap_or_default(),
        })
    }
}

impl Availability {
    /// Returns why the host needs a function; `None` when it has no guard, or the configuration overrides its guards. A VF
    /// that is about to vanish counts as needed.
    pub fn guard(&self, address: PciAddress) -> Option<String> {
        if let Some(Role::Virtual { parent }) = self.functions.get(&address).map(|function| &function.role)
            && self.changing.contains(parent)
        {
            return Some(format!("the number of VFs of {parent} is being changed"));
        }
        if self.unguarded.contains(&address) {
            return None;
        }
        let guard = self.guards.get(&address)?.first()?;
        Some(format!("{}: {}", guard.kind, guard.reason))
    }

    /// Returns whether a function is guarded only because the guards of a remote host cannot be evaluated.
    fn may_be_needed(&self, address: PciAddress) -> bool {
        let guard = self.guards.get(&address).and_then(|guards| guards.first());
        guard.is_some_and(|guard| guard.kind == GuardKind::Unseen)
    }

    /// Returns whether guards can be evaluated, which needs the host's files.
    pub fn knows_guards(&self) -> bool {
        self.sysroot.is_some()
    }

    /// Returns which foreign domain has a function, its PF or one of its VFs; `None` when none has.
    fn of_others(&self, address: PciAddress) -> Option<String> {
        if let Some(foreign) = self.foreign.get(&address) {
            return Some(foreign.reason(address));
        }
        let relatives = match &self.functions.get(&address)?.role {
            Role::Plain => return None,
            Role::Physical { vfs, .. } => vfs.as_slice(),
            Role::Virtual { parent } => std::slice::from_ref(parent),
        };
        let (relative, foreign) =
            relatives.iter().find_map(|relative| Some((*relative, self.foreign.get(relative)?)))?;
        Some(format!("{address} depends on {relative}: {}", foreign.reason(relative)))
    }

    /// Returns the VFs of a function.
    fn vfs(&self, address: PciAddress) -> &[PciAddress] {
        match self.functions.get(&address).map(|found| &found.role) {
            Some(Role::Physical { vfs, .. }) => vfs,
            Some(Role::Plain | Role::Virtual { .. }) | None => &[],
        }
    }

    /// Returns why a function cannot be assigned as a whole: it or one of its VFs has mediated devices.
    fn in_parts(&self, address: PciAddress) -> Option<String> {
        let vfs = self.vfs(address);
        let of_it = |parent: PciAddress| parent == address || vfs.contains(&parent);
        let mut parts = self.mdevs.iter().filter(|mdev| mdev.parent.is_some_and(of_it));
        let (first, more) = (parts.next()?, parts.count());
        let more = if more == 0 { String::new() } else { format!(" and {more} more") };
        Some(format!(
            "{address} has mediated device {}{more}, which would end with its driver; remove it first: detach its \
             accelerator, or, if hotslot did not create it, virsh nodedev-destroy {}",
            first.uuid, first.name
        ))
    }

    /// Returns which use of a function would end with its driver: by another domain, or by a mediated device.
    pub fn why_keep_driver(&self, address: PciAddress) -> Option<String> {
        self.of_others(address).or_else(|| self.in_parts(address))
    }

    /// Returns why the driver of a device makes it impossible to assign: it is unmanaged and not bound to VFIO, or it is
    /// managed and would be taken from the manager of virtual GPUs. Returns `None` when it can be assigned, and when the
    /// driver's name does not tell.
    pub fn unbound(&self, device: &Device) -> Option<String> {
        let address = device.facts.address;
        let function = self.functions.get(&address)?;
        if is_managed(&device.facts) {
            return function.why_not_managed();
        }
        (function.vfio() == OnVfio::No).then(|| {
            // Never advise to unbind a function that the host needs, even when its guard is overridden.
            let cure = match self.guards.get(&address).and_then(|guards| guards.first()) {
                None => function.how_to_bind(),
                Some(guard) => {
                    format!("take another device, for the host needs it ({}: {})", guard.kind, guard.reason)
                }
            };
            format!(
                "its device_spec says that libvirt does not bind it ({}), and {address} is not bound to VFIO; {cure}",
                r#""managed": "false""#
            )
        })
    }

    /// Returns why a function cannot be assigned because of another member of its IOMMU group; `None` when it can.
    /// `server` is the server that is to get the function, `None` for a binding.
    pub fn why_group_is_blocked(
        &self,
        address: PciAddress,
        devices: DevicesByAddress<'_>,
        server: Option<ServerId>,
        drivers: HostDrivers,
    ) -> Option<String> {
        let group = self.functions.get(&address)?.iommu_group.as_ref()?;
        let siblings = group.members.iter().filter(|member| **member != address);
        siblings.filter_map(|member| Some((member, self.functions.get(member)?))).find_map(|(member, sibling)| {
            let number = group.number;
            let with_it = server.map_or(Owner::Host, Owner::Server);
            if let Some(owner) = devices(*member).and_then(|row| row.owner).filter(|owner| *owner != with_it) {
                return Some(format!(
                    "IOMMU group {number} of {address} is not viable: its member {member} is held by {owner}; detach \
                     it there"
                ));
            }
            if let Some(foreign) = self.foreign.get(member).filter(|foreign| foreign.live)
                && Some(foreign.server) != server
            {
                return Some(format!(
                    "IOMMU group {number} of {address} is not viable: its member {member} is in domain {}",
                    foreign.domain
                ));
            }
            let driver = sibling.driver.as_deref().filter(|_| sibling.blocks_its_group())?;
            // Never advise to unbind a function that the host needs, even when its guard is overridden.
            if let Some(guard) = self.guards.get(member).and_then(|guards| guards.first()) {
                return Some(format!(
                    "IOMMU group {number} of {address} is not viable: its member {member} is bound to the host \
                     driver {driver}, and the host needs it ({}: {}); take another device",
                    guard.kind, guard.reason
                ));
            }
            if drivers == HostDrivers::DoNotBlock {
                return None;
            }
            let listed = |member: &PciAddress| {
                let free = |row: &&Device| row.owner.is_none() && row.gone_at.is_none();
                let given = devices(*member).as_ref().is_some_and(free) && !self.foreign.contains_key(member);
                *member == address
                    || given
                    || self.functions.get(member).is_some_and(|function| function.bridge)
            };
            let whole = if group.members.iter().all(listed) { "request the whole group, or " } else { "" };
            Some(format!(
                "IOMMU group {number} of {address} is not viable: its member {member} is bound to the host driver \
                 {driver}; {whole}unbind it first (virsh nodedev-detach {})",
                sibling.address.node_name()
            ))
        })
    }

    /// Returns the devices of a host that are unavailable, each with the reason. `server` is the server that is to get
    /// a device, `None` for a binding or for mediated devices.
    pub fn unavailable(
        &self,
        devices: &[Arc<Device>],
        server: Option<ServerId>,
        drivers: HostDrivers,
    ) -> HashMap<DeviceId, String> {
        let rows: HashMap<PciAddress, &Device> =
            devices.iter().map(|device| (device.facts.address, &**device)).collect();
        let at = |address| rows.get(&address).copied();
        let reason = |device| self.why_unavailable(device, &at, server, drivers);
        devices.iter().filter_map(|device| Some((device.id, reason(device)?))).collect()
    }

    /// Returns why a device is unavailable; `None` when it is available. `devices` finds the other devices of the host.
    pub fn why_unavailable(
        &self,
        device: &Device,
        devices: DevicesByAddress<'_>,
        server: Option<ServerId>,
        drivers: HostDrivers,
    ) -> Option<String> {
        let address = device.facts.address;
        let reason = self
            .unavailable_itself(device)
            .or_else(|| self.with_what_waits(device, devices))
            .or_else(|| self.under_call(address))
            .or_else(|| self.guarded(address, drivers))
            .or_else(|| self.of_others(address));
        if drivers == HostDrivers::Keep {
            return reason;
        }
        // Its driver comes after every use that would end with the driver.
        let is_held = |vf: &&PciAddress| devices(**vf).is_some_and(|vf| vf.owner.is_some());
        let bound = || {
            let unbound = self.unbound(device).filter(|_| drivers == HostDrivers::Blocks)?;
            let held = self.vfs(address).iter().find(is_held);
            Some(held.map_or(unbound, |vf| format!("its VF {vf} is in use")))
        };
        let group = || self.why_group_is_blocked(address, devices, server, drivers);
        reason.or_else(|| self.in_parts(address)).or_else(bound).or_else(group)
    }

    /// Whether a device may be assigned only together with other members of its IOMMU group, which are bound to host
    /// drivers.
    pub fn needs_others(&self, address: PciAddress) -> bool {
        let Some(group) = self.functions.get(&address).and_then(|found| found.iommu_group.as_ref()) else {
            return false;
        };
        let busy = |member| self.functions.get(member).is_some_and(HostDevice::may_block_its_group);
        group.members.iter().any(|member| *member != address && busy(member))
    }

    /// Whether the PF of a VF or a VF of a PF has an owner.
    pub fn has_relative_in_use(&self, device: &Device, devices: DevicesByAddress<'_>) -> bool {
        let is_held = |address| devices(address).is_some_and(|relative| relative.owner.is_some());
        let vfs = self.vfs(device.facts.address);
        device.facts.parent_addr.is_some_and(is_held) || vfs.iter().copied().any(is_held)
    }

    /// Returns why a VF is unavailable because its PF was not erased yet, or a PF because of one of its VFs: what is to be
    /// erased can be reached through either.
    fn with_what_waits(&self, device: &Device, devices: DevicesByAddress<'_>) -> Option<String> {
        let address = device.facts.address;
        let kept = |relative: PciAddress| {
            let row = devices(relative)?;
            let is_scrubbed = || {
                let class = self.functions.get(&relative).and_then(|function| function.class);
                is_scrubbed(wants_scrub(&row.facts), class, Some(&self.hooks))
            };
            let how = match row.scrub {
                true => "waits for its scrub",
                false if row.quarantine.is_some() && is_scrubbed() => "was not scrubbed",
                false => return None,
            };
            Some(format!("{relative} {how} (`hotslot pci show {relative}`), and {address} belongs to it"))
        };
        device.facts.parent_addr.iter().chain(self.vfs(address)).find_map(|relative| kept(*relative))
    }

    /// Returns why a device is unavailable to everybody, as far as the device itself is the reason.
    fn unavailable_itself(&self, device: &Device) -> Option<String> {
        let (address, card) = (device.facts.address, card_of(&device.facts));
        if device.gone_at.is_some() {
            return Some(match (self.functions.contains_key(&address), device.owner) {
                (true, Some(_)) => format!(
                    "no device_spec lists {address} any more; it stays with its server until it is detached"
                ),
                (true, None) => format!(
                    "it was used and is not cleaned yet, and another device is at {address} now, or no device_spec lists \
                     it; `hotslot pci cleaned {address}` forgets it"
                ),
                (false, _) => format!("{address} is gone from the host"),
            });
        }
        if let Some(reason) = &device.quarantine {
            return Some(format!(
                "{address} is in quarantine: {reason}; check it, then `hotslot pci cleaned {address}`"
            ));
        }
        if device.scrub {
            return Some(format!("{address} was used and waits for its scrub, which hotslot runs"));
        }
        if device.used_at.is_some() {
            return Some(format!(
                "{address} is for one use (one_time_use) and was used; clean it, then `hotslot pci cleaned`"
            ));
        }
        let carries_vdpa = |address| self.functions.get(&address).is_some_and(|found| !found.vdpa.is_empty());
        if device.facts.dev_type == DevType::Vdpa || carries_vdpa(address) {
            // A domain that uses its vDPA device has to release it before the vDPA device can be removed.
            return self.of_others(address).or_else(|| Some(VDPA.to_owned()));
        }
        if let Some(vf) = self.vfs(address).iter().copied().find(|vf| carries_vdpa(*vf)) {
            let of_guest = self.of_others(address);
            return of_guest
                .or_else(|| Some(format!("its VF {vf} would disappear with its driver, and {VDPA}")));
        }
        if !self.functions.contains_key(&address) {
            return Some(format!("{address} was not found on the host when it was last read"));
        }
        self.disabled
            .contains(&card)
            .then(|| format!("the card {card} is disabled; POST accelerator/v2/devices/<its uuid>/enable"))
    }

    /// Returns the overdue call that makes a device unavailable.
    fn under_call(&self, address: PciAddress) -> Option<String> {
        let call = self.overdue.get(&address)?;
        Some(format!("{call}; {address} is unavailable until that call returns"))
    }

    /// Returns why a guard makes a device unavailable.
    fn guarded(&self, address: PciAddress, drivers: HostDrivers) -> Option<String> {
        let guard = self.guard(address)?;
        let unseen = self.may_be_needed(address);
        // A mediated device, such as a vGPU, leaves the function bound to its host driver.
        if unseen && drivers == HostDrivers::Keep {
            return None;
        }
        let needs = if unseen { "may need" } else { "needs" };
        Some(format!("the host {needs} {address}: {guard}"))
    }

    /// Collects the facts about a device that a preflight checks, from the host and from the device's record.
    pub fn facts(&self, device: HostDevice, row: &Device) -> hotplug::Facts {
        self.facts_of(device, is_managed(&row.facts))
    }

    /// Collects the facts about a function. `managed` is whether libvirt may change its driver.
    pub fn facts_of(&self, device: HostDevice, managed: bool) -> hotplug::Facts {
        let (root, address) = (self.sysroot.as_deref(), device.address);
        let memory = |bar: &local::Bar| bar.kind == BarKind::Memory && bar.index < local::Bar::ROM;
        let bars = local::bars(root, address).map(|bars| {
            let bars = bars.iter().filter(|bar| memory(bar));
            bars.map(|bar| hotplug::Bar { size: bar.size, prefetchable64: bar.prefetchable && bar.is_64bit })
                .collect()
        });
        let reset = local::reset_methods(root, address);
        let guard =
            self.guards.get(&address).and_then(|guards| guards.first()).map(|guard| hotplug::Guarded {
                reason: format!("{}: {}", guard.kind, guard.reason),
                overridden: self.unguarded.contains(&address),
            });
        let drain = self.hooks.step(When::Drain, device.class).filter(|_| device.may_block_its_group());
        let drain = drain.map(|step| step.name().to_owned());
        hotplug::Facts { device, guard, managed, reset, bars, open_nodes: None, drain }
    }

    /// Adds to the facts which processes of the host have device nodes of the functions open.
    ///
    /// # Errors
    /// [`Error::Internal`] when reading them panicked.
    pub async fn add_open_nodes(&self, facts: &mut [hotplug::Facts]) -> Result<(), Error> {
        let devices: Vec<_> = facts.iter().map(|facts| facts.device.clone()).collect();
        let mut found = open_nodes(self.sysroot.clone(), devices).await?;
        for facts in facts {
            facts.open_nodes = found.remove(&facts.device.address);
        }
        Ok(())
    }
}

/// Finds the processes of a host that have device nodes of functions open. The map is empty when the host's files cannot
/// be read.
///
/// # Errors
/// [`Error::Internal`] when reading them panicked.
pub(crate) async fn open_nodes(
    sysroot: Option<PathBuf>,
    devices: Vec<HostDevice>,
) -> Result<BTreeMap<PciAddress, OpenNodes>, Error> {
    let Some(root) = sysroot else { return Ok(BTreeMap::new()) };
    let reading = tokio::task::spawn_blocking(move || local::open_nodes(&root, &devices));
    reading.await.map_err(|error| Error::Internal(format!("reading the open device nodes failed: {error}")))
}
