//! The parts that the models build the table from, instead of `src/table/parts.rs`.
//!
//! Loom controls these atomics and locks, and the sizes are small enough to explore.

use loom::sync::atomic::AtomicUsize as Index;
use std::ops::Deref;
use std::sync::Arc;

pub(super) use loom::hint::spin_loop;
#[cfg(feature = "cache")]
pub(super) use loom::sync::atomic::AtomicBool;
pub(super) use loom::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering, fence};
pub(super) use loom::sync::{Mutex, MutexGuard};

pub(super) const SHARD_BITS: u32 = 1;
pub(super) const FIRST_BLOCK: usize = 2;
pub(super) const BLOCKS: usize = 4;
pub(super) const SLOT_STEPS: u32 = 1;
pub(super) const SLOT_BLOCKS: usize = 6;
pub(super) const INDEX_STEPS: u32 = 1;
pub(super) const INDEX_BLOCKS: usize = 5;
pub(super) const RETRIES: usize = 1;

/// Returns the same words each time: loom needs runs that differ only in the order of accesses.
pub(super) const fn hash_keys() -> [u64; 2] {
    [0x9E37_79B9_7F4A_7C15, 0xD1B5_4A32_D192_ED03]
}

pub(super) const fn prefetch_index<T>(_: &[T], _: usize) {}

/// Stands in for `arc_swap::ArcSwap`: an atomic index into the values that were ever stored.
///
/// `ArcSwap` loads and swaps its pointer with sequential consistency. Acquire and AcqRel permit
/// more, so that a model that holds here holds there.
pub(super) struct Shared<T> {
    current: Index,
    /// A lock of std, which loom does not see, so that it orders nothing.
    stored: std::sync::Mutex<Vec<Arc<T>>>,
}

/// Stands in for `arc_swap::Guard`.
pub(crate) struct Lent<T>(Arc<T>);

impl<T> Shared<T> {
    pub(super) fn new(value: Arc<T>) -> Self {
        Self { current: Index::new(0), stored: std::sync::Mutex::new(vec![value]) }
    }

    pub(super) fn load(&self) -> Lent<T> {
        let current = self.current.load(Ordering::Acquire);
        Lent(self.stored.lock().unwrap()[current].clone())
    }

    pub(super) fn store(&self, value: Arc<T>) {
        let new = {
            let mut stored = self.stored.lock().unwrap();
            stored.push(value);
            stored.len() - 1
        };
        self.current.swap(new, Ordering::AcqRel);
    }
}

impl<T> Deref for Lent<T> {
    type Target = Arc<T>;

    fn deref(&self) -> &Arc<T> {
        &self.0
    }
}

/// Stands in for `std::sync::OnceLock`.
///
/// Its guarantee: a thread that gets the value sees everything that happened before it was set. The
/// table sets one only under a lock.
pub(super) struct OnceLock<T> {
    is_set: loom::sync::atomic::AtomicBool,
    value: std::sync::OnceLock<T>,
}

impl<T> OnceLock<T> {
    pub(super) fn new() -> Self {
        Self {
            is_set: loom::sync::atomic::AtomicBool::new(false),
            value: std::sync::OnceLock::new(),
        }
    }

    pub(super) fn get(&self) -> Option<&T> {
        if self.is_set.load(Ordering::Acquire) { self.value.get() } else { None }
    }

    pub(super) fn get_or_init(&self, make: impl FnOnce() -> T) -> &T {
        if self.value.get().is_none() {
            assert!(self.value.set(make()).is_ok(), "set once");
            self.is_set.store(true, Ordering::Release);
        }
        self.value.get().unwrap()
    }
}

impl<T, const WORDS: usize> super::Table<T, WORDS> {
    /// Returns a key whose search begins in this twelfth of the index.
    ///
    /// All these keys have the same shard, tag and second word, so that the slot of one is read in
    /// searches for the others.
    pub(crate) fn key_in_twelfth(&self, twelfth: u64) -> super::Key {
        let is_wanted = |key: &super::Key| {
            let hash = self.hash(*key);
            let (shard, tag, start) = (hash >> 63, hash >> 52 & 0x3F, hash >> 20 & 0xFFFF_FFFF);
            (shard, tag, start * 12 >> 32) == (0, 0, twelfth)
        };
        (0..).map(|first| [first, 7]).find(is_wanted).unwrap()
    }
}
