//! The parts of the table: atomics, locks, shared pointers, and the sizes of its arrays.
//!
//! The files of this folder import them from here. `tests/loom` compiles the same files with
//! another `parts.rs`, whose atomics and locks loom controls, and whose arrays are small enough for
//! loom to try all orders of their accesses.

use arc_swap::{ArcSwap, Guard};
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;

pub(super) use prefetch_index::prefetch_index;
pub(super) use std::hint::spin_loop;
#[cfg(feature = "cache")]
pub(super) use std::sync::atomic::AtomicBool;
pub(super) use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering, fence};
pub(super) use std::sync::{Mutex, MutexGuard, OnceLock};

/// A shared value that is replaced while others read it. Both `load` and `store` are sequentially
/// consistent.
pub(super) type Shared<T> = ArcSwap<T>;

/// A shared value on loan from the table. Reading one writes no counter that other readers write.
pub(crate) type Lent<T> = Guard<Arc<T>>;

/// More shards shorten the time for which readers wait while one index grows. Fewer shards leave
/// fewer slots unused, because the fullest shard decides how many slots there are.
pub(super) const SHARD_BITS: u32 = 4;

/// The length of the first block of an array, a power of two.
pub(super) const FIRST_BLOCK: usize = 32;

/// The number of blocks of an array that has 2^32 places and adds one block for each doubling.
pub(super) const BLOCKS: usize = 28;

/// An array of slots doubles in 2^5 steps, so that at most one slot in 32 is unused. Most blocks
/// are still long enough for large pages of memory.
pub(super) const SLOT_STEPS: u32 = 5;

/// The number of blocks of an array that has 2^30 slots.
pub(super) const SLOT_BLOCKS: usize = 801;

/// An index doubles in two steps, so that it is never less than half as full as it may be.
pub(super) const INDEX_STEPS: u32 = 1;

/// The number of blocks of an index that has 2^27 places.
pub(super) const INDEX_BLOCKS: usize = 45;

/// How often a reader retries before it waits for the writer's lock.
pub(super) const RETRIES: usize = 64;

/// Returns two secret random words.
pub(super) fn hash_keys() -> [u64; 2] {
    let hasher = RandomState::new();
    [0, 1].map(|number| hasher.hash_one(number))
}
