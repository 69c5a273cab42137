//! The drivers for sqlx 0.9: its pools of SQLite, PostgreSQL, MySQL and MariaDB.
//!
//! A pool is a [`Driver`], and a transaction is a
//! [`Connection`] for [`SqlStore::within`](super::SqlStore::within).

#[cfg(feature = "sqlx-mysql")]
mod mysql;
#[cfg(feature = "sqlx-postgres")]
mod postgres;
#[cfg(feature = "sqlx-sqlite")]
mod sqlite;

use super::driver::{Connection, Driver, Listener, Session, Statement};
use super::error::SqlError;
use super::{Engine, Row, Value};
use ::sqlx::database::HasStatementCache;
use ::sqlx::pool::PoolConnection;
use ::sqlx::query::Query;
use ::sqlx::{AssertSqlSafe, Database, Encode, Pool, SqlSafeStr, Transaction, Type, query};
use sqlx_core::transaction::TransactionManager;
use std::fmt;

/// An engine of sqlx. Only this crate implements it.
pub trait SqlxEngine: Database<Connection: Send> + sealed::Sealed {
    /// The engine.
    #[doc(hidden)]
    type Engine: Engine;
    /// Delivers notifications.
    #[doc(hidden)]
    type Listener: Listener;
    /// Whether a connection stays usable if the future of a statement is dropped.
    #[doc(hidden)]
    const SURVIVES_DROP: bool;

    /// Runs a statement and returns its rows.
    #[doc(hidden)]
    fn fetch(
        connection: &mut Self::Connection,
        statement: Statement,
    ) -> impl Future<Output = Result<Vec<Self::Row>, ::sqlx::Error>> + Send;

    /// Runs a statement and returns the number of rows that it changed.
    #[doc(hidden)]
    fn execute(
        connection: &mut Self::Connection,
        statement: Statement,
    ) -> impl Future<Output = Result<u64, ::sqlx::Error>> + Send;

    /// Runs a statement unprepared.
    #[doc(hidden)]
    fn run(
        connection: &mut Self::Connection,
        sql: String,
    ) -> impl Future<Output = Result<(), ::sqlx::Error>> + Send;

    /// Starts to listen on a channel.
    #[doc(hidden)]
    fn listen(
        pool: &Pool<Self>,
        channel: &str,
    ) -> impl Future<Output = Result<Option<Self::Listener>, ::sqlx::Error>> + Send;

    /// Returns the engine's code of an error.
    #[doc(hidden)]
    fn code(error: &dyn ::sqlx::error::DatabaseError) -> String {
        error.code().unwrap_or_default().into_owned()
    }

    /// Reads an integer from a cell.
    #[doc(hidden)]
    fn int(row: &Self::Row, index: usize) -> Result<Option<i64>, ::sqlx::Error>;

    /// Reads a text from a cell.
    #[doc(hidden)]
    fn text(row: &Self::Row, index: usize) -> Result<Option<&str>, ::sqlx::Error>;

    /// Reads bytes from a cell.
    #[doc(hidden)]
    fn bytes(row: &Self::Row, index: usize) -> Result<Option<&[u8]>, ::sqlx::Error>;
}

mod sealed {
    pub trait Sealed {}
}

/// A row that sqlx returned.
pub struct SqlxRow<E: SqlxEngine>(E::Row);

impl<E: SqlxEngine> Row for SqlxRow<E> {
    fn int(&self, index: usize) -> Option<Option<i64>> {
        E::int(&self.0, index).ok()
    }

    fn text(&self, index: usize) -> Option<Option<&str>> {
        E::text(&self.0, index).ok()
    }

    fn bytes(&self, index: usize) -> Option<Option<&[u8]>> {
        E::bytes(&self.0, index).ok()
    }
}

impl<E: SqlxEngine> fmt::Debug for SqlxRow<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SqlxRow(…)")
    }
}

/// A connection of a pool of sqlx.
pub struct SqlxSession<E: SqlxEngine> {
    connection: PoolConnection<E>,
    /// Whether sqlx knows that a transaction is open.
    is_begun: bool,
    /// Whether a statement is under way; still set if its future was dropped.
    is_busy: bool,
}

impl<E: SqlxEngine> SqlxSession<E> {
    /// Runs a statement.
    async fn call<T>(
        &mut self,
        call: impl AsyncFnOnce(&mut E::Connection) -> Result<T, ::sqlx::Error>,
    ) -> Result<T, SqlError> {
        self.is_busy = true;
        let result = call(&mut self.connection).await;
        self.is_busy = false;
        result.map_err(failed::<E>)
    }
}

impl<E: SqlxEngine> Drop for SqlxSession<E> {
    fn drop(&mut self) {
        if self.is_busy && !E::SURVIVES_DROP {
            self.connection.close_on_drop();
        }
    }
}

impl<E: SqlxEngine> fmt::Debug for SqlxSession<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SqlxSession").field("is_begun", &self.is_begun).finish_non_exhaustive()
    }
}

impl<E: SqlxEngine> Driver for Pool<E> {
    type Session = SqlxSession<E>;
    type Listener = E::Listener;

    async fn acquire(&self) -> Result<SqlxSession<E>, SqlError> {
        let connection = Pool::acquire(self).await.map_err(failed::<E>)?;
        Ok(SqlxSession { connection, is_begun: false, is_busy: false })
    }

    fn max_connections(&self) -> u32 {
        self.options().get_max_connections()
    }

    async fn listen(&self, channel: &str) -> Result<Option<E::Listener>, SqlError> {
        E::listen(self, channel).await.map_err(failed::<E>)
    }
}

impl<E: SqlxEngine> Connection for SqlxSession<E> {
    type Engine = E::Engine;
    type Row = SqlxRow<E>;

    async fn fetch(&mut self, statement: Statement) -> Result<Vec<SqlxRow<E>>, SqlError> {
        let rows = self.call(async |connection| E::fetch(connection, statement).await).await?;
        Ok(rows.into_iter().map(SqlxRow).collect())
    }

    async fn execute(&mut self, statement: Statement) -> Result<u64, SqlError> {
        self.call(async |connection| E::execute(connection, statement).await).await
    }

    async fn run(&mut self, sql: &str) -> Result<(), SqlError> {
        let sql = sql.to_owned();
        self.call(async |connection| E::run(connection, sql).await).await
    }

    fn abandon(&mut self) {
        if self.is_begun && E::SURVIVES_DROP {
            // Runs before the connection's next statement. Closing the connection would lose a
            // database in memory.
            E::TransactionManager::start_rollback(&mut self.connection);
        } else {
            self.connection.close_on_drop();
        }
    }
}

impl<E: SqlxEngine> Session for SqlxSession<E> {
    async fn begin(&mut self, sql: &'static str) -> Result<(), SqlError> {
        let sql = SqlSafeStr::into_sql_str(sql);
        let begin = async |connection: &mut E::Connection| {
            E::TransactionManager::begin(connection, Some(sql)).await
        };
        self.call(begin).await?;
        self.is_begun = true;
        Ok(())
    }

    async fn commit(&mut self) -> Result<(), SqlError> {
        self.call(async |connection| E::TransactionManager::commit(connection).await).await
    }

    async fn rollback(&mut self) -> Result<(), SqlError> {
        self.call(async |connection| E::TransactionManager::rollback(connection).await).await
    }
}

impl<E: SqlxEngine> Connection for Transaction<'_, E> {
    type Engine = E::Engine;
    type Row = SqlxRow<E>;

    async fn fetch(&mut self, statement: Statement) -> Result<Vec<SqlxRow<E>>, SqlError> {
        let rows = E::fetch(&mut **self, statement).await.map_err(failed::<E>)?;
        Ok(rows.into_iter().map(SqlxRow).collect())
    }

    async fn execute(&mut self, statement: Statement) -> Result<u64, SqlError> {
        E::execute(&mut **self, statement).await.map_err(failed::<E>)
    }

    async fn run(&mut self, sql: &str) -> Result<(), SqlError> {
        E::run(&mut **self, sql.to_owned()).await.map_err(failed::<E>)
    }

    fn abandon(&mut self) {
        // A later commit of the host's does nothing.
        E::TransactionManager::start_rollback(&mut **self);
    }
}

/// Returns a statement of sqlx with its values.
fn bound<'q, E: Database + HasStatementCache>(statement: Statement) -> Query<'q, E, E::Arguments>
where
    Option<i64>: Encode<'q, E> + Type<E>,
    Option<String>: Encode<'q, E> + Type<E>,
    Option<Vec<u8>>: Encode<'q, E> + Type<E>,
{
    let (sql, is_kept) = (statement.shared_sql(), statement.is_kept());
    let query = query(AssertSqlSafe(sql));
    let values = statement.into_values().into_iter();
    let query = values.fold(query, |query, value| match value {
        Value::Int(value) => query.bind(value),
        Value::Text(value) => query.bind(value),
        Value::Bytes(value) => query.bind(value),
    });
    query.persistent(is_kept)
}

#[allow(clippy::needless_pass_by_value, reason = "passed to `map_err`")]
fn failed<E: SqlxEngine>(error: ::sqlx::Error) -> SqlError {
    use ::sqlx::Error;
    match &error {
        Error::Database(reported) => SqlError::reported(&E::code(&**reported), reported.message()),
        Error::Io(_)
        | Error::Tls(_)
        | Error::PoolTimedOut
        | Error::PoolClosed
        | Error::WorkerCrashed => SqlError::unreachable(&error),
        _ => SqlError::failed(&error),
    }
}

/// Implements the parts of an engine that sqlx cannot express for all engines at once.
macro_rules! statements {
    () => {
        async fn fetch(
            connection: &mut Self::Connection,
            statement: Statement,
        ) -> Result<Vec<Self::Row>, ::sqlx::Error> {
            let is_single = statement.is_single();
            let query = bound::<Self>(statement);
            if is_single {
                Ok(query.fetch_optional(connection).await?.into_iter().collect())
            } else {
                query.fetch_all(connection).await
            }
        }

        async fn execute(
            connection: &mut Self::Connection,
            statement: Statement,
        ) -> Result<u64, ::sqlx::Error> {
            Ok(bound::<Self>(statement).execute(connection).await?.rows_affected())
        }

        async fn run(connection: &mut Self::Connection, sql: String) -> Result<(), ::sqlx::Error> {
            raw_sql(AssertSqlSafe(sql)).execute(connection).await.map(drop)
        }

        fn int(row: &Self::Row, index: usize) -> Result<Option<i64>, ::sqlx::Error> {
            ::sqlx::Row::try_get(row, index)
        }
    };
}
use statements;
