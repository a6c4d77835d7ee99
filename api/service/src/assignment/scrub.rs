//! Scrubs: what one owner of a device has left is erased before the next one may have it.
//!
//! That a device waits for its scrub is recorded in the transaction in which its assignment ends. So a service that was
//! killed at any moment scrubs it after its restart. A scrub that has begun may run a second time; none is taken for
//! done that did not say so.

use std::sync::Arc;
use std::time::Duration;

use hotslot_driver::device::{HostDevice, Role};
use hotslot_driver::hook::{Hooks, When};
use hotslot_driver::hypervisor::ErrorKind;
use hotslot_driver::pci::{PciAddress, PciClass};
use hotslot_model::assignment::Assignment;
use hotslot_model::device::{AfterUse, Device, is_managed, is_scrubbed, parent, wants_scrub};
use hotslot_model::host_mode::HostChange;
use hotslot_model::id::DeviceId;
use hotslot_model::rules::identity;
use hotslot_store::actor::{self, system};
use tokio::time::Instant;

use super::assignments::Assignments;
use crate::error::Error;
use crate::host::Host;
use crate::locks::KeyedGuard;

/// How much longer than the limit of a hook its end is waited for: the time in which the host is made ready for it, and the
/// kernel kills its processes.
pub(super) const GRACE: Duration = Duration::from_secs(60);

/// How long a function may take to have its host driver again, and how often it is looked. The built-in scrub needs that
/// driver; another one may not, and VFIO may be where the administrator keeps the function.
const DRIVER_PATIENCE: Duration = Duration::from_secs(30);
const OTHER_PATIENCE: Duration = Duration::from_secs(5);
const LOOK: Duration = Duration::from_millis(250);

/// The pause before a scrub is tried again of which the outcome is not known.
const AGAIN: Duration = Duration::from_secs(5);

/// The pause before a scrub is tried again while an earlier one runs, which an earlier service may have begun.
const BUSY: Duration = Duration::from_secs(2);

impl Assignments {
    /// Returns what becomes of a device after an assignment in which it was used.
    pub(super) fn after_use(&self, row: &Assignment, device: &Device) -> AfterUse {
        match row {
            // The driver of the PF keeps the guests of virtual GPUs apart.
            Assignment::Attachment(row) if row.vgpu.is_some() && self.wants_scrub(device) != Some(true) => {
                AfterUse::Offered
            }
            Assignment::Attachment(row) => self.after_use_by(device, row.before.class, true),
            Assignment::Binding(_) => self.after_use_by(device, None, false),
            // The driver of the parent keeps the guests of mediated devices apart.
            Assignment::Mdev(_) => AfterUse::Offered,
        }
    }

    /// Returns what becomes of a device that was used. `before` is its class as it was then, and `by_guest` says whether a
    /// guest may have had it: what nobody is known to have given to a guest is erased only when the administrator has
    /// written that, or asks for it.
    pub(super) fn after_use_by(&self, device: &Device, before: Option<PciClass>, by_guest: bool) -> AfterUse {
        let address = device.facts.address;
        let host = self.hosts.host(device.hypervisor);
        // A device may have had another class for its last owner than it says to have now.
        let classes = [host.and_then(|host| host.functions().get(&address)?.class), before];
        let hooks = host.map_or_else(|| Ok(Hooks::default()), |host| host.hypervisor.hooks());
        let wants = self.wants_scrub(device);
        if !classes.iter().any(|class| is_scrubbed(wants, *class, hooks.as_ref().ok())) {
            return AfterUse::Offered;
        }
        let has_hook = |hooks: Hooks| {
            let mut steps = classes.iter().filter_map(|class| hooks.step(When::Scrub, *class));
            steps.any(|step| step.is_configured())
        };
        let is_configured = wants.is_some() || hooks.is_ok_and(has_hook);
        if by_guest || is_configured {
            return AfterUse::Scrub;
        }
        AfterUse::Quarantine(format!(
            "it was used, but is not known to have been in a guest, and its data is erased only when that is asked for: \
             `hotslot pci scrub {address}`"
        ))
    }

    /// Returns whether the rules say that a device is scrubbed; `None` when they say nothing. A device in use keeps what they
    /// said when it was given away. When they say something else now, the one that has it erased counts.
    fn wants_scrub(&self, device: &Device) -> Option<bool> {
        let functions = self.hosts.host(device.hypervisor).map(|host| host.functions()).unwrap_or_default();
        let function = functions.get(&device.facts.address);
        let now = function.and_then(|now| self.catalog.inventory().facts(now, parent(&functions, now)));
        let then = wants_scrub(&device.facts);
        match now.map(|now| wants_scrub(&now)) {
            Some(now) if now != then => [now, then].contains(&Some(true)).then_some(true),
            Some(_) | None => then,
        }
    }

    /// Starts to scrub the devices of a host that wait for it, each in a task of its own.
    pub(super) fn scrub_what_waits(self: &Arc<Self>, host: &Arc<Host>) {
        let devices = self.store.devices_of(host.row.id).into_iter();
        for device in devices.filter(|device| device.can_be_scrubbed()) {
            let (service, host) = (Arc::clone(self), Arc::clone(host));
            let work = async move {
                let address = device.facts.address;
                match service.scrub_one(&host, device.id, address).await {
                    Ok(()) => return,
                    // Everything is compared when the connection is back, and that starts this again.
                    Err(Error::HostAway { .. }) => return,
                    Err(error) => tracing::error!(
                        host = %host.name, pci.address = %address, %error,
                        "{address} is not scrubbed yet; it will be tried again"
                    ),
                }
                tokio::time::sleep(AGAIN).await;
                host.queue_rebind();
            };
            drop(actor::spawn_as_current(actor::scope(system::SCRUB, work)));
        }
    }

    /// Waits for the turn to scrub a device or to say that it is clean; `None` when it is being scrubbed.
    async fn scrub_turn(&self, device: &Device) -> Result<Option<KeyedGuard>, Error> {
        self.turns.try_of(format!("scrub of device {}", device.uuid)).await
    }

    /// Scrubs one device, and records the outcome.
    ///
    /// # Errors
    /// Why it still waits: errors of the hypervisor after which the outcome is not known, and of the database.
    async fn scrub_one(&self, host: &Host, id: DeviceId, address: PciAddress) -> Result<(), Error> {
        let Some(device) = self.store.device(id) else { return Ok(()) };
        let Some(_turn) = self.scrub_turn(&device).await? else { return Ok(()) };
        let begun = Instant::now();
        loop {
            self.store.refresh().await?;
            let device = self.store.device(id).filter(|device| device.can_be_scrubbed());
            let Some(device) = device else { return Ok(()) };
            match self.hosts.expect_open(host, HostChange::Other).await {
                Err(Error::Restricted { .. }) => return Ok(()),
                open => open?,
            }
            // The return of that call is an event.
            if host.overdue_call_at(address).is_some() {
                return Ok(());
            }
            let function = match host.hypervisor.device(address).await {
                Err(error) if error.kind == ErrorKind::NoDevice => return Ok(()),
                function => function.map_err(host.error(format!("read {address}")))?,
            };
            if self.wants_scrub(&device) == Some(false) {
                return Ok(self.store.scrubbed(id, device.used_at).await?);
            }
            if self.is_held(host, &function) {
                return Ok(());
            }
            let serial = host.functions().get(&address).and_then(|known| known.serial.clone());
            if !identity::is_still(&device.facts, &function)
                || identity::has_another_serial(&device.facts, serial.as_deref())
            {
                let why = "another device is at its address now, and nothing of that is erased";
                return self.not_scrubbed(host, &device, why).await;
            }
            let hooks = match host.hypervisor.hooks() {
                Ok(hooks) => hooks,
                Err(error) => return self.not_scrubbed(host, &device, &error.to_string()).await,
            };
            let Some(step) = hooks.step(When::Scrub, function.class) else {
                let class = function.class.map_or("unknown", PciClass::description);
                let why = format!(
                    "hotslot has no way to erase it; write a scrub hook for class `{class}` on the host"
                );
                return self.not_scrubbed(host, &device, &why).await;
            };
            // It has no driver for a moment while libvirt changes it.
            let is_unbound = step.needs_driver() && function.driver.is_none();
            if is_managed(&device.facts) && (function.is_on_vfio() || is_unbound) {
                // It is bound to its host driver when no guest has any function of its group.
                if self.group_is_held(host, &function) {
                    return Ok(());
                }
                let patience = if step.needs_driver() { DRIVER_PATIENCE } else { OTHER_PATIENCE };
                if begun.elapsed() < patience {
                    tokio::time::sleep(LOOK).await;
                    continue;
                }
            }
            tracing::info!(host = %host.name, pci.address = %address, "scrubbing {address}: {}", step.name());
            match host.hypervisor.run_hook(address, When::Scrub, step.limit() + GRACE).await {
                Ok(()) => {
                    tracing::info!(host = %host.name, pci.address = %address, "{address} was scrubbed");
                    self.store.scrubbed(id, device.used_at).await?;
                    host.queue_device_scan(address);
                    return Ok(());
                }
                Err(error) if error.kind == ErrorKind::InUse => tokio::time::sleep(BUSY).await,
                Err(error) if error.kind == ErrorKind::NoDevice => return Ok(()),
                Err(error) if error.kind.leaves_it_open() => {
                    return Err(host.error(format!("scrubbing {address}"))(error));
                }
                Err(error) => return self.not_scrubbed(host, &device, &error.message).await,
            }
        }
    }

    /// Whether a guest has a function, which another tool may have given to it, or a server has a VF of it.
    fn is_held(&self, host: &Host, function: &HostDevice) -> bool {
        let in_guests = host.in_guests();
        let vfs = if let Role::Physical { vfs, .. } = &function.role { vfs.as_slice() } else { &[] };
        in_guests.contains(&function.address)
            || vfs.iter().any(|vf| in_guests.contains(vf))
            || self.store.with_devices_of(host.row.id, |devices| {
                vfs.iter().any(|vf| devices.at(*vf).is_some_and(|row| row.owner.is_some()))
            })
    }

    /// Whether a server has another function of the IOMMU group of a function.
    fn group_is_held(&self, host: &Host, function: &HostDevice) -> bool {
        let Some(group) = &function.iommu_group else { return false };
        let others = || group.members.iter().filter(|member| **member != function.address);
        let in_guests = host.in_guests();
        others().any(|member| in_guests.contains(member))
            || self.store.with_devices_of(host.row.id, |devices| {
                others().any(|member| devices.at(*member).is_some_and(|row| row.owner.is_some()))
            })
    }

    /// Quarantines a device that could not be scrubbed.
    async fn not_scrubbed(&self, host: &Host, device: &Device, why: &str) -> Result<(), Error> {
        let address = device.facts.address;
        tracing::error!(host = %host.name, pci.address = %address, "{address} was not scrubbed: {why}");
        let reason =
            format!("it was not scrubbed after its use: {why}; `hotslot pci scrub {address}` tries it again");
        Ok(self.store.not_scrubbed(device.id, &reason).await?)
    }

    /// Records that a device for one use was cleaned, or that one in quarantine works, so that it is assignable again, once
    /// it was scrubbed if that is due.
    ///
    /// # Errors
    /// [`Error::Conflict`] when it is in use or being scrubbed, or does not need cleaning; the database's.
    pub async fn cleaned(&self, device: &Device) -> Result<(), Error> {
        let Some(turn) = self.scrub_turn(device).await? else { return Err(is_being_scrubbed(device)) };
        self.store.cleaned(device.id).await?;
        drop(turn);
        if let Some(host) = self.hosts.host(device.hypervisor) {
            // Another device may be at the address of one that was gone.
            host.queue_device_scan(device.facts.address);
            host.queue_rebind();
        }
        Ok(())
    }

    /// Has a device scrubbed that waits to be cleaned or is in quarantine. The scrub goes on in the background.
    ///
    /// # Errors
    /// [`Error::Conflict`] when it is in use or being scrubbed, or does not need cleaning; [`Error::Restricted`]; the
    /// database's.
    pub async fn scrub(&self, device: &Device) -> Result<(), Error> {
        let host = self.hosts.host(device.hypervisor);
        if let Some(host) = host {
            self.hosts.expect_open(host, HostChange::Other).await?;
        }
        let Some(turn) = self.scrub_turn(device).await? else { return Err(is_being_scrubbed(device)) };
        self.store.scrub(device.id).await?;
        drop(turn);
        if let Some(host) = host {
            host.queue_rebind();
        }
        Ok(())
    }
}

fn is_being_scrubbed(device: &Device) -> Error {
    let address = device.facts.address;
    Error::Conflict(format!("{address} is being scrubbed now; wait until that has ended"))
}
