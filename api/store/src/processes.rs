//! The table `processes`: the processes that use one PostgreSQL database, and the notifications between them.

use std::sync::Arc;

use hotslot_model::string_enum;
use sqlx::postgres::PgListener;

use crate::actor;
use crate::columns::RowReader;
use crate::error::Error;
use crate::pool::Store;
use crate::process::Process;
use crate::sql::query;
use crate::writer::{Pool, Transaction, Written};

const CHANNEL: &str = "hotslot";

string_enum! {
    /// The kind of change that a notification reports to other processes.
    Notification {
        /// Devices or other records changed.
        Records = "records",
        /// The rules of the API changed. It also stands for a lost connection, after which anything may have changed.
        Rules = "rules",
        /// Dead letters are due for another delivery.
        Letters = "letters",
    }
}

/// The notifications of all processes, including this one.
pub struct Heard(PgListener);

impl Heard {
    /// Waits for the next notification. Returns [`Notification::Rules`] when the connection broke.
    ///
    /// # Errors
    /// Returns the error of the database.
    pub async fn next(&mut self) -> Result<Notification, Error> {
        let heard = self.0.try_recv().await?;
        Ok(heard.and_then(|heard| heard.payload().parse().ok()).unwrap_or(Notification::Rules))
    }
}

impl Transaction {
    /// Notifies other processes when the transaction is committed.
    pub(super) async fn tell(&mut self, news: Notification) -> Result<(), Error> {
        if self.has_others() {
            query("SELECT pg_notify($1, $2)").bind(CHANNEL).bind(news.as_str()).execute(self).await?;
        }
        Ok(())
    }
}

impl Store {
    /// Returns the process id under which the current task began, or else the current id of this process. A task that
    /// began under an earlier id cannot change anything. Returns `None` when no other process can use the database.
    pub fn worker(&self) -> Option<Arc<str>> {
        actor::worker().or_else(|| self.locks.process().map(|process| Arc::clone(&process.id)))
    }

    /// Returns the current id of this process, for a new task. Returns `None` when no other process can use the
    /// database.
    pub fn new_worker(&self) -> Option<Arc<str>> {
        self.locks.process().map(|process| Arc::clone(&process.id))
    }

    /// Checks that the process of the current task is still on record. `tx` must exclude other writers.
    ///
    /// # Errors
    /// Returns [`Error::TakenOver`] when the process was removed from the record, or the error of the database.
    pub(super) async fn is_on_record(&self, tx: &mut Transaction) -> Result<(), Error> {
        let Some(worker) = self.worker() else { return Ok(()) };
        let row = query("SELECT id FROM processes WHERE id = $1").bind(&*worker).fetch_optional(tx).await?;
        row.map(drop).ok_or(Error::TakenOver)
    }

    /// Listens for notifications. Returns `None` when no other process can use the database.
    ///
    /// # Errors
    /// Returns the error of the database.
    pub async fn listen(&self) -> Result<Option<Heard>, Error> {
        let Pool::Postgres(pool) = &self.read else { return Ok(None) };
        let mut listener = PgListener::connect_with(pool).await?;
        listener.listen(CHANNEL).await?;
        Ok(Some(Heard(listener)))
    }

    /// Returns the other processes that have ended and are still on record.
    ///
    /// # Errors
    /// Returns the error of the database, or [`Error::Row`] for a row that cannot be read.
    pub async fn ended(&self) -> Result<Vec<Process>, Error> {
        // This call detects a broken connection and reconnects.
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

    /// Removes this process from the record, unless it still holds locks, so that others have to take over its work.
    pub(super) async fn leave(&self) -> Result<(), Error> {
        match self.locks.process() {
            Some(this) if self.locks.idle().await? => self.forget_process(&this).await,
            Some(_) | None => Ok(()),
        }
    }

    /// Removes a process from the record, after its work has been taken over.
    ///
    /// # Errors
    /// Returns the error of the database.
    pub async fn forget_process(&self, process: &Process) -> Result<(), Error> {
        // This transaction excludes other writers: what the process has not committed by now, it never can.
        let mut tx = self.begin().await?;
        query("DELETE FROM processes WHERE id = $1").bind(&*process.id).execute(&mut tx).await?;
        let calls = query("DELETE FROM overdue_calls WHERE process = $1").bind(&*process.id);
        if calls.execute(&mut tx).await? > 0 {
            query("UPDATE commits SET seq = seq + 1").execute(&mut tx).await?;
        }
        self.commit(tx, Written::default()).await
    }
}
