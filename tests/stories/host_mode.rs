//! Hosts that an administrator freezes or drains, and hosts that the configuration makes read-only.

use std::process::{Command, Output};
use std::time::Duration;

use futures_util::future::{BoxFuture, FutureExt as _, join_all};
use hotslot_driver::sim::generate::Size;
use hotslot_tests::{Answer, Hotslot, I440FX, Q35, attachments, binary, host, path, without_mdevs};
use serde_json::{Value, json};

const MODE: &str = "/v2.1/os-hypervisors/node1/mode";
const VF0: &str = "0000:04:10.0";
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

/// Runs a command, and returns its exit code with all that it printed.
fn printed(service: &Hotslot, command: &str) -> (Option<i32>, String) {
    let output = run(service, &command.split_whitespace().collect::<Vec<_>>());
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code(), text(&output.stdout) + &text(&output.stderr))
}

/// Sends a request that takes a while, others when it has begun, and freezes the host while they wait. Returns the answer to
/// the first, and those to the others, which must have been refused.
async fn frozen_while_they_wait(
    service: &Hotslot,
    first: impl Future<Output = Answer>,
    has_begun: impl AsyncFn() -> bool,
    others: Vec<BoxFuture<'_, Answer>>,
) -> Answer {
    let others = async {
        service.until("the first request has begun", has_begun).await;
        let freeze = async {
            tokio::time::sleep(Duration::from_millis(300)).await;
            set(service, "frozen", None).await
        };
        tokio::join!(join_all(others), freeze).0
    };
    let (first, others) = tokio::join!(first, others);
    for (number, answer) in others.into_iter().enumerate() {
        let message = answer.expect(409).message().to_owned();
        assert!(message.contains("host node1 was frozen by "), "{number}: {message}");
    }
    first
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
    // Everything is still shown, and a repair of all hosts has nothing to leave.
    assert_eq!(service.attachments(Q35).await.len(), 1);
    let all = service.post("/drift", json!({})).await.expect(200).body;
    assert_eq!(all, json!({ "drift": [], "hosts_away": [] }));
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

#[tokio::test]
async fn nothing_begins_at_a_server_after_the_freeze_was_answered() {
    let service = Hotslot::on("small").await;
    let free = service.accelerator("free", json!({ "product_id": "10d3" })).await;
    service.sim("latency attach 1500");
    let (ports, owner) = (format!("/v2.1/servers/{Q35}/pci_ports"), format!("/v2.1/servers/{Q35}/pci_owner"));
    let others = vec![
        service.attach(Q35, "vf:1").boxed(),
        service.attach(Q35, "e1000e:1").boxed(),
        service.put(&free, json!({ "instance_uuid": Q35 })).boxed(),
        service.post(&ports, json!({ "pci_ports": { "count": 1 } })).boxed(),
        service.put(&owner, json!({ "pci_owner": { "project_id": "p" } })).boxed(),
    ];
    let has_begun = async || !service.attachments(Q35).await.is_empty();
    let first = frozen_while_they_wait(&service, service.attach(Q35, "vf:1"), has_begun, others).await;
    // The attach that had begun was completed.
    let vf = first.expect(200).body["pci_devices"][0].clone();
    assert_eq!(service.attachments(Q35).await.len(), 1);

    // A forced detach that waits for another one does not begin either.
    set(&service, "open", None).await;
    service.sim("guest q35 unplug=ignore");
    let attachment = path(&vf);
    let forced = format!("{attachment}?force=true");
    let has_begun = async || service.attachments(Q35).await[0]["status"] == "detaching";
    let others = vec![service.delete(&forced).boxed()];
    let kept = frozen_while_they_wait(&service, service.delete(&attachment), has_begun, others).await;
    assert!(!kept.expect(409).message().contains("frozen"));
    service.sim("reboot q35");
    service.until("the detach is settled", async || service.attachments(Q35).await.is_empty()).await;
    service.expect_clean().await;
}

#[tokio::test]
async fn nothing_is_bound_or_released_after_the_freeze_was_answered() {
    let service = Hotslot::on("small").await;
    let mut paths = Vec::new();
    for name in ["a", "b"] {
        paths.push(service.accelerator(name, json!({ "product_id": "10ca" })).await);
    }
    let [a, b] = &paths[..] else { panic!("two") };
    let status = async || service.get(a).await.expect(200).body["status"].clone();
    let vfio = json!({ "driver": "vfio-pci" });
    service.sim("latency node-detach 1500");
    let others = vec![service.put(b, vfio.clone()).boxed()];
    let begun = async || status().await == "attaching";
    frozen_while_they_wait(&service, service.put(a, vfio.clone()), begun, others).await.expect(200);
    set(&service, "open", None).await;
    service.sim("latency node-detach 0");
    service.put(b, vfio).await.expect(200);
    service.sim("latency node-reattach 1500");
    let others = vec![service.delete(b).boxed()];
    let begun = async || status().await == "detaching";
    frozen_while_they_wait(&service, service.delete(a), begun, others).await.expect(204);
    assert_eq!(service.get(b).await.expect(200).body["status"], "attached");
    set(&service, "open", None).await;
    service.delete(b).await.expect(204);
    service.expect_clean().await;
}

#[tokio::test]
async fn no_mediated_device_is_made_after_the_freeze_was_answered() {
    let config = "[pci]\ndevice_spec = ['{\"address\": \"*\"}']\n";
    let service = Hotslot::bare(&host("accelerators"), config, without_mdevs).await;
    let spec = json!({ "mdev_type": "nvidia-233", "device_type": "GPU" });
    let (a, b) = (service.accelerator("a", spec.clone()).await, service.accelerator("b", spec).await);
    let server = json!({ "instance_uuid": "20000000-0000-4000-8000-000000000001" });
    service.sim("latency attach 1500");
    let others = vec![service.put(&b, server.clone()).boxed()];
    let begun = async || service.get(&a).await.expect(200).body["status"] == "attaching";
    frozen_while_they_wait(&service, service.put(&a, server), begun, others).await.expect(200);
    assert_eq!(service.get(&b).await.expect(200).body["status"], "available");
}

#[tokio::test]
async fn a_repair_leaves_what_disagrees_on_a_frozen_host_and_says_so() {
    let service = Hotslot::on("small").await;
    service.attach(Q35, "vf:1").await.expect(200);
    service.sim(&format!("unplug q35 {VF0} config"));
    set(&service, "frozen", Some("new firmware")).await;
    let all = service.post("/drift", json!({})).await.expect(200).body;
    assert_eq!((&all["hosts_away"], &all["drift"][0]["repaired"]), (&json!([]), &json!(false)), "{all}");
    assert!(all["drift"][0]["left"].as_str().unwrap().contains("(new firmware)"), "{all}");
    let (code, said) = printed(&service, "drift --repair");
    assert_eq!(code, Some(1), "{said}");
    for says in ["not-defined", "no: host node1 was frozen by ", "`hotslot host thaw node1`"] {
        assert!(said.contains(says), "{says}: {said}");
    }
    let (code, said) = printed(&service, "drift --repair --host node1");
    assert!(code == Some(4) && said.contains("`hotslot host thaw node1`"), "{said}");
    set(&service, "open", None).await;
    assert_eq!(printed(&service, "drift --repair").0, Some(0));
    assert_eq!(printed(&service, "drift"), (Some(0), "nothing disagrees\n".to_owned()));
}

#[tokio::test]
async fn an_accelerator_without_a_host_goes_to_one_that_is_open() {
    let config = "[pci]\ndevice_spec = ['{\"product_id\": \"10ca\"}']\n";
    let small = |_, to: &std::path::Path| Size { pfs: 1, vfs: 2, guests: 1, ports: 2 }.write(to).unwrap();
    let service = Hotslot::many(2, config, small).await;
    let vf = service.accelerator("vf", json!({ "product_id": "10ca" })).await;
    for mode in ["frozen", "draining"] {
        for (closed, open) in [("host0", "host1"), ("host1", "host0")] {
            let set = async |host: &str, mode: &str| {
                let body = json!({ "hypervisor_mode": { "mode": mode } });
                service.put(&format!("/v2.1/os-hypervisors/{host}/mode"), body).await.expect(200);
            };
            set(closed, mode).await;
            let bound = service.put(&vf, json!({ "driver": "vfio-pci" })).await.expect(200).body;
            assert_eq!(bound["host"], open, "{bound}");
            service.delete(&vf).await.expect(204);
            // When no host is open, the refusal names one that is not.
            set(open, mode).await;
            let refused = service.put(&vf, json!({ "driver": "vfio-pci" })).await.expect(409);
            assert!(refused.message().contains("until it is opened again"), "{}", refused.message());
            set(open, "open").await;
            set(closed, "open").await;
        }
    }
}

#[tokio::test]
async fn what_is_not_attached_because_of_its_host_is_explained() {
    let service = Hotslot::on("small").await;
    let of = format!("/v2.1/os-hypervisors/node1/pci_devices/{VF0}");
    let function = async || service.get(&of).await.expect(200).body["pci_device"].clone();
    for (mode, says) in
        [("frozen", "host node1 was frozen by "), ("draining", "host node1 is being drained by ")]
    {
        set(&service, mode, Some("new firmware")).await;
        let shown = function().await;
        let withheld = shown["withheld"].as_str().unwrap();
        assert!(shown["offered"] == false && withheld.contains(says), "{withheld}");
        for command in [format!("explain {VF0}"), format!("device show {VF0}"), "explain vf".to_owned()] {
            let (code, said) = printed(&service, &command);
            assert_eq!(code, Some(0), "{said}");
            for says in [says, "(new firmware)", "until it is opened again (`hotslot host thaw node1`)"] {
                assert!(said.contains(says), "{command}: {says}: {said}");
            }
        }
        let path = "/v2.1/os-hypervisors/node1/pci_candidates?alias=vf";
        let lines = service.get(path).await.expect(200).body["pci_candidates"].clone();
        assert!(lines.as_array().unwrap().iter().all(|line| line["place"].is_null()), "{lines}");
        let (_, named) = printed(&service, "explain vf -o name");
        assert_eq!(named, "");
    }
    // A device that is not free says that alone.
    set(&service, "open", None).await;
    service.attach(Q35, "vf:1").await.expect(200);
    set(&service, "frozen", None).await;
    let taken = function().await;
    assert_eq!((&taken["offered"], &taken["withheld"]), (&json!(false), &Value::Null), "{taken}");
    set(&service, "open", None).await;
    let (_, said) = printed(&service, "device show 0000:05:00.0");
    assert!(said.lines().any(|line| line.starts_with("Assignable") && line.ends_with("yes")), "{said}");
}

#[tokio::test]
async fn a_dry_run_of_prepare_is_answered_on_a_frozen_host() {
    let service = Hotslot::on("small").await;
    let before = service.documents();
    set(&service, "frozen", Some("new firmware")).await;
    let ports = format!("/v2.1/servers/{Q35}/pci_ports");
    let dry = json!({ "pci_ports": { "count": 2, "dry_run": true } });
    let run = service.post(&ports, dry.clone()).await.expect(200).body["pci_ports"].take();
    assert_eq!(run["diff"].as_array().unwrap().len(), 2);
    assert!(run["refused"].as_str().unwrap().contains("host node1 was frozen by "), "{run}");
    for (command, diff) in
        [("server prepare q35 --ports 2 --dry-run", 2), ("server prepare q35 --ports 2", 0)]
    {
        let (code, said) = printed(&service, command);
        assert_eq!((code, said.matches("+    <controller").count()), (Some(4), diff), "{said}");
        assert!(said.contains("`hotslot host thaw node1`"), "{said}");
    }
    assert_eq!(service.documents(), before);
    set(&service, "draining", None).await;
    let run = service.post(&ports, dry).await.expect(200).body["pci_ports"].take();
    assert_eq!(run["refused"], Value::Null);
    assert_eq!(printed(&service, "server prepare q35 --ports 2").0, Some(0));
}
