//! What the host itself does: taking leave of owners, sweeping and pruning.

use super::error::{ManageError, Unavailable, store_error};
use super::family::{Listed, report};
use super::{MAX_TRIES, TokenService, to_delta};
use crate::audit::{AuditAction, AuditEvent};
use crate::owner::{Directory, OwnerId, Realm};
use crate::policy::days;
use crate::store::{Change, ChangeBatch, Conflict, ListBy, ListQuery, StoreError, TokenStore};
use crate::token::{ActorRef, Authority, Reason, Revocation, Token, TokenId};
use chrono::{DateTime, TimeDelta, Utc};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

/// Most records that one call of [`TokenStore::purge`] removes.
const PURGE_BATCH: usize = 500;

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

    /// Removes records that have been expired or revoked for longer than `older_than`, in bounded batches, and says how many.
    /// A record that made others stays as long as they do.
    ///
    /// Keep it above the reuse window, or a rotated token that comes back is unknown instead of reported.
    ///
    /// # Errors
    /// [`Unavailable`] when the store failed; what was removed until then stays removed.
    pub async fn prune(&self, older_than: Duration) -> Result<u64, Unavailable> {
        let Some(ended) = self.now().checked_sub_signed(to_delta(older_than)) else {
            return Ok(0);
        };
        let mut removed: u64 = 0;
        loop {
            let batch = self.store.purge(ended, PURGE_BATCH).await.map_err(Unavailable::Store)?;
            removed = removed.saturating_add(u64::try_from(batch.len()).unwrap_or(u64::MAX));
            if batch.is_empty() {
                return Ok(removed);
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
            let mut batch = ChangeBatch { erase: Some((realm.clone(), owner.clone())), ..ChangeBatch::new() };
            for token in &tokens {
                batch.changes.push(Change::Remove { id: token.id, version: token.version });
                batch.events.push(AuditEvent { owner: None, ..host_event(AuditAction::Deleted, token, now) });
            }
            for token in self.relinked(&gone).await? {
                let mut token = Token::clone(&token);
                if token.created_by.owner() == Some(owner) {
                    token.created_by = ActorRef::Erased;
                }
                batch.changes.push(Change::Update(Arc::new(token)));
            }
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

fn host_event(action: AuditAction, token: &Token, at: DateTime<Utc>) -> AuditEvent {
    AuditEvent {
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
