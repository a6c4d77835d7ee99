//! Mediated devices through the API, on the simulated host `accelerators`: a T4 of which its driver makes two types.
//! There is no such hardware here: that libvirt and its driver do so is what the simulated host says of them.

use std::time::Duration;

use futures_util::future::join_all;
use hotslot_driver::sim::control;
use hotslot_tests::{Answer, Hotslot, host, path as path_of, postgres, without_mdevs};
use reqwest::Method;
use serde_json::{Value, json};

const PCI: &str = "[pci]\ndevice_spec = ['{\"vendor_id\": \"10de\"}', '{\"vendor_id\": \"8086\"}']\n\
                   alias = ['{\"name\": \"gpu\", \"vendor_id\": \"10de\", \"product_id\": \"1eb8\"}']\n";
const GPU: &str = "0000:41:00.0";
/// The one that somebody else has made.
const FIRST: &str = "b4a1f2c0-0a3b-4b0e-9d0c-3f1d2f7c5a11";
const G1: &str = "20000000-0000-4000-8000-000000000001";
const G2: &str = "20000000-0000-4000-8000-000000000002";
const G3: &str = "20000000-0000-4000-8000-000000000003";
/// The type of which there are three more, and that of which there are two.
const FOUR: &str = "nvidia-232";
const EIGHT: &str = "nvidia-233";

async fn service() -> Hotslot {
    Hotslot::bare(&host("accelerators"), PCI, |_| ()).await
}

/// The service on a host where nobody has made any.
async fn untouched() -> Hotslot {
    Hotslot::bare(&host("accelerators"), PCI, without_mdevs).await
}

/// Makes an accelerator of a spec, and answers its path.
async fn made(service: &Hotslot, name: &str, spec: Value) -> String {
    let created = service.post("/accelerators", json!({ "name": name })).await.expect(201);
    let path = created.location.unwrap();
    let path = path[path.find("/accelerators/").unwrap()..].to_owned();
    service.put(&format!("{path}/acc_spec"), json!({ "acc_specs": spec })).await.expect(200);
    path
}

async fn attach(service: &Hotslot, path: &str, server: &str) -> Answer {
    service.put(path, json!({ "instance_uuid": server })).await
}

async fn status(service: &Hotslot, path: &str) -> String {
    service.get(path).await.expect(200).body["status"].as_str().unwrap().to_owned()
}

/// The card, as its host shows it.
async fn card(service: &Hotslot) -> Value {
    let shown = service.get(&format!("/v2.1/os-hypervisors/1/pci_devices/{GPU}")).await.expect(200);
    shown.body["pci_device"].clone()
}

/// How many more can be made of each type.
async fn left(service: &Hotslot) -> (u64, u64) {
    let card = card(service).await;
    let types = card["mdev_types"].as_array().unwrap().clone();
    let left = |id: &str| types.iter().find(|of| of["id"] == id).unwrap()["available"].as_u64().unwrap();
    (left(FOUR), left(EIGHT))
}

/// The UUIDs of those that there are.
async fn uuids(service: &Hotslot) -> Vec<String> {
    let card = card(service).await;
    let mdevs = card["mdevs"].as_array().unwrap();
    mdevs.iter().map(|mdev| mdev["uuid"].as_str().unwrap().to_owned()).collect()
}

async fn expect_untouched(service: &Hotslot) {
    assert_eq!(uuids(service).await, [FIRST]);
    assert_eq!(left(service).await, (3, 2));
    service.expect_clean().await;
}

#[tokio::test]
async fn types_and_what_others_made_are_shown() {
    let service = service().await;
    let card = card(&service).await;
    assert_eq!(
        card["mdev_types"],
        json!([
            { "id": FOUR, "name": "GRID T4-4Q", "device_api": "vfio-pci", "available": 3 },
            { "id": EIGHT, "name": "GRID T4-8Q", "device_api": "vfio-pci", "available": 2 },
        ])
    );
    let first = json!({ "uuid": FIRST, "type": FOUR, "instance_uuid": null, "holder": null, "status": null });
    assert_eq!(card["mdevs"], json!([first]));
    // Of others or not: a card that is in parts is nobody's as a whole.
    assert_eq!(card["offered"], false);
    assert!(card["withheld"].as_str().unwrap().contains(FIRST), "{card}");
    let refused = service.attach(G1, "gpu:1").await.expect(409);
    assert!(refused.message().contains(FIRST), "{}", refused.message());
    let whole = made(&service, "whole", json!({ "device_type": "GPU" })).await;
    for target in [json!({ "instance_uuid": G1 }), json!({ "driver": "vfio-pci" }), json!({})] {
        let refused = service.put(&whole, target).await.expect(409);
        assert!(refused.message().contains(FIRST), "{}", refused.message());
    }
    // A function that makes none says so.
    let other = service.get("/v2.1/os-hypervisors/1/pci_devices/0000:81:00.0").await.expect(200).body;
    assert_eq!((&other["pci_device"]["mdev_types"], &other["pci_device"]["mdevs"]), (&json!([]), &json!([])));
    expect_untouched(&service).await;
}

#[tokio::test]
async fn one_goes_into_a_running_guest_and_comes_back() {
    let service = service().await;
    let path = made(&service, "quarter", json!({ "mdev_type": FOUR, "device_type": "GPU" })).await;
    let attached = attach(&service, &path, G1).await.expect(200).body;
    assert_eq!((&attached["status"], &attached["instance_uuid"]), (&json!("attached"), &json!(G1)));
    assert_eq!((&attached["address"], &attached["driver"]), (&json!(GPU), &json!("nvidia")));
    assert_eq!(attached["inner_address"], "0000:01:00.0");
    assert_eq!(attached["acc_specs"]["mdev_type"], FOUR);
    let held = &attached["devices"][0];
    assert_eq!((&held["mdev_type"], &held["instance_uuid"]), (&json!(FOUR), &json!(G1)));
    let uuid = held["mdev_uuid"].as_str().unwrap();
    assert_eq!(service.plugged(), [uuid, uuid], "live and in the definition");
    assert_eq!(left(&service).await, (2, 2));
    let card = card(&service).await;
    let shown = card["mdevs"].as_array().unwrap().iter().find(|mdev| mdev["uuid"] == uuid).unwrap();
    let holder = format!("accelerator:{}", attached["uuid"].as_str().unwrap());
    assert_eq!(
        *shown,
        json!({ "uuid": uuid, "type": FOUR, "instance_uuid": G1, "holder": holder, "status": "attached" })
    );
    // The card is its host's, which makes parts of it.
    assert_eq!((&card["status"], &card["owner"]), (&json!("allocated"), &json!("its host")));
    assert_eq!(attach(&service, &path, G2).await.status, 409);

    service.delete(&path).await.expect(204);
    service.delete(&path).await.expect(204);
    assert_eq!(status(&service, &path).await, "available");
    let told = service.get("/events?kind=mdev").await.expect(200).body["events"].clone();
    let states: Vec<_> = told.as_array().unwrap().iter().map(|event| event["to"].clone()).collect();
    assert_eq!(states, ["attaching", "attached", "detaching", "detached"]);
    assert!(
        told.as_array().unwrap().iter().all(|event| event["address"] == GPU && event["server_id"] == G1),
        "{told}"
    );
    expect_untouched(&service).await;
    attach(&service, &path, G2).await.expect(200);
    service.delete(&format!("{path}?purge=true")).await.expect(204);
    expect_untouched(&service).await;
}

#[tokio::test]
async fn two_guests_share_a_card_until_none_is_left() {
    let service = service().await;
    let spec = json!({ "mdev_type": EIGHT });
    let (a, b) = (made(&service, "a", spec.clone()).await, made(&service, "b", spec.clone()).await);
    let c = made(&service, "c", spec).await;
    let (one, other) = tokio::join!(attach(&service, &a, G1), attach(&service, &b, G2));
    assert_eq!((one.status, other.status), (200, 200), "{} {}", one.body, other.body);
    let refused = attach(&service, &c, G2).await.expect(409);
    assert!(refused.message().contains("no more of it can be made"), "{}", refused.message());
    service.delete(&a).await.expect(204);
    assert_eq!(service.device(GPU).await["status"], "allocated");
    attach(&service, &c, G2).await.expect(200);
    for path in [b, c] {
        service.delete(&path).await.expect(204);
    }
    expect_untouched(&service).await;
}

#[tokio::test]
async fn several_come_all_or_none() {
    let service = service().await;
    let three = made(&service, "three", json!({ "mdev_type": FOUR, "num": 3 })).await;
    let one = made(&service, "one", json!({ "mdev_type": FOUR })).await;
    attach(&service, &one, G2).await.expect(200);
    let refused = attach(&service, &three, G1).await.expect(409);
    assert!(refused.message().contains("3 of nvidia-232, and 2 can be made"), "{}", refused.message());
    service.delete(&one).await.expect(204);
    // The last one is refused by the host, and then by the guest's side.
    for fault in ["create-mdev fail nth=3", "attach fail nth=3", "attach fail nth=2 kind=timed-out at=after"]
    {
        service.sim(&format!("fault {fault}"));
        let failed = attach(&service, &three, G1).await;
        assert!(failed.status >= 400, "{fault}: {}", failed.body);
        service.until(fault, async || status(&service, &three).await == "available").await;
        service.sim("fault clear");
        expect_untouched(&service).await;
    }
    let attached = attach(&service, &three, G1).await.expect(200).body;
    assert_eq!(attached["devices"].as_array().unwrap().len(), 3);
    assert_eq!(left(&service).await, (0, 2));
    // More than the guest has ports for.
    let two = made(&service, "two", json!({ "mdev_type": EIGHT, "num": 2 })).await;
    let refused = attach(&service, &two, G1).await.expect(409);
    assert!(refused.message().contains("1 free hot-plug ports"), "{}", refused.message());
    service.delete(&three).await.expect(204);
    expect_untouched(&service).await;
}

#[tokio::test]
async fn a_card_is_whole_or_in_parts() {
    let service = untouched().await;
    let whole = made(&service, "whole", json!({ "device_type": "GPU" })).await;
    let part = made(&service, "part", json!({ "mdev_type": EIGHT })).await;
    for target in [json!({ "instance_uuid": G1 }), json!({ "driver": "vfio-pci" }), json!({})] {
        service.put(&whole, target.clone()).await.expect(200);
        let refused = attach(&service, &part, G2).await.expect(409);
        assert!(refused.message().contains(EIGHT), "{}", refused.message());
        service.delete(&whole).await.expect(204);
        attach(&service, &part, G2).await.expect(200);
        let refused = service.put(&whole, target).await.expect(409);
        assert!(refused.message().contains(GPU), "{}", refused.message());
        assert!(service.attach(G1, "gpu:1").await.status >= 400);
        service.delete(&part).await.expect(204);
    }
    // Many at once: the card is one thing only.
    for _ in 0..5 {
        let (one, other) = tokio::join!(attach(&service, &whole, G1), attach(&service, &part, G2));
        assert!([one.status, other.status].contains(&200), "{} {}", one.body, other.body);
        assert!([one.status, other.status].contains(&409), "{} {}", one.body, other.body);
        service.delete(&whole).await.expect(204);
        service.delete(&part).await.expect(204);
    }
    assert_eq!(uuids(&service).await, Vec::<String>::new());
    service.expect_clean().await;
}

#[tokio::test]
async fn what_cannot_be_is_told_what_can() {
    let service = service().await;
    let path = made(&service, "part", json!({ "mdev_type": "nvidia-1" })).await;
    let refused = attach(&service, &path, G1).await.expect(409);
    assert!(refused.message().contains("nvidia-233 of 0000:41:00.0"), "{}", refused.message());
    for target in [json!({ "host": "node1" }), json!({}), json!({ "driver": "vfio-pci" })] {
        let refused = service.put(&path, target).await.expect(400);
        assert!(refused.message().contains("instance_uuid"), "{}", refused.message());
    }
    for wrong in
        [json!(""), json!(231), json!(null), json!("a b"), json!("../x"), json!("é"), json!("x".repeat(256))]
    {
        let spec = json!({ "acc_specs": { "mdev_type": wrong } });
        let refused = service.put(&format!("{path}/acc_spec"), spec).await.expect(400);
        assert!(refused.message().contains("write a type's id"), "{}", refused.message());
    }
    service.put(&path, json!({ "instance_uuid": FIRST })).await.expect(404);
    expect_untouched(&service).await;
}

#[tokio::test]
async fn a_guest_that_does_not_let_go() {
    let service = service().await;
    let path = made(&service, "part", json!({ "mdev_type": FOUR })).await;
    attach(&service, &path, G1).await.expect(200);
    service.sim("guest g1 unplug=refuse");
    let refused = service.delete(&path).await.expect(409);
    assert!(refused.message().contains("stays attached"), "{}", refused.message());
    assert_eq!(status(&service, &path).await, "attached");
    assert_eq!(service.plugged().len(), 2, "in the definition too");
    service.sim("guest g1 unplug=ignore");
    let pending = service.delete(&path).await.expect(409);
    assert!(pending.message().contains("stays detaching"), "{}", pending.message());
    assert_eq!(status(&service, &path).await, "detaching");
    assert_eq!(service.device(GPU).await["status"], "allocated");
    assert_eq!(left(&service).await, (2, 2), "it is there as long as the guest has it");
    // It lets go at last, and nobody has to ask.
    service.sim("guest g1 unplug=normal");
    service.sim("reboot g1");
    service.until("the guest lets go", async || status(&service, &path).await == "available").await;
    expect_untouched(&service).await;
}

#[tokio::test]
async fn it_goes_with_its_server_and_comes_back_with_its_start() {
    let mut service = service().await;
    let path = made(&service, "part", json!({ "mdev_type": EIGHT })).await;
    let other = made(&service, "other", json!({ "mdev_type": EIGHT })).await;
    let uuid = attach(&service, &path, G1).await.expect(200).body["devices"][0]["mdev_uuid"].clone();
    service.sim("shutdown g1");
    service
        .until("it is seen that it comes with the start", async || {
            service.log().contains("compared server 20000000-0000-4000-8000-000000000001")
        })
        .await;
    assert_eq!(status(&service, &path).await, "attached");
    service.sim("start g1");
    assert_eq!(status(&service, &path).await, "attached");
    assert!(uuids(&service).await.iter().any(|there| *there == uuid.as_str().unwrap()));

    // They do not outlive a reboot of the host, or the driver; the definition that is to start with one gets it again.
    service.sim("shutdown g1");
    service.kill();
    service.start_again().await;
    service.sim(&format!("device driver {GPU}"));
    service.sim(&format!("device driver {GPU} nvidia"));
    service.until("they are gone", async || uuids(&service).await.is_empty()).await;
    service.kill();
    service.start_again().await;
    service.until("it is made again", async || uuids(&service).await == [uuid.as_str().unwrap()]).await;
    service.sim("start g1");

    // A server that was shut off gets one with its start, and one that is gone has none.
    attach(&service, &other, G3).await.expect(200);
    service.sim("undefine g3");
    service.until("g3 is gone", async || status(&service, &other).await == "available").await;
    service.sim("undefine g1");
    service.sim("destroy g1");
    service.until("g1 is gone", async || status(&service, &path).await == "available").await;
    assert_eq!(uuids(&service).await, Vec::<String>::new());
    service.expect_clean().await;
}

#[tokio::test]
async fn of_two_cards_one_stays_whole_as_long_as_it_can() {
    let service = Hotslot::bare(&host("accelerators"), PCI, |dir| {
        let card = std::fs::read_to_string(dir.join("devices/pci_0000_41_00_0.xml")).unwrap();
        let other = card.replace("0000_41_00_0", "0000_42_00_0").replace("0000:41:00.0", "0000:42:00.0");
        let other = other.replace("<bus>65</bus>", "<bus>66</bus>").replace("bus='0x41'", "bus='0x42'");
        let other = other.replace("iommuGroup number='40'", "iommuGroup number='42'");
        std::fs::write(dir.join("devices/pci_0000_42_00_0.xml"), other).unwrap();
        without_mdevs(dir);
    })
    .await;
    let one = json!({ "mdev_type": EIGHT });
    let (a, b) = (made(&service, "a", one.clone()).await, made(&service, "b", one).await);
    let three = made(&service, "three", json!({ "mdev_type": EIGHT, "num": 3 })).await;
    let parents = |body: Value| {
        let devices = body["devices"].as_array().unwrap().clone();
        devices.iter().map(|device| device["address"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(parents(attach(&service, &a, G1).await.expect(200).body), [GPU]);
    assert_eq!(parents(attach(&service, &b, G2).await.expect(200).body), [GPU]);
    let whole = service.attach(G1, "gpu:1").await.expect(200).body["pci_devices"][0].clone();
    assert_eq!(whole["address"], "0000:42:00.0");
    let refused = attach(&service, &three, G2).await.expect(409);
    assert!(refused.message().contains("3 of nvidia-233, and 0 can be made"), "{}", refused.message());
    service.delete(&path_of(&whole)).await.expect(200);
    service.delete(&a).await.expect(204);
    service.delete(&b).await.expect(204);
    let mut of_both = parents(attach(&service, &three, G2).await.expect(200).body);
    of_both.sort();
    assert_eq!(of_both, [GPU, GPU, "0000:42:00.0"]);
    service.delete(&three).await.expect(204);
    assert_eq!(uuids(&service).await, Vec::<String>::new());
    service.expect_clean().await;
}

#[tokio::test]
async fn what_others_gave_a_guest_is_shown_and_left_alone() {
    let hostdev = format!(
        "<hostdev mode='subsystem' type='mdev' managed='no' model='vfio-pci'><source><address uuid='{FIRST}'/></source>\
         <alias name='hostdev0'/>\
         <address type='pci' domain='0x0000' bus='0x02' slot='0x00' function='0x0'/></hostdev>\n    <memballoon"
    );
    let mut service = Hotslot::bare(&host("accelerators"), PCI, |dir| {
        let file = dir.join("domains/g1.xml");
        let domain = std::fs::read_to_string(&file).unwrap();
        assert!(domain.contains("<memballoon"));
        std::fs::write(file, domain.replace("<memballoon", &hostdev)).unwrap();
    })
    .await;
    let path = made(&service, "part", json!({ "mdev_type": FOUR })).await;
    for _ in 0..2 {
        let first =
            json!({ "uuid": FIRST, "type": FOUR, "instance_uuid": G1, "holder": null, "status": null });
        assert_eq!(card(&service).await["mdevs"], json!([first]));
        attach(&service, &path, G1).await.expect(200);
        service.delete(&path).await.expect(204);
        service.kill();
        service.start_again().await;
    }
    expect_untouched(&service).await;
}

#[tokio::test]
async fn it_is_not_asked_for_where_the_policy_says_so_but_by_force() {
    let pci = PCI.replace(r#"{"vendor_id": "10de"}'"#, r#"{"vendor_id": "10de", "hot_unplug": "refuse"}'"#);
    assert_ne!(pci, PCI);
    let service = Hotslot::bare(&host("accelerators"), &pci, |_| ()).await;
    let path = made(&service, "part", json!({ "mdev_type": FOUR })).await;
    attach(&service, &path, G1).await.expect(200);
    let refused = service.delete(&path).await.expect(409);
    assert!(refused.message().contains("hot_unplug = refuse"), "{}", refused.message());
    assert_eq!(status(&service, &path).await, "attached");
    // By force it leaves the definition for good, and the guest when it lets go or is off.
    service.sim("guest g1 unplug=refuse");
    let refused = service.delete(&format!("{path}?force=true")).await.expect(409);
    assert!(refused.message().contains("stays detaching"), "{}", refused.message());
    assert_eq!(service.plugged().len(), 1, "it is out of the definition");
    service.sim("destroy g1");
    service.until("it is gone", async || status(&service, &path).await == "available").await;
    expect_untouched(&service).await;
}

async fn drift(service: &Hotslot) -> Vec<Value> {
    service.get("/v2.1/drift").await.expect(200).body["drift"].as_array().unwrap().clone()
}

async fn repair(service: &Hotslot) -> Vec<Value> {
    service.post("/v2.1/drift", json!({})).await.expect(200).body["drift"].as_array().unwrap().clone()
}

/// Whether `found` says all that `expected` says.
fn says(found: &Value, expected: &Value) -> bool {
    expected.as_object().unwrap().iter().all(|(key, value)| found[key] == *value)
}

/// The file in which the simulated host keeps a domain.
fn saved_domain(service: &Hotslot, server: &str) -> std::path::PathBuf {
    service.host_dir().join("state/domains").join(format!("{server}.json"))
}

/// The definition of a server, as the simulated host keeps it.
fn definition(service: &Hotslot, server: &str) -> String {
    let saved = std::fs::read_to_string(saved_domain(service, server)).unwrap();
    let saved: Value = serde_json::from_str(&saved).unwrap();
    saved["persistent"].as_str().unwrap().to_owned()
}

/// Defines a domain, as somebody with `virsh` does.
fn define(service: &Hotslot, xml: &str) {
    let file = service.host_dir().join("defined.xml");
    std::fs::write(&file, xml).unwrap();
    service.sim(&format!("define {}", file.display()));
}

/// Ends the record of every mediated device in the database, and with it the hold on the card, while the service is
/// killed; the host and its domains keep them.
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
async fn what_was_made_although_its_create_was_refused_is_taken_away() {
    let service = service().await;
    let two = made(&service, "two", json!({ "mdev_type": FOUR, "num": 2 })).await;
    let refused = "create-mdev fail at=after text=mdevctl was killed";
    let second = "create-mdev fail at=after nth=2 text=mdevctl was killed";
    // The look that is to tell may fail too: the first one chooses the card.
    for faults in [vec![refused], vec![second], vec![refused, "mdevs fail nth=2"]] {
        for fault in &faults {
            service.sim(&format!("fault {fault}"));
        }
        let failed = attach(&service, &two, G1).await;
        assert!(failed.status >= 400, "{faults:?}: {}", failed.body);
        assert!(failed.message().contains("mdevctl was killed"), "{}", failed.message());
        service.until("it is available", async || status(&service, &two).await == "available").await;
        expect_untouched(&service).await;
        assert_eq!(drift(&service).await, [Value::Null; 0]);
    }
    attach(&service, &two, G1).await.expect(200);
    service.delete(&two).await.expect(204);
    expect_untouched(&service).await;
}

#[tokio::test]
async fn a_mediated_device_whose_record_has_ended_is_taken_away_unless_a_domain_has_it() {
    let mut service = service().await;
    let path = made(&service, "part", json!({ "mdev_type": FOUR })).await;
    let attached = attach(&service, &path, G3).await.expect(200).body;
    let uuid = attached["devices"][0]["mdev_uuid"].as_str().unwrap().to_owned();
    end_records(&mut service, DETACHED).await;
    // Somebody gave it to the domain by hand.
    let file = saved_domain(&service, G3);
    let saved = std::fs::read_to_string(&file).unwrap();
    let by_hand = saved.replace(&format!("<alias name='ua-{uuid}'/>"), "");
    assert_ne!(saved, by_hand);
    std::fs::write(&file, by_hand).unwrap();
    service.start_again().await;
    let found = drift(&service).await;
    let expected =
        json!({ "kind": "stray", "attachment_id": uuid, "address": GPU, "server_id": G3, "done": null });
    assert!(found.len() == 1 && says(&found[0], &expected), "{found:#?}");
    assert!(found[0]["said"]["host"].as_str().unwrap().starts_with("has it of 0000:41:00.0"), "{found:#?}");
    assert!(repair(&service).await.iter().all(|finding| finding["repaired"] == false));
    assert!(uuids(&service).await.contains(&uuid), "a domain has it");

    let original = std::fs::read_to_string(service.host_dir().join("domains/g3.xml")).unwrap();
    define(&service, &original);
    service.until("it is taken away", async || uuids(&service).await == [FIRST]).await;
    assert_eq!(drift(&service).await, [Value::Null; 0]);
    expect_untouched(&service).await;

    // One that no domain has goes with the start.
    attach(&service, &path, G3).await.expect(200);
    end_records(&mut service, DETACHED).await;
    std::fs::remove_file(saved_domain(&service, G3)).unwrap();
    service.start_again().await;
    service.until("it is taken away", async || uuids(&service).await == [FIRST]).await;
    expect_untouched(&service).await;
}

#[tokio::test]
async fn a_document_with_one_whose_record_has_ended_is_told_and_repaired() {
    let mut service = service().await;
    let path = made(&service, "part", json!({ "mdev_type": FOUR })).await;
    let uuid = |attached: Answer| attached.body["devices"][0]["mdev_uuid"].as_str().unwrap().to_owned();
    attach(&service, &path, G1).await.expect(200);
    // Its detach was requested, so it is taken out wherever it is seen.
    end_records(&mut service, DETACHED).await;
    service.start_again().await;
    service.until("it is taken out", async || service.plugged().is_empty()).await;
    service.until("it is taken away", async || uuids(&service).await == [FIRST]).await;
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
    let other = made(&service, "other", json!({ "mdev_type": FOUR })).await;
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
    let said = &found[0]["said"];
    assert_eq!(said["record"], format!("detached: mediated device {id} of type {FOUR}"));
    assert_eq!((&said["live"], &said["definition"]), (&said["definition"], &said["live"]));
    assert_eq!(said["live"], format!("has mediated device {id}"));
    let repaired = repair(&service).await;
    assert!(repaired.len() == 1 && repaired[0]["repaired"] == true, "{repaired:#?}");
    assert_eq!(drift(&service).await, [Value::Null; 0]);
    service.delete(&other).await.expect(204);
    expect_untouched(&service).await;

    // What a failed attach left is taken back by itself.
    attach(&service, &path, G1).await.expect(200);
    end_records(&mut service, FAILED).await;
    service.start_again().await;
    service.until("it is taken back", async || service.plugged().is_empty()).await;
    service.until("it is taken away", async || uuids(&service).await == [FIRST]).await;
    expect_untouched(&service).await;

    // A definition that was kept is put in the place of the one without it: the server could not start.
    let id = uuid(attach(&service, &path, G3).await.expect(200));
    let kept = definition(&service, G3);
    service.delete(&path).await.expect(204);
    define(&service, &kept);
    service.until("it is taken out", async || !definition(&service, G3).contains(&id)).await;
    service.until("it is taken away", async || uuids(&service).await == [FIRST]).await;
    assert_eq!(drift(&service).await, [Value::Null; 0]);
    service.sim("start g3");
    expect_untouched(&service).await;
}

#[tokio::test]
async fn what_documents_say_otherwise_of_one_is_told_as_of_an_attachment() {
    const G4: &str = "20000000-0000-4000-8000-000000000004";
    let mut service = service().await;
    let path = made(&service, "part", json!({ "mdev_type": FOUR })).await;
    let attached = attach(&service, &path, G1).await.expect(200).body;
    let id = attached["devices"][0]["mdev_uuid"].as_str().unwrap();
    assert_eq!(drift(&service).await, [Value::Null; 0]);
    let (with_it, without_it) = (
        definition(&service, G1),
        std::fs::read_to_string(service.host_dir().join("domains/g1.xml")).unwrap(),
    );
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

    // A copy of the definition, alias and all, and one with an alias of which there is no record.
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

    // The running guest has lost it, and its definition has not.
    service.kill();
    let file = saved_domain(&service, G1);
    let mut saved: Value = serde_json::from_str(&std::fs::read_to_string(&file).unwrap()).unwrap();
    let live = saved["live"].as_str().unwrap();
    let (start, end) =
        (live.find("<hostdev").unwrap(), live.find("</hostdev>").unwrap() + "</hostdev>".len());
    saved["live"] = format!("{}{}", &live[..start], &live[end..]).into();
    std::fs::write(&file, saved.to_string()).unwrap();
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

/// The service, which gives calls that change something up after half a second.
async fn impatient() -> Hotslot {
    Hotslot::bare(&host("accelerators"), &format!("[libvirt]\nattach_timeout = 0.5\n{PCI}"), |_| ()).await
}

/// How soon what a late call did must be settled.
const SOON: Duration = Duration::from_secs(3);

#[tokio::test]
async fn while_a_call_is_out_that_may_make_or_plug_one_it_is_not_said_to_be_gone() {
    for (fault, server) in [
        ("create-mdev hang", G1),
        ("create-mdev hang at=after", G1),
        ("create-mdev hang nth=2", G3),
        ("attach hang", G1),
        ("attach hang", G3),
        ("attach hang nth=2", G3),
    ] {
        let service = impatient().await;
        let path = made(&service, "two", json!({ "mdev_type": FOUR, "num": 2 })).await;
        service.sim(&format!("fault {fault}"));
        let late = attach(&service, &path, server).await;
        assert!(late.status >= 500, "{fault}: {}", late.body);
        for query in ["", "?force=true", "?purge=true"] {
            let refused = service.delete(&format!("{path}{query}")).await;
            assert_eq!(refused.status, 409, "{fault} {query}: {}", refused.body);
        }
        let refused = service.delete(&path).await.expect(409);
        assert!(refused.message().contains("did not come back"), "{fault}: {}", refused.message());
        // What is looked at meanwhile changes nothing.
        tokio::time::sleep(Duration::from_millis(1300)).await;
        assert_eq!(status(&service, &path).await, "detaching", "{fault}");
        service.sim("fault clear");
        service.patient(SOON).until(fault, async || status(&service, &path).await == "available").await;
        expect_untouched(&service).await;
        assert_eq!(drift(&service).await, [Value::Null; 0]);
        service.sim(if server == G3 { "start g3" } else { "reboot g1" });
        service.delete(&path).await.expect(204);
        attach(&service, &path, G2).await.expect(200);
        service.delete(&path).await.expect(204);
        expect_untouched(&service).await;
    }
}

#[tokio::test]
async fn one_whose_removal_is_out_is_settled_when_that_comes_back() {
    for fault in ["destroy-mdev hang", "destroy-mdev hang at=after", "detach hang"] {
        let service = impatient().await;
        let path = made(&service, "part", json!({ "mdev_type": FOUR })).await;
        attach(&service, &path, G1).await.expect(200);
        service.sim(&format!("fault {fault}"));
        assert!(service.delete(&path).await.status >= 500, "{fault}");
        let refused = service.delete(&path).await.expect(409);
        assert!(refused.message().contains("did not come back"), "{fault}: {}", refused.message());
        tokio::time::sleep(Duration::from_millis(1300)).await;
        assert_eq!(status(&service, &path).await, "detaching", "{fault}");
        service.sim("fault clear");
        service.patient(SOON).until(fault, async || status(&service, &path).await == "available").await;
        expect_untouched(&service).await;
    }
}

/// Every call to the host fails, is lost, or is the last one of a service that is killed; whatever was cut off, in the
/// end it is whole or gone, and nothing is left of it.
#[tokio::test]
async fn at_every_step_it_is_whole_or_gone() {
    // The fault, and how many calls it befalls at least: of an attach, of a detach.
    let faults = [
        ("any fail nth={} text=refused", 10, 5),
        ("any fail nth={} at=after text=refused", 10, 5),
        ("any fail nth={} kind=timed-out at=after", 10, 5),
        ("any away nth={} at=after ms=20", 10, 5),
        ("any kill nth={} at=before", 10, 5),
        ("any kill nth={} at=after", 10, 5),
        ("attach kill nth={} at=between", 2, 0),
        ("any crash nth={} at=after domain=g1", 3, 3),
    ];
    let walks = faults.into_iter().flat_map(|(fault, attach, detach)| {
        [(fault, false, attach), (fault, true, detach)].map(async |(fault, goes, least)| {
            let steps = walk(service().await, fault, goes).await;
            assert!(steps >= least, "{fault}, detach {goes}: {steps} steps");
        })
    });
    join_all(walks).await;
}

#[tokio::test]
async fn at_every_step_on_postgresql_too() {
    let walks = [false, true].map(async |goes| {
        let service = service().await.moved_to(&postgres::database().await).await;
        assert!(walk(service, "any kill nth={} at=after", goes).await >= 5, "detach {goes}");
    });
    join_all(walks).await;
}

/// Lets a fault befall the first call of an attach or detach of two, then the second, and so on; answers how many.
async fn walk(mut service: Hotslot, fault: &str, detach: bool) -> u32 {
    let path = made(&service, "two", json!({ "mdev_type": FOUR, "num": 2 })).await;
    for nth in 1.. {
        let place = format!("{} {fault} {nth}", if detach { "detach" } else { "attach" });
        if detach {
            attach(&service, &path, G1).await.expect(200);
        }
        let start = service.log_length();
        // It may strike before that is answered, or as it is taken back.
        let _ = control(&service.host_dir(), &format!("fault {}", fault.replace("{}", &nth.to_string())));
        let asked = json!({ "instance_uuid": G1 }).to_string();
        let (method, body) = match detach {
            true => (Method::DELETE, None),
            false => (Method::PUT, Some(("application/json", asked))),
        };
        let _ = service.try_send(method, &path, body).await;
        if service.ended(Duration::from_millis(100)).await
            || control(&service.host_dir(), "fault clear").is_err()
            // It may have struck in the very moment.
            || service.ended(Duration::from_millis(20)).await
            // On a busy machine it takes its time to die.
            || fault.contains(" kill ")
                && service.log_from(start).contains("a fault applies to ")
                && service.ended(Duration::from_secs(10)).await
        {
            service.kill();
            service.start_again().await;
        }
        let struck = service.log_from(start).contains("a fault applies to ");
        // Of a detach that was cut off, one may have gone and one be left: that is no attachment.
        let states: &[&str] =
            if detach { &["available", "attached", "error"] } else { &["available", "attached"] };
        let settled = async || states.contains(&status(&service, &path).await.as_str());
        service.until(&format!("it is settled: {place}"), settled).await;
        service.ready().await;
        let shown = service.get(&path).await.expect(200).body;
        let there = shown["devices"].as_array().unwrap().len();
        let whole = [("available", 0), ("error", 1), ("attached", 2)];
        assert!(whole.contains(&(shown["status"].as_str().unwrap(), there)), "{place}: {shown}");
        let goes = async || service.delete(&path).await.status == 204;
        service.until(&format!("it goes: {place}"), goes).await;
        if fault.contains("crash") {
            // It may run still.
            let _ = control(&service.host_dir(), "start g1");
        }
        expect_untouched(&service).await;
        if !struck {
            return nth - 1;
        }
    }
    0
}
