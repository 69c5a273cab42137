//! An array that grows while others read it.

use super::parts::{BLOCKS, FIRST_BLOCK, OnceLock};
use super::to_index;

/// An array that grows by further blocks. Blocks never move and are freed only with the array, so
/// readers need no lock and no counter.
///
/// The array doubles in 2^`STEPS` equal steps, of one block each, up to `LEN` blocks.
pub(crate) struct Growing<T, const STEPS: u32 = 0, const LEN: usize = BLOCKS> {
    /// `OnceLock` publishes a block, so that a thread that gets a block sees its initial elements.
    blocks: [OnceLock<Box<[T]>>; LEN],
}

impl<T, const STEPS: u32, const LEN: usize> Growing<T, STEPS, LEN> {
    pub(crate) fn new() -> Self {
        const { assert!(STEPS <= FIRST_BLOCK.ilog2()) };
        Self { blocks: std::array::from_fn(|_| OnceLock::new()) }
    }

    /// Returns the element at this index, or `None` if the array is shorter.
    #[inline(always)]
    pub(crate) fn get(&self, index: usize) -> Option<&T> {
        let (block, start) = Self::block_of(index);
        self.blocks.get(block)?.get()?.get(index.wrapping_sub(start))
    }

    /// Makes the array at least this long.
    pub(crate) fn grow(&self, len: usize, make: impl Fn() -> T) {
        let Some(last) = len.checked_sub(1) else { return };
        let (last, _) = Self::block_of(last);
        for (number, block) in self.blocks.iter().enumerate().take(last.saturating_add(1)) {
            // Each doubling has 2^STEPS blocks, and comes after the first block.
            let doubling = u32::try_from(number.saturating_sub(1) >> STEPS).unwrap_or(0);
            let shift = if number == 0 { 0 } else { STEPS };
            let len = (FIRST_BLOCK >> shift).checked_shl(doubling).unwrap_or(0);
            block.get_or_init(|| std::iter::repeat_with(&make).take(len).collect());
        }
    }

    /// Returns the number of the block that contains an index, and the first index of that block.
    #[inline(always)]
    fn block_of(index: usize) -> (usize, usize) {
        match (index / FIRST_BLOCK).checked_ilog2() {
            None => (0, 0),
            Some(doubling) => {
                // All blocks of one doubling are as long as this power of two.
                let power = doubling.wrapping_add(FIRST_BLOCK.ilog2()).wrapping_sub(STEPS);
                let number = index.wrapping_shr(power);
                // The number without its leading one is the step within this doubling.
                let before = to_index(doubling.into()).wrapping_shl(STEPS);
                let step = number.wrapping_sub(1_usize.wrapping_shl(STEPS));
                (before.wrapping_add(step).wrapping_add(1), number.wrapping_shl(power))
            }
        }
    }
}

#[cfg(test)]
#[allow(clippy::arithmetic_side_effects, reason = "tests")]
mod tests {
    use super::super::parts::{
        AtomicUsize, INDEX_BLOCKS, INDEX_STEPS, Ordering, SLOT_BLOCKS, SLOT_STEPS,
    };
    use super::*;

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
}
