//! The page in Chromium, as a person uses it: with the mouse, with the keyboard alone, without scripts, in the dark and on a
//! phone. `make page-test` runs these stories, and `make screenshots` writes a picture of each page.

use std::path::Path;

use hotslot_tests::browser::{Browser, ENTER, Look, TAB, axe};
use hotslot_tests::{Hotslot, Q35, prefix};

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
    for _ in 0..8 {
        person.press(TAB).await;
        if person.focused().await == "q35" {
            break;
        }
    }
    person.press(ENTER).await;
    person.until("PCI tree of the guest").await;
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
    person.close().await;
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
    // WebDriver answers nothing while the form waits, so the page itself keeps what it shows.
    let keep = "const list = document.getElementById('progress'); new MutationObserver(() => \
                sessionStorage.setItem('shown', list.textContent)).observe(list, { childList: true });";
    person.script(keep).await;
    // libvirt does not answer: the form waits, and both windows tell what for.
    service.sim("fault attach hang");
    let seen = async {
        other.until("is now plugged into the guest").await;
        service.sim("fault clear");
    };
    tokio::join!(person.click("button[value=attach]"), seen);
    person.until("The devices are attached.").await;
    let shown = person.script("return sessionStorage.getItem('shown')").await;
    assert!(shown.as_str().unwrap().contains("is now plugged into the guest"), "{shown}");
    other.find("#attachments a.address").await;
    person.close().await;
    other.close().await;
    service.expect_clean().await;
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

/// The pages, by the names of their pictures. `<attachment>` is that of the guest q35.
const PAGES: [(&str, &str); 18] = [
    ("sign-in", "sign-in"),
    ("account", "account"),
    ("hosts", "hosts"),
    ("host", "host?host=node1"),
    ("functions", "host?host=node1&q=network"),
    ("function", "function?host=node1&address=0000:04:10.2"),
    ("servers", "servers"),
    ("server", "server?id=<q35>"),
    ("attach", "attach?id=<q35>"),
    ("detach", "detach?server=<q35>&attachment=<attachment>"),
    ("accelerators", "accelerators"),
    ("rules", "rules"),
    ("rule", "rule?kind=alias"),
    ("attach-to", "attach?host=node1&address=0000:04:10.2"),
    ("quotas", "quotas?project=p"),
    ("webhooks", "webhooks"),
    ("drift", "drift"),
    ("events", "events"),
];

#[tokio::test]
#[ignore = "needs Chromium: apt-get install chromium chromium-driver; make page-test"]
async fn no_page_has_a_barrier() {
    let service = Hotslot::on("small").await;
    let attached = service.attach(Q35, "vf:1").await.expect(200).body;
    let id = attached["pci_devices"][0]["attachment_id"].as_str().unwrap();
    let (pictures, axe, mut wrong) = (std::env::var_os("HOTSLOT_SCREENSHOTS"), axe(), Vec::new());
    for (look, name) in [(Look::WIDE, "light"), (Look::DARK, "dark"), (Look::PHONE, "phone")] {
        let person = Browser::open(service.url(), look).await;
        for (page, path) in PAGES {
            person.go(&format!("/ui/{}", path.replace("<q35>", Q35).replace("<attachment>", id))).await;
            person.find("main h1").await;
            let barriers = person.barriers(&axe).await;
            wrong.extend(barriers.into_iter().map(|barrier| format!("{page}, {name}: {barrier}")));
            // Nothing is wider than the window.
            let over = person.script("return document.documentElement.scrollWidth - window.innerWidth").await;
            if over.as_i64() > Some(0) {
                wrong.push(format!("{page}, {name}: {over} pixels wider than the window"));
            }
            if let Some(folder) = &pictures {
                std::fs::create_dir_all(folder).unwrap();
                person.picture(&Path::new(folder).join(format!("{page}-{name}.png"))).await;
            }
        }
        person.close().await;
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
