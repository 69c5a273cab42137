//! Changes that join the host's transaction.

#![allow(
    clippy::arithmetic_side_effects,
    clippy::expect_used,
    clippy::future_not_send,
    clippy::indexing_slicing,
    clippy::large_futures,
    clippy::panic,
    clippy::unwrap_used,
    reason = "tests"
)]

use patkit::audit::{AuditAction, AuditEvent, AuditSink};
use patkit::store::sql::sqlx::SqlxEngine;
use patkit::store::sql::{Driver, SqlStore};
use patkit::store::{
    AuditLog, Change, ChangeBatch, Conflict, EventQuery, ListBy, ListQuery, Touch,
};
use patkit::token::LastUse;
use patkit::{
    CachedStore, Credential, ManageError, NewToken, OwnerId, Realm, Reason, RejectReason,
    StoreError, Token, TokenState, TokenStore, TokenView,
};

use sqlx::{AssertSqlSafe, Executor, Pool, Row, Transaction, raw_sql};
use std::sync::{Arc, Mutex};
use std::task::{Context, Waker};
use std::time::Duration;
use support_sql::{
    Folder, MariaDbStore, PostgresStore, ada, builder, event_id, mariadb_pool, mariadb_schema,
    mariadb_store, postgres_pool, postgres_store, schema, service, sqlite_store, unique,
};

/// A host with transactions of its own.
pub(super) trait Host<D: Driver> {
    /// Holds the connection that a transaction borrows.
    type Lender;
    type Transaction<'c>;

    /// Runs a statement outside of a transaction, and returns the number of rows that it returned.
    async fn run_alone(&self, driver: &D, sql: &str) -> usize;

    async fn lend(&self, driver: &D) -> Self::Lender;

    async fn begin<'c>(&self, lender: &'c mut Self::Lender) -> Self::Transaction<'c>;

    fn within(
        &self,
        store: &SqlStore<D>,
        transaction: &mut Self::Transaction<'_>,
    ) -> impl TokenStore;

    async fn run(&self, transaction: &mut Self::Transaction<'_>, sql: &str);

    /// Commits the transaction, and returns whether the library reported success.
    async fn commit(&self, transaction: Self::Transaction<'_>) -> bool;

    async fn roll_back(&self, transaction: Self::Transaction<'_>);
}

/// A host with sqlx that begins a transaction with this statement.
struct Sqlx(&'static str);

const POSTGRES: Sqlx = Sqlx("BEGIN");
const SQLITE: Sqlx = Sqlx("BEGIN IMMEDIATE");
const MARIADB: Sqlx = Sqlx("START TRANSACTION");

impl<E: SqlxEngine> Host<Pool<E>> for Sqlx
where
    for<'c> &'c mut E::Connection: Executor<'c, Database = E>,
{
    type Lender = Pool<E>;
    type Transaction<'c> = Transaction<'c, E>;

    async fn run_alone(&self, driver: &Pool<E>, sql: &str) -> usize {
        let mut connection = driver.acquire().await.unwrap();
        let sql = AssertSqlSafe(sql.to_owned());
        raw_sql(sql).fetch_all(&mut *connection).await.unwrap().len()
    }

    async fn lend(&self, driver: &Pool<E>) -> Pool<E> {
        driver.clone()
    }

    async fn begin<'c>(&self, lender: &'c mut Pool<E>) -> Transaction<'c, E> {
        lender.begin_with(self.0).await.unwrap()
    }

    fn within(
        &self,
        store: &SqlStore<Pool<E>>,
        transaction: &mut Self::Transaction<'_>,
    ) -> impl TokenStore {
        store.within(transaction)
    }

    async fn run(&self, transaction: &mut Self::Transaction<'_>, sql: &str) {
        raw_sql(AssertSqlSafe(sql.to_owned())).execute(&mut **transaction).await.unwrap();
    }

    async fn commit(&self, transaction: Self::Transaction<'_>) -> bool {
        transaction.commit().await.is_ok()
    }

    async fn roll_back(&self, transaction: Self::Transaction<'_>) {
        transaction.rollback().await.unwrap();
    }
}

/// Records the events that it receives.
#[derive(Clone, Default)]
struct Told(Arc<Mutex<Vec<AuditAction>>>);

impl AuditSink for Told {
    fn record(&self, event: &AuditEvent) {
        self.0.lock().unwrap().push(event.action);
    }
}

impl Told {
    fn take(&self) -> Vec<AuditAction> {
        std::mem::take(&mut *self.0.lock().unwrap())
    }
}

fn all() -> ListQuery {
    ListQuery::new(ListBy::Kind { realm: Realm::default(), kind: patkit::TokenKind::Personal })
}

async fn names<S: TokenStore>(store: &S) -> Vec<String> {
    let page = store.list(&all()).await.unwrap();
    page.tokens.iter().map(|token| token.name.as_str().to_owned()).collect()
}

async fn actions<S: AuditLog>(store: &S, token: &TokenView) -> Vec<AuditAction> {
    let query = EventQuery::new(Realm::default()).token(token.id()).oldest_first();
    let events = store.events(&query).await.unwrap();
    events.events.iter().map(|event| event.action).collect()
}

/// A token and a row of the host's table are stored together or not at all, and no event is sent
/// before the commit.
pub(super) async fn joins<D: Driver>(store: SqlStore<D>, host: impl Host<D>, table: &str) {
    host.run_alone(store.pool(), &format!("CREATE TABLE {table} (name text)")).await;
    let all_rows = format!("SELECT * FROM {table}");
    let rows = || host.run_alone(store.pool(), &all_rows);
    let told = Told::default();
    let tokens = builder(store.clone()).audit_sink(told.clone()).build().unwrap();
    for commits in [false, true] {
        let mut lender = host.lend(store.pool()).await;
        let mut transaction = host.begin(&mut lender).await;
        host.run(&mut transaction, &format!("INSERT INTO {table} VALUES ('apollo')")).await;
        let within = tokens.within(host.within(&store, &mut transaction));
        let issued = within.generate(&ada(), NewToken::named("apollo")).await.unwrap();
        let text = issued.plaintext.expose_secret();
        // Within the transaction, the token exists.
        within.verify(Credential::text(text)).await.unwrap();
        within.flush().await.unwrap();
        let renamed = within.rename(&ada(), issued.token.id(), "apollo deploys").await.unwrap();
        assert_eq!(renamed.name().as_str(), "apollo deploys");
        // Outside the transaction, nothing has happened yet.
        let refused = tokens.verify(Credential::text(text)).await.unwrap_err();
        assert_eq!(refused.reject_reason(), Some(RejectReason::Unknown));
        assert_eq!((rows().await, told.take()), (0, vec![]));
        let uncommitted = within.into_uncommitted();
        let expected = [AuditAction::Generated, AuditAction::Renamed];
        assert_eq!(uncommitted.events().map(|event| event.action).collect::<Vec<_>>(), expected);
        assert!(uncommitted.ids().all(|id| id == issued.token.id()));
        if !commits {
            host.roll_back(transaction).await;
            assert!(tokens.verify(Credential::text(text)).await.is_err());
            assert!(names(&store).await.is_empty());
            assert!(actions(&store, &issued.token).await.is_empty());
            assert_eq!((rows().await, told.take()), (0, vec![]));
            continue;
        }
        assert!(host.commit(transaction).await);
        tokens.after_commit(&uncommitted);
        assert_eq!(told.take(), expected);
        assert_eq!(actions(&store, &issued.token).await, expected);
        assert_eq!((names(&store).await, rows().await), (vec!["apollo deploys".to_owned()], 1));
        // Its use within the transaction was written with it.
        assert!(store.find(issued.token.id()).await.unwrap().unwrap().last_used.is_some());
        tokens.verify(Credential::text(text)).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_and_a_row_of_the_hosts_are_there_together_or_not_at_all() {
    let pool = postgres_pool(4).await;
    let schema = schema(&pool).await;
    let store = PostgresStore::builder(pool).schema(&schema).migrate().await.unwrap();
    joins(store, POSTGRES, &format!("{schema}.projects")).await;
    let folder = Folder::new();
    joins(sqlite_store(&folder.path().join("db")).await, SQLITE, "projects").await;
    let table = unique("patkit.projects");
    joins(mariadb_store(&mariadb_pool(4).await).await, MARIADB, &table).await;
}

/// Every operation within a transaction takes effect if it commits, and leaves no trace if it rolls
/// back.
pub(super) async fn does_everything<D: Driver>(store: SqlStore<D>, host: impl Host<D>) {
    let tokens = service(store.clone());
    let mut made = Vec::new();
    for name in ["revoked", "restored", "rotated", "deleted", "family"] {
        made.push(tokens.generate(&ada(), NewToken::named(name)).await.unwrap());
    }
    let [revoked, restored, rotated, deleted, family] = &*made else { panic!("five") };
    for ended in [restored, deleted] {
        tokens.revoke(&ada(), ended.token.id(), Reason::Owner).await.unwrap();
    }
    let through = patkit::Actor::token(
        &tokens.verify(Credential::text(family.plaintext.expose_secret())).await.unwrap(),
    );
    let child = tokens.generate(&through, NewToken::named("child")).await.unwrap();
    let before = store.list(&all()).await.unwrap().tokens;
    for commits in [false, true] {
        let mut lender = host.lend(store.pool()).await;
        let mut transaction = host.begin(&mut lender).await;
        let within = tokens.within(host.within(&store, &mut transaction));
        within.revoke(&ada(), revoked.token.id(), Reason::Owner).await.unwrap();
        within.restore(&ada(), restored.token.id()).await.unwrap();
        let next = within.rotate(&ada(), rotated.token.id(), Duration::ZERO).await.unwrap();
        within.delete(&ada(), deleted.token.id()).await.unwrap();
        within.revoke(&ada(), family.token.id(), Reason::Compromised).await.unwrap();
        assert_eq!(within.list(&ada(), None, 50).await.unwrap().items.len(), 6);
        drop(within.into_uncommitted());
        if !commits {
            host.roll_back(transaction).await;
            assert_eq!(store.list(&all()).await.unwrap().tokens, before);
            assert!(store.find(next.token.id()).await.unwrap().is_none());
            continue;
        }
        assert!(host.commit(transaction).await);
        let works = async |issued: &patkit::IssuedToken| {
            tokens.verify(Credential::text(issued.plaintext.expose_secret())).await.is_ok()
        };
        assert!(!works(revoked).await && !works(rotated).await && !works(deleted).await);
        assert!(works(restored).await && works(&next).await);
        assert!(!works(family).await && !works(&child).await, "the family is revoked with it");
        assert!(store.find(deleted.token.id()).await.unwrap().is_none());
    }
    let mut lender = host.lend(store.pool()).await;
    let mut transaction = host.begin(&mut lender).await;
    let within = tokens.within(host.within(&store, &mut transaction));
    let owner = OwnerId::new("ada").unwrap();
    assert_eq!(within.revoke_all(&Realm::default(), &owner).await.unwrap(), 2);
    drop(within.into_uncommitted());
    assert!(host.commit(transaction).await);
    let page = store
        .list(&all().active_at(patkit::Clock::now(&patkit::SystemClock::new())))
        .await
        .unwrap();
    assert!(page.tokens.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn every_operation_joins_a_transaction_of_the_hosts() {
    does_everything(postgres_store(&postgres_pool(4).await).await, POSTGRES).await;
    let folder = Folder::new();
    does_everything(sqlite_store(&folder.path().join("db")).await, SQLITE).await;
    does_everything(mariadb_store(&mariadb_pool(4).await).await, MARIADB).await;
}

/// A conflict leaves the transaction unchanged and has the same error as outside of one.
pub(super) async fn conflicts<D: Driver>(store: SqlStore<D>, host: impl Host<D>, table: &str) {
    host.run_alone(store.pool(), &format!("CREATE TABLE {table} (name text)")).await;
    let all_rows = format!("SELECT * FROM {table}");
    let rows = || host.run_alone(store.pool(), &all_rows);
    let tokens = service(store.clone());
    let taken = tokens.generate(&ada(), NewToken::named("taken")).await.unwrap().token;
    let other = tokens.generate(&ada(), NewToken::named("other")).await.unwrap().token;
    let record =
        async |token: &TokenView| Token::clone(&store.find(token.id()).await.unwrap().unwrap());
    let (taken_record, other_record) = (record(&taken).await, record(&other).await);
    let update =
        |token: &Token, version| Change::Update(Arc::new(Token { version, ..token.clone() }));
    let mut named_as_taken = Token { version: 2, ..other_record.clone() };
    named_as_taken.rename(taken_record.name.clone());

    let mut lender = host.lend(store.pool()).await;
    let mut transaction = host.begin(&mut lender).await;
    host.run(&mut transaction, &format!("INSERT INTO {table} VALUES ('before')")).await;
    let within = tokens.within(host.within(&store, &mut transaction));
    let refused = within.generate(&ada(), NewToken::named("Taken")).await;
    assert!(matches!(refused, Err(ManageError::NameTaken)), "{refused:?}");
    let refused = within.rename(&ada(), other.id(), "taken").await;
    assert!(matches!(refused, Err(ManageError::NameTaken)), "{refused:?}");
    let view = within.store();
    for (batch, expected) in [
        (vec![update(&taken_record, 9)], Conflict::Version(taken.id())),
        (vec![Change::Insert(Arc::new(taken_record.clone()))], Conflict::Id(taken.id())),
        // If a name and a version conflict, the version is reported, wherever it is in the batch.
        (
            vec![Change::Update(Arc::new(named_as_taken.clone())), update(&taken_record, 9)],
            Conflict::Version(taken.id()),
        ),
        (vec![Change::Update(Arc::new(named_as_taken))], Conflict::Name(other.id())),
        // The same record twice.
        (vec![update(&other_record, 2), update(&other_record, 3)], Conflict::Version(other.id())),
        // The same record twice, after a change that does not fit; nothing of the earlier changes
        // remains.
        (
            vec![
                update(&other_record, 2),
                update(&taken_record, 7),
                Change::Insert(Arc::new(other_record.clone())),
            ],
            Conflict::Version(taken.id()),
        ),
    ] {
        let changes = batch.into_iter().fold(ChangeBatch::new(), ChangeBatch::change);
        let refused = view.commit(&changes).await.unwrap_err();
        assert_eq!(refused.conflict(), Some(expected));
    }
    within.generate(&ada(), NewToken::named("after")).await.unwrap();
    drop(within.into_uncommitted());
    host.run(&mut transaction, &format!("INSERT INTO {table} VALUES ('after')")).await;
    assert!(host.commit(transaction).await);
    assert_eq!(names(&store).await, ["after", "other", "taken"]);
    assert_eq!(rows().await, 2);
    assert_eq!(
        (record(&taken).await, record(&other).await),
        (taken_record, other_record),
        "nothing half done"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_conflict_within_a_transaction_leaves_it_usable_and_names_the_first() {
    let pool = postgres_pool(4).await;
    let schema = schema(&pool).await;
    let store = PostgresStore::builder(pool).schema(&schema).migrate().await.unwrap();
    conflicts(store, POSTGRES, &format!("{schema}.projects")).await;
    let folder = Folder::new();
    conflicts(sqlite_store(&folder.path().join("db")).await, SQLITE, "projects").await;
    let table = unique("patkit.projects");
    conflicts(mariadb_store(&mariadb_pool(4).await).await, MARIADB, &table).await;
}

/// The second try reads the record again, with the change that another transaction committed
/// meanwhile.
#[tokio::test(flavor = "multi_thread")]
async fn a_change_that_another_one_came_before_is_tried_again_within_the_transaction() {
    let pool = postgres_pool(4).await;
    let store = postgres_store(&pool).await;
    let tokens = service(store.clone());
    let issued = tokens.generate(&ada(), NewToken::named("a")).await.unwrap();
    let mut transaction = pool.begin().await.unwrap();
    let within = tokens.within(store.within(&mut transaction));
    let read = within.store().find(issued.token.id()).await.unwrap().unwrap();
    tokens.rename(&ada(), issued.token.id(), "b").await.unwrap();
    let late = ChangeBatch::new()
        .change(Change::Update(Arc::new(Token { version: 2, ..Token::clone(&read) })));
    let refused = within.store().commit(&late).await.unwrap_err();
    assert_eq!(refused.conflict(), Some(Conflict::Version(issued.token.id())));
    within.revoke(&ada(), issued.token.id(), Reason::Owner).await.unwrap();
    drop(within.into_uncommitted());
    transaction.commit().await.unwrap();
    let token = tokens.get(&ada(), issued.token.id()).await.unwrap();
    assert_eq!(
        (token.name().as_str(), token.state(), token.version()),
        ("b", TokenState::Revoked, 3)
    );
}

/// A change that is dropped at any moment is in the transaction as a whole or not at all, and the
/// transaction refuses further calls.
pub(super) async fn dropped<D: Driver>(store: SqlStore<D>, host: impl Host<D>) {
    let tokens = service(store.clone());
    let mut issued = Vec::new();
    for name in ["a", "b"] {
        issued.push(tokens.generate(&ada(), NewToken::named(name)).await.unwrap().token);
    }
    let mut left_half_way = 0;
    for round in 0..60_u32 {
        let mut batch = ChangeBatch::new();
        let mut before = Vec::new();
        for token in &issued {
            let record = Token::clone(&store.find(token.id()).await.unwrap().unwrap());
            before.push(record.version);
            let event = AuditEvent {
                id: event_id(),
                at: record.created_at,
                realm: record.realm.clone(),
                action: AuditAction::Renamed,
                actor: patkit::token::ActorRef::System,
                token: record.id,
                owner: None,
                reason: None,
                address: None,
            };
            let version = record.version + 1;
            batch =
                batch.change(Change::Update(Arc::new(Token { version, ..record }))).event(event);
        }
        let mut lender = host.lend(store.pool()).await;
        let mut transaction = host.begin(&mut lender).await;
        let view = host.within(&store, &mut transaction);
        let mut change = Box::pin(view.commit(&batch));
        let mut is_done = false;
        let polls = round / 2;
        for _ in 0..polls {
            is_done = change.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_ready();
            if is_done {
                break;
            }
            std::thread::sleep(Duration::from_micros(50));
            tokio::task::yield_now().await;
        }
        drop(change);
        // A change that was never polled was not begun.
        if !is_done && polls > 0 {
            left_half_way += 1;
            let id = issued[0].id();
            assert!(matches!(view.find(id).await, Err(StoreError::Unavailable(_))));
            assert!(matches!(view.commit(&batch).await, Err(StoreError::Unavailable(_))));
            let touch = Touch::new(id, LastUse::new(issued[0].created_at(), None));
            assert!(matches!(view.touch(&[touch]).await, Err(StoreError::Unavailable(_))));
        }
        drop(view);
        // A host that ignores the error commits anyway.
        host.commit(transaction).await;
        let mut after = Vec::new();
        for token in &issued {
            let version = store.find(token.id()).await.unwrap().unwrap().version;
            let events = actions(&store, token).await;
            assert_eq!(u64::try_from(events.len()).unwrap(), version, "each change with its event");
            after.push(version);
        }
        assert_eq!(after[0], after[1], "round {round}: both or none");
        assert!(!is_done || after[0] > before[0], "round {round}: it was acknowledged");
    }
    assert!(left_half_way > 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_that_is_dropped_within_a_transaction_leaves_all_of_it_or_nothing() {
    dropped(postgres_store(&postgres_pool(2).await).await, POSTGRES).await;
    let folder = Folder::new();
    dropped(sqlite_store(&folder.path().join("db")).await, SQLITE).await;
    // sqlx's connection of MySQL does not survive a dropped future, as the page of `MySql` says.
}

#[tokio::test(flavor = "multi_thread")]
async fn a_transaction_that_has_failed_does_nothing_more() {
    let pool = postgres_pool(4).await;
    let store = postgres_store(&pool).await;
    let tokens = service(store.clone());
    let mut transaction = pool.begin().await.unwrap();
    let row = sqlx::query("SELECT pg_backend_pid()").fetch_one(&mut *transaction).await.unwrap();
    let pid: i32 = row.get(0);
    let within = tokens.within(store.within(&mut transaction));
    within.generate(&ada(), NewToken::named("a")).await.unwrap();
    raw_sql(AssertSqlSafe(format!("SELECT pg_terminate_backend({pid})")))
        .execute(&pool)
        .await
        .unwrap();
    let is_there = format!("SELECT 1 FROM pg_stat_activity WHERE pid = {pid}");
    while !raw_sql(AssertSqlSafe(is_there.clone())).fetch_all(&pool).await.unwrap().is_empty() {
        tokio::task::yield_now().await;
    }
    for _ in 0..2 {
        let refused = within.generate(&ada(), NewToken::named("b")).await;
        assert!(matches!(refused, Err(ManageError::Unavailable(_))), "{refused:?}");
    }
    drop(within.into_uncommitted());
    drop(transaction);
    assert!(names(&store).await.is_empty());
}

/// A call that the database refuses ends the use of the transaction, even if the database would
/// continue, because later calls may depend on the failed one.
///
/// `fails` makes some values fail, within the transaction; if it is `None`, they fail already, and
/// the engine changes no tables within a transaction.
pub(super) async fn refuses_after_a_failure<D: Driver>(
    store: SqlStore<D>,
    host: impl Host<D>,
    table: &str,
    fails: Option<&str>,
) {
    let tokens = service(store.clone());
    let issued = tokens.generate(&ada(), NewToken::named("before")).await.unwrap().token;
    let record = Token::clone(&store.find(issued.id()).await.unwrap().unwrap());
    let id = issued.id();
    let touch = |address: &str| {
        let last_use = LastUse::new(issued.created_at(), Some(address.parse().unwrap()));
        Touch::new(id, last_use)
    };
    let bad = Token {
        name: patkit::token::TokenName::new("fails").unwrap(),
        version: 2,
        ..record.clone()
    };
    let bad = ChangeBatch::new().change(Change::Update(Arc::new(bad)));
    let good = ChangeBatch::new().change(Change::Update(Arc::new(Token { version: 2, ..record })));
    let calls = if fails.is_some() { 4 } else { 2 };
    for failing in ["commit", "touch", "find", "list"].into_iter().take(calls) {
        let mut lender = host.lend(store.pool()).await;
        let mut transaction = host.begin(&mut lender).await;
        match (failing, fails) {
            ("commit" | "touch", Some(fails)) => host.run(&mut transaction, fails).await,
            ("commit" | "touch", None) => {}
            _ => {
                host.run(
                    &mut transaction,
                    &format!("ALTER TABLE {table} RENAME COLUMN name TO other"),
                )
                .await;
            }
        }
        let view = host.within(&store, &mut transaction);
        let failed = match failing {
            "commit" => view.commit(&bad).await,
            "touch" => view.touch(&[touch("192.0.2.99")]).await,
            "find" => view.find(id).await.map(drop),
            _ => view.list(&all()).await.map(drop),
        };
        assert!(matches!(failed, Err(StoreError::Unavailable(_))), "{failing}: {failed:?}");
        let ended = view.list_ended(issued.created_at(), 10).await.map(drop);
        let calls = [
            ("find", view.find(id).await.map(drop)),
            ("list", view.list(&all()).await.map(drop)),
            ("list_ended", ended),
            ("commit", view.commit(&good).await),
            ("touch", view.touch(&[touch("192.0.2.1")]).await),
        ];
        for (call, result) in calls {
            let refused = match &result {
                Err(StoreError::Unavailable(source)) => source.to_string(),
                other => panic!("{call} after a failed {failing}: {other:?}"),
            };
            let expected = "the transaction is in use, or has failed: roll it back";
            assert_eq!(refused, expected, "{call} after a failed {failing}");
        }
        drop(view);
        host.roll_back(transaction).await;
    }
    let token = store.find(id).await.unwrap().unwrap();
    assert_eq!((token.version, token.last_used), (1, None));
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_done_in_a_transaction_after_a_call_that_failed() {
    let pool = postgres_pool(4).await;
    let schema = schema(&pool).await;
    let store = PostgresStore::builder(pool).schema(&schema).migrate().await.unwrap();
    let table = format!("{schema}.patkit_tokens");
    let fails = format!(
        "ALTER TABLE {table} ADD CHECK (name <> 'fails' AND last_used_address <> '192.0.2.99')"
    );
    refuses_after_a_failure(store, POSTGRES, &table, Some(&fails)).await;
    let folder = Folder::new();
    let fails = "CREATE TRIGGER fails BEFORE UPDATE ON patkit_tokens WHEN NEW.name = 'fails' \
         OR NEW.last_used_address = '192.0.2.99' BEGIN SELECT RAISE(ABORT, 'refused'); END";
    refuses_after_a_failure(
        sqlite_store(&folder.path().join("db")).await,
        SQLITE,
        "patkit_tokens",
        Some(fails),
    )
    .await;
    let pool = mariadb_pool(4).await;
    let schema = mariadb_schema(&pool).await;
    let store = MariaDbStore::builder(pool.clone()).schema(&schema).migrate().await.unwrap();
    let table = format!("{schema}.patkit_tokens");
    let fails = format!(
        "CREATE TRIGGER {schema}.fails BEFORE UPDATE ON {table} FOR EACH ROW \
         IF NEW.name = 'fails' OR NEW.last_used_address = '192.0.2.99' \
         THEN SIGNAL SQLSTATE '45000'; END IF"
    );
    raw_sql(AssertSqlSafe(fails)).execute(&pool).await.unwrap();
    refuses_after_a_failure(store, MARIADB, &table, None).await;
}

/// A cache still returns the old record until `after_commit` invalidates it.
#[tokio::test(flavor = "multi_thread")]
async fn a_cache_forgets_what_a_transaction_changed() {
    let pool = postgres_pool(4).await;
    let store = postgres_store(&pool).await;
    let tokens = service(CachedStore::builder(store.clone()).build().unwrap());
    let issued = tokens.generate(&ada(), NewToken::named("a")).await.unwrap();
    let text = issued.plaintext.expose_secret();
    tokens.verify(Credential::text(text)).await.unwrap();
    let mut transaction = pool.begin().await.unwrap();
    let within = tokens.within(store.within(&mut transaction));
    within.revoke(&ada(), issued.token.id(), Reason::Owner).await.unwrap();
    let uncommitted = within.into_uncommitted();
    tokens.verify(Credential::text(text)).await.expect("it is not revoked yet");
    transaction.commit().await.unwrap();
    tokens.verify(Credential::text(text)).await.expect("it is in the cache");
    tokens.after_commit(&uncommitted);
    assert_eq!(
        tokens.verify(Credential::text(text)).await.unwrap_err().reject_reason(),
        Some(RejectReason::Revoked)
    );
}
