//! The tables of the Cyborg API.

use hotslot_model::assignment::Holder;
use hotslot_model::cyborg::{ArqState, ArqTarget, DeviceProfile, Group};
use hotslot_model::id::{ArqId, DeviceProfileId};

use super::*;

on_both! {
    a_device_profile_that_requests_use_cannot_be_deleted
    a_request_that_holds_a_device_cannot_be_bound_unbound_or_deleted
    cards_are_disabled_and_attributes_are_stored
}

pub(super) fn profile(name: &str) -> DeviceProfile {
    let groups = serde_json::json!([{ "resources:CUSTOM_QAT": "2", "trait:CUSTOM_A": "required" }]);
    let groups = Group::read_all(&groups).unwrap();
    DeviceProfile {
        id: DeviceProfileId(Uuid::new_v4()),
        name: name.into(),
        description: Some("text".into()),
        groups,
        created_at: now(),
    }
}

async fn a_device_profile_that_requests_use_cannot_be_deleted(records: Records) {
    let store = &records.store;
    let (one, other) = (profile("one"), profile("other"));
    store.create_device_profile(&one).await.unwrap();
    store.create_device_profile(&other).await.unwrap();
    for taken in [DeviceProfile { id: DeviceProfileId(Uuid::new_v4()), ..one.clone() }, profile("one")] {
        assert!(matches!(store.create_device_profile(&taken).await, Err(Error::AlreadyExists(_))));
    }
    let same_id = DeviceProfile { name: "third".into(), ..one.clone() };
    assert!(matches!(store.create_device_profile(&same_id).await, Err(Error::AlreadyExists(_))));
    assert_eq!(store.device_profiles().await.unwrap(), [one.clone(), other.clone()]);
    assert_eq!(store.device_profile_called("one").await.unwrap().unwrap(), one);

    let made = store.create_arqs(one.id, &[(0, "CUSTOM_QAT"), (0, "CUSTOM_QAT")], Some("p")).await.unwrap();
    let rows = store.arqs(ArqFilter::default(), 0, 10).await.unwrap();
    let rows: Vec<_> = rows.into_iter().map(|(_, row)| row).collect();
    assert_eq!(rows.iter().map(|row| row.id).collect::<Vec<_>>(), made);
    assert_eq!(
        (rows[0].profile.as_str(), rows[0].project.as_deref(), rows[0].state),
        ("one", Some("p"), ArqState::Initial)
    );
    // On an error nothing is changed.
    let refused = store.delete_device_profiles(&[other.id, one.id]).await.unwrap_err();
    assert!(refused.to_string().contains(&made[0].to_string()), "{refused}");
    assert_eq!(store.device_profiles().await.unwrap().len(), 2);
    for id in made {
        store.delete_arq(id).await.unwrap();
    }
    store.delete_device_profiles(&[one.id, other.id]).await.unwrap();
    assert!(matches!(store.delete_device_profiles(&[one.id]).await, Err(Error::NotFound(_))));
    assert!(matches!(store.create_arqs(one.id, &[], None).await, Err(Error::NotFound(_))));
}

async fn a_request_that_holds_a_device_cannot_be_bound_unbound_or_deleted(records: Records) {
    records.scan(devices()).await;
    let store = &records.store;
    let profile = profile("one");
    store.create_device_profile(&profile).await.unwrap();
    let made = store.create_arqs(profile.id, &[(0, "A"), (0, "A")], None).await.unwrap();
    let target = ArqTarget { hostname: "node1".into(), rp: Uuid::new_v4(), server: ServerId(Uuid::new_v4()) };
    let bind = |id: ArqId, project: Option<&str>| (id, target.clone(), project.map(str::to_owned));
    store.begin_bind(&[bind(made[0], Some("p"))]).await.unwrap();
    let row = store.arq(made[0]).await.unwrap().unwrap();
    assert_eq!((row.state, row.target.as_ref()), (ArqState::BindStarted, Some(&target)));
    assert_eq!(row.project.as_deref(), Some("p"));

    let holder = Holder::AcceleratorRequest(made[0]);
    let request = RequestId(Uuid::new_v4());
    let reservation =
        Reservation { holder: Some(holder), ..reservation(records.host, target.server, request) };
    let wanted = [new_attachment(records.at("0000:04:10.0"))];
    assert!(store.reserve(reservation, &wanted).await.unwrap().is_some());
    assert_eq!(store.held_by(holder).await.unwrap()[0].id(), wanted[0].id);
    // On an error nothing is changed.
    let refused = store.begin_bind(&[bind(made[1], None), bind(made[0], None)]).await;
    assert!(matches!(refused, Err(Error::Conflict(_))));
    assert_eq!(store.arq(made[1]).await.unwrap().unwrap().state, ArqState::Initial);
    assert!(matches!(store.unbind_arq(made[0]).await, Err(Error::Conflict(_))));
    assert!(matches!(store.delete_arq(made[0]).await, Err(Error::Conflict(_))));

    records.settle(wanted[0].id, Observation::AttachRefused { reason: "no".into() }).await;
    store.put_arq_state(made[0], ArqState::BindFailed, Some("no")).await.unwrap();
    let row = store.arq(made[0]).await.unwrap().unwrap();
    assert_eq!((row.state, row.reason.as_deref()), (ArqState::BindFailed, Some("no")));
    store.unbind_arq(made[0]).await.unwrap();
    let row = store.arq(made[0]).await.unwrap().unwrap();
    assert_eq!((row.state, row.reason, row.target), (ArqState::Unbound, None, None));
    store.delete_arq(made[0]).await.unwrap();
    assert_eq!(store.arq(made[0]).await.unwrap(), None);
    // A deleted request gets no device.
    let again = [new_attachment(records.at("0000:04:10.0"))];
    assert!(matches!(store.reserve(reservation, &again).await, Err(Error::NotFound(_))));
    assert_eq!(records.at("0000:04:10.0").owner, None);
}

async fn cards_are_disabled_and_attributes_are_stored(records: Records) {
    records.scan(devices()).await;
    let (store, host) = (&records.store, records.host);
    let card: PciAddress = "0000:04:00.0".parse().unwrap();
    for disabled in [true, true, false, false] {
        store.disable_card(host, card, disabled).await.unwrap();
        assert_eq!(store.disabled_cards(host).await.unwrap().contains(&card), disabled);
    }
    let attribute = store.create_attribute(records.at("0000:04:00.0").id, "rack", "r1").await.unwrap();
    assert_eq!(store.attributes().await.unwrap(), std::slice::from_ref(&attribute));
    assert!(store.delete_attribute(attribute.id).await.unwrap());
    assert!(!store.delete_attribute(attribute.id).await.unwrap());
}
