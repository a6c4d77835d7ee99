//! Detach: a live detach only requests the unplug.

use hotslot_driver::hypervisor::DetachScope;
use tokio::time::{Instant, sleep};

use super::*;

async fn request(host: &Host, alias: &str) -> Result<(), Error> {
    host.sim.detach(Q35, alias, DetachScope::Live).await
}

async fn is_live(host: &Host, alias: &str) -> bool {
    find(&host.live(Q35).await.unwrap(), alias).is_some()
}

async fn with_vf(config: &str) -> Host {
    let mut host = Host::with(config);
    host.attach(Q35, VF0, "ua-1", Scope::LiveAndConfig).await.unwrap();
    host.received();
    host
}

#[tokio::test(start_paused = true)]
async fn the_guest_releases_the_device_later() {
    let mut host = with_vf("[guest.q35]\nunplug_ms = 2000").await;
    let requested = Instant::now();
    request(&host, "ua-1").await.unwrap();
    assert!(is_live(&host, "ua-1").await, "the guest still has the device");
    assert_eq!(host.driver(VF0).await.as_deref(), Some("vfio-pci"));
    let (kind, text) = refused(request(&host, "ua-1").await);
    assert_eq!(kind, ErrorKind::UnplugPending);
    assert!(text.ends_with("Device ua-1 is already in the process of unplug"), "{text}");

    assert_eq!(host.next().await, removed(Q35, "ua-1"));
    assert_eq!(requested.elapsed().as_millis(), 2000);
    assert!(!is_live(&host, "ua-1").await);
    assert_eq!(host.driver(VF0).await.as_deref(), Some("igbvf"));
    assert_eq!(refused(request(&host, "ua-1").await).0, ErrorKind::DeviceMissing);
    assert!(find(&host.definition(Q35).await.unwrap(), "ua-1").is_some());

    host.sim.detach(Q35, "ua-1", DetachScope::Config).await.unwrap();
    assert_eq!(host.definition(Q35).await.unwrap().hostdevs, []);
    let (kind, text) = refused(host.sim.detach(Q35, "ua-1", DetachScope::Config).await);
    assert_eq!(kind, ErrorKind::DeviceMissing);
    assert!(text.ends_with("no device found with alias ua-1"), "{text}");
}

#[tokio::test]
async fn a_live_detach_from_a_shut_off_domain_is_refused() {
    let host = Host::small();
    host.attach(SWITCH, VF0, "ua-1", Scope::Config).await.unwrap();
    let requested = host.sim.detach(SWITCH, "ua-1", DetachScope::Live).await;
    assert_eq!(refused(requested).0, ErrorKind::NotRunning);
    let missing = host.sim.detach(guest(99), "ua-1", DetachScope::Config).await;
    assert_eq!(refused(missing).0, ErrorKind::NoDomain);
}

#[tokio::test(start_paused = true)]
async fn a_paused_guest_answers_after_it_is_resumed() {
    let mut host = with_vf("[guest.q35]\nunplug_ms = 2400").await;
    host.control("pause q35");
    request(&host, "ua-1").await.unwrap();
    host.received();
    sleep(Duration::from_secs(3600)).await;
    assert_eq!(host.received(), []);
    assert_eq!(refused(request(&host, "ua-1").await).0, ErrorKind::UnplugPending);
    host.control("resume q35");
    let resumed = Instant::now();
    host.next().await;
    assert_eq!(host.next().await, removed(Q35, "ua-1"));
    assert_eq!(resumed.elapsed().as_millis(), 2400);
    assert_eq!(host.received(), [], "there are no further events");
}

#[tokio::test(start_paused = true)]
async fn a_guest_without_hot_plug_releases_the_device_at_its_reboot() {
    let mut host = with_vf("").await;
    host.control("guest q35 unplug=ignore");
    request(&host, "ua-1").await.unwrap();
    sleep(Duration::from_secs(3600)).await;
    assert_eq!(host.received(), []);
    assert!(is_live(&host, "ua-1").await);
    host.control("reboot q35");
    assert!(!is_live(&host, "ua-1").await);
    assert!(host.received().contains(&removed(Q35, "ua-1")));
}

#[tokio::test(start_paused = true)]
async fn a_request_that_the_guest_ignored_can_be_made_again() {
    let mut host = with_vf("[guest.q35]\nunplug = 'ignore'\nunplug_ms = 100").await;
    request(&host, "ua-1").await.unwrap();
    host.control("guest q35 unplug=normal");
    assert_eq!(refused(request(&host, "ua-1").await).0, ErrorKind::UnplugPending);
    sleep(Duration::from_secs(5)).await;
    assert!(is_live(&host, "ua-1").await, "nothing asks a guest again by itself");
    request(&host, "ua-1").await.unwrap();
    assert_eq!(host.next().await, removed(Q35, "ua-1"));
    assert_eq!(host.received(), [], "there are no further events");
}

#[tokio::test(start_paused = true)]
async fn a_guest_may_refuse() {
    let mut host = with_vf("[guest.q35]\nunplug = 'refuse'\nunplug_ms = 100").await;
    request(&host, "ua-1").await.unwrap();
    let failed = Event::DeviceRemovalFailed { domain: Q35, alias: "ua-1".into() };
    assert_eq!(host.next().await, failed);
    assert!(is_live(&host, "ua-1").await);
    host.control("guest q35 unplug=slow 500");
    request(&host, "ua-1").await.unwrap();
    assert_eq!(host.next().await, removed(Q35, "ua-1"));
}

#[tokio::test(start_paused = true)]
async fn a_booting_guest_loses_the_request() {
    let mut host = with_vf("[guest.q35]\nboot_ms = 10_000").await;
    host.control("reboot q35");
    request(&host, "ua-1").await.unwrap();
    request(&host, "ua-1").await.unwrap();
    sleep(Duration::from_secs(60)).await;
    assert!(is_live(&host, "ua-1").await);
    host.received();
    request(&host, "ua-1").await.unwrap();
    assert_eq!(host.next().await, removed(Q35, "ua-1"));
}

#[tokio::test]
async fn the_first_detached_member_of_a_group_stays_without_a_driver() {
    let host = Host::small();
    host.control(&format!("device driver {PAIR1}"));
    host.attach(Q35, PAIR0, "ua-0", Scope::Live).await.unwrap();
    host.control(&format!("device driver {PAIR1} e1000e"));
    host.attach(Q35, PAIR1, "ua-1", Scope::Live).await.unwrap();
    request(&host, "ua-0").await.unwrap();
    assert_eq!(host.driver(PAIR0).await, None);
    request(&host, "ua-1").await.unwrap();
    assert_eq!(host.driver(PAIR0).await, None, "also after the other member is detached");
    assert_eq!(host.driver(PAIR1).await.as_deref(), Some("e1000e"));
}

#[tokio::test(start_paused = true)]
async fn removing_a_device_from_the_host_requests_its_unplug() {
    let mut host = with_vf("[guest.q35]\nunplug_ms = 100").await;
    host.control("pause q35");
    host.control("device remove pci_0000_04_10_0");
    sleep(Duration::from_secs(60)).await;
    assert!(host.sim.device(address(VF0)).await.is_ok(), "a paused guest does not answer the kernel either");
    host.control("resume q35");
    host.received();
    assert_eq!(host.next().await, removed(Q35, "ua-1"));
    assert_eq!(refused(host.sim.device(address(VF0)).await).0, ErrorKind::NoDevice);
}
