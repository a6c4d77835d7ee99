//! Locks between processes.
//!
//! On PostgreSQL each is an advisory lock of one connection, which a process keeps for nothing else: when it dies,
//! the connection goes, and with it all that it held. On SQLite there is one process, and nobody to ask. Within a
//! process a name must be locked once at a time; `locks.rs` sees to that.
//!
//! A connection may break while its process lives: then it is made anew, with all its locks. Nobody else gets one
//! before that, for a lock is given only while each process on record has the one that says that it is alive; one
//! that does not come back is taken off the record (`others.rs`). A process that finds itself taken off the record has
//! lost all its locks, whoever has them by now. It goes on under a new id, and what it began under the old one can
//! change nothing any more: no transaction ([`Store::begin`](super::Store)) and nothing on a host (`fence.rs`).
//!
//! PostgreSQL ends the connection of a process that stands still: it says each second that it is alive.

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

/// How often a lock that another process holds is tried again.
const AGAIN: Duration = Duration::from_millis(20);

/// How often PostgreSQL is told that this process is alive, when there is nothing else to say.
const BEAT: Duration = Duration::from_secs(1);

/// How long PostgreSQL may take for an answer about locks: whoever comes next waits for it too.
const PATIENCE: Duration = Duration::from_secs(3);

/// What the codes begin with by which PostgreSQL says that it ends a connection.
const SHUTDOWN: &str = "57P";

/// PostgreSQL gives up the connection of a machine that went silent after 5 + 3 * 2 seconds, and that of a process that
/// says nothing after 5 seconds.
const KEEPALIVE: [(&str, &str); 4] = [
    ("tcp_keepalives_idle", "5"),
    ("tcp_keepalives_interval", "2"),
    ("tcp_keepalives_count", "3"),
    ("idle_session_timeout", "5000"),
];

/// Where locks are to be had.
#[derive(Debug, Clone, Default)]
pub struct Locks(Option<Shared>);

#[derive(Debug, Clone)]
struct Shared {
    keeper: mpsc::UnboundedSender<Ask>,
    /// This process, as it is on record now.
    process: watch::Receiver<Arc<Process>>,
}

/// A lock, given back when it is dropped.
#[derive(Debug)]
#[must_use]
pub struct Held {
    name: String,
    /// The process that it was given to: under another id this process has it no more.
    worker: Arc<str>,
    keeper: Option<mpsc::UnboundedSender<Ask>>,
}

impl Drop for Held {
    fn drop(&mut self) {
        if let Some(keeper) = &self.keeper {
            // Nobody keeps it only when the service ends.
            let _ = keeper.send(Ask::Free(std::mem::take(&mut self.name), Arc::clone(&self.worker)));
        }
    }
}

#[derive(Debug)]
enum Ask {
    Try(Held, oneshot::Sender<sqlx::Result<Option<Held>>>),
    Free(String, Arc<str>),
    Has(String, Arc<str>, oneshot::Sender<sqlx::Result<bool>>),
    Is(Arc<str>, oneshot::Sender<sqlx::Result<bool>>),
    Settled(oneshot::Sender<sqlx::Result<bool>>),
    Idle(oneshot::Sender<sqlx::Result<bool>>),
    Elsewhere(Vec<String>, oneshot::Sender<sqlx::Result<HashSet<String>>>),
}

impl Locks {
    /// Locks of a PostgreSQL database, in which this process goes on record.
    ///
    /// # Errors
    /// The database's.
    pub(super) async fn of(options: PgConnectOptions) -> Result<Self, Error> {
        let (keeper, asked) = mpsc::unbounded_channel();
        let options = options.application_name("hotslot locks").options(KEEPALIVE);
        let (told, process) = watch::channel(Arc::new(Process::this()));
        let keeps = Keeper {
            options,
            connection: None,
            sessions: Vec::new(),
            process: told,
            registered: false,
            held: HashSet::new(),
        };
        tokio::spawn(keeps.serve(asked));
        let locks = Self(Some(Shared { keeper, process }));
        locks.settled().await?;
        Ok(locks)
    }

    /// This process, as it is on record; none when there can be no others.
    pub(super) fn process(&self) -> Option<Arc<Process>> {
        self.0.as_ref().map(|shared| Arc::clone(&shared.process.borrow()))
    }

    /// Whether this process is on record under an id, and so has all that it was given under it.
    ///
    /// # Errors
    /// The database's.
    pub async fn is(&self, worker: Arc<str>) -> Result<bool, Error> {
        match &self.0 {
            None => Ok(true),
            Some(shared) => ask(shared, |answer| Ask::Is(worker, answer)).await,
        }
    }

    /// Takes a lock; none when another process has it, or may be about to have it back.
    ///
    /// # Errors
    /// The database's.
    pub async fn try_lock(&self, name: String) -> Result<Option<Held>, Error> {
        let Some(shared) = &self.0 else { return Ok(Some(Held { name, worker: "".into(), keeper: None })) };
        let worker = Arc::clone(&shared.process.borrow().id);
        let held = Held { name, worker, keeper: Some(shared.keeper.clone()) };
        ask(shared, |answer| Ask::Try(held, answer)).await
    }

    /// Waits until no other process has a lock, and takes it.
    ///
    /// # Errors
    /// The database's.
    pub async fn lock(&self, name: String) -> Result<Held, Error> {
        loop {
            if let Some(held) = self.try_lock(name.clone()).await? {
                return Ok(held);
            }
            tokio::time::sleep(AGAIN).await;
        }
    }

    /// Whether a lock is still had: when its connection broke, another process may have taken it.
    ///
    /// # Errors
    /// The database's.
    pub async fn has(&self, held: &Held) -> Result<bool, Error> {
        match &self.0 {
            None => Ok(true),
            Some(shared) => {
                ask(shared, |answer| Ask::Has(held.name.clone(), Arc::clone(&held.worker), answer)).await
            }
        }
    }

    /// Whether each process on record has its locks, so that one that nobody has may be taken.
    ///
    /// # Errors
    /// The database's.
    pub async fn settled(&self) -> Result<bool, Error> {
        match &self.0 {
            None => Ok(true),
            Some(shared) => ask(shared, Ask::Settled).await,
        }
    }

    /// Whether this process has no lock but that by which it is known to be alive.
    ///
    /// # Errors
    /// None but that the service has ended.
    pub(super) async fn idle(&self) -> Result<bool, Error> {
        match &self.0 {
            None => Ok(true),
            Some(shared) => ask(shared, Ask::Idle).await,
        }
    }

    /// Those of some locks that other processes have.
    ///
    /// # Errors
    /// The database's.
    pub async fn elsewhere(&self, names: Vec<String>) -> Result<HashSet<String>, Error> {
        match &self.0 {
            Some(shared) if !names.is_empty() => ask(shared, |answer| Ask::Elsewhere(names, answer)).await,
            _ => Ok(HashSet::new()),
        }
    }
}

async fn ask<T>(
    shared: &Shared,
    ask: impl FnOnce(oneshot::Sender<sqlx::Result<T>>) -> Ask,
) -> Result<T, Error> {
    let (answer, answered) = oneshot::channel();
    shared.keeper.send(ask(answer)).map_err(|_| sqlx::Error::WorkerCrashed)?;
    Ok(answered.await.map_err(|_| sqlx::Error::WorkerCrashed)??)
}

/// The one who has the connection.
struct Keeper {
    options: PgConnectOptions,
    connection: Option<PgConnection>,
    /// The sessions of this process that PostgreSQL may still have: one whose connection broke may linger there, and
    /// holds the locks.
    sessions: Vec<Session>,
    process: watch::Sender<Arc<Process>>,
    /// Whether this process was on record under its id.
    registered: bool,
    held: HashSet<String>,
}

/// A session of PostgreSQL. Numbers of processes come again; with its beginning it is one for all times.
#[derive(Clone, PartialEq, Eq)]
struct Session {
    pid: i32,
    began: String,
}

/// Asks the database: by a new connection when the one that there is does not answer.
macro_rules! ask {
    ($keeper:ident, $connection:ident => $question:expr) => {
        loop {
            let fresh = $keeper.connection.is_none();
            let answer = within(PATIENCE, async {
                let $connection = $keeper.connection().await?;
                $question.await
            });
            let answer = answer.await;
            if $keeper.answers(&answer) || fresh {
                break answer;
            }
        }
    };
}

impl Keeper {
    async fn serve(mut self, mut asked: mpsc::UnboundedReceiver<Ask>) {
        loop {
            let ask = match tokio::time::timeout(BEAT, asked.recv()).await {
                Ok(Some(ask)) => ask,
                Ok(None) => return,
                Err(_) => {
                    if let Err(error) = self.is_on_record().await {
                        tracing::debug!(%error, "PostgreSQL cannot be told that this process is alive");
                    }
                    continue;
                }
            };
            // Whoever asked may have gone: what it was given is then dropped, and so given back.
            match ask {
                Ask::Try(mut held, answer) => {
                    let taken = self.take(&held.name).await;
                    held.worker = self.id();
                    if !matches!(taken, Ok(true)) {
                        held.keeper = None;
                    }
                    let answered = taken.map(|taken| taken.then_some(held));
                    let _ = answer.send(answered);
                }
                Ask::Free(name, worker) => {
                    // Under another id it may be somebody else's of this process.
                    if worker == self.id() {
                        self.free(&name).await;
                    }
                }
                Ask::Has(name, worker, answer) => {
                    let on_record = self.is_on_record().await;
                    let has = worker == self.id() && self.held.contains(&name);
                    let _ = answer.send(on_record.map(|()| has));
                }
                Ask::Is(worker, answer) => {
                    let on_record = self.is_on_record().await;
                    let _ = answer.send(on_record.map(|()| worker == self.id()));
                }
                Ask::Settled(answer) => {
                    let _ = answer.send(ask!(self, connection => settled(connection)));
                }
                Ask::Idle(answer) => {
                    let _ = answer.send(Ok(self.held.is_empty()));
                }
                Ask::Elsewhere(names, answer) => {
                    let found = ask!(self, connection => elsewhere(connection, &names));
                    let _ = answer.send(found);
                }
            }
        }
    }

    fn id(&self) -> Arc<str> {
        Arc::clone(&self.process.borrow().id)
    }

    /// Makes sure that this process is on record. When it was taken off, it comes back under a new id.
    async fn is_on_record(&mut self) -> sqlx::Result<()> {
        let id = self.id();
        if !ask!(self, connection => on_record(connection, &id))? {
            self.connection = None;
            ask!(self, connection => connection.ping())?;
        }
        Ok(())
    }

    /// Whether an answer came by a connection that goes on.
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
        // From here on a new connection has it too.
        self.held.insert(name.to_owned());
        if name.starts_with(PROCESS) {
            return Ok(true);
        }
        // Whether another process has lost it is asked when nobody can have it any more.
        match ask!(self, connection => settled(connection)) {
            // Not when this process came back under a new id meanwhile.
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
            tracing::debug!(name, %error, "a lock went with its connection");
        }
    }

    async fn connection(&mut self) -> sqlx::Result<&mut PgConnection> {
        let connection = match self.connection.take() {
            Some(connection) => connection,
            None => self.connect().await?,
        };
        Ok(self.connection.insert(connection))
    }

    /// A new connection, with all locks of the one that broke. As long as this process is on record, nobody else can
    /// have got one of them; when it is not, all are lost, and it goes on record under a new id.
    async fn connect(&mut self) -> sqlx::Result<PgConnection> {
        let mut connection = PgConnection::connect_with(&self.options).await?;
        for session in &self.sessions {
            end(&mut connection, session).await?;
        }
        let session = session(&mut connection).await?;
        self.sessions.push(session.clone());
        let mut names: Vec<_> = self.held.iter().cloned().collect();
        // Last the one by which others know that it has them all.
        names.push(self.id().to_string());
        let mut has_all = true;
        'names: for name in names {
            while !take(&mut connection, &name).await? {
                // Whoever takes this process off the record has the last one for a moment.
                has_all = !self.registered || on_record(&mut connection, &self.id()).await?;
                if !has_all {
                    break 'names;
                }
                tokio::time::sleep(AGAIN).await;
            }
        }
        // Nobody takes it off from here on, for it has the lock that says that it is alive.
        if self.registered && !(has_all && on_record(&mut connection, &self.id()).await?) {
            tracing::error!(
                "other processes have taken this one for dead, and taken over what it was doing: it was away from the \
                 database for too long, or stood still; it goes on with what is asked of it from now on"
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

/// The session of a connection.
async fn session(connection: &mut PgConnection) -> sqlx::Result<Session> {
    let session = sqlx::query_as::<_, (i32, String)>(
        "SELECT pid, CAST(extract(epoch FROM backend_start) AS TEXT) FROM pg_stat_activity
         WHERE pid = pg_backend_pid()",
    );
    let (pid, began) = session.fetch_one(connection).await?;
    Ok(Session { pid, began })
}

/// Ends a session, if it is still there.
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
    // PostgreSQL shows the 64 bits of a lock as two numbers of 32.
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
