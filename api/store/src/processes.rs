//! The table `processes`, of those that work on one PostgreSQL at once; and how they hear of each other.

use std::sync::Arc;

use hotslot_model::string_enum;
use sqlx::postgres::PgListener;

use crate::actor;
use crate::columns::RowReader;
use crate::error::Error;
use crate::pool::Store;
use crate::process::Process;
use crate::sql::{Pool, Transaction, query};

const CHANNEL: &str = "hotslot";

string_enum! {
    /// What a commit has changed that other processes keep in memory, or wait for.
    Notification {
        /// Devices, and what else events tell of.
        Records = "records",
        /// The rules that came by the API; everything else too, for all that is known.
        Rules = "rules",
        /// Dead letters are to be tried again.
        Letters = "letters",
    }
}

/// What other processes commit, as it comes; what this process commits is heard too.
pub struct Heard(PgListener);

impl Heard {
    /// Waits for the next news. When the connection broke, everything may be new.
    ///
    /// # Errors
    /// The database's.
    pub async fn next(&mut self) -> Result<Notification, Error> {
        let heard = self.0.try_recv().await?;
        Ok(heard.and_then(|heard| heard.payload().parse().ok()).unwrap_or(Notification::Rules))
    }
}

impl Transaction {
    /// Lets other processes know, once this is committed.
    pub(super) async fn tell(&mut self, news: Notification) -> Result<(), Error> {
        if let Self::Postgres(_) = self {
            query("SELECT pg_notify($1, $2)").bind(CHANNEL).bind(news.as_str()).execute(self).await?;
        }
        Ok(())
    }
}

impl Store {
    /// What this process is called in what it writes and locks: by the task that asks, when that has begun under
    /// another id, and so can change nothing any more. None when there can be no others.
    pub fn worker(&self) -> Option<Arc<str>> {
        actor::worker().or_else(|| self.locks.process().map(|process| Arc::clone(&process.id)))
    }

    /// What this process is called now, for a task that begins.
    pub fn new_worker(&self) -> Option<Arc<str>> {
        self.locks.process().map(|process| Arc::clone(&process.id))
    }

    /// Makes sure that a process has not been taken off the record, within a transaction that nobody writes beside.
    ///
    /// # Errors
    /// [`Error::TakenOver`]; the database's.
    pub(super) async fn is_on_record(&self, tx: &mut Transaction) -> Result<(), Error> {
        let Some(worker) = self.worker() else { return Ok(()) };
        let row = query("SELECT id FROM processes WHERE id = $1").bind(&*worker).fetch_optional(tx).await?;
        row.map(drop).ok_or(Error::TakenOver)
    }

    /// Listens to other processes; none when there can be no others.
    ///
    /// # Errors
    /// The database's.
    pub async fn listen(&self) -> Result<Option<Heard>, Error> {
        let Pool::Postgres(pool) = &self.read else { return Ok(None) };
        let mut listener = PgListener::connect_with(pool).await?;
        listener.listen(CHANNEL).await?;
        Ok(Some(Heard(listener)))
    }

    /// The other processes that have ended without having been taken over.
    ///
    /// # Errors
    /// The database's, or a row that cannot be read.
    pub async fn ended(&self) -> Result<Vec<Process>, Error> {
        // A connection that broke is known when it is asked, and made anew.
        let Some(this) = self.locks.process() else { return Ok(Vec::new()) };
        self.locks.is(Arc::clone(&this.id)).await?;
        let Some(this) = self.locks.process() else { return Ok(Vec::new()) };
        let rows = query("SELECT * FROM processes").fetch_all(&self.read).await?;
        let mut others = Vec::new();
        for row in &rows {
            let columns = RowReader { table: "processes", id: row.try_get("id")?, row };
            others.push(Process {
                id: columns.get::<String>("id")?.into(),
                host: columns.get("host")?,
                pid: columns.get("pid")?,
            });
        }
        others.retain(|process| process.id != this.id);
        let names = others.iter().map(|process| process.id.to_string());
        let alive = self.locks.elsewhere(names.collect()).await?;
        others.retain(|other| !alive.contains(&*other.id));
        Ok(others)
    }

    /// Takes this process off the record when it leaves nothing to be taken over.
    pub(super) async fn leave(&self) -> Result<(), Error> {
        match self.locks.process() {
            Some(this) if self.locks.idle().await? => self.forget_process(&this).await,
            Some(_) | None => Ok(()),
        }
    }

    /// Says that what a process left has been taken over.
    ///
    /// # Errors
    /// The database's.
    pub async fn forget_process(&self, process: &Process) -> Result<(), Error> {
        // In turn with all that writes: what it has not committed by now it never will.
        let (_turn, mut tx) = self.begin().await?;
        query("DELETE FROM processes WHERE id = $1").bind(&*process.id).execute(&mut tx).await?;
        let calls = query("DELETE FROM overdue_calls WHERE process = $1").bind(&*process.id);
        if calls.execute(&mut tx).await? > 0 {
            query("UPDATE commits SET seq = seq + 1").execute(&mut tx).await?;
        }
        Ok(tx.commit().await?)
    }
}
