//! Accelerators: made, specified, attached to servers and hosts, detached; and that no device is given twice, whichever
//! door it was asked through.

use std::time::Duration;

use futures_util::future::join_all;
use hotslot_driver::sim::control;
use hotslot_driver::sim::generate::Size;
use hotslot_tests::{Answer, Hotslot, I440FX, Q35, host, path as path_of, without_mdevs};
use reqwest::Method;
use serde_json::{Value, json};

const PCI: &str = "[pci]\ndevice_spec = ['{\"vendor_id\": \"8086\"}', '{\"vendor_id\": \"1b36\"}']\n\
                   alias = ['{\"name\": \"vf\", \"vendor_id\": \"8086\", \"product_id\": \"10ca\"}']\n";

async fn service(more: &str) -> Hotslot {
    Hotslot::bare(&host("small"), &format!("{PCI}{more}"), |_| ()).await
}

/// Makes an accelerator of a spec, and answers its path.
async fn made(service: &Hotslot, name: &str, spec: Value) -> String {
    service.post("/accelerators", json!({ "name": name })).await.expect(201);
    let all = service.get("/accelerators").await.expect(200).body["accelerator"].clone();
    let uuid = all.as_array().unwrap().iter().find(|one| one["name"] == name).unwrap()["uuid"].clone();
    let path = format!("/accelerators/{}", uuid.as_str().unwrap());
    service.put(&format!("{path}/acc_spec"), json!({ "acc_specs": spec })).await.expect(200);
    path
}

async fn shown(service: &Hotslot, path: &str) -> Value {
    service.get(path).await.expect(200).body
}

/// The driver that the host says a device is bound to.
async fn driver(service: &Hotslot, address: &str) -> Value {
    let functions = service.functions().await;
    functions[address]["driver"].clone()
}

const UUID: &str = "8e45a2ea-5364-4b0d-a252-bf8becaa606e";

#[tokio::test]
async fn the_seeds_examples() {
    let service = service("").await;
    let body = json!({ "name": "IPSec Card", "uuid": UUID });
    let created = service.post("/accelerators", body.clone()).await.expect(201);
    assert_eq!(created.body, Value::Null);
    assert!(created.location.unwrap().ends_with(&format!("/accelerators/{UUID}")));
    // Of the name as of the id there is one.
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
    // Nothing here is such a device, and the answer says what there is.
    let refused =
        service.put(&format!("/accelerators/{UUID}"), json!({ "name": "IPSec Card", "uuid": UUID })).await;
    let refused = refused.expect(409);
    assert!(refused.message().contains("its device_type is"), "{}", refused.message());
    service.delete(&format!("/accelerator/{UUID}")).await.expect(204);
    assert_eq!(shown(&service, &format!("/accelerators/{UUID}")).await["acc_specs"], acc_specs);
}

#[tokio::test]
async fn a_spec_is_put_over_the_one_that_was_read() {
    let service = service("").await;
    let path = made(&service, "a", json!({ "num": 1 })).await;
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
    // What is attached or detached is what was read.
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
    // All of it: what is not said is as it was at first.
    assert_eq!(shown(&service, &path).await["acc_specs"]["device_type"], "UNKNOWN");
}

#[tokio::test]
async fn what_is_put_is_kept_as_it_is() {
    let service = service("").await;
    let path = made(&service, "a", json!({})).await;
    for spec in [
        json!({ "remote": i64::MIN, "num": 256, "device_type": "aichip", "acc_capability": {} }),
        json!({ "remote": 2, "num": 0, "device_type": "unknown", "acc_capability": { "a": [-1, 0.1, u64::MAX, null] } }),
    ] {
        let put = service.put(&format!("{path}/acc_spec"), json!({ "acc_specs": spec })).await.expect(200);
        assert_eq!(put.body["acc_specs"], spec);
        assert_eq!(shown(&service, &path).await["acc_specs"], spec);
    }
    let refused = service.put(&path, json!({})).await.expect(409);
    assert!(refused.message().contains("1 to 256"), "{}", refused.message());
}

#[tokio::test]
async fn cyborgs_first_clients_find_their_members_and_have_them_sorted() {
    let service = service("").await;
    for (name, remote) in [("b", 10), ("a", 9), ("c", -1)] {
        made(&service, name, json!({ "remote": remote })).await;
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
        let nested =
            value.is_array() || value.is_object() || ["pinned", "project_id", "user_id"].contains(&&**key);
        let status = service.get(&format!("/v1/accelerators?sort_key={key}")).await.status;
        assert_eq!(status, if nested { 400 } else { 200 }, "{key}");
    }
}

#[tokio::test]
async fn it_goes_into_a_server_by_its_spec_and_comes_back() {
    let service = service("").await;
    let path =
        made(&service, "vf", json!({ "vendor_id": "8086", "product_id": "10ca", "device_type": "nic" }))
            .await;
    let attached = service.put(&path, json!({ "instance_uuid": Q35 })).await.expect(200).body;
    assert_eq!((&attached["status"], &attached["instance_uuid"]), (&json!("attached"), &json!(Q35)));
    assert_eq!((&attached["address"], &attached["host"]), (&json!("0000:04:10.0"), &json!("node1")));
    assert_eq!(attached["driver"], "vfio-pci");
    assert!(attached["inner_address"].is_string());
    // The same device is seen through the other doors, and goes only through its own.
    let attachments = service.attachments(Q35).await;
    assert_eq!(attachments[0]["inner_address"], attached["inner_address"]);
    let refused = service.delete(&path_of(&attachments[0])).await.expect(409);
    assert!(refused.message().contains("accelerator"), "{}", refused.message());
    assert_eq!(service.device("0000:04:10.0").await["instance_uuid"], Q35);
    // Once, wherever to.
    for target in [json!({ "instance_uuid": Q35 }), json!({ "server_id": I440FX }), json!({})] {
        service.put(&path, target).await.expect(409);
    }
    service.delete(&path).await.expect(204);
    service.delete(&path).await.expect(204);
    assert_eq!(driver(&service, "0000:04:10.0").await, "igbvf");
    let after = shown(&service, &path).await;
    assert_eq!((&after["status"], &after["name"]), (&json!("available"), &json!("vf")));
    service.put(&path, json!({ "server_id": I440FX })).await.expect(200);
    service.delete(&format!("{path}?purge=true")).await.expect(204);
    service.get(&path).await.expect(404);
    service.expect_clean().await;
}

#[tokio::test]
async fn a_host_has_it_on_vfio_or_with_its_own_driver() {
    let service = service("").await;
    let vf = made(&service, "vf", json!({ "product_id": "10ca" })).await;
    let bound = service.put(&vf, json!({ "hostname": "node1", "driver": "vfio-pci" })).await.expect(200).body;
    let address = bound["address"].as_str().unwrap().to_owned();
    assert_eq!(
        (&bound["status"], &bound["driver"], &bound["instance_uuid"]),
        (&json!("attached"), &json!("vfio-pci"), &Value::Null)
    );
    assert_eq!(bound["devices"][0]["previous_driver"], "igbvf");
    let row = service.device(&address).await;
    assert_eq!((&row["status"], &row["instance_uuid"]), (&json!("allocated"), &Value::Null));
    assert_eq!(service.functions().await[&address]["owner"], "its host");
    // No other door gives it away.
    let both = service.attach(Q35, "vf:2").await;
    assert_eq!(both.status, 400, "{}", both.body);
    service.delete(&vf).await.expect(204);
    assert_eq!(driver(&service, &address).await, "igbvf");

    let native = service.put(&vf, json!({})).await.expect(200).body;
    assert_eq!((&native["driver"], &native["host"]), (&json!("igbvf"), &json!("node1")));
    service.delete(&vf).await.expect(204);
    let nowhere = service.put(&vf, json!({ "host": "node2" })).await.expect(409);
    assert!(nowhere.message().contains("node1"), "{}", nowhere.message());
    service.put(&vf, json!({ "host": "node1", "instance_uuid": Q35 })).await.expect(400);
    service.put(&vf, json!({ "host": "node1", "driver": "igb" })).await.expect(400);
    service.put(&vf, json!({ "instance_uuid": Q35, "driver": "native" })).await.expect(400);
    service.put(&vf, json!({ "instance_uuid": UUID })).await.expect(404);
    service.put(&vf, json!({ "name": "other" })).await.expect(400);
    service.expect_clean().await;
}

#[tokio::test]
async fn several_devices_come_all_or_none() {
    let service = service("").await;
    let two = made(&service, "two", json!({ "num": 2, "product_id": "10ca" })).await;
    for target in [json!({ "instance_uuid": Q35 }), json!({ "driver": "vfio-pci" })] {
        let attached = service.put(&two, target.clone()).await.expect(200).body;
        assert_eq!(attached["devices"].as_array().unwrap().len(), 2);
        service.delete(&two).await.expect(204);
        let other = service.attach(I440FX, "vf:1").await.expect(200).body["pci_devices"][0].clone();
        service.put(&two, target).await.expect(409);
        assert_eq!(shown(&service, &two).await["status"], "available");
        service.delete(&path_of(&other)).await.expect(200);
    }
    let none = made(&service, "none", json!({ "num": 0 })).await;
    service.put(&none, json!({})).await.expect(409);
    service.expect_clean().await;
}

#[tokio::test]
async fn a_device_by_its_own_id() {
    let service = service("[accelerators]\ndiscovered = true\n").await;
    let all = service.get("/accelerators").await.expect(200).body["accelerator"].clone();
    let nvme = all.as_array().unwrap().iter().find(|one| one["device_type"] == "NVMe").unwrap();
    let (uuid, address) = (nvme["uuid"].as_str().unwrap(), nvme["address"].as_str().unwrap());
    assert_eq!(service.device(address).await["uuid"], uuid);
    let path = format!("/accelerators/{uuid}");
    let attached = service.put(&path, json!({ "instance_uuid": Q35 })).await.expect(200).body;
    assert_eq!((&attached["address"], &attached["pinned"]), (&json!(address), &json!(true)));
    service.delete(&path).await.expect(204);
    // It is that device also when somebody else has it: then it cannot be attached, nor detached here.
    let vf = all.as_array().unwrap().iter().find(|one| one["product_id"] == "10ca").unwrap();
    let vf = format!("/accelerators/{}", vf["uuid"].as_str().unwrap());
    let other = service.attach(I440FX, "vf:1").await.expect(200).body["pci_devices"][0].clone();
    service.put(&vf, json!({ "instance_uuid": Q35 })).await.expect(409);
    let held = service.delete(&vf).await.expect(409);
    assert!(held.message().contains(I440FX), "{}", held.message());
    service.delete(&path_of(&other)).await.expect(200);
    service.delete(&vf).await.expect(204);
}

/// Makes the accelerator that is the device at an address, and answers its path.
async fn pinned(service: &Hotslot, address: &str) -> String {
    let uuid = service.device(address).await["uuid"].as_str().unwrap().to_owned();
    service.post("/accelerators", json!({ "name": address, "uuid": uuid })).await.expect(201);
    format!("/accelerators/{uuid}")
}

#[tokio::test]
async fn a_device_that_comes_back_is_the_same_accelerator() {
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
    service.put(&path(&one), json!({})).await.expect(200);
    service.delete(&path(&one)).await.expect(204);
    for name in ["pci_0000_04_10_0", "pci_0000_04_10_2"] {
        service.sim(&format!("device remove {name}"));
    }
    let status = async |device: &Value| shown(&service, &path(device)).await["status"].clone();
    service.until("its device is gone", async || status(&one).await == "error").await;
    service.until("so is the other", async || service.get(&path(&other)).await.status == 404).await;
    // One that is gone at the moment can be named.
    let body = json!({ "name": "node1_0000:04:10.2", "uuid": other["uuid"] });
    service.post("/accelerators", body).await.expect(201);
    for device in [&one, &other] {
        let refused = service.put(&path(device), json!({})).await.expect(409);
        assert!(refused.message().contains("is gone from the host"), "{}", refused.message());
    }
    for name in ["pci_0000_04_10_0", "pci_0000_04_10_2"] {
        service.sim(&format!("device add {name}"));
    }
    for device in [&one, &other] {
        service.until("it is back", async || status(device).await == "available").await;
        let address = device["address"].as_str().unwrap();
        let now = service.device(address).await;
        assert_eq!((&now["uuid"], &now["id"]), (&device["uuid"], &device["id"]));
        assert_eq!(service.put(&path(device), json!({})).await.expect(200).body["address"], address);
        service.delete(&path(device)).await.expect(204);
    }
    assert_eq!(names().await, before);
    service.expect_clean().await;
}

#[tokio::test]
async fn a_name_that_a_discovered_one_shows_is_taken() {
    let service = service("[accelerators]\ndiscovered = true\n").await;
    let uuid = service.device("0000:05:00.0").await["uuid"].clone();
    let name = "node1_0000:05:00.0";
    let refused = service.post("/accelerators", json!({ "name": name })).await.expect(409);
    assert!(refused.message().contains(uuid.as_str().unwrap()), "{}", refused.message());
    // And that by which it would be told apart from another of that name.
    let apart = format!("{name}_{}", uuid.as_str().unwrap());
    service.post("/accelerators", json!({ "name": apart })).await.expect(409);
    service.post("/accelerators", json!({ "name": name, "uuid": uuid })).await.expect(201);
    service.post("/accelerators", json!({ "name": name })).await.expect(409);
}

#[tokio::test]
async fn what_others_hold_is_said_and_not_detached_here() {
    let service = service("").await;
    let (pf, vf) = (pinned(&service, "0000:04:00.0").await, pinned(&service, "0000:04:10.2").await);
    let (half, whole) = (pinned(&service, "0000:06:00.0").await, pinned(&service, "0000:06:00.1").await);
    let other = service.attach(I440FX, "vf:1").await.expect(200).body["pci_devices"][0].clone();
    for (path, says) in [(&pf, "0000:04:10.0, a VF of its device 0000:04:00.0"), (&pf, I440FX)] {
        let refused = service.delete(path).await.expect(409);
        assert!(refused.message().contains(says), "{}", refused.message());
    }
    let reason = shown(&service, &pf).await["status_reason"].clone();
    assert!(reason.as_str().unwrap().contains("a VF of its device"), "{reason}");
    let refused = service.put(&pf, json!({})).await.expect(409);
    assert!(refused.message().contains("a VF of it, 0000:04:10.0, is held by"), "{}", refused.message());
    // VFs of one PF have nothing to do with each other.
    service.delete(&vf).await.expect(204);
    service.delete(&path_of(&other)).await.expect(200);
    service.delete(&pf).await.expect(204);

    service.put(&pf, json!({})).await.expect(200);
    let refused = service.delete(&vf).await.expect(409);
    assert!(refused.message().contains("the PF of its device"), "{}", refused.message());
    service.delete(&pf).await.expect(204);
    service.put(&half, json!({})).await.expect(200);
    let refused = service.delete(&whole).await.expect(409);
    assert!(refused.message().contains("0000:06:00.0, a member of the IOMMU group"), "{}", refused.message());
    let refused = service.put(&whole, json!({ "instance_uuid": Q35 })).await.expect(409);
    assert!(refused.message().contains("is held by its host"), "{}", refused.message());
    service.delete(&half).await.expect(204);
    // By another accelerator, which has the device.
    let any = made(&service, "any", json!({ "product_id": "10c9" })).await;
    service.put(&any, json!({})).await.expect(200);
    let reason = shown(&service, &pf).await["status_reason"].clone();
    assert_eq!(reason, "its device 0000:04:00.0 is held by its host; detach it there");
    let refused = service.delete(&pf).await.expect(409);
    let holder = any.replace("/accelerators/", "for accelerator:");
    assert!(refused.message().contains(&holder), "{}", refused.message());
    service.delete(&any).await.expect(204);
    assert_eq!(shown(&service, &pf).await["status_reason"], Value::Null);
}

#[tokio::test]
async fn with_half_its_devices_it_is_not_attached_and_is_detached_again() {
    let service = service("").await;
    let two = made(&service, "two", json!({ "num": 2, "product_id": "10ca" })).await;
    for (target, fault) in [
        (json!({ "instance_uuid": Q35 }), "fault detach fail nth=4 kind=unplug-refused text=no"),
        (json!({ "driver": "vfio-pci" }), "fault node-reattach fail nth=2 text=stuck"),
    ] {
        service.put(&two, target).await.expect(200);
        service.sim(fault);
        assert_ne!(service.delete(&two).await.status, 204, "{fault}");
        service.sim("fault clear");
        let half = shown(&service, &two).await;
        assert_eq!(half["devices"].as_array().unwrap().len(), 1, "{half}");
        assert_eq!(
            (&half["status"], half["status_reason"].as_str()),
            (&json!("error"), Some("holds 1 of 2 devices; DELETE it again"))
        );
        let refused = service.put(&two, json!({})).await.expect(409);
        assert!(refused.message().contains("holds 1 of 2"), "{}", refused.message());
        service.delete(&two).await.expect(204);
        assert_eq!(shown(&service, &two).await["status"], "available");
    }
    service.expect_clean().await;
}

#[tokio::test]
async fn one_that_may_not_be_asked_keeps_no_other() {
    let pci = "[pci]\ndevice_spec = ['{\"address\": \"0000:04:10.0\", \"hot_unplug\": \"refuse\"}', \
               '{\"address\": \"0000:04:10.2\"}']\n";
    let service = Hotslot::bare(&host("small"), pci, |_| ()).await;
    let two = made(&service, "two", json!({ "num": 2, "product_id": "10ca" })).await;
    service.put(&two, json!({ "instance_uuid": Q35 })).await.expect(200);
    let refused = service.delete(&two).await.expect(409);
    assert!(refused.message().contains("hot_unplug"), "{}", refused.message());
    let half = shown(&service, &two).await;
    assert_eq!((&half["status"], &half["devices"][0]["address"]), (&json!("error"), &json!("0000:04:10.0")));
    assert_eq!(service.device("0000:04:10.2").await["status"], "available");
    service.delete(&format!("{two}?force=true")).await.expect(204);
    service.expect_clean().await;
}

#[tokio::test]
async fn killed_while_it_gives_two_back_it_gives_both_back() {
    let mut service = service("").await;
    let two = made(&service, "two", json!({ "num": 2, "product_id": "10ca" })).await;
    service.put(&two, json!({ "driver": "vfio-pci" })).await.expect(200);
    service.sim("latency node-reattach 60000");
    let waited =
        tokio::time::timeout(std::time::Duration::from_secs(1), service.send(Method::DELETE, &two, None))
            .await;
    assert!(waited.is_err(), "it did not wait");
    service.kill();
    service.start_again().await;
    // That both are to go was on record before the first was touched.
    service.until("both are given back", async || shown(&service, &two).await["status"] == "available").await;
    service.until("both have their driver", async || driver(&service, "0000:04:10.2").await == "igbvf").await;
    service.expect_clean().await;
}

#[tokio::test]
async fn a_pf_is_not_counted_beside_its_vfs() {
    let service = Hotslot::bare(
        &host("small"),
        "[pci]\ndevice_spec = ['{\"product_id\": \"10c9\"}', '{\"product_id\": \"10ca\"}']\n",
        |_| (),
    )
    .await;
    let three = made(&service, "three", json!({ "num": 3, "device_type": "NIC" })).await;
    let refused = service.put(&three, json!({})).await.expect(409);
    assert!(
        refused.message().contains("3 devices, and 2 on host node1 could be bound"),
        "{}",
        refused.message()
    );
    assert!(
        refused.message().contains("0000:04:00.0 cannot go beside 0000:04:10.0"),
        "{}",
        refused.message()
    );
    let refused = service.put(&three, json!({ "instance_uuid": Q35 })).await.expect(409);
    assert!(!refused.message().contains("took the devices first"), "{}", refused.message());
    service.expect_clean().await;
}

#[tokio::test]
async fn with_no_host_named_one_that_answers_has_it() {
    let size = |number| Size { pfs: 1, vfs: if number == 0 { 4 } else { 2 }, guests: 1, ports: 1 };
    let service = Hotslot::many(2, PCI, |number, dir| size(number).write(dir).unwrap()).await;
    let path = made(&service, "any", json!({})).await;
    // Most are free there.
    assert_eq!(service.put(&path, json!({})).await.expect(200).body["host"], "host0");
    service.delete(&path).await.expect(204);
    let host0 = service.database().with_file_name("host0");
    assert_eq!(control(&host0, "disconnect").unwrap(), "ok");
    let is_down = async || {
        let hosts = service.get("/v2.1/os-hypervisors").await.expect(200).body["hypervisors"].clone();
        hosts.as_array().unwrap().iter().any(|host| host["state"] == "down")
    };
    service.until("it is away", is_down).await;
    assert_eq!(service.put(&path, json!({})).await.expect(200).body["host"], "host1");
    service.delete(&path).await.expect(204);
    service.put(&path, json!({ "host": "host0" })).await.expect(503);
    let nowhere = service.put(&path, json!({ "host": "host2" })).await.expect(409);
    assert!(nowhere.message().contains("host0, host1"), "{}", nowhere.message());
}

#[tokio::test]
async fn a_host_that_does_not_answer_or_is_not_configured_is_missed_alone() {
    let size = Size { pfs: 1, vfs: 4, guests: 1, ports: 1 };
    let config = format!("{PCI}[accelerators]\ndiscovered = true\n");
    let mut service = Hotslot::many(2, &config, |_, dir| size.write(dir).unwrap()).await;
    let three = made(&service, "three", json!({ "product_id": "10ca", "num": 3 })).await;
    let one = made(&service, "one", json!({ "product_id": "10ca" })).await;
    service.put(&three, json!({ "host": "host1" })).await.expect(200);
    service.put(&one, json!({ "host": "host0" })).await.expect(200);
    let host1 = service.database().with_file_name("host1");
    assert_eq!(control(&host1, "fault device hang times=100000").unwrap(), "ok");
    // It is waited for once, and not for each of its devices.
    let list = tokio::time::timeout(Duration::from_secs(9), service.get("/accelerators"));
    let list = list.await.expect("an answer").expect(200).body["accelerator"].clone();
    let named = |name: &str| list.as_array().unwrap().iter().find(|other| other["name"] == name).unwrap();
    assert!(named("one")["driver"].is_string(), "{list}");
    assert_eq!((&named("three")["driver"], &named("three")["status"]), (&Value::Null, &json!("attached")));
    assert_eq!(control(&host1, "fault clear").unwrap(), "ok");
    for path in [&three, &one] {
        service.delete(path).await.expect(204);
    }

    let mine =
        list.as_array().unwrap().iter().find(|other| other["host"] == "host1" && other["pinned"] == true);
    let mine = format!("/accelerators/{}", mine.unwrap()["uuid"].as_str().unwrap());
    service.put(&format!("{mine}/acc_spec"), json!({ "acc_specs": {} })).await.expect(200);
    let host1 = format!("[[hypervisor]]\nname = \"host1\"\nuri = \"sim://{}\"\n", host1.display());
    service.reconfigure(&host1, "");
    service.kill();
    service.start_again().await;
    let list = service.get("/accelerators").await.expect(200).body["accelerator"].clone();
    let without: Vec<_> = list.as_array().unwrap().iter().filter(|one| one["host"] == Value::Null).collect();
    let names: Vec<_> = without.iter().filter(|one| one["pinned"] == true).map(|one| &one["uuid"]).collect();
    assert_eq!(names, [&shown(&service, &mine).await["uuid"]]);
    let gone = shown(&service, &mine).await;
    assert_eq!(gone["status"], "error");
    assert!(gone["status_reason"].as_str().unwrap().contains("no longer configured"), "{gone}");
}

#[tokio::test]
async fn it_is_said_which_hosts_have_such() {
    let size = |number| Size { pfs: 1, vfs: if number == 1 { 2 } else { 0 }, guests: 1, ports: 1 };
    let service = Hotslot::many(3, PCI, |number, dir| size(number).write(dir).unwrap()).await;
    let path = made(&service, "vf", json!({ "product_id": "10ca" })).await;
    for target in [json!({ "host": "host0" }), json!({ "host": "host2", "driver": "vfio-pci" })] {
        let refused = service.put(&path, target).await.expect(409);
        assert!(refused.message().ends_with("; hosts that have such: host1"), "{}", refused.message());
    }
    assert_eq!(service.put(&path, json!({})).await.expect(200).body["host"], "host1");
    service.delete(&path).await.expect(204);
}

#[tokio::test]
async fn what_it_says_of_its_devices_is_so() {
    let service = service("").await;
    let spec = json!({ "product_id": "10ca", "device_type": "nic" });
    let path = made(&service, "vf", spec).await;
    // By the name that the host has for itself.
    let attached = service.put(&path, json!({ "host": "small" })).await.expect(200).body;
    assert_eq!((&attached["host"], &attached["devices"][0]["device_type"]), (&json!("node1"), &json!("NIC")));
    let refused = service.put(&path, json!({})).await.expect(409);
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
    // Of all that it is not, what comes nearest is told.
    let nearly = json!({ "acc_specs": { "vendor_id": "8086", "product_id": "ffff", "device_type": "NIC" } });
    service.put(&path, nearly).await.expect(200);
    let refused = service.put(&path, json!({})).await.expect(409);
    assert!(refused.message().contains("its product_id is 10c9, not ffff"), "{}", refused.message());
    // The same product comes nearer than another one of the type.
    let nearly = json!({ "acc_specs": { "vendor_id": "8086", "product_id": "10d3", "device_type": "NVMe" } });
    service.put(&path, nearly).await.expect(200);
    let refused = service.put(&path, json!({})).await.expect(409);
    assert!(refused.message().contains("its device_type is NIC, not NVMe"), "{}", refused.message());
}

#[tokio::test]
async fn a_device_type_that_does_not_exist_is_refused_when_it_is_put() {
    let service = service("").await;
    let path = made(&service, "a", json!({ "num": 1 })).await;
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
    let kept = &shown(&service, &path).await["acc_specs"];
    assert_eq!((&kept["device_type"], &kept["num"]), (&json!("UNKNOWN"), &json!(1)), "nothing was put");
}

#[tokio::test]
async fn of_many_who_ask_through_all_doors_one_gets_it() {
    let service = service("").await;
    let one = json!({ "product_id": "10d3", "num": 1 });
    let (first, second) = (made(&service, "a", one.clone()).await, made(&service, "b", one).await);
    let alias = json!({ "alias": { "name": "e1000e", "vendor_id": "8086", "product_id": "10d3" } });
    service.post("/v2.1/os-pci-config/alias", alias).await.expect(201);
    let free = service.get("/v2.1/os-pci/detail?product_id=10d3&status=available").await.expect(200).body;
    let free = free["pci_devices"].as_array().unwrap().len();
    for round in 0..5 {
        let targets = [
            (&first, json!({ "instance_uuid": Q35 })),
            (&first, json!({ "host": "node1" })),
            (&second, json!({ "driver": "vfio-pci" })),
            (&second, json!({ "instance_uuid": I440FX })),
        ];
        let all = format!("e1000e:{free}");
        let doors = targets.iter().map(|(path, body)| service.put(path, body.clone()));
        let (accelerators, attach) = tokio::join!(join_all(doors), service.attach(I440FX, &all));
        let good = |answer: &&Answer| answer.status == 200;
        let won = accelerators.iter().filter(good).count();
        for answer in &accelerators {
            assert!([200, 409].contains(&answer.status), "{round}: {}", answer.body);
        }
        // All of them for one server, or at most one for each accelerator.
        match attach.status {
            200 => assert_eq!(won, 0, "{round}"),
            _ => assert!(won <= free.min(2), "{round}: {won} of {free}"),
        }
        let held = service.get("/v2.1/os-pci/detail?product_id=10d3&status=allocated").await.expect(200).body;
        let held = held["pci_devices"].as_array().unwrap().len();
        assert_eq!(held, if attach.status == 200 { free } else { won }, "{round}");
        service.delete(&first).await.expect(204);
        service.delete(&second).await.expect(204);
        for attachment in service.attachments(I440FX).await {
            service.delete(&path_of(&attachment)).await.expect(200);
        }
    }
    // The card whose functions share an IOMMU group gets its host driver back when the last of it has left.
    service
        .until("the host drivers are back", async || {
            service.functions().await.values().all(|function| function["driver"] != "vfio-pci")
        })
        .await;
    service.expect_clean().await;
}

#[tokio::test]
async fn killed_while_it_binds_it_gives_the_device_back() {
    let mut service = service("").await;
    let path = made(&service, "vf", json!({ "product_id": "10ca" })).await;
    service.sim("latency node-detach 60000");
    let asked = service.send(
        Method::PUT,
        &path,
        Some(("application/json", json!({ "driver": "vfio-pci" }).to_string())),
    );
    let waited = tokio::time::timeout(std::time::Duration::from_secs(1), asked).await;
    assert!(waited.is_err(), "it did not wait");
    assert_eq!(shown(&service, &path).await["status"], "attaching");
    service.kill();
    service.start_again().await;
    service
        .until("the binding is settled", async || shown(&service, &path).await["status"] == "available")
        .await;
    assert_eq!(driver(&service, "0000:04:10.0").await, "igbvf");
    service.put(&path, json!({ "driver": "vfio-pci" })).await.expect(200);
    // On vfio, and restarted: it stays.
    service.kill();
    service.start_again().await;
    assert_eq!(shown(&service, &path).await["driver"], "vfio-pci");
    service.delete(&path).await.expect(204);
    service.expect_clean().await;
}

/// An attach that waits for its turn while its accelerator is purged gets nothing.
#[tokio::test]
async fn what_is_purged_while_it_waits_for_its_turn_is_given_nothing() {
    let (vf, card) = (json!({ "device_type": "NIC" }), json!({ "mdev_type": "nvidia-232" }));
    let spec = "[pci]\ndevice_spec = ['{\"vendor_id\": \"10de\"}']\n";
    const G1: &str = "20000000-0000-4000-8000-000000000001";
    for (kind, call, spec_of_both, target) in [
        ("attachment", "attach", vf.clone(), json!({ "instance_uuid": Q35 })),
        ("binding", "node-detach", vf, json!({ "driver": "vfio-pci" })),
        ("mediated device", "attach", card, json!({ "instance_uuid": G1 })),
    ] {
        let service = if kind == "mediated device" {
            Hotslot::bare(&host("accelerators"), spec, without_mdevs).await
        } else {
            service("").await
        };
        let first = made(&service, "first", spec_of_both.clone()).await;
        let purged = made(&service, "purged", spec_of_both).await;
        let asked = |path: &str| {
            let (api, path, target) = ((*service).clone(), path.to_owned(), target.clone());
            tokio::spawn(async move { api.put(&path, target).await })
        };
        service.sim(&format!("fault {call} hang"));
        let has_turn = asked(&first);
        service.until("its turn has come", async || service.log().contains("a fault applies to ")).await;
        let waits = asked(&purged);
        tokio::time::sleep(Duration::from_millis(300)).await;
        service.delete(&format!("{purged}?purge=true")).await.expect(204);
        service.sim("fault clear");
        has_turn.await.unwrap().expect(200);
        let refused = waits.await.unwrap();
        assert_eq!(refused.status, 404, "{kind}: {}", refused.body);
        service.delete(&first).await.expect(204);
        service.expect_clean().await;
    }
}
