//! Several processes that use one PostgreSQL database.

use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use hotslot_model::device::DeviceStatus;
use hotslot_model::event::EventFilter;

use super::*;

/// The total number of claims of all racing processes. `HOTSLOT_LONG_WALK` selects the long test.
fn claims() -> usize {
    if std::env::var_os("HOTSLOT_LONG_WALK").is_some() { 10_000 } else { 1_000 }
}

/// Opens one database twice, as two processes do.
pub(super) async fn two() -> (Records, Records) {
    let url = postgres::database().await;
    let first = Records::of(Store::open(&url, None).await.unwrap(), None).await;
    let second = Records::of(Store::open(&url, None).await.unwrap(), None).await;
    assert_eq!(first.host, second.host);
    (first, second)
}

/// Waits until a condition is true, at most 10 seconds.
async fn until(what: &str, condition: impl AsyncFn() -> bool) {
    let start = Instant::now();
    while !condition().await {
        assert!(start.elapsed() < Duration::from_secs(10), "timed out: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn processes_that_start_together_create_one_schema_and_one_row_for_each_host() {
    let url = postgres::database().await;
    let start = async |name| {
        let store = Store::open(&url, None).await.unwrap();
        (
            store.hypervisor("shared", "sim:///x").await.unwrap(),
            store.hypervisor(name, "sim:///y").await.unwrap(),
        )
    };
    let (one, two, three) = tokio::join!(start("one"), start("two"), start("three"));
    assert!(one.0 == two.0 && two.0 == three.0);
    let ids: std::collections::BTreeSet<_> = [one.0, one.1, two.1, three.1].map(|row| row.id).into();
    assert_eq!(ids.len(), 4);
}

#[tokio::test]
async fn a_commit_notifies_other_processes_which_then_read_the_changes() {
    let (first, second) = two().await;
    let mut heard = second.store.listen().await.unwrap().unwrap();
    first.scan(devices()).await;
    assert_eq!(heard.next().await.unwrap(), Notification::Records);
    second.store.refresh().await.unwrap();
    assert_eq!(second.store.devices(), first.store.devices());
    // The same without a notification: claiming a device that was taken meanwhile fails and reads the changes.
    let vf = first.claim(&["0000:04:10.0"]).await.unwrap()[0];
    assert_eq!(second.claim(&["0000:04:10.0"]).await, None);
    assert_eq!(second.store.devices(), first.store.devices());
    second.removed(vf).await;
    first.scan(Vec::new()).await;
    assert_eq!(first.store.devices(), Vec::new());
    second.store.refresh().await.unwrap();
    assert_eq!(second.store.devices(), Vec::new(), "deleted rows are seen");
}

#[tokio::test]
async fn a_lock_is_exclusive_until_its_process_releases_it_or_ends() {
    let (first, second) = two().await;
    let (locks, others) = (first.store.locks(), second.store.locks());
    let held = locks.try_lock("a".into()).await.unwrap().unwrap();
    assert!(others.try_lock("a".into()).await.unwrap().is_none());
    let names = || vec!["a".to_owned(), "b".to_owned()];
    assert_eq!(others.elsewhere(names()).await.unwrap(), ["a".to_owned()].into());
    assert_eq!(locks.elsewhere(names()).await.unwrap(), [].into(), "this process has the lock itself");
    drop(held);
    let held = others.lock("a".into()).await.unwrap();
    assert!(locks.try_lock("a".into()).await.unwrap().is_none());
    // Waits until the other process has ended and was removed from the record.
    let ended = AtomicBool::new(false);
    let wait = async {
        drop(locks.lock("a".into()).await.unwrap());
        assert!(ended.load(Ordering::Relaxed), "the lock was given out before the other process was removed");
    };
    let end = async {
        let process = Process::clone(&second.store.locks.process().unwrap());
        drop((held, others, second));
        until("the ended process is found", async || {
            first.store.ended().await.unwrap() == std::slice::from_ref(&process)
        })
        .await;
        tokio::time::sleep(Duration::from_millis(100)).await;
        ended.store(true, Ordering::Relaxed);
        first.store.forget_process(&process).await.unwrap();
    };
    tokio::join!(wait, end);
}

#[tokio::test]
async fn a_lock_whose_connection_broke_cannot_be_taken_before_the_process_reconnects() {
    let (first, second) = two().await;
    let (locks, others) = (first.store.locks(), second.store.locks());
    let held = locks.lock("a".into()).await.unwrap();
    // Other tests use locks of the same name in other databases of the server.
    let kill = "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory'
                AND database = (SELECT oid FROM pg_database WHERE datname = current_database())
                AND ((classid::bigint << 32) | objid::bigint) = hashtextextended('a', 0)";
    assert_eq!(query(kill).fetch_all(&second.store.read).await.unwrap().len(), 1);
    until("the lock is gone", async || others.elsewhere(vec!["a".into()]).await.unwrap().is_empty()).await;
    for name in ["a", "b"] {
        assert!(others.try_lock(name.into()).await.unwrap().is_none());
        assert!(!others.settled().await.unwrap());
    }
    assert!(locks.has(&held).await.unwrap(), "the process takes the lock again");
    assert!(others.try_lock("a".into()).await.unwrap().is_none());
    drop(others.try_lock("b".into()).await.unwrap().unwrap());
    // A process that was removed from the record knows that it lost its lock.
    let process = first.store.locks.process().unwrap();
    assert_eq!(query(kill).fetch_all(&second.store.read).await.unwrap().len(), 1);
    second.store.forget_process(&process).await.unwrap();
    let taken = others.lock("a".into()).await.unwrap();
    assert!(!locks.has(&held).await.unwrap());
    drop((taken, held));
    drop(others.lock("a".into()).await.unwrap());
}

#[tokio::test]
async fn events_of_several_writers_have_no_gaps_and_are_read_in_order() {
    const CHANGES: i64 = 100;
    let (first, second) = two().await;
    let changed = |number: i64| {
        let mut seen = devices();
        seen[1].numa_node = Some(number as u32);
        seen
    };
    first.scan(devices()).await;
    let start = first.last_event().await;
    let write = async |records: &Records, from: i64| {
        for number in 0..CHANGES {
            records.scan(changed(from + number)).await;
        }
    };
    let writers = async { tokio::join!(write(&first, 1000), write(&second, 2000), write(&first, 3000)) };
    let done = AtomicBool::new(false);
    let read = async {
        let mut last = start;
        loop {
            let all = done.load(Ordering::Relaxed);
            for event in second.store.events(last, &EventFilter::default(), 7).await.unwrap() {
                assert_eq!(event.id.0, last.0 + 1, "no event is missing and none appears later");
                last = event.id;
            }
            if all && last == second.last_event().await {
                return last;
            }
            tokio::task::yield_now().await;
        }
    };
    let (last, _) = tokio::join!(read, async {
        writers.await;
        done.store(true, Ordering::Relaxed);
    });
    assert!(last.0 - start.0 > 2 * CHANGES, "{last}");
}

#[tokio::test]
async fn a_process_takes_its_locks_again_after_reconnecting() {
    let (first, second) = two().await;
    let (locks, others) = (first.store.locks(), second.store.locks());
    let held = locks.lock("a".into()).await.unwrap();
    let kill = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
                WHERE application_name = 'hotslot locks' AND datname = current_database()";
    query(kill).execute(&second.store.write).await.unwrap();
    // Each process runs a query, because a failed query is how it notices a broken connection.
    until("the locks are taken again", async || {
        let again = locks.elsewhere(vec!["x".into()]).await.is_ok();
        again && others.elsewhere(vec!["a".into()]).await.is_ok_and(|held| !held.is_empty())
    })
    .await;
    assert!(others.try_lock("a".into()).await.unwrap().is_none());
    drop(held);
    until("the lock is released", async || {
        others.try_lock("a".into()).await.is_ok_and(|held| held.is_some())
    })
    .await;
    assert_eq!(first.store.ended().await.unwrap(), [], "both are alive");
}

#[tokio::test]
async fn an_ended_process_is_found_and_a_removed_live_one_gets_a_new_id() {
    let (first, second) = two().await;
    assert_eq!(first.store.ended().await.unwrap(), []);
    let before = second.store.locks.process().unwrap();
    first.store.forget_process(&before).await.unwrap();
    second.store.ended().await.unwrap();
    let this = Process::clone(&second.store.locks.process().unwrap());
    assert_ne!(this, *before, "it has a new id");
    drop((before, second));
    until("the ended process is found", async || {
        first.store.ended().await.unwrap() == std::slice::from_ref(&this)
    })
    .await;
    first.store.forget_process(&this).await.unwrap();
    assert_eq!(first.store.ended().await.unwrap(), []);
}

#[tokio::test]
async fn work_that_began_before_its_process_was_removed_changes_nothing() {
    let (first, second) = two().await;
    first.scan(devices()).await;
    let (worker, this) = (first.store.new_worker(), first.store.locks.process().unwrap());
    let held = first.store.locks().lock("a".into()).await.unwrap();
    second.store.forget_process(&this).await.unwrap();
    let empty = async || first.store.scan(first.host, ScanScope::Everywhere, Vec::new()).await;
    let began_before = async || crate::actor::as_process(worker.clone(), empty()).await;
    assert!(matches!(began_before().await, Err(Error::TakenOver)));
    // The process is on record again under a new id. Only work under the new id may change anything.
    assert!(!first.store.locks().is(Arc::clone(&this.id)).await.unwrap());
    assert!(!first.store.locks().has(&held).await.unwrap());
    assert!(matches!(began_before().await, Err(Error::TakenOver)));
    assert_eq!(first.store.devices().len(), 5);
    let again = first.store.locks().lock("a".into()).await.unwrap();
    drop(held);
    assert!(
        first.store.locks().has(&again).await.unwrap(),
        "dropping the lost lock does not release the new one"
    );
    empty().await.unwrap();
    assert_eq!(first.store.devices().len(), 0);
}

#[tokio::test]
async fn processes_keep_their_lock_connections_alive() {
    let (first, second) = two().await;
    tokio::time::sleep(Duration::from_secs(7)).await;
    assert_eq!(first.store.ended().await.unwrap(), [], "both processes are alive");
    let silent = "SELECT COUNT(*) AS count FROM pg_stat_activity WHERE application_name = 'hotslot locks'
                  AND datname = current_database() AND state_change > now() - INTERVAL '3 seconds'";
    let count: i64 = query(silent).fetch_one(&second.store.read).await.unwrap().try_get("count").unwrap();
    assert_eq!(count, 2);
}

#[tokio::test]
async fn a_process_that_hangs_in_a_transaction_loses_the_write_lock() {
    let (first, second) = two().await;
    first.scan(devices()).await;
    second.store.refresh().await.unwrap();
    let mut draft = first.store.draft().await.unwrap();
    let id = first.at("0000:05:00.0").id;
    draft.edit(id, |row| row.used_at = Some(1));
    let start = Instant::now();
    second.claim(&["0000:05:00.0"]).await.unwrap();
    let waited = start.elapsed();
    assert!((Duration::from_secs(3)..Duration::from_secs(8)).contains(&waited), "{waited:?}");
    assert!(draft.commit().await.is_err());
    first.store.refresh().await.unwrap();
    assert_eq!(first.store.devices(), second.store.devices());
}

/// Returns the next pseudo-random number of a series.
fn next(series: &mut u64) -> usize {
    *series = series.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    (*series >> 33) as usize
}

/// One of the racing processes. It inserts each claimed device into a table, and deletes it there before it frees the
/// device. A device that is claimed twice violates the primary key.
#[tokio::test]
#[ignore = "the test below starts it"]
async fn racer() {
    let Ok(race) = std::env::var("HOTSLOT_RACE") else { return };
    let (seed, url) = race.split_once(' ').unwrap();
    let mut series: u64 = seed.parse().unwrap();
    let records = Records::of(Store::open(url, None).await.unwrap(), None).await;
    let (mut given, mut lost) = (0, 0);
    for _ in 0..claims() / 4 {
        let mut wanted: Vec<_> = records.store.devices_of(records.host);
        let free = wanted.iter().filter(|device| device.status == DeviceStatus::Available).count();
        wanted.retain(|device| free == 0 || device.status == DeviceStatus::Available);
        let wanted = wanted[next(&mut series) % wanted.len()].facts.address.to_string();
        let Some(ids) = records.claim(&[&wanted]).await else {
            lost += 1;
            continue;
        };
        given += 1;
        let row = records.store.attachment(ids[0]).await.unwrap().unwrap();
        let enter = query("INSERT INTO owners (device) VALUES ($1)").bind(row.device.0);
        enter.execute(&records.store.write).await.expect("the device was claimed twice");
        if next(&mut series).is_multiple_of(4) {
            records.attached(ids[0]).await;
        }
        let leave = query("DELETE FROM owners WHERE device = $1").bind(row.device.0);
        assert_eq!(leave.execute(&records.store.write).await.unwrap(), 1);
        records.removed(ids[0]).await;
    }
    println!("\nraced {given} {lost}");
}

#[tokio::test]
async fn four_racing_processes_claim_no_device_twice_and_lose_none() {
    let url = postgres::database().await;
    let records = Records::of(Store::open(&url, None).await.unwrap(), None).await;
    records.scan(devices()).await;
    query("CREATE TABLE owners (device BIGINT PRIMARY KEY)").execute(&records.store.write).await.unwrap();
    let start = Instant::now();
    let racer = |seed: u32| {
        Command::new(std::env::current_exe().unwrap())
            .args(["tests::processes::racer", "--exact", "--ignored", "--nocapture"])
            .env("HOTSLOT_RACE", format!("{seed} {url}"))
            .stdout(Stdio::piped())
            .spawn()
            .unwrap()
    };
    let racers: Vec<_> = (1..=4).map(racer).collect();
    let (mut given, mut lost) = (0, 0);
    for racer in racers {
        let output = tokio::task::spawn_blocking(|| racer.wait_with_output()).await.unwrap().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success(), "{text}");
        let raced = text.lines().find_map(|line| line.strip_prefix("raced ")).unwrap();
        let mut counts = raced.split(' ').map(|count| count.parse::<usize>().unwrap());
        given += counts.next().unwrap();
        lost += counts.next().unwrap();
    }
    println!("{given} claims given, {lost} lost to others, in {:?}", start.elapsed());
    assert_eq!(given + lost, claims());
    assert!(lost > claims() / 20, "the processes compete: {lost}");
    let count = async |statement: &'static str| -> i64 {
        query(statement).fetch_one(&records.store.read).await.unwrap().try_get("count").unwrap()
    };
    let rows = count("SELECT COUNT(*) AS count FROM attachments").await;
    assert_eq!(rows, given as i64, "one row for each claim");
    assert_eq!(count("SELECT COUNT(*) AS count FROM attachments WHERE ended_at IS NULL").await, 0);
    assert_eq!(count("SELECT COUNT(*) AS count FROM owners").await, 0);
    records.store.refresh().await.unwrap();
    assert_eq!(records.statuses(), ["available"; 5], "all are free again");
}
