//! IOMMU groups with several functions that a host driver uses.

use hotslot_tests::{Hotslot, Q35, attachments, host, path};
use serde_json::{Value, json};

use super::explain::{dry_run, result};

/// Configuration that offers only the card with two functions in one IOMMU group, both bound to a host driver.
const CARD: &str = "[pci]\ndevice_spec = ['{\"address\": \"*:06:00.*\"}']\n\
                    alias = ['{\"name\": \"a1\", \"vendor_id\": \"8086\", \"product_id\": \"10d3\"}']\n";
const CARD_FUNCTIONS: [&str; 2] = ["0000:06:00.0", "0000:06:00.1"];

/// Waits until these functions are bound to their host driver again.
async fn rebound(service: &Hotslot, functions: &[&str]) {
    service
        .until("all are bound to their host driver again", async || {
            let all = service.functions().await;
            functions.iter().all(|address| all[*address]["driver"] == "e1000e")
        })
        .await;
}

#[tokio::test]
async fn a_busy_group_is_refused_unless_whole_group_is_requested() {
    let service = Hotslot::bare(&host("small"), CARD, |_| ()).await;
    let refused = service.attach(Q35, "a1:1").await.expect(409);
    assert!(refused.message().contains("IOMMU group 18"), "{}", refused.message());
    assert_eq!(service.functions().await["0000:06:00.1"]["driver"], "e1000e", "nothing was changed");
    assert!(refused.message().contains("virsh nodedev-detach pci_0000_06_00_1"), "{}", refused.message());
    // The advised command takes effect at once, although libvirt sends no event for it. The operator must rebind the
    // driver.
    service.sim("device driver 0000:06:00.1 vfio-pci");
    let one = service.attach(Q35, "a1:1").await.expect(200).body["pci_devices"][0].clone();
    assert_eq!(one["address"], "0000:06:00.0");
    service.delete(&path(&one)).await.expect(200);
    service.sim("device driver 0000:06:00.1 e1000e");

    let body = json!({ "pciAttachment": { "pci_passthrough:alias": "a1:1", "whole_group": true } });
    let answer = service.post(&attachments(Q35), body).await.expect(200).body;
    let devices = answer["pci_devices"].as_array().unwrap();
    let of = |key: &str| devices.iter().map(|device| device[key].clone()).collect::<Vec<_>>();
    assert_eq!(of("address"), ["0000:06:00.0", "0000:06:00.1"]);
    assert_eq!(of("whole_group"), [true, true]);
    service.delete(&path(&devices[0])).await.expect(200);
    // The other function is still in the guest, so this one must not be bound to a host driver.
    assert_eq!(service.functions().await["0000:06:00.0"]["driver"], "vfio-pci");
    service.delete(&path(&devices[1])).await.expect(200);
    rebound(&service, &CARD_FUNCTIONS).await;
    service.expect_clean().await;
}

async fn candidates(service: &Hotslot, query: &str) -> Vec<Value> {
    let path = format!("/v2/demo/os-hypervisors/1/pci_candidates?{query}");
    let body = service.get(&path).await.expect(200).body;
    let listed = |line: &&Value| line["address"].as_str().unwrap().starts_with("0000:06:00.");
    body["pci_candidates"].as_array().unwrap().iter().filter(listed).cloned().collect()
}

#[tokio::test]
async fn a_dry_run_names_the_holder_of_a_group_member() {
    let service = Hotslot::bare(&host("small"), CARD, |_| ()).await;
    let uuid = service.device("0000:06:00.1").await["uuid"].clone();
    let body = json!({ "name": "a", "uuid": uuid });
    service.post("/accelerators", body).await.expect(201);
    let path = format!("/accelerators/{}", uuid.as_str().unwrap());
    service.put(&path, json!({ "driver": "native" })).await.expect(200);
    let run = dry_run(&service, Q35, "a1:1").await;
    assert_eq!((&run["would_attach"], result(&run, "choice", None)), (&json!(false), &json!("fail")));
    let viable =
        run["checks"].as_array().unwrap().iter().find(|line| line["check"] == "group-viable").unwrap();
    assert_eq!((&viable["result"], &viable["cure"]), (&json!("fail"), &json!(null)));
    let message = viable["message"].as_str().unwrap();
    assert!(message.contains("its member 0000:06:00.1 is held by its host; detach it there"), "{message}");
    service.delete(&path).await.expect(204);
    service.expect_clean().await;
}

#[tokio::test]
async fn a_request_for_all_functions_of_a_group_needs_no_flag() {
    let service = Hotslot::bare(&host("small"), CARD, |_| ()).await;
    // One function alone is refused. The message lists the remedies in this order.
    let refused = service.attach(Q35, "a1:1").await.expect(409);
    let place = |text: &str| {
        refused.message().find(text).unwrap_or_else(|| panic!("no {text}: {}", refused.message()))
    };
    let helps =
        ["not viable", "whole_group", "ask for 2", "virsh nodedev-detach pci_0000_06_00_1"].map(place);
    assert!(helps.is_sorted(), "{}", refused.message());
    let run = dry_run(&service, Q35, "a1:1").await;
    assert_eq!((&run["would_attach"], result(&run, "group-viable", None)), (&json!(false), &json!("fail")));
    let cures = run["checks"].as_array().unwrap().iter().filter_map(|check| check["cure"].as_str());
    assert!(cures.into_iter().any(|cure| cure.starts_with("ask with whole_group")), "{run:#}");
    let why = candidates(&service, "alias=a1").await;
    assert!(
        why.iter().all(|line| line["why"].as_str().is_some_and(|why| why.contains("ask for 2"))),
        "{why:?}"
    );

    let run = dry_run(&service, Q35, "a1:2").await;
    assert_eq!(run["would_attach"], true, "{run:#}");
    assert_eq!(result(&run, "group-viable", Some("0000:06:00.0")), "pass");
    let places: Vec<_> = candidates(&service, "alias=a1&count=2").await;
    assert_eq!(places.iter().map(|line| line["place"].as_u64()).collect::<Vec<_>>(), [Some(0), Some(1)]);
    assert_eq!(service.functions().await["0000:06:00.1"]["driver"], "e1000e", "nothing was changed");

    let answer = service.attach(Q35, "a1:2").await.expect(200).body;
    let devices = answer["pci_devices"].as_array().unwrap();
    assert_eq!(
        devices.iter().map(|device| device["address"].clone()).collect::<Vec<_>>(),
        ["0000:06:00.0", "0000:06:00.1"]
    );
    // When all devices are in use, no other form of the request helps.
    let body = json!({ "pciAttachment": { "pci_passthrough:alias": "a1:1", "whole_group": true } });
    let refused = service.post(&attachments(Q35), body).await.expect(400);
    assert!(refused.message().contains("detach one"), "{}", refused.message());
    assert!(!refused.message().contains("without whole_group"), "{}", refused.message());

    service.delete(&path(&devices[0])).await.expect(200);
    // The other function is still in the guest, so this one must not be bound to a host driver.
    assert_ne!(service.functions().await["0000:06:00.0"]["driver"], "e1000e");
    service.delete(&path(&devices[1])).await.expect(200);
    rebound(&service, &CARD_FUNCTIONS).await;
    service.expect_clean().await;
}

#[tokio::test]
async fn a_whole_group_is_taken_when_needed_for_the_count() {
    let service = Hotslot::on("small").await;
    // One device is alone in its group, two are the card, and three are all of them.
    for (count, wanted) in [
        (1, vec!["0000:05:00.0"]),
        (2, vec!["0000:06:00.0", "0000:06:00.1"]),
        (3, vec!["0000:05:00.0", "0000:06:00.0", "0000:06:00.1"]),
    ] {
        let answer = service.attach(Q35, &format!("e1000e:{count}")).await.expect(200).body;
        let devices = answer["pci_devices"].as_array().unwrap();
        let of = devices.iter().map(|device| device["address"].as_str().unwrap()).collect::<Vec<_>>();
        assert_eq!(of, wanted);
        for device in devices {
            service.delete(&path(device)).await.expect(200);
        }
        rebound(&service, &wanted).await;
    }
    service.expect_clean().await;
}
