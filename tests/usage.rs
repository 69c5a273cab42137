//! The writes of verification: last uses and audited refusals, and how they reach the store.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::arithmetic_side_effects,
    clippy::indexing_slicing
)]

use chrono::{DateTime, TimeDelta, Utc};
use patkit::audit::AuditAction;
use patkit::random::{RandomError, SecureRandom};
use patkit::service::{BuildError, RejectReason, TokenServiceBuilder};
use patkit::store::{ChangeBatch, ListQuery, Page, Touch};
use patkit::token::{ActorRef, LastUse};
use patkit::{
    Actor, AuditEvent, Credential, IssuedToken, MemoryDirectory, MemoryStore, NewToken, Reason,
    StoreError, Token, TokenId, TokenPolicy, TokenService, TokenStore,
};
use std::collections::HashSet;
use std::net::IpAddr;
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;
use support::{World, home, ready, session, start};

/// The store of a world, which records each batch of last uses, and can fail or wait.
struct Watched {
    inner: Arc<MemoryStore>,
    batches: Mutex<Vec<Vec<Touch>>>,
    commits: AtomicUsize,
    down: AtomicBool,
    /// Writes wait before they act.
    waits: AtomicBool,
    /// The next commit is done but returns `OutcomeUnknown`.
    unknown: AtomicBool,
}

impl Watched {
    async fn enter(&self) -> Result<(), StoreError> {
        let wait = |_: &mut Context<'_>| {
            if self.waits.load(Ordering::SeqCst) { Poll::Pending } else { Poll::Ready(()) }
        };
        std::future::poll_fn(wait).await;
        if self.down.load(Ordering::SeqCst) {
            Err(StoreError::unavailable("read-only"))
        } else {
            Ok(())
        }
    }

    /// Returns the sizes of the batches since the last call.
    fn sizes(&self) -> Vec<usize> {
        self.batches.lock().unwrap().drain(..).map(|batch| batch.len()).collect()
    }
}

impl TokenStore for Watched {
    async fn find(&self, id: TokenId) -> Result<Option<Arc<Token>>, StoreError> {
        self.inner.find(id).await
    }

    async fn find_current(&self, id: TokenId) -> Result<Option<Arc<Token>>, StoreError> {
        self.find(id).await
    }

    async fn list(&self, query: &ListQuery) -> Result<Page, StoreError> {
        self.inner.list(query).await
    }

    async fn commit(&self, batch: &ChangeBatch) -> Result<(), StoreError> {
        self.commits.fetch_add(1, Ordering::SeqCst);
        self.enter().await?;
        self.inner.commit(batch).await?;
        if self.unknown.swap(false, Ordering::SeqCst) {
            return Err(StoreError::OutcomeUnknown("the connection was lost".into()));
        }
        Ok(())
    }

    async fn touch(&self, uses: &[Touch]) -> Result<(), StoreError> {
        self.batches.lock().unwrap().push(uses.to_vec());
        self.enter().await?;
        self.inner.touch(uses).await
    }

    async fn list_ended(&self, before: DateTime<Utc>, limit: usize) -> Result<Page, StoreError> {
        self.inner.list_ended(before, limit).await
    }
}

type Service = TokenService<Arc<Watched>, Arc<MemoryDirectory>>;
type Builder = TokenServiceBuilder<Arc<Watched>, Arc<MemoryDirectory>>;

/// Returns a world with a service over its watched store.
fn watched(more: impl FnOnce(Builder) -> Builder) -> (World, Service) {
    let world = World::new();
    let store = Watched {
        inner: world.store.clone(),
        batches: Mutex::default(),
        commits: AtomicUsize::new(0),
        down: AtomicBool::new(false),
        waits: AtomicBool::new(false),
        unknown: AtomicBool::new(false),
    };
    let builder = TokenService::builder(Arc::new(store), world.directory.clone()).brand("acme");
    let keys = "1:AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";
    let builder =
        builder.keyring(patkit::Keyring::from_text(keys).unwrap()).clock(world.clock.clone());
    let service = more(builder.audit_sink(world.heard.clone())).build().unwrap();
    (world, service)
}

fn granularity(seconds: u64) -> impl FnOnce(Builder) -> Builder {
    let policy =
        TokenPolicy::builder().last_used_granularity(Duration::from_secs(seconds)).build().unwrap();
    move |builder| builder.policy(policy)
}

fn plain() -> (World, Service) {
    watched(|builder| builder)
}

fn use_from(service: &Service, issued: &IssuedToken, peer: Option<&str>) {
    let peer = peer.map(|peer| peer.parse().unwrap());
    ready(service.verify(Credential::text(issued.plaintext.expose_secret()).from_address(peer)))
        .unwrap();
}

fn use_it(service: &Service, issued: &IssuedToken) {
    use_from(service, issued, None);
}

fn use_all(service: &Service, tokens: &[IssuedToken]) {
    for issued in tokens {
        use_it(service, issued);
    }
}

fn refuse(service: &Service, issued: &IssuedToken) -> RejectReason {
    let result = ready(service.verify(Credential::text(issued.plaintext.expose_secret())));
    result.unwrap_err().reject_reason().unwrap()
}

fn flush(service: &Service) {
    ready(service.flush()).unwrap();
}

fn last_used(world: &World, issued: &IssuedToken) -> Option<LastUse> {
    world.stored(issued.token.id()).last_used
}

fn used_at(world: &World, issued: &IssuedToken) -> Option<DateTime<Utc>> {
    last_used(world, issued).map(|used| used.at)
}

fn many(world: &World, count: usize) -> Vec<IssuedToken> {
    (0..count)
        .map(|number| world.issue("ann", NewToken::named(&format!("token {number}"))))
        .collect()
}

fn one(world: &World) -> IssuedToken {
    world.issue("ann", NewToken::named("one"))
}

fn after(seconds: i64) -> DateTime<Utc> {
    start() + TimeDelta::seconds(seconds)
}

#[test]
fn a_success_is_recorded_with_its_time_and_address_and_moves_no_version() {
    let (world, service) = plain();
    let issued = one(&world);
    assert_eq!(last_used(&world, &issued), None);
    world.advance(TimeDelta::microseconds(1_234_567));
    use_from(&service, &issued, Some("2001:db8::7"));
    assert_eq!(service.usage().pending, 1);
    assert_eq!(last_used(&world, &issued), None, "nothing is written by the request itself");
    let before = world.stored(issued.token.id());
    let events = world.events().len();
    flush(&service);
    let stored = world.stored(issued.token.id());
    let address: Option<IpAddr> = Some("2001:db8::7".parse().unwrap());
    assert_eq!(
        stored.last_used,
        Some(LastUse::new(start() + TimeDelta::microseconds(1_234_567), address))
    );
    assert_eq!(*stored, Token { last_used: stored.last_used, ..Token::clone(&before) });
    assert_eq!((service.usage().pending, world.events().len()), (0, events));
    flush(&service);
    assert_eq!(service.store().sizes(), [1], "and once");
    let view = ready(service.get(&session("ann"), issued.token.id())).unwrap();
    assert_eq!(view.last_used(), stored.last_used);
}

#[test]
fn no_refusal_is_recorded() {
    let (world, service) = plain();
    let new = |name| NewToken::named(name);
    let revoked = world.issue("ann", new("revoked"));
    let expired = world.issue("ann", new("expired").expires_in_days(1));
    let inside = world.issue("ann", new("inside").networks(["10.0.0.0/8"]));
    let disabled = world.issue("bob", new("disabled"));
    let reused = world.issue("mia", new("reused"));
    let missing = world.issue("ada", new("missing"));
    let kind = world.issue("bot", new("kind"));
    ready(service.revoke(&Actor::system(), revoked.token.id(), Reason::System)).unwrap();
    world.advance(TimeDelta::days(1));
    world.put("bob", |bob| bob.with_enabled(false));
    world.put("mia", |mia| mia.with_tokens_valid_after(world.now()));
    world.directory.remove(&home(), &support::id("ada"));
    world.directory.put(patkit::Owner::new(support::id("bot"), patkit::OwnerKind::Human));
    for (issued, expected) in [
        (&revoked, RejectReason::Revoked),
        (&expired, RejectReason::Expired),
        (&inside, RejectReason::AddressNotAllowed),
        (&disabled, RejectReason::OwnerDisabled),
        (&reused, RejectReason::BeforeValidAfter),
        (&missing, RejectReason::OwnerUnknown),
        (&kind, RejectReason::OwnerKind),
    ] {
        assert_eq!(refuse(&service, issued), expected);
    }
    assert!(ready(service.verify(Credential::text("acme_pat_"))).is_err());
    assert!(ready(service.verify(Credential::headers(None::<&str>))).is_err());
    assert_eq!(service.usage().pending, 0);
    flush(&service);
    assert!(service.store().sizes().is_empty());
    assert!(world.tokens().iter().all(|token| token.last_used.is_none()));
}

#[test]
fn uses_within_the_granularity_are_one() {
    let (world, service) = plain();
    let issued = one(&world);
    let mut written = 0;
    for _ in 0..600 {
        use_it(&service, &issued);
        use_it(&service, &issued);
        assert!(service.usage().pending <= 1);
        flush(&service);
        written += service.store().sizes().iter().sum::<usize>();
        world.advance(TimeDelta::seconds(1));
    }
    assert_eq!(written, 10, "600 s of uses, once in 60 s");
    assert_eq!(used_at(&world, &issued), Some(after(540)));
}

#[test]
fn a_granularity_without_end_notes_the_first_use_alone() {
    let (world, service) = watched(granularity(u64::MAX));
    let issued = one(&world);
    for _ in 0..3 {
        use_it(&service, &issued);
        flush(&service);
        world.advance(TimeDelta::days(10));
    }
    assert_eq!(used_at(&world, &issued), Some(after(0)));
    assert_eq!(ready(service.sweep_idle()).unwrap(), 0);
}

#[test]
fn the_granularity_counts_from_the_use_that_is_known() {
    let (world, service) = watched(granularity(60));
    let issued = one(&world);
    world.clock.set(after(30));
    use_it(&service, &issued);
    flush(&service);
    for (second, known) in [(60, 30), (89, 30), (90, 90), (149, 90), (150, 150)] {
        world.clock.set(after(second));
        use_it(&service, &issued);
        flush(&service);
        assert_eq!(used_at(&world, &issued), Some(after(known)), "at {second} s");
    }
}

#[test]
fn what_waits_is_one_entry_per_token_however_often_it_is_used() {
    let (world, service) = plain();
    let tokens = many(&world, 3);
    for second in 0..200 {
        world.clock.set(after(second));
        use_all(&service, &tokens);
    }
    assert_eq!(service.usage().pending, 3);
    flush(&service);
    assert_eq!(service.store().sizes(), [3]);
    for issued in &tokens {
        let used = used_at(&world, issued).unwrap();
        assert!(used > after(199 - 60), "{used}");
    }
}

#[test]
fn without_granularity_every_use_counts() {
    let (world, service) = watched(granularity(0));
    let issued = one(&world);
    for micros in 0..5 {
        world.clock.set(start() + TimeDelta::microseconds(micros));
        use_it(&service, &issued);
        flush(&service);
        assert_eq!(used_at(&world, &issued), Some(world.now()));
    }
    assert_eq!(service.store().sizes(), [1; 5]);
}

#[test]
fn the_time_of_the_last_use_never_goes_back() {
    for seconds in [0, 60] {
        let (world, service) = watched(granularity(seconds));
        let issued = one(&world);
        world.clock.set(after(7_200));
        use_it(&service, &issued);
        for back in [7_199, 3_600, 0, 7_200 - 86_400] {
            world.clock.set(after(back));
            use_from(&service, &issued, Some("192.0.2.9"));
        }
        flush(&service);
        assert_eq!(last_used(&world, &issued), Some(LastUse::new(after(7_200), None)));
        world.clock.set(after(3_600));
        use_it(&service, &issued);
        flush(&service);
        assert_eq!(used_at(&world, &issued), Some(after(7_200)));
        world.clock.set(after(7_260));
        use_it(&service, &issued);
        flush(&service);
        assert_eq!(used_at(&world, &issued), Some(after(7_260)));
    }
}

#[test]
fn two_services_write_the_later_of_their_uses_whoever_flushes_last() {
    let (world, late) = plain();
    let issued = one(&world);
    let early = world.under(TokenPolicy::default());
    ready(
        early.verify(
            Credential::text(issued.plaintext.expose_secret())
                .from_address(Some([192, 0, 2, 1].into())),
        ),
    )
    .unwrap();
    world.clock.set(after(300));
    use_from(&late, &issued, Some("192.0.2.2"));
    flush(&late);
    ready(early.flush()).unwrap();
    assert_eq!(
        last_used(&world, &issued),
        Some(LastUse::new(after(300), Some([192, 0, 2, 2].into())))
    );
}

#[test]
fn a_batch_is_one_call_of_the_store_for_a_thousand_tokens_at_most() {
    let (world, service) = plain();
    let tokens = many(&world, 2_001);
    use_all(&service, &tokens);
    assert_eq!(service.usage().pending, 2_001);
    flush(&service);
    let batches = std::mem::take(&mut *service.store().batches.lock().unwrap());
    assert_eq!(batches.iter().map(Vec::len).collect::<Vec<_>>(), [1_000, 1_000, 1]);
    let ids: HashSet<TokenId> = batches.iter().flatten().map(|touch| touch.id).collect();
    assert_eq!(ids.len(), 2_001, "each once");
    assert!(world.tokens().iter().all(|token| token.last_used.is_some()));
    use_all(&service, &tokens[..1_000]);
    flush(&service);
    assert!(service.store().sizes().is_empty());
}

#[test]
fn a_flush_that_fails_keeps_what_it_held_and_the_next_one_writes_it() {
    let (world, service) = plain();
    let tokens = many(&world, 1_500);
    use_all(&service, &tokens);
    service.store().down.store(true, Ordering::SeqCst);
    for failed in 1..=3 {
        assert!(ready(service.flush()).is_err());
        let usage = service.usage();
        assert_eq!((usage.pending, usage.dropped, usage.failed_flushes), (1_500, 0, failed));
    }
    world.clock.set(after(120));
    use_it(&service, &tokens[0]);
    assert!(ready(service.flush()).is_err());
    service.store().sizes();
    service.store().down.store(false, Ordering::SeqCst);
    flush(&service);
    assert_eq!(service.store().sizes(), [1_000, 500]);
    assert_eq!(service.usage().pending, 0);
    assert_eq!(used_at(&world, &tokens[0]), Some(after(120)), "the later one");
    assert_eq!(used_at(&world, &tokens[1]), Some(start()));
}

#[test]
fn what_comes_over_the_cap_is_counted_and_the_rest_is_kept() {
    let (world, service) = watched(|builder| builder.pending_cap(3));
    let tokens = many(&world, 5);
    service.store().down.store(true, Ordering::SeqCst);
    use_all(&service, &tokens);
    let usage = service.usage();
    assert_eq!((usage.pending, usage.dropped), (3, 2));
    world.clock.set(after(60));
    use_it(&service, &tokens[0]);
    assert_eq!(service.usage().dropped, 2, "one that waits already takes no more room");
    assert!(ready(service.flush()).is_err());
    assert_eq!(service.usage().pending, 3);
    use_it(&service, &tokens[4]);
    assert_eq!(service.usage().dropped, 3);
    service.store().down.store(false, Ordering::SeqCst);
    flush(&service);
    let used = tokens.iter().map(|issued| used_at(&world, issued)).collect::<Vec<_>>();
    assert_eq!(used, [Some(after(60)), Some(start()), Some(start()), None, None]);
    use_it(&service, &tokens[4]);
    flush(&service);
    assert_eq!(
        used_at(&world, &tokens[4]),
        Some(after(60)),
        "what was dropped is not held against it"
    );
}

#[test]
fn a_flush_that_is_dropped_half_way_keeps_what_it_held() {
    let (world, service) = plain();
    let tokens = many(&world, 1_200);
    use_all(&service, &tokens);
    service.store().waits.store(true, Ordering::SeqCst);
    {
        let mut flushing = pin!(service.flush());
        assert!(poll(flushing.as_mut(), Waker::noop()).is_pending());
        assert_eq!(service.usage().pending, 200, "a batch is on its way");
        world.clock.set(after(60));
        use_it(&service, &tokens[7]);
    }
    assert_eq!(service.usage().pending, 1_200);
    service.store().waits.store(false, Ordering::SeqCst);
    flush(&service);
    assert_eq!(service.usage().pending, 0);
    assert!(world.tokens().iter().all(|token| token.last_used.is_some()));
    assert_eq!(
        used_at(&world, &tokens[7]),
        Some(after(60)),
        "what came in meanwhile is not undone"
    );
}

#[test]
fn a_use_of_a_token_that_is_gone_holds_nothing_up() {
    let (world, service) = plain();
    let tokens = many(&world, 2);
    use_all(&service, &tokens);
    ready(service.revoke(&session("ann"), tokens[0].token.id(), Reason::Owner)).unwrap();
    ready(service.delete(&session("ann"), tokens[0].token.id())).unwrap();
    flush(&service);
    assert!(world.find(tokens[0].token.id()).is_none());
    assert_eq!(used_at(&world, &tokens[1]), Some(start()));
}

fn poll<T>(future: Pin<&mut impl Future<Output = T>>, waker: &Waker) -> Poll<T> {
    future.poll(&mut Context::from_waker(waker))
}

/// Counts its wake-ups.
#[derive(Default)]
struct Woken(AtomicUsize);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

/// A sleep that lasts until the bell rings, and that records the requested durations.
#[derive(Default)]
struct Bell {
    rung: AtomicUsize,
    asked: Mutex<Vec<Duration>>,
}

impl Bell {
    fn sleep(&self, duration: Duration) -> impl Future<Output = ()> + Send + '_ {
        self.asked.lock().unwrap().push(duration);
        let take = |_: &mut Context<'_>| {
            let less = self
                .rung
                .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |rung| rung.checked_sub(1));
            if less.is_ok() { Poll::Ready(()) } else { Poll::Pending }
        };
        std::future::poll_fn(take)
    }

    fn ring(&self) {
        self.rung.fetch_add(1, Ordering::SeqCst);
    }
}

#[test]
fn the_flusher_flushes_at_each_turn_and_goes_on_after_a_failure() {
    let interval = Duration::from_millis(1_500);
    let (world, service) = watched(|builder| builder.flush_interval(interval));
    let issued = one(&world);
    let bell = Bell::default();
    let mut flusher = pin!(service.run_flusher(|duration| bell.sleep(duration)));
    use_it(&service, &issued);
    assert!(poll(flusher.as_mut(), Waker::noop()).is_pending());
    assert_eq!(service.usage().pending, 1, "not before the first turn");
    bell.ring();
    assert!(poll(flusher.as_mut(), Waker::noop()).is_pending());
    assert_eq!(used_at(&world, &issued), Some(start()));

    service.store().down.store(true, Ordering::SeqCst);
    world.clock.set(after(60));
    use_it(&service, &issued);
    bell.ring();
    assert!(poll(flusher.as_mut(), Waker::noop()).is_pending());
    assert_eq!((service.usage().failed_flushes, service.usage().pending), (1, 1));
    service.store().down.store(false, Ordering::SeqCst);
    bell.ring();
    assert!(poll(flusher.as_mut(), Waker::noop()).is_pending());
    assert_eq!(used_at(&world, &issued), Some(after(60)));
    assert_eq!(*bell.asked.lock().unwrap(), [interval; 4]);
}

#[test]
fn a_shutdown_flushes_and_ends_a_flusher_that_sleeps_at_once() {
    let (world, service) = plain();
    let issued = one(&world);
    let bell = Bell::default();
    let woken = Arc::new(Woken::default());
    let waker = Waker::from(woken.clone());
    let mut flusher = pin!(service.run_flusher(|duration| bell.sleep(duration)));
    assert!(poll(flusher.as_mut(), &waker).is_pending());
    use_it(&service, &issued);
    ready(service.shutdown()).unwrap();
    assert_eq!((used_at(&world, &issued), service.usage().pending), (Some(start()), 0));
    assert!(woken.0.load(Ordering::SeqCst) > 0, "the flusher is woken in its sleep");
    assert!(poll(flusher.as_mut(), &waker).is_ready());
    assert_eq!(bell.asked.lock().unwrap().len(), 1);
    ready(service.run_flusher(|duration| bell.sleep(duration)));
    assert_eq!(bell.asked.lock().unwrap().len(), 1, "a flusher that comes too late does not begin");
    world.clock.set(after(60));
    use_it(&service, &issued);
    ready(service.shutdown()).unwrap();
    assert_eq!(used_at(&world, &issued), Some(after(60)), "and once more");
}

#[test]
fn a_shutdown_over_a_store_that_hangs_ends_the_flusher_all_the_same() {
    let (world, service) = plain();
    let issued = one(&world);
    let bell = Bell::default();
    let woken = Arc::new(Woken::default());
    let waker = Waker::from(woken.clone());
    let mut flusher = pin!(service.run_flusher(|duration| bell.sleep(duration)));
    assert!(poll(flusher.as_mut(), &waker).is_pending());
    use_it(&service, &issued);
    service.store().waits.store(true, Ordering::SeqCst);
    let mut shutdown = pin!(service.shutdown());
    assert!(poll(shutdown.as_mut(), Waker::noop()).is_pending());
    assert!(woken.0.load(Ordering::SeqCst) > 0);
}

#[test]
fn a_shutdown_waits_for_the_flush_that_is_under_way() {
    let (world, service) = plain();
    let tokens = many(&world, 2);
    let bell = Bell::default();
    let woken = Arc::new(Woken::default());
    let waker = Waker::from(woken.clone());
    use_it(&service, &tokens[0]);
    service.store().waits.store(true, Ordering::SeqCst);
    let mut flusher = pin!(service.run_flusher(|duration| bell.sleep(duration)));
    bell.ring();
    assert!(poll(flusher.as_mut(), Waker::noop()).is_pending());
    assert_eq!(service.usage().pending, 0, "it is on its way");
    let mut shutdown = pin!(service.shutdown());
    assert!(poll(shutdown.as_mut(), &waker).is_pending());
    assert!(poll(shutdown.as_mut(), &waker).is_pending());
    use_it(&service, &tokens[1]);
    service.store().waits.store(false, Ordering::SeqCst);
    let before = woken.0.load(Ordering::SeqCst);
    assert!(poll(flusher.as_mut(), Waker::noop()).is_ready(), "it ends after the flush under way");
    assert!(woken.0.load(Ordering::SeqCst) > before, "whoever waits for it is woken");
    let Poll::Ready(Ok(())) = poll(shutdown.as_mut(), &waker) else { panic!("not shut down") };
    for issued in &tokens {
        assert_eq!(used_at(&world, issued), Some(start()));
    }
}

#[test]
fn a_shutdown_waits_for_no_flush_that_was_dropped_and_writes_what_it_held() {
    let (world, service) = plain();
    let issued = one(&world);
    use_it(&service, &issued);
    service.store().waits.store(true, Ordering::SeqCst);
    let woken = Arc::new(Woken::default());
    let waker = Waker::from(woken.clone());
    let mut shutdown = pin!(service.shutdown());
    {
        let mut flushing = pin!(service.flush());
        assert!(poll(flushing.as_mut(), Waker::noop()).is_pending());
        assert!(poll(shutdown.as_mut(), &waker).is_pending());
        service.store().waits.store(false, Ordering::SeqCst);
    }
    assert!(woken.0.load(Ordering::SeqCst) > 0);
    let Poll::Ready(Ok(())) = poll(shutdown.as_mut(), &waker) else { panic!("not shut down") };
    assert_eq!(used_at(&world, &issued), Some(start()));
}

#[test]
fn a_shutdown_over_a_store_that_is_down_says_so_and_does_not_hang() {
    let (world, service) = plain();
    let issued = one(&world);
    use_it(&service, &issued);
    service.store().down.store(true, Ordering::SeqCst);
    assert!(ready(service.shutdown()).is_err());
    service.store().down.store(false, Ordering::SeqCst);
    ready(service.shutdown()).unwrap();
    assert_eq!(used_at(&world, &issued), Some(start()));
}

#[test]
fn bounds() {
    let build = |interval, cap| {
        World::built(|builder| builder.flush_interval(interval).pending_cap(cap)).map(drop)
    };
    let (short, long) = (Duration::from_millis(1), Duration::from_secs(3_600));
    assert_eq!(build(short, 1), Ok(()));
    assert_eq!(build(long, usize::MAX), Ok(()));
    assert_eq!(build(Duration::from_micros(999), 1), Err(BuildError::FlushInterval));
    assert_eq!(build(long + Duration::from_nanos(1), 1), Err(BuildError::FlushInterval));
    assert_eq!(build(Duration::ZERO, 1), Err(BuildError::FlushInterval));
    assert_eq!(build(short, 0), Err(BuildError::PendingCap));
}

fn refusals(events: Vec<AuditEvent>) -> Vec<AuditEvent> {
    events.into_iter().filter(|event| event.action == AuditAction::Refused).collect()
}

fn stored_refusals(world: &World) -> Vec<AuditEvent> {
    refusals(world.events_in(&home()))
}

fn revoked(world: &World) -> IssuedToken {
    revoked_named(world, "one")
}

fn revoked_named(world: &World, name: &str) -> IssuedToken {
    let issued = world.issue("ann", NewToken::named(name));
    ready(world.service.revoke(&Actor::system(), issued.token.id(), Reason::System)).unwrap();
    world.heard.take();
    issued
}

#[test]
fn a_refusal_of_a_known_token_is_told_at_once_and_stored_with_the_next_flush() {
    let (world, service) = watched(|builder| builder.audit_refusals(1));
    let issued = revoked(&world);
    let told = |count: usize| assert_eq!(refusals(world.heard.all()).len(), count);
    for expected in 1..=3 {
        world.advance(TimeDelta::seconds(1));
        let peer = Some([192, 0, 2, 1].into());
        assert!(
            ready(
                service
                    .verify(Credential::text(issued.plaintext.expose_secret()).from_address(peer))
            )
            .is_err()
        );
        told(expected);
        assert!(
            ready(service.verify(Credential::text("acme_pat_"))).is_err(),
            "no token, no event"
        );
        told(expected);
    }
    assert!(stored_refusals(&world).is_empty(), "nothing is written by the request itself");
    flush(&service);
    let stored = stored_refusals(&world);
    assert_eq!(stored, refusals(world.heard.take()), "the same events, told once");
    assert_eq!(
        stored.iter().map(|event| event.at).collect::<Vec<_>>(),
        [after(1), after(2), after(3)]
    );
    assert_eq!(stored[0].reason.as_deref(), Some("revoked"));
    assert_eq!(stored[0].address, Some([192, 0, 2, 1].into()));
    assert_eq!(stored[0].token, issued.token.id());
    assert!(matches!(&stored[0].actor, ActorRef::Token { id, .. } if *id == issued.token.id()));
    flush(&service);
    assert_eq!(stored_refusals(&world).len(), 3, "stored once");
    told(0);
}

/// A generator that returns these numbers in turn, or fails if there are none.
struct Drawn(Vec<u64>, AtomicUsize);

impl SecureRandom for Drawn {
    fn fill(&self, buffer: &mut [u8]) -> Result<(), RandomError> {
        let turn = self.1.fetch_add(1, Ordering::SeqCst);
        let number = self.0.get(turn % self.0.len().max(1)).ok_or(RandomError::new())?;
        buffer.copy_from_slice(&number.to_ne_bytes());
        Ok(())
    }
}

#[test]
fn refusals_are_sampled_at_random_whatever_is_refused_between_them() {
    // Decoys in between gain an attacker nothing, because each refusal is sampled on its own.
    let (world, service) = watched(|builder| builder.audit_refusals(4));
    let (mine, decoy) = (revoked(&world), revoked_named(&world, "decoy"));
    let turns = 2_000;
    for _ in 0..turns {
        refuse(&service, &mine);
        (0..3).for_each(|_| assert_eq!(refuse(&service, &decoy), RejectReason::Revoked));
    }
    let told = refusals(world.heard.take());
    let of =
        |issued: &IssuedToken| told.iter().filter(|event| event.token == issued.token.id()).count();
    // A quarter of each, within seven standard deviations.
    assert!((360..=640).contains(&of(&mine)), "{}", of(&mine));
    assert!((1_260..=1_740).contains(&of(&decoy)), "{}", of(&decoy));

    for (drawn, expected) in [(vec![0, 5, 8, 7], 2), (vec![1], 0), (vec![4], 4), (vec![], 4)] {
        let random = Drawn(drawn.clone(), AtomicUsize::new(0));
        let (world, service) = watched(|builder| builder.audit_refusals(4).random(random));
        let issued = revoked(&world);
        (0..4).for_each(|_| assert_eq!(refuse(&service, &issued), RejectReason::Revoked));
        assert_eq!(refusals(world.heard.take()).len(), expected, "{drawn:?}");
    }
}

#[test]
fn no_refusal_is_audited_unless_the_host_asks_for_it_and_no_success_ever_is() {
    let (world, service) = plain();
    let issued = revoked(&world);
    (0..10).for_each(|_| assert_eq!(refuse(&service, &issued), RejectReason::Revoked));
    flush(&service);
    assert!(world.heard.take().is_empty() && stored_refusals(&world).is_empty());

    let (world, service) = watched(|builder| builder.audit_refusals(1));
    let issued = revoked(&world);
    let good = world.issue("ann", NewToken::named("good"));
    use_it(&service, &good);
    flush(&service);
    assert!(world.heard.take().is_empty());
    assert_eq!(refuse(&service, &issued), RejectReason::Revoked);
    assert_eq!(refusals(world.heard.take()).len(), 1);
}

#[test]
fn refusals_that_cannot_be_stored_wait_and_are_stored_once_and_told_once() {
    let (world, service) = watched(|builder| builder.audit_refusals(1));
    let issued = revoked(&world);
    (0..3).for_each(|_| assert_eq!(refuse(&service, &issued), RejectReason::Revoked));
    service.store().down.store(true, Ordering::SeqCst);
    assert!(ready(service.flush()).is_err());
    assert!(ready(service.flush()).is_err());
    assert_eq!(refuse(&service, &issued), RejectReason::Revoked);
    service.store().down.store(false, Ordering::SeqCst);
    service.store().waits.store(true, Ordering::SeqCst);
    {
        let mut flushing = pin!(service.flush());
        assert!(poll(flushing.as_mut(), Waker::noop()).is_pending());
    }
    service.store().waits.store(false, Ordering::SeqCst);
    flush(&service);
    flush(&service);
    assert_eq!(stored_refusals(&world).len(), 4);
    assert_eq!(refusals(world.heard.take()).len(), 4);

    assert_eq!(refuse(&service, &issued), RejectReason::Revoked);
    service.store().unknown.store(true, Ordering::SeqCst);
    assert!(ready(service.flush()).is_err());
    flush(&service);
    assert_eq!(stored_refusals(&world).len(), 5, "what may have been stored is not stored again");
}

#[test]
fn a_flood_of_refusals_is_kept_up_to_a_cap_and_the_rest_is_counted() {
    let (world, service) = watched(|builder| builder.audit_refusals(1));
    let issued = revoked(&world);
    (0..10_007).for_each(|_| assert_eq!(refuse(&service, &issued), RejectReason::Revoked));
    assert_eq!(service.usage().dropped, 7);
    flush(&service);
    assert_eq!(stored_refusals(&world).len(), 10_000);
    assert_eq!(refuse(&service, &issued), RejectReason::Revoked);
    flush(&service);
    assert_eq!(stored_refusals(&world).len(), 10_001);
}

fn idle_policy(builder: Builder) -> Builder {
    builder.policy(TokenPolicy::builder().idle_limit_days(30).build().unwrap())
}

#[test]
fn a_use_that_a_wrong_clock_noted_does_not_hold_up_the_sweep() {
    for century in [TimeDelta::days(36_525), TimeDelta::days(62)] {
        let (world, service) = watched(idle_policy);
        let eternal = |name| world.issue("ann", NewToken::named(name).never_expires());
        let (used, forgotten) = (eternal("used"), eternal("forgotten"));
        world.clock.set(start() + century);
        use_it(&service, &used);
        use_it(&service, &forgotten);
        flush(&service);
        assert_eq!(used_at(&world, &forgotten), Some(start() + century));
        // The clock is right again, and one of the tokens stays in use.
        world.clock.set(after(60));
        use_it(&service, &used);
        flush(&service);
        assert_eq!(used_at(&world, &used), Some(after(60)));
        world.clock.set(start() + TimeDelta::days(30));
        assert_eq!(ready(service.sweep_idle()).unwrap(), 0, "{century}");
        world.clock.set(start() + TimeDelta::days(30) + TimeDelta::seconds(71));
        assert_eq!(ready(service.sweep_idle()).unwrap(), 1, "{century}");
        assert_eq!(refuse(&service, &forgotten), RejectReason::Revoked);
    }
}

#[test]
fn the_next_true_use_replaces_one_that_a_wrong_clock_noted() {
    for ahead in [TimeDelta::days(36_525), TimeDelta::days(2)] {
        // The use is written while the clock is wrong, or is still pending when the clock is right
        // again.
        for is_flushed in [true, false] {
            let (world, service) = plain();
            let issued = world.issue("ann", NewToken::named("one").never_expires());
            world.clock.set(start() + ahead);
            use_from(&service, &issued, Some("192.0.2.1"));
            if is_flushed {
                flush(&service);
            }
            world.clock.set(after(60));
            if !is_flushed {
                flush(&service);
                assert_eq!(used_at(&world, &issued), Some(after(60)), "it was used before now");
                world.clock.set(after(180));
            }
            use_from(&service, &issued, Some("192.0.2.2"));
            flush(&service);
            let now = Some(after(if is_flushed { 60 } else { 180 }));
            assert_eq!(used_at(&world, &issued), now, "{ahead} {is_flushed}");
            let address: IpAddr = "192.0.2.2".parse().unwrap();
            assert_eq!(last_used(&world, &issued).unwrap().address, Some(address));
        }
    }
    // If the clock was wrong by less, the last use does not move back.
    let (world, service) = plain();
    let issued = one(&world);
    world.clock.set(after(86_400));
    use_it(&service, &issued);
    flush(&service);
    world.clock.set(start());
    use_it(&service, &issued);
    flush(&service);
    assert_eq!(used_at(&world, &issued), Some(after(86_400)));
}

#[test]
fn a_use_that_is_written_days_later_does_not_move_the_last_use_back() {
    let (world, service) = plain();
    let other = world.under(TokenPolicy::default());
    let issued = one(&world);
    use_it(&service, &issued);
    service.store().down.store(true, Ordering::SeqCst);
    assert!(ready(service.flush()).is_err());
    // Meanwhile another node records a later use.
    world.advance(TimeDelta::days(5));
    ready(other.verify(Credential::text(issued.plaintext.expose_secret()))).unwrap();
    ready(other.flush()).unwrap();
    service.store().down.store(false, Ordering::SeqCst);
    flush(&service);
    assert_eq!(used_at(&world, &issued), Some(start() + TimeDelta::days(5)));
}

#[test]
fn an_ipv4_mapped_address_counts_as_ipv4_everywhere() {
    let (world, service) = watched(|builder| builder.audit_refusals(1));
    let bound = world.issue("ann", NewToken::named("bound").networks(["192.0.2.0/24"]));
    let mapped = world.issue("ann", NewToken::named("mapped").networks(["::ffff:192.0.2.0/120"]));
    let all = world.issue("ann", NewToken::named("all").networks(["::ffff:0:0/96"]));
    let plain: IpAddr = "192.0.2.7".parse().unwrap();
    for peer in ["192.0.2.7", "::ffff:192.0.2.7", "::ffff:c000:207"] {
        for issued in [&bound, &mapped, &all] {
            world.advance(TimeDelta::seconds(60));
            let peer: IpAddr = peer.parse().unwrap();
            let verified = ready(service.verify(
                Credential::text(issued.plaintext.expose_secret()).from_address(Some(peer)),
            ))
            .unwrap();
            assert_eq!(verified.address(), Some(plain));
            assert_eq!(ready(service.recheck(&verified)).unwrap().address(), Some(plain));
            flush(&service);
            assert_eq!(last_used(&world, issued).unwrap().address, Some(plain));
        }
        // The audit events of a refusal, of a change in a session, and of a change through a token.
        world.heard.take();
        let name = peer;
        let peer: IpAddr = peer.parse().unwrap();
        let one = world.issue("ann", NewToken::named("one"));
        let through =
            Actor::token(
                &ready(service.verify(
                    Credential::text(one.plaintext.expose_secret()).from_address(Some(peer)),
                ))
                .unwrap(),
            );
        ready(service.rename(&through, one.token.id(), name)).unwrap();
        ready(service.revoke(&session("ann").from_address(peer), one.token.id(), Reason::Owner))
            .unwrap();
        assert!(
            ready(
                service.verify(
                    Credential::text(one.plaintext.expose_secret()).from_address(Some(peer))
                )
            )
            .is_err()
        );
        let told = world.heard.take();
        assert_eq!(told.len(), 3, "{told:?}");
        assert!(told.iter().all(|event| event.address == Some(plain)), "{told:?}");
        assert_eq!(LastUse::new(start(), Some(peer)).address, Some(plain));
    }
}

#[test]
fn nodes_with_different_primary_keys_do_not_move_a_record_to_and_fro() {
    let keys = [
        "1:AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=",
        "2:ICEiIyQlJicoKSorLC0uLzAxMjM0NTY3ODk6Ozw9Pj8=",
    ];
    let (world, _) = plain();
    let node = |text: String| {
        support::builder(world.store.clone(), world.directory.clone(), world.clock.clone())
            .keyring(patkit::Keyring::from_text(&text).unwrap())
            .build()
            .unwrap()
    };
    let (old, new) = (node(keys.join(",")), node(format!("{},{}", keys[1], keys[0])));
    let made_by_old = ready(old.generate(&session("ann"), NewToken::named("old"))).unwrap();
    let made_by_new = ready(new.generate(&session("ann"), NewToken::named("new"))).unwrap();
    let state = || {
        let key = |token: &Token| match &token.digest {
            patkit::token::StoredDigest::Keyed(digest) => digest.key().get(),
            _ => panic!("no digest"),
        };
        let of = |issued: &IssuedToken| world.stored(issued.token.id());
        [of(&made_by_old), of(&made_by_new)].map(|token| (key(&token), token.version))
    };
    assert_eq!(state(), [(1, 1), (2, 1)]);
    for _ in 0..20 {
        for service in [&old, &new] {
            for issued in [&made_by_old, &made_by_new] {
                world.advance(TimeDelta::seconds(60));
                ready(service.verify(Credential::text(issued.plaintext.expose_secret()))).unwrap();
                ready(service.flush()).unwrap();
            }
        }
    }
    assert_eq!(state(), [(2, 2), (2, 1)], "moved once, to the greater id");
    let moved =
        world.events().into_iter().filter(|event| event.action == AuditAction::Redigested).count();
    assert_eq!(moved, 1);
}
