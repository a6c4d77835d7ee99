//! Guest power cycles: whatever a guest goes through, its attachments are right afterwards.

use hotslot_driver::sim::control;
use hotslot_driver::sim::generate::Size;
use hotslot_tests::{Hotslot, Q35, SWITCH, attachments, host};
use serde_json::{Value, json};

#[tokio::test]
async fn after_every_power_cycle_the_attachments_are_as_the_data_file_says() {
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

/// Whether the server's attachments are those that `step` tells of, and nothing else disagrees. `plugged` counts the
/// places in the host's documents, those of a saved run too.
async fn is_so(service: &Hotslot, step: &Value) -> bool {
    let mut all = service.get("/v2/t/os-pci_attachments").await.expect(200).body;
    let all: Vec<Value> = serde_json::from_value(all["pciAttachment"].take()).unwrap();
    let has: Value =
        all.iter().map(|one| json!([one["address"], one["inner_address"], one["status"]])).collect();
    let reason = step["reason"].as_str().unwrap_or_default();
    let told = all.iter().all(|one| one["status_reason"].as_str().unwrap_or_default().contains(reason));
    let drift = service.get("/v2.1/drift").await.expect(200).body["drift"].clone();
    let kinds: Value = drift.as_array().unwrap().iter().map(|finding| finding["kind"].clone()).collect();
    let devices = service.get("/v2/t/os-pci/detail").await.expect(200).body["pci_devices"].clone();
    let held = devices.as_array().unwrap().iter().filter(|device| device["status"] == "allocated").count();
    has == step["has"]
        && told
        && kinds == *step.get("drift").unwrap_or(&json!([]))
        && held == all.len()
        && service.plugged().len() as u64 == step["plugged"].as_u64().unwrap()
}

#[tokio::test]
async fn a_server_that_moved_to_another_host_has_left_its_device_behind() {
    let other = tempfile::tempdir().unwrap();
    Size { pfs: 1, vfs: 2, guests: 1, ports: 2 }.write(other.path()).unwrap();
    let config = format!(
        "[pci]\ndevice_spec = ['{{\"product_id\": \"10ca\"}}']\n\
         alias = ['{{\"name\": \"vf\", \"product_id\": \"10ca\", \"vendor_id\": \"8086\", \"device_type\": \"type-VF\"}}']\n\
         [[hypervisor]]\nname = \"node2\"\nuri = \"sim://{}\"",
        other.path().display()
    );
    let service = Hotslot::bare(&host("small"), &config, |_| ()).await;
    let vf = service.attach(SWITCH, "vf:1").await.expect(200).body["pci_devices"][0].clone();
    // Its definition as it is sent to the other host, device and all.
    let alias = format!("ua-{}", vf["attachment_id"].as_str().unwrap());
    let hostdev = format!(
        "<hostdev mode='subsystem' type='pci' managed='yes'><source><address domain='0x0000' bus='0x04' slot='0x10' \
         function='0x0'/></source><alias name='{alias}'/></hostdev></devices>"
    );
    let definition = std::fs::read_to_string(host("small").join("domains/switch.xml")).unwrap();
    let file = other.path().join("switch.xml");
    std::fs::write(&file, definition.replace("</devices>", &hostdev)).unwrap();
    let there = |line: &str| assert_eq!(control(other.path(), line).unwrap(), "ok", "{line}");
    let drift = async || {
        let mut found = service.get("/v2.1/os-hypervisors/node2/drift").await.expect(200).body;
        serde_json::from_value::<Vec<Value>>(found["drift"].take()).unwrap()
    };

    there(&format!("define {}", file.display()));
    let found = drift().await;
    assert_eq!((found.len(), &found[0]["kind"], &found[0]["done"]), (1, &json!("conflict"), &Value::Null));
    service.sim("migrate switch");
    let ended = async || service.get("/v2/t/os-pci_attachments").await.body["pciAttachment"] == json!([]);
    service.until("its attachment has ended", ended).await;
    assert!(service.log().contains("the server is on host node2 now"));
    assert_eq!(service.device("0000:04:10.0").await["status"], "available");

    // Whether it may be taken out of a guest that runs on the new host is for people to say.
    tokio::time::sleep(std::time::Duration::from_millis(300)).await;
    let found = drift().await;
    let is = (&found[0]["kind"], &found[0]["done"], &found[0]["server_id"]);
    assert_eq!((found.len(), is), (1, (&json!("stray"), &json!("by a repair"), &json!(SWITCH))));
    let repaired = service.post("/v2.1/os-hypervisors/node2/drift", json!({})).await.expect(200).body;
    assert_eq!(repaired["drift"][0]["repaired"], true, "{repaired:#}");
    assert!(drift().await.is_empty());
}
