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
use crate::client::{Client, permitted};
use crate::context::Contexts;
use crate::exit::Failure;
use crate::tls::Tls;
use crate::token;
use crate::value::at;

/// The variable with which a shell asks for completions.
pub(crate) const VARIABLE: &str = "COMPLETE";

/// How long a completion may wait for the service.
const LIMIT: Duration = Duration::from_secs(2);

/// What the script of bash has besides that of clap. Bash takes `0000:17` and `gpu:2` for several words where
/// `COMP_WORDBREAKS` has a colon, and inserts a completion after the last colon of the word.
const BASH: &str = r#"
_hotslot() {
    local rest=$COMP_LINE current=${COMP_LINE:0:COMP_POINT} joined=() index=0 before word
    current=${current##*[[:space:]]}
    for ((word = 0; word < ${#COMP_WORDS[@]}; word++)); do
        # Words without a space between them are one word.
        before=${rest%%[![:space:]]*}
        rest=${rest#"$before"}
        rest=${rest#"${COMP_WORDS[word]}"}
        if [[ -z $before ]] && ((word > 0)); then
            joined[${#joined[@]}-1]+=${COMP_WORDS[word]}
        else
            joined+=("${COMP_WORDS[word]}")
        fi
        if ((word == COMP_CWORD)); then
            index=$((${#joined[@]} - 1))
        fi
    done
    local COMP_WORDS=("${joined[@]}") COMP_CWORD=$index
    _clap_complete_hotslot "$1" "$current" "$3"
    # What is before the last word break stays as it is.
    local breaks=${COMP_WORDBREAKS//[^:=]/}
    if [[ -n $breaks && $current == *["$breaks"]* ]]; then
        local kept=${current%"${current##*["$breaks"]}"}
        COMPREPLY=("${COMPREPLY[@]#"$kept"}")
    fi
}
complete -o nospace -o bashdefault -o nosort -F _hotslot hotslot
"#;

/// Returns the script that has a shell ask hotslot for completions.
pub(crate) fn script(shell: Shell) -> anyhow::Result<String> {
    let mut script = Vec::new();
    let shells = Shells::builtins();
    let completer = shells.completer(&shell.to_string());
    let completer = completer.ok_or_else(|| anyhow::anyhow!("{shell} is not supported"))?;
    completer.write_registration(VARIABLE, "hotslot", "hotslot", "hotslot", &mut script)?;
    let more = if shell == Shell::Bash { BASH } else { "" };
    Ok(String::from_utf8(script)? + more)
}

pub(crate) fn hosts(current: &OsStr) -> Vec<CompletionCandidate> {
    complete(current, async |client| {
        let hosts = client.items(&["os-hypervisors"], "hypervisors").await?;
        Ok(named(&hosts, "/hypervisor_hostname", "/state"))
    })
}

pub(crate) fn servers(current: &OsStr) -> Vec<CompletionCandidate> {
    complete(current, async |client| {
        Ok(named(&client.items(&["servers", "detail"], "servers").await?, "/name", "/status"))
    })
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
        // Who may not list the one may still be allowed to list the other.
        let aliases = permitted(client.items(&["os-pci-config", "alias"], "alias").await)?;
        let mut found = named(&aliases.unwrap_or_default(), "/entry/name", "/source");
        let free = client.query(&["os-pci", "detail"], "status=available", "pci_devices").await;
        found.extend(named(&permitted(free)?.unwrap_or_default(), "/address", "/host"));
        Ok(found)
    })
}

/// Servers with attachments, and the ids of attachments.
pub(crate) fn detachable(current: &OsStr) -> Vec<CompletionCandidate> {
    complete(current, async |client| {
        let attachments = client.items(&["os-pci_attachments"], "pciAttachment").await?;
        let mut servers = client.items(&["servers", "detail"], "servers").await?;
        servers.retain(|server| attachments.iter().any(|one| one["serverId"] == server["id"]));
        let mut found = named(&servers, "/name", "/status");
        found.extend(named(&attachments, "/attachment_id", "/address"));
        Ok(found)
    })
}

/// What may follow one of [`detachable`]: the aliases and addresses of the attachments of a server that is on the command
/// line, or else the ids of attachments.
pub(crate) fn detachable_too(current: &OsStr) -> Vec<CompletionCandidate> {
    let words: Vec<_> = std::env::args().collect();
    complete(current, async |client| {
        let mut attachments = client.items(&["os-pci_attachments"], "pciAttachment").await?;
        let mut servers = client.items(&["servers", "detail"], "servers").await?;
        servers.retain(|server| words.iter().any(|word| server["name"] == **word || server["id"] == **word));
        if servers.is_empty() {
            return Ok(named(&attachments, "/attachment_id", "/address"));
        }
        attachments.retain(|one| servers.iter().any(|server| one["serverId"] == server["id"]));
        let mut found = named(&attachments, "/alias", "/status");
        found.extend(named(&attachments, "/address", "/alias"));
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
    let variable = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
    let config = variable("HOTSLOT_CONFIG").map(PathBuf::from);
    let (url, named) = (variable("HOTSLOT_URL"), variable("HOTSLOT_CONTEXT"));
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
