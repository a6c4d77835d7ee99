//! Evaluates the guards: a device that the host needs must not be assigned, whatever the configuration matches.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use super::finding::{Guard, GuardKind};
use super::root::Root;
use super::{block, net};
use crate::device::{HostDevice, Role};
use crate::pci::{PciAddress, PciClass};

/// Returns the guards of a host by device, the most important first. A device that is not in the map has none.
/// `devices` are all devices of the host. The following are guarded:
///
/// - **Storage**: the functions below mounts in init's namespace, below file systems in use in any other namespace,
///   below swap, and below disks that an array or a map has open.
/// - **Network**: interfaces that have an address which is not link-local, that have a route, or that are below another
///   interface. A VLAN counts only when it is in use itself.
/// - The **console**, **bridges** and ports.
/// - A **PF** with a guarded VF. The VFs of a guarded PF are free, because SR-IOV is made for that.
/// - **Siblings** in the IOMMU group of a guarded device. Guarded bridges do not count here: they share groups with the
///   devices behind them, and VFIO allows that.
///
/// When a use cannot be followed to its devices (ZFS pools, an overlay as the root, broken links, files that cannot be
/// read), every device that may be affected is guarded as [`GuardKind::Unknown`].
///
/// Some uses cannot be detected: disks that a program or a guest uses raw, NICs in other network namespaces, and an
/// IPv4 address without a route (a `/32`, or one on an interface that is down).
///
/// Without a `sysroot` only bridges are guarded, so that a device without a guard may still be in use. For a remote
/// host use [`guards_of_remote`].
pub fn guards(
    devices: &BTreeMap<PciAddress, Arc<HostDevice>>,
    sysroot: Option<&Path>,
) -> BTreeMap<PciAddress, Vec<Guard>> {
    let mut found: Vec<Guard> = Vec::new();
    for device in devices.values().filter(|device| device.bridge) {
        let reason = "all devices behind a bridge or port depend on it".to_owned();
        found.push(Guard { device: device.address, kind: GuardKind::Bridge, reason });
    }
    if let Some(root) = sysroot.map(Root::new) {
        for (findings, class) in [
            (block::find(&root), PciClass::is_storage as fn(PciClass) -> bool),
            (net::find(&root), PciClass::is_network),
        ] {
            found.extend(findings.guards);
            let Some(reason) = findings.unknown else { continue };
            for device in devices.values().filter(|device| !device.bridge) {
                let may_be = is_or_may_be(device, class) && device.may_block_its_group();
                if may_be || findings.carriers.contains(&device.address) {
                    let reason = reason.clone();
                    found.push(Guard { device: device.address, kind: GuardKind::Unknown, reason });
                }
            }
        }
        found.extend(
            devices.values().filter(|device| is_or_may_be(device, PciClass::is_display)).filter_map(
                |device| {
                    let flag = root.word(format!("sys/bus/pci/devices/{}/boot_vga", device.address));
                    let (kind, reason) = match (flag.as_deref(), root.take_refused()) {
                        (Some("1"), _) => {
                            (GuardKind::Console, "the boot console is on it (boot_vga)".to_owned())
                        }
                        (_, Some(refused)) => (GuardKind::Unknown, refused),
                        (_, None) => return None,
                    };
                    Some(Guard { device: device.address, kind, reason })
                },
            ),
        );
    }
    by_device(devices, found)
}

/// Returns the guards of a remote host, whose sysfs and procfs cannot be read. A storage, network or display function,
/// or one whose class libvirt does not report, is guarded when it is bound to a host driver, and so are its siblings in
/// the IOMMU group. VFs are not guarded. The functions in `exempt`, which the administrator has named one by one, are
/// not guarded either.
pub fn guards_of_remote(
    devices: &BTreeMap<PciAddress, Arc<HostDevice>>,
    exempt: &BTreeSet<PciAddress>,
) -> BTreeMap<PciAddress, Vec<Guard>> {
    let may_be_needed = |device: &&Arc<HostDevice>| {
        let is_needed = |class: PciClass| class.is_storage() || class.is_network() || class.is_display();
        is_or_may_be(device, is_needed)
            && device.may_block_its_group()
            && !matches!(device.role, Role::Virtual { .. })
    };
    let found = devices.values().filter(may_be_needed).filter(|device| !exempt.contains(&device.address));
    let guard = |device: &Arc<HostDevice>| Guard {
        device: device.address,
        kind: GuardKind::Unseen,
        reason: format!(
            "it is bound to the host driver {}, and guards cannot be evaluated for a remote host; if the host can do \
             without it, name its address in a device_spec or list it in [pci] unguarded",
            device.driver.as_deref().unwrap_or_default()
        ),
    };
    by_device(devices, found.map(guard).collect())
}

/// Groups guards by device, and adds those that follow for PFs and siblings.
fn by_device(
    devices: &BTreeMap<PciAddress, Arc<HostDevice>>,
    mut found: Vec<Guard>,
) -> BTreeMap<PciAddress, Vec<Guard>> {
    found.sort_by_key(|guard| guard.kind);
    let mut guards: BTreeMap<PciAddress, Vec<Guard>> = BTreeMap::new();
    for guard in found {
        guards.entry(guard.device).or_default().push(guard);
    }
    spread(devices, &mut guards);
    guards.retain(|address, _| devices.contains_key(address));
    guards
}

/// Whether the class of a function is of a kind, or not known.
fn is_or_may_be(device: &HostDevice, is: impl Fn(PciClass) -> bool) -> bool {
    device.class.is_none_or(is)
}

/// Adds guards to the PFs of guarded VFs, and then to the siblings of guarded devices. A device that is guarded only
/// because of a sibling guards no further device.
fn spread(devices: &BTreeMap<PciAddress, Arc<HostDevice>>, guards: &mut BTreeMap<PciAddress, Vec<Guard>>) {
    if guards.is_empty() {
        return;
    }
    let mut further = Vec::new();
    for device in devices.values() {
        if let Role::Physical { vfs, .. } = &device.role
            && let Some(guard) = vfs.iter().find_map(|vf| guards.get(vf)?.first())
        {
            let reason = format!("assigning it would remove its VF {}: {}", guard.device, guard.reason);
            further.push(Guard { device: device.address, kind: GuardKind::VirtualFunction, reason });
        }
    }
    for guard in further.drain(..) {
        guards.entry(guard.device).or_default().push(guard);
    }
    let is_bridge = |member: &PciAddress| devices.get(member).is_some_and(|device| device.bridge);
    // Two guarded members of a group are enough: for each member at least one of them is another device.
    let mut guarded: BTreeMap<u32, Vec<PciAddress>> = BTreeMap::new();
    for device in devices.values().filter(|device| !device.bridge) {
        let Some(group) = &device.iommu_group else { continue };
        let guarded = guarded.entry(group.number).or_insert_with(|| {
            let members = group.members.iter().copied();
            members.filter(|member| guards.contains_key(member) && !is_bridge(member)).take(2).collect()
        });
        let sibling = guarded.iter().find(|member| **member != device.address);
        if let Some(guard) = sibling.and_then(|sibling| guards.get(sibling)?.first()) {
            let reason = format!("{} in its IOMMU group is guarded: {}", guard.device, guard.reason);
            further.push(Guard { device: device.address, kind: GuardKind::GroupSibling, reason });
        }
    }
    for guard in further {
        guards.entry(guard.device).or_default().push(guard);
    }
}
