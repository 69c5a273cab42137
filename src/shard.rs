//! Elements of an array, chosen by a hash.

/// Returns the element that a hash chooses.
pub(crate) fn of_hash<T, const N: usize>(all: &[T; N], hash: u64) -> &T {
    all.get(index_of::<N>(hash)).expect("a remainder is below its divisor")
}

/// Returns the index below `N` that a hash chooses.
#[allow(
    clippy::arithmetic_side_effects,
    clippy::as_conversions,
    clippy::cast_possible_truncation,
    reason = "`N` is not zero, and the remainder is below `N`, which is a usize"
)]
pub(crate) const fn index_of<const N: usize>(hash: u64) -> usize {
    const { assert!(N > 0) };
    (hash % N as u64) as usize
}
