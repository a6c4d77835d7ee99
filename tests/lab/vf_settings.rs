//! The settings of VFs that libvirt has no word for, on a real PF: set by route netlink, shown by `ip link`, and put back.

use hotslot_tests::lab::{CONFIG, Lab};
use serde_json::json;

/// Returns the settings of the first VF, as `ip link` shows them. Its MAC address is another one after each use, because the
/// driver of the VF gets a random one.
fn shown(lab: &Lab) -> String {
    lab.sh("ip link show $(ls /sys/bus/pci/devices/$(lab-devices igb-pf)/net) | sed -n '/vf 0/s/.*brd [^,]*, //p'")
}

#[tokio::test]
#[ignore = "takes minutes: make long-lab-test"]
async fn settings_are_set_on_the_pf_with_the_right_to_it_and_put_back() {
    let vf = r#"'{"vendor_id": "8086", "product_id": "10ca"}'"#;
    let trusted = r#"'{"vendor_id": "8086", "product_id": "10ca", "trusted": "true"}'"#;
    assert!(CONFIG.contains(vf));
    let lab = Lab::with(&CONFIG.replace(vf, trusted)).await;
    let before = shown(&lab);
    assert!(before.contains("spoof checking on") && before.contains("trust off"), "{before}");
    let wanted = || json!({ "trusted": true, "spoof_check": false });

    // The unit has not the right to change them.
    let refused = lab.attach_with("q35", "vf", wanted()).await.expect(409);
    assert!(refused.message().contains("CAP_NET_ADMIN"), "{}", refused.message());
    assert_eq!(shown(&lab), before);

    // The lines of docs/devices.md.
    lab.sh(
        "mkdir -p /etc/systemd/system/hotslot.service.d; printf '[Service]\\nCapabilityBoundingSet=CAP_NET_ADMIN\\n\
         AmbientCapabilities=CAP_NET_ADMIN\\nRestrictAddressFamilies=AF_NETLINK\\n' \
         >/etc/systemd/system/hotslot.service.d/vf-settings.conf; systemctl daemon-reload; systemctl stop hotslot",
    );
    lab.serve().await;
    lab.ready().await;
    let attached = lab.attach_with("q35", "vf", wanted()).await.expect(200).body["pci_devices"][0].clone();
    assert_eq!(attached["address"], lab.sh("lab-devices igb-vf0"));
    let set = shown(&lab);
    assert!(set.contains("spoof checking off") && set.contains("trust on"), "{set}");
    // A kill does not lose what the VF had before.
    lab.stop();
    lab.serve().await;
    lab.ready().await;
    lab.detach(&attached).await.expect(200);
    lab.until("they are put back", async || shown(&lab) == before).await;

    // A setting that the driver of the PF does not support is refused with the answer of the kernel, and nothing is changed.
    let refused = lab.attach_with("q35", "vf", json!({ "trusted": true, "link_state": "enable" })).await;
    assert!(
        refused.status == 409 && refused.message().contains("not supported"),
        "{} {}",
        refused.status,
        refused.body
    );
    assert_eq!(shown(&lab), before);
    lab.expect_nothing_left().await;
}
