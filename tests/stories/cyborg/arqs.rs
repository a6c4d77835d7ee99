//! Accelerator requests (ARQs) over HTTP: binding to running and stopped servers, unbinding and deletion.

use std::path::PathBuf;

use hotslot_tests::Hotslot;
use reqwest::Method;
use serde_json::{Value, json};

use super::{
    ARQS, G1, G2, G3, GPU, QAT, V2, becomes, nowhere, patch, profile, provider, requests, service, shown,
    target,
};

#[tokio::test]
async fn requests_are_bound_to_running_and_stopped_servers_and_unbound() {
    let service = service().await;
    profile(&service, "qat", json!([{ "resources:CUSTOM_QAT": "2" }])).await;
    profile(&service, "gold", json!([{ "resources:PGPU": "1", "trait:CUSTOM_GOLD": "required" }])).await;
    let qat = requests(&service, "qat").await;
    let gpu = requests(&service, "gold").await.remove(0);
    assert_eq!((qat.len(), service.get(ARQS).await.body["arqs"].as_array().unwrap().len()), (2, 3));
    let (card, gpu_card) = (provider(&service, QAT).await, provider(&service, GPU).await);

    // Hot-plug into a running guest; one server can have several requests.
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
    // Bind to a shut-off server: the device is added to its definition.
    patch(&service, &qat[1], target(&card, G3)).await.expect(202);
    becomes(&service, &qat[1], "Bound").await;
    assert_eq!(service.device("0000:a1:01.1").await["instance_uuid"], G3);

    // Other APIs cannot detach the device, and a bound request cannot be bound again.
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
    // Deleting a request unbinds it first. Deleting by server can be repeated.
    service.delete(&format!("{ARQS}?arqs={},{}", qat[0], qat[1])).await.expect(204);
    for _ in 0..2 {
        service.delete(&format!("{ARQS}?instance={G1}")).await.expect(204);
    }
    assert_eq!(service.get(ARQS).await.expect(200).body, json!({ "arqs": [] }));
    service.expect_clean().await;
}

#[tokio::test]
async fn a_failed_bind_gives_the_reason_and_leaves_nothing() {
    let service = service().await;
    profile(&service, "qat", json!([{ "resources:CUSTOM_QAT": "1" }])).await;
    profile(&service, "loaded", json!([{ "resources:FPGA": "1", "accel:bitstream_id": "7" }])).await;
    let arq = requests(&service, "qat").await.remove(0);
    let card = provider(&service, QAT).await;
    service.sim("fault attach hang text=the-bus-is-on-fire");
    patch(&service, &arq, target(&card, G1)).await.expect(202);
    assert_eq!(shown(&service, &arq).await["state"], "BindStarted");
    // A client that waits for the bind gets 423 until the bind is settled.
    service.get(&format!("{ARQS}?instance={G1}&bind_state=resolved")).await.expect(423);
    assert_eq!(patch(&service, &arq, nowhere()).await.status, 409);
    service.until("the call hangs", async || service.log().contains("a fault applies to Attach")).await;
    service.sim("fault clear");
    let failed = becomes(&service, &arq, "BindFailed").await;
    assert!(failed["state_reason"].as_str().unwrap().contains("the-bus-is-on-fire"), "{failed}");
    service.get(&format!("{ARQS}?instance={G1}&bind_state=resolved")).await.expect(200);
    service.expect_clean().await;
    patch(&service, &arq, target(&card, G1)).await.expect(400);
    patch(&service, &arq, nowhere()).await.expect(202);
    patch(&service, &arq, target(&card, G1)).await.expect(202);
    becomes(&service, &arq, "Bound").await;
    // hotslot does not program bitstreams.
    let loaded = requests(&service, "loaded").await.remove(0);
    let refused = patch(&service, &loaded, target(&provider(&service, "0000:c1:00.0").await, G1)).await;
    assert!(refused.expect(400).fault_string().contains("accel:bitstream_id"));
    service.delete(&format!("{ARQS}?instance={G1}")).await.expect(204);
    service.expect_clean().await;
}

#[tokio::test]
async fn a_request_stays_bound_on_a_frozen_host() {
    let service = service().await;
    profile(&service, "qat", json!([{ "resources:CUSTOM_QAT": "1" }])).await;
    let arq = requests(&service, "qat").await.remove(0);
    patch(&service, &arq, target(&provider(&service, QAT).await, G1)).await.expect(202);
    becomes(&service, &arq, "Bound").await;
    let mode = async |mode: &str| {
        let body = json!({ "hypervisor_mode": { "mode": mode } });
        service.put("/v2.1/os-hypervisors/node1/mode", body).await.expect(200);
    };
    let before = shown(&service, &arq).await;
    mode("frozen").await;
    let of_server = format!("{ARQS}?instance={G1}");
    for refused in [
        patch(&service, &arq, nowhere()).await,
        service.delete(&format!("{ARQS}/{arq}")).await,
        service.delete(&of_server).await,
    ] {
        let said = refused.expect(409).fault_string();
        assert!(said.contains("host node1 was frozen by "), "{said}");
        assert_eq!(shown(&service, &arq).await, before, "it is as it was");
    }
    service.get(&format!("{of_server}&bind_state=resolved")).await.expect(200);
    mode("draining").await;
    service.delete(&of_server).await.expect(204);
    mode("open").await;
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
    // When the guest releases the device later, the pending deletion completes.
    service.sim("guest g1 unplug=slow 2500");
    service.delete(&format!("{ARQS}/{arq}")).await.expect(409);
    assert_eq!(shown(&service, &arq).await["state"], "Deleting");
    service.until("it is deleted", async || service.get(&format!("{ARQS}/{arq}")).await.status == 404).await;
    service.expect_clean().await;
}

#[tokio::test]
async fn a_request_whose_device_vanished_is_unbound() {
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
    // The guest releases the device after the unbind has returned.
    service.sim("guest g1 unplug=slow 2500");
    patch(&service, &arqs[0], nowhere()).await.expect(409);
    expect_nowhere(&service, &arqs[0]).await;
    service.sim("guest g1 unplug=normal");
    // The service is killed before it records the state Bound, and then the server is removed.
    service.kill();
    service
        .in_the_database("UPDATE accelerator_requests SET state = 'BindStarted' WHERE state = 'Bound'")
        .await;
    service.start_again().await;
    becomes(&service, &arqs[1], "Bound").await;
    // The service is killed before it unbinds a request that is being deleted. The state then asks for another DELETE.
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
async fn concurrent_binds_do_not_deadlock() {
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
        // The upper-case ids sort in another order as strings.
        let answers = tokio::join!(send(a, &upper_b), send(&upper_a, b), send(a, b));
        let statuses = [answers.0.status, answers.1.status, answers.2.status];
        assert_eq!(statuses.iter().filter(|status| **status == 202).count(), 1, "{statuses:?}");
        // Concurrent deletions by server succeed; they wait for running binds.
        let path = format!("{ARQS}?instance={G1}");
        let cleaned = tokio::join!(service.delete(&path), service.delete(&path), service.delete(&path));
        assert_eq!([cleaned.0.status, cleaned.1.status, cleaned.2.status], [204; 3]);
        assert_eq!(service.get(ARQS).await.expect(200).body, json!({ "arqs": [] }));
        service.expect_clean().await;
    }
}

#[tokio::test]
async fn a_bind_interrupted_by_a_kill_is_settled_from_the_guest() {
    let mut service = service().await;
    profile(&service, "qat", json!([{ "resources:CUSTOM_QAT": "2" }])).await;
    let arqs = requests(&service, "qat").await;
    let card = provider(&service, QAT).await;
    // The second request waits for its turn on the server and has no attachment yet.
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
    // A bound request stays bound after a restart.
    service.kill();
    service.start_again().await;
    assert_eq!(shown(&service, &arqs[0]).await["state"], "Bound");
    service.delete(&format!("{ARQS}?instance={G1}")).await.expect(204);
    service.expect_clean().await;
}

/// A service was killed after it had released the device of a request that was to be deleted.
#[tokio::test]
async fn a_request_that_is_shown_as_deleted_does_not_keep_its_profile() {
    let service = service().await;
    profile(&service, "qat", json!([{ "resources:CUSTOM_QAT": "1" }])).await;
    let arq = requests(&service, "qat").await.remove(0);
    let of_profile = format!("{V2}/device_profiles?value=qat");
    service.delete(&of_profile).await.expect(409);
    service.in_the_database("UPDATE accelerator_requests SET state = 'Deleting'").await;
    service.get(&format!("{ARQS}/{arq}")).await.expect(404);
    service.delete(&of_profile).await.expect(204);
}

/// Writes the definition of a server to a file, from which it can be defined again.
fn keep_definition(service: &Hotslot, server: &str) -> PathBuf {
    let saved = service.host_dir().join(format!("state/domains/{server}.json"));
    let saved: Value = serde_json::from_str(&std::fs::read_to_string(saved).unwrap()).unwrap();
    let file = service.host_dir().join("kept.xml");
    std::fs::write(&file, saved["persistent"].as_str().unwrap()).unwrap();
    file
}

#[tokio::test]
async fn a_request_that_was_bound_elsewhere_does_not_get_its_former_device() {
    let service = service().await;
    profile(&service, "qat", json!([{ "resources:CUSTOM_QAT": "1" }])).await;
    let arq = requests(&service, "qat").await.remove(0);
    let card = provider(&service, QAT).await;
    patch(&service, &arq, target(&card, G3)).await.expect(202);
    becomes(&service, &arq, "Bound").await;
    let file = keep_definition(&service, G3);
    service.sim("undefine g3");
    becomes(&service, &arq, "Unbound").await;
    patch(&service, &arq, target(&card, G1)).await.expect(202);
    let bound = becomes(&service, &arq, "Bound").await;
    let plugged = service.plugged();
    service.sim(&format!("define {}", file.display()));
    service.until("g3 is without the device", async || service.plugged() == plugged).await;
    let now = becomes(&service, &arq, "Bound").await;
    assert_eq!(
        (&now["attach_handle_uuid"], &now["instance_uuid"]),
        (&bound["attach_handle_uuid"], &json!(G1))
    );
    assert_eq!(service.attachments(G3).await, Vec::<Value>::new());
    patch(&service, &arq, nowhere()).await.expect(202);
    service.expect_clean().await;
}

#[tokio::test]
async fn a_request_has_its_device_again_when_its_server_comes_back() {
    let mut service = service().await;
    profile(&service, "qat", json!([{ "resources:CUSTOM_QAT": "1" }])).await;
    let arq = requests(&service, "qat").await.remove(0);
    let card = provider(&service, QAT).await;
    patch(&service, &arq, target(&card, G3)).await.expect(202);
    becomes(&service, &arq, "Bound").await;
    let plugged = service.plugged();
    let file = keep_definition(&service, G3);
    service.sim("undefine g3");
    becomes(&service, &arq, "Unbound").await;
    // At the start the service settles what was interrupted; that its server is away is no interruption.
    service.kill();
    service.start_again().await;
    tokio::time::sleep(std::time::Duration::from_millis(500)).await;
    service.sim(&format!("define {}", file.display()));
    becomes(&service, &arq, "Bound").await;
    assert_eq!(service.plugged(), plugged);
    patch(&service, &arq, nowhere()).await.expect(202);
    service.expect_clean().await;
}
