//! `kill -9` at any time leaves a consistent state that can be opened.

use std::os::unix::process::ExitStatusExt as _;
use std::process::{Command, Stdio};
use std::time::Duration;

use hotslot_driver::hypervisor::DetachScope;

use super::*;

const DIR: &str = "HOTSLOT_SIM_TEST_DIR";
const AT: &str = "HOTSLOT_SIM_TEST_AT";

#[tokio::test]
async fn a_killed_process_leaves_a_state_that_opens() {
    let dir = small();
    let mut seen = 0;
    for round in 0..20 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "kill::busy", "--ignored"])
            .env(DIR, dir.path())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let began = std::time::Instant::now();
        while std::os::unix::net::UnixStream::connect(dir.path().join("control")).is_err() {
            assert!(began.elapsed() < Duration::from_secs(20) && child.try_wait().unwrap().is_none());
        }
        tokio::time::sleep(Duration::from_micros(1_000 + 1_700 * round)).await;
        child.kill().unwrap();
        child.wait().unwrap();

        let sim = Sim::open(dir.path()).unwrap();
        let mut held = Vec::new();
        for guest in [Q35, I440FX] {
            held.extend(sim.domain(guest).await.unwrap().live.unwrap().hostdevs);
        }
        for device in sim.devices().await.unwrap() {
            let holders = held.iter().filter(|hostdev| hostdev.source == device.address).count();
            assert!(holders <= 1, "{} is in two guests", device.address);
            assert_eq!(holders == 1, device.driver.as_deref() == Some("vfio-pci"), "{}", device.address);
        }
        seen += held.len();
    }
    assert!(seen > 0, "nothing was ever attached");
}

/// The process that is killed: it attaches and detaches devices until then.
#[tokio::test]
#[ignore = "run by a_killed_process_leaves_a_state_that_opens"]
async fn busy() {
    let Some(dir) = std::env::var_os(DIR) else { return };
    let sim = Sim::open(Path::new(&dir)).unwrap();
    for number in 0_usize.. {
        let guest = [Q35, I440FX][number % 2];
        let device = [VF0, VF1, E1000E, NVME, NVME_SRIOV][number % 5];
        let alias = format!("ua-{}", number % 5);
        // The call is refused when the previous process has already done it.
        let _ = sim.attach(guest, &hostdev(device, &alias), Scope::LiveAndConfig).await;
        let _ = sim.detach(guest, &alias, DetachScope::Config).await;
        let _ = sim.detach([I440FX, Q35][number / 5 % 2], &alias, DetachScope::Live).await;
    }
}

#[tokio::test]
async fn a_fault_may_kill_the_process_at_a_call() {
    for (at, held) in [("before", (0, 0)), ("between", (1, 0)), ("after", (1, 1))] {
        let dir = small();
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "kill::doomed", "--ignored"])
            .env(DIR, dir.path())
            .env(AT, at)
            .stdout(Stdio::null())
            .status()
            .unwrap();
        assert_eq!(child.signal(), Some(9), "{at}: {child}");
        let left = Sim::open(dir.path()).unwrap().domain(Q35).await.unwrap();
        let hostdevs = |document: Option<DomainXml>| document.unwrap().hostdevs.len();
        assert_eq!((hostdevs(left.live), hostdevs(left.persistent)), held, "{at}");
    }
}

/// The process that is killed at its second call.
#[tokio::test]
#[ignore = "run by a_fault_may_kill_the_process_at_a_call"]
async fn doomed() {
    let (Some(dir), Ok(at)) = (std::env::var_os(DIR), std::env::var(AT)) else { return };
    let sim = Sim::open(Path::new(&dir)).unwrap();
    sim.control(&format!("fault any kill nth=2 at={at}")).unwrap();
    sim.domains().await.unwrap();
    let _ = sim.attach(Q35, &hostdev(VF0, "ua-0"), Scope::LiveAndConfig).await;
}
