//! Power cycles of guests: after any of them the attachments are correct.

use std::path::Path;

use hotslot_driver::sim::control;
use hotslot_driver::sim::generate::Size;
use hotslot_tests::{Hotslot, Q35, SWITCH, attachments, host, path};
use serde_json::{Value, json};

#[tokio::test]
async fn attachments_after_power_cycles_match_the_data_file() {
    let stories: Vec<Value> = serde_json::from_str(include_str!("../data/power.json")).unwrap();
    futures_util::future::join_all(stories.iter().map(play)).await;
}

async fn play(story: &Value) {
    let service = Hotslot::on("small").await;
    for step in story["steps"].as_array().unwrap() {
        let what = format!("{}: {step}", story["story"]);
        if let Some(line) = step.as_str() {
            service.sim(line);
        } else if let Some(alias) = step["attach"].as_str() {
            let persistent = step["persistent"].as_bool().unwrap_or(true);
            let body =
                json!({ "pciAttachment": { "pci_passthrough:alias": alias, "persistent": persistent } });
            let attached = service.post(&attachments(Q35), body).await.expect(200);
            assert_eq!(attached.body["pci_devices"][0]["inner_address"], step["inner"], "{what}");
        } else if let Some(line) = step["refused"].as_str() {
            let answer = control(&service.host_dir(), line).unwrap();
            assert!(
                answer.starts_with("error: ") && answer.contains(step["why"].as_str().unwrap()),
                "{answer}"
            );
        } else {
            service.until(&what, async || is_so(&service, step).await).await;
        }
    }
}

/// Whether the attachments of the server are those of `step`, without other drift. `plugged` counts the documents with
/// the device, including that of a saved run.
async fn is_so(service: &Hotslot, step: &Value) -> bool {
    let mut all = service.get("/v2/t/os-pci_attachments").await.expect(200).body;
    let all: Vec<Value> = serde_json::from_value(all["pciAttachment"].take()).unwrap();
    let has: Value =
        all.iter().map(|one| json!([one["address"], one["inner_address"], one["status"]])).collect();
    let reason = step["reason"].as_str().unwrap_or_default();
    let has_reason = all.iter().all(|one| one["status_reason"].as_str().unwrap_or_default().contains(reason));
    let drift = service.get("/v2.1/drift").await.expect(200).body["drift"].clone();
    let kinds: Value = drift.as_array().unwrap().iter().map(|finding| finding["kind"].clone()).collect();
    let devices = service.get("/v2/t/os-pci/detail").await.expect(200).body["pci_devices"].clone();
    let held = devices.as_array().unwrap().iter().filter(|device| device["status"] == "allocated").count();
    has == step["has"]
        && has_reason
        && kinds == *step.get("drift").unwrap_or(&json!([]))
        && held == all.len()
        && service.plugged().len() as u64 == step["plugged"].as_u64().unwrap()
}

/// Two hosts. The server `switch` has a device on the first, and the same server is already defined on the second, as
/// in a migration, with a device of the second host under the same alias.
async fn on_the_way_to_another_host() -> (Hotslot, tempfile::TempDir, Value) {
    let (service, other) = two_hosts().await;
    let vf = service.attach(SWITCH, "vf:1").await.expect(200).body["pci_devices"][0].clone();
    define_there(other.path(), vf["attachment_id"].as_str().unwrap());
    let found = drift(&service).await;
    assert_eq!((found.len(), &found[0]["kind"], &found[0]["done"]), (1, &json!("conflict"), &Value::Null));
    (service, other, vf)
}

async fn two_hosts() -> (Hotslot, tempfile::TempDir) {
    let other = tempfile::tempdir().unwrap();
    Size { pfs: 1, vfs: 2, guests: 1, ports: 2 }.write(other.path()).unwrap();
    let config = format!(
        "[pci]\ndevice_spec = ['{{\"product_id\": \"10ca\"}}']\n\
         alias = ['{{\"name\": \"vf\", \"product_id\": \"10ca\", \"vendor_id\": \"8086\", \"device_type\": \"type-VF\"}}']\n\
         [[hypervisor]]\nname = \"node2\"\nuri = \"sim://{}\"",
        other.path().display()
    );
    (Hotslot::bare(&host("small"), &config, |_| ()).await, other)
}

/// Defines `switch` on the second host, with a device of that host under the alias of an attachment.
fn define_there(other: &Path, attachment: &str) {
    let hostdev = format!(
        "<hostdev mode='subsystem' type='pci' managed='yes'><source><address domain='0x0000' bus='0x01' slot='0x02' \
         function='0x0'/></source><alias name='ua-{attachment}'/></hostdev></devices>"
    );
    let definition = std::fs::read_to_string(host("small").join("domains/switch.xml")).unwrap();
    let file = other.join("switch.xml");
    std::fs::write(&file, definition.replace("</devices>", &hostdev)).unwrap();
    assert_eq!(control(other, &format!("define {}", file.display())).unwrap(), "ok");
}

/// Returns the drift of the second host.
async fn drift(service: &Hotslot) -> Vec<Value> {
    let mut found = service.get("/v2.1/os-hypervisors/node2/drift").await.expect(200).body;
    serde_json::from_value(found["drift"].take()).unwrap()
}

#[tokio::test]
async fn a_server_that_moved_keeps_its_attachment() {
    let (service, other, vf) = on_the_way_to_another_host().await;
    let there = |line: &str| assert_eq!(control(other.path(), line).unwrap(), "ok", "{line}");
    there("start switch");
    service.sim("migrate switch");
    let all = async || service.get("/v2/t/os-pci_attachments").await.body["pciAttachment"].clone();
    let moved = async || all().await[0]["host"] == "node2" && all().await[0]["status"] == "attached";
    service.until("it is attached on the new host", moved).await;
    assert!(service.log().contains("the server is on host node2 now"));
    let now = all().await[0].clone();
    for (key, value) in [
        ("attachment_id", &vf["attachment_id"]),
        ("request_id", &vf["request_id"]),
        ("alias", &json!("vf")),
        ("serverId", &json!(SWITCH)),
        ("address", &json!("0000:01:02.0")),
    ] {
        assert_eq!(now[key], *value, "{key}: {now:#}");
    }
    let devices = service.get("/v2/t/os-pci/detail").await.expect(200).body["pci_devices"].clone();
    let held = |address: &str| {
        let device = devices.as_array().unwrap().iter().find(|device| device["address"] == address).unwrap();
        device["status"].clone()
    };
    assert_eq!((held("0000:04:10.0"), held("0000:01:02.0")), (json!("available"), json!("allocated")));
    assert_eq!(drift(&service).await, Vec::<Value>::new());
    // The ended attachment is listed as well.
    let ended =
        service.get("/v2/t/os-pci_attachments?ended=true").await.expect(200).body["pciAttachment"].clone();
    assert_eq!((&ended[0]["host"], &ended[0]["status"]), (&json!("node1"), &json!("detached")), "{ended:#}");
    assert_ne!(ended[0]["attachment_id"], vf["attachment_id"]);
    // The attachment is found by the id that its client knows.
    service.delete(&path(&vf)).await.expect(200);
    assert_eq!(all().await, json!([]));
    assert!(!kept_there(other.path()).contains("ua-"), "{}", kept_there(other.path()));
}

#[tokio::test]
async fn an_attachment_deleted_while_its_guest_was_saved_stays_deleted() {
    let service = Hotslot::on("small").await;
    service.sim("guest q35 migratable=true");
    let body = json!({ "pciAttachment": { "pci_passthrough:alias": "vf:1", "persistent": false } });
    let vf = service.post(&attachments(Q35), body).await.expect(200).body["pci_devices"][0].clone();
    service.sim("save q35");
    let has = async || !service.attachments(Q35).await.is_empty();
    service.until("the attachment has ended", async || !has().await).await;
    // Nobody has the device now. When the guest returns with it, the service remembers that it was to be removed.
    service.delete(&path(&vf)).await.expect(200);
    service.sim("restore q35");
    service.until("the device is removed", async || service.plugged().is_empty()).await;
    assert!(!has().await);
    service.expect_clean().await;
}

#[tokio::test]
async fn deleting_a_returned_attachment_reports_that_the_guest_keeps_it() {
    let (service, other, vf) = on_the_way_to_another_host().await;
    let there = |line: &str| assert_eq!(control(other.path(), line).unwrap(), "ok", "{line}");
    let all = async || service.get("/v2/t/os-pci_attachments").await.body["pciAttachment"].clone();
    // The server is on no host for a while: it is undefined here before it starts on the other host.
    there("undefine switch");
    service.sim("undefine switch");
    service.until("the attachment has ended", async || all().await == json!([])).await;
    service.delete(&path(&vf)).await.expect(200);
    // The device is taken out of the definition there as soon as that is seen. The server starts before.
    there("fault detach hang times=1");
    there(&format!("define {}", other.path().join("switch.xml").display()));
    there("guest switch unplug=refuse");
    there("start switch");
    there("fault clear");
    let limit = format!("{}?timeout=200ms", path(&vf));
    let kept = service.delete(&limit).await.expect(409);
    assert!(kept.message().contains("node2"), "{}", kept.message());
    service.delete(&limit).await.expect(409);
    there("guest switch unplug=normal");
    let gone = async || service.delete(&path(&vf)).await.status == 200;
    service.until("it is gone", gone).await;
    assert_eq!((all().await, drift(&service).await), (json!([]), Vec::new()));
}

/// Two hosts, and an accelerator in the server `switch`, which is on no host any more. Returns the path of the
/// accelerator and the id of the attachment.
async fn an_accelerator_whose_server_is_away() -> (Hotslot, tempfile::TempDir, String, String) {
    let (service, other) = two_hosts().await;
    let id = "00000000-0000-4000-8000-00000000000a";
    let accelerator = format!("/accelerators/{id}");
    service.post("/accelerators", json!({ "name": "one", "uuid": id })).await.expect(201);
    let specs = json!({ "acc_specs": { "device_type": "NIC", "num": 1 } });
    service.put(&format!("{accelerator}/acc_spec"), specs).await.expect(200);
    service.put(&accelerator, json!({ "instance_uuid": SWITCH })).await.expect(200);
    let attachment = all(&service).await[0]["attachment_id"].as_str().unwrap().to_owned();
    service.sim("undefine switch");
    service.until("the attachment has ended", async || all(&service).await == json!([])).await;
    (service, other, accelerator, attachment)
}

async fn all(service: &Hotslot) -> Value {
    service.get("/v2/t/os-pci_attachments").await.body["pciAttachment"].clone()
}

#[tokio::test]
async fn an_accelerator_detached_while_its_server_was_away_stays_detached() {
    let (service, other, accelerator, attachment) = an_accelerator_whose_server_is_away().await;
    service.delete(&accelerator).await.expect(204);
    define_there(other.path(), &attachment);
    assert_eq!(control(other.path(), "start switch").unwrap(), "ok");
    service.until("the device is removed", async || drift(&service).await.is_empty()).await;
    assert_eq!(all(&service).await, json!([]));
    assert_eq!(service.get(&accelerator).await.expect(200).body["status"], "available");
    assert!(!kept_there(other.path()).contains("ua-"), "{}", kept_there(other.path()));
}

#[tokio::test]
async fn an_accelerator_comes_back_with_its_server_on_another_host() {
    let (service, other, accelerator, attachment) = an_accelerator_whose_server_is_away().await;
    define_there(other.path(), &attachment);
    service.until("it is attached again", async || all(&service).await != json!([])).await;
    assert_eq!(service.get(&accelerator).await.expect(200).body["status"], "attached");
    service.delete(&accelerator).await.expect(204);
    assert_eq!((all(&service).await, drift(&service).await), (json!([]), Vec::new()));
    assert!(!kept_there(other.path()).contains("ua-"), "{}", kept_there(other.path()));
}

/// Returns the files that the second host keeps of its domains.
fn kept_there(other: &Path) -> String {
    let domains = std::fs::read_dir(other.join("state/domains")).unwrap();
    domains.map(|file| std::fs::read_to_string(file.unwrap().path()).unwrap()).collect()
}

#[tokio::test]
async fn a_device_reassigned_meanwhile_is_not_attached_again() {
    let service = Hotslot::on("small").await;
    service.sim("guest q35 migratable=true");
    let body = json!({ "pciAttachment": { "pci_passthrough:alias": "e1000e:1", "persistent": false } });
    let one = service.post(&attachments(Q35), body).await.expect(200).body["pci_devices"][0].clone();
    service.sim("save q35");
    service.until("the attachment has ended", async || service.attachments(Q35).await.is_empty()).await;
    // The guest is off and has the device in its definition only, so libvirt allows another guest to start with it.
    let attach = async || service.attach(SWITCH, "e1000e:1").await.status == 200;
    service.until("the other one gets it", attach).await;
    assert_eq!(service.attachments(SWITCH).await[0]["address"], one["address"]);
    service.sim("restore q35");
    let is_reported = async || {
        let found = service.get("/v2.1/drift").await.expect(200).body["drift"].clone();
        found[0]["kind"] == "conflict" && found[0]["done"] == Value::Null
    };
    service.until("the drift is reported", is_reported).await;
    assert!(service.attachments(Q35).await.is_empty());
    assert_eq!(service.plugged().len(), 2, "nothing is taken out");
}
