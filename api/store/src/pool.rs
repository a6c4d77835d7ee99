//! The database: one pool that writes and one that reads, and what is in memory of it.
//!
//! SQLite: one process, of which one connection writes and a pool reads; WAL, foreign keys, every commit synced to
//! disk. PostgreSQL: one pool, and as many processes as there are.

use std::fs::File;
use std::path::Path;
use std::str::FromStr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Duration;

use hotslot_model::id::EventId;
use hotslot_model::overdue::OverdueElsewhere;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};
use sqlx::{Connection as _, SqliteConnection};
use tokio::sync::{Mutex, OwnedMutexGuard, watch};

use crate::cache::DeviceCache;
use crate::error::Error;
use crate::locks::Locks;
use crate::sql::{Executor, Pool, Transaction, query};
use crate::url::is_postgres;

/// How long a connection to SQLite waits while another one writes.
pub(crate) const SQLITE_PATIENCE: Duration = Duration::from_secs(10);

/// Milliseconds after which PostgreSQL takes the turn to write from a process that stands still in the middle of it.
pub(crate) const STALLED: &str = "5000";

/// The most connections that a process keeps to PostgreSQL, beside the one of its locks. One of them listens.
const POSTGRES_CONNECTIONS: u32 = 8;

/// How long it is tried to connect to a PostgreSQL that does not answer.
const POSTGRES_PATIENCE: Duration = Duration::from_secs(5);

/// The database.
#[derive(Debug, Clone)]
pub struct Store {
    pub(crate) write: Pool,
    pub(crate) read: Pool,
    /// Whose turn it is to write.
    pub(crate) turn: Arc<Mutex<()>>,
    pub(crate) rows: Arc<RwLock<DeviceCache>>,
    /// The calls of other processes that have not returned.
    pub(crate) overdue: Arc<RwLock<Vec<OverdueElsewhere>>>,
    /// The event that was committed last, as far as it is known here.
    pub(crate) last_event: Arc<watch::Sender<EventId>>,
    /// Whether a commit failed since this was last asked: it may have taken effect all the same.
    pub(crate) in_doubt: Arc<AtomicBool>,
    pub(crate) locks: Locks,
    /// Held for as long as the database is open: one service a file.
    _lock: Option<Arc<File>>,
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
    pub(crate) async fn open_file(options: SqliteConnectOptions, lock: Option<File>) -> Result<Self, Error> {
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
        let (turn, rows, overdue, in_doubt) = Default::default();
        let (lock, last_event) = (lock.map(Arc::new), Arc::new(watch::Sender::new(EventId(0))));
        let store = Self { write, read, turn, rows, overdue, last_event, in_doubt, locks, _lock: lock };
        store.heard_of(store.event_bounds().await?.last);
        store.read_devices().await?;
        store.read_overdue(Executor::Pool(&store.read)).await?;
        Ok(store)
    }

    /// [`open`](Self::open) of the SQLite database of a URL, at the file that [`sqlite_file`](crate::sqlite_file) found for it.
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
    pub(crate) async fn begin(&self) -> Result<(OwnedMutexGuard<()>, Transaction), Error> {
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

    pub(crate) fn rows(&self) -> RwLockReadGuard<'_, DeviceCache> {
        self.rows.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn rows_mut(&self) -> RwLockWriteGuard<'_, DeviceCache> {
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
