//! `hotslot quota`: shows and changes how much of each resource a project may use.

use std::str::FromStr;

use clap::Subcommand;
use clap::builder::NonEmptyStringValueParser;
use hotslot_model::quota::{Limit, Resource};
use serde_json::{Map, Value, json};

use crate::exit::Exit;
use crate::output;
use crate::table::column;
use crate::{Cli, whoami};

/// The examples in `--help`.
pub(crate) const HELP: &str = "\
Examples:
  hotslot quota show
  hotslot quota show 7c1f
  hotslot quota set 7c1f pci_attachments=8 pci_attachments:gpu=2 accelerators=-1
  hotslot quota reset 7c1f
The resources are pci_attachments, pci_attachments:ALIAS, accelerators, accelerator_requests, accelerator_spec_bytes \
and idempotency_keys; -1 is no limit.";

#[derive(Debug, Subcommand)]
pub(crate) enum QuotaCommand {
    /// Show the limits of a project, and what it uses.
    Show {
        /// The id of the project. By default it is your own.
        #[arg(value_parser = NonEmptyStringValueParser::new())]
        project: Option<String>,
    },
    /// Set limits of a project. The others stay as they are.
    Set {
        /// The id of the project.
        #[arg(value_parser = NonEmptyStringValueParser::new())]
        project: String,
        /// The limits; -1 is no limit.
        #[arg(required = true, value_name = "RESOURCE=NUMBER")]
        limits: Vec<Change>,
    },
    /// Remove all limits that were set for a project, so that the defaults of the configuration apply.
    Reset {
        /// The id of the project.
        #[arg(value_parser = NonEmptyStringValueParser::new())]
        project: String,
    },
}

/// A limit to set.
#[derive(Debug, Clone)]
pub(crate) struct Change(Resource, Limit);

impl FromStr for Change {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (resource, limit) =
            text.rsplit_once('=').ok_or("write RESOURCE=NUMBER, such as accelerators=5")?;
        let limit = limit.parse().map_err(|_| format!("`{limit}` is not a number; write -1 for no limit"))?;
        Ok(Self(resource.parse()?, Limit::new(limit)?))
    }
}

impl QuotaCommand {
    pub(crate) async fn run(self, cli: &Cli) -> anyhow::Result<Exit> {
        match self {
            Self::Show { project } => {
                let project = match project {
                    Some(project) => project,
                    None => whoami::project(cli).await?,
                };
                show(cli, &project).await?;
            }
            Self::Set { project, limits } => {
                let limits =
                    limits.into_iter().map(|Change(resource, limit)| (resource.to_string(), json!(limit)));
                let body = json!({ "quota_set": Map::from_iter(limits) });
                cli.client.put(&["os-quota-sets", &project], &body).await?;
                show(cli, &project).await?;
            }
            Self::Reset { project } => {
                cli.client.remove(&["os-quota-sets", &project], "").await?;
                show(cli, &project).await?;
            }
        }
        Ok(Exit::Done)
    }
}

async fn show(cli: &Cli, project: &str) -> anyhow::Result<()> {
    let set = cli.client.item(&["os-quota-sets", project, "detail"], "quota_set").await?;
    if cli.output.is_data() {
        return output::data(cli.output, &set);
    }
    let rows = set.as_object().into_iter().flatten().filter(|(_, usage)| usage.is_object());
    let rows: Vec<Value> = rows
        .map(|(resource, usage)| {
            let mut row = usage.clone();
            row["resource"] = json!(resource);
            row
        })
        .collect();
    let columns = [
        column("RESOURCE", "/resource").name(),
        column("LIMIT", "/limit"),
        column("IN USE", "/in_use"),
        column("RESERVED", "/reserved"),
    ];
    output::list(cli.output, "quotas", &rows, &columns)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::client::answered;
    use crate::output::Output;

    #[tokio::test]
    async fn limits_are_sent_as_numbers() {
        const REFUSED: &str =
            "HTTP/1.1 403 Forbidden\r\n\r\n{\"forbidden\":{\"code\":403,\"message\":\"no\"}}";
        let limits = ["pci_attachments:a=b=2", "accelerators=-1"].map(|text| text.parse().unwrap()).into();
        let set = QuotaCommand::Set { project: "p".into(), limits };
        let run = async |client| set.run(&Cli { client, output: Output::TABLE }).await;
        let (outcome, request) = answered(REFUSED, run).await;
        assert_eq!(Exit::of(&outcome.unwrap_err()), Exit::NotPermitted);
        assert!(request.starts_with("PUT /v2.1/os-quota-sets/p HTTP/1.1"), "{request}");
        let body = r#"{"quota_set":{"accelerators":-1,"pci_attachments:a=b":2}}"#;
        assert!(request.ends_with(body), "{request}");
    }

    #[test]
    fn a_limit_names_a_resource_and_a_number() {
        for wrong in
            ["", "accelerators", "accelerators=", "accelerators=-2", "instances=3", "pci_attachments:=1"]
        {
            assert!(wrong.parse::<Change>().is_err(), "{wrong}");
        }
    }
}
