//! Attachments after power cycles of a guest.

use hotslot_tests::lab::{Lab, id};
use hotslot_tests::path;
use serde_json::json;

#[tokio::test]
#[ignore = "takes a minute or more: make long-lab-test"]
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
async fn a_device_is_present_again_after_shutdown_and_start() {
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
#[ignore = "takes a minute or more: make long-lab-test"]
async fn a_device_added_to_the_definition_is_present_after_the_start() {
    let lab = Lab::fresh().await;
    let vf = lab.attach_one("i440fx", "vf").await;
    assert_eq!(lab.driver(&vf["address"]), "igbvf", "nothing is bound for a server that is off");
    lab.sh("guest boot i440fx");
    let wanted = format!("{} 8086:10ca igbvf", vf["inner_address"].as_str().unwrap());
    assert!(lab.lspci("i440fx").contains(&wanted), "{:?}", lab.lspci("i440fx"));
    lab.detach(&vf).await.expect(200);
    lab.expect_nothing_left().await;
}

/// A command that kills the QEMU process of q35.
const KILL: &str = "kill -KILL $(cat /run/libvirt/qemu/q35.pid)";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes a minute or more: make long-lab-test"]
async fn qemu_is_killed_with_a_device_and_during_attach_and_detach() {
    let lab = Lab::fresh().await;
    let off = "virsh -q domstate q35";

    // During a detach that waits for the guest, which cannot answer.
    let vf = lab.attach_one("q35", "vf").await;
    lab.sh("virsh -q suspend q35");
    let (api, delete) = (lab.api.clone(), format!("{}?timeout=60s", path(&vf)));
    let waiting = tokio::spawn(async move { api.delete(&delete).await });
    lab.until_sh("the detach waits", "virsh dumpxml --inactive q35 | grep -c ua- || true", "0").await;
    lab.sh(KILL);
    waiting.await.unwrap().expect(200);
    println!("detach: agreement after {:?}", lab.agreed("q35").await);
    assert_eq!(lab.attachments(id("q35")).await, [json!(null); 0]);
    assert_eq!(lab.driver(&vf["address"]), "igbvf");

    // During the plug of a device.
    lab.sh("virsh -q start q35");
    lab.once("attaching", &format!("sleep 0.5; {KILL}")).await;
    let answer = lab.attach(id("q35"), "vf:1").await;
    lab.hit().await;
    lab.until_sh("the guest is off", off, "shut off").await;
    println!("attach: {} {}; agreement after {:?}", answer.status, answer.message(), lab.agreed("q35").await);
    let rows = lab.attachments(id("q35")).await;
    assert_eq!(rows.len(), usize::from(answer.status == 200), "{rows:#?}");
    for vf in &rows {
        lab.detach(vf).await.expect(200);
    }

    // With an attached device: the definition still has it.
    lab.sh("virsh -q start q35");
    let vf = lab.attach_one("q35", "vf").await;
    lab.sh(KILL);
    lab.until_sh("the guest is off", off, "shut off").await;
    println!("attached: agreement after {:?}", lab.agreed("q35").await);
    let row = &lab.attachments(id("q35")).await[0];
    assert_eq!((&row["attachment_id"], &row["status"]), (&vf["attachment_id"], &"attached".into()));
    assert_eq!(lab.driver(&vf["address"]), "igbvf", "its host driver is back");
    lab.detach(&vf).await.expect(200);
    lab.expect_nothing_left().await;
}

#[tokio::test]
#[ignore = "takes about two minutes: make long-lab-test"]
async fn a_guest_is_saved_and_restored_destroyed_renamed_and_undefined() {
    let lab = Lab::fresh().await;
    let row = async || lab.attachments(id("q35")).await[0].clone();

    // A device that is added to the definition of a saved guest is not present when the guest is restored.
    lab.sh("virsh -q managedsave q35");
    let vf = lab.attach_one("q35", "vf").await;
    lab.sh("virsh -q start q35");
    lab.until("the reason is shown", async || row().await["status_reason"].is_string()).await;
    let shown = row().await;
    assert_eq!(shown["status"], "attached", "{shown:#}");
    assert!(shown["status_reason"].as_str().unwrap().contains("with the next start"), "{shown:#}");
    let drift = lab.get("/v2/t/drift").await.expect(200).body["drift"].clone();
    assert_eq!((drift.as_array().unwrap().len(), &drift[0]["kind"]), (1, &"not-live".into()), "{drift:#}");
    let repaired = lab.post("/v2/t/drift", json!({})).await.expect(200).body["drift"].clone();
    assert_eq!(repaired[0]["repaired"], true, "{repaired:#}");
    println!("repaired: agreement after {:?}", lab.agreed("q35").await);
    assert_eq!(row().await["status_reason"], json!(null));

    // libvirt does not save a guest with a host device, and the attempt changes nothing.
    let before = row().await;
    let refused = lab.sh("virsh -q managedsave q35 2>&1 || virsh -q save q35 /var/tmp/q35.save 2>&1 || true");
    assert!(refused.contains("error"), "{refused}");
    println!("{refused}");
    println!("not saved: agreement after {:?}", lab.agreed("q35").await);
    assert_eq!(row().await["status"], before["status"]);

    lab.sh("virsh -q destroy q35");
    println!("destroyed: agreement after {:?}", lab.agreed("q35").await);
    assert_eq!((&row().await["status"], lab.driver(&vf["address"]).as_str()), (&"attached".into(), "igbvf"));
    lab.sh("virsh -q start q35");
    println!("started: agreement after {:?}", lab.agreed("q35").await);
    assert_eq!(row().await["inner_address"], before["inner_address"]);
    assert_eq!(lab.driver(&vf["address"]), "vfio-pci");

    lab.sh("virsh -q destroy q35; virsh -q domrename q35 renamed");
    println!("renamed: agreement after {:?}", lab.agreed("q35").await);
    let server = lab.get(&format!("/v2.1/servers/{}", id("q35"))).await.expect(200).body["server"].clone();
    assert_eq!((&server["name"], &row().await["status"]), (&"renamed".into(), &"attached".into()));

    lab.sh("virsh -q undefine renamed");
    lab.until("the server is gone", async || lab.get(&path(&vf)).await.status == 404).await;
    let ended =
        lab.get("/v2/t/os-pci_attachments?ended=true").await.expect(200).body["pciAttachment"].clone();
    assert_eq!(ended[0]["status_reason"], "the server is gone", "{ended:#}");
    lab.expect_nothing_left().await;
}
