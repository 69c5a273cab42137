//! The driver: patkit's statements on a pool of diesel-async.

use diesel::QueryResult;
use diesel::deserialize::{self, QueryableByName};
use diesel::pg::Pg;
use diesel::query_builder::{AstPass, Query, QueryFragment, QueryId};
use diesel::result::DatabaseErrorKind as Kind;
use diesel::result::Error;
use diesel::row::{Field, NamedRow, Row};
use diesel::sql_types::{BigInt, Binary, Nullable, Text, Untyped};
use diesel_async::pooled_connection::deadpool::{Object, Pool};
use diesel_async::{
    AnsiTransactionManager, AsyncPgConnection, RunQueryDsl, SimpleAsyncConnection,
    TransactionManager,
};
use futures_util::StreamExt;
use patkit::store::sql::{
    self, Connection, Listener, Postgres, Session, SqlError, Statement, Value,
};
use std::pin::pin;

/// A driver on the host's pool.
#[derive(Clone)]
pub struct Driver(pub Pool<AsyncPgConnection>);

impl sql::Driver for Driver {
    type Session = Lent;
    type Listener = Listening;

    async fn acquire(&self) -> Result<Lent, SqlError> {
        let lent = self.0.get().await.map_err(|error| SqlError::unreachable(&error))?;
        Ok(Within(Some(lent)))
    }

    fn max_connections(&self) -> u32 {
        self.0.status().max_size.try_into().unwrap_or(u32::MAX)
    }

    async fn listen(&self, channel: &str) -> Result<Option<Listening>, SqlError> {
        let mut lent = self.acquire().await?;
        lent.run(&format!("LISTEN {channel}")).await?;
        Ok(lent.0.take().map(|lent| Listening(Object::take(lent))))
    }
}

/// A connection that the pool lent.
pub type Lent = Within<Option<Object<AsyncPgConnection>>>;

/// Runs statements on a connection that the pool lent, or in the host's transaction: on the
/// `&mut AsyncPgConnection` that `transaction` passes to its closure.
pub struct Within<C>(pub C);

/// A connection of diesel-async.
pub trait Handle: Send {
    fn get(&mut self) -> &mut AsyncPgConnection;
    fn abandon(&mut self);
}

impl Handle for Option<Object<AsyncPgConnection>> {
    fn get(&mut self) -> &mut AsyncPgConnection {
        self.as_mut().expect("only `abandon` takes the connection, and is the last call")
    }

    /// Closes the connection. In the pool, it would keep its locks until its next use.
    fn abandon(&mut self) {
        drop(self.take().map(Object::take));
    }
}

impl Handle for &mut AsyncPgConnection {
    fn get(&mut self) -> &mut AsyncPgConnection {
        self
    }

    /// Makes diesel refuse to commit.
    fn abandon(&mut self) {
        AnsiTransactionManager::transaction_manager_status_mut(*self).set_in_error();
    }
}

impl<C: Handle> Connection for Within<C> {
    type Engine = Postgres;
    type Row = Vec<Value>;

    async fn fetch(&mut self, statement: Statement) -> Result<Vec<Vec<Value>>, SqlError> {
        let rows: Vec<Cells> = Bound(statement).load(self.0.get()).await.map_err(failed)?;
        Ok(rows.into_iter().map(|cells| cells.0).collect())
    }

    async fn execute(&mut self, statement: Statement) -> Result<u64, SqlError> {
        let changed = Bound(statement).execute(self.0.get()).await.map_err(failed)?;
        changed.try_into().map_err(|error| SqlError::failed(&error))
    }

    async fn run(&mut self, sql: &str) -> Result<(), SqlError> {
        self.0.get().batch_execute(sql).await.map_err(failed)
    }

    fn abandon(&mut self) {
        self.0.abandon();
    }
}

impl Session for Lent {}

/// A query that diesel keeps prepared if told so. It never keeps an `sql_query`.
struct Bound(Statement);

impl QueryId for Bound {
    type QueryId = ();
    /// Tells one query from another by its text.
    const HAS_STATIC_QUERY_ID: bool = false;
}

impl Query for Bound {
    type SqlType = Untyped;
}

impl QueryFragment<Pg> for Bound {
    fn walk_ast<'b>(&'b self, mut pass: AstPass<'_, 'b, Pg>) -> QueryResult<()> {
        if !self.0.is_kept() {
            pass.unsafe_to_cache_prepared();
        }
        pass.push_sql(self.0.sql());
        self.0.values().iter().try_for_each(|value| match value {
            Value::Int(value) => pass.push_bind_param_value_only::<Nullable<BigInt>, _>(value),
            Value::Text(value) => pass.push_bind_param_value_only::<Nullable<Text>, _>(value),
            Value::Bytes(value) => pass.push_bind_param_value_only::<Nullable<Binary>, _>(value),
        })
    }
}

/// The cells of a row, by their types in PostgreSQL.
struct Cells(Vec<Value>);

impl QueryableByName<Pg> for Cells {
    fn build<'a>(row: &impl NamedRow<'a, Pg>) -> deserialize::Result<Self> {
        let cell = |index| {
            let field = Row::get(row, index).ok_or("a cell is missing")?;
            let Some(value) = field.value() else { return Ok(Value::Int(None)) };
            let bytes = value.as_bytes();
            Ok(match value.get_oid().get() {
                // int8, int4, bytea; the others that patkit asks for are texts.
                20 => Value::Int(Some(i64::from_be_bytes(bytes.try_into()?))),
                23 => Value::Int(Some(i32::from_be_bytes(bytes.try_into()?).into())),
                17 => Value::Bytes(Some(bytes.to_owned())),
                _ => Value::Text(Some(str::from_utf8(bytes)?.to_owned())),
            })
        };
        (0..row.field_count()).map(cell).collect::<deserialize::Result<_>>().map(Cells)
    }
}

/// Waits for notifications, on a connection that the pool has replaced.
pub struct Listening(AsyncPgConnection);

impl Listener for Listening {
    const TAKES_CONNECTION: bool = false;

    async fn next(&mut self) -> Result<String, SqlError> {
        match pin!(self.0.notifications_stream()).next().await {
            Some(notification) => Ok(notification.map_err(failed)?.payload),
            None => Err(SqlError::unreachable("the connection that listens was lost")),
        }
    }
}

/// Returns the code for a kind of error, because diesel does not pass the code on.
fn failed(error: Error) -> SqlError {
    let Error::DatabaseError(kind, information) = &error else {
        return SqlError::failed(&error);
    };
    let message = information.message();
    match kind {
        Kind::UniqueViolation => SqlError::reported("23505", message),
        Kind::SerializationFailure => SqlError::reported("40001", message),
        Kind::UnableToSendCommand | Kind::ClosedConnection => SqlError::unreachable(message),
        _ => SqlError::failed(message),
    }
}
