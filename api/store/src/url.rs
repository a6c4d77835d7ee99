//! Checks the URL of a database with the parsers that are used to open it.

use std::path::PathBuf;
use std::str::FromStr;

use sqlx::postgres::PgConnectOptions;
use sqlx::sqlite::SqliteConnectOptions;

use crate::error::Error;

const SQLITE: &str = "sqlite:///var/lib/hotslot/hotslot.db";
const POSTGRES: &str = "postgres://USER:PASSWORD@HOST/DATABASE";

/// Whether a URL names a PostgreSQL database.
pub fn is_postgres(url: &str) -> bool {
    url.starts_with("postgres://") || url.starts_with("postgresql://")
}

/// Returns the file that a `sqlite://` URL names, with percent encoding decoded. The file may be a symbolic link.
///
/// # Errors
/// Returns [`Error::Invalid`] when the URL names no file.
pub fn sqlite_file(url: &str) -> Result<PathBuf, Error> {
    sqlite_path(url).map_err(|reason| Error::Invalid(format!("[database] url: {reason}")))
}

/// Checks the URL of a database.
///
/// # Errors
/// Returns a message that says what is wrong and what to write. It does not quote the URL, which may contain a
/// password.
pub fn check_url(url: &str) -> Result<(), String> {
    if is_postgres(url) {
        return PgConnectOptions::from_str(url).map(drop).map_err(|_| {
            format!(
                "it is not a valid PostgreSQL URL: check the port and the parameters (such as sslmode=require or \
                 hostaddr=192.0.2.1), and encode special characters of names and passwords, such as @ as %40; write \
                 {POSTGRES}"
            )
        });
    }
    if !url.starts_with("sqlite://") {
        return Err(format!("it names neither SQLite nor PostgreSQL; write {SQLITE} or {POSTGRES}"));
    }
    sqlite_path(url).map(drop)
}

/// Returns the path that a `sqlite://` URL names, with percent encoding decoded.
///
/// # Errors
/// Returns a message as [`check_url`] does.
fn sqlite_path(url: &str) -> Result<PathBuf, String> {
    let options = SqliteConnectOptions::from_str(url).map_err(|_| {
        format!("it has parameters that SQLite does not support (?mode=ro is supported); write {SQLITE}")
    })?;
    let path = options.get_filename();
    let named = url.trim_start_matches("sqlite://").split('?').next().unwrap_or_default();
    if path.as_os_str().is_empty() || named == ":memory:" {
        return Err(format!("it names no file; write {SQLITE}"));
    }
    Ok(path.to_owned())
}
