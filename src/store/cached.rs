//! A cache in front of a store, so that most verifications do not query the database.

mod follow;
mod lookup;

use follow::Follower;
pub(super) use lookup::Lookup;
use lookup::{Asked, Epochs, Landed, lock, taken_apart};

use super::{
    AuditLog, ChangeBatch, ChangeFeed, EventPage, EventQuery, ExportCursor, ExportPage, FeedEvent,
    FollowError, KeyChecks, ListQuery, Page, StoreError, StoreShortcut, StoredToken, TokenCounts,
    TokenStore, Touch,
};
use crate::clock::{Clock, SystemClock};
use crate::table::BoundedTable;
use crate::token::details::{Details, Packed};
use crate::token::{KeyCheck, KeyId, Token, TokenId, TokenState};
use arc_swap::Guard;
use async_lock::{Mutex as AsyncMutex, MutexGuardArc, Semaphore};
use chrono::{DateTime, Utc};
use std::convert::Infallible;
use std::fmt;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// A cache in front of any store.
///
/// **Staleness.** A change made through this cache is visible to every lookup that starts after the
/// change was acknowledged. A change made elsewhere (another node, the database itself) is visible
/// after the [lifetime](CachedStoreBuilder::lifetime) at the latest, counted from the start of the
/// read, however often the record is used meanwhile. It is visible sooner, on notification, if the
/// host runs [`run_following`](Self::run_following) or calls [`invalidate`](Self::invalidate). If a
/// token is created elsewhere just after a lookup of its id found nothing, it works after the
/// [negative lifetime](CachedStoreBuilder::negative_lifetime). State is not cached: an expired
/// token is refused from the instant it expires.
///
/// **Lookups and eviction.** A cache hit takes no lock and allocates nothing, for any number of
/// threads. A full cache evicts entries that were not used lately (second chance, an approximation
/// of "least recently used"), but skips at most 64 entries to find one. Each insert also removes a
/// few expired entries.
///
/// **Fills.** Of several lookups of one uncached id, one reads the store and the others wait for
/// it. A lookup that starts after an invalidation never waits for a read that began before the
/// invalidation; the result of such a read is discarded. Unknown ids are cached separately, so that
/// a flood of them evicts no token.
///
/// **What it answers.** Only verifications. Records that will be refused are cached too, so that a
/// client that keeps presenting a revoked or expired token costs no query. Lists, changes, last
/// uses and every lookup of a management operation ([`find_current`](TokenStore::find_current)) go
/// to the store.
pub struct CachedStore<S> {
    store: S,
    lookup: Lookup,
    reads: Semaphore,
    reads_begun: AtomicU64,
    is_following: AtomicBool,
    is_polling_instead: AtomicBool,
}

/// Selects which answers of the store behind the cache are acceptable.
#[derive(Clone, Copy)]
enum Source {
    /// Also answers of another cache behind this one.
    Any,
    /// Only answers of the database.
    Current,
}

/// Builds a [`CachedStore`].
pub struct CachedStoreBuilder<S> {
    store: S,
    lifetime: Duration,
    negative_lifetime: Duration,
    capacity: u64,
    negative_capacity: u64,
    reads: usize,
    clock: Arc<dyn Clock>,
}

/// The error for a setting of a [`CachedStore`] that is out of bounds.
#[derive(Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the {setting} of the cache must be {bounds}; set it by `.{setting}(…)` on the builder")]
#[non_exhaustive]
pub struct CacheError {
    /// The name of the setting.
    pub setting: &'static str,
    /// The bounds of the setting.
    pub bounds: &'static str,
}

/// Statistics of a cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct CacheStats {
    /// The number of lookups in the store behind the cache since the cache was built.
    pub reads: u64,
    /// The approximate number of cached records.
    pub kept: u64,
    /// The approximate number of cached ids that have no record.
    pub missing: u64,
    /// Whether [`CachedStore::run_following`] receives changes made elsewhere.
    ///
    /// This is the case if a notification of its own arrived within the last 10 s or, for a store
    /// without notifications, if the last poll was answered. Otherwise the lifetimes bound
    /// staleness.
    pub is_following: bool,
    /// Whether changes are polled because the store's notifications do not arrive.
    ///
    /// Changes made elsewhere are then visible after the interval of
    /// [`CachedStore::run_following`]. Declare the pooler in between (`SqlStoreBuilder::pooler`),
    /// or connect the pool to the database itself.
    pub is_polling_instead: bool,
}

impl<S: TokenStore> CachedStore<S> {
    /// Returns a builder for a cache in front of `store`.
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

    /// Returns the store behind the cache.
    pub fn store(&self) -> &S {
        &self.store
    }

    /// Invalidates a record, so that the next lookup reads it again.
    ///
    /// For hosts that learn of changes made elsewhere.
    pub fn invalidate(&self, id: TokenId) {
        self.lookup.invalidate(id);
    }

    /// Invalidates all records. For hosts that may have missed changes made elsewhere.
    pub fn invalidate_all(&self) {
        // Discards all reads so far. Every read that starts from here on has a greater number.
        self.lookup.forgotten.fetch_max(self.reads_begun.load(Ordering::SeqCst), Ordering::SeqCst);
        lock(&self.lookup.flights).clear();
    }

    /// Records a use in the cached record, so that the record need not be read again.
    fn note(&self, touch: Touch) {
        let mut epoch = self.lookup.epoch(touch.id);
        // A fill that is under way has read the previous use and must be discarded.
        *epoch = epoch.wrapping_add(1);
        if let Some(entry) = self.lookup.found.get(None, touch.id.words()) {
            let (access, asked) = taken_apart(entry.words);
            let packed = Packed { id: touch.id, access, details: Guard::into_inner(entry.value) };
            if let Some(packed) = packed.used(touch.last_use, touch.plausible_until) {
                self.lookup.keep(packed, asked);
            }
        }
    }

    /// Returns the statistics of the cache.
    pub fn stats(&self) -> CacheStats {
        CacheStats {
            reads: self.reads_begun.load(Ordering::Relaxed),
            kept: self.lookup.found.len(),
            missing: self.lookup.missing.len(),
            is_following: self.is_following.load(Ordering::Relaxed),
            is_polling_instead: self.is_polling_instead.load(Ordering::Relaxed),
        }
    }

    /// Reads an uncached id once: one of the concurrent lookups reads, and the others wait for its
    /// result.
    async fn read_once(&self, id: TokenId) -> Result<Option<Packed>, StoreError> {
        let (flight, landing) = self.board(id);
        let Some(mut landing) = landing else {
            // A statement of its own, because otherwise the lock would be held during the `match`.
            let landed = flight.lock().await.clone();
            // If that read failed or was dropped, each waiter reads for itself, unless another read
            // has filled the cache by now.
            return match landed
                .or_else(|| Some(self.lookup.known(id, None)?.map(StoredToken::into_packed)))
            {
                Some(found) => Ok(found),
                None => self.read(id, Source::Any).await,
            };
        };
        // Another read may have filled the cache since the caller's lookup.
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

    /// Returns the read of this id that is under way, or a new one that the caller must do.
    fn board(&self, id: TokenId) -> (Arc<AsyncMutex<Landed>>, Option<Landing<'_, S>>) {
        let mut flights = lock(&self.lookup.flights);
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
        let epoch = *self.lookup.epoch(id);
        let number = self.reads_begun.fetch_add(1, Ordering::SeqCst).saturating_add(1);
        let asked = Asked { at: self.lookup.now().at, number };
        let found = match source {
            Source::Any => self.store.find(id).await?,
            Source::Current => self.store.find_current(id).await?,
        };
        let found = found.map(|token| Packed::of(&token));
        let mut epoch_now = self.lookup.epoch(id);
        // The result is discarded if the record was changed meanwhile or if a later read was
        // cached.
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
                    // No entry remains that marks an earlier read as older, so the new epoch
                    // discards that read.
                    *epoch_now = epoch.wrapping_add(1);
                }
            }
        }
        drop(epoch_now);
        Ok(found)
    }
}

impl<S: TokenStore + ChangeFeed> CachedStore<S> {
    /// Follows the changes that others make, for ever; spawn it as a task.
    ///
    /// `sleep` must wait for the given time, as `tokio::time::sleep` does.
    ///
    /// If the store has notifications, the cache listens for them. To prove that notifications
    /// arrive, the cache sends one of its own at the start and then every 5 s. Each must arrive
    /// within 5 s. If one does not, for example through an undeclared pooler in transaction mode,
    /// changes are polled each `interval` instead, [`CacheStats::is_polling_instead`] is set, and
    /// listening is tried again every 60 s. A store without notifications is polled each
    /// `interval`.
    ///
    /// All records are invalidated whenever following begins or ends. While no changes are
    /// received, [`stats`](Self::stats) show it, the lifetimes bound staleness, and following is
    /// tried again each `interval`.
    ///
    /// # Errors
    /// [`FollowError`] at once if the store cannot be followed in its current setup. Otherwise it
    /// never returns.
    pub async fn run_following<F: Future<Output = ()> + Send>(
        &self,
        interval: Duration,
        sleep: impl Fn(Duration) -> F + Send + Sync,
    ) -> Result<Infallible, FollowError> {
        self.store.check_following()?;
        let _ended = Ended(self);
        let follower = Follower::new(self, interval, sleep);
        loop {
            // Boxed because the future is large and hosts move it into a task.
            Box::pin(follower.follow()).await;
        }
    }
}

impl<S: TokenStore> CachedStore<S> {
    /// Starts following, by notifications if `is_heard`, otherwise by polling instead of them.
    fn begin_following(&self, is_heard: bool) {
        // Changes before this moment were not delivered, so any record may be stale.
        self.invalidate_all();
        self.is_following.store(is_heard, Ordering::Relaxed);
        self.is_polling_instead.store(!is_heard, Ordering::Relaxed);
    }

    /// Stops following, and invalidates all records, because any change may have been missed by
    /// now.
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

/// Stops following when dropped.
struct Ended<'a, S: TokenStore>(&'a CachedStore<S>);

impl<S: TokenStore> Drop for Ended<'_, S> {
    fn drop(&mut self) {
        self.0.stop_following();
    }
}

/// A read under way; ends when dropped.
struct Landing<'a, S: TokenStore> {
    cache: &'a CachedStore<S>,
    id: TokenId,
    outcome: MutexGuardArc<Landed>,
}

impl<S: TokenStore> Drop for Landing<'_, S> {
    fn drop(&mut self) {
        let mut flights = lock(&self.cache.lookup.flights);
        // Leaves another read of this id, which may have started after an invalidation.
        let is_own = flights
            .get(&self.id)
            .is_some_and(|flight| Arc::ptr_eq(flight, MutexGuardArc::source(&self.outcome)));
        if is_own {
            flights.remove(&self.id);
        }
    }
}

/// Invalidates the records of a batch when dropped, however the commit ends.
///
/// This includes a commit whose outcome is unknown or whose future was dropped.
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

    async fn prune_events(&self, before: DateTime<Utc>, limit: usize) -> Result<usize, StoreError> {
        self.store.prune_events(before, limit).await
    }
}

impl<S: TokenStore + TokenCounts> TokenCounts for CachedStore<S> {
    async fn count_by_state(
        &self,
        now: DateTime<Utc>,
    ) -> Result<Vec<(TokenState, u64)>, StoreError> {
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
        f.debug_struct("CachedStore")
            .field("lifetime", &self.lookup.lifetime)
            .finish_non_exhaustive()
    }
}

impl<S> fmt::Debug for CachedStoreBuilder<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CachedStoreBuilder")
            .field("lifetime", &self.lifetime)
            .finish_non_exhaustive()
    }
}

impl<S: TokenStore> CachedStoreBuilder<S> {
    /// Sets how long a record is cached, counted from the start of its read.
    ///
    /// Defaults to 30 s. Must be 1 ms to 1 h. A revocation made elsewhere may go unnoticed for that
    /// long.
    pub fn lifetime(mut self, lifetime: Duration) -> Self {
        self.lifetime = lifetime;
        self
    }

    /// Sets how long it is cached that an id has no record.
    ///
    /// Defaults to 5 s. Must be at most the lifetime. Zero disables this.
    pub fn negative_lifetime(mut self, lifetime: Duration) -> Self {
        self.negative_lifetime = lifetime;
        self
    }

    /// Sets how many records are cached. Defaults to 100,000. Must be 1 or more.
    pub fn capacity(mut self, records: u64) -> Self {
        self.capacity = records;
        self
    }

    /// Sets how many ids without a record are cached. Defaults to 10,000. Must be 1 or more.
    ///
    /// They take no space from records.
    pub fn negative_capacity(mut self, ids: u64) -> Self {
        self.negative_capacity = ids;
        self
    }

    /// Sets how many lookups of the store may be under way at once. Defaults to 64. Must be 1 or
    /// more.
    ///
    /// Further lookups wait.
    pub fn reads_at_once(mut self, reads: usize) -> Self {
        self.reads = reads;
        self
    }

    /// Sets the clock, which defaults to the system's. Only its monotonic time is read.
    pub fn clock(mut self, clock: impl Clock + 'static) -> Self {
        self.clock = Arc::new(clock);
        self
    }

    /// Builds the cache.
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
                epochs: Epochs::new(),
                flights: Mutex::default(),
            },
            store: self.store,
            reads: Semaphore::new(self.reads),
            reads_begun: AtomicU64::new(0),
            is_following: AtomicBool::new(false),
            is_polling_instead: AtomicBool::new(false),
        })
    }
}
