//! The profile of a host: the VFs of a real PF, made through the helper by a service that is not root.

use hotslot_tests::lab::{CONFIG, Lab, id};
use serde_json::{Value, json};

/// The configuration of the lab, with a profile of the igb.
fn config() -> String {
    format!("{CONFIG}\n[[profile]]\nvendor_id = \"8086\"\nproduct_id = \"10c9\"\nvfs = 2\n")
}

/// The file with the number of VFs of the igb.
const NUMBER: &str = "/sys/bus/pci/devices/$(lab-devices igb-pf)/sriov_numvfs";

fn vfs(lab: &Lab) -> String {
    lab.sh(&format!("cat {NUMBER}"))
}

async fn drift(lab: &Lab) -> Value {
    lab.get("/v2/t/drift").await.expect(200).body["drift"].take()
}

async fn events(lab: &Lab) -> Vec<Value> {
    let events = lab.get("/v2/t/events?kind=host.vfs").await.expect(200).body["events"].take();
    events.as_array().unwrap().iter().map(|event| json!([event["from"], event["to"]])).collect()
}

#[tokio::test]
#[ignore = "takes minutes: make long-lab-test"]
async fn vfs_are_made_by_the_helper_at_the_start_and_a_repair_changes_their_number() {
    let lab = Lab::with(&config()).await;
    assert_eq!((vfs(&lab), events(&lab).await), ("2".into(), Vec::new()), "there was nothing to make");
    lab.stop();
    lab.sh(&format!("echo 0 >{NUMBER}"));
    assert_eq!(vfs(&lab), "0");
    // The unit is ready only when the VFs were made.
    lab.sh("systemctl start hotslot");
    assert_eq!(vfs(&lab), "2");
    lab.serve().await;
    let pid = lab.sh("systemctl show hotslot -p MainPID --value");
    assert_eq!(lab.sh(&format!("ps -o user= -p {pid}")), "hotslot");
    assert_eq!(events(&lab).await, [json!([0, 2])]);
    let helper =
        lab.sh("journalctl -u hotslot-helper --no-pager -o cat | grep -c 'set the number of VFs of' || true");
    assert_eq!(helper, "1", "the helper has made them");
    lab.until("nothing disagrees", async || drift(&lab).await == json!([])).await;

    // One VF in use keeps all of them.
    let vf = lab.attach_one("q35", "vf").await;
    lab.sh("sed -i 's/^vfs = 2/vfs = 3/' /etc/hotslot/hotslot.toml; systemctl reload hotslot");
    lab.until("the new number is in force", async || drift(&lab).await[0]["kind"] == "profile-vfs").await;
    let repaired = lab.post("/v2/t/drift", json!({})).await.expect(200).body["drift"].take();
    let left = repaired[0]["left"].as_str().unwrap().to_owned();
    assert!(left.contains(&format!("server q35 has {}", vf["address"].as_str().unwrap())), "{left}");
    assert_eq!(vfs(&lab), "2");
    lab.detach(&vf).await.expect(200);
    let repaired = lab.post("/v2/t/drift", json!({})).await.expect(200).body["drift"].take();
    assert_eq!(repaired[0]["repaired"], true, "{repaired:#}");
    assert_eq!(vfs(&lab), "3");
    assert_eq!(events(&lab).await, [json!([0, 2]), json!([2, 0]), json!([0, 3])]);
    lab.expect_nothing_left().await;
}

/// Repairs, and fails the test unless both VFs have a driver then.
async fn expect_repaired(lab: &Lab, driver: &str) {
    lab.until("the drivers are shown", async || {
        let found = drift(lab).await;
        let is_driver = |one: &Value| one["kind"] == "profile-driver";
        found.as_array().is_some_and(|found| found.iter().filter(|one| is_driver(one)).count() == 2)
    })
    .await;
    let repaired = lab.post("/v2/t/drift", json!({})).await.expect(200).body["drift"].take();
    for one in repaired.as_array().unwrap() {
        assert_eq!(one["repaired"], true, "{repaired:#}");
        assert_eq!(lab.driver(&one["address"]), driver);
    }
    lab.until("nothing disagrees", async || drift(lab).await == json!([])).await;
}

#[tokio::test]
#[ignore = "takes minutes: make long-lab-test"]
async fn a_repair_binds_the_drivers_of_the_profile_and_a_guest_leaves_a_vf_on_its_driver() {
    let lab = Lab::with(&(config() + "driver = \"vfio-pci\"\n")).await;
    expect_repaired(&lab, "vfio-pci").await;
    let vf = lab.attach_one("q35", "vf").await;
    lab.detach(&vf).await.expect(200);
    assert_eq!(lab.driver(&vf["address"]), "vfio-pci");
    lab.sh("sed -i 's/^driver = .*/driver = \"igbvf\"/' /etc/hotslot/hotslot.toml; systemctl reload hotslot");
    expect_repaired(&lab, "igbvf").await;
    lab.expect_nothing_left().await;
}

#[tokio::test]
#[ignore = "takes minutes: make long-lab-test"]
async fn without_the_helper_the_service_starts_and_tells_it() {
    let lab = Lab::with(&config()).await;
    lab.stop();
    lab.sh(&format!("echo 0 >{NUMBER}; systemctl disable --now --quiet hotslot-helper.socket; systemctl stop hotslot-helper"));
    lab.serve().await;
    assert_eq!(vfs(&lab), "0");
    let failed = lab.get("/v2/t/events?kind=host.profile_failed").await.expect(200).body["events"].take();
    let reason = failed[0]["reason"].as_str().unwrap();
    assert!(reason.contains("systemctl enable --now hotslot-helper.socket"), "{reason}");
    assert_eq!(drift(&lab).await[0]["kind"], "profile-vfs");
    // The advice works.
    lab.sh("systemctl enable --now --quiet hotslot-helper.socket");
    let repaired = lab.post("/v2/t/drift", json!({})).await.expect(200).body["drift"].take();
    assert_eq!(repaired[0]["repaired"], true, "{repaired:#}");
    assert_eq!(vfs(&lab), "2");
}

#[tokio::test]
#[ignore = "restarts the VM, which takes minutes: make long-lab-test"]
async fn vfs_are_back_after_a_restart_of_the_machine_and_the_guest_starts_with_its_vf() {
    let lab = Lab::with(&config()).await;
    lab.sh("systemctl enable --quiet hotslot hotslot-helper.socket");
    let vf = lab.attach_one("q35", "vf").await;
    lab.reboot().await;
    lab.until("the service answers", async || {
        lab.try_get("/readyz").await.is_some_and(|answer| answer.status == 200)
    })
    .await;
    // The kernel has made no VFs. The event is committed after they were made.
    lab.until("the VFs are back", async || vfs(&lab) == "2" && !events(&lab).await.is_empty()).await;
    assert_eq!(events(&lab).await, [json!([0, 2])]);
    lab.sh("guest boot q35");
    lab.until("the guest has its VF", async || {
        let rows = lab.attachments(id("q35")).await;
        let row = rows.first().expect("the attachment is still on record");
        let wanted = format!("{} 8086:10ca igbvf", row["inner_address"].as_str().unwrap_or_default());
        row["status"] == "attached" && lab.lspci("q35").contains(&wanted)
    })
    .await;
    lab.detach(&vf).await.expect(200);
    assert_eq!(lab.driver(&vf["address"]), "igbvf");
    lab.expect_nothing_left().await;
}
