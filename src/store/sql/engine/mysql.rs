//! MySQL and MariaDB.

use super::{Dialect, EngineKind};
use crate::store::Touch;
use crate::store::record::Row;
use crate::store::sql::Value;
use crate::store::sql::driver::{Connection, Driver, Statement};
use crate::store::sql::error::SetupError;
use crate::store::sql::migrate::Migration;
use crate::store::sql::unexpected;
use std::collections::HashMap;

pub(super) static DIALECT: Dialect = Dialect {
    kind: EngineKind::MySql,
    name: "mysql",
    quote: '`',
    // A transaction takes its numbers under a lock that it holds until it ends, so they are in
    // commit order.
    export: |columns, names| {
        let events = names.table("events");
        let numbers = names.table("numbers");
        format!(
            "SELECT {columns}, 0, event.seq, newest.seq \
             FROM (SELECT newest AS seq FROM {numbers}) AS newest \
             LEFT JOIN (SELECT * FROM {events} WHERE $1 >= 0 AND seq > $2 ORDER BY seq LIMIT $3) AS event \
             ON TRUE ORDER BY event.seq"
        )
    },
    has_transaction_ids: false,
    // Applies to the next transaction only. A compare-and-set needs no higher level, and the
    // default would lock gaps between rows too.
    before_begin: Some("SET TRANSACTION ISOLATION LEVEL READ COMMITTED"),
    begin: "START TRANSACTION",
    prune_events: |events, before, limit| {
        format!("DELETE FROM {events} WHERE at < {before} ORDER BY at, id LIMIT {limit}")
    },
    keep_first: |column| format!(" ON DUPLICATE KEY UPDATE {column} = {column}"),
    touch,
    is_touch_fixed: true,
    lock_rows: Some(" FOR UPDATE"),
    pause: Some(|millis| format!("DO SLEEP(RAND() * {millis} / 1000)")),
    // MariaDB would otherwise read a page of all tokens or events from the newest on, and skip those
    // before the page.
    index_hint: |index| format!(" FORCE INDEX ({index})"),
    count_schemas: Some("SELECT COUNT(*) FROM information_schema.schemata WHERE schema_name = $1"),
    find_table: None,
    longest_name: Some(64),
    reserved_prefix: None,
    notifies: false,
    // The statements of a migration may run twice, and at the same time.
    lock: None,
    migrations: &[Migration {
        version: 1,
        sql: include_str!("../../migrations/mysql/0001_tokens.sql"),
    }],
};

/// Builds the statement that records last uses.
///
/// Its only value is a JSON array, because MySQL and MariaDB have no other list of rows in common.
/// The ids are in hexadecimal digits.
fn touch(table: &str, uses: &[Touch]) -> (String, Vec<Value>) {
    let sql = format!(
        "UPDATE {table} AS token JOIN JSON_TABLE($1, '$[*]' COLUMNS (id CHAR(32) PATH '$[0]', at BIGINT PATH '$[1]', \
         address VARCHAR(64) PATH '$[2]', latest BIGINT PATH '$[3]')) AS used ON token.id = UNHEX(used.id) \
         SET token.last_used_at = used.at, token.last_used_address = used.address \
         WHERE token.last_used_at IS NULL OR token.last_used_at < used.at OR token.last_used_at > used.latest"
    );
    let uses = uses.iter().map(|touch| {
        let address = touch.last_use.address;
        let address = address.map_or_else(|| "null".into(), |address| format!("\"{address}\""));
        let [at, latest] = [touch.last_use.at, touch.plausible_until].map(crate::clock::micros);
        format!("[\"{:032x}\",{at},{address},{latest}]", u128::from_be_bytes(touch.id.to_bytes()))
    });
    let uses: Vec<String> = uses.collect();
    (sql, vec![Value::Text(Some(format!("[{}]", uses.join(","))))])
}

/// Refuses a database that would break the contract.
pub(in crate::store::sql) async fn check<D: Driver>(driver: &D) -> Result<(), SetupError> {
    let failed = |error| SetupError::new(error, EngineKind::MySql);
    let mut session = driver.acquire().await.map_err(failed)?;
    let sql = "SHOW VARIABLES WHERE Variable_name IN ('sql_mode', 'innodb_flush_log_at_trx_commit', \
               'wsrep_on', 'wsrep_sync_wait', 'character_set_client', 'autocommit')";
    let rows = session.fetch(Statement::new(sql.into(), Vec::new())).await.map_err(failed)?;
    let mut settings = HashMap::new();
    for row in &rows {
        let (Some(name), Some(value)) = (row.text(0).flatten(), row.text(1).flatten()) else {
            return Err(failed(unexpected("a setting without a value")));
        };
        settings.insert(name.to_ascii_lowercase(), value.to_owned());
    }
    let setting = |name: &str| settings.get(name).map(String::as_str).unwrap_or_default();
    let is_cluster = setting("wsrep_on") == "ON";
    let refused = |setting, found: &str, needed, cure, harm| {
        Err(SetupError::Setting { setting, found: found.to_owned(), needed, cure, harm })
    };
    let mode = setting("sql_mode");
    if !mode.contains("STRICT_TRANS_TABLES") && !mode.contains("STRICT_ALL_TABLES") {
        return refused(
            "sql_mode",
            mode,
            "STRICT_TRANS_TABLES or STRICT_ALL_TABLES in it",
            "run `SET GLOBAL sql_mode = CONCAT(@@sql_mode, ',STRICT_TRANS_TABLES')` and connect anew",
            "values that do not fit are cut without an error",
        );
    }
    let charset = setting("character_set_client");
    if charset != "utf8mb4" {
        return refused(
            "character_set_client",
            charset,
            "utf8mb4",
            "set the connections' character set to utf8mb4 (sqlx: `.charset(\"utf8mb4\")`)",
            "names in some scripts cannot be stored",
        );
    }
    if setting("autocommit") != "ON" {
        return refused(
            "autocommit",
            setting("autocommit"),
            "ON",
            "remove `autocommit=0` from the server's configuration or the pool's first statement",
            "last uses are never committed",
        );
    }
    // In a cluster, another node has what this one loses.
    let flush = setting("innodb_flush_log_at_trx_commit");
    if flush != "1" && !is_cluster {
        return refused(
            "innodb_flush_log_at_trx_commit",
            flush,
            "1",
            "run `SET GLOBAL innodb_flush_log_at_trx_commit = 1`, and set it in the server's configuration",
            "an acknowledged revocation is lost with the power",
        );
    }
    // Bit 1 is for reads (Galera documentation, wsrep_sync_wait).
    let waits = setting("wsrep_sync_wait").parse::<u32>().is_ok_and(|bits| bits & 1 == 1);
    if is_cluster && !waits {
        return refused(
            "wsrep_sync_wait",
            setting("wsrep_sync_wait"),
            "1 or another odd number",
            "run `SET GLOBAL wsrep_sync_wait = 1` on each node, or `SET wsrep_sync_wait = 1` on each connection of the pool",
            "a node accepts a token for a moment after another node has acknowledged its revocation",
        );
    }
    Ok(())
}
