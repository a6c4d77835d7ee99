//! Real mediated devices: the lab's own driver makes them on QEMU's edu (`vagrant/l1/modules`), libvirt and mdevctl create
//! and remove them, and the guest says which one it has.

use std::time::Duration;

use hotslot_tests::lab::{CONFIG, Lab, id, sh};
use reqwest::Method;
use serde_json::{Value, json};
use tokio::task::JoinHandle;

/// The types of the driver. An edu has memory for four small ones, or for two large ones.
const SMALL: &str = "lab_mdev-small";
const LARGE: &str = "lab_mdev-large";

/// A service in a lab whose edu on the root bus is a parent of mediated devices.
async fn lab() -> Lab {
    let edu = sh("lab-devices edu");
    let (_, rest) = CONFIG.split_once("[detach]").expect("a table of the lab's configuration");
    let config = format!("[pci]\ndevice_spec = ['{{\"address\": \"{edu}\"}}']\n[detach]{rest}");
    let lab = Lab::with(&config).await;
    lab.sh("lab-modules load mdev");
    lab
}

fn to(server: &str) -> Value {
    json!({ "instance_uuid": id(server) })
}

/// Returns how many more small and large ones can be created.
async fn left(lab: &Lab) -> (u64, u64) {
    let edu = lab.sh("lab-devices edu");
    let card = lab.get(&format!("/v2.1/os-hypervisors/1/pci_devices/{edu}")).await.expect(200).body;
    let types = card["pci_device"]["mdev_types"].as_array().expect("a list").clone();
    let of =
        |id: &str| types.iter().find(|of| of["id"] == id).unwrap_or_else(|| panic!("{types:#?}")).clone();
    assert_eq!(of(SMALL)["name"], "Lab small (2 MiB)");
    assert_eq!(of(LARGE)["device_api"], "vfio-pci");
    let available = |id: &str| of(id)["available"].as_u64().expect("a number");
    (available(SMALL), available(LARGE))
}

/// Returns the UUIDs of the mediated devices that the kernel has.
fn made(lab: &Lab) -> Vec<String> {
    lab.sh("ls /sys/bus/mdev/devices").lines().map(str::to_owned).collect()
}

/// Fails the test unless the guest has a mediated device at an address, with this product id and this UUID.
async fn expect_in_guest(lab: &Lab, guest: &str, inner: &Value, product: &str, uuid: &str) {
    let inner = inner.as_str().expect("an address");
    let line = format!("guest lspci {guest} 2>/dev/null | grep -c '^{inner} 1234:{product} -' || true");
    lab.until_sh("the guest shows it", &line, "1").await;
    let config = format!("/sys/bus/pci/devices/{inner}/config");
    let told = lab.sh(&format!("guest exec {guest} dd if={config} bs=1 skip=68 count=36 2>/dev/null"));
    assert_eq!(told, uuid, "the mediated device of another one");
}

/// Fails the test unless the kernel, libvirt, the guest and the records are without a mediated device.
async fn expect_none(lab: &Lab) {
    assert_eq!(made(lab), Vec::<String>::new());
    // libvirt follows the events of udev.
    lab.until_sh("libvirt has none", "virsh -q nodedev-list --cap mdev", "").await;
    assert_eq!(lab.sh("virsh dumpxml q35 | grep -c \"type='mdev'\" || true"), "0");
    let seen = lab.lspci("q35");
    assert!(!seen.iter().any(|line| line.contains("1234:1ab")), "{seen:?}");
    assert_eq!(left(lab).await, (4, 2));
    assert_eq!(lab.get("/v2/t/drift").await.expect(200).body["drift"], json!([]));
    lab.expect_nothing_left().await;
}

async fn status(lab: &Lab, path: &str) -> Value {
    lab.get(path).await.expect(200).body["status"].clone()
}

#[tokio::test]
#[ignore = "takes minutes: make long-lab-test"]
async fn mediated_devices_of_two_types_share_a_card_and_are_told_apart_by_the_guest() {
    let lab = lab().await;
    let edu = lab.sh("lab-devices edu");
    assert_eq!(left(&lab).await, (4, 2));

    let small = lab.accelerator("small", json!({ "mdev_type": SMALL })).await;
    let large = lab.accelerator("large", json!({ "mdev_type": LARGE })).await;
    let mut uuids = Vec::new();
    for (path, product, remaining) in [(&small, "1ab1", (3, 1)), (&large, "1ab2", (1, 0))] {
        let attached = lab.api.put(path, to("q35")).await.expect(200).body;
        assert_eq!((&attached["status"], &attached["address"]), (&json!("attached"), &json!(edu)));
        assert_eq!(attached["driver"], "lab_mdev", "the card stays on the driver that makes them");
        let uuid = attached["devices"][0]["mdev_uuid"].as_str().expect("a UUID").to_owned();
        expect_in_guest(&lab, "q35", &attached["inner_address"], product, &uuid).await;
        lab.until("the address is verified", async || {
            lab.get(path).await.expect(200).body["devices"][0]["inner_address_source"] == "verified"
        })
        .await;
        assert_eq!(left(&lab).await, remaining);
        uuids.push(uuid);
    }
    uuids.sort();
    assert_eq!(made(&lab), uuids);

    // What cannot be had is refused, and changes nothing.
    let third = lab.accelerator("third", json!({ "mdev_type": LARGE })).await;
    let refused = lab.api.put(&third, to("q35")).await.expect(409);
    assert!(refused.message().contains("no more of it can be created"), "{}", refused.message());
    let two = lab.accelerator("two", json!({ "mdev_type": SMALL, "num": 2 })).await;
    let refused = lab.api.put(&two, to("q35")).await.expect(409);
    assert!(refused.message().contains("1 can be created"), "{}", refused.message());
    let whole = lab.accelerator("whole", json!({ "vendor_id": "1234", "product_id": "11e8" })).await;
    for target in [to("q35"), json!({ "driver": "vfio-pci" })] {
        let refused = lab.api.put(&whole, target).await.expect(409);
        assert!(refused.message().contains(&edu), "{}", refused.message());
    }
    assert_eq!(made(&lab), uuids);

    lab.delete(&small).await.expect(204);
    assert_eq!(made(&lab).len(), 1);
    lab.api.put(&two, to("q35")).await.expect(200);
    assert_eq!(left(&lab).await, (0, 0));
    for path in [large, two] {
        lab.delete(&path).await.expect(204);
    }
    expect_none(&lab).await;
}

/// Asks the host for a device in a task of its own; the service may be killed before it answers.
fn asking(lab: &Lab, method: Method, path: &str, body: Option<Value>) -> JoinHandle<Option<u16>> {
    let (api, path) = (lab.api.clone(), path.to_owned());
    tokio::spawn(async move {
        let body = body.map(|body| ("application/json", body.to_string()));
        api.try_send(method, &path, body).await.map(|answer| answer.status)
    })
}

/// Conditions of the kernel by which the moments of an attach and a detach are told apart.
const CREATED: &str = "ls /sys/bus/mdev/devices | grep -q .";
const OPENED: &str = "grep -qv ^0 /sys/module/lab_mdev/refcnt";
const CLOSED: &str = "grep -q ^0 /sys/module/lab_mdev/refcnt";
const REMOVED: &str = "! ls /sys/bus/mdev/devices | grep -q .";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes minutes: make long-lab-test"]
async fn hotslot_is_killed_at_each_step_of_a_mediated_device() {
    let lab = lab().await;
    let path = lab.accelerator("part", json!({ "mdev_type": SMALL })).await;
    for (moment, attach) in [(CREATED, true), (OPENED, true), (CLOSED, false), (REMOVED, false)] {
        if !attach {
            lab.api.put(&path, to("q35")).await.expect(200);
        }
        lab.sh(&format!(
            "rm -f /run/hit; printf '%s\\n' 'until {moment}; do sleep 0.01; done; \
             systemctl kill -s KILL hotslot; touch /run/hit' >/tmp/kill.sh; \
             setsid timeout 300 bash /tmp/kill.sh >/tmp/kill.log 2>&1 </dev/null & true"
        ));
        let asked = match attach {
            true => asking(&lab, Method::PUT, &path, Some(to("q35"))),
            false => asking(&lab, Method::DELETE, &path, None),
        };
        lab.hit().await;
        lab.stop();
        let answered = asked.await.expect("no panic");
        lab.serve().await;
        lab.until("it is settled", async || {
            [json!("available"), json!("attached")].contains(&status(&lab, &path).await)
        })
        .await;
        let settled = lab.get(&path).await.expect(200).body;
        println!("killed when {moment}: answered {answered:?}, then {}", settled["status"]);
        if settled["status"] == "attached" {
            let uuid = settled["devices"][0]["mdev_uuid"].as_str().expect("a UUID").to_owned();
            assert_eq!(made(&lab), [uuid.as_str()]);
            expect_in_guest(&lab, "q35", &settled["inner_address"], "1ab1", &uuid).await;
            lab.delete(&path).await.expect(204);
        }
        lab.until("the host has none", async || made(&lab).is_empty()).await;
        expect_none(&lab).await;
    }
}

/// Fails the test unless drift tells that the host has lost the mediated device of an accelerator, and what to do.
async fn expect_lost(lab: &Lab, uuid: &str) {
    let drift = async || lab.get("/v2/t/drift").await.expect(200).body["drift"].clone();
    let is_lost = |one: &Value| one["kind"] == "device-gone" && one["attachment_id"] == uuid;
    lab.until(
        "drift tells that, and nothing else",
        async || matches!(&drift().await.as_array().expect("a list")[..], [one] if is_lost(one)),
    )
    .await;
    let found = drift().await;
    assert!(found[0]["action"].as_str().is_some_and(|action| action.contains("made again")), "{found:#}");
}

/// Boots q35 and fails the test unless it has the mediated device that it had before.
async fn expect_back(lab: &Lab, path: &str, uuid: &str) {
    lab.until("it is made again", async || made(lab) == [uuid]).await;
    lab.sh("guest boot q35");
    // The service follows the start of the guest.
    lab.until("the address in the guest is known", async || {
        lab.get(path).await.expect(200).body["inner_address"].is_string()
    })
    .await;
    let back = lab.get(path).await.expect(200).body;
    assert_eq!((&back["status"], &back["devices"][0]["mdev_uuid"]), (&json!("attached"), &json!(uuid)));
    expect_in_guest(lab, "q35", &back["inner_address"], "1ab1", uuid).await;
    lab.delete(path).await.expect(204);
    expect_none(lab).await;
}

#[tokio::test]
#[ignore = "takes minutes: make long-lab-test"]
async fn a_mediated_device_is_lost_with_its_driver_and_made_again_for_the_next_start() {
    let lab = lab().await;
    let path = lab.accelerator("part", json!({ "mdev_type": SMALL })).await;
    let attached = lab.api.put(&path, to("q35")).await.expect(200).body;
    let uuid = attached["devices"][0]["mdev_uuid"].as_str().expect("a UUID").to_owned();
    lab.sh("guest off q35");
    lab.sh("lab-modules unload");
    assert_eq!(lab.sh("ls /sys/bus/mdev/devices 2>/dev/null || true"), "");
    expect_lost(&lab, &uuid).await;
    let refused = lab.sh("virsh -q start q35 2>&1 || true");
    assert!(refused.contains(&uuid), "{refused}");
    lab.sh("lab-modules load mdev");
    expect_back(&lab, &path, &uuid).await;
}

#[tokio::test]
#[ignore = "takes about two minutes: make long-lab-test"]
async fn a_mediated_device_is_made_again_after_a_reboot_of_the_host() {
    let lab = lab().await;
    let path = lab.accelerator("part", json!({ "mdev_type": SMALL })).await;
    let attached = lab.api.put(&path, to("q35")).await.expect(200).body;
    let uuid = attached["devices"][0]["mdev_uuid"].as_str().expect("a UUID").to_owned();
    lab.reboot().await;
    lab.serve().await;
    expect_lost(&lab, &uuid).await;
    lab.sh("lab-modules load mdev");
    expect_back(&lab, &path, &uuid).await;
}

#[tokio::test]
#[ignore = "takes minutes: make long-lab-test"]
async fn an_accelerator_of_several_mediated_devices_is_attached_whole_or_not_at_all() {
    let lab = lab().await;
    let five = lab.accelerator("five", json!({ "mdev_type": SMALL, "num": 5 })).await;
    let refused = lab.api.put(&five, to("q35")).await.expect(409);
    assert!(refused.message().contains("4 can be created"), "{}", refused.message());
    assert_eq!(made(&lab), Vec::<String>::new());

    let three = lab.accelerator("three", json!({ "mdev_type": SMALL, "num": 3 })).await;
    let attached = lab.api.put(&three, to("q35")).await.expect(200).body;
    let devices = attached["devices"].as_array().expect("a list");
    assert_eq!((devices.len(), made(&lab).len()), (3, 3), "{devices:#?}");
    for device in devices {
        let uuid = device["mdev_uuid"].as_str().expect("a UUID");
        expect_in_guest(&lab, "q35", &device["inner_address"], "1ab1", uuid).await;
    }

    // A guest that does not answer keeps all of them; then it releases them.
    lab.sh("virsh -q suspend q35");
    let kept = lab.delete(&format!("{three}?timeout=6s")).await.expect(409);
    println!("{}", kept.message());
    assert_eq!(made(&lab).len(), 3, "a mediated device is removed while the guest has it");
    lab.sh("virsh -q resume q35");
    lab.until("the guest has released them", async || {
        lab.delete(&three).await.status == 204 && status(&lab, &three).await == "available"
    })
    .await;
    expect_none(&lab).await;
}

/// The handle of a request that is bound, as Nova 2026.2 reads it: `_create_mdev` of its libvirt driver needs the function
/// that is the parent, the type, and the UUID.
fn as_nova_reads(lab: &Lab, arq: &Value) -> String {
    assert_eq!(arq["attach_handle_type"], "MDEV", "{arq:#}");
    let info =
        |key: &str| arq["attach_handle_info"][key].as_str().unwrap_or_else(|| panic!("{key}: {arq:#}"));
    let parent = format!("pci_{}_{}_{}_{}", info("domain"), info("bus"), info("device"), info("function"));
    let uuid = arq["attach_handle_uuid"].as_str().expect("a UUID").to_owned();
    let node =
        lab.sh(&format!("virsh nodedev-dumpxml mdev_{}_{}", uuid.replace('-', "_"), &parent["pci_".len()..]));
    for part in [format!("<parent>{parent}<"), format!("<type id='{}'", info("asked_type")), uuid.clone()] {
        assert!(node.contains(&part), "{part}: {node}");
    }
    uuid
}

#[tokio::test]
#[ignore = "takes minutes: make long-lab-test"]
async fn an_accelerator_request_has_the_handle_of_a_mediated_device() {
    const V2: &str = "/accelerator/v2";
    const ARQS: &str = "/accelerator/v2/accelerator_requests";
    let lab = lab().await;
    let groups = json!([{ "resources:CUSTOM_MDEV": "1", "trait:CUSTOM_LAB_MDEV_LARGE": "required" }]);
    lab.post(&format!("{V2}/device_profiles"), json!([{ "name": "part", "groups": groups }]))
        .await
        .expect(201);
    let deployables = lab.get(&format!("{V2}/deployables")).await.expect(200).body["deployables"].clone();
    let mut requests = Vec::new();
    for _ in 0..3 {
        let made = lab.post(ARQS, json!({ "device_profile_name": "part" })).await.expect(201).body;
        requests.push(made["arqs"][0]["uuid"].as_str().expect("an id").to_owned());
    }
    let change = |op: &str, arq: &str| {
        let at = |path: &str, value: Value| json!({ "op": op, "path": path, "value": value });
        let target = json!([
            at("/hostname", json!("lab")),
            at("/device_rp_uuid", deployables[0]["rp_uuid"].clone()),
            at("/instance_uuid", json!(id("q35"))),
        ]);
        Some(("application/json", json!({ (arq): target }).to_string()))
    };
    let shown = async |arq: &str| lab.get(&format!("{ARQS}/{arq}")).await.expect(200).body;
    let becomes = async |arq: &str, state: &str| {
        lab.until(state, async || shown(arq).await["state"] != "BindStarted").await;
        let shown = shown(arq).await;
        assert_eq!(shown["state"], state, "{shown:#}");
        shown
    };
    for arq in &requests[..2] {
        lab.send(Method::PATCH, ARQS, change("add", arq)).await.expect(202);
        let bound = becomes(arq, "Bound").await;
        assert_eq!(bound["attach_handle_info"]["asked_type"], LARGE);
        let uuid = as_nova_reads(&lab, &bound);
        let line = format!("virsh dumpxml q35 | grep -c \"<address uuid='{uuid}'/>\" || true");
        assert_eq!(lab.sh(&line), "1", "the guest has it");
    }
    lab.send(Method::PATCH, ARQS, change("add", &requests[2])).await.expect(202);
    let failed = becomes(&requests[2], "BindFailed").await;
    assert!(
        failed["state_reason"].as_str().is_some_and(|reason| reason.contains("no more of it")),
        "{failed:#}"
    );
    let resolved =
        lab.get(&format!("{ARQS}?instance={}&bind_state=resolved", id("q35"))).await.expect(200).body;
    assert_eq!(resolved["arqs"].as_array().map(Vec::len), Some(3), "{resolved:#}");
    assert_eq!(made(&lab).len(), 2);

    // Unbound, bound again with a new device, and then all requests of the server are deleted.
    let first = shown(&requests[0]).await["attach_handle_uuid"].clone();
    lab.send(Method::PATCH, ARQS, change("remove", &requests[0])).await.expect(202);
    let unbound = becomes(&requests[0], "Unbound").await;
    assert_eq!((&unbound["attach_handle_type"], &unbound["attach_handle_info"]), (&json!(""), &json!({})));
    assert_eq!(made(&lab).len(), 1);
    lab.send(Method::PATCH, ARQS, change("add", &requests[0])).await.expect(202);
    let again = becomes(&requests[0], "Bound").await;
    assert_ne!(again["attach_handle_uuid"], first);
    as_nova_reads(&lab, &again);
    lab.delete(&format!("{ARQS}?instance={}", id("q35"))).await.expect(204);
    lab.until("the host has none", async || made(&lab).is_empty()).await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    expect_none(&lab).await;
}
