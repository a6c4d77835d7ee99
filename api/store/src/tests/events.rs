//! Events: which are written, read and pruned.

use hotslot_model::rules::Rule;

use super::*;

on_both! {
    each_change_writes_one_event_with_its_actor
    events_are_filtered_and_paged
    events_are_pruned_by_age_and_number_and_ids_are_never_reused
    changes_of_rules_write_events
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
            .all(|event| event.who == "request req-1" && event.host.as_deref() == Some("node1"))
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
