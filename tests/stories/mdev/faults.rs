//! Mediated devices when a call to the host fails, is late, or is the last one before the service is killed.

use std::time::Duration;

use futures_util::future::join_all;
use hotslot_driver::sim::control;
use hotslot_tests::{Hotslot, host, postgres};
use reqwest::Method;
use serde_json::{Value, json};

use super::drift::drift;
use super::{FOUR, G1, G2, G3, PCI, attach, expect_untouched, service, status};

/// A service with a time limit of half a second for calls that change something.
async fn impatient() -> Hotslot {
    Hotslot::bare(&host("accelerators"), &format!("[libvirt]\nattach_timeout = 0.5\n{PCI}"), |_| ()).await
}

/// The time within which the effect of a late call must be settled.
const SOON: Duration = Duration::from_secs(3);

/// Fails the test unless the accelerator stays in transition while its call is overdue, and becomes available when the
/// call returns.
async fn settles_after_the_call_returns(service: &Hotslot, path: &str, fault: &str) {
    let refused = service.delete(path).await.expect(409);
    assert!(refused.message().contains("has not returned"), "{fault}: {}", refused.message());
    // Reconciliation in the meantime changes nothing.
    tokio::time::sleep(Duration::from_millis(1300)).await;
    assert_eq!(status(service, path).await, "detaching", "{fault}");
    service.sim("fault clear");
    service.patient(SOON).until(fault, async || status(service, path).await == "available").await;
    expect_untouched(service).await;
}

#[tokio::test]
async fn an_overdue_create_or_plug_keeps_the_device_in_transition() {
    for (fault, server) in [
        ("create-mdev hang", G1),
        ("create-mdev hang at=after", G1),
        ("create-mdev hang nth=2", G3),
        ("attach hang", G1),
        ("attach hang", G3),
        ("attach hang nth=2", G3),
    ] {
        let service = impatient().await;
        let path = service.accelerator("two", json!({ "mdev_type": FOUR, "num": 2 })).await;
        service.sim(&format!("fault {fault}"));
        let late = attach(&service, &path, server).await;
        assert!(late.status >= 500, "{fault}: {}", late.body);
        for query in ["", "?force=true", "?purge=true"] {
            let refused = service.delete(&format!("{path}{query}")).await;
            assert_eq!(refused.status, 409, "{fault} {query}: {}", refused.body);
        }
        settles_after_the_call_returns(&service, &path, fault).await;
        assert_eq!(drift(&service).await, [Value::Null; 0]);
        service.sim(if server == G3 { "start g3" } else { "reboot g1" });
        service.delete(&path).await.expect(204);
        attach(&service, &path, G2).await.expect(200);
        service.delete(&path).await.expect(204);
        expect_untouched(&service).await;
    }
}

#[tokio::test]
async fn an_overdue_removal_is_settled_when_it_returns() {
    for fault in ["destroy-mdev hang", "destroy-mdev hang at=after", "detach hang"] {
        let service = impatient().await;
        let path = service.accelerator("part", json!({ "mdev_type": FOUR })).await;
        attach(&service, &path, G1).await.expect(200);
        service.sim(&format!("fault {fault}"));
        assert!(service.delete(&path).await.status >= 500, "{fault}");
        settles_after_the_call_returns(&service, &path, fault).await;
    }
}

/// The guest releases a mediated device while another call for its card has not returned.
#[tokio::test]
async fn a_forced_detach_says_which_call_it_waits_for() {
    let service = impatient().await;
    let one = service.accelerator("one", json!({ "mdev_type": FOUR })).await;
    let other = service.accelerator("other", json!({ "mdev_type": FOUR })).await;
    attach(&service, &one, G1).await.expect(200);
    service.sim("guest g1 unplug=slow 2000");
    let forced = format!("{one}?force=true&timeout=20");
    let (waits, late) = tokio::join!(service.delete(&forced), async {
        service.until("it is detaching", async || status(&service, &one).await == "detaching").await;
        service.sim("fault create-mdev hang at=before");
        attach(&service, &other, G2).await
    });
    late.expect(503);
    let message = waits.expect(409).message().to_owned();
    for part in ["stays detaching", "the guest no longer has it", "has not returned"] {
        assert!(message.contains(part), "{message}");
    }
    assert!(!message.contains("the guest keeps"), "{message}");
    assert_eq!(service.plugged().len(), 0, "no document has it");
    service.sim("fault clear");
    for path in [&one, &other] {
        service.until("it is available", async || status(&service, path).await == "available").await;
    }
    expect_untouched(&service).await;
}

/// Every call to the host fails, is lost, or is the last one before the service is killed. In the end, all devices are
/// attached or none, and nothing is left behind.
#[tokio::test]
async fn a_fault_at_any_step_leaves_all_or_nothing() {
    // The fault, and the minimum number of calls that it hits in an attach and in a detach.
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
async fn a_kill_at_any_step_on_postgresql_leaves_all_or_nothing() {
    let walks = [false, true].map(async |goes| {
        let service = service().await.moved_to(&postgres::database().await).await;
        assert!(walk(service, "any kill nth={} at=after", goes).await >= 5, "detach {goes}");
    });
    join_all(walks).await;
}

/// Injects a fault into the first call of an attach or detach of two devices, then into the second, and so on. Returns
/// the number of calls.
async fn walk(mut service: Hotslot, fault: &str, detach: bool) -> u32 {
    let path = service.accelerator("two", json!({ "mdev_type": FOUR, "num": 2 })).await;
    for nth in 1.. {
        let place = format!("{} {fault} {nth}", if detach { "detach" } else { "attach" });
        if detach {
            attach(&service, &path, G1).await.expect(200);
        }
        let start = service.log_length();
        // The control call may fail when the fault kills the service first.
        let _ = control(&service.host_dir(), &format!("fault {}", fault.replace("{}", &nth.to_string())));
        let asked = json!({ "instance_uuid": G1 }).to_string();
        let (method, body) = match detach {
            true => (Method::DELETE, None),
            false => (Method::PUT, Some(("application/json", asked))),
        };
        let _ = service.try_send(method, &path, body).await;
        if service.ended(Duration::from_millis(100)).await
            || control(&service.host_dir(), "fault clear").is_err()
            // The fault may have struck at this very moment.
            || service.ended(Duration::from_millis(20)).await
            // On a busy machine, the process takes some time to die.
            || fault.contains(" kill ")
                && service.log_from(start).contains("a fault applies to ")
                && service.ended(Duration::from_secs(10)).await
        {
            service.kill();
            service.start_again().await;
        }
        let struck = service.log_from(start).contains("a fault applies to ");
        // An interrupted detach may leave one device, which counts as `error` and not as `attached`.
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
            // The guest may still be running.
            let _ = control(&service.host_dir(), "start g1");
        }
        expect_untouched(&service).await;
        if !struck {
            return nth - 1;
        }
    }
    0
}
