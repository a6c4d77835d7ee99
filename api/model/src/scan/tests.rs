//! Tests of scans: a table of single scans, and properties of any sequence of them.

use proptest::prelude::*;
use serde_json::Value;

use super::*;
use crate::device::DevType;
use crate::event;
use crate::id::ServerId;

const HOST: HypervisorId = HypervisorId(1);
const SERVER: Owner = Owner::Server(ServerId(Uuid::nil()));
const NOW: Millis = 1000;
const CARD_SERIAL_NUMBER: &str = "card_serial_number";

/// Reads the facts of a device from a case of `scan.json`.
fn facts(case: &Value) -> DeviceFacts {
    let text = |key: &str| case[key].as_str();
    let parent_addr = text("pf").map(|pf| pf.parse().unwrap());
    DeviceFacts {
        address: text("at").unwrap().parse().unwrap(),
        vendor_id: "8086".parse().unwrap(),
        product_id: text("product").unwrap_or("10c9").parse().unwrap(),
        dev_type: if parent_addr.is_some() { DevType::Vf } else { DevType::Pf },
        numa_node: None,
        parent_addr,
        extra_info: text("serial").map(|serial| (CARD_SERIAL_NUMBER, serial)).into_iter().collect(),
    }
}

/// Reads a row from a case of `scan.json`.
fn row(case: &Value) -> Arc<Device> {
    let status = case["status"].as_str().unwrap_or("available").parse::<DeviceStatus>().unwrap();
    Arc::new(Device {
        status,
        owner: status.is_held().then_some(SERVER),
        gone_at: case["gone_at"].as_i64(),
        used_at: case["used_at"].as_i64(),
        ..Device::new(DeviceId(case["id"].as_i64().unwrap()), Uuid::nil(), HOST, facts(case), 0)
    })
}

fn list<T>(case: &Value, read: fn(&Value) -> T) -> Vec<T> {
    case.as_array().into_iter().flatten().map(read).collect()
}

/// Returns a row as the cases show it: its id, address, product and status, and when it was gone or used.
fn shown(row: &Device) -> String {
    let facts = &row.facts;
    let gone = row.gone_at.map(|time| format!(" gone_at {time}")).unwrap_or_default();
    let used = row.used_at.map(|time| format!(" used_at {time}")).unwrap_or_default();
    format!("{} {} {} {}{gone}{used}", row.id.0, facts.address, facts.product_id, row.status)
}

fn notice(notice: &Notice) -> String {
    match notice {
        Notice::Moved { from, to } => format!("moved {from} {to}"),
        Notice::Unclear { address } => format!("unclear {address}"),
        Notice::Occupied { address, .. } => format!("occupied {address}"),
        Notice::MovedInUse { from, to, .. } => format!("moved in use {from} {to}"),
        Notice::BothInUse { address, .. } => format!("both in use {address}"),
    }
}

/// Plans a scan. New rows get ids from 100 on.
fn plan(
    rows: Vec<Arc<Device>>,
    former: &[Arc<Device>],
    scope: ScanScope<'_>,
    seen: Vec<DeviceFacts>,
) -> ScanPlan {
    let former = former.iter().map(|row| (row.facts.address, Arc::clone(row))).collect();
    let mut next = rows.iter().map(|row| row.id.0 + 1).fold(100, i64::max);
    let new_id = || {
        let id = DeviceId(next);
        next += 1;
        (id, Uuid::nil())
    };
    Comparison::new(rows, scope, seen).plan(HOST, former, new_id, NOW)
}

#[test]
fn each_scan_of_the_table_writes_the_rows_that_it_names() {
    let cases: Vec<Value> = serde_json::from_str(include_str!("../../tests/data/scan.json")).unwrap();
    for case in cases {
        let rows = list(&case["rows"], row);
        let addresses = case["scope"].as_array().map(|_| {
            list(&case["scope"], |address| address.as_str().unwrap().parse().unwrap()).into_iter().collect()
        });
        let scope = addresses.as_ref().map_or(ScanScope::Everywhere, ScanScope::At);
        let plan = plan(rows.clone(), &list(&case["former"], row), scope, list(&case["seen"], facts));
        let why = &case["why"];
        assert_eq!(Value::from_iter(plan.rows.values().map(|row| shown(row))), case["writes"], "{why}");
        let revived: Vec<_> = plan.revived.iter().map(|row| row.id.0).collect();
        assert_eq!(revived, list(&case["revived"], |id| id.as_i64().unwrap()), "{why}");
        let ScanOutcome { added, changed, removed, gone_in_use, changed_in_use, written } = plan.outcome;
        assert_eq!(written, plan.rows.len(), "{why}");
        let counts = [
            ("added", added),
            ("changed", changed),
            ("removed", removed),
            ("gone_in_use", gone_in_use.len()),
            ("changed_in_use", changed_in_use),
        ];
        let counts = counts.into_iter().filter(|(_, count)| *count > 0);
        let counts: Value = counts.map(|(name, count)| (name.to_owned(), Value::from(count))).collect();
        assert_eq!(counts, case["counts"], "{why}");
        let notices: Vec<_> = plan.notices.iter().map(notice).collect();
        assert_eq!(notices, list(&case["notices"], |line| line.as_str().unwrap().to_owned()), "{why}");
        let was = |id: &DeviceId| rows.iter().find(|row| row.id == *id).map(|row| &**row);
        let events = plan.rows.iter().flat_map(|(id, row)| event::of_device(was(id), row));
        let events: Vec<_> = events.map(|event| event.kind.to_string()).collect();
        assert_eq!(events, list(&case["events"], |kind| kind.as_str().unwrap().to_owned()), "{why}");
    }
}

/// A change of the host or its records between two scans.
#[derive(Debug, Clone)]
enum Step {
    /// A free device, the nth of the rows, is given to a server.
    Hold(usize),
    /// The nth of the rows is taken from its server. It may have to be cleaned.
    Free(usize, bool),
    /// The host has the devices at these places now, each with its serial number, or with none.
    Scan([Option<(u8, bool)>; PLACES]),
    /// The same, but only some of the addresses are read.
    ScanAt([Option<(u8, bool)>; PLACES], [bool; PLACES]),
}

/// A PF, two VFs of it, and two other devices.
const PLACES: usize = 5;

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let places = || {
        let serials = Just([0, 1, 2, 3, 4, 5, 6]).prop_shuffle();
        let devices = prop::array::uniform5(prop::option::weighted(0.8, prop::bool::weighted(0.8)));
        (serials, devices).prop_map(|(serials, devices)| {
            let mut serials = serials.into_iter();
            devices.map(|has_serial| serials.next().zip(has_serial))
        })
    };
    let step = prop_oneof![
        (0..PLACES).prop_map(Step::Hold),
        (0..PLACES, any::<bool>()).prop_map(|(index, used)| Step::Free(index, used)),
        places().prop_map(Step::Scan),
        (places(), any::<[bool; PLACES]>()).prop_map(|(places, covered)| Step::ScanAt(places, covered)),
    ];
    prop::collection::vec(step, 1..20)
}

fn devices(places: &[Option<(u8, bool)>; PLACES]) -> Vec<DeviceFacts> {
    let pf: PciAddress = "0000:04:00.0".parse().unwrap();
    let addresses = ["0000:04:00.0", "0000:04:10.0", "0000:04:10.1", "0000:05:00.0", "0000:06:00.0"];
    let mut devices = Vec::new();
    for (index, (address, device)) in addresses.iter().zip(places).enumerate() {
        let Some((serial, has_serial)) = device else { continue };
        let is_vf = index == 1 || index == 2;
        devices.push(DeviceFacts {
            address: address.parse().unwrap(),
            vendor_id: "8086".parse().unwrap(),
            product_id: if is_vf { "10ca" } else { "10c9" }.parse().unwrap(),
            dev_type: if is_vf { DevType::Vf } else { DevType::Pf },
            numa_node: None,
            parent_addr: is_vf.then_some(pf),
            extra_info: has_serial.then(|| (CARD_SERIAL_NUMBER, format!("S{serial}"))).into_iter().collect(),
        });
    }
    devices
}

/// The rows of a host, in order of address.
#[derive(Default)]
struct Records(BTreeMap<DeviceId, Arc<Device>>);

impl Records {
    fn in_order(&self) -> Vec<Arc<Device>> {
        let mut rows: Vec<_> = self.0.values().cloned().collect();
        rows.sort_by_key(|row| row.facts.address);
        rows
    }

    fn edit(&mut self, index: usize, edit: impl FnOnce(&mut Device)) {
        if let Some(row) = self.0.values_mut().nth(index) {
            edit(Arc::make_mut(row));
        }
    }

    fn scan(&mut self, scope: ScanScope<'_>, seen: Vec<DeviceFacts>) -> ScanPlan {
        let plan = plan(self.in_order(), &[], scope, seen);
        self.0.extend(plan.rows.clone());
        self.0.retain(|_, row| row.status != DeviceStatus::Deleted);
        plan
    }

    /// Gives the nth device to a server if it is free. Its relatives follow, as in a claim.
    fn hold(&mut self, index: usize) {
        self.edit(index, |row| {
            if row.gone_at.is_none() && row.used_at.is_none() && row.status == DeviceStatus::Available {
                (row.status, row.owner) = (DeviceStatus::Allocated, Some(SERVER));
            }
        });
        self.scan(ScanScope::At(&BTreeSet::new()), Vec::new());
    }

    fn free(&mut self, index: usize, used: bool) {
        self.edit(index, |row| {
            if row.status.is_held() {
                (row.status, row.owner) = (DeviceStatus::Available, None);
                row.used_at = used.then_some(NOW);
            }
        });
    }

    fn has_serials_twice(&self) -> bool {
        let mut serials = BTreeSet::new();
        let all = self.0.values().filter_map(|row| row.facts.extra_info.get(CARD_SERIAL_NUMBER));
        !all.into_iter().all(|serial| serials.insert(serial))
    }

    /// Checks the rows after a scan in which the host had the devices `seen` at `addresses`.
    fn check(&self, seen: &[DeviceFacts], addresses: &BTreeSet<PciAddress>) -> Result<(), TestCaseError> {
        let rows = self.in_order();
        let by_address: BTreeMap<_, _> = rows.iter().map(|row| (row.facts.address, row)).collect();
        prop_assert_eq!(by_address.len(), rows.len(), "two rows have the same address");
        for facts in seen {
            let row = by_address.get(&facts.address);
            prop_assert!(row.is_some_and(|row| row.facts == *facts || stays(row)), "{facts:?}");
        }
        for row in &rows {
            let is_there = seen.iter().any(|facts| facts.address == row.facts.address);
            let is_covered = addresses.contains(&row.facts.address);
            prop_assert!(is_there || !is_covered || stays(row) && row.gone_at.is_some(), "{row:?}");
            let is_relative = |other: &&Arc<Device>| {
                row.facts.parent_addr == Some(other.facts.address)
                    || other.facts.parent_addr == Some(row.facts.address)
            };
            let relative_is_held = rows.iter().filter(is_relative).any(|other| other.status.is_held());
            let is_free = row.status == DeviceStatus::Available;
            prop_assert!(row.status.is_held() || is_free != relative_is_held, "{rows:?}");
        }
        Ok(())
    }
}

proptest! {
    /// For any scans, and any devices that are held and freed between them: a device in use keeps its row and its owner,
    /// no address has two rows, each device of the host has a row unless the row of another one stays at its address, what
    /// is gone and available has no row, a status follows from the statuses of the relatives, and a repeated scan writes
    /// nothing.
    #[test]
    fn any_scans_keep_the_rules(steps in steps()) {
        let mut records = Records::default();
        for step in steps {
            let (places, covered) = match step {
                Step::Hold(index) => {
                    records.hold(index);
                    continue;
                }
                Step::Free(index, used) => {
                    records.free(index, used);
                    continue;
                }
                Step::Scan(places) => (places, [true; PLACES]),
                Step::ScanAt(places, covered) => (places, covered),
            };
            let addresses = devices(&[Some((0, false)); PLACES]).into_iter().zip(covered);
            let addresses: BTreeSet<_> =
                addresses.filter(|(_, covered)| *covered).map(|(facts, _)| facts.address).collect();
            let everywhere = addresses.len() == PLACES;
            let scope = if everywhere { ScanScope::Everywhere } else { ScanScope::At(&addresses) };
            let mut seen = devices(&places);
            seen.retain(|facts| addresses.contains(&facts.address));
            let (before, ambiguous) = (records.0.clone(), records.has_serials_twice());
            let plan = records.scan(scope, seen.clone());
            for (id, row) in &plan.rows {
                prop_assert_ne!(before.get(id), Some(row), "only rows that differ are written");
            }
            for row in before.values().filter(|row| row.status.is_held()) {
                let is = records.0.get(&row.id);
                prop_assert_eq!(is.map(|is| (is.status, is.owner)), Some((row.status, row.owner)));
            }
            records.check(&seen, &addresses)?;
            // After a device has moved to the address of a row that stays, the next scan finds other facts there, not a
            // move. After a scan of some addresses, a device may have two rows, and none is recognised.
            let occupied = plan.notices.iter().any(|notice| matches!(notice, Notice::Occupied { .. }));
            if everywhere && !occupied && !ambiguous {
                let again = records.scan(scope, seen);
                prop_assert_eq!(again.outcome.written, 0, "{:?}", again.rows);
            }
        }
    }
}
