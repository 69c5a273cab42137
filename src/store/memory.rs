//! The store in memory: the reference of the contract, and a fast store for tests and for hosts whose tokens may go with
//! the process.
//!
//! Records are found in a [`Table`], without a lock, each with what a verification decides on beside its id. Changes and
//! lists share one lock over the indexes.

use super::{
    AuditLog, Change, ChangeBatch, Conflict, EventPage, Found, ListBy, ListQuery, Page, StoreError,
    TokenCounts, TokenStore, Touch,
};
use crate::audit::AuditEvent;
use crate::owner::{OwnerId, Realm};
use crate::permission::Scope;
use crate::snapshot::Snapshot;
use crate::table::{Entry, Growing, Table};
use crate::token::access::Access;
use crate::token::{Credential, KeyId, Token, TokenId, TokenKind, TokenState};
use chrono::{DateTime, Utc};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

/// A store in memory. All is lost when it is dropped.
///
/// Audit events stay until [`AuditLog::purge_events`] removes them. The id of an owner who ever had a token stays as long
/// as the store does, and so do the first 10,000 different scopes.
pub struct MemoryStore {
    records: Records,
    indexes: Mutex<Indexes>,
}

impl MemoryStore {
    /// An empty store.
    pub fn new() -> Self {
        Self { records: Records::new(), indexes: Mutex::default() }
    }

    /// How many records it holds.
    pub fn len(&self) -> usize {
        self.indexes().all.len()
    }

    /// Whether it holds none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// A panic elsewhere leaves the indexes whole: nothing in here can panic between two of their changes.
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
    async fn find(&self, id: TokenId) -> Result<Option<Found<'_>>, StoreError> {
        Ok(self.records.lend(id))
    }

    #[inline]
    fn find_now(&self, id: TokenId) -> Option<Result<Option<Found<'_>>, StoreError>> {
        Some(Ok(self.records.lend(id)))
    }

    #[inline]
    fn prefetch(&self, id: TokenId) {
        self.records.table.prefetch(id.words());
    }

    async fn list(&self, query: &ListQuery) -> Result<Page, StoreError> {
        let indexes = self.indexes();
        let ids = match &query.by {
            ListBy::Owner { realm, owner, .. } => {
                indexes.lists.get(&List::Owner(realm.clone(), owner.clone()))
            }
            ListBy::Kind { realm, kind } => indexes.lists.get(&List::Kind(realm.clone(), *kind)),
            ListBy::Creator(creator) => indexes.lists.get(&List::Creator(*creator)),
            ListBy::Idle(_) => Some(&indexes.all),
        };
        let mut tokens: Vec<Arc<Token>> = Vec::new();
        let mut next = None;
        for id in ids.into_iter().flatten().rev() {
            // Told by its id, before it is read.
            if query.after.is_some_and(|after| *id >= after) {
                continue;
            }
            let Some(token) = self.records.find(*id).filter(|token| query.holds(token)) else {
                continue;
            };
            if tokens.len() >= query.limit.max(1) {
                next = tokens.last().map(|last| last.id);
                break;
            }
            tokens.push(token);
        }
        Ok(Page::new(tokens, Vec::new(), next))
    }

    async fn commit(&self, batch: &ChangeBatch) -> Result<(), StoreError> {
        let mut indexes = self.indexes();
        self.check(&indexes, batch).map_err(StoreError::Conflict)?;
        if let Some((realm, owner)) = &batch.erase {
            indexes.events.iter_mut().for_each(|event| event.erase(realm, owner));
        }
        // What goes first: a name may be handed on within the batch.
        for change in &batch.changes {
            if let Some(old) = self.records.find(change.id()) {
                indexes.forget(&old);
            }
        }
        for change in &batch.changes {
            match change {
                Change::Insert(token) => {
                    indexes.learn(token);
                    self.records.put(token.id, Some(indexes.with_shared_scope(token)));
                }
                Change::Update(token) => {
                    indexes.learn(token);
                    let last_used = self.records.find(token.id).and_then(|stored| stored.last_used);
                    let token = if token.last_used == last_used {
                        token.clone()
                    } else {
                        Arc::new(Token { last_used, ..Token::clone(token) })
                    };
                    self.records.put(token.id, Some(token));
                }
                Change::Remove { id, .. } => self.records.put(*id, None),
            }
        }
        for event in &batch.events {
            // By time, in the order of their coming where that is equal: at the end, but for clocks that differ.
            let place = indexes.events.partition_point(|earlier| earlier.at <= event.at);
            indexes.events.insert(place, event.clone());
        }
        Ok(())
    }

    async fn touch(&self, uses: &[Touch]) -> Result<(), StoreError> {
        let _changing = self.indexes();
        for touch in uses {
            let Some(token) = self.records.find(touch.id) else {
                continue;
            };
            if token.last_used.is_none_or(|known| known.at < touch.last_use.at) {
                let touched = Token { last_used: Some(touch.last_use), ..Token::clone(&token) };
                self.records.put(touch.id, Some(Arc::new(touched)));
            }
        }
        Ok(())
    }

    async fn purge(&self, ended: DateTime<Utc>, limit: usize) -> Result<Vec<TokenId>, StoreError> {
        let mut indexes = self.indexes();
        let over: Vec<Arc<Token>> = indexes
            .all
            .iter()
            .filter(|id| {
                let made = indexes.lists.get(&List::Creator(**id)).into_iter().flatten();
                // But for the one that took its place.
                made.filter_map(|made| self.records.find(*made)).all(|made| made.predecessor == Some(**id))
            })
            .filter_map(|id| self.records.find(*id))
            .filter(|token| token.facts.ended_by(ended))
            .take(limit)
            .collect();
        for token in &over {
            indexes.forget(token);
            self.records.put(token.id, None);
        }
        Ok(over.into_iter().map(|token| token.id).collect())
    }
}

impl MemoryStore {
    fn check(&self, indexes: &Indexes, batch: &ChangeBatch) -> Result<(), Conflict> {
        let mut freed = HashSet::new();
        let mut changed = HashSet::new();
        for change in &batch.changes {
            let id = change.id();
            let old = self.records.find(id);
            let version = old.as_ref().map(|old| old.version);
            let (fits, conflict) = match change {
                Change::Insert(_) => (old.is_none(), Conflict::Id(id)),
                Change::Update(token) => {
                    (version.is_some() && version == token.version.checked_sub(1), Conflict::Version(id))
                }
                Change::Remove { version: expected, .. } => {
                    (version == Some(*expected), Conflict::Version(id))
                }
            };
            if !fits || !changed.insert(id) {
                return Err(conflict);
            }
            freed.extend(old.as_deref().and_then(Name::of));
        }
        let mut claimed = HashSet::new();
        for change in &batch.changes {
            let (Change::Insert(token) | Change::Update(token)) = change else {
                continue;
            };
            if token.owner_kind != token.kind.owner_kind() {
                return Err(Conflict::OwnerKind(token.id));
            }
            let Some(name) = Name::of(token) else { continue };
            let in_use = indexes.names.contains(&name) && !freed.contains(&name);
            if in_use || !claimed.insert(name) {
                return Err(Conflict::Name(token.id));
            }
        }
        Ok(())
    }
}

impl AuditLog for MemoryStore {
    async fn events(
        &self,
        realm: &Realm,
        token: Option<TokenId>,
        from: DateTime<Utc>,
        limit: usize,
    ) -> Result<EventPage, StoreError> {
        let indexes = self.indexes();
        let wanted = indexes.events.iter().filter(|event| {
            event.realm == *realm && event.at >= from && token.is_none_or(|token| event.token == token)
        });
        Ok(EventPage::new(wanted.take(limit).cloned().collect(), Vec::new()))
    }

    async fn purge_events(&self, before: DateTime<Utc>, limit: usize) -> Result<usize, StoreError> {
        let mut indexes = self.indexes();
        let mut removed = 0_usize;
        indexes.events.retain(|event| {
            let keep = removed >= limit || event.at >= before;
            removed = removed.saturating_add(usize::from(!keep));
            keep
        });
        Ok(removed)
    }
}

impl TokenCounts for MemoryStore {
    async fn count_by_state(&self, now: DateTime<Utc>) -> Result<Vec<(TokenState, u64)>, StoreError> {
        let mut counts = [(TokenState::Active, 0), (TokenState::Revoked, 0), (TokenState::Expired, 0)];
        for token in self.indexes().all.iter().filter_map(|id| self.records.find(*id)) {
            let state = token.state(now);
            if let Some((_, count)) = counts.iter_mut().find(|(each, _)| *each == state) {
                *count = u64::saturating_add(*count, 1);
            }
        }
        Ok(counts.to_vec())
    }

    async fn count_by_key(&self) -> Result<Vec<(KeyId, u64)>, StoreError> {
        let mut counts: BTreeMap<KeyId, u64> = BTreeMap::new();
        for token in self.indexes().all.iter().filter_map(|id| self.records.find(*id)) {
            if let Credential::Keyed(digest) = &token.credential {
                let count = counts.entry(digest.key()).or_default();
                *count = count.saturating_add(1);
            }
        }
        Ok(counts.into_iter().collect())
    }
}

/// What is found by anything but the id. Whoever holds its lock is the only one to change records.
#[derive(Default)]
struct Indexes {
    all: BTreeSet<TokenId>,
    lists: BTreeMap<List, BTreeSet<TokenId>>,
    names: HashSet<Name>,
    events: Vec<AuditEvent>,
    /// By their entries.
    scopes: HashMap<Box<str>, Scope>,
}

/// Most scopes that are shared; records with others have their own.
const SHARED_SCOPES: usize = 10_000;

#[derive(PartialEq, Eq, PartialOrd, Ord)]
enum List {
    Owner(Realm, OwnerId),
    Kind(Realm, TokenKind),
    Creator(TokenId),
}

#[derive(PartialEq, Eq, Hash)]
struct Name(Realm, OwnerId, TokenKind, Box<str>);

impl Name {
    fn of(token: &Token) -> Option<Self> {
        let key = token.unique_name()?;
        Some(Self(token.realm.clone(), token.owner.clone(), token.kind, key.into()))
    }
}

impl Indexes {
    /// The record with the scope that others have which are narrowed to the same. Many have few scopes between them: shared, they
    /// take little memory, and what a check reads is in the cache.
    fn with_shared_scope(&mut self, token: &Arc<Token>) -> Arc<Token> {
        let Some(set) = token.scope.as_set() else { return token.clone() };
        let mut key = String::new();
        for grant in set.iter() {
            key.push_str(grant.as_str());
            key.push(' ');
        }
        if let Some(shared) = self.scopes.get(&*key) {
            return Arc::new(Token { scope: shared.clone(), ..Token::clone(token) });
        }
        if self.scopes.len() < SHARED_SCOPES {
            self.scopes.insert(key.into(), token.scope.clone());
        }
        token.clone()
    }

    fn learn(&mut self, token: &Token) {
        self.all.insert(token.id);
        for list in lists_of(token) {
            self.lists.entry(list).or_default().insert(token.id);
        }
        self.names.extend(Name::of(token));
    }

    fn forget(&mut self, token: &Token) {
        self.all.remove(&token.id);
        for list in lists_of(token) {
            if let Some(ids) = self.lists.get_mut(&list) {
                ids.remove(&token.id);
                if ids.is_empty() {
                    self.lists.remove(&list);
                }
            }
        }
        if let Some(name) = Name::of(token) {
            self.names.remove(&name);
        }
    }
}

fn lists_of(token: &Token) -> impl Iterator<Item = List> {
    let owner = List::Owner(token.realm.clone(), token.owner.clone());
    let kind = List::Kind(token.realm.clone(), token.kind);
    [owner, kind].into_iter().chain(token.creator().map(List::Creator))
}

/// The records by id, found without a lock. Only one thread changes them at a time.
struct Records {
    table: Table<Token, 8>,
    /// By the number that stands beside a record in the table.
    owners: Growing<OnceLock<(Realm, OwnerId)>>,
    numbers: Mutex<HashMap<(Realm, OwnerId), u32>>,
}

impl Records {
    fn new() -> Self {
        Self { table: Table::new(Token::vacant().clone()), owners: Growing::new(), numbers: Mutex::default() }
    }

    /// The record as it is now.
    #[inline(always)]
    #[allow(clippy::inline_always, reason = "measured, as in the table")]
    fn lend(&self, id: TokenId) -> Option<Found<'_>> {
        let Entry { value, words } = self.table.get(id.words(), |_| true)?;
        let access = Access::from_words(words);
        let number = usize::try_from(access.owner()).ok();
        let owner = number.and_then(|number| self.owners.get(number)?.get());
        Some(Found::lent(Snapshot::lent(value), access, owner))
    }

    fn find(&self, id: TokenId) -> Option<Arc<Token>> {
        self.lend(id).map(|found| found.into_token().into_arc())
    }

    /// Puts a record in its place or takes it out.
    fn put(&self, id: TokenId, token: Option<Arc<Token>>) {
        match token {
            Some(token) => {
                let words = Access::of(&token, self.number_of(&token)).words();
                self.table.put(id.words(), |_| true, words, token);
            }
            None => {
                self.table.remove(id.words(), |_| true);
            }
        }
    }

    /// The number of a record's owner; one that is beyond all numbers is looked up in the record.
    fn number_of(&self, token: &Token) -> u32 {
        let mut numbers = self.numbers.lock().unwrap_or_else(PoisonError::into_inner);
        let owner = (token.realm.clone(), token.owner.clone());
        if let Some(number) = numbers.get(&owner) {
            return *number;
        }
        let index = numbers.len();
        let Some(number) = u32::try_from(index).ok().filter(|number| *number < u32::MAX) else {
            return u32::MAX;
        };
        self.owners.grow(index.saturating_add(1), OnceLock::new);
        if let Some(place) = self.owners.get(index) {
            place.get_or_init(|| owner.clone());
        }
        numbers.insert(owner, number);
        number
    }
}
