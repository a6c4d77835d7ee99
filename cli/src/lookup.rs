//! Servers, hosts and devices by what a person calls them.

use std::collections::HashMap;

use serde_json::Value;
use uuid::Uuid;

use crate::client::query_string;
use crate::device_name::DeviceName;
use crate::exit::{Exit, Failure};
use crate::output::at;
use crate::{Cli, host};

/// The UUID of the server that a person named by UUID or name.
pub(crate) async fn server(cli: &Cli, server: &str) -> Result<String, Failure> {
    if let Ok(id) = Uuid::try_parse(server) {
        return Ok(id.to_string());
    }
    let servers = cli.client.items(&["servers"], "servers").await?;
    let found: Vec<_> = servers.iter().filter(|candidate| candidate["name"] == server).collect();
    match found[..] {
        [one] => Ok(at(one, "/id")),
        [] => {
            let hosts = cli.client.items(&["os-hypervisors"], "hypervisors").await?;
            let away = host::away(&hosts);
            Err(if away.is_empty() {
                Failure::new(Exit::NotFound, format!("no server is called `{server}`; `hotslot server list`"))
            } else {
                let away = away.join(", ");
                let message = format!("no server that can be seen is called `{server}`; away: {away}");
                Failure::new(Exit::Away, message)
            })
        }
        _ => {
            let ids: Vec<_> = found
                .iter()
                .map(|server| format!("\n  {} on {}", at(server, "/id"), at(server, "/host")))
                .collect();
            let message = format!("several servers are called `{server}`; give the UUID:{}", ids.concat());
            Err(Failure::new(Exit::Usage, message))
        }
    }
}

/// The names of the servers that can be seen, by UUID.
pub(crate) async fn server_names(cli: &Cli) -> Result<HashMap<String, String>, Failure> {
    let servers = cli.client.items(&["servers"], "servers").await?;
    Ok(servers.iter().map(|server| (at(server, "/id"), at(server, "/name"))).collect())
}

/// A server for people: its name, or its UUID where the name cannot be seen.
pub(crate) fn called(names: &HashMap<String, String>, id: &str) -> String {
    names.get(id).map_or(id, String::as_str).to_owned()
}

/// The one host of that name, or all.
pub(crate) async fn hosts(cli: &Cli, host: Option<&str>) -> Result<Vec<Value>, Failure> {
    match host {
        Some(host) => Ok(vec![cli.client.item(&["os-hypervisors", host], "hypervisor").await?]),
        None => cli.client.items(&["os-hypervisors"], "hypervisors").await,
    }
}

/// The records of that name, one a host.
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
