//! Tables full of tokens, for the benches of the SQL stores.

#![allow(
    missing_docs,
    missing_debug_implementations,
    clippy::arithmetic_side_effects,
    clippy::missing_panics_doc,
    clippy::unwrap_used,
    reason = "benches"
)]

use bench_common::random;
use patkit::{PostgresStore, SqliteStore, TokenId};
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions};
use sqlx::{AssertSqlSafe, raw_sql};
use std::path::PathBuf;

/// The number of tokens of each owner.
pub const PER_OWNER: u64 = 10;
/// A thousandth of the tokens ended before this instant, in microseconds.
pub const ENDED: i64 = 1_000;

/// Returns the statement that inserts rows directly. The n-th row belongs to one of `size / 10`
/// owners, and the first thousandth is revoked.
fn rows(table: &str, id: &str, hash: &str, numbers: &str, size: u64) -> String {
    let ended = size / 1_000;
    let when = |value: &str| format!("CASE WHEN n <= {ended} THEN {value} END");
    format!(
        "INSERT INTO {table} (id, realm, owner, owner_kind, kind, name, name_key, created_at, created_by, revoked_at, \
         revoked_reason, revoked_by, revoked_authority, lifetime, scope, digest_key, digest, idle_from, version) \
         SELECT {id}, '', 'owner ' || (n % {}), 'human', 'personal', 'token ' || n, {hash}, n, 'system', {}, {}, {}, {}, \
         'default', 'inherit', 1, {hash}, n, 1 FROM {numbers}",
        size / PER_OWNER,
        when(&format!("n % {ENDED}")),
        when("'system'"),
        when("'system'"),
        when("'system'"),
    )
}

pub fn id(number: u64) -> TokenId {
    let bytes = (u128::from(number) << 80) | (0x7000_8000 << 48) | u128::from(number);
    TokenId::from_bytes(bytes.to_be_bytes()).unwrap()
}

/// Returns a pseudo-random walk over all tokens that are not revoked.
pub fn places(size: u64) -> impl Iterator<Item = u64> {
    random().map(move |number| 1 + size / 1_000 + number % (size - size / 1_000))
}

/// The folder of a SQLite database.
pub struct Folder(PathBuf);

impl Folder {
    /// Closes the store and removes the folder.
    pub async fn remove(self, store: SqliteStore) {
        store.pool().close().await;
        std::fs::remove_dir_all(self.0).unwrap();
    }
}

/// Creates this many tokens in a SQLite file, behind a pool of this many connections.
pub async fn sqlite(size: u64, connections: u32) -> (SqliteStore, Folder) {
    let folder = std::env::temp_dir().join(format!("patkit-bench-{}-{size}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let options = SqliteConnectOptions::new()
        .filename(folder.join("db"))
        .create_if_missing(true)
        .journal_mode(SqliteJournalMode::Wal);
    let pool =
        SqlitePoolOptions::new().max_connections(connections).connect_with(options).await.unwrap();
    let store = SqliteStore::builder(pool.clone()).migrate().await.unwrap();
    let numbers = format!(
        "WITH RECURSIVE numbers (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers LIMIT {size})"
    );
    let id = "unhex(printf('%012x70008%015x', n, n))";
    let rows = rows("patkit_tokens", id, "unhex(printf('%064x', n))", "numbers", size);
    raw_sql(AssertSqlSafe(format!("{numbers} {rows}; ANALYZE"))).execute(&pool).await.unwrap();
    (store, Folder(folder))
}

/// Returns the prefix of the tables in PostgreSQL.
pub fn prefix(size: u64) -> String {
    format!("bench_{}_{size}_", std::process::id())
}

/// Creates this many tokens in PostgreSQL, behind a pool of this many connections.
pub async fn postgres(url: &str, size: u64, connections: u32) -> PostgresStore {
    let options: PgConnectOptions = url.parse().unwrap();
    let pool =
        PgPoolOptions::new().max_connections(connections).connect_with(options).await.unwrap();
    let store = PostgresStore::builder(pool.clone()).prefix(&prefix(size)).migrate().await.unwrap();
    let table = format!("{}tokens", prefix(size));
    let id = "decode(lpad(to_hex(n), 12, '0') || '70008' || lpad(to_hex(n), 15, '0'), 'hex')";
    let numbers = format!("generate_series(1, {size}) AS numbers (n)");
    let rows = rows(&table, id, "sha256(n::text::bytea)", &numbers, size);
    raw_sql(AssertSqlSafe(format!("{rows}; ANALYZE {table}; CHECKPOINT")))
        .execute(&pool)
        .await
        .unwrap();
    store
}

/// Drops the tables that [`postgres`] created.
pub async fn drop_tables(store: &PostgresStore, size: u64) {
    let prefix = prefix(size);
    let drop = format!("DROP TABLE {prefix}tokens, {prefix}events, {prefix}migrations");
    raw_sql(AssertSqlSafe(drop)).execute(store.pool()).await.unwrap();
}
