//! The database: a backup of a service that is at work, and what it is worth; and a service on PostgreSQL.

use std::path::Path;
use std::process::{Command, Output};
use std::sync::atomic::{AtomicBool, Ordering};

use hotslot_tests::{Hotslot, I440FX, Q35, attachments, binary, path, postgres};
use serde_json::json;
use sqlx::{Connection as _, SqliteConnection};

/// Runs `hotslot db` with the configuration that is beside a database.
fn db(database: &Path, what: &str, file: &Path) -> Output {
    let config = database.with_file_name("hotslot.toml");
    let mut command = Command::new(binary());
    command.args(["db", what]).arg(file).arg("--config").arg(config).output().expect("run hotslot")
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Fails the test unless the file is a whole database in which every promise has its device.
async fn expect_whole(file: &Path) {
    let mut database = SqliteConnection::connect(&format!("sqlite://{}", file.display())).await.unwrap();
    let found: String = sqlx::query_scalar("PRAGMA integrity_check").fetch_one(&mut database).await.unwrap();
    assert_eq!(found, "ok");
    let broken: i64 = sqlx::query_scalar(
        "SELECT COUNT(*) FROM pci_devices AS device
         WHERE (instance_uuid IS NOT NULL) <> EXISTS (SELECT 1 FROM attachments AS attachment
             WHERE attachment.device_id = device.id AND attachment.ended_at IS NULL)",
    )
    .fetch_one(&mut database)
    .await
    .unwrap();
    assert_eq!(broken, 0, "a promise without its device, or the other way round");
}

#[tokio::test]
async fn a_backup_of_a_service_at_work_is_whole() {
    let service = Hotslot::on("small").await;
    let done = AtomicBool::new(false);
    let work = async |server: &'static str, alias: &'static str| {
        let mut attached = 0;
        while !done.load(Ordering::Relaxed) {
            let answer = service.attach(server, alias).await.expect(200);
            for device in answer.body["pci_devices"].as_array().unwrap() {
                service.delete(&path(device)).await.expect(200);
            }
            attached += 1;
        }
        attached
    };
    let backups = async {
        for number in 0..5 {
            let file = service.database().with_file_name(format!("backup{number}"));
            let (database, to) = (service.database(), file.clone());
            let output = tokio::task::spawn_blocking(move || db(&database, "backup", &to)).await.unwrap();
            assert!(output.status.success(), "{}", said(&output));
            expect_whole(&file).await;
        }
        done.store(true, Ordering::Relaxed);
    };
    let (one, other, ()) = tokio::join!(work(Q35, "vf:2"), work(I440FX, "e1000:1"), backups);
    println!("5 backups beside {} attaches and detaches", one + other);
    assert!(one > 0 && other > 0);
}

#[tokio::test]
async fn what_was_backed_up_is_restored_and_agrees_with_the_host() {
    let mut service = Hotslot::on("small").await;
    let kept = service.attach(Q35, "vf:1").await.expect(200).body["pci_devices"][0].clone();
    let file = service.database().with_file_name("backup");
    assert_eq!(db(&service.database(), "backup", &file).status.code(), Some(0));
    let again = db(&service.database(), "backup", &file);
    assert_eq!(again.status.code(), Some(4));
    assert!(said(&again).contains("name a new file"), "{}", said(&again));

    // After the backup: what it has is gone, and something else is there.
    service.delete(&path(&kept)).await.expect(200);
    let refused = db(&service.database(), "restore", &file);
    assert_eq!(refused.status.code(), Some(4));
    assert!(said(&refused).contains("stop it first"), "{}", said(&refused));
    service.kill();
    let bad = service.database().with_file_name("bad");
    std::fs::write(&bad, "no database").unwrap();
    let refused = db(&service.database(), "restore", &bad);
    assert!(said(&refused).contains("is no backup"), "{}", said(&refused));
    let restored = db(&service.database(), "restore", &file);
    assert!(restored.status.success(), "{}", said(&restored));
    assert!(service.database().with_file_name("hotslot.db.before-restore").exists());

    service.start_again().await;
    // It was attached when the backup was made, and the host says that it is gone.
    service.until("records and host agree", async || service.attachments(Q35).await.is_empty()).await;
    service.expect_clean().await;
}

/// Stops a service and starts it on another database.
async fn moved_to(mut service: Hotslot, url: &str) -> Hotslot {
    service.kill();
    service.reconfigure(&format!("sqlite://{}", service.database().display()), url);
    service.start_again().await;
    service
}

#[tokio::test]
async fn killed_on_postgresql_between_two_plugs_it_takes_the_first_back() {
    let mut service = moved_to(Hotslot::on("small").await, &postgres::database().await).await;
    let kept = service.attach(Q35, "e1000e:1").await.expect(200).body["pci_devices"][0].clone();
    service.sim("latency attach 300");
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let body = json!({ "pciAttachment": { "pci_passthrough:alias": "vf:2" } });
    let post = client.post(format!("{}{}", service.url(), attachments(Q35))).json(&body).send();
    let post = tokio::spawn(post);
    service.until("the host has the first", async || service.plugged().len() == 4).await;
    service.kill();
    assert!(post.await.unwrap().is_err());

    service.start_again().await;
    service.until("nothing is left of it", async || service.attachments(Q35).await.len() == 1).await;
    assert_eq!(service.attachments(Q35).await[0]["attachment_id"], kept["attachment_id"]);
    service.delete(&path(&kept)).await.expect(200);
    service.expect_clean().await;

    let file = service.database().with_file_name("backup");
    let refused = db(&service.database(), "backup", &file);
    assert!(said(&refused).contains("pg_dump"), "{}", said(&refused));
}

#[tokio::test]
async fn processes_with_hosts_of_their_own_share_a_postgresql_and_see_one_die() {
    let url = postgres::database().await;
    let start = async |number: usize| {
        let mut service = Hotslot::on("small").await;
        service.kill();
        service.reconfigure("name = \"node1\"", &format!("name = \"host{number}\""));
        moved_to(service, &url).await
    };
    let (mut one, other, third) = tokio::join!(start(1), start(2), start(3));
    for service in [&one, &other, &third] {
        let hosts = service.get("/v2/t/os-hypervisors").await.expect(200);
        assert_eq!(hosts.body["hypervisors"].as_array().unwrap().len(), 1, "it has its own host only");
    }
    let pid = one.pid();
    one.kill();
    let told = format!("process {pid} on ");
    let takes_over = async || [&other, &third].iter().filter(|service| service.log().contains(&told)).count();
    other.until("one of the others takes over", async || takes_over().await > 0).await;
    tokio::time::sleep(std::time::Duration::from_secs(3)).await;
    assert_eq!(takes_over().await, 1, "one of them, once");
}
