//! `hotslot pci`: lists and shows the records of the assignable devices, as `os-pci` returns them.

use std::collections::{BTreeMap, HashMap};

use clap::builder::PossibleValuesParser;
use clap::{Args, Subcommand};
use clap_complete::ArgValueCompleter;
use hotslot_driver::pci::PciId;
use hotslot_model::device::{DevType, DeviceStatus};
use serde_json::{Value, json};

use crate::client::query_string;
use crate::device_name::{DeviceName, OneDevice};
use crate::exit::{Exit, Failure};
use crate::lookup::records;
use crate::output;
use crate::table::{Column, column};
use crate::value::at;
use crate::{Cli, columns, complete, device_name, lookup};

/// The examples in `--help`.
pub(crate) const HELP: &str = "\
Examples:
  hotslot pci list --type type-VF --status available
  hotslot pci list --extra physical_network=net1 -l
  hotslot pci show 7
  hotslot pci cleaned 0000:3b:00.1 --host node1
  hotslot pci scrub 0000:08:00.0
  hotslot pci stats --host node1";

#[derive(Debug, Subcommand)]
pub(crate) enum PciCommand {
    /// List the device records that match all given filters.
    List(List),
    /// Show one device record.
    Show(OneDevice),
    /// Record that a device that waits for it was cleaned (`one_time_use`) or works again (quarantine), so that it can be
    /// assigned again.
    Cleaned(OneDevice),
    /// Have a device scrubbed that waits to be cleaned or is in quarantine. The scrub goes on in the background; when it has
    /// succeeded, the device can be assigned again.
    Scrub(OneDevice),
    /// Show the number of free devices in each pool.
    Stats {
        /// Only the pools of this host.
        #[arg(long, add = ArgValueCompleter::new(complete::hosts))]
        host: Option<String>,
    },
}

#[derive(Debug, Args)]
pub(crate) struct List {
    /// Only the devices of this host.
    #[arg(long, add = ArgValueCompleter::new(complete::hosts))]
    host: Option<String>,
    /// Only devices with this vendor id, such as 8086.
    #[arg(long)]
    vendor: Option<PciId>,
    /// Only devices with this product id, such as 10ca.
    #[arg(long)]
    product: Option<PciId>,
    /// Only devices of this type.
    #[arg(long = "type", value_parser = PossibleValuesParser::new(DevType::ALL.iter().map(|it| it.as_str())))]
    dev_type: Option<String>,
    /// Only devices with this status.
    #[arg(long, value_parser = PossibleValuesParser::new(DeviceStatus::ALL.iter().map(|it| it.as_str())))]
    status: Option<String>,
    /// Only the devices of this server: its UUID or its name.
    #[arg(long, add = ArgValueCompleter::new(complete::servers))]
    server: Option<String>,
    /// Only devices with this value in extra_info. The option may be repeated.
    #[arg(long, value_name = "KEY=VALUE", value_parser = pair)]
    extra: Vec<(String, String)>,
    /// Show more columns.
    #[arg(short, long)]
    long: bool,
}

fn pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.into(), value.into())),
        Some(_) | None => Err("expected a key and a value, such as physical_network=net1".into()),
    }
}

impl PciCommand {
    pub(crate) async fn run(self, cli: &Cli) -> anyhow::Result<Exit> {
        match self {
            Self::List(list) => list.run(cli).await,
            Self::Show(OneDevice { device, host }) => {
                output::show(cli.output, &find(cli, &device, host.as_deref()).await?, &lines())?;
                Ok(Exit::Done)
            }
            Self::Cleaned(OneDevice { device, host }) => {
                act(cli, &device, host.as_deref(), "action", &json!({ "cleaned": null })).await
            }
            Self::Scrub(OneDevice { device, host }) => {
                act(cli, &device, host.as_deref(), "scrub", &json!({})).await
            }
            Self::Stats { host } => stats(cli, host.as_deref()).await,
        }
    }
}

impl List {
    async fn run(self, cli: &Cli) -> anyhow::Result<Exit> {
        let host = match &self.host {
            Some(host) => Some(hostname(cli, host).await?),
            None => None,
        };
        let server = match &self.server {
            Some(server) => Some(lookup::server(cli, server).await?),
            None => None,
        };
        let query = query_string(&self.pairs(host, server))?;
        let devices = cli.client.query(&["os-pci", "detail"], &query, "pci_devices").await?;
        let wants_names =
            !cli.output.is_data() && devices.iter().any(|device| !device["instance_uuid"].is_null());
        let names = if wants_names { lookup::server_names(cli).await? } else { HashMap::new() };
        output::list(cli.output.long(self.long), "devices", &devices, &self.columns(&names))?;
        Ok(Exit::Done)
    }

    fn pairs(&self, host: Option<String>, server: Option<String>) -> Vec<(&str, String)> {
        let columns = [
            ("host", host),
            ("vendor_id", self.vendor.map(|id| id.to_string())),
            ("product_id", self.product.map(|id| id.to_string())),
            ("dev_type", self.dev_type.clone()),
            ("status", self.status.clone()),
            ("instance_uuid", server),
        ];
        let columns = columns.into_iter().filter_map(|(key, value)| Some((key, value?)));
        columns.chain(self.extra.iter().map(|(key, value)| (key.as_str(), value.clone()))).collect()
    }

    fn columns<'a>(&self, names: &'a HashMap<String, String>) -> Vec<Column<'a>> {
        let mut columns = vec![
            column("HOST", "/host"),
            column("ADDRESS", "/address").name(),
            Column::new("VENDOR:PRODUCT", columns::ids),
            column("TYPE", "/dev_type"),
            column("STATUS", "/status"),
            Column::new("SERVER", |device| columns::holder(names, device)),
        ];
        columns.extend([
            column("ID", "/id").wide(),
            column("UUID", "/uuid").wide(),
            column("NUMA", "/numa_node").wide(),
            column("PF", "/parent_addr").wide(),
            column("QUARANTINE", "/quarantine").wide(),
            Column::new("EXTRA_INFO", |device| key_values(&device["extra_info"], &[])).wide().wrapped(),
        ]);
        columns
    }
}

/// Returns the name of the host with this name or id.
async fn hostname(cli: &Cli, host: &str) -> Result<String, Failure> {
    Ok(at(&lookup::host(cli, host).await?, "/hypervisor_hostname"))
}

/// Finds the record of the device with this name.
///
/// # Errors
/// [`Exit::NotFound`] when there is none, [`Exit::Usage`] when several hosts have one.
async fn find(cli: &Cli, name: &DeviceName, host: Option<&str>) -> anyhow::Result<Value> {
    let host = match host {
        Some(host) => Some(hostname(cli, host).await?),
        None => None,
    };
    let mut found = records(cli, name).await?;
    found.retain(|device| host.as_ref().is_none_or(|host| device["host"] == *host));
    match &mut found[..] {
        [device] => Ok(device.take()),
        [] => {
            let on = host.map(|host| format!(" of host {host}")).unwrap_or_default();
            let message =
                format!("record of device {name}{on} not found; `hotslot pci list` lists the records");
            Err(Failure::new(Exit::NotFound, message).into())
        }
        several => Err(device_name::ambiguous(name, several).into()),
    }
}

async fn act(
    cli: &Cli,
    name: &DeviceName,
    host: Option<&str>,
    what: &str,
    body: &Value,
) -> anyhow::Result<Exit> {
    let id = at(&find(cli, name, host).await?, "/id");
    let answer = cli.client.post(&["os-pci", &id, what], body).await?;
    output::show(cli.output, &answer["pci_device"], &lines())?;
    Ok(Exit::Done)
}

fn lines() -> Vec<Column<'static>> {
    vec![
        column("ID", "/id"),
        column("UUID", "/uuid"),
        column("Host", "/host"),
        column("Address", "/address").name(),
        column("Node device", "/dev_id"),
        Column::new("Vendor:product", columns::ids),
        column("Type", "/dev_type"),
        column("PF", "/parent_addr"),
        column("NUMA node", "/numa_node"),
        column("Label", "/label"),
        Column::new("Extra info", |device| key_values(&device["extra_info"], &[])),
        column("Status", "/status"),
        column("Server", "/instance_uuid"),
        column("Request", "/request_id"),
        column("Created", "/created_at"),
        column("Updated", "/updated_at"),
        column("Gone", "/gone_at"),
        column("Used", "/used_at"),
        column("Waits for scrub", "/scrub"),
        column("Quarantine", "/quarantine"),
    ]
}

async fn stats(cli: &Cli, host: Option<&str>) -> anyhow::Result<Exit> {
    let mut all = Vec::new();
    match host {
        Some(host) => all.extend(pools(&lookup::host(cli, host).await?)?),
        None => {
            for host in cli.client.items(&["os-hypervisors"], "hypervisors").await? {
                let path = ["os-hypervisors", &at(&host, "/id")];
                all.extend(pools(&cli.client.item(&path, "hypervisor").await?)?);
            }
        }
    }
    let columns = [
        column("HOST", "/host"),
        column("COUNT", "/count"),
        Column::new("VENDOR:PRODUCT", columns::ids).name(),
        column("NUMA", "/numa_node"),
        Column::new("EXTRA_INFO", tags).wrapped(),
    ];
    output::list(cli.output, "pools", &all, &columns)?;
    Ok(Exit::Done)
}

/// Returns the pools of a host, each with the name of the host.
fn pools(host: &Value) -> Result<Vec<Value>, Failure> {
    let name = at(host, "/hypervisor_hostname");
    let Some(pools) = host["pci_stats"].as_array() else {
        return Err(Failure::new(Exit::Failed, format!("the service returned no pci_stats for host {name}")));
    };
    let mut pools = pools.clone();
    for pool in pools.iter_mut().filter_map(Value::as_object_mut) {
        pool.insert("host".into(), name.clone().into());
    }
    Ok(pools)
}

/// Formats the other properties that the devices of a pool have in common. Nova has these tags in the pool itself.
fn tags(pool: &Value) -> String {
    let columns = ["host", "count", "vendor_id", "product_id", "dev_type", "numa_node", "extra_info"];
    let mut tags = pool.clone();
    if let (Some(tags), Some(extra)) = (tags.as_object_mut(), pool["extra_info"].as_object()) {
        tags.extend(extra.clone());
    }
    key_values(&tags, &columns)
}

/// Formats the pairs of an object in the order of their keys, without the keys `except`: `rack=r1, trusted=true`.
pub(crate) fn key_values(object: &Value, except: &[&str]) -> String {
    let pairs: BTreeMap<_, _> = object.as_object().into_iter().flatten().collect();
    let pairs = pairs.into_iter().filter(|(key, _)| !except.contains(&key.as_str()));
    let pairs: Vec<_> = pairs.map(|(key, value)| format!("{key}={}", at(value, ""))).collect();
    if pairs.is_empty() { "-".into() } else { pairs.join(", ") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::{answered, answering};
    use crate::output::Output;

    #[test]
    fn pools_are_listed_with_the_tags_that_they_are_grouped_by() {
        let host = json!({ "hypervisor_hostname": "node1", "pci_stats": [
            { "count": 2, "vendor_id": "8086", "product_id": "10ca", "numa_node": null, "dev_type": "type-VF",
              "rack": "r1", "extra_info": { "switch": "tor-3", "rack": "r1" } },
            { "count": 0, "vendor_id": "1234", "product_id": "11e8", "numa_node": 1, "dev_type": "type-PCI" },
        ] });
        let pools = pools(&host).unwrap();
        assert_eq!(pools[0]["host"], "node1");
        assert_eq!(pools.iter().map(tags).collect::<Vec<_>>(), ["rack=r1, switch=tor-3", "-"]);
        assert!(super::pools(&json!({ "hypervisor_hostname": "node1" })).is_err());
    }

    #[tokio::test]
    async fn stats_of_a_named_host_are_requested_for_that_host_only() {
        const ANSWER: &str = "HTTP/1.1 200 OK\r\n\r\n\
            {\"hypervisor\":{\"hypervisor_hostname\":\"node1\",\"pci_stats\":[]}}";
        let (outcome, request) = answered(ANSWER, async |client| {
            stats(&Cli { client, output: Output::JSON }, Some("node1")).await
        })
        .await;
        assert_eq!(outcome.unwrap(), Exit::Done);
        assert!(request.starts_with("GET /v2.1/os-hypervisors/node1 HTTP/1.1"), "{request}");
    }

    #[tokio::test]
    async fn a_device_is_cleaned_by_the_id_of_its_record() {
        let record = |host: &str, id: u64| json!({ "host": host, "id": id, "address": "0000:3b:00.1" });
        let answers = vec![
            ("os-hypervisors/2", 200, json!({ "hypervisor": { "hypervisor_hostname": "node2" } })),
            (
                "os-pci/detail?address=0000%3A3b%3A00.1",
                200,
                json!({ "pci_devices": [record("node1", 7), record("node2", 8)] }),
            ),
            ("os-pci/8/action", 200, json!({ "pci_device": record("node2", 8) })),
        ];
        let name = "3b:00.1".parse().unwrap();
        let (outcome, requests) = answering(answers, async |client| {
            let (cli, body) = (Cli { client, output: Output::TABLE }, json!({ "cleaned": null }));
            (
                act(&cli, &name, Some("2"), "action", &body).await,
                act(&cli, &name, None, "action", &body).await,
            )
        })
        .await;
        assert_eq!(outcome.0.unwrap(), Exit::Done);
        assert!(requests[2].starts_with("POST /v2.1/os-pci/8/action HTTP/1.1"), "{requests:?}");
        assert!(requests[2].ends_with(r#"{"cleaned":null}"#), "{requests:?}");
        assert_eq!(Exit::of(&outcome.1.unwrap_err()), Exit::Usage);
        assert_eq!(requests.len(), 4, "an ambiguous name cleans nothing: {requests:?}");
    }

    #[test]
    fn a_list_is_filtered_by_columns_and_by_extra_info() {
        assert_eq!(pair("rack=a=b").unwrap(), ("rack".into(), "a=b".into()));
        for bad in ["", "rack", "=r1"] {
            assert!(pair(bad).is_err(), "{bad}");
        }
        let extra = vec![pair("rack=r 1").unwrap()];
        let list = List {
            host: None,
            vendor: Some("8086".parse().unwrap()),
            product: None,
            dev_type: Some("type-VF".into()),
            status: None,
            server: None,
            extra,
            long: false,
        };
        let query = query_string(&list.pairs(Some("node1".into()), None)).unwrap();
        assert_eq!(query, "host=node1&vendor_id=8086&dev_type=type-VF&rack=r+1");
    }
}
