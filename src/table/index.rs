//! The index of one shard: an open-addressed table of numbers of 32 bits, which locate slots.
//!
//! The free places that open addressing needs cost four bytes each here, and not a slot. A number
//! holds the position of a slot, and above it six bits of the key's hash (the *tag*), so that few
//! slots of other keys are read.
//!
//! # Growth
//!
//! A full index grows in place: the writer empties all places, then enters every key again. Readers
//! go on meanwhile, and may miss a key that is not entered again yet. The counter `moves` is odd
//! during this, and a search that found nothing is repeated unless the counter was even before it
//! and equal after it.

use super::blocks::Growing;
use super::parts::{
    AtomicU32, AtomicU64, AtomicUsize, FIRST_BLOCK, INDEX_BLOCKS, INDEX_STEPS, Mutex, MutexGuard,
    Ordering,
};
use super::{POSITION, Place, to_index};
use std::sync::PoisonError;

/// The content of a place that was never taken, which ends a search. No slot has this position.
const NEVER: u32 = 0;
/// The content of a place whose key was removed. A search goes on. No slot has this position.
const REMOVED: u32 = POSITION;

/// One shard: an index, and the counts of its writers.
// Every search reads one cache line first: the length, the counter and the address of the first
// block.
#[repr(C, align(64))]
pub(super) struct Shard {
    /// How many places are searched. Zero before the first key; then a power of two, or three
    /// halves of one.
    len: AtomicUsize,
    /// Odd while keys are entered again; see the module.
    moves: AtomicU64,
    index: Growing<AtomicU32, INDEX_STEPS, INDEX_BLOCKS>,
    /// Held by every writer of the shard.
    counts: Mutex<Counts>,
}

#[derive(Default)]
pub(super) struct Counts {
    /// The highest position that was ever given to a key.
    pub(super) last: u32,
    /// The places up to that position that have no value.
    pub(super) free: Vec<Place>,
    /// The places of the index that do not end a search.
    taken: usize,
}

/// The value of `moves` before a search, to tell whether the search may have missed a key.
#[derive(Clone, Copy)]
pub(super) struct Moves(u64);

impl Shard {
    pub(super) fn new() -> Self {
        Self {
            len: AtomicUsize::new(0),
            moves: AtomicU64::new(0),
            index: Growing::new(),
            counts: Mutex::default(),
        }
    }

    /// Waits for the writers' lock. A poisoned lock still protects consistent counts, because no
    /// writer panics half-way.
    pub(super) fn lock(&self) -> MutexGuard<'_, Counts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the counter. Must be called before a search.
    #[inline(always)]
    pub(super) fn moves(&self) -> Moves {
        // Acquire: pairs with the Release increment at the end of `enter_all`. If this is the even
        // number after a growth, the search sees all keys that the growth entered.
        Moves(self.moves.load(Ordering::Acquire))
    }

    /// Returns `true` if a search that began with `before` and found nothing missed no key.
    #[inline(always)]
    pub(super) fn missed_nothing_since(&self, before: Moves) -> bool {
        // Relaxed: the search ended with Acquire loads. If one of these loads saw a store of a
        // growth, it also made the odd number before that store visible, so that the load here does
        // not get `before`.
        before.0.is_multiple_of(2) && self.moves.load(Ordering::Relaxed) == before.0
    }

    /// Returns the slots that may have a key with this hash.
    #[inline(always)]
    pub(super) fn places(&self, hash: u64) -> impl Iterator<Item = Place> {
        let tag = tag(hash);
        self.probe(hash)
            .map(|(_, found)| found)
            .take_while(|found| *found != NEVER)
            .filter(move |found| found & !POSITION == tag)
            .map(move |found| Place::new(hash, found & POSITION))
    }

    /// Returns `true` if one more key needs [`enter_all`](Self::enter_all) first. An index is at
    /// most half full, so that most searches end at the first place, as the processor predicts.
    pub(super) fn is_full(&self, counts: &Counts) -> bool {
        counts.taken.saturating_add(1).saturating_mul(2) > self.len_for_writer()
    }

    /// Enters a key whose slot is already written. The caller holds the lock, and the index has
    /// room.
    pub(super) fn enter(&self, hash: u64, place: Place, counts: &mut Counts) {
        let mut probe = self.probe(hash);
        if let Some((free, found)) = probe.find(|(_, found)| matches!(*found, NEVER | REMOVED)) {
            counts.taken = counts.taken.saturating_add(usize::from(found == NEVER));
            // Release: pairs with the Acquire load in `probe`. Since the last growth this place may
            // belong to another key than before, and a reader that searches the index as it was
            // before the growth must then see that `moves` changed. The reader also sees the slot
            // as it was written.
            free.store(tag(hash) | place.position(), Ordering::Release);
        }
    }

    /// Removes a key from the index. The caller holds the lock.
    pub(super) fn leave(&self, hash: u64, place: Place) {
        let entered = tag(hash) | place.position();
        if let Some((taken, _)) = self.probe(hash).find(|(_, found)| *found == entered) {
            // Release: pairs with the Acquire load in `probe`, for the same reason as in `enter`.
            taken.store(REMOVED, Ordering::Release);
        }
    }

    /// Enters all keys of the shard again. The new index has twice as many places, or equally many
    /// if half of the taken places have no key. The caller holds the lock.
    pub(super) fn enter_all(&self, keys: &[(u64, Place)], counts: &mut Counts) {
        let len = self.len_for_writer();
        let wanted = if keys.len().saturating_mul(2) < counts.taken {
            len
        } else if len.is_power_of_two() {
            len.saturating_add(len / 2)
        } else {
            // Grows from three halves of a power of two to the next one, or from zero to the first
            // block.
            len.next_power_of_two().max(FIRST_BLOCK)
        };
        self.index.grow(wanted, || AtomicU32::new(NEVER));

        // Relaxed: each store below is a Release store, which makes this odd number visible to each
        // thread that sees that store.
        self.moves.fetch_add(1, Ordering::Relaxed);
        for taken in (0..len).filter_map(|index| self.index.get(index)) {
            // Release: pairs with the Acquire load in `probe`; see `missed_nothing_since`.
            taken.store(NEVER, Ordering::Release);
        }
        // Release: pairs with the Acquire load in `probe`. A reader that searches the new length
        // sees that the index was emptied, and the odd number.
        self.len.store(wanted, Ordering::Release);
        counts.taken = 0;
        for (hash, place) in keys {
            self.enter(*hash, *place, counts);
        }
        // Release: pairs with the Acquire load in `moves`, so that a reader of this even number
        // sees the keys that were entered above.
        self.moves.fetch_add(1, Ordering::Release);
    }

    /// Returns the places that are searched for a key with this hash, in order, each once, and what
    /// they hold.
    #[inline(always)]
    fn probe(&self, hash: u64) -> impl Iterator<Item = (&AtomicU32, u32)> {
        // Acquire: pairs with the Release store in `enter_all`.
        let len = self.len.load(Ordering::Acquire);
        let start = scaled(hash, len);
        let searched = (0..len).filter_map(move |step| {
            let index = start.wrapping_add(step);
            self.index.get(if index < len { index } else { index.wrapping_sub(len) })
        });
        // Acquire: pairs with the Release stores in `enter`, `leave` and `enter_all`.
        searched.map(|searched| (searched, searched.load(Ordering::Acquire)))
    }

    pub(super) fn len_for_writer(&self) -> usize {
        // Relaxed: only writers store the length, and the lock orders them.
        self.len.load(Ordering::Relaxed)
    }
}

/// Returns the six bits of a hash that the index stores above a position.
#[allow(clippy::as_conversions, clippy::cast_possible_truncation, reason = "six bits are wanted")]
const fn tag(hash: u64) -> u32 {
    ((hash >> 26) as u32) & !POSITION
}

/// Scales a hash to an index below `len`, by the 32 bits below the tag.
#[allow(clippy::as_conversions, reason = "no machine has more than 64 bits")]
pub(super) const fn scaled(hash: u64, len: usize) -> usize {
    to_index(((hash >> 20) & 0xFFFF_FFFF).wrapping_mul(len as u64) >> 32)
}
