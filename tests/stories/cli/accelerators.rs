//! `hotslot accelerator`.

use hotslot_tests::{Hotslot, host};

use super::hotslot;

#[tokio::test]
async fn accelerator_create_is_atomic_and_names_are_unambiguous() {
    let mut service = Hotslot::with(&host("small"), "[accelerators]\ndiscovered = false\n").await;
    let url = service.url().to_owned();
    let hotslot = |arguments: &str| hotslot(&url, arguments);
    let refused = hotslot(r#"accelerator create gpu0 --spec {"num":-1}"#).expect(6);
    assert!(
        refused.err.contains("num is `-1`") && refused.err.contains("gpu0 was not created"),
        "{refused:?}"
    );
    // What the refusal proposes is what these commands take.
    let refused = hotslot(r#"accelerator create gpu0 --spec {"device_type":"GPUU"}"#).expect(6);
    let (_, advice) = refused.err.split_once("write a spec such as '").expect("a spec");
    let spec = advice.split('\'').next().expect("its end").replace(' ', "");
    assert!(!refused.err.contains("acc_specs"), "{refused:?}");
    hotslot("accelerator show gpu0").expect(3);
    let made = hotslot(&format!("accelerator create gpu0 --spec {spec}")).expect(0);
    assert_eq!(made.line("Type:"), ["Type:", "GPU"]);
    hotslot(&format!("accelerator spec gpu0 {spec}")).expect(0);
    hotslot("accelerator delete gpu0").expect(0);
    let nested = hotslot(&format!(r#"accelerator create gpu0 --spec {{"acc_specs":{spec}}}"#)).expect(6);
    assert!(nested.err.contains("the spec has a key `acc_specs` itself"), "{nested:?}");

    hotslot(r#"accelerator create vf0 --spec {"product_id":"10ca"}"#).expect(0);
    hotslot("accelerator attach vf0 --host node1").expect(0);
    let held = hotslot("accelerator delete vf0").expect(4);
    assert!(held.err.contains("accelerator detach vf0"), "{held:?}");
    assert_eq!(hotslot("accelerator list").expect(0).line("vf0")[2], "attached");
    hotslot("accelerator detach vf0").expect(0);
    hotslot("accelerator delete vf0").expect(0);

    // An accelerator whose name is the UUID of another one, and two accelerators of one name.
    let device = service.device("0000:05:00.0").await["uuid"].as_str().expect("a UUID").to_owned();
    hotslot(&format!("accelerator create {device}")).expect(0);
    hotslot("accelerator create node1_0000:06:00.0").expect(0);
    service.kill();
    service.reconfigure("discovered = false", "discovered = true");
    service.start_again().await;
    let url = service.url().to_owned();
    let shown = self::hotslot(&url, &format!("accelerator show {device}")).expect(0);
    assert_eq!(shown.line("UUID:")[1], device);
    // The discovered accelerator of the device gets another name.
    let shown = self::hotslot(&url, "accelerator show node1_0000:06:00.0").expect(0);
    assert!(!shown.out.contains("0000:06:00.0\nServer"), "{shown:?}");
    let device = service.device("0000:06:00.0").await["uuid"].as_str().expect("a UUID").to_owned();
    self::hotslot(&url, &format!("accelerator attach node1_0000:06:00.0_{device} --host node1")).expect(0);
    let shown = self::hotslot(&url, &format!("accelerator show {device}")).expect(0);
    assert_eq!(shown.line("Address:"), ["Address:", "0000:06:00.0"]);
}
