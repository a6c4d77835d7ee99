//! Accelerators on real devices: attached to a guest and to the host, and detached. Devices that the host needs are
//! refused.

use hotslot_tests::lab::{CONFIG, Lab, id, sh};
use reqwest::Method;
use serde_json::{Value, json};

use crate::failures::INTERFACES;

/// Creates an accelerator, and returns its path.
async fn made(lab: &Lab, name: &str, uuid: Option<&str>) -> String {
    let mut body = json!({ "name": name });
    if let Some(uuid) = uuid {
        body["uuid"] = uuid.into();
    }
    let location = lab.post("/accelerators", body).await.expect(201).location.expect("a place");
    location[location.find("/accelerators").expect("its path")..].to_owned()
}

async fn spec(lab: &Lab, path: &str, spec: Value) {
    lab.api.put(&format!("{path}/acc_spec"), json!({ "acc_specs": spec })).await.expect(200);
}

#[tokio::test]
async fn an_accelerator_is_attached_to_a_guest_then_to_the_host() {
    let lab = Lab::fresh().await;
    let path = made(&lab, "IPSec Card", None).await;
    spec(&lab, &path, json!({ "device_type": "NIC", "vendor_id": "8086", "product_id": "10ca" })).await;

    let attached = lab.api.put(&path, json!({ "instance_uuid": id("q35") })).await.expect(200).body;
    assert_eq!((&attached["status"], &attached["driver"]), (&json!("attached"), &json!("vfio-pci")));
    assert_eq!(lab.driver(&attached["address"]), "vfio-pci");
    let shown = format!("{} 8086:10ca igbvf", attached["inner_address"].as_str().expect("an address"));
    let line = format!("guest lspci q35 2>/dev/null | grep -c '^{shown}' || true");
    lab.until_sh("the driver binds in the guest", &line, "1").await;
    lab.delete(&path).await.expect(204);
    assert!(!lab.lspci("q35").iter().any(|line| line.contains("8086:10ca")), "{:?}", lab.lspci("q35"));
    assert_eq!(lab.driver(&attached["address"]), "igbvf");

    for (driver, wanted) in [("vfio-pci", "vfio-pci"), ("native", "igbvf")] {
        let bound = lab.api.put(&path, json!({ "host": "lab", "driver": driver })).await.expect(200).body;
        assert_eq!((&bound["status"], &bound["driver"]), (&json!("attached"), &json!(wanted)), "{bound:#}");
        assert_eq!(lab.driver(&bound["address"]), wanted);
        lab.delete(&path).await.expect(204);
        assert_eq!(lab.driver(&bound["address"]), "igbvf");
    }
    let again = lab.api.put(&path, json!({ "instance_uuid": id("q35") })).await.expect(200).body;
    lab.delete(&path).await.expect(204);
    assert_eq!(lab.driver(&again["address"]), "igbvf");
    lab.expect_nothing_left().await;
}

#[tokio::test]
async fn devices_that_the_host_needs_are_refused_as_accelerators() {
    let config = CONFIG.replace("device_spec = [", "device_spec = ['{\"address\": \"*\"}',");
    let lab = Lab::with(&format!("{config}[accelerators]\ndiscovered = true\n")).await;
    let before = lab.sh(INTERFACES);
    let all = lab.get("/accelerators").await.expect(200).body["accelerator"].clone();
    // The disk of the VM, and the NIC by which it is reached.
    for product in ["1042", "1000"] {
        let is = |one: &&Value| one["vendor_id"] == "1af4" && one["product_id"] == product;
        let own = all.as_array().expect("a list").iter().find(is).expect("it is listed");
        let own = format!("/accelerators/{}", own["uuid"].as_str().expect("an id"));
        for body in [
            json!({ "driver": "vfio-pci" }),
            json!({ "driver": "native" }),
            json!({ "instance_uuid": id("q35") }),
        ] {
            let refused = lab.api.put(&own, body.clone()).await.expect(409);
            assert!(refused.message().contains("the host needs"), "{body}: {}", refused.message());
        }
    }
    assert_eq!(lab.sh(INTERFACES), before);
    lab.expect_nothing_left().await;
}

#[tokio::test]
#[ignore = "takes a minute or more: make long-lab-test"]
async fn concurrent_requests_through_three_apis_assign_a_device_once() {
    const V2: &str = "/accelerator/v2";
    let vf = sh("lab-devices igb-vf0");
    let lab = Lab::with(&format!(
        r#"
[pci]
device_spec = ['{{"address": "{vf}"}}']
alias = ['{{"name": "one", "vendor_id": "8086", "product_id": "10ca"}}']
[[hypervisor]]
name = "lab"
uri = "qemu:///system"
"#
    ))
    .await;
    let accelerator = made(&lab, "one", None).await;
    spec(&lab, &accelerator, json!({ "product_id": "10ca" })).await;
    let profile = json!([{ "name": "one", "groups": [{ "resources:CUSTOM_NIC": "1" }] }]);
    lab.post(&format!("{V2}/device_profiles"), profile).await.expect(201);
    let deployables = lab.get(&format!("{V2}/deployables")).await.expect(200).body["deployables"].clone();
    let arqs = format!("{V2}/accelerator_requests");
    for round in 0..3 {
        let made = lab.post(&arqs, json!({ "device_profile_name": "one" })).await.expect(201).body;
        let arq = made["arqs"][0]["uuid"].as_str().expect("an id").to_owned();
        let add = |path: &str, value: &Value| json!({ "op": "add", "path": path, "value": value });
        let bind = json!({ (&arq): [
            add("/hostname", &json!("lab")),
            add("/device_rp_uuid", &deployables[0]["rp_uuid"]),
            add("/instance_uuid", &json!(id("q35"))),
        ] });
        let (attach, put, patch) = tokio::join!(
            lab.attach(id("q35"), "one:1"),
            lab.api.put(&accelerator, json!({ "instance_uuid": id("q35") })),
            lab.send(Method::PATCH, &arqs, Some(("application/json", bind.to_string()))),
        );
        let shown = async || lab.get(&format!("{arqs}/{arq}")).await.expect(200).body;
        lab.until("the request is bound, or not", async || shown().await["state"] != "BindStarted").await;
        let bound = shown().await;
        let won = [attach.status == 200, put.status == 200, bound["state"] == "Bound"];
        assert_eq!(
            won.iter().filter(|won| **won).count(),
            1,
            "{round}: {:#} {:#} {:#} {bound:#}",
            attach.body,
            put.body,
            patch.body
        );
        println!("round {round}: os-pci_attachments, accelerators, accelerator requests: {won:?}");
        assert_eq!(lab.driver(&json!(vf)), "vfio-pci");
        for attachment in attach.body["pci_devices"].as_array().into_iter().flatten() {
            lab.detach(attachment).await.expect(200);
        }
        lab.delete(&accelerator).await.expect(204);
        lab.delete(&format!("{arqs}/{arq}")).await.expect(204);
        assert_eq!(lab.driver(&json!(vf)), "igbvf", "{round}");
    }
    lab.expect_nothing_left().await;
}
