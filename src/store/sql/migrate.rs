//! The versions of the tables, and the migrations between them.

use super::driver::{Connection, Driver, Statement};
use super::engine::EngineKind;
use super::error::{Meaning, SqlError};
use super::names::Names;
use super::{Begun, SetupError, SqlStore, first_int};
use crate::store::record::{EVENT_COLUMNS, Row, TOKEN_COLUMNS, Value};

/// A migration.
#[doc(hidden)]
#[derive(Debug, Clone, Copy)]
#[allow(unreachable_pub, reason = "in the signature of a sealed trait")]
pub struct Migration {
    /// The version of the tables after this migration.
    pub(super) version: i64,
    /// The statements.
    ///
    /// The last one records the version and the earliest program version that is compatible with
    /// the tables afterwards. Nodes of that version keep working while others are upgraded.
    pub(super) sql: &'static str,
}

impl<D: Driver> SqlStore<D> {
    fn failed(&self) -> impl Fn(SqlError) -> SetupError + Copy + use<D> {
        let kind = self.statements.dialect.kind;
        move |error| SetupError::new(error, kind)
    }

    fn newest_version(&self) -> i64 {
        let versions = self.statements.dialect.migrations.iter().map(|step| step.version);
        versions.max().expect("every engine has a migration")
    }
}

/// Runs the missing migrations, on one node at a time: all in one transaction, or, in MySQL, in
/// statements that may run again after a failure.
pub(super) async fn migrate<D: Driver>(store: &SqlStore<D>) -> Result<(), SetupError> {
    let newest = store.newest_version();
    if read(store).await?.is_some_and(|found| found.version >= newest) {
        return Ok(());
    }
    require_schema(store).await?;
    let (names, dialect) = (&store.statements.names, store.statements.dialect);
    let table = names.table("migrations");
    let failed = store.failed();
    let mut transaction = Begun::begin_to_write(&store.driver).await.map_err(failed)?;
    let session = transaction.session();
    if let Some(lock) = dialect.lock {
        let lock = Statement::new(lock.into(), vec![Value::text(&table)]);
        session.fetch(lock).await.map_err(failed)?;
    }
    let create = format!(
        "CREATE TABLE IF NOT EXISTS {table} (version bigint NOT NULL PRIMARY KEY, \
         min_compatible bigint NOT NULL, name text NOT NULL, applied_at bigint NOT NULL)"
    );
    session.run(&create).await.map_err(failed)?;
    let found = found_in(session, &table).await.map_err(failed)?;
    // Each migration records its own version, so that a host can run the files unchanged.
    for step in dialect.migrations.iter().filter(|step| step.version > found.version) {
        let mut statements = names.script(step.sql);
        let record = statements.pop().expect("the SQL files have statements");
        for statement in statements {
            session.run(&statement).await.map_err(failed)?;
        }
        if dialect.kind == EngineKind::MySql {
            check_tables(session, names).await.map_err(failed)?;
        }
        session.run(&record).await.map_err(failed)?;
    }
    transaction.commit().await.map_err(failed)
}

/// Fails if a table is someone else's, which `CREATE TABLE IF NOT EXISTS` does not notice.
async fn check_tables<C: Connection>(session: &mut C, names: &Names) -> Result<(), SqlError> {
    let columns = [
        ("tokens", TOKEN_COLUMNS.join(", ")),
        ("events", EVENT_COLUMNS.join(", ")),
        ("key_checks", "key_id, check_value".to_owned()),
        ("numbers", "one, newest".to_owned()),
    ];
    for (table, columns) in columns {
        let sql = format!("SELECT {columns} FROM {} LIMIT 0", names.table(table));
        session.fetch(Statement::new(sql.into(), Vec::new())).await?;
    }
    Ok(())
}

/// Checks that this program is compatible with the tables.
pub(super) async fn check<D: Driver>(store: &SqlStore<D>) -> Result<(), SetupError> {
    let own = store.newest_version();
    let found = read(store).await?.filter(|found| found.version > 0);
    let Some(found) = found else {
        require_schema(store).await?;
        return Err(SetupError::NotMigrated { table: store.statements.names.shown("migrations") });
    };
    if found.version < own {
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
async fn require_schema<D: Driver>(store: &SqlStore<D>) -> Result<(), SetupError> {
    let dialect = store.statements.dialect;
    let (Some(schema), Some(count)) = (store.statements.names.schema(), dialect.count_schemas)
    else {
        return Ok(());
    };
    let failed = store.failed();
    let count = dialect.sql(count);
    let statement = Statement::new(count.text.clone(), vec![Value::text(schema)]);
    let mut transaction = Begun::begin(&store.driver, "BEGIN").await.map_err(failed)?;
    let rows = transaction.session().fetch(statement).await.map_err(failed)?;
    transaction.commit().await.map_err(failed)?;
    match first_int(&rows, 0).map_err(failed)? {
        0 => Err(SetupError::NoSchema { schema: schema.to_owned() }),
        _ => Ok(()),
    }
}

struct Found {
    version: i64,
    min_compatible: i64,
}

/// Reads the version of the tables; `None` if the table of versions does not exist.
async fn read<D: Driver>(store: &SqlStore<D>) -> Result<Option<Found>, SetupError> {
    let failed = store.failed();
    // Reads in a transaction, because a pooler assigns one connection to a transaction.
    let mut transaction = Begun::begin(&store.driver, "BEGIN").await.map_err(failed)?;
    let session = transaction.session();
    let table = store.statements.names.table("migrations");
    if let Some(find) = store.statements.dialect.find_table {
        let find = Statement::new(find.into(), vec![Value::text(&table)]);
        let rows = session.fetch(find).await.map_err(failed)?;
        if rows.first().and_then(|row| row.text(0)).flatten().is_none() {
            transaction.commit().await.map_err(failed)?;
            return Ok(None);
        }
    }
    match found_in(session, &table).await {
        Ok(found) => {
            transaction.commit().await.map_err(failed)?;
            Ok(Some(found))
        }
        // Expected before the first migration.
        Err(error) if store.statements.meaning(&error) == Meaning::MissingTable => {
            transaction.rollback().await.map_err(failed)?;
            Ok(None)
        }
        Err(error) => Err(failed(error)),
    }
}

async fn found_in<C: Connection>(connection: &mut C, table: &str) -> Result<Found, SqlError> {
    let sql =
        format!("SELECT COALESCE(MAX(version), 0), COALESCE(MAX(min_compatible), 0) FROM {table}");
    let rows = connection.fetch(Statement::new(sql.into(), Vec::new())).await?;
    let (version, min_compatible) = (first_int(&rows, 0)?, first_int(&rows, 1)?);
    Ok(Found { version, min_compatible })
}
