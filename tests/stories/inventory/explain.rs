//! Explanations: the checks of a dry run, why a device is offered or not, and which devices an alias would take.

use hotslot_tests::{Hotslot, Q35, attachments, host};
use serde_json::{Value, json};

use super::guards::{EVERYTHING, live_on};

pub(super) async fn dry_run(service: &Hotslot, server: &str, aliases: &str) -> Value {
    let body = json!({ "pciAttachment": { "pci_passthrough:alias": aliases, "dry_run": true } });
    service.post(&attachments(server), body).await.expect(200).body["dry_run"].clone()
}

pub(super) fn result<'a>(run: &'a Value, check: &str, device: Option<&str>) -> &'a Value {
    let checks = run["checks"].as_array().unwrap();
    let found = checks
        .iter()
        .find(|line| line["check"] == check && device.is_none_or(|device| line["device"] == device));
    &found.unwrap_or_else(|| panic!("no check {check} of {device:?}: {run:#}"))["result"]
}

#[tokio::test]
async fn a_dry_run_lists_every_check_and_changes_nothing() {
    let service = Hotslot::bare(&host("small"), EVERYTHING, live_on).await;
    let run = dry_run(&service, Q35, "vf:2").await;
    assert_eq!(run["would_attach"], true, "{run:#}");
    assert_eq!(run["pci_devices"][1]["address"], "0000:04:10.2");
    for check in ["device-spec", "state", "guard", "group-viable", "reset"] {
        assert_eq!(result(&run, check, Some("0000:04:10.2")), "pass", "{check}: {run:#}");
    }
    for check in ["server-state", "free-port"] {
        assert_eq!(result(&run, check, None), "pass", "{check}");
    }

    // The host needs one of the two devices.
    let run = dry_run(&service, Q35, "nvme:1,spare:1").await;
    assert_eq!(run["would_attach"], false);
    assert_eq!(run["pci_devices"], json!([]));
    assert_eq!(result(&run, "guard", Some("0000:07:00.0")), "fail");
    assert_eq!(result(&run, "guard", Some("0000:08:00.0")), "pass");
    let cures = run["checks"].as_array().unwrap().iter().filter(|check| check["result"] == "fail");
    for check in cures.filter(|check| check["check"] == "guard") {
        assert!(check["cure"].as_str().is_some_and(|cure| cure.contains("unguarded")), "{check}");
    }
    // The choice does not repeat what the check of the device says.
    let said = |check: &str| {
        let found = run["checks"]
            .as_array()
            .unwrap()
            .iter()
            .find(|line| line["check"] == check && line["result"] == "fail");
        found.unwrap_or_else(|| panic!("{check}: {run:#}"))["message"].as_str().unwrap().to_owned()
    };
    assert!(!said("choice").contains(&said("guard")), "{run:#}");
    assert!(said("choice").contains("alias `nvme` asks for 1 device(s), 0 free: 1 unavailable; "), "{run:#}");
    service.expect_clean().await;
    assert!(!service.log().contains("asked the guest"));
}

#[tokio::test]
async fn devices_and_aliases_are_explained() {
    let service = Hotslot::bare(
        &host("small"),
        &EVERYTHING.replace(
            r#"'{"address": "*"}'"#,
            r#"'{"vendor_id": "10de"}', '{"address": "*"}', '{"vendor_id": "8086"}'"#,
        ),
        live_on,
    )
    .await;
    let device = async |address: &str| {
        let path = format!("/v2.1/os-hypervisors/node1/pci_devices/{address}");
        service.get(&path).await.expect(200).body["pci_device"].clone()
    };
    let disk = device("0000:07:00.0").await;
    assert_eq!((&disk["offered"], &disk["status"]), (&json!(false), &json!("available")));
    assert_eq!(disk["guards"], json!([{ "kind": "root-filesystem", "reason": "/ on nvme0n1p1" }]));
    let of = |key: &str| -> Vec<Value> {
        disk["whitelist"].as_array().unwrap().iter().map(|line| line[key].clone()).collect()
    };
    assert_eq!(of("matches"), [false, true, false]);
    assert_eq!(of("counts"), [false, true, false]);
    assert_eq!(of("why")[0], "its vendor_id is 1b36, not 10de");

    let vf = device("0000:04:10.0").await;
    assert_eq!((&vf["offered"], &vf["reset_methods"]), (&json!(true), &json!(["flr", "bus"])));
    assert_eq!((&vf["pool"]["count"], &vf["pool"]["address"]), (&json!(2), &json!("0000:04:00.0")));
    let half = device("0000:06:00.0").await;
    assert!(half["withheld"].as_str().unwrap().contains("IOMMU group 18"), "{half}");
    assert_eq!(half["group_members"][1]["driver"], "e1000e");
    let port = device("0000:00:14.0").await;
    assert!(port["whitelist"][1]["why"].as_str().unwrap().contains("bridge"), "{port}");

    let path = "/v2.1/os-hypervisors/node1/pci_candidates";
    let lines = service.get(&format!("{path}?alias=vf")).await.expect(200).body["pci_candidates"].clone();
    let lines = lines.as_array().unwrap();
    assert_eq!((&lines[0]["address"], &lines[0]["place"]), (&json!("0000:04:10.0"), &json!(0)));
    assert_eq!((&lines[1]["address"], &lines[1]["place"]), (&json!("0000:04:10.2"), &json!(1)));
    assert!(lines[2..].iter().all(|line| line["place"].is_null() && line["why"].is_string()), "{lines:?}");
    let nic = service.get(&format!("{path}?alias=nic&server={Q35}")).await.expect(200).body;
    let line = nic["pci_candidates"].as_array().unwrap().iter().find(|it| it["address"] == "0000:05:00.0");
    assert!(line.unwrap()["why"].as_str().unwrap().contains("network-route"), "{nic}");
    service.get(&format!("{path}?alias=gpu")).await.expect(400);
    service.get("/v2.1/os-hypervisors/node1/pci_devices/0000:99:00.0").await.expect(404);
}

#[tokio::test]
async fn a_function_without_a_device_spec_is_explained() {
    for pci in ["", "device_spec = ['{\"product_id\": \"10d3\"}']\n"] {
        let alias = r#"alias = ['{"name": "vf", "vendor_id": "8086", "product_id": "10ca"}']"#;
        let service = Hotslot::bare(&host("small"), &format!("[pci]\n{pci}{alias}\n"), |_| ()).await;
        let path = "/v2.1/os-hypervisors/node1/pci_candidates?alias=vf";
        let lines = service.get(path).await.expect(200).body["pci_candidates"].clone();
        let why = |address: &str| {
            let line = lines.as_array().unwrap().iter().find(|line| line["address"] == address);
            line.map(|line| (line["place"].clone(), line["why"].clone()))
        };
        assert_eq!(why("0000:04:10.0"), Some((Value::Null, json!("no device_spec lists it"))));
        assert_eq!(why("0000:00:10.0"), None, "a root port");
    }
}

#[tokio::test]
async fn an_alternative_with_a_free_port_is_chosen() {
    let service = Hotslot::on("small").await;
    for (vendor, product) in [("1234", "11e8"), ("8086", "10d3")] {
        let alias = json!({ "alias": { "name": "mixed", "vendor_id": vendor, "product_id": product } });
        service.post("/v2.1/os-pci-config/alias", alias).await.expect(201);
    }
    let first = async |query: &str| {
        let path = format!("/v2.1/os-hypervisors/node1/pci_candidates?alias=mixed{query}");
        service.get(&path).await.expect(200).body["pci_candidates"].clone()
    };
    assert_eq!(first("").await[0]["address"], "0000:00:1d.0", "a conventional one");
    let explained = first(&format!("&server={Q35}")).await;
    assert_eq!(explained[0]["address"], "0000:05:00.0");
    let line = explained.as_array().unwrap().iter().find(|line| line["address"] == "0000:00:1d.0");
    assert_eq!(line.unwrap()["why"], "the guest has no free hot-plug port for conventional PCI devices");
    let refused = service.attach(Q35, "edu:1").await.expect(409);
    assert!(refused.message().contains("a pcie-to-pci-bridge controller"), "{}", refused.message());
    let one = service.attach(Q35, "mixed:1").await.expect(200).body["pci_devices"][0].clone();
    assert_eq!(one["address"], "0000:05:00.0");
}
