//! The database locked, full, read-only: the service says so, goes on answering what it can, and is back by itself.

use std::process::Command;
use std::time::{Duration, Instant};

use hotslot_tests::oracle::Oracle;
use hotslot_tests::{Answer, Hotslot, Q35, binary, path};
use sqlx::{Connection as _, Executor as _, SqliteConnection};

/// Takes the right to write, as another process that has the file open may.
async fn lock(service: &Hotslot) -> SqliteConnection {
    let url = format!("sqlite://{}", service.database().display());
    let mut other = SqliteConnection::connect(&url).await.unwrap();
    other.execute("BEGIN IMMEDIATE").await.unwrap();
    other
}

/// An answer that says that the database cannot be used, and why.
fn expect_unusable(answer: Answer, why: &str) {
    let answer = answer.expect(503);
    assert!(answer.message().contains(why), "{}", answer.message());
    assert!(answer.retry_after.is_some());
}

#[tokio::test]
async fn locked_for_a_while_it_waits() {
    let service = Hotslot::on("small").await;
    let other = lock(&service).await;
    let unlock = async {
        tokio::time::sleep(Duration::from_secs(2)).await;
        other.close().await.unwrap();
    };
    let (attached, ()) = tokio::join!(service.attach(Q35, "vf:1"), unlock);
    attached.expect(200);
}

#[tokio::test]
async fn locked_for_long_it_says_so_and_is_back_by_itself() {
    let service = Hotslot::on("small").await;
    let oracle = Oracle::of(&service).await;
    let other = lock(&service).await;
    expect_unusable(service.attach(Q35, "vf:1").await, "another process holds it");
    // What only reads goes on.
    assert!(service.attachments(Q35).await.is_empty());
    other.close().await.unwrap();
    let unlocked = Instant::now();
    service.attach(Q35, "vf:1").await.expect(200);
    oracle.settled(&service, Duration::from_secs(10)).await.unwrap();
    println!("locked: everything agrees {:?} after the lock was gone", unlocked.elapsed());
    assert_eq!(service.attachments(Q35).await.len(), 1);
}

#[tokio::test]
async fn full_it_says_so_and_is_back_by_itself() {
    let mut service = Hotslot::on("small").await;
    service.kill();
    // A write beyond the limit fails, and does not kill.
    service.start_again_after("trap '' XFSZ").await;
    let oracle = Oracle::of(&service).await;
    let kept = service.attach(Q35, "vf:1").await.expect(200).body["pci_devices"][0].clone();
    let log = format!("{}-wal", service.database().display());
    service.limit_files(Some(std::fs::metadata(log).unwrap().len()));
    for _ in 0..3 {
        expect_unusable(service.attach(Q35, "vf:1").await, "look at its disk");
        expect_unusable(service.delete(&path(&kept)).await, "look at its disk");
        assert_eq!(service.attachments(Q35).await.len(), 1);
    }
    service.limit_files(None);
    let room = Instant::now();
    service.delete(&path(&kept)).await.expect(200);
    service.attach(Q35, "vf:2").await.expect(200);
    oracle.settled(&service, Duration::from_secs(10)).await.unwrap();
    println!("full: everything agrees {:?} after there was room", room.elapsed());
}

#[tokio::test]
async fn read_only_it_does_not_start_and_says_why() {
    let mut service = Hotslot::on("small").await;
    service.attach(Q35, "vf:1").await.expect(200);
    service.kill();
    service.reconfigure("hotslot.db\"", "hotslot.db?mode=ro\"");
    let config = service.host_dir().with_file_name("hotslot.toml");
    let refused = Command::new(binary()).args(["serve", "--config"]).arg(config).output().unwrap();
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(!refused.status.success() && said.contains("may hotslot write it?"), "{said}");
    service.reconfigure("hotslot.db?mode=ro\"", "hotslot.db\"");
    service.start_again().await;
    assert_eq!(service.attachments(Q35).await.len(), 1);
}
