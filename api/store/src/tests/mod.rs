//! Tests of the store, on SQLite and on PostgreSQL. This file has the code that they share.

use std::fs::File;
use std::sync::Arc;
use std::time::Duration;

use hotslot_driver::pci::PciAddress;
use hotslot_model::assignment::{
    AssignmentKey, AssignmentKind, NewAttachment, Observation, Reservation, State,
};
use hotslot_model::device::{DevType, Device, DeviceFacts, DeviceStatus, Owner};
use hotslot_model::event::{Event, EventFilter};
use hotslot_model::id::{AttachmentId, EventId, HypervisorId, RequestId, ServerId};
use hotslot_model::idempotency::{Answer, IdempotencyKey};
use hotslot_model::scan::{ScanOutcome, ScanScope};
use hotslot_model::texts::Texts;
use uuid::Uuid;

use super::*;
use crate::sql::*;

/// Defines each test twice, for SQLite and for PostgreSQL. Each run has its own database.
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

mod accelerators;
mod attachments;
mod cyborg;
mod devices;
mod ended;
mod events;
mod host_modes;
mod idempotency;
mod mdevs;
mod migration;
#[expect(unreachable_pub, dead_code, reason = "the black-box tests use it too, and all of it")]
#[path = "../../../../tests/src/postgres.rs"]
mod postgres;
mod processes;
mod quotas;
mod sequences;
mod together;

/// A new database with one host.
struct Records {
    store: Store,
    host: HypervisorId,
    _dir: Option<tempfile::TempDir>,
}

fn reservation(hypervisor: HypervisorId, server: ServerId, request: RequestId) -> Reservation<'static> {
    Reservation { hypervisor, server, request, persistent: true, key: None, holder: None, project: None }
}

/// Returns a new attachment of a device.
fn new_attachment(device: Arc<Device>) -> NewAttachment {
    NewAttachment {
        id: AttachmentId(Uuid::new_v4()),
        device,
        alias: "a".into(),
        managed: true,
        vgpu: None,
        before: Default::default(),
        network: None,
        whole_group: false,
        to_rebind: false,
        siblings: Vec::new(),
    }
}

impl Records {
    async fn on_sqlite() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let lock = File::create(dir.path().join("lock")).unwrap();
        let url = format!("sqlite://{}", dir.path().join("db").display());
        let store = Store::open(&url, Some(lock)).await.unwrap();
        // Count the rows of pci_devices that are written.
        for line in [
            "CREATE TABLE written (id BIGINT)",
            "CREATE TRIGGER inserted AFTER INSERT ON pci_devices
             BEGIN INSERT INTO written VALUES (new.id); END",
            "CREATE TRIGGER updated AFTER UPDATE ON pci_devices
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

/// A PF with three VFs, and an independent device.
fn devices() -> Vec<DeviceFacts> {
    let pf = "0000:04:00.0";
    let mut devices = vec![facts(pf, DevType::Pf, None), facts("0000:05:00.0", DevType::Pci, None)];
    devices.extend((0..3).map(|n| facts(&format!("0000:04:10.{n}"), DevType::Vf, Some(pf))));
    devices
}

impl Records {
    /// Returns the number of device rows written since the last call.
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

    /// Claims devices. Returns `None` when one of them is not free.
    async fn claim(&self, addresses: &[&str]) -> Option<Vec<AttachmentId>> {
        let wanted: Vec<_> = addresses.iter().map(|address| new_attachment(self.at(address))).collect();
        let (server, request) = (ServerId(Uuid::new_v4()), RequestId(Uuid::new_v4()));
        let reservation = reservation(self.host, server, request);
        let done = self.store.reserve(reservation, &wanted).await.unwrap();
        let rows = done?;
        for (row, new) in rows.iter().zip(&wanted) {
            assert_eq!(
                self.store.attachment(new.id).await.unwrap().as_ref(),
                Some(row),
                "what is returned is stored"
            );
        }
        Some(rows.iter().map(|row| row.id).collect())
    }

    async fn settle(&self, id: AttachmentId, seen: Observation) {
        let changes = self.store.settle(&[(attachment(id), seen)]).await.unwrap();
        let stored = self.store.assignment(attachment(id)).await.unwrap();
        assert_eq!(changes.into_iter().next().map(|change| change.row), stored, "what is returned is stored");
    }

    async fn attached(&self, id: AttachmentId) {
        self.settle(id, Observation::Present { inner: None, only_in_definition: false, same_run: true })
            .await;
    }

    /// Returns all events, in order.
    async fn events(&self) -> Vec<Event> {
        self.store.events(EventId(0), &EventFilter::default(), 10_000).await.unwrap()
    }

    /// Returns one line for each event after `since`: its kind and the values before and after.
    async fn event_lines(&self, since: EventId) -> Vec<String> {
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

    async fn removed(&self, id: AttachmentId) {
        self.settle(id, Observation::Removed { reason: None }).await;
    }

    fn statuses(&self) -> Vec<&'static str> {
        self.store.devices_of(self.host).iter().map(|device| device.status.as_str()).collect()
    }
}

fn attachment(id: AttachmentId) -> AssignmentKey {
    AssignmentKey { kind: AssignmentKind::Attachment, id }
}

fn mdev(id: AttachmentId) -> AssignmentKey {
    AssignmentKey { kind: AssignmentKind::Mdev, id }
}
