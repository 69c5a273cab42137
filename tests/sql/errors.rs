//! The errors that a host reads if a database is not as the stores need it: each text names the
//! thing and the cure.

#![allow(clippy::large_futures, clippy::panic, clippy::unwrap_used, reason = "tests")]

use patkit::store::sql::{NameError, SetupError};

use sqlx::postgres::{PgConnectOptions, PgPool, PgPoolOptions};
use sqlx::sqlite::{
    SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteSynchronous,
};
use sqlx::{AssertSqlSafe, raw_sql};
use std::time::Duration;
use support_sql::{
    Folder, PostgresStore, SqliteStore, postgres_pool, postgres_url, schema, sqlite_options,
    sqlite_pool, unique,
};

/// The texts of all steps, compared at once.
#[derive(Default)]
struct Said(Vec<(String, String)>);

impl Said {
    fn add<T>(&mut self, result: Result<T, SetupError>, expected: &str) {
        let text = result.err().map_or_else(|| "it worked".to_owned(), |error| error.to_string());
        self.0.push((text, expected.to_owned()));
    }

    fn check(self) {
        let (said, expected): (Vec<_>, Vec<_>) = self.0.into_iter().unzip();
        assert_eq!(said, expected);
    }
}

async fn run_postgres(pool: &PgPool, sql: String) {
    raw_sql(AssertSqlSafe(sql)).execute(pool).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
#[allow(clippy::too_many_lines, reason = "one case after the other")]
async fn a_database_of_postgres_that_is_not_ready() {
    let mut said = Said::default();
    let pool = postgres_pool(2).await;
    let own = schema(&pool).await;
    let store = || PostgresStore::builder(pool.clone()).schema(&own);
    said.add(
        store().open().await,
        &format!(
            "the table \"{own}.patkit_migrations\" does not exist: call `.migrate()` instead of `.open()`, or run the SQL \
             files in `src/store/migrations` of patkit"
        ),
    );
    // A table of versions without a row is treated like a missing one.
    run_postgres(
        &pool,
        format!(
            "CREATE TABLE {own}.x_migrations (version bigint, min_compatible bigint, name text, applied_at bigint)"
        ),
    )
    .await;
    said.add(
        store().prefix("x_").open().await,
        &format!(
            "the table \"{own}.x_migrations\" does not exist: call `.migrate()` instead of `.open()`, or run the SQL \
             files in `src/store/migrations` of patkit"
        ),
    );
    let missing = "the schema \"no \\\"such\\\" schema\" does not exist: create it with `CREATE SCHEMA \"no \"\"such\"\" schema\"`";
    let nowhere = || PostgresStore::builder(pool.clone()).schema("no \"such\" schema");
    said.add(nowhere().open().await, missing);
    said.add(nowhere().migrate().await, missing);

    let taken = |fault: &str| {
        format!(
            "a name that the token tables need is taken by something else: {fault}; choose another \
             prefix with `.prefix(…)`"
        )
    };
    run_postgres(&pool, format!("CREATE TABLE {own}.patkit_tokens (mine text)")).await;
    said.add(
        store().migrate().await,
        &taken("relation \"patkit_tokens\" already exists (code 42P07)"),
    );
    run_postgres(&pool, format!("CREATE TABLE {own}.i_mine (mine text)")).await;
    run_postgres(&pool, format!("CREATE INDEX i_tokens_owner ON {own}.i_mine (mine)")).await;
    said.add(
        store().prefix("i_").migrate().await,
        &taken("relation \"i_tokens_owner\" already exists (code 42P07)"),
    );
    run_postgres(&pool, format!("CREATE TABLE {own}.m_migrations (mine text)")).await;
    said.add(
        store().prefix("m_").migrate().await,
        &taken("column \"version\" does not exist (code 42703)"),
    );
    said.add(
        store().prefix("m_").open().await,
        &taken("column \"version\" does not exist (code 42703)"),
    );
    // The failed attempts left nothing behind.
    store().prefix("new_").migrate().await.unwrap();
    run_postgres(&pool, format!("INSERT INTO {own}.new_migrations VALUES (9, 8, 'later', 0)"))
        .await;
    let newer = "the token tables are of version 9 and need a program that knows version 8; this \
                 program knows 1: deploy a newer version of patkit";
    said.add(store().prefix("new_").open().await, newer);
    said.add(store().prefix("new_").migrate().await, newer);

    let role = unique("role");
    run_postgres(&pool, format!("CREATE ROLE {role} LOGIN")).await;
    let options: PgConnectOptions = postgres_url().parse().unwrap();
    let build = |options| PgPoolOptions::new().max_connections(1).connect_lazy_with(options);
    said.add(
        PostgresStore::builder(build(options.clone().username(&role))).schema(&own).migrate().await,
        &format!(
            "the database refused the setup of the token tables: permission denied for schema {own} (code 42501); grant the \
             role of the pool USAGE and CREATE on the schema, or migrate with a role that has them"
        ),
    );
    let unreachable = |fault: &str| {
        format!(
            "the database cannot be reached: {fault}; check its URL, that the server runs or the file of SQLite exists \
             (`.create_if_missing(true)` makes it), and that the pool has a free connection"
        )
    };
    said.add(
        PostgresStore::builder(build(options.clone().database("no_such_database"))).migrate().await,
        &unreachable("database \"no_such_database\" does not exist (code 3D000)"),
    );
    said.add(
        PostgresStore::builder(build(options.clone().socket("/nonexistent"))).open().await,
        &unreachable("error communicating with database: No such file or directory (os error 2)"),
    );
    let full = PgPoolOptions::new().max_connections(1).acquire_timeout(Duration::from_millis(100));
    let full = full.connect_with(options.clone()).await.unwrap();
    let taken = full.acquire().await.unwrap();
    said.add(
        PostgresStore::builder(full.clone()).open().await,
        &unreachable("pool timed out while waiting for an open connection"),
    );
    drop(taken);
    said.add(
        PostgresStore::builder(build(options.options([("synchronous_commit", "off")]))).open().await,
        "synchronous_commit is \"off\"; patkit needs any value but off: set it for the pool's role with `ALTER ROLE … SET \
         synchronous_commit = on`; otherwise an acknowledged revocation is lost in a crash",
    );
    said.check();
}

fn build_sqlite(options: SqliteConnectOptions, connections: u32) -> SqlitePool {
    SqlitePoolOptions::new().max_connections(connections).connect_lazy_with(options)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_of_sqlite_that_is_not_ready() {
    let mut said = Said::default();
    let folder = Folder::new();
    let file = |name: &str| sqlite_options(&folder.path().join(name));
    let settings = [
        (
            file("1").journal_mode(SqliteJournalMode::Delete),
            "journal_mode is \"delete\"; patkit needs WAL: set \
             `.journal_mode(SqliteJournalMode::Wal)` in sqlx, or run `PRAGMA journal_mode = WAL` once; otherwise verifications and changes wait for \
             each other",
        ),
        (
            file("2").synchronous(SqliteSynchronous::Normal),
            "synchronous is \"normal\"; patkit needs FULL or EXTRA: set \
             `.synchronous(SqliteSynchronous::Full)` in sqlx, or run `PRAGMA synchronous = FULL` on each connection; otherwise an acknowledged revocation is lost \
             with the power",
        ),
        (
            file("3").synchronous(SqliteSynchronous::Off),
            "synchronous is \"off\"; patkit needs FULL or EXTRA: set \
             `.synchronous(SqliteSynchronous::Full)` in sqlx, or run `PRAGMA synchronous = FULL` on each connection; otherwise an acknowledged revocation is lost \
             with the power",
        ),
        (
            file("4").busy_timeout(Duration::from_millis(10)),
            "busy_timeout is \"10 ms\"; patkit needs 1 s or more: set \
             `.busy_timeout(Duration::from_secs(5))` in sqlx, or run `PRAGMA busy_timeout = 5000` on each connection; otherwise changes of two connections fail \
             instead of waiting for each other",
        ),
        (
            SqliteConnectOptions::new().filename(":memory:"),
            "the database in memory is \"one for each connection\"; patkit needs one database for all connections: set \
             `.max_connections(1)` on the pool, or use a file; otherwise each connection has tokens of its own",
        ),
    ];
    for (options, expected) in settings {
        said.add(SqliteStore::builder(build_sqlite(options, 2)).migrate().await, expected);
    }
    said.add(
        SqliteStore::builder(build_sqlite(file("5").create_if_missing(false), 1)).migrate().await,
        "the database cannot be reached: unable to open database file (code 14); check its URL, that the server runs or the \
         file of SQLite exists (`.create_if_missing(true)` makes it), and that the pool has a free connection",
    );
    let pool = sqlite_pool(&folder.path().join("6"), 2).await;
    let store = || SqliteStore::builder(pool.clone());
    said.add(
        store().open().await,
        "the table \"patkit_migrations\" does not exist: call `.migrate()` instead of `.open()`, or run the SQL files in \
         `src/store/migrations` of patkit",
    );
    said.add(
        store().schema("auth").open().await,
        "SQLite has no schemas: remove `.schema(…)`, and tell stores apart by `.prefix(…)`",
    );
    let taken = |fault: &str| {
        format!(
            "a name that the token tables need is taken by something else: {fault}; choose another \
             prefix with `.prefix(…)`"
        )
    };
    raw_sql(
        "CREATE TABLE patkit_tokens (mine); CREATE TABLE i_mine (mine); CREATE INDEX i_tokens_owner ON i_mine (mine); \
         CREATE TABLE m_migrations (mine)",
    )
    .execute(&pool)
    .await
    .unwrap();
    said.add(store().migrate().await, &taken("table \"patkit_tokens\" already exists (code 1)"));
    said.add(
        store().prefix("i_").migrate().await,
        &taken("index i_tokens_owner already exists (code 1)"),
    );
    said.add(store().prefix("m_").migrate().await, &taken("no such column: version (code 1)"));
    store().prefix("new_").migrate().await.unwrap();
    raw_sql("INSERT INTO new_migrations VALUES (9, 8, 'later', 0)").execute(&pool).await.unwrap();
    said.add(
        store().prefix("new_").open().await,
        "the token tables are of version 9 and need a program that knows version 8; this program \
         knows 1: deploy a newer version of patkit",
    );
    let read_only = file("6").pragma("query_only", "1");
    said.add(
        SqliteStore::builder(build_sqlite(read_only, 1)).prefix("other_").migrate().await,
        "the database refused the setup of the token tables: attempt to write a readonly database (code 8)",
    );
    said.check();
}

#[test]
fn what_no_database_of_today_says() {
    let mut said = Said::default();
    let name = |reason| Err::<(), _>(SetupError::Name { field: "prefix", reason });
    said.add(
        name(NameError::Empty),
        "the prefix is refused: the name is empty; leave the setting out for the default, or write \
         at least 1 character",
    );
    said.add(
        name(NameError::Nul),
        "the prefix is refused: the name has a NUL character; remove that character",
    );
    said.add(
        name(NameError::TooLong { found: 49, most: 48 }),
        "the prefix is refused: the name has 49 bytes, and the database would cut names made of \
         it; use at most 48 bytes",
    );
    said.add(
        name(NameError::Reserved("sqlite_")),
        "the prefix is refused: the name begins with \"sqlite_\", which is reserved for the \
         database; choose another beginning",
    );
    said.add(
        Err::<(), _>(SetupError::TooOld { found: 1, needed: 2 }),
        "the token tables are of version 1 and this program needs 2: call `.migrate()` instead of `.open()`, or run the SQL \
         files in `src/store/migrations` of patkit",
    );
    said.check();
}
