//! Chooses the functions that are bound for the host's own use.

use std::collections::HashMap;
use std::sync::Arc;

use hotslot_driver::hotplug;
use hotslot_model::accelerator::taken;
use hotslot_model::assignment::NewBinding;
use hotslot_model::device::{DevType, Device, DeviceStatus};
use hotslot_model::id::{AttachmentId, DeviceId};
use hotslot_model::rules;
use uuid::Uuid;

use super::assignments::Assignments;
use super::host_use::{HostUseRequest, Step};
use crate::error::Error;
use crate::host::Host;
use crate::inventory::HostDrivers;

impl Assignments {
    /// Chooses devices that pass all checks for a binding.
    ///
    /// # Errors
    /// [`Error::Conflict`] when too few devices can be bound, or the first refusal when one device is requested; errors
    /// of the hypervisor and of the database.
    pub(super) async fn free_for_host(
        &self,
        host: &Host,
        request: &HostUseRequest,
    ) -> Result<Vec<Step>, Error> {
        let HostUseRequest { holder, candidates, num, driver } = request;
        let (num, driver) = (*num, *driver);
        // Read the drivers now, because no event reports that a driver was bound or unbound.
        self.catalog.discover(host, Some(candidates.clone())).await?;
        let availability = self.catalog.availability(host).await?;
        let rows = self.store.devices_of(host.row.id);
        let unavailable = availability.unavailable(&rows, None, HostDrivers::DoNotBlock);
        let (mut steps, mut refusal) = (Vec::<Step>::new(), None);
        let mut refuse = |error: Error| {
            refusal.get_or_insert(error);
        };
        // A PF cannot be bound together with its VFs, so PFs come last.
        let mut chosen_from: Vec<_> =
            rows.iter().filter(|row| candidates.contains(&row.facts.address)).collect();
        chosen_from.sort_by_key(|row| row.facts.dev_type == DevType::Pf);
        for row in chosen_from {
            if steps.len() == num {
                break;
            }
            let address = row.facts.address;
            let goes_with = |step: &&Step| {
                let chosen = &step.new.device.facts;
                chosen.parent_addr == Some(address) || row.facts.parent_addr == Some(chosen.address)
            };
            if let Some(step) = steps.iter().find(goes_with) {
                let chosen = step.new.device.facts.address;
                refuse(Error::Conflict(format!(
                    "{address} cannot be bound together with {chosen}: one is the PF of the other"
                )));
                continue;
            }
            if let Some(reason) = not_free(row, &rows, &unavailable) {
                refuse(Error::Conflict(reason));
                continue;
            }
            let found = match host.hypervisor.device(address).await {
                Ok(found) if rules::is_still(&row.facts, &found) => found,
                Ok(_) => {
                    host.queue_device_scan(address);
                    refuse(Error::Conflict(format!("{address} has changed on the host; try again")));
                    continue;
                }
                Err(error) => {
                    refuse(host.error(format!("nothing was bound on host {}", host.name))(error));
                    continue;
                }
            };
            let group = found.iommu_group.as_ref();
            let siblings = group.map(|group| group.members.clone()).unwrap_or_default();
            let new = NewBinding {
                id: AttachmentId(Uuid::new_v4()),
                device: Arc::clone(row),
                previous: found.driver.clone(),
                siblings: siblings.into_iter().filter(|member| *member != address).collect(),
            };
            let facts = availability.facts(found, row);
            let context = || format!("nothing was bound on host {}", host.name);
            let policy = self.binding_policy();
            let verdict = hotplug::preflight_on_host(host.hypervisor.as_ref(), &facts, driver, policy).await;
            match verdict.map_err(host.error(context()))?.refusal() {
                Some(refused) => refuse(host.error(context())(refused.error.clone())),
                None => steps.push(Step { new, facts }),
            }
        }
        if steps.len() < num {
            return Err(match refusal {
                Some(refusal) if num == 1 => refusal,
                refusal => Error::Conflict(format!(
                    "{} needs {num} devices, and {} on host {} can be bound{}",
                    holder.name(),
                    steps.len(),
                    host.name,
                    refusal.map(|refusal| format!(": {refusal}")).unwrap_or_default()
                )),
            });
        }
        Ok(steps)
    }
}

fn not_free(row: &Device, rows: &[Arc<Device>], unavailable: &HashMap<DeviceId, String>) -> Option<String> {
    if row.status == DeviceStatus::Available {
        return unavailable.get(&row.id).cloned();
    }
    Some(taken(row, rows))
}
