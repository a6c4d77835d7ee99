//! The stored answers to repeated requests.

use super::*;

on_both! {
    the_oldest_answers_are_deleted
}

async fn the_oldest_answers_are_deleted(records: Records) {
    let answer = Answer { status: 200, body: "{}".into(), location: None };
    let key = |n: u32| IdempotencyKey::new(format!("k{n}").as_bytes(), "/x", b"{}").unwrap();
    for n in 0..5 {
        records.store.keep(&key(n), &answer, 0, 2).await.unwrap();
        // The ages have a resolution of one millisecond.
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    let mut known = Vec::new();
    for n in 0..5 {
        known.extend(records.store.kept(&key(n), 0).await.unwrap().map(|kept| (n, kept.answer)));
    }
    assert_eq!(known, [(3, Some(answer.clone())), (4, Some(answer.clone()))]);
    records.store.keep(&key(5), &answer, now() + 1, 2).await.unwrap();
    assert_eq!(records.store.kept(&key(4), 0).await.unwrap(), None);
}
