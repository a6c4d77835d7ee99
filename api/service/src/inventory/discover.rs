//! Discovery: updates the device table from the devices that a host has.
//!
//! All devices are read at start, after a reconnect and at the configured interval; in between, events name the devices
//! to read again. The table is only consulted for devices that changed since they were last read.

use std::collections::BTreeSet;
use std::sync::Arc;

use hotslot_driver::device::{HostDevice, Role};
use hotslot_driver::hypervisor::ErrorKind;
use hotslot_driver::pci::PciAddress;
use hotslot_model::device::{DeviceFacts, Functions, parent};
use hotslot_model::rules;
use hotslot_model::rules::{Inventory, identity};
use hotslot_model::scan::{ScanOutcome, ScanScope};
use hotslot_model::texts::Interner;

use super::catalog::Catalog;
use crate::error::Error;
use crate::host::Host;

/// How long after the unrequested end of an attachment its device counts as lost when it disappears from the host, in
/// milliseconds.
const LOST: i64 = 10_000;

/// How many addresses a line of the log names.
const NAMED: usize = 20;

impl Catalog {
    /// Reads what a host has now, everything or at some addresses, and records nothing. If that is not what was read
    /// last, the host is read again and recorded in the background.
    ///
    /// # Errors
    /// [`Error::HostAway`] and what the hypervisor answers.
    pub async fn read_now(
        &self,
        host: &Host,
        addresses: Option<BTreeSet<PciAddress>>,
    ) -> Result<Arc<Functions>, Error> {
        let before = host.functions();
        let (now, at) = read(host, &before, addresses.as_ref()).await?;
        changed(&before, &now, at.as_ref()).into_iter().for_each(|address| host.queue_device_scan(address));
        Ok(now)
    }

    /// Reads the devices of a host, all or those at the addresses `looked`, and updates the table.
    ///
    /// # Errors
    /// [`Error::HostAway`]; other errors of the hypervisor and of the database. Then the table is unchanged.
    pub async fn discover(
        &self,
        host: &Host,
        looked: Option<BTreeSet<PciAddress>>,
    ) -> Result<ScanOutcome, Error> {
        let mut recorded_by = host.recorded_by.lock().await;
        let inventory = self.inventory();
        let before = host.functions();
        let (now, at) = read(host, &before, looked.as_ref()).await?;
        let named = looked.unwrap_or_default();
        let (on_host, conflicts) = inventory.on(&now);
        self.note_lost(host, &before, &now).await?;
        // If the table is not updated completely, because of an error or of devices in use, the next scan compares all
        // devices.
        let by = recorded_by.take();
        host.set_functions(Arc::clone(&now));
        let known = by.as_ref().map(|(_, conflicts)| conflicts);
        for (id, error) in
            conflicts.iter().filter(|(id, _)| known.is_none_or(|known| !known.contains_key(id)))
        {
            let place = self.rules().name_of(*id);
            tracing::error!(host = %host.name, "{place}: {error}; correct the entry, which is left out on this host");
        }
        let by_these =
            by.is_some_and(|(rules, left_out)| Arc::ptr_eq(&rules, &inventory) && left_out == conflicts);
        let outcome = if !by_these {
            // The rules changed, or this is the first scan: compare the unchanged devices as well.
            let seen = shared(now.values().filter_map(|device| facts(&on_host, &now, device)));
            self.store.scan(host.row.id, ScanScope::Everywhere, seen).await?
        } else {
            let mut changed = changed(&before, &now, at.as_ref());
            // Compare the requested addresses in any case, because the table may be outdated.
            changed.extend(named);
            let seen = shared(changed.iter().filter_map(|address| facts(&on_host, &now, now.get(address)?)));
            if changed.is_empty() {
                ScanOutcome::default()
            } else {
                self.store.scan(host.row.id, ScanScope::At(&changed), seen).await?
            }
        };
        tracing::debug!(host = %host.name, ?outcome, functions = now.len(), "scanned");
        if !outcome.gone_in_use.is_empty() {
            let count = outcome.gone_in_use.len();
            let mut named: Vec<_> =
                outcome.gone_in_use.iter().take(NAMED).map(PciAddress::to_string).collect();
            named.extend((count > NAMED).then(|| "…".to_owned()));
            tracing::warn!(
                host = %host.name, count,
                "devices in use are gone from the host or from device_spec; they stay with their servers: {}",
                named.join(", ")
            );
        }
        let complete = outcome.gone_in_use.is_empty() && outcome.changed_in_use == 0;
        *recorded_by = complete.then_some((inventory, conflicts));
        Ok(outcome)
    }
}

impl Catalog {
    /// Quarantines the devices that have disappeared from the host while they were attached to a running guest, or right
    /// after one had lost them although nobody had requested that: the device was pulled out, or has died. A VF whose PF
    /// is there was removed with the others.
    async fn note_lost(&self, host: &Host, before: &Functions, now: &Functions) -> Result<(), Error> {
        let parent = |address: &PciAddress| match before.get(address).map(|function| &function.role) {
            Some(Role::Virtual { parent }) => Some(*parent),
            Some(Role::Plain | Role::Physical { .. }) | None => None,
        };
        let vanished = before.keys().filter(|address| now.get(address).is_none());
        let alone =
            vanished.filter(|address| parent(address).is_none_or(|parent| now.get(&parent).is_none()));
        let alone: BTreeSet<_> = alone.copied().collect();
        if alone.is_empty() {
            return Ok(());
        }
        let rows = self.store.devices_of(host.row.id).into_iter();
        for device in rows.filter(|row| alone.contains(&row.facts.address) && row.quarantine.is_none()) {
            let address = device.facts.address;
            let had = match device.server() {
                // What was seen in the guest last may be older than the attach.
                Some(server) => host.server(server).await?.and_then(|view| view.live).map(|_| server),
                None => self.store.lost_by(device.id, hotslot_store::now() - LOST).await?,
            };
            let Some(server) = had else { continue };
            let reason = format!("it disappeared from the host while server {server} had it");
            tracing::error!(host = %host.name, pci.address = %address, "{address} is quarantined: {reason}");
            self.store.quarantine(device.id, &reason).await?;
        }
        Ok(())
    }
}

fn facts(inventory: &Inventory, functions: &Functions, device: &HostDevice) -> Option<DeviceFacts> {
    let mut facts = inventory.facts(device, parent(functions, device))?;
    let slot = identity::slot_path(functions, device);
    if let Some(path) = slot {
        facts.extra_info = facts.extra_info.with(rules::SLOT_PATH, &path);
    }
    Some(facts)
}

/// Collects the facts of devices, with one shared copy of equal `extra_info`.
fn shared(facts: impl Iterator<Item = DeviceFacts>) -> Vec<DeviceFacts> {
    let mut sharing = Interner::default();
    facts.map(|facts| DeviceFacts { extra_info: sharing.share(facts.extra_info), ..facts }).collect()
}

/// Reads the functions of a host, all or those at some addresses. Also returns the addresses at which they were read,
/// or `None` for all.
async fn read(
    host: &Host,
    before: &Arc<Functions>,
    addresses: Option<&BTreeSet<PciAddress>>,
) -> Result<(Arc<Functions>, Option<BTreeSet<PciAddress>>), Error> {
    match addresses {
        None => Ok((everything(host, before).await?, None)),
        Some(addresses) => {
            let (now, at) = at(host, before, addresses).await?;
            Ok((Arc::new(now), Some(at)))
        }
    }
}

/// Reads all functions of a host. Returns `before` itself when nothing changed.
async fn everything(host: &Host, before: &Arc<Functions>) -> Result<Arc<Functions>, Error> {
    let mut devices = host.hypervisor.devices().await.map_err(host.error("list the host's devices"))?;
    let mut same = devices.len() == before.len();
    for device in &mut devices {
        let known = before.get(&device.address);
        // A NIC has no interface on the host while a guest has it. Keep the name that it had before and will have
        // again.
        if let Some(known) = known
            && device.net.is_empty()
            && device.is_on_vfio()
        {
            device.net.clone_from(&known.net);
            device.serial = device.serial.take().or_else(|| known.serial.clone());
        }
        same &= known == Some(&*device);
    }
    if same {
        return Ok(Arc::clone(before));
    }
    Ok(Arc::new(devices.into_iter().collect()))
}

/// Returns `before` with some functions read again, and also those related to them: the PF of a VF, and the members of
/// the IOMMU group. Also returns the addresses at which they were read.
async fn at(
    host: &Host,
    before: &Functions,
    named: &BTreeSet<PciAddress>,
) -> Result<(Functions, BTreeSet<PciAddress>), Error> {
    let mut now = before.clone();
    let mut wanted: BTreeSet<_> = named.clone();
    for address in named {
        // A PF lists its VFs and a group its members, so those change with the function.
        wanted.extend(before.get(address).map(relatives).unwrap_or_default());
    }
    let mut read = BTreeSet::new();
    while let Some(address) = wanted.pop_first() {
        read.insert(address);
        match host.hypervisor.device(address).await {
            Ok(mut device) => {
                // Reading a single function does not return its network interfaces and disks.
                if let Some(known) = before.get(&address) {
                    (device.net, device.block) = (known.net.clone(), known.block.clone());
                    // A vDPA device exists as long as the driver that created it is bound.
                    if device.driver == known.driver {
                        device.vdpa.clone_from(&known.vdpa);
                    }
                    device.serial = device.serial.or_else(|| known.serial.clone());
                } else {
                    wanted.extend(relatives(&device).into_iter().filter(|relative| !read.contains(relative)));
                }
                now.insert(device);
            }
            Err(error) if error.kind == ErrorKind::NoDevice => now.remove(&address),
            Err(error) => return Err(host.error(format!("read device {address}"))(error)),
        }
    }
    Ok((now, read))
}

fn relatives(device: &HostDevice) -> Vec<PciAddress> {
    let mut relatives = device.iommu_group.as_ref().map(|group| group.members.clone()).unwrap_or_default();
    if let Role::Virtual { parent } = device.role {
        relatives.push(parent);
    }
    relatives
}

/// Returns the addresses of the functions that appeared, disappeared or changed, of all or of those that were read `at`
/// some addresses. When the interfaces of a PF changed, its VFs count as changed, because rules match a VF by its PF's
/// interface.
fn changed(
    before: &Arc<Functions>,
    now: &Arc<Functions>,
    at: Option<&BTreeSet<PciAddress>>,
) -> BTreeSet<PciAddress> {
    if Arc::ptr_eq(before, now) {
        return BTreeSet::new();
    }
    let addresses: Box<dyn Iterator<Item = &PciAddress>> = match at {
        Some(addresses) => Box::new(addresses.iter()),
        None => Box::new(before.keys().chain(now.keys())),
    };
    let mut changed = BTreeSet::new();
    for address in addresses {
        let was = before.get(address);
        let Some(device) = now.get(address) else {
            changed.extend(was.map(|_| *address));
            continue;
        };
        if was == Some(device) {
            continue;
        }
        changed.insert(*address);
        if was.is_none_or(|was| was.net != device.net)
            && let Role::Physical { vfs, .. } = &device.role
        {
            changed.extend(vfs.iter().copied());
        }
    }
    changed
}
