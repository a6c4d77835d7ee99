//! `hotslot accelerator`: manages accelerators, which are named devices for a guest or for the host itself.

use std::collections::HashMap;
use std::str::FromStr;

use clap::Subcommand;
use clap_complete::ArgValueCompleter;
use hotslot_driver::binding::HostDriver;
use hotslot_model::json;
use serde_json::{Map, Value, json};
use uuid::Uuid;

use crate::exit::{Exit, Failure};
use crate::lookup::Noun;
use crate::output;
use crate::table::{Column, column, id, message};
use crate::value::at;
use crate::wait::waiting;
use crate::{Cli, argument, attach, columns, complete, detach, lookup};

/// The examples in `--help`.
pub(crate) const HELP: &str = r#"Examples:
  hotslot accelerator create gpu0 --spec '{"device_type": "GPU", "num": 1}'
  hotslot accelerator list
  hotslot accelerator spec gpu0 '{"device_type": "GPU", "vendor_id": "10de"}'
  hotslot accelerator attach gpu0 vm1 --dry-run
  hotslot accelerator attach gpu0 vm1
  hotslot accelerator attach gpu0 --host node1 --driver vfio-pci
  hotslot accelerator detach gpu0"#;

/// The resource in a path, and the key of its list.
const NOUN: &str = "accelerators";

#[derive(Debug, Subcommand)]
pub(crate) enum AcceleratorCommand {
    /// List the accelerators, with the servers or hosts that have their devices.
    List {
        /// Show more columns.
        #[arg(short, long)]
        long: bool,
    },
    /// Show one accelerator.
    Show {
        /// The UUID or the name of the accelerator.
        #[arg(add = ArgValueCompleter::new(complete::accelerators))]
        accelerator: String,
    },
    /// Create an accelerator. This reserves no device.
    Create {
        /// The name of the accelerator, which must be unique.
        name: String,
        /// The UUID of the accelerator. The UUID of a device ties the accelerator to that device. By default a UUID is
        /// generated.
        #[arg(long, value_parser = argument::uuid)]
        uuid: Option<Uuid>,
        /// The spec: a JSON object with the keys that `hotslot accelerator spec --help` lists.
        #[arg(long)]
        spec: Option<Spec>,
    },
    /// Replace the spec of an accelerator.
    Spec {
        /// The UUID or the name of the accelerator.
        #[arg(add = ArgValueCompleter::new(complete::accelerators))]
        accelerator: String,
        /// The spec: a JSON object with the keys device_type, num, vendor_id, product_id, numa_node, numa_policy,
        /// mdev_type, acc_capability and remote.
        spec: Spec,
    },
    /// Attach the devices of an accelerator to a server, or bind them for use by the host itself.
    Attach {
        /// The UUID or the name of the accelerator.
        #[arg(add = ArgValueCompleter::new(complete::accelerators))]
        accelerator: String,
        /// The server: its UUID or its name.
        #[arg(required_unless_present = "host", conflicts_with = "host", add = ArgValueCompleter::new(complete::servers))]
        server: Option<String>,
        /// The host that is to use the device. The device must be on this host.
        #[arg(long, add = ArgValueCompleter::new(complete::hosts))]
        host: Option<String>,
        /// The driver for use by the host: native (the host driver) or vfio-pci (for DPDK and similar programs).
        #[arg(long, requires = "host", conflicts_with = "server")]
        driver: Option<HostDriver>,
        /// Take any assignable device, such as a NIC, if the spec of the accelerator requires nothing.
        #[arg(long)]
        any: bool,
        /// Only report which devices the server would get and the result of each check. Nothing is changed.
        #[arg(long, conflicts_with = "host")]
        dry_run: bool,
    },
    /// Release the devices of an accelerator, and wait until they are free. The accelerator keeps its name and spec.
    Detach {
        /// The UUID or the name of the accelerator.
        #[arg(add = ArgValueCompleter::new(complete::accelerators))]
        accelerator: String,
        /// The time limit for unplug requests and waiting: 30s, 500ms, 2m. By default `[detach]` of the configuration
        /// applies.
        #[arg(long, value_name = "TIME", value_parser = argument::time_limit)]
        timeout: Option<String>,
        /// Ignore a policy against the detach, like `hotslot detach --force`.
        #[arg(long)]
        force: bool,
    },
    /// Delete an accelerator, which must be detached.
    Delete {
        /// The UUID or the name of the accelerator.
        #[arg(add = ArgValueCompleter::new(complete::accelerators))]
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
        match json::parse(text.as_bytes()) {
            Ok(Value::Object(spec)) => Ok(Self(spec)),
            Ok(_) => Err(example.to_owned()),
            Err(error) => Err(format!("it is not valid JSON: {}; {example}", json::reason(&error))),
        }
    }
}

impl AcceleratorCommand {
    pub(crate) async fn run(self, cli: &Cli) -> anyhow::Result<Exit> {
        match self {
            Self::List { long } => {
                let all = cli.client.items(&[NOUN], NOUN).await?;
                let held = all.iter().any(|item| !item["instance_uuid"].is_null());
                let names = if held && !cli.output.is_data() {
                    lookup::server_names(cli).await?
                } else {
                    HashMap::new()
                };
                output::list(cli.output.long(long), "accelerators", &all, &columns(&names))?;
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
            Self::Attach { accelerator, server: Some(server), any, dry_run: true, .. } => {
                let (id, server) = (find(cli, &accelerator).await?, lookup::server(cli, &server).await?);
                let body = json!({ "instance_uuid": server, "any_device": any, "dry_run": true });
                return attach::dry_run(cli.output, &cli.client.put(&[NOUN, &id], &body).await?["dry_run"]);
            }
            Self::Attach { accelerator, server, host, driver, any, dry_run: _ } => {
                let id = find(cli, &accelerator).await?;
                let host = match host {
                    Some(host) => Some(lookup::host_name(cli, &host).await?),
                    None => None,
                };
                let target = (server.as_deref(), host.as_deref(), driver);
                attach(cli, (&accelerator, &id), target, any).await?;
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
    (accelerator, id): (&str, &str),
    (server, host, driver): (Option<&str>, Option<&str>, Option<HostDriver>),
    any: bool,
) -> anyhow::Result<()> {
    let (mut body, what) = match server {
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
    if any {
        body["any_device"] = true.into();
    }
    show(cli, &waiting(cli.output, &what, cli.client.put(&[NOUN, id], &body)).await??)
}

async fn release(cli: &Cli, accelerator: &str, timeout: Option<String>, force: bool) -> anyhow::Result<()> {
    let id = find(cli, accelerator).await?;
    let path = [NOUN, id.as_str()];
    let query = detach::query(timeout, force)?;
    let before = cli.client.get(&path).await?;
    let held = before["devices"].as_array().is_some_and(|devices| !devices.is_empty());
    waiting(cli.output, &format!("detaching {accelerator}"), cli.client.remove(&path, &query)).await??;
    if held {
        return done(cli, &id, "detached");
    }
    let item = json!({ "uuid": id, "status": before["status"] });
    output::done(cli.output, "nothing was detached; no device is held by", &id, &item)
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
    output::done(cli.output, what, id, &json!({ "uuid": id, "status": what }))
}

/// Returns the UUID of the accelerator with this UUID or name, or whose UUID begins so.
///
/// # Errors
/// As [`Noun::find`].
async fn find(cli: &Cli, accelerator: &str) -> Result<String, Failure> {
    const ACCELERATORS: Noun =
        Noun { noun: "accelerator", id: "/uuid", name: Some("/name"), list: "`hotslot accelerator list`" };
    let all = cli.client.items(&[NOUN], NOUN).await?;
    ACCELERATORS.find(&all, accelerator).map(|one| at(one, "/uuid"))
}

fn columns(names: &HashMap<String, String>) -> Vec<Column<'_>> {
    vec![
        column("NAME", "/name"),
        column("TYPE", "/device_type"),
        column("STATUS", "/status"),
        column("HOST", "/host"),
        Column::new("ADDRESS", |item| each(item, "/address")).wrapped(),
        Column::new("SERVER", |item| columns::called(names, &at(item, "/instance_uuid"))),
        Column::new("INNER ADDRESS", |item| each(item, "/inner_address")).wrapped(),
        id("UUID", "/uuid"),
        Column::new("DRIVER", |item| each(item, "/driver")).wide(),
        column("NUM", "/acc_specs/num").wide(),
        column("VENDOR", "/vendor_id").wide(),
        column("PRODUCT", "/product_id").wide(),
    ]
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
        column("Name", "/name"),
        column("UUID", "/uuid").name(),
        column("Status", "/status"),
        message("Reason", "/status_reason"),
        column("Type", "/device_type"),
        column("Takes", "/takes"),
        column("Ignored keys", "/ignored_keys"),
        column("Host", "/host"),
        Column::new("Address", |item| each(item, "/address")),
        column("Server", "/instance_uuid"),
        Column::new("Inner address", |item| each(item, "/inner_address")),
        Column::new("Driver", |item| each(item, "/driver")),
        column("Vendor", "/vendor_id"),
        column("Product", "/product_id"),
        column("Spec", "/acc_specs"),
        column("Created", "/created_at"),
        column("Updated", "/updated_at"),
    ];
    output::show(cli.output, item, &lines)
}
