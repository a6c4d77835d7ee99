//! What is written, counted by the database; and any sequence of deeds keeps the rules. All on both databases.

use std::collections::BTreeMap;
use std::fs::File;
use std::str::FromStr as _;
use std::sync::Arc;
use std::time::Duration;

use hotslot_driver::pci::PciAddress;
use hotslot_model::assignment::{
    Adoption, Attachment, InnerSource, Network, NewAttachment, Observation, Reservation, State,
};
use hotslot_model::device::{DevType, Device, DeviceFacts, DeviceStatus, Owner};
use hotslot_model::event::{Event, EventFilter, EventKind};
use hotslot_model::id::{AttachmentId, DeviceId, EventId, HypervisorId, RequestId, ServerId};
use hotslot_model::idempotency::{Answer, IdempotencyKey};
use hotslot_model::rules::Rule;
use hotslot_model::texts::Texts;
use hotslot_model::time::Millis;
use proptest::prelude::*;
use sqlx::Connection as _;
use sqlx::sqlite::SqliteConnectOptions;
use uuid::Uuid;

use self::cyborg::*;
use super::*;
use crate::sql::*;

mod cyborg;
#[expect(unreachable_pub, dead_code, reason = "the black-box tests use it too, and all of it")]
#[path = "../../../tests/src/postgres.rs"]
mod postgres;
mod processes;

/// The observations that the table of states has rows for.
fn observations() -> Vec<Observation> {
    let rows: Vec<serde_json::Value> =
        serde_json::from_str(include_str!("../../model/tests/data/attachment_state.json")).unwrap();
    rows.iter().map(|row| serde_json::from_value(row["seen"].clone()).unwrap()).collect()
}

/// Runs tests on SQLite and on PostgreSQL, each with a database of its own.
macro_rules! on_both {
    ($($name:ident)*) => {
        $(mod $name {
            #[tokio::test]
            async fn on_sqlite() {
                super::$name(super::Records::on_sqlite().await).await;
            }

            #[tokio::test]
            async fn on_postgres() {
                super::$name(super::Records::on_postgres().await).await;
            }
        })*
    };
}
on_both! {
    only_what_changed_is_written
    a_pf_and_its_vfs_exclude_each_other_and_come_back
    a_claim_that_fails_restores_everything_hidden_relatives_too
    a_device_that_goes_or_changes_while_in_use_stays_with_its_owner
    a_device_is_followed_to_its_new_address_with_its_owner
    a_device_that_takes_the_place_of_one_that_is_gone_is_followed
    what_was_chosen_is_claimed_and_nothing_else_that_came_there
    what_is_in_memory_is_what_a_restart_would_read
    a_change_that_is_cut_off_anywhere_is_in_memory_as_in_the_database
    what_a_domain_has_is_adopted_once_and_only_where_it_is_free
    a_device_that_comes_back_with_its_domain_is_attached_again_under_its_id
    a_holder_has_again_what_came_back_as_long_as_it_is_free_for_it
    what_has_ended_is_forgotten_but_for_what_is_counted_or_owed
    every_change_is_told_once_with_who_did_it_and_what_did_not_change_is_not
    events_are_narrowed_and_come_in_pages
    events_are_pruned_by_age_and_number_and_their_ids_are_never_given_again
    a_change_of_the_rules_is_told
    of_too_many_answers_the_oldest_are_forgotten
    an_accelerator_has_one_name_and_holds_what_one_request_gave_it
    a_device_that_comes_back_is_the_one_that_an_accelerator_is
    a_device_in_parts_is_its_hosts_until_the_last_is_gone
    a_device_profile_stays_as_long_as_requests_ask_by_it
    a_request_that_holds_a_device_is_not_bound_unbound_or_deleted
    cards_are_disabled_and_attributes_kept
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
            let rows = devices::devices(&rows.fetch_all(&store.read).await.unwrap()).unwrap();
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

/// A database of its own, with a host.
struct Records {
    store: Store,
    host: HypervisorId,
    _dir: Option<tempfile::TempDir>,
}

fn reservation(hypervisor: HypervisorId, server: ServerId, request: RequestId) -> Reservation<'static> {
    Reservation { hypervisor, server, request, persistent: true, key: None, holder: None }
}

impl Records {
    async fn on_sqlite() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let lock = File::create(dir.path().join("lock")).unwrap();
        let url = format!("sqlite://{}", dir.path().join("db").display());
        let store = Store::open(&url, Some(lock)).await.unwrap();
        // Every row of pci_devices that is written is counted, by the one connection that writes.
        for line in [
            "CREATE TEMP TABLE written (id BIGINT)",
            "CREATE TEMP TRIGGER inserted AFTER INSERT ON main.pci_devices
             BEGIN INSERT INTO written VALUES (new.id); END",
            "CREATE TEMP TRIGGER updated AFTER UPDATE ON main.pci_devices
             BEGIN INSERT INTO written VALUES (new.id); END",
        ] {
            query(line).execute(&store.write).await.unwrap();
        }
        Self::of(store, Some(dir)).await
    }

    async fn on_postgres() -> Self {
        let store = Store::open(&postgres::database().await, None).await.unwrap();
        for line in [
            "CREATE TABLE written (id BIGINT)",
            "CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS
             'BEGIN INSERT INTO written VALUES (new.id); RETURN new; END'",
            "CREATE TRIGGER noted AFTER INSERT OR UPDATE ON pci_devices FOR EACH ROW EXECUTE FUNCTION note()",
        ] {
            query(line).execute(&store.write).await.unwrap();
        }
        Self::of(store, None).await
    }

    async fn of(store: Store, dir: Option<tempfile::TempDir>) -> Self {
        let host = store.hypervisor("node1", "sim:///x").await.unwrap().id;
        Self { store, host, _dir: dir }
    }
}

fn facts(address: &str, dev_type: DevType, parent: Option<&str>) -> DeviceFacts {
    DeviceFacts {
        address: address.parse().unwrap(),
        vendor_id: "8086".parse().unwrap(),
        product_id: if dev_type == DevType::Vf { "10ca" } else { "10c9" }.parse().unwrap(),
        dev_type,
        numa_node: None,
        parent_addr: parent.map(|parent| parent.parse().unwrap()),
        extra_info: Texts::default(),
    }
}

/// A PF with three VFs, and a device of its own.
fn devices() -> Vec<DeviceFacts> {
    let pf = "0000:04:00.0";
    let mut devices = vec![facts(pf, DevType::Pf, None), facts("0000:05:00.0", DevType::Pci, None)];
    devices.extend((0..3).map(|n| facts(&format!("0000:04:10.{n}"), DevType::Vf, Some(pf))));
    devices
}

impl Records {
    /// How many rows were written since it was last asked.
    async fn written(&self) -> i64 {
        let count = query("SELECT COUNT(*) AS count FROM written").fetch_one(&self.store.write).await;
        query("DELETE FROM written").execute(&self.store.write).await.unwrap();
        count.unwrap().try_get("count").unwrap()
    }

    async fn scan(&self, seen: Vec<DeviceFacts>) -> ScanOutcome {
        self.store.scan(self.host, ScanScope::Everywhere, seen).await.unwrap()
    }

    fn at(&self, address: &str) -> Arc<Device> {
        let address: PciAddress = address.parse().unwrap();
        let mut devices = self.store.devices_of(self.host);
        devices.retain(|device| device.facts.address == address);
        devices.pop().unwrap()
    }

    /// Claims a device; none when it is not free.
    async fn claim(&self, addresses: &[&str]) -> Option<Vec<AttachmentId>> {
        let wanted: Vec<_> = addresses
            .iter()
            .map(|address| NewAttachment {
                id: AttachmentId(Uuid::new_v4()),
                device: self.at(address),
                alias: "a".into(),
                managed: true,
                network: None,
                whole_group: false,
                taken: false,
                siblings: Vec::new(),
            })
            .collect();
        let (server, request) = (ServerId(Uuid::new_v4()), RequestId(Uuid::new_v4()));
        let reservation = reservation(self.host, server, request);
        let done = self.store.reserve(reservation, &wanted).await.unwrap();
        done.then(|| wanted.iter().map(|new| new.id).collect())
    }

    async fn settle(&self, id: AttachmentId, seen: Observation) {
        self.store.settle(&[(id, seen)]).await.unwrap();
    }

    async fn attached(&self, id: AttachmentId) {
        self.settle(id, Observation::Present { inner: None, only_in_definition: false, same_run: true })
            .await;
    }

    /// All events that are kept, in their order.
    async fn events(&self) -> Vec<Event> {
        self.store.events(EventId(0), &EventFilter::default(), 10_000).await.unwrap()
    }

    /// The kinds of the events after one, with what came of it.
    async fn told(&self, since: EventId) -> Vec<String> {
        let events = self.store.events(since, &EventFilter::default(), 10_000).await.unwrap();
        let text = |value: &Option<serde_json::Value>| {
            value.as_ref().and_then(|value| value.as_str()).unwrap_or("-").to_owned()
        };
        let line = |event: &Event| {
            format!("{} {} {}", event.what.kind, text(&event.what.from), text(&event.what.to))
        };
        events.iter().map(line).collect()
    }

    async fn last_event(&self) -> EventId {
        self.store.event_bounds().await.unwrap().last
    }

    async fn gone(&self, id: AttachmentId) {
        self.settle(id, Observation::Removed { reason: None }).await;
    }

    fn statuses(&self) -> Vec<&'static str> {
        self.store.devices_of(self.host).iter().map(|device| device.status.as_str()).collect()
    }
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

async fn what_was_chosen_is_claimed_and_nothing_else_that_came_there(records: Records) {
    records.scan(devices()).await;
    let chosen = records.at("0000:05:00.0");
    let mut other = devices();
    other[1].product_id = "1533".parse().unwrap();
    records.scan(other).await;
    let wanted = NewAttachment {
        id: AttachmentId(Uuid::new_v4()),
        device: chosen,
        alias: "a".into(),
        managed: true,
        network: None,
        whole_group: false,
        taken: false,
        siblings: Vec::new(),
    };
    let (server, request) = (ServerId(Uuid::new_v4()), RequestId(Uuid::new_v4()));
    let reservation = reservation(records.host, server, request);
    assert!(!records.store.reserve(reservation, &[wanted]).await.unwrap());
}

async fn what_a_domain_has_is_adopted_once_and_only_where_it_is_free(records: Records) {
    records.scan(devices()).await;
    let taken = records.claim(&["0000:05:00.0"]).await.unwrap()[0];
    let found = |address: &str, mac: Option<&str>| Adoption {
        id: AttachmentId(Uuid::new_v4()),
        hypervisor: records.host,
        server: ServerId(Uuid::new_v4()),
        address: address.parse().unwrap(),
        persistent: true,
        managed: true,
        network: mac.map(|mac| Network {
            mac: mac.parse().unwrap(),
            vlan: None,
            physical_network: None,
            trusted: None,
        }),
        inner: Some("0000:06:00.0".parse().unwrap()),
    };
    let mac = Some("52:54:00:c0:ff:ee");
    let vf = found("0000:04:10.0", mac);
    assert!(records.store.adopt(&vf).await.unwrap());
    let row = records.store.attachment(vf.id).await.unwrap().unwrap();
    assert_eq!(
        (row.state, row.server, row.alias.as_str(), row.persistent),
        (State::Attached, vf.server, "", true)
    );
    let device = records.at("0000:04:10.0");
    assert_eq!((device.status, device.server()), (DeviceStatus::Allocated, Some(vf.server)));
    assert_eq!(device.request, Some(row.request));
    assert_eq!(records.at("0000:04:00.0").status, DeviceStatus::Unavailable);
    let before = records.statuses();
    for refused in [
        vf.clone(),
        found("0000:04:10.0", None),
        found("0000:05:00.0", None),
        found("0000:04:00.0", None),
        found("0000:ff:00.0", None),
        found("0000:04:10.1", mac),
        Adoption { id: taken, ..found("0000:04:10.1", None) },
    ] {
        assert!(!records.store.adopt(&refused).await.unwrap(), "{refused:?}");
        assert_eq!(records.statuses(), before);
    }
    records.settle(vf.id, Observation::AskedToDetach).await;
    records.gone(vf.id).await;
    assert_eq!(records.at("0000:04:10.0").status, DeviceStatus::Available);
    assert!(!records.store.adopt(&vf).await.unwrap(), "what has ended stays ended");
}

/// An attachment as a domain's documents tell of it.
fn as_found(records: &Records, row: &Attachment, address: &str) -> Adoption {
    Adoption {
        id: row.id,
        hypervisor: records.host,
        server: row.server,
        address: address.parse().unwrap(),
        persistent: false,
        managed: true,
        network: None,
        inner: None,
    }
}

async fn a_device_that_comes_back_with_its_domain_is_attached_again_under_its_id(records: Records) {
    records.scan(devices()).await;
    let (one, other) = ("0000:05:00.0", "0000:04:10.0");
    // Asked to go, or its attach failed: it is nobody's.
    let asked = records.claim(&[one]).await.unwrap()[0];
    records.attached(asked).await;
    records.settle(asked, Observation::AskedToDetach).await;
    records.settle(asked, Observation::Absent).await;
    let failed = records.claim(&[one]).await.unwrap()[0];
    records.settle(failed, Observation::Absent).await;
    for id in [asked, failed] {
        let row = records.store.attachment(id).await.unwrap().unwrap();
        assert!(row.state.is_final() && !row.unasked, "{row:?}");
        assert!(!records.store.adopt(&as_found(&records, &row, one)).await.unwrap());
    }
    for ending in [Observation::Absent, Observation::DomainStopped, Observation::DomainGone] {
        let id = records.claim(&[one]).await.unwrap()[0];
        records.attached(id).await;
        records.settle(id, ending).await;
        let was = records.store.attachment(id).await.unwrap().unwrap();
        assert!(was.unasked, "{was:?}");
        // On another host it is another device.
        assert!(records.store.adopt(&as_found(&records, &was, other)).await.unwrap());
        let is = records.store.attachment(id).await.unwrap().unwrap();
        assert_eq!((is.state, is.server, is.request), (State::Attached, was.server, was.request));
        assert_eq!((is.alias.as_str(), is.persistent, is.unasked), ("a", false, false));
        let device = records.at(other);
        assert_eq!((device.status, device.request), (DeviceStatus::Allocated, Some(was.request)));
        // The row that ended is there still, and not counted twice.
        let ended = records.store.ended_attachments(Some(was.server), 9).await.unwrap();
        assert_eq!(ended.len(), 1);
        assert_eq!((ended[0].ended_at, ended[0].device), (was.ended_at, was.device));
        assert_ne!(ended[0].id, id);
        assert_eq!(records.store.rows_of_request(was.request).await.unwrap(), 1);
        assert!(!records.store.adopt(&as_found(&records, &was, one)).await.unwrap(), "it is open");
        records.settle(id, Observation::AskedToDetach).await;
        records.settle(id, Observation::Absent).await;
    }
    let id = records.claim(&[one]).await.unwrap()[0];
    records.attached(id).await;
    records.settle(id, Observation::DomainStopped).await;
    records.store.asked_to_go(id).await.unwrap();
    let row = records.store.attachment(id).await.unwrap().unwrap();
    assert!(!records.store.adopt(&as_found(&records, &row, one)).await.unwrap(), "it was asked to go since");
}

async fn a_holder_has_again_what_came_back_as_long_as_it_is_free_for_it(records: Records) {
    use hotslot_model::assignment::Holder;
    use hotslot_model::id::AcceleratorId;

    records.scan(devices()).await;
    let (server, id) = (ServerId(Uuid::new_v4()), AcceleratorId(Uuid::new_v4()));
    records.store.create_accelerator("a", id, None).await.unwrap();
    let holder = Holder::Accelerator(id);
    let places = ["0000:05:00.0", "0000:04:10.0"];
    let new = |address: &str| NewAttachment {
        id: AttachmentId(Uuid::new_v4()),
        device: records.at(address),
        alias: "a".into(),
        managed: true,
        network: None,
        whole_group: false,
        taken: false,
        siblings: Vec::new(),
    };
    let wanted = places.map(new);
    let ids = [wanted[0].id, wanted[1].id];
    let request = RequestId(Uuid::new_v4());
    let reservation = Reservation { holder: Some(holder), ..reservation(records.host, server, request) };
    assert!(records.store.reserve(reservation, &wanted).await.unwrap());
    for id in ids {
        records.attached(id).await;
        records.settle(id, Observation::DomainStopped).await;
    }
    for (id, place) in ids.into_iter().zip(places) {
        let row = records.store.attachment(id).await.unwrap().unwrap();
        assert!(records.store.adopt(&as_found(&records, &row, place)).await.unwrap());
        let row = records.store.attachment(id).await.unwrap().unwrap();
        assert_eq!((row.holder, row.request), (Some(holder), request));
    }
    assert_eq!(records.store.rows_of_request(request).await.unwrap(), 2, "two were given, and two are there");
    // An accelerator that takes any device has another one on another host.
    records.settle(ids[0], Observation::DomainStopped).await;
    let row = records.store.attachment(ids[0]).await.unwrap().unwrap();
    assert!(records.store.adopt(&as_found(&records, &row, "0000:04:10.1")).await.unwrap());
    let row = records.store.attachment(ids[0]).await.unwrap().unwrap();
    assert_eq!((row.holder, row.request), (Some(holder), request));
    assert_eq!(records.store.rows_of_request(request).await.unwrap(), 2);
    // What was released or purged is not wanted any more.
    for id in ids {
        records.settle(id, Observation::DomainStopped).await;
    }
    records.store.release_accelerator(id).await.unwrap();
    for (id, place) in ids.into_iter().zip(places) {
        let row = records.store.attachment(id).await.unwrap().unwrap();
        assert!(!row.unasked);
        assert!(!records.store.adopt(&as_found(&records, &row, place)).await.unwrap());
    }
}

async fn what_has_ended_is_forgotten_but_for_what_is_counted_or_owed(records: Records) {
    records.scan(devices()).await;
    let two = records.claim(&["0000:04:10.0", "0000:04:10.1"]).await.unwrap();
    let owed = records.claim(&["0000:05:00.0"]).await.unwrap()[0];
    for id in [two[0], two[1], owed] {
        records.attached(id).await;
    }
    let owe = query("UPDATE attachments SET taken = 1 WHERE id = $1").bind(owed.to_string());
    owe.execute(&records.store.write).await.unwrap();
    records.gone(two[0]).await;
    records.gone(owed).await;
    let forget = async |before: Millis| {
        let mut count = 0;
        for table in Ended::ALL {
            count += records.store.prune_ended(*table, before, 100).await.unwrap();
        }
        count
    };
    let later = now() + 60_000;
    assert_eq!(forget(0).await, 0, "none is older than 1970");
    assert_eq!(forget(later).await, 0, "one of a request is open, the other is owed its host driver");
    let request = records.store.attachment(two[1]).await.unwrap().unwrap().request;
    assert_eq!(records.store.rows_of_request(request).await.unwrap(), 2);
    records.gone(two[1]).await;
    assert_eq!(
        records.store.prune_ended(Ended::Attachments, later, 1).await.unwrap(),
        1,
        "so many at a time"
    );
    assert_eq!(forget(later).await, 1);
    records.store.given_back(&[owed]).await.unwrap();
    assert_eq!(forget(later).await, 1);
    assert_eq!(records.store.ended_attachments(None, 9).await.unwrap(), []);
    // A key may be sent again.
    let key = IdempotencyKey::new(b"k", "/x", b"").unwrap();
    let (server, request) = (ServerId(Uuid::new_v4()), RequestId(Uuid::new_v4()));
    let wanted = NewAttachment {
        id: AttachmentId(Uuid::new_v4()),
        device: records.at("0000:05:00.0"),
        alias: "a".into(),
        managed: true,
        network: None,
        whole_group: false,
        taken: false,
        siblings: Vec::new(),
    };
    let id = wanted.id;
    let reservation = Reservation { key: Some(&key), ..reservation(records.host, server, request) };
    assert!(records.store.reserve(reservation, &[wanted]).await.unwrap());
    records.attached(id).await;
    records.gone(id).await;
    assert_eq!(forget(later).await, 0);
}

async fn what_is_in_memory_is_what_a_restart_would_read(records: Records) {
    records.scan(devices()).await;
    let id = records.claim(&["0000:04:10.0"]).await.unwrap()[0];
    records.attached(id).await;
    let before = records.store.devices();
    records.store.read_devices().await.unwrap();
    assert_eq!(records.store.devices(), before);
}

#[derive(Debug, Clone)]
enum Step {
    Claim(Vec<usize>),
    Attach(usize),
    Free(usize),
    See(usize, Observation),
    Scan([bool; 5]),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        prop::collection::vec(0..5usize, 1..3).prop_map(Step::Claim),
        (0..4usize).prop_map(Step::Attach),
        (0..4usize).prop_map(Step::Free),
        (0..8usize, prop::sample::select(observations())).prop_map(|(index, seen)| Step::See(index, seen)),
        any::<[bool; 5]>().prop_map(Step::Scan),
    ]
}

/// What the first release wrote is brought up to date in a copy of its file, and all of it is read.
#[tokio::test]
async fn a_database_of_the_first_release_is_brought_up_to_date() {
    let dir = tempfile::tempdir().unwrap();
    let url = format!("sqlite://{}", dir.path().join("db").display());
    let options = SqliteConnectOptions::from_str(&url).unwrap().create_if_missing(true).foreign_keys(false);
    let mut old = sqlx::SqliteConnection::connect_with(&options).await.unwrap();
    sqlx::raw_sql(include_str!("../tests/data/release-0001.sql")).execute(&mut old).await.unwrap();
    old.close().await.unwrap();

    let store = Store::open(&url, None).await.unwrap();
    let host = store.hypervisor("node1", "qemu:///system").await.unwrap();
    assert_eq!(host.uuid.to_string(), "30000000-0000-4000-8000-000000000001");
    let devices = store.devices_of(host.id);
    let statuses: Vec<_> = devices.iter().map(|device| device.status.as_str()).collect();
    assert_eq!(statuses, ["unavailable", "allocated", "claimed", "available"]);
    assert_eq!(devices[1].facts.extra_info.get("managed"), Some("true"));
    let open = store.attachments().await.unwrap();
    assert_eq!(open.iter().map(|row| row.state).collect::<Vec<_>>(), [State::Attached, State::Attaching]);
    assert!(open.iter().all(|row| row.network.is_none() && !row.whole_group));
    assert_eq!(open[0].inner.unwrap().source, InnerSource::Verified);

    // And it is worked on: what was attached is detached, and a scan finds what it knows.
    let attached = open[0].id;
    store.settle(&[(attached, Observation::Removed { reason: None })]).await.unwrap();
    let seen: Vec<_> = store.devices_of(host.id).iter().map(|device| device.facts.clone()).collect();
    let outcome = store.scan(host.id, ScanScope::Everywhere, seen).await.unwrap();
    assert_eq!((outcome.added, outcome.changed, outcome.removed), (0, 0, 0));
    assert_eq!(store.devices_of(host.id)[1].status, DeviceStatus::Available);
}

fn any_steps() -> impl Strategy<Value = Vec<Step>> {
    prop::collection::vec(step(), 1..24)
}

fn in_a_runtime(test: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(test);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn any_sequence_of_claims_observations_and_scans_keeps_the_rules(steps in any_steps()) {
        in_a_runtime(async { keeps_the_rules([Records::on_sqlite().await], steps).await });
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, ..ProptestConfig::default() })]

    #[test]
    fn any_sequence_by_two_processes_keeps_the_rules(steps in any_steps()) {
        in_a_runtime(async { keeps_the_rules(processes::two().await.into(), steps).await });
    }
}

/// Takes each step in the next process.
async fn keeps_the_rules<const N: usize>(processes: [Records; N], steps: Vec<Step>) {
    processes[0].scan(devices()).await;
    let (mut open, mut ended): (Vec<AttachmentId>, Vec<AttachmentId>) = Default::default();
    for (records, step) in processes.iter().cycle().zip(steps) {
        records.store.refresh().await.unwrap();
        let before = records.store.devices();
        match step {
            Step::Claim(which) => {
                let all = records.store.devices_of(records.host);
                let wanted: Option<Vec<String>> =
                    which.iter().map(|index| Some(all.get(*index)?.facts.address.to_string())).collect();
                let Some(wanted) = wanted else { continue };
                let wanted: Vec<&str> = wanted.iter().map(String::as_str).collect();
                match records.claim(&wanted).await {
                    Some(ids) => open.extend(ids),
                    None => assert_eq!(records.store.devices(), before, "a failed claim restores"),
                }
            }
            Step::Attach(index) => {
                if let Some(id) = open.get(index) {
                    records.attached(*id).await;
                }
            }
            Step::Free(index) => {
                if index < open.len() {
                    let id = open.remove(index);
                    records.gone(id).await;
                    ended.push(id);
                }
            }
            // What has ended too, whose device another may have by now.
            Step::See(index, seen) => {
                if let Some(id) = ended.iter().chain(&open).nth(index).copied() {
                    let was = records.store.attachment(id).await.unwrap();
                    records.settle(id, seen).await;
                    let row = records.store.attachment(id).await.unwrap();
                    if ended.contains(&id) {
                        assert_eq!(row, was, "what has ended stays so");
                        assert_eq!(records.store.devices(), before);
                    } else if row.unwrap().state.is_final() {
                        open.retain(|other| *other != id);
                        ended.push(id);
                    }
                }
            }
            Step::Scan(present) => {
                let seen = devices().into_iter().zip(present).filter(|(_, here)| *here);
                records.scan(seen.map(|(facts, _)| facts).collect()).await;
            }
        }
        check(records, &open).await;
    }
}

async fn check(records: &Records, open: &[AttachmentId]) {
    let devices = records.store.devices_of(records.host);
    let held: Vec<_> = devices.iter().filter(|device| device.status.is_held()).collect();
    assert_eq!(held.len(), open.len(), "one owner for each promise, none lost");
    for device in &devices {
        assert_eq!(device.status.is_held(), device.owner.is_some());
        let relatives: Vec<_> = devices
            .iter()
            .filter(|other| {
                other.facts.parent_addr == Some(device.facts.address)
                    || device.facts.parent_addr == Some(other.facts.address)
            })
            .collect();
        let held = relatives.iter().any(|relative| relative.status.is_held());
        if device.status.is_held() {
            assert!(!held, "a PF and a VF of it are never both taken: {devices:?}");
        } else {
            assert_eq!(device.status == DeviceStatus::Available, !held, "{devices:?}");
        }
    }
    for id in open {
        let row = records.store.attachment(*id).await.unwrap().unwrap();
        let device: DeviceId = row.device;
        let status = devices.iter().find(|other| other.id == device).map(|other| other.status);
        assert_eq!(status, Some(State::device_status(row.state)), "the device follows its attachment");
    }
    let before = records.store.devices();
    records.store.read_devices().await.unwrap();
    assert_eq!(records.store.devices(), before, "memory and database agree");
    replay(records, open).await;
}

/// The events alone tell how things are, and each begins where the one before it ended.
async fn replay(records: &Records, open: &[AttachmentId]) {
    let (mut devices, mut attachments) = (BTreeMap::new(), BTreeMap::new());
    for (event, id) in records.events().await.into_iter().zip(1..) {
        assert_eq!(event.id, EventId(id), "ids have no gaps");
        let Event { what, .. } = event;
        let device = what.device.unwrap();
        match what.kind {
            EventKind::DeviceAdded => {
                let status = what.to.map(|to| to["status"].clone());
                assert_eq!(devices.insert(device, status.unwrap()), None);
            }
            EventKind::DeviceStatus => {
                assert_eq!(devices.insert(device, what.to.unwrap()), what.from);
            }
            EventKind::DeviceRemoved => assert_eq!(devices.remove(&device), what.from),
            EventKind::AttachmentState => {
                assert_eq!(attachments.insert(what.attachment.unwrap(), what.to.unwrap()), what.from);
            }
            EventKind::DeviceGone
            | EventKind::DeviceBack
            | EventKind::AttachmentInnerAddress
            | EventKind::AttachmentReason => {}
            EventKind::DeviceChanged
            | EventKind::DeviceUsed
            | EventKind::DeviceCleaned
            | EventKind::AttachmentGivenBack
            | EventKind::BindingState
            | EventKind::MdevState
            | EventKind::RuleAdded
            | EventKind::RuleChanged
            | EventKind::RuleRemoved => panic!("{} happens in no step", what.kind),
        }
    }
    let rows = records.store.devices();
    let so = rows.iter().map(|row| (row.id, serde_json::Value::from(row.status.as_str()))).collect();
    assert_eq!(devices, so);
    attachments.retain(|_, state| state != "detached" && state != "failed");
    assert_eq!(attachments.keys().collect::<std::collections::BTreeSet<_>>(), open.iter().collect());
}

async fn every_change_is_told_once_with_who_did_it_and_what_did_not_change_is_not(records: Records) {
    crate::actor::scope("discovery", records.scan(devices())).await;
    assert_eq!(records.events().await.len(), 5);
    records.scan(devices()).await;
    let five = records.last_event().await;
    assert_eq!(five, EventId(5), "an unchanged scan");
    let vf = crate::actor::scope("request req-1", records.claim(&["0000:04:10.0"])).await.unwrap()[0];
    let told = records.store.events(five, &EventFilter::default(), 9).await.unwrap();
    assert!(told.iter().all(|event| event.who == "request req-1" && event.host.as_deref() == Some("node1")));
    assert_eq!(told[0].what.attachment, Some(vf));
    assert_eq!(told[0].what.server, records.at("0000:04:10.0").server());
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
    records.gone(vf).await;
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
    assert_eq!(records.told(five).await, expected);

    let mut changed = devices();
    changed[1].numa_node = Some(1);
    changed.pop();
    let before = records.last_event().await;
    records.scan(changed).await;
    assert_eq!(records.told(before).await, ["device.removed available -", "device.changed - -"]);
    let events = records.store.events(before, &EventFilter::default(), 9).await.unwrap();
    let (from, to) = (events[1].what.from.as_ref(), events[1].what.to.as_ref());
    assert_eq!((from, to), (Some(&serde_json::json!({})), Some(&serde_json::json!({ "numa_node": 1 }))));
}

async fn events_are_narrowed_and_come_in_pages(records: Records) {
    records.scan(devices()).await;
    let id = records.claim(&["0000:04:10.0"]).await.unwrap()[0];
    let device = records.at("0000:04:10.0");
    let all = records.events().await;
    // Followers are given what passes in memory: the same.
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

async fn events_are_pruned_by_age_and_number_and_their_ids_are_never_given_again(records: Records) {
    records.scan(devices()).await;
    let any = EventFilter::default();
    assert_eq!(records.store.prune_events(0, 100, 100).await.unwrap(), 0, "none is older than 1970");
    assert_eq!(records.store.prune_events(0, 3, 100).await.unwrap(), 2, "all but the newest three");
    assert_eq!(records.events().await[0].id, EventId(3), "0 is from the oldest that is kept");
    let refused = records.store.events(EventId(1), &any, 9).await.unwrap_err();
    assert!(matches!(&refused, Error::Gone(said) if said.contains("oldest that is kept is 3")), "{refused}");
    assert_eq!(records.store.events(EventId(2), &any, 9).await.unwrap().len(), 3, "nothing was missed");
    let refused = records.store.events(EventId(6), &any, 9).await.unwrap_err();
    assert!(matches!(&refused, Error::Invalid(said) if said.contains("last one is 5")), "{refused}");
    let later = now() + 60_000;
    assert_eq!(records.store.prune_events(later, 100, 2).await.unwrap(), 2, "so many at a time");
    assert_eq!(records.store.prune_events(later, 100, 2).await.unwrap(), 1);
    assert_eq!(records.events().await, []);
    records.claim(&["0000:05:00.0"]).await.unwrap();
    assert_eq!(records.events().await[0].id, EventId(6));
}

async fn a_change_of_the_rules_is_told(records: Records) {
    let source = hotslot_model::rules::Source::Api { created_at: 1, updated_at: None };
    let id = Uuid::new_v4();
    let kind = hotslot_model::rules::RuleKind::Alias;
    let mut rule = Rule { id, kind, text: r#"{"name":"a"}"#.into(), source };
    records.store.put_rule(&rule).await.unwrap();
    records.store.put_rule(&rule).await.unwrap();
    rule.text = r#"{"name":"b"}"#.into();
    records.store.put_rule(&rule).await.unwrap();
    records.store.remove_rule(&rule).await.unwrap();
    assert_eq!(records.told(EventId(0)).await, ["rule.added - -", "rule.changed - -", "rule.removed - -"]);
    let changed = &records.events().await[1].what;
    assert_eq!(changed.to, Some(serde_json::json!({ "kind": "alias", "entry": { "name": "b" } })));
    assert_eq!(changed.rule, Some(id));
}

async fn of_too_many_answers_the_oldest_are_forgotten(records: Records) {
    let answer = Answer { status: 200, body: "{}".into(), location: None };
    let key = |n: u32| IdempotencyKey::new(format!("k{n}").as_bytes(), "/x", b"{}").unwrap();
    for n in 0..5 {
        records.store.keep(&key(n), &answer, 0, 2).await.unwrap();
        // A millisecond is what their ages are told apart by.
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

async fn an_accelerator_has_one_name_and_holds_what_one_request_gave_it(records: Records) {
    use hotslot_driver::binding::HostDriver;

    use hotslot_model::accelerator::AccSpec;
    use hotslot_model::assignment::Holder;
    use hotslot_model::assignment::NewBinding;
    use hotslot_model::id::{AcceleratorId, BindingId};

    records.scan(devices()).await;
    let store = &records.store;
    let vf = records.at("0000:04:10.0");
    let made = store.create_accelerator("one", AcceleratorId(vf.uuid), Some("p")).await.unwrap();
    assert_eq!(made.pinned, Some(vf.id));
    for (name, id) in [("one", Uuid::new_v4()), ("other", vf.uuid)] {
        let refused = store.create_accelerator(name, AcceleratorId(id), None).await.unwrap_err();
        assert!(matches!(refused, Error::Conflict(_)), "{refused}");
    }
    let spec = AccSpec::read(&serde_json::json!({ "num": 2, "mine": { "a": [1] } })).unwrap();
    let put = store.put_acc_spec(made.id, &spec, Some(0)).await.unwrap();
    assert_eq!((put.generation, put.spec.as_ref()), (1, Some(&spec)));
    assert!(matches!(store.put_acc_spec(made.id, &spec, Some(0)).await.unwrap_err(), Error::Conflict(_)));
    assert_eq!(store.accelerator(made.id).await.unwrap().unwrap(), put);

    let holder = Holder::Accelerator(made.id);
    let bind = async |device: &Arc<Device>| {
        let new = NewBinding {
            id: BindingId(Uuid::new_v4()),
            device: Arc::clone(device),
            previous: Some("igbvf".into()),
            siblings: Vec::new(),
        };
        let (request, wanted) = (RequestId(Uuid::new_v4()), [new]);
        let driver = HostDriver::Vfio;
        let done = store.reserve_bindings(records.host, request, holder, driver, &wanted).await;
        done.map(|done| done.then_some(wanted[0].id))
    };
    let id = bind(&vf).await.unwrap().unwrap();
    let held = records.at("0000:04:10.0");
    assert_eq!((held.owner, held.status), (Some(Owner::Host), DeviceStatus::Claimed));
    assert!(records.claim(&["0000:04:10.0"]).await.is_none());
    // What is held is held once, and not purged.
    let other = records.at("0000:04:10.2");
    assert!(matches!(bind(&other).await.unwrap_err(), Error::Conflict(_)));
    assert!(matches!(store.purge_accelerator(made.id).await.unwrap_err(), Error::Conflict(_)));
    store.settle_binding(id, State::Attached, None).await.unwrap();
    assert_eq!(records.at("0000:04:10.0").status, DeviceStatus::Allocated);
    assert_eq!(store.bindings_held_by(holder).await.unwrap().len(), 1);
    // A device that is promised to its host is not forgotten for want of an attachment.
    store.forget(vf.id).await.unwrap();
    assert_eq!(records.at("0000:04:10.0").owner, Some(Owner::Host));
    store.settle_binding(id, State::Detached, Some("why")).await.unwrap();
    let free = records.at("0000:04:10.0");
    assert_eq!((free.owner, free.status), (None, DeviceStatus::Available));
    assert_eq!(store.binding(id).await.unwrap().unwrap().reason.as_deref(), Some("why"));
    let told = records.events().await;
    let of_binding = told.iter().filter(|event| event.what.kind == EventKind::BindingState);
    let states: Vec<_> = of_binding.map(|event| event.what.to.clone().unwrap()).collect();
    assert_eq!(states, ["attaching", "attached", "detached"]);
    assert!(store.purge_accelerator(made.id).await.unwrap());
    assert!(!store.purge_accelerator(made.id).await.unwrap());
    // What was removed meanwhile is given nothing.
    assert!(matches!(bind(&other).await.unwrap_err(), Error::NoAccelerator(_)));
    assert_eq!(records.at("0000:04:10.2").owner, None);
}

async fn a_device_that_comes_back_is_the_one_that_an_accelerator_is(records: Records) {
    use hotslot_model::id::AcceleratorId;

    records.scan(devices()).await;
    let store = &records.store;
    let (pinned, other) = (records.at("0000:04:10.0"), records.at("0000:04:10.1"));
    store.create_accelerator("one", AcceleratorId(pinned.uuid), None).await.unwrap();
    let gone = || async {
        let mut without = devices();
        without.retain(|facts| facts.parent_addr.is_none());
        assert_eq!(records.scan(without).await.removed, 3);
    };
    gone().await;
    // While it is gone it can be named all the same.
    let late = store.create_accelerator("late", AcceleratorId(other.uuid), None).await.unwrap();
    assert_eq!(late.pinned, Some(other.id));
    assert_eq!(store.known_device(other.id).await.unwrap().unwrap().status, DeviceStatus::Deleted);
    for _ in 0..2 {
        let since = records.last_event().await;
        assert_eq!(records.scan(devices()).await.added, 3);
        assert_eq!(records.told(since).await, ["device.added - -"; 3]);
        for was in [&pinned, &other] {
            let now = records.at(&was.facts.address.to_string());
            assert_eq!((now.id, now.uuid, now.status), (was.id, was.uuid, DeviceStatus::Available));
        }
        // Of what no accelerator is, a new row is made, as ever.
        assert!(records.at("0000:04:10.2").id.0 > 5);
        let before = store.devices();
        store.read_devices().await.unwrap();
        assert_eq!(store.devices(), before);
        let claimed = records.claim(&["0000:04:10.0"]).await.unwrap()[0];
        assert_eq!(records.at("0000:04:00.0").status, DeviceStatus::Unclaimable);
        records.gone(claimed).await;
        gone().await;
    }
    // Another kind of device, or another card, is another device.
    let mut changed = devices();
    changed.retain(|facts| facts.parent_addr.is_none() || facts.address == pinned.facts.address);
    changed[2].product_id = "1533".parse().unwrap();
    records.scan(changed).await;
    assert_ne!(records.at("0000:04:10.0").id, pinned.id);
}

async fn a_device_in_parts_is_its_hosts_until_the_last_is_gone(records: Records) {
    use hotslot_model::assignment::Holder;
    use hotslot_model::assignment::MdevReservation;
    use hotslot_model::id::AcceleratorId;

    records.scan(devices()).await;
    let store = &records.store;
    const PARENT: &str = "0000:04:10.0";
    let server = ServerId(Uuid::new_v4());
    let reserve = async |holder: Holder, count: usize| {
        let request = RequestId(Uuid::new_v4());
        let (hypervisor, mdev_type) = (records.host, "nvidia-231");
        let reservation = MdevReservation { hypervisor, server, request, holder, persistent: true };
        let new = || (AttachmentId(Uuid::new_v4()), records.at(PARENT), mdev_type);
        let wanted: Vec<_> = std::iter::repeat_with(new).take(count).collect();
        let done = store.reserve_mdevs(reservation, &wanted).await;
        done.map(|done| done.then(|| wanted.iter().map(|(id, ..)| *id).collect::<Vec<_>>()))
    };
    let is = || {
        let row = records.at(PARENT);
        (row.owner, row.status)
    };
    let create = async |name: &str| {
        store.create_accelerator(name, AcceleratorId(Uuid::new_v4()), None).await.unwrap().id
    };
    let (one, other) = (create("one").await, create("other").await);
    let (holder, other) = (Holder::Accelerator(one), Holder::Accelerator(other));
    let two = reserve(holder, 2).await.unwrap().unwrap();
    assert_eq!(is(), (Some(Owner::Host), DeviceStatus::Claimed));
    // What is held is held once, not purged, not forgotten, and not given as a whole.
    assert!(matches!(reserve(holder, 1).await.unwrap_err(), Error::Conflict(_)));
    assert!(matches!(store.purge_accelerator(one).await.unwrap_err(), Error::Conflict(_)));
    store.forget(records.at(PARENT).id).await.unwrap();
    assert!(records.claim(&[PARENT]).await.is_none());
    let third = reserve(other, 1).await.unwrap().unwrap()[0];
    assert_eq!(store.mdevs_of(server).await.unwrap().len(), 3);

    let seen = Observation::Present { inner: None, only_in_definition: false, same_run: true };
    store.settle_mdevs(&[(two[0], seen.clone()), (two[1], seen.clone())]).await.unwrap();
    assert_eq!(is(), (Some(Owner::Host), DeviceStatus::Allocated));
    assert!(store.settle_mdevs(&[(two[0], seen)]).await.unwrap().is_empty(), "nothing changed");
    let gone = Observation::Removed { reason: None };
    for id in two {
        let asked = store.settle_mdevs(&[(id, Observation::AskedToDetach)]).await.unwrap();
        assert_eq!(asked[0].state, State::Detaching);
        store.settle_mdevs(&[(id, gone.clone())]).await.unwrap();
    }
    assert_eq!(is().0, Some(Owner::Host));
    assert!(store.mdevs_held_by(holder).await.unwrap().is_empty());
    // One that is given up goes whatever its guest says.
    let given_up = Observation::GivenUp { reason: "why".into() };
    assert!(store.settle_mdevs(&[(third, given_up)]).await.unwrap()[0].forced);
    store.settle_mdevs(&[(third, gone.clone())]).await.unwrap();
    assert_eq!(is(), (None, DeviceStatus::Available));
    // What has ended has no say any more.
    records.claim(&[PARENT]).await.unwrap();
    store.settle_mdevs(&[(third, gone)]).await.unwrap();
    assert_eq!(records.at(PARENT).status, DeviceStatus::Claimed);
    assert!(reserve(holder, 1).await.unwrap().is_none());
    let told = records.events().await;
    let of_third = told.iter().filter(|event| event.what.attachment == Some(third));
    let states: Vec<_> = of_third.map(|event| event.what.to.clone().unwrap()).collect();
    assert_eq!(states, ["attaching", "detaching", "detached"]);
    assert!(store.purge_accelerator(one).await.unwrap());
    // What was removed meanwhile is given nothing.
    assert!(matches!(reserve(holder, 1).await.unwrap_err(), Error::NoAccelerator(_)));
}
