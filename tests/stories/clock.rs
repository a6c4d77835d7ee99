//! The host's clock jumps forward and back while the service runs. Nothing is lost, and no work waits for the clock.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use hotslot_tests::oracle::Oracle;
use hotslot_tests::{Hotslot, Q35, attachments, path};
use serde_json::Value;

/// A service whose clock is shifted by the offset in a file.
struct Clock {
    service: Hotslot,
    file: PathBuf,
}

impl Clock {
    async fn on(name: &str) -> Self {
        let mut service = Hotslot::on(name).await;
        service.kill();
        let file = service.host_dir().join("clock");
        std::fs::write(&file, "+0").unwrap();
        service
            .start_again_after(&format!(
                "export LD_PRELOAD=$(ls /usr/lib/*/faketime/libfaketimeMT.so.1) FAKETIME_NO_CACHE=1 \
                 FAKETIME_DONT_FAKE_MONOTONIC=1 FAKETIME_TIMESTAMP_FILE={}",
                file.display()
            ))
            .await;
        Self { service, file }
    }

    fn put(&self, by: &str) {
        // The file is replaced atomically, because the service may read it at any moment.
        let new = self.file.with_extension("new");
        std::fs::write(&new, by).unwrap();
        std::fs::rename(&new, &self.file).unwrap();
    }

    /// Returns the current day as the service sees it.
    async fn day(&self) -> String {
        let attached = self.service.attach(Q35, "vf:1").await.expect(200).body["pci_devices"][0].clone();
        self.service.delete(&path(&attached)).await.expect(200);
        attached["created_at"].as_str().unwrap()[..10].to_owned()
    }
}

#[tokio::test]
async fn clock_jumps_lose_nothing() {
    let clock = Clock::on("small").await;
    let service = &clock.service;
    let oracle = Oracle::of(service).await;
    let today = clock.day().await;
    let body = r#"{"pciAttachment": {"pci_passthrough:alias": "vf:1"}}"#;
    let kept = service.post_once(&attachments(Q35), "k", body).await.expect(200).body;
    let mut days = vec![today.clone()];
    for by in ["+3d", "-400d", "+0"] {
        clock.put(by);
        let jumped = Instant::now();
        days.push(clock.day().await);
        oracle.settled(service, Duration::from_secs(10)).await.unwrap();
        println!("clock {by}: everything agrees {:?} after the jump", jumped.elapsed());
    }
    assert_eq!((&days[0], days[0] < days[1], days[2] < days[0], &days[3]), (&today, true, true, &today));
    assert_eq!(service.post_once(&attachments(Q35), "k", body).await.expect(200).body, kept);
    // Event ids follow the order of the commits, whatever the timestamps are.
    let events = service.get("/events?limit=1000").await.expect(200).body["events"].clone();
    let ids: Vec<_> = events.as_array().unwrap().iter().map(|event| event["id"].as_i64().unwrap()).collect();
    assert!(ids.windows(2).all(|pair| pair[1] == pair[0] + 1), "{ids:?}");
    service.delete(&path(&kept["pci_devices"][0])).await.expect(200);
    service.expect_clean().await;
}

#[tokio::test]
async fn an_attachment_that_ended_in_the_future_has_ended() {
    let clock = Clock::on("small").await;
    let service = &clock.service;
    let vf = service.attach(Q35, "vf:1").await.expect(200).body["pci_devices"][0].clone();
    service.delete(&path(&vf)).await.expect(200);
    clock.put("-1d");
    let of = |key: &str| vf[key].as_str().unwrap().to_owned();
    // Somebody plugs the device again under the alias of the ended attachment, which makes it a stray.
    service.sim(&format!("plug q35 {} live ua-{}", of("address"), of("attachment_id")));
    service
        .until("the stray is taken out", async || {
            service.plugged().is_empty()
                && service.functions().await[&of("address")]["foreign"] == Value::Null
        })
        .await;
    service.expect_clean().await;
}
