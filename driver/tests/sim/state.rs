//! The state that outlives the process, several processes, and errors at the opening.

use hotslot_driver::device::{HostDevice, Role};
use hotslot_driver::hypervisor::{DetachScope, DomainState};
use hotslot_driver::sim::{control, control_of};
use tokio::time::sleep;

use super::*;

#[tokio::test(start_paused = true)]
async fn state_outlives_the_process() {
    let host = Host::with("[guest.q35]\nunplug_ms = 500");
    host.attach(Q35, VF0, "ua-0", Scope::LiveAndConfig).await.unwrap();
    host.attach(Q35, VF1, "ua-1", Scope::Live).await.unwrap();
    host.attach(SWITCH, NVME, "ua-2", Scope::Config).await.unwrap();
    host.control("device remove pci_0000_08_00_0");
    host.control("pause i440fx");
    host.control("guest full unplug=ignore");
    host.sim.detach(Q35, "ua-1", DetachScope::Live).await.unwrap();
    let before = (host.sim.domain(SWITCH).await.unwrap(), host.sim.domain(FULL).await.unwrap());

    let mut host = host.reopened();
    assert_eq!((host.sim.domain(SWITCH).await.unwrap(), host.sim.domain(FULL).await.unwrap()), before);
    assert_eq!(host.sim.domain(I440FX).await.unwrap().info.state, DomainState::Paused);
    assert_eq!(host.driver(VF0).await.as_deref(), Some("vfio-pci"));
    assert_eq!(refused(host.sim.device(address(NVME_SRIOV)).await).0, ErrorKind::NoDevice);
    assert_eq!(refused(host.sim.detach(Q35, "ua-1", DetachScope::Live).await).0, ErrorKind::UnplugPending);
    assert_eq!(host.next().await, removed(Q35, "ua-1"), "a pending removal is completed");
    assert_eq!(host.driver(VF1).await.as_deref(), Some("igbvf"));

    // Without the state directory the host is as it was captured.
    let Host { dir, sim, events } = host;
    drop((sim, events));
    fs::remove_dir_all(dir.path().join("state")).unwrap();
    let host = Host::open(dir);
    assert_eq!(host.live(Q35).await.unwrap().hostdevs, []);
    assert_eq!(host.driver(VF0).await.as_deref(), Some("igbvf"));
}

/// Two instances act like two processes: each sees the changes of the other and gets their events.
// The runtime needs several threads, because the call to the control socket blocks.
#[tokio::test(flavor = "multi_thread")]
async fn several_processes_share_a_host() {
    let mut one = Host::small();
    let other = Sim::open(one.dir.path()).unwrap();
    let mut received = other.events();
    one.attach(Q35, VF0, "ua-0", Scope::LiveAndConfig).await.unwrap();
    let view = other.domain(Q35).await.unwrap();
    assert_eq!(view.live.as_ref().unwrap().hostdevs.len(), 1);
    assert_eq!(view, one.sim.domain(Q35).await.unwrap());
    assert_eq!(other.device(address(VF0)).await.unwrap(), one.sim.device(address(VF0)).await.unwrap());
    let mut events = vec![received.recv().await.unwrap(), received.recv().await.unwrap()];
    events.retain(|event| matches!(event, Event::DeviceAdded { .. }));
    assert_eq!(events.len(), 1, "there is one event for the added device");
    assert_eq!(refused(other.attach(I440FX, &hostdev(VF0, "ua-1"), Scope::Live).await).0, ErrorKind::InUse);

    // The events arrive without a call to this instance, too.
    other.detach(Q35, "ua-0", DetachScope::Live).await.unwrap();
    while one.next().await != removed(Q35, "ua-0") {}
    assert_eq!(one.driver(VF0).await.as_deref(), Some("igbvf"));
    // Each instance has a control socket.
    control(one.dir.path(), "pause q35").unwrap();
    assert_eq!(other.domain(Q35).await.unwrap().info.state, DomainState::Paused);
    control_of(std::process::id(), one.dir.path(), "resume q35").unwrap();
    assert_eq!(one.sim.domain(Q35).await.unwrap().info.state, DomainState::Running);
    drop(other);
    assert!(control_of(std::process::id(), one.dir.path(), "pause q35").is_err());
    one.reopened();
}

/// A file is written under a temporary name and then renamed. A temporary file that a killed process left behind is not
/// read, and an attach changes one file only.
#[tokio::test]
async fn an_interrupted_write_leaves_the_old_state() {
    let host = Host::small();
    host.attach(Q35, VF0, "ua-0", Scope::Live).await.unwrap();
    host.attach(I440FX, VF1, "ua-1", Scope::Live).await.unwrap();
    let kept = host.file(format!("state/domains/{I440FX}.json"));
    let untouched = fs::metadata(&kept).unwrap().modified().unwrap();
    host.attach(Q35, NVME, "ua-2", Scope::Live).await.unwrap();
    assert_eq!(fs::metadata(&kept).unwrap().modified().unwrap(), untouched);
    assert_eq!(fs::read_dir(host.file("state/domains")).unwrap().count(), 2);
    assert_eq!(fs::read_dir(host.file("state/devices")).unwrap().count(), 0);
    fs::write(host.file(format!("state/domains/{Q35}.new")), "{\"live\": \"<dom").unwrap();
    let host = host.reopened();
    assert_eq!(host.live(Q35).await.unwrap().hostdevs.len(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_call_is_completed_although_its_caller_stopped_waiting() {
    let host = Host::with("[latency]\nattach = 500");
    let attach = host.attach(Q35, VF0, "ua-0", Scope::Live);
    assert!(tokio::time::timeout(Duration::from_millis(100), attach).await.is_err());
    sleep(Duration::from_secs(1)).await;
    assert_eq!(host.live(Q35).await.unwrap().hostdevs.len(), 1);
}

#[tokio::test]
async fn devices_can_be_added_and_removed() {
    let host = Host::small();
    let extra = host.file("new.xml");
    let xml = fs::read_to_string(host.file("devices/pci_0000_05_00_0.xml")).unwrap();
    fs::write(
        &extra,
        xml.replace("0000_05_00", "0000_25_00")
            .replace("<bus>5<", "<bus>37<")
            .replace("bus='0x05'", "bus='0x25'"),
    )
    .unwrap();
    host.control(&format!("device add {}", extra.display()));
    host.attach(Q35, "0000:25:00.0", "ua-new", Scope::Live).await.unwrap();
    fs::remove_file(&extra).unwrap();
    let host = host.reopened();
    assert_eq!(host.driver("0000:25:00.0").await.as_deref(), Some("vfio-pci"));

    host.control(&format!("device remove {VF0}"));
    let vfs = |device: HostDevice| {
        let Role::Physical { vfs, .. } = device.role else { panic!("{:?}", device.role) };
        vfs
    };
    assert_eq!(vfs(host.sim.device(address(PF)).await.unwrap()), [address(VF1)]);
    let host = host.reopened();
    assert_eq!(vfs(host.sim.device(address(PF)).await.unwrap()), [address(VF1)]);
    host.control(&format!("device add {VF0}"));
    let all = host.sim.devices().await.unwrap();
    let vf = all.into_iter().find(|device| device.address == address(VF0)).unwrap();
    assert_eq!(vf.driver.as_deref(), Some("igbvf"));
    assert_eq!(vf.net, ["eth7"]);
    assert_eq!(vfs(host.sim.device(address(PF)).await.unwrap()), [address(VF0), address(VF1)]);
}

#[tokio::test]
async fn functions_in_32_bit_domains_are_left_out_as_on_a_real_host() {
    let dir = small();
    let vf =
        fs::read_to_string(dir.path().join(format!("devices/{}.xml", address(VF0).node_name()))).unwrap();
    let vmd = vf.replace("pci_0000_04_10_0", "pci_10000_04_10_0").replace("<domain>0<", "<domain>65536<");
    fs::write(dir.path().join("devices/pci_10000_04_10_0.xml"), vmd).unwrap();
    let all = Sim::open(small().path()).unwrap().devices().await.unwrap();
    assert_eq!(Sim::open(dir.path()).unwrap().devices().await.unwrap(), all);
}

#[tokio::test]
async fn an_error_at_the_opening_names_the_file_and_the_place() {
    let cases: [(&str, &str, &[&str]); 7] = [
        ("host.toml", "hostnam = 'x'", &["host.toml", "hostnam", "hostname"]),
        ("host.toml", "[latency]\nattatch = 1", &["host.toml", "attatch", "attach"]),
        ("host.toml", "[guest.g]\nunplug = 'sometimes'", &["host.toml", "sometimes", "ignore"]),
        ("devices/bad.xml", "<device><name>x</name>", &["devices/bad.xml", "device"]),
        ("domains/bad.xml", "<domain><name>x</name></domain>", &["domains/bad.xml", "domain x", "os"]),
        (
            "domains/q35-again.xml",
            "q35",
            &["q35-again.xml", "10000000-0000-4000-8000-000000000001", "q35.xml"],
        ),
        ("domains/thief.xml", "thief", &["thief.xml", "hostdev", "0000:04:10.0", "devices/"]),
    ];
    for (file, text, words) in cases {
        let dir = small();
        let q35 = fs::read_to_string(dir.path().join("domains/q35.xml")).unwrap();
        let text = match text {
            "q35" => q35,
            "thief" => {
                fs::remove_file(dir.path().join("devices/pci_0000_04_10_0.xml")).unwrap();
                q35.replace("</devices>", &format!("{}</devices>", hostdev(VF0, "ua-1")))
                    .replace("-000000000001<", "-000000000042<")
            }
            text => text.to_owned(),
        };
        fs::write(dir.path().join(file), text).unwrap();
        let message = Sim::open(dir.path()).unwrap_err().to_string();
        for word in words {
            assert!(message.contains(word), "{file}: no `{word}` in: {message}");
        }
    }
}

#[tokio::test]
async fn a_simulated_host_is_marked_as_simulated() {
    let host = Host::open({
        let dir = small();
        fs::copy(data("../tests/data/hosts/small/host.toml"), dir.path().join("host.toml")).unwrap();
        dir
    });
    let info = host.sim.host().await.unwrap();
    assert!(info.simulated);
    assert_eq!((info.hostname.as_str(), info.libvirt_version), ("small", 11_003_000));
    assert_eq!(host.sim.devices().await.unwrap().len(), 19);
    let names: Vec<String> =
        host.sim.domains().await.unwrap().into_iter().map(|domain| domain.name).collect();
    assert_eq!(names, ["q35", "switch", "i440fx", "full"]);
}

/// A directory that cannot be written to can be opened.
#[tokio::test]
async fn changes_to_a_read_only_directory_are_kept_in_memory() {
    let dir = small();
    // Permissions do not restrict root, but the lock file cannot be created where a folder has its name.
    fs::create_dir(dir.path().join("lock")).unwrap();
    let host = Host::open(dir);
    host.attach(Q35, VF0, "ua-0", Scope::Live).await.unwrap();
    assert_eq!(host.driver(VF0).await.as_deref(), Some("vfio-pci"));
    assert!(!host.file("control").exists());
    let host = host.reopened();
    assert_eq!(host.live(Q35).await.unwrap().hostdevs, []);
}
