//! What a cache keeps: a table that holds so many values and no more.
//!
//! Looking a value up takes no lock, and writes something only if the value was not used since the hand came by. The hand goes
//! around the slots as the one of a clock does (second chance, an approximation of "least recently used"): where room is needed,
//! what was not used since it came by the last time goes.

#![allow(
    clippy::inline_always,
    reason = "measured, as in the table: what is moved between functions is a tenth"
)]

use crate::table::{Entry, Growing, Key, Place, Table};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// How many values the hand leaves another chance when room is needed. Then the next one goes, though it was used.
const CHANCES: usize = 64;
/// How many slots the hand looks at with each value that is put, for what is over.
const TIDIED: usize = 2;

pub(super) struct Kept<T, const WORDS: usize> {
    /// In a box: a cache is moved, as part of a service, and this is large.
    table: Box<Table<T, WORDS>>,
    /// Whether the value in a slot was used since the hand came by, by the slot's index.
    used: Growing<AtomicBool>,
    capacity: usize,
    /// Whoever changes anything holds it.
    hand: Mutex<Hand>,
}

#[derive(Default)]
struct Hand {
    /// How many values there are.
    len: usize,
    /// Which slot it looks at next.
    at: usize,
    /// The same for what is over.
    tidied: usize,
    /// How many slots both go around.
    end: usize,
}

/// The slot that a round of so many has come to.
fn advance(at: &mut usize, end: usize) -> Place {
    let now = if *at < end { *at } else { 0 };
    *at = now.saturating_add(1);
    Place::from_index(now)
}

impl<T, const WORDS: usize> Kept<T, WORDS> {
    /// Of at most so many values; `vacant` is never handed out.
    pub(super) fn new(vacant: Arc<T>, capacity: u64) -> Self {
        Self {
            table: Box::new(Table::new(vacant)),
            used: Growing::new(),
            capacity: usize::try_from(capacity).unwrap_or(usize::MAX),
            hand: Mutex::default(),
        }
    }

    /// See [`Table::seek`].
    #[inline(always)]
    pub(super) fn seek(&self, key: Key) -> Option<Place> {
        self.table.seek(key)
    }

    /// What is kept by this key, which may lie in a place.
    #[inline(always)]
    pub(super) fn get(&self, place: Option<Place>, key: Key) -> Option<Entry<T, WORDS>> {
        self.table.get_from(place, key, |_| true)
    }

    /// Notes that what lies in a place was of use.
    #[inline]
    pub(super) fn note(&self, place: Place) {
        // Read first: what all write, all wait for.
        if let Some(used) = self.used.get(place.index())
            && !used.load(Ordering::Relaxed)
        {
            used.store(true, Ordering::Relaxed);
        }
    }

    /// Puts a value in the place of the one with this key, or adds it. The next few are taken out if they are over, and one more that
    /// was not used lately where room is needed.
    pub(super) fn put(
        &self,
        key: Key,
        words: [u64; WORDS],
        value: Arc<T>,
        is_over: impl Fn(&[u64; WORDS]) -> bool,
    ) {
        let mut hand = self.hand();
        self.tidy(&mut hand, is_over);
        if self.table.place_of(key, |_| true).is_none() {
            if hand.len >= self.capacity {
                self.make_room(&mut hand);
            }
            hand.len = hand.len.saturating_add(1);
        }
        let Some(place) = self.table.put(key, |_| true, words, value) else {
            // All places are taken: what is not kept is read again.
            hand.len = hand.len.saturating_sub(1);
            return;
        };
        hand.end = hand.end.max(place.index().saturating_add(1));
        self.used.grow(hand.end, || AtomicBool::new(false));
    }

    /// Takes a value out.
    pub(super) fn remove(&self, key: Key) {
        self.take(&mut self.hand(), key);
    }

    /// How many values there are.
    pub(super) fn len(&self) -> u64 {
        u64::try_from(self.hand().len).unwrap_or(u64::MAX)
    }

    fn take(&self, hand: &mut Hand, key: Key) {
        if self.table.remove(key, |_| true) {
            hand.len = hand.len.saturating_sub(1);
        }
    }

    /// Takes out what is over of the next few, so that it goes also where there is room enough.
    fn tidy(&self, hand: &mut Hand, is_over: impl Fn(&[u64; WORDS]) -> bool) {
        for _ in 0..TIDIED {
            if let Some((key, entry)) = self.table.at(advance(&mut hand.tidied, hand.end))
                && is_over(&entry.words)
            {
                self.take(hand, key);
            }
        }
    }

    fn make_room(&self, hand: &mut Hand) {
        // One for each value at most: where all are used, and others use them again meanwhile, one goes all the same.
        let mut chances = CHANCES.min(hand.len);
        // So many chances and one more are met with in two rounds.
        for _ in 0..hand.end.saturating_mul(2) {
            let place = advance(&mut hand.at, hand.end);
            let Some((key, _)) = self.table.at(place) else { continue };
            let was_used =
                self.used.get(place.index()).is_some_and(|used| used.swap(false, Ordering::Relaxed));
            if was_used && chances > 0 {
                chances = chances.saturating_sub(1);
                continue;
            }
            return self.take(hand, key);
        }
    }

    /// A panic elsewhere leaves it whole: nothing in here can panic.
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

    fn kept(capacity: u64) -> Kept<u64, 1> {
        Kept::new(Arc::new(u64::MAX), capacity)
    }

    /// Puts it where it is not kept; whether it was.
    fn use_of(kept: &Kept<u64, 1>, number: u64) -> bool {
        if let Some(entry) = kept.get(None, key(number)) {
            assert_eq!((entry.words, **entry.value), ([number], number));
            kept.note(entry.place);
            return true;
        }
        kept.put(key(number), [number], Arc::new(number), |_| false);
        false
    }

    /// How many of the first so many numbers are kept.
    fn there(kept: &Kept<u64, 1>, numbers: u64) -> u64 {
        (0..numbers).map(|number| u64::from(kept.get(None, key(number)).is_some())).sum()
    }

    #[test]
    fn it_keeps_so_many_and_no_more() {
        for capacity in [1, 2, 63, 64, 1_000] {
            let kept = kept(capacity);
            for number in 0..5_000 {
                assert!(!use_of(&kept, number));
                assert_eq!(kept.len(), capacity.min(number + 1));
                assert!(kept.get(None, key(number)).is_some(), "the newest is there");
            }
            assert_eq!(there(&kept, 5_000), capacity);
        }
    }

    #[test]
    fn it_keeps_no_more_where_all_that_is_kept_is_used_all_the_time() {
        for capacity in [1, 4, 6, 16, 48, 64, 100] {
            let kept = kept(capacity);
            for number in 0..2_000_u64 {
                kept.put(key(number), [number], Arc::new(number), |_| false);
                assert!(kept.len() <= capacity, "{} of {capacity}", kept.len());
                for index in 0..kept.hand().end {
                    kept.note(Place::from_index(index));
                }
            }
        }
        // The same, by another thread.
        let (kept, over) = (kept(1), AtomicBool::new(false));
        thread::scope(|scope| {
            scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    (0..48).for_each(|index| kept.note(Place::from_index(index)));
                }
            });
            let most = (0..100_000_u64).map(|number| {
                kept.put(key(number), [number], Arc::new(number), |_| false);
                kept.len()
            });
            assert_eq!(most.max(), Some(1));
            over.store(true, Ordering::Relaxed);
        });
    }

    #[test]
    fn room_that_was_made_is_room() {
        let kept = kept(100);
        for round in 0..50 {
            for number in 0..100 {
                use_of(&kept, round * 100 + number);
            }
            assert_eq!(kept.len(), 100);
            for number in 0..100 {
                kept.remove(key(round * 100 + number));
                kept.remove(key(round * 100 + number));
                assert_eq!(kept.len(), 99 - number);
            }
        }
    }

    #[test]
    fn what_is_put_again_is_there_once_and_as_it_was_put_last() {
        let kept = kept(1);
        kept.put(key(1), [1], Arc::new(1), |_| false);
        kept.put(key(1), [7], Arc::new(7), |_| false);
        assert_eq!(kept.len(), 1);
        let entry = kept.get(None, key(1));
        assert_eq!(entry.map(|entry| (entry.words, **entry.value)), Some(([7], 7)));
    }

    #[test]
    fn what_is_used_stays_while_others_come_and_go() {
        let kept = kept(1_000);
        for number in 0..500 {
            use_of(&kept, number);
        }
        let mut missed = 0;
        for other in 0..100_000 {
            use_of(&kept, 1_000 + other);
            for step in 0..2 {
                missed += u64::from(!use_of(&kept, (2 * other + step) % 500));
            }
        }
        assert!(missed < 500, "{missed} of 200,000 were pushed out");
        // What is used no more goes.
        for other in 0..5_000 {
            use_of(&kept, 1_000_000 + other);
        }
        assert_eq!(there(&kept, 500), 0);
    }

    /// A turn of the hand past what is all in use is cut short.
    #[test]
    fn where_all_is_used_one_goes_all_the_same() {
        let kept = kept(10_000);
        for _ in 0..2 {
            for number in 0..10_000 {
                use_of(&kept, number);
            }
        }
        let used = || kept_used(&kept);
        assert_eq!(used(), 10_000);
        use_of(&kept, 10_000);
        assert_eq!(kept.len(), 10_000);
        // Those that had another chance, and the one that went.
        assert!((1..=CHANCES + 1).contains(&(10_000 - used())), "{}", used());
    }

    fn kept_used(kept: &Kept<u64, 1>) -> usize {
        let end = kept.hand().end;
        (0..end).filter(|at| kept.used.get(*at).is_some_and(|used| used.load(Ordering::Relaxed))).count()
    }

    #[test]
    fn what_is_over_goes_though_there_is_room() {
        let kept = kept(1_000_000);
        for number in 0..1_000 {
            use_of(&kept, number);
        }
        for number in 1_000..3_000 {
            kept.put(key(number), [number], Arc::new(number), |[made]| *made < 1_000);
        }
        assert_eq!(kept.len(), 2_000);
        assert_eq!(there(&kept, 1_000), 0);
    }

    /// Whatever is found is what was put by that key, and there is never more than may be.
    #[test]
    fn readers_see_whole_values_while_others_push_them_out() {
        let kept = kept(64);
        thread::scope(|scope| {
            for start in 0..4_u64 {
                let kept = &kept;
                scope.spawn(move || {
                    for step in 0..50_000 {
                        let number = (step * 7 + start * 31) % 200;
                        use_of(kept, number);
                        if step % 100 == 0 {
                            kept.remove(key(number));
                        }
                    }
                });
            }
        });
        assert!(kept.len() <= 64);
        assert_eq!(there(&kept, 200), kept.len());
    }
}
