//! Accelerators, and the bindings that they hold.

use hotslot_driver::binding::HostDriver;
use hotslot_model::accelerator::AccSpec;
use hotslot_model::assignment::{Holder, NewBinding};
use hotslot_model::device::AfterUse;
use hotslot_model::event::EventKind;
use hotslot_model::id::AcceleratorId;

use super::*;

on_both! {
    accelerator_names_are_unique_and_an_accelerator_holds_one_request
    a_device_that_comes_back_keeps_its_row_when_an_accelerator_is_fixed_to_it
}

async fn accelerator_names_are_unique_and_an_accelerator_holds_one_request(records: Records) {
    records.scan(devices()).await;
    let store = &records.store;
    let vf = records.at("0000:04:10.0");
    let made = store.create_accelerator("one", AcceleratorId(vf.uuid), Some("p")).await.unwrap();
    assert_eq!(made.pinned, Some(vf.id));
    for (name, id) in [("one", Uuid::new_v4()), ("other", vf.uuid)] {
        let refused = store.create_accelerator(name, AcceleratorId(id), None).await.unwrap_err();
        assert!(matches!(refused, Error::AlreadyExists(_)), "{refused}");
    }
    let spec = AccSpec::read(&serde_json::json!({ "num": 2, "mine": { "a": [1] } })).unwrap();
    let put = store.put_acc_spec(made.id, &spec, Some(0)).await.unwrap();
    assert_eq!((put.generation, put.spec.as_ref()), (1, Some(&spec)));
    assert!(matches!(store.put_acc_spec(made.id, &spec, Some(0)).await.unwrap_err(), Error::Conflict(_)));
    assert_eq!(store.accelerator(made.id).await.unwrap().unwrap(), put);

    let holder = Holder::Accelerator(made.id);
    let bind = async |device: &Arc<Device>| {
        let new = NewBinding {
            id: AttachmentId(Uuid::new_v4()),
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
    // An accelerator cannot hold a second request, nor be purged while it holds a device.
    let other = records.at("0000:04:10.2");
    assert!(matches!(bind(&other).await.unwrap_err(), Error::Conflict(_)));
    assert!(matches!(store.purge_accelerator(made.id).await.unwrap_err(), Error::Conflict(_)));
    let key = AssignmentKey { kind: AssignmentKind::Binding, id };
    let bound = Observation::Present { inner: None, only_in_definition: false, same_run: true };
    store.settle(&[(key, bound)]).await.unwrap();
    assert_eq!(records.at("0000:04:10.0").status, DeviceStatus::Allocated);
    assert_eq!(store.held_by(holder).await.unwrap().len(), 1);
    // `forget` does not free a device that its host holds, although it has no attachment.
    store.forget(vf.id, AfterUse::Offered).await.unwrap();
    assert_eq!(records.at("0000:04:10.0").owner, Some(Owner::Host));
    store.settle(&[(key, Observation::Removed { reason: Some("why".into()) })]).await.unwrap();
    let free = records.at("0000:04:10.0");
    assert_eq!((free.owner, free.status), (None, DeviceStatus::Available));
    assert_eq!(store.assignment(key).await.unwrap().unwrap().reason(), Some("why"));
    let events = records.events().await;
    let of_binding = events.iter().filter(|event| event.what.kind == EventKind::BindingState);
    let states: Vec<_> = of_binding.map(|event| event.what.to.clone().unwrap()).collect();
    assert_eq!(states, ["attaching", "attached", "detached"]);
    assert!(store.purge_accelerator(made.id).await.unwrap());
    assert!(!store.purge_accelerator(made.id).await.unwrap());
    // A purged accelerator gets no device.
    assert!(matches!(bind(&other).await.unwrap_err(), Error::NoAccelerator(_)));
    assert_eq!(records.at("0000:04:10.2").owner, None);
}

async fn a_device_that_comes_back_keeps_its_row_when_an_accelerator_is_fixed_to_it(records: Records) {
    records.scan(devices()).await;
    let store = &records.store;
    let (pinned, other) = (records.at("0000:04:10.0"), records.at("0000:04:10.1"));
    store.create_accelerator("one", AcceleratorId(pinned.uuid), None).await.unwrap();
    let remove_vfs = || async {
        let mut without = devices();
        without.retain(|facts| facts.parent_addr.is_none());
        assert_eq!(records.scan(without).await.removed, 3);
    };
    remove_vfs().await;
    // An accelerator can be created for a device that is gone.
    let late = store.create_accelerator("late", AcceleratorId(other.uuid), None).await.unwrap();
    assert_eq!(late.pinned, Some(other.id));
    assert_eq!(store.known_device(other.id).await.unwrap().unwrap().status, DeviceStatus::Deleted);
    for _ in 0..2 {
        let since = records.last_event().await;
        assert_eq!(records.scan(devices()).await.added, 3);
        assert_eq!(records.event_lines(since).await, ["device.added - -"; 3]);
        for was in [&pinned, &other] {
            let now = records.at(&was.facts.address.to_string());
            assert_eq!((now.id, now.uuid, now.status), (was.id, was.uuid, DeviceStatus::Available));
        }
        // A device without an accelerator gets a new row.
        assert!(records.at("0000:04:10.2").id.0 > 5);
        let before = store.devices();
        store.read_devices().await.unwrap();
        assert_eq!(store.devices(), before);
        let claimed = records.claim(&["0000:04:10.0"]).await.unwrap()[0];
        assert_eq!(records.at("0000:04:00.0").status, DeviceStatus::Unclaimable);
        records.removed(claimed).await;
        remove_vfs().await;
    }
    // A device with other ids at the address is a different device.
    let mut changed = devices();
    changed.retain(|facts| facts.parent_addr.is_none() || facts.address == pinned.facts.address);
    changed[2].product_id = "1533".parse().unwrap();
    records.scan(changed).await;
    assert_ne!(records.at("0000:04:10.0").id, pinned.id);
}
