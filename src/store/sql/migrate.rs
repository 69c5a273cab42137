//! The versions of the tables: which there are, and how one comes to the next.

use super::error::is_missing_table;
use super::{Engine, Session, SetupError, SqlStore, Value};
use std::sync::Arc;

/// One step.
#[doc(hidden)]
#[derive(Debug, Clone, Copy)]
#[allow(unreachable_pub, reason = "in the signature of a sealed trait")]
pub struct Migration {
    /// What the tables' version is afterwards.
    pub(in crate::store) version: i64,
    /// The statements. The last one notes the version, and the version of the earliest program that goes with the tables
    /// afterwards: nodes of that one go on working while others are brought to this one.
    pub(in crate::store) sql: &'static str,
}

/// Does the steps that are missing, all in one transaction, one node at a time.
pub(super) async fn migrate<E: Engine>(store: &SqlStore<E>) -> Result<(), SetupError> {
    if read(store).await?.is_some_and(|found| !found.is_behind::<E>()) {
        return Ok(());
    }
    require_schema(store).await?;
    let names = &store.statements.names;
    let table = names.table("migrations");
    let mut session = Session::acquire(&store.pool).await?;
    let mut transaction = session.begin(E::DIALECT.begin).await?;
    if let Some(lock) = E::DIALECT.lock {
        E::fetch(&mut transaction, false, lock.into(), vec![Value::text(&table)]).await?;
    }
    let create = format!(
        "CREATE TABLE IF NOT EXISTS {table} (version bigint NOT NULL PRIMARY KEY, \
         min_compatible bigint NOT NULL, name text NOT NULL, applied_at bigint NOT NULL)"
    );
    E::script(&mut transaction, create).await?;
    let found = found_in::<E>(&mut transaction, &table).await?;
    // Each step notes its version itself, so that a host can run the files as they are.
    for step in E::DIALECT.migrations.iter().filter(|step| step.version > found.version) {
        E::script(&mut transaction, names.script(step.sql)).await?;
    }
    transaction.commit().await?;
    Ok(())
}

/// Whether this program goes with the tables.
pub(super) async fn check<E: Engine>(store: &SqlStore<E>) -> Result<(), SetupError> {
    let own = newest::<E>();
    let found = read(store).await?.filter(|found| found.version > 0);
    let Some(found) = found else {
        require_schema(store).await?;
        return Err(SetupError::NotMigrated { table: store.statements.names.shown("migrations") });
    };
    if found.is_behind::<E>() {
        Err(SetupError::TooOld { found: found.version, needed: own })
    } else if found.min_compatible > own {
        Err(SetupError::TooNew { found: found.version, needed: found.min_compatible, own })
    } else {
        Ok(())
    }
}

/// Refuses a schema that does not exist. Asked where a table is missing, since PostgreSQL does not say which of both it is.
async fn require_schema<E: Engine>(store: &SqlStore<E>) -> Result<(), SetupError> {
    let (Some(schema), Some(count)) = (store.statements.names.schema(), E::DIALECT.count_schemas) else {
        return Ok(());
    };
    let mut session = Session::acquire(&store.pool).await?;
    let mut transaction = session.begin("BEGIN").await?;
    let rows = E::fetch(&mut transaction, false, count.into(), vec![Value::text(schema)]).await?;
    transaction.commit().await?;
    match rows.first().map(|row| E::int(row, 0)).transpose()?.flatten() {
        Some(0) => Err(SetupError::NoSchema { schema: schema.to_owned() }),
        _ => Ok(()),
    }
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

/// The version of the tables; `None` if there is no table of versions.
async fn read<E: Engine>(store: &SqlStore<E>) -> Result<Option<Found>, SetupError> {
    // In a transaction, which a pooler gives one connection.
    let mut session = Session::acquire(&store.pool).await?;
    let mut transaction = session.begin("BEGIN").await?;
    let found = match found_in::<E>(&mut transaction, &store.statements.names.table("migrations")).await {
        Ok(found) => found,
        Err(error) if is_missing_table(&error) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    transaction.commit().await?;
    Ok(Some(found))
}

async fn found_in<E: Engine>(connection: &mut E::Connection, table: &str) -> Result<Found, sqlx::Error> {
    let sql: Arc<str> =
        format!("SELECT COALESCE(MAX(version), 0), COALESCE(MAX(min_compatible), 0) FROM {table}").into();
    let rows = E::fetch(connection, false, sql, Vec::new()).await?;
    let number = |index| rows.first().and_then(|row| E::int(row, index).ok().flatten()).unwrap_or(0);
    Ok(Found { version: number(0), min_compatible: number(1) })
}
