//! Counts the statements of each operation in SQLite, by sqlx's log and by the commits of the
//! engine.
//!
//! The log belongs to the whole process, so this test runs in its own span and counts only the
//! lines logged within it.

#![allow(clippy::panic, clippy::string_slice, clippy::unwrap_used, reason = "tests")]

use patkit::service::TokenEdit;
use patkit::store::sql::SqlStore;
use patkit::store::{KeyChecks, ListBy, ListQuery, TokenCounts, Touch};
use patkit::token::{KeyId, LastUse};
use patkit::{
    Actor, Credential, Keyring, ManualClock, MemoryDirectory, NewToken, Owner, OwnerId, OwnerKind,
    Realm, Reason, TokenPolicy, TokenService, TokenStore,
};
use sqlx::sqlite::{SqlitePool, SqlitePoolOptions};
use sqlx::{AssertSqlSafe, Row, raw_sql};
use std::io::{self, Write};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use support_sql::{Folder, SqliteStore, Watched, sqlite_pool};
use tracing::Instrument;
use tracing_subscriber::fmt::MakeWriter;

/// The mark of each line about a statement of this test: its span and sqlx's target.
const STATEMENT: &str = "counted: sqlx::query";

/// The logged statements.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<String>>>);

impl Write for Log {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let text = String::from_utf8_lossy(line).into_owned();
        if text.contains(STATEMENT) && !text.contains("'barrier'") {
            self.0.lock().unwrap().push(text);
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Log {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

struct Engine {
    pool: SqlitePool,
    log: Log,
    commits: Arc<AtomicUsize>,
}

impl Engine {
    async fn new(log: Log) -> Self {
        let pool =
            SqlitePoolOptions::new().max_connections(1).connect("sqlite::memory:").await.unwrap();
        let commits = Arc::new(AtomicUsize::new(0));
        let counting = commits.clone();
        let mut connection = pool.acquire().await.unwrap();
        connection.lock_handle().await.unwrap().set_commit_hook(move || {
            counting.fetch_add(1, Ordering::SeqCst);
            true
        });
        drop(connection);
        Self { pool, log, commits }
    }

    /// Returns the statements and the commits with changes since the last call.
    async fn count(&self) -> (usize, usize) {
        // The connection works in order, so all earlier statements are logged once this one
        // returns.
        raw_sql("SELECT 'barrier'").fetch_all(&self.pool).await.unwrap();
        (
            std::mem::take(&mut *self.log.0.lock().unwrap()).len(),
            self.commits.swap(0, Ordering::SeqCst),
        )
    }
}

fn owner(name: &str) -> OwnerId {
    OwnerId::new(name).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn each_operation_costs_as_many_statements_as_it_must() {
    let log = Log::default();
    let logs = tracing_subscriber::fmt().with_max_level(tracing::Level::DEBUG).with_ansi(false);
    logs.with_writer(log.clone()).init();
    count_statements(log).instrument(tracing::info_span!("counted")).await;
}

async fn count_statements(log: Log) {
    let engine = Engine::new(log).await;
    let store = SqliteStore::builder(engine.pool.clone()).migrate().await.unwrap();
    let clock =
        Arc::new(ManualClock::at(chrono::DateTime::from_timestamp(1_800_000_000, 0).unwrap()));
    let users = [
        Owner::new(owner("ada"), OwnerKind::Human).with_role("admin"),
        Owner::new(owner("robot"), OwnerKind::Service),
    ];
    let policy = TokenPolicy::builder()
        .idle_limit_days(300)
        .oversight(patkit::policy::Oversight::RevokeOnly);
    let service = TokenService::builder(store, users.into_iter().collect::<MemoryDirectory>())
        .brand("acme")
        .keyring(Keyring::ephemeral().unwrap())
        .policy(policy.build().unwrap())
        .clock(clock.clone())
        .audit_refusals(1)
        .build()
        .unwrap();
    let (ada, home) = (Actor::signed_in(owner("ada")), Realm::default());
    assert!(engine.count().await.0 > 0, "nothing is counted");
    macro_rules! costs {
        ($what:literal, $statements:literal, $commits:literal, $operation:expr) => {{
            let result = $operation.await;
            assert_eq!(engine.count().await, ($statements, $commits), $what);
            result
        }};
    }
    // The record and its event.
    let issued = costs!("generate", 2, 1, service.generate(&ada, NewToken::named("a"))).unwrap();
    let (id, text) = (issued.token.id(), issued.plaintext.expose_secret());
    let verified = costs!("verify", 1, 0, service.verify(Credential::text(text))).unwrap();
    costs!("recheck", 1, 0, service.recheck(&verified)).unwrap();
    costs!("refused by its text", 0, 0, service.verify(Credential::text(&text[..80]))).unwrap_err();
    let through = Actor::token(&verified);
    costs!("get", 1, 0, service.get(&ada, id)).unwrap();
    costs!("get itself", 2, 0, service.get(&through, id)).unwrap();
    // Also reads and changes the token that acts.
    let child =
        costs!("through a token", 4, 1, service.generate(&through, NewToken::named("b"))).unwrap();
    let robot = NewToken::named("robot").for_service(owner("robot"));
    costs!("generate for a service", 2, 1, service.generate(&ada, robot)).unwrap();
    costs!("list", 1, 0, service.list(&ada, None, 50)).unwrap();
    costs!("list_service", 1, 0, service.list_service(&ada, None, 50)).unwrap();
    costs!("list_overseen", 1, 0, service.list_overseen(&ada, &owner("ada"), None, 50)).unwrap();
    // Reads the record, updates it and writes its event.
    costs!("rename", 3, 1, service.rename(&ada, id, "c")).unwrap();
    costs!("edit", 3, 1, service.edit(&ada, id, TokenEdit::new().description("d"))).unwrap();
    costs!("edit to what it is", 1, 0, service.edit(&ada, id, TokenEdit::new().name("c"))).unwrap();
    let next = costs!("rotate", 4, 1, service.rotate(&ada, id, Duration::from_secs(60))).unwrap();
    let next_id = next.token.id();
    costs!("revoke", 3, 1, service.revoke(&ada, next_id, Reason::Owner)).unwrap();
    costs!(
        "refused as revoked",
        1,
        0,
        service.verify(Credential::text(next.plaintext.expose_secret()))
    )
    .unwrap_err();
    costs!("restore", 3, 1, service.restore(&ada, next_id)).unwrap();
    // Also lists the tokens that it made and those that were restored through it.
    costs!("revoke as compromised", 5, 1, service.revoke(&ada, next_id, Reason::Compromised))
        .unwrap();
    // One for the uses and one for the audited refusals.
    costs!("flush", 2, 2, service.flush()).unwrap();
    costs!("flush of nothing", 0, 0, service.flush()).unwrap();
    for number in 0..1_000 {
        let robot = NewToken::named(&format!("robot {number}")).for_service(owner("robot"));
        let issued = service.generate(&ada, robot).await.unwrap();
        service.verify(Credential::text(issued.plaintext.expose_secret())).await.unwrap();
    }
    engine.count().await;
    costs!("flush of a thousand", 1, 1, service.flush()).unwrap();
    clock.advance(chrono::TimeDelta::minutes(2));
    // Presented after its overlap: the record, a second read that bypasses caches, and the event.
    costs!("reuse", 4, 1, service.verify(Credential::text(text))).unwrap_err();
    costs!("reuse within the hour", 1, 0, service.verify(Credential::text(text))).unwrap_err();
    // The record; the tokens made or restored through it, and its descendants through removed
    // tokens; its predecessor; the removal; the cleared link of the predecessor; and the event.
    costs!("delete", 8, 1, service.delete(&ada, next_id)).unwrap();
    costs!("tokens_per_key", 1, 0, service.store().tokens_per_key()).unwrap();
    // The check values, one that is recorded, the values again, and the counts.
    costs!("check for the first time", 4, 1, service.check()).unwrap();
    costs!("check", 2, 0, service.check()).unwrap();
    let under_key = service.list_under_key(&home, KeyId::new(1), None, 50);
    costs!("list_under_key", 1, 0, under_key).unwrap();
    costs!("count_by_state", 1, 0, service.store().count_by_state(clock_now(&clock))).unwrap();
    costs!("health", 1, 0, service.store().health()).unwrap();
    costs!("shutdown", 1, 1, service.shutdown()).unwrap();
    // A list, a change and its event, and a last list, which is empty.
    costs!("revoke_all", 4, 1, service.revoke_all(&home, &owner("ada"))).unwrap();
    costs!("sweep_idle", 1, 0, service.sweep_idle()).unwrap();
    assert_eq!(
        service.get(&ada, child.token.id()).await.unwrap().state(),
        patkit::TokenState::Revoked
    );
    engine.count().await;
    clock.advance(chrono::TimeDelta::days(2));
    // A list of both ended tokens; for each, the tokens made or restored through it, and its
    // descendants through removed tokens; for one of them its missing successor; the removal of
    // both; their events; and a last list, which is empty.
    costs!("prune", 12, 1, service.prune(Duration::from_secs(86_400))).unwrap();
    let issued = service.generate(&ada, NewToken::named("e")).await.unwrap();
    engine.count().await;
    // The owner's tokens; the lists of the descendants of each (made, restored, through removed
    // tokens); the removal, its event, the owner's traces in all other events; and all of it again.
    costs!("erase_owner", 9, 2, service.erase_owner(&home, &owner("ada"))).unwrap();
    costs!("unknown", 1, 0, service.verify(Credential::text(issued.plaintext.expose_secret())))
        .unwrap_err();
}

fn clock_now(clock: &ManualClock) -> chrono::DateTime<chrono::Utc> {
    patkit::Clock::now(clock)
}

/// A filter over the whole table is as bad as reading it. SQLite chooses by the statistics.
#[tokio::test]
async fn last_uses_are_written_by_the_index_of_ids() {
    let folder = Folder::new();
    let pool = sqlite_pool(&folder.path().join("db"), 1).await;
    let driver = Watched::new(pool.clone());
    let store = SqlStore::builder(driver.clone()).migrate().await.unwrap();
    let rows = "WITH RECURSIVE numbers (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM numbers LIMIT 20000) \
         INSERT INTO patkit_tokens (id, realm, owner, owner_kind, kind, name, name_key, created_at, created_by, \
         lifetime, scope, digest_key, digest, idle_from, version) \
         SELECT unhex(printf('%012x70008%015x', n, n)), '', 'owner', 'human', 'personal', 'a', unhex(printf('%064x', n)), n, \
         'system', 'default', 'inherit', 1, unhex(printf('%064x', n)), n, 1 FROM numbers; ANALYZE";
    raw_sql(rows).execute(&pool).await.unwrap();
    let by = ListBy::Kind { realm: Realm::default(), kind: patkit::TokenKind::Personal };
    let tokens = store.list(&ListQuery::new(by)).await.unwrap().tokens;
    let at = chrono::DateTime::from_timestamp(1_800_000_000, 0).unwrap();
    for count in [1, 10, 200] {
        driver.seen.lock().unwrap().clear();
        let touch = |token: &Arc<patkit::Token>| Touch::new(token.id, LastUse::new(at, None));
        let uses: Vec<Touch> = tokens.iter().take(count).map(touch).collect();
        store.touch(&uses).await.unwrap();
        let sql = driver.seen.lock().unwrap().keys().next().unwrap().clone();
        assert!(sql.contains("UPDATE"), "{sql}");
        let explain = format!("EXPLAIN QUERY PLAN {sql}");
        let plan = raw_sql(AssertSqlSafe(explain)).fetch_all(&pool).await.unwrap();
        let plan: Vec<String> = plan.iter().map(|row| row.get(3)).collect();
        let reads_all = |line: &String| {
            line.contains("SCAN patkit_tokens") || line.contains("BLOOM FILTER ON patkit_tokens")
        };
        assert!(!plan.iter().any(reads_all), "{count}: {plan:#?}");
        assert!(plan.iter().any(|line| line.contains("SEARCH patkit_tokens")), "{plan:#?}");
    }
}
