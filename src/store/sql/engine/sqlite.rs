//! SQLite.

use super::{Dialect, EngineKind, on_conflict_do_nothing};
use crate::store::Touch;
use crate::store::record::Row;
use crate::store::sql::driver::{Connection, Driver, Statement};
use crate::store::sql::error::{SetupError, SqlError};
use crate::store::sql::migrate::Migration;
use crate::store::sql::{MAX_TOUCHES, Value, first_int, unexpected};

pub(super) static DIALECT: Dialect = Dialect {
    kind: EngineKind::Sqlite,
    name: "sqlite",
    quote: '"',
    // Only one transaction writes at a time, so the numbers are in commit order. AUTOINCREMENT
    // never reuses a number.
    export: |columns, names| {
        let events = names.table("events");
        let name = names.events_text();
        format!(
            "SELECT {columns}, 0, event.seq, newest.seq \
             FROM (SELECT COALESCE(MAX(seq), 0) AS seq FROM sqlite_sequence WHERE name = {name} COLLATE NOCASE) AS newest \
             LEFT JOIN (SELECT * FROM {events} WHERE $1 >= 0 AND seq > $2 ORDER BY seq LIMIT $3) AS event \
             ON TRUE ORDER BY event.seq"
        )
    },
    has_transaction_ids: false,
    before_begin: None,
    // Takes the write lock at once, because a transaction that reads before it writes cannot wait
    // for the lock.
    begin: "BEGIN IMMEDIATE",
    prune_events: |events, before, limit| {
        format!(
            "DELETE FROM {events} WHERE seq IN \
             (SELECT seq FROM {events} WHERE at < {before} ORDER BY at, id LIMIT {limit})"
        )
    },
    keep_first: on_conflict_do_nothing,
    touch,
    is_touch_fixed: false,
    lock_rows: None,
    pause: None,
    index_hint: |_| String::new(),
    count_schemas: None,
    find_table: None,
    longest_name: None,
    reserved_prefix: Some("sqlite_"),
    notifies: false,
    lock: None,
    migrations: &[Migration {
        version: 1,
        sql: include_str!("../../migrations/sqlite/0001_tokens.sql"),
    }],
};

/// Builds the statement that records last uses.
///
/// Without the limit SQLite expects about a million uses. It would then read the whole table first,
/// for a Bloom filter (seen in 3.40, after `ANALYZE`). The parameters are unnamed, because some
/// drivers look up named ones one by one.
fn touch(table: &str, uses: &[Touch]) -> (String, Vec<Value>) {
    let rows = vec!["(?, ?, ?, ?)"; uses.len()].join(", ");
    let values = uses.iter().flat_map(|touch| {
        let address = touch.last_use.address.map(|address| address.to_string());
        let [at, latest] = [touch.last_use.at, touch.plausible_until].map(Value::time);
        [Value::id(touch.id), at, Value::Text(address), latest]
    });
    let sql = format!(
        "WITH used (id, at, address, latest) AS (SELECT * FROM (VALUES {rows}) LIMIT {MAX_TOUCHES}) \
         UPDATE {table} SET last_used_at = used.at, last_used_address = used.address FROM used \
         WHERE {table}.id = used.id AND ({table}.last_used_at IS NULL \
         OR {table}.last_used_at < used.at OR {table}.last_used_at > used.latest)"
    );
    (sql, values.collect())
}

async fn read<C: Connection>(connection: &mut C, sql: String) -> Result<C::Row, SqlError> {
    let rows = connection.fetch(Statement::new(sql.into(), Vec::new())).await?;
    rows.into_iter().next().ok_or_else(|| unexpected("no row"))
}

/// Refuses a pool that would break the contract.
///
/// `probe` is the quoted name of a table that the check may create.
pub(in crate::store::sql) async fn check<D: Driver>(
    driver: &D,
    probe: &str,
) -> Result<(), SetupError> {
    let failed = |error| SetupError::new(error, EngineKind::Sqlite);
    let mut session = driver.acquire().await.map_err(failed)?;
    let mut setting = async |name: &str| {
        let row = read(&mut session, format!("PRAGMA {name}")).await?;
        let number = row.int(0).flatten().map(|number| number.to_string());
        let text = || row.text(0).flatten().map(str::to_owned);
        number.or_else(text).ok_or_else(|| unexpected("a setting without a value"))
    };
    let journal = setting("journal_mode").await.map_err(failed)?;
    let synchronous = setting("synchronous").await.map_err(failed)?;
    let timeout = setting("busy_timeout").await.map_err(failed)?;
    // The file of `main`, which is empty for an in-memory database. Its journal is not checked.
    let sql = "SELECT COALESCE(MAX(file), '') = '' FROM pragma_database_list WHERE name = 'main'";
    let rows = session.fetch(Statement::new(sql.into(), Vec::new())).await.map_err(failed)?;
    let is_in_memory = first_int(&rows, 0).map_err(failed)? != 0;
    if journal != "wal" && !is_in_memory {
        return Err(SetupError::Setting {
            setting: "journal_mode",
            found: journal,
            needed: "WAL",
            cure: "set `.journal_mode(SqliteJournalMode::Wal)` in sqlx, or run `PRAGMA journal_mode = WAL` once",
            harm: "verifications and changes wait for each other",
        });
    }
    // FULL is 2, EXTRA is 3.
    if !is_in_memory && !matches!(&*synchronous, "2" | "3") {
        return Err(SetupError::Setting {
            setting: "synchronous",
            found: if synchronous == "0" { "off".into() } else { "normal".into() },
            needed: "FULL or EXTRA",
            cure: "set `.synchronous(SqliteSynchronous::Full)` in sqlx, or run `PRAGMA synchronous = FULL` on each connection",
            harm: "an acknowledged revocation is lost with the power",
        });
    }
    if timeout.parse::<u64>().is_ok_and(|millis| millis < 1_000) {
        return Err(SetupError::Setting {
            setting: "busy_timeout",
            found: format!("{timeout} ms"),
            needed: "1 s or more",
            cure: "set `.busy_timeout(Duration::from_secs(5))` in sqlx, or run `PRAGMA busy_timeout = 5000` on each connection",
            harm: "changes of two connections fail instead of waiting for each other",
        });
    }
    if is_in_memory && driver.max_connections() > 1 {
        let mut second = driver.acquire().await.map_err(failed)?;
        session.run(&format!("CREATE TABLE {probe} (probe)")).await.map_err(failed)?;
        let is_shared = read(&mut second, format!("SELECT COUNT(*) FROM {probe}")).await.is_ok();
        session.run(&format!("DROP TABLE {probe}")).await.map_err(failed)?;
        if !is_shared {
            return Err(SetupError::Setting {
                setting: "the database in memory",
                found: "one for each connection".into(),
                needed: "one database for all connections",
                cure: "set `.max_connections(1)` on the pool, or use a file",
                harm: "each connection has tokens of its own",
            });
        }
    }
    Ok(())
}
