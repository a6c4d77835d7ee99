//! The cost of hotslot itself, on a simulated host without latencies: the latency of attach and detach, the time to
//! start, and memory and activity when idle.
//!
//! The floor of an attach is measured in the same run: an empty request to the same service, and two transactions that
//! are as durable as its own (reserve and settle), written by hand.

use std::time::{Duration, Instant};

use hotslot_tests::measure::{report, resident, switches};
use hotslot_tests::{Hotslot, Q35, binary, host, path};
use sqlx::{Connection as _, Executor as _, SqliteConnection};

const ROUNDS: usize = 500;

#[tokio::main]
async fn main() {
    assert!(binary().display().to_string().contains("release"), "measure the release build: cargo bench");
    let service = Hotslot::on("small").await;
    let (mut attach, mut detach, mut empty) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let start = Instant::now();
        service.get("/healthz").await.expect(200);
        empty.push(start.elapsed());
        let start = Instant::now();
        let answer = service.attach(Q35, "vf:1").await.expect(200);
        attach.push(start.elapsed());
        let path = path(&answer.body["pci_devices"][0]);
        let start = Instant::now();
        service.delete(&path).await.expect(200);
        detach.push(start.elapsed());
    }
    let mut durable = durable_transactions().await;
    let floor = report("floor: empty request", &mut empty)
        + 2.0 * report("floor: one durable transaction", &mut durable);
    let attached = report("attach, own part (REST, simulated host)", &mut attach);
    report("detach, own part (REST, simulated host)", &mut detach);
    println!("attach over its floor (request + 2 transactions)  {:.2}", attached / floor);
    drop(service);

    let mut started = Vec::new();
    for _ in 0..10 {
        started.push(start_once().await);
    }
    report("start, empty host, to listening", &mut started);
    idle().await;
}

/// Measures writing and committing two rows with a sync on this disk.
async fn durable_transactions() -> Vec<Duration> {
    let dir = tempfile::tempdir().expect("a directory");
    let url = format!("sqlite://{}/floor.db?mode=rwc", dir.path().display());
    let mut db = SqliteConnection::connect(&url).await.expect("a database");
    for line in [
        "PRAGMA journal_mode = WAL",
        "PRAGMA synchronous = FULL",
        "CREATE TABLE t (id INTEGER PRIMARY KEY, text TEXT)",
    ] {
        db.execute(line).await.expect("a statement");
    }
    let mut times = Vec::new();
    for _ in 0..ROUNDS {
        let start = Instant::now();
        db.execute("BEGIN; INSERT INTO t (text) VALUES ('a'); INSERT INTO t (text) VALUES ('b'); COMMIT")
            .await
            .expect("a transaction");
        times.push(start.elapsed());
    }
    times
}

/// Measures the time from the start of the process until it listens, on a host with neither devices nor guests.
async fn start_once() -> Duration {
    let empty = tempfile::tempdir().expect("a directory");
    for folder in ["devices", "domains"] {
        std::fs::create_dir(empty.path().join(folder)).expect("a folder");
    }
    let service = Hotslot::with(empty.path(), "").await;
    service.started_in()
}

async fn idle() {
    let service = Hotslot::with(&host("small"), "").await;
    println!("resident, idle on the host `small`           {:.1} MiB", resident(service.pid()));
    tokio::time::sleep(Duration::from_secs(2)).await;
    let before = switches(service.pid());
    tokio::time::sleep(Duration::from_secs(10)).await;
    println!("context switches in 10 s of idling           {}", switches(service.pid()) - before);
}
