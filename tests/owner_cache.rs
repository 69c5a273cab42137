//! The cache of owners: how long each answer is cached, and what is never cached.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::arithmetic_side_effects,
    clippy::indexing_slicing,
    clippy::unnecessary_wraps
)]

use chrono::TimeDelta;
use patkit::owner::cache::OwnerCacheError;
use patkit::service::{RejectReason, Unavailable, VerifyError};
use patkit::{
    Credential, Directory, DirectoryError, ManualClock, MemoryDirectory, NewToken, Owner,
    OwnerCache, OwnerId, OwnerKind, Realm, TokenService,
};
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};
use std::time::Duration;
use support::{World, beta, home, id, ready, start};

/// A directory that counts its lookups, and that can delay an answer after it has looked it up.
#[derive(Default)]
struct Slow {
    inner: MemoryDirectory,
    asked: AtomicUsize,
    waits: AtomicBool,
    down: AtomicBool,
    /// If set, every lookup returns this owner.
    instead: Mutex<Option<OwnerId>>,
}

impl Slow {
    fn asked(&self) -> usize {
        self.asked.swap(0, Ordering::SeqCst)
    }
}

impl Directory for Slow {
    async fn find(
        &self,
        realm: &Realm,
        id: &OwnerId,
    ) -> Result<Option<Arc<Owner>>, DirectoryError> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        if self.down.load(Ordering::SeqCst) {
            return Err(DirectoryError::new("unplugged"));
        }
        let instead = self.instead.lock().unwrap().clone();
        let answer = self.inner.find(realm, instead.as_ref().unwrap_or(id)).await;
        let wait = |_: &mut Context<'_>| {
            if self.waits.load(Ordering::SeqCst) { Poll::Pending } else { Poll::Ready(()) }
        };
        std::future::poll_fn(wait).await;
        answer
    }
}

type Cache = OwnerCache<Slow>;

const LIFETIME: Duration = Duration::from_secs(10);

fn seconds(seconds: i64) -> TimeDelta {
    TimeDelta::seconds(seconds)
}

fn human(name: &str) -> Owner {
    Owner::new(id(name), OwnerKind::Human)
}

fn cache(capacity: usize) -> (Cache, Arc<ManualClock>) {
    let clock = Arc::new(ManualClock::at(start()));
    let cache = OwnerCache::builder(Slow::default())
        .lifetime(LIFETIME)
        .capacity(capacity)
        .clock(clock.clone())
        .build()
        .unwrap();
    cache.directory().inner.put(human("ann").with_name("old"));
    (cache, clock)
}

fn find_in(cache: &Cache, realm: &Realm, name: &str) -> Option<Arc<Owner>> {
    ready(cache.find(realm, &id(name))).unwrap()
}

/// Returns the name of the owner.
fn name(cache: &Cache) -> Option<String> {
    find_in(cache, &home(), "ann").and_then(|owner| owner.name().map(str::to_owned))
}

fn rename(cache: &Cache, name: &str) {
    cache.directory().inner.put(human("ann").with_name(name));
}

fn old() -> Option<String> {
    Some("old".to_owned())
}

fn new() -> Option<String> {
    Some("new".to_owned())
}

fn poll<T>(future: std::pin::Pin<&mut impl Future<Output = T>>) -> Poll<T> {
    future.poll(&mut Context::from_waker(Waker::noop()))
}

#[test]
fn an_answer_is_kept_for_its_lifetime_and_no_hit_makes_it_longer() {
    let (cache, clock) = cache(100);
    assert_eq!(name(&cache), old());
    rename(&cache, "new");
    for _ in 0..9 {
        clock.advance(seconds(1));
        assert_eq!(name(&cache), old());
    }
    assert_eq!(cache.directory().asked(), 1);
    clock.advance(seconds(1) - TimeDelta::microseconds(1));
    assert_eq!(name(&cache), old());
    clock.advance(TimeDelta::microseconds(1));
    assert_eq!(name(&cache), new(), "over at the instant itself");
    assert_eq!(cache.directory().asked(), 1);
}

#[test]
fn the_lifetime_counts_from_the_question_and_not_from_the_answer() {
    let (cache, clock) = cache(100);
    cache.directory().waits.store(true, Ordering::SeqCst);
    {
        let (realm, ann) = (home(), id("ann"));
        let mut slow = pin!(cache.find(&realm, &ann));
        assert!(poll(slow.as_mut()).is_pending());
        clock.advance(seconds(7));
        rename(&cache, "new");
        cache.directory().waits.store(false, Ordering::SeqCst);
        assert!(poll(slow.as_mut()).is_ready());
    }
    clock.advance(seconds(2));
    assert_eq!(name(&cache), old());
    clock.advance(seconds(1));
    assert_eq!(name(&cache), new());
}

#[test]
fn an_answer_slower_than_the_lifetime_is_not_given_again() {
    let (cache, clock) = cache(100);
    cache.directory().waits.store(true, Ordering::SeqCst);
    {
        let (realm, ann) = (home(), id("ann"));
        let mut slow = pin!(cache.find(&realm, &ann));
        assert!(poll(slow.as_mut()).is_pending());
        clock.advance(seconds(10));
        rename(&cache, "new");
        cache.directory().waits.store(false, Ordering::SeqCst);
        assert!(poll(slow.as_mut()).is_ready());
    }
    assert_eq!(name(&cache), new());
}

#[test]
fn an_invalidated_owner_is_asked_for_again_and_others_are_not() {
    let (cache, _) = cache(100);
    cache.directory().inner.put(human("bob"));
    assert_eq!(name(&cache), old());
    find_in(&cache, &home(), "bob").unwrap();
    assert_eq!((cache.directory().asked(), cache.len()), (2, 2));
    rename(&cache, "new");
    cache.invalidate_owner(&beta(), &id("ann"));
    assert_eq!(name(&cache), old(), "of another realm");
    cache.invalidate_owner(&home(), &id("ann"));
    assert_eq!(cache.len(), 1);
    assert_eq!(name(&cache), new());
    find_in(&cache, &home(), "bob").unwrap();
    assert_eq!(cache.directory().asked(), 1);
    rename(&cache, "newer");
    cache.invalidate_all();
    assert!(cache.is_empty());
    assert_eq!(name(&cache), Some("newer".to_owned()));
    find_in(&cache, &home(), "bob").unwrap();
    assert_eq!(cache.directory().asked(), 2);
    cache.invalidate_owner(&home(), &id("nobody"));
    cache.invalidate_owner(&home(), &id("nobody"));
}

#[test]
fn a_slow_answer_from_before_an_invalidation_is_not_kept() {
    let invalidations: [fn(&Cache); 2] =
        [|cache| cache.invalidate_owner(&home(), &id("ann")), |cache| cache.invalidate_all()];
    for invalidate in invalidations {
        let (cache, _) = cache(100);
        cache.directory().waits.store(true, Ordering::SeqCst);
        {
            let (realm, ann) = (home(), id("ann"));
            let mut slow = pin!(cache.find(&realm, &ann));
            assert!(poll(slow.as_mut()).is_pending());
            rename(&cache, "new");
            invalidate(&cache);
            cache.directory().waits.store(false, Ordering::SeqCst);
            let Poll::Ready(Ok(Some(owner))) = poll(slow.as_mut()) else { panic!("no answer") };
            assert_eq!(owner.name(), Some("old"), "it was asked for before");
        }
        assert!(cache.is_empty());
        assert_eq!(name(&cache), new());
    }
}

#[test]
fn a_question_that_is_dropped_half_way_leaves_nothing_behind() {
    let (cache, _) = cache(100);
    cache.directory().waits.store(true, Ordering::SeqCst);
    {
        let (realm, ann) = (home(), id("ann"));
        let mut slow = pin!(cache.find(&realm, &ann));
        assert!(poll(slow.as_mut()).is_pending());
    }
    cache.directory().waits.store(false, Ordering::SeqCst);
    assert!(cache.is_empty());
    rename(&cache, "new");
    assert_eq!(name(&cache), new());
}

#[test]
fn answers_in_the_wrong_order_keep_nothing_longer_than_the_lifetime() {
    let (cache, clock) = cache(100);
    cache.directory().waits.store(true, Ordering::SeqCst);
    {
        let (realm, ann) = (home(), id("ann"));
        let mut first = pin!(cache.find(&realm, &ann));
        assert!(poll(first.as_mut()).is_pending());
        clock.advance(seconds(4));
        rename(&cache, "new");
        let mut second = pin!(cache.find(&realm, &ann));
        assert!(poll(second.as_mut()).is_pending());
        cache.directory().waits.store(false, Ordering::SeqCst);
        assert!(poll(second.as_mut()).is_ready());
        assert!(poll(first.as_mut()).is_ready());
    }
    assert_eq!(cache.len(), 1);
    assert_eq!(name(&cache), new(), "the answer to the later question stays");
    clock.advance(seconds(6));
    assert_eq!(name(&cache), new(), "ten seconds after the first question");
}

#[test]
fn it_keeps_no_more_than_its_capacity_and_the_newest() {
    for (capacity, most) in [(1, 16), (16, 16), (100, 112)] {
        let (cache, clock) = cache(capacity);
        for number in 0..1_000 {
            let name = format!("owner {number}");
            cache.directory().inner.put(human(&name));
            find_in(&cache, &home(), &name).unwrap();
            clock.advance(TimeDelta::milliseconds(1));
            assert!(cache.len() <= most, "{capacity}: {}", cache.len());
            cache.directory().asked();
            find_in(&cache, &home(), &name).unwrap();
            assert_eq!(cache.directory().asked(), 0, "what was just asked for is there");
        }
        assert!(cache.len() * 2 > most, "{capacity}: {}", cache.len());
    }
}

#[test]
fn what_is_over_makes_room_before_what_lives() {
    let (cache, clock) = cache(160);
    for number in 0..40 {
        let name = format!("old {number}");
        cache.directory().inner.put(human(&name));
        find_in(&cache, &home(), &name).unwrap();
    }
    clock.advance(seconds(10));
    for number in 0..400 {
        let name = format!("new {number}");
        cache.directory().inner.put(human(&name));
        find_in(&cache, &home(), &name).unwrap();
    }
    assert!(cache.len() <= 160);
}

#[test]
fn that_there_is_no_such_owner_is_kept_for_the_lifetime_or_until_it_is_invalidated() {
    let (cache, clock) = cache(100);
    for _ in 0..3 {
        assert!(find_in(&cache, &home(), "bob").is_none());
        assert_eq!(cache.len(), 1);
    }
    assert_eq!(cache.directory().asked(), 1);
    cache.directory().inner.put(human("bob"));
    clock.advance(seconds(10) - TimeDelta::microseconds(1));
    assert!(find_in(&cache, &home(), "bob").is_none());
    clock.advance(TimeDelta::microseconds(1));
    assert!(find_in(&cache, &home(), "bob").is_some(), "over at the instant itself");
    cache.directory().inner.remove(&home(), &id("bob"));
    cache.invalidate_owner(&home(), &id("bob"));
    assert!(find_in(&cache, &home(), "bob").is_none());
    cache.directory().inner.put(human("bob"));
    cache.invalidate_owner(&home(), &id("bob"));
    assert!(find_in(&cache, &home(), "bob").is_some(), "the host told of it");
}

#[test]
fn ids_that_nobody_has_push_out_no_owner() {
    let (cache, clock) = cache(160);
    for number in 0..40 {
        let name = format!("owner {number}");
        cache.directory().inner.put(human(&name));
        find_in(&cache, &home(), &name).unwrap();
    }
    clock.advance(seconds(1));
    for number in 0..2_000 {
        assert!(find_in(&cache, &home(), &format!("nobody {number}")).is_none());
    }
    cache.directory().asked();
    for number in 0..40 {
        find_in(&cache, &home(), &format!("owner {number}")).unwrap();
    }
    assert_eq!(cache.directory().asked(), 0);
    assert!(cache.len() <= 160);
}

#[test]
fn realms_are_kept_apart() {
    let (cache, _) = cache(100);
    cache.directory().inner.put(human("ann").in_realm(beta()).with_name("another"));
    for _ in 0..2 {
        assert_eq!(name(&cache), old());
        assert_eq!(find_in(&cache, &beta(), "ann").unwrap().name(), Some("another"));
        assert!(find_in(&cache, &Realm::new("gamma").unwrap(), "ann").is_none());
    }
    assert_eq!((cache.directory().asked(), cache.len()), (3, 3));
    cache.directory().inner.put(human("ann").in_realm(beta()).with_name("changed"));
    rename(&cache, "new");
    cache.invalidate_owner(&beta(), &id("ann"));
    assert_eq!(find_in(&cache, &beta(), "ann").unwrap().name(), Some("changed"));
    assert_eq!(name(&cache), old());
}

#[test]
fn an_error_is_told_and_not_kept_and_hits_go_on_through_it() {
    let (cache, clock) = cache(100);
    let down = |down: bool| cache.directory().down.store(down, Ordering::SeqCst);
    down(true);
    assert!(ready(cache.find(&home(), &id("ann"))).is_err());
    down(false);
    assert_eq!(name(&cache), old());
    down(true);
    assert_eq!(name(&cache), old(), "what it knows it says until it is over");
    clock.advance(seconds(10));
    assert!(ready(cache.find(&home(), &id("ann"))).is_err(), "nothing is given past its lifetime");
    assert!(cache.is_empty());
    down(false);
    assert_eq!(name(&cache), old());
}

#[test]
fn an_answer_for_somebody_else_is_kept_as_no_such_owner_and_not_as_somebody_else() {
    let (cache, _) = cache(100);
    cache.directory().inner.put(human("eve"));
    *cache.directory().instead.lock().unwrap() = Some(id("eve"));
    for _ in 0..2 {
        assert!(find_in(&cache, &home(), "ann").is_none());
    }
    assert_eq!((cache.directory().asked(), cache.len()), (1, 1));
    find_in(&cache, &home(), "eve").unwrap();
    assert_eq!(cache.directory().asked(), 1);
}

#[test]
fn a_time_of_day_that_is_set_back_or_forward_changes_nothing() {
    let (cache, clock) = cache(100);
    assert_eq!(name(&cache), old());
    rename(&cache, "new");
    clock.set(start() + TimeDelta::days(36_500));
    assert_eq!(name(&cache), old());
    clock.advance(seconds(5));
    clock.set(start() - TimeDelta::hours(1));
    assert_eq!(name(&cache), old());
    clock.advance(seconds(-1_000));
    clock.advance(seconds(5));
    assert_eq!(name(&cache), new(), "ten seconds have passed");
}

#[test]
fn bounds() {
    let new = |lifetime, capacity| {
        OwnerCache::builder(MemoryDirectory::new())
            .lifetime(lifetime)
            .capacity(capacity)
            .build()
            .map(drop)
    };
    let day = Duration::from_secs(86_400);
    assert_eq!(new(day, 1), Ok(()));
    assert_eq!(new(Duration::from_nanos(1), 1), Ok(()));
    assert_eq!(new(day + Duration::from_nanos(1), 1), Err(OwnerCacheError::Lifetime));
    assert_eq!(new(Duration::MAX, 1), Err(OwnerCacheError::Lifetime));
    assert_eq!(new(Duration::ZERO, 1), Err(OwnerCacheError::Lifetime));
    assert_eq!(new(day, 0), Err(OwnerCacheError::Capacity));
}

#[test]
fn a_token_follows_its_owner_through_the_cache_within_its_lifetime_or_at_once() {
    let world = World::new();
    let directory = Slow::default();
    directory.inner.put(human("ann").with_role("member"));
    let cache = OwnerCache::builder(directory)
        .lifetime(LIFETIME)
        .capacity(100)
        .clock(world.clock.clone())
        .build()
        .unwrap();
    let cache = Arc::new(cache);
    let service = TokenService::builder(world.store.clone(), cache.clone()).brand("acme");
    let service = service.keyring(patkit::Keyring::ephemeral().unwrap()).clock(world.clock.clone());
    let service = service.build().unwrap();
    let issued = ready(service.generate(&support::session("ann"), NewToken::named("one"))).unwrap();
    let verify = || ready(service.verify(Credential::text(issued.plaintext.expose_secret())));
    let may = || verify().unwrap().require("tokens:manage").is_ok();
    assert!(may());

    cache.directory().inner.put(human("ann"));
    assert!(may(), "demoted, and not seen yet");
    world.advance(seconds(10));
    assert!(!may());
    cache.directory().inner.put(human("ann").with_role("member"));
    cache.invalidate_owner(&home(), &id("ann"));
    assert!(may());
    cache.directory().inner.put(human("ann").with_enabled(false));
    cache.invalidate_owner(&home(), &id("ann"));
    assert_eq!(verify().unwrap_err().reject_reason(), Some(RejectReason::OwnerDisabled));
    cache.directory().inner.remove(&home(), &id("ann"));
    assert_eq!(verify().unwrap_err().reject_reason(), Some(RejectReason::OwnerDisabled));
    world.advance(seconds(10));
    assert_eq!(verify().unwrap_err().reject_reason(), Some(RejectReason::OwnerUnknown));
    world.advance(seconds(10));
    cache.directory().down.store(true, Ordering::SeqCst);
    assert!(matches!(verify(), Err(VerifyError::Unavailable(Unavailable::Directory(_)))));
    cache.directory().down.store(false, Ordering::SeqCst);
    cache.directory().inner.put(human("ann"));
    cache.directory().inner.put(human("eve"));
    *cache.directory().instead.lock().unwrap() = Some(id("eve"));
    assert_eq!(verify().unwrap_err().reject_reason(), Some(RejectReason::OwnerUnknown));
}

#[test]
fn threads_that_ask_and_invalidate_never_see_an_owner_from_before_an_acknowledged_invalidation() {
    let cache = OwnerCache::builder(MemoryDirectory::new())
        .lifetime(Duration::from_secs(3_600))
        .capacity(16)
        .build()
        .unwrap();
    cache.directory().put(human("ann").with_name("0"));
    let shown = AtomicUsize::new(0);
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                while !over.load(Ordering::SeqCst) {
                    let least = shown.load(Ordering::SeqCst);
                    let owner = ready(cache.find(&home(), &id("ann"))).unwrap().unwrap();
                    let seen: usize = owner.name().unwrap().parse().unwrap();
                    assert!(seen >= least, "{seen} after {least}");
                }
            });
        }
        for number in 1..2_000 {
            cache.directory().put(human("ann").with_name(&number.to_string()));
            cache.invalidate_owner(&home(), &id("ann"));
            shown.store(number, Ordering::SeqCst);
        }
        over.store(true, Ordering::SeqCst);
    });
}
