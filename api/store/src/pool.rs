//! The database: a pool for writing, a pool for reading, and the rows in memory.
//!
//! SQLite: one process, with one connection that writes and a pool that reads. It uses the WAL, enforces foreign keys
//! and syncs every commit to disk. PostgreSQL: one pool, and any number of processes.

use std::fs::File;
use std::io::ErrorKind;
use std::path::Path;
use std::str::FromStr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Duration;

use hotslot_model::id::EventId;
use hotslot_model::overdue::OverdueElsewhere;
use hotslot_model::quota::Limits;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};
use tokio::sync::{Mutex, watch};

use crate::cache::DeviceCache;
use crate::error::Error;
use crate::executor::Executor;
use crate::locks::Locks;
use crate::password;
use crate::sql::query;
use crate::url::is_postgres;
use crate::writer::{Kept, Pool, Transaction, Writer, Written};

/// The time for which a connection to SQLite waits while another one writes.
pub(crate) const SQLITE_PATIENCE: Duration = Duration::from_secs(10);

/// The time in milliseconds after which PostgreSQL ends a transaction in which a process does nothing.
pub(crate) const STALLED: &str = "5000";

/// The largest number of connections of a process to PostgreSQL, without the one for its locks. One of them listens for
/// notifications.
const POSTGRES_CONNECTIONS: u32 = 8;

/// The time limit for connecting to PostgreSQL.
const POSTGRES_PATIENCE: Duration = Duration::from_secs(5);

/// The open database.
#[derive(Debug, Clone)]
pub struct Store {
    pub(crate) write: Pool,
    pub(crate) read: Pool,
    /// The connection that writes. This process has one writer at a time.
    pub(crate) turn: Arc<Mutex<Writer>>,
    pub(crate) rows: Arc<RwLock<DeviceCache>>,
    /// The overdue calls of other processes.
    pub(crate) overdue: Arc<RwLock<Vec<OverdueElsewhere>>>,
    /// The last committed event that is known to this process.
    pub(crate) last_event: Arc<watch::Sender<EventId>>,
    /// Whether a commit has failed since the flag was last read. Such a commit may have taken effect.
    pub(crate) in_doubt: Arc<AtomicBool>,
    pub(crate) locks: Locks,
    /// The limits of projects for which none were set.
    pub(crate) default_limits: Arc<Limits>,
    /// The lock of a SQLite file, held while the database is open, so that only one service uses the file.
    _lock: Option<Arc<File>>,
}

/// Adds to a failure of TLS what to check.
fn not_connected(error: sqlx::Error) -> Error {
    // rustls reports a certificate that it refuses as invalid data.
    let refused = |error: &sqlx::Error| matches!(error, sqlx::Error::Io(error) if error.kind() == ErrorKind::InvalidData);
    let of_tls = matches!(error, sqlx::Error::Tls(_)) || refused(&error);
    if !of_tls {
        return error.into();
    }
    Error::Invalid(format!(
        "[database] url: there is no TLS connection to PostgreSQL: {error}; the server needs `ssl = on`, sslrootcert \
         in the URL must name the authority that signed its certificate unless this system trusts it, and the host in \
         the URL must be a name of the certificate"
    ))
}

impl Store {
    /// Opens the database of a `sqlite://` or `postgres://` URL and runs the migrations. Creates the SQLite file if it
    /// does not exist. `lock` is the lock of a SQLite file, which is held while the database is open.
    ///
    /// # Errors
    /// Returns the error of the database or of a migration.
    pub async fn open(url: &str, lock: Option<File>) -> Result<Self, Error> {
        let migrations = sqlx::migrate!("./migrations");
        let (write, read, locks) = if is_postgres(url) {
            let options = password::keep(PgConnectOptions::from_str(url)?).await?.application_name("hotslot");
            let options = options.options([("idle_in_transaction_session_timeout", STALLED)]);
            let pool = PgPoolOptions::new()
                .max_connections(POSTGRES_CONNECTIONS)
                .acquire_timeout(POSTGRES_PATIENCE)
                .connect_with(options.clone())
                .await
                .map_err(not_connected)?;
            migrations.run(&pool).await.map_err(sqlx::Error::from)?;
            let locks = Locks::of(options).await?;
            (Pool::Postgres(pool.clone()), Pool::Postgres(pool), locks)
        } else {
            return Self::open_file(SqliteConnectOptions::from_str(url)?, lock).await;
        };
        Self::opened(write, read, locks, lock).await
    }

    /// Opens the SQLite file of the given options, as [`open`](Self::open) does.
    pub(crate) async fn open_file(options: SqliteConnectOptions, lock: Option<File>) -> Result<Self, Error> {
        let migrations = sqlx::migrate!("./migrations");
        let options = options
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .foreign_keys(true)
            // KiB for each connection. A small cache suffices, because rows that are read often are in memory.
            .pragma("cache_size", "-256")
            .busy_timeout(SQLITE_PATIENCE);
        // One connection writes. After a failure it may not be closed yet when the next one is opened. A connection to a file
        // does not break while it is idle, so it is not tested.
        let pool = || SqlitePoolOptions::new().test_before_acquire(false);
        let write = pool().max_connections(2).connect_with(options.clone()).await?;
        migrations.run(&write).await.map_err(sqlx::Error::from)?;
        let read = pool().max_connections(4).connect_with(options.read_only(true)).await?;
        let (write, read) = (Pool::Sqlite(Kept::new(write)), Pool::Sqlite(Kept::new(read)));
        Self::opened(write, read, Locks::default(), lock).await
    }

    async fn opened(write: Pool, read: Pool, locks: Locks, lock: Option<File>) -> Result<Self, Error> {
        let (rows, overdue, in_doubt) = Default::default();
        let turn = Arc::new(Mutex::new(Writer::new(write.clone())));
        let (lock, last_event) = (lock.map(Arc::new), Arc::new(watch::Sender::new(EventId(0))));
        let store = Self {
            write,
            read,
            turn,
            rows,
            overdue,
            last_event,
            in_doubt,
            locks,
            default_limits: Arc::default(),
            _lock: lock,
        };
        store.heard_of(store.event_bounds().await?.last);
        store.read_devices().await?;
        store.read_overdue(Executor::Pool(&store.read)).await?;
        Ok(store)
    }

    /// Opens the SQLite database of a URL as [`open`](Self::open) does, but at `file`, the path without links.
    ///
    /// # Errors
    /// Returns the error of the database or of a migration.
    pub async fn open_at(url: &str, file: &Path, lock: Option<File>) -> Result<Self, Error> {
        Self::open_file(SqliteConnectOptions::from_str(url)?.filename(file), lock).await
    }

    /// Returns the store with the limits that apply to projects for which none were set. Without this call they have no
    /// limits.
    pub fn with_default_limits(self, limits: Limits) -> Self {
        Self { default_limits: Arc::new(limits), ..self }
    }

    /// Whether other processes can use the same database.
    pub fn is_shared(&self) -> bool {
        matches!(self.write, Pool::Postgres(_))
    }

    /// Returns the locks between the processes that use the database.
    pub fn locks(&self) -> Locks {
        self.locks.clone()
    }

    /// Begins a transaction that writes. Only one exists at a time, so the rows that it reads do not change before it
    /// writes them. Fails for work that began under a process id which other processes have removed from the record,
    /// because they have taken over that work.
    pub(crate) async fn begin(&self) -> Result<Transaction, Error> {
        let turn = Arc::clone(&self.turn).lock_owned().await;
        let mut tx = Transaction::begin(turn).await?;
        self.is_on_record(&mut tx).await?;
        Ok(tx)
    }

    /// Returns whether a commit has failed since the last call. The connection may have broken after the database had
    /// committed. Then the database has rows although the writer got an error.
    pub fn was_in_doubt(&self) -> bool {
        self.in_doubt.swap(false, Ordering::Relaxed)
    }

    pub(crate) fn rows(&self) -> RwLockReadGuard<'_, DeviceCache> {
        self.rows.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn rows_mut(&self) -> RwLockWriteGuard<'_, DeviceCache> {
        self.rows.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Checks that the database answers.
    ///
    /// # Errors
    /// Returns the error of the database.
    pub async fn ping(&self) -> Result<(), Error> {
        query("SELECT 1").execute(&self.read).await?;
        Ok(())
    }

    /// Checks that the database accepts a commit.
    ///
    /// # Errors
    /// Returns the error of the database.
    pub async fn try_to_write(&self) -> Result<(), Error> {
        let mut tx = self.begin().await?;
        query("UPDATE event_ids SET last = last").execute(&mut tx).await?;
        self.commit(tx, Written::default()).await
    }

    /// Closes the database.
    pub async fn close(&self) {
        if let Err(error) = self.leave().await {
            tracing::warn!(%error, "this process is still on record, so other processes will treat it as crashed");
        }
        self.read.close().await;
        self.end_soon().await;
        self.turn.lock().await.release();
        self.write.close().await;
    }
}
