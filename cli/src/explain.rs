//! `hotslot explain`: explains why a device is offered or not, and which devices a request for an alias would get.

use std::collections::HashMap;
use std::num::NonZeroU16;
use std::str::FromStr;

use clap::Args;
use clap_complete::ArgValueCompleter;
use serde_json::Value;

use crate::client::query_string;
use crate::device::{self, Found};
use crate::device_name::DeviceName;
use crate::exit::{Exit, Failure};
use crate::output;
use crate::table::{Column, aligned, column, message};
use crate::value::{at, json_line};
use crate::{Cli, argument, columns, complete, lookup, pci};

/// The examples in `--help`.
pub(crate) const HELP: &str = "\
Examples:
  hotslot explain 0000:3b:00.1 --host node1
  hotslot explain vf
  hotslot explain vf:2
  hotslot explain vf --server vm1 --whole-group";

#[derive(Debug, Args)]
pub(crate) struct Explain {
    /// A device: its address (0000:3b:00.1), its node device name (pci_0000_3b_00_1), or its os-pci id or UUID. Any
    /// other text is an alias, optionally with the number of devices of the request.
    #[arg(value_name = "DEVICE|ALIAS[:N]", add = ArgValueCompleter::new(complete::attachable))]
    subject: Subject,
    /// Only this host. For a device it is required when several hosts have a device at this address.
    #[arg(long, add = ArgValueCompleter::new(complete::hosts))]
    host: Option<String>,
    /// For an alias: the devices that this server (UUID or name) would get, considering its host and its NUMA cells.
    #[arg(long, add = ArgValueCompleter::new(complete::servers))]
    server: Option<String>,
    /// For an alias: explain a request for whole IOMMU groups.
    #[arg(long)]
    whole_group: bool,
}

/// The device or the alias to explain.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Subject {
    Device(DeviceName),
    Alias(String, NonZeroU16),
}

impl FromStr for Subject {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.parse() {
            Ok(device) => Ok(Self::Device(device)),
            // An address has more colons than an alias with a number.
            Err(error) => {
                let (name, count) = argument::alias(text).unwrap_or(Err(error))?;
                Ok(Self::Alias(name.to_owned(), count))
            }
        }
    }
}

impl Explain {
    pub(crate) async fn run(self, cli: &Cli) -> anyhow::Result<Exit> {
        match &self.subject {
            Subject::Device(name) if self.server.is_some() || self.whole_group => {
                let message = format!("{name} is a device; --server and --whole-group are for an alias");
                Err(Failure::new(Exit::Usage, message).into())
            }
            Subject::Device(name) => explain_device(cli, name, self.host.as_deref()).await,
            Subject::Alias(alias, count) => self.explain_alias(cli, alias, *count).await,
        }
    }

    async fn explain_alias(&self, cli: &Cli, alias: &str, count: NonZeroU16) -> anyhow::Result<Exit> {
        let server = match &self.server {
            Some(server) => Some(lookup::server(cli, server).await?),
            None => None,
        };
        let host = match (&self.host, &server) {
            // A guest can only get devices of its own host.
            (None, Some(id)) => Some(at(&cli.client.item(&["servers", id], "server").await?, "/host")),
            (host, _) => host.clone(),
        };
        let mut pairs = vec![("alias", alias.to_owned())];
        pairs.extend((count > NonZeroU16::MIN).then(|| ("count", count.to_string())));
        pairs.extend(self.whole_group.then(|| ("whole_group", "true".to_owned())));
        pairs.extend(server.map(|id| ("server", id)));
        let query = query_string(&pairs)?;
        let hosts = lookup::hosts(cli, host.as_deref()).await?;
        let (mut candidates, unreachable) = device::of_hosts(cli, &hosts, "pci_candidates", &query).await?;
        let columns = [
            column("PLACE", "/place"),
            column("HOST", "/host"),
            column("ADDRESS", "/address").name(),
            Column::new("VENDOR:PRODUCT", columns::ids),
            column("TYPE", "/dev_type"),
            column("STATUS", "/status"),
            message("WHY", "/why"),
        ];
        if cli.output.is_names() {
            // Names are those of the devices that the request would get.
            candidates.retain(|device| !device["place"].is_null());
        }
        device::list(cli.output, &candidates, &columns, &unreachable)
    }
}

async fn explain_device(cli: &Cli, name: &DeviceName, host: Option<&str>) -> anyhow::Result<Exit> {
    let Found { device, unreachable } = device::find(cli, name, host).await?;
    if cli.output.is_data() {
        output::data(cli.output, &device)?;
    } else if cli.output.is_names() {
        output::names([at(&device, "/address")])?;
    } else {
        output::print_table(&explanation(&device, unreachable.is_some(), &lookup::server_names(cli).await?))?;
    }
    Ok(device::report(&unreachable))
}

/// Formats the explanation of a device in sections. `unreachable` tells whether its host is unreachable.
fn explanation(device: &Value, unreachable: bool, names: &HashMap<String, String>) -> String {
    let what = format!("{} on {}", at(device, "/address"), at(device, "/host"));
    let title = match device::name(device) {
        none if none == "-" => format!("{what}, {}", columns::ids(device)),
        name => format!("{what}, {} {name}", columns::ids(device)),
    };
    let sections = if device["whitelist"].is_array() {
        vec![
            ("Device", vec![title]),
            ("Assignable", vec![device::assignable(device)]),
            ("device_spec", whitelist(device)),
            ("State", state(device, names)),
            ("Guard", vec![device::guard(device)]),
            ("IOMMU group", group(device, names)),
            ("Reset", vec![device::reset(device)]),
            ("Pool", vec![pool(device)]),
        ]
    } else {
        let why = if unreachable { "its host is unreachable" } else { "it is gone from its host" };
        vec![
            ("Device", vec![title, format!("{why}; only its record is shown")]),
            ("State", state(device, names)),
        ]
    };
    let mut rows = Vec::new();
    for (title, lines) in sections {
        let mut title = format!("{title}:");
        for line in lines {
            rows.push(vec![std::mem::take(&mut title), line]);
        }
    }
    aligned(&rows)
}

/// Lists the entry that decides first, and then the others.
fn whitelist(device: &Value) -> Vec<String> {
    let entries = device["whitelist"].as_array().map_or(&[][..], Vec::as_slice);
    let counts = |entry: &&Value| entry["counts"] == true;
    let mut lines: Vec<_> = entries.iter().filter(counts).collect();
    lines.extend(entries.iter().filter(|entry| !counts(entry)));
    let mut lines: Vec<_> = lines.into_iter().map(verdict).collect();
    if entries.is_empty() {
        lines.push("there is no entry, so no device is assignable".into());
    } else if !entries.iter().any(|entry| entry["counts"] == true) {
        lines.insert(0, "no entry matches".into());
    }
    lines
}

fn verdict(entry: &Value) -> String {
    let finding = match (entry["counts"] == true, entry["matches"] == true) {
        (true, _) => "decides: it is the first that matches",
        (false, true) => "also matches, but is after the one that decides",
        (false, false) => "does not match",
    };
    let why = entry["why"].as_str().map(|why| format!(": {why}")).unwrap_or_default();
    let (position, place) = (at(entry, "/position"), at(entry, "/place"));
    format!("entry {position} {finding}{why} ({place}: {})", json_line(&entry["entry"]))
}

fn state(device: &Value, names: &HashMap<String, String>) -> Vec<String> {
    let mut lines = vec![owned(device, names)];
    if let Some(gone) = device["gone_at"].as_str() {
        lines.push(format!("its host does not have it, or no device_spec matches it, since {gone}"));
    }
    if let (Some(used), Some(reason)) = (device["used_at"].as_str(), device["quarantine"].as_str()) {
        let id = at(device, "/id");
        lines.push(format!(
            "in quarantine since {used}: {reason}; check it, then run `hotslot pci cleaned {id}`"
        ));
    } else if let (Some(used), Some(true)) = (device["used_at"].as_str(), device["scrub"].as_bool()) {
        lines.push(format!("it was used until {used}, and waits for its scrub, which the service runs"));
    } else if let Some(used) = device["used_at"].as_str() {
        let id = at(device, "/id");
        lines.push(format!(
            "one_time_use: it was used until {used}; clean it, then run `hotslot pci cleaned {id}`"
        ));
    }
    lines
}

/// The recorded status of a device, with the server that has it.
fn owned(device: &Value, names: &HashMap<String, String>) -> String {
    match (at(device, "/status"), device["instance_uuid"].as_str()) {
        (none, _) if none == "-" => "no record".into(),
        (status, Some(id)) => format!("{status} to {}", columns::called(names, id)),
        (status, None) => status,
    }
}

fn group(device: &Value, names: &HashMap<String, String>) -> Vec<String> {
    let number = at(device, "/iommu_group/number");
    if number == "-" {
        return vec!["none".into()];
    }
    let members = device["group_members"].as_array().map_or(&[][..], Vec::as_slice);
    let others: Vec<_> = members.iter().filter(|member| member["address"] != device["address"]).collect();
    if others.is_empty() {
        return vec![format!("{number}, with no other member")];
    }
    let mut lines = vec![format!("{number}, with these other members:")];
    lines.extend(others.into_iter().map(|member| {
        let driver = match at(member, "/driver") {
            none if none == "-" => "no driver".into(),
            driver => format!("driver {driver}"),
        };
        format!("{}, {driver}, {}", at(member, "/address"), owned(member, names))
    }));
    lines
}

fn pool(device: &Value) -> String {
    let pool = &device["pool"];
    if pool.is_null() {
        return "none".into();
    }
    let numa = match at(pool, "/numa_node") {
        none if none == "-" => "no NUMA node".into(),
        node => format!("NUMA node {node}"),
    };
    let facts = [
        columns::ids(pool),
        at(pool, "/dev_type"),
        numa,
        at(pool, "/address"),
        pci::key_values(&pool["tags"], &[]),
    ];
    let facts: Vec<_> = facts.into_iter().filter(|fact| fact != "-").collect();
    format!("{}: {} free", facts.join(", "), at(pool, "/count"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::client::answering;
    use crate::output::Output;

    const SERVER: &str = "10000000-0000-4000-8000-000000000001";

    #[test]
    fn a_text_that_is_no_device_name_is_an_alias() {
        for device in ["3b:00.1", "pci_0000_3b_00_1", "7", SERVER] {
            assert_eq!(device.parse(), Ok(Subject::Device(device.parse().unwrap())));
        }
        for alias in ["vf", "a 1", "3b", "pci_0000_3b_00"] {
            assert_eq!(alias.parse(), Ok(Subject::Alias(alias.into(), NonZeroU16::MIN)));
        }
        assert_eq!("vf:2".parse(), Ok(Subject::Alias("vf".into(), NonZeroU16::MIN.saturating_add(1))));
        assert!("0000:3b:00.8".parse::<Subject>().is_err());
        assert!("vf:0".parse::<Subject>().is_err());
        assert!("".parse::<Subject>().is_err());
    }

    #[test]
    fn a_device_is_explained_in_sections() {
        let names = HashMap::from([(SERVER.to_owned(), "vm1".to_owned())]);
        let device = json!({
            "address": "0000:06:00.0", "host": "node1", "vendor_id": "8086", "product_id": "10d3",
            "vendor_name": "Intel", "product_name": "82574L", "id": 7, "status": "allocated",
            "instance_uuid": SERVER, "used_at": "2026-01-02T03:04:05Z", "offered": false,
            "withheld": "it is allocated", "guards": [], "unguarded": false, "reset_methods": ["flr"],
            "whitelist": [
                { "position": 1, "place": "[pci] device_spec[0]", "entry": { "vendor_id": "10de" },
                  "matches": false, "counts": false, "why": "its vendor_id is 8086, not 10de" },
                { "position": 2, "place": "[pci] device_spec[1]", "entry": { "vendor_id": "8086" },
                  "matches": true, "counts": true, "why": null },
                { "position": 3, "place": "entry x of whitelist", "entry": {},
                  "matches": true, "counts": false, "why": null },
            ],
            "iommu_group": { "number": 18, "members": ["0000:06:00.0", "0000:06:00.1"] },
            "group_members": [
                { "address": "0000:06:00.0", "driver": "vfio-pci", "status": "allocated", "instance_uuid": SERVER },
                { "address": "0000:06:00.1", "driver": "e1000e", "status": null, "instance_uuid": null },
            ],
            "pool": { "vendor_id": "8086", "product_id": "10d3", "numa_node": 0, "dev_type": "type-PCI",
                      "address": null, "tags": { "rack": "r1" }, "count": 0 },
        });
        assert_eq!(
            explanation(&device, false, &names),
            r#"Device:        0000:06:00.0 on node1, 8086:10d3 Intel 82574L
Assignable:    no: it is allocated
device_spec:   entry 2 decides: it is the first that matches ([pci] device_spec[1]: {"vendor_id": "8086"})
               entry 1 does not match: its vendor_id is 8086, not 10de ([pci] device_spec[0]: {"vendor_id": "10de"})
               entry 3 also matches, but is after the one that decides (entry x of whitelist: {})
State:         allocated to vm1
               one_time_use: it was used until 2026-01-02T03:04:05Z; clean it, then run `hotslot pci cleaned 7`
Guard:         none: the host does not need it
IOMMU group:   18, with these other members:
               0000:06:00.1, driver e1000e, no record
Reset:         flr
Pool:          8086:10d3, type-PCI, NUMA node 0, rack=r1: 0 free
"#
        );
    }

    #[test]
    fn devices_without_a_matching_entry_and_devices_that_are_gone_are_explained() {
        let plain = json!({
            "address": "0000:00:1f.0", "host": "node1", "vendor_id": "8086", "product_id": "2918",
            "offered": false, "whitelist": [], "guards": null, "reset_methods": null, "iommu_group": null,
        });
        let text = explanation(&plain, false, &HashMap::new());
        for line in [
            "Device:        0000:00:1f.0 on node1, 8086:2918\n",
            "Assignable:    no: no device_spec lists it\n",
            "device_spec:   there is no entry, so no device is assignable\n",
            "State:         no record\n",
            "IOMMU group:   none\n",
            "Reset:         not known\n",
            "Pool:          none\n",
        ] {
            assert!(text.contains(line), "{line}{text}");
        }
        let alone = json!({ "whitelist": [{ "position": 1, "counts": false, "matches": false }],
                            "iommu_group": { "number": 3 } });
        let text = explanation(&alone, false, &HashMap::new());
        for line in ["device_spec:   no entry matches\n", "IOMMU group:   3, with no other member\n"] {
            assert!(text.contains(line), "{line}{text}");
        }

        let broken = json!({ "id": 7, "status": "available", "used_at": "T", "quarantine": "no answer" });
        let waits =
            json!({ "id": 7, "status": "available", "used_at": "T", "quarantine": null, "scrub": true });
        let line = "it was used until T, and waits for its scrub, which the service runs";
        assert_eq!(state(&waits, &HashMap::new()), ["available", line]);
        let line = "in quarantine since T: no answer; check it, then run `hotslot pci cleaned 7`";
        assert_eq!(state(&broken, &HashMap::new()), ["available", line]);
        let gone = json!({ "address": "0000:00:1f.0", "host": "node1", "status": "removed", "gone_at": "T" });
        let text = explanation(&gone, false, &HashMap::new());
        assert!(
            text.ends_with("State:    removed\n          its host does not have it, or no device_spec matches it, since T\n"),
            "{text}"
        );
        assert!(
            text.contains("it is gone from its host; only its record is shown")
                && !text.contains("Assignable"),
            "{text}"
        );
        assert!(
            explanation(&gone, true, &HashMap::new())
                .contains("its host is unreachable; only its record is shown")
        );
    }

    fn explain(subject: &str) -> Explain {
        Explain { subject: subject.parse().unwrap(), host: None, server: None, whole_group: false }
    }

    #[test]
    fn an_alias_may_have_a_number_of_devices() {
        let alias = |name: &str, count| Subject::Alias(name.into(), NonZeroU16::new(count).unwrap());
        let read = |text: &str| text.parse::<Subject>();
        assert_eq!(read("vf"), Ok(alias("vf", 1)));
        assert_eq!(read("vf:2"), Ok(alias("vf", 2)));
        for device in ["0000:3b:00.1", "3b:00.1", "pci_0000_3b_00_1"] {
            assert!(matches!(read(device), Ok(Subject::Device(_))), "{device}");
        }
        for bad in ["", ":2", "vf:", "vf:0", "vf:257", "vf:x", "vf:1:2", "0000:3b:00.9"] {
            assert!(read(bad).is_err(), "{bad}");
        }
    }

    #[tokio::test]
    async fn an_alias_is_explained_for_all_hosts_or_for_the_host_of_a_guest() {
        let host = |id: u64, state: &str| json!({ "id": id, "hypervisor_hostname": format!("node{id}"), "state": state });
        let candidates =
            json!({ "alias": "vf", "pci_candidates": [{ "address": "0000:04:10.0", "place": 0 }] });
        let of_guest = "os-hypervisors/1/pci_candidates?alias=vf&whole_group=true\
                        &server=10000000-0000-4000-8000-000000000001";
        let answers = vec![
            ("os-hypervisors", 200, json!({ "hypervisors": [host(1, "up"), host(2, "down")] })),
            ("os-hypervisors/node1", 200, json!({ "hypervisor": host(1, "up") })),
            ("servers/10000000-0000-4000-8000-000000000001", 200, json!({ "server": { "host": "node1" } })),
            ("os-hypervisors/1/pci_candidates?alias=vf", 200, candidates.clone()),
            (
                "os-hypervisors/2/pci_candidates?alias=vf",
                503,
                json!({ "fault": { "message": "unreachable" } }),
            ),
            (of_guest, 200, candidates),
            (
                "os-hypervisors/1/pci_candidates?alias=gpu",
                400,
                json!({ "badRequest": { "message": "no PCI alias is called `gpu`" } }),
            ),
        ];
        let ((all, guests, unknown, usage), requests) = answering(answers, async |client| {
            let cli = Cli { client, output: Output::TABLE };
            let guests = Explain { server: Some(SERVER.into()), whole_group: true, ..explain("vf") };
            let usage = Explain { whole_group: true, ..explain("3b:00.1") };
            (
                explain("vf").run(&cli).await,
                guests.run(&cli).await,
                explain("gpu").run(&cli).await,
                usage.run(&cli).await,
            )
        })
        .await;
        assert_eq!((all.unwrap(), guests.unwrap()), (Exit::Unreachable, Exit::Done));
        assert!(requests.iter().any(|line| line.contains(of_guest)), "{requests:?}");
        let unknown = unknown.unwrap_err();
        assert_eq!(unknown.to_string(), "no PCI alias is called `gpu`");
        assert_eq!(Exit::of(&unknown), Exit::BadRequest);
        assert_eq!(Exit::of(&usage.unwrap_err()), Exit::Usage);
    }
}
