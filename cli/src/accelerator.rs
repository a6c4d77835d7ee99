//! `hotslot accelerator`: manages accelerators, which are named devices for a guest or for the host itself.

use std::str::FromStr;

use clap::Subcommand;
use hotslot_driver::binding::HostDriver;
use serde_json::{Map, Value, json};
use uuid::Uuid;

use crate::exit::{Exit, Failure};
use crate::output::{self, Column, Format, at, column, message};
use crate::wait::waiting;
use crate::{Cli, detach, lookup};

/// The examples in `--help`.
pub(crate) const HELP: &str = r#"Examples:
  hotslot accelerator create gpu0 --spec '{"device_type": "GPU", "num": 1}'
  hotslot accelerator list
  hotslot accelerator spec gpu0 '{"device_type": "GPU", "vendor_id": "10de"}'
  hotslot accelerator attach gpu0 vm1
  hotslot accelerator attach gpu0 --host node1 --driver vfio-pci
  hotslot accelerator detach gpu0"#;

/// The resource in a path, and the key of its list.
const NOUN: &str = "accelerators";

#[derive(Debug, Subcommand)]
pub(crate) enum AcceleratorCommand {
    /// List the accelerators, with the guests or hosts that have their devices.
    List {
        /// Show more columns.
        #[arg(short, long)]
        long: bool,
    },
    /// Show one accelerator.
    Show {
        /// The UUID or the name of the accelerator.
        accelerator: String,
    },
    /// Create an accelerator. This reserves no device.
    Create {
        /// The name of the accelerator, which must be unique.
        name: String,
        /// The UUID of the accelerator. The UUID of a device ties the accelerator to that device. By default a UUID is
        /// generated.
        #[arg(long)]
        uuid: Option<Uuid>,
        /// The spec: a JSON object with the keys that `hotslot accelerator spec --help` lists.
        #[arg(long)]
        spec: Option<Spec>,
    },
    /// Replace the spec of an accelerator.
    Spec {
        /// The UUID or the name of the accelerator.
        accelerator: String,
        /// The spec: a JSON object with the keys device_type, num, vendor_id, product_id, numa_node, numa_policy,
        /// mdev_type, acc_capability and remote.
        spec: Spec,
    },
    /// Attach the devices of an accelerator to a guest, or bind them for use by the host itself.
    Attach {
        /// The UUID or the name of the accelerator.
        accelerator: String,
        /// The guest: its UUID or its name.
        #[arg(required_unless_present = "host", conflicts_with = "host")]
        server: Option<String>,
        /// The host that is to use the device. The device must be on this host.
        #[arg(long)]
        host: Option<String>,
        /// The driver for use by the host: native (the host driver) or vfio-pci (for DPDK and similar programs).
        #[arg(long, requires = "host", conflicts_with = "server")]
        driver: Option<HostDriver>,
    },
    /// Release the devices of an accelerator, and wait until they are free. The accelerator keeps its name and spec.
    Detach {
        /// The UUID or the name of the accelerator.
        accelerator: String,
        /// The time limit for unplug requests and waiting: 30s, 500ms, 2m. By default `[detach]` of the configuration
        /// applies.
        #[arg(long, value_name = "TIME")]
        timeout: Option<String>,
        /// Ignore a policy against the detach, like `hotslot detach --force`.
        #[arg(long)]
        force: bool,
    },
    /// Delete an accelerator, which must be detached.
    Delete {
        /// The UUID or the name of the accelerator.
        accelerator: String,
    },
}

/// A spec: a JSON object. The service checks its content.
#[derive(Debug, Clone)]
pub(crate) struct Spec(Map<String, Value>);

impl FromStr for Spec {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let example = r#"expected a JSON object, such as {"device_type": "GPU", "num": 1}"#;
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
                show(cli, &cli.client.get(&[NOUN, &id]).await?)?;
            }
            Self::Create { name, uuid, spec } => create(cli, &name, uuid, spec).await?,
            Self::Spec { accelerator, spec } => {
                let id = find(cli, &accelerator).await?;
                show(cli, &put_spec(cli, &id, spec).await?)?;
            }
            Self::Attach { accelerator, server, host, driver } => {
                attach(cli, &accelerator, server.as_deref(), host.as_deref(), driver).await?;
            }
            Self::Detach { accelerator, timeout, force } => {
                release(cli, &accelerator, timeout, force).await?;
            }
            Self::Delete { accelerator } => delete(cli, &accelerator).await?,
        }
        Ok(Exit::Done)
    }
}

async fn create(cli: &Cli, name: &str, uuid: Option<Uuid>, spec: Option<Spec>) -> anyhow::Result<()> {
    // The id is chosen here, so that the new accelerator can be shown and removed.
    let id = uuid.unwrap_or_else(Uuid::new_v4).to_string();
    cli.client.post(&[NOUN], &json!({ "name": name, "uuid": id })).await?;
    if let Some(spec) = spec
        && let Err(refused) = put_spec(cli, &id, spec).await
    {
        return Err(undo_create(cli, &id, name, refused).await.into());
    }
    show(cli, &cli.client.get(&[NOUN, &id]).await?)
}

/// Attaches an accelerator to the guest `server`, or else to the host itself.
async fn attach(
    cli: &Cli,
    accelerator: &str,
    server: Option<&str>,
    host: Option<&str>,
    driver: Option<HostDriver>,
) -> anyhow::Result<()> {
    let id = find(cli, accelerator).await?;
    let (body, what) = match server {
        Some(name) => {
            let server = lookup::server(cli, name).await?;
            (json!({ "instance_uuid": server }), format!("attaching {accelerator} to {name}"))
        }
        None => {
            let mut body = json!({ "host": host });
            if let Some(driver) = driver {
                body["driver"] = driver.to_string().into();
            }
            (body, format!("attaching {accelerator} to its host"))
        }
    };
    show(cli, &waiting(&what, cli.client.put(&[NOUN, &id], &body)).await??)
}

async fn release(cli: &Cli, accelerator: &str, timeout: Option<String>, force: bool) -> anyhow::Result<()> {
    let id = find(cli, accelerator).await?;
    let path = [NOUN, id.as_str()];
    let query = detach::query(timeout, force)?;
    waiting(&format!("detaching {accelerator}"), cli.client.remove(&path, &query)).await??;
    done(cli, &id, "detached")
}

async fn delete(cli: &Cli, accelerator: &str) -> anyhow::Result<()> {
    let id = find(cli, accelerator).await?;
    let now = cli.client.get(&[NOUN, &id]).await?;
    if now["devices"].as_array().is_some_and(|devices| !devices.is_empty()) {
        let status = at(&now, "/status");
        let message = format!(
            "{accelerator} is {status} and holds {}; run `hotslot accelerator detach {accelerator}` first",
            each(&now, "/address")
        );
        return Err(Failure::new(Exit::Refused, message).into());
    }
    cli.client.remove(&[NOUN, &id], "purge=true").await?;
    done(cli, &id, "deleted")
}

async fn put_spec(cli: &Cli, id: &str, Spec(spec): Spec) -> Result<Value, Failure> {
    cli.client.put(&[NOUN, id, "acc_spec"], &json!({ "acc_specs": spec })).await
}

/// Deletes a new accelerator whose spec was refused. Returns the failure for the user.
async fn undo_create(cli: &Cli, id: &str, name: &str, refused: Failure) -> Failure {
    let message = match cli.client.remove(&[NOUN, id], "purge=true").await {
        Ok(()) => format!("{refused}; {name} was not created"),
        Err(error) => {
            format!("{refused}; {name} exists as {id} without the spec, because deleting it failed: {error}")
        }
    };
    Failure::new(refused.exit(), message)
}

fn done(cli: &Cli, id: &str, what: &str) -> anyhow::Result<()> {
    match cli.format {
        Format::Json => output::json(&json!({ "uuid": id, "status": what })),
        Format::Table => output::print(&format!("{what} {id}\n")),
    }
}

/// Returns the UUID of the accelerator with this UUID or name. A UUID has precedence over a name.
///
/// # Errors
/// [`Exit::NotFound`] when there is none, [`Exit::Usage`] when several have the name.
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
            let message = format!(
                "several accelerators are called {accelerator}; give the UUID instead of the name:{}",
                ids.concat()
            );
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

/// Joins the values of all devices that an accelerator holds. When it holds none, the value of the accelerator itself
/// is returned.
fn each(item: &Value, pointer: &str) -> String {
    match item["devices"].as_array().map_or(&[][..], Vec::as_slice) {
        [] => at(item, pointer),
        devices => devices.iter().map(|device| at(device, pointer)).collect::<Vec<_>>().join(", "),
    }
}

fn show(cli: &Cli, item: &Value) -> anyhow::Result<()> {
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
    async fn an_accelerator_is_found_by_its_uuid_first_and_then_by_an_unambiguous_name() {
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
