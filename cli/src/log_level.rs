//! `hotslot log-level`: shows and sets the levels of the service's log.

use clap::Args;
use hotslot_service::config::Levels;
use serde_json::json;

use crate::Cli;
use crate::exit::Exit;
use crate::output;
use crate::table::column;

/// The examples in `--help`.
pub(crate) const HELP: &str = "\
Examples:
  hotslot log-level
  hotslot log-level debug
  hotslot log-level info,hotslot_driver=debug,hotslot_service::webhook=trace
  hotslot log-level --reset
The levels are off, error, warn, info, debug and trace. Libraries never log below info, because they may log secrets.";

#[derive(Debug, Args)]
pub(crate) struct LogLevel {
    /// The levels until the next start: a level, and MODULE=LEVEL for modules. Without it they are shown.
    levels: Option<Levels>,
    /// Use the levels of the configuration again.
    #[arg(long, conflicts_with = "levels")]
    reset: bool,
}

impl LogLevel {
    pub(crate) async fn run(self, cli: &Cli) -> anyhow::Result<Exit> {
        let path = ["service", "log-level"];
        let answer = match &self.levels {
            None if !self.reset => cli.client.get(&path).await?,
            levels => {
                let levels = levels.as_ref().map(ToString::to_string);
                cli.client.put(&path, &json!({ "levels": levels })).await?
            }
        };
        let lines = [column("Levels", "/levels").name(), column("Configured", "/configured")];
        output::show(cli.output, &answer["log"], &lines)?;
        Ok(Exit::Done)
    }
}
