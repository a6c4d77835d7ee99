//! Checks the URL of a database with the parsers that are used to open it.

use std::net::IpAddr;
use std::path::PathBuf;
use std::str::FromStr;

use sqlx::postgres::{PgConnectOptions, PgSslMode};
use sqlx::sqlite::SqliteConnectOptions;

use crate::error::Error;

const SQLITE: &str = "sqlite:///var/lib/hotslot/hotslot.db";
const POSTGRES: &str = "postgres://USER:PASSWORD@HOST/DATABASE?sslmode=verify-full";

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

/// Checks the URL of a database. A PostgreSQL on another machine needs `sslmode=verify-full`: without it, another
/// machine on the network could take its place, and learn the password by asking for it in clear text, which sqlx
/// cannot refuse.
///
/// # Errors
/// Returns a message that says what is wrong and what to write. It does not quote the URL, which may contain a
/// password.
pub fn check_url(url: &str) -> Result<(), String> {
    if is_postgres(url) {
        let options = PgConnectOptions::from_str(url).map_err(|_| {
            format!(
                "it is not a valid PostgreSQL URL: check the port and the parameters (such as sslmode=verify-full or \
                 hostaddr=192.0.2.1), and encode special characters of names and passwords, such as @ as %40; write \
                 {POSTGRES}"
            )
        })?;
        if is_local(&options) || matches!(options.get_ssl_mode(), PgSslMode::VerifyFull) {
            return Ok(());
        }
        return Err(
            "its host is another machine, so the connection must be encrypted and the certificate of the server \
             verified; add ?sslmode=verify-full to the URL, and &sslrootcert=/path/to/ca.pem unless an authority that \
             this system trusts has signed the certificate"
                .into(),
        );
    }
    if !url.starts_with("sqlite://") {
        return Err(format!("it names neither SQLite nor PostgreSQL; write {SQLITE} or {POSTGRES}"));
    }
    sqlite_path(url).map(drop)
}

/// Whether a connection stays on this machine: it is by a unix socket or to a loopback address.
fn is_local(options: &PgConnectOptions) -> bool {
    let host = options.get_host();
    let address = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
    // sqlx uses a host that begins with a slash as the directory of a socket.
    options.get_socket().is_some()
        || host.starts_with('/')
        || host == "localhost"
        || address.is_ok_and(|address| address.is_loopback())
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_postgresql_of_another_machine_needs_a_verified_certificate() {
        for local in [
            "postgres://hotslot@localhost/hotslot",
            "postgres://hotslot@127.0.0.1:5433/hotslot?sslmode=disable",
            "postgres://hotslot@[::1]/hotslot",
            "postgresql://hotslot@%2Frun%2Fpostgresql/hotslot",
            "postgres://hotslot@localhost/hotslot?host=/run/postgresql",
            "postgres://hotslot@db.example/hotslot?sslmode=verify-full",
            "postgres://hotslot@db.example/hotslot?sslmode=verify-full&sslrootcert=/etc/hotslot/ca.pem",
            "postgres://hotslot@192.0.2.1/hotslot?ssl-mode=verify-full",
        ] {
            assert_eq!(check_url(local), Ok(()), "{local}");
        }
        for remote in [
            "postgres://hotslot:s3cret@db.example/hotslot",
            "postgres://hotslot:s3cret@db.example/hotslot?sslmode=require",
            "postgres://hotslot:s3cret@db.example/hotslot?sslmode=verify-ca",
            "postgres://hotslot:s3cret@192.0.2.1/hotslot?sslmode=prefer",
            "postgres://hotslot:s3cret@localhost/hotslot?host=db.example",
            "postgres://hotslot:s3cret@localhost/hotslot?hostaddr=192.0.2.1",
            "postgres://hotslot:s3cret@[2001:db8::1]/hotslot",
            "postgres://hotslot:s3cret@localhost.evil.example/hotslot",
            "postgres://hotslot:s3cret@127.0.0.1.evil.example/hotslot",
        ] {
            let message = check_url(remote).unwrap_err();
            assert!(
                message.contains("sslmode=verify-full") && !message.contains("s3cret"),
                "{remote}: {message}"
            );
        }
    }
}
