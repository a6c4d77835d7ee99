//! Libvirt's rules hold for any sequence of operations.

use std::collections::{BTreeMap, BTreeSet};

use hotslot_driver::hypervisor::{DetachScope, DomainView};
use hotslot_driver::topology::Topology;
use proptest::prelude::*;

use super::*;

const GUESTS: [(Uuid, &str); 4] = [(Q35, "q35"), (SWITCH, "switch"), (I440FX, "i440fx"), (FULL, "full")];
const DEVICES: [&str; 8] = [VF0, VF1, E1000E, PAIR0, PAIR1, NVME, EDU, BRIDGED_EDU];

#[derive(Debug, Clone)]
enum Step {
    Attach { guest: usize, device: usize, scope: Scope, managed: bool },
    Detach { guest: usize, device: usize, scope: DetachScope },
    Power { guest: usize, command: &'static str },
    Driver { device: usize, driver: &'static str },
    Reopen,
}

fn step() -> impl Strategy<Value = Step> {
    let (guest, device) = (0..GUESTS.len(), 0..DEVICES.len());
    let scope = prop_oneof![Just(Scope::Live), Just(Scope::Config), Just(Scope::LiveAndConfig)];
    let detach_scope = prop_oneof![Just(DetachScope::Live), Just(DetachScope::Config)];
    let commands = [
        "start",
        "shutdown",
        "destroy",
        "reboot",
        "pause",
        "resume",
        "guest unplug=ignore",
        "guest unplug=normal",
        "guest unplug=refuse",
    ];
    prop_oneof![
        6 => (guest.clone(), device.clone(), scope, prop::bool::weighted(0.8))
            .prop_map(|(guest, device, scope, managed)| Step::Attach { guest, device, scope, managed }),
        4 => (guest.clone(), device.clone(), detach_scope)
            .prop_map(|(guest, device, scope)| Step::Detach { guest, device, scope }),
        3 => (guest, prop::sample::select(commands.to_vec()))
            .prop_map(|(guest, command)| Step::Power { guest, command }),
        1 => (device, prop::sample::select(vec!["vfio-pci", "", "native"]))
            .prop_map(|(device, driver)| Step::Driver { device, driver }),
        1 => Just(Step::Reopen),
    ]
}

/// Checks the invariants of the host.
async fn check(host: &Host, room: &BTreeMap<Uuid, usize>, bound_by_hand: &BTreeSet<PciAddress>) {
    let mut holders: BTreeMap<PciAddress, Uuid> = BTreeMap::new();
    for info in host.sim.domains().await.unwrap() {
        let view = host.sim.domain(info.uuid).await.unwrap();
        assert_eq!(view.live.is_some(), info.state.is_active());
        for document in view.live.iter().chain(&view.persistent) {
            let mut seen = document.occupied.clone();
            seen.sort();
            seen.dedup();
            assert_eq!(seen.len(), document.occupied.len(), "two devices at one guest address");
        }
        let Some(live) = view.live else { continue };
        // A guest has more ports after a start if libvirt added ports to its definition.
        let room_now = free_ports(&live) + live.hostdevs.len();
        assert!(room_now >= room[&info.uuid], "{}: a port was lost: {room_now}", info.name);
        for held in &live.hostdevs {
            assert!(held.guest.is_some() && held.alias.is_some());
            assert_eq!(holders.insert(held.source, info.uuid), None, "{} is in two guests", held.source);
        }
    }
    for device in host.sim.devices().await.unwrap() {
        if holders.contains_key(&device.address) {
            assert_eq!(device.driver.as_deref(), Some("vfio-pci"));
            assert_eq!(device.net, [] as [&str; 0], "a guest's device has no netdev");
        } else if !bound_by_hand.contains(&device.address) {
            assert_ne!(device.driver.as_deref(), Some("vfio-pci"), "{} is in no guest", device.address);
        }
        for sibling in device.iommu_group.iter().flat_map(|group| &group.members) {
            let (one, other) = (holders.get(&device.address), holders.get(sibling));
            assert!(one.is_none() || other.is_none() || one == other, "a group in two guests");
        }
    }
}

fn free_ports(live: &DomainXml) -> usize {
    let free = Topology::of(live).free_ports();
    free.express.iter().chain(&free.conventional).collect::<BTreeSet<_>>().len()
}

async fn run(steps: Vec<Step>) {
    let mut host = Host::small();
    host.control("start switch");
    let (mut rooms, mut bound_by_hand) = (BTreeMap::new(), BTreeSet::new());
    for (guest, _) in GUESTS {
        rooms.insert(guest, free_ports(&host.live(guest).await.unwrap()));
    }
    for step in steps {
        match step.clone() {
            Step::Attach { guest, device, scope, managed } => {
                let xml = hostdev(DEVICES[device], &format!("ua-{device}"));
                let xml = if managed { xml } else { xml.replace("'yes'", "'no'") };
                let before = host.sim.domain(GUESTS[guest].0).await.unwrap();
                if host.sim.attach(GUESTS[guest].0, &xml, scope).await.is_err() {
                    let after = host.sim.domain(GUESTS[guest].0).await.unwrap();
                    assert_eq!(after, before, "a refusal changed something: {step:?}");
                }
            }
            Step::Detach { guest, device, scope } => {
                let _ = host.sim.detach(GUESTS[guest].0, &format!("ua-{device}"), scope).await;
            }
            Step::Power { guest, command } => {
                let words: Vec<&str> = command.split(' ').collect();
                let line = format!("{} {} {}", words[0], GUESTS[guest].1, words[1..].join(" "));
                let _ = host.sim.control(&line);
            }
            Step::Driver { device, driver } => {
                let driver = if driver == "native" { "e1000e" } else { driver };
                let _ = host.sim.control(&format!("device driver {} {driver}", DEVICES[device]));
                if driver == "vfio-pci" {
                    bound_by_hand.insert(address(DEVICES[device]));
                }
            }
            Step::Reopen => {
                let mut before = Vec::new();
                for (guest, _) in GUESTS {
                    before.push(host.sim.domain(guest).await.unwrap());
                }
                let devices = host.sim.devices().await.unwrap();
                host = host.reopened();
                let mut has_released = false;
                for (guest, before) in GUESTS.iter().zip(before) {
                    let mut after = host.sim.domain(guest.0).await.unwrap();
                    // The guest answers an unplug request from before as if it had just been made, and may release the
                    // device now.
                    let hostdevs = |view: &DomainView| {
                        view.live.as_ref().map(|live| live.hostdevs.len()).unwrap_or_default()
                    };
                    if hostdevs(&after) < hostdevs(&before) {
                        has_released = true;
                        after.live.clone_from(&before.live);
                    }
                    assert_eq!(after, before);
                }
                if !has_released {
                    assert_eq!(host.sim.devices().await.unwrap(), devices);
                }
            }
        }
        check(&host, &rooms, &bound_by_hand).await;
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn rules_hold_in_any_order(steps in prop::collection::vec(step(), 1..60)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(run(steps));
    }
}
