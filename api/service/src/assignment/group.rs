//! Host drivers: rebinds functions that were unbound for an attachment, once no server has any function of their IOMMU
//! group.
//!
//! VFIO opens an IOMMU group only when none of its members is bound to a host driver. So all members that are attached
//! together are unbound before the first is plugged. libvirt unbinds and rebinds managed devices itself, with one
//! exception: it leaves a device on VFIO that is detached while another device of its group is still in a guest.
//!
//! The records say that a function is to be unbound before it is, so a service that was killed rebinds it after its
//! restart.

use std::collections::BTreeSet;

use hotslot_driver::device::{HostDevice, IommuGroup};
use hotslot_driver::hotplug;
use hotslot_driver::hypervisor::{ErrorKind, OverdueCall};
use hotslot_driver::pci::PciAddress;
use hotslot_model::assignment::{Action, Finding, Kind, Source};
use hotslot_model::id::AttachmentId;
use hotslot_store::Held;
use tokio::sync::MutexGuard;

use super::assignments::Assignments;
use crate::error::Error;
use crate::host::Host;

/// Functions that were unbound from their host drivers for attachments that have ended.
#[derive(Debug, Default)]
pub(super) struct PendingRebind {
    /// The functions that have no host driver.
    pub(super) findings: Vec<Finding>,
    /// The attachments whose functions are bound to a host driver again, or gone from the host.
    settled: Vec<AttachmentId>,
}

impl Assignments {
    /// Locks the IOMMU groups of a host, among the tasks of this process and between processes. Whoever unbinds or
    /// rebinds host drivers holds this lock.
    ///
    /// # Errors
    /// Errors of the database.
    pub(crate) async fn lock_groups<'h>(&self, host: &'h Host) -> Result<(Held, MutexGuard<'h, ()>), Error> {
        let within = host.groups.lock().await;
        let between = self.store.locks().lock(groups_lock(host)).await?;
        Ok((between, within))
    }

    /// Returns whether nobody holds the lock of a host's IOMMU groups.
    ///
    /// # Errors
    /// Errors of the database.
    pub(super) async fn groups_are_idle(&self, host: &Host) -> Result<bool, Error> {
        let name = groups_lock(host);
        Ok(host.groups.try_lock().is_ok() && self.store.locks().elsewhere(vec![name]).await?.is_empty())
    }

    /// Finds the functions of a host that are to be rebound to their host drivers.
    ///
    /// # Errors
    /// Errors of the database and of the hypervisor.
    pub(super) async fn pending_rebind(&self, host: &Host) -> Result<PendingRebind, Error> {
        let unbound = self.store.unbound_from_host(host.row.id).await?;
        if unbound.is_empty() {
            return Ok(PendingRebind::default());
        }
        let rows = self.store.devices_of(host.row.id).into_iter().filter(|device| device.owner.is_some());
        let mut held: BTreeSet<_> = rows.map(|device| device.facts.address).collect();
        held.extend(host.in_guests());
        let busy = |group: &IommuGroup| group.members.iter().any(|member| held.contains(member));
        let mut pending_rebind = PendingRebind::default();
        for (id, address) in unbound {
            if held.contains(&address) {
                continue;
            }
            if let Some(call) = host.overdue_call_at(address) {
                // The overdue call may still change the function. Its return is an event.
                pending_rebind.findings.push(under_a_call(id, address, &call));
                continue;
            }
            let function = match host.hypervisor.device(address).await {
                Ok(function) => function,
                Err(error) if error.kind == ErrorKind::NoDevice => {
                    pending_rebind.settled.push(id);
                    continue;
                }
                Err(error) => return Err(host.error(format!("read device {address}"))(error)),
            };
            if function.blocks_its_group() {
                pending_rebind.settled.push(id);
            } else if !function.iommu_group.as_ref().is_some_and(busy) {
                pending_rebind.findings.push(without_driver(id, &function));
            }
        }
        Ok(pending_rebind)
    }

    /// Rebinds functions to their host drivers, if no server has a function of their IOMMU group, and puts back the
    /// settings and the vGPU types of VFs.
    ///
    /// # Errors
    /// Errors of the database; the hypervisor's error for a function that cannot be rebound, after the others were
    /// tried.
    pub(super) async fn rebind_host_drivers(&self, host: &Host) -> Result<(), Error> {
        let _groups = self.lock_groups(host).await?;
        self.store.refresh().await?;
        let put_back = self.settle_vf_settings(host).await;
        let put_back = put_back.and(self.settle_vgpu_types(host).await);
        let (mut pending_rebind, mut outcome) = (self.pending_rebind(host).await?, Ok(()));
        for finding in pending_rebind.findings {
            let (Action::Rebind(id), Some(address)) = (finding.action, finding.address) else { continue };
            match hotplug::rebind_host_drivers(host.hypervisor.as_ref(), &[address]).await {
                Ok(()) => pending_rebind.settled.push(id),
                Err(error) if error.kind == ErrorKind::NoDevice => pending_rebind.settled.push(id),
                // A domain has taken the function meanwhile; it is rebound when that domain releases it.
                Err(error) if error.kind == ErrorKind::InUse => {
                    tracing::debug!(host = %host.name, pci.address = %address, %error, "not rebound yet");
                }
                Err(error) => {
                    let name = address.node_name();
                    outcome = Err(host.error(format!(
                        "{address} has no host driver; run virsh nodedev-reattach {name} to rebind it"
                    ))(error));
                }
            }
            host.queue_device_scan(address);
        }
        if !pending_rebind.settled.is_empty() {
            self.store.rebound(&pending_rebind.settled).await?;
        }
        outcome.and(put_back)
    }
}

fn groups_lock(host: &Host) -> String {
    format!("groups of host {}", host.row.id.0)
}

fn under_a_call(id: AttachmentId, address: PciAddress, call: &OverdueCall) -> Finding {
    Finding {
        kind: Kind::NoHostDriver,
        server: None,
        attachment: Some(id),
        address: Some(address),
        observations: vec![
            (Source::Record, "it was unbound from its host driver, and the attachment has ended".into()),
            (Source::Host, call.to_string()),
        ],
        action: Action::Manual("nothing until that call returns; then the host driver is rebound".into()),
    }
}

fn without_driver(id: AttachmentId, function: &HostDevice) -> Finding {
    let driver = match &function.driver {
        Some(driver) => format!("it is bound to {driver}"),
        None => "it has no driver".to_owned(),
    };
    Finding {
        kind: Kind::NoHostDriver,
        server: None,
        attachment: Some(id),
        address: Some(function.address),
        observations: vec![
            (Source::Record, "it was unbound from its host driver, and the attachment has ended".into()),
            (Source::Host, driver),
        ],
        action: Action::Rebind(id),
    }
}
