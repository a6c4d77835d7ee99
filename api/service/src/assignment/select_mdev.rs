//! Which functions make the mediated devices of a request.

use std::collections::BTreeSet;
use std::sync::Arc;

use hotslot_driver::hypervisor::{DomainView, ErrorKind};
use hotslot_driver::mdev::VFIO_PCI;
use hotslot_model::accelerator::taken;
use hotslot_model::device::{Device, DeviceStatus};
use hotslot_model::id::AttachmentId;
use uuid::Uuid;

use super::assignments::Assignments;
use super::mdev::{MdevRequest, Step};
use crate::error::Error;
use crate::host::Host;
use crate::inventory::HostDrivers;

/// A device that can make some.
struct Parent {
    device: Arc<Device>,
    /// How near to the guest's memory it is: 0 is best.
    rank: u8,
    /// Whether it is in parts already: one that is not stays whole while others will do.
    in_parts: bool,
    /// What it is to make.
    mdev_type: String,
    /// How many more of that it can make.
    available: u32,
}

impl Assignments {
    /// Chooses parents: near to the guest's memory, then those that are in parts already, then by address.
    pub(super) async fn choose_parents(
        &self,
        parts: &MdevRequest,
        host: &Host,
        domain: &DomainView,
    ) -> Result<Vec<Step>, Error> {
        host.look_at_mdevs().await?;
        let offer = self.catalog.offer(host).await?;
        let rows = self.store.devices_of(host.row.id);
        let withheld = offer.withheld(&rows, None, HostDrivers::Keep);
        let made = self.store.mdevs().await?;
        let guest = domain.live.as_ref().or(domain.persistent.as_ref());
        let guest_nodes = guest.map(|document| document.numa_nodes.clone()).unwrap_or_default();
        let sockets = host.hypervisor.node_sockets().await.map_err(host.error("read the host's sockets"))?;
        let (mut parents, mut others, mut short) = (Vec::new(), Vec::new(), None);
        for row in &rows {
            let address = row.facts.address;
            let Some(wanted) = parts.makers.get(&address) else { continue };
            let types = match host.hypervisor.mdev_types(address).await {
                Err(error) if error.kind == ErrorKind::NoDevice => continue,
                types => types.map_err(host.error(format!("read the types of {address}")))?,
            };
            // Of several types the one that it makes already: many cards make one type at a time.
            let of_it = || made.iter().filter(|made| made.parent == row.id);
            let best = types.iter().filter(|of| wanted.contains(&of.id)).min_by_key(|of| {
                let is_made = of_it().any(|made| made.mdev_type == of.id);
                (of.device_api != VFIO_PCI, of.available == 0, !is_made)
            });
            let Some(of) = best else {
                others.extend(types.iter().map(|of| format!("{} of {address}", of.id)));
                continue;
            };
            let in_parts = of_it().next().is_some();
            let rank = parts.numa_policy.rank(row.facts.numa_node, &guest_nodes, sockets.as_ref());
            let reason = if row.status != DeviceStatus::Available && !in_parts {
                Some(taken(row, &rows))
            } else if let Some(reason) = withheld.get(&row.id) {
                Some(reason.clone())
            } else if of.device_api != VFIO_PCI {
                Some(format!("guests get it by {}, and only {VFIO_PCI} can be plugged", of.device_api))
            } else if of.available == 0 {
                Some(format!("no more of it can be made on {address}"))
            } else {
                rank.as_ref().err().map(|reason| format!("{address}: {reason}"))
            };
            match (reason, rank) {
                (None, Ok(rank)) => {
                    let (device, mdev_type) = (Arc::clone(row), of.id.clone());
                    parents.push(Parent { device, rank, in_parts, mdev_type, available: of.available });
                }
                (reason, _) => short = short.or(reason),
            }
        }
        parents.sort_by_key(|parent| (parent.rank, !parent.in_parts, parent.device.facts.address));
        let each = parents.iter().flat_map(|parent| (0..parent.available).map(move |_| parent));
        let step = |parent: &Parent| Step {
            id: AttachmentId(Uuid::new_v4()),
            parent: Arc::clone(&parent.device),
            mdev_type: parent.mdev_type.clone(),
        };
        let steps: Vec<_> = each.take(parts.num).map(step).collect();
        if steps.len() == parts.num {
            return Ok(steps);
        }
        let why = short.unwrap_or_else(|| {
            let there_are = if others.is_empty() { "none".to_owned() } else { others.join(", ") };
            format!("its devices have no such type; those that they have: {there_are}")
        });
        let types: BTreeSet<_> = parts.makers.values().flatten().map(String::as_str).collect();
        Err(Error::Conflict(format!(
            "{} is {} of {}, and {} can be made on host {}: {why}",
            parts.name,
            parts.num,
            Vec::from_iter(types).join(" or "),
            steps.len(),
            host.name
        )))
    }
}
