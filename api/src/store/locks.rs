//! Locks between processes.
//!
//! On PostgreSQL each is an advisory lock of one connection, which a process keeps for nothing else: when it dies,
//! the connection goes, and with it all that it held. On SQLite there is one process, and nobody to ask. Within a
//! process a name must be locked once at a time; `busy.rs` sees to that.
//!
//! A connection may break while its process lives: then it is made anew, with all its locks. Nobody else gets one
//! before that, for a lock is given only while each process on record has the one that says that it is alive; one
//! that does not come back is taken off the record (`others.rs`).

use std::collections::HashSet;
use std::time::Duration;

use sqlx::postgres::PgConnectOptions;
use sqlx::{Connection as _, PgConnection};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::sql::within;
use crate::error::Error;

/// How often a lock that another process holds is tried again.
const AGAIN: Duration = Duration::from_millis(20);

/// How long the locks of a connection that broke are tried to be had back: PostgreSQL may not know yet that the
/// connection is gone.
const BACK: Duration = Duration::from_secs(2);

/// How long PostgreSQL may take for an answer about locks: whoever comes next waits for it too.
const PATIENCE: Duration = Duration::from_secs(3);

/// What the locks begin with by which others know that a process is alive.
pub(super) const PROCESS: &str = "process ";

/// What the codes begin with by which PostgreSQL says that it ends a connection.
const SHUTDOWN: &str = "57P";

/// PostgreSQL gives up the connection of a machine that went silent after 5 + 3 * 2 seconds.
const KEEPALIVE: [(&str, &str); 3] =
    [("tcp_keepalives_idle", "5"), ("tcp_keepalives_interval", "2"), ("tcp_keepalives_count", "3")];

/// Where locks are to be had.
#[derive(Debug, Clone, Default)]
pub struct Locks(Option<mpsc::UnboundedSender<Ask>>);

/// A lock, given back when it is dropped.
#[derive(Debug)]
#[must_use]
pub struct Held {
    name: String,
    keeper: Option<mpsc::UnboundedSender<Ask>>,
}

impl Drop for Held {
    fn drop(&mut self) {
        if let Some(keeper) = &self.keeper {
            // Nobody keeps it only when the service ends.
            let _ = keeper.send(Ask::Free(std::mem::take(&mut self.name)));
        }
    }
}

#[derive(Debug)]
enum Ask {
    Try(Held, oneshot::Sender<sqlx::Result<Option<Held>>>),
    Free(String),
    Has(String, oneshot::Sender<sqlx::Result<bool>>),
    Settled(oneshot::Sender<sqlx::Result<bool>>),
    Idle(oneshot::Sender<sqlx::Result<bool>>),
    Elsewhere(Vec<String>, oneshot::Sender<sqlx::Result<HashSet<String>>>),
}

impl Locks {
    /// Locks of a PostgreSQL database.
    pub(super) fn of(options: PgConnectOptions) -> Self {
        let (asks, asked) = mpsc::unbounded_channel();
        let options = options.application_name("hotslot locks").options(KEEPALIVE);
        let keeper = Keeper { options, connection: None, held: HashSet::new() };
        tokio::spawn(keeper.serve(asked));
        Self(Some(asks))
    }

    /// Takes a lock; none when another process has it, or may be about to have it back.
    ///
    /// # Errors
    /// The database's.
    pub async fn try_lock(&self, name: String) -> Result<Option<Held>, Error> {
        let held = Held { name, keeper: self.0.clone() };
        match &self.0 {
            None => Ok(Some(held)),
            Some(keeper) => ask(keeper, |answer| Ask::Try(held, answer)).await,
        }
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
            Some(keeper) => ask(keeper, |answer| Ask::Has(held.name.clone(), answer)).await,
        }
    }

    /// Whether each process on record has its locks, so that one that nobody has may be taken.
    ///
    /// # Errors
    /// The database's.
    pub async fn settled(&self) -> Result<bool, Error> {
        match &self.0 {
            None => Ok(true),
            Some(keeper) => ask(keeper, Ask::Settled).await,
        }
    }

    /// Whether this process has no lock but that by which it is known to be alive.
    ///
    /// # Errors
    /// None but that the service has ended.
    pub(super) async fn idle(&self) -> Result<bool, Error> {
        match &self.0 {
            None => Ok(true),
            Some(keeper) => ask(keeper, Ask::Idle).await,
        }
    }

    /// Those of some locks that other processes have.
    ///
    /// # Errors
    /// The database's.
    pub async fn elsewhere(&self, names: Vec<String>) -> Result<HashSet<String>, Error> {
        match &self.0 {
            Some(keeper) if !names.is_empty() => ask(keeper, |answer| Ask::Elsewhere(names, answer)).await,
            _ => Ok(HashSet::new()),
        }
    }
}

async fn ask<T>(
    keeper: &mpsc::UnboundedSender<Ask>,
    ask: impl FnOnce(oneshot::Sender<sqlx::Result<T>>) -> Ask,
) -> Result<T, Error> {
    let (answer, answered) = oneshot::channel();
    keeper.send(ask(answer)).map_err(|_| sqlx::Error::WorkerCrashed)?;
    Ok(answered.await.map_err(|_| sqlx::Error::WorkerCrashed)??)
}

/// The one who has the connection.
struct Keeper {
    options: PgConnectOptions,
    connection: Option<PgConnection>,
    held: HashSet<String>,
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
        while let Some(ask) = asked.recv().await {
            // Whoever asked may have gone: what it was given is then dropped, and so given back.
            match ask {
                Ask::Try(mut held, answer) => {
                    let taken = self.take(&held.name).await;
                    if !matches!(taken, Ok(true)) {
                        held.keeper = None;
                    }
                    let answered = taken.map(|taken| taken.then_some(held));
                    let _ = answer.send(answered);
                }
                Ask::Free(name) => self.free(&name).await,
                Ask::Has(name, answer) => {
                    let alive = ask!(self, connection => connection.ping());
                    let _ = answer.send(alive.map(|()| self.held.contains(&name)));
                }
                Ask::Settled(answer) => {
                    let _ = answer.send(ask!(self, connection => settled(connection)));
                }
                Ask::Idle(answer) => {
                    let _ = answer.send(Ok(self.held.iter().all(|name| name.starts_with(PROCESS))));
                }
                Ask::Elsewhere(names, answer) => {
                    let found = ask!(self, connection => elsewhere(connection, &names));
                    let _ = answer.send(found);
                }
            }
        }
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

    /// The connection; a new one has all locks of the one that broke, but for those that others have taken.
    async fn connection(&mut self) -> sqlx::Result<&mut PgConnection> {
        let connection = match self.connection.take() {
            Some(connection) => connection,
            None => {
                let mut connection = PgConnection::connect_with(&self.options).await?;
                let mut names: Vec<_> = self.held.iter().cloned().collect();
                // Last the one by which others know that it has them all.
                names.sort_by_key(|name| name.starts_with(PROCESS));
                let since = Instant::now();
                for name in names {
                    while !take(&mut connection, &name).await? {
                        if since.elapsed() > BACK && !name.starts_with(PROCESS) {
                            tracing::error!(
                                name,
                                "another process has taken over {name} while the database was away"
                            );
                            self.held.remove(&name);
                            break;
                        }
                        tokio::time::sleep(AGAIN).await;
                    }
                }
                connection
            }
        };
        Ok(self.connection.insert(connection))
    }
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
