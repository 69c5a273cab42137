//! A driver that fails, loses its connection or lies about row counts, at each statement of each
//! operation: all or nothing happens, the error says which, and the pool is healthy afterwards.

#![allow(
    clippy::arithmetic_side_effects,
    clippy::large_futures,
    clippy::panic,
    clippy::unwrap_used,
    reason = "tests"
)]

use patkit::service::CheckError;
use patkit::store::sql::{Connection, Driver, Session, SqlError, SqlStore, Statement};
use patkit::store::{AuditLog, EventQuery, ExportCursor, ListBy, ListQuery, TokenCounts};
use patkit::{
    Credential, ManageError, MemoryDirectory, NewToken, OwnerId, PlaintextToken, Realm, Reason,
    StoreError, TokenId, TokenService, TokenStore, VerifyError,
};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use support_sql::{
    Folder, ada, mariadb_pool, mariadb_schema, postgres_pool, schema, service, sqlite_pool, unique,
};

/// What goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    /// The statement is not run.
    Fails,
    /// The statement is run, and its answer is lost.
    AnswerLost,
    /// The connection is lost before the statement.
    Disconnects,
    /// The statement is run, and this many rows are said to be changed.
    Lies(u64),
}

const FAULTS: [Fault; 5] =
    [Fault::Fails, Fault::AnswerLost, Fault::Disconnects, Fault::Lies(0), Fault::Lies(2)];

/// The next fault, and the statements since it was set.
#[derive(Debug, Default)]
struct Script {
    fault: Mutex<Option<(usize, Fault)>>,
    count: AtomicUsize,
}

impl Script {
    fn set(&self, fault: Option<(usize, Fault)>) {
        *self.fault.lock().unwrap() = fault;
        self.count.store(0, Ordering::Relaxed);
    }

    /// Returns the fault of this statement.
    fn next(&self) -> Option<Fault> {
        let number = self.count.fetch_add(1, Ordering::Relaxed);
        let (at, fault) = (*self.fault.lock().unwrap())?;
        (at == number).then_some(fault)
    }

    /// Whether the fault has happened.
    fn is_over(&self) -> bool {
        let at = self.fault.lock().unwrap().map_or(0, |(at, _)| at);
        self.count.load(Ordering::Relaxed) > at
    }
}

/// A driver with faults in front of another one.
#[derive(Clone)]
struct Faulty<D> {
    driver: D,
    script: Arc<Script>,
}

struct FaultySession<S: Session> {
    /// `None` once the connection is lost.
    session: Option<S>,
    script: Arc<Script>,
}

impl<D: Driver> Driver for Faulty<D> {
    type Session = FaultySession<D::Session>;
    type Listener = D::Listener;

    async fn acquire(&self) -> Result<FaultySession<D::Session>, SqlError> {
        let mut session = self.driver.acquire().await?;
        match self.script.next() {
            None | Some(Fault::Lies(_)) => {}
            Some(Fault::Fails | Fault::AnswerLost) => {
                return Err(SqlError::unreachable("no connection became free"));
            }
            Some(Fault::Disconnects) => {
                session.abandon();
                return Ok(FaultySession { session: None, script: self.script.clone() });
            }
        }
        Ok(FaultySession { session: Some(session), script: self.script.clone() })
    }

    fn max_connections(&self) -> u32 {
        self.driver.max_connections()
    }

    async fn listen(&self, channel: &str) -> Result<Option<D::Listener>, SqlError> {
        self.driver.listen(channel).await
    }
}

impl<S: Session> FaultySession<S> {
    /// Runs a call with the fault that comes next. `lie` returns a wrong answer.
    async fn call<T>(
        &mut self,
        call: impl AsyncFnOnce(&mut S) -> Result<T, SqlError>,
        lie: impl FnOnce(T, u64) -> T,
    ) -> Result<T, SqlError> {
        let lost = || SqlError::unreachable("the connection was lost");
        let fault = self.script.next();
        if fault == Some(Fault::Disconnects)
            && let Some(mut session) = self.session.take()
        {
            session.abandon();
        }
        let session = self.session.as_mut().ok_or_else(lost)?;
        match fault {
            Some(Fault::Fails) => Err(SqlError::failed("the statement failed")),
            Some(Fault::AnswerLost) => {
                call(session).await?;
                Err(lost())
            }
            Some(Fault::Lies(rows)) => Ok(lie(call(session).await?, rows)),
            Some(Fault::Disconnects) | None => call(session).await,
        }
    }
}

impl<S: Session> Connection for FaultySession<S> {
    type Engine = S::Engine;
    type Row = S::Row;

    async fn fetch(&mut self, statement: Statement) -> Result<Vec<S::Row>, SqlError> {
        let call = async |session: &mut S| session.fetch(statement).await;
        self.call(call, |rows, _| rows).await
    }

    async fn execute(&mut self, statement: Statement) -> Result<u64, SqlError> {
        let call = async |session: &mut S| session.execute(statement).await;
        self.call(call, |_, rows| rows).await
    }

    async fn run(&mut self, sql: &str) -> Result<(), SqlError> {
        self.call(async |session: &mut S| session.run(sql).await, |(), _| ()).await
    }

    fn abandon(&mut self) {
        if let Some(mut session) = self.session.take() {
            session.abandon();
        }
    }
}

impl<S: Session> Session for FaultySession<S> {
    async fn begin(&mut self, sql: &'static str) -> Result<(), SqlError> {
        self.call(async |session: &mut S| session.begin(sql).await, |(), _| ()).await
    }

    async fn commit(&mut self) -> Result<(), SqlError> {
        self.call(async |session: &mut S| session.commit().await, |(), _| ()).await
    }

    async fn rollback(&mut self) -> Result<(), SqlError> {
        self.call(async |session: &mut S| session.rollback().await, |(), _| ()).await
    }
}

type Tokens<D> = TokenService<SqlStore<D>, MemoryDirectory>;

/// The outcome of an operation under a fault.
#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    Done,
    /// Nothing happened.
    Refused,
    Unknown,
}

impl Outcome {
    fn of<T>(result: &Result<T, ManageError>) -> Self {
        match result {
            Ok(_) => Self::Done,
            Err(ManageError::OutcomeUnknown { .. }) => Self::Unknown,
            Err(_) => Self::Refused,
        }
    }
}

const OPERATIONS: [&str; 9] =
    ["generate", "revoke", "restore", "rename", "rotate", "delete", "revoke all", "erase", "prune"];

/// What an operation works on.
struct Subject {
    id: TokenId,
    owner: OwnerId,
}

/// Makes a token in the state that the operation begins with.
async fn subject<D: Driver>(tokens: &Tokens<D>, operation: &str) -> (Subject, PlaintextToken) {
    let owner = OwnerId::new("ada").unwrap();
    let issued = tokens.generate(&ada(), NewToken::named(&unique("a"))).await.unwrap();
    let id = issued.token.id();
    if matches!(operation, "restore" | "delete" | "prune") {
        tokens.revoke(&ada(), id, Reason::Owner).await.unwrap();
    }
    (Subject { id, owner }, issued.plaintext)
}

async fn run<D: Driver>(tokens: &Tokens<D>, operation: &str, of: &Subject) -> Outcome {
    let realm = Realm::default();
    match operation {
        "generate" => Outcome::of(&tokens.generate(&ada(), NewToken::named(&unique("new"))).await),
        "revoke" => Outcome::of(&tokens.revoke(&ada(), of.id, Reason::Owner).await),
        "restore" => Outcome::of(&tokens.restore(&ada(), of.id).await),
        "rename" => Outcome::of(&tokens.rename(&ada(), of.id, &unique("b")).await),
        "rotate" => Outcome::of(&tokens.rotate(&ada(), of.id, Duration::ZERO).await),
        "delete" => Outcome::of(&tokens.delete(&ada(), of.id).await),
        "revoke all" => Outcome::of(&tokens.revoke_all(&realm, &of.owner).await),
        "erase" => Outcome::of(&tokens.erase_owner(&realm, &of.owner).await),
        "prune" => Outcome::of(&tokens.prune(Duration::ZERO).await),
        other => panic!("{other}"),
    }
}

/// Everything that is stored, in a form to compare.
async fn stored<S: TokenStore + AuditLog>(store: &S) -> (Vec<String>, Vec<String>) {
    let kind = patkit::TokenKind::Personal;
    let list = ListQuery::new(ListBy::Kind { realm: Realm::default(), kind });
    let page = store.list(&list).await.unwrap();
    assert!(page.next.is_none() && page.corrupt.is_empty());
    let show = |token: &Arc<patkit::Token>| format!("{} {}", token.id, token.version);
    let tokens: Vec<String> = page.tokens.iter().map(show).collect();
    let events = store.events(&EventQuery::new(Realm::default()).oldest_first()).await.unwrap();
    assert!(events.next.is_none() && events.corrupt.is_empty());
    let show = |event: &patkit::AuditEvent| format!("{:?} {}", event.action, event.token);
    (tokens, events.events.iter().map(show).collect())
}

/// Runs each operation with each fault at each statement.
///
/// `store` makes an empty store on a pool, without and with faults.
pub(super) async fn faults<D: Driver>(driver: D, schema: Option<&str>) {
    let script = Arc::new(Script::default());
    let build = || {
        let faulty = Faulty { driver: driver.clone(), script: script.clone() };
        let builder = SqlStore::builder(faulty).prefix(&unique("f"));
        match schema {
            Some(schema) => builder.schema(schema),
            None => builder,
        }
    };
    let mut felt = 0;
    for operation in OPERATIONS {
        for fault in FAULTS {
            // A store of its own, so that what is stored stays small.
            let tokens = service(build().migrate().await.unwrap());
            let store = tokens.store();
            for statement in 0.. {
                assert!(statement < 200, "{operation} does not end");
                let (of, plaintext) = subject(&tokens, operation).await;
                let before = stored(store).await;
                script.set(Some((statement, fault)));
                let outcome = run(&tokens, operation, &of).await;
                let is_felt = script.is_over();
                script.set(None);
                let after = stored(store).await;
                let what = format!("{operation}, {fault:?} at {statement}: {outcome:?}");
                match outcome {
                    // An operation without a change to make is done too.
                    Outcome::Done => {
                        assert!(after != before || is_felt && operation == "prune", "{what}");
                    }
                    Outcome::Refused if matches!(operation, "revoke all" | "erase" | "prune") => {}
                    Outcome::Refused => assert!(after == before, "{what}"),
                    Outcome::Unknown => {}
                }
                // Each change is stored with its event: versions and events grow together.
                let grown = |one: &Vec<String>, two: &Vec<String>| one != two;
                if operation != "erase" && operation != "prune" {
                    assert_eq!(
                        grown(&before.0, &after.0),
                        grown(&before.1, &after.1),
                        "{what}: a change without its event, or an event without its change"
                    );
                }
                // The pool is healthy: nothing inherits a transaction, and a read sees the state.
                let verified = tokens.verify(Credential::text(plaintext.expose_secret())).await;
                assert!(
                    matches!(verified, Ok(_) | Err(VerifyError::Rejected(_))),
                    "{what}: {verified:?}"
                );
                let new = tokens.generate(&ada(), NewToken::named(&unique("after"))).await.unwrap();
                assert!(store.find(new.token.id()).await.unwrap().is_some(), "{what}");
                tokens.revoke_all(&Realm::default(), &of.owner).await.unwrap();
                tokens.prune(Duration::ZERO).await.unwrap();
                if !is_felt {
                    break;
                }
                felt += 1;
            }
        }
    }
    assert!(felt > 200, "{felt} faults were felt");
}

/// Reads report a fault, and write nothing.
pub(super) async fn reads<D: Driver>(driver: D, schema: Option<&str>) {
    let script = Arc::new(Script::default());
    let faulty = Faulty { driver, script: script.clone() };
    let builder = SqlStore::builder(faulty).prefix(&unique("r"));
    let builder = if let Some(schema) = schema { builder.schema(schema) } else { builder };
    let tokens = service(builder.migrate().await.unwrap());
    let store = tokens.store();
    let now = chrono::DateTime::from_timestamp(2_000_000_000, 0).unwrap();
    for fault in [Fault::Fails, Fault::AnswerLost, Fault::Disconnects] {
        for statement in 0..2 {
            let (of, plaintext) = subject(&tokens, "verify").await;
            let set = || script.set(Some((statement, fault)));
            let is_unavailable = |error: &StoreError| matches!(error, StoreError::Unavailable(_));
            set();
            let verified = tokens.verify(Credential::text(plaintext.expose_secret())).await;
            assert!(matches!(verified, Err(VerifyError::Unavailable(_))), "{verified:?}");
            set();
            assert!(is_unavailable(&store.find(of.id).await.unwrap_err()));
            set();
            let query = EventQuery::new(Realm::default());
            assert!(is_unavailable(&store.events(&query).await.unwrap_err()));
            set();
            let export = store.export(&ExportCursor::start(), 10).await.unwrap_err();
            assert!(is_unavailable(&export));
            set();
            assert!(is_unavailable(&store.count_by_state(now).await.unwrap_err()));
            set();
            assert!(is_unavailable(&store.health().await.unwrap_err()));
            set();
            let checked = tokens.check().await;
            assert!(matches!(checked, Err(CheckError::Store(_))), "{checked:?}");
            script.set(None);
            // A use that could not be written is kept, and written later.
            tokens.verify(Credential::text(plaintext.expose_secret())).await.unwrap();
            set();
            tokens.flush().await.unwrap_err();
            script.set(None);
            tokens.flush().await.unwrap();
            assert!(store.find(of.id).await.unwrap().unwrap().last_used.is_some());
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_driver_of_sqlite_that_fails_anywhere_leaves_all_or_nothing() {
    let folder = Folder::new();
    let pool = sqlite_pool(&folder.path().join("db"), 1).await;
    reads(pool.clone(), None).await;
    faults(pool, None).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_driver_of_postgres_that_fails_anywhere_leaves_all_or_nothing() {
    let pool = postgres_pool(1).await;
    let schema = schema(&pool).await;
    reads(pool.clone(), Some(&schema)).await;
    faults(pool, Some(&schema)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_driver_of_mariadb_that_fails_anywhere_leaves_all_or_nothing() {
    let pool = mariadb_pool(1).await;
    let schema = mariadb_schema(&pool).await;
    reads(pool.clone(), Some(&schema)).await;
    faults(pool, Some(&schema)).await;
}

/// A driver in front of another one, some of whose commits fail because other transactions
/// interfere.
#[derive(Clone)]
struct Interfered<D> {
    driver: D,
    /// The engine's code for a transaction that it has rolled back.
    code: &'static str,
    /// The number of commits that will fail.
    left: Arc<AtomicUsize>,
    /// The number of pauses.
    pauses: Arc<AtomicUsize>,
}

struct InterferedSession<S> {
    session: S,
    code: &'static str,
    left: Arc<AtomicUsize>,
    pauses: Arc<AtomicUsize>,
}

impl<D: Driver> Driver for Interfered<D> {
    type Session = InterferedSession<D::Session>;
    type Listener = D::Listener;

    async fn acquire(&self) -> Result<InterferedSession<D::Session>, SqlError> {
        let session = self.driver.acquire().await?;
        let (left, pauses) = (self.left.clone(), self.pauses.clone());
        Ok(InterferedSession { session, code: self.code, left, pauses })
    }

    fn max_connections(&self) -> u32 {
        self.driver.max_connections()
    }

    async fn listen(&self, channel: &str) -> Result<Option<D::Listener>, SqlError> {
        self.driver.listen(channel).await
    }
}

impl<S: Session> Connection for InterferedSession<S> {
    type Engine = S::Engine;
    type Row = S::Row;

    async fn fetch(&mut self, statement: Statement) -> Result<Vec<S::Row>, SqlError> {
        self.session.fetch(statement).await
    }

    async fn execute(&mut self, statement: Statement) -> Result<u64, SqlError> {
        self.session.execute(statement).await
    }

    async fn run(&mut self, sql: &str) -> Result<(), SqlError> {
        let is_pause = sql.to_lowercase().contains("sleep(");
        self.pauses.fetch_add(usize::from(is_pause), Ordering::Relaxed);
        self.session.run(sql).await
    }

    fn abandon(&mut self) {
        self.session.abandon();
    }
}

impl<S: Session> Session for InterferedSession<S> {
    async fn begin(&mut self, sql: &'static str) -> Result<(), SqlError> {
        self.session.begin(sql).await
    }

    async fn rollback(&mut self) -> Result<(), SqlError> {
        self.session.rollback().await
    }

    async fn commit(&mut self) -> Result<(), SqlError> {
        let left = self.left.load(Ordering::Relaxed);
        if left == 0 {
            return self.session.commit().await;
        }
        self.left.store(left - 1, Ordering::Relaxed);
        self.session.rollback().await?;
        Err(SqlError::reported(self.code, "rolled back"))
    }
}

/// A change is tried ten times, with a pause before each further try.
async fn is_tried_again<D: Driver>(driver: D, schema: &str, code: &'static str) {
    SqlStore::builder(driver.clone()).schema(schema).migrate().await.unwrap();
    let (left, pauses) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let driver = Interfered { driver, code, left: left.clone(), pauses: pauses.clone() };
    let tokens = service(SqlStore::builder(driver).schema(schema).open().await.unwrap());
    for failures in [0, 1, 9, 10] {
        left.store(failures, Ordering::Relaxed);
        pauses.store(0, Ordering::Relaxed);
        let generated = tokens.generate(&ada(), NewToken::named(&unique("token"))).await;
        match generated {
            Ok(issued) => {
                assert!(failures < 10);
                tokens.store().find(issued.token.id()).await.unwrap().unwrap();
            }
            Err(error) => {
                assert_eq!(failures, 10);
                assert!(matches!(error, ManageError::Unavailable(_)), "{error:?}");
            }
        }
        assert_eq!(pauses.load(Ordering::Relaxed), failures.min(9));
    }
    assert_eq!(tokens.list(&ada(), None, 50).await.unwrap().items.len(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_that_others_interfere_with_is_tried_again_after_a_pause() {
    let pool = postgres_pool(2).await;
    let schema = schema(&pool).await;
    is_tried_again(pool, &schema, "40P01").await;
    let pool = mariadb_pool(2).await;
    let schema = mariadb_schema(&pool).await;
    is_tried_again(pool, &schema, "1213").await;
}
