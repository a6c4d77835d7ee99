//! Device rows: scans, claims, and the rows in memory.

use super::*;

on_both! {
    only_changed_rows_are_written
    a_pf_and_its_vfs_exclude_each_other_until_they_are_free
    a_failed_claim_changes_no_device_and_no_relative
    a_device_that_disappears_or_changes_while_in_use_keeps_its_owner
    a_device_that_moves_keeps_its_row_and_owner
    a_device_that_moves_to_the_address_of_a_removed_one_is_recognised
    a_row_that_stays_keeps_its_address_from_devices_that_move_there
    a_quarantine_keeps_the_scrub_that_is_due_and_each_use_needs_its_own
    memory_equals_what_a_restart_reads
    memory_equals_the_database_after_a_change_is_cancelled_at_any_point
}

async fn only_changed_rows_are_written(records: Records) {
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
    assert_eq!(records.written().await, 0, "no change");
    let second = records.claim(&["0000:04:10.1"]).await.unwrap()[0];
    assert_eq!(records.written().await, 1, "the PF of the first VF is unavailable as it was");
    for id in [second, vf] {
        records.removed(id).await;
    }
    records.written().await;

    records.claim(&["0000:04:00.0"]).await.unwrap();
    assert_eq!(records.written().await, 4, "a PF and its three VFs");

    changed.pop();
    records.scan(changed).await;
    assert_eq!(records.written().await, 1, "a VF that is gone");
}

async fn a_pf_and_its_vfs_exclude_each_other_until_they_are_free(records: Records) {
    records.scan(devices()).await;
    let vf = records.claim(&["0000:04:10.1"]).await.unwrap()[0];
    assert_eq!(records.statuses(), ["unclaimable", "available", "claimed", "available", "available"]);
    assert_eq!(records.claim(&["0000:04:00.0"]).await, None);
    records.attached(vf).await;
    assert_eq!(records.statuses(), ["unavailable", "available", "allocated", "available", "available"]);
    let other = records.claim(&["0000:04:10.2"]).await.unwrap()[0];
    records.removed(vf).await;
    assert_eq!(records.statuses(), ["unclaimable", "available", "available", "claimed", "available"]);
    records.removed(other).await;
    assert_eq!(records.statuses(), ["available"; 5]);

    let pf = records.claim(&["0000:04:00.0"]).await.unwrap()[0];
    assert_eq!(records.claim(&["0000:04:10.0"]).await, None);
    records.attached(pf).await;
    assert_eq!(records.statuses(), ["allocated", "unavailable", "unavailable", "unavailable", "available"]);
    records.removed(pf).await;
    assert_eq!(records.statuses(), ["available"; 5]);
}

async fn a_failed_claim_changes_no_device_and_no_relative(records: Records) {
    records.scan(devices()).await;
    records.claim(&["0000:05:00.0"]).await.unwrap();
    let before = records.store.devices_of(records.host);
    records.written().await;
    // The VFs are free; the last device is not.
    assert_eq!(records.claim(&["0000:04:10.0", "0000:04:10.1", "0000:05:00.0"]).await, None);
    // A PF and its own VF.
    assert_eq!(records.claim(&["0000:04:00.0", "0000:04:10.0"]).await, None);
    assert_eq!(records.store.devices_of(records.host), before);
    records.store.read_devices().await.unwrap();
    assert_eq!(records.store.devices_of(records.host), before, "in the database too");
}

async fn a_device_that_disappears_or_changes_while_in_use_keeps_its_owner(records: Records) {
    records.scan(devices()).await;
    let id = records.claim(&["0000:05:00.0"]).await.unwrap()[0];
    records.attached(id).await;
    let mut without = devices();
    without.remove(1);
    let outcome = records.scan(without.clone()).await;
    assert_eq!((outcome.gone_in_use.len(), outcome.removed), (1, 0));
    let device = records.at("0000:05:00.0");
    assert!(device.gone_at.is_some() && device.owner.is_some());
    records.written().await;
    records.scan(without).await;
    assert_eq!(records.written().await, 0, "the loss is already recorded");

    // Another device is at the address: its facts are recorded when the old one is free.
    let mut other = devices();
    other[1].product_id = "1533".parse().unwrap();
    assert_eq!(records.scan(other.clone()).await.changed_in_use, 1);
    assert_eq!(records.at("0000:05:00.0").facts.product_id.to_string(), "10c9");
    records.removed(id).await;
    records.scan(other).await;
    assert_eq!(records.at("0000:05:00.0").facts.product_id.to_string(), "1533");
}

/// Returns the facts of a device with a serial number.
fn card(address: &str, serial: &str) -> DeviceFacts {
    let mut facts = facts(address, DevType::Pci, None);
    facts.extra_info = facts.extra_info.with("card_serial_number", serial);
    facts
}

async fn a_device_that_moves_keeps_its_row_and_owner(records: Records) {
    records.scan(vec![card("0000:05:00.0", "S1"), card("0000:06:00.0", "S2")]).await;
    let (first, second) = (records.at("0000:05:00.0"), records.at("0000:06:00.0"));
    let id = records.claim(&["0000:05:00.0"]).await.unwrap()[0];
    records.attached(id).await;
    // The devices exchange addresses; the owner stays with its device.
    records.scan(vec![card("0000:05:00.0", "S2"), card("0000:06:00.0", "S1")]).await;
    let (there, here) = (records.at("0000:06:00.0"), records.at("0000:05:00.0"));
    assert_eq!((there.id, here.id), (first.id, second.id));
    assert!(there.owner.is_some() && here.owner.is_none());
    let before = records.store.devices();
    records.store.read_devices().await.unwrap();
    assert_eq!(records.store.devices(), before);
}

async fn a_device_that_moves_to_the_address_of_a_removed_one_is_recognised(records: Records) {
    for order in [["0000:05:00.0", "0000:06:00.0"], ["0000:06:00.0", "0000:05:00.0"]] {
        let [first, second] = order;
        records.scan(vec![card(first, "S1"), card(second, "S2")]).await;
        let id = records.at(first).id;
        // The second device is removed, and the first one moves to its address.
        let outcome = records.scan(vec![card(second, "S1")]).await;
        assert_eq!((outcome.changed, outcome.removed), (1, 1), "{order:?}");
        assert_eq!(records.at(second).id, id);
        assert_eq!(records.store.devices().len(), 1);
        records.scan(Vec::new()).await;
    }
    // A device in use keeps its address until it is free.
    records.scan(vec![card("0000:05:00.0", "S1"), card("0000:06:00.0", "S2")]).await;
    let id = records.claim(&["0000:06:00.0"]).await.unwrap()[0];
    records.scan(vec![card("0000:06:00.0", "S1")]).await;
    let device = records.at("0000:06:00.0");
    assert!(device.owner.is_some() && device.gone_at.is_some());
    assert_eq!(records.store.devices().len(), 1);
    records.removed(id).await;
    records.scan(vec![card("0000:06:00.0", "S1")]).await;
    assert_eq!(records.at("0000:06:00.0").facts.extra_info.get("card_serial_number"), Some("S1"));
}

async fn a_row_that_stays_keeps_its_address_from_devices_that_move_there(records: Records) {
    let (first, second) = ("0000:05:00.0", "0000:06:00.0");
    records.scan(vec![card(first, "S1"), card(second, "S2")]).await;
    let ids = records.claim(&[first, second]).await.unwrap();
    // The second device moves to the address of the first one, and a new one appears at its own address.
    let seen = || vec![card(first, "S2"), card(second, "S3")];
    assert_eq!(records.scan(seen()).await.gone_in_use.len(), 2);
    let has_serials = |serials: [&str; 2]| {
        for (address, serial) in [first, second].into_iter().zip(serials) {
            assert_eq!(
                records.at(address).facts.extra_info.get("card_serial_number"),
                Some(serial),
                "{address}"
            );
        }
    };
    has_serials(["S1", "S2"]);
    for id in ids {
        records.removed(id).await;
    }
    records.scan(seen()).await;
    has_serials(["S2", "S3"]);

    // The same for a device that waits to be cleaned.
    records.scan(Vec::new()).await;
    let once = |address: &str, serial: &str| {
        let mut facts = card(address, serial);
        facts.extra_info = facts.extra_info.with("one_time_use", "true");
        facts
    };
    records.scan(vec![once(first, "S1"), once(second, "S2")]).await;
    let id = records.claim(&[first]).await.unwrap()[0];
    records.attached(id).await;
    records.removed(id).await;
    assert_eq!(records.scan(vec![once(first, "S2")]).await.gone_in_use.len(), 1);
    assert_eq!(records.at(first).facts.extra_info.get("card_serial_number"), Some("S1"));
}

async fn a_quarantine_keeps_the_scrub_that_is_due_and_each_use_needs_its_own(records: Records) {
    records.scan(devices()).await;
    let store = &records.store;
    let id = records.at("0000:04:10.0").id;
    let row = || {
        let row = store.device(id).unwrap();
        (row.scrub, row.quarantine.is_some(), row.used_at.is_some())
    };
    store.quarantine(id, "it does not answer").await.unwrap();
    store.scrub(id).await.unwrap();
    assert_eq!(row(), (true, false, true));
    store.quarantine(id, "it has fewer lanes").await.unwrap();
    assert_eq!(row(), (true, true, true));
    store.not_scrubbed(id, "it failed").await.unwrap();
    assert_eq!(row(), (true, true, true), "it does not run in quarantine");
    store.cleaned(id).await.unwrap();
    assert_eq!(row(), (true, false, true), "it works, and its scrub is due");
    let used_at = store.device(id).unwrap().used_at;
    store.scrubbed(id, used_at.map(|time| time - 1)).await.unwrap();
    assert_eq!(row(), (true, false, true), "that was the scrub after an earlier use");
    store.not_scrubbed(id, "it failed").await.unwrap();
    assert_eq!(row(), (false, true, true));
    store.scrub(id).await.unwrap();
    store.quarantine(id, "it has fewer lanes").await.unwrap();
    store.scrubbed(id, used_at).await.unwrap();
    assert_eq!(row(), (false, true, true), "a scrub does not end another quarantine");
    store.cleaned(id).await.unwrap();
    assert_eq!(row(), (false, false, false));
}

async fn memory_equals_what_a_restart_reads(records: Records) {
    records.scan(devices()).await;
    let id = records.claim(&["0000:04:10.0"]).await.unwrap()[0];
    records.attached(id).await;
    let before = records.store.devices();
    records.store.read_devices().await.unwrap();
    assert_eq!(records.store.devices(), before);
}

/// Polls a future at most `waits` times. Returns `None` when it is cancelled before it is ready.
async fn cancelled_after<T>(mut waits: usize, work: impl Future<Output = T>) -> Option<T> {
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

async fn memory_equals_the_database_after_a_change_is_cancelled_at_any_point(records: Records) {
    records.scan(devices()).await;
    let store = &records.store;
    let (mut differ, mut waits) = (Vec::new(), 1);
    // The number of polls and the points where it waits vary.
    for number in 0..100 {
        let mut seen = devices();
        seen[1].numa_node = Some(number);
        let done = cancelled_after(waits, store.scan(records.host, ScanScope::Everywhere, seen)).await;
        let agrees = async || {
            let rows = query("SELECT * FROM pci_devices WHERE deleted = 0 ORDER BY address");
            let rows = crate::devices::devices(&rows.fetch_all(&store.read).await.unwrap()).unwrap();
            let last = store.event_bounds().await.unwrap().last;
            rows == store.devices() && last == *store.event_ids().borrow()
        };
        // A commit that has begun may still be running.
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
        "when cancelled after these numbers of polls, memory differs from the database: {differ:?}"
    );
}
