//! The connections, and the transactions that write.
//!
//! One transaction writes at a time. Transactions that wait for their turn meanwhile are committed together with it: each
//! is a savepoint in one transaction of the database, which is synced to disk once. A caller is answered after that
//! commit. A transaction that fails is rolled back alone.
//!
//! SQLite works in a thread of its own, so that each exchange with it costs two switches of threads. Statements whose
//! results are not needed at once are therefore sent together.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_util::TryStreamExt as _;
use hotslot_model::device::Device;
use hotslot_model::id::{DeviceId, EventId};
use sqlx::pool::PoolConnection;
use sqlx::postgres::PgPool;
use sqlx::sqlite::{SqliteArguments, SqlitePool};
use sqlx::{AssertSqlSafe, Either, Executor as _, Postgres, Sqlite, SqliteConnection};
use tokio::sync::{OwnedMutexGuard, Semaphore, oneshot};

use crate::error::Error;
use crate::failure::again;
use crate::metrics::Call;
use crate::sql::{Query, ROWS, Row, soon};

/// A pool of connections.
#[derive(Debug, Clone)]
pub(super) enum Pool {
    Sqlite(Kept),
    Postgres(PgPool),
}

/// A pool of connections to SQLite. sqlx tests each connection that is returned to its pool, which takes as long as a short
/// query, so that they are kept here between two statements.
#[derive(Debug, Clone)]
pub(super) struct Kept {
    pub(super) pool: SqlitePool,
    idle: Arc<Mutex<Vec<PoolConnection<Sqlite>>>>,
    free: Arc<Semaphore>,
}

impl Kept {
    pub(super) fn new(pool: SqlitePool) -> Self {
        let free = Arc::new(Semaphore::new(pool.options().get_max_connections() as usize));
        Self { pool, idle: Arc::default(), free }
    }

    fn idle(&self) -> MutexGuard<'_, Vec<PoolConnection<Sqlite>>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn connection(&self) -> sqlx::Result<PoolConnection<Sqlite>> {
        let idle = self.idle().pop();
        // The future of a pool may open a connection, and has 12 KiB.
        if let Some(idle) = idle { Ok(idle) } else { Box::pin(self.pool.acquire()).await }
    }

    /// Runs a statement. Returns how many rows it has written, and the rows that it returned.
    pub(super) async fn run(&self, query: Query) -> sqlx::Result<(u64, Vec<Row>)> {
        let _free = self.free.acquire().await.map_err(|_| sqlx::Error::PoolClosed)?;
        // A connection is dropped, and so tested, when the caller has gone or the statement has failed.
        let mut connection = self.connection().await?;
        let done = at_once(&mut connection, false, std::iter::once(query)).await?;
        let mut idle = self.idle();
        // A connection that is kept after `close` has cleared them would never be closed.
        if !self.free.is_closed() {
            idle.push(connection);
        }
        drop(idle);
        Ok(done.of_last())
    }
}

impl Pool {
    pub(super) async fn close(&self) {
        match self {
            Self::Sqlite(kept) => {
                kept.free.close();
                kept.idle().clear();
                kept.pool.close().await;
            }
            Self::Postgres(pool) => pool.close().await,
        }
    }
}

/// What a committed transaction has changed.
#[derive(Debug, Default)]
pub(super) struct Written {
    /// The rows of `pci_devices` that were written.
    pub(super) rows: Vec<Arc<Device>>,
    /// The number of the commit that wrote them.
    pub(super) seq: i64,
    /// The last event.
    pub(super) last: Option<EventId>,
}

/// A transaction that has done its work and waits for the commit.
#[derive(Debug)]
pub(super) struct Member {
    pub(super) change: Written,
    pub(super) answer: oneshot::Sender<Result<(), Error>>,
}

/// The connection that writes. Whoever has locked it has the turn to write.
#[derive(Debug)]
pub(super) struct Writer {
    pool: Pool,
    /// The connection to SQLite between two transactions.
    idle: Option<PoolConnection<Sqlite>>,
    /// The transaction of the database.
    open: Option<Open>,
    /// The transactions that it consists of, without the one that has the turn.
    members: Vec<Member>,
    /// The rows that the members have written.
    ahead: Arc<BTreeMap<DeviceId, Arc<Device>>>,
    /// Whether the memory may lack changes of a commit whose outcome was unknown.
    pub(super) is_behind: bool,
    /// Whether the memory has all changes that were committed before the transaction of the database.
    is_current: bool,
    /// Whether the pool is about to be closed, so that no connection is kept.
    is_closed: bool,
}

#[derive(Debug)]
enum Open {
    Sqlite(PoolConnection<Sqlite>),
    Postgres(sqlx::Transaction<'static, Postgres>),
}

/// Returns the statement for the savepoint of the member after `before` others. Each has a name of its own, so that one that
/// was not made cannot stand for another's.
fn savepoint(before: usize) -> String {
    format!("SAVEPOINT member{before}")
}

fn undo_to(before: usize) -> String {
    format!("ROLLBACK TO SAVEPOINT member{before}; RELEASE SAVEPOINT member{before}")
}

impl Writer {
    pub(super) fn new(pool: Pool) -> Self {
        let (idle, open, members, ahead) = Default::default();
        Self { pool, idle, open, members, ahead, is_behind: false, is_current: false, is_closed: false }
    }

    /// Commits the members of the transaction of the database, and returns them. The callers of members that are not
    /// committed have been answered.
    ///
    /// # Errors
    /// Returns the error of the database with the members, which may have been committed.
    pub(super) async fn commit(&mut self) -> Result<Vec<Member>, (sqlx::Error, Vec<Member>)> {
        if self.members.is_empty() {
            return Ok(Vec::new());
        }
        self.ahead = Arc::default();
        self.is_current = false;
        let members = std::mem::take(&mut self.members);
        let call = Call::begin("commit");
        let committed = match self.open.take() {
            Some(Open::Sqlite(mut connection)) => {
                match sqlx::raw_sql("COMMIT").execute(&mut *connection).await {
                    Ok(_) => {
                        self.keep(connection);
                        Ok(())
                    }
                    Err(error) => {
                        connection.close_on_drop();
                        Err(error)
                    }
                }
            }
            Some(Open::Postgres(transaction)) => soon(transaction.commit()).await,
            None => Err(sqlx::Error::WorkerCrashed),
        };
        match call.ended(committed) {
            Ok(()) => Ok(members),
            Err(error) => {
                self.is_behind = true;
                Err((error, members))
            }
        }
    }

    fn keep(&mut self, connection: PoolConnection<Sqlite>) {
        if !self.is_closed {
            self.idle = Some(connection);
        }
    }

    /// Rolls back the transaction that has the turn. `cause` is the error for which it is rolled back.
    async fn undo(&mut self, cause: Option<sqlx::Error>) {
        let is_alone = self.members.is_empty();
        let undo = if is_alone { "ROLLBACK".to_owned() } else { undo_to(self.members.len()) };
        let undone = match self.open.as_mut() {
            None => return,
            Some(Open::Sqlite(connection)) => {
                sqlx::raw_sql(AssertSqlSafe(undo)).execute(&mut **connection).await.map(drop)
            }
            Some(Open::Postgres(_)) if is_alone => Ok(()),
            Some(Open::Postgres(transaction)) => {
                let mut undone =
                    soon(sqlx::raw_sql(AssertSqlSafe(undo.clone())).execute(&mut **transaction)).await;
                if undone.as_ref().is_err_and(|error| error.as_database_error().is_some()) {
                    // That was the answer to a statement whose caller had gone.
                    undone = soon(sqlx::raw_sql(AssertSqlSafe(undo)).execute(&mut **transaction)).await;
                }
                undone.map(drop)
            }
        };
        match undone {
            Ok(()) if is_alone => {
                self.is_current = false;
                match self.open.take() {
                    Some(Open::Sqlite(connection)) => self.keep(connection),
                    // If that fails, PostgreSQL rolls back when the connection is closed.
                    Some(Open::Postgres(transaction)) => drop(soon(transaction.rollback()).await),
                    None => {}
                }
            }
            Ok(()) => {}
            Err(error) => self.lose(&cause.unwrap_or(error)),
        }
    }

    /// Gives up the transaction of the database with all its members. SQLite itself does so when it cannot write.
    fn lose(&mut self, error: &sqlx::Error) {
        if let Some(Open::Sqlite(mut connection)) = self.open.take() {
            connection.close_on_drop();
        }
        self.ahead = Arc::default();
        self.is_current = false;
        for member in self.members.drain(..) {
            // The caller may have gone.
            let _ = member.answer.send(Err(again(error).into()));
        }
    }

    /// Releases the connection, so that its pool can be closed.
    pub(super) fn release(&mut self) {
        self.idle = None;
        self.is_closed = true;
    }
}

/// A transaction that writes. Dropping it rolls it back.
#[derive(Debug)]
pub(super) struct Transaction {
    /// `None` after it has ended.
    writer: Option<OwnedMutexGuard<Writer>>,
    /// The statements to send with the next one, and whether each must write one row.
    later: Vec<(Query, bool)>,
    begun: bool,
    failed: bool,
    /// The error of the statement that has failed.
    cause: Option<sqlx::Error>,
}

/// The result of some statements.
#[derive(Debug, Default)]
struct Done {
    /// How many rows each statement has written.
    written: Vec<u64>,
    /// The rows that statements have returned, each with the number of its statement.
    rows: Vec<(usize, Row)>,
}

impl Transaction {
    /// Begins a transaction for whoever has the turn to write.
    pub(super) async fn begin(writer: OwnedMutexGuard<Writer>) -> sqlx::Result<Self> {
        Call::begin("begin").ended(Self::begin_uncounted(writer).await)
    }

    async fn begin_uncounted(writer: OwnedMutexGuard<Writer>) -> sqlx::Result<Self> {
        let mut tx =
            Self { writer: Some(writer), later: Vec::new(), begun: false, failed: false, cause: None };
        let writer = tx.writer()?;
        // On SQLite, it begins with its first statement.
        if let Pool::Postgres(pool) = writer.pool.clone() {
            if let Some(Open::Postgres(open)) = &mut writer.open {
                let made = sqlx::raw_sql(AssertSqlSafe(savepoint(writer.members.len()))).execute(&mut **open);
                if let Err(error) = soon(made).await {
                    // The connection has broken. Those before lose their work; this one has done none.
                    writer.lose(&error);
                }
            }
            if writer.open.is_none() {
                // The future of a pool may open a connection, and has 12 KiB.
                let mut open = soon(Box::pin(pool.begin())).await?;
                // Allows one writer as SQLite does; readers do not wait. The lock is a statement of its own, so that
                // giving up while it waits only rolls back an empty transaction.
                soon(sqlx::query("LOCK TABLE commits IN EXCLUSIVE MODE").execute(&mut *open)).await?;
                writer.open = Some(Open::Postgres(open));
            }
            tx.begun = true;
        }
        Ok(tx)
    }

    fn writer(&mut self) -> sqlx::Result<&mut Writer> {
        // There is one until the transaction ends.
        self.writer.as_deref_mut().ok_or(sqlx::Error::WorkerCrashed)
    }

    /// Whether other processes may use the database.
    pub(super) fn has_others(&self) -> bool {
        self.writer.as_deref().is_some_and(|writer| matches!(writer.pool, Pool::Postgres(_)))
    }

    /// Whether the memory may lack changes that were committed before the transaction of the database.
    pub(super) fn has_to_catch_up(&self) -> bool {
        let writer = self.writer.as_deref();
        writer.is_some_and(|writer| !writer.is_current && (writer.is_behind || self.has_others()))
    }

    /// Whether the transaction of the database begins with this one.
    pub(super) fn is_first(&self) -> bool {
        self.writer.as_deref().is_some_and(|writer| writer.members.is_empty())
    }

    /// Notes that the memory has all changes.
    pub(super) fn caught_up(&mut self) {
        if let Some(writer) = self.writer.as_deref_mut() {
            (writer.is_behind, writer.is_current) = (false, true);
        }
    }

    /// Returns the rows that were written before in the same transaction of the database, and the highest number that
    /// they have.
    pub(super) fn ahead(&self) -> (Arc<BTreeMap<DeviceId, Arc<Device>>>, i64) {
        self.writer.as_deref().map_or_else(Default::default, |writer| {
            let seq = writer.members.iter().map(|member| member.change.seq).max();
            (Arc::clone(&writer.ahead), seq.unwrap_or_default())
        })
    }

    /// Runs a statement. Returns how many rows it has written, and the rows that it returned.
    pub(super) async fn run(&mut self, query: Query) -> sqlx::Result<(u64, Vec<Row>)> {
        self.later.push((query, false));
        let (done, is_stale) = self.send().await?;
        if is_stale {
            return Err(sqlx::Error::RowNotFound);
        }
        Ok(done.of_last())
    }

    /// Runs a statement whose result is not needed, at the latest before the transaction ends.
    pub(super) fn put(&mut self, query: Query) {
        let query = match self.later.last_mut() {
            Some((last, false)) => last.with_row_of(query),
            _ => Some(query),
        };
        self.later.extend(query.map(|query| (query, false)));
    }

    /// As [`put`](Self::put), for a statement that has to write one row. When it does not, [`flush`](Self::flush) returns
    /// [`Error::Stale`].
    pub(super) fn put_one(&mut self, query: Query) {
        self.later.push((query, true));
    }

    /// Whether nothing was done.
    pub(super) fn is_empty(&self) -> bool {
        self.later.is_empty() && !self.begun
    }

    /// Sends the statements that were put off. Returns the first row that one of them returned.
    ///
    /// # Errors
    /// Returns [`Error::Stale`] when one that has to write a row did not, or the error of the database. The caller must
    /// then drop the transaction.
    pub(super) async fn flush(&mut self) -> Result<Option<Row>, Error> {
        if self.later.is_empty() && !self.failed {
            return Ok(None);
        }
        let (done, is_stale) = Call::begin("write").ended(self.send().await)?;
        if is_stale { Err(Error::Stale) } else { Ok(done.rows.into_iter().next().map(|(_, row)| row)) }
    }

    /// Whether so many statements are put off that they are to be sent.
    pub(super) fn is_full(&self) -> bool {
        self.later.len() >= TOGETHER || self.later.last().is_some_and(|(last, _)| last.rows() == ROWS)
    }

    /// Ends the transaction with the work done. It is committed together with others that have the turn before the next
    /// [`Writer::commit`].
    pub(super) fn join(mut self, member: Member) {
        if let Some(mut writer) = self.writer.take() {
            // This is no copy, unless a transaction still reads it.
            let ahead = Arc::make_mut(&mut writer.ahead);
            ahead.extend(member.change.rows.iter().map(|row| (row.id, Arc::clone(row))));
            writer.members.push(member);
        }
    }

    /// Sends all statements. Returns whether one that has to write a row did not.
    async fn send(&mut self) -> sqlx::Result<(Done, bool)> {
        if self.failed {
            // SQLite may have ended the transaction, so that the statement would be committed on its own.
            return Err(sqlx::Error::Protocol(
                "a statement of this transaction has failed before".to_owned(),
            ));
        }
        let later = std::mem::take(&mut self.later);
        if later.is_empty() {
            return Ok((Done::default(), false));
        }
        // Until the answer is there, the statements may have failed.
        self.failed = true;
        let must_write: Vec<_> = later.iter().map(|(_, one)| *one).collect();
        let queries = later.into_iter().map(|(query, _)| query);
        let done = self.send_all(queries).await.inspect_err(|error| self.cause = Some(again(error)))?;
        let is_stale = must_write.iter().zip(&done.written).any(|(one, written)| *one && *written != 1);
        self.failed = is_stale;
        Ok((done, is_stale))
    }

    async fn send_all(&mut self, queries: impl Iterator<Item = Query>) -> sqlx::Result<Done> {
        let was_begun = std::mem::replace(&mut self.begun, true);
        let writer = self.writer()?;
        if writer.open.is_none()
            && let Pool::Sqlite(kept) = &writer.pool
        {
            let connection = match writer.idle.take() {
                Some(connection) => connection,
                None => kept.connection().await?,
            };
            writer.open = Some(Open::Sqlite(connection));
        }
        let before = writer.members.len();
        match &mut writer.open {
            Some(Open::Sqlite(connection)) => {
                if !was_begun && before > 0 {
                    // Together with other statements, SQLite would keep these prepared once for each name of a savepoint.
                    sqlx::raw_sql(AssertSqlSafe(savepoint(before))).execute(&mut **connection).await?;
                }
                at_once(connection, !was_begun && before == 0, queries).await
            }
            Some(Open::Postgres(transaction)) => {
                let mut done = Done::default();
                for query in queries {
                    let results: Vec<_> =
                        soon((&mut **transaction).fetch_many(query.postgres()?).try_collect()).await?;
                    done.add(results, |result| result.rows_affected(), Row::Postgres);
                }
                Ok(done)
            }
            None => Err(sqlx::Error::WorkerCrashed),
        }
    }
}

impl Done {
    /// Returns how many rows the last statement has written, and the rows that it returned.
    fn of_last(self) -> (u64, Vec<Row>) {
        let last = self.written.len().saturating_sub(1);
        let rows = self.rows.into_iter().filter(|(statement, _)| *statement == last).map(|(_, row)| row);
        (self.written.last().copied().unwrap_or_default(), rows.collect())
    }

    fn add<Q, R>(&mut self, results: Vec<Either<Q, R>>, written: fn(&Q) -> u64, row: fn(R) -> Row) {
        for result in results {
            match result {
                Either::Left(result) => self.written.push(written(&result)),
                Either::Right(found) => self.rows.push((self.written.len(), row(found))),
            }
        }
    }
}

/// How many statements a long transaction sends together. SQLite keeps what it has prepared of up to so many, so that the next
/// ones with the same texts are not prepared again; of more it would be much.
const TOGETHER: usize = 16;

/// Sends statements to SQLite in one exchange. With `begins`, the transaction of the database begins with them.
async fn at_once(
    connection: &mut SqliteConnection,
    begins: bool,
    queries: impl Iterator<Item = Query>,
) -> sqlx::Result<Done> {
    let (mut text, mut values) = (String::new(), SqliteArguments::default());
    text.extend(begins.then_some("BEGIN IMMEDIATE"));
    let (mut count, mut come_again) = (0, true);
    for query in queries {
        count += 1;
        come_again &= query.comes_again();
        if !text.is_empty() {
            text.push(';');
        }
        query.append(&mut text, &mut values).map_err(sqlx::Error::Encode)?;
    }
    let statements =
        sqlx::query_with(AssertSqlSafe(text), values).persistent(come_again && count <= TOGETHER);
    let results: Vec<_> = connection.fetch_many(statements).try_collect().await?;
    let mut done = Done::default();
    done.add(results, |result| result.rows_affected(), Row::Sqlite);
    if begins {
        done.written.remove(0);
        done.rows.iter_mut().for_each(|(statement, _)| *statement -= 1);
    }
    Ok(done)
}

impl Drop for Transaction {
    fn drop(&mut self) {
        let Some(mut writer) = self.writer.take().filter(|_| self.begun) else { return };
        let cause = self.cause.take();
        match tokio::runtime::Handle::try_current() {
            // The turn ends when the transaction is rolled back.
            Ok(runtime) => drop(runtime.spawn(async move { writer.undo(cause).await })),
            Err(_) => writer.lose(&sqlx::Error::WorkerCrashed),
        }
    }
}
