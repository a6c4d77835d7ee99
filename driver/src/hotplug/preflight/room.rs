//! The checks of a guest's room: memory windows of its ports, free hot-plug ports, and the limit of locked memory.

use super::verdict::{Facts, Finding};
use crate::domain::{ControllerModel, DomainXml};
use crate::hotplug::ports::{has_express_root, room_for_ports};
use crate::hypervisor::{DomainView, ErrorKind};
use crate::pci::PciAddress;
use crate::topology::Topology;

/// The PCI memory below 4 GiB of a q35 guest is smaller than this (QEMU: from 0xc000_0000 to 0xfec0_0000), and a bridge
/// forwards non-prefetchable memory only there.
const MEMORY_HOLE: u64 = 1 << 30;
/// Bytes that libvirt adds to the guest's memory when it sets the limit of locked memory, for the devices' own memory.
const LOCK_MARGIN: u64 = 1 << 30;

/// Checks whether the device's BARs fit into the memory windows of its `port`. Firmware sets the windows when the guest
/// boots; larger BARs only work if the guest's kernel can widen the windows.
pub(super) fn bar_window(live: Option<&DomainXml>, facts: &Facts, port: Option<PciAddress>) -> Finding {
    let address = facts.device.address;
    let Some(bars) = &facts.bars else {
        return Finding::unknown(format!("the BARs of {address} can only be read on its own host"));
    };
    let Some(live) = live else {
        return Finding::pass("the guest's firmware sets the memory windows when it starts");
    };
    let size = |prefetchable| -> u64 {
        let bars = bars.iter().filter(|bar| bar.prefetchable64 == prefetchable);
        bars.fold(0, |sum, bar| sum.saturating_add(bar.size))
    };
    let (memory, prefetchable) = (size(false), size(true));
    let port = port.and_then(|port| live.controllers.iter().find(|port_of| port_of.index == port.bus()));
    let port = port.and_then(|port| Some((port, port.memory_window()?)));
    let Some((port, window)) = port else {
        return Finding::unknown(format!(
            "{address} needs {}; the free memory of its bus in the guest is not known",
            in_units(memory.saturating_add(prefetchable))
        ));
    };
    let room = format!(
        "{address} needs {} of memory and {} of 64-bit prefetchable memory, port {} reserves {} and {}",
        in_units(memory),
        in_units(prefetchable),
        port.index,
        in_units(window),
        port.pref64_reserve.map_or_else(|| "an amount that its firmware chooses".to_owned(), in_units),
    );
    let fits = memory <= window
        && (prefetchable <= port.pref64_reserve.unwrap_or(0)
            || memory.saturating_add(prefetchable) <= window);
    let cure = format!(
        "set mem-reserve and pref64-reserve of the port with <qemu:override> (device pci.{}; since libvirt 10.3 memReserve \
         of its <target>, in KiB, is the same as mem-reserve) and power-cycle the guest",
        port.index
    );
    if fits {
        Finding::pass(room)
    } else if bars.iter().any(|bar| !bar.prefetchable64 && bar.size >= MEMORY_HOLE) {
        Finding::fail(ErrorKind::NoFreePort, format!("{room}: more than a guest has below 4 GiB"))
            .cure("take another device; this one cannot work behind a port")
    } else {
        Finding::unknown(format!("{room}: the device works only if the guest's kernel widens the window"))
            .cure(cure)
    }
}

/// Whether a conventional PCI device can be plugged into a controller of a PCI Express guest.
fn is_conventional(model: ControllerModel) -> bool {
    matches!(model, ControllerModel::PciBridge | ControllerModel::PcieToPciBridge)
}

/// Formats bytes for people, in the largest binary unit that gives a whole number.
pub(super) fn in_units(bytes: u64) -> String {
    let units = [(40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")];
    match units.iter().find(|(shift, _)| bytes != 0 && bytes.trailing_zeros() >= *shift) {
        Some((shift, unit)) => format!("{} {unit}", bytes >> shift),
        None => format!("{bytes} bytes"),
    }
}

/// Checks whether the guest has enough free hot-plug ports for all devices together.
pub(super) fn free_port(view: &DomainView, document: &DomainXml, devices: &[Facts]) -> Finding {
    let free = Topology::of(document).free_ports();
    let mut left = free.clone();
    let pcie = document.controllers.iter().any(|controller| controller.model == ControllerModel::PcieRoot);
    let (express, conventional) = (free.count_for(true), free.count_for(false));
    let room = if pcie {
        format!("room for {express} PCI Express and {conventional} conventional device(s)")
    } else {
        format!("room for {express} PCI device(s)")
    };
    let mut wanted = devices.iter().map(|facts| &facts.device);
    let Some(device) = wanted.find(|device| left.take(device.express).is_none()) else {
        return Finding::pass(room);
    };
    if view.live.is_none() {
        return Finding::unknown(format!("{room}: libvirt adds ports to the definition if it can"));
    }
    let (kind, cure) = match (device.express, pcie) {
        (true, true) => {
            let wanted = devices.iter().filter(|facts| facts.device.express).count();
            ("PCI Express", add_ports(view, wanted))
        }
        (false, true) => ("conventional PCI", by_hand("a pcie-to-pci-bridge controller")),
        (_, false) => ("PCI", by_hand("a pci-bridge controller")),
    };
    // A detach leaves room only where devices of this kind can be: a q35 guest may have no conventional bus.
    let conventional_bus =
        document.controllers.iter().any(|controller| is_conventional(controller.model)) || !pcie;
    let can_detach = (device.express || conventional_bus) && !document.hostdevs.is_empty();
    let detach = if can_detach { "detach a device, or " } else { "" };
    let wanted = devices.iter().filter(|other| !pcie || other.device.express == device.express).count();
    let room = free.count_for(device.express);
    let message = format!("no free hot-plug port: {wanted} {kind} device(s) requested, room for {room}");
    Finding::fail(ErrorKind::NoFreePort, message).cure(format!("{detach}{cure}"))
}

/// Returns the advice to a running guest that has fewer free ports than the `wanted` ones: to add them to its definition, as
/// many as fit, or only to start it again, when its definition has them already.
pub fn add_ports(view: &DomainView, wanted: usize) -> String {
    let (name, domain) = (&view.info.name, view.info.uuid);
    let Some(definition) = &view.persistent else {
        return format!(
            "define {name} with {wanted} more pcie-root-port controller(s) and start it anew, for it is transient"
        );
    };
    if !has_express_root(definition) {
        return by_hand("a pci-bridge controller");
    }
    let there = Topology::of(definition).free_ports().count_for(true);
    let missing = wanted.saturating_sub(there);
    if missing == 0 {
        return format!(
            "shut {name} off and start it again: it then has the {there} free port(s) of its definition"
        );
    }
    let count = missing.min(room_for_ports(definition).into());
    if count == 0 {
        return format!(
            "take another server, or ask for fewer devices: the definition of {name} has {there} free port(s), and no room \
             for more"
        );
    }
    let rest = match missing - count {
        0 => String::new(),
        rest => {
            format!("; it then has room for {} device(s), and the other {rest} do not fit", there + count)
        }
    };
    format!(
        "add {count} port(s) to the definition of {name} (POST servers/{domain}/pci_ports with count {count}), and \
         power-cycle the guest{rest}"
    )
}

fn by_hand(controller: &str) -> String {
    format!("add {controller} to the domain's definition and power-cycle the guest")
}

/// Checks the limit of locked memory: VFIO locks all of the guest's memory. libvirt raises QEMU's limit automatically,
/// but not above the domain's `<hard_limit>`.
pub(super) fn memlock(document: &DomainXml) -> Finding {
    let memory = document.memory;
    let Some(limit) = document.hard_limit else {
        return Finding::pass("libvirt raises the limit of locked memory automatically");
    };
    let (limits, need) = (in_units(limit), memory.saturating_add(LOCK_MARGIN));
    if limit >= need && memory != 0 {
        return Finding::pass(format!(
            "<hard_limit> of {limits} leaves room for {} of memory",
            in_units(memory)
        ));
    }
    let message = format!(
        "VFIO locks the guest's {} of memory and the memory of its devices, and <hard_limit> is {limits}",
        in_units(memory)
    );
    let found = if limit < memory {
        Finding::fail(ErrorKind::NoPassthrough, message)
    } else {
        Finding::unknown(message)
    };
    found.cure(format!("raise it to {} (virsh memtune --hard-limit), or remove it", in_units(need)))
}
