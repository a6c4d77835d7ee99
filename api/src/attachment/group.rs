//! Whole IOMMU groups: VFIO opens a group only when no member of it is with a host driver, so all members leave
//! their drivers before the first is plugged, and get them back when none of the group is with a server.
//!
//! That they are taken is on record before they are; so a service that was killed gives them back all the same.

use hotslot_driver::device::IommuGroup;
use hotslot_driver::hotplug;
use hotslot_driver::hypervisor::ErrorKind;
use tokio::sync::MutexGuard;

use crate::error::Error;
use crate::host::Host;
use crate::service::Service;
use crate::store::Held;

impl Service {
    /// Waits until nobody else takes or gives back functions of a host: no task of this process, and no other process.
    ///
    /// # Errors
    /// The database's.
    pub(super) async fn lock_groups<'h>(&self, host: &'h Host) -> Result<(Held, MutexGuard<'h, ()>), Error> {
        let within = host.groups.lock().await;
        let between = self.store.locks().lock(format!("groups of host {}", host.row.id.0)).await?;
        Ok((between, within))
    }

    /// Gives functions that were taken for a group back to their host drivers, where nobody has any of the group.
    ///
    /// # Errors
    /// The database's; a function that cannot be given back is logged, and tried again at the next comparison.
    pub(super) async fn give_back(&self, host: &Host) -> Result<(), Error> {
        let _groups = self.lock_groups(host).await?;
        self.store.refresh().await?;
        let functions = host.functions();
        let held: Vec<_> = self
            .store
            .devices_of(host.row.id)
            .into_iter()
            .filter(|device| device.server.is_some())
            .map(|device| device.facts.address)
            .collect();
        for (id, address) in self.store.taken(host.row.id).await? {
            let group = functions.get(&address).and_then(|function| function.iommu_group.as_ref());
            let busy = |group: &IommuGroup| group.members.iter().any(|member| held.contains(member));
            if held.contains(&address) || group.is_some_and(busy) {
                continue;
            }
            match hotplug::give_back(host.hypervisor.as_ref(), &[address]).await {
                Ok(()) => self.store.given_back(&[id]).await?,
                Err(error) if error.kind == ErrorKind::NoDevice => {
                    self.store.given_back(&[id]).await?;
                }
                Err(error) => tracing::error!(
                    host = %host.name, pci.address = %address, %error,
                    "{address} is without its host driver; virsh nodedev-reattach {} gives it back", address.node_name()
                ),
            }
            host.look_at(address);
        }
        Ok(())
    }
}
