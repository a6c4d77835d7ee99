//! Attach: the documents and events of a success, the errors, and the state after an error.

use hotslot_driver::device::Role;
use hotslot_driver::hypervisor::{DetachScope, NodeChange};
use hotslot_driver::vfio::OnVfio;

use super::*;

#[tokio::test]
async fn a_device_is_added_to_both_documents_with_separate_addresses() {
    let mut host = Host::small();
    host.attach(Q35, E1000E, "ua-live", Scope::Live).await.unwrap();
    assert_eq!(host.driver(E1000E).await.as_deref(), Some("vfio-pci"));
    assert!(find(&host.definition(Q35).await.unwrap(), "ua-live").is_none());

    host.attach(Q35, VF0, "ua-both", Scope::LiveAndConfig).await.unwrap();
    let (live, definition) = (host.live(Q35).await.unwrap(), host.definition(Q35).await.unwrap());
    let (live, definition) = (find(&live, "ua-both").unwrap(), find(&definition, "ua-both").unwrap());
    assert_eq!((live.source, definition.source), (address(VF0), address(VF0)));
    assert_eq!(live.guest, Some(address("0000:03:00.0")), "the first free port is used");
    assert_eq!(definition.guest, Some(address("0000:02:00.0")));
    let added: Vec<Event> =
        host.received().into_iter().filter(|event| matches!(event, Event::DeviceAdded { .. })).collect();
    let event = |alias: &str| Event::DeviceAdded { domain: Q35, alias: alias.into() };
    assert_eq!(added, [event("ua-live"), event("ua-both")]);
}

/// A device with its `<address>` in the guest, and its alias.
type Attached = ((&'static str, String), &'static str);

/// The captured guests, and what was attached to each.
fn captured_attachments() -> Vec<(&'static str, Vec<Attached>)> {
    let placed = |device, guest| (device, at(guest));
    let auto = |device| (device, String::new());
    vec![
        (
            "q35",
            vec![
                (auto(VF0), "ua-igb-vf0"),
                (auto(VF1), "ua-igb-vf1"),
                (auto(E1000E), "ua-e1000e"),
                (auto(NVME), "ua-nvme"),
            ],
        ),
        (
            "i440fx",
            vec![
                (auto(VF0), "ua-igb-vf0"),
                (placed(E1000E, "01:01.0"), "ua-e1000e"),
                (auto(EDU), "ua-edu"),
                (auto(NVME_SRIOV), "ua-nvme-sriov"),
            ],
        ),
        (
            "switch",
            vec![
                (placed(VF0, "06:00.0"), "ua-igb-vf0"),
                (placed(VF1, "07:00.0"), "ua-igb-vf1"),
                (placed(E1000E, "02:00.0"), "ua-e1000e"),
                (placed(EDU, "04:01.0"), "ua-edu"),
            ],
        ),
        (
            "pxb",
            vec![
                (placed(VF0, "04:00.0"), "ua-igb-vf0"),
                (placed(VF1, "05:00.0"), "ua-igb-vf1"),
                (placed(E1000E, "01:00.0"), "ua-e1000e"),
            ],
        ),
    ]
}

/// The documents equal those that `virsh attach-device --live` of libvirt 11.3 made for four guests.
#[tokio::test]
async fn documents_are_printed_as_by_libvirt() {
    for (name, attachments) in captured_attachments() {
        // virsh prints a line break after the document.
        let captured = |when: &str| {
            let file = data(&format!("tests/data/libvirt-11.3/domain/{name}-{when}.xml"));
            format!("{}\n", fs::read_to_string(file).unwrap().trim_end())
        };
        let dir = small();
        fs::remove_dir_all(dir.path().join("domains")).unwrap();
        fs::create_dir(dir.path().join("domains")).unwrap();
        fs::write(dir.path().join("domains/guest.xml"), captured("before")).unwrap();
        let host = Host::open(dir);
        let guest = host.sim.domains().await.unwrap()[0].uuid;
        for ((device, guest_address), alias) in &attachments {
            let xml = hostdev_with(device, &format!("<alias name='{alias}'/>{guest_address}"));
            host.sim.attach(guest, &xml, Scope::Live).await.unwrap();
        }
        assert_eq!(text(&host, guest, "live"), captured("after"), "{name}");
        for (_, alias) in &attachments {
            host.sim.detach(guest, alias, DetachScope::Live).await.unwrap();
        }
        assert_eq!(text(&host, guest, "live"), captured("before"), "{name} after detach");
    }
}

/// Returns a document from the state directory.
fn text(host: &Host, guest: Uuid, document: &str) -> String {
    let kept = fs::read_to_string(host.file(format!("state/domains/{guest}.json"))).unwrap();
    let kept: serde_json::Value = serde_json::from_str(&kept).unwrap();
    kept[document].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn a_vf_is_attached_as_an_interface() {
    let host = Host::small();
    let more = "<mac address='52:54:00:12:34:56'/><vlan><tag id='42'/></vlan><alias name='ua-net'/>";
    let xml = format!("<interface type='hostdev' managed='yes'>{}{more}</interface>", source(VF0));
    host.sim.attach(Q35, &xml, Scope::LiveAndConfig).await.unwrap();
    let live = host.live(Q35).await.unwrap();
    assert!(find(&live, "ua-net").unwrap().interface);
    let printed = text(&host, Q35, "live");
    let expected = "    </controller>\n    \
        <interface type='hostdev' managed='yes'>\n      \
          <mac address='52:54:00:12:34:56'/>\n      \
          <driver name='vfio'/>\n      \
          <source>\n        \
            <address type='pci' domain='0x0000' bus='0x04' slot='0x10' function='0x0'/>\n      \
          </source>\n      \
          <vlan>\n        \
            <tag id='42'/>\n      \
          </vlan>\n      \
          <alias name='ua-net'/>\n      \
          <address type='pci' domain='0x0000' bus='0x02' slot='0x00' function='0x0'/>\n    \
        </interface>\n    <serial";
    assert!(printed.contains(expected), "{printed}");

    let pf = format!("<interface type='hostdev' managed='yes'>{}</interface>", source(E1000E));
    assert_eq!(refused(host.sim.attach(Q35, &pf, Scope::Live).await).0, ErrorKind::NotAssignable);
}

#[tokio::test]
async fn a_device_can_be_in_one_guest_only() {
    let host = Host::small();
    host.attach(Q35, VF0, "ua-1", Scope::Live).await.unwrap();
    for guest in [Q35, I440FX] {
        let (kind, text) = refused(host.attach(guest, VF0, "ua-2", Scope::Live).await);
        assert_eq!(kind, ErrorKind::InUse);
        assert!(text.ends_with("PCI device 0000:04:10.0 is in use by driver QEMU, domain q35"), "{text}");
    }
    // A definition may contain the device nevertheless.
    host.attach(SWITCH, VF0, "ua-2", Scope::Config).await.unwrap();
    // When a guest has a VF, an attach of its PF reports the VF as in use.
    let (kind, text) = refused(host.attach(I440FX, PF, "ua-3", Scope::Live).await);
    assert_eq!(kind, ErrorKind::InUse);
    assert!(text.contains(VF0), "{text}");
}

#[tokio::test]
async fn an_iommu_group_can_be_in_one_guest_only() {
    let host = Host::small();
    let (kind, text) = refused(host.attach(Q35, PAIR0, "ua-0", Scope::Live).await);
    assert_eq!(kind, ErrorKind::GroupNotViable);
    assert!(text.contains("device_add': vfio 0000:06:00.0: group 18 is not viable"), "{text}");
    assert_eq!(host.driver(PAIR0).await.as_deref(), Some("e1000e"), "the host driver is bound again");

    host.control(&format!("device driver {PAIR1} vfio-pci"));
    host.attach(Q35, PAIR0, "ua-0", Scope::Live).await.unwrap();
    let (kind, text) = refused(host.attach(I440FX, PAIR1, "ua-1", Scope::Live).await);
    assert_eq!(kind, ErrorKind::InUse);
    assert!(text.contains("0000:06:00.0 is in use by driver QEMU, domain q35"), "{text}");
    host.attach(Q35, PAIR1, "ua-1", Scope::Live).await.unwrap();
}

#[tokio::test]
async fn a_device_that_cannot_be_assigned_is_refused() {
    let mut host = Host::small();
    let cases = [
        ("0000:0f:00.0", ErrorKind::NoDevice, "not found: could not access"),
        (ROOT_PORT, ErrorKind::NotAssignable, "Non-endpoint PCI devices cannot be assigned"),
        (EDU, ErrorKind::NoFreePort, "No more available PCI slots"),
        (BRIDGED_EDU, ErrorKind::NoFreePort, "No more available PCI slots"),
    ];
    for (device, kind, words) in cases {
        let (got, text) = refused(host.attach(Q35, device, "ua-x", Scope::Live).await);
        assert_eq!(got, kind, "{device}");
        assert!(text.contains(words), "{device}: {text}");
    }
    assert_eq!(refused(host.attach(FULL, VF0, "ua-x", Scope::Live).await).0, ErrorKind::NoFreePort);
    // libvirt unbound the host driver before it noticed the error.
    let name = || "net_eth7_26_59_b5_c9_13_51".to_owned();
    let bounced =
        [NodeChange::Deleted, NodeChange::Created].map(|change| Event::NodeDevice { name: name(), change });
    assert_eq!(host.received(), bounced);
    assert_eq!(
        refused(host.attach(I440FX, BRIDGED_EDU, "ua-x", Scope::Live).await).0,
        ErrorKind::GroupNotViable
    );
    // A device that does not exist can be added to a definition, and libvirt adds a port when none is free.
    host.attach(SWITCH, "0000:0f:00.0", "ua-x", Scope::Config).await.unwrap();
    let ports = |document: &DomainXml| document.controllers.len();
    let before = ports(&host.definition(FULL).await.unwrap());
    host.attach(FULL, VF0, "ua-x", Scope::Config).await.unwrap();
    assert_eq!(ports(&host.definition(FULL).await.unwrap()), before + 1);
}

#[tokio::test]
async fn guest_addresses_are_checked() {
    let host = Host::small();
    let cases = [
        ("02:00.1", "Only PCI device addresses with function=0 are supported"),
        ("01:00.0", "Attempted double use of PCI Address 0000:01:00.0"),
        ("40:00.0", "Invalid PCI address 0000:40:00.0. Only PCI buses up to"),
        ("00:1e.0", "doesn't support hotplug"),
    ];
    for (guest, words) in cases {
        let xml = hostdev_with(VF0, &at(guest));
        let (kind, text) = refused(host.sim.attach(Q35, &xml, Scope::Live).await);
        assert_eq!(kind, ErrorKind::BadGuestAddress, "{guest}");
        assert!(text.contains(words), "{guest}: {text}");
    }
    host.sim.attach(Q35, &hostdev_with(VF0, &at("04:00.0")), Scope::Live).await.unwrap();
    assert_eq!(host.live(Q35).await.unwrap().hostdevs[0].guest, Some(address("0000:04:00.0")));
}

#[tokio::test]
async fn aliases_are_the_users_or_libvirts() {
    let host = Host::small();
    for (device, alias, kept) in
        [(VF0, "mine", "hostdev0"), (VF1, "ua-ö", "hostdev1"), (NVME, "ua-n_1", "ua-n_1")]
    {
        host.attach(Q35, device, alias, Scope::Live).await.unwrap();
        assert!(find(&host.live(Q35).await.unwrap(), kept).is_some(), "{alias}");
    }
    let (kind, text) = refused(host.attach(Q35, E1000E, "ua-n_1", Scope::Live).await);
    assert_eq!(kind, ErrorKind::AlreadyDefined);
    assert!(text.contains("non unique alias detected: ua-n_1"), "{text}");
    host.attach(SWITCH, NVME, "mine", Scope::Config).await.unwrap();
    let definition = host.definition(SWITCH).await.unwrap();
    assert_eq!(definition.hostdevs[0].alias, None, "a definition only keeps the user's alias");
}

#[tokio::test]
async fn the_state_of_the_domain_and_its_definition_is_checked() {
    let host = Host::with("[guest.full]\ntransient = true");
    let missing = guest(99);
    assert_eq!(refused(host.attach(missing, VF0, "ua-1", Scope::Live).await).0, ErrorKind::NoDomain);
    for scope in [Scope::Live, Scope::LiveAndConfig] {
        assert_eq!(refused(host.attach(SWITCH, VF0, "ua-1", scope).await).0, ErrorKind::NotRunning);
    }
    host.attach(SWITCH, VF0, "ua-1", Scope::Config).await.unwrap();
    let (kind, text) = refused(host.attach(SWITCH, VF0, "ua-2", Scope::Config).await);
    assert_eq!(kind, ErrorKind::AlreadyDefined);
    assert!(text.ends_with("device is already in the domain configuration"), "{text}");
    assert_eq!(refused(host.attach(FULL, VF0, "ua-1", Scope::Config).await).0, ErrorKind::Refused);
    assert_eq!(host.definition(FULL).await, None);
    host.control("destroy full");
    assert_eq!(refused(host.sim.domain(FULL).await).0, ErrorKind::NoDomain);
}

#[tokio::test]
async fn the_captured_sysfs_tells_which_host_drivers_are_vfio_drivers() {
    let dir = small();
    let file = dir.path().join("devices/pci_0000_04_10_0.xml");
    let document = fs::read_to_string(&file).unwrap();
    assert!(document.contains("<name>igbvf</name>"), "{document}");
    fs::write(&file, document.replace("<name>igbvf</name>", "<name>acme_gpu</name>")).unwrap();
    for folder in ["class/vfio-dev", "bus/pci/devices/0000:04:10.0/vfio-dev", "bus/pci/devices/0000:04:10.2"]
    {
        fs::create_dir_all(dir.path().join("root/sys").join(folder)).unwrap();
    }
    let host = Host::open(dir);
    let on_vfio = async |device: &str| host.sim.device(address(device)).await.unwrap().vfio();
    assert_eq!(on_vfio(VF0).await, OnVfio::Yes, "whatever the driver's name is");
    assert_eq!(on_vfio(VF1).await, OnVfio::No);
    assert_eq!(host.sim.device(address(E1000E)).await.unwrap().vfio_dev, None, "it has no files");
    let unmanaged = hostdev(VF0, "ua-a").replace("managed='yes'", "managed='no'");
    host.sim.attach(Q35, &unmanaged, Scope::Live).await.unwrap();
    assert_eq!(host.driver(VF0).await.as_deref(), Some("acme_gpu"), "it stays on its driver");
    host.sim.detach(Q35, "ua-a", DetachScope::Live).await.unwrap();
    host.control(&format!("device driver {VF0} igbvf"));
    assert_eq!(on_vfio(VF0).await, OnVfio::No);
    host.sim.node_reattach(address(VF0)).await.unwrap();
    assert_eq!(on_vfio(VF0).await, OnVfio::Yes);
}

#[tokio::test]
async fn unmanaged_devices_stay_on_vfio() {
    let host = Host::small();
    let unmanaged = hostdev(VF0, "ua-1").replace("'yes'", "'no'");
    let (kind, text) = refused(host.sim.attach(Q35, &unmanaged, Scope::Live).await);
    assert_eq!(kind, ErrorKind::NotAssignable);
    assert!(
        text.contains("Unmanaged PCI device 0000:04:10.0 must be manually detached from the host"),
        "{text}"
    );
    host.control(&format!("device driver {VF0} vfio-pci"));
    host.sim.attach(Q35, &unmanaged, Scope::Live).await.unwrap();
    host.control("destroy q35");
    assert_eq!(host.driver(VF0).await.as_deref(), Some("vfio-pci"));
}

#[tokio::test]
async fn attaching_a_pf_removes_its_vfs() {
    let mut host = Host::small();
    host.attach(Q35, PF, "ua-pf", Scope::Live).await.unwrap();
    assert_eq!(refused(host.sim.device(address(VF0)).await).0, ErrorKind::NoDevice);
    let gone = |name: &str| Event::NodeDevice { name: name.into(), change: NodeChange::Deleted };
    let received = host.received();
    assert!(
        received.contains(&gone("pci_0000_04_10_0")) && received.contains(&gone("pci_0000_04_10_2")),
        "{received:?}"
    );
    host.control("destroy q35");
    let pf = host.sim.device(address(PF)).await.unwrap();
    assert_eq!(pf.driver.as_deref(), Some("igb"));
    let Role::Physical { vfs, .. } = pf.role else { panic!("{:?}", pf.role) };
    assert_eq!(vfs, [], "the VFs do not come back with the driver");
}

#[tokio::test]
async fn documents_that_libvirt_refuses_are_refused() {
    let host = Host::small();
    let good = hostdev(VF0, "ua-1");
    let bad = [
        "".to_owned(),
        "<hostdev".to_owned(),
        good.replace("</source>", ""),
        good.replace("type='pci'", ""),
        good.replace("managed='yes'", "managed='perhaps'"),
        good.replace("slot='16'", "slot='32'"),
        good.replace("slot='16'", "slot='0xzz'"),
        good.replace("source>", "sauce>"),
        good.replace("hostdev", "hostdevil"),
        hostdev("0000:00:00.0", "ua-1"),
        hostdev_with(VF0, "<rom bar='maybe'/>"),
        hostdev_with(VF0, "<address type='pci' bus='0x100'/>"),
        format!("<!DOCTYPE x [<!ENTITY e 'e'>]>{good}"),
        format!("<interface type='hostdev'><mac address='x'/>{}</interface>", source(VF0)),
        format!("<interface type='hostdev'><mac address='01:00:00:00:00:00'/>{}</interface>", source(VF0)),
        format!("<interface type='hostdev'><vlan><tag id='4096'/></vlan>{}</interface>", source(VF0)),
    ];
    for xml in bad {
        assert_eq!(refused(host.sim.attach(Q35, &xml, Scope::Live).await).0, ErrorKind::Document, "{xml}");
    }
    let disk = host.sim.attach(Q35, "<disk type='file'/>", Scope::Live).await;
    assert_eq!(refused(disk).0, ErrorKind::Unsupported);
    assert_eq!(host.live(Q35).await.unwrap().hostdevs, []);
}
