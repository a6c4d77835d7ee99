//! What holds for all three kinds of assignment: a function in a server, a mediated device in a server, and a function in
//! the use of its host. One engine settles, releases and undoes them, and each story runs for each kind.

use std::path::Path;
use std::time::Duration;

use futures_util::future::join_all;
use hotslot_tests::{Answer, Hotslot, host, without_mdevs};
use reqwest::Method;
use serde_json::{Value, json};

use crate::steps::wal;

const PCI: &str = "[pci]\ndevice_spec = ['{\"vendor_id\": \"10de\"}', '{\"vendor_id\": \"8086\"}']\n\
                   [reconcile]\ninterval = 3600\n";
const G1: &str = "20000000-0000-4000-8000-000000000001";
const GPU: &str = "0000:41:00.0";

/// A kind of assignment, by what an accelerator of it looks like.
struct Kind {
    name: &'static str,
    /// Two devices.
    spec: Value,
    /// Where it goes.
    target: Value,
    /// Lets the second of the two devices fail.
    second_fails: &'static str,
    /// Keeps a device from being released, and lets it go again.
    keep: (&'static str, &'static [&'static str]),
}

fn kinds() -> [Kind; 3] {
    let vfs = json!({ "product_id": "37c9", "num": 2 });
    let (guest, let_go): (_, &[&str]) = ("guest g1 unplug=ignore", &["guest g1 unplug=normal", "reboot g1"]);
    [
        Kind {
            name: "a function in a server",
            spec: vfs.clone(),
            target: json!({ "instance_uuid": G1 }),
            second_fails: "fault attach fail nth=2",
            keep: (guest, let_go),
        },
        Kind {
            name: "a mediated device",
            spec: json!({ "mdev_type": "nvidia-233", "num": 2 }),
            target: json!({ "instance_uuid": G1 }),
            second_fails: "fault attach fail nth=2",
            keep: (guest, let_go),
        },
        Kind {
            name: "a function in the use of its host",
            spec: vfs,
            target: json!({ "driver": "vfio-pci" }),
            second_fails: "fault node-detach fail nth=2",
            keep: ("fault node-reattach fail times=99", &["fault clear"]),
        },
    ]
}

async fn service() -> Hotslot {
    Hotslot::bare(&host("accelerators"), PCI, without_mdevs).await
}

async fn get(service: &Hotslot, path: &str) -> Value {
    service.get(path).await.expect(200).body
}

/// Repairs until an accelerator is available again, and checks that nothing is left of it.
async fn settles(service: &Hotslot, path: &str, kind: &Kind) {
    kind.keep.1.iter().for_each(|line| service.sim(line));
    let available = async || {
        service.post("/v2.1/drift", json!({})).await.expect(200);
        get(service, path).await["status"] == "available"
    };
    service.until(&format!("{} is available again", kind.name), available).await;
    service.expect_clean().await;
}

fn refused(answer: Answer, name: &str) -> String {
    assert!((400..600).contains(&answer.status), "{name}: {} {}", answer.status, answer.body);
    answer.message().to_owned()
}

#[tokio::test]
async fn a_failed_attach_whose_device_cannot_be_taken_back_is_never_attached() {
    for kind in kinds() {
        let service = service().await;
        let path = service.accelerator("one", kind.spec.clone()).await;
        service.sim(kind.second_fails);
        service.sim(kind.keep.0);
        let message = refused(service.put(&path, kind.target.clone()).await, kind.name);
        assert!(message.contains("(device 2 of 2) failed"), "{}: {message}", kind.name);
        assert!(message.contains("stays detaching"), "{}: {message}", kind.name);
        let shown = get(&service, &path).await;
        assert_eq!(shown["status"], "detaching", "{}: {shown:#}", kind.name);
        // A repair tries again, and the refusal of the guest or host does not complete the attach.
        service.post("/v2.1/drift", json!({})).await.expect(200);
        let shown = get(&service, &path).await;
        assert_eq!(shown["status"], "detaching", "{}: {shown:#}", kind.name);
        settles(&service, &path, &kind).await;
    }
}

#[tokio::test]
async fn a_failed_attach_leaves_nothing_and_says_so() {
    for kind in kinds() {
        let service = service().await;
        let path = service.accelerator("one", kind.spec.clone()).await;
        service.sim(kind.second_fails);
        let message = refused(service.put(&path, kind.target.clone()).await, kind.name);
        assert!(
            message.contains("(device 2 of 2) failed, nothing is left of it"),
            "{}: {message}",
            kind.name
        );
        assert_eq!(get(&service, &path).await["status"], "available", "{}", kind.name);
        service.expect_clean().await;
        service.put(&path, kind.target.clone()).await.expect(200);
        service.delete(&path).await.expect(204);
        service.expect_clean().await;
    }
}

/// One write of the attach or of its undo fails.
#[tokio::test]
async fn a_failed_attach_leaves_nothing_whichever_write_fails() {
    let walks = kinds().map(async |kind| {
        let mut service = service().await;
        service.kill();
        service.start_again_after("trap '' XFSZ").await;
        let path = service.accelerator("one", kind.spec.clone()).await;
        let mut failed = 0;
        for page in (0..).step_by(5) {
            let mark = service.log_length();
            service.sim(kind.second_fails);
            let pages = wal::committed(&service.database()) + page;
            // In the middle of the page.
            service.limit_files(Some(wal::HEADER + pages * wal::FRAME + wal::FRAME / 2));
            refused(service.put(&path, kind.target.clone()).await, kind.name);
            service.limit_files(None);
            service.sim("fault clear");
            settles(&service, &path, &kind).await;
            if !service.log_from(mark).contains("disk I/O error") {
                break;
            }
            failed += 1;
        }
        assert!(failed >= 2, "{}: {failed} writes failed", kind.name);
    });
    join_all(walks).await;
}

#[tokio::test]
async fn a_service_that_was_killed_between_two_devices_takes_the_first_back() {
    for kind in kinds() {
        let mut service = service().await;
        let path = service.accelerator("one", kind.spec.clone()).await;
        service.sim(&kind.second_fails.replace("fail", "kill"));
        let body = Some(("application/json", kind.target.to_string()));
        let _ = service.try_send(Method::PUT, &path, body).await;
        assert!(service.ended(Duration::from_secs(10)).await, "{}: it was not killed", kind.name);
        service.kill();
        service.start_again().await;
        let available = async || get(&service, &path).await["status"] == "available";
        service.until(&format!("{} is taken back", kind.name), available).await;
        service.expect_clean().await;
    }
}

#[tokio::test]
async fn a_detach_that_fails_is_tried_again_by_whoever_requests_it() {
    for kind in kinds() {
        let service = service().await;
        let path = service.accelerator("one", kind.spec.clone()).await;
        service.put(&path, kind.target.clone()).await.expect(200);
        service.sim(kind.keep.0);
        let (one, other) = tokio::join!(service.delete(&path), service.delete(&path));
        for answer in [one, other] {
            refused(answer, kind.name);
        }
        kind.keep.1.iter().for_each(|line| service.sim(line));
        let gone = async || service.delete(&path).await.status == 204;
        service.until(&format!("{} is detached", kind.name), gone).await;
        assert_eq!(get(&service, &path).await["status"], "available", "{}", kind.name);
        service.expect_clean().await;
    }
}

/// Gives g1 an agent that shows what is behind its first root port.
fn with_agent(host: &Path) {
    without_mdevs(host);
    let file = host.join("domains/g1.xml");
    let document = std::fs::read_to_string(&file).unwrap();
    let channel = "<channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0' state='connected'/></channel>";
    std::fs::write(file, document.replace("<memballoon", &format!("{channel}<memballoon"))).unwrap();
    let file = host.join("host.toml");
    let behaviour = std::fs::read_to_string(&file).unwrap();
    let files = r#"agent_files = { "/sys/bus/pci/devices/0000:00:01.0/secondary_bus_number" = "1\n", "/sys/bus/pci/devices/0000:01:00.0/uevent" = "PCI_ID=10DE:1234\n" }"#;
    std::fs::write(file, format!("{behaviour}\n[guest.g1]\n{files}\n")).unwrap();
}

#[tokio::test]
async fn the_guest_verifies_the_address_of_a_mediated_device_too() {
    let service = Hotslot::bare(&host("accelerators"), PCI, with_agent).await;
    let path = service.accelerator("one", json!({ "mdev_type": "nvidia-233" })).await;
    let attached = service.put(&path, json!({ "instance_uuid": G1 })).await.expect(200).body;
    assert_eq!(attached["devices"][0]["inner_address_source"], "computed");
    let source = async || get(&service, &path).await["devices"][0]["inner_address_source"].clone();
    service.until("the guest has shown it", async || source().await == "verified").await;
    assert_eq!(get(&service, &path).await["devices"][0]["inner_address"], "0000:01:00.0");
    // After a reboot the guest has to show it anew.
    let events = async || {
        let events = service.get("/v2.1/events?limit=1000").await.expect(200).body;
        events["events"].as_array().unwrap().len()
    };
    let before = events().await;
    service.sim("reboot g1");
    service.until("the reboot is seen", async || service.log().contains("compared server 2000")).await;
    service.until("the guest has shown it again", async || source().await == "verified").await;
    assert_eq!(events().await, before, "the state of the mediated device has not changed");
    service.delete(&path).await.expect(204);
    assert_eq!(service.device(GPU).await["status"], "available");
    service.expect_clean().await;
}
