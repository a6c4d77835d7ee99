//! Transactions that wait for their turn are committed together, and each succeeds or fails alone.

use super::*;

on_both! {
    those_that_wait_are_committed_together_and_the_one_that_fails_is_not
    a_transaction_that_was_given_up_leaves_the_others
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
