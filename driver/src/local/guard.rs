//! Guards: what the host lives on must not be given to a guest, whatever the configuration matches.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use super::finding::{Guard, GuardKind};
use super::root::Root;
use super::{block, net};
use crate::device::{HostDevice, Role};
use crate::pci::PciAddress;

// Base classes, of the PCI Code and ID Assignment Specification.
const STORAGE: u8 = 0x01;
const NETWORK: u8 = 0x02;
const DISPLAY: u8 = 0x03;

/// The guards of a host, by device, the most telling first; a device that is not in it has none. `devices`
/// are all of the host's.
///
/// - **Storage**: what is mounted in init's namespace, what a file system in use is on in any other, swap,
///   and disks that an array or a map has open, each followed down to its functions.
/// - **Network**: interfaces with an address that is not link-local, with a route, or below another
///   interface; a VLAN counts when it carries something itself.
/// - The **console**; **bridges** and ports.
/// - A **PF** with a guarded VF. Not the other way round: to give VFs away beside a PF in use is what SR-IOV
///   is for.
/// - **Siblings** in the IOMMU group of a guarded device, but for bridges: these share groups with what is
///   behind them, and VFIO does not mind.
///
/// Where something cannot be followed to its end (ZFS pools, an overlay as the root, broken links, files that
/// cannot be read), everything that it may be on is guarded as [`GuardKind::Unknown`].
///
/// Nothing tells of disks that a program or a guest uses raw, of NICs in other network namespaces, and of an
/// IPv4 address that brings no route (a `/32`, or one on an interface that is down).
///
/// Without a `sysroot` only bridges are known, and the absence of a guard says nothing; [`guards_of_remote`] is for
/// another machine.
pub fn guards(devices: &[HostDevice], sysroot: Option<&Path>) -> BTreeMap<PciAddress, Vec<Guard>> {
    let mut found: Vec<Guard> = Vec::new();
    for device in devices.iter().filter(|device| device.bridge) {
        let reason = "a bridge or port holds up all that is behind it".to_owned();
        found.push(Guard { device: device.address, kind: GuardKind::Bridge, reason });
    }
    if let Some(root) = sysroot.map(Root::new) {
        for (findings, class) in [(block::find(&root), STORAGE), (net::find(&root), NETWORK)] {
            found.extend(findings.guards);
            let Some(reason) = findings.untold else { continue };
            for device in devices.iter().filter(|device| !device.bridge) {
                let may_be = is_or_may_be(device, class) && device.blocks_its_group();
                if may_be || findings.carriers.contains(&device.address) {
                    let reason = reason.clone();
                    found.push(Guard { device: device.address, kind: GuardKind::Unknown, reason });
                }
            }
        }
        found.extend(devices.iter().filter(|device| is_or_may_be(device, DISPLAY)).filter_map(|device| {
            let flag = root.word(format!("sys/bus/pci/devices/{}/boot_vga", device.address))?;
            let reason = "the boot console is on it (boot_vga)".to_owned();
            (flag == "1").then_some(Guard { device: device.address, kind: GuardKind::Console, reason })
        }));
    }
    by_device(devices, found)
}

/// The guards of a host that is another machine, whose mounts, routes and console cannot be seen from here: a function of
/// the storage, network or display class (or of a class that libvirt does not tell) that is bound to a host driver may
/// carry what the host lives on, and so may what shares its IOMMU group. VFs are made to be given away. `exempt` are
/// the functions that the administrator has named one by one.
pub fn guards_of_remote(
    devices: &[HostDevice],
    exempt: &BTreeSet<PciAddress>,
) -> BTreeMap<PciAddress, Vec<Guard>> {
    let may_be_needed = |device: &&HostDevice| {
        let class = [STORAGE, NETWORK, DISPLAY].into_iter().any(|class| is_or_may_be(device, class));
        class && device.blocks_its_group() && !matches!(device.role, Role::Virtual { .. })
    };
    let found = devices.iter().filter(may_be_needed).filter(|device| !exempt.contains(&device.address));
    let guard = |device: &HostDevice| Guard {
        device: device.address,
        kind: GuardKind::Unseen,
        reason: format!(
            "it is bound to the host driver {}, and what this remote host uses cannot be seen; if the host can do \
             without it, name its address in a device_spec or list it in [pci] unguarded",
            device.driver.as_deref().unwrap_or_default()
        ),
    };
    by_device(devices, found.map(guard).collect())
}

/// Guards by their devices, with those that follow for PFs and siblings.
fn by_device(devices: &[HostDevice], mut found: Vec<Guard>) -> BTreeMap<PciAddress, Vec<Guard>> {
    found.sort_by_key(|guard| guard.kind);
    let mut guards: BTreeMap<PciAddress, Vec<Guard>> = BTreeMap::new();
    for guard in found {
        guards.entry(guard.device).or_default().push(guard);
    }
    spread(devices, &mut guards);
    let listed: BTreeSet<_> = devices.iter().map(|device| device.address).collect();
    guards.retain(|address, _| listed.contains(address));
    guards
}

fn is_or_may_be(device: &HostDevice, base_class: u8) -> bool {
    device.class.is_none_or(|class| class.base() == base_class)
}

/// From VFs to their PF, then through the IOMMU groups; not further, for what is guarded only because of a
/// sibling does not carry anything itself.
fn spread(devices: &[HostDevice], guards: &mut BTreeMap<PciAddress, Vec<Guard>>) {
    let mut further = Vec::new();
    for device in devices {
        if let Role::Physical { vfs, .. } = &device.role
            && let Some(guard) = vfs.iter().find_map(|vf| guards.get(vf)?.first())
        {
            let reason = format!("its VF {} would end with it: {}", guard.device, guard.reason);
            further.push(Guard { device: device.address, kind: GuardKind::VirtualFunction, reason });
        }
    }
    for guard in further.drain(..) {
        guards.entry(guard.device).or_default().push(guard);
    }
    let bridges: BTreeSet<_> =
        devices.iter().filter(|device| device.bridge).map(|device| device.address).collect();
    // Two of a group are enough: one is a sibling of each member.
    let mut guarded: BTreeMap<u32, Vec<PciAddress>> = BTreeMap::new();
    for device in devices.iter().filter(|device| !device.bridge) {
        let Some(group) = &device.iommu_group else { continue };
        let guarded = guarded.entry(group.number).or_insert_with(|| {
            let members = group.members.iter().copied();
            members
                .filter(|member| guards.contains_key(member) && !bridges.contains(member))
                .take(2)
                .collect()
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
