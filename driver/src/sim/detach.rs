//! Detach: a live detach only requests the unplug, and the guest releases the device later.
//!
//! ```text
//! requested ──unplug_ms──▶ gone: DeviceRemoved, the host driver is rebound
//!   │  ├─ refuses ───────▶ still there: DeviceRemovalFailed
//!   │  ├─ paused ────────▶ the guest answers after it is resumed
//!   │  └─ ignores ───────▶ pending until the guest reboots; after five seconds the unplug can be requested again
//!   └─ booting ──────────▶ the request is lost
//! ```

use std::time::Duration;

use tokio::time::Instant;
use uuid::Uuid;

use crate::hypervisor::{DetachScope, DomainState, Event};
use crate::pci::PciAddress;

use super::config::Unplug;
use super::host::{Domain, Host, Pending};
use super::plug::Source;
use super::refusal::{self, Refusal};

/// QEMU refuses another request for a device until this time has passed for the guest, which a paused guest does not
/// notice (`pending_deleted_expires_ms` of hw/pci/pcie.c).
const EXPIRES: Duration = Duration::from_secs(5);

impl Host {
    /// Removes a device from the definition, or requests its unplug.
    pub(super) fn detach(
        &mut self,
        uuid: Uuid,
        alias: &str,
        scope: DetachScope,
        now: Instant,
    ) -> Result<(), Refusal> {
        let domain = self.domain_mut(uuid)?;
        match scope {
            DetachScope::Config => {
                let document = domain.persistent.as_ref().ok_or_else(refusal::transient)?;
                document.source(alias).ok_or_else(|| refusal::no_alias(alias))?;
                domain.persistent = Some(document.without(alias)?);
                self.save(uuid);
            }
            DetachScope::Live => {
                let document = domain.live.as_ref().ok_or_else(refusal::not_running)?;
                document.source(alias).ok_or_else(|| refusal::no_alias(alias))?;
                let runs = domain.state == DomainState::Running;
                let expired =
                    |pending: &Pending| pending.made.is_none_or(|made| runs && now >= made + EXPIRES);
                if domain.pending.get(alias).is_some_and(|pending| !expired(pending)) {
                    return Err(refusal::unplug_pending(alias));
                }
                self.request_unplug(uuid, alias.to_owned(), now);
            }
        }
        Ok(())
    }

    /// Detaches a function by its address, as `virsh detach-device` does.
    pub(super) fn unplug(
        &mut self,
        uuid: Uuid,
        source: PciAddress,
        scope: DetachScope,
        now: Instant,
    ) -> Result<(), Refusal> {
        let domain = self.domain_mut(uuid)?;
        match scope {
            DetachScope::Config => {
                let document = domain.persistent.as_ref().ok_or_else(refusal::transient)?;
                domain.persistent = Some(document.without_source(source)?);
                self.save(uuid);
                Ok(())
            }
            DetachScope::Live => {
                let document = domain.live.as_ref().ok_or_else(refusal::not_running)?;
                let held = document.parsed().hostdevs.iter().find(|held| held.source == source);
                let alias = held.and_then(|held| held.alias.clone());
                let alias = alias.ok_or_else(|| refusal::no_hostdev(source))?;
                self.detach(uuid, &alias, scope, now)
            }
        }
    }

    /// Requests the unplug of a device. A booting guest loses the request.
    pub(super) fn request_unplug(&mut self, uuid: Uuid, alias: String, now: Instant) {
        let lose_event = self.lose_event;
        let Some(domain) = self.domains.get_mut(&uuid) else { return };
        if domain.booting.is_none() {
            // A guest that is about to answer an earlier request answers once.
            let earlier = domain.pending.get(&alias).and_then(|pending| pending.due);
            let due = earlier.or_else(|| domain.answers_at(now));
            domain.pending.insert(alias, Pending { due, made: Some(now), lose_event });
            self.save(uuid);
        }
    }

    /// Lets the guest answer the requests that are due.
    pub(super) fn answer_removals(&mut self, uuid: Uuid, now: Instant) {
        let Some(domain) = self.domains.get_mut(&uuid) else { return };
        let refuses = domain.guest.unplug == Unplug::Refuse;
        let due = domain.pending.extract_if(.., |_, pending| pending.due.is_some_and(|due| due <= now));
        let due: Vec<(String, Pending)> = due.collect();
        for (alias, pending) in due {
            if refuses {
                self.save(uuid);
                if !pending.lose_event {
                    self.emit(Event::DeviceRemovalFailed { domain: uuid, alias });
                }
            } else {
                self.remove_from_guest(uuid, alias, pending.lose_event);
            }
        }
    }

    /// Removes a device from the guest, after the guest has released it.
    pub(super) fn remove_from_guest(&mut self, uuid: Uuid, alias: String, lose_event: bool) {
        let Some(domain) = self.domains.get_mut(&uuid) else { return };
        let Some(live) = &domain.live else { return };
        let Some(source) = live.source(&alias) else { return };
        match live.without(&alias) {
            Ok(document) => domain.live = Some(document),
            Err(error) => {
                tracing::error!(domain = %uuid, alias, error = error.message, "simulated host: cannot detach");
                return;
            }
        }
        match source {
            Source::Function(source) => self.release(&[source], None),
            Source::Mdev(mdev) => self.release_mdev(mdev),
        }
        self.save(uuid);
        if !lose_event {
            self.emit(Event::DeviceRemoved { domain: uuid, alias });
        }
    }

    /// Returns functions to the host. Their host drivers are rebound at once, or at the time `later`.
    pub(super) fn release(&mut self, addresses: &[PciAddress], later: Option<Instant>) {
        for address in addresses {
            if let Some(device) = self.devices.get_mut(*address) {
                device.holder = None;
            }
        }
        for address in addresses {
            let Some(device) = self.devices.get(*address) else { continue };
            // While a guest still has another member of the group, libvirt does not rebind the host driver. The
            // function then stays without a driver, also after the other member is detached.
            let group_in_use = self.devices.siblings(&device.info).any(|sibling| sibling.holder.is_some());
            let Some(device) = self.devices.get_mut(*address) else { continue };
            if group_in_use && device.is_on_host_driver_when_free() {
                device.set_free_driver(None);
                self.save_device(*address);
            } else if let Some(later) = later {
                device.releasing = true;
                self.releasing.push((later, *address));
            }
            self.refresh(*address);
            if self.devices.get(*address).is_some_and(|device| device.leaving) {
                self.vanish(*address);
            }
        }
    }
}

impl Domain {
    /// When the guest answers a request that is made now; `None` when it does not answer.
    pub(super) fn answers_at(&self, now: Instant) -> Option<Instant> {
        let answers = self.state == DomainState::Running && self.guest.unplug != Unplug::Ignore;
        answers.then(|| now + Duration::from_millis(self.guest.unplug_ms))
    }
}
