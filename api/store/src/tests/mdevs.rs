//! Mediated devices and the status of their parent device.

use hotslot_model::assignment::{Adopted, Adoption, Holder, MdevReservation};
use hotslot_model::id::AcceleratorId;

use super::*;

on_both! {
    a_parent_device_is_held_until_its_last_mediated_device_is_gone
    a_mediated_device_that_comes_back_with_its_domain_is_attached_again_for_its_holder
}

async fn a_parent_device_is_held_until_its_last_mediated_device_is_gone(records: Records) {
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
    // The accelerator cannot get a second request or be purged, and the parent is neither freed nor claimed as a whole.
    assert!(matches!(reserve(holder, 1).await.unwrap_err(), Error::Conflict(_)));
    assert!(matches!(store.purge_accelerator(one).await.unwrap_err(), Error::Conflict(_)));
    store.forget(records.at(PARENT).id).await.unwrap();
    assert!(records.claim(&[PARENT]).await.is_none());
    let third = reserve(other, 1).await.unwrap().unwrap()[0];
    assert_eq!(store.mdevs_of(server).await.unwrap().len(), 3);

    let seen = Observation::Present { inner: None, only_in_definition: false, same_run: true };
    store.settle(&[(mdev(two[0]), seen.clone()), (mdev(two[1]), seen.clone())]).await.unwrap();
    assert_eq!(is(), (Some(Owner::Host), DeviceStatus::Allocated));
    let events = records.last_event().await;
    store.settle(&[(mdev(two[0]), seen)]).await.unwrap();
    assert_eq!(records.last_event().await, events, "nothing changed");
    let gone = Observation::Removed { reason: None };
    for id in two {
        let detach_requested = store.settle(&[(mdev(id), Observation::AskedToDetach)]).await.unwrap();
        assert_eq!(detach_requested[0].row.state(), State::Detaching);
        store.settle(&[(mdev(id), gone.clone())]).await.unwrap();
    }
    assert_eq!(is().0, Some(Owner::Host));
    assert!(store.held_by(holder).await.unwrap().is_empty());
    // A mediated device that is given up is detached with force.
    let given_up = Observation::GivenUp { reason: "why".into() };
    assert!(store.settle(&[(mdev(third), given_up)]).await.unwrap()[0].row.forced());
    store.settle(&[(mdev(third), gone.clone())]).await.unwrap();
    assert_eq!(is(), (None, DeviceStatus::Available));
    // A late observation of an ended mediated device changes nothing.
    records.claim(&[PARENT]).await.unwrap();
    store.settle(&[(mdev(third), gone)]).await.unwrap();
    assert_eq!(records.at(PARENT).status, DeviceStatus::Claimed);
    assert!(reserve(holder, 1).await.unwrap().is_none());
    let told = records.events().await;
    let of_third = told.iter().filter(|event| event.what.attachment == Some(third));
    let states: Vec<_> = of_third.map(|event| event.what.to.clone().unwrap()).collect();
    assert_eq!(states, ["attaching", "detaching", "detached"]);
    assert!(store.purge_accelerator(one).await.unwrap());
    // A purged accelerator gets no device.
    assert!(matches!(reserve(holder, 1).await.unwrap_err(), Error::NoAccelerator(_)));
}

async fn a_mediated_device_that_comes_back_with_its_domain_is_attached_again_for_its_holder(
    records: Records,
) {
    records.scan(devices()).await;
    let store = &records.store;
    let (first, second) = ("0000:04:10.0", "0000:04:10.2");
    let server = ServerId(Uuid::new_v4());
    let accelerator = AcceleratorId(Uuid::new_v4());
    store.create_accelerator("one", accelerator, None).await.unwrap();
    let (holder, id) = (Holder::Accelerator(accelerator), AttachmentId(Uuid::new_v4()));
    let reserve = async |id: AttachmentId, parent: &str| {
        let (request, hypervisor) = (RequestId(Uuid::new_v4()), records.host);
        let reservation = MdevReservation { hypervisor, server, request, holder, persistent: false };
        assert!(store.reserve_mdevs(reservation, &[(id, records.at(parent), "nvidia-231")]).await.unwrap());
    };
    let settle = async |id: AttachmentId, seen: Observation| {
        store.settle(&[(mdev(id), seen)]).await.unwrap().remove(0).row
    };
    let present = || Observation::Present { inner: None, only_in_definition: false, same_run: true };
    let adopt = async |parent: &str| {
        let found = Adoption {
            id,
            hypervisor: records.host,
            server,
            address: parent.parse().unwrap(),
            persistent: false,
            inner: None,
            what: Adopted::Mdev { mdev_type: "nvidia-231".into() },
        };
        store.adopt(&found).await.unwrap()
    };
    reserve(id, first).await;
    assert!(!adopt(first).await, "it is on record");
    settle(id, present()).await;
    assert!(settle(id, Observation::DomainStopped).await.unrequested());
    assert_eq!(records.at(first).status, DeviceStatus::Available);

    // Its server came back on another card: a new row has the id, and the ended one goes on under another.
    assert!(adopt(second).await);
    let row = store.mdev(id).await.unwrap().unwrap();
    assert_eq!((row.state, row.holder, row.parent), (State::Attached, holder, records.at(second).id));
    assert_eq!((row.unrequested, records.at(second).status), (false, DeviceStatus::Allocated));
    assert_eq!(records.at(second).owner, Some(Owner::Host));
    assert!(!adopt(second).await, "it is on record");

    // While its holder has another one it is not adopted.
    settle(id, Observation::DomainStopped).await;
    let other = AttachmentId(Uuid::new_v4());
    reserve(other, first).await;
    settle(other, present()).await;
    assert!(!adopt(second).await);
    assert_eq!(records.at(second).status, DeviceStatus::Available);
    settle(other, Observation::AskedToDetach).await;
    assert!(!settle(other, Observation::Removed { reason: None }).await.unrequested());

    // Nor is one that its holder does not want any more.
    store.release_accelerator(accelerator).await.unwrap();
    assert!(!store.mdev(id).await.unwrap().unwrap().unrequested);
    assert!(!adopt(second).await);
}
