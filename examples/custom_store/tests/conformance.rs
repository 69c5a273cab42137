//! The suite that checks a store: `cargo test -p custom_store`.

use custom_store::RedbStore;
use patkit::conformance::Suite;
use redb::Database;
use redb::backends::InMemoryBackend;

/// Creates an empty store. The suite calls this once for each check.
async fn empty_store() -> RedbStore {
    let database = Database::builder().create_with_backend(InMemoryBackend::new()).unwrap();
    RedbStore::new(database).unwrap()
}

#[tokio::test]
async fn the_store_keeps_the_contract() {
    let suite = Suite::new(empty_store);
    suite.run().await.unwrap();
    suite.run_counts().await.unwrap();
    suite.run_key_checks().await.unwrap();
}

#[test]
fn the_store_keeps_the_contract_when_threads_race() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    Suite::new(empty_store).run_races(|future| runtime.block_on(future)).unwrap();
}
