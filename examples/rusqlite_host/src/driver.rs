//! The driver: patkit's statements on the host's pool.

use crate::pool::{Error, Lent, Pool};
use patkit::store::sql::{
    Connection, Driver, NoListener, Row, Session, SqlError, Sqlite, Statement, Value,
};
use rusqlite::Error::{SqlInputError, SqliteFailure};
use rusqlite::types::{FromSqlError, ValueRef};

impl Driver for Pool {
    type Session = Lent;
    type Listener = NoListener;

    async fn acquire(&self) -> Result<Lent, SqlError> {
        self.get().await.map_err(failed)
    }

    fn max_connections(&self) -> u32 {
        self.size()
    }
}

impl Connection for Lent {
    type Engine = Sqlite;
    type Row = Vec<Value>;

    async fn fetch(&mut self, statement: Statement) -> Result<Vec<Vec<Value>>, SqlError> {
        let rows = self.call(move |connection| prepared(connection, &statement, copied));
        rows.await.map_err(failed)
    }

    /// Runs on this thread, because a lookup takes microseconds and, in WAL mode, waits for no
    /// other connection.
    async fn fetch_one<T: Send>(
        &mut self,
        statement: Statement,
        read: impl FnOnce(&dyn Row) -> T + Send,
    ) -> Result<Option<T>, SqlError> {
        let row = self.call_here(|connection| {
            prepared(connection, &statement, |prepared| {
                Ok(prepared.raw_query().next()?.map(|row| read(&InPlace(row))))
            })
        });
        row.map_err(failed)
    }

    async fn execute(&mut self, statement: Statement) -> Result<u64, SqlError> {
        let changed = self.call(move |connection| {
            prepared(connection, &statement, |prepared| prepared.raw_execute())
        });
        u64::try_from(changed.await.map_err(failed)?).map_err(|error| SqlError::failed(&error))
    }

    async fn run(&mut self, sql: &str) -> Result<(), SqlError> {
        let sql = sql.to_owned();
        self.call(move |connection| connection.execute_batch(&sql)).await.map_err(failed)
    }

    fn abandon(&mut self) {
        self.give_back();
    }
}

impl Session for Lent {}

/// Prepares a statement or takes it from the connection's cache, binds its values, and runs it.
fn prepared<T>(
    connection: &rusqlite::Connection,
    statement: &Statement,
    run: impl FnOnce(&mut rusqlite::Statement<'_>) -> rusqlite::Result<T>,
) -> rusqlite::Result<T> {
    let mut prepared = connection.prepare_cached(statement.sql())?;
    for (place, value) in (1..).zip(statement.values()) {
        match value {
            Value::Int(value) => prepared.raw_bind_parameter(place, value),
            Value::Text(value) => prepared.raw_bind_parameter(place, value),
            Value::Bytes(value) => prepared.raw_bind_parameter(place, value),
        }?;
    }
    let result = run(&mut prepared);
    if !statement.is_kept() {
        prepared.discard();
    }
    result
}

/// A row that is read before the statement is reset.
struct InPlace<'a>(&'a rusqlite::Row<'a>);

impl Row for InPlace<'_> {
    fn int(&self, index: usize) -> Option<Option<i64>> {
        self.0.get_ref(index).ok()?.as_i64_or_null().ok()
    }

    fn text(&self, index: usize) -> Option<Option<&str>> {
        self.0.get_ref(index).ok()?.as_str_or_null().ok()
    }

    fn bytes(&self, index: usize) -> Option<Option<&[u8]>> {
        self.0.get_ref(index).ok()?.as_blob_or_null().ok()
    }
}

/// Copies the rows.
fn copied(prepared: &mut rusqlite::Statement<'_>) -> rusqlite::Result<Vec<Vec<Value>>> {
    let columns = prepared.column_count();
    let rows = prepared.raw_query();
    rows.mapped(|row| (0..columns).map(|index| cell(row.get_ref(index)?)).collect()).collect()
}

fn cell(value: ValueRef<'_>) -> rusqlite::Result<Value> {
    Ok(match value {
        // SQLite does not say the type of a null.
        ValueRef::Null => Value::Int(None),
        ValueRef::Integer(value) => Value::Int(Some(value)),
        ValueRef::Text(_) => Value::Text(Some(value.as_str()?.to_owned())),
        ValueRef::Blob(value) => Value::Bytes(Some(value.to_owned())),
        ValueRef::Real(_) => return Err(FromSqlError::InvalidType.into()),
    })
}

fn failed(error: Error) -> SqlError {
    let (error, message) = match error {
        Error::Sqlite(SqliteFailure(error, message)) => (error, message),
        // An error in the text of a statement, such as a table that does not exist.
        Error::Sqlite(SqlInputError { error, msg, .. }) => (error, Some(msg)),
        Error::Sqlite(error) => return SqlError::failed(&error),
        Error::Busy | Error::Lost => return SqlError::unreachable(&error),
    };
    let message = message.unwrap_or_else(|| error.to_string());
    SqlError::reported(&error.extended_code.to_string(), &message)
}
