//! Operations of the host itself: offboarding and erasing owners, sweeping and pruning.

use super::commit::{Commit, Tries};
use super::error::{ManageError, Unavailable, store_error};
use super::family::{Listed, removal, report};
use super::{TokenService, to_delta};
use crate::audit::{AuditAction, AuditEvent, EventId};
use crate::owner::{Directory, OwnerId, Realm};
use crate::policy::days;
use crate::store::{
    Change, ChangeBatch, Conflict, CorruptRecord, ListBy, ListQuery, StoreError, TokenStore,
};
use crate::token::id::IdSource;
use crate::token::{ActorRef, Authority, Reason, Revocation, Token, TokenId};
use chrono::{DateTime, Utc};
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

/// The maximum number of records that one commit of [`TokenService::prune`] removes.
const PRUNE_BATCH: usize = 500;

impl<S: TokenStore, D: Directory> TokenService<S, D> {
    /// Revokes all active tokens of an owner, of either kind, and returns how many.
    ///
    /// The reason is offboarding.
    ///
    /// First disable the owner in the directory and invalidate it in an owner cache. A request that
    /// began before that may still make a token, so call this again when those requests have ended.
    ///
    /// # Errors
    /// [`ManageError`] if the operation failed. Tokens revoked until then stay revoked, and calling
    /// this again continues.
    pub async fn revoke_all(&self, realm: &Realm, owner: &OwnerId) -> Result<u64, ManageError> {
        let by = ListBy::Owner { realm: realm.clone(), owner: owner.clone(), kind: None };
        self.revoke_listed(by, Reason::Offboarding, |_| true).await
    }

    /// Revokes the active tokens of all realms that are idle, and returns how many.
    ///
    /// A token is idle if it was not used, restored or created within the policy's idle limit.
    /// Without such a limit, this revokes none. An instant later than
    /// [`MAX_CLOCK_ERROR`](crate::clock::MAX_CLOCK_ERROR) from now does not count, because a wrong
    /// clock stored it. The sweep adds the granularity and the flush interval to the limit, because
    /// last uses are no more precise than that. The reason is idle.
    ///
    /// Schedule this on one node, about once a day.
    ///
    /// # Errors
    /// [`ManageError`] if the operation failed. Tokens revoked until then stay revoked.
    pub async fn sweep_idle(&self) -> Result<u64, ManageError> {
        let Some(limit) = self.policy.idle_limit_days() else {
            return Ok(0);
        };
        // Writes this node's own pending uses, so that they count.
        self.flush().await?;
        let slack = self.policy.last_used_granularity().saturating_add(self.flush_interval);
        let now = self.now();
        let Some(unused_since) =
            now.checked_sub_signed(to_delta(days(limit).saturating_add(slack)))
        else {
            return Ok(0);
        };
        let still = |token: &Token| token.is_idle(unused_since, Some(now));
        self.revoke_listed(ListBy::Idle(unused_since), Reason::Idle, still).await
    }

    /// Removes records that have been expired or revoked for longer than `older_than`.
    ///
    /// Returns how many. The removal works in bounded batches, and each removal is stored with its
    /// audit event. The tokens that a removed token made then count as made by its own maker, and
    /// those that it restored as restored by that maker.
    ///
    /// Keep `older_than` above the reuse window. Otherwise a rotated token that is presented again
    /// is unknown, and its reuse is not reported.
    ///
    /// # Errors
    /// [`ManageError`] if the store failed. Records removed until then stay removed. A record that
    /// cannot be read, or that is named by one that cannot be read, is left, and reported after all
    /// others are removed.
    pub async fn prune(&self, older_than: Duration) -> Result<u64, ManageError> {
        let Some(before) = self.now().checked_sub_signed(to_delta(older_than)) else {
            return Ok(0);
        };
        let mut removed: u64 = 0;
        let mut tries = Tries::of_change();
        // Records that cannot be removed, because a record that names them cannot be read.
        let mut left: HashSet<TokenId> = HashSet::new();
        let mut corrupt: Option<CorruptRecord> = None;
        let mut unreadable = 0_usize;
        loop {
            // Records that stay must not fill the page and hide the records after them.
            let limit = PRUNE_BATCH.saturating_add(left.len()).saturating_add(unreadable);
            let page = self.store.list_ended(before, limit).await.map_err(Unavailable::Store)?;
            let is_last = page.tokens.len().saturating_add(page.corrupt.len()) < limit;
            unreadable = page.corrupt.len();
            corrupt = corrupt.or(page.corrupt.into_iter().next());
            let mut gone = HashMap::new();
            let mut kin = Vec::new();
            let removable = page.tokens.into_iter().filter(|token| !left.contains(&token.id));
            let removable: Vec<Arc<Token>> = removable.take(PRUNE_BATCH).collect();
            for token in removable {
                let found = self.kin(&token).await?;
                if found.corrupt.is_some() {
                    corrupt = corrupt.or(found.corrupt);
                    left.insert(token.id);
                } else {
                    kin.extend(found.tokens);
                    gone.insert(token.id, token);
                }
            }
            let Some(witness) = gone.keys().next().copied() else {
                if is_last {
                    report(corrupt)?;
                    return Ok(removed);
                }
                continue;
            };
            let now = self.now();
            let mut batch = removal(&self.ids, &gone, kin, &self.restorers(&gone).await?, now);
            batch.events.extend(
                gone.values().map(|token| host_event(&self.ids, AuditAction::Deleted, token, now)),
            );
            tries.start()?;
            if self.try_commit(batch, witness).await? == Commit::Done {
                removed = removed.saturating_add(counted(gone.len()));
                tries = Tries::of_change();
            }
        }
    }

    /// Removes all tokens of an owner, active ones included, and returns how many.
    ///
    /// Also erases the owner from the stored audit events. The tokens that the owner's tokens made
    /// for other owners stay, and count as made by the maker of the token that made them.
    ///
    /// First disable the owner, as for [`revoke_all`](Self::revoke_all). Call this again after a
    /// flush interval, because rejections that other nodes or a running flush still hold are stored
    /// later. Records of other owners still name who made or revoked them, until they are deleted.
    ///
    /// # Errors
    /// [`ManageError`] if the operation failed. Tokens removed until then stay removed, and calling
    /// this again continues.
    pub async fn erase_owner(&self, realm: &Realm, owner: &OwnerId) -> Result<u64, ManageError> {
        let mut erased: u64 = 0;
        let mut tries = Tries::of_change();
        loop {
            tries.start()?;
            let now = self.now();
            let by = ListBy::Owner { realm: realm.clone(), owner: owner.clone(), kind: None };
            let tokens = self.all(ListQuery::new(by)).await?.complete()?;
            let gone: HashMap<TokenId, Arc<Token>> =
                tokens.iter().map(|token| (token.id, token.clone())).collect();
            let mut kin = Vec::new();
            for token in &tokens {
                kin.extend(self.kin(token).await?.complete()?);
            }
            let mut batch = ChangeBatch {
                erase: Some((realm.clone(), owner.clone())),
                ..removal(&self.ids, &gone, kin, &self.restorers(&gone).await?, now)
            };
            for change in &mut batch.changes {
                if let Change::Update(token) = change
                    && token.created_by.owner_id() == Some(owner)
                {
                    Arc::make_mut(token).created_by = ActorRef::Erased;
                }
            }
            let deleted = |token| AuditEvent {
                owner: None,
                ..host_event(&self.ids, AuditAction::Deleted, token, now)
            };
            batch.events.extend(tokens.iter().map(|token| deleted(token)));
            let witness = batch.changes.first().map(Change::id);
            match (self.commit(batch).await, witness) {
                (Ok(()), _) => {
                    self.usage.erase(realm, owner);
                    erased = erased.saturating_add(counted(tokens.len()));
                    // Ends only when a list that started after the last removal is empty.
                    if tokens.is_empty() {
                        return Ok(erased);
                    }
                }
                // Tries again. A batch without a change only erases events and may run twice.
                (Err(StoreError::Conflict(Conflict::Version(_))), _)
                | (Err(StoreError::OutcomeUnknown(_)), None) => {}
                (Err(error), Some(witness)) => return Err(store_error(error, witness)),
                (Err(error), None) => return Err(Unavailable::Store(error).into()),
            }
        }
    }

    /// Revokes the active tokens of a list one by one, and returns how many.
    ///
    /// Each token has its own compare-and-set. Repeats the list until one that started after the
    /// last revocation has no token left to revoke. `still` is called again for a record that
    /// changed meanwhile.
    async fn revoke_listed(
        &self,
        by: ListBy,
        reason: Reason,
        still: impl Fn(&Token) -> bool + Send + Sync,
    ) -> Result<u64, ManageError> {
        let mut revoked: u64 = 0;
        let mut tries = Tries::of_change();
        loop {
            tries.start()?;
            let now = self.now();
            let revocation =
                Revocation { at: now, by: ActorRef::System, authority: Authority::System, reason };
            let Listed { tokens, corrupt } =
                self.all(ListQuery::new(by.clone()).active_at(now)).await?;
            let before = revoked;
            for token in tokens {
                let version = token.version;
                let after = self.revoke_one(token, &revocation, None, &still).await?;
                let is_ours = |token: &Arc<Token>| {
                    token.version != version
                        && token.facts.revocation.as_deref() == Some(&revocation)
                };
                revoked = revoked.saturating_add(u64::from(after.as_ref().is_some_and(is_ours)));
            }
            if revoked == before {
                report(corrupt)?;
                return Ok(revoked);
            }
        }
    }
}

/// Returns the audit event for an action of the host itself.
pub(super) fn host_event(
    ids: &IdSource,
    action: AuditAction,
    token: &Token,
    at: DateTime<Utc>,
) -> AuditEvent {
    AuditEvent {
        id: EventId::generate(ids, at),
        at,
        realm: token.realm.clone(),
        action,
        actor: ActorRef::System,
        token: token.id,
        owner: Some(token.owner.clone()),
        reason: None,
        address: None,
    }
}

fn counted(len: usize) -> u64 {
    u64::try_from(len).expect("a usize has at most 64 bits")
}
