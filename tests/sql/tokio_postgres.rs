//! The store on tokio-postgres, over the pool of deadpool-postgres.

#![allow(
    clippy::arithmetic_side_effects,
    clippy::indexing_slicing,
    clippy::large_futures,
    clippy::panic,
    clippy::unwrap_used,
    reason = "tests"
)]

use super::faults::{faults, reads};
use super::follows::hears_of_a_change;
use super::queries::proxy;
use super::within::{Host, conflicts, does_everything, dropped, joins, refuses_after_a_failure};
use deadpool_postgres::{Manager, Object, Pool};
use patkit::audit::{AuditAction, AuditEvent};
use patkit::conformance::Suite;
use patkit::store::sql::SetupError;
use patkit::store::{AuditLog, Change, ChangeBatch, ChangeFeed, EventQuery, Feed, FeedEvent};
use patkit::{
    CachedStore, Credential, ManageError, NewToken, Realm, Reason, SqlStore, StoreError, Token,
    TokenStore, VerifyError,
};
use sqlx::postgres::PgPool;
use sqlx::{AssertSqlSafe, raw_sql};
use std::error::Error;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Waker};
use std::time::Duration;
use support_sql::{
    ada, event_id, pooler_url, postgres_pool, postgres_url, schema, service, unique,
};
use tokio_postgres::error::SqlState;
use tokio_postgres::{Config, NoTls};

type Store = SqlStore<Pool>;

fn pool_of(config: Config, connections: usize) -> Pool {
    Pool::builder(Manager::new(config, NoTls)).max_size(connections).build().unwrap()
}

fn pool(connections: usize) -> Pool {
    pool_of(postgres_url().parse::<Config>().unwrap(), connections)
}

/// Creates an empty store in its own schema.
async fn store(pool: &Pool) -> Store {
    let schema = schema(&postgres_pool(1).await).await;
    Store::builder(pool.clone()).schema(&schema).migrate().await.unwrap()
}

async fn run(pool: &PgPool, sql: String) -> usize {
    raw_sql(AssertSqlSafe(sql)).fetch_all(pool).await.unwrap().len()
}

/// Returns all texts of an error and its causes.
fn texts(error: &dyn Error) -> String {
    let (mut texts, mut next) = (Vec::new(), Some(error));
    while let Some(error) = next {
        texts.push(format!("{error}; {error:?}"));
        next = error.source();
    }
    texts.join("; ")
}

#[tokio::test(flavor = "multi_thread")]
async fn tokio_postgres_is_right() {
    let pool = pool(8);
    let suite = Suite::new(|| store(&pool));
    assert!(suite.run().await.unwrap().passed.len() > 30);
    suite.run_audit_log().await.unwrap();
    suite.run_counts().await.unwrap();
    suite.run_key_checks().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn tokio_postgres_behind_a_pooler_in_transaction_mode_is_right() {
    let direct = postgres_pool(1).await;
    let pool = pool_of(pooler_url().parse::<Config>().unwrap(), 8);
    let suite = Suite::new(|| async {
        let schema = schema(&direct).await;
        Store::builder(pool.clone()).schema(&schema).pooler(true).migrate().await.unwrap()
    });
    assert!(suite.run().await.unwrap().passed.len() > 30);
    suite.run_audit_log().await.unwrap();
    suite.run_counts().await.unwrap();
    suite.run_key_checks().await.unwrap();
}

#[test]
fn tokio_postgres_is_right_when_changes_race_on_threads() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let pool = pool(8);
    let suite = Suite::new(|| store(&pool));
    suite.run_races(|future| runtime.block_on(future)).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn tokio_postgres_behind_the_cache_is_right() {
    let pool = pool(8);
    let suite = Suite::new(|| async { CachedStore::builder(store(&pool).await).build().unwrap() });
    suite.run().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_driver_of_tokio_postgres_that_fails_anywhere_leaves_all_or_nothing() {
    let schema = schema(&postgres_pool(1).await).await;
    let pool = pool(1);
    reads(pool.clone(), Some(&schema)).await;
    faults(pool, Some(&schema)).await;
}

/// A host that passes its transaction of deadpool.
struct Deadpool;

/// A host that passes the transaction of tokio-postgres inside of that.
struct Inner;

macro_rules! host {
    ($host:ident, $transaction:ident => $passed:expr) => {
        impl Host<Pool> for $host {
            type Lender = Object;
            type Transaction<'c> = deadpool_postgres::Transaction<'c>;

            async fn run_alone(&self, driver: &Pool, sql: &str) -> usize {
                driver.get().await.unwrap().query(sql, &[]).await.unwrap().len()
            }

            async fn lend(&self, driver: &Pool) -> Object {
                driver.get().await.unwrap()
            }

            async fn begin<'c>(&self, lender: &'c mut Object) -> Self::Transaction<'c> {
                lender.transaction().await.unwrap()
            }

            fn within(
                &self,
                store: &Store,
                $transaction: &mut Self::Transaction<'_>,
            ) -> impl TokenStore {
                store.within($passed)
            }

            async fn run(&self, transaction: &mut Self::Transaction<'_>, sql: &str) {
                transaction.batch_execute(sql).await.unwrap();
            }

            async fn commit(&self, transaction: Self::Transaction<'_>) -> bool {
                transaction.commit().await.is_ok()
            }

            async fn roll_back(&self, transaction: Self::Transaction<'_>) {
                transaction.rollback().await.unwrap();
            }
        }
    };
}
host!(Deadpool, transaction => transaction);
host!(Inner, transaction => &mut **transaction);

/// Creates an empty store, and returns the name of its schema.
async fn store_in_schema() -> (Store, String) {
    let schema = schema(&postgres_pool(1).await).await;
    let store = Store::builder(pool(4)).schema(&schema).migrate().await.unwrap();
    (store, schema)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_and_a_row_of_the_hosts_are_there_together_or_not_at_all() {
    let (store, schema) = store_in_schema().await;
    joins(store, Deadpool, &format!("{schema}.projects")).await;
    let (store, schema) = store_in_schema().await;
    joins(store, Inner, &format!("{schema}.projects")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_operation_joins_a_transaction_of_the_hosts() {
    does_everything(store_in_schema().await.0, Deadpool).await;
    does_everything(store_in_schema().await.0, Inner).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_conflict_within_a_transaction_leaves_it_usable_and_names_the_first() {
    let (store, schema) = store_in_schema().await;
    conflicts(store, Deadpool, &format!("{schema}.projects")).await;
    let (store, schema) = store_in_schema().await;
    conflicts(store, Inner, &format!("{schema}.projects")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_that_is_dropped_within_a_transaction_leaves_all_of_it_or_nothing() {
    dropped(store_in_schema().await.0, Deadpool).await;
    dropped(store_in_schema().await.0, Inner).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_done_in_a_transaction_after_a_call_that_failed() {
    for is_inner in [false, true] {
        let (store, schema) = store_in_schema().await;
        let table = format!("{schema}.patkit_tokens");
        let fails = format!(
            "ALTER TABLE {table} ADD CHECK (name <> 'fails' AND last_used_address <> '192.0.2.99')"
        );
        if is_inner {
            refuses_after_a_failure(store, Inner, &table, Some(&fails)).await;
        } else {
            refuses_after_a_failure(store, Deadpool, &table, Some(&fails)).await;
        }
    }
}

/// After a call that was dropped, the host's own statements fail, so that a host which ignores the
/// error stores nothing. A savepoint of the host's from before the call makes the transaction
/// usable again.
#[tokio::test(flavor = "multi_thread")]
async fn after_a_dropped_call_a_transaction_does_nothing_but_roll_back() {
    let (store, schema) = store_in_schema().await;
    let tokens = service(store.clone());
    let mut client = store.pool().get().await.unwrap();
    client.batch_execute(&format!("CREATE TABLE {schema}.projects (name text)")).await.unwrap();
    let insert = format!("INSERT INTO {schema}.projects VALUES ('apollo')");
    let drop_a_call = async |transaction: &mut deadpool_postgres::Transaction<'_>| {
        let within = tokens.within(store.within(transaction));
        {
            let ada = ada();
            let mut change = Box::pin(within.generate(&ada, NewToken::named("a")));
            let context = &mut Context::from_waker(Waker::noop());
            assert!(change.as_mut().poll(context).is_pending());
        }
        let refused = within.generate(&ada(), NewToken::named("b")).await;
        assert!(matches!(refused, Err(ManageError::Unavailable(_))), "{refused:?}");
        drop(within.into_uncommitted());
    };

    let mut transaction = client.transaction().await.unwrap();
    transaction.batch_execute(&insert).await.unwrap();
    drop_a_call(&mut transaction).await;
    let refused = transaction.batch_execute(&insert).await.unwrap_err();
    assert_eq!(refused.code(), Some(&SqlState::IN_FAILED_SQL_TRANSACTION));
    transaction.commit().await.unwrap();
    let rows = format!("SELECT * FROM {schema}.projects");
    assert!(client.query(&rows, &[]).await.unwrap().is_empty());

    let mut transaction = client.transaction().await.unwrap();
    transaction.batch_execute(&insert).await.unwrap();
    let mut savepoint = transaction.transaction().await.unwrap();
    drop_a_call(&mut savepoint).await;
    savepoint.rollback().await.unwrap();
    transaction.commit().await.unwrap();
    assert_eq!(client.query(&rows, &[]).await.unwrap().len(), 1);
    let page = tokens.list(&ada(), None, 50).await.unwrap();
    assert!(page.items.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_transaction_of_the_hosts_does_nothing_more() {
    let (store, _) = store_in_schema().await;
    let tokens = service(store.clone());
    let mut client = store.pool().get().await.unwrap();
    let pid: i32 = client.query_one("SELECT pg_backend_pid()", &[]).await.unwrap().get(0);
    let mut transaction = client.transaction().await.unwrap();
    let within = tokens.within(store.within(&mut transaction));
    within.generate(&ada(), NewToken::named("a")).await.unwrap();
    let direct = postgres_pool(1).await;
    run(&direct, format!("SELECT pg_terminate_backend({pid}, 60000)")).await;
    for _ in 0..2 {
        let refused = within.generate(&ada(), NewToken::named("b")).await;
        assert!(matches!(refused, Err(ManageError::Unavailable(_))), "{refused:?}");
    }
    drop(within.into_uncommitted());
    assert!(transaction.commit().await.is_err());
    drop(client);
    assert!(tokens.list(&ada(), None, 50).await.unwrap().items.is_empty());
}

/// Statements on the wire: a verification is one, and with a pooler a transaction of it. With a
/// pooler, no statement stays prepared.
#[tokio::test(flavor = "multi_thread")]
async fn a_verification_is_one_statement() {
    let schema = schema(&postgres_pool(1).await).await;
    let (port, wire) = proxy().await;
    let mut config = postgres_url().parse::<Config>().unwrap();
    let (user, database) = (config.get_user().unwrap(), config.get_dbname().unwrap());
    config = Config::new().host("127.0.0.1").port(port).user(user).dbname(database).to_owned();
    for (is_pooled, one) in [(false, 1), (true, 3)] {
        let pool = pool_of(config.clone(), 1);
        let builder = Store::builder(pool.clone()).schema(&schema).pooler(is_pooled);
        let service = service(builder.migrate().await.unwrap());
        macro_rules! costs {
            ($what:literal, $count:expr, $operation:expr) => {{
                wire.count.store(0, Ordering::SeqCst);
                let result = $operation.await;
                assert_eq!(wire.count.load(Ordering::SeqCst), $count, "{}, {is_pooled}", $what);
                result.unwrap()
            }};
        }
        let name = format!("a {is_pooled}");
        // BEGIN, the record, the event, COMMIT.
        let issued = costs!("generate", 4, service.generate(&ada(), NewToken::named(&name)));
        let text = issued.plaintext.expose_secret();
        costs!("verify", one, service.verify(Credential::text(text)));
        costs!("verify again", one, service.verify(Credential::text(text)));
        costs!("list", one, service.list(&ada(), None, 50));
        costs!("flush", one, service.flush());
        costs!("revoke", one + 4, service.revoke(&ada(), issued.token.id(), Reason::Owner));
        let client = pool.get().await.unwrap();
        let prepared = "SELECT name FROM pg_prepared_statements WHERE statement LIKE '%patkit%'";
        let prepared = client.simple_query(prepared).await.unwrap();
        let rows = prepared
            .iter()
            .filter(|message| matches!(message, tokio_postgres::SimpleQueryMessage::Row(_)));
        assert_eq!(rows.count() > 0, !is_pooled);
        assert_eq!(client.statement_cache.size() > 0, !is_pooled);
    }
}

/// A change whose future is dropped at any moment is stored whole or not at all, and the next user
/// of the connections inherits no transaction.
#[tokio::test(flavor = "multi_thread")]
async fn a_dropped_change_leaves_no_transaction_open() {
    let (store, _) = store_in_schema().await;
    let pool = store.pool();
    let tokens = service(store.clone());
    let token = tokens.generate(&ada(), NewToken::named("a")).await.unwrap().token;
    let mut left_half_way = 0;
    for round in 0..60_u32 {
        let record = Token::clone(&store.find(token.id()).await.unwrap().unwrap());
        let before = record.version;
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
        let version = before + 1;
        let change = Change::Update(Arc::new(Token { version, ..record }));
        let batch = ChangeBatch::new().change(change).event(event);
        let mut change = Box::pin(store.commit(&batch));
        let mut is_done = false;
        for _ in 0..round / 2 {
            is_done = change.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_ready();
            if is_done {
                break;
            }
            std::thread::sleep(Duration::from_micros(50));
            tokio::task::yield_now().await;
        }
        drop(change);
        left_half_way += u32::from(!is_done && round > 1);
        let mut clients = Vec::new();
        for _ in 0..pool.status().max_size {
            clients.push(pool.get().await.unwrap());
        }
        for client in &clients {
            let refused = client.batch_execute("SAVEPOINT inherited").await.unwrap_err();
            assert_eq!(refused.code(), Some(&SqlState::NO_ACTIVE_SQL_TRANSACTION), "{round}");
        }
        drop(clients);
        // Takes the lock of the row, which an open transaction would keep.
        let (ada, name) = (ada(), format!("round {round}"));
        let lock = tokens.rename(&ada, token.id(), &name);
        tokio::time::timeout(Duration::from_secs(20), lock).await.unwrap().unwrap();
        let after = store.find(token.id()).await.unwrap().unwrap().version - 1;
        assert!(after == before + 1 || after == before && !is_done, "round {round}");
        let query = EventQuery::new(Realm::default()).token(token.id());
        let events = store.events(&query.limit(1_000)).await.unwrap().events.len();
        assert_eq!(u64::try_from(events).unwrap(), after + 1, "each change with its event");
    }
    assert!(left_half_way > 0);
}

/// All connections are killed at some moment of a change: no acknowledged token is lost, none that
/// was refused exists, and the pool replaces the connections.
#[tokio::test(flavor = "multi_thread")]
async fn a_killed_connection_is_replaced_and_loses_nothing() {
    let direct = postgres_pool(1).await;
    let name = unique("killed");
    let mut config = postgres_url().parse::<Config>().unwrap();
    config.application_name(&name);
    let pool = pool_of(config, 2);
    let store = store(&pool).await;
    let tokens = Arc::new(service(store.clone()));
    let first = tokens.generate(&ada(), NewToken::named("first")).await.unwrap();
    let credential = Credential::text(first.plaintext.expose_secret());
    let kill = format!(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = '{name}'"
    );
    let (mut made, mut refused, mut unknown) = (Vec::new(), Vec::new(), 0);
    for round in 0..150 {
        let name = format!("token {round}");
        let change = tokio::spawn({
            let (tokens, name) = (tokens.clone(), name.clone());
            async move { tokens.generate(&ada(), NewToken::named(&name)).await }
        });
        tokio::time::sleep(Duration::from_micros(round % 40 * 250)).await;
        let is_done_before = round % 10 == 0;
        if !is_done_before {
            run(&direct, kill.clone()).await;
        }
        let changed = change.await.unwrap();
        if is_done_before {
            run(&direct, kill.clone()).await;
        }
        match changed {
            Ok(issued) => made.push(issued.token.id()),
            Err(ManageError::Unavailable(_)) => refused.push(name),
            Err(ManageError::OutcomeUnknown { .. }) => unknown += 1,
            Err(other) => panic!("{other:?}"),
        }
        // A killed connection may be noticed only when it is used.
        let mut failures = 0;
        while let Err(error) = tokens.verify(credential).await {
            assert!(matches!(error, VerifyError::Unavailable(_)), "{error:?}");
            failures += 1;
            assert!(failures <= pool.status().max_size, "round {round}: {error:?}");
        }
    }
    let counts = (made.len(), refused.len(), unknown);
    assert!(!made.is_empty() && !refused.is_empty(), "{counts:?}");
    for id in made {
        assert!(store.find(id).await.unwrap().is_some(), "an acknowledged token is lost");
    }
    for name in refused {
        tokens.generate(&ada(), NewToken::named(&name)).await.expect("it does not exist yet");
    }
}

#[tokio::test]
async fn a_wait_for_a_connection_ends_after_half_a_minute() {
    let pool = pool(1);
    let store = store(&pool).await;
    let id =
        service(store.clone()).generate(&ada(), NewToken::named("a")).await.unwrap().token.id();
    let taken = pool.get().await.unwrap();
    tokio::time::pause();
    let began = tokio::time::Instant::now();
    let minute = Duration::from_secs(60);
    let found = tokio::time::timeout(minute, store.find(id)).await.expect("it waits longer");
    let Err(StoreError::Unavailable(error)) = found else { panic!("{found:?}") };
    assert_eq!(
        error.to_string(),
        "no connection of the pool was free, or could be made, within 30 s"
    );
    assert_eq!(began.elapsed().as_secs(), 30);
    tokio::time::resume();
    drop(taken);
    store.find(id).await.unwrap().unwrap();

    // A server that accepts connections and never answers.
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut config = Config::new();
    config.host("127.0.0.1").port(silent.local_addr().unwrap().port()).user("postgres");
    tokio::time::pause();
    let opened = tokio::time::timeout(minute, Store::builder(pool_of(config, 1)).open()).await;
    let refused = opened.expect("it waits longer").unwrap_err();
    assert!(matches!(refused, SetupError::Unreachable(_)), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_error_names_the_code_and_no_value() {
    let (store, schema) = store_in_schema().await;
    let direct = postgres_pool(1).await;
    let check = format!("ALTER TABLE {schema}.patkit_tokens ADD CHECK (name <> 'fails')");
    run(&direct, check).await;
    let tokens = service(store);
    let failed = tokens.generate(&ada(), NewToken::named("fails")).await.unwrap_err();
    assert!(matches!(failed, ManageError::Unavailable(_)));
    let texts = texts(&failed);
    assert!(texts.contains("violates check constraint") && texts.contains("(code 23514)"));
    for value in ["fails", "ada", "\\x", "Failing row"] {
        assert!(!texts.contains(value), "{texts}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cell_of_another_type_is_a_corrupt_record() {
    let direct = postgres_pool(1).await;
    for (column, other) in
        [("created_at", "text"), ("description", "bytea"), ("version", "integer")]
    {
        let (store, schema) = store_in_schema().await;
        let tokens = service(store.clone());
        let new = NewToken::named("a").description("b");
        let id = tokens.generate(&ada(), new).await.unwrap().token.id();
        let change = format!(
            "ALTER TABLE {schema}.patkit_tokens ALTER COLUMN {column} TYPE {other} USING {column}::{other}"
        );
        run(&direct, change).await;
        // New connections, because PostgreSQL refuses a statement that was prepared before.
        let store = Store::builder(pool(1)).schema(&schema).open().await.unwrap();
        let Err(StoreError::Corrupt(record)) = store.find(id).await else { panic!("{column}") };
        assert_eq!((record.column, &*record.row), (column.to_owned(), &*id.to_string()));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_cannot_be_reached_is_named() {
    let open = async |config: Config| {
        let refused = Store::builder(pool_of(config, 1)).open().await.unwrap_err();
        let SetupError::Unreachable(error) = refused else { panic!("{refused:?}") };
        error.to_string()
    };
    let mut no_database = postgres_url().parse::<Config>().unwrap();
    no_database.dbname("no_such_database");
    assert_eq!(
        open(no_database).await,
        "database \"no_such_database\" does not exist (code 3D000)"
    );
    let mut nowhere = Config::new();
    nowhere.host_path("/nonexistent").user("postgres");
    assert_eq!(
        open(nowhere).await,
        "error connecting to server: No such file or directory (os error 2)"
    );
    let closed = pool(1);
    closed.close();
    let refused = Store::builder(closed).open().await.unwrap_err();
    assert!(matches!(refused, SetupError::Unreachable(_)), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cache_polls_for_changes_of_others() {
    let (other, schema) = store_in_schema().await;
    let store = Store::builder(pool(1)).schema(&schema).open().await.unwrap();
    assert!(store.listen().await.unwrap().is_none());
    let cached = service(CachedStore::builder(store).build().unwrap());
    let other = service(other);
    hears_of_a_change(&cached, &other, &ada()).await;

    let issued = other.generate(&ada(), NewToken::named("a")).await.unwrap();
    let mut feed = other.store().poll().await.unwrap();
    other.revoke(&ada(), issued.token.id(), Reason::Owner).await.unwrap();
    let FeedEvent::Changed(ids) = feed.next().await.unwrap() else { panic!("missed") };
    assert_eq!(ids, [issued.token.id()]);
}
