//! Quotas: what is counted, and that concurrent requests do not exceed a limit.

use std::collections::BTreeMap;

use hotslot_model::accelerator::AccSpec;
use hotslot_model::assignment::Holder;
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
    specs_and_kept_keys_are_counted
    lists_begin_after_a_place_and_have_only_what_the_filter_admits
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

async fn specs_and_kept_keys_are_counted(records: Records) {
    let limits = limits(&[(Resource::SpecBytes, 300), (Resource::IdempotencyKeys, 2)]);
    let store = records.store.clone().with_default_limits(limits);
    let spec = |letters: usize| {
        let spec = serde_json::json!({ "acc_capability": { "x": "é".repeat(letters) } });
        AccSpec::read(&spec).unwrap()
    };
    let (a, b) = (AcceleratorId(Uuid::new_v4()), AcceleratorId(Uuid::new_v4()));
    store.create_accelerator("a", a, Some("p")).await.unwrap();
    store.create_accelerator("b", b, Some("p")).await.unwrap();
    store.put_acc_spec(a, &spec(90), None).await.unwrap();
    let bytes = i64::try_from(spec(90).stored().to_string().len()).unwrap();
    assert_eq!(records.used("p", Resource::SpecBytes).await, (bytes, 0), "bytes, not characters");
    let refused = exceeded(store.put_acc_spec(b, &spec(90), None).await);
    assert_eq!((refused.resource, refused.requested, refused.used), (Resource::SpecBytes, bytes, bytes));
    store.put_acc_spec(a, &spec(1), None).await.unwrap();
    store.put_acc_spec(b, &spec(90), None).await.unwrap();

    let key = |name: &str| IdempotencyKey::new(name.as_bytes(), "/x", b"").unwrap().of("u", Some("p"));
    let answer = Answer { status: 201, body: String::new(), location: None };
    for name in ["1", "2", "1", "2"] {
        store.keep(&key(name), &answer, 0, 100).await.unwrap();
    }
    let refused = exceeded(store.keep(&key("3"), &answer, 0, 100).await);
    assert_eq!((refused.resource, refused.used), (Resource::IdempotencyKeys, 2));
    store.keep(&key("3").of("u", Some("q")), &answer, 0, 100).await.unwrap();
    store.prune_keys(now() + 1).await.unwrap();
    assert_eq!(records.used("p", Resource::IdempotencyKeys).await, (0, 0));
}

async fn lists_begin_after_a_place_and_have_only_what_the_filter_admits(records: Records) {
    let (store, one) = (&records.store, profile("one"));
    store.create_device_profile(&one).await.unwrap();
    let mut made = Vec::new();
    for project in ["p", "q", "p", "q", "p"] {
        made.extend(store.create_arqs(one.id, &[(0, "CUSTOM_QAT")], Some(project)).await.unwrap());
    }
    let server = ServerId(Uuid::new_v4());
    let target = ArqTarget { hostname: "node1".into(), rp: Uuid::new_v4(), server };
    for id in [made[1], made[2]] {
        store.begin_bind(&[(id, target.clone(), None)]).await.unwrap();
    }
    let (p, all) = (ArqFilter { project: Some("p"), ..ArqFilter::default() }, ArqFilter::default());
    let of_server = ArqFilter { server: Some(server), ..all };
    for (filter, after, most, expected) in [
        (all, None, 9, &[0, 1, 2, 3, 4][..]),
        (all, Some(1), 2, &[2, 3]),
        (p, None, 2, &[0, 2]),
        (p, Some(2), 2, &[4]),
        (of_server, None, 9, &[1, 2]),
        (ArqFilter { server: Some(server), ..p }, None, 9, &[2]),
        (ArqFilter { begun: true, ..all }, None, 9, &[1, 2]),
        (ArqFilter { begun: true, ..p }, None, 9, &[2]),
    ] {
        let after = match after {
            Some(index) => store.place_of_arq(filter, made[index]).await.unwrap().unwrap(),
            None => 0,
        };
        let rows = store.arqs(filter, after, most).await.unwrap();
        let rows: Vec<_> = rows.into_iter().map(|(_, row)| row.id).collect();
        assert_eq!(rows, expected.iter().map(|index| made[*index]).collect::<Vec<_>>(), "{filter:?} {after}");
    }
    assert_eq!(store.place_of_arq(p, made[1]).await.unwrap(), None);
    assert_eq!(store.place_of_arq(of_server, made[0]).await.unwrap(), None);

    records.scan(devices()).await;
    let holder = Holder::AcceleratorRequest(made[2]);
    let request = RequestId(Uuid::new_v4());
    let reservation = Reservation { holder: Some(holder), ..reservation(records.host, server, request) };
    let device = new_attachment(records.at("0000:05:00.0"));
    store.reserve(reservation, &[device]).await.unwrap().unwrap();
    let place = store.place_of_arq(all, made[2]).await.unwrap().unwrap();
    for (project, after, count) in
        [(None, 0, 1), (Some("p"), 0, 1), (Some("q"), 0, 0), (None, place, 0), (Some("p"), place - 1, 1)]
    {
        let held = store.held_by_arqs(project, after, 100).await.unwrap();
        assert_eq!(held.len(), count, "{project:?} {after}");
        assert!(held.iter().all(|row| row.holder() == Some(holder)));
    }
    let first = store.attachments_after(None, None, 9).await.unwrap();
    assert_eq!(first.len(), 1);
    assert!(store.attachments_after(None, first.first(), 9).await.unwrap().is_empty());
    assert!(store.attachments_after(Some("p"), None, 9).await.unwrap().is_empty());
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
