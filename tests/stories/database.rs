//! The database: backup and restore; a service on PostgreSQL that restarts, freezes and fails over; and SQLite that is
//! locked, full or read-only. The service reports the outage, keeps serving what it can, and recovers automatically.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use hotslot_tests::oracle::Oracle;
use hotslot_tests::{Answer, Hotslot, I440FX, Q35, attachments, binary, path, postgres};
use serde_json::json;
use sqlx::{Connection as _, Executor as _, SqliteConnection};

/// Runs `hotslot db` with the configuration next to a database.
fn db(database: &Path, what: &str, file: &Path) -> Output {
    let config = database.with_file_name("hotslot.toml");
    let mut command = Command::new(binary());
    command.args(["db", what]).arg(file).arg("--config").arg(config).output().expect("run hotslot")
}

fn stderr_of(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Fails the test unless the file is a consistent database in which allocated devices and attachments match.
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
    // Close the connection explicitly: a dropped one is closed later, and could then remove the write-ahead log of
    // another database at the same path.
    database.close().await.unwrap();
}

#[tokio::test]
async fn a_backup_of_a_busy_service_is_consistent() {
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
            assert!(output.status.success(), "{}", stderr_of(&output));
            expect_whole(&file).await;
        }
        done.store(true, Ordering::Relaxed);
    };
    let (one, other, ()) = tokio::join!(work(Q35, "vf:2"), work(I440FX, "e1000:1"), backups);
    println!("5 backups beside {} attaches and detaches", one + other);
    assert!(one > 0 && other > 0);
}

#[tokio::test]
async fn a_restored_backup_is_reconciled_with_the_host() {
    let mut service = Hotslot::on("small").await;
    let kept = service.attach(Q35, "vf:1").await.expect(200).body["pci_devices"][0].clone();
    let file = service.database().with_file_name("backup");
    assert_eq!(db(&service.database(), "backup", &file).status.code(), Some(0));
    let again = db(&service.database(), "backup", &file);
    assert_eq!(again.status.code(), Some(4));
    assert!(stderr_of(&again).contains("name a new file"), "{}", stderr_of(&again));

    // After the backup, the attachment in it is detached, and another device is attached.
    service.delete(&path(&kept)).await.expect(200);
    let refused = db(&service.database(), "restore", &file);
    assert_eq!(refused.status.code(), Some(4));
    assert!(stderr_of(&refused).contains("stop it first"), "{}", stderr_of(&refused));
    service.kill();
    let bad = service.database().with_file_name("bad");
    std::fs::write(&bad, "no database").unwrap();
    let refused = db(&service.database(), "restore", &bad);
    assert!(stderr_of(&refused).contains("is not a backup"), "{}", stderr_of(&refused));
    let restored = db(&service.database(), "restore", &file);
    assert!(restored.status.success(), "{}", stderr_of(&restored));
    assert!(service.database().with_file_name("hotslot.db.before-restore").exists());

    service.start_again().await;
    // The attachment of the backup is gone on the host.
    service.until("records and host agree", async || service.attachments(Q35).await.is_empty()).await;
    service.expect_clean().await;
}

/// Returns the names of the files whose names begin with the name of the database.
fn beside(database: &Path) -> Vec<String> {
    let name = database.file_name().unwrap().to_str().unwrap();
    let entries = std::fs::read_dir(database.parent().unwrap()).unwrap().flatten();
    let mut names: Vec<_> = entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.retain(|file| file.starts_with(name));
    names.sort();
    names
}

/// Backs up the database of a service, attaches a device and kills the service. Returns also the database and the backup.
async fn killed_after_a_backup() -> (Hotslot, PathBuf, PathBuf) {
    let mut service = Hotslot::on("small").await;
    let database = service.database();
    let file = database.with_file_name("backup");
    assert!(db(&database, "backup", &file).status.success());
    service.attach(Q35, "vf:1").await.expect(200);
    service.kill();
    (service, database, file)
}

#[tokio::test]
async fn a_restore_leaves_no_stale_database_files() {
    let (mut service, database, file) = killed_after_a_backup().await;
    let before = beside(&database);
    assert!(before.contains(&"hotslot.db-wal".to_owned()), "{before:?}");

    let bad = database.with_file_name("bad");
    std::fs::write(&bad, "no database").unwrap();
    assert!(!db(&database, "restore", &bad).status.success());
    assert_eq!(beside(&database), before, "after one that failed");

    // Files that an earlier restore left belong to another database.
    for ending in
        [".before-restore-wal", ".before-restore-shm", ".restored", ".restored-wal", ".restored-journal"]
    {
        std::fs::write(database.with_file_name(format!("hotslot.db{ending}")), "old").unwrap();
    }
    let restored = db(&database, "restore", &file);
    assert!(restored.status.success(), "{}", stderr_of(&restored));
    assert_eq!(beside(&database), ["hotslot.db", "hotslot.db.before-restore", "hotslot.db.lock"]);
    // Data that was only in the write-ahead log of the old database is kept in the file.
    let kept = database.with_file_name("hotslot.db.before-restore");
    let mut old =
        SqliteConnection::connect(&format!("sqlite://{}?immutable=1", kept.display())).await.unwrap();
    let attached: i64 =
        sqlx::query_scalar("SELECT COUNT(*) FROM attachments").fetch_one(&mut old).await.unwrap();
    assert_eq!(attached, 1);
    service.start_again().await;
}

/// Each restore keeps what it replaced, whatever earlier restores have kept.
#[tokio::test]
async fn a_second_restore_keeps_the_database_that_the_first_one_replaced() {
    let (_service, database, file) = killed_after_a_backup().await;
    let mut names = vec!["hotslot.db".to_owned(), "hotslot.db.before-restore".to_owned()];
    for suffix in ["", ".1", ".2"] {
        let restored = db(&database, "restore", &file);
        assert!(restored.status.success(), "{}", stderr_of(&restored));
        let kept = format!("hotslot.db.before-restore{suffix}");
        let says = String::from_utf8_lossy(&restored.stdout).into_owned();
        assert!(says.ends_with(&format!("kept as {}\n", database.with_file_name(&kept).display())), "{says}");
        if !names.contains(&kept) {
            names.push(kept);
        }
        let found: Vec<_> = beside(&database).into_iter().filter(|name| !name.ends_with(".lock")).collect();
        assert_eq!(found, names);
    }
    let kept = database.with_file_name("hotslot.db.before-restore");
    let url = format!("sqlite://{}?immutable=1", kept.display());
    let mut first = SqliteConnection::connect(&url).await.unwrap();
    let attached: i64 =
        sqlx::query_scalar("SELECT COUNT(*) FROM attachments").fetch_one(&mut first).await.unwrap();
    assert_eq!(attached, 1, "the device was attached after the backup");
    first.close().await.unwrap();
    // What was replaced is restored like a backup; the database itself is none, under whatever name.
    assert!(db(&database, "restore", &kept).status.success());
    let link = database.with_file_name("link");
    std::os::unix::fs::symlink(&database, &link).unwrap();
    let before = beside(&database);
    for itself in [&database, &link] {
        let refused = db(&database, "restore", itself);
        assert!(!refused.status.success());
        assert!(stderr_of(&refused).contains("is the database itself"), "{}", stderr_of(&refused));
    }
    assert_eq!(beside(&database), before);
}

#[tokio::test]
async fn a_killed_restore_leaves_the_old_database_or_the_new_one() {
    let (mut service, database, file) = killed_after_a_backup().await;
    let config = database.with_file_name("hotslot.toml");
    let safe = tempfile::tempdir().unwrap();
    for name in ["hotslot.db", "hotslot.db-wal"] {
        std::fs::copy(database.with_file_name(name), safe.path().join(name)).unwrap();
    }
    let (mut old, mut new) = (0, 0);
    for step in 0..30 {
        for name in beside(&database) {
            std::fs::remove_file(database.with_file_name(name)).unwrap();
        }
        for name in ["hotslot.db", "hotslot.db-wal"] {
            std::fs::copy(safe.path().join(name), database.with_file_name(name)).unwrap();
        }
        let mut command = Command::new(binary());
        let mut restore =
            command.args(["db", "restore"]).arg(&file).arg("--config").arg(&config).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(step * 8));
        let _ = restore.kill();
        restore.wait().unwrap();
        for name in beside(&database) {
            let found = std::fs::metadata(database.with_file_name(&name)).unwrap();
            assert_eq!(found.permissions().mode() & 0o077 & !0o044, 0, "{name}");
        }
        expect_whole(&database).await;
        let mut opened =
            SqliteConnection::connect(&format!("sqlite://{}", database.display())).await.unwrap();
        let attached: i64 =
            sqlx::query_scalar("SELECT COUNT(*) FROM attachments").fetch_one(&mut opened).await.unwrap();
        opened.close().await.unwrap();
        if attached == 1 { old += 1 } else { new += 1 }
    }
    println!("killed at 30 moments: {old} times the old one, {new} times the new one");
    assert!(old > 0);
    service.start_again().await;
}

#[tokio::test]
async fn on_postgresql_a_kill_between_two_plugs_undoes_the_first() {
    let mut service = Hotslot::on("small").await.moved_to(&postgres::database().await).await;
    let kept = service.attach(Q35, "e1000e:1").await.expect(200).body["pci_devices"][0].clone();
    service.sim("fault attach hang nth=2");
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let body = json!({ "pciAttachment": { "pci_passthrough:alias": "vf:2" } });
    let post = client.post(format!("{}{}", service.url(), attachments(Q35))).json(&body).send();
    let post = tokio::spawn(post);
    service.until("the host has the first", async || service.plugged().len() == 4).await;
    service.kill();
    assert!(post.await.unwrap().is_err());

    service.start_again().await;
    service.until("nothing is left of the attach", async || service.attachments(Q35).await.len() == 1).await;
    assert_eq!(service.attachments(Q35).await[0]["attachment_id"], kept["attachment_id"]);
    service.delete(&path(&kept)).await.expect(200);
    service.expect_clean().await;

    let file = service.database().with_file_name("backup");
    let refused = db(&service.database(), "backup", &file);
    assert!(stderr_of(&refused).contains("pg_dump"), "{}", stderr_of(&refused));
}

#[tokio::test]
async fn processes_with_different_hosts_share_one_postgresql() {
    let url = postgres::database().await;
    let start = async |number: usize| {
        let mut service = Hotslot::on("small").await;
        service.kill();
        service.reconfigure("name = \"node1\"", &format!("name = \"host{number}\""));
        service.moved_to(&url).await
    };
    let (mut one, other, third) = tokio::join!(start(1), start(2), start(3));
    for service in [&one, &other, &third] {
        let hosts = service.get("/v2/t/os-hypervisors").await.expect(200);
        assert_eq!(
            hosts.body["hypervisors"].as_array().unwrap().len(),
            1,
            "a process shows only its own host"
        );
    }
    let pid = one.pid();
    one.kill();
    let message = format!("process {pid} on ");
    let takes_over =
        async || [&other, &third].iter().filter(|service| service.log().contains(&message)).count();
    other.until("one of the others takes over", async || takes_over().await > 0).await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(takes_over().await, 1, "one of them, once");
}

#[tokio::test]
async fn an_outage_of_postgresql_is_reported_and_recovery_is_automatic() {
    let mut database = postgres::Server::start();
    let service = Hotslot::on("small").await.moved_to(&database.database().await).await;
    let oracle = Oracle::of(&service).await;
    let kept = service.attach(Q35, "vf:1").await.expect(200).body["pci_devices"][0].clone();
    let kept_path = path(&kept);
    for (away, back) in [("stop", "start"), ("freeze", "thaw")] {
        database.tell(away);
        let (attach, detach, list) = tokio::join!(
            service.attach(Q35, "vf:1"),
            service.delete(&kept_path),
            service.get("/v2/t/os-pci_attachments"),
        );
        for answer in [attach, detach, list] {
            expect_unusable(answer, "PostgreSQL");
        }
        database.tell(back);
        let since = Instant::now();
        service.until("it is ready", async || service.get("/readyz").await.status == 200).await;
        service.attach(Q35, "e1000e:1").await.expect(200);
        oracle.settled(&service, Duration::from_secs(10)).await.unwrap();
        println!("{away}: everything agrees {:?} after PostgreSQL was back", since.elapsed());
        for row in service.attachments(Q35).await.iter().filter(|row| row["address"] != kept["address"]) {
            service.delete(&path(row)).await.expect(200);
        }
    }
    assert_eq!(service.attachments(Q35).await[0]["attachment_id"], kept["attachment_id"]);
    service.delete(&kept_path).await.expect(200);
    service.expect_clean().await;
    assert!(!service.log().contains("a request failed"), "{}", service.log());
}

#[tokio::test]
async fn a_failover_of_postgresql_during_attaches_loses_nothing() {
    let mut database = postgres::Server::start();
    let service = Hotslot::on("small").await.moved_to(&database.database().await).await;
    database.tell("standby");
    let oracle = Oracle::of(&service).await;
    let kept = service.attach(Q35, "vf:1").await.expect(200).body["pci_devices"][0].clone();
    let over = Arc::new(AtomicBool::new(false));
    let is_over = Arc::clone(&over);
    let fail_over = tokio::task::spawn_blocking(move || {
        std::thread::sleep(Duration::from_millis(300));
        database.tell("failover");
        is_over.store(true, Ordering::Relaxed);
        (database, Instant::now())
    });
    let mut answers = BTreeMap::<u16, u32>::new();
    while !over.load(Ordering::Relaxed) {
        let attached = service.attach(I440FX, "vf:1").await;
        *answers.entry(attached.status).or_default() += 1;
        for attachment in attached.body["pci_devices"].as_array().into_iter().flatten() {
            *answers.entry(service.delete(&path(attachment)).await.status).or_default() += 1;
        }
    }
    let (_database, since) = fail_over.await.unwrap();
    // On a busy machine the failover may fall between two requests.
    assert!(answers.keys().all(|status| [200, 400, 409, 503].contains(status)), "{answers:?}");
    service.until("it is ready", async || service.get("/readyz").await.status == 200).await;
    oracle.settled(&service, Duration::from_secs(10)).await.unwrap();
    println!("failed over: {answers:?}, everything agrees {:?} after the new one was there", since.elapsed());
    assert_eq!(service.attachments(Q35).await[0]["attachment_id"], kept["attachment_id"]);
    for attachment in service.attachments(I440FX).await.iter().chain([&kept]) {
        service.delete(&path(attachment)).await.expect(200);
    }
    service.expect_clean().await;
    assert!(!service.log().contains("a request failed"), "{}", service.log());
}

/// Takes SQLite's write lock, as another process that has the file open can do.
async fn lock(service: &Hotslot) -> SqliteConnection {
    let url = format!("sqlite://{}", service.database().display());
    let mut other = SqliteConnection::connect(&url).await.unwrap();
    other.execute("BEGIN IMMEDIATE").await.unwrap();
    other
}

/// Fails the test unless the response reports that the database cannot be used, with the reason.
fn expect_unusable(answer: Answer, why: &str) {
    let answer = answer.expect(503);
    assert!(answer.message().contains(why), "{}", answer.message());
    // The request may have been executed, so clients must check the state and not retry automatically.
    assert!(answer.message().contains("check the current state"), "{}", answer.message());
    assert_eq!(answer.retry_after, None);
}

#[tokio::test]
async fn a_short_lock_of_the_database_is_waited_for() {
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
async fn a_long_lock_is_reported_and_recovery_is_automatic() {
    let service = Hotslot::on("small").await;
    let oracle = Oracle::of(&service).await;
    let other = lock(&service).await;
    expect_unusable(service.attach(Q35, "vf:1").await, "another process holds it");
    // Requests that only read still succeed.
    assert!(service.attachments(Q35).await.is_empty());
    other.close().await.unwrap();
    let unlocked = Instant::now();
    service.attach(Q35, "vf:1").await.expect(200);
    oracle.settled(&service, Duration::from_secs(10)).await.unwrap();
    println!("locked: everything agrees {:?} after the lock was gone", unlocked.elapsed());
    assert_eq!(service.attachments(Q35).await.len(), 1);
}

#[tokio::test]
async fn a_full_disk_is_reported_and_recovery_is_automatic() {
    let mut service = Hotslot::on("small").await;
    service.kill();
    // A write beyond the limit fails with an error and does not kill the process.
    service.start_again_after("trap '' XFSZ").await;
    let oracle = Oracle::of(&service).await;
    let kept = service.attach(Q35, "vf:1").await.expect(200).body["pci_devices"][0].clone();
    let log = format!("{}-wal", service.database().display());
    service.limit_files(Some(std::fs::metadata(log).unwrap().len()));
    for _ in 0..3 {
        expect_unusable(service.attach(Q35, "vf:1").await, "check its disk");
        expect_unusable(service.delete(&path(&kept)).await, "check its disk");
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
async fn a_read_only_database_prevents_the_start() {
    let mut service = Hotslot::on("small").await;
    service.attach(Q35, "vf:1").await.expect(200);
    service.kill();
    service.reconfigure("hotslot.db\"", "hotslot.db?mode=ro\"");
    let config = service.host_dir().with_file_name("hotslot.toml");
    let refused = Command::new(binary()).args(["serve", "--config"]).arg(config).output().unwrap();
    let stderr = String::from_utf8_lossy(&refused.stderr);
    assert!(!refused.status.success() && stderr.contains("may write there"), "{stderr}");
    service.reconfigure("hotslot.db?mode=ro\"", "hotslot.db\"");
    service.start_again().await;
    assert_eq!(service.attachments(Q35).await.len(), 1);
}
