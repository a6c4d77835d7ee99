//! Counts the free devices of each kind: Nova's pools, and the `pci_stats` of the hypervisor API.

use std::collections::BTreeMap;
use std::sync::Arc;

use hotslot_driver::pci::{PciAddress, PciId};

use crate::device::{DevType, Device, DeviceStatus};

const REMOTE_MANAGED: &str = "remote_managed";
const PARENT_IFNAME: &str = "parent_ifname";

/// A group of similar devices, as Nova groups them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pool {
    /// Vendor id.
    pub vendor_id: PciId,
    /// Product id.
    pub product_id: PciId,
    /// The NUMA node, or `None` when it is not known.
    pub numa_node: Option<u32>,
    /// Nova's type of the devices.
    pub dev_type: DevType,
    /// The address of the PF for VFs, or the address of the device itself.
    pub address: PciAddress,
    /// The grouping keys of `extra_info`. As in Nova, `remote_managed` defaults to "false", except for `type-PCI`.
    pub tags: BTreeMap<String, String>,
    /// The number of free devices; 0 when all are in use.
    pub count: usize,
}

/// One entry of `pci_stats`: a group of similar devices, whichever PF they belong to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stat {
    /// Vendor id.
    pub vendor_id: PciId,
    /// Product id.
    pub product_id: PciId,
    /// The NUMA node, or `None` when it is not known.
    pub numa_node: Option<u32>,
    /// The grouping keys of `extra_info` as configured, without `parent_ifname`.
    pub tags: BTreeMap<String, String>,
    /// The number of free devices; 0 when all are in use.
    pub count: usize,
}

/// Returns the pools of the devices of one host, first those with fewer tags, then in order of their values.
pub fn pools(devices: &[Arc<Device>], is_grouping_key: impl Fn(&str) -> bool) -> Vec<Pool> {
    let counts = count(devices, |device| {
        let facts = &device.facts;
        let mut tags = tags(device, &is_grouping_key);
        if facts.dev_type != DevType::Pci {
            tags.entry(REMOTE_MANAGED).or_insert("false");
        }
        let address = facts.parent_addr.unwrap_or(facts.address);
        (tags.len(), facts.vendor_id, facts.product_id, facts.numa_node, facts.dev_type, address, tags)
    });
    let pool = |((_, vendor_id, product_id, numa_node, dev_type, address, tags), count)| {
        let tags = owned(tags);
        Pool { vendor_id, product_id, numa_node, dev_type, address, tags, count }
    };
    counts.into_iter().map(pool).collect()
}

/// Returns the `pci_stats` of the devices of one host, in the same order.
pub fn stats(devices: &[Arc<Device>], is_grouping_key: impl Fn(&str) -> bool) -> Vec<Stat> {
    let counts = count(devices, |device| {
        let facts = &device.facts;
        let tags = tags(device, |key| key != PARENT_IFNAME && is_grouping_key(key));
        (tags.len(), facts.vendor_id, facts.product_id, facts.numa_node, tags)
    });
    let stat = |((_, vendor_id, product_id, numa_node, tags), count)| {
        let tags = owned(tags);
        Stat { vendor_id, product_id, numa_node, tags, count }
    };
    counts.into_iter().map(stat).collect()
}

type Tags<'a> = BTreeMap<&'a str, &'a str>;

fn tags(device: &Device, is_grouping_key: impl Fn(&str) -> bool) -> Tags<'_> {
    device.facts.extra_info.iter().filter(|(key, _)| is_grouping_key(key)).collect()
}

fn owned(tags: Tags<'_>) -> BTreeMap<String, String> {
    tags.into_iter().map(|(key, value)| (key.to_owned(), value.to_owned())).collect()
}

/// Counts the free devices for each key. A key whose devices are all in use has the count 0. A device that carries a vDPA
/// device is never free, because nobody can request it.
fn count<'a, K: Ord>(devices: &'a [Arc<Device>], key: impl Fn(&'a Device) -> K) -> BTreeMap<K, usize> {
    let mut counts = BTreeMap::new();
    for device in devices {
        let free = match device.status {
            DeviceStatus::Available => usize::from(device.facts.dev_type != DevType::Vdpa),
            DeviceStatus::Claimed
            | DeviceStatus::Allocated
            | DeviceStatus::Unclaimable
            | DeviceStatus::Unavailable => 0,
            DeviceStatus::Removed | DeviceStatus::Deleted => continue,
        };
        *counts.entry(key(device)).or_default() += free;
    }
    counts
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::super::choose::tests::device;
    use super::*;
    use crate::rules::is_grouping_key;

    fn row(at: &str, is: &str, of: Option<&str>, extra_info: &Value) -> Value {
        json!({"at": at, "is": is, "of": of, "node": 0, "extra_info": extra_info})
    }

    fn devices(rows: &[Value]) -> Vec<Arc<Device>> {
        (1..).zip(rows).map(|(id, row)| Arc::new(device(id, row))).collect()
    }

    #[test]
    fn pci_stats_count_the_vfs_of_two_pfs_together() {
        let on = |pf: &str, name: &str, vf: &str| {
            let tags = json!({"key1": "value1", "parent_ifname": name, "card_serial_number": vf});
            row(vf, "vf", Some(pf), &tags)
        };
        let host = devices(&[
            on("04:00.0", "eth0", "04:10.0"),
            on("04:00.0", "eth0", "04:10.2"),
            on("04:00.1", "eth1", "04:10.1"),
            on("04:00.1", "eth1", "04:10.3"),
            on("04:00.1", "eth1", "04:10.5"),
        ]);
        let [stat] = &stats(&host, is_grouping_key)[..] else {
            panic!("{:?}", stats(&host, is_grouping_key))
        };
        assert_eq!((stat.count, stat.numa_node), (5, Some(0)));
        assert_eq!(stat.tags, BTreeMap::from([("key1".into(), "value1".into())]));
        let pools = pools(&host, is_grouping_key);
        let counts: Vec<_> = pools.iter().map(|pool| (pool.address.to_string(), pool.count)).collect();
        assert_eq!(counts, [("0000:04:00.0".to_owned(), 2), ("0000:04:00.1".to_owned(), 3)]);
    }

    #[test]
    fn pools_with_fewer_tags_come_first_and_a_pool_without_free_devices_is_kept() {
        let mut host = devices(&[
            row("04:00.0", "nic", None, &json!({"switch": "tor-3", "rack": "1"})),
            row("05:00.0", "nic", None, &json!({"switch": "tor-3"})),
            row("06:00.0", "nic", None, &json!({"traits": "A", "resource_class": "B"})),
            row("07:00.0", "pf", None, &json!({})),
        ]);
        Arc::make_mut(&mut host[2]).status = DeviceStatus::Allocated;
        host.push(Arc::new(Device {
            status: DeviceStatus::Removed,
            ..device(9, &row("08:00.0", "nic", None, &json!({})))
        }));
        let pools = pools(&host, is_grouping_key);
        let found: Vec<_> =
            pools.iter().map(|pool| (pool.address.bus(), pool.count, pool.tags.len())).collect();
        assert_eq!(found, [(6, 0, 0), (7, 1, 1), (5, 1, 1), (4, 1, 2)]);
        assert_eq!(pools[1].tags, BTreeMap::from([("remote_managed".into(), "false".into())]));
    }

    /// A change of one device.
    #[derive(Debug, Clone)]
    enum Step {
        ScanIn { place: usize, node: Option<u32>, extra_info: Value },
        ScanOut(usize),
        Status(usize, DeviceStatus),
    }

    const PLACES: [(&str, &str, Option<&str>); 6] = [
        ("04:00.0", "pf", None),
        ("04:10.0", "vf", Some("04:00.0")),
        ("04:10.2", "vf", Some("04:00.0")),
        ("05:10.0", "vf", Some("05:00.0")),
        ("06:00.0", "nic", None),
        ("06:00.1", "nic", None),
    ];

    fn step() -> impl Strategy<Value = Step> {
        let tags = prop::sample::select(vec![
            json!({}),
            json!({"switch": "tor-3"}),
            json!({"rack": "tor-3"}),
            json!({"switch": "tor-3", "card_serial_number": "1"}),
            json!({"remote_managed": "false"}),
            json!({"remote_managed": "true", "parent_ifname": "eth0"}),
        ]);
        let scan_in = (0..PLACES.len(), prop::option::of(0u32..2), tags)
            .prop_map(|(place, node, extra_info)| Step::ScanIn { place, node, extra_info });
        prop_oneof![
            3 => scan_in,
            1 => (0..PLACES.len()).prop_map(Step::ScanOut),
            4 => (0..PLACES.len(), prop::sample::select(DeviceStatus::ALL)).prop_map(|(at, to)| Step::Status(at, to)),
        ]
    }

    /// A pool as a flat map of strings, as in Nova's API.
    type Flat = BTreeMap<String, String>;

    /// Counts the devices one by one, without the code under test. `seed` selects `pci_stats` instead of pools.
    fn recount(devices: &[Arc<Device>], seed: bool) -> Vec<(Flat, usize)> {
        let mut found: Vec<(Flat, usize)> = Vec::new();
        for device in devices {
            if matches!(device.status.as_str(), "removed" | "deleted") {
                continue;
            }
            let facts = &device.facts;
            let pairs = facts.extra_info.iter();
            let mut flat: Flat = pairs.map(|(key, value)| (key.to_owned(), value.to_owned())).collect();
            flat.remove("card_serial_number");
            flat.insert("vendor_id".into(), facts.vendor_id.to_string());
            flat.insert("product_id".into(), facts.product_id.to_string());
            flat.insert("numa_node".into(), format!("{:?}", facts.numa_node));
            if seed {
                flat.remove("parent_ifname");
            } else {
                flat.insert("dev_type".into(), facts.dev_type.to_string());
                flat.insert("address".into(), facts.parent_addr.unwrap_or(facts.address).to_string());
                if facts.dev_type.as_str() != "type-PCI" && !flat.contains_key("remote_managed") {
                    flat.insert("remote_managed".into(), "false".into());
                }
            }
            let free = usize::from(device.status.as_str() == "available");
            match found.iter_mut().find(|(known, _)| *known == flat) {
                Some((_, count)) => *count += free,
                None => found.push((flat, free)),
            }
        }
        found.sort();
        found
    }

    fn flat(tags: &BTreeMap<String, String>, columns: &[(&str, String)]) -> Flat {
        let columns = columns.iter().map(|(key, value)| ((*key).to_owned(), value.clone()));
        tags.clone().into_iter().chain(columns).collect()
    }

    proptest! {
        #[test]
        fn pools_equal_an_independent_count_after_any_changes(steps in prop::collection::vec(step(), 1..40)) {
            let mut host = BTreeMap::<usize, Device>::new();
            for step in steps {
                match step {
                    Step::ScanIn { place, node, extra_info } => {
                        let (at, is, of) = PLACES[place];
                        let seen = json!({"at": at, "is": is, "of": of, "node": node, "extra_info": extra_info});
                        let seen = device(place as i64, &seen);
                        // A scan changes the facts of a device, not its status.
                        let status = host.get(&place).map_or(DeviceStatus::Available, |known| known.status);
                        host.insert(place, Device { status, ..seen });
                    }
                    Step::ScanOut(place) => drop(host.remove(&place)),
                    Step::Status(place, status) => {
                        if let Some(known) = host.get_mut(&place) {
                            known.status = status;
                        }
                    }
                }
                let devices: Vec<_> = host.values().cloned().map(Arc::new).collect();
                let pools = pools(&devices, is_grouping_key);
                prop_assert!(pools.is_sorted_by_key(|pool| pool.tags.len()));
                let mut flattened: Vec<_> = pools.iter().map(|pool| (flat(&pool.tags, &[
                    ("vendor_id", pool.vendor_id.to_string()),
                    ("product_id", pool.product_id.to_string()),
                    ("numa_node", format!("{:?}", pool.numa_node)),
                    ("dev_type", pool.dev_type.to_string()),
                    ("address", pool.address.to_string()),
                ]), pool.count)).collect();
                flattened.sort();
                prop_assert_eq!(flattened, recount(&devices, false));
                let stats = stats(&devices, is_grouping_key);
                let mut flattened: Vec<_> = stats.iter().map(|stat| (flat(&stat.tags, &[
                    ("vendor_id", stat.vendor_id.to_string()),
                    ("product_id", stat.product_id.to_string()),
                    ("numa_node", format!("{:?}", stat.numa_node)),
                ]), stat.count)).collect();
                flattened.sort();
                prop_assert_eq!(flattened, recount(&devices, true));
            }
        }
    }
}
