//! A guest's power cycles.

use hotslot_driver::hypervisor::{DetachScope, DomainState, Lifecycle, NodeChange};
use hotslot_driver::xml;
use tokio::time::sleep;

use super::*;

fn lifecycle(domain: Uuid, change: Lifecycle) -> Event {
    Event::Lifecycle { domain, change }
}

#[tokio::test(start_paused = true)]
async fn a_stop_drops_live_devices_and_says_nothing_of_them() {
    let mut host = Host::with("release_ms = 2000");
    host.attach(Q35, VF0, "ua-live", Scope::Live).await.unwrap();
    host.attach(Q35, NVME, "ua-both", Scope::LiveAndConfig).await.unwrap();
    host.heard();
    host.control("shutdown q35");
    assert_eq!(host.heard(), [lifecycle(Q35, Lifecycle::Shutdown), lifecycle(Q35, Lifecycle::Stopped)]);
    assert_eq!(host.sim.domain(Q35).await.unwrap().info.state, DomainState::ShutOff);
    assert_eq!(host.live(Q35).await, None);
    assert_eq!(host.driver(VF0).await.as_deref(), Some("vfio-pci"), "the host driver is not back yet");
    sleep(Duration::from_secs(3)).await;
    assert_eq!(host.driver(VF0).await.as_deref(), Some("igbvf"));
    assert_eq!(host.driver(NVME).await.as_deref(), Some("nvme"));
    let back = |name: &str| Event::NodeDevice { name: name.into(), change: NodeChange::Created };
    assert_eq!(
        host.heard(),
        [back("net_eth7_26_59_b5_c9_13_51"), back("block_nvme0n1_QEMU_NVMe_Ctrl_LAB0_1")]
    );

    host.control("start q35");
    let live = host.live(Q35).await.unwrap();
    assert_eq!(live.hostdevs.len(), 1, "what was live only is gone");
    assert_eq!(find(&live, "ua-both").unwrap().source, address(NVME));
    assert_eq!(host.driver(NVME).await.as_deref(), Some("vfio-pci"));
    let heard = host.heard();
    let started = [lifecycle(Q35, Lifecycle::Started), lifecycle(Q35, Lifecycle::Resumed)];
    assert!(heard.windows(2).any(|heard| heard == started), "{heard:?}");
}

#[tokio::test]
async fn a_destroyed_guest_forgets_what_it_was_asked() {
    let mut host = Host::small();
    host.attach(Q35, VF0, "ua-1", Scope::LiveAndConfig).await.unwrap();
    host.control("guest q35 unplug=ignore");
    host.sim.detach(Q35, "ua-1", DetachScope::Live).await.unwrap();
    host.heard();
    host.control("destroy q35");
    assert!(!host.heard().contains(&removed(Q35, "ua-1")));
    host.control("start q35");
    host.sim.detach(Q35, "ua-1", DetachScope::Live).await.unwrap();
}

/// What libvirt 11.3 made of these definitions when it started them.
#[tokio::test]
async fn a_start_makes_the_document_that_libvirt_makes() {
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
            "both at once: both drivers are back"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn an_agent_comes_with_the_boot() {
    let mut host = Host::with(
        "[guest.q35]\nboot_ms = 5000\n[guest.q35.agent_answers]\nguest-ping = '{\"return\":{}}'\n",
    );
    let ping = || host.sim.agent(Q35, r#"{"execute":"guest-ping"}"#, Duration::from_secs(1));
    assert_eq!(ping().await.unwrap(), r#"{"return":{}}"#);
    let unknown = host.sim.agent(Q35, r#"{"execute":"guest-exec"}"#, Duration::from_secs(1)).await;
    assert_eq!(refused(unknown).0, ErrorKind::AgentAway, "nothing is verified that was not scripted");
    assert_eq!(refused(host.sim.monitor(Q35, "{}").await).0, ErrorKind::Unsupported);

    host.control("reboot q35");
    assert!(!host.live(Q35).await.unwrap().agent_connected);
    let ping = || host.sim.agent(Q35, r#"{"execute":"guest-ping"}"#, Duration::from_secs(1));
    assert_eq!(refused(ping().await).0, ErrorKind::AgentAway);
    host.heard();
    sleep(Duration::from_secs(6)).await;
    assert_eq!(host.heard(), [Event::Agent { domain: Q35, connected: true }]);
    host.control("agent q35 gone");
    assert_eq!(host.heard(), [Event::Agent { domain: Q35, connected: false }]);
}

#[tokio::test]
async fn a_domain_without_a_definition_is_gone_when_it_stops() {
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
async fn a_run_is_saved_and_gone_on_with() {
    let mut host = Host::small();
    host.attach(Q35, VF0, "ua-1", Scope::Live).await.unwrap();
    for line in ["save q35", "managedsave q35", "migrate q35"] {
        let error = host.sim.control(line).unwrap_err();
        assert!(error.contains("0000:04:10.0: VFIO migration is not supported in kernel"), "{error}");
    }
    host.control("guest q35 migratable=true");
    host.heard();
    host.control("managedsave q35");
    let heard = host.heard();
    assert!(heard.contains(&lifecycle(Q35, Lifecycle::Stopped)), "{heard:?}");
    assert_eq!(host.driver(VF0).await.as_deref(), Some("igbvf"));
    assert!(host.sim.control("rename q35 web1").unwrap_err().contains("managed saved state"));
    // What happens to the definition meanwhile is not seen by the run.
    host.attach(Q35, NVME, "ua-2", Scope::Config).await.unwrap();
    let host = host.reopened();
    host.control("start q35");
    let live = host.live(Q35).await.unwrap();
    assert!(find(&live, "ua-1").is_some() && find(&live, "ua-2").is_none());
    assert_eq!(host.driver(VF0).await.as_deref(), Some("vfio-pci"));
    host.control("save q35");
    host.control("start q35");
    assert!(find(&host.live(Q35).await.unwrap(), "ua-1").is_none(), "a start does not look for a save");
    host.control("destroy q35");
    host.attach(I440FX, VF0, "ua-3", Scope::Live).await.unwrap();
    assert!(host.sim.control("restore q35").unwrap_err().contains("in use by driver QEMU, domain i440fx"));
}

#[tokio::test]
async fn a_domain_is_renamed_moved_and_defined() {
    let mut host = Host::small();
    assert!(host.sim.control("rename q35 web1").unwrap_err().contains("cannot rename active domain"));
    assert!(host.sim.control("rename switch q35").unwrap_err().contains("domain 'q35' already exists"));
    host.heard();
    host.control("rename switch a&b");
    let both = [lifecycle(SWITCH, Lifecycle::Undefined), lifecycle(SWITCH, Lifecycle::Defined)];
    assert_eq!(host.heard(), both);
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
