//! A SQLite database is copied while a service writes to it, and put back while none runs. PostgreSQL has tools of
//! its own for that.

use std::fmt::Display;
use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{Connection as _, SqliteConnection};

use crate::error::Error;
use crate::pool::{SQLITE_PATIENCE, Store};
use crate::private;
use crate::url::{is_postgres, sqlite_file};

/// Locks a SQLite file for one service; none when another one has it. The path is one without links, so that there is
/// one lock for all names of the file.
///
/// # Errors
/// What the system says of the lock's file.
pub fn lock(file: &Path) -> io::Result<Option<File>> {
    let lock = private::file(&beside(file, ".lock"))?;
    let taken = matches!(lock.try_lock(), Err(TryLockError::WouldBlock));
    Ok((!taken).then_some(lock))
}

/// Copies the database of a URL into a new file, also while a service writes to it. The file is whole or not there.
///
/// # Errors
/// [`Error::Invalid`] for PostgreSQL, [`Error::NotFound`] when there is no database, [`Error::Conflict`] when the
/// file is there; the database's, and the file system's.
pub async fn backup(url: &str, to: &Path) -> Result<(), Error> {
    let from = sqlite(url, "pg_dump")?;
    if !from.exists() {
        return Err(Error::NotFound(format!("database {}", from.display())));
    }
    if to.exists() {
        return Err(Error::Conflict(format!("{} is there already; name a new file", to.display())));
    }
    let directory = private::directory(to);
    if !directory.is_dir() {
        return Err(Error::NotFound(format!("directory {}", directory.display())));
    }
    let partial = beside(to, ".partial");
    remove(&partial)?;
    // SQLite takes a file that is there and empty as it is, with its mode.
    drop(private::new_file(&partial).map_err(failed(partial.display()))?);
    let copied = copy_into(&from, &partial).await.and_then(|()| take_place(&partial, to));
    if copied.is_err() {
        remove(&partial)?;
    }
    copied
}

/// Copies a database, also while others write to it, into a file that is empty.
async fn copy_into(from: &Path, partial: &Path) -> Result<(), Error> {
    let options = SqliteConnectOptions::new().filename(from).read_only(true).busy_timeout(SQLITE_PATIENCE);
    let mut database = SqliteConnection::connect_with(&options).await?;
    let name = partial.display().to_string();
    sqlx::query("VACUUM INTO $1").bind(name).execute(&mut database).await?;
    database.close().await?;
    check(partial).await
}

/// Puts a backup in the place of the database of a URL, and brings its schema up to date. The database that was there
/// is kept beside it, as `….before-restore`.
///
/// # Errors
/// [`Error::Invalid`] for PostgreSQL, or when the file is no backup; [`Error::Conflict`] while a service runs; the
/// database's, and the file system's. Then the database is as it was.
pub async fn restore(url: &str, from: &Path) -> Result<(), Error> {
    let to = sqlite(url, "pg_restore")?;
    let to = private::prepare_for(&to, true).map_err(failed(to.display()))?;
    let Some(_lock) = lock(&to).map_err(failed(to.display()))? else {
        return Err(Error::Conflict(format!("a service has {} open; stop it first", to.display())));
    };
    let fresh = beside(&to, ".restored");
    // One that was killed may have left some.
    remove_database(&fresh)?;
    let restored = restore_to(&to, from, &fresh).await;
    if restored.is_err() {
        remove_database(&fresh)?;
    }
    restored
}

/// Makes a database of a backup in a file of its own, and puts that in the place of another one.
async fn restore_to(to: &Path, from: &Path, fresh: &Path) -> Result<(), Error> {
    let mut backup = File::open(from).map_err(failed(from.display()))?;
    let mut copy = private::new_file(fresh).map_err(failed(fresh.display()))?;
    io::copy(&mut backup, &mut copy).map_err(failed(from.display()))?;
    drop(copy);
    // What is no backup, or one of a newer hotslot, shows before it takes the other's place.
    let right = "name a file that `hotslot db backup` wrote";
    let refused = |_| Error::Invalid(format!("{} is no backup; {right}", from.display()));
    check(fresh).await.map_err(refused)?;
    Store::open_file(SqliteConnectOptions::new().filename(fresh), None).await?.close().await;
    let kept = beside(to, ".before-restore");
    // Who restores it may be another than the service's user.
    let owner = fs::metadata(to).or_else(|_| fs::metadata(private::directory(to)));
    let owner = owner.map_err(failed(to.display()))?;
    private::own_as(fresh, &owner);
    private::own_as(&beside(to, ".lock"), &owner);
    if to.exists() {
        // A log that lay beside the new database would be read as its own; and without its log the old one lacks what
        // was written last. So the log is emptied first, and whoever is killed in between leaves one of them whole.
        if let Err(error) = empty_log(to).await {
            tracing::warn!(
                "the log of {} cannot be written into it: {error}; it is kept beside it",
                to.display()
            );
        }
        remove_database(&kept)?;
        fs::hard_link(to, &kept).map_err(failed(kept.display()))?;
    }
    // One that could not be emptied belongs to the old one alone.
    for ending in BESIDE {
        match fs::rename(beside(to, ending), beside(&kept, ending)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(to.display())(error)),
            Ok(()) | Err(_) => {}
        }
    }
    take_place(fresh, to)
}

/// The endings of what SQLite keeps beside a database: what was written last, and how to undo what was not committed.
const BESIDE: [&str; 3] = ["-wal", "-shm", "-journal"];

/// Writes what is in the log of a database that nobody has open into its file. SQLite then removes the log.
async fn empty_log(file: &Path) -> Result<(), Error> {
    let options = SqliteConnectOptions::new().filename(file).busy_timeout(SQLITE_PATIENCE);
    let mut database = SqliteConnection::connect_with(&options).await?;
    sqlx::query("PRAGMA wal_checkpoint(TRUNCATE)").execute(&mut database).await?;
    database.close().await?;
    Ok(())
}

/// Removes a database and what SQLite keeps beside it.
fn remove_database(file: &Path) -> Result<(), Error> {
    for ending in BESIDE {
        remove(&beside(file, ending))?;
    }
    remove(file)
}

fn sqlite(url: &str, tool: &str) -> Result<PathBuf, Error> {
    if is_postgres(url) {
        return Err(Error::Invalid(format!("[database] url names PostgreSQL: use its own {tool}")));
    }
    sqlite_file(url)
}

/// Whether a file is a whole database of ours.
async fn check(file: &Path) -> Result<(), Error> {
    let options = SqliteConnectOptions::new().filename(file).read_only(true).immutable(true);
    let mut database = SqliteConnection::connect_with(&options).await?;
    let found: String = sqlx::query_scalar("PRAGMA integrity_check").fetch_one(&mut database).await?;
    sqlx::query("SELECT id FROM attachments LIMIT 1").execute(&mut database).await?;
    database.close().await?;
    if found == "ok" { Ok(()) } else { Err(Error::Internal(format!("{}: {found}", file.display()))) }
}

fn beside(file: &Path, ending: &str) -> PathBuf {
    let mut name = file.as_os_str().to_owned();
    name.push(ending);
    name.into()
}

fn remove(file: &Path) -> Result<(), Error> {
    match fs::remove_file(file) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed(file.display())(error)),
        Ok(()) | Err(_) => Ok(()),
    }
}

/// Renames a file, once it is on disk.
fn take_place(file: &Path, place: &Path) -> Result<(), Error> {
    let renamed = File::open(file).and_then(|file| file.sync_all()).and_then(|()| fs::rename(file, place));
    let synced = renamed.and_then(|()| File::open(private::directory(place))?.sync_all());
    synced.map_err(failed(place.display()))
}

fn failed(file: impl Display) -> impl FnOnce(io::Error) -> Error {
    move |error| Error::Internal(format!("{file}: {error}"))
}
