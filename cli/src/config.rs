//! `hotslot config`: checks a configuration file, and lists and changes the rules of the running service.

mod check;

use std::path::{Path, PathBuf};
use std::str::FromStr;

use clap::Subcommand;
use hotslot_model::json;
use hotslot_service::config::{Config, schema};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::Cli;
use crate::exit::{Exit, Failure};
use crate::lookup::Noun;
use crate::output::{self, Output};
use crate::table::{Column, column, id, message};
use crate::value::{at, json_line};

/// The examples in `--help`.
pub(crate) const HELP: &str = r#"Examples:
  hotslot config check /etc/hotslot/hotslot.toml
  hotslot config show
  hotslot config reload
  hotslot config schema > hotslot.schema.json
  hotslot config device-spec list
  hotslot config device-spec add '{"vendor_id": "8086", "product_id": "10ca"}'
  hotslot config alias add '{"name": "a1", "vendor_id": "8086", "product_id": "10ca"}'
  hotslot config extra-info add '{"match": {"address": "3b:00.1"}, "values": {"switch": "tor-3"}}'
  hotslot config device-spec remove 3f673402-6353-53f5-bb2b-90fd311e00db --force"#;

#[derive(Debug, Subcommand)]
pub(crate) enum ConfigCommand {
    #[command(flatten)]
    Local(LocalCommand),
    /// Have the service read its configuration file, policy, certificates and tokens again. A file with mistakes is refused,
    /// and the previous configuration stays in force.
    Reload,
    /// List, add and remove the entries of device_spec, which select the assignable devices (`whitelist` in REST).
    #[command(subcommand, name = "device-spec", alias = "whitelist")]
    Whitelist(Entries),
    /// List, add and remove the aliases, by which devices are requested.
    #[command(subcommand)]
    Alias(Entries),
    /// List, add and remove the entries of extra_info: facts about devices that hypervisors do not report.
    #[command(subcommand)]
    ExtraInfo(Entries),
}

/// The commands that need no service.
#[derive(Debug, Subcommand)]
pub(crate) enum LocalCommand {
    /// Report the mistakes in a configuration file, of each entry the first. This needs no service.
    Check {
        /// The configuration file; by default the one of --config, or /etc/hotslot/hotslot.toml.
        file: Option<PathBuf>,
    },
    /// Print a configuration file without its secrets, after checking it. This needs no service.
    Show {
        /// The configuration file; by default the one of --config, or /etc/hotslot/hotslot.toml.
        file: Option<PathBuf>,
    },
    /// Print the JSON schema of the configuration file, by which editors complete keys and check values. This needs no
    /// service.
    Schema,
}

impl LocalCommand {
    /// `config` is the file of `--config`.
    pub(crate) fn run(self, config: Option<&Path>, output: Output) -> anyhow::Result<Exit> {
        match self {
            Self::Check { file } => {
                check::run(file.as_deref().or(config).unwrap_or(Path::new(CONFIG)), output)
            }
            Self::Show { file } => show(file.as_deref().or(config).unwrap_or(Path::new(CONFIG)), output),
            Self::Schema => {
                output::json(&schema())?;
                Ok(Exit::Done)
            }
        }
    }
}

/// The commands for one kind of entries.
#[derive(Debug, Subcommand)]
pub(crate) enum Entries {
    /// List the entries of the configuration file and the added entries, in the order in which they apply.
    List,
    /// Add an entry. It takes effect at once.
    Add {
        /// The entry as in the configuration file: a JSON object.
        entry: Entry,
    },
    /// Remove an added entry. Entries of the configuration file can only be removed from the file.
    Remove {
        /// The id of the entry, as `list` shows it, or an unambiguous beginning of it, or the name of an alias.
        id: String,
        /// Remove the entry even if devices that it matches are in use.
        #[arg(long)]
        force: bool,
    },
}

/// An entry: a JSON object. The service checks its content.
#[derive(Debug, Clone)]
pub(crate) struct Entry(Value);

impl FromStr for Entry {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let example = "expected a JSON object; `hotslot config --help` has examples";
        match json::parse(text.as_bytes()) {
            Ok(entry @ Value::Object(_)) => Ok(Self(entry)),
            Ok(_) => Err(example.to_owned()),
            Err(error) => Err(format!("it is not valid JSON: {}; {example}", json::reason(&error))),
        }
    }
}

impl ConfigCommand {
    pub(crate) async fn run(self, cli: &Cli) -> anyhow::Result<Exit> {
        match self {
            Self::Local(command) => command.run(None, cli.output),
            Self::Reload => reload(cli).await,
            Self::Whitelist(entries) => entries.run(cli, "whitelist").await,
            Self::Alias(entries) => entries.run(cli, "alias").await,
            Self::ExtraInfo(entries) => entries.run(cli, "extra_info").await,
        }
    }
}

impl Entries {
    /// `kind` is the last segment of the path, and the key in bodies.
    async fn run(self, cli: &Cli, kind: &str) -> anyhow::Result<Exit> {
        let path = ["os-pci-config", kind];
        match self {
            Self::List => {
                let entries = cli.client.items(&path, kind).await?;
                let columns = [
                    id("ID", "/id"),
                    column("SOURCE", "/source"),
                    column("READ-ONLY", "/read_only"),
                    column("POSITION", "/position"),
                    Column::new("ENTRY", entry).wrapped(),
                    message("PROBLEM", "/problem"),
                ];
                output::list(cli.output, "entries", &entries, &columns)?;
            }
            Self::Add { entry: Entry(added) } => {
                let answer = cli.client.post(&path, &json!({ kind: added })).await?;
                let lines = [
                    column("ID", "/id").name(),
                    column("Source", "/source"),
                    column("Position", "/position"),
                    Column::new("Entry", entry),
                ];
                output::show(cli.output, &answer[kind], &lines)?;
            }
            Self::Remove { id, force } => {
                let id = whole(cli, &path, &id).await?;
                let query = if force { "force=true" } else { "" };
                cli.client.remove(&[path[0], path[1], &id], query).await?;
                let removed = json!({ "id": id, "status": "removed" });
                output::done(cli.output, "removed", &id, &removed)?;
            }
        }
        Ok(Exit::Done)
    }
}

/// Returns the whole id of the entry whose id begins so, or of the alias of this name.
async fn whole(cli: &Cli, path: &[&str; 2], text: &str) -> Result<String, Failure> {
    let entries_of = |name, list| Noun { noun: "entry", id: "/id", name, list };
    let noun = match path[1] {
        "alias" => entries_of(Some("/entry/name"), "`hotslot config alias list`"),
        "extra_info" => entries_of(None, "`hotslot config extra-info list`"),
        _ => entries_of(None, "`hotslot config device-spec list`"),
    };
    if Uuid::try_parse(text).is_ok() {
        return Ok(text.to_owned());
    }
    let entries = cli.client.items(path, path[1]).await?;
    noun.find(&entries, text).map(|entry| at(entry, "/id"))
}

/// The configuration, when none is named.
const CONFIG: &str = "/etc/hotslot/hotslot.toml";

/// Prints a configuration file without its secrets.
fn show(file: &Path, output: Output) -> anyhow::Result<Exit> {
    let config = Config::load(file)?;
    let text = config.source.map(|source| source.without_secrets()).unwrap_or_default();
    if output.is_data() {
        output::data(output, &toml::from_str(&text)?)?;
    } else if output.is_names() {
        output::names([file.display().to_string()])?;
    } else {
        output::print(&text)?;
    }
    Ok(Exit::Done)
}

/// Has the service read its configuration again, and prints what has changed.
async fn reload(cli: &Cli) -> anyhow::Result<Exit> {
    let answer = cli.client.post(&["service", "reload"], &json!({})).await?;
    let found = &answer["reload"];
    if cli.output.is_data() {
        output::data(cli.output, found)?;
        return Ok(Exit::Done);
    }
    let keys_of =
        |key: &str| found[key].as_array().into_iter().flatten().filter_map(Value::as_str).collect::<Vec<_>>();
    let kinds = [("changed", "in force now"), ("needs_restart", "in force after a restart")];
    if cli.output.is_names() {
        output::names(kinds.iter().flat_map(|(key, _)| keys_of(key)).map(str::to_owned))?;
        return Ok(Exit::Done);
    }
    let mut text = String::new();
    for (key, what) in kinds {
        let keys = keys_of(key);
        if !keys.is_empty() {
            text += &format!("{what}: {}\n", keys.join(", "));
        }
    }
    output::print(if text.is_empty() { "nothing has changed\n" } else { &text })?;
    Ok(Exit::Done)
}

/// The JSON text of an entry.
fn entry(item: &Value) -> String {
    json_line(&item["entry"])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::answered;

    const ENTRY: &str = "0a1b2c3d-0000-4000-8000-000000000001";

    async fn run(entries: Entries, kind: &str, answer: &'static str) -> (anyhow::Result<Exit>, String) {
        answered(answer, async |client| entries.run(&Cli { client, output: Output::TABLE }, kind).await).await
    }

    #[tokio::test]
    async fn entries_are_listed_added_and_removed() {
        const LIST: &str = "HTTP/1.1 200 OK\r\n\r\n\
            {\"alias\":[{\"id\":1,\"source\":\"file\",\"read_only\":true,\"position\":0,\"entry\":{\"name\":\"a1\"}}]}";
        let (outcome, request) = run(Entries::List, "alias", LIST).await;
        assert_eq!(outcome.unwrap(), Exit::Done);
        assert!(request.starts_with("GET /v2.1/os-pci-config/alias HTTP/1.1"), "{request}");

        const ADDED: &str = "HTTP/1.1 200 OK\r\n\r\n{\"extra_info\":{\"id\":\"x\"}}";
        let added = Entries::Add { entry: r#"{"match": {}}"#.parse().unwrap() };
        let (outcome, request) = run(added, "extra_info", ADDED).await;
        assert_eq!(outcome.unwrap(), Exit::Done);
        assert!(request.starts_with("POST /v2.1/os-pci-config/extra_info HTTP/1.1"), "{request}");
        assert!(request.ends_with(r#"{"extra_info":{"match":{}}}"#), "{request}");

        const REMOVED: &str = "HTTP/1.1 204 No Content\r\n\r\n";
        let (outcome, request) =
            run(Entries::Remove { id: ENTRY.into(), force: true }, "whitelist", REMOVED).await;
        assert_eq!(outcome.unwrap(), Exit::Done);
        assert!(
            request.starts_with("DELETE /v2.1/os-pci-config/whitelist/0a1b2c3d-0000-4000-8000-000000000001?force=true HTTP/1.1"),
            "{request}"
        );
    }

    #[tokio::test]
    async fn a_refusal_is_reported_with_the_message_of_the_service() {
        const REFUSED: &str = "HTTP/1.1 409 Conflict\r\n\r\n\
            {\"conflictingRequest\":{\"code\":409,\"message\":\"in use\"}}";
        let (outcome, request) =
            run(Entries::Remove { id: ENTRY.into(), force: false }, "whitelist", REFUSED).await;
        let error = outcome.unwrap_err();
        assert_eq!((Exit::of(&error), error.to_string().as_str()), (Exit::Refused, "in use"));
        assert!(
            request.starts_with(
                "DELETE /v2.1/os-pci-config/whitelist/0a1b2c3d-0000-4000-8000-000000000001 HTTP/1.1"
            ),
            "{request}"
        );
    }

    #[test]
    fn an_entry_is_a_json_object() {
        assert!(r#"{"vendor_id": "8086"}"#.parse::<Entry>().is_ok());
        for bad in ["", "8086", "[]", "{", "{} {}", r#"{"a": 1, "a": 2}"#] {
            assert!(bad.parse::<Entry>().unwrap_err().contains("JSON object"), "{bad}");
        }
    }
}
