//! The in-memory store: the reference implementation of the contract.
//!
//! It is also a fast store for tests and for hosts whose tokens may be lost with the process.
//!
//! Records are looked up without a lock in a [`Table`], which holds beside each id what a
//! verification decides on. Changes and lists share one lock over the indexes, which hold only the
//! records' places in the table.

mod events;
mod indexes;

use events::Events;
use indexes::{HashedPlaces, IdList, halves, merged};

use super::{
    AuditLog, Change, ChangeBatch, Conflict, EventPage, EventQuery, ExportCursor, ExportPage,
    KeyChecks, ListBy, ListQuery, Page, StoreError, StoreShortcut, StoredToken, TokenCounts,
    TokenStore, Touch,
};
use crate::clock::{micros, plausible_until};
use crate::owner::{OwnerId, Realm};
use crate::permission::Scope;
use crate::snapshot::Snapshot;
use crate::table::{Entry, Growing, Key, Place, Table};
use crate::token::access::Access;
use crate::token::details::{Account, Details, Packed};
use crate::token::{KeyCheck, KeyId, NameKey, Token, TokenId, TokenKind, TokenState};
use arc_swap::Guard;
use chrono::{DateTime, Utc};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

/// A store in memory. All its contents are lost when it is dropped.
///
/// Audit events stay until [`AuditLog::prune_events`] removes them. The id of every owner who ever
/// had a token stays as long as the store, and so do the first 10,000 different scopes.
pub struct MemoryStore {
    /// Boxed because it is large and a store is moved as part of a service or of a future.
    records: Box<Records>,
    indexes: Mutex<Indexes>,
}

impl MemoryStore {
    /// Creates an empty store.
    pub fn new() -> Self {
        Self { records: Box::new(Records::new()), indexes: Mutex::default() }
    }

    /// Returns the number of records.
    pub fn len(&self) -> usize {
        self.indexes().len
    }

    /// Whether the store has no records.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Locks the indexes. Ignores poisoning, because no code here can panic between two changes of
    /// the indexes, so a panic elsewhere leaves them consistent.
    fn indexes(&self) -> MutexGuard<'_, Indexes> {
        self.indexes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for MemoryStore {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for MemoryStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryStore").field("len", &self.len()).finish_non_exhaustive()
    }
}

impl TokenStore for MemoryStore {
    async fn find(&self, id: TokenId) -> Result<Option<Arc<Token>>, StoreError> {
        Ok(self.records.lend(id, None).map(|found| Arc::new(found.into_token())))
    }

    async fn find_current(&self, id: TokenId) -> Result<Option<Arc<Token>>, StoreError> {
        self.find(id).await
    }

    async fn list(&self, query: &ListQuery) -> Result<Page, StoreError> {
        let indexes = self.indexes();
        let mut tokens: Vec<Arc<Token>> = Vec::new();
        let mut next = None;
        for place in self.records.newest_first(&indexes, query) {
            let may_hold = |packed: &Packed| may_hold(query, &packed.access);
            let Some(packed) = self.records.at(place).filter(may_hold) else { continue };
            let token = packed.token();
            if !query.holds(&token) {
                continue;
            }
            if tokens.len() >= query.limit.max(1) {
                next = tokens.last().map(|last| last.id);
                break;
            }
            tokens.push(token.into());
        }
        Ok(Page::new(tokens, Vec::new(), next))
    }

    async fn commit(&self, batch: &ChangeBatch) -> Result<(), StoreError> {
        let mut indexes = self.indexes();
        let old: Vec<Option<Packed>> =
            batch.changes.iter().map(|change| self.records.find(change.id())).collect();
        self.check(&indexes, batch, &old)?;
        if let Some((realm, owner)) = &batch.erase {
            indexes.events.erase(realm, owner);
        }
        // The old records go first, because a name may be passed on within the batch.
        for old in old.iter().flatten() {
            self.records.forget(&mut indexes, old);
        }
        for (change, old) in batch.changes.iter().zip(&old) {
            match change {
                Change::Insert(token) => self.records.put(&mut indexes, token),
                Change::Update(token) => {
                    let last_used = old.as_ref().and_then(|old| old.details.last_used(&old.access));
                    self.records.put(&mut indexes, &Token { last_used, ..Token::clone(token) });
                }
                Change::Remove { id, .. } => self.records.remove(*id),
            }
        }
        for event in &batch.events {
            indexes.events.add(event);
        }
        Ok(())
    }

    async fn touch(&self, uses: &[Touch]) -> Result<(), StoreError> {
        let _changing = self.indexes();
        for touch in uses {
            self.records.touch(touch);
        }
        Ok(())
    }

    async fn list_ended(&self, before: DateTime<Utc>, limit: usize) -> Result<Page, StoreError> {
        let indexes = self.indexes();
        let ended = indexes.all().filter_map(|place| self.records.at(place));
        let mut ended: Vec<Packed> =
            ended.filter(|packed| packed.ended_at().is_some_and(|at| at <= before)).collect();
        let first = |packed: &Packed| (packed.ended_at(), packed.id);
        // Sorts only as many as requested.
        if limit < ended.len() {
            ended.select_nth_unstable_by_key(limit, first);
            ended.truncate(limit);
        }
        ended.sort_unstable_by_key(first);
        let tokens = ended.iter().map(|packed| Arc::new(packed.token())).collect();
        Ok(Page::new(tokens, Vec::new(), None))
    }

    #[inline]
    fn shortcut(&self) -> StoreShortcut<'_> {
        StoreShortcut::memory(&self.records)
    }
}

impl MemoryStore {
    /// Checks a batch for conflicts. `old` are the records that it changes.
    fn check(
        &self,
        indexes: &Indexes,
        batch: &ChangeBatch,
        old: &[Option<Packed>],
    ) -> Result<(), StoreError> {
        let mut changed = HashSet::new();
        for (change, old) in batch.changes.iter().zip(old) {
            let id = change.id();
            let version = old.as_ref().map(|old| old.details.version());
            let (fits, conflict) = match change {
                Change::Insert(_) => (old.is_none(), Conflict::Id(id)),
                Change::Update(token) => (
                    version.is_some() && version == token.version.checked_sub(1),
                    Conflict::Version(id),
                ),
                Change::Remove { version: expected, .. } => {
                    (version == Some(*expected), Conflict::Version(id))
                }
            };
            if !fits || !changed.insert(id) {
                return Err(StoreError::Conflict(conflict));
            }
        }
        let freed: HashSet<Name<'_>> = old.iter().flatten().filter_map(Name::of_packed).collect();
        let mut claimed = HashSet::new();
        for change in &batch.changes {
            let (Change::Insert(token) | Change::Update(token)) = change else {
                continue;
            };
            if token.owner_kind != token.kind.owner_kind() {
                return Err(StoreError::Conflict(Conflict::OwnerKind(token.id)));
            }
            let Some(name) = Name::of(token) else { continue };
            let in_use = !freed.contains(&name) && self.records.is_called(indexes, &name);
            if in_use || !claimed.insert(name) {
                return Err(StoreError::Conflict(Conflict::Name(token.id)));
            }
        }
        let most = indexes.len.max(indexes.owners.len()).saturating_add(batch.changes.len());
        if most > MOST {
            let full =
                format!("the memory store is full at {MOST} tokens or owners; remove tokens");
            return Err(StoreError::unavailable(full));
        }
        Ok(())
    }
}

/// The maximum number of records, and of owners who ever had one.
///
/// It is half of the places that the table has numbers for, because the table fills evenly but not
/// completely.
const MOST: usize = 1 << 29;

impl AuditLog for MemoryStore {
    async fn events(&self, query: &EventQuery) -> Result<EventPage, StoreError> {
        Ok(self.indexes().events.page(query))
    }

    async fn export(&self, after: &ExportCursor, limit: usize) -> Result<ExportPage, StoreError> {
        Ok(self.indexes().events.export(after, limit)?)
    }

    async fn prune_events(&self, before: DateTime<Utc>, limit: usize) -> Result<usize, StoreError> {
        Ok(self.indexes().events.prune(before, limit))
    }
}

impl TokenCounts for MemoryStore {
    async fn count_by_state(
        &self,
        now: DateTime<Utc>,
    ) -> Result<Vec<(TokenState, u64)>, StoreError> {
        let mut counts =
            [(TokenState::Active, 0), (TokenState::Revoked, 0), (TokenState::Expired, 0)];
        let now = micros(now);
        for packed in self.indexes().all().filter_map(|place| self.records.at(place)) {
            let state = packed.access.state(now);
            if let Some((_, count)) = counts.iter_mut().find(|(each, _)| *each == state) {
                *count = u64::saturating_add(*count, 1);
            }
        }
        Ok(counts.to_vec())
    }
}

impl KeyChecks for MemoryStore {
    async fn key_checks(&self) -> Result<Vec<KeyCheck>, StoreError> {
        Ok(self.indexes().key_checks.values().copied().collect())
    }

    async fn record_key_check(&self, check: &KeyCheck) -> Result<(), StoreError> {
        self.indexes().key_checks.entry(check.key()).or_insert(*check);
        Ok(())
    }

    async fn tokens_per_key(&self) -> Result<Vec<(KeyId, u64)>, StoreError> {
        let mut counts: BTreeMap<KeyId, u64> = BTreeMap::new();
        for packed in self.indexes().all().filter_map(|place| self.records.at(place)) {
            if let Some(key) = packed.access.key(packed.access.kind()) {
                let count = counts.entry(key).or_default();
                *count = count.saturating_add(1);
            }
        }
        Ok(counts.into_iter().collect())
    }
}

/// The indexes for lookups by anything but the id. Only the holder of their lock may change
/// records.
#[derive(Default)]
struct Indexes {
    /// The number of records.
    len: usize,
    /// The owners, with the numbers that the table stores beside their records.
    owners: HashMap<(Realm, OwnerId), (u32, Arc<Account>)>,
    /// The records of each owner, indexed by the owner's number.
    by_owner: Vec<IdList>,
    /// The records by realm and kind. Each record is in exactly one of these lists.
    by_kind: BTreeMap<(Realm, TokenKind), IdList>,
    by_creator: BTreeMap<TokenId, IdList>,
    by_restorer: BTreeMap<TokenId, IdList>,
    by_ancestor: BTreeMap<TokenId, IdList>,
    names: HashedPlaces,
    /// The key of the hash of names.
    name_key: RandomState,
    events: Events,
    key_checks: BTreeMap<KeyId, KeyCheck>,
    /// Shared scopes by their entries, or by `None` for the scope without a list.
    scopes: HashMap<Option<Box<str>>, Arc<Scope>>,
}

/// The maximum number of shared scopes; records with further scopes have their own.
const SHARED_SCOPES: usize = 10_000;

/// The unique key of a named record.
#[derive(PartialEq, Eq, Hash)]
struct Name<'a>(&'a Realm, &'a OwnerId, TokenKind, NameKey);

impl<'a> Name<'a> {
    fn of(token: &'a Token) -> Option<Self> {
        Some(Self(&token.realm, &token.owner, token.kind, token.name_key?))
    }

    fn of_packed(Packed { access, details, .. }: &'a Packed) -> Option<Self> {
        Some(Self(details.realm(), details.owner(), access.kind(), details.name_key()?))
    }
}

/// Whether a list may hold a record, judged by its words in the table alone.
///
/// This rejects most records without reading their details.
fn may_hold(query: &ListQuery, access: &Access) -> bool {
    let is_active =
        query.active_at.is_none_or(|now| access.state(micros(now)) == TokenState::Active);
    let may_be_idle = match query.by {
        ListBy::Idle(before) => access.last_used_at().is_none_or(|used| {
            used < micros(before)
                || query.active_at.is_some_and(|now| used > micros(plausible_until(now)))
        }),
        _ => true,
    };
    let may_be_under_key = match query.by {
        ListBy::Key(key) => access.key(access.kind()) == Some(key),
        _ => true,
    };
    is_active && may_be_idle && may_be_under_key
}

impl Indexes {
    /// Returns the places of all records.
    fn all(&self) -> impl Iterator<Item = Place> {
        self.by_kind.values().flat_map(IdList::iter)
    }

    /// Returns an equal scope that other records share.
    ///
    /// Most records use few different scopes, so sharing saves memory and keeps the scope that a
    /// check reads in the processor's cache.
    fn shared_scope(&mut self, scope: &Scope) -> Arc<Scope> {
        let key = scope.as_set().map(|set| {
            let mut key = String::new();
            for grant in set.iter() {
                key.push_str(grant.as_str());
                key.push(' ');
            }
            Box::from(key)
        });
        if let Some(shared) = self.scopes.get(&key) {
            return shared.clone();
        }
        let scope = Arc::new(scope.clone());
        if self.scopes.len() < SHARED_SCOPES {
            self.scopes.insert(key, scope.clone());
        }
        scope
    }

    fn list_of_owner(&self, realm: &Realm, owner: &OwnerId) -> Option<&IdList> {
        let (number, _) = self.owners.get(&(realm.clone(), owner.clone()))?;
        self.by_owner.get(to_index(*number))
    }

    /// Returns the upper half of a name's hash.
    fn hash_of(&self, name: &Name<'_>) -> u32 {
        let [upper, _] = halves(self.name_key.hash_one(name));
        upper
    }
}

/// The records by id, looked up without a lock. Only one thread changes them at a time.
pub(super) struct Records {
    table: Table<Details, 8>,
    /// The owners, by the number that the table stores beside a record.
    owners: Growing<OnceLock<(Realm, OwnerId)>>,
}

impl Records {
    fn new() -> Self {
        Self { table: Table::new(Arc::new(Details::vacant())), owners: Growing::new() }
    }

    #[inline]
    pub(super) fn seek(&self, id: TokenId) -> Option<Place> {
        self.table.seek(id.words())
    }

    /// Returns the current record. `place` is where it may be found.
    #[inline(always)]
    #[allow(clippy::inline_always, reason = "measured, as in the table")]
    pub(super) fn lend(&self, id: TokenId, place: Option<Place>) -> Option<StoredToken<'_>> {
        let Entry { value, words, .. } = self.table.get_from(place, id.words(), |_| true)?;
        let access = Access::from_words(words);
        let owner = self.owners.get(to_index(access.owner())).and_then(OnceLock::get);
        Some(StoredToken::lent(id, Snapshot::lent(value), access, owner))
    }

    /// Returns the current record. This method and those below require the lock of the indexes.
    fn find(&self, id: TokenId) -> Option<Packed> {
        self.at(self.table.place_of(id.words(), |_| true)?)
    }

    fn at(&self, place: Place) -> Option<Packed> {
        let (key, Entry { value, words, .. }) = self.table.at(place)?;
        let (access, details) = (Access::from_words(words), Guard::into_inner(value));
        let id = TokenId::from_words(key).expect("the key of a record is an id");
        Some(Packed { id, access, details })
    }

    fn key_at(&self, place: Place) -> Key {
        self.table.key_at(place)
    }

    /// Returns the places of the records that a list may hold, from the start of the page.
    fn newest_first<'a>(
        &'a self,
        indexes: &'a Indexes,
        query: &'a ListQuery,
    ) -> Box<dyn Iterator<Item = Place> + 'a> {
        let after = query.after.map_or([u64::MAX; 2], TokenId::words);
        let below = move |list: &'a IdList| list.below(after, |place| self.key_at(place));
        let list = match &query.by {
            ListBy::Owner { realm, owner, .. } => indexes.list_of_owner(realm, owner),
            ListBy::Kind { realm, kind } => indexes.by_kind.get(&(realm.clone(), *kind)),
            ListBy::Creator(creator) => indexes.by_creator.get(creator),
            ListBy::Restorer(restorer) => indexes.by_restorer.get(restorer),
            ListBy::Ancestor(ancestor) => indexes.by_ancestor.get(ancestor),
            ListBy::Idle(_) | ListBy::Key(_) => {
                let with_key = |place| (self.key_at(place), place);
                let lists = indexes.by_kind.values().map(move |list| below(list).map(with_key));
                return Box::new(merged(lists));
            }
        };
        Box::new(list.into_iter().flat_map(below))
    }

    /// Whether a record has this name.
    fn is_called(&self, indexes: &Indexes, name: &Name<'_>) -> bool {
        let is_it = |place| {
            self.at(place).is_some_and(|packed| Name::of_packed(&packed).as_ref() == Some(name))
        };
        indexes.names.contains(indexes.hash_of(name), is_it)
    }

    /// Stores a record and adds it to the indexes. An old record of this id must have been removed
    /// from the indexes before.
    fn put(&self, indexes: &mut Indexes, token: &Token) {
        let (number, account) = self.account(indexes, token);
        let details = Details::of(token, account, indexes.shared_scope(&token.scope));
        let (key, words) = (token.id.words(), Access::of(token, number).words());
        // Half of the places are enough for the keys of the fullest shard, because the hash is
        // random.
        let place = self.table.put(key, |_| true, words, details.into());
        let place = place.expect("the table has a place for each of `MOST` records");
        let list = indexes.by_owner.get_mut(to_index(number)).expect("every owner has a list");
        list.insert(key, place, |place| self.key_at(place));
        let list = indexes.by_kind.entry((token.realm.clone(), token.kind)).or_default();
        list.insert(key, place, |place| self.key_at(place));
        if let Some(creator) = token.creator() {
            let list = indexes.by_creator.entry(creator).or_default();
            list.insert(key, place, |place| self.key_at(place));
        }
        if let Some(restorer) = token.restored_by {
            let list = indexes.by_restorer.entry(restorer).or_default();
            list.insert(key, place, |place| self.key_at(place));
        }
        if let Some(ancestor) = token.ancestor {
            let list = indexes.by_ancestor.entry(ancestor).or_default();
            list.insert(key, place, |place| self.key_at(place));
        }
        if let Some(name) = Name::of(token) {
            indexes.names.insert(indexes.hash_of(&name), place);
        }
        indexes.len = indexes.len.saturating_add(1);
    }

    /// Removes a record from the indexes. The record must still be in the table.
    fn forget(&self, indexes: &mut Indexes, packed: &Packed) {
        let Packed { id, access, details } = packed;
        let key = id.words();
        let place = self.table.place_of(key, |_| true).expect("the record is in the table");
        let owner = to_index(access.owner());
        let list = indexes.by_owner.get_mut(owner).expect("every owner has a list");
        list.remove(key, |place| self.key_at(place));
        self.take_out(&mut indexes.by_kind, &(details.realm().clone(), access.kind()), key);
        if let Some(creator) = details.created_by().token_id() {
            self.take_out(&mut indexes.by_creator, &creator, key);
        }
        if let Some(restorer) = details.restored_by() {
            self.take_out(&mut indexes.by_restorer, &restorer, key);
        }
        if let Some(ancestor) = details.ancestor() {
            self.take_out(&mut indexes.by_ancestor, &ancestor, key);
        }
        if let Some(name) = Name::of_packed(packed) {
            indexes.names.remove(indexes.hash_of(&name), place);
        }
        indexes.len = indexes.len.saturating_sub(1);
    }

    /// Removes an id from one of these lists, and the list if it is then empty.
    fn take_out<L: Ord>(&self, lists: &mut BTreeMap<L, IdList>, name: &L, key: Key) {
        let list = lists.get_mut(name).expect("a list is kept until its last record is removed");
        list.remove(key, |place| self.key_at(place));
        if list.is_empty() {
            lists.remove(name);
        }
    }

    fn remove(&self, id: TokenId) {
        self.table.remove(id.words(), |_| true);
    }

    /// Records a use if it is later than the stored one.
    fn touch(&self, touch: &Touch) {
        if let Some(Packed { id, access, details }) = self
            .find(touch.id)
            .and_then(|packed| packed.used(touch.last_use, touch.plausible_until))
        {
            self.table.put(id.words(), |_| true, access.words(), details);
        }
    }

    /// Returns the owner of a record, which all its records share, and the owner's number.
    fn account(&self, indexes: &mut Indexes, token: &Token) -> (u32, Arc<Account>) {
        let owner = (token.realm.clone(), token.owner.clone());
        if let Some((number, account)) = indexes.owners.get(&owner) {
            return (*number, account.clone());
        }
        let index = indexes.owners.len();
        self.owners.grow(index.saturating_add(1), OnceLock::new);
        let place = self.owners.get(index).expect("the array is longer than the index");
        place.get_or_init(|| owner.clone());
        let number = u32::try_from(index).expect("a batch is refused if there are `MOST` owners");
        let account = Arc::new(Account::new(token.realm.clone(), token.owner.clone()));
        indexes.owners.insert(owner, (number, account.clone()));
        indexes.by_owner.push(IdList::default());
        (number, account)
    }
}

/// Converts an owner's number to an index.
fn to_index(number: u32) -> usize {
    usize::try_from(number).expect("a usize has at least 32 bits")
}
