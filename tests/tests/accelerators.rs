//! Accelerators: made, specified, attached to servers and hosts, detached; and that no device is given twice, whichever
//! door it was asked through.

use futures_util::future::join_all;
use hotslot_tests::{Answer, Hotslot, I440FX, Q35, host, path as path_of};
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
    // All of it: what is not said is as it was at first.
    assert_eq!(shown(&service, &path).await["acc_specs"]["device_type"], "UNKNOWN");
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
    service.put(&vf, json!({ "host": "node2" })).await.expect(404);
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
