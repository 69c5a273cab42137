//! Compact indexes of records.
//!
//! They hold places in the table, four bytes each, and read the records there to order and compare
//! them.

use crate::table::{Key, Place};
use std::collections::BinaryHeap;

/// The maximum number of places in a chunk.
const CHUNK: usize = 512;

/// Places in the order of their records' ids.
///
/// The places are in chunks so that an insert in the middle moves few of them. Most new ids are
/// greater than all others, so chunks that grow at their end become full.
#[derive(Default)]
pub(super) struct IdList {
    chunks: Vec<Vec<Place>>,
}

impl IdList {
    /// Inserts a place. Here and below, `key_of` reads the id of a listed record.
    pub(super) fn insert(&mut self, key: Key, place: Place, key_of: impl Fn(Place) -> Key) {
        let (number, index) = self.find(key, &key_of);
        let at_end =
            self.chunks.get(number).is_none_or(|chunk| chunk.len() >= CHUNK && index >= CHUNK);
        if at_end {
            // Behind a full chunk, the place goes into a new chunk.
            let number = if self.chunks.is_empty() { 0 } else { number.saturating_add(1) };
            self.chunks.insert(number, vec![place]);
            return;
        }
        let chunk = self.chunks.get_mut(number).expect("only an empty list has no such chunk");
        if chunk.len() < CHUNK {
            insert(chunk, index, place);
            return;
        }
        let middle = chunk.len() / 2;
        let mut upper = chunk.split_off(middle);
        chunk.shrink_to_fit();
        if let Some(index) = index.checked_sub(middle) {
            insert(&mut upper, index, place);
        } else {
            insert(chunk, index, place);
        }
        self.chunks.insert(number.saturating_add(1), upper);
    }

    pub(super) fn remove(&mut self, key: Key, key_of: impl Fn(Place) -> Key) {
        let (number, index) = self.find(key, &key_of);
        let Some(chunk) = self.chunks.get_mut(number) else { return };
        if chunk.get(index).is_some_and(|place| key_of(*place) == key) {
            chunk.remove(index);
        }
        if chunk.is_empty() {
            self.chunks.remove(number);
        } else if chunk.len() < chunk.capacity() / 4 {
            chunk.shrink_to(chunk.len().saturating_mul(2));
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.chunks.is_empty()
    }

    /// Returns all places, smallest id first.
    pub(super) fn iter(&self) -> impl DoubleEndedIterator<Item = Place> {
        self.chunks.iter().flatten().copied()
    }

    /// Returns the places whose ids are below this one, greatest first.
    pub(super) fn below(
        &self,
        key: Key,
        key_of: impl Fn(Place) -> Key,
    ) -> impl Iterator<Item = Place> {
        let (number, index) = self.find(key, &key_of);
        let (before, rest) = self.chunks.split_at(number);
        let last = rest.first().into_iter().flat_map(move |chunk| chunk.iter().take(index).rev());
        last.chain(before.iter().flatten().rev()).copied()
    }

    /// Returns the chunk that holds or would hold an id, and the index there of the first id that
    /// is not smaller. Both are zero in an empty list.
    fn find(&self, key: Key, key_of: &impl Fn(Place) -> Key) -> (usize, usize) {
        if let Some(last) = self.chunks.last()
            && last.last().is_some_and(|place| key_of(*place) < key)
        {
            return (self.chunks.len().saturating_sub(1), last.len());
        }
        let begins_at_or_below =
            |chunk: &Vec<Place>| chunk.first().is_some_and(|first| key_of(*first) <= key);
        let number = self.chunks.partition_point(begins_at_or_below).saturating_sub(1);
        let Some(chunk) = self.chunks.get(number) else { return (0, 0) };
        (number, chunk.partition_point(|place| key_of(*place) < key))
    }
}

/// Inserts a place before the one at `index`, or at the end. A full chunk grows by an eighth; a
/// `Vec` would double by itself.
fn insert(chunk: &mut Vec<Place>, index: usize, place: Place) {
    if chunk.len() == chunk.capacity() {
        chunk.reserve_exact((chunk.len() / 8).max(4).min(CHUNK.saturating_sub(chunk.len())));
    }
    chunk.insert(index, place);
}

/// Merges lists that are each sorted greatest first into one sorted list.
pub(super) fn merged<I: Iterator<Item = (Key, Place)>>(
    lists: impl Iterator<Item = I>,
) -> impl Iterator<Item = Place> {
    let mut lists: Vec<I> = lists.collect();
    let heads =
        lists.iter_mut().enumerate().filter_map(|(number, list)| Some((list.next()?, number)));
    let mut heads: BinaryHeap<((Key, Place), usize)> = heads.collect();
    std::iter::from_fn(move || {
        let ((_, place), number) = heads.pop()?;
        let list = lists.get_mut(number).expect("a head has the number of its list");
        heads.extend(list.next().map(|head| (head, number)));
        Some(place)
    })
}

/// Places by a hash of their records' names, in an open-addressed table without copies of names.
///
/// Each entry has 32 bits of the hash above the place, so that lookups read few records needlessly
/// and growing reads none.
#[derive(Default)]
pub(super) struct HashedPlaces {
    /// Zero marks an empty entry; it is never a valid place.
    entries: Vec<u64>,
    len: usize,
}

impl HashedPlaces {
    /// Whether there is a record with this hash for which `is` returns true.
    pub(super) fn contains(&self, hash: u32, is: impl Fn(Place) -> bool) -> bool {
        self.probe(hash)
            .map(|index| self.at(index))
            .take_while(|entry| *entry != 0)
            .map(halves)
            .any(|[found, place]| found == hash && is(Place::from_bits(place)))
    }

    pub(super) fn insert(&mut self, hash: u32, place: Place) {
        self.len = self.len.saturating_add(1);
        if self.len.saturating_mul(5) > self.entries.len().saturating_mul(4) {
            // Grows by an eighth, so that at least seven tenths are in use.
            let len = self.entries.len().saturating_add(self.entries.len() / 8).max(8);
            let entries = std::mem::replace(&mut self.entries, vec![0; len]);
            entries.into_iter().filter(|entry| *entry != 0).for_each(|entry| self.enter(entry));
        }
        self.enter(entry(hash, place));
    }

    pub(super) fn remove(&mut self, hash: u32, place: Place) {
        let mut is_out = false;
        for index in self.probe(hash) {
            let found = self.at(index);
            if found == 0 {
                break;
            }
            if is_out {
                // The entry may be here only because the removed one was before it.
                self.set(index, 0);
                self.enter(found);
            } else if found == entry(hash, place) {
                self.set(index, 0);
                self.len = self.len.saturating_sub(1);
                is_out = true;
            }
        }
    }

    fn enter(&mut self, entry: u64) {
        let gap = self.probe(hash_of(entry)).find(|index| self.at(*index) == 0);
        self.set(gap.expect("at least a fifth of the entries is empty"), entry);
    }

    /// Returns the entry at an index of [`probe`](Self::probe).
    fn at(&self, index: usize) -> u64 {
        *self.entries.get(index).expect("a probe ends with the entries")
    }

    fn set(&mut self, index: usize, entry: u64) {
        *self.entries.get_mut(index).expect("a probe ends with the entries") = entry;
    }

    /// Returns the indexes to search for a hash, each one once.
    fn probe(&self, hash: u32) -> impl Iterator<Item = usize> + use<> {
        let len = self.entries.len();
        let len_in_bits = u64::try_from(len).expect("a usize has at most 64 bits");
        // There are fewer than 2^32 entries, because the store has fewer records.
        let scaled = len_in_bits.wrapping_mul(u64::from(hash)) >> 32;
        let start = usize::try_from(scaled).expect("the start is below the length");
        (start..len).chain(0..start)
    }
}

fn entry(hash: u32, place: Place) -> u64 {
    u64::from(hash) << 32 | u64::from(place.bits())
}

fn hash_of(entry: u64) -> u32 {
    let [hash, _] = halves(entry);
    hash
}

/// Returns the upper and the lower half.
pub(super) fn halves(entry: u64) -> [u32; 2] {
    let half = |bits: u64| u32::try_from(bits).expect("a half has 32 bits");
    [half(entry >> 32), half(entry & u64::from(u32::MAX))]
}

#[cfg(test)]
#[allow(
    clippy::arithmetic_side_effects,
    clippy::as_conversions,
    clippy::cast_possible_truncation,
    reason = "tests"
)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::{BTreeSet, HashSet};

    /// A made-up id for the record in each place.
    fn key_of(place: Place) -> Key {
        [u64::from(place.bits() / 2), u64::from(place.bits() % 2)]
    }

    proptest! {
        /// Compares with a set of std's, in ascending, descending and random order.
        #[test]
        fn a_list_is_a_sorted_set(
            order in 0..3_u8,
            steps in prop::collection::vec((0..4_u8, 1..3_000_u32), 0..6_000),
            below in prop::collection::vec(0..3_100_u32, 5),
        ) {
            let (mut list, mut set) = (IdList::default(), BTreeSet::new());
            for (n, (what, number)) in steps.into_iter().enumerate() {
                let number = match order { 0 => n as u32 + 1, 1 => 10_000 - n as u32, _ => number };
                let place = Place::from_bits(number);
                // A record is inserted into a list only once.
                if what > 0 && set.insert(number) {
                    list.insert(key_of(place), place, key_of);
                } else if what == 0 {
                    let gone = if order < 2 { number / 2 } else { number };
                    set.remove(&gone);
                    list.remove(key_of(Place::from_bits(gone)), key_of);
                }
            }
            prop_assert_eq!(list.is_empty(), set.is_empty());
            prop_assert!(list.iter().map(Place::bits).eq(set.iter().copied()));
            for key in below {
                let listed = list.below(key_of(Place::from_bits(key)), key_of).map(Place::bits);
                prop_assert!(listed.eq(set.range(..key).rev().copied()));
            }
        }

        /// Uses few hashes, so that many places share one or displace each other.
        #[test]
        fn hashed_places_are_a_set(steps in prop::collection::vec((any::<bool>(), 1..300_u32), 0..2_000)) {
            let (mut places, mut set) = (HashedPlaces::default(), HashSet::new());
            let hash = |number: u32| (number / 3) << 25;
            for (is_put, number) in steps {
                let place = Place::from_bits(number);
                if is_put && set.insert(number) {
                    places.insert(hash(number), place);
                } else if !is_put {
                    set.remove(&number);
                    places.remove(hash(number), place);
                }
            }
            for number in 1..300 {
                let is_there = places.contains(hash(number), |place| place.bits() == number);
                prop_assert_eq!(is_there, set.contains(&number));
            }
            prop_assert_eq!(places.len, set.len());
        }

        #[test]
        fn lists_are_merged_the_greatest_first(lists in prop::collection::vec(prop::collection::btree_set(1..1_000_u32, 0..50), 0..5)) {
            let descending = lists.iter().map(|list| list.iter().rev().map(|bits| {
                let place = Place::from_bits(*bits);
                (key_of(place), place)
            }));
            let mut all: Vec<u32> = lists.iter().flatten().copied().collect();
            all.sort_unstable_by(|one, other| other.cmp(one));
            prop_assert!(merged(descending).map(Place::bits).eq(all));
        }
    }

    #[test]
    fn what_comes_in_order_fills_its_chunks() {
        let mut list = IdList::default();
        for bits in 1..=100_000 {
            list.insert(key_of(Place::from_bits(bits)), Place::from_bits(bits), key_of);
        }
        let held: usize = list.chunks.iter().map(Vec::capacity).sum();
        assert!(held < 101_000, "{held}");
    }
}
