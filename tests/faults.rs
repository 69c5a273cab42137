//! Operations during a failure: of the store, the directory, the clock, the sink or the generator
//! of secrets, or of the caller, who drops the future.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::arithmetic_side_effects,
    clippy::indexing_slicing,
    clippy::needless_pass_by_value,
    clippy::too_many_lines
)]

use chrono::{DateTime, Utc};
use patkit::audit::AuditAction;
use patkit::policy::ReuseSignal;
use patkit::random::{RandomError, SecureRandom};
use patkit::service::{RejectReason, Unavailable, VerifyError};
use patkit::store::{
    AuditLog, ChangeBatch, CorruptRecord, EventQuery, ListBy, ListQuery, Page, Touch,
};
use patkit::token::LastUse;
use patkit::{
    AuditEvent, AuditSink, Clock, Credential, Directory, DirectoryError, IssuedToken, Keyring,
    ManageError, ManualClock, MemoryDirectory, MemoryStore, NewToken, Owner, OwnerId, OwnerKind,
    Realm, Reason, StoreError, Token, TokenId, TokenPolicy, TokenService, TokenState, TokenStore,
};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};
use std::time::Duration;
use support::races::{NEW_KEY, ada, block_on, builder, directory, owner_id, through};

/// A store with faults that a test can switch on.
#[derive(Default)]
struct FaultyStore {
    inner: MemoryStore,
    /// Every call fails.
    down: AtomicBool,
    /// Every touch fails.
    touch_down: AtomicBool,
    /// Every find fails.
    find_down: AtomicBool,
    /// If set, the next commit returns `OutcomeUnknown`.
    unknown: Mutex<Option<Unknown>>,
    /// Every call waits once before it acts, and once more before it answers.
    waits: AtomicBool,
    /// Every call panics.
    panics: AtomicBool,
    /// This record cannot be read.
    corrupt: Mutex<Option<TokenId>>,
    commits: AtomicUsize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Unknown {
    Done,
    /// Done, and the token was used meanwhile.
    DoneAndUsed,
    NotDone,
    /// Done, and every find fails from then on.
    DoneAndDown,
}

impl FaultyStore {
    async fn enter(&self) -> Result<(), StoreError> {
        assert!(!self.panics.load(Ordering::SeqCst), "the store panics");
        self.wait().await;
        if self.down.load(Ordering::SeqCst) {
            Err(StoreError::unavailable("unplugged"))
        } else {
            Ok(())
        }
    }

    async fn wait(&self) {
        let mut waits = self.waits.load(Ordering::SeqCst);
        std::future::poll_fn(|_| {
            if std::mem::take(&mut waits) { Poll::Pending } else { Poll::Ready(()) }
        })
        .await;
    }

    fn corrupt_record(&self) -> Option<(TokenId, CorruptRecord)> {
        let id = (*self.corrupt.lock().unwrap())?;
        Some((id, CorruptRecord::new("tokens", "scope", &id.to_string())))
    }
}

impl TokenStore for FaultyStore {
    async fn find(&self, id: TokenId) -> Result<Option<Arc<Token>>, StoreError> {
        self.enter().await?;
        if self.find_down.load(Ordering::SeqCst) {
            return Err(StoreError::unavailable("unplugged"));
        }
        if let Some((_, corrupt)) = self.corrupt_record().filter(|(corrupt, _)| *corrupt == id) {
            return Err(StoreError::Corrupt(corrupt));
        }
        let found = self.inner.find(id).await;
        self.wait().await;
        found
    }

    async fn find_current(&self, id: TokenId) -> Result<Option<Arc<Token>>, StoreError> {
        self.find(id).await
    }

    async fn list(&self, query: &ListQuery) -> Result<Page, StoreError> {
        self.enter().await?;
        let mut page = self.inner.list(query).await?;
        if let Some((id, corrupt)) = self.corrupt_record() {
            let before = page.tokens.len();
            page.tokens.retain(|token| token.id != id);
            if page.tokens.len() < before {
                page.corrupt.push(corrupt);
            }
        }
        self.wait().await;
        Ok(page)
    }

    async fn commit(&self, batch: &ChangeBatch) -> Result<(), StoreError> {
        self.enter().await?;
        self.commits.fetch_add(1, Ordering::SeqCst);
        let unknown = self.unknown.lock().unwrap().take();
        if unknown != Some(Unknown::NotDone) {
            self.inner.commit(batch).await?;
        }
        if unknown == Some(Unknown::DoneAndUsed) {
            let now = LastUse::new(start(), None);
            let uses: Vec<Touch> =
                batch.changes.iter().map(|change| Touch::new(change.id(), now)).collect();
            self.inner.touch(&uses).await?;
        }
        if unknown == Some(Unknown::DoneAndDown) {
            self.find_down.store(true, Ordering::SeqCst);
        }
        self.wait().await;
        match unknown {
            None => Ok(()),
            Some(_) => Err(StoreError::OutcomeUnknown("the connection was lost".into())),
        }
    }

    async fn touch(&self, uses: &[Touch]) -> Result<(), StoreError> {
        self.enter().await?;
        if self.touch_down.load(Ordering::SeqCst) {
            return Err(StoreError::unavailable("read-only"));
        }
        self.inner.touch(uses).await?;
        self.wait().await;
        Ok(())
    }

    async fn list_ended(&self, before: DateTime<Utc>, limit: usize) -> Result<Page, StoreError> {
        self.enter().await?;
        let page = self.inner.list_ended(before, limit).await?;
        self.wait().await;
        Ok(page)
    }
}

type Service = TokenService<Arc<FaultyStore>, Arc<MemoryDirectory>>;

fn start() -> DateTime<Utc> {
    DateTime::from_timestamp(1_800_000_000, 0).unwrap()
}

/// Returns a service with a sink that records its events.
fn service() -> (Service, Arc<FaultyStore>, Arc<Told>) {
    service_under(TokenPolicy::default())
}

fn service_under(policy: TokenPolicy) -> (Service, Arc<FaultyStore>, Arc<Told>) {
    let store = Arc::new(FaultyStore::default());
    let told = Arc::new(Told::default());
    let builder = builder(store.clone()).clock(ManualClock::at(start())).policy(policy);
    (builder.audit_sink(told.clone()).build().unwrap(), store, told)
}

#[derive(Default)]
struct Told(Mutex<Vec<AuditEvent>>);

impl Told {
    fn count(&self, action: AuditAction) -> usize {
        let events = self.0.lock().unwrap();
        events.iter().filter(|event| event.action == action).count()
    }
}

impl AuditSink for Told {
    fn record(&self, event: &AuditEvent) {
        self.0.lock().unwrap().push(event.clone());
    }
}

fn generate<S: TokenStore, D: Directory>(service: &TokenService<S, D>, name: &str) -> IssuedToken {
    block_on(service.generate(&ada(), NewToken::named(name))).unwrap()
}

fn verify<S: TokenStore, D: Directory>(
    service: &TokenService<S, D>,
    issued: &IssuedToken,
) -> Result<patkit::Verified, VerifyError> {
    block_on(service.verify(Credential::text(issued.plaintext.expose_secret())))
}

fn stored(store: &FaultyStore, id: TokenId) -> Option<Arc<Token>> {
    block_on(store.inner.find(id)).unwrap()
}

/// Returns the number of stored events with this action.
fn events(store: &FaultyStore, action: AuditAction) -> usize {
    let page = block_on(store.inner.events(&EventQuery::new(Realm::default()))).unwrap();
    assert_eq!(page.next, None, "all are on one page");
    page.events.iter().filter(|event| event.action == action).count()
}

fn is_unavailable<T>(result: Result<T, ManageError>) -> bool {
    matches!(result, Err(ManageError::Unavailable(Unavailable::Store(_))))
}

#[test]
fn a_store_that_is_down_is_unavailable_and_never_a_rejection_and_recovers_by_itself() {
    let (service, store, _) = service();
    let issued = generate(&service, "nightly");
    let unknown = generate(&service, "deleted");
    block_on(service.revoke(&ada(), unknown.token.id(), Reason::Owner)).unwrap();
    block_on(service.delete(&ada(), unknown.token.id())).unwrap();
    let verified = verify(&service, &issued).unwrap();
    let id = issued.token.id();

    // The store goes down and comes up again, three times.
    for _ in 0..3 {
        store.down.store(true, Ordering::SeqCst);
        for presented in [&issued, &unknown] {
            let error = verify(&service, presented).unwrap_err();
            assert!(matches!(error, VerifyError::Unavailable(Unavailable::Store(_))), "{error:?}");
            assert_eq!(error.reject_reason(), None);
        }
        assert!(matches!(
            block_on(service.recheck(&verified)),
            Err(VerifyError::Unavailable(Unavailable::Store(_)))
        ));
        // A malformed text is rejected without the store.
        let malformed = block_on(service.verify(Credential::text("acme_pat_123"))).unwrap_err();
        assert_eq!(malformed.reject_reason(), Some(RejectReason::Malformed));

        assert!(is_unavailable(block_on(service.generate(&ada(), NewToken::named("other")))));
        assert!(is_unavailable(block_on(
            service.generate(&through(&verified), NewToken::named("other"))
        )));
        assert!(is_unavailable(block_on(service.list(&ada(), None, 10))));
        assert!(is_unavailable(block_on(service.get(&ada(), id))));
        assert!(is_unavailable(block_on(service.rename(&ada(), id, "other"))));
        assert!(is_unavailable(block_on(service.revoke(&ada(), id, Reason::Owner))));
        assert!(is_unavailable(block_on(service.restore(&ada(), id))));
        assert!(is_unavailable(block_on(service.rotate(&ada(), id, Duration::ZERO))));
        assert!(is_unavailable(block_on(service.delete(&ada(), id))));
        assert!(is_unavailable(block_on(service.revoke_all(&Realm::default(), &owner_id("ada")))));
        assert!(is_unavailable(block_on(service.erase_owner(&Realm::default(), &owner_id("ada")))));
        assert!(block_on(service.prune(Duration::ZERO)).is_err());
        assert!(block_on(service.flush()).is_err());

        store.down.store(false, Ordering::SeqCst);
        assert!(verify(&service, &issued).is_ok());
        let rejected = verify(&service, &unknown).unwrap_err();
        assert_eq!(rejected.reject_reason(), Some(RejectReason::Unknown));
    }
    assert!(block_on(service.flush()).is_ok());
    generate(&service, "other");
    assert_eq!(stored(&store, id).unwrap().version, 1);
}

#[test]
fn a_directory_that_is_down_is_unavailable_and_recovers_by_itself() {
    let directory = Arc::new(FaultyDirectory::default());
    let service = TokenService::builder(MemoryStore::new(), directory.clone())
        .brand("acme")
        .keyring(Keyring::from_text(support::races::OLD_KEY).unwrap())
        .build()
        .unwrap();
    let issued = generate(&service, "nightly");
    directory.set(Trouble::Down);
    let error = verify(&service, &issued).unwrap_err();
    assert!(matches!(error, VerifyError::Unavailable(Unavailable::Directory(_))));
    let error = block_on(service.generate(&ada(), NewToken::named("other"))).unwrap_err();
    assert!(matches!(error, ManageError::Unavailable(Unavailable::Directory(_))));
    directory.set(Trouble::None);
    assert!(verify(&service, &issued).is_ok());
    generate(&service, "other");
}

#[test]
fn a_directory_that_answers_for_another_owner_or_realm_has_not_found_the_owner() {
    let directory = Arc::new(FaultyDirectory::default());
    let service = TokenService::builder(MemoryStore::new(), directory.clone())
        .brand("acme")
        .keyring(Keyring::from_text(support::races::OLD_KEY).unwrap())
        .build()
        .unwrap();
    let issued = generate(&service, "nightly");
    let verified = verify(&service, &issued).unwrap();
    for trouble in [Trouble::AnotherOwner, Trouble::AnotherRealm] {
        directory.set(trouble);
        let error = verify(&service, &issued).unwrap_err();
        assert_eq!(error.reject_reason(), Some(RejectReason::OwnerUnknown), "{error:?}");
        let error = block_on(service.recheck(&verified)).unwrap_err();
        assert_eq!(error.reject_reason(), Some(RejectReason::OwnerUnknown));
        let error = block_on(service.generate(&ada(), NewToken::named("other"))).unwrap_err();
        let ManageError::ActorRejected(rejected) = error else { panic!("{error:?}") };
        assert_eq!(rejected.reason, RejectReason::OwnerUnknown);
    }
    directory.set(Trouble::None);
    assert!(verify(&service, &issued).is_ok());
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Trouble {
    #[default]
    None,
    Down,
    AnotherOwner,
    AnotherRealm,
    Panics,
}

#[derive(Default)]
struct FaultyDirectory(Mutex<Trouble>);

impl FaultyDirectory {
    fn set(&self, trouble: Trouble) {
        *self.0.lock().unwrap() = trouble;
    }
}

impl Directory for FaultyDirectory {
    async fn find(
        &self,
        realm: &Realm,
        id: &OwnerId,
    ) -> Result<Option<Arc<Owner>>, DirectoryError> {
        let trouble = *self.0.lock().unwrap();
        let owner =
            Owner::new(id.clone(), OwnerKind::Human).in_realm(realm.clone()).with_role("admin");
        match trouble {
            Trouble::None => Ok(Some(owner.into())),
            Trouble::Down => Err(DirectoryError::new("unplugged")),
            Trouble::AnotherOwner => {
                let other = Owner::new(owner_id("eve"), OwnerKind::Human).with_role("admin");
                Ok(Some(other.into()))
            }
            Trouble::AnotherRealm => {
                Ok(Some(owner.in_realm(Realm::new("elsewhere").unwrap()).into()))
            }
            Trouble::Panics => panic!("the directory panics"),
        }
    }
}

#[test]
fn a_commit_that_was_done_though_nobody_said_so_is_a_success_and_is_not_done_twice() {
    for unknown in [Unknown::Done, Unknown::DoneAndUsed] {
        let (service, store, told) = service();
        let next_is_unknown = || *store.unknown.lock().unwrap() = Some(unknown);

        next_is_unknown();
        let issued = generate(&service, "nightly");
        let id = issued.token.id();
        assert!(verify(&service, &issued).is_ok());

        next_is_unknown();
        block_on(service.rename(&ada(), id, "hourly")).unwrap();
        assert_eq!(stored(&store, id).unwrap().name.as_str(), "hourly");

        next_is_unknown();
        let rotated = block_on(service.rotate(&ada(), id, Duration::ZERO)).unwrap();
        assert!(verify(&service, &rotated).is_ok());
        let successor = rotated.token.id();

        next_is_unknown();
        block_on(service.revoke(&ada(), successor, Reason::Owner)).unwrap();
        next_is_unknown();
        block_on(service.restore(&ada(), successor)).unwrap();
        next_is_unknown();
        block_on(service.delete(&ada(), id)).unwrap();
        assert!(stored(&store, id).is_none());

        let token = stored(&store, successor).unwrap();
        assert_eq!(token.state(start()), TokenState::Active);
        assert_eq!(store.inner.len(), 1);
        assert_eq!(store.commits.load(Ordering::SeqCst), 6);
        for (action, count) in [
            (AuditAction::Generated, 2),
            (AuditAction::Renamed, 1),
            (AuditAction::Rotated, 1),
            (AuditAction::Revoked, 1),
            (AuditAction::Restored, 1),
            (AuditAction::Deleted, 1),
        ] {
            assert_eq!(events(&store, action), count, "{action}");
            assert_eq!(told.count(action), count, "{action}");
        }
    }
}

#[test]
fn a_commit_that_was_not_done_and_nobody_said_so_is_said_to_be_unknown() {
    let (service, store, told) = service();
    let issued = generate(&service, "nightly");
    let id = issued.token.id();
    let next_is_unknown = || *store.unknown.lock().unwrap() = Some(Unknown::NotDone);
    let unknown_of = |result: Result<TokenId, ManageError>| match result {
        Err(ManageError::OutcomeUnknown { token, .. }) => token,
        other => panic!("{other:?}"),
    };

    next_is_unknown();
    let made = block_on(service.generate(&ada(), NewToken::named("other")));
    let made = unknown_of(made.map(|issued| issued.token.id()));
    assert!(stored(&store, made).is_none());
    next_is_unknown();
    let revoked = block_on(service.revoke(&ada(), id, Reason::Owner));
    assert_eq!(unknown_of(revoked.map(|token| token.id())), id);
    next_is_unknown();
    let renamed = block_on(service.rename(&ada(), id, "hourly"));
    assert_eq!(unknown_of(renamed.map(|token| token.id())), id);
    next_is_unknown();
    let rotated = block_on(service.rotate(&ada(), id, Duration::ZERO));
    let successor = unknown_of(rotated.map(|issued| issued.token.id()));
    assert!(stored(&store, successor).is_none());

    // Nothing was done or reported, and nothing blocks the next attempt.
    assert_eq!(stored(&store, id).unwrap().version, 1);
    assert_eq!(told.0.lock().unwrap().len(), 1);
    assert!(verify(&service, &issued).is_ok());
    generate(&service, "other");
    block_on(service.rename(&ada(), id, "hourly")).unwrap();
    block_on(service.revoke(&ada(), id, Reason::Owner)).unwrap();
    next_is_unknown();
    let deleted = block_on(service.delete(&ada(), id));
    assert_eq!(unknown_of(deleted.map(|()| id)), id);
    assert!(stored(&store, id).is_some());
    block_on(service.delete(&ada(), id)).unwrap();
}

#[test]
fn a_commit_is_unknown_where_it_cannot_be_looked_up() {
    let (service, store, _) = service();
    *store.unknown.lock().unwrap() = Some(Unknown::DoneAndDown);
    let result = block_on(service.generate(&ada(), NewToken::named("nightly")));
    let Err(ManageError::OutcomeUnknown { token, .. }) = result else {
        panic!("{result:?}");
    };
    store.find_down.store(false, Ordering::SeqCst);
    // The error names the token to look up.
    assert!(block_on(service.get(&ada(), token)).is_ok());
    assert_eq!(events(&store, AuditAction::Generated), 1);
}

/// Polls a future `times` times and drops it. Returns its output if it has completed by then.
fn polled<T>(future: impl Future<Output = T>, times: usize) -> Option<T> {
    let mut future = pin!(future);
    for _ in 0..times {
        if let Poll::Ready(output) = future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            return Some(output);
        }
    }
    None
}

/// Drops `attempt` after 1, 2, 3, … polls, until it completes. Every call of the store waits.
///
/// Each attempt has a world of its own, and `check` inspects that world afterwards.
fn dropped_everywhere<P>(
    prepare: impl Fn(&Service) -> P,
    attempt: impl AsyncFn(&Service, &P) -> bool,
    check: impl Fn(&Service, &FaultyStore, &P),
) {
    dropped_everywhere_under(&TokenPolicy::default(), prepare, attempt, check);
}

fn dropped_everywhere_under<P>(
    policy: &TokenPolicy,
    prepare: impl Fn(&Service) -> P,
    attempt: impl AsyncFn(&Service, &P) -> bool,
    check: impl Fn(&Service, &FaultyStore, &P),
) {
    for times in 1..200 {
        let (service, store, _) = service_under(policy.clone());
        let prepared = prepare(&service);
        store.waits.store(true, Ordering::SeqCst);
        let done = polled(attempt(&service, &prepared), times);
        store.waits.store(false, Ordering::SeqCst);
        check(&service, &store, &prepared);
        // No lock is held, and later calls lose nothing.
        let other = generate(&service, "later");
        assert!(verify(&service, &other).is_ok());
        block_on(service.flush()).unwrap();
        assert!(stored(&store, other.token.id()).unwrap().last_used.is_some());
        if done.is_some() {
            assert_eq!(done, Some(true));
            assert!(times > 2, "it never waited");
            return;
        }
    }
    panic!("it never came to its end");
}

#[test]
fn a_generation_dropped_at_any_await_is_done_whole_or_not_at_all() {
    dropped_everywhere(
        |_| (),
        async |service, ()| service.generate(&ada(), NewToken::named("nightly")).await.is_ok(),
        |service, store, ()| {
            let made = store.inner.len();
            assert!(made <= 1);
            assert_eq!(events(store, AuditAction::Generated), made);
            let again = block_on(service.generate(&ada(), NewToken::named("nightly")));
            assert_eq!(again.is_ok(), made == 0);
        },
    );
}

#[test]
fn a_rotation_dropped_at_any_await_leaves_one_token_that_works() {
    dropped_everywhere(
        |service| generate(service, "nightly"),
        async |service, issued| {
            let rotated = service.rotate(&ada(), issued.token.id(), Duration::ZERO).await;
            rotated.is_ok()
        },
        |service, store, issued| {
            let rotations = events(store, AuditAction::Rotated);
            let old = stored(store, issued.token.id()).unwrap();
            match old.facts.succession {
                None => {
                    assert_eq!((store.inner.len(), rotations), (1, 0));
                    assert!(verify(service, issued).is_ok());
                }
                Some(succession) => {
                    assert_eq!((store.inner.len(), rotations), (2, 1));
                    assert!(verify(service, issued).is_err());
                    let successor = stored(store, succession.successor).unwrap();
                    assert_eq!(successor.state(start()), TokenState::Active);
                }
            }
        },
    );
}

#[test]
fn a_revocation_of_a_family_dropped_at_any_await_takes_the_root_first_and_goes_on_when_called_again()
 {
    dropped_everywhere(
        |service| {
            let mut family = vec![generate(service, "mother")];
            for (maker, name) in [(0, "daughter"), (1, "granddaughter"), (0, "son")] {
                let actor = through(&verify(service, &family[maker]).unwrap());
                family.push(block_on(service.generate(&actor, NewToken::named(name))).unwrap());
            }
            family
        },
        async |service, family| {
            let id = family[0].token.id();
            service.revoke(&ada(), id, Reason::Compromised).await.is_ok()
        },
        |service, store, family| {
            let is_revoked = |issued: &IssuedToken| {
                stored(store, issued.token.id()).unwrap().facts.revocation.is_some()
            };
            let revoked = family.iter().filter(|issued| is_revoked(issued)).count();
            assert!(revoked == 0 || is_revoked(&family[0]), "the root goes first");
            assert_eq!(events(store, AuditAction::Revoked), revoked, "each with its event");
            for issued in family {
                assert_eq!(verify(service, issued).is_ok(), !is_revoked(issued));
            }
            block_on(service.revoke(&ada(), family[0].token.id(), Reason::Compromised)).unwrap();
            assert!(family.iter().all(is_revoked), "called again, it goes on");
            assert_eq!(events(store, AuditAction::Revoked), family.len(), "and does nothing twice");
        },
    );
}

#[test]
fn a_signal_of_reuse_dropped_at_any_await_is_told_once_and_keeps_nobody_of_the_family_alive() {
    let policy = TokenPolicy::builder().reuse(ReuseSignal::RevokeFamily, 30).build().unwrap();
    dropped_everywhere_under(
        &policy,
        |service| {
            let old = generate(service, "old");
            let child = NewToken::named("child");
            let child =
                block_on(service.generate(&through(&verify(service, &old).unwrap()), child))
                    .unwrap();
            let new = block_on(service.rotate(&ada(), old.token.id(), Duration::ZERO)).unwrap();
            let actor = through(&verify(service, &new).unwrap());
            let grandchild =
                block_on(service.generate(&actor, NewToken::named("grandchild"))).unwrap();
            [old, child, new, grandchild]
        },
        async |service, family| {
            service.verify(Credential::text(family[0].plaintext.expose_secret())).await.is_err()
        },
        |service, store, family| {
            assert!(events(store, AuditAction::Reuse) <= 1);
            assert!(verify(service, &family[0]).is_err());
            assert_eq!(events(store, AuditAction::Reuse), 1, "once an hour");
            for member in &family[1..] {
                let revocation =
                    stored(store, member.token.id()).unwrap().facts.revocation.clone().unwrap();
                assert_eq!(revocation.reason, Reason::Reuse);
            }
        },
    );
}

#[test]
fn a_deletion_dropped_at_any_await_is_done_whole_or_not_at_all() {
    dropped_everywhere(
        |service| {
            let mother = generate(service, "mother");
            let actor = through(&verify(service, &mother).unwrap());
            let child = block_on(service.generate(&actor, NewToken::named("child"))).unwrap();
            block_on(service.revoke(&ada(), mother.token.id(), Reason::Owner)).unwrap();
            (mother.token.id(), child.token.id())
        },
        async |service, (mother, _)| service.delete(&ada(), *mother).await.is_ok(),
        |_, store, (mother, child)| {
            let gone = stored(store, *mother).is_none();
            assert_eq!(events(store, AuditAction::Deleted), usize::from(gone));
            assert_eq!(stored(store, *child).unwrap().creator().is_none(), gone);
        },
    );
}

#[test]
fn a_flush_dropped_at_any_await_loses_no_last_use() {
    dropped_everywhere(
        |service| {
            let issued: Vec<IssuedToken> =
                (0..5).map(|number| generate(service, &format!("token {number}"))).collect();
            for issued in &issued {
                verify(service, issued).unwrap();
            }
            issued
        },
        async |service, _| service.flush().await.is_ok(),
        |service, store, issued| {
            block_on(service.flush()).unwrap();
            assert_eq!(service.usage().pending, 0);
            for issued in issued {
                assert!(stored(store, issued.token.id()).unwrap().last_used.is_some());
            }
        },
    );
}

#[test]
fn a_flush_dropped_at_any_await_loses_no_digest_that_is_to_be_moved() {
    for times in 1..100 {
        let store = Arc::new(FaultyStore::default());
        let issued = generate(&builder(store.clone()).build().unwrap(), "nightly");
        let keys = format!("{NEW_KEY},{}", support::races::OLD_KEY);
        let service =
            builder(store.clone()).keyring(Keyring::from_text(&keys).unwrap()).build().unwrap();
        assert!(verify(&service, &issued).is_ok());
        store.waits.store(true, Ordering::SeqCst);
        let done = polled(service.flush(), times);
        store.waits.store(false, Ordering::SeqCst);
        block_on(service.flush()).unwrap();
        assert_eq!(events(&store, AuditAction::Redigested), 1);
        assert_eq!(stored(&store, issued.token.id()).unwrap().version, 2);
        assert!(verify(&service, &issued).is_ok());
        if done.is_some() {
            return;
        }
    }
    panic!("it never came to its end");
}

#[test]
fn a_verification_dropped_at_any_await_leaves_nothing_behind() {
    dropped_everywhere(
        |service| generate(service, "nightly"),
        async |service, issued| {
            service.verify(Credential::text(issued.plaintext.expose_secret())).await.is_ok()
        },
        |service, _, issued| assert!(verify(service, issued).is_ok()),
    );
}

fn panics<T>(call: impl FnOnce() -> T) -> bool {
    catch_unwind(AssertUnwindSafe(call)).is_err()
}

#[test]
fn a_panic_in_the_directory_reaches_its_caller_and_harms_nobody_else() {
    let directory = Arc::new(FaultyDirectory::default());
    let service = TokenService::builder(MemoryStore::new(), directory.clone())
        .brand("acme")
        .keyring(Keyring::from_text(support::races::OLD_KEY).unwrap())
        .build()
        .unwrap();
    let issued = generate(&service, "nightly");
    directory.set(Trouble::Panics);
    assert!(panics(|| verify(&service, &issued)));
    assert!(panics(|| block_on(service.generate(&ada(), NewToken::named("other")))));
    assert!(panics(|| block_on(service.rotate(&ada(), issued.token.id(), Duration::ZERO))));
    directory.set(Trouble::None);
    assert!(verify(&service, &issued).is_ok());
    generate(&service, "other");
    assert_eq!(service.store().len(), 2);
    block_on(service.flush()).unwrap();
}

#[test]
fn a_panic_in_the_clock_reaches_its_caller_and_harms_nobody_else() {
    struct Broken(Arc<AtomicBool>);

    impl Clock for Broken {
        fn now(&self) -> DateTime<Utc> {
            assert!(!self.0.load(Ordering::SeqCst), "the clock panics");
            start()
        }

        fn monotonic(&self) -> Duration {
            assert!(!self.0.load(Ordering::SeqCst), "the clock panics");
            Duration::ZERO
        }
    }

    let broken = Arc::new(AtomicBool::new(false));
    let service = builder(MemoryStore::new()).clock(Broken(broken.clone())).build().unwrap();
    let issued = generate(&service, "nightly");
    broken.store(true, Ordering::SeqCst);
    assert!(panics(|| verify(&service, &issued)));
    assert!(panics(|| block_on(service.generate(&ada(), NewToken::named("other")))));
    assert!(panics(|| block_on(service.revoke(&ada(), issued.token.id(), Reason::Owner))));
    broken.store(false, Ordering::SeqCst);
    assert!(verify(&service, &issued).is_ok());
    generate(&service, "other");
}

#[test]
fn a_panic_in_the_sink_reaches_its_caller_after_the_commit_and_harms_nobody_else() {
    struct Broken(Arc<AtomicBool>);

    impl AuditSink for Broken {
        fn record(&self, _: &AuditEvent) {
            assert!(!self.0.load(Ordering::SeqCst), "the sink panics");
        }
    }

    let broken = Arc::new(AtomicBool::new(false));
    let store = Arc::new(FaultyStore::default());
    let service = builder(store.clone())
        .audit_sink(Broken(broken.clone()))
        .audit_refusals(1)
        .build()
        .unwrap();
    let issued = generate(&service, "nightly");
    let id = issued.token.id();
    broken.store(true, Ordering::SeqCst);
    assert!(panics(|| block_on(service.revoke(&ada(), id, Reason::Owner))));
    // The revocation was done and its event is stored. A sampled refusal panics too, and the token
    // is still refused afterwards.
    assert_eq!(events(&store, AuditAction::Revoked), 1);
    assert!(panics(|| verify(&service, &issued)));
    broken.store(false, Ordering::SeqCst);
    let rejected = verify(&service, &issued).unwrap_err();
    assert_eq!(rejected.reject_reason(), Some(RejectReason::Revoked));
    block_on(service.restore(&ada(), id)).unwrap();
    assert!(verify(&service, &issued).is_ok());
    block_on(service.flush()).unwrap();
    assert!(events(&store, AuditAction::Refused) >= 1);
}

#[test]
fn a_panic_in_the_store_reaches_its_caller_and_loses_no_last_use() {
    let (service, store, _) = service();
    let issued = generate(&service, "nightly");
    verify(&service, &issued).unwrap();
    store.panics.store(true, Ordering::SeqCst);
    assert!(panics(|| block_on(service.flush())));
    assert!(panics(|| verify(&service, &issued)));
    assert!(panics(|| block_on(service.rename(&ada(), issued.token.id(), "hourly"))));
    store.panics.store(false, Ordering::SeqCst);
    assert_eq!(service.usage().pending, 1);
    block_on(service.flush()).unwrap();
    assert!(stored(&store, issued.token.id()).unwrap().last_used.is_some());
    block_on(service.rename(&ada(), issued.token.id(), "hourly")).unwrap();
}

#[test]
fn last_uses_that_cannot_be_written_wait_up_to_the_cap_and_verification_does_not_notice() {
    const CAP: usize = 160;
    const TOKENS: usize = 1_000;
    let store = Arc::new(FaultyStore::default());
    let service =
        builder(store.clone()).clock(ManualClock::at(start())).pending_cap(CAP).build().unwrap();
    let issued: Vec<IssuedToken> =
        (0..TOKENS).map(|number| generate(&service, &format!("token {number}"))).collect();
    store.touch_down.store(true, Ordering::SeqCst);
    for (number, issued) in issued.iter().enumerate() {
        assert!(verify(&service, issued).is_ok());
        if number % 100 == 99 {
            assert!(block_on(service.flush()).is_err());
        }
        assert!(service.usage().pending <= CAP);
    }
    let usage = service.usage();
    assert_eq!(usage.failed_flushes, 10);
    assert!(usage.pending > CAP / 2, "{usage:?}");
    // Each token that is not pending was dropped once.
    assert_eq!(usage.dropped, u64::try_from(TOKENS - usage.pending).unwrap());

    store.touch_down.store(false, Ordering::SeqCst);
    block_on(service.flush()).unwrap();
    let written =
        |issued: &&IssuedToken| stored(&store, issued.token.id()).unwrap().last_used.is_some();
    assert_eq!(issued.iter().filter(written).count(), usage.pending);
    assert_eq!(service.usage().pending, 0);
    // A dropped use is recorded at the next use of the token.
    let missed = issued.iter().find(|issued| !written(issued)).unwrap();
    verify(&service, missed).unwrap();
    block_on(service.flush()).unwrap();
    assert!(written(&missed));
}

#[test]
fn a_flush_that_hangs_holds_nobody_up() {
    let (service, store, _) = service();
    let tokens: Vec<IssuedToken> =
        (0..20).map(|number| generate(&service, &format!("token {number}"))).collect();
    verify(&service, &tokens[0]).unwrap();
    store.waits.store(true, Ordering::SeqCst);
    let mut hanging = Box::pin(service.flush());
    let context = &mut Context::from_waker(Waker::noop());
    assert!(hanging.as_mut().poll(context).is_pending());
    store.waits.store(false, Ordering::SeqCst);
    // Other calls verify, record and flush meanwhile.
    for issued in &tokens {
        assert!(verify(&service, issued).is_ok());
    }
    block_on(service.flush()).unwrap();
    assert!(stored(&store, tokens[19].token.id()).unwrap().last_used.is_some());
    assert!(stored(&store, tokens[0].token.id()).unwrap().last_used.is_none());
    drop(hanging);
    block_on(service.flush()).unwrap();
    assert!(stored(&store, tokens[0].token.id()).unwrap().last_used.is_some());
}

#[test]
fn no_token_is_made_without_randomness() {
    /// Fails at the call with this number, counted from 1, and at no other.
    struct Failing(Arc<AtomicUsize>);

    impl SecureRandom for Failing {
        fn fill(&self, buffer: &mut [u8]) -> Result<(), RandomError> {
            let left =
                self.0.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1));
            if left == Ok(1) {
                // The bytes that were written before the failure must not be used.
                buffer.fill(7);
                return Err(RandomError::new());
            }
            patkit::random::SystemRandom::new().fill(buffer)
        }
    }

    let fails_at = Arc::new(AtomicUsize::new(0));
    let service = builder(MemoryStore::new()).random(Failing(fails_at.clone())).build().unwrap();
    let issued = generate(&service, "nightly");
    // The first call makes the id, and the second one makes the secret.
    for call in [1, 2] {
        fails_at.store(call, Ordering::SeqCst);
        let error = block_on(service.generate(&ada(), NewToken::named("other"))).unwrap_err();
        assert!(matches!(error, ManageError::Random(_)), "{error:?}");
        fails_at.store(call, Ordering::SeqCst);
        let error =
            block_on(service.rotate(&ada(), issued.token.id(), Duration::ZERO)).unwrap_err();
        assert!(matches!(error, ManageError::Random(_)), "{error:?}");
    }
    assert_eq!(service.store().len(), 1);
    assert!(verify(&service, &issued).is_ok());
    generate(&service, "other");
}

/// Returns the same number `times` times, and then counts up.
struct Repeating {
    times: AtomicUsize,
    number: AtomicUsize,
}

impl SecureRandom for Repeating {
    fn fill(&self, buffer: &mut [u8]) -> Result<(), RandomError> {
        let repeats = self
            .times
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |times| times.checked_sub(1))
            .is_ok();
        let number = if repeats { 0 } else { 1 + self.number.fetch_add(1, Ordering::SeqCst) };
        for (place, byte) in buffer.iter_mut().zip(number.to_le_bytes().iter().cycle()) {
            *place = *byte;
        }
        Ok(())
    }
}

fn repeating(times: usize) -> TokenService<MemoryStore, Arc<MemoryDirectory>> {
    let random = Repeating { times: AtomicUsize::new(times), number: AtomicUsize::new(0) };
    builder(MemoryStore::new()).clock(ManualClock::at(start())).random(random).build().unwrap()
}

#[test]
fn an_id_that_is_there_already_is_never_overwritten_and_another_one_is_taken() {
    // The first token takes two numbers. The second one gets the same numbers at its first tries.
    let service = repeating(8);
    let first = generate(&service, "first");
    let second = generate(&service, "second");
    assert_ne!(first.token.id(), second.token.id());
    assert_eq!(first.token.id().created_at(), second.token.id().created_at());
    assert_eq!(service.store().len(), 2);
    assert_eq!(verify(&service, &first).unwrap().token().name().as_str(), "first");
    assert_eq!(verify(&service, &second).unwrap().token().name().as_str(), "second");
}

#[test]
fn a_generator_that_repeats_for_ever_makes_one_token_and_then_none() {
    let service = repeating(usize::MAX);
    let first = generate(&service, "first");
    let error = block_on(service.generate(&ada(), NewToken::named("second"))).unwrap_err();
    assert!(matches!(error, ManageError::Random(_)), "{error:?}");
    let error = block_on(service.rotate(&ada(), first.token.id(), Duration::ZERO)).unwrap_err();
    assert!(matches!(error, ManageError::Random(_)), "{error:?}");
    assert_eq!(service.store().len(), 1);
    assert_eq!(verify(&service, &first).unwrap().token().name().as_str(), "first");
}

#[test]
fn a_corrupt_record_is_unavailable_and_harms_itself_alone() {
    let (service, store, _) = service();
    let good = generate(&service, "good");
    let bad = generate(&service, "bad");
    let id = bad.token.id();
    *store.corrupt.lock().unwrap() = Some(id);

    let error = verify(&service, &bad).unwrap_err();
    let VerifyError::Unavailable(Unavailable::Store(StoreError::Corrupt(corrupt))) = &error else {
        panic!("{error:?}");
    };
    assert_eq!(corrupt.table, "tokens");
    assert!(is_unavailable(block_on(service.get(&ada(), id))));
    assert!(is_unavailable(block_on(service.revoke(&ada(), id, Reason::Owner))));
    assert!(is_unavailable(block_on(service.rotate(&ada(), id, Duration::ZERO))));

    assert!(verify(&service, &good).is_ok());
    block_on(service.rename(&ada(), good.token.id(), "better")).unwrap();
    let page = block_on(service.list(&ada(), None, 10)).unwrap();
    assert_eq!(page.items.len(), 1);
    assert_eq!(page.corrupt.len(), 1);
    generate(&service, "third");

    *store.corrupt.lock().unwrap() = None;
    assert!(verify(&service, &bad).is_ok());
}

#[test]
fn an_offboarding_that_meets_a_corrupt_record_says_so_instead_of_leaving_one_out() {
    let (service, store, _) = service();
    generate(&service, "good");
    let bad = generate(&service, "bad");
    *store.corrupt.lock().unwrap() = Some(bad.token.id());
    let owner = owner_id("ada");
    assert!(is_unavailable(block_on(service.revoke_all(&Realm::default(), &owner))));
    *store.corrupt.lock().unwrap() = None;
    block_on(service.revoke_all(&Realm::default(), &owner)).unwrap();
    let query = ListQuery::new(ListBy::Owner { realm: Realm::default(), owner, kind: None });
    let living = block_on(store.inner.list(&query.active_at(start()))).unwrap();
    assert!(living.tokens.is_empty());
}

#[test]
fn a_digest_under_a_key_that_is_missing_is_unavailable_and_not_a_wrong_token() {
    let store = Arc::new(MemoryStore::new());
    let issued = generate(&builder(store.clone()).build().unwrap(), "nightly");
    let service = TokenService::builder(store, directory())
        .brand("acme")
        .keyring(Keyring::from_text(NEW_KEY).unwrap())
        .policy(TokenPolicy::default())
        .build()
        .unwrap();
    let error = verify(&service, &issued).unwrap_err();
    assert!(matches!(error, VerifyError::Unavailable(Unavailable::KeyMissing(_))), "{error:?}");
}
