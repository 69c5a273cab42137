//! The allowed actions on a token: pure functions of the stored facts and one instant.
//!
//! | action | Active | Revoked | Expired |
//! |---|---|---|---|
//! | revoke | → Revoked | no change, succeeds; the first fact is kept | refused |
//! | revoke as compromised | → Revoked | the reason becomes compromised | recorded |
//! | restore | refused | → Active, except as below | refused |
//! | rotate | a successor takes its place, unless it has one | refused | refused |
//! | rename, describe | yes | yes | yes |
//! | delete | refused | → gone | → gone |
//!
//! A revoked token is not restored if its reason is final, it has a successor, or the authority is
//! too low.
//!
//! Because the first fact is kept, an admin's revocation of a token that its owner has revoked
//! already changes nothing, and the owner may restore the token. To prevent that, revoke it as
//! compromised.

use crate::clock::cut;
use crate::named_enum::named_enum;
use crate::token::{
    ActorRef, Authority, Facts, Reason, Revocation, Succession, TokenId, TokenState,
};
use chrono::{DateTime, TimeDelta, Utc};
use std::time::Duration;

named_enum! {
    /// An action on a token.
    pub enum Action {
        /// Take it out of use.
        Revoke = "revoke",
        /// Put it back into use.
        Restore = "restore",
        /// Replace it with a successor.
        Rotate = "rotate",
        /// Change its name or its description.
        Rename = "rename",
        /// Remove the record.
        Delete = "delete",
    }
}

/// The error if a token's state does not allow an action.
#[derive(Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a token that is {state} cannot be {}: {why}", done(*action))]
#[non_exhaustive]
pub struct Refusal {
    /// The state of the token.
    pub state: TokenState,
    /// The requested action.
    pub action: Action,
    /// The reason for the refusal.
    pub why: RefusalReason,
}

const fn done(action: Action) -> &'static str {
    match action {
        Action::Revoke => "revoked",
        Action::Restore => "restored",
        Action::Rotate => "rotated",
        Action::Rename => "renamed",
        Action::Delete => "deleted",
    }
}

/// The reason why a token's state does not allow an action.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RefusalReason {
    /// The token must be revoked or expired first.
    #[error("revoke the token first, or wait for its expiry")]
    StillActive,
    /// The token is not revoked, and only a revoked token can be restored.
    #[error("only a revoked token can be restored")]
    NotRevoked,
    /// The token is revoked.
    #[error("restore the token first")]
    Revoked,
    /// The token is expired, and an expiry is never moved later.
    #[error("an expiry is final; generate a new token")]
    Expired,
    /// The token was rotated and has a successor.
    #[error("the token has a successor; use the successor")]
    HasSuccessor,
    /// The token was revoked for a reason that no authority can undo.
    #[error("a revocation for the reason {0} is final; generate a new token")]
    Final(Reason),
    /// The action requires at least the authority that revoked the token.
    #[error("the authority of the {0} revoked the token; undo it with the same or more authority")]
    Authority(Authority),
}

/// Revokes a token. Returns the new facts, or `None` if nothing changes.
///
/// # Errors
/// [`Refusal`] if the token is expired, unless the reason is compromised.
pub fn revoke(
    facts: &Facts,
    with: Revocation,
    now: DateTime<Utc>,
) -> Result<Option<Facts>, Refusal> {
    let state = facts.state(now);
    let compromised = with.reason == Reason::Compromised;
    if state == TokenState::Expired && !compromised {
        return Err(Refusal { state, action: Action::Revoke, why: RefusalReason::Expired });
    }
    let revocation = match &facts.revocation {
        None => with,
        Some(first) if compromised && first.reason != Reason::Compromised => {
            Revocation { reason: Reason::Compromised, ..Revocation::clone(first) }
        }
        Some(_) => return Ok(None),
    };
    Ok(Some(Facts { revocation: Some(Box::new(revocation)), ..facts.clone() }))
}

/// Restores a revoked token. Returns the new facts.
///
/// A token revoked as idle may be restored by its owner.
///
/// # Errors
/// [`Refusal`] if the token is not revoked, is expired, has a successor, or was revoked for a final
/// reason or with more authority than `authority`.
pub fn restore(facts: &Facts, authority: Authority, now: DateTime<Utc>) -> Result<Facts, Refusal> {
    let state = facts.state(now);
    let refused = |why| Err(Refusal { state, action: Action::Restore, why });
    let revocation = match (state, &facts.revocation) {
        (TokenState::Expired, _) => return refused(RefusalReason::Expired),
        (_, None) => return refused(RefusalReason::NotRevoked),
        (_, Some(revocation)) => revocation,
    };
    if revocation.reason.is_final() {
        return refused(RefusalReason::Final(revocation.reason));
    }
    if facts.succession.is_some() {
        return refused(RefusalReason::HasSuccessor);
    }
    if authority < revocation.authority && revocation.reason != Reason::Idle {
        return refused(RefusalReason::Authority(revocation.authority));
    }
    Ok(Facts { revocation: None, ..facts.clone() })
}

/// Rotates a token to `successor`. Returns the new facts.
///
/// Without overlap, the token is revoked. With an overlap, its expiry is moved earlier to the end
/// of the overlap, never later.
///
/// # Errors
/// [`Refusal`] if the token is not active or already has a successor.
pub fn rotate(
    facts: &Facts,
    successor: TokenId,
    overlap: Duration,
    (by, authority): (ActorRef, Authority),
    now: DateTime<Utc>,
) -> Result<Facts, Refusal> {
    may_rotate(facts, now)?;
    let succession = |until| Some(Succession { successor, at: now, until });
    if overlap.is_zero() {
        let revocation = Revocation { at: now, by, authority, reason: Reason::Rotated };
        return Ok(Facts {
            revocation: Some(Box::new(revocation)),
            succession: succession(now),
            ..facts.clone()
        });
    }
    let overlap = TimeDelta::from_std(overlap).unwrap_or(TimeDelta::MAX);
    let end = cut(now.checked_add_signed(overlap).unwrap_or(DateTime::<Utc>::MAX_UTC));
    let end = facts.expires_at.map_or(end, |expires_at| expires_at.min(end));
    Ok(Facts { expires_at: Some(end), succession: succession(end), ..facts.clone() })
}

/// Checks whether a token may be rotated.
///
/// # Errors
/// [`Refusal`] if the token is not active or already has a successor.
pub fn may_rotate(facts: &Facts, now: DateTime<Utc>) -> Result<(), Refusal> {
    let state = facts.state(now);
    let why = match state {
        TokenState::Expired => RefusalReason::Expired,
        TokenState::Revoked => RefusalReason::Revoked,
        TokenState::Active if facts.succession.is_some() => RefusalReason::HasSuccessor,
        TokenState::Active => return Ok(()),
    };
    Err(Refusal { state, action: Action::Rotate, why })
}

/// Checks whether a token may be deleted.
///
/// # Errors
/// [`Refusal`] if the token is active.
pub fn may_delete(facts: &Facts, now: DateTime<Utc>) -> Result<(), Refusal> {
    match facts.state(now) {
        state @ TokenState::Active => {
            Err(Refusal { state, action: Action::Delete, why: RefusalReason::StillActive })
        }
        TokenState::Revoked | TokenState::Expired => Ok(()),
    }
}
