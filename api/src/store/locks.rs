//! Locks between processes.
//!
//! On PostgreSQL each is an advisory lock of one connection, which a process keeps for nothing else: when it dies,
//! the connection goes, and with it all that it held. No clock has a say in it. On SQLite there is one process, and
//! nobody to ask. Within a process a name must be locked once at a time; `busy.rs` sees to that.

use std::collections::HashSet;
use std::time::Duration;

use sqlx::postgres::PgConnectOptions;
use sqlx::{Connection as _, PgConnection};
use tokio::sync::{mpsc, oneshot};

use crate::error::Error;

/// How often a lock that another process holds is tried again.
const AGAIN: Duration = Duration::from_millis(20);

/// How often, so spaced, a lock of a connection that broke is tried to be had back: PostgreSQL may not know yet that
/// the connection is gone.
const BACK: u32 = 100;

/// What the locks begin with by which others know that a process is alive.
pub(super) const PROCESS: &str = "process ";

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

    /// Takes a lock; none when another process has it.
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

impl Keeper {
    async fn serve(mut self, mut asked: mpsc::UnboundedReceiver<Ask>) {
        while let Some(ask) = asked.recv().await {
            // Whoever asked may have gone: what it was given is then dropped, and so given back.
            match ask {
                Ask::Try(mut held, answer) => {
                    let answered = match self.take(&held.name).await {
                        Ok(true) => {
                            self.held.insert(held.name.clone());
                            Ok(Some(held))
                        }
                        refused => {
                            held.keeper = None;
                            refused.map(|_| None)
                        }
                    };
                    let _ = answer.send(answered);
                }
                Ask::Free(name) => {
                    if self.held.remove(&name)
                        && let Err(error) = self.free(&name).await
                    {
                        tracing::debug!(name, %error, "a lock went with its connection");
                    }
                }
                Ask::Has(name, answer) => {
                    let alive = self.alive().await;
                    let _ = answer.send(alive.map(|()| self.held.contains(&name)));
                }
                Ask::Elsewhere(names, answer) => {
                    let _ = answer.send(self.elsewhere(&names).await);
                }
            }
        }
    }

    /// The connection; a new one has all locks of the one that broke, but for those that others have taken.
    async fn connection(&mut self) -> sqlx::Result<&mut PgConnection> {
        let connection = match self.connection.take() {
            Some(connection) => connection,
            None => {
                let mut connection = PgConnection::connect_with(&self.options).await?;
                let mut names: Vec<_> = self.held.iter().cloned().collect();
                // Last the one by which others know that this process is alive.
                names.sort_by_key(|name| name.starts_with(PROCESS));
                for name in names {
                    let mut tries = 0;
                    while !take(&mut connection, &name).await? {
                        tries += 1;
                        if tries == BACK {
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

    /// A connection that does not answer is of no more use.
    fn noted<T>(&mut self, answered: sqlx::Result<T>) -> sqlx::Result<T> {
        if answered.as_ref().is_err_and(|error| error.as_database_error().is_none()) {
            self.connection = None;
        }
        answered
    }

    async fn alive(&mut self) -> sqlx::Result<()> {
        let alive = sqlx::query("SELECT 1").execute(self.connection().await?).await;
        self.noted(alive.map(drop))
    }

    async fn take(&mut self, name: &str) -> sqlx::Result<bool> {
        let taken = take(self.connection().await?, name).await;
        self.noted(taken)
    }

    async fn free(&mut self, name: &str) -> sqlx::Result<()> {
        let freed = sqlx::query("SELECT pg_advisory_unlock(hashtextextended($1, 0))")
            .bind(name)
            .execute(self.connection().await?)
            .await;
        self.noted(freed.map(drop))
    }

    async fn elsewhere(&mut self, names: &[String]) -> sqlx::Result<HashSet<String>> {
        // PostgreSQL shows the 64 bits of a lock as two numbers of 32.
        let held = sqlx::query_scalar(
            "SELECT name FROM unnest($1::text[]) AS name
             JOIN pg_locks ON ((classid::bigint << 32) | objid::bigint) = hashtextextended(name, 0)
             WHERE locktype = 'advisory' AND objsubid = 1 AND granted AND pid <> pg_backend_pid()
                 AND database = (SELECT oid FROM pg_database WHERE datname = current_database())",
        )
        .bind(names)
        .fetch_all(self.connection().await?)
        .await;
        self.noted(held.map(|names: Vec<String>| names.into_iter().collect()))
    }
}

async fn take(connection: &mut PgConnection, name: &str) -> sqlx::Result<bool> {
    sqlx::query_scalar("SELECT pg_try_advisory_lock(hashtextextended($1, 0))")
        .bind(name)
        .fetch_one(connection)
        .await
}
