//! Attach, list and detach on a simulated host, in the normal case and with failures.

use hotslot_tests::{FULL, Hotslot, I440FX, Q35, SWITCH, attachments, host, path};
use serde_json::{Value, json};

const VF: &str = r#"
[pci]
device_spec = ['{"vendor_id": "8086"}']
alias = ['{"name": "vf", "vendor_id": "8086", "product_id": "10ca", "device_type": "type-VF"}']
"#;

async fn attach_one(service: &Hotslot, server: &str, alias: &str) -> Value {
    let answer = service.attach(server, &format!("{alias}:1")).await.expect(200);
    let devices = answer.body["pci_devices"].as_array().unwrap().clone();
    assert_eq!(devices.len(), 1);
    devices[0].clone()
}

#[tokio::test]
async fn a_vf_is_attached_to_a_running_guest_and_detached() {
    let service = Hotslot::on("small").await;
    let vf = attach_one(&service, Q35, "vf").await;

    assert_eq!(vf["serverId"], Q35);
    assert_eq!(vf["address"], "0000:04:10.0");
    assert_eq!(vf["dev_id"], "pci_0000_04_10_0");
    assert_eq!(vf["vendor_id"], "8086");
    assert_eq!(vf["product_id"], "10ca");
    assert_eq!(vf["inner_address"], "0000:02:00.0");
    assert_eq!(vf["inner_address_source"], "computed");
    assert_eq!(vf["status"], "attached");

    let listed = service.attachments(Q35).await;
    assert_eq!(listed.len(), 1);
    assert_eq!(listed[0]["attachment_id"], vf["attachment_id"]);
    let one = service.get(&path(&vf)).await.expect(200);
    assert_eq!(one.body["pciAttachment"], listed[0]);

    let device = service.device("0000:04:10.0").await;
    assert_eq!(device["status"], "allocated");
    assert_eq!(device["instance_uuid"], Q35);
    let server = service.get(&format!("/v2.1/servers/{Q35}")).await.expect(200);
    assert_eq!(server.body["server"]["os-pci:pci_devices"], json!([{ "id": device["id"] }]));
    // Once in the live document and once in the persistent definition.
    assert_eq!(service.plugged().len(), 2);

    service.delete(&path(&vf)).await.expect(200);
    service.get(&path(&vf)).await.expect(404);
    service.expect_clean().await;
    // A repeated detach has the same outcome.
    service.delete(&path(&vf)).await.expect(200);
}

#[tokio::test]
async fn one_request_attaches_devices_of_several_aliases() {
    let service = Hotslot::on("small").await;
    let answer = service.attach(Q35, "vf:2, e1000e:1").await.expect(200);
    let devices = answer.body["pci_devices"].as_array().unwrap();
    let of = |key: &str| devices.iter().map(|device| device[key].as_str().unwrap()).collect::<Vec<_>>();
    assert_eq!(of("address"), ["0000:04:10.0", "0000:04:10.2", "0000:05:00.0"]);
    assert_eq!(of("inner_address"), ["0000:02:00.0", "0000:03:00.0", "0000:04:00.0"]);
    for device in devices {
        service.delete(&path(device)).await.expect(200);
    }
    service.expect_clean().await;
}

#[tokio::test]
async fn an_i440fx_guest_sees_a_device_in_a_slot_of_its_only_bus() {
    let service = Hotslot::on("small").await;
    let vf = attach_one(&service, I440FX, "vf").await;
    assert!(vf["inner_address"].as_str().unwrap().starts_with("0000:00:"), "{vf}");
    // This guest needs no bridge for a conventional device.
    let edu = service.attach(I440FX, "edu:1").await.expect(200);
    assert!(edu.body["pci_devices"][0]["inner_address"].as_str().unwrap().starts_with("0000:00:"));
}

#[tokio::test]
async fn too_few_free_devices_says_how_many_are_free() {
    let service = Hotslot::on("small").await;
    let refused = service.attach(Q35, "vf:3").await.expect(400);
    assert!(
        refused.message().contains("asks for 3") && refused.message().contains("2 free"),
        "{}",
        refused.message()
    );
    attach_one(&service, Q35, "vf").await;
    let refused = service.attach(I440FX, "vf:2").await.expect(400);
    assert!(refused.message().contains("1 free"), "{}", refused.message());
    // When one part of a request cannot be met, nothing of the other part is attached.
    service.attach(I440FX, "e1000e:1,vf:2").await.expect(400);
    assert_eq!(service.attachments(I440FX).await.len(), 0);
    assert_eq!(service.device("0000:05:00.0").await["status"], "available");
}

#[tokio::test]
async fn a_pf_and_its_vfs_are_not_attached_at_the_same_time() {
    let service = Hotslot::on("small").await;
    let vf = attach_one(&service, Q35, "vf").await;
    let refused = service.attach(Q35, "pf:1").await.expect(400);
    assert!(refused.message().contains("0 free"), "{}", refused.message());
    service.attach(Q35, "vf:1,pf:1").await.expect(400);
    service.delete(&path(&vf)).await.expect(200);
    attach_one(&service, Q35, "pf").await;
    service.attach(Q35, "vf:1").await.expect(400);
}

#[tokio::test]
async fn concurrent_attaches_never_get_the_same_device() {
    let service = Hotslot::on("small").await;
    let (mut done, mut refused) = (Vec::new(), 0);
    let asked = (0..12).map(|_| service.attach(Q35, "vf:1"));
    for answer in futures_util::future::join_all(asked).await {
        match answer.status {
            200 => done.push(answer.body["pci_devices"][0]["address"].as_str().unwrap().to_owned()),
            400 | 409 => refused += 1,
            other => panic!("{other}: {}", answer.body),
        }
    }
    done.sort();
    assert_eq!(done, ["0000:04:10.0", "0000:04:10.2"]);
    assert_eq!(refused, 10);
}

#[tokio::test]
async fn when_the_second_device_fails_the_first_is_removed() {
    let service = Hotslot::on("small").await;
    service.sim("fault attach fail nth=2 text=the-bus-is-on-fire");
    let failed = service.attach(Q35, "vf:2").await;
    assert!(failed.status >= 409, "{failed:?}");
    let message = failed.message();
    assert!(message.contains("0000:04:10.2") && message.contains("device 2 of 2"), "{message}");
    assert!(message.contains("the-bus-is-on-fire") && message.contains("nothing is left"), "{message}");
    service.expect_clean().await;
    service.attach(Q35, "vf:2").await.expect(200);
}

#[tokio::test]
async fn an_impossible_attach_is_refused_before_a_driver_is_unbound() {
    let service = Hotslot::on("small").await;
    let full = service.attach(FULL, "vf:1").await.expect(409);
    assert!(full.message().contains("no free hot-plug port"), "{}", full.message());
    // A conventional device needs a conventional slot.
    let edu = service.attach(Q35, "edu:1").await.expect(409);
    assert!(edu.message().contains("conventional"), "{}", edu.message());
    // The remaining candidates share an IOMMU group, and the host driver of each blocks the other.
    let alone = service.attach(Q35, "e1000e:1").await.expect(200).body["pci_devices"][0].clone();
    let group = service.attach(Q35, "e1000e:1").await.expect(409);
    service.delete(&path(&alone)).await.expect(200);
    assert!(
        group.message().contains("not viable") && group.message().contains("e1000e"),
        "{}",
        group.message()
    );
    service.expect_clean().await;
}

#[tokio::test]
async fn v3_answers_at_once_and_the_detach_continues() {
    let service = Hotslot::on("small").await;
    service.sim("guest q35 unplug=slow 200");
    let vf = attach_one(&service, Q35, "vf").await;
    let v3 = path(&vf).replace("/v2/t/", "/v3/");
    service.delete(&v3).await.expect(202);
    assert_eq!(service.get(&v3).await.expect(200).body["pciAttachment"]["status"], "detaching");
    service.until("the device is gone", async || service.get(&v3).await.status == 404).await;
    service.expect_clean().await;
}

#[tokio::test]
async fn a_refused_unplug_keeps_the_device_and_can_be_repeated() {
    let service = Hotslot::on("small").await;
    let vf = attach_one(&service, Q35, "vf").await;
    service.sim("guest q35 unplug=refuse");
    let refused = service.delete(&path(&vf)).await.expect(409);
    assert!(refused.message().contains("refused"), "{}", refused.message());
    // The reason is still shown after reconciliation has processed the events.
    tokio::time::sleep(std::time::Duration::from_millis(300)).await;
    let shown = service.get(&path(&vf)).await.expect(200).body["pciAttachment"].clone();
    assert_eq!(shown["status"], "attached");
    assert!(shown["status_reason"].as_str().unwrap().contains("refused"));
    // The device stays attached, so it also stays in the definition.
    assert_eq!(service.plugged().len(), 2);
    service.sim("guest q35 unplug=normal");
    service.delete(&path(&vf)).await.expect(200);
    service.expect_clean().await;
}

#[tokio::test]
async fn a_pending_unplug_completes_at_the_reboot() {
    let service = Hotslot::on("small").await;
    let vf = attach_one(&service, Q35, "vf").await;
    service.sim("guest q35 unplug=ignore");
    let pending = service.delete(&path(&vf)).await.expect(409);
    assert!(pending.message().contains("not gone yet"), "{}", pending.message());
    assert_eq!(service.get(&path(&vf)).await.expect(200).body["pciAttachment"]["status"], "detaching");
    assert_eq!(service.device("0000:04:10.0").await["status"], "allocated");
    service.sim("reboot q35");
    service.until("the removal completes", async || service.get(&path(&vf)).await.status == 404).await;
    service.expect_clean().await;
}

#[tokio::test]
async fn a_paused_guest_releases_the_device_when_resumed() {
    let service = Hotslot::on("small").await;
    let vf = attach_one(&service, Q35, "vf").await;
    service.sim("pause q35");
    assert_eq!(service.get(&format!("/v2.1/servers/{Q35}")).await.body["server"]["status"], "PAUSED");
    let pending = service.delete(&path(&vf)).await.expect(409);
    assert!(pending.message().contains("paused"), "{}", pending.message());
    service.sim("resume q35");
    service.until("the removal completes", async || service.get(&path(&vf)).await.status == 404).await;
    service.expect_clean().await;
}

#[tokio::test]
async fn a_device_of_a_shut_off_server_is_present_when_it_starts() {
    let service = Hotslot::on("small").await;
    let vf = attach_one(&service, SWITCH, "vf").await;
    assert_eq!(vf["status"], "attached");
    assert_eq!(service.plugged().len(), 1);
    service.sim("start switch");
    service.until("it is live", async || service.plugged().len() == 2).await;
    let listed = service.attachments(SWITCH).await;
    assert_eq!(listed[0]["inner_address"], vf["inner_address"]);
    service.delete(&path(&vf)).await.expect(200);
    service.expect_clean().await;
}

#[tokio::test]
async fn a_power_cycle_keeps_only_persistent_attachments() {
    let service = Hotslot::on("small").await;
    attach_one(&service, Q35, "e1000e").await;
    let body = json!({ "pciAttachment": { "pci_passthrough:alias": "vf:1", "persistent": false } });
    let live_only = service.post(&attachments(Q35), body).await.expect(200).body["pci_devices"][0].clone();
    assert_eq!(live_only["persistent"], false);
    assert_eq!(service.plugged().len(), 3);
    service.sim("shutdown q35");
    service
        .until("the live one has ended", async || service.get(&path(&live_only)).await.status == 404)
        .await;
    let left = service.attachments(Q35).await;
    assert_eq!(left.len(), 1);
    assert_eq!(left[0]["address"], "0000:05:00.0");
    assert_eq!(left[0]["status"], "attached");
    service.sim("start q35");
    service.until("the device is back", async || service.plugged().len() == 2).await;
    service.delete(&path(&left[0])).await.expect(200);
    service.expect_clean().await;
    // The guest has no persistent definition to change.
    service.sim("shutdown q35");
    let body = json!({ "pciAttachment": { "pci_passthrough:alias": "vf:1", "persistent": false } });
    service.post(&attachments(Q35), body).await.expect(409);
}

#[tokio::test]
async fn an_unreachable_host_is_503_until_it_is_back() {
    let service = Hotslot::on("small").await;
    let vf = attach_one(&service, Q35, "vf").await;
    service.sim("disconnect");
    let away = service.attach(Q35, "e1000e:1").await.expect(503);
    assert!(away.retry_after.is_some());
    assert!(away.message().contains("node1"), "{}", away.message());
    service.delete(&path(&vf)).await.expect(503);
    service.get("/readyz").await.expect(503);
    service.get("/healthz").await.expect(200);
    // The records can still be read.
    assert_eq!(service.attachments(Q35).await.len(), 1);
    service.sim("reconnect");
    service.until("it is ready", async || service.get("/readyz").await.status == 200).await;
    service.delete(&path(&vf)).await.expect(200);
    service.expect_clean().await;
}

#[tokio::test]
async fn an_attach_with_unknown_outcome_is_undone_when_the_host_is_back() {
    for (at, aliases, nth) in [("before", "vf:1", 1), ("after", "vf:1", 1), ("after", "vf:2", 2)] {
        let service = Hotslot::on("small").await;
        service.sim(&format!("fault attach away at={at} nth={nth} ms=300"));
        let lost = service.attach(Q35, aliases).await.expect(503);
        assert!(lost.message().contains("released when the host answers"), "{}", lost.message());
        service
            .until("nothing is left of the attach", async || service.attachments(Q35).await.is_empty())
            .await;
        service.until("it is ready", async || service.get("/readyz").await.status == 200).await;
        service.expect_clean().await;
    }
}

#[tokio::test]
async fn a_device_in_use_by_others_is_skipped() {
    let service = Hotslot::on("small").await;
    service.sim("fault attach fail kind=in-use text=in-use-by-domain-other");
    let vf = attach_one(&service, Q35, "vf").await;
    assert_eq!(vf["address"], "0000:04:10.2");
    service.sim("fault attach fail kind=in-use text=in-use-by-domain-other");
    let refused = service.attach(Q35, "vf:1").await.expect(409);
    assert!(refused.message().contains("in-use-by-domain-other"), "{}", refused.message());
}

#[tokio::test]
async fn an_unreadable_guest_does_not_delay_other_guests() {
    let service = Hotslot::on("small").await;
    service.sim("fault domain fail domain=full times=1000 kind=document text=unreadable");
    service.sim("disconnect");
    service.until("the outage is noticed", async || service.get("/readyz").await.status == 503).await;
    service.sim("reconnect");
    service.until("it is ready", async || service.get("/readyz").await.status == 200).await;
    attach_one(&service, Q35, "vf").await;
}

#[tokio::test]
async fn a_detach_that_libvirt_refuses_leaves_the_definition_as_it_was() {
    let service = Hotslot::on("small").await;
    let vf = attach_one(&service, Q35, "vf").await;
    // The persistent definition is changed first; the fault hits the live detach.
    service.sim("fault detach fail nth=2 text=no-such-luck");
    let failed = service.delete(&path(&vf)).await;
    assert!(failed.status >= 409 && failed.message().contains("no-such-luck"), "{failed:?}");
    assert_eq!(service.plugged().len(), 2);
    let shown = service.get(&path(&vf)).await.expect(200).body["pciAttachment"].clone();
    assert_eq!((&shown["status"], &shown["persistent"]), (&json!("attached"), &json!(true)));
    service.delete(&path(&vf)).await.expect(200);
    service.expect_clean().await;
}

#[tokio::test]
async fn concurrent_detaches_of_one_device_have_the_same_outcome() {
    let service = Hotslot::on("small").await;
    service.sim("guest q35 unplug=slow 300");
    let vf = attach_one(&service, Q35, "vf").await;
    let vf = path(&vf);
    let asked = [service.delete(&vf), service.delete(&vf), service.delete(&vf)];
    for answer in futures_util::future::join_all(asked).await {
        answer.expect(200);
    }
    service.expect_clean().await;
}

#[tokio::test]
async fn a_removal_by_others_is_noticed() {
    let service = Hotslot::on("small").await;
    let vf = attach_one(&service, Q35, "vf").await;
    service.sim("undefine q35");
    service.sim("destroy q35");
    service.until("its attachment has ended", async || service.get(&path(&vf)).await.status == 404).await;
    service.attach(Q35, "vf:1").await.expect(404);
    assert_eq!(service.device("0000:04:10.0").await["status"], "available");
}

#[tokio::test]
async fn ended_attachments_are_listed_with_times_and_reason() {
    let service = Hotslot::on("small").await;
    let vf = attach_one(&service, Q35, "vf").await;
    assert_eq!((vf["created_at"].is_string(), vf["attached_at"].is_string()), (true, true));
    assert_eq!(vf["ended_at"], Value::Null);
    service.delete(&path(&vf)).await.expect(200);
    service.sim("fault attach fail text=the-bus-is-on-fire");
    assert!(service.attach(Q35, "e1000e:1").await.status >= 400);
    let ended = async |path: &str| -> Vec<Value> {
        let answer = service.get(&format!("{path}?ended=true")).await.expect(200);
        answer.body["pciAttachment"].as_array().unwrap().clone()
    };
    let all = ended("/v2/t/os-pci_attachments").await;
    assert_eq!(all, ended(&attachments(Q35)).await);
    let of = |key: &str| all.iter().map(|one| one[key].clone()).collect::<Vec<_>>();
    assert_eq!(of("status"), ["failed", "detached"]);
    assert!(all[0]["status_reason"].as_str().unwrap().contains("the-bus-is-on-fire"));
    assert_eq!((&all[0]["attached_at"], all[0]["ended_at"].is_string()), (&Value::Null, true));
    assert_eq!(all[1]["attached_at"], vf["attached_at"]);
    // A failed attachment can be detached repeatedly, like a detached one.
    for one in &all {
        for version in ["/v2/t/", "/v2.1/", "/v3/"] {
            let status = if version == "/v2/t/" { 200 } else { 202 };
            service.delete(&path(one).replace("/v2/t/", version)).await.expect(status);
        }
    }
    assert_eq!(ended(&attachments(SWITCH)).await, Vec::<Value>::new());
    // The detach also succeeds when the device no longer exists on the host.
    service.sim("device remove pci_0000_04_10_0");
    service.until("it is gone", async || service.device("0000:04:10.0").await.is_null()).await;
    assert_eq!(ended(&attachments(Q35)).await[1]["address"], "0000:04:10.0");
    service.get(&format!("{}?ended=yes", attachments(Q35))).await.expect(400);
    service.get(&format!("{}?over=true", attachments(Q35))).await.expect(400);
    service.expect_clean().await;
}

/// Configures a guest whose kernel renumbers the PCI buses, and whose agent reports the renumbered addresses.
fn renumbering(host: &std::path::Path) {
    let file = host.join("domains/q35.xml");
    let document = std::fs::read_to_string(&file).unwrap();
    std::fs::write(file, document.replace("<cmdline>", "<cmdline>pci=assign-busses,hpbussize=4 ")).unwrap();
    let file = host.join("host.toml");
    let behaviour = std::fs::read_to_string(&file).unwrap();
    let files = r#"agent_files = { "/sys/bus/pci/devices/0000:00:01.1/secondary_bus_number" = "6\n", "/sys/bus/pci/devices/0000:06:00.0/uevent" = "DRIVER=igbvf\nPCI_ID=8086:10CA\n" }"#;
    assert!(behaviour.contains("agent_files = {}"));
    std::fs::write(file, behaviour.replace("agent_files = {}", files)).unwrap();
}

#[tokio::test]
async fn where_the_guest_renumbers_buses_only_the_guest_gives_an_address() {
    let service = Hotslot::bare(&host("small"), VF, renumbering).await;
    let vf = attach_one(&service, Q35, "vf").await;
    assert_eq!((&vf["inner_address"], &vf["inner_address_source"]), (&Value::Null, &Value::Null));
    let mut shown = Value::Null;
    for _ in 0..100 {
        shown = service.get(&path(&vf)).await.expect(200).body["pciAttachment"].clone();
        if shown["inner_address_source"] == "verified" {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    assert_eq!(shown["inner_address"], "0000:06:00.0", "{shown}");
    // Reconciliation must not replace the address that the guest reported by a computed one.
    service.post(&format!("/v2.1/os-hypervisors/{}/drift", "node1"), json!({})).await.expect(200);
    shown = service.get(&path(&vf)).await.expect(200).body["pciAttachment"].clone();
    assert_eq!(shown["inner_address"], "0000:06:00.0", "{shown}");

    let tree = service.get(&format!("/v2.1/servers/{Q35}/pci_topology")).await.expect(200).body;
    let tree = &tree["pci_topology"];
    let device = tree["devices"].as_array().unwrap().iter().find(|device| !device["host_device"].is_null());
    let device = device.expect("the device");
    assert_eq!(device["inner_address"], "0000:06:00.0");
    assert_eq!(device["inner_address_source"], "verified");
    let port = |index: u64| {
        let mut ports = tree["controllers"].as_array().unwrap().iter();
        ports.find(|port| port["index"] == index).expect("a port")["inner_bus"].clone()
    };
    assert_eq!((port(0), port(2), port(3)), (json!(0), json!(6), Value::Null));
}
