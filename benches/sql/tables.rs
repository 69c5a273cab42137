//! Tables full of tokens, for the benches of the SQL stores.

#![allow(
    missing_docs,
    missing_debug_implementations,
    clippy::arithmetic_side_effects,
    clippy::exhaustive_enums,
    clippy::missing_panics_doc,
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "benches"
)]

pub mod rows;

use bench_common::random;
use deadpool_postgres::{Manager, Pool};
use patkit::store::sql::{Connection, Driver};
use patkit::{SqlStore, TokenId};
use rows::Engine;
use sqlx::mysql::{MySqlPool, MySqlPoolOptions};
use sqlx::postgres::{PgPool, PgPoolOptions};
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions};
use std::path::PathBuf;
use tokio_postgres::NoTls;

/// The variable with the URL of PostgreSQL.
pub const POSTGRES: &str = "PATKIT_TEST_POSTGRES_URL";
/// The variable with the URL of MariaDB.
pub const MARIADB: &str = "PATKIT_TEST_MARIADB_URL";

/// Returns the URL in a variable, or says that the engine is left out.
pub fn url(variable: &str) -> Option<String> {
    let url = std::env::var(variable).ok();
    if url.is_none() {
        println!("\nleft out, because {variable} is not set");
    }
    url
}

/// Returns a pseudo-random walk over all tokens that are not revoked.
pub fn places(size: u64) -> impl Iterator<Item = u64> {
    random().map(move |number| 1 + size / 1_000 + number % (size - size / 1_000))
}

/// Returns the id of the n-th row.
pub fn id(number: u64) -> TokenId {
    let bytes = (u128::from(number) << 80) | (0x7000_8000 << 48) | u128::from(number);
    TokenId::from_bytes(bytes.to_be_bytes()).unwrap()
}

/// Returns the prefix of the tables on a server.
pub fn prefix(size: u64) -> String {
    format!("bench_{}_{size}_", std::process::id())
}

/// Runs statements one after the other.
pub async fn run<D: Driver>(driver: &D, statements: &[String]) {
    let mut session = driver.acquire().await.unwrap();
    for statement in statements {
        session.run(statement).await.unwrap();
    }
}

/// Inserts this many tokens; of no tokens, nothing is known to the planner.
async fn fill<D: Driver>(driver: &D, engine: Engine, table: &str, size: u64) {
    if size > 0 {
        run(driver, &rows::insert(engine, table, size)).await;
    }
}

/// The folder of a SQLite database.
pub struct Folder(PathBuf);

impl Folder {
    /// Closes the store and removes the folder.
    pub async fn remove(self, store: SqlStore<SqlitePool>) {
        store.pool().close().await;
        std::fs::remove_dir_all(self.0).unwrap();
    }
}

/// Creates this many tokens in a SQLite file, behind a pool of this many connections.
pub async fn sqlite(size: u64, connections: u32) -> (SqlStore<SqlitePool>, Folder) {
    let folder = std::env::temp_dir().join(format!("patkit-bench-{}-{size}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let options = SqliteConnectOptions::new()
        .filename(folder.join("db"))
        .create_if_missing(true)
        .journal_mode(SqliteJournalMode::Wal);
    let pool =
        SqlitePoolOptions::new().max_connections(connections).connect_with(options).await.unwrap();
    let store = SqlStore::builder(pool.clone()).migrate().await.unwrap();
    fill(&pool, Engine::Sqlite, "patkit_tokens", size).await;
    (store, Folder(folder))
}

/// Creates the tables of this prefix on a server, with this many tokens.
async fn on_server<D: Driver>(driver: D, engine: Engine, size: u64) -> SqlStore<D> {
    let prefix = prefix(size);
    let store = SqlStore::builder(driver.clone()).prefix(&prefix).migrate().await.unwrap();
    fill(&driver, engine, &format!("{prefix}tokens"), size).await;
    store
}

/// Creates this many tokens in PostgreSQL, behind a pool of this many connections.
pub async fn postgres(url: &str, size: u64, connections: u32) -> SqlStore<PgPool> {
    let pool = PgPoolOptions::new().max_connections(connections).connect(url).await.unwrap();
    on_server(pool, Engine::Postgres, size).await
}

/// Creates this many tokens in MariaDB, behind a pool of this many connections.
pub async fn mariadb(url: &str, size: u64, connections: u32) -> SqlStore<MySqlPool> {
    let pool = MySqlPoolOptions::new().max_connections(connections).connect(url).await.unwrap();
    on_server(pool, Engine::MariaDb, size).await
}

/// Opens the tables that [`postgres`] created, over tokio-postgres.
pub async fn tokio_postgres(url: &str, size: u64, connections: usize) -> SqlStore<Pool> {
    let manager = Manager::new(url.parse().unwrap(), NoTls);
    let pool = Pool::builder(manager).max_size(connections).build().unwrap();
    SqlStore::builder(pool).prefix(&prefix(size)).open().await.unwrap()
}

/// Drops the tables on a server.
pub async fn drop_tables<D: Driver>(store: &SqlStore<D>, size: u64) {
    let drop = |table: &str| format!("DROP TABLE IF EXISTS {}{table}", prefix(size));
    run(store.pool(), &["tokens", "events", "key_checks", "numbers", "migrations"].map(drop)).await;
}
