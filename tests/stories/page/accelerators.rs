//! Accelerators, accelerator requests and device profiles on the page, without a browser.

use hotslot_tests::{Hotslot, Q35, SWITCH, host, without_mdevs};
use reqwest::Method;
use serde_json::{Value, json};

use super::person::{Person, html, place};
use crate::door::with_tokens;

/// The fields of an accelerator that takes a VF of the simulated host.
const FAST: [(&str, &str); 5] =
    [("name", "fast"), ("device_type", "NIC"), ("num", "1"), ("vendor_id", "8086"), ("product_id", "10ca")];

async fn accelerators(service: &Hotslot) -> Vec<Value> {
    service.get("/v1/accelerators").await.expect(200).body["accelerators"].as_array().unwrap().clone()
}

/// Creates the accelerator, and returns its id.
async fn fast(service: &Hotslot, person: &mut Person<'_>) -> String {
    let fields = [&FAST[..], &[("step", "create")]].concat();
    let made = person.send("accelerator-new", "accelerator-new", &fields).await.expect(303);
    let page = person.get(place(&made)).await.expect(200);
    assert!(html(&page).contains("The accelerator is created."), "{}", html(&page));
    let found = accelerators(service).await.into_iter().find(|one| one["name"] == "fast").unwrap();
    found["uuid"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn an_accelerator_is_created_after_the_page_says_what_it_takes() {
    let service = Hotslot::on("small").await;
    let mut person = Person::at(&service);
    let list = person.get("accelerators").await.expect(200);
    assert!(html(&list).contains("Create an accelerator"), "{}", html(&list));
    let fields = [&FAST[..], &[("step", "check")]].concat();
    let checked = person.send("accelerator-new", "accelerator-new", &fields).await.expect(200);
    let takes = "any assignable device of type NIC with vendor_id 8086, product_id 10ca";
    assert!(html(&checked).contains(takes) && html(&checked).contains("Create fast"), "{}", html(&checked));
    assert!(accelerators(&service).await.is_empty(), "a check changes nothing");
    // The checks are those of the API, and the form keeps what was written.
    for (key, value, field) in [
        ("vendor_id", "intel", "Vendor id"),
        ("num", "300", "Number of devices"),
        ("num", "many", "Number of devices"),
        ("num", "0", "Number of devices"),
        ("numa_node", "1024", "NUMA node of the host"),
        ("acc_capability", r#"{"a": "\u0000"}"#, "Required capabilities"),
        ("acc_capability", r#"{"a": 1, "a": 2}"#, "Required capabilities"),
        ("numa_node", "-1", "NUMA node of the host"),
        ("device_type", "BANANA", "Type of the devices"),
        ("mdev_type", "a/b", "Type of mediated devices"),
        ("acc_capability", "{", "Required capabilities"),
        ("acc_capability", "[]", "Required capabilities"),
    ] {
        for step in ["check", "create"] {
            let fields = [("name", "fast"), (key, value), ("step", step)];
            let refused = person.send("accelerator-new", "accelerator-new", &fields).await.expect(400);
            let page = html(&refused);
            assert!(page.contains(&format!("Correct the field \u{201c}{field}")), "{key} {value}: {page}");
            assert!(page.contains("aria-invalid=\"true\"") && page.contains("value=\"fast\""), "{page}");
            assert!(!page.contains("acc_specs") && !page.contains("<p>acc_capability"), "{page}");
        }
    }
    let long = "n".repeat(256);
    for name in ["", "  ", &long] {
        for step in ["check", "create"] {
            let fields = [("name", name), ("device_type", "NIC"), ("step", step)];
            let refused = person.send("accelerator-new", "accelerator-new", &fields).await.expect(400);
            let page = html(&refused);
            assert!(page.contains("<p>the name must have 1 to 255 characters</p>"), "{page}");
        }
    }
    let large = format!("{{\"a\": \"{}\"}}", "x".repeat(4096));
    let fields = [("name", "large"), ("acc_capability", large.as_str()), ("step", "check")];
    let refused = person.send("accelerator-new", "accelerator-new", &fields).await.expect(400);
    assert!(html(&refused).contains("so that it has at most 4096"), "{}", html(&refused));
    // A backslash before the digits is no U+0000.
    let fields = [("name", "fast"), ("acc_capability", r#"{"a": "\\u0000"}"#), ("step", "check")];
    person.send("accelerator-new", "accelerator-new", &fields).await.expect(200);
    assert!(accelerators(&service).await.is_empty());

    let key = ("key", "8e45a2ea-5364-4b0d-a252-bf8becaa606e");
    let fields = [&FAST[..], &[key, ("step", "create")]].concat();
    let made = person.send("accelerator-new", "accelerator-new", &fields).await.expect(303);
    assert_eq!(place(&made), format!("accelerator?id={}&done=created", key.1));
    // A form that is sent twice makes one.
    let again = person.send("accelerator-new", "accelerator-new", &fields).await.expect(303);
    assert_eq!(place(&again), place(&made));
    assert_eq!(accelerators(&service).await.len(), 1);
    // Something else under its name, or with its key, is not what was asked for.
    let check = [&FAST[..], &[("step", "check")]].concat();
    let taken = person.send("accelerator-new", "accelerator-new", &check).await.expect(409);
    assert!(html(&taken).contains("has this name already"), "{}", html(&taken));
    for other in [("num", "2"), ("name", "slow")] {
        let kept = FAST.into_iter().filter(|(key, _)| *key != other.0);
        let fields: Vec<_> = kept.chain([other, key, ("step", "create")]).collect();
        person.send("accelerator-new", "accelerator-new", &fields).await.expect(409);
    }
    assert_eq!(accelerators(&service).await.len(), 1);

    let path = format!("/v1/accelerators/{}", key.1);
    let spec = json!({ "acc_specs": { "device_type": "NIC", "remote": 1, "mine": [1] } });
    service.put(&path, spec).await.expect(200);
    let form = format!("accelerator-spec?id={}", key.1);
    let fields = [("id", key.1), ("device_type", "NIC"), ("num", "2")];
    let check = [&fields[..], &[("step", "check")]].concat();
    let checked = person.send(&form, "accelerator-spec", &check).await.expect(200);
    assert!(html(&checked).contains("any 2 assignable devices of type NIC"), "{}", html(&checked));
    let save = [&fields[..], &[("step", "save")]].concat();
    person.send(&form, "accelerator-spec", &save).await.expect(303);
    // What the form does not have stays.
    let specs = service.get(&path).await.expect(200).body["acc_specs"].clone();
    assert_eq!(
        specs,
        json!({ "device_type": "NIC", "num": 2, "remote": 1, "mine": [1], "acc_capability": {} })
    );
    service.expect_clean().await;
}

#[tokio::test]
async fn an_accelerator_is_attached_with_a_verdict_before_and_detached() {
    let service = Hotslot::on("small").await;
    let mut person = Person::at(&service);
    let id = fast(&service, &mut person).await;
    let form = format!("accelerator-attach?id={id}");
    let page = person.get(&form).await.expect(200);
    assert!(html(&page).contains(&format!("<option value=\"{Q35}\">q35</option>")), "{}", html(&page));
    assert!(!html(&page).contains("any_device"), "it names its devices: {}", html(&page));
    let asked = [("id", id.as_str()), ("server", Q35)];
    let check = [&asked[..], &[("step", "check")]].concat();
    let checked = person.send(&form, "accelerator-attach", &check).await.expect(200);
    let page = html(&checked);
    assert!(page.contains("These devices can be attached") && page.contains("0000:04:10."), "{page}");
    assert!(service.attachments(Q35).await.is_empty(), "a check changes nothing");
    let attach = [&asked[..], &[("step", "attach")]].concat();
    let done = person.send(&form, "accelerator-attach", &attach).await.expect(303);
    assert!(place(&done).starts_with(&format!("server?id={Q35}&of=")), "{}", place(&done));
    let page = person.get(place(&done)).await.expect(200);
    assert!(html(&page).contains("The devices are attached."), "{}", html(&page));
    // The device is detached where it was attached.
    assert!(html(&page).contains(&format!("accelerator-detach?id={id}")), "{}", html(&page));
    assert!(!html(&page).contains("\"detach?server="), "{}", html(&page));
    let list = person.get("accelerators").await.expect(200);
    assert!(html(&list).contains(">q35</a>"), "a server has its name: {}", html(&list));
    // What it does now does not allow another attach, nor the end of its record.
    let again = person.send(&form, "accelerator-attach", &check).await.expect(409);
    assert!(html(&again).contains("is attached already; detach it first"), "{}", html(&again));
    assert!(html(&again).contains("<p>Nothing was attached.</p>"), "{}", html(&again));
    // A form that is sent twice is answered as the first was.
    let twice = person.send(&form, "accelerator-attach", &attach).await.expect(303);
    assert_eq!(place(&twice), place(&done));
    assert_eq!(service.attachments(Q35).await.len(), 1);
    let elsewhere = [("id", id.as_str()), ("server", SWITCH), ("step", "attach")];
    person.send(&form, "accelerator-attach", &elsewhere).await.expect(409);
    // It can be changed when it is detached, and nothing says that it was created just now.
    let change = person.get(&format!("accelerator-spec?id={id}")).await.expect(409);
    assert!(html(&change).contains("detach it first"), "{}", html(&change));
    let page = person.get(&format!("accelerator?id={id}&done=created")).await.expect(200);
    assert!(!html(&page).contains("The accelerator is created."), "{}", html(&page));
    let detach = format!("accelerator-detach?id={id}");
    let delete = [("id", id.as_str()), ("step", "delete")];
    let refused = person.send(&detach, "accelerator-detach", &delete).await.expect(409);
    assert!(html(&refused).contains("it holds devices now"), "{}", html(&refused));
    assert_eq!(service.attachments(Q35).await.len(), 1);

    let page = person.get(&detach).await.expect(200);
    assert!(
        html(&page).contains("asked through ACPI") && html(&page).contains("by force"),
        "{}",
        html(&page)
    );
    // The guest keeps its device: everything is as before.
    service.sim("fault detach fail nth=2 kind=unplug-refused text=rejected-by-the-guest");
    let fields = [("id", id.as_str()), ("step", "detach")];
    let refused = person.send(&detach, "accelerator-detach", &fields).await.expect(409);
    assert!(html(&refused).contains("role=\"alert\""), "{}", html(&refused));
    assert_eq!(service.attachments(Q35).await[0]["status"], "attached");
    let done = person.send(&detach, "accelerator-detach", &fields).await.expect(303);
    let page = person.get(place(&done)).await.expect(200);
    assert!(html(&page).contains("holds no device any more"), "{}", html(&page));
    assert!(service.attachments(Q35).await.is_empty());
    let page = person.get(&detach).await.expect(200);
    assert!(html(&page).contains("Its name and what it takes are forgotten."), "{}", html(&page));
    person.send(&detach, "accelerator-detach", &delete).await.expect(303);
    assert!(accelerators(&service).await.is_empty());
    for page in ["accelerator", "accelerator-spec", "accelerator-attach", "accelerator-detach"] {
        person.get(&format!("{page}?id={id}")).await.expect(404);
        person.get(&format!("{page}?id=..")).await.expect(404);
    }
    service.expect_clean().await;
}

#[tokio::test]
async fn what_was_changed_since_the_check_is_checked_again() {
    let service = Hotslot::on("small").await;
    let mut person = Person::at(&service);
    let id = fast(&service, &mut person).await;
    let form = format!("accelerator-attach?id={id}");
    let asked = [("id", id.as_str()), ("server", Q35)];
    let check = [&asked[..], &[("step", "check")]].concat();
    let checked = person.send(&form, "accelerator-attach", &check).await.expect(200);
    let seen = tag(html(&checked));
    let change = format!("accelerator-spec?id={id}");
    let opened = tag(html(&person.get(&change).await.expect(200)));
    let path = format!("/v1/accelerators/{id}");
    let two = json!({ "acc_specs": { "device_type": "NIC", "num": 2, "product_id": "10ca" } });
    service.put(&path, two).await.expect(200);
    let attach = [&asked[..], &[("tag", &seen), ("step", "attach")]].concat();
    let changed = person.send(&form, "accelerator-attach", &attach).await.expect(409);
    let page = html(&changed);
    assert!(page.contains("changed what the accelerator takes since this was checked"), "{page}");
    assert!(page.contains("These devices can be attached") && page.contains("any 2 assignable"), "{page}");
    assert!(service.attachments(Q35).await.is_empty());
    let fields = [("id", id.as_str()), ("device_type", "NIC"), ("num", "1")];
    let save = [&fields[..], &[("tag", &opened), ("step", "save")]].concat();
    let refused = person.send(&change, "accelerator-spec", &save).await.expect(409);
    let page = html(&refused);
    assert!(
        page.contains("somebody has changed what it takes") && page.contains("any 2 assignable"),
        "{page}"
    );
    assert_eq!(service.get(&path).await.expect(200).body["acc_specs"]["num"], 2);
    // What the page shows then is what it is now.
    let seen = tag(html(&changed));
    let attach = [&asked[..], &[("tag", &seen), ("step", "attach")]].concat();
    person.send(&form, "accelerator-attach", &attach).await.expect(303);
    assert_eq!(service.attachments(Q35).await.len(), 2);
}

/// Returns the tag of the spec in a form.
fn tag(page: &str) -> String {
    let (_, rest) = page.split_once("name=\"tag\" value=\"").expect("a tag");
    rest.split_once("\"").unwrap().0.replace("&quot;", "\"")
}

#[tokio::test]
async fn an_accelerator_whose_spec_is_refused_is_not_left_behind() {
    let mut service = Hotslot::on("small").await;
    let file = service.database().with_file_name("policy.yaml");
    let identity = format!("[identity]\npolicy = \"{}\"\n[database]\n", file.display());
    service.reconfigure("[database]\n", &identity);
    let fields = [&FAST[..], &[("step", "create")]].concat();
    for (rules, left) in [
        ("\"hotslot:accelerator:update\": \"!\"\n", 0),
        ("\"hotslot:accelerator:update\": \"!\"\n\"hotslot:accelerator:delete\": \"!\"\n", 1),
    ] {
        std::fs::write(&file, rules).unwrap();
        service.kill();
        service.start_again().await;
        let mut person = Person::at(&service);
        let refused = person.send("accelerator-new", "accelerator-new", &fields).await.expect(403);
        let page = html(&refused);
        let found = accelerators(&service).await;
        assert_eq!(found.len(), left, "{page}");
        assert_eq!(page.contains("Nothing was created."), left == 0, "{page}");
        for one in &found {
            let link = format!("<a href=\"accelerator?id={}\">fast</a>", one["uuid"].as_str().unwrap());
            assert!(page.contains(&link) && page.contains("was created all the same"), "{page}");
        }
    }
}

#[tokio::test]
async fn an_accelerator_without_a_word_about_its_devices_takes_others_when_it_is_asked_for() {
    let service = Hotslot::on("small").await;
    let mut person = Person::at(&service);
    let fields = [("name", "any"), ("device_type", "UNKNOWN"), ("step", "create")];
    person.send("accelerator-new", "accelerator-new", &fields).await.expect(303);
    let id = accelerators(&service).await[0]["uuid"].as_str().unwrap().to_owned();
    let form = format!("accelerator-attach?id={id}");
    let asked = [("id", id.as_str()), ("server", Q35), ("step", "check")];
    let refused = person.send(&form, "accelerator-attach", &asked).await.expect(409);
    let page = html(&refused);
    assert!(page.contains("mark that it may take any other assignable device"), "{page}");
    let asked = [&asked[..], &[("any_device", "1")]].concat();
    let checked = person.send(&form, "accelerator-attach", &asked).await.expect(200);
    assert!(html(&checked).contains("These devices can be attached"), "{}", html(&checked));
    let nobody = [("id", id.as_str()), ("server", "00000000-0000-4000-8000-0000000000aa"), ("step", "check")];
    person.send(&form, "accelerator-attach", &nobody).await.expect(404);
}

const G1: &str = "20000000-0000-4000-8000-000000000001";
const PCI: &str = "[pci]\ndevice_spec = ['{\"vendor_id\": \"10de\"}', '{\"vendor_id\": \"8086\"}']\n";

#[tokio::test]
async fn a_mediated_device_is_attached_without_a_verdict() {
    let service = Hotslot::bare(&host("accelerators"), PCI, |_| ()).await;
    let path = service.accelerator("part", json!({ "mdev_type": "nvidia-233" })).await;
    let id = path.rsplit('/').next().unwrap();
    let mut person = Person::at(&service);
    let form = format!("accelerator-attach?id={id}");
    let asked = [("id", id), ("server", G1)];
    let check = [&asked[..], &[("step", "check")]].concat();
    let checked = person.send(&form, "accelerator-attach", &check).await.expect(200);
    assert!(html(&checked).contains("This cannot be checked before"), "{}", html(&checked));
    let refused = service.put(&path, json!({ "instance_uuid": G1, "dry_run": true })).await.expect(400);
    assert!(refused.message().contains("without dry_run"), "{}", refused.message());
    let attach = [&asked[..], &[("step", "attach")]].concat();
    let done = person.send(&form, "accelerator-attach", &attach).await.expect(303);
    assert_eq!(place(&done), format!("accelerator?id={id}&done=attached"));
    let page = person.get(place(&done)).await.expect(200);
    assert!(html(&page).contains("The accelerator is attached."), "{}", html(&page));
    let fields = [("id", id), ("step", "detach")];
    person.send(&format!("accelerator-detach?id={id}"), "accelerator-detach", &fields).await.expect(303);
    service.expect_clean().await;
}

#[tokio::test]
async fn what_a_person_may_not_do_with_accelerators_is_not_shown_and_is_refused() {
    let (mut service, _, _, [admin, _, member]) = with_tokens().await;
    let headers = || [("x-auth-token".to_owned(), admin.clone())];
    let owner = r#"{"pci_owner": {"project_id": "p"}}"#.to_owned();
    let path = format!("/v2.1/servers/{Q35}/pci_owner");
    service.send_with(Method::PUT, &path, headers(), Some(owner)).await.expect(200);
    {
        let mut app = Person::at(&service);
        app.sign_in(&member).await.expect(303);
        let page = app.get("accelerators").await.expect(200);
        assert!(!html(&page).contains("Create an accelerator"), "{}", html(&page));
        let token = super::person::form_token(html(&page));
        for page in ["accelerator-new", "accelerator-spec", "accelerator-attach", "device-profile"] {
            app.send_as(page, &[("id", "x")], &token).await.expect(403);
        }
        app.get("device-profile-delete?id=x").await.expect(403);
    }
    // Members own their accelerators when the configuration says so; only administrators end a record.
    service.reconfigure("[pci]\n", "[accelerators]\nchange = \"owner\"\n[pci]\n");
    service.kill();
    service.start_again().await;
    let mut app = Person::at(&service);
    app.sign_in(&member).await.expect(303);
    let fields = [&FAST[..], &[("step", "create")]].concat();
    let made = app.send("accelerator-new", "accelerator-new", &fields).await.expect(303);
    let id = place(&made).split(['=', '&']).nth(1).unwrap().to_owned();
    let asked = [("id", id.as_str()), ("server", Q35)];
    let form = format!("accelerator-attach?id={id}");
    let check = [&asked[..], &[("step", "check")]].concat();
    let checked = app.send(&form, "accelerator-attach", &check).await.expect(200);
    let page = html(&checked);
    assert!(page.contains("These devices can be attached") && !page.contains("0000:04:10"), "{page}");
    assert!(!page.contains("i440fx"), "only the own servers: {page}");
    let attach = [&asked[..], &[("step", "attach")]].concat();
    app.send(&form, "accelerator-attach", &attach).await.expect(303);
    let page = app.get(&format!("server?id={Q35}")).await.expect(200);
    assert!(html(&page).contains(&format!("accelerator-detach?id={id}")), "{}", html(&page));
    // An accelerator that does not say what it takes needs the mark, also where the reason is not told.
    let fields = [("name", "any"), ("device_type", "UNKNOWN"), ("step", "create")];
    let any = app.send("accelerator-new", "accelerator-new", &fields).await.expect(303);
    let any = place(&any).split(['=', '&']).nth(1).unwrap().to_owned();
    let asked = [("id", any.as_str()), ("server", Q35), ("step", "check")];
    let refused =
        app.send(&format!("accelerator-attach?id={any}"), "accelerator-attach", &asked).await.expect(409);
    let page = html(&refused);
    assert!(page.contains("mark the box below") && !page.contains("x-openstack-request-id"), "{page}");
    let detach = format!("accelerator-detach?id={id}");
    app.send(&detach, "accelerator-detach", &[("id", &id), ("step", "detach")]).await.expect(303);
    let page = app.get(&format!("accelerator?id={id}")).await.expect(200);
    assert!(!html(&page).contains(">Delete<"), "{}", html(&page));
    let page = app.get("accelerators").await.expect(200);
    let token = super::person::form_token(html(&page));
    let delete = [("id", id.as_str()), ("step", "delete")];
    let refused = app.send_as("accelerator-detach", &delete, &token).await.expect(403);
    assert!(html(&refused).contains("Only an administrator"), "{}", html(&refused));
    let mut ops = Person::at(&service);
    ops.sign_in(&admin).await.expect(303);
    ops.send(&detach, "accelerator-detach", &delete).await.expect(303);
}

const ARQS: &str = "/accelerator/v2/accelerator_requests";

/// Binds a request to a server, as Nova does.
async fn bind(service: &Hotslot, request: &str) {
    let cards = service.get("/accelerator/v2/deployables").await.expect(200).body["deployables"].clone();
    let card = cards.as_array().unwrap().iter().find(|card| card["name"] == "node1_0000:a1:00.0").unwrap();
    let add = |path: &str, value: &Value| json!({ "op": "add", "path": path, "value": value });
    let steps = json!([
        add("/hostname", &"node1".into()),
        add("/device_rp_uuid", &card["rp_uuid"]),
        add("/instance_uuid", &G1.into())
    ]);
    let body = json!({ request: steps }).to_string();
    service.send(Method::PATCH, ARQS, Some(("application/json", body))).await.expect(202);
    let path = format!("{ARQS}/{request}");
    service.until("it is bound", async || service.get(&path).await.body["state"] == "Bound").await;
}

#[tokio::test]
async fn profiles_are_created_and_requests_unbound_and_deleted() {
    let service = Hotslot::bare(&host("accelerators"), PCI, without_mdevs).await;
    let mut person = Person::at(&service);
    for (name, groups, text) in [
        ("qat", "{", "the groups are not valid JSON: the text ends too early"),
        ("qat", r#"[{"resources:GPU": "1", "resources:GPU": "2"}]"#, "duplicate key `resources:GPU`"),
        ("qat", "[]", "groups is not a list of groups"),
        ("qat", r#"[{"resources:TABLE": "1"}]"#, "names no resource class"),
        ("q a t", r#"[{"resources:GPU": "1"}]"#, "the name must have 1 to 255 letters"),
    ] {
        let fields = [("name", name), ("groups", groups)];
        let refused = person.send("device-profile", "device-profile", &fields).await.expect(400);
        let page = html(&refused);
        assert!(page.contains(text) && page.contains(&format!("value=\"{name}\"")), "{groups}: {page}");
    }
    let fields = [
        ("name", "qat"),
        ("description", "one VF of the QAT card"),
        ("groups", r#"[{"resources:CUSTOM_QAT": "1"}]"#),
    ];
    // A form that is sent twice makes one; another profile under the same name is refused.
    for _ in 0..2 {
        person.send("device-profile", "device-profile", &fields).await.expect(303);
    }
    let other = [("name", "qat"), ("groups", r#"[{"resources:CUSTOM_QAT": "2"}]"#)];
    person.send("device-profile", "device-profile", &other).await.expect(409);
    let list = person.get("accelerators").await.expect(200);
    let page = html(&list);
    assert!(page.contains("1 of CUSTOM_QAT") && page.contains("one VF of the QAT card"), "{page}");
    let profiles = service.get("/accelerator/v2/device_profiles").await.expect(200).body;
    let profile = profiles["device_profiles"][0]["uuid"].as_str().unwrap().to_owned();

    let made = service.post(ARQS, json!({ "device_profile_name": "qat" })).await.expect(201).body;
    let request = made["arqs"][0]["uuid"].as_str().unwrap().to_owned();
    let own = format!("accelerator-request?id={request}");
    let page = person.get(&own).await.expect(200);
    assert!(html(&page).contains("not bound yet") && !html(&page).contains(">Unbind<"), "{}", html(&page));
    bind(&service, &request).await;
    let list = person.get("accelerators").await.expect(200);
    assert!(html(&list).contains(">Bound<") && html(&list).contains(">g1<"), "{}", html(&list));
    let page = person.get(&format!("server?id={G1}")).await.expect(200);
    assert!(html(&page).contains(&own), "{}", html(&page));
    let page = person.get(&own).await.expect(200);
    let shown = html(&page);
    assert!(shown.contains("0000:a1:01.0") && shown.contains(">node1<") && shown.contains(">g1<"), "{shown}");
    assert!(shown.contains("The guest is asked to release the device."), "{shown}");
    // A profile with which a request was made stays.
    let delete = format!("device-profile-delete?id={profile}");
    let fields = [("id", profile.as_str())];
    let refused = person.send(&delete, "device-profile-delete", &fields).await.expect(409);
    assert!(html(&refused).contains("delete the request first"), "{}", html(&refused));

    person.get("device-profile-delete?id=zz").await.expect(404);
    person.get("accelerator-request?id=zz").await.expect(404);
    let nothing = [("id", request.as_str()), ("step", "bind")];
    person.send(&own, "accelerator-request", &nothing).await.expect(400);
    assert_eq!(service.attachments(G1).await.len(), 1, "it stays bound");
    let unbind = [("id", request.as_str()), ("step", "unbind")];
    let done = person.send(&own, "accelerator-request", &unbind).await.expect(303);
    let page = person.get(place(&done)).await.expect(200);
    assert!(html(&page).contains("it can be bound again"), "{}", html(&page));
    assert!(service.attachments(G1).await.is_empty());
    bind(&service, &request).await;
    let end = [("id", request.as_str()), ("step", "delete")];
    person.send(&own, "accelerator-request", &end).await.expect(303);
    person.get(&own).await.expect(404);
    assert!(service.attachments(G1).await.is_empty());
    person.send(&delete, "device-profile-delete", &fields).await.expect(303);
    person.get(&delete).await.expect(404);
    service.expect_clean().await;
}
