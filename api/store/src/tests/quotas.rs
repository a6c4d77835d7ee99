//! Quotas: what is counted, and that concurrent requests do not exceed a limit.

use std::collections::BTreeMap;

use hotslot_model::cyborg::ArqTarget;
use hotslot_model::id::AcceleratorId;
use hotslot_model::quota::{Exceeded, Limit, Limits, Resource, Usage};
use tokio::task::JoinSet;

use super::cyborg::profile;
use super::*;

on_both! {
    concurrent_reservations_do_not_exceed_a_quota
    a_device_counts_until_it_is_detached_and_again_when_it_comes_back
    records_of_a_project_are_counted
    limits_are_set_and_reset
}

fn limits(of: &[(Resource, i64)]) -> Limits {
    Limits(of.iter().map(|(resource, limit)| (resource.clone(), Limit::new(*limit).unwrap())).collect())
}

fn exceeded<T>(outcome: Result<T, Error>) -> Exceeded {
    match outcome {
        Err(Error::OverQuota(exceeded)) => *exceeded,
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("it was not refused"),
    }
}

async fn reserve_for(
    store: &Store,
    host: HypervisorId,
    project: &str,
    device: Arc<Device>,
) -> Result<Option<AttachmentId>, Error> {
    let (server, request) = (ServerId(Uuid::new_v4()), RequestId(Uuid::new_v4()));
    let reservation = Reservation { project: Some(project), ..reservation(host, server, request) };
    let made = store.reserve(reservation, &[new_attachment(device)]).await?;
    Ok(made.map(|rows| rows[0].id))
}

impl Records {
    async fn reserve_for(&self, project: &str, device: Arc<Device>) -> Result<Option<AttachmentId>, Error> {
        reserve_for(&self.store, self.host, project, device).await
    }

    async fn used(&self, project: &str, resource: Resource) -> (i64, i64) {
        let Usage { in_use, reserved } = self.store.usage(project, &resource).await.unwrap();
        (in_use, reserved)
    }
}

async fn concurrent_reservations_do_not_exceed_a_quota(records: Records) {
    let cards = (0..20).map(|slot| facts(&format!("0000:05:{slot:02x}.0"), DevType::Pci, None));
    records.scan(cards.collect()).await;
    records.store.set_limits("p", &limits(&[(Resource::Attachments, 5)])).await.unwrap();
    let mut all = JoinSet::new();
    for device in records.store.devices_of(records.host) {
        let (store, host) = (records.store.clone(), records.host);
        all.spawn(async move { reserve_for(&store, host, "p", device).await });
    }
    let all = all.join_all().await;
    let (made, refused): (Vec<_>, Vec<_>) = all.into_iter().partition(Result::is_ok);
    assert_eq!((made.len(), refused.len()), (5, 15));
    for refused in refused {
        let Exceeded { project, resource, requested, used, limit } = exceeded(refused);
        assert_eq!((project.as_str(), resource), ("p", Resource::Attachments));
        assert_eq!((requested, used, limit.get()), (1, 5, 5));
    }
    assert_eq!(records.used("p", Resource::Attachments).await, (0, 5));
    let free = records.statuses().into_iter().filter(|status| *status == "available").count();
    assert_eq!(free, 15, "nothing was claimed for those that were refused");
}

async fn a_device_counts_until_it_is_detached_and_again_when_it_comes_back(records: Records) {
    records.scan(devices()).await;
    let of_alias = Resource::AttachmentsOf("a".into());
    records.store.set_limits("p", &limits(&[(of_alias.clone(), 1)])).await.unwrap();
    let first = records.reserve_for("p", records.at("0000:04:10.0")).await.unwrap().unwrap();
    assert_eq!(records.used("p", of_alias.clone()).await, (0, 1));
    records.attached(first).await;
    assert_eq!(records.used("p", of_alias.clone()).await, (1, 0));
    let refused = exceeded(records.reserve_for("p", records.at("0000:04:10.1")).await);
    assert_eq!((refused.resource, refused.used), (of_alias.clone(), 1));
    let other = records.reserve_for("q", records.at("0000:04:10.1")).await.unwrap().unwrap();
    assert_eq!(records.used("q", Resource::Attachments).await, (0, 1));
    records.removed(other).await;
    let nobodys = records.claim(&["0000:04:10.2"]).await.unwrap();
    assert_eq!(records.used("p", Resource::Attachments).await, (1, 0));
    assert_eq!(records.store.attachment(nobodys[0]).await.unwrap().unwrap().project, None);

    // Its domain is saved without a request, and another device takes its place. What comes back is counted, but not
    // refused.
    let row = records.store.attachment(first).await.unwrap().unwrap();
    records.removed(first).await;
    assert_eq!(records.used("p", of_alias.clone()).await, (0, 0));
    records.reserve_for("p", records.at("0000:05:00.0")).await.unwrap().unwrap();
    let back = attachments::as_found(&records, &row, "0000:04:10.0");
    assert!(records.store.adopt(&back).await.unwrap());
    assert_eq!(records.used("p", of_alias).await, (1, 1));
}

async fn records_of_a_project_are_counted(records: Records) {
    let limits = limits(&[(Resource::Accelerators, 2), (Resource::AcceleratorRequests, 3)]);
    let store = records.store.clone().with_default_limits(limits);
    let create = async |name: &str, project| {
        store.create_accelerator(name, AcceleratorId(Uuid::new_v4()), project).await
    };
    for (name, project) in [("a", Some("p")), ("b", Some("p")), ("c", Some("q")), ("d", None)] {
        create(name, project).await.unwrap();
    }
    assert_eq!(exceeded(create("e", Some("p")).await).used, 2);

    let one = profile("one");
    store.create_device_profile(&one).await.unwrap();
    let two = [(0, "CUSTOM_QAT"), (0, "CUSTOM_QAT")];
    let made = store.create_arqs(one.id, &two, Some("p")).await.unwrap();
    let refused = exceeded(store.create_arqs(one.id, &two, Some("p")).await);
    assert_eq!((refused.resource, refused.requested, refused.used), (Resource::AcceleratorRequests, 2, 2));
    // A request that gets another project by its bind counts there.
    let others = store.create_arqs(one.id, &two, Some("q")).await.unwrap();
    let rp = Uuid::new_v4();
    let target = ArqTarget { hostname: "node1".into(), rp, server: ServerId(Uuid::new_v4()) };
    let binds = others.iter().map(|id| (*id, target.clone(), Some("p".to_owned()))).collect::<Vec<_>>();
    assert_eq!(exceeded(store.begin_bind(&binds).await).used, 3);
    let rows = store.arqs(ArqFilter::default(), 0, 10).await.unwrap();
    assert!(rows.iter().all(|(_, row)| row.target.is_none()), "all or none are bound");
    let same = (made[0], target.clone(), Some("p".to_owned()));
    store.begin_bind(&[same, binds[0].clone()]).await.unwrap();
}

async fn limits_are_set_and_reset(records: Records) {
    let (p, store) = ("p", &records.store);
    assert_eq!(store.limits_of(p).await.unwrap(), Limits::default());
    let first = limits(&[(Resource::Attachments, 5), (Resource::AttachmentsOf("a".into()), 0)]);
    store.set_limits(p, &first).await.unwrap();
    store.set_limits("q", &limits(&[(Resource::Attachments, 1)])).await.unwrap();
    store.set_limits(p, &limits(&[(Resource::Attachments, -1)])).await.unwrap();
    let now = limits(&[(Resource::Attachments, -1), (Resource::AttachmentsOf("a".into()), 0)]);
    assert_eq!(store.limits_of(p).await.unwrap(), now);
    let wanted = BTreeMap::from([(Resource::Attachments, 9)]);
    assert_eq!(store.would_exceed(p, &wanted).await.unwrap(), None);
    assert_eq!(store.would_exceed("q", &wanted).await.unwrap().unwrap().requested, 9);
    store.reset_limits(p).await.unwrap();
    assert_eq!(store.limits_of(p).await.unwrap(), Limits::default());
    assert_ne!(store.limits_of("q").await.unwrap(), Limits::default());
}
