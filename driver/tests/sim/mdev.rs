//! Mediated devices on the simulated host `accelerators`: creation, assignment and removal. The rules and messages are
//! those of libvirt's sources; they were not compared with real hardware.

use std::collections::BTreeMap;

use hotslot_driver::binding::{self, HostDriver};
use hotslot_driver::domain::UserAlias;
use hotslot_driver::hotplug::{self, DetachLimits, Facts, Policy, Unplugged};
use hotslot_driver::hypervisor::{DetachScope, NodeChange};
use hotslot_driver::xml::hostdev::{MdevSpec, Pluggable, Templates};
use proptest::prelude::*;

use super::*;

const GPU: &str = "0000:41:00.0";
/// The mediated device that exists from the start.
const FIRST: Uuid = Uuid::from_u128(0xb4a1f2c0_0a3b_4b0e_9d0c_3f1d2f7c5a11);
const LIMITS: DetachLimits = DetachLimits { attempts: 1, timeout: Duration::from_secs(1), total: None };

const fn g(number: u128) -> Uuid {
    Uuid::from_u128(0x20000000_0000_4000_8000_000000000000 + number)
}

fn accelerators() -> Host {
    Host::open(copy_of("accelerators"))
}

fn spec(source: Uuid, alias: u128) -> MdevSpec {
    MdevSpec { source, alias: UserAlias(Uuid::from_u128(alias)), guest: None }
}

fn templates() -> Templates {
    Templates::load(None).unwrap()
}

impl Host {
    /// Returns the number of available instances of each type.
    async fn left(&self) -> Vec<(String, u32)> {
        let types = self.sim.mdev_types(address(GPU)).await.unwrap();
        types.into_iter().map(|of| (of.id, of.available)).collect()
    }

    async fn uuids(&self) -> Vec<Uuid> {
        self.sim.mdevs().await.unwrap().into_iter().map(|mdev| mdev.uuid).collect()
    }
}

fn left(four: u32, eight: u32) -> Vec<(String, u32)> {
    vec![("nvidia-232".into(), four), ("nvidia-233".into(), eight)]
}

#[tokio::test(start_paused = true)]
async fn an_overdue_create_or_destroy_names_the_parent_function() {
    let mut host = accelerators();
    for operation in ["create-mdev", "destroy-mdev"] {
        host.control(&format!("fault {operation} hang"));
        let late = match operation {
            "create-mdev" => {
                host.sim.create_mdev(address(GPU), "nvidia-233", Uuid::from_u128(7)).await.map(drop)
            }
            _ => host.sim.destroy_mdev(FIRST).await,
        };
        assert_eq!(refused(late).0, ErrorKind::TimedOut, "{operation}");
        assert_eq!(host.sim.overdue()[0].address, Some(address(GPU)), "{operation}");
        host.control("fault clear");
        tokio::time::sleep(std::time::Duration::from_millis(1)).await;
        let received = host.received();
        assert!(
            received.contains(&Event::NodeCallReturned { address: address(GPU) }),
            "{operation}: {received:?}"
        );
    }
}

#[tokio::test]
async fn a_mediated_device_is_created_plugged_unplugged_and_destroyed() {
    let mut host = accelerators();
    let sim = host.sim.clone();
    assert_eq!((host.uuids().await, host.left().await), (vec![FIRST], left(3, 2)));
    let uuid = Uuid::from_u128(7);
    let made = hotplug::create_mdev(sim.as_ref(), address(GPU), "nvidia-233", uuid).await.unwrap();
    assert_eq!((made.uuid, made.mdev_type.as_str(), made.parent), (uuid, "nvidia-233", Some(address(GPU))));
    assert_eq!(host.left().await, left(3, 1));
    let name = made.name.clone();
    assert_eq!(host.received(), [Event::NodeDevice { name: name.clone(), change: NodeChange::Created }]);

    let spec = spec(uuid, 1);
    let presence =
        hotplug::plug(sim.as_ref(), &templates(), g(1), &spec, Scope::LiveAndConfig, LIMITS).await.unwrap();
    assert!(presence.live && presence.config);
    assert_eq!(presence.inner_address, Some(address("0000:01:00.0")), "a PCI Express port, as in libvirt");
    let live = host.live(g(1)).await.unwrap();
    assert_eq!(live.mdev(spec.alias).map(|held| held.uuid), Some(uuid));
    assert!(matches!(host.received()[..], [Event::DeviceAdded { domain, .. }] if domain == g(1)));

    let (kind, text) = refused(sim.destroy_mdev(uuid).await);
    assert!(kind == ErrorKind::InUse && text.contains(": device in use"), "{text}");
    drop(sim);
    let host = host.reopened();
    let (kind, text) = refused(host.sim.destroy_mdev(uuid).await);
    assert!(kind == ErrorKind::InUse, "its holder is kept after a restart: {text}");

    let unplugged =
        hotplug::unplug(host.sim.as_ref(), &templates(), g(1), &spec, true, LIMITS).await.unwrap();
    assert_eq!(unplugged, Unplugged::Gone);
    assert!(host.definition(g(1)).await.unwrap().mdevs.is_empty());
    host.sim.destroy_mdev(uuid).await.unwrap();
    assert_eq!((host.uuids().await, host.left().await), (vec![FIRST], left(3, 2)));
    assert_eq!(refused(host.sim.destroy_mdev(uuid).await).0, ErrorKind::NoDevice);
}

#[tokio::test]
async fn a_mediated_device_that_cannot_be_created_is_refused_with_the_reason() {
    let host = accelerators();
    let make = |parent: &'static str, of: &'static str, uuid| {
        let sim = host.sim.clone();
        async move {
            hotplug::create_mdev(sim.as_ref(), address(parent), of, Uuid::from_u128(uuid)).await.map(drop)
        }
    };
    let (kind, text) = refused(make(GPU, "nvidia-1", 1).await);
    assert_eq!(kind, ErrorKind::NotAssignable);
    assert_eq!(text, "it has no such type; choose one of nvidia-232, nvidia-233");
    let (kind, text) = refused(make("0000:c1:00.0", "nvidia-232", 1).await);
    assert_eq!(kind, ErrorKind::NotAssignable);
    assert!(text.contains("no mediated device types"), "{text}");
    assert_eq!(refused(make("0000:ff:00.0", "nvidia-232", 1).await).0, ErrorKind::NoDevice);

    make(GPU, "nvidia-233", 1).await.unwrap();
    let (kind, text) = refused(make(GPU, "nvidia-233", 1).await);
    assert!(kind == ErrorKind::Refused && text.contains("already exists"), "{text}");
    make(GPU, "nvidia-233", 2).await.unwrap();
    let (kind, text) = refused(make(GPU, "nvidia-233", 3).await);
    assert_eq!(kind, ErrorKind::InUse);
    assert_eq!(text, "no instance of it is available; types with available instances: nvidia-232");
    assert_eq!(host.uuids().await.len(), 3, "the refused calls created nothing");
}

#[tokio::test]
async fn a_mediated_device_can_be_in_one_guest_only_and_must_exist() {
    let host = accelerators();
    let sim = host.sim.as_ref();
    let plug = async |guest, source, alias, scope| {
        let spec = spec(source, alias);
        hotplug::plug(sim, &templates(), guest, &spec, scope, LIMITS).await.map(drop)
    };
    plug(g(1), FIRST, 1, Scope::Live).await.unwrap();
    let (kind, text) = refused(plug(g(2), FIRST, 2, Scope::Live).await);
    assert_eq!(kind, ErrorKind::InUse);
    assert!(text.ends_with(&format!("/{FIRST} is in use by driver QEMU, domain g1")), "{text}");
    let (kind, text) = refused(plug(g(2), Uuid::from_u128(9), 2, Scope::Live).await);
    assert!(kind == ErrorKind::NoDevice && text.contains("mediated device"), "{text}");

    // Any device can be added to a definition once; the start checks it.
    plug(g(3), FIRST, 3, Scope::Config).await.unwrap();
    assert_eq!(refused(plug(g(3), FIRST, 4, Scope::Config).await).0, ErrorKind::AlreadyDefined);
    assert!(host.sim.control("start g3").unwrap_err().contains("is in use by driver QEMU, domain g1"));
    host.control("destroy g1");
    host.control("start g3");
    assert_eq!(host.live(g(3)).await.unwrap().mdevs.len(), 1);
    host.control("shutdown g3");
    host.sim.destroy_mdev(FIRST).await.unwrap();
    assert!(host.sim.control("start g3").unwrap_err().contains("not found"));
}

#[tokio::test]
async fn a_mediated_device_that_the_guest_keeps_stays_in_its_definition() {
    let host = Host::open(copy_of("accelerators"));
    host.control("guest g1 unplug=refuse");
    let (sim, spec) = (host.sim.as_ref(), spec(FIRST, 1));
    hotplug::plug(sim, &templates(), g(1), &spec, Scope::LiveAndConfig, LIMITS).await.unwrap();
    let unplugged = hotplug::unplug(sim, &templates(), g(1), &spec, true, LIMITS).await.unwrap();
    assert!(matches!(unplugged, Unplugged::Refused { .. }), "{unplugged:?}");
    assert_eq!(host.definition(g(1)).await.unwrap().mdevs.len(), 1, "it was added to the definition again");
}

/// A function cannot be assigned while it has mediated devices, which vanish with its host driver.
#[tokio::test]
async fn a_parent_and_its_mediated_devices_are_never_assigned_together() {
    let mut host = accelerators();
    let sim = host.sim.clone();
    let facts = || async { Facts::from(sim.device(address(GPU)).await.unwrap()) };
    let bind =
        || async { binding::bind(sim.as_ref(), &facts().await, HostDriver::Vfio, Policy::default()).await };
    let (kind, text) = refused(bind().await);
    assert_eq!(kind, ErrorKind::InUse);
    assert!(text.contains(&format!("{GPU} has mediated device {FIRST}")), "{text}");
    hotplug::plug(sim.as_ref(), &templates(), g(1), &spec(FIRST, 1), Scope::Live, LIMITS).await.unwrap();
    assert_eq!(refused(host.attach(g(2), GPU, "ua-2", Scope::Live).await).0, ErrorKind::InUse);
    assert_eq!(refused(sim.node_detach(address(GPU)).await).0, ErrorKind::InUse);

    host.control("destroy g1");
    host.received();
    sim.node_detach(address(GPU)).await.unwrap();
    assert!(
        matches!(&host.received()[..], [Event::NodeDevice { name, change: NodeChange::Deleted }] if name.starts_with("mdev_"))
    );
    assert_eq!(
        (host.uuids().await, host.left().await),
        (Vec::new(), Vec::new()),
        "there are no mediated devices under VFIO"
    );
    sim.node_reattach(address(GPU)).await.unwrap();
    assert_eq!((host.uuids().await, host.left().await), (Vec::new(), left(4, 2)));
    bind().await.unwrap();
}

/// Someone unbinds the host driver by hand: the guest keeps its mediated device, which vanishes when the guest stops.
#[tokio::test]
async fn a_mediated_device_without_a_host_driver_vanishes_when_its_guest_stops() {
    let host = accelerators();
    hotplug::plug(host.sim.as_ref(), &templates(), g(1), &spec(FIRST, 1), Scope::Live, LIMITS).await.unwrap();
    host.control(&format!("device driver {GPU} vfio-pci"));
    assert_eq!(host.uuids().await, [FIRST]);
    host.control("destroy g1");
    assert!(host.uuids().await.is_empty());
}

#[tokio::test]
async fn documents_that_libvirt_refuses() {
    let host = accelerators();
    let good = spec(FIRST, 1).render(&templates()).unwrap();
    for (from, to, kind, words) in [
        (" model='vfio-pci'", "", ErrorKind::Document, "Missing 'model' attribute"),
        ("'vfio-pci'", "'vfio'", ErrorKind::Document, "Invalid value for attribute 'model'"),
        ("'vfio-pci'", "'vfio-ap'", ErrorKind::Unsupported, "model vfio-pci only"),
        ("uuid='b4", "uuid='x4", ErrorKind::Document, "Cannot parse uuid attribute 'x4"),
        ("uuid=", "id=", ErrorKind::Document, "Cannot parse uuid attribute ''"),
    ] {
        assert!(good.contains(from), "{from}");
        let (found, text) = refused(host.sim.attach(g(1), &good.replacen(from, to, 1), Scope::Live).await);
        assert!(found == kind && text.contains(words), "{from} → {to}: {found:?} {text}");
    }
}

#[derive(Debug, Clone)]
enum Step {
    Create { uuid: u128, eight: bool },
    Destroy { uuid: u128 },
    Attach { guest: u128, uuid: u128, scope: Scope },
    Detach { guest: u128, uuid: u128, scope: DetachScope },
    Control(String),
    Reopen,
}

fn step() -> impl Strategy<Value = Step> {
    let (guest, uuid) = (1u128..=3, 1u128..=4);
    let scope = prop_oneof![Just(Scope::Live), Just(Scope::Config), Just(Scope::LiveAndConfig)];
    let detach = prop_oneof![Just(DetachScope::Live), Just(DetachScope::Config)];
    let power = prop::sample::select(vec!["start", "destroy", "reboot"]);
    let driver = prop::sample::select(vec!["vfio-pci", "nvidia", ""]);
    prop_oneof![
        4 => (uuid.clone(), any::<bool>()).prop_map(|(uuid, eight)| Step::Create { uuid, eight }),
        2 => uuid.clone().prop_map(|uuid| Step::Destroy { uuid }),
        6 => (guest.clone(), uuid.clone(), scope).prop_map(|(guest, uuid, scope)| Step::Attach { guest, uuid, scope }),
        4 => (guest.clone(), uuid, detach).prop_map(|(guest, uuid, scope)| Step::Detach { guest, uuid, scope }),
        2 => (guest, power).prop_map(|(guest, power)| Step::Control(format!("{power} g{guest}"))),
        1 => driver.prop_map(|driver| Step::Control(format!("device driver {GPU} {driver}"))),
        1 => Just(Step::Reopen),
    ]
}

/// Checks that each mediated device of a guest exists and is in one guest only, and that the types' limits hold.
async fn check(host: &Host) {
    let there = host.sim.mdevs().await.unwrap();
    let mut holders: BTreeMap<Uuid, String> = BTreeMap::new();
    for info in host.sim.domains().await.unwrap() {
        for held in host.live(info.uuid).await.into_iter().flat_map(|live| live.mdevs) {
            assert!(
                there.iter().any(|mdev| mdev.uuid == held.uuid),
                "{} vanished while a guest has it",
                held.uuid
            );
            assert_eq!(holders.insert(held.uuid, info.name.clone()), None, "{} is in two guests", held.uuid);
            assert!(held.guest.is_some() && held.alias.is_some());
        }
    }
    for (of, most) in [("nvidia-232", 4), ("nvidia-233", 2)] {
        let made = there.iter().filter(|mdev| mdev.mdev_type == of).count();
        assert!(made <= most, "{made} of {of}");
        if let Some((_, left)) = host.left().await.iter().find(|(id, _)| id == of) {
            assert_eq!(made + *left as usize, most);
        }
    }
    let native = host.driver(GPU).await.as_deref() == Some("nvidia");
    assert!(
        native || there.iter().all(|mdev| holders.contains_key(&mdev.uuid)),
        "there are mediated devices without a host driver"
    );
}

async fn run(steps: Vec<Step>) {
    let mut host = accelerators();
    for step in steps {
        let sim = host.sim.clone();
        match step {
            Step::Create { uuid, eight } => {
                let of = if eight { "nvidia-233" } else { "nvidia-232" };
                let _ = sim.create_mdev(address(GPU), of, Uuid::from_u128(uuid)).await;
            }
            Step::Destroy { uuid } => drop(sim.destroy_mdev(Uuid::from_u128(uuid)).await),
            Step::Attach { guest, uuid, scope } => {
                let xml = spec(Uuid::from_u128(uuid), uuid).render(&templates()).unwrap();
                let before = sim.domain(g(guest)).await.unwrap();
                if sim.attach(g(guest), &xml, scope).await.is_err() {
                    assert_eq!(sim.domain(g(guest)).await.unwrap(), before, "a refusal changed something");
                }
            }
            Step::Detach { guest, uuid, scope } => {
                let alias = UserAlias(Uuid::from_u128(uuid)).to_string();
                let _ = sim.detach(g(guest), &alias, scope).await;
            }
            Step::Control(line) => drop(sim.control(&line)),
            Step::Reopen => {
                let before = sim.mdevs().await.unwrap();
                drop(sim);
                host = host.reopened();
                assert_eq!(host.sim.mdevs().await.unwrap(), before);
            }
        }
        check(&host).await;
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, ..ProptestConfig::default() })]

    #[test]
    fn rules_hold_in_any_order(steps in prop::collection::vec(step(), 1..50)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(run(steps));
    }
}
