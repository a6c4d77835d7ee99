//! Devices for which a guest has no free hot-plug port. PCI Express and conventional PCI devices need different ports.

use std::collections::HashMap;
use std::sync::Arc;

use hotslot_driver::hypervisor::DomainView;
use hotslot_driver::topology::Topology;
use hotslot_model::device::Device;
use hotslot_model::id::DeviceId;

use crate::inventory::Availability;

/// Returns the devices of a host for which a running guest has no free port, with the reason. A shut-off guest has none
/// of these, because libvirt adds the missing ports to its definition.
pub(super) fn portless(
    view: &DomainView,
    availability: &Availability,
    devices: &[Arc<Device>],
) -> HashMap<DeviceId, String> {
    let no_port = no_port(view, availability);
    devices.iter().filter_map(|device| Some((device.id, no_port(device)?))).collect()
}

/// As [`portless`], for one device: returns the reason, or `None` when the guest has a free port for it.
pub(super) fn no_port(view: &DomainView, availability: &Availability) -> impl Fn(&Device) -> Option<String> {
    let free = view.live.as_ref().map(|live| Topology::of(live).free_ports());
    move |device| {
        let function = availability.functions.get(&device.facts.address)?;
        let kind = if function.express { "PCI Express" } else { "conventional PCI" };
        let is_full = free.as_ref()?.count_for(function.express) == 0;
        is_full.then(|| format!("the guest has no free hot-plug port for {kind} devices"))
    }
}
