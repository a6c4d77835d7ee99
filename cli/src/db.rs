//! `hotslot db`: the database's copy, made while the service runs, and put back while it does not.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use hotslot_service::config::Config;
use hotslot_store::{Error, backup, restore, sqlite_file};

use crate::exit::{Exit, Failure};
use crate::output;

pub(crate) const HELP: &str = "\
Examples:
  hotslot db backup /var/backups/hotslot-monday.db --config /etc/hotslot/hotslot.toml
  hotslot db restore /var/backups/hotslot-monday.db --config /etc/hotslot/hotslot.toml
PostgreSQL has pg_dump and pg_restore for that.";

#[derive(Debug, Subcommand)]
pub(crate) enum DbCommand {
    /// Copy the SQLite database into a new file, also while the service runs.
    Backup(Files),
    /// Put a backup in the place of the SQLite database while no service runs; what was there is kept beside it.
    Restore(Files),
}

#[derive(Debug, Args)]
pub(crate) struct Files {
    /// The backup.
    file: PathBuf,
}

impl DbCommand {
    /// On the database that a configuration names; without one, it is where `serve` has it without one.
    pub(crate) async fn run(self, config: Option<&Path>) -> anyhow::Result<Exit> {
        let url = config.map(Config::load).transpose()?.unwrap_or_default().database.url;
        match self {
            Self::Backup(files) => {
                backup(&url, &files.file).await.map_err(told)?;
                output::print(&format!(
                    "{} is in {} now\n",
                    sqlite_file(&url)?.display(),
                    files.file.display()
                ))?;
            }
            Self::Restore(files) => {
                restore(&url, &files.file).await.map_err(told)?;
                output::print(&format!(
                    "{} is {} now\n",
                    sqlite_file(&url)?.display(),
                    files.file.display()
                ))?;
            }
        }
        Ok(Exit::Done)
    }
}

fn told(error: Error) -> anyhow::Error {
    let exit = if matches!(error, Error::Conflict(_)) {
        Exit::Refused
    } else if matches!(error, Error::NotFound(_)) {
        Exit::NotFound
    } else {
        return error.into();
    };
    Failure::new(exit, error.to_string()).into()
}
