//! SQL, one file a table. Statements are static, with `$n`, and mean the same on SQLite and PostgreSQL (`sql.rs`).
//!
//! SQLite: one process, of which one connection writes and a pool reads; WAL, foreign keys, every commit synced to
//! disk. PostgreSQL: one pool, and as many processes as there are.

mod accelerators;
mod adopt;
mod arqs;
mod attachments;
mod attributes;
mod backup;
mod bindings;
mod cards;
mod config;
mod device_profiles;
mod devices;
mod draft;
mod ended;
mod events;
mod hypervisors;
mod idempotency;
mod locks;
mod mdevs;
mod private;
mod processes;
mod sql;
#[cfg(test)]
mod tests;
mod texts;
mod url;
mod webhooks;

use std::fs::File;
use std::path::Path;
use std::str::FromStr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};
use sqlx::{Connection as _, SqliteConnection};
use tokio::sync::{Mutex, OwnedMutexGuard, watch};

pub use accelerators::Accelerator;
pub use adopt::Adoption;
pub use arqs::{Arq, ArqState, ArqTarget};
pub use attachments::{
    Attachment, Change, InnerAddress, InnerSource, Network, NewAttachment, Reservation, Settled,
};
pub use attributes::Attribute;
pub use backup::{backup, lock, restore, sqlite_file};
pub use bindings::{Binding, NewBinding};
pub use device_profiles::DeviceProfile;
pub use devices::{DevType, Device, DeviceFacts, DeviceStatus, Looked, Owner, ScanOutcome};
pub use ended::Ended;
pub use events::{Event, EventBounds, EventFilter, EventKind, What};
pub use hypervisors::HypervisorRow;
pub use locks::{Held, Locks};
pub use mdevs::{Mdev, MdevReservation};
pub(crate) use private::{make, prepare};
pub use processes::{Heard, News, Process};
use sql::{Pool, Transaction, query};
pub(crate) use texts::Sharing;
pub use texts::Texts;
pub use url::check_url;
pub use webhooks::DeadLetter;

use crate::error::Error;
use crate::id::EventId;

/// Milliseconds since 1970-01-01 UTC.
pub type Millis = i64;

/// The time now.
pub fn now() -> Millis {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as Millis)
}

/// How long a connection to SQLite waits while another one writes.
const SQLITE_PATIENCE: Duration = Duration::from_secs(10);

/// Milliseconds after which PostgreSQL takes the turn to write from a process that stands still in the middle of it.
const STALLED: &str = "5000";

/// The most connections that a process keeps to PostgreSQL, beside the one of its locks. One of them listens.
const POSTGRES_CONNECTIONS: u32 = 8;

/// How long it is tried to connect to a PostgreSQL that does not answer.
const POSTGRES_PATIENCE: Duration = Duration::from_secs(5);

/// The database.
#[derive(Debug, Clone)]
pub struct Store {
    write: Pool,
    read: Pool,
    /// Whose turn it is to write.
    turn: Arc<Mutex<()>>,
    rows: Arc<RwLock<devices::Rows>>,
    /// The event that was committed last, as far as it is known here.
    last_event: Arc<watch::Sender<EventId>>,
    /// Whether a commit failed since this was last asked: it may have taken effect all the same.
    in_doubt: Arc<AtomicBool>,
    locks: Locks,
    /// Held for as long as the database is open: one service a file.
    _lock: Option<Arc<File>>,
}

/// Whether a URL names a PostgreSQL database.
pub fn is_postgres(url: &str) -> bool {
    url.starts_with("postgres://") || url.starts_with("postgresql://")
}

impl Store {
    /// Opens the database at a `sqlite://` or `postgres://` URL and brings its schema up to date. SQLite's file is
    /// made when it is not there; its lock is kept for as long as it is open.
    ///
    /// # Errors
    /// What the database says, of itself or of a migration.
    pub async fn open(url: &str, lock: Option<File>) -> Result<Self, Error> {
        let migrations = sqlx::migrate!("./migrations");
        let (write, read, locks) = if is_postgres(url) {
            let options = PgConnectOptions::from_str(url)?.application_name("hotslot");
            let options = options.options([("idle_in_transaction_session_timeout", STALLED)]);
            let pool = PgPoolOptions::new()
                .max_connections(POSTGRES_CONNECTIONS)
                .acquire_timeout(POSTGRES_PATIENCE)
                .connect_with(options.clone())
                .await?;
            migrations.run(&pool).await.map_err(sqlx::Error::from)?;
            let locks = Locks::of(options).await?;
            (Pool::Postgres(pool.clone()), Pool::Postgres(pool), locks)
        } else {
            return Self::open_file(SqliteConnectOptions::from_str(url)?, lock).await;
        };
        Self::opened(write, read, locks, lock).await
    }

    /// [`open`](Self::open) of the SQLite file that these options name.
    async fn open_file(options: SqliteConnectOptions, lock: Option<File>) -> Result<Self, Error> {
        let migrations = sqlx::migrate!("./migrations");
        let options = options
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .foreign_keys(true)
            // Kibibytes for each connection: what is read often is in memory anyway.
            .pragma("cache_size", "-256")
            .busy_timeout(SQLITE_PATIENCE);
        // SQLite ends the transaction of a write that fails, and sqlx does not see that: such a connection is no
        // use.
        let usable = |connection: &mut SqliteConnection| !connection.is_in_transaction();
        let write = SqlitePoolOptions::new()
            .max_connections(1)
            .before_acquire(move |connection, _| Box::pin(async move { Ok(usable(connection)) }))
            .connect_with(options.clone())
            .await?;
        migrations.run(&write).await.map_err(sqlx::Error::from)?;
        let read = SqlitePoolOptions::new().max_connections(4).connect_with(options.read_only(true)).await?;
        Self::opened(Pool::Sqlite(write), Pool::Sqlite(read), Locks::default(), lock).await
    }

    async fn opened(write: Pool, read: Pool, locks: Locks, lock: Option<File>) -> Result<Self, Error> {
        let (turn, rows, in_doubt) = Default::default();
        let (lock, last_event) = (lock.map(Arc::new), Arc::new(watch::Sender::new(EventId(0))));
        let store = Self { write, read, turn, rows, last_event, in_doubt, locks, _lock: lock };
        store.heard_of(store.event_bounds().await?.last);
        store.read_devices().await?;
        Ok(store)
    }

    /// [`open`](Self::open) of the SQLite database of a URL, at the file that [`sqlite_file`] found for it.
    ///
    /// # Errors
    /// As `open`.
    pub async fn open_at(url: &str, file: &Path, lock: Option<File>) -> Result<Self, Error> {
        Self::open_file(SqliteConnectOptions::from_str(url)?.filename(file), lock).await
    }

    /// Whether other processes may work on the same database.
    pub fn is_shared(&self) -> bool {
        matches!(self.write, Pool::Postgres(_))
    }

    /// Locks between the processes that do.
    pub fn locks(&self) -> Locks {
        self.locks.clone()
    }

    /// Begins a transaction that writes. One at a time, so that what is read is what will be written over; and not for
    /// work that began before other processes took this one for dead, for they have gone on with it.
    async fn begin(&self) -> Result<(OwnedMutexGuard<()>, Transaction), Error> {
        let turn = Arc::clone(&self.turn).lock_owned().await;
        let mut tx = self.write.begin_to_write().await?;
        self.is_on_record(&mut tx).await?;
        Ok((turn, tx))
    }

    /// Whether a commit failed since this was last asked. The connection may have broken after the database had
    /// committed: then rows may be there of which whoever wrote them does not know.
    pub fn was_in_doubt(&self) -> bool {
        self.in_doubt.swap(false, Ordering::Relaxed)
    }

    fn rows(&self) -> RwLockReadGuard<'_, devices::Rows> {
        self.rows.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn rows_mut(&self) -> RwLockWriteGuard<'_, devices::Rows> {
        self.rows.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the database answers.
    ///
    /// # Errors
    /// What it says when it does not.
    pub async fn ping(&self) -> Result<(), Error> {
        query("SELECT 1").execute(&self.read).await?;
        Ok(())
    }

    /// Closes the database; what was committed is on disk.
    pub async fn close(&self) {
        if let Err(error) = self.leave().await {
            tracing::warn!(%error, "other processes will take this one for one that died");
        }
        self.read.close().await;
        self.write.close().await;
    }
}

/// A row that cannot become a value: says which table, row and column.
fn bad_column(
    table: &'static str,
    row: impl ToString,
    column: &'static str,
) -> impl FnOnce(&dyn std::fmt::Display) -> Error {
    let row = row.to_string();
    move |reason| Error::Row { table, row, column, reason: reason.to_string() }
}

/// Reads columns of one row, with errors that name table, row and column.
struct Columns<'a> {
    table: &'static str,
    id: String,
    row: &'a sql::Row,
}

impl Columns<'_> {
    fn get<'r, T>(&'r self, column: &'static str) -> Result<T, Error>
    where
        T: sql::Column<'r>,
    {
        self.row.try_get(column).map_err(|error| bad_column(self.table, &self.id, column)(&error))
    }

    fn parse<T>(&self, column: &'static str) -> Result<T, Error>
    where
        T: FromStr<Err: std::fmt::Display>,
    {
        let text: String = self.get(column)?;
        text.parse().map_err(|error: T::Err| bad_column(self.table, &self.id, column)(&error))
    }

    fn parse_opt<T>(&self, column: &'static str) -> Result<Option<T>, Error>
    where
        T: FromStr<Err: std::fmt::Display>,
    {
        let text: Option<String> = self.get(column)?;
        text.map(|text| text.parse())
            .transpose()
            .map_err(|error: T::Err| bad_column(self.table, &self.id, column)(&error))
    }
}

/// Words of a closed set, in the database and on the wire.
macro_rules! words {
    ($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $variant:ident = $word:literal,)* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum $name { $($(#[$vdoc])* $variant,)* }

        impl $name {
            /// All of them.
            pub const ALL: &'static [Self] = &[$(Self::$variant),*];

            /// The word.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word,)* }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.as_str())
            }
        }

        impl std::str::FromStr for $name {
            type Err = String;

            fn from_str(text: &str) -> Result<Self, String> {
                match text {
                    $($word => Ok(Self::$variant),)*
                    other => Err(format!("`{other}` is none of {}", [$($word),*].join(", "))),
                }
            }
        }

        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(self.as_str())
            }
        }
    };
}
pub(crate) use words;
