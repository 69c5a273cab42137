//! Databases for tests: SQLite in a new file or in shared memory, and a PostgreSQL schema for each
//! test.

#![allow(
    missing_docs,
    missing_debug_implementations,
    clippy::arithmetic_side_effects,
    clippy::expect_used,
    clippy::missing_panics_doc,
    clippy::new_without_default,
    clippy::unwrap_used,
    clippy::panic,
    reason = "tests"
)]

use patkit::service::TokenServiceBuilder;
use patkit::store::sql::{Connection, Driver, Session, SqlError, Statement, Value};
use patkit::{
    Actor, EventId, Keyring, MemoryDirectory, Owner, OwnerId, OwnerKind, SqlStore, TokenService,
    TokenStore,
};
use sqlx::mysql::{MySqlConnectOptions, MySqlPool, MySqlPoolOptions};
use sqlx::postgres::{PgConnectOptions, PgPool, PgPoolOptions};
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

pub type PostgresStore = SqlStore<PgPool>;
pub type SqliteStore = SqlStore<SqlitePool>;
pub type MariaDbStore = SqlStore<MySqlPool>;

/// The variable with the URL of PostgreSQL. `scripts/test` starts a server and sets it; without it
/// the tests fail, and none is skipped.
pub const URL: &str = "PATKIT_TEST_POSTGRES_URL";

/// The variable with the URL of a pooler in transaction mode before that server; `scripts/test`
/// sets it too.
pub const POOLER_URL: &str = "PATKIT_TEST_POOLER_URL";

/// The variable with the URL of MariaDB; `scripts/test` starts a server and sets it.
pub const MARIADB_URL: &str = "PATKIT_TEST_MARIADB_URL";

pub fn mariadb_url() -> String {
    std::env::var(MARIADB_URL).unwrap_or_else(|_| {
        panic!("{MARIADB_URL} is not set; run scripts/test, which starts a database")
    })
}

pub async fn mariadb_pool(connections: u32) -> MySqlPool {
    let options: MySqlConnectOptions = mariadb_url().parse().unwrap();
    MySqlPoolOptions::new()
        .max_connections(connections)
        .acquire_timeout(Duration::from_secs(20))
        .connect_with(options)
        .await
        .unwrap()
}

/// Creates a database, which takes the place of a schema.
pub async fn mariadb_schema(pool: &MySqlPool) -> String {
    let schema = unique("t");
    let sql = format!("CREATE DATABASE {schema}");
    sqlx::raw_sql(sqlx::AssertSqlSafe(sql)).execute(pool).await.unwrap();
    schema
}

/// Creates an empty store in its own database.
pub async fn mariadb_store(pool: &MySqlPool) -> MariaDbStore {
    let schema = mariadb_schema(pool).await;
    SqlStore::builder(pool.clone()).schema(&schema).migrate().await.unwrap()
}

pub fn pooler_url() -> String {
    std::env::var(POOLER_URL).unwrap_or_else(|_| {
        panic!("{POOLER_URL} is not set; run scripts/test, which starts a pooler")
    })
}

pub fn postgres_url() -> String {
    std::env::var(URL)
        .unwrap_or_else(|_| panic!("{URL} is not set; run scripts/test, which starts a database"))
}

/// Returns the actor `ada`, in a session.
pub fn ada() -> Actor {
    Actor::signed_in(OwnerId::new("ada").unwrap())
}

/// Creates a service whose only user is `ada`. All processes share one key.
pub fn service<S: TokenStore>(store: S) -> TokenService<S, MemoryDirectory> {
    builder(store).build().unwrap()
}

pub fn builder<S: TokenStore>(store: S) -> TokenServiceBuilder<S, MemoryDirectory> {
    let ada = Owner::new(OwnerId::new("ada").unwrap(), OwnerKind::Human).with_role("member");
    let keyring = Keyring::from_text("1:AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=").unwrap();
    let users = [ada].into_iter().collect();
    TokenService::builder(store, users).brand("acme").keyring(keyring)
}

/// Returns an event id greater than all earlier ones.
pub fn event_id() -> EventId {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let uuid = (0x0190_0000_0000_7000_8000_u128 << 48) | u128::from(count);
    EventId::from_bytes(uuid.to_be_bytes()).unwrap()
}

/// Returns a name that nothing else in this run or an earlier run has.
pub fn unique(what: &str) -> String {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let since = patkit::Clock::now(&patkit::SystemClock::new()).timestamp_micros() % 10_000_000_000;
    format!("{what}_{}_{since}_{count}", std::process::id())
}

pub async fn postgres_pool(connections: u32) -> PgPool {
    let options: PgConnectOptions = postgres_url().parse().unwrap();
    PgPoolOptions::new()
        .max_connections(connections)
        .acquire_timeout(Duration::from_secs(20))
        .connect_with(options)
        .await
        .unwrap()
}

/// Connects through a pooler in transaction mode.
pub async fn pooler_pool(connections: u32) -> PgPool {
    let options: PgConnectOptions = pooler_url().parse().unwrap();
    PgPoolOptions::new()
        .max_connections(connections)
        .acquire_timeout(Duration::from_secs(20))
        .connect_with(options)
        .await
        .unwrap()
}

/// Creates a schema.
pub async fn schema(pool: &PgPool) -> String {
    let schema = unique("t");
    sqlx::raw_sql(sqlx::AssertSqlSafe(format!("CREATE SCHEMA {schema}")))
        .execute(pool)
        .await
        .unwrap();
    schema
}

/// Creates an empty store in its own schema.
pub async fn postgres_store(pool: &PgPool) -> PostgresStore {
    let schema = schema(pool).await;
    PostgresStore::builder(pool.clone()).schema(&schema).migrate().await.unwrap()
}

/// A directory that is removed when it is dropped.
pub struct Folder(PathBuf);

impl Folder {
    pub fn new() -> Self {
        let path = std::env::temp_dir().join(unique("patkit"));
        std::fs::create_dir(&path).unwrap();
        Self(path)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// The longest wait for a lock. It is long, because a write may take seconds on a busy disk.
const PATIENCE: Duration = Duration::from_secs(60);

pub fn sqlite_options(file: &Path) -> SqliteConnectOptions {
    SqliteConnectOptions::new()
        .filename(file)
        .create_if_missing(true)
        .journal_mode(SqliteJournalMode::Wal)
        .busy_timeout(PATIENCE)
}

pub async fn sqlite_pool(file: &Path, connections: u32) -> SqlitePool {
    SqlitePoolOptions::new()
        .max_connections(connections)
        .acquire_timeout(PATIENCE)
        .connect_with(sqlite_options(file))
        .await
        .unwrap()
}

/// Creates a database in memory that the pool's connections share. It exists while a connection
/// does.
pub async fn sqlite_memory_pool(connections: u32) -> SqlitePool {
    let url = format!("sqlite:file:{}?mode=memory&cache=shared", unique("memory"));
    SqlitePoolOptions::new()
        .min_connections(1)
        .max_connections(connections)
        .idle_timeout(None)
        .max_lifetime(None)
        .connect(&url)
        .await
        .unwrap()
}

pub async fn sqlite_store(file: &Path) -> SqliteStore {
    SqliteStore::builder(sqlite_pool(file, 8).await).migrate().await.unwrap()
}

/// Records the statements that run through it, by their texts.
#[derive(Clone)]
pub struct Watched<D> {
    driver: D,
    pub seen: Arc<Mutex<BTreeMap<String, Vec<Value>>>>,
}

impl<D> Watched<D> {
    pub fn new(driver: D) -> Self {
        Self { driver, seen: Arc::default() }
    }
}

pub struct WatchedSession<S> {
    session: S,
    seen: Arc<Mutex<BTreeMap<String, Vec<Value>>>>,
}

impl<D: Driver> Driver for Watched<D> {
    type Session = WatchedSession<D::Session>;
    type Listener = D::Listener;

    async fn acquire(&self) -> Result<Self::Session, SqlError> {
        Ok(WatchedSession { session: self.driver.acquire().await?, seen: self.seen.clone() })
    }

    fn max_connections(&self) -> u32 {
        self.driver.max_connections()
    }

    async fn listen(&self, channel: &str) -> Result<Option<D::Listener>, SqlError> {
        self.driver.listen(channel).await
    }
}

impl<S: Session> WatchedSession<S> {
    fn see(&self, statement: &Statement) {
        let values = statement.values().to_vec();
        self.seen.lock().unwrap().insert(statement.sql().to_owned(), values);
    }
}

impl<S: Session> Connection for WatchedSession<S> {
    type Engine = S::Engine;
    type Row = S::Row;

    async fn fetch(&mut self, statement: Statement) -> Result<Vec<S::Row>, SqlError> {
        self.see(&statement);
        self.session.fetch(statement).await
    }

    async fn execute(&mut self, statement: Statement) -> Result<u64, SqlError> {
        self.see(&statement);
        self.session.execute(statement).await
    }

    async fn run(&mut self, sql: &str) -> Result<(), SqlError> {
        self.session.run(sql).await
    }

    fn abandon(&mut self) {
        self.session.abandon();
    }
}

impl<S: Session> Session for WatchedSession<S> {}
