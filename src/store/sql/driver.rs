//! What an SQL store needs of the library that reaches the database.

use super::error::SqlError;
use super::{Engine, Value};
use crate::store::record::Row;
use std::fmt;
use std::sync::Arc;

/// A pool of connections to one database, in the host's SQL library.
///
/// An [`SqlStore`](super::SqlStore) runs all its statements on a driver: with one, tokens live in
/// the pool that the host already has. This crate has drivers for sqlx 0.9 (features `sqlx-sqlite`,
/// `sqlx-postgres` and `sqlx-mysql`) and for tokio-postgres over deadpool (feature
/// `tokio-postgres`). A driver for another library is three traits in about 100 lines:
///
/// * [`Connection`] runs a statement;
/// * [`Session`] is a connection that the pool lent, and begins and ends its transactions;
/// * `Driver` lends them.
///
/// The conformance suite (feature `conformance`), run on `SqlStore::builder(driver)`, checks a
/// driver. A driver must get four things right:
///
/// * **Nulls.** A null cell reads as a null of any type, unless the driver knows the type.
/// * **Failures.** An answer of the database is [`SqlError::reported`] with the engine's code. The
///   store recognizes a taken name only by that code.
/// * **Dropped futures.** If a request is cancelled, the future of its statement is dropped. The
///   pool must not lose the connection, and the connection's next user must not find a transaction
///   open on it. If [`abandon`](Connection::abandon) comes too late for that, because the future
///   owned the connection, the driver must see to it otherwise.
/// * **Prepared statements.** The connection keeps a statement prepared if
///   [`is_kept`](Statement::is_kept), and only then.
///
#[doc = include_str!("worked_driver.md")]
pub trait Driver: Clone + Send + Sync + 'static {
    /// A connection that the pool lent. Dropping it gives it back.
    type Session: Session;
    /// Delivers notifications; [`NoListener`] if the driver cannot.
    type Listener: Listener;

    /// Waits for a connection.
    ///
    /// # Errors
    /// [`SqlError::unreachable`] if none could be made, or none became free in time. A driver must
    /// not wait for ever.
    fn acquire(&self) -> impl Future<Output = Result<Self::Session, SqlError>> + Send;

    /// Returns the maximum number of connections that the pool makes.
    fn max_connections(&self) -> u32;

    /// Starts to listen on a channel (PostgreSQL, `LISTEN`), whose name is a plain identifier.
    ///
    /// The listener delivers every notification that is sent after this has returned. Returns `None`
    /// if the driver or the engine cannot listen, which is the default: a cache then polls. Only
    /// stores in PostgreSQL call this.
    ///
    /// # Errors
    /// [`SqlError`] if the database fails.
    fn listen(
        &self,
        channel: &str,
    ) -> impl Future<Output = Result<Option<Self::Listener>, SqlError>> + Send {
        let _ = channel;
        async { Ok(None) }
    }
}

/// Runs statements, one at a time: a connection, or a transaction of the host's.
///
/// A host's transaction that is a `Connection` can be passed to
/// [`SqlStore::within`](super::SqlStore::within), as `&mut transaction` so that the host can commit
/// it afterwards.
pub trait Connection: Send {
    /// The engine at the other end: [`Sqlite`](super::Sqlite), [`Postgres`](super::Postgres) or
    /// [`MySql`](super::MySql).
    type Engine: Engine;
    /// A row that a statement returned. `Vec<Value>` serves, at the cost of copying.
    type Row: Row + Send + Sync;

    /// Runs a statement and returns its rows.
    ///
    /// # Errors
    /// [`SqlError`] if the statement fails; the connection stays usable unless it was lost.
    fn fetch(
        &mut self,
        statement: Statement,
    ) -> impl Future<Output = Result<Vec<Self::Row>, SqlError>> + Send;

    /// Runs a statement that returns at most one row, and reads the row.
    ///
    /// Every verification without a cache does this once. By default the statement is
    /// [fetched](Self::fetch). A driver whose rows borrow from the connection reads the row in
    /// place instead, which saves the copy.
    ///
    /// # Errors
    /// As [`fetch`](Self::fetch).
    fn fetch_one<T: Send>(
        &mut self,
        statement: Statement,
        read: impl FnOnce(&dyn Row) -> T + Send,
    ) -> impl Future<Output = Result<Option<T>, SqlError>> + Send {
        async move { Ok(self.fetch(statement).await?.first().map(|row| read(row))) }
    }

    /// Runs a statement and returns the number of rows that it inserted, updated or deleted.
    ///
    /// An updated row counts even if it had all the values before (MySQL: `CLIENT_FOUND_ROWS`).
    ///
    /// # Errors
    /// As [`fetch`](Self::fetch).
    fn execute(
        &mut self,
        statement: Statement,
    ) -> impl Future<Output = Result<u64, SqlError>> + Send;

    /// Runs one statement that has no values and returns no rows, without preparing it.
    ///
    /// Transactions, savepoints and `CREATE` statements run like this. PostgreSQL calls it the
    /// simple query protocol, MySQL the text protocol.
    ///
    /// # Errors
    /// As [`fetch`](Self::fetch).
    fn run(&mut self, sql: &str) -> impl Future<Output = Result<(), SqlError>> + Send;

    /// Ends the use of a connection on which a transaction may be half done.
    ///
    /// Called as the last method if a statement of a transaction failed, or if the future that ran
    /// it was dropped. A connection that a pool lent must be closed, or be rolled back before its
    /// next user has it. A host's transaction should be made impossible to commit if the library
    /// allows that; the store refuses all further calls in it.
    fn abandon(&mut self);
}

impl<C: Connection> Connection for &mut C {
    type Engine = C::Engine;
    type Row = C::Row;

    fn fetch(
        &mut self,
        statement: Statement,
    ) -> impl Future<Output = Result<Vec<C::Row>, SqlError>> + Send {
        (**self).fetch(statement)
    }

    fn fetch_one<T: Send>(
        &mut self,
        statement: Statement,
        read: impl FnOnce(&dyn Row) -> T + Send,
    ) -> impl Future<Output = Result<Option<T>, SqlError>> + Send {
        (**self).fetch_one(statement, read)
    }

    fn execute(
        &mut self,
        statement: Statement,
    ) -> impl Future<Output = Result<u64, SqlError>> + Send {
        (**self).execute(statement)
    }

    fn run(&mut self, sql: &str) -> impl Future<Output = Result<(), SqlError>> + Send {
        (**self).run(sql)
    }

    fn abandon(&mut self) {
        (**self).abandon();
    }
}

/// A connection that a pool lent, which can hold a transaction.
pub trait Session: Connection {
    /// Begins a transaction with this statement.
    ///
    /// # Errors
    /// As [`fetch`](Connection::fetch).
    fn begin(&mut self, sql: &'static str) -> impl Future<Output = Result<(), SqlError>> + Send {
        self.run(sql)
    }

    /// Commits the transaction.
    ///
    /// # Errors
    /// [`SqlError::reported`] if the database answered that it did not commit. Every other error
    /// leaves it unknown whether the transaction was committed.
    fn commit(&mut self) -> impl Future<Output = Result<(), SqlError>> + Send {
        self.run("COMMIT")
    }

    /// Rolls the transaction back.
    ///
    /// # Errors
    /// As [`fetch`](Connection::fetch).
    fn rollback(&mut self) -> impl Future<Output = Result<(), SqlError>> + Send {
        self.run("ROLLBACK")
    }
}

/// Delivers the notifications of one channel.
pub trait Listener: Send {
    /// Whether it keeps one of the pool's connections for itself.
    const TAKES_CONNECTION: bool;

    /// Waits for a notification and returns its payload.
    ///
    /// # Errors
    /// [`SqlError`] if notifications may have been lost.
    fn next(&mut self) -> impl Future<Output = Result<String, SqlError>> + Send;
}

/// The listener of a driver that has no notifications.
#[derive(Debug, Clone, Copy)]
#[allow(clippy::exhaustive_enums, reason = "it has no value and gets none")]
pub enum NoListener {}

impl Listener for NoListener {
    const TAKES_CONNECTION: bool = false;

    async fn next(&mut self) -> Result<String, SqlError> {
        match *self {}
    }
}

/// A statement with its values.
///
/// The placeholders are those of the engine: `$1` in PostgreSQL, `?1` in SQLite, and `?` in MySQL.
/// [`values`](Self::values) are in their order.
#[derive(Clone)]
pub struct Statement {
    sql: Arc<str>,
    values: Vec<Value>,
    is_kept: bool,
    is_single: bool,
}

impl Statement {
    pub(super) fn new(sql: Arc<str>, values: Vec<Value>) -> Self {
        Self { sql, values, is_kept: false, is_single: false }
    }

    /// Sets whether the connection keeps the statement prepared.
    pub(super) fn kept(mut self, is_kept: bool) -> Self {
        self.is_kept = is_kept;
        self
    }

    /// Says that the statement returns at most one row.
    pub(super) fn single(mut self) -> Self {
        self.is_single = true;
        self
    }

    /// Returns the text.
    pub fn sql(&self) -> &str {
        &self.sql
    }

    /// Returns the text, which equal statements share.
    pub fn shared_sql(&self) -> Arc<str> {
        self.sql.clone()
    }

    /// Returns the values, in the order of the placeholders.
    pub fn values(&self) -> &[Value] {
        &self.values
    }

    /// Returns the values without copying them.
    pub fn into_values(self) -> Vec<Value> {
        self.values
    }

    /// Whether the connection should keep the statement prepared, because the same text comes again.
    ///
    /// Otherwise it must not: the text comes seldom, or a pooler stands in between that would not
    /// find the prepared statement again ([`pooler`](super::SqlStoreBuilder::pooler)).
    pub fn is_kept(&self) -> bool {
        self.is_kept
    }

    /// Whether the statement returns at most one row, so that nothing is to be waited for after it.
    pub fn is_single(&self) -> bool {
        self.is_single
    }
}

/// Shows the text and not the values, which may be digests.
impl fmt::Debug for Statement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Statement").field("sql", &self.sql).finish_non_exhaustive()
    }
}
