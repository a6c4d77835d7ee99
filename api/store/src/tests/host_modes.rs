//! What may be changed on a host.

use hotslot_model::event::{EventFilter, EventKind};
use hotslot_model::host_mode::HostMode;

use super::*;

on_both! {
    a_host_is_frozen_drained_and_thawed
}

async fn a_host_is_frozen_drained_and_thawed(records: Records) {
    let (store, host) = (&records.store, records.host);
    assert_eq!(store.restriction(host).await.unwrap(), None);
    // Thawing a host that is not frozen changes nothing.
    assert_eq!(store.set_host_mode(host, HostMode::Open, None).await.unwrap(), None);

    let frozen = actor::scope("alice", store.set_host_mode(host, HostMode::Frozen, Some("firmware"))).await;
    let frozen = frozen.unwrap().unwrap();
    assert_eq!(
        (frozen.mode, frozen.by.as_deref(), frozen.reason.as_deref()),
        (HostMode::Frozen, Some("alice"), Some("firmware"))
    );
    // The first one who froze it stays on record.
    let again = actor::scope("bob", store.set_host_mode(host, HostMode::Frozen, Some("firmware"))).await;
    assert_eq!(again.unwrap(), Some(frozen.clone()));
    assert_eq!(store.restrictions().await.unwrap(), [(host, frozen)].into());
    let draining = store.set_host_mode(host, HostMode::Draining, None).await.unwrap().unwrap();
    assert_eq!((draining.mode, draining.reason), (HostMode::Draining, None));
    assert_eq!(store.set_host_mode(host, HostMode::Open, None).await.unwrap(), None);
    assert_eq!(store.restriction(host).await.unwrap(), None);

    let filter = EventFilter { kind: Some(EventKind::HostMode.to_string()), ..EventFilter::default() };
    let events = store.events(EventId(0), &filter, 10).await.unwrap();
    let modes: Vec<_> = events
        .iter()
        .map(|event| {
            let mode = |value: &Option<serde_json::Value>| value.as_ref().unwrap()["mode"].clone();
            assert_eq!(event.what.hypervisor, Some(host));
            (mode(&event.what.from), mode(&event.what.to))
        })
        .collect();
    let modes: Vec<_> =
        modes.iter().map(|(from, to)| (from.as_str().unwrap(), to.as_str().unwrap())).collect();
    assert_eq!(modes, [("open", "frozen"), ("frozen", "draining"), ("draining", "open")]);
}
