//! Accelerator requests for vGPUs, on the simulated host `accelerators`: its mediated devices are simulated too.

use hotslot_driver::sim::control;
use hotslot_tests::Hotslot;
use reqwest::Method;
use serde_json::json;

use super::{
    ARQS, G1, G2, G3, GPU, QAT, becomes, nowhere, patch, profile, provider, requests, service, shown, target,
};

/// Returns the UUIDs of the card's mediated devices.
async fn mdevs(service: &Hotslot) -> Vec<String> {
    let shown = service.get(&format!("/v2.1/os-hypervisors/1/pci_devices/{GPU}")).await.expect(200).body;
    let mdevs = shown["pci_device"]["mdevs"].as_array().unwrap().clone();
    mdevs.iter().map(|mdev| mdev["uuid"].as_str().unwrap().to_owned()).collect()
}

/// The mediated devices are simulated, because no such hardware is needed to test the API.
#[tokio::test]
async fn a_vgpu_is_created_for_a_request_and_removed_with_it() {
    let mut service = service().await;
    for (name, wanted) in [("by-id", "CUSTOM_NVIDIA_233"), ("by-name", "CUSTOM_NVIDIA_1EB8_T4_8Q")] {
        let wanted = format!("trait:{wanted}");
        profile(&service, name, json!([{ "resources:VGPU": "1", (wanted): "required" }])).await;
    }
    profile(&service, "other", json!([{ "resources:VGPU": "1", "trait:CUSTOM_NVIDIA_1": "required" }])).await;
    profile(&service, "whole", json!([{ "resources:PGPU": "1" }])).await;
    let card = provider(&service, GPU).await;

    // Hot-plug into a running guest, and a second vGPU of the same card into a definition.
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

    // The card has mediated devices, so it cannot be assigned as a whole, and it has no capacity left.
    let whole = requests(&service, "whole").await.remove(0);
    patch(&service, &whole, target(&card, G2)).await.expect(202);
    let failed = becomes(&service, &whole, "BindFailed").await;
    let reason = failed["state_reason"].as_str().unwrap();
    assert!(reason.contains(&format!("accelerator request {whole} asks for 1 device(s)")), "{failed}");
    assert!(reason.contains("it is allocated"), "{failed}");
    let third = requests(&service, "by-id").await.remove(0);
    patch(&service, &third, target(&card, G2)).await.expect(202);
    let failed = becomes(&service, &third, "BindFailed").await;
    assert!(failed["state_reason"].as_str().unwrap().contains("no more of it can be created"), "{failed}");
    let other = requests(&service, "other").await.remove(0);
    let refused = patch(&service, &other, target(&card, G1)).await.expect(400);
    assert!(refused.fault_string().contains("CUSTOM_NVIDIA_1EB8_T4_4Q"), "{}", refused.fault_string());
    let none = patch(&service, &other, target(&provider(&service, QAT).await, G1)).await.expect(400);
    assert!(none.fault_string().contains("not VGPU"), "{}", none.fault_string());

    // A guest refuses the unplug, the service is killed, and then an unbind and a DELETE succeed.
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
    service.expect_clean().await;
}

#[tokio::test]
async fn two_vgpus_of_any_type_have_one_type_and_are_deleted_by_server() {
    let service = service().await;
    profile(&service, "any", json!([{ "resources:VGPU": "2", "trait:CUSTOM_GOLD": "required" }])).await;
    let card = provider(&service, GPU).await;
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
async fn a_kill_at_any_step_leaves_a_vgpu_bound_or_removed() {
    let mut service = service().await;
    profile(&service, "vgpu", json!([{ "resources:VGPU": "1" }])).await;
    let arq = requests(&service, "vgpu").await.remove(0);
    let card = provider(&service, GPU).await;
    for nth in 1.. {
        let start = service.log_length();
        service.sim(&format!("fault any kill nth={nth} at=after"));
        let body = json!({ (&arq): target(&card, G1) }).to_string();
        let asked = service.try_send(Method::PATCH, ARQS, Some(("application/json", body))).await;
        let struck = async || service.log_from(start).contains("a fault applies to ");
        let bound = async || {
            let found = service.try_get(&format!("{ARQS}/{arq}")).await;
            found.is_some_and(|found| found.status == 200 && found.body["state"] == "Bound")
        };
        service
            .until(&format!("it is killed or bound: {nth}"), async || struck().await || bound().await)
            .await;
        // The service may be killed at this moment.
        drop(control(&service.host_dir(), "fault clear"));
        let struck = service.try_get("/healthz").await.is_none() || struck().await;
        if struck {
            assert!(service.ended(std::time::Duration::from_secs(30)).await, "{nth}");
            service.start_again().await;
        } else {
            assert!(asked.is_some_and(|answer| answer.status == 202), "{nth}");
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
