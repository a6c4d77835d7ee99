//! Cyborg's v2 API over HTTP: versions, device profiles, devices, deployables and attributes. This file also has the
//! helpers of the submodules.

mod arqs;
mod policy;
mod vgpu;

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

/// Creates the requests of a profile, and returns their ids.
async fn requests(service: &Hotslot, profile: &str) -> Vec<String> {
    let made = service.post(ARQS, json!({ "device_profile_name": profile })).await.expect(201).body;
    let arqs = made["arqs"].as_array().unwrap();
    assert!(arqs.iter().all(|arq| arq["state"] == "Initial"), "{made}");
    arqs.iter().map(|arq| arq["uuid"].as_str().unwrap().to_owned()).collect()
}

/// Returns the resource provider of the deployable at an address.
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

/// Waits until a request is in a state, and returns the request.
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
            // Without the prefix v2, this path is an accelerator of Cyborg's first API.
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
    // Of two header lines the one for the accelerator service counts. A path that is too long is also reported in
    // Cyborg's form.
    let two = [("openstack-api-version", "compute 2.90"), ("openstack-api-version", "accelerator 2.3")];
    let two = two.map(|(name, value)| (name.to_owned(), value.to_owned()));
    let devices = service.send_with(Method::GET, &format!("{V2}/devices"), two, None).await.expect(200);
    assert_eq!(devices.body["devices"][0]["status"], "enabled");
    // Like Cyborg, the service is named in these headers except the minimum version.
    for (name, value) in [
        ("openstack-api-version", "accelerator 2.3"),
        ("openstack-api-minimum-version", "2.0"),
        ("openstack-api-maximum-version", "accelerator 2.3"),
    ] {
        assert_eq!(devices.headers[name], value, "{name}");
    }
    let long = service.get(&format!("{V2}/attributes?key={}", "x".repeat(9000))).await.expect(414);
    assert!(long.fault_string().contains("8192"), "{}", long.fault_string());
    // The path without the slash is the list of Cyborg's first API.
    assert_eq!(service.get("/accelerator").await.expect(200).body, json!({ "accelerator": [] }));
}

#[tokio::test]
async fn device_profiles_have_unique_names_and_are_deleted_when_unused() {
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
    // A profile name may look like a UUID. The profile with that id takes precedence.
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
    let accelerator = service.accelerator("a", json!({ "product_id": "37c9" })).await;
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
async fn deployables_and_attributes_show_the_requestable_resources() {
    let service = service().await;
    let all = service.get(&format!("{V2}/deployables")).await.expect(200).body["deployables"].clone();
    let qat = all.as_array().unwrap().iter().find(|one| one["name"] == "node1_0000:a1:00.0").unwrap();
    // A PF is offered as its VFs. The id in placement is Python's uuid3(NAMESPACE_DNS, name).
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
