//! The preflight: the result of each check, compared with the simulated libvirt's answers.

use std::collections::BTreeMap;

use hotslot_driver::hotplug::{self, Bar, CheckResult, Facts, Guarded, Policy, Verdict};
use serde::Deserialize;

use super::*;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    why: String,
    guest: String,
    /// Replacements in the guest's document.
    #[serde(default)]
    edit: Vec<(String, String)>,
    /// Lines for the control socket.
    #[serde(default)]
    setup: Vec<String>,
    /// Guests and their devices.
    #[serde(default)]
    held: Vec<(String, String)>,
    devices: Vec<Wanted>,
    #[serde(default)]
    require_reset: bool,
    #[serde(default)]
    whole_groups: bool,
    /// The expected refusal: device, kind, and a part of the message. Absent when the devices may be plugged.
    refused: Option<(Option<String>, String, String)>,
    /// Expected checks: name, device, result, and a part of the message.
    finds: Vec<(String, Option<String>, String, String)>,
}

#[derive(Deserialize)]
#[serde(untagged)]
pub(crate) enum Wanted {
    Plain(String),
    Known {
        address: String,
        guard: Option<String>,
        #[serde(default)]
        overridden: bool,
        #[serde(default)]
        unmanaged: bool,
        reset: Option<Vec<String>>,
        bars: Option<Vec<(u64, bool)>>,
    },
}

impl Wanted {
    pub(crate) async fn facts(self, host: &Host) -> Facts {
        let (at, guard, unmanaged, reset, bars) = match self {
            Self::Plain(address) => (address, None, false, None, None),
            Self::Known { address, guard, overridden, unmanaged, reset, bars } => {
                let guard = guard.map(|reason| Guarded { reason, overridden });
                (address, guard, unmanaged, reset, bars)
            }
        };
        let bar = |(size, prefetchable64)| Bar { size, prefetchable64 };
        let bars = bars.map(|bars| bars.into_iter().map(bar).collect());
        Facts {
            device: host.sim.device(address(&at)).await.unwrap(),
            guard,
            managed: !unmanaged,
            reset,
            bars,
            open_nodes: None,
            drain: None,
        }
    }
}

async fn named(host: &Host, name: &str) -> Uuid {
    let domains = host.sim.domains().await.unwrap();
    domains.iter().find(|info| info.name == name).unwrap_or_else(|| panic!("no guest {name}")).uuid
}

async fn verdict(host: &Host, guest: Uuid, facts: &[Facts], policy: Policy) -> Verdict {
    let view = host.sim.domain(guest).await.unwrap();
    hotplug::preflight(host.sim.as_ref(), &view, facts, policy).await.unwrap()
}

/// The checks of a request for these devices, in order.
fn all_checks(wanted: &[Facts]) -> Vec<(&'static str, Option<PciAddress>)> {
    let each = [
        "guard",
        "not-attached-already",
        "assignable",
        "driver",
        "iommu",
        "group-viable",
        "not-in-use",
        "not-open",
        "vfs",
        "reset",
        "bar-window",
    ];
    let of_devices = wanted.iter().flat_map(|facts| each.map(|name| (name, Some(facts.device.address))));
    let all = std::iter::once(("server-state", None)).chain(of_devices);
    all.chain([("free-port", None), ("memlock", None)]).collect()
}

/// Runs the cases in `driver/tests/data/preflight.json`.
#[tokio::test]
async fn every_case_of_the_table() {
    let table = fs::read_to_string(data("tests/data/preflight.json")).unwrap();
    let cases: Vec<Case> = serde_json::from_str(&table).unwrap();
    for case in cases {
        let why = case.why;
        let dir = small();
        let file = dir.path().join("domains").join(&case.guest).with_extension("xml");
        let mut document = fs::read_to_string(&file).unwrap();
        for (from, to) in &case.edit {
            assert!(document.contains(from), "{why}: {from}");
            document = document.replacen(from, to, 1);
        }
        fs::write(&file, document).unwrap();
        let host = Host::open(dir);
        case.setup.iter().for_each(|line| host.control(line));
        for (guest, device) in &case.held {
            host.attach(named(&host, guest).await, device, "ua-held", Scope::Live).await.unwrap();
        }
        let mut wanted = Vec::new();
        for device in case.devices {
            wanted.push(device.facts(&host).await);
        }
        let policy = Policy { require_reset: case.require_reset, whole_groups: case.whole_groups };
        let verdict = verdict(&host, named(&host, &case.guest).await, &wanted, policy).await;

        let made: Vec<_> = verdict.checks.iter().map(|check| (check.name, check.device)).collect();
        assert_eq!(made, all_checks(&wanted), "{why}");

        for (name, device, result, words) in case.finds {
            let device = device.map(|device| address(&device));
            let mut checks = verdict.checks.iter();
            let check = checks.find(|check| check.name == name && check.device == device).unwrap();
            assert_eq!(format!("{:?}", check.result), result, "{why}: {check:?}");
            assert!(check.message.contains(&words), "{why}: {check:?}");
        }
        let failed = verdict.checks.iter().find(|check| check.result == CheckResult::Fail);
        assert_eq!(
            failed.map(|check| check.device),
            verdict.refusal().map(|refusal| refusal.device),
            "{why}"
        );
        match (verdict.refusal(), case.refused) {
            (None, None) => {}
            (Some(refusal), Some((device, kind, words))) => {
                assert_eq!(refusal.device, device.map(|device| address(&device)), "{why}");
                assert_eq!(format!("{:?}", refusal.error.kind), kind, "{why}");
                assert!(refusal.error.message.contains(&words), "{why}: {}", refusal.error.message);
                assert_eq!(refusal.error.operation, format!("attach to domain {}", case.guest));
            }
            (refusal, expected) => panic!("{why}: {refusal:?} instead of {expected:?}"),
        }
    }
}

/// An attach succeeds exactly when the preflight finds no obstacle.
#[tokio::test]
async fn the_simulated_libvirt_agrees_about_every_device_and_guest() {
    let devices = [VF0, E1000E, PAIR0, NVME, EDU, BRIDGED_EDU, ROOT_PORT];
    let mut agreed: BTreeMap<bool, u32> = BTreeMap::new();
    for (guest, scope) in [(Q35, Scope::Live), (I440FX, Scope::Live), (FULL, Scope::Live)] {
        for device in devices {
            let host = Host::small();
            let facts = [Facts::from(host.sim.device(address(device)).await.unwrap())];
            let verdict = verdict(&host, guest, &facts, Policy::default()).await;
            let attached = host.attach(guest, device, "ua-x", scope).await;
            assert_eq!(verdict.refusal().is_none(), attached.is_ok(), "{device} {guest}: {attached:?}");
            *agreed.entry(attached.is_ok()).or_default() += 1;
        }
    }
    assert!(agreed.len() == 2 && agreed.values().all(|count| *count > 3), "{agreed:?}");
}

#[tokio::test]
async fn a_domain_that_is_shutting_down_or_has_no_document_is_refused() {
    let host = Host::small();
    let mut view = host.sim.domain(Q35).await.unwrap();
    let facts = [Facts::from(host.sim.device(address(VF0)).await.unwrap())];
    view.info.state = hotslot_driver::hypervisor::DomainState::ShuttingDown;
    let verdict = hotplug::preflight(host.sim.as_ref(), &view, &facts, Policy::default()).await.unwrap();
    let error = &verdict.refusal().unwrap().error;
    assert_eq!(error.kind, ErrorKind::NotRunning);
    assert_eq!(error.message, "the domain is ShuttingDown; attach when it is running, paused or shut off");

    (view.live, view.persistent) = (None, None);
    let verdict = hotplug::preflight(host.sim.as_ref(), &view, &facts, Policy::default()).await.unwrap();
    assert!(verdict.refusal().unwrap().error.message.contains("neither a live nor a persistent document"));

    host.control("disconnect");
    let (kind, _) = refused(hotplug::preflight(host.sim.as_ref(), &view, &facts, Policy::default()).await);
    assert_eq!(kind, ErrorKind::Away, "an unreachable hypervisor gives an error, not a verdict");
}
