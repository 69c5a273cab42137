//! What the tests of the example drivers share. Each of them includes this file.

#![allow(dead_code, reason = "not every driver needs all of it")]

use patkit::audit::AuditAction;
use patkit::conformance::Suite;
use patkit::store::sql::{Connection, Driver};
use patkit::store::{AuditLog, EventQuery};
use patkit::{CachedStore, NewToken, Realm, Reason, SqlStore, TokenState, TokenView};
use std::future::poll_fn;
use std::pin::pin;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::Poll;
use std::time::Duration;
use tokio::runtime::Runtime;
use tokio::time::sleep;

#[path = "follows.rs"]
pub mod follows;
#[path = "kills.rs"]
pub mod kills;
pub use kills::{ada, service};

pub type Tokens<D> = kills::Service<SqlStore<D>>;

/// Returns the URL of PostgreSQL. Without it the tests fail, and none is skipped.
pub fn postgres_url() -> String {
    std::env::var("PATKIT_TEST_POSTGRES_URL").expect(
        "PATKIT_TEST_POSTGRES_URL is not set; run scripts/test, which starts a PostgreSQL server",
    )
}

/// Returns a name that nothing else in this run or an earlier run has.
pub fn unique() -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let since = patkit::Clock::now(&patkit::SystemClock::new()).timestamp_micros();
    format!("t_{}_{}_{count}", std::process::id(), since % 10_000_000_000)
}

/// Runs a statement of the host's on a connection of the driver.
pub async fn run<D: Driver>(driver: &D, sql: &str) {
    driver.acquire().await.unwrap().run(sql).await.unwrap();
}

/// Creates an empty store in a schema of its own, and a table `projects` of the host's beside it.
/// Returns the name of that table too.
pub async fn postgres_store<D: Driver>(driver: &D) -> (SqlStore<D>, String) {
    let schema = unique();
    run(driver, &format!("CREATE SCHEMA {schema}")).await;
    run(driver, &format!("CREATE TABLE {schema}.projects (name text)")).await;
    let store = SqlStore::builder(driver.clone()).schema(&schema).migrate().await.unwrap();
    (store, format!("{schema}.projects"))
}

/// Returns the actions that the store has recorded for a token.
pub async fn actions<D: Driver>(tokens: &Tokens<D>, token: &TokenView) -> Vec<AuditAction> {
    let query = EventQuery::new(Realm::default()).token(token.id()).oldest_first();
    let events = tokens.store().events(&query).await.unwrap().events;
    events.iter().map(|event| event.action).collect()
}

/// Runs the conformance suite, and then its races on threads.
pub fn keeps_the_contract<D: Driver, F: Future<Output = SqlStore<D>> + Send>(
    runtime: &Runtime,
    store: impl Fn() -> F + Send + Sync,
) {
    let suite = Suite::new(store);
    runtime.block_on(async {
        assert!(suite.run().await.unwrap().passed.len() > 30);
        suite.run_audit_log().await.unwrap();
        suite.run_counts().await.unwrap();
        suite.run_key_checks().await.unwrap();
    });
    suite.run_races(|future| runtime.block_on(future)).unwrap();
}

/// A cache in front of one store hears of a change that was made through the other.
pub async fn a_cache_hears<D: Driver>(store: SqlStore<D>, other: SqlStore<D>) {
    let cached = service(CachedStore::builder(store).build().unwrap());
    follows::hears_of_a_change(&cached, &service(other), &ada()).await;
}

/// Polls a future some times and then drops it. Returns the output if the future ended before.
///
/// Between two polls, the statement in progress ends.
pub async fn drop_after<T>(polls: u32, future: impl Future<Output = T>) -> Option<T> {
    let mut future = pin!(future);
    for _ in 0..polls {
        let polled = poll_fn(|context| Poll::Ready(future.as_mut().poll(context))).await;
        if let Poll::Ready(output) = polled {
            return Some(output);
        }
        sleep(Duration::from_millis(4)).await;
    }
    None
}

/// Drops the futures of changes at each of their awaits. Each change is then stored with its event
/// or not at all, and the next one works.
///
/// The pool has one connection, so that the next call would wait in vain if that one were lost.
pub async fn survives_dropped_changes<D: Driver>(store: SqlStore<D>) {
    assert_eq!(store.pool().max_connections(), 1);
    let tokens = service(store);
    let issued = tokens.generate(&ada(), NewToken::named("ci")).await.unwrap();
    let id = issued.token.id();
    let (mut before, mut done, mut dropped) = (issued.token, 0, 0);
    for round in 0..60 {
        let change = async {
            if before.state() == TokenState::Active {
                tokens.revoke(&ada(), id, Reason::Owner).await.unwrap();
            } else {
                tokens.restore(&ada(), id).await.unwrap();
            }
        };
        let polls = if round % 15 == 14 { u32::MAX } else { round % 15 };
        let is_done = drop_after(polls, change).await.is_some();
        (done, dropped) = (done + u32::from(is_done), dropped + u32::from(!is_done));
        if !is_done {
            // A commit that was sent before the drop may take effect after it.
            sleep(Duration::from_millis(30)).await;
        }
        let after = tokens.get(&ada(), id).await.unwrap();
        let version = after.version();
        let is_right = if is_done {
            &[before.version() + 1][..]
        } else {
            &[before.version(), before.version() + 1]
        };
        assert!(is_right.contains(&version), "round {round}: {version} after {}", before.version());
        let events = actions(&tokens, &after).await.len();
        assert_eq!(u64::try_from(events).unwrap(), version, "round {round}: each with its event");
        before = after;
    }
    assert!(done >= 4 && dropped >= 4, "{done} done, {dropped} dropped");
}
