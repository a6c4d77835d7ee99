//! Assignment of a whole IOMMU group, whose members are first unbound from their host drivers.

use hotslot_driver::device::HostDevice;
use hotslot_driver::hotplug::{self, DetachLimits, Unplugged};
use hotslot_driver::hypervisor::NodeChange;
use hotslot_driver::xml::hostdev::Templates;

use super::*;

async fn pair(host: &Host) -> Vec<HostDevice> {
    vec![host.sim.device(address(PAIR0)).await.unwrap(), host.sim.device(address(PAIR1)).await.unwrap()]
}

#[tokio::test]
async fn both_functions_of_a_group_are_plugged_and_rebound_afterwards() {
    let host = Host::small();
    let (sim, templates, limits) =
        (host.sim.as_ref(), Templates::load(None).unwrap(), DetachLimits::default());
    hotplug::free_group(sim, &pair(&host).await).await.unwrap();
    for member in [PAIR0, PAIR1] {
        assert_eq!(host.driver(member).await.as_deref(), Some("vfio-pci"));
    }
    let specs = [spec(PAIR0, 1), spec(PAIR1, 2)];
    for spec in &specs {
        let presence = hotplug::plug(sim, &templates, Q35, spec, Scope::LiveAndConfig, limits).await.unwrap();
        assert!(presence.live && presence.config);
    }
    for spec in &specs {
        let unplugged = hotplug::unplug(sim, &templates, Q35, spec, true, limits).await.unwrap();
        assert_eq!(unplugged, Unplugged::Gone);
        assert_eq!(host.sim.device(spec.source).await.unwrap().driver.as_deref(), Some("vfio-pci"));
    }
    hotplug::rebind_host_drivers(sim, &specs.map(|spec| spec.source)).await.unwrap();
    for member in [PAIR0, PAIR1] {
        assert_eq!(host.driver(member).await.as_deref(), Some("e1000e"));
    }
}

/// Only members that are bound to a host driver are unbound.
#[tokio::test]
async fn a_function_that_someone_else_bound_to_vfio_is_left_alone() {
    let host = Host::small();
    host.control(&format!("device driver {PAIR1} vfio-pci"));
    host.control("fault node-detach fail nth=2 text=it-was-to-be-left-alone");
    hotplug::free_group(host.sim.as_ref(), &pair(&host).await).await.unwrap();
    assert_eq!(host.driver(PAIR0).await.as_deref(), Some("vfio-pci"));
}

#[tokio::test]
async fn a_group_that_cannot_be_freed_completely_keeps_its_host_drivers() {
    for (fault, kind) in [
        ("fault node-detach fail nth=2 kind=no-passthrough", ErrorKind::NoPassthrough),
        ("fault node-detach fail at=after nth=2 kind=timed-out", ErrorKind::TimedOut),
    ] {
        let host = Host::small();
        host.control(fault);
        let error = hotplug::free_group(host.sim.as_ref(), &pair(&host).await).await.unwrap_err();
        assert_eq!(error.kind, kind, "{fault}");
        for member in [PAIR0, PAIR1] {
            assert_eq!(host.driver(member).await.as_deref(), Some("e1000e"), "{fault}");
        }
    }
    // The message says what could not be undone.
    let host = Host::small();
    host.control("fault node-detach fail nth=2 text=first");
    host.control("fault node-reattach fail text=second");
    let error = hotplug::free_group(host.sim.as_ref(), &pair(&host).await).await.unwrap_err();
    assert!(error.message.starts_with("first; and rebinding the host drivers failed: "), "{error}");
    assert!(error.message.contains(&format!("rebind the host driver of {PAIR0}")), "{error}");
}

#[tokio::test]
async fn all_functions_are_rebound_even_if_one_fails() {
    let host = Host::small();
    hotplug::free_group(host.sim.as_ref(), &pair(&host).await).await.unwrap();
    host.control("fault node-reattach fail kind=in-use");
    let given = hotplug::rebind_host_drivers(host.sim.as_ref(), &[address(PAIR0), address(PAIR1)]).await;
    let (kind, _) = refused(given);
    assert_eq!(kind, ErrorKind::InUse);
    assert_eq!(host.driver(PAIR0).await.as_deref(), Some("vfio-pci"));
    assert_eq!(host.driver(PAIR1).await.as_deref(), Some("e1000e"));
}

#[tokio::test]
async fn a_function_is_unbound_from_its_host_driver_and_rebound() {
    let mut host = Host::small();
    let vf = address(VF0);
    let child = |change| Event::NodeDevice { name: "net_eth7_26_59_b5_c9_13_51".into(), change };
    host.sim.node_detach(vf).await.unwrap();
    host.sim.node_detach(vf).await.unwrap();
    assert_eq!(host.driver(VF0).await.as_deref(), Some("vfio-pci"));
    assert_eq!(host.received(), [child(NodeChange::Deleted)], "the netdev vanishes once");
    let mut host = host.reopened();
    assert_eq!(host.driver(VF0).await.as_deref(), Some("vfio-pci"), "the driver is kept after a restart");
    host.sim.node_reattach(vf).await.unwrap();
    assert_eq!(host.driver(VF0).await.as_deref(), Some("igbvf"));
    assert_eq!(host.received(), [child(NodeChange::Created)]);

    host.attach(Q35, VF0, "ua-0", Scope::Live).await.unwrap();
    for (kind, text) in [refused(host.sim.node_detach(vf).await), refused(host.sim.node_reattach(vf).await)] {
        assert_eq!(kind, ErrorKind::InUse);
        assert!(text.ends_with("PCI device 0000:04:10.0 is in use by driver QEMU, domain q35"), "{text}");
    }
    let (kind, text) = refused(host.sim.node_detach(address(PF)).await);
    assert!(kind == ErrorKind::InUse && text.contains(VF0), "its VF is in a guest: {text}");
    host.control("destroy q35");
    host.sim.node_detach(address(PF)).await.unwrap();
    assert_eq!(
        refused(host.sim.device(vf).await).0,
        ErrorKind::NoDevice,
        "the VFs vanish with the PF's host driver"
    );
    let nowhere = address("0000:0f:00.0");
    assert_eq!(refused(host.sim.node_detach(nowhere).await).0, ErrorKind::NoDevice);
    assert_eq!(refused(host.sim.node_reattach(nowhere).await).0, ErrorKind::NoDevice);
}

#[tokio::test]
async fn numa_sockets_come_from_the_configuration() {
    assert_eq!(Host::small().sim.node_sockets().await.unwrap(), None);
    let sockets = Host::with("node_sockets = [0, 0, 1]").sim.node_sockets().await.unwrap();
    assert_eq!(sockets, Some([(0, 0), (1, 0), (2, 1)].into()));
}
