//! Elements of an array, chosen by a hash.

/// Returns the element that a hash chooses.
pub(crate) fn of_hash<T, const N: usize>(all: &[T; N], hash: u64) -> &T {
    all.get(index_of::<N>(hash)).expect("a remainder is below its divisor")
}

/// Returns the index below `N` that a hash chooses.
pub(crate) fn index_of<const N: usize>(hash: u64) -> usize {
    const { assert!(N > 0) };
    let len = u64::try_from(N).expect("a usize has at most 64 bits");
    let index = hash.checked_rem(len).expect("an array of length zero does not compile");
    usize::try_from(index).expect("a remainder is below its divisor")
}
