//! Binding of a function for the host's own use, its reset and its release.

use hotslot_driver::binding::{self, HostDriver, Released, Reset};
use hotslot_driver::hotplug::{Facts, Policy};
use proptest::prelude::*;
use serde::Deserialize;

use super::preflight::Wanted;
use super::*;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    why: String,
    /// `host.toml`.
    #[serde(default)]
    config: String,
    /// Lines for the control socket.
    #[serde(default)]
    setup: Vec<String>,
    /// Guests and their devices.
    #[serde(default)]
    held: Vec<(String, String)>,
    device: Wanted,
    driver: String,
    #[serde(default)]
    require_reset: bool,
    /// The driver after the binding.
    bound: Option<String>,
    /// Lines for the control socket before the release.
    #[serde(default)]
    meanwhile: Vec<String>,
    /// The driver after the release, whether that is the former one, and the reset.
    released: Option<(Option<String>, bool, String)>,
    /// The expected error: its kind, and a part of its message.
    refused: Option<(String, String)>,
    /// The driver after an error, if it is not the former one.
    stays: Option<String>,
}

/// Runs the cases in `driver/tests/data/binding.json`.
#[tokio::test]
async fn every_case_of_the_table() {
    let table = fs::read_to_string(data("tests/data/binding.json")).unwrap();
    for case in serde_json::from_str::<Vec<Case>>(&table).unwrap() {
        let why = case.why;
        let host = Host::with(&case.config);
        for (number, (guest, device)) in case.held.iter().enumerate() {
            host.control(&format!("plug {guest} {device} live ua-{number}"));
        }
        let faults = |line: &&String| line.starts_with("fault");
        case.setup.iter().filter(|line| !faults(line)).for_each(|line| host.control(line));
        let facts = case.device.facts(&host).await;
        case.setup.iter().filter(faults).for_each(|line| host.control(line));
        let (address, before) = (facts.device.address, facts.device.driver_name());
        let others = others(&host, address).await;
        let policy = Policy { require_reset: case.require_reset, whole_groups: false };
        let bound = binding::bind(host.sim.as_ref(), &facts, case.driver.parse().unwrap(), policy).await;
        let is = || async { host.sim.device(address).await.unwrap().driver_name() };
        if let Some((kind, words)) = case.refused {
            let error = bound.expect_err(&why);
            assert_eq!(format!("{:?}", error.kind), kind, "{why}: {error}");
            assert!(error.message.contains(&words), "{why}: {error}");
            assert_eq!(is().await, case.stays.or(before), "{why}");
            continue;
        }
        let bound = bound.unwrap_or_else(|error| panic!("{why}: {error}"));
        assert_eq!((bound.before, Some(bound.driver)), (before.clone(), case.bound.clone()), "{why}");
        assert_eq!(is().await, case.bound, "{why}");
        case.meanwhile.iter().for_each(|line| host.control(line));
        let released = binding::release(host.sim.as_ref(), address, before.as_deref()).await.unwrap();
        let Released { driver, as_before, reset } = released;
        let reset = match reset {
            Reset::Unavailable { reason } => format!("Unavailable: {reason}"),
            Reset::Done | Reset::Driven => format!("{reset:?}"),
        };
        let (end, same, reset_then) = case.released.unwrap_or_else(|| panic!("{why}: released?"));
        assert_eq!((&driver, as_before), (&end, same), "{why}");
        assert!(reset.starts_with(&reset_then), "{why}: {reset}");
        assert_eq!(is().await, driver, "{why}");
        assert_eq!(self::others(&host, address).await, others, "{why}: another device was changed");
    }
}

/// The drivers of all other functions.
async fn others(host: &Host, address: PciAddress) -> Vec<(PciAddress, Option<String>)> {
    let devices = host.sim.devices().await.unwrap().into_iter();
    devices
        .filter(|device| device.address != address)
        .map(|device| (device.address, device.driver_name()))
        .collect()
}

/// A function that a guest has is not released, whatever driver was recorded.
#[tokio::test]
async fn a_function_that_a_guest_has_is_not_released() {
    let host = Host::small();
    host.attach(Q35, E1000E, "ua-1", Scope::Live).await.unwrap();
    let (kind, text) = refused(binding::release(host.sim.as_ref(), address(E1000E), Some("e1000e")).await);
    assert_eq!(kind, ErrorKind::InUse);
    assert!(text.contains("Not resetting active device 0000:05:00.0"), "{text}");
    assert_eq!(host.driver(E1000E).await.as_deref(), Some("vfio-pci"));
}

#[tokio::test]
async fn resets_are_refused_with_libvirts_messages() {
    let host = Host::with(&format!("no_reset = [\"{E1000E}\"]"));
    host.attach(Q35, VF0, "ua-1", Scope::Live).await.unwrap();
    for (device, expected, words) in [
        (E1000E, ErrorKind::Refused, "no FLR, PM reset or bus reset available"),
        (VF0, ErrorKind::InUse, "Not resetting active device"),
        (ROOT_PORT, ErrorKind::NotAssignable, "Only PCI endpoint devices can be reset"),
        ("0000:ff:00.0", ErrorKind::NoDevice, "Node device not found"),
    ] {
        let (kind, text) = refused(host.sim.node_reset(address(device)).await);
        assert!(kind == expected && text.contains(words), "{device}: {kind:?} {text}");
    }
    host.control(&format!("device driver {E1000E} vfio-pci"));
    host.sim.node_reset(address(E1000E)).await.expect("libvirt leaves the reset to the kernel");
}

#[test]
fn the_names_of_host_drivers_are_native_and_vfio_pci() {
    for driver in [HostDriver::Native, HostDriver::Vfio] {
        assert_eq!(driver.to_string().parse(), Ok(driver));
    }
    let error = "vfio".parse::<HostDriver>().unwrap_err().to_string();
    assert!(error.contains("`vfio`") && error.contains("native or vfio-pci"), "{error}");
}

async fn bind_and_release(device: &str, first: &str, wanted: HostDriver, fault: &str) {
    let host = Host::small();
    let address = address(device);
    if first != "as it is" {
        host.control(&format!("device driver {device} {first}"));
    }
    let facts = Facts::from(host.sim.device(address).await.unwrap());
    let before = facts.device.driver_name();
    if !fault.is_empty() {
        host.control(fault);
    }
    let bound = binding::bind(host.sim.as_ref(), &facts, wanted, Policy::default()).await;
    host.control("fault clear");
    let now = host.sim.device(address).await.unwrap();
    match bound {
        Ok(bound) => {
            assert_eq!(Some(bound.driver.as_str()), now.driver.as_deref());
            assert!(wanted.has(&now));
        }
        Err(error) if error.kind.leaves_it_open() => {}
        // The message says what could not be undone: libvirt cannot return a function to the state without a driver,
        // and the fault may apply to the undo.
        Err(error) => {
            let reported =
                [" is now bound to ", "undoing it failed"].iter().any(|text| error.message.contains(text));
            assert!(now.driver.as_deref() == before.as_deref() || reported, "{error}");
        }
    }
    let released = binding::release(host.sim.as_ref(), address, before.as_deref()).await.unwrap();
    let now = host.sim.device(address).await.unwrap().driver;
    assert_eq!(released.driver.as_deref(), now.as_deref(), "the result has the driver that is bound");
    assert_eq!(released.as_before, now.as_deref() == before.as_deref());
    assert!(before.is_none() || released.as_before, "a driver was lost: {released:?}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn the_former_driver_is_rebound_whatever_fails(
        device in prop::sample::select(vec![VF0, E1000E, PAIR0, NVME, EDU, BRIDGED_EDU]),
        first in prop::sample::select(vec!["as it is", "vfio-pci", ""]),
        wanted in prop::sample::select(vec![HostDriver::Native, HostDriver::Vfio]),
        fault in prop::sample::select(vec![
            "",
            "fault node-detach fail",
            "fault node-detach fail at=after",
            "fault node-detach fail at=after kind=timed-out",
            "fault node-reattach fail at=after",
        ]),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(bind_and_release(device, first, wanted, fault));
    }
}
