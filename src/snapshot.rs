//! What is read while others change it.

use arc_swap::Guard;
use std::fmt;
use std::ops::Deref;
use std::sync::Arc;

/// A record or an owner as it was when it was read.
///
/// It is an `Arc`, or it is lent by a table in memory of this crate. What is lent is noted in a place of the reading
/// thread's own instead of in a count that all threads write: two processors that read the same record do not wait for each
/// other. A thread has eight such places; what it holds beyond them is counted as an `Arc` is.
///
/// ```
/// # use patkit::{Owner, OwnerId, OwnerKind, Snapshot};
/// # use std::sync::Arc;
/// let owner = Owner::new(OwnerId::new("ada")?, OwnerKind::Human);
/// let snapshot = Snapshot::from(owner);
/// assert_eq!(snapshot.id().as_str(), "ada");
/// let shared: Arc<Owner> = snapshot.into_arc();
/// # Ok::<(), patkit::owner::IdError>(())
/// ```
pub struct Snapshot<T>(Guard<Arc<T>>);

impl<T> Snapshot<T> {
    pub(crate) const fn lent(guard: Guard<Arc<T>>) -> Self {
        Self(guard)
    }

    /// Counted as others are: for what is kept, or handed to many.
    pub fn into_arc(self) -> Arc<T> {
        Guard::into_inner(self.0)
    }
}

impl<T> From<Arc<T>> for Snapshot<T> {
    #[inline]
    fn from(value: Arc<T>) -> Self {
        Self(Guard::from_inner(value))
    }
}

impl<T> From<T> for Snapshot<T> {
    fn from(value: T) -> Self {
        Self::from(Arc::new(value))
    }
}

/// A clone is counted: it may live long, and in other threads.
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

impl<T: fmt::Debug> fmt::Debug for Snapshot<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}
