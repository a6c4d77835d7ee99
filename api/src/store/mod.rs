//! SQL, one file a table. Statements are static, with `$n`, and mean the same on SQLite and PostgreSQL.
//!
//! SQLite: one connection writes, a pool reads; WAL, foreign keys, every commit synced to disk.

mod adopt;
mod attachments;
mod config;
mod devices;
mod draft;
mod events;
mod hypervisors;
mod idempotency;
#[cfg(test)]
mod tests;
mod webhooks;

use std::fs::File;
use std::str::FromStr;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use sqlx::sqlite::{
    SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteRow, SqliteSynchronous,
};
use sqlx::{Connection as _, SqliteConnection, SqlitePool};
use tokio::sync::{Mutex, watch};

pub use adopt::Adoption;
pub use attachments::{Attachment, Change, InnerAddress, InnerSource, Network, NewAttachment, Settled};
pub use devices::{DevType, Device, DeviceFacts, DeviceStatus, Looked, ScanOutcome};
pub use events::{Event, EventBounds, EventFilter, EventKind, What};
pub use hypervisors::HypervisorRow;
pub use webhooks::DeadLetter;

use crate::error::Error;
use crate::id::EventId;

/// Milliseconds since 1970-01-01 UTC.
pub type Millis = i64;

/// The time now.
pub fn now() -> Millis {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as Millis)
}

/// The database.
#[derive(Debug, Clone)]
pub struct Store {
    write: SqlitePool,
    read: SqlitePool,
    /// Whose turn it is to write.
    turn: Arc<Mutex<()>>,
    rows: Arc<RwLock<devices::Rows>>,
    /// The event that was committed last.
    last_event: Arc<watch::Sender<EventId>>,
    /// Held for as long as the database is open: one service a file.
    _lock: Arc<File>,
}

impl Store {
    /// Opens the database at a `sqlite://` URL, makes it when it is not there, and brings its schema up to date.
    ///
    /// # Errors
    /// What SQLite says of the file, or of a migration.
    pub async fn open(url: &str, lock: File) -> Result<Self, Error> {
        let options = SqliteConnectOptions::from_str(url)?
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .foreign_keys(true)
            .busy_timeout(Duration::from_secs(10));
        // SQLite ends the transaction of a write that fails, and sqlx does not see that: such a connection is no use.
        let usable = |connection: &mut SqliteConnection| !connection.is_in_transaction();
        let write = SqlitePoolOptions::new()
            .max_connections(1)
            .before_acquire(move |connection, _| Box::pin(async move { Ok(usable(connection)) }))
            .connect_with(options.clone())
            .await?;
        sqlx::migrate!("./migrations").run(&write).await.map_err(sqlx::Error::from)?;
        let read = SqlitePoolOptions::new().max_connections(4).connect_with(options.read_only(true)).await?;
        let (turn, rows) = Default::default();
        let last_event = Arc::new(watch::Sender::new(EventId(0)));
        let store = Self { write, read, turn, rows, last_event, _lock: Arc::new(lock) };
        store.last_event.send_replace(store.event_bounds().await?.last);
        store.read_devices().await?;
        Ok(store)
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
        sqlx::query("SELECT 1").execute(&self.read).await?;
        Ok(())
    }

    /// Closes the database; what was committed is on disk.
    pub async fn close(&self) {
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
    row: &'a SqliteRow,
}

impl Columns<'_> {
    fn get<'r, T>(&'r self, column: &'static str) -> Result<T, Error>
    where
        T: sqlx::Decode<'r, sqlx::Sqlite> + sqlx::Type<sqlx::Sqlite>,
    {
        use sqlx::Row as _;
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
