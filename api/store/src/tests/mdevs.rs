//! Mediated devices and the status of their parent device.

use hotslot_model::assignment::{Holder, MdevReservation};
use hotslot_model::id::AcceleratorId;

use super::*;

on_both! {
    a_parent_device_is_held_until_its_last_mediated_device_is_gone
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
    // A mediated device that is given up is detached with force.
    let given_up = Observation::GivenUp { reason: "why".into() };
    assert!(store.settle_mdevs(&[(third, given_up)]).await.unwrap()[0].forced);
    store.settle_mdevs(&[(third, gone.clone())]).await.unwrap();
    assert_eq!(is(), (None, DeviceStatus::Available));
    // A late observation of an ended mediated device changes nothing.
    records.claim(&[PARENT]).await.unwrap();
    store.settle_mdevs(&[(third, gone)]).await.unwrap();
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
