//! The database of every release is migrated at the first start of this one, on SQLite and PostgreSQL.
//!
//! `data/releases` has a dump of each release. `HOTSLOT_RECORD=1 cargo test -p hotslot-tests --test stories upgrades::`
//! writes those of the present version.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::str::FromStr as _;

use hotslot_tests::{Hotslot, Q35, postgres};
use serde_json::json;
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{AssertSqlSafe, Connection as _, PgConnection, SqliteConnection};

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("data/releases")
}

/// Returns the dumps of a kind of database, each with the name of its file.
fn dumps(kind: &str) -> Vec<(String, String)> {
    let files = std::fs::read_dir(folder()).unwrap().map(|file| file.unwrap().path());
    let of_kind = files.filter(|file| file.to_string_lossy().ends_with(&format!(".{kind}.sql")));
    let dump = |file: PathBuf| (file.display().to_string(), std::fs::read_to_string(file).unwrap());
    let dumps: Vec<_> = of_kind.map(dump).collect();
    assert!(!dumps.is_empty(), "there is no dump of a release");
    dumps
}

/// Makes a record of each kind that people make.
async fn fill(service: &Hotslot) {
    service.attach(Q35, "vf:1").await.expect(200);
    let ended = service.attach(Q35, "e1000e:1").await.expect(200).body["pci_devices"][0].clone();
    service.delete(&hotslot_tests::path(&ended)).await.expect(200);
    let alias = json!({ "alias": { "name": "late", "vendor_id": "8086", "product_id": "10ca" } });
    service.post("/v2.1/os-pci-config/alias", alias).await;
    service.post("/accelerators", json!({ "name": "card" })).await.expect(201);
    let limits = json!({ "quota_set": { "pci_attachments": 8 } });
    service.put("/v2.1/os-quota-sets/p1", limits).await.expect(200);
}

/// Checks that all of [`fill`] is there, and that the service works with it.
async fn expect_all(service: &Hotslot, dump: &str) {
    let get = async |path: &str| service.get(path).await.expect(200).body;
    let ended = async || get("/v2.1/os-pci_attachments?ended=true").await["pciAttachment"].clone();
    // The guests of the simulated host do not have the devices, so both attachments have ended.
    service.until("both have ended", async || ended().await.as_array().unwrap().len() == 2).await;
    let ended = ended().await;
    let aliases: Vec<_> =
        ended.as_array().unwrap().iter().map(|row| row["alias"].as_str().unwrap()).collect();
    assert!(aliases.contains(&"vf") && aliases.contains(&"e1000e"), "{dump}: {ended}");
    let rules = get("/v2.1/os-pci-config/alias").await.to_string();
    assert!(rules.contains("\"late\""), "{dump}: {rules}");
    let accelerators = get("/accelerators").await.to_string();
    assert!(accelerators.contains("\"card\""), "{dump}: {accelerators}");
    assert_eq!(get("/v2.1/os-quota-sets/p1").await["quota_set"]["pci_attachments"], 8, "{dump}");
    let events = get("/v2.1/events?since=0&kind=attachment.state").await;
    assert!(events["events"].as_array().unwrap().len() >= 4, "{dump}: {events}");
    service.attach(Q35, "vf:1").await.expect(200);
}

#[tokio::test]
async fn a_sqlite_database_of_each_release_is_migrated() {
    if std::env::var_os("HOTSLOT_RECORD").is_some() {
        let mut service = Hotslot::on("small").await;
        fill(&service).await;
        service.kill();
        let dump = Command::new("sqlite3").arg(service.database()).arg(".dump").output().unwrap();
        record("sqlite", &dump.stdout);
    }
    for (name, dump) in dumps("sqlite") {
        let mut service = Hotslot::on("small").await;
        service.kill();
        let file = service.database();
        for part in ["", "-wal", "-shm"] {
            let _ = std::fs::remove_file(format!("{}{part}", file.display()));
        }
        let options = SqliteConnectOptions::from_str(&format!("sqlite://{}", file.display())).unwrap();
        let mut old = SqliteConnection::connect_with(&options.create_if_missing(true).foreign_keys(false))
            .await
            .unwrap();
        sqlx::raw_sql(AssertSqlSafe(dump)).execute(&mut old).await.unwrap();
        old.close().await.unwrap();
        service.start_again().await;
        expect_all(&service, &name).await;
    }
}

#[tokio::test]
async fn a_postgresql_database_of_each_release_is_migrated() {
    if std::env::var_os("HOTSLOT_RECORD").is_some() {
        let url = postgres::database().await;
        let mut service = Hotslot::on("small").await.moved_to(&url).await;
        fill(&service).await;
        service.kill();
        let dump =
            Command::new("pg_dump").args(["--inserts", "--no-owner", "--dbname", &url]).output().unwrap();
        record("postgres", &dump.stdout);
    }
    for (name, dump) in dumps("postgres") {
        let url = postgres::database().await;
        let mut old = PgConnection::connect(&url).await.unwrap();
        // psql's own commands are no SQL.
        let sql: Vec<_> = dump.lines().filter(|line| !line.starts_with('\\')).collect();
        sqlx::raw_sql(AssertSqlSafe(sql.join("\n"))).execute(&mut old).await.unwrap();
        old.close().await.unwrap();
        let service = Hotslot::on("small").await.moved_to(&url).await;
        expect_all(&service, &name).await;
    }
}

fn record(kind: &str, dump: &[u8]) {
    assert!(!dump.is_empty(), "nothing was dumped");
    let file = folder().join(format!("{}.{kind}.sql", env!("CARGO_PKG_VERSION")));
    std::fs::write(file, dump).unwrap();
}
