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
    let Some(live) = &view.live else { return HashMap::new() };
    let free = Topology::of(live).free_ports();
    let full = |device: &Arc<Device>| {
        let function = availability.functions.get(&device.facts.address)?;
        let kind = if function.express { "PCI Express" } else { "conventional PCI" };
        let reason = || format!("the guest has no free hot-plug port for {kind} devices");
        (free.count_for(function.express) == 0).then(|| (device.id, reason()))
    };
    devices.iter().filter_map(full).collect()
}
