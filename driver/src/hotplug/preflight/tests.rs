use super::room::in_units;
use super::*;
use crate::hypervisor::DomainInfo;
use crate::xml::nodedev::{self, NodeDevice};

fn facts(xml: &str) -> Facts {
    let NodeDevice::Pci(device) = nodedev::parse(xml).unwrap() else { panic!("{xml}") };
    Facts::from(*device)
}

/// Returns the message of `free_port`'s refusal, or `None` when there is room.
fn refused(live: &DomainXml, devices: &[Facts]) -> Option<String> {
    refused_with(live, Some(live), devices)
}

/// The same, for a guest whose definition differs from its live document.
fn refused_with(live: &DomainXml, definition: Option<&DomainXml>, devices: &[Facts]) -> Option<String> {
    let info = DomainInfo {
        uuid: live.uuid,
        name: live.name.clone(),
        state: DomainState::Running,
        persistent: definition.is_some(),
        run: Some(1),
    };
    let view = DomainView { info, live: Some(live.clone()), persistent: definition.cloned() };
    let found = free_port(&view, live, devices);
    assert_eq!(found.result == CheckResult::Fail, found.cure.is_some());
    found.cure.map(|cure| format!("{}; {cure}", found.message))
}

#[test]
fn free_ports_are_counted_for_all_devices_of_a_request_together() {
    let vf = facts(include_str!("../../../tests/data/libvirt-11.3/nodedev/vf-igb.xml"));
    let edu = facts(include_str!("../../../tests/data/libvirt-11.3/nodedev/edu-own-group.xml"));
    let guest = |xml: &str| crate::xml::domain::parse(xml).unwrap();

    let q35 = guest(include_str!("../../../tests/data/libvirt-11.3/domain/q35-before.xml"));
    assert_eq!(refused(&q35, &vec![vf.clone(); 7]), None);
    let reason = refused(&q35, &vec![vf.clone(); 8]).unwrap();
    assert!(reason.contains("8 PCI Express device(s) requested, room for 7; add 1 port(s)"), "{reason}");
    // Ports that the definition has already come with the next start.
    let document = include_str!("../../../tests/data/libvirt-11.3/domain/q35-before.xml");
    let port = "<controller type='pci' index='30' model='pcie-root-port'><address type='pci' domain='0' bus='0' \
                slot='0x1c' function='0'/></controller></devices>";
    let prepared = guest(&document.replace("</devices>", port));
    let reason = refused_with(&q35, Some(&prepared), &vec![vf.clone(); 8]).unwrap();
    assert!(reason.contains("start it again: it then has the 8 free port(s) of its definition"), "{reason}");
    let reason = refused_with(&q35, Some(&prepared), &vec![vf.clone(); 9]).unwrap();
    assert!(reason.contains("room for 7; add 1 port(s)"), "{reason}");
    let reason = refused_with(&q35, None, &vec![vf.clone(); 8]).unwrap();
    assert!(reason.contains("with 8 more pcie-root-port controller(s)"), "{reason}");
    // Not more are advised than slots are free, or than one request adds.
    let reason = refused(&q35, &vec![vf.clone(); 60]).unwrap();
    let most = crate::hotplug::ports::room_for_ports(&q35);
    let says = format!("add {most} port(s)");
    assert!((20..=30).contains(&most) && reason.contains(&says), "{reason}");
    let says = format!("room for {} device(s), and the other {} do not fit", 7 + most, 53 - most);
    assert!(reason.contains(&says), "{reason}");
    let mut narrow = q35.clone();
    narrow.occupied.extend((1..0x1f).map(|slot| PciAddress::new(0, 0, slot, 0).unwrap()));
    let reason = refused(&narrow, &vec![vf.clone(); 8]).unwrap();
    assert!(reason.contains("has 7 free port(s), and no room for more"), "{reason}");
    let reason = refused(&q35, &[vf.clone(), edu.clone()]).unwrap();
    assert!(reason.contains("1 conventional PCI device(s) requested, room for 0"), "{reason}");
    assert!(reason.contains("; add a pcie-to-pci-bridge"), "no detach makes a bus for it: {reason}");
    let bridge = "<controller type='pci' index='20' model='pcie-to-pci-bridge'><address type='pci' domain='0' \
                  bus='0' slot='0x1c' function='0'/></controller></devices>";
    let held = "<hostdev mode='subsystem' type='pci' managed='yes'><source><address domain='0' bus='6' slot='0' \
                function='0'/></source><address type='pci' domain='0' bus='0' slot='0x1b' function='0'/></hostdev>";
    let bridged = guest(&document.replace("</devices>", &(held.to_owned() + bridge)));
    let reason = refused(&bridged, &vec![edu.clone(); 40]).unwrap();
    assert!(reason.contains("; detach a device, or add a pcie-to-pci-bridge"), "{reason}");

    // On i440fx both kinds use the same slots.
    let mut i440fx = guest(include_str!("../../../tests/data/libvirt-11.3/domain/i440fx.xml"));
    let mut room = Topology::of(&i440fx).free_ports();
    i440fx.occupied.extend(std::iter::from_fn(|| room.take(true)).skip(1));
    assert_eq!(refused(&i440fx, std::slice::from_ref(&edu)), None);
    let reason = refused(&i440fx, &[vf, edu]).unwrap();
    assert!(reason.contains("2 PCI device(s) requested, room for 1"), "{reason}");
    assert!(reason.contains("a pci-bridge controller"), "{reason}");
}

#[test]
fn bytes_are_formatted_in_the_largest_unit_that_gives_a_whole_number() {
    for (bytes, expected) in [
        (0, "0 bytes"),
        (1023, "1023 bytes"),
        (16 << 10, "16 KiB"),
        ((1 << 30) + (1 << 20), "1025 MiB"),
        (32 << 30, "32 GiB"),
        (u64::MAX, "18446744073709551615 bytes"),
    ] {
        assert_eq!(in_units(bytes), expected);
    }
}
