//! Persistence: the operations that a database must provide.
//!
//! A store keeps [`Token`] records and [`AuditEvent`]s. It does not know which changes are
//! permitted, because the service enforces all rules. A store guarantees only that changes are
//! atomic and never lost.

mod audit_log;
#[cfg(feature = "cache")]
pub mod cached;
mod fast;
mod memory;
pub mod record;
#[cfg(feature = "sql")]
pub mod sql;

pub use audit_log::{
    AuditLog, CursorError, EventCursor, EventOrder, EventPage, EventQuery, ExportCursor,
    ExportPage, MAX_EVENTS,
};
#[cfg(feature = "cache")]
pub use cached::CachedStore;
pub(crate) use fast::{StoreShortcut, StoredToken};
pub use memory::MemoryStore;
#[cfg(feature = "sql")]
pub use sql::SqlStore;

use crate::BoxedFuture;
use crate::audit::AuditEvent;
use crate::clock::plausible_until;
use crate::owner::{OwnerId, Realm};
use crate::token::{KeyCheck, KeyId, LastUse, StoredDigest, Token, TokenId, TokenKind, TokenState};
use chrono::{DateTime, Utc};
use std::sync::Arc;

/// The maximum number of entries in a page of a list.
pub const MAX_PAGE: usize = 200;

/// The contract of a store.
///
/// * **Atomic**: [`commit`](Self::commit) applies everything in its batch or nothing, audit events
///   included. This also holds if its future is dropped.
/// * **Never overwrites**: an insert conflicts if its id exists. An update or a remove conflicts if
///   the record does not have the expected version or no longer exists.
/// * **Events** are stored once: an event whose [`id`](AuditEvent::id) is already stored is left
///   unchanged. It is therefore safe to store an event again after a commit whose outcome is
///   unknown.
/// * **Names**: [`Token::name_key`], if present, is unique among the records of one realm, owner
///   and kind, even if the names differ. The store keeps the key as given and never computes it.
///   Uniqueness is checked on the result of a batch, so that a batch may pass a name from one
///   record to another.
/// * **Kinds**: a record is refused if its [`TokenKind::owner_kind`] is not its `owner_kind`.
/// * **Acknowledged means visible**: a committed change is visible to every read that starts after
///   the commit returned. A wrapper that cannot guarantee this documents how stale its answers may
///   be.
/// * **Last uses** change only through [`touch`](Self::touch): an update keeps the stored
///   `last_used` and ignores the one in its record.
/// * **Errors** are [`StoreError::Unavailable`] for a fault that may be transient,
///   [`StoreError::Corrupt`] for a record that cannot be read, which must not affect other records,
///   and [`StoreError::OutcomeUnknown`] if a commit may or may not have happened.
/// * **Times** are passed truncated to the microsecond and must be returned unchanged.
///
/// The conformance suite (feature `conformance`) checks all of this. `MemoryStore` is the reference
/// implementation.
///
/// `&S`, `Arc<S>` and `Box<S>` are stores if `S` is one. `Arc<dyn DynTokenStore>` is a store too,
/// at the cost of one allocation per call.
///
#[doc = include_str!("store/worked.md")]
pub trait TokenStore: Send + Sync {
    /// Returns the record with this id, in any realm.
    ///
    /// # Errors
    /// [`StoreError`] if the store fails.
    fn find(
        &self,
        id: TokenId,
    ) -> impl Future<Output = Result<Option<Arc<Token>>, StoreError>> + Send;

    /// Returns the record with this id as the database has it now, in any realm.
    ///
    /// A cache never answers this itself but asks the store behind it. Every management operation
    /// decides on the result; only verifications use [`find`](Self::find). In a store without a
    /// cache both do the same.
    ///
    /// # Errors
    /// [`StoreError`] if the store fails.
    fn find_current(
        &self,
        id: TokenId,
    ) -> impl Future<Output = Result<Option<Arc<Token>>, StoreError>> + Send;

    /// Returns one page of a list, newest (greatest id) first.
    ///
    /// # Errors
    /// [`StoreError`] if the store fails. A corrupt record is reported in the page and does not
    /// fail it.
    fn list(&self, query: &ListQuery) -> impl Future<Output = Result<Page, StoreError>> + Send;

    /// Applies all of a batch or nothing.
    ///
    /// # Errors
    /// [`StoreError::Conflict`] if a change conflicts; conflicts of ids and versions are reported
    /// before those of names. [`StoreError::OutcomeUnknown`] if the commit may have happened
    /// despite the failure. After any other error nothing was committed.
    fn commit(&self, batch: &ChangeBatch) -> impl Future<Output = Result<(), StoreError>> + Send;

    /// Records last uses.
    ///
    /// Each use moves the `last_used` of its record forward or does nothing. It moves `last_used`
    /// back only if a wrong clock wrote the stored one ([`Touch::replaces`]). A missing record is
    /// not created, and the version does not change. A batch need not be atomic.
    ///
    /// # Errors
    /// [`StoreError`] if it is possible that a use was not recorded; the caller then sends all uses
    /// again.
    fn touch(&self, uses: &[Touch]) -> impl Future<Output = Result<(), StoreError>> + Send;

    /// Returns up to `limit` records that expired or were revoked at or before `before`.
    ///
    /// Those that ended first come first, because pruning removes them next. The page's `next` is
    /// `None`.
    ///
    /// The service removes the records with [`commit`](Self::commit), in one batch that also stores
    /// their audit events and updates the records that refer to them, so that no family is split.
    ///
    /// # Errors
    /// [`StoreError`] if the store fails. A corrupt record is reported in the page, counts towards
    /// `limit`, and does not fail the page.
    fn list_ended(
        &self,
        before: DateTime<Utc>,
        limit: usize,
    ) -> impl Future<Output = Result<Page, StoreError>> + Send;

    /// Returns the lookups of this crate's own stores that do not need to be awaited.
    #[doc(hidden)]
    fn shortcut(&self) -> StoreShortcut<'_> {
        StoreShortcut::none()
    }
}

/// Counts records. Optional for a store.
pub trait TokenCounts: Send + Sync {
    /// Returns the number of records in each state at `now`.
    ///
    /// # Errors
    /// [`StoreError`] if the store fails.
    fn count_by_state(
        &self,
        now: DateTime<Utc>,
    ) -> impl Future<Output = Result<Vec<(TokenState, u64)>, StoreError>> + Send;
}

/// Stores check values of the keys that digests were made with. Optional for a store.
///
/// [`TokenService::check`](crate::TokenService::check) uses them.
pub trait KeyChecks: Send + Sync {
    /// Returns all check values, one per key id, in any order.
    ///
    /// # Errors
    /// [`StoreError`] if the store fails.
    fn key_checks(&self) -> impl Future<Output = Result<Vec<KeyCheck>, StoreError>> + Send;

    /// Records a check value, unless its key id already has one: the first one is never replaced.
    ///
    /// # Errors
    /// [`StoreError`] if the store cannot confirm that a value is recorded for this key id.
    fn record_key_check(
        &self,
        check: &KeyCheck,
    ) -> impl Future<Output = Result<(), StoreError>> + Send;

    /// Returns how many records, of any realm and state, have a digest under each key.
    ///
    /// Keys without a record may be left out.
    ///
    /// # Errors
    /// [`StoreError`] if the store fails.
    fn tokens_per_key(&self) -> impl Future<Output = Result<Vec<(KeyId, u64)>, StoreError>> + Send;
}

/// Notifies caches of changes that others make. Optional for a store.
pub trait ChangeFeed: Send + Sync {
    /// The feed that delivers the changes.
    type Feed: Feed;

    /// Checks whether the store can be followed in its current setup. Called once, before following
    /// begins.
    ///
    /// # Errors
    /// [`FollowError`], which says which setting is too small and what to set.
    fn check_following(&self) -> Result<(), FollowError>;

    /// Starts to listen for notifications. Returns `None` if the store has no notifications.
    ///
    /// The feed delivers every change that is committed after this has returned. Its
    /// [`next`](Feed::next) waits for one.
    ///
    /// # Errors
    /// [`StoreError`] if the store fails.
    fn listen(&self) -> impl Future<Output = Result<Option<Self::Feed>, StoreError>> + Send;

    /// Sends a notification over the channel that announces changes.
    ///
    /// It is sent from a connection other than those that listen. Every feed that receives it
    /// returns [`FeedEvent::Proven`] with this nonce.
    ///
    /// # Errors
    /// [`StoreError`] if the store fails.
    fn probe(&self, nonce: u64) -> impl Future<Output = Result<(), StoreError>> + Send;

    /// Starts to poll for changes.
    ///
    /// The feed delivers every change that is committed after this has returned. Its
    /// [`next`](Feed::next) queries the store and returns without waiting for a change. Polling
    /// must work through a pooler that passes on no notifications.
    ///
    /// # Errors
    /// [`StoreError`] if the store fails.
    fn poll(&self) -> impl Future<Output = Result<Self::Feed, StoreError>> + Send;
}

/// Delivers changes, from [`ChangeFeed::listen`] or [`ChangeFeed::poll`].
pub trait Feed: Send {
    /// Returns what happened since the last call.
    ///
    /// A change may be delivered more than once. If the future is dropped, the next call returns
    /// what the dropped one would have returned.
    ///
    /// # Errors
    /// [`StoreError`] if the feed has ended: later changes are not delivered.
    fn next(&mut self) -> impl Future<Output = Result<FeedEvent, StoreError>> + Send;
}

/// An event of a [`Feed`].
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum FeedEvent {
    /// These records were changed.
    Changed(Vec<TokenId>),
    /// Any record may have been changed.
    Missed,
    /// A notification with this nonce arrived ([`ChangeFeed::probe`]).
    Proven(u64),
}

/// The reason why a store cannot be followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FollowError {
    /// Listening takes one connection of the pool for itself, so the store would wait for a
    /// connection for ever.
    #[error(
        "the pool has at most {connections} connection, and following the store takes one for itself; set \
         `.max_connections({needed})` or more on the pool"
    )]
    PoolTooSmall {
        /// The maximum number of connections of the pool.
        connections: u32,
        /// The number of connections that the pool needs at least.
        needed: u32,
    },
}

/// A list, and the page of it to return.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ListQuery {
    /// Which records the list holds.
    pub by: ListBy,
    /// Only records that are Active at this instant.
    pub active_at: Option<DateTime<Utc>>,
    /// Only records with a smaller id: those that follow the last record of the previous page.
    pub after: Option<TokenId>,
    /// The maximum number of records in the page, from 1 to [`MAX_PAGE`].
    pub limit: usize,
}

impl ListQuery {
    /// Queries the first page, of [`MAX_PAGE`] records, of the whole list.
    pub fn new(by: ListBy) -> Self {
        Self { by, active_at: None, after: None, limit: MAX_PAGE }
    }

    /// Keeps only records that are Active at `now`.
    pub fn active_at(mut self, now: DateTime<Utc>) -> Self {
        self.active_at = Some(now);
        self
    }

    /// Keeps only records with a smaller id than this one, because lists are newest first.
    pub fn after(mut self, id: Option<TokenId>) -> Self {
        self.after = id;
        self
    }

    /// Whether a record is in the list and follows the start of the page.
    pub fn holds(&self, token: &Token) -> bool {
        let is_listed = match &self.by {
            ListBy::Owner { realm, owner, kind } => {
                token.realm == *realm
                    && token.owner == *owner
                    && kind.is_none_or(|kind| token.kind == kind)
            }
            ListBy::Kind { realm, kind } => token.realm == *realm && token.kind == *kind,
            ListBy::Creator(creator) => token.creator() == Some(*creator),
            ListBy::Restorer(restorer) => token.restored_by == Some(*restorer),
            ListBy::Ancestor(ancestor) => token.ancestor == Some(*ancestor),
            ListBy::Idle(before) => token.is_idle(*before, self.active_at),
            ListBy::Key(key) => {
                matches!(&token.digest, StoredDigest::Keyed(digest) if digest.key() == *key)
            }
        };
        is_listed
            && self.after.is_none_or(|after| token.id < after)
            && self.active_at.is_none_or(|now| token.state(now) == TokenState::Active)
    }

    /// Sets the maximum number of records, clamped to 1 to [`MAX_PAGE`].
    pub fn limit(mut self, limit: usize) -> Self {
        self.limit = limit.clamp(1, MAX_PAGE);
        self
    }
}

/// Which records a list holds.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum ListBy {
    /// Records of one owner, of one kind or of any.
    Owner {
        /// The owner's realm.
        realm: Realm,
        /// The owner.
        owner: OwnerId,
        /// The kind, or `None` for every kind.
        kind: Option<TokenKind>,
    },
    /// Records of one kind in a realm.
    Kind {
        /// The realm.
        realm: Realm,
        /// The kind.
        kind: TokenKind,
    },
    /// Records that a token created ([`Token::creator`]), in any realm.
    Creator(TokenId),
    /// Records that were last restored through a token ([`Token::restored_by`]), in any realm.
    Restorer(TokenId),
    /// Records that descend from a token through removed ones ([`Token::ancestor`]), in all realms.
    Ancestor(TokenId),
    /// Records whose [`Token::last_activity`] is before an instant ([`Token::is_idle`]), in all
    /// realms.
    ///
    /// With [`active_at`](ListQuery::active_at), an activity later than
    /// [`MAX_CLOCK_ERROR`](crate::clock::MAX_CLOCK_ERROR) after that instant does not count,
    /// because a wrong clock wrote it.
    Idle(DateTime<Utc>),
    /// Records whose digest was made with this key, in all realms.
    Key(KeyId),
}

/// One page of a list.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct Page {
    /// The records, newest first.
    pub tokens: Vec<Arc<Token>>,
    /// The records of the page that could not be read.
    pub corrupt: Vec<CorruptRecord>,
    /// The start of the next page; `None` on the last page.
    pub next: Option<TokenId>,
}

impl Page {
    /// Creates a page of these records; the next page starts after `next`.
    pub fn new(
        tokens: Vec<Arc<Token>>,
        corrupt: Vec<CorruptRecord>,
        next: Option<TokenId>,
    ) -> Self {
        Self { tokens, corrupt, next }
    }
}

/// Changes that are applied together or not at all, with their audit events.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct ChangeBatch {
    /// The changes. No two may be of the same record.
    pub changes: Vec<Change>,
    /// The audit events. A batch may hold events alone.
    pub events: Vec<AuditEvent>,
    /// The owner to erase from all stored events ([`AuditEvent::erase`]), before `events` are
    /// added.
    pub erase: Option<(Realm, OwnerId)>,
}

impl ChangeBatch {
    /// Creates an empty batch.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a change.
    pub fn change(mut self, change: Change) -> Self {
        self.changes.push(change);
        self
    }

    /// Adds an event.
    pub fn event(mut self, event: AuditEvent) -> Self {
        self.events.push(event);
        self
    }
}

/// One change of one record.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Change {
    /// Adds a record; its version is 1.
    Insert(Arc<Token>),
    /// Replaces the record that has this id and the preceding version. The stored `last_used` is
    /// kept.
    Update(Arc<Token>),
    /// Removes a record.
    Remove {
        /// The id of the record.
        id: TokenId,
        /// The version that the record must have.
        version: u64,
    },
}

impl Change {
    /// Returns the id of the record that changes.
    pub fn id(&self) -> TokenId {
        match self {
            Self::Insert(token) | Self::Update(token) => token.id,
            Self::Remove { id, .. } => *id,
        }
    }
}

/// A use of a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Touch {
    /// The token that was used.
    pub id: TokenId,
    /// The use.
    pub last_use: LastUse,
    /// The latest instant that a correct clock can have stored by now. A later stored use is
    /// replaced by this one.
    pub plausible_until: DateTime<Utc>,
}

impl Touch {
    /// Creates a use of a token, written at the time of the use.
    ///
    /// `plausible_until` is [`MAX_CLOCK_ERROR`](crate::clock::MAX_CLOCK_ERROR) after the use.
    pub fn new(id: TokenId, last_use: LastUse) -> Self {
        Self::at(id, last_use, last_use.at)
    }

    /// Creates a use of a token, written at `now`.
    ///
    /// If the use is later than a correct clock can have recorded, it happened before `now` and is
    /// stored as a use at `now`.
    pub fn at(id: TokenId, last_use: LastUse, now: DateTime<Utc>) -> Self {
        let plausible_until = plausible_until(now);
        let at = if last_use.at > plausible_until { now } else { last_use.at };
        Self { id, last_use: LastUse::new(at, last_use.address), plausible_until }
    }

    /// Whether this use replaces the known one: if this use is later, or if a wrong clock wrote the
    /// known one.
    pub fn replaces(&self, known: DateTime<Utc>) -> bool {
        self.last_use.replaces(known, self.plausible_until)
    }
}

/// The reason why a store failed.
#[derive(thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The store is unreachable, overloaded or read-only. Nothing was changed.
    #[error("the token store is unavailable")]
    Unavailable(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// A change conflicts with the stored records. Nothing was changed.
    #[error("the change conflicts: {0}")]
    Conflict(Conflict),
    /// A record cannot be read.
    #[error("a stored record is corrupt: {0}")]
    Corrupt(CorruptRecord),
    /// A commit may or may not have happened.
    #[error("the store did not say whether the change was stored; read the record to find out")]
    OutcomeUnknown(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// A cursor of an audit log was refused.
    #[error(transparent)]
    Cursor(CursorError),
}

impl StoreError {
    /// Creates an [`Unavailable`](Self::Unavailable) error with this source.
    pub fn unavailable(source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::Unavailable(source.into())
    }

    /// Returns the conflict, or `None` for another error.
    pub fn conflict(&self) -> Option<Conflict> {
        match self {
            Self::Conflict(conflict) => Some(*conflict),
            _ => None,
        }
    }
}

/// What a change conflicts with.
#[derive(Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Conflict {
    /// A record with this id already exists.
    #[error("the token id {0} is taken; generate another id")]
    Id(TokenId),
    /// Another record already has the name of this one.
    #[error("the name of the token {0} is taken; choose another name")]
    Name(TokenId),
    /// The record was changed or removed since it was read.
    #[error("the token {0} was changed or removed in the meantime; read the token again")]
    Version(TokenId),
    /// The kind of the record does not fit its owner's kind.
    #[error(
        "the kind of the token {0} does not fit its owner; give personal tokens to people, and \
         service tokens to service users"
    )]
    OwnerKind(TokenId),
}

/// The location of a record that cannot be read.
#[derive(Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "the column {table}.{column} of the row {row:?} cannot be read; restore the row from a backup"
)]
#[non_exhaustive]
pub struct CorruptRecord {
    /// The table.
    pub table: String,
    /// The column.
    pub column: String,
    /// The row, by the value that identifies it in the table.
    pub row: String,
}

impl CorruptRecord {
    /// Reports a record as corrupt because of this column.
    pub fn new(table: &str, column: &str, row: &str) -> Self {
        Self { table: table.into(), column: column.into(), row: row.into() }
    }
}

/// Forwards a store through a pointer. A macro, because three pointer types need the same methods.
macro_rules! forward {
    ($pointer:ty) => {
        #[deny(clippy::missing_trait_methods)]
        impl<S: TokenStore + ?Sized> TokenStore for $pointer {
            fn find(
                &self,
                id: TokenId,
            ) -> impl Future<Output = Result<Option<Arc<Token>>, StoreError>> + Send {
                (**self).find(id)
            }

            fn find_current(
                &self,
                id: TokenId,
            ) -> impl Future<Output = Result<Option<Arc<Token>>, StoreError>> + Send {
                (**self).find_current(id)
            }

            fn list(
                &self,
                query: &ListQuery,
            ) -> impl Future<Output = Result<Page, StoreError>> + Send {
                (**self).list(query)
            }

            fn commit(
                &self,
                batch: &ChangeBatch,
            ) -> impl Future<Output = Result<(), StoreError>> + Send {
                (**self).commit(batch)
            }

            fn touch(&self, uses: &[Touch]) -> impl Future<Output = Result<(), StoreError>> + Send {
                (**self).touch(uses)
            }

            fn list_ended(
                &self,
                before: DateTime<Utc>,
                limit: usize,
            ) -> impl Future<Output = Result<Page, StoreError>> + Send {
                (**self).list_ended(before, limit)
            }

            fn shortcut(&self) -> StoreShortcut<'_> {
                (**self).shortcut()
            }
        }
    };
}

forward!(&S);
forward!(Arc<S>);
forward!(Box<S>);

/// Forwards [`KeyChecks`] through a pointer.
macro_rules! forward_key_checks {
    ($pointer:ty) => {
        impl<S: KeyChecks + ?Sized> KeyChecks for $pointer {
            fn key_checks(&self) -> impl Future<Output = Result<Vec<KeyCheck>, StoreError>> + Send {
                (**self).key_checks()
            }

            fn record_key_check(
                &self,
                check: &KeyCheck,
            ) -> impl Future<Output = Result<(), StoreError>> + Send {
                (**self).record_key_check(check)
            }

            fn tokens_per_key(
                &self,
            ) -> impl Future<Output = Result<Vec<(KeyId, u64)>, StoreError>> + Send {
                (**self).tokens_per_key()
            }
        }
    };
}

forward_key_checks!(&S);
forward_key_checks!(Arc<S>);
forward_key_checks!(Box<S>);

/// The dyn-compatible form of [`TokenStore`].
///
/// Every store implements it, and `dyn DynTokenStore` implements [`TokenStore`], so that an
/// `Arc<dyn DynTokenStore>` can be used in place of any store.
pub trait DynTokenStore: Send + Sync {
    /// [`TokenStore::find`], boxed.
    fn find_boxed(&self, id: TokenId) -> BoxedFuture<'_, Result<Option<Arc<Token>>, StoreError>>;
    /// [`TokenStore::find_current`], boxed.
    fn find_current_boxed(
        &self,
        id: TokenId,
    ) -> BoxedFuture<'_, Result<Option<Arc<Token>>, StoreError>>;
    /// [`TokenStore::list`], boxed.
    fn list_boxed<'a>(&'a self, query: &'a ListQuery) -> BoxedFuture<'a, Result<Page, StoreError>>;
    /// [`TokenStore::commit`], boxed.
    fn commit_boxed<'a>(
        &'a self,
        batch: &'a ChangeBatch,
    ) -> BoxedFuture<'a, Result<(), StoreError>>;
    /// [`TokenStore::touch`], boxed.
    fn touch_boxed<'a>(&'a self, uses: &'a [Touch]) -> BoxedFuture<'a, Result<(), StoreError>>;
    /// [`TokenStore::list_ended`], boxed.
    fn list_ended_boxed(
        &self,
        before: DateTime<Utc>,
        limit: usize,
    ) -> BoxedFuture<'_, Result<Page, StoreError>>;
    /// [`TokenStore::shortcut`].
    #[doc(hidden)]
    fn shortcut_dyn(&self) -> StoreShortcut<'_>;
}

impl<S: TokenStore> DynTokenStore for S {
    fn find_boxed(&self, id: TokenId) -> BoxedFuture<'_, Result<Option<Arc<Token>>, StoreError>> {
        Box::pin(self.find(id))
    }

    fn find_current_boxed(
        &self,
        id: TokenId,
    ) -> BoxedFuture<'_, Result<Option<Arc<Token>>, StoreError>> {
        Box::pin(self.find_current(id))
    }

    fn shortcut_dyn(&self) -> StoreShortcut<'_> {
        self.shortcut()
    }

    fn list_boxed<'a>(&'a self, query: &'a ListQuery) -> BoxedFuture<'a, Result<Page, StoreError>> {
        Box::pin(self.list(query))
    }

    fn commit_boxed<'a>(
        &'a self,
        batch: &'a ChangeBatch,
    ) -> BoxedFuture<'a, Result<(), StoreError>> {
        Box::pin(self.commit(batch))
    }

    fn touch_boxed<'a>(&'a self, uses: &'a [Touch]) -> BoxedFuture<'a, Result<(), StoreError>> {
        Box::pin(self.touch(uses))
    }

    fn list_ended_boxed(
        &self,
        before: DateTime<Utc>,
        limit: usize,
    ) -> BoxedFuture<'_, Result<Page, StoreError>> {
        Box::pin(self.list_ended(before, limit))
    }
}

#[deny(clippy::missing_trait_methods)]
impl TokenStore for dyn DynTokenStore + '_ {
    async fn find(&self, id: TokenId) -> Result<Option<Arc<Token>>, StoreError> {
        self.find_boxed(id).await
    }

    async fn find_current(&self, id: TokenId) -> Result<Option<Arc<Token>>, StoreError> {
        self.find_current_boxed(id).await
    }

    fn shortcut(&self) -> StoreShortcut<'_> {
        self.shortcut_dyn()
    }

    async fn list(&self, query: &ListQuery) -> Result<Page, StoreError> {
        self.list_boxed(query).await
    }

    async fn commit(&self, batch: &ChangeBatch) -> Result<(), StoreError> {
        self.commit_boxed(batch).await
    }

    async fn touch(&self, uses: &[Touch]) -> Result<(), StoreError> {
        self.touch_boxed(uses).await
    }

    async fn list_ended(&self, before: DateTime<Utc>, limit: usize) -> Result<Page, StoreError> {
        self.list_ended_boxed(before, limit).await
    }
}
