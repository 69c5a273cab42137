//! Checks the driver: `cargo test` in this folder, with `PATKIT_TEST_POSTGRES_URL`.

#[path = "../../../tests/support/driver.rs"]
mod support;

use diesel::result::Error;
use diesel_async::{AsyncConnection, SimpleAsyncConnection};
use diesel_host::driver::{Driver, Within};
use diesel_host::pool::pool;
use patkit::store::sql::{Connection, Driver as _, Listener};
use patkit::{Credential, NewToken, SqlStore};
use std::time::Duration;
use support::kills::{Mark, lose_nothing, target, write_for_ever};
use support::{
    a_cache_hears, actions, ada, drop_after, keeps_the_contract, postgres_store, postgres_url, run,
    service, survives_dropped_changes,
};
use tokio::runtime::Runtime;
use tokio::time::timeout;

fn driver(connections: usize) -> Driver {
    Driver(pool(&postgres_url(), connections).unwrap())
}

#[test]
fn the_driver_keeps_the_contract() {
    let runtime = Runtime::new().unwrap();
    let driver = driver(8);
    keeps_the_contract(&runtime, || async { postgres_store(&driver).await.0 });
}

/// Counts the rows in the host's table.
async fn rows(driver: &Driver, table: &str) -> u64 {
    // `execute` of diesel counts the rows that a query returns, too.
    let mut connection = driver.0.get().await.unwrap();
    let rows = diesel::sql_query(format!("SELECT name FROM {table}"));
    let rows = diesel_async::RunQueryDsl::execute(rows, &mut connection).await.unwrap();
    u64::try_from(rows).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_and_a_row_of_the_hosts_are_there_together_or_not_at_all() {
    let driver = driver(2);
    let (store, projects) = postgres_store(&driver).await;
    let tokens = service(store.clone());
    let insert = format!("INSERT INTO {projects} VALUES ('apollo')");
    for commits in [false, true] {
        let mut connection = driver.0.get().await.unwrap();
        let mut made = None;
        let ended = connection.transaction(async |connection| {
            connection.batch_execute(&insert).await?;
            let within = tokens.within(store.within(Within(&mut **connection)));
            let issued = within.generate(&ada(), NewToken::named("apollo")).await.unwrap();
            let text = issued.plaintext.expose_secret();
            within.verify(Credential::text(text)).await.unwrap();
            assert!(tokens.verify(Credential::text(text)).await.is_err(), "not committed yet");
            made = Some((issued, within.into_uncommitted()));
            if commits { Ok(()) } else { Err(Error::RollbackTransaction) }
        });
        assert_eq!(ended.await.is_ok(), commits);
        let (issued, uncommitted) = made.unwrap();
        if commits {
            tokens.after_commit(&uncommitted);
        }
        let text = issued.plaintext.expose_secret();
        assert_eq!(tokens.verify(Credential::text(text)).await.is_ok(), commits);
        assert_eq!(rows(&driver, &projects).await, u64::from(commits));
        assert_eq!(actions(&tokens, &issued.token).await.len(), usize::from(commits));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_in_which_a_call_was_dropped_cannot_be_committed() {
    let driver = driver(2);
    let (store, projects) = postgres_store(&driver).await;
    let tokens = service(store.clone());
    let insert = format!("INSERT INTO {projects} VALUES ('apollo')");
    let mut connection = driver.0.get().await.unwrap();
    let ended = connection.transaction(async |connection| {
        connection.batch_execute(&insert).await?;
        let within = tokens.within(store.within(Within(&mut **connection)));
        assert!(drop_after(2, within.generate(&ada(), NewToken::named("ci"))).await.is_none());
        within.generate(&ada(), NewToken::named("ci")).await.unwrap_err();
        Ok::<_, Error>(())
    });
    ended.await.unwrap_err();
    drop(connection);
    assert_eq!(rows(&driver, &projects).await, 0);
    tokens.generate(&ada(), NewToken::named("ci")).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_that_is_dropped_leaves_the_pool_healthy_and_nothing_half_done() {
    survives_dropped_changes(postgres_store(&driver(1)).await.0).await;
}

/// Diesel prepares most statements anew each time, which costs a round trip more.
#[tokio::test(flavor = "multi_thread")]
async fn a_verification_finds_its_statement_prepared() {
    let driver = driver(1);
    let tokens = service(postgres_store(&driver).await.0);
    let issued = tokens.generate(&ada(), NewToken::named("ci")).await.unwrap();
    for _ in 0..3 {
        tokens.verify(Credential::text(issued.plaintext.expose_secret())).await.unwrap();
    }
    let kept = "pg_prepared_statements WHERE statement LIKE 'SELECT id,%WHERE id = $1'";
    assert_eq!(rows(&driver, kept).await, 1);
}

/// A connection that waits in the pool with an open transaction would keep its locks.
#[tokio::test(flavor = "multi_thread")]
async fn an_abandoned_connection_is_closed_at_once() {
    let (one, other) = (driver(1), driver(1));
    let (_, projects) = postgres_store(&one).await;
    let mut abandoned = one.acquire().await.unwrap();
    abandoned.run("BEGIN").await.unwrap();
    abandoned.run(&format!("LOCK TABLE {projects}")).await.unwrap();
    abandoned.abandon();
    drop(abandoned);
    let locked = format!("LOCK TABLE {projects}");
    let lock = async {
        let mut connection = other.acquire().await.unwrap();
        connection.run("BEGIN").await.unwrap();
        connection.run(&locked).await.unwrap();
    };
    timeout(Duration::from_secs(20), lock).await.expect("the lock is still held");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cache_hears_of_changes() {
    let driver = driver(2);
    let (store, _) = postgres_store(&driver).await;
    let mut listening = driver.listen("one").await.unwrap().unwrap();
    run(&driver, "NOTIFY one, 'hello'").await;
    assert_eq!(listening.next().await.unwrap(), "hello");
    a_cache_hears(store.clone(), store).await;
}

#[tokio::test]
#[ignore = "in a process of its own, by the test below"]
async fn writer() {
    let schema = target();
    let url = format!("{}&application_name={schema}", postgres_url());
    let driver = Driver(pool(&url, 2).unwrap());
    write_for_ever(SqlStore::builder(driver).schema(&schema).open().await.unwrap()).await;
}

#[test]
fn a_writer_that_is_killed_loses_nothing() {
    let runtime = Runtime::new().unwrap();
    let (store, projects) = runtime.block_on(async { postgres_store(&driver(2)).await });
    let (schema, _) = projects.split_once('.').unwrap();
    lose_nothing(&runtime, store, ("writer", schema), Mark::ApplicationName(schema));
}
