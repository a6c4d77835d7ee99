//! Whole IOMMU groups: VFIO opens a group only when no member of it is with a host driver, so all members leave
//! their drivers before the first is plugged, and get them back when the last is unplugged.

use std::sync::Arc;

use hotslot_driver::hotplug;
use hotslot_driver::pci::PciAddress;

use crate::error::Error;
use crate::host::Host;
use crate::id::RequestId;
use crate::service::Service;

impl Service {
    /// Gives the functions of a request for a whole group back to their host drivers, if none of its attachments
    /// is left.
    pub(super) fn give_back(&self, host: &Arc<Host>, request: RequestId) {
        let (store, host) = (self.store.clone(), Arc::clone(host));
        tokio::spawn(async move {
            let rows = match store.attachments_by(request).await {
                Ok(rows) => rows,
                Err(error) => return tracing::error!(%request, %error, "cannot look for the rest of a group"),
            };
            if rows.iter().any(|row| !row.state.is_final()) {
                return;
            }
            let mut members: Vec<PciAddress> = Vec::new();
            for row in rows {
                // One that has another owner meanwhile is not ours to touch.
                members.extend(
                    store
                        .device(row.device)
                        .filter(|device| device.server.is_none())
                        .map(|device| device.facts.address),
                );
            }
            let given = hotplug::give_back(host.hypervisor.as_ref(), &members).await;
            let given = given.map_err(host.error("give a group back to its host drivers"));
            if let Err(error @ (Error::Hypervisor { .. } | Error::HostAway { .. })) = given {
                tracing::error!(
                    host = %host.name, ?members, %error,
                    "functions are left without their host driver; give it back by virsh nodedev-reattach"
                );
            }
        });
    }
}
