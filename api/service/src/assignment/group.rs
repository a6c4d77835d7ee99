//! Host drivers: what was taken from one gets it back when nobody has it any more.
//!
//! VFIO opens an IOMMU group only when no member of it is with a host driver, so all members of a group that is given
//! whole leave their drivers before the first is plugged. libvirt takes and returns a managed device by itself, but
//! for one that leaves its guest while another of its group is still in one: that one stays without a driver.
//!
//! That they are taken is on record before they are; so a service that was killed gives them back all the same.

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

/// What became of the functions that were taken and that nobody has any more.
#[derive(Debug, Default)]
pub(super) struct Owed {
    /// Those without a host driver.
    pub(super) findings: Vec<Finding>,
    /// The attachments whose functions are with a host driver again, or gone.
    settled: Vec<AttachmentId>,
}

impl Assignments {
    /// Waits until nobody else takes or gives back functions of a host: no task of this process, and no other process.
    ///
    /// # Errors
    /// The database's.
    pub(crate) async fn lock_groups<'h>(&self, host: &'h Host) -> Result<(Held, MutexGuard<'h, ()>), Error> {
        let within = host.groups.lock().await;
        let between = self.store.locks().lock(groups_lock(host)).await?;
        Ok((between, within))
    }

    /// Whether nobody takes or returns functions of a host now.
    ///
    /// # Errors
    /// The database's.
    pub(super) async fn groups_are_idle(&self, host: &Host) -> Result<bool, Error> {
        let name = groups_lock(host);
        Ok(host.groups.try_lock().is_ok() && self.store.locks().elsewhere(vec![name]).await?.is_empty())
    }

    /// Looks which functions are owed their host drivers.
    ///
    /// # Errors
    /// The database's, and what the hypervisor answers.
    pub(super) async fn owed(&self, host: &Host) -> Result<Owed, Error> {
        let rows = self.store.devices_of(host.row.id).into_iter().filter(|device| device.owner.is_some());
        let mut held: BTreeSet<_> = rows.map(|device| device.facts.address).collect();
        held.extend(host.in_guests());
        let busy = |group: &IommuGroup| group.members.iter().any(|member| held.contains(member));
        let mut owed = Owed::default();
        for (id, address) in self.store.taken(host.row.id).await? {
            if held.contains(&address) {
                continue;
            }
            if let Some(call) = host.stuck_at(address) {
                // What it makes of the function is not known before it comes back; that is heard of.
                owed.findings.push(under_a_call(id, address, &call));
                continue;
            }
            let function = match host.hypervisor.device(address).await {
                Ok(function) => function,
                Err(error) if error.kind == ErrorKind::NoDevice => {
                    owed.settled.push(id);
                    continue;
                }
                Err(error) => return Err(host.error(format!("read device {address}"))(error)),
            };
            if function.blocks_its_group() {
                owed.settled.push(id);
            } else if !function.iommu_group.as_ref().is_some_and(busy) {
                owed.findings.push(without_driver(id, &function));
            }
        }
        Ok(owed)
    }

    /// Gives functions back to their host drivers, where nobody has any of the group.
    ///
    /// # Errors
    /// The database's, or what the hypervisor answered for a function that cannot be given back; the others are.
    pub(super) async fn give_back(&self, host: &Host) -> Result<(), Error> {
        let _groups = self.lock_groups(host).await?;
        self.store.refresh().await?;
        let (mut owed, mut outcome) = (self.owed(host).await?, Ok(()));
        for finding in owed.findings {
            let (Action::GiveBack(id), Some(address)) = (finding.action, finding.address) else { continue };
            match hotplug::give_back(host.hypervisor.as_ref(), &[address]).await {
                Ok(()) => owed.settled.push(id),
                Err(error) if error.kind == ErrorKind::NoDevice => owed.settled.push(id),
                // A domain took it meanwhile; its turn comes when that lets go.
                Err(error) if error.kind == ErrorKind::InUse => {
                    tracing::debug!(host = %host.name, pci.address = %address, %error, "not given back yet");
                }
                Err(error) => {
                    let name = address.node_name();
                    outcome = Err(host.error(format!(
                        "{address} is without its host driver; virsh nodedev-reattach {name} gives it back"
                    ))(error));
                }
            }
            host.look_at(address);
        }
        if !owed.settled.is_empty() {
            self.store.given_back(&owed.settled).await?;
        }
        outcome
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
        said: vec![
            (Source::Record, "it was taken from a host driver, and the attachment has ended".into()),
            (Source::Host, call.to_string()),
        ],
        action: Action::Manual("nothing while that call is out; when it comes back, it is given back".into()),
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
        said: vec![
            (Source::Record, "it was taken from a host driver, and the attachment has ended".into()),
            (Source::Host, driver),
        ],
        action: Action::GiveBack(id),
    }
}
