//! Operations of the host itself: offboarding and erasing owners, sweeping and pruning.

use super::error::{ManageError, Unavailable, store_error};
use super::family::{Listed, removal, report};
use super::{MAX_TRIES, TokenService, to_delta};
use crate::audit::{AuditAction, AuditEvent, EventId};
use crate::owner::{Directory, OwnerId, Realm};
use crate::policy::days;
use crate::store::{Change, ChangeBatch, Conflict, CorruptRecord, ListBy, ListQuery, StoreError, TokenStore};
use crate::token::id::IdSource;
use crate::token::{ActorRef, Authority, Reason, Revocation, Token, TokenId};
use chrono::{DateTime, TimeDelta, Utc};
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

/// Most records that one commit of [`TokenService::prune`] removes.
const PRUNE_BATCH: usize = 500;

impl<S: TokenStore, D: Directory> TokenService<S, D> {
    /// Revokes all active tokens of an owner, of either kind, for the reason offboarding, and says how many there were.
    ///
    /// Disable the owner in the directory first, and invalidate it in an owner cache: requests that began before that may still
    /// make a token, so call it once more when they are over.
    ///
    /// # Errors
    /// [`ManageError`] when it could not be done; what was revoked until then stays revoked, and calling again goes on.
    pub async fn revoke_all(&self, realm: &Realm, owner: &OwnerId) -> Result<u64, ManageError> {
        let by = ListBy::Owner { realm: realm.clone(), owner: owner.clone(), kind: None };
        self.revoke_listed(by, Reason::Offboarding, |_| true).await
    }

    /// Revokes, for the reason idle, the active tokens of all realms that were not used for longer than the policy's idle limit,
    /// and says how many there were; none without such a limit. A token that was never used counts from when it was made, and
    /// from when it was restored. An instant later than [`MAX_CLOCK_ERROR`](crate::clock::MAX_CLOCK_ERROR) from now, which a
    /// wrong clock stored, counts for nothing. The sweep waits for the granularity and the flush interval beyond the limit, since the last
    /// use is known no better.
    ///
    /// Schedule it on one node, once a day or so.
    ///
    /// # Errors
    /// [`ManageError`] when it could not be done; what was revoked until then stays revoked.
    pub async fn sweep_idle(&self) -> Result<u64, ManageError> {
        let Some(limit) = self.policy.idle_limit_days() else {
            return Ok(0);
        };
        // This node's own uses count at once.
        self.flush().await?;
        let slack = self.policy.last_used_granularity().checked_add(&to_delta(self.flush_interval));
        let limit = slack.and_then(|slack| days(limit).checked_add(&slack)).unwrap_or(TimeDelta::MAX);
        let now = self.now();
        let Some(unused_since) = now.checked_sub_signed(limit) else {
            return Ok(0);
        };
        let still = |token: &Token| token.is_idle(unused_since, Some(now));
        self.revoke_listed(ListBy::Idle(unused_since), Reason::Idle, still).await
    }

    /// Removes records that have been expired or revoked for longer than `older_than`, in bounded batches, and returns how many.
    /// Each removal is stored with its audit event. The tokens that a removed one made count as made by its own maker from then
    /// on, and those that it restored as restored by it.
    ///
    /// Keep `older_than` above the reuse window, or a rotated token that comes back is unknown instead of reported.
    ///
    /// # Errors
    /// [`ManageError`] if the store failed; what was removed until then stays removed. A record that cannot be read, or that is
    /// named by one that cannot be read, is left, and reported after all others were removed.
    pub async fn prune(&self, older_than: Duration) -> Result<u64, ManageError> {
        let Some(before) = self.now().checked_sub_signed(to_delta(older_than)) else {
            return Ok(0);
        };
        let (mut removed, mut tries): (u64, usize) = (0, 0);
        // Records that cannot be removed because a record that names them cannot be read.
        let mut left: HashSet<TokenId> = HashSet::new();
        let mut corrupt: Option<CorruptRecord> = None;
        let mut unreadable = 0_usize;
        loop {
            // What stays must not be in the way of what comes after it.
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
            batch
                .events
                .extend(gone.values().map(|token| host_event(&self.ids, AuditAction::Deleted, token, now)));
            match self.commit(batch).await {
                Ok(()) => {
                    removed = removed.saturating_add(u64::try_from(gone.len()).unwrap_or(u64::MAX));
                    tries = 0;
                }
                Err(StoreError::Conflict(Conflict::Version(_))) if tries < MAX_TRIES => {
                    tries = tries.saturating_add(1);
                }
                Err(error) => return Err(store_error(error, witness)),
            }
        }
    }

    /// Removes all tokens of an owner, active ones too, and takes every trace of it out of the stored audit events; says how
    /// many tokens there were. What the tokens of the owner made for others stays, and counts as made by their maker's maker.
    ///
    /// Disable the owner first, as for [`revoke_all`](Self::revoke_all), and call it once more after a flush interval: what other
    /// nodes and a flush under way still hold of refusals is stored afterwards. Records of other owners go on naming who made
    /// or revoked them, until they are deleted.
    ///
    /// # Errors
    /// [`ManageError`] when it could not be done; what was removed until then stays removed, and calling again goes on.
    pub async fn erase_owner(&self, realm: &Realm, owner: &OwnerId) -> Result<u64, ManageError> {
        let mut erased: u64 = 0;
        for _ in 0..MAX_TRIES {
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
                    && token.created_by.owner() == Some(owner)
                {
                    Arc::make_mut(token).created_by = ActorRef::Erased;
                }
            }
            let deleted =
                |token| AuditEvent { owner: None, ..host_event(&self.ids, AuditAction::Deleted, token, now) };
            batch.events.extend(tokens.iter().map(|token| deleted(token)));
            let witness = batch.changes.first().map(Change::id);
            match (self.commit(batch).await, witness) {
                (Ok(()), _) => {
                    self.usage.erase(realm, owner);
                    erased = erased.saturating_add(u64::try_from(tokens.len()).unwrap_or(u64::MAX));
                    // Until a list that was begun after the last removal is empty.
                    if tokens.is_empty() {
                        return Ok(erased);
                    }
                }
                // Where only events were to be erased, that may be done twice.
                (Err(StoreError::Conflict(Conflict::Version(_))), _)
                | (Err(StoreError::OutcomeUnknown(_)), None) => {}
                (Err(error), Some(witness)) => return Err(store_error(error, witness)),
                (Err(error), None) => return Err(Unavailable::Store(error).into()),
            }
        }
        Err(ManageError::Contended)
    }

    /// Revokes the active tokens of a list one by one, each by its own compare-and-set, until a list that was begun after the
    /// last of them holds none; counts them. `still` is asked again for a record that was changed meanwhile.
    async fn revoke_listed(
        &self,
        by: ListBy,
        reason: Reason,
        still: impl Fn(&Token) -> bool + Send + Sync,
    ) -> Result<u64, ManageError> {
        let mut revoked: u64 = 0;
        for _ in 0..MAX_TRIES {
            let now = self.now();
            let revocation =
                Revocation { at: now, by: ActorRef::System, authority: Authority::System, reason };
            let Listed { tokens, corrupt } = self.all(ListQuery::new(by.clone()).active_at(now)).await?;
            let before = revoked;
            for token in tokens {
                let version = token.version;
                let after = self.revoke_one(token, &revocation, None, &still).await?;
                let is_ours = |token: &Arc<Token>| {
                    token.version != version && token.facts.revocation.as_deref() == Some(&revocation)
                };
                revoked = revoked.saturating_add(u64::from(after.as_ref().is_some_and(is_ours)));
            }
            if revoked == before {
                report(corrupt)?;
                return Ok(revoked);
            }
        }
        Err(ManageError::Contended)
    }
}

/// The event that tells of what the host itself did to a token.
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
