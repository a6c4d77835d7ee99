//! Finds servers, hosts and device records by the names that people use.

use std::collections::HashMap;

use serde_json::Value;
use uuid::Uuid;

use crate::client::query_string;
use crate::device_name::DeviceName;
use crate::exit::{Exit, Failure};
use crate::output::at;
use crate::{Cli, host};

/// Returns the UUID of the server with this UUID or name.
///
/// # Errors
/// [`Exit::NotFound`] when no server has the name, [`Exit::Unreachable`] when it may be on an unreachable host,
/// [`Exit::Usage`] when several servers have it.
pub(crate) async fn server(cli: &Cli, server: &str) -> Result<String, Failure> {
    if let Ok(id) = Uuid::try_parse(server) {
        return Ok(id.to_string());
    }
    let servers = cli.client.items(&["servers"], "servers").await?;
    let found: Vec<_> = servers.iter().filter(|candidate| candidate["name"] == server).collect();
    match found[..] {
        [one] => Ok(at(one, "/id")),
        [] => {
            let hosts = host::all_if_permitted(cli).await?;
            let unreachable = host::unreachable(&hosts);
            Err(if unreachable.is_empty() {
                Failure::new(
                    Exit::NotFound,
                    format!("no server is called `{server}`; `hotslot server list` lists them"),
                )
            } else {
                let hosts = unreachable.join(", ");
                let message =
                    format!("no server of the reachable hosts is called `{server}`; unreachable: {hosts}");
                Failure::new(Exit::Unreachable, message)
            })
        }
        _ => {
            let ids: Vec<_> = found
                .iter()
                .map(|server| format!("\n  {} on {}", at(server, "/id"), at(server, "/host")))
                .collect();
            let message = format!(
                "several servers are called `{server}`; give the UUID instead of the name:{}",
                ids.concat()
            );
            Err(Failure::new(Exit::Usage, message))
        }
    }
}

/// Returns the names of the servers of all reachable hosts, by UUID.
pub(crate) async fn server_names(cli: &Cli) -> Result<HashMap<String, String>, Failure> {
    let servers = cli.client.items(&["servers"], "servers").await?;
    Ok(servers.iter().map(|server| (at(server, "/id"), at(server, "/name"))).collect())
}

/// Returns the name of a server, or its UUID when the name is not known.
pub(crate) fn called(names: &HashMap<String, String>, id: &str) -> String {
    names.get(id).map_or(id, String::as_str).to_owned()
}

/// Gets the host of this name or id, or all hosts.
pub(crate) async fn hosts(cli: &Cli, host: Option<&str>) -> Result<Vec<Value>, Failure> {
    match host {
        Some(host) => Ok(vec![cli.client.item(&["os-hypervisors", host], "hypervisor").await?]),
        None => cli.client.items(&["os-hypervisors"], "hypervisors").await,
    }
}

/// Gets the records of the devices with this name. An address can have one on each host.
pub(crate) async fn records(cli: &Cli, name: &DeviceName) -> anyhow::Result<Vec<Value>> {
    Ok(match name {
        DeviceName::Address(address) => {
            let query = query_string(&[("address", address.to_string())])?;
            cli.client.query(&["os-pci", "detail"], &query, "pci_devices").await?
        }
        DeviceName::Id(_) | DeviceName::Uuid(_) => {
            vec![cli.client.item(&["os-pci", &name.to_string()], "pci_device").await?]
        }
    })
}
