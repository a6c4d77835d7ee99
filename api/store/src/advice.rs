//! What to do about a database that cannot be used: by the codes of SQLite and PostgreSQL (its SQLSTATE).

use crate::error::Error;
use crate::url::{is_postgres, sqlite_file};

impl Error {
    /// What to do about a database that is not broken, but cannot be used now; none when this is no such failure.
    pub fn advice(&self) -> Option<&'static str> {
        let Self::Database(source) = self else { return None };
        advice(source)
    }

    /// What to do about the database of a URL that cannot be opened; none when this is not the database's failure.
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

/// What is to be done about a database that is not broken, but cannot be used now.
fn advice(error: &sqlx::Error) -> Option<&'static str> {
    if matches!(error, sqlx::Error::PoolClosed | sqlx::Error::WorkerCrashed) {
        return Some("the service is stopping; ask again when it is back");
    }
    if matches!(error, sqlx::Error::PoolTimedOut) {
        return Some(
            "another process holds it, or it does not answer; end what has its file open, or look whether \
             PostgreSQL runs",
        );
    }
    // SQLite says everything by its codes.
    if matches!(error, sqlx::Error::Io(_) | sqlx::Error::Tls(_) | sqlx::Error::Protocol(_)) {
        return Some(AWAY);
    }
    let code = error.as_database_error()?.code()?;
    if code.len() == SQLSTATE { of_postgres(&code) } else { of_sqlite(code.parse().ok()?) }
}

/// How long PostgreSQL's codes are; SQLite's are shorter.
const SQLSTATE: usize = 5;

const AWAY: &str =
    "PostgreSQL does not answer, or stops or starts at the moment; look whether it runs, and ask again";

fn of_postgres(code: &str) -> Option<&'static str> {
    match (code.get(..2)?, code) {
        (_, "53100") | ("58", _) => Some("PostgreSQL cannot write; look at its disk"),
        ("53", _) => {
            Some("PostgreSQL has no more connections or memory to give; raise its limits, or ask again")
        }
        (_, "25006") => Some("PostgreSQL may not write there; [database] url has to name the primary"),
        (_, "28000" | "28P01" | "3D000" | "42501") => {
            Some("PostgreSQL does not let hotslot in; look at its roles, and at [database] url")
        }
        ("08" | "57", _) => Some(AWAY),
        ("40", _) | (_, "25P03" | "55P03") => Some("another process was in the way; ask again"),
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
            Some("another process holds it; end what has the file open, or wait until it is done")
        }
        READONLY => Some("its file is read-only; let hotslot write it and its directory"),
        IOERR | CANTOPEN => Some("its file cannot be read or written; look at its disk"),
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
        format!("{path} is no SQLite database; name another file in [database] url")
    } else {
        format!("[database] url names {path}: is its directory there, and may hotslot write it?")
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
        (_, Some("3D000")) => "PostgreSQL has no database of that name; make it by createdb",
        (_, Some("28000" | "28P01")) => {
            "PostgreSQL does not let that user in; look at [database] url and its pg_hba.conf"
        }
        (_, Some("42501")) => {
            "give the user of [database] url the right to create tables: GRANT CREATE ON SCHEMA public"
        }
        _ => "does PostgreSQL run where [database] url says, and may this machine reach it?",
    };
    advice.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_postgresql_cannot_do_now_is_told_apart_from_what_it_should_not_be_asked() {
        for (code, told) in [
            ("57P01", "ask again"),
            ("57P03", "ask again"),
            ("08006", "ask again"),
            ("25P03", "in the way"),
            ("40P01", "in the way"),
            ("53300", "connections"),
            ("53100", "disk"),
            ("58030", "disk"),
            ("25006", "primary"),
            ("28P01", "roles"),
        ] {
            assert!(of_postgres(code).is_some_and(|advice| advice.contains(told)), "{code}");
        }
        for ours in ["42601", "42P01", "23505", "22P02", "XX000"] {
            assert_eq!(of_postgres(ours), None, "{ours}");
        }
    }
}
