//! Which tokens descend from which: those that a token made, and theirs.

use super::error::{ManageError, Unavailable, store_error};
use super::manage::changed;
use super::{MAX_REVOKE_TRIES, TokenService};
use crate::audit::{AuditAction, AuditEvent};
use crate::lifecycle;
use crate::owner::Directory;
use crate::store::{Change, ChangeBatch, Conflict, CorruptRecord, ListBy, ListQuery, StoreError, TokenStore};
use crate::token::{ActorRef, Revocation, Token, TokenId};
use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

impl<S: TokenStore, D: Directory> TokenService<S, D> {
    /// Revokes what descends from a token that is out of use itself: the tokens that it made, and those that they made, and so
    /// on; with `successors`, also those that took a member's place, whoever rotated it.
    ///
    /// From the top down, each member by a compare-and-set of its own before its descendants are looked for: a revoked token
    /// makes nothing any more, so nobody can run ahead of it, and nobody can hold all of it off by changing one member.
    /// It is done when a round finds nothing left to revoke; if it fails before that, calling it again goes on.
    pub(super) async fn revoke_descendants(
        &self,
        root: &Arc<Token>,
        successors: bool,
        revocation: &Revocation,
        address: Option<IpAddr>,
    ) -> Result<(), ManageError> {
        loop {
            let mut corrupt = None;
            let mut is_done = true;
            let mut seen = HashSet::from([root.id]);
            let mut open = vec![root.clone()];
            while let Some(parent) = open.pop() {
                let mut found = self.all(ListQuery::new(ListBy::Creator(parent.id))).await?;
                if successors {
                    match self.successor_of(&parent).await {
                        Err(StoreError::Corrupt(record)) => corrupt = Some(record),
                        next => found.tokens.extend(next.map_err(Unavailable::Store)?),
                    }
                }
                corrupt = corrupt.or(found.corrupt);
                for member in found.tokens {
                    if seen.insert(member.id) {
                        let before = member.version;
                        let member = self.revoke_one(member, revocation, address, |_| true).await?;
                        // One that was deleted has handed its descendants on: another round finds them.
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

    /// The token that took this one's place.
    async fn successor_of(&self, token: &Token) -> Result<Option<Arc<Token>>, StoreError> {
        let mut named = successor(token);
        while let Some(next) = named {
            if let Some(found) = self.store.find(next).await? {
                return Ok(Some(found.into_token().into_arc()));
            }
            // Deleted: this one names the next of the line by now, or goes on naming the one that is gone where there is none.
            let renamed = self.store.find(token.id).await?;
            let renamed = renamed.and_then(|found| successor(&found.into_token()));
            named = renamed.filter(|id| *id != next);
        }
        Ok(None)
    }

    /// Revokes one token, whatever else happens to it, as long as it is `still` one to revoke; the record as it is then, changed
    /// or not, or none where it is gone.
    pub(super) async fn revoke_one(
        &self,
        token: Arc<Token>,
        revocation: &Revocation,
        address: Option<IpAddr>,
        still: impl Fn(&Token) -> bool + Send,
    ) -> Result<Option<Arc<Token>>, ManageError> {
        let id = token.id;
        let mut token = token;
        for _ in 0..MAX_REVOKE_TRIES {
            // Expired or revoked by somebody else meanwhile: nothing is left to do.
            let Ok(Some(facts)) = lifecycle::revoke(&token.facts, revocation.clone(), revocation.at) else {
                return Ok(Some(token));
            };
            if !still(&token) {
                return Ok(Some(token));
            }
            let event = AuditEvent {
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
            match self.commit(batch).await {
                Ok(()) => return Ok(Some(after)),
                Err(StoreError::Conflict(Conflict::Version(_))) => match self.find(id).await? {
                    Some(found) => token = found,
                    None => return Ok(None),
                },
                Err(error) => return Err(store_error(error, id)),
            }
        }
        Err(ManageError::Contended)
    }

    /// All pages of a list.
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

    /// The records that stay when those are removed, and named one of them: who made them, whose place they took, who took
    /// theirs. They name the nearest one that stays instead, so that no family falls apart where a member goes.
    pub(super) async fn relinked(
        &self,
        gone: &HashMap<TokenId, Arc<Token>>,
    ) -> Result<Vec<Arc<Token>>, Unavailable> {
        let mut stay: HashMap<TokenId, Arc<Token>> = HashMap::new();
        for token in gone.values() {
            let made = self.all(ListQuery::new(ListBy::Creator(token.id))).await?.complete()?;
            stay.extend(made.into_iter().map(|token| (token.id, token)));
            for id in [token.predecessor, successor(token)].into_iter().flatten() {
                stay.extend(self.find(id).await?.map(|token| (id, token)));
            }
        }
        stay.retain(|id, _| !gone.contains_key(id));
        let relink = |token: Arc<Token>| {
            changed(&token, |token| {
                token.created_by = surviving_maker(&token.created_by, gone);
                token.predecessor =
                    token.predecessor.and_then(|id| surviving(id, gone, |gone| gone.predecessor));
                if let Some(succession) = &mut token.facts.succession {
                    // Where none is left, it goes on naming the one that is gone: it has had a successor.
                    succession.successor =
                        surviving(succession.successor, gone, successor).unwrap_or(succession.successor);
                }
            })
        };
        Ok(stay.into_values().map(relink).collect())
    }
}

/// The first of a line of tokens that stays.
fn surviving(
    first: TokenId,
    gone: &HashMap<TokenId, Arc<Token>>,
    next: impl Fn(&Token) -> Option<TokenId>,
) -> Option<TokenId> {
    let mut id = first;
    // No line is longer than what it leads through; the bound is for records that say otherwise.
    for _ in 0..=gone.len() {
        match gone.get(&id) {
            Some(token) => id = next(token)?,
            None => return Some(id),
        }
    }
    None
}

/// Who made what a removed token made: its maker, or the nearest one that stays.
fn surviving_maker(maker: &ActorRef, gone: &HashMap<TokenId, Arc<Token>>) -> ActorRef {
    let mut maker = maker;
    for _ in 0..=gone.len() {
        match maker.token().and_then(|id| gone.get(&id)) {
            Some(token) => maker = &token.created_by,
            None => break,
        }
    }
    maker.clone()
}

/// All that a list holds.
#[derive(Default)]
pub(super) struct Listed {
    pub(super) tokens: Vec<Arc<Token>>,
    /// The first record that could not be read. What takes tokens away goes on with the others and reports it in the end:
    /// one bad row must not keep the rest alive.
    pub(super) corrupt: Option<CorruptRecord>,
}

impl Listed {
    /// # Errors
    /// Unavailable where a record could not be read.
    pub(super) fn complete(self) -> Result<Vec<Arc<Token>>, Unavailable> {
        report(self.corrupt)?;
        Ok(self.tokens)
    }
}

/// # Errors
/// Unavailable where there is a record that could not be read.
pub(super) fn report(corrupt: Option<CorruptRecord>) -> Result<(), Unavailable> {
    corrupt.map_or(Ok(()), |corrupt| Err(Unavailable::Store(StoreError::Corrupt(corrupt))))
}

fn successor(token: &Token) -> Option<TokenId> {
    token.facts.succession.map(|succession| succession.successor)
}
