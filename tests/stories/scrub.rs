//! Scrubs: what one owner left in a device is erased before the next one gets it.

use std::fs;
use std::path::Path;
use std::time::Duration;

use hotslot_driver::sim::control;
use hotslot_tests::oracle::NVME;
use hotslot_tests::{Hotslot, I440FX, Q35, host, path};
use serde_json::{Value, json};

const ADDRESS: &str = "0000:08:00.0";

/// Writes the hooks of a simulated host: for each a class, a moment, a shell script, and further keys.
pub(crate) fn hooks(host: &Path, hooks: &[(&str, &str, &str, &str)]) {
    let hook = |(class, when, script, more): &(&str, &str, &str, &str)| {
        format!(
            "[[hook]]\nclass = \"{class}\"\nwhen = \"{when}\"\n\
             command = [\"/bin/sh\", \"-c\", '''{script}''', \"hook\", \"{{address}}\"]\n{more}\n"
        )
    };
    fs::write(host.join("hooks.toml"), hooks.iter().map(hook).collect::<String>()).unwrap();
}

async fn device(service: &Hotslot) -> Value {
    service.device(ADDRESS).await
}

async fn attach(service: &Hotslot) -> Value {
    service.attach(Q35, "nvme:1").await.expect(200).body["pci_devices"][0].clone()
}

async fn use_it(service: &Hotslot) {
    let attached = attach(service).await;
    service.delete(&path(&attached)).await.expect(200);
}

async fn until_offered(service: &Hotslot) {
    service.until("it is offered", async || device(service).await["used_at"].is_null()).await;
    let row = device(service).await;
    assert_eq!((&row["scrub"], &row["quarantine"]), (&json!(false), &Value::Null), "{row:#}");
}

/// Waits until the device is in quarantine, and returns why.
async fn until_quarantined(service: &Hotslot) -> String {
    service.until("it is in quarantine", async || device(service).await["quarantine"].is_string()).await;
    let row = device(service).await;
    assert_eq!(row["scrub"], false, "{row:#}");
    row["quarantine"].as_str().unwrap().to_owned()
}

/// How often the host was asked to run a hook.
fn runs(service: &Hotslot) -> u64 {
    let answer = control(&service.host_dir(), "statistics").unwrap();
    let statistics: Value = serde_json::from_str(answer.strip_prefix("ok ").unwrap()).unwrap();
    statistics["calls"]["run-hook"].as_u64().unwrap_or_default()
}

async fn act(service: &Hotslot, action: &str) -> hotslot_tests::Answer {
    let id = &device(service).await["id"];
    match action {
        "scrub" => service.post(&format!("/v2.1/os-pci/{id}/scrub"), json!({})).await,
        action => service.post(&format!("/v2.1/os-pci/{id}/action"), json!({ action: null })).await,
    }
}

#[tokio::test]
async fn an_nvme_controller_is_erased_before_the_next_owner_gets_it() {
    let service = Hotslot::bare(&host("small"), NVME, |_| ()).await;
    assert_eq!(runs(&service), 0, "nothing is erased that nobody had");
    use_it(&service).await;
    until_offered(&service).await;
    assert_eq!(runs(&service), 1);
    let events = service.get(&format!("/events?device={ADDRESS}")).await.expect(200).body["events"].clone();
    let kinds: Vec<_> =
        events.as_array().unwrap().iter().filter_map(|event| event["kind"].as_str()).collect();
    let at =
        |kind: &str| kinds.iter().position(|other| *other == kind).unwrap_or_else(|| panic!("{kinds:?}"));
    assert!(at("device.used") < at("device.cleaned"), "{kinds:?}");
    assert!(!kinds.contains(&"device.quarantined"), "{kinds:?}");
    // Nothing waits, so there is nothing to scrub by hand.
    let refused = act(&service, "scrub").await.expect(409);
    assert!(refused.message().contains("only a device that was used is scrubbed"), "{}", refused.message());
    assert_eq!(runs(&service), 1);
    // A guest that is off was never given the device by libvirt, but its definition had it.
    let second = service.attach(I440FX, "nvme:1").await;
    if second.status == 200 {
        service.delete(&path(&second.body["pci_devices"][0])).await.expect(200);
        until_offered(&service).await;
    }
    service.expect_clean().await;
}

#[tokio::test]
async fn a_scrub_that_was_cut_off_runs_again_and_nobody_gets_the_device_before() {
    let mut service = Hotslot::bare(&host("small"), NVME, |host| {
        let (log, go) = (host.join("log"), host.join("go"));
        let script =
            format!("echo \"$1\" >>{}; while [ ! -e {} ]; do sleep 0.05; done", log.display(), go.display());
        hooks(host, &[("NVMe controller", "scrub", &script, "")]);
    })
    .await;
    let begun = |service: &Hotslot| fs::read_to_string(service.host_dir().join("log")).unwrap_or_default();
    use_it(&service).await;
    service.until("the scrub has begun", async || begun(&service) == format!("{ADDRESS}\n")).await;
    let waits = async |service: &Hotslot| {
        let row = device(service).await;
        assert_eq!((&row["scrub"], &row["status"]), (&json!(true), &json!("available")), "{row:#}");
        let refused = service.attach(Q35, "nvme:1").await.expect(409);
        assert!(refused.message().contains("waits for its scrub"), "{}", refused.message());
        for action in ["cleaned", "scrub"] {
            let refused = act(service, action).await.expect(409);
            assert!(refused.message().contains("is being scrubbed now"), "{}", refused.message());
        }
    };
    waits(&service).await;
    let metrics = reqwest::get(format!("{}/metrics", service.url())).await.unwrap().text().await.unwrap();
    let line = metrics.lines().find(|line| line.starts_with("hotslot_devices_to_scrub{")).unwrap();
    assert!(line.ends_with(" 1.0"), "{line}");
    service.kill();
    service.start_again().await;
    service.until("it has begun again", async || begun(&service) == format!("{ADDRESS}\n{ADDRESS}\n")).await;
    waits(&service).await;
    fs::write(service.host_dir().join("go"), "").unwrap();
    until_offered(&service).await;
    use_it(&service).await;
    until_offered(&service).await;
    service.expect_clean().await;
}

#[tokio::test]
async fn a_scrub_that_fails_is_a_quarantine_with_the_end_of_its_output() {
    let service = Hotslot::bare(&host("small"), NVME, |host| {
        let script = "echo erasing; printf 'controller says \\033[1mno\\033[0m\\n' >&2; exit 7";
        hooks(host, &[("NVMe controller", "scrub", script, "")]);
    })
    .await;
    use_it(&service).await;
    let reason = until_quarantined(&service).await;
    for says in [
        "it was not scrubbed after its use: the scrub hook of class `NVMe controller` (/bin/sh)",
        "exit status: 7; the end of its output: erasing / controller says \\u{1b}[1mno",
        "`hotslot pci scrub 0000:08:00.0` tries it again",
    ] {
        assert!(reason.contains(says), "{says}: {reason}");
    }
    let refused = service.attach(Q35, "nvme:1").await.expect(409);
    assert!(refused.message().contains("is in quarantine"), "{}", refused.message());
    let events = service.get("/events?kind=device.quarantined").await.expect(200).body["events"].clone();
    assert_eq!((events.as_array().unwrap().len(), &events[0]["to"]), (1, &json!(reason)));

    // What takes too long is killed.
    hooks(&service.host_dir(), &[("NVMe controller", "scrub", "echo begun; sleep 600", "timeout = 1")]);
    act(&service, "scrub").await.expect(202);
    service
        .until("it was killed", async || {
            device(&service).await["quarantine"].as_str().is_some_and(|reason| reason.contains("after 1 s"))
        })
        .await;
    assert!(until_quarantined(&service).await.contains("output: begun"));

    // The administrator corrects it, and asks again.
    hooks(&service.host_dir(), &[("NVMe controller", "scrub", "true", "")]);
    let row = act(&service, "scrub").await.expect(202).body["pci_device"].clone();
    assert_eq!(row["quarantine"], Value::Null);
    until_offered(&service).await;

    // Or erases it by hand.
    hooks(&service.host_dir(), &[("NVMe controller", "scrub", "exit 1", "")]);
    use_it(&service).await;
    until_quarantined(&service).await;
    act(&service, "cleaned").await.expect(200);
    until_offered(&service).await;
    service.expect_clean().await;
}

#[tokio::test]
async fn without_a_helper_a_device_stays_in_quarantine_with_the_advice() {
    let service = Hotslot::bare(&host("small"), NVME, |_| ()).await;
    let advice =
        "the helper of hotslot does not run; run systemctl enable --now hotslot-hooks.socket on the host";
    service.sim(&format!("fault run-hook fail kind=unsupported text={advice}"));
    use_it(&service).await;
    let reason = until_quarantined(&service).await;
    assert!(reason.contains(advice), "{reason}");
    act(&service, "scrub").await.expect(202);
    until_offered(&service).await;

    // While an earlier run has not ended, and after a helper that was killed, the service asks again.
    for fault in ["kind=in-use", "kind=timed-out"] {
        service.sim(&format!("fault run-hook fail {fault}"));
        let before = runs(&service);
        use_it(&service).await;
        let patience = Duration::from_secs(20);
        let offered = async {
            while !device(&service).await["used_at"].is_null() {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        tokio::time::timeout(patience, offered).await.unwrap();
        assert_eq!(runs(&service), before + 2, "{fault}");
    }
    service.expect_clean().await;
}

#[tokio::test]
async fn the_device_spec_decides_what_is_scrubbed() {
    let off = NVME.replace("0000:08:00.0\"", "0000:08:00.0\", \"scrub\": \"false\"");
    let service = Hotslot::bare(&host("small"), &off, |_| ()).await;
    use_it(&service).await;
    let row = device(&service).await;
    assert_eq!((&row["scrub"], &row["used_at"]), (&json!(false), &Value::Null));
    assert_eq!(runs(&service), 0);
    service.expect_clean().await;

    // Storage that is no NVMe controller, for which there is no hook, and a network function that is to be scrubbed.
    let sata = |host: &Path| {
        let file = host.join("devices/pci_0000_08_00_0.xml");
        let document = fs::read_to_string(&file).unwrap();
        fs::write(&file, document.replace("0x010802", "0x010601")).unwrap();
    };
    let service = Hotslot::bare(&host("small"), NVME, sata).await;
    use_it(&service).await;
    let reason = until_quarantined(&service).await;
    assert!(reason.contains("write a scrub hook for class `storage controller`"), "{reason}");
    assert_eq!(runs(&service), 0);
    hooks(&service.host_dir(), &[("storage controller", "scrub", "true", "")]);
    act(&service, "scrub").await.expect(202);
    until_offered(&service).await;
    service.expect_clean().await;

    let nic = "[pci]\ndevice_spec = ['{\"product_id\": \"10ca\", \"scrub\": \"yes\"}']\n\
               alias = ['{\"name\": \"vf\", \"vendor_id\": \"8086\", \"product_id\": \"10ca\"}']\n";
    let service = Hotslot::bare(&host("small"), nic, |_| ()).await;
    let vf = service.attach(Q35, "vf:1").await.expect(200).body["pci_devices"][0].clone();
    service.delete(&path(&vf)).await.expect(200);
    let address = vf["address"].as_str().unwrap();
    service
        .until("it is in quarantine", async || service.device(address).await["quarantine"].is_string())
        .await;
    let reason = service.device(address).await["quarantine"].to_string();
    assert!(reason.contains("write a scrub hook for class `network controller`"), "{reason}");
}

#[tokio::test]
async fn what_was_never_in_a_guest_is_erased_only_when_that_is_asked_for() {
    let service = Hotslot::bare(&host("small"), NVME, |_| ()).await;
    let spdk = service.accelerator("spdk", json!({ "vendor_id": "1b36", "address": ADDRESS })).await;
    service.put(&spdk, json!({ "driver": "vfio-pci" })).await.expect(200);
    service.delete(&spdk).await.expect(204);
    let reason = until_quarantined(&service).await;
    assert!(reason.contains("is not known to have been in a guest"), "{reason}");
    assert_eq!(runs(&service), 0);
    act(&service, "scrub").await.expect(202);
    until_offered(&service).await;
    assert_eq!(runs(&service), 1);

    // Without VFIO's driver for it, nvme format does not reach a device.
    let unmanaged = NVME.replace("0000:08:00.0\"", "0000:08:00.0\", \"managed\": \"false\"");
    let service = Hotslot::bare(&host("small"), &unmanaged, |host| {
        let file = host.join("devices/pci_0000_08_00_0.xml");
        let document = fs::read_to_string(&file).unwrap();
        fs::write(&file, document.replace("<name>nvme</name>", "<name>vfio-pci</name>")).unwrap();
    })
    .await;
    use_it(&service).await;
    let reason = until_quarantined(&service).await;
    assert!(
        reason.contains("needs the driver nvme; bind that (virsh nodedev-reattach pci_0000_08_00_0)"),
        "{reason}"
    );
}

#[tokio::test]
async fn nothing_is_scrubbed_on_a_frozen_host() {
    let service = Hotslot::bare(&host("small"), NVME, |_| ()).await;
    let attached = attach(&service).await;
    let mode = async |mode: &str| {
        let body = json!({ "hypervisor_mode": { "mode": mode, "reason": "test" } });
        service.put("/v2.1/os-hypervisors/1/mode", body).await.expect(200);
    };
    mode("frozen").await;
    // The guest ends, and its definition loses the device: nobody asked hotslot for that.
    service.sim("unplug q35 0000:08:00.0 config");
    service.sim("destroy q35");
    service.until("it has ended", async || service.attachments(Q35).await.is_empty()).await;
    assert_eq!(device(&service).await["scrub"], true, "{attached}");
    assert_eq!(runs(&service), 0);
    mode("open").await;
    until_offered(&service).await;
    assert_eq!(runs(&service), 1);
}

/// A script of a hook that notes each run, and whether the test said that a guest has the device.
fn noted(host: &Path) -> String {
    let (log, held) = (host.join("log"), host.join("held"));
    format!("test -e {} && echo held >>{log} || echo free >>{log}", held.display(), log = log.display())
}

fn notes(service: &Hotslot) -> String {
    fs::read_to_string(service.host_dir().join("log")).unwrap_or_default()
}

/// Changes the document of a device of the host.
fn rewrite(host: &Path, address: &str, from: &str, to: &str) {
    let name = address.replace([':', '.'], "_");
    let file = host.join(format!("devices/pci_{name}.xml"));
    let document = fs::read_to_string(&file).unwrap();
    assert!(document.contains(from), "{document}");
    fs::write(&file, document.replace(from, to)).unwrap();
}

#[tokio::test]
async fn nothing_is_erased_while_a_guest_has_it_by_another_tool() {
    let unmanaged = NVME.replace("0000:08:00.0\"", "0000:08:00.0\", \"managed\": \"false\"");
    let service = Hotslot::bare(&host("small"), &unmanaged, |host| {
        rewrite(host, ADDRESS, "<name>nvme</name>", "<name>vfio-pci</name>");
        hooks(host, &[("NVMe controller", "scrub", "exit 1", "")]);
    })
    .await;
    use_it(&service).await;
    until_quarantined(&service).await;
    let host = service.host_dir();
    hooks(&host, &[("NVMe controller", "scrub", &noted(&host), "")]);
    fs::write(host.join("held"), "").unwrap();
    service.sim("plug i440fx 0000:08:00.0 live");
    let foreign = async || device(&service).await["owner"].is_string();
    service.until("hotslot knows it", foreign).await;
    act(&service, "scrub").await.expect(202);
    // A second device that ends its use has the host look again what waits.
    service.post("/v2.1/drift", json!({})).await;
    assert_eq!(device(&service).await["scrub"], true);
    fs::remove_file(host.join("held")).unwrap();
    service.sim("unplug i440fx 0000:08:00.0 live");
    until_offered(&service).await;
    assert_eq!(notes(&service), "free\n");
}

#[tokio::test]
async fn a_device_that_failed_is_erased_when_it_is_released_from_quarantine() {
    let service = Hotslot::bare(&host("small"), NVME, |_| ()).await;
    let attached = attach(&service).await;
    service.sim("device remove 0000:08:00.0");
    service.until("it is in quarantine", async || device(&service).await["quarantine"].is_string()).await;
    service.delete(&path(&attached)).await.expect(200);
    service.sim("device add 0000:08:00.0");
    service.until("it is back", async || device(&service).await["gone_at"].is_null()).await;
    assert_eq!(runs(&service), 0);
    // It works again, says the administrator. That does not say that it is empty.
    act(&service, "cleaned").await.expect(200);
    until_offered(&service).await;
    assert_eq!(runs(&service), 1);
    service.expect_clean().await;
}

#[tokio::test]
async fn a_scrub_that_is_due_is_not_dropped_with_its_hook() {
    let vf = "[pci]\ndevice_spec = ['{\"product_id\": \"10ca\"}']\n\
              alias = ['{\"name\": \"vf\", \"vendor_id\": \"8086\", \"product_id\": \"10ca\"}']\n";
    let service = Hotslot::bare(&host("small"), vf, |host| {
        hooks(host, &[("network controller", "scrub", "exit 1", "")]);
    })
    .await;
    let attached = service.attach(Q35, "vf:1").await.expect(200).body["pci_devices"][0].clone();
    let address = attached["address"].as_str().unwrap();
    service.delete(&path(&attached)).await.expect(200);
    let reason = async || service.device(address).await["quarantine"].as_str().unwrap_or_default().to_owned();
    service.until("it is in quarantine", async || reason().await.contains("exit status: 1")).await;
    hooks(&service.host_dir(), &[]);
    let id = &service.device(address).await["id"];
    service.post(&format!("/v2.1/os-pci/{id}/scrub"), json!({})).await.expect(202);
    let says = "write a scrub hook for class `network controller`";
    service.until("it is in quarantine again", async || reason().await.contains(says)).await;
    // The device_spec has the last word.
    service.post(&format!("/v2.1/os-pci/{id}/action"), json!({ "cleaned": null })).await.expect(200);
    assert_eq!(service.device(address).await["used_at"], Value::Null);
    service.expect_clean().await;
}

#[tokio::test]
async fn a_device_spec_that_is_changed_while_a_guest_has_a_device_counts() {
    let off = NVME.replace("0000:08:00.0\"", "0000:08:00.0\", \"scrub\": \"false\"");
    let service = Hotslot::bare(&host("small"), &off, |_| ()).await;
    let attached = attach(&service).await;
    service.reconfigure(", \"scrub\": \"false\"", "");
    service.post("/v2.1/service/reload", json!({})).await.expect(200);
    service.delete(&path(&attached)).await.expect(200);
    until_offered(&service).await;
    assert_eq!(runs(&service), 1);
    service.expect_clean().await;
}

#[tokio::test]
async fn another_disk_in_the_place_of_one_that_waits_is_not_erased() {
    let service = Hotslot::bare(&host("small"), NVME, |host| {
        hooks(host, &[("NVMe controller", "scrub", "exit 1", "")]);
    })
    .await;
    use_it(&service).await;
    until_quarantined(&service).await;
    let (host, id) = (service.host_dir(), device(&service).await["id"].clone());
    service.sim("device remove 0000:08:00.0");
    service.until("it is gone", async || device(&service).await["gone_at"].is_string()).await;
    let document = fs::read_to_string(host.join("devices/pci_0000_08_00_0.xml")).unwrap();
    let other = host.join("other.xml");
    fs::write(&other, document.replace("0x0010", "0x0011")).unwrap();
    hooks(&host, &[("NVMe controller", "scrub", &noted(&host), "")]);
    service.sim(&format!("device add {}", other.display()));
    let there = async || service.functions().await.get(ADDRESS).is_some();
    service.until("the other one is there", there).await;
    act(&service, "scrub").await.expect(202);
    service.post("/v2.1/drift", json!({})).await;
    let row = device(&service).await;
    assert_eq!((&row["id"], &row["product_id"], &row["scrub"]), (&id, &json!("0010"), &json!(true)));
    let refused = service.attach(Q35, "nvme:1").await.expect(409);
    assert!(refused.message().contains("another device is at 0000:08:00.0 now"), "{}", refused.message());
    // Its owner has thrown the old one away.
    act(&service, "cleaned").await.expect(200);
    service.until("the other one is offered", async || device(&service).await["product_id"] == "0011").await;
    assert_ne!(device(&service).await["id"], id);
    assert_eq!(device(&service).await["used_at"], Value::Null);
    assert_eq!(notes(&service), "");
}

#[tokio::test]
async fn another_disk_in_the_place_of_one_that_a_guest_had_is_not_erased() {
    let mut service = Hotslot::bare(&host("small"), NVME, |host| {
        hooks(host, &[("NVMe controller", "scrub", &noted(host), "")]);
    })
    .await;
    let attached = attach(&service).await;
    // The machine is off, and its disk is replaced.
    service.kill();
    rewrite(&service.host_dir(), ADDRESS, "0x0010", "0x0011");
    service.start_again().await;
    service.delete(&path(&attached)).await.expect(200);
    service
        .until("it is withheld", async || {
            let row = device(&service).await;
            row["quarantine"].is_string() || row["gone_at"].is_string()
        })
        .await;
    assert_eq!(notes(&service), "");
    let row = device(&service).await;
    assert!(row["used_at"].is_string(), "{row:#}");
}

#[tokio::test]
async fn the_serial_number_of_a_replaced_disk_is_known_at_once() {
    let service = Hotslot::bare(&host("small"), NVME, |_| ()).await;
    let serial = async || device(&service).await["extra_info"]["card_serial_number"].to_string();
    assert!(serial().await.contains("LAB1"), "{}", serial().await);
    let disk = service.host_dir().join("devices/block_nvme1n1_QEMU_NVMe_Ctrl_LAB1_1.xml");
    let other = fs::read_to_string(&disk).unwrap().replace("LAB1", "OTHER");
    let file = service.host_dir().join("other.xml");
    fs::write(&file, other).unwrap();
    service.sim(&format!("device add {}", file.display()));
    service.until("it is known", async || serial().await.contains("OTHER")).await;
    // The disk is not in the document of its controller, which is read alone when its driver changes.
    use_it(&service).await;
    until_offered(&service).await;
    assert!(serial().await.contains("OTHER"), "{}", serial().await);
}

#[tokio::test]
async fn what_a_pf_was_not_erased_of_is_not_given_away_by_its_vfs() {
    let (pf, vf) = ("0000:04:00.0", "0000:04:10.0");
    let config = "[pci]\ndevice_spec = ['{\"address\": \"0000:04:00.0\"}', '{\"product_id\": \"10ca\"}']\n\
                  alias = ['{\"name\": \"pf\", \"vendor_id\": \"8086\", \"product_id\": \"10c9\", \"device_type\": \"type-PF\"}', \
                  '{\"name\": \"vf\", \"vendor_id\": \"8086\", \"product_id\": \"10ca\", \"device_type\": \"type-VF\"}']\n";
    let service = Hotslot::bare(&host("small"), config, |host| {
        hooks(host, &[("network controller", "scrub", "exit 1", "")]);
    })
    .await;
    let attached = service.attach(Q35, "pf:1").await;
    let attached = attached.expect(200).body["pci_devices"][0].clone();
    service.delete(&path(&attached)).await.expect(200);
    let quarantined = async |address: &str| service.device(address).await["quarantine"].is_string();
    service.until("the PF is in quarantine", async || quarantined(pf).await).await;
    service.sim("vfs 0000:04:00.0 2");
    service.until("the VFs are back", async || service.device(vf).await.is_object()).await;
    let refused = service.attach(Q35, "vf:1").await.expect(409);
    assert!(refused.message().contains("0000:04:00.0 was not scrubbed"), "{}", refused.message());
    let act = async |address: &str, action: &str| {
        let id = &service.device(address).await["id"];
        match action {
            "scrub" => service.post(&format!("/v2.1/os-pci/{id}/scrub"), json!({})).await.expect(202),
            action => {
                let body = json!({ action: null });
                service.post(&format!("/v2.1/os-pci/{id}/action"), body).await.expect(200)
            }
        };
    };
    // A PF is not erased under a VF that a guest has.
    let host = service.host_dir();
    hooks(&host, &[("network controller", "scrub", &noted(&host), "")]);
    fs::write(host.join("held"), "").unwrap();
    service.sim("plug i440fx 0000:04:10.0 live");
    service.until("hotslot knows it", async || service.device(vf).await["owner"].is_string()).await;
    act(pf, "scrub").await;
    service.post("/v2.1/drift", json!({})).await;
    assert_eq!(service.device(pf).await["scrub"], true);
    fs::remove_file(host.join("held")).unwrap();
    service.sim("unplug i440fx 0000:04:10.0 live");
    service.until("it is offered", async || service.device(pf).await["used_at"].is_null()).await;
    assert_eq!(notes(&service), "free\n");

    // The other way round.
    hooks(&host, &[("network controller", "scrub", "exit 1", "")]);
    let attached = service.attach(Q35, "vf:1").await.expect(200).body["pci_devices"][0].clone();
    service.delete(&path(&attached)).await.expect(200);
    service
        .until("the VF is in quarantine", async || quarantined(attached["address"].as_str().unwrap()).await)
        .await;
    let refused = service.attach(Q35, "pf:1").await.expect(409);
    assert!(refused.message().contains("was not scrubbed"), "{}", refused.message());
    act(attached["address"].as_str().unwrap(), "cleaned").await;
}
