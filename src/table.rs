//! A map in memory whose readers take no lock and write nothing that other threads read.
//!
//! What is looked up lies in a slot: its key, a few words that are read together, and a shared value that is lent without
//! being counted. A slot is read under a sequence check (a seqlock of atomics alone): a reader that meets a change looks
//! again. Slots lie close together, in the order in which they were taken, and never move: the array that they lie in grows by
//! further blocks and is never copied, so nothing has to be kept alive for a reader.
//!
//! Where a slot lies is found in an index: an open-addressed table of numbers of 32 bits. What such a table has to keep free
//! costs four bytes a place, and not a slot.

#![allow(clippy::inline_always, reason = "measured: as functions, these cost a tenth of a verification")]

use arc_swap::{ArcSwap, Guard};
use prefetch_index::prefetch_index;
use std::hash::{BuildHasher, RandomState};
use std::hint::spin_loop;
use std::slice;
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering, fence};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

/// As many as these bits tell apart. Growing a shard's index stops readers of what it holds, for less the more shards there are; and the
/// fuller the one that fills up first is beside the others, the more slots are spare.
const SHARDS: usize = 1 << SHARD_BITS;
const SHARD_BITS: u32 = 4;
/// The first block of an array that grows, a power of two.
const FIRST_BLOCK: usize = 32;
/// As many blocks as an array of 2^32 has that takes each doubling at once.
const BLOCKS: usize = 28;
/// Slots take it in thirty-two steps: one in thirty-two of them at most is spare, and most are in pieces that are large enough for large
/// pages.
const SLOT_STEPS: u32 = 5;
/// As many blocks as 2^30 slots have then.
const SLOT_BLOCKS: usize = 801;
/// An index takes it in two steps, and so is never less than half as full as it may be.
const INDEX_STEPS: u32 = 1;
/// As many blocks as twice 2^26 places have then.
const INDEX_BLOCKS: usize = 45;
/// How often a reader looks again before it waits for whoever is changing what it looks for.
const LOOKS: usize = 64;

/// A place of the index has a position in these bits, and above them six bits of the hash: few slots are read in vain.
const POSITION_BITS: u32 = 26;
const POSITION: u32 = (1 << POSITION_BITS) - 1;
/// In a place of the index that was never taken: a search ends there. No slot has this position.
const NEVER: u32 = 0;
/// In one whose value was removed: a search goes on. There is no such position.
const REMOVED: u32 = POSITION;

/// The second word of the key in a slot without a value.
const FREE: u64 = 0;

/// 128 bits of which the second word is [`LEAST_SECOND_WORD`] or more.
pub(crate) type Key = [u64; 2];

/// The least that the second word of a key may be.
pub(crate) const LEAST_SECOND_WORD: u64 = 1;

/// Shared values by key, each with `WORDS` words that are read in one piece with it.
pub(crate) struct Table<T, const WORDS: usize> {
    slots: Growing<Slot<T, WORDS>, SLOT_STEPS, SLOT_BLOCKS>,
    /// Keys are looked up that others chose: nobody can aim them at one spot without these.
    hash_keys: [u64; 2],
    shards: Box<[Shard]>,
    /// What stands in a slot without a value.
    vacant: Arc<T>,
}

/// Where a value lies as long as it is in the table, however often it is put anew: the shard in the upper bits, then the
/// position. No place is zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Place(u32);

impl Place {
    pub(crate) const fn from_bits(bits: u32) -> Self {
        Self(bits)
    }

    pub(crate) const fn bits(self) -> u32 {
        self.0
    }

    /// A position in the shard of this hash.
    const fn new(hash: u64, position: u32) -> Self {
        Self(shard_bits(hash) | position)
    }

    const fn position(self) -> u32 {
        self.0 & POSITION
    }

    /// Where the slot lies in the array of them. Shards fill evenly: the first slots of all come before all second ones.
    pub(crate) fn index(self) -> usize {
        let shard = to_index((self.0 >> POSITION_BITS).into());
        to_index(self.position().into()).wrapping_shl(SHARD_BITS) | shard
    }

    /// The place of the slot that lies there.
    #[cfg(feature = "cache")]
    pub(crate) fn from_index(index: usize) -> Self {
        let shard = u32::try_from(index & (SHARDS - 1)).unwrap_or(0);
        let position = u32::try_from(index >> SHARD_BITS).unwrap_or(0) & POSITION;
        Self(shard.wrapping_shl(POSITION_BITS) | position)
    }
}

/// A value as it is lent, with the words beside it.
pub(crate) struct Entry<T, const WORDS: usize> {
    /// Where it lies.
    #[cfg_attr(not(feature = "cache"), allow(dead_code, reason = "only a cache asks"))]
    pub(crate) place: Place,
    pub(crate) value: Guard<Arc<T>>,
    pub(crate) words: [u64; WORDS],
}

/// An index of slots: open addressing with linear probing.
// What every search reads first lies in one line of the cache, the first block's place included.
#[repr(C, align(64))]
struct Shard {
    /// How many places of the index are searched; zero before the first value. A power of two, or three halves of one.
    len: AtomicUsize,
    /// Odd while values are put in other places: what is not found then may be on its way.
    moves: AtomicU64,
    index: Growing<AtomicU32, INDEX_STEPS, INDEX_BLOCKS>,
    /// Whoever changes anything holds it.
    counts: Mutex<Counts>,
}

#[derive(Default)]
struct Counts {
    /// The highest position that was ever taken.
    last: u32,
    /// Those up to it that hold no value.
    free: Vec<Place>,
    /// Places of the index that a search does not end at.
    taken: usize,
}

// Two lines of the cache with eight words: in the first lies what a search compares, and what is lent.
#[repr(C, align(32))]
struct Slot<T, const WORDS: usize> {
    /// Odd while the slot is written.
    sequence: AtomicU64,
    key: [AtomicU64; 2],
    value: ArcSwap<T>,
    words: [AtomicU64; WORDS],
}

/// What is read is being changed: look again.
struct Changing;

impl<T, const WORDS: usize> Table<T, WORDS> {
    /// An empty table; `vacant` is never handed out.
    pub(crate) fn new(vacant: Arc<T>) -> Self {
        let hasher = RandomState::new();
        Self {
            slots: Growing::new(),
            hash_keys: [0, 1].map(|number| hasher.hash_one(number)),
            shards: std::iter::repeat_with(Shard::new).take(SHARDS).collect(),
            vacant,
        }
    }

    /// The value with this key that `is` it: two values may share a key where keys are hashes.
    #[inline(always)]
    pub(crate) fn get(&self, key: Key, is: impl Fn(&T) -> bool) -> Option<Entry<T, WORDS>> {
        let hash = self.hash(key);
        let shard = self.shard(hash)?;
        for _ in 0..LOOKS {
            if let Ok(found) = self.look(shard, hash, key, &is) {
                return found;
            }
            spin_loop();
        }
        // Whoever changes it may have been put to sleep half way. With its lock in hand nothing changes.
        let _changing = shard.lock();
        self.look(shard, hash, key, &is).unwrap_or(None)
    }

    /// Where a value with this key seems to lie, if anywhere; and asks for that memory, which comes while something else is done. The
    /// index is read for it, which is in the cache most often; nothing waits for that but the asking.
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

    /// The value with this key that `is` it, looked for first where it seemed to lie.
    #[inline(always)]
    pub(crate) fn get_from(
        &self,
        place: Option<Place>,
        key: Key,
        is: impl Fn(&T) -> bool,
    ) -> Option<Entry<T, WORDS>> {
        if let Some(Ok((found, entry))) = place.and_then(|place| Some(self.slot(place)?.read(place)))
            && found == key
            && is(&entry.value)
        {
            return Some(entry);
        }
        self.get(key, is)
    }

    /// Puts a value in the place of the one that `is` it, or adds it. It gives the place; none where all are taken, which are
    /// 2^26 for each of the 16 shards.
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
        let len = shard.len.load(Ordering::Relaxed);
        // Half full at most: a search ends at the first place most often, so that the processor guesses right how it goes on, and always
        // somewhere.
        if counts.taken.saturating_add(1).saturating_mul(2) > len {
            self.make_room(hash, shard, &mut counts);
        }
        let place = self.take(hash, &mut counts)?;
        self.slot(place)?.write(key, words, value);
        // Found from here on, and whole.
        shard.enter(hash, place, &mut counts);
        Some(place)
    }

    /// Where a value lies, for whoever alone changes the table.
    pub(crate) fn place_of(&self, key: Key, is: impl Fn(&T) -> bool) -> Option<Place> {
        let hash = self.hash(key);
        self.find(hash, key, &is).map(|(place, _)| place)
    }

    /// What lies in a place, if anything, for the same.
    pub(crate) fn at(&self, place: Place) -> Option<(Key, Entry<T, WORDS>)> {
        self.slot(place)?.read(place).ok().filter(|([_, second], _)| *second != FREE)
    }

    /// The key of that.
    pub(crate) fn key_at(&self, place: Place) -> Key {
        self.slot(place).map_or([0, FREE], Slot::key)
    }

    /// Takes a value out; `false` where there is none.
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

    #[inline(always)]
    fn look(
        &self,
        shard: &Shard,
        hash: u64,
        key: Key,
        is: &impl Fn(&T) -> bool,
    ) -> Result<Option<Entry<T, WORDS>>, Changing> {
        let moves = shard.moves.load(Ordering::Acquire);
        for place in shard.places(hash) {
            // A slot that was given to another key meanwhile is none of this one's.
            if let Some(slot) = self.slot(place).filter(|slot| slot.second() == key[1]) {
                let (found, entry) = slot.read(place)?;
                if found == key && is(&entry.value) {
                    return Ok(Some(entry));
                }
            }
        }
        // Whoever saw a place of the index that was emptied for a move sees here that there is one.
        if moves.is_multiple_of(2) && shard.moves.load(Ordering::Acquire) == moves {
            Ok(None)
        } else {
            Err(Changing)
        }
    }

    /// Under the lock of the key's shard, as are those below.
    fn find(&self, hash: u64, key: Key, is: &impl Fn(&T) -> bool) -> Option<(Place, &Slot<T, WORDS>)> {
        let places = self.shard(hash)?.places(hash);
        places
            .filter_map(|place| Some((place, self.slot(place)?)))
            .filter(|(_, slot)| slot.second() == key[1])
            .find(|(place, slot)| {
                matches!(slot.read(*place), Ok((found, entry)) if found == key && is(&entry.value))
            })
    }

    /// A place without a value; none where all are taken.
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

    /// Enters every value of a shard anew, with twice the places of the index unless many of those that are taken lead to no value.
    fn make_room(&self, hash: u64, shard: &Shard, counts: &mut Counts) {
        // Before any reader is stopped: these are read from memory.
        let values: Vec<(u64, Place)> = (1..=counts.last)
            .map(|position| Place::new(hash, position))
            .map(|place| (self.key_at(place), place))
            .filter(|(key, _)| key[1] != FREE)
            .map(|(key, place)| (self.hash(key), place))
            .collect();
        shard.enter_anew(&values, counts);
    }

    #[inline(always)]
    fn slot(&self, place: Place) -> Option<&Slot<T, WORDS>> {
        self.slots.get(place.index())
    }

    /// The words of a key are random already, but for who chooses the keys that are looked up. Each is hidden by a secret of its own before
    /// they are multiplied, and both halves of the product count: every bit of the key bears on every bit of the hash.
    fn hash(&self, [first, second]: Key) -> u64 {
        let [one, other] = self.hash_keys;
        let product = u128::from(first ^ one).wrapping_mul(u128::from(second ^ other));
        lower(product) ^ lower(product >> 64)
    }

    /// By the top bits. Below them is the tag in the index, and below that is what says where in it a key is looked for.
    fn shard(&self, hash: u64) -> Option<&Shard> {
        self.shards.get(to_index(hash >> (u64::BITS - SHARD_BITS)))
    }
}

impl Shard {
    fn new() -> Self {
        Self {
            len: AtomicUsize::new(0),
            moves: AtomicU64::new(0),
            index: Growing::new(),
            counts: Mutex::default(),
        }
    }

    /// What is searched for a key with this hash, in this order, each once, with what stands in it.
    #[inline(always)]
    fn probe(&self, hash: u64) -> impl Iterator<Item = (&AtomicU32, u32)> {
        let len = self.len.load(Ordering::Acquire);
        let start = scaled(hash, len);
        let searched = (0..len).filter_map(move |step| {
            let index = start.wrapping_add(step);
            self.index.get(if index < len { index } else { index.wrapping_sub(len) })
        });
        searched.map(|searched| (searched, searched.load(Ordering::Acquire)))
    }

    /// Where a key with this hash may lie.
    #[inline(always)]
    fn places(&self, hash: u64) -> impl Iterator<Item = Place> {
        let tag = tag(hash);
        self.probe(hash)
            .map(|(_, found)| found)
            .take_while(|found| *found != NEVER)
            .filter(move |found| found & !POSITION == tag)
            .map(move |found| Place::new(hash, found & POSITION))
    }

    /// Under the lock, with room.
    fn enter(&self, hash: u64, place: Place, counts: &mut Counts) {
        if let Some((free, found)) = self.probe(hash).find(|(_, found)| matches!(*found, NEVER | REMOVED)) {
            counts.taken = counts.taken.saturating_add(usize::from(found == NEVER));
            free.store(tag(hash) | place.position(), Ordering::Release);
        }
    }

    /// Under the lock.
    fn leave(&self, hash: u64, place: Place) {
        let entered = tag(hash) | place.position();
        if let Some((taken, _)) = self.probe(hash).find(|(_, found)| *found == entered) {
            taken.store(REMOVED, Ordering::Release);
        }
    }

    /// Under the lock.
    fn enter_anew(&self, values: &[(u64, Place)], counts: &mut Counts) {
        let len = self.len.load(Ordering::Relaxed);
        let wanted = if values.len().saturating_mul(2) < counts.taken {
            len
        } else if len.is_power_of_two() {
            len.saturating_add(len / 2)
        } else {
            // From three halves of a power of two to the next one; from nothing to the first.
            len.next_power_of_two().max(FIRST_BLOCK)
        };
        self.index.grow(wanted, || AtomicU32::new(NEVER));

        self.moves.fetch_add(1, Ordering::AcqRel);
        for taken in (0..len).filter_map(|index| self.index.get(index)) {
            taken.store(NEVER, Ordering::Release);
        }
        self.len.store(wanted, Ordering::Release);
        counts.taken = 0;
        for (hash, place) in values {
            self.enter(*hash, *place, counts);
        }
        self.moves.fetch_add(1, Ordering::AcqRel);
    }

    /// A panic elsewhere leaves the shard whole: nothing in here can panic.
    fn lock(&self) -> MutexGuard<'_, Counts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T, const WORDS: usize> Slot<T, WORDS> {
    fn new(vacant: Arc<T>) -> Self {
        Self {
            sequence: AtomicU64::new(0),
            key: [AtomicU64::new(0), AtomicU64::new(FREE)],
            value: ArcSwap::new(vacant),
            words: std::array::from_fn(|_| AtomicU64::new(0)),
        }
    }

    fn second(&self) -> u64 {
        let [_, second] = &self.key;
        second.load(Ordering::Acquire)
    }

    fn key(&self) -> Key {
        self.key.each_ref().map(|word| word.load(Ordering::Relaxed))
    }

    /// Key, value and words as they were at one moment, of the slot in this place.
    #[inline(always)]
    fn read(&self, place: Place) -> Result<(Key, Entry<T, WORDS>), Changing> {
        let seen = self.sequence.load(Ordering::Acquire);
        let key = self.key();
        let value = self.value.load();
        let words = self.words.each_ref().map(|word| word.load(Ordering::Relaxed));
        // None of these loads may sink below the second look at the sequence.
        fence(Ordering::Acquire);
        if seen.is_multiple_of(2) && self.sequence.load(Ordering::Relaxed) == seen {
            Ok((key, Entry { place, value, words }))
        } else {
            Err(Changing)
        }
    }

    /// Under the lock.
    fn write(&self, key: Key, words: [u64; WORDS], value: Arc<T>) {
        let before = self.sequence.load(Ordering::Relaxed);
        self.sequence.store(before.wrapping_add(1), Ordering::Relaxed);
        // None of the stores below may rise above that one.
        fence(Ordering::Release);
        self.value.store(value);
        for (place, word) in self.words.iter().zip(words) {
            place.store(word, Ordering::Relaxed);
        }
        let [first, second] = &self.key;
        first.store(key[0], Ordering::Relaxed);
        second.store(key[1], Ordering::Release);
        self.sequence.store(before.wrapping_add(2), Ordering::Release);
    }
}

/// An array that grows while others read it: by blocks, which stay where they are. It doubles in 2^`STEPS` equal steps, of one
/// block each.
pub(crate) struct Growing<T, const STEPS: u32 = 0, const LEN: usize = BLOCKS> {
    blocks: [OnceLock<Box<[T]>>; LEN],
}

impl<T, const STEPS: u32, const LEN: usize> Growing<T, STEPS, LEN> {
    pub(crate) const fn new() -> Self {
        const { assert!(STEPS <= FIRST_BLOCK.ilog2()) };
        Self { blocks: [const { OnceLock::new() }; LEN] }
    }

    /// What stands at this index, if the array is that long.
    #[inline(always)]
    pub(crate) fn get(&self, index: usize) -> Option<&T> {
        let (block, start) = Self::block_of(index);
        self.blocks.get(block)?.get()?.get(index.wrapping_sub(start))
    }

    /// Makes it at least so long.
    pub(crate) fn grow(&self, len: usize, make: impl Fn() -> T) {
        let Some(last) = len.checked_sub(1) else { return };
        let (last, _) = Self::block_of(last);
        for (number, block) in self.blocks.iter().enumerate().take(last.saturating_add(1)) {
            // Of 2^STEPS blocks each, all but the first.
            let doubling = u32::try_from(number.saturating_sub(1) >> STEPS).unwrap_or(0);
            let shift = if number == 0 { 0 } else { STEPS };
            let len = (FIRST_BLOCK >> shift).checked_shl(doubling).unwrap_or(0);
            block.get_or_init(|| std::iter::repeat_with(&make).take(len).collect());
        }
    }

    /// The block that an index lies in, and the index that the block begins with.
    #[inline(always)]
    fn block_of(index: usize) -> (usize, usize) {
        match (index / FIRST_BLOCK).checked_ilog2() {
            None => (0, 0),
            Some(doubling) => {
                // All blocks of one doubling are as long as this power of two.
                let power = doubling.wrapping_add(FIRST_BLOCK.ilog2()).wrapping_sub(STEPS);
                let number = index.wrapping_shr(power);
                // The leading one of the number stands for the blocks of one doubling before.
                let before = to_index(doubling.into()).wrapping_shl(STEPS);
                let step = number.wrapping_sub(1_usize.wrapping_shl(STEPS));
                (before.wrapping_add(step).wrapping_add(1), number.wrapping_shl(power))
            }
        }
    }
}

/// The shard of a hash as it stands in a place.
#[allow(clippy::as_conversions, clippy::cast_possible_truncation, reason = "a few bits are left")]
const fn shard_bits(hash: u64) -> u32 {
    ((hash >> (u64::BITS - SHARD_BITS)) as u32) << POSITION_BITS
}

/// The bits of a hash that stand in the index beside a position.
#[allow(clippy::as_conversions, clippy::cast_possible_truncation, reason = "six bits are wanted")]
const fn tag(hash: u64) -> u32 {
    ((hash >> 26) as u32) & !POSITION
}

/// A hash as a place of an index that is so long, by 32 bits below its tag.
#[allow(clippy::as_conversions, reason = "no machine has more than 64 bits")]
const fn scaled(hash: u64, len: usize) -> usize {
    to_index(((hash >> 20) & 0xFFFF_FFFF).wrapping_mul(len as u64) >> 32)
}

#[allow(clippy::as_conversions, clippy::cast_possible_truncation, reason = "the lower half is wanted")]
const fn lower(number: u128) -> u64 {
    number as u64
}

/// Wider than any table on a machine with fewer bits; what is too much is masked away.
#[allow(clippy::as_conversions, clippy::cast_possible_truncation, reason = "masked, or below 2^27")]
const fn to_index(number: u64) -> usize {
    number as usize
}

#[cfg(test)]
#[allow(
    clippy::arithmetic_side_effects,
    clippy::as_conversions,
    clippy::cast_possible_truncation,
    clippy::many_single_char_names,
    reason = "tests"
)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashMap;
    use std::sync::atomic::AtomicBool;
    use std::thread;

    fn table() -> Table<u64, 2> {
        Table::new(Arc::new(u64::MAX))
    }

    fn key(number: u64) -> Key {
        [number / 3, LEAST_SECOND_WORD + number]
    }

    fn get(table: &Table<u64, 2>, number: u64) -> Option<([u64; 2], u64)> {
        table.get(key(number), |_| true).map(|entry| (entry.words, **entry.value))
    }

    proptest! {
        /// Against a map of std's; few keys, so that slots are removed, reused and moved often.
        #[test]
        fn it_is_a_map(steps in prop::collection::vec((0..3_u8, 0..2_000_u64, any::<u64>()), 0..4_000)) {
            let (table, mut map) = (table(), HashMap::new());
            for (what, number, value) in steps {
                match what {
                    0 => {
                        table.put(key(number), |_| true, [value, !value], Arc::new(value));
                        map.insert(number, value);
                    }
                    1 => prop_assert_eq!(table.remove(key(number), |_| true), map.remove(&number).is_some()),
                    _ => {
                        let expected = map.get(&number).map(|value| ([*value, !*value], *value));
                        prop_assert_eq!(get(&table, number), expected);
                    }
                }
            }
            for number in 0..2_000 {
                prop_assert_eq!(get(&table, number).map(|(_, value)| value), map.get(&number).copied());
            }
        }
    }

    /// So many that some share a place's tag and others a shard's index; and places are given to other keys between the look ahead
    /// and the look-up.
    #[test]
    fn a_look_ahead_changes_nothing_of_what_is_found() {
        let table = table();
        for number in 0..5_000 {
            table.put(key(number), |_| true, [number; 2], Arc::new(number));
        }
        let ahead: Vec<_> = (0..6_000).map(|number| table.seek(key(number))).collect();
        let from = |number: u64| {
            let entry = table.get_from(ahead[number as usize], key(number), |_| true)?;
            Some((entry.words, **entry.value))
        };
        let misled = (0..5_000).filter(|n| table.place_of(key(*n), |_| true) != ahead[*n as usize]).count();
        assert!(misled > 0, "no tag is shared");
        for number in 0..6_000 {
            assert_eq!(from(number), (number < 5_000).then_some(([number; 2], number)));
        }
        for number in 0..2_500 {
            assert!(table.remove(key(number), |_| true));
        }
        for number in 5_000..8_000 {
            table.put(key(number), |_| true, [number; 2], Arc::new(number));
        }
        for number in 0..6_000 {
            assert_eq!(from(number), (number >= 2_500).then_some(([number; 2], number)));
        }
        // A place that leads to another key's slot, whatever it is.
        for number in 2_500..5_000 {
            let other = table.place_of(key(number + 1), |_| true);
            let found = table.get_from(other, key(number), |_| true).map(|entry| **entry.value);
            assert_eq!(found, Some(number));
        }
    }

    #[test]
    fn removing_and_adding_for_ever_takes_no_more_room() {
        let table = table();
        for number in 0..200_000 {
            table.put(key(number), |_| true, [0; 2], Arc::new(number));
            if number >= 100 {
                assert!(table.remove(key(number - 100), |_| true));
            }
        }
        let most = table.shards.iter().map(|shard| shard.len.load(Ordering::Relaxed)).max();
        assert!(most <= Some(128), "{most:?} places of an index");
        // At any time there are 101 values: they do not fill one shard by far.
        let slots: u32 = table.shards.iter().map(|shard| shard.lock().last).sum();
        assert!(slots <= 700, "{slots} slots");
    }

    /// Who looks up ids of their own making writes them in pieces that look alike. Under one secret in a hundred some of these lie
    /// close; none do under each of three.
    #[test]
    fn keys_that_differ_in_a_few_bits_of_either_word_lie_apart() {
        let tables: Vec<_> = std::iter::repeat_with(table).take(3).collect();
        let base = [0x0190_1234_5678_7ABC, 0x8123_4567_89AB_CDEF];
        let most_at_one_place = |table: &Table<u64, 2>, word: usize, shift: u32| {
            let mut counts = HashMap::new();
            for number in 0..1_024_u64 {
                let mut key = base;
                key[word] ^= number << shift;
                let hash = table.hash(key);
                // One of 8,192 places.
                *counts.entry((hash >> (u64::BITS - SHARD_BITS), scaled(hash, 512))).or_insert(0_u32) += 1;
            }
            counts.into_values().max()
        };
        for word in 0..2 {
            for shift in 0..=54 {
                let most = tables.iter().map(|table| most_at_one_place(table, word, shift)).min().flatten();
                assert!(most <= Some(16), "word {word}, bits from {shift}: {most:?} at one place");
            }
        }
    }

    #[test]
    fn values_that_share_a_key_are_told_apart() {
        let table = table();
        for value in [10, 11, 12] {
            table.put(key(1), |found| *found == value, [value; 2], Arc::new(value));
        }
        table.put(key(1), |found| *found == 11, [7; 2], Arc::new(11));
        assert!(table.remove(key(1), |found| *found == 10));
        let get = |value| table.get(key(1), |found| *found == value).map(|entry| entry.words);
        assert_eq!((get(10), get(11), get(12)), (None, Some([7; 2]), Some([12; 2])));
    }

    #[test]
    fn an_array_grows_and_nothing_in_it_moves() {
        fn grows<const STEPS: u32, const LEN: usize>(spare: usize) {
            let array = Growing::<usize, STEPS, LEN>::new();
            let next = AtomicUsize::new(0);
            assert!(array.get(0).is_none());
            for len in [1, 16, 17, 100, 5_000, 5_000] {
                array.grow(len, || next.fetch_add(1, Ordering::Relaxed));
                for index in 0..len {
                    assert_eq!(array.get(index), Some(&index));
                }
                assert!(array.get(len.max(FIRST_BLOCK) + spare * len / 32).is_none());
            }
            assert!(array.get(usize::MAX).is_none());
        }
        grows::<0, BLOCKS>(32);
        grows::<INDEX_STEPS, INDEX_BLOCKS>(16);
        grows::<SLOT_STEPS, SLOT_BLOCKS>(1);
    }

    /// What is there all the time is found all the time, whole, whatever is done beside it; and what was put is seen by every
    /// look that begins afterwards.
    #[test]
    fn readers_never_miss_and_never_see_a_torn_value() {
        const STAYING: u64 = 500;
        let (table, over) = (table(), AtomicBool::new(false));
        for number in 0..STAYING {
            table.put(key(number), |_| true, [0, 0], Arc::new(0));
        }
        let acknowledged: Vec<AtomicU64> = (0..STAYING).map(|_| AtomicU64::new(0)).collect();
        thread::scope(|scope| {
            for reader in 0..2 {
                let (table, over, acknowledged) = (&table, &over, &acknowledged);
                scope.spawn(move || {
                    let mut number = reader;
                    while !over.load(Ordering::Relaxed) {
                        number = (number * 31 + 7) % STAYING;
                        let least = acknowledged[number as usize].load(Ordering::Acquire);
                        let ([one, two], value) = get(table, number).expect("it is always there");
                        assert!(one == two && two == value, "torn");
                        assert!(value >= least, "older than what was acknowledged");
                        assert_eq!(get(table, STAYING + 5_000_000), None);
                    }
                });
            }
            for round in 1..=40_u64 {
                for number in 0..STAYING {
                    table.put(key(number), |_| true, [round; 2], Arc::new(round));
                    acknowledged[number as usize].store(round, Ordering::Release);
                    // These come and go, and make the shards grow and tidy up.
                    table.put(key(STAYING + round * STAYING + number), |_| true, [1; 2], Arc::new(1));
                    if round % 3 == 0 {
                        table.remove(key(STAYING + (round - 1) * STAYING + number), |_| true);
                    }
                }
            }
            over.store(true, Ordering::Relaxed);
        });
    }
}
