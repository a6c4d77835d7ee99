//! The inventory, attach and detach with their events, and errors, with libvirt's test driver. The same test runs with
//! the driver in this process and over a socket.

use std::time::Duration;

use hotslot_driver::device::HostDevice;
use hotslot_driver::hypervisor::{DetachScope, DomainState, Error, ErrorKind, Event, Hypervisor, Scope};
use hotslot_driver::libvirt::Libvirt;
use hotslot_driver::ownership::Ownership;
use hotslot_driver::pci::PciAddress;
use uuid::Uuid;

use crate::daemon::Daemon;
use crate::{G1, connected, expect, host_file, options};

/// The mediated device of [`host_file`].
const MDEV: Uuid = Uuid::from_u128(0xb4a1f2c0_0a3b_4b0e_9d0c_3f1d2f7c5a11);

const ALIAS: &str = "ua-7c9a1f0e-5d55-4a7e-9f43-0d2f0c3a1b11";

fn hostdev(address: PciAddress) -> String {
    format!(
        "<hostdev mode='subsystem' type='pci' managed='yes'><alias name='{ALIAS}'/><source><address
           domain='{:#x}' bus='{:#x}' slot='{:#x}' function='{:#x}'/></source></hostdev>",
        address.domain(),
        address.bus(),
        address.slot(),
        address.function()
    )
}

#[track_caller]
fn kind<T: std::fmt::Debug>(answer: Result<T, Error>) -> ErrorKind {
    answer.unwrap_err().kind
}

#[tokio::test]
async fn the_test_driver_in_this_process() {
    let dir = tempfile::tempdir().unwrap();
    story(format!("test://{}", host_file(dir.path()).display())).await;
}

#[tokio::test]
async fn the_test_driver_over_a_socket() {
    let daemon = Daemon::start();
    story(daemon.uri()).await;
}

#[tokio::test]
async fn the_numa_sockets_of_the_test_drivers_default_host() {
    let libvirt = connected("test:///default".into(), options()).await;
    assert_eq!(libvirt.node_sockets().await.unwrap(), Some([(0, 0), (1, 1)].into()));
}

async fn story(uri: String) {
    let libvirt = connected(uri, options()).await;
    inventory(&libvirt).await;
    attach_and_detach(&libvirt).await;
    owner(&libvirt).await;
    refusals(&libvirt).await;
}

async fn inventory(libvirt: &Libvirt) {
    let host = libvirt.host().await.unwrap();
    assert_eq!((host.hypervisor_type.as_str(), host.simulated), ("TEST", false));
    assert!(host.libvirt_version >= 11_000_000, "{host:?}");

    assert_eq!(libvirt.node_sockets().await.unwrap(), None, "the file has no NUMA cells");

    let devices = libvirt.devices().await.unwrap();
    assert!(devices.is_sorted_by_key(|device| device.address) && devices.len() == 10, "{devices:#?}");
    let nic: PciAddress = "0000:42:00.0".parse().unwrap();
    let listed = devices.iter().find(|device| device.address == nic).unwrap();
    assert_eq!(listed.net, ["enp66s0f0np0"]);
    let alone = HostDevice { net: Vec::new(), ..listed.clone() };
    assert_eq!(libvirt.device(nic).await.unwrap(), alone, "children are read in the listing only");

    let gpu: PciAddress = "0000:41:00.0".parse().unwrap();
    let types = libvirt.mdev_types(gpu).await.unwrap();
    let types: Vec<_> = types.iter().map(|of| (of.id.as_str(), of.available)).collect();
    assert_eq!(types, [("nvidia-232", 3), ("nvidia-233", 2)], "as libvirt prints them");
    assert_eq!(libvirt.mdev_types(nic).await.unwrap(), []);
    let mdevs = libvirt.mdevs().await.unwrap();
    let [mdev] = &mdevs[..] else { panic!("{mdevs:?}") };
    assert_eq!((mdev.uuid, mdev.parent, mdev.iommu_group), (MDEV, Some(gpu), Some(60)));

    let domains = libvirt.domains().await.unwrap();
    let [g1] = &domains[..] else { panic!("{domains:?}") };
    assert_eq!((g1.uuid, g1.name.as_str(), g1.state, g1.persistent), (G1, "g1", DomainState::Running, true));

    let documents = libvirt.documents().await.unwrap();
    let (names, _): (Vec<&str>, Vec<&str>) =
        documents.devices.iter().map(|(name, text)| (name.as_str(), text.as_str())).unzip();
    assert!(
        names.contains(&"pci_10000_e0_00_0"),
        "documents that cannot be parsed are captured too: {names:?}"
    );
    assert!(names.contains(&"net_enp66s0f0np0_b8_ce_f6_00_00_01"), "{names:?}");
    assert!(documents.domains[0].1.starts_with("<domain type='test' id='1'"), "{documents:?}");
}

async fn attach_and_detach(libvirt: &Libvirt) {
    let vf: PciAddress = "0000:01:10.0".parse().unwrap();
    let mut events = libvirt.events();
    let before = libvirt.domain(G1).await.unwrap();
    assert!(before.live.as_ref().unwrap().hostdevs.is_empty());
    assert!(before.persistent.is_some());

    libvirt.attach(G1, &hostdev(vf), Scope::Live).await.unwrap();
    let added = Event::DeviceAdded { domain: G1, alias: ALIAS.into() };
    expect(&mut events, |event| *event == added).await;
    let view = libvirt.domain(G1).await.unwrap();
    let [plugged] = &view.live.unwrap().hostdevs[..] else { panic!("not there") };
    assert_eq!((plugged.source, plugged.alias.as_deref()), (vf, Some(ALIAS)));

    libvirt.detach(G1, ALIAS, DetachScope::Live).await.unwrap();
    let removed = Event::DeviceRemoved { domain: G1, alias: ALIAS.into() };
    expect(&mut events, |event| *event == removed).await;
    assert_eq!(libvirt.domain(G1).await.unwrap(), before);
}

/// libvirt keeps the owner in both documents, and writes it as it is read.
async fn owner(libvirt: &Libvirt) {
    let before = libvirt.domain(G1).await.unwrap();
    assert_eq!(before.ownership(), Ownership::default());
    for project in ["p", "7c1f&<'\">", "q"] {
        libvirt.set_owner(G1, Some(project)).await.unwrap();
        let view = libvirt.domain(G1).await.unwrap();
        assert_eq!(view.ownership().project(), Some(project), "{view:?}");
        assert!(view.live.is_some() && view.persistent.is_some());
    }
    for _ in 0..2 {
        libvirt.set_owner(G1, None).await.unwrap();
        assert_eq!(libvirt.domain(G1).await.unwrap(), before);
    }
    assert_eq!(kind(libvirt.set_owner(Uuid::from_u128(1), Some("p")).await), ErrorKind::NoDomain);
}

async fn refusals(libvirt: &Libvirt) {
    // The test driver cannot bind drivers, but the call reaches it.
    let nic: PciAddress = "0000:42:00.0".parse().unwrap();
    assert_eq!(kind(libvirt.node_detach(nic).await), ErrorKind::Unsupported);
    assert_eq!(kind(libvirt.node_reattach(nic).await), ErrorKind::Unsupported);
    assert_eq!(kind(libvirt.node_reset(nic).await), ErrorKind::Unsupported);
    let missing = Uuid::from_u128(1);
    assert_eq!(kind(libvirt.destroy_mdev(missing).await), ErrorKind::NoDevice);
    // The test driver can only create SCSI hosts, but it can destroy any node device.
    let gpu = "0000:41:00.0".parse().unwrap();
    assert_eq!(kind(libvirt.create_mdev(gpu, "nvidia-233", missing).await), ErrorKind::Refused);
    libvirt.destroy_mdev(MDEV).await.unwrap();
    let nowhere: PciAddress = "0000:7f:1f.7".parse().unwrap();
    assert_eq!(kind(libvirt.node_detach(nowhere).await), ErrorKind::NoDevice);
    assert_eq!(kind(libvirt.domain(missing).await), ErrorKind::NoDomain);
    assert_eq!(kind(libvirt.attach(missing, &hostdev(nowhere), Scope::Live).await), ErrorKind::NoDomain);
    assert_eq!(kind(libvirt.device(nowhere).await), ErrorKind::NoDevice);
    assert_eq!(kind(libvirt.detach(G1, "ua-x", DetachScope::Live).await), ErrorKind::DeviceMissing);
    assert_eq!(kind(libvirt.attach(G1, "<hostdev type='pci'/>", Scope::Live).await), ErrorKind::Document);
    assert_eq!(kind(libvirt.monitor(G1, "{}").await), ErrorKind::Unsupported);
    let error = libvirt.agent(G1, "{\"execute\": \"guest-ping\"}", Duration::from_secs(1)).await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Unsupported);
    assert!(error.operation.contains(&G1.to_string()), "{error}");
    libvirt.attach(G1, "a\0b", Scope::Live).await.unwrap_err();
    assert_eq!(libvirt.connection(), Ok(()), "an error of a call does not break the connection");
}

/// Without a daemon the caller gets an error with the reason at once.
#[tokio::test]
async fn a_missing_daemon_is_reported_at_once() {
    let begun = std::time::Instant::now();
    let libvirt = Libvirt::connect("qemu+unix:///system?socket=/nonexistent/sock", options());
    let error = libvirt.domains().await.unwrap_err();
    assert_eq!(error.kind, ErrorKind::Away);
    assert!(begun.elapsed() < Duration::from_millis(100), "{:?}", begun.elapsed());
    let why = libvirt.tried().await.unwrap_err();
    assert!(why.contains("/nonexistent/sock"), "{why}");
    assert_eq!(libvirt.connection(), Err(why));
}
