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

/// Locks a SQLite file for one service; none when another one has it.
///
/// # Errors
/// What the system says of the lock's file.
pub fn lock(file: &str) -> io::Result<Option<File>> {
    let lock = private::file(Path::new(&format!("{file}.lock")))?;
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
    if !Path::new(from).exists() {
        return Err(Error::NotFound(format!("database {from}")));
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
    let options = SqliteConnectOptions::new().filename(from).read_only(true).busy_timeout(SQLITE_PATIENCE);
    let mut database = SqliteConnection::connect_with(&options).await?;
    let name = partial.display().to_string();
    sqlx::query("VACUUM INTO $1").bind(name).execute(&mut database).await?;
    database.close().await?;
    check(&partial).await?;
    take_place(&partial, to)
}

/// Puts a backup in the place of the database of a URL, and brings its schema up to date. The database that was there
/// is kept beside it, as `….before-restore`.
///
/// # Errors
/// [`Error::Invalid`] for PostgreSQL, or when the file is no backup; [`Error::Conflict`] while a service runs; the
/// database's, and the file system's. Then the database is as it was.
pub async fn restore(url: &str, from: &Path) -> Result<(), Error> {
    let to = sqlite(url, "pg_restore")?;
    private::prepare_for(Path::new(to), true).map_err(failed(to))?;
    let Some(_lock) = lock(to).map_err(failed(to))? else {
        return Err(Error::Conflict(format!("a service has {to} open; stop it first")));
    };
    let fresh = PathBuf::from(format!("{to}.restored"));
    for ending in ["", "-wal", "-shm"] {
        remove(&beside(&fresh, ending))?;
    }
    let mut backup = File::open(from).map_err(failed(from.display()))?;
    let mut copy = private::new_file(&fresh).map_err(failed(fresh.display()))?;
    io::copy(&mut backup, &mut copy).map_err(failed(from.display()))?;
    drop(copy);
    // What is no backup, or one of a newer hotslot, shows before it takes the other's place.
    let right = "name a file that `hotslot db backup` wrote";
    let refused = |_| Error::Invalid(format!("{} is no backup; {right}", from.display()));
    check(&fresh).await.map_err(refused)?;
    Store::open(&format!("sqlite://{}", fresh.display()), None).await?.close().await;
    let (was, kept) = (Path::new(to), PathBuf::from(format!("{to}.before-restore")));
    // Who restores it may be another than the service's user.
    let owner = fs::metadata(was).or_else(|_| fs::metadata(private::directory(was))).map_err(failed(to))?;
    private::own_as(&fresh, &owner);
    private::own_as(Path::new(&format!("{to}.lock")), &owner);
    if was.exists() {
        remove(&kept)?;
        fs::hard_link(was, &kept).map_err(failed(kept.display()))?;
    }
    // Its log belongs to it alone.
    for ending in ["-wal", "-shm"] {
        match fs::rename(beside(was, ending), beside(&kept, ending)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(to)(error)),
            Ok(()) | Err(_) => {}
        }
    }
    take_place(&fresh, was)
}

fn sqlite<'u>(url: &'u str, tool: &str) -> Result<&'u str, Error> {
    if is_postgres(url) {
        return Err(Error::Invalid(format!("[database] url names PostgreSQL: use its own {tool}")));
    }
    Ok(sqlite_file(url))
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
