//! Backs up a SQLite database while a service uses it, and restores it while no service runs. PostgreSQL has its own
//! tools.

use std::fmt::Display;
use std::fs::{self, File, TryLockError};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{Connection as _, SqliteConnection};

use crate::error::Error;
use crate::pool::{SQLITE_PATIENCE, Store};
use crate::private;
use crate::url::{is_postgres, sqlite_file};

/// Locks a SQLite file for one service. Returns `None` when another service has the lock. The path must not contain
/// links, so that all names of the file have the same lock.
///
/// # Errors
/// Returns the I/O error of the lock file.
pub fn lock(file: &Path) -> io::Result<Option<File>> {
    let lock = private::file(&beside(file, ".lock"))?;
    let locked = matches!(lock.try_lock(), Err(TryLockError::WouldBlock));
    Ok((!locked).then_some(lock))
}

/// Copies the database of a URL into a new file, even while a service writes to it. After an error the file does not
/// exist.
///
/// # Errors
/// Returns [`Error::Invalid`] for PostgreSQL, [`Error::NotFound`] when the database or the directory of the new file
/// does not exist, [`Error::Conflict`] when the file exists, and the errors of the database and the file system.
pub async fn backup(url: &str, to: &Path) -> Result<(), Error> {
    let from = sqlite(url, "pg_dump")?;
    if !from.exists() {
        return Err(Error::NotFound(format!("database {}", from.display())));
    }
    if to.exists() {
        return Err(Error::Conflict(format!("{} already exists; name a new file", to.display())));
    }
    let directory = private::directory(to);
    if !directory.is_dir() {
        return Err(Error::NotFound(format!("directory {}", directory.display())));
    }
    let partial = beside(to, ".partial");
    remove(&partial)?;
    // SQLite uses an existing empty file and keeps its mode.
    drop(private::new_file(&partial).map_err(failed(partial.display()))?);
    let copied = copy_into(&from, &partial).await.and_then(|()| take_place(&partial, to));
    if copied.is_err() {
        remove(&partial)?;
    }
    copied
}

/// Copies a database into an empty file, even while others write to it.
async fn copy_into(from: &Path, partial: &Path) -> Result<(), Error> {
    let options = SqliteConnectOptions::new().filename(from).read_only(true).busy_timeout(SQLITE_PATIENCE);
    let mut database = SqliteConnection::connect_with(&options).await?;
    let name = partial.display().to_string();
    sqlx::query("VACUUM INTO $1").bind(name).execute(&mut database).await?;
    database.close().await?;
    check(partial).await
}

/// Replaces the database of a URL with a backup and runs the migrations. The previous database is kept in the same
/// directory, as `….before-restore`, or `….before-restore.1` and so on when earlier ones are kept there. Returns its
/// file; `None` when there was no database.
///
/// # Errors
/// Returns [`Error::Invalid`] for PostgreSQL, or when the file is the database itself or is not a backup,
/// [`Error::Conflict`] while a service runs, and the errors of the database and the file system. After an error the
/// database is unchanged.
pub async fn restore(url: &str, from: &Path) -> Result<Option<PathBuf>, Error> {
    let to = sqlite(url, "pg_restore")?;
    let to = private::prepare_for(&to, true).map_err(failed(to.display()))?;
    let Some(_lock) = lock(&to).map_err(failed(to.display()))? else {
        return Err(Error::Conflict(format!("a service has {} open; stop it first", to.display())));
    };
    let fresh = beside(&to, ".restored");
    // A restore that was killed may have left files.
    remove_database(&fresh)?;
    let restored = restore_to(&to, from, &fresh).await;
    if restored.is_err() {
        remove_database(&fresh)?;
    }
    restored
}

/// Copies a backup into the file `fresh`, checks it, runs the migrations, and replaces the database `to` with it.
async fn restore_to(to: &Path, from: &Path, fresh: &Path) -> Result<Option<PathBuf>, Error> {
    let mut backup = File::open(from).map_err(failed(from.display()))?;
    if is_same_file(&backup, to).map_err(failed(from.display()))? {
        return Err(Error::Invalid(format!(
            "{} is the database itself; name a backup of it",
            from.display()
        )));
    }
    let mut copy = private::new_file(fresh).map_err(failed(fresh.display()))?;
    io::copy(&mut backup, &mut copy).map_err(failed(from.display()))?;
    drop(copy);
    // Detect a file that is not a backup, or that a newer hotslot wrote, before the database is replaced.
    let right = "name a file that `hotslot db backup` wrote";
    let refused = |_| Error::Invalid(format!("{} is not a backup; {right}", from.display()));
    check(fresh).await.map_err(refused)?;
    Store::open_file(SqliteConnectOptions::new().filename(fresh), None).await?.close().await;
    let kept = unused(to)?;
    // The user who restores the database may be another one than the user of the service.
    let owner = fs::metadata(to).or_else(|_| fs::metadata(private::directory(to)));
    let owner = owner.map_err(failed(to.display()))?;
    private::own_as(fresh, &owner);
    private::own_as(&beside(to, ".lock"), &owner);
    let replaced = to.exists();
    if replaced {
        // SQLite would apply the log of the old database to the new one, and the old one lacks its latest changes
        // without its log. So write the log into the old database first. If the restore is killed, one of the two is
        // complete.
        if let Err(error) = empty_log(to).await {
            tracing::warn!(
                "the log of {} cannot be written into it: {error}; the log is kept with the previous database",
                to.display()
            );
        }
        remove_database(&kept)?;
        fs::hard_link(to, &kept).map_err(failed(kept.display()))?;
    }
    // A log that could not be written belongs to the old database.
    for ending in BESIDE {
        match fs::rename(beside(to, ending), beside(&kept, ending)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(to.display())(error)),
            Ok(()) | Err(_) => {}
        }
    }
    take_place(fresh, to)?;
    Ok(replaced.then_some(kept))
}

/// Returns the name under which the previous database is kept, which no earlier restore has used.
fn unused(database: &Path) -> Result<PathBuf, Error> {
    let mut kept = beside(database, ".before-restore");
    for number in 1.. {
        if !kept.try_exists().map_err(failed(kept.display()))? {
            break;
        }
        kept = beside(database, &format!(".before-restore.{number}"));
    }
    Ok(kept)
}

/// Whether an open file is the file of a path. Two names of one file are the same file.
fn is_same_file(file: &File, path: &Path) -> io::Result<bool> {
    let file = file.metadata()?;
    match fs::metadata(path) {
        Ok(other) => Ok((file.dev(), file.ino()) == (other.dev(), other.ino())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// The suffixes of the files that SQLite keeps with a database: the log, its index, and the rollback journal.
const BESIDE: [&str; 3] = ["-wal", "-shm", "-journal"];

/// Writes the log of a database that is not in use into its file. SQLite then removes the log.
async fn empty_log(file: &Path) -> Result<(), Error> {
    let options = SqliteConnectOptions::new().filename(file).busy_timeout(SQLITE_PATIENCE);
    let mut database = SqliteConnection::connect_with(&options).await?;
    sqlx::query("PRAGMA wal_checkpoint(TRUNCATE)").execute(&mut database).await?;
    database.close().await?;
    Ok(())
}

/// Removes a database and the files that SQLite keeps with it.
fn remove_database(file: &Path) -> Result<(), Error> {
    for ending in BESIDE {
        remove(&beside(file, ending))?;
    }
    remove(file)
}

fn sqlite(url: &str, tool: &str) -> Result<PathBuf, Error> {
    if is_postgres(url) {
        return Err(Error::Invalid(format!("[database] url names PostgreSQL; use {tool}")));
    }
    sqlite_file(url)
}

/// Checks that a file is a complete database of hotslot.
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

/// Syncs a file to disk and renames it.
fn take_place(file: &Path, place: &Path) -> Result<(), Error> {
    let renamed = File::open(file).and_then(|file| file.sync_all()).and_then(|()| fs::rename(file, place));
    let synced = renamed.and_then(|()| File::open(private::directory(place))?.sync_all());
    synced.map_err(failed(place.display()))
}

fn failed(file: impl Display) -> impl FnOnce(io::Error) -> Error {
    move |error| Error::Internal(format!("{file}: {error}"))
}
