//! Chooses the parents of the mediated devices of a request.

use std::collections::BTreeSet;
use std::sync::Arc;

use hotslot_driver::hypervisor::{DomainView, ErrorKind};
use hotslot_driver::mdev::{MdevType, VFIO_PCI};
use hotslot_driver::pci::PciAddress;
use hotslot_driver::vgpu::VgpuType;
use hotslot_model::accelerator::in_use_message;
use hotslot_model::device::{Device, DeviceStatus};
use hotslot_model::id::AttachmentId;
use hotslot_model::rules::NumaPolicy;
use uuid::Uuid;

use super::assignments::Assignments;
use super::mdev::{MdevRequest, Step};
use crate::error::Error;
use crate::host::Host;
use crate::inventory::HostDrivers;

/// A device on which some of the mediated devices can be created.
struct Parent {
    device: Arc<Device>,
    /// The distance to the guest's memory; 0 is best.
    rank: u8,
    /// Whether it has mediated devices already. Such parents come first, so that others stay free as whole devices.
    in_parts: bool,
    /// The type of mediated device to create on it.
    mdev_type: String,
    /// How many more of this type it can have.
    available: u32,
}

impl Assignments {
    /// Chooses parents, ordered by distance to the guest's memory; then those that have mediated devices already; then
    /// by address.
    ///
    /// # Errors
    /// [`Error::Conflict`] when too few mediated devices can be created; errors of the hypervisor and of the database.
    pub(super) async fn choose_parents(
        &self,
        parts: &MdevRequest,
        host: &Host,
        domain: &DomainView,
    ) -> Result<Vec<Step>, Error> {
        host.read_mdevs().await?;
        let availability = self.catalog.availability(host).await?;
        let rows = self.store.devices_of(host.row.id);
        let unavailable = availability.unavailable(&rows, None, HostDrivers::Keep);
        let made = self.store.mdevs().await?;
        let guest = domain.live.as_ref().or(domain.persistent.as_ref());
        let guest_nodes = guest.map(|document| document.numa_nodes.clone()).unwrap_or_default();
        // libvirt may probe QEMU for this, which takes seconds.
        let sockets = if parts.numa_policy == NumaPolicy::Socket {
            host.hypervisor.node_sockets().await.map_err(host.error("read the host's sockets"))?
        } else {
            None
        };
        let (mut parents, mut others, mut short) = (Vec::new(), Vec::new(), None);
        for row in &rows {
            let address = row.facts.address;
            let Some(wanted) = parts.parents.get(&address) else { continue };
            let types = match host.hypervisor.mdev_types(address).await {
                Err(error) if error.kind == ErrorKind::NoDevice => continue,
                types => types.map_err(host.error(format!("read the types of {address}")))?,
            };
            // Prefer the type that the parent has already, because many cards support one type at a time.
            let of_it = || made.iter().filter(|made| made.parent == row.id);
            let is_wanted = |of: &&MdevType| {
                let name = of.name.as_ref().unwrap_or(&of.id).clone();
                let of = VgpuType { id: of.id.clone(), name };
                wanted.iter().any(|wanted| of.is_named(wanted))
            };
            let best = types.iter().filter(is_wanted).min_by_key(|of| {
                let is_made = of_it().any(|made| made.mdev_type == of.id);
                (of.device_api != VFIO_PCI, of.available == 0, !is_made)
            });
            let Some(of) = best else {
                others.extend(types.iter().map(|of| format!("{} of {address}", of.id)));
                continue;
            };
            let in_parts = of_it().next().is_some();
            let is_held = row.status != DeviceStatus::Available && !in_parts;
            let held = is_held.then(|| in_use_message(row, &rows));
            let reason =
                held.or_else(|| unavailable.get(&row.id).cloned()).or_else(|| why_not_of_type(address, of));
            let rank = parts.numa_policy.rank(row.facts.numa_node, &guest_nodes, sockets.as_ref());
            match (reason, rank) {
                (None, Ok(rank)) => {
                    let (device, mdev_type) = (Arc::clone(row), of.id.clone());
                    parents.push(Parent { device, rank, in_parts, mdev_type, available: of.available });
                }
                (Some(reason), _) => short = short.or(Some(reason)),
                (None, Err(reason)) => short = short.or(Some(format!("{address}: {reason}"))),
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
        Err(too_few(parts, host, steps.len(), short, &others))
    }
}

/// Returns why no mediated device of a type can be created on a parent.
fn why_not_of_type(address: PciAddress, of: &MdevType) -> Option<String> {
    if of.device_api != VFIO_PCI {
        Some(format!("its device_api is {}, and only {VFIO_PCI} can be plugged", of.device_api))
    } else if of.available == 0 {
        Some(format!("no more of it can be created on {address}"))
    } else {
        None
    }
}

/// Returns the error of a request for which only `steps` mediated devices can be created. `short` is the first reason,
/// and `others` are the types that its devices have instead.
fn too_few(
    parts: &MdevRequest,
    host: &Host,
    steps: usize,
    short: Option<String>,
    others: &[String],
) -> Error {
    let why = short.unwrap_or_else(|| {
        let there_are = if others.is_empty() { "none".to_owned() } else { others.join(", ") };
        format!("its devices have no such type; they have: {there_are}")
    });
    let types: BTreeSet<_> = parts.parents.values().flatten().map(String::as_str).collect();
    Error::Conflict(format!(
        "{} needs {} of {}, and {steps} can be created on host {}: {why}",
        parts.name,
        parts.num,
        Vec::from_iter(types).join(" or "),
        host.name
    ))
}
