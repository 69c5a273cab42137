//! What is of MariaDB alone: its settings, its setup without transactions, its names, and the plans
//! of its statements.

#![allow(
    clippy::arithmetic_side_effects,
    clippy::large_futures,
    clippy::panic,
    clippy::unwrap_used,
    reason = "tests"
)]

use super::follows::hears_of_a_change;
use super::names::{NASTY, works};
use patkit::store::sql::{NameError, SetupError, SqlStore, Value};
use patkit::store::{AuditLog, EventQuery, ExportCursor, ListBy, ListQuery, TokenCounts};
use patkit::{
    CachedStore, Credential, NewToken, OwnerId, Realm, Reason, TokenId, TokenKind, TokenStore,
};
use sqlx::mysql::{MySql, MySqlArguments, MySqlConnectOptions, MySqlPool, MySqlPoolOptions};
use sqlx::{AssertSqlSafe, Executor, Row, raw_sql};
use std::pin::Pin;
use std::task::{Context, Waker};
use std::time::Duration;
use support_sql::{
    MariaDbStore, Watched, ada, mariadb_pool, mariadb_schema, mariadb_store, mariadb_url, service,
    unique,
};

async fn run(pool: &MySqlPool, sql: String) {
    raw_sql(AssertSqlSafe(sql)).execute(pool).await.unwrap();
}

/// Returns the text of the error, or that there was none.
fn said<T>(result: Result<T, SetupError>) -> String {
    result.err().map_or_else(|| "it worked".to_owned(), |error| error.to_string())
}

#[tokio::test(flavor = "multi_thread")]
async fn settings_that_would_break_the_contract_are_refused_and_named() {
    let schema = mariadb_schema(&mariadb_pool(1).await).await;
    for (sql, expected) in [
        (
            "SET SESSION sql_mode = ''",
            "sql_mode is \"\"; patkit needs STRICT_TRANS_TABLES or STRICT_ALL_TABLES in it: run \
             `SET GLOBAL sql_mode = CONCAT(@@sql_mode, ',STRICT_TRANS_TABLES')` and connect anew; \
             otherwise values that do not fit are cut without an error",
        ),
        (
            "SET NAMES latin1",
            "character_set_client is \"latin1\"; patkit needs utf8mb4: set the connections' \
             character set to utf8mb4 (sqlx: `.charset(\"utf8mb4\")`); otherwise names in some \
             scripts cannot be stored",
        ),
        (
            "SET autocommit = 0",
            "autocommit is \"OFF\"; patkit needs ON: remove `autocommit=0` from the server's \
             configuration or the pool's first statement; otherwise last uses are never committed",
        ),
    ] {
        let options: MySqlConnectOptions = mariadb_url().parse().unwrap();
        let pool =
            MySqlPoolOptions::new().max_connections(1).after_connect(move |connection, _| {
                Box::pin(async move { connection.execute(sql).await.map(drop) })
            });
        let pool = pool.connect_with(options).await.unwrap();
        assert_eq!(said(SqlStore::builder(pool).schema(&schema).migrate().await), expected);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_is_not_ready_is_refused_and_named() {
    let pool = mariadb_pool(4).await;
    let schema = mariadb_schema(&pool).await;
    let store = |prefix: &str| MariaDbStore::builder(pool.clone()).schema(&schema).prefix(prefix);
    let taken = |fault: &str| {
        format!(
            "a name that the token tables need is taken by something else: {fault}; choose another \
             prefix with `.prefix(…)`"
        )
    };
    assert!(matches!(store("a_").open().await, Err(SetupError::NotMigrated { .. })));
    let nowhere = MariaDbStore::builder(pool.clone()).schema("no such schema");
    assert_eq!(
        said(nowhere.migrate().await),
        "the schema \"no such schema\" does not exist: create it with `CREATE SCHEMA \"no such schema\"`"
    );
    for table in ["tokens", "events", "key_checks", "numbers"] {
        let prefix = format!("of_{table}_");
        run(&pool, format!("CREATE TABLE {schema}.{prefix}{table} (mine INT)")).await;
        let refused = said(store(&prefix).migrate().await);
        assert!(
            refused.starts_with("a name that the token tables need is taken by something else: "),
            "{table}: {refused}"
        );
        // It did not count as migrated.
        assert!(matches!(store(&prefix).open().await, Err(SetupError::NotMigrated { .. })));
    }
    run(&pool, format!("CREATE TABLE {schema}.m_migrations (mine INT)")).await;
    assert_eq!(
        said(store("m_").migrate().await),
        taken("Unknown column 'version' in 'SELECT' (code 1054)")
    );
    store("new_").migrate().await.unwrap();
    run(&pool, format!("INSERT INTO {schema}.new_migrations VALUES (9, 8, 'later', 0)")).await;
    for refused in [store("new_").open().await, store("new_").migrate().await] {
        assert!(matches!(refused, Err(SetupError::TooNew { found: 9, needed: 8, own: 1 })));
    }
    let role = unique("r");
    run(
        &pool,
        format!("CREATE USER {role}@localhost; GRANT SELECT ON {schema}.* TO {role}@localhost"),
    )
    .await;
    let options: MySqlConnectOptions = mariadb_url().parse().unwrap();
    let build = |options| MySqlPoolOptions::new().max_connections(1).connect_lazy_with(options);
    let other = MariaDbStore::builder(build(options.clone().username(&role).database(&schema)))
        .schema(&schema);
    let refused = other.migrate().await;
    assert!(matches!(refused, Err(SetupError::Denied(_))), "{refused:?}");
    for options in [
        options.clone().database("no_such_database"),
        options.clone().username("nobody_of_this_name"),
        options.clone().socket("/nonexistent"),
    ] {
        let refused = MariaDbStore::builder(build(options)).schema(&schema).open().await;
        assert!(matches!(refused, Err(SetupError::Unreachable(_))), "{refused:?}");
    }
}

/// No transaction holds a migration together here, so it may stop after any of its statements.
#[tokio::test(flavor = "multi_thread")]
async fn a_migration_that_stopped_half_way_goes_on_and_eight_at_once_do_it_once() {
    let pool = mariadb_pool(16).await;
    let script = include_str!("../../src/store/migrations/mysql/0001_tokens.sql");
    let statements: Vec<&str> = script.split(";\n").collect();
    assert!(statements.len() > 5);
    for count in 0..=statements.len() {
        let schema = mariadb_schema(&pool).await;
        let mut connection = pool.acquire().await.unwrap();
        for statement in statements.iter().take(count) {
            let text: String =
                statement.lines().filter(|line| !line.trim_start().starts_with("--")).collect();
            if !text.trim().is_empty() {
                let sql = format!("USE {schema}; {statement}");
                raw_sql(AssertSqlSafe(sql)).execute(&mut *connection).await.unwrap();
            }
        }
        raw_sql("USE patkit").execute(&mut *connection).await.unwrap();
        drop(connection);
        let migrate = || {
            let (pool, schema) = (pool.clone(), schema.clone());
            tokio::spawn(async move { SqlStore::builder(pool).schema(&schema).migrate().await })
        };
        for task in std::array::from_fn::<_, 8, _>(|_| migrate()) {
            works_for_ada(task.await.unwrap().unwrap()).await;
        }
        let sql = format!("SELECT COUNT(*) FROM {schema}.patkit_migrations");
        let row = sqlx::query(AssertSqlSafe(sql)).fetch_one(&pool).await.unwrap();
        assert_eq!(row.get::<i64, _>(0), 1);
        // The SQL files as they are make tables that a store opens.
        works_for_ada(MariaDbStore::builder(pool.clone()).schema(&schema).open().await.unwrap())
            .await;
        run(&pool, format!("DROP DATABASE {schema}")).await;
    }
}

async fn works_for_ada<S: TokenStore>(store: S) {
    let tokens = service(store);
    let issued = tokens.generate(&ada(), NewToken::named(&unique("a"))).await.unwrap();
    tokens.verify(Credential::text(issued.plaintext.expose_secret())).await.unwrap();
    tokens.flush().await.unwrap();
    let found = tokens.store().find(issued.token.id()).await.unwrap().unwrap();
    assert!(found.last_used.is_some());
}

#[tokio::test(flavor = "multi_thread")]
async fn any_prefix_and_any_schema_work_or_are_refused() {
    let pool = mariadb_pool(6).await;
    let own = mariadb_schema(&pool).await;
    for prefix in NASTY.iter().copied() {
        let build = || MariaDbStore::builder(pool.clone()).schema(&own).prefix(prefix);
        for _ in 0..2 {
            build().migrate().await.unwrap_or_else(|error| panic!("{prefix:?}: {error}"));
        }
        works(build().open().await.unwrap(), prefix).await;
    }
    for name in NASTY.iter().copied().filter(|name| !name.ends_with(' ')) {
        let quoted = format!("`{}`", name.replace('`', "``"));
        run(&pool, format!("DROP SCHEMA IF EXISTS {quoted}; CREATE SCHEMA {quoted}")).await;
        let build = || MariaDbStore::builder(pool.clone()).schema(name).prefix("%I`");
        for _ in 0..2 {
            build().migrate().await.unwrap_or_else(|error| panic!("{name:?}: {error}"));
        }
        works(build().open().await.unwrap(), name).await;
        run(&pool, format!("DROP SCHEMA {quoted}")).await;
    }
    let lazy = || MySqlPoolOptions::new().connect_lazy("mysql://localhost:1/x").unwrap();
    for (name, expected) in [
        ("", NameError::Empty),
        ("a\0b", NameError::Nul),
        (&*"x".repeat(60), NameError::TooLong { found: 60, most: 49 }),
        ("a😀", NameError::Supplementary('😀')),
    ] {
        match SqlStore::builder(lazy()).prefix(name).migrate().await {
            Err(SetupError::Name { field: "prefix", reason }) => assert_eq!(reason, expected),
            other => panic!("{name:?}: {other:?}"),
        }
    }
    for (name, expected) in
        [("a ", NameError::TrailingSpace), ("😀", NameError::Supplementary('😀'))]
    {
        match SqlStore::builder(lazy()).schema(name).open().await {
            Err(SetupError::Name { field: "schema", reason }) => assert_eq!(reason, expected),
            other => panic!("{name:?}: {other:?}"),
        }
    }
}

/// Most collations would take these owners for one.
#[tokio::test(flavor = "multi_thread")]
async fn owners_that_differ_in_a_space_a_case_or_an_accent_are_different() {
    let store = mariadb_store(&mariadb_pool(2).await).await;
    let tokens = service(store.clone());
    let names = ["ada", "ada ", "ADA", "adá", "ad\u{e1}\u{301}", "ada\u{200b}", "𝒶𝒹𝒶"];
    let first = tokens.generate(&ada(), NewToken::named("one")).await.unwrap();
    let record = store.find(first.token.id()).await.unwrap().unwrap();
    for name in names {
        let owner = OwnerId::new(name).unwrap();
        let by = ListBy::Owner { realm: Realm::default(), owner, kind: None };
        let listed = store.list(&ListQuery::new(by)).await.unwrap().tokens.len();
        assert_eq!(listed, usize::from(name == "ada"), "{name:?}");
        let realm = Realm::new(name).unwrap();
        let by = ListBy::Kind { realm, kind: TokenKind::Personal };
        assert!(store.list(&ListQuery::new(by)).await.unwrap().tokens.is_empty());
    }
    assert_eq!(record.owner.as_str(), "ada");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cache_hears_of_a_change_by_polling() {
    let pool = mariadb_pool(4).await;
    let store = mariadb_store(&pool).await;
    let cached = service(CachedStore::builder(store.clone()).build().unwrap());
    hears_of_a_change(&cached, &service(store), &ada()).await;
}

/// sqlx's connection of MySQL does not survive a dropped future, so the store must not give it back.
#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_is_dropped_leaves_the_pool_healthy() {
    // Every call prepares its statements again, so that some calls are dropped while they do.
    let options: MySqlConnectOptions = mariadb_url().parse().unwrap();
    let options = options.statement_cache_capacity(0);
    let pool = MySqlPoolOptions::new().max_connections(2).connect_with(options).await.unwrap();
    let store = mariadb_store(&pool).await;
    let tokens = service(store.clone());
    let issued = tokens.generate(&ada(), NewToken::named("a")).await.unwrap();
    let (id, text) = (issued.token.id(), issued.plaintext.expose_secret());
    for round in 0..120_u32 {
        let mut calls: [Pin<Box<dyn Future<Output = bool> + Send + '_>>; 3] = [
            Box::pin(async { tokens.verify(Credential::text(text)).await.is_ok() }),
            Box::pin(async { tokens.revoke(&ada(), id, Reason::Owner).await.is_ok() }),
            Box::pin(async { tokens.restore(&ada(), id).await.is_ok() }),
        ];
        for call in &mut calls {
            for _ in 0..round / 3 {
                if call.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_ready() {
                    break;
                }
                std::thread::sleep(Duration::from_micros(50));
                tokio::task::yield_now().await;
            }
        }
        drop(calls);
        // No connection is lost, and none is in a transaction of the dropped calls.
        let is_healthy = async {
            let _ = tokens.verify(Credential::text(text)).await.map_err(|error| {
                assert!(error.reject_reason().is_some(), "round {round}: {error:?}");
            });
            let token = store.find(id).await.unwrap().unwrap();
            let events = EventQuery::new(Realm::default()).token(id);
            let events = store.events(&events).await.unwrap().events;
            assert_eq!(u64::try_from(events.len()).unwrap(), token.version, "each with its event");
        };
        let is_healthy = tokio::time::timeout(Duration::from_secs(20), is_healthy).await;
        is_healthy.unwrap_or_else(|_| panic!("round {round}: a connection waits without end"));
    }
}

fn bound(sql: String, values: &[Value]) -> sqlx::query::Query<'static, MySql, MySqlArguments> {
    values.iter().cloned().fold(sqlx::query(AssertSqlSafe(sql)), |query, value| match value {
        Value::Int(value) => query.bind(value),
        Value::Text(value) => query.bind(value),
        Value::Bytes(value) => query.bind(value),
    })
}

/// Fills the tables, runs every operation, and explains each statement that one of them ran.
#[tokio::test(flavor = "multi_thread")]
#[allow(clippy::too_many_lines, reason = "one operation after the other")]
async fn every_statement_is_served_by_an_index() {
    const COUNT: u64 = 30_000;
    let pool = mariadb_pool(2).await;
    let schema = mariadb_schema(&pool).await;
    let driver = Watched::new(pool.clone());
    let seen = driver.seen.clone();
    let store = SqlStore::builder(driver).schema(&schema).migrate().await.unwrap();
    let numbers = format!(
        "WITH RECURSIVE numbers (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < {COUNT})"
    );
    run(
        &pool,
        format!(
            "SET STATEMENT max_recursive_iterations = 1000000 FOR \
             INSERT INTO {schema}.patkit_tokens (id, realm, owner, owner_kind, kind, name, name_key, created_at, created_by, \
             lifetime, scope, digest_key, digest, idle_from, version, revoked_at, revoked_reason, revoked_by, revoked_authority) \
             {numbers} SELECT UNHEX(CONCAT(LPAD(HEX(n), 12, '0'), '70008', LPAD(HEX(n), 15, '0'))), '', CONCAT('owner ', n % 5000), \
             'human', 'personal', 'a', UNHEX(SHA2(n, 256)), n, 'system', 'default', 'inherit', 1 + n % 50, UNHEX(SHA2(n, 256)), n, 1, \
             IF(n % 10 = 0, n + 1000, NULL), IF(n % 10 = 0, 'owner', NULL), IF(n % 10 = 0, 'system', NULL), IF(n % 10 = 0, 'system', NULL) FROM numbers"
        ),
    )
    .await;
    run(
        &pool,
        format!(
            "SET STATEMENT max_recursive_iterations = 1000000 FOR \
             INSERT INTO {schema}.patkit_events (seq, id, at, realm, action, actor, token, owner) \
             {numbers} SELECT n, UNHEX(LPAD(HEX(n), 32, '0')), n, '', 'generated', 'system', UNHEX(LPAD(HEX(n % 5000), 32, '0')), \
             CONCAT('owner ', n % 5000) FROM numbers"
        ),
    )
    .await;
    run(&pool, format!("UPDATE {schema}.patkit_numbers SET newest = {COUNT}")).await;
    run(&pool, format!("ANALYZE TABLE {schema}.patkit_tokens, {schema}.patkit_events")).await;

    seen.lock().unwrap().clear();
    let tokens = service(store.clone());
    let realm = Realm::default();
    let made = tokens.generate(&ada(), NewToken::named("a")).await.unwrap();
    let id = made.token.id();
    tokens.verify(Credential::text(made.plaintext.expose_secret())).await.unwrap();
    tokens.flush().await.unwrap();
    tokens.rename(&ada(), id, "b").await.unwrap();
    let successor = tokens.rotate(&ada(), id, Duration::ZERO).await.unwrap().token.id();
    tokens.revoke(&ada(), successor, Reason::Compromised).await.unwrap();
    tokens.revoke_all(&realm, &OwnerId::new("ada").unwrap()).await.unwrap();
    tokens.erase_owner(&realm, &OwnerId::new("owner 7").unwrap()).await.unwrap();
    let cutoff = chrono::DateTime::from_timestamp_micros(2_000).unwrap();
    store.list_ended(cutoff, 10).await.unwrap();
    store.prune_events(cutoff, 10).await.unwrap();
    let middle = u128::from(COUNT / 2);
    let middle = (middle << 80) | (0x7000_8000 << 48) | middle;
    let middle = TokenId::from_bytes(middle.to_be_bytes()).unwrap();
    for by in [
        ListBy::Kind { realm: realm.clone(), kind: TokenKind::Personal },
        ListBy::Creator(id),
        ListBy::Restorer(id),
        ListBy::Ancestor(id),
        ListBy::Key(patkit::token::KeyId::new(7)),
    ] {
        // From the newest on, and from the middle of the table on.
        let query = ListQuery::new(by).limit(10);
        store.list(&query).await.unwrap();
        store.list(&query.after(Some(middle))).await.unwrap();
    }
    let ada = OwnerId::new("ada").unwrap();
    let by = ListBy::Owner { realm: realm.clone(), owner: ada, kind: Some(TokenKind::Personal) };
    store.list(&ListQuery::new(by).limit(10).after(Some(middle))).await.unwrap();
    let owner = OwnerId::new("owner 9").unwrap();
    let until = chrono::DateTime::from_timestamp_micros(COUNT.cast_signed() / 2).unwrap();
    store.events(&EventQuery::new(realm.clone()).limit(5).until(until)).await.unwrap();
    let first = store.events(&EventQuery::new(realm.clone()).limit(5)).await.unwrap();
    for query in [
        EventQuery::new(realm.clone()).limit(5).after(first.next),
        EventQuery::new(realm.clone()).limit(5).owner(owner.clone()).oldest_first(),
        EventQuery::new(realm.clone()).limit(5).token(id),
        EventQuery::new(realm.clone()).limit(5).owner(owner).after(first.next),
    ] {
        store.events(&query).await.unwrap();
    }
    store.export(&ExportCursor::start(), 10).await.unwrap();
    let statements = seen.lock().unwrap().clone();
    // Counts read all rows, and are run last for that.
    store.count_by_state(cutoff).await.unwrap();

    assert!(statements.len() > 20, "{statements:#?}");
    for (sql, values) in statements {
        let explained = bound(format!("EXPLAIN {sql}"), &values).fetch_all(&pool).await.unwrap();
        for row in explained {
            let text = |column: &str| row.try_get::<Option<String>, _>(column).unwrap_or(None);
            let (table, kind) = (text("table"), text("type"));
            let read = row.try_get::<Option<i64>, _>("rows").unwrap_or(None).unwrap_or_default();
            let is_large = !matches!(table.as_deref(), Some("used" | "numbers") | None);
            let is_scan = matches!(kind.as_deref(), Some("ALL" | "index"));
            // An insert names its table and reads nothing of it. A page in the order of an index
            // reads that index up to its limit.
            assert!(
                !is_large || !is_scan || sql.starts_with("INSERT") || read <= 1_000,
                "{table:?} {kind:?} {read}: {sql}"
            );
        }
        if sql.starts_with("SELECT") {
            let mut connection = pool.acquire().await.unwrap();
            raw_sql("FLUSH STATUS").execute(&mut *connection).await.unwrap();
            bound(sql.clone(), &values).fetch_all(&mut *connection).await.unwrap();
            let counted = "SELECT CAST(SUM(variable_value) AS SIGNED) FROM information_schema.session_status \
                           WHERE variable_name LIKE 'handler_read%'";
            let read: i64 = sqlx::query_scalar(counted).fetch_one(&mut *connection).await.unwrap();
            assert!(read <= 100, "{read} rows read: {sql}");
        }
    }
}
