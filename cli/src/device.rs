//! `hotslot device`: lists and shows the PCI functions of the hosts, and which of them are assignable.

use std::collections::HashMap;

use clap::{Args, Subcommand};
use clap_complete::ArgValueCompleter;
use serde_json::Value;

use crate::device_name::{DeviceName, OneDevice};
use crate::exit::{Exit, Failure};
use crate::output::{self, Output};
use crate::remedy::by_commands;
use crate::table::{Column, column};
use crate::value::at;
use crate::{Cli, columns, complete, device_name, lookup};

#[derive(Debug, Subcommand)]
pub(crate) enum DeviceCommand {
    /// List the assignable devices, or every PCI function with --all.
    List(List),
    /// Show all properties of one PCI function.
    Show(OneDevice),
}

#[derive(Debug, Args)]
pub(crate) struct List {
    /// Only the devices of this host.
    #[arg(long, add = ArgValueCompleter::new(complete::hosts))]
    host: Option<String>,
    /// List every PCI function, with its driver and its IOMMU group.
    #[arg(long)]
    all: bool,
    /// Show more columns.
    #[arg(short, long)]
    long: bool,
}

impl DeviceCommand {
    pub(crate) async fn run(self, cli: &Cli) -> anyhow::Result<Exit> {
        match self {
            Self::List(list) => list.run(cli).await,
            Self::Show(OneDevice { device, host }) => show(cli, &device, host.as_deref()).await,
        }
    }
}

impl List {
    async fn run(self, cli: &Cli) -> anyhow::Result<Exit> {
        let hosts = lookup::hosts(cli, self.host.as_deref()).await?;
        let (devices, unreachable) = if self.all {
            of_hosts(cli, &hosts, "pci_devices", "").await?
        } else {
            (records(cli, &hosts).await?, Vec::new())
        };
        let wants_names =
            !cli.output.is_data() && devices.iter().any(|device| !device["instance_uuid"].is_null());
        let names = if wants_names { lookup::server_names(cli).await? } else { HashMap::new() };
        list(cli.output.long(self.long), &devices, &self.columns(&names), &unreachable)
    }

    fn columns<'a>(&self, names: &'a HashMap<String, String>) -> Vec<Column<'a>> {
        let mut columns = vec![
            column("HOST", "/host"),
            column("ADDRESS", "/address").name(),
            Column::new("VENDOR:PRODUCT", columns::ids),
            column("TYPE", "/dev_type"),
        ];
        if self.all {
            columns.extend([column("DRIVER", "/driver"), column("GROUP", "/iommu_group/number")]);
        }
        columns.push(column("STATUS", "/status"));
        columns.push(Column::new("SERVER", |device| columns::holder(names, device)));
        columns.extend([
            column("ID", "/id").wide(),
            column("DEV_ID", "/dev_id").wide(),
            column("NUMA", "/numa_node").wide(),
            column("PF", "/parent_addr").wide(),
        ]);
        if self.all {
            columns.extend([
                column("NET", "/net").wide(),
                column("BLOCK", "/block").wide(),
                column("CLASS", "/class_name").wide(),
                Column::new("NAME", name).wrapped(),
            ]);
        }
        columns
    }
}

/// Gets the records of the assignable devices of these hosts.
async fn records(cli: &Cli, hosts: &[Value]) -> Result<Vec<Value>, Failure> {
    let mut devices = cli.client.items(&["os-pci", "detail"], "pci_devices").await?;
    devices.retain(|device| hosts.iter().any(|host| host["hypervisor_hostname"] == device["host"]));
    Ok(devices)
}

/// Gets the list `list` of each host, and adds the name of the host to each item. Also returns one failure for each
/// unreachable host.
pub(crate) async fn of_hosts(
    cli: &Cli,
    hosts: &[Value],
    list: &str,
    query: &str,
) -> Result<(Vec<Value>, Vec<Failure>), Failure> {
    let (mut all, mut unreachable) = (Vec::new(), Vec::new());
    for host in hosts {
        match cli.client.query(&["os-hypervisors", &at(host, "/id"), list], query, list).await {
            Ok(mut found) => {
                for item in found.iter_mut().filter_map(Value::as_object_mut) {
                    item.insert("host".into(), host["hypervisor_hostname"].clone());
                }
                all.extend(found);
            }
            Err(failure) if is_unreachable(host, &failure) => unreachable.push(failure),
            Err(failure) => return Err(failure),
        }
    }
    Ok((all, unreachable))
}

/// Prints the devices of the reachable hosts, and reports the unreachable hosts. It does not print "no devices" when a
/// host is unreachable, because that host may have some.
pub(crate) fn list(
    output: Output,
    devices: &[Value],
    columns: &[Column<'_>],
    unreachable: &[Failure],
) -> anyhow::Result<Exit> {
    if unreachable.is_empty() || !devices.is_empty() || output.is_data() {
        output::list(output, "devices", devices, columns)?;
    }
    Ok(report(unreachable))
}

/// Prints these failures of unreachable hosts on stderr. Returns [`Exit::Unreachable`] when there are any.
pub(crate) fn report<'a>(unreachable: impl IntoIterator<Item = &'a Failure>) -> Exit {
    let mut exit = Exit::Done;
    for failure in unreachable {
        output::complain(&failure.to_string());
        exit = Exit::Unreachable;
    }
    exit
}

/// Whether a request failed because the host is unreachable, as the list of hosts confirms.
fn is_unreachable(host: &Value, failure: &Failure) -> bool {
    failure.exit() == Exit::Unreachable && host["state"] == "down"
}

async fn show(cli: &Cli, name: &DeviceName, host: Option<&str>) -> anyhow::Result<Exit> {
    let found = find(cli, name, host).await?;
    output::show(cli.output, &found.device, &lines())?;
    Ok(report(&found.unreachable))
}

/// A device that was found by its name.
#[derive(Debug)]
pub(crate) struct Found {
    /// The properties from the host together with the record. When the host is unreachable or does not have the device,
    /// the record alone.
    pub(crate) device: Value,
    /// The failure of the request to the host, when it is unreachable.
    pub(crate) unreachable: Option<Failure>,
}

/// Finds the device with this name.
///
/// # Errors
/// [`Exit::NotFound`] when there is none, [`Exit::Unreachable`] when it may be on an unreachable host, [`Exit::Usage`]
/// when several hosts have one.
pub(crate) async fn find(cli: &Cli, name: &DeviceName, host: Option<&str>) -> anyhow::Result<Found> {
    let hosts = lookup::hosts(cli, host).await?;
    let records = lookup::records(cli, name).await?;
    let mut found = Vec::new();
    for host in &hosts {
        let record = records.iter().find(|record| record["host"] == host["hypervisor_hostname"]);
        let address = match (name, record) {
            (DeviceName::Address(address), _) => address.to_string(),
            (_, Some(record)) => at(record, "/address"),
            (_, None) => continue,
        };
        let path = ["os-hypervisors", &at(host, "/id"), "pci_devices", &address];
        match cli.client.item(&path, "pci_device").await {
            Ok(mut function) => {
                if let (Value::Object(function), Some(Value::Object(record))) = (&mut function, record) {
                    function.extend(record.clone());
                }
                found.push(Found { device: function, unreachable: None });
            }
            Err(failure) if failure.exit() == Exit::NotFound || is_unreachable(host, &failure) => {
                let unreachable = Some(failure).filter(|failure| failure.exit() == Exit::Unreachable);
                found.extend(record.map(|record| Found { device: record.clone(), unreachable }));
            }
            Err(failure) => return Err(failure.into()),
        }
    }
    match found.len() {
        1 => Ok(found.remove(0)),
        0 => {
            let unreachable = lookup::unreachable_hosts(&hosts).join(", ");
            Err(if unreachable.is_empty() {
                let message =
                    format!("device {name} not found; `hotslot device list --all` lists the devices");
                Failure::new(Exit::NotFound, message)
            } else {
                let message =
                    format!("device {name} not found on the reachable hosts; unreachable: {unreachable}");
                Failure::new(Exit::Unreachable, message)
            }
            .into())
        }
        _ => {
            let several: Vec<_> = found.into_iter().map(|found| found.device).collect();
            Err(device_name::ambiguous(name, &several).into())
        }
    }
}

fn lines() -> Vec<Column<'static>> {
    vec![
        column("Address", "/address").name(),
        column("Host", "/host"),
        column("Node device", "/dev_id"),
        Column::new("Vendor:product", columns::ids),
        Column::new("Name", name),
        column("Class", "/class_name"),
        column("Type", "/dev_type"),
        column("PF", "/parent_addr"),
        column("VFs", "/vfs"),
        column("VFs at most", "/max_vfs"),
        column("Driver", "/driver"),
        column("IOMMU group", "/iommu_group/number"),
        column("Group members", "/iommu_group/members"),
        column("NUMA node", "/numa_node"),
        column("PCI Express", "/express"),
        Column::new("Link", link),
        column("Network", "/net"),
        column("Block", "/block"),
        column("Serial", "/serial"),
        Column::new("vGPU type", |device| at(device, "/vgpu_type")),
        Column::new("vGPU types", |device| types(device, "/vgpu_types")),
        Column::new("Mediated devices", |device| types(device, "/mdev_types")),
        Column::new("Reset", reset),
        Column::new("Guard", guard),
        Column::new("Assignable", assignable),
        column("os-pci id", "/id"),
        column("Status", "/status"),
        Column::new("Server", |device| columns::holder(&HashMap::new(), device)),
    ]
}

/// Returns the names of the vendor and of the product, as libvirt reports them from its table of PCI ids.
pub(crate) fn name(device: &Value) -> String {
    let names = ["/vendor_name", "/product_name"].map(|pointer| at(device, pointer));
    let known: Vec<_> = names.iter().map(String::as_str).filter(|name| *name != "-").collect();
    if known.is_empty() { "-".into() } else { known.join(" ") }
}

/// Whether the device can be assigned to a guest now, with the reason if it cannot. Like the functions below, it returns `-`
/// when only the record is known.
pub(crate) fn assignable(device: &Value) -> String {
    let counts = device["whitelist"].as_array().is_some_and(|all| all.iter().any(|it| it["counts"] == true));
    match (device["offered"].as_bool(), device["withheld"].as_str()) {
        (None, _) => "-".into(),
        (Some(true), _) => "yes".into(),
        (Some(false), Some(why)) => format!("no: {}", by_commands(why)),
        (Some(false), None) if !counts && at(device, "/class_name").contains("bridge") => {
            "no: it is a PCI bridge or port; only endpoints can be assigned".into()
        }
        (Some(false), None) if !counts => "no: no device_spec lists it".into(),
        (Some(false), None) if device["status"].is_null() => "no: it has no record".into(),
        (Some(false), None) => format!("no: it is {}", at(device, "/status")),
    }
}

/// Why the host needs this device, and whether the configuration overrides that.
pub(crate) fn guard(device: &Value) -> String {
    let Some(guards) = device.get("guards") else { return "-".into() };
    let Some(guards) = guards.as_array() else {
        return "not known: guards need the host's sysfs and cannot be evaluated for a remote host".into();
    };
    if guards.is_empty() {
        return "none: the host does not need it".into();
    }
    let guards: Vec<_> =
        guards.iter().map(|guard| format!("{} ({})", at(guard, "/kind"), at(guard, "/reason"))).collect();
    let overridden =
        if device["unguarded"] == true { "; overridden: [pci] unguarded names the device" } else { "" };
    format!("the host needs it: {}{overridden}", guards.join(", "))
}

/// The methods by which the host can reset the device between two guests.
pub(crate) fn reset(device: &Value) -> String {
    let Some(methods) = device.get("reset_methods") else { return "-".into() };
    let Some(methods) = methods.as_array() else { return "not known".into() };
    let methods: Vec<_> = methods.iter().map(|method| at(method, "")).collect();
    if methods.is_empty() { "none".into() } else { methods.join(" or ") }
}

/// The types of virtual GPUs or of mediated devices that can be made of the device, each with how many are left.
fn types(device: &Value, pointer: &str) -> String {
    let types = device.pointer(pointer).and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
    let shown = types.iter().map(|of| {
        let (id, name, left) = (at(of, "/id"), at(of, "/name"), at(of, "/available"));
        if name == "-" || name == id {
            format!("{id}: {left} left")
        } else {
            format!("{id} ({name}): {left} left")
        }
    });
    let shown: Vec<_> = shown.collect();
    if shown.is_empty() { "-".into() } else { shown.join(", ") }
}

fn link(device: &Value) -> String {
    let link = &device["link"];
    if link.is_null() {
        return "-".into();
    }
    let [speed, width, max_speed, max_width] =
        ["/speed", "/width", "/max_speed", "/max_width"].map(|pointer| at(link, pointer));
    format!("{speed} GT/s x{width} (of {max_speed} GT/s x{max_width})")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::client::answering;

    const UUID: &str = "20000000-0000-4000-8000-000000000001";

    #[test]
    fn a_device_is_named_by_its_address_node_device_or_record() {
        let address = DeviceName::Address("0000:3b:00.1".parse().unwrap());
        for name in ["0000:3b:00.1", "3b:00.1", "0000:3B:00.1", "pci_0000_3b_00_1"] {
            assert_eq!(name.parse::<DeviceName>().unwrap(), address, "{name}");
        }
        assert_eq!("7".parse::<DeviceName>().unwrap(), DeviceName::Id(7));
        assert_eq!(UUID.parse::<DeviceName>().unwrap(), DeviceName::Uuid(UUID.parse().unwrap()));
        for bad in ["", "eth0", "pci_0000_3b_00", "0000:3b:00.8", "-1"] {
            assert!(bad.parse::<DeviceName>().is_err(), "{bad}");
        }
    }

    /// Two hosts: `node1`, and `node2` in the given state. Both have a record of a device at 3b:00.1; only `node1` also
    /// has the device.
    fn two_hosts(state: &str) -> Vec<(&'static str, u16, Value)> {
        let record = |id: u64, host: &str| json!({ "id": id, "host": host, "address": "0000:3b:00.1", "label": format!("record {id}") });
        let host = |id: u64, state: &str| json!({ "id": id, "hypervisor_hostname": format!("node{id}"), "state": state });
        vec![
            ("os-hypervisors", 200, json!({ "hypervisors": [host(1, "up"), host(2, state)] })),
            ("os-hypervisors/node2", 200, json!({ "hypervisor": host(2, state) })),
            ("os-pci/8", 200, json!({ "pci_device": record(8, "node2") })),
            (
                "os-pci/detail?address=0000%3A3b%3A00.1",
                200,
                json!({ "pci_devices": [record(7, "node1"), record(8, "node2")] }),
            ),
            ("os-pci/detail?address=0000%3A3b%3A00.2", 200, json!({ "pci_devices": [] })),
            (
                "os-hypervisors/1/pci_devices/0000:3b:00.1",
                200,
                json!({ "pci_device": { "host": "node1", "address": "0000:3b:00.1", "offered": true } }),
            ),
            (
                "os-hypervisors/2/pci_devices/0000:3b:00.1",
                if state == "down" { 503 } else { 404 },
                json!({ "fault": { "message": "nothing to see" } }),
            ),
            (
                "os-hypervisors/2/pci_devices/0000:3b:00.2",
                503,
                json!({ "fault": { "message": "node2 is unreachable" } }),
            ),
        ]
    }

    async fn found(state: &str, name: &str, host: Option<&str>) -> anyhow::Result<Found> {
        let (outcome, _) = answering(two_hosts(state), async |client| {
            find(&Cli { client, output: Output::JSON }, &name.parse().unwrap(), host).await
        })
        .await;
        outcome
    }

    #[tokio::test]
    async fn a_device_is_found_on_its_host_and_by_its_record() {
        let several = found("up", "3b:00.1", None).await.unwrap_err();
        assert_eq!(Exit::of(&several), Exit::Usage);
        assert!(several.to_string().ends_with("--host: node1, node2"), "{several}");
        for (state, name, host) in
            [("up", "3b:00.1", Some("node2")), ("down", "3b:00.1", Some("node2")), ("down", "8", None)]
        {
            let Found { device: record, unreachable } = found(state, name, host).await.unwrap();
            assert_eq!(unreachable.is_some(), state == "down", "{name}");
            assert_eq!((&record["label"], &record["offered"]), (&json!("record 8"), &Value::Null), "{name}");
        }
        let none = found("up", "3b:00.2", Some("node2")).await.unwrap_err();
        assert_eq!((Exit::of(&none), none.to_string().as_str()), (Exit::Unreachable, "node2 is unreachable"));
        let none = found("down", "3b:00.2", None).await.unwrap_err();
        assert_eq!(Exit::of(&none), Exit::Unreachable);
        assert!(
            none.to_string()
                .starts_with("device 0000:3b:00.2 not found on the reachable hosts; unreachable: node2"),
            "{none}"
        );
    }

    #[tokio::test]
    async fn the_properties_from_the_host_and_the_record_are_merged() {
        let mut answers = two_hosts("up");
        answers[0].2["hypervisors"].as_array_mut().unwrap().pop();
        let (device, _) = answering(answers, async |client| {
            find(&Cli { client, output: Output::JSON }, &"3b:00.1".parse().unwrap(), None).await
        })
        .await;
        let device = device.unwrap().device;
        assert_eq!((&device["offered"], &device["label"]), (&json!(true), &json!("record 7")));
    }

    #[test]
    fn a_device_is_shown_with_its_offer_its_guards_and_its_reset_methods() {
        let counts = json!([{ "counts": false }, { "counts": true }]);
        for (device, says) in [
            (json!({ "offered": true, "status": "available" }), "yes"),
            (json!({ "offered": false, "withheld": "its group is in use" }), "no: its group is in use"),
            (json!({ "offered": false, "whitelist": [] }), "no: no device_spec lists it"),
            (json!({ "offered": false, "whitelist": counts, "status": null }), "no: it has no record"),
            (
                json!({ "offered": false, "whitelist": counts, "withheld": null, "status": "allocated" }),
                "no: it is allocated",
            ),
            (json!({ "status": "allocated" }), "-"),
        ] {
            assert_eq!(assignable(&device), says, "{device}");
        }
        let root = json!([
            { "kind": "root-filesystem", "reason": "/ on nvme0n1p1" },
            { "kind": "swap", "reason": "on nvme0n1p2" },
        ]);
        let needed = "the host needs it: root-filesystem (/ on nvme0n1p1), swap (on nvme0n1p2)";
        for (device, says) in [
            (json!({ "guards": [], "unguarded": false }), "none: the host does not need it".into()),
            (json!({ "guards": root, "unguarded": false }), needed.to_owned()),
            (
                json!({ "guards": root, "unguarded": true }),
                format!("{needed}; overridden: [pci] unguarded names the device"),
            ),
            (
                json!({ "guards": null }),
                "not known: guards need the host's sysfs and cannot be evaluated for a remote host".into(),
            ),
            (json!({}), "-".into()),
        ] {
            assert_eq!(guard(&device), says, "{device}");
        }
        let methods = [json!({ "reset_methods": ["flr", "bus"] }), json!({ "reset_methods": [] })];
        assert_eq!(methods.map(|device| reset(&device)), ["flr or bus", "none"]);
        assert_eq!([json!({ "reset_methods": null }), json!({})].map(|it| reset(&it)), ["not known", "-"]);
    }

    #[test]
    fn the_types_of_a_device_are_shown_with_what_is_left_of_each() {
        let device = json!({
            "vgpu_types": [{ "id": "nvidia-1155", "name": "NVIDIA L40S-24Q", "available": 4 },
                           { "id": "nvidia-7", "name": "nvidia-7", "available": 0 }],
            "mdev_types": [{ "id": "mtty-2", "name": null, "device_api": "vfio-pci", "available": 24 }],
        });
        assert_eq!(
            ["/vgpu_types", "/mdev_types"].map(|pointer| types(&device, pointer)),
            ["nvidia-1155 (NVIDIA L40S-24Q): 4 left, nvidia-7: 0 left", "mtty-2: 24 left"]
        );
        assert_eq!(types(&json!({ "vgpu_types": [] }), "/vgpu_types"), "-");
        assert_eq!(types(&json!({}), "/vgpu_types"), "-");
    }

    #[test]
    fn a_foreign_device_is_shown_with_its_owner() {
        let names = HashMap::from([(UUID.to_owned(), "web1".to_owned())]);
        let ours = json!({ "instance_uuid": UUID, "owner": format!("server {UUID}") });
        let foreign = json!({ "instance_uuid": null, "owner": "foreign: domain db1" });
        let free = json!({ "instance_uuid": null, "owner": null });
        assert_eq!(
            [ours, foreign, free].map(|it| columns::holder(&names, &it)),
            ["web1", "foreign: domain db1", "-"]
        );
    }

    #[test]
    fn links_and_names_are_formatted() {
        let device = json!({
            "vendor_name": "Intel", "product_name": null,
            "link": { "speed": "2.5", "width": 1, "max_speed": "16", "max_width": 4 },
        });
        assert_eq!(name(&device), "Intel");
        assert_eq!(link(&device), "2.5 GT/s x1 (of 16 GT/s x4)");
        assert_eq!((name(&json!({})), link(&json!({}))), ("-".into(), "-".into()));
    }
}
