//! Detach reports the actual state: pending while the guest keeps the device, and done when it is gone. Lost unplug
//! requests are repeated, and policies are respected.

use std::time::Instant;

use hotslot_tests::lab::{CONFIG, Lab, id, sh};
use hotslot_tests::path;
use serde_json::Value;

/// Waits until q35 shows a device with its driver. The guest's agent may not answer while the driver probes the device.
async fn bound(lab: &Lab, vf: &Value) {
    let line = format!(
        "guest lspci q35 2>/dev/null | grep -c '^{} 8086:10ca igbvf' || true",
        vf["inner_address"].as_str().unwrap()
    );
    lab.until_sh("the driver binds in the guest", &line, "1").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes minutes: make long-lab-test"]
async fn unplug_completes_after_a_reset_and_is_repeated_for_a_booting_guest() {
    let lab = Lab::fresh().await;
    let vf = lab.attach_one("q35", "vf").await;
    bound(&lab, &vf).await;
    lab.sh("timeout 2 guest exec q35 sh -c 'echo c >/proc/sysrq-trigger' >/dev/null 2>&1 || true");
    lab.until_sh("its kernel panics", "grep -c 'end Kernel panic' /var/log/guest-q35.log || true", "1").await;

    // The timeout has passed: repeated requests have the same outcome.
    for _ in 0..2 {
        let begun = Instant::now();
        let pending = lab.delete(&format!("{}?timeout=3s", path(&vf))).await.expect(409);
        println!("after {:?}: {}", begun.elapsed(), pending.message());
        assert!(pending.message().contains("stays detaching"), "{}", pending.message());
        assert_eq!(lab.get(&path(&vf)).await.expect(200).body["pciAttachment"]["status"], "detaching");
        assert_eq!(lab.driver(&vf["address"]), "vfio-pci");
    }
    let forced = lab.delete(&format!("{}?timeout=3s&force=true", path(&vf))).await.expect(409);
    assert!(forced.message().contains("all that can be done to a running guest"), "{}", forced.message());
    let documents = "virsh dumpxml q35 | grep -c ua-; virsh dumpxml --inactive q35 | grep -c ua- || true";
    assert_eq!(lab.sh(documents), "1\n0");

    // Both services are restarted, so neither can rely on its memory.
    lab.stop();
    lab.sh("systemctl restart libvirtd");
    lab.serve().await;
    lab.sh("systemctl restart libvirtd");
    lab.ready().await;
    let row = lab.get(&path(&vf)).await.expect(200).body["pciAttachment"].clone();
    assert_eq!((&row["status"], &row["forced"]), (&"detaching".into(), &true.into()), "{row:#}");
    lab.sh("virsh -q reset q35");
    let reset = Instant::now();
    lab.until("the reset completes the removal", async || lab.get(&path(&vf)).await.status == 404).await;
    println!("gone {:?} after the reset", reset.elapsed());
    assert_eq!(lab.driver(&vf["address"]), "igbvf");

    // The guest cannot handle the unplug request yet.
    let vf = lab.attach_one("q35", "vf").await;
    let agent = "virsh dumpxml q35 | grep -c \"org.qemu.guest_agent.0' state='connected'\" || true";
    assert_eq!(lab.sh(agent), "0", "the guest has booted already");
    let begun = Instant::now();
    lab.delete(&format!("{}?timeout=100s", path(&vf))).await.expect(200);
    println!("a booting guest let go after {:?}", begun.elapsed());
    assert_eq!(lab.driver(&vf["address"]), "igbvf");
    lab.expect_nothing_left().await;
}

#[tokio::test]
async fn unplug_policies_apply_and_the_agent_quiesces_the_guest() {
    let spec = r#"'{"vendor_id": "8086", "product_id": "10ca"}'"#;
    let kept = sh("lab-devices igb-vf1");
    let refused = format!(r#"'{{"address": "{kept}", "hot_unplug": "refuse"}}'"#);
    // The first call fails.
    let class = r#"
[[detach.class]]
class = "network controller"
hot_unplug = "quiesce"
quiesce = ["/bin/sh", "-c", "test -e /tmp/ready || { touch /tmp/ready; exit 1; }; echo {address} >>/tmp/quiesced"]
"#;
    let config = CONFIG.replace(spec, &format!("{refused},\n  {spec}"));
    let lab = Lab::with(&format!("{config}{class}")).await;
    let vf = lab.attach_one("q35", "vf").await;
    assert_ne!(vf["address"], kept);
    bound(&lab, &vf).await;
    let answer = lab.detach(&vf).await.expect(409);
    println!("{}", answer.message());
    assert!(
        answer.message().contains("is attached: the guest was not requested to release"),
        "{}",
        answer.message()
    );
    assert_eq!(lab.driver(&vf["address"]), "vfio-pci");
    lab.detach(&vf).await.expect(200);
    assert_eq!(lab.sh("guest exec q35 cat /tmp/quiesced"), vf["inner_address"]);

    let answer = lab.attach(id("q35"), "vf:2").await.expect(200);
    let vfs = answer.body["pci_devices"].as_array().unwrap().clone();
    let kept = vfs.iter().find(|vf| vf["address"] == kept).unwrap();
    let answer = lab.detach(kept).await.expect(409);
    assert!(answer.message().contains("hot_unplug = refuse in its device_spec"), "{}", answer.message());
    // As the message says, the detach works when the server is off.
    lab.sh("virsh -q destroy q35");
    for vf in &vfs {
        lab.detach(vf).await.expect(200);
    }
    lab.expect_nothing_left().await;
}
