//! Cyborg's v2 over HTTP: device profiles, requests that are bound to running and stopped servers, and who may do what.

use hotslot_tests::{Answer, Hotslot, host, without_mdevs};
use reqwest::Method;
use serde_json::{Value, json};

const G1: &str = "20000000-0000-4000-8000-000000000001";
const G2: &str = "20000000-0000-4000-8000-000000000002";
const G3: &str = "20000000-0000-4000-8000-000000000003";

const V2: &str = "/accelerator/v2";
const ARQS: &str = "/accelerator/v2/accelerator_requests";

const PCI: &str = r#"
[pci]
device_spec = ['{"vendor_id": "10de", "traits": "CUSTOM_GOLD"}', '{"address": "*:*:*.*"}']
alias = ['{"name": "qat", "vendor_id": "8086", "product_id": "37c9", "device_type": "type-VF"}']
"#;

async fn service() -> Hotslot {
    Hotslot::bare(&host("accelerators"), PCI, without_mdevs).await
}

async fn profile(service: &Hotslot, name: &str, groups: Value) {
    let body = json!([{ "name": name, "groups": groups }]);
    service.post(&format!("{V2}/device_profiles"), body).await.expect(201);
}

/// Makes the requests of a profile, and answers their ids.
async fn requests(service: &Hotslot, profile: &str) -> Vec<String> {
    let made = service.post(ARQS, json!({ "device_profile_name": profile })).await.expect(201).body;
    let arqs = made["arqs"].as_array().unwrap();
    assert!(arqs.iter().all(|arq| arq["state"] == "Initial"), "{made}");
    arqs.iter().map(|arq| arq["uuid"].as_str().unwrap().to_owned()).collect()
}

/// The resource provider of the deployable at an address.
async fn provider(service: &Hotslot, address: &str) -> String {
    let all = service.get(&format!("{V2}/deployables")).await.expect(200).body["deployables"].clone();
    let name = json!(format!("node1_{address}"));
    let found = all.as_array().unwrap().iter().find(|deployable| deployable["name"] == name).unwrap();
    found["rp_uuid"].as_str().unwrap().to_owned()
}

const QAT: &str = "0000:a1:00.0";
const GPU: &str = "0000:41:00.0";

fn target(rp: &str, server: &str) -> Value {
    let add = |path: &str, value: &str| json!({ "op": "add", "path": path, "value": value });
    json!([add("/hostname", "node1"), add("/device_rp_uuid", rp), add("/instance_uuid", server)])
}

fn nowhere() -> Value {
    let remove = |path: &str| json!({ "op": "remove", "path": path });
    json!([remove("/hostname"), remove("/device_rp_uuid"), remove("/instance_uuid")])
}

async fn patch(service: &Hotslot, arq: &str, patch: Value) -> Answer {
    let body = json!({ arq: patch }).to_string();
    service.send(Method::PATCH, ARQS, Some(("application/json", body))).await
}

async fn shown(service: &Hotslot, arq: &str) -> Value {
    service.get(&format!("{ARQS}/{arq}")).await.expect(200).body
}

/// Waits until a request is in a state, and answers it.
async fn becomes(service: &Hotslot, arq: &str, state: &str) -> Value {
    let what = format!("request {arq} is {state}");
    service.until(&what, async || shown(service, arq).await["state"] == state).await;
    shown(service, arq).await
}

#[tokio::test]
async fn bad_requests_are_answered_in_cyborgs_form_and_change_nothing() {
    let service = service().await;
    profile(&service, "qat", json!([{ "resources:CUSTOM_QAT": "1" }])).await;
    profile(&service, "nothing", json!([{ "trait:CUSTOM_A": "required" }])).await;
    let arq = requests(&service, "qat").await.remove(0);
    let (qat, gpu) = (provider(&service, QAT).await, provider(&service, GPU).await);
    let all = service.get(&format!("{V2}/deployables")).await.expect(200).body["deployables"].clone();
    let qat_card = all.as_array().unwrap().iter().find(|one| one["rp_uuid"] == qat).unwrap()["uuid"].clone();
    let written_out = |text: &str| {
        let text = text.replace("{qat_card}", qat_card.as_str().unwrap());
        let text = text.replace("{arq}", &arq).replace("{ARQ}", &arq.to_uppercase()).replace("{g1}", G1);
        text.replace("{qat}", &qat).replace("{gpu}", &gpu)
    };
    let cases: Vec<Value> = serde_json::from_str(include_str!("../data/cyborg-requests.json")).unwrap();
    for case in cases {
        let text = |key: &str| case[key].as_str().map(written_out);
        let body = match &case["body"] {
            Value::Null => None,
            Value::String(raw) => Some(raw.clone()),
            other => Some(written_out(&other.to_string())),
        };
        let mut headers = vec![("content-type".to_owned(), "application/json".to_owned())];
        headers.extend(text("version").map(|version| ("openstack-api-version".to_owned(), version)));
        let method: Method = text("method").unwrap().parse().unwrap();
        for prefix in [V2, "/accelerator"] {
            let path = format!("{prefix}{}", text("path").unwrap());
            // Without a version, what is no collection of Cyborg's is an accelerator of seed 002.
            if path == "/accelerator/nothing" {
                continue;
            }
            let answer = service.send_with(method.clone(), &path, headers.clone(), body.clone()).await;
            assert_eq!(u64::from(answer.status), case["status"], "{prefix}: {case}: {}", answer.body);
            let says = text("says").unwrap();
            assert!(answer.fault_string().contains(&says), "{case}: {}", answer.fault_string());
        }
    }
    assert_eq!(shown(&service, &arq).await["state"], "Initial");
    service.expect_clean().await;
}

#[tokio::test]
async fn version_documents_are_read_without_a_version() {
    let service = service().await;
    for path in [V2, "/accelerator/v2/"] {
        let v2 = service.get(path).await.expect(200).body;
        assert_eq!(
            (&v2["id"], &v2["status"], &v2["min_version"], &v2["max_version"]),
            (&json!("v2.0"), &json!("CURRENT"), &json!("2.0"), &json!("2.3"))
        );
    }
    let all = service.get("/accelerator/").await.expect(200).body;
    assert_eq!((&all["versions"][0]["id"], &all["default_version"]["id"]), (&json!("v2"), &json!("v2")));
    // Of two lines the one that is ours counts, and what is too long is said in Cyborg's form too.
    let two = [("openstack-api-version", "compute 2.90"), ("openstack-api-version", "accelerator 2.3")];
    let two = two.map(|(name, value)| (name.to_owned(), value.to_owned()));
    let devices = service.send_with(Method::GET, &format!("{V2}/devices"), two, None).await.expect(200);
    assert_eq!(devices.body["devices"][0]["status"], "enabled");
    // Cyborg names its service in these but for the lowest.
    for (name, value) in [
        ("openstack-api-version", "accelerator 2.3"),
        ("openstack-api-minimum-version", "2.0"),
        ("openstack-api-maximum-version", "accelerator 2.3"),
    ] {
        assert_eq!(devices.headers[name], value, "{name}");
    }
    let long = service.get(&format!("{V2}/attributes?key={}", "x".repeat(9000))).await.expect(414);
    assert!(long.fault_string().contains("8192"), "{}", long.fault_string());
    // Seed 002's list has the path without the slash.
    assert_eq!(service.get("/accelerator").await.expect(200).body, json!({ "accelerator": [] }));
}

#[tokio::test]
async fn device_profiles_have_one_name_and_go_when_nobody_asks_by_them() {
    let service = service().await;
    let path = format!("{V2}/device_profiles");
    let groups = json!([{ "resources:CUSTOM_QAT": "1", "trait:CUSTOM_QAT_INTEL": "required" }]);
    let body = json!([{ "name": "qat", "groups": groups, "description": "one" }]);
    let made = service.post(&path, body.clone()).await.expect(201).body;
    assert_eq!(
        (&made["name"], &made["groups"], &made["description"]),
        (&json!("qat"), &groups, &json!("one"))
    );
    service.post(&path, body).await.expect(409);
    let uuid = made["uuid"].as_str().unwrap();
    let one = service.get(&format!("{path}/{uuid}")).await.expect(200).body;
    assert_eq!(one["device_profile"], made);
    let latest = [("openstack-api-version".to_owned(), "accelerator latest".to_owned())];
    let by_name = service.send_with(Method::GET, &format!("{path}/qat"), latest, None).await.expect(200).body;
    assert_eq!(by_name, one);
    profile(&service, "other", json!([{ "resources:GPU": 1 }])).await;
    // A name may look like an id: the one that has the id is meant.
    let id = "30000000-0000-4000-8000-000000000001";
    for body in
        [json!([{ "name": id, "groups": groups }]), json!([{ "name": "x", "uuid": id, "groups": groups }])]
    {
        service.post(&path, body).await.expect(201);
    }
    service.delete(&format!("{path}/{id}")).await.expect(204);
    service.delete(&format!("{path}?value={id},{id}")).await.expect(204);
    let named = service.get(&format!("{path}?name=other,none")).await.expect(200).body;
    assert_eq!(named["device_profiles"].as_array().unwrap().len(), 1);
    let arq = requests(&service, "qat").await.remove(0);
    let refused = service.delete(&format!("{path}?value=other,qat")).await.expect(409);
    assert!(refused.fault_string().contains(&arq), "{}", refused.fault_string());
    service.delete(&format!("{ARQS}?arqs={arq}")).await.expect(204);
    service.delete(&format!("{path}?value=other,qat")).await.expect(204);
    service.delete(&format!("{path}/{uuid}")).await.expect(404);
    assert_eq!(service.get(&path).await.expect(200).body, json!({ "device_profiles": [] }));
}

#[tokio::test]
async fn requests_are_bound_to_running_and_stopped_servers_and_unbound() {
    let service = service().await;
    profile(&service, "qat", json!([{ "resources:CUSTOM_QAT": "2" }])).await;
    profile(&service, "gold", json!([{ "resources:PGPU": "1", "trait:CUSTOM_GOLD": "required" }])).await;
    let qat = requests(&service, "qat").await;
    let gpu = requests(&service, "gold").await.remove(0);
    assert_eq!((qat.len(), service.get(ARQS).await.body["arqs"].as_array().unwrap().len()), (2, 3));
    let (card, gpu_card) = (provider(&service, QAT).await, provider(&service, GPU).await);

    // Into a running guest, by hot-plug; several for one server.
    patch(&service, &qat[0], target(&card, G1)).await.expect(202);
    let bound = becomes(&service, &qat[0], "Bound").await;
    let info = json!({ "domain": "0000", "bus": "a1", "device": "01", "function": "0" });
    assert_eq!(
        (&bound["attach_handle_type"], &bound["attach_handle_info"], &bound["hostname"]),
        (&json!("PCI"), &info, &json!("node1"))
    );
    assert_eq!((&bound["instance_uuid"], &bound["device_rp_uuid"]), (&json!(G1), &json!(card)));
    patch(&service, &gpu, target(&gpu_card, G1)).await.expect(202);
    becomes(&service, &gpu, "Bound").await;
    let attachments = service.attachments(G1).await;
    assert_eq!(attachments.len(), 2);
    assert_eq!(attachments[0]["attachment_id"], bound["attach_handle_uuid"]);
    assert!(attachments[0]["inner_address"].is_string());
    let resolved = service.get(&format!("{ARQS}?instance={G1}&bind_state=resolved")).await.expect(200).body;
    assert_eq!(resolved["arqs"].as_array().unwrap().len(), 2);
    // Into the definition of one that is off.
    patch(&service, &qat[1], target(&card, G3)).await.expect(202);
    becomes(&service, &qat[1], "Bound").await;
    assert_eq!(service.device("0000:a1:01.1").await["instance_uuid"], G3);

    // No other door takes it away, and a bound one is not bound again.
    let path = hotslot_tests::path(&attachments[0]);
    let held = service.delete(&path).await.expect(409);
    assert!(held.message().contains(&format!("accelerator-request:{}", qat[0])), "{}", held.message());
    let again = patch(&service, &qat[0], target(&card, G2)).await.expect(400);
    assert!(again.fault_string().contains("is Bound"), "{}", again.fault_string());
    service.attach(G2, "qat:1").await.expect(400);

    patch(&service, &qat[0], nowhere()).await.expect(202);
    let unbound = shown(&service, &qat[0]).await;
    assert_eq!((&unbound["state"], &unbound["instance_uuid"]), (&json!("Unbound"), &Value::Null));
    assert_eq!((&unbound["attach_handle_type"], &unbound["attach_handle_info"]), (&json!(""), &json!({})));
    patch(&service, &qat[0], nowhere()).await.expect(202);
    patch(&service, &qat[0], target(&card, G2)).await.expect(202);
    becomes(&service, &qat[0], "Bound").await;
    // Deleting takes the device back first, and by server it may be done again.
    service.delete(&format!("{ARQS}?arqs={},{}", qat[0], qat[1])).await.expect(204);
    for _ in 0..2 {
        service.delete(&format!("{ARQS}?instance={G1}")).await.expect(204);
    }
    assert_eq!(service.get(ARQS).await.expect(200).body, json!({ "arqs": [] }));
    service.expect_clean().await;
}

/// The mediated devices of the card, by UUID.
async fn mdevs(service: &Hotslot) -> Vec<String> {
    let shown = service.get(&format!("/v2.1/os-hypervisors/1/pci_devices/{GPU}")).await.expect(200).body;
    let mdevs = shown["pci_device"]["mdevs"].as_array().unwrap().clone();
    mdevs.iter().map(|mdev| mdev["uuid"].as_str().unwrap().to_owned()).collect()
}

/// What a host without such hardware can show: its driver's part is simulated.
#[tokio::test]
async fn a_vgpu_is_made_for_a_request_and_goes_with_it() {
    let mut service = service().await;
    profile(&service, "any", json!([{ "resources:VGPU": "2", "trait:CUSTOM_GOLD": "required" }])).await;
    for (name, wanted) in [("by-id", "CUSTOM_NVIDIA_233"), ("by-name", "CUSTOM_NVIDIA_1EB8_T4_8Q")] {
        let wanted = format!("trait:{wanted}");
        profile(&service, name, json!([{ "resources:VGPU": "1", (wanted): "required" }])).await;
    }
    profile(&service, "other", json!([{ "resources:VGPU": "1", "trait:CUSTOM_NVIDIA_1": "required" }])).await;
    profile(&service, "whole", json!([{ "resources:PGPU": "1" }])).await;
    let card = provider(&service, GPU).await;

    // Into a running guest, by hot-plug; one of another in the same card, into a definition.
    let (eight, second) =
        (requests(&service, "by-id").await.remove(0), requests(&service, "by-name").await.remove(0));
    patch(&service, &eight, target(&card, G1)).await.expect(202);
    let bound = becomes(&service, &eight, "Bound").await;
    assert_eq!(
        (&bound["attach_handle_type"], &bound["attach_handle_info"]),
        (
            &json!("MDEV"),
            &json!({ "domain": "0000", "bus": "41", "device": "00", "function": "0", "asked_type": "nvidia-233" })
        )
    );
    let uuid = bound["attach_handle_uuid"].as_str().unwrap();
    assert_eq!((service.plugged(), mdevs(&service).await), (vec![uuid.to_owned(); 2], vec![uuid.to_owned()]));
    patch(&service, &second, target(&card, G3)).await.expect(202);
    becomes(&service, &second, "Bound").await;

    // The card is in parts: it is nobody's as a whole, and no more of them can be made.
    let whole = requests(&service, "whole").await.remove(0);
    patch(&service, &whole, target(&card, G2)).await.expect(202);
    let failed = becomes(&service, &whole, "BindFailed").await;
    let reason = failed["state_reason"].as_str().unwrap();
    assert!(reason.contains(&format!("accelerator request {whole} asks for 1 device(s)")), "{failed}");
    assert!(reason.contains("it is allocated"), "{failed}");
    let third = requests(&service, "by-id").await.remove(0);
    patch(&service, &third, target(&card, G2)).await.expect(202);
    let failed = becomes(&service, &third, "BindFailed").await;
    assert!(failed["state_reason"].as_str().unwrap().contains("no more of it can be made"), "{failed}");
    let other = requests(&service, "other").await.remove(0);
    let refused = patch(&service, &other, target(&card, G1)).await.expect(400);
    assert!(refused.fault_string().contains("CUSTOM_NVIDIA_1EB8_T4_4Q"), "{}", refused.fault_string());
    let none = patch(&service, &other, target(&provider(&service, QAT).await, G1)).await.expect(400);
    assert!(none.fault_string().contains("not VGPU"), "{}", none.fault_string());

    // A guest that keeps it, a service that is killed, an unbind, a delete.
    service.sim("guest g1 unplug=refuse");
    patch(&service, &eight, nowhere()).await.expect(409);
    assert_eq!(shown(&service, &eight).await["state"], "UnbindFailed");
    service.sim("guest g1 unplug=normal");
    service.kill();
    service.start_again().await;
    patch(&service, &eight, nowhere()).await.expect(202);
    let unbound = shown(&service, &eight).await;
    assert_eq!((&unbound["state"], &unbound["attach_handle_type"]), (&json!("Unbound"), &json!("")));
    assert_eq!(mdevs(&service).await.len(), 1);
    service.delete(&format!("{ARQS}/{second}")).await.expect(204);
    assert_eq!(mdevs(&service).await, Vec::<String>::new());

    // Of any type: two of one card are of one type, and they come and go by their server.
    let any = requests(&service, "any").await;
    let both = json!({ (&any[0]): target(&card, G1), (&any[1]): target(&card, G1) }).to_string();
    service.send(Method::PATCH, ARQS, Some(("application/json", both))).await.expect(202);
    let (one, two) = (becomes(&service, &any[0], "Bound").await, becomes(&service, &any[1], "Bound").await);
    assert_eq!(one["attach_handle_info"], two["attach_handle_info"]);
    assert_ne!(one["attach_handle_uuid"], two["attach_handle_uuid"]);
    let resolved = service.get(&format!("{ARQS}?instance={G1}&bind_state=resolved")).await.expect(200).body;
    assert_eq!(resolved["arqs"].as_array().unwrap().len(), 2);
    service.delete(&format!("{ARQS}?instance={G1}")).await.expect(204);
    assert_eq!(mdevs(&service).await, Vec::<String>::new());
    service.expect_clean().await;
}

#[tokio::test]
async fn killed_at_any_step_of_a_vgpu_it_is_bound_or_nothing_is_left_of_it() {
    let mut service = service().await;
    profile(&service, "vgpu", json!([{ "resources:VGPU": "1" }])).await;
    let arq = requests(&service, "vgpu").await.remove(0);
    let card = provider(&service, GPU).await;
    for nth in 1.. {
        let start = service.log_length();
        service.sim(&format!("fault any kill nth={nth} at=after"));
        let body = json!({ (&arq): target(&card, G1) }).to_string();
        let asked = service.try_send(Method::PATCH, ARQS, Some(("application/json", body))).await;
        let ended = service.ended(std::time::Duration::from_millis(300)).await;
        let struck = service.log_from(start).contains("a fault applies to ");
        if ended {
            service.start_again().await;
        } else {
            assert!(!struck && asked.is_some_and(|answer| answer.status == 202), "{nth}");
            service.sim("fault clear");
        }
        let settled = async || shown(&service, &arq).await["state"] != "BindStarted";
        service.until(&format!("it is settled: {nth}"), settled).await;
        service.ready().await;
        let is = shown(&service, &arq).await;
        match is["state"].as_str().unwrap() {
            "Bound" => {
                assert_eq!(mdevs(&service).await, [is["attach_handle_uuid"].as_str().unwrap()], "{nth}")
            }
            "BindFailed" | "Initial" | "Unbound" => {
                service.until("nothing is left", async || mdevs(&service).await.is_empty()).await;
            }
            state => panic!("{nth}: {state}"),
        }
        let goes = async || patch(&service, &arq, nowhere()).await.status == 202;
        service.until(&format!("it goes: {nth}"), goes).await;
        service.until("nothing is left", async || mdevs(&service).await.is_empty()).await;
        service.expect_clean().await;
        if !struck {
            assert!(nth > 8, "{nth} steps");
            return;
        }
    }
}

#[tokio::test]
async fn a_bind_that_fails_says_why_and_leaves_nothing() {
    let service = service().await;
    profile(&service, "qat", json!([{ "resources:CUSTOM_QAT": "1" }])).await;
    profile(&service, "loaded", json!([{ "resources:FPGA": "1", "accel:bitstream_id": "7" }])).await;
    let arq = requests(&service, "qat").await.remove(0);
    let card = provider(&service, QAT).await;
    service.sim("fault attach fail text=the-bus-is-on-fire");
    service.sim("latency attach 500");
    patch(&service, &arq, target(&card, G1)).await.expect(202);
    assert_eq!(shown(&service, &arq).await["state"], "BindStarted");
    // Whoever waits for it is told that it is not settled.
    service.get(&format!("{ARQS}?instance={G1}&bind_state=resolved")).await.expect(423);
    assert_eq!(patch(&service, &arq, nowhere()).await.status, 409);
    let failed = becomes(&service, &arq, "BindFailed").await;
    assert!(failed["state_reason"].as_str().unwrap().contains("the-bus-is-on-fire"), "{failed}");
    service.get(&format!("{ARQS}?instance={G1}&bind_state=resolved")).await.expect(200);
    service.expect_clean().await;
    patch(&service, &arq, target(&card, G1)).await.expect(400);
    patch(&service, &arq, nowhere()).await.expect(202);
    patch(&service, &arq, target(&card, G1)).await.expect(202);
    becomes(&service, &arq, "Bound").await;
    // Nobody here loads a bitstream.
    let loaded = requests(&service, "loaded").await.remove(0);
    let refused = patch(&service, &loaded, target(&provider(&service, "0000:c1:00.0").await, G1)).await;
    assert!(refused.expect(400).fault_string().contains("accel:bitstream_id"));
    service.delete(&format!("{ARQS}?instance={G1}")).await.expect(204);
    service.expect_clean().await;
}

#[tokio::test]
async fn a_guest_that_does_not_let_go_keeps_its_device() {
    let service = service().await;
    profile(&service, "qat", json!([{ "resources:CUSTOM_QAT": "1" }])).await;
    let arq = requests(&service, "qat").await.remove(0);
    patch(&service, &arq, target(&provider(&service, QAT).await, G1)).await.expect(202);
    becomes(&service, &arq, "Bound").await;
    service.sim("guest g1 unplug=refuse");
    patch(&service, &arq, nowhere()).await.expect(409);
    let kept = shown(&service, &arq).await;
    assert_eq!((&kept["state"], &kept["instance_uuid"]), (&json!("UnbindFailed"), &json!(G1)));
    assert_eq!((&kept["attach_handle_type"], kept["state_reason"].is_string()), (&json!("PCI"), true));
    service.delete(&format!("{ARQS}/{arq}")).await.expect(409);
    assert_eq!(shown(&service, &arq).await["state"], "UnbindFailed");
    // Of one that may let go later, the deletion ends when it does.
    service.sim("guest g1 unplug=slow 2500");
    service.delete(&format!("{ARQS}/{arq}")).await.expect(409);
    assert_eq!(shown(&service, &arq).await["state"], "Deleting");
    service.until("it is deleted", async || service.get(&format!("{ARQS}/{arq}")).await.status == 404).await;
    service.expect_clean().await;
}

#[tokio::test]
async fn what_went_without_being_asked_for_is_bound_nowhere() {
    let mut service = service().await;
    profile(&service, "qat", json!([{ "resources:CUSTOM_QAT": "2" }])).await;
    let arqs = requests(&service, "qat").await;
    let card = provider(&service, QAT).await;
    for arq in &arqs {
        patch(&service, arq, target(&card, G1)).await.expect(202);
        becomes(&service, arq, "Bound").await;
    }
    let expect_nowhere = async |service: &Hotslot, arq: &str| {
        let unbound = becomes(service, arq, "Unbound").await;
        assert_eq!((&unbound["instance_uuid"], &unbound["hostname"]), (&Value::Null, &Value::Null));
        let waits = service.get(&format!("{ARQS}?instance={G1}&bind_state=resolved")).await;
        assert!(waits.expect(200).body["arqs"].as_array().unwrap().iter().all(|other| other["uuid"] != arq));
    };
    // The guest lets go after the unbind has ended.
    service.sim("guest g1 unplug=slow 2500");
    patch(&service, &arqs[0], nowhere()).await.expect(409);
    expect_nowhere(&service, &arqs[0]).await;
    service.sim("guest g1 unplug=normal");
    // The service did not live to say that it is bound, and then its server goes.
    service.kill();
    service
        .in_the_database("UPDATE accelerator_requests SET state = 'BindStarted' WHERE state = 'Bound'")
        .await;
    service.start_again().await;
    becomes(&service, &arqs[1], "Bound").await;
    // Nor to take out what was to be deleted: that is said, and may be asked again.
    service.kill();
    service.in_the_database("UPDATE accelerator_requests SET state = 'Deleting' WHERE state = 'Bound'").await;
    service.start_again().await;
    let kept = becomes(&service, &arqs[1], "UnbindFailed").await;
    assert!(kept["state_reason"].as_str().unwrap().contains("delete it again"), "{kept}");
    service.sim("undefine g1");
    service.sim("destroy g1");
    expect_nowhere(&service, &arqs[1]).await;
}

#[tokio::test]
async fn requests_of_one_moment_do_not_wait_for_each_other_for_ever() {
    let service = service().await;
    profile(&service, "qat", json!([{ "resources:CUSTOM_QAT": "2" }])).await;
    let card = provider(&service, QAT).await;
    let send = async |one: &str, other: &str| {
        let body = json!({ one: target(&card, G1), other: target(&card, G1) }).to_string();
        service.send(Method::PATCH, ARQS, Some(("application/json", body))).await
    };
    for _ in 0..5 {
        let arqs = requests(&service, "qat").await;
        let (a, b) = (arqs[0].as_str(), arqs[1].as_str());
        let (upper_a, upper_b) = (a.to_uppercase(), b.to_uppercase());
        // As texts, these stand in another order.
        let answers = tokio::join!(send(a, &upper_b), send(&upper_a, b), send(a, b));
        let statuses = [answers.0.status, answers.1.status, answers.2.status];
        assert_eq!(statuses.iter().filter(|status| **status == 202).count(), 1, "{statuses:?}");
        // Whoever cleans up after a server does it once: what is being bound is waited for.
        let path = format!("{ARQS}?instance={G1}");
        let cleaned = tokio::join!(service.delete(&path), service.delete(&path), service.delete(&path));
        assert_eq!([cleaned.0.status, cleaned.1.status, cleaned.2.status], [204; 3]);
        assert_eq!(service.get(ARQS).await.expect(200).body, json!({ "arqs": [] }));
        service.expect_clean().await;
    }
}

#[tokio::test]
async fn killed_in_the_middle_of_a_bind_it_is_settled_by_what_the_guest_has() {
    let mut service = service().await;
    profile(&service, "qat", json!([{ "resources:CUSTOM_QAT": "2" }])).await;
    let arqs = requests(&service, "qat").await;
    let card = provider(&service, QAT).await;
    // The second waits for its turn on the server: of it there is no attachment yet.
    service.sim("latency attach 60000");
    patch(&service, &arqs[0], target(&card, G1)).await.expect(202);
    service.until("it is being attached", async || !service.attachments(G1).await.is_empty()).await;
    patch(&service, &arqs[1], target(&card, G1)).await.expect(202);
    for arq in &arqs {
        assert_eq!(shown(&service, arq).await["state"], "BindStarted");
    }
    service.kill();
    service.start_again().await;
    let failed = becomes(&service, &arqs[1], "BindFailed").await;
    assert!(failed["state_reason"].as_str().unwrap().contains("the service ended"), "{failed}");
    becomes(&service, &arqs[0], "BindFailed").await;
    service.expect_clean().await;
    for arq in &arqs {
        patch(&service, arq, nowhere()).await.expect(202);
        patch(&service, arq, target(&card, G1)).await.expect(202);
        becomes(&service, arq, "Bound").await;
    }
    // Bound, and restarted: it stays.
    service.kill();
    service.start_again().await;
    assert_eq!(shown(&service, &arqs[0]).await["state"], "Bound");
    service.delete(&format!("{ARQS}?instance={G1}")).await.expect(204);
    service.expect_clean().await;
}

#[tokio::test]
async fn a_disabled_device_is_offered_to_nobody() {
    let mut service = service().await;
    profile(&service, "qat", json!([{ "resources:CUSTOM_QAT": "1" }])).await;
    let arq = requests(&service, "qat").await.remove(0);
    let card = provider(&service, QAT).await;
    let latest = || [("openstack-api-version".to_owned(), "accelerator 2.3".to_owned())];
    let devices = async |query: &str| {
        let path = format!("{V2}/devices{query}");
        let answer = service.send_with(Method::GET, &path, latest(), None).await.expect(200);
        answer.body["devices"].as_array().unwrap().clone()
    };
    assert_eq!(devices("").await.len(), 4);
    assert_eq!(devices("?filters.field=limit&filters.value=1").await.len(), 1);
    assert_eq!(devices("?vendor=0x10de&hostname=node1").await.len(), 1);
    let device = devices("?type=QAT").await.remove(0);
    assert_eq!((&device["vendor"], &device["status"]), (&json!("8086"), &json!("enabled")));
    let path = format!("{V2}/devices/{}", device["uuid"].as_str().unwrap());
    assert_eq!(service.get(&path).await.expect(200).body.get("status"), None);

    service.post(&format!("{path}/disable"), json!({})).await.expect(204);
    service.kill();
    service.start_again().await;
    let shown_now = service.send_with(Method::GET, &path, latest(), None).await.expect(200).body;
    assert_eq!(shown_now["status"], "maintaining");
    let refused = service.attach(G1, "qat:1").await.expect(409);
    assert!(refused.message().contains("is disabled"), "{}", refused.message());
    service.post("/accelerators", json!({ "name": "a" })).await.expect(201);
    let accelerator = service.get("/accelerators").await.body["accelerator"][0]["uuid"].clone();
    let accelerator = format!("/accelerators/{}", accelerator.as_str().unwrap());
    let spec = json!({ "acc_specs": { "product_id": "37c9" } });
    service.put(&format!("{accelerator}/acc_spec"), spec).await.expect(200);
    for body in [json!({ "instance_uuid": G1 }), json!({ "driver": "vfio-pci" })] {
        let refused = service.put(&accelerator, body).await.expect(409);
        assert!(refused.message().contains("is disabled"), "{}", refused.message());
    }
    patch(&service, &arq, target(&card, G1)).await.expect(202);
    let failed = becomes(&service, &arq, "BindFailed").await;
    assert!(failed["state_reason"].as_str().unwrap().contains("is disabled"), "{failed}");

    service.post(&format!("{path}/enable"), json!({})).await.expect(204);
    service.attach(G1, "qat:1").await.expect(200);
}

#[tokio::test]
async fn deployables_and_attributes_tell_what_can_be_asked_for() {
    let service = service().await;
    let all = service.get(&format!("{V2}/deployables")).await.expect(200).body["deployables"].clone();
    let qat = all.as_array().unwrap().iter().find(|one| one["name"] == "node1_0000:a1:00.0").unwrap();
    // What is given away of a PF are its VFs. Placement's id is Python's uuid3(NAMESPACE_DNS, name).
    assert_eq!(
        (&qat["num_accelerators"], &qat["rp_uuid"]),
        (&json!(2), &json!("e68701b5-a447-346e-9884-90ebf94e5651"))
    );
    assert_eq!(service.device(QAT).await["uuid"], qat["uuid"]);
    let path = format!("{V2}/deployables/{}", qat["uuid"].as_str().unwrap());
    assert_eq!(service.get(&path).await.expect(200).body, *qat);
    let list: Value = serde_json::from_str(qat["attributes_list"].as_str().unwrap()).unwrap();
    let traits: Vec<_> = list.as_array().unwrap()[1..]
        .iter()
        .map(|one| one.as_object().unwrap().values().next().unwrap().clone())
        .collect();
    assert_eq!(list[0], json!({ "rc": "CUSTOM_QAT" }));
    assert_eq!(traits, ["CUSTOM_QAT", "CUSTOM_QAT_INTEL", "CUSTOM_QAT_PRODUCT_ID_37C8", "OWNER_CYBORG"]);
    let program = json!([{ "op": "replace", "path": "/program", "value": [{ "image_uuid": G1 }] }]);
    let program = Some(("application/json", program.to_string()));
    service.send(Method::PATCH, &format!("{path}/program"), program).await.expect(501);

    let attributes = format!("{V2}/attributes");
    let plain = json!({ "deployable_id": qat["device_id"], "key": "rack", "value": "r1" });
    let wrapped = json!({ "attribute": { "deployable_id": qat["uuid"], "key": "room", "value": "2" } });
    for body in [plain, wrapped] {
        let made = service.post(&attributes, body).await.expect(201).body;
        let path = format!("{attributes}/{}", made["uuid"].as_str().unwrap());
        assert_eq!(service.get(&path).await.expect(200).body, made);
        let key = made["key"].as_str().unwrap();
        let of_it = format!("{attributes}?deployable_id={}&key={key}", qat["device_id"]);
        assert_eq!(service.get(&of_it).await.expect(200).body["attributes"], json!([made]));
        service.delete(&path).await.expect(204);
        service.delete(&path).await.expect(404);
    }
    let derived = service.get(&format!("{attributes}?key=rc")).await.expect(200).body["attributes"].clone();
    assert_eq!(derived.as_array().unwrap().len(), 4);
    let path = format!("{attributes}/{}", derived[0]["uuid"].as_str().unwrap());
    assert!(service.delete(&path).await.expect(409).fault_string().contains("device_spec"));
}

/// The headers of somebody: a role in project `p`, `other …` in another, `unscoped …` in none, `twice …` in both,
/// `+service` with a service token.
fn headers(who: &str) -> Vec<(String, String)> {
    let (projects, role): (&[_], _) = match who.split_once(' ') {
        Some(("other", role)) => (&["q"], role),
        Some(("unscoped", role)) => (&[], role),
        Some(("twice", role)) => (&["p", "q"], role),
        _ => (&["p"], who),
    };
    let mut headers = vec![("content-type", "application/json")];
    headers.extend(projects.iter().map(|project| ("x-project-id", *project)));
    match role {
        "nobody" => return Vec::new(),
        "system" => headers.extend([("x-roles", "admin"), ("openstack-system-scope", "all")]),
        "none" => headers.push(("x-roles", "")),
        "+service" => headers.extend([("x-roles", "reader"), ("x-service-roles", "service,other")]),
        role => headers.push(("x-roles", role)),
    }
    headers.push(("x-user-id", "u"));
    headers.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
}

#[tokio::test]
async fn an_accelerator_is_changed_by_the_administrator_or_as_configured_by_its_project() {
    let mut service = service().await;
    let device = service.device(QAT).await["uuid"].as_str().unwrap().to_owned();
    service.reconfigure("[api]\n", "[api]\nidentity = \"headers\"\n");
    for change in ["admin", "owner"] {
        service.reconfigure("[pci]\n", &format!("[accelerators]\nchange = \"{change}\"\n[pci]\n"));
        service.kill();
        service.start_again().await;
        service.reconfigure(&format!("[accelerators]\nchange = \"{change}\"\n[pci]\n"), "[pci]\n");
        let owner = change == "owner";
        let send = async |method: Method, path: &str, who: &str, body: Value| {
            service.send_with(method, path, headers(who), Some(body.to_string())).await
        };
        let name = json!({ "name": change });
        for who in ["none", "reader", "service"] {
            send(Method::POST, "/accelerators", who, name.clone()).await.expect(403);
        }
        let made = send(Method::POST, "/accelerators", if owner { "member" } else { "admin" }, name).await;
        let path = made.expect(201).location.unwrap();
        let path = &path[path.find("/accelerators/").unwrap()..];
        if owner {
            // Of another project's they are told only that it has the name.
            for (who, told) in [("member", true), ("other member", false), ("other admin", true)] {
                let name = json!({ "name": change });
                let refused = send(Method::POST, "/accelerators", who, name).await.expect(409);
                let uuid = path.rsplit('/').next().unwrap();
                assert_eq!(refused.message().contains(uuid), told, "{who}: {}", refused.message());
            }
        }
        // It is its project's to see, and the administrator's.
        let shown = send(Method::GET, path, "reader", json!({})).await.expect(200).body;
        assert_eq!(shown["project_id"], "p");
        send(Method::GET, path, "other reader", json!({})).await.expect(404);
        let seen = async |who: &str| {
            let listed = send(Method::GET, "/accelerators", who, json!({})).await.expect(200).body;
            listed["accelerator"].as_array().unwrap().iter().any(|one| one["uuid"] == shown["uuid"])
        };
        assert_eq!(
            (seen("reader").await, seen("other reader").await, seen("other admin").await),
            (true, false, true)
        );
        let (spec, into) = (json!({ "acc_specs": { "device_type": "QAT" } }), json!({ "instance_uuid": G1 }));
        let gone = format!("{path}?purge=true");
        let steps = [
            (Method::PUT, path, &spec, 200),
            (Method::PUT, path, &into, 200),
            (Method::DELETE, path, &into, 204),
        ];
        for (method, path, body, status) in steps {
            for who in ["reader", "service"] {
                send(method.clone(), path, who, body.clone()).await.expect(403);
            }
            let other = if owner { 404 } else { 403 };
            send(method.clone(), path, "other member", body.clone()).await.expect(other);
            if owner && body == &into && method == Method::PUT {
                // A server that Nova made for nobody, or for another project, is not there for them.
                let nobodys = json!({ "instance_uuid": G2 });
                let refused = send(method.clone(), path, "member", nobodys).await.expect(404);
                assert!(refused.message().contains(G2), "{}", refused.message());
            }
            let member = if owner { status } else { 403 };
            send(method.clone(), path, "member", body.clone()).await.expect(member);
            if !owner {
                send(method, path, "other admin", body.clone()).await.expect(status);
            }
        }
        // What the administrator put into a server that is not theirs is not told, and not theirs to take out.
        let others = json!({ "instance_uuid": G2 });
        send(Method::PUT, path, "admin", others).await.expect(200);
        let shown = send(Method::GET, path, "admin", json!({})).await.expect(200).body;
        assert_eq!(shown["instance_uuid"], G2);
        assert!(shown["address"].is_string(), "{shown}");
        let one = send(Method::GET, path, "member", json!({})).await.expect(200).body;
        let listed = send(Method::GET, "/accelerators", "reader", json!({})).await.expect(200).body;
        let mut listed = listed["accelerator"].as_array().unwrap().iter();
        for shown in [&one, listed.find(|other| other["uuid"] == one["uuid"]).unwrap()] {
            for key in ["instance_uuid", "host", "address", "inner_address"] {
                assert_eq!(shown[key], json!(null), "{key}");
            }
            assert_eq!(shown["devices"], json!([]));
        }
        let refused = send(Method::DELETE, path, "member", json!({})).await.expect(403);
        assert!(
            refused.message().contains("admin") && !refused.message().contains(G2),
            "{}",
            refused.message()
        );
        let shown = send(Method::GET, path, "admin", json!({})).await.expect(200).body;
        assert_eq!(shown["instance_uuid"], G2, "it is still there");
        send(Method::DELETE, path, "admin", json!({})).await.expect(204);
        // The host, and the record itself, are the administrator's.
        let none = json!({});
        for (method, path) in [(Method::PUT, path), (Method::DELETE, path), (Method::DELETE, &gone)] {
            send(method.clone(), path, "member", none.clone()).await.expect(403);
            let done = send(method, path, "admin", none.clone()).await;
            assert!(done.status < 300, "{}", done.body);
        }
        // And so is what a device is by itself.
        let named = json!({ "name": "mine", "uuid": device });
        send(Method::POST, "/accelerators", "member", named).await.expect(403);
        send(Method::POST, &format!("/accelerators/{device}"), "member", json!({ "name": "mine" }))
            .await
            .expect(403);
    }
}

#[tokio::test]
async fn who_may_do_what_is_as_the_list_says() {
    let mut service = service().await;
    let card = provider(&service, QAT).await;
    service.reconfigure("[api]\n", "[api]\nidentity = \"headers\"\n");
    service.kill();
    service.start_again().await;
    let send = async |method: Method, path: &str, who: &str, body: Value| {
        let body = (!body.is_null()).then(|| body.to_string());
        service.send_with(method, path, headers(who), body).await
    };
    let group = json!([{ "name": "qat", "groups": [{ "resources:CUSTOM_QAT": "2" }] }]);
    send(Method::POST, &format!("{V2}/device_profiles"), "admin", group).await.expect(201);
    let body = json!({ "device_profile_name": "qat" });
    let made = send(Method::POST, ARQS, "member", body).await.expect(201).body;
    assert_eq!(made["arqs"][0]["project_id"], "p");
    let id = |at: usize| made["arqs"][at]["uuid"].as_str().unwrap().to_owned();
    let (bound, free) = (id(0), id(1));
    // A service binds for the user whose project it is.
    send(Method::PATCH, ARQS, "service", json!({ (&bound): target(&card, G1) })).await.expect(202);
    let path = format!("{ARQS}/{bound}");
    let is_bound =
        async || send(Method::GET, &path, "member", Value::Null).await.expect(200).body["state"] == "Bound";
    service.until("it is bound", is_bound).await;

    let cases: Vec<Value> = serde_json::from_str(include_str!("../data/policies.json")).unwrap();
    for case in cases {
        let filled =
            |text: &str| text.replace("{bound}", &bound).replace("{free}", &free).replace("{g1}", G1);
        let method: Method = case["method"].as_str().unwrap().parse().unwrap();
        let path = filled(case["path"].as_str().unwrap());
        let body: Value = serde_json::from_str(&filled(&case["body"].to_string())).unwrap();
        let mut asked = 0;
        for (status, all) in case.as_object().unwrap() {
            let Ok(status) = status.parse::<u16>() else { continue };
            for who in all.as_array().unwrap().iter().map(|who| who.as_str().unwrap()) {
                let answer = send(method.clone(), &path, who, body.clone()).await;
                assert_eq!(answer.status, status, "{who}: {case}: {}", answer.body);
                if let (403, Some(says)) = (status, case["says"].as_str()) {
                    assert!(answer.fault_string().contains(says), "{who}: {case}: {}", answer.body);
                }
                asked += 1;
            }
        }
        assert!(asked > 0, "{case}");
    }
    // What one was answered is not told to who knows the key, and keeps nobody from a key of that name.
    let once = async |who: &str, body: Value| {
        let mut headers = headers(who);
        headers.push(("idempotency-key".to_owned(), "k1".to_owned()));
        service.send_with(Method::POST, ARQS, headers, Some(body.to_string())).await
    };
    let body = json!({ "device_profile_name": "qat" });
    let kept = once("member", body.clone()).await.expect(201).body;
    assert_eq!(once("member", body.clone()).await.expect(201).body, kept);
    for (who, status) in
        [("nobody", 401), ("unscoped member", 403), ("none", 403), ("reader", 403), ("system", 403)]
    {
        let refused = once(who, body.clone()).await.expect(status);
        assert!(!refused.fault_string().is_empty(), "{who}");
    }
    let others = once("other member", body).await.expect(201).body;
    assert_ne!(others, kept);
    for arq in others["arqs"].as_array().unwrap() {
        let path = format!("{ARQS}/{}", arq["uuid"].as_str().unwrap());
        send(Method::DELETE, &path, "other member", Value::Null).await.expect(204);
    }
    let other = once("member", json!({ "device_profile_name": "other" })).await.expect(422);
    assert!(other.fault_string().contains("another body"), "{}", other.fault_string());
    for arq in kept["arqs"].as_array().unwrap() {
        let path = format!("{ARQS}/{}", arq["uuid"].as_str().unwrap());
        send(Method::DELETE, &path, "member", Value::Null).await.expect(204);
    }
    let list = async |who: &str| {
        let all = send(Method::GET, ARQS, who, Value::Null).await.expect(200).body["arqs"].clone();
        all.as_array().unwrap().len()
    };
    assert_eq!((list("reader").await, list("other member").await, list("other admin").await), (2, 0, 2));
    // Why a bind failed names devices, which members may not know of.
    let failing =
        send(Method::POST, ARQS, "member", json!({ "device_profile_name": "qat" })).await.expect(201).body;
    let ids: Vec<_> =
        failing["arqs"].as_array().unwrap().iter().map(|arq| arq["uuid"].as_str().unwrap()).collect();
    service.sim("fault attach fail");
    send(Method::PATCH, ARQS, "service", json!({ ids[0]: target(&card, G1) })).await.expect(202);
    let path = format!("{ARQS}/{}", ids[0]);
    let failed = async |who: &str| send(Method::GET, &path, who, Value::Null).await.expect(200).body;
    service.until("it failed", async || failed("member").await["state"] == "BindFailed").await;
    assert_eq!(
        (failed("member").await.get("state_reason"), failed("admin").await["state_reason"].is_string()),
        (None, true)
    );
    service.sim("fault clear");
    // What holds nothing is a member's to delete; what is being bound in the same moment is not.
    send(Method::DELETE, &path, "member", Value::Null).await.expect(204);
    for _ in 0..20 {
        let body = json!({ "device_profile_name": "qat" });
        let made = send(Method::POST, ARQS, "member", body).await.expect(201).body;
        let arqs = made["arqs"].as_array().unwrap();
        let [one, other] = [0, 1].map(|at| arqs[at]["uuid"].as_str().unwrap().to_owned());
        send(Method::DELETE, &format!("{ARQS}/{other}"), "member", Value::Null).await.expect(204);
        let path = format!("{ARQS}/{one}");
        let (bound, deleted) = tokio::join!(
            send(Method::PATCH, ARQS, "service", json!({ (&one): target(&card, G1) })),
            send(Method::DELETE, &path, "member", Value::Null)
        );
        match (bound.status, deleted.status) {
            (404, 204) => {}
            (202, 403) => {
                let is = async || send(Method::GET, &path, "member", Value::Null).await.expect(200).body;
                service.until("it is bound", async || is().await["state"] != "BindStarted").await;
                assert_eq!(is().await["state"], "Bound");
                send(Method::DELETE, &path, "service", Value::Null).await.expect(204);
            }
            (bound, deleted) => panic!("bind {bound}, delete {deleted}"),
        }
    }
    send(Method::DELETE, &format!("{ARQS}/{}", ids[1]), "member", Value::Null).await.expect(204);
    // What a bind says whose it is, is so.
    let mut given = target(&card, G1);
    given.as_array_mut().unwrap().push(json!({ "op": "add", "path": "/project_id", "value": "q" }));
    let mut latest = headers("service");
    latest.push(("openstack-api-version".to_owned(), "accelerator 2.1".to_owned()));
    let body = Some(json!({ (&free): given }).to_string());
    service.send_with(Method::PATCH, ARQS, latest, body).await.expect(202);
    assert_eq!((list("reader").await, list("other member").await), (1, 1));
}
