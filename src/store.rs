//! Persistence: what a database must do, and nothing of what is allowed.
//!
//! A store keeps [`Token`] records and [`AuditEvent`]s. All rules are above it; it does not know which change is
//! permitted, only that changes are atomic and never lost.

mod audit_log;
#[cfg(feature = "cache")]
pub mod cached;
mod fast;
mod memory;
#[cfg(feature = "postgres")]
pub mod postgres;
pub mod record;
#[cfg(any(feature = "sqlite", feature = "postgres"))]
mod sql;
#[cfg(feature = "sqlite")]
pub mod sqlite;

pub use audit_log::{
    AuditLog, CursorError, EventCursor, EventOrder, EventPage, EventQuery, ExportCursor, ExportPage,
    MAX_EVENTS,
};
#[cfg(feature = "cache")]
pub use cached::CachedStore;
pub(crate) use fast::{StoreShortcut, StoredToken};
pub use memory::MemoryStore;
#[cfg(feature = "postgres")]
pub use postgres::PostgresStore;
#[cfg(any(feature = "sqlite", feature = "postgres"))]
pub use sql::{Engine, NameError, SetupError, SqlFault, SqlStore, SqlStoreBuilder, SqlStoreWithin};
#[cfg(feature = "sqlite")]
pub use sqlite::SqliteStore;

use crate::audit::AuditEvent;
use crate::clock::plausible_until;
use crate::owner::{OwnerId, Realm};
use crate::token::{Credential, KeyCheck, KeyId, LastUse, Token, TokenId, TokenKind, TokenState};
use chrono::{DateTime, Utc};
use std::pin::Pin;
use std::sync::Arc;

/// Most entries that a page of a list is asked for.
pub const MAX_PAGE: usize = 200;

/// The contract of a store.
///
/// * **Atomic**: [`commit`](Self::commit) does everything in its batch or nothing, audit events included. When its
///   future is dropped, the same holds.
/// * **Never overwrites**: an insert with an id that is there is a conflict; an update or a remove whose expected version
///   is not the record's is a conflict, and so is one whose record is gone.
/// * **Events** are stored once: an event whose [`id`](AuditEvent::id) is stored already stays as it is, so that storing it again
///   after a commit whose outcome is unknown is safe.
/// * **Names**: among the records of one realm, owner and kind, [`Token::name_key`] is unique where it is there, whatever the name. The
///   store keeps the key as it is and never computes it. Uniqueness is checked on what a batch leaves behind, so that a batch may hand a name on.
/// * **Kinds**: a record whose [`TokenKind::owner_kind`] is not its `owner_kind` is refused.
/// * **Acknowledged means seen**: what was committed is seen by every read that starts afterwards. A wrapper that cannot
///   promise this states how stale its answers may be.
/// * **Last uses** belong to [`touch`](Self::touch) alone: an update keeps the stored `last_used`, whatever its record says.
/// * **Errors** are [`StoreError::Unavailable`] for a fault that may pass, [`StoreError::Corrupt`] for a record that cannot
///   be read, which harms itself alone, and [`StoreError::OutcomeUnknown`] when a commit may or may not have happened.
/// * Times come cut to the microsecond and must come back unchanged.
///
/// The conformance suite (feature `conformance`) checks all of it. `MemoryStore` is the reference implementation.
///
/// `&S`, `Arc<S>` and `Box<S>` are stores if `S` is one. `Arc<dyn DynTokenStore>` is a store too, at the price of one allocation
/// per call.
pub trait TokenStore: Send + Sync {
    /// The record with this id, in whatever realm.
    ///
    /// # Errors
    /// [`StoreError`] when the store cannot say.
    fn find(&self, id: TokenId) -> impl Future<Output = Result<Option<Arc<Token>>, StoreError>> + Send;

    /// The record with this id as the database has it now, in whatever realm. A cache never answers this: it asks the store
    /// behind it.
    ///
    /// Every management operation decides on what this returns. Only verifications use [`find`](Self::find). A store without a
    /// cache does the same for both.
    ///
    /// # Errors
    /// [`StoreError`] when the store cannot say.
    fn find_current(
        &self,
        id: TokenId,
    ) -> impl Future<Output = Result<Option<Arc<Token>>, StoreError>> + Send;

    /// One page of a list, newest (greatest id) first.
    ///
    /// # Errors
    /// [`StoreError`] when the store cannot say. A corrupt record is told in the page and does not fail it.
    fn list(&self, query: &ListQuery) -> impl Future<Output = Result<Page, StoreError>> + Send;

    /// Does all of a batch or nothing.
    ///
    /// # Errors
    /// [`StoreError::Conflict`] for a change that conflicts, of ids and versions before names; [`StoreError::OutcomeUnknown`] when it may have
    /// happened all the same; any other when it did not happen.
    fn commit(&self, batch: &ChangeBatch) -> impl Future<Output = Result<(), StoreError>> + Send;

    /// Notes last uses: each moves its record's `last_used` forward or does nothing, never back, unless the stored one was noted
    /// by a clock that was wrong ([`Touch::replaces`]). A record that is gone stays gone. The version does not move. A batch
    /// need not be atomic.
    ///
    /// # Errors
    /// [`StoreError`] when any may not have been noted; they are sent again then.
    fn touch(&self, uses: &[Touch]) -> impl Future<Output = Result<(), StoreError>> + Send;

    /// Up to `limit` records that expired or were revoked at or before `before`, those that ended first in front: what
    /// pruning removes next. The page's `next` is `None`.
    ///
    /// The service removes them with [`commit`](Self::commit), in one batch with their audit events and with the records that
    /// name them, so that no family is cut.
    ///
    /// # Errors
    /// [`StoreError`] when the store cannot say. A corrupt record is told in the page, counts towards `limit`, and does not fail it.
    fn list_ended(
        &self,
        before: DateTime<Utc>,
        limit: usize,
    ) -> impl Future<Output = Result<Page, StoreError>> + Send;

    /// Look-ups of this crate's own stores that need not be waited for.
    #[doc(hidden)]
    fn shortcut(&self) -> StoreShortcut<'_> {
        StoreShortcut::none()
    }
}

/// Counting records; not every store needs it.
pub trait TokenCounts: Send + Sync {
    /// How many records are in each state at `now`.
    ///
    /// # Errors
    /// [`StoreError`] when the store cannot say.
    fn count_by_state(
        &self,
        now: DateTime<Utc>,
    ) -> impl Future<Output = Result<Vec<(TokenState, u64)>, StoreError>> + Send;
}

/// Check values of the keys that digests were made with, for [`TokenService::check`](crate::TokenService::check); not every
/// store needs it.
pub trait KeyChecks: Send + Sync {
    /// Returns all check values, one per key id, in any order.
    ///
    /// # Errors
    /// [`StoreError`] if the store cannot say.
    fn key_checks(&self) -> impl Future<Output = Result<Vec<KeyCheck>, StoreError>> + Send;

    /// Records a check value, unless there is one for its key id: the first one stays for ever.
    ///
    /// # Errors
    /// [`StoreError`] if the store cannot tell that a value is recorded for this key id.
    fn record_key_check(&self, check: &KeyCheck) -> impl Future<Output = Result<(), StoreError>> + Send;

    /// Returns how many records, of whatever realm and state, have a digest under each key. Keys without a record may be left out.
    ///
    /// # Errors
    /// [`StoreError`] if the store cannot say.
    fn tokens_per_key(&self) -> impl Future<Output = Result<Vec<(KeyId, u64)>, StoreError>> + Send;
}

/// Hearing of changes that others make; for caches. Not every store has it.
pub trait ChangeFeed: Send + Sync {
    /// What tells of the changes.
    type Feed: Feed;

    /// Whether the store can be followed as it is set up; asked once, before following begins.
    ///
    /// # Errors
    /// [`FollowError`], which names the bound and the cure.
    fn check_following(&self) -> Result<(), FollowError>;

    /// Begins to listen to notifications: whatever is committed after this has returned is told by the feed, whose
    /// [`next`](Feed::next) waits for it. `None` if the store has no notifications.
    ///
    /// # Errors
    /// [`StoreError`] when the store cannot.
    fn listen(&self) -> impl Future<Output = Result<Option<Self::Feed>, StoreError>> + Send;

    /// Sends a notification in the way of those that tell of changes, over another connection than those that listen. Every
    /// feed that hears it tells [`FeedEvent::Proven`] with this nonce.
    ///
    /// # Errors
    /// [`StoreError`] when the store cannot.
    fn probe(&self, nonce: u64) -> impl Future<Output = Result<(), StoreError>> + Send;

    /// Begins to poll: whatever is committed after this has returned is told by the feed, whose [`next`](Feed::next) asks the
    /// store and answers at once. It must work through a pooler that passes on no notifications.
    ///
    /// # Errors
    /// [`StoreError`] when the store cannot.
    fn poll(&self) -> impl Future<Output = Result<Self::Feed, StoreError>> + Send;
}

/// Tells of changes, from [`ChangeFeed::listen`] or [`ChangeFeed::poll`].
pub trait Feed: Send {
    /// What happened since the last time; a change may be told twice. If the future is dropped, the next one tells what it
    /// would have told.
    ///
    /// # Errors
    /// [`StoreError`] when the feed is at its end: what comes afterwards is not told.
    fn next(&mut self) -> impl Future<Output = Result<FeedEvent, StoreError>> + Send;
}

/// What a [`Feed`] tells.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum FeedEvent {
    /// These were changed.
    Changed(Vec<TokenId>),
    /// Any may have been changed.
    Missed,
    /// A notification with this nonce arrived ([`ChangeFeed::probe`]).
    Proven(u64),
}

/// Why a store cannot be followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FollowError {
    /// Listening takes a connection of the pool for itself, and the store would wait for it for ever.
    #[error(
        "the pool has at most {connections} connection, and following the store takes one for itself; set \
         `.max_connections({needed})` or more on the pool"
    )]
    PoolTooSmall {
        /// Most connections of the pool.
        connections: u32,
        /// How many it must have at least.
        needed: u32,
    },
}

/// What a list holds, and which page of it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ListQuery {
    /// Which records.
    pub by: ListBy,
    /// Only those that are Active at this instant.
    pub active_at: Option<DateTime<Utc>>,
    /// Only those with a smaller id: what comes after the last one of the page before.
    pub after: Option<TokenId>,
    /// Most records of the page, from 1 to [`MAX_PAGE`].
    pub limit: usize,
}

impl ListQuery {
    /// The first page, of [`MAX_PAGE`] records, of all these.
    pub fn new(by: ListBy) -> Self {
        Self { by, active_at: None, after: None, limit: MAX_PAGE }
    }

    /// Only those that are Active at `now`.
    pub fn active_at(mut self, now: DateTime<Utc>) -> Self {
        self.active_at = Some(now);
        self
    }

    /// Only what comes after this id.
    pub fn after(mut self, id: Option<TokenId>) -> Self {
        self.after = id;
        self
    }

    /// Whether a record is one of the list, and comes after where the page begins.
    pub fn holds(&self, token: &Token) -> bool {
        let is_listed = match &self.by {
            ListBy::Owner { realm, owner, kind } => {
                token.realm == *realm && token.owner == *owner && kind.is_none_or(|kind| token.kind == kind)
            }
            ListBy::Kind { realm, kind } => token.realm == *realm && token.kind == *kind,
            ListBy::Creator(creator) => token.creator() == Some(*creator),
            ListBy::Restorer(restorer) => token.restored_by == Some(*restorer),
            ListBy::Ancestor(ancestor) => token.ancestor == Some(*ancestor),
            ListBy::Idle(before) => token.is_idle(*before, self.active_at),
            ListBy::Key(key) => {
                matches!(&token.credential, Credential::Keyed(digest) if digest.key() == *key)
            }
        };
        is_listed
            && self.after.is_none_or(|after| token.id < after)
            && self.active_at.is_none_or(|now| token.state(now) == TokenState::Active)
    }

    /// At most this many, held to 1 to [`MAX_PAGE`].
    pub fn limit(mut self, limit: usize) -> Self {
        self.limit = limit.clamp(1, MAX_PAGE);
        self
    }
}

/// Which records a list holds.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum ListBy {
    /// Those of one owner, of one kind or of any.
    Owner {
        /// The owner's realm.
        realm: Realm,
        /// The owner.
        owner: OwnerId,
        /// Of this kind alone.
        kind: Option<TokenKind>,
    },
    /// Those of one kind in a realm.
    Kind {
        /// The realm.
        realm: Realm,
        /// The kind.
        kind: TokenKind,
    },
    /// Those that a token made ([`Token::creator`]), in whatever realm.
    Creator(TokenId),
    /// Those that were last restored through a token ([`Token::restored_by`]), in whatever realm.
    Restorer(TokenId),
    /// Tokens that descend from a token through removed ones ([`Token::ancestor`]), in all realms.
    Ancestor(TokenId),
    /// Those whose [`Token::last_activity`] is before an instant, in all realms: [`Token::is_idle`]. With
    /// [`active_at`](ListQuery::active_at), an activity later than [`MAX_CLOCK_ERROR`](crate::clock::MAX_CLOCK_ERROR) after that
    /// instant does not count, since a wrong clock noted it.
    Idle(DateTime<Utc>),
    /// Those whose digest was made with this key, in all realms.
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
    /// Where the next page begins; none on the last one.
    pub next: Option<TokenId>,
}

impl Page {
    /// A page of these, which goes on after `next`.
    pub fn new(tokens: Vec<Arc<Token>>, corrupt: Vec<CorruptRecord>, next: Option<TokenId>) -> Self {
        Self { tokens, corrupt, next }
    }
}

/// Changes that happen together or not at all, with their audit events.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct ChangeBatch {
    /// The changes; no two of them of the same record.
    pub changes: Vec<Change>,
    /// What is told of them. A batch may hold events alone.
    pub events: Vec<AuditEvent>,
    /// Take out the traces of this owner from all stored events ([`AuditEvent::erase`]), before these are added.
    pub erase: Option<(Realm, OwnerId)>,
}

impl ChangeBatch {
    /// An empty batch.
    pub fn new() -> Self {
        Self::default()
    }

    /// With this change too.
    pub fn change(mut self, change: Change) -> Self {
        self.changes.push(change);
        self
    }

    /// With this event too.
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
    /// Puts a record in the place of the one with its id and the version before its own; the stored `last_used` is kept.
    Update(Arc<Token>),
    /// Removes a record.
    Remove {
        /// Which.
        id: TokenId,
        /// The version that it must have.
        version: u64,
    },
}

impl Change {
    /// The id of the record that changes.
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
    /// Which token.
    pub id: TokenId,
    /// Its use.
    pub last_use: LastUse,
    /// The latest instant that a right clock may have stored by now. A later stored use is replaced by this one.
    pub plausible_until: DateTime<Utc>,
}

impl Touch {
    /// This use of that token, written when it happened: `plausible_until` is [`MAX_CLOCK_ERROR`](crate::clock::MAX_CLOCK_ERROR)
    /// after it.
    pub fn new(id: TokenId, last_use: LastUse) -> Self {
        Self::at(id, last_use, last_use.at)
    }

    /// This use of that token, written at `now`. If the use is later than a right clock may have noted it, it happened before
    /// `now` and is stored as a use at `now`.
    pub fn at(id: TokenId, last_use: LastUse, now: DateTime<Utc>) -> Self {
        let plausible_until = plausible_until(now);
        let at = if last_use.at > plausible_until { now } else { last_use.at };
        Self { id, last_use: LastUse::new(at, last_use.address), plausible_until }
    }

    /// Whether this use replaces the one that is known: a later use does, and any if the known one was noted by a wrong clock.
    pub fn replaces(&self, known: DateTime<Utc>) -> bool {
        self.last_use.replaces(known, self.plausible_until)
    }
}

/// Why a store did not do what it was asked for.
#[derive(thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The store is out of reach, overloaded or read-only. Nothing happened.
    #[error("the token store is unavailable")]
    Unavailable(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// A change conflicts with what is there. Nothing happened.
    #[error("the change conflicts: {0}")]
    Conflict(Conflict),
    /// A record cannot be read.
    #[error("a stored record is corrupt: {0}")]
    Corrupt(CorruptRecord),
    /// A commit may have happened or not.
    #[error("the store did not say whether the change was stored; read the record to find out")]
    OutcomeUnknown(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// A cursor of an audit log is refused.
    #[error(transparent)]
    Cursor(CursorError),
}

impl StoreError {
    /// The store is unavailable because of `source`.
    pub fn unavailable(source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::Unavailable(source.into())
    }

    /// The conflict, if it is one.
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
    /// A record with this id is there already.
    #[error("the id {0} is taken")]
    Id(TokenId),
    /// Another record has the name of this one.
    #[error("the name of {0} is taken")]
    Name(TokenId),
    /// The record was changed or removed since it was read.
    #[error("{0} was changed meanwhile")]
    Version(TokenId),
    /// The kind of the record does not fit its owner's kind.
    #[error("the kind of {0} does not fit its owner")]
    OwnerKind(TokenId),
}

/// Where a record is that cannot be read.
#[derive(Clone, PartialEq, Eq, thiserror::Error)]
#[error("{table}.{column} of the row {row:?}")]
#[non_exhaustive]
pub struct CorruptRecord {
    /// The table.
    pub table: String,
    /// The column.
    pub column: String,
    /// The row, by what identifies it there.
    pub row: String,
}

impl CorruptRecord {
    /// A record that cannot be read because of this column.
    pub fn new(table: &str, column: &str, row: &str) -> Self {
        Self { table: table.into(), column: column.into(), row: row.into() }
    }
}

/// Forwards a store through a pointer. A macro, since the same methods stand behind three of them.
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

            fn list(&self, query: &ListQuery) -> impl Future<Output = Result<Page, StoreError>> + Send {
                (**self).list(query)
            }

            fn commit(&self, batch: &ChangeBatch) -> impl Future<Output = Result<(), StoreError>> + Send {
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

            fn tokens_per_key(&self) -> impl Future<Output = Result<Vec<(KeyId, u64)>, StoreError>> + Send {
                (**self).tokens_per_key()
            }
        }
    };
}

forward_key_checks!(&S);
forward_key_checks!(Arc<S>);
forward_key_checks!(Box<S>);

/// A boxed future of a [`DynTokenStore`].
pub type BoxedStore<'a, T> = Pin<Box<dyn Future<Output = Result<T, StoreError>> + Send + 'a>>;

/// [`TokenStore`] for `dyn`: every store is one, and `dyn DynTokenStore` is a store again, so that
/// `Arc<dyn DynTokenStore>` may stand wherever a store may.
pub trait DynTokenStore: Send + Sync {
    /// [`TokenStore::find`], boxed.
    fn find_boxed(&self, id: TokenId) -> BoxedStore<'_, Option<Arc<Token>>>;
    /// [`TokenStore::find_current`], boxed.
    fn find_current_boxed(&self, id: TokenId) -> BoxedStore<'_, Option<Arc<Token>>>;
    /// [`TokenStore::list`], boxed.
    fn list_boxed<'a>(&'a self, query: &'a ListQuery) -> BoxedStore<'a, Page>;
    /// [`TokenStore::commit`], boxed.
    fn commit_boxed<'a>(&'a self, batch: &'a ChangeBatch) -> BoxedStore<'a, ()>;
    /// [`TokenStore::touch`], boxed.
    fn touch_boxed<'a>(&'a self, uses: &'a [Touch]) -> BoxedStore<'a, ()>;
    /// [`TokenStore::list_ended`], boxed.
    fn list_ended_boxed(&self, before: DateTime<Utc>, limit: usize) -> BoxedStore<'_, Page>;
    /// [`TokenStore::shortcut`].
    #[doc(hidden)]
    fn shortcut_dyn(&self) -> StoreShortcut<'_>;
}

impl<S: TokenStore> DynTokenStore for S {
    fn find_boxed(&self, id: TokenId) -> BoxedStore<'_, Option<Arc<Token>>> {
        Box::pin(self.find(id))
    }

    fn find_current_boxed(&self, id: TokenId) -> BoxedStore<'_, Option<Arc<Token>>> {
        Box::pin(self.find_current(id))
    }

    fn shortcut_dyn(&self) -> StoreShortcut<'_> {
        self.shortcut()
    }

    fn list_boxed<'a>(&'a self, query: &'a ListQuery) -> BoxedStore<'a, Page> {
        Box::pin(self.list(query))
    }

    fn commit_boxed<'a>(&'a self, batch: &'a ChangeBatch) -> BoxedStore<'a, ()> {
        Box::pin(self.commit(batch))
    }

    fn touch_boxed<'a>(&'a self, uses: &'a [Touch]) -> BoxedStore<'a, ()> {
        Box::pin(self.touch(uses))
    }

    fn list_ended_boxed(&self, before: DateTime<Utc>, limit: usize) -> BoxedStore<'_, Page> {
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
