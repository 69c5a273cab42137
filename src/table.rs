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

/// As many as six bits tell apart. Growing a shard's index stops readers of what it holds for about a nanosecond per value:
/// many shards, short stops.
const SHARDS: usize = 64;
/// Slots that are made at once.
const SLOTS: usize = 32;
/// The first block of an array that grows, a power of two.
const FIRST_BLOCK: usize = 16;
/// As many blocks as an array of 2^33 has; each is as long as all before it.
const BLOCKS: usize = 30;
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
    hash_key: u64,
    shards: Box<[Shard<T, WORDS>]>,
    /// What stands in a slot without a value.
    vacant: Arc<T>,
}

/// Where a value lies as long as it is in the table, however often it is put anew: the shard in the upper six bits, then the
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
}

/// A value as it is lent, with the words beside it.
pub(crate) struct Entry<T, const WORDS: usize> {
    pub(crate) value: Guard<Arc<T>>,
    pub(crate) words: [u64; WORDS],
}

/// Slots, and an index of them: open addressing with linear probing.
// What every search reads first lies in one line of the cache, the first block's place included.
#[repr(C, align(64))]
struct Shard<T, const WORDS: usize> {
    /// How many places of the index are searched, a power of two; zero before the first value.
    len: AtomicUsize,
    /// Odd while values are put in other places: what is not found then may be on its way.
    moves: AtomicU64,
    index: Growing<AtomicU32>,
    /// By position, [`SLOTS`] in each.
    slots: Growing<OnceLock<Box<[Slot<T, WORDS>; SLOTS]>>>,
    /// Whoever changes anything holds it.
    counts: Mutex<Counts>,
}

#[derive(Default)]
struct Counts {
    /// The highest position that was ever taken.
    last: u32,
    /// Those up to it that hold no value.
    free: Vec<u32>,
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
        Self {
            // Keys are looked up that others chose: nobody can aim them at one spot without this.
            hash_key: RandomState::new().hash_one(0),
            shards: std::iter::repeat_with(Shard::new).take(SHARDS).collect(),
            vacant,
        }
    }

    /// The value with this key that `is` it: two values may share a key where keys are hashes.
    #[inline(always)]
    pub(crate) fn get(&self, key: Key, is: impl Fn(&T) -> bool) -> Option<Entry<T, WORDS>> {
        let hash = self.hash(key);
        self.shard(hash)?.get(hash, key, &is)
    }

    /// Where a value with this key seems to lie, if anywhere; and asks for that memory, which comes while something else is done. The
    /// index is read for it, which is in the cache most often; nothing waits for that but the asking.
    #[inline(always)]
    pub(crate) fn seek(&self, key: Key) -> Option<Place> {
        let hash = self.hash(key);
        let shard = self.shard(hash)?;
        let position = shard.positions(hash).next()?;
        let slot = shard.slot(position)?;
        prefetch_index(slice::from_ref(&slot.sequence), 0);
        if WORDS > 4 {
            prefetch_index(&slot.words, 4);
        }
        Some(Place(shard_bits(hash) | position))
    }

    /// The value with this key that `is` it, looked for first where it seemed to lie.
    #[inline(always)]
    pub(crate) fn get_from(
        &self,
        place: Option<Place>,
        key: Key,
        is: impl Fn(&T) -> bool,
    ) -> Option<Entry<T, WORDS>> {
        if let Some(Ok((found, entry))) = place.and_then(|place| self.slot(place)).map(Slot::read)
            && found == key
            && is(&entry.value)
        {
            return Some(entry);
        }
        self.get(key, is)
    }

    /// Puts a value in the place of the one that `is` it, or adds it. It gives the place; none where all are taken, which are
    /// 2^26 for each of the 64 shards.
    pub(crate) fn put(
        &self,
        key: Key,
        is: impl Fn(&T) -> bool,
        words: [u64; WORDS],
        value: Arc<T>,
    ) -> Option<Place> {
        let hash = self.hash(key);
        let position = self.shard(hash)?.put(self, hash, key, &is, words, value)?;
        Some(Place(shard_bits(hash) | position))
    }

    /// Where a value lies, for whoever alone changes the table.
    pub(crate) fn place_of(&self, key: Key, is: impl Fn(&T) -> bool) -> Option<Place> {
        let hash = self.hash(key);
        let (position, _) = self.shard(hash)?.find(hash, key, &is)?;
        Some(Place(shard_bits(hash) | position))
    }

    /// What lies in a place, for the same.
    pub(crate) fn at(&self, place: Place) -> Option<(Key, Entry<T, WORDS>)> {
        self.slot(place)?.read().ok()
    }

    /// The key of that.
    pub(crate) fn key_at(&self, place: Place) -> Key {
        self.slot(place).map_or([0, FREE], Slot::key)
    }

    fn slot(&self, Place(bits): Place) -> Option<&Slot<T, WORDS>> {
        self.shards.get(to_index(u64::from(bits >> POSITION_BITS)))?.slot(bits & POSITION)
    }

    /// Takes a value out; `false` where there is none.
    pub(crate) fn remove(&self, key: Key, is: impl Fn(&T) -> bool) -> bool {
        let hash = self.hash(key);
        self.shard(hash).is_some_and(|shard| shard.remove(hash, key, &is, &self.vacant))
    }

    /// The words of a key are random already, but for who chooses the keys that are looked up; multiplying twice spreads every
    /// bit over the word.
    fn hash(&self, [first, second]: Key) -> u64 {
        let mixed = (second ^ self.hash_key).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        (mixed ^ (mixed >> 32) ^ first.rotate_left(20)).wrapping_mul(self.hash_key | 1)
    }

    /// By the top six bits. The next six are the tag in the index, and those in the middle say where it is looked for.
    fn shard(&self, hash: u64) -> Option<&Shard<T, WORDS>> {
        self.shards.get(to_index(hash >> 58))
    }
}

impl<T, const WORDS: usize> Shard<T, WORDS> {
    fn new() -> Self {
        Self {
            len: AtomicUsize::new(0),
            moves: AtomicU64::new(0),
            index: Growing::new(),
            slots: Growing::new(),
            counts: Mutex::default(),
        }
    }

    #[inline(always)]
    fn get(&self, hash: u64, key: Key, is: &impl Fn(&T) -> bool) -> Option<Entry<T, WORDS>> {
        for _ in 0..LOOKS {
            if let Ok(found) = self.look(hash, key, is) {
                return found;
            }
            spin_loop();
        }
        // Whoever changes it may have been put to sleep half way. With its lock in hand nothing changes.
        let _changing = self.lock();
        self.look(hash, key, is).unwrap_or(None)
    }

    #[inline(always)]
    fn look(
        &self,
        hash: u64,
        key: Key,
        is: &impl Fn(&T) -> bool,
    ) -> Result<Option<Entry<T, WORDS>>, Changing> {
        let moves = self.moves.load(Ordering::Acquire);
        for position in self.positions(hash) {
            // A slot that was given to another key meanwhile is none of this one's.
            if let Some(slot) = self.slot(position).filter(|slot| slot.second() == key[1]) {
                let (found, entry) = slot.read()?;
                if found == key && is(&entry.value) {
                    return Ok(Some(entry));
                }
            }
        }
        // Whoever saw a place that was emptied for a move sees here that there is one.
        if moves.is_multiple_of(2) && self.moves.load(Ordering::Acquire) == moves {
            Ok(None)
        } else {
            Err(Changing)
        }
    }

    /// The places of the index in the order in which a key with this hash is looked for, each once, with what stands in them.
    #[inline(always)]
    fn probe(&self, hash: u64) -> impl Iterator<Item = (&AtomicU32, u32)> {
        let len = self.len.load(Ordering::Acquire);
        let start = to_index(hash >> 20);
        let places =
            (0..len).filter_map(move |step| self.index.get(start.wrapping_add(step) & len.wrapping_sub(1)));
        places.map(|place| (place, place.load(Ordering::Acquire)))
    }

    /// The positions where a key with this hash may lie.
    #[inline(always)]
    fn positions(&self, hash: u64) -> impl Iterator<Item = u32> {
        let tag = tag(hash);
        self.probe(hash)
            .map(|(_, found)| found)
            .take_while(|found| *found != NEVER)
            .filter(move |found| found & !POSITION == tag)
            .map(|found| found & POSITION)
    }

    #[inline(always)]
    fn slot(&self, position: u32) -> Option<&Slot<T, WORDS>> {
        let position = to_index(position.into());
        self.slots.get(position / SLOTS)?.get()?.get(position % SLOTS)
    }

    /// Gives the position; none where all are taken.
    fn put(
        &self,
        table: &Table<T, WORDS>,
        hash: u64,
        key: Key,
        is: &impl Fn(&T) -> bool,
        words: [u64; WORDS],
        value: Arc<T>,
    ) -> Option<u32> {
        let mut counts = self.lock();
        if let Some((position, slot)) = self.find(hash, key, is) {
            slot.write(key, words, value);
            return Some(position);
        }
        let len = self.len.load(Ordering::Relaxed);
        // Three quarters full at most: few probes, and always a place that ends a search.
        if counts.taken.saturating_add(1).saturating_mul(4) > len.saturating_mul(3) {
            self.make_room(table, &mut counts);
        }
        let position = self.take_position(&table.vacant, &mut counts)?;
        self.slot(position)?.write(key, words, value);
        // Found from here on, and whole.
        self.enter(hash, position, &mut counts);
        Some(position)
    }

    fn remove(&self, hash: u64, key: Key, is: &impl Fn(&T) -> bool, vacant: &Arc<T>) -> bool {
        let mut counts = self.lock();
        let Some((position, slot)) = self.find(hash, key, is) else { return false };
        let entered = tag(hash) | position;
        if let Some((place, _)) = self.probe(hash).find(|(_, found)| *found == entered) {
            place.store(REMOVED, Ordering::Release);
        }
        slot.write([0, FREE], [0; WORDS], vacant.clone());
        counts.free.push(position);
        true
    }

    /// Under the lock.
    fn find(&self, hash: u64, key: Key, is: &impl Fn(&T) -> bool) -> Option<(u32, &Slot<T, WORDS>)> {
        let slots = self.positions(hash).filter_map(|position| Some((position, self.slot(position)?)));
        slots
            .filter(|(_, slot)| slot.second() == key[1])
            .find(|(_, slot)| matches!(slot.read(), Ok((found, entry)) if found == key && is(&entry.value)))
    }

    /// A position without a value; none where all are taken. Under the lock.
    fn take_position(&self, vacant: &Arc<T>, counts: &mut Counts) -> Option<u32> {
        if let Some(position) = counts.free.pop() {
            return Some(position);
        }
        let position = counts.last.saturating_add(1);
        if position >= POSITION {
            return None;
        }
        counts.last = position;
        let block = to_index(position.into()) / SLOTS;
        self.slots.grow(block.saturating_add(1), OnceLock::new);
        self.slots.get(block)?.get_or_init(|| Box::new(std::array::from_fn(|_| Slot::new(vacant.clone()))));
        Some(position)
    }

    /// Under the lock, with room.
    fn enter(&self, hash: u64, position: u32, counts: &mut Counts) {
        if let Some((place, found)) = self.probe(hash).find(|(_, found)| matches!(*found, NEVER | REMOVED)) {
            counts.taken = counts.taken.saturating_add(usize::from(found == NEVER));
            place.store(tag(hash) | position, Ordering::Release);
        }
    }

    /// Enters every value anew, with twice the places unless many of those that are taken hold no value.
    fn make_room(&self, table: &Table<T, WORDS>, counts: &mut Counts) {
        // Before any reader is stopped: these are read from memory.
        let values: Vec<(u64, u32)> = (1..=counts.last)
            .filter_map(|position| Some((self.slot(position)?.key(), position)))
            .filter(|(key, _)| key[1] != FREE)
            .map(|(key, position)| (table.hash(key), position))
            .collect();
        let len = self.len.load(Ordering::Relaxed);
        let wanted = if values.len().saturating_mul(2) >= counts.taken {
            len.saturating_mul(2).max(FIRST_BLOCK)
        } else {
            len
        };
        self.index.grow(wanted, || AtomicU32::new(NEVER));

        self.moves.fetch_add(1, Ordering::AcqRel);
        for place in (0..len).filter_map(|index| self.index.get(index)) {
            place.store(NEVER, Ordering::Release);
        }
        self.len.store(wanted, Ordering::Release);
        counts.taken = 0;
        for (hash, position) in values {
            self.enter(hash, position, counts);
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

    /// Key, value and words as they were at one moment.
    #[inline(always)]
    fn read(&self) -> Result<(Key, Entry<T, WORDS>), Changing> {
        let seen = self.sequence.load(Ordering::Acquire);
        let key = self.key();
        let value = self.value.load();
        let words = self.words.each_ref().map(|word| word.load(Ordering::Relaxed));
        // None of these loads may sink below the second look at the sequence.
        fence(Ordering::Acquire);
        if seen.is_multiple_of(2) && self.sequence.load(Ordering::Relaxed) == seen {
            Ok((key, Entry { value, words }))
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

/// An array that grows while others read it: by blocks, each as long as all before it, which stay where they are.
pub(crate) struct Growing<T> {
    blocks: [OnceLock<Box<[T]>>; BLOCKS],
}

impl<T> Growing<T> {
    pub(crate) const fn new() -> Self {
        Self { blocks: [const { OnceLock::new() }; BLOCKS] }
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
            let len = FIRST_BLOCK.checked_shl(u32::try_from(number.saturating_sub(1)).unwrap_or(0));
            block.get_or_init(|| std::iter::repeat_with(&make).take(len.unwrap_or(0)).collect());
        }
    }

    /// The block that an index lies in, and the index that the block begins with.
    #[inline(always)]
    fn block_of(index: usize) -> (usize, usize) {
        match (index / FIRST_BLOCK).checked_ilog2() {
            None => (0, 0),
            Some(power) => {
                (to_index(power.into()).wrapping_add(1), FIRST_BLOCK.checked_shl(power).unwrap_or(0))
            }
        }
    }
}

/// The shard of a hash as it stands in a place.
#[allow(clippy::as_conversions, clippy::cast_possible_truncation, reason = "six bits are wanted")]
const fn shard_bits(hash: u64) -> u32 {
    ((hash >> 32) as u32) & !POSITION
}

/// The bits of a hash that stand in the index beside a position.
#[allow(clippy::as_conversions, clippy::cast_possible_truncation, reason = "six bits are wanted")]
const fn tag(hash: u64) -> u32 {
    ((hash >> 26) as u32) & !POSITION
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
        assert!(most <= Some(4 * FIRST_BLOCK), "{most:?} places of an index");
        // At any time there are 101 values: they do not fill one shard by far.
        let slots: u32 = table.shards.iter().map(|shard| shard.lock().last).sum();
        assert!(slots <= 700, "{slots} slots");
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
        let array = Growing::new();
        let next = AtomicUsize::new(0);
        assert!(array.get(0).is_none());
        for len in [1, 16, 17, 100, 5_000] {
            array.grow(len, || next.fetch_add(1, Ordering::Relaxed));
            for index in 0..len {
                assert_eq!(array.get(index), Some(&index));
            }
        }
        assert!(array.get(usize::MAX).is_none());
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
