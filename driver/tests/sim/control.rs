//! The control socket, used as by another process.

use hotslot_driver::hypervisor::{DomainState, Lifecycle};
use hotslot_driver::sim::control;

use super::*;

async fn send(host: &Host, line: &str) -> std::io::Result<String> {
    let (dir, line) = (host.dir.path().to_owned(), line.to_owned());
    tokio::task::spawn_blocking(move || control(&dir, &line)).await.unwrap()
}

#[tokio::test]
async fn each_line_is_answered_with_ok_or_an_error() {
    let mut host = Host::small();
    assert_eq!(send(&host, "pause q35").await.unwrap(), "ok");
    assert_eq!(host.next().await, Event::Lifecycle { domain: Q35, change: Lifecycle::Suspended });
    assert_eq!(host.sim.domain(Q35).await.unwrap().info.state, DomainState::Paused);
    assert_eq!(send(&host, &format!("resume {Q35}")).await.unwrap(), "ok", "a UUID is accepted too");
    let wrong = [
        ("", "`` is no command"),
        ("dance q35", "`dance q35` is no command"),
        ("pause missing", "there is no domain missing"),
        ("pause switch", "domain is not running"),
        ("guest q35 unplug=sometimes", "sometimes"),
        ("guest q35 unplug", "expected KEY=VALUE"),
        ("latency dance 5", "dance"),
        ("latency attach soon", "soon"),
        ("fault attach explode", "explode"),
        ("fault attach fail kind=bad-luck", "bad-luck"),
        ("device remove pci_0000_ff_00_0", "no node device"),
        ("device add /nowhere.xml", "/nowhere.xml"),
    ];
    for (line, words) in wrong {
        let answer = send(&host, line).await.unwrap();
        assert!(answer.starts_with("error: ") && answer.contains(words), "{line}: {answer}");
    }
}

#[tokio::test]
async fn a_host_that_is_not_open_does_not_answer() {
    let mut host = Host::small();
    // A killed process leaves its socket behind.
    let Host { dir, sim, events } = host;
    drop((sim, events));
    drop(std::os::unix::net::UnixListener::bind(dir.path().join("control")).unwrap());
    assert!(control(dir.path(), "pause q35").is_err());
    host = Host::open(dir);
    assert_eq!(send(&host, "pause q35").await.unwrap(), "ok");
}

/// Every command in the documentation succeeds.
#[tokio::test]
async fn every_command_works() {
    let host = Host::small();
    let lines = "start switch|shutdown switch|start switch|destroy switch|start switch|crash switch|reboot q35|\
        pause q35|resume q35|undefine switch|guest q35 unplug=refuse|guest q35 unplug=slow 500|\
        guest q35 boot-ms=5 agent=false|agent q35 gone|agent q35 connected|device remove pci_0000_04_10_0|\
        device add pci_0000_04_10_0|device driver 0000:04:10.2 vfio-pci|device driver 0000:04:10.2|disconnect|\
        reconnect|latency attach 0|fault attach fail kind=in-use nth=2 times=3 domain=q35 text=it is in use|\
        fault detach away at=after|fault domain hang ms=5|fault clear";
    for line in lines.split('|') {
        assert_eq!(send(&host, line).await.unwrap(), "ok", "{line}");
    }
}

#[tokio::test]
async fn devices_are_plugged_and_unplugged_through_the_control_socket() {
    let mut host = Host::small();
    host.control(&format!("plug q35 {VF0} both"));
    let added = Event::DeviceAdded { domain: Q35, alias: "hostdev0".into() };
    assert!(host.received().contains(&added));
    assert_eq!(host.definition(Q35).await.unwrap().hostdevs[0].alias, None);
    host.control(&format!("unplug q35 {VF0} config"));
    assert_eq!(host.definition(Q35).await.unwrap().hostdevs, []);
    assert_eq!(host.live(Q35).await.unwrap().hostdevs[0].source, address(VF0));
    host.control(&format!("unplug q35 {VF0} live"));
    assert!(host.received().contains(&removed(Q35, "hostdev0")));
    let error = host.sim.control(&format!("unplug q35 {VF0} config")).unwrap_err();
    assert!(error.contains("host pci device 0000:04:10.0 not found"), "{error}");
    host.control(&format!("plug switch {VF0} config ua-mine"));
    assert!(find(&host.definition(SWITCH).await.unwrap(), "ua-mine").is_some());
    assert!(
        host.sim.control(&format!("plug q35 {VF0} elsewhere")).unwrap_err().contains("live, config or both")
    );
}
