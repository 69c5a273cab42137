//! The part of a cache that answers at once: cached records, and ids known to have none.

#![allow(
    clippy::inline_always,
    reason = "measured, as in the table: what is moved between functions is a tenth"
)]

use crate::clock::Clock;
use crate::shard;
use crate::snapshot::Snapshot;
use crate::store::StoredToken;
use crate::table::{BoundedTable, Place};
use crate::token::TokenId;
use crate::token::access::Access;
use crate::token::details::{Details, Packed};
use async_lock::Mutex as AsyncMutex;
use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// The number of epoch stripes. Two ids in one stripe occasionally cause a discarded fill.
const STRIPES: usize = 1_024;

/// The result of a read; `None` while it is under way, or if it failed or was dropped.
pub(super) type Landed = Option<Option<Packed>>;

pub(in crate::store) struct Lookup {
    /// The records, with their [`Access`] and the time and number of their reads.
    pub(super) found: BoundedTable<Details, 10>,
    /// Ids without a record, with the time and number of their reads.
    pub(super) missing: BoundedTable<(), 2>,
    pub(super) lifetime: Duration,
    pub(super) negative_lifetime: Duration,
    pub(super) clock: Arc<dyn Clock>,
    /// The clock's monotonic time when the cache was built.
    pub(super) built_at: Duration,
    /// Results of reads up to this number are invalid.
    pub(super) forgotten: AtomicU64,
    pub(super) epochs: Epochs,
    /// The reads under way.
    pub(super) flights: Mutex<HashMap<TokenId, Arc<AsyncMutex<Landed>>>>,
}

/// Counts the invalidations in each stripe of ids.
pub(super) struct Epochs {
    pub(super) hasher: RandomState,
    stripes: Box<[Mutex<u64>; STRIPES]>,
}

impl Epochs {
    pub(super) fn new() -> Self {
        let stripes = Box::new(std::array::from_fn(|_| Mutex::new(0)));
        Self { hasher: RandomState::new(), stripes }
    }
}

impl Lookup {
    #[inline]
    pub(in crate::store) fn seek(&self, id: TokenId) -> Option<Place> {
        self.found.seek(id.words())
    }

    /// Returns the cached answer for an id, or `None` if there is none or it has expired.
    ///
    /// `place` is where the id may be found.
    #[allow(clippy::option_option, reason = "nothing known, or known that there is nothing")]
    #[inline(always)]
    pub(in crate::store) fn known(
        &self,
        id: TokenId,
        place: Option<Place>,
    ) -> Option<Option<StoredToken<'_>>> {
        let now = self.now();
        if let Some(entry) = self.found.get(place, id.words()) {
            let (access, asked) = taken_apart(entry.words);
            if asked.is_good(now, self.lifetime) {
                self.found.note(entry.place);
                return Some(Some(StoredToken::lent(
                    id,
                    Snapshot::lent(entry.value),
                    access,
                    None,
                )));
            }
        }
        self.known_missing(id, now).then_some(None)
    }

    /// Whether the cache knows that this id has no record.
    #[inline(never)]
    fn known_missing(&self, id: TokenId, now: Now) -> bool {
        let Some(entry) = self.missing.get(None, id.words()) else { return false };
        let is_good = Asked::from_words(entry.words).is_good(now, self.negative_lifetime);
        if is_good {
            self.missing.note(entry.place);
        }
        is_good
    }

    #[inline]
    pub(super) fn now(&self) -> Now {
        let at = self.clock.monotonic().saturating_sub(self.built_at).as_nanos();
        let at = u64::try_from(at).unwrap_or(u64::MAX);
        Now { at, forgotten: self.forgotten.load(Ordering::SeqCst) }
    }

    /// Invalidates a record, so that the next lookup reads it again.
    pub(in crate::store) fn invalidate(&self, id: TokenId) {
        let mut epoch = self.epoch(id);
        *epoch = epoch.wrapping_add(1);
        self.found.remove(id.words());
        self.missing.remove(id.words());
        drop(epoch);
        // Lookups that start from here on do not join the old read.
        lock(&self.flights).remove(&id);
    }

    /// Locks the epoch of an id. Only the holder of the lock may fill or invalidate the id.
    pub(super) fn epoch(&self, id: TokenId) -> MutexGuard<'_, u64> {
        lock(shard::of_hash(&self.epochs.stripes, self.epochs.hasher.hash_one(id)))
    }

    /// Whether the cached answer for an id comes from a later read.
    pub(super) fn has_later(&self, id: TokenId, asked: Asked) -> bool {
        let found = self.found.get(None, id.words()).map(|entry| taken_apart(entry.words).1);
        let missing =
            self.missing.get(None, id.words()).map(|entry| Asked::from_words(entry.words));
        found.into_iter().chain(missing).any(|kept| kept.number > asked.number)
    }

    pub(super) fn keep(&self, Packed { id, access, details }: Packed, asked: Asked) {
        let mut words = [0; 10];
        let [of_access @ .., at, number] = &mut words;
        (*of_access, *at, *number) = (access.words(), asked.at, asked.number);
        let now = self.now();
        self.found.put(id.words(), words, details, |words| {
            !taken_apart(*words).1.is_good(now, self.lifetime)
        });
    }

    pub(super) fn keep_missing(&self, id: TokenId, asked: Asked) {
        let now = self.now();
        let is_over =
            |words: &[u64; 2]| !Asked::from_words(*words).is_good(now, self.negative_lifetime);
        self.missing.put(id.words(), asked.words(), Arc::new(()), is_over);
    }
}

/// The read that a cached answer comes from.
#[derive(Clone, Copy)]
pub(super) struct Asked {
    /// The start of the read, in nanoseconds since the cache was built; saturates at `u64::MAX`.
    pub(super) at: u64,
    /// The number of the read, from 1. It orders reads because the clock may return the same time
    /// twice.
    pub(super) number: u64,
}

/// The current time and the current invalidation bound.
#[derive(Clone, Copy)]
pub(super) struct Now {
    /// The current time, in the unit of [`Asked::at`].
    pub(super) at: u64,
    /// Results of reads up to this number are invalid.
    pub(super) forgotten: u64,
}

impl Asked {
    pub(super) fn from_words([at, number]: [u64; 2]) -> Self {
        Self { at, number }
    }

    pub(super) fn words(self) -> [u64; 2] {
        [self.at, self.number]
    }

    /// Whether an answer of this read is still valid.
    #[inline]
    pub(super) fn is_good(self, now: Now, lifetime: Duration) -> bool {
        let age = Duration::from_nanos(now.at.saturating_sub(self.at));
        // A clock at its maximum gives no age, so nothing is valid.
        self.number > now.forgotten && age < lifetime && now.at < u64::MAX
    }
}

/// Splits the words stored beside the details of a record.
#[inline]
pub(super) fn taken_apart([of_access @ .., at, number]: [u64; 10]) -> (Access, Asked) {
    (Access::from_words(of_access), Asked { at, number })
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
