//! Transactions that wait for their turn are committed together, and each succeeds or fails alone.

use super::*;

on_both! {
    those_that_wait_are_committed_together_and_the_one_that_fails_is_not
    a_transaction_that_was_given_up_leaves_the_others
    a_change_that_another_one_has_made_already_waits_for_its_commit
}

/// The number of commits in the write-ahead log of SQLite; `None` on PostgreSQL.
fn commits(records: &Records) -> Option<usize> {
    const HEADER: usize = 32;
    const FRAME: usize = 24 + 4096;
    let log = std::fs::read(records._dir.as_ref()?.path().join("db-wal")).unwrap();
    let salt = &log[16..24];
    let frames = log[HEADER..].chunks_exact(FRAME).take_while(|frame| &frame[8..16] == salt);
    // The header of the last page of a commit gives the size of the database in pages.
    Some(frames.filter(|frame| frame[4..8] != [0; 4]).count())
}

/// Claims devices at once, each for a server of its own, while another transaction has the turn.
async fn claim_at_once(records: &Records, addresses: &[&str]) -> Vec<Option<AttachmentId>> {
    let turn = Arc::clone(&records.store.turn).lock_owned().await;
    let mut claims = Vec::new();
    for address in addresses {
        let (store, new, host) = (records.store.clone(), new_attachment(records.at(address)), records.host);
        claims.push(tokio::spawn(async move {
            let reservation = reservation(host, ServerId(Uuid::new_v4()), RequestId(Uuid::new_v4()));
            store.reserve(reservation, &[new]).await.unwrap().map(|rows| rows[0].id)
        }));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    drop(turn);
    let mut done = Vec::new();
    for claim in claims {
        done.push(claim.await.unwrap());
    }
    done
}

async fn those_that_wait_are_committed_together_and_the_one_that_fails_is_not(records: Records) {
    records.scan(devices()).await;
    let (before, last) = (commits(&records), records.last_event().await);
    let claimed =
        claim_at_once(&records, &["0000:04:10.0", "0000:04:10.0", "0000:04:00.0", "0000:05:00.0"]).await;
    assert_eq!(claimed.iter().map(Option::is_some).collect::<Vec<_>>(), [true, false, false, true]);
    assert_eq!(commits(&records), before.map(|before| before + 1), "two are committed, at once");
    let statuses = records.statuses();
    assert_eq!(statuses, ["unclaimable", "claimed", "available", "available", "claimed"]);
    records.store.read_devices().await.unwrap();
    assert_eq!(records.statuses(), statuses, "memory has what the table has");
    for id in claimed.into_iter().flatten() {
        assert_eq!(records.store.attachment(id).await.unwrap().unwrap().state, State::Attaching);
    }
    assert_eq!(records.store.attachments().await.unwrap().len(), 2);
    let events = records.store.events(last, &EventFilter::default(), 100).await.unwrap();
    let ids = events.iter().map(|event| event.id.0);
    assert_eq!(ids.collect::<Vec<_>>(), (last.0 + 1..=last.0 + events.len() as i64).collect::<Vec<_>>());
    assert_eq!(records.last_event().await.0, last.0 + events.len() as i64);
    assert_eq!(*records.store.event_ids().borrow(), records.last_event().await);
}

/// The second of two equal changes has nothing to write, and answers only when the first is committed.
async fn a_change_that_another_one_has_made_already_waits_for_its_commit(records: Records) {
    let mut found = devices();
    for facts in &mut found {
        facts.extra_info = facts.extra_info.with("one_time_use", "true");
    }
    records.scan(found).await;
    let id = records.at("0000:04:10.0").id;
    for _ in 0..20 {
        records.store.quarantine(id, "it does not answer").await.unwrap();
        let clean = async || {
            records.store.cleaned(id).await.unwrap();
            records.store.device(id).unwrap().used_at
        };
        assert_eq!(tokio::join!(clean(), clean()), (None, None));
    }
}

async fn a_transaction_that_was_given_up_leaves_the_others(records: Records) {
    records.scan(devices()).await;
    let turn = Arc::clone(&records.store.turn).lock_owned().await;
    let (store, new, host) =
        (records.store.clone(), new_attachment(records.at("0000:04:10.0")), records.host);
    let first = tokio::spawn(async move {
        let reservation = reservation(host, ServerId(Uuid::new_v4()), RequestId(Uuid::new_v4()));
        store.reserve(reservation, &[new]).await.unwrap().unwrap()
    });
    tokio::time::sleep(Duration::from_millis(20)).await;
    let store = records.store.clone();
    let given_up = tokio::spawn(async move {
        let mut draft = store.draft().await.unwrap();
        let all = query("DELETE FROM attachments");
        assert_eq!(all.execute(&mut draft.tx).await.unwrap(), 1, "it reads what those before it wrote");
        drop(draft);
    });
    tokio::time::sleep(Duration::from_millis(20)).await;
    drop(turn);
    given_up.await.unwrap();
    let row = first.await.unwrap().remove(0);
    assert_eq!(records.store.attachment(row.id).await.unwrap(), Some(row));
    // The connection serves the next one.
    assert!(records.claim(&["0000:05:00.0"]).await.is_some());
}

/// The longest time that closing a database may take.
const LIMIT: Duration = Duration::from_secs(10);

/// Queues tasks for the turn, in their order, and then lets them go.
async fn step() {
    tokio::time::sleep(Duration::from_millis(30)).await;
}

fn claim(
    records: &Records,
    address: &str,
) -> tokio::task::JoinHandle<Result<Option<AttachmentId>, crate::error::Error>> {
    let (store, new, host) = (records.store.clone(), new_attachment(records.at(address)), records.host);
    tokio::spawn(async move {
        let reservation = reservation(host, ServerId(Uuid::new_v4()), RequestId(Uuid::new_v4()));
        Ok(store.reserve(reservation, &[new]).await?.map(|rows| rows[0].id))
    })
}

async fn seq(records: &Records) -> i64 {
    query("SELECT seq FROM commits").fetch_one(&records.store.read).await.unwrap().try_get("seq").unwrap()
}

#[tokio::test]
async fn a_transaction_that_is_not_the_first_knows_what_other_processes_wrote() {
    let (first, second) = super::processes::two().await;
    first.scan(devices()).await;
    second.store.refresh().await.unwrap();
    // The first process writes; the second one has not been notified yet.
    let id = first.claim(&["0000:05:00.0"]).await.unwrap()[0];
    first.attached(id).await;
    let before = seq(&first).await;
    // The second one: a transaction without devices, and one that claims a device, are committed together.
    let turn = Arc::clone(&second.store.turn).lock_owned().await;
    let store = second.store.clone();
    let plain = tokio::spawn(async move { store.try_to_write().await });
    step().await;
    let claimed = claim(&second, "0000:04:10.0");
    step().await;
    drop(turn);
    plain.await.unwrap().unwrap();
    assert!(claimed.await.unwrap().unwrap().is_some());
    let after = seq(&first).await;
    first.store.refresh().await.unwrap();
    second.store.refresh().await.unwrap();
    let (of_first, of_second) = (first.statuses(), second.statuses());
    first.store.read_devices().await.unwrap();
    let table = first.statuses();
    assert!(after > before, "the number of the last commit went from {before} to {after}");
    assert_eq!(of_first, table, "the first process sees the claim of the second");
    assert_eq!(of_second, table, "the second process sees what the first wrote");
}

#[tokio::test]
async fn a_used_device_stays_marked_as_used() {
    let (first, second) = super::processes::two().await;
    let mut seen = devices();
    for facts in &mut seen {
        facts.extra_info = [("one_time_use".to_owned(), "true".to_owned())].into_iter().collect();
    }
    first.scan(seen.clone()).await;
    second.store.refresh().await.unwrap();
    // The first process lends a device that has to be cleaned afterwards.
    let id = first.claim(&["0000:05:00.0"]).await.unwrap()[0];
    first.attached(id).await;
    first.removed(id).await;
    assert!(first.at("0000:05:00.0").used_at.is_some());
    // The second process sees that the device has changed in some other way.
    let changed = seen.iter_mut().find(|facts| facts.address.to_string() == "0000:05:00.0").unwrap();
    changed.numa_node = Some(1);
    let device = second.at("0000:05:00.0").id;
    let turn = Arc::clone(&second.store.turn).lock_owned().await;
    let store = second.store.clone();
    let plain = tokio::spawn(async move { store.try_to_write().await });
    step().await;
    let store = second.store.clone();
    let changed = tokio::spawn(async move {
        let mut draft = store.draft().await?;
        draft.edit(device, |row| row.facts.numa_node = Some(1));
        draft.commit().await
    });
    step().await;
    drop(turn);
    plain.await.unwrap().unwrap();
    changed.await.unwrap().unwrap();
    second.store.read_devices().await.unwrap();
    let row = second.at("0000:05:00.0");
    assert!(row.used_at.is_some(), "the device still has to be cleaned");
}

#[tokio::test]
async fn the_database_closes_while_it_is_read() {
    let records = Records::on_sqlite().await;
    let store = records.store.clone();
    let slow = tokio::spawn(async move {
        let sql = "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c WHERE x < 3000000)
                   SELECT COUNT(*) AS n FROM c";
        query(sql).fetch_all(&store.read).await.map(drop)
    });
    step().await;
    let closed = tokio::time::timeout(LIMIT, records.store.close()).await;
    assert!(closed.is_ok(), "close() does not return");
    slow.await.unwrap().unwrap();
}

#[tokio::test]
async fn the_database_closes_while_it_is_written() {
    let records = Records::on_sqlite().await;
    let turn = Arc::clone(&records.store.turn).lock_owned().await;
    let store = records.store.clone();
    let closing = tokio::spawn(async move { tokio::time::timeout(LIMIT, store.close()).await });
    step().await;
    let store = records.store.clone();
    let late = tokio::spawn(async move { store.try_to_write().await });
    step().await;
    drop(turn);
    late.await.unwrap().unwrap();
    assert!(closing.await.unwrap().is_ok(), "close() does not return");
}

#[tokio::test]
async fn a_statement_that_cannot_be_sent_undoes_no_other_transaction() {
    let records = Records::on_sqlite().await;
    records.scan(devices()).await;
    let turn = Arc::clone(&records.store.turn).lock_owned().await;
    let one = claim(&records, "0000:04:10.0");
    step().await;
    let two = claim(&records, "0000:05:00.0");
    step().await;
    let store = records.store.clone();
    let three = tokio::spawn(async move {
        let mut draft = store.draft().await.unwrap();
        query("SELECT $1").fetch_all(&mut draft.tx).await.map(drop)
    });
    step().await;
    drop(turn);
    three.await.unwrap().unwrap_err();
    for claimed in [one, two] {
        if let Ok(Some(id)) = claimed.await.unwrap() {
            assert!(
                records.store.attachment(id).await.unwrap().is_some(),
                "{id:?} was answered with success"
            );
        }
    }
}

#[tokio::test]
async fn transactions_that_are_lost_to_a_full_disk_return_that_error() {
    let records = Records::on_sqlite().await;
    records.scan(devices()).await;
    let turn = Arc::clone(&records.store.turn).lock_owned().await;
    let one = claim(&records, "0000:04:10.0");
    step().await;
    let store = records.store.clone();
    let two = tokio::spawn(async move {
        let mut tx = store.begin().await?;
        query("PRAGMA max_page_count = 1").fetch_all(&mut tx).await?;
        query("INSERT INTO written SELECT 1").execute(&mut tx).await?;
        let many = "WITH RECURSIVE c(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c WHERE x < 100000)
                    INSERT INTO written SELECT x FROM c";
        query(many).execute(&mut tx).await?;
        store.commit(tx, crate::writer::Written::default()).await
    });
    step().await;
    drop(turn);
    let two = two.await.unwrap();
    two.unwrap_err();
    let one = one.await.unwrap();
    let written = records.store.attachments().await.unwrap().len();
    match one {
        Ok(_) => assert_eq!(written, 1),
        Err(error) => {
            assert_eq!(written, 0);
            assert!(format!("{error:?}").contains("full"), "{error:?}");
        }
    }
}

#[tokio::test]
async fn a_statement_that_fails_after_its_caller_has_gone_costs_no_other_transaction() {
    let records = Records::on_postgres().await;
    records.scan(devices()).await;
    let turn = Arc::clone(&records.store.turn).lock_owned().await;
    let one = claim(&records, "0000:04:10.0");
    step().await;
    let store = records.store.clone();
    let two = tokio::spawn(async move {
        let mut tx = store.begin().await.unwrap();
        let fails = "SELECT CAST(1 / (CASE WHEN pg_sleep(0.5) IS NULL THEN 1 ELSE 0 END) AS BIGINT) AS n";
        query(fails).fetch_all(&mut tx).await.map(drop)
    });
    step().await;
    drop(turn);
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(!two.is_finished());
    two.abort();
    let one = one.await.unwrap();
    assert!(one.unwrap().is_some());
}

#[tokio::test]
async fn a_connection_that_breaks_under_one_transaction_does_not_fail_the_next() {
    let records = Records::on_postgres().await;
    records.scan(devices()).await;
    let turn = Arc::clone(&records.store.turn).lock_owned().await;
    let store = records.store.clone();
    let one = tokio::spawn(async move {
        let mut tx = store.begin().await?;
        let pid = query("SELECT CAST(pg_backend_pid() AS BIGINT) AS pid").fetch_one(&mut tx).await?;
        let pid: i64 = pid.try_get("pid")?;
        query("SELECT pg_terminate_backend(CAST($1 AS INTEGER))").bind(pid).execute(&store.read).await?;
        step().await;
        store.commit(tx, crate::writer::Written::default()).await
    });
    step().await;
    let two = claim(&records, "0000:04:10.0");
    step().await;
    drop(turn);
    let (one, two) = (one.await.unwrap(), two.await.unwrap());
    assert!(one.is_err());
    assert!(two.unwrap().is_some());
}
