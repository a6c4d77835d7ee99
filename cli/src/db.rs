//! `hotslot db`: backs up and restores the SQLite database, and tells the version of its tables.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use hotslot_service::config::Config;
use hotslot_store::{Error, backup, restore, schema, schema_of, sqlite_file};
use serde_json::json;

use crate::exit::{Exit, Failure};
use crate::output::{self, Output};
use crate::table::column;

pub(crate) const HELP: &str = "\
Examples:
  hotslot db backup /var/backups/hotslot-monday.db --config /etc/hotslot/hotslot.toml
  hotslot db version --config /etc/hotslot/hotslot.toml
  hotslot db restore /var/backups/hotslot-monday.db --config /etc/hotslot/hotslot.toml
For PostgreSQL use pg_dump and pg_restore.";

#[derive(Debug, Subcommand)]
pub(crate) enum DbCommand {
    /// Copy the SQLite database into a new file. The service may be running.
    Backup(Files),
    /// Replace the SQLite database by a backup. The service must not be running. The replaced database is kept
    /// with the suffix `.before-restore`, and a number when there is one already.
    Restore(Files),
    /// Print the version of the tables of the database, and the version that this program uses. The service may be running.
    Version,
}

#[derive(Debug, Args)]
pub(crate) struct Files {
    /// The file of the backup.
    file: PathBuf,
}

impl DbCommand {
    /// Works on the database of the configuration, or on the default database when no configuration is given.
    pub(crate) async fn run(self, config: Option<&Path>, output: Output) -> anyhow::Result<Exit> {
        let url = config.map(Config::load).transpose()?.unwrap_or_default().with_secrets()?.database.url;
        match self {
            Self::Version => {
                let found = schema_of(&url).await.map_err(failure)?;
                let versions = json!({ "database": found, "program": schema() });
                let lines = [column("database", "/database").name(), column("program", "/program")];
                output::show(output, &versions, &lines)?;
            }
            Self::Backup(files) => {
                backup(&url, &files.file).await.map_err(failure)?;
                output::print(&format!(
                    "backed up {} to {}\n",
                    sqlite_file(&url)?.display(),
                    files.file.display()
                ))?;
            }
            Self::Restore(files) => {
                if !files.file.exists() {
                    let message = format!("the backup {} is not there", files.file.display());
                    return Err(Failure::new(Exit::NotFound, message).into());
                }
                let kept = restore(&url, &files.file).await.map_err(failure)?;
                let kept = kept.map(|kept| format!("; the replaced database is kept as {}", kept.display()));
                output::print(&format!(
                    "restored {} from {}{}\n",
                    sqlite_file(&url)?.display(),
                    files.file.display(),
                    kept.unwrap_or_default()
                ))?;
            }
        }
        Ok(Exit::Done)
    }
}

fn failure(error: Error) -> anyhow::Error {
    let exit = if matches!(error, Error::Conflict(_)) {
        Exit::Refused
    } else if matches!(error, Error::NotFound(_)) {
        Exit::NotFound
    } else if matches!(error, Error::Invalid(_)) {
        Exit::BadRequest
    } else {
        return error.into();
    };
    Failure::new(exit, error.to_string()).into()
}
