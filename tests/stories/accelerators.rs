//! Accelerators: creation, names, lists and specs. This file also has the helpers of the submodules.

mod attach;
mod hosts;

use hotslot_tests::{Hotslot, Q35, host};
use reqwest::Method;
use serde_json::{Value, json};

const PCI: &str = "[pci]\ndevice_spec = ['{\"vendor_id\": \"8086\"}', '{\"vendor_id\": \"1b36\"}']\n\
                   alias = ['{\"name\": \"vf\", \"vendor_id\": \"8086\", \"product_id\": \"10ca\"}']\n";

async fn service(more: &str) -> Hotslot {
    Hotslot::bare(&host("small"), &format!("{PCI}{more}"), |_| ()).await
}

async fn shown(service: &Hotslot, path: &str) -> Value {
    service.get(path).await.expect(200).body
}

/// Returns the driver that the host reports for a device.
async fn driver(service: &Hotslot, address: &str) -> Value {
    let functions = service.functions().await;
    functions[address]["driver"].clone()
}

const UUID: &str = "8e45a2ea-5364-4b0d-a252-bf8becaa606e";

#[tokio::test]
async fn the_examples_of_cyborgs_first_api_work() {
    let service = service("").await;
    let body = json!({ "name": "IPSec Card", "uuid": UUID });
    let created = service.post("/accelerators", body.clone()).await.expect(201);
    assert_eq!(created.body, Value::Null);
    assert!(created.location.unwrap().ends_with(&format!("/accelerators/{UUID}")));
    // Names are unique, and so are ids.
    for taken in [body, json!({ "name": "IPSec Card" }), json!({ "name": "other", "uuid": UUID })] {
        let refused = service.post("/accelerators", taken).await.expect(409);
        assert!(refused.message().contains(UUID), "{}", refused.message());
    }
    service.post(&format!("/accelerators/{UUID}"), json!({ "name": "IPSec card" })).await.expect(409);

    let one = shown(&service, &format!("/accelerators/{UUID}")).await;
    assert_eq!(
        (&one["uuid"], &one["name"], &one["status"]),
        (&json!(UUID), &json!("IPSec Card"), &json!("available"))
    );
    let defaults = json!({ "remote": 0, "num": 1, "device_type": "UNKNOWN", "acc_capability": {} });
    assert_eq!(one["acc_specs"], defaults);
    assert_eq!(service.get("/accelerators").await.expect(200).body["accelerator"], json!([one]));
    for (list, key) in [
        ("/accelerator", "accelerator"),
        ("/v1/accelerators", "accelerators"),
        ("/v1/accelerator", "accelerators"),
    ] {
        let body = service.get(list).await.expect(200).body;
        assert_eq!(body[key][0]["uuid"], UUID, "{list}: {body}");
    }

    let acc_specs = json!({ "remote": 0, "num": 1, "device_type": "CRYPTO",
        "acc_capability": { "num": 2, "ipsec": { "aes": { "3des": 50, "num": 1 } } }, "mine": [1] });
    for path in ["/accelerators/{}/acc_spec", "/v1/accelerator/{}/acc_specs", "/accelerator/{}"] {
        let path = path.replace("{}", UUID);
        let put = service.put(&path, json!({ "acc_specs": acc_specs })).await.expect(200);
        assert_eq!(put.body["acc_specs"], acc_specs);
    }
    // No device matches this spec, and the refusal says why.
    let refused =
        service.put(&format!("/accelerators/{UUID}"), json!({ "name": "IPSec Card", "uuid": UUID })).await;
    let refused = refused.expect(409);
    assert!(refused.message().contains("its device_type is"), "{}", refused.message());
    service.delete(&format!("/accelerator/{UUID}")).await.expect(204);
    assert_eq!(shown(&service, &format!("/accelerators/{UUID}")).await["acc_specs"], acc_specs);
}

#[tokio::test]
async fn if_match_protects_against_lost_updates() {
    let service = service("").await;
    let path = service.accelerator("a", json!({ "num": 1 })).await;
    let read = service.get(&path).await.expect(200).etag.unwrap();
    let spec = |num: u32| json!({ "acc_specs": { "num": num } });
    let put = async |num: u32, tag: &str| service.put_if(&format!("{path}/acc_spec"), tag, spec(num)).await;
    let next = put(2, &read).await.expect(200).etag.unwrap();
    assert_ne!(read, next);
    let stale = put(3, &read).await.expect(409);
    assert!(stale.message().contains(&next), "{}", stale.message());
    assert_eq!(shown(&service, &path).await["acc_specs"]["num"], 2);
    put(3, "*").await.expect(200);
    put(4, "\"x\"").await.expect(409);
    let now = shown(&service, &path).await;
    let tag = service.get(&path).await.expect(200).etag.unwrap();
    put(3, &format!("\"17\", {tag}")).await.expect(200);
    assert_eq!(now["acc_specs"]["num"], 3);
    // If-Match also applies to attach and DELETE.
    let with = async |method: Method, tag: &str| {
        let headers = [("if-match", tag), ("content-type", "application/json")];
        let headers = headers.map(|(name, value)| (name.to_owned(), value.to_owned()));
        let body = (method == Method::PUT).then(|| json!({ "host": "node1" }).to_string());
        service.send_with(method, &path, headers, body).await
    };
    for method in [Method::PUT, Method::DELETE] {
        let stale = with(method, &tag).await.expect(409);
        assert!(stale.message().contains("its ETag is"), "{}", stale.message());
    }
    with(Method::DELETE, "*").await.expect(204);
    with(Method::DELETE, &service.get(&path).await.expect(200).etag.unwrap()).await.expect(204);
    // A PUT replaces the whole spec: omitted keys get their defaults.
    assert_eq!(shown(&service, &path).await["acc_specs"]["device_type"], "UNKNOWN");
}

#[tokio::test]
async fn a_spec_is_returned_as_it_was_put() {
    let service = service("").await;
    let path = service.accelerator("a", json!({})).await;
    for spec in [
        json!({ "remote": i64::MIN, "num": 256, "device_type": "aichip", "acc_capability": {} }),
        json!({ "remote": 2, "num": 0, "device_type": "unknown", "acc_capability": { "a": [-1, 0.1, u64::MAX, null] } }),
    ] {
        let put = service.put(&format!("{path}/acc_spec"), json!({ "acc_specs": spec })).await.expect(200);
        assert_eq!(put.body["acc_specs"], spec);
        assert_eq!(shown(&service, &path).await["acc_specs"], spec);
    }
    let refused = service.put(&path, json!({ "driver": "native" })).await.expect(409);
    assert!(refused.message().contains("1 to 256"), "{}", refused.message());
}

#[tokio::test]
async fn v1_lists_have_cyborgs_keys_and_can_be_sorted() {
    let service = service("").await;
    for (name, remote) in [("b", 10), ("a", 9), ("c", -1)] {
        service.accelerator(name, json!({ "remote": remote })).await;
    }
    let names = async |query: &str| {
        let body = service.get(&format!("/v1/accelerators{query}")).await.expect(200).body;
        let names: Vec<_> =
            body["accelerators"].as_array().unwrap().iter().map(|one| one["name"].clone()).collect();
        (json!(names), body)
    };
    for (query, expected) in [
        ("", ["b", "a", "c"]),
        ("?all_tenants=true&sort_key=name", ["a", "b", "c"]),
        ("?sort_key=name&sort_dir=desc", ["c", "b", "a"]),
        ("?sort_key=remotable&sort_dir=asc&all_tenants=false", ["c", "a", "b"]),
        ("?sort_dir=desc", ["c", "a", "b"]),
    ] {
        assert_eq!(names(query).await.0, json!(expected), "{query}");
    }
    let (first, body) = names("?sort_key=name&limit=2").await;
    let next = body["accelerators_links"][0]["href"].as_str().unwrap();
    assert_eq!(first, json!(["a", "b"]));
    assert_eq!(names(&next[next.find('?').unwrap()..]).await.0, json!(["c"]));
    let one = body["accelerators"][0].as_object().unwrap();
    assert_eq!((one.get("description"), one.get("user_id")), (Some(&Value::Null), Some(&Value::Null)));
    for (key, value) in one {
        let nested = value.is_array()
            || value.is_object()
            || ["pinned", "project_id", "user_id", "takes"].contains(&&**key);
        let status = service.get(&format!("/v1/accelerators?sort_key={key}")).await.status;
        assert_eq!(status, if nested { 400 } else { 200 }, "{key}");
    }
}

/// Creates the accelerator of the device at an address, and returns its path.
async fn pinned(service: &Hotslot, address: &str) -> String {
    let uuid = service.device(address).await["uuid"].as_str().unwrap().to_owned();
    service.post("/accelerators", json!({ "name": address, "uuid": uuid })).await.expect(201);
    format!("/accelerators/{uuid}")
}

#[tokio::test]
async fn a_device_that_returns_is_the_same_accelerator() {
    let service = service("[accelerators]\ndiscovered = true\n").await;
    let names = async || {
        let all = service.get("/accelerators").await.expect(200).body["accelerator"].clone();
        let names = all.as_array().unwrap().iter().map(|one| one["name"].as_str().unwrap().to_owned());
        let mut names: Vec<_> = names.collect();
        names.sort();
        names
    };
    let before = names().await;
    let (one, other) = (service.device("0000:04:10.0").await, service.device("0000:04:10.2").await);
    let path = |device: &Value| format!("/accelerators/{}", device["uuid"].as_str().unwrap());
    service.put(&path(&one), json!({ "driver": "native" })).await.expect(200);
    service.delete(&path(&one)).await.expect(204);
    for name in ["pci_0000_04_10_0", "pci_0000_04_10_2"] {
        service.sim(&format!("device remove {name}"));
    }
    let status = async |device: &Value| shown(&service, &path(device)).await["status"].clone();
    service.until("its device is gone", async || status(&one).await == "error").await;
    service.until("so is the other", async || service.get(&path(&other)).await.status == 404).await;
    // A device that is currently gone can be given a name.
    let body = json!({ "name": "node1_0000:04:10.2", "uuid": other["uuid"] });
    service.post("/accelerators", body).await.expect(201);
    for device in [&one, &other] {
        let refused = service.put(&path(device), json!({ "driver": "native" })).await.expect(409);
        assert!(refused.message().contains("is gone from the host"), "{}", refused.message());
    }
    for name in ["pci_0000_04_10_0", "pci_0000_04_10_2"] {
        service.sim(&format!("device add {name}"));
    }
    for device in [&one, &other] {
        service.until("the device is back", async || status(device).await == "available").await;
        let address = device["address"].as_str().unwrap();
        let now = service.device(address).await;
        assert_eq!((&now["uuid"], &now["id"]), (&device["uuid"], &device["id"]));
        assert_eq!(
            service.put(&path(device), json!({ "driver": "native" })).await.expect(200).body["address"],
            address
        );
        service.delete(&path(device)).await.expect(204);
    }
    assert_eq!(names().await, before);
    service.expect_clean().await;
}

#[tokio::test]
async fn the_name_of_a_discovered_accelerator_is_taken() {
    let service = service("[accelerators]\ndiscovered = true\n").await;
    let uuid = service.device("0000:05:00.0").await["uuid"].clone();
    let name = "node1_0000:05:00.0";
    let refused = service.post("/accelerators", json!({ "name": name })).await.expect(409);
    assert!(refused.message().contains(uuid.as_str().unwrap()), "{}", refused.message());
    // The longer name, which would distinguish it from another accelerator of that name, is taken too.
    let apart = format!("{name}_{}", uuid.as_str().unwrap());
    service.post("/accelerators", json!({ "name": apart })).await.expect(409);
    service.post("/accelerators", json!({ "name": name, "uuid": uuid })).await.expect(201);
    service.post("/accelerators", json!({ "name": name })).await.expect(409);
}

#[tokio::test]
async fn status_and_device_keys_follow_the_device() {
    let service = service("").await;
    let spec = json!({ "product_id": "10ca", "device_type": "nic" });
    let path = service.accelerator("vf", spec).await;
    // The host can be named by its own host name.
    let attached = service.put(&path, json!({ "host": "small" })).await.expect(200).body;
    assert_eq!((&attached["host"], &attached["devices"][0]["device_type"]), (&json!("node1"), &json!("NIC")));
    let refused = service.put(&path, json!({ "driver": "native" })).await.expect(409);
    assert!(refused.message().contains("is attached already; detach it first"), "{}", refused.message());
    let other = json!({ "acc_specs": { "vendor_id": "10de", "product_id": "1eb8", "device_type": "GPU" } });
    let put = service.put(&path, other).await.expect(200).body;
    assert_eq!((&put["vendor_id"], &put["product_id"]), (&json!("8086"), &json!("10ca")));
    service.sim("device remove pci_0000_04_10_0");
    service.until("it is gone", async || shown(&service, &path).await["status"] == "error").await;
    let reason = shown(&service, &path).await["status_reason"].clone();
    assert!(reason.as_str().unwrap().contains("0000:04:10.0 is gone from the host"), "{reason}");
    service.delete(&path).await.expect(204);
    let free = shown(&service, &path).await;
    assert_eq!((&free["status"], &free["vendor_id"]), (&json!("available"), &json!("10de")));
    // The refusal explains the best of the devices that do not match.
    let nearly = json!({ "acc_specs": { "vendor_id": "8086", "product_id": "ffff", "device_type": "NIC" } });
    service.put(&path, nearly).await.expect(200);
    let refused = service.put(&path, json!({ "driver": "native" })).await.expect(409);
    assert!(refused.message().contains("its product_id is 10c9, not ffff"), "{}", refused.message());
    // A device of the same product is a better match than another one of the same type.
    let nearly = json!({ "acc_specs": { "vendor_id": "8086", "product_id": "10d3", "device_type": "NVMe" } });
    service.put(&path, nearly).await.expect(200);
    let refused = service.put(&path, json!({ "driver": "native" })).await.expect(409);
    assert!(refused.message().contains("its device_type is NIC, not NVMe"), "{}", refused.message());
}

#[tokio::test]
async fn an_attach_names_a_server_a_host_or_a_driver() {
    let service = service("").await;
    let any = service.accelerator("any", json!({})).await;
    let one = pinned(&service, "0000:05:00.0").await;
    for path in [&any, &one] {
        let refused = service.put(path, json!({})).await.expect(400);
        assert!(refused.message().contains("neither a server nor a host"), "{}", refused.message());
        assert_eq!(shown(&service, path).await["status"], "available");
        let any = json!({ "driver": "native", "any_device": true });
        service.put(path, any).await.expect(200);
        service.delete(path).await.expect(204);
    }
    service.expect_clean().await;
}

/// The host has NICs, disks and other controllers, of which a forgotten spec takes none.
#[tokio::test]
async fn an_accelerator_without_a_spec_takes_no_nic_and_no_disk() {
    let service = service("").await;
    for (name, spec) in [
        ("none", None),
        ("empty", Some(json!({}))),
        ("note", Some(json!({ "acc_capability": { "mine": 1 } }))),
    ] {
        let created = service.post("/accelerators", json!({ "name": name })).await.expect(201);
        let location = created.location.unwrap();
        let path = &location[location.find("/accelerators/").unwrap()..];
        if let Some(spec) = spec {
            service.put(path, json!({ "acc_specs": spec })).await.expect(200);
        }
        for target in
            [json!({ "instance_uuid": Q35 }), json!({ "driver": "native" }), json!({ "host": "node1" })]
        {
            let refused = service.put(path, target.clone()).await.expect(409);
            for says in ["does not say which devices it takes", &format!("PUT {}/acc_specs", &path[1..])] {
                assert!(refused.message().contains(says), "{says}: {}", refused.message());
            }
            let mut any = target;
            any["any_device"] = true.into();
            service.put(path, any).await.expect(200);
            service.delete(path).await.expect(204);
        }
        service.put(path, json!({ "host": "node1", "any_device": "yes" })).await.expect(400);
        service.put(path, json!({ "acc_specs": { "device_type": "NIC" } })).await.expect(200);
        service.put(path, json!({ "instance_uuid": Q35 })).await.expect(200);
        service.delete(path).await.expect(204);
    }
    service.expect_clean().await;
}

#[tokio::test]
async fn an_accelerator_names_the_keys_of_its_spec_that_have_no_effect() {
    let service = service("").await;
    let path = service.accelerator("a", json!({ "device_type": "NIC", "foo": 1, "mine": {} })).await;
    assert_eq!(shown(&service, &path).await["ignored_keys"], json!(["foo", "mine"]));
    for (key, meant) in [("count", "num"), ("vendor", "vendor_id"), ("Type", "device_type")] {
        let refused = service.put(&path, json!({ "acc_specs": { key: "10de" } })).await.expect(400);
        assert!(refused.message().contains(&format!("did you mean `{meant}`?")), "{}", refused.message());
    }
}

#[tokio::test]
async fn an_unknown_device_type_is_refused() {
    let service = service("").await;
    let path = service.accelerator("a", json!({ "num": 1 })).await;
    for (uri, spec) in [
        (format!("{path}/acc_spec"), json!({ "device_type": "GPPU" })),
        (path.clone(), json!({ "device_type": "type-VF" })),
        (path.clone(), json!({ "device_type": "" })),
        (path.clone(), json!({ "device_type": " " })),
    ] {
        let refused = service.put(&uri, json!({ "acc_specs": spec })).await.expect(400);
        for says in ["device_type", "GPU, FPGA, NIC, NVMe, QAT, CRYPTO, AICHIP or PCI", "UNKNOWN"] {
            assert!(refused.message().contains(says), "{says}: {}", refused.message());
        }
    }
    let refused = service.put(&path, json!({ "acc_specs": { "num": 257 } })).await.expect(400);
    assert!(refused.message().contains("0 to 256"), "{}", refused.message());
    // A misspelt requirement would make it an accelerator of any device.
    for (key, says) in [
        ("acc_specs", "write the keys of the inner object here"),
        ("devicetype", "unknown key `devicetype`; did you mean `device_type`?"),
        ("Vendor_ID", "did you mean `vendor_id`?"),
        ("nmu", "did you mean `num`?"),
    ] {
        let spec = json!({ "acc_specs": { key: { "device_type": "GPU" } } });
        let refused = service.put(&path, spec).await.expect(400);
        assert!(refused.message().contains(says), "{}", refused.message());
    }
    let kept = &shown(&service, &path).await["acc_specs"];
    assert_eq!((&kept["device_type"], &kept["num"]), (&json!("UNKNOWN"), &json!(1)), "nothing was put");
}

#[tokio::test]
async fn a_command_attaches_any_device_only_when_that_is_said() {
    let service = Hotslot::on("small").await;
    let run = |arguments: &[&str]| {
        let output = std::process::Command::new(hotslot_tests::binary())
            .args(arguments)
            .env("HOTSLOT_URL", service.url())
            .output()
            .expect("run hotslot");
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("text");
        (output.status.code(), text(output.stdout), text(output.stderr))
    };
    let (code, created, _) = run(&["accelerator", "create", "IPSec Card"]);
    assert!(code == Some(0) && created.contains("any FPGA, QAT, CRYPTO or AICHIP device"), "{created}");
    let (code, _, refused) = run(&["accelerator", "attach", "IPSec Card", "q35"]);
    assert_eq!(code, Some(4), "{refused}");
    for part in ["does not say which devices it takes", "`hotslot accelerator spec ", "with --any"] {
        assert!(refused.contains(part), "{part}: {refused}");
    }
    let (code, released, _) = run(&["accelerator", "detach", "IPSec Card"]);
    assert!(code == Some(0) && released.contains("nothing was detached"), "{released}");
    let (code, _, nowhere) = run(&["accelerator", "attach", "IPSec Card", "--host", "nope", "--any"]);
    assert_eq!(code, Some(3), "{nowhere}");
    assert!(nowhere.contains("host nope not found; `hotslot host list` lists all"), "{nowhere}");
    // A dry run says what an attach would take, and changes nothing.
    let (code, dry, _) = run(&["accelerator", "attach", "IPSec Card", "q35", "--any", "--dry-run"]);
    assert!(code == Some(0) && dry.contains("these devices would be attached"), "{dry}");
    assert!(service.attachments(Q35).await.is_empty());
    let (code, _, host) = run(&["accelerator", "attach", "IPSec Card", "--host", "node1", "--dry-run"]);
    assert!(code == Some(2) && host.contains("--host"), "{host}");
    let (code, attached, _) = run(&["accelerator", "attach", "IPSec Card", "q35", "--any"]);
    assert_eq!(code, Some(0), "{attached}");
    assert!(
        attached.lines().any(|line| line.starts_with("Type:") && !line.contains("UNKNOWN")),
        "{attached}"
    );
}
