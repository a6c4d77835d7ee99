//! Deleting the rows of ended assignments.

use hotslot_model::time::Millis;

use super::*;

on_both! {
    ended_rows_are_deleted_unless_they_are_still_needed
}

async fn ended_rows_are_deleted_unless_they_are_still_needed(records: Records) {
    records.scan(devices()).await;
    let two = records.claim(&["0000:04:10.0", "0000:04:10.1"]).await.unwrap();
    let unbound = records.claim(&["0000:05:00.0"]).await.unwrap()[0];
    for id in [two[0], two[1], unbound] {
        records.attached(id).await;
    }
    let taken = query("UPDATE attachments SET taken = 1 WHERE id = $1").bind(unbound.to_string());
    taken.execute(&records.store.write).await.unwrap();
    records.removed(two[0]).await;
    records.removed(unbound).await;
    let prune = async |before: Millis| {
        let mut count = 0;
        for table in Ended::ALL {
            count += records.store.prune_ended(*table, before, 100).await.unwrap();
        }
        count
    };
    let later = now() + 60_000;
    assert_eq!(prune(0).await, 0, "no row is older than 1970");
    assert_eq!(prune(later).await, 0, "one request has an open row, the other device is not rebound yet");
    let request = records.store.attachment(two[1]).await.unwrap().unwrap().request;
    assert_eq!(records.store.rows_of_request(request).await.unwrap(), 2);
    records.removed(two[1]).await;
    assert_eq!(
        records.store.prune_ended(Ended::Attachments, later, 1).await.unwrap(),
        1,
        "at most one at a time"
    );
    assert_eq!(prune(later).await, 1);
    records.store.rebound(&[unbound]).await.unwrap();
    assert_eq!(prune(later).await, 1);
    assert_eq!(records.store.ended_attachments(None, 9).await.unwrap(), []);
    // An idempotency key refers to the request.
    let key = IdempotencyKey::new(b"k", "/x", b"").unwrap();
    let (server, request) = (ServerId(Uuid::new_v4()), RequestId(Uuid::new_v4()));
    let wanted = new_attachment(records.at("0000:05:00.0"));
    let id = wanted.id;
    let reservation = Reservation { key: Some(&key), ..reservation(records.host, server, request) };
    assert!(records.store.reserve(reservation, &[wanted]).await.unwrap().is_some());
    records.attached(id).await;
    records.removed(id).await;
    assert_eq!(prune(later).await, 0);
}
