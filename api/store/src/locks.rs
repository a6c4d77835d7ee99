//! Locks between processes.
//!
//! On PostgreSQL each lock is an advisory lock on a connection that a process uses for locks only. When the process
//! dies, PostgreSQL closes the connection and releases its locks. On SQLite there is only one process, and every lock
//! is free. A process must lock a name only once at a time; `locks.rs` of the service ensures that.
//!
//! When the connection breaks while the process lives, the process reconnects and takes all its locks again. No other
//! process can take one of them before: a lock is only given out while every process on record holds the lock that
//! shows that it is alive. A process that does not reconnect is removed from the record by the others (`peers.rs` of
//! the service). A process that finds itself removed has lost all its locks. It continues under a new id, and the work
//! that it began under the old id can change nothing, neither in the database ([`Store::begin`](super::Store)) nor on a
//! host (`fence.rs`).
//!
//! Each process sends a query every second, and PostgreSQL ends the connection of a process that hangs.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use sqlx::postgres::PgConnectOptions;
use sqlx::{Connection as _, PgConnection};
use tokio::sync::{mpsc, oneshot, watch};

use crate::clock::now;
use crate::error::Error;
use crate::process::{PROCESS, Process};
use crate::sql::within;

/// The interval at which a lock that another process holds is tried again.
const RETRY_INTERVAL: Duration = Duration::from_millis(20);

/// The interval of the queries that keep the connection alive when there are no requests.
const HEARTBEAT: Duration = Duration::from_secs(1);

/// The time limit for an answer of PostgreSQL about locks. Later requests wait for it too.
const ANSWER_LIMIT: Duration = Duration::from_secs(3);

/// The prefix of the SQLSTATE codes with which PostgreSQL ends a connection.
const SHUTDOWN: &str = "57P";

/// PostgreSQL ends the connection of a machine that is unreachable after 5 + 3 * 2 seconds, and that of a process that
/// sends no query after 5 seconds.
const KEEPALIVE: [(&str, &str); 4] = [
    ("tcp_keepalives_idle", "5"),
    ("tcp_keepalives_interval", "2"),
    ("tcp_keepalives_count", "3"),
    ("idle_session_timeout", "5000"),
];

/// A handle for taking locks.
#[derive(Debug, Clone, Default)]
pub struct Locks(Option<Shared>);

#[derive(Debug, Clone)]
struct Shared {
    keeper: mpsc::UnboundedSender<Request>,
    /// The current row of this process.
    process: watch::Receiver<Arc<Process>>,
}

/// A lock. Dropping it releases it.
#[derive(Debug)]
#[must_use]
pub struct Held {
    name: String,
    /// The process id under which the lock was taken. When this process gets another id, it no longer has the lock.
    worker: Arc<str>,
    keeper: Option<mpsc::UnboundedSender<Request>>,
}

impl Drop for Held {
    fn drop(&mut self) {
        if let Some(keeper) = &self.keeper {
            // Sending fails only when the service ends.
            let _ = keeper.send(Request::Free(std::mem::take(&mut self.name), Arc::clone(&self.worker)));
        }
    }
}

#[derive(Debug)]
enum Request {
    Try(Held, oneshot::Sender<sqlx::Result<Option<Held>>>),
    Free(String, Arc<str>),
    Has(String, Arc<str>, oneshot::Sender<sqlx::Result<bool>>),
    Is(Arc<str>, oneshot::Sender<sqlx::Result<bool>>),
    Settled(oneshot::Sender<sqlx::Result<bool>>),
    Idle(oneshot::Sender<sqlx::Result<bool>>),
    Elsewhere(Vec<String>, oneshot::Sender<sqlx::Result<HashSet<String>>>),
}

impl Locks {
    /// Opens the locks of a PostgreSQL database, and adds this process to the record.
    ///
    /// # Errors
    /// Returns the error of the database.
    pub(super) async fn of(options: PgConnectOptions) -> Result<Self, Error> {
        let (keeper, requests) = mpsc::unbounded_channel();
        let options = options.application_name("hotslot locks").options(KEEPALIVE);
        let (sender, process) = watch::channel(Arc::new(Process::this()));
        let keeper_task = Keeper {
            options,
            connection: None,
            sessions: Vec::new(),
            process: sender,
            registered: false,
            held: HashSet::new(),
        };
        tokio::spawn(keeper_task.serve(requests));
        let locks = Self(Some(Shared { keeper, process }));
        locks.settled().await?;
        Ok(locks)
    }

    /// Returns the row of this process, or `None` when no other process can use the database.
    pub(super) fn process(&self) -> Option<Arc<Process>> {
        self.0.as_ref().map(|shared| Arc::clone(&shared.process.borrow()))
    }

    /// Whether this process is on record under an id, and so still has the locks that it took under it.
    ///
    /// # Errors
    /// Returns the error of the database.
    pub async fn is(&self, worker: Arc<str>) -> Result<bool, Error> {
        match &self.0 {
            None => Ok(true),
            Some(shared) => ask(shared, |answer| Request::Is(worker, answer)).await,
        }
    }

    /// Takes a lock. Returns `None` when another process has it, or may be about to take it again after reconnecting.
    ///
    /// # Errors
    /// Returns the error of the database.
    pub async fn try_lock(&self, name: String) -> Result<Option<Held>, Error> {
        let Some(shared) = &self.0 else { return Ok(Some(Held { name, worker: "".into(), keeper: None })) };
        let worker = Arc::clone(&shared.process.borrow().id);
        let held = Held { name, worker, keeper: Some(shared.keeper.clone()) };
        ask(shared, |answer| Request::Try(held, answer)).await
    }

    /// Takes a lock, and waits while another process has it.
    ///
    /// # Errors
    /// Returns the error of the database.
    pub async fn lock(&self, name: String) -> Result<Held, Error> {
        loop {
            if let Some(held) = self.try_lock(name.clone()).await? {
                return Ok(held);
            }
            tokio::time::sleep(RETRY_INTERVAL).await;
        }
    }

    /// Whether this process still has a lock. It may have lost the lock when its connection broke.
    ///
    /// # Errors
    /// Returns the error of the database.
    pub async fn has(&self, held: &Held) -> Result<bool, Error> {
        match &self.0 {
            None => Ok(true),
            Some(shared) => {
                ask(shared, |answer| Request::Has(held.name.clone(), Arc::clone(&held.worker), answer)).await
            }
        }
    }

    /// Whether every process on record holds its locks, so that a free lock may be taken.
    ///
    /// # Errors
    /// Returns the error of the database.
    pub async fn settled(&self) -> Result<bool, Error> {
        match &self.0 {
            None => Ok(true),
            Some(shared) => ask(shared, Request::Settled).await,
        }
    }

    /// Whether this process holds no lock except the one that shows that it is alive.
    ///
    /// # Errors
    /// Returns an error only when the service has ended.
    pub(super) async fn idle(&self) -> Result<bool, Error> {
        match &self.0 {
            None => Ok(true),
            Some(shared) => ask(shared, Request::Idle).await,
        }
    }

    /// Returns those of the given locks that other processes hold.
    ///
    /// # Errors
    /// Returns the error of the database.
    pub async fn elsewhere(&self, names: Vec<String>) -> Result<HashSet<String>, Error> {
        match &self.0 {
            Some(shared) if !names.is_empty() => {
                ask(shared, |answer| Request::Elsewhere(names, answer)).await
            }
            _ => Ok(HashSet::new()),
        }
    }
}

async fn ask<T>(
    shared: &Shared,
    request: impl FnOnce(oneshot::Sender<sqlx::Result<T>>) -> Request,
) -> Result<T, Error> {
    let (answer, answered) = oneshot::channel();
    shared.keeper.send(request(answer)).map_err(|_| sqlx::Error::WorkerCrashed)?;
    Ok(answered.await.map_err(|_| sqlx::Error::WorkerCrashed)??)
}

/// The task that owns the connection.
struct Keeper {
    options: PgConnectOptions,
    connection: Option<PgConnection>,
    /// The sessions of this process that PostgreSQL may still have. A session may remain there after its connection
    /// broke, and it holds the locks.
    sessions: Vec<Session>,
    process: watch::Sender<Arc<Process>>,
    /// Whether this process was added to the record under its current id.
    registered: bool,
    held: HashSet<String>,
}

/// A session of PostgreSQL. Process ids are reused, but together with its start time a session is unique.
#[derive(Clone, PartialEq, Eq)]
struct Session {
    pid: i32,
    began: String,
}

/// Runs a query, and repeats it on a new connection when the current one is broken.
macro_rules! ask {
    ($keeper:ident, $connection:ident => $statement:expr) => {
        loop {
            let fresh = $keeper.connection.is_none();
            let answer = within(ANSWER_LIMIT, async {
                let $connection = $keeper.connection().await?;
                $statement.await
            });
            let answer = answer.await;
            if $keeper.answers(&answer) || fresh {
                break answer;
            }
        }
    };
}

impl Keeper {
    async fn serve(mut self, mut requests: mpsc::UnboundedReceiver<Request>) {
        loop {
            let request = match tokio::time::timeout(HEARTBEAT, requests.recv()).await {
                Ok(Some(ask)) => ask,
                Ok(None) => return,
                Err(_) => {
                    if let Err(error) = self.is_on_record().await {
                        tracing::debug!(%error, "cannot reach PostgreSQL to show that this process is alive");
                    }
                    continue;
                }
            };
            // The caller may have been cancelled. Then its lock is dropped, and so released.
            match request {
                Request::Try(mut held, answer) => {
                    let taken = self.take(&held.name).await;
                    held.worker = self.id();
                    if !matches!(taken, Ok(true)) {
                        held.keeper = None;
                    }
                    let answered = taken.map(|taken| taken.then_some(held));
                    let _ = answer.send(answered);
                }
                Request::Free(name, worker) => {
                    // A lock that was taken under another id may now belong to another task of this process.
                    if worker == self.id() {
                        self.free(&name).await;
                    }
                }
                Request::Has(name, worker, answer) => {
                    let on_record = self.is_on_record().await;
                    let has = worker == self.id() && self.held.contains(&name);
                    let _ = answer.send(on_record.map(|()| has));
                }
                Request::Is(worker, answer) => {
                    let on_record = self.is_on_record().await;
                    let _ = answer.send(on_record.map(|()| worker == self.id()));
                }
                Request::Settled(answer) => {
                    let _ = answer.send(ask!(self, connection => settled(connection)));
                }
                Request::Idle(answer) => {
                    let _ = answer.send(Ok(self.held.is_empty()));
                }
                Request::Elsewhere(names, answer) => {
                    let found = ask!(self, connection => elsewhere(connection, &names));
                    let _ = answer.send(found);
                }
            }
        }
    }

    fn id(&self) -> Arc<str> {
        Arc::clone(&self.process.borrow().id)
    }

    /// Ensures that this process is on record. If it was removed, adds it again under a new id.
    async fn is_on_record(&mut self) -> sqlx::Result<()> {
        let id = self.id();
        if !ask!(self, connection => on_record(connection, &id))? {
            self.connection = None;
            ask!(self, connection => connection.ping())?;
        }
        Ok(())
    }

    /// Whether the connection still works after an answer. Drops a broken one.
    fn answers<T>(&mut self, answer: &sqlx::Result<T>) -> bool {
        let code = |error: &sqlx::Error| Some(error.as_database_error()?.code()?.into_owned());
        let broken =
            answer.as_ref().is_err_and(|error| code(error).is_none_or(|code| code.starts_with(SHUTDOWN)));
        if broken {
            self.connection = None;
        }
        !broken
    }

    async fn take(&mut self, name: &str) -> sqlx::Result<bool> {
        if !ask!(self, connection => take(connection, name))? {
            return Ok(false);
        }
        // From here on, reconnecting takes this lock again.
        self.held.insert(name.to_owned());
        if name.starts_with(PROCESS) {
            return Ok(true);
        }
        // Check after taking the lock whether another process has lost it with its connection.
        match ask!(self, connection => settled(connection)) {
            // `held` does not have the lock when this process got a new id meanwhile.
            Ok(true) => Ok(self.held.contains(name)),
            other => {
                self.free(name).await;
                other
            }
        }
    }

    async fn free(&mut self, name: &str) {
        if self.held.remove(name)
            && let Err(error) = ask!(self, connection => free(connection, name))
        {
            tracing::debug!(name, %error, "a lock was released with its connection");
        }
    }

    async fn connection(&mut self) -> sqlx::Result<&mut PgConnection> {
        let connection = match self.connection.take() {
            Some(connection) => connection,
            None => self.connect().await?,
        };
        Ok(self.connection.insert(connection))
    }

    /// Opens a new connection and takes all locks of the broken one again. While this process is on record, no other
    /// process can have taken one of them. If it is not on record, all locks are lost, and it is added under a new id.
    async fn connect(&mut self) -> sqlx::Result<PgConnection> {
        let mut connection = PgConnection::connect_with(&self.options).await?;
        for session in &self.sessions {
            end(&mut connection, session).await?;
        }
        let session = session(&mut connection).await?;
        self.sessions.push(session.clone());
        let mut names: Vec<_> = self.held.iter().cloned().collect();
        // Take the lock that shows that this process is alive last: it means that all others are held.
        names.push(self.id().to_string());
        let mut has_all = true;
        'names: for name in names {
            while !take(&mut connection, &name).await? {
                // A process that removes this one from the record holds that lock for a moment.
                has_all = !self.registered || on_record(&mut connection, &self.id()).await?;
                if !has_all {
                    break 'names;
                }
                tokio::time::sleep(RETRY_INTERVAL).await;
            }
        }
        // From here on no process removes this one, because it holds the lock that shows that it is alive.
        if self.registered && !(has_all && on_record(&mut connection, &self.id()).await?) {
            tracing::error!(
                "this process had no connection to the database for too long, and other processes have taken over its \
                 work; it continues with new requests"
            );
            sqlx::query("SELECT pg_advisory_unlock_all()").execute(&mut connection).await?;
            self.held.clear();
            self.registered = false;
            self.process.send_replace(Arc::new(Process::this()));
            take(&mut connection, &self.id()).await?;
        }
        if !self.registered {
            let process = Arc::clone(&self.process.borrow());
            register(&mut connection, &process).await?;
            self.registered = true;
        }
        self.sessions = vec![session];
        Ok(connection)
    }
}

/// Returns the session of a connection.
async fn session(connection: &mut PgConnection) -> sqlx::Result<Session> {
    let session = sqlx::query_as::<_, (i32, String)>(
        "SELECT pid, CAST(extract(epoch FROM backend_start) AS TEXT) FROM pg_stat_activity
         WHERE pid = pg_backend_pid()",
    );
    let (pid, began) = session.fetch_one(connection).await?;
    Ok(Session { pid, began })
}

/// Ends a session if it still exists.
async fn end(connection: &mut PgConnection, session: &Session) -> sqlx::Result<()> {
    let ended = sqlx::query(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
         WHERE pid = $1 AND CAST(extract(epoch FROM backend_start) AS TEXT) = $2",
    );
    ended.bind(session.pid).bind(&session.began).execute(connection).await.map(drop)
}

async fn on_record(connection: &mut PgConnection, id: &str) -> sqlx::Result<bool> {
    let found = sqlx::query_scalar("SELECT EXISTS (SELECT 1 FROM processes WHERE id = $1)");
    found.bind(id).fetch_one(connection).await
}

async fn register(connection: &mut PgConnection, process: &Process) -> sqlx::Result<()> {
    let row = sqlx::query(
        "INSERT INTO processes (id, host, pid, started_at) VALUES ($1, $2, $3, $4) ON CONFLICT (id) DO NOTHING",
    );
    let row = row.bind(&*process.id).bind(&process.host).bind(process.pid).bind(now());
    row.execute(connection).await.map(drop)
}

async fn take(connection: &mut PgConnection, name: &str) -> sqlx::Result<bool> {
    sqlx::query_scalar("SELECT pg_try_advisory_lock(hashtextextended($1, 0))")
        .bind(name)
        .fetch_one(connection)
        .await
}

async fn free(connection: &mut PgConnection, name: &str) -> sqlx::Result<()> {
    let freed = sqlx::query("SELECT pg_advisory_unlock(hashtextextended($1, 0))").bind(name);
    freed.execute(connection).await.map(drop)
}

async fn settled(connection: &mut PgConnection) -> sqlx::Result<bool> {
    // `pg_locks` shows the 64-bit key of a lock as two 32-bit numbers.
    sqlx::query_scalar(
        "SELECT NOT EXISTS (SELECT 1 FROM processes WHERE hashtextextended(id, 0) NOT IN (
             SELECT (classid::bigint << 32) | objid::bigint FROM pg_locks
             WHERE locktype = 'advisory' AND objsubid = 1 AND granted
                 AND database = (SELECT oid FROM pg_database WHERE datname = current_database())))",
    )
    .fetch_one(connection)
    .await
}

async fn elsewhere(connection: &mut PgConnection, names: &[String]) -> sqlx::Result<HashSet<String>> {
    let held: Vec<String> = sqlx::query_scalar(
        "SELECT name FROM unnest($1::text[]) AS name
         JOIN pg_locks ON ((classid::bigint << 32) | objid::bigint) = hashtextextended(name, 0)
         WHERE locktype = 'advisory' AND objsubid = 1 AND granted AND pid <> pg_backend_pid()
             AND database = (SELECT oid FROM pg_database WHERE datname = current_database())",
    )
    .bind(names)
    .fetch_all(connection)
    .await?;
    Ok(held.into_iter().collect())
}
