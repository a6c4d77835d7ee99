//! The rows of the devices: scans, claims, and what is in memory.

use super::*;

on_both! {
    only_what_changed_is_written
    a_pf_and_its_vfs_exclude_each_other_and_come_back
    a_claim_that_fails_restores_everything_hidden_relatives_too
    a_device_that_goes_or_changes_while_in_use_stays_with_its_owner
    a_device_is_followed_to_its_new_address_with_its_owner
    a_device_that_takes_the_place_of_one_that_is_gone_is_followed
    what_is_in_memory_is_what_a_restart_would_read
    a_change_that_is_cut_off_anywhere_is_in_memory_as_in_the_database
}

async fn only_what_changed_is_written(records: Records) {
    records.scan(devices()).await;
    assert_eq!(records.written().await, 5, "five new devices");
    assert_eq!(records.scan(devices()).await, ScanOutcome::default());
    assert_eq!(records.written().await, 0, "an unchanged scan");

    let mut changed = devices();
    changed[1].numa_node = Some(1);
    records.scan(changed.clone()).await;
    assert_eq!(records.written().await, 1, "one changed device");

    let vf = records.claim(&["0000:04:10.0"]).await.unwrap()[0];
    assert_eq!(records.written().await, 2, "a VF and its PF");
    records.attached(vf).await;
    assert_eq!(records.written().await, 2, "a VF and its PF");
    records.attached(vf).await;
    assert_eq!(records.written().await, 0, "what is so already");
    let second = records.claim(&["0000:04:10.1"]).await.unwrap()[0];
    assert_eq!(records.written().await, 1, "the PF of the first VF is unavailable as it was");
    for id in [second, vf] {
        records.gone(id).await;
    }
    records.written().await;

    records.claim(&["0000:04:00.0"]).await.unwrap();
    assert_eq!(records.written().await, 4, "a PF and its three VFs");

    changed.pop();
    records.scan(changed).await;
    assert_eq!(records.written().await, 1, "a VF that is gone");
}

async fn a_pf_and_its_vfs_exclude_each_other_and_come_back(records: Records) {
    records.scan(devices()).await;
    let vf = records.claim(&["0000:04:10.1"]).await.unwrap()[0];
    assert_eq!(records.statuses(), ["unclaimable", "available", "claimed", "available", "available"]);
    assert_eq!(records.claim(&["0000:04:00.0"]).await, None);
    records.attached(vf).await;
    assert_eq!(records.statuses(), ["unavailable", "available", "allocated", "available", "available"]);
    let other = records.claim(&["0000:04:10.2"]).await.unwrap()[0];
    records.gone(vf).await;
    assert_eq!(records.statuses(), ["unclaimable", "available", "available", "claimed", "available"]);
    records.gone(other).await;
    assert_eq!(records.statuses(), ["available"; 5]);

    let pf = records.claim(&["0000:04:00.0"]).await.unwrap()[0];
    assert_eq!(records.claim(&["0000:04:10.0"]).await, None);
    records.attached(pf).await;
    assert_eq!(records.statuses(), ["allocated", "unavailable", "unavailable", "unavailable", "available"]);
    records.gone(pf).await;
    assert_eq!(records.statuses(), ["available"; 5]);
}

async fn a_claim_that_fails_restores_everything_hidden_relatives_too(records: Records) {
    records.scan(devices()).await;
    records.claim(&["0000:05:00.0"]).await.unwrap();
    let before = records.store.devices_of(records.host);
    records.written().await;
    // The VFs could be had; the last one is another's.
    assert_eq!(records.claim(&["0000:04:10.0", "0000:04:10.1", "0000:05:00.0"]).await, None);
    // A PF and its own VF.
    assert_eq!(records.claim(&["0000:04:00.0", "0000:04:10.0"]).await, None);
    assert_eq!(records.store.devices_of(records.host), before);
    records.store.read_devices().await.unwrap();
    assert_eq!(records.store.devices_of(records.host), before, "in the database too");
}

async fn a_device_that_goes_or_changes_while_in_use_stays_with_its_owner(records: Records) {
    records.scan(devices()).await;
    let id = records.claim(&["0000:05:00.0"]).await.unwrap()[0];
    records.attached(id).await;
    let mut without = devices();
    without.remove(1);
    let outcome = records.scan(without.clone()).await;
    assert_eq!((outcome.gone_in_use, outcome.removed), (1, 0));
    let device = records.at("0000:05:00.0");
    assert!(device.gone_at.is_some() && device.owner.is_some());
    records.written().await;
    records.scan(without).await;
    assert_eq!(records.written().await, 0, "it has been said");

    // It is back, and another one: what is new waits.
    let mut other = devices();
    other[1].product_id = "1533".parse().unwrap();
    assert_eq!(records.scan(other.clone()).await.changed_in_use, 1);
    assert_eq!(records.at("0000:05:00.0").facts.product_id.to_string(), "10c9");
    records.gone(id).await;
    records.scan(other).await;
    assert_eq!(records.at("0000:05:00.0").facts.product_id.to_string(), "1533");
}

async fn a_device_is_followed_to_its_new_address_with_its_owner(records: Records) {
    let with = |address: &str, serial: &str| {
        let mut facts = facts(address, DevType::Pci, None);
        facts.extra_info = facts.extra_info.with("card_serial_number", serial);
        facts
    };
    records.scan(vec![with("0000:05:00.0", "S1"), with("0000:06:00.0", "S2")]).await;
    let (one, two) = (records.at("0000:05:00.0"), records.at("0000:06:00.0"));
    let id = records.claim(&["0000:05:00.0"]).await.unwrap()[0];
    records.attached(id).await;
    // They changed places, and the owner stays the owner.
    records.scan(vec![with("0000:05:00.0", "S2"), with("0000:06:00.0", "S1")]).await;
    let (there, here) = (records.at("0000:06:00.0"), records.at("0000:05:00.0"));
    assert_eq!((there.id, here.id), (one.id, two.id));
    assert!(there.owner.is_some() && here.owner.is_none());
    let before = records.store.devices();
    records.store.read_devices().await.unwrap();
    assert_eq!(records.store.devices(), before);
}

async fn a_device_that_takes_the_place_of_one_that_is_gone_is_followed(records: Records) {
    let with = |address: &str, serial: &str| {
        let mut facts = facts(address, DevType::Pci, None);
        facts.extra_info = facts.extra_info.with("card_serial_number", serial);
        facts
    };
    for order in [["0000:05:00.0", "0000:06:00.0"], ["0000:06:00.0", "0000:05:00.0"]] {
        let [first, second] = order;
        records.scan(vec![with(first, "S1"), with(second, "S2")]).await;
        let one = records.at(first).id;
        // The second was pulled out, and the first got its address.
        let outcome = records.scan(vec![with(second, "S1")]).await;
        assert_eq!((outcome.changed, outcome.removed), (1, 1), "{order:?}");
        assert_eq!(records.at(second).id, one);
        assert_eq!(records.store.devices().len(), 1);
        records.scan(Vec::new()).await;
    }
    // One that a server has keeps its address until it is free.
    records.scan(vec![with("0000:05:00.0", "S1"), with("0000:06:00.0", "S2")]).await;
    let id = records.claim(&["0000:06:00.0"]).await.unwrap()[0];
    records.scan(vec![with("0000:06:00.0", "S1")]).await;
    let device = records.at("0000:06:00.0");
    assert!(device.owner.is_some() && device.gone_at.is_some());
    assert_eq!(records.store.devices().len(), 1);
    records.gone(id).await;
    records.scan(vec![with("0000:06:00.0", "S1")]).await;
    assert_eq!(records.at("0000:06:00.0").facts.extra_info.get("card_serial_number"), Some("S1"));
}

async fn what_is_in_memory_is_what_a_restart_would_read(records: Records) {
    records.scan(devices()).await;
    let id = records.claim(&["0000:04:10.0"]).await.unwrap()[0];
    records.attached(id).await;
    let before = records.store.devices();
    records.store.read_devices().await.unwrap();
    assert_eq!(records.store.devices(), before);
}

/// Does some work until it waits for so many things; none when it was cut off there.
async fn cut_off<T>(mut waits: usize, work: impl Future<Output = T>) -> Option<T> {
    let mut work = std::pin::pin!(work);
    let poll = |context: &mut std::task::Context<'_>| {
        if waits == 0 {
            return std::task::Poll::Ready(None);
        }
        waits -= 1;
        work.as_mut().poll(context).map(Some)
    };
    std::future::poll_fn(poll).await
}

async fn a_change_that_is_cut_off_anywhere_is_in_memory_as_in_the_database(records: Records) {
    records.scan(devices()).await;
    let store = &records.store;
    let (mut differ, mut waits) = (Vec::new(), 1);
    // Where it waits, and how often, is not the same each time.
    for number in 0..100 {
        let mut seen = devices();
        seen[1].numa_node = Some(number);
        let done = cut_off(waits, store.scan(records.host, ScanScope::Everywhere, seen)).await;
        let agrees = async || {
            let rows = query("SELECT * FROM pci_devices WHERE deleted = 0 ORDER BY address");
            let rows = crate::devices::devices(&rows.fetch_all(&store.read).await.unwrap()).unwrap();
            let last = store.event_bounds().await.unwrap().last;
            rows == store.devices() && last == *store.event_ids().borrow()
        };
        // What was begun may still be under way.
        let mut tries = 0;
        while !agrees().await && tries < 50 {
            tries += 1;
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        if !agrees().await {
            differ.push(waits);
        }
        waits = if done.is_some() { 1 } else { waits + 1 };
    }
    assert!(
        differ.is_empty(),
        "cut off at these points, what is in memory is not what is in the database: {differ:?}"
    );
}
