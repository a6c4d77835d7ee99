//! Changes that others make to guests and devices: they are noticed, reported and repaired.

use std::process::Command;
use std::time::Duration;

use hotslot_tests::{Hotslot, I440FX, Q35, SWITCH, attachments, binary, host, path, without_mdevs};
use serde_json::{Value, json};
use sqlx::{Connection as _, SqliteConnection};

const VF0: &str = "0000:04:10.0";
const VF1: &str = "0000:04:10.2";

/// Returns the function as `os-hypervisors/…/pci_devices/…` explains it.
async fn explained(service: &Hotslot, address: &str) -> Value {
    let path = format!("/v2/t/os-hypervisors/1/pci_devices/{address}");
    service.get(&path).await.expect(200).body["pci_device"].clone()
}

#[tokio::test]
async fn a_foreign_device_is_shown_and_not_offered() {
    let service = Hotslot::on("small").await;
    for (place, domain, live, persistent) in
        [("live", "i440fx", true, false), ("both", "i440fx", true, true), ("config", "switch", false, true)]
    {
        service.sim(&format!("plug {domain} {VF0} {place}"));
        if !live {
            // libvirt sends no event when a definition changes; the change is noticed at the next read of the domain.
            service.sim(&format!("start {domain}"));
            service.sim(&format!("destroy {domain}"));
        }
        let owner = format!("foreign: domain {domain}");
        service
            .until("the change is noticed", async || {
                let seen = service.functions().await[VF0].clone();
                seen["owner"] == json!(owner)
                    && (&seen["foreign"]["live"], &seen["foreign"]["persistent"])
                        == (&json!(live), &json!(persistent))
            })
            .await;
        assert_eq!(service.functions().await[VF0]["instance_uuid"], json!(null));
        let record = service.device(VF0).await;
        assert_eq!((&record["status"], &record["owner"]), (&json!("available"), &json!(owner)));
        let shown = explained(&service, VF0).await;
        let why = shown["withheld"].as_str().unwrap();
        assert!(why.contains(&format!("domain {domain}")) && why.contains("virsh detach-device"), "{why}");
        assert_eq!(shown["offered"], false);
        // The PF of the VF is unavailable too; the other VF is not.
        let pf = explained(&service, "0000:04:00.0").await;
        assert!(pf["withheld"].as_str().unwrap().contains(&format!("domain {domain}")), "{pf}");

        let both = service.attach(Q35, "vf:2").await.expect(409);
        assert!(both.message().contains("unavailable"), "{}", both.message());
        let other = service.attach(Q35, "vf:1").await.expect(200).body["pci_devices"][0].clone();
        assert_eq!(other["address"], VF1);
        service.delete(&path(&other)).await.expect(200);
        assert_eq!(service.documents().matches("ua-").count(), 0);

        if live {
            service.sim(&format!("unplug {domain} {VF0} live"));
        }
        if persistent {
            service.sim(&format!("unplug {domain} {VF0} config"));
            service.sim(&format!("{} {domain}", if live { "reboot" } else { "start" }));
        }
        service
            .until("it is free again", async || service.functions().await[VF0]["owner"] == json!(null))
            .await;
        assert_eq!(explained(&service, VF0).await["offered"], true);
    }
    service.expect_clean().await;
}

#[tokio::test]
async fn a_foreign_device_is_freed_with_its_domain() {
    let service = Hotslot::on("small").await;
    service.sim(&format!("plug switch {VF0} config"));
    service.sim("start switch");
    let owner = async || service.functions().await[VF0]["owner"].clone();
    service.until("the change is noticed", async || owner().await == json!("foreign: domain switch")).await;
    // The device stays foreign as long as the definition has it.
    service.sim("destroy switch");
    service
        .until("the guest is off", async || service.functions().await[VF0]["foreign"]["live"] == false)
        .await;
    assert_eq!(owner().await, "foreign: domain switch");
    service.sim("undefine switch");
    service.until("no domain has the device", async || owner().await == json!(null)).await;
    service.get(&format!("/v2/t/servers/{SWITCH}")).await.expect(404);
    service.attach(I440FX, "vf:2").await.expect(200);
}

#[tokio::test]
async fn a_device_removed_from_a_definition_by_others_is_free_at_once() {
    let service = Hotslot::on("small").await;
    service.sim(&format!("plug switch {VF0} config"));
    service.sim("start switch");
    service.sim("destroy switch");
    let owner = async || service.functions().await[VF0]["foreign"]["live"].clone();
    service.until("the change is noticed", async || owner().await == json!(false)).await;
    let refused = service.attach(Q35, "vf:2").await.expect(409);
    assert!(refused.message().contains("virsh detach-device"), "{}", refused.message());
    // libvirt sends no event for this change.
    service.sim(&format!("unplug switch {VF0} config"));
    service.attach(Q35, "vf:2").await.expect(200);
}

#[tokio::test]
async fn a_device_removed_from_the_servers_own_definition_is_preferred_at_once() {
    let service = Hotslot::on("small").await;
    service.sim(&format!("plug q35 {VF0} config"));
    service.sim("reboot q35");
    let owner = async || service.functions().await[VF0]["owner"].clone();
    service.until("the change is noticed", async || owner().await == json!("foreign: domain q35")).await;
    // libvirt sends no event for this change, but the attach reads the definition of its server.
    service.sim(&format!("unplug q35 {VF0} config"));
    let answer = service.attach(Q35, "vf:1").await.expect(200);
    assert_eq!(answer.body["pci_devices"][0]["address"], VF0);
}

#[tokio::test]
async fn an_event_of_one_domain_reads_only_that_domain() {
    let service = Hotslot::on("small").await;
    let looks = || service.log().matches("compared server").count();
    service
        .until("the log is quiet", async || {
            let before = looks();
            tokio::time::sleep(Duration::from_millis(300)).await;
            before == looks()
        })
        .await;
    let before = looks();
    service.sim(&format!("plug q35 {VF0} live"));
    let seen = async || service.functions().await[VF0]["owner"] == json!("foreign: domain q35");
    service.until("the change is noticed", seen).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(looks() - before, 1);
}

/// Configuration that offers the VFs, and the pair of functions in one IOMMU group.
const VFS: &str = r#"
[pci]
device_spec = ['{"product_id": "10ca"}', '{"address": "*:06:00.*"}']
alias = [
  '{"name": "vf", "vendor_id": "8086", "product_id": "10ca", "device_type": "type-VF"}',
  '{"name": "pair", "vendor_id": "8086", "product_id": "10d3"}',
]
"#;

async fn drift(service: &Hotslot) -> Vec<Value> {
    let answer = service.get("/v2.1/drift").await.expect(200).body;
    assert_eq!(answer["hosts_away"], json!([]));
    answer["drift"].as_array().unwrap().clone()
}

async fn repair(service: &Hotslot) -> Vec<Value> {
    let answer = service.post("/v2.1/os-hypervisors/node1/drift", json!({})).await.expect(200).body;
    answer["drift"].as_array().unwrap().clone()
}

/// Whether `found` has all members of `expected`.
fn says(found: &Value, expected: &Value) -> bool {
    expected.as_object().unwrap().iter().all(|(key, value)| found[key] == *value)
}

fn server(name: &str) -> &'static str {
    match name {
        "q35" => Q35,
        "switch" => SWITCH,
        other => panic!("{other}"),
    }
}

#[tokio::test]
async fn drift_is_reported_and_repaired_as_the_data_file_says() {
    let stories: Vec<Value> = serde_json::from_str(include_str!("../data/drift.json")).unwrap();
    futures_util::future::join_all(stories.into_iter().map(play)).await;
}

async fn play(story: Value) {
    let name = story["story"].as_str().unwrap();
    let service = Hotslot::bare(&host("small"), VFS, |_| ()).await;
    let ask = &story["attach"];
    let guest = server(ask["server"].as_str().unwrap());
    let persistent = ask["persistent"].as_bool().unwrap_or(true);
    let body =
        json!({ "pciAttachment": { "pci_passthrough:alias": ask["alias"], "persistent": persistent } });
    let attached = service.post(&attachments(guest), body).await.expect(200).body["pci_devices"][0].clone();
    assert_eq!(drift(&service).await, [Value::Null; 0], "{name}");
    // Wait for the domain read that follows the attach, so that it does not see the changes below.
    tokio::time::sleep(Duration::from_millis(300)).await;
    if story["detach"] == true {
        service.delete(&path(&attached)).await.expect(200);
    }
    let fill = |text: &str| {
        let text = text.replace("{address}", attached["address"].as_str().unwrap());
        text.replace("{id}", attached["attachment_id"].as_str().unwrap())
    };
    let lines = |key: &str| -> Vec<String> {
        let lines = story[key].as_array().into_iter().flatten();
        lines.map(|line| fill(line.as_str().unwrap())).collect()
    };
    lines("then").iter().for_each(|line| service.sim(line));
    let expected: Vec<Value> = serde_json::from_str(&fill(&story["finds"].to_string())).unwrap();
    service
        .until(&format!("{name}: {expected:#?}"), async || {
            let found = drift(&service).await;
            let all = found.iter().zip(&expected).all(|(found, expected)| says(found, expected));
            found.len() == expected.len() && all
        })
        .await;

    lines("before_repair").iter().for_each(|line| service.sim(line));
    let repaired = repair(&service).await;
    assert_eq!(repaired.len(), expected.len(), "{name}: {repaired:#?}");
    for finding in &repaired {
        assert_eq!(finding["repaired"], story["repaired"], "{name}: {finding:#}");
        assert_eq!(finding["left"].is_null(), story["repaired"] == true, "{name}: {finding:#}");
    }
    assert_eq!(drift(&service).await.is_empty(), story["repaired"] == true, "{name}");
    assert_eq!(service.plugged().len(), story["plugged"].as_u64().unwrap() as usize, "{name}");
    let left = service.attachments(guest).await;
    assert_eq!(left.len(), story["left"].as_u64().unwrap() as usize, "{name}: {left:#?}");
    if story["repaired"] == true {
        for attachment in left {
            assert_eq!(attachment["attachment_id"], attached["attachment_id"], "{name}");
            service.delete(&path(&attachment)).await.expect(200);
        }
        service.expect_clean().await;
    }
}

#[tokio::test]
async fn a_lost_database_is_rebuilt_from_the_guests() {
    let mut service = Hotslot::on("small").await;
    let both = service.attach(Q35, "vf:1,e1000e:1").await.expect(200).body["pci_devices"].clone();
    let body = json!({ "pciAttachment": {
        "pci_passthrough:alias": "vf:1", "persistent": false, "mac_address": "52:54:00:c0:ff:ee", "vlan": 7,
    } });
    let nic = service.post(&attachments(I440FX), body).await.expect(200).body["pci_devices"][0].clone();
    let off = service.attach(SWITCH, "edu:1").await.expect(200).body["pci_devices"][0].clone();
    service.kill();
    std::fs::remove_file(service.database()).unwrap();
    service.start_again().await;

    let (q35, i440fx) = (service.attachments(Q35).await, service.attachments(I440FX).await);
    let switch = service.attachments(SWITCH).await;
    let before = [&both[0], &both[1], &nic, &off];
    let after: Vec<_> = q35.iter().chain(&i440fx).chain(&switch).collect();
    assert_eq!(after.len(), 4, "{after:#?}");
    for was in before {
        let is = after.iter().find(|is| is["attachment_id"] == was["attachment_id"]).unwrap();
        for key in [
            "serverId",
            "dev_id",
            "address",
            "inner_address",
            "vendor_id",
            "product_id",
            "persistent",
            "mac_address",
            "vlan",
            "status",
        ] {
            assert_eq!(was[key], is[key], "{key}");
        }
        assert_eq!(is["alias"], Value::Null);
        assert!(is["status_reason"].as_str().unwrap().contains("adopted"), "{is}");
        let device = service.device(was["address"].as_str().unwrap()).await;
        assert_eq!((&device["status"], &device["instance_uuid"]), (&json!("allocated"), &was["serverId"]));
    }
    assert_eq!(drift(&service).await, [Value::Null; 0]);
    service.attach(I440FX, "vf:1").await.expect(400);
    for attachment in after {
        service.delete(&path(attachment)).await.expect(200);
    }
    service.expect_clean().await;
}

#[tokio::test]
async fn a_device_of_another_server_or_without_a_device_spec_is_not_adopted() {
    let mut service = Hotslot::bare(&host("small"), VFS, |_| ()).await;
    let vf = service.attach(SWITCH, "vf:1").await.expect(200).body["pci_devices"][0].clone();
    assert_eq!(vf["address"], VF0);
    for (line, id) in [(format!("plug q35 {VF0} live"), 1), (format!("plug i440fx {VF1} live"), 2)] {
        service.sim(&format!("{line} ua-20000000-0000-4000-8000-00000000000{id}"));
    }
    let of = |id: usize| format!("20000000-0000-4000-8000-00000000000{id}");
    service.until("the other one is adopted", async || service.attachments(I440FX).await.len() == 1).await;
    let adopted = service.attachments(I440FX).await[0].clone();
    let page = service.get(&format!("/ui/server?id={I440FX}")).await.expect(200).body;
    let page = page.as_str().unwrap();
    assert!(page.contains("adopted: ") && !page.contains("detach refused"), "{page}");
    assert_eq!((&adopted["attachment_id"], &adopted["address"]), (&json!(of(2)), &json!(VF1)));
    assert_eq!(adopted["persistent"], false);
    let found = drift(&service).await;
    assert_eq!(found.len(), 1, "{found:#?}");
    let expected = json!({ "kind": "conflict", "attachment_id": of(1), "server_id": Q35, "done": null });
    assert!(says(&found[0], &expected), "{found:#?}");
    let record = found[0]["said"]["record"].as_str().unwrap();
    assert!(record.contains(&format!("allocated to server {SWITCH}")), "{record}");
    assert!(service.attachments(Q35).await.is_empty());
    assert_eq!(service.device(VF0).await["instance_uuid"], SWITCH);

    // An older database, and a device_spec that meanwhile matches other devices.
    service.kill();
    for file in ["hotslot.db", "hotslot.db-wal", "hotslot.db-shm"] {
        let _ = std::fs::remove_file(service.database().with_file_name(file));
    }
    service.reconfigure("10ca\"}'", "100e\"}'");
    service.start_again().await;
    let found = drift(&service).await;
    let kinds: Vec<_> = found.iter().map(|finding| finding["kind"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["unrecorded"; 3], "{found:#?}");
    assert!(found.iter().all(|finding| finding["action"].as_str().unwrap().contains("device_spec")));
    assert_eq!(service.get("/v2/t/os-pci_attachments").await.body["pciAttachment"], json!([]));
}

#[tokio::test]
async fn a_stray_device_is_not_requested_endlessly() {
    let service = Hotslot::on("small").await;
    let vf = service.attach(Q35, "vf:1").await.expect(200).body["pci_devices"][0].clone();
    service.delete(&path(&vf)).await.expect(200);
    let asked = || service.log().matches("requested the unplug").count();
    service.until("the log has the first request", async || asked() == 1).await;
    let before = asked();
    service.sim("guest q35 unplug=refuse");
    service.sim(&format!("plug q35 {VF0} live ua-{}", vf["attachment_id"].as_str().unwrap()));
    service.until("the unplug is requested", async || asked() > before).await;
    tokio::time::sleep(Duration::from_millis(600)).await;
    // The unplug is requested once per event of the device's arrival; there can be two such events.
    assert!((1..=2).contains(&(asked() - before)), "{}", asked() - before);
}

#[tokio::test]
async fn a_lost_unplug_request_is_repeated_after_boot() {
    let service = Hotslot::on("small").await;
    let vf = service.attach(Q35, "vf:1").await.expect(200).body["pci_devices"][0].clone();
    service.sim("guest q35 boot_ms=1500");
    service.sim("reboot q35");
    service.delete(&path(&vf)).await.expect(409);
    let found = drift(&service).await;
    assert_eq!(found.len(), 1, "{found:#?}");
    let expected = json!({ "kind": "unfinished", "done": "by itself", "attachment_id": vf["attachment_id"] });
    assert!(says(&found[0], &expected), "{found:#?}");
    // The agent's connection shows that the guest has booted.
    service
        .until("the unplug request is repeated", async || service.get(&path(&vf)).await.status == 404)
        .await;
    assert_eq!(drift(&service).await, [Value::Null; 0]);
    service.expect_clean().await;
}

#[tokio::test]
async fn a_function_left_without_a_driver_is_rebound() {
    let service = Hotslot::bare(&host("small"), VFS, |_| ()).await;
    let body = json!({ "pciAttachment": { "pci_passthrough:alias": "pair:1", "whole_group": true } });
    let pair = service.post(&attachments(SWITCH), body).await.expect(200).body["pci_devices"].clone();
    service.sim("start switch");
    let driver = async |address: &str| service.functions().await[address]["driver"].clone();
    service.until("the devices are in the guest", async || service.plugged().len() == 4).await;
    service.delete(&path(&pair[0])).await.expect(200);
    // libvirt leaves the first function of a group without a driver while the guest has the other one.
    let first = pair[0]["address"].as_str().unwrap();
    assert_eq!(driver(first).await, Value::Null);
    assert_eq!(drift(&service).await, [Value::Null; 0]);
    service.delete(&path(&pair[1])).await.expect(200);
    service.until("the driver is rebound", async || driver(first).await == "e1000e").await;
    service.expect_clean().await;
    // A driver that somebody binds after the release was recorded is not changed.
    tokio::time::sleep(Duration::from_millis(300)).await;
    service.sim(&format!("device driver {first} vfio-pci"));
    assert_eq!(drift(&service).await, [Value::Null; 0]);
}

#[tokio::test]
async fn an_allocated_device_without_an_attachment_is_reported_and_freed() {
    let mut service = Hotslot::on("small").await;
    let vf = service.attach(Q35, "vf:1").await.expect(200).body["pci_devices"][0].clone();
    service.delete(&path(&vf)).await.expect(200);
    service.kill();
    let url = format!("sqlite://{}", service.database().display());
    let mut db = SqliteConnection::connect(&url).await.unwrap();
    sqlx::query(
        "UPDATE pci_devices SET status = 'allocated', instance_uuid = $1,
             request_id = '20000000-0000-4000-8000-000000000001' WHERE address = $2",
    )
    .bind(Q35)
    .bind(VF0)
    .execute(&mut db)
    .await
    .unwrap();
    db.close().await.unwrap();
    service.start_again().await;
    let found = drift(&service).await;
    let expected = json!({ "kind": "unattached", "address": VF0, "server_id": Q35, "done": "by a repair" });
    assert!(found.len() == 1 && says(&found[0], &expected), "{found:#?}");
    assert_eq!(repair(&service).await[0]["repaired"], true);
    service.expect_clean().await;
}

#[tokio::test]
async fn a_missing_host_driver_is_reported_until_it_is_rebound() {
    let service = Hotslot::bare(&host("small"), VFS, |host| {
        std::fs::write(host.join("host.toml"), "release_ms = 60000").unwrap();
    })
    .await;
    let body = json!({ "pciAttachment": { "pci_passthrough:alias": "vf:1", "persistent": false } });
    let vf = service.post(&attachments(Q35), body).await.expect(200).body["pci_devices"][0].clone();
    service.sim("fault node-reattach fail times=1000 text=stuck");
    service.sim("shutdown q35");
    let tried = async || service.log().contains("0000:04:10.0 has no host driver");
    service.until("the rebind was tried", tried).await;
    let found = drift(&service).await;
    assert_eq!(found.len(), 1, "{found:#?}");
    let expected = json!({ "kind": "no-host-driver", "address": VF0, "attachment_id": vf["attachment_id"],
        "action": "it is given back to its host driver", "done": "by itself" });
    assert!(says(&found[0], &expected), "{found:#?}");
    assert_eq!(found[0]["said"]["host"], "it is bound to vfio-pci");
    assert_eq!(repair(&service).await[0]["repaired"], false);
    service.sim("fault clear");
    // The driver may have been rebound before the request.
    assert!(repair(&service).await.iter().all(|finding| finding["repaired"] == true));
    service.expect_clean().await;
}

#[tokio::test]
async fn drift_covers_bindings_and_mediated_devices() {
    const CARD: &str = "0000:41:00.0";
    const QAT: &str = "0000:a1:01.0";
    let spec = "[pci]\ndevice_spec = ['{\"vendor_id\": \"10de\"}', '{\"product_id\": \"37c9\"}']\n";
    let service = Hotslot::bare(&host("accelerators"), spec, without_mdevs).await;
    let made = async |name: &str, spec: Value, target: Value| {
        let path = service.accelerator(name, spec).await;
        service.put(&path, target).await.expect(200);
        path
    };
    let bound = made("bound", json!({ "device_type": "QAT" }), json!({ "driver": "vfio-pci" })).await;
    let g1 = "20000000-0000-4000-8000-000000000001";
    let part = made("part", json!({ "mdev_type": "nvidia-233" }), json!({ "instance_uuid": g1 })).await;
    assert_eq!(drift(&service).await, Vec::<Value>::new());

    service.sim(&format!("device driver {QAT} qat_c62xvf"));
    let found = drift(&service).await;
    let expected = json!({ "kind": "other-driver", "address": QAT, "done": null });
    assert!(found.len() == 1 && says(&found[0], &expected), "{found:#?}");
    assert_eq!(found[0]["said"]["host"], format!("{QAT} is bound to qat_c62xvf"));
    assert!(found[0]["action"].as_str().unwrap().contains(&format!("DELETE {bound}")), "{found:#?}");
    // Without its driver, the mediated device of a shut-off guest is gone and cannot be created again.
    service.sim("shutdown g1");
    service.sim(&format!("device driver {CARD}"));
    let is_reported = async || drift(&service).await.iter().any(|finding| finding["kind"] == "device-gone");
    service.until("the drift is reported", is_reported).await;
    let found = drift(&service).await;
    let gone = found.iter().find(|finding| finding["kind"] == "device-gone").unwrap();
    assert!(says(gone, &json!({ "address": CARD, "server_id": g1, "done": null })), "{found:#?}");
    assert!(gone["action"].as_str().unwrap().contains(&part), "{found:#?}");
    for path in [bound, part] {
        service.delete(&path).await.expect(204);
    }
    assert_eq!(drift(&service).await, Vec::<Value>::new());
}

#[tokio::test]
async fn the_drift_command_lists_and_repairs_drift() {
    let service = Hotslot::on("small").await;
    let hotslot = |arguments: &str| {
        let mut command = Command::new(binary());
        let output = command.args(arguments.split(' ')).env("HOTSLOT_URL", service.url()).output().unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
    };
    assert_eq!(hotslot("drift"), (0, String::new(), "nothing disagrees\n".into()));
    let vf = service.attach(Q35, "vf:1").await.expect(200).body["pci_devices"][0].clone();
    service.sim(&format!("unplug q35 {VF0} config"));
    service.sim(&format!("plug i440fx {VF1} live"));
    let devices = async || hotslot("device list").1;
    service.until("the change is noticed", async || devices().await.contains("foreign: domain i440fx")).await;
    assert!(hotslot(&format!("device show {VF1}")).1.contains("foreign: domain i440fx"));

    let (code, _, why) = hotslot("drift --host node9");
    assert_eq!(code, 3, "{why}");
    let (code, stdout, _) = hotslot("drift --host node1");
    assert_eq!(code, 1);
    let line = stdout.lines().find(|line| line.contains("not-defined")).unwrap();
    for word in
        ["node1", "q35", VF0, &vf["attachment_id"].as_str().unwrap()[..8], "definition: does not have it"]
    {
        assert!(line.contains(word), "{line}");
    }
    let (code, stdout, _) = hotslot("drift --repair -o json");
    assert_eq!(code, 1, "the foreign one is left");
    let findings: Value = serde_json::from_str(&stdout).unwrap();
    let repaired = |kind: &str| {
        let found = findings.as_array().unwrap().iter().find(|finding| finding["kind"] == kind);
        found.unwrap()["repaired"].clone()
    };
    assert_eq!((repaired("not-defined"), repaired("foreign")), (json!(true), json!(false)));
    service.sim(&format!("unplug i440fx {VF1} live"));
    assert_eq!(hotslot("drift --repair").0, 0);
    service.sim("disconnect");
    let (code, _, why) = hotslot("drift");
    assert_eq!(code, 5);
    assert!(why.contains("node1 is unreachable"), "{why}");
}
