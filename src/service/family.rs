//! Families of tokens: the descendants of a token, and how a removal keeps the family linked.
//!
//! The descendants of a token are the tokens that it made or restored, and their descendants.

use super::TokenService;
use super::commit::{Commit, Tries};
use super::error::{ManageError, Unavailable};
use super::manage::changed;
use super::system::host_event;
use crate::audit::{AuditAction, AuditEvent, EventId};
use crate::lifecycle;
use crate::owner::{Directory, OwnerId};
use crate::store::{Change, ChangeBatch, CorruptRecord, ListBy, ListQuery, StoreError, TokenStore};
use crate::token::id::IdSource;
use crate::token::{ActorRef, Authority, Reason, Revocation, Token, TokenId};
use chrono::{DateTime, Utc};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

impl<S: TokenStore, D: Directory> TokenService<S, D> {
    /// Revokes the descendants of a token that no longer works.
    ///
    /// The descendants are the tokens that were made or restored through it, those that were made
    /// or restored through them, and so on. With `successors`, they include the tokens that
    /// replaced a member by any rotation. `revocation` returns how each member is revoked.
    ///
    /// The walk goes from the top down and revokes each member by a compare-and-set before it looks
    /// up the member's descendants. A revoked token makes no further tokens, so nobody can outrun
    /// the walk, or hold it off by changing one member. The walk ends when a round finds nothing
    /// left to revoke. If the walk fails before that, calling this again continues the walk.
    pub(super) async fn revoke_descendants(
        &self,
        root: &Arc<Token>,
        successors: bool,
        revocation: impl Fn(&Token) -> Revocation + Send + Sync,
        address: Option<IpAddr>,
    ) -> Result<(), ManageError> {
        loop {
            let mut corrupt = None;
            let mut is_done = true;
            let mut seen = HashSet::from([root.id]);
            let mut open = vec![root.clone()];
            while let Some(parent) = open.pop() {
                let mut found = self.children(parent.id).await?;
                if successors {
                    found.extend(self.all(ListQuery::new(ListBy::Ancestor(parent.id))).await?);
                    match self.successor_of(&parent).await {
                        Err(StoreError::Corrupt(record)) => corrupt = Some(record),
                        next => found.tokens.extend(next.map_err(Unavailable::Store)?),
                    }
                }
                corrupt = corrupt.or(found.corrupt);
                for member in found.tokens {
                    if seen.insert(member.id) {
                        let before = member.version;
                        let with = revocation(&member);
                        let member = self.revoke_one(member, &with, address, |_| true).await?;
                        // A deleted member has handed its descendants on, so another round is
                        // needed to find them.
                        is_done &= member.as_ref().is_some_and(|member| member.version == before);
                        open.extend(member);
                    }
                }
            }
            if is_done {
                return Ok(report(corrupt)?);
            }
        }
    }

    /// Returns the tokens that were made or last restored through this one.
    async fn children(&self, id: TokenId) -> Result<Listed, Unavailable> {
        let mut made = self.all(ListQuery::new(ListBy::Creator(id))).await?;
        let restored = self.all(ListQuery::new(ListBy::Restorer(id))).await?;
        made.extend(restored);
        Ok(made)
    }

    /// Returns the token that replaced this one.
    async fn successor_of(&self, token: &Token) -> Result<Option<Arc<Token>>, StoreError> {
        let mut named = successor(token);
        while let Some(next) = named {
            if let Some(found) = self.store.find_current(next).await? {
                return Ok(Some(found));
            }
            // The successor was deleted. By now this token names the next one of the line, or still
            // names the deleted one if no other is left.
            let renamed = self.store.find_current(token.id).await?;
            let renamed = renamed.and_then(|found| successor(&found));
            named = renamed.filter(|id| *id != next);
        }
        Ok(None)
    }

    /// Revokes one token, and retries after concurrent changes while `still` returns true.
    ///
    /// Returns the latest record, changed or not, or `None` if it was deleted.
    pub(super) async fn revoke_one(
        &self,
        token: Arc<Token>,
        revocation: &Revocation,
        address: Option<IpAddr>,
        still: impl Fn(&Token) -> bool + Send,
    ) -> Result<Option<Arc<Token>>, ManageError> {
        let id = token.id;
        let mut token = token;
        let mut tries = Tries::of_revocation();
        loop {
            tries.start()?;
            // If somebody else revoked the token meanwhile, or it expired, nothing is left to do.
            let Ok(Some(facts)) =
                lifecycle::revoke(&token.facts, revocation.clone(), revocation.at)
            else {
                return Ok(Some(token));
            };
            if !still(&token) {
                return Ok(Some(token));
            }
            let event = AuditEvent {
                id: EventId::generate(&self.ids, revocation.at),
                at: revocation.at,
                realm: token.realm.clone(),
                action: AuditAction::Revoked,
                actor: revocation.by.clone(),
                token: id,
                owner: Some(token.owner.clone()),
                reason: None,
                address,
            };
            let after = changed(&token, |token| token.facts = facts);
            let batch = ChangeBatch::new()
                .change(Change::Update(after.clone()))
                .event(event.because(revocation.reason));
            if self.try_commit(batch, id).await? == Commit::Done {
                return Ok(Some(after));
            }
            match self.find_current(id).await? {
                Some(found) => token = found,
                None => return Ok(None),
            }
        }
    }

    /// Reads all pages of a list.
    pub(super) async fn all(&self, mut query: ListQuery) -> Result<Listed, Unavailable> {
        let mut listed = Listed::default();
        loop {
            let page = self.store.list(&query).await.map_err(Unavailable::Store)?;
            listed.tokens.extend(page.tokens);
            listed.corrupt = listed.corrupt.or(page.corrupt.into_iter().next());
            match page.next {
                Some(next) => query = query.after(Some(next)),
                None => return Ok(listed),
            }
        }
    }

    /// Returns the other records that name this one.
    ///
    /// They name it as predecessor, successor or ancestor, or as the token through which they were
    /// made or restored.
    pub(super) async fn kin(&self, token: &Token) -> Result<Listed, Unavailable> {
        let mut kin = self.children(token.id).await?;
        kin.extend(self.all(ListQuery::new(ListBy::Ancestor(token.id))).await?);
        for id in [token.predecessor, successor(token)].into_iter().flatten() {
            match self.find_current(id).await {
                Err(Unavailable::Store(StoreError::Corrupt(record))) => kin.corrupt = Some(record),
                found => kin.tokens.extend(found?),
            }
        }
        Ok(kin)
    }

    /// Returns the owners of the tokens through which these were restored, by the ids of those
    /// tokens.
    pub(super) async fn restorers(
        &self,
        gone: &HashMap<TokenId, Arc<Token>>,
    ) -> Result<HashMap<TokenId, OwnerId>, Unavailable> {
        let mut restorers = HashMap::new();
        for id in gone.values().filter_map(|token| token.restored_by) {
            if let Some(restorer) = self.find_current(id).await? {
                restorers.insert(id, restorer.owner.clone());
            }
        }
        Ok(restorers)
    }
}

/// Creates the batch that removes tokens together.
///
/// `kin` are the records that name any of them ([`TokenService::kin`]), and `restorers` are the
/// owners of their [restorers](TokenService::restorers). Each remaining record then names the
/// nearest remaining token instead of a removed one, so that no family or line falls apart. The
/// caller adds the events of the removal.
///
/// If a removed token was restored through another token, but not made through one, its children
/// count as made through that other token, because a later restoration in a session clears
/// [`Token::restored_by`].
///
/// A record has room for two parents: the token that made it and the one that last restored it. If
/// removals leave a record with more, the record is revoked as suspected, because a compromise of
/// the parent without room could no longer reach it.
///
/// Besides its parents and its predecessor, a record names one ancestor whose reuse reaches it. If
/// removals leave a record with more, it names the newest, whose rotation is the most likely to be
/// within the reuse window.
pub(super) fn removal(
    ids: &IdSource,
    gone: &HashMap<TokenId, Arc<Token>>,
    kin: impl IntoIterator<Item = Arc<Token>>,
    restorers: &HashMap<TokenId, OwnerId>,
    now: DateTime<Utc>,
) -> ChangeBatch {
    let mut batch = ChangeBatch::new();
    let removes =
        gone.values().map(|token| Change::Remove { id: token.id, version: token.version });
    batch.changes.extend(removes);
    let stay = kin.into_iter().filter(|token| !gone.contains_key(&token.id));
    let stay: BTreeMap<TokenId, Arc<Token>> = stay.map(|token| (token.id, token)).collect();
    for before in stay.into_values() {
        let after = changed(&before, |token| relink(token, gone, restorers, now));
        if after.facts.revocation != before.facts.revocation {
            let event = host_event(ids, AuditAction::Revoked, &after, now);
            batch.events.push(event.because(Reason::Suspected));
        }
        batch.changes.push(Change::Update(after));
    }
    batch
}

fn relink(
    token: &mut Token,
    gone: &HashMap<TokenId, Arc<Token>>,
    restorers: &HashMap<TokenId, OwnerId>,
    now: DateTime<Utc>,
) {
    let mut parents = nearest(parents_of(token), gone, parents_of);
    // Only ways through removed tokens count, because a later restoration in a session clears
    // `restored_by`, and must not clear what the token descends from otherwise.
    let is_handed_on = |id: &TokenId| gone.contains_key(id) || Some(*id) == token.ancestor;
    let handed_on = ancestors_of(token).into_iter().filter(is_handed_on).collect();
    let mut ancestors = nearest(handed_on, gone, ancestors_of);
    token.created_by = surviving_maker(&token.created_by, gone);
    if token.creator().is_none() {
        let mut handed_on =
            parents.iter().copied().filter(|parent| Some(*parent) != token.restored_by);
        let maker = handed_on.find_map(|id| Some((id, restorers.get(&id)?.clone())));
        if let Some((id, owner)) = maker {
            token.created_by = ActorRef::Token { owner, id };
        }
    }
    parents.retain(|parent| Some(*parent) != token.creator());
    token.restored_by = parents.pop();
    token.predecessor =
        token.predecessor.and_then(|id| surviving(id, gone, |gone| gone.predecessor));
    let named = [token.creator(), token.predecessor, Some(token.id)];
    ancestors.retain(|ancestor| !named.contains(&Some(*ancestor)));
    // Prefers an ancestor other than the restorer, because the restorer reaches the token anyway.
    ancestors.sort_by_key(|ancestor| (Some(*ancestor) != token.restored_by, *ancestor));
    token.ancestor = ancestors.pop();
    if !parents.is_empty() {
        let (by, authority, reason) = (ActorRef::System, Authority::Admin, Reason::Suspected);
        let revoked =
            lifecycle::revoke(&token.facts, Revocation { at: now, by, authority, reason }, now);
        // Otherwise the token is already revoked or expired.
        if let Ok(Some(facts)) = revoked {
            token.facts = facts;
        }
    }
    if let Some(succession) = &mut token.facts.succession {
        // If no successor is left, the record still names the removed one, because it has had a
        // successor.
        succession.successor =
            surviving(succession.successor, gone, successor).unwrap_or(succession.successor);
    }
}

/// Returns the id of the first remaining token of a line.
fn surviving(
    first: TokenId,
    gone: &HashMap<TokenId, Arc<Token>>,
    next: impl Fn(&Token) -> Option<TokenId>,
) -> Option<TokenId> {
    let mut id = first;
    // No line has more steps than removed tokens; the bound stops at records with a cycle.
    for _ in 0..=gone.len() {
        match gone.get(&id) {
            Some(token) => id = next(token)?,
            None => return Some(id),
        }
    }
    None
}

/// Returns the ids of the tokens whose compromise reaches this one directly.
fn parents_of(token: &Token) -> Vec<TokenId> {
    token.creator().into_iter().chain(token.restored_by).collect()
}

/// Returns the ids of the tokens whose reuse reaches this one directly.
fn ancestors_of(token: &Token) -> Vec<TokenId> {
    parents_of(token).into_iter().chain(token.predecessor).chain(token.ancestor).collect()
}

/// Returns the ids of the nearest remaining tokens on each way `up` from these, smallest first.
fn nearest(
    mut open: Vec<TokenId>,
    gone: &HashMap<TokenId, Arc<Token>>,
    up: impl Fn(&Token) -> Vec<TokenId>,
) -> Vec<TokenId> {
    let mut seen = HashSet::new();
    let mut stay = BTreeSet::new();
    while let Some(id) = open.pop() {
        if seen.insert(id) {
            match gone.get(&id) {
                Some(gone) => open.extend(up(gone)),
                None => drop(stay.insert(id)),
            }
        }
    }
    stay.into_iter().collect()
}

/// Returns the maker, or its nearest remaining maker if the maker is removed.
fn surviving_maker(maker: &ActorRef, gone: &HashMap<TokenId, Arc<Token>>) -> ActorRef {
    let mut maker = maker;
    for _ in 0..=gone.len() {
        match maker.token_id().and_then(|id| gone.get(&id)) {
            Some(token) => maker = &token.created_by,
            None => break,
        }
    }
    maker.clone()
}

/// The records of all pages of a list.
#[derive(Default)]
pub(super) struct Listed {
    pub(super) tokens: Vec<Arc<Token>>,
    /// The first record that could not be read. Revocations and removals continue with the other
    /// records and report it at the end, because one bad row must not keep the rest alive.
    pub(super) corrupt: Option<CorruptRecord>,
}

impl Listed {
    fn extend(&mut self, more: Self) {
        self.tokens.extend(more.tokens);
        self.corrupt = self.corrupt.take().or(more.corrupt);
    }

    /// # Errors
    /// Unavailable if a record could not be read.
    pub(super) fn complete(self) -> Result<Vec<Arc<Token>>, Unavailable> {
        report(self.corrupt)?;
        Ok(self.tokens)
    }
}

/// # Errors
/// Unavailable if there is a record that could not be read.
pub(super) fn report(corrupt: Option<CorruptRecord>) -> Result<(), Unavailable> {
    corrupt.map_or(Ok(()), |corrupt| Err(Unavailable::Store(StoreError::Corrupt(corrupt))))
}

fn successor(token: &Token) -> Option<TokenId> {
    token.facts.succession.map(|succession| succession.successor)
}
