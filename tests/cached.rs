//! The cache in front of a store: how stale it may be, what it must not bring back, and how often
//! it calls the store.

#![allow(
    clippy::arithmetic_side_effects,
    clippy::indexing_slicing,
    clippy::large_futures,
    clippy::panic,
    clippy::unwrap_used,
    reason = "tests"
)]

use chrono::{DateTime, TimeDelta, Utc};
use patkit::audit::AuditAction;
use patkit::conformance::Suite;
use patkit::policy::ReuseSignal;
use patkit::service::{ManageError, RejectReason, TokenEdit, VerifyError};
use patkit::store::cached::CacheStats;
use patkit::store::{
    AuditLog, Change, ChangeBatch, ChangeFeed, DynTokenStore, EventQuery, Feed, FeedEvent,
    FollowError, ListQuery, Page, Touch,
};
use patkit::token::{ActorRef, Authority, KeyId, KeyedDigest, LastUse, Revocation, StoredDigest};
use patkit::{
    Actor, CachedStore, Clock, Credential, Directory, DirectoryError, IssuedToken, Keyring,
    ManualClock, MemoryDirectory, MemoryStore, NewToken, Owner, OwnerCache, OwnerId, OwnerKind,
    Realm, Reason, StoreError, Token, TokenId, TokenPolicy, TokenService, TokenState, TokenStore,
    TokenView,
};
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

/// A store that can be slow or down, and that counts its calls.
///
/// A slow read returns the state at the start of the read.
#[derive(Default)]
struct Behind {
    inner: MemoryStore,
    /// Lookups for verifications.
    reads: AtomicUsize,
    /// Lookups of the current record.
    current_reads: AtomicUsize,
    /// All other calls.
    others: AtomicUsize,
    /// If set, the next commit returns `OutcomeUnknown`, whether it is done or not.
    unknown: Mutex<Option<Done>>,
    at_once: AtomicUsize,
    most_at_once: AtomicUsize,
    down: AtomicBool,
    /// If set, each read waits for a permit.
    gate: Option<Semaphore>,
}

/// Whether a commit with an unknown outcome was done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Done {
    Yes,
    No,
}

impl Behind {
    async fn look_up(&self, id: TokenId) -> Result<Option<Arc<Token>>, StoreError> {
        if self.down.load(Ordering::SeqCst) {
            return Err(StoreError::unavailable("unplugged"));
        }
        let found = self.inner.find(id).await?;
        if let Some(gate) = &self.gate {
            let now = self.at_once.fetch_add(1, Ordering::SeqCst) + 1;
            self.most_at_once.fetch_max(now, Ordering::SeqCst);
            let leaving = Leaving(&self.at_once);
            gate.acquire().await.unwrap().forget();
            drop(leaving);
        }
        Ok(found)
    }
}

impl TokenStore for Behind {
    async fn find(&self, id: TokenId) -> Result<Option<Arc<Token>>, StoreError> {
        self.reads.fetch_add(1, Ordering::SeqCst);
        self.look_up(id).await
    }

    async fn find_current(&self, id: TokenId) -> Result<Option<Arc<Token>>, StoreError> {
        self.current_reads.fetch_add(1, Ordering::SeqCst);
        self.look_up(id).await
    }

    async fn list(&self, query: &ListQuery) -> Result<Page, StoreError> {
        self.others.fetch_add(1, Ordering::SeqCst);
        self.inner.list(query).await
    }

    async fn commit(&self, batch: &ChangeBatch) -> Result<(), StoreError> {
        self.others.fetch_add(1, Ordering::SeqCst);
        let unknown = self.unknown.lock().unwrap().take();
        if unknown != Some(Done::No) {
            self.inner.commit(batch).await?;
        }
        tokio::task::yield_now().await;
        match unknown {
            Some(_) => Err(StoreError::OutcomeUnknown("the connection was lost".into())),
            None => Ok(()),
        }
    }

    async fn touch(&self, uses: &[Touch]) -> Result<(), StoreError> {
        self.others.fetch_add(1, Ordering::SeqCst);
        self.inner.touch(uses).await
    }

    async fn list_ended(&self, before: DateTime<Utc>, limit: usize) -> Result<Page, StoreError> {
        self.others.fetch_add(1, Ordering::SeqCst);
        self.inner.list_ended(before, limit).await
    }
}

struct Leaving<'a>(&'a AtomicUsize);

impl Drop for Leaving<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

type Cached = Arc<CachedStore<Arc<Behind>>>;

struct World {
    behind: Arc<Behind>,
    cache: Cached,
    clock: Arc<ManualClock>,
    service: TokenService<Cached, MemoryDirectory>,
    /// Another node, on the same database and without this cache.
    elsewhere: TokenService<Arc<Behind>, MemoryDirectory>,
}

fn ada() -> Actor {
    Actor::signed_in(OwnerId::new("ada").unwrap())
}

fn service<S: TokenStore>(store: S, clock: Arc<ManualClock>) -> TokenService<S, MemoryDirectory> {
    let users = [Owner::new(OwnerId::new("ada").unwrap(), OwnerKind::Human).with_role("member")]
        .into_iter()
        .collect();
    let keyring = Keyring::from_text("1:AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=").unwrap();
    TokenService::builder(store, users).brand("acme").keyring(keyring).clock(clock).build().unwrap()
}

fn world_of(behind: Behind) -> World {
    let (behind, clock) = (
        Arc::new(behind),
        Arc::new(ManualClock::at(DateTime::UNIX_EPOCH + TimeDelta::days(20_000))),
    );
    let cache =
        CachedStore::builder(behind.clone()).reads_at_once(4).clock(clock.clone()).build().unwrap();
    let cache = Arc::new(cache);
    World {
        service: service(cache.clone(), clock.clone()),
        elsewhere: service(behind.clone(), clock.clone()),
        behind,
        cache,
        clock,
    }
}

fn world() -> World {
    world_of(Behind::default())
}

fn slow() -> World {
    world_of(Behind { gate: Some(Semaphore::new(0)), ..Behind::default() })
}

impl World {
    fn reads(&self) -> usize {
        self.behind.reads.swap(0, Ordering::SeqCst)
    }

    fn gate(&self) -> &Semaphore {
        self.behind.gate.as_ref().unwrap()
    }

    async fn issue(&self, name: &str) -> IssuedToken {
        self.service.generate(&ada(), NewToken::named(name)).await.unwrap()
    }

    async fn refusal(&self, issued: &IssuedToken) -> Option<RejectReason> {
        match self.service.verify(Credential::text(issued.plaintext.expose_secret())).await {
            Ok(_) => None,
            Err(VerifyError::Rejected(rejected)) => Some(rejected.reason),
            Err(other) => panic!("{other:?}"),
        }
    }

    /// Revokes a token on another node.
    async fn revoke_elsewhere(&self, issued: &IssuedToken) {
        self.elsewhere.revoke(&ada(), issued.token.id(), Reason::Owner).await.unwrap();
        self.reads();
    }
}

fn poll<F: Future>(future: Pin<&mut F>) -> Poll<F::Output> {
    future.poll(&mut Context::from_waker(Waker::noop()))
}

#[tokio::test]
async fn a_store_behind_the_cache_is_right() {
    let suite = Suite::new(|| async { CachedStore::builder(MemoryStore::new()).build().unwrap() });
    suite.run().await.unwrap();
    suite.run_audit_log().await.unwrap();
    suite.run_counts().await.unwrap();
    suite.run_key_checks().await.unwrap();
    let suite = Suite::new(|| async {
        let store: Arc<dyn DynTokenStore> =
            Arc::new(CachedStore::builder(MemoryStore::new()).build().unwrap());
        store
    });
    suite.run().await.unwrap();
}

#[test]
fn a_store_behind_the_cache_is_right_when_changes_race_on_threads() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let suite = Suite::new(|| async { CachedStore::builder(MemoryStore::new()).build().unwrap() });
    suite.run_races(|future| runtime.block_on(future)).unwrap();
}

#[tokio::test]
async fn a_token_is_read_once_in_its_lifetime_and_again_after_it() {
    let world = world();
    let issued = world.issue("a").await;
    world.reads();
    for _ in 0..100 {
        assert_eq!(world.refusal(&issued).await, None);
        // Hits do not extend the lifetime.
        world.clock.advance(TimeDelta::milliseconds(299));
    }
    assert_eq!(world.reads(), 1);
    world.clock.advance(TimeDelta::milliseconds(100));
    assert_eq!(world.refusal(&issued).await, None);
    assert_eq!(world.reads(), 1);
}

#[tokio::test]
async fn a_revocation_made_here_shows_at_once_and_one_made_elsewhere_within_the_lifetime() {
    let world = world();
    let (here, there, told) =
        (world.issue("a").await, world.issue("b").await, world.issue("c").await);
    for issued in [&here, &there, &told] {
        assert_eq!(world.refusal(issued).await, None);
    }
    world.service.revoke(&ada(), here.token.id(), Reason::Owner).await.unwrap();
    assert_eq!(world.refusal(&here).await, Some(RejectReason::Revoked));
    world.revoke_elsewhere(&there).await;
    world.revoke_elsewhere(&told).await;
    world.cache.invalidate(told.token.id());
    assert_eq!(world.refusal(&told).await, Some(RejectReason::Revoked), "the cache was told");
    world.clock.advance(TimeDelta::milliseconds(29_999));
    assert_eq!(world.refusal(&there).await, None, "not yet seen");
    world.clock.advance(TimeDelta::milliseconds(1));
    assert_eq!(world.refusal(&there).await, Some(RejectReason::Revoked));
    // Evicts all entries, for a node that does not know which changes it missed.
    let issued = world.issue("d").await;
    assert_eq!(world.refusal(&issued).await, None);
    world.revoke_elsewhere(&issued).await;
    world.cache.invalidate_all();
    assert_eq!(world.refusal(&issued).await, Some(RejectReason::Revoked));
}

#[tokio::test]
async fn a_change_here_of_what_was_changed_elsewhere_is_made_on_what_is_there_now() {
    let world = world();
    let issued = world.issue("a").await;
    assert_eq!(world.refusal(&issued).await, None);
    world.elsewhere.rename(&ada(), issued.token.id(), "b").await.unwrap();
    let view = world.service.revoke(&ada(), issued.token.id(), Reason::Owner).await.unwrap();
    assert_eq!((view.name().as_str(), view.version()), ("b", 3));
}

#[tokio::test]
async fn a_revocation_here_of_what_was_restored_elsewhere_is_made_and_not_thought_made() {
    let world = world();
    let issued = world.issue("a").await;
    world.revoke_elsewhere(&issued).await;
    assert_eq!(world.refusal(&issued).await, Some(RejectReason::Revoked));
    world.elsewhere.restore(&ada(), issued.token.id()).await.unwrap();
    world.service.revoke(&ada(), issued.token.id(), Reason::Owner).await.unwrap();
    let refused = world.elsewhere.verify(Credential::text(issued.plaintext.expose_secret())).await;
    assert!(matches!(refused, Err(VerifyError::Rejected(_))), "it was told that it is revoked");
}

#[tokio::test]
async fn an_expired_token_is_refused_on_a_hit() {
    let world = world();
    let issued =
        world.service.generate(&ada(), NewToken::named("a").expires_in_days(1)).await.unwrap();
    world.clock.advance(TimeDelta::days(1) - TimeDelta::seconds(10));
    assert_eq!(world.refusal(&issued).await, None);
    world.reads();
    world.clock.advance(TimeDelta::seconds(10));
    assert_eq!(world.refusal(&issued).await, Some(RejectReason::Expired));
    // The refusal needs no read, because reuse is checked on the cached record.
    assert_eq!(world.reads(), 0);
}

#[tokio::test]
async fn a_slow_read_from_before_a_change_is_not_kept() {
    for whole in [false, true] {
        let world = slow();
        let issued = world.issue("a").await;
        let id = issued.token.id();
        let mut reading = pin!(world.cache.find(id));
        assert!(poll(reading.as_mut()).is_pending());
        // While the read is pending, another node removes the token and this node is notified.
        let token = world.behind.inner.find(id).await.unwrap().unwrap();
        let removed = ChangeBatch::new().change(Change::Remove { id, version: token.version });
        world.behind.inner.commit(&removed).await.unwrap();
        if whole {
            world.cache.invalidate_all();
        } else {
            world.cache.invalidate(id);
        }
        // A lookup that starts now does not wait for the earlier read.
        let mut later = pin!(world.cache.find(id));
        assert!(poll(later.as_mut()).is_pending());
        assert_eq!(world.reads(), 2);
        world.gate().add_permits(1);
        let Poll::Ready(Ok(Some(_))) = poll(reading.as_mut()) else { panic!("it began before") };
        world.gate().add_permits(1);
        let Poll::Ready(Ok(None)) = poll(later.as_mut()) else { panic!("it is gone") };
        assert!(world.cache.find(id).await.unwrap().is_none(), "nothing was brought back");
        assert_eq!(world.reads(), 0, "that it is gone is known");
    }
}

/// Without another read in between, only the change itself marks the pending read as stale.
#[tokio::test]
async fn a_slow_read_is_not_kept_where_nobody_reads_after_the_change() {
    for change in ["removed elsewhere", "removed here", "used"] {
        let world = slow();
        let id = world.issue("a").await.token.id();
        let mut reading = pin!(world.cache.find(id));
        assert!(poll(reading.as_mut()).is_pending());
        let token = world.behind.inner.find(id).await.unwrap().unwrap();
        let removed = ChangeBatch::new().change(Change::Remove { id, version: token.version });
        let last_use = LastUse::new(world.clock.now(), None);
        match change {
            "removed elsewhere" => {
                world.behind.inner.commit(&removed).await.unwrap();
                world.cache.invalidate(id);
            }
            "removed here" => world.cache.commit(&removed).await.unwrap(),
            _ => world.cache.touch(&[Touch::new(id, last_use)]).await.unwrap(),
        }
        world.gate().add_permits(2);
        let Poll::Ready(Ok(Some(_))) = poll(reading.as_mut()) else { panic!("it began before") };
        world.reads();
        let found = world.cache.find(id).await.unwrap().map(|found| found.last_used);
        assert_eq!(found, (change == "used").then_some(Some(last_use)), "{change}");
        assert_eq!(world.reads(), 1, "{change}");
    }
}

#[tokio::test]
async fn of_a_thousand_look_ups_of_one_cold_token_one_reads() {
    let world = slow();
    let id = world.issue("a").await.token.id();
    let cache = world.cache.clone();
    let found: Vec<_> = (0..1_000)
        .map(|_| {
            let cache = cache.clone();
            tokio::spawn(async move { cache.find(id).await.unwrap().is_some() })
        })
        .collect();
    tokio::task::yield_now().await;
    world.gate().add_permits(1);
    for found in found {
        assert!(found.await.unwrap());
    }
    assert_eq!(world.reads(), 1);
}

#[tokio::test]
async fn a_read_that_is_dropped_or_fails_leaves_nobody_waiting_and_is_not_kept() {
    let world = slow();
    let id = world.issue("a").await.token.id();
    let mut first = Box::pin(world.cache.find(id));
    assert!(poll(first.as_mut()).is_pending());
    let mut second = pin!(world.cache.find(id));
    assert!(poll(second.as_mut()).is_pending());
    assert_eq!(world.reads(), 1);
    drop(first);
    world.gate().add_permits(1);
    let Poll::Ready(Ok(Some(_))) = poll(second.as_mut()) else { panic!("it waits for ever") };

    let world = self::world();
    let issued = world.issue("a").await;
    world.behind.down.store(true, Ordering::SeqCst);
    let refused = world.service.verify(Credential::text(issued.plaintext.expose_secret())).await;
    assert!(matches!(refused, Err(VerifyError::Unavailable(_))));
    world.behind.down.store(false, Ordering::SeqCst);
    assert_eq!(world.refusal(&issued).await, None);
    // A cached record stays valid while the store is down.
    world.behind.down.store(true, Ordering::SeqCst);
    assert_eq!(world.refusal(&issued).await, None);
    world.clock.advance(TimeDelta::seconds(30));
    let refused = world.service.verify(Credential::text(issued.plaintext.expose_secret())).await;
    assert!(matches!(refused, Err(VerifyError::Unavailable(_))), "no longer than its lifetime");
}

/// Two reads of one id overlap if the client of the first one has gone.
#[tokio::test]
async fn an_earlier_read_that_lands_later_hides_nothing_that_a_later_one_found() {
    for reason in [Reason::Compromised, Reason::Owner] {
        let world = slow();
        let issued = world.issue("a").await;
        let id = issued.token.id();
        let mut gone = Box::pin(world.cache.find(id));
        let (mut early, mut late) = (pin!(world.cache.find(id)), pin!(world.cache.find(id)));
        assert!(poll(gone.as_mut()).is_pending());
        assert!(poll(early.as_mut()).is_pending() && poll(late.as_mut()).is_pending());
        drop(gone);
        assert!(poll(early.as_mut()).is_pending());
        // Another node revokes the token, and this node is not notified.
        let record = world.behind.inner.find(id).await.unwrap().unwrap();
        let mut record = Token::clone(&record);
        record.version += 1;
        record.facts.revocation = Some(Box::new(Revocation {
            at: world.clock.now(),
            by: ActorRef::System,
            authority: Authority::System,
            reason,
        }));
        let revoked = ChangeBatch::new().change(Change::Update(Arc::new(record)));
        world.behind.inner.commit(&revoked).await.unwrap();
        // The clock does not advance in between, because a clock may be coarse.
        assert!(poll(late.as_mut()).is_pending());
        assert_eq!(world.reads(), 3);
        world.gate().add_permits(2);
        let is_revoked = |found: Poll<Result<Option<Arc<Token>>, StoreError>>| match found {
            Poll::Ready(Ok(Some(found))) => found.facts.revocation.is_some(),
            _ => panic!("it is there"),
        };
        assert!(is_revoked(poll(late.as_mut())));
        assert!(!is_revoked(poll(early.as_mut())), "it was asked for before");
        world.gate().add_permits(1);
        assert!(is_revoked(poll(pin!(world.cache.find(id)).as_mut())));
    }
}

/// A removed token also stays removed if missing tokens are not cached.
#[tokio::test]
async fn an_earlier_read_that_lands_later_brings_back_nothing_that_is_gone() {
    for negative_lifetime in [5, 0].map(Duration::from_secs) {
        let behind = Arc::new(Behind { gate: Some(Semaphore::new(0)), ..Behind::default() });
        let clock = Arc::new(ManualClock::at(DateTime::UNIX_EPOCH + TimeDelta::days(20_000)));
        let id =
            service(behind.clone(), clock.clone()).generate(&ada(), NewToken::named("a")).await;
        let id = id.unwrap().token.id();
        let cache =
            CachedStore::builder(behind.clone()).negative_lifetime(negative_lifetime).clock(clock);
        let cache = cache.build().unwrap();
        let mut gone = Box::pin(cache.find(id));
        let (mut early, mut late) = (pin!(cache.find(id)), pin!(cache.find(id)));
        assert!(poll(gone.as_mut()).is_pending());
        assert!(poll(early.as_mut()).is_pending() && poll(late.as_mut()).is_pending());
        drop(gone);
        assert!(poll(early.as_mut()).is_pending());
        let removed = ChangeBatch::new().change(Change::Remove { id, version: 1 });
        behind.inner.commit(&removed).await.unwrap();
        assert!(poll(late.as_mut()).is_pending());
        behind.gate.as_ref().unwrap().add_permits(3);
        assert!(matches!(poll(late.as_mut()), Poll::Ready(Ok(None))));
        assert!(
            matches!(poll(early.as_mut()), Poll::Ready(Ok(Some(_)))),
            "it was asked for before"
        );
        assert!(matches!(poll(pin!(cache.find(id)).as_mut()), Poll::Ready(Ok(None))));
    }
}

#[test]
fn of_two_threads_that_look_up_one_cold_token_one_reads() {
    let behind = Arc::new(Behind::default());
    let cache = CachedStore::builder(behind.clone()).build().unwrap();
    let now = |future: Pin<&mut dyn Future<Output = Result<Option<Arc<Token>>, StoreError>>>| {
        let mut future = future;
        loop {
            match poll(Pin::new(&mut future)) {
                Poll::Ready(found) => break found.unwrap().is_none(),
                Poll::Pending => std::thread::yield_now(),
            }
        }
    };
    let other = MemoryStore::new();
    let service =
        service(&other, Arc::new(ManualClock::at(DateTime::UNIX_EPOCH + TimeDelta::days(20_000))));
    let id = poll(pin!(service.generate(&ada(), NewToken::named("a"))).as_mut());
    let Poll::Ready(Ok(issued)) = id else { panic!("the memory store waited") };
    let id = issued.token.id();
    for round in 0..4_000 {
        cache.invalidate(id);
        behind.reads.store(0, Ordering::SeqCst);
        let begun = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    begun.fetch_add(1, Ordering::SeqCst);
                    while begun.load(Ordering::SeqCst) < 2 {
                        std::hint::spin_loop();
                    }
                    assert!(now(pin!(cache.find(id))));
                });
            }
        });
        assert_eq!(behind.reads.load(Ordering::SeqCst), 1, "in round {round}");
    }
}

#[tokio::test]
async fn a_clock_that_counts_from_long_ago_or_leaps_far_ahead_makes_nothing_live_for_ever() {
    const YEARS: i64 = 600;
    let world = world();
    let id = world.issue("a").await.token.id();
    world.cache.find(id).await.unwrap();
    world.clock.advance(TimeDelta::days(366 * YEARS));
    // 600 years exceed the range of the nanoseconds, so that every entry counts as expired.
    for _ in 0..2 {
        world.reads();
        world.cache.find(id).await.unwrap();
        world.clock.advance(TimeDelta::days(1));
        world.cache.find(id).await.unwrap();
        assert_eq!(world.reads(), 2);
    }
    let cache =
        CachedStore::builder(world.behind.clone()).clock(world.clock.clone()).build().unwrap();
    for expected in [1, 0] {
        cache.find(id).await.unwrap();
        assert_eq!(world.reads(), expected);
    }
    world.clock.advance(TimeDelta::seconds(30));
    cache.find(id).await.unwrap();
    assert_eq!(world.reads(), 1);
}

#[tokio::test]
async fn a_change_that_is_dropped_half_way_is_not_hidden() {
    let world = world();
    let issued = world.issue("a").await;
    assert_eq!(world.refusal(&issued).await, None);
    let id = issued.token.id();
    {
        let owner = ada();
        let mut revoking = pin!(world.service.revoke(&owner, id, Reason::Owner));
        // The revocation waits after the store has committed it.
        assert!(poll(revoking.as_mut()).is_pending());
    }
    assert_eq!(world.refusal(&issued).await, Some(RejectReason::Revoked));
}

#[tokio::test]
async fn unknown_ids_are_remembered_apart_and_push_out_no_token() {
    let behind = Arc::new(Behind::default());
    let clock = Arc::new(ManualClock::at(DateTime::UNIX_EPOCH + TimeDelta::days(20_000)));
    let cache = CachedStore::builder(behind.clone())
        .capacity(100)
        .negative_capacity(50)
        .clock(clock.clone())
        .build()
        .unwrap();
    let service = service(Arc::new(cache), clock.clone());
    let mut issued = Vec::new();
    for number in 0..20 {
        let token =
            service.generate(&ada(), NewToken::named(&format!("token {number}"))).await.unwrap();
        service.verify(Credential::text(token.plaintext.expose_secret())).await.unwrap();
        issued.push(token);
    }
    // Ids that the store does not have: those of another host's tokens.
    let other = self::service(Arc::new(MemoryStore::new()), clock.clone());
    for number in 0..2_000 {
        let foreign =
            other.generate(&ada(), NewToken::named(&format!("token {number}"))).await.unwrap();
        for _ in 0..2 {
            service.verify(Credential::text(foreign.plaintext.expose_secret())).await.unwrap_err();
        }
    }
    let reads = behind.reads.swap(0, Ordering::SeqCst);
    assert!((2_020..2_100).contains(&reads), "an unknown id is read once: {reads}");
    for token in &issued {
        service.verify(Credential::text(token.plaintext.expose_secret())).await.unwrap();
    }
    assert_eq!(behind.reads.load(Ordering::SeqCst), 0, "no token was pushed out");
}

#[tokio::test]
async fn tokens_that_are_in_use_stay_while_many_others_come_and_go() {
    let behind = Arc::new(Behind::default());
    let cache = Arc::new(CachedStore::builder(behind.clone()).capacity(100).build().unwrap());
    let clock = Arc::new(ManualClock::at(DateTime::UNIX_EPOCH + TimeDelta::days(20_000)));
    let service = service(cache.clone(), clock);
    let mut ids = Vec::new();
    for number in 0..2_000 {
        let issued =
            service.generate(&ada(), NewToken::named(&format!("token {number}"))).await.unwrap();
        ids.push(issued.token.id());
    }
    let (busy, others) = ids.split_at(20);
    let mut reads = 0;
    for (number, other) in others.iter().enumerate() {
        cache.find(*other).await.unwrap();
        behind.reads.store(0, Ordering::SeqCst);
        cache.find(busy[number % busy.len()]).await.unwrap();
        if number >= busy.len() {
            reads += behind.reads.load(Ordering::SeqCst);
        }
    }
    assert!(reads < 20, "{reads} of 1,960 were read again");
    assert_eq!(cache.stats().kept, 100);
}

#[tokio::test]
async fn an_unknown_id_that_is_asked_for_again_and_again_is_read_once() {
    let behind = Arc::new(Behind::default());
    let cache = CachedStore::builder(behind.clone()).negative_capacity(50).build().unwrap();
    let other = world();
    let mut reads = 0;
    let busy = other.issue("busy").await.token.id();
    for number in 0..1_000 {
        cache.find(other.issue(&format!("token {number}")).await.token.id()).await.unwrap();
        behind.reads.store(0, Ordering::SeqCst);
        assert!(cache.find(busy).await.unwrap().is_none());
        reads += behind.reads.load(Ordering::SeqCst);
    }
    assert_eq!(reads, 1);
    assert_eq!(cache.stats().missing, 50);

    let cache =
        CachedStore::builder(behind.clone()).negative_lifetime(Duration::ZERO).build().unwrap();
    for _ in 0..3 {
        behind.reads.store(0, Ordering::SeqCst);
        assert!(cache.find(busy).await.unwrap().is_none());
        assert_eq!((behind.reads.load(Ordering::SeqCst), cache.stats().missing), (1, 0));
    }
}

#[tokio::test]
async fn a_use_that_is_noted_makes_nothing_live_longer() {
    let world = world();
    let id = world.issue("a").await.token.id();
    let used = |found: Option<Arc<Token>>| found.unwrap().last_used;
    assert_eq!(used(world.cache.find(id).await.unwrap()), None);
    world.clock.advance(TimeDelta::milliseconds(29_999));
    let last_use = LastUse::new(world.clock.now(), None);
    world.cache.touch(&[Touch::new(id, last_use)]).await.unwrap();
    world.reads();
    assert_eq!(used(world.cache.find(id).await.unwrap()), Some(last_use));
    assert_eq!(world.reads(), 0);
    world.clock.advance(TimeDelta::milliseconds(1));
    world.cache.find(id).await.unwrap();
    assert_eq!(world.reads(), 1);
}

#[tokio::test]
async fn what_is_too_old_makes_room_though_there_is_some() {
    let world = world();
    let mut ids = Vec::new();
    for number in 0..700 {
        ids.push(world.issue(&format!("token {number}")).await.token.id());
    }
    let (first, then) = ids.split_at(100);
    for id in first {
        world.cache.find(*id).await.unwrap();
    }
    world.cache.invalidate_all();
    for id in &then[..300] {
        world.cache.find(*id).await.unwrap();
    }
    assert_eq!(world.cache.stats().kept, 300, "those from before are gone");
    world.clock.advance(TimeDelta::seconds(30));
    for id in &then[300..] {
        world.cache.find(*id).await.unwrap();
    }
    assert_eq!(world.cache.stats().kept, 300, "those of the last lifetime alone");
}

#[tokio::test]
async fn what_was_looked_up_in_vain_works_at_once_when_it_is_made_here_and_soon_when_elsewhere() {
    for here in [true, false] {
        let world = world();
        let issued = world.elsewhere.generate(&ada(), NewToken::named("a")).await.unwrap();
        let id = issued.token.id();
        let token = world.behind.inner.find(id).await.unwrap().unwrap();
        let removed = ChangeBatch::new().change(Change::Remove { id, version: 1 });
        world.behind.inner.commit(&removed).await.unwrap();
        assert_eq!(world.refusal(&issued).await, Some(RejectReason::Unknown));
        let insert = ChangeBatch::new().change(Change::Insert(token));
        if here {
            world.cache.commit(&insert).await.unwrap();
        } else {
            world.behind.inner.commit(&insert).await.unwrap();
            world.clock.advance(TimeDelta::milliseconds(4_999));
            assert_eq!(world.refusal(&issued).await, Some(RejectReason::Unknown));
            world.clock.advance(TimeDelta::milliseconds(1));
        }
        assert_eq!(world.refusal(&issued).await, None);
    }
}

#[tokio::test]
async fn so_many_reads_are_under_way_at_once_and_no_more() {
    let world = slow();
    let mut ids = Vec::new();
    for number in 0..20 {
        ids.push(world.issue(&format!("token {number}")).await.token.id());
    }
    let finds: Vec<_> = ids
        .into_iter()
        .map(|id| {
            let cache = world.cache.clone();
            tokio::spawn(async move { cache.find(id).await.unwrap().is_some() })
        })
        .collect();
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    assert_eq!(world.behind.at_once.load(Ordering::SeqCst), 4);
    world.gate().add_permits(20);
    for find in finds {
        assert!(find.await.unwrap());
    }
    assert_eq!(world.behind.most_at_once.load(Ordering::SeqCst), 4);
}

#[test]
fn settings_have_bounds() {
    let build = || CachedStore::builder(MemoryStore::new());
    let second = Duration::from_secs(1);
    let refused = |builder: patkit::store::cached::CachedStoreBuilder<MemoryStore>| {
        builder.build().unwrap_err().setting
    };
    assert_eq!(refused(build().lifetime(Duration::ZERO)), "lifetime");
    assert_eq!(refused(build().lifetime(second * 3_601)), "lifetime");
    assert_eq!(
        refused(build().lifetime(second).negative_lifetime(second * 2)),
        "negative_lifetime"
    );
    assert_eq!(refused(build().capacity(0)), "capacity");
    assert_eq!(refused(build().negative_capacity(0)), "negative_capacity");
    assert_eq!(refused(build().reads_at_once(0)), "reads_at_once");
    build().lifetime(second * 3_600).negative_lifetime(Duration::ZERO).build().unwrap();
}

/// What another process does to a token that is in this process's cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Elsewhere {
    Nothing,
    Erased,
    Revoked,
    Compromised,
    /// The token was revoked when it was cached.
    Restored,
    Renamed,
    Rotated,
    Expired,
}

const ELSEWHERE: [Elsewhere; 8] = [
    Elsewhere::Nothing,
    Elsewhere::Erased,
    Elsewhere::Revoked,
    Elsewhere::Compromised,
    Elsewhere::Restored,
    Elsewhere::Renamed,
    Elsewhere::Rotated,
    Elsewhere::Expired,
];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Manages {
    Get,
    Rename,
    /// Changes nothing.
    RenameToItsName,
    Describe,
    /// Changes nothing if the token is active.
    Activate,
    Deactivate,
    Revoke,
    Compromise,
    Restore,
    Rotate,
    Delete,
    GenerateThrough,
    GetThrough,
    RevokeItself,
    RotateItself,
    StandingThrough,
    RevokeByTheHost,
    RevokeAll,
    Sweep,
    Prune,
    Erase,
}

const MANAGES: [Manages; 21] = [
    Manages::Get,
    Manages::Rename,
    Manages::RenameToItsName,
    Manages::Describe,
    Manages::Activate,
    Manages::Deactivate,
    Manages::Revoke,
    Manages::Compromise,
    Manages::Restore,
    Manages::Rotate,
    Manages::Delete,
    Manages::GenerateThrough,
    Manages::GetThrough,
    Manages::RevokeItself,
    Manages::RotateItself,
    Manages::StandingThrough,
    Manages::RevokeByTheHost,
    Manages::RevokeAll,
    Manages::Sweep,
    Manages::Prune,
    Manages::Erase,
];

/// Returns the answer of an operation, without the parts that differ between runs.
async fn answer<S: TokenStore>(
    service: &TokenService<S, MemoryDirectory>,
    manages: Manages,
    id: TokenId,
    itself: &Actor,
) -> String {
    let ada = ada();
    let (realm, owner) = (Realm::default(), OwnerId::new("ada").unwrap());
    let view = |view: Result<TokenView, ManageError>| {
        view.map(|view| format!("{} {:?} version {}", view.name(), view.state(), view.version()))
    };
    let issued = |issued: Result<IssuedToken, ManageError>| {
        issued.map(|issued| issued.token.name().to_string())
    };
    let count = |count: Result<u64, ManageError>| count.map(|count| count.to_string());
    let edit = |edit| service.edit(&ada, id, edit);
    let answer = match manages {
        Manages::Get => view(service.get(&ada, id).await),
        Manages::Rename => view(service.rename(&ada, id, "b").await),
        Manages::RenameToItsName => view(service.rename(&ada, id, "a").await),
        Manages::Describe => view(edit(TokenEdit::new().description("of the build")).await),
        Manages::Activate => view(edit(TokenEdit::new().active(true)).await),
        Manages::Deactivate => view(edit(TokenEdit::new().active(false)).await),
        Manages::Revoke => view(service.revoke(&ada, id, Reason::Owner).await),
        Manages::Compromise => view(service.revoke(&ada, id, Reason::Compromised).await),
        Manages::Restore => view(service.restore(&ada, id).await),
        Manages::Rotate => issued(service.rotate(&ada, id, Duration::ZERO).await),
        Manages::Delete => service.delete(&ada, id).await.map(|()| "deleted".to_owned()),
        Manages::GenerateThrough => {
            issued(service.generate(itself, NewToken::named("child")).await)
        }
        Manages::GetThrough => view(service.get(itself, id).await),
        Manages::RevokeItself => view(service.revoke(itself, id, Reason::Owner).await),
        Manages::RotateItself => issued(service.rotate(itself, id, Duration::ZERO).await),
        Manages::StandingThrough => {
            service.standing(itself).await.map(|standing| standing.manages_tokens.to_string())
        }
        Manages::RevokeByTheHost => {
            view(service.revoke(&Actor::system(), id, Reason::System).await)
        }
        Manages::RevokeAll => count(service.revoke_all(&realm, &owner).await),
        Manages::Sweep => count(service.sweep_idle().await),
        Manages::Prune => count(service.prune(Duration::ZERO).await),
        Manages::Erase => count(service.erase_owner(&realm, &owner).await),
    };
    // Leaves out ids, which are 22 characters, because a successor has an id of its own.
    let error = |error: ManageError| {
        let text = format!("{error:?}");
        let mut parts = text.split("TokenId(");
        let first = parts.next().unwrap_or_default().to_owned();
        parts.fold(first, |text, part| text + "TokenId" + part.get(22..).unwrap_or(part))
    };
    answer.unwrap_or_else(error)
}

/// Returns a world whose cache holds a token that another process has changed since.
///
/// The returned actor was verified through the token before the change.
async fn kept_and_changed(elsewhere: Elsewhere) -> (World, TokenId, Actor) {
    let world = world();
    let issued = world.issue("a").await;
    let id = issued.token.id();
    let itself = Actor::token(
        &world.service.verify(Credential::text(issued.plaintext.expose_secret())).await.unwrap(),
    );
    if elsewhere == Elsewhere::Restored {
        world.service.revoke(&ada(), id, Reason::Owner).await.unwrap();
        assert_eq!(world.refusal(&issued).await, Some(RejectReason::Revoked));
    }
    let ada = ada();
    let revoke = |reason| world.elsewhere.revoke(&ada, id, reason);
    match elsewhere {
        Elsewhere::Nothing => {}
        Elsewhere::Erased => {
            let removed = ChangeBatch::new().change(Change::Remove { id, version: 1 });
            world.behind.inner.commit(&removed).await.unwrap();
        }
        Elsewhere::Revoked => drop(revoke(Reason::Owner).await.unwrap()),
        Elsewhere::Compromised => drop(revoke(Reason::Compromised).await.unwrap()),
        Elsewhere::Restored => drop(world.elsewhere.restore(&ada, id).await.unwrap()),
        Elsewhere::Renamed => drop(world.elsewhere.rename(&ada, id, "c").await.unwrap()),
        Elsewhere::Rotated => drop(world.elsewhere.rotate(&ada, id, Duration::ZERO).await.unwrap()),
        Elsewhere::Expired => {
            let found = world.behind.inner.find(id).await.unwrap().unwrap();
            let mut record = Token::clone(&found);
            record.version += 1;
            record.facts.expires_at = Some(world.clock.now());
            let expired = ChangeBatch::new().change(Change::Update(Arc::new(record)));
            world.behind.inner.commit(&expired).await.unwrap();
        }
    }
    world.reads();
    world.behind.current_reads.store(0, Ordering::SeqCst);
    (world, id, itself)
}

#[tokio::test]
async fn no_management_call_is_answered_by_the_cache() {
    for elsewhere in ELSEWHERE {
        for manages in MANAGES {
            let (without, id, itself) = kept_and_changed(elsewhere).await;
            let expected = answer(&without.elsewhere, manages, id, &itself).await;
            let current_reads = without.behind.current_reads.swap(0, Ordering::SeqCst);
            let (world, id, itself) = kept_and_changed(elsewhere).await;
            let answered = answer(&world.service, manages, id, &itself).await;
            assert_eq!(answered, expected, "{manages:?} after {elsewhere:?}");
            let counted = (world.reads(), world.behind.current_reads.load(Ordering::SeqCst));
            assert_eq!(counted, (0, current_reads), "{manages:?} after {elsewhere:?}");
        }
    }
}

/// The fault that led to this file was an edit of this kind.
#[tokio::test]
async fn an_edit_that_changes_nothing_finds_that_the_token_was_erased_elsewhere() {
    let (world, id, _) = kept_and_changed(Elsewhere::Erased).await;
    let edited = world.service.edit(&ada(), id, TokenEdit::new().active(true)).await;
    assert!(matches!(edited, Err(ManageError::NotFound)), "{edited:?}");
}

#[tokio::test]
async fn what_management_read_is_what_verifications_see_from_then_on() {
    for elsewhere in [Elsewhere::Erased, Elsewhere::Revoked, Elsewhere::Expired] {
        let (world, id, _) = kept_and_changed(elsewhere).await;
        let is_active = |found: Option<Arc<Token>>| {
            found.is_some_and(|found| found.state(world.clock.now()) == TokenState::Active)
        };
        assert!(is_active(world.cache.find(id).await.unwrap()), "it is kept as it was");
        drop(world.service.get(&ada(), id).await);
        assert!(!is_active(world.cache.find(id).await.unwrap()), "{elsewhere:?}");
        assert_eq!(world.reads(), 0);
    }
}

/// Returns the text without token ids.
fn without_ids(text: &str) -> String {
    let words = text.split(' ').filter(|word| word.parse::<TokenId>().is_err());
    words.collect::<Vec<_>>().join(" ")
}

/// If the store cannot tell whether a commit happened, the service reads the record again.
#[tokio::test]
async fn an_unknown_outcome_is_looked_up_in_the_store() {
    for done in [Done::Yes, Done::No] {
        for manages in [Manages::Rename, Manages::Revoke, Manages::Rotate, Manages::GenerateThrough]
        {
            let (without, id, itself) = kept_and_changed(Elsewhere::Nothing).await;
            *without.behind.unknown.lock().unwrap() = Some(done);
            let expected = without_ids(&answer(&without.elsewhere, manages, id, &itself).await);
            let current_reads = without.behind.current_reads.load(Ordering::SeqCst);
            let (world, id, itself) = kept_and_changed(Elsewhere::Nothing).await;
            *world.behind.unknown.lock().unwrap() = Some(done);
            let answered = without_ids(&answer(&world.service, manages, id, &itself).await);
            assert_eq!(answered, expected, "{manages:?}");
            let is_unknown = expected.contains("did not say whether the change");
            assert_eq!(is_unknown, done == Done::No, "{expected}");
            let counted = (world.reads(), world.behind.current_reads.load(Ordering::SeqCst));
            assert_eq!(counted, (0, current_reads), "{manages:?}");
        }
    }
}

/// A directory that counts its lookups.
#[derive(Default)]
struct Asked {
    inner: MemoryDirectory,
    questions: AtomicUsize,
}

impl Directory for Asked {
    async fn find(
        &self,
        realm: &Realm,
        id: &OwnerId,
    ) -> Result<Option<Arc<Owner>>, DirectoryError> {
        self.questions.fetch_add(1, Ordering::SeqCst);
        self.inner.find(realm, id).await
    }
}

/// Why a token is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Refused {
    Revoked(Reason),
    /// Revoked by rotation, under this reuse signal.
    Rotated(ReuseSignal),
    /// The overlap of its rotation has ended.
    OverlapOver(ReuseSignal),
    Expired,
    WrongSecret,
    Unknown,
    OtherRealm,
    KeyMissing,
    OwnerDisabled,
    OwnerUnknown,
    OwnerKind,
    BeforeValidAfter,
    Address,
}

const REFUSED: [Refused; 19] = [
    Refused::Revoked(Reason::Owner),
    Refused::Revoked(Reason::Offboarding),
    Refused::Revoked(Reason::Compromised),
    Refused::Rotated(ReuseSignal::Off),
    Refused::Rotated(ReuseSignal::Alert),
    Refused::Rotated(ReuseSignal::RevokeFamily),
    Refused::OverlapOver(ReuseSignal::Off),
    Refused::OverlapOver(ReuseSignal::Alert),
    Refused::OverlapOver(ReuseSignal::RevokeFamily),
    Refused::Expired,
    Refused::WrongSecret,
    Refused::Unknown,
    Refused::OtherRealm,
    Refused::KeyMissing,
    Refused::OwnerDisabled,
    Refused::OwnerUnknown,
    Refused::OwnerKind,
    Refused::BeforeValidAfter,
    Refused::Address,
];

/// A refused token, behind caches of tokens and of owners.
struct Refusing {
    behind: Arc<Behind>,
    directory: Arc<OwnerCache<Asked>>,
    clock: Arc<ManualClock>,
    service: TokenService<Cached, Arc<OwnerCache<Asked>>>,
    text: String,
    id: TokenId,
}

impl Refusing {
    async fn new(refused: Refused) -> Self {
        let (behind, clock) = (
            Arc::new(Behind::default()),
            Arc::new(ManualClock::at(DateTime::UNIX_EPOCH + TimeDelta::days(20_000))),
        );
        let cache = CachedStore::builder(behind.clone()).clock(clock.clone()).build().unwrap();
        let ada = || Owner::new(OwnerId::new("ada").unwrap(), OwnerKind::Human).with_role("member");
        let directory = OwnerCache::builder(Asked::default())
            .lifetime(Duration::from_secs(30))
            .capacity(100)
            .clock(clock.clone())
            .build()
            .unwrap();
        let directory = Arc::new(directory);
        let users = &directory.directory().inner;
        users.put(ada());
        let signal = match refused {
            Refused::Rotated(signal) | Refused::OverlapOver(signal) => signal,
            _ => ReuseSignal::Alert,
        };
        let keyring = Keyring::from_text("1:AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=").unwrap();
        let service = TokenService::builder(Arc::new(cache), directory.clone())
            .brand("acme")
            .keyring(keyring)
            .clock(clock.clone())
            .policy(TokenPolicy::builder().reuse(signal, 30).build().unwrap())
            .build()
            .unwrap();
        let new = NewToken::named("a").expires_in_days(1);
        let new = if refused == Refused::Address { new.networks(["10.0.0.0/8"]) } else { new };
        let issued = service.generate(&self::ada(), new).await.unwrap();
        let id = issued.token.id();
        let text = issued.plaintext.expose_secret().to_owned();
        let force = async |change: &(dyn Fn(&mut Token) + Sync)| {
            let mut record = Token::clone(&behind.inner.find(id).await.unwrap().unwrap());
            record.version += 1;
            change(&mut record);
            let batch = ChangeBatch::new().change(Change::Update(Arc::new(record)));
            behind.inner.commit(&batch).await.unwrap();
        };
        let digest = |key| StoredDigest::Keyed(KeyedDigest::new(KeyId::new(key), [7; 32]));
        match refused {
            Refused::Revoked(Reason::Offboarding) => {
                service
                    .revoke_all(&Realm::default(), &OwnerId::new("ada").unwrap())
                    .await
                    .map(drop)
                    .unwrap();
            }
            Refused::Revoked(reason) => {
                drop(service.revoke(&self::ada(), id, reason).await.unwrap());
            }
            Refused::Rotated(_) => {
                drop(service.rotate(&self::ada(), id, Duration::ZERO).await.unwrap());
            }
            Refused::OverlapOver(_) => {
                drop(service.rotate(&self::ada(), id, Duration::from_secs(60)).await.unwrap());
                clock.advance(TimeDelta::seconds(60));
            }
            Refused::Expired => clock.advance(TimeDelta::days(1)),
            Refused::WrongSecret => force(&|record| record.digest = digest(1)).await,
            Refused::KeyMissing => force(&|record| record.digest = digest(9)).await,
            Refused::Unknown => {
                let removed = ChangeBatch::new().change(Change::Remove { id, version: 1 });
                behind.inner.commit(&removed).await.unwrap();
            }
            Refused::OwnerDisabled => users.put(ada().with_enabled(false)),
            Refused::OwnerUnknown => {
                assert!(users.remove(&Realm::default(), &OwnerId::new("ada").unwrap()));
            }
            Refused::OwnerKind => {
                users.put(Owner::new(OwnerId::new("ada").unwrap(), OwnerKind::Service));
            }
            Refused::BeforeValidAfter => {
                users.put(ada().with_tokens_valid_after(clock.now() + TimeDelta::seconds(1)));
            }
            Refused::OtherRealm | Refused::Address => {}
        }
        directory.invalidate_all();
        Self { behind, directory, clock, service, text, id }
    }

    /// Presents the token once. Returns the error and the number of calls to the store and the
    /// directory.
    async fn present(&self, refused: Refused) -> (String, usize) {
        let counts = [
            &self.behind.reads,
            &self.behind.current_reads,
            &self.behind.others,
            &self.directory.directory().questions,
        ];
        for count in counts {
            count.store(0, Ordering::SeqCst);
        }
        let realm = Realm::new("elsewhere").unwrap();
        let verified = match refused {
            Refused::OtherRealm => {
                self.service.verify(Credential::text(&self.text).in_realm(&realm)).await
            }
            _ => self.service.verify(Credential::text(&self.text)).await,
        };
        let answer = verified.map_or_else(|error| format!("{error:?}"), |_| "accepted".to_owned());
        (answer, counts.iter().map(|count| count.load(Ordering::SeqCst)).sum())
    }
}

#[tokio::test]
async fn a_refused_token_that_is_presented_again_costs_no_query() {
    for refused in REFUSED {
        let refusing = Refusing::new(refused).await;
        let (first, calls) = refusing.present(refused).await;
        assert!(calls > 0 && first != "accepted", "{refused:?}: {first} after {calls} calls");
        for _ in 0..5 {
            assert_eq!(refusing.present(refused).await, (first.clone(), 0), "{refused:?}");
            refusing.clock.advance(TimeDelta::milliseconds(900));
        }
    }
}

#[tokio::test]
async fn reuse_costs_a_read_in_a_lifetime_of_the_cache_and_is_told_once_an_hour() {
    for signal in [ReuseSignal::Alert, ReuseSignal::RevokeFamily] {
        let refused = Refused::Rotated(signal);
        let refusing = Refusing::new(refused).await;
        let told = async || {
            let query = EventQuery::new(Realm::default()).token(refusing.id);
            let events = refusing.behind.inner.events(&query).await;
            events.unwrap().events.iter().filter(|event| event.action == AuditAction::Reuse).count()
        };
        refusing.present(refused).await;
        assert_eq!(told().await, 1);
        for minute in 1..60 {
            refusing.clock.advance(TimeDelta::minutes(1));
            let (_, calls) = refusing.present(refused).await;
            // The cached record has expired by then. A family is searched again each minute.
            let expected = if signal == ReuseSignal::Alert { 1 } else { 8 };
            assert_eq!(calls, expected, "{signal:?} after {minute} minutes");
        }
        assert_eq!(told().await, 1);
        refusing.clock.advance(TimeDelta::minutes(1));
        refusing.present(refused).await;
        assert_eq!(told().await, 2, "{signal:?}");
    }
}

#[tokio::test]
async fn a_refused_token_works_again_at_once_when_it_is_restored_here_and_soon_when_elsewhere() {
    for here in [true, false] {
        let world = world();
        let issued = world.issue("a").await;
        world.service.revoke(&ada(), issued.token.id(), Reason::Owner).await.unwrap();
        for _ in 0..2 {
            assert_eq!(world.refusal(&issued).await, Some(RejectReason::Revoked));
        }
        assert_eq!(world.reads(), 1);
        if here {
            world.service.restore(&ada(), issued.token.id()).await.unwrap();
        } else {
            world.elsewhere.restore(&ada(), issued.token.id()).await.unwrap();
            world.clock.advance(TimeDelta::milliseconds(29_999));
            assert_eq!(world.refusal(&issued).await, Some(RejectReason::Revoked), "not yet seen");
            world.clock.advance(TimeDelta::milliseconds(1));
        }
        assert_eq!(world.refusal(&issued).await, None);
    }
}

/// A store whose notifications can be swallowed.
#[derive(Default)]
struct Notifying {
    inner: MemoryStore,
    listeners: Mutex<Vec<UnboundedSender<FeedEvent>>>,
    /// The changed records, which a polling feed returns.
    changed: Mutex<Vec<TokenId>>,
    swallows: AtomicBool,
    /// An event that is sent along with the next probe.
    beside: Mutex<Option<FeedEvent>>,
    probes_fail: AtomicBool,
    polls_fail: AtomicBool,
    has_no_channel: bool,
    is_too_small: bool,
    listened: AtomicUsize,
    polled: AtomicUsize,
}

impl Notifying {
    fn tell(&self, event: &FeedEvent) {
        if !self.swallows.load(Ordering::SeqCst) {
            self.listeners.lock().unwrap().retain(|listener| listener.send(event.clone()).is_ok());
        }
    }
}

/// Shares the store with the test.
///
/// It is a type of its own because the trait cannot be implemented for an `Arc` here.
#[derive(Clone, Default)]
struct Notified(Arc<Notifying>);

enum NotifyingFeed {
    Listens(UnboundedReceiver<FeedEvent>),
    Polls(Arc<Notifying>, usize),
}

impl TokenStore for Notified {
    async fn find(&self, id: TokenId) -> Result<Option<Arc<Token>>, StoreError> {
        self.0.inner.find(id).await
    }

    async fn find_current(&self, id: TokenId) -> Result<Option<Arc<Token>>, StoreError> {
        self.0.inner.find_current(id).await
    }

    async fn list(&self, query: &ListQuery) -> Result<Page, StoreError> {
        self.0.inner.list(query).await
    }

    async fn commit(&self, batch: &ChangeBatch) -> Result<(), StoreError> {
        self.0.inner.commit(batch).await?;
        let ids: Vec<TokenId> = batch.changes.iter().map(Change::id).collect();
        self.0.changed.lock().unwrap().extend(&ids);
        self.0.tell(&FeedEvent::Changed(ids));
        Ok(())
    }

    async fn touch(&self, uses: &[Touch]) -> Result<(), StoreError> {
        self.0.inner.touch(uses).await
    }

    async fn list_ended(&self, before: DateTime<Utc>, limit: usize) -> Result<Page, StoreError> {
        self.0.inner.list_ended(before, limit).await
    }
}

impl ChangeFeed for Notified {
    type Feed = NotifyingFeed;

    fn check_following(&self) -> Result<(), FollowError> {
        if self.0.is_too_small {
            return Err(FollowError::PoolTooSmall { connections: 1, needed: 2 });
        }
        Ok(())
    }

    async fn listen(&self) -> Result<Option<NotifyingFeed>, StoreError> {
        if self.0.has_no_channel {
            return Ok(None);
        }
        self.0.listened.fetch_add(1, Ordering::SeqCst);
        let (sender, receiver) = unbounded_channel();
        self.0.listeners.lock().unwrap().push(sender);
        Ok(Some(NotifyingFeed::Listens(receiver)))
    }

    async fn probe(&self, nonce: u64) -> Result<(), StoreError> {
        if self.0.probes_fail.load(Ordering::SeqCst) {
            return Err(StoreError::unavailable("unplugged"));
        }
        let beside = self.0.beside.lock().unwrap().take();
        if let Some(event) = beside {
            self.0.tell(&event);
        }
        self.0.tell(&FeedEvent::Proven(nonce));
        Ok(())
    }

    async fn poll(&self) -> Result<NotifyingFeed, StoreError> {
        if self.0.polls_fail.load(Ordering::SeqCst) {
            return Err(StoreError::unavailable("unplugged"));
        }
        let seen = self.0.changed.lock().unwrap().len();
        Ok(NotifyingFeed::Polls(self.0.clone(), seen))
    }
}

impl Feed for NotifyingFeed {
    async fn next(&mut self) -> Result<FeedEvent, StoreError> {
        match self {
            Self::Listens(receiver) => {
                receiver.recv().await.ok_or_else(|| StoreError::unavailable("unplugged"))
            }
            Self::Polls(store, seen) => {
                if store.polls_fail.load(Ordering::SeqCst) {
                    return Err(StoreError::unavailable("unplugged"));
                }
                store.polled.fetch_add(1, Ordering::SeqCst);
                let ids = store.changed.lock().unwrap().split_off(*seen);
                store.changed.lock().unwrap().extend(&ids);
                *seen += ids.len();
                Ok(FeedEvent::Changed(ids))
            }
        }
    }
}

/// A cache that follows such a store at 20 times the speed.
struct Followed {
    store: Notified,
    cache: Arc<CachedStore<Notified>>,
    service: TokenService<Arc<CachedStore<Notified>>, MemoryDirectory>,
    elsewhere: TokenService<Notified, MemoryDirectory>,
    runner: tokio::task::JoinHandle<Result<std::convert::Infallible, FollowError>>,
}

impl Followed {
    fn new(store: Notifying) -> Self {
        let store = Notified(Arc::new(store));
        let clock = Arc::new(ManualClock::at(DateTime::UNIX_EPOCH + TimeDelta::days(20_000)));
        let cache = CachedStore::builder(store.clone()).clock(clock.clone()).build().unwrap();
        let cache = Arc::new(cache);
        let following = cache.clone();
        let sleep = |time: Duration| tokio::time::sleep(time / 20);
        let runner = tokio::spawn(async move {
            following.run_following(Duration::from_millis(500), sleep).await
        });
        Self {
            service: service(cache.clone(), clock.clone()),
            elsewhere: service(store.clone(), clock),
            store,
            cache,
            runner,
        }
    }

    async fn until(&self, what: &str, is_so: impl Fn(CacheStats) -> bool) {
        for _ in 0..30_000 {
            if is_so(self.cache.stats()) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        panic!("{what}: {:?}", self.cache.stats());
    }

    /// Returns a token that is in the cache.
    async fn kept(&self) -> IssuedToken {
        let name = format!("token {}", self.store.0.inner.len());
        let issued = self.service.generate(&ada(), NewToken::named(&name)).await.unwrap();
        // Waits until the cache was notified of its own change.
        for _ in 0..10 {
            self.service.verify(Credential::text(issued.plaintext.expose_secret())).await.unwrap();
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        issued
    }

    /// Returns whether a verification is answered without the store.
    async fn is_kept(&self, issued: &IssuedToken) -> bool {
        let reads = self.cache.stats().reads;
        self.service.verify(Credential::text(issued.plaintext.expose_secret())).await.unwrap();
        self.cache.stats().reads == reads
    }

    /// Revokes the token on another node, and returns once the revocation is seen.
    async fn sees(&self, issued: &IssuedToken) {
        self.elsewhere.revoke(&ada(), issued.token.id(), Reason::Owner).await.unwrap();
        for _ in 0..30_000 {
            if self
                .service
                .verify(Credential::text(issued.plaintext.expose_secret()))
                .await
                .is_err()
            {
                return;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        panic!("it is not seen: {:?}", self.cache.stats());
    }
}

impl Drop for Followed {
    fn drop(&mut self) {
        self.runner.abort();
    }
}

#[tokio::test]
async fn a_cache_follows_while_it_is_proven_and_polls_while_it_is_not() {
    let world = Followed::new(Notifying::default());
    world.until("it is not proven", |stats| stats.is_following).await;
    let issued = world.kept().await;
    assert!(world.is_kept(&issued).await);
    world.sees(&issued).await;
    assert_eq!(world.store.0.polled.load(Ordering::SeqCst), 0);

    // From now on, notifications are swallowed, as by a firewall.
    let issued = world.kept().await;
    world.store.0.swallows.store(true, Ordering::SeqCst);
    world.until("it is not found out", |stats| !stats.is_following).await;
    world.until("it does not poll", |stats| stats.is_polling_instead && !stats.is_following).await;
    let other = world.kept().await;
    assert!(world.is_kept(&other).await);
    world.sees(&issued).await;
    world.sees(&other).await;

    // Notifications arrive again. The next attempt to listen notices, and the cache is cleared.
    let issued = world.kept().await;
    world.store.0.swallows.store(false, Ordering::SeqCst);
    world
        .until("it is not proven again", |stats| stats.is_following && !stats.is_polling_instead)
        .await;
    assert!(!world.is_kept(&issued).await);
    world.sees(&issued).await;
}

#[tokio::test]
async fn a_cache_that_is_deaf_from_the_start_never_says_that_it_follows() {
    let world = Followed::new(Notifying { swallows: true.into(), ..Notifying::default() });
    for _ in 0..1_000 {
        assert!(!world.cache.stats().is_following);
        if world.store.0.listened.load(Ordering::SeqCst) > 2 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert!(world.store.0.listened.load(Ordering::SeqCst) > 2, "listening is tried again");
    assert!(world.cache.stats().is_polling_instead);
    let issued = world.kept().await;
    world.sees(&issued).await;
}

#[tokio::test]
async fn probes_of_others_prove_nothing() {
    let world = Followed::new(Notifying { swallows: true.into(), ..Notifying::default() });
    // The probes of another node, which do reach the listeners.
    let store = world.store.clone();
    let others = tokio::spawn(async move {
        for nonce in 0.. {
            let told = FeedEvent::Proven(nonce);
            store
                .0
                .listeners
                .lock()
                .unwrap()
                .retain(|listener| listener.send(told.clone()).is_ok());
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    });
    world.until("it is not found out", |stats| stats.is_polling_instead).await;
    assert!(!world.cache.stats().is_following);
    others.abort();
}

#[tokio::test]
async fn a_store_that_is_down_is_neither_followed_nor_polled_and_tried_again() {
    let world = Followed::new(Notifying { probes_fail: true.into(), ..Notifying::default() });
    let listened = || world.store.0.listened.load(Ordering::SeqCst);
    world.until("it is not tried again", |_| listened() > 3).await;
    let stats = world.cache.stats();
    assert!(!stats.is_following && !stats.is_polling_instead);
    assert_eq!(world.store.0.polled.load(Ordering::SeqCst), 0);
    world.store.0.probes_fail.store(false, Ordering::SeqCst);
    world.until("it is not proven", |stats| stats.is_following).await;
    // The next probe notices the loss, and the cache is cleared at once.
    let issued = world.kept().await;
    world.store.0.probes_fail.store(true, Ordering::SeqCst);
    world.until("the loss is not noticed", |stats| !stats.is_following).await;
    assert!(!world.is_kept(&issued).await);
    // The end of the feed is noticed too.
    world.store.0.probes_fail.store(false, Ordering::SeqCst);
    world.until("it is not proven", |stats| stats.is_following).await;
    let issued = world.kept().await;
    world.store.0.probes_fail.store(true, Ordering::SeqCst);
    world.store.0.listeners.lock().unwrap().clear();
    world.until("the loss is not noticed", |stats| !stats.is_following).await;
    assert!(!world.is_kept(&issued).await);
}

#[tokio::test]
async fn a_store_without_notifications_is_polled_and_that_is_following() {
    let world = Followed::new(Notifying { has_no_channel: true, ..Notifying::default() });
    world
        .until("it does not follow", |stats| stats.is_following && !stats.is_polling_instead)
        .await;
    let issued = world.kept().await;
    assert!(world.is_kept(&issued).await);
    world.sees(&issued).await;
    let issued = world.kept().await;
    world.store.0.polls_fail.store(true, Ordering::SeqCst);
    world.until("the loss is not noticed", |stats| !stats.is_following).await;
    assert!(!world.is_kept(&issued).await);
    world.store.0.polls_fail.store(false, Ordering::SeqCst);
    world.until("it does not follow again", |stats| stats.is_following).await;
    world.runner.abort();
    world.until("somebody follows", |stats| !stats.is_following).await;
}

/// Neither kind of event is lost if it arrives while the cache waits for a probe.
#[tokio::test]
async fn what_is_told_beside_a_probe_is_followed() {
    let world = Followed::new(Notifying::default());
    world.until("it is not proven", |stats| stats.is_following).await;
    let (changed, missed) = (world.kept().await, world.kept().await);
    *world.store.0.beside.lock().unwrap() = Some(FeedEvent::Changed(vec![changed.token.id()]));
    world.until("it is not probed", |_| world.store.0.beside.lock().unwrap().is_none()).await;
    tokio::time::sleep(Duration::from_millis(20)).await;
    assert!(world.is_kept(&missed).await);
    assert!(!world.is_kept(&changed).await);
    *world.store.0.beside.lock().unwrap() = Some(FeedEvent::Missed);
    world.until("it is not probed", |_| world.store.0.beside.lock().unwrap().is_none()).await;
    tokio::time::sleep(Duration::from_millis(20)).await;
    assert!(!world.is_kept(&missed).await && !world.is_kept(&changed).await);
    assert!(world.cache.stats().is_following);
}

#[tokio::test]
async fn a_store_that_cannot_be_followed_is_refused_at_once() {
    let store = Notified(Arc::new(Notifying { is_too_small: true, ..Notifying::default() }));
    let cache = CachedStore::builder(store.clone()).build().unwrap();
    let following = cache.run_following(Duration::from_millis(500), tokio::time::sleep);
    let Err(error) = tokio::time::timeout(Duration::from_secs(5), following).await.unwrap();
    assert_eq!(error, FollowError::PoolTooSmall { connections: 1, needed: 2 });
    assert!(error.to_string().contains("at most 1 connection"), "{error}");
    assert_eq!(store.0.listened.load(Ordering::SeqCst), 0);
}

#[tokio::test]
async fn what_the_host_prunes_or_erases_is_forgotten() {
    for erases in [false, true] {
        let world = world();
        let (revoked, expired) = (world.issue("a").await, NewToken::named("b").expires_in_days(1));
        let expired = world.service.generate(&ada(), expired).await.unwrap();
        world.service.revoke(&ada(), revoked.token.id(), Reason::Owner).await.unwrap();
        world.clock.advance(TimeDelta::days(1));
        assert_eq!(world.refusal(&revoked).await, Some(RejectReason::Revoked));
        assert_eq!(world.refusal(&expired).await, Some(RejectReason::Expired));
        let removed = if erases {
            world.service.erase_owner(&Realm::default(), &OwnerId::new("ada").unwrap()).await
        } else {
            world.service.prune(Duration::ZERO).await
        };
        assert_eq!(removed.unwrap(), 2);
        for issued in [&revoked, &expired] {
            assert_eq!(
                world.refusal(issued).await,
                Some(RejectReason::Unknown),
                "erased: {erases}"
            );
        }
    }
}

/// Revokes on one thread and verifies on others.
#[test]
fn no_verification_that_starts_after_a_revocation_here_was_acknowledged_succeeds() {
    let clock = Arc::new(ManualClock::at(DateTime::UNIX_EPOCH + TimeDelta::days(20_000)));
    let cache =
        Arc::new(CachedStore::builder(MemoryStore::new()).clock(clock.clone()).build().unwrap());
    let service = service(cache, clock);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    for round in 0..300 {
        let new = NewToken::named(&format!("token {round}"));
        let issued = runtime.block_on(service.generate(&ada(), new)).unwrap();
        let revoked = AtomicBool::new(false);
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    loop {
                        let was_revoked = revoked.load(Ordering::SeqCst);
                        let verified = runtime.block_on(
                            service.verify(Credential::text(issued.plaintext.expose_secret())),
                        );
                        assert!(!(was_revoked && verified.is_ok()), "round {round}");
                        if was_revoked {
                            return;
                        }
                    }
                });
            }
            let id = issued.token.id();
            runtime.block_on(service.revoke(&ada(), id, Reason::Owner)).unwrap();
            revoked.store(true, Ordering::SeqCst);
        });
    }
}

#[allow(dead_code, reason = "asserted when compiled")]
fn it_can_be_sent(cache: &CachedStore<MemoryStore>) {
    fn assert_send<T: Send>(_: T) {}
    assert_send(cache.find(TokenId::from_bytes([0; 16]).unwrap()));
    let _: fn(&Token, &dyn Clock) = |_, _| ();
}
