//! The lock-free table: a map in memory whose readers take no lock, and write nothing that other
//! threads read.
//!
//! A value is in a *slot*, with its key and a few words that are read together with it. Slots are
//! adjacent in the order in which they were first taken, in an array that grows without moving
//! them. A slot is found through an *index*. Both are divided into shards by the key's hash. After
//! its value is removed, a slot is reused for another key but never freed, so readers keep nothing
//! alive.
//!
//! | file | content |
//! |---|---|
//! | `mod.rs` | the map: looks up, puts and removes |
//! | `slot.rs` | a slot, and how it is read while it is written |
//! | `index.rs` | the index of a shard, and how it is searched while it grows |
//! | `blocks.rs` | the array that grows |
//! | `bounded.rs` | a table of bounded size, which evicts; for caches |
//! | `parts.rs` | the atomics and sizes, which the models replace |
//!
//! # What readers may rely on
//!
//! * A key that is in the table throughout a search is found.
//! * Key, value and words belong together: they were put by one call.
//! * A search that starts after a put or removal has returned, in the same thread or in one that
//!   synchronized with it, sees that change or a later one.
//!
//! # How it is checked
//!
//! Each atomic access has a comment that names its ordering and gives its reason. `tests/loom`
//! compiles these files with atomics and locks that loom controls, and tries the orders in which a
//! few threads can interleave, and the stale values that their orderings permit. `scripts/loom`
//! runs these models, and `scripts/loom-bugs` weakens the orderings one at a time and fails unless
//! a model finds it. `tests/loom/src/main.rs` says what the models do not cover.

#![allow(
    clippy::inline_always,
    reason = "measured: as calls, these cost a tenth of a verification"
)]

mod blocks;
#[cfg(feature = "cache")]
mod bounded;
mod index;
#[cfg_attr(patkit_loom, path = "../../tests/loom/src/parts.rs")]
mod parts;
mod slot;
#[cfg(test)]
mod tests;

pub(crate) use blocks::Growing;
#[cfg(feature = "cache")]
pub(crate) use bounded::BoundedTable;

use index::{Counts, Shard};
use parts::{
    Lent, RETRIES, SHARD_BITS, SLOT_BLOCKS, SLOT_STEPS, hash_keys, prefetch_index, spin_loop,
};
use slot::{Changing, FREE, Slot};
use std::slice;
use std::sync::Arc;

const SHARDS: usize = 1 << SHARD_BITS;
/// A place has the position of a slot in these bits, and the number of its shard above them.
const POSITION_BITS: u32 = 26;
const POSITION: u32 = (1 << POSITION_BITS) - 1;

/// A key of 128 bits. Its second word is at least [`LEAST_SECOND_WORD`].
pub(crate) type Key = [u64; 2];

/// The least value that the second word of a key may have.
pub(crate) const LEAST_SECOND_WORD: u64 = 1;

/// Shared values by key, each with `WORDS` words that are read together with it.
pub(crate) struct Table<T, const WORDS: usize> {
    slots: Growing<Slot<T, WORDS>, SLOT_STEPS, SLOT_BLOCKS>,
    /// The secrets of the hash, without which nobody can choose keys that collide.
    hash_keys: [u64; 2],
    shards: Box<[Shard]>,
    /// The placeholder in slots without a value.
    vacant: Arc<T>,
}

/// The place of a value in the table, which does not change if the value is replaced. No place is
/// zero.
///
/// The upper bits are the shard, the others the position of the slot within it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Place(u32);

impl Place {
    pub(crate) const fn from_bits(bits: u32) -> Self {
        Self(bits)
    }

    pub(crate) const fn bits(self) -> u32 {
        self.0
    }

    /// Returns the place at a position in the shard of this hash.
    const fn new(hash: u64, position: u32) -> Self {
        Self(shard_bits(hash) | position)
    }

    const fn position(self) -> u32 {
        self.0 & POSITION
    }

    /// Returns the index of the slot in the array of slots. The first slots of all shards come
    /// before all second slots, because shards fill evenly.
    pub(crate) fn index(self) -> usize {
        let shard = to_index((self.0 >> POSITION_BITS).into());
        to_index(self.position().into()).wrapping_shl(SHARD_BITS) | shard
    }

    /// Returns the place of the slot at this index of the array of slots.
    #[cfg(feature = "cache")]
    pub(crate) fn from_index(index: usize) -> Self {
        let shard = u32::try_from(index & (SHARDS - 1)).unwrap_or(0);
        let position = u32::try_from(index >> SHARD_BITS).unwrap_or(0) & POSITION;
        Self(shard.wrapping_shl(POSITION_BITS) | position)
    }
}

/// A value on loan from the table, with the words beside it.
pub(crate) struct Entry<T, const WORDS: usize> {
    #[cfg_attr(not(feature = "cache"), allow(dead_code, reason = "only a cache reads it"))]
    pub(crate) place: Place,
    pub(crate) value: Lent<T>,
    pub(crate) words: [u64; WORDS],
}

impl<T, const WORDS: usize> Table<T, WORDS> {
    /// Creates an empty table. `vacant` is never returned.
    pub(crate) fn new(vacant: Arc<T>) -> Self {
        Self {
            slots: Growing::new(),
            hash_keys: hash_keys(),
            shards: std::iter::repeat_with(Shard::new).take(SHARDS).collect(),
            vacant,
        }
    }

    /// Returns the value with this key for which `is` returns `true`. Several values may share a
    /// key if keys are hashes.
    #[inline(always)]
    pub(crate) fn get(&self, key: Key, is: impl Fn(&T) -> bool) -> Option<Entry<T, WORDS>> {
        let hash = self.hash(key);
        let shard = self.shard(hash)?;
        for _ in 0..RETRIES {
            if let Ok(found) = self.search(shard, hash, key, &is) {
                return found;
            }
            spin_loop();
        }
        // The writer may have been suspended half-way. Nothing changes while this thread holds the
        // lock.
        let _no_writer = shard.lock();
        self.search(shard, hash, key, &is).unwrap_or(None)
    }

    /// Returns where a value with this key seems to be, and prefetches that memory while the caller
    /// does something else. Reads the index, which is usually in the processor's cache.
    #[inline(always)]
    pub(crate) fn seek(&self, key: Key) -> Option<Place> {
        let hash = self.hash(key);
        let place = self.shard(hash)?.places(hash).next()?;
        let slot = self.slot(place)?;
        prefetch_index(slice::from_ref(&slot.sequence), 0);
        if WORDS > 4 {
            prefetch_index(&slot.words, 4);
        }
        Some(place)
    }

    /// Returns the same value as [`get`](Self::get), but first checks the place that
    /// [`seek`](Self::seek) returned.
    #[inline(always)]
    pub(crate) fn get_from(
        &self,
        place: Option<Place>,
        key: Key,
        is: impl Fn(&T) -> bool,
    ) -> Option<Entry<T, WORDS>> {
        if let Some(Ok((found, entry))) =
            place.and_then(|place| Some(self.slot(place)?.read(place)))
            && found == key
            && is(&entry.value)
        {
            return Some(entry);
        }
        self.get(key, is)
    }

    /// Replaces the value with this key for which `is` returns `true`, or adds one. Returns its
    /// place, or `None` if the shard is full, with 2^26 values.
    pub(crate) fn put(
        &self,
        key: Key,
        is: impl Fn(&T) -> bool,
        words: [u64; WORDS],
        value: Arc<T>,
    ) -> Option<Place> {
        let hash = self.hash(key);
        let shard = self.shard(hash)?;
        let mut counts = shard.lock();
        if let Some((place, slot)) = self.find(hash, key, &is) {
            slot.write(key, words, value);
            return Some(place);
        }
        if shard.is_full(&counts) {
            self.make_room(hash, shard, &mut counts);
        }
        let place = self.take(hash, &mut counts)?;
        self.slot(place)?.write(key, words, value);
        // Enters the key last, so that no reader finds a slot that has no value yet.
        shard.enter(hash, place, &mut counts);
        Some(place)
    }

    /// Returns the place of a value. Only a caller that prevents changes may rely on it.
    pub(crate) fn place_of(&self, key: Key, is: impl Fn(&T) -> bool) -> Option<Place> {
        let hash = self.hash(key);
        self.find(hash, key, &is).map(|(place, _)| place)
    }

    /// Returns the key and the entry in a place. Only a caller that prevents changes may rely on
    /// it.
    pub(crate) fn at(&self, place: Place) -> Option<(Key, Entry<T, WORDS>)> {
        self.slot(place)?.read(place).ok().filter(|([_, second], _)| *second != FREE)
    }

    /// Returns the key in a place. Only a caller that prevents changes may rely on it.
    pub(crate) fn key_at(&self, place: Place) -> Key {
        self.slot(place).map_or([0, FREE], Slot::key)
    }

    /// Removes a value. Returns `false` if the key has none.
    pub(crate) fn remove(&self, key: Key, is: impl Fn(&T) -> bool) -> bool {
        let hash = self.hash(key);
        let Some(shard) = self.shard(hash) else { return false };
        let mut counts = shard.lock();
        let Some((place, slot)) = self.find(hash, key, &is) else { return false };
        shard.leave(hash, place);
        slot.write([0, FREE], [0; WORDS], self.vacant.clone());
        counts.free.push(place);
        true
    }

    /// Searches once. Errors if a concurrent change may hide the value.
    #[inline(always)]
    fn search(
        &self,
        shard: &Shard,
        hash: u64,
        key: Key,
        is: &impl Fn(&T) -> bool,
    ) -> Result<Option<Entry<T, WORDS>>, Changing> {
        let moves = shard.moves();
        for place in shard.places(hash) {
            if let Some(slot) = self.slot(place).filter(|slot| slot.second() == key[1]) {
                let (found, entry) = slot.read(place)?;
                if found == key && is(&entry.value) {
                    return Ok(Some(entry));
                }
            }
        }
        if shard.missed_nothing_since(moves) { Ok(None) } else { Err(Changing) }
    }

    /// Finds a value, under the lock of its shard.
    fn find(
        &self,
        hash: u64,
        key: Key,
        is: &impl Fn(&T) -> bool,
    ) -> Option<(Place, &Slot<T, WORDS>)> {
        let places = self.shard(hash)?.places(hash);
        places
            .filter_map(|place| Some((place, self.slot(place)?)))
            .filter(|(_, slot)| slot.second() == key[1])
            .find(|(place, slot)| {
                matches!(slot.read(*place), Ok((found, entry)) if found == key && is(&entry.value))
            })
    }

    /// Returns a place without a value, or `None` if all are taken. The caller holds the lock.
    fn take(&self, hash: u64, counts: &mut Counts) -> Option<Place> {
        if let Some(place) = counts.free.pop() {
            return Some(place);
        }
        let position = counts.last.saturating_add(1);
        if position >= POSITION {
            return None;
        }
        counts.last = position;
        let place = Place::new(hash, position);
        if self.slots.get(place.index()).is_none() {
            self.slots.grow(place.index().saturating_add(1), || Slot::new(self.vacant.clone()));
        }
        Some(place)
    }

    /// Makes room in the index of a shard. The caller holds the lock.
    fn make_room(&self, hash: u64, shard: &Shard, counts: &mut Counts) {
        // Reads all keys first, which takes longest, because readers need not wait yet.
        let keys: Vec<(u64, Place)> = (1..=counts.last)
            .map(|position| Place::new(hash, position))
            .map(|place| (self.key_at(place), place))
            .filter(|(key, _)| key[1] != FREE)
            .map(|(key, place)| (self.hash(key), place))
            .collect();
        shard.enter_all(&keys, counts);
    }

    #[inline(always)]
    fn slot(&self, place: Place) -> Option<&Slot<T, WORDS>> {
        self.slots.get(place.index())
    }

    /// Hashes a key.
    ///
    /// Keys are random, unless a client chose them. Each word is hidden by a secret before the two
    /// are multiplied, and both halves of the product count, so that every bit of the key affects
    /// every bit of the hash.
    fn hash(&self, [first, second]: Key) -> u64 {
        let [one, other] = self.hash_keys;
        let product = u128::from(first ^ one).wrapping_mul(u128::from(second ^ other));
        lower(product) ^ lower(product >> 64)
    }

    /// Returns the shard of a hash, which its top bits choose. The bits below them are the tag, and
    /// the next ones choose where a search begins.
    fn shard(&self, hash: u64) -> Option<&Shard> {
        self.shards.get(to_index(hash >> (u64::BITS - SHARD_BITS)))
    }
}

/// Returns the shard of a hash, shifted to the bits of a place that hold the shard.
#[allow(clippy::as_conversions, clippy::cast_possible_truncation, reason = "a few bits are left")]
const fn shard_bits(hash: u64) -> u32 {
    ((hash >> (u64::BITS - SHARD_BITS)) as u32) << POSITION_BITS
}

#[allow(
    clippy::as_conversions,
    clippy::cast_possible_truncation,
    reason = "the lower half is wanted"
)]
const fn lower(number: u128) -> u64 {
    number as u64
}

/// Converts a number that is masked, or below 2^27.
#[allow(clippy::as_conversions, clippy::cast_possible_truncation, reason = "see above")]
const fn to_index(number: u64) -> usize {
    number as usize
}
