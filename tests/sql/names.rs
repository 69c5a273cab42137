//! Prefixes and schemas: every name either works or is refused before the first statement.

#![allow(
    clippy::arithmetic_side_effects,
    clippy::large_futures,
    clippy::panic,
    clippy::unwrap_used,
    reason = "tests"
)]

use patkit::service::ManageError;
use patkit::store::sql::{NameError, SetupError};
use patkit::store::{
    AuditLog, ChangeFeed, EventQuery, ExportCursor, Feed, FeedEvent, KeyChecks, ListBy, ListQuery,
};
use patkit::{Credential, NewToken, OwnerId, Realm, TokenStore};
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{AssertSqlSafe, raw_sql};
use support_sql::{
    Folder, PostgresStore, SqliteStore, ada, postgres_pool, schema, service, sqlite_pool,
};

pub(super) const NASTY: &[&str] = &[
    "order",
    "select",
    "Upper_Case",
    "with space ",
    "a\"quote\"",
    "\"",
    "an'apostrophe",
    "100%_",
    "a;b",
    "a--b",
    "/*",
    "a\nline",
    "$1",
    "$user",
    "?",
    ":name",
    "{events}",
    "a.dot",
    ".name_key",
    "tokens_name",
    "back\\slash",
    "1",
    "é",
    "名前",
    "pg_catalog",
    "patkit_patkit_",
];

/// Runs every operation that has a statement of its own.
pub(super) async fn works<S>(store: S, what: &str)
where
    S: TokenStore + AuditLog + ChangeFeed + KeyChecks + Clone,
{
    let tokens = service(store.clone());
    let mut feed = match store.listen().await.unwrap() {
        Some(feed) => feed,
        None => store.poll().await.unwrap(),
    };
    tokens.check().await.unwrap();
    let issued = tokens.generate(&ada(), NewToken::named("a")).await.unwrap();
    let heard = feed.next().await.unwrap();
    assert_eq!(heard, FeedEvent::Changed(vec![issued.token.id()]), "{what}");
    let refused = tokens.generate(&ada(), NewToken::named("A")).await;
    assert!(matches!(refused, Err(ManageError::NameTaken)), "{what}: {refused:?}");
    tokens.verify(Credential::text(issued.plaintext.expose_secret())).await.unwrap();
    tokens.flush().await.unwrap();
    tokens.rotate(&ada(), issued.token.id(), std::time::Duration::ZERO).await.unwrap();
    let by =
        ListBy::Owner { realm: Realm::default(), owner: OwnerId::new("ada").unwrap(), kind: None };
    let listed = store.list(&ListQuery::new(by)).await.unwrap();
    assert_eq!((listed.tokens.len(), listed.corrupt.len()), (2, 0), "{what}");
    assert!(store.find(issued.token.id()).await.unwrap().unwrap().last_used.is_some(), "{what}");
    let events = store.events(&EventQuery::new(Realm::default())).await.unwrap().events;
    assert_eq!(events.len(), 3, "{what}");
    store.export(&ExportCursor::start(), 10).await.unwrap();
    let later = events.first().unwrap().at + chrono::TimeDelta::seconds(1);
    assert_eq!(store.prune_events(later, 10).await.unwrap(), 3, "{what}");
    store.export(&ExportCursor::start(), 10).await.unwrap();
    assert_eq!(tokens.prune(std::time::Duration::ZERO).await.unwrap(), 1, "{what}");
}

#[tokio::test(flavor = "multi_thread")]
async fn any_prefix_works_in_sqlite() {
    let folder = Folder::new();
    let pool = sqlite_pool(&folder.path().join("db"), 4).await;
    let long = "x".repeat(64);
    // All prefixes share one database.
    for prefix in NASTY.iter().copied().chain([&*long, "a_sqlite_"]) {
        for _ in 0..2 {
            SqliteStore::builder(pool.clone()).prefix(prefix).migrate().await.unwrap_or_else(
                |error| {
                    panic!("{prefix:?}: {error}");
                },
            );
        }
        works(SqliteStore::builder(pool.clone()).prefix(prefix).open().await.unwrap(), prefix)
            .await;
    }
    // Prefixes that differ only in ASCII case name the same tables, so exports work with either.
    let store = SqliteStore::builder(pool.clone()).prefix("ORDER").open().await.unwrap();
    let page = store.export(&ExportCursor::start(), 10).await.unwrap();
    store.export(&page.next, 10).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn any_prefix_and_any_schema_work_in_postgres() {
    let pool = postgres_pool(6).await;
    let own = schema(&pool).await;
    let (one, two, wide) =
        (format!("{}1", "x".repeat(47)), format!("{}2", "x".repeat(47)), "é".repeat(31) + "x");
    for prefix in NASTY.iter().copied().chain([&*one, &*two]) {
        for _ in 0..2 {
            let migrated =
                PostgresStore::builder(pool.clone()).schema(&own).prefix(prefix).migrate().await;
            migrated.unwrap_or_else(|error| panic!("{prefix:?}: {error}"));
        }
        works(
            PostgresStore::builder(pool.clone()).schema(&own).prefix(prefix).open().await.unwrap(),
            prefix,
        )
        .await;
    }
    // PostgreSQL reserves names that begin with `pg_` for its own schemas.
    for name in NASTY.iter().copied().filter(|name| !name.starts_with("pg_")).chain([&*wide]) {
        let quoted = format!("\"{}\"", name.replace('"', "\"\""));
        let create = format!("DROP SCHEMA IF EXISTS {quoted} CASCADE; CREATE SCHEMA {quoted}");
        raw_sql(AssertSqlSafe(create)).execute(&pool).await.unwrap();
        let build = || PostgresStore::builder(pool.clone()).schema(name).prefix("%I\"");
        for _ in 0..2 {
            build().migrate().await.unwrap_or_else(|error| panic!("{name:?}: {error}"));
        }
        works(build().open().await.unwrap(), name).await;
        raw_sql(AssertSqlSafe(format!("DROP SCHEMA {quoted} CASCADE")))
            .execute(&pool)
            .await
            .unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_cannot_work_is_refused_before_any_statement() {
    // Neither pool ever connects.
    let postgres =
        || PgPoolOptions::new().connect_lazy_with(PgConnectOptions::new().host("/nonexistent"));
    let sqlite =
        || sqlx::sqlite::SqlitePoolOptions::new().connect_lazy("sqlite:/nonexistent/db").unwrap();
    let (x49, x64, e64) = ("x".repeat(49), "x".repeat(64), "é".repeat(32));
    let table = [
        ("", NameError::Empty),
        ("a\0b", NameError::Nul),
        (&*x49, NameError::TooLong { found: 49, most: 48 }),
    ];
    for (name, expected) in table {
        match PostgresStore::builder(postgres()).prefix(name).migrate().await {
            Err(SetupError::Name { field: "prefix", reason }) => assert_eq!(reason, expected),
            other => panic!("{name:?}: {other:?}"),
        }
    }
    let table = [
        ("", NameError::Empty),
        ("a\0b", NameError::Nul),
        (&*x64, NameError::TooLong { found: 64, most: 63 }),
        (&*e64, NameError::TooLong { found: 64, most: 63 }),
    ];
    for (name, expected) in table {
        match PostgresStore::builder(postgres()).schema(name).open().await {
            Err(SetupError::Name { field: "schema", reason }) => assert_eq!(reason, expected),
            other => panic!("{name:?}: {other:?}"),
        }
    }
    let table = [
        ("", NameError::Empty),
        ("a\0b", NameError::Nul),
        ("sqlite_", NameError::Reserved("sqlite_")),
        ("SQLite_x", NameError::Reserved("sqlite_")),
    ];
    for (name, expected) in table {
        match SqliteStore::builder(sqlite()).prefix(name).migrate().await {
            Err(SetupError::Name { field: "prefix", reason }) => assert_eq!(reason, expected),
            other => panic!("{name:?}: {other:?}"),
        }
    }
    assert!(matches!(
        SqliteStore::builder(sqlite()).schema("auth").open().await,
        Err(SetupError::NoSchemas)
    ));
}
