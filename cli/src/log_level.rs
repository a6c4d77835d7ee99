//! `hotslot log-level`: shows and sets the levels of the service's log.

use std::str::FromStr;

use clap::Args;
use hotslot_service::config::Levels;
use serde_json::{Value, json};
use tracing_subscriber::filter::LevelFilter;

use crate::Cli;
use crate::exit::Exit;
use crate::output;
use crate::table::column;
use crate::value::at;

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
    levels: Option<Typed>,
    /// Use the levels of the configuration again.
    #[arg(long, conflicts_with = "levels")]
    reset: bool,
}

/// Levels as they are typed.
#[derive(Debug, Clone)]
struct Typed {
    levels: Levels,
    /// Whether they name a level for all modules that they do not name.
    names_all: bool,
}

impl FromStr for Typed {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(Self { levels: text.parse()?, names_all: text.split(',').any(|part| !part.contains('=')) })
    }
}

/// The configured level of all modules that have none of their own.
fn configured(log: &Value) -> LevelFilter {
    at(log, "/configured").parse::<Levels>().unwrap_or_default().all
}

impl LogLevel {
    pub(crate) async fn run(self, cli: &Cli) -> anyhow::Result<Exit> {
        let path = ["service", "log-level"];
        let answer = match &self.levels {
            None if !self.reset => cli.client.get(&path).await?,
            levels => {
                let levels = levels.as_ref().map(|typed| typed.levels.to_string());
                cli.client.put(&path, &json!({ "levels": levels })).await?
            }
        };
        let lines = [column("Levels", "/levels").name(), column("Configured", "/configured")];
        output::show(cli.output, &answer["log"], &lines)?;
        if let Some(Typed { levels, names_all: false }) = &self.levels
            && !cli.output.is_data()
        {
            let other = Levels { all: configured(&answer["log"]), ..levels.clone() };
            if other.all != levels.all {
                let (now, before) = (levels.all, other.all);
                let note = format!(
                    "the level of everything else is {now} now, not {before} as configured; `hotslot log-level \
                     {other}` keeps that"
                );
                output::note(cli.output, &note);
            }
        }
        Ok(Exit::Done)
    }
}
