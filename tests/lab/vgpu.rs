//! Virtual GPUs on VFs, with a VFIO driver of the lab's own that keeps the sysfs contract of NVIDIA's driver (`lab_vgpu`): a
//! VF without a type cannot be opened, and a type is set by the helper, because the service is not root.

use hotslot_tests::lab::{CONFIG, Lab, id};
use hotslot_tests::{Answer, attachments, path};
use serde_json::{Value, json};

const TYPE: &str = "nvidia-1102";

/// The lab with virtual GPUs on the VFs of the igb, and the addresses of two of them.
async fn lab() -> (Lab, [String; 2]) {
    let config = CONFIG.replace(
        r#"'{"vendor_id": "8086", "product_id": "10ca"}'"#,
        r#"'{"vendor_id": "8086", "product_id": "10ca", "managed": "false"}'"#,
    );
    assert_ne!(config, CONFIG);
    let lab = Lab::with(&config).await;
    lab.sh("systemctl start hotslot-helper.socket; lab-modules load vgpu");
    let vfs = lab.sh(
        "for vf in /sys/bus/pci/devices/$(lab-devices igb-pf)/virtfn*; do basename $(realpath $vf); done",
    );
    let mut vfs = vfs.lines().map(str::to_owned);
    let both = [vfs.next().expect("a VF"), vfs.next().expect("another VF")];
    (lab, both)
}

/// The number of the type that a VF has in sysfs.
fn current(lab: &Lab, vf: &str) -> String {
    lab.sh(&format!("cat /sys/bus/pci/devices/{vf}/nvidia/current_vgpu_type"))
}

fn device(answer: Answer) -> Value {
    answer.expect(200).body["pci_devices"][0].clone()
}

fn in_guest(lab: &Lab) -> usize {
    lab.lspci("q35").iter().filter(|line| line.contains("8086:10ca")).count()
}

#[tokio::test]
#[ignore = "takes minutes: make long-lab-test"]
async fn a_vgpu_is_made_plugged_unplugged_and_taken_away() {
    let (lab, [first, second]) = lab().await;
    let pf = lab.sh("lab-devices igb-pf");
    let shown = lab.get(&format!("/v2.1/os-hypervisors/1/pci_devices/{pf}")).await.expect(200).body;
    let types = shown["pci_device"]["vgpu_types"].as_array().unwrap();
    let ids: Vec<_> = types.iter().map(|of| of["id"].as_str().unwrap()).collect();
    assert_eq!(ids, ["nvidia-1101", "nvidia-1102", "nvidia-1103"]);

    let refused = lab.attach_with("q35", "vf", json!({})).await.expect(409);
    assert!(refused.message().contains("request one with vgpu_type"), "{}", refused.message());

    let one = device(lab.attach_with("q35", "vf", json!({ "vgpu_type": "Lab V8-4Q" })).await);
    let two = device(lab.attach_with("q35", "vf", json!({ "vgpu_type": TYPE })).await);
    assert_eq!((&one["address"], &one["vgpu_type"]), (&json!(first), &json!(TYPE)));
    assert_eq!(two["address"], *second);
    assert_eq!((current(&lab, &first), current(&lab, &second)), ("1102".into(), "1102".into()));
    assert_eq!(lab.driver(&one["address"]), "nvidia");
    assert_eq!(in_guest(&lab), 2);
    // Nothing is left of the card.
    let refused = lab.attach_with("q35", "vf", json!({ "vgpu_type": TYPE })).await;
    assert!(matches!(refused.status, 400 | 409), "{}", refused.message());

    for vf in [&one, &two] {
        lab.detach(vf).await.expect(200);
    }
    lab.until("both have lost their types", async || {
        current(&lab, &first) == "0" && current(&lab, &second) == "0"
    })
    .await;
    assert_eq!(in_guest(&lab), 0);
    lab.expect_nothing_left().await;
    lab.sh("lab-modules unload");
}

#[tokio::test]
#[ignore = "takes minutes: make long-lab-test"]
async fn a_kill_leaves_no_type_and_a_type_of_somebody_else_stays() {
    let (lab, [first, second]) = lab().await;
    lab.sh(&format!("echo 1101 >/sys/bus/pci/devices/{first}/nvidia/current_vgpu_type"));
    lab.once("attaching", "systemctl kill -s KILL hotslot").await;
    let body = json!({ "pciAttachment": { "pci_passthrough:alias": "vf:1", "vgpu_type": TYPE } }).to_string();
    lab.try_send(reqwest::Method::POST, &attachments(id("q35")), Some(("application/json", body))).await;
    lab.hit().await;
    lab.stop();
    lab.serve().await;
    lab.until("it is settled", async || {
        lab.attachments(id("q35")).await.iter().all(|row| row["status"] == "attached")
    })
    .await;
    for row in lab.attachments(id("q35")).await {
        assert_eq!(current(&lab, &second), "1102");
        lab.delete(&path(&row)).await.expect(200);
    }
    lab.until("the type is taken away", async || current(&lab, &second) == "0").await;
    assert_eq!(current(&lab, &first), "1101", "somebody else has set it");
    lab.expect_nothing_left().await;

    // Without the helper nothing can be set, and what has a type can be attached.
    lab.sh("systemctl stop hotslot-helper.socket hotslot-helper.service");
    let refused = lab.attach_with("q35", "vf", json!({ "vgpu_type": TYPE })).await.expect(409);
    assert!(refused.message().contains("hotslot-helper.socket"), "{}", refused.message());
    let own = device(lab.attach_with("q35", "vf", json!({})).await);
    assert_eq!(own["address"], *first);
    lab.detach(&own).await.expect(200);
    assert_eq!(current(&lab, &first), "1101");
    lab.sh("systemctl start hotslot-helper.socket; lab-modules unload");
}
