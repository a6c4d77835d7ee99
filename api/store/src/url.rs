//! The URL of a database, read by the same parsers that open it.

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

/// The file that a `sqlite://` URL names, without its percent encoding. It may be a link.
///
/// # Errors
/// [`Error::Invalid`] for a URL that names none.
pub fn sqlite_file(url: &str) -> Result<PathBuf, Error> {
    sqlite_path(url).map_err(|reason| Error::Invalid(format!("[database] url: {reason}")))
}

/// Checks that a URL names a database that can be opened by it.
///
/// # Errors
/// What is wrong and what would be right. Nothing of the URL is quoted, for it may carry a password.
pub fn check_url(url: &str) -> Result<(), String> {
    if is_postgres(url) {
        return PgConnectOptions::from_str(url).map(drop).map_err(|_| {
            format!(
                "it is no URL that PostgreSQL is reached by: look at its port and its parameters (such as sslmode=require \
                 or hostaddr=192.0.2.1), and write what is special in a name or password as %40; write {POSTGRES}"
            )
        });
    }
    if !url.starts_with("sqlite://") {
        return Err(format!("it names neither SQLite nor PostgreSQL; write {SQLITE} or {POSTGRES}"));
    }
    sqlite_path(url).map(drop)
}

/// The path that a `sqlite://` URL names, without its percent encoding.
///
/// # Errors
/// As [`check_url`].
fn sqlite_path(url: &str) -> Result<PathBuf, String> {
    let options = SqliteConnectOptions::from_str(url).map_err(|_| {
        format!("its parameters are none that SQLite knows, such as ?mode=ro; write {SQLITE}")
    })?;
    let path = options.get_filename();
    let named = url.trim_start_matches("sqlite://").split('?').next().unwrap_or_default();
    if path.as_os_str().is_empty() || named == ":memory:" {
        return Err(format!("it names no file; write {SQLITE}"));
    }
    Ok(path.to_owned())
}
