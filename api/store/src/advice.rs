//! Advice for a database that cannot be used, by the error codes of SQLite and the SQLSTATE of PostgreSQL.

use crate::error::Error;
use crate::url::{is_postgres, sqlite_file};

impl Error {
    /// Returns advice when the error is that the database cannot be used at the moment, and `None` for other errors.
    pub fn advice(&self) -> Option<&'static str> {
        let Self::Database(source) = self else { return None };
        advice(source)
    }

    /// Returns advice when the database of a URL cannot be opened, and `None` when this is not a database error.
    pub fn advice_at_open(&self, url: &str) -> Option<String> {
        let Self::Database(source) = self else { return None };
        Some(if is_postgres(url) {
            of_postgres_at_open(source)
        } else {
            let file = sqlite_file(url).map(|file| file.display().to_string());
            of_sqlite_at_open(source, file.as_deref().unwrap_or(url))
        })
    }
}

/// Returns advice when the error is that the database cannot be used at the moment.
fn advice(error: &sqlx::Error) -> Option<&'static str> {
    if matches!(error, sqlx::Error::PoolClosed | sqlx::Error::WorkerCrashed) {
        return Some("the service is stopping; repeat the request when it has started again");
    }
    if matches!(error, sqlx::Error::PoolTimedOut) {
        return Some(
            "another process holds it, or it does not answer; end the process that has its file open, or check that \
             PostgreSQL runs",
        );
    }
    // SQLite never returns these errors; it uses codes.
    if matches!(error, sqlx::Error::Io(_) | sqlx::Error::Tls(_) | sqlx::Error::Protocol(_)) {
        return Some(AWAY);
    }
    let code = error.as_database_error()?.code()?;
    if code.len() == SQLSTATE { of_postgres(&code) } else { of_sqlite(code.parse().ok()?) }
}

/// The length of a SQLSTATE code. The codes of SQLite are shorter.
const SQLSTATE: usize = 5;

const AWAY: &str =
    "PostgreSQL does not answer, or is stopping or starting; check that it runs, and repeat the request";

fn of_postgres(code: &str) -> Option<&'static str> {
    match (code.get(..2)?, code) {
        (_, "53100") | ("58", _) => Some("PostgreSQL cannot write; check its disk"),
        ("53", _) => Some(
            "PostgreSQL has no free connections or memory; raise its limits, or repeat the request later",
        ),
        (_, "25006") => Some("this PostgreSQL server is read-only; [database] url must name the primary"),
        (_, "28000" | "28P01" | "3D000" | "42501") => {
            Some("PostgreSQL refuses access; check its roles and [database] url")
        }
        ("08" | "57", _) => Some(AWAY),
        ("40", _) | (_, "25P03" | "55P03") => {
            Some("another process blocked the transaction; repeat the request")
        }
        _ => None,
    }
}

fn of_sqlite(code: u32) -> Option<&'static str> {
    const BUSY: u32 = 5;
    const LOCKED: u32 = 6;
    const READONLY: u32 = 8;
    const IOERR: u32 = 10;
    const FULL: u32 = 13;
    const CANTOPEN: u32 = 14;
    // The extended codes have the primary ones in their low byte.
    match code & 0xff {
        BUSY | LOCKED => {
            Some("another process holds it; end the process that has the file open, or wait until it is done")
        }
        READONLY => Some("its file is read-only; allow hotslot to write the file and its directory"),
        IOERR | CANTOPEN => Some("its file cannot be read or written; check its disk"),
        FULL => Some("its disk is full; make room there"),
        _ => None,
    }
}

fn of_sqlite_at_open(error: &sqlx::Error, path: &str) -> String {
    const NOT_A_DATABASE: &str = "26";
    if matches!(error, sqlx::Error::Migrate(_)) {
        format!("{path} was written by another version of hotslot; use that one, or another [database] url")
    } else if matches!(error, sqlx::Error::Configuration(_)) {
        "write [database] url as sqlite:///var/lib/hotslot/hotslot.db".into()
    } else if error.as_database_error().and_then(|error| error.code()).as_deref() == Some(NOT_A_DATABASE) {
        format!("{path} is not a SQLite database; name another file in [database] url")
    } else {
        format!(
            "[database] url names {path}; check that its directory exists and that hotslot may write there"
        )
    }
}

fn of_postgres_at_open(error: &sqlx::Error) -> String {
    let code = error.as_database_error().and_then(|error| error.code());
    let advice = match (error, code.as_deref()) {
        (sqlx::Error::Migrate(_), _) => {
            "it was written by another version of hotslot; use that one, or another [database] url"
        }
        (sqlx::Error::Configuration(_), _) => {
            "write [database] url as postgres://USER:PASSWORD@HOST/DATABASE"
        }
        (_, Some("3D000")) => "PostgreSQL has no database of that name; create it with createdb",
        (_, Some("28000" | "28P01")) => {
            "PostgreSQL refuses that user; check [database] url and the pg_hba.conf of the server"
        }
        (_, Some("42501")) => {
            "give the user of [database] url the right to create tables: GRANT CREATE ON SCHEMA public"
        }
        _ => "check that PostgreSQL runs at the address of [database] url and that this machine can reach it",
    };
    advice.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_codes_of_temporary_or_administrative_problems_have_advice() {
        for (code, expected) in [
            ("57P01", "repeat the request"),
            ("57P03", "repeat the request"),
            ("08006", "repeat the request"),
            ("25P03", "another process blocked"),
            ("40P01", "another process blocked"),
            ("53300", "connections"),
            ("53100", "disk"),
            ("58030", "disk"),
            ("25006", "primary"),
            ("28P01", "roles"),
        ] {
            assert!(of_postgres(code).is_some_and(|advice| advice.contains(expected)), "{code}");
        }
        for ours in ["42601", "42P01", "23505", "22P02", "XX000"] {
            assert_eq!(of_postgres(ours), None, "{ours}");
        }
    }
}
