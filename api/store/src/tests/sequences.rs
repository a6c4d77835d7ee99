//! Property tests: any sequence of claims, observations and scans keeps the invariants.

use std::collections::BTreeMap;

use hotslot_model::device::DeviceStatus;
use hotslot_model::event::EventKind;
use hotslot_model::id::DeviceId;
use proptest::prelude::*;

use super::*;

/// Returns the observations that occur in the state table.
fn observations() -> Vec<Observation> {
    let rows: Vec<serde_json::Value> =
        serde_json::from_str(include_str!("../../../model/tests/data/attachment_state.json")).unwrap();
    rows.iter().map(|row| serde_json::from_value(row["seen"].clone()).unwrap()).collect()
}

#[derive(Debug, Clone)]
enum Step {
    Claim(Vec<usize>),
    Attach(usize),
    Free(usize),
    See(usize, Observation),
    Scan([bool; 5]),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        prop::collection::vec(0..5usize, 1..3).prop_map(Step::Claim),
        (0..4usize).prop_map(Step::Attach),
        (0..4usize).prop_map(Step::Free),
        (0..8usize, prop::sample::select(observations())).prop_map(|(index, seen)| Step::See(index, seen)),
        any::<[bool; 5]>().prop_map(Step::Scan),
    ]
}

fn any_steps() -> impl Strategy<Value = Vec<Step>> {
    prop::collection::vec(step(), 1..24)
}

fn in_a_runtime(test: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(test);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn any_sequence_of_claims_observations_and_scans_keeps_the_invariants(steps in any_steps()) {
        in_a_runtime(async { keeps_the_invariants([Records::on_sqlite().await], steps).await });
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, ..ProptestConfig::default() })]

    #[test]
    fn any_sequence_by_two_processes_keeps_the_invariants(steps in any_steps()) {
        in_a_runtime(async { keeps_the_invariants(processes::two().await.into(), steps).await });
    }
}

/// Runs the steps, each in the next process, and checks the invariants after each.
async fn keeps_the_invariants<const N: usize>(processes: [Records; N], steps: Vec<Step>) {
    processes[0].scan(devices()).await;
    let (mut open, mut ended): (Vec<AttachmentId>, Vec<AttachmentId>) = Default::default();
    for (records, step) in processes.iter().cycle().zip(steps) {
        records.store.refresh().await.unwrap();
        let before = records.store.devices();
        match step {
            Step::Claim(which) => {
                let all = records.store.devices_of(records.host);
                let wanted: Option<Vec<String>> =
                    which.iter().map(|index| Some(all.get(*index)?.facts.address.to_string())).collect();
                let Some(wanted) = wanted else { continue };
                let wanted: Vec<&str> = wanted.iter().map(String::as_str).collect();
                match records.claim(&wanted).await {
                    Some(ids) => open.extend(ids),
                    None => assert_eq!(records.store.devices(), before, "a failed claim changes nothing"),
                }
            }
            Step::Attach(index) => {
                if let Some(id) = open.get(index) {
                    records.attached(*id).await;
                }
            }
            Step::Free(index) => {
                if index < open.len() {
                    let id = open.remove(index);
                    records.removed(id).await;
                    ended.push(id);
                }
            }
            // The attachment may have ended, and another one may have its device.
            Step::See(index, seen) => {
                if let Some(id) = ended.iter().chain(&open).nth(index).copied() {
                    let was = records.store.attachment(id).await.unwrap();
                    records.settle(id, seen).await;
                    let row = records.store.attachment(id).await.unwrap();
                    if ended.contains(&id) {
                        assert_eq!(row, was, "an ended attachment does not change");
                        assert_eq!(records.store.devices(), before);
                    } else if row.unwrap().state.is_final() {
                        open.retain(|other| *other != id);
                        ended.push(id);
                    }
                }
            }
            Step::Scan(present) => {
                let seen = devices().into_iter().zip(present).filter(|(_, here)| *here);
                records.scan(seen.map(|(facts, _)| facts).collect()).await;
            }
        }
        check(records, &open).await;
    }
}

async fn check(records: &Records, open: &[AttachmentId]) {
    let devices = records.store.devices_of(records.host);
    let held: Vec<_> = devices.iter().filter(|device| device.status.is_held()).collect();
    assert_eq!(held.len(), open.len(), "each open attachment has one device");
    for device in &devices {
        assert_eq!(device.status.is_held(), device.owner.is_some());
        let relatives: Vec<_> = devices
            .iter()
            .filter(|other| {
                other.facts.parent_addr == Some(device.facts.address)
                    || device.facts.parent_addr == Some(other.facts.address)
            })
            .collect();
        let held = relatives.iter().any(|relative| relative.status.is_held());
        if device.status.is_held() {
            assert!(!held, "a PF and a VF of it are never both in use: {devices:?}");
        } else {
            assert_eq!(device.status == DeviceStatus::Available, !held, "{devices:?}");
        }
    }
    for id in open {
        let row = records.store.attachment(*id).await.unwrap().unwrap();
        let device: DeviceId = row.device;
        let status = devices.iter().find(|other| other.id == device).map(|other| other.status);
        assert_eq!(
            status,
            Some(State::device_status(row.state)),
            "the status of the device matches its attachment"
        );
    }
    let before = records.store.devices();
    records.store.read_devices().await.unwrap();
    assert_eq!(records.store.devices(), before, "memory and database agree");
    replay(records, open).await;
}

/// Checks that replaying the events gives the current state, and that each event starts from the state before it.
async fn replay(records: &Records, open: &[AttachmentId]) {
    let (mut devices, mut attachments) = (BTreeMap::new(), BTreeMap::new());
    for (event, id) in records.events().await.into_iter().zip(1..) {
        assert_eq!(event.id, EventId(id), "ids have no gaps");
        let Event { what, .. } = event;
        let device = what.device.unwrap();
        match what.kind {
            EventKind::DeviceAdded => {
                let status = what.to.map(|to| to["status"].clone());
                assert_eq!(devices.insert(device, status.unwrap()), None);
            }
            EventKind::DeviceStatus => {
                assert_eq!(devices.insert(device, what.to.unwrap()), what.from);
            }
            EventKind::DeviceRemoved => assert_eq!(devices.remove(&device), what.from),
            EventKind::AttachmentState => {
                assert_eq!(attachments.insert(what.attachment.unwrap(), what.to.unwrap()), what.from);
            }
            EventKind::DeviceGone
            | EventKind::DeviceBack
            | EventKind::AttachmentInnerAddress
            | EventKind::AttachmentReason => {}
            EventKind::DeviceChanged
            | EventKind::DeviceUsed
            | EventKind::DeviceQuarantined
            | EventKind::DeviceCleaned
            | EventKind::DeviceScrub
            | EventKind::AttachmentGivenBack
            | EventKind::BindingState
            | EventKind::MdevState
            | EventKind::RuleAdded
            | EventKind::RuleChanged
            | EventKind::RuleRemoved
            | EventKind::AcceleratorCreated
            | EventKind::AcceleratorChanged
            | EventKind::AcceleratorReleased
            | EventKind::AcceleratorRemoved
            | EventKind::ProfileCreated
            | EventKind::ProfileRemoved
            | EventKind::ArqCreated
            | EventKind::ArqState
            | EventKind::ArqRemoved
            | EventKind::AttributeCreated
            | EventKind::AttributeRemoved
            | EventKind::CardDisabled
            | EventKind::CardEnabled
            | EventKind::WebhookRedelivered
            | EventKind::TokensChanged
            | EventKind::ServerOwner
            | EventKind::ServerPorts
            | EventKind::QuotaChanged
            | EventKind::HostMode
            | EventKind::HostVfs
            | EventKind::HostVgpuType
            | EventKind::HostDriver
            | EventKind::HostProfileFailed
            | EventKind::RequestRefused => panic!("{} happens in no step", what.kind),
        }
    }
    let rows = records.store.devices();
    let statuses = rows.iter().map(|row| (row.id, serde_json::Value::from(row.status.as_str()))).collect();
    assert_eq!(devices, statuses);
    attachments.retain(|_, state| state != "detached" && state != "failed");
    assert_eq!(attachments.keys().collect::<std::collections::BTreeSet<_>>(), open.iter().collect());
}
