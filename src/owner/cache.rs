//! A bounded cache in front of a slow directory.

use super::{Directory, DirectoryError, DirectoryShortcut, Owner, OwnerId, OwnerMap, Realm};
use crate::clock::{Clock, SystemClock};
use crate::shard;
use std::collections::HashMap;
use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

const SHARDS: usize = 16;
/// The longest lifetime: 1 day.
const LONGEST: Duration = Duration::from_secs(86_400);

/// Caches the owners that a slow directory returns.
///
/// A change of an owner is seen after at most the `lifetime`, counted from the moment when the
/// directory was asked. After [`invalidate_owner`](Self::invalidate_owner), it is seen at once in
/// this process: a lookup that started before the invalidation is not cached.
///
/// The cache also keeps missing owners for the same lifetime, so that a token whose owner is gone
/// costs no lookup. It keeps at most `capacity` answers. If it is full, answers about missing
/// owners are evicted first.
pub struct OwnerCache<D> {
    directory: D,
    answers: Answers,
}

/// Builds an [`OwnerCache`].
pub struct OwnerCacheBuilder<D> {
    directory: D,
    lifetime: Duration,
    capacity: usize,
    clock: Arc<dyn Clock>,
}

/// The cached answers.
pub(super) struct Answers {
    lifetime: Duration,
    clock: Arc<dyn Clock>,
    hasher: RandomState,
    shards: [Mutex<Shard>; SHARDS],
    shard_capacity: usize,
}

#[derive(Default)]
struct Shard {
    owners: HashMap<Realm, OwnerMap<Entry>>,
    len: usize,
    /// Counts the invalidations. An answer is kept only if no invalidation happened during its
    /// lookup.
    epoch: u64,
}

struct Entry {
    /// `None` if there is no such owner.
    owner: Option<Arc<Owner>>,
    asked_at: Duration,
}

/// The error if a cache is refused.
#[derive(Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum OwnerCacheError {
    /// The lifetime is zero or more than 1 day.
    #[error(
        "the owner cache's lifetime must be over 0 s and at most 1 day; set it by `.lifetime(…)` on the builder"
    )]
    Lifetime,
    /// The capacity is zero.
    #[error(
        "the owner cache's capacity must be 1 or more; set it by `.capacity(…)` on the builder"
    )]
    Capacity,
}

impl<D> OwnerCache<D> {
    /// Returns a builder for a cache in front of `directory`.
    pub fn builder(directory: D) -> OwnerCacheBuilder<D> {
        OwnerCacheBuilder {
            directory,
            lifetime: Duration::from_secs(10),
            capacity: 10_000,
            clock: Arc::new(SystemClock::new()),
        }
    }

    /// Returns the directory behind the cache.
    pub fn directory(&self) -> &D {
        &self.directory
    }

    /// Removes an owner from the cache, so that the next lookup goes to the directory.
    ///
    /// Call it after every change of an owner, including its creation.
    pub fn invalidate_owner(&self, realm: &Realm, id: &OwnerId) {
        let mut shard = self.answers.shard(realm, id);
        shard.epoch = shard.epoch.wrapping_add(1);
        shard.remove(realm, id);
    }

    /// Removes all owners from the cache.
    pub fn invalidate_all(&self) {
        for shard in &self.answers.shards {
            let mut shard = shard.lock().unwrap_or_else(PoisonError::into_inner);
            *shard = Shard { epoch: shard.epoch.wrapping_add(1), ..Shard::default() };
        }
    }

    /// Returns the number of cached answers, including those about missing owners.
    pub fn len(&self) -> usize {
        let len = |shard: &Mutex<Shard>| shard.lock().unwrap_or_else(PoisonError::into_inner).len;
        self.answers.shards.iter().map(len).sum()
    }

    /// Returns whether the cache is empty.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl<D> OwnerCacheBuilder<D> {
    /// Sets how long an answer is cached. Defaults to 10 s. Must be over 0 s and at most 1 day.
    pub fn lifetime(mut self, lifetime: Duration) -> Self {
        self.lifetime = lifetime;
        self
    }

    /// Sets how many answers are cached. Defaults to 10,000. Must be 1 or more.
    ///
    /// It is rounded up to a multiple of 16.
    pub fn capacity(mut self, answers: usize) -> Self {
        self.capacity = answers;
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
    /// [`OwnerCacheError`], which names the setting that is out of bounds.
    pub fn build(self) -> Result<OwnerCache<D>, OwnerCacheError> {
        if self.lifetime.is_zero() || self.lifetime > LONGEST {
            return Err(OwnerCacheError::Lifetime);
        }
        if self.capacity == 0 {
            return Err(OwnerCacheError::Capacity);
        }
        Ok(OwnerCache {
            directory: self.directory,
            answers: Answers {
                lifetime: self.lifetime,
                clock: self.clock,
                hasher: RandomState::new(),
                shards: std::array::from_fn(|_| Mutex::default()),
                shard_capacity: self.capacity.div_ceil(SHARDS),
            },
        })
    }
}

impl Answers {
    /// Returns the cached owner, or `None` if no answer is cached.
    ///
    /// The inner `None` means that there is no such owner.
    #[allow(clippy::option_option, reason = "not known, or known that there is no such owner")]
    pub(super) fn find(&self, realm: &Realm, id: &OwnerId) -> Option<Option<Arc<Owner>>> {
        self.cached(realm, id, self.clock.monotonic()).ok()
    }

    fn shard(&self, realm: &Realm, id: &OwnerId) -> MutexGuard<'_, Shard> {
        let shard = shard::of_hash(&self.shards, self.hasher.hash_one((realm, id)));
        shard.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the cached answer about an owner, or the epoch under which to keep a new answer.
    fn cached(
        &self,
        realm: &Realm,
        id: &OwnerId,
        now: Duration,
    ) -> Result<Option<Arc<Owner>>, u64> {
        let mut shard = self.shard(realm, id);
        let entry = shard.owners.get(realm).and_then(|owners| owners.get(id));
        if let Some(entry) = entry.filter(|entry| entry.is_live(now, self.lifetime)) {
            return Ok(entry.owner.clone());
        }
        shard.remove(realm, id);
        Err(shard.epoch)
    }

    fn keep(&self, realm: &Realm, id: &OwnerId, entry: Entry, epoch: u64) {
        let mut shard = self.shard(realm, id);
        let known = shard.owners.get(realm).and_then(|owners| owners.get(id));
        if shard.epoch != epoch || known.is_some_and(|known| known.asked_at > entry.asked_at) {
            return;
        }
        if shard.len >= self.shard_capacity {
            shard.make_room(entry.asked_at, self.lifetime);
        }
        if shard.owners.entry(realm.clone()).or_default().insert(id.clone(), entry).is_none() {
            shard.len = shard.len.saturating_add(1);
        }
    }
}

impl Entry {
    fn is_live(&self, now: Duration, lifetime: Duration) -> bool {
        now.saturating_sub(self.asked_at) < lifetime
    }
}

impl Shard {
    fn remove(&mut self, realm: &Realm, id: &OwnerId) {
        let Some(owners) = self.owners.get_mut(realm) else {
            return;
        };
        if owners.remove(id).is_some() {
            self.len = self.len.saturating_sub(1);
        }
        if owners.is_empty() {
            self.owners.remove(realm);
        }
    }

    /// Removes all expired answers. If there are none, removes one answer.
    ///
    /// That is the oldest answer about a missing owner or, without one, the oldest answer.
    fn make_room(&mut self, now: Duration, lifetime: Duration) {
        for owners in self.owners.values_mut() {
            owners.retain(|_, entry| entry.is_live(now, lifetime));
        }
        let before = self.len;
        self.len = self.owners.values().map(HashMap::len).sum();
        if self.len < before {
            self.owners.retain(|_, owners| !owners.is_empty());
            return;
        }
        let all = self
            .owners
            .iter()
            .flat_map(|(realm, owners)| owners.iter().map(move |(id, entry)| (realm, id, entry)));
        let oldest = all.min_by_key(|(_, _, entry)| (entry.owner.is_some(), entry.asked_at));
        if let Some((realm, id)) = oldest.map(|(realm, id, _)| (realm.clone(), id.clone())) {
            self.remove(&realm, &id);
        }
    }
}

impl<D: Directory> Directory for OwnerCache<D> {
    async fn find(
        &self,
        realm: &Realm,
        id: &OwnerId,
    ) -> Result<Option<Arc<Owner>>, DirectoryError> {
        let asked_at = self.answers.clock.monotonic();
        let epoch = match self.answers.cached(realm, id, asked_at) {
            Ok(owner) => return Ok(owner),
            Err(epoch) => epoch,
        };
        let answer = self.directory.find(realm, id).await?;
        // An answer that describes another owner counts as a missing owner.
        let owner = answer.filter(|owner| owner.is(realm, id));
        self.answers.keep(realm, id, Entry { owner: owner.clone(), asked_at }, epoch);
        Ok(owner)
    }

    #[inline]
    fn shortcut(&self) -> DirectoryShortcut<'_> {
        DirectoryShortcut::cache(&self.answers)
    }
}

impl<D> fmt::Debug for OwnerCacheBuilder<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OwnerCacheBuilder")
            .field("lifetime", &self.lifetime)
            .field("capacity", &self.capacity)
            .finish_non_exhaustive()
    }
}

impl<D> fmt::Debug for OwnerCache<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OwnerCache")
            .field("lifetime", &self.answers.lifetime)
            .field("len", &self.len())
            .finish_non_exhaustive()
    }
}
