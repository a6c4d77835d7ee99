//! Hosts that an administrator freezes or drains, and hosts that the configuration makes read-only.

use std::process::{Command, Output};

use hotslot_tests::{Hotslot, I440FX, Q35, attachments, binary, host, path};
use serde_json::{Value, json};

const MODE: &str = "/v2.1/os-hypervisors/node1/mode";
const ALIAS: &str = "ua-00000000-0000-4000-8000-0000000000f1";

async fn set(service: &Hotslot, mode: &str, reason: Option<&str>) -> Value {
    let body = json!({ "hypervisor_mode": { "mode": mode, "reason": reason } });
    service.put(MODE, body).await.expect(200).body["hypervisor_mode"].take()
}

async fn shown(service: &Hotslot) -> Value {
    service.get("/v2.1/os-hypervisors/node1").await.expect(200).body["hypervisor"].take()
}

fn run(service: &Hotslot, arguments: &[&str]) -> Output {
    Command::new(binary()).args(arguments).env("HOTSLOT_URL", service.url()).output().unwrap()
}

#[tokio::test]
async fn nothing_is_changed_on_a_frozen_host_until_it_is_thawed() {
    let mut service = Hotslot::on("small").await;
    let vf = service.attach(Q35, "vf:1").await.expect(200).body["pci_devices"][0].clone();
    let held = service.accelerator("held", json!({ "product_id": "10d3" })).await;
    service.put(&held, json!({ "driver": "vfio-pci" })).await.expect(200);
    let free = service.accelerator("free", json!({ "product_id": "10ca" })).await;
    let before = service.documents();

    let frozen = set(&service, "frozen", Some("new firmware")).await;
    assert_eq!(
        (&frozen["mode"], &frozen["restriction"]["reason"]),
        (&json!("frozen"), &json!("new firmware"))
    );
    let aliases = |aliases: &str| json!({ "pciAttachment": { "pci_passthrough:alias": aliases } });
    let mut refused = vec![
        service.post(&attachments(Q35), aliases("vf:1")).await,
        service.delete(&path(&vf)).await,
        service.delete(&format!("{}?force=true", path(&vf))).await,
        service.put(&free, json!({ "instance_uuid": Q35 })).await,
        service.put(&free, json!({ "host": "node1", "driver": "vfio-pci" })).await,
        service.delete(&held).await,
        service.post("/v2.1/os-hypervisors/node1/drift", json!({})).await,
        service
            .put(&format!("/v2.1/servers/{I440FX}/pci_owner"), json!({ "pci_owner": { "project_id": "p" } }))
            .await,
        service.post(&format!("/v2.1/servers/{Q35}/pci_ports"), json!({ "pci_ports": { "count": 1 } })).await,
    ];
    // The state survives a restart of the service.
    service.kill();
    service.start_again().await;
    refused.push(service.post(&attachments(Q35), aliases("vf:1")).await);
    for answer in refused {
        let message = answer.expect(409).message().to_owned();
        for says in ["host node1 was frozen by ", "(new firmware)", "PUT os-hypervisors/node1/mode"] {
            assert!(message.contains(says), "{says}: {message}");
        }
    }
    assert_eq!(service.documents(), before, "nothing was changed");
    let host = shown(&service).await;
    assert_eq!((&host["mode"], &host["status"]), (&json!("frozen"), &json!("disabled")));
    let reason = host["service"]["disabled_reason"].as_str().unwrap();
    assert!(reason.contains("PUT os-hypervisors/node1/mode"), "{reason}");
    // Everything is still shown, and a repair of all hosts names the frozen one.
    assert_eq!(service.attachments(Q35).await.len(), 1);
    let all = service.post("/drift", json!({})).await.expect(200).body;
    assert_eq!(all["hosts_away"][0]["host"], "node1", "{all}");
    let body = json!({ "pciAttachment": { "pci_passthrough:alias": "vf:1", "dry_run": true } });
    let run = service.post(&attachments(Q35), body).await.expect(200).body["dry_run"].take();
    let checks = run["checks"].as_array().unwrap();
    let check = checks.iter().find(|check| check["check"] == "host-mode").unwrap();
    assert_eq!((&run["would_attach"], &check["result"]), (&json!(false), &json!("fail")), "{run}");

    set(&service, "open", None).await;
    assert_eq!(shown(&service).await["mode"], "open");
    service.delete(&path(&vf)).await.expect(200);
    service.delete(&held).await.expect(204);
    let events = service.get("/events?kind=host.mode").await.expect(200).body;
    let modes: Vec<_> =
        events["events"].as_array().unwrap().iter().map(|event| event["to"]["mode"].clone()).collect();
    assert_eq!(modes, ["frozen", "open"]);
    service.expect_clean().await;
}

#[tokio::test]
async fn what_has_begun_is_completed_on_a_frozen_host_and_what_appears_is_adopted() {
    let service = Hotslot::on("small").await;
    let vf = service.attach(Q35, "vf:1").await.expect(200).body["pci_devices"][0].clone();
    service.sim("guest q35 unplug=ignore");
    // Under v2.1 the answer does not wait for the guest.
    let id = vf["attachment_id"].as_str().unwrap();
    let attachment = format!("/v2.1/servers/{Q35}/os-pci_attachments/{id}");
    service.delete(&attachment).await.expect(202);
    set(&service, "frozen", None).await;
    // A reboot completes the unplug, as the guest was asked before.
    service.sim("reboot q35");
    service.until("the detach is settled", async || service.attachments(Q35).await.is_empty()).await;
    // A device under hotslot's alias is adopted.
    service.sim(&format!("plug i440fx 0000:05:00.0 live {ALIAS}"));
    service.until("it is adopted", async || service.attachments(I440FX).await.len() == 1).await;
    let adopted = service.attachments(I440FX).await[0].clone();
    service.delete(&path(&adopted)).await.expect(409);
    set(&service, "open", None).await;
    service.delete(&path(&adopted)).await.expect(200);
}

#[tokio::test]
async fn a_draining_host_gets_nothing_new_and_releases_what_it_has() {
    let service = Hotslot::on("small").await;
    let vf = service.attach(Q35, "vf:1").await.expect(200).body["pci_devices"][0].clone();
    let free = service.accelerator("free", json!({ "product_id": "10d3" })).await;
    set(&service, "draining", None).await;
    for refused in [
        service.attach(Q35, "vf:1").await,
        service.put(&free, json!({ "instance_uuid": Q35 })).await,
        service.put(&free, json!({ "host": "node1", "driver": "vfio-pci" })).await,
    ] {
        let message = refused.expect(409).message().to_owned();
        let says = "nothing new is attached there until it is opened again (PUT os-hypervisors/node1/mode)";
        assert!(message.contains("is being drained by") && message.contains(says), "{message}");
    }
    service.delete(&path(&vf)).await.expect(200);
    service.expect_clean().await;
}

#[tokio::test]
async fn mediated_devices_are_not_made_on_a_draining_host() {
    let config = "[pci]\ndevice_spec = ['{\"address\": \"*\"}']\n";
    let service = Hotslot::bare(&host("accelerators"), config, |_| ()).await;
    let quarter =
        service.accelerator("quarter", json!({ "mdev_type": "nvidia-232", "device_type": "GPU" })).await;
    set(&service, "draining", None).await;
    let server = service.get("/v2.1/servers").await.expect(200).body["servers"][0]["id"].clone();
    let refused = service.put(&quarter, json!({ "instance_uuid": server })).await.expect(409);
    assert!(refused.message().contains("is being drained by"), "{}", refused.message());
}

#[tokio::test]
async fn the_configuration_can_make_a_host_read_only() {
    let mut service = Hotslot::on("small").await;
    service.reconfigure("[[hypervisor]]\n", "[[hypervisor]]\nmode = \"read-only\"\n");
    service.kill();
    service.start_again().await;
    let host = shown(&service).await;
    assert_eq!((&host["mode"], &host["restriction"]["by"]), (&json!("read-only"), &Value::Null));
    let body = json!({ "hypervisor_mode": { "mode": "open" } });
    for refused in [service.attach(Q35, "vf:1").await, service.put(MODE, body).await] {
        let message = refused.expect(409).message().to_owned();
        for says in ["host node1 is read-only by the configuration", "`mode`", "[[hypervisor]]"] {
            assert!(message.contains(says), "{says}: {message}");
        }
    }
    service.reconfigure("mode = \"read-only\"\n", "mode = \"readonly\"\n");
    service.kill();
    let checked = Command::new(binary())
        .args(["config", "check"])
        .arg(service.database().with_file_name("hotslot.toml"))
        .output()
        .unwrap();
    let said =
        format!("{}{}", String::from_utf8_lossy(&checked.stdout), String::from_utf8_lossy(&checked.stderr));
    assert!(!checked.status.success() && said.contains("read-only"), "{said}");
    service.reconfigure("mode = \"readonly\"\n", "");
    service.start_again().await;
    let vf = service.attach(Q35, "vf:1").await.expect(200).body["pci_devices"][0].clone();
    service.delete(&path(&vf)).await.expect(200);
}

#[tokio::test]
async fn the_command_line_freezes_drains_and_thaws() {
    let service = Hotslot::on("small").await;
    let frozen = run(&service, &["host", "freeze", "node1", "--reason", "new firmware"]);
    let text = String::from_utf8_lossy(&frozen.stdout).into_owned();
    assert!(
        frozen.status.success() && text.contains("frozen by ") && text.contains(": new firmware"),
        "{frozen:?}"
    );
    let listed = run(&service, &["host", "list"]);
    let text = String::from_utf8_lossy(&listed.stdout).into_owned();
    assert!(text.contains("MODE") && text.contains("frozen"), "{text}");
    let refused = run(&service, &["attach", Q35, "vf:1"]);
    let text = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(4), "{refused:?}");
    assert!(text.contains("`hotslot host thaw node1`"), "{text}");
    assert!(run(&service, &["host", "drain", "node1"]).status.success());
    assert_eq!(shown(&service).await["mode"], "draining");
    assert!(run(&service, &["host", "thaw", "node1"]).status.success());
    assert_eq!(shown(&service).await["restriction"], Value::Null);
    assert_eq!(run(&service, &["host", "freeze", "node9"]).status.code(), Some(3));
}

#[tokio::test]
async fn bad_requests_say_what_is_wrong() {
    let service = Hotslot::on("small").await;
    for (body, says) in [
        (json!({}), "hypervisor_mode"),
        (json!({ "hypervisor_mode": {} }), "mode"),
        (json!({ "hypervisor_mode": { "mode": "read-only" } }), "frozen"),
        (json!({ "hypervisor_mode": { "mode": "frozen", "reason": "" } }), "1 to 255"),
        (json!({ "hypervisor_mode": { "mode": "frozen", "reason": "x".repeat(256) } }), "1 to 255"),
        (json!({ "hypervisor_mode": { "mode": "frozen", "why": "x" } }), "why"),
    ] {
        let refused = service.put(MODE, body).await.expect(400);
        assert!(refused.message().contains(says), "{says}: {}", refused.message());
    }
    service
        .put("/v2.1/os-hypervisors/node9/mode", json!({ "hypervisor_mode": { "mode": "open" } }))
        .await
        .expect(404);
    assert_eq!(shown(&service).await["mode"], "open");
}
