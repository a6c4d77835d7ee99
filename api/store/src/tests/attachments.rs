//! Attachments: which device is reserved, and which is adopted.

use hotslot_driver::vf::VfSettings;
use hotslot_model::assignment::{Adopted, Adoption, Attachment, Holder, Network};
use hotslot_model::id::AcceleratorId;

use super::*;

on_both! {
    a_device_that_was_replaced_since_it_was_chosen_is_not_claimed
    a_device_in_a_domain_is_adopted_once_and_only_if_it_is_free
    a_device_that_comes_back_with_its_domain_is_adopted_under_its_old_id
    a_holder_gets_back_devices_that_come_back_until_it_is_released
}

async fn a_device_that_was_replaced_since_it_was_chosen_is_not_claimed(records: Records) {
    records.scan(devices()).await;
    let chosen = records.at("0000:05:00.0");
    let mut other = devices();
    other[1].product_id = "1533".parse().unwrap();
    records.scan(other).await;
    let wanted = new_attachment(chosen);
    let (server, request) = (ServerId(Uuid::new_v4()), RequestId(Uuid::new_v4()));
    let reservation = reservation(records.host, server, request);
    assert!(records.store.reserve(reservation, &[wanted]).await.unwrap().is_none());
}

async fn a_device_in_a_domain_is_adopted_once_and_only_if_it_is_free(records: Records) {
    records.scan(devices()).await;
    let taken = records.claim(&["0000:05:00.0"]).await.unwrap()[0];
    let found = |address: &str, mac: Option<&str>| Adoption {
        id: AttachmentId(Uuid::new_v4()),
        hypervisor: records.host,
        server: ServerId(Uuid::new_v4()),
        address: address.parse().unwrap(),
        persistent: true,
        inner: Some("0000:06:00.0".parse().unwrap()),
        what: Adopted::Function {
            managed: true,
            network: mac.map(|mac| Network {
                mac: mac.parse().unwrap(),
                vlan: None,
                physical_network: None,
                trusted: None,
                vf: VfSettings::default(),
            }),
        },
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
    records.settle(vf.id, Observation::DetachRequested).await;
    records.removed(vf.id).await;
    assert_eq!(records.at("0000:04:10.0").status, DeviceStatus::Available);
    assert!(
        !records.store.adopt(&vf).await.unwrap(),
        "an attachment that was detached on request is not adopted"
    );
}

/// Returns the adoption of an attachment that is found in the documents of its domain.
pub(super) fn as_found(records: &Records, row: &Attachment, address: &str) -> Adoption {
    Adoption {
        id: row.id,
        hypervisor: records.host,
        server: row.server,
        address: address.parse().unwrap(),
        persistent: false,
        inner: None,
        what: Adopted::Function { managed: true, network: None },
    }
}

async fn a_device_that_comes_back_with_its_domain_is_adopted_under_its_old_id(records: Records) {
    records.scan(devices()).await;
    let (one, other) = ("0000:05:00.0", "0000:04:10.0");
    // An attachment that was detached on request, or whose attach failed, is not adopted.
    let detached = records.claim(&[one]).await.unwrap()[0];
    records.attached(detached).await;
    records.settle(detached, Observation::DetachRequested).await;
    records.settle(detached, Observation::Absent).await;
    let failed = records.claim(&[one]).await.unwrap()[0];
    records.settle(failed, Observation::Absent).await;
    for id in [detached, failed] {
        let row = records.store.attachment(id).await.unwrap().unwrap();
        assert!(row.state.is_final() && !row.unrequested, "{row:?}");
        assert!(!records.store.adopt(&as_found(&records, &row, one)).await.unwrap());
    }
    for ending in [Observation::Absent, Observation::DomainStopped, Observation::DomainGone] {
        let id = records.claim(&[one]).await.unwrap()[0];
        records.attached(id).await;
        records.settle(id, ending).await;
        let was = records.store.attachment(id).await.unwrap().unwrap();
        assert!(was.unrequested, "{was:?}");
        // The domain may come back with another device, as on another host.
        assert!(records.store.adopt(&as_found(&records, &was, other)).await.unwrap());
        let is = records.store.attachment(id).await.unwrap().unwrap();
        assert_eq!((is.state, is.server, is.request), (State::Attached, was.server, was.request));
        assert_eq!((is.alias.as_str(), is.persistent, is.unrequested), ("a", false, false));
        let device = records.at(other);
        assert_eq!((device.status, device.request), (DeviceStatus::Allocated, Some(was.request)));
        // The ended row still exists and is not counted twice.
        let ended = records.store.ended_attachments(Some(was.server), 9).await.unwrap();
        assert_eq!(ended.len(), 1);
        assert_eq!((ended[0].ended_at, ended[0].device), (was.ended_at, was.device));
        assert_ne!(ended[0].id, id);
        assert_eq!(records.store.rows_of_request(was.request).await.unwrap(), 1);
        assert!(
            !records.store.adopt(&as_found(&records, &was, one)).await.unwrap(),
            "the attachment is open"
        );
        records.settle(id, Observation::DetachRequested).await;
        records.settle(id, Observation::Absent).await;
    }
    let id = records.claim(&[one]).await.unwrap()[0];
    records.attached(id).await;
    records.settle(id, Observation::DomainStopped).await;
    records.store.forgo_return(super::attachment(id)).await.unwrap();
    let row = records.store.attachment(id).await.unwrap().unwrap();
    assert!(
        !records.store.adopt(&as_found(&records, &row, one)).await.unwrap(),
        "its detach was requested later"
    );
}

async fn a_holder_gets_back_devices_that_come_back_until_it_is_released(records: Records) {
    records.scan(devices()).await;
    let (server, id) = (ServerId(Uuid::new_v4()), AcceleratorId(Uuid::new_v4()));
    records.store.create_accelerator("a", id, None).await.unwrap();
    let holder = Holder::Accelerator(id);
    let places = ["0000:05:00.0", "0000:04:10.0"];
    let wanted = places.map(|address| new_attachment(records.at(address)));
    let ids = [wanted[0].id, wanted[1].id];
    let request = RequestId(Uuid::new_v4());
    let reservation = Reservation { holder: Some(holder), ..reservation(records.host, server, request) };
    assert!(records.store.reserve(reservation, &wanted).await.unwrap().is_some());
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
    assert_eq!(
        records.store.rows_of_request(request).await.unwrap(),
        2,
        "adopting does not change the count"
    );
    // An accelerator that takes any device can come back with another device.
    records.settle(ids[0], Observation::DomainStopped).await;
    let row = records.store.attachment(ids[0]).await.unwrap().unwrap();
    assert!(records.store.adopt(&as_found(&records, &row, "0000:04:10.1")).await.unwrap());
    let row = records.store.attachment(ids[0]).await.unwrap().unwrap();
    assert_eq!((row.holder, row.request), (Some(holder), request));
    assert_eq!(records.store.rows_of_request(request).await.unwrap(), 2);
    // After the accelerator is released, its devices are not adopted.
    for id in ids {
        records.settle(id, Observation::DomainStopped).await;
    }
    records.store.release_accelerator(id).await.unwrap();
    for (id, place) in ids.into_iter().zip(places) {
        let row = records.store.attachment(id).await.unwrap().unwrap();
        assert!(!row.unrequested);
        assert!(!records.store.adopt(&as_found(&records, &row, place)).await.unwrap());
    }
}
