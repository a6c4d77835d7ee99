//! Settings of VFs of NICs that libvirt has no word for: set before the plug, put back after the detach, refused where
//! they cannot be set.

use std::fs;
use std::path::Path;
use std::time::Duration;

use hotslot_tests::{Answer, Hotslot, Q35, SWITCH, attachments, host, path};
use reqwest::Method;
use serde_json::{Value, json};

const VF: &str = "0000:04:10.0";
pub(super) const CONFIG: &str = r#"
[pci]
device_spec = ['{"address": "0000:04:10.0", "trusted": "true"}', '{"address": "0000:04:10.2"}']
alias = ['{"name": "vf", "vendor_id": "8086", "product_id": "10ca"}']
"#;

/// The settings of a VF that nobody has changed.
fn new() -> Value {
    json!({ "trust": false, "spoof_check": true, "link_state": "auto", "min_tx_rate": 0, "max_tx_rate": 0 })
}

/// The settings that a VF of the simulated host has; null when nobody has changed any.
fn settings(service: &Hotslot, vf: &str) -> Value {
    let text = fs::read_to_string(service.host_dir().join("vf").join(format!("{vf}.json")));
    text.map_or(Value::Null, |text| serde_json::from_str(&text).unwrap())
}

async fn attach(service: &Hotslot, keys: Value) -> Answer {
    let mut body = json!({ "pci_passthrough:alias": "vf:1" });
    body.as_object_mut().unwrap().extend(keys.as_object().unwrap().clone());
    service.post(&attachments(Q35), json!({ "pciAttachment": body })).await
}

fn wanted() -> Value {
    json!({ "trusted": true, "spoof_check": false, "link_state": "enable", "min_tx_rate": 10, "max_tx_rate": 100 })
}

#[tokio::test]
async fn settings_are_set_before_the_plug_and_put_back_after_the_detach() {
    let service = Hotslot::bare(&host("small"), CONFIG, |host| {
        // An operator has limited the VF.
        fs::create_dir_all(host.join("vf")).unwrap();
        let limited = json!({ "max_tx_rate": 500 });
        let mut all = new();
        all.as_object_mut().unwrap().extend(limited.as_object().unwrap().clone());
        fs::write(host.join(format!("vf/{VF}.json")), all.to_string()).unwrap();
    })
    .await;
    let before = settings(&service, VF);
    let vf = attach(&service, wanted()).await.expect(200).body["pci_devices"][0].clone();
    assert_eq!(vf["address"], VF);
    assert_eq!(
        settings(&service, VF),
        json!({ "trust": true, "spoof_check": false, "link_state": "enable", "min_tx_rate": 10, "max_tx_rate": 100 })
    );
    for (key, value) in wanted().as_object().unwrap() {
        assert_eq!(&vf[key], value, "{key}: {vf}");
    }
    service.delete(&path(&vf)).await.expect(200);
    assert_eq!(settings(&service, VF), before);

    // What is there already is not set, and what is not requested is left alone.
    let vf = attach(&service, json!({ "trusted": true, "max_tx_rate": 500 })).await.expect(200).body;
    service.delete(&path(&vf["pci_devices"][0])).await.expect(200);
    assert_eq!(settings(&service, VF), before);
    let plain = attach(&service, json!({})).await.expect(200).body["pci_devices"][0].clone();
    service.delete(&path(&plain)).await.expect(200);
    assert_eq!(settings(&service, VF), before);
    service.expect_clean().await;
}

#[tokio::test]
async fn settings_of_an_attach_that_fails_are_put_back() {
    for fault in ["attach fail", "set-vf-settings away at=after ms=300", "attach hang ms=800"] {
        let config = format!("[libvirt]\nattach_timeout = 0.5\n{CONFIG}");
        let service = Hotslot::bare(&host("small"), &config, |_| ()).await;
        service.sim(&format!("fault {fault}"));
        let failed = attach(&service, wanted()).await;
        assert!(failed.status == 502 || failed.status == 503, "{fault}: {}", failed.message());
        service.until("the settings are put back", async || settings(&service, VF) == new()).await;
        service.until("the VF is free", async || service.device(VF).await["status"] == "available").await;
        assert!(service.attachments(Q35).await.is_empty());
    }
}

#[tokio::test]
async fn settings_are_put_back_after_a_kill() {
    for kill in ["set-vf-settings kill at=before", "set-vf-settings kill at=after", "attach kill at=after"] {
        let mut service = Hotslot::bare(&host("small"), CONFIG, |_| ()).await;
        service.sim(&format!("fault {kill}"));
        let body = json!({ "pci_passthrough:alias": "vf:1", "trusted": true });
        let body = json!({ "pciAttachment": body }).to_string();
        service.try_send(Method::POST, &attachments(Q35), Some(("application/json", body))).await;
        assert!(service.ended(Duration::from_secs(30)).await, "{kill}");
        service.start_again().await;
        // The attachment is completed when its guest has the device, and undone otherwise.
        service
            .until("it is settled", async || {
                service.attachments(Q35).await.iter().all(|row| row["status"] == "attached")
            })
            .await;
        for row in service.attachments(Q35).await {
            assert_eq!(settings(&service, VF)["trust"], true, "{kill}");
            service.delete(&path(&row)).await.expect(200);
        }
        let is_back = async || matches!(&settings(&service, VF)["trust"], Value::Null | Value::Bool(false));
        service.until("the VF is not trusted any more", is_back).await;
        service.expect_clean().await;
    }
}

#[tokio::test]
async fn a_vf_whose_settings_are_not_put_back_goes_to_nobody() {
    let service = Hotslot::bare(&host("small"), CONFIG, |_| ()).await;
    let vf = attach(&service, wanted()).await.expect(200).body["pci_devices"][0].clone();
    service.sim("fault set-vf-settings fail times=99 text=the firmware is busy");
    service.delete(&path(&vf)).await.expect(200);
    assert_eq!(settings(&service, VF)["trust"], true);
    // The other VF is taken; the first one is refused with the reason.
    let other = attach(&service, json!({})).await.expect(200).body["pci_devices"][0].clone();
    assert_eq!(other["address"], "0000:04:10.2");
    let refused = attach(&service, json!({})).await.expect(502);
    for says in ["still has settings of attachment", "the firmware is busy"] {
        assert!(refused.message().contains(says), "{says}: {}", refused.message());
    }
    service.sim("fault clear");
    let again = attach(&service, json!({})).await.expect(200).body["pci_devices"][0].clone();
    assert_eq!((&again["address"], settings(&service, VF)), (&json!(VF), new()));
    for device in [again, other] {
        service.delete(&path(&device)).await.expect(200);
    }
    service.expect_clean().await;
}

#[tokio::test]
async fn a_vf_whose_pf_has_no_interface_for_a_while_keeps_its_record() {
    let service = Hotslot::bare(&host("small"), CONFIG, |_| ()).await;
    let vf = attach(&service, wanted()).await.expect(200).body["pci_devices"][0].clone();
    service.sim("fault vf-settings fail kind=no-device times=99 text=the PF has no network interface");
    service.delete(&path(&vf)).await.expect(200);
    assert_eq!(settings(&service, VF)["trust"], true);
    let drift = service.get("/v2/t/drift").await.expect(200).body["drift"].clone();
    let found = drift.as_array().unwrap().iter().find(|finding| finding["kind"] == "vf-settings");
    assert_eq!(found.expect("a finding")["address"], VF);
    let other = attach(&service, json!({})).await.expect(200).body["pci_devices"][0].clone();
    assert_ne!(other["address"], VF, "nobody gets a VF with the trust of another");
    service.sim("fault clear");
    service.post("/v2/t/drift", json!({})).await.expect(200);
    service.until("they are put back", async || settings(&service, VF) == new()).await;
    service.delete(&path(&other)).await.expect(200);
    service.expect_clean().await;
}

#[tokio::test]
async fn a_vf_that_lost_its_settings_with_a_restart_of_the_host_gets_them_again() {
    let service = Hotslot::bare(&host("small"), CONFIG, |_| ()).await;
    let mut body = wanted();
    body["pci_passthrough:alias"] = json!("vf:1");
    let attached =
        service.post(&attachments(SWITCH), json!({ "pciAttachment": body })).await.expect(200).body;
    let vf = attached["pci_devices"][0].clone();
    let set = settings(&service, VF);
    assert_eq!(set["trust"], true);
    service.sim("restart");
    service.sim("vfs 0000:04:00.0 2");
    service.until("they are set again", async || settings(&service, VF) == set).await;
    service
        .until("nothing disagrees", async || {
            service.get("/v2/t/drift").await.expect(200).body["drift"] == json!([])
        })
        .await;
    service.delete(&path(&vf)).await.expect(200);
    service.until("they are put back", async || settings(&service, VF) == new()).await;
}

/// Marks the host as a remote machine.
fn far_away(host: &Path) {
    let file = host.join("host.toml");
    let text = fs::read_to_string(&file).unwrap();
    fs::write(file, text.replace("# remote = true", "remote = true")).unwrap();
}

#[tokio::test]
async fn settings_that_cannot_be_set_are_refused_and_not_ignored() {
    let far = Hotslot::bare(&host("small"), CONFIG, far_away).await;
    let own = Hotslot::bare(&host("small"), CONFIG, |_| ()).await;
    own.sim(
        "fault vf-settings fail kind=unsupported times=99 text=hotslot has not the right (CAP_NET_ADMIN)",
    );
    for (service, says) in [(&far, "the host is another machine"), (&own, "CAP_NET_ADMIN")] {
        for keys in [json!({ "trusted": true }), json!({ "max_tx_rate": 10 })] {
            let refused = attach(service, keys.clone()).await.expect(409);
            assert!(refused.message().contains(says), "{keys}: {}", refused.message());
            let mut dry = keys.clone();
            dry["dry_run"] = true.into();
            let run = attach(service, dry).await.expect(200).body["dry_run"].clone();
            let checks = run["checks"].as_array().unwrap();
            let check = checks.iter().find(|check| check["check"] == "vf-settings").unwrap();
            assert_eq!((&check["result"], &run["would_attach"]), (&json!("fail"), &json!(false)), "{run:#}");
        }
        let plain = attach(service, json!({ "vlan": 7 })).await.expect(200).body["pci_devices"][0].clone();
        service.delete(&path(&plain)).await.expect(200);
        service.expect_clean().await;
    }
}
