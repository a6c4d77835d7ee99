//! Virtual GPUs on VFs: a type is set before the plug and taken away after the detach, and only by whom set it.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use hotslot_tests::oracle::VGPU;
use hotslot_tests::{Answer, Hotslot, Q35, SWITCH, attachments, binary, host, path};
use reqwest::Method;
use serde_json::{Value, json};

const VF: &str = "0000:41:00.4";
const OTHER: &str = "0000:41:00.5";
const TYPE: &str = "nvidia-1155";

async fn vgpus() -> Hotslot {
    Hotslot::bare(&host("vgpu"), VGPU, |_| ()).await
}

async fn attach_to(service: &Hotslot, server: &str, keys: Value) -> Answer {
    let mut body = json!({ "pci_passthrough:alias": "vgpu:1" });
    body.as_object_mut().unwrap().extend(keys.as_object().unwrap().clone());
    service.post(&attachments(server), json!({ "pciAttachment": body })).await
}

async fn attach(service: &Hotslot, of: &str) -> Answer {
    attach_to(service, Q35, json!({ "vgpu_type": of })).await
}

fn device(answer: Answer) -> Value {
    answer.expect(200).body["pci_devices"][0].clone()
}

/// Gives a VF a type, as another program does.
fn set_by_hand(host: &Path, vf: &str, of: &str) {
    fs::create_dir_all(host.join("vgpu")).unwrap();
    fs::write(host.join(format!("vgpu/{vf}.type")), of).unwrap();
}

fn clear_by_hand(host: &Path, vf: &str) {
    fs::remove_file(host.join(format!("vgpu/{vf}.type"))).unwrap();
}

fn types(service: &Hotslot) -> Value {
    json!(service.vgpu_types())
}

async fn function(service: &Hotslot, address: &str) -> Value {
    service.get(&format!("/v2/t/os-hypervisors/1/pci_devices/{address}")).await.expect(200).body["pci_device"]
        .clone()
}

async fn drift(service: &Hotslot) -> Vec<Value> {
    service.get("/v2.1/drift").await.expect(200).body["drift"].as_array().unwrap().clone()
}

#[tokio::test]
async fn a_virtual_gpu_is_not_scrubbed_by_the_hook_of_its_class() {
    let service = Hotslot::bare(&host("vgpu"), VGPU, |host| {
        crate::scrub::hooks(host, &[("display controller", "scrub", "exit 1", "")]);
    })
    .await;
    let vf = device(attach(&service, TYPE).await);
    service.delete(&path(&vf)).await.expect(200);
    let row = service.device(VF).await;
    assert_eq!((&row["scrub"], &row["used_at"]), (&json!(false), &Value::Null));
    service.expect_clean().await;
}

#[tokio::test]
async fn a_type_is_set_before_the_plug_and_taken_away_after_the_detach() {
    let service = vgpus().await;
    for name in [TYPE, "1155", "NVIDIA L40S-24Q"] {
        let vf = device(attach(&service, name).await);
        assert_eq!((&vf["address"], &vf["vgpu_type"]), (&json!(VF), &json!(TYPE)), "{name}");
        assert_eq!(types(&service), json!({ VF: TYPE }));
        assert_eq!(function(&service, VF).await["driver"], "nvidia", "its driver stays");
        service.delete(&path(&vf)).await.expect(200);
        assert_eq!(types(&service), json!({}), "{name}");
    }
    // The same word as for mediated devices.
    let vf = device(attach_to(&service, Q35, json!({ "mdev_type": TYPE })).await);
    service.delete(&path(&vf)).await.expect(200);
    // A shut-off server has the type for its next start, and afterwards.
    let vf = device(attach_to(&service, SWITCH, json!({ "vgpu_type": TYPE })).await);
    assert_eq!(types(&service), json!({ VF: TYPE }));
    service.sim("start switch");
    service.sim("destroy switch");
    assert_eq!(types(&service), json!({ VF: TYPE }));
    service.delete(&path(&vf)).await.expect(200);
    assert_eq!(types(&service), json!({}));
    service.expect_clean().await;
}

#[tokio::test]
async fn types_are_shown_with_what_is_left() {
    let service = vgpus().await;
    let left = async |address: &str| {
        let types = function(&service, address).await["vgpu_types"].clone();
        let shown = |of: &Value| (of["id"].as_str().unwrap().to_owned(), of["available"].as_u64().unwrap());
        types.as_array().unwrap().iter().map(shown).collect::<Vec<_>>()
    };
    let of = |all: &[(&str, u64)]| {
        all.iter().map(|(id, left)| (format!("nvidia-{id}"), *left)).collect::<Vec<_>>()
    };
    assert_eq!(left("0000:41:00.0").await, of(&[("1153", 4), ("1155", 4), ("1157", 4)]));
    let first = device(attach(&service, TYPE).await);
    assert_eq!(function(&service, VF).await["vgpu_type"], TYPE);
    assert_eq!(left("0000:41:00.0").await, of(&[("1153", 3), ("1155", 3)]));
    assert_eq!(left(VF).await, of(&[]));
    let second = device(attach(&service, TYPE).await);
    assert_eq!(second["address"], OTHER);
    assert_eq!(left("0000:41:00.0").await, of(&[]));
    // Nothing is left of the card.
    for keys in [json!({ "vgpu_type": TYPE }), json!({ "vgpu_type": "nvidia-7" })] {
        let refused = attach_to(&service, Q35, keys).await.expect(409);
        assert!(refused.message().contains("cannot be of the vGPU type"), "{}", refused.message());
        assert!(refused.message().contains("it can be: none"), "{}", refused.message());
    }
    for vf in [first, second] {
        service.delete(&path(&vf)).await.expect(200);
    }
    // All devices of a request, or none.
    let body = json!({ "pci_passthrough:alias": "vgpu:3", "vgpu_type": TYPE });
    let refused = service.post(&attachments(Q35), json!({ "pciAttachment": body })).await;
    assert!(matches!(refused.status, 400 | 409), "{}", refused.message());
    service.until("nothing is left of it", async || types(&service) == json!({})).await;
    service.expect_clean().await;
}

#[tokio::test]
async fn a_vf_without_a_type_is_refused_with_what_to_do() {
    let service = vgpus().await;
    let refused = attach_to(&service, Q35, json!({})).await.expect(409);
    for says in ["has no vGPU type", "request one with vgpu_type", "nvidia-1155"] {
        assert!(refused.message().contains(says), "{says}: {}", refused.message());
    }
    let run = attach_to(&service, Q35, json!({ "dry_run": true })).await.expect(200).body["dry_run"].clone();
    assert_eq!(run["would_attach"], false);
    let run = attach_to(&service, Q35, json!({ "dry_run": true, "vgpu_type": TYPE })).await.expect(200).body;
    let checks = run["dry_run"]["checks"].as_array().unwrap();
    let check = checks.iter().find(|check| check["check"] == "vgpu-type").unwrap();
    assert_eq!(
        (&check["result"], &run["dry_run"]["would_attach"]),
        (&json!("pass"), &json!(true)),
        "{run:#}"
    );
    assert_eq!(types(&service), json!({}), "a dry run sets nothing");
    // How many VFs of a card can be of a type at once is not known before.
    let body = json!({ "pci_passthrough:alias": "vgpu:2", "vgpu_type": TYPE, "dry_run": true });
    let run = service.post(&attachments(Q35), json!({ "pciAttachment": body })).await.expect(200).body;
    let checks = run["dry_run"]["checks"].as_array().unwrap().iter();
    let of_types = checks.filter(|check| check["check"] == "vgpu-type").map(|check| &check["result"]);
    assert_eq!(of_types.collect::<Vec<_>>(), ["pass", "unknown"], "{run:#}");
    for (of, says) in [("", "write the id"), ("a\u{7}b", "write the id")] {
        let refused = attach(&service, of).await.expect(400);
        assert!(refused.message().contains(says), "{}", refused.message());
    }
}

#[tokio::test]
async fn a_type_that_somebody_else_has_set_is_left_alone() {
    let service = Hotslot::bare(&host("vgpu"), VGPU, |host| set_by_hand(host, VF, "nvidia-1153")).await;
    // It is not offered for another type.
    let other = device(attach(&service, TYPE).await);
    assert_eq!(other["address"], OTHER);
    // It is taken as it is, with or without the name of its type, and keeps it.
    for keys in [json!({}), json!({ "vgpu_type": "nvidia-1153" })] {
        let own = device(attach_to(&service, Q35, keys).await);
        assert_eq!(own["address"], VF);
        service.delete(&path(&own)).await.expect(200);
        assert_eq!(types(&service), json!({ VF: "nvidia-1153", OTHER: TYPE }));
    }
    // One that was changed by somebody else after the detach of the guest is not taken away.
    service.sim("fault set-vgpu-type fail times=99 text=the driver is busy");
    service.delete(&path(&other)).await.expect(200);
    assert_eq!(types(&service)[OTHER], TYPE);
    set_by_hand(&service.host_dir(), OTHER, "nvidia-1153");
    service.sim("fault clear");
    let log = async || {
        service.log().contains("is left with the vGPU type nvidia-1153, which somebody else has set")
    };
    let own = device(attach(&service, "nvidia-1153").await);
    service.delete(&path(&own)).await.expect(200);
    service.until("it is left alone", log).await;
    assert_eq!(types(&service), json!({ VF: "nvidia-1153", OTHER: "nvidia-1153" }));
    service.expect_clean().await;
}

#[tokio::test]
async fn types_of_an_attach_that_fails_are_taken_away() {
    for fault in
        ["attach fail", "set-vgpu-type fail", "set-vgpu-type away at=after ms=300", "attach hang ms=800"]
    {
        let config = format!("[libvirt]\nattach_timeout = 0.5\n{VGPU}");
        let service = Hotslot::bare(&host("vgpu"), &config, |_| ()).await;
        service.sim(&format!("fault {fault}"));
        let failed = attach(&service, TYPE).await;
        assert!(failed.status == 502 || failed.status == 503, "{fault}: {}", failed.message());
        service.until("the type is taken away", async || types(&service) == json!({})).await;
        service.until("the VF is free", async || service.device(VF).await["status"] == "available").await;
        assert!(service.attachments(Q35).await.is_empty());
    }
}

#[tokio::test]
async fn types_are_settled_after_a_kill() {
    for kill in [
        "set-vgpu-type kill at=before",
        "set-vgpu-type kill at=after",
        "attach kill at=before",
        "attach kill at=after",
    ] {
        let mut service = vgpus().await;
        service.sim(&format!("fault {kill}"));
        let body =
            json!({ "pciAttachment": { "pci_passthrough:alias": "vgpu:1", "vgpu_type": TYPE } }).to_string();
        service.try_send(Method::POST, &attachments(Q35), Some(("application/json", body))).await;
        assert!(service.ended(Duration::from_secs(30)).await, "{kill}");
        service.start_again().await;
        // The attachment is completed when its guest has the device, and undone otherwise.
        let settled = async || service.attachments(Q35).await.iter().all(|row| row["status"] == "attached");
        service.until("it is settled", settled).await;
        for row in service.attachments(Q35).await {
            assert_eq!(types(&service), json!({ VF: TYPE }), "{kill}");
            service.sim("fault set-vgpu-type kill at=before");
            service.try_send(Method::DELETE, &path(&row), None).await;
            assert!(service.ended(Duration::from_secs(30)).await, "{kill}");
            service.start_again().await;
        }
        service.until("the type is taken away", async || types(&service) == json!({})).await;
        service.expect_clean().await;
    }
}

#[tokio::test]
async fn a_vf_that_keeps_the_type_of_an_ended_attachment_goes_to_nobody() {
    let service = vgpus().await;
    let vf = device(attach(&service, TYPE).await);
    service.sim("fault set-vgpu-type fail times=99 text=the driver is busy");
    service.delete(&path(&vf)).await.expect(200);
    assert_eq!(types(&service), json!({ VF: TYPE }));
    let refused = attach_to(&service, Q35, json!({})).await.expect(409);
    let found = drift(&service).await;
    let found = found.iter().find(|finding| finding["kind"] == "vgpu-type").expect("a finding");
    assert_eq!(found["address"], VF, "{found}");
    assert!(
        refused.message().contains("no vGPU type") || refused.message().contains("still has"),
        "{}",
        refused.message()
    );
    let refused = attach_to(
        &service,
        Q35,
        json!({ "addresses": [VF], "vgpu_type": TYPE, "pci_passthrough:alias": null }),
    );
    let refused = refused.await;
    for says in ["still has the vGPU type nvidia-1155 of attachment", "the driver is busy"] {
        assert!(refused.message().contains(says), "{says}: {}", refused.message());
    }
    service.sim("fault clear");
    let again = device(attach(&service, TYPE).await);
    assert_eq!((&again["address"], types(&service)), (&json!(VF), json!({ VF: TYPE })));
    service.delete(&path(&again)).await.expect(200);
    service.expect_clean().await;
}

#[tokio::test]
async fn a_type_that_is_lost_is_set_again() {
    let mut service = vgpus().await;
    let vf = device(attach_to(&service, SWITCH, json!({ "vgpu_type": TYPE })).await);
    // The host restarts: the VFs are made anew.
    service.kill();
    clear_by_hand(&service.host_dir(), VF);
    service.start_again().await;
    service.until("it has its type again", async || types(&service) == json!({ VF: TYPE })).await;
    service.sim("start switch");
    service.sim("destroy switch");
    service.delete(&path(&vf)).await.expect(200);
    assert_eq!(types(&service), json!({}));
    service.expect_clean().await;
}

/// Aliases of two types, of one without a type, and a flavor.
const TYPED: &str = r#"
[pci]
device_spec = ['{"vendor_id": "10de", "product_id": "26b9", "managed": "false"}']
alias = [
  '{"name": "vgpu", "vendor_id": "10de", "product_id": "26b9", "device_type": "type-VF"}',
  '{"name": "24q", "vendor_id": "10de", "product_id": "26b9", "vgpu_type": "NVIDIA L40S-24Q"}',
  '{"name": "12q", "vendor_id": "10de", "product_id": "26b9", "mdev_type": "nvidia-1153"}',
  '{"name": "lost", "vendor_id": "10de", "product_id": "26b9", "vgpu_type": "nvidia-7"}',
]
[[flavor]]
name = "desktop"
extra_specs = { "pci_passthrough:alias" = "12q:1,24q:1" }
"#;

async fn attach_as(service: &Hotslot, keys: Value) -> Answer {
    service.post(&attachments(Q35), json!({ "pciAttachment": keys })).await
}

#[tokio::test]
async fn an_alias_names_the_type_and_a_request_has_several() {
    let service = Hotslot::bare(&host("vgpu"), TYPED, |_| ()).await;
    for keys in [json!({ "pci_passthrough:alias": "12q:1,24q:1" }), json!({ "flavor": "desktop" })] {
        let made = attach_as(&service, keys).await.expect(200).body["pci_devices"].clone();
        let of = |one: &Value| (one["alias"].clone(), one["vgpu_type"].clone());
        let made = made.as_array().unwrap().clone();
        let wanted = [(json!("12q"), json!("nvidia-1153")), (json!("24q"), json!(TYPE))];
        assert_eq!(made.iter().map(of).collect::<Vec<_>>(), wanted);
        assert_eq!(types(&service), json!({ VF: "nvidia-1153", OTHER: TYPE }));
        for vf in made {
            service.delete(&path(&vf)).await.expect(200);
        }
        assert_eq!(types(&service), json!({}));
    }
    // The request may say the same in other words.
    for name in [TYPE, "1155", "NVIDIA L40S-24Q"] {
        let keys = json!({ "pci_passthrough:alias": "24q:1", "vgpu_type": name });
        let made = attach_as(&service, keys).await.expect(200).body["pci_devices"][0].clone();
        assert_eq!(made["vgpu_type"], TYPE, "{name}");
        service.delete(&path(&made)).await.expect(200);
    }
    // It may say the same, or a type where its alias says nothing.
    let keys = json!({ "pci_passthrough:alias": "vgpu:1,12q:1", "vgpu_type": "nvidia-1153" });
    for vf in attach_as(&service, keys).await.expect(200).body["pci_devices"].as_array().unwrap() {
        assert_eq!(vf["vgpu_type"], "nvidia-1153");
        service.delete(&path(vf)).await.expect(200);
    }
    for (keys, status, says) in [
        (json!({ "pci_passthrough:alias": "12q:1", "vgpu_type": TYPE }), 400, "leave vgpu_type out"),
        (json!({ "pci_passthrough:alias": "lost:1", "vgpu_type": "1155" }), 400, "leave vgpu_type out"),
        (json!({ "pci_passthrough:alias": "vgpu:1,24q:1" }), 409, "request one with vgpu_type"),
        (
            json!({ "pci_passthrough:alias": "lost:1" }),
            409,
            "it can be: nvidia-1153, nvidia-1155, nvidia-1157",
        ),
        (json!({ "pci_passthrough:alias": "lost:1" }), 409, "ask for another vGPU type"),
    ] {
        let refused = attach_as(&service, keys).await.expect(status);
        assert!(refused.message().contains(says), "{says}: {}", refused.message());
    }
    assert_eq!(types(&service), json!({}));
    service.expect_clean().await;
}

/// When nothing is left of a card, its VFs do not tell which names are of one type.
#[tokio::test]
async fn names_that_cannot_be_compared_are_refused_for_now() {
    let service = Hotslot::bare(&host("vgpu"), TYPED, |_| ()).await;
    let one = device(attach(&service, "NVIDIA L40S-48Q").await);
    let refused = async |keys: Value| attach_as(&service, keys).await.expect(409).message().to_owned();
    let unclear = refused(json!({ "pci_passthrough:alias": "24q:1", "vgpu_type": TYPE })).await;
    assert!(unclear.contains("not known whether both are the same; leave vgpu_type out"), "{unclear}");
    let advised = refused(json!({ "pci_passthrough:alias": "24q:1" })).await;
    assert!(advised.contains("cannot be of the vGPU type NVIDIA L40S-24Q now"), "{advised}");
    service.delete(&path(&one)).await.expect(200);
    service.expect_clean().await;
}

#[tokio::test]
async fn a_card_that_has_room_for_one_vf_of_a_request_says_so() {
    let service = vgpus().await;
    let body = json!({ "pci_passthrough:alias": "vgpu:2", "vgpu_type": "1157" });
    let refused = service.post(&attachments(Q35), json!({ "pciAttachment": body })).await.expect(409);
    let says = format!("{VF}, which the same request has given a type, took what was left of this type");
    assert!(refused.message().contains(&says), "{}", refused.message());
    assert!(refused.message().contains("request fewer of them"), "{}", refused.message());
    service.until("nothing is left of it", async || types(&service) == json!({})).await;
    service.expect_clean().await;
}

/// Binding the driver of a function may take away more than the function.
#[tokio::test]
async fn a_pf_is_not_unbound_for_its_vfs_disappear() {
    let config = VGPU.replace("alias = [", r#"alias = ['{"name": "gpu", "vendor_id": "10de", "product_id": "26b9", "device_type": "type-PF"}', "#);
    let service = Hotslot::bare(&host("vgpu"), &config, |_| ()).await;
    let texts = async || {
        let shown = function(&service, "0000:41:00.0").await["withheld"].to_string();
        let of_alias = service.get("/v2/t/os-hypervisors/1/pci_candidates?alias=gpu").await.expect(200).body;
        let keys = json!({ "pci_passthrough:alias": "gpu:1" });
        let run = attach_as(&service, json!({ "pci_passthrough:alias": "gpu:1", "dry_run": true })).await;
        let refused = attach_as(&service, keys).await;
        assert!(matches!(refused.status, 400 | 409), "{}", refused.body);
        let refused = refused.message().to_owned();
        [shown, of_alias.to_string(), run.expect(200).body.to_string(), refused]
    };
    for text in texts().await {
        assert!(text.contains("take a VF of it, or remove its 4 VF(s)"), "{text}");
        assert!(!text.contains("nodedev-detach"), "{text}");
    }
    let vf = device(attach(&service, TYPE).await);
    let texts = texts().await;
    assert!(texts[0].contains(&format!("its VF {VF} is in use")), "{}", texts[0]);
    assert!(texts.iter().all(|text| !text.contains("nodedev-detach")), "{texts:#?}");
    service.delete(&path(&vf)).await.expect(200);
}

#[tokio::test]
async fn the_candidates_of_an_alias_are_those_that_it_would_get() {
    let service = Hotslot::bare(&host("vgpu"), TYPED, |host| set_by_hand(host, VF, "nvidia-1153")).await;
    let candidates = async |alias: &str| {
        let listed = service.get(&format!("/v2/t/os-hypervisors/1/pci_candidates?alias={alias}")).await;
        let listed = listed.expect(200).body["pci_candidates"].as_array().unwrap().clone();
        let of = |address: &str| listed.iter().find(|one| one["address"] == address).unwrap()["why"].clone();
        [of(VF), of(OTHER)].map(|why| why.as_str().unwrap_or("yes").to_owned())
    };
    let says = |reasons: [String; 2], wanted: [&str; 2]| {
        for (reason, wanted) in reasons.iter().zip(wanted) {
            assert!(reason.contains(wanted), "{wanted}: {reason}");
        }
    };
    says(candidates("24q").await, ["somebody else has set", "yes"]);
    says(candidates("12q").await, ["yes", "yes"]);
    says(candidates("vgpu").await, ["yes", "has no vGPU type, so that no guest can open it"]);
    says(candidates("lost").await, ["somebody else has set", "cannot be of the vGPU type nvidia-7 now"]);
    assert_eq!(types(&service), json!({ VF: "nvidia-1153" }));
}

/// Marks the host as a remote machine.
fn far_away(host: &Path) {
    let file = host.join("host.toml");
    let text = fs::read_to_string(&file).unwrap();
    fs::write(file, format!("remote = true\n{text}")).unwrap();
}

#[tokio::test]
async fn a_type_that_cannot_be_set_is_refused_and_not_ignored() {
    let far = Hotslot::bare(&host("vgpu"), VGPU, far_away).await;
    let own = vgpus().await;
    own.sim("fault may-set-vgpu-types fail kind=unsupported times=99 text=systemctl enable --now hotslot-helper.socket");
    let none = Hotslot::bare(&host("vgpu"), VGPU, |host| {
        let file = host.join("host.toml");
        let text = fs::read_to_string(&file).unwrap();
        fs::write(file, text.split("[vgpu").next().unwrap()).unwrap();
    })
    .await;
    let says = ["the host is another machine", "hotslot-helper.socket", "has no VFs with vGPU types"];
    for (service, says) in [&far, &own, &none].into_iter().zip(says) {
        let refused = attach(service, TYPE).await.expect(409);
        assert!(refused.message().contains(says), "{}", refused.message());
        let run =
            attach_to(service, Q35, json!({ "vgpu_type": TYPE, "dry_run": true })).await.expect(200).body;
        let checks = run["dry_run"]["checks"].as_array().unwrap();
        let check = checks.iter().find(|check| check["check"] == "vgpu-type").unwrap();
        assert_eq!(
            (&check["result"], &run["dry_run"]["would_attach"]),
            (&json!("fail"), &json!(false)),
            "{run:#}"
        );
        assert!(service.attachments(Q35).await.is_empty());
    }
}

#[tokio::test]
async fn the_command_line_attaches_by_type() {
    let service = vgpus().await;
    let hotslot = |arguments: &str| {
        let mut command = Command::new(binary());
        let output = command.args(arguments.split(' ')).env("HOTSLOT_URL", service.url()).output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status.success(), text(&output.stdout), text(&output.stderr))
    };
    let (_, _, refused) = hotslot("attach q35 vgpu");
    assert!(refused.contains("--vgpu-type"), "{refused}");
    let (attached, _, why) = hotslot("attach q35 vgpu --vgpu-type 1155");
    assert!(attached, "{why}");
    for (address, says) in [
        ("0000:41:00.0", "nvidia-1153 (NVIDIA L40S-12Q): 3 left, nvidia-1155 (NVIDIA L40S-24Q): 3 left"),
        (VF, "vGPU type:          nvidia-1155"),
    ] {
        let (_, shown, _) = hotslot(&format!("device show {address}"));
        assert!(shown.contains(says), "{says}: {shown}");
    }
    let (detached, _, why) = hotslot("detach q35 vgpu");
    assert!(detached, "{why}");
    assert_eq!(types(&service), json!({}));
}
