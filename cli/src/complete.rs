//! Completion of names that the service knows: guests, hosts, aliases, addresses and ids.
//!
//! A shell runs hotslot with the variable `COMPLETE` to complete a command line. Options of that line do not count:
//! the service is the one of `HOTSLOT_CONTEXT`, of `HOTSLOT_URL`, of `HOTSLOT_CONFIG`, of the context that is in use, or the
//! default one, and the token is that of the context or of `HOTSLOT_TOKEN`. When it does not answer in time, nothing is
//! completed.

use std::ffi::OsStr;
use std::path::PathBuf;
use std::time::Duration;

use clap_complete::env::Shells;
use clap_complete::{CompletionCandidate, Shell};
use hotslot_driver::text;
use hotslot_model::event::EventKind;
use serde_json::Value;

use crate::address::Address;
use crate::client::Client;
use crate::context::Contexts;
use crate::exit::Failure;
use crate::tls::Tls;
use crate::token;
use crate::value::at;

/// The variable with which a shell asks for completions.
pub(crate) const VARIABLE: &str = "COMPLETE";

/// How long a completion may wait for the service.
const LIMIT: Duration = Duration::from_secs(2);

/// Returns the script that has a shell ask hotslot for completions.
pub(crate) fn script(shell: Shell) -> anyhow::Result<String> {
    let mut script = Vec::new();
    let shells = Shells::builtins();
    let completer = shells.completer(&shell.to_string());
    let completer = completer.ok_or_else(|| anyhow::anyhow!("{shell} is not supported"))?;
    completer.write_registration(VARIABLE, "hotslot", "hotslot", "hotslot", &mut script)?;
    Ok(String::from_utf8(script)?)
}

pub(crate) fn hosts(current: &OsStr) -> Vec<CompletionCandidate> {
    complete(current, async |client| {
        let hosts = client.items(&["os-hypervisors"], "hypervisors").await?;
        Ok(named(&hosts, "/hypervisor_hostname", "/state"))
    })
}

pub(crate) fn servers(current: &OsStr) -> Vec<CompletionCandidate> {
    complete(current, all_servers)
}

/// Hosts and guests.
pub(crate) fn trees(current: &OsStr) -> Vec<CompletionCandidate> {
    let mut found = hosts(current);
    found.extend(servers(current));
    found
}

pub(crate) fn flavors(current: &OsStr) -> Vec<CompletionCandidate> {
    complete(current, async |client| {
        let flavors = client.items(&["flavors", "detail"], "flavors").await?;
        Ok(named(&flavors, "/name", "/extra_specs/pci_passthrough:alias"))
    })
}

/// What may be attached: aliases, and the addresses of free devices.
pub(crate) fn attachable(current: &OsStr) -> Vec<CompletionCandidate> {
    complete(current, async |client| {
        let aliases = client.items(&["os-pci-config", "alias"], "alias").await?;
        let mut found = named(&aliases, "/entry/name", "/source");
        let free = client.query(&["os-pci", "detail"], "status=available", "pci_devices").await?;
        found.extend(named(&free, "/address", "/host"));
        Ok(found)
    })
}

/// Attachments, by their ids, aliases and addresses; and guests.
pub(crate) fn attachments(current: &OsStr) -> Vec<CompletionCandidate> {
    complete(current, async |client| {
        let attachments = client.items(&["os-pci_attachments"], "pciAttachment").await?;
        let mut found = named(&attachments, "/attachment_id", "/address");
        found.extend(named(&attachments, "/alias", "/status"));
        found.extend(named(&attachments, "/address", "/alias"));
        found.extend(all_servers(client).await?);
        Ok(found)
    })
}

/// The ids of attachments.
pub(crate) fn attachment_ids(current: &OsStr) -> Vec<CompletionCandidate> {
    complete(current, async |client| {
        let attachments = client.items(&["os-pci_attachments"], "pciAttachment").await?;
        Ok(named(&attachments, "/attachment_id", "/address"))
    })
}

pub(crate) fn devices(current: &OsStr) -> Vec<CompletionCandidate> {
    complete(current, async |client| {
        let devices = client.items(&["os-pci", "detail"], "pci_devices").await?;
        Ok(named(&devices, "/address", "/host"))
    })
}

pub(crate) fn accelerators(current: &OsStr) -> Vec<CompletionCandidate> {
    complete(current, async |client| {
        Ok(named(&client.items(&["accelerators"], "accelerators").await?, "/name", "/device_type"))
    })
}

/// The kinds of events.
pub(crate) fn event_kinds(current: &OsStr) -> Vec<CompletionCandidate> {
    beginning(EventKind::ALL.iter().map(|kind| CompletionCandidate::new(kind.as_str())), current)
}

async fn all_servers(client: Client) -> Result<Vec<CompletionCandidate>, Failure> {
    Ok(named(&client.items(&["servers", "detail"], "servers").await?, "/name", "/status"))
}

/// Makes a candidate of each item, with a help text. A name that is unsafe on a terminal is left out.
fn named(items: &[Value], name: &str, help: &str) -> Vec<CompletionCandidate> {
    let safe = |item: &&Value| {
        let name = item.pointer(name).and_then(Value::as_str);
        name.is_some_and(|name| !name.is_empty() && !name.contains(text::is_unsafe))
    };
    let candidate = |item: &Value| {
        let name = item.pointer(name).and_then(Value::as_str).unwrap_or_default();
        CompletionCandidate::new(name).help(Some(at(item, help).into()))
    };
    items.iter().filter(safe).map(candidate).collect()
}

/// Asks the service, and keeps the candidates that begin with `current`.
fn complete(
    current: &OsStr,
    ask: impl AsyncFnOnce(Client) -> Result<Vec<CompletionCandidate>, Failure>,
) -> Vec<CompletionCandidate> {
    let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() else {
        return Vec::new();
    };
    let found = runtime.block_on(async { tokio::time::timeout(LIMIT, ask(client()?)).await.ok()?.ok() });
    runtime.shutdown_background();
    beginning(found.unwrap_or_default(), current)
}

/// Keeps the candidates that begin with `current`.
fn beginning(
    candidates: impl IntoIterator<Item = CompletionCandidate>,
    current: &OsStr,
) -> Vec<CompletionCandidate> {
    let begins = |candidate: &CompletionCandidate| {
        candidate.get_value().as_encoded_bytes().starts_with(current.as_encoded_bytes())
    };
    candidates.into_iter().filter(begins).collect()
}

/// Returns a client by the variables of the environment.
fn client() -> Option<Client> {
    let config = std::env::var_os("HOTSLOT_CONFIG").map(PathBuf::from);
    let (url, named) = (std::env::var("HOTSLOT_URL").ok(), std::env::var("HOTSLOT_CONTEXT").ok());
    let contexts = Contexts::read().ok()?;
    if (named.is_some() || url.is_none() && config.is_none())
        && let Some((name, context)) = contexts.pick(named.as_deref()).ok()?
    {
        let token = token::own(context.token_file.as_deref()).ok()?;
        let tls = Tls::default().trusting(context.ca_file.clone());
        return Client::with_token(context.address(name).ok()??, &tls, token).ok();
    }
    let address = match url {
        Some(url) => url.parse().ok()?,
        None => Address::found(config.as_deref()).ok()?,
    };
    Client::with_token(address, &Tls::default(), token::own(None).ok()?).ok()
}
