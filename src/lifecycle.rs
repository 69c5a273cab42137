//! What may happen to a token next: pure functions of the stored facts and one instant.
//!
//! | action | Active | Revoked | Expired |
//! |---|---|---|---|
//! | revoke | → Revoked | no change, succeeds; the first fact is kept | refused |
//! | revoke as compromised | → Revoked | the reason becomes compromised | recorded |
//! | restore | refused | → Active, unless the reason is final, it has a successor, or the authority is too low | refused |
//! | rotate | a successor takes its place, unless it has one | refused | refused |
//! | rename, describe | yes | yes | yes |
//! | delete | refused | → gone | → gone |
//!
//! "The first fact is kept" has a consequence: an admin who revokes what its owner has revoked already changes nothing,
//! and the owner may restore it. Revoke as compromised to have the last word.

use crate::clock::cut;
use crate::token::{ActorRef, Authority, Facts, Reason, Revocation, Succession, TokenId, TokenState};
use chrono::{DateTime, TimeDelta, Utc};
use std::fmt;

/// What somebody wants to do to a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Action {
    /// Take it out of use.
    Revoke,
    /// Put it back into use.
    Restore,
    /// Let a successor take its place.
    Rotate,
    /// Change its name or its description.
    Rename,
    /// Remove the record.
    Delete,
}

impl Action {
    /// All actions.
    pub const ALL: [Self; 5] = [Self::Revoke, Self::Restore, Self::Rotate, Self::Rename, Self::Delete];

    /// `revoke`, `restore`, `rotate`, `rename` or `delete`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Revoke => "revoke",
            Self::Restore => "restore",
            Self::Rotate => "rotate",
            Self::Rename => "rename",
            Self::Delete => "delete",
        }
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// The token's state does not allow the action.
#[derive(Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a token that is {state} cannot be {}: {why}", done(*action))]
#[non_exhaustive]
pub struct Refusal {
    /// The state that the token is in.
    pub state: TokenState,
    /// What was wanted.
    pub action: Action,
    /// Why not.
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

/// Why a token's state does not allow an action.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RefusalReason {
    /// It has to be revoked or expired first.
    #[error("revoke the token first, or wait for its expiry")]
    StillActive,
    /// Only a revoked token can be restored.
    #[error("only a revoked token is restored")]
    NotRevoked,
    /// It was revoked.
    #[error("restore the token first")]
    Revoked,
    /// Its expiry is reached, and is never moved later.
    #[error("an expiry is final; generate a new token")]
    Expired,
    /// It was rotated: a successor has taken its place.
    #[error("the token has a successor; use that one")]
    HasSuccessor,
    /// It was revoked for a reason that no authority undoes.
    #[error("a revocation for the reason {0} is final; generate a new token")]
    Final(Reason),
    /// It takes at least the authority that revoked it.
    #[error("a revocation with the authority of the {0} takes as much authority to undo")]
    Authority(Authority),
}

/// Revokes: the facts after it, or none where nothing changes.
///
/// # Errors
/// [`Refusal`] for an expired token, unless the reason is compromised.
pub fn revoke(facts: &Facts, with: Revocation, now: DateTime<Utc>) -> Result<Option<Facts>, Refusal> {
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

/// Restores a revoked token: the facts after it.
///
/// # Errors
/// [`Refusal`] for a token that is not revoked, expired, has a successor, or was revoked for a final reason or with more
/// authority than `authority`. A token revoked as idle may be restored by its owner.
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

/// Retires a token in favour of `successor`: the facts after it. Without overlap it is revoked, with one its expiry is
/// brought forward to the overlap's end, never put off.
///
/// # Errors
/// [`Refusal`] for a token that is not active or has a successor already.
pub fn rotate(
    facts: &Facts,
    successor: TokenId,
    overlap: TimeDelta,
    (by, authority): (ActorRef, Authority),
    now: DateTime<Utc>,
) -> Result<Facts, Refusal> {
    may_rotate(facts, now)?;
    let succession = |until| Some(Succession { successor, at: now, until });
    if overlap <= TimeDelta::zero() {
        let revocation = Revocation { at: now, by, authority, reason: Reason::Rotated };
        return Ok(Facts {
            revocation: Some(Box::new(revocation)),
            succession: succession(now),
            ..facts.clone()
        });
    }
    let end = cut(now.checked_add_signed(overlap).unwrap_or(DateTime::<Utc>::MAX_UTC));
    let end = facts.expires_at.map_or(end, |expires_at| expires_at.min(end));
    Ok(Facts { expires_at: Some(end), succession: succession(end), ..facts.clone() })
}

/// Whether a token may be rotated.
///
/// # Errors
/// [`Refusal`] for a token that is not active or has a successor already.
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

/// Whether a token may be deleted.
///
/// # Errors
/// [`Refusal`] for an active token.
pub fn may_delete(facts: &Facts, now: DateTime<Utc>) -> Result<(), Refusal> {
    match facts.state(now) {
        state @ TokenState::Active => {
            Err(Refusal { state, action: Action::Delete, why: RefusalReason::StillActive })
        }
        TokenState::Revoked | TokenState::Expired => Ok(()),
    }
}
