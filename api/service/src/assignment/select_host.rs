//! Chooses the functions that are bound for the host's own use.

use std::collections::HashMap;
use std::sync::Arc;

use hotslot_driver::binding::HostDriver;
use hotslot_driver::hotplug;
use hotslot_model::accelerator::in_use_message;
use hotslot_model::assignment::NewBinding;
use hotslot_model::device::{DevType, Device, DeviceStatus};
use hotslot_model::id::{AttachmentId, DeviceId};
use hotslot_model::rules;
use uuid::Uuid;

use super::assignments::Assignments;
use super::host_use::{HostUseRequest, Step};
use crate::error::Error;
use crate::host::Host;
use crate::inventory::{Availability, HostDrivers};

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
        // A PF cannot be bound together with its VFs, so PFs come last.
        let mut chosen_from: Vec<_> =
            rows.iter().filter(|row| candidates.contains(&row.facts.address)).collect();
        chosen_from.sort_by_key(|row| row.facts.dev_type == DevType::Pf);
        for row in chosen_from {
            if steps.len() == num {
                break;
            }
            let conflict = related(row, &steps).or_else(|| not_free(row, &rows, &unavailable));
            let step = match conflict {
                Some(reason) => Err(Error::Conflict(reason)),
                None => self.bindable(host, row, &availability, driver).await?,
            };
            match step {
                Ok(step) => steps.push(step),
                Err(error) => drop(refusal.get_or_insert(error)),
            }
        }
        if steps.len() == num {
            return Ok(steps);
        }
        Err(match refusal {
            Some(refusal) if num == 1 => refusal,
            refusal => Error::Conflict(format!(
                "{} needs {num} devices, and {} on host {} can be bound{}",
                holder.name(),
                steps.len(),
                host.name,
                refusal.map(|refusal| format!(": {refusal}")).unwrap_or_default()
            )),
        })
    }

    /// Reads a device from the host and checks whether it can be bound. Returns the refusal of a check as the inner
    /// error.
    ///
    /// # Errors
    /// Errors of the hypervisor.
    async fn bindable(
        &self,
        host: &Host,
        row: &Arc<Device>,
        availability: &Availability,
        driver: HostDriver,
    ) -> Result<Result<Step, Error>, Error> {
        let address = row.facts.address;
        let context = || format!("nothing was bound on host {}", host.name);
        let found = match host.hypervisor.device(address).await {
            Ok(found) if rules::is_still(&row.facts, &found) => found,
            Ok(_) => {
                host.queue_device_scan(address);
                return Ok(Err(Error::Conflict(format!("{address} has changed on the host; try again"))));
            }
            Err(error) => return Ok(Err(host.error(context())(error))),
        };
        let group = found.iommu_group.as_ref();
        let siblings = group.map(|group| group.members.clone()).unwrap_or_default();
        let new = NewBinding {
            id: AttachmentId(Uuid::new_v4()),
            device: Arc::clone(row),
            previous: found.driver_name(),
            siblings: siblings.into_iter().filter(|member| *member != address).collect(),
        };
        let mut facts = [availability.facts(found, row)];
        availability.add_open_nodes(&mut facts).await?;
        let [facts] = facts;
        let policy = self.binding_policy();
        let verdict = hotplug::preflight_on_host(host.hypervisor.as_ref(), &facts, driver, policy).await;
        let verdict = verdict.map_err(host.error(context()))?;
        Ok(match verdict.refusal() {
            Some(refused) => Err(host.error(context())(refused.error.clone())),
            None => Ok(Step { new, facts }),
        })
    }
}

/// Returns why a device cannot be bound together with those chosen already: one is the PF of the other.
fn related(row: &Device, steps: &[Step]) -> Option<String> {
    let address = row.facts.address;
    let mut chosen = steps.iter().map(|step| &step.new.device.facts);
    let relative = chosen.find(|chosen| {
        chosen.parent_addr == Some(address) || row.facts.parent_addr == Some(chosen.address)
    })?;
    Some(format!("{address} cannot be bound together with {}: one is the PF of the other", relative.address))
}

fn not_free(row: &Device, rows: &[Arc<Device>], unavailable: &HashMap<DeviceId, String>) -> Option<String> {
    if row.status == DeviceStatus::Available {
        return unavailable.get(&row.id).cloned();
    }
    Some(in_use_message(row, rows))
}
