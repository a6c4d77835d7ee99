//! Ports that a guest gets with its next start, and a host that is frozen.

use hotslot_tests::lab::{Lab, id};

#[tokio::test]
#[ignore = "takes minutes: make long-lab-test"]
async fn a_guest_without_a_free_port_has_room_after_its_next_start() {
    let lab = Lab::fresh().await;
    lab.sh("guest boot full");
    let refused = lab.sh("hotslot attach full vf 2>&1 || true");
    assert!(refused.contains("`hotslot server prepare full --ports 1`"), "{refused}");
    let shown = lab.sh("hotslot server prepare full --ports 2");
    assert_eq!(shown.matches("model='pcie-root-port'").count(), 2, "{shown}");
    let waits = lab.attach(id("full"), "vf:1").await.expect(409);
    assert!(waits.message().contains("shut full off and start it again"), "{}", waits.message());
    lab.sh("guest off full; guest boot full");
    for _ in 0..2 {
        lab.attach_one("full", "vf").await;
    }
    lab.until("the guest sees both", async || {
        lab.lspci("full").iter().filter(|line| line.contains("8086:10ca")).count() == 2
    })
    .await;
    lab.detach_all("full").await;
    lab.expect_nothing_left().await;
}

#[tokio::test]
#[ignore = "takes minutes: make long-lab-test"]
async fn a_frozen_host_is_shown_and_not_touched() {
    let lab = Lab::fresh().await;
    let kept = lab.attach_one("q35", "vf").await;
    lab.sh("hotslot host freeze lab");
    let before = lab.sh("virsh dumpxml q35");
    for answer in [lab.attach(id("q35"), "vf:1").await, lab.detach(&kept).await] {
        assert!(answer.status == 409 && answer.message().contains("was frozen by"), "{}", answer.body);
    }
    assert_eq!(lab.sh("virsh dumpxml q35"), before);
    assert_eq!(lab.attachments(id("q35")).await[0]["status"], "attached");
    // hotslot still sees changes that others make.
    lab.sh("guest off q35");
    let off = async || lab.sh("hotslot server list -o json | grep -c '\"ACTIVE\"' || true") == "0";
    lab.until("the guest is shown as off", off).await;
    lab.sh("hotslot host thaw lab");
    lab.detach(&kept).await.expect(200);
    lab.expect_nothing_left().await;
}
