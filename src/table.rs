//! A map in memory whose readers take no lock and write nothing that other threads read.
//!
//! What is looked up lies in a slot: its key, a few words that are read together, and a shared value that is lent without
//! being counted. A slot is read under a sequence check (a seqlock of atomics alone): a reader that meets a change looks
//! again. Slots never move, since the array that they lie in grows by further blocks and is never copied; so nothing has to
//! be kept alive for a reader.

#![allow(clippy::inline_always, reason = "measured: as functions, these cost a tenth of a verification")]

use arc_swap::{ArcSwap, Guard};
use prefetch_index::prefetch_index;
use std::hash::{BuildHasher, RandomState};
use std::hint::spin_loop;
use std::slice;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering, fence};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

/// Growing a shard stops readers of what it holds for about a tenth of a microsecond per value: many shards, short stops.
const SHARDS: usize = 256;
/// Slots of a shard's first block, a power of two.
const FIRST_BLOCK: usize = 16;
/// As many blocks as a table of 2^40 slots has; each is as long as all before it.
const BLOCKS: usize = 30;
/// How often a reader looks again before it waits for whoever is changing what it looks for.
const LOOKS: usize = 64;

/// The second word of the key in a slot that was never taken: a search ends there.
const NEVER: u64 = 0;
/// The same in a slot whose value was removed: a search goes on.
const REMOVED: u64 = 1;

/// 128 bits of which the second word is [`LEAST_SECOND_WORD`] or more.
pub(crate) type Key = [u64; 2];

/// The least that the second word of a key may be.
pub(crate) const LEAST_SECOND_WORD: u64 = 2;

/// Shared values by key, each with `WORDS` words that are read in one piece with it.
pub(crate) struct Table<T, const WORDS: usize> {
    hash_key: u64,
    shards: Box<[Shard<T, WORDS>]>,
    /// What stands in a slot without a value.
    vacant: Arc<T>,
}

/// A value as it is lent, with the words beside it.
pub(crate) struct Entry<T, const WORDS: usize> {
    pub(crate) value: Guard<Arc<T>>,
    pub(crate) words: [u64; WORDS],
}

/// Open addressing with linear probing.
// What every search reads lies in one line of the cache, the first block's place included.
#[repr(C, align(64))]
struct Shard<T, const WORDS: usize> {
    /// How many slots are searched, a power of two; zero before the first value.
    len: AtomicUsize,
    /// Odd while values are put in other slots: what is not found then may be on its way.
    moves: AtomicU64,
    slots: Growing<Slot<T, WORDS>>,
    /// Whoever changes anything holds it.
    counts: Mutex<Counts>,
}

#[derive(Default)]
struct Counts {
    live: usize,
    /// Slots that a search does not end at.
    taken: usize,
}

// What a search compares and what is lent lie in the first line of the cache, and as many of the words as it has room for.
#[repr(C, align(64))]
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

    /// Asks for the memory in which a value with this key is looked for first.
    #[inline(always)]
    pub(crate) fn prefetch(&self, key: Key) {
        let hash = self.hash(key);
        if let Some(slot) = self.shard(hash).and_then(|shard| shard.probe(hash).next()) {
            prefetch_index(slice::from_ref(&slot.sequence), 0);
            if WORDS > 4 {
                prefetch_index(&slot.words, 4);
            }
        }
    }

    /// Puts a value in the place of the one that `is` it, or adds it.
    pub(crate) fn put(&self, key: Key, is: impl Fn(&T) -> bool, words: [u64; WORDS], value: Arc<T>) {
        let hash = self.hash(key);
        if let Some(shard) = self.shard(hash) {
            shard.put(self, hash, key, &is, words, value);
        }
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

    /// By the top bits; the place in the shard is by those in the middle.
    fn shard(&self, hash: u64) -> Option<&Shard<T, WORDS>> {
        self.shards.get(to_index(hash >> 56))
    }
}

impl<T, const WORDS: usize> Shard<T, WORDS> {
    fn new() -> Self {
        Self {
            slots: Growing::new(),
            len: AtomicUsize::new(0),
            moves: AtomicU64::new(0),
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
        for slot in self.probe(hash) {
            match slot.second() {
                NEVER => break,
                second if second == key[1] => {
                    let (found, entry) = slot.read()?;
                    if found == key && is(&entry.value) {
                        return Ok(Some(entry));
                    }
                }
                _ => {}
            }
        }
        // Whoever saw a slot that was emptied for a move sees here that there is one.
        if moves.is_multiple_of(2) && self.moves.load(Ordering::Acquire) == moves {
            Ok(None)
        } else {
            Err(Changing)
        }
    }

    /// The slots in the order in which a key with this hash is looked for; each once.
    fn probe(&self, hash: u64) -> impl Iterator<Item = &Slot<T, WORDS>> {
        let len = self.len.load(Ordering::Acquire);
        let start = to_index(hash >> 20);
        (0..len).filter_map(move |step| self.slots.get(start.wrapping_add(step) & len.wrapping_sub(1)))
    }

    fn put(
        &self,
        table: &Table<T, WORDS>,
        hash: u64,
        key: Key,
        is: &impl Fn(&T) -> bool,
        words: [u64; WORDS],
        value: Arc<T>,
    ) {
        let mut counts = self.lock();
        if let Some(slot) = self.slot_of(hash, key, is) {
            slot.write(key, words, value);
            return;
        }
        let len = self.len.load(Ordering::Relaxed);
        // Three quarters full at most: few probes, and always a slot that ends a search.
        if counts.taken.saturating_add(1).saturating_mul(4) > len.saturating_mul(3) {
            self.make_room(table, &mut counts);
        }
        self.add(hash, key, words, value, &mut counts);
        counts.live = counts.live.saturating_add(1);
    }

    fn remove(&self, hash: u64, key: Key, is: &impl Fn(&T) -> bool, vacant: &Arc<T>) -> bool {
        let mut counts = self.lock();
        let Some(slot) = self.slot_of(hash, key, is) else { return false };
        slot.write([0, REMOVED], [0; WORDS], vacant.clone());
        counts.live = counts.live.saturating_sub(1);
        true
    }

    /// Under the lock.
    fn slot_of(&self, hash: u64, key: Key, is: &impl Fn(&T) -> bool) -> Option<&Slot<T, WORDS>> {
        self.probe(hash)
            .take_while(|slot| slot.second() != NEVER)
            .find(|slot| matches!(slot.read(), Ok((found, entry)) if found == key && is(&entry.value)))
    }

    /// Under the lock, with room.
    fn add(&self, hash: u64, key: Key, words: [u64; WORDS], value: Arc<T>, counts: &mut Counts) {
        if let Some(slot) = self.probe(hash).find(|slot| slot.second() < LEAST_SECOND_WORD) {
            counts.taken = counts.taken.saturating_add(usize::from(slot.second() == NEVER));
            slot.write(key, words, value);
        }
    }

    /// Puts every value in its place anew, with twice the slots unless many of those that are taken hold no value.
    fn make_room(&self, table: &Table<T, WORDS>, counts: &mut Counts) {
        let len = self.len.load(Ordering::Relaxed);
        let wanted = if counts.live.saturating_mul(2) >= counts.taken {
            len.saturating_mul(2).max(FIRST_BLOCK)
        } else {
            len
        };
        let vacant = &table.vacant;
        self.slots.grow(wanted, || Slot::new(vacant.clone()));

        self.moves.fetch_add(1, Ordering::AcqRel);
        let mut values = Vec::with_capacity(counts.live);
        for slot in (0..len).filter_map(|index| self.slots.get(index)) {
            if let Ok((key, entry)) = slot.read()
                && key[1] >= LEAST_SECOND_WORD
            {
                values.push((key, entry.words, Guard::into_inner(entry.value)));
            }
            slot.write([0, NEVER], [0; WORDS], vacant.clone());
        }
        self.len.store(wanted, Ordering::Release);
        counts.taken = 0;
        for (key, words, value) in values {
            self.add(table.hash(key), key, words, value, counts);
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
            key: [AtomicU64::new(0), AtomicU64::new(NEVER)],
            value: ArcSwap::new(vacant),
            words: std::array::from_fn(|_| AtomicU64::new(0)),
        }
    }

    fn second(&self) -> u64 {
        let [_, second] = &self.key;
        second.load(Ordering::Acquire)
    }

    /// Key, value and words as they were at one moment.
    #[inline(always)]
    fn read(&self) -> Result<(Key, Entry<T, WORDS>), Changing> {
        let seen = self.sequence.load(Ordering::Acquire);
        let key = self.key.each_ref().map(|word| word.load(Ordering::Relaxed));
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

/// Wider than any table on a machine with fewer bits; what is too much is masked away.
#[allow(clippy::as_conversions, clippy::cast_possible_truncation, reason = "masked, or below 256")]
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
    fn removing_and_adding_for_ever_takes_no_more_slots() {
        let table = table();
        for number in 0..200_000 {
            table.put(key(number), |_| true, [0; 2], Arc::new(number));
            if number >= 100 {
                assert!(table.remove(key(number - 100), |_| true));
            }
        }
        let most = table.shards.iter().map(|shard| shard.len.load(Ordering::Relaxed)).max();
        assert!(most <= Some(4 * FIRST_BLOCK), "{most:?}");
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
