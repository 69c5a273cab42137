//! A table of bounded size, which evicts values, for caches.
//!
//! Eviction is the clock algorithm (second chance), which approximates "least recently used". A
//! *hand* goes around the slots. If room is needed, the hand evicts the first value that was not
//! used since the hand last passed it.
//!
//! A cache hit takes no lock. It writes one flag, and only if the flag is clear.

use super::parts::{AtomicBool, Mutex, MutexGuard, Ordering};
use super::{Entry, Growing, Key, Place, Table};
use std::sync::{Arc, PoisonError};

/// The number of used values that the hand passes before it evicts a used one. It bounds the time
/// of a put.
const CHANCES: usize = 64;
/// The number of slots that each put checks for expired values.
const TIDIED: usize = 2;

pub(crate) struct BoundedTable<T, const WORDS: usize> {
    /// Boxed, because a table is large and a cache is moved when a service is built.
    table: Box<Table<T, WORDS>>,
    /// For each slot, whether its value was used since the hand passed it.
    used: Growing<AtomicBool>,
    capacity: usize,
    /// Held by every writer.
    hand: Mutex<Hand>,
}

#[derive(Default)]
struct Hand {
    /// The number of values in the table.
    len: usize,
    /// The slot that is considered next for eviction.
    at: usize,
    /// The slot that is checked next for an expired value.
    tidied: usize,
    /// The number of slots that `at` and `tidied` go around.
    end: usize,
}

/// Moves `at` to the next of `end` slots, and returns the slot that it came from.
fn advance(at: &mut usize, end: usize) -> Place {
    let now = if *at < end { *at } else { 0 };
    *at = now.saturating_add(1);
    Place::from_index(now)
}

impl<T, const WORDS: usize> BoundedTable<T, WORDS> {
    /// Creates an empty table of at most `capacity` values. `vacant` is never returned.
    pub(crate) fn new(vacant: Arc<T>, capacity: u64) -> Self {
        Self {
            table: Box::new(Table::new(vacant)),
            used: Growing::new(),
            capacity: usize::try_from(capacity).unwrap_or(usize::MAX),
            hand: Mutex::default(),
        }
    }

    /// Forwards to [`Table::seek`].
    #[inline(always)]
    pub(crate) fn seek(&self, key: Key) -> Option<Place> {
        self.table.seek(key)
    }

    /// Returns the value with this key. `place` is what [`seek`](Self::seek) returned, if anything.
    #[inline(always)]
    pub(crate) fn get(&self, place: Option<Place>, key: Key) -> Option<Entry<T, WORDS>> {
        self.table.get_from(place, key, |_| true)
    }

    /// Notes that the value in a place was used.
    #[inline]
    pub(crate) fn note(&self, place: Place) {
        // Relaxed, both: the flag only advises the hand, and no thread reads other memory because
        // of it. A mark that is lost, or meant for an earlier value of the slot, only changes which
        // value is evicted. Sets the flag only if it is clear, so that hits on a hot value do not
        // write.
        if let Some(used) = self.used.get(place.index())
            && !used.load(Ordering::Relaxed)
        {
            used.store(true, Ordering::Relaxed);
        }
    }

    /// Replaces the value with this key, or adds one. First removes up to two expired values, and
    /// evicts one value if the table is full.
    pub(crate) fn put(
        &self,
        key: Key,
        words: [u64; WORDS],
        value: Arc<T>,
        is_expired: impl Fn(&[u64; WORDS]) -> bool,
    ) {
        let mut hand = self.hand();
        self.tidy(&mut hand, is_expired);
        if self.table.place_of(key, |_| true).is_none() {
            if hand.len >= self.capacity {
                self.evict(&mut hand);
            }
            hand.len = hand.len.saturating_add(1);
        }
        let Some(place) = self.table.put(key, |_| true, words, value) else {
            // The shard is full. The cache will read this value again.
            hand.len = hand.len.saturating_sub(1);
            return;
        };
        hand.end = hand.end.max(place.index().saturating_add(1));
        self.used.grow(hand.end, || AtomicBool::new(false));
    }

    /// Removes the value with this key.
    pub(crate) fn remove(&self, key: Key) {
        self.take(&mut self.hand(), key);
    }

    /// Returns the number of values.
    pub(crate) fn len(&self) -> u64 {
        u64::try_from(self.hand().len).unwrap_or(u64::MAX)
    }

    fn take(&self, hand: &mut Hand, key: Key) {
        if self.table.remove(key, |_| true) {
            hand.len = hand.len.saturating_sub(1);
        }
    }

    /// Removes expired values from the next few slots, so that they are removed even if the table
    /// is not full.
    fn tidy(&self, hand: &mut Hand, is_expired: impl Fn(&[u64; WORDS]) -> bool) {
        for _ in 0..TIDIED {
            if let Some((key, entry)) = self.table.at(advance(&mut hand.tidied, hand.end))
                && is_expired(&entry.words)
            {
                self.take(hand, key);
            }
        }
    }

    /// Evicts one value.
    fn evict(&self, hand: &mut Hand) {
        // At most one chance for each value, so that a value is evicted even if readers use all
        // values again during the search.
        let mut chances = CHANCES.min(hand.len);
        // Two rounds are enough to meet that many values and one more.
        for _ in 0..hand.end.saturating_mul(2) {
            let place = advance(&mut hand.at, hand.end);
            let Some((key, _)) = self.table.at(place) else { continue };
            let used = self.used.get(place.index());
            // Relaxed: see `note`.
            let was_used = used.is_some_and(|used| used.swap(false, Ordering::Relaxed));
            if was_used && chances > 0 {
                chances = chances.saturating_sub(1);
                continue;
            }
            return self.take(hand, key);
        }
    }

    /// Waits for the writers' lock. A poisoned lock still protects a consistent state, because no
    /// writer panics half-way.
    fn hand(&self) -> MutexGuard<'_, Hand> {
        self.hand.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
#[allow(clippy::arithmetic_side_effects, clippy::indexing_slicing, reason = "tests")]
mod tests {
    use super::*;
    use std::thread;

    fn key(number: u64) -> Key {
        [number, number.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1]
    }

    fn bounded(capacity: u64) -> BoundedTable<u64, 1> {
        BoundedTable::new(Arc::new(u64::MAX), capacity)
    }

    /// Returns whether the number was cached, and puts it if not.
    fn use_of(table: &BoundedTable<u64, 1>, number: u64) -> bool {
        if let Some(entry) = table.get(None, key(number)) {
            assert_eq!((entry.words, **entry.value), ([number], number));
            table.note(entry.place);
            return true;
        }
        table.put(key(number), [number], Arc::new(number), |_| false);
        false
    }

    /// Counts how many of the first numbers are cached.
    fn there(table: &BoundedTable<u64, 1>, numbers: u64) -> u64 {
        (0..numbers).map(|number| u64::from(table.get(None, key(number)).is_some())).sum()
    }

    #[test]
    fn it_keeps_so_many_and_no_more() {
        for capacity in [1, 2, 63, 64, 1_000] {
            let table = bounded(capacity);
            for number in 0..5_000 {
                assert!(!use_of(&table, number));
                assert_eq!(table.len(), capacity.min(number + 1));
                assert!(table.get(None, key(number)).is_some(), "the newest is there");
            }
            assert_eq!(there(&table, 5_000), capacity);
        }
    }

    #[test]
    fn it_keeps_no_more_where_all_that_is_kept_is_used_all_the_time() {
        for capacity in [1, 4, 6, 16, 48, 64, 100] {
            let table = bounded(capacity);
            for number in 0..2_000_u64 {
                table.put(key(number), [number], Arc::new(number), |_| false);
                assert!(table.len() <= capacity, "{} of {capacity}", table.len());
                for index in 0..table.hand().end {
                    table.note(Place::from_index(index));
                }
            }
        }
        // Now another thread uses them.
        let (table, over) = (bounded(1), AtomicBool::new(false));
        thread::scope(|scope| {
            scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    (0..48).for_each(|index| table.note(Place::from_index(index)));
                }
            });
            let most = (0..100_000_u64).map(|number| {
                table.put(key(number), [number], Arc::new(number), |_| false);
                table.len()
            });
            assert_eq!(most.max(), Some(1));
            over.store(true, Ordering::Relaxed);
        });
    }

    #[test]
    fn room_that_was_made_is_room() {
        let table = bounded(100);
        for round in 0..50 {
            for number in 0..100 {
                use_of(&table, round * 100 + number);
            }
            assert_eq!(table.len(), 100);
            for number in 0..100 {
                table.remove(key(round * 100 + number));
                table.remove(key(round * 100 + number));
                assert_eq!(table.len(), 99 - number);
            }
        }
    }

    #[test]
    fn what_is_put_again_is_there_once_and_as_it_was_put_last() {
        let table = bounded(1);
        table.put(key(1), [1], Arc::new(1), |_| false);
        table.put(key(1), [7], Arc::new(7), |_| false);
        assert_eq!(table.len(), 1);
        let entry = table.get(None, key(1));
        assert_eq!(entry.map(|entry| (entry.words, **entry.value)), Some(([7], 7)));
    }

    #[test]
    fn what_is_used_stays_while_others_come_and_go() {
        let table = bounded(1_000);
        for number in 0..500 {
            use_of(&table, number);
        }
        let mut missed = 0;
        for other in 0..100_000 {
            use_of(&table, 1_000 + other);
            for step in 0..2 {
                missed += u64::from(!use_of(&table, (2 * other + step) % 500));
            }
        }
        assert!(missed < 500, "{missed} of 200,000 were pushed out");
        // The values are evicted once they are no longer used.
        for other in 0..5_000 {
            use_of(&table, 1_000_000 + other);
        }
        assert_eq!(there(&table, 500), 0);
    }

    /// The hand does not go around all slots.
    #[test]
    fn where_all_is_used_one_goes_all_the_same() {
        let table = bounded(10_000);
        for _ in 0..2 {
            for number in 0..10_000 {
                use_of(&table, number);
            }
        }
        let used = || marked(&table);
        assert_eq!(used(), 10_000);
        use_of(&table, 10_000);
        assert_eq!(table.len(), 10_000);
        // The values that got a second chance, and the one that was evicted.
        assert!((1..=CHANCES + 1).contains(&(10_000 - used())), "{}", used());
    }

    fn marked(table: &BoundedTable<u64, 1>) -> usize {
        let end = table.hand().end;
        (0..end)
            .filter(|at| table.used.get(*at).is_some_and(|used| used.load(Ordering::Relaxed)))
            .count()
    }

    #[test]
    fn what_is_over_goes_though_there_is_room() {
        let table = bounded(1_000_000);
        for number in 0..1_000 {
            use_of(&table, number);
        }
        for number in 1_000..3_000 {
            table.put(key(number), [number], Arc::new(number), |[made]| *made < 1_000);
        }
        assert_eq!(table.len(), 2_000);
        assert_eq!(there(&table, 1_000), 0);
    }

    /// Each value found is one that was put with that key, and there are never too many.
    #[test]
    fn readers_see_whole_values_while_others_push_them_out() {
        let table = bounded(64);
        thread::scope(|scope| {
            for start in 0..4_u64 {
                let table = &table;
                scope.spawn(move || {
                    for step in 0..50_000 {
                        let number = (step * 7 + start * 31) % 200;
                        use_of(table, number);
                        if step % 100 == 0 {
                            table.remove(key(number));
                        }
                    }
                });
            }
        });
        assert!(table.len() <= 64);
        assert_eq!(there(&table, 200), table.len());
    }
}
