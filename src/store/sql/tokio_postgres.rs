//! The driver for tokio-postgres, over the pool of deadpool-postgres.
//!
//! A pool is a [`Driver`]:
//!
//! ```no_run
//! # async fn open() -> Result<(), Box<dyn std::error::Error>> {
//! use deadpool_postgres::{Manager, Pool};
//! use patkit::SqlStore;
//! use tokio_postgres::NoTls;
//!
//! let manager = Manager::new("host=/run/postgresql user=app dbname=app".parse()?, NoTls);
//! let pool = Pool::builder(manager).max_size(16).build()?;
//! let store = SqlStore::builder(pool).schema("auth").migrate().await?;
//! # Ok(())
//! # }
//! ```
//!
//! **Waiting.** A pool of deadpool has no timeouts unless the host sets them. The store waits at most
//! 30 s for a connection, including the time to make one, and returns
//! [`StoreError::Unavailable`](crate::StoreError::Unavailable) then. Shorter timeouts of the pool
//! apply too. The wait needs a tokio runtime whose timer is enabled, as `#[tokio::main]` does.
//!
//! **Prepared statements.** Statements of the store are in the statement cache that deadpool keeps for
//! each connection. With [`pooler`](super::SqlStoreBuilder::pooler), none is.
//!
//! **Following.** deadpool drops notifications, so a cache in front of the store polls for changes, at
//! the interval that `CachedStore::run_following` is given.
//!
//! # In a transaction of your own
//!
//! [`deadpool_postgres::Transaction`] and [`tokio_postgres::Transaction`] are [`Connection`]s: pass
//! one of them to [`SqlStore::within`](super::SqlStore::within). The latter has no statement cache, so
//! the database parses each statement again.
//!
//! ```no_run
//! # async fn add_project(
//! #     pool: &deadpool_postgres::Pool,
//! #     tokens: &patkit::TokenService<patkit::SqlStore<deadpool_postgres::Pool>, patkit::MemoryDirectory>,
//! #     ada: &patkit::Actor,
//! # ) -> Result<patkit::PlaintextToken, Box<dyn std::error::Error>> {
//! use patkit::NewToken;
//!
//! let mut client = pool.get().await?;
//! let mut transaction = client.transaction().await?;
//! transaction.execute("INSERT INTO projects (name) VALUES ('apollo')", &[]).await?;
//! let within = tokens.within(tokens.store().within(&mut transaction));
//! let issued = within.generate(ada, NewToken::named("apollo deploys")).await?;
//! let uncommitted = within.into_uncommitted();
//! transaction.commit().await?;
//! // The change is committed, so notify the audit sink.
//! tokens.after_commit(&uncommitted);
//! # Ok(issued.plaintext)
//! # }
//! ```
//!
//! After a call that returned `Unavailable`, or whose future was dropped, roll the transaction back.
//! The store cannot do so, because the transaction is the host's and a rollback takes time. Instead,
//! it sends a statement that fails, so that PostgreSQL refuses all further statements of the
//! transaction, and a commit rolls back. tokio-postgres reports success for such a commit.

use super::driver::{Connection, Driver, NoListener, Session, Statement};
use super::error::SqlError;
use super::{Postgres, Row, Value};
use ::tokio_postgres::types::{IsNull, ToSql, Type};
use ::tokio_postgres::{Client, Error, Row as ClientRow, Statement as Prepared, Transaction};
use bytes::BytesMut;
use deadpool_postgres::{
    Object, Pool, PoolError, StatementCache, Transaction as CachedTransaction,
};
use std::error::Error as StdError;
use std::fmt;
use std::pin::pin;
use std::task::{Context, Waker};
use std::time::Duration;
use tokio::time::timeout;

/// The maximum time to wait for a connection of the pool.
const MAX_WAIT: Duration = Duration::from_secs(30);

/// Fails, because no savepoint has the name, which tells the reason to readers of the server's log.
const FAIL: &str = "ROLLBACK TO SAVEPOINT \"patkit: a call failed or was dropped\"";

/// A row that tokio-postgres returned.
pub struct TokioPostgresRow(ClientRow);

impl Row for TokioPostgresRow {
    fn int(&self, index: usize) -> Option<Option<i64>> {
        self.0.try_get(index).ok()
    }

    fn text(&self, index: usize) -> Option<Option<&str>> {
        self.0.try_get(index).ok()
    }

    fn bytes(&self, index: usize) -> Option<Option<&[u8]>> {
        self.0.try_get(index).ok()
    }
}

/// Shows no value, which may be a digest.
impl fmt::Debug for TokioPostgresRow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TokioPostgresRow(…)")
    }
}

/// A connection of a pool of deadpool-postgres.
#[derive(Debug)]
pub struct TokioPostgresSession(Option<Object>);

impl TokioPostgresSession {
    fn object(&self) -> &Object {
        self.0.as_ref().expect("`abandon`, which is called last, takes it")
    }
}

impl Driver for Pool {
    type Session = TokioPostgresSession;
    type Listener = NoListener;

    async fn acquire(&self) -> Result<TokioPostgresSession, SqlError> {
        match timeout(MAX_WAIT, self.get()).await {
            Ok(Ok(object)) => Ok(TokioPostgresSession(Some(object))),
            Ok(Err(PoolError::Backend(error))) => Err(not_connected(&error)),
            Ok(Err(error)) => Err(SqlError::unreachable(&error)),
            Err(_) => Err(SqlError::unreachable(
                "no connection of the pool was free, or could be made, within 30 s",
            )),
        }
    }

    fn max_connections(&self) -> u32 {
        u32::try_from(self.status().max_size).unwrap_or(u32::MAX)
    }

    async fn listen(&self, _: &str) -> Result<Option<NoListener>, SqlError> {
        Ok(None)
    }
}

impl Connection for TokioPostgresSession {
    type Engine = Postgres;
    type Row = TokioPostgresRow;

    async fn fetch(&mut self, statement: Statement) -> Result<Vec<TokioPostgresRow>, SqlError> {
        fetch(self.object(), Some(&self.object().statement_cache), &statement).await
    }

    async fn execute(&mut self, statement: Statement) -> Result<u64, SqlError> {
        execute(self.object(), Some(&self.object().statement_cache), &statement).await
    }

    async fn run(&mut self, sql: &str) -> Result<(), SqlError> {
        self.object().batch_execute(sql).await.map_err(|error| failed(&error))
    }

    /// Closes the connection, whose place in the pool becomes free.
    fn abandon(&mut self) {
        self.0.take().map(Object::take);
    }
}

impl Session for TokioPostgresSession {}

impl Connection for CachedTransaction<'_> {
    type Engine = Postgres;
    type Row = TokioPostgresRow;

    async fn fetch(&mut self, statement: Statement) -> Result<Vec<TokioPostgresRow>, SqlError> {
        fetch(self.client(), Some(&self.statement_cache), &statement).await
    }

    async fn execute(&mut self, statement: Statement) -> Result<u64, SqlError> {
        execute(self.client(), Some(&self.statement_cache), &statement).await
    }

    async fn run(&mut self, sql: &str) -> Result<(), SqlError> {
        self.batch_execute(sql).await.map_err(|error| failed(&error))
    }

    fn abandon(&mut self) {
        fail(self.client());
    }
}

impl Connection for Transaction<'_> {
    type Engine = Postgres;
    type Row = TokioPostgresRow;

    async fn fetch(&mut self, statement: Statement) -> Result<Vec<TokioPostgresRow>, SqlError> {
        fetch(self.client(), None, &statement).await
    }

    async fn execute(&mut self, statement: Statement) -> Result<u64, SqlError> {
        execute(self.client(), None, &statement).await
    }

    async fn run(&mut self, sql: &str) -> Result<(), SqlError> {
        self.batch_execute(sql).await.map_err(|error| failed(&error))
    }

    fn abandon(&mut self) {
        fail(self.client());
    }
}

async fn fetch(
    client: &Client,
    cache: Option<&StatementCache>,
    statement: &Statement,
) -> Result<Vec<TokioPostgresRow>, SqlError> {
    let values = bound(statement);
    let rows = match (prepared(client, cache, statement).await?, statement.is_single()) {
        (Some(prepared), true) => {
            let row = client.query_opt(&prepared, &parameters(&values)).await;
            row.map(|row| row.into_iter().collect())
        }
        (Some(prepared), false) => client.query(&prepared, &parameters(&values)).await,
        (None, _) => client.query_typed(statement.sql(), &typed_parameters(&values)).await,
    };
    let rows = rows.map_err(|error| failed(&error))?;
    Ok(rows.into_iter().map(TokioPostgresRow).collect())
}

async fn execute(
    client: &Client,
    cache: Option<&StatementCache>,
    statement: &Statement,
) -> Result<u64, SqlError> {
    let values = bound(statement);
    let count = match prepared(client, cache, statement).await? {
        Some(prepared) => client.execute(&prepared, &parameters(&values)).await,
        None => client.execute_typed(statement.sql(), &typed_parameters(&values)).await,
    };
    count.map_err(|error| failed(&error))
}

/// Returns the prepared statement; `None` if it is not to be kept, or there is no cache that would.
async fn prepared(
    client: &Client,
    cache: Option<&StatementCache>,
    statement: &Statement,
) -> Result<Option<Prepared>, SqlError> {
    let Some(cache) = cache.filter(|_| statement.is_kept()) else {
        return Ok(None);
    };
    let types: Vec<Type> = statement.values().iter().map(type_of).collect();
    let prepared = cache.prepare_typed(client, statement.sql(), &types).await;
    prepared.map(Some).map_err(|error| failed(&error))
}

/// Makes PostgreSQL refuse all further statements of a transaction but a rollback.
fn fail(client: &Client) {
    let mut failing = pin!(client.batch_execute(FAIL));
    // The first poll sends the statement, behind all that were sent before.
    let _ = failing.as_mut().poll(&mut Context::from_waker(Waker::noop()));
}

/// A value of a statement.
///
/// Shows the type and not the value, because tokio-postgres logs the values of prepared statements.
struct Bound<'a>(&'a Value);

impl fmt::Debug for Bound<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl ToSql for Bound<'_> {
    fn to_sql(
        &self,
        ty: &Type,
        out: &mut BytesMut,
    ) -> Result<IsNull, Box<dyn StdError + Sync + Send>> {
        match self.0 {
            Value::Int(value) => value.to_sql(ty, out),
            Value::Text(value) => value.to_sql(ty, out),
            Value::Bytes(value) => value.to_sql(ty, out),
        }
    }

    fn accepts(ty: &Type) -> bool {
        [Type::INT8, Type::TEXT, Type::BYTEA].contains(ty)
    }

    fn to_sql_checked(
        &self,
        ty: &Type,
        out: &mut BytesMut,
    ) -> Result<IsNull, Box<dyn StdError + Sync + Send>> {
        match self.0 {
            Value::Int(value) => value.to_sql_checked(ty, out),
            Value::Text(value) => value.to_sql_checked(ty, out),
            Value::Bytes(value) => value.to_sql_checked(ty, out),
        }
    }
}

fn type_of(value: &Value) -> Type {
    match value {
        Value::Int(_) => Type::INT8,
        Value::Text(_) => Type::TEXT,
        Value::Bytes(_) => Type::BYTEA,
    }
}

fn bound(statement: &Statement) -> Vec<Bound<'_>> {
    statement.values().iter().map(Bound).collect()
}

fn parameters<'a>(values: &'a [Bound<'_>]) -> Vec<&'a (dyn ToSql + Sync)> {
    values.iter().map(|value| -> &(dyn ToSql + Sync) { value }).collect()
}

fn typed_parameters<'a>(values: &'a [Bound<'_>]) -> Vec<(&'a (dyn ToSql + Sync), Type)> {
    parameters(values).into_iter().zip(values.iter().map(|value| type_of(value.0))).collect()
}

fn failed(error: &Error) -> SqlError {
    match reported(error) {
        Some(reported) => reported,
        None if error.is_closed() => SqlError::unreachable(&text(error)),
        None => SqlError::failed(&text(error)),
    }
}

/// Maps the error of an attempt to connect.
fn not_connected(error: &Error) -> SqlError {
    reported(error).unwrap_or_else(|| SqlError::unreachable(&text(error)))
}

/// Returns the code and the message that the database reported, without the detail, which may have
/// values of rows.
fn reported(error: &Error) -> Option<SqlError> {
    let reported = error.as_db_error()?;
    Some(SqlError::reported(reported.code().code(), reported.message()))
}

/// Returns the text of an error that the database did not report, with its cause.
fn text(error: &Error) -> String {
    match error.source() {
        Some(cause) => format!("{error}: {cause}"),
        None => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_written_as_its_type_alone_and_not_shown() {
        let values = [
            (Value::Int(Some(7)), Type::INT8, &7_i64.to_be_bytes()[..]),
            (Value::Text(Some("secret".into())), Type::TEXT, b"secret"),
            (Value::Bytes(Some(b"secret".to_vec())), Type::BYTEA, b"secret"),
        ];
        for (value, own, expected) in &values {
            for ty in [Type::INT8, Type::TEXT, Type::BYTEA, Type::INT4] {
                let mut out = BytesMut::new();
                let written = Bound(value).to_sql_checked(&ty, &mut out);
                assert_eq!(written.is_ok(), ty == *own, "{value:?} as {ty}");
                assert_eq!(&out[..], if ty == *own { expected } else { &b""[..] });
            }
            assert!(!format!("{:?}", Bound(value)).contains("secret"));
        }
        let null = Bound(&Value::Text(None)).to_sql_checked(&Type::TEXT, &mut BytesMut::new());
        assert!(matches!(null, Ok(IsNull::Yes)));
    }
}
