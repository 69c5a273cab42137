//! The part of a cache that answers at once: cached records, and ids that are known to have none.

#![allow(
    clippy::inline_always,
    reason = "measured, as in the table: what is moved between functions is a tenth"
)]

use crate::clock::Clock;
use crate::snapshot::Snapshot;
use crate::store::StoredToken;
use crate::table::{BoundedTable, Place};
use crate::token::TokenId;
use crate::token::access::Access;
use crate::token::details::{Details, Packed};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

pub(in crate::store) struct Lookup {
    /// The records, with their [`Access`] and when they were asked for.
    pub(super) found: BoundedTable<Details, 10>,
    /// Ids without a record, and when they were asked for.
    pub(super) missing: BoundedTable<(), 2>,
    pub(super) lifetime: Duration,
    pub(super) negative_lifetime: Duration,
    pub(super) clock: Arc<dyn Clock>,
    /// When the cache was built, by the clock's monotonic time.
    pub(super) built_at: Duration,
    /// Results of the reads up to this number no longer count.
    pub(super) forgotten: AtomicU64,
}

impl Lookup {
    #[inline]
    pub(in crate::store) fn seek(&self, id: TokenId) -> Option<Place> {
        self.found.seek(id.words())
    }

    /// What is known of an id, if that is not too old; it may lie in a place.
    #[allow(clippy::option_option, reason = "nothing known, or known that there is nothing")]
    #[inline(always)]
    pub(in crate::store) fn known(
        &self,
        id: TokenId,
        place: Option<Place>,
    ) -> Option<Option<StoredToken<'_>>> {
        let now = self.now();
        if let Some(entry) = self.found.get(place, id.words()) {
            let (access, asked) = taken_apart(entry.words);
            if asked.is_good(now, self.lifetime) {
                self.found.note(entry.place);
                return Some(Some(StoredToken::lent(id, Snapshot::lent(entry.value), access, None)));
            }
        }
        self.known_missing(id, now).then_some(None)
    }

    /// Whether it is known that there is no such record.
    #[inline(never)]
    fn known_missing(&self, id: TokenId, now: Now) -> bool {
        let Some(entry) = self.missing.get(None, id.words()) else { return false };
        let is_good = Asked::from_words(entry.words).is_good(now, self.negative_lifetime);
        if is_good {
            self.missing.note(entry.place);
        }
        is_good
    }

    #[inline]
    pub(super) fn now(&self) -> Now {
        let at = self.clock.monotonic().saturating_sub(self.built_at).as_nanos();
        let at = u64::try_from(at).unwrap_or(u64::MAX);
        Now { at, forgotten: self.forgotten.load(Ordering::SeqCst) }
    }

    /// Whether what is kept of an id is what a later read found.
    pub(super) fn has_later(&self, id: TokenId, asked: Asked) -> bool {
        let found = self.found.get(None, id.words()).map(|entry| taken_apart(entry.words).1);
        let missing = self.missing.get(None, id.words()).map(|entry| Asked::from_words(entry.words));
        found.into_iter().chain(missing).any(|kept| kept.number > asked.number)
    }

    pub(super) fn keep(&self, Packed { id, access, details }: Packed, asked: Asked) {
        let mut words = [0; 10];
        let [of_access @ .., at, number] = &mut words;
        (*of_access, *at, *number) = (access.words(), asked.at, asked.number);
        let now = self.now();
        self.found
            .put(id.words(), words, details, |words| !taken_apart(*words).1.is_good(now, self.lifetime));
    }

    pub(super) fn keep_missing(&self, id: TokenId, asked: Asked) {
        let now = self.now();
        let is_over = |words: &[u64; 2]| !Asked::from_words(*words).is_good(now, self.negative_lifetime);
        self.missing.put(id.words(), asked.words(), Arc::new(()), is_over);
    }
}

/// When the store was asked for what is kept.
#[derive(Clone, Copy)]
pub(super) struct Asked {
    /// In nanoseconds since the cache was built; the greatest number where that is more than there are numbers for.
    pub(super) at: u64,
    /// Which read it was, from 1 on. The clock may stand still between two.
    pub(super) number: u64,
}

/// What is good now.
#[derive(Clone, Copy)]
pub(super) struct Now {
    /// As [`Asked::at`].
    pub(super) at: u64,
    /// What these reads found is forgotten: all up to this number.
    pub(super) forgotten: u64,
}

impl Asked {
    pub(super) fn from_words([at, number]: [u64; 2]) -> Self {
        Self { at, number }
    }

    pub(super) fn words(self) -> [u64; 2] {
        [self.at, self.number]
    }

    /// Whether what was asked for then is good now.
    #[inline]
    pub(super) fn is_good(self, now: Now, lifetime: Duration) -> bool {
        let age = Duration::from_nanos(now.at.saturating_sub(self.at));
        // Beyond the last number nothing can be told, and nothing is good.
        self.number > now.forgotten && age < lifetime && now.at < u64::MAX
    }
}

/// What is kept beside the details of a record.
#[inline]
pub(super) fn taken_apart([of_access @ .., at, number]: [u64; 10]) -> (Access, Asked) {
    (Access::from_words(of_access), Asked { at, number })
}
