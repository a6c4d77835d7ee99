//! Migrating the database of an older release.

use std::str::FromStr as _;

use hotslot_model::assignment::InnerSource;
use sqlx::Connection as _;
use sqlx::sqlite::SqliteConnectOptions;

use super::*;

/// Loads the database of the first release, migrates it, and reads all of it.
#[tokio::test]
async fn a_database_of_the_first_release_is_migrated() {
    let dir = tempfile::tempdir().unwrap();
    let url = format!("sqlite://{}", dir.path().join("db").display());
    let options = SqliteConnectOptions::from_str(&url).unwrap().create_if_missing(true).foreign_keys(false);
    let mut old = sqlx::SqliteConnection::connect_with(&options).await.unwrap();
    sqlx::raw_sql(include_str!("../../tests/data/release-0001.sql")).execute(&mut old).await.unwrap();
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

    // The migrated rows can be changed: detach an attachment, and scan the same devices.
    let attached = open[0].id;
    store.settle(&[(attachment(attached), Observation::Removed { reason: None })]).await.unwrap();
    let seen: Vec<_> = store.devices_of(host.id).iter().map(|device| device.facts.clone()).collect();
    let outcome = store.scan(host.id, ScanScope::Everywhere, seen).await.unwrap();
    assert_eq!((outcome.added, outcome.changed, outcome.removed), (0, 0, 0));
    assert_eq!(store.devices_of(host.id)[1].status, DeviceStatus::Available);
}
