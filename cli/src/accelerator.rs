//! `hotslot accelerator`: devices that are given away under names of their own, to a guest or to the host itself.

use std::str::FromStr;

use clap::Subcommand;
use hotslot_driver::binding::HostDriver;
use serde_json::{Map, Value, json};
use uuid::Uuid;

use crate::client::query_string;
use crate::exit::{Exit, Failure};
use crate::output::{self, Column, Format, at, column, message};
use crate::wait::waiting;
use crate::{Cli, lookup};

/// What `--help` says of it.
pub(crate) const HELP: &str = r#"Examples:
  hotslot accelerator create gpu0 --spec '{"device_type": "GPU", "num": 1}'
  hotslot accelerator list
  hotslot accelerator spec gpu0 '{"device_type": "GPU", "vendor_id": "10de"}'
  hotslot accelerator attach gpu0 vm1
  hotslot accelerator attach gpu0 --host node1 --driver vfio-pci
  hotslot accelerator detach gpu0"#;

/// The resource, and its list's key.
const NOUN: &str = "accelerators";

#[derive(Debug, Subcommand)]
pub(crate) enum AcceleratorCommand {
    /// The accelerators, and what holds them.
    List {
        /// More columns.
        #[arg(short, long)]
        long: bool,
    },
    /// One accelerator.
    Show {
        /// Its UUID or its name.
        accelerator: String,
    },
    /// Make an accelerator; no device has to be free.
    Create {
        /// Its name, of which there is one.
        name: String,
        /// Its UUID; that of a device makes it that device. Without, one is made up.
        #[arg(long)]
        uuid: Option<Uuid>,
        /// What it is to be, a JSON object.
        #[arg(long)]
        spec: Option<Spec>,
    },
    /// Say what it is to be, in place of all that was said before.
    Spec {
        /// Its UUID or its name.
        accelerator: String,
        /// remote, num, device_type, acc_capability; vendor_id, product_id, numa_node, numa_policy: a JSON object.
        spec: Spec,
    },
    /// Plug its devices into a guest, or take them for the host itself.
    Attach {
        /// Its UUID or its name.
        accelerator: String,
        /// The guest: its UUID or its name.
        #[arg(required_unless_present = "host", conflicts_with = "host")]
        server: Option<String>,
        /// The host that is to have it; its device has to be there.
        #[arg(long)]
        host: Option<String>,
        /// How the host is to have it: native (with its host driver) or vfio-pci (for DPDK and the like).
        #[arg(long, requires = "host", conflicts_with = "server")]
        driver: Option<HostDriver>,
    },
    /// Give its devices back, and wait until they are; its name and its spec stay.
    Detach {
        /// Its UUID or its name.
        accelerator: String,
        /// How long a guest is asked and waited for: 30s, 500ms, 2m; without, as the service is configured.
        #[arg(long, value_name = "TIME")]
        timeout: Option<String>,
        /// As of `hotslot detach`.
        #[arg(long)]
        force: bool,
    },
    /// Forget an accelerator, after it was detached.
    Delete {
        /// Its UUID or its name.
        accelerator: String,
    },
}

/// A spec, a JSON object. Whether it is a good one is the service's to say.
#[derive(Debug, Clone)]
pub(crate) struct Spec(Map<String, Value>);

impl FromStr for Spec {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let example = r#"write a JSON object, such as {"device_type": "GPU", "num": 1}"#;
        match serde_json::from_str(text) {
            Ok(Value::Object(spec)) => Ok(Self(spec)),
            Ok(_) => Err(example.to_owned()),
            Err(error) => Err(format!("{error}; {example}")),
        }
    }
}

impl AcceleratorCommand {
    pub(crate) async fn run(self, cli: &Cli) -> anyhow::Result<Exit> {
        match self {
            Self::List { long } => {
                let all = cli.client.items(&[NOUN], NOUN).await?;
                output::list(cli.format, "accelerators", &all, &columns(long))?;
            }
            Self::Show { accelerator } => {
                let id = find(cli, &accelerator).await?;
                shown(cli, &cli.client.get(&[NOUN, &id]).await?)?;
            }
            Self::Create { name, uuid, spec } => {
                // Known before it is asked for, so that it can be shown.
                let id = uuid.unwrap_or_else(Uuid::new_v4).to_string();
                cli.client.post(&[NOUN], &json!({ "name": name, "uuid": id })).await?;
                if let Some(spec) = spec
                    && let Err(refused) = put_spec(cli, &id, spec).await
                {
                    return Err(unmade(cli, &id, &name, refused).await.into());
                }
                shown(cli, &cli.client.get(&[NOUN, &id]).await?)?;
            }
            Self::Spec { accelerator, spec } => {
                let id = find(cli, &accelerator).await?;
                shown(cli, &put_spec(cli, &id, spec).await?)?;
            }
            Self::Attach { accelerator, server, host, driver } => {
                let id = find(cli, &accelerator).await?;
                let (body, what) = match (&server, host) {
                    (Some(name), _) => {
                        let server = lookup::server(cli, name).await?;
                        (json!({ "instance_uuid": server }), format!("attaching {accelerator} to {name}"))
                    }
                    (None, host) => {
                        let mut body = json!({ "host": host });
                        if let Some(driver) = driver {
                            body["driver"] = driver.to_string().into();
                        }
                        (body, format!("attaching {accelerator} to its host"))
                    }
                };
                shown(cli, &waiting(&what, cli.client.put(&[NOUN, &id], &body)).await??)?;
            }
            Self::Detach { accelerator, timeout, force } => {
                let id = find(cli, &accelerator).await?;
                let timeout = timeout.map(|timeout| ("timeout", timeout));
                let force = force.then(|| ("force", "true".to_owned()));
                let query = query_string(&timeout.into_iter().chain(force).collect::<Vec<_>>())?;
                let path = [NOUN, id.as_str()];
                let work = cli.client.remove(&path, &query);
                waiting(&format!("detaching {accelerator}"), work).await??;
                done(cli, &id, "detached")?;
            }
            Self::Delete { accelerator } => {
                let id = find(cli, &accelerator).await?;
                let now = cli.client.get(&[NOUN, &id]).await?;
                if now["devices"].as_array().is_some_and(|devices| !devices.is_empty()) {
                    let status = at(&now, "/status");
                    let message = format!(
                        "{accelerator} is {status} and holds {}; `hotslot accelerator detach {accelerator}` first",
                        each(&now, "/address")
                    );
                    return Err(Failure::new(Exit::Refused, message).into());
                }
                cli.client.remove(&[NOUN, &id], "purge=true").await?;
                done(cli, &id, "deleted")?;
            }
        }
        Ok(Exit::Done)
    }
}

async fn put_spec(cli: &Cli, id: &str, Spec(spec): Spec) -> Result<Value, Failure> {
    cli.client.put(&[NOUN, id, "acc_spec"], &json!({ "acc_specs": spec })).await
}

/// Takes back an accelerator whose spec was refused, and says so.
async fn unmade(cli: &Cli, id: &str, name: &str, refused: Failure) -> Failure {
    let message = match cli.client.remove(&[NOUN, id], "purge=true").await {
        Ok(()) => format!("{refused}; {name} was not made"),
        Err(error) => format!("{refused}; {name} is made all the same, as {id}, without that spec: {error}"),
    };
    Failure::new(refused.exit(), message)
}

fn done(cli: &Cli, id: &str, what: &str) -> anyhow::Result<()> {
    match cli.format {
        Format::Json => output::json(&json!({ "uuid": id, "status": what })),
        Format::Table => output::print(&format!("{what} {id}\n")),
    }
}

/// The UUID of the accelerator that a person named by UUID or name.
async fn find(cli: &Cli, accelerator: &str) -> Result<String, Failure> {
    let all = cli.client.items(&[NOUN], NOUN).await?;
    let uuid = accelerator.to_ascii_lowercase();
    if let Some(one) = all.iter().find(|item| item["uuid"] == uuid) {
        return Ok(at(one, "/uuid"));
    }
    let called: Vec<_> = all.iter().filter(|item| item["name"] == accelerator).collect();
    match called[..] {
        [one] => Ok(at(one, "/uuid")),
        [] => {
            let message = format!(
                "no accelerator has the UUID or name {accelerator}; `hotslot accelerator list` lists them"
            );
            Err(Failure::new(Exit::NotFound, message))
        }
        _ => {
            let ids: Vec<_> = called.iter().map(|item| format!("\n  {}", at(item, "/uuid"))).collect();
            let message =
                format!("several accelerators are called {accelerator}; give the UUID:{}", ids.concat());
            Err(Failure::new(Exit::Usage, message))
        }
    }
}

fn columns(long: bool) -> Vec<Column<'static>> {
    let mut columns = vec![
        column("UUID", "/uuid"),
        column("NAME", "/name"),
        column("TYPE", "/device_type"),
        column("STATUS", "/status"),
        column("HOST", "/host"),
        Column("ADDRESS", Box::new(|item| each(item, "/address"))),
        column("SERVER", "/instance_uuid"),
        Column("INNER ADDRESS", Box::new(|item| each(item, "/inner_address"))),
    ];
    if long {
        columns.push(Column("DRIVER", Box::new(|item| each(item, "/driver"))));
        columns.push(column("NUM", "/acc_specs/num"));
        columns.push(column("VENDOR", "/vendor_id"));
        columns.push(column("PRODUCT", "/product_id"));
    }
    columns
}

/// What each of its devices has, where it holds several.
fn each(item: &Value, pointer: &str) -> String {
    match item["devices"].as_array().map_or(&[][..], Vec::as_slice) {
        [] => at(item, pointer),
        devices => devices.iter().map(|device| at(device, pointer)).collect::<Vec<_>>().join(", "),
    }
}

fn shown(cli: &Cli, item: &Value) -> anyhow::Result<()> {
    let lines = [
        column("UUID", "/uuid"),
        column("Name", "/name"),
        column("Status", "/status"),
        message("Reason", "/status_reason"),
        column("Type", "/device_type"),
        column("Host", "/host"),
        Column("Address", Box::new(|item| each(item, "/address"))),
        column("Server", "/instance_uuid"),
        Column("Inner address", Box::new(|item| each(item, "/inner_address"))),
        Column("Driver", Box::new(|item| each(item, "/driver"))),
        column("Vendor", "/vendor_id"),
        column("Product", "/product_id"),
        column("Spec", "/acc_specs"),
        column("Created", "/created_at"),
        column("Updated", "/updated_at"),
    ];
    output::show(cli.format, item, &lines)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::answering;

    #[tokio::test]
    async fn an_accelerator_is_found_by_its_uuid_before_its_name_and_not_guessed() {
        let item = |uuid: &str, name: &str| json!({ "uuid": uuid, "name": name });
        let (one, other) = ("8e45a2ea-5364-4b0d-a252-bf8becaa606e", "00000000-0000-4000-8000-000000000001");
        let all = json!({ NOUN: [item(other, one), item(one, "a"), item("2", "b"), item("3", "b")] });
        for (name, expected) in [
            (one, Ok(one)),
            ("8E45A2EA-5364-4B0D-A252-BF8BECAA606E", Ok(one)),
            ("a", Ok(one)),
            ("b", Err(Exit::Usage)),
            ("c", Err(Exit::NotFound)),
        ] {
            let answers = vec![(NOUN, 200, all.clone())];
            let (found, _) = answering(answers, async |client| {
                find(&Cli { client, format: Format::Json }, name).await.map_err(|failure| failure.exit())
            })
            .await;
            assert_eq!(found, expected.map(str::to_owned), "{name}");
        }
    }
}
