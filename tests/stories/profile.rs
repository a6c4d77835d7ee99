//! The profile of a host: VFs and vGPU types that are made at the start, and shown as drift when they differ.

use std::path::Path;
use std::process::{Command, Output};

use hotslot_driver::sim::Sim;
use hotslot_tests::{Hotslot, I440FX, Q35, attachments, binary, host, path};
use serde_json::{Value, json};

use super::inventory::guards::live_on;

/// No `device_spec` lists the PF, which the profile is about all the same.
const PCI: &str = r#"
[pci]
device_spec = ['{"vendor_id": "8086", "product_id": "10ca"}']
alias = ['{"name": "vf", "vendor_id": "8086", "product_id": "10ca", "device_type": "type-VF"}']
"#;

const TWO: &str = "[[profile]]\nhost = \"node1\"\nvendor_id = \"8086\"\nproduct_id = \"10c9\"\nvfs = 2\n";
const ONE: &str = "[[profile]]\naddress = \"0000:04:00.0\"\nvfs = 1\n";

const PF: &str = "0000:04:00.0";
const NONE: &str = "vfs 0000:04:00.0 0";
const REPAIR: &str = "/v2.1/os-hypervisors/node1/drift";

/// Does something on a simulated host that no service serves.
fn on_host(dir: &Path, line: &str) {
    Sim::open(dir).unwrap().control(line).unwrap();
}

/// Serves a host with a profile, on which something was done before.
async fn serve(profile: &str, before: &str) -> Hotslot {
    Hotslot::bare(&host("small"), &format!("{profile}{PCI}"), |dir| on_host(dir, before)).await
}

/// Adds a text at the end of the file of a simulated host.
fn append(dir: &Path, text: &str) {
    let file = dir.join("host.toml");
    let old = std::fs::read_to_string(&file).unwrap();
    std::fs::write(file, old + text).unwrap();
}

async fn entry(service: &Hotslot) -> Value {
    service.get("/v2.1/os-hypervisors/node1/profile").await.expect(200).body["profile"][0].take()
}

async fn vfs(service: &Hotslot) -> usize {
    entry(service).await["functions"][0]["vfs"].as_array().unwrap().len()
}

async fn drift(service: &Hotslot) -> Vec<Value> {
    let drift = service.get("/drift").await.expect(200).body["drift"].take();
    drift.as_array().unwrap().iter().filter(|one| one["kind"] != "foreign").cloned().collect()
}

async fn repair(service: &Hotslot) -> Vec<Value> {
    let drift = service.post(REPAIR, json!({})).await.expect(200).body["drift"].take();
    drift.as_array().unwrap().iter().filter(|one| one["kind"] != "foreign").cloned().collect()
}

/// The events of a kind: from, to and address.
async fn events(service: &Hotslot, kind: &str) -> Vec<Value> {
    let events = service.get(&format!("/events?kind={kind}")).await.expect(200).body["events"].take();
    events
        .as_array()
        .unwrap()
        .iter()
        .map(|event| json!([event["from"], event["to"], event["address"]]))
        .collect()
}

fn run(service: &Hotslot, arguments: &[&str]) -> Output {
    Command::new(binary()).args(arguments).env("HOTSLOT_URL", service.url()).output().unwrap()
}

#[tokio::test]
async fn vfs_are_made_at_the_start_and_can_be_attached() {
    let service = serve(TWO, NONE).await;
    let shown = entry(&service).await;
    assert_eq!((&shown["place"], &shown["vfs"]), (&json!("[[profile]][0]"), &json!(2)), "{shown:#}");
    let pf = &shown["functions"][0];
    assert_eq!((&pf["address"], &pf["max_vfs"]), (&json!(PF), &json!(7)), "{shown:#}");
    assert_eq!(pf["vfs"], json!(["0000:04:10.0", "0000:04:10.2"]), "{shown:#}");
    assert_eq!(pf["differences"], json!([]), "{shown:#}");
    assert_eq!(events(&service, "host.vfs").await, [json!([0, 2, PF])]);
    assert_eq!(drift(&service).await, Vec::<Value>::new());
    let vf = service.attach(Q35, "vf:1").await.expect(200).body["pci_devices"][0].clone();
    service.delete(&path(&vf)).await.expect(200);
    let listed = run(&service, &["host", "profile"]);
    let text = String::from_utf8_lossy(&listed.stdout).into_owned();
    for says in [PF, "[[profile]][0]", "2 VFs", "2 of 7 VFs"] {
        assert!(text.contains(says), "{says}: {text}");
    }
    service.expect_clean().await;
}

#[tokio::test]
async fn vfs_are_there_again_after_a_restart_of_the_host_and_so_is_the_guest_with_its_vf() {
    let mut service = serve(TWO, "vfs 0000:04:00.0 2").await;
    assert_eq!(events(&service, "host.vfs").await, Vec::<Value>::new(), "nothing was to be made");
    let vf = service.attach(Q35, "vf:1").await.expect(200).body["pci_devices"][0].clone();
    service.kill();
    on_host(&service.host_dir(), "restart");
    service.start_again().await;
    assert_eq!(vfs(&service).await, 2);
    assert_eq!(events(&service, "host.vfs").await, [json!([0, 2, PF])]);
    // The record was compared with the host when the VFs were there again.
    assert_eq!(events(&service, "device.gone").await, Vec::<Value>::new());
    service.sim("start q35");
    service
        .until("the guest has its VF", async || {
            let rows = service.attachments(Q35).await;
            rows.len() == 1 && rows[0]["status"] == "attached" && rows[0]["address"] == vf["address"]
        })
        .await;
    service.delete(&path(&vf)).await.expect(200);
    service.expect_clean().await;
}

#[tokio::test]
async fn what_changes_while_the_service_runs_is_drift_and_a_repair_makes_it_again() {
    let service = serve(TWO, "vfs 0000:04:00.0 2").await;
    service.sim(NONE);
    service.until("it is shown", async || vfs(&service).await == 0).await;
    let found = drift(&service).await;
    assert_eq!(found.len(), 1, "{found:#?}");
    let finding = &found[0];
    assert_eq!((&finding["kind"], &finding["address"]), (&json!("profile-vfs"), &json!(PF)));
    assert_eq!(finding["said"], json!({ "profile": "2 VFs ([[profile]][0])", "host": "it has 0 VFs" }));
    assert_eq!((&finding["action"], &finding["done"]), (&json!("2 VFs are made"), &json!("by a repair")));
    let text = String::from_utf8_lossy(&run(&service, &["drift"]).stdout).into_owned();
    assert!(text.contains("profile-vfs") && text.contains("2 VFs are made"), "{text}");
    assert_eq!(vfs(&service).await, 0, "nothing is changed by itself");
    let repaired = run(&service, &["drift", "--repair"]);
    assert!(repaired.status.success(), "{repaired:?}");
    assert_eq!(vfs(&service).await, 2);
    assert_eq!(drift(&service).await, Vec::<Value>::new());

    // A connection that is back may be one to a host that was restarted.
    service.sim(NONE);
    service.sim("disconnect");
    service.sim("reconnect");
    service
        .until("the VFs are there again", async || {
            service.get(REPAIR).await.status == 200 && vfs(&service).await == 2
        })
        .await;
}

#[tokio::test]
async fn vfs_that_somebody_has_do_not_vanish() {
    let service = serve(ONE, "vfs 0000:04:00.0 2").await;
    let found = drift(&service).await;
    let action = "2 VFs are removed, unless one is in use, and 1 VF is made";
    assert_eq!((found.len(), &found[0]["action"]), (1, &json!(action)), "{found:#?}");
    let vf = service.attach(Q35, "vf:1").await.expect(200).body["pci_devices"][0].clone();
    let address = vf["address"].as_str().unwrap();
    let refused = async |says: &str| {
        let left = repair(&service).await;
        let one = left.iter().find(|one| one["kind"] == "profile-vfs").unwrap();
        assert_eq!(one["repaired"], false, "{one:#}");
        let why = one["left"].as_str().unwrap();
        assert!(
            why.contains("the number of VFs of 0000:04:00.0 stays as it is") && why.contains(says),
            "{why}"
        );
        assert_eq!(vfs(&service).await, 2);
    };
    refused(&format!("server q35 has {address} (running)")).await;
    service.sim("shutdown q35");
    refused(&format!("server q35 has {address} (in its definition)")).await;
    service.sim("start q35");
    service.delete(&path(&vf)).await.expect(200);
    // A VF that another tool has put into the definition of a server that is off.
    service.sim("plug switch 0000:04:10.2 config");
    refused("server switch has 0000:04:10.2 (in its definition)").await;
    service.sim("unplug switch 0000:04:10.2 config");
    let done = repair(&service).await;
    assert_eq!((done.len(), &done[0]["repaired"]), (1, &json!(true)), "{done:#?}");
    assert_eq!(vfs(&service).await, 1);
    assert_eq!(events(&service, "host.vfs").await, [json!([2, 0, PF]), json!([0, 1, PF])]);
    service.until("the records agree", async || drift(&service).await.is_empty()).await;
    let other = service.attach(I440FX, "vf:2").await;
    assert!(matches!(other.status, 400 | 409), "there is one VF now: {:#}", other.body);
}

#[tokio::test]
async fn a_kill_between_the_two_writes_settles_itself() {
    let mut service = serve(ONE, "vfs 0000:04:00.0 2").await;
    service.sim("fault set-vf-count kill at=after");
    assert!(!run(&service, &["drift", "--repair"]).status.success());
    assert!(service.ended(std::time::Duration::from_secs(30)).await);
    service.start_again().await;
    assert_eq!(vfs(&service).await, 1);
    assert_eq!(drift(&service).await, Vec::<Value>::new());
}

#[tokio::test]
async fn without_the_helper_the_service_starts_and_says_what_to_do() {
    let fault = "[[fault]]\noperation = \"set-vf-count\"\naction = \"fail\"\nkind = \"unsupported\"\ntimes = 1000\n\
                 text = \"the helper of hotslot does not run; run systemctl enable --now hotslot-helper.socket\"\n";
    let service = Hotslot::bare(&host("small"), &format!("{TWO}{PCI}"), |dir| {
        append(dir, fault);
        on_host(dir, NONE);
    })
    .await;
    assert_eq!(vfs(&service).await, 0);
    assert_eq!(events(&service, "host.profile_failed").await, [json!([null, "2 VFs are made", PF])]);
    let all = service.get("/events?kind=host.profile_failed").await.expect(200).body;
    let reason = all["events"][0]["reason"].as_str().unwrap();
    assert!(reason.contains("enable --now hotslot-helper.socket"), "{reason}");
    let left = repair(&service).await;
    assert_eq!(left[0]["repaired"], false, "{left:#?}");
    assert!(left[0]["left"].as_str().unwrap().contains("hotslot-helper.socket"), "{left:#?}");
    service.sim("fault clear");
    assert_eq!(repair(&service).await[0]["repaired"], true);
    assert_eq!(vfs(&service).await, 2);
}

#[tokio::test]
async fn a_person_is_told_what_the_service_cannot_do() {
    let remote = Hotslot::bare(&host("small"), &format!("{TWO}{PCI}"), |dir| {
        on_host(dir, NONE);
        let file = dir.join("host.toml");
        let text = std::fs::read_to_string(&file).unwrap().replace("# remote = true", "remote = true");
        std::fs::write(file, text).unwrap();
    })
    .await;
    let found = drift(&remote).await;
    let action = found[0]["action"].as_str().unwrap();
    assert!(
        action.contains("another machine: write 2 into /sys/bus/pci/devices/0000:04:00.0/sriov_numvfs"),
        "{action}"
    );
    assert_eq!(found[0]["done"], Value::Null);
    assert_eq!(repair(&remote).await[0]["repaired"], false);
    assert_eq!(events(&remote, "host").await, Vec::<Value>::new());

    let many = "[[profile]]\naddress = \"*:04:00.*\"\nvfs = 9\n[[profile]]\naddress = \"0000:05:00.0\"\nvfs = 1\n\
                [[profile]]\nproduct_id = \"10ca\"\ndriver = \"igb_uio\"\n";
    let service = serve(many, NONE).await;
    let actions: Vec<_> =
        drift(&service).await.iter().map(|one| one["action"].as_str().unwrap().to_owned()).collect();
    assert_eq!(actions.len(), 2, "{actions:#?}");
    assert!(actions[0].contains("it supports at most 7 VFs; write that into [[profile]][0]"), "{actions:#?}");
    assert!(actions[1].contains("enable SR-IOV in the firmware"), "{actions:#?}");
    assert_eq!(vfs(&service).await, 0);
    service.sim("vfs 0000:04:00.0 1");
    service
        .until("the driver of the VF is shown", async || {
            drift(&service).await.iter().any(|one| {
                one["kind"] == "profile-driver"
                    && one["action"].as_str().unwrap().contains(
                        "echo igb_uio >/sys/bus/pci/devices/0000:04:10.0/driver_override; echo 0000:04:10.0 \
                         >/sys/bus/pci/devices/0000:04:10.0/driver/unbind; echo 0000:04:10.0 >/sys/bus/pci/drivers_probe",
                    )
            })
        })
        .await;
}

#[tokio::test]
async fn a_repair_binds_the_drivers_that_nobody_uses() {
    let vfio = format!("{TWO}driver = \"vfio-pci\"\n");
    let service = serve(&vfio, "vfs 0000:04:00.0 2").await;
    let drivers = async || {
        let functions = service.functions().await;
        ["0000:04:10.0", "0000:04:10.2"]
            .map(|vf| functions[vf]["driver"].as_str().unwrap_or("none").to_owned())
    };
    // A guest has one of them, so that its driver is not compared.
    let vf = service.attach(Q35, "vf:1").await.expect(200).body["pci_devices"][0].clone();
    assert_eq!(vf["address"], "0000:04:10.0");
    let found = drift(&service).await;
    let action = "its driver igbvf is replaced by vfio-pci, unless it is in use";
    assert_eq!(
        (found.len(), &found[0]["address"], &found[0]["action"]),
        (1, &json!("0000:04:10.2"), &json!(action)),
        "{found:#?}"
    );
    let repaired = repair(&service).await;
    assert_eq!((repaired.len(), &repaired[0]["repaired"]), (1, &json!(true)), "{repaired:#?}");
    assert_eq!(events(&service, "host.driver").await, [json!(["igbvf", "vfio-pci", "0000:04:10.2"])]);
    assert_eq!(drivers().await, ["vfio-pci", "vfio-pci"]);
    // The host driver comes back with the detach, and is replaced too.
    service.delete(&path(&vf)).await.expect(200);
    assert_eq!(drivers().await, ["igbvf", "vfio-pci"]);
    // What fails is undone and told.
    service.sim("fault node-detach fail text=the driver is busy");
    let left = repair(&service).await;
    assert!(left[0]["left"].as_str().unwrap().contains("the driver is busy"), "{left:#?}");
    assert_eq!(drivers().await, ["igbvf", "vfio-pci"]);
    assert_eq!(repair(&service).await[0]["repaired"], true);
    assert_eq!(drivers().await, ["vfio-pci", "vfio-pci"]);
    // A guest gets one as it is, and leaves it on its driver.
    let vf = service.attach(Q35, "vf:1").await.expect(200).body["pci_devices"][0].clone();
    service.delete(&path(&vf)).await.expect(200);
    assert_eq!((drivers().await, drift(&service).await), (["vfio-pci"; 2].map(Into::into), Vec::new()));
    service.reconfigure("driver = \"vfio-pci\"", "driver = \"igbvf\"");
    assert!(run(&service, &["config", "reload"]).status.success());
    let repaired = repair(&service).await;
    assert_eq!(repaired.iter().filter(|one| one["repaired"] == true).count(), 2, "{repaired:#?}");
    assert_eq!(drivers().await, ["igbvf", "igbvf"]);
    service.expect_clean().await;
}

#[tokio::test]
async fn a_driver_of_a_function_that_the_host_needs_stays() {
    let entry = |address: &str| format!("[[profile]]\naddress = \"{address}\"\ndriver = \"vfio-pci\"\n");
    let profile = ["0000:07:00.0", "0000:05:00.0", "*:04:00.0"].map(entry).concat();
    let service = Hotslot::bare(&host("small"), &format!("{profile}{PCI}"), live_on).await;
    // The VFs would vanish with the driver of their PF.
    let of_pf = drift(&service).await.into_iter().find(|one| one["address"] == PF).expect("a finding");
    assert!(of_pf["action"].as_str().unwrap().contains("driver_override"), "{of_pf}");
    let repaired = repair(&service).await;
    for one in &repaired {
        assert_eq!(one["repaired"], false, "{repaired:#?}");
    }
    for (address, says) in [("0000:07:00.0", "root-filesystem"), ("0000:05:00.0", "network-route")] {
        let kept = repaired.iter().find(|one| one["address"] == address).expect("a finding");
        let left = kept["left"].as_str().unwrap();
        assert!(left.contains(&format!("the host needs {address}")) && left.contains(says), "{kept:#}");
        assert_ne!(service.functions().await[address]["driver"], "vfio-pci");
    }
    assert_eq!(events(&service, "host.driver").await, Vec::<Value>::new());
}

#[tokio::test]
async fn a_frozen_host_is_left_alone() {
    let mut service = serve(TWO, "vfs 0000:04:00.0 2").await;
    let mode = |mode: &str| json!({ "hypervisor_mode": { "mode": mode } });
    service.put("/v2.1/os-hypervisors/node1/mode", mode("frozen")).await.expect(200);
    service.kill();
    on_host(&service.host_dir(), NONE);
    service.start_again().await;
    assert_eq!(vfs(&service).await, 0);
    assert_eq!(drift(&service).await[0]["kind"], "profile-vfs");
    service.post(REPAIR, json!({})).await.expect(409);
    service.put("/v2.1/os-hypervisors/node1/mode", mode("open")).await.expect(200);
    assert_eq!(vfs(&service).await, 0, "nothing is changed by itself");
    assert_eq!(repair(&service).await[0]["repaired"], true);
    assert_eq!(vfs(&service).await, 2);
}

#[tokio::test]
async fn vfs_get_their_vgpu_types_again() {
    let card = "[vgpu.\"0000:04:00.0\"]\nmemory = 48\ntypes.7 = { name = \"NVIDIA X-24Q\", memory = 24 }\n\
                types.8 = { name = \"NVIDIA X-12Q\", memory = 12 }\n";
    let profile = "[[profile]]\ndevname = \"eth5\"\nvfs = 2\nvgpu_type = \"nvidia-7\"\n";
    let spec = "[pci]\ndevice_spec = ['{\"product_id\": \"10ca\", \"managed\": \"false\"}']\n";
    let mut service = Hotslot::bare(&host("small"), &format!("{profile}{spec}"), |dir| {
        append(dir, card);
        for vf in ["0000_04_10_0", "0000_04_10_2"] {
            let file = dir.join(format!("devices/pci_{vf}.xml"));
            let text = std::fs::read_to_string(&file).unwrap();
            std::fs::write(file, text.replace("<name>igbvf</name>", "<name>nvidia</name>")).unwrap();
        }
        on_host(dir, NONE);
    })
    .await;
    let of = |service: &Hotslot, vf: &str| {
        std::fs::read_to_string(service.host_dir().join(format!("vgpu/{vf}.type"))).unwrap_or_default()
    };
    let types = |service: &Hotslot| ["0000:04:10.0", "0000:04:10.2"].map(|vf| of(service, vf));
    assert_eq!(types(&service), ["nvidia-7", "nvidia-7"], "{:#?}", drift(&service).await);
    assert_eq!(events(&service, "host.vgpu_type").await.len(), 2);
    service.kill();
    on_host(&service.host_dir(), "restart");
    assert_eq!(types(&service), ["", ""]);
    service.start_again().await;
    assert_eq!(types(&service), ["nvidia-7", "nvidia-7"]);
    // Another type is drift, and stays until a repair.
    std::fs::write(service.host_dir().join("vgpu/0000:04:10.2.type"), "nvidia-8").unwrap();
    service.kill();
    service.start_again().await;
    assert_eq!(types(&service), ["nvidia-7", "nvidia-8"]);
    let found = drift(&service).await;
    assert_eq!((found.len(), &found[0]["kind"]), (1, &json!("profile-vgpu-type")), "{found:#?}");
    assert_eq!(found[0]["said"]["host"], "it has the type nvidia-8");
    assert_eq!(repair(&service).await[0]["repaired"], true);
    assert_eq!(types(&service), ["nvidia-7", "nvidia-7"]);
}

#[tokio::test]
async fn a_new_profile_is_followed_at_a_reload_and_a_wrong_one_is_refused() {
    let service = serve(TWO, "vfs 0000:04:00.0 2").await;
    assert_eq!(drift(&service).await, Vec::<Value>::new());
    service.reconfigure("vfs = 2", "vfs = 1");
    assert!(run(&service, &["config", "reload"]).status.success());
    assert_eq!(drift(&service).await[0]["said"]["profile"], "1 VF ([[profile]][0])");
    assert_eq!(vfs(&service).await, 2);
    service.reconfigure("host = \"node1\"\nvendor_id", "host = \"node2\"\nvendor_id");
    service.reconfigure("vfs = 1", "vfs = 70000");
    let refused = run(&service, &["config", "reload"]);
    assert!(!refused.status.success(), "{refused:?}");
    let file = service.database().with_file_name("hotslot.toml");
    let checked = Command::new(binary()).args(["config", "check"]).arg(file).output().unwrap();
    let said =
        format!("{}{}", String::from_utf8_lossy(&checked.stdout), String::from_utf8_lossy(&checked.stderr));
    for says in ["no host is called `node2`; write one of node1", "70000 is more than the 65535 VFs"] {
        assert!(said.contains("[[profile]][0]") && said.contains(says), "{says}: {said}");
    }
    assert_eq!(drift(&service).await[0]["said"]["profile"], "1 VF ([[profile]][0])");
    service.get(&attachments(Q35)).await.expect(200);
}
