//! One slot of the table: a key, a shared value and a few words, read as they were at one moment.
//!
//! A slot is a *seqlock* made of atomics. A writer makes the sequence odd, writes, and makes the
//! sequence even again. A reader reads the sequence, then the content, then the sequence again, and
//! discards what it read unless both numbers are equal and even. Hans Boehm, "Can seqlocks get
//! along with programming language memory models?" (2012), derives the orderings that are used
//! here.

use super::parts::{AtomicU64, Ordering, Shared, fence};
use super::{Entry, Key, Place};
use std::sync::Arc;

/// The second word of the key in a slot without a value.
pub(super) const FREE: u64 = 0;

// With eight words, a slot takes two cache lines. The first one holds what a search compares and
// the pointer that is lent.
#[repr(C, align(32))]
pub(super) struct Slot<T, const WORDS: usize> {
    /// Odd while the slot is written.
    pub(super) sequence: AtomicU64,
    key: [AtomicU64; 2],
    value: Shared<T>,
    pub(super) words: [AtomicU64; WORDS],
}

/// The content is being changed: the caller has to read it again.
pub(super) struct Changing;

impl<T, const WORDS: usize> Slot<T, WORDS> {
    pub(super) fn new(vacant: Arc<T>) -> Self {
        Self {
            sequence: AtomicU64::new(0),
            key: [AtomicU64::new(0), AtomicU64::new(FREE)],
            value: Shared::new(vacant),
            words: std::array::from_fn(|_| AtomicU64::new(0)),
        }
    }

    /// Returns the second word of the key, which excludes most slots of other keys without loading
    /// their value.
    pub(super) fn second(&self) -> u64 {
        let [_, second] = &self.key;
        // Relaxed: a filter. If the slot was reused after the index led here, the wanted key is no
        // longer here, whichever of the two words this returns.
        second.load(Ordering::Relaxed)
    }

    /// Returns the key. Only the shard's writer may rely on it, because the two words are read one
    /// after the other.
    pub(super) fn key(&self) -> Key {
        // Relaxed: `read` checks the words against the sequence; a writer holds the lock, which
        // orders its loads after the stores of the writer before it.
        self.key.each_ref().map(|word| word.load(Ordering::Relaxed))
    }

    /// Returns key, value and words as they were at one moment. `place` is the place of the slot.
    #[inline(always)]
    pub(super) fn read(&self, place: Place) -> Result<(Key, Entry<T, WORDS>), Changing> {
        // Acquire: pairs with the Release store at the end of `write`, so that the loads below see
        // at least what was written before the sequence became this even number.
        let seen = self.sequence.load(Ordering::Acquire);
        let key = self.key();
        let value = self.value.load();
        // Relaxed: see `key`.
        let words = self.words.each_ref().map(|word| word.load(Ordering::Relaxed));
        // Acquire: pairs with the Release fence in `write`. If a load above saw what a write
        // stored, the load below sees the odd number of that write, or a later number.
        fence(Ordering::Acquire);
        // Relaxed: the fence orders this load after those above.
        if seen.is_multiple_of(2) && self.sequence.load(Ordering::Relaxed) == seen {
            Ok((key, Entry { place, value, words }))
        } else {
            Err(Changing)
        }
    }

    /// Replaces key, words and value. The caller holds the lock of the shard.
    pub(super) fn write(&self, key: Key, words: [u64; WORDS], value: Arc<T>) {
        // Relaxed: only writers store the sequence, and the lock orders them.
        let before = self.sequence.load(Ordering::Relaxed);
        // Relaxed: the fence below orders this store before the stores of the content.
        self.sequence.store(before.wrapping_add(1), Ordering::Relaxed);
        // Release: pairs with the Acquire fence in `read`, which says what that gives.
        fence(Ordering::Release);
        self.value.store(value);
        // Relaxed, these and the key: between the two stores of the sequence no reader uses them.
        for (place, word) in self.words.iter().zip(words) {
            place.store(word, Ordering::Relaxed);
        }
        for (place, word) in self.key.iter().zip(key) {
            place.store(word, Ordering::Relaxed);
        }
        // Release: pairs with the Acquire load at the start of `read`, so that a reader of this
        // even number sees the content.
        self.sequence.store(before.wrapping_add(2), Ordering::Release);
    }
}
