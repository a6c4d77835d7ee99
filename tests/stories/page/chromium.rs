//! The page in Chromium, as a person uses it: with the mouse, with the keyboard alone, without scripts and behind a proxy.
//! `make page-test` runs these stories.

use std::cell::Cell;

use hotslot_tests::browser::{Browser, ENTER, Look, TAB};
use hotslot_tests::{Hotslot, Q35, prefix};

use super::own::made_up_host;
use crate::door::with_tokens;

#[tokio::test]
#[ignore = "needs Chromium: apt-get install chromium chromium-driver; make page-test"]
async fn a_person_signs_in_looks_around_and_signs_out() {
    let (service, _, _, [admin, ..]) = with_tokens().await;
    let person = Browser::open(service.url(), Look::WIDE).await;
    person.go("/ui").await;
    person.until("Sign in").await;
    person.write("input[name=token]", "hst_wrong").await;
    person.click("main button").await;
    person.find("[role=alert]").await;
    person.write("input[name=token]", &admin).await;
    person.click("main button").await;
    person.until("Hosts").await;
    person.follow("node1").await;
    person.until("assignable devices").await;
    person.follow("0000:05:00.0").await;
    person.until("offered").await;
    person.until("its vendor_id is 8086, not 1234").await;
    person.click(".account button").await;
    person.until("Sign in").await;
    person.go("/ui/hosts").await;
    assert!(person.place().await.starts_with("/ui/sign-in?next=hosts"));
    person.close().await;
}

#[tokio::test]
#[ignore = "needs Chromium: apt-get install chromium chromium-driver; make page-test"]
async fn a_device_is_attached_in_three_clicks_and_watched_until_it_is_gone() {
    let service = Hotslot::on("small").await;
    let person = Browser::open(service.url(), Look::WIDE).await;
    // Somebody else has the page open: it changes by itself.
    let other = Browser::open(service.url(), Look::WIDE).await;
    other.go(&format!("/ui/server?id={Q35}")).await;
    other.until("has no device by hotslot").await;
    other.find("#live.on").await;
    person.go(&format!("/ui/server?id={Q35}")).await;
    person.follow("Attach devices").await;
    // Typing chooses an entry of the list.
    person.write("select[name=alias0]", "vf").await;
    person.click("button[value=check]").await;
    person.until("can be attached").await;
    person.click("button[value=attach]").await;
    person.until("The devices are attached.").await;
    other.until("attached").await;
    other.find("#attachments a.address").await;

    // The steps of the attach are told in words.
    person.find("#steps ol").await;
    person.until("it is plugged in").await;

    // The guest refuses: everything is as before, and the page says so.
    service.sim("fault detach fail nth=2 kind=unplug-refused text=rejected-by-the-guest");
    person.click("#attachments a.button").await;
    person.click("form[data-progress] button").await;
    person.until("detach refused").await;
    person.until("the guest keeps it").await;
    other.until("the guest refused to release the device").await;

    // The guest does not answer: the detach is pending, and the page says so until the guest lets go.
    service.sim("guest q35 unplug=ignore");
    person.click("#attachments a.button").await;
    person.click("form[data-progress] button").await;
    person.until("detaching").await;
    person.until("the guest is asked to release it").await;
    other.until("pending").await;
    service.sim("guest q35 unplug=normal");
    service.sim("reboot q35");
    person.until("has no device by hotslot").await;
    other.until("has no device by hotslot").await;
    person.close().await;
    other.close().await;
    service.expect_clean().await;
}

#[tokio::test]
#[ignore = "needs Chromium: apt-get install chromium chromium-driver; make page-test"]
async fn a_host_that_is_away_looks_stale_and_comes_back() {
    let mut service = Hotslot::on("small").await;
    let person = Browser::open(service.url(), Look::WIDE).await;
    person.go("/ui/hosts").await;
    person.until("up").await;
    service.sim("disconnect");
    person.until("away").await;
    person.find("tr.stale").await;
    service.sim("reconnect");
    person.until("up").await;
    // The service itself ends and comes back at the same address.
    let port = service.url().rsplit(':').next().unwrap().to_owned();
    service.reconfigure("127.0.0.1:0", &format!("127.0.0.1:{port}"));
    service.kill();
    person.find("body.stale").await;
    person.until("not connected").await;
    service.start_again().await;
    person.find("body:not(.stale)").await;
    person.find("#live.on").await;
    person.close().await;
}

#[tokio::test]
#[ignore = "needs Chromium: apt-get install chromium chromium-driver; make page-test"]
async fn drift_is_repaired_with_a_button() {
    let service = Hotslot::on("small").await;
    let attached = service.attach(Q35, "vf:1").await.expect(200).body;
    let address = attached["pci_devices"][0]["address"].as_str().unwrap();
    let person = Browser::open(service.url(), Look::WIDE).await;
    person.go("/ui/drift").await;
    person.until("Nothing disagrees").await;
    service.sim(&format!("unplug q35 {address} config"));
    person.go("/ui/drift").await;
    person.until("it is put into the definition").await;
    person.click("#drift button").await;
    person.until("1 of 1 repaired").await;
    person.until("Nothing disagrees").await;
    person.close().await;
}

#[tokio::test]
#[ignore = "needs Chromium: apt-get install chromium chromium-driver; make page-test"]
async fn the_keyboard_alone_is_enough() {
    let service = Hotslot::on("small").await;
    let person = Browser::open(service.url(), Look::WIDE).await;
    person.go("/ui/servers").await;
    person.press(TAB).await;
    assert_eq!(person.focused().await, "Skip to the content");
    person.press(ENTER).await;
    let to = async |what: &str| {
        for _ in 0..80 {
            person.press(TAB).await;
            // A second line is what is only read out.
            if person.focused().await.lines().next() == Some(what) {
                return;
            }
        }
        panic!("no {what} can be reached: {}", person.text().await);
    };
    to("q35").await;
    person.press(ENTER).await;
    person.until("PCI tree of the guest").await;
    to("Attach devices").await;
    person.press(ENTER).await;
    person.until("Which devices").await;
    while person.script("return document.activeElement.name").await != "alias0" {
        person.press(TAB).await;
    }
    person.press("vf").await;
    to("Check").await;
    person.press(ENTER).await;
    person.until("can be attached").await;
    to("Attach").await;
    person.press(ENTER).await;
    person.until("The devices are attached.").await;
    to("Detach").await;
    person.press(ENTER).await;
    person.until("What happens").await;
    to("Detach").await;
    person.press(ENTER).await;
    person.until("has no device by hotslot").await;
    person.close().await;
    service.expect_clean().await;
}

#[tokio::test]
#[ignore = "needs Chromium: apt-get install chromium chromium-driver; make page-test"]
async fn what_is_open_and_has_the_focus_stays_so_when_the_page_changes() {
    let service = Hotslot::on("small").await;
    let person = Browser::open(service.url(), Look::WIDE).await;
    person.go("/ui/host?host=node1").await;
    person.find("#live.on").await;
    person.until("2 VFs, 2 free").await;
    person.click("details.vfs summary").await;
    person.until("0000:04:10.0").await;
    person.script("document.querySelector('details.vfs summary').focus()").await;
    service.attach(Q35, "vf:1").await.expect(200);
    person.until("2 VFs, 1 free").await;
    person.until("0000:04:10.0").await;
    assert_eq!(person.focused().await, "2 VFs, 1 free");
    person.close().await;
}

#[tokio::test]
#[ignore = "needs Chromium: apt-get install chromium chromium-driver; make page-test"]
async fn a_refusal_is_shown_before_the_attach_with_its_cure() {
    let (_running, api, token) = made_up_host();
    let person = Browser::open(api.url(), Look::WIDE).await;
    // The link signs in.
    person.go(&format!("/ui/sign-in#token={token}")).await;
    person.until("demo").await;
    person.go("/ui/host?host=demo").await;
    // The host runs from this disk.
    person.follow("0000:4b:00.0").await;
    person.until("It is not offered").await;
    assert!(!person.text().await.contains("Attach to a server"));
    person.go("/ui/servers").await;
    person.follow("web1").await;
    person.follow("Attach devices").await;
    person.write("input[name=addresses]", "4b:00.0").await;
    person.click("button[value=check]").await;
    person.until("These devices cannot be attached").await;
    person.until("the host needs 0000:4b:00.0").await;
    person.until("take another device").await;
    assert!(!person.text().await.contains("Attach\n"), "nothing to press: {}", person.text().await);
    // The request is still there, and another one can be attached.
    person.click("details.again summary").await;
    person.script("document.querySelector('input[name=addresses]').value = ''").await;
    person.write("input[name=addresses]", "4c:00.0").await;
    person.click("button[value=check]").await;
    person.until("These devices can be attached").await;
    person.click("button[value=attach]").await;
    person.until("The devices are attached.").await;
    person.close().await;
}

#[tokio::test]
#[ignore = "needs Chromium: apt-get install chromium chromium-driver; make page-test"]
async fn a_refused_setting_of_a_vf_names_its_field_and_keeps_the_form() {
    let service = Hotslot::on("small").await;
    let person = Browser::open(service.url(), Look::PHONE).await;
    person.go(&format!("/ui/attach?id={Q35}")).await;
    person.write("select[name=alias0]", "vf").await;
    person.click("form details summary").await;
    person.write("input[name=min_tx_rate]", "100").await;
    person.write("input[name=max_tx_rate]", "10").await;
    person.write("select[name=link_state]", "enable").await;
    person.click("button[value=check]").await;
    person.until("Correct the field \u{201c}Minimum rate, in Mbit/s\u{201d}.").await;
    // The form is open, and has what was written.
    person.find("input[name=min_tx_rate][aria-invalid]").await;
    let written = "return document.querySelector('form.stack [name=max_tx_rate]').value";
    assert_eq!(person.script(written).await, "10");
    person.script("document.querySelector('input[name=min_tx_rate]').value = ''").await;
    person.write("input[name=min_tx_rate]", "5").await;
    person.click("button[value=check]").await;
    person.until("can be attached").await;
    person.until("Settings of each VF").await;
    person.click("button[value=attach]").await;
    person.until("The devices are attached.").await;
    let vf = service.attachments(Q35).await[0].clone();
    assert_eq!(
        (&vf["min_tx_rate"], &vf["max_tx_rate"], &vf["link_state"]),
        (&5.into(), &10.into(), &"enable".into())
    );
    person.close().await;
}

#[tokio::test]
#[ignore = "needs Chromium: apt-get install chromium chromium-driver; make page-test"]
async fn an_accelerator_is_made_and_used_with_and_without_scripts() {
    for look in [Look::WIDE, Look { scripts: false, ..Look::WIDE }] {
        let service = Hotslot::on("small").await;
        let person = Browser::open(service.url(), look).await;
        person.go("/ui/accelerators").await;
        person.follow("Create an accelerator").await;
        person.write("input[name=name]", "fast").await;
        person.write("select[name=device_type]", "NIC").await;
        person.click("form details summary").await;
        person.write("input[name=vendor_id]", "8086").await;
        person.write("input[name=product_id]", "10ca").await;
        person.click("button[value=check]").await;
        person.until("it takes any assignable device of type NIC").await;
        person.click("button[value=create]").await;
        person.until("The accelerator is created.").await;
        person.follow("Attach to a server").await;
        person.write("select[name=server]", "q35").await;
        person.click("button[value=check]").await;
        person.until("can be attached").await;
        person.click("button[value=attach]").await;
        person.until("The devices are attached.").await;
        person.follow("Accelerators").await;
        person.until("q35").await;
        person.follow("fast").await;
        person.follow("Detach").await;
        person.until("What happens").await;
        person.click("button[value=detach]").await;
        person.until("holds no device any more").await;
        person.follow("Delete").await;
        person.click("button[value=delete]").await;
        person.until("There is no accelerator.").await;
        person.follow("Create a device profile").await;
        person.write("input[name=name]", "nic").await;
        person.click(".stack button").await;
        person.until("1 of GPU").await;
        person.follow("Delete").await;
        person.until("No server loses a device.").await;
        person.click("main form button").await;
        person.until("There is no device profile.").await;
        person.close().await;
        service.expect_clean().await;
    }
}

#[tokio::test]
#[ignore = "needs Chromium: apt-get install chromium chromium-driver; make page-test"]
async fn an_accelerator_is_made_with_the_keyboard_alone() {
    let service = Hotslot::on("small").await;
    let person = Browser::open(service.url(), Look::WIDE).await;
    person.go("/ui/accelerator-new").await;
    let to_field = async |name: &str| {
        for _ in 0..40 {
            person.press(TAB).await;
            if person.script("return document.activeElement.name || ''").await == name {
                return;
            }
        }
        panic!("no {name} can be reached: {}", person.text().await);
    };
    // The order of the keyboard is that of the form.
    to_field("name").await;
    person.press("gpu0").await;
    to_field("device_type").await;
    person.press("GPU").await;
    to_field("num").await;
    to_field("step").await;
    person.press(ENTER).await;
    person.until("it takes any assignable device of type GPU").await;
    to_field("step").await;
    person.press(ENTER).await;
    person.until("The accelerator is created.").await;
    person.close().await;
}

#[tokio::test]
#[ignore = "needs Chromium: apt-get install chromium chromium-driver; make page-test"]
async fn a_rule_is_previewed_saved_and_removed() {
    let service = Hotslot::on("small").await;
    let person = Browser::open(service.url(), Look::WIDE).await;
    person.go("/ui/rules").await;
    person.click("a[href='rule?kind=alias']").await;
    let entry = r#"{"name": "fast", "vendor_id": "8086", "product_id": "10ca"}"#;
    person.script("document.querySelector('textarea').value = ''").await;
    person.write("textarea", entry).await;
    person.click("button[value=preview]").await;
    person.until("Nothing was saved yet").await;
    person.until("0000:04:10.0").await;
    person.click("button[value=save]").await;
    person.until("\"fast\"").await;
    // The new alias can be chosen at once.
    person.go(&format!("/ui/attach?id={Q35}")).await;
    person.write("select[name=alias0]", "fast").await;
    person.click("button[value=check]").await;
    person.until("can be attached").await;
    person.go("/ui/rules").await;
    person.follow("Change").await;
    person.click("button[value=remove]").await;
    person.find("a[href='rule?kind=alias']").await;
    assert!(!person.text().await.contains("\"fast\""), "{}", person.text().await);
    person.close().await;
}

#[tokio::test]
#[ignore = "needs Chromium: apt-get install chromium chromium-driver; make page-test"]
async fn whoever_has_no_right_sees_no_button() {
    let (service, _, _, [_, reader, _]) = with_tokens().await;
    let person = Browser::open(service.url(), Look::WIDE).await;
    person.go("/ui/sign-in").await;
    person.write("input[name=token]", &reader).await;
    person.click("main button").await;
    person.follow("Rules").await;
    person.until("Assignable devices").await;
    assert!(!person.text().await.contains("Add an entry"));
    person.go("/ui/rule?kind=alias").await;
    person.until("You may not do this").await;
    person.until("ask an administrator").await;
    person.follow("first page").await;
    person.until("node1").await;
    person.close().await;
}

#[tokio::test]
#[ignore = "needs Chromium: apt-get install chromium chromium-driver; make page-test"]
async fn without_scripts_everything_works_but_live_updates() {
    let service = Hotslot::on("small").await;
    let person = Browser::open(service.url(), Look { scripts: false, ..Look::WIDE }).await;
    person.go(&format!("/ui/attach?id={Q35}")).await;
    // Typing chooses an entry of the list.
    person.write("select[name=alias0]", "vf").await;
    person.click("button[value=check]").await;
    person.until("can be attached").await;
    person.click("button[value=attach]").await;
    person.until("The devices are attached.").await;
    person.click("#attachments a.button").await;
    person.click("form[data-progress] button").await;
    service.until("it is gone", async || service.attachments(Q35).await.is_empty()).await;
    person.go(&format!("/ui/server?id={Q35}")).await;
    person.until("has no device by hotslot").await;
    person.follow("Hosts").await;
    person.follow("node1").await;
    // What is closed at first opens without a script too.
    person.click("details.vfs summary").await;
    person.until("0000:04:10.2").await;
    person.close().await;
    service.expect_clean().await;
}

#[tokio::test]
#[ignore = "needs Chromium: apt-get install chromium chromium-driver; make page-test"]
async fn the_steps_of_an_attach_are_shown_while_it_lasts() {
    let service = Hotslot::on("small").await;
    let person = Browser::open(service.url(), Look::WIDE).await;
    let other = Browser::open(service.url(), Look::WIDE).await;
    other.go(&format!("/ui/server?id={Q35}")).await;
    other.find("#live.on").await;
    person.go(&format!("/ui/attach?id={Q35}")).await;
    person.write("select[name=alias0]", "vf").await;
    person.click("button[value=check]").await;
    person.until("can be attached").await;
    person.find("#live.on").await;
    // WebDriver says nothing while the form waits, so the page itself keeps what it shows.
    let keep = "const list = document.getElementById('progress'); new MutationObserver(() => \
                sessionStorage.shown += list.textContent).observe(list, { childList: true });";
    person.script(keep).await;
    // libvirt does not answer: the form waits, and both windows tell what for.
    service.sim("fault attach hang");
    let doing = "libvirt is plugging the device";
    let seen = async {
        other.until(doing).await;
        other.close().await;
        // Only the window with the form reads pages now. What it has read, it shows before it reads the next time.
        let (start, own) = (answered(&service).await, Cell::new(0));
        service
            .until("the form has shown it", async || {
                own.set(own.get() + 1);
                answered(&service).await >= start + own.get() + 3
            })
            .await;
        service.sim("fault clear");
    };
    tokio::join!(person.click("button[value=attach]"), seen);
    person.until("The devices are attached.").await;
    let shown = person.script("return sessionStorage.shown").await;
    assert!(shown.as_str().unwrap().contains(doing), "{shown}");
    assert!(!person.text().await.contains(doing), "it is done");

    // A detach tells how often the guest was asked.
    service.sim("guest q35 unplug=ignore");
    person.click("#attachments a.button").await;
    person.click("form[data-progress] button").await;
    person.until("asked the guest to release the device, attempt ").await;
    service.sim("guest q35 unplug=normal");
    service.sim("reboot q35");
    person.until("has no device by hotslot").await;
    person.close().await;
    service.expect_clean().await;
}

/// Returns how many GET requests the service has answered, without the one that asks it.
async fn answered(service: &Hotslot) -> u64 {
    let metrics = service.get("/metrics").await.expect(200).body;
    let lines = metrics.as_str().unwrap().lines();
    let counts = lines.filter(|line| {
        line.starts_with("hotslot_http_request_duration_seconds_count{") && line.contains("method=\"GET\"")
    });
    counts.filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok()).sum()
}

#[tokio::test]
#[ignore = "needs Chromium: apt-get install chromium chromium-driver; make page-test"]
async fn everything_works_under_a_prefix() {
    let (service, _, _, [admin, ..]) = with_tokens().await;
    let port = service.url().rsplit(':').next().unwrap().parse().unwrap();
    let person = Browser::open(&prefix::under("/prefix", port).await, Look::WIDE).await;
    person.go("/prefix/ui/").await;
    person.until("Sign in").await;
    assert!(person.place().await.starts_with("/prefix/ui/sign-in"));
    person.write("input[name=token]", &admin).await;
    person.click("main button").await;
    person.until("Hosts").await;
    person.follow("Servers").await;
    person.follow("q35").await;
    person.find("#live.on").await;
    person.follow("Attach devices").await;
    person.write("select[name=alias0]", "vf").await;
    person.click("button[value=check]").await;
    person.until("can be attached").await;
    person.click("button[value=attach]").await;
    person.until("The devices are attached.").await;
    assert!(person.place().await.starts_with("/prefix/ui/server?id="));
    person.click(".account button").await;
    person.until("Sign in").await;
    assert_eq!(person.place().await, "/prefix/ui/sign-in");
    person.close().await;
}
