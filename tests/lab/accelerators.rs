//! Accelerators on real devices: into a guest, to the host, and back; and what the host lives on is not for them.

use futures_util::future::join_all;
use hotslot_tests::lab::{CONFIG, Lab, id, sh};
use serde_json::{Value, json};

use crate::failures::INTERFACES;

/// Makes an accelerator, and answers its path.
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
async fn an_accelerator_goes_into_a_guest_to_the_host_and_back() {
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
async fn what_the_host_lives_on_is_no_accelerator_and_of_those_who_ask_at_once_one_wins() {
    let vf = sh("lab-devices igb-vf0");
    let config = CONFIG
        .replace("device_spec = [", &format!("device_spec = ['{{\"address\": \"{vf}\", \"card\": \"one\"}}', '{{}}',"))
        .replace("alias = [", "alias = ['{\"name\": \"one\", \"vendor_id\": \"8086\", \"product_id\": \"10ca\", \"card\": \"one\"}',");
    let lab = Lab::with(&format!("{config}[accelerators]\ndiscovered = true\n")).await;
    let before = lab.sh(INTERFACES);
    let all = lab.get("/accelerators").await.expect(200).body["accelerator"].clone();
    let of = |what: &dyn Fn(&Value) -> bool| {
        let found = all.as_array().expect("a list").iter().find(|one| what(one)).expect("it is listed");
        format!("/accelerators/{}", found["uuid"].as_str().expect("an id"))
    };
    // The VM's own disk, and the card that it is reached by.
    for product in ["1042", "1000"] {
        let own = of(&|one| one["vendor_id"] == "1af4" && one["product_id"] == product);
        for body in [json!({ "driver": "vfio-pci" }), json!({}), json!({ "instance_uuid": id("q35") })] {
            let refused = lab.api.put(&own, body.clone()).await.expect(409);
            assert!(refused.message().contains("the host needs"), "{body}: {}", refused.message());
        }
    }
    assert_eq!(lab.sh(INTERFACES), before);

    let pinned = of(&|one| one["address"] == vf);
    let other = made(&lab, "other", None).await;
    spec(&lab, &other, json!({ "acc_capability": { "card": "one" } })).await;
    for round in 0..2 {
        let doors = [
            (&pinned, json!({ "instance_uuid": id("q35") })),
            (&pinned, json!({ "driver": "vfio-pci" })),
            (&other, json!({ "host": "lab", "driver": "vfio-pci" })),
            (&other, json!({ "instance_uuid": id("q35") })),
        ];
        let doors = doors.iter().map(|(path, body)| lab.api.put(path, body.clone()));
        let (accelerators, attach) = tokio::join!(join_all(doors), lab.attach(id("q35"), "one:1"));
        let answers: Vec<_> = accelerators.iter().chain([&attach]).collect();
        let won = answers.iter().filter(|answer| answer.status == 200).count();
        let bodies: Vec<_> = answers.iter().map(|answer| (answer.status, answer.message())).collect();
        assert_eq!(won, 1, "{round}: {bodies:#?}");
        assert!(
            answers.iter().all(|answer| [200, 400, 409].contains(&answer.status)),
            "{round}: {bodies:#?}"
        );
        for attachment in attach.body["pci_devices"].as_array().into_iter().flatten() {
            lab.detach(attachment).await.expect(200);
        }
        lab.delete(&other).await.expect(204);
        lab.delete(&pinned).await.expect(204);
        assert_eq!(lab.driver(&json!(vf)), "igbvf", "{round}");
    }
    lab.expect_nothing_left().await;
}
