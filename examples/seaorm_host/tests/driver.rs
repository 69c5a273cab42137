//! Checks the driver: `cargo test` in this folder, with `PATKIT_TEST_POSTGRES_URL`.

#[path = "../../../tests/support/driver.rs"]
mod support;

use patkit::{Credential, ManageError, NewToken, Reason, SqlStore};
use sea_orm::{
    ConnectOptions, ConnectionTrait, Database, DatabaseConnection, DbBackend, Statement,
};
use seaorm_host::driver::Transaction;
use std::time::Duration;
use support::kills::{Mark, lose_nothing, target, write_for_ever};
use support::{
    a_cache_hears, actions, ada, drop_after, keeps_the_contract, postgres_store, postgres_url,
    service, survives_dropped_changes,
};
use tokio::runtime::Runtime;

async fn database(connections: u32) -> DatabaseConnection {
    let mut options = ConnectOptions::new(postgres_url());
    options.max_connections(connections).acquire_timeout(Duration::from_secs(20));
    Database::connect(options).await.unwrap()
}

#[test]
fn the_driver_keeps_the_contract() {
    let runtime = Runtime::new().unwrap();
    let database = runtime.block_on(database(8));
    let pool = database.get_postgres_connection_pool();
    keeps_the_contract(&runtime, || async { postgres_store(pool).await.0 });
}

/// Counts the rows in the host's table.
async fn rows(database: &DatabaseConnection, table: &str) -> usize {
    let rows = Statement::from_string(DbBackend::Postgres, format!("SELECT name FROM {table}"));
    database.query_all_raw(rows).await.unwrap().len()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_and_a_row_of_the_hosts_are_there_together_or_not_at_all() {
    let database = database(2).await;
    let (store, projects) = postgres_store(database.get_postgres_connection_pool()).await;
    let tokens = service(store.clone());
    let before = tokens.generate(&ada(), NewToken::named("before")).await.unwrap().token;
    let insert = format!("INSERT INTO {projects} VALUES ('apollo')");
    for commits in [false, true] {
        let mut transaction = Transaction::begin(&database).await.unwrap();
        transaction.get().unwrap().execute_unprepared(&insert).await.unwrap();
        let within = tokens.within(store.within(&mut transaction));
        // A conflict leaves the transaction usable.
        let refused = within.generate(&ada(), NewToken::named("before")).await;
        assert!(matches!(refused, Err(ManageError::NameTaken)), "{refused:?}");
        let issued = within.generate(&ada(), NewToken::named("apollo")).await.unwrap();
        within.revoke(&ada(), before.id(), Reason::Owner).await.unwrap();
        let text = issued.plaintext.expose_secret();
        within.verify(Credential::text(text)).await.unwrap();
        let uncommitted = within.into_uncommitted();
        assert!(tokens.verify(Credential::text(text)).await.is_err(), "not committed yet");
        if commits {
            transaction.commit().await.unwrap();
            tokens.after_commit(&uncommitted);
        } else {
            drop(transaction);
        }
        assert_eq!(tokens.verify(Credential::text(text)).await.is_ok(), commits);
        assert_eq!(rows(&database, &projects).await, usize::from(commits));
        assert_eq!(actions(&tokens, &issued.token).await.len(), usize::from(commits));
        assert_eq!(actions(&tokens, &before).await.len(), 1 + usize::from(commits));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_in_which_a_call_was_dropped_cannot_be_committed() {
    let database = database(2).await;
    let (store, projects) = postgres_store(database.get_postgres_connection_pool()).await;
    let tokens = service(store.clone());
    let insert = format!("INSERT INTO {projects} VALUES ('apollo')");
    let mut transaction = Transaction::begin(&database).await.unwrap();
    transaction.get().unwrap().execute_unprepared(&insert).await.unwrap();
    let within = tokens.within(store.within(&mut transaction));
    assert!(drop_after(2, within.generate(&ada(), NewToken::named("ci"))).await.is_none());
    within.generate(&ada(), NewToken::named("ci")).await.unwrap_err();
    drop(within.into_uncommitted());
    transaction.commit().await.unwrap_err();
    assert_eq!(rows(&database, &projects).await, 0);
    tokens.generate(&ada(), NewToken::named("ci")).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_that_is_dropped_leaves_the_pool_healthy_and_nothing_half_done() {
    let database = database(1).await;
    survives_dropped_changes(postgres_store(database.get_postgres_connection_pool()).await.0).await;
}

#[tokio::test]
#[ignore = "in a process of its own, by the test below"]
async fn writer() {
    let schema = target();
    let url = format!("{}&application_name={schema}", postgres_url());
    let database = Database::connect(url).await.unwrap();
    let pool = database.get_postgres_connection_pool().clone();
    write_for_ever(SqlStore::builder(pool).schema(&schema).open().await.unwrap()).await;
}

#[test]
fn a_writer_that_is_killed_loses_nothing() {
    let runtime = Runtime::new().unwrap();
    let database = runtime.block_on(database(2));
    let store = postgres_store(database.get_postgres_connection_pool());
    let (store, projects) = runtime.block_on(store);
    let (schema, _) = projects.split_once('.').unwrap();
    lose_nothing(&runtime, store, ("writer", schema), Mark::ApplicationName(schema));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cache_hears_of_changes() {
    let database = database(3).await;
    let (store, _) = postgres_store(database.get_postgres_connection_pool()).await;
    a_cache_hears(store.clone(), store).await;
}
