//! What attachments are after a guest's power cycles.

use hotslot_tests::lab::{Lab, id};

#[tokio::test]
async fn a_reboot_changes_nothing() {
    let lab = Lab::fresh().await;
    let vf = lab.attach_one("q35", "vf").await;
    let wanted = format!("{} 8086:10ca igbvf", vf["inner_address"].as_str().unwrap());
    lab.until("the driver binds in the guest", async || lab.lspci("q35").contains(&wanted)).await;
    let boot = lab.sh("guest exec q35 cat /proc/sys/kernel/random/boot_id");
    lab.sh("virsh -q reboot q35");
    lab.until("the guest has rebooted", async || {
        lab.sh("guest exec q35 cat /proc/sys/kernel/random/boot_id 2>/dev/null || true") != boot
    })
    .await;
    lab.sh("guest boot q35");
    assert!(lab.lspci("q35").contains(&wanted), "{:?}", lab.lspci("q35"));
    let row = &lab.attachments(id("q35")).await[0];
    assert_eq!((&row["status"], &row["inner_address"]), (&"attached".into(), &vf["inner_address"]));
    lab.detach(&vf).await.expect(200);
    lab.expect_nothing_left().await;
}

#[tokio::test]
async fn a_shutdown_and_a_start_bring_it_back() {
    let lab = Lab::fresh().await;
    let vf = lab.attach_one("q35", "vf").await;
    lab.sh("virsh -q shutdown q35");
    lab.until_sh("the guest is off", "virsh -q domstate q35", "shut off").await;
    let server = lab.get(&format!("/v2.1/servers/{}", id("q35"))).await.expect(200);
    assert_eq!(server.body["server"]["status"], "SHUTOFF");
    assert_eq!(lab.attachments(id("q35")).await[0]["status"], "attached");
    lab.sh("guest boot q35");
    lab.until("the record says where the guest sees it now", async || {
        let row = lab.attachments(id("q35")).await[0].clone();
        let wanted = format!("{} 8086:10ca igbvf", row["inner_address"].as_str().unwrap_or_default());
        row["inner_address_source"] == "verified" && lab.lspci("q35").contains(&wanted)
    })
    .await;
    lab.detach(&vf).await.expect(200);
    assert_eq!(lab.driver(&vf["address"]), "igbvf");
    lab.expect_nothing_left().await;
}

#[tokio::test]
async fn a_device_put_into_the_definition_is_there_when_the_guest_starts() {
    let lab = Lab::fresh().await;
    let vf = lab.attach_one("i440fx", "vf").await;
    assert_eq!(lab.driver(&vf["address"]), "igbvf", "nothing is bound for a server that is off");
    lab.sh("guest boot i440fx");
    let wanted = format!("{} 8086:10ca igbvf", vf["inner_address"].as_str().unwrap());
    assert!(lab.lspci("i440fx").contains(&wanted), "{:?}", lab.lspci("i440fx"));
    lab.detach(&vf).await.expect(200);
    lab.expect_nothing_left().await;
}
