//! Lookups that a verification need not await, and the form of a record that it decides on.
//!
//! Only this crate's own stores have such a shortcut, because no other crate can name its type.

#![allow(
    clippy::inline_always,
    reason = "measured, as in the table: what is moved between functions is a tenth"
)]

#[cfg(feature = "cache")]
use super::cached::Lookup;
use super::memory::Records;
use crate::owner::{OwnerId, Realm};
use crate::snapshot::Snapshot;
use crate::table::Place;
use crate::token::access::Access;
use crate::token::details::{Details, Packed};
use crate::token::{Token, TokenId};
use std::fmt;

/// The part of a store that answers at once.
#[derive(Clone, Copy)]
pub struct StoreShortcut<'a>(Kind<'a>);

#[derive(Clone, Copy)]
enum Kind<'a> {
    None,
    Memory(&'a Records),
    #[cfg(feature = "cache")]
    Cache(&'a Lookup),
}

impl<'a> StoreShortcut<'a> {
    pub(crate) const fn none() -> Self {
        Self(Kind::None)
    }

    #[inline]
    pub(super) const fn memory(records: &'a Records) -> Self {
        Self(Kind::Memory(records))
    }

    #[cfg(feature = "cache")]
    #[inline]
    pub(super) const fn cache(lookup: &'a Lookup) -> Self {
        Self(Kind::Cache(lookup))
    }

    /// Returns the place where the search for a record starts, and prefetches it.
    ///
    /// The processor loads that memory while a digest is computed.
    #[inline(always)]
    pub(crate) fn prefetch(self, id: TokenId) -> Option<Place> {
        match self.0 {
            Kind::None => None,
            Kind::Memory(records) => records.seek(id),
            #[cfg(feature = "cache")]
            Kind::Cache(lookup) => lookup.seek(id),
        }
    }

    /// Invalidates records in the crate's own cache, if this is one.
    pub(crate) fn invalidate(self, ids: impl Iterator<Item = TokenId>) {
        match self.0 {
            Kind::None | Kind::Memory(_) => drop(ids),
            #[cfg(feature = "cache")]
            Kind::Cache(lookup) => ids.for_each(|id| lookup.invalidate(id)),
        }
    }

    /// Returns the record, `Some(None)` if there is none, or `None` if the store must be asked.
    ///
    /// `place` is the result of [`prefetch`](Self::prefetch) for this id, or `None`.
    #[allow(clippy::option_option, reason = "not known, or known that there is no such record")]
    #[inline(always)]
    pub(crate) fn find(self, id: TokenId, place: Option<Place>) -> Option<Option<StoredToken<'a>>> {
        match self.0 {
            Kind::None => None,
            Kind::Memory(records) => Some(records.lend(id, place)),
            #[cfg(feature = "cache")]
            Kind::Cache(lookup) => lookup.known(id, place),
        }
    }
}

/// A record as a verification reads it: the words that it decides on, apart from the details.
///
/// The in-memory store and the cache lend the details, so that a verification copies and allocates
/// nothing.
pub(crate) struct StoredToken<'a> {
    details: Snapshot<Details>,
    access: Access,
    /// The realm and owner, if the in-memory store has them beside the record.
    owner: Option<&'a (Realm, OwnerId)>,
    id: TokenId,
}

impl<'a> StoredToken<'a> {
    /// Creates a record with borrowed details. `owner` is the record's realm and owner.
    #[inline(always)]
    pub(super) fn lent(
        id: TokenId,
        details: Snapshot<Details>,
        access: Access,
        owner: Option<&'a (Realm, OwnerId)>,
    ) -> Self {
        Self { details, access, owner, id }
    }

    /// Returns the words that a verification decides on.
    #[inline]
    pub(crate) fn access(&self) -> &Access {
        &self.access
    }

    #[inline]
    pub(crate) fn details(&self) -> &Details {
        &self.details
    }

    #[inline]
    pub(crate) fn into_details(self) -> Snapshot<Details> {
        self.details
    }

    #[cfg(feature = "cache")]
    pub(super) fn into_packed(self) -> Packed {
        Packed { id: self.id, access: self.access, details: self.details.into_arc() }
    }

    #[inline]
    pub(crate) fn id(&self) -> TokenId {
        self.id
    }

    pub(crate) fn realm(&self) -> &Realm {
        self.owner.map_or_else(|| self.details.realm(), |(realm, _)| realm)
    }

    pub(crate) fn owner(&self) -> &OwnerId {
        self.owner.map_or_else(|| self.details.owner(), |(_, owner)| owner)
    }

    /// Returns the whole record.
    pub(crate) fn into_token(self) -> Token {
        self.details.token(self.id, &self.access)
    }
}

impl From<&Token> for StoredToken<'_> {
    fn from(token: &Token) -> Self {
        let Packed { id, access, details } = Packed::of(token);
        Self { details: details.into(), access, owner: None, id }
    }
}

impl fmt::Debug for StoreShortcut<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StoreShortcut").finish_non_exhaustive()
    }
}
