//! The start after a kill: interrupted work is completed or undone.

use std::process::Command;

use hotslot_tests::{Hotslot, Q35, attachments, host};
use serde_json::json;
use sqlx::{Connection as _, Executor as _, Row as _, SqliteConnection};

#[tokio::test]
async fn the_record_survives_a_restart() {
    let mut service = Hotslot::on("small").await;
    let before = service.attach(Q35, "vf:2").await.expect(200).body["pci_devices"].clone();
    service.kill();
    service.start_again().await;
    let after = service.attachments(Q35).await;
    for (before, after) in before.as_array().unwrap().iter().zip(&after) {
        for key in
            ["attachment_id", "serverId", "dev_id", "address", "inner_address", "vendor_id", "product_id"]
        {
            assert_eq!(before[key], after[key]);
        }
    }
    for one in after {
        let id = one["attachment_id"].as_str().unwrap();
        service.delete(&format!("{}/{id}", attachments(Q35))).await.expect(200);
    }
    service.expect_clean().await;
}

#[tokio::test]
async fn a_stop_right_after_an_attach_logs_no_error() {
    let mut service = Hotslot::on("small").await;
    for _ in 0..3 {
        // The service processes libvirt's events of the attach while it stops.
        service.sim("latency device 100");
        service.sim("latency domain 100");
        let one = service.attach(Q35, "vf:1").await.expect(200).body["pci_devices"][0].clone();
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        let sent = Command::new("kill").args(["-TERM", &service.pid().to_string()]).status().unwrap();
        assert!(sent.success());
        assert!(service.ended(std::time::Duration::from_secs(20)).await);
        assert!(!service.log().contains("ERROR"), "{}", service.log());
        service.start_again().await;
        let id = one["attachment_id"].as_str().unwrap();
        service.delete(&format!("{}/{id}", attachments(Q35))).await.expect(200);
    }
}

/// Locks the database once `rows` attachments are in `state`, so that nothing can be recorded afterwards.
async fn hold_the_database(service: &Hotslot, state: &str, rows: i64) -> SqliteConnection {
    let url = format!("sqlite://{}", service.database().display());
    let mut db = SqliteConnection::connect(&url).await.unwrap();
    loop {
        db.execute("BEGIN IMMEDIATE").await.unwrap();
        let count: i64 = sqlx::query("SELECT count(*) FROM attachments WHERE state = $1")
            .bind(state)
            .fetch_one(&mut db)
            .await
            .unwrap()
            .get(0);
        if count == rows {
            return db;
        }
        db.execute("ROLLBACK").await.unwrap();
        tokio::time::sleep(std::time::Duration::from_millis(2)).await;
    }
}

#[tokio::test]
async fn a_kill_between_plug_and_record_keeps_the_attachment() {
    let mut service = Hotslot::on("small").await;
    service.sim("latency attach 300");
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let post = client
        .post(format!("{}{}", service.url(), attachments(Q35)))
        .json(&json!({ "pciAttachment": { "pci_passthrough:alias": "vf:1" } }))
        .send();
    let post = tokio::spawn(post);
    let held = hold_the_database(&service, "attaching", 1).await;
    service.until("the host has the device", async || service.plugged().len() == 2).await;
    service.kill();
    assert!(post.await.unwrap().is_err());
    drop(held);

    service.start_again().await;
    let found = service.attachments(Q35).await;
    assert_eq!(found.len(), 1);
    assert_eq!(found[0]["status"], "attached");
    assert_eq!(found[0]["inner_address"], "0000:02:00.0");
    let id = found[0]["attachment_id"].as_str().unwrap();
    service.delete(&format!("{}/{id}", attachments(Q35))).await.expect(200);
    service.expect_clean().await;
}

#[tokio::test]
async fn a_kill_between_two_plugs_undoes_the_first() {
    let mut service = Hotslot::on("small").await;
    service.sim("fault attach hang nth=2");
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let post = client
        .post(format!("{}{}", service.url(), attachments(Q35)))
        .json(&json!({ "pciAttachment": { "pci_passthrough:alias": "vf:2" } }))
        .send();
    let post = tokio::spawn(post);
    service.until("the host has the first", async || service.plugged().len() == 2).await;
    service.kill();
    assert!(post.await.unwrap().is_err());

    service.start_again().await;
    service.until("nothing is left", async || service.attachments(Q35).await.is_empty()).await;
    service.expect_clean().await;
}

#[tokio::test]
async fn a_kill_while_taking_a_group_rebinds_its_members() {
    let mut service = Hotslot::bare(
        &host("small"),
        "[pci]\ndevice_spec = ['{\"address\": \"*:06:00.*\"}']\n\
         alias = ['{\"name\": \"pair\", \"vendor_id\": \"8086\", \"product_id\": \"10d3\"}']\n",
        |_| (),
    )
    .await;
    service.sim("fault attach hang");
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let body = json!({ "pciAttachment": { "pci_passthrough:alias": "pair:1", "whole_group": true } });
    let post = client.post(format!("{}{}", service.url(), attachments(Q35))).json(&body).send();
    let post = tokio::spawn(post);
    // The simulated host records a driver only when it differs from that of the device's document.
    let taken = || service.documents().matches("vfio-pci").count();
    service.until("both have left their host driver", async || taken() >= 2).await;
    service.kill();
    assert!(post.await.unwrap().is_err());

    service.start_again().await;
    service
        .until("both are with their host driver again", async || {
            let functions = service.functions().await;
            ["0000:06:00.0", "0000:06:00.1"].iter().all(|address| functions[*address]["driver"] == "e1000e")
        })
        .await;
    assert!(service.attachments(Q35).await.is_empty());
    service.expect_clean().await;
}

#[tokio::test]
async fn a_kill_before_the_unplug_request_does_not_lose_it() {
    let mut service = Hotslot::on("small").await;
    let vf = service.attach(Q35, "vf:1").await.expect(200).body["pci_devices"][0].clone();
    service.sim("fault detach hang");
    let path = format!("{}/{}", attachments(Q35), vf["attachment_id"].as_str().unwrap());
    service.delete(&path.replace("/v2/t/", "/v3/")).await.expect(202);
    service.kill();
    service.start_again().await;
    service.until("it is gone", async || service.get(&path).await.status == 404).await;
    service.expect_clean().await;
}

#[tokio::test]
async fn the_remains_of_a_failed_attach_are_removed() {
    let mut service = Hotslot::on("small").await;
    service.attach(Q35, "vf:1").await.expect(200);
    service.kill();
    // As if libvirt had completed an attach after its time limit.
    let mut db =
        SqliteConnection::connect(&format!("sqlite://{}", service.database().display())).await.unwrap();
    db.execute("UPDATE attachments SET state = 'failed', ended_at = created_at").await.unwrap();
    db.execute(
        "UPDATE pci_devices SET status = 'available', instance_uuid = NULL WHERE instance_uuid IS NOT NULL",
    )
    .await
    .unwrap();
    db.close().await.unwrap();
    assert_eq!(service.plugged().len(), 2);
    service.start_again().await;
    service.until("the attach is undone", async || service.plugged().is_empty()).await;
    service.expect_clean().await;
}
