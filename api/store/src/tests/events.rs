//! Events: which are written, read and pruned.

use hotslot_model::event::EventKind;
use hotslot_model::identity::{Actor, User};
use hotslot_model::rules::Rule;

use crate::writer::Pool;

use super::*;

on_both! {
    each_change_writes_one_event_with_its_actor
    events_are_filtered_and_paged
    events_are_pruned_by_age_and_number_and_ids_are_never_reused
    changes_of_rules_write_events
    events_are_found_by_their_caller_with_an_index
}

async fn each_change_writes_one_event_with_its_actor(records: Records) {
    crate::actor::scope("discovery", records.scan(devices())).await;
    assert_eq!(records.events().await.len(), 5);
    records.scan(devices()).await;
    let five = records.last_event().await;
    assert_eq!(five, EventId(5), "an unchanged scan");
    let vf = crate::actor::scope("request req-1", records.claim(&["0000:04:10.0"])).await.unwrap()[0];
    let claimed_events = records.store.events(five, &EventFilter::default(), 9).await.unwrap();
    assert!(
        claimed_events
            .iter()
            .all(|event| event.actor.who == "request req-1" && event.host.as_deref() == Some("node1"))
    );
    assert_eq!(claimed_events[0].what.attachment, Some(vf));
    assert_eq!(claimed_events[0].what.server, records.at("0000:04:10.0").server());
    let claimed = records.last_event().await;
    assert_eq!(records.claim(&["0000:04:10.1", "0000:04:10.0"]).await, None);
    assert_eq!(records.last_event().await, claimed, "a claim that failed");
    for _ in 0..2 {
        records.attached(vf).await;
    }
    for _ in 0..2 {
        records.settle(vf, Observation::StillThere { reason: "paused".into() }).await;
    }
    let place: PciAddress = "0000:06:00.0".parse().unwrap();
    records.settle(vf, Observation::Verified { address: place, run: Some(7) }).await;
    records.removed(vf).await;
    let expected = [
        "attachment.state - attaching",
        "device.status available unclaimable",
        "device.status available claimed",
        "attachment.state attaching attached",
        "device.status unclaimable unavailable",
        "device.status claimed allocated",
        "attachment.reason - paused",
        "attachment.inner_address - -",
        "attachment.state attached detached",
        "attachment.inner_address - -",
        "device.status unavailable available",
        "device.status allocated available",
    ];
    assert_eq!(records.event_lines(five).await, expected);

    let mut changed = devices();
    changed[1].numa_node = Some(1);
    changed.pop();
    let before = records.last_event().await;
    records.scan(changed).await;
    assert_eq!(records.event_lines(before).await, ["device.removed available -", "device.changed - -"]);
    let events = records.store.events(before, &EventFilter::default(), 9).await.unwrap();
    let (from, to) = (events[1].what.from.as_ref(), events[1].what.to.as_ref());
    assert_eq!((from, to), (Some(&serde_json::json!({})), Some(&serde_json::json!({ "numa_node": 1 }))));
}

async fn events_are_filtered_and_paged(records: Records) {
    records.scan(devices()).await;
    let id = records.claim(&["0000:04:10.0"]).await.unwrap()[0];
    let device = records.at("0000:04:10.0");
    let all = records.events().await;
    // The filter in memory, which is used for followers, gives the same events.
    let count = async |filter: EventFilter| {
        let read = records.store.events(EventId(0), &filter, 100).await.unwrap();
        let given: Vec<_> = all.iter().filter(|event| filter.passes(event)).cloned().collect();
        assert_eq!(read, given, "{filter:?}");
        read.len()
    };
    let any = EventFilter::default;
    assert_eq!(count(EventFilter { attachment: Some(id), ..any() }).await, 1);
    assert_eq!(count(EventFilter { device: Some(device.id), ..any() }).await, 3);
    assert_eq!(count(EventFilter { address: Some(device.facts.address), ..any() }).await, 3);
    assert_eq!(count(EventFilter { server: device.server(), ..any() }).await, 2);
    assert_eq!(count(EventFilter { host: Some("node1".into()), ..any() }).await, 8);
    assert_eq!(count(EventFilter { host: Some("node2".into()), ..any() }).await, 0);
    assert_eq!(count(EventFilter { kind: Some("device".into()), ..any() }).await, 7);
    assert_eq!(count(EventFilter { kind: Some("device.added".into()), ..any() }).await, 5);
    let page = records.store.events(EventId(2), &any(), 2).await.unwrap();
    assert_eq!(page.iter().map(|event| event.id.0).collect::<Vec<_>>(), [3, 4]);
}

async fn events_are_pruned_by_age_and_number_and_ids_are_never_reused(records: Records) {
    records.scan(devices()).await;
    let any = EventFilter::default();
    assert_eq!(records.store.prune_events(0, 100, 100).await.unwrap(), 0, "no event is older than 1970");
    assert_eq!(records.store.prune_events(0, 3, 100).await.unwrap(), 2, "all but the newest three");
    assert_eq!(records.events().await[0].id, EventId(3), "0 means from the oldest event");
    let refused = records.store.events(EventId(1), &any, 9).await.unwrap_err();
    assert!(
        matches!(&refused, Error::Gone(reason) if reason.contains("oldest available event is 3")),
        "{refused}"
    );
    assert_eq!(
        records.store.events(EventId(2), &any, 9).await.unwrap().len(),
        3,
        "no event after 2 was pruned"
    );
    let refused = records.store.events(EventId(6), &any, 9).await.unwrap_err();
    assert!(matches!(&refused, Error::Invalid(reason) if reason.contains("last event is 5")), "{refused}");
    let later = now() + 60_000;
    assert_eq!(records.store.prune_events(later, 100, 2).await.unwrap(), 2, "at most two at a time");
    assert_eq!(records.store.prune_events(later, 100, 2).await.unwrap(), 1);
    assert_eq!(records.events().await, []);
    records.claim(&["0000:05:00.0"]).await.unwrap();
    assert_eq!(records.events().await[0].id, EventId(6));
}

async fn changes_of_rules_write_events(records: Records) {
    let source = hotslot_model::rules::Source::Api { created_at: 1, updated_at: None };
    let id = Uuid::new_v4();
    let kind = hotslot_model::rules::RuleKind::Alias;
    let mut rule = Rule { id, kind, text: r#"{"name":"a"}"#.into(), source };
    records.store.put_rule(&rule).await.unwrap();
    records.store.put_rule(&rule).await.unwrap();
    rule.text = r#"{"name":"b"}"#.into();
    records.store.put_rule(&rule).await.unwrap();
    records.store.remove_rule(&rule).await.unwrap();
    assert_eq!(
        records.event_lines(EventId(0)).await,
        ["rule.added - -", "rule.changed - -", "rule.removed - -"]
    );
    let changed = &records.events().await[1].what;
    assert_eq!(changed.to, Some(serde_json::json!({ "kind": "alias", "entry": { "name": "b" } })));
    assert_eq!(changed.rule, Some(id));
}

async fn events_are_found_by_their_caller_with_an_index(records: Records) {
    records.scan(devices()).await;
    let by = |id: &str, name: &str, project: &str| Actor {
        who: format!("request of {name}"),
        user: Some(User { id: id.into(), name: name.into() }),
        project: Some(project.into()),
        roles: ["member".to_owned(), "operator".to_owned()].into(),
        via: Some("Keystone, TCP 192.0.2.1".into()),
        traceparent: None,
        global_request: Some("req-0a1b2c3d-0000-4000-8000-00000000beef".into()),
    };
    let callers = [by("u1", "alice", "p"), by("u2", "alice", "q"), by("u3", "bob", "p")];
    for caller in &callers {
        let what = hotslot_model::event::of_kind(EventKind::RequestRefused, None, None);
        records.store.record(vec![(Arc::new(caller.clone()), what)]).await.unwrap();
    }
    let all = records.events().await;
    let any = EventFilter::default;
    for (filter, expected) in [
        (EventFilter { user: Some("alice".into()), ..any() }, &[0, 1][..]),
        (EventFilter { user_id: Some("u3".into()), ..any() }, &[2]),
        (EventFilter { project: Some("p".into()), ..any() }, &[0, 2]),
        (EventFilter { user: Some("alice".into()), project: Some("q".into()), ..any() }, &[1]),
        (EventFilter { user: Some("alice".into()), kind: Some("device".into()), ..any() }, &[]),
        (EventFilter { user: Some("eve".into()), ..any() }, &[]),
    ] {
        let read = records.store.events(EventId(0), &filter, 100).await.unwrap();
        let expected: Vec<_> = expected.iter().map(|number| callers[*number].clone()).collect();
        assert_eq!(read.iter().map(|event| event.actor.clone()).collect::<Vec<_>>(), expected, "{filter:?}");
        assert_eq!(read, all.iter().filter(|event| filter.passes(event)).cloned().collect::<Vec<_>>());
        let first = records.store.before_newest(&filter, 1).await.unwrap();
        let newest = records.store.events(first, &filter, 9).await.unwrap();
        assert_eq!(newest, read.last().cloned().into_iter().collect::<Vec<_>>(), "{filter:?}");
    }
    let Pool::Sqlite(pool) = &records.store.read else { return };
    for (filter, index) in [
        (EventFilter { user: Some("alice".into()), ..any() }, "events_by_user "),
        (EventFilter { user_id: Some("u1".into()), ..any() }, "events_by_user_id "),
        (EventFilter { project: Some("p".into()), ..any() }, "events_by_project "),
    ] {
        let plan = format!("EXPLAIN QUERY PLAN {}", crate::events::statement(&filter));
        let plan: Vec<(i64, i64, i64, String)> =
            sqlx::query_as(sqlx::AssertSqlSafe(plan)).fetch_all(&pool.pool).await.unwrap();
        let plan: Vec<_> = plan.into_iter().map(|row| row.3).collect();
        assert!(plan[0].contains(index), "{filter:?}: {plan:?}");
        assert!(!plan.iter().any(|step| step.contains("TEMP B-TREE")), "{plan:?}");
    }
}
