//! Rotation of a token to a successor, and the signal when the old token is presented again.

use super::actor::{Actor, Operation, Relation, check_owner};
use super::commit::{Commit, Tries};
use super::error::{InvalidInput, ManageError};
use super::manage::{IssuedToken, changed, with_creator};
use super::{TokenService, lock, to_delta};
use crate::audit::{AuditAction, AuditEvent, EventId};
use crate::clock::plausible_until;
use crate::lifecycle;
use crate::owner::Directory;
use crate::policy::{ReuseSignal, days};
use crate::store::{Change, ChangeBatch, TokenStore};
use crate::token::{ActorRef, Authority, Facts, Reason, Revocation, Token, TokenId, TokenView};
use chrono::{DateTime, TimeDelta, Utc};
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// The minimum time between two reports of one token's reuse.
const REUSE_EVERY: TimeDelta = TimeDelta::hours(1);

/// The minimum time between two walks of a family whose predecessor is presented repeatedly.
const FAMILY_EVERY: TimeDelta = TimeDelta::minutes(1);

impl<S: TokenStore, D: Directory> TokenService<S, D> {
    /// Replaces an active token by a successor with a new secret.
    ///
    /// The successor has the same name, description, scope and networks. The old token works for
    /// `overlap` longer, but at most until its expiry. With an overlap of zero it stops working at
    /// once.
    ///
    /// The lifetime starts again under the current policy. If the actor acts through a token, the
    /// expiry does not change, and a token without an expiry gets the longest lifetime that the
    /// policy currently allows, if it sets one. A token may always rotate itself, unless the policy
    /// forbids tokens to manage tokens.
    ///
    /// # Errors
    /// [`ManageError`]: forbidden, not found, refused because the token is not active or already
    /// has a successor (which a concurrent rotation may have made), the overlap is longer than the
    /// policy allows, or the operation failed.
    pub async fn rotate(
        &self,
        actor: &Actor,
        id: TokenId,
        overlap: Duration,
    ) -> Result<IssuedToken, ManageError> {
        let mut tries = Tries::of_change();
        loop {
            tries.start()?;
            let acting = self.acting(actor).await?;
            let (token, relation) = self.target(&acting, Operation::Rotate, id).await?;
            let most = self.policy.longest_overlap();
            if overlap > most {
                return Err(InvalidInput::Overlap { most }.into());
            }
            lifecycle::may_rotate(&token.facts, acting.now)?;
            let itself = acting.via.as_ref().is_some_and(|via| via.id == id);
            if !itself {
                acting.demand_scim(&token.scope)?;
            }
            let owner = self.owner(&token.realm, &token.owner).await?;
            check_owner(owner.as_deref(), token.kind)?;

            let expires_at = match acting.via {
                Some(_) => self.policy.kept_expiry(token.facts.expires_at, acting.now),
                None => self.policy.renewed_expiry(token.lifetime, acting.now),
            }
            .map_err(InvalidInput::Lifetime)?;
            let (successor, digest, plaintext) = self.new_secret(token.kind, acting.now)?;
            let successor = Token {
                id: successor,
                digest,
                created_at: acting.now,
                created_by: acting.actor.clone(),
                restored_by: None,
                ancestor: None,
                predecessor: Some(id),
                facts: Facts { expires_at, ..Facts::default() },
                idle_from: acting.now,
                reuse_reported_at: None,
                notified_days: None,
                last_used: None,
                seal: None,
                version: 1,
                ..Token::clone(&token)
            };
            if relation != Relation::Itself && !itself {
                acting.demand_attenuated(&successor)?;
            }
            let by = (acting.actor.clone(), relation.authority());
            let facts = lifecycle::rotate(&token.facts, successor.id, overlap, by, acting.now)?;
            let successor = Arc::new(successor);
            let replaced = changed(&token, |token| {
                token.facts = facts;
                // The successor has the name now.
                token.name_key = None;
            });
            let batch = ChangeBatch::new()
                .change(Change::Update(replaced))
                .change(Change::Insert(successor.clone()))
                .event(acting.event(AuditAction::Rotated, &token))
                .event(acting.event(AuditAction::Generated, &successor));
            let batch = with_creator(batch, &acting, Some(id).filter(|_| itself));
            match self.try_commit(batch, successor.id).await? {
                Commit::Done => {
                    let token = TokenView::new(&successor, owner, acting.now);
                    return Ok(IssuedToken { token, plaintext });
                }
                Commit::Outdated => {}
                Commit::NameTaken => return Err(ManageError::NameTaken),
            }
        }
    }

    /// Reports that the secret of a rotated token was presented after its overlap and rejected.
    ///
    /// The reuse is reported once an hour. Under [`ReuseSignal::RevokeFamily`], and within the
    /// reuse window after the rotation, the active descendants are revoked. Each presentation
    /// continues the revocation until it is complete, so that an interrupted one keeps no
    /// descendant alive.
    ///
    /// # Errors
    /// If the report could not be stored. The rejection is not affected, and the next presentation
    /// continues.
    pub(super) async fn signal_reuse(
        &self,
        presented: Arc<Token>,
        peer: Option<IpAddr>,
        now: DateTime<Utc>,
    ) -> Result<(), ManageError> {
        if self.reuse.is_dealt_with(presented.id, now) {
            return Ok(());
        }
        let mut current = Some(presented);
        let mut tries = Tries::of_change();
        loop {
            tries.start()?;
            let Some(token) = current.filter(|token| self.is_reuse(token, now)) else {
                return Ok(());
            };
            if let Some(at) = token.reuse_reported_at.filter(|at| is_recent(*at, now)) {
                self.revoke_replaced(&token, peer, now).await?;
                self.reuse.note(token.id, self.dealt_with_until(at, now), now);
                return Ok(());
            }
            let told = changed(&token, |token| token.reuse_reported_at = Some(now));
            let event = AuditEvent {
                id: EventId::generate(&self.ids, now),
                at: now,
                realm: token.realm.clone(),
                action: AuditAction::Reuse,
                actor: ActorRef::System,
                token: token.id,
                owner: Some(token.owner.clone()),
                reason: None,
                address: peer,
            };
            let batch = ChangeBatch::new().change(Change::Update(told.clone())).event(event);
            if self.try_commit(batch, token.id).await? == Commit::Done {
                self.revoke_replaced(&told, peer, now).await?;
                self.reuse.note(token.id, self.dealt_with_until(now, now), now);
                // Fills a cache, from which the commit has just removed the record, so that the
                // next presentation costs no query. If this fails, the next presentation reads the
                // record.
                drop(self.store.find(token.id).await);
                return Ok(());
            }
            current = self.find_current(token.id).await?;
        }
    }

    async fn revoke_replaced(
        &self,
        token: &Arc<Token>,
        peer: Option<IpAddr>,
        now: DateTime<Utc>,
    ) -> Result<(), ManageError> {
        let age = token.facts.succession.map(|succession| now.signed_duration_since(succession.at));
        let within = age.is_some_and(|age| age <= to_delta(days(self.policy.reuse_window_days())));
        if self.policy.reuse() != ReuseSignal::RevokeFamily || !within {
            return Ok(());
        }
        let (by, authority, reason) = (ActorRef::System, Authority::System, Reason::Reuse);
        let revocation = Revocation { at: now, by, authority, reason };
        self.revoke_descendants(token, true, |_| revocation.clone(), peer).await
    }

    /// Returns until when presenting a token again changes nothing, if its reuse was reported at
    /// `told`.
    ///
    /// The family is walked each minute, because another node may have restored a member.
    fn dealt_with_until(&self, told: DateTime<Utc>, now: DateTime<Utc>) -> DateTime<Utc> {
        let told_again = told.checked_add_signed(REUSE_EVERY);
        let walked_again = match self.policy.reuse() {
            ReuseSignal::RevokeFamily => now.checked_add_signed(FAMILY_EVERY),
            ReuseSignal::Off | ReuseSignal::Alert => None,
        };
        told_again.into_iter().chain(walked_again).min().unwrap_or(now)
    }

    /// Returns whether a rejected token was rotated and its overlap has ended.
    fn is_reuse(&self, token: &Token, now: DateTime<Utc>) -> bool {
        self.policy.reuse() != ReuseSignal::Off
            && token.facts.succession.is_some_and(|succession| {
                // A rotation that a wrong clock stored in the future also counts, because its
                // overlap would not end.
                succession.until <= now || succession.at > plausible_until(now)
            })
    }
}

/// Returns whether a report at `at` is less than an hour old.
///
/// A report from the future also counts if another node's clock is ahead by less than an hour.
fn is_recent(at: DateTime<Utc>, now: DateTime<Utc>) -> bool {
    now.signed_duration_since(at).abs() < REUSE_EVERY
}

/// Predecessors whose reuse needs no more work for now.
///
/// Their reuse was reported within the hour, and their family was revoked if the policy says so.
/// Each maps to the instant until which presenting it again needs no lookup and changes nothing.
#[derive(Default)]
pub(super) struct ReuseMemory(Mutex<HashMap<TokenId, DateTime<Utc>>>);

/// The maximum number of remembered predecessors. Presenting any other one walks its family each
/// time.
const MAX_REMEMBERED: usize = 10_000;

impl ReuseMemory {
    fn is_dealt_with(&self, id: TokenId, now: DateTime<Utc>) -> bool {
        lock(&self.0).get(&id).is_some_and(|until| is_before(now, *until))
    }

    fn note(&self, id: TokenId, until: DateTime<Utc>, now: DateTime<Utc>) {
        let mut dealt_with = lock(&self.0);
        if dealt_with.len() >= MAX_REMEMBERED {
            dealt_with.retain(|_, until| is_before(now, *until));
        }
        if dealt_with.len() < MAX_REMEMBERED || dealt_with.contains_key(&id) {
            dealt_with.insert(id, until);
        }
    }

    /// Forgets all predecessors.
    ///
    /// Called after a restore, which may bring a family back to life, so that the reuse of any
    /// remembered predecessor may need work again.
    pub(super) fn forget(&self) {
        lock(&self.0).clear();
    }
}

/// Returns whether `until` is still ahead, by an hour at most.
///
/// A later `until` does not count, because a clock that was ahead noted it.
fn is_before(now: DateTime<Utc>, until: DateTime<Utc>) -> bool {
    now < until && until.signed_duration_since(now) <= REUSE_EVERY
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn so_many_predecessors_are_remembered_until_their_instants() {
        let memory = ReuseMemory::default();
        let now = DateTime::UNIX_EPOCH;
        let id = |number: u64| {
            let mut bytes = [0; 16];
            bytes[6] = 0x70;
            bytes[8] = 0x80;
            bytes[9..].copy_from_slice(&number.to_be_bytes()[1..]);
            TokenId::from_bytes(bytes).unwrap()
        };
        let most = u64::try_from(MAX_REMEMBERED).unwrap();
        let later = now + REUSE_EVERY;
        for number in 0..most + 5 {
            memory.note(id(number), later, now);
        }
        memory.note(id(0), later, now);
        assert_eq!(lock(&memory.0).len(), MAX_REMEMBERED);
        assert!(memory.is_dealt_with(id(most - 1), now) && !memory.is_dealt_with(id(most), now));
        let early = now - TimeDelta::microseconds(1);
        assert!(!memory.is_dealt_with(id(0), early), "noted by a clock that was ahead");
        assert!(memory.is_dealt_with(id(0), later - TimeDelta::microseconds(1)));
        assert!(!memory.is_dealt_with(id(0), later));
        memory.note(id(most), later + REUSE_EVERY, later);
        assert!(memory.is_dealt_with(id(most), later), "those of the hour before make room");
        assert_eq!(lock(&memory.0).len(), 1);
        memory.forget();
        assert!(!memory.is_dealt_with(id(most), later));
    }
}
