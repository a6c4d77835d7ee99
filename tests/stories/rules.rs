//! Rules of the API and their immediate effect, statistics, and flavors.

use hotslot_tests::{Answer, Hotslot, I440FX, Q35, host, path};
use serde_json::{Value, json};

const CONFIG: &str = "/v2.1/os-pci-config";

/// The entry of the configuration file that offers all Intel devices. Tests that add such an entry by the API remove
/// it.
const INTEL: &str = r#"'{"vendor_id": "8086"}', "#;

/// Serves the host without the entry for Intel devices.
async fn without_intel() -> Hotslot {
    let mut service = Hotslot::on("small").await;
    service.kill();
    service.reconfigure(INTEL, "");
    service.start_again().await;
    service
}

async fn add(service: &Hotslot, kind: &str, entry: Value) -> Answer {
    service.post(&format!("{CONFIG}/{kind}"), json!({ kind: entry })).await
}

/// Adds an entry, and returns its path.
async fn added(service: &Hotslot, kind: &str, entry: Value) -> String {
    let answer = add(service, kind, entry).await.expect(201);
    format!("{CONFIG}/{kind}/{}", answer.body[kind]["id"].as_str().unwrap())
}

async fn entries(service: &Hotslot, kind: &str) -> Vec<Value> {
    let answer = service.get(&format!("{CONFIG}/{kind}")).await.expect(200);
    answer.body[kind].as_array().unwrap().clone()
}

async fn status(service: &Hotslot, address: &str) -> Value {
    service.device(address).await["status"].clone()
}

#[tokio::test]
async fn entries_of_the_file_are_listed_and_read_only() {
    let service = Hotslot::on("small").await;
    let names = service.get(CONFIG).await.expect(200).body["pci_config"].clone();
    let names: Vec<_> = names.as_array().unwrap().iter().map(|object| object["name"].clone()).collect();
    assert_eq!(names, ["alias", "extra_info", "group", "whitelist"]);
    let groups = service.get(&format!("{CONFIG}/group")).await.expect(200).body["group"].clone();
    let parent = groups.as_array().unwrap().iter().find(|group| group["key"] == "parent_ifname").unwrap();
    assert_eq!(parent["values"], json!([{ "value": "eth5", "devices": 2 }]));
    service.post(&format!("{CONFIG}/group"), json!({})).await.expect(405);

    let whitelist = entries(&service, "whitelist").await;
    assert_eq!(whitelist.len(), 3);
    let first = &whitelist[0];
    assert_eq!(first["entry"], json!({ "vendor_id": "8086" }));
    assert_eq!((&first["source"], &first["read_only"]), (&json!("file"), &json!(true)));
    assert_eq!((&first["position"], &first["created_at"]), (&json!(1), &Value::Null));

    let page = service.get(&format!("{CONFIG}/whitelist?limit=2")).await.expect(200).body;
    assert_eq!(page["whitelist"].as_array().unwrap()[..], whitelist[..2]);
    let next = page["whitelist_links"][0]["href"].as_str().unwrap().strip_prefix(service.url()).unwrap();
    let page = service.get(next).await.expect(200).body;
    assert_eq!((&page["whitelist"], &page["whitelist_links"]), (&json!(whitelist[2..]), &Value::Null));

    let one = format!("{CONFIG}/whitelist/{}", first["id"].as_str().unwrap());
    assert_eq!(service.get(&one).await.expect(200).body["whitelist"], *first);
    for refused in [
        service.delete(&format!("{one}?force=true")).await,
        service.put(&one, json!({ "whitelist": { "vendor_id": "1af4" } })).await,
    ] {
        let refused = refused.expect(409);
        assert!(refused.message().contains("[pci] device_spec[0]"), "{}", refused.message());
    }
    assert_eq!(entries(&service, "whitelist").await, whitelist);
    // An entry is not found under another object.
    service.get(&one.replace("whitelist", "alias")).await.expect(404);
}

#[tokio::test]
async fn an_entry_that_conflicts_with_the_host_is_ignored_and_reported() {
    let pci = "[pci]\nreport_in_placement = true\n\
               device_spec = ['{\"product_id\": \"10ca\"}', '{\"product_id\": \"10c9\"}']\n";
    let service = Hotslot::bare(&host("small"), pci, |_| ()).await;
    let whitelist = entries(&service, "whitelist").await;
    assert_eq!(whitelist[0]["problem"], Value::Null);
    let says = "on host node1: with report_in_placement a PF and its VFs cannot both be named";
    assert!(whitelist[1]["problem"].as_str().unwrap().starts_with(says), "{}", whitelist[1]);
    assert!(service.log().contains("[pci] device_spec[1]: with report_in_placement"), "{}", service.log());
    assert_eq!(status(&service, "0000:04:10.0").await, "available");
    let pf = "/v2.1/os-hypervisors/node1/pci_devices/0000:04:00.0";
    let pf = service.get(pf).await.expect(200).body["pci_device"].clone();
    let why = pf["whitelist"][1]["why"].as_str().unwrap();
    assert!(why.starts_with("the entry is ignored: with report_in_placement"), "{why}");
    assert_eq!(pf["offered"], false);

    let wrong = add(&service, "whitelist", json!({ "vendor_id": "8086" })).await.expect(400);
    assert!(wrong.message().contains("on host node1: "), "{}", wrong.message());
    assert_eq!(entries(&service, "whitelist").await.len(), 2);
}

#[tokio::test]
async fn a_new_alias_can_be_used_at_once() {
    let service = Hotslot::on("small").await;
    service.attach(Q35, "fast:1").await.expect(400);
    let entry =
        json!({ "name": "fast", "vendor_id": "8086", "product_id": "10ca", "device_type": "type-VF" });
    let fast = added(&service, "alias", entry).await;
    let vf = service.attach(Q35, "fast:1").await.expect(200).body["pci_devices"][0].clone();
    assert_eq!(vf["alias"], "fast");

    // The alias is only a name: attachments made by it stay.
    service.delete(&fast).await.expect(204);
    service.get(&fast).await.expect(404);
    service.attach(Q35, "fast:1").await.expect(400);
    assert_eq!(status(&service, "0000:04:10.0").await, "allocated");
    service.delete(&path(&vf)).await.expect(200);
    service.expect_clean().await;
}

#[tokio::test]
async fn a_device_is_offered_only_while_its_entry_exists() {
    const TESTDEV: &str = "0000:0a:02.0";
    let service = Hotslot::on("small").await;
    assert_eq!(service.device(TESTDEV).await, Value::Null);
    let entry = json!({ "vendor_id": "1b36", "product_id": "0005", "rack": "r1" });
    let testdev = added(&service, "whitelist", entry.clone()).await;
    assert_eq!(service.device(TESTDEV).await["extra_info"]["rack"], "r1");
    let listed = entries(&service, "whitelist").await;
    let last = listed.last().unwrap();
    assert_eq!((&last["entry"], &last["source"], &last["position"]), (&entry, &json!("api"), &json!(4)));

    // A request can use the tags of the entry, which then cannot be removed.
    let alias = json!({ "name": "t", "vendor_id": "1b36", "product_id": "0005", "rack": "r1" });
    let alias = added(&service, "alias", alias).await;
    let refused = service.delete(&testdev).await.expect(409);
    assert!(refused.message().contains("unknown key `rack`"), "{}", refused.message());
    service.delete(&alias).await.expect(204);

    let body = json!({ "whitelist": { "vendor_id": "1b36", "product_id": "0005", "rack": "r2" } });
    let replaced = service.put(&testdev, body).await.expect(200).body;
    assert_ne!(replaced["whitelist"]["updated_at"], Value::Null);
    assert_eq!(service.device(TESTDEV).await["extra_info"]["rack"], "r2");

    let facts = json!({ "match": { "address": TESTDEV }, "values": { "switch": "tor-3" } });
    let facts = added(&service, "extra_info", facts).await;
    assert_eq!(service.device(TESTDEV).await["extra_info"]["switch"], "tor-3");
    service.delete(&facts).await.expect(204);
    assert_eq!(service.device(TESTDEV).await["extra_info"]["switch"], Value::Null);

    service.delete(&testdev).await.expect(204);
    assert_eq!(service.device(TESTDEV).await, Value::Null);
    service.delete(&testdev).await.expect(404);
}

#[tokio::test]
async fn a_refused_entry_changes_nothing() {
    let service = Hotslot::on("small").await;
    for (kind, entry, says) in [
        ("whitelist", json!({ "vendor_id": "x" }), "vendor_id: "),
        ("whitelist", json!({ "limit": "1" }), "limit: is a reserved key"),
        ("alias", json!({ "name": "a" }), "vendor_id: is missing"),
        // The alias of this name in the file requests VFs.
        ("alias", json!({ "name": "vf", "vendor_id": "8086", "product_id": "10d3" }), "device_type"),
        (
            "extra_info",
            json!({ "match": {}, "values": { "host": "x" } }),
            "`host` is a key that hotslot itself sets",
        ),
        ("extra_info", json!({ "values": { "a": "x" } }), "the key `match` is missing"),
    ] {
        let before = entries(&service, kind).await;
        let refused = add(&service, kind, entry).await.expect(400);
        assert!(refused.message().contains(says), "{}", refused.message());
        assert_eq!(entries(&service, kind).await, before);
    }
}

#[tokio::test]
async fn removing_the_entry_of_a_device_in_use_needs_force() {
    let service = without_intel().await;
    assert_eq!(service.device("0000:04:10.0").await, Value::Null);
    let vfs = added(&service, "whitelist", json!({ "vendor_id": "8086", "product_id": "10ca" })).await;
    let facts = json!({ "match": { "address": "0000:04:10.*" }, "values": { "switch": "tor-3" } });
    let facts = added(&service, "extra_info", facts).await;
    let vf = service.attach(Q35, "vf:1").await.expect(200).body["pci_devices"][0].clone();

    let other = json!({ "whitelist": { "vendor_id": "8086", "product_id": "10d3" } });
    for refused in [
        service.delete(&vfs).await,
        service.delete(&format!("{vfs}?force=false")).await,
        service.put(&vfs, other).await,
        service.delete(&facts).await,
    ] {
        let refused = refused.expect(409);
        let says = format!("0000:04:10.0 of host node1 (server {Q35})");
        assert!(refused.message().contains(&says), "{}", refused.message());
        assert!(!refused.message().contains("0000:04:10.2"), "{}", refused.message());
    }
    assert_eq!(status(&service, "0000:04:10.2").await, "available");
    // The entry still matches the device in use; its new tags apply when the device is free.
    let tagged = json!({ "whitelist": { "vendor_id": "8086", "product_id": "10ca", "rack": "r1" } });
    service.put(&vfs, tagged).await.expect(200);
    assert_eq!(service.device("0000:04:10.0").await["extra_info"]["rack"], Value::Null);
    assert_eq!(service.device("0000:04:10.2").await["extra_info"]["rack"], "r1");

    service.delete(&format!("{vfs}?force=true")).await.expect(204);
    assert_eq!(service.device("0000:04:10.2").await, Value::Null);
    let held = service.device("0000:04:10.0").await;
    assert_eq!((&held["status"], &held["instance_uuid"]), (&json!("allocated"), &json!(Q35)));
    assert_ne!(held["gone_at"], Value::Null);
    assert_eq!(service.attachments(Q35).await.len(), 1);
    service.delete(&path(&vf)).await.expect(200);
    service
        .until("the device is no longer offered", async || service.device("0000:04:10.0").await.is_null())
        .await;
}

#[tokio::test]
async fn a_nic_in_a_guest_still_matches_its_devname_entry() {
    let service = without_intel().await;
    added(&service, "whitelist", json!({ "devname": "eth7" })).await;
    let vf = service.attach(Q35, "vf:1").await.expect(200).body["pci_devices"][0].clone();
    let address = vf["address"].as_str().unwrap();
    // Every change scans the host again, and the NIC has no interface there now.
    added(&service, "whitelist", json!({ "vendor_id": "1b36", "product_id": "0005" })).await;
    assert_eq!(service.device(address).await["gone_at"], Value::Null);
    service.delete(&path(&vf)).await.expect(200);
    assert_eq!(status(&service, address).await, "available");
}

#[tokio::test]
async fn concurrent_changes_are_all_kept_in_order() {
    let mut service = Hotslot::on("small").await;
    let entry = |n: usize| json!({ "name": format!("n{n}"), "vendor_id": "8086", "product_id": "10ca" });
    let asked = (0..8).map(|n| add(&service, "alias", entry(n)));
    for answer in futures_util::future::join_all(asked).await {
        answer.expect(201);
    }
    let listed = entries(&service, "alias").await;
    let positions: Vec<_> = listed.iter().map(|entry| entry["position"].as_u64().unwrap()).collect();
    assert_eq!(positions, (1..=15).collect::<Vec<_>>());
    service.kill();
    service.start_again().await;
    assert_eq!(entries(&service, "alias").await, listed);
}

#[tokio::test]
async fn entries_survive_a_restart_and_one_that_conflicts_with_the_file_is_ignored() {
    let mut service = without_intel().await;
    let vfs = added(&service, "whitelist", json!({ "vendor_id": "8086", "product_id": "10ca" })).await;
    let fast = json!({ "name": "fast", "vendor_id": "8086", "product_id": "10ca", "device_type": "type-VF" });
    added(&service, "alias", fast).await;
    added(&service, "whitelist", json!({ "vendor_id": "8086", "product_id": "10d3" })).await;
    let before = (entries(&service, "whitelist").await, entries(&service, "alias").await);
    service.kill();
    service.start_again().await;
    assert_eq!((entries(&service, "whitelist").await, entries(&service, "alias").await), before);
    let vf = service.attach(Q35, "fast:1").await.expect(200).body["pci_devices"][0].clone();
    service.delete(&path(&vf)).await.expect(200);

    service.kill();
    let clashes = r#"'{"name": "fast", "vendor_id": "8086", "product_id": "10d3"}',"#;
    service.reconfigure("alias = [\n", &format!("alias = [\n{clashes}\n"));
    service.start_again().await;
    let aliases = entries(&service, "alias").await;
    let left_out = aliases.last().unwrap();
    assert!(left_out["problem"].as_str().unwrap().contains("device_type"), "{left_out}");
    assert!(service.log().contains(left_out["id"].as_str().unwrap()), "{}", service.log());
    // The other entries are in force and can be changed.
    assert_eq!(status(&service, "0000:04:10.0").await, "available");
    service.delete(&vfs).await.expect(204);
    let fixed = json!({ "alias": { "name": "fast", "vendor_id": "8086", "product_id": "10d3" } });
    let one = format!("{CONFIG}/alias/{}", left_out["id"].as_str().unwrap());
    let fixed = service.put(&one, fixed).await.expect(200).body;
    assert_eq!(fixed["alias"]["problem"], Value::Null);
}

#[tokio::test]
async fn hypervisors_show_the_free_devices_of_each_kind() {
    let service = Hotslot::on("small").await;
    let facts = json!({ "match": { "product_id": "10ca" }, "values": { "switch": "tor-3" } });
    added(&service, "extra_info", facts).await;
    let vfs = async |path: &str, key: &str| {
        let body = service.get(path).await.expect(200).body;
        let hypervisor =
            if body["hypervisor"].is_null() { &body["hypervisors"][0] } else { &body["hypervisor"] };
        let pools = hypervisor[key].as_array().unwrap().clone();
        pools.into_iter().find(|pool| pool["product_id"] == "10ca").unwrap()
    };
    let detail = service.get("/v2.1/os-hypervisors/detail").await.expect(200).body;
    let id = detail["hypervisors"][0]["id"].as_str().unwrap().to_owned();
    let paths = [
        "/v2/t/os-hypervisors/detail".to_owned(),
        format!("/v2.1/os-hypervisors/{id}"),
        "/v2.1/os-hypervisors/1".to_owned(),
        "/v2.1/os-hypervisors/node1".to_owned(),
    ];
    let all = |count: u64| {
        json!({
            "count": count, "vendor_id": "8086", "product_id": "10ca", "numa_node": null,
            "switch": "tor-3", "extra_info": { "switch": "tor-3" },
        })
    };
    for path in &paths {
        for key in ["pci_stats", "os-pci:pci_stats"] {
            assert_eq!(vfs(path, key).await, all(2), "{path} {key}");
        }
    }
    let vf = service.attach(Q35, "vf:1").await.expect(200).body["pci_devices"][0].clone();
    assert_eq!(vfs(&paths[0], "pci_stats").await, all(1));
    let id = service.device(vf["address"].as_str().unwrap()).await["id"].clone();
    for server in service.get("/v2/t/servers/detail").await.expect(200).body["servers"].as_array().unwrap() {
        let owned = if server["id"] == Q35 { json!([{ "id": id }]) } else { json!([]) };
        assert_eq!(server["os-pci:pci_devices"], owned);
    }
    service.attach(I440FX, "vf:1").await.expect(200);
    assert_eq!(vfs(&paths[1], "os-pci:pci_stats").await, all(0));
}

#[tokio::test]
async fn hypervisors_are_listed_for_stock_clients() {
    let service = Hotslot::with(&host("small"), "").await;
    let names = async |query: &str| {
        let body = service.get(&format!("/v2.1/os-hypervisors{query}")).await.expect(200).body;
        let hosts = body["hypervisors"].as_array().unwrap().clone();
        hosts.into_iter().map(|host| host["hypervisor_hostname"].clone()).collect::<Vec<_>>()
    };
    let node1 = vec![json!("node1")];
    for query in ["", "?limit=1", "/detail?limit=5", "?hypervisor_hostname_pattern=ode", "/node/search"] {
        assert_eq!(names(query).await, node1, "{query}");
    }
    assert_eq!(names("?marker=1").await, Vec::<Value>::new());
    let with = service.get("/v2.1/os-hypervisors?with_servers=true").await.expect(200).body;
    assert_eq!(with["hypervisors"][0]["servers"].as_array().unwrap().len(), 4);
    let one = service.get("/v2.1/os-hypervisors/node1").await.expect(200).body["hypervisor"].clone();
    assert_eq!((&one["running_vms"], &one["vcpus"]), (&json!(3), &json!(0)));
    assert_eq!(one["service"]["host"], "node1");
    assert_eq!(service.get("/v2.1/os-aggregates").await.expect(200).body, json!({ "aggregates": [] }));
}

#[tokio::test]
async fn flavors_have_novas_format() {
    let config = r#"
[[flavor]]
name = "gzm"
extra_specs = { "pci_passthrough:alias" = "vf:2", "hw:pci_numa_affinity_policy" = "preferred" }
[[flavor]]
name = "no devices"
id = "7"
"#;
    let service = Hotslot::with(&host("small"), config).await;
    let list = service.get("/v2.1/flavors").await.expect(200).body;
    let ids: Vec<_> = list["flavors"].as_array().unwrap().iter().map(|flavor| &flavor["id"]).collect();
    assert_eq!(ids, ["gzm", "7"]);
    assert_eq!(list["flavors"][0]["links"][0]["href"], format!("{}/v2.1/flavors/gzm", service.url()));
    assert_eq!(list["flavors"][0]["extra_specs"], Value::Null);

    let specs = json!({ "pci_passthrough:alias": "vf:2", "hw:pci_numa_affinity_policy": "preferred" });
    let detail = service.get("/v2/t/flavors/detail?is_public=true").await.expect(200).body;
    assert_eq!(detail["flavors"][0]["extra_specs"], specs);
    for key in ["ram", "disk", "vcpus"] {
        assert_eq!(detail["flavors"][1][key], 0);
    }
    for id in ["7", "no%20devices"] {
        assert_eq!(service.get(&format!("/v2.1/flavors/{id}")).await.expect(200).body["flavor"]["id"], "7");
    }
    let extra = service.get("/v2.1/flavors/gzm/os-extra_specs").await.expect(200).body;
    assert_eq!(extra, json!({ "extra_specs": specs }));
    let one = service.get("/v2.1/flavors/gzm/os-extra_specs/pci_passthrough:alias").await.expect(200).body;
    assert_eq!(one, json!({ "pci_passthrough:alias": "vf:2" }));

    let page = service.get("/v2.1/flavors?limit=1").await.expect(200).body;
    let next = page["flavors_links"][0]["href"].as_str().unwrap().strip_prefix(service.url()).unwrap();
    let page = service.get(next).await.expect(200).body;
    assert_eq!((&page["flavors"][0]["id"], &page["flavors_links"]), (&json!("7"), &Value::Null));
}

#[tokio::test]
async fn at_most_500_entries_can_be_added_by_the_api() {
    let service = Hotslot::on("small").await;
    let entry = |name: usize| json!({ "name": name.to_string(), "vendor_id": "8086", "product_id": "10ca" });
    let first = added(&service, "alias", entry(1)).await;
    for name in 2..=500 {
        add(&service, "alias", entry(name)).await.expect(201);
    }
    let refused =
        add(&service, "extra_info", json!({ "match": {}, "values": { "a": "b" } })).await.expect(409);
    assert!(refused.message().contains("500 entries"), "{}", refused.message());
    service.put(&first, json!({ "alias": entry(501) })).await.expect(200);
    service.delete(&first).await.expect(204);
    add(&service, "alias", entry(1)).await.expect(201);
}
