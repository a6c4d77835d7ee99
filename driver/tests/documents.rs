//! Reads libvirt's documents: captured ones of several libvirt versions, and broken ones.

#![expect(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use hotslot_driver::device::{IommuGroup, Link, Role};
use hotslot_driver::domain::{ControllerModel, DomainXml, MdevHostdev, UserAlias};
use hotslot_driver::mdev::{Mdev, MdevType};
use hotslot_driver::pci::PciAddress;
use hotslot_driver::xml::nodedev::{self, NodeDevice, attach_children};
use hotslot_driver::xml::{XmlError, capabilities, domain, mdev};
use proptest::prelude::*;

fn at(address: &str) -> PciAddress {
    address.parse().unwrap()
}

fn data(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn device(path: &str) -> hotslot_driver::device::HostDevice {
    let NodeDevice::Pci(device) = nodedev::parse(&data(path)).unwrap() else { panic!("{path}") };
    *device
}

fn guest(path: &str) -> DomainXml {
    domain::parse(&data(path)).unwrap()
}

/// Returns the paths of all documents of this kind (`nodedev`, `domain`) in `tests/data`.
fn documents(kind: &str) -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data");
    let entries = |dir: &Path| -> Vec<PathBuf> {
        std::fs::read_dir(dir).into_iter().flatten().map(|entry| entry.unwrap().path()).collect()
    };
    let mut all: Vec<_> = entries(&root).iter().flat_map(|version| entries(&version.join(kind))).collect();
    all.retain(|path| path.extension().is_some_and(|extension| extension == "xml"));
    all
}

#[test]
fn an_sriov_network_card_is_read_completely() {
    let pf = device("libvirt-11.3/nodedev/pf-igb.xml");
    assert_eq!(pf.address, at("0000:01:00.0"));
    assert_eq!(pf.parent.as_deref(), Some("pci_0000_00_06_0"));
    assert_eq!((pf.vendor_id.to_string(), pf.product_id.to_string()), ("8086".into(), "10c9".into()));
    assert_eq!(pf.vendor_name.as_deref(), Some("Intel Corporation"));
    assert_eq!(pf.product_name.as_deref(), Some("82576 Gigabit Network Connection"));
    assert_eq!(pf.class.unwrap().description(), "network controller");
    assert_eq!(pf.driver.as_deref(), Some("igb"));
    assert_eq!(pf.role, Role::Physical { max_vfs: 7, vfs: vec![at("01:10.0"), at("01:10.2")] });
    assert_eq!(pf.iommu_group, Some(IommuGroup { number: 13, members: vec![at("01:00.0")] }));
    assert!(pf.express && !pf.bridge);
    let speed = || Some("2.5".to_owned());
    let link = Link { max_speed: speed(), max_width: Some(1), speed: speed(), width: Some(1) };
    assert_eq!(pf.link, Some(link.into()));

    let vf = device("libvirt-11.3/nodedev/vf-igb.xml");
    assert_eq!(vf.role, Role::Virtual { parent: pf.address });
    assert_eq!(vf.address, at("01:10.0"), "slots are decimal in a node device document");
    assert_eq!(device("libvirt-11.3/nodedev/vf-igb-while-attached.xml").driver.as_deref(), Some("vfio-pci"));
}

#[test]
fn a_pf_without_vfs_is_still_a_pf() {
    let nvme = device("libvirt-11.3/nodedev/pf-nvme-sriov-off.xml");
    assert_eq!(nvme.role, Role::Physical { max_vfs: 2, vfs: Vec::new() });
    assert_eq!(nvme.class.unwrap().description(), "NVMe controller");
}

#[test]
fn bridges_conventional_devices_and_groups_are_recognized() {
    let port = device("libvirt-11.3/nodedev/root-port.xml");
    assert!(port.bridge && port.express);
    assert_eq!(port.parent.as_deref(), Some("computer"));

    let edu = device("libvirt-11.3/nodedev/edu-shared-group.xml");
    assert!(!edu.express && !edu.bridge);
    assert_eq!((edu.link, edu.driver, edu.vendor_name), (None, None, None));
    let members = ["05:00.0", "06:01.0", "06:02.0", "06:03.0"].map(at).to_vec();
    assert_eq!(edu.iommu_group, Some(IommuGroup { number: 17, members }), "in order of address");
}

#[test]
fn serial_and_numa_node_are_read_if_present() {
    let dpu = device("libvirt-9.0/nodedev/pci_0000_42_00_0.xml");
    assert_eq!(dpu.serial.as_deref(), Some("MT2113X00000"));
    assert_eq!(dpu.numa_node, Some(1));
    assert_eq!(dpu.link.unwrap().max_speed.as_deref(), Some("16"));
    let igb = device("libvirt-11.3/nodedev/pf-igb.xml");
    assert_eq!((igb.serial, igb.numa_node), (None, None));
}

#[test]
fn mediated_devices_and_their_types_are_read() {
    let gpu = data("mdev/nodedev/gpu.xml");
    let of = |id: &str, name: &str, available| MdevType {
        id: id.into(),
        name: Some(name.into()),
        device_api: "vfio-pci".into(),
        available,
    };
    let types = [of("nvidia-232", "GRID T4-4Q", 3), of("nvidia-233", "GRID T4-8Q", 2)];
    assert_eq!(mdev::types(&gpu).unwrap(), types);
    let nameless = mdev::types(&gpu.replace("<name>GRID T4-4Q</name>", "")).unwrap();
    assert_eq!(nameless[0].name, None, "some drivers have no names for their types");
    assert_eq!(mdev::types(&data("libvirt-11.3/nodedev/pf-igb.xml")), Ok(Vec::new()));
    let error = mdev::types(&gpu.replace("<availableInstances>3<", "<availableInstances>-1<")).unwrap_err();
    let place = "<capability/capability/type/availableInstances>: `-1`";
    assert!(error.to_string().contains(place), "{error}");

    let device = |path: &str| {
        let NodeDevice::Mdev(mdev) = nodedev::parse(&data(path)).unwrap() else { panic!("{path}") };
        mdev
    };
    let uuid = "b4a1f2c0-0a3b-4b0e-9d0c-3f1d2f7c5a11".parse().unwrap();
    let name = "mdev_b4a1f2c0_0a3b_4b0e_9d0c_3f1d2f7c5a11_0000_41_00_0".to_owned();
    let (mdev_type, parent) = ("nvidia-232".to_owned(), Some(at("41:00.0")));
    let mdev = Mdev { uuid, name, mdev_type, parent, iommu_group: Some(60) };
    assert_eq!(device("mdev/nodedev/mdev.xml"), mdev);

    let old = device("mdev/nodedev/mdev-old.xml");
    assert_eq!(
        old.uuid.to_string(),
        "5f8bb9a0-2c5e-4d31-8c0f-6a3c8a7e1b22",
        "the UUID is read from the name"
    );
    assert_eq!((old.mdev_type.as_str(), old.parent), ("mtty-2", None), "its parent is no PCI function");
}

#[test]
fn documents_of_libvirt_12_say_the_same_as_before() {
    let pf = device("libvirt-12.9/nodedev/pf-igb.xml");
    assert_eq!(pf.role, Role::Physical { max_vfs: 7, vfs: vec![at("03:10.0"), at("03:10.2")] });
    let vf = |name: &str| device(&format!("libvirt-12.9/nodedev/{name}.xml"));
    for (name, driver) in
        [("vf-igb", "igbvf"), ("vf-igb-while-attached", "vfio-pci"), ("vf-igb-vgpu", "nvidia")]
    {
        assert_eq!(vf(name).role, Role::Virtual { parent: pf.address }, "{name}");
        assert_eq!(vf(name).driver.as_deref(), Some(driver), "{name}");
    }
    let types = mdev::types(&data("libvirt-12.9/nodedev/edu-mdev-types.xml")).unwrap();
    let left: Vec<_> = types.iter().map(|of| (of.id.as_str(), of.available)).collect();
    assert_eq!(left, [("lab_mdev-large", 1), ("lab_mdev-small", 3)]);
    let NodeDevice::Mdev(made) = nodedev::parse(&data("libvirt-12.9/nodedev/mdev.xml")).unwrap() else {
        panic!("no mediated device")
    };
    assert_eq!((made.mdev_type.as_str(), made.parent), ("lab_mdev-small", Some(at("00:1d.0"))));

    let q35 = guest("libvirt-12.9/domain/q35-after.xml");
    let whole: Vec<_> = q35.hostdevs.iter().map(|hostdev| (hostdev.source, hostdev.guest)).collect();
    assert_eq!(whole, [(at("03:10.0"), Some(at("02:00.0")))]);
    let alias = format!("ua-{}", made.uuid);
    assert_eq!(q35.mdevs, [MdevHostdev { uuid: made.uuid, guest: Some(at("03:00.0")), alias: Some(alias) }]);
    let sockets = capabilities::node_sockets(&data("libvirt-12.9/capabilities.xml"));
    assert_eq!(sockets, Ok(Some(BTreeMap::from([(0, 0)]))));
}

#[test]
fn the_mediated_device_of_a_guest_is_read() {
    let g1 = guest("mdev/domain/g1.xml");
    let alias = "ua-0b5bd9a1-51c0-4b13-9c6f-1a7f6f4f5d6c";
    let uuid = "b4a1f2c0-0a3b-4b0e-9d0c-3f1d2f7c5a11".parse().unwrap();
    let mdev = MdevHostdev { uuid, guest: Some(at("01:00.0")), alias: Some(alias.into()) };
    assert_eq!(g1.mdev(UserAlias::parse(alias).unwrap()), Some(&mdev));
    assert_eq!((g1.mdevs.len(), g1.hostdevs.len()), (1, 0));
    assert!(g1.occupied.contains(&at("01:00.0")), "its port is occupied");
}

#[test]
fn a_node_device_of_another_kind_is_other() {
    assert_eq!(nodedev::parse(&data("libvirt-11.3/nodedev/computer.xml")), Ok(NodeDevice::Other));
}

#[test]
fn interfaces_and_disks_are_added_to_their_function() {
    let parse = |path: &str| nodedev::parse(&data(path)).unwrap();
    let devices = attach_children(vec![
        parse("libvirt-9.0/nodedev/net_enp66s0f0np0_b8_ce_f6_00_00_01.xml"),
        parse("libvirt-9.0/nodedev/pci_0000_42_00_0.xml"),
        parse("libvirt-9.0/nodedev/block_sda_Virtual_0001.xml"),
        parse("libvirt-9.0/nodedev/pci_0000_03_00_0.xml"),
        parse("libvirt-11.3/nodedev/pci_0000_07_00_0.xml"),
        parse("libvirt-11.3/nodedev/block_nvme0n1_QEMU_NVMe_Ctrl_LAB0_1.xml"),
        parse("libvirt-11.3/nodedev/net_lo_00_00_00_00_00_00.xml"),
        // Its function is not in the list.
        parse("libvirt-11.3/nodedev/block_vda.xml"),
    ]);
    let [scsi, nvme, dpu] = &devices[..] else { panic!("{devices:?}") };
    assert_eq!(scsi.block, ["sda"], "a disk at a SCSI host");
    assert_eq!(nvme.block, ["nvme0n1"], "a multipath namespace, whose parent is the computer");
    assert_eq!(dpu.net, ["enp66s0f0np0"]);
}

#[test]
fn a_vf_whose_document_does_not_name_its_pf_is_a_plain_function() {
    let vf = data("libvirt-11.3/nodedev/vf-igb.xml");
    let role = |xml: &str| match nodedev::parse(xml) {
        Ok(NodeDevice::Pci(device)) => device.role,
        other => panic!("{other:?}"),
    };
    assert!(matches!(role(&vf), Role::Virtual { .. }));
    let (before, rest) = vf.split_once("<capability type='phys_function'>").unwrap();
    let (_, after) = rest.split_once("</capability>").unwrap();
    for bare in ["<capability type='phys_function'/>", "<capability type='phys_function'>\n</capability>"] {
        assert_eq!(role(&format!("{before}{bare}{after}")), Role::Plain);
    }
}

#[test]
fn vdpa_devices_and_interface_features_are_added_to_their_function() {
    let parse = |path: &str| nodedev::parse(&data(path)).unwrap();
    let vdpa = |path: &str, chardev: &str| {
        let xml = format!(
            "<device><name>vdpa_vdpa0</name><path>{path}</path><parent>pci_0000_42_00_0</parent>\
             <capability type='vdpa'>{chardev}</capability></device>"
        );
        nodedev::parse(&xml).unwrap()
    };
    let devices = attach_children(vec![
        parse("libvirt-9.0/nodedev/pci_0000_42_00_0.xml"),
        parse("libvirt-9.0/nodedev/net_enp66s0f0np0_b8_ce_f6_00_00_01.xml"),
        vdpa(
            "/sys/devices/pci0000:40/0000:40:01.1/0000:42:00.0/vdpa0",
            "<chardev>/dev/vhost-vdpa-0</chardev>",
        ),
        vdpa("/sys/devices/pci0000:40/0000:40:01.1/0000:42:00.0/vdpa1", ""),
        vdpa("/sys/devices/vdpasim_net/vdpa2", "<chardev>/dev/vhost-vdpa-2</chardev>"),
    ]);
    let [nic] = &devices[..] else { panic!("{devices:?}") };
    assert_eq!(nic.vdpa, ["", "/dev/vhost-vdpa-0"], "a simulated vDPA device is on no function");
    let [interface] = &nic.net[..] else { panic!("{nic:?}") };
    assert_eq!(interface.mac.map(|mac| mac.to_string()).as_deref(), Some("b8:ce:f6:00:00:01"));
    assert!(!interface.features.is_empty(), "{interface:?}");
}

#[test]
fn functions_in_32_bit_domains_and_their_group_siblings_are_left_out() {
    let pf = data("libvirt-11.3/nodedev/pf-igb.xml");
    assert!(matches!(nodedev::parse(&pf), Ok(NodeDevice::Pci(_))));
    for vmd in [
        pf.replace("<domain>0<", "<domain>65536<"),
        pf.replace(
            "<iommuGroup number='13'>",
            "<iommuGroup number='13'><address domain='0x10000' bus='0x01'/>",
        ),
    ] {
        assert_ne!(vmd, pf);
        assert_eq!(nodedev::parse(&vmd), Ok(NodeDevice::Other));
    }
}

#[test]
fn a_running_guest_is_read_completely() {
    let g4 = guest("libvirt-11.3/domain/q35-switch-pxb.xml");
    assert_eq!((g4.name.as_str(), g4.arch.as_str(), g4.machine.as_str()), ("g4", "x86_64", "pc-q35-10.0"));
    assert_eq!(g4.uuid.to_string(), "3303e79c-ed89-4efe-810d-a4e9e41bd8ed");
    assert!(g4.agent_connected);
    assert_eq!(g4.created, None);
    assert_eq!(g4.controllers.len(), 10);
    let expander = &g4.controllers[4];
    assert_eq!((expander.index, expander.model), (4, ControllerModel::PcieExpander));
    assert_eq!((expander.bus_nr, expander.address), (Some(128), Some(at("00:06.0"))));
    assert_eq!(expander.alias.as_deref(), Some("pci.4"));
    let sources: Vec<_> = g4.hostdevs.iter().map(|hostdev| hostdev.source).collect();
    assert_eq!(sources, ["01:10.0", "01:10.2", "02:00.0", "00:10.0"].map(at));
    assert_eq!(g4.hostdevs[0].guest, Some(at("08:00.0")), "libvirt's numbering");
    assert!(g4.hostdevs[0].managed && !g4.hostdevs[0].interface);
    // 9 controllers with an address, virtio-serial, SATA and 4 hostdevs; not the root buses and the source addresses.
    assert_eq!(g4.occupied.len(), 15);
}

#[test]
fn a_host_device_is_found_by_the_alias_of_its_attachment() {
    let alias = UserAlias::parse("ua-0b5bd9a1-51c0-4b13-9c6f-1a7f6f4f5d6c").unwrap();
    let instance = guest("libvirt-9.0/domain/instance-0000002a.xml");
    let vf = instance.hostdev(alias).unwrap();
    assert_eq!(vf.source, at("3b:02.3"));
    assert!(vf.interface && vf.managed);
    let lab = guest("libvirt-11.3/domain/q35-user-alias.xml");
    assert_eq!(
        lab.hostdevs[0].alias.as_deref(),
        Some("ua-gpu0"),
        "the alias of another user is read unchanged"
    );
    assert_eq!(lab.hostdev(alias), None);
}

#[test]
fn a_nova_definition_is_read_with_its_age_and_its_pci_devices() {
    let instance = guest("libvirt-9.0/domain/instance-0000002a.xml");
    assert_eq!(instance.created.as_deref(), Some("2023-05-11 08:14:02"));
    let [interface, hostdev] = &instance.hostdevs[..] else { panic!("{:?}", instance.hostdevs) };
    assert_eq!((interface.guest, hostdev.guest), (Some(at("02:00.0")), None));
    assert!(!hostdev.managed);
    assert!(!instance.controllers[1].hotplug && instance.controllers[2].hotplug);
    assert_eq!(instance.controllers[3].bus_nr, Some(200));
    assert!(instance.occupied.contains(&at("01:00.0")), "an NVMe disk's guest address");
    assert!(!instance.occupied.contains(&at("81:00.0")), "not its host address");
    assert!(!instance.agent_connected);
}

#[test]
fn bus_reserves_of_an_override_and_metadata_with_another_prefix_are_read() {
    let live = guest("libvirt-10/nova-live.xml");
    assert_eq!(live.created.as_deref(), Some("2024-10-02 11:40:37"));
    let reserves: Vec<_> = live.controllers.iter().map(|controller| controller.bus_reserve).collect();
    assert_eq!(reserves, [None, Some(3), None]);
    let controllers = &live.controllers;
    assert_eq!((controllers[1].mem_reserve, controllers[1].pref64_reserve), (None, None));
    assert_eq!((controllers[2].mem_reserve, controllers[2].pref64_reserve), (Some(64 << 20), Some(32 << 30)));
    assert!(!live.agent_connected, "the channel exists, but the agent is not connected");

    // libvirt has an attribute of its own for the first, in KiB; QEMU gets the override last.
    let reserved = data("libvirt-10/nova-live.xml").replace(" port='0x1", " memReserve='131072' port='0x1");
    let reserved = domain::parse(&reserved).unwrap().controllers;
    assert_eq!((reserved[1].mem_reserve, reserved[2].mem_reserve), (Some(128 << 20), Some(64 << 20)));

    // A definition has no aliases of controllers, but the override applies to the same controllers.
    let definition = data("libvirt-10/nova-live.xml").replace("<alias name='pci.1'/>", "");
    assert_eq!(domain::parse(&definition).unwrap().controllers[1].bus_reserve, Some(3));
}

/// `driver/tests/data/guest-facts.json`: parts of a guest's document, and the expected values.
#[test]
fn memory_and_numa_nodes_are_read_with_libvirts_rules() {
    #[derive(serde::Deserialize)]
    struct Case {
        why: String,
        guest: String,
        memory: Option<u64>,
        hard_limit: Option<u64>,
        nodes: Option<BTreeSet<u32>>,
        error: Option<String>,
    }
    let cases: Vec<Case> = serde_json::from_str(&data("guest-facts.json")).unwrap();
    for Case { why, guest, memory, hard_limit, nodes, error } in cases {
        let xml = format!(
            "<domain><name>g</name><uuid>{}</uuid>{guest}<os><type arch='x86_64'/></os><devices/></domain>",
            uuid::Uuid::nil()
        );
        match (domain::parse(&xml), error) {
            (Ok(read), None) => {
                assert_eq!((Some(read.memory), read.hard_limit), (memory, hard_limit), "{why}");
                assert_eq!(Some(read.numa_nodes), nodes, "{why}");
            }
            (Err(read), Some(error)) => assert!(read.to_string().contains(&error), "{why}: {read}"),
            (read, error) => panic!("{why}: {read:?} instead of {error:?}"),
        }
    }
}

#[test]
fn the_sockets_of_numa_nodes_are_read_or_unknown() {
    #[derive(serde::Deserialize)]
    struct Case {
        why: String,
        cells: String,
        sockets: Option<Vec<(u32, u32)>>,
        error: Option<String>,
    }
    let cases: Vec<Case> = serde_json::from_str(&data("node-sockets.json")).unwrap();
    for Case { why, cells, sockets, error } in cases {
        let xml =
            format!("<capabilities><host><topology><cells>{cells}</cells></topology></host></capabilities>");
        match (capabilities::node_sockets(&xml), error) {
            (Ok(read), None) => assert_eq!(read, sockets.map(BTreeMap::from_iter), "{why}"),
            (Err(read), Some(error)) => assert!(read.to_string().contains(&error), "{why}: {read}"),
            (read, error) => panic!("{why}: {read:?} instead of {error:?}"),
        }
    }
    assert_eq!(capabilities::node_sockets("<capabilities/>"), Ok(None));
    assert!(capabilities::node_sockets("<domain/>").is_err());
}

#[test]
fn documents_of_old_and_new_libvirt_give_the_same_guest() {
    for (old, new) in [("g1", "g1-before"), ("g4", "q35-switch-pxb"), ("g5", "i440fx")] {
        let old = guest(&format!("libvirt-9.0/domain/{old}.xml"));
        let new = guest(&format!("libvirt-11.3/domain/{new}.xml"));
        let shape = |guest: &DomainXml| -> Vec<_> {
            guest.controllers.iter().map(|c| (c.index, c.model, c.address, c.bus_nr, c.hotplug)).collect()
        };
        assert_eq!(shape(&old), shape(&new));
        assert_eq!(old.occupied, new.occupied);
    }
}

#[test]
fn every_document_is_read() {
    for (kind, least) in [("nodedev", 25), ("domain", 20)] {
        let documents = documents(kind);
        assert!(documents.len() >= least, "{kind}: {}", documents.len());
        for path in documents {
            let xml = std::fs::read_to_string(&path).unwrap();
            let error = if kind == "domain" { domain::parse(&xml).err() } else { nodedev::parse(&xml).err() };
            assert_eq!(error, None, "{}", path.display());
        }
    }
}

#[test]
fn an_error_names_the_document_the_element_and_the_line() {
    let g5 = data("libvirt-11.3/domain/i440fx.xml");
    let refusal = |from: &str, to: &str| {
        assert!(g5.contains(from), "{from}");
        domain::parse(&g5.replacen(from, to, 1)).unwrap_err().to_string()
    };
    assert_eq!(
        refusal("bus='0x01' slot='0x10'", "bus='0x01' slot='0x20'"),
        "domain g5: <devices/hostdev/source/address>: PCI slot 0x20 is out of range 0 to 0x1f (line 77)"
    );
    assert_eq!(
        refusal("slot='0x1a'", "slot='here'"),
        "domain g5: <devices/hostdev/address>: slot='here': it is not a number (line 80)"
    );
    assert_eq!(
        refusal("model='pci-root'", "model='pci-bush'"),
        "domain g5: <devices/controller>: unknown PCI controller model 'pci-bush' (line 33)"
    );
    assert_eq!(
        refusal("index='0' model='pci-root'", "model='pci-root'"),
        "domain g5: <devices/controller>: missing attribute index (line 33)"
    );
    assert_eq!(refusal("<name>g5</name>", ""), "domain: <domain>: missing element <name> (line 1)");
    assert!(refusal("10944870-", "x").starts_with("domain g5: <uuid>: `x0be8"));
    assert!(refusal("</devices>", "").starts_with("domain: <domain>: not well-formed XML: "));
    assert_eq!(
        domain::parse("<network/>").unwrap_err().to_string(),
        "domain: <domain>: unexpected root element <network>"
    );
}

#[test]
fn a_malicious_document_is_an_error() {
    let deep = format!("{}{}", "<domain>".repeat(100_000), "</domain>".repeat(100_000));
    let laughs = "<!DOCTYPE d [<!ENTITY a 'aaaa'><!ENTITY b '&a;&a;&a;'>]><domain><name>&b;</name></domain>";
    for xml in [deep.as_str(), laughs, "", "\0", "<domain", "<?xml version='1.0'?>"] {
        let error: XmlError = domain::parse(xml).unwrap_err();
        assert!(error.to_string().starts_with("domain: <domain>: "), "{error}");
        assert!(nodedev::parse(xml).is_err());
    }
}

/// A captured document with a part removed or overwritten.
fn broken() -> impl Strategy<Value = String> {
    let all: Vec<String> = ["domain", "nodedev"]
        .iter()
        .flat_map(|kind| documents(kind))
        .map(|path| std::fs::read_to_string(path).unwrap())
        .collect();
    let noise = prop_oneof![
        Just(String::new()),
        Just("<".into()),
        Just("0xffffffffff".into()),
        Just("-1".into()),
        Just("pci".into()),
        Just("<address type='pci' bus='255'/>".into()),
        "\\PC{0,8}",
    ];
    (prop::sample::select(all), any::<prop::sample::Index>(), 0usize..200, noise).prop_map(
        |(document, start, length, noise)| {
            let characters: Vec<char> = document.chars().collect();
            let start = start.index(characters.len());
            let end = (start + length).min(characters.len());
            characters[..start]
                .iter()
                .chain(&noise.chars().collect::<Vec<_>>())
                .chain(&characters[end..])
                .collect()
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn no_list_of_nodes_makes_a_parser_panic(nodes in "[-0-9,^ ]{0,16}") {
        let xml = format!(
            "<domain><name>g</name><uuid>{}</uuid><os><type arch='x86_64'/></os><devices/>\
             <cpu><numa><cell id='0'/></numa></cpu><numatune><memory nodeset='{nodes}'/></numatune></domain>",
            uuid::Uuid::nil()
        );
        match domain::parse(&xml) {
            Ok(guest) => prop_assert!(guest.numa_nodes.iter().all(|node| *node <= 1023)),
            Err(error) => prop_assert!(error.to_string().contains("expected a list of nodes such as"), "{error}"),
        }
    }

    #[test]
    fn no_broken_document_makes_a_parser_panic(xml in broken(), cut in any::<prop::sample::Index>()) {
        let end = (0..=cut.index(xml.len() + 1)).rev().find(|end| xml.is_char_boundary(*end)).unwrap();
        for xml in [&xml, &xml[..end]] {
            let errors = [domain::parse(xml).err(), nodedev::parse(xml).err(), mdev::types(xml).err()];
            for error in errors.into_iter().flatten() {
                prop_assert!(!error.element.is_empty() && !error.reason.is_empty());
            }
        }
    }
}
