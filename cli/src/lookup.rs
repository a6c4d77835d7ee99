//! Finds servers, hosts and device records by the names that people use.

use std::collections::HashMap;

use serde_json::Value;
use uuid::Uuid;

use crate::Cli;
use crate::client::{permitted, query_string};
use crate::device_name::{BEGINNING, DeviceName};
use crate::exit::{Exit, Failure};
use crate::value::at;

/// A name as messages show it: an empty one in quotes.
fn shown(name: &str) -> &str {
    if name.is_empty() { "''" } else { name }
}

/// What a list of items has, by which people name them.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Noun {
    /// What one of them is called in messages.
    pub(crate) noun: &'static str,
    /// The JSON pointer of the UUID.
    pub(crate) id: &'static str,
    /// The JSON pointer of the name, if they have one.
    pub(crate) name: Option<&'static str>,
    /// The command that lists them.
    pub(crate) list: &'static str,
}

impl Noun {
    /// Finds the one item with this UUID or name, or whose UUID begins so. A UUID has precedence over a name, and a name
    /// over the beginning of a UUID.
    ///
    /// # Errors
    /// [`Exit::NotFound`] when there is none, [`Exit::Usage`] when there are several.
    pub(crate) fn find<'a>(&self, items: &'a [Value], text: &str) -> Result<&'a Value, Failure> {
        let Self { noun, id, name, list } = *self;
        let uuid = text.to_ascii_lowercase();
        if let Some(one) = items.iter().find(|item| item.pointer(id).is_some_and(|id| *id == *uuid)) {
            return Ok(one);
        }
        let mut found: Vec<_> = match name {
            Some(name) => {
                items.iter().filter(|item| item.pointer(name).is_some_and(|it| it == text)).collect()
            }
            None => Vec::new(),
        };
        let named = !found.is_empty();
        let begins = |item: &&Value| at(item, id).starts_with(&uuid);
        let short = uuid.len() < BEGINNING;
        if !named && !short {
            found = items.iter().filter(begins).collect();
        }
        match found[..] {
            [one] => Ok(one),
            [] => {
                let hint = if short && !uuid.is_empty() && items.iter().any(|item| begins(&item)) {
                    format!("; write at least {BEGINNING} characters of an id")
                } else {
                    String::new()
                };
                let message = format!("{noun} {} not found{hint}; {list} lists them", shown(text));
                Err(Failure::new(Exit::NotFound, message))
            }
            _ => {
                let nouns = match noun.strip_suffix('y') {
                    Some(noun) => format!("{noun}ies"),
                    None => format!("{noun}s"),
                };
                let how = if named {
                    format!("several {nouns} are called `{text}`; give the id instead of the name")
                } else {
                    format!("the ids of several {nouns} begin with `{text}`")
                };
                let lines: String = found
                    .iter()
                    .map(|item| match at(item, "/host") {
                        host if host == "-" => format!("\n  {}", at(item, id)),
                        host => format!("\n  {} on {host}", at(item, id)),
                    })
                    .collect();
                Err(Failure::new(Exit::Usage, format!("{how}:{lines}")))
            }
        }
    }
}

/// Guests.
const SERVERS: Noun = Noun { noun: "server", id: "/id", name: Some("/name"), list: "`hotslot server list`" };

/// Returns the UUID of the server with this UUID or name, or whose UUID begins so.
///
/// # Errors
/// [`Exit::NotFound`] when there is none, [`Exit::Unreachable`] when it may be on an unreachable host,
/// [`Exit::Usage`] when there are several.
pub(crate) async fn server(cli: &Cli, server: &str) -> Result<String, Failure> {
    if let Ok(id) = Uuid::try_parse(server) {
        return Ok(id.to_string());
    }
    let servers = cli.client.items(&["servers"], "servers").await?;
    match SERVERS.find(&servers, server) {
        Ok(one) => Ok(at(one, "/id")),
        Err(failure) if failure.exit() == Exit::NotFound => {
            let hosts = hosts_if_permitted(cli).await?;
            let unreachable = unreachable_hosts(&hosts);
            if unreachable.is_empty() {
                return Err(failure);
            }
            let hosts = unreachable.join(", ");
            let message =
                format!("server {} not found on the reachable hosts; unreachable: {hosts}", shown(server));
            Err(Failure::new(Exit::Unreachable, message))
        }
        Err(failure) => Err(failure),
    }
}

/// Returns the names of the servers of all reachable hosts, by UUID: none when the caller may not list servers.
pub(crate) async fn server_names(cli: &Cli) -> Result<HashMap<String, String>, Failure> {
    let servers = permitted(cli.client.items(&["servers"], "servers").await)?.unwrap_or_default();
    Ok(servers.iter().map(|server| (at(server, "/id"), at(server, "/name"))).collect())
}

/// Gets all hosts; none when the caller may not list them.
pub(crate) async fn hosts_if_permitted(cli: &Cli) -> Result<Vec<Value>, Failure> {
    Ok(permitted(cli.client.items(&["os-hypervisors"], "hypervisors").await)?.unwrap_or_default())
}

/// Returns the names of the unreachable hosts in a list, each with the reason.
pub(crate) fn unreachable_hosts(hosts: &[Value]) -> Vec<String> {
    let down = hosts.iter().filter(|host| host["state"] == "down");
    down.map(|host| format!("{} ({})", at(host, "/hypervisor_hostname"), at(host, "/state_reason"))).collect()
}

/// Hosts.
pub(crate) const HOSTS: Noun =
    Noun { noun: "host", id: "/id", name: Some("/hypervisor_hostname"), list: "`hotslot host list`" };

/// Gets the host of this name or id, or whose id begins so.
///
/// # Errors
/// [`Exit::NotFound`] when there is none, [`Exit::Usage`] when there are several.
pub(crate) async fn host(cli: &Cli, text: &str) -> Result<Value, Failure> {
    let path = |host| ["os-hypervisors", host];
    let failure = match cli.client.item(&path(text), "hypervisor").await {
        Err(failure) if failure.exit() == Exit::NotFound && is_beginning(text) => failure,
        other => return other,
    };
    match HOSTS.find(&hosts_if_permitted(cli).await?, text) {
        Ok(found) => cli.client.item(&path(&at(found, "/id")), "hypervisor").await,
        Err(several) if several.exit() == Exit::Usage => Err(several),
        Err(_) => Err(failure),
    }
}

/// Returns the name of the host of this name or id, or whose id begins so. A name that no present host has is kept: the
/// service may know it.
pub(crate) async fn host_name(cli: &Cli, text: &str) -> Result<String, Failure> {
    if !is_beginning(text) {
        return Ok(text.to_owned());
    }
    match host(cli, text).await {
        Ok(host) => Ok(at(&host, "/hypervisor_hostname")),
        Err(failure) if failure.exit() == Exit::Usage => Err(failure),
        Err(_) => Ok(text.to_owned()),
    }
}

/// Whether a text may be the beginning of a UUID that names something.
fn is_beginning(text: &str) -> bool {
    text.len() >= BEGINNING && text.chars().all(|letter| letter.is_ascii_hexdigit() || letter == '-')
}

/// Gets the host of this name or id, or all hosts.
pub(crate) async fn hosts(cli: &Cli, named: Option<&str>) -> Result<Vec<Value>, Failure> {
    match named {
        Some(text) => Ok(vec![host(cli, text).await?]),
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
        DeviceName::Beginning(text) => {
            const RECORDS: Noun =
                Noun { noun: "device record", id: "/uuid", name: None, list: "`hotslot pci list -l`" };
            let all = cli.client.items(&["os-pci", "detail"], "pci_devices").await?;
            vec![RECORDS.find(&all, text)?.clone()]
        }
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_item_is_found_by_its_id_its_name_or_a_beginning_of_its_id() {
        let items = [("a1b2c3", "web"), ("a1b2d4", "db"), ("ffff00", "db"), ("0abcde", "ffff")]
            .map(|(id, name)| json!({ "id": id, "name": name }));
        let found = |noun: Noun, text: &str| noun.find(&items, text).map(|item| at(item, "/id"));
        for (text, id) in [
            ("A1B2C3", "a1b2c3"),
            ("web", "a1b2c3"),
            ("ffff", "0abcde"),
            ("ffff0", "ffff00"),
            ("a1b2d", "a1b2d4"),
        ] {
            assert_eq!(found(SERVERS, text).unwrap(), id, "{text}");
        }
        assert_eq!(found(Noun { name: None, ..SERVERS }, "FFFF").unwrap(), "ffff00");
        for (text, exit, words) in [
            ("a1b2", Exit::Usage, "the ids of several servers begin with `a1b2`:\n  a1b2c3\n  a1b2d4"),
            ("0ab", Exit::NotFound, "server 0ab not found; write at least 4 characters of an id; `hotslot"),
            ("db", Exit::Usage, "several servers are called `db`; give the id instead"),
            ("x", Exit::NotFound, "server x not found; `hotslot server list` lists them"),
            ("", Exit::NotFound, "server '' not found; `hotslot server list` lists them"),
        ] {
            let failure = found(SERVERS, text).unwrap_err();
            assert_eq!(failure.exit(), exit, "{text}");
            assert!(failure.to_string().contains(words), "{failure}");
        }
    }

    #[test]
    fn unreachable_hosts_are_named_with_the_reason() {
        let hosts = [
            json!({ "hypervisor_hostname": "a", "state": "up", "state_reason": null }),
            json!({ "hypervisor_hostname": "b", "state": "down", "state_reason": "refused" }),
        ];
        assert_eq!(unreachable_hosts(&hosts), ["b (refused)"]);
    }
}
