//! Checks the driver: `cargo test` in this folder.

#[path = "../../../tests/support/driver.rs"]
mod support;

use patkit::store::sql::{Driver, Session};
use patkit::{Credential, NewToken, SqlStore};
use rusqlite_host::pool::{Lent, Pool};
use std::path::{Path, PathBuf};
use support::kills::{Mark, lose_nothing, target, write_for_ever};
use support::{
    a_cache_hears, actions, ada, drop_after, keeps_the_contract, run, service,
    survives_dropped_changes, unique,
};
use tokio::runtime::Runtime;

/// A folder that is removed when it is dropped.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        let path = std::env::temp_dir().join(unique());
        std::fs::create_dir(&path).unwrap();
        Self(path)
    }

    /// Creates an empty store in a new file, and a table `projects` of the host's beside it.
    async fn store(&self, connections: u32) -> SqlStore<Pool> {
        let pool = Pool::open(&self.0.join(unique()), connections).unwrap();
        run(&pool, "CREATE TABLE projects (name TEXT)").await;
        SqlStore::builder(pool).migrate().await.unwrap()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[test]
fn the_driver_keeps_the_contract() {
    let folder = Folder::new();
    keeps_the_contract(&Runtime::new().unwrap(), || folder.store(8));
}

async fn projects(pool: &Pool) -> u32 {
    let mut connection = pool.get().await.unwrap();
    let count = "SELECT count(*) FROM projects";
    connection.call(move |c| c.query_row(count, [], |row| row.get(0))).await.unwrap()
}

/// Begins a transaction that has a row of the host's.
async fn begin(pool: &Pool) -> Lent {
    let mut transaction = pool.get().await.unwrap();
    transaction.begin("BEGIN IMMEDIATE").await.unwrap();
    let insert = "INSERT INTO projects VALUES ('apollo')";
    transaction.call(move |connection| connection.execute_batch(insert)).await.unwrap();
    transaction
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_and_a_row_of_the_hosts_are_there_together_or_not_at_all() {
    let folder = Folder::new();
    let store = folder.store(2).await;
    let tokens = service(store.clone());
    for end in ["rollback", "drop", "commit"] {
        let mut transaction = begin(store.pool()).await;
        let within = tokens.within(store.within(&mut transaction));
        let issued = within.generate(&ada(), NewToken::named("apollo")).await.unwrap();
        let text = issued.plaintext.expose_secret();
        within.verify(Credential::text(text)).await.unwrap();
        let uncommitted = within.into_uncommitted();
        assert!(tokens.verify(Credential::text(text)).await.is_err(), "not committed yet");
        match end {
            "rollback" => transaction.rollback().await.unwrap(),
            "commit" => {
                transaction.commit().await.unwrap();
                tokens.after_commit(&uncommitted);
            }
            _ => {}
        }
        drop(transaction);
        let is_there = end == "commit";
        assert_eq!(tokens.verify(Credential::text(text)).await.is_ok(), is_there, "{end}");
        assert_eq!(projects(store.pool()).await, u32::from(is_there), "{end}");
        assert_eq!(actions(&tokens, &issued.token).await.len(), usize::from(is_there), "{end}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_in_which_a_call_was_dropped_cannot_be_committed() {
    let folder = Folder::new();
    let store = folder.store(2).await;
    let tokens = service(store.clone());
    let mut transaction = begin(store.pool()).await;
    let within = tokens.within(store.within(&mut transaction));
    assert!(drop_after(1, within.generate(&ada(), NewToken::named("ci"))).await.is_none());
    within.generate(&ada(), NewToken::named("ci")).await.unwrap_err();
    drop(within.into_uncommitted());
    transaction.commit().await.unwrap_err();
    assert_eq!(projects(store.pool()).await, 0);
    tokens.generate(&ada(), NewToken::named("ci")).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_that_is_dropped_leaves_the_pool_healthy_and_nothing_half_done() {
    let folder = Folder::new();
    let store = folder.store(1).await;
    let pool = store.pool().clone();
    survives_dropped_changes(store).await;
    let mut connection = pool.acquire().await.unwrap();
    assert!(connection.call_here(|connection| Ok(connection.is_autocommit())).unwrap());
}

#[tokio::test]
#[ignore = "in a process of its own, by the test below"]
async fn writer() {
    let pool = Pool::open(Path::new(&target()), 2).unwrap();
    write_for_ever(SqlStore::builder(pool).open().await.unwrap()).await;
}

#[test]
fn a_writer_that_is_killed_loses_nothing() {
    let folder = Folder::new();
    let file = folder.0.join("db");
    let runtime = Runtime::new().unwrap();
    let pool = Pool::open(&file, 2).unwrap();
    let store = runtime.block_on(SqlStore::builder(pool).migrate()).unwrap();
    lose_nothing(&runtime, store, ("writer", file.to_str().unwrap()), Mark::None);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cache_hears_of_changes() {
    let folder = Folder::new();
    let store = folder.store(2).await;
    a_cache_hears(store.clone(), store).await;
}
