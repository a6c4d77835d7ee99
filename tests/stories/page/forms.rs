//! The forms of the page, without a browser: attach by address, the preview of a rule, quotas and webhooks.

use hotslot_tests::oracle::VGPU;
use hotslot_tests::{Hotslot, Q35, SWITCH, host};
use serde_json::json;

use super::person::{Person, form_token, html, place};
use crate::door::with_tokens;

#[tokio::test]
async fn a_device_is_attached_by_its_address_from_its_page() {
    let service = Hotslot::on("small").await;
    let mut person = Person::at(&service);
    let address = "0000:04:10.2";
    let function = person.get(&format!("function?host=node1&address={address}")).await.expect(200);
    assert!(
        html(&function).contains("attach?host=node1&amp;address=0000%3A04%3A10.2"),
        "{}",
        html(&function)
    );
    // A server is chosen from those of the host, which need not run.
    let servers = person.get(&format!("attach?host=node1&address={address}")).await.expect(200);
    assert!(html(&servers).contains(">q35<") && html(&servers).contains(">switch<"), "{}", html(&servers));
    let attach = format!("attach?id={Q35}&address={address}");
    let form = person.get(&attach).await.expect(200);
    assert!(html(&form).contains(&format!("name=\"addresses\" value=\"{address}\"")), "{}", html(&form));
    // The domain may be left out, as in lspci.
    let fields = [("id", Q35), ("addresses", "04:10.2"), ("step", "check")];
    let checked = person.send(&attach, "attach", &fields).await.expect(200);
    assert!(html(&checked).contains("These devices can be attached"), "{}", html(&checked));
    let fields = [("id", Q35), ("addresses", "04:10.2"), ("step", "attach")];
    let done = person.send(&attach, "attach", &fields).await.expect(303);
    assert!(place(&done).ends_with("done=attached"));
    assert_eq!(service.attachments(Q35).await[0]["address"], address);
    let server = person.get(place(&done)).await.expect(200);
    let page = html(&server);
    assert!(
        page.contains("Step by step") && page.contains("reserved") && page.contains("plugged in"),
        "{page}"
    );
    // A function in use has no such button.
    let function = person.get(&format!("function?host=node1&address={address}")).await.expect(200);
    assert!(!html(&function).contains("Attach to a server"), "{}", html(&function));
    for (addresses, text) in
        [("04:10.2", "0000:04:10.2"), ("nonsense", "nonsense"), ("", "choose an alias, a flavor or a device")]
    {
        let fields = [("id", Q35), ("addresses", addresses), ("step", "check")];
        let refused = person.send(&attach, "attach", &fields).await;
        assert!([200, 400, 409].contains(&refused.status), "{addresses}: {}", refused.status);
        assert!(
            html(&refused).contains(text) && !html(&refused).contains("can be attached</h2>"),
            "{addresses}"
        );
    }
}

#[tokio::test]
async fn a_server_that_does_not_run_gets_its_devices_at_its_next_start() {
    let service = Hotslot::on("small").await;
    let mut person = Person::at(&service);
    let attach = format!("attach?id={SWITCH}");
    let form = person.get(&attach).await.expect(200);
    assert!(html(&form).contains("gets the devices at its next start"), "{}", html(&form));
    let fields = [("id", SWITCH), ("alias0", "vf"), ("step", "attach")];
    let done = person.send(&attach, "attach", &fields).await.expect(303);
    let page = person.get(place(&done)).await.expect(200);
    assert!(html(&page).contains("The devices are attached."), "{}", html(&page));
    let id = service.attachments(SWITCH).await[0]["attachment_id"].as_str().unwrap().to_owned();
    let detach = format!("detach?server={SWITCH}&attachment={id}");
    let form = person.get(&detach).await.expect(200);
    let page = html(&form);
    assert!(page.contains("free for others at once") && !page.contains("The guest is asked"), "{page}");
    let fields = [("server", SWITCH), ("attachment", id.as_str())];
    let done = person.send(&detach, "detach", &fields).await.expect(303);
    service.until("it is gone", async || service.attachments(SWITCH).await.is_empty()).await;
    let page = person.get(place(&done)).await.expect(200);
    assert!(html(&page).contains("does not have the device any more"), "{}", html(&page));
    service.expect_clean().await;
}

#[tokio::test]
async fn whoever_may_not_name_addresses_is_not_asked_for_them() {
    let (service, _, _, [admin, _, member]) = with_tokens().await;
    let owner = json!({ "pci_owner": { "project_id": "p" } }).to_string();
    let headers = [("x-auth-token".to_owned(), admin)];
    let path = format!("/v2.1/servers/{Q35}/pci_owner");
    service.send_with(reqwest::Method::PUT, &path, headers, Some(owner)).await.expect(200);
    let mut app = Person::at(&service);
    app.sign_in(&member).await.expect(303);
    let form = app.get(&format!("attach?id={Q35}&address=0000:04:10.2")).await.expect(200);
    assert!(!html(&form).contains("name=\"addresses\""), "{}", html(&form));
    // Nor for what separates the networks of projects.
    assert!(html(&form).contains("name=\"physical_network\""), "{}", html(&form));
    assert!(
        !html(&form).contains("name=\"vlan\"") && !html(&form).contains("name=\"trusted\""),
        "{}",
        html(&form)
    );
    let fields = [("id", Q35), ("alias0", "vf"), ("trusted", "true"), ("step", "check")];
    app.send(&format!("attach?id={Q35}"), "attach", &fields).await.expect(403);
    let fields = [("id", Q35), ("addresses", "0000:04:10.2"), ("step", "attach")];
    app.send(&format!("attach?id={Q35}"), "attach", &fields).await.expect(403);
    // The quota of the own project is shown, and cannot be set.
    let quotas = app.get("quotas").await.expect(200);
    let page = html(&quotas);
    assert!(page.contains("Devices of servers") && !page.contains("action=\"quotas\""), "{page}");
    app.get("quotas?project=q").await.expect(403);
    let token = form_token(html(&form));
    app.send_as("quotas", &[("project", "p"), ("limit accelerators", "9")], &token).await.expect(403);
    app.get("webhooks").await.expect(403);
}

/// Two VFs, one of which is trusted, and a NIC that is no VF.
const VFS: &str = r#"
[pci]
device_spec = ['{"address": "0000:04:10.0", "trusted": "true"}', '{"address": "0000:04:10.2"}', '{"address": "0000:05:00.0"}']
alias = ['{"name": "vf", "vendor_id": "8086", "product_id": "10ca"}']
[[flavor]]
name = "one-vf"
extra_specs = { "pci_passthrough:alias" = "vf:1" }
"#;

#[tokio::test]
async fn settings_of_a_vf_are_checked_and_shown_before_they_are_set() {
    let service = Hotslot::bare(&host("small"), VFS, |_| ()).await;
    let mut person = Person::at(&service);
    let attach = format!("attach?id={Q35}");
    let form = person.get(&attach).await.expect(200);
    for key in ["mac_address", "vlan", "trusted", "spoof_check", "link_state", "min_tx_rate", "max_tx_rate"] {
        assert!(html(&form).contains(&format!("name=\"{key}\"")), "{key}: {}", html(&form));
    }
    // They mean nothing for a function that is no VF of a network card.
    for (address, shown) in [("0000:04:10.0", true), ("0000:05:00.0", false)] {
        let form = person.get(&format!("{attach}&address={address}")).await.expect(200);
        assert_eq!(html(&form).contains("For a VF of a network card"), shown, "{address}: {}", html(&form));
    }
    let asked = [("id", Q35), ("alias0", "vf")];
    for (wrong, text, field) in [
        (&[("min_tx_rate", "x")][..], "`x` is not a number", "Minimum rate"),
        (
            &[("max_tx_rate", "1000001")],
            "the maximum rate: invalid rate 1000001: expected 0 to 1000000 Mbit/s",
            "Maximum rate",
        ),
        (
            &[("min_tx_rate", "100"), ("max_tx_rate", "10")],
            "the minimum rate: 100 is more than the maximum rate, 10; lower it",
            "Minimum rate",
        ),
        (&[("vlan", "5000")], "4094", "VLAN"),
        (&[("mac_address", "no")], "<p>MAC address: ", "MAC address"),
        (&[("spoof_check", "maybe")], "is not one of true, false", "Spoof check"),
        (&[("link_state", "sideways")], "is not one of auto, enable, disable", "Link state"),
    ] {
        for step in ["check", "attach"] {
            let fields = [&asked[..], wrong, &[("step", step)]].concat();
            let refused = person.send(&attach, "attach", &fields).await.expect(400);
            let page = html(&refused);
            assert!(page.contains(text), "{wrong:?}: {page}");
            assert!(page.contains(&format!("Correct the field \u{201c}{field}")), "{wrong:?}: {page}");
            assert!(page.contains("aria-invalid=\"true\""), "{wrong:?}: {page}");
            assert!(page.contains("<option value=\"vf\" selected>vf</option>"), "{wrong:?}: {page}");
            if matches!(wrong[0].0, "vlan" | "mac_address" | "min_tx_rate" | "max_tx_rate") {
                assert!(page.contains(&format!("value=\"{}\"", wrong[0].1)), "{wrong:?}: {page}");
            }
        }
    }
    assert!(service.attachments(Q35).await.is_empty());
    let settings = [
        ("trusted", "true"),
        ("spoof_check", "false"),
        ("link_state", "enable"),
        ("min_tx_rate", "10"),
        ("max_tx_rate", "100"),
    ];
    let check = [&asked[..], &settings, &[("step", "check")]].concat();
    let checked = person.send(&attach, "attach", &check).await.expect(200);
    let page = html(&checked);
    assert!(page.contains("These devices can be attached") && page.contains("0000:04:10.0"), "{page}");
    assert!(page.contains("Settings of each VF") && page.contains("enable: always up"), "{page}");
    let send = [&asked[..], &settings, &[("step", "attach")]].concat();
    person.send(&attach, "attach", &send).await.expect(303);
    let vf = service.attachments(Q35).await[0].clone();
    assert_eq!((&vf["trusted"], &vf["spoof_check"]), (&json!(true), &json!(false)), "{vf}");
    assert_eq!(
        (&vf["link_state"], &vf["min_tx_rate"], &vf["max_tx_rate"]),
        (&json!("enable"), &json!(10), &json!(100))
    );
    // A setting that the host cannot have is in the verdict. A flavor names the devices as well as an alias.
    service.sim(
        "fault vf-settings fail kind=unsupported times=99 text=hotslot has not the right (CAP_NET_ADMIN)",
    );
    let fields = [("id", Q35), ("flavor", "one-vf"), ("max_tx_rate", "5"), ("step", "check")];
    let checked = person.send(&attach, "attach", &fields).await.expect(200);
    let page = html(&checked);
    assert!(page.contains("cannot be attached") && page.contains("CAP_NET_ADMIN"), "{page}");
    service.sim("fault clear");
    let both = [("id", Q35), ("alias0", "vf"), ("flavor", "one-vf"), ("step", "check")];
    let refused = person.send(&attach, "attach", &both).await.expect(400);
    let page = html(&refused);
    assert!(page.contains("choose only one of them") && !page.contains("pci_passthrough"), "{page}");
    assert!(page.contains("Nothing was attached.") && !page.contains("or it was undone"), "{page}");
    let fields = [("id", Q35), ("flavor", "one-vf"), ("step", "check")];
    let checked = person.send(&attach, "attach", &fields).await.expect(200);
    assert!(html(&checked).contains("0000:04:10.2"), "{}", html(&checked));
}

#[tokio::test]
async fn a_virtual_gpu_is_attached_by_its_type() {
    let service = Hotslot::bare(&host("vgpu"), VGPU, |_| ()).await;
    let mut person = Person::at(&service);
    let attach = format!("attach?id={Q35}");
    let form = person.get(&attach).await.expect(200);
    let page = html(&form);
    assert!(page.contains("name=\"vgpu_type\"") && !page.contains("For a VF of a network card"), "{page}");
    let asked = [("id", Q35), ("alias0", "vgpu"), ("step", "check")];
    let checked = person.send(&attach, "attach", &asked).await.expect(200);
    let page = html(&checked);
    assert!(page.contains("cannot be attached") && page.contains("request one with the vGPU type"), "{page}");
    let wrong = [&asked[..], &[("vgpu_type", "\u{e4}")]].concat();
    let refused = person.send(&attach, "attach", &wrong).await.expect(400);
    assert!(html(&refused).contains("Correct the field \u{201c}vGPU type"), "{}", html(&refused));
    let typed = [&asked[..], &[("vgpu_type", "nvidia-1155")]].concat();
    let checked = person.send(&attach, "attach", &typed).await.expect(200);
    let page = html(&checked);
    assert!(
        page.contains("These devices can be attached") && page.contains("<dd>nvidia-1155</dd>"),
        "{page}"
    );
    let send = [("id", Q35), ("alias0", "vgpu"), ("vgpu_type", "nvidia-1155"), ("step", "attach")];
    person.send(&attach, "attach", &send).await.expect(303);
    let vf = service.attachments(Q35).await[0].clone();
    assert_eq!(vf["vgpu_type"], "nvidia-1155", "{vf}");
    // A host without such cards has no such field.
    let service = Hotslot::on("small").await;
    let mut person = Person::at(&service);
    let form = person.get(&attach).await.expect(200);
    assert!(!html(&form).contains("name=\"vgpu_type\""), "{}", html(&form));
}

#[tokio::test]
async fn a_server_shows_the_room_behind_its_free_ports_and_how_long_a_detach_takes() {
    let service = Hotslot::on("small").await;
    let attached = service.attach(Q35, "vf:1").await.expect(200).body;
    let topology = service.get(&format!("/v2.1/servers/{Q35}/pci_topology")).await.expect(200).body;
    let ports = topology["pci_topology"]["controllers"].as_array().unwrap();
    let port = ports.iter().find(|port| port["model"] == "pcie-root-port").unwrap();
    assert_eq!((&port["memory_window"], &port["unplug_by"]), (&(2 << 20).into(), &"acpi".into()), "{port:#}");
    let mut person = Person::at(&service);
    let page = person.get(&format!("server?id={Q35}")).await.expect(200);
    assert!(html(&page).contains("room for BARs: 2 MiB"), "{}", html(&page));
    assert!(html(&page).contains("asked through ACPI"), "{}", html(&page));
    let id = attached["pci_devices"][0]["attachment_id"].as_str().unwrap();
    let page = person.get(&format!("detach?server={Q35}&attachment={id}")).await.expect(200);
    assert!(html(&page).contains("asked through ACPI"), "{}", html(&page));
}

#[tokio::test]
async fn a_refused_detach_is_told_apart_from_a_pending_one() {
    let service = Hotslot::on("small").await;
    let mut person = Person::at(&service);
    let attached = service.attach(Q35, "vf:1").await.expect(200).body;
    let id = attached["pci_devices"][0]["attachment_id"].as_str().unwrap().to_owned();
    let detach = format!("detach?server={Q35}&attachment={id}");
    let server = format!("server?id={Q35}&done=detaching");
    let fields = [("server", Q35), ("attachment", id.as_str())];
    service.sim("fault detach fail nth=2 kind=unplug-refused text=rejected-by-the-guest");
    person.send(&detach, "detach", &fields).await.expect(303);
    service
        .until("the refusal is shown", async || {
            let mut person = Person::at(&service);
            html(&person.get(&server).await).contains("detach refused")
        })
        .await;
    let page = person.get(&server).await.expect(200);
    let page = html(&page);
    assert!(
        page.contains("the guest refused to release the device") && page.contains("the guest keeps it"),
        "{page}"
    );
    assert!(!page.contains(">pending<"), "{page}");

    service.sim("guest q35 unplug=ignore");
    person.send(&detach, "detach", &fields).await.expect(303);
    let page = person.get(&server).await.expect(200);
    let page = html(&page);
    assert!(page.contains(">pending<") && page.contains("is asked to release it"), "{page}");
    // How often it was asked is told until the service gives up.
    service
        .until("the attempt is told", async || {
            let page = Person::at(&service).get(&server).await;
            html(&page).contains("asked the guest to release the device, attempt ")
        })
        .await;
    assert!(!page.contains("detach refused"), "{page}");
    service.sim("guest q35 unplug=normal");
    service.sim("reboot q35");
    service.until("it is gone", async || service.attachments(Q35).await.is_empty()).await;
    service.expect_clean().await;
}

#[tokio::test]
async fn a_rule_is_previewed_before_it_is_saved() {
    let service = Hotslot::on("small").await;
    let rules =
        async || service.get("/v2.1/os-pci-config/whitelist").await.expect(200).body["whitelist"].clone();
    let before = rules().await;
    let mut person = Person::at(&service);
    for (kind, entry, texts) in [
        // An earlier entry decides on those that are assignable already.
        (
            "whitelist",
            r#"{"vendor_id": "8086", "product_id": "10ca"}"#,
            ["0000:04:10.0", "an earlier entry decides"],
        ),
        ("whitelist", r#"{"vendor_id": "abcd"}"#, ["matches no function", "Nothing was saved"]),
        (
            "alias",
            r#"{"name": "one", "vendor_id": "8086", "product_id": "10ca"}"#,
            ["0000:04:10.0", "applies"],
        ),
        (
            "extra_info",
            r#"{"match": {"address": "0000:04:10.0"}, "values": {"switch": "tor-3"}}"#,
            ["matches 1 function", "applies"],
        ),
    ] {
        let fields = [("kind", kind), ("entry", entry), ("step", "preview")];
        let shown = person.send(&format!("rule?kind={kind}"), "rule", &fields).await.expect(200);
        for text in texts {
            assert!(html(&shown).contains(text), "{kind} {entry}: {text}: {}", html(&shown));
        }
    }
    assert_eq!(rules().await, before, "a preview changes nothing");
    // A guest is called by its name.
    service.attach(Q35, "vf:1").await.expect(200);
    let entry = r#"{"name": "one", "vendor_id": "8086", "product_id": "10ca"}"#;
    let fields = [("kind", "alias"), ("entry", entry), ("step", "preview")];
    let shown = person.send("rule?kind=alias", "rule", &fields).await.expect(200);
    let link = format!("<a href=\"server?id={Q35}\">q35</a>");
    assert!(html(&shown).contains(&link), "{}", html(&shown));
    assert!(!html(&shown).contains(&format!(">{Q35}<")), "{}", html(&shown));
    // The checks are those of the API.
    for (entry, status, text) in [
        (r#"{"vendor_id": "intel"}"#, 400, "vendor_id"),
        ("{", 400, "the entry is not valid JSON: the text ends too early"),
        (r#"{"vendor_id": "8086", "vendor_id": "10de"}"#, 400, "duplicate key `vendor_id`"),
        (r#"["x"]"#, 400, "must not be a list"),
    ] {
        let fields = [("kind", "whitelist"), ("entry", entry), ("step", "preview")];
        let refused = person.send("rule?kind=whitelist", "rule", &fields).await.expect(status);
        assert!(html(&refused).contains(text), "{entry}: {}", html(&refused));
    }
    // What a change would take from devices in use is shown.
    let body = json!({ "whitelist": { "vendor_id": "8086", "product_id": "10d3" } });
    let made = service.post("/v2.1/os-pci-config/whitelist", body).await.expect(201).body;
    let id = made["whitelist"]["id"].as_str().unwrap();
    let fields =
        [("kind", "whitelist"), ("id", id), ("entry", r#"{"vendor_id": "abcd"}"#), ("step", "preview")];
    let shown = person.send(&format!("rule?kind=whitelist&id={id}"), "rule", &fields).await.expect(200);
    assert!(html(&shown).contains("matches no function"), "{}", html(&shown));
    let unknown =
        service.post("/v2.1/os-pci-config/alias?dry_run=maybe", json!({ "alias": {} })).await.expect(400);
    assert!(unknown.message().contains("expected true or false"), "{}", unknown.message());
}

#[tokio::test]
async fn limits_of_a_project_are_set_and_restored() {
    let service = Hotslot::on("small").await;
    let mut person = Person::at(&service);
    let page = person.get("quotas").await.expect(200);
    assert!(html(&page).contains("Name the id of one"), "{}", html(&page));
    let limits = async || service.get("/v2.1/os-quota-sets/p").await.expect(200).body["quota_set"].clone();
    let defaults = limits().await;
    let form = "quotas?project=p";
    let fields = [
        ("project", "p"),
        ("limit accelerators", "7"),
        ("alias", "vf"),
        ("alias_limit", "2"),
        ("step", "set"),
    ];
    person.send(form, "quotas", &fields).await.expect(303);
    let set = limits().await;
    assert_eq!((&set["accelerators"], &set["pci_attachments:vf"]), (&7.into(), &2.into()), "{set}");
    assert_eq!(set["pci_attachments"], defaults["pci_attachments"], "what was not changed stays as it is");
    for (field, value) in [("limit accelerators", "-5"), ("limit accelerators", "many")] {
        let fields = [("project", "p"), (field, value), ("step", "set")];
        let refused = person.send(form, "quotas", &fields).await.expect(400);
        assert!(html(&refused).contains("role=\"alert\""), "{}", html(&refused));
    }
    person.send(form, "quotas", &[("project", "p"), ("step", "reset")]).await.expect(303);
    assert_eq!(limits().await, defaults);
}

#[tokio::test]
async fn what_a_webhook_could_not_deliver_is_shown_and_delivered_again() {
    let config = "[[webhook]]\nname = \"billing\"\nurl = \"http://127.0.0.1:9/\"\nattempts = 1\n\
                  secret = \"a secret that is long enough for a test\"\n";
    let service = Hotslot::with(&host("small"), config).await;
    service.attach(Q35, "vf:1").await.expect(200);
    service
        .until("an event could not be delivered", async || {
            let mut person = Person::at(&service);
            html(&person.get("webhooks").await).contains("dead letter")
        })
        .await;
    let mut person = Person::at(&service);
    let page = person.get("webhooks").await.expect(200);
    assert!(html(&page).contains("billing") && !html(&page).contains("a secret that"), "{}", html(&page));
    person.send("webhooks", "webhooks", &[("name", "billing")]).await.expect(303);
    let events = service.get("/events?kind=webhook.redelivered&last=1").await.expect(200).body;
    assert_eq!(events["events"][0]["to"]["webhook"], "billing", "{events:#}");
    person.send("webhooks", "webhooks", &[("name", "nobody")]).await.expect(404);
}
