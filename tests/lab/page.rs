//! The page in the lab: a person plugs a real device into a running guest, by clicks alone.

use hotslot_tests::browser::{Browser, Look};
use hotslot_tests::lab::{CONFIG, Lab, PATIENCE, id};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_person_attaches_and_detaches_a_device_by_the_page() {
    let lab = Lab::with(&format!("{CONFIG}[identity]\ntokens = \"/etc/hotslot/tokens\"\n")).await;
    let token = lab.sh("rm -f /etc/hotslot/tokens; \
         hotslot token create ops --role admin --config /etc/hotslot/hotslot.toml 2>/dev/null; \
         chown hotslot: /etc/hotslot/tokens");
    let person = Browser::open(lab.url(), Look::WIDE).await.patient(PATIENCE);
    // The connection is that of root in the VM. The sign-in makes it the session of the token.
    person.go("/ui/sign-in").await;
    person.write("input[name=token]", &token).await;
    person.click("main button").await;
    person.until("ops").await;
    person.follow("lab").await;
    person.until("assignable devices").await;
    person.until("82576").await;

    person.go("/ui/servers").await;
    person.follow("q35").await;
    person.until("has no device by hotslot").await;
    person.find("#live.on").await;
    person.follow("Attach devices").await;
    person.write("select[name=alias0]", "vf").await;
    person.click("button[value=check]").await;
    person.until("can be attached").await;
    person.click("button[value=attach]").await;
    person.until("The devices are attached.").await;
    person.until("it is plugged in").await;

    let attached = lab.attachments(id("q35")).await.remove(0);
    let seen = format!(
        "guest lspci q35 2>/dev/null | grep -c '^{} 8086:10ca' || true",
        attached["inner_address"].as_str().unwrap()
    );
    lab.until_sh("the guest sees the device", &seen, "1").await;
    assert_eq!(lab.driver(&attached["address"]), "vfio-pci");
    // Before its driver has probed the device, a guest may not answer an unplug request.
    let bound = seen.replace("8086:10ca'", "8086:10ca igbvf'");
    lab.until_sh("the driver binds in the guest", &bound, "1").await;

    person.click("#attachments a.button").await;
    person.until("What happens").await;
    person.click("form[data-progress] button").await;
    person.until("has no device by hotslot").await;
    lab.until_sh("the guest has let it go", &seen, "0").await;
    assert_eq!(lab.driver(&attached["address"]), "igbvf");
    person.close().await;
    lab.expect_nothing_left().await;
}
