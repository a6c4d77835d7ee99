//! `hotslot sim`: makes something happen on a simulated host that somebody serves.

use std::path::PathBuf;

use clap::Args;
use hotslot_driver::sim::control;

use crate::exit::{Exit, Failure};
use crate::output;

#[derive(Debug, Args)]
pub(crate) struct Sim {
    /// The host's directory.
    directory: PathBuf,
    /// What is to happen.
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    line: Vec<String>,
}

/// What `--help` says of the lines.
pub(crate) const HELP: &str = "\
Examples:
  hotslot sim /tmp/node1 reboot g1
  hotslot sim /tmp/node1 guest g1 unplug=ignore
  hotslot sim /tmp/node1 device remove pci_0000_04_10_0
  hotslot sim /tmp/node1 disconnect";

impl Sim {
    pub(crate) fn run(self) -> anyhow::Result<Exit> {
        let shown = self.directory.display();
        let away = |error| {
            let message =
                format!("nobody serves the simulated host {shown}: {error}; is `hotslot serve` running?");
            Failure::new(Exit::Away, message)
        };
        let answer = control(&self.directory, &self.line.join(" ")).map_err(away)?;
        match answer.strip_prefix("error: ") {
            Some(reason) => anyhow::bail!("{reason}"),
            None => output::print(&format!("{answer}\n"))?,
        }
        Ok(Exit::Done)
    }
}
