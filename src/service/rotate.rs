//! Rotation: a successor takes a token's place; and the signal when the old one comes back.

use super::actor::{Actor, Operation, Relation, check_owner};
use super::error::{InvalidInput, ManageError, store_error};
use super::manage::{IssuedToken, changed, with_creator};
use super::{MAX_TRIES, TokenService, to_delta};
use crate::audit::{AuditAction, AuditEvent};
use crate::clock::plausible_until;
use crate::lifecycle;
use crate::owner::Directory;
use crate::policy::{ReuseSignal, days};
use crate::store::{Change, ChangeBatch, Conflict, StoreError, TokenStore};
use crate::token::{ActorRef, Authority, Facts, Reason, Revocation, Token, TokenId, TokenView};
use chrono::{DateTime, TimeDelta, Utc};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

/// Reuse of one token is told at most this often.
const REUSE_EVERY: TimeDelta = TimeDelta::hours(1);

impl<S: TokenStore, D: Directory> TokenService<S, D> {
    /// Lets a successor take the place of an active token: same name, description, scope and networks, a new secret. The old
    /// one works for `overlap` longer, at most until its expiry, and not at all with an overlap of zero.
    ///
    /// The lifetime starts anew, under today's policy; through a token the expiry stays where it was. A token may always
    /// rotate itself, unless the policy forbids tokens to manage tokens.
    ///
    /// # Errors
    /// [`ManageError`]: forbidden, not found, refused where the token is not active or has a successor (also one that was made
    /// at the same time), the overlap is over the policy's, or it could not be done.
    pub async fn rotate(
        &self,
        actor: &Actor,
        id: TokenId,
        overlap: Duration,
    ) -> Result<IssuedToken, ManageError> {
        let overlap = to_delta(overlap);
        for _ in 0..MAX_TRIES {
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
                Some(_) => token.facts.expires_at,
                None => {
                    self.policy.renewed_expiry(token.lifetime, acting.now).map_err(InvalidInput::Lifetime)?
                }
            };
            let (successor, credential, plaintext) = self.new_secret(token.kind, acting.now)?;
            let successor = Token {
                id: successor,
                credential,
                created_at: acting.now,
                created_by: acting.actor.clone(),
                restored_by: None,
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
                // The successor has it now.
                token.name_key = None;
            });
            let batch = ChangeBatch::new()
                .change(Change::Update(replaced))
                .change(Change::Insert(successor.clone()))
                .event(acting.event(AuditAction::Rotated, &token))
                .event(acting.event(AuditAction::Generated, &successor));
            match self.commit(with_creator(batch, &acting, Some(id).filter(|_| itself))).await {
                Ok(()) => {
                    let token = TokenView::new(successor, owner, acting.now);
                    return Ok(IssuedToken { token, plaintext });
                }
                Err(StoreError::Conflict(Conflict::Id(_) | Conflict::Version(_))) => {}
                Err(error) => return Err(store_error(error, successor.id)),
            }
        }
        Err(ManageError::Contended)
    }

    /// The right secret of a rotated token was presented after its overlap, and refused. Tells it once an hour; under
    /// [`ReuseSignal::RevokeFamily`], and within the window after the rotation, its living descendants are revoked: at each
    /// presentation, so that one which is cut off half way keeps none of them alive.
    ///
    /// # Errors
    /// When it could not be stored: the refusal stands, and the next presentation goes on.
    pub(super) async fn signal_reuse(
        &self,
        presented: Arc<Token>,
        peer: Option<IpAddr>,
        now: DateTime<Utc>,
    ) -> Result<(), ManageError> {
        let mut current = Some(presented);
        for _ in 0..MAX_TRIES {
            let Some(token) = current.filter(|token| self.is_reuse(token, now)) else {
                return Ok(());
            };
            if is_told(&token, now) {
                return self.revoke_replaced(&token, peer, now).await;
            }
            let told = changed(&token, |token| token.reuse_reported_at = Some(now));
            let event = AuditEvent {
                at: now,
                realm: token.realm.clone(),
                action: AuditAction::Reuse,
                actor: ActorRef::System,
                token: token.id,
                owner: Some(token.owner.clone()),
                reason: None,
                address: peer,
            };
            match self.commit(ChangeBatch::new().change(Change::Update(told.clone())).event(event)).await {
                Ok(()) => return self.revoke_replaced(&told, peer, now).await,
                Err(StoreError::Conflict(Conflict::Version(_))) => current = self.find(token.id).await?,
                Err(error) => return Err(store_error(error, token.id)),
            }
        }
        Err(ManageError::Contended)
    }

    async fn revoke_replaced(
        &self,
        token: &Arc<Token>,
        peer: Option<IpAddr>,
        now: DateTime<Utc>,
    ) -> Result<(), ManageError> {
        let age = token.facts.succession.map(|succession| now.signed_duration_since(succession.at));
        let within = age.is_some_and(|age| age <= days(self.policy.reuse_window_days()));
        if self.policy.reuse() != ReuseSignal::RevokeFamily || !within {
            return Ok(());
        }
        let (by, authority, reason) = (ActorRef::System, Authority::System, Reason::Reuse);
        let revocation = Revocation { at: now, by, authority, reason };
        self.revoke_descendants(token, true, |_| revocation.clone(), peer).await
    }

    /// Whether a refused token was rotated, and its overlap is over.
    fn is_reuse(&self, token: &Token, now: DateTime<Utc>) -> bool {
        self.policy.reuse() != ReuseSignal::Off
            && token.facts.succession.is_some_and(|succession| {
                // A wrong clock stored the rotation: its overlap would never be over.
                succession.until <= now || succession.at > plausible_until(now)
            })
    }
}

/// Whether its reuse was told within the hour, by this clock or by one of another node that is ahead by less than that.
fn is_told(token: &Token, now: DateTime<Utc>) -> bool {
    token.reuse_reported_at.is_some_and(|at| now.signed_duration_since(at).abs() < REUSE_EVERY)
}
