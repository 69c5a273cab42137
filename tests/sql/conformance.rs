//! Runs the conformance suite on the stores in databases: on real engines, plain and behind
//! pointers.

#![allow(
    clippy::arithmetic_side_effects,
    clippy::large_futures,
    clippy::unwrap_used,
    reason = "tests"
)]

use patkit::CachedStore;
use patkit::conformance::Suite;
use patkit::store::DynTokenStore;
use patkit::{Actor, Credential, IssuedToken, MemoryStore, NewToken, Reason, TokenStore};
use std::sync::Arc;
use std::time::Duration;
use support_sql::{
    Folder, PostgresStore, SqliteStore, ada, mariadb_pool, mariadb_store, pooler_pool,
    postgres_pool, postgres_store, schema, service, sqlite_memory_pool, sqlite_store, unique,
};

#[tokio::test(flavor = "multi_thread")]
async fn sqlite_in_a_file_is_right() {
    let folder = Folder::new();
    let suite = Suite::new(|| async { sqlite_store(&folder.path().join(unique("db"))).await });
    assert!(suite.run().await.unwrap().passed.len() > 30);
    suite.run_audit_log().await.unwrap();
    suite.run_counts().await.unwrap();
    suite.run_key_checks().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn sqlite_in_shared_memory_is_right() {
    // One connection, because connections of a shared cache fail on each other's locks instead of
    // waiting.
    let suite = Suite::new(|| async {
        SqliteStore::builder(sqlite_memory_pool(1).await).migrate().await.unwrap()
    });
    suite.run().await.unwrap();
    suite.run_audit_log().await.unwrap();
    suite.run_counts().await.unwrap();
    suite.run_key_checks().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn postgres_is_right() {
    let pool = postgres_pool(8).await;
    let suite = Suite::new(|| postgres_store(&pool));
    assert!(suite.run().await.unwrap().passed.len() > 30);
    suite.run_audit_log().await.unwrap();
    suite.run_counts().await.unwrap();
    suite.run_key_checks().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn mariadb_is_right() {
    let pool = mariadb_pool(8).await;
    let suite = Suite::new(|| mariadb_store(&pool));
    assert!(suite.run().await.unwrap().passed.len() > 30);
    suite.run_audit_log().await.unwrap();
    suite.run_counts().await.unwrap();
    suite.run_key_checks().await.unwrap();
}

#[test]
fn mariadb_is_right_when_changes_race_on_threads() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let pool = runtime.block_on(mariadb_pool(8));
    let suite = Suite::new(|| mariadb_store(&pool));
    suite.run_races(|future| runtime.block_on(future)).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn postgres_behind_a_pooler_in_transaction_mode_is_right() {
    let direct = postgres_pool(1).await;
    let pool = pooler_pool(8).await;
    let suite = Suite::new(|| async {
        let schema = schema(&direct).await;
        let builder = PostgresStore::builder(pool.clone()).schema(&schema);
        builder.pooler(true).migrate().await.unwrap()
    });
    assert!(suite.run().await.unwrap().passed.len() > 30);
    suite.run_audit_log().await.unwrap();
    suite.run_counts().await.unwrap();
    suite.run_key_checks().await.unwrap();
}

#[test]
fn sqlite_is_right_when_changes_race_on_threads() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let folder = Folder::new();
    let suite = Suite::new(|| async { sqlite_store(&folder.path().join(unique("db"))).await });
    suite.run_races(|future| runtime.block_on(future)).unwrap();
}

#[test]
fn postgres_is_right_when_changes_race_on_threads() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let pool = runtime.block_on(postgres_pool(8));
    let suite = Suite::new(|| postgres_store(&pool));
    suite.run_races(|future| runtime.block_on(future)).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn databases_behind_the_cache_are_right() {
    let pool = postgres_pool(8).await;
    let suite =
        Suite::new(|| async { CachedStore::builder(postgres_store(&pool).await).build().unwrap() });
    suite.run().await.unwrap();
    let folder = Folder::new();
    let file = || folder.path().join(unique("db"));
    let suite =
        Suite::new(|| async { CachedStore::builder(sqlite_store(&file()).await).build().unwrap() });
    suite.run().await.unwrap();
}

/// Prunes a maker and a rotated token between a root and a successor; revoking the root as
/// compromised must still reach the successor.
async fn pruning_keeps_the_family_of<S: TokenStore>(store: S) {
    let service = service(store);
    let through = async |issued: &IssuedToken| {
        Actor::token(
            &service.verify(Credential::text(issued.plaintext.expose_secret())).await.unwrap(),
        )
    };
    let root = service.generate(&ada(), NewToken::named("root")).await.unwrap();
    let maker = service.generate(&through(&root).await, NewToken::named("maker")).await.unwrap();
    let child = service.generate(&through(&maker).await, NewToken::named("child")).await.unwrap();
    let itself = through(&child).await;
    let successor = service.rotate(&itself, child.token.id(), Duration::ZERO).await.unwrap();
    service.revoke(&ada(), maker.token.id(), Reason::Owner).await.unwrap();
    assert_eq!(service.prune(Duration::ZERO).await.unwrap(), 2, "the maker and the predecessor");
    let kept = service.get(&ada(), successor.token.id()).await.unwrap();
    assert_eq!(kept.created_by().token_id(), Some(root.token.id()));
    service.revoke(&ada(), root.token.id(), Reason::Compromised).await.unwrap();
    let kept = service.get(&ada(), successor.token.id()).await.unwrap();
    assert_eq!(kept.revocation().map(|revocation| revocation.reason), Some(Reason::Compromised));
}

#[tokio::test(flavor = "multi_thread")]
async fn pruning_keeps_the_family_in_every_kind_of_store() {
    pruning_keeps_the_family_of(MemoryStore::new()).await;
    pruning_keeps_the_family_of(
        SqliteStore::builder(sqlite_memory_pool(1).await).migrate().await.unwrap(),
    )
    .await;
    pruning_keeps_the_family_of(postgres_store(&postgres_pool(2).await).await).await;
    pruning_keeps_the_family_of(CachedStore::builder(MemoryStore::new()).build().unwrap()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn databases_behind_pointers_are_right() {
    let pool = postgres_pool(8).await;
    let suite = Suite::new(|| async { Arc::new(postgres_store(&pool).await) });
    suite.run().await.unwrap();
    suite.run_key_checks().await.unwrap();
    let folder = Folder::new();
    let file = || folder.path().join(unique("db"));
    let suite = Suite::new(|| async {
        let store: Arc<dyn DynTokenStore> = Arc::new(sqlite_store(&file()).await);
        store
    });
    suite.run().await.unwrap();
}
