//! Values that are read while others replace them.

use arc_swap::Guard;
use std::ops::Deref;
use std::sync::Arc;

/// A shared value as it was when it was read: an `Arc`, or lent by a table of this crate.
///
/// A lent value is noted in one of the reading thread's eight places instead of in a count that all
/// threads write, so that two processors that read the same value do not wait for each other.
/// Values beyond the eighth are counted as an `Arc` is.
pub(crate) struct Snapshot<T>(Guard<Arc<T>>);

impl<T> Snapshot<T> {
    pub(crate) const fn lent(guard: Guard<Arc<T>>) -> Self {
        Self(guard)
    }

    /// Returns the value as an `Arc`, to keep it or to share it.
    pub(crate) fn into_arc(self) -> Arc<T> {
        Guard::into_inner(self.0)
    }
}

impl<T> From<Arc<T>> for Snapshot<T> {
    #[inline]
    fn from(value: Arc<T>) -> Self {
        Self(Guard::from_inner(value))
    }
}

/// A clone is counted, because it may live long, and in other threads.
impl<T> Clone for Snapshot<T> {
    fn clone(&self) -> Self {
        Self::from(Arc::clone(&self.0))
    }
}

impl<T> Deref for Snapshot<T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        &self.0
    }
}
