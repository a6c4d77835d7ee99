//! Start, stop, save, migration and other changes of a guest's state.

use hotslot_driver::hypervisor::{DetachScope, DomainState, Lifecycle, NodeChange};
use hotslot_driver::xml;
use tokio::time::sleep;

use super::*;

fn lifecycle(domain: Uuid, change: Lifecycle) -> Event {
    Event::Lifecycle { domain, change }
}

#[tokio::test(start_paused = true)]
async fn a_stop_removes_live_devices_without_events_for_them() {
    let mut host = Host::with("release_ms = 2000");
    host.attach(Q35, VF0, "ua-live", Scope::Live).await.unwrap();
    host.attach(Q35, NVME, "ua-both", Scope::LiveAndConfig).await.unwrap();
    host.received();
    host.control("shutdown q35");
    assert_eq!(host.received(), [lifecycle(Q35, Lifecycle::Shutdown), lifecycle(Q35, Lifecycle::Stopped)]);
    assert_eq!(host.sim.domain(Q35).await.unwrap().info.state, DomainState::ShutOff);
    assert_eq!(host.live(Q35).await, None);
    assert_eq!(host.driver(VF0).await.as_deref(), Some("vfio-pci"), "the host driver is not rebound yet");
    sleep(Duration::from_secs(3)).await;
    assert_eq!(host.driver(VF0).await.as_deref(), Some("igbvf"));
    assert_eq!(host.driver(NVME).await.as_deref(), Some("nvme"));
    let back = |name: &str| Event::NodeDevice { name: name.into(), change: NodeChange::Created };
    assert_eq!(
        host.received(),
        [back("net_eth7_26_59_b5_c9_13_51"), back("block_nvme0n1_QEMU_NVMe_Ctrl_LAB0_1")]
    );

    host.control("start q35");
    let live = host.live(Q35).await.unwrap();
    assert_eq!(live.hostdevs.len(), 1, "the device that was only in the live document is gone");
    assert_eq!(find(&live, "ua-both").unwrap().source, address(NVME));
    assert_eq!(host.driver(NVME).await.as_deref(), Some("vfio-pci"));
    let received = host.received();
    let started = [lifecycle(Q35, Lifecycle::Started), lifecycle(Q35, Lifecycle::Resumed)];
    assert!(received.windows(2).any(|received| received == started), "{received:?}");
}

#[tokio::test]
async fn destroying_a_guest_cancels_pending_unplug_requests() {
    let mut host = Host::small();
    host.attach(Q35, VF0, "ua-1", Scope::LiveAndConfig).await.unwrap();
    host.control("guest q35 unplug=ignore");
    host.sim.detach(Q35, "ua-1", DetachScope::Live).await.unwrap();
    host.received();
    host.control("destroy q35");
    assert!(!host.received().contains(&removed(Q35, "ua-1")));
    host.control("start q35");
    host.sim.detach(Q35, "ua-1", DetachScope::Live).await.unwrap();
}

/// The live documents equal those that libvirt 11.3 made from these definitions.
#[tokio::test]
async fn a_start_makes_the_same_document_as_libvirt() {
    let host = Host::small();
    host.control("start switch");
    host.control("destroy q35");
    host.control("start q35");
    for (guest, name) in [(SWITCH, "switch"), (Q35, "q35")] {
        let captured = data(&format!("tests/data/libvirt-11.3/domain/{name}-before.xml"));
        let captured = xml::domain::parse(&fs::read_to_string(captured).unwrap()).unwrap();
        assert_eq!(host.live(guest).await.unwrap(), captured);
    }
}

#[tokio::test]
async fn a_start_fails_where_libvirt_fails() {
    let host = Host::small();
    host.attach(SWITCH, VF0, "ua-1", Scope::Config).await.unwrap();
    host.attach(Q35, VF0, "ua-1", Scope::Live).await.unwrap();
    let error = host.sim.control("start switch").unwrap_err();
    assert!(error.contains("is in use by driver QEMU, domain q35"), "{error}");
    host.control("destroy q35");
    host.control("start switch");
    host.control("destroy switch");
    host.control("device remove pci_0000_04_10_0");
    let error = host.sim.control("start switch").unwrap_err();
    assert!(error.contains("0000:04:10.0 not found"), "{error}");
    host.control("device add pci_0000_04_10_0");
    host.attach(SWITCH, PAIR0, "ua-2", Scope::Config).await.unwrap();
    let error = host.sim.control("start switch").unwrap_err();
    assert!(error.contains("group 18 is not viable"), "{error}");
    host.attach(SWITCH, PAIR1, "ua-3", Scope::Config).await.unwrap();
    host.control("start switch");
    assert_eq!(host.live(SWITCH).await.unwrap().hostdevs.len(), 3);
    host.control("destroy switch");
    for device in [PAIR0, PAIR1] {
        assert_eq!(
            host.driver(device).await.as_deref(),
            Some("e1000e"),
            "both host drivers are rebound, because both devices are released at once"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn the_guest_agent_connects_after_the_boot() {
    let mut host = Host::with(
        "[guest.q35]\nboot_ms = 5000\n[guest.q35.agent_answers]\nguest-ping = '{\"return\":{}}'\n",
    );
    let ping = || host.sim.agent(Q35, r#"{"execute":"guest-ping"}"#, Duration::from_secs(1));
    assert_eq!(ping().await.unwrap(), r#"{"return":{}}"#);
    let unknown = host.sim.agent(Q35, r#"{"execute":"guest-exec"}"#, Duration::from_secs(1)).await;
    assert_eq!(refused(unknown).0, ErrorKind::AgentAway, "a command without a scripted answer fails");
    assert_eq!(refused(host.sim.monitor(Q35, "{}").await).0, ErrorKind::Unsupported);

    host.control("reboot q35");
    assert!(!host.live(Q35).await.unwrap().agent_connected);
    let ping = || host.sim.agent(Q35, r#"{"execute":"guest-ping"}"#, Duration::from_secs(1));
    assert_eq!(refused(ping().await).0, ErrorKind::AgentAway);
    host.received();
    sleep(Duration::from_secs(6)).await;
    assert_eq!(host.received(), [Event::Agent { domain: Q35, connected: true }]);
    host.control("agent q35 gone");
    assert_eq!(host.received(), [Event::Agent { domain: Q35, connected: false }]);
}

#[tokio::test]
async fn a_transient_domain_vanishes_when_it_stops() {
    let host = Host::small();
    host.control("undefine switch");
    host.control("undefine q35");
    assert_eq!(refused(host.sim.domain(SWITCH).await).0, ErrorKind::NoDomain);
    assert!(!host.sim.domain(Q35).await.unwrap().info.persistent);
    host.control("shutdown q35");
    let host = host.reopened();
    assert_eq!(refused(host.sim.domain(Q35).await).0, ErrorKind::NoDomain);
}

#[tokio::test]
async fn a_domain_is_saved_and_restored() {
    let mut host = Host::small();
    host.attach(Q35, VF0, "ua-1", Scope::Live).await.unwrap();
    for line in ["save q35", "managedsave q35", "migrate q35"] {
        let error = host.sim.control(line).unwrap_err();
        assert!(error.contains("0000:04:10.0: VFIO migration is not supported in kernel"), "{error}");
    }
    host.control("guest q35 migratable=true");
    host.received();
    host.control("managedsave q35");
    let received = host.received();
    assert!(received.contains(&lifecycle(Q35, Lifecycle::Stopped)), "{received:?}");
    assert_eq!(host.driver(VF0).await.as_deref(), Some("igbvf"));
    assert!(host.sim.control("rename q35 web1").unwrap_err().contains("managed saved state"));
    // Changes of the definition do not affect the saved run.
    host.attach(Q35, NVME, "ua-2", Scope::Config).await.unwrap();
    let host = host.reopened();
    host.control("start q35");
    let live = host.live(Q35).await.unwrap();
    assert!(find(&live, "ua-1").is_some() && find(&live, "ua-2").is_none());
    assert_eq!(host.driver(VF0).await.as_deref(), Some("vfio-pci"));
    host.control("save q35");
    host.control("start q35");
    assert!(find(&host.live(Q35).await.unwrap(), "ua-1").is_none(), "a start only restores a managed save");
    host.control("destroy q35");
    host.attach(I440FX, VF0, "ua-3", Scope::Live).await.unwrap();
    assert!(host.sim.control("restore q35").unwrap_err().contains("in use by driver QEMU, domain i440fx"));
}

#[tokio::test]
async fn a_domain_is_renamed_migrated_and_defined() {
    let mut host = Host::small();
    assert!(host.sim.control("rename q35 web1").unwrap_err().contains("cannot rename active domain"));
    assert!(host.sim.control("rename switch q35").unwrap_err().contains("domain 'q35' already exists"));
    host.received();
    host.control("rename switch a&b");
    let both = [lifecycle(SWITCH, Lifecycle::Undefined), lifecycle(SWITCH, Lifecycle::Defined)];
    assert_eq!(host.received(), both);
    assert_eq!(host.definition(SWITCH).await.unwrap().name, "a&b");
    host.control("rename a&b web1");
    host.control("migrate q35");
    assert_eq!(refused(host.sim.domain(Q35).await).0, ErrorKind::NoDomain);
    let file = host.file("domains/q35.xml");
    host.control(&format!("define {}", file.display()));
    assert_eq!(host.sim.domain(Q35).await.unwrap().info.state, DomainState::ShutOff);
    host.control("start q35");
    host.control("undefine q35");
    host.control(&format!("define {}", file.display()));
    assert!(host.sim.domain(Q35).await.unwrap().info.persistent, "a running guest gets a definition");
    assert!(host.sim.control("define /nowhere.xml").unwrap_err().contains("/nowhere.xml"));
    assert_eq!(host.reopened().definition(SWITCH).await.unwrap().name, "web1");
}
