//! Mediated devices through the API, on the simulated host `accelerators`, whose T4 has two mdev types. The behaviour
//! of libvirt and of the driver is simulated, because there is no such hardware here.

mod drift;
mod faults;

use std::path::Path;

use hotslot_tests::{Answer, Hotslot, host, path as path_of, without_mdevs};
use serde_json::{Value, json};

const PCI: &str = "[pci]\ndevice_spec = ['{\"vendor_id\": \"10de\"}', '{\"vendor_id\": \"8086\"}']\n\
                   alias = ['{\"name\": \"gpu\", \"vendor_id\": \"10de\", \"product_id\": \"1eb8\"}']\n";
const GPU: &str = "0000:41:00.0";
/// The mediated device that somebody other than hotslot created.
const FIRST: &str = "b4a1f2c0-0a3b-4b0e-9d0c-3f1d2f7c5a11";
const G1: &str = "20000000-0000-4000-8000-000000000001";
const G2: &str = "20000000-0000-4000-8000-000000000002";
const G3: &str = "20000000-0000-4000-8000-000000000003";
/// The types of which three and two more devices can be created.
const FOUR: &str = "nvidia-232";
const EIGHT: &str = "nvidia-233";

async fn service() -> Hotslot {
    Hotslot::bare(&host("accelerators"), PCI, |_| ()).await
}

/// A service on a host without mediated devices.
async fn untouched() -> Hotslot {
    Hotslot::bare(&host("accelerators"), PCI, without_mdevs).await
}

async fn attach(service: &Hotslot, path: &str, server: &str) -> Answer {
    service.put(path, json!({ "instance_uuid": server })).await
}

async fn status(service: &Hotslot, path: &str) -> String {
    service.get(path).await.expect(200).body["status"].as_str().unwrap().to_owned()
}

/// Returns the card as the host shows it.
async fn card(service: &Hotslot) -> Value {
    let shown = service.get(&format!("/v2.1/os-hypervisors/1/pci_devices/{GPU}")).await.expect(200);
    shown.body["pci_device"].clone()
}

/// Returns how many more devices of each type can be created.
async fn left(service: &Hotslot) -> (u64, u64) {
    let card = card(service).await;
    let types = card["mdev_types"].as_array().unwrap().clone();
    let left = |id: &str| types.iter().find(|of| of["id"] == id).unwrap()["available"].as_u64().unwrap();
    (left(FOUR), left(EIGHT))
}

/// Returns the UUIDs of the existing mediated devices.
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
async fn types_and_foreign_mediated_devices_are_shown() {
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
    // A card with mediated devices cannot be assigned as a whole, whoever created them.
    assert_eq!(card["offered"], false);
    assert!(card["withheld"].as_str().unwrap().contains(FIRST), "{card}");
    let refused = service.attach(G1, "gpu:1").await.expect(409);
    assert!(refused.message().contains(FIRST), "{}", refused.message());
    let whole = service.accelerator("whole", json!({ "device_type": "GPU" })).await;
    for target in
        [json!({ "instance_uuid": G1 }), json!({ "driver": "vfio-pci" }), json!({ "host": "node1" })]
    {
        let refused = service.put(&whole, target).await.expect(409);
        assert!(refused.message().contains(FIRST), "{}", refused.message());
    }
    // A function without mdev types has empty lists.
    let other = service.get("/v2.1/os-hypervisors/1/pci_devices/0000:81:00.0").await.expect(200).body;
    assert_eq!((&other["pci_device"]["mdev_types"], &other["pci_device"]["mdevs"]), (&json!([]), &json!([])));
    expect_untouched(&service).await;
}

#[tokio::test]
async fn a_mediated_device_is_attached_to_a_running_guest_and_detached() {
    let service = service().await;
    let path = service.accelerator("quarter", json!({ "mdev_type": FOUR, "device_type": "GPU" })).await;
    let attached = attach(&service, &path, G1).await.expect(200).body;
    assert_eq!((&attached["status"], &attached["instance_uuid"]), (&json!("attached"), &json!(G1)));
    assert_eq!((&attached["address"], &attached["driver"]), (&json!(GPU), &json!("nvidia")));
    assert_eq!(attached["inner_address"], "0000:01:00.0");
    assert_eq!(attached["acc_specs"]["mdev_type"], FOUR);
    let held = &attached["devices"][0];
    assert_eq!((&held["mdev_type"], &held["instance_uuid"]), (&json!(FOUR), &json!(G1)));
    let uuid = held["mdev_uuid"].as_str().unwrap();
    assert_eq!(service.plugged(), [uuid, uuid], "live and in the definition");
    let tree = service.get(&format!("/v2.1/servers/{G1}/pci_topology")).await.expect(200).body;
    let devices = tree["pci_topology"]["devices"].as_array().unwrap();
    let shown: Vec<_> =
        devices.iter().map(|device| &device["mediated_device"]).filter(|it| !it.is_null()).collect();
    assert_eq!(
        shown,
        [&json!({ "mdev_uuid": uuid, "mdev_type": FOUR, "address": GPU, "attachment_id": uuid })]
    );
    let metrics = service.get("/metrics").await.expect(200).body;
    let asks_for_sockets = metrics.as_str().unwrap().contains(r#"call="node_sockets""#);
    assert!(!asks_for_sockets, "libvirt may have to probe QEMU, and only the policy `socket` needs them");
    assert_eq!(left(&service).await, (2, 2));
    let card = card(&service).await;
    let shown = card["mdevs"].as_array().unwrap().iter().find(|mdev| mdev["uuid"] == uuid).unwrap();
    let holder = format!("accelerator:{}", attached["uuid"].as_str().unwrap());
    assert_eq!(
        *shown,
        json!({ "uuid": uuid, "type": FOUR, "instance_uuid": G1, "holder": holder, "status": "attached" })
    );
    // The host owns the card, because its driver provides the mediated devices.
    assert_eq!((&card["status"], &card["owner"]), (&json!("allocated"), &json!("its host")));
    assert_eq!(attach(&service, &path, G2).await.status, 409);

    service.delete(&path).await.expect(204);
    service.delete(&path).await.expect(204);
    assert_eq!(status(&service, &path).await, "available");
    let events = service.get("/events?kind=mdev").await.expect(200).body["events"].clone();
    let states: Vec<_> = events.as_array().unwrap().iter().map(|event| event["to"].clone()).collect();
    assert_eq!(states, ["attaching", "attached", "detaching", "detached"]);
    assert!(
        events.as_array().unwrap().iter().all(|event| event["address"] == GPU && event["server_id"] == G1),
        "{events}"
    );
    expect_untouched(&service).await;
    attach(&service, &path, G2).await.expect(200);
    service.delete(&format!("{path}?purge=true")).await.expect(204);
    expect_untouched(&service).await;
}

#[tokio::test]
async fn two_guests_share_a_card_up_to_its_capacity() {
    let service = service().await;
    let spec = json!({ "mdev_type": EIGHT });
    let (a, b) = (service.accelerator("a", spec.clone()).await, service.accelerator("b", spec.clone()).await);
    let c = service.accelerator("c", spec).await;
    let (one, other) = tokio::join!(attach(&service, &a, G1), attach(&service, &b, G2));
    assert_eq!((one.status, other.status), (200, 200), "{} {}", one.body, other.body);
    let refused = attach(&service, &c, G2).await.expect(409);
    assert!(refused.message().contains("no more of it can be created"), "{}", refused.message());
    service.delete(&a).await.expect(204);
    assert_eq!(service.device(GPU).await["status"], "allocated");
    attach(&service, &c, G2).await.expect(200);
    for path in [b, c] {
        service.delete(&path).await.expect(204);
    }
    expect_untouched(&service).await;
}

#[tokio::test]
async fn several_mediated_devices_are_attached_all_or_none() {
    let service = service().await;
    let three = service.accelerator("three", json!({ "mdev_type": FOUR, "num": 3 })).await;
    let one = service.accelerator("one", json!({ "mdev_type": FOUR })).await;
    attach(&service, &one, G2).await.expect(200);
    let refused = attach(&service, &three, G1).await.expect(409);
    assert!(refused.message().contains("3 of nvidia-232, and 2 can be created"), "{}", refused.message());
    service.delete(&one).await.expect(204);
    // The last device is refused by the host, and then by the guest.
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
    // More devices than the guest has free ports.
    let two = service.accelerator("two", json!({ "mdev_type": EIGHT, "num": 2 })).await;
    let refused = attach(&service, &two, G1).await.expect(409);
    assert!(refused.message().contains("1 free hot-plug ports"), "{}", refused.message());
    service.delete(&three).await.expect(204);
    expect_untouched(&service).await;
}

#[tokio::test]
async fn a_card_is_assigned_whole_or_in_mediated_devices() {
    let service = untouched().await;
    let whole = service.accelerator("whole", json!({ "device_type": "GPU" })).await;
    let part = service.accelerator("part", json!({ "mdev_type": EIGHT })).await;
    for target in
        [json!({ "instance_uuid": G1 }), json!({ "driver": "vfio-pci" }), json!({ "host": "node1" })]
    {
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
    // Of concurrent requests for the whole card and for a mediated device, only one succeeds.
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
async fn an_impossible_request_is_refused_with_advice() {
    let service = service().await;
    let path = service.accelerator("part", json!({ "mdev_type": "nvidia-1" })).await;
    let refused = attach(&service, &path, G1).await.expect(409);
    assert!(refused.message().contains("nvidia-233 of 0000:41:00.0"), "{}", refused.message());
    for target in [json!({ "host": "node1" }), json!({ "driver": "vfio-pci" })] {
        let refused = service.put(&path, target).await.expect(400);
        assert!(refused.message().contains("instance_uuid"), "{}", refused.message());
    }
    for wrong in
        [json!(""), json!(231), json!(null), json!("a\tb"), json!("../x"), json!("é"), json!("x".repeat(256))]
    {
        for key in ["mdev_type", "vgpu_type"] {
            let spec = json!({ "acc_specs": { key: wrong } });
            let refused = service.put(&format!("{path}/acc_spec"), spec).await.expect(400);
            assert!(refused.message().contains("write a type's id"), "{}", refused.message());
        }
    }
    let both = json!({ "acc_specs": { "mdev_type": FOUR, "vgpu_type": FOUR } });
    let refused = service.put(&format!("{path}/acc_spec"), both).await.expect(400);
    assert!(refused.message().contains("vgpu_type means the same as mdev_type"), "{}", refused.message());
    service.put(&path, json!({ "instance_uuid": FIRST })).await.expect(404);
    expect_untouched(&service).await;
}

/// The words for a type are those of an attachment.
#[tokio::test]
async fn a_type_has_two_keys_and_may_be_named() {
    let service = untouched().await;
    let before = left(&service).await;
    for spec in [
        json!({ "vgpu_type": FOUR }),
        json!({ "vgpu_type": "GRID T4-4Q" }),
        json!({ "mdev_type": "GRID T4-4Q" }),
        json!({ "mdev_type": "232" }),
    ] {
        let path = service.accelerator("part", spec.clone()).await;
        let made = attach(&service, &path, G1).await.expect(200).body;
        assert_eq!(made["devices"][0]["mdev_type"], FOUR, "{spec}: {made:#}");
        assert_eq!(made["ignored_keys"], json!([]), "{spec}");
        service.delete(&path).await.expect(204);
        service.delete(&format!("{path}?purge=true")).await.expect(204);
        service.until("it is free again", async || left(&service).await == before).await;
    }
    service.expect_clean().await;
}

#[tokio::test]
async fn a_mediated_device_stays_while_the_guest_keeps_it() {
    let service = service().await;
    let path = service.accelerator("part", json!({ "mdev_type": FOUR })).await;
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
    assert_eq!(left(&service).await, (2, 2), "the mediated device exists while the guest has it");
    // The guest finally releases the device, and the detach completes without another request.
    service.sim("guest g1 unplug=normal");
    service.sim("reboot g1");
    service.until("the guest lets go", async || status(&service, &path).await == "available").await;
    expect_untouched(&service).await;
}

#[tokio::test]
async fn mediated_devices_follow_the_life_of_their_server() {
    let mut service = service().await;
    let path = service.accelerator("part", json!({ "mdev_type": EIGHT })).await;
    let other = service.accelerator("other", json!({ "mdev_type": EIGHT })).await;
    let uuid = attach(&service, &path, G1).await.expect(200).body["devices"][0]["mdev_uuid"].clone();
    service.sim("shutdown g1");
    service
        .until("the server is compared", async || {
            service.log().contains("compared server 20000000-0000-4000-8000-000000000001")
        })
        .await;
    assert_eq!(status(&service, &path).await, "attached");
    service.sim("start g1");
    assert_eq!(status(&service, &path).await, "attached");
    assert!(uuids(&service).await.iter().any(|there| *there == uuid.as_str().unwrap()));

    // Mediated devices do not survive a reboot of the host or a rebind of the driver. They are created again for a
    // definition that needs them.
    service.sim("shutdown g1");
    for killed in [true, false] {
        service.sim(&format!("device driver {GPU}"));
        service.until("the devices are gone", async || uuids(&service).await.is_empty()).await;
        if killed {
            service.kill();
            service.start_again().await;
        }
        service.until("drift tells", async || !drift::drift(&service).await.is_empty()).await;
        service.sim(&format!("device driver {GPU} nvidia"));
        service
            .until("the mediated device is created again", async || {
                uuids(&service).await == [uuid.as_str().unwrap()]
            })
            .await;
    }
    let told = service.log().matches("a mediated device could not be created again").count();
    assert!(told <= 3, "it is told once for each time that it was lost, and process: {told}");
    service.sim("start g1");

    // A shut-off server gets its device with its start, and an undefined one loses it.
    attach(&service, &other, G3).await.expect(200);
    service.sim("undefine g3");
    service.until("g3 is gone", async || status(&service, &other).await == "available").await;
    service.sim("undefine g1");
    service.sim("destroy g1");
    service.until("g1 is gone", async || status(&service, &path).await == "available").await;
    assert_eq!(uuids(&service).await, Vec::<String>::new());
    service.expect_clean().await;
}

/// Adds a second card, 0000:42:00.0, to a host, and removes all mediated devices.
fn with_another_card(dir: &Path) {
    let card = std::fs::read_to_string(dir.join("devices/pci_0000_41_00_0.xml")).unwrap();
    let other = card.replace("0000_41_00_0", "0000_42_00_0").replace("0000:41:00.0", "0000:42:00.0");
    let other = other.replace("<bus>65</bus>", "<bus>66</bus>").replace("bus='0x41'", "bus='0x42'");
    let other = other.replace("iommuGroup number='40'", "iommuGroup number='42'");
    std::fs::write(dir.join("devices/pci_0000_42_00_0.xml"), other).unwrap();
    without_mdevs(dir);
}

#[tokio::test]
async fn mediated_devices_are_packed_onto_one_card() {
    let service = Hotslot::bare(&host("accelerators"), PCI, with_another_card).await;
    let one = json!({ "mdev_type": EIGHT });
    let (a, b) = (service.accelerator("a", one.clone()).await, service.accelerator("b", one).await);
    let three = service.accelerator("three", json!({ "mdev_type": EIGHT, "num": 3 })).await;
    let parents = |body: Value| {
        let devices = body["devices"].as_array().unwrap().clone();
        devices.iter().map(|device| device["address"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(parents(attach(&service, &a, G1).await.expect(200).body), [GPU]);
    assert_eq!(parents(attach(&service, &b, G2).await.expect(200).body), [GPU]);
    let whole = service.attach(G1, "gpu:1").await.expect(200).body["pci_devices"][0].clone();
    assert_eq!(whole["address"], "0000:42:00.0");
    let refused = attach(&service, &three, G2).await.expect(409);
    assert!(refused.message().contains("3 of nvidia-233, and 0 can be created"), "{}", refused.message());
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
async fn foreign_mediated_devices_are_shown_and_not_changed() {
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
    let path = service.accelerator("part", json!({ "mdev_type": FOUR })).await;
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
async fn hot_unplug_refuse_applies_to_mediated_devices() {
    let pci = PCI.replace(r#"{"vendor_id": "10de"}'"#, r#"{"vendor_id": "10de", "hot_unplug": "refuse"}'"#);
    assert_ne!(pci, PCI);
    let service = Hotslot::bare(&host("accelerators"), &pci, |_| ()).await;
    let path = service.accelerator("part", json!({ "mdev_type": FOUR })).await;
    attach(&service, &path, G1).await.expect(200);
    let refused = service.delete(&path).await.expect(409);
    assert!(refused.message().contains("hot_unplug = refuse"), "{}", refused.message());
    assert_eq!(status(&service, &path).await, "attached");
    // A forced detach removes the device from the definition, and from the guest when it releases it or is off.
    service.sim("guest g1 unplug=refuse");
    let refused = service.delete(&format!("{path}?force=true")).await.expect(409);
    assert!(refused.message().contains("stays detaching"), "{}", refused.message());
    assert_eq!(service.plugged().len(), 1, "it is out of the definition");
    service.sim("destroy g1");
    service.until("it is gone", async || status(&service, &path).await == "available").await;
    expect_untouched(&service).await;
}
