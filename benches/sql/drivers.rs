//! Measures a verification without a cache against the bare lookup of the same row, for each driver
//! of the crate: `cargo bench -p patkit-benches-sql --bench drivers`, or with the number of rows
//! behind `--`. `scripts/stores` measures the drivers of the examples too, and prints all in a table.
//!
//! PostgreSQL is at `PATKIT_TEST_POSTGRES_URL` and MariaDB at `PATKIT_TEST_MARIADB_URL`; the bench
//! says which of them is not set, and skips it.

#![allow(
    missing_docs,
    unreachable_pub,
    clippy::arithmetic_side_effects,
    clippy::as_conversions,
    clippy::cast_precision_loss,
    clippy::disallowed_methods,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a bench measures time and prints"
)]

mod lookup;

use bench_tables::{MARIADB, POSTGRES, drop_tables, prefix, url};
use lookup::measure;
use lookup::rows::Engine;
use patkit::TokenId;
use sqlx::AssertSqlSafe;
use sqlx::mysql::MySqlPool;
use sqlx::postgres::PgPool;
use sqlx::sqlite::SqlitePool;

/// Looks up a row of SQLite.
async fn in_sqlite(pool: &SqlitePool, sql: &str, id: TokenId) -> bool {
    let query = sqlx::query(AssertSqlSafe(sql)).bind(id.to_bytes().to_vec());
    query.fetch_optional(pool).await.unwrap().is_some()
}

/// Looks up a row of PostgreSQL.
async fn in_postgres(pool: &PgPool, sql: &str, id: TokenId) -> bool {
    let query = sqlx::query(AssertSqlSafe(sql)).bind(id.to_bytes().to_vec());
    query.fetch_optional(pool).await.unwrap().is_some()
}

/// Looks up a row of MariaDB.
async fn in_mariadb(pool: &MySqlPool, sql: &str, id: TokenId) -> bool {
    let query = sqlx::query(AssertSqlSafe(sql)).bind(id.to_bytes().to_vec());
    query.fetch_optional(pool).await.unwrap().is_some()
}

/// Looks up a row of PostgreSQL over tokio-postgres.
async fn over_tokio_postgres(pool: &deadpool_postgres::Pool, sql: &str, id: TokenId) -> bool {
    let client = pool.get().await.unwrap();
    let statement = client.prepare_cached(sql).await.unwrap();
    client.query_opt(&statement, &[&&id.to_bytes()[..]]).await.unwrap().is_some()
}

#[tokio::main]
async fn main() {
    let (store, folder) = bench_tables::sqlite(0, 4).await;
    measure((Engine::Sqlite, "sqlx"), (store.clone(), "patkit_"), in_sqlite).await;
    folder.remove(store).await;
    let prefix = prefix(0);
    if let Some(url) = url(POSTGRES) {
        let store = bench_tables::postgres(&url, 0, 4).await;
        measure((Engine::Postgres, "sqlx"), (store.clone(), &prefix), in_postgres).await;
        drop_tables(&store, 0).await;
        let empty = bench_tables::postgres(&url, 0, 4).await;
        let other = bench_tables::tokio_postgres(&url, 0, 4).await;
        let which = (Engine::Postgres, "tokio-postgres");
        measure(which, (other, &prefix), over_tokio_postgres).await;
        drop_tables(&empty, 0).await;
    }
    if let Some(url) = url(MARIADB) {
        let store = bench_tables::mariadb(&url, 0, 4).await;
        measure((Engine::MariaDb, "sqlx"), (store.clone(), &prefix), in_mariadb).await;
        drop_tables(&store, 0).await;
    }
}
