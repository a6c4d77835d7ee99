//! Drift between the records of mediated devices, the host and the domains: what is reported and what is repaired.

use std::fs;
use std::path::PathBuf;

use hotslot_tests::{Answer, Hotslot, host};
use serde_json::{Value, json};

use super::{
    FIRST, FOUR, G1, G3, GPU, PCI, attach, expect_untouched, service, status, uuids, with_another_card,
};

pub(super) async fn drift(service: &Hotslot) -> Vec<Value> {
    service.get("/v2.1/drift").await.expect(200).body["drift"].as_array().unwrap().clone()
}

async fn repair(service: &Hotslot) -> Vec<Value> {
    service.post("/v2.1/drift", json!({})).await.expect(200).body["drift"].as_array().unwrap().clone()
}

/// Whether `found` has all members of `expected`.
fn says(found: &Value, expected: &Value) -> bool {
    expected.as_object().unwrap().iter().all(|(key, value)| found[key] == *value)
}

/// Returns the file in which the simulated host keeps a domain.
fn saved_domain(service: &Hotslot, server: &str) -> PathBuf {
    service.host_dir().join("state/domains").join(format!("{server}.json"))
}

/// Returns the persistent definition of a server, as the simulated host keeps it.
fn definition(service: &Hotslot, server: &str) -> String {
    let saved = fs::read_to_string(saved_domain(service, server)).unwrap();
    let saved: Value = serde_json::from_str(&saved).unwrap();
    saved["persistent"].as_str().unwrap().to_owned()
}

/// Removes the host device from the live document of a server, as the simulated host keeps it.
fn remove_from_live(service: &Hotslot, server: &str) {
    let file = saved_domain(service, server);
    let mut saved: Value = serde_json::from_str(&fs::read_to_string(&file).unwrap()).unwrap();
    let live = saved["live"].as_str().unwrap();
    let (start, end) =
        (live.find("<hostdev").unwrap(), live.find("</hostdev>").unwrap() + "</hostdev>".len());
    saved["live"] = format!("{}{}", &live[..start], &live[end..]).into();
    fs::write(&file, saved.to_string()).unwrap();
}

/// Defines a domain, as `virsh define` does.
fn define(service: &Hotslot, xml: &str) {
    let file = service.host_dir().join("defined.xml");
    fs::write(&file, xml).unwrap();
    service.sim(&format!("define {}", file.display()));
}

/// Kills the service, ends the records of all mediated devices in the database and frees the card. The host and its
/// domains keep the devices.
async fn end_records(service: &mut Hotslot, end: &'static str) {
    service.kill();
    service.in_the_database(end).await;
    service
        .in_the_database(
            "UPDATE pci_devices SET status = 'available', instance_uuid = NULL, request_id = NULL",
        )
        .await;
}

const DETACHED: &str = "UPDATE mdevs SET state = 'detached', state_reason = NULL, inner_address = NULL,
    inner_source = NULL, ended_at = created_at";
const UNASKED: &str = "UPDATE mdevs SET state = 'detached', state_reason = NULL, inner_address = NULL,
    inner_source = NULL, unasked = 1, ended_at = created_at WHERE ended_at IS NULL";
const FAILED: &str = "UPDATE mdevs SET state = 'failed', state_reason = 'refused', inner_address = NULL,
    inner_source = NULL, ended_at = created_at";

#[tokio::test]
async fn a_mediated_device_made_by_a_failed_create_is_removed() {
    let service = service().await;
    let two = service.accelerator("two", json!({ "mdev_type": FOUR, "num": 2 })).await;
    let refused = "create-mdev fail at=after text=mdevctl was killed";
    let second = "create-mdev fail at=after nth=2 text=mdevctl was killed";
    // The read after the failed create may fail too; the first read chooses the card.
    for faults in [vec![refused], vec![second], vec![refused, "mdevs fail nth=2"]] {
        // A comparison in the background may run into a fault that is meant for the attach.
        let mut message = String::new();
        for _ in 0..5 {
            for fault in &faults {
                service.sim(&format!("fault {fault}"));
            }
            let failed = attach(&service, &two, G1).await;
            assert!(failed.status >= 400, "{faults:?}: {}", failed.body);
            failed.message().clone_into(&mut message);
            if message.contains("mdevctl was killed") {
                break;
            }
            service.sim("fault clear");
        }
        assert!(message.contains("mdevctl was killed"), "{message}");
        service.until("it is available", async || status(&service, &two).await == "available").await;
        expect_untouched(&service).await;
        assert_eq!(drift(&service).await, [Value::Null; 0]);
    }
    attach(&service, &two, G1).await.expect(200);
    service.delete(&two).await.expect(204);
    expect_untouched(&service).await;
}

#[tokio::test]
async fn a_mediated_device_of_an_ended_record_is_removed_unless_in_use() {
    let mut service = service().await;
    let path = service.accelerator("part", json!({ "mdev_type": FOUR })).await;
    let attached = attach(&service, &path, G3).await.expect(200).body;
    let uuid = attached["devices"][0]["mdev_uuid"].as_str().unwrap().to_owned();
    end_records(&mut service, DETACHED).await;
    // Somebody added the device to the domain by hand.
    let file = saved_domain(&service, G3);
    let saved = fs::read_to_string(&file).unwrap();
    let by_hand = saved.replace(&format!("<alias name='ua-{uuid}'/>"), "");
    assert_ne!(saved, by_hand);
    fs::write(&file, by_hand).unwrap();
    service.start_again().await;
    let found = drift(&service).await;
    let expected =
        json!({ "kind": "stray", "attachment_id": uuid, "address": GPU, "server_id": G3, "done": null });
    assert!(found.len() == 1 && says(&found[0], &expected), "{found:#?}");
    assert!(found[0]["said"]["host"].as_str().unwrap().starts_with("has it of 0000:41:00.0"), "{found:#?}");
    assert!(repair(&service).await.iter().all(|finding| finding["repaired"] == false));
    assert!(uuids(&service).await.contains(&uuid), "a domain has it");

    let original = fs::read_to_string(service.host_dir().join("domains/g3.xml")).unwrap();
    define(&service, &original);
    service.until("the mediated device is removed", async || uuids(&service).await == [FIRST]).await;
    assert_eq!(drift(&service).await, [Value::Null; 0]);
    expect_untouched(&service).await;

    // A device that no domain has is removed at the start of the service.
    attach(&service, &path, G3).await.expect(200);
    end_records(&mut service, DETACHED).await;
    fs::remove_file(saved_domain(&service, G3)).unwrap();
    service.start_again().await;
    service.until("the mediated device is removed", async || uuids(&service).await == [FIRST]).await;
    expect_untouched(&service).await;
}

#[tokio::test]
async fn a_domain_with_a_mediated_device_of_an_ended_record_is_repaired() {
    let mut service = service().await;
    let path = service.accelerator("part", json!({ "mdev_type": FOUR })).await;
    let uuid = |attached: Answer| attached.body["devices"][0]["mdev_uuid"].as_str().unwrap().to_owned();
    attach(&service, &path, G1).await.expect(200);
    // Its detach was requested, so it is removed from every domain that has it.
    end_records(&mut service, DETACHED).await;
    service.start_again().await;
    service.until("it is removed from the domain", async || service.plugged().is_empty()).await;
    service.until("it is removed from the host", async || uuids(&service).await == [FIRST]).await;
    expect_untouched(&service).await;

    // Nobody requested the end of this one, so it is attached again, for the same accelerator.
    let id = uuid(attach(&service, &path, G1).await.expect(200));
    end_records(&mut service, UNASKED).await;
    service.start_again().await;
    service.until("it is attached again", async || status(&service, &path).await == "attached").await;
    let again = service.get(&path).await.expect(200);
    assert_eq!(again.body["devices"][0]["mdev_uuid"], id);
    assert_eq!(drift(&service).await, [Value::Null; 0]);

    // While its accelerator has another one, it stays in the running guest until somebody requests the repair.
    let other = service.accelerator("other", json!({ "mdev_type": FOUR })).await;
    attach(&service, &other, G3).await.expect(200);
    service.kill();
    service
        .in_the_database(
            "UPDATE mdevs SET state = 'detached', state_reason = NULL, inner_address = NULL, inner_source = NULL,
                 unasked = 1, ended_at = created_at,
                 holder = (SELECT holder FROM mdevs WHERE ended_at IS NULL AND server_uuid LIKE '%3')
             WHERE ended_at IS NULL AND server_uuid LIKE '%1'",
        )
        .await;
    service.start_again().await;
    let expected = json!({ "kind": "stray", "attachment_id": id, "server_id": G1, "server_name": "g1",
        "address": GPU, "action": "it is taken out of the domain", "done": "by a repair" });
    let found = drift(&service).await;
    assert!(found.len() == 1 && says(&found[0], &expected), "{found:#?}");
    let observations = &found[0]["said"];
    assert_eq!(observations["record"], format!("detached: mediated device {id} of type {FOUR}"));
    assert_eq!(
        (&observations["live"], &observations["definition"]),
        (&observations["definition"], &observations["live"])
    );
    assert_eq!(observations["live"], format!("has mediated device {id}"));

    let repaired = repair(&service).await;
    assert!(repaired.len() == 1 && repaired[0]["repaired"] == true, "{repaired:#?}");
    assert_eq!(drift(&service).await, [Value::Null; 0]);
    service.delete(&other).await.expect(204);
    expect_untouched(&service).await;

    // The device of a failed attach is removed without a request for a repair.
    attach(&service, &path, G1).await.expect(200);
    end_records(&mut service, FAILED).await;
    service.start_again().await;
    service.until("it is removed from the domain", async || service.plugged().is_empty()).await;
    service.until("it is removed from the host", async || uuids(&service).await == [FIRST]).await;
    expect_untouched(&service).await;
}

/// An accelerator that stands for one card cannot have a mediated device of another card.
#[tokio::test]
async fn a_returned_mediated_device_of_another_card_is_not_offered_for_adoption() {
    let mut service = Hotslot::bare(&host("accelerators"), PCI, with_another_card).await;
    let path = service.accelerator("part", json!({ "mdev_type": FOUR })).await;
    let attached = attach(&service, &path, G1).await.expect(200).body;
    assert_eq!(attached["devices"][0]["address"], GPU);
    let id = attached["devices"][0]["mdev_uuid"].as_str().unwrap();
    end_records(&mut service, UNASKED).await;
    // The accelerator and the record are of the other card.
    service
        .in_the_database(
            "UPDATE accelerators SET device_id = (SELECT id FROM pci_devices WHERE address = '0000:42:00.0')",
        )
        .await;
    service
        .in_the_database(
            "UPDATE mdevs SET device_id = (SELECT id FROM pci_devices WHERE address = '0000:42:00.0')",
        )
        .await;
    service.start_again().await;
    let expected = json!({ "kind": "stray", "attachment_id": id, "server_id": G1,
        "action": "it is taken out of the domain", "done": "by a repair" });
    // A second comparison finds the same.
    for _ in 0..2 {
        let found = drift(&service).await;
        assert!(found.len() == 1 && says(&found[0], &expected), "{found:#?}");
    }
    assert_eq!(service.plugged().len(), 2, "nothing is removed from a running guest without a request");
    let repaired = repair(&service).await;
    assert!(repaired.len() == 1 && repaired[0]["repaired"] == true, "{repaired:#?}");
    assert_eq!(drift(&service).await, [Value::Null; 0]);
    assert_eq!((status(&service, &path).await.as_str(), uuids(&service).await.len()), ("available", 0));
    service.expect_clean().await;
}

/// The host cannot remove the mediated device of a server that is gone, and then the server comes back.
#[tokio::test]
async fn a_mediated_device_that_could_not_be_removed_is_kept_for_its_server() {
    let service = service().await;
    let path = service.accelerator("part", json!({ "mdev_type": FOUR })).await;
    let id = attach(&service, &path, G3).await.expect(200).body["devices"][0]["mdev_uuid"].clone();
    let kept = definition(&service, G3);
    service.sim("fault destroy-mdev fail times=99 text=the card is busy");
    service.sim("undefine g3");
    let reason = async || service.get(&path).await.expect(200).body["status_reason"].clone();
    let says = async |text: &str| reason().await.as_str().is_some_and(|reason| reason.contains(text));
    service.until("the reason is recorded", async || says("no server has it any more").await).await;
    assert!(says("the card is busy").await, "{}", reason().await);
    assert_eq!(status(&service, &path).await, "attached", "nobody has requested a detach");
    define(&service, &kept);
    service.until("the reason is removed", async || reason().await.is_null()).await;
    service.sim("fault clear");
    assert_eq!(service.get(&path).await.expect(200).body["devices"][0]["mdev_uuid"], id);
    assert_eq!(drift(&service).await, [Value::Null; 0]);
    service.sim("start g3");
    assert_eq!(service.plugged(), [id.as_str().unwrap(); 2]);
    service.delete(&path).await.expect(204);
    expect_untouched(&service).await;
}

/// The server could not start with a definition that contains a removed mediated device.
#[tokio::test]
async fn a_removed_mediated_device_is_removed_from_a_definition_that_was_restored() {
    let service = service().await;
    let path = service.accelerator("part", json!({ "mdev_type": FOUR })).await;
    let attached = attach(&service, &path, G3).await.expect(200).body;
    let id = attached["devices"][0]["mdev_uuid"].as_str().unwrap();
    let kept = definition(&service, G3);
    service.delete(&path).await.expect(204);
    define(&service, &kept);
    service.until("it is removed from the domain", async || !definition(&service, G3).contains(id)).await;
    service.until("it is removed from the host", async || uuids(&service).await == [FIRST]).await;
    assert_eq!(drift(&service).await, [Value::Null; 0]);
    service.sim("start g3");
    expect_untouched(&service).await;
}

#[tokio::test]
async fn drift_of_mediated_devices_is_like_that_of_attachments() {
    const G4: &str = "20000000-0000-4000-8000-000000000004";
    let mut service = service().await;
    let path = service.accelerator("part", json!({ "mdev_type": FOUR })).await;
    let attached = attach(&service, &path, G1).await.expect(200).body;
    let id = attached["devices"][0]["mdev_uuid"].as_str().unwrap();
    assert_eq!(drift(&service).await, [Value::Null; 0]);
    let (with_it, without_it) =
        (definition(&service, G1), fs::read_to_string(service.host_dir().join("domains/g1.xml")).unwrap());
    let finds = async |expected: Value| {
        let what = expected.to_string();
        service
            .until(&what, async || {
                let found = drift(&service).await;
                found.len() == 1 && says(&found[0], &expected)
            })
            .await;
        let found = drift(&service).await;
        assert!(found.len() == 1 && says(&found[0], &expected), "{found:#?}");
        found[0].clone()
    };

    define(&service, &without_it);
    let expected =
        json!({ "kind": "not-defined", "attachment_id": id, "server_id": G1, "done": "by a repair" });
    finds(expected).await;
    assert!(repair(&service).await.iter().all(|finding| finding["repaired"] == true));
    assert_eq!(service.plugged(), [id, id]);

    // A copy of the definition with the same alias, and one with an alias that has no record.
    let copy = with_it.replace(G1, G4).replace("<name>g1</name>", "<name>g4</name>");
    define(&service, &copy);
    let conflict = json!({ "kind": "conflict", "attachment_id": id, "server_id": G4, "done": null });
    let found = finds(conflict).await;
    assert!(found["action"].as_str().unwrap().contains(&format!("mediated device {id} of server {G1}")));
    const OTHER: &str = "30000000-0000-4000-8000-000000000001";
    define(&service, &copy.replace(id, OTHER));
    let unrecorded = json!({ "kind": "unrecorded", "attachment_id": OTHER, "server_id": G4, "done": null });
    finds(unrecorded).await;
    assert!(repair(&service).await.iter().all(|finding| finding["repaired"] == false));
    service.sim("undefine g4");
    service.until("g4 is gone", async || drift(&service).await.is_empty()).await;
    assert_eq!(service.plugged(), [id, id]);

    // The running guest has lost the device, and its definition still has it.
    service.kill();
    remove_from_live(&service, G1);
    service.start_again().await;
    let found = drift(&service).await;
    let expected = json!({ "kind": "not-live", "attachment_id": id, "server_id": G1, "done": "by a repair" });
    assert!(found.len() == 1 && says(&found[0], &expected), "{found:#?}");
    let repaired = repair(&service).await;
    assert!(repaired.iter().all(|finding| finding["repaired"] == true), "{repaired:#?}");
    assert_eq!(service.plugged(), [id, id]);
    service.delete(&path).await.expect(204);
    assert_eq!(drift(&service).await, [Value::Null; 0]);
    expect_untouched(&service).await;
}
