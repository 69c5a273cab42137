//! What happened to a token: the stored facts that its state is derived from. What may happen next is in
//! [`lifecycle`](crate::lifecycle).

use super::{Rfc3339, TokenId};
use crate::clock::micros;
use crate::owner::OwnerId;
use chrono::{DateTime, Utc};
use serde::ser::SerializeStruct;
use serde::{Serialize, Serializer};
use std::fmt;

/// The state of a token at one instant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum TokenState {
    /// It works.
    Active,
    /// It was revoked, and has not reached its expiry.
    Revoked,
    /// Its expiry is reached, whether it was revoked or not.
    Expired,
}

impl TokenState {
    /// `active`, `revoked` or `expired`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Revoked => "revoked",
            Self::Expired => "expired",
        }
    }
}

impl fmt::Display for TokenState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// The stored facts that a token's state is derived from.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[repr(C)]
#[allow(clippy::exhaustive_structs, reason = "a store must not be able to forget a field")]
pub struct Facts {
    /// When it ends; never where there is none.
    pub expires_at: Option<DateTime<Utc>>,
    /// That it was revoked. In a box, since most tokens are not.
    pub revocation: Option<Box<Revocation>>,
    /// That it was rotated.
    pub succession: Option<Succession>,
}

impl Facts {
    /// The state at `now`. A token is expired at the very instant of its expiry.
    pub fn state(&self, now: DateTime<Utc>) -> TokenState {
        let expires_at = self.expires_at.map_or(NEVER_ENDS, micros);
        TokenState::derived(expires_at, self.revocation.is_some(), micros(now))
    }

    /// When it expires or was revoked, whichever comes first; pruning goes by it. `None` if it does neither.
    pub fn ended_at(&self) -> Option<DateTime<Utc>> {
        ended_at(self.expires_at, self.revocation.as_deref())
    }
}

/// The earlier of an expiry and a revocation.
pub(super) fn ended_at(
    expires_at: Option<DateTime<Utc>>,
    revocation: Option<&Revocation>,
) -> Option<DateTime<Utc>> {
    expires_at.into_iter().chain(revocation.map(|revocation| revocation.at)).min()
}

/// Later than any instant: the end of what has none.
pub(super) const NEVER_ENDS: i64 = i64::MAX;

impl TokenState {
    /// The one place where it is decided; instants are microseconds since 1970.
    pub(super) const fn derived(expires_at: i64, is_revoked: bool, now: i64) -> Self {
        if expires_at <= now {
            Self::Expired
        } else if is_revoked {
            Self::Revoked
        } else {
            Self::Active
        }
    }
}

/// That a token was revoked.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(clippy::exhaustive_structs, reason = "a store must not be able to forget a field")]
pub struct Revocation {
    /// When.
    pub at: DateTime<Utc>,
    /// By whom.
    pub by: ActorRef,
    /// With what authority; as much is needed to restore the token.
    pub authority: Authority,
    /// Why.
    pub reason: Reason,
}

impl Serialize for Revocation {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut revocation = serializer.serialize_struct("Revocation", 3)?;
        revocation.serialize_field("at", &Rfc3339(self.at))?;
        revocation.serialize_field("by", &self.by)?;
        revocation.serialize_field("reason", self.reason.as_str())?;
        revocation.end()
    }
}

/// That a token was rotated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(clippy::exhaustive_structs, reason = "a store must not be able to forget a field")]
pub struct Succession {
    /// The token that took its place.
    pub successor: TokenId,
    /// When.
    pub at: DateTime<Utc>,
    /// Until when it was let work beside its successor; the same instant where there was no overlap. Presenting it after
    /// that is a signal of reuse.
    pub until: DateTime<Utc>,
}

/// Why a token was revoked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Reason {
    /// Its owner did not want it any more.
    Owner,
    /// An admin took it away.
    Admin,
    /// The host took it away.
    System,
    /// All tokens of its owner were taken away.
    Offboarding,
    /// It was not used for longer than the policy allows.
    Idle,
    /// A successor took its place.
    Rotated,
    /// A token that it descends from was presented after its rotation.
    Reuse,
    /// It descends from a compromised token, but whoever reported that token has no authority over this one. An admin may
    /// restore it.
    Suspected,
    /// Its secret is known to others.
    Compromised,
}

impl Reason {
    /// All reasons.
    pub const ALL: [Self; 9] = [
        Self::Owner,
        Self::Admin,
        Self::System,
        Self::Offboarding,
        Self::Idle,
        Self::Rotated,
        Self::Reuse,
        Self::Suspected,
        Self::Compromised,
    ];

    /// `owner`, `admin`, `system`, `offboarding`, `idle`, `rotated`, `reuse`, `suspected` or `compromised`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Owner => "owner",
            Self::Admin => "admin",
            Self::System => "system",
            Self::Offboarding => "offboarding",
            Self::Idle => "idle",
            Self::Rotated => "rotated",
            Self::Reuse => "reuse",
            Self::Suspected => "suspected",
            Self::Compromised => "compromised",
        }
    }

    /// The reason with this name, as [`as_str`](Self::as_str) gives it.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|reason| reason.as_str() == name)
    }

    /// Whether no authority restores a token that was revoked for this.
    pub const fn is_final(self) -> bool {
        matches!(self, Self::Rotated | Self::Reuse | Self::Compromised)
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// In what capacity somebody acts; a later one has more weight.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Authority {
    /// The token's own owner, or the token itself.
    Owner,
    /// Somebody who may manage tokens of others.
    Admin,
    /// The host.
    System,
}

impl Authority {
    /// `owner`, `admin` or `system`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Owner => "owner",
            Self::Admin => "admin",
            Self::System => "system",
        }
    }
}

impl fmt::Display for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// Who did something, as it is recorded.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ActorRef {
    /// The host itself.
    System,
    /// An owner in a session.
    Owner(OwnerId),
    /// An owner through one of its tokens.
    Token {
        /// The owner.
        owner: OwnerId,
        /// The token.
        id: TokenId,
    },
    /// Somebody whose traces were erased.
    Erased,
    /// Somebody who did not prove who they are: who presented a wrong secret.
    Unproven,
}

impl ActorRef {
    /// `system`, `owner`, `token`, `erased` or `unproven`.
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::System => "system",
            Self::Owner(_) => "owner",
            Self::Token { .. } => "token",
            Self::Erased => "erased",
            Self::Unproven => "unproven",
        }
    }

    /// The owner, unless it was the host or is erased.
    pub const fn owner(&self) -> Option<&OwnerId> {
        match self {
            Self::Owner(owner) | Self::Token { owner, .. } => Some(owner),
            Self::System | Self::Erased | Self::Unproven => None,
        }
    }

    /// The token, where it was done through one.
    pub const fn token(&self) -> Option<TokenId> {
        match self {
            Self::Token { id, .. } => Some(*id),
            Self::System | Self::Owner(_) | Self::Erased | Self::Unproven => None,
        }
    }
}

/// As `{kind, owner, token}`, the latter two null where there is none.
impl Serialize for ActorRef {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut actor = serializer.serialize_struct("Actor", 3)?;
        actor.serialize_field("kind", self.kind())?;
        actor.serialize_field("owner", &self.owner())?;
        actor.serialize_field("token", &self.token())?;
        actor.end()
    }
}
