//! What others do to guests and devices behind hotslot's back: seen, told, and brought in line.

use hotslot_tests::{Hotslot, I440FX, Q35, SWITCH};
use serde_json::json;

const VF0: &str = "0000:04:10.0";
const VF1: &str = "0000:04:10.2";

/// The function, as `os-hypervisors/…/pci_devices/…` explains it.
async fn explained(service: &Hotslot, address: &str) -> serde_json::Value {
    let path = format!("/v2/t/os-hypervisors/1/pci_devices/{address}");
    service.get(&path).await.expect(200).body["pci_device"].clone()
}

#[tokio::test]
async fn what_others_plugged_is_shown_and_offered_to_nobody() {
    let service = Hotslot::on("small").await;
    for (place, domain, live, persistent) in
        [("live", "i440fx", true, false), ("both", "i440fx", true, true), ("config", "switch", false, true)]
    {
        service.sim(&format!("plug {domain} {VF0} {place}"));
        if !live {
            // libvirt says nothing of a definition that changed; the next look at the domain sees it.
            service.sim(&format!("start {domain}"));
            service.sim(&format!("destroy {domain}"));
        }
        let owner = format!("foreign: domain {domain}");
        service
            .until("it is seen", async || {
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
        // Its PF goes with it; the other VF does not.
        let pf = explained(&service, "0000:04:00.0").await;
        assert!(pf["withheld"].as_str().unwrap().contains(&format!("domain {domain}")), "{pf}");

        let both = service.attach(Q35, "vf:2").await.expect(409);
        assert!(both.message().contains("withheld"), "{}", both.message());
        let other = service.attach(Q35, "vf:1").await.expect(200).body["pci_devices"][0].clone();
        assert_eq!(other["address"], VF1);
        service.delete(&hotslot_tests::path(&other)).await.expect(200);
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
async fn a_foreign_device_goes_with_the_domain_that_had_it() {
    let service = Hotslot::on("small").await;
    service.sim(&format!("plug switch {VF0} config"));
    service.sim("start switch");
    let owner = async || service.functions().await[VF0]["owner"].clone();
    service.until("it is seen", async || owner().await == json!("foreign: domain switch")).await;
    // As long as the definition has it, it is spoken for.
    service.sim("destroy switch");
    service.until("it is off", async || service.functions().await[VF0]["foreign"]["live"] == false).await;
    assert_eq!(owner().await, "foreign: domain switch");
    service.sim("undefine switch");
    service.until("nobody has it", async || owner().await == json!(null)).await;
    service.get(&format!("/v2/t/servers/{SWITCH}")).await.expect(404);
    service.attach(I440FX, "vf:2").await.expect(200);
}

#[tokio::test]
async fn one_event_costs_a_look_at_one_domain() {
    let service = Hotslot::on("small").await;
    let looks = || service.log().matches("compared server").count();
    service
        .until("it is quiet", async || {
            let before = looks();
            tokio::time::sleep(std::time::Duration::from_millis(300)).await;
            before == looks()
        })
        .await;
    let before = looks();
    service.sim(&format!("plug q35 {VF0} live"));
    let seen = async || service.functions().await[VF0]["owner"] == json!("foreign: domain q35");
    service.until("it is seen", seen).await;
    assert_eq!(looks() - before, 1);
}
