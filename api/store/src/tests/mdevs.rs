//! Mediated devices and the status of their parent device.

use hotslot_model::assignment::{Adopted, Adoption, Assignment, Holder, MdevReservation};
use hotslot_model::device::AfterUse;
use hotslot_model::id::AcceleratorId;

use super::*;

on_both! {
    a_parent_device_is_held_until_its_last_mediated_device_is_gone
    a_parent_device_is_not_claimed_as_a_whole_and_its_holder_gets_no_second_request
    a_mediated_device_that_comes_back_with_its_domain_is_attached_again_for_its_holder
}

const PARENT: &str = "0000:04:10.0";

impl Records {
    async fn accelerator(&self, name: &str) -> AcceleratorId {
        let id = AcceleratorId(Uuid::new_v4());
        self.store.create_accelerator(name, id, None).await.unwrap().id
    }

    /// Reserves mediated devices of one parent. Returns false when the parent is not free.
    async fn reserve_mdevs(
        &self,
        server: ServerId,
        holder: Holder,
        parent: &str,
        ids: &[AttachmentId],
    ) -> Result<bool, Error> {
        let (hypervisor, request) = (self.host, RequestId(Uuid::new_v4()));
        let reservation =
            MdevReservation { hypervisor, server, request, holder, persistent: false, project: None };
        let wanted: Vec<_> = ids.iter().map(|id| (*id, self.at(parent), "nvidia-231")).collect();
        self.store.reserve_mdevs(reservation, &wanted).await
    }

    async fn settle_mdev(&self, id: AttachmentId, seen: Observation) -> Assignment {
        self.store.settle(&[(mdev(id), seen)]).await.unwrap().remove(0).row
    }

    /// Returns the owner and the status of a device.
    fn held(&self, address: &str) -> (Option<Owner>, DeviceStatus) {
        let row = self.at(address);
        (row.owner, row.status)
    }
}

fn present() -> Observation {
    Observation::Present { inner: None, only_in_definition: false, same_run: true }
}

const REMOVED: Observation = Observation::Removed { reason: None };

async fn a_parent_device_is_held_until_its_last_mediated_device_is_gone(records: Records) {
    records.scan(devices()).await;
    let store = &records.store;
    let server = ServerId(Uuid::new_v4());
    let holder = Holder::Accelerator(records.accelerator("two").await);
    let holder_of_third = Holder::Accelerator(records.accelerator("third").await);
    let [first, second, third] = [(); 3].map(|()| AttachmentId(Uuid::new_v4()));
    assert!(records.reserve_mdevs(server, holder, PARENT, &[first, second]).await.unwrap());
    assert!(records.reserve_mdevs(server, holder_of_third, PARENT, &[third]).await.unwrap());
    assert_eq!(records.held(PARENT), (Some(Owner::Host), DeviceStatus::Claimed));
    assert_eq!(store.mdevs_of(server).await.unwrap().len(), 3);

    store.settle(&[(mdev(first), present()), (mdev(second), present())]).await.unwrap();
    assert_eq!(records.held(PARENT), (Some(Owner::Host), DeviceStatus::Allocated));
    let events = records.last_event().await;
    records.settle_mdev(first, present()).await;
    assert_eq!(records.last_event().await, events, "nothing changed");
    for id in [first, second] {
        let row = records.settle_mdev(id, Observation::DetachRequested).await;
        assert_eq!(row.state(), State::Detaching);
        records.settle_mdev(id, REMOVED).await;
    }
    assert_eq!(records.held(PARENT).0, Some(Owner::Host));
    assert!(store.held_by(holder).await.unwrap().is_empty());
    // A mediated device that is given up is detached with force.
    assert!(records.settle_mdev(third, Observation::GivenUp { reason: "why".into() }).await.forced());
    records.settle_mdev(third, REMOVED).await;
    assert_eq!(records.held(PARENT), (None, DeviceStatus::Available));
    // A late observation of an ended mediated device changes nothing.
    records.claim(&[PARENT]).await.unwrap();
    records.settle_mdev(third, REMOVED).await;
    assert_eq!(records.at(PARENT).status, DeviceStatus::Claimed);
    let events = records.events().await;
    let of_third = events.iter().filter(|event| event.what.attachment == Some(third));
    let states: Vec<_> = of_third.map(|event| event.what.to.clone().unwrap()).collect();
    assert_eq!(states, ["attaching", "detaching", "detached"]);
}

async fn a_parent_device_is_not_claimed_as_a_whole_and_its_holder_gets_no_second_request(records: Records) {
    records.scan(devices()).await;
    let store = &records.store;
    let server = ServerId(Uuid::new_v4());
    let accelerator = records.accelerator("one").await;
    let reserve = async |id: AttachmentId| {
        records.reserve_mdevs(server, Holder::Accelerator(accelerator), PARENT, &[id]).await
    };
    let id = AttachmentId(Uuid::new_v4());
    assert!(reserve(id).await.unwrap());
    let second = AttachmentId(Uuid::new_v4());
    assert!(matches!(reserve(second).await.unwrap_err(), Error::Conflict(_)));
    assert!(matches!(store.purge_accelerator(accelerator).await.unwrap_err(), Error::Conflict(_)));
    store.forget(records.at(PARENT).id, AfterUse::Offered).await.unwrap();
    assert!(records.claim(&[PARENT]).await.is_none());
    assert_eq!(records.held(PARENT), (Some(Owner::Host), DeviceStatus::Claimed));
    records.settle_mdev(id, REMOVED).await;
    // While a server has the whole device, it has no mediated devices.
    records.claim(&[PARENT]).await.unwrap();
    assert!(!reserve(second).await.unwrap());
    assert!(store.purge_accelerator(accelerator).await.unwrap());
    // A purged accelerator gets no device.
    assert!(matches!(reserve(second).await.unwrap_err(), Error::NoAccelerator(_)));
}

async fn a_mediated_device_that_comes_back_with_its_domain_is_attached_again_for_its_holder(
    records: Records,
) {
    records.scan(devices()).await;
    let store = &records.store;
    let (first, second) = ("0000:04:10.0", "0000:04:10.2");
    let server = ServerId(Uuid::new_v4());
    let accelerator = records.accelerator("one").await;
    let (holder, id) = (Holder::Accelerator(accelerator), AttachmentId(Uuid::new_v4()));
    let reserve = async |id: AttachmentId, parent: &str| {
        assert!(records.reserve_mdevs(server, holder, parent, &[id]).await.unwrap());
    };
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
    records.settle_mdev(id, present()).await;
    assert!(records.settle_mdev(id, Observation::DomainStopped).await.unrequested());
    assert_eq!(records.at(first).status, DeviceStatus::Available);

    // Its server came back on another card: a new row has the id, and the ended one goes on under another.
    assert!(adopt(second).await);
    let row = store.mdev(id).await.unwrap().unwrap();
    assert_eq!((row.state, row.holder, row.parent), (State::Attached, holder, records.at(second).id));
    assert_eq!((row.unrequested, records.at(second).status), (false, DeviceStatus::Allocated));
    assert_eq!(records.at(second).owner, Some(Owner::Host));
    assert!(!adopt(second).await, "it is on record");

    // While its holder has another one it is not adopted.
    records.settle_mdev(id, Observation::DomainStopped).await;
    let another = AttachmentId(Uuid::new_v4());
    reserve(another, first).await;
    records.settle_mdev(another, present()).await;
    assert!(!adopt(second).await);
    assert_eq!(records.at(second).status, DeviceStatus::Available);
    records.settle_mdev(another, Observation::DetachRequested).await;
    assert!(!records.settle_mdev(another, REMOVED).await.unrequested());

    // Nor is one that its holder does not want any more.
    store.release_accelerator(accelerator).await.unwrap();
    assert!(!store.mdev(id).await.unwrap().unwrap().unrequested);
    assert!(!adopt(second).await);
}
