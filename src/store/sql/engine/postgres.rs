//! PostgreSQL.

use super::{Dialect, EngineKind, on_conflict_do_nothing};
use crate::clock::micros;
use crate::store::Touch;
use crate::store::record::Row;
use crate::store::sql::driver::{Connection, Driver, Statement};
use crate::store::sql::error::SetupError;
use crate::store::sql::migrate::Migration;
use crate::store::sql::{Begun, Value, unexpected};
use std::fmt::Display;

pub(super) static DIALECT: Dialect = Dialect {
    kind: EngineKind::Postgres,
    name: "postgres",
    quote: '"',
    // All transactions before the oldest one open in the snapshot have ended, so none of their
    // events is committed later.
    export: |columns, names| {
        let events = names.table("events");
        format!(
            "SELECT {columns}, event.xact, event.seq, txid_snapshot_xmax(snapshot.open) \
             FROM (SELECT txid_current_snapshot() AS open) AS snapshot \
             LEFT JOIN (SELECT * FROM {events} WHERE xact < txid_snapshot_xmin(txid_current_snapshot()) \
             AND (xact, seq) > ($1, $2) ORDER BY xact, seq LIMIT $3) AS event \
             ON TRUE ORDER BY event.xact, event.seq"
        )
    },
    has_transaction_ids: true,
    before_begin: None,
    // Overrides the session's default. A compare-and-set needs no higher level, and a higher level
    // would make it fail where it could wait.
    begin: "BEGIN ISOLATION LEVEL READ COMMITTED",
    prune_events: |events, before, limit| {
        format!(
            "DELETE FROM {events} WHERE seq IN (SELECT seq FROM {events} WHERE at < {before} \
             ORDER BY at, id LIMIT {limit} FOR UPDATE SKIP LOCKED)"
        )
    },
    keep_first: on_conflict_do_nothing,
    touch,
    is_touch_fixed: true,
    lock_rows: Some(" FOR NO KEY UPDATE"),
    pause: Some(|millis| {
        format!("DO $$ BEGIN PERFORM pg_sleep(random() * {millis} / 1000); END $$")
    }),
    index_hint: |_| String::new(),
    count_schemas: Some("SELECT COUNT(*) FROM pg_catalog.pg_namespace WHERE nspname = $1"),
    // Not every driver passes on the code of an error, which alone says that a table is missing.
    find_table: Some("SELECT to_regclass($1)::text"),
    longest_name: Some(63),
    reserved_prefix: None,
    notifies: true,
    // The lock belongs to the transaction, so that it works through a pooler. The result is a text,
    // because not every driver reads an empty type.
    lock: Some("SELECT pg_advisory_xact_lock(hashtextextended($1, 0))::text"),
    migrations: &[Migration {
        version: 1,
        sql: include_str!("../../migrations/postgres/0001_tokens.sql"),
    }],
};

/// Builds the statement that records last uses.
///
/// Its four values are arrays in PostgreSQL's text form, so that a driver needs no arrays. It locks
/// the rows in the order of their ids, which an update alone does not guarantee, so that two nodes
/// do not deadlock.
fn touch(table: &str, uses: &[Touch]) -> (String, Vec<Value>) {
    let sql = format!(
        "WITH used AS (SELECT * FROM unnest($1::text::bytea[], $2::text::bigint[], $3::text::text[], \
           $4::text::bigint[]) AS used (id, at, address, latest)), \
         locked AS MATERIALIZED \
           (SELECT id FROM {table} WHERE id = ANY($1::text::bytea[]) ORDER BY id FOR NO KEY UPDATE) \
         UPDATE {table} AS token SET last_used_at = used.at, last_used_address = used.address \
         FROM used JOIN locked ON locked.id = used.id \
         WHERE token.id = used.id AND (token.last_used_at IS NULL OR token.last_used_at < used.at \
         OR token.last_used_at > used.latest)"
    );
    let ids = uses
        .iter()
        .map(|touch| format!("\"\\\\x{:032x}\"", u128::from_be_bytes(touch.id.to_bytes())));
    let addresses = uses.iter().map(|touch| match touch.last_use.address {
        Some(address) => address.to_string(),
        None => "NULL".to_owned(),
    });
    let values = vec![
        array(ids),
        array(uses.iter().map(|touch| micros(touch.last_use.at))),
        array(addresses),
        array(uses.iter().map(|touch| micros(touch.plausible_until))),
    ];
    (sql, values)
}

/// Returns an array in the text form of PostgreSQL 12, section 8.15.6.
fn array(values: impl Iterator<Item = impl Display>) -> Value {
    let values: Vec<String> = values.map(|value| value.to_string()).collect();
    Value::Text(Some(format!("{{{}}}", values.join(","))))
}

/// Refuses a database that would break the contract.
pub(in crate::store::sql) async fn check<D: Driver>(driver: &D) -> Result<(), SetupError> {
    let failed = |error| SetupError::new(error, EngineKind::Postgres);
    // In a transaction, because a pooler assigns one connection to a transaction.
    let mut transaction = Begun::begin(driver, "BEGIN").await.map_err(failed)?;
    let sql = "SELECT current_setting('server_encoding'), current_setting('synchronous_commit')";
    let statement = Statement::new(sql.into(), Vec::new());
    let rows = transaction.session().fetch(statement).await.map_err(failed)?;
    transaction.commit().await.map_err(failed)?;
    let setting = |index| {
        let text = rows.first().and_then(|row| row.text(index).flatten().map(str::to_owned));
        text.ok_or_else(|| failed(unexpected("a setting without a value")))
    };
    let (encoding, commit) = (setting(0)?, setting(1)?);
    if encoding != "UTF8" {
        return Err(SetupError::Setting {
            setting: "server_encoding",
            found: encoding,
            needed: "UTF8",
            cure: "create the database with `ENCODING 'UTF8'`",
            harm: "names in some scripts cannot be stored",
        });
    }
    if commit == "off" {
        return Err(SetupError::Setting {
            setting: "synchronous_commit",
            found: commit,
            needed: "any value but off",
            cure: "set it for the pool's role with `ALTER ROLE … SET synchronous_commit = on`",
            harm: "an acknowledged revocation is lost in a crash",
        });
    }
    Ok(())
}
