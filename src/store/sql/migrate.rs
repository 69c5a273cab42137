//! The versions of the tables, and the migrations between them.

use super::error::is_missing_table;
use super::{Engine, Session, SetupError, SqlStore, Value, first_int};
use std::sync::Arc;

/// A migration.
#[doc(hidden)]
#[derive(Debug, Clone, Copy)]
#[allow(unreachable_pub, reason = "in the signature of a sealed trait")]
pub struct Migration {
    /// The version of the tables after this migration.
    pub(in crate::store) version: i64,
    /// The statements.
    ///
    /// The last one records the version and the earliest program version that is compatible with
    /// the tables afterwards. Nodes of that version keep working while others are upgraded.
    pub(in crate::store) sql: &'static str,
}

/// Runs the missing migrations, all in one transaction, on one node at a time.
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
    // Each migration records its own version, so that a host can run the files unchanged.
    for step in E::DIALECT.migrations.iter().filter(|step| step.version > found.version) {
        E::script(&mut transaction, names.script(step.sql)).await?;
    }
    transaction.commit().await?;
    Ok(())
}

/// Checks that this program is compatible with the tables.
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

/// Refuses a schema that does not exist.
///
/// Called if a table is missing, because PostgreSQL does not say which of the two is missing.
async fn require_schema<E: Engine>(store: &SqlStore<E>) -> Result<(), SetupError> {
    let (Some(schema), Some(count)) = (store.statements.names.schema(), E::DIALECT.count_schemas)
    else {
        return Ok(());
    };
    let mut session = Session::acquire(&store.pool).await?;
    let mut transaction = session.begin("BEGIN").await?;
    let rows = E::fetch(&mut transaction, false, count.into(), vec![Value::text(schema)]).await?;
    transaction.commit().await?;
    match first_int::<E>(&rows, 0)? {
        0 => Err(SetupError::NoSchema { schema: schema.to_owned() }),
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
    let versions = E::DIALECT.migrations.iter().map(|step| step.version);
    versions.max().expect("every engine has a migration")
}

/// Reads the version of the tables; `None` if the table of versions does not exist.
async fn read<E: Engine>(store: &SqlStore<E>) -> Result<Option<Found>, SetupError> {
    // Reads in a transaction, because a pooler assigns one connection to a transaction.
    let mut session = Session::acquire(&store.pool).await?;
    let mut transaction = session.begin("BEGIN").await?;
    let found =
        match found_in::<E>(&mut transaction, &store.statements.names.table("migrations")).await {
            Ok(found) => found,
            Err(error) if is_missing_table(&error) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
    transaction.commit().await?;
    Ok(Some(found))
}

async fn found_in<E: Engine>(
    connection: &mut E::Connection,
    table: &str,
) -> Result<Found, sqlx::Error> {
    let sql: Arc<str> =
        format!("SELECT COALESCE(MAX(version), 0), COALESCE(MAX(min_compatible), 0) FROM {table}")
            .into();
    let rows = E::fetch(connection, false, sql, Vec::new()).await?;
    let (version, min_compatible) = (first_int::<E>(&rows, 0)?, first_int::<E>(&rows, 1)?);
    Ok(Found { version, min_compatible })
}
