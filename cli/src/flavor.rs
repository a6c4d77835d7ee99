//! `hotslot flavor`: lists and shows the configured flavors, whose extra specs name aliases.

use clap::Subcommand;
use clap_complete::ArgValueCompleter;
use serde_json::Value;

use crate::exit::{Exit, Failure};
use crate::output;
use crate::pci::key_values;
use crate::table::{Column, column};
use crate::value::at;
use crate::{Cli, complete};

#[derive(Debug, Subcommand)]
pub(crate) enum FlavorCommand {
    /// List the flavors with the aliases that they request.
    List,
    /// Show one flavor with all its extra specs.
    Show {
        /// The name or id of the flavor.
        #[arg(add = ArgValueCompleter::new(complete::flavors))]
        flavor: String,
    },
}

impl FlavorCommand {
    pub(crate) async fn run(self, cli: &Cli) -> anyhow::Result<Exit> {
        let flavors = cli.client.items(&["flavors", "detail"], "flavors").await?;
        match self {
            Self::List => {
                let columns = [
                    column("NAME", "/name").name(),
                    column("ID", "/id"),
                    column("ALIASES", "/extra_specs/pci_passthrough:alias"),
                    Column::new("EXTRA SPECS", extra_specs).wide().wrapped(),
                ];
                let noun = "flavors; a table `[[flavor]]` of the configuration of the service defines one";
                output::list(cli.output, noun, &flavors, &columns)?;
            }
            Self::Show { flavor } => {
                let found = flavors.iter().find(|one| one["name"] == flavor || one["id"] == flavor);
                let found = found.ok_or_else(|| {
                    let message = format!("flavor {flavor} not found; `hotslot flavor list` lists them");
                    Failure::new(Exit::NotFound, message)
                })?;
                let lines = [
                    column("Name", "/name").name(),
                    column("ID", "/id"),
                    column("VCPUs", "/vcpus"),
                    column("RAM (MiB)", "/ram"),
                    column("Disk (GiB)", "/disk"),
                    Column::new("Extra specs", extra_specs),
                ];
                output::show(cli.output, found, &lines)?;
            }
        }
        Ok(Exit::Done)
    }
}

fn extra_specs(flavor: &Value) -> String {
    let specs = &flavor["extra_specs"];
    if specs.is_object() { key_values(specs, &[]) } else { at(specs, "") }
}
