//! The versions of the tables: which there are, and how one comes to the next.

use super::{Engine, Session, SetupError, SqlStore, Value};
use crate::clock::{Clock, SystemClock};
use std::sync::Arc;

/// One step.
#[doc(hidden)]
#[derive(Debug, Clone, Copy)]
#[allow(unreachable_pub, reason = "in the signature of a sealed trait")]
pub struct Migration {
    /// What the tables' version is afterwards.
    pub(in crate::store) version: i64,
    /// The version of the earliest program that goes with the tables afterwards: nodes of that one go on working while others are
    /// brought to this one.
    pub(in crate::store) min_compatible: i64,
    pub(in crate::store) name: &'static str,
    pub(in crate::store) sql: &'static str,
}

/// Does the steps that are missing, all in one transaction, one node at a time.
pub(super) async fn migrate<E: Engine>(store: &SqlStore<E>) -> Result<(), SetupError> {
    if matches!(read(store).await, Ok(found) if !found.is_behind::<E>()) {
        return Ok(());
    }
    let table = table(store);
    let mut session = Session::acquire(&store.pool).await?;
    let mut transaction = session.begin(E::DIALECT.begin).await?;
    if let Some(lock) = E::DIALECT.lock {
        E::fetch(&mut transaction, false, lock.into(), vec![Value::text(&table)]).await?;
    }
    if let Some(schema) = &store.statements.schema {
        E::script(&mut transaction, format!("SET LOCAL search_path TO {schema}")).await?;
    }
    let create = format!(
        "CREATE TABLE IF NOT EXISTS {table} (version bigint NOT NULL PRIMARY KEY, \
         min_compatible bigint NOT NULL, name text NOT NULL, applied_at bigint NOT NULL)"
    );
    E::script(&mut transaction, create).await?;
    let found = found_in::<E>(&mut transaction, &table).await?;
    for step in E::DIALECT.migrations.iter().filter(|step| step.version > found.version) {
        E::script(&mut transaction, step.sql.replace("patkit_", &store.statements.prefix)).await?;
        let insert = format!(
            "INSERT INTO {table} (version, min_compatible, name, applied_at) VALUES ($1, $2, $3, $4)"
        );
        let values = vec![
            Value::Int(Some(step.version)),
            Value::Int(Some(step.min_compatible)),
            Value::text(step.name),
            Value::Int(Some(SystemClock::new().now_micros())),
        ];
        E::execute(&mut transaction, false, insert.into(), values).await?;
    }
    transaction.commit().await?;
    Ok(())
}

/// Whether this program goes with the tables.
pub(super) async fn check<E: Engine>(store: &SqlStore<E>) -> Result<(), SetupError> {
    let own = newest::<E>();
    let found = match read(store).await {
        Ok(found) => found,
        // No such table, which is told apart from a database that does not answer.
        Err(sqlx::Error::Database(error)) if is_missing_table(&*error) => {
            Found { version: 0, min_compatible: 0 }
        }
        Err(error) => return Err(error.into()),
    };
    if found.is_behind::<E>() {
        Err(SetupError::TooOld { found: found.version, needed: own })
    } else if found.min_compatible > own {
        Err(SetupError::TooNew { found: found.version, needed: found.min_compatible, own })
    } else {
        Ok(())
    }
}

fn is_missing_table(error: &dyn sqlx::error::DatabaseError) -> bool {
    // SQLSTATE undefined_table and invalid_schema_name; SQLite has one code for all errors in a statement.
    matches!(error.code().as_deref(), Some("42P01" | "3F000")) || error.message().starts_with("no such table")
}

struct Found {
    version: i64,
    min_compatible: i64,
}

impl Found {
    fn is_behind<E: Engine>(&self) -> bool {
        self.version < newest::<E>()
    }
}

fn newest<E: Engine>() -> i64 {
    E::DIALECT.migrations.iter().map(|step| step.version).max().unwrap_or(0)
}

fn table<E: Engine>(store: &SqlStore<E>) -> String {
    let tokens = &store.statements.tokens;
    format!("{}migrations", tokens.strip_suffix("tokens").unwrap_or(tokens))
}

async fn read<E: Engine>(store: &SqlStore<E>) -> Result<Found, sqlx::Error> {
    // In a transaction, which a pooler gives one connection.
    let mut session = Session::acquire(&store.pool).await?;
    let mut transaction = session.begin("BEGIN").await?;
    let found = found_in::<E>(&mut transaction, &table(store)).await?;
    transaction.commit().await?;
    Ok(found)
}

async fn found_in<E: Engine>(connection: &mut E::Connection, table: &str) -> Result<Found, sqlx::Error> {
    let sql: Arc<str> =
        format!("SELECT COALESCE(MAX(version), 0), COALESCE(MAX(min_compatible), 0) FROM {table}").into();
    let rows = E::fetch(connection, false, sql, Vec::new()).await?;
    let number = |index| rows.first().and_then(|row| E::int(row, index).ok().flatten()).unwrap_or(0);
    Ok(Found { version: number(0), min_compatible: number(1) })
}
