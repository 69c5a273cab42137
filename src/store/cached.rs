//! A cache in front of a store: verifications that ask the database once in a while instead of each time.

mod follow;
mod lookup;

use follow::Follower;
pub(super) use lookup::Lookup;
use lookup::{Asked, taken_apart};

use super::{
    AuditLog, ChangeBatch, ChangeFeed, EventPage, EventQuery, ExportCursor, ExportPage, FeedEvent,
    FollowError, KeyChecks, ListQuery, Page, StoreError, StoreShortcut, StoredToken, TokenCounts, TokenStore,
    Touch,
};
use crate::clock::{Clock, SystemClock};
use crate::table::BoundedTable;
use crate::token::details::{Details, Packed};
use crate::token::{KeyCheck, KeyId, Token, TokenId, TokenState};
use arc_swap::Guard;
use async_lock::{Mutex as AsyncMutex, MutexGuardArc, Semaphore};
use chrono::{DateTime, Utc};
use std::collections::HashMap;
use std::convert::Infallible;
use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Stripes of epochs. Two ids that share one cost a fill that is not kept, now and then.
const STRIPES: usize = 1_024;

/// A cache in front of any store.
///
/// **How stale it may be.** A change made through this cache shows at once, to every look-up that starts after it was
/// acknowledged. One made elsewhere (another node, the database itself) shows after the [lifetime](CachedStoreBuilder::lifetime)
/// at the latest, counted from when the record was asked for, however often it is used meanwhile; and as soon as it is heard of
/// where the host runs [`run_following`](Self::run_following) or calls [`invalidate`](Self::invalidate). A token that was made elsewhere just after its id was looked up in vain works after
/// the [negative lifetime](CachedStoreBuilder::negative_lifetime). State is not cached: an expired token is refused at its
/// instant.
///
/// What is kept is found without a lock, by any number of threads, and without an allocation. Where it is full, what was not used
/// lately goes, but never more than 64 are looked past (second chance, an approximation of "least recently used"); what is too old goes bit by bit as others come.
///
/// Of many look-ups of one cold id one reads, and the others wait for it; none that starts after an invalidation waits for a
/// read from before it, and such a read is not kept. Unknown ids are kept apart, so that floods of them push out no token.
///
/// **What it answers.** Verifications alone. Records that will be refused are kept as well, so that a client that goes on
/// presenting a revoked or expired token costs no query. Lists, changes, last uses and every look-up of a management operation
/// ([`find_current`](TokenStore::find_current)) go to the store.
pub struct CachedStore<S> {
    store: S,
    lookup: Lookup,
    hasher: RandomState,
    /// How often the ids of a stripe were invalidated. Whoever holds the lock is the only one to fill or invalidate them.
    epochs: Box<[Mutex<u64>; STRIPES]>,
    /// Reads under way.
    flights: Mutex<HashMap<TokenId, Arc<AsyncMutex<Landed>>>>,
    reads: Semaphore,
    reads_begun: AtomicU64,
    is_following: AtomicBool,
    is_polling_instead: AtomicBool,
}

/// What a read came to; none while it is under way, and when it failed or was dropped.
type Landed = Option<Option<Packed>>;

/// Which answers of the store behind the cache will do.
#[derive(Clone, Copy)]
enum Source {
    /// Also those of another cache in there.
    Any,
    /// The database's own.
    Current,
}

/// Makes a [`CachedStore`].
pub struct CachedStoreBuilder<S> {
    store: S,
    lifetime: Duration,
    negative_lifetime: Duration,
    capacity: u64,
    negative_capacity: u64,
    reads: usize,
    clock: Arc<dyn Clock>,
}

/// A setting of a [`CachedStore`] is out of bounds.
#[derive(Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the {setting} of the cache must be {bounds}; set it by `.{setting}(…)` on the builder")]
#[non_exhaustive]
pub struct CacheError {
    /// Which.
    pub setting: &'static str,
    /// What it must be.
    pub bounds: &'static str,
}

/// How a cache does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct CacheStats {
    /// Look-ups of the store behind the cache, since it was built.
    pub reads: u64,
    /// Records that are kept, about.
    pub kept: u64,
    /// Ids that were looked up in vain and are kept, about.
    pub missing: u64,
    /// Whether [`CachedStore::run_following`] hears of changes made elsewhere: a notification of its own arrived within the last
    /// 10 s or, where the store has no notifications, the last poll was answered. If not, the lifetimes are the bound.
    pub is_following: bool,
    /// Whether changes are polled because the store's notifications do not arrive. Then they show after the interval of
    /// [`CachedStore::run_following`]. Declare the pooler in between
    /// (`SqlStoreBuilder::pooler`), or connect the pool to the database itself.
    pub is_polling_instead: bool,
}

impl<S: TokenStore> CachedStore<S> {
    /// Begins a cache in front of a store.
    pub fn builder(store: S) -> CachedStoreBuilder<S> {
        CachedStoreBuilder {
            store,
            lifetime: Duration::from_secs(30),
            negative_lifetime: Duration::from_secs(5),
            capacity: 100_000,
            negative_capacity: 10_000,
            reads: 64,
            clock: Arc::new(SystemClock::new()),
        }
    }

    /// The store behind it.
    pub fn store(&self) -> &S {
        &self.store
    }

    /// Forgets a record: the next look-up reads it anew. For hosts that hear of changes made elsewhere.
    pub fn invalidate(&self, id: TokenId) {
        let mut epoch = self.epoch(id);
        *epoch = epoch.wrapping_add(1);
        self.lookup.found.remove(id.words());
        self.lookup.missing.remove(id.words());
        drop(epoch);
        // Whoever comes from here on starts a read of their own.
        lock(&self.flights).remove(&id);
    }

    /// Forgets all records: for hosts that may have missed changes made elsewhere.
    pub fn invalidate_all(&self) {
        // Whoever begins a read from here on has a greater number.
        self.lookup.forgotten.fetch_max(self.reads_begun.load(Ordering::SeqCst), Ordering::SeqCst);
        lock(&self.flights).clear();
    }

    /// Notes a use in what is kept, which is no reason to read it anew.
    fn note(&self, touch: Touch) {
        let mut epoch = self.epoch(touch.id);
        // A read that is under way has the use from before.
        *epoch = epoch.wrapping_add(1);
        if let Some(entry) = self.lookup.found.get(None, touch.id.words()) {
            let (access, asked) = taken_apart(entry.words);
            let packed = Packed { id: touch.id, access, details: Guard::into_inner(entry.value) };
            if let Some(packed) = packed.used(touch.last_use, touch.plausible_until) {
                self.lookup.keep(packed, asked);
            }
        }
    }

    /// How it does.
    pub fn stats(&self) -> CacheStats {
        CacheStats {
            reads: self.reads_begun.load(Ordering::Relaxed),
            kept: self.lookup.found.len(),
            missing: self.lookup.missing.len(),
            is_following: self.is_following.load(Ordering::Relaxed),
            is_polling_instead: self.is_polling_instead.load(Ordering::Relaxed),
        }
    }

    /// One of those who look an id up that is not known reads it; the others wait for that.
    async fn read_once(&self, id: TokenId) -> Result<Option<Packed>, StoreError> {
        let (flight, landing) = self.board(id);
        let Some(mut landing) = landing else {
            // In a statement of its own, or the lock would be held for what follows.
            let landed = flight.lock().await.clone();
            // A read that failed or was dropped tells nothing: each reads for itself then, unless another one has by now.
            return match landed.or_else(|| Some(self.lookup.known(id, None)?.map(StoredToken::into_packed))) {
                Some(found) => Ok(found),
                None => self.read(id, Source::Any).await,
            };
        };
        // Since it was looked for, another read may have landed.
        let known = self.lookup.known(id, None).map(|known| known.map(StoredToken::into_packed));
        let result = match known {
            Some(found) => Ok(found),
            None => self.read(id, Source::Any).await,
        };
        if let Ok(found) = &result {
            *landing.outcome = Some(found.clone());
        }
        result
    }

    /// The read of this id that is under way, or a new one, which is the caller's to do.
    fn board(&self, id: TokenId) -> (Arc<AsyncMutex<Landed>>, Option<Landing<'_, S>>) {
        let mut flights = lock(&self.flights);
        if let Some(flight) = flights.get(&id) {
            return (flight.clone(), None);
        }
        let flight = Arc::new(AsyncMutex::new(None));
        let landing = flight.try_lock_arc().map(|outcome| Landing { cache: self, id, outcome });
        flights.insert(id, flight.clone());
        (flight, landing)
    }

    async fn read(&self, id: TokenId, source: Source) -> Result<Option<Packed>, StoreError> {
        let _permit = self.reads.acquire().await;
        let epoch = *self.epoch(id);
        let number = self.reads_begun.fetch_add(1, Ordering::SeqCst).saturating_add(1);
        let asked = Asked { at: self.lookup.now().at, number };
        let found = match source {
            Source::Any => self.store.find(id).await?,
            Source::Current => self.store.find_current(id).await?,
        };
        let found = found.map(|token| Packed::of(&token));
        let mut epoch_now = self.epoch(id);
        // Neither what was changed meanwhile nor what a later read found is covered by what an earlier one did.
        if *epoch_now == epoch && !self.lookup.has_later(id, asked) {
            match &found {
                Some(packed) => {
                    self.lookup.missing.remove(id.words());
                    self.lookup.keep(packed.clone(), asked);
                }
                None if !self.lookup.negative_lifetime.is_zero() => {
                    self.lookup.found.remove(id.words());
                    self.lookup.keep_missing(id, asked);
                }
                None => {
                    self.lookup.found.remove(id.words());
                    self.lookup.missing.remove(id.words());
                    // Nothing that is kept tells an earlier read of this one, so the epoch does.
                    *epoch_now = epoch.wrapping_add(1);
                }
            }
        }
        drop(epoch_now);
        Ok(found)
    }

    fn epoch(&self, id: TokenId) -> MutexGuard<'_, u64> {
        let [first, ..] = &*self.epochs;
        let place = usize::try_from(self.hasher.hash_one(id) % 1_024).unwrap_or_default();
        lock(self.epochs.get(place).unwrap_or(first))
    }
}

impl<S: TokenStore + ChangeFeed> CachedStore<S> {
    /// Follows the changes that others make, for ever: spawn it. `sleep` waits, as `tokio::time::sleep` does.
    ///
    /// Where the store has notifications, it is listened to. That they arrive is proven by a notification of its own, at the
    /// start and then every 5 s, which must arrive within 5 s. If it does not, as through a pooler in transaction mode that was
    /// not declared, changes are polled instead each `interval`, [`CacheStats::is_polling_instead`] says so, and listening is
    /// tried again every 60 s. A store without notifications is polled each `interval`.
    ///
    /// Whenever following begins or ends, all that is kept is forgotten. While nothing is heard, [`stats`](Self::stats) say so, the
    /// lifetimes are the bound, and it is tried again each `interval`.
    ///
    /// # Errors
    /// [`FollowError`] at once if the store cannot be followed as it is set up. Otherwise it never returns.
    pub async fn run_following<F: Future<Output = ()> + Send>(
        &self,
        interval: Duration,
        sleep: impl Fn(Duration) -> F + Send + Sync,
    ) -> Result<Infallible, FollowError> {
        self.store.check_following()?;
        let _ended = Ended(self);
        let follower = Follower::new(self, interval, sleep);
        loop {
            // In a box, since the future is large and hosts move it into a task.
            Box::pin(follower.follow()).await;
        }
    }
}

impl<S: TokenStore> CachedStore<S> {
    /// Changes are heard from now on, or polled instead of that.
    fn begin_following(&self, is_heard: bool) {
        // What was changed before is not told.
        self.invalidate_all();
        self.is_following.store(is_heard, Ordering::Relaxed);
        self.is_polling_instead.store(!is_heard, Ordering::Relaxed);
    }

    /// Changes are no longer heard. Any may have been missed by now.
    fn stop_following(&self) {
        let was_following = self.is_following.swap(false, Ordering::Relaxed);
        if self.is_polling_instead.swap(false, Ordering::Relaxed) || was_following {
            self.invalidate_all();
        }
    }

    fn hear(&self, event: FeedEvent) {
        match event {
            FeedEvent::Changed(ids) => ids.into_iter().for_each(|id| self.invalidate(id)),
            FeedEvent::Missed => self.invalidate_all(),
            FeedEvent::Proven(_) => {}
        }
    }
}

/// Nobody follows any more when it is dropped.
struct Ended<'a, S: TokenStore>(&'a CachedStore<S>);

impl<S: TokenStore> Drop for Ended<'_, S> {
    fn drop(&mut self) {
        self.0.stop_following();
    }
}

/// A read under way; over when it is dropped.
struct Landing<'a, S: TokenStore> {
    cache: &'a CachedStore<S>,
    id: TokenId,
    outcome: MutexGuardArc<Landed>,
}

impl<S: TokenStore> Drop for Landing<'_, S> {
    fn drop(&mut self) {
        let mut flights = lock(&self.cache.flights);
        // Unless it was invalidated, and another one is under way by now.
        let is_own = flights
            .get(&self.id)
            .is_some_and(|flight| Arc::ptr_eq(flight, MutexGuardArc::source(&self.outcome)));
        if is_own {
            flights.remove(&self.id);
        }
    }
}

/// Forgets the records of a change when it is over, however it ends: also when its outcome is unknown, or it was dropped half way.
struct Forgetting<'a, S: TokenStore> {
    cache: &'a CachedStore<S>,
    batch: &'a ChangeBatch,
}

impl<S: TokenStore> Drop for Forgetting<'_, S> {
    fn drop(&mut self) {
        for change in &self.batch.changes {
            self.cache.invalidate(change.id());
        }
    }
}

impl<S: TokenStore> TokenStore for CachedStore<S> {
    async fn find(&self, id: TokenId) -> Result<Option<Arc<Token>>, StoreError> {
        if let Some(known) = self.lookup.known(id, None) {
            return Ok(known.map(|found| Arc::new(found.into_token())));
        }
        Ok(self.read_once(id).await?.map(|packed| Arc::new(packed.token())))
    }

    async fn find_current(&self, id: TokenId) -> Result<Option<Arc<Token>>, StoreError> {
        Ok(self.read(id, Source::Current).await?.map(|packed| Arc::new(packed.token())))
    }

    async fn list(&self, query: &ListQuery) -> Result<Page, StoreError> {
        self.store.list(query).await
    }

    async fn commit(&self, batch: &ChangeBatch) -> Result<(), StoreError> {
        let _forgetting = Forgetting { cache: self, batch };
        self.store.commit(batch).await
    }

    async fn touch(&self, uses: &[Touch]) -> Result<(), StoreError> {
        self.store.touch(uses).await?;
        for touch in uses {
            self.note(*touch);
        }
        Ok(())
    }

    async fn list_ended(&self, before: DateTime<Utc>, limit: usize) -> Result<Page, StoreError> {
        self.store.list_ended(before, limit).await
    }

    #[inline]
    fn shortcut(&self) -> StoreShortcut<'_> {
        StoreShortcut::cache(&self.lookup)
    }
}

impl<S: TokenStore + AuditLog> AuditLog for CachedStore<S> {
    async fn events(&self, query: &EventQuery) -> Result<EventPage, StoreError> {
        self.store.events(query).await
    }

    async fn export(&self, after: &ExportCursor, limit: usize) -> Result<ExportPage, StoreError> {
        self.store.export(after, limit).await
    }

    async fn purge_events(&self, before: DateTime<Utc>, limit: usize) -> Result<usize, StoreError> {
        self.store.purge_events(before, limit).await
    }
}

impl<S: TokenStore + TokenCounts> TokenCounts for CachedStore<S> {
    async fn count_by_state(&self, now: DateTime<Utc>) -> Result<Vec<(TokenState, u64)>, StoreError> {
        self.store.count_by_state(now).await
    }
}

impl<S: TokenStore + KeyChecks> KeyChecks for CachedStore<S> {
    async fn key_checks(&self) -> Result<Vec<KeyCheck>, StoreError> {
        self.store.key_checks().await
    }

    async fn record_key_check(&self, check: &KeyCheck) -> Result<(), StoreError> {
        self.store.record_key_check(check).await
    }

    async fn tokens_per_key(&self) -> Result<Vec<(KeyId, u64)>, StoreError> {
        self.store.tokens_per_key().await
    }
}

impl<S> fmt::Debug for CachedStore<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CachedStore").field("lifetime", &self.lookup.lifetime).finish_non_exhaustive()
    }
}

impl<S> fmt::Debug for CachedStoreBuilder<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CachedStoreBuilder").field("lifetime", &self.lifetime).finish_non_exhaustive()
    }
}

impl<S: TokenStore> CachedStoreBuilder<S> {
    /// For how long a record is kept after it was asked for: 30 s by default, 1 ms to 1 h. A revocation made elsewhere may go
    /// unseen for so long.
    pub fn lifetime(mut self, lifetime: Duration) -> Self {
        self.lifetime = lifetime;
        self
    }

    /// For how long it is kept that there is no such record: 5 s by default, at most the lifetime. Zero keeps nothing of that.
    pub fn negative_lifetime(mut self, lifetime: Duration) -> Self {
        self.negative_lifetime = lifetime;
        self
    }

    /// How many records are kept: 100,000 by default, 1 or more.
    pub fn capacity(mut self, records: u64) -> Self {
        self.capacity = records;
        self
    }

    /// How many ids without a record are kept: 10,000 by default, 1 or more. They take no room from records.
    pub fn negative_capacity(mut self, ids: u64) -> Self {
        self.negative_capacity = ids;
        self
    }

    /// How many look-ups of the store may be under way at once: 64 by default, 1 or more. The others wait.
    pub fn reads_at_once(mut self, reads: usize) -> Self {
        self.reads = reads;
        self
    }

    /// The clock, instead of the system's; only its monotonic time is read.
    pub fn clock(mut self, clock: impl Clock + 'static) -> Self {
        self.clock = Arc::new(clock);
        self
    }

    /// The cache.
    ///
    /// # Errors
    /// [`CacheError`], which names the setting that is out of bounds.
    pub fn build(self) -> Result<CachedStore<S>, CacheError> {
        let bounds = Duration::from_millis(1)..=Duration::from_secs(3_600);
        let checks = [
            ("lifetime", "from 1 ms to 1 h", bounds.contains(&self.lifetime)),
            ("negative_lifetime", "at most the lifetime", self.negative_lifetime <= self.lifetime),
            ("capacity", "1 or more", self.capacity > 0),
            ("negative_capacity", "1 or more", self.negative_capacity > 0),
            ("reads_at_once", "1 or more", self.reads > 0),
        ];
        if let Some((setting, bounds, _)) = checks.into_iter().find(|(_, _, fits)| !fits) {
            return Err(CacheError { setting, bounds });
        }
        Ok(CachedStore {
            lookup: Lookup {
                found: BoundedTable::new(Arc::new(Details::vacant()), self.capacity),
                missing: BoundedTable::new(Arc::new(()), self.negative_capacity),
                lifetime: self.lifetime,
                negative_lifetime: self.negative_lifetime,
                built_at: self.clock.monotonic(),
                clock: self.clock,
                forgotten: AtomicU64::new(0),
            },
            store: self.store,
            hasher: RandomState::new(),
            epochs: Box::new(std::array::from_fn(|_| Mutex::new(0))),
            flights: Mutex::default(),
            reads: Semaphore::new(self.reads),
            reads_begun: AtomicU64::new(0),
            is_following: AtomicBool::new(false),
            is_polling_instead: AtomicBool::new(false),
        })
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
